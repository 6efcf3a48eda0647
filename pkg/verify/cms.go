package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidTSTInfo       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 4}
	oidContentType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidSigningTime   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 5}
)

// signedData is a CMS SignedData (RFC 5652, section 5) with exactly one signer, over a TSTInfo. It has to be
// DER, as RFC 3161 demands of a response. Nothing in it is verified yet.
type signedData struct {
	content      []byte              // DER TSTInfo
	certificates []*x509.Certificate // embedded, in the order they came
	issuer       []byte              // DER Name of the signer's issuer
	serial       *big.Int
	hash         crypto.Hash
	attributes   []byte // signed attributes as DER SET OF; nil when there are none
	signature    []byte
}

// parseSignedData reads a ContentInfo:
//
//	SignedData ::= SEQUENCE { version, digestAlgorithms, encapContentInfo, certificates [0] OPTIONAL, crls [1] OPTIONAL, signerInfos }
//	SignerInfo ::= SEQUENCE { version, sid, digestAlgorithm, signedAttrs [0] OPTIONAL, signatureAlgorithm, signature, unsignedAttrs [1] OPTIONAL }
func parseSignedData(der []byte) (*signedData, error) {
	malformed := errors.New("malformed CMS SignedData")
	context0 := cbasn1.Tag(0).ContextSpecific().Constructed()
	context1 := cbasn1.Tag(1).ContextSpecific().Constructed()

	in := cryptobyte.String(der)
	var info, wrapped, sd, encap, econtent, content, signers, signer cryptobyte.String
	var kind, contentKind asn1.ObjectIdentifier
	if !in.ReadASN1(&info, cbasn1.SEQUENCE) || !in.Empty() || !info.ReadASN1ObjectIdentifier(&kind) || !kind.Equal(oidSignedData) ||
		!info.ReadASN1(&wrapped, context0) || !info.Empty() || !wrapped.ReadASN1(&sd, cbasn1.SEQUENCE) || !wrapped.Empty() ||
		!sd.SkipASN1(cbasn1.INTEGER) || !sd.SkipASN1(cbasn1.SET) || !sd.ReadASN1(&encap, cbasn1.SEQUENCE) ||
		!encap.ReadASN1ObjectIdentifier(&contentKind) || !encap.ReadASN1(&econtent, context0) || !encap.Empty() ||
		!econtent.ReadASN1(&content, cbasn1.OCTET_STRING) || !econtent.Empty() {
		return nil, malformed
	}
	if !contentKind.Equal(oidTSTInfo) {
		return nil, fmt.Errorf("CMS content is of type %s, not a TSTInfo", contentKind)
	}
	s := &signedData{content: content}
	var certs cryptobyte.String
	var present bool
	if !sd.ReadOptionalASN1(&certs, &present, context0) {
		return nil, malformed
	}
	for !certs.Empty() {
		if len(s.certificates) == maxChain {
			return nil, fail(ReasonTooLarge, nil, "timestamp token has more than %d certificates", maxChain)
		}
		var cert cryptobyte.String
		if !certs.ReadASN1Element(&cert, cbasn1.SEQUENCE) {
			return nil, malformed
		}
		parsed, err := parseCertificate(cert)
		if err != nil {
			return nil, err
		}
		s.certificates = append(s.certificates, parsed)
	}
	if !sd.SkipOptionalASN1(context1) || !sd.ReadASN1(&signers, cbasn1.SET) || !sd.Empty() || !signers.ReadASN1(&signer, cbasn1.SEQUENCE) {
		return nil, malformed
	}
	if !signers.Empty() {
		return nil, errors.New("more than one signer")
	}
	var sid, issuer, digestAlg, attributes, sigAlg, sig cryptobyte.String
	var digest asn1.ObjectIdentifier
	serial := new(big.Int)
	if !signer.SkipASN1(cbasn1.INTEGER) || !signer.ReadASN1(&sid, cbasn1.SEQUENCE) || !sid.ReadASN1Element(&issuer, cbasn1.SEQUENCE) ||
		!sid.ReadASN1Integer(serial) || !sid.Empty() || !signer.ReadASN1(&digestAlg, cbasn1.SEQUENCE) || !digestAlg.ReadASN1ObjectIdentifier(&digest) {
		return nil, malformed
	}
	if signer.PeekASN1Tag(context0) {
		if !signer.ReadASN1Element(&attributes, context0) {
			return nil, malformed
		}
		// What is signed is the SET OF itself, not its implicit tag (RFC 5652, section 5.4).
		s.attributes = bytes.Clone(attributes)
		s.attributes[0] = byte(cbasn1.SET)
	}
	if !signer.ReadASN1(&sigAlg, cbasn1.SEQUENCE) || !signer.ReadASN1(&sig, cbasn1.OCTET_STRING) || !signer.SkipOptionalASN1(context1) || !signer.Empty() {
		return nil, malformed
	}
	s.issuer, s.serial, s.signature = issuer, serial, sig
	if s.hash = hashOfOID(digest); s.hash == 0 {
		return nil, fail(ReasonTimestampHash, nil, "timestamp token is signed with digest algorithm %s", digest)
	}
	return s, nil
}

