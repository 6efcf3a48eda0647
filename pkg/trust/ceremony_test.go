package trust

import (
	"bytes"
	"crypto"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/signer"
)

// ceremony is three holders, two of whom must sign, beside a publisher's keys directory.
type ceremony struct {
	t       *testing.T
	keysDir string
	holders []crypto.Signer
}

// newKeyFile makes a key and returns its public half.
func newKeyFile(t *testing.T, dir, name string) crypto.PublicKey {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	key, err := signer.OpenOrCreate(filepath.Join(dir, name), signer.P256)
	if err != nil {
		t.Fatal(err)
	}
	return key.Public()
}

// ceremonyOf opens the holders' keys, which lie apart from the publisher's; it makes them when there are none.
func ceremonyOf(t *testing.T, keysDir string) *ceremony {
	t.Helper()
	c := &ceremony{t: t, keysDir: keysDir}
	dir := keysDir + "-holders"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		key, err := signer.OpenOrCreate(filepath.Join(dir, fmt.Sprintf("%d.pem", i)), signer.P256)
		if err != nil {
			t.Fatal(err)
		}
		c.holders = append(c.holders, key)
	}
	return c
}

// newCeremony signs a first root for o, whose publisher makes none then.
func newCeremony(t *testing.T, o *PublisherOptions, now time.Time) *ceremony {
	t.Helper()
	c := ceremonyOf(t, o.KeysDir)
	o.SignedRoots, o.CreateKeys = o.KeysDir, false
	k := RootKeys{Threshold: 2, Targets: newKeyFile(t, o.KeysDir, "targets.pem"), Online: newKeyFile(t, o.KeysDir, onlineKeyName)}
	for _, h := range c.holders {
		k.Holders = append(k.Holders, h.Public())
	}
	root, err := CreateRoot(k, now.AddDate(1, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	c.write(1, c.sign(root, nil, c.holders[0], c.holders[2]))
	return c
}

func (c *ceremony) path(version int) string {
	return filepath.Join(c.keysDir, fmt.Sprintf("%d.root.json", version))
}

func (c *ceremony) has(version int) bool {
	_, err := os.Stat(c.path(version))
	return err == nil
}

func (c *ceremony) read(version int) []byte {
	c.t.Helper()
	text, err := os.ReadFile(c.path(version))
	if err != nil {
		c.t.Fatal(err)
	}
	return text
}

func (c *ceremony) write(version int, root []byte) {
	c.t.Helper()
	if err := os.WriteFile(c.path(version), root, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func (c *ceremony) sign(root, previous []byte, by ...crypto.Signer) []byte {
	c.t.Helper()
	for _, key := range by {
		var err error
		if root, err = SignRoot(root, previous, key); err != nil {
			c.t.Fatal(err)
		}
	}
	return root
}

// next drops the next version in, signed by holders.
func (c *ceremony) next(change RootChange, holders ...int) {
	c.t.Helper()
	version := 1
	for c.has(version + 1) {
		version++
	}
	previous := c.read(version)
	root, err := NextRoot(previous, change)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, i := range holders {
		root = c.sign(root, previous, c.holders[i])
	}
	c.write(version+1, root)
}

func TestAPublisherWithoutRootKeys(t *testing.T) {
	at := &clock{now: epoch}
	opts := testOptions(t, at.Now)
	c := newCeremony(t, &opts, at.Now())
	p := open(t, opts)
	inv := newInventory(t, at.Now, oneOfEach(t)...)
	publish(t, p, inv)
	first := p.Root()
	if !bytes.Equal(first, c.read(1)) {
		t.Error("the first root is not what the holders signed")
	}
	known := client{p.Handler(), first, t.TempDir()}
	known.mustRefresh(t, at.Now(), "root 1 timestamp 1 snapshot 1 targets 1")

	// A third of the root's life is over: everything else is signed again, the root is the holders' matter.
	at.advance(130 * 24 * time.Hour)
	if err := p.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	known.mustRefresh(t, at.Now(), "root 1 timestamp 2 snapshot 2 targets 2")

	// One holder's signature is too little; the timestamp does not wait for the others.
	soon := RootChange{Online: newKeyFile(t, opts.KeysDir, "online-2.pem"), Expires: at.Now().AddDate(1, 0, 0)}
	c.next(soon, 1)
	at.advance(3 * 24 * time.Hour)
	if err := p.Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), "2.root.json: ") {
		t.Errorf("half signed: %v", err)
	}
	known.mustRefresh(t, at.Now(), "root 1 timestamp 3 snapshot 2 targets 2")

	// Whole, it is published as it was signed, with everything that verifies under it; who comes anew goes the same way.
	c.write(2, c.sign(c.read(2), c.read(1), c.holders[2]))
	publish(t, p, inv)
	known.mustRefresh(t, at.Now(), "root 2 timestamp 4 snapshot 3 targets 2")
	client{p.Handler(), first, t.TempDir()}.mustRefresh(t, at.Now(), "root 2 timestamp 4 snapshot 3 targets 2")
	if !bytes.Equal(p.Root(), c.read(2)) {
		t.Error("the second root is not what the holders signed")
	}
	p.Close()
	if err := os.Remove(filepath.Join(opts.KeysDir, onlineKeyName)); err != nil { // the old one has no say
		t.Fatal(err)
	}
	p = open(t, opts)
	publish(t, p, inv)
	known.handler = p.Handler()

	// A repository that is made anew takes both versions at once.
	anew := opts
	anew.Dir, anew.Registerer = filepath.Join(t.TempDir(), "tuf"), nil
	q := open(t, anew)
	publish(t, q, inv)
	client{q.Handler(), first, t.TempDir()}.mustRefresh(t, at.Now(), "root 2 timestamp 1 snapshot 1 targets 1")

	// A root whose keys are not here would silence the publisher.
	c.next(RootChange{Online: newKey(t).Public(), Expires: at.Now().AddDate(1, 0, 0)}, 0, 1, 2)
	if err := p.Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), "root 3 is not adopted") {
		t.Errorf("without its key: %v", err)
	}
	known.mustRefresh(t, at.Now(), "root 2 timestamp 4 snapshot 3 targets 2")
	if err := os.Remove(c.path(3)); err != nil {
		t.Fatal(err)
	}

	// So would the files of another ceremony.
	other := opts
	other.KeysDir = filepath.Join(t.TempDir(), "keys")
	stranger := newCeremony(t, &other, at.Now())
	stranger.next(RootChange{Expires: at.Now().AddDate(1, 0, 0)}, 0, 1, 2)
	c.write(2, stranger.read(2))
	if err := p.Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), "another root of trust") {
		t.Errorf("of another ceremony: %v", err)
	}
}

