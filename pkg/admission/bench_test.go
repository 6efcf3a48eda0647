package admission

import (
	"slices"
	"testing"
	"time"
)

// BenchmarkWarm answers reviews of a pod with two images whose verdicts are in memory: decoding, looking up, answering.
func BenchmarkWarm(b *testing.B) {
	h := handler(newHook(b, &judge{version: "1"}, &memory{}, nil))
	review := reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod(good, good[:len(good)-1]+"2"), "")
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		if _, got, text := post(b, h, "/validate?timeout=10s", review); !got.Allowed {
			b.Fatal(text)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}
