package rekor1

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/entry"
	"github.com/attestry/attestry/pkg/log/index"
	"github.com/attestry/attestry/pkg/log/tiles"
)

const treeID = 0x108e9186e8c5677a

// service is a log on disk with its index, served over HTTP.
type service struct {
	log    *log.Log
	index  *index.Index
	server *httptest.Server
	faults *faultyLog
}

// faultyLog fails Add with err, if there is one.
type faultyLog struct {
	Log
	mu  sync.Mutex
	err error
}

func (l *faultyLog) Add(ctx context.Context, s log.Submission) (log.Receipt, error) {
	l.mu.Lock()
	err := l.err
	l.mu.Unlock()
	if err != nil {
		return log.Receipt{}, err
	}
	return l.Log.Add(ctx, s)
}

func (l *faultyLog) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// newService serves a new log; change may set options.
func newService(t testing.TB, change ...func(*Options)) *service {
	t.Helper()
	dir := tempDir(t)
	logger := slog.New(slog.DiscardHandler)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	fence, err := log.OpenFileFence(filepath.Join(dir, "fence"))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := tiles.Open(t.Context(), filepath.Join(dir, "tiles"), log.Rekor1)
	if err != nil {
		t.Fatal(err)
	}
	l, err := log.Open(t.Context(), log.Options{
		Kind: log.Rekor1, Label: "rekor1", Origin: fmt.Sprintf("localhost - %d", treeID), Name: "localhost", TreeID: treeID, Dir: dir,
		Tree: tree, Key: key, Fence: fence, Logger: logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(t.Context(), index.Options{URI: "sqlite:" + filepath.Join(dir, "index.db"), Keys: entry.Keys, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	s := &service{log: l, index: x, faults: &faultyLog{Log: l}}
	kinds, err := entry.ParseKinds([]string{"hashedrekord", "dsse", "intoto", "rekord"})
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{Shards: []Shard{{Log: s.faults, Index: x}}, Kinds: kinds, Body: limit.Body{Max: 1 << 20}, Logger: logger, Registerer: prometheus.NewRegistry()}
	for _, c := range change {
		c(&opts)
	}
	h, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	r := chi.NewRouter() // as the process mounts it: beside other APIs
	h.Routes(r)
	s.server = httptest.NewServer(r)
	ctx, cancel := context.WithCancel(context.Background())
	followed := make(chan struct{})
	go func() { // ends with cancel
		defer close(followed)
		x.Follow(ctx, l)
	}()
	t.Cleanup(func() {
		s.server.Close()
		cancel()
		<-followed
		x.Close()
		l.Close()
		tree.Close()
	})
	return s
}

// tempDir is t.TempDir with patience: Tessera's publisher may write one last file after its context ended.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rekor1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 1000 {
			if err = os.RemoveAll(dir); err == nil {
				return
			}
		}
		t.Error(err)
	})
	return dir
}

// call sends a request and returns the answer with its body.
func (s *service) call(t testing.TB, method, path, contentType, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, s.server.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(raw)
}

func (s *service) post(t testing.TB, path, body string) (*http.Response, string) {
	t.Helper()
	return s.call(t, http.MethodPost, path, "application/json", body)
}

func toJSON(t testing.TB, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// client is somebody who signs.
type client struct {
	key *ecdsa.PrivateKey
	pem []byte
}

func newClient(t testing.TB) client {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return client{key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})}
}

