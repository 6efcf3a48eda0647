package admission

import (
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/pkg/policy"
)

// Bounds of labels that come from outside: what is beyond is counted as "other".
const (
	maxImageLabels     = 1000 // repositories
	maxNamespaceLabels = 1000
	maxPolicyLabels    = 200
	maxHostLabels      = 200
	other              = "other"
)

// metrics of admission. The nil pointer counts nothing.
type metrics struct {
	failures   *prometheus.CounterVec   // image
	unsigned   *prometheus.CounterVec   // namespace, image
	results    *prometheus.CounterVec   // policy, rule, result
	requests   *prometheus.CounterVec   // result, reason, policy
	phases     *prometheus.HistogramVec // phase, cache
	reviews    *prometheus.CounterVec   // operation, resource, decision
	took       *prometheus.HistogramVec // webhook
	hits       prometheus.Counter
	misses     prometheus.Counter
	evictions  prometheus.Counter
	listed     prometheus.Counter
	scanned    *prometheus.GaugeVec // result
	lastScan   prometheus.Gauge
	images     *labels
	namespaces *labels
	policies   *labels
}

func newMetrics(o Options) (*metrics, error) {
	reg := o.Registerer
	if reg == nil {
		return nil, nil
	}
	m := &metrics{
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cicd_signature_verification_failure_total",
			Help: "Images that were judged and did not pass, by repository.",
		}, []string{"image"}),
		unsigned: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cicd_unsigned_image_deployed_total",
			Help: "Images that did not pass and run all the same: let in by mode warn or audit, or found running.",
		}, []string{"namespace", "image"}),
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "attestry_policy_results_total",
			Help: "What policies said of images: rule is verdict, or what was demanded (signature, provenance, sbom…); result is pass or fail.",
		}, []string{"policy", "rule", "result"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "attestry_verify_requests_total",
			Help: "Judgements of images by result (pass, fail), reason and policy; memory answers are counted too.",
		}, []string{"result", "reason", "policy"}),
		phases: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "attestry_verify_duration_seconds",
			Help:    "Time of one verification: fetch is waiting for the registry, policy all the rest.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2.5, 12),
		}, []string{"phase"}),
		reviews: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "attestry_webhook_admission_total",
			Help: "Reviews by operation, resource and decision (allowed, denied, warned, audited, exempt, failed).",
		}, []string{"operation", "resource", "decision"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "attestry_webhook_duration_seconds",
			Help:    "Time to answer a review, by webhook (mutate, validate) and whether all verdicts were in memory.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2.5, 12),
		}, []string{"webhook", "cache"}),
		hits:      prometheus.NewCounter(prometheus.CounterOpts{Name: "attestry_verify_cache_hits_total", Help: "Verdicts from memory."}),
		misses:    prometheus.NewCounter(prometheus.CounterOpts{Name: "attestry_verify_cache_misses_total", Help: "Verdicts that were not in memory."}),
		evictions: prometheus.NewCounter(prometheus.CounterOpts{Name: "attestry_verify_cache_evictions_total", Help: "Verdicts forgotten for want of room."}),
		listed:    prometheus.NewCounter(prometheus.CounterOpts{Name: "attestry_preverified_images_total", Help: "Images let in by what lies in a carry set."}),
		scanned: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "attestry_running_images",
			Help: "Images of running pods at the last scan, by result: pass, fail, unknown.",
		}, []string{"result"}),
		lastScan: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "attestry_last_scan_timestamp_seconds",
			Help: "When the last scan of running pods by this replica ended, Unix seconds; 0 before.",
		}),
		images: newLabels(maxImageLabels), namespaces: newLabels(maxNamespaceLabels), policies: newLabels(maxPolicyLabels),
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.failures, m.unsigned, m.results, m.requests, m.phases, m.reviews, m.took, m.hits, m.misses, m.evictions, m.listed, m.scanned, m.lastScan,
	} {
		errs = append(errs, reg.Register(c))
	}
	if o.CertificateExpiry != nil {
		errs = append(errs, reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "attestry_webhook_cert_expiry_seconds",
			Help: "When the serving certificate ends, Unix seconds; 0 without one.",
		}, func() float64 {
			if at := o.CertificateExpiry(); !at.IsZero() {
				return float64(at.Unix())
			}
			return 0
		})))
	}
	return m, errors.Join(errs...)
}

// ObserveRegistries returns what counts requests to registries, for oci.Options.Observe.
func ObserveRegistries(reg prometheus.Registerer) (func(host, method string, code int), error) {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "attestry_registry_requests_total",
		Help: "Requests to registries and their token services, by host, verb and status code; 0 where no answer came.",
	}, []string{"host", "verb", "code"})
	if err := reg.Register(requests); err != nil {
		return nil, err
	}
	hosts := newLabels(maxHostLabels)
	return func(host, method string, code int) {
		requests.WithLabelValues(hosts.of(host), method, strconv.Itoa(code)).Inc()
	}, nil
}

