package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"text/template"

	"github.com/attestry/attestry/internal/fault"
)

func missing(name string) error {
	return fault.New(fault.Unauthentic, ReasonClaimMissing+":"+name, nil, "the token has no claim %s", name)
}

func rejected(format string, args ...any) error {
	return fault.New(fault.Unauthentic, ReasonClaimRejected, nil, format, args...)
}

// mapper turns the claims of a verified token into what the certificate says.
type mapper func(c claims) (san SAN, certIssuer string, extensions []Extension, err error)

// mapper returns the mapping of the issuer. The configuration has been validated.
func (i *Issuer) mapper(cfg *Config) (mapper, error) {
	byType, err := i.typeMapper(cfg)
	if err != nil || i.SANTemplate == "" {
		return byType, err
	}
	t, err := i.sanTemplate()
	if err != nil {
		return nil, fmt.Errorf("subject-alternative-name-template: %w", err)
	}
	return func(c claims) (SAN, string, []Extension, error) {
		// What the type demands of the claims holds under any name.
		_, certIssuer, extensions, err := byType(c)
		if err != nil {
			return SAN{}, "", nil, err
		}
		san, err := t.san(c)
		return san, certIssuer, extensions, err
	}, nil
}

func (i *Issuer) typeMapper(cfg *Config) (mapper, error) {
	switch i.Type {
	case Email:
		return i.emailMapper()
	case CIProvider:
		return providerMapper(cfg, i.CIProvider)
	case GitHubWorkflow, GitLabPipeline, BuildkiteJob, CodefreshWorkflow:
		return fixedMapper(i.Type)
	}
	name := map[Type]func(*Issuer, claims) (SAN, error){
		Username: usernameSAN, URI: uriSAN, Kubernetes: kubernetesSAN, SPIFFE: spiffeSAN, Chainguard: chainguardSAN,
	}[i.Type]
	if name == nil {
		return nil, errors.New("type is not known")
	}
	return func(c claims) (SAN, string, []Extension, error) {
		san, err := name(i, c)
		return san, c.text("iss"), nil, err
	}, nil
}

func (i *Issuer) emailMapper() (mapper, error) {
	path := []string{"iss"}
	if i.IssuerClaim != "" {
		var err error
		if path, err = parseClaimPath(i.IssuerClaim); err != nil {
			return nil, err
		}
	}
	return func(c claims) (SAN, string, []Extension, error) {
		email := c.text("email")
		if email == "" {
			return SAN{}, "", nil, missing("email")
		}
		verified, err := c.verified()
		if err != nil {
			return SAN{}, "", nil, err
		}
		if !verified && !i.SkipEmailVerification {
			return SAN{}, "", nil, fault.New(fault.Unauthentic, ReasonEmailUnverified, nil, "the token's email is not verified")
		}
		if !validEmail(email) {
			return SAN{}, "", nil, rejected("the token's email is not an address that a certificate can hold")
		}
		issuer := c.at(path)
		if issuer == "" {
			return SAN{}, "", nil, missing(strings.Join(path, "."))
		}
		return SAN{SANEmail, email}, issuer, nil, nil
	}, nil
}

func providerMapper(cfg *Config, name string) (mapper, error) {
	provider, err := cfg.provider(name, nil)
	if err != nil {
		return nil, err
	}
	return func(c claims) (SAN, string, []Extension, error) {
		data := maps.Clone(provider.defaults)
		if data == nil {
			data = map[string]string{}
		}
		c.flatten(data)
		return provider.principal(c, data)
	}, nil
}

func fixedMapper(t Type) (mapper, error) {
	fixed := fixedTypes()[t]
	provider, err := fixed.provider.compile(template.FuncMap{"joinpath": joinPath, "https": httpsURI})
	if err != nil {
		return nil, err
	}
	return func(c claims) (SAN, string, []Extension, error) {
		data := map[string]string{}
		c.flatten(data)
		for _, claim := range fixed.required {
			if data[claim] == "" {
				return SAN{}, "", nil, missing(claim)
			}
		}
		if t == GitLabPipeline {
			if r := data["ref_type"]; r != "branch" && r != "tag" {
				return SAN{}, "", nil, rejected("the token's ref_type is neither branch nor tag")
			}
			if data["runner_id"] == "0" {
				return SAN{}, "", nil, missing("runner_id")
			}
		}
		for name, value := range fixed.provider.Defaults {
			if data[name] == "" || name == fixedURL {
				data[name] = value
			}
		}
		return provider.principal(c, data)
	}, nil
}

