package entry

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"

	common "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
)

// keyDetails is an algorithm of protobuf-specs' registry.
type keyDetails struct {
	id       common.PublicKeyDetails
	hash     crypto.Hash
	hashName string // enum name of common.HashAlgorithm
}

// defaultDetails is the algorithm that signatures over a digest have by default for a key, and the
// only one taken for it: sigstore-go since 1.2 rebuilds the leaf with the default, whatever the submission said.
func defaultDetails(public crypto.PublicKey) (keyDetails, bool) {
	switch k := public.(type) {
	case *rsa.PublicKey:
		switch 8 * k.Size() {
		case 2048:
			return keyDetails{common.PublicKeyDetails_PKIX_RSA_PKCS1V15_2048_SHA256, crypto.SHA256, "SHA2_256"}, true
		case 3072:
			return keyDetails{common.PublicKeyDetails_PKIX_RSA_PKCS1V15_3072_SHA256, crypto.SHA256, "SHA2_256"}, true
		case 4096:
			return keyDetails{common.PublicKeyDetails_PKIX_RSA_PKCS1V15_4096_SHA256, crypto.SHA256, "SHA2_256"}, true
		}
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return keyDetails{common.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256, crypto.SHA256, "SHA2_256"}, true
		case elliptic.P384():
			return keyDetails{common.PublicKeyDetails_PKIX_ECDSA_P384_SHA_384, crypto.SHA384, "SHA2_384"}, true
		case elliptic.P521():
			return keyDetails{common.PublicKeyDetails_PKIX_ECDSA_P521_SHA_512, crypto.SHA512, "SHA2_512"}, true
		}
	case ed25519.PublicKey:
		return keyDetails{common.PublicKeyDetails_PKIX_ED25519_PH, crypto.SHA512, "SHA2_512"}, true
	}
	return keyDetails{}, false
}
