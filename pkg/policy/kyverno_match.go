package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
)

// kyvernoMatch is match or exclude of a rule. Who asks is not known to a policy here, so that roles and subjects are refused, as
// are the labels of namespaces.
type kyvernoMatch struct {
	Any       []kyvernoFilter   `json:"any"`
	All       []kyvernoFilter   `json:"all"`
	Resources *kyvernoResources `json:"resources"`

	any, all []resourceFilter
}

type kyvernoFilter struct {
	Resources *kyvernoResources `json:"resources"`
}

type kyvernoResources struct {
	Kinds      []string     `json:"kinds"`
	Name       string       `json:"name"`
	Names      []string     `json:"names"`
	Namespaces []string     `json:"namespaces"`
	Selector   *cipSelector `json:"selector"`
	Operations []string     `json:"operations"`
}

type resourceFilter struct {
	kinds, names, namespaces []wildcard
	selector                 labels.Selector
}

func (m *kyvernoMatch) compile(where string) error {
	if m == nil {
		return nil
	}
	given := 0
	for _, has := range []bool{len(m.Any) > 0, len(m.All) > 0, m.Resources != nil} {
		if has {
			given++
		}
	}
	if given != 1 {
		return fmt.Errorf("%s: match and exclude take exactly one of any, all and resources", where)
	}
	var err error
	if m.any, err = compileFilters(where, m.Any); err != nil {
		return err
	}
	if m.all, err = compileFilters(where, m.All); err != nil {
		return err
	}
	if m.Resources != nil {
		m.any, err = compileFilters(where, []kyvernoFilter{{m.Resources}})
	}
	return err
}

func compileFilters(where string, list []kyvernoFilter) ([]resourceFilter, error) {
	if len(list) > maxEntries {
		return nil, fmt.Errorf("%s: more than %d filters", where, maxEntries)
	}
	var all []resourceFilter
	for _, f := range list {
		if f.Resources == nil {
			return nil, fmt.Errorf("%s: a filter without resources", where)
		}
		compiled, err := f.Resources.compile()
		if err != nil {
			return nil, fmt.Errorf("%s.resources: %w", where, err)
		}
		all = append(all, *compiled)
	}
	return all, nil
}

func (r *kyvernoResources) compile() (*resourceFilter, error) {
	if len(r.Kinds) == 0 && r.Name == "" && len(r.Names) == 0 && len(r.Namespaces) == 0 && r.Selector == nil {
		return nil, errors.New("it names nothing")
	}
	for _, op := range r.Operations {
		if op != "CREATE" && op != "UPDATE" { // both run an image, and are asked for both
			return nil, fmt.Errorf("operation %q runs no image", op)
		}
	}
	names := r.Names
	if r.Name != "" {
		names = append(names, r.Name)
	}
	f := &resourceFilter{}
	var err error
	if f.kinds, err = newWildcards("kinds", r.Kinds); err != nil {
		return nil, err
	}
	if f.names, err = newWildcards("names", names); err != nil {
		return nil, err
	}
	if f.namespaces, err = newWildcards("namespaces", r.Namespaces); err != nil {
		return nil, err
	}
	f.selector, err = compileSelector(r.Selector)
	return f, err
}

// compileSelector takes none for one that selects everything.
func compileSelector(s *cipSelector) (labels.Selector, error) {
	if s == nil {
		return labels.Everything(), nil
	}
	m, err := (&cipMatch{Version: "*", Selector: s}).compile()
	if err != nil {
		return nil, err
	}
	return m.selector, nil
}

// fits reports whether the object is meant. None, as an absent exclude, fits nothing.
func (m *kyvernoMatch) fits(s *Subject) bool {
	switch {
	case m == nil:
		return false
	case len(m.all) > 0:
		return !slices.ContainsFunc(m.all, func(f resourceFilter) bool { return !f.fits(s) })
	}
	return slices.ContainsFunc(m.any, func(f resourceFilter) bool { return f.fits(s) })
}

func (f *resourceFilter) fits(s *Subject) bool {
	if len(f.kinds) > 0 && !anyWildcard(f.kinds, kindForms(s)...) {
		return false
	}
	if len(f.namespaces) > 0 && !anyWildcard(f.namespaces, s.Namespace) {
		return false
	}
	if len(f.names) > 0 && !anyWildcard(f.names, nameOf(s)) {
		return false
	}
	return f.selector.Matches(labels.Set(s.Labels))
}

// kindForms are the ways to write the object's kind: Kind, version/Kind and group/version/Kind. What makes pods is a Pod too:
// Kyverno writes the rules for these by itself.
func kindForms(s *Subject) []string {
	kinds := []string{s.Kind}
	if s.Kind != "Pod" {
		kinds = append(kinds, "Pod")
	}
	forms := kinds
	for _, k := range kinds {
		group, version := s.Group, s.Version
		if k != s.Kind {
			group, version = "", "v1"
		}
		forms = append(forms, version+"/"+k)
		if group != "" {
			forms = append(forms, group+"/"+version+"/"+k)
		}
	}
	return forms
}

// nameOf is the object's name, empty while the API server has yet to make one up.
func nameOf(s *Subject) string {
	var metadata struct {
		Name string `json:"name"`
	}
	if len(s.Metadata) == 0 || json.Unmarshal(s.Metadata, &metadata) != nil {
		return ""
	}
	return metadata.Name
}
