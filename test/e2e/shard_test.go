package e2e

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
)

// shardStates returns the state of each log in the instance's shards.json.
func (s *stack) shardStates() map[string]string {
	s.t.Helper()
	raw, err := os.ReadFile(filepath.Join(s.dir, "log", "shards.json"))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		s.t.Fatal(err)
	}
	var file struct {
		Shards []struct{ Label, State string }
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		s.t.Fatal(err)
	}
	states := map[string]string{}
	for _, r := range file.Shards {
		states[r.Label] = r.State
	}
	return states
}

// shard runs `attestry log shard`.
func (s *stack) shard(args ...string) {
	s.t.Helper()
	newSandbox(s.t).must(attestry, flags([]string{"log", "shard", "--dir", s.dir}, args)...)
}

// tree1 reads one shard of a Rekor v1 log.
type tree1 struct {
	url, treeID string
	first       uint64
	l           *ledger
}

func (s tree1) head(ctx context.Context) (uint64, []byte, error) {
	var info struct {
		tree
		InactiveShards []tree
	}
	if err := getJSON(ctx, http.MethodGet, s.url+"/api/v1/log", "", &info); err != nil {
		return 0, nil, err
	}
	for _, one := range append(info.InactiveShards, info.tree) {
		if one.TreeID == s.treeID {
			root, err := hex.DecodeString(one.RootHash)
			return one.TreeSize, root, err
		}
	}
	return 0, nil, fmt.Errorf("there is no tree %s", s.treeID)
}

func (s tree1) leaves(ctx context.Context, from, size uint64) ([]leaf, error) {
	var indexes []uint64
	for i := from; i < min(size, from+10); i++ {
		indexes = append(indexes, s.first+i)
	}
	query, err := json.Marshal(map[string]any{"logIndexes": indexes})
	if err != nil {
		return nil, err
	}
	var answer []map[string]entry1
	if err := getJSON(ctx, http.MethodPost, s.url+"/api/v1/log/entries/retrieve", string(query), &answer); err != nil {
		return nil, err
	}
	if len(answer) != len(indexes) {
		return nil, fmt.Errorf("retrieve returns %d of the entries %v", len(answer), indexes)
	}
	var leaves []leaf
	for i, one := range answer { // in the order of the query
		for _, e := range one {
			a, err := s.l.check1(e)
			if err != nil {
				return nil, err
			}
			if a.virtual != indexes[i] || a.index != from+uint64(i) {
				return nil, fmt.Errorf("entry %d of tree %s says it is %d, %d in its tree", indexes[i], s.treeID, a.virtual, a.index)
			}
			leaves = append(leaves, leaf{e.Body, e.IntegratedTime})
		}
	}
	return leaves, nil
}

type tree struct {
	TreeID   string
	TreeSize uint64
	RootHash string
}

