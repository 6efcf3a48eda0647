// Package ca is a certificate authority that speaks Fulcio's APIs: it turns an identity token
// and a proved public key into a code signing certificate of ten minutes with an embedded SCT.
package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/reload"
	"github.com/attestry/attestry/pkg/ca/identity"
)

const (
	defaultLifetime = 10 * time.Minute
	maxLifetime     = time.Hour
	maxBackdate     = 5 * time.Minute
)

// Options is what a CA is made of. Signer, Chain, Identity and CT (or CTDisabled) are required.
type Options struct {
	Signer      crypto.Signer
	Chain       []*x509.Certificate   // issuing certificate first, root last
	OtherChains [][]*x509.Certificate // earlier or coming ones, only listed in the trust bundle
	Identity    *identity.Verifier

	CT         CTSubmitter
	CTDisabled bool // issue without SCT; never the effect of a setting that was forgotten
	// CTDetached logs final certificates and hands SCTs out beside them. CT must be a CTChainSubmitter then.
	CTDetached bool

	Recorder Recorder // nil keeps no records
	// OneTimeTokens gives each identity token one certificate. It needs a Recorder, and no detached SCTs: a certificate that was logged but
	// not answered could be fetched from the log, and the token would give another.
	OneTimeTokens bool

	Lifetime   time.Duration // of certificates, default 10 minutes, at most an hour
	Backdate   time.Duration // of notBefore, for clients whose clocks run behind; default 0, at most 5 minutes
	Algorithms []string      // names of permitted client algorithms, default DefaultAlgorithms

	// IdentityLimit bounds the certificates of one subject alternative name of one issuer. The zero value is no limit.
	IdentityLimit identity.RateLimit

	// AuditSubject writes the certificate's subject in clear into audit lines; otherwise they
	// carry its SHA-256.
	AuditSubject bool

	Now        func() time.Time // default time.Now
	Rand       io.Reader        // default crypto/rand
	Logger     *slog.Logger     // default: discard
	Registerer prometheus.Registerer
}

// CA issues certificates. It is safe for concurrent use.
type CA struct {
	current    atomic.Pointer[snapshot]
	generation atomic.Int64 // counts what current was
	identities *limit.Budgets[[32]byte]
	clock      clock
	warned     warned
	metrics    *metrics

	files   *reload.Watcher        // of Open, else nil
	refused atomic.Pointer[string] // why its files are not in force; nil when they are

	reloading sync.Mutex // held from the reading of current to its replacement
}

// snapshot is a CA as one set of options makes it, and never changes. A request is handled by the
// same one from its token to its certificate, so that no reload gives it the key of one chain and the names of another.
type snapshot struct {
	opts       Options
	signer     *watchedSigner
	issuing    *issuing
	permitted  map[algorithm]bool
	chainDER   [][]byte
	chainPEM   []string // without trailing newline
	notBefore  time.Time
	notAfter   time.Time                // of the whole chain
	issuers    map[string]*rate.Limiter // budgets, by URL or pattern
	identities *limit.Budgets[[32]byte]
	clock      *clock
	metrics    *metrics
	logger     *slog.Logger
}

// New checks the chain and the key, makes a test signature and returns a CA.
func New(o Options) (*CA, error) {
	ca := &CA{}
	if err := ca.begin(o); err != nil {
		return nil, err
	}
	return ca, nil
}

func (ca *CA) begin(o Options) error {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	ca.metrics = newMetrics()
	ca.identities = limit.NewBudgets[[32]byte](0, 0, maxIdentities)
	s, err := ca.snapshot(o)
	if err != nil {
		return err
	}
	ca.put(s)
	if err := ca.metrics.register(o.Registerer, ca); err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	return nil
}

// Reload replaces what New was given, in one step and after the same checks; requests under way end
// with what they began with. When it returns an error nothing has changed. Now, Rand, Logger, Registerer and Recorder stay those of New.
func (ca *CA) Reload(o Options) error {
	ca.reloading.Lock()
	defer ca.reloading.Unlock()
	before := ca.current.Load()
	o.Now, o.Rand, o.Logger, o.Registerer, o.Recorder = before.opts.Now, before.opts.Rand, before.opts.Logger, before.opts.Registerer, before.opts.Recorder
	s, err := ca.snapshot(o)
	if err != nil {
		return err
	}
	ca.put(s)
	ca.metrics.forget(before.opts.Identity, o.Identity)
	return nil
}

// put sets s in force.
func (ca *CA) put(s *snapshot) {
	var before map[string]*rate.Limiter
	if old := ca.current.Load(); old != nil {
		before = old.issuers
	}
	s.issuers = issuerBudgets(s.opts.Identity, before, s.opts.Now())
	ca.identities.Set(s.opts.Now(), s.opts.IdentityLimit.PerSecond, s.opts.IdentityLimit.Burst)
	ca.current.Store(s)
	ca.metrics.generation.Set(float64(ca.generation.Add(1)))
}

