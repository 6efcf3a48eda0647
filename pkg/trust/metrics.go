package trust

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// publisherMetrics is nil when nobody collects.
type publisherMetrics struct {
	expiry, version *prometheus.GaugeVec
	updates         *prometheus.CounterVec
}

func newPublisherMetrics(reg prometheus.Registerer) (*publisherMetrics, error) {
	if reg == nil {
		return nil, nil
	}
	m := &publisherMetrics{
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tuf_metadata_expiry_seconds", Help: "When the published metadata of a role expires, in seconds since the epoch.",
		}, []string{"role"}),
		version: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tuf_metadata_version", Help: "Version of the published metadata of a role.",
		}, []string{"role"}),
		updates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tuf_updates_total", Help: "Publications of new metadata, by outcome.",
		}, []string{"outcome"}),
	}
	for _, c := range m.collectors() {
		if err := reg.Register(c); err != nil {
			m.unregister(reg)
			return nil, err
		}
	}
	return m, nil
}

func (m *publisherMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.expiry, m.version, m.updates}
}

func (m *publisherMetrics) unregister(reg prometheus.Registerer) {
	if m == nil {
		return
	}
	for _, c := range m.collectors() {
		reg.Unregister(c)
	}
}

func (m *publisherMetrics) show(repo *repository) {
	if m == nil || repo.timestamp == nil {
		return
	}
	for _, role := range roles {
		m.expiry.WithLabelValues(role).Set(float64(repo.expires(role).Unix()))
	}
	m.version.WithLabelValues(metadata.ROOT).Set(float64(repo.root.Signed.Version))
	m.version.WithLabelValues(metadata.TARGETS).Set(float64(repo.targets.Signed.Version))
	m.version.WithLabelValues(metadata.SNAPSHOT).Set(float64(repo.snapshot.Signed.Version))
	m.version.WithLabelValues(metadata.TIMESTAMP).Set(float64(repo.timestamp.Signed.Version))
}

func (m *publisherMetrics) count(err error) {
	if m == nil {
		return
	}
	outcome := "ok"
	if err != nil {
		outcome = "failed"
	}
	m.updates.WithLabelValues(outcome).Inc()
}
