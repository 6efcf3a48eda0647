package carry

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/attachment"
	"github.com/attestry/attestry/pkg/policy"
	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// Demands are what each image of a set has to have.
type Demands struct {
	// Require are predicate types (URIs). An image has one when an attestation of that type verifies, of it or of each
	// image of an index.
	Require []string
	// Unsigned lets images pass without a signature.
	Unsigned bool
	// Keys are public keys whose signatures count beside those of the identities for which an authority of the trusted root
	// vouches. Which of these may sign an image is for policies to say.
	Keys []crypto.PublicKey
	// Policies have to allow each image, where there are any.
	Policies Judging
}

// Anchor is what the receiver of a set believes without it: a TUF root, or a trusted root, or the key that signed it.
type Anchor struct {
	TUFRoot     []byte
	TrustedRoot []byte
	// Policy says who must have signed the set.
	Policy *verify.Policy
	// MaxTrustAge is how long ago the set's TUF metadata may have expired; 0 means that it is only reported.
	MaxTrustAge time.Duration
	Now         time.Time
}

// Report is what a set holds.
type Report struct {
	Complete bool          `json:"complete"`
	Signer   string        `json:"signer,omitempty"` // of the set; empty before it is signed
	Trust    Trust         `json:"trust"`
	Policies []string      `json:"policies,omitempty"`
	Images   []ImageReport `json:"images"`
	Files    int           `json:"files"`
	Bytes    int64         `json:"bytes"`
	Problems []string      `json:"problems,omitempty"`
	Warnings []string      `json:"warnings,omitempty"`
}

// Trust says which trusted root a set has and how fresh it is.
type Trust struct {
	Digest  string               `json:"digest"`            // of trusted_root.json
	TUFRoot int64                `json:"tufRoot,omitempty"` // version that the set leads to; 0 without a TUF chain
	Expires map[string]time.Time `json:"expires,omitempty"` // by TUF role
}

// ImageReport is what there is of one image.
type ImageReport struct {
	Name     string     `json:"name"`
	Digest   string     `json:"digest"`
	Children []string   `json:"children,omitempty"`
	Attached int        `json:"attached"` // manifests, to the image and its parts
	Verified []Evidence `json:"verified"`
	Missing  []string   `json:"missing,omitempty"`  // "signature" or predicate types
	Unproven []string   `json:"unproven,omitempty"` // attachments that do not verify, with the reason
	// Verdict is what the policies say inside, of the image's name there; none without policies.
	Verdict *policy.Verdict `json:"verdict,omitempty"`
}

// Lacks reports whether something of the image is missing, or a policy refuses it.
func (r *ImageReport) Lacks() bool {
	return len(r.Missing) > 0 || r.Verdict != nil && !r.Verdict.Allowed
}

// Evidence is a signature or attestation that verifies.
type Evidence struct {
	Digest        string `json:"digest"`        // of the image that it is about
	PredicateType string `json:"predicateType"` // https://sigstore.dev/cosign/sign/v1 for a signature of either form
	Form          string `json:"form"`
	Signer        string `json:"signer"`
}

// Check reads a set from end to end, compares it with its manifest, verifies who signed that, and reports what its images
// have. It makes no connection. An error means that the set is not what its signer made of it; a report that is not complete means
// that the set is, and lacks something.
func Check(ctx context.Context, name string, a Anchor, d Demands) (*Report, error) {
	s, err := open(ctx, name, a)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	d.Require = union(d.Require, s.manifest.Require)
	report, err := examine(ctx, name, s.manifest, s.trustedRoot, d, a.Now)
	if err != nil {
		return nil, err
	}
	report.Signer = s.signer
	if s.chain != nil {
		report.Trust.TUFRoot, report.Trust.Expires = s.chain.root, s.chain.expires
		for _, role := range []string{"root", "targets", "snapshot", "timestamp"} {
			age := a.Now.Sub(s.chain.expires[role])
			if age <= 0 {
				continue
			}
			text := fmt.Sprintf("the TUF metadata of %s has expired %s ago", role, age.Round(time.Second))
			if a.MaxTrustAge > 0 && age > a.MaxTrustAge {
				report.Problems = append(report.Problems, text)
				report.Complete = false
			} else {
				report.Warnings = append(report.Warnings, text)
			}
		}
	} else {
		report.Warnings = append(report.Warnings, "the set has no TUF metadata: nothing says whether its trusted root is the newest")
	}
	return report, nil
}