func TestRootsThatMakeNoSense(t *testing.T) {
	opts := testOptions(t, nil)
	c := newCeremony(t, &opts, epoch)
	first := c.read(1)
	a, b := newKey(t).Public(), newKey(t).Public()
	create := func(k RootKeys) error { _, err := CreateRoot(k, epoch); return err }
	next := func(change RootChange) error { _, err := NextRoot(first, change); return err }
	status, err := InspectRoot(first, nil)
	if err != nil || len(status.Missing) != 0 || len(status.Holders) != 3 || !status.Holders[2].Signed || status.Holders[1].Signed {
		t.Errorf("%+v, %v", status, err)
	}
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"a threshold over the holders", create(RootKeys{Holders: []crypto.PublicKey{a}, Threshold: 2, Targets: a, Online: b}), "the keys and the threshold of root make no sense"},
		{"no holder", create(RootKeys{Targets: a, Online: b}), "of root make no sense"},
		{"one holder twice", create(RootKeys{Holders: []crypto.PublicKey{a, a}, Threshold: 2, Targets: a, Online: b}), "comes twice"},
		{"too few holders left", next(RootChange{Remove: []string{status.Holders[0].KeyID, status.Holders[1].KeyID}}), "of root make no sense"},
		{"a holder who is there", next(RootChange{Add: []crypto.PublicKey{c.holders[0].Public()}}), "comes twice"},
		{"no root at all", func() error { _, err := NextRoot([]byte("{}"), RootChange{}); return err }(), "root: "},
	} {
		if tt.err == nil || !strings.Contains(tt.err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", tt.name, tt.err, tt.want)
		}
	}
	forged := bytes.Replace(first, []byte(`"version": 1`), []byte(`"version": 1, "more": 1`), 1)
	if status, err := InspectRoot(forged, nil); err != nil || len(status.Missing) != 1 {
		t.Errorf("an edited root: %+v, %v", status, err)
	}
	opts.CreateKeys = true
	if p, err := OpenPublisher(opts); err == nil {
		p.Close()
		t.Error("keys would be made beside a root that was signed elsewhere")
	}
}
