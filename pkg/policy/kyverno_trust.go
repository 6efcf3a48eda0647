package policy

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	prototrust "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/attestry/attestry/pkg/verify"
)

// kyvernoTrust is what an attestor says of trust and of proofs. Each part that it gives in PEM takes the place of that part of
// the trusted root.
type kyvernoTrust struct {
	trustedRoot string // JSON, in place of the trusted root given
	roots       string // certificates of CAs
	rekorURL    string
	rekorKey    string
	ctKey       string
	tsaChain    string
	ignoreTlog  bool
	ignoreSCT   bool
}

// complete gives s, whose identities or key are known, its trust and what must be proven. standard is the trust of attestors that
// give none of their own; it may be empty.
func (t *kyvernoTrust) complete(s *signer, standard trust) error {
	if t.trustedRoot != "" {
		var err error
		if standard, err = newTrust("trustedRoot", []byte(t.trustedRoot)); err != nil {
			return err
		}
	}
	merged, err := t.merge(standard)
	if err != nil {
		return err
	}
	var lines bytes.Buffer
	cas, tlogs := 0, 0
	for _, root := range merged {
		cas, tlogs = cas+len(root.CertificateAuthorities), tlogs+len(root.Tlogs)
		raw, err := protojson.Marshal(root)
		if err != nil {
			return err
		}
		lines.Write(append(raw, '\n'))
	}
	switch {
	case cas == 0 && s.policy.Key == nil:
		return errors.New("no certificate authority is trusted: give roots, or a trusted root for the policies")
	case tlogs == 0 && !t.ignoreTlog:
		return errors.New("no transparency log is trusted: give the key of rekor, or a trusted root for the policies")
	}
	if s.verifier, err = verify.New(lines.Bytes()); err != nil {
		return err
	}
	r := &verify.Requirements{}
	if !t.ignoreTlog {
		r.LogEntries = 1
	}
	if t.tsaChain != "" {
		r.SignedTimestamps = 1
	}
	if s.policy.Key == nil {
		r.ObserverTimestamps = 1 // without a time a short-lived certificate means nothing, whatever is ignored
		if !t.ignoreSCT {
			r.SCTs = 1
		}
	}
	s.policy.Requirements = r
	return nil
}

// merge returns the trusted roots of standard, each with the parts that t gives in place of its own.
func (t *kyvernoTrust) merge(standard trust) ([]*prototrust.TrustedRoot, error) {
	cas, err := authorities("roots", t.roots, false)
	if err != nil {
		return nil, err
	}
	tsas, err := authorities("tsaCertChain", t.tsaChain, true)
	if err != nil {
		return nil, err
	}
	tlogs, err := logInstances("the key of rekor", t.rekorURL, t.rekorKey)
	if err != nil {
		return nil, err
	}
	ctlogs, err := logInstances("the key of ctlog", "", t.ctKey)
	if err != nil {
		return nil, err
	}
	roots := standard.roots
	if len(roots) == 0 {
		roots = []*prototrust.TrustedRoot{{}}
	}
	var merged []*prototrust.TrustedRoot
	for _, shared := range roots {
		r := proto.Clone(shared).(*prototrust.TrustedRoot)
		r.MediaType = trustedRootMediaType
		r.CertificateAuthorities = orElse(cas, r.CertificateAuthorities)
		r.TimestampAuthorities = orElse(tsas, r.TimestampAuthorities)
		r.Tlogs = orElse(tlogs, r.Tlogs)
		r.Ctlogs = orElse(ctlogs, r.Ctlogs)
		merged = append(merged, r)
	}
	return merged, nil
}

func orElse[T any](given, own []T) []T {
	if len(given) > 0 {
		return given
	}
	return own
}

