package policy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing/fstest"
	"time"

	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	prototrust "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"github.com/sigstore/rekor-tiles/v2/pkg/note"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/verify"
)

const (
	trustedRootMediaType = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"

	maxKeyBytes       = 64 << 10
	maxChain          = 8
	maxInstances      = 64       // authorities or logs of a kind
	maxMirrorBytes    = 16 << 20 // of a TUF repository, unpacked
	maxMirrorFiles    = 1000
	maxTUFRoots       = 256 // root rotations that are followed
	maxTUFMetadata    = 4 << 20
	maxTrustedRoot    = 8 << 20
	maxCustomMetadata = 100 // targets that the fallback looks at
)

// trust is a named list of trusted roots; verification has to succeed whole under one of them.
type trust struct {
	name  string // for messages
	roots []*prototrust.TrustedRoot
	raw   [][]byte // the JSON of each
}

// newTrust parses trusted_root.json, or several separated by newlines. The parser of verify decides what is valid.
func newTrust(name string, data []byte) (trust, error) {
	if _, err := verify.New(data); err != nil {
		return trust{}, fmt.Errorf("%s: %w", name, err)
	}
	t := trust{name: name}
	dec := json.NewDecoder(bytes.NewReader(data))
	for {
		var raw json.RawMessage
		err := dec.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return trust{}, fmt.Errorf("%s: %w", name, err)
		}
		root := &prototrust.TrustedRoot{}
		if err := protojson.Unmarshal(raw, root); err != nil {
			return trust{}, fmt.Errorf("%s: %w", name, err)
		}
		t.roots, t.raw = append(t.roots, root), append(t.raw, bytes.Clone(raw))
	}
}

// trustOfRoot makes a trust of one assembled root.
func trustOfRoot(name string, root *prototrust.TrustedRoot) (trust, error) {
	root.MediaType = trustedRootMediaType
	data, err := protojson.Marshal(root)
	if err != nil {
		return trust{}, fmt.Errorf("%s: %w", name, err)
	}
	return newTrust(name, data)
}

func (t trust) json() []byte { return bytes.Join(t.raw, []byte{'\n'}) }

func (c *compiler) trustNames() []string { return slices.Sorted(maps.Keys(c.trusts)) }

// TrustRoot v1alpha1 of policy.sigstore.dev.
type trustRoot struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Metadata   objectMeta `json:"metadata"`
	Spec       struct {
		Remote       *tufRemote     `json:"remote"`
		Repository   *tufRepository `json:"repository"`
		SigstoreKeys *sigstoreKeys  `json:"sigstoreKeys"`
	} `json:"spec"`
	Status anything `json:"status"`
}

type tufRemote struct {
	Root              []byte `json:"root"`
	Mirror            string `json:"mirror"`
	Targets           string `json:"targets"`
	TrustedRootTarget string `json:"trustedRootTarget"`
}

type tufRepository struct {
	Root              []byte `json:"root"`
	MirrorFS          []byte `json:"mirrorFS"`
	Targets           string `json:"targets"`
	TrustedRootTarget string `json:"trustedRootTarget"`
}

type sigstoreKeys struct {
	CertificateAuthorities []trustAuthority `json:"certificateAuthorities"`
	TLogs                  []trustLog       `json:"tLogs"`
	CTLogs                 []trustLog       `json:"ctLogs"`
	TimestampAuthorities   []trustAuthority `json:"timestampAuthorities"`
}

type trustAuthority struct {
	Subject struct {
		Organization string `json:"organization"`
		CommonName   string `json:"commonName"`
	} `json:"subject"`
	URI       string `json:"uri"`
	CertChain []byte `json:"certChain"`
}

type trustLog struct {
	BaseURL       string `json:"baseURL"`
	HashAlgorithm string `json:"hashAlgorithm"`
	PublicKey     []byte `json:"publicKey"`
}

