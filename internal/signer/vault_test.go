package signer

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/services"
)

// newVault starts a server, and says so in the environment, with a file for the token.
func newVault(t *testing.T) (*services.OpenBaoServer, string) {
	t.Helper()
	bao := services.OpenBao(t)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(bao.Token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("VAULT_ADDR", bao.Address)
	t.Setenv("VAULT_TOKEN", "")
	t.Setenv("VAULT_TOKEN_FILE", file)
	return bao, file
}

func TestVaultKeysSign(t *testing.T) {
	bao, _ := newVault(t)
	for _, kind := range []string{"ecdsa-p256", "ecdsa-p384", "rsa-2048"} {
		t.Run(kind, func(t *testing.T) {
			bao.Must(t, "POST", "transit/keys/k-"+kind, map[string]any{"type": kind})
			key, err := Open("hashivault://k-"+kind, nil)
			if err != nil {
				t.Fatal(err)
			}
			checkSigns(t, key)
			if _, ok := key.Public().(*rsa.PublicKey); ok {
				digest := sha256.Sum256([]byte("hello"))
				if _, err := key.Sign(nil, digest[:], &rsa.PSSOptions{Hash: crypto.SHA256}); err == nil {
					t.Error("a PSS signature was made of a PKCS #1 v1.5 one")
				}
			}
		})
	}
	t.Run("ed25519", func(t *testing.T) {
		bao.Must(t, "POST", "transit/keys/ed", map[string]any{"type": "ed25519"})
		key, err := Open("hashivault://ed", nil)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := key.Sign(nil, []byte("hello"), crypto.Hash(0))
		if err != nil || !ed25519.Verify(key.Public().(ed25519.PublicKey), []byte("hello"), sig) {
			t.Errorf("%x, %v", sig, err)
		}
	})
	t.Run("another mount", func(t *testing.T) {
		bao.Must(t, "POST", "sys/mounts/signing", map[string]any{"type": "transit"})
		bao.Must(t, "POST", "signing/keys/k", map[string]any{"type": "ecdsa-p256"})
		t.Setenv("TRANSIT_SECRET_ENGINE_PATH", "signing")
		key, err := Open("hashivault://k", nil)
		if err != nil {
			t.Fatal(err)
		}
		checkSigns(t, key)
	})
}

func TestAVaultKeyStaysAtItsVersion(t *testing.T) {
	bao, _ := newVault(t)
	bao.Must(t, "POST", "transit/keys/k", map[string]any{"type": "ecdsa-p256"})
	first, err := Open("hashivault://k", nil)
	if err != nil {
		t.Fatal(err)
	}
	bao.Must(t, "POST", "transit/keys/k/rotate", nil)
	checkSigns(t, first)
	second, err := Open("hashivault://k", nil)
	if err != nil {
		t.Fatal(err)
	}
	if cryptoutils.EqualKeys(first.Public(), second.Public()) == nil {
		t.Error("the rotated key is the old one")
	}
	checkSigns(t, second)
	old, err := Open("hashivault://k?version=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := cryptoutils.EqualKeys(first.Public(), old.Public()); err != nil {
		t.Error(err)
	}
	checkSigns(t, old)
	if _, err := Open("hashivault://k?version=3", nil); err == nil || !strings.Contains(err.Error(), "no version 3") {
		t.Errorf("version 3: %v", err)
	}
}

func TestVaultSealedAndBack(t *testing.T) {
	bao, _ := newVault(t)
	bao.Must(t, "POST", "transit/keys/k", map[string]any{"type": "ecdsa-p256"})
	key, err := Open("hashivault://k", nil)
	if err != nil {
		t.Fatal(err)
	}
	checkSigns(t, key)
	bao.Seal(t)
	refused(t, key)
	if _, err := Open("hashivault://k", nil); err == nil {
		t.Error("a key of a sealed Vault was opened")
	}
	bao.Unseal(t)
	signsSoon(t, key)
}

func TestAVaultTokenThatIsReplacedInItsFile(t *testing.T) {
	bao, file := newVault(t)
	bao.Must(t, "POST", "transit/keys/k", map[string]any{"type": "ecdsa-p256"})
	bao.Must(t, "PUT", "sys/policies/acl/signer", map[string]any{
		"policy": `path "transit/keys/k" { capabilities = ["read"] }` + "\n" + `path "transit/sign/k/*" { capabilities = ["update"] }`,
	})
	token := func() string {
		made := bao.Must(t, "POST", "auth/token/create", map[string]any{"policies": []string{"signer"}, "ttl": "1h"})["client_token"].(string)
		if err := os.WriteFile(file, []byte(made), 0o600); err != nil {
			t.Fatal(err)
		}
		return made
	}
	first := token()
	key, err := Open("hashivault://k", nil)
	if err != nil {
		t.Fatal(err)
	}
	checkSigns(t, key)
	bao.Must(t, "POST", "auth/token/revoke", map[string]any{"token": first})
	refused(t, key)
	token()
	checkSigns(t, key)
}

func TestVaultSettingsThatCannotBe(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close() // nobody answers there
	for _, tt := range []struct{ name, uri, address, token, file, want string }{
		{"no address", "hashivault://k", "", "t", "", "VAULT_ADDR"},
		{"no token", "hashivault://k", "http://127.0.0.1:1", "", "", "VAULT_TOKEN_FILE"},
		{"two tokens", "hashivault://k", "http://127.0.0.1:1", "t", "/nowhere", "both set"},
		{"a token file that is missing", "hashivault://k", "http://127.0.0.1:1", "", "/nowhere", "/nowhere"},
		{"nobody there", "hashivault://k", "http://" + ln.Addr().String(), "secret-token", "", "refused"},
		{"a path", "hashivault://a/../b", "http://127.0.0.1:1", "t", "", "hashivault://NAME"},
		{"a version that is none", "hashivault://k?version=0", "http://127.0.0.1:1", "t", "", "version=N"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("VAULT_ADDR", tt.address)
			t.Setenv("VAULT_TOKEN", tt.token)
			t.Setenv("VAULT_TOKEN_FILE", tt.file)
			_, err := Open(tt.uri, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret-token") {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// refused has key sign, which must fail as something that can pass.
func refused(t *testing.T, key crypto.Signer) {
	t.Helper()
	digest := sha256.Sum256([]byte("hello"))
	if _, err := key.Sign(nil, digest[:], crypto.SHA256); fault.KindOf(err) != fault.Unavailable || fault.ReasonOf(err) != ReasonUnavailable {
		t.Errorf("%v (%s), want %s", err, fault.ReasonOf(err), ReasonUnavailable)
	}
}

// signsSoon waits until key signs: an unsealed Vault needs a moment.
func signsSoon(t *testing.T, key crypto.Signer) {
	t.Helper()
	digest := sha256.Sum256([]byte("hello"))
	until(t, "the key does not sign again", func() bool {
		_, err := key.Sign(nil, digest[:], crypto.SHA256)
		return err == nil
	})
}
