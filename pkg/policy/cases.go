package policy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// Limits of cases.
const (
	maxCaseFiles  = 1000
	maxCaseBytes  = 1 << 20
	maxCases      = 1000 // of one file
	maxCaseBundle = 16 << 20
)

// Case is one expectation about policies and an image, with all that it needs in files beside it. Paths are relative to the
// file that the case is in.
type Case struct {
	File, Name string
	Line       int

	spec caseSpec
	dir  string
}

type caseFile struct {
	Cases []caseSpec `json:"cases"`
}

type caseSpec struct {
	Name        string    `json:"name"`
	Policy      oneOrMore `json:"policy"`       // files or directories
	Combine     string    `json:"combine"`      // expression over the policies' names; else all of them count
	TrustedRoot string    `json:"trusted_root"` // of policies that name none
	Image       string    `json:"image"`        // NAME@DIGEST of bundles; in a layout or an archive the name there
	Layout      string    `json:"layout"`
	Archive     string    `json:"archive"`
	Bundle      oneOrMore `json:"bundle"`
	Resource    string    `json:"resource"` // the object that wants to run it
	NoMatch     string    `json:"no_match"`
	CUE         string    `json:"cue"`
	Expect      string    `json:"expect"`
	Reason      string    `json:"reason"`
}

// oneOrMore is a string or a list of strings.
type oneOrMore []string

// ReadCases reads the cases of all files under dir whose names end in _test.yaml or _test.yml: documents with a list of cases.
func ReadCases(dir string) ([]*Case, error) {
	var cases []*Case
	n := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, "_test.yaml") && !strings.HasSuffix(path, "_test.yml") {
			return err
		}
		if n++; n > maxCaseFiles {
			return fmt.Errorf("more than %d files", maxCaseFiles)
		}
		data, err := limit.ReadFile(path, maxCaseBytes)
		if err != nil {
			return err
		}
		found, err := parseCases(path, data)
		cases = append(cases, found...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading cases: %w", err)
	}
	if len(cases) == 0 {
		return nil, fmt.Errorf("%s has no file named …_test.yaml with cases", dir)
	}
	return cases, nil
}

func parseCases(path string, data []byte) ([]*Case, error) {
	docs, err := splitDocuments(path, data)
	if err != nil {
		return nil, err
	}
	var cases []*Case
	for _, d := range docs {
		var file caseFile
		if err := d.decode(&file); err != nil {
			return nil, err
		}
		list := member(d.node, "cases")
		if n := len(file.Cases); n == 0 || n > maxCases {
			return nil, fmt.Errorf("%s: 1 to %d cases are required, there are %d", d.position(d.node), maxCases, n)
		}
		for i, spec := range file.Cases {
			c := &Case{File: path, Name: spec.Name, Line: list.Content[i].Line, spec: spec, dir: filepath.Dir(path)}
			if err := spec.check(); err != nil {
				return nil, fmt.Errorf("%s: %w", d.position(list.Content[i]), err)
			}
			if c.Name == "" {
				c.Name = fmt.Sprintf("case %d", i+1)
			}
			cases = append(cases, c)
		}
	}
	return cases, nil
}

func (s *caseSpec) check() error {
	places := 0
	for _, has := range []bool{s.Layout != "", s.Archive != "", len(s.Bundle) > 0} {
		if has {
			places++
		}
	}
	switch {
	case len(s.Policy) == 0:
		return errors.New("policy is required")
	case s.Expect != "allow" && s.Expect != "deny":
		return fmt.Errorf("expect is %q, neither allow nor deny", s.Expect)
	case s.Expect == "allow" && s.Reason != "":
		return errors.New("reason goes with expect: deny")
	case places > 1:
		return errors.New("give one of layout, archive and bundle")
	case s.Image == "" && s.Layout == "" && s.Archive == "":
		return errors.New("image is required: NAME@DIGEST")
	}
	return nil
}

// CaseResult is what a case came to, and what differs from what it expects.
type CaseResult struct {
	Verdict Verdict
	Differs []string
}

