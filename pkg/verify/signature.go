package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // registers the hashes named below
	_ "crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
)

// maxPureEd25519Bytes bounds what is read into memory for a pure Ed25519 signature, which needs the
// artifact itself.
const maxPureEd25519Bytes = 256 << 20

// Artifact is what a bundle is checked against. It is used up by one verification.
type Artifact struct {
	reader   io.Reader
	none     bool
	given    bool              // digests were given, not computed
	digests  map[string][]byte // by algorithm name
	contents []byte            // of a reader, kept only for pure Ed25519
	stamped  []byte            // see AlsoStamped
}

// AlsoStamped accepts RFC 3161 timestamps over data too, where the signature itself is to be stamped. data must contain the
// signature: cosign stamps the envelope as a whole where it keeps an attestation under a tag.
func (a Artifact) AlsoStamped(data []byte) Artifact {
	a.stamped = data
	return a
}

// FromReader is an artifact whose bytes are read once.
func FromReader(r io.Reader) Artifact { return Artifact{reader: r} }

// FromBytes is an artifact in memory.
func FromBytes(data []byte) Artifact { return Artifact{reader: bytes.NewReader(data)} }

// FromDigest is an artifact known by its digest. algorithm is sha256, sha384 or sha512.
func FromDigest(algorithm string, digest []byte) (Artifact, error) {
	if h := hashOf(algorithm); h == 0 || len(digest) != h.Size() {
		return Artifact{}, fmt.Errorf("digest %s:%x is not of a known algorithm and its length", algorithm, digest)
	}
	return Artifact{given: true, digests: map[string][]byte{algorithm: digest}}, nil
}

// ParseDigest reads "sha256:<64 hex>" (also sha384, sha512); ok is false when s is not of that form.
func ParseDigest(s string) (a Artifact, ok bool) {
	alg, value, found := strings.Cut(s, ":")
	if !found {
		return Artifact{}, false
	}
	raw, err := hex.DecodeString(value)
	if err != nil {
		return Artifact{}, false
	}
	a, err = FromDigest(alg, raw)
	return a, err == nil
}

// AnySubject accepts an attestation whatever its subjects are; the caller has to compare them itself. It does
// not fit a message signature.
func AnySubject() Artifact { return Artifact{none: true} }

// digest computes the digests that this bundle calls for in one pass over the reader.
func (a *Artifact) digest(b *bundle, p *Policy) error {
	if a.reader == nil {
		if len(a.digests) == 0 && !a.none {
			return fmt.Errorf("no artifact was given")
		}
		if a.none && !b.isDSSE {
			return fail(ReasonSubjectMismatch, nil, "a message signature needs its artifact")
		}
		return nil
	}
	var algs []string
	if b.isDSSE {
		algs = b.statement.algorithms()
	} else {
		key := p.Key
		if b.leaf != nil {
			key = b.leaf.PublicKey
		}
		algs = append(algs, b.digestAlg)
		for _, h := range hashesFor(key) {
			algs = append(algs, nameOf(h))
		}
	}
	a.digests = make(map[string][]byte)
	hashes := make(map[string]hash.Hash)
	var writers []io.Writer
	for _, alg := range algs {
		if hashes[alg] == nil {
			hashes[alg] = hashOf(alg).New()
			writers = append(writers, hashes[alg])
		}
	}
	var contents bytes.Buffer
	reader := a.reader
	if _, pure := p.Key.(ed25519.PublicKey); pure && !b.isDSSE {
		writers = append(writers, &contents)
		reader = io.LimitReader(reader, maxPureEd25519Bytes+1)
	}
	if _, err := io.Copy(io.MultiWriter(writers...), reader); err != nil {
		return fmt.Errorf("reading the artifact: %w", err)
	}
	if contents.Len() > maxPureEd25519Bytes {
		return fail(ReasonTooLarge, nil, "an artifact over %d bytes cannot be verified with an Ed25519 key", maxPureEd25519Bytes)
	}
	a.contents = contents.Bytes()
	for alg, h := range hashes {
		a.digests[alg] = h.Sum(nil)
	}
	return nil
}

