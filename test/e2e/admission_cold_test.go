package e2e

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// builtPolicy demands provenance, beside imagePolicies.
const builtPolicy = `
---
apiVersion: policy.sigstore.dev/v1beta1
kind: ClusterImagePolicy
metadata: {name: built}
spec:
  images: [{glob: "**"}]
  authorities:
  - name: alice
    keyless: {identities: [{issuer: %q, subject: alice@example.com}]}
    attestations: [{name: provenance, predicateType: "https://slsa.dev/provenance/v1"}]
`

// TestAdmissionOfWhatNobodyAskedAbout measures reviews of images that were never judged before: each has a keyless signature, provenance and an
// SBOM, all demanded, in a registry on loopback. One after another, then many at once, none of which may time out.
func TestAdmissionOfWhatNobodyAskedAbout(t *testing.T) {
	inTurn, atOnce := 20, 20
	if long() {
		inTurn, atOnce = 200, 200
	}
	s := up(t)
	b := newSandbox(t)
	registry := newRegistry(t, true)
	var images []string
	for range inTurn + atOnce {
		images = append(images, registry.push("team/app"))
	}
	predicate := b.file("predicate.json", `{"buildDefinition":{"buildType":"https://example.com/build"}}`)
	sbom := b.file("sbom.json", `{"bomFormat":"CycloneDX","specVersion":"1.5","components":[]}`)
	for some := range slices.Chunk(images, 50) {
		for _, verb := range [][]string{
			{"sign"}, {"attest", "--type", "https://slsa.dev/provenance/v1", "--predicate", predicate}, {"attest", "--type", "cyclonedx", "--predicate", sbom},
		} {
			b.must(attestry, flags(verb, []string{"--identity-token", s.alice(), "--registry-insecure", registry.host}, s.signing(), some)...)
		}
	}
	dir := t.TempDir()
	cert := webhookCertificate(t, dir)
	write(t, filepath.Join(dir, "policy.yaml"), fmt.Sprintf(imagePolicies, s.issuer())+fmt.Sprintf(builtPolicy, s.issuer()))
	hook := startRole(t, admission, dir, "admission", fmt.Sprintf(
		"cluster: false\ntls-cert-file: %[1]s/cert.pem\ntls-key-file: %[1]s/key.pem\npolicy-files: [%[1]s/policy.yaml]\ntrusted-root-file: %[2]s\ntrust-metadata: %[3]s/tuf\n"+
			"private-networks: [127.0.0.0/8]\nlog-level: error\n", dir, s.client("trusted_root.json"), s.dir))
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}}
	t.Cleanup(client.CloseIdleConnections)
	ask := func(image string) (took time.Duration, refusal string) {
		review := fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"1","kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},"namespace":"team","operation":"CREATE","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"app"},"spec":{"containers":[{"name":"app","image":%q}]}}}}`, image)
		began := time.Now()
		resp, err := client.Post("https://"+hook.listen+"/validate?timeout=10s", "application/json", strings.NewReader(review))
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		took = time.Since(began)
		var answer struct{ Response struct{ Allowed bool } }
		if err != nil || json.Unmarshal(body, &answer) != nil || !answer.Response.Allowed {
			return took, fmt.Sprintf("%d %s %v", resp.StatusCode, body, err)
		}
		return took, ""
	}
	say := func(what string, took []time.Duration) {
		slices.Sort(took)
		measured(t, "%s of %d pods, signature, provenance and SBOM from a registry on loopback: p50 %.1f ms, p99 %.1f ms", what, len(took),
			took[len(took)/2].Seconds()*1e3, took[len(took)*99/100].Seconds()*1e3)
	}
	var cold []time.Duration
	for _, image := range images[:inTurn] {
		took, refusal := ask(image)
		if refusal != "" {
			t.Fatal(refusal)
		}
		cold = append(cold, took)
	}
	say("cold reviews in turn", cold)

	var all sync.WaitGroup
	var mu sync.Mutex // guards burst and refusals
	var burst []time.Duration
	var refusals []string
	for _, image := range images[inTurn:] {
		all.Go(func() {
			took, refusal := ask(image)
			mu.Lock()
			defer mu.Unlock()
			burst = append(burst, took)
			if refusal != "" {
				refusals = append(refusals, refusal)
			}
		})
	}
	all.Wait()
	if len(refusals) > 0 {
		t.Fatalf("%d of %d are refused: %s", len(refusals), atOnce, refusals[0])
	}
	say("cold reviews at once", burst)

	var warm []time.Duration
	for _, image := range images {
		took, refusal := ask(image)
		if refusal != "" {
			t.Fatal(refusal)
		}
		warm = append(warm, took)
	}
	say("reviews from memory", warm)

	unsigned := registry.push("team/app")
	if _, refusal := ask(unsigned); !strings.Contains(refusal, "no-signature") {
		t.Errorf("an unsigned image: %s", refusal)
	}
	metrics := get(t, "http://"+hook.ops+"/metrics")
	for _, want := range []string{"attestry_trusted_root_age_seconds ", "attestry_trusted_root_expiry_seconds 1."} {
		if !strings.Contains(metrics, "\n"+want) {
			t.Errorf("no metric %s", want)
		}
	}
	// Another trust root counts within seconds, whatever was remembered.
	ours := readFile(t, s.client("trusted_root.json"))
	write(t, s.client("trusted_root.json"), strangerRoot(t))
	eventually(t, "what was remembered counts no more", func() bool {
		_, refusal := ask(images[0])
		return refusal != ""
	})
	write(t, s.client("trusted_root.json"), ours)
	eventually(t, "our own trust counts again", func() bool {
		_, refusal := ask(images[0])
		return refusal == ""
	})
}

// webhookCertificate writes cert.pem and key.pem for 127.0.0.1.
func webhookCertificate(t *testing.T, dir string) *x509.Certificate {
	t.Helper()
	key := p256(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "webhook"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "cert.pem"), certificatePEM(der))
	write(t, filepath.Join(dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
