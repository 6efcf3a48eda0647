package entry

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"gopkg.in/ini.v1"

	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// Bounds of a package. Its data is hashed as it is and never inflated.
const (
	maxAPKMetadata = 1 << 20 // inflated bytes of the signature member and of the control member
	maxPkginfo     = 8192    // lines of .PKGINFO
)

// alpineSpec is Rekor v1's alpine 0.0.1: an apk package's digest and what its .PKGINFO says.
type alpineSpec struct {
	Package struct {
		Hash    digest            `json:"hash"`
		Pkginfo map[string]string `json:"pkginfo,omitempty"`
	} `json:"package"`
	PublicKey struct {
		Content []byte `json:"content"` // canonical PEM
	} `json:"publicKey"`
}

// proposeAlpine reads {"package":{"content":<base64 .apk>,"hash":{…}},"publicKey":{"content":<base64 PEM>}};
// the hash may be left out. The key must have signed the package's control member.
func proposeAlpine(v ijson.Value) (Entry, error) {
	material, err := decoded(v.Get("publicKey").Get("content"), "publicKey.content")
	if err != nil {
		return Entry{}, err
	}
	content, err := decoded(v.Get("package").Get("content"), "package.content")
	if err != nil {
		return Entry{}, err
	}
	var s alpineSpec
	s.Package.Hash = sha256Digest(content)
	if err := checkClaim(v.Get("package").Get("hash"), "package.hash", s.Package.Hash); err != nil {
		return Entry{}, err
	}
	key, err := parseSubmitted(material)
	if err != nil {
		return Entry{}, err
	}
	apk, err := openAPK(content)
	if err != nil {
		return Entry{}, invalid("bad_package", err, "package: %v", err)
	}
	// abuild-sign uses RSA with PKCS #1 v1.5 over SHA-1 and nothing else.
	public, ok := key.public.(*rsa.PublicKey)
	if !ok {
		return Entry{}, invalid("algorithm_not_allowed", nil, "packages are signed with RSA keys, not %s", describe(key.public))
	}
	if err := rsa.VerifyPKCS1v15(public, crypto.SHA1, apk.controlSum[:], apk.signature); err != nil {
		return Entry{}, invalid("bad_signature", err, "verifying package signature: %v", err)
	}
	s.Package.Pkginfo, s.PublicKey.Content = apk.info, key.pem
	return newEntry("alpine", "0.0.1", s, append(key.keys(), s.Package.Hash.key()), nil)
}

func (s alpineSpec) keys() ([]string, error) {
	keys, err := storedKeys(s.PublicKey.Content)
	return append(keys, s.Package.Hash.key()), err
}

// checkClaim checks a SHA-256 that a client may send beside content.
func checkClaim(v ijson.Value, field string, computed digest) error {
	if !v.Given() {
		return nil
	}
	claimed := digest{v.Get("algorithm").Text(), v.Get("value").Text()}
	if v.Get("algorithm").Kind != ijson.String || v.Get("value").Kind != ijson.String {
		return missing(field + ".algorithm and value")
	}
	if claimed != computed {
		return invalid("hash_mismatch", nil, "%s: SHA mismatch: %s != %s", field, computed.key(), claimed.key())
	}
	return nil
}

// apk is an Alpine package: three gzip members end to end, each a tar archive or a part of one.
//
//	signature (.SIGN.RSA.<key name>) | control (.PKGINFO, scripts) | data
//
// The signature covers the control member's bytes, the control member names the data's SHA-256.
type apk struct {
	signature  []byte
	info       map[string]string
	controlSum [sha1.Size]byte
}

func openAPK(content []byte) (apk, error) {
	signature, rest, err := gzipMember(content)
	if err != nil {
		return apk{}, fmt.Errorf("signature member: %w", err)
	}
	control, data, err := gzipMember(rest)
	if err != nil {
		return apk{}, fmt.Errorf("control member: %w", err)
	}
	p := apk{controlSum: sha1.Sum(rest[:len(rest)-len(data)])}
	if p.signature, err = apkSignature(signature); err != nil {
		return apk{}, err
	}
	if p.info, err = pkginfo(control); err != nil {
		return apk{}, err
	}
	sum := sha256.Sum256(data)
	if named, err := hex.DecodeString(p.info["datahash"]); err != nil || !bytes.Equal(named, sum[:]) {
		return apk{}, fmt.Errorf("the data's SHA-256 is %x, .PKGINFO has %q", sum, p.info["datahash"])
	}
	return p, nil
}

