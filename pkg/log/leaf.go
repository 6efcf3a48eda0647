package log

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/ctonly"
	"golang.org/x/crypto/cryptobyte"
)

// MaxEntry is how many bytes an entry of any kind but CT may have, on every backend: entry bundles carry a
// 16-bit length (c2sp.org/tlog-tiles), and a log must be able to move between backends.
const MaxEntry = 65535

// Submission is an entry that a wire API checked and canonicalized.
type Submission struct {
	// Identity tells duplicates apart: the leaf hash for Rekor, SHA-256 of the submitted
	// certificate or precertificate (DER) for CT, CTPlainIdentity for CTPlain.
	Identity [32]byte
	Data     []byte        // the entry, at most MaxEntry bytes; nil for CT, a MerkleTreeLeaf for CTPlain
	CT       *ctonly.Entry // for CT only; its Timestamp (ms) is part of the leaf
	// Extra is what a CTPlain log answers beside the leaf and its tree does not hold. It is
	// durable before the leaf is, and no part of the identity: a duplicate's is dropped.
	Extra []byte
	// Keys are search keys that cannot be derived from Data, such as the subjects of a DSSE
	// statement. They are durable before the leaf is.
	Keys []string
}

// Leaf is an entry in its place.
type Leaf struct {
	Index          uint64
	Data           []byte // the entry; for CT the static-ct TileLeaf, for CTPlain the MerkleTreeLeaf
	Extra          []byte // CTPlain only, as the first submission had it
	LeafHash       [32]byte
	IntegratedUnix int64 // Rekor v1 only, seconds
	Keys           []string
}

// parsedLeaf is one element of an entry bundle.
type parsedLeaf struct {
	data            []byte
	leafHash        [32]byte
	identity        [32]byte
	timestampMillis uint64 // CT and CTPlain
}

// parseBundle splits an entry bundle (c2sp.org/tlog-tiles) or, for CT, a data tile (c2sp.org/static-ct-api).
func parseBundle(kind Kind, raw []byte) ([]parsedLeaf, error) {
	return parseLeaves(kind, raw, 0, layout.EntryBundleWidth)
}

// parseLeaves is parseBundle for who wants the leaves from ≤ i < to alone: the others are stepped over where
// that can be done without reading them, and are zero then. Hashing all 256 costs more than the rest of a lookup.
func parseLeaves(kind Kind, raw []byte, from, to uint64) ([]parsedLeaf, error) {
	var leaves []parsedLeaf
	s := cryptobyte.String(raw)
	for i := uint64(0); !s.Empty(); i++ {
		var leaf parsedLeaf
		var err error
		switch {
		case kind == CT:
			leaf, err = parseTileLeaf(&s)
		case i < from || i >= to:
			var skipped cryptobyte.String
			if !s.ReadUint16LengthPrefixed(&skipped) {
				err = errors.New("truncated")
			}
		default:
			leaf, err = parseEntry(kind, &s)
		}
		if err != nil {
			return nil, fmt.Errorf("entry %d of the bundle: %w", i, err)
		}
		leaves = append(leaves, leaf)
	}
	return leaves, nil
}

func parseEntry(kind Kind, s *cryptobyte.String) (parsedLeaf, error) {
	var entry cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&entry) {
		return parsedLeaf{}, errors.New("truncated")
	}
	if kind == CTPlain {
		return parseMerkleTreeLeaf(entry)
	}
	hash := [32]byte(rfc6962.DefaultHasher.HashLeaf(entry))
	return parsedLeaf{data: entry, leafHash: hash, identity: hash}, nil
}

