package policy

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
)

// codesOf lints one file and returns "code field" of each finding.
func codesOf(t *testing.T, text string, o LintOptions) []string {
	t.Helper()
	found, err := Lint([]File{{Name: "p.yaml", Data: []byte(text)}}, o)
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	for _, f := range found {
		if f.Message == "" || !f.Note && f.Fix == "" && f.Code != LintRefused {
			t.Errorf("a finding without words: %+v", f)
		}
		codes = append(codes, strings.TrimSpace(f.Code+" "+f.Field))
	}
	return codes
}

func TestWhatIsSaidOfPatterns(t *testing.T) {
	for _, tt := range []struct {
		issuer  bool
		pattern string
		want    string // codes
	}{
		{false, `^https://github\.com/octo/app/\.github/workflows/release\.yml@refs/heads/main$`, ""},
		{false, `^(?:a@example\.com|b@example\.com)$`, ""},
		{false, `^a@example\.com$|^b@example\.com$`, ""},
		{false, `^a@example\.com|b@example\.com$`, LintUnanchored},
		{false, `a@example\.com`, LintUnanchored},
		{false, `^a@example\.com`, LintUnanchored},
		{false, `^a@example.com$`, LintDot},
		{false, `^https://github\.com/octo/[^/]+/x$`, ""},
		{false, `^https://github\.com/octo/(.*)/x$`, LintSpan},
		{false, `^https://github.com/asteroid-earth/(.*)/\.github/workflows/(.*)@refs/heads/main$`, LintDot + " " + LintSpan},
		{false, `.*`, LintAny},
		{false, `^.+$`, LintAny},
		{false, `(a|.*)`, LintAny},
		{false, `^(?:.*)$|^b$`, LintAny},
		{false, `a?`, LintAny},
		{false, `^a.$`, ""},
		{true, `^https://token\.actions\.githubusercontent\.com(/asteroid-earth)?$`, ""},
		{true, `^https://token.actions.githubusercontent.com(/asteroid-earth)?$`, LintDot},
		{true, `^https://.*\.example\.com$`, LintIssuerWildcard + " " + LintSpan},
		{true, `^https://issuer\.example\.com/.*$`, LintSpan},
		{true, `^http://issuer\.example$`, LintIssuerHTTP},
		{true, `^https?://issuer\.example$`, LintIssuerHTTP},
	} {
		var l linter
		l.regexp(tt.issuer, tt.pattern, Finding{})
		var codes []string
		for _, f := range l.findings {
			codes = append(codes, f.Code)
		}
		if got := strings.Join(codes, " "); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.pattern, got, tt.want)
		}
	}
}

