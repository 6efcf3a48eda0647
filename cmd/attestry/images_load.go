package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/limit"
)

const (
	maxCarriedList = 64 << 10 // bytes
	maxImages      = 100
)

type imagesLoadFlags struct {
	from, registry string
	insecure       bool
}

func newImagesLoadCommand() *cobra.Command {
	var f imagesLoadFlags
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Push the images of an unpacked air-gap archive into a registry",
		Long: `Push the images of an unpacked air-gap archive into a registry, for all platforms, and print the chart's values that name them there.

Every image must have the digest that images.txt says, and has it in the registry afterwards; so compare images.txt with what its maker
published, or its checksum, and nothing else. Images that are there already are not sent again. Credentials are docker's.`,
		Example: "  tar -xf attestry-0.1.0.tar\n  sha256sum --quiet -c SHA256SUMS\n  bin/attestry-amd64 images load --from . --registry registry.example.com/mirror > images.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runImagesLoad(cmd.Context(), f, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.from, "from", ".", "directory with oci and images.txt")
	flags.StringVar(&f.registry, "registry", "", "registry, and perhaps a path in it, as registry.example.com/mirror")
	flags.BoolVar(&f.insecure, "insecure", false, "the registry has no TLS; one on loopback needs no mention")
	cmd.MarkFlagRequired("registry")
	return cmd
}

// carriedImage is a line of images.txt: REGISTRY/REPOSITORY:TAG@DIGEST.
type carriedImage struct {
	repository, tag string
	digest          v1.Hash
}

func runImagesLoad(ctx context.Context, f imagesLoadFlags, stdout, stderr io.Writer) error {
	text, err := limit.ReadFile(filepath.Join(f.from, "images.txt"), maxCarriedList)
	if err != nil {
		return fmt.Errorf("--from: %w", err)
	}
	list, err := parseImageList(string(text))
	if err != nil {
		return err
	}
	path, err := layout.FromPath(filepath.Join(f.from, "oci"))
	if err != nil {
		return fmt.Errorf("--from: %w", err)
	}
	all, err := path.ImageIndex()
	if err != nil {
		return fmt.Errorf("--from: %w", err)
	}
	var options []name.Option
	if f.insecure {
		options = append(options, name.Insecure)
	}
	for _, image := range list {
		target, err := name.NewTag(strings.TrimRight(f.registry, "/")+"/"+image.repository+":"+image.tag, append(options, name.StrictValidation)...)
		if err != nil {
			return fmt.Errorf("--registry: %w", err)
		}
		index, err := all.ImageIndex(image.digest)
		if err != nil {
			return fmt.Errorf("%s: the layout has no image with the digest that images.txt says: %w", image.repository, err)
		}
		if digest, err := index.Digest(); err != nil || digest != image.digest {
			return fmt.Errorf("%s: it has the digest %s, images.txt says %s (%v)", image.repository, digest, image.digest, err)
		}
		with := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithUserAgent("attestry")}
		if err := remote.WriteIndex(target, index, with...); err != nil {
			return fmt.Errorf("%s: %w", target, err)
		}
		there, err := remote.Head(target, with...)
		if err != nil {
			return fmt.Errorf("%s: %w", target, err)
		}
		if there.Digest != image.digest {
			return fmt.Errorf("%s: the registry has it as %s, which is not what was sent", target, there.Digest)
		}
		fmt.Fprintf(stderr, "%s@%s\n", target, image.digest)
	}
	return printImageValues(stdout, strings.TrimRight(f.registry, "/"), list)
}

func parseImageList(text string) ([]carriedImage, error) {
	var list []carriedImage
	for _, line := range strings.Fields(text) {
		reference, digest, ok := strings.Cut(line, "@")
		if !ok {
			return nil, fmt.Errorf("images.txt: %q has no digest", line)
		}
		tag, err := name.NewTag(reference, name.StrictValidation)
		if err != nil {
			return nil, fmt.Errorf("images.txt: %w", err)
		}
		hash, err := v1.NewHash(digest)
		if err != nil {
			return nil, fmt.Errorf("images.txt: %w", err)
		}
		if list = append(list, carriedImage{tag.RepositoryStr(), tag.TagStr(), hash}); len(list) > maxImages {
			return nil, fmt.Errorf("images.txt: over %d images", maxImages)
		}
	}
	if len(list) == 0 {
		return nil, errors.New("images.txt: it names no image")
	}
	return list, nil
}

// printImageValues writes what the chart has to be told: the registry, and the digest of each role. The variants for tokens go
// in place of a role's image, by hand.
func printImageValues(w io.Writer, registry string, list []carriedImage) error {
	if _, err := fmt.Fprintf(w, "global:\n  imageRegistry: %s\nimages:\n  tag: %q\n", registry, list[0].tag); err != nil {
		return err
	}
	for _, role := range [][2]string{{"attestry", "attestry"}, {"ca", "ca"}, {"tlog", "tlog"}, {"tsa", "tsa"}, {"tuf", "tuf-publisher"}, {"admission", "admission"}} {
		at := slices.IndexFunc(list, func(i carriedImage) bool { return i.repository == "attestry/"+role[1] })
		if at < 0 {
			continue
		}
		if _, err := fmt.Fprintf(w, "  %s: {repository: %s, digest: %q}\n", role[0], list[at].repository, list[at].digest); err != nil {
			return err
		}
	}
	return nil
}