func (c client) sign(t testing.TB, data []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(data)
	sig, err := c.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// blob is a hashedrekord of an artifact.
func (c client) blob(t testing.TB, artifact string) map[string]any {
	sum := sha256.Sum256([]byte(artifact))
	return map[string]any{"kind": "hashedrekord", "apiVersion": "0.0.1", "spec": map[string]any{
		"signature": map[string]any{"content": c.sign(t, []byte(artifact)), "publicKey": map[string]any{"content": c.pem}},
		"data":      map[string]any{"hash": map[string]any{"algorithm": "sha256", "value": hex.EncodeToString(sum[:])}},
	}}
}

// attestation is a dsse entry of a statement about subject.
func (c client) attestation(t testing.TB, subject string) map[string]any {
	payload := []byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"x","digest":{"sha256":"` + subject + `"}}]}`)
	const payloadType = "application/vnd.in-toto+json"
	pae := fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
	envelope := toJSON(t, map[string]any{"payloadType": payloadType, "payload": payload, "signatures": []any{map[string]any{"sig": c.sign(t, pae)}}})
	return map[string]any{"kind": "dsse", "apiVersion": "0.0.1", "spec": map[string]any{
		"proposedContent": map[string]any{"envelope": envelope, "verifiers": []any{c.pem}},
	}}
}

func TestDuplicatesAre409WithALocation(t *testing.T) {
	s, c := newService(t), newClient(t)
	doc := toJSON(t, c.blob(t, "twice"))
	first, body := s.post(t, "/api/v1/log/entries", doc)
	if first.StatusCode != http.StatusCreated {
		t.Fatalf("%d %s", first.StatusCode, body)
	}
	id := first.Header.Get("ETag")
	if want := fmt.Sprintf("%016x", treeID); len(id) != 80 || !strings.HasPrefix(id, want) {
		t.Errorf("ETag is %q, want 80 hex digits that begin with %s", id, want)
	}
	if first.Header.Get("Location") != "/api/v1/log/entries/"+id {
		t.Errorf("Location is %q", first.Header.Get("Location"))
	}
	var entries map[string]json.RawMessage
	if err := json.Unmarshal([]byte(body), &entries); err != nil || len(entries) != 1 || entries[id] == nil {
		t.Errorf("the answer's only key is not the ETag: %s", body)
	}
	again, body := s.post(t, "/api/v1/log/entries", doc)
	want := `{"code":409,"message":"an equivalent entry already exists in the transparency log with UUID ` + id + `"}`
	if again.StatusCode != http.StatusConflict || body != want || again.Header.Get("Location") != "/api/v1/log/entries/"+id || again.Header.Get("ETag") != "" {
		t.Errorf("a duplicate got %d %v %s", again.StatusCode, again.Header, body)
	}
	if resp, body := s.call(t, http.MethodGet, again.Header.Get("Location"), "", ""); resp.StatusCode != http.StatusOK || !strings.Contains(body, id) {
		t.Errorf("the entry behind Location is not readable: %d %s", resp.StatusCode, body)
	}
}

func TestReadsAgreeWithTheirCheckpoint(t *testing.T) {
	s, c := newService(t), newClient(t)
	for i := range 5 {
		if resp, body := s.post(t, "/api/v1/log/entries", toJSON(t, c.blob(t, fmt.Sprint(i)))); resp.StatusCode != http.StatusCreated {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
	}
	times := map[string]int64{}
	for _, path := range []string{"?logIndex=0", "?logIndex=4", "?logIndex=2"} {
		for range 2 {
			resp, body := s.call(t, http.MethodGet, "/api/v1/log/entries"+path, "", "")
			if resp.StatusCode != http.StatusOK || !strings.Contains(resp.Header.Get("Cache-Control"), "no-store") {
				t.Fatalf("%d %v %s", resp.StatusCode, resp.Header, body)
			}
			var entries map[string]logEntry
			if err := json.Unmarshal([]byte(body), &entries); err != nil {
				t.Fatal(err)
			}
			for id, e := range entries {
				lines := strings.Split(e.Verification.InclusionProof.Checkpoint, "\n")
				root, err := base64.StdEncoding.DecodeString(lines[2])
				if err != nil {
					t.Fatal(err)
				}
				if lines[1] != fmt.Sprint(e.Verification.InclusionProof.TreeSize) || hex.EncodeToString(root) != e.Verification.InclusionProof.RootHash {
					t.Errorf("%s: root and size are not of the checkpoint: %s", path, body)
				}
				if was, ok := times[id]; ok && was != e.IntegratedTime {
					t.Errorf("%s: integratedTime changed from %d to %d", path, was, e.IntegratedTime)
				}
				times[id] = e.IntegratedTime
			}
		}
	}
}

// sample reads a file of the entry package's samples.
func sample(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "entry", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func rekord(t testing.TB, format, key, signature string) map[string]any {
	return map[string]any{"kind": "rekord", "apiVersion": "0.0.1", "spec": map[string]any{
		"signature": map[string]any{"format": format, "content": sample(t, signature), "publicKey": map[string]any{"content": sample(t, key)}},
		"data":      map[string]any{"content": sample(t, "message.txt")},
	}}
}

func TestSearch(t *testing.T) {
	s, c, other := newService(t), newClient(t), newClient(t)
	subject := strings.Repeat("ab", 32)
	ids := map[string]string{}
	for name, doc := range map[string]map[string]any{
		"blob": c.blob(t, "artifact"), "attestation": c.attestation(t, subject), "other": other.blob(t, "artifact"),
		"PGP":      rekord(t, "pgp", "pgp/ed.asc", "pgp/ed.message.sig"),
		"SSH":      rekord(t, "ssh", "ssh/ecdsa.pub", "ssh/ecdsa.message.sig"),
		"minisign": rekord(t, "minisign", "minisign/minisign.pub", "minisign/minisign.message.minisig"),
	} {
		resp, body := s.post(t, "/api/v1/log/entries", toJSON(t, doc))
		if resp.StatusCode != http.StatusCreated {
			t.Fatalf("%s: %d %s", name, resp.StatusCode, body)
		}
		ids[name] = resp.Header.Get("ETag")
	}
	if err := s.index.CaughtUp(t.Context(), 6); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("artifact"))
	artifact := hex.EncodeToString(sum[:])
	keySum := sha256.Sum256(c.pem)
	key := map[string]any{"format": "x509", "content": c.pem}
	for _, tt := range []struct {
		name  string
		query map[string]any
		want  []string
	}{
		{"nothing asked", map[string]any{}, nil},
		{"by artifact digest", map[string]any{"hash": "sha256:" + artifact}, []string{"blob", "other"}},
		{"by artifact digest in capitals, without algorithm", map[string]any{"hash": strings.ToUpper(artifact)}, []string{"blob", "other"}},
		{"by a statement's subject", map[string]any{"hash": subject}, []string{"attestation"}},
		{"by public key, both kinds", map[string]any{"publicKey": key}, []string{"attestation", "blob"}},
		{"by the key's digest", map[string]any{"hash": "sha256:" + hex.EncodeToString(keySum[:])}, []string{"attestation", "blob"}},
		{"by digest and key", map[string]any{"hash": artifact, "publicKey": key, "operator": "and"}, []string{"blob"}},
		{"by digest or subject", map[string]any{"hash": artifact, "subject": "nobody", "operator": "or"}, []string{"blob", "other"}},
		{"by PGP key, in another form", map[string]any{"publicKey": map[string]any{"format": "pgp", "content": sample(t, "pgp/ed.gpg")}}, []string{"PGP"}},
		{"by an email of a PGP key", map[string]any{"email": "Two@Example.com"}, []string{"PGP"}},
		{"by SSH key", map[string]any{"publicKey": map[string]any{"format": "ssh", "content": sample(t, "ssh/ecdsa.pub")}}, []string{"SSH"}},
		{"by the comment of an SSH key", map[string]any{"email": "ecdsa@example.com"}, []string{"SSH"}},
		{"by minisign key", map[string]any{"publicKey": map[string]any{"format": "minisign", "content": sample(t, "minisign/minisign.pub")}}, []string{"minisign"}},
		{"by an email that signed nothing", map[string]any{"email": "alice@example.com"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, body := s.post(t, "/api/v1/index/retrieve", toJSON(t, tt.query))
			var got []string
			if err := json.Unmarshal([]byte(body), &got); err != nil || resp.StatusCode != http.StatusOK || got == nil {
				t.Fatalf("%d %s (%v)", resp.StatusCode, body, err)
			}
			want := []string{}
			for _, name := range tt.want {
				want = append(want, ids[name])
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("found %q, want %q", got, want)
			}
		})
	}
}

func TestRetrieve(t *testing.T) {
	s, c := newService(t), newClient(t)
	blob, unlogged := c.blob(t, "logged"), c.blob(t, "not logged")
	resp, body := s.post(t, "/api/v1/log/entries", toJSON(t, blob))
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	id := resp.Header.Get("ETag")
	for name, query := range map[string]map[string]any{
		"by entry ID":                       {"entryUUIDs": []any{id}},
		"by UUID in capitals":               {"entryUUIDs": []any{strings.ToUpper(id[16:])}},
		"by index, and one beyond the tree": {"logIndexes": []any{0, 999}},
		"by proposal, and one not logged":   {"entries": []any{blob, unlogged}},
		"by an unknown tree besides":        {"entryUUIDs": []any{id, "00000000000000ff" + id[16:]}},
	} {
		for _, path := range []string{"/api/v1/log/entries/retrieve", "/api/v1/log/entries/retrieve/"} {
			resp, body := s.post(t, path, toJSON(t, query))
			var got []map[string]logEntry
			if err := json.Unmarshal([]byte(body), &got); err != nil || resp.StatusCode != http.StatusOK || len(got) != 1 {
				t.Fatalf("%s: %d %s", name, resp.StatusCode, body)
			}
			if _, ok := got[0][id]; !ok {
				t.Errorf("%s: found %s", name, body)
			}
		}
	}
	if resp, body := s.post(t, "/api/v1/log/entries/retrieve", toJSON(t, map[string]any{"entries": []any{unlogged}})); resp.StatusCode != http.StatusOK || body != "[]" {
		t.Errorf("nothing found: %d %s, want 200 []", resp.StatusCode, body)
	}
}

func TestRefusals(t *testing.T) {
	s, c := newService(t), newClient(t)
	if resp, body := s.post(t, "/api/v1/log/entries", toJSON(t, c.blob(t, "first"))); resp.StatusCode != http.StatusCreated {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	forged := c.blob(t, "x")
	forged["spec"].(map[string]any)["signature"].(map[string]any)["content"] = c.sign(t, []byte("y"))
	long := strings.Repeat("a", 513)
	ten := "0" + strings.Repeat(",0", 9)
	uuid := strings.Repeat("ab", 32)
	const (
		entries  = "POST /api/v1/log/entries"
		retrieve = "POST /api/v1/log/entries/retrieve"
		search   = "POST /api/v1/index/retrieve"
		proof    = "GET /api/v1/log/proof"
	)
	for _, tt := range []struct {
		name, op, body string
		status, code   int
		message        string // a part of it; "" for an empty body
	}{
		{"no body", entries, "", 422, 602, "proposedEntry in body is required"},
		{"not JSON", entries, "{", 400, 400, `parsing proposedEntry body from \"\" failed, because invalid JSON`},
		{"an array", entries, "[]", 400, 400, "it is not a JSON object"},
		{"trailing data", entries, "{} {}", 400, 400, "data after the value"},
		{"a duplicate member", entries, `{"kind":"dsse","kind":"hashedrekord"}`, 400, 400, `duplicate member \"kind\"`},
		{"no kind", entries, "{}", 422, 602, "kind in body is required"},
		{"a kind nobody knows", entries, `{"kind":"x"}`, 400, 400, `invalid kind value: \"x\"`},
		{"no version", entries, `{"kind":"dsse"}`, 422, 602, "apiVersion in body is required"},
		{"a version that is none", entries, `{"kind":"dsse","apiVersion":"1"}`, 422, 605, "apiVersion in body should match"},
		{"no spec", entries, `{"kind":"dsse","apiVersion":"0.0.1"}`, 422, 602, "spec in body is required"},
		{"a spec that is none", entries, `{"kind":"dsse","apiVersion":"0.0.1","spec":[]}`, 422, 601, "spec in body must be of type object"},
		{"a kind that is off", entries, `{"kind":"helm","apiVersion":"0.0.1","spec":{}}`, 400, 400, "error processing entry: entry kind 'helm' is not enabled for submission on this server"},
		{"a version that is not taken", entries, `{"kind":"dsse","apiVersion":"0.0.7","spec":{}}`, 400, 400, "error processing entry: entry kind 'dsse' does not support inserting entries of version '0.0.7'"},
		{"an empty spec", entries, `{"kind":"hashedrekord","apiVersion":"0.0.1","spec":{}}`, 400, 400, "error processing entry: signature.content in body is required"},
		{"a forged signature", entries, toJSON(t, forged), 400, 400, "error processing entry: verifying signature"},
		{"a body over the limit", entries, `{"kind":"` + strings.Repeat("x", 1<<20) + `"}`, 413, 413, "Request Entity Too Large: the body is over 1048576 bytes"},
		{"an index beyond the tree", "GET /api/v1/log/entries?logIndex=1", "", 404, 0, ""},
		{"no index", "GET /api/v1/log/entries", "", 422, 602, "logIndex in query is required"},
		{"an index that is no number", "GET /api/v1/log/entries?logIndex=x", "", 422, 601, `logIndex in query must be of type int64: \"x\"`},
		{"a negative index", "GET /api/v1/log/entries?logIndex=-1", "", 422, 609, "logIndex in query should be greater than or equal to 0"},
		{"an unknown UUID", "GET /api/v1/log/entries/" + uuid, "", 404, 0, ""},
		{"an unknown tree", "GET /api/v1/log/entries/00000000000000ff" + uuid, "", 404, 0, ""},
		{"tree zero", "GET /api/v1/log/entries/0000000000000000" + uuid, "", 400, 400, "is not a valid TreeID"},
		{"a tree over int64", "GET /api/v1/log/entries/ffffffffffffffff" + uuid, "", 400, 400, "is not a valid TreeID"},
		{"a UUID that is none", "GET /api/v1/log/entries/xyz", "", 422, 605, "entryUUID in path should match"},
		{"eleven entries in three lists", retrieve, `{"logIndexes":[` + ten + `],"entryUUIDs":["` + uuid + `"]}`, 422, 422, "more than max allowed 10 entries in request"},
		{"eleven in one list", retrieve, `{"logIndexes":[0,` + ten + `]}`, 422, 611, "logIndexes in body should have at most 10 items"},
		{"an empty list", retrieve, `{"entryUUIDs":[]}`, 422, 612, "entryUUIDs in body should have at least 1 items"},
		{"a list that is none", retrieve, `{"entryUUIDs":"x"}`, 422, 601, "entryUUIDs in body must be of type array"},
		{"a bad ID in a list", retrieve, `{"entryUUIDs":["xyz"]}`, 422, 605, "entryUUIDs.0 in body should match"},
		{"a negative index in a list", retrieve, `{"logIndexes":[-1]}`, 422, 609, "logIndexes.0 in body should be greater"},
		{"a fraction as index", retrieve, `{"logIndexes":[1.5]}`, 422, 601, "logIndexes.0 in body must be of type int64"},
		{"a proposal without version", retrieve, `{"entries":[{"kind":"dsse"}]}`, 422, 602, "entries.0.apiVersion in body is required"},
		{"a forged proposal", retrieve, `{"entries":[` + toJSON(t, forged) + `]}`, 400, 400, "verifying signature"},
		{"sizes reversed", proof + "?firstSize=3&lastSize=2", "", 400, 400, "firstSize(3) must be less than lastSize(2)"},
		{"a size beyond the tree", proof + "?lastSize=9", "", 400, 400, "the tree size requested(9) was greater than what is currently observable(1)"},
		{"no last size", proof, "", 422, 602, "lastSize in query is required"},
		{"last size zero", proof + "?lastSize=0", "", 422, 609, "lastSize in query should be greater than or equal to 1"},
		{"first size zero", proof + "?firstSize=0&lastSize=1", "", 422, 609, "firstSize in query should be greater than or equal to 1"},
		{"proof of an unknown tree", proof + "?lastSize=1&treeID=7", "", 400, 400, "no log range found for tree ID 7"},
		{"tree ID in hex", proof + "?lastSize=1&treeID=ab", "", 422, 605, "treeID in query should match"},
		{"key of an unknown tree", "GET /api/v1/log/publicKey?treeID=7", "", 400, 400, "7 is not a valid tree ID"},
		{"an email that is none", search, `{"email":"x"}`, 422, 601, `email in body must be of type email: \"x\"`},
		{"an email with a name", search, `{"email":"A <a@example.com>"}`, 422, 601, "must be of type email"},
		{"a hash that is none", search, `{"hash":"abc"}`, 422, 605, "hash in body should match"},
		{"a hash of another algorithm", search, `{"hash":"sha512:` + uuid + `"}`, 422, 605, "hash in body should match"},
		{"an operator nobody knows", search, `{"operator":"xor"}`, 422, 606, "operator in body should be one of [and or]"},
		{"a subject too long", search, `{"subject":"` + long + `"}`, 422, 603, "subject in body should be at most 512 chars long"},
		{"a key without format", search, `{"publicKey":{}}`, 422, 602, "publicKey.format in body is required"},
		{"a key format nobody knows", search, `{"publicKey":{"format":"x"}}`, 422, 606, "publicKey.format in body should be one of"},
		{"a TUF key", search, `{"publicKey":{"format":"tuf","content":"e30="}}`, 400, 400, "public key provided could not be parsed"},
		{"a PGP key that is none", search, `{"publicKey":{"format":"pgp","content":"AAAA"}}`, 400, 400, "public key provided could not be parsed"},
		{"a key that is none", search, `{"publicKey":{"format":"x509","content":"AAAA"}}`, 400, 400, "public key provided could not be parsed"},
		{"a number as email", search, `{"email":1}`, 400, 400, "email is not a string"},
		{"an unknown path", "GET /api/v1/log/nothing", "", 404, 404, "path /api/v1/log/nothing was not found"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			method, path, _ := strings.Cut(tt.op, " ")
			resp, body := s.call(t, method, path, "application/json", tt.body)
			if resp.StatusCode != tt.status {
				t.Fatalf("got %d %s, want %d", resp.StatusCode, body, tt.status)
			}
			if tt.message == "" {
				if body != "" {
					t.Errorf("body is %s, want none", body)
				}
				return
			}
			if !strings.HasPrefix(body, fmt.Sprintf(`{"code":%d,"message":"`, tt.code)) || !strings.Contains(body, tt.message) {
				t.Errorf("got %s, want code %d and %q", body, tt.code, tt.message)
			}
		})
	}
	if size := s.log.Checkpoint().Size; size != 1 {
		t.Errorf("refused submissions left %d entries, want the first one only", size)
	}
}