// ObserveTrust returns what takes the trusted root in force: when its file was written, zero for none, and when the TUF metadata that
// was carried with it ends, zero where that is not known. now is for its age, nil is time.Now.
func ObserveTrust(reg prometheus.Registerer, now func() time.Time) (func(written, ends time.Time), error) {
	if now == nil {
		now = time.Now
	}
	var since atomic.Pointer[time.Time]
	age := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "attestry_trusted_root_age_seconds",
		Help: "Seconds since the file of the trusted root in force was written; 0 without one.",
	}, func() float64 {
		if at := since.Load(); at != nil && !at.IsZero() {
			return now().Sub(*at).Seconds()
		}
		return 0
	})
	// A vector without labels has no value while none is set.
	expiry := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "attestry_trusted_root_expiry_seconds",
		Help: "When the TUF metadata carried with the trusted root in force ends, Unix seconds; absent where there is none.",
	}, nil)
	return func(written, ends time.Time) {
		since.Store(&written)
		if ends.IsZero() {
			expiry.Reset()
			return
		}
		expiry.WithLabelValues().Set(float64(ends.Unix()))
	}, errors.Join(reg.Register(age), reg.Register(expiry))
}

// labels lets so many values of a label through and no more, whatever comes.
type labels struct {
	limit int

	mu    sync.Mutex // guards known
	known map[string]bool
}

func newLabels(limit int) *labels { return &labels{limit: limit, known: map[string]bool{}} }

func (l *labels) of(value string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.known[value] {
		if len(l.known) == l.limit {
			return other
		}
		l.known[value] = true
	}
	return value
}

func (m *metrics) cache(hit bool) {
	switch {
	case m == nil:
	case hit:
		m.hits.Inc()
	default:
		m.misses.Inc()
	}
}

func (m *metrics) evicted() {
	if m != nil {
		m.evictions.Inc()
	}
}

func (m *metrics) verified(all, fetch time.Duration) {
	if m == nil {
		return
	}
	m.phases.WithLabelValues("fetch").Observe(fetch.Seconds())
	m.phases.WithLabelValues("policy").Observe((all - fetch).Seconds())
}

// judged counts one verdict on an image of the repository name.
func (m *metrics) judged(name string, v *policy.Verdict, passed bool) {
	if m == nil {
		return
	}
	if !passed {
		m.failures.WithLabelValues(m.images.of(name)).Inc()
	}
	if len(v.Policies) == 0 {
		m.requests.WithLabelValues(result(passed), string(v.Reason), "").Inc()
	}
	for _, o := range v.Policies {
		of := m.policies.of(o.Policy)
		m.requests.WithLabelValues(result(o.Passed), string(o.Reason), of).Inc()
		m.results.WithLabelValues(of, "verdict", result(o.Passed)).Inc()
		for _, c := range o.Checks {
			m.results.WithLabelValues(of, demand(c).code, result(c.Passed)).Inc()
		}
	}
}

// unjudged counts an image that no policy was asked about.
func (m *metrics) unjudged(reason string) {
	if m != nil {
		m.requests.WithLabelValues(result(false), reason, "").Inc()
	}
}

func result(passed bool) string {
	if passed {
		return "pass"
	}
	return "fail"
}

func (m *metrics) deployed(namespace, name string) {
	if m != nil {
		m.unsigned.WithLabelValues(m.namespaces.of(namespace), m.images.of(name)).Inc()
	}
}

func (m *metrics) preverified() {
	if m != nil {
		m.listed.Inc()
	}
}

// reviewed counts an answer. Operation and resource are of closed sets.
func (m *metrics) reviewed(webhook string, r *request, decision string, cached bool, took time.Duration) {
	if m == nil {
		return
	}
	resource := other
	if _, known := policy.PodSpec(r.Kind.Group, r.Kind.Kind); known {
		resource = r.Kind.Kind
	}
	m.reviews.WithLabelValues(r.Operation, resource, decision).Inc()
	cache := "miss"
	if cached {
		cache = "hit"
	}
	m.took.WithLabelValues(webhook, cache).Observe(took.Seconds())
}

func (m *metrics) scan(pass, fail, unknown int, at time.Time) {
	if m == nil {
		return
	}
	m.scanned.WithLabelValues("pass").Set(float64(pass))
	m.scanned.WithLabelValues("fail").Set(float64(fail))
	m.scanned.WithLabelValues("unknown").Set(float64(unknown))
	m.lastScan.Set(float64(at.Unix()))
}
