package entry

import (
	"bytes"
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
	return signed, checkCMSKeys(signed)
}

// checkCMSKeys refuses keys that make a verification slow, in the signed data and in a time stamp on it.
func checkCMSKeys(signed *pkcs7.ContentInfoSignedData) error {
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

// checkTimeStamps applies checkCMSKeys to the time-stamp tokens that a signer attached.
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
		if err := checkCMSKeys(&token); err != nil {
			return fmt.Errorf("time stamp: %w", err)
		}
	}
	return nil
}
