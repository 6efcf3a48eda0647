package attestrytest_test

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/tuf"
	sigstore "github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/theupdateframework/go-tuf/v2/metadata/fetcher"

	"github.com/attestry/attestry/pkg/attestrytest"
	"github.com/attestry/attestry/pkg/verify"
)

const alice = "alice@example.com"

var artifact = []byte("hello\n")

// ours verifies a bundle as `attestry verify` does.
func ours(t *testing.T, s *attestrytest.Server, signed []byte, issuer, san string) error {
	t.Helper()
	v, err := verify.New(s.TrustedRoot())
	if err != nil {
		t.Fatal(err)
	}
	who, err := verify.NewIdentity(issuer, "", san, "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = v.Verify(signed, verify.FromBytes(artifact), &verify.Policy{Identities: []verify.Identity{who}})
	return err
}

// theirs verifies a bundle with sigstore-go.
func theirs(t *testing.T, s *attestrytest.Server, signed []byte, issuer, san string) error {
	t.Helper()
	trusted, err := root.NewTrustedRootFromJSON(s.TrustedRoot())
	if err != nil {
		t.Fatal(err)
	}
	v, err := sigstore.NewVerifier(trusted, sigstore.WithSignedCertificateTimestamps(1), sigstore.WithTransparencyLog(1), sigstore.WithObserverTimestamps(1))
	if err != nil {
		t.Fatal(err)
	}
	who, err := sigstore.NewShortCertificateIdentity(issuer, "", san, "")
	if err != nil {
		t.Fatal(err)
	}
	var b bundle.Bundle
	if err := b.UnmarshalJSON(signed); err != nil {
		t.Fatal(err)
	}
	_, err = v.Verify(&b, sigstore.NewPolicy(sigstore.WithArtifact(bytes.NewReader(artifact)), sigstore.WithCertificateIdentity(who)))
	return err
}

func both(t *testing.T, s *attestrytest.Server, signed []byte, issuer, san string) {
	t.Helper()
	if err := ours(t, s, signed, issuer, san); err != nil {
		t.Errorf("ours: %v", err)
	}
	if err := theirs(t, s, signed, issuer, san); err != nil {
		t.Errorf("sigstore-go: %v", err)
	}
}

func sign(t *testing.T, s *attestrytest.Server, token string) []byte {
	t.Helper()
	signed, err := s.Sign(token, artifact)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// Four at once, each a Sigstore of its own.
func TestStart(t *testing.T) {
	roots := make(chan string, 4)
	t.Run("at once", func(t *testing.T) {
		for range cap(roots) {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				s := attestrytest.Start(t, attestrytest.Options{})
				both(t, s, sign(t, s, s.Token(alice)), s.IssuerURL(), alice)
				env := strings.Join(s.Env(), "\n")
				if !strings.Contains(env, "TUF_MIRROR="+s.TUFURL) || !strings.Contains(env, "ATTESTRY_URL="+s.URL) {
					t.Errorf("Env is %s", env)
				}
				roots <- string(s.TUFRoot())
			})
		}
	})
	close(roots)
	seen := map[string]bool{}
	for root := range roots {
		if seen[root] {
			t.Error("two instances have one TUF root")
		}
		seen[root] = true
	}
}

func TestDirectoriesAreRemoved(t *testing.T) {
	var dir, url string
	t.Run("", func(t *testing.T) {
		s := attestrytest.Start(t, attestrytest.Options{})
		dir, url = s.Dir, s.URL
	})
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dir, err)
	}
	if resp, err := http.Get(url + "/healthz"); err == nil {
		resp.Body.Close()
		t.Error("the instance still answers")
	}
}

