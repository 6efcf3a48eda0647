package verify

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// tsaAuthority is a timestamp authority of the trusted root. leaf is nil when the chain starts with a CA
// certificate; then the token has to bring the leaf.
type tsaAuthority struct {
	uri  string
	leaf *x509.Certificate
	*authority
	pinned func() Window // when leaf's chain holds; empty when that has to be found out for each time
}

func newTSA(uri string, leaf *x509.Certificate, a *authority) *tsaAuthority {
	return &tsaAuthority{uri: uri, leaf: leaf, authority: a, pinned: sync.OnceValue(func() Window {
		if leaf == nil {
			return Window{}
		}
		w, _ := a.windowOf(leaf)
		return w
	})}
}

// token is a parsed RFC 3161 response. Nothing in it is verified yet.
type token struct {
	cms    *signedData
	time   time.Time
	hash   crypto.Hash
	digest []byte
}

// verifyTimestamps adds the time of each RFC 3161 token over the raw signature that verifies under a timestamp
// authority of the trusted root and returns how many distinct authorities there were. A token that
// does not verify is skipped; the error says why, for the case that the count falls short: of several, the one of the token that
// came furthest.
func (a *attempt) verifyTimestamps() (int, error) {
	seen := make(map[string]bool) // by SubjectPublicKeyInfo of the TSA leaf
	var problem error
	for _, der := range a.bundle.timestamps {
		tsa, signer, t, err := a.verifyTimestamp(der)
		if err != nil {
			problem = deeper(problem, err)
			continue
		}
		if key := string(signer.RawSubjectPublicKeyInfo); !seen[key] {
			seen[key] = true
			a.times = append(a.times, VerifiedTimestamp{Type: "TimestampAuthority", URI: tsa.uri, Timestamp: t.time, Authority: signer.Subject.String()})
		}
	}
	return len(seen), problem
}

// verifyTimestamp returns the authority of the trusted root that made a token, and the certificate that signed it.
func (a *attempt) verifyTimestamp(der []byte) (*tsaAuthority, *x509.Certificate, *token, error) {
	t, err := parseToken(der)
	if err != nil {
		return nil, nil, nil, err
	}
	if !bytes.Equal(t.digest, sum(t.hash, a.bundle.signature)) &&
		(a.artifact.stamped == nil || !bytes.Equal(t.digest, sum(t.hash, a.artifact.stamped))) {
		return nil, nil, nil, fail(ReasonTimestampMismatch, nil, "the timestamp is over another signature")
	}
	problem := fail(ReasonTimestampUntrusted, nil, "the trusted root has no timestamp authority")
	for _, tsa := range a.root.tsas {
		signer, err := tsa.verifyToken(t)
		if err == nil {
			return tsa, signer, t, nil
		}
		problem = deeper(problem, err)
	}
	return nil, nil, nil, problem
}

// deeper returns the one of two refusals of a token that came in a later step, b when it was the same; a may be nil.
func deeper(a, b error) error {
	steps := []Reason{
		ReasonTooLarge, ReasonTimestampMalformed, ReasonTimestampHash, ReasonTimestampMismatch, ReasonTimestampUntrusted, ReasonTimestampUsage,
		ReasonTimestampExpired, ReasonTimestampChain, ReasonTimestampInvalid,
	}
	if a != nil && slices.Index(steps, ReasonOf(a)) > slices.Index(steps, ReasonOf(b)) {
		return a
	}
	return b
}

