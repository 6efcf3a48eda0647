package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/attachment"
	"github.com/attestry/attestry/pkg/sign"
	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

const maxBundleFile = 10 << 20

type convertFlags struct {
	registry                         registryFlags
	to, dir, out, artifact           string
	trustedRoot, key, rekor, typeURI string
}

func newConvertCommand() *cobra.Command {
	var f convertFlags
	cmd := &cobra.Command{
		Use:   "convert --to legacy|bundle [flags] FILE|IMAGE",
		Short: "Turn bundles into the form of cosign 2, and back",
		Long: `Turn what cosign 3 reads into what cosign 2, podman, CRI-O and Kyverno's classic policies read, or the other way round, without
a new signature. Everything is verified before it is written, as whoever's signature it is.

A FILE is a bundle, or the file that cosign 2 writes with --bundle; the result goes to --out. Of an IMAGE, by REGISTRY/NAME or
with --dir in an OCI layout, the attestations are converted in place: what was attached stays.

Some things cannot be said in the other form, and are refused: an entry of Rekor v2 has no signed entry timestamp; the
signature of an image is over a statement in one form and over another document in the other, so sign it again with
attestry sign --form. A proof of inclusion, which bundles need and the legacy form lacks, is fetched from the log that the trusted
root names, or from --rekor-url.`,
		Example: `  attestry convert --to legacy --out app.bundle app.sigstore.json
  attestry convert --to bundle registry.example/app@sha256:…`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.Context(), cmd.ErrOrStderr(), args)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.to, "to", "", "legacy or bundle")
	flags.StringVar(&f.out, "out", "", "where to write what a FILE becomes")
	flags.StringVar(&f.artifact, "artifact", "", "the signed file or its sha256:HEX, which the file of cosign 2 does not say")
	flags.StringVar(&f.dir, "dir", "", "convert what is attached to an image in this OCI layout")
	flags.StringVar(&f.trustedRoot, "trusted-root", "", "trusted root to verify with (default $ATTESTRY_TRUSTED_ROOT)")
	flags.StringVar(&f.key, "key", "", "public key (PEM) that signed, in place of a certificate")
	flags.StringVar(&f.rekor, "rekor-url", "", "Rekor v1 log to fetch proofs from (default what the trusted root says)")
	flags.StringVar(&f.typeURI, "type", "", "of an image, convert attestations of this predicate type alone: a URI or a short name")
	f.registry.register(flags)
	return cmd
}

// converter verifies before and after.
type converter struct {
	*convertFlags
	trusted  []byte
	verifier *verify.Verifier
	policy   *verify.Policy
	log      func(logID string) (*attachment.Log, error)
}

func (f *convertFlags) run(ctx context.Context, stderr io.Writer, args []string) error {
	if f.to != "legacy" && f.to != "bundle" {
		return errors.New("say --to legacy or --to bundle")
	}
	c := &converter{convertFlags: f, policy: &verify.Policy{}}
	var err error
	if c.trusted, err = readSetting(f.trustedRoot, "trusted-root", "ATTESTRY_TRUSTED_ROOT"); err != nil {
		return err
	}
	if c.verifier, err = verify.New(c.trusted); err != nil {
		return err
	}
	if f.key != "" {
		if c.policy.Key, err = readPublicKey(f.key); err != nil {
			return fmt.Errorf("--key: %w", err)
		}
	} else {
		// The signature stays whose it was: whoever verifies the result decides.
		anyone, err := verify.NewIdentity("", "(?s).*", "", "(?s).*")
		if err != nil {
			return err
		}
		c.policy.Identities = []verify.Identity{anyone}
	}
	client := &http.Client{Timeout: time.Minute}
	c.log = attachment.LogOf(c.trusted, client)
	if f.rekor != "" {
		c.log = func(string) (*attachment.Log, error) { return &attachment.Log{URL: f.rekor, Client: client}, nil }
	}
	if f.dir != "" {
		return c.image(ctx, stderr, strings.Join(args, ""))
	}
	if len(args) == 1 && isReference(args[0]) {
		if _, err := os.Stat(args[0]); err != nil {
			return c.image(ctx, stderr, args[0])
		}
	}
	file, err := oneFile(args)
	if err != nil {
		return err
	}
	return withReason(c.file(ctx, file))
}

