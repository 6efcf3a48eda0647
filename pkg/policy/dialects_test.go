package policy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/pkg/attestrytest"
	"github.com/attestry/attestry/pkg/sign"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// attached is all that is attached to an image, and what could not be read.
type attached struct {
	all    []oci.Attachment
	unread error
}

func (a attached) Attachments(context.Context, Place) ([]oci.Attachment, error) {
	return a.all, a.unread
}
func (a attached) Configs(context.Context) (map[string][]byte, error) { return nil, nil }

// site signs with a stack of its own.
type site struct {
	t               *testing.T
	dir, issuer     string
	trusted, config []byte
	token           func(email string) string
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := attestrytest.Start(t, attestrytest.Options{})
	return &site{t: t, dir: s.Dir, issuer: s.IssuerURL(), trusted: s.TrustedRoot(), config: s.SigningConfig(), token: s.Token}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func (s *site) options(who string) sign.Options {
	return sign.Options{SigningConfig: s.config, TrustedRoot: s.trusted, IdentityToken: s.token(who)}
}

// attest makes a bundle with a statement about the image.
func (s *site) attest(who string, image oci.Image, predicateType, predicate string) oci.Attachment {
	s.t.Helper()
	raw, err := hex.DecodeString(strings.TrimPrefix(image.Digest, "sha256:"))
	if err != nil {
		s.t.Fatal(err)
	}
	statement, err := sign.NewStatement(image.Name, raw, predicateType, []byte(predicate))
	if err != nil {
		s.t.Fatal(err)
	}
	signed, err := sign.Statement(s.t.Context(), s.options(who), statement)
	if err != nil {
		s.t.Fatal(err)
	}
	return oci.Attachment{Form: oci.FormBundle, Bundle: signed.Bundle, PredicateType: predicateType}
}

// sign makes a signature as cosign 3 does.
func (s *site) sign(who string, image oci.Image) oci.Attachment {
	s.t.Helper()
	return s.attest(who, image, oci.PredicateSignature, `{}`)
}

// simple makes a simple signing document, as cosign before 3 does, with annotations.
func (s *site) simple(who string, image oci.Image, annotations map[string]string) oci.Attachment {
	s.t.Helper()
	payload := simpleSigning(s.t, image, annotations)
	signed, err := sign.Blob(s.t.Context(), s.options(who), payload)
	if err != nil {
		s.t.Fatal(err)
	}
	return oci.Attachment{Form: oci.FormSimpleSigning, Bundle: signed.Bundle, Payload: payload}
}

// message makes a bundle whose signature is of the manifest itself, as clients that know nothing of images do: it is the
// image's name, see imageOf.
func (s *site) message(who string, image oci.Image) oci.Attachment {
	s.t.Helper()
	signed, err := sign.Blob(s.t.Context(), s.options(who), []byte(image.Name))
	if err != nil {
		s.t.Fatal(err)
	}
	return oci.Attachment{Form: oci.FormBundle, Bundle: signed.Bundle}
}

func simpleSigning(t testing.TB, image oci.Image, annotations map[string]string) []byte {
	t.Helper()
	payload, err := json.Marshal(map[string]any{
		"critical": map[string]any{
			"identity": map[string]any{"docker-reference": image.Name},
			"image":    map[string]any{"docker-manifest-digest": image.Digest},
			"type":     "cosign container image signature",
		},
		"optional": annotations,
	})
	if err != nil {
		t.Fatal(err)
	}
	return payload
}

// imageOf is an image whose digest follows from its name.
func imageOf(name string) oci.Image {
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(name)))
	return oci.Image{Reference: name + "@" + digest, Name: name, Digest: digest}
}

// compileOne compiles a file of one policy.
func compileOne(t testing.TB, text string, trusted []byte) Policy {
	t.Helper()
	loaded, err := Compile([]File{{Name: "policy.yaml", Data: []byte(text)}}, Options{TrustedRoot: trusted})
	if err != nil {
		t.Fatal(err)
	}
	if len(loaded.Policies) != 1 {
		t.Fatalf("%d policies", len(loaded.Policies))
	}
	return loaded.Policies[0]
}

// refusedToLoad requires that compiling fails with this text.
func refusedToLoad(t *testing.T, text string, trusted []byte, want string) {
	t.Helper()
	_, err := Compile([]File{{Name: "policy.yaml", Data: []byte(text)}}, Options{TrustedRoot: trusted})
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q for\n%s", err, want, text)
	}
}

// indented puts text below a YAML key.
func indented(text string, by int) string {
	return strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n"+strings.Repeat(" ", by))
}

var timeZero time.Time

// bodiesOf returns the log entries of a bundle.
func bodiesOf(t *testing.T, bundle []byte) [][]byte {
	t.Helper()
	var b struct {
		VerificationMaterial struct {
			TlogEntries []struct{ CanonicalizedBody []byte }
		}
	}
	if err := json.Unmarshal(bundle, &b); err != nil {
		t.Fatal(err)
	}
	var bodies [][]byte
	for _, e := range b.VerificationMaterial.TlogEntries {
		bodies = append(bodies, e.CanonicalizedBody)
	}
	if len(bodies) == 0 {
		t.Fatal("the bundle has no entry")
	}
	return bodies
}
