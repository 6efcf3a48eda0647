// Package trillian keeps a Rekor log's tree in Trillian, whose engine makes the proofs: behind a log
// server and a log signer over gRPC (Tree), or with Trillian's own PostgreSQL storage and sequencer in
// this process (EmbeddedTree).
//
// A leaf's identity is its leaf hash, so Trillian itself drops a body that was queued before.
package trillian

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	api "github.com/google/trillian"
	"github.com/google/trillian/types"
	"github.com/transparency-dev/merkle/rfc6962"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
)

const (
	defaultTimeout = 10 * time.Second
	bundleWidth    = 256 // c2sp.org/tlog-tiles
	maxIndex       = math.MaxInt64
)

// logServer is what reading a log takes of trillian.TrillianLogServer.
type logServer interface {
	GetLatestSignedLogRoot(context.Context, *api.GetLatestSignedLogRootRequest) (*api.GetLatestSignedLogRootResponse, error)
	GetLeavesByRange(context.Context, *api.GetLeavesByRangeRequest) (*api.GetLeavesByRangeResponse, error)
	GetInclusionProof(context.Context, *api.GetInclusionProofRequest) (*api.GetInclusionProofResponse, error)
	GetConsistencyProof(context.Context, *api.GetConsistencyProofRequest) (*api.GetConsistencyProofResponse, error)
}

// reader is the reading half of both trees.
type reader struct {
	server  logServer
	treeID  int64
	timeout time.Duration // of one call
}

// TreeID is Trillian's name for the tree.
func (r *reader) TreeID() int64 { return r.treeID }

// Size implements log.Tree.
func (r *reader) Size(ctx context.Context) (uint64, error) {
	root, err := r.root(ctx)
	if err != nil {
		return 0, err
	}
	return root.TreeSize, nil
}

// Queued implements log.Tree: twins of what is queued are dropped.
func (r *reader) Queued(ctx context.Context) (uint64, error) { return r.Size(ctx) }

func (r *reader) root(ctx context.Context) (*types.LogRootV1, error) {
	callCtx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	resp, err := r.server.GetLatestSignedLogRoot(callCtx, &api.GetLatestSignedLogRootRequest{LogId: r.treeID})
	if err != nil {
		return nil, storeError(ctx, fmt.Errorf("reading the newest root: %w", err))
	}
	return parseRoot(resp.GetSignedLogRoot())
}

// parseRoot decodes Trillian's root. Its PostgreSQL storage answers with a root of size 0 and without
// a hash when the database failed: taken at its word, the log would have lost all its entries.
func parseRoot(slr *api.SignedLogRoot) (*types.LogRootV1, error) {
	root := &types.LogRootV1{}
	if err := root.UnmarshalBinary(slr.GetLogRoot()); err != nil {
		return nil, fmt.Errorf("decoding the newest root: %w", err)
	}
	if len(root.RootHash) != rfc6962.DefaultHasher.Size() {
		return nil, fault.New(fault.Unavailable, "store_unavailable", errors.New("the newest root of Trillian could not be read"),
			"the log's store does not answer now; try again")
	}
	return root, nil
}

// Bundle implements log.Tree: leaves, encoded as c2sp.org/tlog-tiles does.
func (r *reader) Bundle(ctx context.Context, index uint64, width uint8) ([]byte, error) {
	want := int(width)
	if want == 0 {
		want = bundleWidth
	}
	if index > maxIndex/bundleWidth-1 {
		return nil, fmt.Errorf("entry bundle %d: %w", index, os.ErrNotExist)
	}
	first := int64(index * bundleWidth)
	var bundle []byte
	for have := 0; have < want; {
		leaves, err := r.leaves(ctx, first+int64(have), want-have)
		if err != nil {
			return nil, err
		}
		for _, leaf := range leaves {
			if len(leaf.LeafValue) > log.MaxEntry {
				return nil, fmt.Errorf("leaf %d has %d bytes, an entry bundle takes at most %d", leaf.LeafIndex, len(leaf.LeafValue), log.MaxEntry)
			}
			bundle = binary.BigEndian.AppendUint16(bundle, uint16(len(leaf.LeafValue)))
			bundle = append(bundle, leaf.LeafValue...)
		}
		have += len(leaves)
	}
	return bundle, nil
}

