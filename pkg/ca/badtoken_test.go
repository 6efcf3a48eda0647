package ca_test

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"

	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

// badToken is a token that must not make a certificate.
type badToken struct {
	name   string
	token  func(w *world) string
	reason string
}

// saying returns a token of the world's issuer with changed claims.
func saying(changes map[string]any) func(*world) string {
	return func(w *world) string { return w.idp.Token(w.clock(), changes) }
}

// at returns a token with a date that far from now.
func at(claim string, d time.Duration) func(*world) string {
	return func(w *world) string {
		return w.idp.Token(w.clock(), map[string]any{claim: w.clock().Add(d).Unix()})
	}
}

// signed returns a token over the world's claims as JSON, changed by edit.
func signed(edit func(payload string) string) func(*world) string {
	return func(w *world) string {
		payload, err := json.Marshal(w.idp.Claims(w.clock(), nil))
		if err != nil {
			w.t.Fatal(err)
		}
		return w.idp.Sign("es", jose.ES256, []byte(edit(string(payload))))
	}
}

func hmacWithPublicKey(w *world) string {
	der, err := x509.MarshalPKIXPublicKey(w.idp.PrivateKey("rs").Public())
	if err != nil {
		w.t.Fatal(err)
	}
	payload, err := json.Marshal(w.idp.Claims(w.clock(), nil))
	if err != nil {
		w.t.Fatal(err)
	}
	return identitytest.Sign(w.t, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), "rs", jose.HS256, payload)
}

func unsigned(w *world) string {
	parts := strings.Split(w.token(), ".")
	return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + "."
}