// verifyToken checks who signed the token, the window in which the authority was in use, the signer's certificate chain at the
// token's own time (RFC 3161, section 2.3; expired since is fine), and only then the one signature, with a key that is vouched for.
func (tsa *tsaAuthority) verifyToken(t *token) (*x509.Certificate, error) {
	signer := t.cms.signer(t.cms.certificates...)
	if len(t.cms.certificates) == 0 {
		signer = t.cms.signer(tsa.leaf)
	}
	switch {
	case signer == nil:
		return nil, fail(ReasonTimestampUntrusted, nil, "the certificate that signed the token is neither in it nor in the trusted root")
	case tsa.leaf != nil && !tsa.leaf.Equal(signer):
		return nil, fail(ReasonTimestampUntrusted, nil, "the token is signed by another certificate than the trusted root names")
	case signer.IsCA:
		return nil, fail(ReasonTimestampUsage, nil, "the timestamping certificate is a CA certificate")
	}
	if err := onlyTimestamping(signer); err != nil {
		return nil, fail(ReasonTimestampUsage, err, "the timestamping certificate")
	}
	if !tsa.window.contains(t.time) {
		return nil, fail(ReasonTimestampExpired, nil, "%s is outside the authority's window, %s", t.time.UTC().Format(time.RFC3339), tsa.window)
	}
	if w := tsa.pinned(); w.empty() || !w.contains(t.time) { // else signer is the pinned certificate
		if _, err := tsa.verify(signer, t.time, t.cms.certificates); err != nil {
			return nil, fail(ReasonTimestampChain, err, "the timestamping certificate")
		}
	}
	if err := t.cms.verify(signer); err != nil {
		return nil, fail(ReasonTimestampInvalid, err, "the token")
	}
	return signer, nil
}

// onlyTimestamping requires one extended key usage, timeStamping, in a critical extension.
func onlyTimestamping(c *x509.Certificate) error {
	if len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != x509.ExtKeyUsageTimeStamping || len(c.UnknownExtKeyUsage) != 0 {
		return errors.New("its key usage is not timestamping alone")
	}
	for _, e := range c.Extensions {
		if e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 37}) && e.Critical {
			return nil
		}
	}
	return errors.New("its extended key usage is not critical")
}

// parseToken reads a granted TimeStampResp and the members of its TSTInfo that matter (RFC 3161, section 2.4.2):
//
//	TimeStampResp ::= SEQUENCE { status PKIStatusInfo, timeStampToken ContentInfo OPTIONAL }
//	TSTInfo ::= SEQUENCE { version, policy, messageImprint SEQUENCE { hashAlgorithm, hashedMessage }, serialNumber, genTime, ... }
func parseToken(der []byte) (*token, error) {
	in := cryptobyte.String(der)
	var resp, status, contentInfo cryptobyte.String
	var granted int64
	if !in.ReadASN1(&resp, cbasn1.SEQUENCE) || !in.Empty() || !resp.ReadASN1(&status, cbasn1.SEQUENCE) || !status.ReadASN1Integer(&granted) {
		return nil, fail(ReasonTimestampMalformed, nil, "not a timestamp response")
	}
	if granted != 0 {
		return nil, fail(ReasonTimestampMalformed, nil, "timestamp response has status %d", granted)
	}
	if !resp.ReadASN1Element(&contentInfo, cbasn1.SEQUENCE) || !resp.Empty() {
		return nil, fail(ReasonTimestampMalformed, nil, "timestamp response has no token")
	}
	cms, err := parseSignedData(contentInfo)
	if err != nil {
		if ReasonOf(err) != ReasonInternal {
			return nil, err
		}
		return nil, fail(ReasonTimestampMalformed, err, "timestamp token")
	}
	content := cryptobyte.String(cms.content)
	var info, imprint, alg, digest, genTime cryptobyte.String
	var version int64
	var oid asn1.ObjectIdentifier
	if !content.ReadASN1(&info, cbasn1.SEQUENCE) || !content.Empty() || !info.ReadASN1Integer(&version) || version != 1 ||
		!info.SkipASN1(cbasn1.OBJECT_IDENTIFIER) || !info.ReadASN1(&imprint, cbasn1.SEQUENCE) || !imprint.ReadASN1(&alg, cbasn1.SEQUENCE) ||
		!alg.ReadASN1ObjectIdentifier(&oid) || !imprint.ReadASN1(&digest, cbasn1.OCTET_STRING) || !imprint.Empty() ||
		!info.SkipASN1(cbasn1.INTEGER) || !info.ReadASN1(&genTime, cbasn1.GeneralizedTime) {
		return nil, fail(ReasonTimestampMalformed, nil, "not a timestamp info")
	}
	t := &token{cms: cms, hash: hashOfOID(oid), digest: digest}
	if t.hash == 0 {
		return nil, fail(ReasonTimestampHash, nil, "timestamp is over a digest of type %s", oid)
	}
	if t.time, err = time.Parse("20060102150405.999999999Z", string(genTime)); err != nil {
		return nil, fail(ReasonTimestampMalformed, err, "timestamp's time")
	}
	return t, nil
}
