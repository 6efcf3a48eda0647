package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	maxConfig  = 1 << 20
	maxEntries = 4096 // keys of one mapping, items of one list
	maxMerge   = 8    // nesting of YAML merge keys
	maxList    = 64   // strings in a list
)

// parseNode reads one YAML or JSON document, as a tree that remembers line numbers. JSON gets
// its own path because YAML refuses tabs where JSON allows them.
func parseNode(data []byte) (*yaml.Node, error) {
	if len(data) > maxConfig {
		return nil, fmt.Errorf("over %d bytes", maxConfig)
	}
	if trimmed := bytes.TrimLeft(data, " \t\r\n"); len(trimmed) > 0 && trimmed[0] == '{' && json.Valid(data) {
		j := &jsonReader{dec: json.NewDecoder(bytes.NewReader(data)), data: data, line: 1}
		j.dec.UseNumber()
		return j.value(0)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the file is empty")
		}
		return nil, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one YAML document")
	}
	return resolve(doc.Content[0]), nil
}

// jsonReader builds the node tree of JSON that json.Valid accepted.
type jsonReader struct {
	dec    *json.Decoder
	data   []byte
	line   int
	offset int64
}

func (j *jsonReader) node(kind yaml.Kind, tag, value string) *yaml.Node {
	end := j.dec.InputOffset()
	j.line += bytes.Count(j.data[j.offset:end], []byte("\n"))
	j.offset = end
	return &yaml.Node{Kind: kind, Tag: tag, Value: value, Line: j.line}
}

func (j *jsonReader) value(depth int) (*yaml.Node, error) {
	if depth > 16 {
		return nil, errors.New("nested too deeply")
	}
	token, err := j.dec.Token()
	if err != nil {
		return nil, err
	}
	switch t := token.(type) {
	case json.Delim:
		n := j.node(yaml.MappingNode, "!!map", "")
		if t == '[' {
			n = j.node(yaml.SequenceNode, "!!seq", "")
		}
		for j.dec.More() {
			child, err := j.value(depth + 1) // a key is a string value like another
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, child)
		}
		_, err := j.dec.Token()
		return n, err
	case string:
		return j.node(yaml.ScalarNode, "!!str", t), nil
	case json.Number:
		return j.node(yaml.ScalarNode, "!!int", t.String()), nil
	case bool:
		return j.node(yaml.ScalarNode, "!!bool", fmt.Sprint(t)), nil
	default:
		return j.node(yaml.ScalarNode, "!!null", ""), nil
	}
}

func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// decoder walks a node tree into our structs. It goes on after a mistake so that all of them
// are reported at once. The schema, not the file, bounds its recursion.
type decoder struct {
	problems []error
	values   int // claims of cases, see json
}

func (d *decoder) addf(n *yaml.Node, format string, args ...any) {
	d.problems = append(d.problems, fmt.Errorf("line %d: "+format, append([]any{n.Line}, args...)...))
}

// field is one key of a mapping: its YAML name, its name in Fulcio's older JSON files ("" when
// that had none) and what to do with its value.
type field struct {
	yaml, json string
	set        func(*yaml.Node)
}

// fields decodes mapping n, which what describes. Unknown and repeated keys are mistakes; the
// two spellings of one key count as the same key.
func (d *decoder) fields(n *yaml.Node, what string, known []field) {
	byName := make(map[string]*field, 2*len(known))
	for i := range known {
		byName[known[i].yaml] = &known[i]
		if known[i].json != "" {
			byName[known[i].json] = &known[i]
		}
	}
	seen := map[*field]bool{}
	d.entries(n, what, func(key, value *yaml.Node) {
		f := byName[key.Value]
		switch {
		case f == nil:
			d.addf(key, "%s has no key %q", what, key.Value)
		case seen[f]:
			d.addf(key, "%s has %s twice", what, f.yaml)
		default:
			seen[f] = true
			f.set(value)
		}
	})
}

// entries calls each for every key and value of mapping n, merge keys (<<) included: what a
// mapping says itself wins over what it merges.
func (d *decoder) entries(n *yaml.Node, what string, each func(key, value *yaml.Node)) {
	if n = resolve(n); n.Kind != yaml.MappingNode {
		if n.Tag != "!!null" {
			d.addf(n, "%s must be a mapping", what)
		}
		return
	}
	seen := map[string]bool{}
	d.merged(n, what, seen, 0, each)
}

func (d *decoder) merged(n *yaml.Node, what string, seen map[string]bool, depth int, each func(key, value *yaml.Node)) {
	if depth > maxMerge || len(n.Content) > 2*maxEntries {
		d.addf(n, "%s is too large or merges too deeply", what)
		return
	}
	own := map[string]bool{}
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := resolve(n.Content[i]), resolve(n.Content[i+1])
		switch {
		case key.Kind != yaml.ScalarNode:
			d.addf(key, "a key of %s is not a string", what)
		case key.Tag == "!!merge":
			if value.Kind == yaml.SequenceNode {
				merges = append(merges, value.Content...)
			} else {
				merges = append(merges, value)
			}
		case own[key.Value]:
			d.addf(key, "%s has %q twice", what, key.Value)
		default:
			own[key.Value] = true
			if !seen[key.Value] {
				seen[key.Value] = true
				each(key, value)
			}
		}
	}
	for _, m := range merges {
		if m = resolve(m); m.Kind != yaml.MappingNode {
			d.addf(m, "<< in %s must name a mapping", what)
			continue
		}
		d.merged(m, what, seen, depth+1, each)
	}
}

// text sets a string. Numbers are taken as written, so that `client-id: 1234` works.
func (d *decoder) text(dst *string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		n = resolve(n)
		switch {
		case n.Kind != yaml.ScalarNode:
			d.addf(n, "expected a string")
		case n.Tag == "!!null":
			*dst = ""
		case n.Tag == "!!str", n.Tag == "!!int", n.Tag == "!!float", n.Tag == "!!timestamp":
			*dst = n.Value
		default:
			d.addf(n, "expected a string, found %q", n.Value)
		}
	}
}

func (d *decoder) flag(dst *bool) func(*yaml.Node) {
	return func(n *yaml.Node) {
		n = resolve(n)
		if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" {
			d.addf(n, "expected true or false")
			return
		}
		if err := n.Decode(dst); err != nil {
			d.addf(n, "expected true or false")
		}
	}
}

// duration sets a duration in Go's form, such as 30s. 0 needs no unit.
func (d *decoder) duration(dst *time.Duration) func(*yaml.Node) {
	return func(n *yaml.Node) {
		n = resolve(n)
		v, err := time.ParseDuration(n.Value)
		if n.Kind != yaml.ScalarNode || err != nil {
			d.addf(n, "expected a duration such as 30s")
			return
		}
		*dst = v
	}
}

// list sets a list of strings that are not empty and differ.
func (d *decoder) list(dst *[]string, what string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		n = resolve(n)
		if n.Kind != yaml.SequenceNode || len(n.Content) == 0 || len(n.Content) > maxList {
			d.addf(n, "%s must be a list of 1 to %d strings", what, maxList)
			return
		}
		for _, item := range n.Content {
			before := len(d.problems)
			var s string
			d.text(&s)(item)
			if len(d.problems) == before && (s == "" || slices.Contains(*dst, s)) {
				d.addf(item, "%s has an empty or repeated string", what)
			}
			*dst = append(*dst, s)
		}
	}
}

func (d *decoder) strings(dst *map[string]string, what string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		*dst = map[string]string{}
		d.entries(n, what, func(key, value *yaml.Node) {
			var s string
			d.text(&s)(value)
			(*dst)[key.Value] = s
		})
	}
}