func TestMethodsAndMediaTypes(t *testing.T) {
	s, c := newService(t), newClient(t)
	doc := toJSON(t, c.blob(t, "x"))
	for _, tt := range []struct{ method, path, allow string }{
		{http.MethodPut, "/api/v1/log/entries", "GET,POST"},
		{http.MethodDelete, "/api/v1/log", "GET"},
		{http.MethodGet, "/api/v1/index/retrieve", "POST"},
	} {
		resp, body := s.call(t, tt.method, tt.path, "", "")
		want := fmt.Sprintf(`{"code":405,"message":"method %s is not allowed, but [%s] are"}`, tt.method, tt.allow)
		if resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Allow") != tt.allow || body != want {
			t.Errorf("%s %s: %d, Allow %q, %s", tt.method, tt.path, resp.StatusCode, resp.Header.Get("Allow"), body)
		}
	}
	for contentType, want := range map[string]int{"": 415, "text/plain": 415, "application/json; charset=utf-8": 201} {
		if resp, body := s.call(t, http.MethodPost, "/api/v1/log/entries", contentType, doc); resp.StatusCode != want {
			t.Errorf("Content-Type %q: %d %s, want %d", contentType, resp.StatusCode, body, want)
		}
	}
	if resp, body := s.call(t, http.MethodGet, "/ping", "", ""); resp.StatusCode != http.StatusOK || body != "." {
		t.Errorf("/ping: %d %q", resp.StatusCode, body)
	}
	req, err := http.NewRequest(http.MethodGet, s.server.URL+"/api/v1/log", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Origin", "https://search.example")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("a browser of another origin may not read: %v", resp.Header)
	}
}

