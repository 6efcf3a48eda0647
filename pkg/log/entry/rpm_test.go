package entry

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attestry/attestry/internal/fault"
)

func rpmDoc(key, file []byte) map[string]any {
	return proposal("rpm", "0.0.1", map[string]any{"publicKey": map[string]any{"content": key}, "package": map[string]any{"content": file}})
}

// rpmValue is a tag to write: strings are written with their NUL by the caller.
type rpmValue struct {
	tag, kind, count uint32
	data             string
}

// rpmHeaderOf writes a header in which values follow each other.
func rpmHeaderOf(values ...rpmValue) []byte {
	var index, store []byte
	for _, v := range values {
		for _, n := range []uint32{v.tag, v.kind, uint32(len(store)), v.count} {
			index = binary.BigEndian.AppendUint32(index, n)
		}
		store = append(store, v.data...)
	}
	head := []byte{0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0}
	head = binary.BigEndian.AppendUint32(head, uint32(len(values)))
	head = binary.BigEndian.AppendUint32(head, uint32(len(store)))
	return append(append(head, index...), store...)
}

func rpmText(tag uint32, text string) rpmValue { return rpmValue{tag, rpmString, 1, text + "\x00"} }

var rpmNames = []rpmValue{rpmText(rpmName, "a"), rpmText(rpmVersion, "1"), rpmText(rpmRelease, "2"), rpmText(rpmArch, "noarch")}

// rpmFileOf writes a package.
func rpmFileOf(signature, general []byte, payload string) []byte {
	file := append([]byte{0xed, 0xab, 0xee, 0xdb}, make([]byte, 92)...)
	file = append(file, signature...)
	for (len(file)-96)%8 != 0 {
		file = append(file, 0)
	}
	return append(append(file, general...), payload...)
}

