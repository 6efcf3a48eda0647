package issuer

import (
	"net/url"
	"slices"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// outOfBand is the redirect URI with which cosign and sigstore-python ask for the code to be
// shown to the user, who types it into the terminal.
const outOfBand = "urn:ietf:wg:oauth:2.0:oob"

// client is the one registered client: public, native, PKCE, any loopback redirect URI.
type client struct{ loginURL string }

var _ op.HasRedirectGlobs = client{}

func (client) GetID() string                       { return ClientID }
func (client) ApplicationType() op.ApplicationType { return op.ApplicationTypeNative }
func (client) AuthMethod() oidc.AuthMethod         { return oidc.AuthMethodNone }
func (client) RedirectURIs() []string              { return []string{outOfBand} }
func (client) PostLogoutRedirectURIs() []string    { return nil }

// RedirectURIGlobs covers any port and path of loopback: cosign and sigstore-python come back
// to /auth/callback, @sigstore/cli to the bare origin. A URI such as
// http://localhost:1@elsewhere/ matches too, but the library then also demands that the
// parsed host of a native client's http URI is loopback.
func (client) RedirectURIGlobs() []string {
	var globs []string
	for _, host := range []string{"localhost", "127.0.0.1", `\[::1\]`} {
		globs = append(globs, "http://"+host+":*", "http://"+host+":*/**")
	}
	return globs
}
func (client) PostLogoutRedirectURIGlobs() []string { return nil }

func (client) ResponseTypes() []oidc.ResponseType {
	return []oidc.ResponseType{oidc.ResponseTypeCode}
}
func (client) GrantTypes() []oidc.GrantType {
	return []oidc.GrantType{oidc.GrantTypeCode, oidc.GrantTypeDeviceCode}
}
func (c client) LoginURL(id string) string { return c.loginURL + url.QueryEscape(id) }

// AccessTokenType is JWT: sigstore-python 4.5 presents the access token, not the ID token, to
// the CA.
func (client) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }
func (client) IDTokenLifetime() time.Duration      { return tokenLifetime }
func (client) DevMode() bool                       { return false }
func (client) RestrictAdditionalIdTokenScopes() func([]string) []string {
	return slices.Clone[[]string]
}
func (client) RestrictAdditionalAccessTokenScopes() func([]string) []string {
	return slices.Clone[[]string]
}
func (client) IsScopeAllowed(string) bool           { return false }
func (client) IDTokenUserinfoClaimsAssertion() bool { return true }
func (client) ClockSkew() time.Duration             { return 0 }
