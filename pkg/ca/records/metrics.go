package records

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	rows    *prometheus.CounterVec
	commits *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ca_records_total", Help: "Certificates and refusals that were recorded, and refusals left out of the records, by kind.",
		}, []string{"kind"}),
		commits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ca_record_commit_seconds", Help: "Seconds that one commit of records took, shared by the requests that waited, by outcome.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"outcome"}),
	}
	for _, kind := range []string{"issued", "refused", "left_out"} {
		m.rows.WithLabelValues(kind)
	}
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.rows), reg.Register(m.commits))
}

func (m *metrics) commit(err error, began time.Time) {
	outcome := "ok"
	if err != nil {
		outcome = "error"
	}
	m.commits.WithLabelValues(outcome).Observe(time.Since(began).Seconds())
}
