package witness

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type serverMetrics struct {
	requests *prometheus.CounterVec
	forks    *prometheus.CounterVec
	size     *prometheus.GaugeVec
	unix     *prometheus.GaugeVec
}

func newServerMetrics(reg prometheus.Registerer) (*serverMetrics, error) {
	m := &serverMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attestry_witness_requests_total",
			Help: "Checkpoints submitted to this witness."}, []string{"status"}),
		forks: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attestry_witness_forks_total",
			Help: "Signed checkpoints of a size that was cosigned with another root."}, []string{"origin"}),
		size: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "attestry_witness_tree_size",
			Help: "Size cosigned last."}, []string{"origin"}),
		unix: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "attestry_witness_cosigned_seconds",
			Help: "When it was cosigned, seconds since the epoch."}, []string{"origin"}),
	}
	return m, register(reg, m.requests, m.forks, m.size, m.unix)
}

func (m *serverMetrics) cosigned(held record) {
	if held.note != nil {
		m.size.WithLabelValues(held.origin).Set(float64(held.size))
		m.unix.WithLabelValues(held.origin).Set(float64(held.unix))
	}
}

type clientMetrics struct {
	answers *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

func newClientMetrics(reg prometheus.Registerer, label string) (*clientMetrics, error) {
	labels := prometheus.Labels{"log": label}
	m := &clientMetrics{
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "attestry_log_witness_answers_total",
			Help: "What witnesses answered: cosigned, refused, failed.", ConstLabels: labels}, []string{"witness", "answer"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "attestry_log_cosign_seconds",
			Help: "Time until the quorum held (quorum=yes), or was given up (no).", ConstLabels: labels,
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}, []string{"quorum"}),
	}
	return m, register(reg, m.answers, m.seconds)
}

func register(reg prometheus.Registerer, collectors ...prometheus.Collector) error {
	if reg == nil {
		return nil
	}
	for _, c := range collectors {
		if err := reg.Register(c); err != nil {
			return fmt.Errorf("registering witness metrics: %w", err)
		}
	}
	return nil
}
