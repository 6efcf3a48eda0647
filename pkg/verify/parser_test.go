package verify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"testing"
)

func FuzzToken(f *testing.F) {
	f.Add([]byte{0x30, 0x05, 0x30, 0x03, 0x02, 0x01, 0x00})
	f.Fuzz(func(t *testing.T, der []byte) {
		if tok, err := parseToken(der); err == nil && (tok.hash == 0 || tok.time.IsZero()) {
			t.Errorf("token without a digest or time: %+v", tok)
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	log := &logKey{origin: "log.example", key: key.Public()}
	f.Add("log.example\n2\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n\u2014 log.example AAAAAAECAw==\n")
	f.Add("log.example - 5\n2\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n\u2014 log.example AAAAAAECAw==\n")
	f.Fuzz(func(t *testing.T, note string) {
		for _, v2 := range []bool{true, false} {
			if _, err := openCheckpoint(note, log, v2); err == nil {
				t.Error("accepted a checkpoint that nobody signed")
			}
		}
	})
}

// FuzzUniqueKeys holds the scanner against encoding/json's tokens.
func FuzzUniqueKeys(f *testing.F) {
	for _, s := range []string{
		`{}`, `[]`, `"a"`, `{"a":1,"a":2}`, `{"a":{"a":1},"b":[{"a":1},{"a":1}]}`, `{"a":"{\"a\":1}","b":"\\"}`, `{"\u0061":1,"a":2}`,
		`{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"i":9}`, `[[[[[{"x":[1,2,"x",{"x":"x"}]}]]]]]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if !json.Valid(data) {
			_ = uniqueKeys(data, nil)
			return
		}
		got, want := uniqueKeys(data, nil) == nil, tokensUnique(data)
		if got != want {
			t.Errorf("%q: scanner says %v, tokens say %v", data, got, want)
		}
	})
}

func tokensUnique(data []byte) bool {
	type level struct {
		keys map[string]bool
		key  bool
	}
	var stack []level
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return true
		}
		if err != nil {
			return false
		}
		top := len(stack) - 1
		delim, isDelim := tok.(json.Delim)
		if isDelim && (delim == '}' || delim == ']') {
			stack = stack[:top]
			continue
		}
		if top >= 0 && stack[top].key {
			name := tok.(string)
			if stack[top].keys[name] {
				return false
			}
			stack[top].keys[name], stack[top].key = true, false
			continue
		}
		if top >= 0 {
			stack[top].key = stack[top].keys != nil
		}
		if isDelim {
			if len(stack) == maxJSONDepth {
				return false
			}
			l := level{}
			if delim == '{' {
				l = level{keys: map[string]bool{}, key: true}
			}
			stack = append(stack, l)
		}
	}
}
