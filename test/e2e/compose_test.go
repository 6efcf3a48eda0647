package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	container "github.com/attestry/attestry/internal/images"
)

// composeTree is what a log says of itself.
type composeTree struct {
	TreeID         string `json:"treeID"`
	TreeSize       int64  `json:"treeSize"`
	SignedTreeHead string `json:"signedTreeHead"`
}

// composeService is what the checks look at in docker-compose.yaml.
type composeService struct {
	Image       string            `yaml:"image"`
	Command     []string          `yaml:"command"`
	User        string            `yaml:"user"`
	ReadOnly    bool              `yaml:"read_only"`
	CapDrop     []string          `yaml:"cap_drop"`
	CapAdd      []string          `yaml:"cap_add"`
	SecurityOpt []string          `yaml:"security_opt"`
	Privileged  bool              `yaml:"privileged"`
	Ports       []string          `yaml:"ports"`
	Volumes     []string          `yaml:"volumes"`
	Networks    []string          `yaml:"networks"`
	NetworkMode string            `yaml:"network_mode"`
	Environment map[string]string `yaml:"environment"`
	Healthcheck struct {
		Test []string `yaml:"test"`
	} `yaml:"healthcheck"`
}

// TestTheComposeFile reads docker-compose.yaml as a reviewer does: what runs, as whom, and who reaches it.
func TestTheComposeFile(t *testing.T) {
	text := readFile(t, repository+"/docker-compose.yaml")
	var file struct {
		Services map[string]composeService `yaml:"services"`
		Volumes  map[string]any            `yaml:"volumes"`
		Networks map[string]map[string]any `yaml:"networks"`
		Rest     map[string]any            `yaml:",inline"`
	}
	if err := yaml.Unmarshal([]byte(text), &file); err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	for line := range strings.Lines(readFile(t, repository+"/.env")) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(name, "#") {
			settings[name] = value
		}
	}
	programs, err := container.Programs(repository)
	if err != nil {
		t.Fatal(err)
	}
	page := readFile(t, repository+"/docs/compose.md")
	port := regexp.MustCompile(`^127\.0\.0\.1:\$\{([A-Z]+_PORT):-(\d+)\}:\d+$`)
	image := regexp.MustCompile(`^(attestry\.internal/attestry/([a-z-]+):\$\{ATTESTRY_TAG:-dev\}|\$\{[A-Z]+_IMAGE:-[a-z]+:[0-9.]+\})$`)
	used, ports := map[string]bool{}, map[string]bool{}
	for name, s := range file.Services {
		m := image.FindStringSubmatch(s.Image)
		if m == nil || m[2] != "" && !slices.Contains(programs, m[2]) {
			t.Errorf("%s: image %q", name, s.Image)
		}
		if s.User == "" || s.User == "root" || strings.HasPrefix(s.User, "0") {
			t.Errorf("%s runs as %q", name, s.User)
		}
		if !s.ReadOnly || s.Privileged || len(s.CapAdd) > 0 || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s may do more than it needs: %+v", name, s)
		}
		if len(s.Healthcheck.Test) == 0 && name != "bootstrap" && name != "registry" {
			t.Errorf("%s has no healthcheck", name)
		}
		if !strings.Contains(page, "`"+name+"`") {
			t.Errorf("docs/compose.md does not name %s", name)
		}
		for _, p := range s.Ports {
			m := port.FindStringSubmatch(p)
			if m == nil || settings[m[1]] != m[2] {
				t.Errorf("%s: port %q is not one of .env on loopback", name, p)
				continue
			}
			ports[m[1]] = true
		}
		for _, v := range s.Volumes {
			volume, _, _ := strings.Cut(v, ":")
			if _, ok := file.Volumes[volume]; !ok {
				t.Errorf("%s: %q is not a named volume", name, v)
			}
			used[volume] = true
			if strings.HasPrefix(volume, "keys-") && name != "bootstrap" && !strings.HasSuffix(v, ":ro") {
				t.Errorf("%s may write %s", name, volume)
			}
		}
		if (name == "postgres") != slices.Equal(s.Networks, []string{"database"}) {
			t.Errorf("%s is in the networks %v", name, s.Networks)
		}
		for key, value := range s.Environment {
			if strings.Contains(key, "PASSWORD") || strings.Contains(key, "TOKEN") || strings.Contains(key, "SECRET") {
				t.Errorf("%s: a secret in the environment: %s=%s", name, key, value)
			}
		}
	}
	if file.Networks["database"]["internal"] != true {
		t.Error("the database's network leads out")
	}
	for volume := range file.Volumes {
		if !used[volume] {
			t.Errorf("nobody uses the volume %s", volume)
		}
	}
	for name := range settings {
		if !ports[name] {
			t.Errorf(".env: nobody uses %s", name)
		}
	}
	for _, url := range regexp.MustCompile(`[a-z]+://[^\s,}"']+`).FindAllString(text, -1) {
		if !regexp.MustCompile(`^(http://(localhost|tlog|issuer)[:/]|postgres://attestry@postgres/)`).MatchString(url) {
			t.Errorf("%s is not in this file's network", url)
		}
	}
}

