package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// signed is an artifact, its detached DER signature and the key's PEM, in files.
type signed struct {
	artifact, signature, key string
	digest                   string // hex SHA-256
}

// sign makes a new P-256 key and signs content with it.
func (s *sandbox) sign(name, content string) signed {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	digest := sha256.Sum256([]byte(content))
	signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		s.t.Fatal(err)
	}
	return signed{
		artifact:  s.file(name, content),
		signature: s.file(name+".sig", string(signature)),
		key:       s.file(name+".pub", publicPEM(s.t, key)),
		digest:    fmt.Sprintf("%x", digest),
	}
}

func publicPEM(t *testing.T, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// envelope makes a DSSE envelope about an artifact of the given digest, signed with a new key.
func (s *sandbox) envelope(name, digest string) signed {
	s.t.Helper()
	const payloadType = "application/vnd.in-toto+json"
	payload := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"blob","digest":{"sha256":%q}}],"predicateType":"https://example.com/p","predicate":{}}`, digest)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	pae := sha256.Sum256(fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload))
	signature, err := key.Sign(rand.Reader, pae[:], crypto.SHA256)
	if err != nil {
		s.t.Fatal(err)
	}
	text, err := json.Marshal(map[string]any{
		"payloadType": payloadType,
		"payload":     base64.StdEncoding.EncodeToString([]byte(payload)),
		"signatures":  []map[string]string{{"sig": base64.StdEncoding.EncodeToString(signature)}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return signed{artifact: s.file(name, string(text)), key: s.file(name+".pub", publicPEM(s.t, key)), digest: digest}
}

var (
	createdEntry = regexp.MustCompile(`Created entry at index (\d+), available at: \S+/([0-9a-f]{64,80})`)
	treeSize     = regexp.MustCompile(`Tree Size:\s+(\d+)`)
)

func TestRekorCLI(t *testing.T) {
	runRekorCLI(t, up(t))
}

// runRekorCLI drives rekor-cli against s.
func runRekorCLI(t *testing.T, s *stack) {
	exe := client(t, "rekor-cli", "v1.5.4")
	b := newSandbox(t)
	rekor := func(args ...string) string {
		t.Helper()
		return b.must(exe, flags([]string{"--rekor_server", s.url}, args)...)
	}
	upload := func(args ...string) (index, uuid string) {
		t.Helper()
		out := rekor(flags([]string{"upload"}, args)...)
		m := createdEntry.FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("upload printed no entry:\n%s", out)
		}
		return m[1], m[2]
	}
	rekor("loginfo") // of an empty log, unless others were here before

	one := b.sign("one", "the first artifact")
	index, uuid := upload("--artifact", one.artifact, "--signature", one.signature, "--public-key", one.key)

	t.Run("get by UUID and by index", func(t *testing.T) {
		for _, args := range [][]string{{"--uuid", uuid}, {"--log-index", index}, {"--uuid", uuid[len(uuid)-64:]}} {
			out := rekor(flags([]string{"get"}, args)...)
			if !strings.Contains(out, one.digest) {
				t.Errorf("get %v does not show %s:\n%s", args, one.digest, out)
			}
		}
		b.refused(`404|not found|NotFound`, exe, "--rekor_server", s.url, "get", "--uuid", strings.Repeat("0", 64))
		b.refused(`404|not found|NotFound`, exe, "--rekor_server", s.url, "get", "--log-index", "999999")
	})
	t.Run("search by digest, artifact, key and email", func(t *testing.T) {
		for _, args := range [][]string{
			{"--sha", one.digest}, {"--artifact", one.artifact}, {"--public-key", one.key, "--pki-format", "x509"},
		} {
			if out := rekor(flags([]string{"search"}, args)...); !strings.Contains(out, uuid) {
				t.Errorf("search %v does not find %s:\n%s", args, uuid, out)
			}
		}
		cosign := client(t, "cosign", "v2.6.5")
		c := newSandbox(t)
		c.source(s.client("env.cosign2"))
		c.must(cosign, "sign-blob", "--yes", "--identity-token", s.token("--email", "carol@example.com"), "--fulcio-url", s.url, "--rekor-url", s.url,
			"--bundle", c.path("bundle"), c.file("blob", "by carol"))
		found := rekor("search", "--email", "carol@example.com")
		carols := regexp.MustCompile(`[0-9a-f]{64,80}`).FindAllString(found, -1)
		if len(carols) != 1 || carols[0] == uuid {
			t.Errorf("search by email finds %v", carols)
		}
		if out := b.run(exe, "--rekor_server", s.url, "search", "--email", "nobody@example.com"); strings.Contains(out.stdout, uuid) {
			t.Errorf("search for nobody finds:\n%s", out)
		}
	})
	t.Run("verify by artifact, UUID and index", func(t *testing.T) {
		for _, args := range [][]string{
			{"--artifact", one.artifact, "--signature", one.signature, "--public-key", one.key}, {"--uuid", uuid}, {"--log-index", index},
		} {
			if out := rekor(flags([]string{"verify"}, args)...); !strings.Contains(out, "Inclusion Proof") {
				t.Errorf("verify %v:\n%s", args, out)
			}
		}
	})
	t.Run("the same entry again is the one there was", func(t *testing.T) {
		out := rekor("upload", "--artifact", one.artifact, "--signature", one.signature, "--public-key", one.key)
		if !strings.Contains(out, "already exists") || !strings.Contains(out, uuid) {
			t.Errorf("second upload:\n%s", out)
		}
	})
	t.Run("a signature over something else is refused", func(t *testing.T) {
		two := b.sign("two", "another artifact")
		b := b.in(t)
		b.refused(`invalid signature`, exe, "--rekor_server", s.url, "upload", // by rekor-cli itself
			"--artifact", one.artifact, "--signature", two.signature, "--public-key", two.key)
		entry := fmt.Sprintf(`{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"data":{"hash":{"algorithm":"sha256","value":%q}},"signature":{"content":%q,"publicKey":{"content":%q}}}}`,
			one.digest, base64.StdEncoding.EncodeToString([]byte(readFile(t, two.signature))), base64.StdEncoding.EncodeToString([]byte(readFile(t, two.key))))
		status, answer, err := call(t.Context(), http.MethodPost, s.url+"/api/v1/log/entries", "application/json", entry)
		if err != nil || status != http.StatusBadRequest || !strings.Contains(answer, "signature") {
			t.Errorf("the server's answer: %d %v %s", status, err, answer)
		}
	})
	t.Run("dsse and intoto entries", func(t *testing.T) {
		for _, kind := range []string{"dsse:0.0.1", "intoto:0.0.2"} {
			e := b.envelope(strings.ReplaceAll(kind, ":", "-"), one.digest)
			_, uuid := upload("--type", kind, "--artifact", e.artifact, "--public-key", e.key)
			if out := rekor("get", "--uuid", uuid); !strings.Contains(out, "payloadHash") {
				t.Errorf("get of a %s entry:\n%s", kind, out)
			}
			rekor("verify", "--uuid", uuid)
			if out := rekor("search", "--sha", e.digest); !strings.Contains(out, uuid) {
				t.Errorf("the subject's digest does not find the %s entry:\n%s", kind, out)
			}
		}
	})
	t.Run("loginfo follows the log and checks that it only grew", func(t *testing.T) {
		before := treeSize.FindStringSubmatch(rekor("loginfo"))
		for i := range 20 {
			e := b.sign(fmt.Sprintf("more-%d", i), fmt.Sprintf("artifact %d", i))
			upload("--artifact", e.artifact, "--signature", e.signature, "--public-key", e.key)
		}
		after := treeSize.FindStringSubmatch(rekor("loginfo")) // rekor-cli keeps the state and asks for a consistency proof
		if before == nil || after == nil || before[1] == after[1] {
			t.Fatalf("tree size %v, then %v", before, after)
		}
		proof := rekor("logproof", "--first-size", before[1], "--last-size", after[1])
		if !regexp.MustCompile(`[0-9a-f]{64}`).MatchString(proof) {
			t.Errorf("logproof:\n%s", proof)
		}
	})
}
