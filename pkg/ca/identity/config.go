package identity

import (
	"errors"
	"fmt"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"go.yaml.in/yaml/v3"

	"github.com/attestry/attestry/internal/limit"
)

// Config says whose identity tokens count, and for what.
type Config struct {
	Issuers   []Issuer
	Providers map[string]Provider // ci-issuer-metadata, by the name that Issuer.CIProvider refers to
	Rules     []Rule              // for the tokens of every issuer, before its own; they can only deny
}

// Issuer is one OIDC issuer, or with Wildcard every issuer whose URL fits a pattern.
type Issuer struct {
	URL       string   // compared byte for byte with a token's iss: a trailing slash makes another issuer
	Wildcard  bool     // URL is a pattern: * stands for one or more of [-_a-zA-Z0-9]
	Audience  string   // client-id; a token's aud must contain it or one of Audiences
	Audiences []string // beside Audience or in its place
	Type      Type

	CIProvider            string // type ci-provider: name in Config.Providers or of a built-in provider
	IssuerClaim           string // type email: path such as $.federated_claims.connector_id of the claim written as issuer
	SubjectDomain         string // types uri (with scheme) and username (without)
	SPIFFETrustDomain     string // type spiffe
	ChallengeClaim        string // advertised to clients; a proof of possession over this claim is accepted too
	SkipEmailVerification bool   // type email: email_verified need not be true
	SANTemplate           string // replaces the URI of a fixed type, see sanVariables

	ClockLeeway *time.Duration // how long after exp a token still counts, 0 to 5m; nil for Options.Leeway

	CACert              string // PEM certificates trusted for this issuer beside the system's
	CACertFile          string // path of a file with such certificates, read anew for each fetch
	DiscoveryURL        string // where discovery is fetched instead of below URL, see source.keysURL
	JWKS                string // the issuer's keys themselves: nothing is fetched
	JWKSFile            string // path of a file with them, read again when it changes
	AllowHTTP           bool   // URL, discovery or keys may be http://
	AllowPrivateNetwork bool   // hosts that the configuration does not name may have private addresses

	Rules        []Rule // in order, the first whose expression is true decides
	RulesDefault string // what holds when none matched: allow, the default as upstream, or deny

	RateLimit *RateLimit // of certificates for tokens of this issuer, or of all those of a pattern together; nil for none

	Description, Contact, Environment string // for people, not evaluated

	// Keys, set in code only, verifies tokens instead of keys fetched over HTTP; Algorithms
	// then limits the accepted signature algorithms (default: all asymmetric ones of go-oidc).
	Keys       oidc.KeySet
	Algorithms []string

	line int
}

// audiences are those that tokens may have, the one that clients are told of first.
func (i *Issuer) audiences() []string {
	if i.Audience == "" {
		return i.Audiences
	}
	return append([]string{i.Audience}, i.Audiences...)
}

// Provider maps the claims of a CI system's tokens to a certificate. A template that contains
// {{ is a text/template over the claims; any other names the one claim to copy.
type Provider struct {
	Extends    string            // start from this provider; what is set here wins
	Defaults   map[string]string // values of absent claims
	Extensions map[string]string // by YAML or JSON name, see extensionArcs
	SAN        string

	line int
}

// Load reads the configuration file at path, YAML or JSON. A missing file is an error: Fulcio
// then trusts public issuers, a private CA must not.
func Load(path string) (*Config, error) {
	data, err := limit.ReadFile(path, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("issuer configuration: %w", err)
	}
	c, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("issuer configuration %s: %w", path, err)
	}
	return c, nil
}

// Parse decodes and checks a configuration in Fulcio's format: oidc-issuers and meta-issuers as
// mappings by URL or as lists, ci-issuer-metadata, and a top-level `define` that holds anchors
// and is not read. The key names of Fulcio's older JSON files work as well. Unknown keys are
// errors. All problems come back in one error, with line numbers.
func Parse(data []byte) (*Config, error) {
	root, err := parseNode(data)
	if err != nil {
		return nil, err
	}
	d := &decoder{}
	c := &Config{Providers: map[string]Provider{}}
	d.fields(root, "the configuration", []field{
		{"oidc-issuers", "OIDCIssuers", func(n *yaml.Node) { d.issuers(c, n, false) }},
		{"meta-issuers", "MetaIssuers", func(n *yaml.Node) { d.issuers(c, n, true) }},
		{"ci-issuer-metadata", "CIIssuerMetadata", func(n *yaml.Node) { d.providers(c, n) }},
		{"rules", "", d.rules(&c.Rules)},
		{"define", "", func(*yaml.Node) {}},
	})
	if len(c.Issuers) == 0 && len(d.problems) == 0 {
		d.problems = append(d.problems, errors.New("no issuer is configured: nobody could get a certificate"))
	}
	if err := c.Validate(); err != nil {
		d.problems = append(d.problems, err)
	}
	if err := errors.Join(d.problems...); err != nil {
		return nil, err
	}
	return c, nil
}