// parseMerkleTreeLeaf reads one whole MerkleTreeLeaf (RFC 6962, section 3.4), of which a CTPlain log's
// leaf hash is the hash. Such a log has no extensions:
//
//	uint8 version (0), uint8 leaf type (0), uint64 timestamp, uint16 type,
//	x509:    uint24 certificate            precert: issuer key hash (32), uint24 TBS
//	uint16 extensions (0)
func parseMerkleTreeLeaf(entry []byte) (parsedLeaf, error) {
	leaf := parsedLeaf{data: entry}
	s := cryptobyte.String(entry)
	var version, leafType uint8
	var entryType uint16
	var certificate, extensions cryptobyte.String
	if !s.ReadUint8(&version) || !s.ReadUint8(&leafType) || !s.ReadUint64(&leaf.timestampMillis) {
		return parsedLeaf{}, errors.New("truncated")
	}
	if version != 0 || leafType != 0 {
		return parsedLeaf{}, fmt.Errorf("unknown version %d, leaf type %d", version, leafType)
	}
	certified := s
	if !s.ReadUint16(&entryType) || entryType == 1 && !s.Skip(32) || !s.ReadUint24LengthPrefixed(&certificate) {
		return parsedLeaf{}, errors.New("truncated")
	}
	if entryType > 1 || certificate.Empty() {
		return parsedLeaf{}, fmt.Errorf("entry type %d with a certificate of %d bytes", entryType, len(certificate))
	}
	certified = certified[:len(certified)-len(s)]
	if !s.ReadUint16LengthPrefixed(&extensions) || !extensions.Empty() || !s.Empty() {
		return parsedLeaf{}, errors.New("something behind the certificate, where there are no extensions")
	}
	leaf.identity = sha256.Sum256(certified)
	leaf.leafHash = [32]byte(rfc6962.DefaultHasher.HashLeaf(entry))
	return leaf, nil
}

// plainTimestamp returns the timestamp of a MerkleTreeLeaf, which follows version and leaf type, in ms.
func plainTimestamp(merkleTreeLeaf []byte) uint64 {
	if len(merkleTreeLeaf) < 10 {
		return 0
	}
	return binary.BigEndian.Uint64(merkleTreeLeaf[2:])
}

// CTPlainIdentity returns the identity of a MerkleTreeLeaf without extensions: SHA-256 of what an
// SCT says of it but for the time, that is entry type, issuer key hash, and certificate or TBS.
func CTPlainIdentity(merkleTreeLeaf []byte) ([32]byte, error) {
	leaf, err := parseMerkleTreeLeaf(merkleTreeLeaf)
	if err != nil {
		return [32]byte{}, fmt.Errorf("reading a MerkleTreeLeaf: %w", err)
	}
	return leaf.identity, nil
}

// parseTileLeaf reads one TileLeaf:
//
//	uint64 timestamp, uint16 type,
//	x509:    uint24 certificate            precert: issuer key hash (32), uint24 TBS
//	uint16 extensions,                     precert: uint24 precertificate
//	uint16 chain fingerprints
//
// The Merkle leaf is version and leaf type (two zero bytes) and the fields up to the extensions.
func parseTileLeaf(s *cryptobyte.String) (parsedLeaf, error) {
	rest := *s
	var leaf parsedLeaf
	var entryType uint16
	var certificate, extensions, precertificate, chain cryptobyte.String
	truncated := errors.New("truncated")
	if !s.ReadUint64(&leaf.timestampMillis) || !s.ReadUint16(&entryType) {
		return parsedLeaf{}, truncated
	}
	if entryType > 1 {
		return parsedLeaf{}, fmt.Errorf("unknown entry type %d", entryType)
	}
	precert := entryType == 1
	if precert && !s.Skip(32) || !s.ReadUint24LengthPrefixed(&certificate) || !s.ReadUint16LengthPrefixed(&extensions) {
		return parsedLeaf{}, truncated
	}
	merkle := append([]byte{0, 0}, rest[:len(rest)-len(*s)]...)
	leaf.leafHash = [32]byte(rfc6962.DefaultHasher.HashLeaf(merkle))
	leaf.identity = sha256.Sum256(certificate)
	if precert {
		if !s.ReadUint24LengthPrefixed(&precertificate) {
			return parsedLeaf{}, truncated
		}
		leaf.identity = sha256.Sum256(precertificate)
	}
	if !s.ReadUint16LengthPrefixed(&chain) {
		return parsedLeaf{}, truncated
	}
	leaf.data = rest[:len(rest)-len(*s)]
	return leaf, nil
}
