package ct_test

import (
	"context"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ctgo "github.com/google/certificate-transparency-go"
	"github.com/google/certificate-transparency-go/client"
	"github.com/google/certificate-transparency-go/ctutil"
	"github.com/google/certificate-transparency-go/scanner"
	cttls "github.com/google/certificate-transparency-go/tls"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	"github.com/google/certificate-transparency-go/x509util"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/ct"
)

func referenceCerts(t *testing.T, chain [][]byte) (certs []*ctx509.Certificate) {
	t.Helper()
	for _, der := range chain {
		cert, err := ctx509.ParseCertificate(der)
		if ctx509.IsFatal(err) {
			t.Fatal(err)
		}
		certs = append(certs, cert)
	}
	return certs
}

// TestReferenceFindsEmbeddedSCTsInTheLog is what sctcheck does with a certificate in the wild: take
// the SCT out, rebuild the leaf, verify the signature, ask the log for a proof.
func TestReferenceFindsEmbeddedSCTsInTheLog(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) { findEmbeddedSCTs(t, kind) })
	}
}

func findEmbeddedSCTs(t *testing.T, kind log.Kind) {
	ca := newAuthority(t, "a")
	s := newSiteOf(t, kind, ct.Options{}, ca.root)
	verifier, err := ctgo.NewSignatureVerifier(s.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	info := &ctutil.LogInfo{Client: s.reference(), Verifier: verifier}
	for i := range 5 {
		template := ca.leafTemplate()
		final := *template
		template.ExtraExtensions = append(template.ExtraExtensions, poison)
		precert := [][]byte{ca.sign(template, ca.issuer, ca.leafKey.Public(), ca.issuerKey).Raw, ca.issuer.Raw}
		raw, err := s.handler.AddPreChain(t.Context(), precert)
		if err != nil {
			t.Fatal(err)
		}
		var sct ctgo.SignedCertificateTimestamp
		if _, err := cttls.Unmarshal(raw, &sct); err != nil {
			t.Fatal(err)
		}
		if err := ctutil.VerifySCT(s.key.Public(), referenceCerts(t, precert), &sct, false); err != nil {
			t.Errorf("SCT of precertificate %d: %v", i, err)
		}

		list, err := x509util.MarshalSCTsIntoSCTList([]*ctgo.SignedCertificateTimestamp{&sct})
		if err != nil {
			t.Fatal(err)
		}
		encoded, err := cttls.Marshal(*list)
		if err != nil {
			t.Fatal(err)
		}
		value, err := asn1.Marshal(encoded)
		if err != nil {
			t.Fatal(err)
		}
		final.ExtraExtensions = append(final.ExtraExtensions[:len(final.ExtraExtensions):len(final.ExtraExtensions)],
			pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, Value: value})
		certificate := [][]byte{ca.sign(&final, ca.issuer, ca.leafKey.Public(), ca.issuerKey).Raw, ca.issuer.Raw}
		chain := referenceCerts(t, certificate)
		found, err := x509util.ParseSCTsFromCertificate(certificate[0])
		if err != nil || len(found) != 1 {
			t.Fatalf("%d SCTs in certificate %d: %v", len(found), i, err)
		}
		if err := ctutil.VerifySCT(s.key.Public(), chain, found[0], true); err != nil {
			t.Errorf("SCT in certificate %d: %v", i, err)
		}
		leaf, err := ctgo.MerkleTreeLeafForEmbeddedSCT(chain, found[0].Timestamp)
		if err != nil {
			t.Fatal(err)
		}
		leaf.TimestampedEntry.Extensions = found[0].Extensions
		if index, err := info.VerifyInclusion(t.Context(), *leaf, found[0].Timestamp); err != nil || index != int64(i) {
			t.Errorf("the leaf of certificate %d is at index %d: %v", i, index, err)
		}
	}
}

// TestReferenceScannerReadsTheWholeLog has a monitor of several fetchers read past the limits of one
// answer, while the log grows.
func TestReferenceScannerReadsTheWholeLog(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) { scanLog(t, kind) })
	}
}

func scanLog(t *testing.T, kind log.Kind) {
	ca := newAuthority(t, "a")
	s := newSiteOf(t, kind, ct.Options{}, ca.root)
	const size = 600 // three bundles
	chains := make(chan [][]byte, size)
	for i := range size {
		chain := ca.precertChain()
		if i%4 == 0 {
			chain[0] = ca.leaf()
		}
		chains <- chain
	}
	close(chains)
	var wait sync.WaitGroup
	for range 16 {
		wait.Go(func() {
			for chain := range chains {
				add, isPrecert := "/ct/v1/add-chain", referenceIsPrecert(chain[0])
				if isPrecert {
					add = "/ct/v1/add-pre-chain"
				}
				if status, body := s.post(add, chainJSON(chain)); status != http.StatusOK {
					t.Errorf("%d %s", status, body)
				}
			}
		})
	}
	wait.Wait()

	for _, batch := range []int{1000, 77} {
		var certs, precerts atomic.Int64
		var seen sync.Map
		count := func(counter *atomic.Int64) func(*ctgo.RawLogEntry) {
			return func(entry *ctgo.RawLogEntry) {
				counter.Add(1)
				seen.Store(entry.Index, true)
				if len(entry.Chain) != 2 {
					t.Errorf("entry %d has a chain of %d", entry.Index, len(entry.Chain))
				}
			}
		}
		opts := scanner.ScannerOptions{
			FetcherOptions: scanner.FetcherOptions{BatchSize: batch, ParallelFetch: 3},
			Matcher:        &scanner.MatchAll{}, NumWorkers: 1, BufferSize: 10,
		}
		ended, err := scanner.NewScanner(s.reference(), opts).ScanLog(t.Context(), count(&certs), count(&precerts))
		if err != nil || ended != size {
			t.Fatalf("the scan ended at %d: %v", ended, err)
		}
		if certs.Load() != size/4 || precerts.Load() != size-size/4 {
			t.Errorf("batch %d: %d certificates and %d precertificates", batch, certs.Load(), precerts.Load())
		}
		for i := range int64(size) {
			if _, ok := seen.Load(i); !ok {
				t.Errorf("batch %d: entry %d was not delivered", batch, i)
			}
		}
	}
	proveEveryStep(t, s, size)
}

