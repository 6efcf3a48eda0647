package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/services"
)

// TestACopyOfTheDataDoesNotStartBesideTheOriginal copies an instance, once stopped, file by file, and once running, as a snapshot
// of its volume, and starts the copy with the same fence: while the original runs, and after it has gone on.
func TestACopyOfTheDataDoesNotStartBesideTheOriginal(t *testing.T) {
	v := newVolume(t, filepath.Join(t.TempDir(), "image"), 64, "noatime")
	fence := filepath.Join(t.TempDir(), "fence")
	s := newStack(t, filepath.Join(v.dir, "data"), "--fence", fence)
	s.start()
	a := newAudit(t, s)
	a.loaded(s.alice(), 4, 100*time.Millisecond, func() {})
	s.stop()
	cold := filepath.Join(t.TempDir(), "cold")
	v.do("cp", "-a", s.dir, cold)
	s.start()
	var warm *volume
	a.loaded(s.alice(), 4, 100*time.Millisecond, func() {
		warm = v.snapshot(filepath.Join(t.TempDir(), "copy"))
		a.grows("after the snapshot", s.logs...)
	})
	warm.mount("noatime")
	t.Cleanup(warm.unmount)

	copies := []*stack{newStack(t, cold, "--fence", fence), newStack(t, filepath.Join(warm.dir, "data"), "--fence", fence)}
	for _, c := range copies {
		c.args = append(c.args, "--url", s.url) // the same origins
		c.refused("is held by another process")
	}
	a.loaded(s.alice(), 4, 100*time.Millisecond, func() {})
	s.stop()
	for _, c := range copies {
		c.refused("but its key has signed")
	}
	s.start()
	a.replay()
}

// TestACopyOfTheFenceForks says what a fence cannot do: copied with the data, as a clone of a whole machine is, it knows
// nothing of what the original signs from then on, and the clone signs another history (docs/operate.md, The fence).
// A witness that both ask shows it: it cosigns one of them, and the other one shows nobody anything.
func TestACopyOfTheFenceForks(t *testing.T) {
	site, w := newWitnessed(t, filepath.Join(t.TempDir(), "witness"))
	original := site.servers[0]
	a := newSiteAudit(t, &stack{t: t}, site, rekor1, rekor2)
	a.under(a.loadSite(site, 2, rekor1, rekor2), 100*time.Millisecond, func() { a.grows("at all", rekor2) })
	original.kill()

	clone := site.clone("with its fence", func(yaml string) string {
		return strings.ReplaceAll(yaml, site.dir+"/fence", site.dir+"/fence-1")
	})
	v := &volume{t: t}
	v.do("cp", "-a", filepath.Join(site.dir, "fence"), filepath.Join(site.dir, "fence-1"))
	original.start()
	clone.start()
	submit := func(v *role) error { return a.l.submit2(t.Context(), &stack{url: v.url}) }
	eventually(t, "the original takes entries", func() bool { return submit(original) == nil })
	// The clone's next tree has the size of one that the witness has cosigned, and another root.
	for range 5 {
		if err := submit(clone); err == nil {
			t.Fatal("the clone answers for a tree that the witness cannot have cosigned")
		}
	}
	size := func(v *role) uint64 {
		n, _, err := tilesSource{v.url + "/api/v2"}.head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if size(original) <= size(clone) {
		t.Errorf("the clone shows %d entries, the original %d", size(clone), size(original))
	}
	if ready(clone) {
		t.Error("the clone is ready")
	}
	if !strings.Contains(readFile(t, clone.logs), "no_witness_quorum") {
		t.Errorf("the clone does not say why:\n%s", tail(clone.logs, 5))
	}
	a.under(a.loadSite(site, 2, rekor1, rekor2), 100*time.Millisecond, func() { a.grows("on the original", rekor2) })
	clone.kill()
	w.kill()
	w.start()
	a.replay()
}

// TestASecondWriterOnAClonedTreeHalts has the fence in PostgreSQL, which has no lock: both start, and whoever comes second with
// its next entry halts for good. It goes on showing the tree that both have.
func TestASecondWriterOnAClonedTreeHalts(t *testing.T) {
	uri := services.Postgres(t)
	site := newTlogs(t, backend{"posix, fence in PostgreSQL", func(_ *testing.T, dir string) string {
		return fmt.Sprintf("fence: %q\nrekor1: {key: file:%s/rekor1.pem}\nrekor2: {key: file:%[2]s/rekor2.pem}\n", uri, dir)
	}, []string{rekor1, rekor2}, 1}, "")
	original := site.servers[0]
	a := newSiteAudit(t, &stack{t: t}, site, rekor1, rekor2)
	load := a.loadSite(site, 2, rekor1, rekor2)
	a.under(load, 100*time.Millisecond, func() { a.grows("at all", rekor2) })
	// What the load had in flight is mended before the copy is made; a copy from before that lacks a time that the
	// original goes on to sign, and does not start at all.
	original.kill()
	original.start()
	original.kill()
	clone := site.clone("without its fence", func(yaml string) string { return yaml })
	original.start()
	clone.start()
	shown := get(t, clone.url+"/api/v2/checkpoint")
	a.under(load, 100*time.Millisecond, func() { a.grows("with a clone beside it", rekor1, rekor2) })

	at := &stack{url: clone.url}
	for name, submit := range map[string]func(context.Context, *stack) error{rekor1: a.l.submit1, rekor2: a.l.submit2} {
		for range 3 {
			if err := submit(t.Context(), at); err == nil {
				t.Fatalf("%s: the clone took an entry", name)
			}
		}
	}
	if ready(clone) {
		t.Error("the clone is ready")
	}
	if log := readFile(t, clone.logs); strings.Count(log, "the log halted") != 2 || !strings.Contains(log, "another writer signs with this key") {
		t.Errorf("the clone does not say why:\n%s", tail(clone.logs, 5))
	}
	if again := get(t, clone.url+"/api/v2/checkpoint"); again != shown {
		t.Errorf("the clone shows\n%s\nbefore\n%s", again, shown)
	}
	clone.kill()
	clone.wontStart("but its key has signed")
	a.under(load, 100*time.Millisecond, func() { a.grows("alone again", rekor1, rekor2) })
	a.replay()
	site.servers[0].fsck()
}

// clone is another server with a copy of what the first, which does not run, has in its directory. It is not started, and
// not one that the audit follows.
func (s *tlogs) clone(name string, change func(yaml string) string) *role {
	s.t.Helper()
	first := s.servers[0]
	dir := filepath.Join(s.dir, "clone")
	v := &volume{t: s.t}
	v.do("cp", "-a", filepath.Join(s.dir, "data-0"), dir)
	c := &role{t: s.t, exe: first.exe, args: []string{"-config", dir + ".yaml"}, listen: freeAddress(s.t), ops: freeAddress(s.t), config: dir + ".yaml", logs: dir + ".log"}
	c.url = "http://" + strings.Replace(c.listen, "127.0.0.1", "localhost", 1)
	yaml := readFile(s.t, first.config)
	yaml = strings.NewReplacer(first.listen, c.listen, first.ops, c.ops, s.dir+"/data-0", dir).Replace(change(yaml))
	write(s.t, c.config, yaml)
	s.t.Cleanup(func() {
		c.kill()
		if s.t.Failed() {
			s.t.Logf("the last lines of the clone %s:\n%s", name, tail(c.logs, 30))
		}
	})
	return c
}

// ready asks the listener for operators.
func ready(v *role) bool {
	resp, err := http.Get("http://" + v.ops + "/readyz")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
