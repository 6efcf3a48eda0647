package entry

import (
	"archive/zip"
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/textproto"
	"path"
	"strings"

	"github.com/sassoftware/relic/lib/pkcs9"

	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// Bounds of an archive.
const (
	maxJARFiles    = 65535
	maxJARMetadata = 1 << 20   // inflated bytes of one file in META-INF, upstream's limit
	maxJARInflated = 256 << 20 // inflated bytes of all files that are read
)

// jarSpec is Rekor v1's jar 0.0.1: the digest of a signed Java archive, and its signature block.
type jarSpec struct {
	Archive struct {
		Hash digest `json:"hash"`
	} `json:"archive"`
	Signature struct {
		Content   []byte `json:"content"` // PEM "PKCS7", detached
		PublicKey struct {
			Content []byte `json:"content"` // PEM of the block's first certificate, whoever it is of
		} `json:"publicKey"`
	} `json:"signature"`
}

// proposeJAR reads {"archive":{"content":<base64 .jar>,"hash":{…}}}; the hash may be left out. The
// archive must have exactly one signer, whose signature covers the manifest, and every file that
// the manifest names must have the digests it gives.
func proposeJAR(v ijson.Value) (Entry, error) {
	if v.Get("signature").Given() {
		return Entry{}, invalid("bad_field", nil, "signature is computed and cannot be submitted")
	}
	content, err := decoded(v.Get("archive").Get("content"), "archive.content")
	if err != nil {
		return Entry{}, err
	}
	var s jarSpec
	s.Archive.Hash = sha256Digest(content)
	if err := checkClaim(v.Get("archive").Get("hash"), "archive.hash", s.Archive.Hash); err != nil {
		return Entry{}, err
	}
	j, err := openJAR(content)
	if err != nil {
		return Entry{}, invalid("bad_archive", err, "archive: %v", err)
	}
	block, certificate, err := j.verifyBlock()
	if err != nil {
		return Entry{}, invalid("bad_signature", err, "archive signature: %v", err)
	}
	if err := j.verifySignatureFile(); err != nil {
		return Entry{}, invalid("bad_signature", err, "archive signature: %v", err)
	}
	if err := j.verifyFiles(); err != nil {
		return Entry{}, invalid("bad_archive", err, "archive: %v", err)
	}
	s.Signature.Content = pem.EncodeToMemory(&pem.Block{Type: "PKCS7", Bytes: block})
	s.Signature.PublicKey.Content = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
	keys, err := s.keys()
	if err != nil {
		return Entry{}, err
	}
	return newEntry("jar", "0.0.1", s, keys, nil)
}

// keys are the signature block's digest and the archive's: upstream takes the block for the key.
func (s jarSpec) keys() ([]string, error) {
	return append(pemKeys(s.Signature.Content), s.Archive.Hash.key()), nil
}

// jar is an archive with its three files of a signature (JAR File Specification, "Signed JAR File").
type jar struct {
	files          map[string]*zip.File
	unread         int64  // what may still be inflated
	manifest       []byte // META-INF/MANIFEST.MF: digests of files
	signatureFile  []byte // META-INF/<signer>.SF: digests of the manifest
	signatureBlock []byte // META-INF/<signer>.RSA, .DSA or .EC: CMS signature of the .SF file
}

func openJAR(content []byte) (*jar, error) {
	if bytes.Count(content, []byte("PK\x01\x02")) > maxJARFiles { // heads of directory entries
		return nil, fmt.Errorf("it has more than %d files", maxJARFiles)
	}
	r, err := zip.NewReader(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		return nil, err
	}
	j := &jar{files: make(map[string]*zip.File, len(r.File)), unread: maxJARInflated}
	metadata := map[string][]byte{}
	var signers, blocks []string
	for _, f := range r.File {
		if j.files[f.Name] != nil && !strings.HasSuffix(f.Name, "/") {
			return nil, fmt.Errorf("it has two files named %q", f.Name)
		}
		j.files[f.Name] = f
		dir, name := path.Split(strings.ToUpper(f.Name))
		ext := path.Ext(name)
		if dir != "META-INF/" || ext == "" {
			continue
		}
		if metadata[name] != nil {
			return nil, fmt.Errorf("it has two files named META-INF/%s", name)
		}
		if metadata[name], err = j.read(f, maxJARMetadata); err != nil {
			return nil, err
		}
		base := strings.TrimSuffix(name, ext)
		switch {
		case strings.HasPrefix(name, "SIG-"):
			return nil, fmt.Errorf("the signature META-INF/%s is of an unknown kind", name)
		case ext == ".SF":
			signers = append(signers, base)
		case ext == ".RSA" || ext == ".DSA" || ext == ".EC":
			blocks = append(blocks, base)
			j.signatureBlock = metadata[name]
		}
	}
	if j.manifest = metadata["MANIFEST.MF"]; j.manifest == nil {
		return nil, errors.New("it has no META-INF/MANIFEST.MF")
	}
	if len(signers) == 0 {
		return nil, errors.New("no signatures detected in JAR archive")
	}
	if len(signers) > 1 || len(blocks) > 1 {
		return nil, errors.New("multiple signatures detected in JAR; unable to process")
	}
	if len(blocks) == 0 || blocks[0] != signers[0] {
		return nil, fmt.Errorf("META-INF/%s.SF has no matching signature", signers[0])
	}
	j.signatureFile = metadata[signers[0]+".SF"]
	return j, nil
}

// read inflates a file of at most limit bytes; the result is never nil.
func (j *jar) read(f *zip.File, limit uint64) ([]byte, error) {
	if f.UncompressedSize64 > limit {
		return nil, fmt.Errorf("uncompressed jar metadata of size %d exceeds max allowed size %d", f.UncompressedSize64, limit)
	}
	content := bytes.NewBuffer([]byte{})
	err := j.inflate(content, f)
	return content.Bytes(), err
}

// inflate writes a file's content, as much as the archive's budget has left.
func (j *jar) inflate(w io.Writer, f *zip.File) error {
	if f.UncompressedSize64 > uint64(j.unread) {
		return fmt.Errorf("its files inflate to more than %d bytes", maxJARInflated)
	}
	r, err := f.Open()
	if err != nil {
		return fmt.Errorf("%q: %w", f.Name, err)
	}
	defer r.Close()
	n, err := io.Copy(w, io.LimitReader(r, int64(f.UncompressedSize64)+1))
	j.unread -= min(n, j.unread)
	if err == nil && uint64(n) != f.UncompressedSize64 {
		err = zip.ErrFormat
	}
	if err != nil {
		return fmt.Errorf("%q: %w", f.Name, err)
	}
	return nil
}

// verifyBlock verifies the signature over the signature file, and a time stamp on it if there is
// one. It returns the block without content and the block's first certificate, both in DER.
func (j *jar) verifyBlock() (block, certificate []byte, err error) {
	// Upstream verifies the block as it is but logs what PEM it finds in it.
	if found, _ := pem.Decode(j.signatureBlock); found != nil {
		return nil, nil, errors.New("the block holds PEM")
	}
	signed, err := parseCMS(j.signatureBlock)
	if err != nil {
		return nil, nil, err
	}
	if err := checkTimeStamps(&signed.Content.SignerInfos[0]); err != nil {
		return nil, nil, err
	}
	signature, err := signed.Content.Verify(j.signatureFile, false)
	if err != nil {
		return nil, nil, err
	}
	if _, err := pkcs9.VerifyOptionalTimestamp(signature); err != nil {
		return nil, nil, fmt.Errorf("time stamp: %w", err)
	}
	if _, err := signed.Detach(); err != nil {
		return nil, nil, err
	}
	block, err = signed.Marshal()
	return block, signature.Intermediates[0].Raw, err
}

// verifySignatureFile checks the signed digests: of the whole manifest, or of each of its sections.
func (j *jar) verifySignatureFile() error {
	main, sections, err := parseManifest(j.signatureFile)
	if err != nil {
		return fmt.Errorf("signature file: %w", err)
	}
	switch found, err := main.check("-Digest-Manifest", bytes.NewReader(j.manifest)); {
	case err != nil:
		return fmt.Errorf("manifest: %w", err)
	case found:
		return nil
	}
	manifestMain, named, err := parseManifest(j.manifest)
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	if err := main.mustCheck("-Digest-Manifest-Main-Attributes", bytes.NewReader(manifestMain.raw)); err != nil {
		return fmt.Errorf("main attributes of the manifest: %w", err)
	}
	for name, signed := range sections {
		section, ok := named[name]
		if !ok {
			return fmt.Errorf("manifest is missing signed section %q", name)
		}
		if err := signed.mustCheck("-Digest", bytes.NewReader(section.raw)); err != nil {
			return fmt.Errorf("section %q of the manifest: %w", name, err)
		}
	}
	return nil
}

// verifyFiles checks the digests of the files that the manifest names; others are not signed.
func (j *jar) verifyFiles() error {
	_, sections, err := parseManifest(j.manifest)
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	for name, section := range sections {
		if section.attributes.Get("Magic") != "" {
			continue
		}
		f := j.files[name]
		if f == nil {
			return fmt.Errorf("file %q is in manifest but not JAR", name)
		}
		hashes, err := section.hashes("-Digest")
		if err != nil {
			return fmt.Errorf("file %q: %w", name, err)
		}
		if err := j.inflate(hashes, f); err != nil {
			return err
		}
		if err := hashes.check(); err != nil {
			return fmt.Errorf("file %q: %w", name, err)
		}
	}
	return nil
}

// section is a part of a manifest or signature file: lines of "Name: value" that end with an empty one.
type section struct {
	raw        []byte
	attributes textproto.MIMEHeader // one value for each
}

// parseManifest returns the main section and the others by name. Sections must be divided by
// one kind of line ending and end with it, and no name may come twice: readers differ on the rest.
func parseManifest(content []byte) (main section, named map[string]section, err error) {
	divider := []byte("\r\n\r\n")
	if !bytes.Contains(content, divider) {
		divider = []byte("\n\n")
	} else if bytes.Contains(content, []byte("\n\n")) {
		return section{}, nil, errors.New("line endings are mixed")
	}
	named = map[string]section{}
	for first := true; len(content) > 0; first = false {
		end := bytes.Index(content, divider)
		if end < 0 {
			return section{}, nil, errors.New("the last section has no end")
		}
		s := section{raw: content[:end+len(divider)]}
		content = content[len(s.raw):]
		if s.attributes, err = parseSection(s.raw); err != nil {
			return section{}, nil, err
		}
		name := s.attributes.Get("Name")
		switch _, twice := named[name]; {
		case first:
			main = s
		case name == "":
			return section{}, nil, errors.New("a section has no Name")
		case twice:
			return section{}, nil, fmt.Errorf("two sections are named %q", name)
		default:
			named[name] = s
		}
	}
	if main.attributes == nil {
		return section{}, nil, errors.New("it is empty")
	}
	return main, named, nil
}

func parseSection(raw []byte) (textproto.MIMEHeader, error) {
	text := strings.ReplaceAll(string(raw), "\r\n", "\n")
	text = strings.ReplaceAll(text, "\n ", "") // a line goes on in the next
	attributes := textproto.MIMEHeader{}
	for line := range strings.SplitSeq(text, "\n") {
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil, errors.New("a line has no colon")
		}
		if name = textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)); attributes[name] != nil {
			return nil, fmt.Errorf("attribute %q comes twice", name)
		}
		attributes[name] = []string{strings.TrimSpace(value)}
	}
	if len(attributes) == 0 {
		return nil, errors.New("a section is empty")
	}
	return attributes, nil
}

