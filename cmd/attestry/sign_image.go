package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/spf13/cobra"

	"github.com/attestry/attestry/pkg/attachment"
	"github.com/attestry/attestry/pkg/sign"
	"github.com/attestry/attestry/pkg/verify/oci"
)

const maxRecursion = 4 // of indexes in indexes

// imageSignFlags say which images are signed and how the signatures are attached.
type imageSignFlags struct {
	registry    registryFlags
	dir         string
	forms       []string
	identity    string
	recursive   bool
	annotations map[string]string
}

func (f *imageSignFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "", "sign an image in this OCI layout; IMAGE is its tag or digest there, and may be left out where there is only one")
	flags.StringSliceVar(&f.forms, "form", []string{"bundle"}, "form of attachment to an image: bundle, legacy, or both with a comma")
	flags.StringVar(&f.identity, "sign-container-identity", "", "repository that the signature of an image names, in place of its own")
	flags.BoolVar(&f.recursive, "recursive", false, "of an index, sign each image too")
	f.registry.register(flags)
}

// wanted reports whether the arguments name images.
func (f *imageSignFlags) wanted(args []string) bool {
	if f.dir != "" {
		return true
	}
	return len(args) > 0 && !slices.ContainsFunc(args, func(arg string) bool {
		_, err := os.Stat(arg)
		return err == nil || !isReference(arg)
	})
}

type attach func(context.Context, *attachment.Target, sign.Options, attachment.Form) (*attachment.Attached, error)

// run signs each image in each form, with one certificate.
func (f *imageSignFlags) run(ctx context.Context, stderr io.Writer, s *signFlags, references []string, do attach) error {
	var forms []attachment.Form
	for _, form := range f.forms {
		switch form := attachment.Form(form); form {
		case attachment.FormBundle, attachment.FormLegacy:
			forms = append(forms, form)
		default:
			return fmt.Errorf("--form %q is neither bundle nor legacy", form)
		}
	}
	var targets []*attachment.Target
	if f.dir != "" && len(references) == 0 {
		references = []string{""}
	}
	for _, reference := range references { // all of them, before a token is asked for
		found, err := f.targets(ctx, reference)
		if err != nil {
			return err
		}
		targets = append(targets, found...)
	}
	options, err := s.options(ctx, stderr)
	if err != nil {
		return err
	}
	options.Shared = &sign.Shared{}
	for _, t := range targets {
		for _, form := range forms {
			attached, err := do(ctx, t, options, form)
			if err != nil {
				return fmt.Errorf("%s: %w", nameOfTarget(t), err)
			}
			fmt.Fprintf(stderr, "%s: signed %s; attached as %s\n", nameOfTarget(t), signerName(attached.Result), attached.Form)
		}
	}
	return nil
}

func nameOfTarget(t *attachment.Target) string {
	if t.Name == "" {
		return t.Image.Digest
	}
	return t.Name + "@" + t.Image.Digest
}

// targets returns the image that a reference names and, when asked to, those of an index.
func (f *imageSignFlags) targets(ctx context.Context, reference string) ([]*attachment.Target, error) {
	var home, beside attachment.Repository
	var repository string
	if f.dir != "" {
		layout, err := attachment.OpenLayout(f.dir)
		if err != nil {
			return nil, fmt.Errorf("--dir: %w", err)
		}
		image, err := resolveInLayout(ctx, f.dir, reference)
		if err != nil {
			return nil, err
		}
		home, beside, repository, reference = layout, layout, image.Name, image.Digest
	} else {
		ref, err := f.registry.parse(reference)
		if err != nil {
			return nil, err
		}
		r, err := f.registry.write(ctx, ref.Context())
		if err != nil {
			return nil, err
		}
		home, beside, repository, reference = r, r, r.Name(), ref.Identifier()
		if place := f.registry.signatures(); place != "" {
			repo, err := name.NewRepository(place, f.registry.nameOptions(place)...)
			if err != nil {
				return nil, fmt.Errorf("repository of signatures: %w", err)
			}
			if beside, err = f.registry.write(ctx, repo); err != nil {
				return nil, err
			}
		}
	}
	if f.identity != "" {
		repository = f.identity
	}
	m, err := home.Manifest(ctx, reference)
	if err != nil {
		return nil, err
	}
	var all []*attachment.Target
	var add func(m *attachment.Manifest, depth int) error
	add = func(m *attachment.Manifest, depth int) error {
		if depth > maxRecursion {
			return fmt.Errorf("indexes in indexes deeper than %d", maxRecursion)
		}
		all = append(all, &attachment.Target{Image: m, Name: repository, Beside: beside, Prefix: f.registry.tagPrefix})
		if !f.recursive || m.MediaType != types.OCIImageIndex && m.MediaType != types.DockerManifestList {
			return nil
		}
		index, err := m.Index()
		if err != nil {
			return err
		}
		for _, d := range index.Manifests {
			child, err := home.Manifest(ctx, d.Digest.String())
			if err != nil {
				return err
			}
			if err := add(child, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	return all, add(m, 0)
}

// resolveInLayout finds an image by tag, name or digest; by nothing, the only one.
func resolveInLayout(ctx context.Context, dir, reference string) (oci.Image, error) {
	layout, err := oci.OpenLayout(dir, 0)
	if err != nil {
		return oci.Image{}, fmt.Errorf("--dir: %w", err)
	}
	defer layout.Close()
	return layout.Resolve(ctx, reference)
}

// signatures is the repository that takes signatures in place of the image's own, "" when there is none.
func (f *registryFlags) signatures() string {
	if f.repository != "" {
		return f.repository
	}
	return os.Getenv("COSIGN_REPOSITORY")
}

func (f *registryFlags) nameOptions(reference string) []name.Option {
	options := []name.Option{name.WeakValidation}
	if ref, err := name.ParseReference(reference, name.WeakValidation); err == nil && slices.Contains(f.insecure, ref.Context().RegistryStr()) {
		options = append(options, name.Insecure)
	}
	return options
}

// parse reads a reference that names its registry.
func (f *registryFlags) parse(reference string) (name.Reference, error) {
	if !isReference(reference) {
		return nil, fmt.Errorf("%q is neither a file nor an image by REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:HEX", reference)
	}
	return name.ParseReference(reference, f.nameOptions(reference)...)
}

// write opens a repository to write to, with the credentials, CAs and address rules of the flags.
func (f *registryFlags) write(ctx context.Context, repo name.Repository) (*attachment.Registry, error) {
	return f.repositoryOf(ctx, repo, true)
}

func (f *registryFlags) repositoryOf(ctx context.Context, repo name.Repository, write bool) (*attachment.Registry, error) {
	if len(f.mirrors) > 0 && write {
		return nil, errors.New("--registry-mirror is for reading: name the repository that is written to")
	}
	access, err := f.open(repo.Name())
	if err != nil {
		return nil, err
	}
	credentials, err := oci.FindCredentials(f.config, os.Getenv, f.helpers)
	if err != nil {
		return nil, err
	}
	return attachment.OpenRegistry(ctx, repo, authn.Keychain(credentials), access.Transport(), write)
}