func union(lists ...[]string) []string {
	all := slices.Concat(lists...)
	slices.Sort(all)
	return slices.Compact(all)
}

// set is an opened set whose manifest, files and signature were compared.
type set struct {
	files       fs.FS
	close       func() error
	manifest    *Manifest
	trustedRoot []byte
	chain       *chain
	signer      string
}

func (s *set) Close() error { return s.close() }

func refused(reason string, err error, format string, args ...any) error {
	return fault.New(fault.Denied, reason, err, format, args...)
}

// open establishes, in this order: what to believe, who signed carry.json, that every file is the listed one, and that there is
// no other.
func open(ctx context.Context, name string, a Anchor) (*set, error) {
	files, closer, err := Files(name)
	if err != nil {
		return nil, err
	}
	s := &set{files: files, close: closer.Close}
	if err := s.load(ctx, a); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *set) load(ctx context.Context, a Anchor) error {
	raw, err := limit.ReadFS(s.files, manifestFile, maxManifestFile)
	if errors.Is(err, fs.ErrNotExist) {
		return refused("carry-unfinished", err, "no carry set, or one that was not finished")
	} else if err != nil {
		return err
	}
	bundle, err := limit.ReadFS(s.files, signatureFile, maxSignature)
	if errors.Is(err, fs.ErrNotExist) {
		return refused("carry-unfinished", err, "the set is not signed: it was not finished, or its signature was taken away")
	} else if err != nil {
		return err
	}
	if s.trustedRoot, err = limit.ReadFS(s.files, rootFile, maxTrustedRoot); err != nil {
		return err
	}
	if err := s.verifySigner(ctx, a, raw, bundle); err != nil {
		return err
	}
	if s.manifest, err = parseManifest(raw); err != nil {
		return err
	}
	return s.compare(ctx)
}

func (s *set) verifySigner(ctx context.Context, a Anchor, raw, bundle []byte) error {
	if a.Policy == nil {
		return errors.New("say who must have signed the set")
	}
	if _, err := fs.Stat(s.files, tufDir); err == nil {
		root := a.TUFRoot
		if root == nil { // then the chain is worth no more than the signature of the set
			if root, err = s.firstRoot(); err != nil {
				return err
			}
		}
		if s.chain, err = readChain(ctx, filesReader(s.files, tufDir), root, time.Time{}); err != nil {
			return refused("carry-trust", err, "the set's TUF metadata does not lead from the given root to its trusted root")
		}
		if !bytes.Equal(s.chain.trustedRoot, s.trustedRoot) {
			return refused("carry-trust", nil, "the set's trusted root is not the one that its TUF metadata names")
		}
	} else if a.TUFRoot != nil {
		return refused("carry-trust", nil, "the set has no TUF metadata that could be compared with the given root")
	}
	trusted := s.trustedRoot
	signed := *a.Policy
	switch {
	case signed.Key != nil:
		// The key vouches for all of the set, the trusted root included, whatever log that names.
		signed.Requirements = &verify.Requirements{}
	case a.TUFRoot != nil:
	case a.TrustedRoot != nil:
		trusted = a.TrustedRoot
	default:
		return errors.New("an identity is worth what the trusted root is worth, and the set's own is no proof: give a TUF root or a trusted root that you have from elsewhere, or demand a key")
	}
	verifier, err := verify.New(trusted)
	if err != nil {
		return err
	}
	result, err := verifier.Verify(bundle, verify.FromBytes(raw), &signed)
	if err != nil {
		return fmt.Errorf("the signature of the set: %w", err)
	}
	s.signer = signerOf(result)
	return nil
}

