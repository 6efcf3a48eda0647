package admission

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/policy"
)

// what is one thing that a policy demands, for people and as a stable code.
type what struct{ word, code string }

// demands are the predicate types that have a name people know. A URI that begins like one of these is of its kind.
var demands = []struct {
	prefix string
	what
}{
	{"https://sigstore.dev/cosign/sign/", what{"signature", "signature"}},
	{"https://slsa.dev/provenance/", what{"provenance", "provenance"}},
	{"https://spdx.dev/", what{"SBOM", "sbom"}},
	{"https://cyclonedx.org/bom", what{"SBOM", "sbom"}},
	{"https://cosign.sigstore.dev/attestation/vuln/", what{"vulnerability scan", "vuln"}},
	{"https://openvex.dev/ns", what{"VEX statement", "vex"}},
	{"https://in-toto.io/attestation/test-result/", what{"test result", "test-result"}},
	{"https://in-toto.io/attestation/vulns", what{"vulnerability scan", "vuln"}},
}

// demand tells what a check was about. The codes are a closed set.
func demand(c policy.Check) what {
	for _, d := range demands {
		if strings.HasPrefix(c.PredicateType, d.prefix) {
			return d.what
		}
	}
	if c.PredicateType == "" && (c.Name == "signature" || c.Name == "") {
		return what{"signature", "signature"}
	}
	return what{"attestation " + c.Name, "attestation"}
}

// finding is what is wrong with one image.
type finding struct {
	codes    []string // "sbom/predicate-missing", sorted, none twice
	text     string
	policies []string
	retry    bool // trying again can help
}

// explain tells why a verdict is no or, with all, which of its policies would say no if they were asked to enforce.
func explain(v *policy.Verdict, all bool) finding {
	var f finding
	var parts []string
	for _, o := range v.Policies {
		f.policies = append(f.policies, o.Policy)
		if o.Passed || !all && o.Mode != "" && o.Mode != string(Enforce) {
			continue
		}
		parts = append(parts, fmt.Sprintf("policy %q: %s", o.Policy, f.outcome(o)))
	}
	if !v.Allowed && (v.Reason != "" || len(parts) == 0) { // nobody speaks of the image, or time ran out
		reason := cmp.Or(v.Reason, policy.ReasonNoPolicy)
		f.codes = append(f.codes, "image/"+string(reason))
		f.retry = f.retry || transient(reason)
		parts = append(parts, fmt.Sprintf("%s (%s)", cmp.Or(v.Message, "no policy is about this image"), reason))
	}
	slices.Sort(f.codes)
	f.codes = slices.Compact(f.codes)
	f.text = strings.Join(parts, "; ")
	return f
}

// outcome adds the codes of one refusal and returns its text.
func (f *finding) outcome(o policy.Outcome) string {
	var failed []string
	for _, c := range o.Checks {
		if c.Passed {
			continue
		}
		d := demand(c)
		f.codes = append(f.codes, d.code+"/"+string(c.Reason))
		f.retry = f.retry || transient(c.Reason)
		text := c.Message
		if text == "" {
			text = "it does not pass"
		}
		failed = append(failed, fmt.Sprintf("%s: %s (%s)", d.word, text, c.Reason))
	}
	if len(failed) == 0 {
		f.codes = append(f.codes, "policy/"+string(o.Reason))
		f.retry = f.retry || transient(o.Reason)
		text := o.Message
		if text == "" {
			text = "it does not pass"
		}
		return fmt.Sprintf("%s (%s)", text, o.Reason)
	}
	return strings.Join(failed, ", ")
}

// explainError tells why there is no verdict at all.
func explainError(err error) finding {
	reason := fault.ReasonOf(err)
	f := finding{codes: []string{"image/" + reason}, text: fmt.Sprintf("%s (%s)", fault.Public(err), reason)}
	switch fault.KindOf(err) {
	case fault.Unavailable, fault.Overloaded, fault.Limited, fault.Slow, fault.Canceled, fault.Internal:
		f.retry = true
	}
	return f
}

// shorten cuts a text that people read to at most n bytes, at a character.
func shorten(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return strings.ToValidUTF8(text[:n-len("…")], "") + "…"
}
