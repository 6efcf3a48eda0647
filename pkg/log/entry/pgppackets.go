package entry

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Bounds of OpenPGP data. The library that reads and verifies it has none of its own for what
// stands here: it recurses into embedded signatures, makes slices as long as a packet says, and
// verifies each self-signature of a key ring, whatever their number and the size of the key.
const (
	maxPGPPackets    = 512
	maxPGPSignatures = 64   // in key material: one by brainpoolP512 takes some 10 ms to verify
	maxPGPKeys       = 32   // primary keys and subkeys
	maxPGPKey        = 4096 // bytes of a key packet: RSA of maxRSABits has 1034
	maxPGPUserID     = 2048 // bytes
	maxDSABits       = 4096
)

// Packet tags of RFC 9580, section 5.
const (
	pgpSignature     = 2
	pgpSecretKey     = 5
	pgpPublicKey     = 6
	pgpSecretSubkey  = 7
	pgpCompressed    = 8
	pgpTrust         = 12
	pgpUserID        = 13
	pgpPublicSubkey  = 14
	pgpUserAttribute = 17
)

// checkPGPKeys tells whether packets are public keys with what belongs to them, in bounds.
func checkPGPKeys(packets []byte) error {
	return checkPGPPackets(packets, maxPGPSignatures, pgpSignature, pgpPublicKey, pgpTrust, pgpUserID, pgpPublicSubkey, pgpUserAttribute)
}

// checkPGPSignatures tells whether packets are nothing but signatures, in bounds.
func checkPGPSignatures(packets []byte) error {
	return checkPGPPackets(packets, MaxSignatures, pgpSignature)
}

func checkPGPPackets(packets []byte, maxSignatures int, allowed ...byte) error {
	count := map[byte]int{}
	for n := 0; len(packets) > 0; n++ {
		if n == maxPGPPackets {
			return fmt.Errorf("more than %d OpenPGP packets", maxPGPPackets)
		}
		tag, body, rest, err := nextPGPPacket(packets)
		if err != nil {
			return err
		}
		if err := checkPGPTag(tag, allowed); err != nil {
			return err
		}
		switch count[tag]++; tag {
		case pgpSignature:
			err = checkPGPSignature(body, false)
		case pgpPublicKey, pgpPublicSubkey:
			err = checkPGPKey(body)
		case pgpUserID:
			if len(body) > maxPGPUserID {
				err = fmt.Errorf("OpenPGP user ID of %d bytes, over %d", len(body), maxPGPUserID)
			}
		}
		if err != nil {
			return err
		}
		if count[pgpSignature] > maxSignatures {
			return fmt.Errorf("more than %d OpenPGP signatures", maxSignatures)
		}
		if count[pgpPublicKey]+count[pgpPublicSubkey] > maxPGPKeys {
			return fmt.Errorf("more than %d OpenPGP keys", maxPGPKeys)
		}
		packets = rest
	}
	return nil
}

func checkPGPTag(tag byte, allowed []byte) error {
	for _, a := range allowed {
		if tag == a {
			return nil
		}
	}
	switch tag {
	case pgpCompressed:
		return errors.New("compressed OpenPGP data is not taken")
	case pgpSecretKey, pgpSecretSubkey:
		return errors.New("this is a secret OpenPGP key: send the public one")
	default:
		return fmt.Errorf("unexpected OpenPGP packet of type %d", tag)
	}
}

var errPGPTruncated = errors.New("truncated OpenPGP packet")

// nextPGPPacket splits off the first packet (RFC 9580, section 4.2). Its length must be known: no
// tool writes keys and signatures in parts.
func nextPGPPacket(data []byte) (tag byte, body, rest []byte, err error) {
	first, data := data[0], data[1:]
	if first&0x80 == 0 {
		return 0, nil, nil, errors.New("not an OpenPGP packet")
	}
	var length uint32
	if first&0x40 == 0 {
		tag = first & 0x3f >> 2
		size := 1 << (first & 3)
		if size == 8 {
			return 0, nil, nil, errors.New("OpenPGP packet of unknown length")
		}
		if len(data) < size {
			return 0, nil, nil, errPGPTruncated
		}
		for _, b := range data[:size] {
			length = length<<8 | uint32(b)
		}
		data = data[size:]
	} else {
		tag = first & 0x3f
		if len(data) > 0 && data[0] >= 224 && data[0] < 255 {
			return 0, nil, nil, errors.New("OpenPGP packet in parts")
		}
		if length, data, err = pgpLength(data); err != nil {
			return 0, nil, nil, err
		}
	}
	if uint64(length) > uint64(len(data)) {
		return 0, nil, nil, errPGPTruncated
	}
	return tag, data[:length], data[length:], nil
}

