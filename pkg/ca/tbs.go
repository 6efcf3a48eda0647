package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/attestry/attestry/pkg/ca/identity"
)

// Object identifiers of the profile, DER.
var (
	derKeyUsage       = oid(2, 5, 29, 15)
	derExtKeyUsage    = oid(2, 5, 29, 37)
	derSubjectKeyID   = oid(2, 5, 29, 14)
	derAuthorityKeyID = oid(2, 5, 29, 35)
	derSAN            = oid(2, 5, 29, 17)
	derCodeSigning    = oid(1, 3, 6, 1, 5, 5, 7, 3, 3)
	derPoison         = extension(oid(1, 3, 6, 1, 4, 1, 11129, 2, 4, 3), true, []byte{tagNull, 0})
	derSCTs           = oid(1, 3, 6, 1, 4, 1, 11129, 2, 4, 2)
	derOtherName      = oid(1, 3, 6, 1, 4, 1, 57264, 1, 7)
)

// issuing is the part of every certificate that depends on the issuing certificate alone.
type issuing struct {
	signer    crypto.Signer
	sig       signature
	issuer    []byte // RawSubject of the issuing certificate
	keyUsages []byte // KU and EKU extensions
	akid      []byte // AKI extension
	keyHash   [32]byte
}

// tbs holds the TBSCertificate in parts. Its precertificate and its final form differ in the
// last extension only because they are joined from the same bytes.
type tbs struct {
	head       []byte // version … subjectPublicKeyInfo
	extensions []byte // all but the poison and the SCT list
	serial     []byte
}

// with returns the TBSCertificate (RFC 5280, section 4.1) with last, which may be empty, as the
// last extension. Without last it is the TBS that RFC 6962, section 3.2, has the log sign.
func (t tbs) with(last []byte) []byte {
	return der(tagSequence, t.head, der(tagContext3Nested, der(tagSequence, t.extensions, last)))
}

// build lays out the certificate of Fulcio's profile: extension order KU, EKU, SKI, AKI, SAN,
// 57264.1.*, as on the public instance.
func (i *issuing) build(random io.Reader, p *identity.Principal, key keyInfo, notBefore, notAfter time.Time) (tbs, error) {
	serial, err := newSerial(random)
	if err != nil {
		return tbs{}, err
	}
	name, err := generalName(p.SAN)
	if err != nil {
		return tbs{}, err
	}
	head := bytes.Join([][]byte{
		der(tagContext0Nested, []byte{tagInteger, 1, 2}), // v3
		integer(serial),
		i.sig.identifier,
		i.issuer,
		der(tagSequence, timestamp(notBefore), timestamp(notAfter)),
		{tagSequence, 0}, // empty subject
		key.spki,
	}, nil)
	extensions := bytes.Join([][]byte{
		i.keyUsages,
		extension(derSubjectKeyID, false, der(tagOctetString, key.keyID)),
		i.akid,
		extension(derSAN, true, der(tagSequence, name)),
	}, nil)
	for _, e := range p.Extensions {
		value := []byte(e.Value)
		if e.Arc >= 8 { // .1 to .6 are bare text, as the first clients read them
			value = der(tagUTF8String, value)
		}
		extensions = append(extensions, extension(oid(1, 3, 6, 1, 4, 1, 57264, 1, e.Arc), false, value)...)
	}
	return tbs{head: head, extensions: extensions, serial: serial}, nil
}

func generalName(san identity.SAN) ([]byte, error) {
	switch san.Kind {
	case identity.SANEmail:
		return der(tagContext0|1, []byte(san.Value)), nil
	case identity.SANURI:
		return der(tagContext0|6, []byte(san.Value)), nil
	case identity.SANUsername:
		return der(tagContext0Nested, derOtherName, der(tagContext0Nested, der(tagUTF8String, []byte(san.Value)))), nil
	}
	return nil, fmt.Errorf("a subject alternative name of kind %d", san.Kind)
}

// lint parses bare, a TBS without poison and SCT list, as clients will, under a dummy signature, and compares what they will read with
// what was meant. It runs before anything is signed: upstream finds such faults after the
// precertificate is out.
func (i *issuing) lint(bare []byte, p *identity.Principal) error {
	cert, err := x509.ParseCertificate(i.assemble(bare, make([]byte, 64)))
	if err != nil {
		return err
	}
	names := len(cert.EmailAddresses) + len(cert.URIs) + len(cert.DNSNames) + len(cert.IPAddresses)
	var got string
	switch {
	case p.SAN.Kind == identity.SANEmail && names == 1 && len(cert.EmailAddresses) == 1:
		got = cert.EmailAddresses[0]
	case p.SAN.Kind == identity.SANURI && names == 1 && len(cert.URIs) == 1:
		got = cert.URIs[0].String()
	case p.SAN.Kind == identity.SANUsername && names == 0:
		got = p.SAN.Value // Go does not read otherName
	}
	if got != p.SAN.Value {
		return errors.New("the subject alternative name reads differently than it was written")
	}
	for _, id := range cert.UnhandledCriticalExtensions {
		if !id.Equal(oidSAN) {
			return fmt.Errorf("critical extension %s", id)
		}
	}
	if want := 5 + len(p.Extensions); len(cert.Extensions) != want {
		return fmt.Errorf("%d extensions instead of %d", len(cert.Extensions), want)
	}
	return nil
}

func (i *issuing) sign(random io.Reader, tbs []byte) ([]byte, error) {
	sig, err := i.signer.Sign(random, digest(i.sig.hash, tbs), i.sig.hash)
	if err != nil {
		return nil, err
	}
	return i.assemble(tbs, sig), nil
}

func (i *issuing) assemble(tbs, sig []byte) []byte {
	return der(tagSequence, tbs, i.sig.identifier, der(tagBitString, []byte{0}, sig))
}

func newIssuing(cert *x509.Certificate, signer crypto.Signer) (*issuing, error) {
	sig, err := signatureFor(signer.Public())
	if err != nil {
		return nil, err
	}
	i := &issuing{
		signer: signer,
		sig:    sig,
		issuer: cert.RawSubject,
		keyUsages: append(extension(derKeyUsage, true, []byte{tagBitString, 2, 7, 0x80}), // digitalSignature
			extension(derExtKeyUsage, false, der(tagSequence, derCodeSigning))...),
		akid:    extension(derAuthorityKeyID, false, der(tagSequence, der(tagContext0, cert.SubjectKeyId))),
		keyHash: sumSPKI(cert),
	}
	return i, nil
}
