package signer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/fault"
)

const (
	maxRemote   = 16 // signatures of one key under way at a time: PKCS#11 sessions, connections to a server
	signTimeout = 5 * time.Second
	openTimeout = 15 * time.Second
)

// Reason codes of the errors of a key outside the process.
const (
	ReasonUnavailable = "signer_unavailable"
	ReasonWrong       = "signer_wrong"
)

// remoteKey is a private key that a device or another process keeps. Its methods are safe for concurrent use.
type remoteKey interface {
	// public returns the public half as it was when the key was opened.
	public() crypto.PublicKey
	// sign returns what crypto.Signer.Sign does: ASN.1 for ECDSA. It should end with ctx, but may not be able to. After
	// an error the next call tries again, over a new connection if need be.
	sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// remote guards a remoteKey, so that a device which hangs, fails or errs costs its caller seconds and nothing else.
type remote struct {
	key     remoteKey
	slots   chan struct{} // holds a token for each signature under way, also of those whose caller has left
	timeout time.Duration
}

// openRemote opens a key outside the process. What an opening that took too long still opens is closed again.
func openRemote(uri string, open func() (remoteKey, error)) (crypto.Signer, error) {
	type result struct {
		key remoteKey
		err error
	}
	done := make(chan result)
	given := make(chan struct{})
	defer close(given)
	go func() { // ends when open returns
		key, err := open()
		select {
		case done <- result{key, err}:
		case <-given:
			if c, ok := key.(io.Closer); ok && err == nil {
				c.Close()
			}
		}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("key %s: %w", shown(uri), r.err)
		}
		return newRemote(r.key, signTimeout), nil
	case <-time.After(openTimeout):
		return nil, fmt.Errorf("key %s: no answer in %s", shown(uri), openTimeout)
	}
}

// shown is uri without its query, and without anything where somebody wrote a PIN into it.
func shown(uri string) string {
	name, _, _ := strings.Cut(uri, "?")
	if strings.Contains(name, "pin") {
		name, _, _ = strings.Cut(name, ":")
	}
	return name
}

func newRemote(key remoteKey, timeout time.Duration) *remote {
	r := &remote{key: key, slots: make(chan struct{}, maxRemote), timeout: timeout}
	if c, ok := key.(io.Closer); ok {
		// A crypto.Signer cannot be closed, and a server that reloads its configuration opens its key again: the
		// sessions go when nobody has the key any more.
		runtime.AddCleanup(r, func(c io.Closer) { c.Close() }, c)
	}
	return r
}

// Public implements crypto.Signer.
func (r *remote) Public() crypto.PublicKey { return r.key.public() }

// Sign implements crypto.Signer. Each signature is verified: a device that answers with the wrong key or with noise must
// not become a certificate or a checkpoint that somebody has seen.
func (r *remote) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.timeout)
	defer cancel()
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, unavailable(fmt.Errorf("waiting behind %d signatures: %w", maxRemote, ctx.Err()))
	}
	type result struct {
		signature []byte
		err       error
	}
	done := make(chan result, 1)
	go func() { // ends when the key answers
		signature, err := r.key.sign(ctx, digest, opts)
		<-r.slots
		done <- result{signature, err}
	}()
	var got result
	select {
	case got = <-done:
	case <-ctx.Done():
		return nil, unavailable(fmt.Errorf("waiting for the signature: %w", ctx.Err()))
	}
	if got.err != nil {
		return nil, unavailable(got.err)
	}
	if !verifies(r.Public(), digest, got.signature, opts) {
		return nil, fault.New(fault.Internal, ReasonWrong, errors.New("the signature does not verify with the key's public half"),
			"the signing key gave a wrong signature")
	}
	return got.signature, nil
}

func unavailable(err error) error {
	return fault.New(fault.Unavailable, ReasonUnavailable, err, "the signing key cannot be used now; try again")
}

// verifies reports whether signature is pub's over digest, which is the message itself for Ed25519.
func verifies(pub crypto.PublicKey, digest, signature []byte, opts crypto.SignerOpts) bool {
	switch key := pub.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest, signature)
	case *rsa.PublicKey:
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(key, pss.Hash, digest, signature, pss) == nil
		}
		return rsa.VerifyPKCS1v15(key, opts.HashFunc(), digest, signature) == nil
	case ed25519.PublicKey:
		return opts.HashFunc() == crypto.Hash(0) && ed25519.Verify(key, digest, signature)
	}
	return false
}

// notBuilt is the error of a scheme that this program was built without.
func notBuilt(scheme, tag, more string) error {
	return fmt.Errorf("this program was built without %s: take the image that has it, or build with `%sgo build -tags %s ./cmd/...`", scheme, more, tag)
}
