package rekor2

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	common "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	dssepb "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	rekorv1 "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	tilesread "github.com/sigstore/rekor-tiles/v2/pkg/client/read"
	tileswrite "github.com/sigstore/rekor-tiles/v2/pkg/client/write"
	rekorpb "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	rekornote "github.com/sigstore/rekor-tiles/v2/pkg/note"
	tilesverify "github.com/sigstore/rekor-tiles/v2/pkg/verify"
	sgtlog "github.com/sigstore/sigstore-go/pkg/tlog"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/tiles"
)

//lint:file-ignore SA1019 clients in use send the deprecated dsseRequestV002

const origin = "localhost"

// house is a log on disk, served over HTTP and gRPC.
type house struct {
	log    *log.Log
	server *httptest.Server
	grpc   rekorpb.RekorClient
	faults *faultyLog
}

// faultyLog fails Add with err, if there is one, and remembers the keys submitted.
type faultyLog struct {
	Log
	mu   sync.Mutex
	err  error
	keys []string
}

func (l *faultyLog) Add(ctx context.Context, s log.Submission) (log.Receipt, error) {
	l.mu.Lock()
	err := l.err
	l.keys = s.Keys
	l.mu.Unlock()
	if err != nil {
		return log.Receipt{}, err
	}
	return l.Log.Add(ctx, s)
}