// withReason puts the stable reason code before the text that lacks it.
func withReason(err error) error {
	if reason := fault.ReasonOf(err); err != nil && reason != "internal" && !strings.Contains(err.Error(), reason) {
		return fmt.Errorf("%s: %w", reason, err)
	}
	return err
}

// readPublicKey reads one PEM public key.
func readPublicKey(file string) (any, error) {
	pem, err := limit.ReadFile(file, 1<<20)
	if err != nil {
		return nil, err
	}
	return verify.ParseKey(pem)
}

// file converts between a bundle and the file of cosign 2.
func (c *converter) file(ctx context.Context, file string) error {
	if c.out == "" {
		return errors.New("--out says where the result goes")
	}
	data, err := limit.ReadFile(file, maxBundleFile)
	if err != nil {
		return err
	}
	envelope, annotations, isCosign, err := attachment.ReadCosignFile(data)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if isCosign == (c.to == "legacy") {
		return fmt.Errorf("%s is in that form already, or in none", file)
	}
	if c.to == "legacy" {
		if err := c.verifyBundle(data); err != nil {
			return err
		}
		out, err := attachment.ToCosignFile(data)
		if err != nil {
			return err
		}
		return durable.WriteFile(c.out, append(out, '\n'), 0o644)
	}
	old, err := c.oldBundle(data, envelope, annotations)
	if err != nil {
		return err
	}
	bundle, err := attachment.Upgrade(ctx, old, c.log, false)
	if err != nil {
		return err
	}
	if err := c.verifyBundle(bundle); err != nil {
		return err
	}
	return durable.WriteFile(c.out, append(bundle, '\n'), 0o644)
}

// oldBundle reads the file of cosign 2 as a v0.1 bundle.
func (c *converter) oldBundle(data, envelope []byte, annotations map[string]string) ([]byte, error) {
	if envelope != nil {
		a, err := oci.FromLayer(oci.FormEnvelope, envelope, annotations)
		if err != nil {
			return nil, err
		}
		return a.Bundle, nil
	}
	if c.artifact == "" {
		return nil, errors.New("--artifact says what was signed: the file of cosign 2 does not")
	}
	return fromCosign(data, c.artifact)
}

// verifyBundle verifies over what the bundle says that it signs.
func (c *converter) verifyBundle(bundle []byte) error {
	artifact := verify.AnySubject()
	var fields struct {
		MessageSignature *struct {
			MessageDigest struct {
				Algorithm string `json:"algorithm"`
				Digest    []byte `json:"digest"`
			} `json:"messageDigest"`
		} `json:"messageSignature"`
	}
	if err := json.Unmarshal(bundle, &fields); err != nil {
		return fmt.Errorf("not a bundle: %w", err)
	}
	if m := fields.MessageSignature; m != nil {
		var err error
		algorithm := strings.ToLower(strings.Replace(m.MessageDigest.Algorithm, "SHA2_", "sha", 1))
		if artifact, err = verify.FromDigest(algorithm, m.MessageDigest.Digest); err != nil {
			return err
		}
	}
	if _, err := c.verifier.Verify(bundle, artifact, c.policy); err != nil {
		return fmt.Errorf("not verified: %s: %w", verify.ReasonOf(err), err)
	}
	return nil
}

// image converts what is attached to an image, one after the other. What cannot be is said, and makes the command fail.
func (c *converter) image(ctx context.Context, stderr io.Writer, reference string) error {
	source, repository, image, closeSource, err := c.open(ctx, reference)
	if err != nil {
		return err
	}
	defer closeSource()
	found, err := source.Attachments(ctx, image)
	if err != nil {
		return err
	}
	wanted := sign.PredicateType(c.typeURI)
	done, left := 0, 0
	for _, a := range found {
		if (a.Form == oci.FormBundle) != (c.to == "legacy") || wanted != "" && a.PredicateType != wanted {
			continue
		}
		if err := c.one(ctx, repository, image, a, found); err != nil {
			left++
			fmt.Fprintf(stderr, "%s: %v\n", a.Location, withReason(err))
			continue
		}
		done++
		fmt.Fprintf(stderr, "%s: attached as %s\n", a.Location, c.to)
	}
	switch {
	case left > 0:
		return fmt.Errorf("%d of %d attachments were converted", done, done+left)
	case done == 0:
		return errors.New("nothing is attached that could be converted")
	}
	return nil
}

