package ca

import (
	"errors"
	"strings"
	"sync"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/internal/build"
	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/ca/identity"
)

// metrics keeps Fulcio's names where it has one, for dashboards that exist. Labels with an issuer have its URL or
// pattern as it is configured.
type metrics struct {
	issued       prometheus.Counter
	latency      *prometheus.HistogramVec
	requests     *prometheus.CounterVec
	build        prometheus.Collector
	rejected     *prometheus.CounterVec
	perIssuer    *prometheus.CounterVec
	refusals     *prometheus.CounterVec
	ctTime       *prometheus.HistogramVec
	signerTime   *prometheus.HistogramVec
	inFlight     prometheus.Gauge
	generation   prometheus.Gauge
	reloadFailed prometheus.Gauge
	builds       *builds
	grpc         *grpcprom.ServerMetrics // grpc_server_*
}

// waits are the buckets for what a request waits for, in s.
var waits = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}

func newMetrics() *metrics {
	return &metrics{
		issued: prometheus.NewCounter(prometheus.CounterOpts{Name: "fulcio_new_certs", Help: "Certificates issued."}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "fulcio_api_latency", Help: "Seconds to answer a request, by status code and method.",
		}, []string{"code", "method"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "http_requests_total", Help: "HTTP requests answered by the certificate authority, by status code and method.",
		}, []string{"code", "method"}),
		build:    build.Gauge(prometheus.GaugeOpts{Name: "fulcio_build_info", Help: "1, with what this program was built from."}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ca_requests_refused_total", Help: "Signing requests refused, by reason."}, []string{"reason"}),
		perIssuer: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ca_issuer_certificates_total", Help: "Certificates issued, by the token's issuer or the pattern that it fits.",
		}, []string{"oidc_issuer"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ca_issuer_refusals_total", Help: "Signing requests refused, by the issuer that the token names and by reason. Before its signature is verified anybody may name it.",
		}, []string{"oidc_issuer", "reason"}),
		ctTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ca_ct_submission_seconds", Help: "Seconds until the CT log answered a precertificate, by outcome.", Buckets: waits,
		}, []string{"outcome"}),
		signerTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ca_signer_seconds", Help: "Seconds of one signature by the issuing key, by outcome. A certificate with an SCT takes two.", Buckets: waits,
		}, []string{"outcome"}),
		inFlight:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "ca_requests_in_flight", Help: "Signing requests being handled."}),
		generation:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "ca_config_generation", Help: "Configurations that have been in force since the start."}),
		reloadFailed: prometheus.NewGauge(prometheus.GaugeOpts{Name: "ca_config_reload_failed", Help: "1 while the files of the configuration are wrong and the one before stays in force."}),
		builds: &builds{
			vec: prometheus.NewCounterVec(prometheus.CounterOpts{
				Name: "cicd_image_signed_total", Help: "Signing certificates asked for by CI jobs, by repository, workflow and result.",
			}, []string{"repo", "workflow", "result"}),
			known: map[[3]string]bool{},
		},
		grpc: grpcprom.NewServerMetrics(grpcprom.WithServerHandlingTimeHistogram()),
	}
}

// register gives m and what can be read off ca to reg, which may be nil.
func (m *metrics) register(reg prometheus.Registerer, ca *CA) error {
	if reg == nil {
		return nil
	}
	left := func(name, help string, labels prometheus.Labels, end func(*snapshot) time.Time) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 {
			s := ca.current.Load()
			return end(s).Sub(s.opts.Now()).Seconds()
		})
	}
	chain := prometheus.GaugeOpts{Name: "ca_chain_expiry_seconds", Help: "Seconds until the first certificate of the CA's chain expires."}
	one := prometheus.GaugeOpts{Name: "ca_certificate_expiry_seconds", Help: "Seconds until the issuing certificate and the root expire."}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.issued, m.latency, m.requests, m.build, m.rejected, m.perIssuer, m.refusals, m.ctTime, m.signerTime, m.inFlight, m.generation, m.reloadFailed, m.builds.vec, m.grpc,
		left(chain.Name, chain.Help, nil, func(s *snapshot) time.Time { return s.notAfter }),
		left(one.Name, one.Help, prometheus.Labels{"certificate": "issuing"}, func(s *snapshot) time.Time { return s.opts.Chain[0].NotAfter }),
		left(one.Name, one.Help, prometheus.Labels{"certificate": "root"}, func(s *snapshot) time.Time { return s.opts.Chain[len(s.opts.Chain)-1].NotAfter }),
		newKeyCollector(ca),
	} {
		errs = append(errs, reg.Register(c))
	}
	return errors.Join(errs...)
}