func TestWhatLintFinds(t *testing.T) {
	trusted := publicGood(t)
	const requirements = "\nrequirements:\n  artifact_signature: true"
	kyverno := func(item string) string { return clusterYAML("imageReferences: [\"ghcr.io/*\"]\n" + item) }
	entry := func(e string) string { return kyverno("attestors: [{entries: [{keyless: {" + e + "}}]}]") }
	const cip = `apiVersion: policy.sigstore.dev/v1beta1
kind: ClusterImagePolicy
metadata: {name: p}
spec:
  images: [{glob: "ghcr.io/**"}]
`
	cue := func(data string) string {
		return cip + "  authorities:\n    - keyless: {identities: [{issuer: https://i.example, subject: a}]}\n      attestations:\n        - name: slsa\n          predicateType: " +
			"https://slsa.dev/provenance/v0.2\n          policy:\n            type: cue\n            data: |\n              " + indented(data, 14) + "\n"
	}
	for name, tt := range map[string]struct{ policy, want string }{
		"nothing": {teleportYAML("keyless:\n  identities:\n    - {issuer: https://i.example, subject: a}" + requirements), ""},
		"teleport's patterns": {teleportYAML("keyless:\n  identities:\n    - {issuer_regex: i, subject: a}" + requirements),
			LintUnanchored + " spec.keyless.identities[0].issuer_regex"},
		"an http issuer":       {teleportYAML("keyless:\n  identities:\n    - {issuer: http://i.example, subject: a}" + requirements), LintIssuerHTTP + " spec.keyless.identities[0].issuer"},
		"a key":                {teleportYAML("key:\n  public: |\n    " + indented(testKey, 4) + requirements), LintTimeless + " spec.key"},
		"Kyverno's wildcards":  {entry("issuer: 'https://*.example', subject: '*'"), LintIssuerWildcard + " spec.rules[0].verifyImages[0].attestors[0].entries[0].keyless.issuer|" + LintAny + " spec.rules[0].verifyImages[0].attestors[0].entries[0].keyless.subject"},
		"a log left out":       {entry("issuer: https://i, subject: a, rekor: {url: u, ignoreTlog: true}, ctlog: {ignoreSCT: true}"), LintLogIgnored + " spec.rules[0].verifyImages[0].attestors[0].entries[0].keyless.rekor.ignoreTlog|" + LintSCTIgnored + " spec.rules[0].verifyImages[0].attestors[0].entries[0].keyless.ctlog.ignoreSCT"},
		"an audit policy":      {strings.Replace(entry("issuer: https://i, subject: a"), "Enforce", "Audit", 1), LintNotEnforced},
		"required":             {strings.Replace(entry("issuer: https://i, subject: a"), "imageReferences", "required: false\n          imageReferences", 1), LintNotRequired + " spec.rules[0].verifyImages[0].required"},
		"old fields":           {kyverno("issuer: https://i\nsubject: a\nroots: |\n  " + indented(rootOf(t, trusted), 2)), LintOldField + " spec.rules[0].verifyImages[0].roots"},
		"an old type":          {kyverno("attestations: [{predicateType: t, attestors: [{entries: [{keyless: {issuer: https://i, subject: a}}]}]}]"), LintOldField + " spec.rules[0].verifyImages[0].attestations[0].predicateType"},
		"a default that helps": {kyverno("attestations: [{type: t, attestors: [{entries: [{keyless: {issuer: https://i, subject: a}}]}], conditions: [{all: [{key: \"{{ a || '' }}\", operator: NotEquals, value: x}]}]}]"), LintAbsence + " spec.rules[0].verifyImages[0].attestations[0].conditions[0].all[0]"},
		"what is refused":      {teleportYAML("{}"), LintRefused},
		"a short name":         {cip + "  authorities:\n    - keyless: {identities: [{issuer: https://i.example, subject: a}]}\n      attestations: [{name: slsa, predicateType: slsaprovenance}]\n", LintShortName + " spec.authorities[0].attestations[0].predicateType"},
		"a key without a log":  {cip + "  authorities:\n    - key:\n        data: |\n          " + indented(testKey, 10) + "\n", LintTimeless + " spec.authorities[0].key"},
		"CUE by absence":       {cue("predicate: builder: id: =~\"https://good/\""), LintAbsence + " spec.authorities[0].attestations[0].policy.data"},
		"CUE that refuses":     {cue("predicate: {}\npredicateType: \"another\""), ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(codesOf(t, tt.policy, LintOptions{Options: Options{TrustedRoot: trusted}}), "|")
			if got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
	t.Run("a trusted root without a CT log", func(t *testing.T) {
		parsed, err := newTrust("", trusted)
		if err != nil {
			t.Fatal(err)
		}
		parsed.roots[0].Ctlogs = nil
		root, err := protojson.Marshal(parsed.roots[0])
		if err != nil {
			t.Fatal(err)
		}
		if got := codesOf(t, teleportYAML("keyless:\n  identities:\n    - {issuer: https://i, subject: a}"+requirements), LintOptions{Options: Options{TrustedRoot: root}}); !slices.Equal(got, []string{LintNoSCTLog + " the trusted root"}) {
			t.Errorf("%v", got)
		}
	})
	t.Run("images", func(t *testing.T) {
		o := LintOptions{Options: Options{TrustedRoot: trusted}, Images: []string{"quay.io/a:1", "x y"}}
		want := []string{LintImageWithoutRules, LintImageWithoutRules, LintUnusedPolicy}
		if got := codesOf(t, entry("issuer: https://i, subject: a"), o); !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		o.Images = []string{"ghcr.io/a:1"}
		if got := codesOf(t, entry("issuer: https://i, subject: a"), o); len(got) > 0 {
			t.Errorf("%v", got)
		}
	})
}

// rootOf is a CA of a trusted root as PEM.
func rootOf(t *testing.T, trusted []byte) string {
	t.Helper()
	parsed, err := newTrust("", trusted)
	if err != nil {
		t.Fatal(err)
	}
	certs := parsed.roots[0].CertificateAuthorities[0].CertChain.Certificates
	return pemOf("CERTIFICATE", certs[len(certs)-1].RawBytes)
}

func TestFindingsAreInOrderAndNameLines(t *testing.T) {
	policy := teleportYAML("keyless:\n  identities:\n    - {issuer: http://a, subject: a}\n    - {issuer: http://b, subject: b}\nrequirements:\n  artifact_signature: true")
	found, err := Lint([]File{{Name: "b.yaml", Data: []byte(policy)}, {Name: "a.yaml", Data: []byte(strings.Replace(policy, "name: p", "name: q", 1))}}, LintOptions{Options: Options{TrustedRoot: publicGood(t)}})
	if err != nil || len(found) != 4 {
		t.Fatalf("%v, %v", found, err)
	}
	for i, want := range []Finding{{File: "b.yaml", Line: 8, Policy: "p"}, {File: "b.yaml", Line: 9, Policy: "p"}, {File: "a.yaml", Line: 8, Policy: "q"}, {File: "a.yaml", Line: 9, Policy: "q"}} {
		if f := found[i]; f.File != want.File || f.Line != want.Line || f.Policy != want.Policy {
			t.Errorf("%d: %+v, want %+v", i, f, want)
		}
	}
}
