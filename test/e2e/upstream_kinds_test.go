package e2e

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/data"
	"github.com/theupdateframework/go-tuf/pkg/keys"
	tufsign "github.com/theupdateframework/go-tuf/sign"
	"github.com/veraison/go-cose"

	"github.com/attestry/attestry/internal/services"
)

// TestUpstreamMakesTheSameEntries sends the same submissions of every kind to upstream's Rekor server and to
// attestry up: the leaf and the attestation beside it must be the same.
func TestUpstreamMakesTheSameEntries(t *testing.T) {
	upstream := rekorServer(t, "--sequencer_interval=50ms")
	ours := up(t, "--attestations", "--kinds", "hashedrekord,dsse,intoto,rekord,rfc3161,cose,helm,alpine,rpm,jar,tuf").url
	docs := submissions(t)
	for _, name := range slices.Sorted(maps.Keys(docs)) {
		t.Run(name, func(t *testing.T) {
			body, err := json.Marshal(docs[name])
			if err != nil {
				t.Fatal(err)
			}
			theirs, mine := logEntry(t, upstream, body), logEntry(t, ours, body)
			if theirs.Body != mine.Body {
				t.Errorf("bodies differ\nours   %s\ntheirs %s", unbase64(t, mine.Body), unbase64(t, theirs.Body))
			}
			if theirs.Attestation.Data != mine.Attestation.Data {
				t.Errorf("attestation is %q, upstream has %q", mine.Attestation.Data, theirs.Attestation.Data)
			}
			// With a byte of the longest text changed: what we take, upstream takes too and makes the same of it.
			refused := 0
			for i := range twins {
				twin := twinOf(t, docs[name], i)
				status, mine, err := call(t.Context(), http.MethodPost, ours+"/api/v1/log/entries", "application/json", twin)
				if err != nil || status != http.StatusCreated && status != http.StatusBadRequest && status != http.StatusConflict {
					t.Fatalf("twin %d: %d %s (%v)", i, status, mine, err)
				}
				if status == http.StatusBadRequest {
					refused++
				}
				if status != http.StatusCreated {
					continue
				}
				status, theirs, err := call(t.Context(), http.MethodPost, upstream+"/api/v1/log/entries", "application/json", twin)
				if err != nil || status != http.StatusCreated {
					t.Errorf("twin %d: upstream answers what we take with %d %s (%v)", i, status, theirs, err)
				} else if only(t, mine).Body != only(t, theirs).Body {
					t.Errorf("twin %d: bodies differ\nours   %s\ntheirs %s", i, mine, theirs)
				}
			}
			if refused == 0 {
				t.Error("no change was refused")
			}
		})
	}
}

// twins is how many changed submissions of each kind are compared.
const twins = 12

