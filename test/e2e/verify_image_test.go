package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// attacher is one way in which a cosign attaches signatures.
type attacher struct {
	form   string   // as `attestry verify` calls it, of a signature
	attest string   // and of an attestation
	args   []string // beside those of every way
}

// attachers are the ways of a cosign that reaches s, the legacy one first.
func (s *stack) attachers(version string) []attacher {
	urls := []string{"--fulcio-url", s.url, "--rekor-url", s.url, "--oidc-issuer", s.issuer()}
	stamped := flags(urls, []string{"--timestamp-server-url", s.url + "/api/v1/timestamp"})
	legacy := attacher{"simple-signing", "dsse", stamped}
	switch version {
	case "v2.4.3":
		return []attacher{legacy}
	case "v2.6.5":
		return []attacher{legacy, {"bundle", "bundle", flags([]string{"--new-bundle-format"}, stamped)}}
	}
	legacy.args = flags([]string{"--new-bundle-format=false", "--use-signing-config=false"}, urls)
	return []attacher{legacy, {"bundle", "bundle", []string{"--signing-config", s.client("signing_config.v0.2.json"), "--trusted-root", s.client("trusted_root.json")}}}
}

// verdict is what `attestry verify --output json` prints of an image.
type verdict struct {
	Verified bool
	Reason   string
	Passed   []struct{ Form string }
	Children []verdict
}

// verifies runs `attestry verify` and returns what it prints.
func (s *stack) verifies(b *sandbox, args ...string) (v verdict) {
	b.t.Helper()
	out := b.run(attestry, flags([]string{"verify", "--output", "json", "--trusted-root", s.client("trusted_root.json")}, args)...)
	if err := json.Unmarshal([]byte(out.stdout), &v); err != nil || v.Verified != (out.err == nil) {
		b.t.Fatalf("attestry verify %v: %v\n%s", args, err, out)
	}
	return v
}

func (v verdict) forms() (forms []string) {
	for _, p := range v.Passed {
		forms = append(forms, p.Form)
	}
	slices.Sort(forms)
	return slices.Compact(forms)
}

// TestImagesOfEveryClientVerify has each cosign sign and attest in every form that it knows, all of them on one image in the end, and an
// index with and without its images.
func TestImagesOfEveryClientVerify(t *testing.T) {
	s := up(t)
	for version, cosign := range cosigns(t, "v2.4.3", "v2.6.5", "v3.0.6", "v3.1.3") {
		t.Run("cosign "+version, func(t *testing.T) {
			registry := newRegistry(t, true)
			image := registry.push("team/app")
			old := newSandbox(t)
			old.source(s.client("env.cosign2"))
			var forms, attestations []string
			for _, how := range s.attachers(version) {
				b := newSandbox(t)
				if how.form != "bundle" || version == "v2.6.5" {
					b = old
				}
				b.must(cosign, flags([]string{"sign", "--yes", "--identity-token", s.alice()}, how.args, []string{image})...)
				b.must(cosign, flags([]string{"attest", "--yes", "--identity-token", s.alice(), "--type", "slsaprovenance",
					"--predicate", b.file("predicate.json", predicate)}, how.args, []string{image})...)
				forms, attestations = append(forms, how.form), append(attestations, how.attest)
				slices.Sort(forms)
				slices.Sort(attestations)
				if got := s.verifies(b, flags(s.aliceAs(), []string{image})...).forms(); !slices.Equal(got, forms) {
					t.Errorf("signatures that verify are of the forms %v, want %v", got, forms)
				}
				if got := s.verifies(b, flags(s.aliceAs(), []string{"--type", "slsaprovenance", image})...).forms(); !slices.Equal(got, attestations) {
					t.Errorf("attestations that verify are of the forms %v, want %v", got, attestations)
				}
				for want, args := range map[string][]string{
					"identity-subject":  {"--certificate-identity", "bob@example.com", "--certificate-oidc-issuer", s.issuer(), image},
					"identity-issuer":   {"--certificate-identity", "alice@example.com", "--certificate-oidc-issuer", "https://issuer.example", image},
					"predicate-missing": flags(s.aliceAs(), []string{"--type", "cyclonedx", image}),
					"no-signature":      flags(s.aliceAs(), []string{registry.push("team/unsigned")}),
				} {
					if got := s.verifies(b, args...).Reason; got != want {
						t.Errorf("%v: %q, want %q", args, got, want)
					}
				}

				index := registry.pushIndex("team/many-" + how.form)
				b.must(cosign, flags([]string{"sign", "--yes", "--identity-token", s.alice()}, how.args, []string{index})...)
				children := func(which string) verdict {
					return s.verifies(b, flags(s.aliceAs(), []string{"--children", which, index})...)
				}
				if !children("index").Verified || !children("any").Verified {
					t.Error("the index alone is signed, and does not verify")
				}
				if v := children("all"); v.Verified || v.Reason != "no-signature" || len(v.Children) != 2 {
					t.Errorf("images of an index that alone is signed: %+v", v)
				}
				b.must(cosign, flags([]string{"sign", "--yes", "--recursive", "--identity-token", s.alice()}, how.args, []string{index})...)
				if v := children("all"); !v.Verified || len(v.Children) != 2 || !v.Children[1].Verified {
					t.Errorf("images of an index that are all signed: %+v", v)
				}
			}
			s.verifiesSaved(newSandbox(t), cosign, image)
		})
	}
}

