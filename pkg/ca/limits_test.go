package ca_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/attestry/attestry/internal/gen/fulcio"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/server"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity"
)

func TestIdentitiesAndIssuersHaveBudgets(t *testing.T) {
	registry := prometheus.NewRegistry()
	var options ca.Options
	w := newWorld(t, func(_ *world, o *ca.Options, i *identity.Issuer) {
		o.IdentityLimit = identity.RateLimit{PerSecond: 0.5, Burst: 2}
		i.RateLimit = &identity.RateLimit{PerSecond: 1, Burst: 4}
		o.Registerer = registry
		options = *o
	})
	key := newClientKey(t, "P-256")
	issue := func(doing, email, retryAfter string) {
		t.Helper()
		token := w.idp.Token(w.clock(), map[string]any{"email": email, "sub": "sub-of-" + email})
		r := w.post("/api/v2/signingCert", token, v2Body(t, key, email))
		switch {
		case retryAfter == "" && r.status != 200:
			t.Errorf("%s: %d %s", doing, r.status, r.body)
		case retryAfter != "":
			wantRefusal(t, r, 429, codes.ResourceExhausted, "too many certificates", "rate_limited")
			if got := r.header.Get("Retry-After"); got != retryAfter {
				t.Errorf("%s: Retry-After %q, want %q", doing, got, retryAfter)
			}
		}
	}
	issue("the first", "alice@example.com", "")
	issue("the second", "alice@example.com", "")
	issue("over the budget of alice", "alice@example.com", "2")
	logged := len(w.log.chains)
	issue("again", "alice@example.com", "2")
	if len(w.log.chains) != logged {
		t.Error("a refused request came as far as the CT log")
	}
	issue("bob has a budget of his own", "bob@example.com", "")
	issue("the issuer's fourth", "carol@example.com", "")
	issue("over the issuer's budget", "dave@example.com", "1")
	w.advance(1e9)
	issue("a second later", "dave@example.com", "")
	for reason, want := range map[string]float64{"rate_limited": 3} {
		if got := gathered(t, registry, "ca_issuer_refusals_total", "oidc_issuer", w.idp.URL, "reason", reason); got != want {
			t.Errorf("%v refusals for %s, want %v", got, reason, want)
		}
	}
	if got := gathered(t, registry, "ca_issuer_certificates_total", "oidc_issuer", w.idp.URL); got != 5 {
		t.Errorf("%v certificates counted, want 5", got)
	}

	// Requests that are refused before the token is verified spend nothing of the issuer's.
	for range 10 {
		token := w.token()
		w.post("/api/v2/signingCert", token[:len(token)-8]+"AAAAAAAA", v2Body(t, key, "alice@example.com"))
	}
	w.advance(2e9)
	issue("after strangers named the issuer", "erin@example.com", "")
	issue("twice", "erin@example.com", "")

	// A reload changes the budgets and does not fill them.
	var err error
	if options.Identity, err = identity.New(identity.Options{
		Issuers: []identity.Issuer{{URL: w.idp.URL, Audience: "sigstore", Type: identity.Email, AllowHTTP: true, RateLimit: &identity.RateLimit{PerSecond: 0.1, Burst: 4}}}, Now: w.clock,
	}); err != nil {
		t.Fatal(err)
	}
	if err := w.ca.Reload(options); err != nil {
		t.Fatal(err)
	}
	issue("the issuer's budget is still spent", "frank@example.com", "10")
	options.Identity, options.IdentityLimit = without(t, w), identity.RateLimit{}
	if err := w.ca.Reload(options); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		issue("without limits", "alice@example.com", "")
	}
}