func (c *compiler) addTrustRoot(d *document) error {
	var tr trustRoot
	if err := d.decode(&tr); err != nil {
		return err
	}
	if d.apiVersion != "policy.sigstore.dev/v1alpha1" {
		return d.errorf("apiVersion %q is not policy.sigstore.dev/v1alpha1", d.apiVersion)
	}
	if tr.Metadata.Name == "" {
		return d.errorf("metadata.name is missing")
	}
	if _, twice := c.trusts[tr.Metadata.Name]; twice {
		return d.errorf("a TrustRoot of this name is among the documents already")
	}
	var t trust
	var err error
	name := "TrustRoot " + strconv.Quote(tr.Metadata.Name)
	s := &tr.Spec
	switch {
	case s.Remote != nil && s.Repository == nil && s.SigstoreKeys == nil:
		t, err = c.remoteTrust(name, s.Remote)
	case s.Repository != nil && s.Remote == nil && s.SigstoreKeys == nil:
		t, err = c.repositoryTrust(name, s.Repository)
	case s.SigstoreKeys != nil && s.Remote == nil && s.Repository == nil:
		t, err = s.SigstoreKeys.trust(name)
	default:
		err = errors.New("spec needs exactly one of remote, repository and sigstoreKeys")
	}
	if err != nil {
		return d.errorf("%w", err)
	}
	c.trusts[tr.Metadata.Name] = t
	return nil
}

// trust assembles a trusted root from keys. They have no validity of their own: it begins at the epoch.
func (k *sigstoreKeys) trust(name string) (trust, error) {
	root := &prototrust.TrustedRoot{}
	if len(k.CertificateAuthorities) == 0 && len(k.TimestampAuthorities) == 0 {
		return trust{}, errors.New("spec.sigstoreKeys needs certificateAuthorities or timestampAuthorities")
	}
	if max(len(k.CertificateAuthorities), len(k.TimestampAuthorities), len(k.TLogs), len(k.CTLogs)) > maxInstances {
		return trust{}, fmt.Errorf("spec.sigstoreKeys has a list of more than %d", maxInstances)
	}
	var err error
	if root.CertificateAuthorities, err = protoAuthorities("certificateAuthorities", k.CertificateAuthorities); err != nil {
		return trust{}, err
	}
	if root.TimestampAuthorities, err = protoAuthorities("timestampAuthorities", k.TimestampAuthorities); err != nil {
		return trust{}, err
	}
	if root.Tlogs, err = protoLogs("tLogs", k.TLogs); err != nil {
		return trust{}, err
	}
	if root.Ctlogs, err = protoLogs("ctLogs", k.CTLogs); err != nil {
		return trust{}, err
	}
	return trustOfRoot(name, root)
}

func protoAuthorities(field string, list []trustAuthority) ([]*prototrust.CertificateAuthority, error) {
	var out []*prototrust.CertificateAuthority
	for i, a := range list {
		ca, err := protoAuthority(a.URI, a.Subject.Organization, a.Subject.CommonName, a.CertChain)
		if err != nil {
			return nil, fmt.Errorf("spec.sigstoreKeys.%s[%d]: %w", field, i, err)
		}
		out = append(out, ca)
	}
	return out, nil
}

// protoAuthority takes a chain as PEM, root last.
func protoAuthority(uri, organization, commonName string, chain []byte) (*prototrust.CertificateAuthority, error) {
	certs, err := pemCertificates(chain)
	if err != nil {
		return nil, err
	}
	ca := &prototrust.CertificateAuthority{
		Subject: &protocommon.DistinguishedName{Organization: organization, CommonName: commonName}, Uri: uri,
		CertChain: &protocommon.X509CertificateChain{},
		ValidFor:  &protocommon.TimeRange{Start: timestamppb.New(time.Unix(0, 0))},
	}
	for _, c := range certs {
		ca.CertChain.Certificates = append(ca.CertChain.Certificates, &protocommon.X509Certificate{RawBytes: c.Raw})
	}
	return ca, nil
}

