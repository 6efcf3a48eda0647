// Package admission answers the API server of Kubernetes whether an object may run its images: AdmissionReview in,
// verdict of the policies out. It pins tags to digests, judges each image once and remembers the verdict for as long as
// policies and trust stay what they are. What it cannot find out in time is refused.
//
// A review is handled in these steps:
//
//  1. review.go    the request, decoded strictly and within bounds
//  2. workload.go  the object's images, wherever its kind has them
//  3. webhook.go   exempt what runs already; the namespace's mode; one verdict for each image
//  4. verdicts.go  from memory, or by the policies over what pkg/verify/oci finds in the registry
//  5. explain.go   which of signature, provenance, SBOM failed, and why
//
// Nothing in here knows a Kubernetes client: pkg/admission/cluster does.
package admission

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/attestry/attestry/pkg/verify/oci"
)

// Sources opens registries for workloads.
type Sources interface {
	// Open returns the registry as a workload may read it: with its pull secrets, those of its service account and the
	// operator's credentials. It is called concurrently.
	Open(ctx context.Context, w *Workload) (oci.Source, error)
}

// Options of New.
type Options struct {
	// Decider returns the policies in force, an error while there are none: nothing is allowed then.
	Decider func() (Decider, error)
	Sources Sources
	// Labels returns the labels of a namespace, nil where they are not known; nil for a program that knows none.
	Labels func(namespace string) map[string]string
	// Rules give namespaces their mode, the first that fits. OtherNamespaces is that of all others: who has the API server ask
	// about a namespace wants an answer, so the default is Enforce.
	Rules           []Rule
	OtherNamespaces Mode
	// Templates is the strictest mode for what is no pod: its pods are asked about anyway. Default Enforce.
	Templates Mode
	MultiArch MultiArch // default IndexOnly
	// Timeout bounds an answer together with the API server's own timeout, of which half a second is kept. Default 10s.
	Timeout time.Duration
	// PositiveTTL and NegativeTTL are how long verdicts are remembered. Defaults 1h and 30s, the most that is sensible.
	PositiveTTL, NegativeTTL time.Duration
	CacheEntries             int // verdicts in memory; default 20,000
	Workers                  int // verifications at one time; default 32
	// Preverified returns what needs no registry; nil for nothing.
	Preverified func() *Preverified
	// CertificateExpiry is when the serving certificate ends, zero without one; for a metric, and nil for none.
	CertificateExpiry func() time.Time

	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil for none
	Now        func() time.Time      // nil is time.Now
}

// Webhook answers AdmissionReviews. It is safe for concurrent use.
type Webhook struct {
	opts     Options
	verdicts *verdictCache
	resolver *resolver
	metrics  *metrics
	deployed *lru.Cache[string, struct{}] // what was counted as deployed though it does not pass
}

// maxDeployed bounds how many images are known as counted already.
const maxDeployed = 20_000

// New returns a webhook.
func New(o Options) (*Webhook, error) {
	if o.Decider == nil || o.Sources == nil || o.Logger == nil {
		return nil, errors.New("admission needs policies, a registry and a logger")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	defaults(&o.OtherNamespaces, Enforce)
	defaults(&o.Templates, Enforce)
	defaults(&o.MultiArch, IndexOnly)
	defaults(&o.Timeout, 10*time.Second)
	defaults(&o.PositiveTTL, time.Hour)
	defaults(&o.NegativeTTL, 30*time.Second)
	defaults(&o.CacheEntries, 20_000)
	defaults(&o.Workers, 32)
	switch o.MultiArch {
	case IndexOnly, AllChildren, AnyOfThem:
	default:
		return nil, fmt.Errorf("%q is none of index, all-children, any", o.MultiArch)
	}
	if o.NegativeTTL > 30*time.Second {
		return nil, fmt.Errorf("refusals remembered for %v: at most 30s, or a signature that comes late does not help", o.NegativeTTL)
	}
	m, err := newMetrics(o)
	if err != nil {
		return nil, err
	}
	w := &Webhook{opts: o, metrics: m}
	if w.verdicts, err = newVerdictCache(o, m); err != nil {
		return nil, err
	}
	if w.resolver, err = newResolver(o); err != nil {
		return nil, err
	}
	w.deployed, err = lru.New[string, struct{}](maxDeployed)
	return w, err
}

func defaults[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// Ready is nil once policies and trust are there.
func (w *Webhook) Ready(context.Context) error {
	_, err := w.opts.Decider()
	return err
}

// modeOf returns the mode of a namespace and whether a rule is about it.
func (w *Webhook) modeOf(namespace string) (mode Mode, ruled bool) {
	if w.opts.Labels != nil {
		if mode, ok := modeOf(w.opts.Rules, w.opts.Labels(namespace)); ok {
			return mode, true
		}
	}
	return w.opts.OtherNamespaces, false
}
