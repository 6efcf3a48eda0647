package tsa

import (
	"crypto"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/internal/build"
)

// metrics has the names and units of sigstore's timestamp-authority 2.1 for what that server
// measures (latencies in nanoseconds), and the same prefix for what it does not. A nil
// *metrics counts nothing.
type metrics struct {
	latency      *prometheus.HistogramVec // path, code
	summary      *prometheus.SummaryVec   // path, code
	byAPI        *prometheus.HistogramVec // path, method
	requests     *prometheus.CounterVec   // code, path, method
	granted      *prometheus.CounterVec   // hash
	rejections   *prometheus.CounterVec   // fail_info
	signLatency  prometheus.Histogram
	signerErrors prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, a *Authority, end time.Time, now func() time.Time) (*metrics, error) {
	if reg == nil {
		return nil, nil
	}
	m := &metrics{
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "timestamp_authority_api_latency",
			Help:    "Latency of calls in ns.",
			Buckets: prometheus.ExponentialBucketsRange(float64(100*time.Microsecond), float64(4*time.Second), 12),
		}, []string{"path", "code"}),
		summary: prometheus.NewSummaryVec(prometheus.SummaryOpts{
			Name: "timestamp_authority_api_latency_summary",
			Help: "Latency of calls in ns.",
		}, []string{"path", "code"}),
		byAPI: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "timestamp_authority_latency_by_api",
			Help:    "Latency of calls in ns by path and method.",
			Buckets: prometheus.ExponentialBucketsRange(float64(time.Millisecond), float64(4*time.Second), 10),
		}, []string{"path", "method"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "timestamp_authority_http_requests_total",
			Help: "HTTP requests by status code, path and method.",
		}, []string{"code", "path", "method"}),
		granted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "timestamp_authority_issued_total",
			Help: "Timestamps issued, by hash of the imprint.",
		}, []string{"hash"}),
		rejections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "timestamp_authority_rejections_total",
			Help: "Queries refused, by PKIFailureInfo.",
		}, []string{"fail_info"}),
		signLatency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "timestamp_authority_signer_latency_seconds",
			Help:    "Time to assemble and sign a token.",
			Buckets: prometheus.ExponentialBuckets(20e-6, 4, 10),
		}),
		signerErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "timestamp_authority_signer_errors_total",
			Help: "Signatures that the signer failed to make in time.",
		}),
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.latency, m.summary, m.byAPI, m.requests, m.granted, m.rejections, m.signLatency, m.signerErrors,
		build.Gauge(prometheus.GaugeOpts{Name: "timestamp_authority_build_info", Help: "1, with what this program was built from."}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "timestamp_authority_certificate_valid_days_remaining",
			Help: "Days until the first certificate of the chain expires; alert below 90.",
		}, func() float64 { return end.Sub(now()).Hours() / 24 }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "timestamp_authority_clock_trusted",
			Help: "1 while the clock is trusted and the chain valid, 0 while queries are refused.",
		}, func() float64 {
			if a.clock.believed() != nil {
				return 0
			}
			return 1
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "timestamp_authority_last_gen_time_seconds",
			Help: "Newest genTime issued, Unix seconds; 0 before the first.",
		}, func() float64 {
			if t := a.clock.newest(); !t.IsZero() {
				return float64(t.Unix())
			}
			return 0
		}),
	} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

func (m *metrics) signed(took time.Duration, err error) {
	switch {
	case m == nil:
	case err != nil:
		m.signerErrors.Inc()
	default:
		m.signLatency.Observe(took.Seconds())
	}
}

func (m *metrics) issued(q *Query) {
	if m == nil {
		return
	}
	label := "sha256"
	switch q.Hash {
	case crypto.SHA384:
		label = "sha384"
	case crypto.SHA512:
		label = "sha512"
	}
	m.granted.WithLabelValues(label).Inc()
}

func (m *metrics) refused(info failure) {
	if m != nil {
		m.rejections.WithLabelValues(info.String()).Inc()
	}
}

// answered counts one HTTP request. path is a route of ours, never the client's text.
func (m *metrics) answered(path, method string, status int, took time.Duration) {
	if m == nil {
		return
	}
	switch method {
	case http.MethodGet, http.MethodPost, http.MethodHead, http.MethodOptions:
	default:
		method = "unrecognized"
	}
	code, ns := strconv.Itoa(status), float64(took)
	m.latency.WithLabelValues(path, code).Observe(ns)
	m.summary.WithLabelValues(path, code).Observe(ns)
	m.byAPI.WithLabelValues(path, method).Observe(ns)
	m.requests.WithLabelValues(code, path, method).Inc()
}
