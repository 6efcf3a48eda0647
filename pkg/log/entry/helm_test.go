package entry

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

func helmDoc(key, provenance []byte) map[string]any {
	return proposal("helm", "0.0.1", map[string]any{
		"publicKey": map[string]any{"content": key}, "chart": map[string]any{"provenance": map[string]any{"content": provenance}},
	})
}

// clearSigner makes a PGP key and signs provenance files with it.
func clearSigner(t testing.TB) (key []byte, sign func(text string) []byte) {
	t.Helper()
	e, err := openpgp.NewEntity("Alice", "", "alice@example.com", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := e.Serialize(&buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), func(text string) []byte {
		var out bytes.Buffer
		w, err := clearsign.Encode(&out, e.PrivateKey, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
}

var chartSum = "sha256:" + strings.Repeat("0a", 32)

func TestCharts(t *testing.T) {
	key, sign := clearSigner(t)
	for name, sums := range map[string]string{
		"one file":            "files:\n  a.tgz: " + chartSum + "\n",
		"in quotes":           "\"files\":\n  'a.tgz': \"" + chartSum + "\"\n",
		"in flow style":       "{files: {a.tgz: \"" + chartSum + "\"}}",
		"with images":         "files:\n  a.tgz: " + chartSum + "\nimages:\n  x/y:1: sha256:00\n  x/z:1: sha256:01\n",
		"with a comment":      "# of a chart\nfiles:\n  a.tgz: " + chartSum + "\n",
		"with dashes escaped": "files:\n  -a.tgz: " + chartSum + "\n",
	} {
		e, err := propose(t, helmDoc(key, sign("name: a\n\n...\n"+sums)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !strings.Contains(string(e.Body), `"hash":{"algorithm":"sha256","value":"`+strings.Repeat("0a", 32)) {
			t.Errorf("%s: %s", name, e.Body)
		}
		for _, want := range []string{chartSum, "alice@example.com"} {
			if !strings.Contains(strings.Join(e.Keys, " "), want) {
				t.Errorf("%s: keys are %q, without %q", name, e.Keys, want)
			}
		}
	}
}

func TestRefusedCharts(t *testing.T) {
	key, sign := clearSigner(t)
	sums := func(yaml string) map[string]any { return helmDoc(key, sign("name: a\n\n...\n"+yaml)) }
	one := "files:\n  a.tgz: " + chartSum + "\n"
	good := sign("name: a\n\n...\n" + one)
	checkRefusals(t, map[string]refusal{
		"no key":                     {set(t, helmDoc(key, good), "spec.publicKey", nil), "missing_field", "publicKey.content in body is required"},
		"an SSH key":                 {helmDoc(sample(t, "ssh/rsa.pub"), good), "bad_key", "could not parse public key as pgp"},
		"no provenance":              {set(t, helmDoc(key, good), "spec.chart", nil), "missing_field", "chart.provenance.content in body is required"},
		"a signature alone":          {set(t, set(t, helmDoc(key, good), "spec.chart.provenance.content", nil), "spec.chart.provenance.signature", map[string]any{"content": "AAAA"}), "missing_field", "chart.provenance.content"},
		"a file that is too long":    {helmDoc(key, make([]byte, maxProvenance+1)), "field_too_large", "over the limit of 1048576"},
		"text that is not signed":    {helmDoc(key, []byte("name: a\n\n...\n"+one)), "bad_provenance", "no clear-signed PGP message"},
		"a signature without end":    {helmDoc(key, good[:len(good)-20]), "bad_provenance", "no clear-signed PGP message"},
		"a text that was changed":    {helmDoc(key, bytes.Replace(good, []byte("0a0a"), []byte("0b0b"), 1)), "bad_signature", "verifying signature"},
		"another key":                {helmDoc(sample(t, "pgp/rsa.asc"), good), "bad_signature", "unknown entity"},
		"no second part":             {helmDoc(key, sign(one)), "bad_provenance", "must have two parts"},
		"three parts":                {helmDoc(key, sign("name: a\n\n...\n"+one+"\n...\n"+one)), "bad_provenance", "must have two parts"},
		"two files":                  {sums(one + "  b.tgz: " + chartSum + "\n"), "bad_provenance", "a provenance file names one chart"},
		"a file twice":               {sums(one + "files:\n  b.tgz: " + chartSum + "\n"), "bad_provenance", "a name twice"},
		"no files":                   {sums("images: {}\n"), "bad_provenance", "no file under"},
		"no file":                    {sums("files: {}\n"), "bad_provenance", "no file under"},
		"files that are null":        {sums("files:\n"), "bad_provenance", "expected a YAML mapping"},
		"files that are a list":      {sums("files:\n- " + chartSum + "\n"), "bad_provenance", "expected a YAML mapping"},
		"nothing":                    {sums("# nothing\n"), "bad_provenance", "no digests"},
		"a list":                     {sums("- files\n"), "bad_provenance", "expected a YAML mapping"},
		"an alias":                   {sums("images: &a\n  a.tgz: " + chartSum + "\nfiles: *a\n"), "bad_provenance", "expected a YAML mapping"},
		"a merge":                    {sums("files:\n  <<: {a.tgz: \"" + chartSum + "\"}\n"), "bad_provenance", "expected a YAML string"},
		"a name that is a number":    {sums("files:\n  1: " + chartSum + "\n"), "bad_provenance", "expected a YAML string"},
		"a tag":                      {sums("files:\n  a.tgz: !!binary " + chartSum + "\n"), "bad_provenance", "expected a YAML string"},
		"something beside":           {sums(one + "Files:\n  b.tgz: " + chartSum + "\n"), "bad_provenance", "nothing may stand beside the digests"},
		"another algorithm":          {sums("files:\n  a.tgz: sha512:" + strings.Repeat("0a", 64) + "\n"), "bad_provenance", "digits of lower-case hex"},
		"a digest in capitals":       {sums("files:\n  a.tgz: sha256:" + strings.Repeat("0A", 32) + "\n"), "bad_provenance", "digits of lower-case hex"},
		"a digest and more":          {sums("files:\n  a.tgz: \"" + chartSum + ":0\"\n"), "bad_provenance", "digits of lower-case hex"},
		"YAML that is none":          {sums("files: [\n"), "bad_provenance", "yaml: "},
		"two documents":              {sums(one + "---\n" + one), "bad_provenance", "more than one YAML document"},
		"images that are a string":   {sums(one + "images: x\n"), "bad_provenance", "expected a YAML mapping"},
		"digests that are too long":  {sums(one + "#" + strings.Repeat("x", maxProvenanceSums)), "bad_provenance", "too long"},
		"deep nesting":               {sums("files: " + strings.Repeat("[", 30_000)), "bad_provenance", "yaml: "},
		"many images":                {sums(one + "images:\n" + strings.Repeat("  a: b\n", maxProvenanceImgs+1)), "bad_provenance", "too many"},
		"aliases that grow and grow": {sums("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nfiles: *c\n"), "bad_provenance", "too many"},
	})
}

func FuzzProvenance(f *testing.F) {
	names, err := filepath.Glob(filepath.Join("testdata", "helm", "*"))
	if err != nil || len(names) == 0 {
		f.Fatal(err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		p, err := parseProvenance(file)
		if err != nil {
			return
		}
		if _, _, err := p.chart.parse(); err != nil || p.chart.Algorithm != "sha256" || !bytes.Contains(file, []byte(p.chart.Value)) {
			t.Fatalf("digest %v of %q", p.chart, file)
		}
	})
}
