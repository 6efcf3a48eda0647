package ct

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are nil when nobody collects them.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	roots    prometheus.Gauge
	stale    prometheus.Gauge
	reloads  *prometheus.CounterVec

	// What Trillian's CT front end calls these, by its label logid: base64 of the log ID.
	asked    *prometheus.CounterVec
	answered *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	lastSCT  prometheus.Gauge
}

func newMetrics(registerer prometheus.Registerer, log Log, mergeDelay time.Duration) (*metrics, error) {
	if registerer == nil {
		return nil, nil
	}
	id := log.LogID()
	logID := prometheus.Labels{"logid": encodeBase64(id[:])}
	newest := func(opts prometheus.GaugeOpts, value func() float64) prometheus.Collector {
		opts.ConstLabels = logID
		return prometheus.NewGaugeFunc(opts, value)
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "attestry_ct_requests_total", Help: "HTTP requests to the CT log's APIs.",
		}, []string{"endpoint", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "attestry_ct_request_duration_seconds", Help: "Time to answer requests to the CT log's APIs.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}, []string{"endpoint"}),
		roots: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "attestry_ct_accepted_roots", Help: "Root certificates that the CT log accepts chains to.",
		}),
		stale: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "attestry_ct_roots_file_bad", Help: "1 when the file of accepted roots could not be taken over and older roots are in force.",
		}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "attestry_ct_roots_reloads_total", Help: "Changed files of accepted roots, by result: taken or refused.",
		}, []string{"result"}),
		asked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "http_reqs", Help: "Requests to the CT log by endpoint.", ConstLabels: logID,
		}, []string{"ep"}),
		answered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "http_rsps", Help: "Answers of the CT log by endpoint and status.", ConstLabels: logID,
		}, []string{"ep", "rc"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "http_latency", Help: "Seconds until the CT log answered, by endpoint and status.", ConstLabels: logID,
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}, []string{"ep", "rc"}),
		lastSCT: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "last_sct_timestamp", Help: "Time in the SCT that was given last, in ms since the epoch.", ConstLabels: logID,
		}),
	}
	known := newest(prometheus.GaugeOpts{Name: "known_logs", Help: "1 for each CT log of this process."}, func() float64 { return 1 })
	delay := newest(prometheus.GaugeOpts{Name: "max_merge_delay", Help: "Seconds within which the log promises to show an entry."}, func() float64 { return mergeDelay.Seconds() })
	size := newest(prometheus.GaugeOpts{Name: "last_sth_treesize", Help: "Size of the newest signed tree."}, func() float64 { return float64(log.Checkpoint().Size) })
	signed := newest(prometheus.GaugeOpts{Name: "last_sth_timestamp", Help: "When the newest tree was signed, in ms since the epoch."}, func() float64 { return float64(log.Checkpoint().Time.UnixMilli()) })
	for _, collector := range []prometheus.Collector{
		m.requests, m.seconds, m.roots, m.stale, m.reloads, m.asked, m.answered, m.latency, m.lastSCT, known, delay, size, signed,
	} {
		if err := registerer.Register(collector); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) observe(name string, status int, took time.Duration) {
	if m == nil {
		return
	}
	code := strconv.Itoa(status)
	m.requests.WithLabelValues(name, code).Inc()
	m.seconds.WithLabelValues(name).Observe(took.Seconds())
	if ep := frontEndNames[name]; ep != "" {
		m.asked.WithLabelValues(ep).Inc()
		m.answered.WithLabelValues(ep, code).Inc()
		m.latency.WithLabelValues(ep, code).Observe(took.Seconds())
	}
}

// frontEndNames are what Trillian's CT front end calls the endpoints of RFC 6962 in its metrics.
var frontEndNames = map[string]string{
	"add-chain": "AddChain", "add-pre-chain": "AddPreChain", "get-sth": "GetSTH", "get-sth-consistency": "GetSTHConsistency",
	"get-proof-by-hash": "GetProofByHash", "get-entries": "GetEntries", "get-roots": "GetRoots", "get-entry-and-proof": "GetEntryAndProof",
}

// promised records an SCT.
func (m *metrics) promised(timestampMillis uint64) {
	if m != nil {
		m.lastSCT.Set(float64(timestampMillis))
	}
}

func (m *metrics) accepting(roots int) {
	if m != nil {
		m.roots.Set(float64(roots))
	}
}

// rootsFile says whether the file of roots is the one in force.
func (m *metrics) rootsFile(good bool) {
	switch {
	case m == nil:
	case good:
		m.stale.Set(0)
	default:
		m.stale.Set(1)
	}
}

// reloaded counts a change of the file of roots; result is "taken" or "refused".
func (m *metrics) reloaded(result string) {
	if m != nil {
		m.reloads.WithLabelValues(result).Inc()
	}
}
