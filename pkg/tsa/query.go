package tsa

import (
	"bytes"
	"crypto"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"
)

const (
	maxQuery     = 64 << 10 // bytes of a DER query; real ones are under 150
	maxJSONQuery = 1024     // bytes of a JSON query: reading a decimal nonce takes quadratic time
	maxNonce     = 64       // content bytes of the nonce; Microsoft's clients send up to 32
	maxPolicy    = 128      // content bytes of the policy OID
)

// Query asks for a timestamp. It says nothing yet about what this authority accepts.
type Query struct {
	Hash   crypto.Hash           // SHA-256, SHA-384 or SHA-512
	Digest []byte                // Hash.Size() raw bytes
	Policy asn1.ObjectIdentifier // nil asks for the authority's default
	// Nonce is the content of a DER INTEGER, copied into the reply bit by bit; nil when the
	// client sent none. It may be zero or negative: some Windows clients fill it with random bytes.
	Nonce        []byte
	Certificates bool // the client wants the certificates in the token
}

// imprint is a hash that a client may use, with the contents of its OID.
type imprint struct {
	hash crypto.Hash
	oid  string // DER content of the OID
}

var imprints = []imprint{
	{crypto.SHA256, "\x60\x86\x48\x01\x65\x03\x04\x02\x01"},
	{crypto.SHA384, "\x60\x86\x48\x01\x65\x03\x04\x02\x02"},
	{crypto.SHA512, "\x60\x86\x48\x01\x65\x03\x04\x02\x03"},
}

const oidSHA1 = "\x2b\x0e\x03\x02\x1a"

// ParseQuery reads a DER TimeStampReq (RFC 3161 section 2.4.1). It is stricter than
// github.com/digitorus/timestamp, which skips fields that are out of order, and never looks at
// the version, the algorithm's parameters, the length of the digest or of the nonce. Whatever
// ParseQuery accepts, that library reads the same way (FuzzQuery).
//
//	TimeStampReq ::= SEQUENCE {
//	  version INTEGER, messageImprint SEQUENCE { hashAlgorithm AlgorithmIdentifier, hashedMessage OCTET STRING },
//	  reqPolicy OBJECT IDENTIFIER OPTIONAL, nonce INTEGER OPTIONAL, certReq BOOLEAN DEFAULT FALSE,
//	  extensions [0] IMPLICIT Extensions OPTIONAL }
//
// Errors are refusals with the failInfo of reference table "Request validation".
func ParseQuery(raw []byte) (*Query, error) {
	var (
		in                    = cryptobyte.String(raw)
		req, message          cryptobyte.String
		algorithm, oid        cryptobyte.String
		version, digest       cryptobyte.String
		policy, nonce, extens cryptobyte.String
		hasPolicy, hasNonce   bool
		hasCertReq, certReq   bool
		hasExtensions         bool
	)
	if !in.ReadASN1(&req, der.SEQUENCE) || !in.Empty() ||
		!req.ReadASN1(&version, der.INTEGER) || !minimal(version) {
		return nil, refuse(badDataFormat, nil, "the query is not one DER TimeStampReq")
	}
	if string(version) != "\x01" {
		return nil, refuse(badRequest, nil, "the query's version is not 1")
	}
	if !req.ReadASN1(&message, der.SEQUENCE) ||
		!message.ReadASN1(&algorithm, der.SEQUENCE) ||
		!message.ReadASN1(&digest, der.OCTET_STRING) || !message.Empty() ||
		!algorithm.ReadASN1(&oid, der.OBJECT_IDENTIFIER) {
		return nil, refuse(badDataFormat, nil, "the query's messageImprint is malformed")
	}
	hash, err := hashOf(string(oid))
	if err != nil {
		return nil, err
	}
	if !algorithm.Empty() && string(algorithm) != "\x05\x00" {
		return nil, refuse(badDataFormat, nil, "the parameters of hash algorithm %v are neither absent nor NULL", hash)
	}
	if err := checkLength(hash, digest); err != nil {
		return nil, err
	}
	if !req.ReadOptionalASN1(&policy, &hasPolicy, der.OBJECT_IDENTIFIER) ||
		!req.ReadOptionalASN1(&nonce, &hasNonce, der.INTEGER) ||
		!readOptionalBool(&req, &certReq, &hasCertReq) ||
		!req.ReadOptionalASN1(&extens, &hasExtensions, der.Tag(0).Constructed().ContextSpecific()) ||
		!req.Empty() || hasNonce && !minimal(nonce) {
		return nil, refuse(badDataFormat, nil, "the query's optional fields are malformed or out of order")
	}
	if hasExtensions {
		return nil, refuse(unacceptedExtension, nil, "extensions are not accepted")
	}
	q := &Query{Hash: hash, Digest: digest, Certificates: certReq}
	if hasNonce {
		if len(nonce) > maxNonce {
			return nil, refuse(badRequest, nil, "the nonce is over %d bytes", maxNonce)
		}
		q.Nonce = nonce
	}
	if hasPolicy {
		if q.Policy, err = policyOf(policy); err != nil {
			return nil, err
		}
	}
	return q, nil
}

