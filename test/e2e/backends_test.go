package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	stdx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ct "github.com/google/certificate-transparency-go"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	"github.com/google/certificate-transparency-go/x509util"

	"github.com/attestry/attestry/internal/services"
)

// TestUnmodifiedClientsOnEveryBackend has clients sign and verify against tlog on each backend, with two servers behind
// one URL where the backend takes that.
func TestUnmodifiedClientsOnEveryBackend(t *testing.T) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			s, site := newSite(t, b)
			if long() {
				for _, version := range []string{"v3.1.3", "v3.0.6"} {
					t.Run("cosign "+version, func(t *testing.T) { runCosign3(t, s, client(t, "cosign", version)) })
				}
				for _, version := range []string{"v2.6.5", "v2.4.3"} {
					t.Run("cosign "+version, func(t *testing.T) { runCosign2(t, s, client(t, "cosign", version), version == "v2.6.5") })
				}
				t.Run("sigstore-python", func(t *testing.T) { runSigstorePython(t, s) })
				t.Run("@sigstore/cli", func(t *testing.T) { runSigstoreJS(t, s) })
				t.Run("attestry", func(t *testing.T) { runAttestryBesideCosign(t, s) })
			}
			if long() || b.name != onS3.name { // where each of its many entries takes a second
				t.Run("rekor-cli", func(t *testing.T) { runRekorCLI(t, s) })
			}
			t.Run("clients verify what others sign", func(t *testing.T) { signersAndVerifiers(t, s) })
			if b.replicas > 1 {
				t.Run("each server knows what the other took", func(t *testing.T) { eachKnows(t, s, site) })
				if slices.Contains(b.logs, ctLog) {
					t.Run("each server shows the certificates that the other took", func(t *testing.T) { eachShows(t, s, site) })
				}
			}
		})
	}
}

// blobSigner makes a bundle with one client, through the Rekor versions that it speaks.
type blobSigner struct {
	client, version string
	speaks          string // "1", "12"
	// command returns what signs, and sets the environment of b.
	command func(b *sandbox, s *stack, v rekorVersion, blob, bundle string) []string
}

func cosign3Signs(_ *sandbox, s *stack, v rekorVersion, blob, bundle string) []string {
	return []string{"sign-blob", "--yes", "--identity-token", s.alice(), "--signing-config", s.client(v.config),
		"--trusted-root", s.client("trusted_root.json"), "--bundle", bundle, blob}
}

func cosign2Signs(b *sandbox, s *stack, _ rekorVersion, blob, bundle string) []string {
	b.source(s.client("env.cosign2"))
	return []string{"sign-blob", "--yes", "--new-bundle-format", "--identity-token", s.alice(), "--fulcio-url", s.url, "--rekor-url", s.url,
		"--timestamp-server-url", s.url + "/api/v1/timestamp", "--bundle", bundle, blob}
}

