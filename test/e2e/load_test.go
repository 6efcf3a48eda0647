package e2e

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	stdx509 "crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	ct "github.com/google/certificate-transparency-go"
	"github.com/google/certificate-transparency-go/x509"
	"github.com/google/certificate-transparency-go/x509util"
)

// errUnavailable is a 503: nothing was acknowledged, come again.
var errUnavailable = errors.New("503")

// ack is what a log answered for one entry: the promise that is held against it.
type ack struct {
	logID      string // hex
	index      uint64 // in its tree
	virtual    uint64 // Rekor v1: across all shards
	leaf       []byte // leaf bytes; nil for a certificate, which has a leaf hash only
	leafHash   []byte // certificates only
	size       uint64 // of the tree head that came with it; 0 for a certificate
	root       []byte
	integrated int64 // Rekor v1
}

// ledger keeps every promise. It is safe for concurrent use.
type ledger struct {
	key     *ecdsa.PrivateKey
	keyPEM  []byte
	keyDER  []byte
	trusted string // path of the trusted root, where the keys are that verify SETs

	// inspect, if set, looks at every chain of certificates that is issued, PEM with the leaf first. It is called by
	// several goroutines at once.
	inspect func(chain []string) error

	mu       sync.Mutex                  // guards what follows
	keys     map[string]*ecdsa.PublicKey // by log ID, hex
	acks     map[string][]ack
	inFlight map[string]string // v1 bodies whose answer did not arrive, by digest
	refused  map[string]int    // submissions answered with 503
	strange  []error           // answers that are neither a promise nor a refusal
}

const (
	rekor1 = "Rekor v1"
	rekor2 = "Rekor v2"
	ctLog  = "CT"
)

func newLedger(t *testing.T, s *stack) *ledger {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	l := &ledger{key: key, keyPEM: []byte(publicPEM(t, key)), trusted: s.client("trusted_root.json"), keys: map[string]*ecdsa.PublicKey{}, acks: map[string][]ack{}, inFlight: map[string]string{}, refused: map[string]int{}}
	der, _ := pem.Decode(l.keyPEM)
	l.keyDER = der.Bytes
	return l
}

// logKey returns a log's key from the trusted root, which it reads again for a log that it does not know, as
// a client does that updates its trust material.
func (l *ledger) logKey(logID string) (*ecdsa.PublicKey, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if key := l.keys[logID]; key != nil {
		return key, nil
	}
	raw, err := os.ReadFile(l.trusted)
	if err != nil {
		return nil, err
	}
	var root struct {
		Tlogs []struct {
			PublicKey struct{ RawBytes []byte }
			LogID     struct{ KeyID []byte }
		}
	}
	if err := json.Unmarshal(raw, &root); err != nil {
		return nil, err
	}
	for _, log := range root.Tlogs {
		pub, err := stdx509.ParsePKIXPublicKey(log.PublicKey.RawBytes)
		if err != nil {
			return nil, err
		}
		if key, ok := pub.(*ecdsa.PublicKey); ok {
			l.keys[hex.EncodeToString(log.LogID.KeyID)] = key
		}
	}
	if l.keys[logID] == nil {
		return nil, fmt.Errorf("the trusted root has no log %s", logID)
	}
	return l.keys[logID], nil
}

func (l *ledger) promised(log string, a ack) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acks[log] = append(l.acks[log], a)
}

// refusing notes a 503 and returns err.
func (l *ledger) refusing(log string, err error) error {
	if errors.Is(err, errUnavailable) {
		l.mu.Lock()
		l.refused[log]++
		l.mu.Unlock()
	}
	return err
}

// refusals returns how often a log answered with 503.
func (l *ledger) refusals(log string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refused[log]
}

// kept returns what answers were strange, and all promises until now.
func (l *ledger) kept() (strange []error, acks map[string][]ack) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.strange), maps.Clone(l.acks)
}

func (l *ledger) count(log string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acks[log])
}

// load submits to all three logs with several clients each until ctx ends, and returns once the
// last of them has stopped.
func (l *ledger) load(ctx context.Context, s *stack, token string, clients int) {
	l.drive(ctx, clients,
		func(ctx context.Context) error { return l.submit1(ctx, s) },
		func(ctx context.Context) error { return l.submit2(ctx, s) },
		func(ctx context.Context) error { return l.certificate(ctx, s, token) })
}

// drive has several clients call each of the submissions until ctx ends, and returns once the last of them has
// stopped. Answers cut off by the server's death are normal; others are kept in l.strange.
func (l *ledger) drive(ctx context.Context, clients int, submissions ...func(context.Context) error) {
	var all sync.WaitGroup
	for _, submit := range submissions {
		for range clients {
			all.Go(func() {
				for ctx.Err() == nil {
					err := submit(ctx)
					var cut *cutOff
					switch {
					case err == nil:
					case errors.As(err, &cut), errors.Is(err, errUnavailable):
						select { // no busy loop while the server is away
						case <-ctx.Done():
						case <-time.After(5 * time.Millisecond):
						}
					default:
						l.mu.Lock()
						l.strange = append(l.strange, err)
						l.mu.Unlock()
						return
					}
				}
			})
		}
	}
	all.Wait()
}