func hashOfOID(oid asn1.ObjectIdentifier) crypto.Hash {
	switch oid.String() {
	case "2.16.840.1.101.3.4.2.1":
		return crypto.SHA256
	case "2.16.840.1.101.3.4.2.2":
		return crypto.SHA384
	case "2.16.840.1.101.3.4.2.3":
		return crypto.SHA512
	}
	return 0
}

// signer returns the certificate that the signer info names among candidates, nil when there is none.
func (s *signedData) signer(candidates ...*x509.Certificate) *x509.Certificate {
	for _, c := range candidates {
		if c != nil && bytes.Equal(c.RawIssuer, s.issuer) && c.SerialNumber.Cmp(s.serial) == 0 {
			return c
		}
	}
	return nil
}

// verify checks the one signature, by cert, over the content.
func (s *signedData) verify(cert *x509.Certificate) error {
	signed := s.content
	if s.attributes != nil {
		if err := s.checkAttributes(cert); err != nil {
			return err
		}
		signed = s.attributes
	}
	ok := false
	switch k := cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(k, sum(s.hash, signed), s.signature)
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(k, s.hash, sum(s.hash, signed), s.signature) == nil
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, signed, s.signature)
	}
	if !ok {
		return errors.New("the token's signature does not verify")
	}
	return nil
}

// checkAttributes requires that the signed attributes speak about this content and that the signing time, if any, is within the
// certificate's validity.
func (s *signedData) checkAttributes(cert *x509.Certificate) error {
	malformed := errors.New("malformed signed attributes")
	in := cryptobyte.String(s.attributes)
	var set cryptobyte.String
	if !in.ReadASN1(&set, cbasn1.SET) || !in.Empty() {
		return malformed
	}
	var digests, kinds, times int
	for !set.Empty() {
		var attribute, values cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !set.ReadASN1(&attribute, cbasn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&oid) || !attribute.ReadASN1(&values, cbasn1.SET) || !attribute.Empty() {
			return malformed
		}
		switch {
		case oid.Equal(oidMessageDigest):
			var digest cryptobyte.String
			if !values.ReadASN1(&digest, cbasn1.OCTET_STRING) || !values.Empty() {
				return malformed
			}
			if digests++; !bytes.Equal(digest, sum(s.hash, s.content)) {
				return errors.New("the token's signature is over another content")
			}
		case oid.Equal(oidContentType):
			var kind asn1.ObjectIdentifier
			if !values.ReadASN1ObjectIdentifier(&kind) || !values.Empty() {
				return malformed
			}
			if kinds++; !kind.Equal(oidTSTInfo) {
				return errors.New("the token's signature is over another type of content")
			}
		case oid.Equal(oidSigningTime):
			t, ok := readTime(&values)
			if !ok || !values.Empty() {
				return malformed
			}
			if times++; t.Before(cert.NotBefore) || t.After(cert.NotAfter) {
				return errors.New("the token was signed outside its certificate's validity")
			}
		}
	}
	if digests != 1 || kinds != 1 || times > 1 {
		return errors.New("a signed attribute is missing or appears twice")
	}
	return nil
}

func readTime(values *cryptobyte.String) (t time.Time, ok bool) {
	if values.PeekASN1Tag(cbasn1.GeneralizedTime) {
		return t, values.ReadASN1GeneralizedTime(&t)
	}
	return t, values.ReadASN1UTCTime(&t)
}
