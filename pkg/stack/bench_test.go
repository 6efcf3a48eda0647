package stack_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
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
