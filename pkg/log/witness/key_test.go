package witness

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	cosignature "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

func TestKeysHaveTheHashesOfThePublishedVectors(t *testing.T) {
	public := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	for _, tt := range []struct {
		name string
		kind KeyType
		want uint32
	}{
		{"tlog.example.test", Ed25519, 0x30b754f9},
		{"witness.example.test", CosignEd25519, 0x70e3fba6},
	} {
		k, err := newKey(tt.name, tt.kind, public)
		if err != nil || k.Hash() != tt.want {
			t.Errorf("%s: %08x, %v, want %08x", tt.name, k.Hash(), err, tt.want)
		}
		again, err := ParseKey(k.String())
		if err != nil || again.String() != k.String() || again.Type() != tt.kind {
			t.Errorf("ParseKey(%s) = %s, %v", k, again, err)
		}
	}
}

func TestACheckpointOfThePublishedVectorsVerifies(t *testing.T) {
	golden := "tlog.example.test\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n" +
		"— tlog.example.test MLdU+Y5yX4+1PecncE1OK4+TWWumGecdsNaU7vBpx/IR/s7Mh+o1uJdOeKKfCKGpVeP3AXGSyoCEujLpUHsmxDfbVAI=\n"
	key, err := LogKey("tlog.example.test", ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public())
	if err != nil {
		t.Fatal(err)
	}
	c, sigs, err := parseNote([]byte(golden))
	if err != nil || len(sigs) != 1 || !key.signed(c.text, sigs[0]) {
		t.Fatalf("%+v %v %v", c, sigs, err)
	}
	if sigs[0].line() != golden[strings.Index(golden, "—"):] {
		t.Errorf("line = %q", sigs[0].line())
	}
}

