package rekor1

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/go-chi/chi/v5"
	rekorclient "github.com/sigstore/rekor/pkg/client"
	"github.com/sigstore/rekor/pkg/generated/client/entries"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/util"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/entry"
	"github.com/attestry/attestry/pkg/log/entry/ijson"
	"github.com/attestry/attestry/pkg/log/index"
	"github.com/attestry/attestry/pkg/log/tiles"
)

// openShard is a tree that begins at a virtual index, with a key of its own.
func openShard(t testing.TB, treeID int64, first uint64) (*log.Log, *index.Index) {
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
		Kind: log.Rekor1, Label: "rekor1", Origin: fmt.Sprintf("localhost - %d", treeID), Name: "localhost", TreeID: treeID,
		FirstIndex: first, Dir: dir, Tree: tree, Key: key, Fence: fence, Logger: logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(t.Context(), index.Options{URI: "sqlite:" + filepath.Join(dir, "index.db"), Keys: entry.Keys, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	followed := make(chan struct{})
	go func() { // ends with cancel
		defer close(followed)
		x.Follow(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		<-followed
		x.Close()
		l.Close()
		tree.Close()
		fence.Close()
	})
	return l, x
}

// sharded is an API over trees that follow each other.
type sharded struct {
	service
	handler *Handler
	shards  []Shard
	logs    []*log.Log
}

func newSharded(t testing.TB) *sharded {
	t.Helper()
	l, x := openShard(t, treeID, 0)
	s := &sharded{shards: []Shard{{Log: l, Index: x}}, logs: []*log.Log{l}}
	h, err := New(Options{Shards: s.shards, Body: limit.Body{Max: 1 << 20}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	r := chi.NewRouter()
	h.Routes(r)
	s.handler, s.server = h, httptest.NewServer(r)
	t.Cleanup(s.server.Close)
	return s
}

// next freezes the active shard and puts another behind it, as a cut-over does.
func (s *sharded) next(t testing.TB) {
	t.Helper()
	if _, err := s.logs[len(s.logs)-1].Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	var first uint64
	for _, l := range s.logs {
		first += l.Checkpoint().Size
	}
	l, x := openShard(t, treeID+int64(len(s.logs)), first)
	s.shards, s.logs = append(s.shards, Shard{Log: l, Index: x}), append(s.logs, l)
	if err := s.handler.SetShards(s.shards, false); err != nil {
		t.Fatal(err)
	}
}

type entryAnswer struct {
	LogID, Body    string
	LogIndex       uint64
	IntegratedTime int64
	Verification   struct {
		InclusionProof struct {
			Checkpoint         string
			LogIndex, TreeSize uint64
			Hashes             []string
		}
		SignedEntryTimestamp string
	}
}

func (s *sharded) create(t testing.TB, doc string) (string, entryAnswer) {
	t.Helper()
	resp, body := s.post(t, "/api/v1/log/entries", doc)
	var got map[string]entryAnswer
	if err := json.Unmarshal([]byte(body), &got); err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	id := resp.Header.Get("ETag")
	return id, got[id]
}

// TestThreeShards walks reference section 2 over an API of three trees.
func TestThreeShards(t *testing.T) {
	s, c := newSharded(t), newClient(t)
	rekor, err := rekorclient.GetRekorClient(s.server.URL, rekorclient.WithRetryCount(0))
	if err != nil {
		t.Fatal(err)
	}
	everywhere := c.blob(t, "in every shard")
	var ids []string // by virtual index
	sizes := []int{2, 3, 2}
	for shard, size := range sizes {
		if shard > 0 {
			s.next(t)
		}
		for i := range size {
			doc := everywhere
			if i > 0 {
				doc = c.blob(t, fmt.Sprint(shard, i))
			}
			id, got := s.create(t, toJSON(t, doc))
			if want := uint64(len(ids)); got.LogIndex != want || got.Verification.InclusionProof.LogIndex != uint64(i) {
				t.Errorf("entry %d of shard %d has logIndex %d and %d in its tree, want %d and %d", i, shard, got.LogIndex,
					got.Verification.InclusionProof.LogIndex, want, i)
			}
			ids = append(ids, id)
		}
		// Duplicates are told per active tree.
		if resp, body := s.post(t, "/api/v1/log/entries", toJSON(t, everywhere)); resp.StatusCode != http.StatusConflict || !strings.HasSuffix(resp.Header.Get("Location"), ids[len(ids)-size]) {
			t.Errorf("a duplicate in shard %d: %d %s", shard, resp.StatusCode, body)
		}
	}

	virtual := 0
	for shard, size := range sizes {
		l := s.logs[shard]
		verifier, err := signature.LoadVerifier(l.PublicKey(), crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		for range size {
			id := ids[virtual]
			if !strings.HasPrefix(id, fmt.Sprintf("%016x", l.TreeID())) {
				t.Errorf("entry %d has ID %s, want the tree ID of shard %d before it", virtual, id, shard)
			}
			byIndex, err := rekor.Entries.GetLogEntryByIndex(entries.NewGetLogEntryByIndexParams().WithLogIndex(int64(virtual)))
			if err != nil {
				t.Fatal(err)
			}
			byID, err := rekor.Entries.GetLogEntryByUUID(entries.NewGetLogEntryByUUIDParams().WithEntryUUID(id))
			if err != nil {
				t.Fatal(err)
			}
			for _, read := range []models.LogEntry{byIndex.Payload, byID.Payload} {
				anon, ok := read[id]
				if !ok || *anon.LogIndex != int64(virtual) {
					t.Fatalf("entry %d reads as %+v", virtual, read)
				}
				verifyEntry(t, &service{log: l}, verifier, anon)
			}
			virtual++
		}
	}
	if resp, _ := s.call(t, http.MethodGet, "/api/v1/log/entries?logIndex=7", "", ""); resp.StatusCode != http.StatusNotFound {
		t.Errorf("an index beyond the active tree: %d", resp.StatusCode)
	}

	t.Run("a UUID is found in the active shard first", func(t *testing.T) {
		_, body := s.call(t, http.MethodGet, "/api/v1/log/entries/"+ids[0][16:], "", "")
		var got map[string]entryAnswer
		if err := json.Unmarshal([]byte(body), &got); err != nil || len(got) != 1 || got[ids[5]].LogIndex != 5 {
			t.Errorf("%v %s", err, body)
		}
		_, body = s.call(t, http.MethodGet, "/api/v1/log/entries/"+ids[1][16:], "", "")
		got = nil
		if err := json.Unmarshal([]byte(body), &got); err != nil || got[ids[1]].LogIndex != 1 {
			t.Errorf("one of the oldest shard alone: %v %s", err, body)
		}
	})
	t.Run("an entry ID is looked up in its tree only", func(t *testing.T) {
		for id, want := range map[string]int{
			ids[0][:16] + ids[6][16:]:                    404, // an entry of another tree
			fmt.Sprintf("%016x", 12345) + ids[0][16:]:    404,
			strings.Repeat("0", 16) + ids[0][16:]:        400,
			"ffffffffffffffff" + ids[0][16:]:             400,
			fmt.Sprintf("%016x", treeID+1) + ids[2][16:]: 200,
		} {
			if resp, body := s.call(t, http.MethodGet, "/api/v1/log/entries/"+id, "", ""); resp.StatusCode != want {
				t.Errorf("%s: %d %s, want %d", id, resp.StatusCode, body, want)
			}
		}
	})
	t.Run("retrieve looks into every shard, newest first", func(t *testing.T) {
		for query, want := range map[string][]string{
			`{"entryUUIDs":["` + ids[0][16:] + `"]}`:                           {ids[5], ids[2], ids[0]},
			`{"entries":[` + toJSON(t, everywhere) + `]}`:                      {ids[5], ids[2], ids[0]},
			`{"entryUUIDs":["` + ids[2] + `"],"logIndexes":[0,6,7,1]}`:         {ids[2], ids[0], ids[6], ids[1]},
			`{"entryUUIDs":["` + fmt.Sprintf("%016x", 5) + ids[0][16:] + `"]}`: {},
		} {
			resp, body := s.post(t, "/api/v1/log/entries/retrieve", query)
			var got []map[string]entryAnswer
			if err := json.Unmarshal([]byte(body), &got); err != nil || resp.StatusCode != http.StatusOK || len(got) != len(want) {
				t.Fatalf("%s: %d %s", query, resp.StatusCode, body)
			}
			for i, id := range want {
				if _, ok := got[i][id]; !ok {
					t.Errorf("%s: answer %d is %v, want %s", query, i, got[i], id)
				}
			}
		}
	})
	t.Run("log info has the active tree and the inactive ones, signed once", func(t *testing.T) {
		var infos []string
		for range 2 {
			info, err := rekor.Tlog.GetLogInfo(nil)
			if err != nil {
				t.Fatal(err)
			}
			if *info.Payload.TreeID != fmt.Sprint(treeID+2) || *info.Payload.TreeSize != 2 || len(info.Payload.InactiveShards) != 2 {
				t.Fatalf("%+v", info.Payload)
			}
			for i, shard := range info.Payload.InactiveShards {
				var cp util.SignedCheckpoint
				if err := cp.UnmarshalText([]byte(*shard.SignedTreeHead)); err != nil {
					t.Fatal(err)
				}
				verifier, err := signature.LoadVerifier(s.logs[i].PublicKey(), crypto.SHA256)
				if err != nil {
					t.Fatal(err)
				}
				if !cp.Verify(verifier) || *shard.TreeID != fmt.Sprint(treeID+i) || *shard.TreeSize != int64(sizes[i]) || cp.Size != uint64(sizes[i]) {
					t.Errorf("inactive shard %d is %+v", i, shard)
				}
			}
			infos = append(infos, toJSON(t, info.Payload.InactiveShards))
		}
		if infos[0] != infos[1] {
			t.Error("inactive shards are signed anew")
		}
	})
	t.Run("proof and publicKey take a tree ID", func(t *testing.T) {
		for i, l := range s.logs {
			resp, body := s.call(t, http.MethodGet, fmt.Sprintf("/api/v1/log/proof?firstSize=1&lastSize=2&treeID=%d", l.TreeID()), "", "")
			if root := fmt.Sprintf("%x", l.Checkpoint().Root); resp.StatusCode != http.StatusOK || !strings.Contains(body, root) {
				t.Errorf("proof in shard %d: %d %s, want root %s", i, resp.StatusCode, body, root)
			}
			if resp, body := s.call(t, http.MethodGet, fmt.Sprintf("/api/v1/log/proof?lastSize=4&treeID=%d", l.TreeID()), "", ""); resp.StatusCode != http.StatusBadRequest ||
				!strings.Contains(body, fmt.Sprintf("(4) was greater than what is currently observable(%d)", sizes[i])) {
				t.Errorf("proof beyond shard %d: %d %s", i, resp.StatusCode, body)
			}
			_, key := s.call(t, http.MethodGet, fmt.Sprintf("/api/v1/log/publicKey?treeID=%d", l.TreeID()), "", "")
			if want := string(s.handler.shards.Load().list[i].publicKey); key != want || i > 0 && want == string(s.handler.shards.Load().list[0].publicKey) {
				t.Errorf("key of shard %d is %s", i, key)
			}
		}
		for _, path := range []string{"/api/v1/log/proof?lastSize=1&treeID=5", "/api/v1/log/publicKey?treeID=5"} {
			if resp, _ := s.call(t, http.MethodGet, path, "", ""); resp.StatusCode != http.StatusBadRequest {
				t.Errorf("%s: %d", path, resp.StatusCode)
			}
		}
		if resp, body := s.call(t, http.MethodGet, "/api/v1/log/proof?firstSize=1&lastSize=2", "", ""); resp.StatusCode != http.StatusOK || !strings.Contains(body, fmt.Sprintf("%x", s.logs[2].Checkpoint().Root)) {
			t.Errorf("proof of the active tree: %d %s", resp.StatusCode, body)
		}
	})
	t.Run("a search finds entries of every shard", func(t *testing.T) {
		for _, shard := range s.shards {
			if err := shard.Index.(*index.Index).CaughtUp(t.Context(), shard.Log.Checkpoint().Size); err != nil {
				t.Fatal(err)
			}
		}
		sum := sha256.Sum256([]byte("in every shard"))
		_, body := s.post(t, "/api/v1/index/retrieve", fmt.Sprintf(`{"hash":"sha256:%x"}`, sum))
		if want := toJSON(t, []string{ids[0], ids[2], ids[5]}); body != want {
			t.Errorf("got %s, want %s", body, want)
		}
	})
	t.Run("without an active shard submissions get 405 and reads go on", func(t *testing.T) {
		if _, err := s.logs[2].Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.handler.SetShards(s.shards, true); err != nil {
			t.Fatal(err)
		}
		resp, body := s.post(t, "/api/v1/log/entries", toJSON(t, c.blob(t, "too late")))
		if want := `{"code":405,"message":"This log has been frozen, please switch to the latest log."}`; resp.StatusCode != http.StatusMethodNotAllowed || body != want || resp.Header.Get("Allow") != "GET" {
			t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
		}
		for i, id := range ids {
			if resp, body := s.call(t, http.MethodGet, fmt.Sprintf("/api/v1/log/entries?logIndex=%d", i), "", ""); resp.StatusCode != http.StatusOK || !strings.Contains(body, id) {
				t.Errorf("entry %d: %d %s", i, resp.StatusCode, body)
			}
		}
	})
}

// TestNoWriteFailsInACutOver has writers run through two cut-overs.
func TestNoWriteFailsInACutOver(t *testing.T) {
	s := newSharded(t)
	const writers, each = 8, 20
	type written struct {
		id    string
		index uint64
	}
	results := make(chan written, writers*each)
	var wg sync.WaitGroup
	half := make(chan struct{}, writers*each)
	for w := range writers {
		wg.Go(func() {
			c := newClient(t)
			for i := range each {
				resp, body := s.post(t, "/api/v1/log/entries", toJSON(t, c.blob(t, fmt.Sprint(w, i))))
				var got map[string]entryAnswer
				if err := json.Unmarshal([]byte(body), &got); err != nil || resp.StatusCode != http.StatusCreated {
					t.Errorf("writer %d, entry %d: %d %s", w, i, resp.StatusCode, body)
					return
				}
				id := resp.Header.Get("ETag")
				results <- written{id, got[id].LogIndex}
				half <- struct{}{}
			}
		})
	}
	for range 2 {
		for range writers * each / 4 {
			<-half
		}
		s.next(t)
	}
	wg.Wait()
	close(results)
	trees := map[string]int{}
	seen := map[uint64]bool{}
	for r := range results {
		if seen[r.index] {
			t.Errorf("index %d was given twice", r.index)
		}
		seen[r.index] = true
		trees[r.id[:16]]++
		if _, body := s.call(t, http.MethodGet, fmt.Sprintf("/api/v1/log/entries?logIndex=%d", r.index), "", ""); !strings.Contains(body, r.id) {
			t.Errorf("entry %d is not %s: %s", r.index, r.id, body)
		}
	}
	if len(trees) != 3 || len(seen) != writers*each {
		t.Errorf("%d entries in trees %v, want %d in three", len(seen), trees, writers*each)
	}
}

func TestWhatShardsMustBe(t *testing.T) {
	a, ax := openShard(t, treeID, 0)
	b, _ := openShard(t, treeID, 0)
	c, _ := openShard(t, treeID+1, 0)
	for name, tt := range map[string]struct {
		shards []Shard
		want   string
	}{
		"at least one":               {nil, "at least one shard"},
		"trees of their own":         {[]Shard{{Log: a, Index: ax}, {Log: b, Index: ax}}, "two shards have tree ID"},
		"searched all or none":       {[]Shard{{Log: a, Index: ax}, {Log: c}}, "a search would miss entries"},
		"a log each, not an absence": {[]Shard{{}}, "has no log"},
	} {
		if _, err := New(Options{Shards: tt.shards, Logger: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	// A SET for an index of another shard is not signed, whatever the handler believes.
	late, _ := openShard(t, treeID+2, 10)
	cl := newClient(t)
	document, err := ijson.Parse([]byte(toJSON(t, cl.blob(t, "x"))))
	if err != nil {
		t.Fatal(err)
	}
	e, err := entry.Propose(entry.Kinds{}, document)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := late.Add(t.Context(), log.Submission{Identity: e.LeafHash, Data: e.Body}); err != nil {
		t.Fatal(err)
	}
	for index, ok := range map[uint64]bool{0: false, 9: false, 10: true, 11: false} {
		if _, err := late.SignSET(t.Context(), index, e.Body, 1); (err == nil) != ok || err != nil && fault.KindOf(err) != fault.Internal {
			t.Errorf("SET for index %d: %v", index, err)
		}
	}
}
