package trust

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestAddIsIdempotentAndKeepsTheFirstWindow(t *testing.T) {
	at := &clock{now: epoch}
	records := oneOfEach(t)
	inv := newInventory(t, at.Now, records...)
	before, err := os.ReadFile(inv.path)
	if err != nil {
		t.Fatal(err)
	}
	at.advance(time.Hour)
	again := append([]Record{}, records...)
	again[2].Start = at.Now()
	ids, err := inv.Add(again...)
	if err != nil {
		t.Fatal(err)
	}
	after, _ := os.ReadFile(inv.path)
	if !bytes.Equal(before, after) {
		t.Error("adding the same keys again changed the file")
	}
	reopened, err := OpenInventory(inv.path, at.Now)
	if err != nil {
		t.Fatal(err)
	}
	got := reopened.Records()
	if len(got) != len(records) {
		t.Fatalf("%d records, want %d", len(got), len(records))
	}
	for i, r := range got {
		if r.ID != ids[i] || r.State != Active || !r.Added.Equal(epoch) {
			t.Errorf("record %d is %s, %s, added %s", i, r.ID, r.State, r.Added)
		}
	}
	if !got[2].Start.Equal(epoch) {
		t.Errorf("window of the first Add was lost: starts %s", got[2].Start)
	}
	if want := epoch.Add(-time.Hour); !got[0].Start.Equal(want) {
		t.Errorf("CA starts %s, want its certificate's notBefore %s", got[0].Start, want)
	}
}

func TestAddRefuses(t *testing.T) {
	good := oneOfEach(t)
	edit := func(i int, change func(*Record)) Record {
		r := good[i]
		change(&r)
		return r
	}
	shortTSA := issue(t, nil, caTemplate("root"))
	for name, tt := range map[string]struct {
		record Record
		want   string
	}{
		"a log ID that another kind of log has":       {edit(2, func(r *Record) { r.Kind = Rekor2 }), "conflicts"},
		"a CT key that Rekor has":                     {edit(2, func(r *Record) { r.Kind = CTLog }), "conflicts"},
		"a key that is there at another URL":          {edit(2, func(r *Record) { r.URL = "https://other.example" }), "conflicts"},
		"an unknown kind":                             {edit(2, func(r *Record) { r.Kind = "rekor3" }), "not one of"},
		"a log without start":                         {edit(2, func(r *Record) { r.Start = time.Time{} }), "start is missing"},
		"an end before the start":                     {edit(2, func(r *Record) { r.End = epoch.Add(-time.Second) }), "before start"},
		"a URL without scheme":                        {edit(2, func(r *Record) { r.URL = "rekor.example" }), "http://"},
		"a URL with a query":                          {edit(2, func(r *Record) { r.URL += "?a=b" }), "query"},
		"text after the key":                          {edit(2, func(r *Record) { r.PublicKeyPEM += "more" }), "one PEM block"},
		"a chain for a log":                           {edit(2, func(r *Record) { r.ChainPEM = good[0].ChainPEM }), "not a chain"},
		"a Rekor v1 log with an Ed25519 key":          {ed25519Record(t, Rekor1, instance), "ECDSA P-256"},
		"a CT log with an Ed25519 key":                {ed25519Record(t, CTLog, instance), "ECDSA or RSA"},
		"a Rekor v2 origin that is not the host name": {edit(3, func(r *Record) { r.PublicKeyPEM = publicPEM(t, newKey(t).Public()); r.Origin = "localhost/log" }), "host name"},
		"a chain in the wrong order": {edit(0, func(r *Record) {
			first, second, _ := strings.Cut(r.ChainPEM, "-----END CERTIFICATE-----\n")
			r.ChainPEM = second + first + "-----END CERTIFICATE-----\n"
		}), "not signed by the next"},
		"a CA chain that begins with a leaf": {edit(4, func(r *Record) { r.Kind = CA }), "want CA=true"},
		"a TSA chain that begins with a CA":  {edit(0, func(r *Record) { r.Kind = TSA }), "want CA=false"},
		"a TSA leaf whose usage is not critical": {Record{Kind: TSA, URL: instance, ChainPEM: string(certsPEM([]*x509.Certificate{
			issue(t, shortTSA, tsaTemplate(false)).cert, shortTSA.cert}))}, "critical"},
		"a TSA leaf alone":   {edit(4, func(r *Record) { r.ChainPEM, _, _ = cutAfter(r.ChainPEM, "-----END CERTIFICATE-----\n") }), "at least the root"},
		"text after a chain": {edit(0, func(r *Record) { r.ChainPEM += "x" }), "text after"},
	} {
		t.Run(name, func(t *testing.T) {
			inv := newInventory(t, nil, good[:4]...)
			before, _ := os.ReadFile(inv.path)
			_, err := inv.Add(logRecord(t, CTLog, instance), tt.record) // all or none
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			after, _ := os.ReadFile(inv.path)
			if !bytes.Equal(before, after) || len(inv.Records()) != 4 {
				t.Error("a refused Add left something behind")
			}
			if _, err := inv.Add(good[4]); err != nil {
				t.Errorf("the inventory is unusable afterwards: %v", err)
			}
		})
	}
}

