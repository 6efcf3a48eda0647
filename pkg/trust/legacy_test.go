package trust

import (
	"slices"
	"strings"
	"testing"
	"time"

	legacytuf "github.com/sigstore/sigstore/pkg/tuf"
)

// The go-tuf 0.7 client of cosign before 2.5.1 and of Kyverno: it initializes from our
// first root, downloads every target and finds keys by their sigstore usage. It keeps state in
// package variables, so this is its only test.
func TestLegacyClientFindsKeysByUsage(t *testing.T) {
	at := &clock{now: time.Now()}
	inv := newInventory(t, at.Now, oneOfEach(t)...)
	p := open(t, testOptions(t, at.Now))
	publish(t, p, inv)
	url := serve(t, p)
	t.Setenv("TUF_ROOT", t.TempDir())
	if err := legacytuf.Initialize(t.Context(), url, p.Root()); err != nil {
		t.Fatal(err)
	}
	found := func(usage legacytuf.UsageKind) string {
		t.Helper()
		c, err := legacytuf.NewFromEnv(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		targets, err := c.GetTargetsByMeta(usage, nil)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, target := range targets {
			status := "Active"
			if target.Status != legacytuf.Active {
				status = "Expired"
			}
			names = append(names, target.Name+" "+status)
		}
		slices.Sort(names)
		return strings.Join(names, ", ")
	}
	for usage, want := range map[legacytuf.UsageKind]string{
		legacytuf.Fulcio: "fulcio_intermediate_v1.crt.pem Active, fulcio_v1.crt.pem Active",
		legacytuf.Rekor:  "rekor.pub Active",
		legacytuf.CTFE:   "ctfe.pub Active",
		legacytuf.TSA:    "tsa_intermediate_0.crt.pem Active, tsa_leaf.crt.pem Active, tsa_root.crt.pem Active",
	} {
		if got := found(usage); got != want {
			t.Errorf("usage %s: %s, want %s", usage, got, want)
		}
	}

	old := inv.Records()[2]
	if err := inv.Retire(old.ID, at.Now().Add(time.Hour), "frozen"); err != nil {
		t.Fatal(err)
	}
	if _, err := inv.Add(logRecord(t, Rekor1, instance)); err != nil {
		t.Fatal(err)
	}
	publish(t, p, inv)
	if err := p.RotateOnlineKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := legacytuf.Initialize(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	want := "rekor.pub Active, rekor_" + strings.TrimPrefix(old.ID, "rekor1-") + ".pub Expired"
	if got := found(legacytuf.Rekor); got != want {
		t.Errorf("after a new shard: %s, want %s", got, want)
	}
}

// TestAKeyThatIsToBeginIsPublishedAndNotInUse announces a shard ahead of time: clients of one key must stay
// with the log that takes entries now.
func TestAKeyThatIsToBeginIsPublishedAndNotInUse(t *testing.T) {
	at := &clock{now: time.Now().UTC().Truncate(time.Second)}
	inv := newInventory(t, at.Now, oneOfEach(t)...)
	var old Record
	for _, r := range inv.Records() {
		if r.Kind == Rekor1 {
			old = r
		}
	}
	next := logRecord(t, Rekor1, old.URL)
	next.Start = at.Now().Add(time.Hour)
	second := logRecord(t, Rekor2, "https://log2.example")
	second.Start = next.Start
	if _, err := inv.Add(next, second); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		at   time.Time
		want string
	}{
		{"before its beginning", at.Now(), old.PublicKeyPEM},
		{"from its beginning on", next.Start, next.PublicKeyPEM},
		{"at the end of time", time.Time{}, next.PublicKeyPEM},
		{"when the clock is before all of them", time.Unix(1, 0), old.PublicKeyPEM},
	} {
		d, err := Derive(inv, DeriveOptions{At: tt.at})
		if err != nil {
			t.Fatal(err)
		}
		if string(d.RekorPEM) != tt.want {
			t.Errorf("%s rekor.pem is\n%s", tt.name, d.RekorPEM)
		}
		for _, target := range d.Targets {
			if target.Name == "rekor.pub" && string(target.Data) != tt.want {
				t.Errorf("%s rekor.pub is\n%s", tt.name, target.Data)
			}
		}
		config := string(d.SigningConfig)
		_, logs, _ := strings.Cut(config, `"rekorTlogUrls"`)
		if _, first, _ := strings.Cut(logs, `"url": "`); !strings.HasPrefix(first, "https://log2.example\"") {
			t.Errorf("%s the signing config does not announce the new log:\n%s", tt.name, config)
		}
	}
}
