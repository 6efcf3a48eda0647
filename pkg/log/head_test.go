package log

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ctgo "github.com/google/certificate-transparency-go"
	cttls "github.com/google/certificate-transparency-go/tls"
)

// countingSigner is a key in a box: it counts what it signs.
type countingSigner struct {
	key   *ecdsa.PrivateKey
	count atomic.Int64
}

func (s *countingSigner) Public() crypto.PublicKey { return s.key.Public() }

func (s *countingSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.count.Add(1)
	return s.key.Sign(random, digest, opts)
}

func newHeadKey(t *testing.T, kind Kind) (*fencedKey, *countingSigner) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer := &countingSigner{key: private}
	fence, err := OpenFileFence(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fence.Close() })
	key, err := newFencedKey(kind, "ct.example.test", "ct.example.test", signer, fence)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := key.load(t.Context()); err != ErrNoRecord {
		t.Fatal(err)
	}
	return key, signer
}

func TestTreeHeadIsSignedOnceForAllWhoAskWithinASecond(t *testing.T) {
	for _, kind := range []Kind{CT, CTPlain} {
		key, signer := newHeadKey(t, kind)
		now := time.UnixMilli(1_800_000_000_000)
		seal := func(size uint64) {
			t.Helper()
			if err := key.advance(context.Background(), Record{Size: size, Root: [32]byte{byte(size)}, Promised: size}); err != nil {
				t.Fatal(err)
			}
			if _, err := key.checkpoint(now); err != nil {
				t.Fatal(err)
			}
		}
		check := func(doing string, size uint64, signatures int64, later TreeHead) TreeHead {
			t.Helper()
			var head TreeHead
			var wait sync.WaitGroup
			for range 20 {
				wait.Go(func() {
					got, err := key.treeHead(now)
					if err != nil {
						t.Error(err)
					}
					key.mu.Lock()
					defer key.mu.Unlock()
					if head.Signature != nil && !bytes.Equal(head.Signature, got.Signature) {
						t.Errorf("%s: two heads at one time", doing)
					}
					head = got
				})
			}
			wait.Wait()
			verifyHead(t, key, head)
			if head.Size != size || head.Root != [32]byte{byte(size)} {
				t.Errorf("%s: head of size %d, want %d", doing, head.Size, size)
			}
			if got := signer.count.Load(); got != signatures {
				t.Errorf("%s: %d signatures in all, want %d", doing, got, signatures)
			}
			if later.Signature != nil && head.TimestampMillis <= later.TimestampMillis {
				t.Errorf("%s: timestamp %d after %d", doing, head.TimestampMillis, later.TimestampMillis)
			}
			return head
		}

		seal(1)
		first := check("what the seal signed", 1, 1, TreeHead{})
		now = now.Add(headRefresh - 1)
		if again := check("still fresh", 1, 1, TreeHead{}); again.TimestampMillis != first.TimestampMillis {
			t.Error("a fresh head has another timestamp")
		}
		now = now.Add(1)
		second := check("a second old", 1, 2, first)
		seal(2)
		third := check("a new tree at the same time", 2, 3, second)
		now = now.Add(-time.Hour)
		fourth := check("the clock was set back", 2, 4, third)
		check("and is young again by that clock", 2, 4, first)
		seal(3)
		check("a new tree by that clock", 3, 5, fourth)

		// Between fence and checkpoint nobody sees the tree that is being sealed.
		if err := key.advance(context.Background(), Record{Size: 4, Promised: 4}); err != nil {
			t.Fatal(err)
		}
		check("a tree that is not sealed yet", 3, 5, fourth)
	}
}

// verifyHead has the reference check the signature.
func verifyHead(t *testing.T, key *fencedKey, head TreeHead) {
	t.Helper()
	verifier, err := ctgo.NewSignatureVerifier(key.signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	sth := ctgo.SignedTreeHead{TreeSize: head.Size, Timestamp: head.TimestampMillis, SHA256RootHash: head.Root}
	if rest, err := cttls.Unmarshal(head.Signature, &sth.TreeHeadSignature); err != nil || len(rest) > 0 {
		t.Fatalf("tree head signature: %v, %d bytes left", err, len(rest))
	}
	if err := verifier.VerifySTHSignature(sth); err != nil {
		t.Error(err)
	}
}

func TestCheckpointOfACTLogCarriesTheTreeHeadsSignature(t *testing.T) {
	for _, kind := range []Kind{CT, CTPlain} {
		key, _ := newHeadKey(t, kind)
		if err := key.advance(context.Background(), Record{Size: 7, Root: [32]byte{7}, Promised: 7}); err != nil {
			t.Fatal(err)
		}
		now := time.UnixMilli(1_800_000_000_000)
		note, err := key.checkpoint(now)
		if err != nil {
			t.Fatal(err)
		}
		head, err := key.treeHead(now)
		if err != nil {
			t.Fatal(err)
		}
		_, line, _ := strings.Cut(string(note), "\n\n")
		fields := strings.Fields(line)
		blob, err := base64.StdEncoding.DecodeString(fields[len(fields)-1])
		if err != nil || !bytes.HasSuffix(blob, head.Signature) {
			t.Errorf("checkpoint %q does not carry the tree head's signature: %v", note, err)
		}
	}
}

func TestPlainLogSignsNoSCTWithExtensions(t *testing.T) {
	for kind, want := range map[Kind]bool{CT: true, CTPlain: false, Rekor1: false} {
		key, _ := newHeadKey(t, kind)
		if err := key.advance(context.Background(), Record{Size: 1, Promised: 1}); err != nil {
			t.Fatal(err)
		}
		_, err := key.sct(0, SCTInput{Data: []byte{1}, Extensions: []byte{0, 0, 5, 0, 0, 0, 0, 0}})
		if (err == nil) != want {
			t.Errorf("kind %d with extensions: %v", kind, err)
		}
		_, err = key.sct(0, SCTInput{Data: []byte{1}})
		if (err == nil) != kind.isCT() {
			t.Errorf("kind %d without: %v", kind, err)
		}
		if _, err = key.sct(1, SCTInput{Data: []byte{1}}); err == nil {
			t.Errorf("kind %d signs for an index that was not promised", kind)
		}
	}
}