func usernameSAN(i *Issuer, c claims) (SAN, error) {
	sub := c.text("sub")
	if strings.Contains(sub, "!") || looksLikeEmail(sub) {
		return SAN{}, rejected("the token's sub is not a user name: it contains ! or is an e-mail address")
	}
	return SAN{SANUsername, sub + "!" + i.SubjectDomain}, nil
}

func uriSAN(i *Issuer, c claims) (SAN, error) {
	sub := c.text("sub")
	if looksLikeEmail(sub) {
		return SAN{}, rejected("the token's sub is an e-mail address, not a URI")
	}
	u, err := url.Parse(sub)
	if err != nil {
		return SAN{}, rejected("the token's sub is not a URI")
	}
	domain, err := url.Parse(i.SubjectDomain)
	if err != nil {
		return SAN{}, err
	}
	// Port and userinfo count too: upstream compares the host name alone.
	if u.Scheme != domain.Scheme || u.Host != domain.Host || u.User != nil {
		return SAN{}, rejected("the token's sub is not a URI below the subject domain")
	}
	return uriName(sub)
}

// serviceAccountOf returns what a projected service-account token says beside its sub.
func serviceAccountOf(c claims) (namespace, name string) {
	io, _ := c["kubernetes.io"].(map[string]any)
	account, _ := io["serviceaccount"].(map[string]any)
	namespace, _ = io["namespace"].(string)
	name, _ = account["name"].(string)
	return namespace, name
}

func kubernetesSAN(_ *Issuer, c claims) (SAN, error) {
	namespace, name := serviceAccountOf(c)
	// Upstream checks neither and would name the account /namespaces//serviceaccounts/.
	if namespace == "" {
		return SAN{}, missing("kubernetes.io.namespace")
	}
	if name == "" {
		return SAN{}, missing("kubernetes.io.serviceaccount.name")
	}
	if c.text("sub") != "system:serviceaccount:"+namespace+":"+name || strings.ContainsAny(namespace+name, "/:?#% ") {
		return SAN{}, rejected("the token's sub and kubernetes.io claims name different service accounts")
	}
	return uriName("https://kubernetes.io/namespaces/" + namespace + "/serviceaccounts/" + name)
}

func spiffeSAN(i *Issuer, c claims) (SAN, error) {
	sub := c.text("sub")
	if err := checkSPIFFEID(sub, i.SPIFFETrustDomain); err != nil {
		return SAN{}, err
	}
	return SAN{SANURI, sub}, nil
}

func chainguardSAN(_ *Issuer, c claims) (SAN, error) {
	if c.text("email") != "" {
		verified, err := c.verified()
		if err != nil {
			return SAN{}, err
		}
		if !verified {
			return SAN{}, fault.New(fault.Unauthentic, ReasonEmailUnverified, nil, "the token's email is not verified")
		}
	}
	value, err := joinPath(c.text("iss"), c.text("sub"))
	if err != nil {
		return SAN{}, rejected("the token's sub does not fit into a URI")
	}
	return uriName(value)
}

// joinPath appends parts to base, cleaned and percent-encoded, as upstream's hard-coded types do.
// What would be resolved away or cannot be read is an error: upstream names such a token by base alone.
func joinPath(base string, parts ...string) (string, error) {
	u, err := url.Parse(base)
	if err != nil {
		return "", err
	}
	for _, p := range parts {
		plain, err := url.PathUnescape(p)
		if err != nil {
			return "", err
		}
		if dotSegments(plain) {
			return "", errors.New("dots for a segment of a path")
		}
	}
	return u.JoinPath(parts...).String(), nil
}

// httpsURI returns what GitLab writes without scheme as a URI.
func httpsURI(s string) (string, error) {
	u, err := url.Parse("https://" + s)
	if err != nil {
		return "", err
	}
	return u.String(), nil
}