// Run decides the case, from files alone. An error is of what the case needs: a file, a policy that does not load.
func (c *Case) Run(ctx context.Context) (*CaseResult, error) {
	set, err := c.policies()
	if err != nil {
		return nil, err
	}
	subject := &Subject{}
	if c.spec.Resource != "" {
		data, err := limit.ReadFile(c.path(c.spec.Resource), maxCaseBytes)
		if err != nil {
			return nil, err
		}
		if subject, err = ReadSubject(data); err != nil {
			return nil, fmt.Errorf("%s: %w", c.spec.Resource, err)
		}
	}
	source, closeSource, err := c.source()
	if err != nil {
		return nil, err
	}
	defer closeSource()
	if subject.Image, err = source.Resolve(ctx, c.spec.Image); err != nil {
		return nil, err
	}
	r := &CaseResult{Verdict: set.Decide(ctx, subject, source)}
	if allowed := r.Verdict.Allowed; allowed != (c.spec.Expect == "allow") {
		r.Differs = append(r.Differs, fmt.Sprintf("want %s, got %s", c.spec.Expect, map[bool]string{true: "allow", false: "deny"}[allowed]))
	}
	if reasons := r.Verdict.reasons(); c.spec.Reason != "" && !r.Verdict.Allowed && !slices.Contains(reasons, verify.Reason(c.spec.Reason)) {
		r.Differs = append(r.Differs, fmt.Sprintf("want reason %s, got %v", c.spec.Reason, reasons))
	}
	return r, nil
}

// reasons are those of all that refuses.
func (v *Verdict) reasons() []verify.Reason {
	var reasons []verify.Reason
	if v.Reason != "" {
		reasons = append(reasons, v.Reason)
	}
	for _, o := range v.Policies {
		if !o.Passed && o.Mode == ModeEnforce {
			reasons = append(reasons, o.Reason)
		}
	}
	return reasons
}

func (c *Case) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(c.dir, name)
}

func (c *Case) policies() (*Set, error) {
	var paths []string
	for _, p := range c.spec.Policy {
		paths = append(paths, c.path(p))
	}
	o := Options{CUE: c.spec.CUE}
	if c.spec.TrustedRoot != "" {
		var err error
		if o.TrustedRoot, err = limit.ReadFile(c.path(c.spec.TrustedRoot), maxFileBytes); err != nil {
			return nil, err
		}
	}
	loaded, err := Load(paths, o)
	if err != nil {
		return nil, err
	}
	return NewSet(loaded.Policies, SetOptions{NoMatch: c.spec.NoMatch, Combine: c.spec.Combine, Version: loaded.Version})
}

// source is where the case's image is.
func (c *Case) source() (oci.Source, func(), error) {
	var layout *oci.Layout
	var err error
	switch {
	case c.spec.Layout != "":
		layout, err = oci.OpenLayout(c.path(c.spec.Layout), 0)
	case c.spec.Archive != "":
		layout, err = oci.OpenArchive(c.path(c.spec.Archive), 0)
	default:
		b := bundles{}
		for _, name := range c.spec.Bundle {
			data, err := limit.ReadFile(c.path(name), maxCaseBundle)
			if err != nil {
				return nil, nil, err
			}
			b = append(b, oci.Attachment{Form: oci.FormBundle, Bundle: data, Location: name})
		}
		return b, func() {}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	return layout, func() { layout.Close() }, nil
}

// bundles is a source of one image that has these bundles attached and nothing else.
type bundles []oci.Attachment

func (b bundles) Resolve(_ context.Context, reference string) (oci.Image, error) {
	if !strings.Contains(reference, "@") {
		return oci.Image{}, fmt.Errorf("image %q has no digest: bundles do not say of which image they are", reference)
	}
	image, err := imageOfReference(reference)
	if err != nil {
		return oci.Image{}, fmt.Errorf("image %q: %w", reference, err)
	}
	return image, nil
}

func (b bundles) Children(context.Context, oci.Image) ([]oci.Image, error) { return nil, nil }

func (b bundles) Attachments(context.Context, oci.Image) ([]oci.Attachment, error) { return b, nil }

func (b bundles) Configs(context.Context, oci.Image) (map[string][]byte, error) {
	return nil, os.ErrNotExist
}