func pemCertificates(data []byte) ([]*x509.Certificate, error) {
	if len(data) > maxKeyBytes {
		return nil, fmt.Errorf("certificate chain of over %d bytes", maxKeyBytes)
	}
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %q is not a certificate", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if certs = append(certs, c); len(certs) > maxChain {
			return nil, fmt.Errorf("certificate chain of more than %d", maxChain)
		}
	}
	switch {
	case len(certs) == 0:
		return nil, errors.New("certificate chain has no certificate")
	case len(bytes.TrimSpace(data)) > 0:
		return nil, errors.New("certificate chain has text after its certificates")
	}
	return certs, nil
}

func protoLogs(field string, list []trustLog) ([]*prototrust.TransparencyLogInstance, error) {
	var out []*prototrust.TransparencyLogInstance
	for i, l := range list {
		switch l.HashAlgorithm {
		case "sha-256", "sha256":
		default:
			return nil, fmt.Errorf("spec.sigstoreKeys.%s[%d]: hashAlgorithm %q is not sha-256", field, i, l.HashAlgorithm)
		}
		log, err := protoLog(l.BaseURL, l.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("spec.sigstoreKeys.%s[%d]: %w", field, i, err)
		}
		out = append(out, log)
	}
	return out, nil
}

// protoLog takes a log's key as PEM. The log ID is computed: SHA-256 of the key, or for an Ed25519 key, which only Rekor v2
// logs have, the hash that begins with the key's hint under the host's name.
func protoLog(baseURL string, keyPEM []byte) (*prototrust.TransparencyLogInstance, error) {
	parsed, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("publicKey: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(parsed)
	if err != nil {
		return nil, fmt.Errorf("publicKey: %w", err)
	}
	details, id, err := logKeyDetails(parsed, spki, baseURL)
	if err != nil {
		return nil, fmt.Errorf("publicKey: %w", err)
	}
	return &prototrust.TransparencyLogInstance{
		BaseUrl: baseURL, HashAlgorithm: protocommon.HashAlgorithm_SHA2_256,
		PublicKey: &protocommon.PublicKey{
			RawBytes: spki, KeyDetails: details,
			ValidFor: &protocommon.TimeRange{Start: timestamppb.New(time.Unix(0, 0))},
		},
		LogId: &protocommon.LogId{KeyId: id},
	}, nil
}

func (c *compiler) remoteTrust(name string, r *tufRemote) (trust, error) {
	mirror, ok := c.options.Mirrors[r.Mirror]
	if !ok {
		return trust{}, fmt.Errorf("spec.remote names %q, and no copy of that TUF repository was given: nothing is fetched here", r.Mirror)
	}
	return c.tufTrust(name, "spec.remote", mirror, r.Root, r.Targets, r.TrustedRootTarget)
}

func (c *compiler) repositoryTrust(name string, r *tufRepository) (trust, error) {
	mirror, err := unpackMirror(r.MirrorFS)
	if err != nil {
		return trust{}, fmt.Errorf("spec.repository.mirrorFS: %w", err)
	}
	return c.tufTrust(name, "spec.repository", mirror, r.Root, r.Targets, r.TrustedRootTarget)
}

// unpackMirror reads a tar.gz of a TUF repository into memory. A leading "repository/" is taken off.
func unpackMirror(data []byte) (fs.FS, error) {
	zr, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	defer zr.Close()
	files := fstest.MapFS{}
	total := 0
	for tr := tar.NewReader(io.LimitReader(zr, maxMirrorBytes+1)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		name := strings.TrimPrefix(strings.TrimPrefix(path.Clean("/"+h.Name), "/"), "repository/")
		switch {
		case h.Typeflag == tar.TypeDir:
			continue
		case h.Typeflag != tar.TypeReg:
			return nil, fmt.Errorf("%q is no file", h.Name)
		case strings.Contains(h.Name, ".."):
			return nil, fmt.Errorf("%q leads out of the archive", h.Name)
		case files[name] != nil:
			return nil, fmt.Errorf("%q is there twice", h.Name)
		case len(files) == maxMirrorFiles:
			return nil, fmt.Errorf("more than %d files", maxMirrorFiles)
		}
		content, err := limit.ReadAll(tr, int64(maxMirrorBytes-total))
		if err != nil {
			return nil, fmt.Errorf("%q: %w", h.Name, err)
		}
		total += len(content)
		files[name] = &fstest.MapFile{Data: content, Mode: 0o444}
	}
}

// tufTrust verifies a TUF repository from its trusted root on and returns what its trusted root target says, or its targets
// with Sigstore's custom metadata when there is none.
func (c *compiler) tufTrust(name, field string, repo fs.FS, root []byte, targetsDir, target string) (trust, error) {
	if targetsDir == "" {
		targetsDir = "targets"
	}
	if target == "" {
		target = "trusted_root.json"
	}
	if len(root) == 0 {
		return trust{}, fmt.Errorf("%s.root is missing", field)
	}
	r := &tufReader{repo: repo, targetsDir: targetsDir}
	if err := r.verify(root, c.options.TUFTime); err != nil {
		return trust{}, fmt.Errorf("%s: TUF: %w", field, err)
	}
	if _, ok := r.targets[target]; ok {
		data, err := r.target(target)
		if err != nil {
			return trust{}, fmt.Errorf("%s: TUF: %w", field, err)
		}
		return newTrust(name, data)
	}
	if target != "trusted_root.json" {
		return trust{}, fmt.Errorf("%s: the TUF repository has no target %q", field, target)
	}
	assembled, err := r.assemble()
	if err != nil {
		return trust{}, fmt.Errorf("%s: TUF: %w", field, err)
	}
	return trustOfRoot(name, assembled)
}

// tufReader walks the metadata of a TUF repository (TUF 1.0, section 5.3) with go-tuf's rules.
type tufReader struct {
	repo       fs.FS
	targetsDir string
	consistent bool
	targets    map[string]*metadata.TargetFiles
}

func (r *tufReader) verify(root []byte, at time.Time) error {
	trusted, err := trustedmetadata.New(root)
	if err != nil {
		return err
	}
	if !at.IsZero() {
		trusted.RefTime = at.UTC()
	}
	for range maxTUFRoots {
		next := strconv.FormatInt(trusted.Root.Signed.Version+1, 10) + ".root.json"
		data, err := limit.ReadFS(r.repo, next, maxTUFMetadata)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return err
		}
		if _, err := trusted.UpdateRoot(data); err != nil {
			return fmt.Errorf("%s: %w", next, err)
		}
	}
	r.consistent = trusted.Root.Signed.ConsistentSnapshot
	data, err := limit.ReadFS(r.repo, "timestamp.json", maxTUFMetadata)
	if err != nil {
		return err
	}
	if _, err := trusted.UpdateTimestamp(data); err != nil {
		return fmt.Errorf("timestamp.json: %w", err)
	}
	snapshot := trusted.Timestamp.Signed.Meta["snapshot.json"]
	if data, err = limit.ReadFS(r.repo, r.versioned("snapshot", snapshot), maxTUFMetadata); err != nil {
		return err
	}
	if _, err := trusted.UpdateSnapshot(data, false); err != nil {
		return fmt.Errorf("snapshot.json: %w", err)
	}
	targets := trusted.Snapshot.Signed.Meta["targets.json"]
	if data, err = limit.ReadFS(r.repo, r.versioned("targets", targets), maxTUFMetadata); err != nil {
		return err
	}
	if _, err := trusted.UpdateTargets(data); err != nil {
		return fmt.Errorf("targets.json: %w", err)
	}
	r.targets = trusted.Targets[metadata.TARGETS].Signed.Targets
	return nil
}

