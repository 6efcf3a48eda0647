package identity_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

var update = flag.Bool("update", false, "rewrite testdata goldens")

// recorded is one file of testdata/claims: how the issuer is configured, in the configuration's own
// keys, and the claims of a token as the issuer's documentation shows them. TestUpstreamIssuesTheSame
// of test/e2e has the same tokens certified by Fulcio, but for those with a key of ours.
type recorded struct {
	Issuer map[string]any
	Ours   bool
	Claims map[string]any
}

func TestRecordedClaimsBecomeTheseNames(t *testing.T) {
	files, err := filepath.Glob("testdata/claims/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	p, c := identitytest.New(t), newClock()
	const issuer = "https://issuer.example.com"
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			filled := strings.NewReplacer("${issuer}", issuer, "${scheme}", "https", "${host}", "issuer.example.com").Replace(string(text))
			var r recorded
			if err := json.Unmarshal([]byte(filled), &r); err != nil {
				t.Fatal(err)
			}
			r.Issuer["issuer-url"], r.Issuer["client-id"], r.Issuer["jwks"] = issuer, "sigstore", string(p.JWKS())
			config, err := json.Marshal(map[string]any{"oidc-issuers": []any{r.Issuer}})
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := identity.Parse(config)
			if err != nil {
				t.Fatal(err)
			}
			v, err := identity.New(identity.Options{Config: parsed, Now: c.now})
			if err != nil {
				t.Fatal(err)
			}
			claims := with(r.Claims, map[string]any{"iss": issuer})
			for _, name := range []string{"email", "email_verified"} { // those of identitytest are of somebody else
				if _, ok := claims[name]; !ok {
					claims[name] = nil
				}
			}
			principal, err := v.Verify(context.Background(), p.Token(c.now(), claims))
			if err != nil {
				t.Fatal(err)
			}
			got := golden(principal)
			wanted := strings.TrimSuffix(file, ".json") + ".golden"
			if *update {
				if err := os.WriteFile(wanted, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(wanted)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("differs from %s (go test -update rewrites it):\n%s", wanted, got)
			}
		})
	}
}

// golden shows what a principal brings into its certificate, one line each.
func golden(p *identity.Principal) string {
	kind := map[identity.SANKind]string{identity.SANEmail: "email", identity.SANURI: "uri", identity.SANUsername: "username"}[p.SAN.Kind]
	out := fmt.Sprintf("%s %s\n", kind, p.SAN.Value)
	for _, e := range p.Extensions {
		out += fmt.Sprintf(".%d %s\n", e.Arc, e.Value)
	}
	return out
}
