package stack_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attestry/attestry/pkg/ca/records"
	"github.com/attestry/attestry/pkg/stack"
)

// certify asks for a certificate with a proof over challenge, and returns the answer's status.
func certify(t *testing.T, s *stack.Stack, email, challenge string) int {
	t.Helper()
	token, err := s.Token(email)
	if err != nil {
		t.Fatal(err)
	}
	status, _, err := signingCert(s, token, challenge)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// signingCert sends one request with a new key, and returns status and body of the answer.
func signingCert(s *stack.Stack, token, challenge string) (int, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return 0, nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return 0, nil, err
	}
	sum := sha256.Sum256([]byte(challenge))
	proof, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		return 0, nil, err
	}
	body, err := json.Marshal(map[string]any{"publicKeyRequest": map[string]any{
		"publicKey": map[string]any{"content": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))}, "proofOfPossession": proof,
	}})
	if err != nil {
		return 0, nil, err
	}
	req, err := http.NewRequest(http.MethodPost, s.URL()+"/api/v2/signingCert", bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

func recordsOf(t *testing.T, dir string) (identities, reasons []string, heads map[string]records.Head) {
	t.Helper()
	r, err := records.OpenReader(t.Context(), stack.RecordsURI(dir), "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	issued, err := r.Issued(t.Context(), records.Query{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range issued {
		identities = append(identities, row.Identity)
	}
	refused, err := r.Refused(t.Context(), records.Query{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range refused {
		reasons = append(reasons, row.Reason)
	}
	if heads, err = r.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	return identities, reasons, heads
}

func TestRecordsAreKeptBackedUpAndGoOn(t *testing.T) {
	work := t.TempDir()
	at := func(name string) string { return filepath.Join(work, name) }
	s, stop := start(t, stack.Options{Dir: at("dir"), FenceDir: at("fence")})
	if status := certify(t, s, "alice@example.com", "alice@example.com"); status != 200 {
		t.Fatal(status)
	}
	if status := certify(t, s, "bob@example.com", "eve@example.com"); status != 400 {
		t.Fatal(status)
	}
	if identities, _, _ := recordsOf(t, at("dir")); strings.Join(identities, " ") != "alice@example.com" { // while it runs
		t.Errorf("issued to %v", identities)
	}
	stop()
	s, stop = start(t, stack.Options{Dir: at("dir"), FenceDir: at("fence")})
	if status := certify(t, s, "carol@example.com", "carol@example.com"); status != 200 {
		t.Fatal(status)
	}
	backup, err := backupOf(t, at("dir"), at("fence"), at("backup"), "")
	if err != nil {
		t.Fatal(err)
	}
	_, _, kept := recordsOf(t, at("dir"))
	stop()
	if _, err := stack.Restore(t.Context(), at("backup"), backup.Verifier, at("restored")); err != nil {
		t.Fatal(err)
	}
	s, stop = start(t, stack.Options{Dir: at("restored"), FenceDir: at("fence")})
	if status := certify(t, s, "dave@example.com", "dave@example.com"); status != 200 {
		t.Fatal(status)
	}
	stop()
	identities, reasons, _ := recordsOf(t, at("restored"))
	if strings.Join(identities, " ") != "dave@example.com carol@example.com alice@example.com" || strings.Join(reasons, " ") != "pop_mismatch" {
		t.Errorf("issued to %v, refused for %v", identities, reasons)
	}
	r, err := records.OpenReader(t.Context(), stack.RecordsURI(at("restored")), "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Verify(t.Context(), map[string][]records.Head{"issued": {kept["issued"]}}); err != nil {
		t.Error(err)
	}
}
