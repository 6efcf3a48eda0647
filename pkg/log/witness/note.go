package witness

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	maxNote     = 128 << 10 // bytes of a signed checkpoint; 32 ML-DSA lines have 107 KiB
	maxText     = 4 << 10   // bytes of its text
	maxNoteSigs = 64        // signature lines
)

// signature is one line of a signed note (c2sp.org/signed-note).
type signature struct {
	name string
	hash uint32 // of the key
	blob []byte // what comes after the hash
}

// line is the signature as it stands in a note, with its newline.
func (s signature) line() string {
	return "— " + s.name + " " + base64.StdEncoding.EncodeToString(append(binary.BigEndian.AppendUint32(nil, s.hash), s.blob...)) + "\n"
}

// checkpoint is the text of a tree head (c2sp.org/tlog-checkpoint).
type checkpoint struct {
	text   []byte // what is signed: all lines, the last one's newline too
	origin string
	size   uint64
	root   [32]byte
}

// parseNote reads a signed checkpoint. It has exactly one blank line.
func parseNote(note []byte) (checkpoint, []signature, error) {
	if len(note) > maxNote {
		return checkpoint{}, nil, fmt.Errorf("checkpoint has over %d bytes", maxNote)
	}
	at := bytes.Index(note, []byte("\n\n"))
	if at < 0 {
		return checkpoint{}, nil, errors.New("checkpoint has no blank line before its signatures")
	}
	c, err := parseCheckpoint(note[:at+1])
	if err != nil {
		return checkpoint{}, nil, err
	}
	sigs, err := parseSignatures(note[at+2:])
	return c, sigs, err
}

// parseCheckpoint reads origin, size, root hash and extension lines. Extension lines are
// the log's own business (c2sp.org/tlog-checkpoint); they are signed with the rest.
func parseCheckpoint(text []byte) (checkpoint, error) {
	if len(text) > maxText {
		return checkpoint{}, fmt.Errorf("checkpoint text has over %d bytes", maxText)
	}
	if !utf8.Valid(text) || bytes.ContainsFunc(text, func(r rune) bool { return r < 0x20 && r != '\n' }) {
		return checkpoint{}, errors.New("checkpoint text is not UTF-8, or has control characters in it")
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) < 4 || lines[0] == "" {
		return checkpoint{}, errors.New("checkpoint does not begin with origin, size and root hash")
	}
	c := checkpoint{text: bytes.Clone(text), origin: lines[0]}
	var err error
	if c.size, err = parseSize(lines[1]); err != nil {
		return checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	root, ok := decodeBase64(lines[2])
	if !ok || len(root) != len(c.root) {
		return checkpoint{}, fmt.Errorf("checkpoint: %q is not a SHA-256 root hash in base64", lines[2])
	}
	c.root = [32]byte(root)
	return c, nil
}

// parseSize reads a decimal without leading zeros, at most 2^63-1.
func parseSize(text string) (uint64, error) {
	size, err := strconv.ParseUint(text, 10, 64)
	if err != nil || strconv.FormatUint(size, 10) != text || size > math.MaxInt64 {
		return 0, fmt.Errorf("%q is not a tree size", text)
	}
	return size, nil
}

// parseSignatures reads one or more signature lines, each with its newline, and nothing else.
func parseSignatures(raw []byte) ([]signature, error) {
	if len(raw) == 0 || raw[len(raw)-1] != '\n' {
		return nil, errors.New("signature lines are missing or do not end with a newline")
	}
	lines := strings.Split(string(raw[:len(raw)-1]), "\n")
	if len(lines) > maxNoteSigs {
		return nil, fmt.Errorf("over %d signature lines", maxNoteSigs)
	}
	sigs := make([]signature, len(lines))
	for i, line := range lines {
		rest, ok := strings.CutPrefix(line, "— ")
		name, text, found := strings.Cut(rest, " ")
		blob, valid := decodeBase64(text)
		if !ok || !found || !valid || len(blob) < 5 || checkName(name) != nil {
			return nil, fmt.Errorf("line %d of the signatures is none", i+1)
		}
		sigs[i] = signature{name, binary.BigEndian.Uint32(blob), blob[4:]}
	}
	return sigs, nil
}
