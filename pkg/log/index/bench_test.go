package index

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/pkg/log"
)

// splitKeys takes the words of a body as its keys.
func splitKeys(body []byte) ([]string, error) { return strings.Fields(string(body)), nil }

// steadySource gives size leaves of six keys each, at most batch at once, as a log does that
// integrates batch entries at a time.
type steadySource struct {
	size, batch uint64
}

func (s steadySource) leaf(i uint64) log.Leaf {
	var hash [32]byte
	binary.BigEndian.PutUint64(hash[:], i+1)
	digest := func(kind string) string { h := hashKey(fmt.Sprint(kind, i)); return fmt.Sprintf("%x%x", h[:], h[:]) }
	body := fmt.Sprintf("sha256:%s sha256:%s sha256:%s %s person%d@example.test https://ci.example.test/%d",
		digest("artifact"), digest("envelope"), digest("key"), digest("key"), i%1000, i%100_000)
	return log.Leaf{Index: i, Data: []byte(body), LeafHash: hash}
}

func (s steadySource) Leaves(_ context.Context, from uint64, max int) ([]log.Leaf, error) {
	var leaves []log.Leaf
	for i := from; i < min(s.size, from+uint64(max), from-from%s.batch+s.batch); i++ {
		leaves = append(leaves, s.leaf(i))
	}
	return leaves, nil
}

func (s steadySource) Checkpoint() *log.Checkpoint { return &log.Checkpoint{Size: s.size} }

func (s steadySource) Wait(ctx context.Context, size uint64) error {
	<-ctx.Done()
	return ctx.Err()
}

// benchOnEach runs f with an empty index of each engine.
func benchOnEach(b *testing.B, f func(b *testing.B, x *Index)) {
	for name, s := range map[string]store{"sqlite": newFile(b), "postgres": {server: services.Postgres(b)}} {
		b.Run(name, func(b *testing.B) {
			x := open(b, s.empty(b))
			x.keys = splitKeys
			f(b, x)
		})
	}
}

// BenchmarkFollow reads a log that gives 32 leaves at once or whole bundles. Run it with
// -benchtime 1000000x to see a large index.
func BenchmarkFollow(b *testing.B) {
	for _, batch := range []uint64{32, 256} {
		b.Run(fmt.Sprintf("%d leaves at once", batch), func(b *testing.B) {
			benchOnEach(b, func(b *testing.B, x *Index) {
				source := steadySource{uint64(b.N), batch}
				b.ResetTimer()
				ctx, cancel := context.WithCancel(b.Context())
				defer cancel()
				go x.Follow(ctx, source)
				if err := x.CaughtUp(ctx, uint64(b.N)); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "leaves/s")
			})
		})
	}
}

// BenchmarkSearch looks for keys of one entry, of a busy identity, and of both at once, in an
// index that has as many segments as ten million entries and some of their rows. Set
// ATTESTRY_BENCH_ENTRIES=10000000 to have all of them.
func BenchmarkSearch(b *testing.B) {
	const size = 10_000_000
	entries := uint64(400_000)
	if n, err := strconv.ParseUint(os.Getenv("ATTESTRY_BENCH_ENTRIES"), 10, 64); err == nil {
		entries = min(max(n, 1000), size)
	}
	step := size / entries
	source := steadySource{size, 256}
	benchOnEach(b, func(b *testing.B, x *Index) {
		var last log.Leaf
		for from := uint64(0); from < entries; from += flushEntries {
			var leaves []log.Leaf
			for i := from; i < min(entries, from+flushEntries); i++ {
				leaves = append(leaves, source.leaf(i*step))
			}
			last = leaves[len(leaves)-1]
			stored := uint64(0)
			if from > 0 {
				stored = (from-1)*step + 1
			}
			if err := x.write(b.Context(), stored, last.Index+1, last.LeafHash, x.rows(leaves)); err != nil {
				b.Fatal(err)
			}
		}
		x.restart(last.Index+1, true)
		oldest := strings.Fields(string(source.leaf(0).Data))
		keys := strings.Fields(string(source.leaf((entries / 2) * step).Data))
		for _, bench := range []struct {
			name string
			keys []string
			all  bool
		}{
			{"digest", keys[:1], false},
			{"oldest digest", oldest[:1], false},
			{"absent", []string{"sha256:none"}, false},
			{"busy identity", keys[4:5], false},
			{"identity", keys[5:6], false},
			{"digest and busy identity", []string{keys[4], keys[0]}, true},
			{"two identities", keys[4:6], true},
			{"six keys", keys, false},
		} {
			b.Run(bench.name, func(b *testing.B) {
				var took []time.Duration
				for b.Loop() {
					start := time.Now()
					if _, err := x.Search(b.Context(), bench.keys, bench.all, 1000); err != nil {
						b.Fatal(err)
					}
					took = append(took, time.Since(start))
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
			})
		}
	})
}
