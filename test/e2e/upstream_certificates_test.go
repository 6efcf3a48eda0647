package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authority "github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"

	"github.com/attestry/attestry/internal/signer"
)

const recordedClaims = repository + "/pkg/ca/identity/testdata/"

// recorded is one file of recordedClaims/claims, see the golden test beside it.
type recorded struct {
	Issuer map[string]any
	Ours   bool // configured by a key that upstream does not have
	Claims map[string]any
}

// TestUpstreamIssuesTheSame gives upstream's Fulcio and the program ca the same issuer file and the same tokens,
// those that each type of issuer and each provider is recorded with. The certificates must agree in every field
// but times, serial and what depends on the CA's key.
func TestUpstreamIssuesTheSame(t *testing.T) {
	exe := client(t, "fulcio", "v1.8.8")
	idp := newIssuers(t)
	b := newSandbox(t)
	config := b.file("config.yaml", idp.config(t))
	upstream := fulcioServer(t, exe, b, config)
	ours := caRole(t, config)
	key := identitytest.NewECKey(t)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})

	for _, name := range slices.Sorted(maps.Keys(idp.cases)) {
		t.Run(name, func(t *testing.T) {
			token := idp.token(name, nil)
			theirs, text := certify(t, upstream, token, csr)
			mine, mineText := certify(t, ours, token, csr)
			if theirs == nil || mine == nil {
				t.Fatalf("upstream: %s\nours: %s", text, mineText)
			}
			for _, d := range differences(t, mine, theirs) {
				t.Error(d)
			}
		})
	}

	// Where we part from upstream, which issues a certificate to each of these.
	for _, tt := range []struct {
		name, of string
		changes  map[string]any
		refused  string // reason, "" when we issue one too
		differs  []int  // extensions below 57264.1 that differ then
		why      string
	}{
		{"a service account without namespace", "kubernetes", map[string]any{"kubernetes.io": nil}, "claim_missing:kubernetes.io.namespace", nil, "its name would be /namespaces//serviceaccounts/"},
		{"a service account that sub does not name", "kubernetes", map[string]any{"sub": "system:serviceaccount:prod:root"}, "claim_rejected", nil, "one token must not speak of two accounts"},
		{"a URI with another port", "uri", map[string]any{"sub": "http://127.0.0.1:81/users/alice"}, "claim_rejected", nil, "another port is another server"},
		{"a URI with a user", "uri", map[string]any{"sub": "http://root@127.0.0.1/users/alice"}, "claim_rejected", nil, "it reads like another host"},
		{"a workflow that is no path", "github-hard-coded", map[string]any{"job_workflow_ref": "octo-org/octo-repo/100%"}, "claim_rejected", nil, "upstream names it https://github.com/"},
		{"a workflow with dots", "github", map[string]any{"job_workflow_ref": "octo-org/octo-repo/../../other/repo/x.yml@refs/heads/main"}, "claim_rejected", nil, "a resolver would make another repository of it"},
		{"a pipeline without account name", "codefresh-hard-coded", map[string]any{"account_name": nil}, "claim_missing:account_name", nil, "a segment of the name would be missing"},
		{"a pipeline definition without project", "circleci", map[string]any{"oidc.circleci.com/project-id": nil}, "claim_missing:oidc.circleci.com/project-id", nil, "its name would be /projects//pipeline-definitions/"},
		{"a slug that is empty", "buildkite", map[string]any{"organization_slug": ""}, "claim_missing:organization_slug", nil, "its name would begin with //"},
		{"a subject with a zero-width space", "username", map[string]any{"sub": "al\u200bice"}, "claim_rejected", nil, "it reads like another name"},
		{"a claim that is null", "github", map[string]any{"environment": json.RawMessage("null")}, "", []int{23}, "upstream writes <nil>"},
		{"a number beyond 2^53", "github", map[string]any{"repository_id": json.RawMessage("12345678901234567")}, "", []int{15}, "upstream rounds it to a float"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			token := idp.token(tt.of, tt.changes)
			theirs, text := certify(t, upstream, token, csr)
			if theirs == nil {
				t.Fatalf("upstream refuses it as well now, which ends this difference (%s): %s", tt.why, text)
			}
			mine, text := certify(t, ours, token, csr)
			if tt.refused != "" {
				if mine != nil || !strings.Contains(text, "[reason="+tt.refused+" ") {
					t.Errorf("answer %s, want %s: %s", text, tt.refused, tt.why)
				}
				return
			}
			if mine == nil {
				t.Fatal(text)
			}
			if a, b := sigstoreExtensions(mine), sigstoreExtensions(theirs); !slices.Equal(differing(a, b), tt.differs) {
				t.Errorf("extensions %v differ, want %v (%s)\nours     %v\nupstream %v", differing(a, b), tt.differs, tt.why, a, b)
			}
		})
	}
}

