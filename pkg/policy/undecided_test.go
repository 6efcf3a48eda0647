package policy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"

	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// places is what is attached at each repository, "" beside the image.
type places map[string]attached

func (p places) Attachments(_ context.Context, at Place) ([]oci.Attachment, error) {
	return p[at.Repository].all, p[at.Repository].unread
}

func (p places) Configs(context.Context) (map[string][]byte, error) { return nil, nil }

// An outage is the reason only while what is behind it could make the policy pass; a refusal that stands whatever comes stays one.
func TestAnOutageIsToldWhileItLeavesTheDecisionOpen(t *testing.T) {
	image := imageOf("registry.example/app")
	var keys []*ecdsa.PrivateKey
	var pems []string
	for range 2 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys, pems = append(keys, key), append(pems, fmt.Sprintf("%q", publicPEM(t, key)))
	}
	good, bad := byKey(t, keys[0], image, oci.PredicateSignature, nil), byKey(t, keys[1], image, oci.PredicateSignature, nil)
	scan := byKey(t, keys[0], image, slsa, nil)
	down, large := refused(verify.ReasonRegistryUnreachable, "down"), refused(verify.ReasonTooLarge, "51 bundles")
	const elsewhere = "registry.example/elsewhere"
	one := cip("{name: a, key: {data: " + pems[0] + "}}")
	either := cip("{name: a, key: {data: "+pems[0]+"}}", "") + "  - {name: b, key: {data: " + pems[0] + "}, source: [{oci: " + elsewhere + "}]}\n"
	teleport := teleportYAML("\nkey:\n  public: " + pems[0] + "\nrequirements:\n  artifact_signature: true")
	kyverno := func(count int) string {
		entry := func(more string) string {
			return "- {keys: {publicKeys: " + pems[0] + ", rekor: {ignoreTlog: true}, ctlog: {ignoreSCT: true}}" + more + "}"
		}
		return clusterYAML(fmt.Sprintf("imageReferences: ['*']\nattestors:\n  - count: %d\n    entries:\n      %s\n      %s", count, entry(""), entry(", repository: "+elsewhere)))
	}
	for _, tt := range []struct {
		name, policy string
		evidence     places
		reason       verify.Reason
	}{
		{"the registry is down", one, places{"": {unread: down}}, verify.ReasonRegistryUnreachable},
		{"another signed, and the rest is down", one, places{"": {all: []oci.Attachment{bad}, unread: down}}, verify.ReasonRegistryUnreachable},
		{"another signed, and the rest is over a limit", one, places{"": {all: []oci.Attachment{bad}, unread: large}}, verify.ReasonSignatureInvalid},
		{"an attestation, and the rest is over a limit", one, places{"": {all: []oci.Attachment{scan}, unread: large}}, verify.ReasonTooLarge},
		{"the signer, whatever is down", one, places{"": {all: []oci.Attachment{good}, unread: down}}, ""},
		{"one authority refuses, the other is down", either, places{"": {all: []oci.Attachment{bad}}, elsewhere: {unread: down}}, verify.ReasonRegistryUnreachable},
		{"one authority is down, the other refuses", either, places{"": {unread: down}, elsewhere: {all: []oci.Attachment{bad}}}, verify.ReasonRegistryUnreachable},
		{"one authority is down, the other passes", either, places{"": {unread: down}, elsewhere: {all: []oci.Attachment{good}}}, ""},
		{"both authorities refuse", either, places{"": {all: []oci.Attachment{bad}}, elsewhere: {}}, verify.ReasonSignatureInvalid},
		{"sigstore_policy: another signed, and the rest is down", teleport, places{"": {all: []oci.Attachment{bad}, unread: down}}, verify.ReasonRegistryUnreachable},
		{"sigstore_policy: another signed, and the rest is over a limit", teleport, places{"": {all: []oci.Attachment{bad}, unread: large}}, verify.ReasonSignatureInvalid},
		{"Kyverno: one of two would do, and one is down", kyverno(1), places{"": {all: []oci.Attachment{bad}}, elsewhere: {unread: down}}, verify.ReasonRegistryUnreachable},
		{"Kyverno: both are needed, one refuses and one is down", kyverno(2), places{"": {all: []oci.Attachment{bad}}, elsewhere: {unread: down}}, verify.ReasonSignatureInvalid},
		{"Kyverno: both are needed, one is down and one refuses", kyverno(2), places{"": {unread: down}, elsewhere: {all: []oci.Attachment{bad}}}, verify.ReasonSignatureInvalid},
		{"Kyverno: both are needed, one passes and one is down", kyverno(2), places{"": {all: []oci.Attachment{good}}, elsewhere: {unread: down}}, verify.ReasonRegistryUnreachable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := compileOne(t, tt.policy, nil).Decide(t.Context(), &Subject{Image: image}, tt.evidence)
			if o.Passed != (tt.reason == "") || o.Reason != tt.reason {
				t.Errorf("%+v, want %q", o, tt.reason)
			}
		})
	}
}

func TestAnOutageInACombination(t *testing.T) {
	const down, no = verify.ReasonRegistryUnreachable, verify.ReasonNoSignature
	for _, tt := range []struct {
		expression string
		reasons    string // of the policies a, b and c: down, no or passes
		want       verify.Reason
	}{
		{`satisfied("a") || satisfied("b")`, "no down", down},
		{`satisfied("a") || satisfied("b")`, "down no", down},
		{`satisfied("a") || satisfied("b")`, "down passes", ""},
		{`satisfied("a", "b")`, "down no", no},
		{`satisfied("a", "b")`, "no down", no},
		{`satisfied("a", "b")`, "passes down", down},
		{`satisfied("a", "b") || satisfied("c")`, "down no no", no},
		{`satisfied("a", "b") || satisfied("c")`, "down passes no", down},
		{`satisfied("a", "b") || satisfied("c")`, "no passes down", down},
		{`satisfied("a") && (satisfied("b") || satisfied("c"))`, "down no no", no},
	} {
		var policies []Policy
		for i, word := range strings.Fields(tt.reasons) {
			f := &fixed{name: string(rune('a' + i)), applies: true, passes: word == "passes"}
			if word == "down" {
				f.reason = down
			}
			policies = append(policies, f)
		}
		p, err := Combine("rule", tt.expression, policies)
		if err != nil {
			t.Fatal(err)
		}
		if out := p.Decide(t.Context(), &Subject{}, nil); out.Reason != tt.want || out.Passed != (tt.want == "") {
			t.Errorf("%s with %s: %q, want %q", tt.expression, tt.reasons, out.Reason, tt.want)
		}
		for _, p := range policies {
			if f := p.(*fixed); f.asked > 1 {
				t.Errorf("%s: %s was asked %d times", tt.expression, f.name, f.asked)
			}
		}
	}
}
