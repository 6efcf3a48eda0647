package trust

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// The one media type that sigstore-go 1.4 and older, sigstore-python 4 and sigstore-java
	// accept. Its schema has no operator and no checkpointKeyId: the Go clients of 2024 refuse
	// unknown fields, and sigstore-js would take checkpointKeyId for the logID.
	trustedRootMediaType   = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"
	signingConfigMediaType = "application/vnd.dev.sigstore.signingconfig.v0.2+json"
	clientTrustMediaType   = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
)

// DeriveOptions is what clients must be told beside the inventory.
type DeriveOptions struct {
	// Operator names who runs the services, as a URI without scheme; clients choose at most
	// one service for each operator. Empty means the host name of the first record's URL.
	Operator string
	// OIDCIssuers are the base URLs of the identity providers, best first.
	OIDCIssuers []string
	// At is the time for which the legacy forms are made, which have room for one key: one that begins
	// later is published in the trusted root and not taken for them. Zero is the end of time. A
	// Publisher sets it at each publication.
	At time.Time
}

// Derived is everything that clients need, made from one state of the inventory. The same
// records and options give the same bytes. JSON is indented and ends with a newline.
type Derived struct {
	TrustedRoot       []byte // trusted_root.json; tlogs with Rekor v1 last
	SigningConfig     []byte // signing_config.v0.2.json: Rekor v2 first, v1 second
	SigningConfigV1   []byte // the same with Rekor v1 only; nil when there is no v1 log
	SigningConfigV2   []byte // the same with Rekor v2 only; nil when there is no v2 log
	ClientTrustConfig []byte // trusted root and signing config in one, for sigstore-python 4

	// Legacy PEM forms, nil where there is no such record. Fulcio has every CA certificate
	// that still counts; the others have the newest active record alone, since their readers
	// take one key or one leaf.
	FulcioPEM, RekorPEM, CTFEPEM, TSAPEM []byte

	// Targets is what the TUF repository carries, sorted by name.
	Targets []Target
}

// Derive makes the client files from inv. Revoked records without an end are left out;
// everything else stays for ever.
func Derive(inv *Inventory, opts DeriveOptions) (*Derived, error) {
	return derive(inv.Records(), opts)
}

func derive(records []Record, opts DeriveOptions) (*Derived, error) {
	if len(records) == 0 {
		return nil, errors.New("deriving trust: the inventory is empty")
	}
	records = slices.Clone(records)
	if opts.Operator == "" {
		u, err := url.Parse(records[0].URL)
		if err != nil {
			return nil, fmt.Errorf("deriving trust: %w", err)
		}
		opts.Operator = u.Hostname()
	}
	records = slices.DeleteFunc(records, func(r Record) bool { return r.State == Revoked && r.End.IsZero() })
	// The schema asks for the oldest first.
	slices.SortStableFunc(records, func(a, b Record) int {
		if c := a.Start.Compare(b.Start); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})

	trusted, err := trustedRoot(records)
	if err != nil {
		return nil, fmt.Errorf("deriving trusted root: %w", err)
	}
	config := signingConfig(records, opts, Rekor2, Rekor1)
	d := &Derived{
		FulcioPEM: fulcioPEM(records),
		RekorPEM:  newestPEM(records, Rekor1, opts.At),
		CTFEPEM:   newestPEM(records, CTLog, opts.At),
		TSAPEM:    newestPEM(records, TSA, opts.At),
	}
	for _, doc := range []struct {
		to  *[]byte
		msg proto.Message
	}{
		{&d.TrustedRoot, trusted},
		{&d.SigningConfig, config},
		{&d.SigningConfigV1, only(records, opts, Rekor1)},
		{&d.SigningConfigV2, only(records, opts, Rekor2)},
		{&d.ClientTrustConfig, &trustpb.ClientTrustConfig{MediaType: clientTrustMediaType, TrustedRoot: trusted, SigningConfig: config}},
	} {
		if doc.msg == proto.Message((*trustpb.SigningConfig)(nil)) {
			continue
		}
		if *doc.to, err = stableJSON(doc.msg); err != nil {
			return nil, fmt.Errorf("deriving trust: %w", err)
		}
	}
	d.Targets = targets(d, records, opts.At)
	return d, nil
}

