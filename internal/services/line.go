package services

import (
	"context"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// Line is the network between a client and a server, which can fail as networks do.
type Line struct {
	mu   sync.Mutex // guards what follows
	cut  bool
	held chan struct{} // closed when answers pass again; nil when they do
}

// Through returns the URI of the server at uri behind a Line of its own.
func Through(t testing.TB, uri string) (string, *Line) {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		ln.Close()
	})
	l := &Line{}
	target := u.Host
	go func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				continue
			}
			context.AfterFunc(ctx, func() {
				client.Close()
				server.Close()
			})
			go func() {
				io.Copy(server, client)
				server.Close()
			}()
			go l.answers(ctx, client, server)
		}
	}()
	u.Host = ln.Addr().String()
	return u.String(), l
}

func (l *Line) answers(ctx context.Context, client, server net.Conn) {
	defer client.Close()
	defer server.Close()
	b := make([]byte, 4096)
	for {
		n, err := server.Read(b)
		if err != nil {
			return
		}
		l.mu.Lock()
		cut, held := l.cut, l.held
		l.mu.Unlock()
		if cut {
			return
		}
		if held != nil {
			select {
			case <-held:
			case <-ctx.Done():
				return
			}
		}
		if _, err := client.Write(b[:n]); err != nil {
			return
		}
	}
}

// Cut makes the line break, when on, in place of the next answer of the server on each connection.
func (l *Line) Cut(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = on
}

// Hold keeps answers back, when on, until it is called again.
func (l *Line) Hold(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case on && l.held == nil:
		l.held = make(chan struct{})
	case !on && l.held != nil:
		close(l.held)
		l.held = nil
	}
}
