package ct

import (
	"errors"
	"fmt"
	"slices"

	"github.com/transparency-dev/tessera/ctonly"
	"golang.org/x/crypto/cryptobyte"
)

// tileLeaf is an entry of a static-ct data tile (c2sp.org/static-ct-api, "Log Entries"):
//
//	uint64 timestamp, uint16 type, x509: uint24+certificate | precert: issuer key hash, uint24+TBS,
//	uint16+extensions, precert: uint24+precertificate, uint16+fingerprints of the chain
type tileLeaf struct {
	timestampMillis uint64
	precert         bool
	issuerKeyHash   [32]byte   // of a precertificate
	signed          []byte     // certificate DER, or TBS without poison
	extensions      []byte     // CtExtensions without their length
	precertificate  []byte     // DER, of a precertificate
	chain           [][32]byte // SHA-256 of each issuer certificate, the leaf's issuer first
	timestamped     []byte     // TimestampedEntry of RFC 6962, section 3.4: timestamp to extensions
}

// parseTileLeaf reads one whole TileLeaf. The result refers to b.
func parseTileLeaf(b []byte) (tileLeaf, error) {
	rest := cryptobyte.String(b)
	leaf, err := readTileLeaf(&rest)
	if err == nil && !rest.Empty() {
		err = fmt.Errorf("%d bytes of trailing data after a tile leaf", len(rest))
	}
	return leaf, err
}

// readTileLeaf takes one TileLeaf from the front of in.
func readTileLeaf(in *cryptobyte.String) (tileLeaf, error) {
	whole := *in
	var leaf tileLeaf
	var kind uint16
	var keyHash, prints []byte
	truncated := errors.New("truncated tile leaf")
	if !in.ReadUint64(&leaf.timestampMillis) || !in.ReadUint16(&kind) {
		return leaf, truncated
	}
	switch kind {
	case 0: // x509_entry
	case 1: // precert_entry
		leaf.precert = true
		if !in.ReadBytes(&keyHash, len(leaf.issuerKeyHash)) {
			return leaf, truncated
		}
		copy(leaf.issuerKeyHash[:], keyHash)
	default:
		return leaf, fmt.Errorf("unknown entry type %d in a tile leaf", kind)
	}
	if !in.ReadUint24LengthPrefixed((*cryptobyte.String)(&leaf.signed)) ||
		!in.ReadUint16LengthPrefixed((*cryptobyte.String)(&leaf.extensions)) {
		return leaf, truncated
	}
	leaf.timestamped = whole[:len(whole)-len(*in)]
	if leaf.precert && !in.ReadUint24LengthPrefixed((*cryptobyte.String)(&leaf.precertificate)) {
		return leaf, truncated
	}
	if !in.ReadUint16LengthPrefixed((*cryptobyte.String)(&prints)) {
		return leaf, truncated
	}
	if len(prints)%32 != 0 {
		return leaf, fmt.Errorf("%d bytes of fingerprints in a tile leaf", len(prints))
	}
	for ; len(prints) > 0; prints = prints[32:] {
		leaf.chain = append(leaf.chain, [32]byte(prints[:32]))
	}
	return leaf, nil
}

// plainLeaf returns the MerkleTreeLeaf of an entry, without extensions, and what its TileLeaf has
// behind that: so the two give the TileLeaf again.
func plainLeaf(e *ctonly.Entry) (leaf, extra []byte, err error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(e.Certificate)+64))
	b.AddBytes([]byte{0, 0}) // version v1, leaf_type timestamped_entry
	b.AddUint64(e.Timestamp)
	if e.IsPrecert {
		b.AddUint16(1)
		b.AddBytes(e.IssuerKeyHash)
	} else {
		b.AddUint16(0)
	}
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(e.Certificate) })
	b.AddUint16(0) // no extensions
	if leaf, err = b.Bytes(); err != nil {
		return nil, nil, err
	}
	b = cryptobyte.NewBuilder(make([]byte, 0, len(e.Precertificate)+32*len(e.FingerprintsChain)+8))
	if e.IsPrecert {
		b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(e.Precertificate) })
	}
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, fingerprint := range e.FingerprintsChain {
			b.AddBytes(fingerprint[:])
		}
	})
	extra, err = b.Bytes()
	return leaf, extra, err
}

// parsePlainLeaf reads what plainLeaf made.
func parsePlainLeaf(leaf, extra []byte) (tileLeaf, error) {
	if len(leaf) < 2 || leaf[0] != 0 || leaf[1] != 0 {
		return tileLeaf{}, errors.New("not a version 1 timestamped_entry")
	}
	parsed, err := parseTileLeaf(slices.Concat(leaf[2:], extra))
	if err == nil && (len(parsed.extensions) > 0 || len(parsed.timestamped) != len(leaf)-2) {
		err = errors.New("the leaf has extensions or does not end where its extensions do")
	}
	return parsed, err
}

// leafInput returns the MerkleTreeLeaf (RFC 6962, section 3.4), what the tree hashes.
func (l tileLeaf) leafInput() []byte {
	return append([]byte{0, 0}, l.timestamped...) // version v1, leaf_type timestamped_entry
}

// extraData returns what get-entries sends beside the leaf (RFC 6962, section 4.6): for a
// certificate ASN.1Cert certificate_chain<0..2^24-1>, for a precertificate PrecertChainEntry.
// issuer returns the DER of a certificate by its fingerprint.
func (l tileLeaf) extraData(issuer func(fingerprint [32]byte) ([]byte, error)) ([]byte, error) {
	b := cryptobyte.NewBuilder(nil)
	if l.precert {
		b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(l.precertificate) })
	}
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, fingerprint := range l.chain {
			der, err := issuer(fingerprint)
			if err != nil {
				b.SetError(err)
				return
			}
			b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(der) })
		}
	})
	return b.Bytes()
}