// stableJSON is protojson, whose spacing is random on purpose, in one form.
func stableJSON(msg proto.Message) ([]byte, error) {
	raw, err := protojson.Marshal(msg)
	if err != nil {
		return nil, err
	}
	var compact, out bytes.Buffer
	if err := json.Compact(&compact, raw); err != nil {
		return nil, err
	}
	if err := json.Indent(&out, compact.Bytes(), "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

func trustedRoot(records []Record) (*trustpb.TrustedRoot, error) {
	root := &trustpb.TrustedRoot{MediaType: trustedRootMediaType}
	var v1 []*trustpb.TransparencyLogInstance
	for _, r := range records {
		switch r.Kind {
		case CA:
			root.CertificateAuthorities = append(root.CertificateAuthorities, authority(r))
		case TSA:
			root.TimestampAuthorities = append(root.TimestampAuthorities, authority(r))
		default:
			instance, err := logInstance(r)
			if err != nil {
				return nil, err
			}
			switch r.Kind {
			case CTLog:
				root.Ctlogs = append(root.Ctlogs, instance)
			case Rekor2:
				root.Tlogs = append(root.Tlogs, instance)
			case Rekor1:
				v1 = append(v1, instance)
			}
		}
	}
	// policy-controller 0.13 talks to the base URL of the last entry, and speaks v1 only.
	root.Tlogs = append(root.Tlogs, v1...)
	return root, nil
}

func logInstance(r Record) (*trustpb.TransparencyLogInstance, error) {
	details, err := keyDetails(r.key)
	if err != nil {
		return nil, fmt.Errorf("record %q: %w", r.ID, err)
	}
	return &trustpb.TransparencyLogInstance{
		BaseUrl:       r.URL,
		HashAlgorithm: commonpb.HashAlgorithm_SHA2_256,
		PublicKey:     &commonpb.PublicKey{RawBytes: r.spki, KeyDetails: details, ValidFor: window(r)},
		LogId:         &commonpb.LogId{KeyId: slices.Clone(r.digest[:])},
	}, nil
}

func authority(r Record) *trustpb.CertificateAuthority {
	chain := &commonpb.X509CertificateChain{}
	for _, cert := range r.certs {
		chain.Certificates = append(chain.Certificates, &commonpb.X509Certificate{RawBytes: cert.Raw})
	}
	subject := r.certs[len(r.certs)-1].Subject
	return &trustpb.CertificateAuthority{
		Subject: &commonpb.DistinguishedName{
			Organization: strings.Join(subject.Organization, ", "),
			CommonName:   subject.CommonName,
		},
		Uri:       r.URL,
		CertChain: chain,
		ValidFor:  window(r),
	}
}

// window is the closed interval of r; start is always set: sigstore-go refuses a trusted root
// with a log key that has none.
func window(r Record) *commonpb.TimeRange {
	w := &commonpb.TimeRange{Start: timestamppb.New(r.Start)}
	if !r.End.IsZero() {
		w.End = timestamppb.New(r.End)
	}
	return w
}

// only is the signing config with one kind of log, nil when there is no such log.
func only(records []Record, opts DeriveOptions, kind Kind) *trustpb.SigningConfig {
	if !slices.ContainsFunc(records, func(r Record) bool { return r.Kind == kind && r.State != Revoked }) {
		return nil
	}
	return signingConfig(records, opts, kind)
}

// signingConfig lists every service that is not revoked, those of a kind newest first and
// logs in the order of kinds. Retired ones keep their end, by which clients leave them.
func signingConfig(records []Record, opts DeriveOptions, logs ...Kind) *trustpb.SigningConfig {
	config := &trustpb.SigningConfig{
		MediaType: signingConfigMediaType,
		CaUrls:    services(records, CA, 1, opts.Operator),
		TsaUrls:   services(records, TSA, 1, opts.Operator),
	}
	for _, issuer := range opts.OIDCIssuers {
		config.OidcUrls = append(config.OidcUrls, &trustpb.Service{
			Url: issuer, MajorApiVersion: 1, Operator: opts.Operator,
			ValidFor: &commonpb.TimeRange{Start: timestamppb.New(oldest(records))},
		})
	}
	for _, kind := range logs {
		version := uint32(1)
		if kind == Rekor2 {
			version = 2
		}
		config.RekorTlogUrls = append(config.RekorTlogUrls, services(records, kind, version, opts.Operator)...)
	}
	// A selector without services is refused by sigstore-go as much as the reverse.
	if len(config.RekorTlogUrls) > 0 {
		config.RekorTlogConfig = &trustpb.ServiceConfiguration{Selector: trustpb.ServiceSelector_ANY}
	}
	if len(config.TsaUrls) > 0 {
		config.TsaConfig = &trustpb.ServiceConfiguration{Selector: trustpb.ServiceSelector_ANY}
	}
	return config
}

// services lists the URLs of kind, newest first. Keys that follow each other behind one URL
// are one service, from the first one's start: a client must not lose it while keys change.
func services(records []Record, kind Kind, version uint32, operator string) []*trustpb.Service {
	var out []*trustpb.Service
	byURL := map[string]*trustpb.Service{}
	for _, r := range records { // oldest first
		if r.Kind != kind || r.State == Revoked {
			continue
		}
		w := window(r)
		s, ok := byURL[r.URL]
		if !ok {
			s = &trustpb.Service{Url: r.URL, MajorApiVersion: version, Operator: operator, ValidFor: w}
			byURL[r.URL] = s
			out = append(out, s)
			continue
		}
		if w.End == nil || (s.ValidFor.End != nil && w.End.AsTime().After(s.ValidFor.End.AsTime())) {
			s.ValidFor.End = w.End
		}
	}
	slices.Reverse(out)
	return out
}
