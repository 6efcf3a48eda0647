package witness

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	cosignature "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/tessera"
)

// policyKeys are verifier keys for tests, by what the tests' policies call them.
func policyKeys(t testing.TB) *strings.Replacer {
	t.Helper()
	var pairs []string
	for i := range 6 {
		c, err := newCosigner(fmt.Sprintf("witness.example.test/%d", i+1), newEd25519Key(byte('a'+i)))
		if err != nil {
			t.Fatal(err)
		}
		pairs = append(pairs, fmt.Sprintf("$W%d", i+1), c.key.String())
	}
	_, mldsa, err := cosignature.GenerateMLDSAKey("witness.example.test/pq")
	if err != nil {
		t.Fatal(err)
	}
	l := newTestLog(t, "log.example.test", newEd25519Key('l'), 0, "")
	ec := newTestLog(t, "ec.example.test", newP256Key(t), 0, "")
	return strings.NewReplacer(append(pairs, "$PQ", mldsa, "$LOG", l.vkey().String(), "$EC", ec.vkey().String(), "$U", "http://127.0.0.1:1")...)
}

const nestedPolicy = `# two organisations
log $LOG https://log.example.test/
 log	$EC

witness X1 $W1 $U/1
witness X2 $W2 $U/2/
witness X3 $W3 $U/3
group X 2 X1 X2 X3
witness Y1 $W4 $U/4
witness Y2 $PQ $U/5
group Y any Y1 Y2
group X-and-Y all X Y
   # the rule
quorum X-and-Y
`

func TestAPolicySaysWhoseCosignaturesAreEnough(t *testing.T) {
	p, err := ParsePolicy(policyKeys(t).Replace(nestedPolicy))
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Logs) != 2 || p.Logs[0].Key.Name() != "log.example.test" || p.Logs[1].Key.Type() != ECDSA || p.Logs[0].URL != "https://log.example.test" {
		t.Errorf("logs %+v", p.Logs)
	}
	if p.Witnesses[1].URL != "http://127.0.0.1:1/2" || p.Witnesses[4].Key.Type() != CosignMLDSA44 || fmt.Sprint(p.Quorum()) != "[0 1 2 3 4]" {
		t.Errorf("witnesses %+v, quorum %v", p.Witnesses, p.Quorum())
	}
	for _, tt := range []struct {
		have string
		want bool
	}{{"", false}, {"01", false}, {"3", false}, {"03", false}, {"013", true}, {"124", true}, {"34", false}, {"01234", true}} {
		if got := p.Satisfied(func(i int) bool { return strings.Contains(tt.have, fmt.Sprint(i)) }); got != tt.want {
			t.Errorf("witnesses %q: %v", tt.have, got)
		}
	}
	none, err := ParsePolicy("quorum none")
	if err != nil || !none.Satisfied(func(int) bool { return false }) || none.Quorum() != nil {
		t.Errorf("quorum none: %+v, %v", none, err)
	}
}

