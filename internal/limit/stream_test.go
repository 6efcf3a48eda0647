package limit

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/fault"
)

func TestStreamsAreClaimedAsTheyComeAndUntilTheHandlerReturns(t *testing.T) {
	const total = 4 << 20 // 3.5 MiB for large ones
	room := NewBytes(total, 10*time.Millisecond)
	entered, leave := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(Body{Bytes: room}.Stream(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			w.WriteHeader(fault.KindOf(err).HTTPStatus())
			return
		}
		if r.URL.Path == "/stay" {
			close(entered)
			<-leave
		}
	})))
	defer server.Close()
	post := func(path string, size int) int {
		resp, err := http.Post(server.URL+path, "application/grpc", io.MultiReader(bytes.NewReader(make([]byte, size))))
		if err != nil {
			t.Error(err)
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	stayed := make(chan int)
	go func() { stayed <- post("/stay", 2<<20) }()
	<-entered
	if status := post("/", 2<<20); status != http.StatusServiceUnavailable {
		t.Errorf("a second stream: %d, want 503", status)
	}
	if status := post("/", 1000); status != http.StatusOK {
		t.Errorf("a small one: %d, want 200", status)
	}
	close(leave)
	if status := <-stayed; status != http.StatusOK {
		t.Errorf("the first one: %d, want 200", status)
	}
	if status := post("/", 2<<20); status != http.StatusOK {
		t.Errorf("after the first one has gone: %d, want 200", status)
	}
	free(t, room, total)
}

func TestASlowStreamIsCut(t *testing.T) {
	failed := make(chan error, 1)
	server := httptest.NewServer(Body{Time: 100 * time.Millisecond}.Stream(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		failed <- err
	})))
	defer server.Close()
	r, w := io.Pipe()
	defer w.Close()
	go func() {
		if resp, err := http.Post(server.URL, "application/grpc", r); err == nil {
			resp.Body.Close()
		}
	}()
	if err := <-failed; err == nil {
		t.Error("a body without an end was read to its end")
	}
}