func cutAfter(s, sep string) (string, string, bool) {
	before, after, ok := strings.Cut(s, sep)
	return before + sep, after, ok
}

func TestWindowsAreNeverShortenedWithoutRevoking(t *testing.T) {
	at := &clock{now: epoch.Add(1000 * time.Hour)}
	inv := newInventory(t, at.Now, oneOfEach(t)...)
	id := inv.Records()[2].ID
	past, future := at.Now().Add(-time.Hour), at.Now().Add(time.Hour)
	steps := []struct {
		name    string
		do      func() error
		refused string
	}{
		{"retiring in the past is refused", func() error { return inv.Retire(id, past, "x") }, "use revoke"},
		{"retiring nothing is refused", func() error { return inv.Retire("rekor1-00", future, "x") }, "no record"},
		{"retiring in the future closes the window", func() error { return inv.Retire(id, future, "new shard") }, ""},
		{"retiring again at the same end changes nothing", func() error { return inv.Retire(id, future, "new shard") }, ""},
		{"an earlier end is refused", func() error { return inv.Retire(id, future.Add(-time.Minute), "x") }, "needs revoke"},
		{"a later end is fine", func() error { return inv.Retire(id, future.Add(time.Minute), "kept on") }, ""},
		{"revoking without a reason is refused", func() error { return inv.Revoke(id, past, "") }, "reason"},
		{"revoking cuts the window", func() error { return inv.Revoke(id, past, "stolen") }, ""},
		{"revoking cannot lengthen", func() error { return inv.Revoke(id, future, "found again") }, "lengthen"},
		{"retiring what is revoked is refused", func() error { return inv.Retire(id, future.Add(time.Hour), "x") }, "revoked"},
		{"revoking for good", func() error { return inv.Revoke(id, time.Time{}, "stolen long ago") }, ""},
		{"revoking again is refused", func() error { return inv.Revoke(id, time.Time{}, "again") }, "already"},
	}
	for _, s := range steps {
		err := s.do()
		if (err == nil) != (s.refused == "") || (err != nil && !strings.Contains(err.Error(), s.refused)) {
			t.Errorf("%s: %v", s.name, err)
		}
	}
	if _, err := inv.Add(oneOfEach(t)[2]); err != nil {
		t.Errorf("another key: %v", err)
	}
	if lines := strings.Count(string(inv.raw), "\n"); lines != 5+4+1 {
		t.Errorf("%d events, want 10", lines)
	}
	again, err := OpenInventory(inv.path, at.Now)
	if err != nil {
		t.Fatal(err)
	}
	if r := again.Records()[2]; r.State != Revoked || r.Reason != "stolen long ago" || !r.End.IsZero() {
		t.Errorf("after reopening: %s %q %s", r.State, r.Reason, r.End)
	}
}

func TestARevokedKeyDoesNotComeBack(t *testing.T) {
	records := oneOfEach(t)
	inv := newInventory(t, nil, records...)
	if err := inv.Revoke(inv.Records()[0].ID, time.Time{}, "stolen"); err != nil {
		t.Fatal(err)
	}
	if _, err := inv.Add(records[0]); !errors.Is(err, ErrConflict) {
		t.Errorf("got %v, want ErrConflict", err)
	}
}

func TestMoveKeepsTheOriginOfARekorV2Log(t *testing.T) {
	inv := newInventory(t, nil, oneOfEach(t)...)
	v2 := inv.Records()[3]
	if err := inv.Move(v2.ID, "https://elsewhere.example"); err == nil || !strings.Contains(err.Error(), "host name") {
		t.Errorf("another host: %v", err)
	}
	for range 2 {
		if err := inv.Move(v2.ID, "http://localhost:9999/"); err != nil {
			t.Fatal(err)
		}
	}
	got := inv.Records()[3]
	if got.URL != "http://localhost:9999" || got.LogID() != v2.LogID() || strings.Count(string(inv.raw), `"event":"move"`) != 1 {
		t.Errorf("moved to %s, file:\n%s", got.URL, inv.raw)
	}
}

