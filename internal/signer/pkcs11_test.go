//go:build pkcs11 && cgo

package signer

import (
	"crypto"
	"crypto/elliptic"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ThalesGroup/crypto11"

	"github.com/attestry/attestry/internal/fault"
)

const softhsmModule = "/usr/lib/softhsm/libsofthsm2.so"

// token is a SoftHSM token of one test. A module has one configuration in a process, so a test closes what it opened
// before the next one begins.
type token struct {
	dir   string // where the tokens are, one directory each
	label string
	pin   string // file with the PIN
}

func newToken(t *testing.T) token {
	t.Helper()
	util := program(t, "softhsm2-util", "softhsm2")
	if _, err := os.Stat(softhsmModule); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v: apt-get install softhsm2", err)
		}
		t.Skipf("skipped: %v; to run this test: apt-get install softhsm2", err)
	}
	dir := t.TempDir()
	k := token{dir: filepath.Join(dir, "tokens"), label: "a token", pin: filepath.Join(dir, "pin")}
	conf := filepath.Join(dir, "softhsm2.conf")
	for path, text := range map[string]string{conf: "directories.tokendir = " + k.dir + "\nlog.level = ERROR\n", k.pin: "2468\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(k.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	if out, err := exec.Command(util, "--init-token", "--free", "--label", k.label, "--so-pin", "1357", "--pin", "2468").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return k
}

func (k token) uri(object string) string {
	return fmt.Sprintf("pkcs11:token=%s;object=%s?module-path=%s&pin-source=%s", strings.ReplaceAll(k.label, " ", "%20"), object, softhsmModule, k.pin)
}

// make makes key pairs in the token.
func (k token) make(t *testing.T, make func(*crypto11.Context) error) {
	t.Helper()
	ctx, err := crypto11.Configure(&crypto11.Config{Path: softhsmModule, TokenLabel: k.label, Pin: "2468"})
	if err != nil {
		t.Fatal(err)
	}
	if err := make(ctx); err != nil {
		t.Fatal(err)
	}
	if err := ctx.Close(); err != nil {
		t.Fatal(err)
	}
}

func (k token) makeEC(t *testing.T, label string, curve elliptic.Curve) {
	k.make(t, func(ctx *crypto11.Context) error {
		_, err := ctx.GenerateECDSAKeyPairWithLabel([]byte(label), []byte(label), curve)
		return err
	})
}

// open opens a key, which is closed with the test.
func (k token) open(t *testing.T, uri string) crypto.Signer {
	t.Helper()
	key, err := Open(uri, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		inner := key.(*remote).key.(*pkcs11Key)
		inner.Close()
		inner.mu.Lock()
		defer inner.mu.Unlock()
		if inner.closing != nil {
			<-inner.closing
		}
	})
	return key
}

func TestATokensKeysSign(t *testing.T) {
	k := newToken(t)
	k.makeEC(t, "p256", elliptic.P256())
	k.makeEC(t, "p384", elliptic.P384())
	k.make(t, func(ctx *crypto11.Context) error {
		_, err := ctx.GenerateRSAKeyPairWithLabel([]byte("rsa"), []byte("rsa"), 2048)
		return err
	})
	for _, label := range []string{"p256", "p384", "rsa"} {
		t.Run(label, func(t *testing.T) {
			key := k.open(t, k.uri(label))
			var callers sync.WaitGroup
			for range 4 * maxRemote { // more than there are sessions
				callers.Go(func() { checkSigns(t, key) })
			}
			callers.Wait()
		})
	}
}

func TestWhatDoesNotOpenInAToken(t *testing.T) {
	k := newToken(t)
	k.makeEC(t, "twin", elliptic.P256())
	k.make(t, func(ctx *crypto11.Context) error {
		_, err := ctx.GenerateECDSAKeyPairWithLabel([]byte("other"), []byte("twin"), elliptic.P256())
		return err
	})
	wrong := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(wrong, []byte("9999"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, uri, want string }{
		{"no such key", k.uri("nobody"), "no key pair"},
		{"two keys of one name", k.uri("twin"), "2 key pairs"},
		{"another token", strings.Replace(k.uri("twin"), "token=a%20token", "token=nobody", 1), "could not find PKCS#11 token"},
		{"a wrong PIN", strings.Replace(k.uri("twin"), k.pin, wrong, 1), "CKR_PIN_INCORRECT"},
		{"no PIN", strings.Replace(k.uri("twin"), "&pin-source="+k.pin, "", 1), "pin-source"},
		{"no module", strings.Replace(k.uri("twin"), softhsmModule, "/nowhere.so", 1), "failed to open module"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Open(tt.uri, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	checkSigns(t, k.open(t, strings.Replace(k.uri("twin"), "object=twin", "object=twin;id=other", 1)))
}

func TestAKeySignsAgainWhenItsTokenIsBack(t *testing.T) {
	k := newToken(t)
	k.makeEC(t, "k", elliptic.P256())
	key := k.open(t, k.uri("k"))
	checkSigns(t, key)
	away := k.dir + "-away"
	if err := os.Rename(k.dir, away); err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("hello"))
	until(t, "the token is gone and the key still signs", func() bool {
		_, err := key.Sign(nil, digest[:], crypto.SHA256)
		if err != nil && fault.ReasonOf(err) != ReasonUnavailable {
			t.Fatalf("%v (%s)", err, fault.ReasonOf(err))
		}
		return err != nil
	})
	if err := os.Rename(away, k.dir); err != nil {
		t.Fatal(err)
	}
	until(t, "the token is back and the key does not sign", func() bool {
		_, err := key.Sign(nil, digest[:], crypto.SHA256)
		return err == nil
	})
}

func TestAPINThatWasRefusedIsNotTriedTwice(t *testing.T) {
	k := newToken(t)
	k.makeEC(t, "k", elliptic.P256())
	key := k.open(t, k.uri("k"))
	inner := key.(*remote).key.(*pkcs11Key)
	if err := os.WriteFile(k.pin, []byte("9999"), 0o600); err != nil {
		t.Fatal(err)
	}
	inner.drop(inner.ctx) // as after an error
	digest := sha256.Sum256([]byte("hello"))
	until(t, "the key does not stop", func() bool {
		_, err := key.Sign(nil, digest[:], crypto.SHA256)
		return err != nil && strings.Contains(err.Error(), "not tried twice")
	})
	if err := os.WriteFile(k.pin, []byte("2468"), 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, "the right PIN does not help", func() bool {
		_, err := key.Sign(nil, digest[:], crypto.SHA256)
		return err == nil
	})
}
