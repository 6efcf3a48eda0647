package log

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	ctgo "github.com/google/certificate-transparency-go"
	cttls "github.com/google/certificate-transparency-go/tls"
)

// merkleTreeLeaf encodes with the reference.
func merkleTreeLeaf(t testing.TB, timestamp uint64, keyHash *[32]byte, certificate, extensions string) []byte {
	t.Helper()
	entry := &ctgo.TimestampedEntry{Timestamp: timestamp, EntryType: ctgo.X509LogEntryType, Extensions: ctgo.CTExtensions(extensions)}
	if keyHash == nil {
		entry.X509Entry = &ctgo.ASN1Cert{Data: []byte(certificate)}
	} else {
		entry.EntryType = ctgo.PrecertLogEntryType
		entry.PrecertEntry = &ctgo.PreCert{IssuerKeyHash: *keyHash, TBSCertificate: []byte(certificate)}
	}
	leaf, err := cttls.Marshal(ctgo.MerkleTreeLeaf{Version: ctgo.V1, LeafType: ctgo.TimestampedEntryLeafType, TimestampedEntry: entry})
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func TestPlainIdentityIsThatOfWhatTheSCTCertifies(t *testing.T) {
	seen := map[[32]byte]string{}
	for name, leaf := range map[string][]byte{
		"certificate":                         merkleTreeLeaf(t, 1, nil, "aa", ""),
		"precertificate":                      merkleTreeLeaf(t, 1, &[32]byte{}, "aa", ""),
		"precertificate of another issuer":    merkleTreeLeaf(t, 1, &[32]byte{1}, "aa", ""),
		"other certificate":                   merkleTreeLeaf(t, 1, nil, "ab", ""),
		"certificate that looks like a TBS":   merkleTreeLeaf(t, 1, nil, strings.Repeat("\x00", 32)+"\x00\x00\x02aa", ""),
		"precertificate with a longer TBS":    merkleTreeLeaf(t, 1, &[32]byte{}, "aaa", ""),
		"precertificate with an empty suffix": merkleTreeLeaf(t, 1, &[32]byte{}, "aa\x00", ""),
	} {
		identity, err := CTPlainIdentity(leaf)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if other, ok := seen[identity]; ok {
			t.Errorf("%s and %s have one identity", name, other)
		}
		seen[identity] = name
		later := bytes.Clone(leaf)
		later[9] = 77 // the timestamp's last byte
		if again, err := CTPlainIdentity(later); err != nil || again != identity {
			t.Errorf("%s at another time has another identity: %v", name, err)
		}
	}
}

func TestPlainLeavesThatAreRefused(t *testing.T) {
	good := merkleTreeLeaf(t, 1, nil, "aa", "")
	edit := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for name, leaf := range map[string][]byte{
		"nothing":              nil,
		"another version":      edit(0, 1),
		"another leaf type":    edit(1, 1),
		"another entry type":   edit(11, 2),
		"extensions":           merkleTreeLeaf(t, 1, nil, "aa", "\x00\x00\x05\x00\x00\x00\x00\x00"),
		"trailing data":        append(bytes.Clone(good), 0),
		"an empty certificate": append(bytes.Clone(good[:12]), 0, 0, 0, 0, 0),
	} {
		if _, err := CTPlainIdentity(leaf); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for n := range good {
		if _, err := CTPlainIdentity(good[:n]); err == nil {
			t.Errorf("the first %d bytes: no error", n)
		}
	}
}

func TestBundleOfPlainLeaves(t *testing.T) {
	leaves := [][]byte{merkleTreeLeaf(t, 1<<40, nil, "aa", ""), merkleTreeLeaf(t, 2, &[32]byte{9}, "bb", "")}
	var bundle []byte
	for _, leaf := range leaves {
		bundle = binary.BigEndian.AppendUint16(bundle, uint16(len(leaf)))
		bundle = append(bundle, leaf...)
	}
	parsed, err := parseBundle(CTPlain, bundle)
	if err != nil || len(parsed) != 2 {
		t.Fatalf("%d leaves: %v", len(parsed), err)
	}
	for i, leaf := range parsed {
		var reference ctgo.MerkleTreeLeaf
		if _, err := cttls.Unmarshal(leaves[i], &reference); err != nil {
			t.Fatal(err)
		}
		hash, err := ctgo.LeafHashForLeaf(&reference)
		if err != nil {
			t.Fatal(err)
		}
		if leaf.leafHash != hash || leaf.timestampMillis != reference.TimestampedEntry.Timestamp || !bytes.Equal(leaf.data, leaves[i]) {
			t.Errorf("leaf %d is read as %+v", i, leaf)
		}
	}
	if _, err := parseBundle(CTPlain, bundle[:len(bundle)-1]); err == nil {
		t.Error("a truncated bundle is read")
	}
}

// FuzzMerkleTreeLeaf: what we read, the reference reads alike.
func FuzzMerkleTreeLeaf(f *testing.F) {
	f.Add(merkleTreeLeaf(f, 1, nil, "aa", ""))
	f.Add(merkleTreeLeaf(f, 1, &[32]byte{1}, "aa", ""))
	f.Add(merkleTreeLeaf(f, 1, nil, "aa", "\x00\x00\x05\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		leaf, err := parseMerkleTreeLeaf(raw)
		var reference ctgo.MerkleTreeLeaf
		rest, refErr := cttls.Unmarshal(raw, &reference)
		good := refErr == nil && len(rest) == 0 && reference.Version == ctgo.V1 && reference.LeafType == ctgo.TimestampedEntryLeafType &&
			reference.TimestampedEntry.JSONEntry == nil && len(reference.TimestampedEntry.Extensions) == 0
		if (err == nil) != good {
			t.Fatalf("we say %v, the reference %v with %d bytes left", err, refErr, len(rest))
		}
		if err == nil && leaf.timestampMillis != reference.TimestampedEntry.Timestamp {
			t.Fatal("another timestamp")
		}
	})
}
