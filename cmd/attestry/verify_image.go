package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// imageFlags are those of `attestry verify` for images.
type imageFlags struct {
	registry         registryFlags
	dir, archive     string
	children         string
	requireReference bool
}

func (f *imageFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "", "verify an image in this OCI layout or cosign save directory, without a network; IMAGE names it there, and may be left out where there is only one")
	flags.StringVar(&f.archive, "archive", "", "the same for an OCI archive or the file of docker save")
	flags.StringVar(&f.children, "children", "index", "of an index of several platforms: index when the index has to be signed, all when each of its images, any when either will do")
	flags.BoolVar(&f.requireReference, "require-reference", false, "demand that what was signed names the image's repository beside its digest")
	f.registry.register(flags)
}

// wanted reports whether the arguments name an image.
func (f *imageFlags) wanted(args []string) bool {
	if f.dir != "" || f.archive != "" {
		return true
	}
	if len(args) != 1 || !isReference(args[0]) {
		return false
	}
	_, err := os.Stat(args[0])
	return err != nil
}

// imageVerdict is what --output json prints of an image.
type imageVerdict struct {
	Verified bool            `json:"verified"`
	Image    string          `json:"image,omitempty"` // NAME@DIGEST
	Reason   verify.Reason   `json:"reason,omitempty"`
	Class    verify.Reason   `json:"class,omitempty"` // the wider code that Reason belongs to
	Error    string          `json:"error,omitempty"`
	Retry    bool            `json:"retry,omitempty"` // trying again can help
	Passed   []imagePassed   `json:"passed,omitempty"`
	Failed   []imageFailed   `json:"failed,omitempty"`
	Unread   string          `json:"unread,omitempty"` // what could not be read, when enough else was
	Children []*imageVerdict `json:"children,omitempty"`
}

type imagePassed struct {
	Form     oci.Form       `json:"form"`
	Location string         `json:"location"`
	Result   *verify.Result `json:"result"`
}

type imageFailed struct {
	Form     oci.Form      `json:"form"`
	Location string        `json:"location"`
	Reason   verify.Reason `json:"reason"`
	Error    string        `json:"error"`
}

// imageCheck verifies images of one source under one policy.
type imageCheck struct {
	source   oci.Source
	verifier *verify.Verifier
	policy   *verify.Policy
	bundle   []byte // takes the place of what is attached
	what     string // is demanded
	byName   bool
}

// run verifies the image that args name. verifier and policy are those of the flags for blobs.
func (f *imageFlags) run(ctx context.Context, args []string, verifier *verify.Verifier, policy *verify.Policy, bundle []byte) (*imageVerdict, error) {
	reference := ""
	if len(args) > 0 {
		reference = args[0]
	}
	switch f.children {
	case "index", "all", "any":
	default:
		return nil, fmt.Errorf("--children %q is not index, all or any", f.children)
	}
	source, closeSource, err := f.open(reference)
	if err != nil {
		return nil, err
	}
	defer closeSource()
	p := *policy
	c := &imageCheck{source: source, verifier: verifier, policy: &p, bundle: bundle, byName: f.requireReference}
	c.what = "attestation of type " + p.PredicateType
	if p.PredicateType == "" { // a signed report that a scan failed is no signature
		p.PredicateType, c.what = oci.PredicateSignature, "signature"
	}
	image, err := source.Resolve(ctx, reference)
	if err != nil {
		return &imageVerdict{Image: reference}, err
	}
	return c.withChildren(ctx, image, f.children)
}

func (f *imageFlags) open(reference string) (oci.Source, func(), error) {
	switch {
	case f.dir != "" && f.archive != "":
		return nil, nil, errors.New("give --dir or --archive, not both")
	case f.dir != "":
		l, err := oci.OpenLayout(f.dir, 0)
		if err != nil {
			return nil, nil, err
		}
		return l, func() { l.Close() }, nil
	case f.archive != "":
		l, err := oci.OpenArchive(f.archive, 0)
		if err != nil {
			return nil, nil, err
		}
		return l, func() { l.Close() }, nil
	}
	r, err := f.registry.open(reference)
	if err != nil {
		return nil, nil, err
	}
	return r, r.Close, nil
}

// withChildren applies --children.
func (c *imageCheck) withChildren(ctx context.Context, image oci.Image, which string) (*imageVerdict, error) {
	if which == "index" {
		return c.one(ctx, image)
	}
	children, err := c.source.Children(ctx, image)
	if err != nil {
		return &imageVerdict{Image: shown(image)}, err
	}
	if children == nil {
		return c.one(ctx, image)
	}
	v := &imageVerdict{Image: shown(image)}
	if which == "any" {
		if v, err = c.one(ctx, image); err == nil {
			return v, nil
		}
	}
	var refusal error
	for _, child := range children {
		one, childErr := c.one(ctx, child)
		if childErr != nil {
			one.refuse(childErr)
			if refusal == nil || verify.ReasonOf(refusal).Undecided() && !one.Reason.Undecided() { // that one decides: all had to verify
				refusal = fmt.Errorf("%s: %w", shown(child), childErr)
			}
		}
		v.Children = append(v.Children, one)
	}
	v.Verified = refusal == nil
	if refusal != nil && err != nil && verify.ReasonOf(err).Undecided() { // the index would have done
		refusal = oci.Unread(err, refusal)
	}
	return v, refusal
}

