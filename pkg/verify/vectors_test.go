package verify_test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attestry/attestry/pkg/verify"
)

func sharedDir() (string, error) {
	dir := os.Getenv("ATTESTRY_SHARED")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared")
	}
	_, err := os.Stat(filepath.Join(dir, "conformance"))
	return dir, err
}

// shared returns the directory of published vectors, or skips.
func shared(t testing.TB) string {
	t.Helper()
	dir, err := sharedDir()
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("published vectors are missing: %v", err)
		}
		t.Skip("set ATTESTRY_SHARED to the directory that holds conformance/ and vectors/")
	}
	return dir
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// readOr returns the file's contents, or those of fallback when there is no such file.
func readOr(t testing.TB, path, fallback string) []byte {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		return read(t, fallback)
	}
	return read(t, path)
}

const (
	beaconIdentity = "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/extremely-dangerous-oidc-beacon.yml@refs/heads/main"
	beaconIssuer   = "https://token.actions.githubusercontent.com"
)

// vector is one case of the conformance suite or of sigstore-go's published bundles.
type vector struct {
	name     string
	root     []byte
	bundle   []byte
	artifact []byte
	policy   *verify.Policy
	refused  bool
}

func identity(t testing.TB, issuer, subject string) *verify.Policy {
	t.Helper()
	id, err := verify.NewIdentity(issuer, "", subject, "")
	if err != nil {
		t.Fatal(err)
	}
	return &verify.Policy{Identities: []verify.Identity{id}}
}

func conformanceVectors(t testing.TB) []vector {
	base := filepath.Join(shared(t), "conformance")
	dirs, err := filepath.Glob(filepath.Join(base, "bundle-verify", "*"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no conformance cases: %v", err)
	}
	var vectors []vector
	for _, dir := range dirs {
		v := vector{
			name:     filepath.Base(dir),
			root:     readOr(t, filepath.Join(dir, "trusted_root.json"), filepath.Join(base, "trusted_root.public-good.json")),
			bundle:   read(t, filepath.Join(dir, "bundle.sigstore.json")),
			artifact: readOr(t, filepath.Join(dir, "artifact"), filepath.Join(base, "a.txt")),
			refused:  strings.HasSuffix(dir, "_fail"),
		}
		issuer, subject := beaconIssuer, beaconIdentity
		if b, err := os.ReadFile(filepath.Join(dir, "issuer")); err == nil {
			issuer = strings.TrimSpace(string(b))
		}
		if b, err := os.ReadFile(filepath.Join(dir, "identity")); err == nil {
			subject = strings.TrimSpace(string(b))
		}
		v.policy = identity(t, issuer, subject)
		if b, err := os.ReadFile(filepath.Join(dir, "key.pub")); err == nil {
			key, err := verify.ParseKey(b)
			if err != nil { // one case has a point that is not on the curve: refused before the bundle is read
				if !v.refused {
					t.Fatal(err)
				}
				continue
			}
			v.policy = &verify.Policy{Key: key}
		}
		vectors = append(vectors, v)
	}
	return vectors
}

func check(root, bundle []byte, artifact verify.Artifact, policy *verify.Policy) (*verify.Result, error) {
	v, err := verify.New(root)
	if err != nil {
		return nil, err
	}
	return v.Verify(bundle, artifact, policy)
}

func TestConformanceVectorsByPathAndByDigest(t *testing.T) {
	for _, v := range conformanceVectors(t) {
		digest := sha256.Sum256(v.artifact)
		byDigest, ok := verify.ParseDigest("sha256:" + hex.EncodeToString(digest[:]))
		if !ok {
			t.Fatal("digest form not understood")
		}
		for form, artifact := range map[string]verify.Artifact{"PATH": verify.FromBytes(v.artifact), "DIGEST": byDigest} {
			t.Run(form+"-"+v.name, func(t *testing.T) {
				_, err := check(v.root, v.bundle, artifact, v.policy)
				switch {
				case v.refused && err == nil:
					t.Fatal("accepted, must be refused")
				case !v.refused && err != nil:
					t.Fatalf("refused: %s: %v", verify.ReasonOf(err), err)
				case v.refused:
					t.Logf("%s: %v", verify.ReasonOf(err), err)
					if verify.ReasonOf(err) == "internal" {
						t.Errorf("refusal without a reason: %v", err)
					}
				}
			})
		}
	}
}
