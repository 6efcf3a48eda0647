package signer

import (
	"crypto/ecdsa"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

func TestAKeyIsMadeOnceAndFoundAgain(t *testing.T) {
	for _, alg := range []Algorithm{P256, P384, Ed25519} {
		t.Run(string(alg), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "k.pem")
			made, err := Create(path, alg)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Create(path, alg); !errors.Is(err, os.ErrExist) {
				t.Errorf("second Create = %v, want os.ErrExist", err)
			}
			found, err := OpenOrCreate(path, alg)
			if err != nil {
				t.Fatal(err)
			}
			if err := cryptoutils.EqualKeys(made.Public(), found.Public()); err != nil {
				t.Error(err)
			}
			if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
				t.Errorf("mode = %v, want 0600", info.Mode())
			}
		})
	}
}

func TestAKeyThatSigstoreEncryptedNeedsItsPassword(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k.pem")
	made, err := Create(path, P256)
	if err != nil {
		t.Fatal(err)
	}
	sealed, _, err := cryptoutils.GeneratePEMEncodedECDSAKeyPair(made.(*ecdsa.PrivateKey).Curve, cryptoutils.StaticPasswordFunc([]byte("pw")))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, sealed, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open("file:"+path, []byte("pw")); err != nil {
		t.Errorf("right password: %v", err)
	}
	if _, err := Open("file:"+path, []byte("no")); err == nil {
		t.Error("a wrong password was accepted")
	}
}

// TestAnEncryptedKeyIsMadeForOneWhoKnowsThePassword has openssl read the file, too.
func TestAnEncryptedKeyIsMadeForOneWhoKnowsThePassword(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	if _, err := CreateEncrypted(path, P384, nil); err == nil {
		t.Fatal("a key was encrypted with an empty password")
	}
	key, err := CreateEncrypted(path, P384, []byte("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	found, err := Open("file:"+path, []byte("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	if !key.Public().(*ecdsa.PublicKey).Equal(found.Public()) {
		t.Error("another key came back")
	}
	for _, wrong := range [][]byte{nil, {}, []byte("incorrect horse")} {
		if _, err := Open("file:"+path, wrong); err == nil {
			t.Errorf("password %q opened it", wrong)
		}
	}
	if _, err := CreateEncrypted(path, P384, []byte("correct horse")); !errors.Is(err, os.ErrExist) {
		t.Errorf("over an existing key: %v", err)
	}
	openssl := program(t, "openssl", "openssl")
	want, err := PublicPEM(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(openssl, "pkey", "-in", path, "-passin", "pass:correct horse", "-pubout").CombinedOutput(); err != nil || string(out) != string(want) {
		t.Errorf("openssl reads %s, %v", out, err)
	}
}
