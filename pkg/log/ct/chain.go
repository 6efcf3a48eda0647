package ct

import (
	"bytes"
	"crypto/sha256"
	stdx509 "crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/certificate-transparency-go/x509"
	"github.com/transparency-dev/tessera/ctonly"

	"github.com/attestry/attestry/internal/fault"
)

// verifier decides which chains the log takes: each certificate must be signed by the next,
// in the order of submission, up to an accepted root (RFC 6962, section 3.1). A log observes
// certificates and does not police them: validity times, path lengths, name constraints, key
// usages of the leaf and unknown critical extensions are left alone.
type verifier struct {
	roots   []*x509.Certificate
	issuers *issuerStore
	shard   window

	mu    sync.Mutex // guards paths
	paths map[[32]byte]*path
}

// maxPaths bounds the cache of verified paths. Only paths to accepted roots get into it.
const maxPaths = 1024

// path is what lies above a leaf, verified and durably stored.
type path struct {
	issuer       *x509.Certificate // signed the leaf
	fingerprints [][32]byte        // SHA-256 of each certificate, the issuer first, the root last
	preIssuer    bool              // issuer only signs precertificates (RFC 6962, section 3.1)
	keyHash      [32]byte          // SHA-256 of the SPKI that signs the final certificate
}

func newVerifier(roots [][]byte, issuers *issuerStore, shard window) (*verifier, error) {
	v := &verifier{issuers: issuers, shard: shard, paths: make(map[[32]byte]*path)}
	for i, der := range roots {
		root, err := parseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("ct: accepted root %d: %w", i, err)
		}
		if err := mayIssue(root); err != nil {
			return nil, fmt.Errorf("ct: accepted root %d, %q: %w", i, root.Subject, err)
		}
		if !slices.ContainsFunc(v.roots, root.Equal) {
			v.roots = append(v.roots, root)
		}
	}
	if len(v.roots) == 0 {
		return nil, errors.New("ct: no accepted roots: the log would refuse every certificate")
	}
	return v, nil
}

// entry returns the log entry for chain[0], without timestamp. Every issuer certificate that
// it names is durable then. Errors that are the submitter's are fault.Invalid or TooLarge. own: see Handler.AddOwnPreChain.
func (v *verifier) entry(chain [][]byte, precert, own bool) (*ctonly.Entry, error) {
	switch {
	case len(chain) == 0:
		return nil, badChain("empty_chain", nil, "the chain is empty")
	case len(chain) > maxChain:
		return nil, badChain("long_chain", nil, "the chain has %d certificates, the limit is %d", len(chain), maxChain)
	case len(chain[0]) > maxCertificate:
		return nil, fault.New(fault.TooLarge, "certificate_too_large", nil, "the certificate has %d bytes, the limit is %d", len(chain[0]), maxCertificate)
	}
	leaf, err := dissect(chain[0])
	if err != nil {
		return nil, badChain("bad_certificate", err, "certificate 0 of the chain does not parse")
	}
	if leaf.poisoned && leaf.poisonErr != nil {
		return nil, badChain("bad_poison", leaf.poisonErr, "the poison extension is not critical with value NULL, once")
	}
	if precert && !leaf.poisoned {
		return nil, badChain("not_precertificate", nil, "add-pre-chain takes precertificates and this has no poison extension: use add-chain")
	}
	if !precert && leaf.poisoned {
		return nil, badChain("is_precertificate", nil, "add-chain takes no precertificates: use add-pre-chain")
	}
	if !v.shard.contains(leaf.notAfter) {
		return nil, fault.New(fault.Invalid, "not_after_outside_shard", nil, "the certificate expires at %s, this log takes those that expire %s: use another shard",
			leaf.notAfter.UTC().Format(time.RFC3339), v.shard)
	}
	above, err := v.path(leaf, chain[1:], own)
	if err != nil {
		return nil, err
	}
	if !precert {
		return &ctonly.Entry{Certificate: chain[0], FingerprintsChain: above.fingerprints}, nil
	}
	tbs := leaf.tbsWithoutPoison
	if above.preIssuer {
		if tbs, err = x509.BuildPrecertTBS(leaf.tbs, above.issuer); err != nil {
			return nil, badChain("bad_pre_issuer", err, "the TBSCertificate of the final certificate cannot be derived from the pre-issuer")
		}
	}
	return &ctonly.Entry{
		IsPrecert: true, Certificate: tbs, Precertificate: chain[0],
		IssuerKeyHash: above.keyHash[:], FingerprintsChain: above.fingerprints,
	}, nil
}

// path verifies leaf's signature and returns what is above it. The issuers' own signatures
// are verified once: an authority submits thousands of certificates under one chain. So is the first
// signature of an authority of this process.
func (v *verifier) path(leaf certificate, issuers [][]byte, own bool) (*path, error) {
	if len(issuers) == 0 {
		return v.pathFromRoot(leaf)
	}
	key := hashChain(issuers)
	v.mu.Lock()
	above := v.paths[key]
	v.mu.Unlock()
	if above == nil {
		certs, err := v.verifyIssuers(issuers)
		if err != nil {
			return nil, err
		}
		// The signature comes before anything is stored, so that nobody fills the
		// directory with certificates that issued nothing.
		if err := leaf.signedBy(certs[0]); err != nil {
			return nil, badChain("bad_signature", err, "certificate 0 is not signed by certificate 1")
		}
		return v.keep(key, certs)
	}
	if own {
		return above, nil
	}
	if err := leaf.signedBy(above.issuer); err != nil {
		return nil, badChain("bad_signature", err, "certificate 0 is not signed by certificate 1")
	}
	return above, nil
}

