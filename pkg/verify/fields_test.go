package verify_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/attestry/attestry/pkg/verify"
)

// fieldFault changes one field of a bundle.
type fieldFault struct {
	path  string // "verificationMaterial.tlogEntries.logIndex"; elements of lists are the first
	op    string // flip, drop, double or swap
	apply func(b *protobundle.Bundle)
}

// fieldFaults lists every fault of every field that the form's bundle has: its value changed, left out or taken from another
// valid bundle of the form; of lists also the first element twice.
func (f *form) fieldFaults() []fieldFault {
	var all []fieldFault
	var walk func(get func(protoreflect.Message) protoreflect.Message, here, other protoreflect.Message, prefix string)
	walk = func(get func(protoreflect.Message) protoreflect.Message, here, other protoreflect.Message, prefix string) {
		fields := here.Descriptor().Fields()
		for n := range fields.Len() {
			fd := fields.Get(n)
			if !here.Has(fd) {
				continue
			}
			path := prefix + fd.JSONName()
			add := func(op string, change func(m protoreflect.Message)) {
				all = append(all, fieldFault{path, op, func(b *protobundle.Bundle) { change(get(b.ProtoReflect())) }})
			}
			add("drop", func(m protoreflect.Message) { m.Clear(fd) })
			if other != nil && other.Has(fd) && !here.Get(fd).Equal(other.Get(fd)) {
				add("swap", func(m protoreflect.Message) {
					m.Set(fd, proto.Clone(other.Interface()).ProtoReflect().Get(fd)) // a copy: the trial may not share it
				})
			}
			switch {
			case fd.IsList() && fd.Kind() == protoreflect.MessageKind:
				add("double", func(m protoreflect.Message) {
					l := m.Mutable(fd).List()
					l.Append(protoreflect.ValueOfMessage(proto.Clone(l.Get(0).Message().Interface()).ProtoReflect()))
				})
				var otherElement protoreflect.Message
				if other != nil && other.Get(fd).List().Len() > 0 {
					otherElement = other.Get(fd).List().Get(0).Message()
				}
				walk(func(m protoreflect.Message) protoreflect.Message { return get(m).Mutable(fd).List().Get(0).Message() },
					here.Get(fd).List().Get(0).Message(), otherElement, path+".")
			case fd.IsList():
				add("double", func(m protoreflect.Message) { l := m.Mutable(fd).List(); l.Append(l.Get(0)) })
				add("flip", func(m protoreflect.Message) {
					l := m.Mutable(fd).List()
					l.Set(0, flipped(fd, l.Get(0)))
				})
			case fd.Kind() == protoreflect.MessageKind:
				var otherMessage protoreflect.Message
				if other != nil && other.Has(fd) {
					otherMessage = other.Get(fd).Message()
				}
				walk(func(m protoreflect.Message) protoreflect.Message { return get(m).Mutable(fd).Message() }, here.Get(fd).Message(), otherMessage, path+".")
			default:
				add("flip", func(m protoreflect.Message) { m.Set(fd, flipped(fd, m.Get(fd))) })
			}
		}
	}
	var other protoreflect.Message
	if f.other != nil {
		other = f.other.ProtoReflect()
	}
	walk(func(m protoreflect.Message) protoreflect.Message { return m }, f.bundle.ProtoReflect(), other, "")
	return all
}

// flipped is v with its last bit turned, the next number, or one letter more.
func flipped(fd protoreflect.FieldDescriptor, v protoreflect.Value) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(flip(v.Bytes()))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(v.Int() + 1)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(v.Enum() + 1)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(v.String() + "x")
	}
	panic(fmt.Sprintf("a field of kind %s", fd.Kind()))
}

