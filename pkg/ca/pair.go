package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/signer"
)

const maxChainFile = 128 << 10 // bytes

// ErrHalfWritten says that a key and a chain were not written as one: a file is cut off, or one of the two is older than
// the other. Who writes them may not have finished; trying again can help.
var ErrHalfWritten = errors.New("key and chain do not belong together")

// OpenPair opens the issuing key that uri names and reads its chain, issuing certificate first, root last. Either both
// are of one moment or the error is ErrHalfWritten, so that what watches the files never issues with half of a pair.
// Whether clients could use the chain is for New, or CheckChain, to say.
//
// The URI ephemeral: makes a key in memory and a chain for it, others at each call; chainFile is "" then.
func OpenPair(uri string, password []byte, chainFile string) (crypto.Signer, []*x509.Certificate, error) {
	if uri == signer.Ephemeral {
		return ephemeral(time.Now())
	}
	before, chainErr := limit.ReadFile(chainFile, maxChainFile)
	if chainErr != nil {
		chainErr = fmt.Errorf("certificate chain: %w", chainErr)
	}
	key, keyErr := signer.Open(uri, password)
	if err := errors.Join(keyErr, chainErr); err != nil {
		return nil, nil, err
	}
	after, err := limit.ReadFile(chainFile, maxChainFile)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate chain: %w", err)
	}
	if !bytes.Equal(before, after) {
		return nil, nil, fmt.Errorf("%w: %s changed while the key was opened", ErrHalfWritten, chainFile)
	}
	chain, err := ParseChain(after)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s: %w", ErrHalfWritten, chainFile, err)
	}
	if !owns(key.Public(), chain[0]) {
		return nil, nil, fmt.Errorf("%w: %s: certificate 1 (%s): the signing key is not this certificate's key", ErrHalfWritten, chainFile, chain[0].Subject)
	}
	return key, chain, nil
}

// owns reports whether cert is for pub.
func owns(pub crypto.PublicKey, cert *x509.Certificate) bool {
	key, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(pub)
}

// ephemeral makes a key and a chain that nobody stores.
func ephemeral(now time.Time) (crypto.Signer, []*x509.Certificate, error) {
	root, err := signer.New(signer.P384)
	if err != nil {
		return nil, nil, err
	}
	key, err := signer.New(signer.P256)
	if err != nil {
		return nil, nil, err
	}
	chain, err := CreateHierarchy(Hierarchy{RootKey: root, IssuingKey: key, Organization: "attestry ephemeral", NotBefore: now})
	return key, chain, err
}