// The example of c2sp.org/tlog-cosignature.
func TestTheSpecificationsCosignatureIsRead(t *testing.T) {
	const line = "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
	sigs, err := parseSignatures([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	unix, err := cosignedUnix(sigs[0])
	if err != nil || unix != 1679315147 || sigs[0].name != "witness.example.com/w1" || sigs[0].hash != 0x8d66cf3f {
		t.Errorf("%+v, %d, %v", sigs[0], unix, err)
	}
}

func TestOurCosignaturesAreThoseOfAnotherImplementation(t *testing.T) {
	l := newTestLog(t, "log.example.test", newEd25519Key('l'), 7, "leaf")
	c, err := newCosigner("witness.example.test", newEd25519Key('w'))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := c.sign([]byte(l.text(7)), uint64(began.Unix()))
	if err != nil {
		t.Fatal(err)
	}
	v, err := cosignature.NewVerifierForCosignatureV1(c.key.String())
	if err != nil {
		t.Fatal(err)
	}
	whole := append(l.checkpoint(7), sig.line()...)
	n, err := note.Open(whole, note.VerifierList(v))
	if err != nil {
		t.Fatal(err)
	}
	at, err := cosignature.CoSigV1Timestamp(n.Sigs[0])
	if err != nil || !at.Equal(began) {
		t.Errorf("time %v, %v", at, err)
	}
	changed := bytes.Replace(whole, []byte("\n7\n"), []byte("\n8\n"), 1)
	if _, err := note.Open(changed, note.VerifierList(v)); err == nil {
		t.Error("the cosignature holds for another size")
	}
}

func TestKeysThatAreNone(t *testing.T) {
	l := newTestLog(t, "log.example.test", newEd25519Key('l'), 0, "")
	good := l.vkey().String()
	name, rest, _ := strings.Cut(good, "+")
	hash, key, _ := strings.Cut(rest, "+")
	for _, tt := range []struct{ name, text, want string }{
		{"nothing", "", "is not NAME+HASH+KEY"},
		{"two parts", name + "+" + hash, "is not NAME+HASH+KEY"},
		{"another hash", name + "+00000000+" + key, "the hash of this name and key is " + hash},
		{"a hash in capitals", name + "+" + strings.ToUpper(hash) + "+" + key, "the hash of this name and key is"},
		{"another name", "log2.example.test+" + hash + "+" + key, "the hash of this name and key is"},
		{"no name", "+" + hash + "+" + key, "a key needs a name"},
		{"a name with a space", "a b+" + hash + "+" + key, "without spaces"},
		{"not base64", name + "+" + hash + "+" + key + "!", "not a key in base64"},
		{"a line end in base64", name + "+" + hash + "+" + key[:8] + "\r" + key[8:], "not a key in base64"},
		{"an unknown type", name + "+" + hash + "+fwAA", "signature type 0x7f is not supported"},
		{"a short key", name + "+" + hash + "+AQAA", "malformed"},
		{"an ECDSA key that is none", name + "+" + hash + "+AgAA", "asn1"},
		{"a name of 300 bytes", strings.Repeat("a", 300) + "+" + hash + "+" + key, "over 255 bytes"},
		{"a megabyte", strings.Repeat("a", 1<<20), "over 4096 bytes"},
	} {
		if _, err := ParseKey(tt.text); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestNotesThatAreNone(t *testing.T) {
	l := newTestLog(t, "log.example.test", newEd25519Key('l'), 9, "leaf")
	good := string(l.checkpoint(9))
	text, line, _ := strings.Cut(good, "\n\n")
	root := strings.Split(text, "\n")[2]
	for _, tt := range []struct{ name, note string }{
		{"no signatures", text + "\n"},
		{"an empty signature block", text + "\n\n"},
		{"no newline at the end", strings.TrimSuffix(good, "\n")},
		{"two blank lines", text + "\n\n\n" + line},
		{"a blank line inside", strings.Replace(good, "\n9\n", "\n\n9\n", 1)},
		{"no root", "log.example.test\n9\n\n" + line},
		{"no origin", "\n9\n" + root + "\n\n" + line},
		{"a size with a zero before it", strings.Replace(good, "\n9\n", "\n09\n", 1)},
		{"a negative size", strings.Replace(good, "\n9\n", "\n-9\n", 1)},
		{"a size over 63 bits", strings.Replace(good, "\n9\n", "\n9223372036854775808\n", 1)},
		{"a short root", strings.Replace(good, root, "AAAA", 1)},
		{"a root with loose bits", strings.Replace(good, root, root[:42]+string(root[42]+1)+"=", 1)},
		{"a control character", strings.Replace(good, "log.", "log\t.", 1)},
		{"not UTF-8", strings.Replace(good, "log.", "log\xff.", 1)},
		{"a hyphen for the dash", strings.Replace(good, "—", "-", 1)},
		{"65 signatures", text + "\n\n" + strings.Repeat(line, 65)},
		{"a text of 5 KiB", strings.Replace(good, root, root+"\n"+strings.Repeat("x", 5<<10), 1)},
		{"200 KiB", text + "\n\n" + strings.Repeat("x", 200<<10) + "\n"},
	} {
		if c, _, err := parseNote([]byte(tt.note)); err == nil {
			t.Errorf("%s: read as %+v", tt.name, c)
		}
	}
}

// FuzzNote holds our reader against x/mod's: what ours takes, that one takes, and verifies alike.
func FuzzNote(f *testing.F) {
	l := newTestLog(f, "log.example.test", newEd25519Key('l'), 9, "leaf")
	key := l.vkey()
	f.Add(l.checkpoint(9))
	f.Add(l.checkpoint(0))
	f.Add(l.signed(l.text(3) + "extension\n"))
	f.Add(append(l.checkpoint(9), "— other.example AAAAAAA=\n"...))
	verifier, err := note.NewVerifier(key.String())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, sigs, err := parseNote(data)
		if err != nil {
			return
		}
		first := true // x/mod looks at the first signature of a key alone
		verified := false
		for _, s := range sigs {
			if s.name == key.name && s.hash == key.Hash() && first {
				first, verified = false, key.signed(c.text, s)
			}
		}
		n, err := note.Open(data, note.VerifierList(verifier))
		if verified != (err == nil) {
			t.Fatalf("ours verifies: %v; x/mod: %v\n%q", verified, err, data)
		}
		if n != nil && n.Text != string(c.text) {
			t.Fatalf("texts differ: %q, %q", c.text, n.Text)
		}
		if want := fmt.Sprintf("%s\n%d\n", c.origin, c.size); !strings.HasPrefix(string(c.text), want) {
			t.Fatalf("%q does not begin with %q", c.text, want)
		}
	})
}

// FuzzKey: what is read is written again the same.
func FuzzKey(f *testing.F) {
	l := newTestLog(f, "log.example.test", newEd25519Key('l'), 0, "")
	f.Add(l.vkey().String())
	f.Add(newTestLog(f, "log.example.test", newP256Key(f), 0, "").vkey().String())
	f.Add("witness.example.test+70e3fba6+BDtqJ7zOtqQtYqPI0CpvDXNlMhV3HeJDpjrASKGLWdop")
	f.Fuzz(func(t *testing.T, text string) {
		k, err := ParseKey(text)
		if err != nil {
			return
		}
		if k.String() != text {
			t.Fatalf("%q is read as %s", text, k)
		}
		if k.signed([]byte("text\n"), signature{name: k.name, hash: k.Hash(), blob: []byte(text)}) {
			t.Fatalf("%q has signed a text", text)
		}
	})
}

func TestLogKeysOfOtherKindsAreRefused(t *testing.T) {
	if _, err := LogKey("log.example.test", []byte("no key")); err == nil || !strings.Contains(err.Error(), "use Ed25519 or ECDSA P-256") {
		t.Error(err)
	}
	raw, err := hex.DecodeString("3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LogKey("a+b", ed25519.PublicKey(raw)); err == nil {
		t.Error("a name with a plus sign is taken")
	}
}
