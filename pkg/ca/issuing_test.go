package ca_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ctx509 "github.com/google/certificate-transparency-go/x509"
	"github.com/google/certificate-transparency-go/x509util"
	"google.golang.org/grpc/codes"

	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity"
)

// TestPrecertificateAndCertificateDifferInPoisonAndSCTOnly compares the two for the recorded claims of every kind of identity, parsed by a
// library that is not ours, and has sigstore-go verify the one SCT.
func TestPrecertificateAndCertificateDifferInPoisonAndSCTOnly(t *testing.T) {
	files, err := filepath.Glob("identity/testdata/claims/*.json")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var recorded struct{ Issuer, Claims map[string]any }
			w := newWorld(t, func(w *world, _ *ca.Options, i *identity.Issuer) {
				filled := strings.NewReplacer("${issuer}", i.URL, "${scheme}", "http", "${host}", "127.0.0.1").Replace(string(text))
				if err := json.Unmarshal([]byte(filled), &recorded); err != nil {
					t.Fatal(err)
				}
				recorded.Issuer["issuer-url"], recorded.Issuer["client-id"], recorded.Issuer["jwks"], recorded.Issuer["allow-http"] = i.URL, "sigstore", string(w.idp.JWKS()), true
				config, err := json.Marshal(map[string]any{"oidc-issuers": []any{recorded.Issuer}})
				if err != nil {
					t.Fatal(err)
				}
				parsed, err := identity.Parse(config)
				if err != nil {
					t.Fatal(err)
				}
				*i = parsed.Issuers[0]
			})
			claims := map[string]any{"email": nil, "email_verified": nil} // those of identitytest are of somebody else
			maps.Copy(claims, recorded.Claims)
			claims["iss"] = w.idp.URL
			r := w.post("/api/v2/signingCert", w.idp.Token(w.clock(), claims), map[string]any{"certificateSigningRequest": newClientKey(t, "P-256").csr(t, 0)})
			if r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			certs := embedded(t, r.body)
			checkClient(t, w, certs)
			sameButPoisonAndSCT(t, w.log.chains[0][0], certs[0])
		})
	}
}

// sameButPoisonAndSCT compares the TBSCertificates of a precertificate and a certificate.
func sameButPoisonAndSCT(t *testing.T, precert []byte, leaf *x509.Certificate) {
	t.Helper()
	pre, err := ctx509.ParseCertificate(precert)
	if ctx509.IsFatal(err) {
		t.Fatal(err)
	}
	if !pre.IsPrecertificate() {
		t.Error("what was logged is no precertificate")
	}
	bare, err := ctx509.RemoveCTPoison(pre.RawTBSCertificate)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ctx509.RemoveSCTList(leaf.RawTBSCertificate)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bare, other) {
		t.Errorf("the precertificate's TBS is\n%x\nthe certificate's\n%x", bare, other)
	}
	if scts, err := x509util.ParseSCTsFromCertificate(leaf.Raw); err != nil || len(scts) != 1 {
		t.Errorf("%d SCTs, %v", len(scts), err)
	}
}

func TestSerialNumbersAreRandom(t *testing.T) {
	w := newWorld(t, func(_ *world, o *ca.Options, _ *identity.Issuer) { o.CT, o.CTDisabled, o.Logger = nil, true, nil })
	key := newClientKey(t, "P-256")
	req := ca.Request{Token: w.token(), PublicKey: []byte(key.pem(t)), Proof: key.prove(t, "alice-id")}
	const n = 4000
	seen := map[string]bool{}
	var ones [160]int
	for range n {
		issued, err := w.ca.Issue(context.Background(), req)
		if err != nil {
			t.Fatal(err)
		}
		if len(issued.Serial) != 20 || issued.Serial[0]&0xc0 != 0x40 {
			t.Fatalf("serial number %x", issued.Serial)
		}
		seen[string(issued.Serial)] = true
		for bit := range ones {
			ones[bit] += int(issued.Serial[bit/8] >> (7 - bit%8) & 1)
		}
	}
	if len(seen) != n {
		t.Errorf("%d of %d serial numbers are different", len(seen), n)
	}
	for bit, count := range ones[2:] { // six standard deviations to each side; the first two bits make the length
		if count < n/2-190 || count > n/2+190 {
			t.Errorf("bit %d is set in %d of %d serial numbers", bit+2, count, n)
		}
	}
}

