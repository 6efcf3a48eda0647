package limit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/fault"
)

// site serves one path that reads a body and then waits until the test lets it go.
type site struct {
	body  Body
	held  chan int      // bytes of each body that was read
	leave chan struct{} // closed: handlers do not wait
	url   string
	addr  string
}

func newSite(t *testing.T, body Body) *site {
	s := &site{body: body, held: make(chan int, 100), leave: make(chan struct{})}
	server := httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	s.url, s.addr = server.URL, server.Listener.Addr().String()
	return s
}

func (s *site) serve(w http.ResponseWriter, r *http.Request) {
	defer Release(r)
	data, err := s.body.Read(w, r)
	if err != nil {
		w.Header().Set("Retry-After", fault.RetryAfter(err))
		http.Error(w, fault.ReasonOf(err), fault.KindOf(err).HTTPStatus())
		return
	}
	s.held <- len(data)
	select {
	case <-s.leave:
	case <-r.Context().Done():
		return
	}
	io.WriteString(w, "ok")
}

func (s *site) let() { close(s.leave) }

// free fails unless all bytes come back.
func free(t *testing.T, b *Bytes, total int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := errors.Join(b.small.Acquire(ctx, total/smallShare), b.large.Acquire(ctx, total-total/smallShare)); err != nil {
		t.Fatalf("bytes of requests that are over are still claimed: %v", err)
	}
}

// clients are Go's over HTTP/1.1 and HTTP/2.
func clients() map[string]*http.Client {
	h2 := new(http.Protocols)
	h2.SetUnencryptedHTTP2(true)
	return map[string]*http.Client{
		"HTTP/1.1": {Transport: &http.Transport{}}, "HTTP/2": {Transport: &http.Transport{Protocols: h2}},
	}
}

// chunked hides the length of a body.
func chunked(r io.Reader) io.Reader { return io.MultiReader(r) }

func answer(t *testing.T, c *http.Client, url string, body io.Reader) (int, string) {
	t.Helper()
	resp, err := c.Post(url, "application/json", body)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(text))
}

func TestBodiesUpToTheLimitAreReadAndLargerOnesAnswered(t *testing.T) {
	const most = 1 << 20
	for name, client := range clients() {
		t.Run(name, func(t *testing.T) {
			bytes4 := NewBytes(4<<20, time.Second)
			s := newSite(t, Body{Max: most, Bytes: bytes4})
			s.let()
			for _, tt := range []struct {
				name   string
				body   io.Reader
				status int
			}{
				{"an empty one", http.NoBody, 200},
				{"a small one", strings.NewReader("{}"), 200},
				{"one that just fits", bytes.NewReader(make([]byte, most)), 200},
				{"a chunked one that just fits", chunked(bytes.NewReader(make([]byte, most))), 200},
				{"one byte more", bytes.NewReader(make([]byte, most+1)), 413},
				{"one byte more, chunked", chunked(bytes.NewReader(make([]byte, most+1))), 413},
				{"100 MiB", bytes.NewReader(make([]byte, 100<<20)), 413},
				{"100 MiB, chunked", chunked(bytes.NewReader(make([]byte, 100<<20))), 413},
			} {
				if status, text := answer(t, client, s.url, tt.body); status != tt.status {
					t.Errorf("%s: %d %s, want %d", tt.name, status, text, tt.status)
				}
			}
			free(t, bytes4, 4<<20)
		})
	}
}

func TestADeclaredLengthOverTheLimitIsRefusedUnread(t *testing.T) {
	s := newSite(t, Body{Max: 1000})
	conn := dial(t, s.addr)
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n") // and no byte of it
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusRequestEntityTooLarge || !resp.Close {
		t.Errorf("%s, close %t; want 413 and the end of the connection", resp.Status, resp.Close)
	}
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestSlowBodiesAreCutAndGiveTheirBytesBack(t *testing.T) {
	const total, slow = 8 << 20, 50
	room := NewBytes(total, time.Millisecond)
	s := newSite(t, Body{Max: 1 << 20, Time: 300 * time.Millisecond, Bytes: room})
	statuses := make([]int, slow)
	var wg sync.WaitGroup
	for i := range slow {
		conn := dial(t, s.addr)
		wg.Go(func() {
			length := "Content-Length: 100000"
			if i%2 == 1 {
				length = "Transfer-Encoding: chunked"
			}
			fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n5\r\n{\"a\":\r\n", length)
			if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
				statuses[i] = resp.StatusCode
			}
		})
	}
	wg.Wait()
	for i, status := range statuses {
		if status != http.StatusRequestTimeout {
			t.Errorf("slow body %d: status %d, want 408", i, status)
		}
	}
	free(t, room, total)
}