// without is a verifier whose issuer has no limit.
func without(t *testing.T, w *world) *identity.Verifier {
	t.Helper()
	v, err := identity.New(identity.Options{Issuers: []identity.Issuer{{URL: w.idp.URL, Audience: "sigstore", Type: identity.Email, AllowHTTP: true}}, Now: w.clock})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAddressesHaveABudgetOfBadTokens(t *testing.T) {
	w := newWorld(t)
	proxies, err := limit.ParseProxies([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	h := ca.NewHandler(w.ca, ca.HandlerOptions{Callers: limit.NewCallers(limit.CallerOptions{PerSecond: 0.001, Burst: 3, Proxies: proxies, Now: w.clock})})
	g := grpc.NewServer(h.GRPCOptions()...)
	h.RegisterGRPC(g)
	w.server.Config.Handler = server.Duplex(h.Bounded(g), h.Routes())
	key := newClientKey(t, "P-256")
	post := func(address, token string) int {
		return w.post("/api/v2/signingCert", token, v2Body(t, key, "alice@example.com"), "X-Forwarded-For", address).status
	}
	for range 5 {
		if got := post("192.0.2.1", w.token()); got != 200 {
			t.Fatalf("good tokens cost nothing: %d", got)
		}
	}
	for range 3 {
		if got := post("192.0.2.1", "a.b.c"); got != 400 {
			t.Errorf("a bad token: %d", got)
		}
	}
	for _, token := range []string{"a.b.c", w.token()} {
		if got := post("192.0.2.1", token); got != 429 {
			t.Errorf("after three bad tokens: %d", got)
		}
	}
	if got := post("192.0.2.2", w.token()); got != 200 {
		t.Errorf("another address: %d", got)
	}

	client := fulcio.NewCAClient(dial(t, w))
	call := func(address, token string) codes.Code {
		_, err := client.CreateSigningCertificate(metadata.AppendToOutgoingContext(t.Context(), "x-forwarded-for", address), grpcRequest(t, key, token))
		return status.Code(err)
	}
	if got := call("192.0.2.1", w.token()); got != codes.ResourceExhausted {
		t.Errorf("the same address over gRPC: %v", got)
	}
	for range 3 {
		if got := call("192.0.2.3", "a.b.c"); got != codes.InvalidArgument {
			t.Errorf("a bad token over gRPC: %v", got)
		}
	}
	if got := call("192.0.2.3", w.token()); got != codes.ResourceExhausted {
		t.Errorf("after three bad tokens over gRPC: %v", got)
	}
}

func dial(t *testing.T, w *world) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(strings.TrimPrefix(w.server.URL, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func grpcRequest(t *testing.T, key clientKey, token string) *fulcio.CreateSigningCertificateRequest {
	return &fulcio.CreateSigningCertificateRequest{
		Credentials: &fulcio.Credentials{Credentials: &fulcio.Credentials_OidcIdentityToken{OidcIdentityToken: token}},
		Key: &fulcio.CreateSigningCertificateRequest_PublicKeyRequest{PublicKeyRequest: &fulcio.PublicKeyRequest{
			PublicKey: &fulcio.PublicKey{Content: key.pem(t)}, ProofOfPossession: key.prove(t, "alice@example.com"),
		}},
	}
}

// TestBothWiresHaveTheSameLimits sends what is too large to a server that also takes larger messages for others, as
// that of `attestry up` does.
func TestBothWiresHaveTheSameLimits(t *testing.T) {
	w := newWorld(t)
	h := ca.NewHandler(w.ca, ca.HandlerOptions{})
	g := grpc.NewServer(h.GRPCMetrics()...)
	h.RegisterGRPC(g)
	w.server.Config.Handler = server.Duplex(h.Bounded(g), h.Routes())
	client := fulcio.NewCAClient(dial(t, w))
	key := newClientKey(t, "P-256")
	for _, tt := range []struct {
		name   string
		filler int // bytes beside the request
		fits   bool
	}{{"just under the limit", ca.MaxBody - 16<<10, true}, {"over the limit", ca.MaxBody, false}} {
		t.Run(tt.name, func(t *testing.T) {
			unknown := strings.Repeat("x", tt.filler)
			v2 := v2Body(t, key, "alice-id")
			v2["unknown"] = unknown
			v1 := map[string]any{
				"publicKey":          map[string]any{"content": base64.StdEncoding.EncodeToString([]byte(key.pem(t)))},
				"signedEmailAddress": base64.StdEncoding.EncodeToString(key.prove(t, "alice-id")), "unknown": unknown,
			}
			for _, on := range []struct {
				path string
				body map[string]any
				ok   int
			}{{"/api/v2/signingCert", v2, 200}, {"/api/v1/signingCert", v1, 201}} {
				r := w.post(on.path, w.token(), on.body)
				if tt.fits && r.status != on.ok {
					t.Errorf("%s: %d %s", on.path, r.status, r.body)
				}
				if !tt.fits {
					wantRefusal(t, r, 400, codes.InvalidArgument, "http: request body too large", "request_too_large")
				}
			}
			m := grpcRequest(t, key, w.token())
			m.ProtoReflect().SetUnknown(append([]byte{0xfa, 0x01, byte(tt.filler&0x7f | 0x80), byte(tt.filler>>7&0x7f | 0x80), byte(tt.filler >> 14)}, make([]byte, tt.filler)...))
			_, err := client.CreateSigningCertificate(t.Context(), m)
			switch s := status.Convert(err); {
			case tt.fits && err != nil:
				t.Errorf("gRPC: %v", err)
			case !tt.fits && (s.Code() != codes.InvalidArgument || !strings.Contains(s.Message(), "reason=request_too_large")):
				t.Errorf("gRPC: %v", err)
			}
		})
	}
}

func TestRequestsCanBeFoundByTheirID(t *testing.T) {
	w := newWorld(t)
	key := newClientKey(t, "P-256")
	for id, token := range map[string]string{"good-id": w.token(), "bad-id": "a.b.c"} {
		r := w.post("/api/v2/signingCert", token, v2Body(t, key, "alice-id"), "X-Request-Id", id)
		if r.header.Get("X-Request-Id") != id || r.status == 400 && !strings.Contains(r.body, "id="+id) {
			t.Errorf("%s: %v %s", id, r.header, r.body)
		}
		if !strings.Contains(w.logs.String(), "request_id="+id) {
			t.Errorf("%s is not in the log", id)
		}
	}
	client := fulcio.NewCAClient(dial(t, w))
	for id, token := range map[string]string{"good-grpc": w.token(), "bad-grpc": "a.b.c"} {
		var header metadata.MD
		_, err := client.CreateSigningCertificate(metadata.AppendToOutgoingContext(context.Background(), "x-request-id", id), grpcRequest(t, key, token), grpc.Header(&header))
		if got := header.Get("x-request-id"); len(got) != 1 || got[0] != id || err != nil && !strings.Contains(err.Error(), "id="+id) {
			t.Errorf("%s: %v %v", id, header, err)
		}
	}
	for _, id := range []string{"with space", `quo"te`, "bra]cket", strings.Repeat("x", 129), "ü"} {
		r := w.post("/api/v2/signingCert", "a.b.c", v2Body(t, key, "alice-id"), "X-Request-Id", id)
		if got := r.header.Get("X-Request-Id"); got == id || len(got) != 16 {
			t.Errorf("%q was answered with the id %q", id, got)
		}
	}
}

// TestMetricsOfFulcioAndOurs names every metric that dashboards may rely on.
func TestMetricsOfFulcioAndOurs(t *testing.T) {
	registry := prometheus.NewRegistry()
	w := newWorld(t, func(_ *world, o *ca.Options, _ *identity.Issuer) { o.Registerer = registry })
	h := ca.NewHandler(w.ca, ca.HandlerOptions{})
	g := grpc.NewServer(h.GRPCOptions()...)
	h.RegisterGRPC(g)
	w.server.Config.Handler = server.Duplex(h.Bounded(g), h.Routes())
	key := newClientKey(t, "P-256")
	if r := w.post("/api/v2/signingCert", w.token(), v2Body(t, key, "alice-id")); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	w.post("/api/v1/signingCert", "a.b.c", `{}`)
	unknown := w.idp.Token(w.clock(), map[string]any{"iss": "https://stranger.example"})
	w.post("/api/v2/signingCert", unknown, v2Body(t, key, "alice-id"))
	w.post("/api/v2/signingCert", w.idp.Token(w.clock(), map[string]any{"aud": "other"}), v2Body(t, key, "alice-id"))
	w.get("/api/v2/trustBundle")
	if _, err := fulcio.NewCAClient(dial(t, w)).CreateSigningCertificate(t.Context(), grpcRequest(t, key, w.token())); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"fulcio_new_certs", nil, 2},
		{"fulcio_api_latency", []string{"code", "200", "method", "post"}, 1},
		{"http_requests_total", []string{"code", "400", "method", "post"}, 3},
		{"http_requests_total", []string{"code", "200", "method", "get"}, 1},
		{"fulcio_build_info", nil, 1},
		{"grpc_server_started_total", []string{"grpc_service", "dev.sigstore.fulcio.v2.CA", "grpc_method", "CreateSigningCertificate"}, 1},
		{"grpc_server_handled_total", []string{"grpc_code", "OK"}, 1},
		{"grpc_server_handling_seconds", []string{"grpc_method", "CreateSigningCertificate"}, 1},
		{"grpc_server_msg_received_total", nil, 1},
		{"ca_requests_refused_total", []string{"reason", "aud_mismatch"}, 1},
		{"ca_issuer_certificates_total", []string{"oidc_issuer", w.idp.URL}, 2},
		{"ca_issuer_refusals_total", []string{"oidc_issuer", w.idp.URL, "reason", "aud_mismatch"}, 1},
		{"ca_issuer_refusals_total", []string{"oidc_issuer", "", "reason", "unknown_issuer"}, 1},
		{"ca_issuer_refusals_total", []string{"oidc_issuer", "", "reason", "malformed_token"}, 1},
		{"ca_ct_submission_seconds", []string{"outcome", "ok"}, 2},
		{"ca_signer_seconds", []string{"outcome", "ok"}, 5}, // a test signature and two for each certificate
		{"ca_requests_in_flight", nil, 0},
		{"ca_config_generation", nil, 1},
		{"ca_config_reload_failed", nil, 0},
	} {
		if got := gathered(t, registry, tt.name, tt.labels...); got != tt.want {
			t.Errorf("%s%q is %v, want %v", tt.name, tt.labels, got, tt.want)
		}
	}
}

func TestBuildsAreCountedWithABound(t *testing.T) {
	registry := prometheus.NewRegistry()
	w := newWorld(t, func(_ *world, o *ca.Options, _ *identity.Issuer) { o.Registerer = registry })
	options := ca.Options{Signer: w.key, Chain: w.chain, CT: newInstantLog(t, w)}
	var err error
	if options.Identity, err = identity.New(identity.Options{Now: w.clock, Config: &identity.Config{
		Issuers: []identity.Issuer{{URL: w.idp.URL, Audience: "sigstore", Type: identity.CIProvider, CIProvider: "ci", AllowHTTP: true}},
		Providers: map[string]identity.Provider{"ci": {SAN: "https://{{ .workflow }}", Extensions: map[string]string{
			"source-repository-uri": "https://{{ .repo }}", "build-config-uri": "https://{{ .workflow }}",
		}}},
	}}); err != nil {
		t.Fatal(err)
	}
	if err := w.ca.Reload(options); err != nil {
		t.Fatal(err)
	}
	key := newClientKey(t, "P-256")
	sign := func(repo, workflow, challenge string) int {
		token := w.idp.Token(w.clock(), map[string]any{"email": nil, "repo": repo, "workflow": workflow})
		return w.post("/api/v2/signingCert", token, v2Body(t, key, challenge)).status
	}
	for _, ref := range []string{"main", "v1", "v2"} {
		if got := sign("git.example/a", "git.example/a/build.yml@refs/"+ref, "alice-id"); got != 200 {
			t.Fatalf("status %d", got)
		}
	}
	sign("git.example/a", "git.example/a/build.yml@refs/main", "somebody else")
	count := func(repo, workflow, result string) float64 {
		return gathered(t, registry, "cicd_image_signed_total", "repo", repo, "workflow", workflow, "result", result)
	}
	if got := count("https://git.example/a", "https://git.example/a/build.yml", "success"); got != 3 {
		t.Errorf("%v successes, want 3", got)
	}
	if got := count("https://git.example/a", "https://git.example/a/build.yml", "failure"); got != 1 {
		t.Errorf("%v failures, want 1", got)
	}
	for n := range 1010 {
		if got := sign(fmt.Sprintf("git.example/%d", n), "git.example/x", "alice-id"); got != 200 {
			t.Fatalf("status %d", got)
		}
	}
	if got := count("other", "other", "success"); got != 12 {
		t.Errorf("%v are counted as other, want 12", got)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "cicd_image_signed_total" && len(family.GetMetric()) != 1001 {
			t.Errorf("%d series", len(family.GetMetric()))
		}
	}
}

func TestBrowsersMaySendTheTokenInTheHeader(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/api/v1/signingCert", "/api/v2/signingCert", "/api/v1/rootCert", "/api/v2/trustBundle", "/api/v2/configuration"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodOptions, w.server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Origin", "https://app.example")
		req.Header.Set("Access-Control-Request-Method", "POST")
		req.Header.Set("Access-Control-Request-Headers", "authorization,content-type")
		if r := w.do(req); r.status != 204 || !strings.Contains(strings.ToLower(r.header.Get("Access-Control-Allow-Headers")), "authorization") {
			t.Errorf("%s: %d %v", path, r.status, r.header)
		}
	}
}
