package limit

import (
	"io"
	"net/http"
	"time"
)

// Stream bounds the bodies that h reads by itself, as a gRPC server does: they are claimed as they come
// and until h returns, and may take b.Time in all. Reading fails with fault.Overloaded when there is no room, and with
// os.ErrDeadlineExceeded when the time is over. What one message may have is for h to bound.
func (b Body) Stream(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &claim{bytes: b.Bytes, body: r.Body}
		defer c.release()
		limit := b.Time
		if limit == 0 {
			limit = DefaultBodyTime
		}
		// Not for longer than the body: the deadline ends at its end, below.
		conn := http.NewResponseController(w)
		_ = conn.SetReadDeadline(time.Now().Add(limit))
		r.Body = &stream{claim: c, request: r, ended: func() { _ = conn.SetReadDeadline(time.Time{}) }}
		h.ServeHTTP(w, r)
	})
}

type stream struct {
	*claim
	request *http.Request
	came    int64
	ended   func()
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.body.Read(p)
	s.came += int64(n)
	if s.came > s.held {
		// In steps, so that not every small read is a claim of its own.
		if growErr := s.grow(s.request.Context(), max(s.came, 2*s.held, firstRead)); growErr != nil {
			return 0, growErr
		}
	}
	if err == io.EOF {
		s.ended()
	}
	return n, err
}
