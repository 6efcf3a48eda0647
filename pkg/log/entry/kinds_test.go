package entry

import (
	"slices"
	"strings"
	"testing"
)

func TestKinds(t *testing.T) {
	defaults := []string{"dsse:0.0.1", "hashedrekord:0.0.1", "intoto:0.0.1", "intoto:0.0.2"}
	for _, tt := range []struct {
		name        string
		names, want []string
	}{
		{"no names are the defaults", nil, defaults},
		{"a bare name is every version", []string{"intoto"}, []string{"intoto:0.0.1", "intoto:0.0.2"}},
		{"a version is itself alone", []string{"intoto:0.0.2"}, []string{"intoto:0.0.2"}},
		{"a name said twice counts once", []string{"dsse", "intoto:0.0.2", "dsse:0.0.1"}, []string{"dsse:0.0.1", "intoto:0.0.2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			kinds, err := ParseKinds(tt.names)
			if err != nil || !slices.Equal(kinds.Names(), tt.want) {
				t.Errorf("ParseKinds(%q) enables %q (%v), want %q", tt.names, kinds.Names(), err, tt.want)
			}
		})
	}
	for _, name := range []string{"", "npm", "intoto:", "intoto:0.0.3", "DSSE", "hashedrekord:0.0.2"} {
		if _, err := ParseKinds([]string{"dsse", name}); err == nil || !strings.Contains(err.Error(), "known are ") || !strings.Contains(err.Error(), "intoto:0.0.2") {
			t.Errorf("ParseKinds with %q = %v, want an error that lists the known ones", name, err)
		}
	}
}

// TestKindsThatAreOff refuses submissions of a kind or version that is off, and reads its bodies all the same.
func TestKindsThatAreOff(t *testing.T) {
	s := newSigner(t, "P-256")
	m := message{payloadType: inTotoType, payload: []byte(statementJSON)}
	for _, tt := range []struct {
		name string
		on   string
		doc  map[string]any
		text string
	}{
		{"another kind is on", "dsse", hashedRekordDoc(t, s, s.pem), "entry kind 'hashedrekord' is not enabled for submission on this server"},
		{"another version is on", "intoto:0.0.1", intoto002Doc(t, m, "", s), "entry kind 'intoto' does not support inserting entries of version '0.0.2'"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			kinds, err := ParseKinds([]string{tt.on})
			if err != nil {
				t.Fatal(err)
			}
			v := parsed(t, tt.doc)
			if _, err := Propose(kinds, v); err == nil || err.Error() != tt.text {
				t.Errorf("Propose = %v, want %q", err, tt.text)
			}
			e, err := Propose(Kinds{}, v)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Keys(e.Body); err != nil {
				t.Errorf("Keys of a stored body: %v", err)
			}
		})
	}
}
