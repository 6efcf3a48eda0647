package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/attestry/attestry/internal/gen/fulcio"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

// output collects what the program writes.
type output struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

// TestNoPieceOfATokenIsLogged runs the program at its most talkative through everything that a token can meet, and looks for
// eight characters of any payload or signature in what it wrote.
func TestNoPieceOfATokenIsLogged(t *testing.T) {
	idp, down := identitytest.New(t), identitytest.New(t)
	down.SetHandler(http.NotFoundHandler())
	dir := t.TempDir()
	chain, err := hierarchy(filepath.Join(dir, "x-"))
	if err != nil {
		t.Fatal(err)
	}
	listen, ops := freeAddress(t), freeAddress(t)
	for name, text := range map[string]string{
		"chain.pem": string(encode(chain[0])) + string(encode(chain[1])),
		"issuers.yaml": fmt.Sprintf("oidc-issuers:\n  %s: {client-id: sigstore, type: email, allow-http: true}\n"+
			"  %s: {client-id: sigstore, type: email, allow-http: true}\n", idp.URL, down.URL),
		"ca.yaml": fmt.Sprintf("listen: %s\nops-listen: %s\nkey: file:%[3]s/x-key.pem\nchain-file: %[3]s/chain.pem\nissuer-file: %[3]s/issuers.yaml\nct-mode: disabled\nlog-level: debug\n", listen, ops, dir),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var logged output
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, []string{"-config", filepath.Join(dir, "ca.yaml")}, &logged) }() // ends with ctx
	waitReady(t, "http://"+ops+"/readyz", ended)

	now := time.Now()
	tokens := map[string]string{
		"good":                   idp.Token(now, nil),
		"expired":                idp.Token(now.Add(-time.Hour), nil),
		"of the future":          idp.Token(now.Add(time.Hour), nil),
		"for another audience":   idp.Token(now, map[string]any{"aud": "other"}),
		"of an unknown issuer":   idp.Token(now, map[string]any{"iss": "https://stranger.example"}),
		"of an issuer down":      down.Token(now, nil),
		"unverified":             idp.Token(now, map[string]any{"email_verified": false}),
		"without email":          idp.Token(now, map[string]any{"email": nil}),
		"with a bad email":       idp.Token(now, map[string]any{"email": "secret-name\nx@example.com"}),
		"with a strange claim":   idp.Token(now, map[string]any{"exp": "secret-time"}),
		"of an unknown key":      identitytest.Sign(t, identitytest.NewECKey(t), "unknown", jose.ES256, mustJSON(t, idp.Claims(now, nil))),
		"HS256":                  identitytest.Sign(t, bytes.Repeat([]byte("k"), 32), "", jose.HS256, mustJSON(t, idp.Claims(now, nil))),
		"no JSON in the payload": idp.Sign("es", jose.ES256, []byte("this payload is no JSON at all")),
	}
	parts := strings.Split(tokens["good"], ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`))
	tokens["alg none"] = none + "." + parts[1] + "."
	tokens["a changed signature"] = parts[0] + "." + parts[1] + "." + strings.ToUpper(parts[2])
	tokens["a header that is none"] = parts[1] + "." + parts[1] + "." + parts[2]
	tokens["two parts"] = parts[0] + "." + parts[1]
	tokens["five parts"] = strings.Join(append(parts, parts[1], parts[2]), ".")
	tokens["padded"] = parts[0] + "." + parts[1] + "==." + parts[2]
	tokens["too long"] = tokens["good"] + strings.Repeat(parts[2], 300)

	conn, err := grpc.NewClient(listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := fulcio.NewCAClient(conn)
	request, err := signingRequest()
	if err != nil {
		t.Fatal(err)
	}
	var v2 struct {
		PublicKeyRequest struct {
			PublicKey         struct{ Content string }
			ProofOfPossession []byte
		}
	}
	if err := json.Unmarshal(request, &v2); err != nil {
		t.Fatal(err)
	}
	proved := &fulcio.CreateSigningCertificateRequest_PublicKeyRequest{PublicKeyRequest: &fulcio.PublicKeyRequest{
		PublicKey: &fulcio.PublicKey{Content: v2.PublicKeyRequest.PublicKey.Content}, ProofOfPossession: v2.PublicKeyRequest.ProofOfPossession,
	}}
	v1 := mustJSON(t, map[string]any{
		"publicKey": map[string]any{"content": []byte(v2.PublicKeyRequest.PublicKey.Content)}, "signedEmailAddress": v2.PublicKeyRequest.ProofOfPossession,
	})
	send := func(path string, body []byte, authorization ...string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+listen+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for _, value := range authorization {
			req.Header.Add("Authorization", value)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode
	}
	statuses := map[int]int{}
	for name, token := range tokens {
		before := statuses[200]
		for _, body := range []string{
			string(request),
			`{"credentials": {"oidcIdentityToken": "` + token + `"}}`,
			`{"credentials": {"oidcIdentityToken": ` + token + `}}`, // without quotes
			`{"credentials": "` + token + `"}`,
			`{"` + token + `": 1}`,
			`{"publicKeyRequest": {"publicKey": {"content": "` + token + `"}, "proofOfPossession": "` + token + `"}}`,
			`{"certificateSigningRequest": "` + base64.StdEncoding.EncodeToString([]byte(token)) + `"}`,
			token,
		} {
			statuses[send("/api/v2/signingCert", []byte(body), "Bearer "+token)]++
			statuses[send("/api/v1/signingCert", []byte(body), token)]++
		}
		statuses[send("/api/v1/signingCert", v1, "bearer "+token)]++
		statuses[send("/api/v2/signingCert", request, "Bearer "+token+" "+token)]++
		statuses[send("/api/v2/signingCert", request, token, token)]++
		statuses[send("/api/v2/signingCert?token="+token, request)]++
		statuses[send("/api/v2/signingCert/"+token, request)]++
		_, err := client.CreateSigningCertificate(t.Context(), &fulcio.CreateSigningCertificateRequest{
			Credentials: &fulcio.Credentials{Credentials: &fulcio.Credentials_OidcIdentityToken{OidcIdentityToken: token}}, Key: proved,
		})
		if (err == nil) != (name == "good") {
			t.Errorf("%s: gRPC answered %v", name, err)
		}
		client.CreateSigningCertificate(metadata.AppendToOutgoingContext(t.Context(), "oidcidentitytoken", token+"x"), &fulcio.CreateSigningCertificateRequest{
			Credentials: &fulcio.Credentials{Credentials: &fulcio.Credentials_OidcIdentityToken{OidcIdentityToken: token}},
		})
		if got := statuses[200] - before; (got > 0) != (name == "good") {
			t.Errorf("%s: %d certificates", name, got)
		}
	}
	for _, status := range []int{200, 201, 400, 404, 503} {
		if statuses[status] == 0 {
			t.Errorf("no answer was %d: %v", status, statuses)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	text := logged.text.String()
	for _, wanted := range []string{`"level":"DEBUG"`, `"msg":"certificate issued"`, `"reason":"bad_signature"`, `"reason":"issuer_unreachable"`, `"reason":"malformed_request"`} {
		if !strings.Contains(text, wanted) {
			t.Errorf("the log has no %s", wanted)
		}
	}
	const piece = 8
	written := map[string]bool{}
	for i := range len(text) - piece + 1 {
		written[text[i:i+piece]] = true
	}
	for name, token := range tokens {
		for n, part := range strings.Split(token, ".") {
			if n == 0 && name != "a header that is none" {
				continue // the same for every token
			}
			for i := range max(0, len(part)-piece+1) {
				if found := part[i : i+piece]; written[found] && !strings.Contains("aaaaaaaa", found) {
					at := strings.Index(text, found)
					t.Errorf("%s: a piece of it is in the log: …%s…", name, text[max(0, at-200):min(len(text), at+50)])
					break
				}
			}
		}
	}
	for _, secret := range []string{"alice@example.com", "alice-id", "secret-name", "secret-time", "this payload"} {
		if at := strings.Index(text, secret); at >= 0 {
			t.Errorf("%q is in the log: …%s…", secret, text[max(0, at-200):min(len(text), at+50)])
		}
	}
	for line := range strings.Lines(text) {
		if (strings.Contains(line, `"msg":"request`) || strings.Contains(line, `"msg":"certificate`)) && !strings.Contains(line, `"request_id":"`) {
			t.Errorf("a line without request_id: %s", line)
		}
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// waitReady returns when url answers 200, and fails when the program ends before.
func waitReady(t *testing.T, url string, ended <-chan error) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		resp, err := http.Get(url)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case err := <-ended:
			t.Fatalf("the program ended: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("not ready: %v", err)
		}
	}
}
