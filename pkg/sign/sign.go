// Package sign makes version 0.3 bundles: an ephemeral P-256 key with a certificate for an identity token, or a key of
// one's own, entries in the transparency logs and timestamps that a signing config names. What the services answered is
// verified against the trusted root before a bundle is handed out.
package sign

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	prototrust "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/attestry/attestry/pkg/verify"
)

const (
	requestTimeout = 30 * time.Second // of one request to one service
	retries        = 2                // after 1 and 2 seconds, on 429 and 5xx
)

// Options say where to sign and as whom. Every field without "may be nil" is required.
type Options struct {
	SigningConfig []byte // signing_config.v0.2 JSON
	TrustedRoot   []byte // trusted_root.json, verifies what the services answered
	IdentityToken string // OpenID Connect ID token (JWT); unused with Key

	// Key signs in place of an ephemeral key and its certificate: ECDSA, or RSA of 2048, 3072 or 4096 bits. May be nil.
	Key crypto.Signer
	// Legacy makes what the attachments of cosign 2 can carry: entries of Rekor v1 alone, for its promise is all the proof
	// that they hold, and SHA-256 whatever the key.
	Legacy bool
	// Shared lets several signatures have one ephemeral key and certificate, where a CA gives a token one certificate alone.
	// May be nil: each has its own.
	Shared *Shared
	// NoTimestamps leaves timestamps over the signature out, for an envelope that is to be stamped as a whole.
	NoTimestamps bool
	// Unverified hands out what the services answered without verifying it, for tests of verifiers: Signed.Result is nil then.
	Unverified bool

	Transport http.RoundTripper // CA and timestamp authorities; may be nil: http.DefaultTransport
	Now       func() time.Time  // chooses among services by their validity; may be nil: time.Now
}

// Signed is a finished bundle and what verifying it proved.
type Signed struct {
	Bundle []byte         // JSON, media type application/vnd.dev.sigstore.bundle.v0.3+json
	Result *verify.Result // nil with Options.Unverified
}

// Blob signs data itself (message signature).
func Blob(ctx context.Context, o Options, data []byte) (*Signed, error) {
	return bundle(ctx, o, &sign.PlainData{Data: data}, verify.FromBytes(data))
}

// Statement signs an in-toto statement in a DSSE envelope, byte for byte as given.
func Statement(ctx context.Context, o Options, statement []byte) (*Signed, error) {
	if _, err := verify.ParseStatement(statement); err != nil {
		return nil, err
	}
	return bundle(ctx, o, &sign.DSSEData{Data: statement, PayloadType: "application/vnd.in-toto+json"}, verify.AnySubject())
}

func bundle(ctx context.Context, o Options, content sign.Content, artifact verify.Artifact) (*Signed, error) {
	if len(o.TrustedRoot) == 0 {
		return nil, errors.New("no trusted root: what the services answer could not be verified")
	}
	verifier, err := verify.New(o.TrustedRoot)
	if err != nil {
		return nil, err
	}
	if o.Key == nil && strings.Count(o.IdentityToken, ".") != 2 {
		return nil, errors.New("the identity token is not a JWT")
	}
	services, err := selectServices(o)
	if err != nil {
		return nil, err
	}
	opts := services.options(ctx, o)
	key, err := o.keypair(&opts)
	if err != nil {
		return nil, err
	}
	pb, err := sign.Bundle(content, key, opts)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("signing: %w", ctx.Err())
		}
		return nil, fmt.Errorf("signing: %w", err)
	}
	encoded, err := encode(pb)
	if err != nil {
		return nil, err
	}
	if o.Unverified {
		return &Signed{Bundle: encoded}, nil
	}
	policy := &verify.Policy{}
	if o.Key != nil {
		policy.Key = o.Key.Public()
	} else {
		// The key was made here, so whoever the certificate names holds no other signature of ours: any identity will do.
		anyone, err := verify.NewIdentity("", "(?s).*", "", "(?s).*")
		if err != nil {
			return nil, err
		}
		policy.Identities = []verify.Identity{anyone}
	}
	result, err := verifier.Verify(encoded, artifact, policy)
	if err != nil {
		return nil, fmt.Errorf("the services' answers do not verify against the trusted root (%s): %w", verify.ReasonOf(err), err)
	}
	return &Signed{Bundle: encoded, Result: result}, nil
}

// encode returns a bundle as compact JSON.
func encode(pb *protobundle.Bundle) ([]byte, error) {
	// The first entry of a log has the index 0 and an empty proof. Protobuf JSON leaves such values out, and
	// sigstore-python 4.5 demands them.
	spaced, err := protojson.MarshalOptions{EmitDefaultValues: slices.ContainsFunc(pb.GetVerificationMaterial().GetTlogEntries(),
		func(e *protorekor.TransparencyLogEntry) bool { return e.LogIndex == 0 })}.Marshal(pb)
	if err != nil {
		return nil, fmt.Errorf("encoding the bundle: %w", err)
	}
	var compact bytes.Buffer // protojson varies its white space on purpose
	if err := json.Compact(&compact, spaced); err != nil {
		return nil, fmt.Errorf("encoding the bundle: %w", err)
	}
	return compact.Bytes(), nil
}

// ByKey signs data with a key and nothing else: no log, no timestamp, no service.
func ByKey(ctx context.Context, key crypto.Signer, data []byte) ([]byte, error) {
	pair, err := Options{Key: key}.keypair(nil)
	if err != nil {
		return nil, err
	}
	pb, err := sign.Bundle(&sign.PlainData{Data: data}, pair, sign.BundleOptions{Context: ctx})
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return encode(pb)
}

// services are those that a signing config selects for one signature.
type services struct {
	ca   root.Service
	logs []root.Service
	tsas []root.Service
}

