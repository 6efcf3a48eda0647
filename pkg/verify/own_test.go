package verify_test

import (
	"testing"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	prototrust "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"

	"github.com/attestry/attestry/pkg/attestrytest"
	"github.com/attestry/attestry/pkg/sign"
	"github.com/attestry/attestry/pkg/verify"
)

// ownForms are bundles that pkg/sign makes with an instance of our own, in either Rekor version.
func ownForms(t *testing.T) []*form {
	t.Helper()
	s := attestrytest.Start(t, attestrytest.Options{})
	client := func(name string) []byte { return read(t, s.File(name)) }
	var all []*form
	for _, config := range []string{"signing_config.v0.2.json", "signing_config.rekor1.v0.2.json"} {
		for _, isStatement := range []bool{false, true} {
			issue := func(artifact []byte) *protobundle.Bundle {
				o := sign.Options{SigningConfig: client(config), TrustedRoot: s.TrustedRoot(), IdentityToken: s.Token("alice@example.com")}
				var (
					signed *sign.Signed
					err    error
				)
				if isStatement {
					signed, err = sign.Statement(t.Context(), o, statementFor(artifact))
				} else {
					signed, err = sign.Blob(t.Context(), o, artifact)
				}
				if err != nil {
					t.Fatal(err)
				}
				b := &protobundle.Bundle{}
				unmarshal(t, signed.Bundle, b)
				return b
			}
			name := "our own, " + config
			if isStatement {
				name += ", DSSE"
			}
			issue(otherArtifact) // the entry with index 0 has an empty proof
			f := &form{name: name, bundle: issue(theArtifact), other: issue(otherArtifact), root: &prototrust.TrustedRoot{}, data: theArtifact}
			unmarshal(t, s.TrustedRoot(), f.root)
			f.of = func() verify.Artifact { return verify.FromBytes(theArtifact) }
			f.policy = func() *verify.Policy { return identity(t, s.IssuerURL(), "alice@example.com") }
			all = append(all, f)
		}
	}
	return all
}
