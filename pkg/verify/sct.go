package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const maxSCTs = 16

// sct is a SignedCertificateTimestamp (RFC 6962, section 3.2).
type sct struct {
	logID           []byte // 32 bytes
	timestampMillis uint64
	extensions      []byte
	hashAlg, sigAlg uint8 // TLS 1.2 code points
	signature       []byte
}

// verifySCTs counts the logs whose SCT in the certificate verifies. SCTs of unknown logs are skipped.
func (a *attempt) verifySCTs() error {
	switch {
	case a.require.SCTs == 0:
		return nil
	case a.bundle.leaf == nil:
		return fail(ReasonSCTMissing, nil, "a key carries no SCT")
	}
	list, err := sctsOf(a.bundle.leaf)
	if err != nil {
		return fail(ReasonSCTMalformed, err, "SCT list of the certificate")
	}
	if len(list) == 0 {
		return fail(ReasonSCTMissing, nil, "the certificate has no SCT")
	}
	verified := make(map[string]bool)
	var problem error
	for _, s := range list {
		log, ok := a.root.ctlogs[string(s.logID)]
		if !ok {
			continue
		}
		if at := time.UnixMilli(int64(s.timestampMillis)); !log.window.contains(at) { //nolint:gosec // out of range is outside every window
			problem = fail(ReasonSCTExpired, nil, "%s is outside the validity of the log key", at.UTC().Format(time.RFC3339))
			continue
		}
		if err := s.verify(a.bundle.leaf, a.issuer, log); err != nil {
			problem = fail(ReasonSCTInvalid, err, "by log %x", s.logID)
			continue
		}
		verified[log.id] = true
	}
	switch {
	case len(verified) >= a.require.SCTs:
		return nil
	case problem != nil:
		return fmt.Errorf("SCT: %w", problem)
	default:
		return fail(ReasonSCTMissing, nil, "%d of %d required SCTs are by logs of the trusted root", len(verified), a.require.SCTs)
	}
}

var oidSCTList = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}

// sctsOf parses the SCT list extension: an OCTET STRING that holds a TLS SignedCertificateTimestampList.
func sctsOf(cert *x509.Certificate) ([]sct, error) {
	var list []sct
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(oidSCTList) {
			continue
		}
		der := cryptobyte.String(ext.Value)
		var tls, all cryptobyte.String
		if !der.ReadASN1(&tls, cbasn1.OCTET_STRING) || !der.Empty() || !tls.ReadUint16LengthPrefixed(&all) || !tls.Empty() {
			return nil, errors.New("malformed list")
		}
		for !all.Empty() {
			var raw, id, ext, sig cryptobyte.String
			var version uint8
			var s sct
			if !all.ReadUint16LengthPrefixed(&raw) || !raw.ReadUint8(&version) || version != 0 ||
				!raw.ReadBytes((*[]byte)(&id), sha256.Size) || !raw.ReadUint64(&s.timestampMillis) ||
				!raw.ReadUint16LengthPrefixed(&ext) || !raw.ReadUint8(&s.hashAlg) || !raw.ReadUint8(&s.sigAlg) ||
				!raw.ReadUint16LengthPrefixed(&sig) || !raw.Empty() {
				return nil, errors.New("malformed SCT")
			}
			if len(list) == maxSCTs {
				return nil, fmt.Errorf("more than %d SCTs", maxSCTs)
			}
			s.logID, s.extensions, s.signature = id, ext, sig
			list = append(list, s)
		}
	}
	return list, nil
}

// verify checks the SCT over the precertificate that leaf was made from.
func (s *sct) verify(leaf, issuer *x509.Certificate, log *logKey) error {
	if issuer == nil {
		return errors.New("the issuer is not known")
	}
	tbs, err := withoutSCTs(leaf.RawTBSCertificate)
	if err != nil {
		return err
	}
	keyHash := sha256.Sum256(issuer.RawSubjectPublicKeyInfo)
	signed := make([]byte, 0, len(tbs)+len(s.extensions)+64)
	signed = append(signed, 0, 0) // version v1, signature type certificate_timestamp
	signed = binary.BigEndian.AppendUint64(signed, s.timestampMillis)
	signed = append(signed, 0, 1) // entry type precert_entry
	signed = append(signed, keyHash[:]...)
	signed = append(signed, byte(len(tbs)>>16), byte(len(tbs)>>8), byte(len(tbs)))
	signed = append(signed, tbs...)
	signed = binary.BigEndian.AppendUint16(signed, uint16(len(s.extensions))) //nolint:gosec // read from a 16-bit length
	signed = append(signed, s.extensions...)
	digest := sha256.Sum256(signed)

	const sha256Alg, rsaAlg, ecdsaAlg = 4, 1, 3
	if s.hashAlg != sha256Alg {
		return fmt.Errorf("hash algorithm %d is not SHA-256", s.hashAlg)
	}
	ok := false
	switch k := log.key.(type) {
	case *ecdsa.PublicKey:
		ok = s.sigAlg == ecdsaAlg && ecdsa.VerifyASN1(k, digest[:], s.signature)
	case *rsa.PublicKey:
		ok = s.sigAlg == rsaAlg && rsa.VerifyPKCS1v15(k, crypto.SHA256, digest[:], s.signature) == nil
	}
	if !ok {
		return errors.New("signature does not verify")
	}
	return nil
}

// withoutSCTs returns a TBSCertificate (DER) with its one SCT list extension taken out and the lengths
// around it adjusted; every other byte stays.
func withoutSCTs(tbs []byte) ([]byte, error) {
	malformed := errors.New("malformed TBSCertificate")
	in := cryptobyte.String(tbs)
	var fields cryptobyte.String
	if !in.ReadASN1(&fields, cbasn1.SEQUENCE) || !in.Empty() {
		return nil, malformed
	}
	var before []byte
	var extensions cryptobyte.String
	explicit := cbasn1.Tag(3).ContextSpecific().Constructed()
	for !fields.Empty() {
		var element cryptobyte.String
		var tag cbasn1.Tag
		if !fields.ReadAnyASN1Element(&element, &tag) {
			return nil, malformed
		}
		if tag != explicit {
			before = append(before, element...)
			continue
		}
		var inner cryptobyte.String
		if !fields.Empty() || !element.ReadASN1(&inner, explicit) || !inner.ReadASN1(&extensions, cbasn1.SEQUENCE) || !inner.Empty() {
			return nil, malformed
		}
	}
	oid, err := asn1.Marshal(oidSCTList)
	if err != nil {
		return nil, err
	}
	kept, removed := make([]byte, 0, len(extensions)), 0
	for !extensions.Empty() {
		var element cryptobyte.String
		if !extensions.ReadASN1Element(&element, cbasn1.SEQUENCE) {
			return nil, malformed
		}
		whole := element
		var inner cryptobyte.String
		if !element.ReadASN1(&inner, cbasn1.SEQUENCE) {
			return nil, malformed
		}
		if bytes.HasPrefix(inner, oid) {
			removed++
			continue
		}
		kept = append(kept, whole...)
	}
	if removed != 1 {
		return nil, fmt.Errorf("%d SCT list extensions, exactly one is required", removed)
	}
	out := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)))
	out.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(before)
		b.AddASN1(explicit, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(kept) })
		})
	})
	return out.Bytes()
}