// authorities makes one authority of each self-signed certificate in pem, with the others under it. For a TSA the certificate
// that is no CA is its own.
func authorities(what, pem string, tsa bool) ([]*prototrust.CertificateAuthority, error) {
	if strings.TrimSpace(pem) == "" {
		return nil, nil
	}
	certs, err := pemCertificates([]byte(pem))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	var leaf, below []*protocommon.X509Certificate
	var anchors []*x509.Certificate
	for _, c := range certs {
		switch raw := (&protocommon.X509Certificate{RawBytes: c.Raw}); {
		case !c.IsCA && tsa && len(leaf) == 0:
			leaf = append(leaf, raw)
		case !c.IsCA:
			return nil, fmt.Errorf("%s: the certificate of %s is no CA's", what, c.Subject)
		case bytes.Equal(c.RawSubject, c.RawIssuer):
			anchors = append(anchors, c)
		default:
			below = append(below, raw)
		}
	}
	if len(anchors) == 0 {
		return nil, fmt.Errorf("%s: no root certificate, one that signed itself, is among them", what)
	}
	var all []*prototrust.CertificateAuthority
	for _, a := range anchors {
		chain := append(append(append([]*protocommon.X509Certificate{}, leaf...), below...), &protocommon.X509Certificate{RawBytes: a.Raw})
		subject := &protocommon.DistinguishedName{CommonName: a.Subject.CommonName}
		if len(a.Subject.Organization) > 0 {
			subject.Organization = a.Subject.Organization[0]
		}
		all = append(all, &prototrust.CertificateAuthority{
			Subject: subject, Uri: "policy:" + what, ValidFor: &protocommon.TimeRange{Start: timestamppb.New(time.Unix(0, 0))},
			CertChain: &protocommon.X509CertificateChain{Certificates: chain},
		})
	}
	return all, nil
}

// logInstances makes logs of keys in PEM.
func logInstances(what, url, pem string) ([]*prototrust.TransparencyLogInstance, error) {
	keys, err := splitKeys(what, pem)
	if err != nil {
		return nil, err
	}
	var logs []*prototrust.TransparencyLogInstance
	for _, k := range keys {
		l, err := protoLog(url, []byte(k))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		logs = append(logs, l)
	}
	return logs, nil
}

// splitKeys takes several PEM blocks apart.
func splitKeys(what, pem string) ([]string, error) {
	const end = "-----END PUBLIC KEY-----"
	if strings.TrimSpace(pem) == "" {
		return nil, nil
	}
	blocks := strings.SplitAfter(strings.TrimSpace(pem), end)
	if blocks[len(blocks)-1] != "" {
		return nil, fmt.Errorf("%s: public keys in PEM (BEGIN PUBLIC KEY) are required", what)
	}
	if blocks = blocks[:len(blocks)-1]; len(blocks) > maxIdentities {
		return nil, fmt.Errorf("%s: more than %d keys", what, maxIdentities)
	}
	return blocks, nil
}

// certifiedKey returns the key of a long-lived certificate. A chain, intermediates first and its root last, has to vouch for the
// certificate at the time that it began; when it was used is not looked at, as in cosign.
func certifiedKey(cert, chain string) (crypto.PublicKey, error) {
	if cert == "" {
		return nil, errors.New("cert is required; for a CA of one's own name its certificates as roots of keyless")
	}
	certs, err := pemCertificates([]byte(cert))
	if err != nil {
		return nil, fmt.Errorf("cert: %w", err)
	}
	leaf := certs[0]
	if len(certs) > 1 || leaf.IsCA {
		return nil, errors.New("cert: exactly one certificate that is no CA's is required")
	}
	if chain == "" {
		return leaf.PublicKey, nil
	}
	above, err := pemCertificates([]byte(chain))
	if err != nil {
		return nil, fmt.Errorf("certChain: %w", err)
	}
	options := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: leaf.NotBefore,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	for i, c := range above {
		if i == len(above)-1 {
			options.Roots.AddCert(c)
		} else {
			options.Intermediates.AddCert(c)
		}
	}
	if _, err := leaf.Verify(options); err != nil {
		return nil, fmt.Errorf("certChain does not vouch for cert: %w", err)
	}
	return leaf.PublicKey, nil
}
