package ca

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics keeps Fulcio's names where it has one, for dashboards that exist.
type metrics struct {
	issued   prometheus.Counter
	latency  *prometheus.HistogramVec
	rejected *prometheus.CounterVec
	ctTime   *prometheus.HistogramVec
	inFlight prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, ca *CA, now func() time.Time) (*metrics, error) {
	m := &metrics{
		issued: prometheus.NewCounter(prometheus.CounterOpts{Name: "fulcio_new_certs", Help: "Certificates issued."}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "fulcio_api_latency", Help: "Seconds to answer a request, by status code and method.",
		}, []string{"code", "method"}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ca_requests_refused_total", Help: "Signing requests refused, by reason."}, []string{"reason"}),
		ctTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ca_ct_submission_seconds", Help: "Seconds until the CT log answered a precertificate, by outcome.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"outcome"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "ca_requests_in_flight", Help: "Signing requests being handled."}),
	}
	if reg == nil {
		return m, nil
	}
	expiry := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ca_chain_expiry_seconds", Help: "Seconds until the first certificate of the CA's chain expires.",
	}, func() float64 { return ca.current.Load().notAfter.Sub(now()).Seconds() })
	var errs []error
	for _, c := range []prometheus.Collector{m.issued, m.latency, m.rejected, m.ctTime, m.inFlight, expiry} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

func (m *metrics) ct(outcome string, started time.Time) {
	m.ctTime.WithLabelValues(outcome).Observe(time.Since(started).Seconds())
}
