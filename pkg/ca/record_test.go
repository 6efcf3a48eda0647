package ca_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ct "github.com/google/certificate-transparency-go"
	"google.golang.org/grpc/codes"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/ca/records"
)

const backendText = "error communicating with CA backend"

// recorded keeps the records of a world in a database; "" is a new file.
func recorded(uri *string) change {
	return func(w *world, o *ca.Options, _ *identity.Issuer) {
		if *uri == "" {
			*uri = "sqlite:" + filepath.Join(w.t.TempDir(), "records.db")
		}
		store, err := records.Open(w.t.Context(), records.Options{URI: *uri, Now: w.clock})
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() {
			if err := store.Close(); err != nil {
				w.t.Error(err)
			}
		})
		o.Recorder, w.records = store, store
	}
}

func oneTime(w *world, o *ca.Options, _ *identity.Issuer) { o.OneTimeTokens = true }

func issuedRows(t *testing.T, uri string) []*records.Issued {
	t.Helper()
	r, err := records.OpenReader(t.Context(), uri, "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rows, err := r.Issued(t.Context(), records.Query{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// refusedRows closes the records, so that all are there.
func (w *world) refusedRows(uri string) []*records.Refused {
	w.t.Helper()
	if err := w.records.Close(); err != nil {
		w.t.Fatal(err)
	}
	r, err := records.OpenReader(w.t.Context(), uri, "")
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	rows, err := r.Refused(w.t.Context(), records.Query{Limit: 1000})
	if err != nil {
		w.t.Fatal(err)
	}
	return rows
}

func TestACertificateIsRecordedBeforeItLeaves(t *testing.T) {
	for name, extensions := range map[string]ct.CTExtensions{"a log without extensions": nil, "a log that names the index": {0, 0, 5, 1, 0, 0, 0, 7}} {
		t.Run(name, func(t *testing.T) {
			var uri string
			w := newWorld(t, recorded(&uri), func(_ *world, _ *ca.Options, i *identity.Issuer) {
				i.Rules, i.RulesDefault = []identity.Rule{{Name: "alice-signs", Allow: `claims.sub == "alice-id"`}}, "deny"
			})
			w.log.entry = func(e *ct.LogEntry) { e.Leaf.TimestampedEntry.Extensions = extensions }
			key := newClientKey(t, "P-256")
			r := w.post("/api/v2/signingCert", w.token(), v2Body(t, key, "alice-id"), "X-Request-Id", "req-42")
			if r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			leaf := embedded(t, r.body)[0]
			if rows := issuedRows(t, uri); len(rows) != 1 {
				t.Fatalf("%d rows", len(rows))
			}
			if err := w.records.Close(); err != nil { // its row has a number then
				t.Fatal(err)
			}
			rows := issuedRows(t, uri)
			if len(rows) != 1 {
				t.Fatalf("%d rows", len(rows))
			}
			h := func(data []byte) string { sum := sha256.Sum256(data); return hex.EncodeToString(sum[:]) }
			want := records.Issued{
				Seq: 1, Time: w.clock().UTC().Format("2006-01-02T15:04:05.000Z"), Serial: fmt.Sprintf("%x", leaf.SerialNumber),
				NotAfter: leaf.NotAfter.UTC().Format("2006-01-02T15:04:05.000Z"), Identity: "alice@example.com", Issuer: w.idp.URL, Subject: "alice-id",
				Token: rows[0].Token, Rule: "alice-signs", Key: h(key.der(t)), Certificate: h(leaf.Raw), IssuingCert: h(w.chain[0].Raw),
				CTLog: h(clientKey{signer: w.log.key}.der(t)), CTLeaf: hex.EncodeToString(w.log.leaves[0][:]), CTIndex: -1, RequestID: "req-42", Hash: rows[0].Hash,
			}
			if extensions != nil {
				want.CTIndex = 1<<32 + 7
			}
			if *rows[0] != want {
				t.Errorf("got  %+v\nwant %+v", *rows[0], want)
			}
			if !strings.Contains(w.logs.String(), "token="+rows[0].Token) {
				t.Error("the record names the token otherwise than the log line does")
			}
		})
	}
}

func TestNoCertificateLeavesWithoutItsRecord(t *testing.T) {
	t.Run("postgres", func(t *testing.T) { noCertificateWithoutRecord(t, services.Postgres(t)) })
	t.Run("sqlite, another process has the journal", func(t *testing.T) {
		uri := "sqlite:" + filepath.Join(t.TempDir(), "records.db")
		other, err := records.Open(t.Context(), records.Options{URI: uri})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		noCertificateWithoutRecord(t, uri)
	})
}

func noCertificateWithoutRecord(t *testing.T, uri string) {
	w := newWorld(t, recorded(&uri))
	body := v2Body(t, newClientKey(t, "P-256"), "alice-id")
	db, err := database.Open(t.Context(), uri, database.Options{Schema: "ca"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := w.ca.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`ALTER TABLE issued RENAME TO away`); err != nil {
		t.Fatal(err)
	}
	r := w.post("/api/v2/signingCert", w.token(), body)
	wantRefusal(t, r, 503, codes.Unavailable, backendText, "record_unavailable")
	if strings.Contains(r.body, "BEGIN CERTIFICATE") || strings.Contains(r.body, "issued") {
		t.Errorf("answer %s", r.body)
	}
	if r := w.post("/api/v1/signingCert", w.token(), map[string]any{"certificateSigningRequest": newClientKey(t, "P-256").csr(t, 0)}); r.status != 503 {
		t.Errorf("v1: %d %s", r.status, r.body)
	}
	if err := w.ca.Ready(t.Context()); err != nil {
		// A probe writes the head, which is there.
		t.Errorf("not ready though the head can be written: %v", err)
	}
	if _, err := db.Exec(`ALTER TABLE heads RENAME TO heads_away`); err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, w.post("/api/v2/signingCert", w.token(), body), 503, codes.Unavailable, backendText, "record_unavailable")
	if err := w.ca.Ready(t.Context()); err == nil {
		t.Error("ready without records")
	}
	for _, statement := range []string{`ALTER TABLE away RENAME TO issued`, `ALTER TABLE heads_away RENAME TO heads`} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.ca.Ready(t.Context()); err != nil {
		t.Errorf("not ready again: %v", err)
	}
	if r := w.post("/api/v2/signingCert", w.token(), body); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	if rows := issuedRows(t, uri); len(rows) != 1 {
		t.Errorf("%d certificates are recorded, one left", len(rows))
	}
}

func TestWhatTheLogDidNotTakeIsNotRecordedAsIssued(t *testing.T) {
	var uri string
	w := newWorld(t, recorded(&uri))
	body := v2Body(t, newClientKey(t, "P-256"), "alice-id")
	w.log.fail = func(context.Context) error { return errors.New("disk full") }
	wantRefusal(t, w.post("/api/v2/signingCert", w.token(), body), 503, codes.Unavailable, "Error entering certificate in CTL", "ct_unavailable")
	w.log.fail = nil
	w.log.sct = func(s *ct.SignedCertificateTimestamp) { s.Signature.Signature[9] ^= 1 }
	wantRefusal(t, w.post("/api/v2/signingCert", w.token(), body), 500, codes.Internal, "Error entering certificate in CTL", "sct_invalid")
	w.log.sct = nil
	w.log.fail = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() } // as slow as it may be
	wantRefusal(t, w.post("/api/v2/signingCert", w.token(), body), 503, codes.Unavailable, "Error entering certificate in CTL", "ct_unavailable")
	if rows := issuedRows(t, uri); len(rows) != 0 {
		t.Errorf("%d certificates are recorded, none was issued", len(rows))
	}
	var got []string
	for _, row := range w.refusedRows(uri) {
		got = append(got, fmt.Sprint(row.Reason, " ", row.Status, " ", row.Issuer == w.idp.URL, " ", len(row.Token)))
	}
	if want := "ct_unavailable 503 true 64,sct_invalid 500 true 64,ct_unavailable 503 true 64"; strings.Join(got, ",") != want {
		t.Errorf("refusals %v, want %s", got, want)
	}
}

func TestRefusalsAreRecordedWithoutTheToken(t *testing.T) {
	var uri string
	w := newWorld(t, recorded(&uri))
	key := newClientKey(t, "P-256")
	secret := "private-7c1f"
	tokens := []string{
		w.idp.Token(w.clock(), map[string]any{"sub": secret, "iss": "https://" + secret + ".example"}),
		w.idp.Token(w.clock(), map[string]any{"sub": secret, "aud": secret}),
		w.idp.Token(w.clock(), map[string]any{"sub": secret, "email": secret}),
		w.idp.Token(w.clock(), map[string]any{"sub": secret, "email_verified": secret}),
		secret,
	}
	for n, token := range tokens {
		w.post("/api/v2/signingCert", token, v2Body(t, key, "alice-id"), "X-Request-Id", fmt.Sprint("r", n))
	}
	w.post("/api/v2/signingCert", w.idp.Token(w.clock(), map[string]any{"sub": secret}), v2Body(t, key, "bob"), "X-Request-Id", "r5")
	w.post("/api/v2/signingCert", "", `{"credentials":{"oidcIdentityToken":"`+secret, "X-Request-Id", "r6")
	var got []string
	for _, row := range w.refusedRows(uri) {
		got = append([]string{fmt.Sprintf("%s %s %d issuer %v token %v", row.RequestID, row.Reason, row.Status, row.Issuer == w.idp.URL, row.Token != "")}, got...)
	}
	want := []string{
		"r0 unknown_issuer 400 issuer false token true",
		"r1 aud_mismatch 400 issuer true token true",
		"r2 claim_rejected 400 issuer true token true",
		"r3 claim_rejected 400 issuer true token true",
		"r4 malformed_token 400 issuer false token false",
		"r5 pop_mismatch 400 issuer true token true",
		"r6 malformed_request 400 issuer false token false",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	path := strings.TrimPrefix(uri, "sqlite:")
	for _, file := range []string{path, path + "-wal"} {
		raw, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, part := range append(tokens, secret, base64.RawURLEncoding.EncodeToString([]byte(secret))) {
			if bytes.Contains(raw, []byte(part)) {
				t.Errorf("%s has %.20q of a token", filepath.Base(file), part)
			}
		}
	}
}

func TestAOneTimeTokenGivesOneCertificate(t *testing.T) {
	var uri string
	w := newWorld(t, recorded(&uri), oneTime)
	issue := func(token string) reply {
		return w.post("/api/v2/signingCert", token, v2Body(t, newClientKey(t, "P-256"), "alice-id"))
	}
	token := w.token()
	w.log.fail = func(context.Context) error { return errors.New("disk full") }
	wantRefusal(t, issue(token), 503, codes.Unavailable, "Error entering certificate in CTL", "ct_unavailable")
	w.log.fail = nil
	if r := issue(token); r.status != 200 {
		t.Fatalf("after the log failed, with another key: %d %s", r.status, r.body)
	}
	logged := len(w.log.chains)
	wantRefusal(t, issue(token), 400, codes.InvalidArgument, tokenText, "replayed")
	wantRefusal(t, w.post("/api/v1/signingCert", token, map[string]any{"certificateSigningRequest": newClientKey(t, "P-256").csr(t, 0)}), 400, codes.InvalidArgument, tokenText, "replayed")
	if n := len(w.log.chains); n != logged {
		t.Error("a precertificate was logged for a token that was used")
	}
	if r := issue(w.idp.Token(w.clock(), map[string]any{"nonce": "x"})); r.status != 200 {
		t.Errorf("another token: %d %s", r.status, r.body)
	}
	wantRefusal(t, w.post("/api/v2/signingCert", w.idp.Token(w.clock(), map[string]any{"nonce": "y"}), v2Body(t, newClientKey(t, "P-256"), "bob")), 400, codes.InvalidArgument, popText, "pop_mismatch")
	if r := issue(w.idp.Token(w.clock(), map[string]any{"nonce": "y"})); r.status != 200 {
		t.Errorf("a token whose first request had a bad proof: %d %s", r.status, r.body)
	}
	w.advance(30 * time.Second)
	wantRefusal(t, issue(token), 400, codes.InvalidArgument, tokenText, "replayed")
	w.advance(-time.Hour + time.Minute)
	if r := issue(token); r.status == 200 {
		t.Error("a token counts again since the clock was set back")
	}
}

// TestOneTokenAtTwoReplicas has a hundred requests with one token at once, at two CAs with one PostgreSQL database.
func TestOneTokenAtTwoReplicas(t *testing.T) {
	uri := services.Postgres(t)
	first := newWorld(t, recorded(&uri), oneTime)
	second := newWorld(t, recorded(&uri), oneTime, func(w *world, o *ca.Options, i *identity.Issuer) {
		i.URL, o.CT, o.Chain, o.Signer, w.now = first.idp.URL, first.log, first.chain, first.key, first.now
	})
	token := first.token()
	var issued atomic.Int64
	var all sync.WaitGroup
	for n := range 100 {
		key := newClientKey(t, "P-256")
		body := v2Body(t, key, "alice-id")
		w := []*world{first, second}[n%2]
		all.Go(func() {
			switch r := w.post("/api/v2/signingCert", token, body); {
			case r.status == 200:
				issued.Add(1)
			case r.status == 400 && strings.Contains(r.body, "reason=replayed"), r.status == 429 && strings.Contains(r.body, "reason=token_in_use"):
			default:
				t.Errorf("%d %s", r.status, r.body)
			}
		})
	}
	all.Wait()
	if rows := issuedRows(t, uri); issued.Load() != 1 || len(rows) != 1 || len(first.log.chains) != 1 {
		t.Errorf("%d certificates were answered, %d recorded, %d logged; want one", issued.Load(), len(rows), len(first.log.chains))
	}
}

// answerSCT reads what RFC 6962 has a log answer.
func answerSCT(t *testing.T, data []byte) *ct.SignedCertificateTimestamp {
	t.Helper()
	var answer ct.AddChainResponse
	if err := json.Unmarshal(data, &answer); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	sct, err := answer.ToSignedCertificateTimestamp()
	if err != nil {
		t.Fatal(err)
	}
	return sct
}

func detached(_ *world, o *ca.Options, _ *identity.Issuer) { o.CTDetached = true }

func TestDetachedSCTs(t *testing.T) {
	var uri string
	w := newWorld(t, detached, recorded(&uri))
	w.log.entry = func(e *ct.LogEntry) { e.Leaf.TimestampedEntry.Extensions = ct.CTExtensions{0, 0, 5, 0, 0, 0, 0, 9} }
	body := v2Body(t, newClientKey(t, "P-256"), "alice-id")
	check := func(t *testing.T, leaf []byte, answer []byte) {
		t.Helper()
		verifier, err := ct.NewSignatureVerifier(w.log.LogKey())
		if err != nil {
			t.Fatal(err)
		}
		sct := answerSCT(t, answer)
		entry := ct.CreateX509MerkleTreeLeaf(ct.ASN1Cert{Data: leaf}, sct.Timestamp)
		entry.TimestampedEntry.Extensions = sct.Extensions
		if err := verifier.VerifySCTSignature(*sct, ct.LogEntry{Leaf: *entry}); err != nil {
			t.Error(err)
		}
		hash, err := ct.LeafHashForLeaf(entry)
		if err != nil {
			t.Fatal(err)
		}
		if rows := issuedRows(t, uri); rows[0].CTLeaf != hex.EncodeToString(hash[:]) || rows[0].CTIndex != 9 {
			t.Errorf("recorded as leaf %s, index %d", rows[0].CTLeaf, rows[0].CTIndex)
		}
	}
	t.Run("v2 has it beside the chain", func(t *testing.T) {
		r := w.post("/api/v2/signingCert", w.token(), body)
		var answer map[string]struct {
			Chain                      struct{ Certificates []string }
			SignedCertificateTimestamp []byte
		}
		if err := json.Unmarshal([]byte(r.body), &answer); err != nil || r.status != 200 || len(answer) != 1 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		found := answer["signedCertificateDetachedSct"]
		leaf := parsePEMs(t, found.Chain.Certificates)[0]
		check(t, leaf.Raw, found.SignedCertificateTimestamp)
		for _, e := range leaf.Extensions {
			if strings.HasPrefix(e.Id.String(), "1.3.6.1.4.1.11129.2.4.") {
				t.Errorf("the certificate has the extension %s", e.Id)
			}
		}
	})
	t.Run("v1 has it in a header", func(t *testing.T) {
		r := w.post("/api/v1/signingCert", w.token(), map[string]any{"certificateSigningRequest": newClientKey(t, "P-256").csr(t, 0)})
		answer, err := base64.StdEncoding.DecodeString(r.header.Get("SCT"))
		if r.status != 201 || err != nil {
			t.Fatalf("%d %v %s", r.status, err, r.body)
		}
		chain, err := ca.ParseChain([]byte(r.body))
		if err != nil {
			t.Fatal(err)
		}
		check(t, chain[0].Raw, answer)
	})
	before := len(issuedRows(t, uri))
	for name, set := range map[string]func(*fakeLog){
		"ct_unavailable": func(l *fakeLog) { l.fail = func(context.Context) error { return errors.New("disk full") } },
		"sct_invalid":    func(l *fakeLog) { l.fail, l.sct = nil, func(s *ct.SignedCertificateTimestamp) { s.Timestamp++ } },
	} {
		t.Run("nothing leaves with "+name, func(t *testing.T) {
			w.log.fail, w.log.sct = nil, nil
			set(w.log)
			if r := w.post("/api/v2/signingCert", w.token(), body); !strings.Contains(r.body, name) || strings.Contains(r.body, "BEGIN CERTIFICATE") {
				t.Errorf("%d %s", r.status, r.body)
			}
		})
	}
	if n := len(issuedRows(t, uri)); n != before {
		t.Errorf("%d certificates more are recorded, none was issued", n-before)
	}
}