// blobSigners are every client that signs; the first is for the ordinary run.
var blobSigners = []blobSigner{
	{"cosign", "v3.1.3", "12", cosign3Signs},
	{"cosign", "v3.0.6", "12", cosign3Signs},
	{"cosign", "v2.6.5", "1", cosign2Signs},
	{"cosign", "v2.4.3", "1", cosign2Signs},
	{"sigstore-python", "", "12", func(_ *sandbox, s *stack, v rekorVersion, blob, bundle string) []string {
		return []string{"--trust-config", s.client("client_trust_config.json"), "sign", "--rekor-version", v.number, "--identity-token", s.alice(),
			"--bundle", bundle, blob}
	}},
	{"sigstore-js", "", "1", func(b *sandbox, s *stack, _ rekorVersion, blob, bundle string) []string {
		b.set("CI", "true")
		b.set("SIGSTORE_ID_TOKEN", s.alice())
		statement := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"blob","digest":{"sha256":"%x"}}],"predicateType":%q,"predicate":{}}`,
			sha256.Sum256([]byte(readFile(b.t, blob))), jsPredicate)
		return []string{"attest", "--fulcio-url", s.url, "--rekor-url", s.url, "--tsa-server-url", s.url, "-o", bundle, b.file("statement.json", statement)}
	}},
}

const jsPredicate = "https://example.com/p"

// signersAndVerifiers signs a blob with each client and has all others verify it.
func signersAndVerifiers(t *testing.T, s *stack) {
	signers := blobSigners
	if !long() {
		signers = signers[:1]
	}
	for _, signer := range signers {
		for _, v := range s.rekors() {
			if !strings.Contains(signer.speaks, v.number) {
				continue
			}
			t.Run(fmt.Sprintf("%s %s through %s", signer.client, signer.version, v.name), func(t *testing.T) {
				b := newSandbox(t)
				exe := client(t, signer.client, signer.version)
				blob, bundle := b.file("blob", "by "+signer.client+signer.version+v.name), b.path("bundle")
				b.must(exe, signer.command(b, s, v, blob, bundle)...)
				verifyWithAll(newSandbox(t), s, v, signer.client == "sigstore-js", blob, bundle)
			})
		}
	}
}

// verifyWithAll verifies a bundle with every client; of an attestation, which @sigstore/cli made, it wants its predicate.
func verifyWithAll(b *sandbox, s *stack, v rekorVersion, attestation bool, blob, bundle string) {
	b.t.Helper()
	trust := []string{"--trusted-root", s.client("trusted_root.json")}
	b.must(attestry, flags([]string{"verify", "--bundle", bundle}, trust, s.aliceAs(), []string{blob})...)
	cosign := []string{"verify-blob", "--bundle", bundle}
	if attestation {
		cosign = []string{"verify-blob-attestation", "--type", jsPredicate, "--bundle", bundle}
	}
	versions := []string{"v3.1.3", "v2.6.5"}
	if long() {
		versions = append(versions, "v3.0.6", "v2.4.3")
	}
	for _, version := range versions {
		if version == "v2.4.3" && v.name == rekor2 {
			continue // it knows no Rekor v2
		}
		extra := []string{}
		if strings.HasPrefix(version, "v2") {
			extra = append(extra, "--new-bundle-format")
		}
		if version == "v2.6.5" && v.name == rekor2 {
			extra = append(extra, "--use-signed-timestamps") // it asks an entry for a time otherwise
		}
		b.must(client(b.t, "cosign", version), flags(cosign, extra, trust, s.aliceAs(), []string{blob})...)
	}
	if !long() {
		return
	}
	js := []string{"verify", "--tuf-mirror-url", s.url + "/tuf", "--tuf-root-path", s.client("root.json"),
		"--certificate-identity-email", "alice@example.com", "--certificate-issuer", s.issuer()}
	if !attestation {
		js = append(js, "--blob-file", blob)
	}
	b.must(client(b.t, "sigstore-js", ""), append(js, bundle)...)
	if attestation {
		return // in an intoto entry, which sigstore-python refuses
	}
	b.must(client(b.t, "sigstore-python", ""), "--trust-config", s.client("client_trust_config.json"), "verify", "identity", "--bundle", bundle,
		"--cert-identity", "alice@example.com", "--cert-oidc-issuer", s.issuer(), blob)
}

// eachKnows sends entries again to the server that did not take them, and finds them there at once.
func eachKnows(t *testing.T, s *stack, site *tlogs) {
	a := newSiteAudit(t, s, site, site.kinds...)
	for i := range 2 * len(site.servers) {
		first, second := site.servers[i%len(site.servers)], site.servers[(i+1)%len(site.servers)]
		body, digest, err := a.l.body1()
		if err != nil {
			t.Fatal(err)
		}
		var taken map[string]entry1
		if err := post(t.Context(), first.url+"/api/v1/log/entries", json.RawMessage(body), http.StatusCreated, &taken); err != nil {
			t.Fatal(err)
		}
		uuid := slices.Collect(maps.Keys(taken))[0]
		search := fmt.Sprintf(`{"hash":"sha256:%x"}`, digest)
		if status, found, err := call(t.Context(), http.MethodPost, second.url+"/api/v1/index/retrieve", "application/json", search); err != nil || status != http.StatusOK || !strings.Contains(found, uuid) {
			t.Errorf("the other server's search: %d %v %s, want %s", status, err, found, uuid)
		}
		get(t, fmt.Sprintf("%s/api/v1/log/entries?logIndex=%d", second.url, taken[uuid].LogIndex))
		get(t, second.url+"/api/v1/log/entries/"+uuid)
		status, answer, err := call(t.Context(), http.MethodPost, second.url+"/api/v1/log/entries", "application/json", body)
		if err != nil || status != http.StatusConflict || !strings.Contains(answer, uuid) {
			t.Errorf("the other server's answer: %d %v %s, want 409 and %s", status, err, answer, uuid)
		}
		promise, err := a.l.check1(taken[uuid])
		if err != nil {
			t.Fatal(err)
		}
		a.l.promised(rekor1, promise)
		if !slices.Contains(site.kinds, rekor2) {
			continue
		}
		request, err := a.l.request2()
		if err != nil {
			t.Fatal(err)
		}
		indexes := map[uint64]bool{}
		for _, server := range []*role{first, second} {
			var answer json.RawMessage
			if err := post(t.Context(), server.url+"/api/v2/log/entries", request, http.StatusCreated, &answer); err != nil {
				t.Fatal(err)
			}
			promise, err := promise2(answer)
			if err != nil {
				t.Fatal(err)
			}
			a.l.promised(rekor2, promise)
			indexes[promise.index] = true
		}
		if len(indexes) != 1 {
			t.Errorf("one Rekor v2 entry has the indexes %v", indexes)
		}
	}
	a.check()
}

// eachShows logs a precertificate at one server and reads it, its issuer and its SCT at the other.
func eachShows(t *testing.T, s *stack, site *tlogs) {
	chain := precertificate(t, s)
	issuer := sha256.Sum256(chain[1])
	var hash []byte
	for i, server := range site.servers {
		other := site.servers[(i+1)%len(site.servers)]
		body, err := json.Marshal(map[string]any{"chain": chain})
		if err != nil {
			t.Fatal(err)
		}
		var sct ct.AddChainResponse
		if err := getJSON(t.Context(), http.MethodPost, server.url+"/ct/main/ct/v1/add-pre-chain", string(body), &sct); err != nil {
			t.Fatal(err)
		}
		promise, err := precertPromise(chain, sct)
		if err != nil {
			t.Fatal(err)
		}
		if hash == nil {
			hash = promise.leafHash
		} else if string(hash) != string(promise.leafHash) {
			t.Errorf("the second server made another leaf of the same precertificate")
		}
		r := newReplica(ctLog, ctSource{other.url + "/ct/main"})
		eventually(t, "the other server shows the entry", func() bool {
			if err := r.follow(t.Context()); err != nil {
				t.Fatal(err)
			}
			return r.holds(promise) == nil
		})
		if got := get(t, fmt.Sprintf("%s/ct/main/issuer/%x", other.url, issuer)); got != string(chain[1]) {
			t.Errorf("the other server has another issuer: %x", got)
		}
	}
}

// precertificate makes a new one below the CA of s: DER, issuing certificate and root behind it.
func precertificate(t *testing.T, s *stack) [][]byte {
	t.Helper()
	var chain [][]byte
	for rest := []byte(readFile(t, filepath.Join(s.dir, "keys", "ca-chain.pem"))); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		chain = append(chain, block.Bytes)
	}
	issuing, err := stdx509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(readFile(t, filepath.Join(s.dir, "keys", "ca.pem"))))
	issuingKey, err := stdx509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := stdx509.CreateCertificate(rand.Reader, &stdx509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: stdx509.KeyUsageDigitalSignature, ExtKeyUsage: []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageCodeSigning}, DNSNames: []string{"precertificate.example"},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 3}, Critical: true, Value: asn1.NullBytes}},
	}, issuing, key.Public(), issuingKey)
	if err != nil {
		t.Fatal(err)
	}
	return append([][]byte{der}, chain...)
}

// precertPromise computes the leaf that an SCT for a precertificate stands for.
func precertPromise(chain [][]byte, sct ct.AddChainResponse) (ack, error) {
	var text strings.Builder
	for _, der := range chain {
		if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return ack{}, err
		}
	}
	certs, err := x509util.CertificatesFromPEM([]byte(text.String()))
	if err != nil {
		return ack{}, err
	}
	leaf, err := ct.MerkleTreeLeafFromChain(certs, ct.PrecertLogEntryType, sct.Timestamp)
	if err != nil {
		return ack{}, err
	}
	signed, err := sct.ToSignedCertificateTimestamp()
	if err != nil {
		return ack{}, err
	}
	leaf.TimestampedEntry.Extensions = signed.Extensions
	hash, err := ct.LeafHashForLeaf(leaf)
	return ack{logID: hex.EncodeToString(sct.ID), leafHash: hash[:]}, err
}

// TestTwoServersOnTrillian kills servers, Trillian's programs and its database under load.
func TestTwoServersOnTrillian(t *testing.T) {
	pg := services.StartPostgres(t)
	var engine *services.TrillianServer
	b := trillianServers
	b.yaml = func(t *testing.T, dir string) string {
		uri := pg.Database(t)
		engine = services.Trillian(t, pg.Database(t))
		return trillianLogs(t, dir, fmt.Sprintf("database: %q\nfence: %[1]q\n", uri), engine)
	}
	site := newTlogs(t, b, "")
	a := newSiteAudit(t, &stack{t: t}, site, b.logs...)
	a.crash(site, siteKills(6), []outage{{"Trillian", engine.Kill, engine.Start}, {"PostgreSQL", pg.Kill, pg.Start}}, b.logs...)
}

// TestSCTsWithoutExtensions has ca submit to a CT log of tlog that is plain RFC 6962.
func TestSCTsWithoutExtensions(t *testing.T) {
	cosign := client(t, "cosign", "v3.1.3")
	s, _ := newSite(t, backend{"plain CT", func(_ *testing.T, dir string) string {
		return fmt.Sprintf("fence: %s/fence\nrekor1: {key: file:%[1]s/rekor1.pem}\nrekor2: {key: file:%[1]s/rekor2.pem}\nct: {key: file:%[1]s/ct.pem, roots-file: %[1]s/roots.pem, extensions: none}\n", dir)
	}, []string{rekor1, rekor2, ctLog}, 1})
	v := s.rekors()[0]
	b := newSandbox(t)
	cosign3Blob(b, s, cosign, v) // sigstore-python 4.5 refuses what cosign writes of the index 0
	blob, bundle := cosign3Blob(newSandbox(t), s, cosign, v)
	verifyWithAll(b, s, v, false, blob, bundle)
	cosign2Blob(newSandbox(t), s, client(t, "cosign", "v2.6.5"))

	var text struct {
		VerificationMaterial struct{ Certificate struct{ RawBytes []byte } }
	}
	if err := json.Unmarshal([]byte(readFile(t, bundle)), &text); err != nil {
		t.Fatal(err)
	}
	cert, err := ctx509.ParseCertificate(text.VerificationMaterial.Certificate.RawBytes)
	if err != nil {
		t.Fatal(err)
	}
	scts, err := x509util.ParseSCTsFromSCTList(&cert.SCTList)
	if err != nil || len(scts) != 1 || len(scts[0].Extensions) != 0 {
		t.Errorf("the certificate has the SCTs %+v (%v), want one without extensions", scts, err)
	}
	a := newAudit(t, s)
	for range 3 {
		if err := a.submitters(s.alice())[ctLog](); err != nil {
			t.Fatal(err)
		}
	}
	a.check()
	if status, body, err := call(t.Context(), http.MethodGet, s.url+"/ct/main/tile/0/000.p/5", "", ""); err != nil || status != http.StatusNotFound {
		t.Errorf("a tile of a log that has none: %d %v %s", status, err, body)
	}
}