func TestFaultsOfTheLog(t *testing.T) {
	s, c := newService(t), newClient(t)
	for _, tt := range []struct {
		name    string
		err     error
		status  int
		message string
	}{
		{"too many entries wait", fault.New(fault.Overloaded, "queue_full", nil, "try again"), 503, "try again"},
		{"something that nobody classified", io.ErrUnexpectedEOF, 500, "internal error"},
		{"too large an entry", fault.New(fault.TooLarge, "entry_too_large", nil, "too large"), 413, "too large"},
		{"a caller who left", context.Canceled, 499, "client disconnected during request"},
	} {
		s.faults.fail(tt.err)
		resp, body := s.post(t, "/api/v1/log/entries", toJSON(t, c.blob(t, tt.name)))
		if want := fmt.Sprintf(`{"code":%d,"message":"%s"}`, tt.status, tt.message); resp.StatusCode != tt.status || body != want {
			t.Errorf("%s: %d %s, want %s", tt.name, resp.StatusCode, body, want)
		}
		if retry := resp.Header.Get("Retry-After"); (retry != "") != (tt.status >= 500) {
			t.Errorf("%s: Retry-After is %q", tt.name, retry)
		}
	}
}

func TestSearchCanBeOff(t *testing.T) {
	s := newService(t)
	h, err := New(Options{Shards: []Shard{{Log: s.log}}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/api/v1/index/retrieve", bytes.NewReader(nil)))
	if w.Code != http.StatusNotImplemented || !strings.Contains(w.Body.String(), "Search Index API not enabled") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func FuzzRequests(f *testing.F) {
	s, c := newService(f), newClient(f)
	h, err := New(Options{Shards: []Shard{{Log: s.log, Index: s.index}}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("POST", "/api/v1/log/entries", toJSON(f, c.blob(f, "x")))
	f.Add("POST", "/api/v1/log/entries/retrieve", `{"logIndexes":[0],"entryUUIDs":["00"]}`)
	f.Add("POST", "/api/v1/index/retrieve", `{"hash":"sha256:00","email":"a@b","operator":"and"}`)
	f.Add("GET", "/api/v1/log/proof?firstSize=1&lastSize=2&treeID=3", "")
	f.Fuzz(func(t *testing.T, method, path, body string) {
		req, err := http.NewRequest(method, "http://localhost/", strings.NewReader(body))
		if err != nil {
			return
		}
		req.URL.Path, req.URL.RawQuery, _ = strings.Cut(path, "?")
		req.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code >= 500 {
			t.Fatalf("%s %q: %d %s", method, path, w.Code, w.Body)
		}
	})
}

func BenchmarkCreateEntry(b *testing.B) {
	s, c := newService(b), newClient(b)
	docs := make([]string, b.N)
	for i := range docs {
		docs[i] = toJSON(b, c.blob(b, fmt.Sprint(i)))
	}
	b.SetParallelism(64)
	var mu sync.Mutex
	next := 0
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			mu.Lock()
			doc := docs[next]
			next++
			mu.Unlock()
			resp, err := http.Post(s.server.URL+"/api/v1/log/entries", "application/json", strings.NewReader(doc))
			if err != nil {
				b.Error(err)
				return
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusCreated {
				b.Errorf("%d", resp.StatusCode)
			}
		}
	})
}
