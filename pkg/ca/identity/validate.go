package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/publicsuffix"
)

// maxLeeway bounds how long after its exp a token may count.
const maxLeeway = 5 * time.Minute

// Validate checks everything that can be known before the first token. All problems come back
// in one error.
func (c *Config) Validate() error {
	var problems []error
	urls := map[string]bool{}
	for k := range c.Issuers {
		i := &c.Issuers[k]
		for _, err := range i.check(c) {
			problems = append(problems, fmt.Errorf("%sissuer %q: %w", at(i.line), i.URL, err))
		}
		if urls[i.URL] {
			problems = append(problems, fmt.Errorf("%sissuer %q is configured twice", at(i.line), i.URL))
		}
		urls[i.URL] = true
		for m := range k {
			other := &c.Issuers[m]
			// Exact URLs win over patterns and longer patterns over shorter ones; patterns of one
			// length that share a URL would leave the choice to chance.
			if i.Wildcard && other.Wildcard && i.URL != other.URL && len(i.URL) == len(other.URL) && overlap(i.URL, other.URL) {
				problems = append(problems, fmt.Errorf("%smeta issuers %q and %q match the same URLs", at(i.line), other.URL, i.URL))
			}
		}
	}
	for name, p := range c.Providers {
		if _, err := c.provider(name, nil); err != nil {
			problems = append(problems, fmt.Errorf("%sCI provider %q: %w", at(p.line), name, err))
		}
	}
	if _, err := c.compileRules(); err != nil {
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

func at(line int) string {
	if line == 0 {
		return ""
	}
	return fmt.Sprintf("line %d: ", line)
}

func (i *Issuer) check(c *Config) []error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }

	parsed, err := i.checkURL()
	if err != nil {
		return []error{err}
	}
	if len(i.audiences()) == 0 {
		add("client-id is required: what the aud of tokens must hold, or audiences")
	}
	for _, a := range i.Audiences {
		if a == "" {
			add("audiences has an empty string")
		}
	}
	if l := i.ClockLeeway; l != nil && (*l < 0 || *l > maxLeeway) {
		add("clock-leeway %v is not between 0s and %v", *l, maxLeeway)
	}
	if !i.Type.known() {
		add("type %q is not known", i.Type)
		return problems
	}
	only := func(name string, set bool, types ...Type) {
		for _, t := range types {
			if i.Type == t {
				return
			}
		}
		if set {
			add("%s does not apply to type %s", name, i.Type)
		}
	}
	if i.RateLimit != nil {
		if err := i.RateLimit.Check(); err != nil {
			add("rate-limit: %w", err)
		}
	}
	only("issuer-claim", i.IssuerClaim != "", Email)
	only("skip-email-verification", i.SkipEmailVerification, Email)
	only("subject-domain", i.SubjectDomain != "", URI, Username)
	only("spiffe-trust-domain", i.SPIFFETrustDomain != "", SPIFFE)
	only("ci-provider", i.CIProvider != "", CIProvider)
	if i.SANTemplate != "" {
		if _, err := i.sanTemplate(); err != nil {
			add("subject-alternative-name-template %q: %w", i.SANTemplate, err)
		}
	}

	switch i.Type {
	case Email:
		if i.IssuerClaim != "" {
			if _, err := parseClaimPath(i.IssuerClaim); err != nil {
				add("issuer-claim %q: %w", i.IssuerClaim, err)
			}
		}
	case CIProvider:
		if i.CIProvider == "" {
			add("ci-provider is required for type ci-provider")
		} else if _, err := c.provider(i.CIProvider, nil); err != nil {
			add("ci-provider %q: %w", i.CIProvider, err)
		}
	case SPIFFE:
		if i.Wildcard {
			add("a SPIFFE issuer stands for one trust domain and cannot be a meta issuer")
		}
		if !validTrustDomain(i.SPIFFETrustDomain) {
			add("spiffe-trust-domain %q is not a SPIFFE trust domain name", i.SPIFFETrustDomain)
		}
	case URI:
		if err := checkSubjectURI(i.SubjectDomain, parsed); err != nil {
			add("subject-domain %q: %w", i.SubjectDomain, err)
		}
	case Username:
		if i.SubjectDomain == "" || strings.ContainsAny(i.SubjectDomain, "/:!@ ") || !printable(i.SubjectDomain) {
			add("subject-domain %q must be a host name without scheme", i.SubjectDomain)
		} else if !sameOwner(i.SubjectDomain, parsed.Hostname()) {
			add("subject-domain %q belongs to another registrable domain than the issuer", i.SubjectDomain)
		}
	}
	if i.Wildcard && (i.Type == URI || i.Type == Username) && strings.Contains(parsed.Host, "*") {
		add("a meta issuer of type %s needs a fixed host", i.Type)
	}
	return append(problems, i.checkSource()...)
}

