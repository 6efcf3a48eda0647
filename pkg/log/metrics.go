package log

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	size   prometheus.Gauge
	faults prometheus.Counter
	batch  prometheus.Histogram
	steps  *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer, label string, tree Tree) (*metrics, error) {
	labels := prometheus.Labels{"log": label}
	m := &metrics{
		size: prometheus.NewGauge(prometheus.GaugeOpts{Name: "attestry_log_tree_size",
			Help: "Leaves of the newest signed tree.", ConstLabels: labels}),
		faults: prometheus.NewCounter(prometheus.CounterOpts{Name: "attestry_log_faults_total",
			Help: "Appends that failed and sent the log into recovery.", ConstLabels: labels}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "attestry_log_batch_entries",
			Help: "Entries integrated at once.", ConstLabels: labels, Buckets: prometheus.ExponentialBuckets(1, 4, 6)}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "attestry_log_append_seconds",
			Help: "Time a batch spends in a step of the append protocol.", ConstLabels: labels,
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 12)}, []string{"step"}),
	}
	if reg == nil {
		return m, nil
	}
	all := []prometheus.Collector{m.size, m.faults, m.batch, m.steps}
	if b, ok := tree.(Backlogged); ok {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "attestry_log_journal_entries",
			Help: "Leaves that are durable in the tree's journal and not yet in its files.", ConstLabels: labels},
			func() float64 { leaves, _ := b.Backlog(); return float64(leaves) }))
	}
	for _, c := range all {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics of log %s: %w", label, err)
		}
	}
	return m, nil
}

// step records how long a step of the append protocol took: reserve, integrate, time, fence.
func (m *metrics) step(name string, start time.Time) {
	m.steps.WithLabelValues(name).Observe(time.Since(start).Seconds())
}