func (m *metrics) ct(outcome string, started time.Time) {
	m.ctTime.WithLabelValues(outcome).Observe(time.Since(started).Seconds())
}

func (m *metrics) issuedTo(entry *identity.Issuer) { m.perIssuer.WithLabelValues(entry.URL).Inc() }

// refused counts a refusal under the issuer that the token names, "" when that is not configured.
func (m *metrics) refused(entry *identity.Issuer, err error) {
	name := ""
	if entry != nil {
		name = entry.URL
	}
	m.refusals.WithLabelValues(name, reasonLabel(err)).Inc()
}

// reasonLabel is the reason of err without the name of a claim, which is no label.
func reasonLabel(err error) string {
	reason, _, _ := strings.Cut(fault.ReasonOf(err), ":")
	return reason
}

// forget drops the series of issuers that are no longer configured.
func (m *metrics) forget(before, now *identity.Verifier) {
	kept := map[string]bool{}
	for _, i := range now.Issuers() {
		kept[i.URL] = true
	}
	for _, i := range before.Issuers() {
		if !kept[i.URL] {
			gone := prometheus.Labels{"oidc_issuer": i.URL}
			m.perIssuer.DeletePartialMatch(gone)
			m.refusals.DeletePartialMatch(gone)
		}
	}
}

// keyCollector reads how the keys of issuers are when it is asked.
type keyCollector struct {
	ca       *CA
	age, bad *prometheus.Desc
}

func newKeyCollector(ca *CA) keyCollector {
	age := prometheus.Opts{Name: "ca_issuer_keys_age_seconds", Help: "Seconds since the keys of an issuer were fetched; of a pattern, the oldest."}
	bad := prometheus.Opts{Name: "ca_issuer_fetch_failed", Help: "1 while the last fetch of an issuer's keys failed, of any that fits a pattern."}
	return keyCollector{
		ca:  ca,
		age: prometheus.NewDesc(age.Name, age.Help, []string{"oidc_issuer"}, nil),
		bad: prometheus.NewDesc(bad.Name, bad.Help, []string{"oidc_issuer"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c keyCollector) Describe(descs chan<- *prometheus.Desc) {
	descs <- c.age
	descs <- c.bad
}

// Collect implements prometheus.Collector.
func (c keyCollector) Collect(out chan<- prometheus.Metric) {
	s := c.ca.current.Load()
	for _, k := range s.opts.Identity.KeyStatus() {
		if !k.Fetched.IsZero() {
			out <- prometheus.MustNewConstMetric(c.age, prometheus.GaugeValue, s.opts.Now().Sub(k.Fetched).Seconds(), k.Issuer)
		}
		if k.Asked {
			failed := 0.0
			if k.Err != nil {
				failed = 1
			}
			out <- prometheus.MustNewConstMetric(c.bad, prometheus.GaugeValue, failed, k.Issuer)
		}
	}
}

// maxBuilds is how many series builds has. What comes after them is counted as "other".
const maxBuilds = 1000

// builds counts what CI jobs asked for: principals whose certificate names a source repository.
type builds struct {
	vec *prometheus.CounterVec

	mu    sync.Mutex // guards known
	known map[[3]string]bool
}

func (b *builds) count(p *identity.Principal, err error) {
	repo := extensionValue(p, arcSourceRepository, arcGitHubRepository)
	if repo == "" {
		return
	}
	// Without the ref behind it: there are as many as branches.
	workflow, _, _ := strings.Cut(extensionValue(p, arcBuildConfig, arcBuildSigner), "@")
	series := [3]string{repo, workflow, "success"}
	if err != nil {
		series[2] = "failure"
	}
	b.mu.Lock()
	if !b.known[series] {
		if len(b.known) < maxBuilds {
			b.known[series] = true
		} else {
			series[0], series[1] = "other", "other"
		}
	}
	b.mu.Unlock()
	b.vec.WithLabelValues(series[:]...).Inc()
}

// Last arcs of extensions that say what was built where.
const (
	arcGitHubRepository = 5
	arcBuildSigner      = 9
	arcSourceRepository = 12
	arcBuildConfig      = 18
)

// extensionValue is the first of arcs that p has.
func extensionValue(p *identity.Principal, arcs ...int) string {
	for _, arc := range arcs {
		for _, e := range p.Extensions {
			if e.Arc == arc {
				return e.Value
			}
		}
	}
	return ""
}
