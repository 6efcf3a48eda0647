package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestBenchSaysWhatIsMissing(t *testing.T) {
	t.Setenv("ATTESTRY_URL", "")
	for _, tt := range []struct{ name, args, want string }{
		{"no target", "bench", "--target is required"},
		{"an unknown target", "bench --target tuf --url http://localhost:1", `target "tuf" is not one of`},
		{"no server", "bench --target rekor1", "--url is required"},
		{"someone else's server", "bench --target rekor1 --url https://rekor.example", "rekor.example is not this machine"},
		{"no token", "bench --target ca --url http://localhost:1", "--token-file FILE, or --dir DIR"},
		{"too many requests", "bench --target tsa --url http://localhost:1 --n 1000001", "between 1 and 1000000"},
		{"no bundle", "bench --target verify", "--bundle is required"},
		{"a server that is down", "bench --target tsa --url http://127.0.0.1:1 -n 1 -c 1", "connecting to 127.0.0.1:1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := run(t.Context(), strings.Fields(tt.args), io.Discard, io.Discard)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestBenchPrintsOneLineAndFailsWhenNothingSucceeded(t *testing.T) {
	status := http.StatusCreated
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) }))
	defer server.Close()
	bench := func(more ...string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), append([]string{"bench", "--target", "rekor2", "--url", server.URL, "--n", "20", "--c", "4"}, more...), &out, io.Discard)
		return out.String(), err
	}
	out, err := bench()
	if err != nil || strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "rekor2: n=20 clients=4 rate=") || !strings.Contains(out, "errors=0") {
		t.Errorf("%q, %v", out, err)
	}
	out, err = bench("--json")
	var report struct{ N int }
	if err != nil || json.Unmarshal([]byte(out), &report) != nil || report.N != 20 {
		t.Errorf("%q, %v", out, err)
	}
	status = http.StatusServiceUnavailable
	out, err = bench()
	if err == nil || !strings.Contains(out, "errors=20 (503: 20)") {
		t.Errorf("%q, %v", out, err)
	}
}