// TestBadTokensGetNoCertificate sends every kind of bad token through the API: status, stable reason, and nothing
// reaches the CT log.
func TestBadTokensGetNoCertificate(t *testing.T) {
	type m = map[string]any
	kubernetes := func(changes m) m {
		out := m{"email": nil, "sub": "system:serviceaccount:prod:builder", "kubernetes.io": m{"namespace": "prod", "serviceaccount": m{"name": "builder"}}}
		for name, value := range changes {
			out[name] = value
		}
		return out
	}
	pipeline := func(changes m) m {
		out := m{"organization_slug": "a", "pipeline_slug": "b", "build_number": 1, "job_id": "j", "runner_environment": "r", "build_commit": "c", "build_source": "s"}
		for name, value := range changes {
			out[name] = value
		}
		return out
	}
	for _, group := range []struct {
		name   string
		issuer func(*identity.Issuer)
		tokens []badToken
	}{
		{"an issuer of emails", func(*identity.Issuer) {}, []badToken{
			{"alg none", unsigned, "malformed_token"},
			{"HS256 with the public key", hmacWithPublicKey, "malformed_token"},
			{"a wrong audience", saying(m{"aud": "kubernetes"}), "aud_mismatch"},
			{"a missing audience", saying(m{"aud": nil}), "aud_mismatch"},
			{"a list without our audience", saying(m{"aud": []string{"a", "sigstore2"}}), "aud_mismatch"},
			{"a list of lists with our audience", saying(m{"aud": []any{[]string{"sigstore"}}}), "aud_mismatch"},
			{"an object for an audience", saying(m{"aud": m{"sigstore": true}}), "aud_mismatch"},
			{"the issuer with a slash", func(w *world) string { return w.idp.Token(w.clock(), m{"iss": w.idp.URL + "/"}) }, "unknown_issuer"},
			{"the issuer in upper case", func(w *world) string { return w.idp.Token(w.clock(), m{"iss": strings.ToUpper(w.idp.URL)}) }, "unknown_issuer"},
			{"the issuer behind a user", func(w *world) string {
				return w.idp.Token(w.clock(), m{"iss": strings.Replace(w.idp.URL, "://", "://evil@", 1)})
			}, "unknown_issuer"},
			{"the issuer encoded", func(w *world) string { return w.idp.Token(w.clock(), m{"iss": w.idp.URL + "%2F"}) }, "unknown_issuer"},
			{"the issuer in a list", func(w *world) string { return w.idp.Token(w.clock(), m{"iss": []string{w.idp.URL}}) }, "unknown_issuer"},
			{"expired a second ago", at("exp", -time.Second), "expired"},
			{"no end", saying(m{"exp": nil}), "claim_missing:exp"},
			{"an end in words", saying(m{"exp": "never"}), "malformed_token"},
			{"an end beyond all time", signed(func(p string) string { return strings.Replace(p, `"exp":`, `"exp":1e999,"was":`, 1) }), "malformed_token"},
			{"not valid yet", at("nbf", 6*time.Minute), "not_yet_valid"},
			{"issued in the future", at("iat", 6*time.Minute), "not_yet_valid"},
			{"a claim twice", signed(func(p string) string { return strings.Replace(p, `{`, `{"email":"root@example.com",`, 1) }), "malformed_token"},
			{"a claim twice, once in escapes", signed(func(p string) string { return strings.Replace(p, `{`, `{"\u0065mail":"root@example.com",`, 1) }), "malformed_token"},
			{"text after the claims", signed(func(p string) string { return p + "{}" }), "malformed_token"},
			{"an email of nobody", saying(m{"email": nil}), "claim_missing:email"},
			{"an empty email", saying(m{"email": ""}), "claim_missing:email"},
			{"a list of emails", saying(m{"email": []string{"alice@example.com"}}), "claim_missing:email"},
			{"an email that is not verified", saying(m{"email_verified": false}), "email_unverified"},
			{"an email without a word on it", saying(m{"email_verified": nil}), "email_unverified"},
			{"an email verified by a number", saying(m{"email_verified": 1}), "claim_rejected"},
			{"an email in Cyrillic", saying(m{"email": "аlice@example.com"}), "claim_rejected"},
			{"an email with a newline", saying(m{"email": "alice@example.com\n"}), "claim_rejected"},
			{"an email with a NUL", saying(m{"email": "alice@example.com\x00.evil.example"}), "claim_rejected"},
			{"an email with a zero-width space", saying(m{"email": "al\u200bice@example.com"}), "claim_rejected"},
			{"an email that is turned around", saying(m{"email": "alice\u202e@example.com"}), "claim_rejected"},
			{"an email with a comment", saying(m{"email": "alice(root)@example.com"}), "claim_rejected"},
			{"two emails", saying(m{"email": "alice@example.com,bob@example.com"}), "claim_rejected"},
			{"a subject of nobody", saying(m{"sub": nil}), "claim_missing:sub"},
			{"a subject with a byte order mark", saying(m{"sub": "alice\ufeff"}), "claim_rejected"},
			{"a subject with a word joiner", saying(m{"sub": "al\u2060ice"}), "claim_rejected"},
			{"an oversized subject", saying(m{"sub": strings.Repeat("a", 5000)}), "claim_rejected"},
			{"a key of another", func(w *world) string {
				payload, err := json.Marshal(w.idp.Claims(w.clock(), nil))
				if err != nil {
					w.t.Fatal(err)
				}
				return identitytest.Sign(w.t, identitytest.NewECKey(w.t), "es", jose.ES256, payload)
			}, "bad_signature"},
		}},
		{"a pattern", func(i *identity.Issuer) {
			i.URL, i.Wildcard, i.Type = "https://*.clusters.example.com/id/*", true, identity.Kubernetes
		}, []badToken{
			{"a dot within a star", saying(m{"iss": "https://a.b.clusters.example.com/id/1"}), "unknown_issuer"},
			{"a slash within a star", saying(m{"iss": "https://a.clusters.example.com/id/1/2"}), "unknown_issuer"},
			{"a user within a star", saying(m{"iss": "https://evil@a.clusters.example.com/id/1"}), "unknown_issuer"},
			{"a host before a user", saying(m{"iss": "https://a.clusters.example.com/id/1@evil.example"}), "unknown_issuer"},
			{"an encoded slash within a star", saying(m{"iss": "https://a.clusters.example.com/id/1%2F2"}), "unknown_issuer"},
			{"a port within a star", saying(m{"iss": "https://a:443.clusters.example.com/id/1"}), "unknown_issuer"},
			{"nothing for a star", saying(m{"iss": "https://.clusters.example.com/id/1"}), "unknown_issuer"},
			{"the pattern itself", saying(m{"iss": "https://*.clusters.example.com/id/*"}), "unknown_issuer"},
			{"the pattern within another URL", saying(m{"iss": "https://evil.example/?https://a.clusters.example.com/id/1"}), "unknown_issuer"},
			{"a newline at the end", saying(m{"iss": "https://a.clusters.example.com/id/1\n"}), "unknown_issuer"},
		}},
		{"a cluster", func(i *identity.Issuer) { i.Type = identity.Kubernetes }, []badToken{
			{"no claims of Kubernetes", saying(kubernetes(m{"kubernetes.io": nil})), "claim_missing:kubernetes.io.namespace"},
			{"claims of Kubernetes that are text", saying(kubernetes(m{"kubernetes.io": "prod"})), "claim_missing:kubernetes.io.namespace"},
			{"an empty namespace", saying(kubernetes(m{"kubernetes.io": m{"namespace": "", "serviceaccount": m{"name": "builder"}}})), "claim_missing:kubernetes.io.namespace"},
			{"no service account", saying(kubernetes(m{"kubernetes.io": m{"namespace": "prod"}})), "claim_missing:kubernetes.io.serviceaccount.name"},
			{"another namespace than the subject's", saying(kubernetes(m{"sub": "system:serviceaccount:dev:builder"})), "claim_rejected"},
			{"another account than the subject's", saying(kubernetes(m{"sub": "system:serviceaccount:prod:root"})), "claim_rejected"},
			{"a subject that is no account", saying(kubernetes(m{"sub": "builder"})), "claim_rejected"},
			{"a namespace that is a path", saying(m{"email": nil, "sub": "system:serviceaccount:a/b:c", "kubernetes.io": m{"namespace": "a/b", "serviceaccount": m{"name": "c"}}}), "claim_rejected"},
			{"a namespace that climbs", saying(m{"email": nil, "sub": "system:serviceaccount:..:c", "kubernetes.io": m{"namespace": "..", "serviceaccount": m{"name": "c"}}}), "claim_rejected"},
		}},
		{"user names", func(i *identity.Issuer) { i.Type, i.SubjectDomain = identity.Username, "127.0.0.1" }, []badToken{
			{"a name that is turned around", saying(m{"sub": "alice\u202etoor"}), "claim_rejected"},
			{"a name with a left-to-right mark", saying(m{"sub": "alice\u200e"}), "claim_rejected"},
			{"a name with a joiner", saying(m{"sub": "al\u200dice"}), "claim_rejected"},
			{"a name with a newline", saying(m{"sub": "alice\nroot"}), "claim_rejected"},
			{"a name with a domain of its own", saying(m{"sub": "root!example.com"}), "claim_rejected"},
			{"a name that is an address", saying(m{"sub": "root@example.com"}), "claim_rejected"},
		}},
		{"pipelines by template", func(i *identity.Issuer) { i.Type, i.CIProvider = identity.CIProvider, "buildkite-job" }, []badToken{
			{"a slug that climbs", saying(pipeline(m{"pipeline_slug": "../other"})), "claim_rejected"},
			{"a slug that climbs in escapes", saying(pipeline(m{"pipeline_slug": "%2e%2e/other"})), "claim_rejected"},
			{"a slug with a newline", saying(pipeline(m{"pipeline_slug": "b\n"})), "claim_rejected"},
			{"a slug with a zero-width space", saying(pipeline(m{"pipeline_slug": "b\u200b"})), "claim_rejected"},
			{"a slug with an encoded NUL", saying(pipeline(m{"pipeline_slug": "b%00"})), "claim_rejected"},
			{"a slug that is no encoding", saying(pipeline(m{"pipeline_slug": "100%"})), "claim_rejected"},
			{"an empty slug", saying(pipeline(m{"pipeline_slug": ""})), "claim_missing:pipeline_slug"},
			{"no slug", saying(pipeline(m{"pipeline_slug": nil})), "claim_missing:pipeline_slug"},
			{"a url with a user", saying(pipeline(m{"url": "https://buildkite.com@evil.example"})), "claim_rejected"},
			{"a url that is none", saying(pipeline(m{"url": "javascript:alert(1)"})), "claim_rejected"},
		}},
	} {
		t.Run(group.name, func(t *testing.T) {
			w := newWorld(t, func(_ *world, _ *ca.Options, i *identity.Issuer) { group.issuer(i) })
			body := v2Body(t, newClientKey(t, "P-256"), "alice-id")
			for _, tt := range group.tokens {
				t.Run(tt.name, func(t *testing.T) {
					wantRefusal(t, w.post("/api/v2/signingCert", tt.token(w), body), 400, codes.InvalidArgument, "", tt.reason)
				})
			}
			if n := len(w.log.chains); n != 0 {
				t.Errorf("%d precertificates were logged", n)
			}
		})
	}
}