func TestRefusedRPMs(t *testing.T) {
	key, good := sample(t, "pgp/rsa.gpg"), sample(t, "rpm/rsa.rpm")
	v3 := sample(t, "rpm/rsa.v3.rpm")
	flip := func(file []byte, at int) []byte {
		changed := bytes.Clone(file)
		changed[(at+len(file))%len(file)] ^= 1
		return changed
	}
	p, err := parseRPM(good)
	if err != nil {
		t.Fatal(err)
	}
	blob, _, err := p.signature.binary(rpmSigRSA)
	if err != nil {
		t.Fatal(err)
	}
	general := rpmHeaderOf(rpmNames...)
	with := func(more ...rpmValue) []byte {
		return rpmHeaderOf(append(rpmNames[:len(rpmNames):len(rpmNames)], more...)...)
	}
	sum := func(data []byte) string { s := md5.Sum(data); return string(s[:]) }
	// of makes a package whose digests are right.
	of := func(general []byte, signatures ...rpmValue) map[string]any {
		return rpmDoc(key, rpmFileOf(rpmHeaderOf(append(signatures, rpmValue{rpmSigMD5, rpmBinary, 16, sum(append(bytes.Clone(general), "payload"...))})...), general, "payload"))
	}
	raw := func(signature []byte) map[string]any { return rpmDoc(key, rpmFileOf(signature, general, "payload")) }
	headerSum := sha256.Sum256(general)
	rsaSig := rpmValue{rpmSigRSA, rpmBinary, uint32(len(blob)), string(blob)}
	large := rpmHeaderOf()
	binary.BigEndian.PutUint32(large[12:], maxRPMStore+1)
	crowd := rpmHeaderOf()
	binary.BigEndian.PutUint32(crowd[8:], 0x10000001)
	overlap := rpmHeaderOf(rpmText(1, "abc"), rpmText(2, "def"))
	binary.BigEndian.PutUint32(overlap[16+8:], 4)
	binary.BigEndian.PutUint32(overlap[16+16+8:], 0)
	binary.BigEndian.PutUint32(overlap[16+16+12:], 2)
	negative := rpmHeaderOf(rpmText(1, "abc"))
	binary.BigEndian.PutUint32(negative[16+8:], 0xffffffff)
	truncated := "truncated"
	checkRefusals(t, map[string]refusal{
		"no key":                    {set(t, rpmDoc(key, good), "spec.publicKey", nil), "missing_field", "publicKey.content in body is required"},
		"no package":                {set(t, rpmDoc(key, good), "spec.package", nil), "missing_field", "package.content in body is required"},
		"another digest":            {set(t, rpmDoc(key, good), "spec.package.hash", digest{"sha256", strings.Repeat("00", 32)}), "hash_mismatch", "SHA mismatch"},
		"another key":               {rpmDoc(sample(t, "pgp/ed.gpg"), good), "bad_signature", "the signature is of another key"},
		"no signature":              {rpmDoc(key, sample(t, "rpm/unsigned.rpm")), "bad_signature", "the package has no PGP signature"},
		"a payload that changed":    {rpmDoc(key, flip(good, -1)), "bad_package", "the payload does not have the digest"},
		"a header that changed":     {rpmDoc(key, flip(good, len(good)-len(p.payload)-1)), "bad_package", "the header does not have the digest"},
		"a signature that changed":  {rpmDoc(key, bytes.Replace(good, blob[len(blob)-20:], flip(blob[len(blob)-20:], 3), 1)), "bad_signature", "RSA verification failure"},
		"another payload signed":    {rpmDoc(key, bytes.Replace(v3, v3Blob(t, v3)[len(blob)-20:], flip(v3Blob(t, v3)[len(blob)-20:], 3), 1)), "bad_signature", "signature of tag 1002"},
		"text":                      {rpmDoc(key, []byte("not a package")), "bad_package", "not an RPM file"},
		"a lead":                    {rpmDoc(key, good[:96]), "bad_package", "signature header: no header"},
		"one header":                {rpmDoc(key, good[:96+len(p.signature.raw)]), "bad_package", "header: no header"},
		"half a header":             {rpmDoc(key, good[:300]), "bad_package", truncated},
		"2^28 tags":                 {raw(crowd), "bad_package", "over the limits"},
		"a store over the limit":    {raw(large), "bad_package", "over the limits"},
		"values over others":        {raw(overlap), "bad_package", "over others' values"},
		"an offset that is too far": {raw(negative), "bad_package", "outside of the store"},
		"a value that is too long":  {raw(rpmHeaderOf(rpmValue{1, rpmBinary, 9, "12345678"})), "bad_package", "outside of the store"},
		"4 Gi strings":              {raw(rpmHeaderOf(rpmValue{1, rpmStrings, 0xffffffff, "\x00\x00"})), "bad_package", "outside of the store"},
		"64-bit numbers, 2^29":      {raw(rpmHeaderOf(rpmValue{1, rpmInt64, 1 << 24, "12345678"})), "bad_package", "outside of the store"},
		"a string without end":      {rpmDoc(key, rpmFileOf(rpmHeaderOf(), rpmHeaderOf(rpmValue{1, rpmString, 1, "abc"}), "")), "bad_package", "without end"},
		"a tag twice":               {raw(rpmHeaderOf(rpmText(1, "a"), rpmText(1, "b"))), "bad_package", "tag 1 is there twice"},
		"no name":                   {rpmDoc(key, rpmFileOf(rpmHeaderOf(rsaSig), rpmHeaderOf(rpmNames[1:]...), "")), "bad_package", "header has no tag 1000"},
		"a name that is a number":   {of(rpmHeaderOf(append(rpmNames[1:4:4], rpmValue{rpmName, rpmInt32, 1, "1234"})...)), "bad_package", "tag 1000 holds no string"},
		"no names":                  {of(rpmHeaderOf(append(rpmNames[1:4:4], rpmValue{rpmName, rpmStrings, 0, ""})...)), "bad_package", "tag 1000 holds no string"},
		"an epoch that is text":     {of(with(rpmText(rpmEpoch, "1"))), "bad_package", "tag 1003 holds no number"},
		"an empty epoch":            {of(with(rpmValue{rpmEpoch, rpmInt32, 0, ""})), "bad_package", "tag 1003 holds no number"},
		"an MD5 that is text":       {raw(rpmHeaderOf(rpmText(rpmSigMD5, "abc"))), "bad_package", "tag 1004 is not binary"},
		"no digest of the payload":  {raw(rpmHeaderOf(rsaSig)), "bad_package", "names no digest of its payload"},
		"an unknown digest":         {of(with(rpmText(rpmPayloadDigest, "00"), rpmValue{rpmPayloadDigestAlgo, rpmInt32, 1, "\x00\x00\x00\x63"})), "bad_package", "unknown algorithm 99"},
		"a digest by MD5":           {of(with(rpmText(rpmPayloadDigest, "00"), rpmValue{rpmPayloadDigestAlgo, rpmInt32, 1, "\x00\x00\x00\x01"})), "bad_package", "unknown algorithm 1"},
		"another header digest":     {of(general, rpmText(rpmSigSHA1, "00")), "bad_package", "the header does not have the digest"},
		"a header digest of bytes":  {of(general, rpmValue{rpmSigSHA256, rpmBinary, 2, "00"}), "bad_package", "tag 273 holds no string"},
		"a signature of another":    {of(general, rpmText(rpmSigSHA256, hex.EncodeToString(headerSum[:])), rsaSig), "bad_signature", "signature of tag 268: openpgp: invalid signature"},
		"a signature that is text":  {of(general, rpmText(rpmSigDSA, "x")), "bad_signature", "tag 267 is not binary"},
		"an empty signature":        {of(general, rpmValue{rpmSigGPG, rpmBinary, 0, ""}), "bad_signature", "signature of tag 1005"},
		"two signatures in one":     {of(general, rpmValue{rpmSigPGP, rpmBinary, uint32(2 * len(blob)), string(blob) + string(blob)}), "bad_signature", "not one PGP signature"},
		"compressed data":           {of(general, rpmValue{rpmSigPGP, rpmBinary, 3, "\xc8\x01\x01"}), "bad_signature", "compressed OpenPGP data"},
		"a signature in armor":      {of(general, rpmValue{rpmSigPGP, rpmBinary, 10, "-----BEGIN"}), "bad_signature", "not an OpenPGP packet"},
	})
}

