package policy

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	maxDepth    = 64   // of mappings and lists in a document
	maxMessages = 20   // problems that one error lists
	maxText     = 1024 // bytes of foreign text in a message
)

// document is one object of a policy file, not yet decoded.
type document struct {
	file             string
	node             *yaml.Node // a mapping without repeated keys, anchors or aliases
	apiVersion, kind string
	namespace, name  string // of metadata
}

// position is where n stands: "file:line".
func (d *document) position(n *yaml.Node) string { return d.file + ":" + strconv.Itoa(n.Line) }

// errorf reports a problem of the document as a whole at its first line.
func (d *document) errorf(format string, args ...any) error {
	return fmt.Errorf("%s: %s %q: %w", d.position(d.node), d.kind, d.name, fmt.Errorf(format, args...))
}

// splitDocuments reads the YAML or JSON documents of a file. A v1 List is taken apart.
func splitDocuments(file string, data []byte) ([]*document, error) {
	var docs []*document
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var n yaml.Node
		err := dec.Decode(&n)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if n.Kind != yaml.DocumentNode || len(n.Content) != 1 || isNull(n.Content[0]) {
			continue // only comments
		}
		found, err := newDocuments(file, n.Content[0])
		if err != nil {
			return nil, err
		}
		if docs = append(docs, found...); len(docs) > maxDocuments {
			return nil, fmt.Errorf("%s: more than %d documents", file, maxDocuments)
		}
	}
}

func newDocuments(file string, n *yaml.Node) ([]*document, error) {
	d := &document{file: file, node: n}
	if n.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s: a policy document is a mapping", d.position(n))
	}
	if err := d.sound(n, 1); err != nil {
		return nil, err
	}
	d.apiVersion, d.kind = scalar(member(n, "apiVersion")), scalar(member(n, "kind"))
	if m := member(n, "metadata"); m != nil && m.Kind == yaml.MappingNode {
		d.name, d.namespace = scalar(member(m, "name")), scalar(member(m, "namespace"))
	}
	if d.kind != "List" || d.apiVersion != "v1" {
		return []*document{d}, nil
	}
	var docs []*document
	if items := member(n, "items"); items != nil {
		for _, item := range items.Content {
			found, err := newDocuments(file, item)
			if err != nil {
				return nil, err
			}
			docs = append(docs, found...)
		}
	}
	return docs, nil
}

// sound refuses what makes two readers of YAML see different things: repeated keys, anchors, aliases, merges, keys that are
// not strings.
func (d *document) sound(n *yaml.Node, depth int) error {
	switch {
	case depth > maxDepth:
		return fmt.Errorf("%s: nested deeper than %d", d.position(n), maxDepth)
	case n.Kind == yaml.AliasNode, n.Anchor != "":
		return fmt.Errorf("%s: anchors and aliases are refused", d.position(n))
	}
	if n.Kind == yaml.MappingNode {
		seen := make(map[string]bool, len(n.Content)/2)
		for i := 0; i < len(n.Content); i += 2 {
			k := n.Content[i]
			if k.Kind != yaml.ScalarNode || k.ShortTag() != "!!str" {
				return fmt.Errorf("%s: a key is not a string", d.position(k))
			}
			if seen[k.Value] {
				return fmt.Errorf("%s: key %q appears twice", d.position(k), k.Value)
			}
			seen[k.Value] = true
		}
	}
	for _, c := range n.Content {
		if err := d.sound(c, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// decode fills dst, a pointer to a struct whose fields have json tags. It reports all unknown members and wrong types, each with
// its line.
func (d *document) decode(dst any) error {
	dec := decoder{doc: d}
	dec.value(d.node, reflect.ValueOf(dst).Elem(), "")
	return joinLimited(dec.problems)
}

// anything takes any value, which is not looked at.
type anything struct{}

// free takes any value as JSON would give it: map[string]any, []any, string, bool, float64 or nil.
type free struct{ value any }

type decoder struct {
	doc      *document
	problems []error
}

func (d *decoder) fail(n *yaml.Node, path, format string, args ...any) {
	if path == "" {
		path = "document"
	}
	d.problems = append(d.problems, fmt.Errorf("%s: %s: %s", d.doc.position(n), path, fmt.Sprintf(format, args...)))
}

func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	if isNull(n) {
		return // as Kubernetes has it: null is absent
	}
	switch dst := v.Addr().Interface().(type) {
	case *anything:
		return
	case *free:
		if err := n.Decode(&dst.value); err != nil {
			d.fail(n, path, "%v", err)
		}
		return
	case *[]byte:
		d.bytes(n, dst, path)
		return
	case *oneOrMore:
		if n.Kind == yaml.ScalarNode {
			n = &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{n}, Line: n.Line}
		}
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		d.value(n, p.Elem(), path)
		v.Set(p)
	case reflect.Struct:
		d.structure(n, v, path)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.fail(n, path, "must be a list")
			return
		}
		s := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, c := range n.Content {
			d.value(c, s.Index(i), path+"["+strconv.Itoa(i)+"]")
		}
		v.Set(s)
	case reflect.Map:
		d.stringMap(n, v, path)
	case reflect.String:
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
			d.fail(n, path, "must be a string")
			return
		}
		v.SetString(n.Value)
	case reflect.Bool:
		b, err := strconv.ParseBool(n.Value)
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" || err != nil {
			d.fail(n, path, "must be true or false")
			return
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		i, err := strconv.ParseInt(n.Value, 10, 64)
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || err != nil {
			d.fail(n, path, "must be a whole number")
			return
		}
		v.SetInt(i)
	default:
		d.fail(n, path, "cannot be read into %s", v.Type())
	}
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, "must be a mapping")
		return
	}
	for i := 0; i < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		at := key.Value
		if path != "" {
			at = path + "." + key.Value
		}
		field, ok := fieldOf(v, key.Value)
		if !ok {
			d.fail(key, at, "%s", unknownField(path, key.Value, v))
			continue
		}
		d.value(val, field, at)
	}
}

