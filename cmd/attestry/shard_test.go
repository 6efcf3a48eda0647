package main

import (
	"bytes"
	"crypto"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/stack"
)

// tlogInstance writes the configuration of a tlog with a log of each kind, and one that follows.
func tlogInstance(t *testing.T) (config, dir string) {
	t.Helper()
	dir = t.TempDir()
	keys := map[string]crypto.Signer{}
	for _, name := range []string{"r1", "r2", "r2b", "ct", "root"} {
		var err error
		if keys[name], err = signer.Create(filepath.Join(dir, name+".pem"), signer.P256); err != nil {
			t.Fatal(err)
		}
	}
	chain, err := ca.CreateHierarchy(ca.Hierarchy{RootKey: keys["root"], IssuingKey: keys["ct"], Organization: "test", NotBefore: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[1].Raw})
	if err := os.WriteFile(filepath.Join(dir, "roots.pem"), root, 0o600); err != nil {
		t.Fatal(err)
	}
	config = filepath.Join(dir, "tlog.yaml")
	text := fmt.Sprintf(`listen: 127.0.0.1:1
url: https://rekor.example
dir: %[1]s
fence: %[1]s/fence
rekor1: {key: "file:%[1]s/r1.pem"}
rekor2:
  key: file:%[1]s/r2.pem
  shards: [{label: second, key: "file:%[1]s/r2b.pem", host: log2.example}]
ct: {key: "file:%[1]s/ct.pem", roots-file: %[1]s/roots.pem}
`, dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return config, dir
}

func command(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), args, &out, &out)
	return out.String(), err
}

func TestShardsOfATlogThatRunsAlone(t *testing.T) {
	config, dir := tlogInstance(t)
	out, err := command(t, "log", "shard", "--config", config, "--log", "rekor2", "--host", "log3.example", "--at", "2027-01-01T00:00:00Z")
	if err != nil {
		t.Fatal(err)
	}
	public := filepath.Join(dir, "keys", "rekor2-3.pub")
	for _, want := range []string{
		"rekor2-3 is planned and begins at 2027-01-01T00:00:00Z", "- kind: rekor2\n", "  url: https://log3.example\n", `  origin: "log3.example"`,
		"  public-key-file: " + public + "\n", "  start: 2027-01-01T00:00:00Z\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the record lacks %q:\n%s", want, out)
		}
	}
	if raw, err := os.ReadFile(public); err != nil || !strings.HasPrefix(string(raw), "-----BEGIN PUBLIC KEY-----") {
		t.Errorf("%s: %s %v", public, raw, err)
	}
	again, err := command(t, "log", "shard", "--config", config, "--log", "rekor2", "--host", "log3.example", "--now")
	if err != nil || again != out {
		t.Errorf("the order again: %s %v", again, err)
	}
	if out, err := command(t, "log", "shard", "--config", config, "--log", "ct", "--shard", "2027h1", "--not-after-start", "2027-01-01T00:00:00Z", "--not-after-limit", "2027-07-01T00:00:00Z"); err != nil || !strings.Contains(out, "url: https://rekor.example/ct/2027h1\n") {
		t.Errorf("%s %v", out, err)
	}
	list, err := command(t, "log", "list", "--config", config)
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, line := range strings.Split(strings.TrimSpace(list), "\n")[1:] {
		fields := strings.Fields(line)
		if len(fields) < 7 || len(fields[len(fields)-1]) != 64 {
			t.Fatalf("line %q", line)
		}
		states = append(states, fields[0]+" "+fields[1]+" "+fields[2])
	}
	if got, want := strings.Join(states, ", "), "rekor1 active -, rekor2 active -, second active -, ct-main active -, rekor2-3 planned -, ct-2027h1 planned -"; got != want {
		t.Errorf("list shows %s, want %s", got, want)
	}
	file, err := stack.ReadShards(dir)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err := json.Marshal(file); err != nil || !strings.Contains(string(raw), `"key":"file:keys/rekor2-3.pem"`) ||
		!strings.Contains(string(raw), `"notAfterStart":"2027-01-01T00:00:00Z","notAfterLimit":"2027-07-01T00:00:00Z"`) {
		t.Errorf("the key's path is not relative to the logs, or the window is not there: %s %v", raw, err)
	}
}

func TestWhatIsNoOrder(t *testing.T) {
	config, dir := tlogInstance(t)
	for want, args := range map[string][]string{
		`--log "rekor3" is not one of`:         {"--log", "rekor3"},
		"every rekor2 log needs one":           {"--log", "rekor2"},
		"--host names a rekor2 log":            {"--log", "rekor1", "--host", "x"},
		"every ct log needs one":               {"--log", "ct"},
		"have one host name":                   {"--log", "rekor2", "--host", "rekor.example"},
		`host "Log Three" is not a host name`:  {"--log", "rekor2", "--host", "Log Three"},
		`name "2027/h1" may have`:              {"--log", "ct", "--shard", "2027/h1"},
		"two logs are called":                  {"--log", "ct", "--shard", "main"},
		"--not-after-limit is of a ct log":     {"--log", "rekor1", "--not-after-limit", "2027-01-01T00:00:00Z"},
		"the window ends before it begins":     {"--log", "ct", "--shard", "x", "--not-after-start", "2027-01-01T00:00:00Z", "--not-after-limit", "2026-01-01T00:00:00Z"},
		"does not drain":                       {"--log", "rekor1", "--drain", "1h"},
		"draining for 1000h0m0s is not within": {"--log", "ct", "--shard", "x", "--drain", "1000h"},
		"--at: parsing time":                   {"--log", "rekor1", "--at", "tomorrow"},
		"none of the others can be":            {"--log", "rekor1", "--now", "--at", "2027-01-01T00:00:00Z"},
		"one key":                              {"--log", "rekor1", "--key", "file:" + dir + "/r2.pem"},
		"no such file":                         {"--log", "rekor1", "--key", "file:missing.pem"},
		"is not the directory of an instance":  {"--log", "rekor1", "--dir", dir},
	} {
		full := append([]string{"log", "shard", "--config", config}, args...)
		if args[len(args)-2] == "--dir" {
			full = append([]string{"log", "shard"}, args...)
		}
		if out, err := command(t, full...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %s %v, want %q", args, out, err, want)
		}
	}
	if file, err := stack.ReadShards(dir); err != nil || len(file.Shards) != 0 {
		t.Errorf("a refused order was stored: %+v %v", file, err)
	}
}
