package carry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/policy"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// Judging says how policies decide about the images of a set, as admission inside will: under the set's trusted root, from what
// the set has of each image.
type Judging struct {
	// Files are the policies; without any it is those that the set carries.
	Files []policy.File
	// Inside is where the images will be, "inside.example" or "inside.example/prefix" as in Pushing.Registry: policies are asked about the
	// names there. Empty keeps the names.
	Inside string
	// Children says what of an index has to be allowed; empty is the index.
	Children policy.Children
	// NoMatch and Combine are those of policy.SetOptions, Mirrors those of policy.Options.
	NoMatch, Combine string
	Mirrors          map[string]fs.FS
}

// errNoPolicy is what a set's own policies come to when there are only documents that policies refer to.
var errNoPolicy = errors.New("there is no policy, only what policies refer to")

// judge decides about images; nil where there are no policies.
type judge struct {
	Judging
	set *policy.Set
}

// newJudge compiles policies. carried are the names of those in the set.
func newJudge(j Judging, carried []string, files fs.FS, trustedRoot []byte, now time.Time) (*judge, error) {
	if j.Children == "" {
		j.Children = policy.ChildrenIndex
	}
	if err := j.Children.Check(); err != nil {
		return nil, err
	}
	list := j.Files
	if len(list) == 0 {
		for _, name := range carried {
			data, err := limit.ReadFS(files, policyDir+"/"+name, maxPolicy)
			if err != nil {
				return nil, err
			}
			list = append(list, policy.File{Name: policyDir + "/" + name, Data: data})
		}
	}
	if len(list) == 0 {
		return nil, nil
	}
	loaded, err := policy.Compile(list, policy.Options{TrustedRoot: trustedRoot, Mirrors: j.Mirrors, TUFTime: now})
	if err != nil {
		return nil, err
	}
	if len(loaded.Policies) == 0 {
		return nil, errNoPolicy
	}
	set, err := policy.NewSet(loaded.Policies, policy.SetOptions{NoMatch: j.NoMatch, Combine: j.Combine, Version: loaded.Version})
	if err != nil {
		return nil, err
	}
	return &judge{j, set}, nil
}

// decide returns what the policies say of an image. What was proven is left out: the report has it as Evidence.
func (j *judge) decide(ctx context.Context, image Image, source oci.Source) (*policy.Verdict, error) {
	if j.Inside != "" {
		var err error
		if image.Repository, err = insideName(j.Inside, image.Repository); err != nil {
			return nil, err
		}
	}
	subject := &policy.Subject{Image: oci.Image{Reference: image.Name(), Name: image.Repository, Digest: image.Digest, MediaType: string(image.MediaType)}}
	v := j.set.DecideTree(ctx, subject, source, j.Children)
	withoutResults(&v)
	return &v, nil
}

func withoutResults(v *policy.Verdict) {
	for i := range v.Policies {
		for k := range v.Policies[i].Checks {
			v.Policies[i].Checks[k].Result = nil
		}
	}
	for i := range v.Children {
		withoutResults(&v.Children[i])
	}
}

// insideName is the name that a repository gets in another registry: "outside.example/team/app" becomes REGISTRY/PREFIX/team/app.
func insideName(registry, repository string) (string, error) {
	_, path, ok := strings.Cut(repository, "/")
	if !ok {
		return "", fmt.Errorf("repository %q has no registry", repository)
	}
	return strings.TrimSuffix(registry, "/") + "/" + path, nil
}