// verifySignature verifies the bundle's signature over the artifact or the DSSE pre-authentication encoding.
// messageDigest is signed by nobody, yet has to be the artifact's.
func (a *attempt) verifySignature() error {
	b := a.bundle
	if b.isDSSE {
		if !verifyMessage(a.key, b.pae, b.signature) {
			return fail(ReasonSignatureInvalid, nil, "the envelope's signature does not verify")
		}
		return nil
	}
	digest, ok := a.artifact.digests[b.digestAlg]
	if !ok {
		return fail(ReasonDigestMismatch, nil, "the bundle holds a %s digest, the artifact is given by another", b.digestAlg)
	}
	if !bytes.Equal(digest, b.digest) {
		return fail(ReasonDigestMismatch, nil, "the bundle is for digest %s:%x, the artifact has %s:%x", b.digestAlg, b.digest, b.digestAlg, digest)
	}
	for _, h := range hashesFor(a.key) {
		if d, ok := a.artifact.digests[nameOf(h)]; ok && verifyDigest(a.key, h, d, b.signature) {
			return nil
		}
	}
	// A certificate's Ed25519 signature is Ed25519ph, as it has to be logged by digest; a key may also have
	// signed the artifact itself.
	if k, ok := a.policy.Key.(ed25519.PublicKey); ok && a.artifact.contents != nil && ed25519.Verify(k, a.artifact.contents, b.signature) {
		return nil
	}
	return fail(ReasonSignatureInvalid, nil, "the signature does not verify")
}

// hashesFor lists the hashes with which key may have signed, the usual one first. Clients before
// 2025 signed with SHA-256 whatever the curve.
func hashesFor(key crypto.PublicKey) []crypto.Hash {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if h := ecdsaHash(k); h != crypto.SHA256 {
			return []crypto.Hash{h, crypto.SHA256}
		}
		return []crypto.Hash{crypto.SHA256}
	case ed25519.PublicKey:
		return []crypto.Hash{crypto.SHA512}
	case *rsa.PublicKey:
		return []crypto.Hash{crypto.SHA256}
	}
	return nil
}

// verifyMessage verifies a signature over the bytes of a DSSE encoding: pure Ed25519, or over a hash.
func verifyMessage(key crypto.PublicKey, message, sig []byte) bool {
	if k, ok := key.(ed25519.PublicKey); ok {
		return ed25519.Verify(k, message, sig)
	}
	for _, h := range hashesFor(key) {
		if verifyDigest(key, h, sum(h, message), sig) {
			return true
		}
	}
	return false
}

// verifyDigest verifies ECDSA (DER), RSA PKCS #1 v1.5 or Ed25519ph.
func verifyDigest(key crypto.PublicKey, h crypto.Hash, digest, sig []byte) bool {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, digest, sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, h, digest, sig) == nil
	case ed25519.PublicKey:
		return ed25519.VerifyWithOptions(k, digest, sig, &ed25519.Options{Hash: h}) == nil
	}
	return false
}

func ecdsaHash(k *ecdsa.PublicKey) crypto.Hash {
	switch k.Curve {
	case elliptic.P384():
		return crypto.SHA384
	case elliptic.P521():
		return crypto.SHA512
	}
	return crypto.SHA256
}

func sum(h crypto.Hash, data []byte) []byte {
	w := h.New()
	w.Write(data)
	return w.Sum(nil)
}

// hashOf returns 0 for an unknown name.
func hashOf(algorithm string) crypto.Hash {
	switch algorithm {
	case "sha256":
		return crypto.SHA256
	case "sha384":
		return crypto.SHA384
	case "sha512":
		return crypto.SHA512
	}
	return 0
}

func nameOf(h crypto.Hash) string {
	switch h {
	case crypto.SHA384:
		return "sha384"
	case crypto.SHA512:
		return "sha512"
	}
	return "sha256"
}

// preAuthEncoding is DSSE's PAE: "DSSEv1" SP len(type) SP type SP len(payload) SP payload.
func preAuthEncoding(payloadType string, payload []byte) []byte {
	out := make([]byte, 0, len(payload)+len(payloadType)+32)
	out = append(out, "DSSEv1 "...)
	out = strconv.AppendInt(out, int64(len(payloadType)), 10)
	out = append(out, ' ')
	out = append(out, payloadType...)
	out = append(out, ' ')
	out = strconv.AppendInt(out, int64(len(payload)), 10)
	out = append(out, ' ')
	return append(out, payload...)
}
