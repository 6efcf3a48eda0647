package policy

import (
	"context"
	"strings"
	"testing"
	"time"
)

const provenance = `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"app","digest":{"sha256":"aa"}}],
	"predicateType":"https://slsa.dev/provenance/v0.2",
	"predicate":{"builder":{"id":"https://tekton.example/chains/v2"},"materials":[{"uri":"git+https://git.example/app"}],"big":12345678901234567890,"n":3}}`

const withoutBuilder = `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"app","digest":{"sha256":"aa"}}],
	"predicateType":"https://slsa.dev/provenance/v0.2","predicate":{}}`

func TestCUE(t *testing.T) {
	for _, tt := range []struct {
		name, source, input string
		strict, upstream    string // "" accepts, else part of the refusal
		loosened            string // what upstream's semantics let through
	}{
		{name: "a field that matches", source: `predicate: builder: id: =~"^https://tekton.example/"`, input: provenance},
		{name: "a field that differs", source: `predicate: builder: id: =~"^https://other.example/"`, input: provenance, strict: "predicate.builder.id", upstream: "predicate.builder.id"},
		{name: "an absent regex", source: `predicate: builder: id: =~"^https://tekton.example/"`, input: withoutBuilder, strict: "predicate.builder", loosened: "predicate.builder"},
		{name: "an absent literal", source: `predicate: builder: id: "https://tekton.example/chains/v2"`, input: withoutBuilder, strict: "predicate.builder", loosened: "predicate.builder"},
		{name: "an absent type", source: `predicate: builder: id: string`, input: withoutBuilder, strict: "predicate.builder", loosened: "predicate.builder"},
		{name: "an absent required field", source: `predicate: builder!: id!: string`, input: withoutBuilder, strict: "predicate.builder", loosened: "predicate.builder"},
		{name: "an absent default", source: `predicate: level: *3 | 4`, input: provenance, strict: "predicate.level", loosened: "predicate.level"},
		{name: "an optional field may be absent", source: `predicate: builder?: id?: string`, input: withoutBuilder},
		{name: "an optional field is held to its type", source: `predicate: builder?: id?: int`, input: provenance, strict: "predicate.builder.id", upstream: "predicate.builder.id"},
		{name: "a name of the policy's own", source: "limit: 5\npredicate: n: <limit", input: provenance},
		{name: "a hidden name", source: "_limit: 2\npredicate: n: <_limit", input: provenance, strict: "predicate.n", upstream: "predicate.n"},
		{name: "a definition", source: "#M: {uri: =~\"^git\"}\npredicate: materials: [...#M]", input: provenance},
		{name: "a definition is closed", source: "#M: {url: string}\npredicate: materials: [...#M]", input: provenance, strict: "uri", upstream: "uri"},
		{name: "an absent field in a list", source: `predicate: materials: [...{digest: sha1: string}]`, input: provenance, strict: "predicate.materials[0].digest", loosened: "predicate.materials[0].digest"},
		{name: "a list that is too short", source: `predicate: materials: [_, _]`, input: provenance, strict: "materials", upstream: "materials"},
		{name: "a length that an absent list has not", source: "import \"list\"\npredicate: missing: list.MinItems(1)", input: provenance, strict: "predicate.missing", loosened: "predicate.missing"},
		{name: "a condition", source: "predicate: {n: int, if n > 2 {reviewed: true}}", input: provenance, strict: "predicate.reviewed", loosened: "predicate.reviewed"},
		{name: "time", source: "import \"time\"\npredicate: builder: id: !~\"evil\"\nstart: time.Parse(time.RFC3339, \"2024-01-01T00:00:00Z\")\npredicate: n: >0 & <len(start)", input: provenance},
		{name: "a large number", source: `predicate: big: 12345678901234567890`, input: provenance},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, semantics := range []string{CUEStrict, CUEUpstream} {
				want := tt.strict
				if semantics == CUEUpstream {
					want = tt.upstream
				}
				p, err := newProgram(languageCUE, tt.source, statementMembers, semantics)
				if err != nil {
					t.Fatalf("%s: %v", semantics, err)
				}
				loosened, err := p.evaluate(t.Context(), []byte(tt.input))
				if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("%s: %v, want %q", semantics, err, want)
				}
				if semantics == CUEStrict && loosened != "" {
					t.Errorf("strict semantics loosened %q", loosened)
				}
				if semantics == CUEUpstream && (tt.loosened == "") != (loosened == "") || !strings.Contains(loosened, tt.loosened) && semantics == CUEUpstream {
					t.Errorf("upstream's semantics loosened %q, want %q", loosened, tt.loosened)
				}
			}
		})
	}
}

