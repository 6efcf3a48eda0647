package records

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// The journal of records in SQLite is a ring of pages in a file beside the database. Rows that were committed together are a frame, which
// begins on a page of its own, so that no write touches a page of rows that were answered for:
//
//	frame = "\xffATJ1\r\n\x00" number(8) done(8) length(4) sum(16) rows(length)   big endian, sum = SHA-256(what else there is)[:16]
//
// rows are lines of JSON, as Issued prints them; seq and hash come later. Frames are numbered from 1, without gaps. Those up to done are in
// the database and may be overwritten; what comes after the done of the newest frame is pending, and all of it must be there. A frame
// that fails its checksum is one that was overwritten or, after the newest, one that a crash tore, which nobody was answered for.
const (
	frameMagic = "\xffATJ1\r\n\x00" // no JSON begins like this, so no page of rows does
	frameHead  = len(frameMagic) + 8 + 8 + 4 + 16
	sumBytes   = 16
	pageBytes  = 4096
	maxFrame   = 1 << 20 // bytes
)

type frame struct {
	number uint64
	done   uint64 // frames up to it are in the database; less than number
	rows   []*Issued

	page, pages int // in the ring
}

var errFrame = errors.New("no frame")

// pagesOf returns how many pages a frame with so many bytes of rows takes.
func pagesOf(length int) int { return (frameHead + length + pageBytes - 1) / pageBytes }

// marshalFrame returns the frame of rows, which appendRow wrote.
func marshalFrame(number, done uint64, rows []byte) []byte {
	b := make([]byte, frameHead, frameHead+len(rows))
	at := copy(b, frameMagic)
	binary.BigEndian.PutUint64(b[at:], number)
	binary.BigEndian.PutUint64(b[at+8:], done)
	binary.BigEndian.PutUint32(b[at+16:], uint32(len(rows)))
	b = append(b, rows...)
	sum := frameSum(b)
	copy(b[frameHead-sumBytes:], sum[:])
	return b
}

func frameSum(b []byte) (sum [sumBytes]byte) {
	h := sha256.New()
	h.Write(b[:frameHead-sumBytes])
	h.Write(b[frameHead:])
	copy(sum[:], h.Sum(nil))
	return sum
}

// appendRow adds the line of r.
func appendRow(b []byte, r *Issued) ([]byte, error) {
	line := bytes.NewBuffer(b)
	enc := json.NewEncoder(line)
	enc.SetEscapeHTML(false)
	err := enc.Encode(r)
	return line.Bytes(), err
}

// parseFrame reads the frame at the beginning of b; errFrame says that there is none that is whole. Its rows are read by decode.
func parseFrame(b []byte) (f frame, rows []byte, err error) {
	if len(b) < frameHead || string(b[:len(frameMagic)]) != frameMagic {
		return f, nil, errFrame
	}
	at := len(frameMagic)
	f.number, f.done = binary.BigEndian.Uint64(b[at:]), binary.BigEndian.Uint64(b[at+8:])
	length := uint64(binary.BigEndian.Uint32(b[at+16:]))
	if length > maxFrame || uint64(len(b)-frameHead) < length {
		return f, nil, errFrame
	}
	b = b[:frameHead+int(length)]
	if sum := frameSum(b); !bytes.Equal(sum[:], b[frameHead-sumBytes:frameHead]) || f.done >= f.number {
		return f, nil, errFrame
	}
	f.pages = pagesOf(int(length))
	return f, b[frameHead:], nil
}

// decode reads the rows of a frame whose checksum is right.
func decode(lines []byte) (rows []*Issued, err error) {
	for line := range bytes.Lines(lines) {
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.DisallowUnknownFields() // a newer program's row would lose what this one does not know
		r := new(Issued)
		if err := dec.Decode(r); err != nil {
			return nil, err
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// parseRing returns the frames that are pending, in order, and with them the newest, whose rows may be in the database already; none when nothing
// was ever written. The error says which frames are damaged.
func parseRing(raw []byte) (pending []frame, newest frame, err error) {
	texts := map[uint64][]byte{}
	var all []frame
	for page := 0; page*pageBytes < len(raw); page++ {
		f, text, err := parseFrame(raw[page*pageBytes:])
		if err != nil {
			continue
		}
		f.page = page
		all, texts[f.number] = append(all, f), text
	}
	if len(all) == 0 {
		return nil, frame{}, nil
	}
	slices.SortFunc(all, func(a, b frame) int { return int(int64(a.number - b.number)) })
	newest = all[len(all)-1]
	for _, f := range all {
		if f.number <= newest.done {
			continue
		}
		if want := newest.done + 1 + uint64(len(pending)); f.number != want {
			return nil, newest, fmt.Errorf("frame %d is missing before frame %d, of which %d to %d must be there", want, f.number, newest.done+1, newest.number)
		}
		if f.rows, err = decode(texts[f.number]); err != nil {
			return nil, newest, fmt.Errorf("frame %d is of another version: %w", f.number, err)
		}
		pending = append(pending, f)
	}
	return pending, newest, nil
}
