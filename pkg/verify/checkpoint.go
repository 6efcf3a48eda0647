package verify

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	maxCheckpointBytes = 64 << 10
	maxNoteSignatures  = 100 // as golang.org/x/mod/sumdb/note
)

// checkpoint is a verified tree head (C2SP tlog-checkpoint).
type checkpoint struct {
	size uint64
	root []byte // 32 bytes
}

// openCheckpoint verifies the log's own signature on a signed note and returns the tree head. Of a v2 checkpoint, lines by
// other names or keys (witnesses, a log's second key) are ignored wherever they stand; a line that
// claims to be by this key and does not verify is an error. Rekor v1 has no witnesses: there every line has to be by the log's
// key, as sigstore-go 1.3 and cosign demand too.
//
// A v1 checkpoint has the origin "<host> - <tree ID>" and is found by its key hint alone; the origin and
// key name of a v2 checkpoint are the host of the log's base URL.
func openCheckpoint(envelope string, log *logKey, v2 bool) (*checkpoint, error) {
	if len(envelope) > maxCheckpointBytes {
		return nil, fail(ReasonTooLarge, nil, "larger than %d bytes", maxCheckpointBytes)
	}
	split := strings.LastIndex(envelope, "\n\n")
	if split < 0 || !strings.HasSuffix(envelope, "\n") {
		return nil, fail(ReasonCheckpointMalformed, nil, "not a signed note")
	}
	text, sigs := envelope[:split+1], envelope[split+2:]
	origin, cp, err := parseTreeHead(text)
	if err != nil {
		return nil, fail(ReasonCheckpointMalformed, err, "tree head")
	}
	hint := log.hintV1
	if v2 {
		if log.origin == "" {
			return nil, fail(ReasonCheckpointOrigin, nil, "the log has no base URL in the trusted root")
		}
		if origin != log.origin {
			return nil, fail(ReasonCheckpointOrigin, nil, "origin %.200q is not the log's host %q", origin, log.origin)
		}
		hint = log.hintV2
	} else if !v1Origin(origin) {
		return nil, fail(ReasonCheckpointOrigin, nil, "origin %.200q is not of the form \"host - tree ID\"", origin)
	}
	signed := false
	for n := 0; sigs != "" && !(v2 && signed); n++ {
		if n == maxNoteSignatures {
			return nil, fail(ReasonTooLarge, nil, "more than %d signatures", maxNoteSignatures)
		}
		line, rest, _ := strings.Cut(sigs, "\n")
		sigs = rest
		fields, ok := strings.CutPrefix(line, "\u2014 ")
		name, b64, found := strings.Cut(fields, " ")
		if !ok || !found || name == "" {
			return nil, fail(ReasonCheckpointMalformed, nil, "malformed signature line")
		}
		raw, err := base64.StdEncoding.DecodeString(b64)
		if err != nil || len(raw) < 5 {
			return nil, fail(ReasonCheckpointMalformed, nil, "malformed signature line")
		}
		if binary.BigEndian.Uint32(raw) != hint || (v2 && name != origin) {
			if v2 {
				continue
			}
			return nil, fail(ReasonCheckpointUnsigned, nil, "a signature is not by the log's key")
		}
		if !verifyNote(log.key, v2, []byte(text), raw[4:]) {
			return nil, fail(ReasonCheckpointInvalid, nil, "signature does not verify")
		}
		signed = true
	}
	if !signed {
		return nil, fail(ReasonCheckpointUnsigned, nil, "no signature by the log's key")
	}
	return cp, nil
}

// v1Origin reports whether s ends in " - " and digits.
func v1Origin(s string) bool {
	i := strings.LastIndex(s, " - ")
	if i < 0 || i+3 == len(s) {
		return false
	}
	for _, c := range s[i+3:] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

func parseTreeHead(text string) (origin string, cp *checkpoint, err error) {
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) < 4 {
		return "", nil, errors.New("origin, size or root hash is missing")
	}
	if lines[0] == "" {
		return "", nil, errors.New("origin is empty")
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil || strconv.FormatUint(size, 10) != lines[1] {
		return "", nil, fmt.Errorf("size %.100q is not a decimal number", lines[1])
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != sha256.Size {
		return "", nil, errors.New("root hash is not 32 bytes in base64")
	}
	return lines[0], &checkpoint{size: size, root: root}, nil
}

// verifyNote verifies a note signature by a log key: Ed25519 over the text, RSA PKCS #1 v1.5 over
// SHA-256, ECDSA over SHA-256 in Rekor v1 and over the hash of the curve's size in v2.
func verifyNote(key crypto.PublicKey, v2 bool, text, sig []byte) bool {
	switch k := key.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(k, text, sig)
	case *ecdsa.PublicKey:
		hash := crypto.SHA256
		if v2 {
			hash = ecdsaHash(k)
		}
		return ecdsa.VerifyASN1(k, sum(hash, text), sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, sum(crypto.SHA256, text), sig) == nil
	}
	return false
}