// snapshot checks o and returns what becomes of it, all but the budgets of issuers.
func (ca *CA) snapshot(o Options) (*snapshot, error) {
	if o.Lifetime == 0 {
		o.Lifetime = defaultLifetime
	}
	if len(o.Algorithms) == 0 {
		o.Algorithms = DefaultAlgorithms()
	}
	switch {
	case o.Signer == nil:
		return nil, errors.New("ca: a signing key is required")
	case o.Identity == nil:
		return nil, errors.New("ca: OIDC issuers are required")
	case o.CT == nil && !o.CTDisabled:
		return nil, errors.New("ca: a CT log is required unless it is disabled explicitly")
	case o.CT != nil && o.CTDisabled:
		return nil, errors.New("ca: there is a CT log and it is disabled")
	case o.CTDetached && !takesCertificates(o.CT):
		return nil, errors.New("ca: detached SCTs need a CT log that takes certificates")
	case o.OneTimeTokens && (o.Recorder == nil || o.CTDetached):
		return nil, errors.New("ca: tokens that count once need a recorder, and SCTs that are not detached")
	case o.Lifetime < time.Minute || o.Lifetime > maxLifetime:
		return nil, fmt.Errorf("ca: certificate lifetime %s is not between %s and %s", o.Lifetime, time.Minute, maxLifetime)
	case o.Backdate < 0 || o.Backdate > maxBackdate || o.Backdate >= o.Lifetime:
		return nil, fmt.Errorf("ca: backdate %s is not between 0 and %s", o.Backdate, maxBackdate)
	}
	if o.IdentityLimit != (identity.RateLimit{}) {
		if err := o.IdentityLimit.Check(); err != nil {
			return nil, fmt.Errorf("ca: limit of an identity: %w", err)
		}
	}
	if err := CheckChain(o.Chain, o.Signer.Public(), o.Now()); err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	s := &snapshot{
		opts: o, logger: o.Logger, notAfter: o.Chain[0].NotAfter, identities: ca.identities, clock: &ca.clock, metrics: ca.metrics,
		signer: &watchedSigner{Signer: o.Signer, seconds: ca.metrics.signerTime},
	}
	var err error
	if s.permitted, err = permitted(o.Algorithms); err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	if s.issuing, err = newIssuing(o.Chain[0], s.signer); err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	if o.CT != nil {
		if _, err := newCTLog(o.CT.LogKey()); err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
	}
	for _, cert := range o.Chain {
		s.chainDER = append(s.chainDER, cert.Raw)
		s.chainPEM = append(s.chainPEM, strings.TrimSpace(encodePEM(cert.Raw)))
		if cert.NotAfter.Before(s.notAfter) {
			s.notAfter = cert.NotAfter
		}
		if cert.NotBefore.After(s.notBefore) {
			s.notBefore = cert.NotBefore
		}
	}
	if err := s.issuing.selfTest(o.Rand); err != nil {
		return nil, fmt.Errorf("ca: test signature: %w", err)
	}
	return s, nil
}

// selfTest signs once, so that a wrong PIN or a broken token shows before the first client.
func (i *issuing) selfTest(random io.Reader) error {
	sum := digest(i.sig.hash, []byte("test signature"))
	sig, err := i.signer.Sign(random, sum, i.sig.hash)
	if err != nil {
		return err
	}
	if !verifyDigest(i.signer.Public(), i.sig.hash, sum, sig) {
		return errors.New("it does not verify")
	}
	return nil
}

func takesCertificates(log CTSubmitter) bool {
	_, ok := log.(CTChainSubmitter)
	return ok
}

func sumSPKI(cert *x509.Certificate) [32]byte { return sha256.Sum256(cert.RawSubjectPublicKeyInfo) }

// window returns the validity of a certificate issued now: never beyond the chain's, and an
// error when the chain is not valid now (upstream issues from an expired intermediate).
func (ca *snapshot) window() (notBefore, notAfter time.Time, err error) {
	now := ca.opts.Now().UTC().Truncate(time.Second)
	if err := ca.clock.check(now); err != nil {
		return notBefore, notAfter, err
	}
	notBefore = now.Add(-ca.opts.Backdate)
	if notBefore.Before(ca.notBefore) {
		notBefore = ca.notBefore
	}
	notAfter = notBefore.Add(ca.opts.Lifetime)
	if notAfter.After(ca.notAfter) {
		notAfter = ca.notAfter
	}
	if now.Before(ca.notBefore) || !now.Before(ca.notAfter) {
		return notBefore, notAfter, fault.New(fault.Unavailable, "ca_expired", nil,
			"%s: the CA's own certificates are valid from %s to %s", textBackend, ca.notBefore.UTC().Format(time.RFC3339), ca.notAfter.UTC().Format(time.RFC3339))
	}
	return notBefore, notAfter, nil
}

// audit writes the line that joins a certificate to its token and to its log entry.
func (ca *snapshot) audit(p *identity.Principal, c *Issued, entry *timestampedEntry, requestID string) {
	attrs := []any{
		"serial", hex.EncodeToString(c.Serial),
		"oidc_issuer", p.OIDCIssuer,
		"issuer_type", string(p.IssuerType),
		"token", hex.EncodeToString(p.Fingerprint[:]),
		"not_after", c.NotAfter.UTC().Format(time.RFC3339),
		"request_id", requestID,
	}
	if p.Rule != "" {
		attrs = append(attrs, "rule", p.Rule)
	}
	if ca.opts.AuditSubject {
		attrs = append(attrs, "subject", p.SAN.Value)
	} else {
		sum := sha256.Sum256([]byte(p.SAN.Value))
		attrs = append(attrs, "subject_sha256", hex.EncodeToString(sum[:]))
	}
	if entry != nil {
		leafHash := entry.leafHash()
		attrs = append(attrs, "leaf_hash", hex.EncodeToString(leafHash[:]), "sct_timestamp_millis", entry.timestampMillis)
	}
	ca.logger.Info("certificate issued", attrs...)
}