// readOptionalBool reads a BOOLEAN that may be missing. An encoded FALSE is against DER, yet
// encoders that ignore DEFAULT write it, and it can mean only one thing.
func readOptionalBool(in *cryptobyte.String, out, has *bool) bool {
	if *has = in.PeekASN1Tag(der.BOOLEAN); *has {
		return in.ReadASN1Boolean(out)
	}
	return true
}

// minimal tells whether content is that of a DER INTEGER: not empty, without a leading byte
// that only repeats the sign (X.690 section 8.3.2).
func minimal(content []byte) bool {
	switch {
	case len(content) == 0:
		return false
	case len(content) == 1:
		return true
	case content[0] == 0x00:
		return content[1]&0x80 != 0
	case content[0] == 0xff:
		return content[1]&0x80 == 0
	}
	return true
}

func hashOf(oid string) (crypto.Hash, error) {
	for _, i := range imprints {
		if i.oid == oid {
			return i.hash, nil
		}
	}
	if oid == oidSHA1 {
		return 0, refuse(badAlg, nil, "SHA-1 is too weak: use SHA-256, SHA-384 or SHA-512 (signtool: /td SHA256)")
	}
	return 0, refuse(badAlg, nil, "the hash algorithm is not one of SHA-256, SHA-384, SHA-512")
}

func checkLength(hash crypto.Hash, digest []byte) error {
	if len(digest) != hash.Size() {
		return refuse(badDataFormat, nil, "the digest has %d bytes, %v has %d", len(digest), hash, hash.Size())
	}
	return nil
}

// policyOf decodes the content of an OID.
func policyOf(content []byte) (asn1.ObjectIdentifier, error) {
	if len(content) > maxPolicy {
		return nil, refuse(unacceptedPolicy, nil, "the policy OID is over %d bytes", maxPolicy)
	}
	var oid asn1.ObjectIdentifier
	rest, err := asn1.Unmarshal(append([]byte{byte(der.OBJECT_IDENTIFIER), byte(len(content))}, content...), &oid)
	if err != nil || len(rest) > 0 {
		return nil, refuse(badDataFormat, err, "the policy OID is malformed")
	}
	return oid, nil
}

// jsonQuery is the body that sigstore-js sends (with the first two fields only). Names and
// types are those of sigstore's timestamp-authority 2.1.
type jsonQuery struct {
	ArtifactHash  string   `json:"artifactHash"`
	HashAlgorithm string   `json:"hashAlgorithm"`
	Certificates  bool     `json:"certificates"`
	Nonce         *big.Int `json:"nonce"` // a JSON number of any size; big.Int refuses fractions, exponents and strings
	TSAPolicyOID  string   `json:"tsaPolicyOID"`
}

// ParseJSONQuery reads the JSON form of a query:
//
//	{"artifactHash": "<standard base64 of the raw digest>", "hashAlgorithm": "sha256", "certificates": true,
//	 "nonce": 1123343434, "tsaPolicyOID": "1.2.3.4"}
//
// The last three are optional. Errors are refusals as those of ParseQuery.
func ParseJSONQuery(raw []byte) (*Query, error) {
	if len(raw) > maxJSONQuery {
		return nil, refuse(badDataFormat, nil, "the JSON query is over %d bytes", maxJSONQuery)
	}
	var in jsonQuery
	decoder := json.NewDecoder(bytes.NewReader(raw))
	if err := decoder.Decode(&in); err != nil {
		return nil, refuse(badDataFormat, err, "the JSON query is malformed: %v", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, refuse(badDataFormat, nil, "the JSON query has trailing data")
	}
	q := &Query{Certificates: in.Certificates}
	switch strings.ToLower(in.HashAlgorithm) {
	case "sha256":
		q.Hash = crypto.SHA256
	case "sha384":
		q.Hash = crypto.SHA384
	case "sha512":
		q.Hash = crypto.SHA512
	case "sha1":
		_, err := hashOf(oidSHA1)
		return nil, err
	default:
		_, err := hashOf("")
		return nil, err
	}
	var err error
	if q.Digest, err = base64.StdEncoding.DecodeString(in.ArtifactHash); err != nil {
		return nil, refuse(badDataFormat, err, "artifactHash is not standard base64")
	}
	if err := checkLength(q.Hash, q.Digest); err != nil {
		return nil, err
	}
	if in.Nonce != nil {
		element, err := asn1.Marshal(in.Nonce)
		if err != nil {
			return nil, refuse(badRequest, err, "the nonce is not an integer")
		}
		content := cryptobyte.String(element)
		if !content.ReadASN1((*cryptobyte.String)(&q.Nonce), der.INTEGER) || len(q.Nonce) > maxNonce {
			return nil, refuse(badRequest, nil, "the nonce is over %d bytes", maxNonce)
		}
	}
	if in.TSAPolicyOID != "" {
		if q.Policy, err = ParsePolicy(in.TSAPolicyOID); err != nil {
			return nil, refuse(badDataFormat, err, "tsaPolicyOID is not a dotted OID")
		}
	}
	return q, nil
}
