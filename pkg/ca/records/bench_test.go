package records_test

import (
	"path/filepath"
	"sync"
	"testing"

	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/pkg/ca/records"
)

// BenchmarkIssued measures certificates recorded durably, fsync on, with as many requests waiting as a CA has in flight; and
// with one-time tokens, which are two commits for each request.
func BenchmarkIssued(b *testing.B) {
	for _, engine := range []struct {
		name string
		uri  func(b *testing.B) string
	}{
		{"sqlite", func(b *testing.B) string { return "sqlite:" + filepath.Join(b.TempDir(), "records.db") }},
		{"postgres", func(b *testing.B) string { return services.Postgres(b) }},
	} {
		for _, clients := range []struct {
			name string
			n    int
			once bool
		}{{"32 clients", 32, false}, {"256 clients", 256, false}, {"32 clients, one-time tokens", 32, true}} {
			b.Run(engine.name+"/"+clients.name, func(b *testing.B) {
				c := newClock()
				s := open(b, engine.uri(b), c)
				b.ReportAllocs()
				work := make(chan int)
				var all sync.WaitGroup
				for range clients.n {
					all.Go(func() {
						for range work {
							if err := one(b, s, c, clients.once); err != nil {
								b.Error(err)
							}
						}
					})
				}
				b.ResetTimer()
				for n := range b.N {
					work <- n
				}
				close(work)
				all.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certs/s")
			})
		}
	}
}

func one(b *testing.B, s *records.Store, c *clock, once bool) error {
	i := issuance(c, "https://github.com/octo/widgets/.github/workflows/release.yml@refs/heads/main")
	if once {
		u := use(c, string(i.Serial))
		if _, err := s.Reserve(b.Context(), u); err != nil {
			return err
		}
		i.Use = &u
	}
	return s.Issued(b.Context(), i)
}
