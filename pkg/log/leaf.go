package log

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/ctonly"
	"golang.org/x/crypto/cryptobyte"
)

// MaxEntry is how many bytes a Rekor entry may have, on every backend: entry bundles carry a
// 16-bit length (c2sp.org/tlog-tiles), and a log must be able to move between backends.
const MaxEntry = 65535

// Submission is an entry that a wire API checked and canonicalized.
type Submission struct {
	// Identity tells duplicates apart: the leaf hash for Rekor, SHA-256 of the submitted
	// certificate or precertificate (DER) for CT.
	Identity [32]byte
	Data     []byte        // the entry, at most MaxEntry bytes; nil for CT
	CT       *ctonly.Entry // for CT only; its Timestamp (ms) is part of the leaf
	// Keys are search keys that cannot be derived from Data, such as the subjects of a DSSE
	// statement. They are durable before the leaf is.
	Keys []string
	// Extra is kept beside the leaf, durably before it is in the tree: extra_data of plain CT entries.
	Extra []byte
}

// Leaf is an entry in its place.
type Leaf struct {
	Index          uint64
	Data           []byte // the entry; for CT the static-ct TileLeaf
	LeafHash       [32]byte
	IntegratedUnix int64 // Rekor v1 only, seconds
	Keys           []string
	Extra          []byte // what Submission.Extra was
}

// parsedLeaf is one element of an entry bundle.
type parsedLeaf struct {
	data            []byte
	leafHash        [32]byte
	identity        [32]byte
	timestampMillis uint64 // CT only
}

// parseBundle splits an entry bundle (c2sp.org/tlog-tiles) or, for CT, a data tile (c2sp.org/static-ct-api).
func parseBundle(kind Kind, raw []byte) ([]parsedLeaf, error) {
	var leaves []parsedLeaf
	s := cryptobyte.String(raw)
	for !s.Empty() {
		var leaf parsedLeaf
		var err error
		if kind == CT {
			leaf, err = parseTileLeaf(&s)
		} else {
			leaf, err = parseEntry(&s)
		}
		if err != nil {
			return nil, fmt.Errorf("entry %d of the bundle: %w", len(leaves), err)
		}
		leaves = append(leaves, leaf)
	}
	return leaves, nil
}

func parseEntry(s *cryptobyte.String) (parsedLeaf, error) {
	var entry cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&entry) {
		return parsedLeaf{}, errors.New("truncated")
	}
	hash := [32]byte(rfc6962.DefaultHasher.HashLeaf(entry))
	return parsedLeaf{data: entry, leafHash: hash, identity: hash}, nil
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