func TestPoliciesThatAreNone(t *testing.T) {
	keys := policyKeys(t)
	for _, tt := range []struct{ name, policy, want string }{
		{"nothing", "", "no quorum line"},
		{"no quorum", "witness a $W1\n", "no quorum line"},
		{"two quorums", "quorum none\nquorum none\n", "line 2: a second quorum"},
		{"a quorum that comes later", "quorum a\nwitness a $W1\n", `line 1: quorum: no line above defines "a"`},
		{"a quorum of two", "witness a $W1\nwitness b $W2\nquorum a b\n", "line 3: want: quorum NAME|none"},
		{"an unknown word", "quorum none\nquorom none\n", `line 2: unknown keyword "quorom"`},
		{"a comment behind a line", "quorum none # for now\n", "line 1: # in"},
		{"a carriage return", "quorum none\r\n", `line 1: control character '\r'`},
		{"a witness named none", "witness none $W1\nquorum none\n", `line 1: "none" is a reserved word`},
		{"a witness named log", "witness log $W1\nquorum none\n", `line 1: "log" is a reserved word`},
		{"a group named any", "witness a $W1\ngroup any all a\nquorum none\n", `line 2: "any" is a reserved word`},
		{"a name twice", "witness a $W1\nwitness a $W2\nquorum none\n", `line 2: the name "a" is taken`},
		{"a group with a witness's name", "witness a $W1\ngroup a any a\nquorum none\n", `line 2: the name "a" is taken`},
		{"a key twice", "witness a $W1\nwitness b $W1\nquorum none\n", "line 2: the key of witness b is there twice"},
		{"a log's key twice", "log $LOG\nlog $LOG\nquorum none\n", "line 2: the key of log log.example.test is there twice"},
		{"a log with a witness's key", "log $W1\nquorum none\n", "signature type 0x04 is no log's"},
		{"a witness with a log's key", "witness a $LOG\nquorum none\n", "signature type 0x01 is no witness's"},
		{"a bad key", "witness a abc\nquorum none\n", "line 1: verifier key"},
		{"a URL of another kind", "witness a $W1 ftp://a\nquorum none\n", "is not a URL"},
		{"a URL with a password", "witness a $W1 https://a:b@c\nquorum none\n", "is not a URL"},
		{"a URL with a query", "witness a $W1 https://a?b\nquorum none\n", "is not a URL"},
		{"a URL with dot segments", "witness a $W1 https://a/b/../c\nquorum none\n", "in its plain form"},
		{"too many words", "witness a $W1 $U x\nquorum none\n", "want: witness NAME VKEY [URL]"},
		{"a group without members", "group g any\nquorum none\n", "want: group NAME"},
		{"threshold 0", "witness a $W1\ngroup g 0 a\nquorum g\n", `line 2: group g: threshold "0"`},
		{"threshold over the members", "witness a $W1\ngroup g 2 a\nquorum g\n", "a number from 1 to 1"},
		{"threshold 01", "witness a $W1\ngroup g 01 a\nquorum g\n", `threshold "01"`},
		{"threshold +1", "witness a $W1\ngroup g +1 a\nquorum g\n", `threshold "+1"`},
		{"an unknown member", "witness a $W1\ngroup g any a b\nquorum g\n", `no line above defines "b"`},
		{"itself as a member", "group g any g\nquorum g\n", `no line above defines "g"`},
		{"a member twice", "witness a $W1\ngroup g 2 a a\nquorum g\n", `"a" is a member already`},
		{"a member of two groups", "witness a $W1\ngroup g any a\ngroup h any a\nquorum g\n", `line 3: group h: "a" is a member already`},
		{"none as a member", "group g any none\nquorum g\n", `no line above defines "none"`},
		{"a megabyte", strings.Repeat("#\n", 1<<20), "over 524288 bytes"},
		{"65 groups", manyGroups(65), "line 66: over 64 groups"},
	} {
		_, err := ParsePolicy(keys.Replace(tt.policy))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	if _, err := ParsePolicy(keys.Replace(manyGroups(64))); err != nil {
		t.Errorf("64 groups: %v", err)
	}
}

// manyGroups puts a witness into n groups, one in the other.
func manyGroups(n int) string {
	policy := "witness g0 $W1 $U\n"
	for i := range n {
		policy += fmt.Sprintf("group g%d any g%d\n", i+1, i)
	}
	return policy + fmt.Sprintf("quorum g%d\n", n)
}

// compareWithTessera checks that Tessera reads a policy of ours alike: the same endpoints, the same verdict for any set of cosignatures.
func compareWithTessera(t *testing.T, policy string, p *Policy) {
	t.Helper()
	theirs, err := tessera.NewWitnessGroupFromPolicy([]byte(policy))
	if err != nil {
		t.Fatalf("Tessera refuses what we take: %v\n%s", err, policy)
	}
	urls := map[string]bool{}
	for _, i := range p.Quorum() {
		urls[p.Witnesses[i].URL+"/add-checkpoint"] = true
	}
	for url := range theirs.Endpoints() {
		if !urls[url] {
			t.Fatalf("Tessera would ask %s, we %v\n%s", url, slicesOf(urls), policy)
		}
	}
	if len(urls) != len(theirs.Endpoints()) {
		t.Fatalf("Tessera would ask %v, we %v\n%s", theirs.Endpoints(), slicesOf(urls), policy)
	}
}

func slicesOf(m map[string]bool) (out []string) {
	for k := range maps.Keys(m) {
		out = append(out, k)
	}
	return out
}

func TestTesseraReadsOurPoliciesAlike(t *testing.T) {
	keys := policyKeys(t)
	l := newTestLog(t, "log.example.test", newEd25519Key('l'), 5, "leaf")
	for _, text := range []string{
		"quorum none\n",
		"witness a $W1 $U/1\nquorum a\n",
		"witness a $W1 $U/1\nwitness b $W2 $U/2\nwitness c $W3 $U/3\ngroup g 2 a b c\nquorum g\n",
		"witness a $W1 $U/1\nwitness b $W2 $U/2\nwitness c $W3 $U/3\nwitness d $W4 $U/4\ngroup g all a b\ngroup h any c d\ngroup i any g h\nquorum i\n",
		strings.Replace(nestedPolicy, "$PQ", "$W5", 1),
		strings.Replace(nestedPolicy, "$PQ", "$W5", 1) + "witness out $W6 $U/6\n",
	} {
		text := keys.Replace(text)
		p, err := ParsePolicy(text)
		if err != nil {
			t.Fatal(err)
		}
		compareWithTessera(t, text, p)
		theirs, err := tessera.NewWitnessGroupFromPolicy([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		for set := range 1 << len(p.Witnesses) {
			note := l.checkpoint(5)
			for i := range p.Witnesses {
				if set>>i&1 == 1 {
					c, err := newCosigner(p.Witnesses[i].Key.Name(), newEd25519Key(byte('a'+i)))
					if err != nil {
						t.Fatal(err)
					}
					sig, err := c.sign([]byte(l.text(5)), 1)
					if err != nil {
						t.Fatal(err)
					}
					note = append(note, sig.line()...)
				}
			}
			if ours := p.Satisfied(func(i int) bool { return set>>i&1 == 1 }); ours != theirs.Satisfied(note) {
				t.Errorf("witnesses %b: we say %v, Tessera the contrary\n%s", set, ours, text)
			}
		}
	}
}

// FuzzPolicy: what we take, Tessera takes and reads alike, where it can (all witnesses with a URL of
// their own, ASCII: it splits at other spaces than the specification's).
func FuzzPolicy(f *testing.F) {
	keys := policyKeys(f)
	f.Add(nestedPolicy)
	f.Add("quorum none")
	f.Add("witness a $W1 $U\nwitness b $W2 $U/b\ngroup g all a b\nquorum g\n")
	f.Add(manyGroups(9))
	f.Fuzz(func(t *testing.T, text string) {
		text = keys.Replace(text)
		p, err := ParsePolicy(text)
		if err != nil {
			return
		}
		if !p.Satisfied(func(int) bool { return true }) {
			t.Fatalf("all witnesses are not enough\n%s", text)
		}
		if len(p.Quorum()) > 0 && p.Satisfied(func(int) bool { return false }) {
			t.Fatalf("no witness is enough\n%s", text)
		}
		seen := map[string]bool{"": true}
		for _, w := range p.Witnesses {
			if seen[w.URL] {
				return
			}
			seen[w.URL] = true
		}
		if strings.IndexFunc(text, func(r rune) bool { return r > 0x7e }) < 0 {
			compareWithTessera(t, text, p)
		}
	})
}
