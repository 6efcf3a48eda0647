package signer

import (
	"crypto"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

// TestFilesOfOtherProgramsOpen has openssl write a key in every form that people have lying about. step writes the same
// PBES2 forms, and OpenSSL before 3 the ones with -traditional.
func TestFilesOfOtherProgramsOpen(t *testing.T) {
	openssl := program(t, "openssl", "openssl")
	dir := t.TempDir()
	run := func(args ...string) {
		t.Helper()
		cmd := exec.Command(openssl, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "p256")
	run("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "rsa")
	run("genpkey", "-algorithm", "ed25519", "-out", "ed25519")
	for _, tt := range []struct {
		name, from string
		encrypted  bool
		args       string
	}{
		{"PKCS #8", "p256", false, "pkey"},
		{"PKCS #8, RSA", "rsa", false, "pkey"},
		{"PKCS #8, Ed25519", "ed25519", false, "pkey"},
		{"SEC 1", "p256", false, "ec"},
		{"SEC 1 behind its parameters", "", false, "ecparam -name prime256v1 -genkey"},
		{"PKCS #1", "rsa", false, "rsa -traditional"},
		{"PKCS #8, PBKDF2, AES-256", "p256", true, "pkcs8 -topk8 -v2 aes-256-cbc -passout pass:pw"},
		{"PKCS #8, PBKDF2 with SHA-1, AES-128", "p256", true, "pkcs8 -topk8 -v2 aes-128-cbc -v2prf hmacWithSHA1 -passout pass:pw"},
		{"PKCS #8, scrypt, AES-256", "p256", true, "pkcs8 -topk8 -scrypt -passout pass:pw"},
		{"PKCS #8, PBKDF2, RSA", "rsa", true, "pkcs8 -topk8 -v2 aes-256-cbc -passout pass:pw"},
		{"legacy, SEC 1", "p256", true, "ec -aes256 -passout pass:pw"},
		{"legacy, PKCS #1", "rsa", true, "rsa -aes128 -traditional -passout pass:pw"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := strings.Fields(tt.args)
			if tt.from != "" {
				args = append(args, "-in", tt.from)
			}
			run(append(args, "-out", "key")...)
			uri := "file:" + filepath.Join(dir, "key")
			if tt.encrypted {
				if _, err := Open(uri, nil); err == nil || !strings.Contains(err.Error(), "no password was given") {
					t.Errorf("without a password: %v", err)
				}
				if _, err := Open(uri, []byte("no")); err == nil {
					t.Error("a wrong password was taken")
				}
			}
			key, err := Open(uri, []byte("pw"))
			if err != nil {
				t.Fatal(err)
			}
			if tt.from == "" {
				return
			}
			original, err := Open("file:"+filepath.Join(dir, tt.from), nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := cryptoutils.EqualKeys(key.Public(), original.Public()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAFileThatIsNotOneWholeKeyIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "k.pem")
	if _, err := Create(path, P256); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, content, want string
	}{
		{"empty", "", "no private key"},
		{"cut off", string(whole[:len(whole)/2]), "not a whole PEM file"},
		{"two keys", string(whole) + string(whole), "follows the private key"},
		{"text behind it", string(whole) + "x", "not a whole PEM file"},
		{"a certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "CERTIFICATE"},
		{"too long", strings.Repeat("\n", maxKeyFile) + string(whole), "over 65536 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open("file:"+path, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	if _, err := Open("file:"+filepath.Join(dir, "none"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// program returns the path of a program of the operating system.
func program(t *testing.T, name, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing: apt-get install %s", name, debianPackage)
		}
		t.Skipf("skipped: %s is missing; to run this test: apt-get install %s", name, debianPackage)
	}
	return path
}

// checkSigns has key sign something, which must verify.
func checkSigns(t *testing.T, key crypto.Signer) {
	t.Helper()
	digest := sha256.Sum256([]byte("hello"))
	sig, err := key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if !verifies(key.Public(), digest[:], sig, crypto.SHA256) {
		t.Fatal("the signature does not verify")
	}
}
