package tsa

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"time"
)

// Content bytes of the OIDs in a reply.
const (
	oidSignedData           = "\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02"         // 1.2.840.113549.1.7.2
	oidTSTInfo              = "\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x01\x04" // 1.2.840.113549.1.9.16.1.4
	oidContentType          = "\x2a\x86\x48\x86\xf7\x0d\x01\x09\x03"         // 1.2.840.113549.1.9.3
	oidMessageDigest        = "\x2a\x86\x48\x86\xf7\x0d\x01\x09\x04"         // 1.2.840.113549.1.9.4
	oidSigningTime          = "\x2a\x86\x48\x86\xf7\x0d\x01\x09\x05"         // 1.2.840.113549.1.9.5
	oidSigningCertificateV2 = "\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x02\x2f" // 1.2.840.113549.1.9.16.2.47
	oidECDSAWithSHA2        = "\x2a\x86\x48\xce\x3d\x04\x03"                 // 1.2.840.10045.4.3, then 2, 3, 4 for SHA-256, -384, -512
	oidSHA256WithRSA        = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b"         // 1.2.840.113549.1.1.11
	oidEd25519              = "\x2b\x65\x70"                                 // 1.3.101.112
)

// Identifier octets of the elements in a reply.
const (
	tagInteger         = 0x02
	tagBitString       = 0x03
	tagOctetString     = 0x04
	tagOID             = 0x06
	tagUTF8String      = 0x0c
	tagUTCTime         = 0x17
	tagGeneralizedTime = 0x18
	tagSequence        = 0x30
	tagSet             = 0x31
	tagContext0        = 0xa0 // [0], constructed
	tagDirectoryName   = 0xa4 // [4] of GeneralName
)

// element returns the DER element with the given identifier octet and its contents joined.
func element(tag byte, contents ...[]byte) []byte {
	size := 0
	for _, c := range contents {
		size += len(c)
	}
	out := make([]byte, 0, size+6)
	out = append(out, tag)
	switch {
	case size < 0x80:
		out = append(out, byte(size))
	case size < 1<<8:
		out = append(out, 0x81, byte(size))
	case size < 1<<16:
		out = append(out, 0x82, byte(size>>8), byte(size))
	default:
		out = append(out, 0x83, byte(size>>16), byte(size>>8), byte(size))
	}
	for _, c := range contents {
		out = append(out, c...)
	}
	return out
}

func oidElement(content string) []byte { return element(tagOID, []byte(content)) }

// Accuracy is how far genTime may be from UTC, either way. It encodes as the Accuracy
// SEQUENCE of RFC 3161, section 2.4.2: millis and micros are 1..999 and left out when 0,
// so 1.5s is {seconds 1, millis 500}. Precision below 1µs is dropped.
type Accuracy time.Duration

// Components returns the three fields of the SEQUENCE.
func (a Accuracy) Components() (seconds, millis, micros int) {
	d := time.Duration(a)
	return int(d / time.Second), int(d % time.Second / time.Millisecond), int(d % time.Millisecond / time.Microsecond)
}

func (a Accuracy) encode() ([]byte, error) {
	var fields struct {
		Seconds int `asn1:"optional"`
		Millis  int `asn1:"tag:0,optional"`
		Micros  int `asn1:"tag:1,optional"`
	}
	fields.Seconds, fields.Millis, fields.Micros = a.Components()
	return asn1.Marshal(fields)
}

// ParsePolicy reads a dotted OID of at most 128 arcs.
func ParsePolicy(dotted string) (asn1.ObjectIdentifier, error) {
	oid, err := x509.ParseOID(dotted)
	if err != nil {
		return nil, fmt.Errorf("policy OID %q: %w", dotted, err)
	}
	content, err := oid.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("policy OID %q: %w", dotted, err)
	}
	return policyOf(content)
}

// signFunc signs message: a digest for opts, or for Ed25519 (opts 0) the message itself.
type signFunc func(message []byte, opts crypto.SignerOpts) ([]byte, error)