// cutOff says that there was no answer, so nothing was promised.
type cutOff struct{ err error }

func (c *cutOff) Error() string { return "no answer: " + c.err.Error() }
func (c *cutOff) Unwrap() error { return c.err }

// post sends JSON and decodes the answer into to when the status is want.
func post(ctx context.Context, url string, body any, want int, to any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return &cutOff{err}
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return &cutOff{err}
	}
	switch resp.StatusCode {
	case want:
		if err := json.Unmarshal(answer, to); err != nil {
			return fmt.Errorf("POST %s: %w in %s", url, err, answer)
		}
		return nil
	case http.StatusServiceUnavailable, http.StatusTooManyRequests: // Fulcio's API has 429 where the others have 503
		if resp.Header.Get("Retry-After") == "" {
			return fmt.Errorf("POST %s: %d without Retry-After: %s", url, resp.StatusCode, answer)
		}
		return fmt.Errorf("POST %s: %w: %s", url, errUnavailable, answer)
	default:
		return fmt.Errorf("POST %s: %d, want %d: %s", url, resp.StatusCode, want, answer)
	}
}

// statement signs 32 fresh bytes' digest.
func (l *ledger) statement() (digest, signature []byte, err error) {
	var nonce [32]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, nil, err
	}
	sum := sha256.Sum256(nonce[:])
	signature, err = l.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	return sum[:], signature, err
}

// entry1 is the Rekor v1 OpenAPI LogEntry, without what the tests do not look at.
type entry1 struct {
	Body           []byte `json:"body"`
	IntegratedTime int64  `json:"integratedTime"`
	LogID          string `json:"logID"`
	LogIndex       int64  `json:"logIndex"`
	Verification   struct {
		SignedEntryTimestamp []byte `json:"signedEntryTimestamp"`
		InclusionProof       struct {
			LogIndex uint64 `json:"logIndex"`
			RootHash string `json:"rootHash"`
			TreeSize uint64 `json:"treeSize"`
		} `json:"inclusionProof"`
	} `json:"verification"`
}

// body1 is a hashedrekord of fresh bytes, and their digest.
func (l *ledger) body1() (body, digest string, err error) {
	sum, signature, err := l.statement()
	if err != nil {
		return "", "", err
	}
	text, err := json.Marshal(map[string]any{
		"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": map[string]any{
			"data":      map[string]any{"hash": map[string]string{"algorithm": "sha256", "value": hex.EncodeToString(sum)}},
			"signature": map[string]any{"content": signature, "publicKey": map[string]any{"content": l.keyPEM}},
		},
	})
	return string(text), string(sum), err
}

func (l *ledger) submit1(ctx context.Context, s *stack) error {
	body, digest, err := l.body1()
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.inFlight[digest] = body
	l.mu.Unlock()
	var answer map[string]entry1
	err = post(ctx, s.url+"/api/v1/log/entries", json.RawMessage(body), http.StatusCreated, &answer)
	var cut *cutOff
	if errors.As(err, &cut) && !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	l.mu.Lock()
	delete(l.inFlight, digest)
	l.mu.Unlock()
	if err != nil {
		return l.refusing(rekor1, err)
	}
	for _, e := range answer {
		a, err := l.check1(e)
		if err != nil {
			return err
		}
		l.promised(rekor1, a)
	}
	return nil
}

// check1 verifies the SET of a v1 entry and returns the promise.
func (l *ledger) check1(e entry1) (ack, error) {
	// RFC 8785 form of the SET payload; none of the values needs escaping.
	payload := fmt.Sprintf(`{"body":%q,"integratedTime":%d,"logID":%q,"logIndex":%d}`,
		base64.StdEncoding.EncodeToString(e.Body), e.IntegratedTime, e.LogID, e.LogIndex)
	sum := sha256.Sum256([]byte(payload))
	pub, err := l.logKey(e.LogID)
	if err != nil {
		return ack{}, err
	}
	if !ecdsa.VerifyASN1(pub, sum[:], e.Verification.SignedEntryTimestamp) {
		return ack{}, fmt.Errorf("the SET of entry %d does not verify", e.LogIndex)
	}
	root, err := hex.DecodeString(e.Verification.InclusionProof.RootHash)
	if err != nil {
		return ack{}, fmt.Errorf("root hash of entry %d: %w", e.LogIndex, err)
	}
	p := e.Verification.InclusionProof
	return ack{logID: e.LogID, virtual: uint64(e.LogIndex), index: p.LogIndex, leaf: e.Body, size: p.TreeSize, root: root, integrated: e.IntegratedTime}, nil
}

