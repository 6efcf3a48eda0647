package services

import (
	"context"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"
)

// Line is the network between a client and a server, which can fail as networks do.
type Line struct {
	mu      sync.Mutex // guards what follows
	cutting bool
	passing int           // answers until the cut
	held    chan struct{} // closed when answers pass again; nil when they do
	late    time.Duration // how long answers take
	clients []net.Conn
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
			l.mu.Lock()
			l.clients = append(l.clients, client)
			l.mu.Unlock()
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
		cut, held, late := l.cutting && l.passing <= 0, l.held, l.late
		l.passing--
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
		if late > 0 {
			select {
			case <-time.After(late):
			case <-ctx.Done():
				return
			}
		}
		if _, err := client.Write(b[:n]); err != nil {
			return
		}
	}
}

// CutAfter lets n answers of the server pass and breaks connections in place of those that
// follow, until Mend.
func (l *Line) CutAfter(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cutting, l.passing = true, n
}

// Mend ends what CutAfter began.
func (l *Line) Mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cutting = false
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

// Late makes every answer come d later.
func (l *Line) Late(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.late = d
}

// Break closes all connections at once, the client's side first.
func (l *Line) Break() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, conn := range l.clients {
		conn.Close()
	}
	l.clients = nil
}
