package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// namedHosts are the hosts that our source names without ever dialling them.
var namedHosts = map[string]string{
	"localhost":              "the listener",
	"127.0.0.1":              "services that tests start",
	"in-toto.io":             "predicate and statement types",
	"slsa.dev":               "predicate types",
	"spdx.dev":               "predicate type",
	"openvex.dev":            "predicate type",
	"cyclonedx.org":          "predicate type",
	"cosign.sigstore.dev":    "predicate types",
	"sigstore.dev":           "predicate type of signatures of images",
	"kubernetes.io":          "subject alternative names of service accounts",
	"kubernetes.default.svc": "the cluster's own issuer, when it is configured",
	"github.com":             "built-in provider: values in certificates",
	"gitlab.com":             "built-in provider: values in certificates",
	"buildkite.com":          "built-in provider: values in certificates",
	"g.codefresh.io":         "built-in provider: values in certificates",
	"circleci.com":           "built-in provider: values in certificates",
	"app.circleci.com":       "built-in provider: values in certificates",
	"app.buddy.works":        "built-in provider: values in certificates",
	"issuer.example":         "help text",
	"name.invalid":           "a name that no certificate keeps: a new CA on trial",
	"pkg.go.dev":             "comment in generated code",

	"kubernetes.default.svc.cluster.local": "the cluster's own issuer, as its tokens name it",
}

// A private Sigstore must not know the public one: whatever host stands in the source is listed here with its reason.
func TestTheSourceNamesNoHostThatCouldBeDialled(t *testing.T) {
	root := filepath.Join("..", "..")
	out, err := exec.Command("git", "-C", root, "ls-files", "*.go", "*.yaml", "*.yml", "*.html", "scripts/*", ".ci/*").Output()
	if err != nil {
		missing(t, true, "no git checkout: %v", err)
	}
	url := regexp.MustCompile(`(?:https?|grpc|ntp)://([A-Za-z0-9][A-Za-z0-9.-]*)`)
	seen := map[string]bool{}
	for _, name := range strings.Fields(string(out)) {
		if strings.HasSuffix(name, "_test.go") || strings.Contains(name, "testdata/") {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range url.FindAllStringSubmatch(string(raw), -1) {
			seen[m[1]] = true
			// A name of one label is nobody's in the public DNS: a container beside another. RFC 2606 keeps the examples' names.
			reserved := !strings.Contains(m[1], ".") || strings.HasSuffix(m[1], ".example") || strings.HasSuffix(m[1], ".example.com")
			if namedHosts[m[1]] == "" && !reserved {
				t.Errorf("%s names %s: no default may be a public host", name, m[1])
			}
		}
		if public := regexp.MustCompile(`(rekor|fulcio|oauth2|timestamp|tuf-repo-cdn)\.sig(store|stage)\.dev`).Find(raw); public != nil {
			t.Errorf("%s names the public instance's %s", name, public)
		}
	}
	if len(seen) < 5 {
		t.Errorf("only %d hosts were found: the search is broken", len(seen))
	}
}

// Everything that the demo does, keys to verified bundle, happens without a way out of the machine; strace counts
// what is tried all the same.
func TestTheDemoTriesNoConnectionBeyondLoopback(t *testing.T) {
	if exec.Command("unshare", "--net", "true").Run() != nil {
		missing(t, os.Geteuid() == 0, "needs a network namespace: run as root with unshare (util-linux)")
	}
	trace := filepath.Join(t.TempDir(), "trace")
	script := `ip link set lo up && exec "$0" "$@"`
	args := []string{"--net", "sh", "-c", script}
	if strace, err := exec.LookPath("strace"); err == nil {
		args = append(args, strace, "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", trace)
	} else {
		missing(t, true, "strace is missing: apt-get install strace")
	}
	out, err := exec.Command("unshare", append(args, attestry, "up", "--demo", "--listen", "127.0.0.1:0")...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "everything is in order") {
		t.Fatalf("%v\n%s", err, out)
	}
	raw, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	loopback := regexp.MustCompile(`AF_UNIX|AF_NETLINK|inet_addr\("127\.0\.0\.1"\)|inet_pton\(AF_INET6, "::1"`)
	connects := 0
	for line := range strings.Lines(string(raw)) {
		if !strings.Contains(line, "sa_family") {
			continue
		}
		connects++
		if !loopback.MatchString(line) {
			t.Errorf("beyond loopback: %s", line)
		}
	}
	if connects == 0 {
		t.Error("strace saw no connection at all: the count is broken")
	}
}
