package rekor2

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	rekorpb "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"

	"github.com/attestry/attestry/internal/build"
)

// metrics have the names of upstream's server; nil when nobody collects them.
type metrics struct {
	hashedRekord prometheus.Counter
	dsse         prometheus.Counter
	requests     *prometheus.CounterVec
	latency      *prometheus.HistogramVec // seconds
	httpSize     *prometheus.HistogramVec // bytes, as the one below it
	grpcSize     *prometheus.HistogramVec
}

// newMetrics registers metrics; size tells how many entries all logs have, halted how many of these will not sign again.
func newMetrics(registerer prometheus.Registerer, size, halted func() uint64) (*metrics, error) {
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
			Name: "rekor_v2_http_requests_total", Help: "Requests by path, method and status.",
		}, []string{"path", "method", "code"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "rekor_v2_http_api_latency", Help: "Time to answer requests, in seconds.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}, []string{"path", "method", "code"}),
		httpSize: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "rekor_v2_http_api_request_size", Help: "Bytes of the bodies of HTTP requests that say how many they have.",
			Buckets: prometheus.ExponentialBuckets(256, 4, 8),
		}, []string{"path", "method", "code"}),
		grpcSize: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "rekor_v2_grpc_api_request_size", Help: "Bytes of the messages of gRPC calls.",
			Buckets: prometheus.ExponentialBuckets(256, 4, 8),
		}, []string{"grpc_service", "grpc_method", "grpc_packet_part"}),
	}
	for _, c := range []prometheus.Collector{
		m.hashedRekord, m.dsse, m.requests, m.latency, m.httpSize, m.grpcSize,
		build.Gauge(prometheus.GaugeOpts{Name: "rekor_v2_build_info", Help: "1, with what this program was built from."}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "rekor_entry_count", Help: "Entries of the logs behind an API, v1 or v2.", ConstLabels: prometheus.Labels{"api": "v2"},
		}, func() float64 { return float64(size()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "rekor_v2_inclusion_proof_failure_total", Help: "Logs that halted since their tree is not the one that was signed: that is found before a proof is given.",
		}, func() float64 { return float64(halted()) }),
	} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// observe counts an HTTP request; size is that of its body, -1 when it does not say.
func (m *metrics) observe(path, method string, status int, size int64, took time.Duration) {
	if m == nil {
		return
	}
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, "gRPC":
	default:
		method = "" // any token may come as a method
	}
	code := strconv.Itoa(status)
	m.requests.WithLabelValues(path, method, code).Inc()
	m.latency.WithLabelValues(path, method, code).Observe(took.Seconds())
	if size >= 0 && method != "gRPC" {
		m.httpSize.WithLabelValues(path, method, code).Observe(float64(size))
	}
}

// called counts a gRPC call.
func (m *metrics) called(method string, size int) {
	if m != nil {
		m.grpcSize.WithLabelValues(rekorpb.Rekor_ServiceDesc.ServiceName, method, "payload").Observe(float64(size))
	}
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