// gzipMember inflates the first gzip member and returns what comes after it.
func gzipMember(content []byte) (inflated, rest []byte, err error) {
	r := bytes.NewReader(content) // a ByteReader: gzip reads no further than the member's end
	zr, err := gzip.NewReader(r)
	if err != nil {
		return nil, nil, err
	}
	zr.Multistream(false)
	inflated, err = io.ReadAll(io.LimitReader(zr, maxAPKMetadata+1))
	if err != nil {
		return nil, nil, err
	}
	if len(inflated) > maxAPKMetadata {
		return nil, nil, fmt.Errorf("it inflates to more than %d bytes", maxAPKMetadata)
	}
	return inflated, content[len(content)-r.Len():], nil
}

// apkSignature returns the first signature, raw or in PEM.
func apkSignature(archive []byte) ([]byte, error) {
	var signature []byte
	err := eachFile(archive, func(name string, r io.Reader) error {
		if signature != nil || !strings.HasPrefix(name, ".SIGN") {
			return nil
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if block, _ := pem.Decode(content); block != nil {
			content = block.Bytes
		}
		signature = content
		return nil
	})
	if err == nil && signature == nil {
		err = errors.New("no signature detected in alpine package")
	}
	return signature, err
}

// pkginfo returns the members of .PKGINFO, lines of "key = value". Where a key comes again, the last one counts, as upstream has it.
func pkginfo(archive []byte) (map[string]string, error) {
	var info map[string]string
	err := eachFile(archive, func(name string, r io.Reader) error {
		if name != ".PKGINFO" {
			return nil
		}
		if info != nil {
			return errors.New("there are two .PKGINFO files")
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		info, err = parsePkginfo(content)
		return err
	})
	if err == nil && info == nil {
		err = errors.New(".PKGINFO file was not located")
	}
	return info, err
}

// parsePkginfo reads .PKGINFO with the INI reader that upstream has: quotes, comments and sections
// are its own, and so are the stored values. What makes that reader's work grow faster than its
// input is refused: references to other values, and lines that go on in the next.
func parsePkginfo(content []byte) (map[string]string, error) {
	switch {
	case !utf8.Valid(content):
		return nil, errors.New(".PKGINFO is not UTF-8")
	case bytes.Count(content, []byte("\n")) > maxPkginfo:
		return nil, fmt.Errorf(".PKGINFO has more than %d lines", maxPkginfo)
	case bytes.Contains(content, []byte("%(")):
		return nil, errors.New(".PKGINFO refers from one value to another")
	case bytes.Contains(content, []byte(`"""`)), bytes.IndexByte(content, '`') >= 0, continues(content):
		return nil, errors.New(".PKGINFO has a value of several lines")
	}
	file, err := ini.Load(content)
	if err != nil {
		return nil, fmt.Errorf("parsing .PKGINFO: %w", err)
	}
	info := file.Section("").KeysHash()
	for name := range info {
		if strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' }) {
			return nil, fmt.Errorf(".PKGINFO has the key %q", name)
		}
	}
	return info, nil
}

// continues tells whether a line ends in a backslash.
func continues(content []byte) bool {
	for line := range bytes.Lines(content) {
		if bytes.HasSuffix(bytes.TrimSpace(line), []byte(`\`)) {
			return true
		}
	}
	return false
}

// eachFile calls visit for the regular files of a tar archive. An archive that lacks its end is taken: those of packages do.
func eachFile(archive []byte, visit func(name string, r io.Reader) error) error {
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading tar archive: %w", err)
		}
		if header.Typeflag != tar.TypeReg {
			if strings.HasPrefix(header.Name, ".SIGN") || header.Name == ".PKGINFO" {
				return fmt.Errorf("%s is not a regular file", header.Name)
			}
			continue
		}
		if err := visit(header.Name, r); err != nil {
			return err
		}
	}
}
