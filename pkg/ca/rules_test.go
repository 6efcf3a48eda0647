package ca_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/attestry/attestry/internal/gen/fulcio"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity"
)

// ruledWorld lets people in whose ref is protected, and nobody from a fork.
func ruledWorld(t testing.TB) *world {
	return newWorld(t, func(_ *world, _ *ca.Options, i *identity.Issuer) {
		i.Rules = []identity.Rule{
			{Name: "no-forks", Deny: `claims.owner != "acme"`}, {Name: "protected", Allow: `claims.ref_protected == "true"`},
		}
		i.RulesDefault = "deny"
	})
}

func TestRulesRefuseOnEveryWire(t *testing.T) {
	w := ruledWorld(t)
	key := newClientKey(t, "P-256")
	conn, err := grpc.NewClient(strings.TrimPrefix(w.server.URL, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	v1 := map[string]any{"publicKey": map[string]any{"content": []byte(key.pem(t))}, "signedEmailAddress": key.prove(t, "alice@example.com")}
	for name, tt := range map[string]struct {
		claims map[string]any
		text   string // after Fulcio's; "" when issued
	}{
		"who is allowed":       {map[string]any{"owner": "acme", "ref_protected": "true"}, ""},
		"who is denied":        {map[string]any{"owner": "mallory-inc", "ref_protected": "true"}, "rule no-forks denies it"},
		"whom nobody allows":   {map[string]any{"owner": "acme", "ref_protected": "false"}, "no rule allows it"},
		"who lacks the claim":  {map[string]any{"ref_protected": "true"}, "rule no-forks needs the claim owner, which the token does not have"},
		"who has another type": {map[string]any{"owner": "acme", "ref_protected": true}, "rule protected does not fit the token's claims"},
	} {
		t.Run(name, func(t *testing.T) {
			token := w.idp.Token(w.clock(), tt.claims)
			two := w.post("/api/v2/signingCert", token, v2Body(t, key, "alice-id"))
			one := w.post("/api/v1/signingCert", token, v1)
			_, err := fulcio.NewCAClient(conn).CreateSigningCertificate(t.Context(), &fulcio.CreateSigningCertificateRequest{
				Credentials: &fulcio.Credentials{Credentials: &fulcio.Credentials_OidcIdentityToken{OidcIdentityToken: token}},
				Key: &fulcio.CreateSigningCertificateRequest_PublicKeyRequest{PublicKeyRequest: &fulcio.PublicKeyRequest{
					PublicKey: &fulcio.PublicKey{Content: key.pem(t)}, ProofOfPossession: key.prove(t, "alice-id"),
				}},
			})
			if tt.text == "" {
				if two.status != http.StatusOK || one.status != http.StatusCreated || err != nil {
					t.Errorf("v2 %d, v1 %d, gRPC %v", two.status, one.status, err)
				}
				return
			}
			text := tokenText + ": " + tt.text
			wantRefusal(t, two, http.StatusForbidden, codes.PermissionDenied, text, "policy_denied")
			wantRefusal(t, one, http.StatusForbidden, codes.PermissionDenied, text, "policy_denied")
			if s := status.Convert(err); s.Code() != codes.PermissionDenied || !strings.HasPrefix(s.Message(), text) || !strings.Contains(s.Message(), "[reason=policy_denied id=") {
				t.Errorf("gRPC %v", err)
			}
			for _, said := range []string{two.body, one.body, status.Convert(err).Message()} {
				if strings.Contains(said, "mallory") || strings.Contains(said, "alice") {
					t.Errorf("the refusal quotes a claim: %s", said)
				}
			}
		})
	}
	logs := w.logs.String()
	for _, want := range []string{`msg="certificate issued"`, "rule=protected", "reason=policy_denied", "rule=no-forks", `err="rule no-forks denies it"`} {
		if !strings.Contains(logs, want) {
			t.Errorf("the log does not have %s", want)
		}
	}
	for _, never := range []string{"mallory-inc", "alice@example.com", "eyJ"} {
		if strings.Contains(logs, never) {
			t.Errorf("the log has %q", never)
		}
	}
	if len(w.log.chains) != 3 {
		t.Errorf("%d precertificates were logged, want one for each wire", len(w.log.chains))
	}
}

func TestOperatorsMayAskWhatBecomesOfAToken(t *testing.T) {
	w := ruledWorld(t)
	mux := http.NewServeMux()
	ca.NewHandler(w.ca, ca.HandlerOptions{}).RegisterOps(mux)
	ask := func(body string) *httptest.ResponseRecorder {
		r := httptest.NewRecorder()
		mux.ServeHTTP(r, httptest.NewRequest(http.MethodPost, "/ca/explain", strings.NewReader(body)))
		return r
	}
	question := func(field string, value any) string {
		body, err := json.Marshal(map[string]any{field: value})
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	good := map[string]any{"owner": "acme", "ref_protected": "true"}
	for name, tt := range map[string]struct {
		body   string
		issued bool
		rule   string
		reason string
	}{
		"a token":           {question("token", w.idp.Token(w.clock(), good)), true, "protected", ""},
		"claims":            {question("claims", w.idp.Claims(w.clock(), good)), true, "protected", ""},
		"a fork":            {question("token", w.idp.Token(w.clock(), map[string]any{"owner": "mallory"})), false, "no-forks", "policy_denied"},
		"no token":          {question("token", "abc"), false, "", "malformed_token"},
		"claims of nothing": {question("claims", nil), false, "", "malformed_token"},
	} {
		t.Run(name, func(t *testing.T) {
			r := ask(tt.body)
			var x identity.Explanation
			if err := json.Unmarshal(r.Body.Bytes(), &x); err != nil || r.Code != http.StatusOK {
				t.Fatalf("%d %s: %v", r.Code, r.Body, err)
			}
			if x.Issued != tt.issued || x.Rule != tt.rule || x.Reason != tt.reason || x.Unsigned != strings.HasPrefix(name, "claims") {
				t.Errorf("%+v", x)
			}
		})
	}
	for name, tt := range map[string]struct {
		body   string
		status int
	}{
		"nothing":         {"{}", http.StatusBadRequest},
		"both":            {`{"token":"a","claims":{}}`, http.StatusBadRequest},
		"another field":   {`{"token":"a","rule":"b"}`, http.StatusBadRequest},
		"no JSON":         {"token", http.StatusBadRequest},
		"more behind it":  {`{"token":"a"} {}`, http.StatusBadRequest},
		"a body too long": {question("token", strings.Repeat("a", 64<<10)), http.StatusRequestEntityTooLarge},
	} {
		if r := ask(tt.body); r.Code != tt.status {
			t.Errorf("%s: %d %s, want %d", name, r.Code, r.Body, tt.status)
		}
	}
	if logs := w.logs.String(); !strings.Contains(logs, `msg="token explained"`) || strings.Contains(logs, "alice") || strings.Contains(logs, "mallory") || strings.Contains(logs, "eyJ") {
		t.Errorf("an explanation must leave a line without claims: %s", logs)
	}
	// Not for clients.
	if r := w.post("/ca/explain", "", question("token", "abc")); r.status != http.StatusNotFound {
		t.Errorf("the public listener answers %d %s", r.status, r.body)
	}
	if len(w.log.chains) != 0 {
		t.Error("an explanation made a certificate")
	}
}
