package stack

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/issuer"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/tsa"
)

// material is the instance's keys and certificate chains.
type material struct {
	made                              time.Time // not after the first use of any key
	ca, tsa, ct, rekor1, rekor2, oidc crypto.Signer
	witness                           crypto.Signer       // nil without witnesses; Ed25519, signs checkpoints a second time for them
	cas                               *authorities        // ca is the key of the one that issues
	tsaChain                          []*x509.Certificate // leaf first, root last
}

// openMaterial reads the keys under dir/keys and makes those that are missing. A key is durable
// before a certificate speaks of it, and both before anything is published.
func openMaterial(dir string, now time.Time, witnessed bool) (*material, error) {
	m := &material{made: now.Truncate(time.Second)}
	keys := filepath.Join(dir, "keys")
	var tsaRoot crypto.Signer
	var g errgroup.Group
	g.Go(func() error { return m.openCA(keys) })
	for _, k := range []struct {
		key  *crypto.Signer
		name string
		alg  signer.Algorithm
	}{
		{&tsaRoot, "tsa-root", signer.P256},
		{&m.tsa, "tsa", signer.P256},
		{&m.ct, "ct", signer.P256},
		{&m.rekor1, "rekor1", signer.P256},
		{&m.rekor2, "rekor2", signer.P256},
	} {
		g.Go(func() (err error) {
			*k.key, err = signer.OpenOrCreate(filepath.Join(keys, k.name+".pem"), k.alg)
			return err
		})
	}
	if witnessed {
		g.Go(func() (err error) {
			m.witness, err = signer.OpenOrCreate(filepath.Join(keys, "witness.pem"), signer.Ed25519)
			return err
		})
	}
	g.Go(func() (err error) { // RSA takes the longest, so beside the others
		m.oidc, err = issuer.OpenOrCreateKey(filepath.Join(keys, "oidc.pem"))
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var err error
	if m.tsaChain, err = openChain(filepath.Join(keys, "tsa-chain.pem"), func() ([]*x509.Certificate, error) {
		return tsa.CreateChain(m.tsa.Public(), tsaRoot, tsa.ChainOptions{Organization: organization, NotBefore: m.made})
	}); err != nil {
		return nil, err
	}
	return m, nil
}

// openCA opens the CA that issues, and makes the first one. Once ca.json is there, the first one's files may be gone: its
// root is offline, or its key was destroyed.
func (m *material) openCA(keys string) error {
	if _, err := os.Stat(filepath.Join(keys, authoritiesName)); errors.Is(err, os.ErrNotExist) {
		root, err := signer.OpenOrCreate(filepath.Join(keys, "ca-root.pem"), signer.P384)
		if err != nil {
			return err
		}
		key, err := signer.OpenOrCreate(filepath.Join(keys, "ca.pem"), signer.P256)
		if err != nil {
			return err
		}
		if _, err := openChain(filepath.Join(keys, "ca-chain.pem"), func() ([]*x509.Certificate, error) {
			return ca.CreateHierarchy(ca.Hierarchy{RootKey: root, IssuingKey: key, Organization: organization, NotBefore: m.made})
		}); err != nil {
			return err
		}
	}
	var err error
	if m.cas, err = readAuthorities(keys); err != nil {
		return err
	}
	m.ca, err = m.cas.open(keys)
	return err
}

// organization stands in the subjects of the CA and TSA certificates. gh picks a trusted root by it
// and wants exactly one value.
const organization = "attestry"

// openChain reads the PEM chain at path, or makes and stores it.
func openChain(path string, create func() ([]*x509.Certificate, error)) ([]*x509.Certificate, error) {
	raw, err := os.ReadFile(path)
	if err == nil {
		return tsa.ParseChain(raw)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("certificate chain: %w", err)
	}
	chain, err := create()
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(path, encodeChain(chain), 0o644); err != nil {
		return nil, fmt.Errorf("storing certificate chain %s: %w", path, err)
	}
	return chain, nil
}

func encodeChain(chain []*x509.Certificate) []byte {
	var text []byte
	for _, cert := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return text
}