func TestTheFileShowsEveryEdit(t *testing.T) {
	inv := newInventory(t, nil, oneOfEach(t)...)
	if err := inv.Retire(inv.Records()[0].ID, time.Now().Add(time.Hour), "rotated"); err != nil {
		t.Fatal(err)
	}
	raw := string(inv.raw)
	lines := strings.SplitAfter(raw, "\n")
	for name, tt := range map[string]struct{ content, want string }{
		"a line dropped in the middle": {lines[0] + lines[2], "chain is broken"},
		"the first line dropped":       {strings.Join(lines[1:], ""), "chain is broken"},
		"two lines swapped":            {lines[1] + lines[0], "chain is broken"},
		"an edited line":               {strings.Replace(raw, "2026", "2025", 1), ""},
		"a cut last line":              {raw[:len(raw)-5], "was cut"},
		"an unknown field":             {strings.Replace(raw, `{"seq":1`, `{"more":1,"seq":1`, 1), "edited"},
		"a duplicate field":            {strings.Replace(raw, `"event":"add"`, `"event":"x","event":"add"`, 1), "edited"},
		"the reason of the last event": {strings.Replace(raw, "rotated", "rotated ", 1) + "x\n", ""},
		"an empty line":                {raw + "\n", "line 7"},
		"the tail in JSON but foreign": {raw + "{}\n", "chain is broken"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "inventory.jsonl")
			if err := os.WriteFile(path, []byte(tt.content), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := OpenInventory(path, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	t.Run("a file that lost events since it was read", func(t *testing.T) {
		if err := os.WriteFile(inv.path, []byte(strings.Join(lines[:3], "")), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := inv.Add(oneOfEach(t)...); err == nil || !strings.Contains(err.Error(), "lost or changed") {
			t.Errorf("got %v", err)
		}
	})
}

func TestTwoProcessesLoseNoEvent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "inventory.jsonl")
	var wg sync.WaitGroup
	const each = 10
	for range 2 {
		inv, err := OpenInventory(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for range each {
				if _, err := inv.Add(logRecord(t, Rekor1, instance)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	inv, err := OpenInventory(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(inv.Records()); got != 2*each {
		t.Errorf("%d records, want %d", got, 2*each)
	}
}

func FuzzInventory(f *testing.F) {
	f.Add([]byte(`{"seq":1,"prev":"","time":"2026-01-01T00:00:00Z","event":"add","record":{"id":"x","kind":"ca","url":"http://a"}}` + "\n"))
	f.Add([]byte(`{"seq":1,"prev":"","time":"2026-01-01T00:00:00Z","event":"retire","id":"x"}` + "\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		inv := &Inventory{now: time.Now}
		if err := inv.parse(raw); err == nil && len(inv.records) > 0 {
			if _, err := derive(inv.Records(), DeriveOptions{}); err != nil {
				t.Errorf("an inventory that was read cannot be used: %v", err)
			}
		}
	})
}

// TestARekorV1LogsOriginFollowsFromItsKey is about records without one, in inventories of before as well.
func TestARekorV1LogsOriginFollowsFromItsKey(t *testing.T) {
	records := oneOfEach(t)
	i := slices.IndexFunc(records, func(r Record) bool { return r.Kind == Rekor1 })
	r := records[i]
	r.Origin = ""
	without := r
	if err := without.parse(); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	if want := Rekor1Origin(u.Hostname(), TreeID(without.spki)); without.Origin != want {
		t.Errorf("origin %q, want %q", without.Origin, want)
	}
	stored := without
	stored.Origin = ""
	line, err := json.Marshal(event{Seq: 1, Time: epoch, Event: "add", Record: &stored})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "inventory.jsonl")
	if err := os.WriteFile(path, append(line, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	inv, err := OpenInventory(path, func() time.Time { return epoch })
	if err != nil {
		t.Fatal(err)
	}
	for _, again := range []Record{r, without} {
		if _, err := inv.Add(again); err != nil {
			t.Error(err)
		}
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, append(line, '\n')) {
		t.Errorf("adding it again changed the inventory (%v)", err)
	}
	r.Origin = "localhost - 1"
	if _, err := inv.Add(r); !errors.Is(err, ErrConflict) {
		t.Errorf("another origin: %v", err)
	}
}