func v3Blob(t *testing.T, file []byte) []byte {
	p, err := parseRPM(file)
	if err != nil {
		t.Fatal(err)
	}
	blob, given, err := p.signature.binary(rpmSigPGP)
	if err != nil || !given {
		t.Fatalf("no signature over header and payload: %v", err)
	}
	return blob
}

// TestHalfRPMs cuts a package everywhere.
func TestHalfRPMs(t *testing.T) {
	key, file := sample(t, "pgp/rsa.gpg"), sample(t, "rpm/rsa.rpm")
	for n := 1; n < len(file); n += 7 {
		if _, err := propose(t, rpmDoc(key, file[:n])); fault.KindOf(err) != fault.Invalid {
			t.Fatalf("%d of %d bytes: %v", n, len(file), err)
		}
	}
}

func FuzzRPM(f *testing.F) {
	names, err := filepath.Glob(filepath.Join("testdata", "rpm", "*"))
	if err != nil || len(names) == 0 {
		f.Fatal(err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add(rpmFileOf(rpmHeaderOf(), rpmHeaderOf(rpmNames...), ""))
	f.Fuzz(func(t *testing.T, file []byte) {
		p, err := parseRPM(file)
		if err != nil {
			return
		}
		if whole := 96 + len(p.signature.raw) + len(p.general.raw) + len(p.payload); whole != len(file) || !bytes.HasSuffix(file, p.signed()) {
			t.Fatalf("%d of %d bytes", whole, len(file))
		}
		claimed := 0
		for _, tag := range p.general.tags {
			claimed += len(tag.data)
		}
		if claimed > len(p.general.raw) {
			t.Fatalf("values of %d bytes in %d", claimed, len(p.general.raw))
		}
		if _, err := p.headers(); err != nil {
			return
		}
		if p.checkDigests() != nil {
			return
		}
		if err := p.verify(pgpKeys{}); err == nil {
			t.Fatal("a package verifies without keys")
		}
	})
}