// TestRekorCLIUploadsEveryKind drives the kinds that are off by default with the unmodified client, from its own
// reading of the files to the proof and the attestation of what was logged.
func TestRekorCLIUploadsEveryKind(t *testing.T) {
	exe := client(t, "rekor-cli", "v1.5.4")
	s := up(t, "--attestations", "--kinds", "intoto,rfc3161,cose,alpine,jar,tuf")
	b := newSandbox(t)
	rekor := func(args ...string) string {
		t.Helper()
		return b.must(exe, flags([]string{"--rekor_server", s.url}, args)...)
	}
	upstreamFile := upstreamFiles(t)
	copied := func(name string) string { return b.file(filepath.Base(name), string(upstreamFile(name))) }
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	message := coseMessage(t, key, []byte("a payload"), "text/plain")
	root, stamp := tufMetadata(t)
	envelope := b.envelope("envelope", strings.Repeat("ab", 32))
	var sent struct{ Payload []byte }
	if err := json.Unmarshal([]byte(readFile(t, envelope.artifact)), &sent); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		kind, artifact, key string
		attestation         []byte
	}{
		{"rfc3161", copied("rfc3161/tests/test.tsr"), "", nil},
		{"alpine", copied("alpine/tests/test_alpine.apk"), copied("alpine/tests/test_alpine.pub"), nil},
		{"jar", copied("jar/v0.0.1/tests/test.jar"), "", nil},
		{"tuf", b.file("timestamp.json", string(stamp)), b.file("root.json", string(root)), nil},
		{"cose", b.file("message", string(message)), b.file("cose.pub", publicPEM(t, key)), message},
		{"intoto:0.0.1", envelope.artifact, envelope.key, sent.Payload},
		{"intoto:0.0.2", envelope.artifact, envelope.key, sent.Payload},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			args := []string{"upload", "--type", tt.kind, "--artifact", tt.artifact}
			if tt.key != "" {
				args = append(args, "--public-key", tt.key)
			}
			out := rekor(args...)
			m := createdEntry.FindStringSubmatch(out)
			if m == nil {
				t.Fatalf("upload printed no entry:\n%s", out)
			}
			rekor("verify", "--uuid", m[2])
			out = rekor("get", "--uuid", m[2], "--format", "json")
			var got struct {
				Attestation string
				Body        map[string]json.RawMessage
			}
			if err := json.Unmarshal([]byte(out), &got); err != nil || len(got.Body) != 1 {
				t.Fatalf("get printed %s (%v)", out, err)
			}
			// rekor-cli shows it as text: a byte that is none becomes U+FFFD.
			if got.Attestation != string([]rune(string(tt.attestation))) {
				t.Errorf("attestation is %q, want %q", got.Attestation, tt.attestation)
			}
		})
	}
}

// rekorServer starts upstream's Rekor over a Trillian and a PostgreSQL of its own, with
// attestations and without search index, and returns its URL. Trillian's log signer has the flags.
func rekorServer(t *testing.T, trillianFlags ...string) string {
	t.Helper()
	exe := client(t, "rekor-server", "v1.5.4")
	trillian := services.Trillian(t, services.Postgres(t), trillianFlags...)
	host, port, err := net.SplitHostPort(trillian.Address)
	if err != nil {
		t.Fatal(err)
	}
	b := newSandbox(t)
	attestations := b.path("attestations")
	if err := os.Mkdir(attestations, 0o700); err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	upstreamServer(t, exe, address, "/api/v1/log", "serve", "--rekor_server.address=127.0.0.1", "--port="+portOf(t, address), "--rekor_server.signer=memory",
		"--trillian_log_server.address="+host, "--trillian_log_server.port="+port, "--log_type=prod",
		"--enable_retrieve_api=false", "--enabled_api_endpoints=createLogEntry,getLogEntryByIndex,getLogEntryByUUID,getLogInfo,getPublicKey,getLogProof,searchLogQuery",
		"--enable_attestation_storage", "--attestation_storage_bucket=file://"+attestations)
	return "http://" + address
}

type anonEntry struct {
	Body        string
	LogIndex    int64
	Attestation struct{ Data string }
}

// logEntry submits and returns what a read then answers; upstream stores attestations after its answer.
func logEntry(t *testing.T, url string, body []byte) anonEntry {
	t.Helper()
	status, answer, err := call(t.Context(), http.MethodPost, url+"/api/v1/log/entries", "application/json", string(body))
	if err != nil || status != http.StatusCreated {
		t.Fatalf("%s answers %d %s (%v)", url, status, answer, err)
	}
	created := only(t, answer)
	if created.Attestation.Data != "" {
		t.Errorf("%s answers a submission with the attestation", url)
	}
	var read anonEntry
	wanted := bytes.Contains(body, []byte(`"kind":"intoto"`)) || bytes.Contains(body, []byte(`"kind":"cose"`))
	eventually(t, "the entry can be read", func() bool {
		status, answer, err := call(t.Context(), http.MethodGet, fmt.Sprintf("%s/api/v1/log/entries?logIndex=%d", url, created.LogIndex), "", "")
		if err != nil || status != http.StatusOK {
			return false
		}
		read = only(t, answer)
		return !wanted || read.Attestation.Data != ""
	})
	if read.Body != created.Body {
		t.Errorf("%s reads another body than it made", url)
	}
	return read
}

