package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/attestry/attestry/internal/fault"
)

// Reasons that a refused token is given, stable for logs and clients. ReasonClaimMissing is
// followed by a colon and the claim's name where it is known.
const (
	ReasonMalformed         = "malformed_token"
	ReasonUnknownIssuer     = "unknown_issuer"
	ReasonIssuerUnreachable = "issuer_unreachable"
	ReasonBadSignature      = "bad_signature"
	ReasonExpired           = "expired"
	ReasonNotYetValid       = "not_yet_valid"
	ReasonAudience          = "aud_mismatch"
	ReasonEmailUnverified   = "email_unverified"
	ReasonClaimMissing      = "claim_missing"
	ReasonClaimRejected     = "claim_rejected"
)

const (
	// MaxToken bounds an identity token, in bytes.
	MaxToken  = 16 << 10
	maxClaims = 256
)

func malformed(err error, format string, args ...any) error {
	return fault.New(fault.Unauthentic, ReasonMalformed, err, format, args...)
}

// claims are a token's claims by their exact names. encoding/json would let a claim "Sub" that
// a user may set stand for "sub".
type claims map[string]any

// splitToken checks the shape of a compact JWS and returns its decoded payload. Length and dots
// are checked before anything is split: unbounded splitting was GHSA-f83f-xpx7-ffpw.
func splitToken(token string) (payload []byte, err error) {
	if token == "" {
		return nil, malformed(nil, "there is no identity token")
	}
	if len(token) > MaxToken {
		return nil, malformed(nil, "the token is over %d bytes", MaxToken)
	}
	dots := 0
	for i := range len(token) {
		switch c := token[i]; {
		case c == '.':
			dots++
		case !inClass(c):
			return nil, malformed(nil, "the token is not a compact JWS")
		}
	}
	if dots != 2 {
		return nil, malformed(nil, "the token is not a compact JWS")
	}
	_, rest, _ := strings.Cut(token, ".")
	middle, _, _ := strings.Cut(rest, ".")
	payload, err = base64.RawURLEncoding.DecodeString(middle)
	if err != nil {
		return nil, malformed(err, "the token's payload is not base64url")
	}
	return payload, nil
}

// parseClaims decodes a JSON object. Repeated names, trailing data and invalid UTF-8 are refused.
func parseClaims(payload []byte) (claims, error) {
	if !utf8.Valid(payload) {
		return nil, malformed(nil, "the token's payload is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber()
	if start, err := dec.Token(); err != nil || start != json.Delim('{') {
		return nil, malformed(err, "the token's payload is not a JSON object")
	}
	out := claims{}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, malformed(err, "the token's payload is not JSON")
		}
		key, _ := name.(string)
		if _, twice := out[key]; twice || len(out) >= maxClaims {
			return nil, malformed(nil, "the token names a claim twice or has over %d", maxClaims)
		}
		var value any
		if err := dec.Decode(&value); err != nil {
			return nil, malformed(err, "the token's payload is not JSON")
		}
		out[key] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, malformed(err, "the token's payload is not JSON")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, malformed(err, "the token's payload has trailing data")
	}
	return out, nil
}

// text returns a string claim, "" when it is absent or of another type.
func (c claims) text(name string) string {
	s, _ := c[name].(string)
	return s
}

// date returns a NumericDate claim (RFC 7519, section 2: seconds since the epoch, fractions
// allowed) and whether it is present.
func (c claims) date(name string) (time.Time, bool, error) {
	raw, ok := c[name]
	if !ok || raw == nil {
		return time.Time{}, false, nil
	}
	number, ok := raw.(json.Number)
	if !ok {
		return time.Time{}, false, malformed(nil, "the token's %s is not a number", name)
	}
	if seconds, err := number.Int64(); err == nil {
		return time.Unix(seconds, 0), true, nil
	}
	f, err := number.Float64()
	if err != nil || f > 1e15 || f < -1e15 {
		return time.Time{}, false, malformed(err, "the token's %s is not a date", name)
	}
	return time.Unix(int64(f), 0), true, nil
}

func (c claims) hasAudience(want string) bool {
	switch aud := c["aud"].(type) {
	case string:
		return aud == want
	case []any:
		for _, a := range aud {
			if a == want {
				return true
			}
		}
	}
	return false
}

// verified reads email_verified. Some providers send it as text.
func (c claims) verified() (bool, error) {
	switch v := c["email_verified"].(type) {
	case nil:
		return false, nil
	case bool:
		return v, nil
	case string:
		switch v {
		case "true", "True":
			return true, nil
		case "false", "False":
			return false, nil
		}
	}
	return false, fault.New(fault.Unauthentic, ReasonClaimRejected, nil, "the token's email_verified is neither true nor false")
}

// flatten writes each claim to dst as text: integers without exponent, true and false, lists
// as [a b] and objects in Go's map form as upstream does. null counts as absent.
func (c claims) flatten(dst map[string]string) {
	for name, value := range c {
		switch v := value.(type) {
		case nil:
		case string:
			dst[name] = v
		case json.Number:
			dst[name] = plainNumber(v)
		default:
			dst[name] = fmt.Sprint(v)
		}
	}
}

func plainNumber(n json.Number) string {
	if !strings.ContainsAny(n.String(), ".eE") {
		return n.String()
	}
	f, err := n.Float64()
	if err != nil {
		return n.String()
	}
	return strconv.FormatFloat(f, 'f', -1, 64)
}