// assembler writes time-stamp tokens for one signing key. All that is the same in each token
// is encoded once: github.com/digitorus/timestamp builds the same bytes (TestTokensAreThose…),
// but verifies the chain, encodes every part by reflection and reads the clock a second time
// for each token, which costs several times the signature.
type assembler struct {
	hash crypto.Hash // what the key signs; for Ed25519 only messageDigest uses it
	pure bool        // Ed25519 signs the attributes themselves

	accuracy     []byte // Accuracy
	tsa          []byte // [0] { [4] { subject } }
	digestAlg    []byte // AlgorithmIdentifier of hash
	signatureAlg []byte // AlgorithmIdentifier of the signature
	sid          []byte // IssuerAndSerialNumber
	certificates []byte // [0] { leaf, issuer, … } without the root
	contentType  []byte // attribute
	signingCert  []byte // attribute
}

// newAssembler pairs the digest with the key (P-256 with SHA-256 and so on, RSA with SHA-256):
// openssl and sigstore-js take no other combination for granted. chain has the leaf first, the root last.
func newAssembler(chain []*x509.Certificate, accuracy Accuracy) (*assembler, error) {
	a := &assembler{}
	var oid string
	switch pub := chain[0].PublicKey.(type) {
	case *ecdsa.PublicKey:
		switch pub.Curve.Params().BitSize {
		case 256:
			a.hash, oid = crypto.SHA256, oidECDSAWithSHA2+"\x02"
		case 384:
			a.hash, oid = crypto.SHA384, oidECDSAWithSHA2+"\x03"
		case 521:
			a.hash, oid = crypto.SHA512, oidECDSAWithSHA2+"\x04"
		default:
			return nil, fmt.Errorf("keys on curve %s cannot sign timestamps, use P-256", pub.Curve.Params().Name)
		}
		a.signatureAlg = element(tagSequence, oidElement(oid))
	case *rsa.PublicKey:
		a.hash = crypto.SHA256
		a.signatureAlg = element(tagSequence, oidElement(oidSHA256WithRSA), asn1.NullBytes)
	case ed25519.PublicKey:
		a.hash, a.pure = crypto.SHA512, true // RFC 8419 section 3.1
		a.signatureAlg = element(tagSequence, oidElement(oidEd25519))
	default:
		return nil, fmt.Errorf("a %T cannot sign timestamps", pub)
	}
	leaf := chain[0]
	serial, err := asn1.Marshal(leaf.SerialNumber)
	if err != nil {
		return nil, fmt.Errorf("encoding the leaf's serial number: %w", err)
	}
	if a.accuracy, err = accuracy.encode(); err != nil {
		return nil, fmt.Errorf("encoding the accuracy: %w", err)
	}
	a.tsa = element(tagContext0, element(tagDirectoryName, leaf.RawSubject))
	for _, i := range imprints {
		if i.hash == a.hash {
			a.digestAlg = element(tagSequence, oidElement(i.oid))
		}
	}
	a.sid = element(tagSequence, leaf.RawIssuer, serial)
	// Who verifies has the root, or believes nothing. Without it a leaf below the root stands alone and so first,
	// where cosign 2.4 (timestamp-authority 1.2) takes the signer's certificate from.
	var raw [][]byte
	for _, c := range chain[:len(chain)-1] {
		raw = append(raw, c.Raw)
	}
	// CertificateSet is a SET OF, which DER sorts by encoding (X.690, section 11.6); sigstore-python refuses
	// a token that does not, other clients find the signer's certificate wherever it stands.
	slices.SortFunc(raw, bytes.Compare)
	a.certificates = element(tagContext0, raw...)
	a.contentType = attribute(oidContentType, oidElement(oidTSTInfo))
	// ESSCertIDv2 { certHash, issuerSerial } of RFC 5035 section 4: SHA-256 is the default hash and left out.
	certHash := sha256.Sum256(leaf.Raw)
	essCertID := element(tagSequence,
		element(tagOctetString, certHash[:]),
		element(tagSequence, element(tagSequence, element(tagDirectoryName, leaf.RawIssuer)), serial))
	a.signingCert = attribute(oidSigningCertificateV2, element(tagSequence, element(tagSequence, essCertID)))
	return a, nil
}

func attribute(oid string, value []byte) []byte {
	return element(tagSequence, oidElement(oid), element(tagSet, value))
}

