package entry

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"slices"

	common "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	dssepb "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	rekorpb "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
)

//lint:file-ignore SA1019 clients in use send the deprecated dsseRequestV002

// dsseSpec2 is Rekor v2's dsse 0.0.2 in protobuf's JSON form. Servers since 2.3.0 refuse it and new
// clients send a hashedrekord over the PAE; cosign 2.6 and 3.0 and sigstore-js send this.
type dsseSpec2 struct {
	DSSEV002 struct {
		PayloadHash hashOutput   `json:"payloadHash"` // always SHA2_256
		Signatures  []signature2 `json:"signatures"`  // in the order of their bytes
	} `json:"dsseV002"`
}

// DSSE verifies a Rekor v2 request of a DSSE envelope: every signature must be verified by one of the verifiers.
func DSSE(req *rekorpb.DSSERequestV002) (Entry, error) {
	sent, offered := req.GetEnvelope(), req.GetVerifiers()
	switch {
	case sent == nil:
		return Entry{}, missing("envelope")
	case len(sent.GetSignatures()) == 0:
		return Entry{}, missing("envelope.signatures")
	case len(sent.GetSignatures()) > MaxSignatures:
		return Entry{}, invalid("too_many_signatures", nil, "envelope has %d signatures, over the limit of %d", len(sent.GetSignatures()), MaxSignatures)
	case len(offered) == 0:
		return Entry{}, missing("verifiers")
	case len(offered) > MaxSignatures:
		return Entry{}, invalid("too_many_verifiers", nil, "request has %d verifiers, over the limit of %d", len(offered), MaxSignatures)
	}
	verifiers, err := dsseVerifiers(offered)
	if err != nil {
		return Entry{}, err
	}
	msg := message{payloadType: sent.GetPayloadType(), payload: sent.GetPayload()}
	signatures := slices.Clone(sent.GetSignatures())
	slices.SortFunc(signatures, func(a, b *dssepb.Signature) int { return bytes.Compare(a.GetSig(), b.GetSig()) })
	signatures = slices.CompactFunc(signatures, func(a, b *dssepb.Signature) bool { return bytes.Equal(a.GetSig(), b.GetSig()) })
	var s dsseSpec2
	var keys []string
	for _, sig := range signatures {
		i := slices.IndexFunc(verifiers, func(v dsseVerifier) bool { return msg.verify(v.key.public, v.details.hash, sig.GetSig()) == nil })
		if i < 0 {
			return Entry{}, invalid("bad_signature", nil, "could not verify envelope: all signatures must have a key that verifies it")
		}
		s.DSSEV002.Signatures = append(s.DSSEV002.Signatures, signature2{sig.GetSig(), verifiers[i].stored})
		keys = append(keys, verifiers[i].key.keys()...)
	}
	sum := sha256.Sum256(msg.payload)
	s.DSSEV002.PayloadHash = hashOutput{"SHA2_256", sum[:]}
	submitted, err := msg.statementKeys()
	if err != nil {
		return Entry{}, err
	}
	return newEntry("dsse", "0.0.2", s, append(keys, s.DSSEV002.PayloadHash.key()), submitted)
}

func (s dsseSpec2) keys() ([]string, error) {
	var keys []string
	for _, sig := range s.DSSEV002.Signatures {
		key, err := sig.Verifier.parse()
		if err != nil {
			return nil, err
		}
		keys = append(keys, key.keys()...)
	}
	return append(keys, s.DSSEV002.PayloadHash.key()), nil
}

type dsseVerifier struct {
	key     verifier
	stored  verifier2
	details keyDetails
}

// dsseVerifiers parses the verifiers on offer. Ed25519 keys sign envelopes without pre-hash by
// default (sigstore-go 1.1 sends PKIX_ED25519 here, and PKIX_ED25519_PH for blobs); both are taken.
func dsseVerifiers(offered []*rekorpb.Verifier) ([]dsseVerifier, error) {
	verifiers := make([]dsseVerifier, len(offered))
	for i, v := range offered {
		key, stored, err := verifierOf(v)
		if err != nil {
			return nil, err
		}
		var details keyDetails
		if _, ed := key.public.(ed25519.PublicKey); ed && v.GetKeyDetails() == common.PublicKeyDetails_PKIX_ED25519 {
			details = keyDetails{id: v.GetKeyDetails()}
		} else if details, err = detailsOf(key, stored); err != nil {
			return nil, err
		}
		verifiers[i] = dsseVerifier{key, stored, details}
	}
	return verifiers, nil
}
