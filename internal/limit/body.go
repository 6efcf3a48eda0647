// Package limit keeps what clients may ask of a server at once within bounds: bytes of request bodies in
// memory, requests of one caller, signatures under verification. Handlers call it where the cost
// arises; its errors are faults, which each API answers in its own shape. The nil pointer of each type sets no bound.
package limit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/attestry/attestry/internal/fault"
)

const (
	// smallBody is the size up to which a body is paid from a share of its own: however many
	// attestations of megabytes are on their way, signatures get through.
	smallBody = 64 << 10
	// smallShare is the part of the bytes that is kept for small bodies.
	smallShare = 8
	// firstRead is how much memory a body gets before a byte of it has come.
	firstRead = 16 << 10
)

// Bytes bounds how many bytes of request bodies are in memory at once.
type Bytes struct {
	small, large *semaphore.Weighted
	wait         time.Duration
}

// NewBytes returns a bound of total bytes, an eighth of it for bodies of up to 64 KiB. A body that finds
// no room waits for at most wait.
func NewBytes(total int64, wait time.Duration) *Bytes {
	return &Bytes{
		small: semaphore.NewWeighted(total / smallShare), large: semaphore.NewWeighted(total - total/smallShare), wait: wait,
	}
}

// MinBytes returns the least total with which a body of max bytes always finds room in the end.
func MinBytes(max int64) int64 { return max + max/(smallShare-1) + smallShare*smallBody }

// DefaultBodyTime is how long a body may take. At 64 MiB that is a line of 9 Mbit/s.
const DefaultBodyTime = time.Minute

// idleTime is how long a body may go without a byte.
const idleTime = 10 * time.Second

// Body reads the request bodies of one API.
type Body struct {
	Max   int64         // bytes of one body
	Time  time.Duration // for all of a body; 0 means DefaultBodyTime
	Bytes *Bytes        // shared by all APIs of a server
}

// Read returns the body of r, which stays claimed until Release(r): call that when the body is
// no longer in use. Errors: fault.TooLarge over Max, for a declared length before anything is read;
// fault.Overloaded when the bytes in flight leave no room, nothing read unless the body is chunked;
// fault.Slow when it takes longer than Time, or ten seconds without a byte; r.Context().Err() when
// the client is gone, fault.Invalid when the body cannot be read to its end.
func (b Body) Read(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.ContentLength > b.Max {
		return nil, refuse(w, r, b.tooLarge())
	}
	c := &claim{bytes: b.Bytes, body: r.Body}
	r.Body = c
	first := r.ContentLength + 1 // room to meet the end
	if r.ContentLength < 0 {
		first = min(firstRead, b.Max+1)
	}
	if err := c.grow(r.Context(), first); err != nil {
		return nil, refuse(w, r, err)
	}
	data, err := b.read(w, r, c)
	if err != nil {
		c.release()
		return nil, refuse(w, r, err)
	}
	return data, nil
}

func (b Body) read(w http.ResponseWriter, r *http.Request, c *claim) ([]byte, error) {
	limit := b.Time
	if limit == 0 {
		limit = DefaultBodyTime
	}
	end := time.Now().Add(limit)
	conn := http.NewResponseController(w)
	patience := func() { // fails where there is no connection that could be slow, as in tests
		next := time.Now().Add(idleTime)
		if next.After(end) {
			next = end
		}
		_ = conn.SetReadDeadline(next)
	}
	data := make([]byte, 0, min(c.held, firstRead))
	for {
		if len(data) == cap(data) {
			size := int64(2 * cap(data))
			if r.ContentLength > 0 && cap(data) >= firstRead { // once bytes come, what was declared is believed
				size = r.ContentLength + 1
			}
			size = min(size, b.Max+1)
			if err := c.grow(r.Context(), size); err != nil {
				return nil, err
			}
			data = append(make([]byte, 0, size), data...)
		}
		patience()
		n, err := c.body.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		switch {
		case int64(len(data)) > b.Max:
			return nil, b.tooLarge()
		case err == io.EOF:
			// The connection is watched for the client's end from here on, without a deadline.
			_ = conn.SetReadDeadline(time.Time{})
			return data, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, fault.New(fault.Slow, "body_too_slow", nil, "the request body came too slowly: it may take %v in all and %v without a byte", limit, min(idleTime, limit))
		case err != nil && r.Context().Err() != nil:
			return nil, r.Context().Err()
		case err != nil:
			return nil, fault.New(fault.Invalid, "body_unreadable", err, "the request body could not be read")
		}
	}
}

