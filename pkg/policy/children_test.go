package policy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"testing"

	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// family is a source of an index and its images.
type family struct {
	*shelf
	children []oci.Image
	attached map[string]attached // by digest
	err      error               // of Children
}

func (f *family) Children(_ context.Context, image oci.Image) ([]oci.Image, error) {
	for _, c := range f.children {
		if c.Digest == image.Digest {
			return nil, f.err
		}
	}
	return f.children, f.err
}

func (f *family) Attachments(_ context.Context, image oci.Image) ([]oci.Attachment, error) {
	return f.attached[image.Digest].all, f.attached[image.Digest].unread
}

func TestAnIndexAndItsImages(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// The glob is about the tag that was asked for: the images of an index go by it too.
	p := compileOne(t, "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: p}\nspec:\n  images: [{glob: 'registry.example/app:v1'}]\n"+
		"  authorities:\n  - {key: {data: "+fmt.Sprintf("%q", publicPEM(t, key))+"}}\n", nil)
	set, err := NewSet([]Policy{p}, SetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	index, amd, arm := imageOf("registry.example/app"), imageOf("registry.example/app-amd64"), imageOf("registry.example/app-arm64")
	index.Reference = "registry.example/app:v1"
	amd.Name, arm.Name = index.Name, index.Name
	signed := func(image oci.Image) attached {
		return attached{all: []oci.Attachment{byKey(t, key, image, oci.PredicateSignature, nil)}}
	}
	down := attached{unread: refused(verify.ReasonRegistryUnreachable, "down")}
	const yes, no, unreachable = verify.Reason(""), verify.ReasonNoSignature, verify.ReasonRegistryUnreachable
	for _, tt := range []struct {
		name            string
		index, amd, arm attached
		// reasons by index, all and any
		want [3]verify.Reason
	}{
		{"all are signed", signed(index), signed(amd), signed(arm), [3]verify.Reason{yes, yes, yes}},
		{"only the index", signed(index), attached{}, attached{}, [3]verify.Reason{yes, no, yes}},
		{"only the images", attached{}, signed(amd), signed(arm), [3]verify.Reason{no, yes, yes}},
		{"one of the images", attached{}, signed(amd), attached{}, [3]verify.Reason{no, no, no}},
		{"one image is signed for the other", attached{}, signed(amd), signed(amd), [3]verify.Reason{no, verify.ReasonSubjectMismatch, verify.ReasonSubjectMismatch}},
		{"one image is down", attached{}, signed(amd), down, [3]verify.Reason{no, unreachable, unreachable}},
		{"one image is down and one is not signed", attached{}, attached{}, down, [3]verify.Reason{no, no, no}},
		{"the index is down, and an image is not signed", down, signed(amd), attached{}, [3]verify.Reason{unreachable, no, unreachable}},
		{"the index is down, and the images are signed", down, signed(amd), signed(arm), [3]verify.Reason{unreachable, yes, yes}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			source := &family{newShelf(), []oci.Image{amd, arm}, map[string]attached{index.Digest: tt.index, amd.Digest: tt.amd, arm.Digest: tt.arm}, nil}
			for i, which := range []Children{ChildrenIndex, ChildrenAll, ChildrenAny} {
				v := set.DecideTree(t.Context(), &Subject{Image: index}, source, which)
				if got := v.deciding(); v.Allowed != (tt.want[i] == yes) || got != tt.want[i] || v.Undecided() != (tt.want[i] == unreachable) {
					t.Errorf("%s: allowed %v, %q, want %q: %+v", which, v.Allowed, got, tt.want[i], v)
				}
			}
		})
	}
	image := &family{newShelf(), nil, map[string]attached{index.Digest: signed(index)}, nil}
	if v := set.DecideTree(t.Context(), &Subject{Image: index}, image, ChildrenAll); !v.Allowed || len(v.Children) > 0 {
		t.Errorf("an image that is no index: %+v", v)
	}
	image.err = refused(verify.ReasonRegistryUnreachable, "down")
	if v := set.DecideTree(t.Context(), &Subject{Image: index}, image, ChildrenAny); v.Allowed || !v.Undecided() {
		t.Errorf("nobody says what the index has: %+v", v)
	}
	if v := set.DecideTree(t.Context(), &Subject{Image: index}, image, "some"); v.Allowed {
		t.Errorf("an unknown word: %+v", v)
	}
}

func TestACombinationDecidesAlone(t *testing.T) {
	set := func(combine string) *Set {
		t.Helper()
		s, err := NewSet(named("a b c", "c"), SetOptions{Combine: combine})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	either := set(`satisfied("a","b") || satisfied("c")`)
	subject := &Subject{Image: imageOf("registry.example/app")}
	if v := either.Decide(t.Context(), subject, newShelf()); !v.Allowed || len(v.Policies) != 1 || v.Policies[0].Policy != "combine" {
		t.Errorf("%+v", v)
	}
	// On their own the three are audits and let everything through; the combination is enforced.
	if v := set(`satisfied("a")`).Decide(t.Context(), subject, newShelf()); v.Allowed {
		t.Errorf("%+v", v)
	}
	if either.Version() == set(`satisfied("a")`).Version() || either.Version() == set("").Version() {
		t.Error("another combination has the same version")
	}
	if _, err := NewSet(named("a", ""), SetOptions{Combine: `satisfied("b")`}); err == nil {
		t.Error("a policy that is not there was combined")
	}
}