func (r *tufReader) versioned(role string, meta *metadata.MetaFiles) string {
	if r.consistent && meta != nil {
		return strconv.FormatInt(meta.Version, 10) + "." + role + ".json"
	}
	return role + ".json"
}

// target returns a target that has the length and a hash that the metadata names.
func (r *tufReader) target(name string) ([]byte, error) {
	info := r.targets[name]
	var data []byte
	err := fs.ErrNotExist
	dir, base := path.Split(name)
	for _, alg := range slices.Sorted(maps.Keys(info.Hashes)) {
		if data, err = limit.ReadFS(r.repo, path.Join(r.targetsDir, dir, info.Hashes[alg].String()+"."+base), maxTrustedRoot); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		data, err = limit.ReadFS(r.repo, path.Join(r.targetsDir, name), maxTrustedRoot)
	}
	if err != nil {
		return nil, err
	}
	if err := info.VerifyLengthHashes(data); err != nil {
		return nil, fmt.Errorf("target %s: %w", name, err)
	}
	return data, nil
}

// assemble makes a trusted root of the targets whose custom metadata says what they are for, as repositories from before
// trusted_root.json have it. Timestamp authorities are not told that way.
func (r *tufReader) assemble() (*prototrust.TrustedRoot, error) {
	root := &prototrust.TrustedRoot{}
	if len(r.targets) > maxCustomMetadata {
		return nil, fmt.Errorf("more than %d targets", maxCustomMetadata)
	}
	for _, name := range slices.Sorted(maps.Keys(r.targets)) {
		custom := r.targets[name].Custom
		if custom == nil {
			continue
		}
		var c struct {
			Sigstore struct {
				Usage  string `json:"usage"`
				Status string `json:"status"`
				URI    string `json:"uri"`
			} `json:"sigstore"`
		}
		if err := json.Unmarshal(*custom, &c); err != nil {
			return nil, fmt.Errorf("custom metadata of target %s: %w", name, err)
		}
		if !slices.Contains([]string{"Fulcio", "Rekor", "CTFE"}, c.Sigstore.Usage) || c.Sigstore.Status != "Active" {
			continue
		}
		data, err := r.target(name)
		if err != nil {
			return nil, err
		}
		switch c.Sigstore.Usage {
		case "Fulcio":
			var ca *prototrust.CertificateAuthority
			ca, err = protoAuthority(c.Sigstore.URI, "", "", data)
			root.CertificateAuthorities = append(root.CertificateAuthorities, ca)
		case "Rekor":
			var log *prototrust.TransparencyLogInstance
			log, err = protoLog(c.Sigstore.URI, data)
			root.Tlogs = append(root.Tlogs, log)
		case "CTFE":
			var log *prototrust.TransparencyLogInstance
			log, err = protoLog(c.Sigstore.URI, data)
			root.Ctlogs = append(root.Ctlogs, log)
		}
		if err != nil {
			return nil, fmt.Errorf("target %s: %w", name, err)
		}
	}
	if len(root.CertificateAuthorities) == 0 {
		return nil, errors.New("the repository has neither trusted_root.json nor a target for Fulcio")
	}
	return root, nil
}

