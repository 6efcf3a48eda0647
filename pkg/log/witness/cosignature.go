package witness

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// cosigner makes the cosignatures of one witness.
type cosigner struct {
	key    Key // type CosignEd25519
	signer crypto.Signer
}

func newCosigner(name string, signer crypto.Signer) (cosigner, error) {
	public, ok := signer.Public().(ed25519.PublicKey)
	if !ok {
		return cosigner{}, fmt.Errorf("witness key: a %T is not supported, use Ed25519", signer.Public())
	}
	key, err := newKey(name, CosignEd25519, public)
	if err != nil {
		return cosigner{}, fmt.Errorf("witness key: %w", err)
	}
	return cosigner{key, signer}, nil
}

// sign cosigns a checkpoint as of a time (c2sp.org/tlog-cosignature, Ed25519): the signature is
// over "cosignature/v1", the time and the whole text, and comes after the time in 8 bytes.
func (c cosigner) sign(text []byte, unix uint64) (signature, error) {
	message := append(fmt.Appendf(nil, "cosignature/v1\ntime %d\n", unix), text...)
	sig, err := c.signer.Sign(rand.Reader, message, crypto.Hash(0))
	if err != nil {
		return signature{}, fmt.Errorf("cosigning: %w", err)
	}
	return signature{c.key.name, c.key.Hash(), append(binary.BigEndian.AppendUint64(nil, unix), sig...)}, nil
}

// cosignedUnix is the time in a cosignature, seconds since the epoch. A witness always gives one.
func cosignedUnix(s signature) (uint64, error) {
	if len(s.blob) < 8 {
		return 0, errors.New("cosignature is too short for a time")
	}
	unix := binary.BigEndian.Uint64(s.blob)
	if unix == 0 || unix > math.MaxInt64 {
		return 0, fmt.Errorf("cosignature has the time %d", unix)
	}
	return unix, nil
}