// TestATemplateInAClaimIsText: what a token says is never read as a template.
func TestATemplateInAClaimIsText(t *testing.T) {
	w := newWorld(t, func(_ *world, _ *ca.Options, i *identity.Issuer) {
		i.Type, i.CIProvider = identity.CIProvider, "buildkite-job"
	})
	const injected = `{{ .iss }}{{ printf "%1000000000d" 1 }}`
	r := w.post("/api/v2/signingCert", w.idp.Token(w.clock(), map[string]any{
		"organization_slug": "a", "pipeline_slug": "b", "build_number": 1, "job_id": "j", "runner_environment": injected, "build_commit": "c", "build_source": "s",
	}), v2Body(t, newClientKey(t, "P-256"), "alice-id"))
	if r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	for _, e := range embedded(t, r.body)[0].Extensions {
		if e.Id.String() == "1.3.6.1.4.1.57264.1.11" && string(e.Value[2:]) == injected {
			return
		}
	}
	t.Error("the runner environment is not the claim's text")
}

func TestBadKeySetsGetNoCertificate(t *testing.T) {
	elsewhere := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(elsewhere.Close)
	for _, tt := range []struct {
		name string
		keys http.HandlerFunc
	}{
		{"of 100 MB", func(w http.ResponseWriter, _ *http.Request) {
			chunk := []byte(strings.Repeat(" ", 1<<20))
			for range 100 {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}},
		{"on another host", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+"/keys", http.StatusFound)
		}},
		{"that lead to themselves", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }},
		{"that are none", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"keys":[]}`) }},
		{"that are a page", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `<html>sign in</html>`) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.idp.SetHandler(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/keys" {
					tt.keys(rw, r)
					return
				}
				fmt.Fprintf(rw, `{"issuer":%q,"jwks_uri":%q}`, w.idp.URL, w.idp.URL+"/keys")
			}))
			r := w.post("/api/v2/signingCert", w.token(), v2Body(t, newClientKey(t, "P-256"), "alice-id"))
			wantRefusal(t, r, 503, codes.Unavailable, tokenText, "issuer_unreachable")
			if n := len(w.log.chains); n != 0 {
				t.Errorf("%d precertificates were logged", n)
			}
		})
	}
}
