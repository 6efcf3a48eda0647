package attestrytest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/attestry/attestry/pkg/attestrytest"
	"github.com/attestry/attestry/pkg/log/witness"
	"github.com/attestry/attestry/pkg/verify"
)

func TestWrongSCT(t *testing.T) {
	s := attestrytest.Start(t, attestrytest.Options{})
	s.Fail(attestrytest.WrongSCT)
	signed := sign(t, s, s.Token(alice))
	if err := ours(t, s, signed, s.IssuerURL(), alice); verify.ReasonOf(err) != "sct-invalid" {
		t.Errorf("ours: %v", err)
	}
	if err := theirs(t, s, signed, s.IssuerURL(), alice); err == nil || !strings.Contains(strings.ToLower(err.Error()), "signed certificate timestamp") {
		t.Errorf("sigstore-go: %v", err)
	}
	s.Heal(attestrytest.WrongSCT)
	both(t, s, sign(t, s, s.Token(alice)), s.IssuerURL(), alice)
}

func TestExpiredTUF(t *testing.T) {
	s := attestrytest.Start(t, attestrytest.Options{})
	if err := update(t, s); err != nil {
		t.Fatal(err)
	}
	s.Fail(attestrytest.ExpiredTUF)
	if err := update(t, s); err == nil || !strings.Contains(err.Error(), "timestamp.json is expired") {
		t.Errorf("expired: %v", err)
	}
	s.Heal(attestrytest.ExpiredTUF)
	if err := update(t, s); err != nil {
		t.Error(err)
	}
}

// logVerifier verifies what a log with an ECDSA key signs.
type logVerifier struct {
	witness.Key
	public *ecdsa.PublicKey
}

func (v logVerifier) KeyHash() uint32 { return v.Hash() }

func (v logVerifier) Verify(text, sig []byte) bool {
	digest := sha256.Sum256(text)
	return ecdsa.VerifyASN1(v.public, digest[:], sig)
}

// note returns what the Rekor v2 log shows.
func note(t *testing.T, s *attestrytest.Server) []byte {
	t.Helper()
	resp, err := http.Get(s.URL + "/checkpoint")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v: %s", resp.Status, err, raw)
	}
	return raw
}

// checkpoint returns what the Rekor v2 log shows, its signature verified by the key in the trusted root.
func checkpoint(t *testing.T, s *attestrytest.Server) *log.Checkpoint {
	t.Helper()
	raw := note(t, s)
	trusted, err := root.NewTrustedRootFromJSON(s.TrustedRoot())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range trusted.RekorLogs() {
		key, err := witness.LogKey("localhost", l.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		if cp, _, _, err := log.ParseCheckpoint(raw, "localhost", logVerifier{key, l.PublicKey.(*ecdsa.PublicKey)}); err == nil {
			return cp
		}
	}
	t.Fatalf("no log of the trusted root signed %s", raw)
	return nil
}

// included tells whether a bundle's entry is in the tree of cp, whose size is that of the bundle's proof.
func included(t *testing.T, signed []byte, cp *log.Checkpoint) error {
	t.Helper()
	var b bundle.Bundle
	if err := b.UnmarshalJSON(signed); err != nil {
		t.Fatal(err)
	}
	entry := b.GetVerificationMaterial().GetTlogEntries()[0]
	leaf := rfc6962.DefaultHasher.HashLeaf(entry.GetCanonicalizedBody())
	return proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(entry.GetLogIndex()), cp.Size, leaf, entry.GetInclusionProof().GetHashes(), cp.Hash)
}

// await asks until the public checkpoint, which follows entries, has size entries.
func await(t *testing.T, s *attestrytest.Server, size uint64) *log.Checkpoint {
	t.Helper()
	tick, deadline := time.NewTicker(10*time.Millisecond), time.After(30*time.Second)
	defer tick.Stop()
	for {
		if cp := checkpoint(t, s); cp.Size >= size {
			return cp
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the checkpoint does not come")
		}
	}
}

func TestForkedLog(t *testing.T) {
	s := attestrytest.Start(t, attestrytest.Options{})
	signed := sign(t, s, s.Token(alice))
	honest := await(t, s, 1)
	if err := included(t, signed, honest); err != nil {
		t.Fatal(err)
	}
	s.Fail(attestrytest.ForkedLog)
	forked := checkpoint(t, s)
	if forked.Size != honest.Size || bytes.Equal(forked.Hash, honest.Hash) {
		t.Errorf("size %d root %x, honestly size %d root %x", forked.Size, forked.Hash, honest.Size, honest.Hash)
	}
	if err := included(t, signed, forked); err == nil {
		t.Error("the entry is in the other tree, too")
	}
}

