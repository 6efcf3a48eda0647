package log_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/tiles"
)

// BenchmarkAdd adds 600-byte entries from many clients at once, with fsync on.
func BenchmarkAdd(b *testing.B) {
	for _, clients := range []int{32, 256} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			dir := b.TempDir()
			tree, err := tiles.Open(b.Context(), filepath.Join(dir, "tiles"), log.Rekor1)
			if err != nil {
				b.Fatal(err)
			}
			defer tree.Close()
			fence, err := log.OpenFileFence(filepath.Join(dir, "fence"))
			if err != nil {
				b.Fatal(err)
			}
			defer fence.Close()
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				b.Fatal(err)
			}
			l, err := log.Open(b.Context(), log.Options{Kind: log.Rekor1, Label: "bench", Origin: "bench - 1", Name: "bench", TreeID: 1,
				Dir: dir, Tree: tree, Key: key, Fence: fence, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			padding := strings.Repeat("x", 580)
			work := make(chan int)
			var wg sync.WaitGroup
			var mu sync.Mutex
			var total time.Duration
			b.ResetTimer()
			for range clients {
				wg.Go(func() {
					var mine time.Duration
					for i := range work {
						data := []byte(fmt.Sprintf("%020d%s", i, padding))
						start := time.Now()
						receipt, err := l.Add(b.Context(), log.Submission{Data: data, Identity: [32]byte(rfc6962.DefaultHasher.HashLeaf(data))})
						if err != nil {
							b.Error(err)
							return
						}
						if _, err := l.InclusionProof(b.Context(), receipt.Index, receipt.Checkpoint.Size); err != nil {
							b.Error(err)
						}
						mine += time.Since(start)
					}
					mu.Lock()
					total += mine
					mu.Unlock()
				})
			}
			for i := range b.N {
				work <- i
			}
			close(work)
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
			b.ReportMetric(float64(total.Milliseconds())/float64(b.N), "ms/entry")
		})
	}
}
