package signer

import (
	"crypto/ecdsa"
	"errors"
	"os"
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
