package verify

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"google.golang.org/protobuf/encoding/protojson"
)

const (
	maxBundleBytes = 10 << 20
	maxEntries     = 32
	maxTimestamps  = 32
	maxChain       = 8
	maxRSABits     = 8192
	maxProofHashes = 64 // a path longer than this belongs to no tree with an int64 size
)

// payloadTypeInToto is the only DSSE payload type that a bundle may carry.
const payloadTypeInToto = "application/vnd.in-toto+json"

// bundle is a parsed bundle whose structure is sound. Nothing in it is verified yet.
type bundle struct {
	version    int               // minor version: 1, 2 or 3
	leaf       *x509.Certificate // nil when signed with a key
	summary    *certificate.Summary
	keyHint    string
	signature  []byte
	digest     []byte // messageDigest; nil for DSSE
	digestAlg  string // "sha256", "sha384", "sha512"; "" for DSSE
	payload    []byte // DSSE payload; nil for a message signature
	isDSSE     bool
	entries    []*entry
	timestamps [][]byte // DER TimeStampResp
	pae        []byte   // DSSE pre-authentication encoding of payload
	statement  *Statement
}

// entry is one transparency log entry of a bundle.
type entry struct {
	*protorekor.TransparencyLogEntry
	kind  entryKind
	bound bool   // body is the canonical one of a Rekor v1 entry for this bundle, see holds
	body  v1Body // of Rekor v1 kinds; empty when bound
}

// parseBundle reads a bundle of version 0.1 to 0.3 and applies the structural rules of that version.
// protojson refuses unknown fields, fields given twice and trailing data.
func parseBundle(data []byte) (*bundle, error) {
	if len(data) > maxBundleBytes {
		return nil, fail(ReasonTooLarge, nil, "bundle is larger than %d bytes", maxBundleBytes)
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, fail(ReasonNoSignature, nil, "bundle is empty")
	}
	pb := &protobundle.Bundle{}
	if err := protojson.Unmarshal(data, pb); err != nil {
		return nil, fail(ReasonBundleMalformed, err, "reading bundle")
	}
	b := &bundle{}
	switch pb.GetMediaType() {
	case "application/vnd.dev.sigstore.bundle+json;version=0.1":
		b.version = 1
	case "application/vnd.dev.sigstore.bundle+json;version=0.2":
		b.version = 2
	case "application/vnd.dev.sigstore.bundle.v0.3+json",
		"application/vnd.dev.sigstore.bundle+json;version=0.3":
		b.version = 3
	default:
		return nil, fail(ReasonFormatUnsupported, nil, "bundle media type %.200q is not known", pb.GetMediaType())
	}
	for _, read := range []func(*protobundle.Bundle) error{b.readMaterial, b.readContent, b.readEntries, b.readTimestamps} {
		if err := read(pb); err != nil {
			if ReasonOf(err) != ReasonInternal {
				return nil, err
			}
			return nil, fail(ReasonBundleMalformed, err, "reading bundle")
		}
	}
	return b, nil
}

func (b *bundle) readMaterial(pb *protobundle.Bundle) error {
	vm := pb.GetVerificationMaterial()
	var der []byte
	switch m := vm.GetContent().(type) {
	case *protobundle.VerificationMaterial_PublicKey:
		b.keyHint = m.PublicKey.GetHint()
		return nil
	case *protobundle.VerificationMaterial_Certificate:
		der = m.Certificate.GetRawBytes()
	case *protobundle.VerificationMaterial_X509CertificateChain:
		if b.version >= 3 {
			return errors.New("a version 0.3 bundle must not carry a certificate chain")
		}
		chain := m.X509CertificateChain.GetCertificates()
		if len(chain) == 0 {
			return errors.New("certificate chain is empty")
		}
		if len(chain) > maxChain {
			return fail(ReasonTooLarge, nil, "certificate chain has %d certificates, at most %d are allowed", len(chain), maxChain)
		}
		for _, c := range chain[1:] {
			if err := refuseRoot(c); err != nil {
				return err
			}
		}
		der = chain[0].GetRawBytes()
	default:
		return errors.New("verification material has neither certificate, certificate chain nor public key")
	}
	leaf, err := parseCertificate(der)
	if err != nil {
		return fmt.Errorf("signing certificate: %w", err)
	}
	if b.summary, err = summarize(leaf); err != nil {
		return fmt.Errorf("names in the signing certificate: %w", err)
	}
	handleSAN(leaf)
	b.leaf = leaf
	return nil
}

// parseCertificate reads DER from outside. A certificate's RSA key may be used before anything vouches for it, and costs with the
// square of its size.
func parseCertificate(der []byte) (*x509.Certificate, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if k, ok := c.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() > maxRSABits {
		return nil, fail(ReasonTooLarge, nil, "an RSA key of %d bits is over %d", k.N.BitLen(), maxRSABits)
	}
	return c, nil
}

// refuseRoot rejects a trust anchor inside a bundle: it proves nothing there and tempts verifiers.
func refuseRoot(c *protocommon.X509Certificate) error {
	cert, err := parseCertificate(c.GetRawBytes())
	if err != nil {
		return fmt.Errorf("certificate chain: %w", err)
	}
	if bytes.Equal(cert.RawSubject, cert.RawIssuer) {
		return errors.New("certificate chain contains a self-signed certificate")
	}
	return nil
}

