// Package build says what a program was built from.
package build

import (
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
)

// Info is what the Go command wrote into the program: version, revision, date (of the revision) and goVersion, "unknown" where
// it wrote nothing.
func Info() (version, revision, date, goVersion string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown", "unknown", "unknown", "unknown"
	}
	revision, date = "unknown", "unknown"
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value
		case "vcs.time":
			date = s.Value
		}
	}
	return info.Main.Version, revision, date, info.GoVersion
}

// Gauge is 1, with what Info says in the labels that upstream's servers have.
func Gauge(opts prometheus.GaugeOpts) prometheus.Collector {
	g := prometheus.NewGaugeVec(opts, []string{"version", "revision", "build_date", "goversion"})
	g.WithLabelValues(Info()).Set(1)
	return g
}
