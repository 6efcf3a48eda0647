package bench

import (
	"net/http"
	"strconv"
	"sync"
	"testing"
)

func TestProofsAreAskedOfEntriesThatThereAre(t *testing.T) {
	size := "7"
	var mu sync.Mutex
	asked := map[string]int{}
	s := server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/v1/log" {
			w.Write([]byte(`{"treeSize":` + size + `}`))
			return
		}
		mu.Lock()
		defer mu.Unlock()
		asked[r.URL.Path+"?"+r.URL.RawQuery]++
		w.Write([]byte("{}"))
	}))
	report, err := Load(t.Context(), HTTPOptions{Target: TargetProofs, Server: s, Size: Size{500, 4}})
	if err != nil || report.N != 500 || len(report.Errors) != 0 {
		t.Fatalf("report %v, %v", report, err)
	}
	if len(asked) != 7 {
		t.Errorf("asked for %v, want the seven entries that there are", asked)
	}
	for i := range 7 {
		if asked["/api/v1/log/entries?logIndex="+strconv.Itoa(i)] == 0 {
			t.Errorf("nobody asked for entry %d", i)
		}
	}
	size = "0"
	_, err = Load(t.Context(), HTTPOptions{Target: TargetProofs, Server: s, Size: Size{1, 1}})
	mention(t, err, "0 entries")
}