// checkURL returns the issuer's URL, with * left in place for a pattern.
func (i *Issuer) checkURL() (*url.URL, error) {
	if i.URL == "" {
		return nil, errors.New("issuer-url is required")
	}
	u, err := url.Parse(i.URL)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !printable(i.URL) {
		return nil, errors.New("issuer-url must be a URL of scheme, host and path")
	}
	if err := i.checkScheme(u); err != nil {
		return nil, err
	}
	if !i.Wildcard {
		if strings.Contains(i.URL, "*") {
			return nil, errors.New("a * belongs under meta-issuers")
		}
		return u, nil
	}
	if _, err := compilePattern(i.URL); err != nil {
		return nil, err
	}
	return u, checkPatternHost(i.URL)
}

func (i *Issuer) checkScheme(u *url.URL) error {
	if u.Scheme == "https" || u.Scheme == "http" && i.AllowHTTP {
		return nil
	}
	if u.Scheme == "http" {
		return errors.New("http:// lets anyone on the way replace the issuer's keys; set allow-http: true if that cannot happen")
	}
	return fmt.Errorf("scheme %q is not https", u.Scheme)
}

// checkSource checks where the issuer's keys come from.
func (i *Issuer) checkSource() []error {
	var problems []error
	if i.CACert != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(i.CACert)) {
		problems = append(problems, errors.New("ca-cert holds no PEM certificate"))
	}
	if i.DiscoveryURL != "" {
		if u, err := url.Parse(i.DiscoveryURL); err != nil || u.Host == "" || u.User != nil {
			problems = append(problems, fmt.Errorf("discovery-url %q is not a URL", i.DiscoveryURL))
		} else if err := i.checkScheme(u); err != nil {
			problems = append(problems, fmt.Errorf("discovery-url: %w", err))
		}
	}
	if sources := count(i.DiscoveryURL != "", i.JWKS != "", i.JWKSFile != "", i.Keys != nil); sources > 1 {
		problems = append(problems, errors.New("discovery-url, jwks and jwks-file exclude each other"))
	} else if i.Wildcard && sources > 0 {
		problems = append(problems, errors.New("discovery-url, jwks and jwks-file need an exact issuer-url"))
	}
	return problems
}

func count(bools ...bool) int {
	n := 0
	for _, b := range bools {
		if b {
			n++
		}
	}
	return n
}

func checkSubjectURI(domain string, issuer *url.URL) error {
	u, err := url.Parse(domain)
	if err != nil || u.Scheme == "" || u.Host == "" || u.User != nil {
		return errors.New("must be a URL of scheme and host")
	}
	if u.Scheme != issuer.Scheme {
		return fmt.Errorf("scheme %s is not the issuer's", u.Scheme)
	}
	if !sameOwner(u.Hostname(), issuer.Hostname()) {
		return errors.New("belongs to another registrable domain than the issuer")
	}
	return nil
}

// sameOwner reports whether two host names are equal or share a registrable domain. Fulcio
// compares the last two labels, which makes neighbours of good.co.uk and evil.co.uk.
func sameOwner(a, b string) bool {
	if a == b {
		return true
	}
	ownerA, errA := publicsuffix.EffectiveTLDPlusOne(a)
	ownerB, errB := publicsuffix.EffectiveTLDPlusOne(b)
	return errA == nil && errB == nil && ownerA == ownerB
}

// validTrustDomain follows the SPIFFE ID specification, section 2.1.
func validTrustDomain(s string) bool {
	return s != "" && len(s) <= 255 && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_')
	})
}