// selectServices reads the signing config. It takes the highest API version that we speak and, in it, as many operators as
// the selector asks for, as all clients do (signing_config v0.2).
func selectServices(o Options) (*services, error) {
	config, parsed, err := parseSigningConfig(o.SigningConfig)
	if err != nil {
		return nil, err
	}
	now := time.Now
	if o.Now != nil {
		now = o.Now
	}
	s := &services{}
	if o.Key == nil {
		if s.ca, err = root.SelectService(parsed.FulcioCertificateAuthorityURLs(), sign.FulcioAPIVersions, now()); err != nil {
			return nil, fmt.Errorf("signing config: certificate authority: %w", err)
		}
	}
	versions := sign.RekorAPIVersions
	if o.Legacy {
		versions = []uint32{1}
	}
	if len(config.GetRekorTlogUrls()) > 0 {
		if config.GetRekorTlogConfig() == nil {
			return nil, errors.New("signing config: rekorTlogUrls without rekorTlogConfig")
		}
		if s.logs, err = root.SelectServices(parsed.RekorLogURLs(), parsed.RekorLogURLsConfig(), versions, now()); err != nil {
			if o.Legacy {
				return nil, fmt.Errorf("signing config: a legacy attachment holds the promise of a Rekor v1 log, and none is named that is valid now: %w", err)
			}
			return nil, fmt.Errorf("signing config: transparency log: %w", err)
		}
	}
	if len(config.GetTsaUrls()) > 0 {
		if config.GetTsaConfig() == nil {
			return nil, errors.New("signing config: tsaUrls without tsaConfig")
		}
		if s.tsas, err = root.SelectServices(parsed.TimestampAuthorityURLs(), parsed.TimestampAuthorityURLsConfig(), sign.TimestampAuthorityAPIVersions, now()); err != nil {
			return nil, fmt.Errorf("signing config: timestamp authority: %w", err)
		}
	}
	return s, nil
}

const maxSigningConfigBytes = 1 << 20

func parseSigningConfig(data []byte) (*prototrust.SigningConfig, *root.SigningConfig, error) {
	if len(data) == 0 {
		return nil, nil, errors.New("no signing config: it names the services to sign with, and there is no public default")
	}
	if len(data) > maxSigningConfigBytes {
		return nil, nil, fmt.Errorf("signing config is larger than %d bytes", maxSigningConfigBytes)
	}
	config, err := root.NewSigningConfigProtobuf(data)
	if err != nil {
		return nil, nil, fmt.Errorf("signing config: %w", err)
	}
	parsed, err := root.NewSigningConfigFromProtobuf(config)
	if err != nil {
		return nil, nil, fmt.Errorf("signing config: %w", err)
	}
	return config, parsed, nil
}

// OIDCIssuer returns the issuer to sign in at: the first that a signing config names.
func OIDCIssuer(signingConfig []byte, now time.Time) (string, error) {
	_, parsed, err := parseSigningConfig(signingConfig)
	if err != nil {
		return "", err
	}
	service, err := root.SelectService(parsed.OIDCProviderURLs(), []uint32{1}, now)
	if err != nil {
		return "", fmt.Errorf("signing config: OpenID provider: %w", err)
	}
	return service.URL, nil
}

func (s *services) options(ctx context.Context, o Options) sign.BundleOptions {
	opts := sign.BundleOptions{Context: ctx}
	if o.Key == nil {
		opts.CertificateProvider = sign.NewFulcio(&sign.FulcioOptions{
			BaseURL: strings.TrimSuffix(s.ca.URL, "/"), Timeout: requestTimeout, Retries: retries, Transport: bind(ctx, o.Transport),
		})
		opts.CertificateProviderOptions = &sign.CertificateProviderOptions{IDToken: o.IdentityToken}
	}
	if !o.NoTimestamps {
		opts.TimestampAuthorities = s.timestampers(ctx, o)
	}
	for _, log := range s.logs {
		opts.TransparencyLogs = append(opts.TransparencyLogs, sign.NewRekor(&sign.RekorOptions{
			BaseURL: strings.TrimSuffix(log.URL, "/"), Timeout: requestTimeout, Retries: retries, Version: log.MajorAPIVersion,
		}))
	}
	return opts
}

func (s *services) timestampers(ctx context.Context, o Options) []*sign.TimestampAuthority {
	var all []*sign.TimestampAuthority
	for _, tsa := range s.tsas {
		all = append(all, sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{
			URL: tsa.URL, Timeout: requestTimeout, Retries: retries, Transport: bind(ctx, o.Transport),
		}))
	}
	return all
}

// Timestamps returns a token (DER TimeStampResp) over data of each timestamp authority that the signing config selects,
// verified against the trusted root. There are none when it names no authority.
func Timestamps(ctx context.Context, o Options, data []byte) ([][]byte, error) {
	services, err := selectServices(o)
	if err != nil {
		return nil, err
	}
	trusted, err := root.NewTrustedRootFromJSON(o.TrustedRoot)
	if err != nil {
		return nil, fmt.Errorf("trusted root: %w", err)
	}
	var tokens [][]byte
	for _, tsa := range services.timestampers(ctx, o) {
		token, err := tsa.GetTimestamp(ctx, data)
		if err != nil {
			return nil, fmt.Errorf("timestamp: %w", err)
		}
		err = errors.New("the trusted root names no timestamp authority")
		for _, authority := range trusted.TimestampingAuthorities() {
			if _, err = authority.Verify(token, data); err == nil {
				break
			}
		}
		if err != nil {
			return nil, fmt.Errorf("the timestamp does not verify against the trusted root: %w", err)
		}
		tokens = append(tokens, token)
	}
	return tokens, nil
}