// firstRoot is the oldest root of the set.
func (s *set) firstRoot() ([]byte, error) {
	for v := int64(1); v <= maxRoots; v++ {
		data, err := limit.ReadFS(s.files, tufDir+"/"+versioned("root", v), maxTUFFile)
		if !errors.Is(err, fs.ErrNotExist) {
			return data, err
		}
	}
	return nil, refused("carry-trust", nil, "the set's TUF metadata has no root")
}

func signerOf(r *verify.Result) string {
	if id := r.VerifiedIdentity; id != nil {
		return fmt.Sprintf("%s (%s)", id.Subject, id.Issuer)
	}
	return fmt.Sprintf("key %x", r.Signature.PublicKeyID)
}

// compare hashes every file.
func (s *set) compare(ctx context.Context) error {
	for _, want := range s.manifest.Files {
		if err := ctx.Err(); err != nil {
			return err
		}
		got, err := digestOfFile(s.files, want.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return refused("carry-file-missing", err, "%s is missing", want.Path)
		}
		if err != nil {
			return err
		}
		if got != want {
			return refused("carry-file-changed", nil, "%s has another size or digest than its signer saw", want.Path)
		}
	}
	n := 0
	return fs.WalkDir(s.files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if n++; n > maxFiles+2 {
			return refused("too-large", nil, "over %d files", maxFiles)
		}
		if name == manifestFile || name == signatureFile {
			return nil
		}
		_, listed := slices.BinarySearchFunc(s.manifest.Files, name, func(f File, name string) int { return strings.Compare(f.Path, name) })
		if !listed {
			return refused("carry-file-unknown", nil, "%s is not a file of the set", name)
		}
		return nil
	})
}

// examine reports on the images of a set, which is a directory or a tar.
func examine(ctx context.Context, name string, m *Manifest, trustedRoot []byte, d Demands, now time.Time) (*Report, error) {
	files, closer, err := Files(name)
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	layout, err := attachment.ReadLayout(files)
	if err != nil {
		return nil, err
	}
	source, err := openSource(name)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	verifier, err := verify.New(trustedRoot)
	if err != nil {
		return nil, err
	}
	e := &examiner{layout: layout, source: source, verifier: verifier, demands: d, listed: map[string]bool{}}
	report := &Report{Complete: true, Trust: Trust{Digest: digestOf(trustedRoot)}, Files: len(m.Files)}
	for _, f := range m.Files {
		e.listed[f.Path] = true
		report.Bytes += f.Bytes
		if carried, ok := strings.CutPrefix(f.Path, policyDir+"/"); ok {
			report.Policies = append(report.Policies, carried)
		}
	}
	judge, err := newJudge(d.Policies, report.Policies, files, trustedRoot, now)
	if err != nil {
		if len(d.Policies.Files) > 0 || len(report.Policies) == 0 { // not the set's fault
			return nil, fmt.Errorf("policies: %w", err)
		}
		report.Problems = append(report.Problems, "the set's policies: "+err.Error())
		report.Complete = false
	}
	for _, image := range m.Images {
		r, err := e.image(ctx, image)
		if err == nil && judge != nil {
			r.Verdict, err = judge.decide(ctx, image, source)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", image.Name(), err)
		}
		report.Images = append(report.Images, *r)
		if r.Lacks() {
			report.Complete = false
		}
	}
	return report, nil
}

// openSource opens a set as the verifier of images reads it.
func openSource(name string) (*oci.Layout, error) {
	if info, err := os.Stat(name); err != nil {
		return nil, err
	} else if info.IsDir() {
		return oci.OpenLayout(name, 0)
	}
	return oci.OpenArchive(name, 0)
}

type examiner struct {
	layout   *attachment.Layout
	source   *oci.Layout
	verifier *verify.Verifier
	demands  Demands
	listed   map[string]bool
}

