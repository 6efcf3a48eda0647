package config

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/configuration.md anew")

const (
	repository = "../.."
	reference  = repository + "/docs/configuration.md"
)

// TestTheReferenceOfKeysIsFresh compares docs/configuration.md with what the declarations of the configurations say. With -update it writes the page.
func TestTheReferenceOfKeysIsFresh(t *testing.T) {
	var page strings.Builder
	page.WriteString(`# Configuration keys

Made from the declarations in the code by ` + "`go test ./internal/config -run TestTheReferenceOfKeysIsFresh -update`" + `; a test fails when it is stale.

Each role reads one YAML file, ` + "`PROGRAM -config FILE`" + `; the environment wins over the file. Keys inside lists are in the file alone. A text such as ` + "`10m`" + ` is a duration, a list in the environment has
commas. Unknown keys and all mistakes are reported at once, before anything listens. Complete files: [operate.md](operate.md#the-roles-alone).
`)
	source := declarations(t, "cmd/ca", "pkg/tlog", "pkg/stack", "cmd/tsa", "cmd/tuf-publisher", "cmd/admission")
	for _, role := range []struct{ name, env, dir, root string }{
		{"ca", "CA", "cmd/ca", "serverConfig"}, {"tlog", "TLOG", "pkg/tlog", "Config"},
		{"tsa", "TSA", "cmd/tsa", "serverConfig"}, {"tuf-publisher", "TUF_PUBLISHER", "cmd/tuf-publisher", "publisherConfig"}, {"admission", "ADMISSION", "cmd/admission", "serverConfig"},
	} {
		fmt.Fprintf(&page, "\n## %s\n\n| key | environment | type | |\n|---|---|---|---|\n", role.name)
		w := writer{t: t, page: &page, source: source, env: role.env, shown: map[*ast.StructType]string{}}
		w.fields(role.dir, source[role.dir+"."+role.root], "", true)
		if w.rows < 10 {
			t.Errorf("%s has %d keys: the declarations are not found any more", role.name, w.rows)
		}
	}
	if *update {
		if err := os.WriteFile(reference, []byte(page.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	stored, err := os.ReadFile(reference)
	if err != nil || string(stored) != page.String() {
		t.Errorf("docs/configuration.md is stale (%v): go test ./internal/config -run TestTheReferenceOfKeysIsFresh -update", err)
	}
}

// declarations returns the struct types of packages, by "dir.Name".
func declarations(t *testing.T, dirs ...string) map[string]*ast.StructType {
	t.Helper()
	found := map[string]*ast.StructType{}
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(repository, dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(parsed, func(n ast.Node) bool {
				if spec, ok := n.(*ast.TypeSpec); ok {
					if s, ok := spec.Type.(*ast.StructType); ok {
						found[dir+"."+spec.Name.Name] = s
					}
				}
				return true
			})
		}
	}
	return found
}

type writer struct {
	t      *testing.T
	page   *strings.Builder
	source map[string]*ast.StructType
	env    string
	rows   int
	shown  map[*ast.StructType]string // where the keys of a type that several have stand
}

// fields writes a row for each key of s, and of what is inside it. What lies in a list has no variable.
func (w *writer) fields(dir string, s *ast.StructType, prefix string, inEnv bool) {
	if s == nil {
		w.t.Fatalf("the type behind %q is not declared in %s", prefix, dir)
	}
	names := map[string]string{} // key by Go name
	for _, f := range s.Fields.List {
		if key := keyOf(f); key != "" {
			names[f.Names[0].Name] = key
		}
	}
	before := ""
	for _, f := range s.Fields.List {
		key := keyOf(f)
		if key == "" {
			continue
		}
		doc := strings.Join(strings.Fields(f.Doc.Text()), " ")
		if doc == "" && regexp.MustCompile(`\b`+f.Names[0].Name+`\b`).MatchString(before) {
			doc = "See above." // one comment for several fields
		} else if doc != "" {
			before = doc
		}
		name, inner, innerDir, list := w.typeOf(dir, f.Type)
		if at := w.shown[inner]; inner != nil && at != "" {
			doc += " Its keys are those of `" + at + "`."
		}
		switch {
		case inner != nil && !list && doc == "": // a group of keys
		case doc == "":
			w.t.Errorf("%s: the key %s%s has no comment", dir, prefix, key)
		default:
			variable := "–"
			if inEnv && inner == nil {
				variable = "`" + w.env + "_" + strings.NewReplacer(".", "_", "-", "_").Replace(strings.ToUpper(prefix+key)) + "`"
			}
			fmt.Fprintf(w.page, "| `%s%s` | %s | %s | %s |\n", prefix, key, variable, name, withKeys(doc, names))
			w.rows++
		}
		if inner != nil {
			next := prefix + key + "."
			if list {
				next = prefix + key + "[]."
			}
			if w.shown[inner] != "" {
				continue
			}
			w.shown[inner] = prefix + key
			w.fields(innerDir, inner, next, inEnv && !list)
		}
	}
}

// keyOf is the YAML key of a field, "" for none.
func keyOf(f *ast.Field) string {
	if f.Tag == nil || len(f.Names) != 1 {
		return ""
	}
	tag, err := strconv.Unquote(f.Tag.Value)
	if err != nil {
		return ""
	}
	key, _, _ := strings.Cut(reflect.StructTag(tag).Get("mapstructure"), ",")
	return key
}

// typeOf names a type for people, and returns the struct in it, if any, and where that is declared.
func (w *writer) typeOf(dir string, e ast.Expr) (name string, inner *ast.StructType, innerDir string, list bool) {
	switch e := e.(type) {
	case *ast.StructType:
		return "group", e, dir, false
	case *ast.ArrayType:
		name, inner, innerDir, _ = w.typeOf(dir, e.Elt)
		if inner != nil {
			return "list", inner, innerDir, true
		}
		return "list of " + name + "s", nil, "", true
	case *ast.Ident:
		if s := w.source[dir+"."+e.Name]; s != nil {
			return "group", s, dir, false
		}
		switch e.Name {
		case "string":
			return "text", nil, "", false
		case "int", "int64", "float64":
			return "number", nil, "", false
		case "bool":
			return "true or false", nil, "", false
		}
	case *ast.SelectorExpr:
		switch pkg := e.X.(*ast.Ident).Name; pkg + "." + e.Sel.Name {
		case "time.Duration":
			return "duration", nil, "", false
		case "slog.Level":
			return "level", nil, "", false
		case "stack.TreeSpec":
			return "group", w.source["pkg/stack.TreeSpec"], "pkg/stack", false
		}
	}
	w.t.Errorf("%s: a key has a type that the reference cannot name: %T", dir, e)
	return "", nil, "", false
}

// withKeys writes keys in place of the Go names that stand where a sentence begins or that can be nothing else.
func withKeys(doc string, names map[string]string) string {
	for name, key := range names {
		pattern := `(^|\. | and )` + name + `\b`
		if regexp.MustCompile(`[a-z][A-Z]`).MatchString(name) {
			pattern = `(^|[ (])` + name + `\b`
		}
		doc = regexp.MustCompile(pattern).ReplaceAllString(doc, "${1}`"+key+"`")
	}
	return strings.NewReplacer("|", "\\|", "<", "&lt;").Replace(doc)
}