// one verifies what is attached to one digest.
func (c *imageCheck) one(ctx context.Context, image oci.Image) (*imageVerdict, error) {
	if c.bundle != nil {
		return c.among([]oci.Attachment{{Form: oci.FormBundle, Bundle: c.bundle, Location: "--bundle"}}, nil, image)
	}
	if hinted, ok := c.source.(oci.Hinted); ok {
		found, unread := hinted.Claiming(c.policy.PredicateType).Attachments(ctx, image)
		v, err := c.among(found, unread, image)
		if down, _ := oci.IsUnavailable(unread); err == nil || down { // asking for more would wait as long again
			return v, err
		}
	}
	found, unread := c.source.Attachments(ctx, image)
	return c.among(found, unread, image)
}

// among verifies attachments. unread is what could not be read of them.
func (c *imageCheck) among(found []oci.Attachment, unread error, image oci.Image) (*imageVerdict, error) {
	v := &imageVerdict{Image: shown(image)}
	var opts []oci.Option
	if c.byName {
		opts = append(opts, oci.RequireReference(image.Name))
	}
	passed, failed := oci.VerifyAll(c.verifier, found, image.Digest, c.policy, opts...)
	for _, p := range passed {
		v.Passed = append(v.Passed, imagePassed{p.Attachment.Form, p.Attachment.Location, p.Result})
	}
	for _, f := range failed {
		v.Failed = append(v.Failed, imageFailed{f.Form, f.Location, verify.ReasonOf(f.Err), onOneLine(f.Err)})
	}
	if len(passed) == 0 {
		return v, oci.Deepest(failed, unread, c.what, shown(image))
	}
	if unread != nil {
		v.Unread = onOneLine(unread)
	}
	v.Verified = true
	return v, nil
}

func (v *imageVerdict) refuse(err error) {
	v.Reason, v.Error = verify.ReasonOf(err), onOneLine(err)
	v.Class = v.Reason.Class()
	v.Retry, _ = oci.IsUnavailable(err)
}

func shown(image oci.Image) string {
	if image.Name == "" {
		return image.Digest
	}
	return image.Name + "@" + image.Digest
}

func onOneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// print writes a verdict to the streams of a command.
func (v *imageVerdict) print(stdout, stderr io.Writer, output string) error {
	if output == "json" {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(v); err != nil {
			return fmt.Errorf("writing the result: %w", err)
		}
		return nil
	}
	for _, one := range append([]*imageVerdict{v}, v.Children...) {
		for _, p := range one.Passed {
			fmt.Fprintf(stderr, "%s: %s (%s, %s)\n", one.Image, summary(p.Result), p.Form, p.Location)
		}
		if !one.Verified {
			for _, f := range one.Failed {
				fmt.Fprintf(stderr, "%s: not verified: %s: %s\n", f.Location, f.Reason, f.Error)
			}
		}
		if one.Unread != "" {
			fmt.Fprintln(stderr, "warning: not read:", one.Unread)
		}
	}
	return nil
}

// fromCosign turns the bundle file of cosign before version 3 into a bundle; any other is returned as it is. The file does not
// say what it signs, so that is taken from target, a file or a digest.
func fromCosign(data []byte, target string) ([]byte, error) {
	var digest []byte
	h := sha256.New()
	if f, err := os.Open(target); err == nil {
		defer f.Close()
		if _, ok, _ := oci.FromCosignBundleDigest(data, h.Sum(nil)); !ok {
			return data, nil
		}
		if _, err := io.Copy(h, f); err != nil {
			return nil, fmt.Errorf("reading the artifact: %w", err)
		}
		digest = h.Sum(nil)
	} else if value, ok := strings.CutPrefix(target, "sha256:"); ok {
		if digest, err = hex.DecodeString(value); err != nil {
			return data, nil
		}
	}
	bundle, ok, err := oci.FromCosignBundleDigest(data, digest)
	if !ok {
		return data, nil
	}
	return bundle, err
}

// runImage is run for an image.
func (f *verifyFlags) runImage(ctx context.Context, stdout, stderr io.Writer, args []string, image *imageFlags) error {
	if f.output != "text" && f.output != "json" {
		return undecided(fmt.Errorf("--output %q is neither text nor json", f.output))
	}
	policy, err := f.policy()
	if err != nil {
		return undecided(err)
	}
	verifier, _, err := f.trust.verifier(stderr)
	if err != nil {
		return f.refuse(stdout, err)
	}
	var bundle []byte
	if f.bundle != "" {
		if bundle, err = f.readBundle(""); err != nil {
			return undecided(err)
		}
	}
	v, err := image.run(ctx, args, verifier, policy, bundle)
	if v == nil {
		return undecided(err)
	}
	if err != nil {
		v.refuse(err)
	}
	if printErr := v.print(stdout, stderr, f.output); printErr != nil {
		return undecided(printErr)
	}
	switch {
	case err == nil:
		return nil
	case v.Reason.Undecided():
		return undecided(fmt.Errorf("not verified: %s: %s", v.Reason, v.Error))
	}
	return statusError{exitRefused, fmt.Errorf("not verified: %s: %s", v.Reason, v.Error)}
}
