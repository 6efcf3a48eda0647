// Package identity decides who asks for a certificate: it verifies identity tokens against
// the configured OIDC issuers and maps their claims to what a certificate says.
//
// The configuration format and the mapping are Fulcio's; where Fulcio v1.8.8 is lax, the
// comments name the difference.
package identity

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Principal is what a verified identity token entitles its bearer to.
type Principal struct {
	SAN        SAN
	Extensions []Extension // ascending by Arc, no empty values
	// Challenges are the strings a proof of possession may be made over: `sub`, `email` when the
	// token has one, and the claim that the issuer's challenge-claim names. cosign and
	// sigstore-go sign the email whenever the token has one; sigstore-js 4 signs `sub` for every
	// private issuer. All come from one verified token, so each proves possession equally.
	Challenges  []string
	OIDCIssuer  string // the token's iss
	Subject     string // the token's sub
	IssuerType  Type
	Rule        string   // the rule that allowed it, "" when none matched
	Fingerprint [32]byte // SHA-256 of the token's signature part: names the token in logs without giving it away
	// TokenID is the same for every form of one token, which Fingerprint is not: an ECDSA signature has a twin.
	TokenID [32]byte
	Expires time.Time // when the token stops counting, leeway included
}

// SANKind is the form of a subject alternative name.
type SANKind int

const (
	SANEmail    SANKind = iota // rfc822Name
	SANURI                     // uniformResourceIdentifier
	SANUsername                // otherName 1.3.6.1.4.1.57264.1.7, UTF8String
)

// String returns the kind's name.
func (k SANKind) String() string {
	switch k {
	case SANEmail:
		return "email"
	case SANURI:
		return "URI"
	default:
		return "otherName"
	}
}

// SAN is the one subject alternative name of a certificate.
type SAN struct {
	Kind  SANKind
	Value string // e-mail addresses and URIs are ASCII
}

// Extension is one certificate extension under 1.3.6.1.4.1.57264.1, by its last arc.
type Extension struct {
	Arc   int
	Value string // valid UTF-8 without control and invisible characters
}

const (
	extensionPrefix = "1.3.6.1.4.1.57264.1."
	lastArc         = 24
)

// Arcs under 1.3.6.1.4.1.57264.1 that every certificate has.
const (
	arcIssuer   = 1
	arcIssuerV2 = 8
	arcSubject  = 24
)

// arcWorkflowName is free text for people: nothing is decided by it.
const arcWorkflowName = 4

// Type is how an issuer's claims are mapped to a certificate.
type Type string

const (
	Email             Type = "email"
	Username          Type = "username"
	URI               Type = "uri"
	Kubernetes        Type = "kubernetes"
	SPIFFE            Type = "spiffe"
	CIProvider        Type = "ci-provider"
	GitHubWorkflow    Type = "github-workflow"
	GitLabPipeline    Type = "gitlab-pipeline"
	BuildkiteJob      Type = "buildkite-job"
	CodefreshWorkflow Type = "codefresh-workflow"
	Chainguard        Type = "chainguard-identity"
)

func (t Type) known() bool {
	switch t {
	case Email, Username, URI, Kubernetes, SPIFFE, CIProvider, GitHubWorkflow, GitLabPipeline, BuildkiteJob, CodefreshWorkflow, Chainguard:
		return true
	}
	return false
}

// maxValue bounds one value that goes into a certificate.
const maxValue = 4 << 10

// printable reports whether s may stand in a certificate: valid UTF-8 of bounded length without
// anything that a reader cannot see or that reorders what is seen: control characters, format
// characters (zero-width, bidi, soft hyphen, tags, byte order mark), line and paragraph separators.
func printable(s string) bool { return printableBut(s, "") }

// readable is printable for text that names nobody: U+200C and U+200D join letters of some scripts
// and the parts of emoji, which names of workflows have.
func readable(s string) bool { return printableBut(s, "\u200c\u200d") }

func printableBut(s, allowed string) bool {
	if len(s) > maxValue || !utf8.ValidString(s) {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r != ' ' && !strings.ContainsRune(allowed, r) && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
	})
}

func fingerprint(token string) [32]byte {
	return sha256.Sum256([]byte(token[strings.LastIndexByte(token, '.')+1:]))
}

// tokenID names a verified token by its jti, which its issuer gives to one token alone (RFC 7519, section 4.1.7), or
// else by its header and payload as the signature covers them. Neither can be changed without a new signature.
func tokenID(c claims, token string) [32]byte {
	if jti := c.text("jti"); jti != "" {
		iss := c.text("iss")
		return sha256.Sum256(fmt.Appendf(nil, "jti %d %s %s", len(iss), iss, jti))
	}
	return sha256.Sum256([]byte("jws " + token[:max(0, strings.LastIndexByte(token, '.'))])) // claims that are only explained have no token
}

// Claimed is what a token says of itself without being verified, as far as it may be kept.
type Claimed struct {
	Entry       *Issuer  // the configured issuer that its iss belongs to, see Verifier.Entry; nil when there is none
	OIDCIssuer  string   // its iss; "" without an Entry, or when it may not be kept
	Fingerprint [32]byte // as Principal has it
}

// Claimed looks at token; ok tells whether it is a well-formed token at all.
func (v *Verifier) Claimed(token string) (out Claimed, ok bool) {
	payload, err := splitToken(token)
	if err != nil {
		return out, false
	}
	c, err := parseClaims(payload)
	if err != nil {
		return out, false
	}
	iss := c.text("iss")
	out = Claimed{Entry: v.Entry(iss), Fingerprint: fingerprint(token)}
	if out.Entry != nil && printable(iss) {
		out.OIDCIssuer = iss
	}
	return out, true
}
