package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/internal/fault"
)

const (
	clockSkew     = 5 * time.Minute // for nbf, as go-oidc, and for iat
	maxMetaHosts  = 128             // issuers remembered for all patterns together
	maxMetaFlight = 8               // first contacts with new issuers of patterns at one time
)

// Options says whom to trust. Config may be nil when Issuers has some.
type Options struct {
	Config    *Config
	Issuers   []Issuer              // beside those of Config, made in code: the development issuer
	Leeway    time.Duration         // how long after exp a token still counts; default 0
	Now       func() time.Time      // default time.Now
	Logger    *slog.Logger          // default: discard
	Registry  prometheus.Registerer // may be nil
	Transport http.RoundTripper     // replaces the network, for tests

	// WithoutKeys reads and fetches no issuer's keys: every signature is refused, and claims can
	// still be explained.
	WithoutKeys bool

	// Previous is a verifier that this one replaces: the keys that it has fetched are kept where
	// nothing about fetching them has changed. Its Registry is used on.
	Previous *Verifier

	// InClusterDir holds the pod's ca.crt, trusted for issuers of type kubernetes once one of them is
	// at kubernetes.default.svc, and its token, which that API server alone gets. Default: where the
	// kubelet mounts them.
	InClusterDir string
}

// Verifier turns identity tokens into principals. It is safe for concurrent use.
type Verifier struct {
	opts  Options
	exact map[string]*trusted
	meta  []*trusted // longest pattern first

	fetches, fileReads *prometheus.CounterVec

	mu     sync.Mutex // guards remote
	remote map[string]*metaKeys
	first  chan struct{} // bounds first contacts with issuers of patterns
}

// trusted is one configured issuer ready for use.
type trusted struct {
	issuer  Issuer
	pattern pattern // nil for an exact URL
	mapping mapper
	rules   ruleSet
	keys    keySource // nil for a pattern, and for keys set in code
	algs    *fetched  // algorithms of keys set in code
}

type metaKeys struct {
	keys *remoteKeys
	used time.Time
}

// New checks the configuration and returns a Verifier. It contacts nobody: an issuer that is
// down must not keep the CA down.
func New(o Options) (*Verifier, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.InClusterDir == "" {
		o.InClusterDir = serviceAccount
	}
	all := &Config{Issuers: slices.Clone(o.Issuers)}
	if o.Config != nil {
		all.Issuers = append(all.Issuers, o.Config.Issuers...)
		all.Providers, all.Rules = o.Config.Providers, o.Config.Rules
	}
	if len(all.Issuers) == 0 {
		return nil, errors.New("no OIDC issuer is configured: nobody could get a certificate")
	}
	if err := all.Validate(); err != nil {
		return nil, err
	}
	v := &Verifier{
		opts: o, exact: map[string]*trusted{}, remote: map[string]*metaKeys{}, first: make(chan struct{}, maxMetaFlight),
		fetches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ca_issuer_key_fetches_total", Help: "Fetches of OIDC issuer keys by outcome.",
		}, []string{"outcome"}),
		fileReads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ca_issuer_key_file_reads_total", Help: "Changes of files with OIDC issuer keys by outcome of reading them.",
		}, []string{"outcome"}),
	}
	switch {
	case o.Previous != nil:
		v.fetches, v.fileReads, v.first = o.Previous.fetches, o.Previous.fileReads, o.Previous.first
	case o.Registry != nil:
		for _, c := range []**prometheus.CounterVec{&v.fetches, &v.fileReads} {
			if err := register(o.Registry, c); err != nil {
				return nil, err
			}
		}
	}
	rules, err := all.compileRules()
	if err != nil {
		return nil, err
	}
	var problems []error
	for k, i := range all.Issuers {
		if err := v.add(i, all, rules[k]); err != nil {
			problems = append(problems, fmt.Errorf("%sissuer %q: %w", at(i.line), i.URL, err))
		}
	}
	sort.SliceStable(v.meta, func(a, b int) bool { return len(v.meta[a].issuer.URL) > len(v.meta[b].issuer.URL) })
	if o.Previous != nil {
		v.inherit(o.Previous)
	}
	v.opts.Previous = nil // or each reload would hold all before it
	return v, errors.Join(problems...)
}

// register registers *c, or makes it the collector that is there: a configuration that changes while it is read for the
// first time is read twice.
func register(r prometheus.Registerer, c **prometheus.CounterVec) error {
	err := r.Register(*c)
	var already prometheus.AlreadyRegisteredError
	if !errors.As(err, &already) {
		return err
	}
	there, ok := already.ExistingCollector.(*prometheus.CounterVec)
	if !ok {
		return err
	}
	*c = there
	return nil
}

