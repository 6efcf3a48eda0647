package trust

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var errFault = errors.New("the disk said no")

// TestClientsSeeOldOrNewWhateverWriteFails kills a publisher at each of its writes, before and
// after the write takes effect. At that moment and after the next start, a client that knows
// the old state and one that bootstraps from the first root must both find a whole
// repository; and no file with a version or hash in its name may ever have two contents.
func TestClientsSeeOldOrNewWhateverWriteFails(t *testing.T) {
	at := &clock{}
	cases := map[string]struct {
		prepare func(*testing.T, *Publisher, *Inventory) // an undisturbed start
		act     func(*testing.T, *Publisher, *Inventory) error
		options func(*testing.T, *PublisherOptions) // nil: as they are
	}{
		"the first publication": {
			prepare: func(*testing.T, *Publisher, *Inventory) {},
			act:     func(t *testing.T, p *Publisher, inv *Inventory) error { return p.Publish(t.Context(), inv) },
		},
		"another key": {
			prepare: publish,
			act: func(t *testing.T, p *Publisher, inv *Inventory) error {
				if len(inv.Records()) == 5 {
					if _, err := inv.Add(logRecord(t, CTLog, instance+"/ct/2")); err != nil {
						t.Fatal(err)
					}
				}
				return p.Publish(t.Context(), inv)
			},
		},
		"signing every role again": {
			prepare: func(t *testing.T, p *Publisher, inv *Inventory) {
				publish(t, p, inv)
				at.advance(130 * 24 * time.Hour)
			},
			act: func(t *testing.T, p *Publisher, inv *Inventory) error { return p.Refresh(t.Context()) },
		},
		"another online key": {
			prepare: publish,
			act: func(t *testing.T, p *Publisher, inv *Inventory) error {
				if p.repo.root.Signed.Version < 3 {
					return p.RotateOnlineKey(t.Context())
				}
				return p.Refresh(t.Context())
			},
		},
		"a root signed elsewhere, with another online key": {
			prepare: publish,
			act: func(t *testing.T, p *Publisher, inv *Inventory) error {
				if c := ceremonyOf(t, p.opts.KeysDir); !c.has(2) {
					c.next(RootChange{Online: newKeyFile(t, p.opts.KeysDir, "online-2.pem"), Expires: at.Now().AddDate(1, 0, 0)}, 0, 1)
				}
				return p.Refresh(t.Context())
			},
			options: func(t *testing.T, o *PublisherOptions) { newCeremony(t, o, at.Now()) },
		},
	}
	for name, tt := range cases {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, after=%t", name, after), func(t *testing.T) {
				writes := 0
				step := 1
				if testing.Short() {
					step = 4
				}
				for n := 1; ; n += step {
					at.now = epoch
					if !killAt(t, at, n, after, tt.prepare, tt.act, tt.options) {
						break
					}
					writes = n
				}
				if writes+step-1 < 3 { // with a step, more may have been
					t.Errorf("only %d writes were seen", writes)
				}
			})
		}
	}
}

// killAt lets the n-th write of act fail and reports whether there was one.
func killAt(t *testing.T, at *clock, n int, after bool,
	prepare func(*testing.T, *Publisher, *Inventory), act func(*testing.T, *Publisher, *Inventory) error,
	options func(*testing.T, *PublisherOptions)) bool {
	t.Helper()
	opts := testOptions(t, at.Now)
	opts.TimestampLife = 365 * 24 * time.Hour // so that the old state is valid throughout
	if options != nil {
		options(t, &opts)
	}
	inv := newInventory(t, at.Now, oneOfEach(t)...)
	p := open(t, opts)
	prepare(t, p, inv)
	first := p.Root()
	versions := map[string]string{}
	noTwoContents(t, opts.Dir, versions)
	known := client{p.Handler(), first, t.TempDir()}
	var old []byte
	if first != nil {
		var err error
		if _, old, err = known.refresh(at.Now()); err != nil {
			t.Fatal(err)
		}
	}
	p.Close()

	fails, hit := n, false
	opts.fault = func(name string, now bool) error {
		if now == after {
			if fails--; fails == 0 {
				hit = true
				return errFault
			}
		}
		return nil
	}
	p = open(t, opts)
	err := act(t, p, inv)
	if hit != (err != nil) || (err != nil && !errors.Is(err, errFault)) {
		t.Fatalf("write %d: failed %t, but act returned %v", n, hit, err)
	}
	noTwoContents(t, opts.Dir, versions)
	seen := func(handler http.Handler, when string) [][]byte {
		var out [][]byte
		for _, c := range []client{{handler, first, known.cache}, {handler, first, t.TempDir()}} {
			_, trusted, err := c.refresh(at.Now())
			if err != nil {
				t.Errorf("write %d, %s: a client finds a broken repository: %v", n, when, err)
			}
			out = append(out, trusted)
		}
		return out
	}
	if first != nil {
		for _, trusted := range seen(p.Handler(), "after the kill") {
			if derived := mustDerive(t, inv, opts.Derive); !bytes.Equal(trusted, old) && !bytes.Equal(trusted, derived.TrustedRoot) {
				t.Errorf("write %d: a client has neither the old nor the new trusted root", n)
			}
		}
	}
	p.Close()

	// What a kill inside a write leaves.
	if err := os.WriteFile(filepath.Join(opts.Dir, tempPrefix+"half"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	opts.fault = nil
	p = open(t, opts)
	if err := act(t, p, inv); err != nil {
		t.Fatalf("write %d: the next start does not go on: %v", n, err)
	}
	if first == nil {
		first = p.Root()
	}
	for _, trusted := range seen(p.Handler(), "after the next start") {
		if !bytes.Equal(trusted, mustDerive(t, inv, opts.Derive).TrustedRoot) {
			t.Errorf("write %d: the next start did not complete the change", n)
		}
	}
	noTwoContents(t, opts.Dir, versions)
	if p.ring.next != nil {
		t.Errorf("write %d: a rotation is left open", n)
	}
	if copied, err := os.ReadFile(filepath.Join(opts.Dir, rootCopy)); err != nil || !bytes.Equal(copied, p.Root()) {
		t.Errorf("write %d: root.json is not the newest root: %v", n, err)
	}
	if _, err := os.Stat(filepath.Join(opts.Dir, tempPrefix+"half")); !os.IsNotExist(err) {
		t.Error("a half-written file was left")
	}
	if _, err := os.Stat(filepath.Join(opts.KeysDir, nextOnlineName)); !os.IsNotExist(err) {
		t.Error("the next online key was left beside the present one")
	}
	p.Close()
	return hit
}

func mustDerive(t *testing.T, inv *Inventory, opts DeriveOptions) *Derived {
	t.Helper()
	d, err := Derive(inv, opts)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// noTwoContents remembers every file whose name says that it never changes.
func noTwoContents(t *testing.T, dir string, seen map[string]string) {
	t.Helper()
	for name, hash := range contents(t, dir) {
		name = filepath.ToSlash(name)
		if name == rootCopy || name == timestampFile {
			continue
		}
		if before, ok := seen[name]; ok && before != hash {
			t.Errorf("%s has two contents", name)
		}
		seen[name] = hash
	}
}
