package ct_test

import (
	"bytes"
	"context"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	ctgo "github.com/google/certificate-transparency-go"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/ct"
)

func TestPlainLogHasTheRFC6962APIAlone(t *testing.T) {
	ca := newAuthority(t, "a")
	s := newSiteOf(t, log.CTPlain, ct.Options{}, ca.root)
	if _, err := s.handler.AddPreChain(t.Context(), ca.precertChain()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/checkpoint", "/tile/0/000.p/1", "/tile/data/000.p/1", "/tile/", "/issuer/" + strings.Repeat("ab", 32)} {
		status, header, body := s.get(path)
		if status != http.StatusNotFound || !strings.HasPrefix(string(body), "Not Found\n") || !strings.Contains(string(body), "reason=rfc6962_only") || header.Get("Cache-Control") != "no-cache" {
			t.Errorf("%s: %d %q, want 404 with reason rfc6962_only", path, status, body)
		}
	}
	s.mustGet("/ct/v1/get-sth") // where rekor-monitor looks first
}

func TestPlainLogAnswersWithEmptyExtensions(t *testing.T) {
	ca := newAuthority(t, "a")
	s := newSiteOf(t, log.CTPlain, ct.Options{}, ca.root)
	status, body := s.post("/ct/v1/add-pre-chain", chainJSON(ca.precertChain()))
	var answer map[string]any
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusOK {
		t.Fatalf("%d %s: %v", status, body, err)
	}
	if extensions, ok := answer["extensions"]; !ok || extensions != "" {
		t.Errorf("extensions %v in %s, want an empty string", extensions, body)
	}
}

// TestPlainLogHasOneLeafForOneCertificate: a final certificate may be announced by precertificates of
// two signatures, or by one of a pre-issuer. Each gets the SCT of the first.
func TestPlainLogHasOneLeafForOneCertificate(t *testing.T) {
	ca := newAuthority(t, "a")
	s := newSiteOf(t, log.CTPlain, ct.Options{}, ca.root)
	preKey := newKey(t)
	template := caTemplate("a pre-issuer", 3)
	template.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 11129, 2, 4, 4}}
	template.AuthorityKeyId = ca.issuer.AuthorityKeyId
	preIssuer := ca.sign(template, ca.issuer, preKey.Public(), ca.issuerKey)

	leaf := ca.leafTemplate(poison)
	var chains [][][]byte
	for range 2 { // ECDSA signs differently each time
		chains = append(chains, [][]byte{ca.sign(leaf, ca.issuer, ca.leafKey.Public(), ca.issuerKey).Raw, ca.issuer.Raw})
	}
	chains = append(chains, [][]byte{ca.sign(leaf, preIssuer, ca.leafKey.Public(), preKey).Raw, preIssuer.Raw, ca.issuer.Raw, ca.root.Raw})
	if bytes.Equal(chains[0][0], chains[1][0]) {
		t.Fatal("the two precertificates are one")
	}
	var first *ctgo.SignedCertificateTimestamp
	for i, chain := range chains {
		sct, err := s.reference().AddPreChain(t.Context(), asn1Certs(chain))
		if err != nil {
			t.Fatalf("chain %d: %v", i, err)
		}
		if first == nil {
			first = sct
		}
		if sct.Timestamp != first.Timestamp {
			t.Errorf("chain %d has another timestamp", i)
		}
	}
	sth, err := s.reference().GetSTH(t.Context())
	if err != nil || sth.TreeSize != 1 {
		t.Fatalf("tree %+v, want one leaf: %v", sth, err)
	}
	entries, err := s.reference().GetEntries(t.Context(), 0, 0)
	if err != nil || !bytes.Equal(entries[0].Precert.Submitted.Data, chains[0][0]) {
		t.Errorf("the entry does not have the precertificate that came first: %v", err)
	}
	// Another issuer key is another certificate.
	twin := newAuthority(t, "a")
	if err := s.handler.SetRoots(rawCerts(ca.root, twin.root)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.reference().AddPreChain(t.Context(), asn1Certs([][]byte{twin.sign(leaf, twin.issuer, ca.leafKey.Public(), twin.issuerKey).Raw, twin.issuer.Raw})); err != nil {
		t.Fatal(err)
	}
	if size := s.log.Checkpoint().Size; size != 2 {
		t.Errorf("tree size %d, want 2", size)
	}
}