// check verifies the digests of content in attributes with the suffix, as in "SHA-256-Digest-Manifest"; found tells whether there are any.
func (s section) check(suffix string, content io.Reader) (found bool, err error) {
	hashes, err := s.hashes(suffix)
	if errors.Is(err, errNoDigests) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if _, err := io.Copy(hashes, content); err != nil {
		return false, err
	}
	return true, hashes.check()
}

func (s section) mustCheck(suffix string, content io.Reader) error {
	found, err := s.check(suffix, content)
	if err == nil && !found {
		err = errNoDigests
	}
	return err
}

var errNoDigests = errors.New("no recognized digests found")

// hashes returns what the attributes with the suffix say, to be compared with what is written to it.
func (s section) hashes(suffix string) (sectionHashes, error) {
	hashes := sectionHashes{}
	for attribute, values := range s.attributes {
		name, ok := strings.CutSuffix(attribute, suffix)
		if !ok {
			continue
		}
		h, ok := jarHash(name)
		if !ok {
			return nil, fmt.Errorf("unknown digest %q", attribute)
		}
		if hashes[h] == nil {
			hashes[h] = &sectionHash{Writer: h.New()}
		}
		hashes[h].want = append(hashes[h].want, values[0])
	}
	if len(hashes) == 0 {
		return nil, errNoDigests
	}
	return hashes, nil
}

// jarHash returns the hash that a manifest names, as in "SHA-256" or "SHA1".
func jarHash(name string) (crypto.Hash, bool) {
	h, ok := map[string]crypto.Hash{
		"sha1": crypto.SHA1, "sha224": crypto.SHA224, "sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512,
	}[strings.Replace(strings.ToLower(name), "-", "", 1)]
	return h, ok
}

// sectionHashes has one hash of the content for each algorithm, however many attributes name it.
type sectionHashes map[crypto.Hash]*sectionHash

type sectionHash struct {
	io.Writer
	want []string // base64
}

// Write adds content to every hash.
func (h sectionHashes) Write(p []byte) (int, error) {
	for _, one := range h {
		one.Write(p)
	}
	return len(p), nil
}

func (h sectionHashes) check() error {
	for algorithm, one := range h {
		sum := base64.StdEncoding.EncodeToString(one.Writer.(interface{ Sum([]byte) []byte }).Sum(nil))
		for _, want := range one.want {
			if sum != want {
				return fmt.Errorf("%s mismatch: manifest %s != calculated %s", algorithm, want, sum)
			}
		}
	}
	return nil
}
