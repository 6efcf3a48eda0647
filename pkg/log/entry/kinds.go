package entry

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// handling is what this package does with one version of a kind.
type handling struct {
	kind, version string
	propose       func(ijson.Value) (Entry, error) // nil: not a Rekor v1 submission
	stored        func(json.RawMessage) (spec, error)
	byDefault     bool // taken by servers that do not say which kinds they take
}

// table lists every version of every kind. A kind that stands here is read from stored bodies
// whether or not it is enabled.
func table() []handling {
	return []handling{
		{"hashedrekord", "0.0.1", proposeHashedRekord, parseSpec[hashedRekordSpec], true},
		{"hashedrekord", "0.0.2", nil, parseSpec[hashedRekordSpec2], false},
		{"dsse", "0.0.1", proposeDSSE, parseSpec[dsseSpec], true},
		{"dsse", "0.0.2", nil, parseSpec[dsseSpec2], false},
		{"intoto", "0.0.1", proposeIntoto001, parseSpec[intotoSpec001], true},
		{"intoto", "0.0.2", proposeIntoto002, parseSpec[intotoSpec002], true},
		{"rekord", "0.0.1", proposeRekord, parseSpec[rekordSpec], false},
		{"rfc3161", "0.0.1", proposeRFC3161, parseSpec[rfc3161Spec], false},
		{"cose", "0.0.1", proposeCOSE, parseSpec[coseSpec], false},
		{"helm", "0.0.1", proposeHelm, parseSpec[helmSpec], false},
		{"alpine", "0.0.1", proposeAlpine, parseSpec[alpineSpec], false},
		{"rpm", "0.0.1", proposeRPM, parseSpec[rpmSpec], false},
		{"jar", "0.0.1", proposeJAR, parseSpec[jarSpec], false},
		{"tuf", "0.0.1", proposeTUF, parseSpec[tufSpec], false},
	}
}

func parseSpec[S spec](raw json.RawMessage) (spec, error) {
	var parsed S
	err := json.Unmarshal(raw, &parsed)
	return parsed, err
}

func handlingOf(kind, version string) (handling, bool) {
	rows := table()
	i := slices.IndexFunc(rows, func(h handling) bool { return h.kind == kind && h.version == version })
	if i < 0 {
		return handling{}, false
	}
	return rows[i], true
}

// KnownKind tells whether Rekor v1 has a kind of that name here, enabled or not.
func KnownKind(kind string) bool {
	return slices.ContainsFunc(table(), func(h handling) bool { return h.kind == kind && h.propose != nil })
}

// Kinds are the Rekor v1 kinds that a server takes. The zero value stands for the defaults:
// hashedrekord 0.0.1, dsse 0.0.1, intoto 0.0.1 and 0.0.2, which are what signing clients send.
// The other kinds unpack archives and read formats of other worlds, so each is an operator's choice.
type Kinds struct{ names []string } // "kind:version", sorted; none: the defaults

// ParseKinds reads names such as "hashedrekord", which is every version of the kind, and
// "intoto:0.0.2". No names at all are the defaults.
func ParseKinds(names []string) (Kinds, error) {
	var k Kinds
	for _, name := range names {
		found := false
		for _, h := range table() {
			if h.propose != nil && (name == h.kind || name == h.name()) {
				k.names, found = append(k.names, h.name()), true
			}
		}
		if !found {
			return Kinds{}, fmt.Errorf("unknown entry kind %q: known are %s", name, strings.Join(known(), ", "))
		}
	}
	slices.Sort(k.names)
	k.names = slices.Compact(k.names)
	return k, nil
}

func known() []string {
	var names []string
	for _, h := range table() {
		if h.propose != nil {
			names = append(names, h.name())
		}
	}
	slices.Sort(names)
	return names
}

func (h handling) name() string { return h.kind + ":" + h.version }

// Names are the kinds and versions as "kind:version", sorted.
func (k Kinds) Names() []string {
	return slices.DeleteFunc(known(), func(name string) bool {
		kind, version, _ := strings.Cut(name, ":")
		h, _ := handlingOf(kind, version)
		return !k.has(h)
	})
}

func (k Kinds) has(h handling) bool {
	if h.propose == nil {
		return false
	}
	if len(k.names) == 0 {
		return h.byDefault
	}
	_, ok := slices.BinarySearch(k.names, h.name())
	return ok
}

// find returns what is done with a submission: ok when its kind and version are enabled, taken when
// some version of the kind is.
func (k Kinds) find(kind, version string) (h handling, taken, ok bool) {
	for _, row := range table() {
		if row.kind != kind || !k.has(row) {
			continue
		}
		if taken = true; row.version == version {
			return row, true, true
		}
	}
	return handling{}, taken, false
}