// compose is docker-compose.yaml with a daemon of its own.
type compose struct {
	*sandbox
	program string
	ports   map[string]string
}

// newCompose starts dockerd, and gives it the images of this repository, postgres and registry.
func newCompose(t *testing.T) *compose {
	t.Helper()
	if !long() {
		t.Skip("skipped: takes minutes; enable with: scripts/test --long")
	}
	if os.Geteuid() != 0 {
		missing(t, false, "dockerd needs root")
	}
	dockerd, docker := system(t, "dockerd", "docker.io"), system(t, "docker", "docker.io")
	program := filepath.Join(clientsDir(t), "docker-compose-v5.5.1", "docker-compose")
	if _, err := os.Stat(program); err != nil {
		missing(t, false, "docker-compose is not built; enable with: ../shared/clients/get.sh docker-compose")
	}
	dir, err := os.MkdirTemp("", "dockerd-") // short: its sockets' paths are limited
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "d.sock")
	cmd := exec.Command(dockerd, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--host", "unix://"+socket, "--bridge", "none")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &compose{newSandbox(t), program, map[string]string{}}
	t.Cleanup(func() {
		c.run(program, "--file", c.compose(), "--profile", "registry", "down", "--volumes", "--timeout", "1")
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		os.RemoveAll(dir)
		if t.Failed() {
			t.Logf("dockerd: %s", said.String()[max(0, said.Len()-3000):])
		}
	})
	c.set("DOCKER_HOST", "unix://"+socket)
	for _, name := range []string{"CA", "TLOG", "TSA", "TUF", "ISSUER", "REGISTRY"} {
		address := freeAddress(t)
		c.ports[name] = address[strings.LastIndex(address, ":")+1:]
		c.set(name+"_PORT", c.ports[name])
	}
	deadline := time.Now().Add(30 * time.Second)
	for c.run(docker, "info").err != nil {
		if time.Now().After(deadline) {
			t.Fatalf("dockerd does not answer: %s", said.String())
		}
		<-time.After(100 * time.Millisecond)
	}
	c.loadImages(docker)
	return c
}

func (c *compose) compose() string {
	path, err := filepath.Abs(filepath.Join(repository, "docker-compose.yaml"))
	if err != nil {
		c.t.Fatal(err)
	}
	return path
}

