package ct_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	stdx509 "crypto/x509"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	ctgo "github.com/google/certificate-transparency-go"
	cttls "github.com/google/certificate-transparency-go/tls"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
)

// memoryLog is a log.CTPlain in memory. The reference encodes what it signs, and the reference's
// tree makes its proofs.
type memoryLog struct {
	key *ecdsa.PrivateKey
	id  [32]byte

	mu     sync.Mutex // guards what follows
	tree   *testonly.Tree
	leaves []log.Leaf
	known  map[[32]byte]uint64 // index by identity
}

func newMemoryLog(key *ecdsa.PrivateKey) *memoryLog {
	spki, err := stdx509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		panic(err)
	}
	return &memoryLog{key: key, id: sha256.Sum256(spki), tree: testonly.New(rfc6962.DefaultHasher), known: map[[32]byte]uint64{}}
}

func (l *memoryLog) Kind() log.Kind              { return log.CTPlain }
func (l *memoryLog) LogID() [32]byte             { return l.id }
func (l *memoryLog) PublicKey() crypto.PublicKey { return l.key.Public() }

func (l *memoryLog) Add(_ context.Context, s log.Submission) (log.Receipt, error) {
	if len(s.Data) > log.MaxEntry || s.CT != nil || len(s.Extra) == 0 {
		return log.Receipt{}, errors.New("not a submission to a plain log")
	}
	if identity, err := log.CTPlainIdentity(s.Data); err != nil || identity != s.Identity {
		return log.Receipt{}, errors.Join(errors.New("the identity cannot be derived from the leaf"), err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	index, duplicate := l.known[s.Identity]
	if !duplicate {
		index = uint64(len(l.leaves))
		l.known[s.Identity] = index
		l.tree.AppendData(s.Data)
		l.leaves = append(l.leaves, log.Leaf{Index: index, Data: s.Data, Extra: s.Extra, LeafHash: [32]byte(l.tree.LeafHash(index))})
	}
	timestamp := binary.BigEndian.Uint64(l.leaves[index].Data[2:])
	return log.Receipt{Index: index, TimestampMillis: timestamp, Duplicate: duplicate}, nil
}

func (l *memoryLog) SignSCT(_ context.Context, index uint64, in log.SCTInput) ([]byte, error) {
	entry := &ctgo.TimestampedEntry{Timestamp: in.TimestampMillis, Extensions: in.Extensions}
	if in.Precert {
		entry.EntryType = ctgo.PrecertLogEntryType
		entry.PrecertEntry = &ctgo.PreCert{IssuerKeyHash: in.IssuerKeyHash, TBSCertificate: in.Data}
	} else {
		entry.X509Entry = &ctgo.ASN1Cert{Data: in.Data}
	}
	sct := ctgo.SignedCertificateTimestamp{SCTVersion: ctgo.V1, Timestamp: in.TimestampMillis, Extensions: in.Extensions}
	return l.sign(ctgo.SerializeSCTSignatureInput(sct, ctgo.LogEntry{Leaf: ctgo.MerkleTreeLeaf{TimestampedEntry: entry}}))
}

func (l *memoryLog) sign(input []byte, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(input)
	return l.key.Sign(nil, digest[:], crypto.SHA256)
}

func (l *memoryLog) TreeHead(context.Context) (log.TreeHead, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	head := log.TreeHead{Size: l.tree.Size(), Root: [32]byte(l.tree.Hash()), TimestampMillis: uint64(time.Now().UnixMilli())}
	signature, err := l.sign(ctgo.SerializeSTHSignatureInput(ctgo.SignedTreeHead{
		Version: ctgo.V1, TreeSize: head.Size, Timestamp: head.TimestampMillis, SHA256RootHash: head.Root,
	}))
	if err != nil {
		return log.TreeHead{}, err
	}
	head.Signature, err = cttls.Marshal(ctgo.DigitallySigned{
		Algorithm: cttls.SignatureAndHashAlgorithm{Hash: cttls.SHA256, Signature: cttls.ECDSA}, Signature: signature,
	})
	return head, err
}

func (l *memoryLog) Checkpoint() *log.Checkpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &log.Checkpoint{Size: l.tree.Size(), Root: [32]byte(l.tree.Hash())}
}

func (l *memoryLog) Wait(ctx context.Context, size uint64) error {
	if l.Checkpoint().Size > size {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (l *memoryLog) InclusionProof(_ context.Context, index, size uint64) ([][]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tree.InclusionProof(index, size)
}

func (l *memoryLog) ConsistencyProof(_ context.Context, first, second uint64) ([][]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tree.ConsistencyProof(first, second)
}

func (l *memoryLog) Leaf(ctx context.Context, index uint64) (log.Leaf, error) {
	leaves, err := l.Leaves(ctx, index, 1)
	if err != nil || len(leaves) == 0 {
		return log.Leaf{}, errors.Join(err, fault.New(fault.NotFound, "index_beyond_tree", nil, "index %d is beyond the tree", index))
	}
	return leaves[0], nil
}

func (l *memoryLog) Leaves(_ context.Context, from uint64, max int) ([]log.Leaf, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	to := min(uint64(len(l.leaves)), from+uint64(max), (from/256+1)*256)
	if from >= to {
		return nil, nil
	}
	return l.leaves[from:to], nil
}

func (l *memoryLog) IndexOf(_ context.Context, leafHash [32]byte) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, leaf := range l.leaves {
		if leaf.LeafHash == leafHash {
			return leaf.Index, nil
		}
	}
	return 0, fault.New(fault.NotFound, "leaf_unknown", nil, "no leaf has this hash")
}

func (l *memoryLog) Tile(context.Context, uint64, uint64, int) ([]byte, error) {
	return nil, errors.New("a plain log was asked for a tile")
}

func (l *memoryLog) Bundle(context.Context, uint64, int) ([]byte, error) {
	return nil, errors.New("a plain log was asked for a bundle")
}