// verifiesSaved verifies what cosign saved of an image, where there is no network and while strace counts sockets: none.
func (s *stack) verifiesSaved(b *sandbox, cosign, image string) {
	b.t.Helper()
	b.must(cosign, "save", "--dir", b.path("saved"), image)
	b.must("tar", "-C", b.path("saved"), "-cf", b.path("saved.tar"), ".")
	if exec.Command("unshare", "--net", "true").Run() != nil {
		missing(b.t, os.Geteuid() == 0, "needs a network namespace: run as root with unshare (util-linux)")
	}
	strace := system(b.t, "strace", "strace")
	for _, where := range [][]string{{"--dir", b.path("saved")}, {"--archive", b.path("saved.tar")}} {
		trace := b.path("trace")
		b.must("unshare", flags([]string{"--net", strace, "-f", "-qq", "-e", "trace=socket,connect,openat", "-o", trace, attestry,
			"verify", "--trusted-root", s.client("trusted_root.json")}, s.aliceAs(), where)...)
		calls := readFile(b.t, trace)
		if strings.Contains(calls, "socket(") || strings.Contains(calls, "connect(") {
			b.t.Errorf("%v: a socket was opened:\n%s", where, calls)
		}
		if !strings.Contains(calls, "openat(") {
			b.t.Error("strace saw nothing: the count is broken")
		}
		b.refused("identity-subject", attestry, flags([]string{"verify", "--trusted-root", s.client("trusted_root.json"), "--certificate-identity", "bob@example.com",
			"--certificate-oidc-issuer", s.issuer()}, where)...)
	}
}

// TestRegistryRequestsBesideCosign counts what verifying one of three attestations costs a registry.
func TestRegistryRequestsBesideCosign(t *testing.T) {
	s := up(t)
	cosign := client(t, "cosign", "v3.1.3")
	for name, referrers := range map[string]bool{"with the referrers API": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			b := newSandbox(t)
			registry := newRegistry(t, referrers)
			image := registry.push("team/app")
			for _, kind := range []string{"slsaprovenance", "cyclonedx", "vuln"} {
				b.must(cosign, "attest", "--yes", "--identity-token", s.alice(), "--type", kind, "--predicate", b.file("predicate.json", `{}`),
					"--signing-config", s.client("signing_config.v0.2.json"), "--trusted-root", s.client("trusted_root.json"), image)
			}
			count := func(exe string, args ...string) int64 {
				before := registry.asked.Load()
				b.must(exe, flags(args, []string{"--trusted-root", s.client("trusted_root.json"), "--type", "slsaprovenance"}, s.aliceAs(), []string{image})...)
				return registry.asked.Load() - before
			}
			theirs, ours := count(cosign, "verify-attestation"), count(attestry, "verify")
			measured(t, "an image with three attestations costs cosign 3.1.3 %d requests, attestry verify %d", theirs, ours)
			if 2*ours > theirs {
				t.Errorf("%d requests are more than half of %d", ours, theirs)
			}
		})
	}
}
