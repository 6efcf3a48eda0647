package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/attestry/attestry/internal/database"
)

// lostRange is in the error of a log that is behind its fence.
var lostRange = regexp.MustCompile("`attestry log adopt --log ([a-z0-9-]+) --lost (\\d+)\\.\\.(\\d+)` \\(or `(tlog -adopt [a-z0-9-]+ -lost \\d+\\.\\.\\d+)`\\)")

// clean runs `attestry log fsck`, which must find no damage.
func clean(t *testing.T, args ...string) string {
	t.Helper()
	return newSandbox(t).must(attestry, flags([]string{"log", "fsck"}, args)...)
}

// publicBackupKey is what `attestry backup` printed.
func publicBackupKey(t *testing.T, out string) string {
	t.Helper()
	_, key, ok := strings.Cut(out, "public backup key: ")
	if !ok {
		t.Fatalf("backup prints no key:\n%s", out)
	}
	return strings.TrimSpace(key)
}

// held checks the promises of a ledger up to a size of the log against a replica.
func (l *ledger) held(t *testing.T, r *replica, name, logID string, below uint64) (held int) {
	t.Helper()
	if err := r.follow(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.acks[name] {
		if logID != "" && a.logID != logID || a.index >= below || a.size > below {
			continue
		}
		held++
		if err := r.holds(a); err != nil {
			t.Error(err)
		}
	}
	return held
}

// TestAnInstanceThatLostItsNewestEntriesIsReadAndGoesOnInItsNextLogs backs an instance up under load, lets it go on,
// loses its data, restores the backup behind the fence, and takes the way that the error texts say.
func TestAnInstanceThatLostItsNewestEntriesIsReadAndGoesOnInItsNextLogs(t *testing.T) {
	fence, backup := filepath.Join(t.TempDir(), "fence"), filepath.Join(t.TempDir(), "backup")
	s := up(t, "--fence", fence)
	b := newSandbox(t)
	l := newLedger(t, s)
	cosign, rekorCLI := client(t, "cosign", "v3.1.3"), client(t, "rekor-cli", "v1.5.4")
	trust := []string{"--trusted-root", s.client("trusted_root.json")}
	sign := func(when string) (verify func(moment string)) {
		t.Helper()
		bundles := map[string]string{}
		for _, config := range []string{"signing_config.v0.2.json", "signing_config.rekor1.v0.2.json"} {
			blob := b.file("blob "+when+config, "signed "+when+config)
			bundles[blob] = b.path("bundle " + when + config)
			b.must(cosign, flags([]string{"sign-blob", "--yes", "--identity-token", s.alice(), "--bundle", bundles[blob],
				"--signing-config", s.client(config)}, trust, []string{blob})...)
		}
		return func(moment string) {
			t.Helper()
			for blob, bundle := range bundles {
				if r := b.run(cosign, flags([]string{"verify-blob", "--bundle", bundle}, trust, s.aliceAs(), []string{blob})...); r.err != nil {
					t.Errorf("%s, %s: %v\n%s", filepath.Base(bundle), moment, r.err, r)
				}
			}
		}
	}
	fsck := func() string { return clean(t, "--dir", s.dir, "--fence", fence) }
	before := sign("before")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	loaded := make(chan struct{})
	go func() { l.load(ctx, s, s.alice(), 2); close(loaded) }() // ends with ctx
	more := func() {
		t.Helper()
		had := [3]int{l.count(rekor1), l.count(rekor2), l.count(ctLog)}
		eventually(t, "entries", func() bool {
			return l.count(rekor1) > had[0]+20 && l.count(rekor2) > had[1]+20 && l.count(ctLog) > had[2]+20
		})
	}
	more()
	key := publicBackupKey(t, b.must(attestry, "backup", "--dir", s.dir, "--fence", fence, "--to", backup))
	more()
	s.kill()
	cancel()
	<-loaded
	for _, err := range l.strange {
		t.Error(err)
	}
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	b.must(attestry, "restore", "--from", backup, "--backup-key", key, "--dir", s.dir)
	b.refused("entries are lost", attestry, "log", "fsck", "--dir", s.dir, "--fence", fence)

	// The refused start names the logs and what to type.
	left, promised := map[string]uint64{}, map[string]uint64{}
	out, refused := runUp(t, "--dir", s.dir, "--fence", fence, "--listen", s.listen)
	behind := lostRange.FindAllStringSubmatch(out, -1)
	if !refused || len(behind) != 3 {
		t.Fatalf("logs behind their fence start, or the error does not say what to type:\n%s", out)
	}
	for _, found := range behind {
		lost := found[2] + ".." + found[3]
		b.refused("lost is "+regexp.QuoteMeta(lost)+", not", attestry, "log", "adopt", "--dir", s.dir, "--fence", fence, "--log", found[1], "--lost", "1.."+found[3])
		for range 2 {
			b.must(attestry, "log", "adopt", "--dir", s.dir, "--fence", fence, "--log", found[1], "--lost", lost)
		}
		left[found[1]], _ = strconv.ParseUint(found[2], 10, 64)
		promised[found[1]], _ = strconv.ParseUint(found[3], 10, 64)
	}
	if out := fsck(); strings.Count(out, "harmless lost") != 3 {
		t.Errorf("fsck after the adoptions:\n%s", out)
	}
	s.start()

	v2 := newReplica(rekor2, tilesSource{s.url + "/api/v2"})
	var info struct {
		tree
		InactiveShards []tree
	}
	if err := getJSON(t.Context(), http.MethodGet, s.url+"/api/v1/log", "", &info); err != nil {
		t.Fatal(err)
	}
	v1 := newReplica(rekor1, tree1{s.url, info.TreeID, 0, l})
	if n, m := l.held(t, v1, rekor1, "", left["rekor1"]), l.held(t, v2, rekor2, "", left["rekor2"]); n < 20 || m < 20 {
		t.Errorf("only %d and %d promises lie before the loss", n, m)
	}
	rekorReads := func(index uint64) {
		t.Helper()
		for _, command := range []string{"get", "verify"} {
			b.must(rekorCLI, "--rekor_server", s.url, command, "--log-index", fmt.Sprint(index))
		}
	}
	rekorReads(0)
	before("after the loss")
	for name, submit := range map[string]func(context.Context, *stack) error{"v1": l.submit1, "v2": l.submit2} {
		if err := submit(t.Context(), s); err == nil || !strings.Contains(err.Error(), "405") || !strings.Contains(err.Error(), "This log has been frozen") {
			t.Errorf("a new %s entry: %v", name, err)
		}
	}
	if err := l.certificate(t.Context(), s, s.alice()); err == nil {
		t.Error("a certificate was issued without a log that takes it")
	}

	s.shard("--log", "rekor1", "--now", "--wait")
	s.shard("--log", "rekor2", "--host", "127.0.0.1", "--now", "--wait")
	s.shard("--log", "ct", "--shard", "next", "--now", "--wait")
	fresh := newLedger(t, s)
	if err := fresh.submit1(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	first := fresh.acks[rekor1][0].virtual
	if first != promised["rekor1"] {
		t.Errorf("the next log's first entry has index %d, promised were those below %d", first, promised["rekor1"])
	}
	base, err := activeRekor2(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := fresh.submit2(t.Context(), &stack{url: base}); err != nil {
		t.Fatal(err)
	}
	after := sign("after")
	check := func(moment string) {
		t.Helper()
		before(moment)
		after(moment)
		rekorReads(0)
		rekorReads(left["rekor1"] - 1)
		rekorReads(first)
		for _, index := range []uint64{left["rekor1"], promised["rekor1"] - 1} {
			if status, body, err := call(t.Context(), http.MethodGet, fmt.Sprintf("%s/api/v1/log/entries?logIndex=%d", s.url, index), "", ""); err != nil || status != http.StatusNotFound {
				t.Errorf("%s: the lost index %d: %d %s %v", moment, index, status, body, err)
			}
		}
		if err := getJSON(t.Context(), http.MethodGet, s.url+"/api/v1/log", "", &info); err != nil {
			t.Fatal(err)
		}
		next := fresh.acks[rekor1][0].logID
		if n := fresh.held(t, newReplica(rekor1, tree1{s.url, info.TreeID, first, fresh}), rekor1, next, info.TreeSize); n == 0 {
			t.Errorf("%s: the new log holds nothing", moment)
		}
		l.held(t, newReplica(rekor1, tree1{s.url, info.InactiveShards[0].TreeID, 0, l}), rekor1, "", left["rekor1"])
		l.held(t, newReplica(rekor2, tilesSource{s.url + "/api/v2"}), rekor2, "", left["rekor2"])
		if out := fsck(); strings.Count(out, "harmless lost") != 3 {
			t.Errorf("%s: fsck:\n%s", moment, out)
		}
	}
	check("after the next logs began")
	s.stop()
	s.start()
	check("after a restart")
	if err := fresh.submit1(t.Context(), s); err != nil {
		t.Error(err)
	}
	measured(t, "lost %d..%d of v1, %d..%d of v2, %d..%d of CT; what is left is read, and the next logs go on", left["rekor1"], promised["rekor1"],
		left["rekor2"], promised["rekor2"], left["ct-main"], promised["ct-main"])
}

// TestATlogAloneIsBackedUpAndRestored drives the commands for a tlog whose logs are in directories.
func TestATlogAloneIsBackedUpAndRestored(t *testing.T) {
	s := newTlogs(t, posix, rootsOf(t))
	v, b := s.servers[0], newSandbox(t)
	data := filepath.Join(s.dir, "data-0")
	config := []string{"--config", v.config}
	at := func(name string) string { return filepath.Join(s.dir, name) }
	write := func(n int) {
		t.Helper()
		runAttestry(t, "bench", "--target", "rekor1", "--url", v.url, "--n", strconv.Itoa(n), "--c", "8")
		runAttestry(t, "bench", "--target", "rekor2", "--url", v.url, "--n", strconv.Itoa(n), "--c", "8")
	}
	backup := func(name string, more ...string) string {
		t.Helper()
		return publicBackupKey(t, b.must(attestry, flags([]string{"backup", "--to", at(name), "--backup-key", at("backup.key")}, config, more)...))
	}
	restore := func(name, key string) {
		t.Helper()
		v.kill()
		b.refused("is not empty", attestry, flags([]string{"restore", "--from", at(name), "--backup-key", key}, config)...)
		if err := os.RemoveAll(data); err != nil {
			t.Fatal(err)
		}
		b.must(attestry, flags([]string{"restore", "--from", at(name), "--backup-key", key}, config)...)
	}
	write(300)
	key := backup("monday")
	write(300)
	if again := backup("tuesday", "--onto", at("monday"), "--with-keys"); again != key {
		t.Errorf("the second backup has another key: %s, %s", again, key)
	}
	secrets := func(dir string) (found []string) {
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() && strings.Contains(readFile(t, path), "PRIVATE KEY") {
				name, _ := filepath.Rel(dir, path)
				found = append(found, name)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if got := secrets(at("monday")); len(got) != 0 {
		t.Errorf("keys are in a backup that did not ask for them: %v", got)
	}
	if got := fmt.Sprint(secrets(at("tuesday"))); got != "[data/keys/rekor1.pem data/keys/rekor2.pem]" {
		t.Errorf("--with-keys took %s", got)
	}

	restore("tuesday", key)
	if out := clean(t, config...); !strings.Contains(out, "rekor1: clean, 600 entries") || !strings.Contains(out, "rekor2: clean, 600 entries") {
		t.Errorf("fsck of what was restored:\n%s", out)
	}
	v.start()
	write(1)

	restore("monday", key)
	out, err := exec.Command(tlog, "-config", v.config).CombinedOutput()
	behind := lostRange.FindAllStringSubmatch(string(out), -1)
	if err == nil || len(behind) != 2 {
		t.Fatalf("logs behind their fence start, or the error does not say what to type: %v\n%s", err, out)
	}
	for _, found := range behind {
		if found[2] != "300" || found[3] != "601" {
			t.Errorf("lost are 300..601, the error says %s", found[0])
		}
		b.must(tlog, flags([]string{"-config", v.config}, strings.Fields(found[4])[1:])...)
	}
	b.must(tlog, "-config", v.config, "-fsck")
	v.start()
	if err := newLedger(t, &stack{dir: s.dir}).submit1(t.Context(), &stack{url: v.url}); err == nil || !strings.Contains(err.Error(), "405") {
		t.Errorf("a new entry: %v", err)
	}
	b.must(attestry, flags([]string{"log", "shard", "--log", "rekor1", "--now", "--wait"}, config)...)
	b.must(attestry, flags([]string{"log", "shard", "--log", "rekor2", "--host", "log2.localhost", "--now", "--wait"}, config)...)
	runAttestry(t, "bench", "--target", "rekor1", "--url", v.url, "--n", "20", "--c", "8")
	for index, want := range map[string]int{"0": http.StatusOK, "299": http.StatusOK, "300": http.StatusNotFound, "600": http.StatusNotFound, "601": http.StatusOK} {
		if status, _, err := call(t.Context(), http.MethodGet, v.url+"/api/v1/log/entries?logIndex="+index, "", ""); err != nil || status != want {
			t.Errorf("entry %s: %d %v, want %d", index, status, err, want)
		}
	}
	if out := clean(t, config...); !strings.Contains(out, "rekor1-2: clean, 20 entries") || !strings.Contains(out, "rekor1: harmless lost: shards.json: entries 300 to 600 are lost") {
		t.Errorf("fsck at the end:\n%s", out)
	}
	backup("wednesday")
	v.kill()
	v.start()

	// Another log's backup is refused before anything is written.
	other := newTlogs(t, posix, rootsOf(t))
	other.servers[0].kill()
	if err := os.RemoveAll(filepath.Join(other.dir, "data-0")); err != nil {
		t.Fatal(err)
	}
	b.refused("the backup's log rekor1 has key", attestry, "restore", "--from", at("monday"), "--backup-key", key, "--config", other.servers[0].config)
	if _, err := os.Stat(filepath.Join(other.dir, "data-0")); !os.IsNotExist(err) {
		t.Error("something was written")
	}
}

// TestFsckReadsEveryStoreBesideItsServers checks logs under load, then with one row damaged, and sees what backup and restore say.
func TestFsckReadsEveryStoreBesideItsServers(t *testing.T) {
	for _, store := range []backend{posix, onS3, trillianServers, trillianEmbedded} {
		t.Run(store.name, func(t *testing.T) {
			s := newTlogs(t, store, rootsOf(t))
			v, b := s.servers[0], newSandbox(t)
			load := exec.Command(attestry, "bench", "--target", "rekor1", "--url", v.url, "--n", "600", "--c", "16")
			if err := load.Start(); err != nil {
				t.Fatal(err)
			}
			loaded := make(chan error, 1)
			go func() { loaded <- load.Wait() }() // ends with the process
			sizes := 0
			for running := true; running; sizes++ {
				select {
				case err := <-loaded:
					if err != nil {
						t.Fatal(err)
					}
					running = false
				default:
				}
				clean(t, "--config", v.config)
			}
			out := clean(t, "--config", v.config, "--json")
			var last struct {
				Log  string
				Size int
			}
			for line := range strings.Lines(out) {
				if err := json.Unmarshal([]byte(line), &last); err != nil {
					t.Fatal(err)
				}
				if last.Log == "rekor1" && last.Size == 600 {
					break
				}
			}
			if last.Log != "rekor1" || last.Size != 600 {
				t.Errorf("fsck does not find 600 entries:\n%s", out)
			}
			b.must(tlog, "-config", v.config, "-fsck")
			measured(t, "%s: checked %d times beside its servers", store.name, sizes+2)

			yaml := readFile(t, v.config)
			to := filepath.Join(s.dir, "backup")
			backup := []string{"backup", "--config", v.config, "--to", to}
			if store.name == "posix" {
				b.must(attestry, backup...)
				return
			}
			rows := regexp.MustCompile(`database: "([^"]+)"`).FindStringSubmatch(yaml)[1]
			r := b.run(attestry, backup...)
			r2 := b.run(attestry, "restore", "--config", v.config, "--from", to, "--backup-key", "x")
			if r.err == nil || r2.err == nil {
				t.Errorf("backup or restore of %s claims to have done something", store.name)
			}
			for _, want := range map[string][]string{
				"s3":                {"mysqldump --single-transaction --host=127.0.0.1", "aws s3 sync --endpoint-url 'http://127.0.0.1:", "'s3://logs/rekor1/'", "pg_dump --format=custom --schema='log_*'"},
				"trillian":          {"the database of the Trillian log server at 127.0.0.1:", "pg_dump --format=custom --schema='log_*'"},
				"trillian-embedded": {"pg_dump --format=custom --file=rekor1.dump", "pg_dump --format=custom --schema='log_*'"},
			}[store.name] {
				if !strings.Contains(r.stderr, want) {
					t.Errorf("backup does not say %q:\n%s", want, r)
				}
			}
			if !strings.Contains(r2.stderr, "the fence stays as it is") {
				t.Errorf("restore does not say what to do:\n%s", r2)
			}
			if _, err := os.Stat(to); !os.IsNotExist(err) {
				t.Error("there is a backup all the same")
			}
			if password := regexp.MustCompile(`://[^:/@]+:([^@]+)@`).FindStringSubmatch(rows); password != nil && strings.Contains(r.String()+r2.String(), password[1]) {
				t.Error("a password was printed")
			}

			damaged := func(uri, schema, statement, want string) {
				t.Helper()
				db, err := database.Open(t.Context(), uri, database.Options{Schema: schema})
				if err != nil {
					t.Fatal(err)
				}
				defer db.Close()
				if _, err := db.ExecContext(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
				b.refused(want, attestry, "log", "fsck", "--config", v.config)
			}
			damaged(rows, "log_rekor1", `UPDATE leaves SET integrated = 0 WHERE idx = 300`, "rekor1: DAMAGED row_time: leaf 300")
			if store.name == "trillian-embedded" {
				tree := regexp.MustCompile(`postgres-uri: "([^"]+)"`).FindStringSubmatch(yaml)[1]
				damaged(tree, "unused", `UPDATE public.leafdata SET leafvalue = 'another' WHERE leafidentityhash = (SELECT leafidentityhash FROM public.sequencedleafdata WHERE sequencenumber = 5)`,
					"rekor1: DAMAGED bundle: entry bundle 0")
			}
		})
	}
}
