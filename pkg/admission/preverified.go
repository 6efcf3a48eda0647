package admission

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/fault"
)

// PreverifiedMediaType is that of a list of images which were verified elsewhere, see Preverified.
const PreverifiedMediaType = "application/vnd.attestry.preverified.v1+json"

// Bounds of a list.
const (
	MaxPreverified = 32 << 20 // bytes
	maxListed      = 200_000  // images
)

// Preverified are images that a transfer station has verified, by the very policies and trust of a version. They need no registry:
// one that is down does not stop them from being scheduled. Its JSON form is
//
//	{"mediaType": "application/vnd.attestry.preverified.v1+json",
//	 "policyVersion": "sha256:…", "created": "2026-11-26T12:00:00Z", "expires": "2026-12-26T12:00:00Z",
//	 "images": ["registry.example/team/app@sha256:…"]}
//
// and who may write it is for its signature to say, which is checked before it is parsed. An image counts under the name of its
// repository only, and only while the policies in force have that version.
type Preverified struct {
	lists []preverifiedList
}

type preverifiedList struct {
	version          string
	created, expires time.Time
	images           map[string]bool // NAME@DIGEST
}

// ParsePreverified reads a list whose signature holds. Unknown members are refused: they might narrow what is said.
func ParsePreverified(data []byte) (*Preverified, error) {
	if len(data) > MaxPreverified {
		return nil, fmt.Errorf("the list has %d bytes, at most %d are read", len(data), MaxPreverified)
	}
	if _, err := members(data); err != nil { // no member twice
		return nil, err
	}
	var list struct {
		MediaType     string    `json:"mediaType"`
		PolicyVersion string    `json:"policyVersion"`
		Created       time.Time `json:"created"`
		Expires       time.Time `json:"expires"`
		Images        []string  `json:"images"`
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&list); err != nil {
		return nil, err
	}
	switch {
	case list.MediaType != PreverifiedMediaType:
		return nil, fmt.Errorf("media type %q is not %s", list.MediaType, PreverifiedMediaType)
	case list.PolicyVersion == "":
		return nil, errors.New("policyVersion is missing: verified by which policies?")
	case list.Created.IsZero() || !list.Expires.After(list.Created):
		return nil, errors.New("created and a later expires are needed")
	case len(list.Images) > maxListed:
		return nil, fmt.Errorf("%d images, at most %d are kept", len(list.Images), maxListed)
	}
	l := preverifiedList{list.PolicyVersion, list.Created, list.Expires, make(map[string]bool, len(list.Images))}
	for _, image := range list.Images {
		r, err := parseReference(image)
		if err != nil {
			return nil, errors.New(fault.Public(err))
		}
		if r.Digest == "" || r.Tag != "" {
			return nil, fmt.Errorf("%q is not NAME@sha256:DIGEST", image)
		}
		l.images[r.Name+"@"+r.Digest] = true
	}
	return &Preverified{[]preverifiedList{l}}, nil
}

// Join returns what any of the lists has.
func Join(lists ...*Preverified) *Preverified {
	all := &Preverified{}
	for _, l := range lists {
		all.lists = append(all.lists, l.lists...)
	}
	return all
}

// Images counts what is listed for policies of a version and has not expired.
func (p *Preverified) Images(version string, now time.Time) int {
	n := 0
	if p != nil {
		for _, l := range p.lists {
			if l.holds(version, now) {
				n += len(l.images)
			}
		}
	}
	return n
}

// has tells whether an image of a repository was verified by policies of a version. The nil list has none.
func (p *Preverified) has(name, digest, version string, now time.Time) bool {
	if p == nil || !strings.HasPrefix(digest, "sha256:") {
		return false
	}
	for _, l := range p.lists {
		if l.holds(version, now) && l.images[name+"@"+digest] {
			return true
		}
	}
	return false
}

func (l *preverifiedList) holds(version string, now time.Time) bool {
	return l.version == version && !now.Before(l.created) && now.Before(l.expires)
}
