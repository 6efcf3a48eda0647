package trillian_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	api "github.com/google/trillian"
	"github.com/google/trillian/types"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/trillian"
)

func submissions(entries ...string) []log.Submission {
	subs := make([]log.Submission, len(entries))
	for i, e := range entries {
		subs[i] = log.Submission{Identity: [32]byte(rfc6962.DefaultHasher.HashLeaf([]byte(e))), Data: []byte(e)}
	}
	return subs
}

func openEmbedded(t *testing.T, o trillian.EmbeddedOptions) *trillian.EmbeddedTree {
	t.Helper()
	tree, err := trillian.OpenEmbedded(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return tree
}

func add(t *testing.T, tree log.Tree, entries ...string) []uint64 {
	t.Helper()
	indexes, err := tree.Append(t.Context(), submissions(entries...))
	if err != nil {
		t.Fatal(err)
	}
	return indexes
}

func sizeOf(t *testing.T, tree log.Tree) uint64 {
	t.Helper()
	size, err := tree.Size(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return size
}

func await(t *testing.T, tree log.Tree, size uint64) {
	t.Helper()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for end := time.After(30 * time.Second); sizeOf(t, tree) < size; {
		select {
		case <-poll.C:
		case <-end:
			t.Fatalf("the size is %d, want %d", sizeOf(t, tree), size)
		}
	}
}

func TestTwinsAreOneLeaf(t *testing.T) {
	embedded := openEmbedded(t, trillian.EmbeddedOptions{URI: services.Postgres(t), Name: "twins"})
	first := add(t, embedded, "a", "b", "c")
	again := add(t, embedded, "c", "d", "a", "d")
	if again[0] != first[2] || again[2] != first[0] || again[1] != again[3] || again[1] != 3 || sizeOf(t, embedded) != 4 {
		t.Errorf("a, b, c stand at %v; c, d, a, d at %v; the size is %d", first, again, sizeOf(t, embedded))
	}
	if one := add(t, embedded, "b"); one[0] != first[1] {
		t.Errorf("b stands at %d and at %v", first[1], one)
	}

	service := services.Trillian(t, services.Postgres(t))
	o := trillian.Options{Address: service.Address}
	var err error
	if o.TreeID, err = trillian.CreateTree(t.Context(), o, "twins"); err != nil {
		t.Fatal(err)
	}
	remote, err := trillian.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	add(t, remote, "a", "b", "c")
	add(t, remote, "c", "d", "a", "d")
	await(t, remote, 4)
	add(t, remote, "b", "e")
	await(t, remote, 5)
	if size := sizeOf(t, remote); size != 5 {
		t.Errorf("the tree has size %d, want 5", size)
	}
}

// TestALogServerServesAnEmbeddedTree holds our schema and our way to append against Trillian's own programs.
func TestALogServerServesAnEmbeddedTree(t *testing.T) {
	uri := services.Postgres(t)
	embedded := openEmbedded(t, trillian.EmbeddedOptions{URI: uri, Name: "shared"})
	entries := make([]string, 300)
	for i := range entries {
		entries[i] = fmt.Sprint("entry ", i)
	}
	indexes := add(t, embedded, entries...)
	service := services.Trillian(t, uri) // finds the tables
	remote, err := trillian.Open(t.Context(), trillian.Options{Address: service.Address, TreeID: embedded.TreeID()})
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	same := func(size uint64) {
		t.Helper()
		for bundle := range (size + 255) / 256 {
			width := uint8(min(size-256*bundle, 256) % 256)
			ours, err := embedded.Bundle(t.Context(), bundle, width)
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := remote.Bundle(t.Context(), bundle, width)
			if err != nil || !bytes.Equal(ours, theirs) {
				t.Errorf("bundle %d differs, %v", bundle, err)
			}
		}
		for _, index := range []uint64{0, 7, size - 1} {
			ours, err := embedded.Inclusion(t.Context(), index, size)
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := remote.Inclusion(t.Context(), index, size)
			if err != nil || !slices.EqualFunc(ours, theirs, bytes.Equal) {
				t.Errorf("proofs of leaf %d differ, %v", index, err)
			}
		}
	}
	same(300)
	add(t, remote, "queued over gRPC", "and another") // in batches of one, by Trillian's server
	await(t, embedded, 302)
	same(302)
	// Both integrate now: the signer what it finds, and we.
	more := add(t, embedded, "embedded beside a signer", entries[5])
	if more[1] != indexes[5] || more[0] != 302 {
		t.Errorf("a new leaf and a twin of %d stand at %v", indexes[5], more)
	}
	same(303)
}

func TestATreeOnTrillianSchemaIsServed(t *testing.T) {
	uri := services.Postgres(t)
	service := services.Trillian(t, uri) // makes the tables as Trillian's file does
	service.Kill()
	tree := openEmbedded(t, trillian.EmbeddedOptions{URI: uri, Name: "theirs"})
	if got := add(t, tree, "a", "b"); len(got) != 2 || sizeOf(t, tree) != 2 {
		t.Errorf("indexes %v in a tree of size %d", got, sizeOf(t, tree))
	}
	add(t, tree, "b", "c")
	if size := sizeOf(t, tree); size != 3 {
		t.Errorf("the size is %d, want 3", size)
	}
	path, err := tree.Inclusion(t.Context(), 0, 1)
	if err != nil || len(path) != 0 {
		t.Errorf("the only leaf's path is %x, %v", path, err)
	}
}

func TestManyProcessesBeginATree(t *testing.T) {
	uri := services.Postgres(t)
	ids := make([]int64, 6)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			tree, err := trillian.OpenEmbedded(t.Context(), trillian.EmbeddedOptions{URI: uri, Name: "one", MaxConns: 2})
			if err != nil {
				t.Error(err)
				return
			}
			defer tree.Close()
			ids[i] = tree.TreeID()
			if _, err := tree.Append(t.Context(), submissions(fmt.Sprint("from ", i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	tree := openEmbedded(t, trillian.EmbeddedOptions{URI: uri, TreeID: ids[0]})
	if slices.Max(ids) != slices.Min(ids) || sizeOf(t, tree) != 6 {
		t.Errorf("the processes opened trees %v, the first has size %d", ids, sizeOf(t, tree))
	}
}

func TestAClockThatIsSteppedBackDoesNotStopTheTree(t *testing.T) {
	now := time.Now()
	o := trillian.EmbeddedOptions{URI: services.Postgres(t), Name: "clock", Now: func() time.Time { return now }}
	tree := openEmbedded(t, o)
	add(t, tree, "a")
	now = now.Add(-time.Hour)
	add(t, tree, "b", "c")
	now = now.Add(-24 * time.Hour)
	tree = openEmbedded(t, o) // a new process knows nothing of the time that was
	if got := add(t, tree, "d"); got[0] != 3 {
		t.Errorf("the fourth leaf stands at %v", got)
	}
	now = now.Add(25*time.Hour + 30*time.Minute) // another process's clock, half an hour ahead
	add(t, openEmbedded(t, o), "e")
	now = now.Add(-30 * time.Minute)
	add(t, tree, "f", "e")
	if size := sizeOf(t, tree); size != 6 {
		t.Errorf("the size is %d, want 6", size)
	}
}

// TestWhatWasQueuedBeforeIsIntegrated is a process that died between the two halves of an append.
func TestWhatWasQueuedBeforeIsIntegrated(t *testing.T) {
	uri := services.Postgres(t)
	service := services.Trillian(t, uri, "--sequencer_interval=1h") // a signer that is late
	o := trillian.Options{Address: service.Address}
	var err error
	if o.TreeID, err = trillian.CreateTree(t.Context(), o, "late"); err != nil {
		t.Fatal(err)
	}
	remote, err := trillian.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	add(t, remote, "a", "b")
	embedded := openEmbedded(t, trillian.EmbeddedOptions{URI: uri, TreeID: o.TreeID})
	indexes := add(t, embedded, "c", "b")
	if size := sizeOf(t, embedded); size != 3 || indexes[0] == indexes[1] || max(indexes[0], indexes[1]) > 2 {
		t.Errorf("c and b stand at %v in a tree of size %d", indexes, size)
	}
}

func TestEmbeddedOptionsAreChecked(t *testing.T) {
	uri := services.Postgres(t)
	for reason, o := range map[string]trillian.EmbeddedOptions{
		"tree_missing":         {URI: uri},
		"postgres_uri_invalid": {URI: "postgres://u:hunter2@[/d", Name: "x"},
		"tree_unknown":         {URI: uri, TreeID: 4711},
		"postgres_not_durable": {URI: services.StartPostgres(t, "synchronous_commit=off").Database(t), Name: "x"},
	} {
		_, err := trillian.OpenEmbedded(t.Context(), o)
		if fault.KindOf(err) != fault.Invalid || fault.ReasonOf(err) != reason || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", reason, err)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	if _, err := trillian.Open(t.Context(), trillian.Options{TreeID: 1}); fault.ReasonOf(err) != "address_missing" {
		t.Errorf("no address: %v", err)
	}
	service := services.Trillian(t, services.Postgres(t))
	if _, err := trillian.Open(t.Context(), trillian.Options{Address: service.Address, TreeID: 4711}); fault.ReasonOf(err) != "tree_unknown" {
		t.Errorf("an unknown tree: %v", err)
	}
	conn, err := grpc.NewClient(service.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tree, err := api.NewTrillianAdminClient(conn).CreateTree(t.Context(), &api.CreateTreeRequest{Tree: &api.Tree{
		TreeState: api.TreeState_ACTIVE, TreeType: api.TreeType_LOG, MaxRootDuration: durationpb.New(0)}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trillian.Open(t.Context(), trillian.Options{Address: service.Address, TreeID: tree.TreeId}); fault.ReasonOf(err) != "tree_uninitialised" {
		t.Errorf("a tree without InitLog: %v", err)
	}
	service.Kill()
	if _, err := trillian.Open(t.Context(), trillian.Options{Address: service.Address, TreeID: tree.TreeId, Timeout: 2 * time.Second}); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("a server that is gone: %v", err)
	}
}

// liar is a log server that answers what it is told to.
type liar struct {
	api.UnimplementedTrillianLogServer
	root   *types.LogRootV1
	leaves []*api.LogLeaf
	queue  error
}

func (l *liar) slr() *api.SignedLogRoot {
	raw, err := l.root.MarshalBinary()
	if err != nil {
		panic(err) // the roots of the tests below are encodable
	}
	return &api.SignedLogRoot{LogRoot: raw}
}

func (l *liar) GetLatestSignedLogRoot(context.Context, *api.GetLatestSignedLogRootRequest) (*api.GetLatestSignedLogRootResponse, error) {
	return &api.GetLatestSignedLogRootResponse{SignedLogRoot: l.slr()}, nil
}

func (l *liar) GetLeavesByRange(context.Context, *api.GetLeavesByRangeRequest) (*api.GetLeavesByRangeResponse, error) {
	return &api.GetLeavesByRangeResponse{SignedLogRoot: l.slr(), Leaves: l.leaves}, nil
}

func (l *liar) GetInclusionProof(context.Context, *api.GetInclusionProofRequest) (*api.GetInclusionProofResponse, error) {
	return &api.GetInclusionProofResponse{SignedLogRoot: l.slr()}, nil
}

func (l *liar) QueueLeaf(context.Context, *api.QueueLeafRequest) (*api.QueueLeafResponse, error) {
	return &api.QueueLeafResponse{QueuedLeaf: &api.QueuedLogLeaf{}}, l.queue
}

func TestAServerThatErrsIsNotBelieved(t *testing.T) {
	leaf := func(index int64, value string) *api.LogLeaf {
		return &api.LogLeaf{LeafIndex: index, LeafValue: []byte(value), MerkleLeafHash: rfc6962.DefaultHasher.HashLeaf([]byte(value))}
	}
	l := &liar{root: &types.LogRootV1{TreeSize: 2, RootHash: make([]byte, 32)}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	api.RegisterTrillianLogServer(server, l)
	go server.Serve(ln) // ends with Stop
	defer server.Stop()
	tree, err := trillian.Open(t.Context(), trillian.Options{Address: ln.Addr().String(), TreeID: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()

	l.root = &types.LogRootV1{} // as Trillian's PostgreSQL storage answers when its query failed
	if size, err := tree.Size(t.Context()); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("a root without a hash: size %d, %v", size, err)
	}
	if raw, err := tree.Bundle(t.Context(), 0, 1); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("a root without a hash: bundle %q, %v", raw, err)
	}
	l.root = &types.LogRootV1{TreeSize: 2, RootHash: make([]byte, 32)}
	forged := leaf(0, "x")
	forged.LeafValue = []byte("y")
	for name, leaves := range map[string][]*api.LogLeaf{
		"a leaf that is not the one":  {leaf(1, "x"), leaf(2, "y")},
		"a leaf of another hash":      {forged, leaf(1, "y")},
		"more than was asked for":     {leaf(0, "x"), leaf(1, "y"), leaf(2, "z")},
		"a leaf that is too long":     {leaf(0, strings.Repeat("x", log.MaxEntry+1)), leaf(1, "y")},
		"leaves that leave something": {leaf(0, "x"), leaf(2, "y")},
	} {
		l.leaves = leaves
		if raw, err := tree.Bundle(t.Context(), 0, 2); err == nil {
			t.Errorf("%s: bundle %q", name, raw)
		}
	}
	if path, err := tree.Inclusion(t.Context(), 0, 2); err == nil {
		t.Errorf("an answer without proof: %x", path)
	}
	l.queue = status.Error(codes.ResourceExhausted, "quota")
	if _, err := tree.Append(t.Context(), submissions("x")); fault.KindOf(err) != fault.Overloaded {
		t.Errorf("a quota that is used up: %v", err)
	}
}

func TestTLSIsVerified(t *testing.T) {
	web := httptest.NewTLSServer(nil) // for its certificate
	defer web.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&web.TLS.Certificates[0])))
	api.RegisterTrillianLogServer(server, &liar{root: &types.LogRootV1{TreeSize: 2, RootHash: make([]byte, 32)}})
	go server.Serve(ln) // ends with Stop
	defer server.Stop()
	trusted := x509.NewCertPool()
	trusted.AddCert(web.Certificate())
	o := trillian.Options{Address: ln.Addr().String(), TreeID: 1, TLS: &tls.Config{RootCAs: trusted}, Timeout: 5 * time.Second}
	tree, err := trillian.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if size := sizeOf(t, tree); size != 2 {
		t.Errorf("the size is %d, want 2", size)
	}
	for name, config := range map[string]*tls.Config{"a certificate of nobody": {RootCAs: x509.NewCertPool()}, "no TLS": nil} {
		o.TLS = config
		if _, err := trillian.Open(t.Context(), o); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

func TestConsistencyOfNothing(t *testing.T) {
	tree := openEmbedded(t, trillian.EmbeddedOptions{URI: services.Postgres(t), Name: "small"})
	add(t, tree, "a", "b", "c")
	for _, sizes := range [][2]uint64{{0, 3}, {3, 3}, {0, 0}} {
		if path, err := tree.Consistency(t.Context(), sizes[0], sizes[1]); err != nil || len(path) != 0 {
			t.Errorf("consistency of %v: %x, %v", sizes, path, err)
		}
	}
	if _, err := tree.Consistency(t.Context(), 3, 2); fault.KindOf(err) != fault.Invalid {
		t.Errorf("reversed sizes: %v", err)
	}
	if _, err := tree.Inclusion(t.Context(), 3, 3); fault.KindOf(err) != fault.Invalid {
		t.Errorf("an index beyond the tree: %v", err)
	}
	path, err := tree.Consistency(t.Context(), 1, 3)
	if err != nil {
		t.Fatal(err)
	}
	hash := func(i uint64) []byte {
		raw, err := tree.Bundle(t.Context(), 0, 3)
		if err != nil {
			t.Fatal(err)
		}
		return rfc6962.DefaultHasher.HashLeaf(raw[3*i+2 : 3*i+3])
	}
	root := rfc6962.DefaultHasher.HashChildren(rfc6962.DefaultHasher.HashChildren(hash(0), hash(1)), hash(2))
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, 1, 3, path, hash(0), root); err != nil {
		t.Error(err)
	}
}