func TestPlainLogTakesCertificatesUpToItsEntryLimit(t *testing.T) {
	ca := newAuthority(t, "a")
	s := newSiteOf(t, log.CTPlain, ct.Options{}, ca.root)
	padded := func(n int) [][]byte {
		return [][]byte{ca.leaf(poison, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: make([]byte, n)}), ca.issuer.Raw}
	}
	low, high := 60<<10, 70<<10
	if _, err := s.reference().AddPreChain(t.Context(), asn1Certs(padded(low))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.handler.AddPreChain(t.Context(), padded(high)); fault.KindOf(err) != fault.TooLarge || fault.ReasonOf(err) != "certificate_too_large" {
		t.Fatalf("error %v, want certificate_too_large", err)
	}
	for high-low > 1 {
		if middle := (low + high) / 2; func() bool { _, err := s.handler.AddPreChain(t.Context(), padded(middle)); return err == nil }() {
			low = middle
		} else {
			high = middle
		}
	}
	leaf, err := s.log.Leaf(t.Context(), s.log.Checkpoint().Size-1)
	if err != nil {
		t.Fatal(err)
	}
	largest := 0
	for i := range s.log.Checkpoint().Size {
		if leaf, err = s.log.Leaf(t.Context(), i); err == nil {
			largest = max(largest, len(leaf.Data))
		}
	}
	if largest < log.MaxEntry-8 || largest > log.MaxEntry { // serial numbers and signatures vary in length
		t.Errorf("the largest leaf taken has %d bytes, want about %d", largest, log.MaxEntry)
	}
	if _, err := s.reference().GetEntries(t.Context(), 0, 100); err != nil {
		t.Error(err)
	}
}

// damagedLog answers with leaves that were changed on disk.
type damagedLog struct {
	*log.Log
	change func(*log.Leaf)
}

func (l damagedLog) Leaves(ctx context.Context, from uint64, max int) ([]log.Leaf, error) {
	leaves, err := l.Log.Leaves(ctx, from, max)
	if err != nil {
		return nil, err
	}
	changed := append([]log.Leaf(nil), leaves...)
	for i := range changed {
		changed[i].Data, changed[i].Extra = bytes.Clone(changed[i].Data), bytes.Clone(changed[i].Extra)
		l.change(&changed[i])
	}
	return changed, nil
}

func TestDamagedPlainLeavesAreOurFault(t *testing.T) {
	ca := newAuthority(t, "a")
	s := newSiteOf(t, log.CTPlain, ct.Options{}, ca.root)
	if _, err := s.handler.AddPreChain(t.Context(), ca.precertChain()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*log.Leaf){
		"no extra":            func(l *log.Leaf) { l.Extra = nil },
		"half of the extra":   func(l *log.Leaf) { l.Extra = l.Extra[:len(l.Extra)/2] },
		"half of the leaf":    func(l *log.Leaf) { l.Data = l.Data[:len(l.Data)/2] },
		"nothing of the leaf": func(l *log.Leaf) { l.Data = nil },
		"another version":     func(l *log.Leaf) { l.Data[0] = 1 },
		"the leaf without end": func(l *log.Leaf) {
			l.Extra, l.Data = append(l.Data[len(l.Data)-2:], l.Extra...), l.Data[:len(l.Data)-2]
		},
		"trailing data":         func(l *log.Leaf) { l.Extra = append(l.Extra, 0) },
		"an issuer that is not": func(l *log.Leaf) { l.Extra[len(l.Extra)-1] ^= 1 },
	} {
		h, err := ct.New(ct.Options{Log: damagedLog{s.log, change}, Roots: rawCerts(ca.root), IssuerDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		recorder := serve(h, http.MethodGet, "/ct/v1/get-entries?start=0&end=0", "")
		if recorder.Code != http.StatusInternalServerError || !strings.Contains(recorder.Body.String(), "reason=damaged_log") {
			t.Errorf("%s: %d %s, want 500 damaged_log", name, recorder.Code, recorder.Body)
		}
	}
}