func newHouse(t testing.TB, key crypto.Signer, change func(*Options)) *house {
	t.Helper()
	dir := tempDir(t)
	logger := slog.New(slog.DiscardHandler)
	fence, err := log.OpenFileFence(filepath.Join(dir, "fence"))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := tiles.Open(t.Context(), filepath.Join(dir, "tiles"), log.Rekor2)
	if err != nil {
		t.Fatal(err)
	}
	l, err := log.Open(t.Context(), log.Options{
		Kind: log.Rekor2, Label: "rekor2", Origin: origin, Name: origin, Dir: dir,
		Tree: tree, Key: key, Fence: fence, Logger: logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &house{log: l, faults: &faultyLog{Log: l}}
	opts := Options{Shards: []Log{s.faults}, Body: limit.Body{Max: 1 << 20}, Logger: logger, Registerer: prometheus.NewRegistry()}
	if change != nil {
		change(&opts)
	}
	h, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	r := chi.NewRouter() // as the process mounts it: beside other APIs
	h.Routes(r)
	s.server = httptest.NewServer(r)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	h.Register(g)
	served := make(chan struct{})
	go func() { // ends with g.Stop
		defer close(served)
		g.Serve(ln)
	}()
	conn, err := grpc.NewClient(ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	s.grpc = rekorpb.NewRekorClient(conn)
	t.Cleanup(func() {
		s.server.Close()
		conn.Close()
		g.Stop()
		<-served
		l.Close()
		tree.Close()
	})
	return s
}

// tempDir is t.TempDir with patience: Tessera's publisher may write one last file after its context ended.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rekor2")
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

func ecdsaKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (s *house) call(t testing.TB, method, path, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, s.server.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
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

func (s *house) post(t testing.TB, body string) (*http.Response, string) {
	t.Helper()
	return s.call(t, http.MethodPost, "/api/v2/log/entries", body)
}

// client is somebody who signs.
type client struct {
	*ecdsa.PrivateKey
	verifier *rekorpb.Verifier
}

func newClient(t testing.TB) client {
	t.Helper()
	key := ecdsaKey(t)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return client{key, &rekorpb.Verifier{KeyDetails: common.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256,
		Verifier: &rekorpb.Verifier_PublicKey{PublicKey: &rekorpb.PublicKey{RawBytes: der}}}}
}

func (c client) sign(t testing.TB, data []byte) (sum, sig []byte) {
	t.Helper()
	s := sha256.Sum256(data)
	sig, err := c.Sign(rand.Reader, s[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return s[:], sig
}

func (c client) blob(t testing.TB, artifact string) *rekorpb.HashedRekordRequestV002 {
	sum, sig := c.sign(t, []byte(artifact))
	return &rekorpb.HashedRekordRequestV002{Digest: sum, Signature: &rekorpb.Signature{Content: sig, Verifier: c.verifier}}
}

func (c client) attestation(t testing.TB, subject string) *rekorpb.CreateEntryRequest {
	payload := []byte(`{"subject":[{"digest":{"sha256":"` + subject + `"}}]}`)
	const payloadType = "application/vnd.in-toto+json"
	_, sig := c.sign(t, fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload))
	return &rekorpb.CreateEntryRequest{Spec: &rekorpb.CreateEntryRequest_DsseRequestV002{DsseRequestV002: &rekorpb.DSSERequestV002{
		Envelope:  &dssepb.Envelope{PayloadType: payloadType, Payload: payload, Signatures: []*dssepb.Signature{{Sig: sig}}},
		Verifiers: []*rekorpb.Verifier{c.verifier},
	}}}
}

func request(hr *rekorpb.HashedRekordRequestV002) *rekorpb.CreateEntryRequest {
	return &rekorpb.CreateEntryRequest{Spec: &rekorpb.CreateEntryRequest_HashedRekordRequestV002{HashedRekordRequestV002: hr}}
}

func toJSON(t testing.TB, m proto.Message) string {
	t.Helper()
	raw, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestRekorTilesOwnClients writes and reads with the clients of cosign 3, for both kinds of log key,
// and verifies with the code of rekor-tiles and of sigstore-go.
func TestRekorTilesOwnClients(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"ECDSA": ecdsaKey(t), "Ed25519": ed} {
		t.Run(name, func(t *testing.T) {
			s, c := newHouse(t, key, nil), newClient(t)
			verifier, err := signature.LoadVerifier(key.Public(), crypto.SHA256)
			if err != nil {
				t.Fatal(err)
			}
			writer, err := tileswrite.NewWriter(s.server.URL)
			if err != nil {
				t.Fatal(err)
			}
			var bodies [][]byte
			for i := range 3 {
				tle, err := writer.Add(t.Context(), c.blob(t, fmt.Sprint(i)))
				if err != nil {
					t.Fatal(err)
				}
				verifyEntry(t, key.Public(), verifier, tle)
				bodies = append(bodies, tle.GetCanonicalizedBody())
			}
			for _, base := range []string{s.server.URL, s.server.URL + "/api/v2"} {
				reader, err := tilesread.NewReader(base+"/", origin, verifier)
				if err != nil {
					t.Fatal(err)
				}
				cp, _, err := reader.ReadCheckpoint(t.Context())
				if err != nil || cp.Size != 3 {
					t.Fatalf("%s: checkpoint %+v (%v)", base, cp, err)
				}
				raw, err := reader.ReadEntryBundle(t.Context(), 0, 3)
				if err != nil {
					t.Fatal(err)
				}
				var bundle api.EntryBundle
				if err := bundle.UnmarshalText(raw); err != nil || !slices.EqualFunc(bundle.Entries, bodies, bytes.Equal) {
					t.Errorf("%s: the entry bundle holds %q (%v)", base, bundle.Entries, err)
				}
				hashes, err := reader.ReadTile(t.Context(), 0, 0, 3)
				if err != nil {
					t.Fatal(err)
				}
				for i, body := range bodies {
					if !bytes.Equal(hashes[32*i:32*i+32], rfc6962.DefaultHasher.HashLeaf(body)) {
						t.Errorf("%s: the tile does not hold leaf hash %d", base, i)
					}
				}
			}
		})
	}
}

func verifyEntry(t *testing.T, key crypto.PublicKey, verifier signature.Verifier, tle *rekorv1.TransparencyLogEntry) {
	t.Helper()
	noteVerifier, err := rekornote.NewNoteVerifier(origin, verifier)
	if err != nil {
		t.Fatal(err)
	}
	if err := tilesverify.VerifyLogEntry(tle, noteVerifier); err != nil {
		t.Fatalf("rekor-tiles does not verify the entry: %v", err)
	}
	_, logID, err := rekornote.KeyHash(origin, key)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(tle.GetLogId().GetKeyId(), logID) {
		t.Errorf("log ID is %x, want %x", tle.GetLogId().GetKeyId(), logID)
	}
	parsed, err := sgtlog.ParseTransparencyLogEntry(tle)
	if err != nil {
		t.Fatal(err)
	}
	if err := sgtlog.ValidateEntry(parsed); err != nil {
		t.Fatalf("sigstore-go finds the entry invalid: %v", err)
	}
	if err := sgtlog.VerifyCheckpointAndInclusion(parsed, verifier, origin); err != nil {
		t.Fatalf("sigstore-go does not verify the entry: %v", err)
	}
}

func TestTheAnswersShape(t *testing.T) {
	s, c := newHouse(t, ecdsaKey(t), nil), newClient(t)
	camel := toJSON(t, request(c.blob(t, "camel")))
	snake := regexp.MustCompile(`"([a-zA-Z0-9]+)":`).ReplaceAllStringFunc(toJSON(t, request(c.blob(t, "snake"))), func(name string) string {
		return regexp.MustCompile(`[A-Z]`).ReplaceAllStringFunc(name, func(c string) string { return "_" + strings.ToLower(c) })
	})
	if !strings.Contains(snake, `"hashed_rekord_request_v002"`) {
		t.Fatalf("not snake case: %s", snake)
	}
	for _, body := range []string{camel, snake} {
		resp, answer := s.post(t, body)
		if resp.StatusCode != http.StatusCreated || resp.Header.Get("Content-Type") != "application/json" {
			t.Fatalf("%d %v %s", resp.StatusCode, resp.Header, answer)
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal([]byte(answer), &members); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"integratedTime": `"0"`, "inclusionPromise": "null"} {
			if string(members[name]) != want {
				t.Errorf("%s is %s, want %s", name, members[name], want)
			}
		}
		var kind struct{ Kind, Version string }
		if err := json.Unmarshal(members["kindVersion"], &kind); err != nil || kind.Kind != "hashedrekord" || kind.Version != "0.0.2" {
			t.Errorf("kindVersion is %s", members["kindVersion"])
		}
		var index string
		if err := json.Unmarshal(members["logIndex"], &index); err != nil {
			t.Errorf("logIndex is %s, want a string", members["logIndex"])
		}
	}
}

func TestDuplicates(t *testing.T) {
	c := newClient(t)
	t.Run("get 201 and the entry that is there", func(t *testing.T) {
		s := newHouse(t, ecdsaKey(t), nil)
		doc := toJSON(t, request(c.blob(t, "twice")))
		var indexes []int64
		for range 2 {
			resp, body := s.post(t, doc)
			var tle rekorv1.TransparencyLogEntry
			if err := protojson.Unmarshal([]byte(body), &tle); err != nil || resp.StatusCode != http.StatusCreated {
				t.Fatalf("%d %s (%v)", resp.StatusCode, body, err)
			}
			indexes = append(indexes, tle.GetLogIndex())
			s.post(t, toJSON(t, request(c.blob(t, "between"))))
		}
		if indexes[0] != indexes[1] {
			t.Errorf("indexes are %v", indexes)
		}
	})
	t.Run("get 409 and the index when asked for", func(t *testing.T) {
		s := newHouse(t, ecdsaKey(t), func(o *Options) { o.RefuseDuplicates = true })
		req := request(c.blob(t, "twice"))
		s.post(t, toJSON(t, req))
		resp, body := s.post(t, toJSON(t, req))
		if resp.StatusCode != http.StatusConflict || resp.Header.Get("x-log-index") != "0" ||
			body != `{"code":6,"message":"an equivalent entry already exists in the transparency log with index 0","details":[]}` {
			t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
		}
		var header metadata.MD
		_, err := s.grpc.CreateEntry(t.Context(), req, grpc.Header(&header))
		if status.Code(err) != codes.AlreadyExists || !slices.Equal(header.Get("x-log-index"), []string{"0"}) {
			t.Errorf("over gRPC: %v, %v", err, header)
		}
	})
}

func TestEnvelopes(t *testing.T) {
	c := newClient(t)
	subject := strings.Repeat("ab", 32)
	s := newHouse(t, ecdsaKey(t), nil)
	resp, body := s.post(t, toJSON(t, c.attestation(t, subject)))
	var tle rekorv1.TransparencyLogEntry
	if err := protojson.Unmarshal([]byte(body), &tle); err != nil || resp.StatusCode != http.StatusCreated || tle.GetKindVersion().GetKind() != "dsse" {
		t.Fatalf("%d %s (%v)", resp.StatusCode, body, err)
	}
	if !slices.Equal(s.faults.keys, []string{"sha256:" + subject}) {
		t.Errorf("keys submitted beside the entry are %q", s.faults.keys)
	}
	off := newHouse(t, ecdsaKey(t), func(o *Options) { o.RefuseDSSE = true })
	if resp, body := off.post(t, toJSON(t, c.attestation(t, subject))); resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, "takes no dsseRequestV002") {
		t.Errorf("switched off: %d %s", resp.StatusCode, body)
	}
}

func TestOverGRPC(t *testing.T) {
	key := ecdsaKey(t)
	s, c := newHouse(t, key, nil), newClient(t)
	verifier, err := signature.LoadVerifier(key.Public(), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	tle, err := s.grpc.CreateEntry(t.Context(), request(c.blob(t, "x")))
	if err != nil {
		t.Fatal(err)
	}
	verifyEntry(t, key.Public(), verifier, tle)
	if _, err := s.grpc.CreateEntry(t.Context(), &rekorpb.CreateEntryRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an empty request: %v", err)
	}
	s.faults.err = fault.New(fault.Overloaded, "queue_full", nil, "full")
	if _, err := s.grpc.CreateEntry(t.Context(), request(c.blob(t, "y"))); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "reached max pushback; retry") {
		t.Errorf("too many entries wait: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	s, c := newHouse(t, ecdsaKey(t), nil), newClient(t)
	good := toJSON(t, request(c.blob(t, "first")))
	if resp, body := s.post(t, good); resp.StatusCode != http.StatusCreated {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	forged := c.blob(t, "x")
	forged.Digest[0] ^= 1
	details := proto.Clone(request(c.blob(t, "x"))).(*rekorpb.CreateEntryRequest)
	details.GetHashedRekordRequestV002().Signature.Verifier.KeyDetails = common.PublicKeyDetails_PKIX_ECDSA_P384_SHA_384
	const entries = "POST /api/v2/log/entries"
	for _, tt := range []struct {
		name, op, body string
		status, code   int
		message        string
	}{
		{"no body", entries, "", 400, 3, "invalid request"},
		{"not JSON", entries, "{", 400, 3, "invalid request"},
		{"an empty request", entries, "{}", 400, 3, "invalid type, must be hashedrekord or dsse"},
		{"an unknown member", entries, strings.Replace(good, "{", `{"more":1,`, 1), 400, 3, "unknown field"},
		{"a member twice", entries, strings.Replace(good, `"digest":`, `"digest":"AA==","digest":`, 1), 400, 3, "duplicate field"},
		{"trailing data", entries, good + "{}", 400, 3, "invalid request"},
		{"a forged signature", entries, toJSON(t, request(forged)), 400, 3, "verifying signature"},
		{"key details that are not the key's default", entries, toJSON(t, details), 400, 3, "keyDetails must be PKIX_ECDSA_P256_SHA_256 for this key, not PKIX_ECDSA_P384_SHA_384"},
		{"a body over the limit", entries, `{"x":"` + strings.Repeat("x", 1<<20) + `"}`, 413, 8, "Request Entity Too Large: the body is over 1048576 bytes"},
		{"the wrong method", "GET /api/v2/log/entries", "", 405, 12, "Method Not Allowed"},
		{"writing a tile", "PUT /tile/0/000", "", 405, 12, "Method Not Allowed"},
		{"a tile beyond the tree", "GET /tile/0/000", "", 404, 5, "does not reach there"},
		{"a partial tile beyond the tree", "GET /api/v2/tile/0/000.p/2", "", 404, 5, "does not reach there"},
		{"a level beyond the tree", "GET /tile/1/000.p/1", "", 404, 5, "does not reach there"},
		{"a bundle beyond the tree", "GET /tile/entries/001.p/1", "", 404, 5, "does not reach there"},
		{"an empty partial tile", "GET /tile/0/000.p/0", "", 404, 5, "Not Found"},
		{"a full tile as partial", "GET /tile/0/000.p/256", "", 404, 5, "Not Found"},
		{"a second name of a tile", "GET /tile/00/000.p/1", "", 404, 5, "Not Found"},
		{"a path out of the tree", "GET /tile/entries/../../checkpoint", "", 404, 5, "Not Found"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			method, path, _ := strings.Cut(tt.op, " ")
			resp, body := s.call(t, method, path, tt.body)
			var got struct {
				Code    int
				Message string
				Details []any
			}
			if err := json.Unmarshal([]byte(body), &got); err != nil || resp.StatusCode != tt.status || got.Code != tt.code || !strings.Contains(got.Message, tt.message) || got.Details == nil {
				t.Errorf("got %d %s, want %d, code %d and %q", resp.StatusCode, body, tt.status, tt.code, tt.message)
			}
			if (resp.Header.Get("Allow") != "") != (tt.status == http.StatusMethodNotAllowed) {
				t.Errorf("Allow is %q", resp.Header.Get("Allow"))
			}
		})
	}
	if size := s.log.Checkpoint().Size; size != 1 {
		t.Errorf("refused submissions left %d entries, want the first one only", size)
	}
}

func TestFaultsOfTheLog(t *testing.T) {
	s, c := newHouse(t, ecdsaKey(t), nil), newClient(t)
	for _, tt := range []struct {
		name   string
		err    error
		status int
		body   string
	}{
		{"too many entries wait", fault.New(fault.Overloaded, "queue_full", nil, "full"), 503, `{"code":14,"message":"reached max pushback; retry","details":[]}`},
		{"something that nobody classified", io.ErrUnexpectedEOF, 500, `{"code":2,"message":"internal error","details":[]}`},
		{"too large an entry", fault.New(fault.TooLarge, "entry_too_large", nil, "too large"), 413, `{"code":8,"message":"too large","details":[]}`},
		{"a frozen log", fault.New(fault.Frozen, "frozen", nil, "frozen"), 405, "This log has been frozen, please switch to the latest log.\n"},
		{"a caller who left", context.Canceled, 499, `{"code":1,"message":"the client closed the request","details":[]}`},
	} {
		s.faults.err = tt.err
		resp, body := s.post(t, toJSON(t, request(c.blob(t, tt.name))))
		if resp.StatusCode != tt.status || body != tt.body {
			t.Errorf("%s: %d %s, want %d %s", tt.name, resp.StatusCode, body, tt.status, tt.body)
		}
		if retry := resp.Header.Get("Retry-After"); (retry != "") != (tt.status >= 500) {
			t.Errorf("%s: Retry-After is %q", tt.name, retry)
		}
	}
}

func TestHeadersOfReads(t *testing.T) {
	s, c := newHouse(t, ecdsaKey(t), nil), newClient(t)
	s.post(t, toJSON(t, request(c.blob(t, "x"))))
	for _, base := range []string{"", "/api/v2"} {
		for path, want := range map[string][2]string{
			"/checkpoint":           {"text/plain; charset=utf-8", "no-cache"},
			"/tile/0/000.p/1":       {"application/octet-stream", "max-age=604800, immutable"},
			"/tile/entries/000.p/1": {"application/octet-stream", "max-age=604800, immutable"},
		} {
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				resp, body := s.call(t, method, base+path, "")
				if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != want[0] || resp.Header.Get("Cache-Control") != want[1] {
					t.Errorf("%s %s%s: %d %v", method, base, path, resp.StatusCode, resp.Header)
				}
				if (body == "") != (method == http.MethodHead) {
					t.Errorf("%s %s%s: body of %d bytes", method, base, path, len(body))
				}
			}
		}
	}
}

func BenchmarkCreateEntry(b *testing.B) {
	s, c := newHouse(b, ecdsaKey(b), nil), newClient(b)
	docs := make([]string, b.N)
	for i := range docs {
		docs[i] = toJSON(b, request(c.blob(b, fmt.Sprint(i))))
	}
	var mu sync.Mutex
	next := 0
	b.SetParallelism(64)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			mu.Lock()
			doc := docs[next]
			next++
			mu.Unlock()
			if resp, body := s.post(b, doc); resp.StatusCode != http.StatusCreated {
				b.Errorf("%d %s", resp.StatusCode, body)
			}
		}
	})
}