// issuers is one provider that is an issuer for each recorded file, below a path of that name.
type issuers struct {
	*identitytest.Provider
	cases map[string]recorded
}

func newIssuers(t *testing.T) *issuers {
	t.Helper()
	files, err := filepath.Glob(recordedClaims + "claims/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	p := &issuers{Provider: identitytest.New(t), cases: map[string]recorded{}}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		text := strings.NewReplacer("${issuer}", p.issuer(name), "${scheme}", "http", "${host}", "127.0.0.1").Replace(readFile(t, file))
		var r recorded
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if !r.Ours {
			p.cases[name] = r
		}
	}
	p.SetHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keys" {
			w.Write(p.JWKS())
			return
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		json.NewEncoder(w).Encode(map[string]any{
			"issuer": p.issuer(name), "jwks_uri": p.URL + "/keys", "id_token_signing_alg_values_supported": []string{"ES256"},
		})
	}))
	return p
}

func (p *issuers) issuer(name string) string { return p.URL + "/" + name }

// config is the issuer file: Fulcio's sample with these issuers in place of its own.
func (p *issuers) config(t *testing.T) string {
	t.Helper()
	sample := readFile(t, recordedClaims+"fulcio.yaml")
	define, _, _ := strings.Cut(sample, "oidc-issuers:\n")
	_, metadata, found := strings.Cut(sample, "\nci-issuer-metadata:\n")
	if !found {
		t.Fatal("the sample has no ci-issuer-metadata")
	}
	out := define + "oidc-issuers:\n"
	for _, name := range slices.Sorted(maps.Keys(p.cases)) {
		issuer := maps.Clone(p.cases[name].Issuer)
		issuer["issuer-url"], issuer["client-id"] = p.issuer(name), "sigstore"
		issuer["allow-http"] = true // upstream does not ask, and does not look at keys that it does not know
		text, err := json.Marshal(issuer)
		if err != nil {
			t.Fatal(err)
		}
		out += fmt.Sprintf("  %s: %s\n", p.issuer(name), text)
	}
	return out + "ci-issuer-metadata:\n" + metadata
}

// token is the recorded one with changes; nil takes a claim away.
func (p *issuers) token(name string, changes map[string]any) string {
	claims := maps.Clone(p.cases[name].Claims)
	claims["iss"] = p.issuer(name)
	for _, foreign := range []string{"email", "email_verified"} { // that the provider gives to everybody
		if _, ok := claims[foreign]; !ok {
			claims[foreign] = nil
		}
	}
	maps.Copy(claims, changes)
	return p.Token(time.Now(), claims)
}

// fulcioServer starts upstream with a CA of its own and no CT log, and returns its URL.
func fulcioServer(t *testing.T, exe string, b *sandbox, config string) string {
	t.Helper()
	address := freeAddress(t)
	upstreamServer(t, exe, address, "/api/v2/configuration", "serve", "--ca=ephemeralca", "--ct-log-url=", "--config-path="+config, "--host=127.0.0.1",
		"--port="+portOf(t, address), "--grpc-host=127.0.0.1", "--grpc-port="+portOf(t, freeAddress(t)), "--metrics-port="+portOf(t, freeAddress(t)),
		"--log_type=prod", "--legacy-unix-domain-socket="+b.path("fulcio.sock"))
	return "http://" + address
}

