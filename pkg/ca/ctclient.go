package ca

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

const (
	ctAttempts       = 2
	ctAttemptTimeout = 3 * time.Second
	ctMaxAnswer      = 64 << 10
	ctBreakAfter     = 5               // failures in a row
	ctBreakFor       = 2 * time.Second // then nothing is sent for this long
)

// CTClient submits to a CT log over HTTP (RFC 6962, section 4.2). Unlike
// certificate-transparency-go's client, whose backoff all requests of a process share, it tries
// twice within seconds, and after several failures in a row it fails at once for a while.
type CTClient struct {
	base   string // without a closing slash
	key    crypto.PublicKey
	client *http.Client
	now    func() time.Time

	mu        sync.Mutex // guards the fields below
	failures  int
	openUntil time.Time
}

// NewCTClient returns a client for the log below base (…/ct/v1/add-pre-chain, …/ct/v1/add-chain) that signs with key.
func NewCTClient(base string, key crypto.PublicKey) (*CTClient, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("CT log URL %q is not an http(s) URL", base)
	}
	if _, err := newCTLog(key); err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		MaxIdleConnsPerHost: defaultInFlight,
		IdleConnTimeout:     90 * time.Second,
		ForceAttemptHTTP2:   true,
	}
	return &CTClient{
		base: strings.TrimSuffix(base, "/"),
		key:  key,
		client: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}},
		now: time.Now,
	}, nil
}

// URL is the base that the client was made with, without a closing slash.
func (c *CTClient) URL() string { return c.base }

// LogKey implements CTSubmitter.
func (c *CTClient) LogKey() crypto.PublicKey { return c.key }

var errCTBreaker = errors.New("the CT log failed several times in a row and is left alone for a moment")

// Ready returns an error while the log is left alone, or does not answer for its tree head.
func (c *CTClient) Ready(ctx context.Context) error {
	if err := c.closed(); err != nil {
		return fmt.Errorf("CT log %s: %w", c.base, err)
	}
	ctx, cancel := context.WithTimeout(ctx, ctAttemptTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/ct/v1/get-sth", nil)
	if err != nil {
		return err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return fmt.Errorf("CT log: %w", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, ctMaxAnswer)); err != nil {
		return fmt.Errorf("CT log %s: %w", c.base, err)
	}
	if resp.StatusCode >= http.StatusInternalServerError { // 4xx: a front end may serve submissions alone
		return fmt.Errorf("CT log %s answers %s", c.base, resp.Status)
	}
	return nil
}

// closed returns an error while the log is left alone.
func (c *CTClient) closed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now().Before(c.openUntil) {
		return errCTBreaker
	}
	return nil
}

// AddPreChain implements CTSubmitter.
func (c *CTClient) AddPreChain(ctx context.Context, chain [][]byte) ([]byte, error) {
	return c.add(ctx, "/ct/v1/add-pre-chain", chain)
}

// AddChain implements CTChainSubmitter.
func (c *CTClient) AddChain(ctx context.Context, chain [][]byte) ([]byte, error) {
	return c.add(ctx, "/ct/v1/add-chain", chain)
}

func (c *CTClient) add(ctx context.Context, path string, chain [][]byte) ([]byte, error) {
	if err := c.closed(); err != nil {
		return nil, err
	}
	body, err := json.Marshal(struct {
		Chain [][]byte `json:"chain"`
	}{chain})
	if err != nil {
		return nil, err
	}
	var sct []byte
	for n := range ctAttempts {
		var again bool
		if sct, again, err = c.attempt(ctx, c.base+path, body); err == nil || !again || n == ctAttempts-1 {
			break
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50*time.Millisecond + rand.N(100*time.Millisecond)):
		}
	}
	c.count(err)
	return sct, err
}

func (c *CTClient) count(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.failures = 0
		return
	}
	if c.failures++; c.failures >= ctBreakAfter {
		c.openUntil = c.now().Add(ctBreakFor)
	}
}

func (c *CTClient) attempt(ctx context.Context, url string, body []byte) (sct []byte, again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, ctAttemptTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, false, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, true, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, ctMaxAnswer))
	if err != nil {
		return nil, true, fmt.Errorf("%s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		again := resp.StatusCode == http.StatusRequestTimeout || resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500
		return nil, again, fmt.Errorf("%s answered %s: %.200q", url, resp.Status, answer)
	}
	sct, err = parseAddChainResponse(answer)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", url, err)
	}
	return sct, false, nil
}

// parseAddChainResponse turns the JSON of RFC 6962, section 4.1, into a serialized SCT.
func parseAddChainResponse(data []byte) ([]byte, error) {
	var r struct {
		Version    uint8  `json:"sct_version"`
		ID         []byte `json:"id"`
		Timestamp  uint64 `json:"timestamp"`
		Extensions []byte `json:"extensions"`
		Signature  []byte `json:"signature"`
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("add-chain response: %w", err)
	}
	if len(r.ID) != 32 || len(r.Extensions) > 0xffff || len(r.Signature) > maxSCT {
		return nil, errors.New("add-chain response: a field has the wrong size")
	}
	b := cryptobyte.NewBuilder(nil)
	b.AddUint8(r.Version)
	b.AddBytes(r.ID)
	b.AddUint64(r.Timestamp)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(r.Extensions) })
	b.AddBytes(r.Signature)
	return b.Bytes()
}