func (c *compose) loadImages(docker string) {
	c.t.Helper()
	work := c.t.TempDir()
	made, err := container.Build{Source: repository, Platforms: []string{"linux/" + runtime.GOARCH}, Programs: []string{"attestry", "ca", "tlog", "tsa", "tuf-publisher"}, Log: io.Discard}.Make(c.t.Context(), filepath.Join(work, "bin"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, image := range made {
		archive := filepath.Join(work, filepath.Base(image.Name)+".tar")
		if err := image.Archive(image.Platforms[0], archive, "dev"); err != nil {
			c.t.Fatal(err)
		}
		c.must(docker, "load", "--quiet", "--input", archive)
	}
	// What is pulled elsewhere is made of this machine's programs.
	c.must(docker, "import", "--change", `ENTRYPOINT ["/entrypoint"]`, c.postgresImage(filepath.Join(work, "postgres.tar")), "postgres:17")
	c.must(docker, "import", "--change", `ENTRYPOINT ["/registry","-address","0.0.0.0:5000"]`, c.registryImage(filepath.Join(work, "registry.tar")), "registry:3")
}

// machineImage writes files of this machine as the content of an image, with the libraries they are linked with.
type machineImage struct {
	t    *testing.T
	tar  *tar.Writer
	seen map[string]bool
}

func newMachineImage(t *testing.T, path string) (*machineImage, func()) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	m := &machineImage{t, tar.NewWriter(f), map[string]bool{}}
	return m, func() {
		if err := m.tar.Close(); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *machineImage) header(h *tar.Header, data []byte) {
	m.t.Helper()
	if m.seen[h.Name] {
		return
	}
	m.seen[h.Name] = true
	h.Size = int64(len(data))
	if err := m.tar.WriteHeader(h); err != nil {
		m.t.Fatal(err)
	}
	if _, err := m.tar.Write(data); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machineImage) dir(at string, mode int64, owner int) {
	m.header(&tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(at, "/") + "/", Mode: mode, Uid: owner, Gid: owner}, nil)
}

// add takes a file or a directory; programs bring their libraries.
func (m *machineImage) add(at, from string) {
	m.t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() {
			return nil // directories follow from files; dangling links are nothing
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		below, err := filepath.Rel(from, path)
		m.header(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(filepath.Join(at, below), "/"), Mode: int64(info.Mode().Perm())}, data)
		if bytes.HasPrefix(data, []byte("\x7fELF")) {
			m.libraries(path)
		}
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machineImage) libraries(path string) {
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		return // static
	}
	for line := range strings.Lines(string(out)) {
		for _, field := range strings.Fields(line) {
			if !filepath.IsAbs(field) {
				continue
			}
			if data, err := os.ReadFile(field); err == nil {
				m.header(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(field, "/"), Mode: 0o755}, data)
			}
		}
	}
}