func (v *Verifier) add(i Issuer, all *Config, rules ruleSet) error {
	t := &trusted{issuer: i, rules: rules}
	var err error
	if t.mapping, err = i.mapper(all); err != nil {
		return err
	}
	if i.Wildcard {
		if t.pattern, err = compilePattern(i.URL); err != nil {
			return err
		}
		v.meta = append(v.meta, t)
		return nil
	}
	switch {
	case v.opts.WithoutKeys:
	case i.Keys != nil:
		if t.algs = (&fetched{algs: supported(allAlgorithms)}); len(i.Algorithms) > 0 {
			t.algs.algs = supported(i.Algorithms)
		}
	case i.JWKS != "":
		if t.keys, err = staticKeys(i.JWKS); err != nil {
			return fmt.Errorf("jwks: %w", err)
		}
	case i.JWKSFile != "":
		if t.keys, err = newFileKeys(i.JWKSFile, v.opts.Now, v.observe(v.fileReads, "the file with keys of an OIDC issuer cannot be used; those before it stay", i.URL)); err != nil {
			return fmt.Errorf("jwks-file: %w", err)
		}
	default:
		inCluster := ""
		if i.Type == Kubernetes && slices.ContainsFunc(all.Issuers, func(other Issuer) bool { return other.inCluster() }) {
			inCluster = v.opts.InClusterDir
		}
		s, err := newSource(&i, i.URL, inCluster, v.opts.Transport)
		if err != nil {
			return err
		}
		t.keys = v.newKeys(s, nil)
	}
	v.exact[i.URL] = t
	return nil
}

func (v *Verifier) newKeys(s *source, gate chan struct{}) *remoteKeys {
	return &remoteKeys{source: s, now: v.opts.Now, gate: gate, observe: v.observe(v.fetches, "keys of an OIDC issuer could not be fetched", s.issuer)}
}

// observe returns what counts an outcome and logs a failure.
func (v *Verifier) observe(counter *prometheus.CounterVec, failed, issuer string) func(error) {
	return func(err error) {
		if err != nil {
			v.opts.Logger.Warn(failed, "oidc_issuer", issuer, "err", err)
			counter.WithLabelValues("error").Inc()
			return
		}
		counter.WithLabelValues("ok").Inc()
	}
}

// Verify checks token completely (signature, algorithm, iss, aud, exp, nbf, iat, sub), maps its
// claims and asks the rules. Its errors are classified; their public text never holds a part of
// the token.
func (v *Verifier) Verify(ctx context.Context, token string) (*Principal, error) {
	return v.judge(ctx, Evidence{Token: token}, nil)
}

// leeway is how long after its exp a token of t still counts.
func (v *Verifier) leeway(t *trusted) time.Duration {
	if t.issuer.ClockLeeway != nil {
		return *t.issuer.ClockLeeway
	}
	return v.opts.Leeway
}

func (v *Verifier) find(iss string) *trusted {
	if t := v.exact[iss]; t != nil {
		return t
	}
	if len(iss) > maxPattern*2 {
		return nil
	}
	for _, t := range v.meta {
		if t.pattern.matches(iss) {
			return t
		}
	}
	return nil
}

// verifySignature checks the token's algorithm and signature with the keys of t, as go-oidc's
// verifier does; its other checks follow in checkClaims, one reason each.
func (v *Verifier) verifySignature(ctx context.Context, t *trusted, iss, token string, payload []byte) error {
	if v.opts.WithoutKeys {
		return fault.New(fault.Unauthentic, ReasonBadSignature, nil, "there are no keys to verify the token's signature with")
	}
	from := t.keys
	have := t.algs
	var err error
	if t.pattern != nil {
		if from, err = v.metaKeys(t, iss); err != nil {
			return err
		}
	}
	if from != nil {
		if have, err = from.current(ctx); err != nil {
			return err
		}
	}
	jws, err := jose.ParseSignedCompact(token, have.algs)
	if err != nil {
		return malformed(err, "the token's header or signature algorithm is not acceptable")
	}
	var signed []byte
	var ok bool
	if given := t.issuer.Keys; given != nil {
		signed, err = given.VerifySignature(ctx, token)
		ok = err == nil
	} else {
		signed, ok = verify(ctx, jws, have, from)
	}
	switch {
	case ok && bytes.Equal(signed, payload):
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		return fault.New(fault.Unauthentic, ReasonBadSignature, err, "the token's signature could not be verified with its issuer's keys")
	}
}

// metaKeys returns the keys of one issuer that fits a pattern. A stranger's token can name any host
// of the pattern: first contacts are made a few at a time.
func (v *Verifier) metaKeys(t *trusted, iss string) (*remoteKeys, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	known := v.remote[iss]
	if known == nil {
		s, err := newSource(&t.issuer, iss, "", v.opts.Transport)
		if err != nil {
			return nil, unreachable(err)
		}
		if len(v.remote) >= maxMetaHosts {
			v.evict()
		}
		known = &metaKeys{keys: v.newKeys(s, v.first)}
		v.remote[iss] = known
	}
	known.used = v.opts.Now()
	return known.keys, nil
}