// pathFromRoot is for a leaf that came alone: a root issued it, or it is a root.
func (v *verifier) pathFromRoot(leaf certificate) (*path, error) {
	for _, root := range v.roots {
		if bytes.Equal(root.Raw, leaf.raw) && !leaf.poisoned {
			return &path{issuer: root}, nil
		}
	}
	for _, root := range v.roots {
		if leaf.signedBy(root) == nil {
			return v.keep(hashChain([][]byte{root.Raw}), []*x509.Certificate{root})
		}
	}
	return nil, noPath()
}

// verifyIssuers parses the certificates above a leaf and returns them with their root at the end.
func (v *verifier) verifyIssuers(issuers [][]byte) ([]*x509.Certificate, error) {
	certs := make([]*x509.Certificate, 0, len(issuers)+1)
	for i, der := range issuers {
		if len(der) > maxIssuer {
			return nil, fault.New(fault.TooLarge, "certificate_too_large", nil, "certificate %d of the chain has %d bytes, the limit is %d", i+1, len(der), maxIssuer)
		}
		// The caller keeps its bytes; a cached path must not change with them.
		cert, err := parseCertificate(bytes.Clone(der))
		if err != nil {
			return nil, badChain("bad_certificate", err, "certificate %d of the chain does not parse", i+1)
		}
		if err := mayIssue(cert); err != nil {
			return nil, badChain("not_a_ca", err, "certificate %d of the chain may not issue certificates", i+1)
		}
		if i > 0 {
			if err := signedBy(certs[i-1], cert); err != nil {
				return nil, badChain("bad_signature", err, "certificate %d is not signed by certificate %d", i, i+1)
			}
		}
		certs = append(certs, cert)
	}
	last := certs[len(certs)-1]
	if slices.ContainsFunc(v.roots, last.Equal) {
		return certs, nil
	}
	for _, root := range v.roots {
		if signedBy(last, root) == nil {
			return append(certs, root), nil
		}
	}
	return nil, noPath()
}

// keep stores the certificates durably and remembers the path under key.
func (v *verifier) keep(key [32]byte, certs []*x509.Certificate) (*path, error) {
	p := &path{issuer: certs[0], preIssuer: isPreIssuer(certs[0])}
	signer := certs[0]
	if p.preIssuer {
		if len(certs) == 1 {
			return nil, badChain("bad_pre_issuer", nil, "a pre-issuer cannot be a root")
		}
		signer = certs[1]
	}
	p.keyHash = sha256.Sum256(signer.RawSubjectPublicKeyInfo)
	for _, cert := range certs {
		fingerprint, err := v.issuers.put(cert.Raw)
		if err != nil {
			return nil, err
		}
		p.fingerprints = append(p.fingerprints, fingerprint)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.paths) >= maxPaths {
		clear(v.paths)
	}
	v.paths[key] = p
	return p, nil
}

// hashChain names a list of certificates; the lengths keep their borders apart.
func hashChain(certs [][]byte) [32]byte {
	h := sha256.New()
	var length [8]byte
	for _, der := range certs {
		binary.BigEndian.PutUint64(length[:], uint64(len(der)))
		h.Write(length[:])
		h.Write(der)
	}
	return [32]byte(h.Sum(nil))
}

// parseCertificate reads DER as leniently as the monitors do that will read it from the log.
func parseCertificate(der []byte) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if x509.IsFatal(err) {
		return nil, err
	}
	return cert, nil
}

// checkParses reports whether monitors will be able to parse the certificate, and when it expires:
// one entry that they cannot read makes certificate-transparency-go's client refuse the whole range.
// The standard library's parser is three times as fast and stricter, so it is asked first.
func checkParses(der []byte) (notAfter time.Time, err error) {
	if cert, err := stdx509.ParseCertificate(der); err == nil {
		return cert.NotAfter, nil
	}
	cert, err := parseCertificate(der)
	if err != nil {
		return time.Time{}, err
	}
	return cert.NotAfter, nil
}

// mayIssue reports why cert is not a certificate authority's. Version 1 certificates have no
// way to say so and pass.
func mayIssue(cert *x509.Certificate) error {
	if cert.Version >= 3 && !(cert.BasicConstraintsValid && cert.IsCA) {
		return errors.New("it is not marked as a certificate authority")
	}
	if cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return errors.New("its key usage has no keyCertSign")
	}
	return nil
}

func isPreIssuer(cert *x509.Certificate) bool {
	return slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageCertificateTransparency)
}

func signedBy(child, issuer *x509.Certificate) error {
	if !bytes.Equal(child.RawIssuer, issuer.RawSubject) {
		return errors.New("its issuer name is not the subject of the next certificate")
	}
	return issuer.CheckSignature(child.SignatureAlgorithm, child.RawTBSCertificate, child.Signature)
}

func noPath() error {
	return badChain("no_root", nil, "the chain does not lead to an accepted root")
}

func badChain(reason string, cause error, format string, args ...any) error {
	return fault.New(fault.Invalid, reason, cause, format, args...)
}