// tstInfo encodes the TSTInfo of RFC 3161 section 2.4.2. Optional fields stand where
// sigstore-js counts on them: genTime is element 4.
func (a *assembler) tstInfo(q *Query, policy, serial []byte, genTime time.Time) []byte {
	var alg []byte
	for _, i := range imprints {
		if i.hash == q.Hash {
			alg = element(tagSequence, oidElement(i.oid), asn1.NullBytes)
		}
	}
	var nonce []byte
	if q.Nonce != nil {
		nonce = element(tagInteger, q.Nonce)
	}
	return element(tagSequence,
		[]byte{tagInteger, 1, 1}, // version
		policy,
		element(tagSequence, alg, element(tagOctetString, q.Digest)),
		element(tagInteger, serial),
		element(tagGeneralizedTime, genTime.UTC().AppendFormat(nil, "20060102150405Z")),
		a.accuracy,
		nonce, // ordering is FALSE, its default: several replicas may share a second
		a.tsa)
}

// reply returns the whole TimeStampResp. genTime is also the signingTime: one clock read for
// both, so that verifiers who check the certificate at either agree. policy is a DER element,
// serial the content of a positive DER INTEGER.
func (a *assembler) reply(sign signFunc, q *Query, policy, serial []byte, genTime time.Time) ([]byte, error) {
	info := a.tstInfo(q, policy, serial, genTime)
	digest := a.hash.New()
	digest.Write(info)
	attributes := [][]byte{
		a.contentType,
		attribute(oidMessageDigest, element(tagOctetString, digest.Sum(nil))),
		attribute(oidSigningTime, timeElement(genTime)),
		a.signingCert,
	}
	slices.SortFunc(attributes, bytes.Compare) // DER, X.690 section 11.6

	// Signed is the SET OF, although the token carries it as [0]: RFC 5652 section 5.4.
	signature, err := a.sign(sign, element(tagSet, attributes...))
	if err != nil {
		return nil, err
	}
	var certificates []byte
	if q.Certificates {
		certificates = a.certificates
	}
	signerInfo := element(tagSequence,
		[]byte{tagInteger, 1, 1}, // version 1: issuerAndSerialNumber
		a.sid,
		a.digestAlg,
		element(tagContext0, attributes...),
		a.signatureAlg,
		element(tagOctetString, signature))
	signedData := element(tagSequence,
		[]byte{tagInteger, 1, 3}, // version 3: the content is not id-data
		element(tagSet, a.digestAlg),
		element(tagSequence, oidElement(oidTSTInfo), element(tagContext0, element(tagOctetString, info))),
		certificates,
		element(tagSet, signerInfo))
	return element(tagSequence,
		[]byte{tagSequence, 3, tagInteger, 1, 0}, // PKIStatusInfo { granted }
		element(tagSequence, oidElement(oidSignedData), element(tagContext0, signedData))), nil
}

// sign has message signed the way the key's algorithm wants it.
func (a *assembler) sign(sign signFunc, message []byte) ([]byte, error) {
	if a.pure {
		return sign(message, crypto.Hash(0))
	}
	h := a.hash.New()
	h.Write(message)
	return sign(h.Sum(nil), a.hash)
}

// timeElement encodes CMS's Time: UTCTime through 2049 (RFC 5652 section 11.3).
func timeElement(t time.Time) []byte {
	if t = t.UTC(); t.Year() < 2050 {
		return element(tagUTCTime, t.AppendFormat(nil, "060102150405Z"))
	}
	return element(tagGeneralizedTime, t.AppendFormat(nil, "20060102150405Z"))
}

// rejection returns a TimeStampResp without a token: status rejection(2), text as the only
// UTF8String of statusString, and info's bit in failInfo. The library's CreateErrorResponse
// writes PrintableStrings and, for unacceptedPolicy, a bit string that is not DER.
func rejection(info failure, text string) []byte {
	bits := make([]byte, info/8+1) // no trailing zero octet or bit: X.690 section 11.2.2
	bits[info/8] = 0x80 >> (info % 8)
	unused := []byte{byte(7 - info%8)}
	return element(tagSequence, element(tagSequence,
		[]byte{tagInteger, 1, 2},
		element(tagSequence, element(tagUTF8String, []byte(text))),
		element(tagBitString, unused, bits)))
}