func TestCUEAtTheResult(t *testing.T) {
	const both = `authorityMatches: {att: {attestations: {prov: [...]}}, sig: {signatures: [...]}}`
	p, err := newProgram(languageCUE, both, resultMembers, CUEStrict)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.evaluate(t.Context(), []byte(`{"authorityMatches":{"att":{"attestations":{"prov":[{"subject":"a"}]}},"sig":{"signatures":[{"subject":"b"}]}}}`)); err != nil {
		t.Error(err)
	}
	_, err = p.evaluate(t.Context(), []byte(`{"authorityMatches":{"sig":{"signatures":[{"subject":"b"}]}}}`))
	if err == nil || !strings.Contains(err.Error(), "authorityMatches.att") {
		t.Errorf("one of two authorities: %v", err)
	}
}

func TestCUERefusedWhenLoaded(t *testing.T) {
	deep := "a0: \"x\"\n"
	for i := 1; i < 40; i++ {
		n, m := string(rune('a'+i/10))+string(rune('0'+i%10)), string(rune('a'+(i-1)/10))+string(rune('0'+(i-1)%10))
		deep += n + `: "\(` + m + `)\(` + m + `)"` + "\n"
	}
	for _, tt := range []struct{ name, source, want string }{
		{"syntax", `predicate: {`, "CUE"},
		{"a contradiction", `predicate: n: 1 & 2`, "conflicting"},
		{"a name that no statement has", `predicat: builder: id: "x"`, `"predicat" is none of`},
		{"recursion", "#T: {next: #T}\npredicate: #T", ""},
		{"a list without end", "import \"list\"\npredicate: n: len(list.Range(0, 1000000000, 1))", "list.Range is refused"},
		{"repetition", "import \"strings\"\npredicate: n: len(strings.Repeat(\"x\", 1000000000))", "strings.Repeat is refused"},
		{"multiplied text", `predicate: n: "x" * 1000000000`, "operator *"},
		{"a loop of loops", `predicate: n: len([for a in predicate.materials for b in predicate.materials for c in predicate.materials {a}])`, "loops"},
		{"loops in loops", `predicate: n: len([for a in predicate.materials {[for b in predicate.materials {[for c in predicate.materials {a}]}]}])`, "loops"},
		{"references that double", deep + "predicate: n: len(d9)", "values"},
		{"choices that multiply", `predicate: n: ` + strings.Repeat(`({a: 1} | {a: 2}) & `, 20) + `_`, "alternatives"},
		{"a program", "import \"tool/exec\"\npredicate: n: exec.Run", "is refused"},
		{"a package of the network", "import \"example.com/x\"\npredicate: n: x.a", "is refused"},
		{"a package under another name", "import l \"list\"\npredicate: n: len(l.Range(0, 9, 1))", "under another name"},
		{"too much of it", "predicate: n: 1 //" + strings.Repeat("x", maxProgram), "over"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Now()
			p, err := newProgram(languageCUE, tt.source, statementMembers, CUEStrict)
			if err == nil && tt.want == "" { // refused when it is evaluated
				_, err = p.evaluate(t.Context(), []byte(provenance))
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if took := time.Since(start); took > evalTimeout+time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestRego(t *testing.T) {
	const head = "package sigstore\n"
	for _, tt := range []struct{ name, source, want string }{
		{"true", head + `isCompliant { input.predicate.n == 3 }`, ""},
		{"with a default", head + "default isCompliant = false\n" + `isCompliant { input.predicate.n == 3 }`, ""},
		{"false", head + "default isCompliant = false\n" + `isCompliant { input.predicate.n == 4 }`, "not true"},
		{"undefined", head + `isCompliant { input.predicate.absent == 4 }`, "not true"},
		{"a text is not true", head + `isCompliant = "true" { true }`, "not true"},
		{"an object that passes", head + `isCompliant[r] { r := {"result": input.predicate.n == 3, "error": "n"} }`, ""},
		{"an object that fails", head + `isCompliant[r] { r := {"result": input.predicate.n == 4, "error": "n is not 4"} }`, "n is not 4"},
		{"one of several passes", head + "isCompliant[r] { r := {\"result\": false, \"error\": \"a\"} }\nisCompliant[r] { r := {\"result\": true} }", ""},
		{"a warning beside true", head + `isCompliant[r] { r := {"result": true, "warning": "soon"} }`, "warning: soon"},
		{"a warning beside false", head + `isCompliant[r] { r := {"result": false, "warning": "soon", "error": "now"} }`, "now"},
		{"something else in the set", head + `isCompliant[r] { r := 1 }`, "something else"},
		{"an empty set", head + `isCompliant[r] { false; r := {"result": true} }`, "not true"},
		{"a result that is no bool", head + `isCompliant[r] { r := {"result": "true"} }`, "not true"},
		{"numbers stay exact", head + `isCompliant { input.predicate.big == 12345678901234567890; input.predicate.big != 12345678901234567891 }`, ""},
		{"an error in a builtin", head + `isCompliant { to_number("x") == 1 } else { true }`, "to_number"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := newProgram(languageRego, tt.source, statementMembers, CUEStrict)
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.evaluate(t.Context(), []byte(provenance))
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestRegoRefusedWhenLoaded(t *testing.T) {
	for _, tt := range []struct{ name, source, want string }{
		{"syntax", "package sigstore\nisCompliant {", "rego: "},
		{"another package", "package other\nisCompliant { true }", "package must be sigstore"},
		{"no rule", "package sigstore\nallow { true }", "no rule isCompliant"},
		{"the network", "package sigstore\nisCompliant { http.send({\"method\": \"GET\", \"url\": \"http://registry.example\"}).status_code == 200 }", "http.send"},
		{"names", "package sigstore\nisCompliant { net.lookup_ip_addr(\"registry.example\") }", "net.lookup_ip_addr"},
		{"the process", "package sigstore\nisCompliant { opa.runtime().env.HOME }", "opa.runtime"},
		{"recursion", "package sigstore\nisCompliant { isCompliant }", "recursi"},
		{"nothing", "", "empty module"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := newProgram(languageRego, tt.source, statementMembers, CUEStrict)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestRegoIsStopped(t *testing.T) {
	text := "package sigstore\nisCompliant { a00 := \"xxxxxxxxxxxxxxxx\"\n"
	for i := 1; i < 40; i++ {
		text += "a" + itoa(i) + ` := concat("", [a` + itoa(i-1) + ", a" + itoa(i-1) + "])\n"
	}
	for _, tt := range []struct{ name, source string }{
		{"a huge comprehension", "package sigstore\nisCompliant { count([1 | a := numbers.range(1, 100000)[_]; b := numbers.range(1, 100000)[_]; a == b]) == 3 }"},
		{"a huge range", "package sigstore\nisCompliant { count(numbers.range(1, 100000000000)) == 3 }"},
		{"doubled text", text + "count(a39) == 3 }"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := newProgram(languageRego, tt.source, statementMembers, CUEStrict)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			_, err = p.evaluate(t.Context(), []byte(provenance))
			if err == nil || !strings.Contains(err.Error(), "longer than") && !strings.Contains(err.Error(), "of memory") {
				t.Errorf("%v", err)
			}
			if took := time.Since(start); took > 3*evalTimeout {
				t.Errorf("took %v", took)
			}
		})
	}
}

func itoa(i int) string { return string(rune('0'+i/10)) + string(rune('0'+i%10)) }

func TestEvaluationEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for language, source := range map[string]string{languageCUE: `predicate: n: 3`, languageRego: "package sigstore\nisCompliant { true }"} {
		p, err := newProgram(language, source, statementMembers, CUEStrict)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.evaluate(ctx, []byte(provenance)); err == nil {
			t.Errorf("%s: a cancelled evaluation accepts", language)
		}
	}
}

// What cannot be interrupted is left behind, and refuses until it has ended.
func TestAnEvaluationThatDoesNotEnd(t *testing.T) {
	l := newLimited()
	stuck := make(chan struct{})
	defer close(stuck)
	for range evalPlaces {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := l.run(ctx, 0, func() (string, error) { <-stuck; return "", nil }); err == nil {
			t.Fatal("an evaluation that has not ended accepts")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := l.run(ctx, 0, func() (string, error) { return "", nil }); err == nil {
		t.Error("all places are taken, and another evaluation ran")
	}
	if _, err := newLimited().run(t.Context(), 0, func() (string, error) { panic("no") }); err == nil || !strings.Contains(err.Error(), "panicked") {
		t.Errorf("a panic: %v", err)
	}
}