func TestASlowBodyOverHTTP2IsCut(t *testing.T) {
	s := newSite(t, Body{Max: 1 << 20, Time: 200 * time.Millisecond})
	r, w := io.Pipe()
	defer w.Close()
	if status, text := answer(t, clients()["HTTP/2"], s.url, r); status != http.StatusRequestTimeout {
		t.Errorf("%d %s, want 408", status, text)
	}
}

func TestTheDeadlineOfABodyDoesNotOutliveIt(t *testing.T) {
	for name, client := range clients() {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, Body{Max: 1000, Time: 100 * time.Millisecond})
			time.AfterFunc(300*time.Millisecond, s.let) // the handler works for longer than the body could take
			for range 2 {                               // the second on the same connection
				if status, text := answer(t, client, s.url, strings.NewReader("{}")); status != http.StatusOK {
					t.Errorf("%d %s, want 200", status, text)
				}
			}
		})
	}
}

func TestLargeBodiesBeyondTheRoomAreRefusedAndSmallOnesAreNot(t *testing.T) {
	const total = 4 << 20
	room := NewBytes(total, 50*time.Millisecond)
	s := newSite(t, Body{Max: 2 << 20, Bytes: room})
	client := clients()["HTTP/1.1"]
	var wg sync.WaitGroup
	for range 3 { // 3 of the 3.5 MiB that large bodies have
		wg.Go(func() {
			if status, text := answer(t, client, s.url, bytes.NewReader(make([]byte, 1<<20))); status != http.StatusOK {
				t.Errorf("%d %s, want 200", status, text)
			}
		})
		if n := <-s.held; n != 1<<20 {
			t.Fatalf("body of %d bytes", n)
		}
	}
	for name, body := range map[string]io.Reader{"declared": bytes.NewReader(make([]byte, 1<<20)), "chunked": chunked(bytes.NewReader(make([]byte, 1<<20)))} {
		resp, err := client.Post(s.url, "application/json", body)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %s, Retry-After %q; want 503 with it", name, resp.Status, resp.Header.Get("Retry-After"))
		}
	}
	wg.Go(func() {
		if status, text := answer(t, client, s.url, strings.NewReader("{}")); status != http.StatusOK {
			t.Errorf("a small body: %d %s, want 200", status, text)
		}
	})
	if n := <-s.held; n != 2 {
		t.Errorf("body of %d bytes, want the small one", n)
	}
	s.let()
	wg.Wait()
	free(t, room, total)
}

func TestAClientThatLeavesGivesItsBytesBack(t *testing.T) {
	const total = 4 << 20
	room := NewBytes(total, time.Second)
	s := newSite(t, Body{Max: 2 << 20, Bytes: room})
	for range 20 {
		conn := dial(t, s.addr)
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n{")
		conn.Close()
	}
	free(t, room, total)
}

func TestTheBytesMustHoldABody(t *testing.T) {
	if err := ValidateBytes(64<<20, 64<<20); err == nil {
		t.Error("64 MiB for bodies of 64 MiB are taken, though an eighth is for small ones")
	}
	least := MinBytes(64 << 20)
	if err := ValidateBytes(least, 64<<20); err != nil {
		t.Error(err)
	}
	if large := least - least/smallShare; large < 64<<20+1 {
		t.Errorf("large bodies get %d bytes, under the 64 MiB of one", large)
	}
}

func TestAClientThatSendsAllBeforeItReadsSeesTheAnswer(t *testing.T) {
	s := newSite(t, Body{Max: 1000})
	conn := dial(t, s.addr)
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n")
	if _, err := conn.Write(make([]byte, 50_000_000)); err != nil {
		t.Fatalf("cut while it sent: %v", err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("%s, want 413", resp.Status)
	}
}
