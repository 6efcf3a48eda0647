package ca

import (
	"encoding/asn1"
	"time"
)

// DER tags used below.
const (
	tagBool           = 0x01
	tagInteger        = 0x02
	tagBitString      = 0x03
	tagOctetString    = 0x04
	tagNull           = 0x05
	tagOID            = 0x06
	tagUTF8String     = 0x0c
	tagUTCTime        = 0x17
	tagGeneralized    = 0x18
	tagSequence       = 0x30
	tagContext0       = 0x80 // [0] IMPLICIT, primitive
	tagContext0Nested = 0xa0 // [0] EXPLICIT
	tagContext3Nested = 0xa3
)

// der returns one DER value: tag, definite length, the parts in order. Templates of bytes are
// joined, not parsed, so the precertificate and the final certificate share every byte but one
// extension.
func der(tag byte, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	out := make([]byte, 0, n+6)
	out = append(out, tag)
	switch {
	case n < 0x80:
		out = append(out, byte(n))
	case n < 0x100:
		out = append(out, 0x81, byte(n))
	case n < 0x10000:
		out = append(out, 0x82, byte(n>>8), byte(n))
	default:
		out = append(out, 0x83, byte(n>>16), byte(n>>8), byte(n))
	}
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// oid returns the DER of an object identifier of this package.
func oid(arcs ...int) []byte {
	out := []byte{byte(arcs[0]*40 + arcs[1])}
	for _, arc := range arcs[2:] {
		var digits []byte
		for more := byte(0); ; more = 0x80 {
			digits = append([]byte{byte(arc&0x7f) | more}, digits...)
			if arc >>= 7; arc == 0 {
				break
			}
		}
		out = append(out, digits...)
	}
	return der(tagOID, out)
}

// extension returns one Extension (RFC 5280, section 4.1): FALSE is the default and left out.
func extension(id []byte, critical bool, value []byte) []byte {
	if critical {
		return der(tagSequence, id, []byte{tagBool, 1, 0xff}, der(tagOctetString, value))
	}
	return der(tagSequence, id, der(tagOctetString, value))
}

// timestamp returns a Time (RFC 5280, section 4.1.2.5): UTCTime through 2049.
func timestamp(t time.Time) []byte {
	t = t.UTC()
	if t.Year() < 2050 {
		return der(tagUTCTime, []byte(t.Format("060102150405Z")))
	}
	return der(tagGeneralized, []byte(t.Format("20060102150405Z")))
}

// integer returns the DER of a positive integer given big-endian without leading zeros.
func integer(b []byte) []byte {
	if len(b) == 0 || b[0]&0x80 != 0 {
		return der(tagInteger, []byte{0}, b)
	}
	return der(tagInteger, b)
}

var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}