// Whoever a test needs: a GitHub workflow, with the extensions of its claims.
func TestIdentities(t *testing.T) {
	const github, people = "https://token.actions.example.com", "https://id.example.com"
	s := attestrytest.Start(t, attestrytest.Options{Issuers: []attestrytest.Issuer{
		{URL: github, Type: "github-workflow"},
		{URL: people, Type: "uri", Audience: "builds", More: map[string]any{"subject-domain": "https://id.example.com"}},
	}})
	signed := sign(t, s, s.TokenOf(github, map[string]any{
		"sub": "repo:example/app:ref:refs/heads/main", "event_name": "push", "sha": "8cda7ae20d12ac60b53c1f09fb9b7b2d1bed7e26", "workflow": "build",
		"repository": "example/app", "ref": "refs/heads/main", "job_workflow_ref": "example/app/.github/workflows/build.yml@refs/heads/main",
		"job_workflow_sha": "8cda7ae20d12ac60b53c1f09fb9b7b2d1bed7e26", "runner_environment": "github-hosted", "repository_id": "1", "repository_owner": "example",
		"repository_owner_id": "2", "repository_visibility": "private", "workflow_ref": "example/app/.github/workflows/build.yml@refs/heads/main",
		"workflow_sha": "8cda7ae20d12ac60b53c1f09fb9b7b2d1bed7e26", "run_id": "3", "run_attempt": "1",
	}))
	both(t, s, signed, github, "https://github.com/example/app/.github/workflows/build.yml@refs/heads/main")
	if err := ours(t, s, signed, github, "https://github.com/example/other/.github/workflows/build.yml@refs/heads/main"); verify.ReasonOf(err) != "identity-subject" {
		t.Errorf("another workflow: %v", err)
	}
	both(t, s, sign(t, s, s.TokenOf(people, map[string]any{"sub": "https://id.example.com/robot"})), people, "https://id.example.com/robot")
	if _, err := s.Sign(s.TokenOf(people, map[string]any{"sub": "https://id.example.com/robot", "exp": time.Now().Add(-time.Hour).Unix()}), artifact); err == nil {
		t.Error("a token of an hour ago got a certificate")
	}
	if _, err := s.Sign(s.TokenOf(people, map[string]any{"sub": "https://id.example.com/robot", "aud": "others"}), artifact); err == nil {
		t.Error("a token for others got a certificate")
	}
}

// What was signed in another year verifies in this one.
func TestClock(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for name, away := range map[string]time.Duration{"three years ago": -3 * year, "in two years": 2 * year} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			then := func() time.Time { return time.Now().Add(away) }
			s := attestrytest.Start(t, attestrytest.Options{Now: then})
			signed := sign(t, s, s.Token(alice))
			both(t, s, signed, s.IssuerURL(), alice)
			var b bundle.Bundle
			if err := b.UnmarshalJSON(signed); err != nil {
				t.Fatal(err)
			}
			content, err := b.VerificationContent()
			if err != nil {
				t.Fatal(err)
			}
			if cert := content.Certificate(); cert.NotAfter.After(then().Add(time.Hour)) || cert.NotBefore.Before(then().Add(-time.Hour)) {
				t.Errorf("the certificate is of %s", cert.NotBefore)
			}
			err = update(t, s)
			if isPast := away < 0; isPast && (err == nil || !strings.Contains(err.Error(), "expired")) || !isPast && err != nil {
				t.Errorf("TUF metadata of that year: %v", err)
			}
		})
	}
}

// update runs a TUF client of its own cache against the instance.
func update(t *testing.T, s *attestrytest.Server) error {
	t.Helper()
	client, err := tuf.New(&tuf.Options{
		Root: s.TUFRoot(), RepositoryBaseURL: s.TUFURL, CachePath: filepath.Join(t.TempDir(), "tuf"), DisableLocalCache: true, Fetcher: fetcher.NewDefaultFetcher(),
	})
	if err != nil {
		return err
	}
	_, err = client.GetTarget("trusted_root.json")
	return err
}

func BenchmarkStart(b *testing.B) {
	for range b.N {
		attestrytest.Start(b, attestrytest.Options{})
	}
}
