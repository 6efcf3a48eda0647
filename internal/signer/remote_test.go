package signer

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/fault"
)

// device is a remoteKey whose answers a test decides.
type device struct {
	key    crypto.Signer
	answer func(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
	once   sync.Once
	closed chan struct{}
}

func (d *device) public() crypto.PublicKey { return d.key.Public() }

func (d *device) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return d.answer(ctx, digest, opts)
}

func (d *device) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

func newDevice(t *testing.T) *device {
	key, err := New(P256)
	if err != nil {
		t.Fatal(err)
	}
	d := &device{key: key, closed: make(chan struct{})}
	d.answer = d.right
	return d
}

func (d *device) right(_ context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return d.key.Sign(rand.Reader, digest, opts)
}

func TestADeviceThatErrsGivesNoSignature(t *testing.T) {
	digest, other := sha256.Sum256([]byte("a")), sha256.Sum256([]byte("b"))
	d := newDevice(t)
	stranger := newDevice(t)
	for _, tt := range []struct {
		name   string
		answer func(context.Context, []byte, crypto.SignerOpts) ([]byte, error)
		kind   fault.Kind
		reason string
	}{
		{"another key", stranger.right, fault.Internal, ReasonWrong},
		{"another message", func(ctx context.Context, _ []byte, opts crypto.SignerOpts) ([]byte, error) {
			return d.right(ctx, other[:], opts)
		}, fault.Internal, ReasonWrong},
		{"noise", func(context.Context, []byte, crypto.SignerOpts) ([]byte, error) { return make([]byte, 70), nil }, fault.Internal, ReasonWrong},
		{"nothing", func(context.Context, []byte, crypto.SignerOpts) ([]byte, error) { return nil, nil }, fault.Internal, ReasonWrong},
		{"an error", func(context.Context, []byte, crypto.SignerOpts) ([]byte, error) { return nil, errors.New("sealed") }, fault.Unavailable, ReasonUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d.answer = tt.answer
			r := newRemote(d, time.Second)
			sig, err := r.Sign(nil, digest[:], crypto.SHA256)
			if sig != nil || fault.KindOf(err) != tt.kind || fault.ReasonOf(err) != tt.reason {
				t.Errorf("%x, %v (%s)", sig, err, fault.ReasonOf(err))
			}
			d.answer = d.right // and it recovers
			checkSigns(t, r)
			runtime.KeepAlive(r)
		})
	}
}

func TestADeviceThatHangsCostsItsCallersTheTimeoutOnly(t *testing.T) {
	d := newDevice(t)
	release := make(chan struct{})
	var under atomic.Int32
	d.answer = func(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
		under.Add(1)
		<-release
		return d.right(ctx, digest, opts)
	}
	r := newRemote(d, 50*time.Millisecond)
	digest := sha256.Sum256([]byte("a"))
	var callers sync.WaitGroup
	for range 4 * maxRemote {
		callers.Go(func() {
			if _, err := r.Sign(nil, digest[:], crypto.SHA256); fault.KindOf(err) != fault.Unavailable || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	}
	callers.Wait()
	if n := under.Load(); n != maxRemote {
		t.Errorf("the device was asked for %d signatures at a time, want %d", n, maxRemote)
	}
	close(release)
	r.timeout = time.Minute
	checkSigns(t, r)
}

func TestAKeyThatNobodyHasIsClosed(t *testing.T) {
	d := newDevice(t)
	key, err := openRemote("test:", func() (remoteKey, error) { return d, nil })
	if err != nil {
		t.Fatal(err)
	}
	checkSigns(t, key)
	runtime.KeepAlive(key)
	key = nil
	deadline := time.Now().Add(10 * time.Second)
	for {
		runtime.GC()
		select {
		case <-d.closed:
			return
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatal("its sessions were left open")
		}
	}
}

func TestSchemesThatDoNotOpen(t *testing.T) {
	for _, tt := range []struct{ uri, want string }{
		{"ephemeral:", "only ca"},
		{"vault:x", "is not one of file, pkcs11, hashivault"},
		{"key.pem", "is not one of"},
		{"", "is not one of"},
		{"pkcs11:token=a;object=b?module-path=/m&pin-value=8765", "pin-source"},
		{"pkcs11:token=a;object=b;pin-value=8765?module-path=/m", "pin-source"},
		{"hashivault://", "hashivault://NAME"},
	} {
		_, err := Open(tt.uri, nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.uri, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "8765") {
			t.Errorf("the PIN stands in %q", err)
		}
	}
}

// until waits until done, which must not take long.
func until(t *testing.T, problem string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatal(problem)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// BenchmarkVerify is what the check of a signature adds to each that a device makes.
func BenchmarkVerify(b *testing.B) {
	for _, alg := range []Algorithm{P256, P384, RSA4096} {
		b.Run(string(alg), func(b *testing.B) {
			key, err := New(alg)
			if err != nil {
				b.Fatal(err)
			}
			digest := sha256.Sum256([]byte("a"))
			sig, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if !verifies(key.Public(), digest[:], sig, crypto.SHA256) {
					b.Fatal("it does not verify")
				}
			}
		})
	}
}