// refusal is what a fault of a field must meet, "" when it does no harm. known is false for a field that nobody thought of.
func (c features) refusal(path, op string) (want verify.Reason, known bool) {
	// A fault of the signature meets whatever depends on it first.
	signature := verify.ReasonSignatureInvalid
	switch {
	case c.log:
		signature = verify.ReasonEntrySignature
	case c.needsTimestamp:
		signature = verify.ReasonTimestampMismatch
	}
	digest, certificate := verify.ReasonDigestMismatch, verify.ReasonCertChain
	if c.log {
		digest, certificate = verify.ReasonEntryDigest, verify.ReasonEntryVerifier
	} else if op == "swap" {
		certificate = verify.ReasonSignatureInvalid // it is a good one, for another key
	}
	timestamp := func(r verify.Reason) verify.Reason {
		if c.needsTimestamp {
			return r
		}
		return ""
	}
	set := func(otherwise verify.Reason) verify.Reason {
		if c.promise && c.log {
			return verify.ReasonSETInvalid
		}
		return otherwise
	}
	isDrop, isSwap := op == "drop", op == "swap"

	path = strings.TrimPrefix(path, "verificationMaterial.")
	switch path {
	case "mediaType":
		return verify.ReasonFormatUnsupported, true

	case "verificationMaterial":
		switch {
		case isDrop:
			return verify.ReasonBundleMalformed, true
		case !c.log && !c.cert:
			return "", true // a hint
		}
		return signature, true
	case "publicKey", "certificate", "x509CertificateChain":
		if isDrop {
			return verify.ReasonBundleMalformed, true
		}
		return certificate, true
	case "publicKey.hint":
		return "", true
	case "x509CertificateChain.certificates":
		switch op {
		case "drop":
			return verify.ReasonBundleMalformed, true
		case "double":
			return "", true // what stands after the leaf is not used
		}
		return certificate, true
	case "certificate.rawBytes", "x509CertificateChain.certificates.rawBytes":
		if isDrop {
			return verify.ReasonBundleMalformed, true
		}
		return certificate, true

	case "tlogEntries":
		switch op {
		case "drop":
			return verify.ReasonEntryMissing, true
		case "double":
			return verify.ReasonBundleMalformed, true
		}
		return verify.ReasonEntrySignature, true
	case "tlogEntries.logIndex":
		if c.v2 {
			return verify.ReasonInclusionIndex, true
		}
		return set(""), true // a proof has an index of its own
	case "tlogEntries.logId", "tlogEntries.logId.keyId":
		if isDrop {
			return verify.ReasonBundleMalformed, true
		}
		return verify.ReasonLogUnknown, true
	case "tlogEntries.kindVersion":
		return verify.ReasonBundleMalformed, true
	case "tlogEntries.kindVersion.kind", "tlogEntries.kindVersion.version":
		return verify.ReasonFormatUnsupported, true
	case "tlogEntries.integratedTime":
		return set(""), true
	case "tlogEntries.inclusionPromise", "tlogEntries.inclusionPromise.signedEntryTimestamp":
		switch {
		case !isDrop:
			return set(""), true
		case !c.proof:
			return verify.ReasonInclusionMissing, true
		case c.version == 1:
			return verify.ReasonBundleMalformed, true
		case c.cert && c.timestamps == 0:
			return verify.ReasonNoTime, true
		}
		return "", true
	case "tlogEntries.inclusionProof":
		switch {
		case isSwap && c.v2 && c.apart:
			return verify.ReasonInclusionIndex, true
		case isSwap:
			return verify.ReasonInclusionInvalid, true
		case !c.promise:
			return verify.ReasonInclusionMissing, true
		case c.version == 1:
			return "", true
		}
		return verify.ReasonBundleMalformed, true
	case "tlogEntries.inclusionProof.logIndex":
		if c.v2 {
			return verify.ReasonInclusionIndex, true
		}
		return verify.ReasonInclusionInvalid, true
	case "tlogEntries.inclusionProof.rootHash", "tlogEntries.inclusionProof.treeSize":
		return verify.ReasonCheckpointMismatch, true
	case "tlogEntries.inclusionProof.hashes":
		return verify.ReasonInclusionInvalid, true
	case "tlogEntries.inclusionProof.checkpoint", "tlogEntries.inclusionProof.checkpoint.envelope":
		switch op {
		case "drop":
			return verify.ReasonBundleMalformed, true
		case "swap":
			return verify.ReasonCheckpointMismatch, true
		}
		return verify.ReasonCheckpointMalformed, true
	case "tlogEntries.canonicalizedBody":
		switch op {
		case "drop":
			return verify.ReasonBundleMalformed, true
		case "swap":
			return set(verify.ReasonEntrySignature), true
		}
		return verify.ReasonEntryMalformed, true

	case "timestampVerificationData", "timestampVerificationData.rfc3161Timestamps":
		switch op {
		case "double":
			return verify.ReasonBundleMalformed, true
		case "drop":
			return timestamp(verify.ReasonNoTime), true
		}
		return timestamp(verify.ReasonTimestampMismatch), true
	case "timestampVerificationData.rfc3161Timestamps.signedTimestamp":
		switch op {
		case "drop":
			return timestamp(verify.ReasonTimestampMalformed), true
		case "flip":
			return timestamp(verify.ReasonTimestampInvalid), true
		}
		return timestamp(verify.ReasonTimestampMismatch), true

	case "messageSignature":
		switch {
		case isDrop:
			return verify.ReasonBundleMalformed, true
		case signature == verify.ReasonSignatureInvalid:
			return verify.ReasonDigestMismatch, true
		}
		return signature, true
	case "messageSignature.messageDigest":
		if isDrop {
			return verify.ReasonBundleMalformed, true
		}
		return digest, true
	case "messageSignature.messageDigest.algorithm":
		return verify.ReasonBundleMalformed, true
	case "messageSignature.messageDigest.digest":
		if isDrop {
			return verify.ReasonBundleMalformed, true
		}
		return digest, true
	case "messageSignature.signature", "dsseEnvelope.signatures.sig":
		if isDrop {
			return verify.ReasonNoSignature, true
		}
		return signature, true

	case "dsseEnvelope":
		if isDrop {
			return verify.ReasonBundleMalformed, true
		}
		return signature, true
	case "dsseEnvelope.payload":
		switch {
		case !isSwap:
			return verify.ReasonStatementMalformed, true
		case c.log:
			return verify.ReasonEntryDigest, true
		}
		return verify.ReasonSignatureInvalid, true
	case "dsseEnvelope.payloadType":
		return verify.ReasonPayloadType, true
	case "dsseEnvelope.signatures":
		if isSwap {
			return signature, true
		}
		return verify.ReasonEnvelopeSignatures, true
	case "dsseEnvelope.signatures.keyid":
		return "", true
	}
	return "", false
}

// faultyFields runs every fault of every field, notes what they met and returns how many there were.
func (f *form) faultyFields(t *testing.T, met map[verify.Reason]bool) int {
	c := f.features()
	faults := f.fieldFaults()
	for _, fault := range faults {
		want, known := c.refusal(fault.path, fault.op)
		met[want] = true
		t.Run(fault.op+" "+fault.path, func(t *testing.T) {
			if !known {
				t.Fatal("no refusal is known for this field")
			}
			tr := f.trial()
			fault.apply(tr.bundle)
			if bytes.Equal(marshalStable(t, tr.bundle), marshalStable(t, f.bundle)) {
				t.Fatal("the fault changes nothing")
			}
			tr.meets(t, want)
		})
	}
	return len(faults)
}

func marshalStable(t testing.TB, m proto.Message) []byte {
	t.Helper()
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
