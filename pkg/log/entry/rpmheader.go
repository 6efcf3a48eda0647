package entry

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Bounds of one RPM header. Packages of distributions have up to some hundred tags.
const (
	maxRPMTags  = 1024
	maxRPMStore = 32 << 20 // bytes
)

// rpmPackage is an RPM file (format 3 and 4):
//
//	lead, 96 octets: ed ab ee db …
//	signature header, padded to 8 octets
//	general header
//	payload, a compressed archive
type rpmPackage struct {
	signature, general rpmHeader
	payload            []byte
	file               []byte
}

// signed is the general header with the payload.
func (p rpmPackage) signed() []byte {
	return p.file[len(p.file)-len(p.payload)-len(p.general.raw):]
}

func parseRPM(file []byte) (rpmPackage, error) {
	const lead = 96
	if len(file) < lead || !bytes.HasPrefix(file, []byte{0xed, 0xab, 0xee, 0xdb}) {
		return rpmPackage{}, errors.New("not an RPM file")
	}
	signature, rest, err := parseRPMHeader(file[lead:], true)
	if err != nil {
		return rpmPackage{}, fmt.Errorf("signature header: %w", err)
	}
	general, rest, err := parseRPMHeader(rest, false)
	if err != nil {
		return rpmPackage{}, fmt.Errorf("header: %w", err)
	}
	return rpmPackage{signature, general, rest, file}, nil
}

// rpmHeader is a header structure:
//
//	magic 8e ad e8 01, 4 octets reserved, number of tags n, octets of the store s
//	n × {tag, type, offset into the store, number of values}
//	store, s octets
//
// all numbers of 4 octets, big endian.
type rpmHeader struct {
	raw  []byte
	tags map[uint32]rpmTag
}

type rpmTag struct {
	kind, count uint32
	data        []byte // strings: each with its NUL
}

// Types of values. All others are strings, one or more.
const (
	rpmChar       = 1
	rpmInt8       = 2
	rpmInt16      = 3
	rpmInt32      = 4
	rpmInt64      = 5
	rpmString     = 6
	rpmBinary     = 7
	rpmStrings    = 8
	rpmI18NString = 9
)

// rpmWidth are the octets of one value.
func rpmWidth(kind uint32) (width uint64, fixed bool) {
	switch kind {
	case 0: // null
		return 0, true
	case rpmChar, rpmInt8, rpmBinary:
		return 1, true
	case rpmInt16:
		return 2, true
	case rpmInt32:
		return 4, true
	case rpmInt64:
		return 8, true
	}
	return 0, false
}

// parseRPMHeader reads a header. Values may not overlap, or be there twice: a reader must not be
// able to see another package in the same octets, nor be made to read the store once for each tag.
func parseRPMHeader(data []byte, padded bool) (h rpmHeader, rest []byte, err error) {
	const intro, entry = 16, 16
	if len(data) < intro || !bytes.HasPrefix(data, []byte{0x8e, 0xad, 0xe8, 0x01}) {
		return h, nil, errors.New("no header")
	}
	n, size := binary.BigEndian.Uint32(data[8:]), binary.BigEndian.Uint32(data[12:])
	if n > maxRPMTags || size > maxRPMStore {
		return h, nil, fmt.Errorf("%d tags and %d bytes, over the limits of %d and %d", n, size, maxRPMTags, maxRPMStore)
	}
	if padded {
		size = (size + 7) / 8 * 8
	}
	end := intro + entry*int(n) + int(size)
	if len(data) < end {
		return h, nil, errors.New("truncated")
	}
	h.raw, rest = data[:end], data[end:]
	h.tags = make(map[uint32]rpmTag, n)
	index, store := h.raw[intro:intro+entry*int(n)], h.raw[intro+entry*int(n):]
	unclaimed := len(store)
	for ; len(index) > 0; index = index[entry:] {
		number := binary.BigEndian.Uint32(index)
		tag, err := parseRPMTag(index[4:entry], store, unclaimed)
		if err != nil {
			return h, nil, fmt.Errorf("tag %d: %w", number, err)
		}
		if _, twice := h.tags[number]; twice {
			return h, nil, fmt.Errorf("tag %d is there twice", number)
		}
		h.tags[number] = tag
		unclaimed -= len(tag.data)
	}
	return h, rest, nil
}

// parseRPMTag reads {type, offset, number of values} and takes at most limit octets of the store.
func parseRPMTag(entry, store []byte, limit int) (rpmTag, error) {
	t := rpmTag{kind: binary.BigEndian.Uint32(entry), count: binary.BigEndian.Uint32(entry[8:])}
	offset := binary.BigEndian.Uint32(entry[4:])
	if uint64(offset) > uint64(len(store)) || t.count > maxRPMStore {
		return rpmTag{}, errors.New("outside of the store")
	}
	from := store[offset:]
	width, fixed := rpmWidth(t.kind)
	length := uint64(t.count) * width
	if !fixed {
		for range t.count {
			i := bytes.IndexByte(from[length:min(len(from), limit)], 0)
			if i < 0 {
				return rpmTag{}, errors.New("a string without end, or over others' values")
			}
			length += uint64(i) + 1
		}
	}
	if length > uint64(min(len(from), limit)) {
		return rpmTag{}, errors.New("outside of the store, or over others' values")
	}
	t.data = from[:length]
	return t, nil
}

// text returns the first of a tag's strings.
func (h rpmHeader) text(tag uint32) (value string, given bool, err error) {
	t, ok := h.tags[tag]
	if !ok {
		return "", false, nil
	}
	if t.kind != rpmString && t.kind != rpmStrings && t.kind != rpmI18NString || t.count == 0 {
		return "", false, fmt.Errorf("tag %d holds no string", tag)
	}
	return string(t.data[:bytes.IndexByte(t.data, 0)]), true, nil
}

// number returns the first of a tag's numbers.
func (h rpmHeader) number(tag uint32) (value uint64, given bool, err error) {
	t, ok := h.tags[tag]
	if !ok {
		return 0, false, nil
	}
	width, _ := rpmWidth(t.kind)
	if width == 0 || t.kind == rpmBinary || t.count == 0 {
		return 0, false, fmt.Errorf("tag %d holds no number", tag)
	}
	for _, b := range t.data[:width] {
		value = value<<8 | uint64(b)
	}
	return value, true, nil
}

func (h rpmHeader) binary(tag uint32) (value []byte, given bool, err error) {
	t, ok := h.tags[tag]
	if !ok {
		return nil, false, nil
	}
	if t.kind != rpmBinary {
		return nil, false, fmt.Errorf("tag %d is not binary", tag)
	}
	return t.data, true, nil
}
