package stack

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/log"
)

// TestMillionsOfEntries loads ATTESTRY_MILLIONS million entries into a Rekor v1 log and says what they cost: entries/s and
// resident memory on the way, bytes on disk, the time to be ready again, proofs and searches at that size. The entries go
// straight to the log, without a request each; the index follows it as always.
func TestMillionsOfEntries(t *testing.T) {
	millions, err := strconv.Atoi(os.Getenv("ATTESTRY_MILLIONS"))
	if err != nil {
		t.Skip("skipped: takes a minute for each million and 1 GB of disk; enable with ATTESTRY_MILLIONS=10")
	}
	debug.SetMemoryLimit(512 << 20) // as cmd/attestry has it
	dir := filepath.Join(t.TempDir(), "data")
	opts := Options{Dir: dir, Listen: "127.0.0.1:8420", Issuer: IssuerLoopback, Logger: slog.New(slog.DiscardHandler)}
	s, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	signing, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := signer.PublicPEM(signing.Public())
	if err != nil {
		t.Fatal(err)
	}
	key := base64.StdEncoding.EncodeToString(pem)
	var next atomic.Uint64
	for m := range millions {
		start := time.Now()
		end := uint64(m+1) * 1_000_000
		var wg sync.WaitGroup
		for range 4096 {
			wg.Go(func() {
				for {
					i := next.Add(1) - 1
					if i >= end {
						return
					}
					body := storedBody(key, i)
					sub := log.Submission{Identity: [32]byte(rfc6962.DefaultHasher.HashLeaf(body)), Data: body}
					if _, err := s.rekor1Log().Add(t.Context(), sub); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		next.Store(end)
		if err := s.rekor1Member().index.CaughtUp(t.Context(), end); err != nil {
			t.Fatal(err)
		}
		t.Logf("measured: million %d: %.0f entries/s with their index, %d MiB resident", m+1, 1e6/time.Since(start).Seconds(), resident(t)>>20)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	total := float64(millions) * 1e6
	for _, part := range []string{"log/rekor1/tiles", "log/rekor1/entries.db", "log/rekor1/index.db"} {
		t.Logf("measured: %s: %.0f bytes an entry", part, float64(size(t, filepath.Join(dir, part)))/total)
	}

	start := time.Now()
	if s, err = Open(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("measured: ready %.2f s after a start at %d million entries, %d MiB resident", time.Since(start).Seconds(), millions, resident(t)>>20)

	size := s.rekor1Log().Checkpoint().Size
	quantiles(t, "inclusion proof of a random entry", 20_000, func(ctx context.Context) error {
		_, err := s.rekor1Log().InclusionProof(ctx, rand.Uint64N(size), size)
		return err
	})
	quantiles(t, "search by digest", 5_000, func(ctx context.Context) error {
		digest := sha256.Sum256([]byte(strconv.FormatUint(rand.Uint64N(size), 10)))
		found, err := s.rekor1Member().index.Search(ctx, []string{"sha256:" + hex.EncodeToString(digest[:])}, false, 10)
		if err == nil && len(found) != 1 {
			err = fmt.Errorf("found %d", len(found))
		}
		return err
	})
}

func (s *Stack) rekor1Log() *log.Log { return s.rekor1Member().log }

func (s *Stack) rekor1Member() *member {
	for _, m := range s.logs.members {
		if m.spec.Kind == log.Rekor1 {
			return m
		}
	}
	return nil
}

// storedBody is a canonical hashedrekord of 600 bytes for each i; key is the base64 of a public key in PEM.
func storedBody(key string, i uint64) []byte {
	digest := sha256.Sum256([]byte(strconv.FormatUint(i, 10)))
	return []byte(`{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"data":{"hash":{"algorithm":"sha256","value":"` + hex.EncodeToString(digest[:]) +
		`"}},"signature":{"content":"MEUCIQD` + strings.Repeat("A", 89) + `","publicKey":{"content":"` + key + `"}}}}`)
}

// quantiles runs do n times on two goroutines and logs the rate and how long it took.
func quantiles(t *testing.T, what string, n int, do func(context.Context) error) {
	t.Helper()
	took := make([]time.Duration, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for range 2 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				begin := time.Now()
				if err := do(t.Context()); err != nil {
					t.Error(err)
				}
				took[i] = time.Since(begin)
			}
		})
	}
	wg.Wait()
	rate := float64(n) / time.Since(start).Seconds()
	slices.Sort(took)
	t.Logf("measured: %s: %.0f/s, p50 %.2f ms, p99 %.2f ms", what, rate, took[n/2].Seconds()*1e3, took[n*99/100].Seconds()*1e3)
}

// resident is the process's resident memory in bytes.
func resident(t *testing.T) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(raw))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

func size(t *testing.T, path string) (total int64) {
	t.Helper()
	err := filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return total
}
