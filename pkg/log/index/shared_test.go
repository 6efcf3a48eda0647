package index

import (
	"context"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/pkg/log"
)

// view is a replica's view of a log: what that replica has seen signed so far.
type view struct {
	log  *fakeLog
	mu   sync.Mutex // guards what follows
	size uint64
	seen chan struct{}
}

func newView(l *fakeLog) *view { return &view{log: l, seen: make(chan struct{})} }

func (v *view) see(size uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.size = size
	close(v.seen)
	v.seen = make(chan struct{})
}

func (v *view) now() (uint64, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.size, v.seen
}

func (v *view) Leaves(ctx context.Context, from uint64, max int) ([]log.Leaf, error) {
	size, _ := v.now()
	if from >= size {
		return nil, nil
	}
	return v.log.Leaves(ctx, from, min(max, int(size-from)))
}

func (v *view) Checkpoint() *log.Checkpoint {
	size, _ := v.now()
	return &log.Checkpoint{Size: size}
}

func (v *view) Wait(ctx context.Context, size uint64) error {
	for {
		now, seen := v.now()
		if now > size {
			return nil
		}
		select {
		case <-seen:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// start runs Follow and returns how to end it.
func start(t *testing.T, x *Index, source Source) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- x.Follow(ctx, source) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func reach(t *testing.T, x *Index, size uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := x.CaughtUp(ctx, size); err != nil {
		t.Fatal(err)
	}
}

func stored(t *testing.T, x *Index) uint64 {
	t.Helper()
	s, err := readState(t.Context(), x.db)
	if err != nil {
		t.Fatal(err)
	}
	return s.next
}

// storeAll returns once x or another follower has stored the leaves below size.
func storeAll(t *testing.T, x *Index, size uint64) {
	t.Helper()
	reach(t, x, size)
	for end := time.Now().Add(60 * time.Second); stored(t, x) < size; {
		if time.Now().After(end) {
			t.Fatalf("only %d leaves are stored, want %d", stored(t, x), size)
		}
	}
}

// TestTwoFollowersShareOneIndexUnderLoad has two replicas follow a log that grows, each seeing
// it at its own pace, while both are searched: what a replica has followed it finds, always.
func TestTwoFollowersShareOneIndexUnderLoad(t *testing.T) {
	const size = 6000
	source := newFakeLog(bodies(size)...)
	want := built(t, source)
	s := store{server: services.Postgres(t), schema: "log"}
	var replicas [2]*Index
	var views [2]*view
	var stops []func()
	for i := range replicas {
		replicas[i], views[i] = open(t, s), newView(source)
		replicas[i].age = 5 * time.Millisecond // many writes, so that they meet often
		replicas[i].grace = time.Hour          // a replica may start behind the other
		stops = append(stops, start(t, replicas[i], views[i]))
	}
	var wait sync.WaitGroup
	for i := range replicas {
		wait.Go(func() { // grows in steps of its own
			random := mathrand.New(mathrand.NewPCG(uint64(i), 7))
			for seen := uint64(0); seen < size; {
				seen = min(size, seen+1+random.Uint64N(80))
				views[i].see(seen)
				if err := replicas[i].CaughtUp(t.Context(), seen); err != nil {
					t.Error(err)
					return
				}
				for range 3 {
					at := seen - 1 - random.Uint64N(min(seen, 500))
					found, err := replicas[i].Search(t.Context(), []string{fmt.Sprint("subject:", at)}, false, 10)
					if err != nil || !slices.Equal(found, []uint64{at}) {
						t.Errorf("replica %d of cursor %d finds leaf %d as %v, %v", i, replicas[i].Cursor(), at, found, err)
						return
					}
				}
				newest, err := replicas[i].Search(t.Context(), []string{"alice1@example.test"}, false, 1)
				if err != nil || len(newest) == 1 && newest[0] >= replicas[i].Cursor() {
					t.Errorf("replica %d of cursor %d finds %v, %v", i, replicas[i].Cursor(), newest, err)
				}
			}
		})
	}
	wait.Wait()
	for i, stop := range stops {
		stop()
		if got := count(t, replicas[i].metrics.rebuilt); got != 0 {
			t.Errorf("replica %d built the index again %v times", i, got)
		}
	}
	if diff := difference(content(t, s), want); diff != "" {
		t.Error(diff)
	}
}

// TestAReplicaFindsOnlyWhatItHasFollowed searches on a replica that has seen less than another.
func TestAReplicaFindsOnlyWhatItHasFollowed(t *testing.T) {
	source := newFakeLog(bodies(100)...)
	s := store{server: services.Postgres(t), schema: "log"}
	slow, fast := open(t, s), open(t, s)
	slow.age, fast.age = 0, 0
	slowView, fastView := newView(source), newView(source)
	slowView.see(10)
	defer start(t, slow, slowView)()
	storeAll(t, slow, 10)
	fastView.see(100)
	stopFast := start(t, fast, fastView)
	storeAll(t, fast, 100)
	stopFast()
	expect(t, fast, false, 1, []uint64{96}, "alice1@example.test")
	expect(t, slow, false, 1, []uint64{6}, "alice1@example.test")
	expect(t, slow, true, 1, []uint64{6}, "alice1@example.test", "subject:6")
	expect(t, slow, true, 1, nil, "alice1@example.test", "subject:96")
	// Its own leaves stay searchable while it cannot compare what the other one stored.
	slowView.see(50)
	reach(t, slow, 50)
	expect(t, slow, false, 1, []uint64{46}, "alice1@example.test")
	slowView.see(100)
	reach(t, slow, 100)
	expect(t, slow, false, 1, []uint64{96}, "alice1@example.test")
}

// TestAReplicaThatStartsBehindTheIndex is compared with one whose log was put back.
func TestAReplicaThatStartsBehindTheIndex(t *testing.T) {
	source := newFakeLog(bodies(100)...)
	s := store{server: services.Postgres(t), schema: "log"}
	x := open(t, s)
	follow(t, x, source)()
	x.Close()

	late := open(t, s)
	late.grace = time.Hour
	lateView := newView(source)
	lateView.see(60)
	stop := start(t, late, lateView)
	lateView.see(100)
	reach(t, late, 100)
	stop()
	if got := count(t, late.metrics.rebuilt); got != 0 {
		t.Error("a replica that was late built the index again")
	}

	// Others go on: their log is the longer one, and this replica leaves the index alone.
	behind, ahead := open(t, s), open(t, s)
	behind.grace, ahead.age = 2*time.Second, 0
	refused := make(chan struct{}, 1)
	behind.retry = func(int) time.Duration {
		select {
		case refused <- struct{}{}:
		default:
		}
		return 0
	}
	behindView, aheadView := newView(source), newView(source)
	behindView.see(60)
	aheadView.see(100)
	defer start(t, ahead, aheadView)()
	reach(t, ahead, 100)
	defer start(t, behind, behindView)()
	for seen, known := uint64(101), false; !known; seen++ {
		source.add(fmt.Sprint("more", seen))
		aheadView.see(seen)
		reach(t, ahead, seen)
		select {
		case <-refused:
			known = true
		default:
			if seen > 100_000 {
				t.Fatal("the replica that is behind never said so")
			}
		}
	}
	if got := count(t, behind.metrics.rebuilt); got != 0 {
		t.Error("a replica that is behind built the index of the others again")
	}
}

// TestFollowersOutliveAKilledServer kills PostgreSQL again and again while two followers write.
func TestFollowersOutliveAKilledServer(t *testing.T) {
	const kills = 8
	server := services.StartPostgres(t)
	s := store{server: server.Database(t), schema: "log"}
	source := newFakeLog()
	var replicas [2]*Index
	for i := range replicas {
		replicas[i] = open(t, s)
		replicas[i].age = time.Millisecond
		replicas[i].retry = func(int) time.Duration { return 5 * time.Millisecond }
		defer start(t, replicas[i], source)()
	}
	ended := make(chan struct{})
	var grower sync.WaitGroup
	grower.Go(func() {
		for n := uint64(0); ; n++ {
			select {
			case <-ended:
				return
			default:
			}
			source.add(fmt.Sprintf("sha256:%064x alice%d@example.test", n, n%5))
			if err := replicas[n%2].CaughtUp(t.Context(), n-min(n, 20)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	random := mathrand.New(mathrand.NewPCG(5, 6))
	for range kills {
		reach(t, replicas[0], source.Checkpoint().Size+50+random.Uint64N(300))
		server.Kill()
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
	}
	close(ended)
	grower.Wait()
	size := source.Checkpoint().Size
	storeAll(t, replicas[0], size)
	for i, x := range replicas {
		reach(t, x, size)
		for range 200 {
			at := random.Uint64N(size)
			found, err := x.Search(t.Context(), []string{fmt.Sprint("subject:", at)}, false, 10)
			if err != nil || !slices.Equal(found, []uint64{at}) {
				t.Fatalf("replica %d finds leaf %d as %v, %v", i, at, found, err)
			}
		}
		x.Close()
		if got := count(t, x.metrics.rebuilt); got != 0 {
			t.Errorf("replica %d built the index again %v times", i, got)
		}
	}
	if diff := difference(content(t, s), built(t, source)); diff != "" {
		t.Error(diff)
	}
	t.Logf("measured: %d leaves over %d kills", size, kills)
}

// TestWhatOneReplicaBuildsAgainTheOtherFollows empties the index under a follower.
func TestWhatOneReplicaBuildsAgainTheOtherFollows(t *testing.T) {
	source := newFakeLog(bodies(200)...)
	s := store{server: services.Postgres(t), schema: "log"}
	x, other := open(t, s), open(t, s)
	x.age = 0
	defer start(t, x, source)()
	storeAll(t, x, 200)
	state, err := readState(t.Context(), x.db)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.empty(t.Context(), state); err != nil {
		t.Fatal(err)
	}
	source.add(bodies(300)[200:]...)
	storeAll(t, x, 300) // it goes back and comes again
	reach(t, x, 300)
	expect(t, x, false, 10, []uint64{42}, "subject:42")
	x.Close()
	if diff := difference(content(t, s), built(t, source)); diff != "" {
		t.Error(diff)
	}
}