// image requires that all parts of an image are in the set, and verifies what is attached.
func (e *examiner) image(ctx context.Context, image Image) (*ImageReport, error) {
	r := &ImageReport{Name: image.Name(), Digest: image.Digest, Attached: len(image.Attached), Verified: []Evidence{}}
	if err := e.whole(ctx, image.Digest, 0, &r.Children); err != nil {
		return nil, err
	}
	for _, a := range image.Attached {
		var none []string
		if err := e.whole(ctx, a.Digest, 0, &none); err != nil {
			return nil, err
		}
	}
	subjects := append([]string{image.Digest}, r.Children...)
	has := map[string]map[string]bool{} // predicate types by digest
	for _, digest := range subjects {
		has[digest] = map[string]bool{}
		found, err := e.source.Attachments(ctx, oci.Image{Reference: image.Name(), Name: image.Repository, Digest: digest})
		if err != nil { // beside what could be read
			r.Unproven = append(r.Unproven, err.Error())
		}
		for _, a := range found {
			result, err := e.verify(a, digest)
			if err != nil {
				r.Unproven = append(r.Unproven, fmt.Sprintf("%s: %s: %v", a.Location, verify.ReasonOf(err), err))
				continue
			}
			kind := oci.PredicateSignature
			if result.Statement != nil {
				kind = result.Statement.PredicateType
			}
			has[digest][kind] = true
			r.Verified = append(r.Verified, Evidence{Digest: digest, PredicateType: kind, Form: string(a.Form), Signer: signerOf(result)})
		}
	}
	required := e.demands.Require
	if !e.demands.Unsigned {
		required = union(required, []string{oci.PredicateSignature})
	}
	for _, kind := range required {
		of := func(digest string) bool { return has[digest][kind] }
		if !of(image.Digest) && (len(r.Children) == 0 || !all(r.Children, of)) {
			r.Missing = append(r.Missing, kind)
		}
	}
	return r, nil
}

func all(digests []string, f func(string) bool) bool {
	return !slices.ContainsFunc(digests, func(d string) bool { return !f(d) })
}

// verify tries any identity and then each key.
func (e *examiner) verify(a oci.Attachment, digest string) (*verify.Result, error) {
	anyone, err := verify.NewIdentity("", "(?s).*", "", "(?s).*")
	if err != nil {
		return nil, err
	}
	result, err := oci.Verify(e.verifier, a, digest, &verify.Policy{Identities: []verify.Identity{anyone}})
	for _, key := range e.demands.Keys {
		if err == nil {
			break
		}
		if byKey, keyErr := oci.Verify(e.verifier, a, digest, &verify.Policy{Key: key}); keyErr == nil {
			return byKey, nil
		}
	}
	return result, err
}

// whole requires that a manifest and all of its parts are in the set, and collects the images of an index.
func (e *examiner) whole(ctx context.Context, digest string, depth int, children *[]string) error {
	if depth > maxDepth {
		return fmt.Errorf("manifest %s: indexes in indexes deeper than %d", digest, maxDepth)
	}
	if !e.listed[blobPath(digest)] {
		return refused("carry-incomplete", nil, "manifest %s is not in the set", digest)
	}
	m, err := e.layout.Manifest(ctx, digest)
	if err != nil {
		return err
	}
	manifests, blobs, err := parts(m)
	if err != nil {
		return err
	}
	for _, d := range blobs {
		if !e.listed[blobPath(d.Digest.String())] {
			return refused("carry-incomplete", nil, "blob %s of %s is not in the set", d.Digest, digest)
		}
	}
	for _, d := range manifests {
		if err := e.whole(ctx, d.Digest.String(), depth+1, children); err != nil {
			return err
		}
		if p := d.Platform; p != nil && p.OS == "unknown" && p.Architecture == "unknown" {
			continue // BuildKit's attestations: no image that can run
		}
		if !slices.Contains(*children, d.Digest.String()) {
			*children = append(*children, d.Digest.String())
		}
	}
	return nil
}
