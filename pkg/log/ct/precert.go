package ct

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"

	ctasn1 "github.com/google/certificate-transparency-go/asn1"
	"github.com/google/certificate-transparency-go/x509"
	"github.com/google/certificate-transparency-go/x509/pkix"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// certificate is a submitted certificate taken apart as far as the log needs it.
type certificate struct {
	raw, tbs, issuerName []byte // DER
	algorithm            x509.SignatureAlgorithm
	signature            []byte
	notAfter             time.Time
	poisoned             bool  // it has the extension 1.3.6.1.4.1.11129.2.4.3
	poisonErr            error // what is wrong with that extension
	tbsWithoutPoison     []byte
}

// poisonOID is 1.3.6.1.4.1.11129.2.4.3 (RFC 6962, section 3.1), DER without tag and length.
var poisonOID = []byte{0x2b, 0x06, 0x01, 0x04, 0x01, 0xd6, 0x79, 0x02, 0x04, 0x03}

// dissect checks that der is one certificate which X.509 parsers take, and takes it apart:
//
//	Certificate    ::= SEQUENCE { tbs TBSCertificate, algorithm AlgorithmIdentifier, signature BIT STRING }
//	TBSCertificate ::= SEQUENCE { version [0], serialNumber, signature, issuer, validity, subject,
//	                              subjectPublicKeyInfo, [1], [2], extensions [3] }
//
// The poison is cut out of the bytes as they are. That is what clients do who rebuild the TBS
// from the final certificate, and a fifth of the cost of decoding and encoding it.
func dissect(der []byte) (certificate, error) {
	c := certificate{raw: der}
	var err error
	if c.notAfter, err = checkParses(der); err != nil {
		return c, err
	}
	malformed := errors.New("malformed certificate")
	in := cryptobyte.String(der)
	var outer, tbs, algorithm, body, extensions cryptobyte.String
	if !in.ReadASN1(&outer, cbasn1.SEQUENCE) || !in.Empty() ||
		!outer.ReadASN1Element(&tbs, cbasn1.SEQUENCE) ||
		!outer.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) ||
		!outer.ReadASN1BitStringAsBytes(&c.signature) || !outer.Empty() {
		return c, malformed
	}
	c.tbs = tbs
	var ai pkix.AlgorithmIdentifier
	if rest, err := ctasn1.Unmarshal(algorithm, &ai); err != nil || len(rest) > 0 {
		return c, malformed
	}
	c.algorithm = x509.SignatureAlgorithmFromAI(ai)

	inner := tbs
	if !inner.ReadASN1(&body, cbasn1.SEQUENCE) || !inner.Empty() {
		return c, malformed
	}
	fields := body
	if !fields.SkipOptionalASN1(cbasn1.Tag(0).Constructed().ContextSpecific()) ||
		!fields.SkipASN1(cbasn1.INTEGER) || !fields.SkipASN1(cbasn1.SEQUENCE) ||
		!fields.ReadASN1Element((*cryptobyte.String)(&c.issuerName), cbasn1.SEQUENCE) ||
		!fields.SkipASN1(cbasn1.SEQUENCE) || !fields.SkipASN1(cbasn1.SEQUENCE) || !fields.SkipASN1(cbasn1.SEQUENCE) ||
		!fields.SkipOptionalASN1(cbasn1.Tag(1).ContextSpecific()) ||
		!fields.SkipOptionalASN1(cbasn1.Tag(2).ContextSpecific()) {
		return c, malformed
	}
	before := body[:len(body)-len(fields)]
	var present bool
	if !fields.ReadOptionalASN1(&extensions, &present, cbasn1.Tag(3).Constructed().ContextSpecific()) || !fields.Empty() {
		return c, malformed
	}
	if !present {
		return c, nil
	}
	return c, c.cutPoison(before, extensions)
}

// cutPoison looks through the SEQUENCE OF Extension and sets what concerns the poison.
func (c *certificate) cutPoison(before, extensions cryptobyte.String) error {
	malformed := errors.New("malformed extensions")
	var list cryptobyte.String
	if !extensions.ReadASN1(&list, cbasn1.SEQUENCE) || !extensions.Empty() {
		return malformed
	}
	var kept []byte
	for !list.Empty() {
		var element, ext, oid, value cryptobyte.String
		var critical bool
		if !list.ReadASN1Element(&element, cbasn1.SEQUENCE) {
			return malformed
		}
		whole := element
		if !element.ReadASN1(&ext, cbasn1.SEQUENCE) || !ext.ReadASN1(&oid, cbasn1.OBJECT_IDENTIFIER) ||
			ext.PeekASN1Tag(cbasn1.BOOLEAN) && !ext.ReadASN1Boolean(&critical) ||
			!ext.ReadASN1(&value, cbasn1.OCTET_STRING) || !ext.Empty() {
			return malformed
		}
		if !bytes.Equal(oid, poisonOID) {
			kept = append(kept, whole...)
			continue
		}
		switch {
		case c.poisoned:
			c.poisonErr = errors.New("the extension is there twice")
		case !critical || !bytes.Equal(value, asn1.NullBytes):
			c.poisonErr = fmt.Errorf("critical %t, value %x", critical, []byte(value))
		}
		c.poisoned = true
	}
	if !c.poisoned || c.poisonErr != nil {
		return nil
	}
	// A list that has become empty stays: the reference leaves it too.
	b := cryptobyte.NewBuilder(make([]byte, 0, len(c.tbs)))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(before)
		b.AddASN1(cbasn1.Tag(3).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(kept) })
		})
	})
	var err error
	c.tbsWithoutPoison, err = b.Bytes()
	return err
}

// signedBy verifies that issuer's key signed c and that issuer has the name c gives.
func (c *certificate) signedBy(issuer *x509.Certificate) error {
	if !bytes.Equal(c.issuerName, issuer.RawSubject) {
		return errors.New("its issuer name is not the subject of the next certificate")
	}
	return issuer.CheckSignature(c.algorithm, c.tbs, c.signature)
}