// uriName returns value as url.Parse and String write it: upstream does the same, so that
// policies written for it (spaces and non-ASCII percent-encoded) match. What a reader or a
// resolver of the URI would see differently than we do is refused, encoded or not.
func uriName(value string) (SAN, error) {
	refuse := func(how string) (SAN, error) {
		return SAN{}, fault.New(fault.Invalid, ReasonClaimRejected, nil, "the claims make a subject alternative name %s", how)
	}
	if !printable(value) {
		return refuse("that is too long or has control or invisible characters")
	}
	u, err := url.Parse(value)
	if err != nil {
		return refuse("that is not a URI")
	}
	query, err := url.PathUnescape(u.RawQuery)
	switch {
	case u.Scheme == "" || u.Host == "" || !ascii(u.Host):
		return refuse("without scheme or ASCII host")
	case u.User != nil:
		return refuse("with a user before its host")
	case dotSegments(u.Path):
		return refuse("with dots for a segment of its path")
	case err != nil || !printable(u.Path) || !printable(query) || !printable(u.Fragment):
		return refuse("that has control or invisible characters")
	}
	text := u.String()
	if !ascii(text) {
		return refuse("that is not ASCII")
	}
	return SAN{SANURI, text}, nil
}

// checkSPIFFEID follows the SPIFFE ID specification, section 2.
func checkSPIFFEID(id, trustDomain string) error {
	rest, ok := strings.CutPrefix(id, "spiffe://")
	domain, path, hasPath := strings.Cut(rest, "/")
	if !ok || len(id) > 2048 || !validTrustDomain(domain) {
		return rejected("the token's sub is not a SPIFFE ID")
	}
	if domain != trustDomain {
		return rejected("the token's sub is a SPIFFE ID of another trust domain")
	}
	if !hasPath {
		return nil
	}
	for segment := range strings.SplitSeq(path, "/") {
		bad := strings.ContainsFunc(segment, func(r rune) bool { return r != '.' && (r >= 0x80 || !inClass(byte(r))) })
		if segment == "" || segment == "." || segment == ".." || bad {
			return rejected("the token's sub is not a SPIFFE ID")
		}
	}
	return nil
}

// validEmail accepts dot-atom addresses in ASCII: what an IA5String and every verifier's text
// comparison can hold. Case is kept.
func validEmail(s string) bool {
	local, domain, ok := strings.Cut(s, "@")
	if !ok || len(s) > 254 || len(local) > 64 || !ascii(s) {
		return false
	}
	for part := range strings.SplitSeq(local, ".") {
		if part == "" || strings.ContainsFunc(part, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`()<>[]:;@\,"`, r) }) {
			return false
		}
	}
	for label := range strings.SplitSeq(domain, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.ContainsFunc(label, func(r rune) bool { return !inClass(byte(r)) }) {
			return false
		}
	}
	return true
}

// looksLikeEmail is wider than validEmail: user names and URIs must not pass for addresses.
func looksLikeEmail(s string) bool {
	at := strings.LastIndexByte(s, '@')
	return at > 0 && at < len(s)-1 && !strings.Contains(s, "://")
}

func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= 0x80 })
}

// parseClaimPath reads the part of JSONPath that names one claim: $.a.b and $['a']['b'].
func parseClaimPath(path string) ([]string, error) {
	rest, ok := strings.CutPrefix(path, "$")
	var out []string
	for ok && rest != "" {
		var name string
		switch {
		case strings.HasPrefix(rest, "['"):
			name, rest, ok = strings.Cut(rest[2:], "']")
		case rest[0] == '.':
			end := strings.IndexAny(rest[1:], ".[")
			if end < 0 {
				end = len(rest) - 1
			}
			name, rest = rest[1:end+1], rest[end+1:]
		default:
			ok = false
		}
		ok = ok && name != "" && !strings.ContainsAny(name, "*?@()")
		out = append(out, name)
	}
	if !ok || len(out) == 0 {
		return nil, errors.New("must be a path such as $.federated_claims.connector_id")
	}
	return out, nil
}

// at returns the text or number at path, "" when there is none.
func (c claims) at(path []string) string {
	var value any = map[string]any(c)
	for _, name := range path {
		object, ok := value.(map[string]any)
		if !ok {
			return ""
		}
		value = object[name]
	}
	switch v := value.(type) {
	case string:
		return v
	case json.Number:
		return plainNumber(v)
	}
	return ""
}
