package witness

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/internal/fault"
)

const (
	// DefaultTimeout is how long a witness has for its answer, a second attempt included.
	DefaultTimeout = 5 * time.Second
	maxAnswer      = 64 << 10        // bytes; 16 ML-DSA lines have 54 KiB
	maxAhead       = 5 * time.Minute // of a cosignature's time over our clock
	// maxLines is what verifiers must take (c2sp.org/signed-note); sigstore-java stops at 20.
	maxLines = 16
)

// ClientOptions says whom to ask.
type ClientOptions struct {
	Policy *Policy
	Label  string // of the log in metrics and log lines
	// Transport carries the requests; nil for one of the client's own. Redirects are never followed.
	Transport http.RoundTripper
	Timeout   time.Duration // of a witness; 0 for DefaultTimeout
	Logger    *slog.Logger
	// Registerer takes the metrics; nil for none.
	Registerer prometheus.Registerer
	// Now is the clock that times of cosignatures are held against; nil for time.Now.
	Now func() time.Time
}

// Client gets the cosignatures of a policy's quorum. It implements log.Cosigner and may be used concurrently.
type Client struct {
	policy    *Policy
	endpoints []*endpoint
	http      *http.Client
	timeout   time.Duration
	logger    *slog.Logger
	metrics   *clientMetrics
	now       func() time.Time
}

// endpoint is a submission prefix and the witnesses that answer there.
type endpoint struct {
	url       string
	witnesses []int // indexes in the policy

	mu   sync.Mutex // guards size
	size uint64     // that the witness cosigned last, as far as it is known; after a start 0
}

// NewClient checks that every witness that can count for the quorum has a URL.
func NewClient(opts ClientOptions) (*Client, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Timeout == 0 {
		opts.Timeout = DefaultTimeout
	}
	if opts.Transport == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.MaxResponseHeaderBytes = maxAnswer
		opts.Transport = transport
	}
	metrics, err := newClientMetrics(opts.Registerer, opts.Label)
	if err != nil {
		return nil, err
	}
	c := &Client{
		policy: opts.Policy, timeout: opts.Timeout, logger: opts.Logger.With("log", opts.Label), metrics: metrics, now: opts.Now,
		http: &http.Client{Transport: opts.Transport, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}},
	}
	for _, i := range opts.Policy.Quorum() {
		w := opts.Policy.Witnesses[i]
		if w.URL == "" {
			return nil, fmt.Errorf("witness %s: the policy gives no URL to ask it at", w.Name)
		}
		at := slices.IndexFunc(c.endpoints, func(e *endpoint) bool { return e.url == w.URL })
		if at < 0 {
			at = len(c.endpoints)
			c.endpoints = append(c.endpoints, &endpoint{url: w.URL})
		}
		c.endpoints[at].witnesses = append(c.endpoints[at].witnesses, i)
	}
	return c, nil
}

// answer is what an endpoint said.
type answer struct {
	endpoint *endpoint
	lines    map[int]string // cosignature by witness
	err      error          // why one of them or all are missing
}

