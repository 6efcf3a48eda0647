package index

import (
	"context"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

func openBench(b *testing.B) *Index {
	x, err := Open(b.Context(), Options{Path: filepath.Join(b.TempDir(), "index.db"), Keys: splitKeys})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { x.Close() })
	return x
}

// BenchmarkFollow reads a log that gives 32 leaves at once or whole bundles. Run it with
// -benchtime 1000000x to see a large file.
func BenchmarkFollow(b *testing.B) {
	for _, batch := range []int{32, 256} {
		b.Run(fmt.Sprintf("%d leaves at once", batch), func(b *testing.B) {
			x := openBench(b)
			source := steadySource{uint64(b.N), uint64(batch)}
			b.ResetTimer()
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			go x.Follow(ctx, source)
			if err := x.CaughtUp(ctx, uint64(b.N)); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "leaves/s")
		})
	}
}

// BenchmarkSearch looks for keys of one entry, of a busy identity, and of both at once.
func BenchmarkSearch(b *testing.B) {
	const size = 600_000
	x := openBench(b)
	source := steadySource{size, 256}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	go x.Follow(ctx, source)
	if err := x.CaughtUp(ctx, size); err != nil {
		b.Fatal(err)
	}
	keys := strings.Fields(string(source.leaf(4242).Data))
	for _, bench := range []struct {
		name string
		keys []string
		all  bool
	}{
		{"digest", keys[:1], false},
		{"absent", []string{"sha256:none"}, false},
		{"busy identity", keys[4:5], false},
		{"digest and busy identity", []string{keys[4], keys[0]}, true},
		{"six keys", keys, false},
	} {
		b.Run(bench.name, func(b *testing.B) {
			start := time.Now()
			for b.Loop() {
				if _, err := x.Search(ctx, bench.keys, bench.all, 1000); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(time.Since(start).Microseconds())/float64(b.N), "µs/search")
		})
	}
}