// pgpLength reads a length of one, two or five octets, as packets of the new format and subpackets have.
func pgpLength(data []byte) (length uint32, rest []byte, err error) {
	switch {
	case len(data) > 0 && data[0] < 192:
		return uint32(data[0]), data[1:], nil
	case len(data) > 1 && data[0] < 255:
		return uint32(data[0]-192)<<8 + uint32(data[1]) + 192, data[2:], nil
	case len(data) > 4 && data[0] == 255:
		return binary.BigEndian.Uint32(data[1:]), data[5:], nil
	}
	return 0, nil, errPGPTruncated
}

// checkPGPKey bounds the numbers of a public key packet; what else is wrong with it, the library tells.
//
//	version, 4 octets of time, algorithm, [version 6: 4 octets of length], numbers as MPI or points
func checkPGPKey(body []byte) error {
	if len(body) > maxPGPKey {
		return fmt.Errorf("OpenPGP key of %d bytes, over %d", len(body), maxPGPKey)
	}
	numbers := 6
	if len(body) > 0 && body[0] >= 5 {
		numbers += 4
	}
	if len(body) < numbers+2 {
		return errPGPTruncated
	}
	bits := int(binary.BigEndian.Uint16(body[numbers:])) // of the first MPI
	switch algorithm := body[5]; {
	case algorithm >= 1 && algorithm <= 3 && bits > maxRSABits:
		return fmt.Errorf("RSA key of %d bits, over %d", bits, maxRSABits)
	case (algorithm == 16 || algorithm == 17) && bits > maxDSABits:
		return fmt.Errorf("DSA or ElGamal key of %d bits, over %d", bits, maxDSABits)
	}
	return nil
}

// checkPGPSignature checks the lengths that a signature packet holds. Versions before 4 have no
// subpackets, and the library takes none.
//
//	version, type, key algorithm, hash algorithm, hashed subpackets, other subpackets, …
func checkPGPSignature(body []byte, embedded bool) error {
	if len(body) == 0 {
		return errPGPTruncated
	}
	if body[0] < 4 {
		return nil
	}
	if len(body) < 4 {
		return errPGPTruncated
	}
	rest := body[4:]
	for range 2 {
		size := 2
		if body[0] >= 6 {
			size = 4
		}
		if len(rest) < size {
			return errPGPTruncated
		}
		var length uint32
		for _, b := range rest[:size] {
			length = length<<8 | uint32(b)
		}
		rest = rest[size:]
		if uint64(length) > uint64(len(rest)) {
			return errPGPTruncated
		}
		if err := checkPGPSubpackets(rest[:length], embedded); err != nil {
			return err
		}
		rest = rest[length:]
	}
	return nil
}

func checkPGPSubpackets(area []byte, embedded bool) error {
	const (
		exportable        = 4
		embeddedSignature = 32
	)
	for len(area) > 0 {
		length, rest, err := pgpLength(area)
		if err != nil {
			return err
		}
		if length == 0 || uint64(length) > uint64(len(rest)) {
			return errPGPTruncated
		}
		subpacket := rest[:length]
		switch subpacket[0] & 0x7f {
		case exportable:
			if length == 1 { // the library reads the octet that is not there
				return errPGPTruncated
			}
		case embeddedSignature:
			if embedded {
				return errors.New("OpenPGP signature embedded in an embedded one")
			}
			if err := checkPGPSignature(subpacket[1:], true); err != nil {
				return err
			}
		}
		area = rest[length:]
	}
	return nil
}
