package entry

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"

	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// maxCOSEHeader is the size of either header of a message. Decoding a header takes tens of times its size.
const maxCOSEHeader = 64 << 10

// coseSpec is Rekor v1's cose 0.0.1: digests of a COSE_Sign1 message (RFC 9052, section 4.2) and its payload, and who signed it.
type coseSpec struct {
	Data struct {
		EnvelopeHash digest `json:"envelopeHash"` // of the message
		PayloadHash  digest `json:"payloadHash"`
	} `json:"data"`
	PublicKey []byte `json:"publicKey"` // canonical PEM
}

// proposeCOSE reads {"message":<base64 COSE_Sign1>,"publicKey":<base64 PEM>,"data":{"aad":<base64>}}.
// The key must have signed the message, with ES256 on P-256 or PS256; hashes that the client sends
// are not taken.
func proposeCOSE(v ijson.Value) (Entry, error) {
	raw, err := decoded(v.Get("message"), "message")
	if err != nil {
		return Entry{}, err
	}
	material, err := decoded(v.Get("publicKey"), "publicKey")
	if err != nil {
		return Entry{}, err
	}
	data := v.Get("data")
	if data.Kind != ijson.Object {
		return Entry{}, missing("data")
	}
	if data.Get("payloadHash").Given() || data.Get("envelopeHash").Given() {
		return Entry{}, invalid("bad_field", nil, "data.payloadHash and data.envelopeHash are computed and cannot be submitted")
	}
	var aad []byte
	if data.Get("aad").Given() {
		if aad, err = decoded(data.Get("aad"), "data.aad"); err != nil {
			return Entry{}, err
		}
	}
	key, err := parseSubmitted(material)
	if err != nil {
		return Entry{}, err
	}
	msg, err := openCOSE(raw, aad, key.public)
	if err != nil {
		return Entry{}, err
	}
	content := message{payload: msg.Payload}
	if contentType, ok := msg.Headers.Protected[cose.HeaderLabelContentType].(string); ok {
		content.payloadType = contentType
	}
	submitted, err := content.statementKeys()
	if err != nil {
		return Entry{}, err
	}
	var s coseSpec
	s.Data.EnvelopeHash, s.Data.PayloadHash, s.PublicKey = sha256Digest(raw), content.payloadDigest(), key.pem
	e, err := newEntry("cose", "0.0.1", s, append(key.keys(), s.Data.EnvelopeHash.key(), s.Data.PayloadHash.key()), submitted)
	return withAttestation(e, err, raw, s.Data.EnvelopeHash)
}

// openCOSE returns the verified message, whose payload is there.
func openCOSE(raw, aad []byte, public crypto.PublicKey) (*cose.Sign1Message, error) {
	var algorithm cose.Algorithm
	switch k := public.(type) {
	case *rsa.PublicKey:
		algorithm = cose.AlgorithmPS256
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return nil, invalid("algorithm_not_allowed", nil, "unsupported elliptic curve %s", k.Params().Name)
		}
		algorithm = cose.AlgorithmES256
	default:
		return nil, invalid("algorithm_not_allowed", nil, "unsupported algorithm type %s", describe(public))
	}
	verifier, err := cose.NewVerifier(algorithm, public)
	if err != nil {
		return nil, invalid("algorithm_not_allowed", err, "%v", err)
	}
	if err := checkCOSEShape(raw); err != nil {
		return nil, err
	}
	msg := cose.NewSign1Message()
	if err := msg.UnmarshalCBOR(raw); err != nil {
		return nil, invalid("bad_message", err, "message is not a COSE_Sign1: %v", err)
	}
	if len(msg.Payload) == 0 {
		return nil, invalid("missing_field", nil, "message has no payload")
	}
	if err := msg.Verify(aad, verifier); err != nil {
		return nil, invalid("bad_signature", err, "verifying message: %v", err)
	}
	return msg, nil
}

// checkCOSEShape looks at a message without decoding what is inside its four members.
func checkCOSEShape(raw []byte) error {
	mode, err := cbor.DecOptions{MaxNestedLevels: 16, IndefLength: cbor.IndefLengthForbidden}.DecMode()
	if err != nil {
		return err
	}
	var tagged cbor.RawTag
	var members []cbor.RawMessage
	if err := mode.Unmarshal(raw, &tagged); err != nil {
		return invalid("bad_message", err, "message is not a COSE_Sign1: %v", err)
	}
	if err := mode.Unmarshal(tagged.Content, &members); err != nil || len(members) != 4 {
		return invalid("bad_message", err, "message is not a COSE_Sign1: it is not an array of four")
	}
	if len(members[0]) > maxCOSEHeader || len(members[1]) > maxCOSEHeader {
		return invalid("bad_message", nil, "a header of the message is over the limit of %d bytes", maxCOSEHeader)
	}
	return nil
}

func (s coseSpec) keys() ([]string, error) {
	keys, err := storedKeys(s.PublicKey)
	return append(keys, s.Data.EnvelopeHash.key(), s.Data.PayloadHash.key()), err
}

func (s coseSpec) attestationKey() string { return s.Data.EnvelopeHash.key() }