func (b Body) tooLarge() error {
	return fault.New(fault.TooLarge, "body_too_large", nil, "Request Entity Too Large: the body is over %d bytes", b.Max)
}

// refuse makes HTTP/1 close the connection behind the answer: reading on to find the next request would take in what
// was refused.
func refuse(w http.ResponseWriter, r *http.Request, err error) error {
	if r.ProtoMajor != 1 {
		return err
	}
	w.Header().Set("Connection", "close")
	c, ok := r.Body.(*claim)
	if !ok {
		c = &claim{body: r.Body}
		r.Body = c
	}
	if kind := fault.KindOf(err); kind == fault.TooLarge || kind == fault.Overloaded {
		c.refused = w
	}
	return err
}

// Release gives back the bytes that Read has claimed for r, if any. It is called when the answer is written: what a
// client still sends of a body that was refused is then thrown away for a moment. A connection that is closed
// while it sends would be reset, and a client that reads its answer late would not see why.
func Release(r *http.Request) {
	c, ok := r.Body.(*claim)
	if !ok {
		return
	}
	c.release()
	if c.refused == nil || r.Header.Get("Expect") != "" {
		return
	}
	conn := http.NewResponseController(c.refused)
	if conn.Flush() != nil || conn.SetReadDeadline(time.Now().Add(drainTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, c.body, drainBytes)
}

// How much of a refused body is thrown away, and for how long, so that its client sees the answer.
const (
	drainBytes = 128 << 20
	drainTime  = 2 * time.Second
)

// claim is a request's share of the bytes; it stands in for the body so that it travels with the request.
type claim struct {
	bytes *Bytes
	body  io.ReadCloser
	held  int64

	refused http.ResponseWriter // where a refusal is answered; nil when the body was not refused
}

func (c *claim) Read(p []byte) (int, error) { return c.body.Read(p) }
func (c *claim) Close() error               { return c.body.Close() }

// grow claims up to size bytes. A claim that outgrows the small bodies moves to the share of the large ones.
func (c *claim) grow(ctx context.Context, size int64) error {
	if c.bytes == nil {
		c.held = max(c.held, size)
		return nil
	}
	if size <= c.held {
		return nil
	}
	share, more := c.share(size), size
	if c.held > 0 && share == c.share(c.held) {
		more = size - c.held
	}
	if !share.TryAcquire(more) {
		waiting, cancel := context.WithTimeout(ctx, c.bytes.wait)
		defer cancel()
		if err := share.Acquire(waiting, more); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fault.New(fault.Overloaded, "bodies_in_flight", nil, "too many bytes of requests are on their way already; try again")
		}
	}
	if more == size && c.held > 0 {
		c.share(c.held).Release(c.held)
	}
	c.held = size
	return nil
}

func (c *claim) share(size int64) *semaphore.Weighted {
	if size <= smallBody {
		return c.bytes.small
	}
	return c.bytes.large
}

func (c *claim) release() {
	if c.bytes != nil && c.held > 0 {
		c.share(c.held).Release(c.held)
	}
	c.held = 0
}

// ValidateBytes reports a bound that bodies of max bytes could never meet.
func ValidateBytes(total, max int64) error {
	if least := MinBytes(max); total < least {
		return fmt.Errorf("%d bytes in flight leave no room for a body of %d bytes: at least %d are needed", total, max, least)
	}
	return nil
}