func referenceIsPrecert(der []byte) bool {
	cert, err := ctx509.ParseCertificate(der)
	return !ctx509.IsFatal(err) && cert.IsPrecertificate()
}

// proveEveryStep asks for consistency and inclusion across bundle and tile borders.
func proveEveryStep(t *testing.T, s *site, size uint64) {
	t.Helper()
	reference, ctx := s.reference(), t.Context()
	sizes := []uint64{1, 2, 3, 255, 256, 257, 511, 512, 513, size - 1, size}
	for _, second := range sizes {
		root := s.rootAt(second)
		for _, first := range sizes {
			if first > second {
				continue
			}
			path, err := reference.GetSTHConsistency(ctx, first, second)
			if err != nil {
				t.Fatal(err)
			}
			if err := proof.VerifyConsistency(rfc6962.DefaultHasher, first, second, path, s.rootAt(first), root); err != nil {
				t.Errorf("%d to %d: %v", first, second, err)
			}
			both, err := reference.GetEntryAndProof(ctx, first-1, second)
			if err != nil {
				t.Fatal(err)
			}
			hash := rfc6962.DefaultHasher.HashLeaf(both.LeafInput)
			if err := proof.VerifyInclusion(rfc6962.DefaultHasher, first-1, second, hash, both.AuditPath, root); err != nil {
				t.Errorf("leaf %d in %d: %v", first-1, second, err)
			}
			byHash, err := reference.GetProofByHash(ctx, hash, second)
			if err != nil || byHash.LeafIndex != int64(first-1) || fmt.Sprint(byHash.AuditPath) != fmt.Sprint(both.AuditPath) {
				t.Errorf("leaf %d in %d by hash: %+v, %v", first-1, second, byHash, err)
			}
		}
	}
}

// TestReferenceClientReadsOurRefusals: jsonclient must find status and body where it looks for them.
func TestReferenceClientReadsOurRefusals(t *testing.T) {
	ca, other := newAuthority(t, "a"), newAuthority(t, "b")
	for name, kind := range kinds {
		s := newSiteOf(t, kind, ct.Options{}, ca.root)
		reference, ctx := s.reference(), t.Context()
		if _, err := reference.AddPreChain(ctx, asn1Certs(ca.precertChain())); err != nil {
			t.Fatal(err)
		}
		for call, tt := range map[string]struct {
			do     func() error
			status int
		}{
			"add-chain, another root": {func() error {
				_, err := reference.AddChain(ctx, asn1Certs([][]byte{other.leaf(), other.issuer.Raw}))
				return err
			}, 400},
			"add-pre-chain, a certificate": {func() error {
				_, err := reference.AddPreChain(ctx, asn1Certs([][]byte{ca.leaf(), ca.issuer.Raw}))
				return err
			}, 400},
			"add-chain, too large": {func() error {
				_, err := reference.AddChain(ctx, asn1Certs([][]byte{make([]byte, 400<<10)}))
				return err
			}, 413},
			"get-entries past the end":   {func() error { _, err := reference.GetEntries(ctx, 1, 2); return err }, 400},
			"get-proof-by-hash, unknown": {func() error { _, err := reference.GetProofByHash(ctx, make([]byte, 32), 1); return err }, 404},
			"get-proof-by-hash, too new": {func() error { _, err := reference.GetProofByHash(ctx, make([]byte, 32), 9); return err }, 404},
			"get-sth-consistency":        {func() error { _, err := reference.GetSTHConsistency(ctx, 1, 2); return err }, 400},
			"get-entry-and-proof":        {func() error { _, err := reference.GetEntryAndProof(ctx, 1, 2); return err }, 400},
		} {
			var refusal client.RspError
			if err := tt.do(); !errors.As(err, &refusal) || refusal.StatusCode != tt.status || len(refusal.Body) == 0 {
				t.Errorf("%s: %s: %v with status %d and body %q, want %d", name, call, err, refusal.StatusCode, refusal.Body, tt.status)
			}
		}
	}
}

// busyOnce is too busy for the first addition.
type busyOnce struct {
	*memoryLog
	calls atomic.Int64
}

func (l *busyOnce) Add(ctx context.Context, s log.Submission) (log.Receipt, error) {
	if l.calls.Add(1) == 1 {
		return log.Receipt{}, fault.New(fault.Overloaded, "queue_full", nil, "busy")
	}
	return l.memoryLog.Add(ctx, s)
}

func TestReferenceClientComesBackAfterPushBack(t *testing.T) {
	ca := newAuthority(t, "a")
	l := &busyOnce{memoryLog: newMemoryLog(newKey(t))}
	h, err := ct.New(ct.Options{Log: l, Roots: rawCerts(ca.root), IssuerDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	s := &site{t: t, key: l.key, url: server.URL}
	reference := s.reference()
	began := time.Now()
	if _, err := reference.AddPreChain(t.Context(), asn1Certs(ca.precertChain())); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); l.calls.Load() != 2 || took < 900*time.Millisecond {
		t.Errorf("%d calls in %s, want a second one after the second that Retry-After names", l.calls.Load(), took)
	}
}
