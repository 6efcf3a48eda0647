package issuer

import (
	"fmt"
	"maps"
	"net/mail"
	"strings"
	"time"
	"unicode"

	"github.com/attestry/attestry/internal/signer"
)

const maxEmail = 254 // RFC 5321, section 4.5.3.1.3

// TokenRequest says what a token minted without a sign-in holds.
type TokenRequest struct {
	Email    string         // `email` and `sub`; may be empty when Claims has "sub"
	Audience string         // empty: ClientID
	Claims   map[string]any // added last: they replace any claim; a nil value removes it
}

// Token returns a signed identity token, valid for ten minutes unless Claims says otherwise.
func (p *Provider) Token(r TokenRequest) (string, error) {
	claims, err := r.claims(p.issuer, p.now())
	if err != nil {
		return "", err
	}
	return p.key.sign(claims)
}

// Mint returns what Token of a Provider with the key in keyFile and the given issuer URL
// would, at the present time. The key must exist.
func Mint(keyFile, issuerURL string, r TokenRequest) (string, error) {
	s, err := signer.Open("file:"+keyFile, nil)
	if err != nil {
		return "", err
	}
	key, err := newTokenKey(s)
	if err != nil {
		return "", err
	}
	claims, err := r.claims(issuerURL, time.Now())
	if err != nil {
		return "", err
	}
	return key.sign(claims)
}

func (r TokenRequest) claims(issuerURL string, now time.Time) (map[string]any, error) {
	audience := r.Audience
	if audience == "" {
		audience = ClientID
	}
	claims := map[string]any{
		"iss": issuerURL,
		"aud": audience,
		"iat": now.Unix(),
		"exp": now.Add(tokenLifetime).Unix(),
	}
	if r.Email != "" {
		if err := checkEmail(r.Email); err != nil {
			return nil, err
		}
		claims["sub"] = r.Email
		maps.Copy(claims, identityClaims(r.Email))
	}
	for name, value := range r.Claims {
		if value == nil {
			delete(claims, name)
			continue
		}
		claims[name] = value
	}
	if claims["sub"] == nil {
		return nil, fmt.Errorf("a token needs an email or a sub claim")
	}
	return claims, nil
}

// identityClaims is what every token says about a person beside `sub`.
func identityClaims(email string) map[string]any {
	return map[string]any{"email": email, "email_verified": true, "name": displayName(email)}
}

// displayName makes "Alice Smith" of alice.smith@example.com.
func displayName(email string) string {
	local, _, _ := strings.Cut(email, "@")
	words := strings.FieldsFunc(local, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
	for i, word := range words {
		first := []rune(word)
		first[0] = unicode.ToUpper(first[0])
		words[i] = string(first)
	}
	return strings.Join(words, " ")
}

// checkEmail accepts a bare address only: no display name, no comment, no route.
func checkEmail(email string) error {
	parsed, err := mail.ParseAddress(email)
	if err != nil || parsed.Address != email || len(email) > maxEmail {
		return fmt.Errorf("%q is not an email address", email)
	}
	return nil
}