// caRole starts the program ca with keys of its own and no CT log, and returns its URL.
func caRole(t *testing.T, issuerFile string) string {
	t.Helper()
	dir := t.TempDir()
	key, err := signer.Create(filepath.Join(dir, "ca.pem"), signer.P256)
	if err != nil {
		t.Fatal(err)
	}
	root, err := signer.Create(filepath.Join(dir, "root.pem"), signer.P384)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := authority.CreateHierarchy(authority.Hierarchy{RootKey: root, IssuingKey: key, Organization: "Example"})
	if err != nil {
		t.Fatal(err)
	}
	var chain []byte
	for _, cert := range certs {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	write(t, filepath.Join(dir, "chain.pem"), string(chain))
	return startRole(t, ca, dir, "ca", fmt.Sprintf("key: file:%s/ca.pem\nchain-file: %[1]s/chain.pem\nissuer-file: %s\nct-mode: disabled\n", dir, issuerFile)).url
}

// certify returns the certificate for a token, nil when it is refused, and the answer.
func certify(t *testing.T, url, token string, csr []byte) (*x509.Certificate, string) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"credentials": map[string]any{"oidcIdentityToken": token}, "certificateSigningRequest": csr})
	if err != nil {
		t.Fatal(err)
	}
	status, text, err := call(t.Context(), http.MethodPost, url+"/api/v2/signingCert", "application/json", string(body))
	if err != nil {
		t.Fatal(err)
	}
	if status != http.StatusOK {
		return nil, text
	}
	var answer map[string]struct {
		Chain struct{ Certificates []string }
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil || len(answer) != 1 {
		t.Fatalf("%v: %s", err, text)
	}
	for _, found := range answer {
		block, _ := pem.Decode([]byte(found.Chain.Certificates[0]))
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return cert, text
	}
	return nil, text
}

var authorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}

// differences compares all that both CAs decide.
func differences(t *testing.T, mine, theirs *x509.Certificate) []string {
	t.Helper()
	var out []string
	differ := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if mine.Version != theirs.Version || mine.SignatureAlgorithm != theirs.SignatureAlgorithm {
		differ("version %d, %s; upstream %d, %s", mine.Version, mine.SignatureAlgorithm, theirs.Version, theirs.SignatureAlgorithm)
	}
	if !bytes.Equal(mine.RawSubject, theirs.RawSubject) || !bytes.Equal(mine.RawSubjectPublicKeyInfo, theirs.RawSubjectPublicKeyInfo) {
		differ("subject %x, key %x; upstream %x, %x", mine.RawSubject, mine.RawSubjectPublicKeyInfo, theirs.RawSubject, theirs.RawSubjectPublicKeyInfo)
	}
	if a, b := mine.NotAfter.Sub(mine.NotBefore), theirs.NotAfter.Sub(theirs.NotBefore); a != b {
		differ("lifetime %v, upstream %v", a, b)
	}
	for k := range max(len(mine.Extensions), len(theirs.Extensions)) {
		if k >= len(mine.Extensions) || k >= len(theirs.Extensions) {
			differ("%d extensions, upstream %d", len(mine.Extensions), len(theirs.Extensions))
			break
		}
		a, b := mine.Extensions[k], theirs.Extensions[k]
		same := bytes.Equal(a.Value, b.Value)
		if a.Id.Equal(authorityKeyID) { // a key identifier and nothing else
			prefix := []byte{0x30, 0x16, 0x80, 0x14}
			same = len(a.Value) == len(b.Value) && bytes.HasPrefix(a.Value, prefix) && bytes.HasPrefix(b.Value, prefix)
		}
		if !a.Id.Equal(b.Id) || a.Critical != b.Critical || !same {
			differ("extension %d is %v critical %t %q, upstream %v critical %t %q", k, a.Id, a.Critical, a.Value, b.Id, b.Critical, b.Value)
		}
	}
	return out
}

// sigstoreExtensions returns the values below 1.3.6.1.4.1.57264.1 by their last arc.
func sigstoreExtensions(cert *x509.Certificate) map[int]string {
	out := map[int]string{}
	for _, e := range cert.Extensions {
		if arcs := len(e.Id); arcs == 9 && e.Id[6] == 57264 && e.Id[7] == 1 {
			out[e.Id[8]] = string(e.Value)
		}
	}
	return out
}

// differing lists the arcs whose values differ, ascending.
func differing(a, b map[int]string) []int {
	var out []int
	for arc := range 100 {
		if a[arc] != b[arc] {
			out = append(out, arc)
		}
	}
	return out
}
