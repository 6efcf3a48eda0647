package policy

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

const maxGlob = 1 << 10

// Glob chooses images by name, with the meaning that policy-controller gives to a ClusterImagePolicy's glob: "*" is any
// text without "/", "**" any text, everything else is literal, and the whole name has to match. ":" separates
// nothing.
type Glob struct {
	text    string
	pattern *regexp.Regexp
}

// NewGlob compiles a glob of letters, digits and - _ : / * . @. "*" and "*/*" alone mean the library and user repositories
// of the registry that an image without one is pulled from.
func NewGlob(glob string) (Glob, error) {
	if len(glob) > maxGlob {
		return Glob{}, fmt.Errorf("glob is longer than %d bytes", maxGlob)
	}
	if glob == "" {
		return Glob{}, errors.New("glob is empty")
	}
	full := glob
	switch glob {
	case "*":
		full = name.DefaultRegistry + "/library/*"
	case "*/*":
		full = name.DefaultRegistry + "/*/*"
	}
	var re strings.Builder
	re.WriteString("^")
	for i := 0; i < len(full); i++ {
		switch c := full[i]; {
		case c == '*' && i+1 < len(full) && full[i+1] == '*':
			re.WriteString(".*")
			i++
		case c == '*':
			re.WriteString("[^/]*")
		case c == '.':
			re.WriteString(`\.`)
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-_:/@", c) >= 0:
			re.WriteByte(c)
		default:
			return Glob{}, fmt.Errorf("glob %q has a character other than letters, digits and - _ : / * . @", glob)
		}
	}
	re.WriteString("$")
	pattern, err := regexp.Compile(re.String())
	if err != nil {
		return Glob{}, fmt.Errorf("glob %q: %w", glob, err)
	}
	return Glob{text: glob, pattern: pattern}, nil
}

func (g Glob) String() string { return g.text }

// Match reports whether an image reference fits: with its defaults filled in (registry, :latest), which drops the tag of a
// reference that has a digest too, or else as it is written. What is no reference fits nothing.
func (g Glob) Match(reference string) bool {
	ref, err := name.ParseReference(reference, name.WeakValidation)
	if err != nil {
		return false
	}
	return g.pattern.MatchString(ref.Name()) || g.pattern.MatchString(reference)
}
