package entry

import (
	"bytes"
	"crypto"
	"crypto/md5"
	_ "crypto/sha1" // linked for crypto.Hash.New
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// rpmSpec is Rekor v1's rpm 0.0.1: the digest of a signed RPM package, its name and version.
type rpmSpec struct {
	Package struct {
		Hash    digest     `json:"hash"`
		Headers rpmHeaders `json:"headers"`
	} `json:"package"`
	PublicKey struct {
		Content []byte `json:"content"` // canonical PGP
	} `json:"publicKey"`
}

type rpmHeaders struct {
	Architecture string `json:"Architecture"`
	Epoch        string `json:"Epoch"` // decimal, "0" if the package has none
	Name         string `json:"Name"`
	MD5          string `json:"RPMSIGTAG_MD5,omitempty"` // hex, of header and payload
	Release      string `json:"Release"`
	Version      string `json:"Version"`
}

// proposeRPM reads {"publicKey":{"content":…},"package":{"content":<.rpm file>,"hash":<optional>}},
// contents in base64.
func proposeRPM(v ijson.Value) (Entry, error) {
	var s rpmSpec
	key, err := submittedKey("pgp", v.Get("publicKey").Get("content"), "publicKey.content")
	if err != nil {
		return Entry{}, err
	}
	file, err := decoded(v.Get("package").Get("content"), "package.content")
	if err != nil {
		return Entry{}, err
	}
	if s.Package.Hash, err = artifactDigest(v.Get("package").Get("hash"), "package.hash", file); err != nil {
		return Entry{}, err
	}
	p, err := parseRPM(file)
	if err != nil {
		return Entry{}, invalid("bad_package", err, "RPM package: %v", err)
	}
	if s.Package.Headers, err = p.headers(); err != nil {
		return Entry{}, invalid("bad_package", err, "RPM package: %v", err)
	}
	if err := p.checkDigests(); err != nil {
		return Entry{}, invalid("bad_package", err, "RPM package: %v", err)
	}
	if err := p.verify(key.(pgpKeys)); err != nil {
		return Entry{}, invalid("bad_signature", err, "verifying signature: %v", err)
	}
	s.PublicKey.Content = key.canonical()
	return newEntry("rpm", "0.0.1", s, append(publicKeyKeys(key), s.Package.Hash.key()), nil)
}

func (s rpmSpec) keys() ([]string, error) {
	return append(storedPublicKeyKeys("pgp", s.PublicKey.Content), s.Package.Hash.key()), nil
}

// Tags of the general header, and of the signature header.
const (
	rpmName              = 1000
	rpmVersion           = 1001
	rpmRelease           = 1002
	rpmEpoch             = 1003
	rpmArch              = 1022
	rpmPayloadDigest     = 5092
	rpmPayloadDigestAlgo = 5093

	rpmSigDSA    = 267 // over the general header
	rpmSigRSA    = 268
	rpmSigSHA1   = 269 // hex, of the general header
	rpmSigSHA256 = 273
	rpmSigPGP    = 1002 // over general header and payload
	rpmSigMD5    = 1004 // of general header and payload
	rpmSigGPG    = 1005
)

func (p rpmPackage) headers() (h rpmHeaders, err error) {
	for _, field := range []struct {
		to  *string
		tag uint32
	}{{&h.Name, rpmName}, {&h.Version, rpmVersion}, {&h.Release, rpmRelease}, {&h.Architecture, rpmArch}} {
		text, ok, err := p.general.text(field.tag)
		if err != nil {
			return h, err
		}
		if !ok {
			return h, fmt.Errorf("header has no tag %d", field.tag)
		}
		*field.to = text
	}
	epoch, _, err := p.general.number(rpmEpoch)
	if err != nil {
		return h, err
	}
	h.Epoch = strconv.FormatUint(epoch, 10)
	sum, _, err := p.signature.binary(rpmSigMD5)
	h.MD5 = hex.EncodeToString(sum)
	return h, err
}

// checkDigests compares the package's own digests, of the header and of the payload as it is
// stored; nothing is unpacked. Some are as weak as MD5: what counts is the signature.
func (p rpmPackage) checkDigests() error {
	sum, given, err := p.signature.text(rpmSigSHA256)
	hash := crypto.SHA256
	if err == nil && (!given || sum == "") {
		sum, given, err = p.signature.text(rpmSigSHA1)
		hash = crypto.SHA1
	}
	if err != nil {
		return err
	}
	if given && sum != "" && sum != hexSum(hash, p.general.raw) {
		return errors.New("the header does not have the digest that the package names")
	}
	sum, given, err = p.general.text(rpmPayloadDigest)
	if err != nil {
		return err
	}
	if given {
		algorithm, _, err := p.general.number(rpmPayloadDigestAlgo)
		if err != nil {
			return err
		}
		hash, ok := map[uint64]crypto.Hash{2: crypto.SHA1, 8: crypto.SHA256, 9: crypto.SHA384, 10: crypto.SHA512, 11: crypto.SHA224}[algorithm]
		if !ok {
			return fmt.Errorf("unknown algorithm %d of the payload's digest", algorithm)
		}
		if sum != hexSum(hash, p.payload) {
			return errors.New("the payload does not have the digest that the package names")
		}
		return nil
	}
	md5sum, _, err := p.signature.binary(rpmSigMD5)
	if err != nil {
		return err
	}
	if computed := md5.Sum(p.signed()); !bytes.Equal(md5sum, computed[:]) {
		return errors.New("the package names no digest of its payload, or another one")
	}
	return nil
}

func hexSum(hash crypto.Hash, data []byte) string {
	h := hash.New()
	h.Write(data)
	return hex.EncodeToString(h.Sum(nil))
}

// verify checks all signatures of the package, of which there must be one: over the header alone,
// which holds the payload's digest, or over both. As upstream does, it asks neither whether the key
// was valid at the time nor what it may be used for.
func (p rpmPackage) verify(keys pgpKeys) error {
	found := false
	for _, tag := range []uint32{rpmSigRSA, rpmSigDSA, rpmSigPGP, rpmSigGPG} {
		blob, given, err := p.signature.binary(tag)
		if err != nil {
			return err
		}
		if !given {
			continue
		}
		signed := p.general.raw
		if tag == rpmSigPGP || tag == rpmSigGPG {
			signed = p.signed()
		}
		if err := keys.verifyRPM(signed, blob); err != nil {
			return fmt.Errorf("signature of tag %d: %w", tag, err)
		}
		found = true
	}
	if !found {
		return errors.New("the package has no PGP signature")
	}
	return nil
}

// verifyRPM checks one signature packet by the key that it names.
func (k pgpKeys) verifyRPM(signed, blob []byte) error {
	if err := checkPGPSignatures(blob); err != nil {
		return err
	}
	return guardPGP(func() error {
		r := bytes.NewReader(blob)
		p, err := packet.Read(r)
		if err != nil {
			return err
		}
		sig, ok := p.(*packet.Signature)
		if !ok || r.Len() > 0 {
			return errors.New("not one PGP signature")
		}
		for _, key := range k.keys {
			candidates := []*packet.PublicKey{key.PrimaryKey}
			for _, sub := range key.Subkeys {
				candidates = append(candidates, sub.PublicKey)
			}
			for _, candidate := range candidates {
				if sig.CheckKeyIdOrFingerprint(candidate) {
					h := sig.Hash.New()
					h.Write(signed)
					return candidate.VerifySignature(h, sig)
				}
			}
		}
		return errors.New("the signature is of another key")
	})
}