// open finds the image and where its attachments are.
func (c *converter) open(ctx context.Context, reference string) (oci.Source, attachment.Repository, oci.Image, func(), error) {
	fail := func(err error) (oci.Source, attachment.Repository, oci.Image, func(), error) {
		return nil, nil, oci.Image{}, nil, err
	}
	var source oci.Source
	var repository attachment.Repository
	var closeSource func()
	if c.dir != "" {
		layout, err := oci.OpenLayout(c.dir, 0)
		if err != nil {
			return fail(fmt.Errorf("--dir: %w", err))
		}
		source, closeSource = layout, func() { layout.Close() }
		if repository, err = attachment.OpenLayout(c.dir); err != nil {
			return fail(err)
		}
	} else {
		registry, err := c.registry.open(reference)
		if err != nil {
			return fail(err)
		}
		source, closeSource = registry, registry.Close
		ref, err := c.registry.parse(reference)
		if err != nil {
			return fail(err)
		}
		if repository, err = c.registry.write(ctx, ref.Context()); err != nil {
			return fail(err)
		}
	}
	image, err := source.Resolve(ctx, reference)
	if err != nil {
		closeSource()
		return fail(err)
	}
	return source, repository, image, closeSource, nil
}

// one converts one attachment. present are all that there are: what has its equivalent already is left alone.
func (c *converter) one(ctx context.Context, repository attachment.Repository, image oci.Image, a oci.Attachment, present []oci.Attachment) error {
	result, err := oci.Verify(c.verifier, a, image.Digest, c.policy)
	if err != nil {
		return fmt.Errorf("not verified: %s: %w", verify.ReasonOf(err), err)
	}
	if c.to == "bundle" {
		return c.toBundle(ctx, repository, image, a, present)
	}
	if result.Statement != nil && result.Statement.PredicateType == sign.ImagePredicateType {
		return attachment.NotExpressible("the signature of an image is a signed statement in a bundle and a signed document in a .sig tag; sign again with attestry sign --form legacy")
	}
	layer, err := attachment.EnvelopeLayer(a.Bundle, c.trusted)
	if err != nil {
		return err
	}
	converted, err := oci.FromLayer(oci.FormEnvelope, layer.Blob, layer.Annotations)
	if err != nil {
		return err
	}
	if _, err := oci.Verify(c.verifier, *converted, image.Digest, c.policy); err != nil {
		return fmt.Errorf("what it became does not verify: %s: %w", verify.ReasonOf(err), err)
	}
	return attachment.AttachLayers(ctx, repository, c.registry.tagPrefix, image.Digest, layer)
}

func (c *converter) toBundle(ctx context.Context, repository attachment.Repository, image oci.Image, a oci.Attachment, present []oci.Attachment) error {
	if a.Form == oci.FormSimpleSigning {
		return attachment.NotExpressible("the signature in a .sig tag is over a document that names the image, and a bundle's has to be over a statement; sign again with attestry sign")
	}
	bundle, err := attachment.Upgrade(ctx, a.Bundle, c.log, true)
	if err != nil {
		return err
	}
	converted := oci.Attachment{Form: oci.FormBundle, Bundle: bundle}
	if _, err := oci.Verify(c.verifier, converted, image.Digest, c.policy); err != nil {
		return fmt.Errorf("what it became does not verify: %s: %w", verify.ReasonOf(err), err)
	}
	for _, p := range present {
		if p.Form == oci.FormBundle && bytes.Equal(envelopeOf(p.Bundle), envelopeOf(bundle)) {
			return nil
		}
	}
	m, err := repository.Manifest(ctx, image.Digest)
	if err != nil {
		return err
	}
	_, err = attachment.AttachBundle(ctx, repository, m, bundle, time.Now())
	return err
}

// envelopeOf is what makes two bundles the same attestation.
func envelopeOf(bundle []byte) []byte {
	var fields struct {
		Envelope struct {
			Payload    []byte `json:"payload"`
			Signatures []struct {
				Sig []byte `json:"sig"`
			} `json:"signatures"`
		} `json:"dsseEnvelope"`
	}
	if json.Unmarshal(bundle, &fields) != nil || len(fields.Envelope.Signatures) != 1 {
		return nil
	}
	return append(fields.Envelope.Signatures[0].Sig, fields.Envelope.Payload...)
}