// evict forgets the least recently used issuer, first among those that never answered; v.mu is held.
func (v *Verifier) evict() {
	oldest, oldestLoaded := "", false
	for name, m := range v.remote {
		loaded := m.keys.loaded()
		if oldest == "" || oldestLoaded && !loaded || oldestLoaded == loaded && m.used.Before(v.remote[oldest].used) {
			oldest, oldestLoaded = name, loaded
		}
	}
	delete(v.remote, oldest)
}

func (v *Verifier) checkAudience(t *trusted, c claims) error {
	if audiences := t.issuer.audiences(); !slices.ContainsFunc(audiences, c.hasAudience) {
		return fault.New(fault.Unauthentic, ReasonAudience, nil, "the token is meant for another audience than %q", strings.Join(audiences, ", "))
	}
	return nil
}

// checkTimes applies RFC 7519 as go-oidc does (exp without leeway, nbf with five minutes) and
// asks for more: an exp, and an iat that is not in the future.
func (v *Verifier) checkTimes(t *trusted, c claims) error {
	now := v.opts.Now()
	expiry, ok, err := c.date("exp")
	if err != nil {
		return err
	}
	if !ok {
		return missing("exp")
	}
	if expiry.Add(v.leeway(t)).Before(now) {
		return fault.New(fault.Unauthentic, ReasonExpired, nil, "the token expired at %s, it is %s", stamp(expiry), stamp(now))
	}
	for _, name := range []string{"nbf", "iat"} {
		when, ok, err := c.date(name)
		if err != nil {
			return err
		}
		if ok && when.After(now.Add(clockSkew)) {
			return fault.New(fault.Unauthentic, ReasonNotYetValid, nil, "the token's %s is %s, it is %s", name, stamp(when), stamp(now))
		}
	}
	return nil
}

func (c claims) checkSubject() error {
	if c.text("sub") == "" {
		return missing("sub")
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func (t *trusted) principal(c claims, token string) (*Principal, error) {
	san, certIssuer, extensions, err := t.mapping(c)
	if err != nil {
		return nil, err
	}
	sub := c.text("sub")
	extensions = append(extensions, Extension{arcIssuer, certIssuer}, Extension{arcIssuerV2, certIssuer}, Extension{arcSubject, sub})
	slices.SortFunc(extensions, func(a, b Extension) int { return a.Arc - b.Arc })
	for _, e := range extensions {
		fits := printable
		if e.Arc == arcWorkflowName {
			fits = readable
		}
		if !fits(e.Value) {
			return nil, rejected("a value for extension .%d is too long or has control or invisible characters", e.Arc)
		}
	}
	if !printable(san.Value) {
		return nil, rejected("the subject alternative name is too long or has control or invisible characters")
	}
	p := &Principal{
		SAN: san, Extensions: extensions, OIDCIssuer: c.text("iss"), Subject: sub, IssuerType: t.issuer.Type,
		Fingerprint: fingerprint(token), TokenID: tokenID(c, token),
	}
	for _, name := range t.challengeClaims(c) {
		p.Challenges = append(p.Challenges, c.text(name))
	}
	return p, nil
}

// challengeClaims names the claims whose values a proof of possession may be made over, each
// value once. The client most likely signed the claim that identifies it: that is the first.
func (t *trusted) challengeClaims(c claims) []string {
	var names []string
	for _, name := range []string{"email", "sub", t.issuer.ChallengeClaim} {
		known := func(other string) bool { return c.text(other) == c.text(name) }
		if c.text(name) != "" && !slices.ContainsFunc(names, known) {
			names = append(names, name)
		}
	}
	return names
}

// Issuers lists what is configured, sorted by URL, for the configuration endpoint.
func (v *Verifier) Issuers() []Issuer {
	var out []Issuer
	for _, t := range v.exact {
		out = append(out, t.issuer)
	}
	for _, t := range v.meta {
		out = append(out, t.issuer)
	}
	slices.SortFunc(out, func(a, b Issuer) int { return strings.Compare(a.URL, b.URL) })
	return out
}

// ClientID is the audience that clients are told to ask for.
func (i Issuer) ClientID() string {
	if i.Audience == "" && len(i.Audiences) > 0 {
		return i.Audiences[0]
	}
	return i.Audience
}

// Challenge is the claim whose signature clients are told to send.
func (i Issuer) Challenge() string {
	switch {
	case i.ChallengeClaim != "":
		return i.ChallengeClaim
	case i.Type == Email:
		return "email"
	default:
		return "sub"
	}
}