func only(t *testing.T, answer string) anonEntry {
	t.Helper()
	var entries map[string]anonEntry
	if err := json.Unmarshal([]byte(answer), &entries); err != nil || len(entries) != 1 {
		t.Fatalf("%v: %s", err, answer)
	}
	for _, e := range entries {
		return e
	}
	return anonEntry{}
}

func unbase64(t *testing.T, text string) []byte {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// twinOf changes a byte in the longest string of a submission's spec, another for each number below twins.
func twinOf(t *testing.T, doc map[string]any, number int) string {
	t.Helper()
	var spec any
	raw, err := json.Marshal(doc["spec"])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &spec); err != nil {
		t.Fatal(err)
	}
	type place struct {
		in   map[string]any
		name string
	}
	var longest place
	var text string
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, member := range v {
				if s, ok := member.(string); ok && len(s) > len(text) && name != "publicKey" {
					longest, text = place{v, name}, s
				}
				if name != "publicKey" {
					walk(member)
				}
			}
		case []any:
			for _, item := range v {
				walk(item)
			}
		}
	}
	walk(spec)
	at := (2*number + 1) * len(text) / (2 * twins)
	other := "A"
	if text[at:at+1] == other {
		other = "B"
	}
	longest.in[longest.name] = text[:at] + other + text[at+1:]
	raw, err = json.Marshal(map[string]any{"kind": doc["kind"], "apiVersion": doc["apiVersion"], "spec": spec})
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// submissions are proposed entries of every kind, with the files of upstream's own tests where it has some.
func submissions(t *testing.T) map[string]map[string]any {
	t.Helper()
	file := upstreamFiles(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := []byte(publicPEM(t, key))
	sign := func(message []byte) []byte {
		sum := sha256.Sum256(message)
		sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	const payloadType = "application/vnd.in-toto+json"
	statement := []byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"<é>","digest":{"sha256":"AA"}}],"predicate":{}}`)
	envelopeSig := sign(fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(statement), statement))
	envelope, err := json.Marshal(map[string]any{"payloadType": payloadType, "payload": statement, "signatures": []any{map[string]any{"sig": envelopeSig}}})
	if err != nil {
		t.Fatal(err)
	}
	twice := func(raw []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(raw)) }
	entry := func(kind, version string, spec map[string]any) map[string]any {
		return map[string]any{"kind": kind, "apiVersion": version, "spec": spec}
	}
	content := func(raw any) map[string]any { return map[string]any{"content": raw} }
	artifact := []byte("an artifact")
	root, stamp := tufMetadata(t)
	var rootObject any
	if err := json.Unmarshal(root, &rootObject); err != nil {
		t.Fatal(err)
	}
	return map[string]map[string]any{
		"hashedrekord": entry("hashedrekord", "0.0.1", map[string]any{
			"data":      map[string]any{"hash": map[string]any{"algorithm": "sha256", "value": fmt.Sprintf("%x", sha256.Sum256(artifact))}},
			"signature": map[string]any{"content": sign(artifact), "publicKey": content(public)},
		}),
		"dsse":         entry("dsse", "0.0.1", map[string]any{"proposedContent": map[string]any{"envelope": string(envelope), "verifiers": [][]byte{public}}}),
		"intoto 0.0.1": entry("intoto", "0.0.1", map[string]any{"content": map[string]any{"envelope": string(envelope)}, "publicKey": public}),
		"intoto 0.0.2": entry("intoto", "0.0.2", map[string]any{"content": map[string]any{
			"envelope": map[string]any{"payloadType": payloadType, "payload": twice(statement), "signatures": []any{map[string]any{"sig": twice(envelopeSig), "publicKey": public}}},
			"hash":     map[string]any{"algorithm": "sha256", "value": strings.Repeat("0f", 32)},
		}}),
		"rekord": entry("rekord", "0.0.1", map[string]any{"data": content(file("rekord/tests/test_file.txt")), "signature": map[string]any{
			"format": "pgp", "content": file("rekord/tests/test_file.sig"), "publicKey": content(file("rekord/tests/test_public_key.key"))}}),
		"helm":           entry("helm", "0.0.1", map[string]any{"chart": map[string]any{"provenance": content(file("helm/tests/test-0.1.0.tgz.prov"))}, "publicKey": content(file("helm/tests/test_helm_armor.pub"))}),
		"rpm":            entry("rpm", "0.0.1", map[string]any{"package": content(file("rpm/tests/test.rpm")), "publicKey": content(file("rpm/tests/test_rpm_public_key.key"))}),
		"rfc3161":        entry("rfc3161", "0.0.1", map[string]any{"tsr": content(file("rfc3161/tests/test.tsr"))}),
		"cose":           entry("cose", "0.0.1", map[string]any{"message": coseMessage(t, key, statement, payloadType), "publicKey": public, "data": map[string]any{}}),
		"alpine":         entry("alpine", "0.0.1", map[string]any{"package": content(file("alpine/tests/test_alpine.apk")), "publicKey": content(file("alpine/tests/test_alpine.pub"))}),
		"jar":            entry("jar", "0.0.1", map[string]any{"archive": content(file("jar/v0.0.1/tests/test.jar"))}),
		"tuf in base64":  entry("tuf", "0.0.1", map[string]any{"metadata": content(stamp), "root": content(root)}),
		"tuf as objects": entry("tuf", "0.0.1", map[string]any{"metadata": content(rootObject), "root": content(rootObject)}),
	}
}

// upstreamFiles returns a reader of the test files that upstream has beside its kinds.
func upstreamFiles(t *testing.T) func(name string) []byte {
	t.Helper()
	dir, err := exec.Command("go", "-C", "../rekor", "list", "-m", "-f", "{{.Dir}}", "github.com/sigstore/rekor").Output() // the module that has 1.5.4
	if err != nil {
		t.Fatalf("finding upstream's test files: %v", err)
	}
	return func(name string) []byte {
		return []byte(readFile(t, filepath.Join(strings.TrimSpace(string(dir)), "pkg", "types", filepath.FromSlash(name))))
	}
}

func coseMessage(t *testing.T, key crypto.Signer, payload []byte, contentType string) []byte {
	t.Helper()
	by, err := cose.NewSigner(cose.AlgorithmES256, key)
	if err != nil {
		t.Fatal(err)
	}
	msg := cose.NewSign1Message()
	msg.Payload = payload
	msg.Headers.Protected.SetAlgorithm(cose.AlgorithmES256)
	msg.Headers.Protected[cose.HeaderLabelContentType] = contentType
	if err := msg.Sign(rand.Reader, nil, by); err != nil {
		t.Fatal(err)
	}
	raw, err := msg.MarshalCBOR()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// tufMetadata returns a root and a timestamp signed by the root's key, valid for an hour: upstream refuses what has expired.
func tufMetadata(t *testing.T) (root, stamp []byte) {
	t.Helper()
	key, err := keys.GenerateEcdsaKey()
	if err != nil {
		t.Fatal(err)
	}
	r, s := data.NewRoot(), data.NewTimestamp()
	r.Expires = time.Now().Add(time.Hour).UTC().Round(time.Second)
	r.Version, s.Version, s.Expires = 2, 7, r.Expires
	r.AddKey(key.PublicData())
	for _, name := range []string{"root", "targets", "snapshot", "timestamp"} {
		r.Roles[name] = &data.Role{Threshold: 1, KeyIDs: key.PublicData().IDs()}
	}
	texts := make([][]byte, 2)
	for i, v := range []any{r, s} {
		signed, err := tufsign.Marshal(v, key)
		if err != nil {
			t.Fatal(err)
		}
		if texts[i], err = json.Marshal(signed); err != nil {
			t.Fatal(err)
		}
	}
	return texts[0], texts[1]
}