func (d *decoder) issuers(c *Config, n *yaml.Node, wildcard bool) {
	n = resolve(n)
	if n.Kind == yaml.SequenceNode {
		if len(n.Content) > maxEntries {
			d.addf(n, "over %d issuers", maxEntries)
			return
		}
		for _, item := range n.Content {
			item = resolve(item)
			c.Issuers = append(c.Issuers, d.issuer(item, "", wildcard, item.Line))
		}
		return
	}
	d.entries(n, "the issuers", func(key, value *yaml.Node) {
		c.Issuers = append(c.Issuers, d.issuer(value, key.Value, wildcard, key.Line))
	})
}

// issuer decodes one issuer; key is its URL in the mapping form, "" in the list form.
func (d *decoder) issuer(n *yaml.Node, key string, wildcard bool, line int) Issuer {
	i := Issuer{Wildcard: wildcard, line: line}
	var kind, emailVerified string
	var skip *bool
	d.fields(n, "issuer", []field{
		{"issuer-url", "IssuerURL", d.text(&i.URL)},
		{"client-id", "ClientID", d.text(&i.Audience)},
		{"type", "Type", d.text(&kind)},
		{"ci-provider", "CIProvider", d.text(&i.CIProvider)},
		{"issuer-claim", "IssuerClaim", d.text(&i.IssuerClaim)},
		{"subject-domain", "SubjectDomain", d.text(&i.SubjectDomain)},
		{"spiffe-trust-domain", "SPIFFETrustDomain", d.text(&i.SPIFFETrustDomain)},
		{"challenge-claim", "ChallengeClaim", d.text(&i.ChallengeClaim)},
		{"ca-cert", "CACert", d.text(&i.CACert)},
		{"skip-email-verification", "SkipEmailVerification", func(n *yaml.Node) {
			skip = new(bool)
			d.flag(skip)(n)
		}},
		{"description", "Description", d.text(&i.Description)},
		{"contact", "Contact", d.text(&i.Contact)},
		{"environment", "Environment", d.text(&i.Environment)},
		// Ours, without an older spelling.
		{"audiences", "", d.list(&i.Audiences, "audiences")},
		{"email-verified", "", d.text(&emailVerified)},
		{"subject-alternative-name-template", "", d.text(&i.SANTemplate)},
		{"clock-leeway", "", func(n *yaml.Node) {
			i.ClockLeeway = new(time.Duration)
			d.duration(i.ClockLeeway)(n)
		}},
		{"ca-cert-file", "", d.text(&i.CACertFile)},
		{"discovery-url", "", d.text(&i.DiscoveryURL)},
		{"jwks", "", d.text(&i.JWKS)},
		{"jwks-file", "", d.text(&i.JWKSFile)},
		{"allow-http", "", d.flag(&i.AllowHTTP)},
		{"allow-private-network", "", d.flag(&i.AllowPrivateNetwork)},
		{"rules", "", d.rules(&i.Rules)},
		{"rules-default", "", d.text(&i.RulesDefault)},
		{"rate-limit", "", d.rate(&i.RateLimit)},
	})
	i.Type = Type(kind)
	if skip != nil {
		i.SkipEmailVerification = *skip
	}
	switch emailVerified {
	case "":
	case "require", "ignore":
		ignore := emailVerified == "ignore"
		if skip != nil && *skip != ignore {
			d.addf(n, "email-verified: %s contradicts skip-email-verification: %t", emailVerified, *skip)
		}
		i.SkipEmailVerification = ignore
	default:
		d.addf(n, "email-verified %q is neither require nor ignore", emailVerified)
	}
	switch {
	case key == "":
	case wildcard: // as upstream, issuer-url of a meta issuer is not used
		i.URL = key
	case i.URL == "":
		i.URL = key
	case i.URL != key:
		d.addf(n, "issuer-url %q differs from its key %q", i.URL, key)
	}
	return i
}

func (d *decoder) providers(c *Config, n *yaml.Node) {
	d.entries(n, "ci-issuer-metadata", func(key, value *yaml.Node) {
		p := Provider{line: key.Line}
		d.fields(value, "CI provider", []field{
			{"extends", "", d.text(&p.Extends)},
			{"default-template-values", "DefaultTemplateValues", d.strings(&p.Defaults, "default-template-values")},
			{"extension-templates", "ExtensionTemplates", d.strings(&p.Extensions, "extension-templates")},
			{"subject-alternative-name-template", "SubjectAlternativeNameTemplate", d.text(&p.SAN)},
		})
		c.Providers[key.Value] = p
	})
}