// postgresImage is Debian's PostgreSQL with what the official image's entrypoint does of what docker-compose.yaml asks for.
func (c *compose) postgresImage(path string) string {
	c.t.Helper()
	installed, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(installed) == 0 {
		missing(c.t, true, "PostgreSQL is not installed; enable with: apt-get install postgresql")
	}
	bin := filepath.Dir(installed[len(installed)-1])
	version := filepath.Base(filepath.Dir(bin))
	m, done := newMachineImage(c.t, path)
	defer done()
	m.add(filepath.Dir(bin), filepath.Dir(bin))
	m.add("/usr/share/postgresql/"+version, "/usr/share/postgresql/"+version)
	m.add("/usr/share/zoneinfo", "/usr/share/zoneinfo")
	m.add("/bin/sh", "/bin/sh")
	m.add(bin+"/pg_isready", bin+"/pg_isready")
	m.header(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/pg_isready", Linkname: bin + "/pg_isready"}, nil)
	m.header(&tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/:/bin/sh\npostgres:x:999:999::/var/lib/postgresql:/bin/sh\n"))
	m.header(&tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\npostgres:x:999:\n"))
	m.dir("/var/lib/postgresql", 0o755, 999)
	m.dir("/var/lib/postgresql/data", 0o700, 999)
	entrypoint := `#!/bin/sh
set -eu
data=/var/lib/postgresql/data
bin=` + bin + `
if [ ! -s $data/PG_VERSION ]; then
	$bin/initdb --pgdata=$data --username="$POSTGRES_USER" --auth="$POSTGRES_HOST_AUTH_METHOD" --encoding=UTF8 --locale=C
	echo "host all all all $POSTGRES_HOST_AUTH_METHOD" >>$data/pg_hba.conf
	echo "CREATE DATABASE \"$POSTGRES_DB\";" | $bin/postgres --single -D $data postgres
fi
exec $bin/postgres -D $data -c 'listen_addresses=*' -k /var/run/postgresql
`
	m.header(&tar.Header{Typeflag: tar.TypeReg, Name: "entrypoint", Mode: 0o755}, []byte(entrypoint))
	return path
}

func (c *compose) registryImage(path string) string {
	c.t.Helper()
	program := filepath.Join(clientsDir(c.t), "registry-v0.22.1", "registry")
	if _, err := os.Stat(program); err != nil {
		missing(c.t, false, "registry is not built; enable with: ../shared/clients/get.sh registry")
	}
	m, done := newMachineImage(c.t, path)
	defer done()
	m.add("/registry", program)
	return path
}

// do runs docker-compose.
func (c *compose) do(args ...string) string {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := c.command(ctx, c.program, append([]string{"--file", c.compose()}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		logs, _ := c.command(context.WithoutCancel(ctx), c.program, "--file", c.compose(), "logs", "--tail=20").CombinedOutput()
		c.t.Fatalf("docker-compose %s: %v\n%s\n%s", strings.Join(args, " "), err, stderr.String(), logs)
	}
	return stdout.String()
}

// up starts everything and returns how long that took.
func (c *compose) up() time.Duration {
	c.t.Helper()
	start := time.Now()
	c.do("--profile", "registry", "up", "--wait", "--wait-timeout", "90")
	return time.Since(start)
}

func (c *compose) url(service string) string { return "http://localhost:" + c.ports[service] }

func (c *compose) alice() string {
	c.t.Helper()
	return strings.TrimSpace(c.do("exec", "-T", "issuer", "/attestry", "token", "--dir=/var/lib/attestry", "--email=alice@example.com"))
}

func (c *compose) aliceAs() []string {
	return []string{"--certificate-identity", "alice@example.com", "--certificate-oidc-issuer", c.url("ISSUER") + "/oidc"}
}

// tree is what GET /api/v1/log says.
func (c *compose) tree() composeTree {
	c.t.Helper()
	var is composeTree
	if err := json.Unmarshal([]byte(get(c.t, c.url("TLOG")+"/api/v1/log")), &is); err != nil {
		c.t.Fatal(err)
	}
	return is
}

// TestCompose runs docker-compose.yaml: cosign on the host signs and verifies by TUF alone, through everything that may happen to it.
func TestCompose(t *testing.T) {
	cosign3, cosign2 := client(t, "cosign", "v3.1.3"), client(t, "cosign", "v2.6.5")
	c := newCompose(t)
	ready := c.up()
	t.Logf("ready after %.1f s", ready.Seconds())
	if ready > 30*time.Second { // 10 s on an idle machine
		t.Errorf("it took %v", ready)
	}
	c.hardened()
	c.frugal()

	root := get(t, c.url("TUF")+"/tuf/1.root.json")
	initialize := []string{"initialize", "--mirror", c.url("TUF") + "/tuf", "--root", c.file("root.json", root)}
	blob, bundle := c.file("blob", "from compose"), c.path("bundle")
	c.must(cosign3, initialize...)
	c.must(cosign3, "sign-blob", "--yes", "--identity-token", c.alice(), "--bundle", bundle, blob)
	verify := flags([]string{"verify-blob", "--bundle", bundle}, c.aliceAs(), []string{blob})
	c.must(cosign3, verify...)
	t.Run("cosign 2", func(t *testing.T) {
		b := newSandbox(t)
		b.must(cosign2, "initialize", "--mirror", c.url("TUF")+"/tuf", "--root", b.file("root.json", root))
		blob, bundle := b.file("blob", "cosign 2"), b.path("bundle")
		b.must(cosign2, "sign-blob", "--yes", "--identity-token", c.alice(), "--fulcio-url", c.url("CA"), "--rekor-url", c.url("TLOG"), "--bundle", bundle, blob)
		b.must(cosign2, flags([]string{"verify-blob", "--bundle", bundle, "--rekor-url", c.url("TLOG")}, c.aliceAs(), []string{blob})...)
	})
	t.Run("an image in its registry", func(t *testing.T) {
		image := (&images{t: t, host: "localhost:" + c.ports["REGISTRY"]}).push("app")
		c.must(cosign3, "sign", "--yes", "--identity-token", c.alice(), image)
		c.must(cosign3, flags([]string{"verify"}, c.aliceAs(), []string{image})...)
	})
	before := c.tree()
	if want := "localhost - " + before.TreeID + "\n"; !strings.HasPrefix(before.SignedTreeHead, want) {
		t.Errorf("origin of %q, want %q", before.SignedTreeHead, want)
	}
	if inventory := c.do("exec", "-T", "tuf-publisher", "/tuf-publisher", "-healthcheck"); inventory != "" {
		t.Errorf("the healthcheck says %q", inventory)
	}

	// down and up: the same keys, trees and root.
	c.do("--profile", "registry", "down")
	again := c.up()
	t.Logf("ready again after %.1f s", again.Seconds())
	after := c.tree()
	if after.TreeID != before.TreeID || after.TreeSize != before.TreeSize || get(t, c.url("TUF")+"/tuf/1.root.json") != root {
		t.Errorf("%+v after down and up, %+v before", after, before)
	}
	c.must(cosign3, verify...)
	c.must(cosign3, "sign-blob", "--yes", "--identity-token", c.alice(), "--bundle", c.path("second"), c.file("blob2", "again"))

	c.killed(cosign3)

	// down -v and up: another root of trust, which a client of the first one does not believe.
	c.do("--profile", "registry", "down", "--volumes")
	c.up()
	if get(t, c.url("TUF")+"/tuf/1.root.json") == root {
		t.Error("the root outlived its volume")
	}
	stranger := newSandbox(t)
	out := stranger.run(cosign3, "initialize", "--mirror", c.url("TUF")+"/tuf", "--root", stranger.file("root.json", root))
	if out.err == nil || !regexp.MustCompile(`(?i)threshold|signature|verif`).MatchString(out.stderr) {
		t.Errorf("a client with the old root: %v\n%s", out.err, out.stderr)
	}
	fresh := newSandbox(t)
	fresh.must(cosign3, "initialize", "--mirror", c.url("TUF")+"/tuf", "--root", fresh.file("root.json", get(t, c.url("TUF")+"/tuf/1.root.json")))
	fresh.must(cosign3, "sign-blob", "--yes", "--identity-token", c.alice(), "--bundle", fresh.path("bundle"), fresh.file("blob", "anew"))
}

// hardened asks the daemon what the containers may do, in force and not as written.
func (c *compose) hardened() {
	c.t.Helper()
	ids := strings.Fields(c.do("ps", "--quiet"))
	if len(ids) != 7 {
		c.t.Errorf("%d containers run", len(ids))
	}
	var all []struct {
		Name       string
		Config     struct{ User string }
		HostConfig struct {
			ReadonlyRootfs, Privileged bool
			CapDrop, SecurityOpt       []string
			PortBindings               map[string][]struct{ HostIp string }
		}
	}
	if err := json.Unmarshal([]byte(c.must("docker", append([]string{"inspect"}, ids...)...)), &all); err != nil {
		c.t.Fatal(err)
	}
	for _, one := range all {
		h := one.HostConfig
		if one.Config.User == "" || !h.ReadonlyRootfs || h.Privileged || !slices.Equal(h.CapDrop, []string{"ALL"}) || !slices.Contains(h.SecurityOpt, "no-new-privileges:true") {
			c.t.Errorf("%s: %+v", one.Name, one)
		}
		for port, bindings := range h.PortBindings {
			for _, b := range bindings {
				if b.HostIp != "127.0.0.1" {
					c.t.Errorf("%s: %s on %q", one.Name, port, b.HostIp)
				}
			}
		}
	}
}

// frugal adds up what the roles hold in memory while nobody asks them anything: anonymous pages, since the page cache is the machine's.
func (c *compose) frugal() {
	c.t.Helper()
	total := int64(0)
	for _, service := range []string{"ca", "tlog", "tsa", "tuf-publisher", "issuer"} {
		id := strings.TrimSpace(c.do("ps", "--quiet", service))
		pid := strings.TrimSpace(c.must("docker", "inspect", "--format", "{{.State.Pid}}", id))
		m := regexp.MustCompile(`RssAnon:\s+(\d+) kB`).FindStringSubmatch(readFile(c.t, "/proc/"+pid+"/status"))
		if m == nil {
			c.t.Fatalf("%s has no memory", service)
		}
		kib, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Logf("%s: %.1f MiB", service, float64(kib)/1024)
		total += kib
	}
	if total > 250<<10 {
		c.t.Errorf("the roles have %d KiB", total)
	}
}

// killed kills tlog and the CA while four signers are at work. Every bundle that was answered is of an entry that is there.
func (c *compose) killed(cosign string) {
	c.t.Helper()
	token := c.alice()
	var mu sync.Mutex
	var indexes []int64
	var signers sync.WaitGroup
	ctx, stop := context.WithTimeout(c.t.Context(), time.Minute)
	defer stop()
	enough := make(chan struct{})
	for i := range 4 {
		signers.Go(func() {
			for n := 0; ctx.Err() == nil && n < 50; n++ {
				bundle := c.path(fmt.Sprintf("bundle-%d-%d", i, n))
				blob := c.file(fmt.Sprintf("blob-%d-%d", i, n), fmt.Sprintf("under load %d %d", i, n))
				if c.command(ctx, cosign, "sign-blob", "--yes", "--identity-token", token, "--bundle", bundle, blob).Run() != nil {
					continue // while they are down
				}
				index, err := logIndex(bundle)
				mu.Lock()
				if err != nil {
					c.t.Error(err)
				}
				indexes = append(indexes, index)
				if len(indexes) == 4 {
					close(enough)
				}
				mu.Unlock()
			}
		})
	}
	select {
	case <-enough:
	case <-ctx.Done():
		c.t.Error("nobody signed anything")
	}
	c.do("kill", "--signal=KILL", "tlog", "ca")
	c.up()
	stop()
	signers.Wait()
	if out := c.do("exec", "-T", "tlog", "/tlog", "-fsck"); strings.Contains(out, "damage") {
		c.t.Errorf("fsck: %s", out)
	}
	checkpoint := strings.Split(get(c.t, c.url("TLOG")+"/checkpoint"), "\n")
	size, err := strconv.ParseInt(checkpoint[1], 10, 64)
	if err != nil {
		c.t.Fatal(err)
	}
	slices.Sort(indexes)
	c.t.Logf("%d signatures around the kill, the tree has %d entries", len(indexes), size)
	if len(slices.Compact(slices.Clone(indexes))) != len(indexes) {
		c.t.Errorf("an index was given twice: %v", indexes)
	}
	if len(indexes) > 0 && indexes[len(indexes)-1] >= size {
		c.t.Errorf("entry %d was acknowledged, the tree has %d", indexes[len(indexes)-1], size)
	}
}

// logIndex reads the index that a bundle was given.
func logIndex(bundle string) (int64, error) {
	text, err := os.ReadFile(bundle)
	if err != nil {
		return 0, err
	}
	var b struct {
		VerificationMaterial struct {
			TlogEntries []struct {
				LogIndex string `json:"logIndex"`
			} `json:"tlogEntries"`
		} `json:"verificationMaterial"`
	}
	if err := json.Unmarshal(text, &b); err != nil {
		return 0, err
	}
	if len(b.VerificationMaterial.TlogEntries) != 1 {
		return 0, fmt.Errorf("%s has %d log entries", bundle, len(b.VerificationMaterial.TlogEntries))
	}
	index := b.VerificationMaterial.TlogEntries[0].LogIndex
	if index == "" {
		return 0, nil // protobuf's JSON leaves a zero out
	}
	return strconv.ParseInt(index, 10, 64)
}
