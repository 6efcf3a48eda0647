// Package ijson reads JSON from clients whose meaning must not depend on the reader: I-JSON
// (RFC 7493) without duplicate members, invalid UTF-8 or lone surrogates, in one pass and within
// constant bounds. Member names are compared exactly, unlike in encoding/json.
package ijson

import (
	"bytes"
	"fmt"
	"iter"
	"unicode/utf16"
	"unicode/utf8"
)

// Bounds of a document. No supported entry comes near them.
const (
	maxDepth   = 32
	maxMembers = 256    // of one object: duplicates are found by comparing with each
	maxValues  = 10_000 // of the document
)

// Kind tells values apart.
type Kind byte

const (
	Missing Kind = iota // what Get returns for a member that is not there
	Null
	Bool
	Number
	String
	Array
	Object
)

// Value is one JSON value. It refers to the bytes that it was parsed from.
type Value struct {
	Kind    Kind
	text    []byte // String: decoded; Number and Bool: literal
	members []member
	items   []Value
}

type member struct {
	name  []byte
	value Value
}

// Get returns the member of that name; its Kind is Missing when there is none or v is no object.
func (v Value) Get(name string) Value {
	for i := range v.members {
		if string(v.members[i].name) == name {
			return v.members[i].value
		}
	}
	return Value{}
}

// Members are an object's members in the order of the document, none for any other kind.
func (v Value) Members() iter.Seq2[string, Value] {
	return func(yield func(string, Value) bool) {
		for _, m := range v.members {
			if !yield(string(m.name), m.value) {
				return
			}
		}
	}
}

// Items are an array's values, nil for any other kind.
func (v Value) Items() []Value { return v.items }

// Bytes is a string's value in UTF-8 or a number's literal; do not change it.
func (v Value) Bytes() []byte { return v.text }

// Text is Bytes as a string.
func (v Value) Text() string { return string(v.text) }

// Given tells whether v is there and not null.
func (v Value) Given() bool { return v.Kind > Null }

// Parse reads exactly one value, with nothing but white space around it. Its errors can be shown to a client.
func Parse(data []byte) (Value, error) {
	p := parser{data: data}
	v, err := p.value(0)
	if err != nil {
		return Value{}, err
	}
	if p.space(); p.pos != len(data) {
		return Value{}, p.errorf("data after the value")
	}
	return v, nil
}

type parser struct {
	data   []byte
	pos    int
	values int
}

func (p *parser) errorf(format string, args ...any) error {
	return fmt.Errorf("invalid JSON at byte %d: %s", p.pos, fmt.Sprintf(format, args...))
}

func (p *parser) space() {
	for p.pos < len(p.data) {
		switch p.data[p.pos] {
		case ' ', '\t', '\r', '\n':
			p.pos++
		default:
			return
		}
	}
}

// peek returns the next byte after white space, 0 at the end.
func (p *parser) peek() byte {
	p.space()
	if p.pos == len(p.data) {
		return 0
	}
	return p.data[p.pos]
}

func (p *parser) value(depth int) (Value, error) {
	if p.values++; p.values > maxValues {
		return Value{}, p.errorf("more than %d values", maxValues)
	}
	if depth > maxDepth {
		return Value{}, p.errorf("nested deeper than %d levels", maxDepth)
	}
	switch c := p.peek(); {
	case c == '{':
		return p.object(depth)
	case c == '[':
		return p.array(depth)
	case c == '"':
		text, err := p.string()
		return Value{Kind: String, text: text}, err
	case c == 't':
		return p.literal("true", Bool)
	case c == 'f':
		return p.literal("false", Bool)
	case c == 'n':
		return p.literal("null", Null)
	case c == '-' || c >= '0' && c <= '9':
		return p.number()
	case p.pos == len(p.data):
		return Value{}, p.errorf("unexpected end")
	default:
		return Value{}, p.errorf("unexpected %q", c)
	}
}

func (p *parser) literal(word string, kind Kind) (Value, error) {
	if !bytes.HasPrefix(p.data[p.pos:], []byte(word)) {
		return Value{}, p.errorf("unexpected %q", p.data[p.pos])
	}
	start := p.pos
	p.pos += len(word)
	return Value{Kind: kind, text: p.data[start:p.pos]}, nil
}

