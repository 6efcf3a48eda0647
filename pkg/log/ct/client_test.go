package ct_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log/ct"
)

func TestClientOfALogThatFails(t *testing.T) {
	ca := newAuthority(t, "a")
	s := newSite(t, ca.root)
	foreign := newSite(t, ca.root)
	chain := ca.precertChain()
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			w.Write([]byte(body))
		}
	}
	for name, tt := range map[string]struct {
		first, second http.Handler
		kind          fault.Kind
		good          bool
		calls         int32
	}{
		"busy once":                 {first: answer(503, "busy"), second: s.handler, good: true, calls: 2},
		"pushes back once":          {first: answer(429, "busy"), second: s.handler, good: true, calls: 2},
		"hangs up once":             {first: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), second: s.handler, good: true, calls: 2},
		"always busy":               {first: answer(503, "busy"), second: answer(503, "busy"), kind: fault.Unavailable, calls: 2},
		"always pushes back":        {first: answer(429, "busy"), second: answer(429, "busy"), kind: fault.Unavailable, calls: 2},
		"broken inside":             {first: answer(500, "oops"), second: answer(500, "oops"), kind: fault.Unavailable, calls: 2},
		"refuses the chain":         {first: answer(400, "Bad Request\nno"), kind: fault.Internal, calls: 1},
		"redirects":                 {first: http.RedirectHandler("https://elsewhere.example.test/", http.StatusTemporaryRedirect), kind: fault.Internal, calls: 1},
		"answers nonsense":          {first: answer(200, "hello"), kind: fault.Internal, calls: 1},
		"answers an empty object":   {first: answer(200, "{}"), kind: fault.Internal, calls: 1},
		"answers without end":       {first: answer(200, `{"id":"`+strings.Repeat("A", 1<<20)), kind: fault.Internal, calls: 1},
		"is a log with another key": {first: foreign.handler, kind: fault.Internal, calls: 1},
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if calls.Add(1) == 1 {
					tt.first.ServeHTTP(w, r)
				} else {
					tt.second.ServeHTTP(w, r)
				}
			}))
			defer server.Close()
			client, err := ct.NewClient(server.URL, s.key.Public(), nil)
			if err != nil {
				t.Fatal(err)
			}
			sct, err := client.AddPreChain(t.Context(), chain)
			if tt.good != (err == nil) || err != nil && fault.KindOf(err) != tt.kind {
				t.Errorf("%x, %v of kind %v", sct, err, fault.KindOf(err))
			}
			if calls.Load() != tt.calls {
				t.Errorf("%d attempts, want %d", calls.Load(), tt.calls)
			}
		})
	}
}

func TestClientOfALogThatIsNotThere(t *testing.T) {
	server := httptest.NewServer(nil)
	server.Close()
	client, err := ct.NewClient(server.URL, newKey(t).Public(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.AddPreChain(t.Context(), [][]byte{{1}}); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("error %v of kind %v, want Unavailable", err, fault.KindOf(err))
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client.AddPreChain(gone, [][]byte{{1}}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v of a caller who left, want context.Canceled", err)
	}
}

func TestClientConfiguration(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"", "ct.example.test", "ftp://ct.example.test", "https://", "https://h/?q", "https://h/#f", "://"} {
		if _, err := ct.NewClient(url, newKey(t).Public(), nil); err == nil {
			t.Errorf("URL %q was taken", url)
		}
	}
	if _, err := ct.NewClient("https://ct.example.test", p384.Public(), nil); err == nil {
		t.Error("a P-384 key was taken")
	}
}
