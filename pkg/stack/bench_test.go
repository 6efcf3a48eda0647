package stack_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/stack"
)

// BenchmarkSigningCert issues certificates with SCTs of the real log, without the network: 32 clients.
func BenchmarkSigningCert(b *testing.B) {
	s, err := stack.Open(b.Context(), stack.Options{
		Dir: filepath.Join(b.TempDir(), "data"), Listen: "127.0.0.1:8420", Issuer: stack.IssuerLoopback, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	token, err := s.Token("bench@example.com")
	if err != nil {
		b.Fatal(err)
	}
	bodies := make([][]byte, 64)
	for i := range bodies {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		pem, err := signer.PublicPEM(key.Public())
		if err != nil {
			b.Fatal(err)
		}
		digest := sha256.Sum256([]byte("bench@example.com"))
		proof, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		if err != nil {
			b.Fatal(err)
		}
		if bodies[i], err = json.Marshal(map[string]any{
			"credentials":      map[string]any{"oidcIdentityToken": token},
			"publicKeyRequest": map[string]any{"publicKey": map[string]any{"content": string(pem)}, "proofOfPossession": proof},
		}); err != nil {
			b.Fatal(err)
		}
	}
	work := make(chan int)
	var wg sync.WaitGroup
	b.ResetTimer()
	for range 32 {
		wg.Go(func() {
			for i := range work {
				r := httptest.NewRequest(http.MethodPost, "/api/v2/signingCert", bytes.NewReader(bodies[i%len(bodies)]))
				r.Header.Set("Content-Type", "application/json")
				w := httptest.NewRecorder()
				s.Handler().ServeHTTP(w, r)
				if w.Code != http.StatusOK {
					b.Errorf("%d: %s", w.Code, w.Body)
				}
			}
		})
	}
	for i := range b.N {
		work <- i
	}
	close(work)
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certs/s")
}

// BenchmarkRekorEntries adds entries without the network: 256 clients.
func BenchmarkRekorEntries(b *testing.B) {
	for _, api := range []struct{ name, path string }{{"v1", "/api/v1/log/entries"}, {"v2", "/api/v2/log/entries"}} {
		b.Run(api.name, func(b *testing.B) {
			s, err := stack.Open(b.Context(), stack.Options{
				Dir: filepath.Join(b.TempDir(), "data"), Listen: "127.0.0.1:8420", Issuer: stack.IssuerLoopback, Logger: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			bodies := make([][]byte, b.N)
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				b.Fatal(err)
			}
			for i := range bodies {
				if bodies[i], err = entryRequest(api.name, key, i); err != nil {
					b.Fatal(err)
				}
			}
			work := make(chan int)
			var wg sync.WaitGroup
			b.ResetTimer()
			for range 256 {
				wg.Go(func() {
					for i := range work {
						r := httptest.NewRequest(http.MethodPost, api.path, bytes.NewReader(bodies[i]))
						r.Header.Set("Content-Type", "application/json")
						w := httptest.NewRecorder()
						s.Handler().ServeHTTP(w, r)
						if w.Code != http.StatusCreated {
							b.Errorf("%d: %s", w.Code, w.Body)
						}
					}
				})
			}
			for i := range b.N {
				work <- i
			}
			close(work)
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

// entryRequest is a hashedrekord of its own for each i.
func entryRequest(api string, key *ecdsa.PrivateKey, i int) ([]byte, error) {
	digest := sha256.Sum256([]byte(strconv.Itoa(i)))
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		return nil, err
	}
	if api == "v2" {
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return nil, err
		}
		return json.Marshal(map[string]any{"hashedRekordRequestV002": map[string]any{"digest": digest[:], "signature": map[string]any{
			"content": sig, "verifier": map[string]any{"keyDetails": "PKIX_ECDSA_P256_SHA_256", "publicKey": map[string]any{"rawBytes": der}}}}})
	}
	pem, err := signer.PublicPEM(key.Public())
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"kind": "hashedrekord", "apiVersion": "0.0.1", "spec": map[string]any{
		"signature": map[string]any{"content": sig, "publicKey": map[string]any{"content": pem}},
		"data":      map[string]any{"hash": map[string]any{"algorithm": "sha256", "value": hex.EncodeToString(digest[:])}}}})
}