// leaves returns between one and count leaves from index from on, os.ErrNotExist at the end of the tree.
func (r *reader) leaves(ctx context.Context, from int64, count int) ([]*api.LogLeaf, error) {
	callCtx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	resp, err := r.server.GetLeavesByRange(callCtx, &api.GetLeavesByRangeRequest{LogId: r.treeID, StartIndex: from, Count: int64(count)})
	if status.Code(err) == codes.OutOfRange {
		return nil, fmt.Errorf("leaf %d: %w", from, os.ErrNotExist)
	}
	if err != nil {
		return nil, storeError(ctx, fmt.Errorf("reading %d leaves from %d: %w", count, from, err))
	}
	if _, err := parseRoot(resp.GetSignedLogRoot()); err != nil {
		return nil, err
	}
	leaves := resp.GetLeaves()
	if len(leaves) == 0 {
		return nil, fmt.Errorf("leaf %d: %w", from, os.ErrNotExist)
	}
	if len(leaves) > count {
		return nil, fmt.Errorf("asked for %d leaves, Trillian returned %d", count, len(leaves))
	}
	for i, leaf := range leaves {
		if leaf.LeafIndex != from+int64(i) || !bytes.Equal(leaf.MerkleLeafHash, rfc6962.DefaultHasher.HashLeaf(leaf.LeafValue)) {
			return nil, fmt.Errorf("asked for leaf %d, Trillian returned leaf %d with hash %x, which are not that leaf's",
				from+int64(i), leaf.LeafIndex, leaf.MerkleLeafHash)
		}
	}
	return leaves, nil
}

// Inclusion implements log.ProofTree.
func (r *reader) Inclusion(ctx context.Context, index, size uint64) ([][]byte, error) {
	if index >= size || size > maxIndex {
		return nil, fault.New(fault.Invalid, "index_beyond_tree", nil, "index %d is beyond a tree of size %d", index, size)
	}
	callCtx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	resp, err := r.server.GetInclusionProof(callCtx, &api.GetInclusionProofRequest{LogId: r.treeID, LeafIndex: int64(index), TreeSize: int64(size)})
	if err != nil {
		return nil, storeError(ctx, fmt.Errorf("proving leaf %d in size %d: %w", index, size, err))
	}
	return proofOf(resp.GetSignedLogRoot(), resp.GetProof(), size)
}

// Consistency implements log.ProofTree.
func (r *reader) Consistency(ctx context.Context, first, second uint64) ([][]byte, error) {
	switch {
	case first > second || second > maxIndex:
		return nil, fault.New(fault.Invalid, "sizes_reversed", nil, "first size %d is larger than second size %d", first, second)
	case first == 0 || first == second:
		return nil, nil
	}
	callCtx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	resp, err := r.server.GetConsistencyProof(callCtx, &api.GetConsistencyProofRequest{LogId: r.treeID, FirstTreeSize: int64(first), SecondTreeSize: int64(second)})
	if err != nil {
		return nil, storeError(ctx, fmt.Errorf("proving consistency of %d and %d: %w", first, second, err))
	}
	return proofOf(resp.GetSignedLogRoot(), resp.GetProof(), second)
}

// proofOf returns the hashes of proof. Trillian leaves it out when its newest tree, root, is smaller than size.
func proofOf(root *api.SignedLogRoot, proof *api.Proof, size uint64) ([][]byte, error) {
	have, err := parseRoot(root)
	if err != nil {
		return nil, err
	}
	if proof == nil || have.TreeSize < size {
		return nil, fault.New(fault.Invalid, "size_beyond_tree", nil, "size %d is beyond the tree of size %d", size, have.TreeSize)
	}
	return proof.GetHashes(), nil
}

// storeError tells an end of ctx, which is the caller's, and a mistake of ours from a fault of Trillian or its database.
func storeError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), err)
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.NotFound, codes.PermissionDenied, codes.Unauthenticated, codes.FailedPrecondition, codes.Unimplemented:
		return err
	case codes.ResourceExhausted:
		return fault.New(fault.Overloaded, "store_quota", err, "too many entries wait for the log's store; try again")
	default: // Unknown is what Trillian makes of its database's errors
		return fault.New(fault.Unavailable, "store_unavailable", err, "the log's store does not answer now; try again")
	}
}

// leafOf is the leaf of a submission.
func leafOf(s *log.Submission) *api.LogLeaf {
	hash := rfc6962.DefaultHasher.HashLeaf(s.Data)
	return &api.LogLeaf{LeafValue: s.Data, MerkleLeafHash: hash, LeafIdentityHash: hash}
}
