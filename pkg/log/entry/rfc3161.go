package entry

import (
	"encoding/asn1"

	"github.com/sassoftware/relic/lib/pkcs7"
	"github.com/sassoftware/relic/lib/pkcs9"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// maxTimeStamp is the size of a TimeStampResp, upstream's limit.
const maxTimeStamp = 10 << 10

// rfc3161Spec is Rekor v1's rfc3161 0.0.1: a time-stamp response (RFC 3161, section 2.4.2). What is sent is what is stored.
type rfc3161Spec struct {
	TSR struct {
		Content []byte `json:"content"` // DER
	} `json:"tsr"`
}

// proposeRFC3161 reads {"tsr":{"content":<base64 TimeStampResp>}}. The response must be granted and
// its token signed by a certificate that it carries; whose, nobody asks.
func proposeRFC3161(v ijson.Value) (Entry, error) {
	content, err := decoded(v.Get("tsr").Get("content"), "tsr.content")
	if err != nil {
		return Entry{}, err
	}
	if len(content) > maxTimeStamp {
		return Entry{}, fault.New(fault.TooLarge, "timestamp_too_large", nil, "tsr exceeds maximum allowed size (10kB)")
	}
	if err := checkTimeStampResponse(content); err != nil {
		return Entry{}, err
	}
	var s rfc3161Spec
	s.TSR.Content = content
	return newEntry("rfc3161", "0.0.1", s, []string{sha256Digest(content).key()}, nil)
}

func checkTimeStampResponse(der []byte) error {
	var resp pkcs9.TimeStampResp
	var raw struct{ Status, Token asn1.RawValue }
	if rest, err := asn1.Unmarshal(der, &raw); err != nil || len(rest) > 0 {
		return invalid("bad_timestamp", err, "tsr is not a granted TimeStampResp: malformed DER, data after it, or no token")
	}
	if _, err := asn1.Unmarshal(der, &resp); err != nil {
		return invalid("bad_timestamp", err, "tsr is not a TimeStampResp: %v", err)
	}
	if s := resp.Status.Status; s != pkcs9.StatusGranted && s != pkcs9.StatusGrantedWithMods {
		return invalid("bad_timestamp", nil, "tsr status not granted: %d", s)
	}
	if outer, err := asn1.Marshal(raw); err != nil || len(outer) != len(der) {
		return invalid("bad_timestamp", err, "tsr has members after its token")
	}
	if !resp.TimeStampToken.ContentType.Equal(pkcs7.OidSignedData) {
		return invalid("bad_timestamp", nil, "tsr wrong content type: %s", resp.TimeStampToken.ContentType)
	}
	token, err := parseCMS(raw.Token.FullBytes)
	if err != nil {
		return invalid("bad_timestamp", err, "tsr token: %v", err)
	}
	if !token.Content.ContentInfo.ContentType.Equal(pkcs9.OidTSTInfo) {
		return invalid("bad_timestamp", nil, "tsr token is not of a TSTInfo")
	}
	if _, err := token.Content.Verify(nil, false); err != nil {
		return invalid("bad_signature", err, "tsr verification error: %v", err)
	}
	return nil
}

func (s rfc3161Spec) keys() ([]string, error) {
	return []string{sha256Digest(s.TSR.Content).key()}, nil
}