// request2 is a Rekor v2 CreateEntryRequest of fresh bytes.
func (l *ledger) request2() (any, error) {
	digest, signature, err := l.statement()
	if err != nil {
		return nil, err
	}
	return map[string]any{"hashedRekordRequestV002": map[string]any{
		"digest": digest,
		"signature": map[string]any{"content": signature, "verifier": map[string]any{
			"keyDetails": "PKIX_ECDSA_P256_SHA_256", "publicKey": map[string]any{"rawBytes": l.keyDER},
		}},
	}}, nil
}

func (l *ledger) submit2(ctx context.Context, s *stack) error {
	request, err := l.request2()
	if err != nil {
		return err
	}
	var answer json.RawMessage
	if err := post(ctx, s.url+"/api/v2/log/entries", request, http.StatusCreated, &answer); err != nil {
		return l.refusing(rekor2, err)
	}
	a, err := promise2(answer)
	if err != nil {
		return err
	}
	l.promised(rekor2, a)
	return nil
}

// promise2 reads a TransparencyLogEntry of Rekor v2.
func promise2(raw []byte) (ack, error) {
	var answer struct {
		LogID struct {
			KeyID []byte `json:"keyId"`
		} `json:"logId"`
		LogIndex          string `json:"logIndex"`
		CanonicalizedBody []byte `json:"canonicalizedBody"`
		InclusionProof    struct {
			RootHash []byte `json:"rootHash"`
			TreeSize string `json:"treeSize"`
		} `json:"inclusionProof"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return ack{}, fmt.Errorf("%w in %s", err, raw)
	}
	index, err := strconv.ParseUint(answer.LogIndex, 10, 64)
	if err != nil {
		return ack{}, fmt.Errorf("logIndex: %w", err)
	}
	size, err := strconv.ParseUint(answer.InclusionProof.TreeSize, 10, 64)
	if err != nil {
		return ack{}, fmt.Errorf("treeSize: %w", err)
	}
	return ack{logID: hex.EncodeToString(answer.LogID.KeyID), index: index, leaf: answer.CanonicalizedBody, size: size, root: answer.InclusionProof.RootHash}, nil
}

// certificate asks for one, and keeps the promise of the SCT embedded in it.
func (l *ledger) certificate(ctx context.Context, s *stack, token string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := stdx509.CreateCertificateRequest(rand.Reader, &stdx509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	var answer struct {
		Embedded struct {
			Chain struct {
				Certificates []string `json:"certificates"`
			} `json:"chain"`
		} `json:"signedCertificateEmbeddedSct"`
	}
	err = post(ctx, s.url+"/api/v2/signingCert", map[string]any{
		"credentials":               map[string]string{"oidcIdentityToken": token},
		"certificateSigningRequest": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}),
	}, http.StatusOK, &answer)
	if err != nil {
		return l.refusing(ctLog, err)
	}
	a, err := sctPromise(answer.Embedded.Chain.Certificates)
	if err != nil {
		return err
	}
	if l.inspect != nil {
		if err := l.inspect(answer.Embedded.Chain.Certificates); err != nil {
			return fmt.Errorf("an issued certificate: %w", err)
		}
	}
	l.promised(ctLog, a)
	return nil
}

// sctPromise computes the CT leaf that the SCT in a PEM chain, leaf first, stands for.
func sctPromise(chainPEM []string) (ack, error) {
	chain, err := x509util.CertificatesFromPEM([]byte(strings.Join(chainPEM, "\n")))
	if err != nil {
		return ack{}, fmt.Errorf("certificate chain: %w", err)
	}
	scts, err := x509util.ParseSCTsFromSCTList(&x509.SignedCertificateTimestampList{SCTList: chain[0].SCTList.SCTList})
	if err != nil || len(scts) != 1 {
		return ack{}, fmt.Errorf("%d embedded SCTs: %w", len(scts), err)
	}
	leaf, err := ct.MerkleTreeLeafForEmbeddedSCT(chain, scts[0].Timestamp)
	if err != nil {
		return ack{}, fmt.Errorf("CT leaf: %w", err)
	}
	leaf.TimestampedEntry.Extensions = scts[0].Extensions // static-ct puts the index there
	hash, err := ct.LeafHashForLeaf(leaf)
	if err != nil {
		return ack{}, fmt.Errorf("CT leaf hash: %w", err)
	}
	return ack{logID: hex.EncodeToString(scts[0].LogID.KeyID[:]), leafHash: hash[:]}, nil
}

// shards returns the base URL of the CT log in the trusted root.
func (s *stack) ctBase() string {
	s.t.Helper()
	var root struct {
		Ctlogs []struct {
			BaseURL string `json:"baseUrl"`
		} `json:"ctlogs"`
	}
	data, err := os.ReadFile(s.client("trusted_root.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := json.Unmarshal(data, &root); err != nil || len(root.Ctlogs) == 0 {
		s.t.Fatalf("trusted_root.json: %v, %d CT logs", err, len(root.Ctlogs))
	}
	return strings.TrimSuffix(root.Ctlogs[0].BaseURL, "/")
}
