package ct

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/fault"
)

// A submission over HTTP has this long in all: a certificate request waits for it.
const (
	clientDeadline = 5 * time.Second
	attemptTimeout = 3 * time.Second // leaves time for the second attempt
	clientAttempts = 2
	maxAnswer      = 64 << 10 // bytes of an answer
	maxErrorText   = 512      // bytes of a refusal that an error quotes
)

// Client submits precertificates to a CT log over HTTP. It has the same two methods as
// Handler and is safe for concurrent use. It does not verify signatures: the authority does,
// for every kind of submitter, before it embeds the SCT.
type Client struct {
	addPreChain string
	key         crypto.PublicKey
	logID       [32]byte
	http        *http.Client
	pause       func() time.Duration // before the second attempt
}

// NewClient returns a client of the log at baseURL, the submission prefix
// ("https://ct.example.test/ct/2026"), whose pinned key is key, ECDSA P-256. A nil httpClient
// means one of its own. Redirects are not followed: the log is where the configuration says.
func NewClient(baseURL string, key crypto.PublicKey, httpClient *http.Client) (*Client, error) {
	base, err := url.Parse(baseURL)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" || base.RawQuery != "" || base.Fragment != "" {
		return nil, fmt.Errorf("CT log URL %q: want http(s)://host/path", baseURL)
	}
	if ec, ok := key.(*ecdsa.PublicKey); !ok || ec.Curve != elliptic.P256() {
		return nil, errors.New("CT log key: want ECDSA P-256, clients verify no other")
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("CT log key: %w", err)
	}
	if httpClient == nil {
		httpClient = &http.Client{Transport: newTransport()}
	}
	own := *httpClient
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Client{
		addPreChain: strings.TrimRight(baseURL, "/") + "/ct/v1/add-pre-chain",
		key:         key,
		logID:       sha256.Sum256(spki),
		http:        &own,
		pause:       func() time.Duration { return 50*time.Millisecond + rand.N(200*time.Millisecond) },
	}, nil
}

func newTransport() http.RoundTripper {
	transport, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return http.DefaultTransport
	}
	transport = transport.Clone()
	transport.MaxIdleConnsPerHost = 64 // as many as requests are usually in flight
	return transport
}

// LogKey returns the log's pinned key.
func (c *Client) LogKey() crypto.PublicKey { return c.key }

// AddPreChain submits a precertificate as Handler.AddPreChain does and returns the serialized
// SignedCertificateTimestamp. It takes at most 5 s and two attempts. A log that is busy, away
// or slow is fault.Unavailable; one that refuses the chain or answers nonsense is an
// unclassified error, since the authority's configuration is wrong then and not its client.
func (c *Client) AddPreChain(ctx context.Context, chain [][]byte) ([]byte, error) {
	body, err := json.Marshal(addChainRequest{Chain: chain})
	if err != nil {
		return nil, fmt.Errorf("encoding CT submission: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, clientDeadline)
	defer cancel()
	for attempt := 1; ; attempt++ {
		sct, retry, err := c.submit(limited, body)
		if err == nil {
			return sct, nil
		}
		if ctx.Err() != nil { // the caller left, or its own deadline came first
			return nil, fmt.Errorf("submitting to the CT log: %w", ctx.Err())
		}
		if !retry {
			return nil, err
		}
		if attempt == clientAttempts || !sleep(limited, c.pause()) {
			return nil, fault.New(fault.Unavailable, "ct_unavailable", err, "the CT log is not available; try again")
		}
	}
}

// sleep reports whether ctx lived through the pause.
func sleep(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// submit makes one attempt. retry says that another one can succeed: adding the same
// precertificate twice is harmless, the log answers with the same SCT.
func (c *Client) submit(ctx context.Context, body []byte) (sct []byte, retry bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.addPreChain, bytes.NewReader(body))
	if err != nil {
		return nil, false, fmt.Errorf("building CT submission: %w", err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.http.Do(request)
	if err != nil {
		return nil, true, fmt.Errorf("submitting to the CT log: %w", err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err != nil {
		return nil, true, fmt.Errorf("reading the CT log's answer: %w", err)
	}
	switch status := response.StatusCode; {
	case status == http.StatusOK:
	case status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || status >= http.StatusInternalServerError:
		return nil, true, fmt.Errorf("the CT log answered %d: %q", status, excerpt(answer))
	default:
		return nil, false, fmt.Errorf("the CT log answered %d: %q", status, excerpt(answer))
	}
	if len(answer) > maxAnswer {
		return nil, false, fmt.Errorf("the CT log's answer is over %d bytes", maxAnswer)
	}
	sct, err = c.parseAnswer(answer)
	if err != nil {
		return nil, false, fmt.Errorf("the CT log's answer: %w", err)
	}
	return sct, false, nil
}

func excerpt(b []byte) []byte { return b[:min(len(b), maxErrorText)] }

// parseAnswer turns an add-pre-chain answer (RFC 6962, section 4.1) into the TLS encoding.
func (c *Client) parseAnswer(answer []byte) ([]byte, error) {
	var response addChainResponse
	if err := json.Unmarshal(answer, &response); err != nil {
		return nil, fmt.Errorf("not an SCT: %w", err)
	}
	if response.SCTVersion != 0 {
		return nil, fmt.Errorf("SCT version %d, want 0", response.SCTVersion)
	}
	if !bytes.Equal(response.ID, c.logID[:]) {
		return nil, fmt.Errorf("log ID %x is not the pinned key's %x", response.ID, c.logID)
	}
	extensions, err := base64.StdEncoding.DecodeString(response.Extensions)
	if err != nil {
		return nil, fmt.Errorf("SCT extensions: %w", err)
	}
	signature, err := parseDigitallySigned(response.Signature)
	if err != nil {
		return nil, err
	}
	return sct{c.logID, response.Timestamp, extensions, signature}.marshal()
}
