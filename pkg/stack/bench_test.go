package stack_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/stack"
)

// BenchmarkSigningCert issues certificates with SCTs of the real log, without the network: 32 clients. It prints what
// one costs of a processor beside the floor, the signatures alone that it cannot do without.
func BenchmarkSigningCert(b *testing.B) {
	for _, alg := range []signer.Algorithm{signer.P256, signer.P384} {
		b.Run(string(alg), func(b *testing.B) { benchmarkSigningCert(b, alg) })
	}
}

func benchmarkSigningCert(b *testing.B, alg signer.Algorithm) {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // as attestry up has it
	dir := filepath.Join(b.TempDir(), "data")
	if err := os.MkdirAll(filepath.Join(dir, "keys"), 0o700); err != nil {
		b.Fatal(err)
	}
	if _, err := signer.Create(filepath.Join(dir, "keys", "ca.pem"), alg); err != nil {
		b.Fatal(err)
	}
	s, err := stack.Open(b.Context(), stack.Options{
		Dir: dir, Listen: "127.0.0.1:8420", Issuer: stack.IssuerLoopback, Logger: slog.New(slog.DiscardHandler),
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
		if bodies[i], err = certificateRequest(token, "bench@example.com"); err != nil {
			b.Fatal(err)
		}
	}
	work := make(chan int)
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	before := processorTime(b)
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
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certs/s")
	b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(signaturesAlone(b, alg).Microseconds()), "floor-µs/op")
}

// certificateRequest asks for a certificate for a new P-256 key.
func certificateRequest(token, challenge string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	pem, err := signer.PublicPEM(key.Public())
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256([]byte(challenge))
	proof, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{
		"credentials":      map[string]any{"oidcIdentityToken": token},
		"publicKeyRequest": map[string]any{"publicKey": map[string]any{"content": string(pem)}, "proofOfPossession": proof},
	})
}

// signaturesAlone measures the public-key operations of one certificate: the token's RSA signature, the client's
// proof and the SCT verified; precertificate, SCT and certificate signed.
func signaturesAlone(b *testing.B, alg signer.Algorithm) time.Duration {
	b.Helper()
	curve := elliptic.P256()
	if alg == signer.P384 {
		curve = elliptic.P384()
	}
	issuing, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	token, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	sum := sha256.Sum256([]byte("to be signed"))
	rsaSig, err := rsa.SignPKCS1v15(nil, token, crypto.SHA256, sum[:])
	if err != nil {
		b.Fatal(err)
	}
	const rounds = 200
	before := processorTime(b)
	for range rounds {
		for range 2 {
			if _, err := ecdsa.SignASN1(rand.Reader, issuing, sum[:]); err != nil {
				b.Fatal(err)
			}
		}
		sct, err := ecdsa.SignASN1(rand.Reader, p256, sum[:])
		if err != nil {
			b.Fatal(err)
		}
		if rsa.VerifyPKCS1v15(&token.PublicKey, crypto.SHA256, sum[:], rsaSig) != nil ||
			!ecdsa.VerifyASN1(&p256.PublicKey, sum[:], sct) || !ecdsa.VerifyASN1(&p256.PublicKey, sum[:], sct) {
			b.Fatal("a signature does not verify")
		}
	}
	return (processorTime(b) - before) / rounds
}

// processorTime is what this process has had of all processors.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
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
