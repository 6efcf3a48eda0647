package rekor1

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics have the names and units of upstream's server; nil when nobody collects them.
type metrics struct {
	entries  prometheus.Counter
	requests *prometheus.CounterVec
	latency  *prometheus.HistogramVec // nanoseconds
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	if registerer == nil {
		return nil, nil
	}
	m := &metrics{
		entries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rekor_new_entries", Help: "The total number of new log entries.",
		}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rekor_qps_by_api", Help: "API requests by path, method and response code.",
		}, []string{"path", "method", "code"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "rekor_latency_by_api", Help: "API latency in nanoseconds by path and method.",
			Buckets: prometheus.ExponentialBuckets(500_000, 2, 16),
		}, []string{"path", "method"}),
	}
	for _, c := range []prometheus.Collector{m.entries, m.requests, m.latency} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) observe(path, method string, status int, took time.Duration) {
	if m == nil {
		return
	}
	if path == "unknown" {
		method = "" // any token may come as a method
	}
	m.requests.WithLabelValues(path, method, strconv.Itoa(status)).Inc()
	m.latency.WithLabelValues(path, method).Observe(float64(took))
}

func (m *metrics) added() {
	if m != nil {
		m.entries.Inc()
	}
}
