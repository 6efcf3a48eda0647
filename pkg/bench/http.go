package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	maxAnswer    = 16 << 20 // bytes of one response body
	maxErrorText = 300
	dialTimeout  = 10 * time.Second
)

// Server is where requests go.
type Server struct {
	scheme, address, host, path string
}

// ParseServer reads a base URL, http or https. A host other than loopback is an error unless
// remote is set: a load generator pointed at someone else's service is a mistake or an attack.
func ParseServer(base string, remote bool) (Server, error) {
	u, err := url.Parse(base)
	if err != nil {
		return Server{}, fmt.Errorf("server URL: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return Server{}, fmt.Errorf("server URL %q is not http[s]://host[:port][/path]", base)
	}
	if !remote && !loopback(u.Hostname()) {
		return Server{}, fmt.Errorf("%s is not this machine: name a loopback address, or allow remote servers if it is yours to load", u.Host)
	}
	s := Server{scheme: u.Scheme, host: u.Host, path: strings.TrimSuffix(u.EscapedPath(), "/")}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	s.address = net.JoinHostPort(u.Hostname(), port)
	return s, nil
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// post returns a whole HTTP/1.1 request. It keeps the connection alive.
func (s Server) post(path, contentType string, body []byte) []byte {
	var b bytes.Buffer
	b.Grow(len(body) + 256)
	b.WriteString("POST " + s.path + path + " HTTP/1.1\r\nHost: " + s.host + "\r\nUser-Agent: attestry-bench\r\nAccept: */*\r\nContent-Type: " +
		contentType + "\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n")
	b.Write(body)
	return b.Bytes()
}

// get returns a whole HTTP/1.1 request. It keeps the connection alive.
func (s Server) get(path string) []byte {
	return []byte("GET " + s.path + path + " HTTP/1.1\r\nHost: " + s.host + "\r\nUser-Agent: attestry-bench\r\nAccept: */*\r\n\r\n")
}

// load sends the prepared requests with size.Clients connections. good looks at the body of a 2xx answer
// and may be nil.
func (s Server) load(ctx context.Context, target string, clients int, timeout time.Duration, requests [][]byte, good func([]byte) error) (*Report, error) {
	workers := make([]worker, min(clients, len(requests)))
	for i := range workers {
		w := &httpWorker{ctx: ctx, server: s, timeout: timeout, requests: requests, good: good}
		workers[i] = w
		defer w.close()
		// Connected before the clock starts: what is measured is a client that stays.
		if err := w.dial(); err != nil {
			return nil, fmt.Errorf("connecting to %s: %w", s.address, err)
		}
	}
	t := newTally(len(requests))
	t.run(ctx, 0, len(requests), workers)
	return t.report(target, clients), nil
}

type httpWorker struct {
	ctx      context.Context
	server   Server
	timeout  time.Duration
	requests [][]byte
	good     func([]byte) error

	conn net.Conn // nil: to be dialled
	in   *bufio.Reader
	body bytes.Buffer
}

func (w *httpWorker) dial() error {
	dialer := &net.Dialer{Timeout: dialTimeout}
	var err error
	if w.server.scheme == "https" {
		w.conn, err = (&tls.Dialer{NetDialer: dialer, Config: &tls.Config{NextProtos: []string{"http/1.1"}}}).DialContext(w.ctx, "tcp", w.server.address)
	} else {
		w.conn, err = dialer.DialContext(w.ctx, "tcp", w.server.address)
	}
	if err != nil {
		w.conn = nil
		return err
	}
	w.in = bufio.NewReaderSize(w.conn, 16<<10)
	return nil
}

func (w *httpWorker) close() {
	if w.conn != nil {
		w.conn.Close()
		w.conn = nil
	}
}

// do implements worker. After a transport error it goes on with a new connection.
func (w *httpWorker) do(i int) *failure {
	status, keep, err := w.exchange(w.requests[i])
	if !keep {
		w.close()
	}
	if err != nil {
		return &failure{kind: transportKind(err), text: err.Error()}
	}
	if status < 200 || status > 299 {
		text := strings.TrimSpace(w.body.String())
		return &failure{kind: strconv.Itoa(status), text: text[:min(len(text), maxErrorText)]}
	}
	if w.good != nil {
		if err := w.good(w.body.Bytes()); err != nil {
			return &failure{kind: "answer", text: err.Error()}
		}
	}
	return nil
}

// exchange writes one request and reads its answer into w.body.
func (w *httpWorker) exchange(request []byte) (status int, keep bool, err error) {
	if w.conn == nil {
		if err := w.dial(); err != nil {
			return 0, false, err
		}
	}
	if err := w.conn.SetDeadline(time.Now().Add(w.timeout)); err != nil {
		return 0, false, err
	}
	if _, err := w.conn.Write(request); err != nil {
		return 0, false, err
	}
	resp, err := http.ReadResponse(w.in, nil)
	if err != nil {
		return 0, false, err
	}
	w.body.Reset()
	n, err := w.body.ReadFrom(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && n > maxAnswer {
		err = fmt.Errorf("the answer is over %d bytes", maxAnswer)
	}
	resp.Body.Close()
	return resp.StatusCode, err == nil && !resp.Close, err
}

func transportKind(err error) string {
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return "timeout"
	}
	return "transport"
}
