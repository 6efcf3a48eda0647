package entry

import (
	"bytes"
	"testing"

	"github.com/theupdateframework/go-tuf/pkg/keys"
	"github.com/veraison/go-cose"
)

// agree wants that upstream takes what we take, and makes the same body of it.
func agree(t *testing.T, doc map[string]any) {
	t.Helper()
	e, err := propose(t, doc)
	checkEntry(t, e, err)
	if err != nil {
		return
	}
	body, _, err := upstreamMakes(t, doc)
	if err != nil {
		t.Fatalf("we take what upstream refuses: %v\n%s", err, e.Body)
	}
	if !bytes.Equal(body, e.Body) {
		t.Fatalf("bodies differ\nours   %s\ntheirs %s", e.Body, body)
	}
}

func FuzzTimeStamp(f *testing.F) {
	f.Add(timeStamp(f, newSigner(f, "P-256"), true))
	f.Add(timeStamp(f, newSigner(f, "RSA-2048"), true))
	f.Fuzz(func(t *testing.T, tsr []byte) { agree(t, timeStampDoc(tsr)) })
}

func FuzzMessage(f *testing.F) {
	s := newSigner(f, "P-256")
	f.Add(coseMessage(f, s, cose.AlgorithmES256, []byte(statementJSON), nil, inTotoType), []byte(nil))
	f.Add(coseMessage(f, s, cose.AlgorithmES256, []byte("x"), []byte("aad"), uint64(50)), []byte("aad"))
	f.Fuzz(func(t *testing.T, msg, aad []byte) { agree(t, coseDoc(msg, s.pem, aad)) })
}

func FuzzPackage(f *testing.F) {
	s := newSigner(f, "RSA-2048")
	f.Add(apkOf(f, s, pkginfoText))
	f.Fuzz(func(t *testing.T, content []byte) { agree(t, alpineDoc(content, s.pem)) })
}

// FuzzPkginfo signs what it finds, so that upstream reads it too.
func FuzzPkginfo(f *testing.F) {
	s := newSigner(f, "RSA-2048")
	f.Add(pkginfoText)
	f.Add("[section]\na = b\n[DEFAULT]\nc: 'd'")
	f.Add("; comment\n\"a = b\" = \"c\"\n\xef\xbb\xbf")
	f.Fuzz(func(t *testing.T, info string) {
		if len(info) > 4096 {
			return
		}
		agree(t, alpineDoc(apkOf(t, s, info), s.pem))
	})
}

func FuzzArchive(f *testing.F) {
	s := newSigner(f, "P-256")
	f.Add(jarOf(f, s, manifestText(), signatureText(manifestText())))
	f.Fuzz(func(t *testing.T, content []byte) { agree(t, jarDoc(content)) })
}

// FuzzManifest signs what it finds, so that upstream reads it too.
func FuzzManifest(f *testing.F) {
	s := newSigner(f, "P-256")
	f.Add(manifestText(), signatureText(manifestText()))
	f.Add(manifestHead, "A: b\n\nName: x\nSHA1-Digest: y\n\n")
	f.Fuzz(func(t *testing.T, manifest, signatureFile string) {
		agree(t, jarDoc(jarOf(t, s, manifest, signatureText(manifest))))
		agree(t, jarDoc(jarOf(t, s, manifest, signatureFile)))
	})
}

func FuzzMetadata(f *testing.F) {
	neverExpired(f)
	root, stamp := tufRepository(f, func() (keys.Signer, error) { return keys.GenerateEd25519Key() })
	f.Add(stamp, root)
	f.Add(root, root)
	f.Fuzz(func(t *testing.T, metadata, root []byte) { agree(t, tufDoc(metadata, root)) })
}