// logKeyDetails returns how a log signs with key, and the log's ID (32 bytes).
func logKeyDetails(key any, spki []byte, baseURL string) (protocommon.PublicKeyDetails, []byte, error) {
	id := sha256.Sum256(spki)
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return protocommon.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256, id[:], nil
		case elliptic.P384():
			return protocommon.PublicKeyDetails_PKIX_ECDSA_P384_SHA_384, id[:], nil
		case elliptic.P521():
			return protocommon.PublicKeyDetails_PKIX_ECDSA_P521_SHA_512, id[:], nil
		}
	case *rsa.PublicKey:
		switch k.N.BitLen() {
		case 2048:
			return protocommon.PublicKeyDetails_PKIX_RSA_PKCS1V15_2048_SHA256, id[:], nil
		case 3072:
			return protocommon.PublicKeyDetails_PKIX_RSA_PKCS1V15_3072_SHA256, id[:], nil
		case 4096:
			return protocommon.PublicKeyDetails_PKIX_RSA_PKCS1V15_4096_SHA256, id[:], nil
		}
	case ed25519.PublicKey:
		u, err := url.Parse(baseURL)
		if err != nil || u.Hostname() == "" {
			return 0, nil, fmt.Errorf("an Ed25519 log needs a baseURL with a host, which its ID depends on; %q has none", baseURL)
		}
		_, full, err := note.KeyHash(u.Hostname(), k)
		if err != nil {
			return 0, nil, err
		}
		return protocommon.PublicKeyDetails_PKIX_ED25519, full, nil
	}
	return 0, nil, fmt.Errorf("a log cannot have a key of type %T and this size", key)
}