// TestTheClockMayJump has the clock at the chain's ends and back.
func TestTheClockMayJump(t *testing.T) {
	var uri string
	w := newWorld(t, recorded(&uri))
	at := func(when time.Time) reply {
		w.advance(when.Sub(w.clock()))
		return w.post("/api/v2/signingCert", w.token(), v2Body(t, newClientKey(t, "P-256"), "alice-id"))
	}
	chainBegin, chainEnd := w.chain[0].NotBefore, w.chain[0].NotAfter
	now := w.clock()
	for _, tt := range []struct {
		name   string
		when   time.Time
		expiry time.Time // zero where no certificate is issued
		reason string
	}{
		{"before the chain", chainBegin.Add(-time.Second), time.Time{}, "ca_expired"},
		{"the first second of the chain", chainBegin, now.Add(-50 * time.Minute), ""},
		{"now", now, now.Add(10 * time.Minute), ""},
		{"back by an hour", now.Add(-time.Hour), time.Time{}, "clock_untrusted"},
		{"five minutes before its end", chainEnd.Add(-5 * time.Minute), chainEnd, ""},
		{"its last second", chainEnd.Add(-time.Second), chainEnd, ""},
		{"its end", chainEnd, time.Time{}, "ca_expired"},
		{"long after", chainEnd.Add(1000 * time.Hour), time.Time{}, "ca_expired"},
		{"back to now", now, time.Time{}, "clock_untrusted"},
		{"its last second again", chainEnd.Add(-time.Second), chainEnd, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := len(w.log.chains)
			r := at(tt.when)
			if tt.expiry.IsZero() {
				wantRefusal(t, r, 503, codes.Unavailable, backendText, tt.reason)
				if err := w.ca.Ready(t.Context()); err == nil {
					t.Error("ready")
				}
				if len(w.log.chains) != before {
					t.Error("a precertificate was logged")
				}
				return
			}
			if r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			certs := embedded(t, r.body)
			if !certs[0].NotAfter.Equal(tt.expiry) || !certs[0].NotBefore.Equal(tt.when.Truncate(time.Second)) {
				t.Errorf("valid from %s to %s at %s", certs[0].NotBefore, certs[0].NotAfter, tt.when)
			}
			checkClient(t, w, certs)
		})
	}
	rows := issuedRows(t, uri)
	if len(rows) != 5 {
		t.Errorf("%d certificates are recorded, 5 were issued", len(rows))
	}
	// A token from before the clock was set back is of the future.
	token := w.token()
	w.advance(-time.Hour)
	r := w.post("/api/v2/signingCert", token, v2Body(t, newClientKey(t, "P-256"), "alice-id"))
	wantRefusal(t, r, 400, codes.InvalidArgument, tokenText, "not_yet_valid")
	if got := len(issuedRows(t, uri)); got != len(rows) {
		t.Errorf("%d certificates are recorded, want %d", got, len(rows))
	}
	// So is an SCT, where no certificate was issued before: the log's clock is right.
	var other string
	w = newWorld(t, recorded(&other))
	right := w.clock()
	w.log.now = func() time.Time { return right }
	w.advance(-30 * time.Minute)
	r = w.post("/api/v2/signingCert", w.token(), v2Body(t, newClientKey(t, "P-256"), "alice-id"))
	wantRefusal(t, r, 500, codes.Internal, "Error entering certificate in CTL", "sct_invalid")
	if got := len(issuedRows(t, other)); got != 0 {
		t.Errorf("%d certificates are recorded, want none", got)
	}
}
