package trillian

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	api "github.com/google/trillian"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
)

// Options name a tree of a Trillian log server.
type Options struct {
	Address string      // host:port of the log server's gRPC listener
	TreeID  int64       // see CreateTree
	TLS     *tls.Config // nil for plain text
	// Concurrency is how many leaves are queued at the same time; 0 means 64. Trillian takes
	// one leaf in a call, and each call is a transaction of its database.
	Concurrency int
	Timeout     time.Duration // of one call with its retries; 0 means 10 s
}

const (
	defaultConcurrency = 64
	// maxMessage is the size of an answer that is still taken: a bundle of 256 entries of 65,535 bytes
	// with their hashes and times takes 17 MiB.
	maxMessage = 32 << 20
	// Trillian's server has gRPC's default policy: it hangs up on clients that ping more than once in five minutes.
	// A peer that is gone is noticed by its silence to data, after keepaliveTimeout.
	keepaliveTime    = 6 * time.Minute
	keepaliveTimeout = 20 * time.Second
	// callConfig repeats calls that reached no server, or whose transaction lost against another.
	// All of them may be repeated: a leaf that is queued twice is one leaf.
	callConfig = `{"methodConfig": [{"name": [{"service": "trillian.TrillianLog"}], "retryPolicy": {
		"maxAttempts": 4, "initialBackoff": "0.05s", "maxBackoff": "1s", "backoffMultiplier": 3,
		"retryableStatusCodes": ["UNAVAILABLE", "ABORTED"]}}]}`
)

// Tree is a log.ProofTree behind a Trillian log server. A log signer integrates what is queued, on its
// own clock (--sequencer_interval). Several processes may have one tree open and append to it.
type Tree struct {
	reader
	client      api.TrillianLogClient
	conn        *grpc.ClientConn
	concurrency int
}

// Open connects to the log server and reads the tree's root. Errors: fault.Invalid when there is no
// such tree, fault.Unavailable when there is no such server now.
func Open(ctx context.Context, o Options) (*Tree, error) {
	conn, err := dial(o)
	if err != nil {
		return nil, err
	}
	client := api.NewTrillianLogClient(conn)
	t := &Tree{
		reader: reader{server: remote{client}, treeID: o.TreeID, timeout: o.Timeout},
		client: client, conn: conn, concurrency: o.Concurrency,
	}
	if t.timeout <= 0 {
		t.timeout = defaultTimeout
	}
	if t.concurrency <= 0 {
		t.concurrency = defaultConcurrency
	}
	if _, err := t.Size(ctx); err != nil {
		switch status.Code(err) {
		case codes.NotFound:
			err = fault.New(fault.Invalid, "tree_unknown", err, "the Trillian log server at %s has no tree %d", o.Address, o.TreeID)
		case codes.FailedPrecondition:
			err = fault.New(fault.Invalid, "tree_uninitialised", err, "tree %d of the Trillian log server at %s was never initialised (InitLog)", o.TreeID, o.Address)
		}
		return nil, errors.Join(fmt.Errorf("opening tree %d at %s: %w", o.TreeID, o.Address, err), conn.Close())
	}
	return t, nil
}

// CreateTree makes a new, empty tree at the log server of o and returns its ID. name has up to 20
// characters and is for people.
func CreateTree(ctx context.Context, o Options, name string) (treeID int64, err error) {
	conn, err := dial(o)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	timeout := o.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tree, err := api.NewTrillianAdminClient(conn).CreateTree(ctx, &api.CreateTreeRequest{Tree: newTree(name)})
	if err != nil {
		return 0, fmt.Errorf("creating tree %q at %s: %w", name, o.Address, err)
	}
	_, err = api.NewTrillianLogClient(conn).InitLog(ctx, &api.InitLogRequest{LogId: tree.TreeId})
	if err != nil && status.Code(err) != codes.AlreadyExists { // a repeated call
		return 0, fmt.Errorf("initialising tree %d at %s: %w", tree.TreeId, o.Address, err)
	}
	return tree.TreeId, nil
}

// newTree is a log that writes no new root while it is idle.
func newTree(name string) *api.Tree {
	return &api.Tree{TreeState: api.TreeState_ACTIVE, TreeType: api.TreeType_LOG, DisplayName: name, MaxRootDuration: durationpb.New(0)}
}

// dial contacts nothing but o.Address: no proxy and no service configuration from DNS.
func dial(o Options) (*grpc.ClientConn, error) {
	if o.Address == "" {
		return nil, fault.New(fault.Invalid, "address_missing", nil, "no address of a Trillian log server is configured")
	}
	creds := insecure.NewCredentials()
	if o.TLS != nil {
		creds = credentials.NewTLS(o.TLS)
	}
	conn, err := grpc.NewClient(o.Address, grpc.WithTransportCredentials(creds), grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(), grpc.WithDefaultServiceConfig(callConfig),
		grpc.WithConnectParams(grpc.ConnectParams{ // the server is our own, and its clients are few
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("connecting to the Trillian log server at %q: %w", o.Address, err)
	}
	return conn, nil
}

// Close ends the connection. What is queued will be integrated.
func (t *Tree) Close() error { return t.conn.Close() }

// Append implements log.Tree. It returns nil indexes once every leaf is queued or was there before.
func (t *Tree) Append(ctx context.Context, batch []log.Submission) ([]uint64, error) {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(t.concurrency)
	for i := range batch {
		group.Go(func() error { return t.queue(groupCtx, leafOf(&batch[i])) })
	}
	if err := group.Wait(); err != nil {
		return nil, storeError(ctx, fmt.Errorf("queueing %d leaves: %w", len(batch), err))
	}
	return nil, nil
}

func (t *Tree) queue(ctx context.Context, leaf *api.LogLeaf) error {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	resp, err := t.client.QueueLeaf(ctx, &api.QueueLeafRequest{LogId: t.treeID, Leaf: leaf})
	if err != nil {
		return err
	}
	queued := status.FromProto(resp.GetQueuedLeaf().GetStatus())
	if code := queued.Code(); code != codes.OK && code != codes.AlreadyExists {
		return queued.Err()
	}
	return nil
}

// remote is a log server at the other end of a connection.
type remote struct{ client api.TrillianLogClient }

func (r remote) GetLatestSignedLogRoot(ctx context.Context, req *api.GetLatestSignedLogRootRequest) (*api.GetLatestSignedLogRootResponse, error) {
	return r.client.GetLatestSignedLogRoot(ctx, req)
}

func (r remote) GetLeavesByRange(ctx context.Context, req *api.GetLeavesByRangeRequest) (*api.GetLeavesByRangeResponse, error) {
	return r.client.GetLeavesByRange(ctx, req)
}

func (r remote) GetInclusionProof(ctx context.Context, req *api.GetInclusionProofRequest) (*api.GetInclusionProofResponse, error) {
	return r.client.GetInclusionProof(ctx, req)
}

func (r remote) GetConsistencyProof(ctx context.Context, req *api.GetConsistencyProofRequest) (*api.GetConsistencyProofResponse, error) {
	return r.client.GetConsistencyProof(ctx, req)
}

var _ log.ProofTree = (*Tree)(nil)
