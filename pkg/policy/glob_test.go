package policy

import (
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
)

const digestA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// The expectations are those of policy-controller 0.13's glob.Match, which test/e2e asks again through its tester.
func TestGlobMatches(t *testing.T) {
	for _, tt := range []struct {
		glob, image string
		want        bool
	}{
		{"registry.example/app", "registry.example/app", true}, // as it is written
		{"registry.example/app", "registry.example/app:latest", false},
		{"registry.example/app:latest", "registry.example/app", true},
		{"registry.example/app*", "registry.example/app", true},
		{"registry.example/app*", "registry.example/app@" + digestA, true},
		{"registry.example/*", "registry.example/app:1@" + digestA, true},
		{"registry.example/*", "registry.example/team/app:1", false},
		{"registry.example/**", "registry.example/team/app:1", true},
		{"registry.example/***", "registry.example/team/app:1", true},
		{"registry.example/app:*", "registry.example/app:1@" + digestA, true}, // as it is written
		{"registry.example/app:1@**", "registry.example/app:1@" + digestA, true},
		{"registryXexample/**", "registry.example/app", false},
		{"registry.example/a.p*", "registry.example/axp", false},
		{"REGISTRY.example/**", "registry.example/app", false},
		{"**", "registry.example/team/app@" + digestA, true},
		{"*", "debian", true},
		{"*", "registry.example/app", false},
		{"*/*", "someone/app", true},
		{"*/*", "registry.example/app", false},
		{"**", "not a reference", false},
		{"**", "", false},
		{"localhost:5000/app*", "localhost:5000/app:1", true},
		{"example/app*", "example/app:1", true}, // as it is written, without its default registry
	} {
		g, err := NewGlob(tt.glob)
		if err != nil {
			t.Errorf("NewGlob(%q): %v", tt.glob, err)
			continue
		}
		if got := g.Match(tt.image); got != tt.want {
			t.Errorf("glob %q matches %q: %v, want %v", tt.glob, tt.image, got, tt.want)
		}
	}
}

func TestGlobRefusesOtherCharacters(t *testing.T) {
	for _, glob := range []string{"", "a b", "a?", "a[b]", "a(b", `a\b`, "a|b", "a+", "^a", "a$", "a\n", "ä", strings.Repeat("a", maxGlob+1)} {
		if _, err := NewGlob(glob); err == nil {
			t.Errorf("NewGlob(%q) accepted it", glob)
		}
	}
}

func FuzzGlob(f *testing.F) {
	f.Add("registry.example/**", "registry.example/team/app:1")
	f.Add("*", "debian")
	f.Add("a.*/**:*@**", "a.b/c:d@"+digestA)
	f.Fuzz(func(t *testing.T, glob, image string) {
		g, err := NewGlob(glob)
		if err != nil {
			return
		}
		matched := g.Match(image)
		if _, err := name.ParseReference(image, name.WeakValidation); err != nil && matched {
			t.Errorf("glob %q matches %q, which is no reference", glob, image)
		}
		if everything, err := NewGlob("**"); err != nil || matched && !everything.Match(image) {
			t.Errorf("glob %q matches %q, ** does not (%v)", glob, image, err)
		}
		if !strings.Contains(glob, "*") && matched {
			if ref, err := name.ParseReference(image, name.WeakValidation); err != nil || glob != image && glob != ref.Name() {
				t.Errorf("glob %q without * matches %q", glob, image)
			}
		}
	})
}