func (d *decoder) stringMap(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, "must be a mapping")
		return
	}
	m := reflect.MakeMap(v.Type())
	for i := 0; i < len(n.Content); i += 2 {
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(n.Content[i+1], e, path+"."+n.Content[i].Value)
		m.SetMapIndex(reflect.ValueOf(n.Content[i].Value), e)
	}
	v.Set(m)
}

func (d *decoder) bytes(n *yaml.Node, dst *[]byte, path string) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" && n.ShortTag() != "!!binary" {
		d.fail(n, path, "must be base64")
		return
	}
	var err error
	if *dst, err = base64.StdEncoding.DecodeString(strings.Join(strings.Fields(n.Value), "")); err != nil {
		d.fail(n, path, "must be base64: %v", err)
	}
}

func fieldOf(v reflect.Value, name string) (reflect.Value, bool) {
	t := v.Type()
	for i := range t.NumField() {
		if tag := t.Field(i).Tag.Get("json"); tag == name {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

func unknownField(path, name string, v reflect.Value) string {
	switch {
	case path == "spec" && name == "attestations":
		return "is not a field: attestations belong to an authority, beside its keyless or key"
	case path == "spec" && name == "identities", strings.HasPrefix(path, "spec.authorities[") && name == "identities" && !strings.HasSuffix(path, "keyless"):
		return "is not a field here: identities belong to an authority's keyless"
	case strings.HasPrefix(path, "spec.match[") && name == "images":
		return "is not a field: images are chosen by spec.images"
	}
	var known []string
	t := v.Type()
	for i := range t.NumField() {
		if tag := t.Field(i).Tag.Get("json"); tag != "" {
			known = append(known, tag)
		}
	}
	for _, k := range known {
		if strings.EqualFold(k, name) {
			return fmt.Sprintf("is not a field; it is spelled %q", k)
		}
	}
	slices.Sort(known)
	return "is not a field; there are " + strings.Join(known, ", ")
}

func member(n *yaml.Node, name string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i+1]
		}
	}
	return nil
}

func scalar(n *yaml.Node) string {
	if n == nil || n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		return ""
	}
	return n.Value
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// joinLimited makes one error of many, which lists the first ones.
func joinLimited(problems []error) error {
	if n := len(problems); n > maxMessages {
		problems = append(problems[:maxMessages:maxMessages], fmt.Errorf("and %d more", n-maxMessages))
	}
	return errors.Join(problems...)
}

// clip shortens foreign text to what a message may hold, on one line.
func clip(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}