// The proofs of a forked log's entries lead to another tree than the one that the log signed.
func TestEntriesOfAForkedLog(t *testing.T) {
	s := attestrytest.Start(t, attestrytest.Options{})
	s.Fail(attestrytest.ForkedLog)
	signed := sign(t, s, s.Token(alice))
	if err := ours(t, s, signed, s.IssuerURL(), alice); verify.ReasonOf(err) != verify.ReasonInclusionInvalid {
		t.Errorf("ours: %v", err)
	}
	if err := theirs(t, s, signed, s.IssuerURL(), alice); err == nil || !strings.Contains(err.Error(), "inclusion") {
		t.Errorf("sigstore-go: %v", err)
	}
	s.Heal(attestrytest.ForkedLog)
	both(t, s, sign(t, s, s.Token(alice)), s.IssuerURL(), alice)
}

// submit offers an honest checkpoint to a new witness, which cosigns it, then another, and returns what it answers to that one.
func submit(t *testing.T, s *attestrytest.Server, honest, then []byte) *httptest.ResponseRecorder {
	t.Helper()
	trusted, err := root.NewTrustedRootFromJSON(s.TrustedRoot())
	if err != nil {
		t.Fatal(err)
	}
	var keys []witness.Key
	for _, l := range trusted.RekorLogs() {
		key, err := witness.LogKey("localhost", l.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	w, err := witness.OpenServer(witness.ServerOptions{
		Name: "witness.example/w", Key: private, Dir: t.TempDir(), Logs: keys, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	add := func(old string, note []byte) *httptest.ResponseRecorder {
		answer := httptest.NewRecorder()
		w.Routes().ServeHTTP(answer, httptest.NewRequest(http.MethodPost, "/add-checkpoint", strings.NewReader("old "+old+"\n\n"+string(note))))
		return answer
	}
	if answer := add("0", honest); answer.Code != http.StatusOK {
		t.Fatalf("the honest checkpoint: %d %s", answer.Code, answer.Body)
	}
	return add(strings.Split(string(then), "\n")[1], then) // a proof from its own size is empty
}

// A witness that cosigned the honest tree cosigns neither another of its size nor a smaller one.
func TestAWitnessRefuses(t *testing.T) {
	for fault, want := range map[attestrytest.Fault]string{
		attestrytest.ForkedLog:  "a checkpoint of size 2 with another root hash was cosigned before\n",
		attestrytest.LaggingLog: "2\n", // the size that it holds (c2sp.org/tlog-witness)
	} {
		t.Run(string(fault), func(t *testing.T) {
			s := attestrytest.Start(t, attestrytest.Options{})
			sign(t, s, s.Token(alice))
			await(t, s, 1)
			if fault == attestrytest.LaggingLog {
				s.Fail(fault)
			}
			honest := checkpointOf(t, sign(t, s, s.Token(alice)))
			if fault == attestrytest.ForkedLog {
				await(t, s, 2)
				s.Fail(fault)
			}
			if answer := submit(t, s, honest, note(t, s)); answer.Code != http.StatusConflict || answer.Body.String() != want {
				t.Errorf("the witness answered %d %q, want 409 %q", answer.Code, answer.Body, want)
			}
			s.Heal(fault)
			await(t, s, 2)
			if answer := submit(t, s, honest, note(t, s)); answer.Code != http.StatusOK {
				t.Errorf("healed: the witness answered %d %s", answer.Code, answer.Body)
			}
		})
	}
}

// checkpointOf returns the signed note in a bundle's inclusion proof.
func checkpointOf(t *testing.T, signed []byte) []byte {
	t.Helper()
	var b bundle.Bundle
	if err := b.UnmarshalJSON(signed); err != nil {
		t.Fatal(err)
	}
	return []byte(b.GetVerificationMaterial().GetTlogEntries()[0].GetInclusionProof().GetCheckpoint().GetEnvelope())
}

func TestLaggingLog(t *testing.T) {
	s := attestrytest.Start(t, attestrytest.Options{})
	sign(t, s, s.Token(alice))
	await(t, s, 1)
	s.Fail(attestrytest.LaggingLog)
	both(t, s, sign(t, s, s.Token(alice)), s.IssuerURL(), alice)
	if cp := checkpoint(t, s); cp.Size != 1 {
		t.Errorf("the log that lags shows %d entries", cp.Size)
	}
	s.Heal(attestrytest.LaggingLog)
	await(t, s, 2)
}

func TestUnavailable(t *testing.T) {
	s := attestrytest.Start(t, attestrytest.Options{})
	s.Fail(attestrytest.Unavailable)
	resp, err := http.Get(s.URL + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("%s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
}
