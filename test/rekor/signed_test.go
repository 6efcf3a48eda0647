package rekor

import (
	"bytes"
	"crypto/md5"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// pgpSigner is a key that signs what fuzzers make, so that it gets behind the check of the signature.
type pgpSigner struct {
	*openpgp.Entity
	public []byte
}

func newPGPSigner(t testing.TB) pgpSigner {
	t.Helper()
	e, err := openpgp.NewEntity("Alice", "", "alice@example.com", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := e.Serialize(&buf); err != nil {
		t.Fatal(err)
	}
	return pgpSigner{e, buf.Bytes()}
}

// chart is a provenance file whose second part is sums.
func (s pgpSigner) chart(t testing.TB, sums string) []byte {
	var out bytes.Buffer
	w, err := clearsign.Encode(&out, s.PrivateKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("name: a\n\n...\n" + sums)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// header is an RPM header of an index and a store.
func header(index, store []byte) []byte {
	head := []byte{0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0}
	head = binary.BigEndian.AppendUint32(head, uint32(len(index)/16))
	head = binary.BigEndian.AppendUint32(head, uint32(len(store)))
	return append(append(head, index[:len(index)/16*16]...), store...)
}

// packageOf signs a general header, and makes the rest of a package around it.
func (s pgpSigner) packageOf(t testing.TB, general []byte) []byte {
	var blob bytes.Buffer
	if err := openpgp.DetachSign(&blob, s.Entity, bytes.NewReader(general), nil); err != nil {
		t.Fatal(err)
	}
	sum := md5.Sum(append(bytes.Clone(general), "payload"...))
	var index []byte
	for _, n := range []int{268, 7, 0, blob.Len(), 1004, 7, blob.Len(), len(sum)} {
		index = binary.BigEndian.AppendUint32(index, uint32(n))
	}
	file := append([]byte{0xed, 0xab, 0xee, 0xdb}, make([]byte, 92)...)
	file = append(file, header(index, append(blob.Bytes(), sum[:]...))...)
	for len(file)%8 != 0 { // the lead has 96 octets
		file = append(file, 0)
	}
	return append(append(file, general...), "payload"...)
}

var chartSums = []string{
	"files:\n  a.tgz: SUM\n",
	"\"files\":\n  'a.tgz': \"SUM\"\n",
	"{files: {a.tgz: \"SUM\"}}",
	"files:\n  a.tgz: SUM\nimages:\n  x/y:1: sha256:00\n",
	"# of a chart\nfiles:\n  -a.tgz: SUM\n",
	"files:\n  yes: SUM\n", "files:\n  ~: SUM\n", "files:\n  1.0: SUM\n", "files:\n  ? a\n  : SUM\n", "files:\n  a: |\n    SUM\n",
	"files:\n  a: SUM\nFiles:\n  b: SUM\n", "files: &a\n  a: SUM\nimages: *a\n", "files:\n  a: SUM\n---\nfiles: {}\n", "files:\n  2001-01-01: SUM\n",
}

// FuzzChartSums signs what stands in a provenance file's second part; SUM is a digest.
func FuzzChartSums(f *testing.F) {
	s := newPGPSigner(f)
	for _, sums := range chartSums {
		f.Add(sums)
	}
	f.Fuzz(func(t *testing.T, sums string) {
		checkFuzzed(t, helm(s.public, s.chart(t, strings.ReplaceAll(sums, "SUM", "sha256:"+strings.Repeat("0a", 32)))))
	})
}

// generalHeaders are headers of one tag, of two and so on; a package needs the first four.
func generalHeaders() [][]byte {
	var index, store []byte
	var headers [][]byte
	for _, v := range []struct {
		tag, kind, count uint32
		data             string
	}{
		{1000, 6, 1, "name\x00"}, {1001, 6, 1, "1.0\x00"}, {1002, 9, 1, "3\x00"}, {1022, 8, 2, "noarch\x00x\x00"},
		{1003, 4, 1, "\x00\x00\x00\x02"}, {5000, 0, 7, ""}, {5001, 3, 2, "\x01\x02\x03\x04"}, {5002, 5, 1, "\x01\x02\x03\x04\x05\x06\x07\x08"}, {5003, 7, 3, "abc"},
	} {
		for _, n := range []uint32{v.tag, v.kind, uint32(len(store)), v.count} {
			index = binary.BigEndian.AppendUint32(index, n)
		}
		store = append(store, v.data...)
		headers = append(headers, header(index, store))
	}
	return headers
}

// FuzzRPMHeaders signs any general header.
func FuzzRPMHeaders(f *testing.F) {
	s := newPGPSigner(f)
	for _, general := range generalHeaders() {
		f.Add(general)
	}
	f.Fuzz(func(t *testing.T, general []byte) { checkFuzzed(t, rpm(s.public, s.packageOf(t, general))) })
}
