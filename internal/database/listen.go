package database

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/lib/pq"
)

// Listen returns the payloads that NOTIFY sends to channel, in any schema of the database, from
// now on and until ctx ends; then it is closed. An empty payload stands for any that were missed:
// it comes after each time that the connection was lost and made again. PostgreSQL only.
func (db *DB) Listen(ctx context.Context, channel string) (<-chan string, error) {
	if db.engine != PostgreSQL {
		return nil, errors.New("database: only PostgreSQL has notifications")
	}
	l, err := db.server.listen(ctx, channel)
	if err != nil {
		return nil, fmt.Errorf("listening to %s of %s: %w", channel, db, err)
	}
	out := make(chan string, 32)
	go func() {
		defer close(out)
		for l.forward(ctx, out) {
			l.close()
			if l = db.server.listenAgain(ctx, channel); l == nil {
				return
			}
			select {
			case out <- "":
			case <-ctx.Done():
			}
		}
		l.close()
	}()
	return out, nil
}

// listener is a connection that listens. pq.Listener would make a lost one again by itself, but
// with the password that it had at first.
type listener struct {
	*pq.Listener
	lost chan error // has the first reason
}

func (s *server) listen(ctx context.Context, channel string) (*listener, error) {
	dsn, err := s.dsn()
	if err != nil {
		return nil, err
	}
	l := &listener{lost: make(chan error, 1)}
	l.Listener = pq.NewDialListener(listenDialer(), dsn, time.Second, time.Second, func(event pq.ListenerEventType, err error) {
		if event == pq.ListenerEventDisconnected || event == pq.ListenerEventConnectionAttemptFailed {
			select {
			case l.lost <- err:
			default:
			}
		}
	})
	listening := make(chan error, 1)
	go func() { listening <- l.Listen(channel) }()
	select {
	case err = <-listening:
	case err = <-l.lost:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// listenAgain tries until it succeeds; it returns nil when ctx ends before.
func (s *server) listenAgain(ctx context.Context, channel string) *listener {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		if l, err := s.listen(ctx, channel); err == nil {
			return l
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// forward reports whether it ended because the connection was lost; otherwise ctx ended.
func (l *listener) forward(ctx context.Context, out chan<- string) bool {
	for {
		payload := ""
		select {
		case n := <-l.Notify:
			if n != nil { // nil stands for a reconnection
				payload = n.Extra
			}
		case <-l.lost:
			return true
		case <-ctx.Done():
			return false
		}
		select {
		case out <- payload:
		case <-ctx.Done():
			return false
		}
	}
}

// close does not wait: a connection that is being made would hold it up for the connect timeout.
func (l *listener) close() {
	go func() {
		l.Close()
		for range l.Notify { // ends with the listener's goroutine, which would block on it
		}
	}()
}

// listenDialer has no read deadline, since nothing need come for days; keep-alive packets find a
// server that went away within half a minute.
func listenDialer() dialer {
	return dialer{net: net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}}}
}
