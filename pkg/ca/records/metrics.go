package records

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	rows    *prometheus.CounterVec
	commits *prometheus.HistogramVec
	pending prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ca_records_total", Help: "Certificates and refusals that were recorded, and refusals left out of the records, by kind.",
		}, []string{"kind"}),
		commits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ca_record_commit_seconds", Help: "Seconds that one commit of records took, shared by the requests that waited, by where to (journal, database) and outcome.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"to", "outcome"}),
		pending: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ca_records_pending", Help: "Records of certificates that are durable in the journal and not yet in the database, as of its last commit.",
		}),
	}
	for _, kind := range []string{"issued", "refused", "left_out"} {
		m.rows.WithLabelValues(kind)
	}
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.rows), reg.Register(m.commits), reg.Register(m.pending))
}

func (m *metrics) commit(to string, err error, began time.Time) {
	outcome := "ok"
	if err != nil {
		outcome = "error"
	}
	m.commits.WithLabelValues(to, outcome).Observe(time.Since(began).Seconds())
}