// Cosign submits a signed checkpoint of the given size to all witnesses at once and returns it, followed by
// their cosignature lines, as soon as the policy's quorum has answered. prove returns the consistency proof (RFC 6962,
// section 2.1.2) from a smaller size, above 0, to this one. Without a quorum the error is
// fault.Unavailable and says what each witness answered.
func (c *Client) Cosign(ctx context.Context, note []byte, size uint64, prove func(ctx context.Context, from uint64) ([][]byte, error)) ([]byte, error) {
	cp, own, err := parseNote(note)
	if err != nil {
		return nil, fmt.Errorf("cosigning: %w", err)
	}
	if cp.size != size {
		return nil, fmt.Errorf("cosigning: the checkpoint's size is %d, not %d", cp.size, size)
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel() // leaves the requests that the quorum did without; their witnesses say next time where they stand
	answers := make(chan answer, len(c.endpoints))
	for _, e := range c.endpoints {
		go func() { // ends with ctx at the latest
			lines, err := c.ask(ctx, e, note, cp, prove)
			answers <- answer{e, lines, err}
		}()
	}
	lines := map[int]string{}
	has := func(witness int) bool { return lines[witness] != "" }
	var errs []error
	for range c.endpoints {
		if c.policy.Satisfied(has) {
			break
		}
		a := <-answers
		for witness, line := range a.lines {
			lines[witness] = line
		}
		if a.err != nil {
			errs = append(errs, a.err)
			c.logger.Warn("a witness did not cosign", "url", a.endpoint.url, "size", size, "err", a.err)
		}
		c.count(a)
	}
	if !c.policy.Satisfied(has) {
		c.metrics.seconds.WithLabelValues("no").Observe(time.Since(start).Seconds())
		return nil, fault.New(fault.Unavailable, "witness_quorum", errors.Join(errs...), "the witnesses have not cosigned the log's tree; try again")
	}
	c.metrics.seconds.WithLabelValues("yes").Observe(time.Since(start).Seconds())
	return c.assemble(note, len(own), lines)
}

// assemble appends the cosignatures in the policy's order, without those that
// the quorum can do without when there are more than a verifier must take.
func (c *Client) assemble(note []byte, own int, lines map[int]string) ([]byte, error) {
	for i := range c.policy.Witnesses {
		if own+len(lines) <= maxLines {
			break
		}
		if c.policy.Satisfied(func(witness int) bool { return lines[witness] != "" && witness != i }) {
			delete(lines, i)
		}
	}
	if own+len(lines) > maxLines {
		return nil, fmt.Errorf("cosigning: the quorum takes %d signature lines, verifiers need not take more than %d", own+len(lines), maxLines)
	}
	out := bytes.Clone(note)
	for i := range c.policy.Witnesses {
		out = append(out, lines[i]...)
	}
	return out, nil
}

func (c *Client) count(a answer) {
	for _, i := range a.endpoint.witnesses {
		said := "cosigned"
		var refused *refusedError
		switch {
		case a.lines[i] != "":
		case errors.As(a.err, &refused):
			said = "refused"
		default:
			said = "failed"
		}
		c.metrics.answers.WithLabelValues(c.policy.Witnesses[i].Name, said).Inc()
	}
}

// refusedError is an answer other than 200.
type refusedError struct {
	status int
	text   string
	held   *uint64 // the size in a 409
}

func (e *refusedError) Error() string { return e.text }

// ask submits to one endpoint, and a second time when it names another size to start from.
func (c *Client) ask(ctx context.Context, e *endpoint, note []byte, cp checkpoint, prove func(context.Context, uint64) ([][]byte, error)) (map[int]string, error) {
	e.mu.Lock()
	old := min(e.size, cp.size)
	e.mu.Unlock()
	lines, err := c.attempt(ctx, e, note, cp, old, prove)
	var refused *refusedError
	if errors.As(err, &refused) && refused.held != nil && *refused.held != old && *refused.held <= cp.size {
		old = *refused.held
		lines, err = c.attempt(ctx, e, note, cp, old, prove)
	}
	if err != nil {
		err = fmt.Errorf("witness at %s: %w", e.url, err)
	}
	if len(lines) > 0 {
		e.mu.Lock()
		e.size = cp.size
		e.mu.Unlock()
	}
	return lines, err
}

func (c *Client) attempt(ctx context.Context, e *endpoint, note []byte, cp checkpoint, old uint64, prove func(context.Context, uint64) ([][]byte, error)) (map[int]string, error) {
	body := fmt.Appendf(nil, "old %d\n", old)
	if 0 < old && old < cp.size {
		hashes, err := prove(ctx, old)
		if err != nil {
			return nil, fmt.Errorf("proving consistency from size %d: %w", old, err)
		}
		if len(hashes) > maxProof {
			return nil, fmt.Errorf("the consistency proof from size %d has %d hashes", old, len(hashes))
		}
		for _, hash := range hashes {
			body = append(base64.StdEncoding.AppendEncode(body, hash), '\n')
		}
	}
	body = append(append(body, '\n'), note...)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url+"/add-checkpoint", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("reading its answer: %w", err)
	}
	if len(text) > maxAnswer {
		return nil, fmt.Errorf("its answer has over %d bytes", maxAnswer)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, refusal(resp, text, old, cp.size)
	}
	return c.cosignatures(e, cp, text)
}

// refusal reads an answer other than 200 (c2sp.org/tlog-witness).
func refusal(resp *http.Response, text []byte, old, size uint64) error {
	e := &refusedError{status: resp.StatusCode}
	said := fmt.Sprintf("answered %d", e.status)
	switch {
	case e.status == http.StatusConflict && resp.Header.Get("Content-Type") == "text/x.tlog.size":
		held, err := parseSize(strings.TrimSuffix(string(text), "\n"))
		switch {
		case err != nil:
			e.text = fmt.Sprintf("%s: %v", said, err)
		case held == old:
			e.text = fmt.Sprintf("%s and named the size %d that was sent", said, held)
		case held > size:
			e.held = &held
			e.text = fmt.Sprintf("%s: it has cosigned size %d, this tree has %d: the log was rolled back, or somebody else signs with its key", said, held, size)
		default:
			e.held = &held
			e.text = fmt.Sprintf("%s: it has cosigned size %d, not %d", said, held, old)
		}
	case e.status == http.StatusConflict:
		e.text = said + ": it has cosigned another root of this size: the log forked"
	case e.status == http.StatusNotFound:
		e.text = said + ": it does not know the log's origin, or there is no witness at this URL"
	case e.status == http.StatusForbidden:
		e.text = said + ": it does not know the log's key"
	case e.status == http.StatusUnprocessableEntity:
		e.text = fmt.Sprintf("%s: the consistency proof from size %d does not verify there", said, old)
	case e.status >= 300 && e.status < 400:
		e.text = fmt.Sprintf("%s, a redirect to %q, which is not followed: put the final URL into the policy", said, resp.Header.Get("Location"))
	default:
		e.text = fmt.Sprintf("%s: %.200q", said, text)
	}
	return e
}

// cosignatures returns the valid lines of the endpoint's witnesses. Lines of other keys are passed over.
// A witness that did not sign is named in the error, though others' lines may be there.
func (c *Client) cosignatures(e *endpoint, cp checkpoint, text []byte) (map[int]string, error) {
	sigs, err := parseSignatures(text)
	if err != nil {
		return nil, fmt.Errorf("its answer: %w", err)
	}
	lines := map[int]string{}
	var errs []error
	for _, i := range e.witnesses {
		w := c.policy.Witnesses[i]
		at := slices.IndexFunc(sigs, func(s signature) bool { return w.Key.signed(cp.text, s) })
		if at < 0 {
			errs = append(errs, fmt.Errorf("its answer has no valid cosignature by %s", w.Key.name))
			continue
		}
		unix, err := cosignedUnix(sigs[at])
		if err == nil && unix > uint64(c.now().Add(maxAhead).Unix()) {
			err = fmt.Errorf("the time of %s's cosignature, %v, lies ahead of this clock", w.Key.name, time.Unix(int64(unix), 0).UTC())
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		lines[i] = sigs[at].line()
	}
	return lines, errors.Join(errs...)
}
