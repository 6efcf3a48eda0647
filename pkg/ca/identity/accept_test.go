package identity_test

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

// TestIssuersThatMindWhatIsAccepted: a Kubernetes API server has its keys as application/jwk-set+json and answers 406 to
// whoever accepts application/json alone.
func TestIssuersThatMindWhatIsAccepted(t *testing.T) {
	c, p := newClock(), identitytest.New(t)
	p.SetHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind, body := "application/json", []byte(nil)
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			body, _ = json.Marshal(map[string]any{"issuer": p.URL, "jwks_uri": p.URL + "/openid/v1/jwks", "id_token_signing_alg_values_supported": []string{"ES256"}}) // cannot fail
		case "/openid/v1/jwks":
			kind, body = "application/jwk-set+json", p.JWKS()
		}
		accept := strings.Split(strings.ReplaceAll(r.Header.Get("Accept"), " ", ""), ",")
		if accept[0] != "" && !slices.Contains(accept, "*/*") && !slices.Contains(accept, kind) {
			w.WriteHeader(http.StatusNotAcceptable)
			return
		}
		w.Header().Set("Content-Type", kind)
		w.Write(body)
	}))
	if _, err := verifier(t, c, emailIssuer(p)).Verify(context.Background(), p.Token(c.now(), nil)); err != nil {
		t.Error(err)
	}
}