func (p *parser) object(depth int) (Value, error) {
	v := Value{Kind: Object}
	p.pos++ // {
	if p.peek() == '}' {
		p.pos++
		return v, nil
	}
	for {
		if p.peek() != '"' {
			return Value{}, p.errorf("expected a member name")
		}
		name, err := p.string()
		if err != nil {
			return Value{}, err
		}
		if v.Get(string(name)).Kind != Missing {
			return Value{}, p.errorf("duplicate member %q", name)
		}
		if len(v.members) == maxMembers {
			return Value{}, p.errorf("more than %d members in an object", maxMembers)
		}
		if p.peek() != ':' {
			return Value{}, p.errorf("expected a colon")
		}
		p.pos++
		value, err := p.value(depth + 1)
		if err != nil {
			return Value{}, err
		}
		v.members = append(v.members, member{name, value})
		switch p.peek() {
		case ',':
			p.pos++
		case '}':
			p.pos++
			return v, nil
		default:
			return Value{}, p.errorf("expected a comma or the object's end")
		}
	}
}

func (p *parser) array(depth int) (Value, error) {
	v := Value{Kind: Array}
	p.pos++ // [
	if p.peek() == ']' {
		p.pos++
		return v, nil
	}
	for {
		item, err := p.value(depth + 1)
		if err != nil {
			return Value{}, err
		}
		v.items = append(v.items, item)
		switch p.peek() {
		case ',':
			p.pos++
		case ']':
			p.pos++
			return v, nil
		default:
			return Value{}, p.errorf("expected a comma or the array's end")
		}
	}
}

// string reads a string and returns its value, a part of the input if nothing in it is escaped.
func (p *parser) string() ([]byte, error) {
	p.pos++ // "
	start := p.pos
	var decoded []byte // what was copied up to start
	escaped := false
	for ; p.pos < len(p.data); p.pos++ {
		switch c := p.data[p.pos]; {
		case c == '"':
			text := p.data[start:p.pos]
			if escaped {
				text = append(decoded, text...)
			}
			p.pos++
			if !utf8.Valid(text) {
				return nil, p.errorf("string is not UTF-8")
			}
			return text, nil
		case c < ' ':
			return nil, p.errorf("control character in a string")
		case c == '\\':
			if !escaped {
				escaped = true
				decoded = make([]byte, 0, min(2*(p.pos-start)+64, len(p.data)-start))
			}
			decoded = append(decoded, p.data[start:p.pos]...)
			r, err := p.escape()
			if err != nil {
				return nil, err
			}
			decoded = utf8.AppendRune(decoded, r)
			start = p.pos + 1
		}
	}
	return nil, p.errorf("string without end")
}

// escape reads an escape sequence and leaves pos at its last byte.
func (p *parser) escape() (rune, error) {
	p.pos++ // backslash
	if p.pos == len(p.data) {
		return 0, p.errorf("string without end")
	}
	switch c := p.data[p.pos]; c {
	case '"', '\\', '/':
		return rune(c), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
	default:
		return 0, p.errorf("unknown escape %q", c)
	}
	r, err := p.hex()
	if err != nil || !utf16.IsSurrogate(r) {
		return r, err
	}
	if bytes.HasPrefix(p.data[p.pos+1:], []byte(`\u`)) {
		p.pos += 2
		low, err := p.hex()
		if err != nil {
			return 0, err
		}
		if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
			return pair, nil
		}
	}
	return 0, p.errorf("lone surrogate in a string")
}

// hex reads the four digits behind pos and leaves pos at the last one.
func (p *parser) hex() (rune, error) {
	if len(p.data)-p.pos <= 4 {
		return 0, p.errorf("string without end")
	}
	var r rune
	for range 4 {
		p.pos++
		c := p.data[p.pos]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, p.errorf("%q is no hex digit", c)
		}
		r = r<<4 | rune(c)
	}
	return r, nil
}

// number reads RFC 8259's number; its value is the literal.
func (p *parser) number() (Value, error) {
	start := p.pos
	digits := func() bool {
		first := p.pos
		for p.pos < len(p.data) && p.data[p.pos] >= '0' && p.data[p.pos] <= '9' {
			p.pos++
		}
		return p.pos > first
	}
	at := func(set string) bool { // skips one byte of set
		if p.pos < len(p.data) && bytes.IndexByte([]byte(set), p.data[p.pos]) >= 0 {
			p.pos++
			return true
		}
		return false
	}
	at("-")
	ok := at("0") || digits()
	if ok && at(".") {
		ok = digits()
	}
	if ok && at("eE") {
		at("+-")
		ok = digits()
	}
	if !ok {
		return Value{}, p.errorf("malformed number")
	}
	return Value{Kind: Number, text: p.data[start:p.pos]}, nil
}
