//go:build pkcs11 && cgo

package signer

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// reopenPause is how long a token that could not be opened is left alone.
const reopenPause = time.Second

// pkcs11Key is a key in a PKCS#11 token. An error closes all its sessions, and the next signature opens new ones: a
// session does not outlive the token's removal, and a module may have to be initialized again to see it come back.
type pkcs11Key struct {
	uri      *pkcs11URI
	password []byte
	pub      crypto.PublicKey

	mu      sync.Mutex // guards what follows
	ctx     *crypto11.Context
	key     crypto.Signer // nil while there are no sessions
	closing chan struct{} // closed when the sessions of the last ctx are; nil before
	next    time.Time     // no opening before it
	failed  error         // why the last opening failed
	refused []byte        // a PIN that the token did not take
	closed  bool
}

func openPKCS11(uri string, password []byte) (remoteKey, error) {
	u, err := parsePKCS11(uri)
	if err != nil {
		return nil, err
	}
	k := &pkcs11Key{uri: u, password: password}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.open(); err != nil {
		return nil, err
	}
	k.pub = k.key.Public()
	return k, nil
}

func (k *pkcs11Key) public() crypto.PublicKey { return k.pub }

// sign implements remoteKey. A call into a module cannot be ended from here.
func (k *pkcs11Key) sign(_ context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	key, ctx, err := k.current()
	if err != nil {
		return nil, err
	}
	signature, err := key.Sign(nil, digest, opts)
	if err != nil {
		k.drop(ctx)
		return nil, fmt.Errorf("signing in the token: %w", err)
	}
	return signature, nil
}

// current returns the key with its sessions, which it opens when there are none.
func (k *pkcs11Key) current() (crypto.Signer, *crypto11.Context, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.closed:
		return nil, nil, errors.New("the key is closed")
	case k.key != nil:
		return k.key, k.ctx, nil
	case time.Now().Before(k.next):
		return nil, nil, k.failed
	}
	select {
	case <-k.closing:
	default:
		return nil, nil, errors.New("the token's old sessions have not ended yet")
	}
	k.next = time.Now().Add(reopenPause)
	if k.failed = k.open(); k.failed != nil {
		return nil, nil, k.failed
	}
	return k.key, k.ctx, nil
}

// drop closes the sessions of ctx once the signatures under way in them have ended.
func (k *pkcs11Key) drop(ctx *crypto11.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ctx != ctx { // another signature was first
		return
	}
	closing := make(chan struct{})
	go func() { // ends with the calls under way
		defer close(closing)
		ctx.Close()
	}()
	k.ctx, k.key, k.closing = nil, nil, closing
	k.failed = errors.New("the token's sessions broke")
}

// Close implements io.Closer.
func (k *pkcs11Key) Close() error {
	k.mu.Lock()
	k.closed = true
	ctx := k.ctx
	k.mu.Unlock()
	if ctx != nil {
		k.drop(ctx)
	}
	return nil
}

// open logs in and finds the key. A token locks itself after a few wrong PINs, so one that it did not take is never
// tried again.
func (k *pkcs11Key) open() error {
	pin, err := k.pin()
	if err != nil {
		return err
	}
	if k.refused != nil && bytes.Equal(pin, k.refused) {
		return errors.New("the token did not take the PIN, which is not tried twice: it would lock the token")
	}
	ctx, err := crypto11.Configure(&crypto11.Config{
		Path: k.uri.module, TokenLabel: k.uri.token, TokenSerial: k.uri.serial, SlotNumber: k.uri.slot, Pin: string(pin),
		MaxSessions: maxRemote + 1, PoolWaitTimeout: signTimeout, // crypto11 keeps one for itself
	})
	if err != nil {
		var code pkcs11.Error
		if errors.As(err, &code) && (code == pkcs11.CKR_PIN_INCORRECT || code == pkcs11.CKR_PIN_LOCKED || code == pkcs11.CKR_PIN_EXPIRED || code == pkcs11.CKR_PIN_INVALID || code == pkcs11.CKR_PIN_LEN_RANGE) {
			k.refused = pin
		}
		return fmt.Errorf("opening the token: %w", err)
	}
	key, err := k.find(ctx)
	if err != nil {
		return errors.Join(err, ctx.Close())
	}
	k.ctx, k.key = ctx, key
	return nil
}

func (k *pkcs11Key) pin() ([]byte, error) {
	switch {
	case k.uri.pinFile != "":
		pin, err := ReadPassword(k.uri.pinFile)
		if err != nil {
			return nil, fmt.Errorf("pin-source: %w", err)
		}
		return pin, nil
	case k.password != nil:
		return k.password, nil
	}
	return nil, errors.New("the token's PIN is missing: name its file with pin-source, or with key-password-file")
}

// find returns the one key that the URI names, the same as before if there was one.
func (k *pkcs11Key) find(ctx *crypto11.Context) (crypto.Signer, error) {
	var label []byte
	if k.uri.object != "" {
		label = []byte(k.uri.object)
	}
	found, err := ctx.FindKeyPairs(k.uri.id, label)
	switch {
	case err != nil:
		return nil, fmt.Errorf("looking for the key: %w", err)
	case len(found) == 0:
		return nil, fmt.Errorf("the token has no key pair with label %q and ID %x: both halves must be there, under one CKA_ID", k.uri.object, k.uri.id)
	case len(found) > 1:
		return nil, fmt.Errorf("the token has %d key pairs with label %q and ID %x: name one with both object and id", len(found), k.uri.object, k.uri.id)
	}
	if pub, ok := k.pub.(interface{ Equal(crypto.PublicKey) bool }); ok && !pub.Equal(found[0].Public()) {
		return nil, errors.New("the token has another key now than before under this name")
	}
	return found[0], nil
}