// holdAll replays every shard of every log and holds each promise against the shard that made it.
func holdAll(t *testing.T, s *stack, l *ledger) (shards int) {
	t.Helper()
	replicas := map[string]*replica{} // by log ID
	var trusted struct {
		Tlogs, Ctlogs []struct {
			BaseURL string
			LogID   struct{ KeyID []byte }
		}
	}
	if err := json.Unmarshal([]byte(readFile(t, s.client("trusted_root.json"))), &trusted); err != nil {
		t.Fatal(err)
	}
	ids := func(name string) map[string]bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		seen := map[string]bool{}
		for _, a := range l.acks[name] {
			seen[a.logID] = true
		}
		return seen
	}
	for _, log := range trusted.Ctlogs {
		replicas[hex.EncodeToString(log.LogID.KeyID)] = newReplica(ctLog, ctSource{log.BaseURL})
	}
	v2 := ids(rekor2)
	for _, log := range trusted.Tlogs {
		if id := hex.EncodeToString(log.LogID.KeyID); v2[id] {
			replicas[id] = newReplica(rekor2, tilesSource{log.BaseURL + "/api/v2"})
		}
	}
	var info struct {
		tree
		InactiveShards []tree
	}
	if err := getJSON(t.Context(), http.MethodGet, s.url+"/api/v1/log", "", &info); err != nil {
		t.Fatal(err)
	}
	var first uint64
	for _, one := range append(info.InactiveShards, info.tree) {
		if one.TreeSize > 0 {
			var entry map[string]entry1
			if err := getJSON(t.Context(), http.MethodGet, fmt.Sprintf("%s/api/v1/log/entries?logIndex=%d", s.url, first), "", &entry); err != nil {
				t.Fatal(err)
			}
			for _, e := range entry {
				replicas[e.LogID] = newReplica(rekor1, tree1{s.url, one.TreeID, first, l})
			}
		}
		first += one.TreeSize
	}
	for _, r := range replicas {
		if err := r.follow(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, acks := range l.acks {
		for _, a := range acks {
			r := replicas[a.logID]
			if r == nil {
				t.Fatalf("%s: the log %s, which took an entry, is gone", name, a.logID)
			}
			if err := r.holds(a); err != nil {
				t.Fatal(err)
			}
		}
	}
	return len(replicas)
}

// activeRekor2 is the URL that a signing config names for now: the newest v2 log whose window holds it.
func activeRekor2(s *stack) (string, error) {
	raw, err := os.ReadFile(s.client("signing_config.v0.2.json"))
	if err != nil {
		return "", err
	}
	var config struct {
		RekorTlogUrls []struct {
			URL             string
			MajorAPIVersion int
			ValidFor        struct{ Start, End time.Time }
		}
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		return "", err
	}
	now := time.Now()
	for _, log := range config.RekorTlogUrls { // newest first
		if w := log.ValidFor; log.MajorAPIVersion == 2 && !w.Start.After(now) && (w.End.IsZero() || !w.End.Before(now)) {
			return log.URL, nil
		}
	}
	return "", fmt.Errorf("the signing config names no Rekor v2 log for now: %s", raw)
}

// seen counts the logs that made promises.
func (l *ledger) seen(name string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := map[string]bool{}
	for _, a := range l.acks[name] {
		ids[a.logID] = true
	}
	return len(ids)
}

// TestLogsChangeOverUnderLoadAndNoWriteFails begins the next log of each kind while clients write without pause.
func TestLogsChangeOverUnderLoadAndNoWriteFails(t *testing.T) {
	s := up(t)
	b := newSandbox(t)
	l := newLedger(t, s)
	token := s.alice()
	cosign := client(t, "cosign", "v3.1.3")
	trust := []string{"--trusted-root", s.client("trusted_root.json")}
	signBoth := func(when string) (verify func(moment string)) {
		t.Helper()
		type one struct{ blob, bundle string }
		var all []one
		for _, config := range []string{"signing_config.v0.2.json", "signing_config.rekor1.v0.2.json"} {
			o := one{b.file("blob "+when+config, "signed "+when+config), b.path("bundle " + when + config)}
			b.must(cosign, flags([]string{"sign-blob", "--yes", "--identity-token", s.alice(), "--bundle", o.bundle,
				"--signing-config", s.client(config)}, trust, []string{o.blob})...)
			all = append(all, o)
		}
		return func(moment string) {
			t.Helper()
			for _, o := range all {
				if r := b.run(cosign, flags([]string{"verify-blob", "--bundle", o.bundle}, trust, s.aliceAs(), []string{o.blob})...); r.err != nil {
					t.Errorf("%s, %s: %v\n%s", filepath.Base(o.bundle), moment, r.err, r)
				}
			}
		}
	}
	before := signBoth("before")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var writers sync.WaitGroup
	var mu sync.Mutex // guards failed
	var failed []error
	for _, submit := range []func(context.Context) error{
		func(ctx context.Context) error { return l.submit1(ctx, s) },
		func(ctx context.Context) error {
			base, err := activeRekor2(s)
			if err != nil {
				return err
			}
			return l.submit2(ctx, &stack{url: base})
		},
		func(ctx context.Context) error { return l.certificate(ctx, s, token) },
	} {
		for range 4 {
			writers.Go(func() { // ends with ctx
				for {
					err := submit(ctx)
					if ctx.Err() != nil {
						return // the last one may have been cut by the test itself
					}
					if err != nil {
						mu.Lock()
						failed = append(failed, err)
						mu.Unlock()
						return
					}
				}
			})
		}
	}
	eventually(t, "first entries", func() bool { return l.count(rekor1) > 0 && l.count(rekor2) > 0 && l.count(ctLog) > 0 })

	s.shard("--log", "rekor1", "--now", "--wait")
	// Published ahead, so that clients change over by themselves at the time.
	s.shard("--log", "rekor2", "--host", "127.0.0.1", "--at", time.Now().Add(2*time.Second).UTC().Format(time.RFC3339), "--drain", "2s", "--wait")
	s.shard("--log", "ct", "--shard", "next", "--now", "--drain", "1s", "--wait")
	eventually(t, "the old logs are frozen", func() bool {
		states := s.shardStates()
		return states["rekor1"] == "frozen" && states["rekor2"] == "frozen" && states["ct-main"] == "frozen"
	})
	eventually(t, "entries in the new logs", func() bool { return l.seen(rekor1) == 2 && l.seen(rekor2) == 2 && l.seen(ctLog) == 2 })
	s.shard("--log", "rekor1", "--now", "--wait")
	eventually(t, "entries in the third v1 log", func() bool { return l.seen(rekor1) == 3 })
	cancel()
	writers.Wait()
	for _, err := range failed {
		t.Errorf("a write failed: %v", err)
	}
	measured(t, "%d v1 entries, %d v2 entries and %d certificates written through four cut-overs, none failed", l.count(rekor1), l.count(rekor2), l.count(ctLog))

	after := signBoth("after")
	check := func(moment string) {
		t.Helper()
		if n := holdAll(t, s, l); n != 7 {
			t.Errorf("%s: entries stand in %d logs, want 3 + 2 + 2", moment, n)
		}
		before(moment)
		after(moment)
	}
	check("after the cut-overs")
	t.Run("trust material has every key with its window", func(t *testing.T) {
		var root struct {
			Tlogs []struct {
				BaseURL   string
				PublicKey struct {
					ValidFor struct{ Start, End time.Time }
				}
			}
		}
		if err := json.Unmarshal([]byte(readFile(t, s.client("trusted_root.json"))), &root); err != nil {
			t.Fatal(err)
		}
		ended := map[string]int{}
		for _, log := range root.Tlogs {
			u, err := url.Parse(log.BaseURL)
			if err != nil {
				t.Fatal(err)
			}
			if !log.PublicKey.ValidFor.End.IsZero() {
				ended[u.Hostname()]++
			}
		}
		last := root.Tlogs[len(root.Tlogs)-1]
		if len(root.Tlogs) != 5 || ended["localhost"] != 3 || ended["127.0.0.1"] != 0 || last.BaseURL != s.url || !last.PublicKey.ValidFor.End.IsZero() {
			t.Errorf("%+v", root)
		}
		if served := get(t, s.url+"/tuf/targets/trusted_root.json"); served != readFile(t, s.client("trusted_root.json")) {
			t.Error("TUF serves another trusted root")
		}
	})
	t.Run("a frozen v2 log says so", func(t *testing.T) {
		err := l.submit2(t.Context(), s)
		if err == nil || !strings.Contains(err.Error(), "405") || !strings.Contains(err.Error(), "This log has been frozen, please switch to the latest log.") {
			t.Errorf("%v", err)
		}
	})
	t.Run("rekor-cli reads every shard", func(t *testing.T) { rekorCLIOverShards(t, s, l) })

	list := func() string { return b.must(attestry, "log", "list", "--dir", s.dir) }
	listed := list()
	for _, want := range []string{`rekor1 +frozen +\d+ `, `rekor1-2 +frozen +\d+ `, `rekor1-3 +active +\d+ `, `rekor2 +frozen +\d+ .* localhost `,
		`rekor2-2 +active +\d+ .* 127\.0\.0\.1 `, `ct-main +frozen +\d+ `, `ct-next +active +\d+ .* localhost/ct/next +[0-9a-f]{64}`} {
		if !regexp.MustCompile(`(?m)^` + want).MatchString(listed) {
			t.Errorf("log list does not match %q:\n%s", want, listed)
		}
	}
	s.stop()
	if stopped := list(); !regexp.MustCompile(`(?m)^rekor1-3 +active +- `).MatchString(stopped) || !regexp.MustCompile(`(?m)^rekor1 +frozen +\d+ `).MatchString(stopped) {
		t.Errorf("log list without a server:\n%s", stopped)
	}
	s.start()
	if again := list(); again != listed {
		t.Errorf("a restart changed the logs:\n%s\n%s", listed, again)
	}
	check("after a restart")
	if err := l.submit1(t.Context(), s); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

// rekorCLIOverShards drives rekor-cli against entries of the oldest and of the newest shard.
func rekorCLIOverShards(t *testing.T, s *stack, l *ledger) {
	exe := client(t, "rekor-cli", "v1.5.4")
	b := newSandbox(t)
	rekor := func(args ...string) string {
		t.Helper()
		return b.must(exe, flags([]string{"--rekor_server", s.url}, args)...)
	}
	var info struct {
		tree
		InactiveShards []tree
	}
	if err := getJSON(t.Context(), http.MethodGet, s.url+"/api/v1/log", "", &info); err != nil {
		t.Fatal(err)
	}
	trees := append(info.InactiveShards, info.tree)
	var total uint64
	for _, one := range trees {
		total += one.TreeSize
	}
	if out := rekor("loginfo"); !regexp.MustCompile(fmt.Sprintf(`Total Tree Size:\s+%d\n`, total)).MatchString(out) || len(trees) != 3 {
		t.Errorf("loginfo of trees with %d entries:\n%s", total, out)
	}
	rekor("loginfo") // against the state of the first
	l.mu.Lock()
	acks := l.acks[rekor1]
	oldest, newest := acks[0], acks[len(acks)-1]
	l.mu.Unlock()
	for _, a := range []ack{oldest, newest} {
		index := fmt.Sprint(a.virtual)
		got := rekor("get", "--log-index", index)
		digest := regexp.MustCompile(`"value": "([0-9a-f]{64})"`).FindStringSubmatch(got)
		uuid := regexp.MustCompile(`UUID: ([0-9a-f]{80})`).FindStringSubmatch(got)
		if digest == nil || uuid == nil || !strings.Contains(string(a.leaf), digest[1]) {
			t.Fatalf("get of entry %s:\n%s", index, got)
		}
		for _, args := range [][]string{{"get", "--uuid", uuid[1]}, {"get", "--uuid", uuid[1][16:]}} {
			if out := rekor(args...); !strings.Contains(out, digest[1]) {
				t.Errorf("%v:\n%s", args, out)
			}
		}
		for _, args := range [][]string{{"--uuid", uuid[1]}, {"--log-index", index}} {
			if out := rekor(flags([]string{"verify"}, args)...); !strings.Contains(out, "Inclusion Proof") {
				t.Errorf("verify %v:\n%s", args, out)
			}
		}
		if out := rekor("search", "--sha", digest[1]); !strings.Contains(out, uuid[1]) {
			t.Errorf("search of %s does not find %s:\n%s", digest[1], uuid[1], out)
		}
	}
	for _, one := range trees {
		out := rekor("logproof", "--first-size", "1", "--last-size", fmt.Sprint(one.TreeSize), "--tree-id", one.TreeID)
		if !regexp.MustCompile(`[0-9a-f]{64}`).MatchString(out) {
			t.Errorf("logproof of tree %s:\n%s", one.TreeID, out)
		}
	}
}

// TestKilledInEveryStepOfACutOver kills the server with SIGKILL under load as soon as an order has reached a
// state, and at random moments around the cut-over.
func TestKilledInEveryStepOfACutOver(t *testing.T) {
	rounds := 1
	if long() {
		rounds = 10
	}
	s := up(t)
	l := newLedger(t, s)
	token := s.alice()
	shard := 1
	for range rounds {
		for _, kill := range []string{"planned", "published", "at its time", "active"} {
			shard++
			label := fmt.Sprintf("rekor1-%d", shard)
			ctx, cancel := context.WithCancel(t.Context())
			stopped := make(chan struct{})
			had := l.count(rekor1)
			go func() { l.load(ctx, s, token, 4); close(stopped) }() // ends with ctx
			eventually(t, "an entry", func() bool { return l.count(rekor1) > had })
			begin := time.Now().Add(1500 * time.Millisecond).Truncate(time.Second)
			s.shard("--log", "rekor1", "--at", begin.UTC().Format(time.RFC3339))
			s.shard("--log", "ct", "--shard", fmt.Sprint(shard), "--at", begin.UTC().Format(time.RFC3339), "--drain", "0s")
			switch kill {
			case "planned":
			case "at its time":
				time.Sleep(time.Until(begin) + rand.N(600*time.Millisecond)) // a random moment of the cut-over
			default:
				for deadline := time.Now().Add(20 * time.Second); s.shardStates()[label] != kill; {
					if time.Now().After(deadline) {
						t.Fatalf("%s is %q and does not become %s", label, s.shardStates()[label], kill)
					}
				}
			}
			s.kill()
			cancel()
			<-stopped
			s.start()
			eventually(t, label+" takes entries, as the next CT log does", func() bool {
				states := s.shardStates()
				return states[label] == "active" && states[fmt.Sprint("ct-", shard)] == "active" && states["ct-main"] == "frozen"
			})
			if err := l.submit1(t.Context(), s); err != nil {
				t.Errorf("after a kill in state %s: %v", kill, err)
			}
			if err := l.certificate(t.Context(), s, token); err != nil {
				t.Errorf("after a kill in state %s: %v", kill, err)
			}
			holdAll(t, s, l)
		}
	}
	for _, err := range l.strange {
		t.Error(err)
	}
	s.stop()
	s.start()
	measured(t, "%d kills in cut-overs; %d entries in %d logs are all there", shard-1, l.count(rekor1)+l.count(rekor2)+l.count(ctLog), holdAll(t, s, l))
}

// TestShardsOfATlogThatRunsAlone orders logs with a tlog's configuration while it is written to.
func TestShardsOfATlogThatRunsAlone(t *testing.T) {
	site := newTlogs(t, posix, rootsOf(t))
	v := site.servers[0]
	b := newSandbox(t)
	add := func(artifact string) entry1 {
		t.Helper()
		one := b.sign(artifact, artifact)
		var answer map[string]entry1
		if err := post(t.Context(), v.url+"/api/v1/log/entries", map[string]any{"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": map[string]any{
			"data":      map[string]any{"hash": map[string]string{"algorithm": "sha256", "value": one.digest}},
			"signature": map[string]any{"content": []byte(readFile(t, one.signature)), "publicKey": map[string]any{"content": []byte(readFile(t, one.key))}},
		}}, http.StatusCreated, &answer); err != nil {
			t.Fatal(err)
		}
		for _, e := range answer {
			return e
		}
		return entry1{}
	}
	first := add("one")
	out := b.must(attestry, "log", "shard", "--config", v.config, "--log", "rekor1", "--now", "--wait")
	if !strings.Contains(out, "rekor1-2 is active") || !strings.Contains(out, "- kind: rekor1\n") {
		t.Errorf("log shard prints:\n%s", out)
	}
	second := add("two")
	if second.LogIndex != first.LogIndex+1 || second.Verification.InclusionProof.LogIndex != 0 || second.LogID == first.LogID {
		t.Errorf("%+v after %+v", second, first)
	}
	b.must(attestry, "log", "shard", "--config", v.config, "--log", "rekor2", "--host", "127.0.0.1", "--now", "--drain", "0s", "--wait")
	if note := get(t, strings.Replace(v.url, "localhost", "127.0.0.1", 1)+"/checkpoint"); !strings.HasPrefix(note, "127.0.0.1\n0\n") {
		t.Errorf("the new v2 log's checkpoint: %s", note)
	}
	if note := get(t, v.url+"/checkpoint"); !strings.HasPrefix(note, "localhost\n") {
		t.Errorf("the old v2 log's checkpoint: %s", note)
	}
	v.kill()
	v.start()
	third := add("three")
	if third.LogIndex != 2 || third.LogID != second.LogID {
		t.Errorf("after a restart: %+v", third)
	}
	listed := b.must(attestry, "log", "list", "--config", v.config)
	for _, want := range []string{`rekor1 +frozen +1 `, `rekor1-2 +active +2 `, `rekor2 +frozen +0 .* localhost `, `rekor2-2 +active +0 .* 127\.0\.0\.1 `} {
		if !regexp.MustCompile(`(?m)^` + want).MatchString(listed) {
			t.Errorf("log list does not match %q:\n%s", want, listed)
		}
	}
	if status, body, err := call(t.Context(), http.MethodGet, v.url+"/healthz", "", ""); err != nil || status != http.StatusOK || strings.TrimSpace(body) != `{"status":"SERVING"}` {
		t.Errorf("/healthz: %d %s %v", status, body, err)
	}
	conn, err := grpc.NewClient(strings.TrimPrefix(v.url, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if health, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil || health.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("grpc.health.v1: %v %v", health, err)
	}
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	if answer, err := stream.Recv(); err != nil || !strings.Contains(answer.String(), "dev.sigstore.rekor.v2.Rekor") {
		t.Errorf("reflection: %v %v", answer, err)
	}
}
