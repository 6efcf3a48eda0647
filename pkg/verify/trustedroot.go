package verify

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"

	"github.com/sigstore/rekor-tiles/v2/pkg/note"
	"github.com/sigstore/sigstore-go/pkg/root"
)

const (
	maxTrustedRootBytes = 8 << 20
	maxTrustedRoots     = 64
)

// trustedRoot is one parsed trusted root with what can be computed once.
type trustedRoot struct {
	digest string // "sha256:…" of its JSON
	tlogs  map[string]*logKey
	ctlogs map[string]*logKey
	cas    []*authority
	tsas   []*tsaAuthority
}

// logKey is a transparency log's key; the maps are keyed by the raw 32-byte log ID.
type logKey struct {
	id      string // raw log ID
	baseURL string
	origin  string // host of baseURL: origin and key name of a Rekor v2 checkpoint
	key     crypto.PublicKey
	window  Window
	hintV1  uint32 // first 4 bytes of SHA-256(SPKI)
	hintV2  uint32 // key hint of a signed note under origin
}

// parseTrustedRoots reads one JSON object or several, one after the other. sigstore-go's strictness
// applies: unknown fields, a log key without a start of validity and unknown key types are errors.
func parseTrustedRoots(data []byte) ([]*trustedRoot, error) {
	if len(data) > maxTrustedRootBytes {
		return nil, fail(ReasonTooLarge, nil, "trusted root is larger than %d bytes", maxTrustedRootBytes)
	}
	var roots []*trustedRoot
	dec := json.NewDecoder(bytes.NewReader(data))
	for {
		var raw json.RawMessage
		err := dec.Decode(&raw)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fail(ReasonTrustMissing, err, "reading trusted root")
		}
		if len(roots) == maxTrustedRoots {
			return nil, fail(ReasonTooLarge, nil, "more than %d trusted roots", maxTrustedRoots)
		}
		r, err := parseTrustedRoot(raw)
		if err != nil {
			return nil, fail(ReasonTrustMissing, err, "reading trusted root")
		}
		roots = append(roots, r)
	}
	if len(roots) == 0 {
		return nil, fail(ReasonTrustMissing, nil, "trusted root is empty")
	}
	return roots, nil
}

func parseTrustedRoot(raw []byte) (*trustedRoot, error) {
	parsed, err := root.NewTrustedRootFromJSON(raw)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	r := &trustedRoot{digest: "sha256:" + hex.EncodeToString(sum[:])}
	if r.tlogs, err = logKeys(parsed.RekorLogs()); err != nil {
		return nil, fmt.Errorf("tlogs: %w", err)
	}
	if r.ctlogs, err = logKeys(parsed.CTLogs()); err != nil {
		return nil, fmt.Errorf("ctlogs: %w", err)
	}
	for _, ca := range parsed.FulcioCertificateAuthorities() {
		f, ok := ca.(*root.FulcioCertificateAuthority)
		if !ok {
			return nil, fmt.Errorf("certificate authority of type %T", ca)
		}
		if len(f.Intermediates) >= maxChain {
			return nil, fmt.Errorf("certificate authority %q has a chain of more than %d certificates", f.URI, maxChain)
		}
		r.cas = append(r.cas, newAuthority(f.Root, f.Intermediates,
			Window{Start: f.ValidityPeriodStart, End: f.ValidityPeriodEnd}, x509.ExtKeyUsageCodeSigning))
	}
	for _, tsa := range parsed.TimestampingAuthorities() {
		s, ok := tsa.(*root.SigstoreTimestampingAuthority)
		if !ok {
			return nil, fmt.Errorf("timestamp authority of type %T", tsa)
		}
		if s.Root == nil {
			return nil, fmt.Errorf("timestamp authority %q has no root certificate", s.URI)
		}
		if len(s.Intermediates) >= maxChain {
			return nil, fmt.Errorf("timestamp authority %q has a chain of more than %d certificates", s.URI, maxChain)
		}
		r.tsas = append(r.tsas, newTSA(s.URI, s.Leaf, newAuthority(s.Root, s.Intermediates,
			Window{Start: s.ValidityPeriodStart, End: s.ValidityPeriodEnd}, x509.ExtKeyUsageTimeStamping)))
	}
	return r, nil
}

func logKeys(logs map[string]*root.TransparencyLog) (map[string]*logKey, error) {
	keys := make(map[string]*logKey, len(logs))
	for _, l := range logs {
		spki, err := x509.MarshalPKIXPublicKey(l.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("encoding the key of log %q: %w", l.BaseURL, err)
		}
		sum := sha256.Sum256(spki)
		k := &logKey{
			id: string(l.ID), baseURL: l.BaseURL, key: l.PublicKey,
			window: Window{Start: l.ValidityPeriodStart, End: l.ValidityPeriodEnd},
			hintV1: uint32(sum[0])<<24 | uint32(sum[1])<<16 | uint32(sum[2])<<8 | uint32(sum[3]),
		}
		if u, err := url.Parse(l.BaseURL); err == nil && u.Hostname() != "" {
			k.origin = u.Hostname()
			if k.hintV2, _, err = note.KeyHash(k.origin, l.PublicKey); err != nil {
				return nil, fmt.Errorf("key hint of log %q: %w", l.BaseURL, err)
			}
		}
		keys[k.id] = k
	}
	return keys, nil
}
