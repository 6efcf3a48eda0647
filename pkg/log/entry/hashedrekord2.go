package entry

import (
	"encoding/hex"
	"errors"
	"strings"

	common "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekorpb "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
)

// hashedRekordSpec2 is Rekor v2's hashedrekord 0.0.2 in protobuf's JSON form.
type hashedRekordSpec2 struct {
	HashedRekordV002 struct {
		Data      hashOutput `json:"data"`
		Signature signature2 `json:"signature"`
	} `json:"hashedRekordV002"`
}

// hashOutput is common.v1.HashOutput.
type hashOutput struct {
	Algorithm string `json:"algorithm"` // SHA2_256, SHA2_384, SHA2_512
	Digest    []byte `json:"digest"`
}

func (h hashOutput) key() string {
	return strings.Replace(h.Algorithm, "SHA2_", "sha", 1) + ":" + hex.EncodeToString(h.Digest)
}

// signature2 is rekor.v2.Signature.
type signature2 struct {
	Content  []byte    `json:"content"`
	Verifier verifier2 `json:"verifier"`
}

// verifier2 is rekor.v2.Verifier: one of PublicKey (DER SubjectPublicKeyInfo) and X509Certificate (DER).
type verifier2 struct {
	KeyDetails      string    `json:"keyDetails"`
	PublicKey       *rawBytes `json:"publicKey,omitempty"`
	X509Certificate *rawBytes `json:"x509Certificate,omitempty"`
}

type rawBytes struct {
	RawBytes []byte `json:"rawBytes"`
}

// HashedRekord verifies a Rekor v2 request of a signature over a digest.
func HashedRekord(req *rekorpb.HashedRekordRequestV002) (Entry, error) {
	content, digest := req.GetSignature().GetContent(), req.GetDigest()
	switch {
	case len(content) == 0:
		return Entry{}, missing("signature")
	case len(digest) == 0:
		return Entry{}, missing("digest")
	}
	key, stored, err := verifierOf(req.GetSignature().GetVerifier())
	if err != nil {
		return Entry{}, err
	}
	details, err := detailsOf(key, stored)
	if err != nil {
		return Entry{}, err
	}
	if len(digest) != details.hash.Size() {
		return Entry{}, invalid("bad_field", nil, "digest length (%d) does not match expected size (%d) for algorithm %s", len(digest), details.hash.Size(), details.hash)
	}
	if err := verifyDigest(key.public, details.hash, digest, content); err != nil {
		return Entry{}, invalid("bad_signature", err, "verifying signature: %v", err)
	}
	var s hashedRekordSpec2
	s.HashedRekordV002.Data = hashOutput{details.hashName, digest}
	s.HashedRekordV002.Signature = signature2{content, stored}
	return newEntry("hashedrekord", "0.0.2", s, append(key.keys(), s.HashedRekordV002.Data.key()), nil)
}

func (s hashedRekordSpec2) keys() ([]string, error) {
	key, err := s.HashedRekordV002.Signature.Verifier.parse()
	if err != nil {
		return nil, err
	}
	return append(key.keys(), s.HashedRekordV002.Data.key()), nil
}

// verifierOf parses a request's verifier.
func verifierOf(v *rekorpb.Verifier) (verifier, verifier2, error) {
	stored := verifier2{KeyDetails: v.GetKeyDetails().String()}
	if _, known := common.PublicKeyDetails_name[int32(v.GetKeyDetails())]; !known {
		return verifier{}, verifier2{}, invalid("bad_field", nil, "unknown keyDetails %d", v.GetKeyDetails())
	}
	switch {
	case len(v.GetPublicKey().GetRawBytes()) > 0:
		stored.PublicKey = &rawBytes{v.GetPublicKey().GetRawBytes()}
	case len(v.GetX509Certificate().GetRawBytes()) > 0:
		stored.X509Certificate = &rawBytes{v.GetX509Certificate().GetRawBytes()}
	default:
		return verifier{}, verifier2{}, invalid("missing_field", nil, "missing signature public key or X.509 certificate")
	}
	key, err := stored.parse()
	if err != nil {
		return verifier{}, verifier2{}, invalid("bad_key", err, "parsing verifier: %v", err)
	}
	return key, stored, nil
}

func (v verifier2) parse() (verifier, error) {
	switch {
	case v.PublicKey != nil:
		return parsePublicKey(v.PublicKey.RawBytes)
	case v.X509Certificate != nil:
		return parseCertificate(v.X509Certificate.RawBytes)
	default:
		return verifier{}, errors.New("neither public key nor certificate")
	}
}

// detailsOf returns the algorithm of a signature over a digest, which must be the key's default.
func detailsOf(key verifier, stored verifier2) (keyDetails, error) {
	details, ok := defaultDetails(key.public)
	if !ok {
		return keyDetails{}, invalid("algorithm_not_allowed", nil, "unsupported entry algorithm: %s", describe(key.public))
	}
	if stored.KeyDetails != details.id.String() {
		return keyDetails{}, invalid("key_details_mismatch", nil, "keyDetails must be %s for this key, not %s", details.id, stored.KeyDetails)
	}
	return details, nil
}
