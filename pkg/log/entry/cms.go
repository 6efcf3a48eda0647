package entry

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/sassoftware/relic/lib/pkcs7"
	"github.com/sassoftware/relic/lib/pkcs9"
)

// maxCMS is the size of a CMS SignedData whose certificate and signature have room in a body.
const maxCMS = 40 << 10

// parseCMS reads a DER SignedData (RFC 5652, section 5) of one signer. Only the encoding that
// writing it again gives is taken: encoding/asn1 steps over members that it does not know, and each
// of them would make another leaf of the same signature.
func parseCMS(der []byte) (*pkcs7.ContentInfoSignedData, error) {
	if len(der) > maxCMS {
		return nil, fmt.Errorf("the signed data has %d bytes, over the limit of %d", len(der), maxCMS)
	}
	signed, err := pkcs7.Unmarshal(der)
	if err != nil {
		return nil, err
	}
	if !signed.Content.ContentInfo.ContentType.Equal(pkcs7.OidData) && !signed.Content.ContentInfo.ContentType.Equal(pkcs9.OidTSTInfo) {
		return nil, fmt.Errorf("the signed content is of type %s", signed.Content.ContentInfo.ContentType)
	}
	again, err := signed.Marshal()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, der) {
		return nil, errors.New("the signed data is not in DER")
	}
	if len(signed.Content.SignerInfos) != 1 {
		return nil, fmt.Errorf("the signed data has %d signers, not one", len(signed.Content.SignerInfos))
	}
	return signed, checkCMS(signed)
}

// checkCMS refuses keys that make a verification slow, and signed attributes that are not in DER's
// order: some readers verify them as they stand, others in order.
func checkCMS(signed *pkcs7.ContentInfoSignedData) error {
	for i := range signed.Content.SignerInfos {
		if err := checkAttributes(&signed.Content.SignerInfos[i]); err != nil {
			return err
		}
	}
	certs, err := signed.Content.Certificates.Parse()
	if err != nil {
		return err
	}
	if len(certs) > 2*MaxCertificates {
		return errors.New("too many certificates in the signed data")
	}
	for _, cert := range certs {
		if err := checkKey(cert.PublicKey); err != nil {
			return err
		}
	}
	return nil
}

func checkAttributes(info *pkcs7.SignerInfo) error {
	var last []byte
	for _, attribute := range info.AuthenticatedAttributes {
		der, err := asn1.Marshal(attribute)
		if err != nil {
			return err
		}
		if bytes.Compare(last, der) >= 0 {
			return errors.New("the signed attributes are not in DER")
		}
		last = der
	}
	return nil
}

// checkTimeStamps applies checkCMS to the time stamps that somebody attached to a signer's signature.
func checkTimeStamps(info *pkcs7.SignerInfo) error {
	for _, oid := range [][]int{pkcs9.OidAttributeTimeStampToken, pkcs9.OidSpcTimeStampToken} {
		var token pkcs7.ContentInfoSignedData
		err := info.UnauthenticatedAttributes.GetOne(oid, &token)
		if errors.As(err, new(pkcs7.ErrNoAttribute)) {
			continue
		}
		if err != nil {
			return fmt.Errorf("time stamp: %w", err)
		}
		if err := checkCMS(&token); err != nil {
			return fmt.Errorf("time stamp: %w", err)
		}
	}
	var counter pkcs7.SignerInfo
	err := info.UnauthenticatedAttributes.GetOne(pkcs9.OidAttributeCounterSign, &counter)
	if errors.As(err, new(pkcs7.ErrNoAttribute)) {
		return nil
	}
	if err == nil {
		err = checkAttributes(&counter)
	}
	if err != nil {
		return fmt.Errorf("time stamp: %w", err)
	}
	return nil
}
