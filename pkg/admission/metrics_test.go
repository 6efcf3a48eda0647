package admission

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestTheTrustedRootHasAnAge(t *testing.T) {
	reg := prometheus.NewRegistry()
	at := time.Unix(1_800_000_000, 0)
	trusted, err := ObserveTrust(reg, func() time.Time { return at })
	if err != nil {
		t.Fatal(err)
	}
	const age, expiry = "attestry_trusted_root_age_seconds", "attestry_trusted_root_expiry_seconds"
	want := func(when string, values map[string]float64) {
		t.Helper()
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		if len(families) != len(values) {
			t.Errorf("%s: %d metrics, want %d", when, len(families), len(values))
		}
		for _, f := range families {
			if got := f.GetMetric()[0].GetGauge().GetValue(); got != values[f.GetName()] {
				t.Errorf("%s: %s is %v, want %v", when, f.GetName(), got, values[f.GetName()])
			}
		}
	}
	want("without one", map[string]float64{age: 0})
	trusted(at.Add(-time.Minute), at.Add(time.Hour))
	want("with metadata", map[string]float64{age: 60, expiry: 1_800_003_600})
	at = at.Add(time.Second)
	trusted(at, time.Time{})
	want("written again, without metadata", map[string]float64{age: 0})
}
