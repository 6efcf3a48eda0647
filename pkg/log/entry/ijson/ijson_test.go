package ijson

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestWhatIsRefused(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"nothing", "", "unexpected end"},
		{"a second value", `{} {}`, "data after the value"},
		{"a duplicate member", `{"a":1,"b":2,"a":3}`, `duplicate member "a"`},
		{"a duplicate member written differently", `{"a":1,"\u0061":3}`, `duplicate member "a"`},
		{"a duplicate deep inside", `[{"x":{"k":0,"k":0}}]`, `duplicate member "k"`},
		{"too deep a nesting", strings.Repeat("[", 40) + strings.Repeat("]", 40), "nested deeper than 32"},
		{"too many values", "[" + strings.Repeat("0,", 10_000) + "0]", "more than 10000 values"},
		{"a lone surrogate", `"\ud800"`, "lone surrogate"},
		{"a swapped pair of surrogates", `"\udc00\ud800"`, "lone surrogate"},
		{"bytes that are not UTF-8", "\"\xff\"", "not UTF-8"},
		{"a raw control character", "\"\n\"", "control character"},
		{"an unknown escape", `"\x"`, "unknown escape"},
		{"a string without end", `"abc`, "without end"},
		{"an escape without end", `"\u00`, "without end"},
		{"a leading zero", `01`, "data after the value"},
		{"a bare point", `1.`, "malformed number"},
		{"a trailing comma", `[1,]`, "unexpected"},
		{"a member without a value", `{"a"}`, "expected a colon"},
		{"a word", `nul`, "unexpected"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte(tt.in))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Parse(%.60q) = %v, want an error with %q", tt.in, err, tt.want)
			}
		})
	}
}

func TestValuesAreReachedByName(t *testing.T) {
	v, err := Parse([]byte(` {"s":"a\"\u00e9\ud83d\ude00\/","n":-1.5e3,"l":[true,null],"o":{"in":{}}} `))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := v.Get("s").Text(), "a\"é😀/"; got != want {
		t.Errorf("string is %q, want %q", got, want)
	}
	if got := v.Get("n"); got.Kind != Number || got.Text() != "-1.5e3" {
		t.Errorf("number is %v %q", got.Kind, got.Text())
	}
	if items := v.Get("l").Items(); len(items) != 2 || items[0].Kind != Bool || items[1].Given() {
		t.Errorf("array is %v", items)
	}
	if v.Get("o").Get("in").Kind != Object || v.Get("S").Given() || v.Get("s").Get("x").Kind != Missing {
		t.Error("members are not found by their exact names")
	}
}

// FuzzParse holds the parser against encoding/json: what it takes, encoding/json takes with the same meaning.
func FuzzParse(f *testing.F) {
	for _, s := range []string{`{"a":[1,-0.1e+7,"x\u00e9\n",true,false,null]}`, `"\ud83d\ude00"`, `{"a":{"a":{}},"b":""}`, `[[],[]]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := Parse(data)
		if err != nil {
			return
		}
		var other any
		if err := json.Unmarshal(data, &other); err != nil && !strings.Contains(err.Error(), "cannot unmarshal number") {
			t.Fatalf("taken here, refused by encoding/json: %v", err)
		} else if err == nil && !same(v, other) {
			t.Fatalf("read differently: %+v and %+v", v, other)
		}
	})
}

func same(v Value, other any) bool {
	switch o := other.(type) {
	case nil:
		return v.Kind == Null
	case bool:
		return v.Kind == Bool && (v.Text() == "true") == o
	case float64:
		return v.Kind == Number
	case string:
		return v.Kind == String && v.Text() == o
	case []any:
		if len(o) != len(v.Items()) {
			return false
		}
		for i := range o {
			if !same(v.Items()[i], o[i]) {
				return false
			}
		}
		return v.Kind == Array
	case map[string]any:
		for name, value := range o {
			if !same(v.Get(name), value) {
				return false
			}
		}
		return v.Kind == Object && len(o) == len(v.members)
	}
	return false
}

func TestMembersComeInTheDocumentsOrder(t *testing.T) {
	v, err := Parse([]byte(`{"b":1,"a":{"c":2},"":null}`))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for name, member := range v.Members() {
		if member.Kind != v.Get(name).Kind {
			t.Errorf("member %q is of kind %v, Get has %v", name, member.Kind, v.Get(name).Kind)
		}
		if names = append(names, name); name == "" {
			break
		}
	}
	if len(names) != 3 || names[0] != "b" || names[1] != "a" || names[2] != "" {
		t.Errorf("members are %q", names)
	}
	for name := range (Value{Kind: Array}).Members() {
		t.Errorf("an array has a member %q", name)
	}
}
