package rekor2

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics have the names of upstream's server; nil when nobody collects them.
type metrics struct {
	hashedRekord prometheus.Counter
	dsse         prometheus.Counter
	requests     *prometheus.CounterVec
	latency      *prometheus.HistogramVec // seconds
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	if registerer == nil {
		return nil, nil
	}
	m := &metrics{
		hashedRekord: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rekor_v2_new_hashedrekord_entries", Help: "The total number of new hashedrekord log entries.",
		}),
		dsse: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rekor_v2_new_dsse_entries", Help: "The total number of new DSSE log entries.",
		}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rekor_v2_http_requests_total", Help: "Requests by path and status.",
		}, []string{"path", "code"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "rekor_v2_http_api_latency", Help: "Time to answer requests, in seconds.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}, []string{"path"}),
	}
	for _, c := range []prometheus.Collector{m.hashedRekord, m.dsse, m.requests, m.latency} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) observe(path string, status int, took time.Duration) {
	if m == nil {
		return
	}
	m.requests.WithLabelValues(path, strconv.Itoa(status)).Inc()
	m.latency.WithLabelValues(path).Observe(took.Seconds())
}

func (m *metrics) added(kind string) {
	switch {
	case m == nil:
	case kind == "dsse":
		m.dsse.Inc()
	default:
		m.hashedRekord.Inc()
	}
}
