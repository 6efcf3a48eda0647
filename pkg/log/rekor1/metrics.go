package rekor1

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/internal/build"
)

// metrics have the names and units of upstream's server; nil when nobody collects them.
type metrics struct {
	entries  prometheus.Counter
	requests *prometheus.CounterVec
	latency  *prometheus.HistogramVec // nanoseconds, as the two below it
	byCode   *prometheus.HistogramVec
	summary  *prometheus.SummaryVec
}

// newMetrics registers metrics; size tells how many entries all shards have.
func newMetrics(registerer prometheus.Registerer, size func() uint64) (*metrics, error) {
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
		byCode: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "rekor_api_latency", Help: "API latency in nanoseconds by path and response code.",
			Buckets: prometheus.ExponentialBuckets(500_000, 2, 16),
		}, []string{"path", "code"}),
		summary: prometheus.NewSummaryVec(prometheus.SummaryOpts{
			Name: "rekor_api_latency_summary", Help: "API latency in nanoseconds by path and response code.",
		}, []string{"path", "code"}),
	}
	for _, c := range []prometheus.Collector{
		m.entries, m.requests, m.latency, m.byCode, m.summary,
		build.Gauge(prometheus.GaugeOpts{Name: "rekor_build_info", Help: "1, with what this program was built from."}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "rekor_entry_count", Help: "Entries of the logs behind an API, v1 or v2.", ConstLabels: prometheus.Labels{"api": "v1"},
		}, func() float64 { return float64(size()) }),
	} {
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
	code := strconv.Itoa(status)
	m.requests.WithLabelValues(path, method, code).Inc()
	m.latency.WithLabelValues(path, method).Observe(float64(took))
	m.byCode.WithLabelValues(path, code).Observe(float64(took))
	m.summary.WithLabelValues(path, code).Observe(float64(took))
}

func (m *metrics) added() {
	if m != nil {
		m.entries.Inc()
	}
}