func (b *bundle) readContent(pb *protobundle.Bundle) error {
	switch c := pb.GetContent().(type) {
	case *protobundle.Bundle_MessageSignature:
		b.signature = c.MessageSignature.GetSignature()
		b.digest = c.MessageSignature.GetMessageDigest().GetDigest()
		switch alg := c.MessageSignature.GetMessageDigest().GetAlgorithm(); alg {
		case protocommon.HashAlgorithm_SHA2_256:
			b.digestAlg = "sha256"
		case protocommon.HashAlgorithm_SHA2_384:
			b.digestAlg = "sha384"
		case protocommon.HashAlgorithm_SHA2_512:
			b.digestAlg = "sha512"
		default:
			return fmt.Errorf("message digest algorithm %s", alg)
		}
		if len(b.digest) != hashOf(b.digestAlg).Size() {
			return fmt.Errorf("message digest of %d bytes is not a %s digest", len(b.digest), b.digestAlg)
		}
	case *protobundle.Bundle_DsseEnvelope:
		env := c.DsseEnvelope
		if n := len(env.GetSignatures()); n != 1 {
			return fail(ReasonEnvelopeSignatures, nil, "DSSE envelope has %d signatures, exactly one is required", n)
		}
		if env.GetPayloadType() != payloadTypeInToto {
			return fail(ReasonPayloadType, nil, "DSSE payload type %.200q is not %q", env.GetPayloadType(), payloadTypeInToto)
		}
		b.isDSSE = true
		b.signature = env.GetSignatures()[0].GetSig()
		b.payload = env.GetPayload()
		b.pae = preAuthEncoding(env.GetPayloadType(), b.payload)
		var err error
		if b.statement, err = ParseStatement(b.payload); err != nil {
			if ReasonOf(err) != ReasonInternal {
				return err
			}
			return fail(ReasonStatementMalformed, err, "DSSE payload")
		}
	default:
		return errors.New("bundle has neither a message signature nor a DSSE envelope")
	}
	if len(b.signature) == 0 {
		return fail(ReasonNoSignature, nil, "bundle carries no signature")
	}
	return nil
}

func (b *bundle) readEntries(pb *protobundle.Bundle) error {
	list := pb.GetVerificationMaterial().GetTlogEntries()
	if len(list) > maxEntries {
		return fail(ReasonTooLarge, nil, "bundle has %d log entries, at most %d are allowed", len(list), maxEntries)
	}
	var promise, proof bool
	for i, tle := range list {
		e := &entry{TransparencyLogEntry: tle}
		if err := e.read(); err != nil {
			return fmt.Errorf("log entry %d: %w", i, err)
		}
		if e.bound = !e.kind.v2() && b.holds(e); !e.bound {
			if err := e.readBody(); err != nil {
				return fmt.Errorf("log entry %d: %w", i, err)
			}
		}
		for _, other := range b.entries {
			if bytes.Equal(other.GetLogId().GetKeyId(), tle.GetLogId().GetKeyId()) && other.GetLogIndex() == tle.GetLogIndex() {
				return fmt.Errorf("log entry %d repeats an earlier one", i)
			}
		}
		promise = promise || e.set() != nil
		proof = proof || e.GetInclusionProof() != nil
		b.entries = append(b.entries, e)
	}
	if len(list) == 0 {
		return nil
	}
	if b.version == 1 && !promise {
		return errors.New("a version 0.1 bundle must carry an inclusion promise")
	}
	if b.version >= 2 && !proof {
		return errors.New("a bundle of version 0.2 or later must carry an inclusion proof")
	}
	return nil
}

func (b *bundle) readTimestamps(pb *protobundle.Bundle) error {
	list := pb.GetVerificationMaterial().GetTimestampVerificationData().GetRfc3161Timestamps()
	if len(list) > maxTimestamps {
		return fail(ReasonTooLarge, nil, "bundle has %d timestamps, at most %d are allowed", len(list), maxTimestamps)
	}
	for i, ts := range list {
		for _, other := range b.timestamps {
			if bytes.Equal(other, ts.GetSignedTimestamp()) {
				return fmt.Errorf("timestamp %d repeats an earlier one", i)
			}
		}
		b.timestamps = append(b.timestamps, ts.GetSignedTimestamp())
	}
	return nil
}

// expectMaterial refuses a key's bundle under an identity policy and the other way round.
func (b *bundle) expectMaterial(p *Policy) error {
	switch {
	case p.Key != nil && b.leaf != nil:
		return fail(ReasonKeyMismatch, nil, "the bundle is signed with a certificate, the policy names a key")
	case p.Key == nil && b.leaf == nil:
		return fail(ReasonKeyMismatch, nil, "the bundle is signed with a key, the policy names identities")
	}
	return nil
}

func (e *entry) set() []byte {
	if s := e.GetInclusionPromise().GetSignedEntryTimestamp(); len(s) > 0 {
		return s
	}
	return nil
}
