package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// ceremony is a root that stays offline, made and used with the commands for it.
type ceremony struct {
	b        *sandbox
	password string // file
}

func newCeremony(t *testing.T) *ceremony {
	t.Helper()
	b := newSandbox(t)
	c := &ceremony{b, b.file("password", "correct horse battery staple\n")}
	b.must(attestry, "ca", "root", "--out", b.path("root"), "--organization", "Example", "--key-password-file", c.password)
	return c
}

func (c *ceremony) root() string { return c.b.path("root/root.pem") }

// sign has the root sign a request for the key that --key or --dir names, and returns the file with the chain.
func (c *ceremony) sign(name string, whose ...string) string {
	c.b.t.Helper()
	csr, chain := c.b.path(name+".csr"), c.b.path(name+".pem")
	c.b.must(attestry, flags([]string{"ca", "csr", "--organization", "Example", "--common-name", "Example " + name, "--out", csr}, whose)...)
	c.b.must(attestry, "ca", "sign-csr", "--root", c.root(), "--key-password-file", c.password, "--csr", csr, "--out", chain)
	return chain
}

// chains are those of a CA's trust bundle as oneLine has them, the one that issues first.
func chains(t *testing.T, url string) []string {
	t.Helper()
	var bundle struct {
		Chains []struct{ Certificates []string }
	}
	if err := json.Unmarshal([]byte(get(t, url+"/api/v2/trustBundle")), &bundle); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, chain := range bundle.Chains {
		all = append(all, oneLine(strings.Join(chain.Certificates, "")))
	}
	return all
}

// oneLine makes PEM texts comparable: some have line ends between the certificates, some have not.
func oneLine(pem string) string { return strings.ReplaceAll(pem, "\n", "") }

// TestAnInstallThatIsKilledLeavesTheOldCAOrTheNew kills `attestry ca install --config` in each of its steps, which write two files.
// Whenever it is, ca starts, and with one of the two configurations; the same command again brings it to its end.
func TestAnInstallThatIsKilledLeavesTheOldCAOrTheNew(t *testing.T) {
	strace := system(t, "strace", "strace")
	c := newCeremony(t)
	b := c.b
	old, next := c.sign("old", "--key", "file:"+b.path("old.key")), c.sign("next", "--key", "file:"+b.path("next.key"))
	text := func(path string) string { return oneLine(readFile(t, path)) }
	sum := sha256.Sum256([]byte(readFile(t, next)))
	stored := b.path(fmt.Sprintf("ca-chain-%x.pem", sum[:8]))
	said := b.path("said")
	r := newRole(t, ca, b.home, "killed")
	r.config = b.path("killed.yaml")
	r.args = []string{"-config", r.config}
	first := fmt.Sprintf("listen: %s\nops-listen: %s\nct-mode: disabled\nissuer-file: %s\nkey: file:%s\nchain-file: %s\n",
		r.listen, r.ops, b.file("issuers.yaml", "oidc-issuers:\n  https://idp.example: {client-id: sigstore, type: email}\n"), b.path("old.key"), old)
	install := []string{attestry, "ca", "install", "--config", r.config, "--key", "file:" + b.path("next.key"), "--chain", next}
	publish, now := install, flags(install, []string{"--now"})
	steps := []struct {
		name  string
		new   bool // it was killed when all was done
		chain bool // in writing the chain
		kill  []string
	}{
		{"the chain is half written", false, true, []string{"-e", "trace=fchmod", "-e", "inject=fchmod:signal=KILL:when=1"}},
		{"the chain is not in place", false, true, []string{"-P", stored, "-e", "trace=renameat", "-e", "inject=renameat:signal=KILL"}},
		{"the configuration is not in place", false, false, []string{"-P", r.config, "-e", "trace=renameat", "-e", "inject=renameat:signal=KILL"}},
		{"nothing is said yet", true, false, []string{"-P", said, "-e", "trace=write", "-e", "inject=write:signal=KILL"}},
	}
	for _, tt := range []struct {
		name     string
		before   []string // a command that is not killed; nil for none
		command  []string
		old, new []string // chains, the one that issues first
	}{
		{"published", nil, publish, []string{text(old)}, []string{text(old), text(next)}},
		{"issuing at once", nil, now, []string{text(old)}, []string{text(next), text(old)}},
		{"issuing after it was published", publish, now, []string{text(old), text(next)}, []string{text(next), text(old)}},
	} {
		for _, step := range steps {
			if step.chain && tt.before != nil {
				continue // the chain is there
			}
			t.Run(tt.name+", killed when "+step.name, func(t *testing.T) {
				b := b.in(t)
				if err := os.RemoveAll(stored); err != nil {
					t.Fatal(err)
				}
				write(t, r.config, first)
				if tt.before != nil {
					b.must(tt.before[0], tt.before[1:]...)
				}
				out, err := os.Create(said)
				if err != nil {
					t.Fatal(err)
				}
				defer out.Close()
				killed := exec.Command(strace, flags([]string{"-f", "-qq", "-o", os.DevNull}, step.kill, tt.command)...)
				var told lines
				killed.Stdout, killed.Stderr = out, &told
				if err := killed.Run(); err == nil || told.String() != "" {
					if strings.Contains(told.String(), "ptrace") {
						missing(t, false, "strace may not trace: %s", &told)
					}
					t.Fatalf("it was not killed: %v, %s", err, &told)
				}
				want := tt.old
				if step.new {
					want = tt.new
				}
				starts := func(doing string) {
					t.Helper()
					r.start()
					got := chains(t, r.url)
					r.kill()
					if strings.Join(got, " ") != strings.Join(want, " ") {
						t.Errorf("%s ca has\n%s\nwant\n%s", doing, strings.Join(got, "\n"), strings.Join(want, "\n"))
					}
				}
				starts("after the kill")
				if !step.new {
					b.must(tt.command[0], tt.command[1:]...)
					want = tt.new
					starts("after another try")
				}
			})
		}
	}
}

// TestAnIssuingCAOfAnOfflineRootIsRotated changes from one intermediate of an offline root to the next in a running instance. cosign knows nothing
// but the TUF repository: it signs and verifies with either, both published, and what was signed before goes on to verify.
func TestAnIssuingCAOfAnOfflineRootIsRotated(t *testing.T) {
	openssl := system(t, "openssl", "openssl")
	s := up(t)
	c := newCeremony(t)
	issues := func(chain string) {
		t.Helper()
		want := oneLine(readFile(t, chain))
		eventually(t, chain+" issues", func() bool { return chains(t, s.url)[0] == want })
	}
	publish := func(name string) (chain string, install []string) {
		t.Helper()
		chain = c.sign(name, "--dir", s.dir)
		for _, file := range []string{chain, c.root()} {
			c.b.must(openssl, "verify", "-x509_strict", "-CAfile", c.root(), file)
		}
		install = []string{"ca", "install", "--dir", s.dir, "--chain", chain}
		had := len(chains(t, s.url))
		c.b.must(attestry, install...)
		eventually(t, chain+" is published", func() bool { return len(chains(t, s.url)) == had+1 })
		return chain, install
	}

	type signed struct{ blob, bundle string }
	cosigns := map[string]*sandbox{"v2.6.5": newSandbox(t), "v3.1.3": newSandbox(t)}
	bundles := map[string][]signed{}
	// round signs with each cosign, which reads of trust anew, and verifies all that it ever signed.
	round := func(name, chain string) {
		t.Helper()
		for version, b := range cosigns {
			cosign := client(t, "cosign", version)
			b.must(cosign, "initialize", "--mirror", s.url+"/tuf", "--root", s.client("root.json"))
			one := signed{b.file(name, name), b.path(name + ".bundle")}
			args := []string{"sign-blob", "--yes", "--identity-token", s.alice(), "--bundle", one.bundle}
			if version == "v2.6.5" {
				args = append(args, "--fulcio-url", s.url, "--rekor-url", s.url, "--oidc-issuer", s.issuer())
			}
			b.must(cosign, append(args, one.blob)...)
			c.verifiesLeaf(openssl, chain, one.bundle)
			bundles[version] = append(bundles[version], one)
			for _, each := range bundles[version] {
				b.must(cosign, flags([]string{"verify-blob", "--bundle", each.bundle}, s.aliceAs(), []string{each.blob})...)
			}
		}
	}

	one, install := publish("signing CA 1")
	c.b.must(attestry, append(install, "--now")...)
	issues(one)
	round("under the first", one)
	two, install := publish("signing CA 2")
	issues(one)
	round("both published", one)
	c.b.must(attestry, append(install, "--now")...)
	issues(two)
	round("under the second", two)
	s.stop()
	s.start() // and it is so at the next start
	issues(two)
	round("after a start", two)
}

// verifiesLeaf has openssl verify the certificate in a bundle of either form under the chain that must have issued it.
func (c *ceremony) verifiesLeaf(openssl, chain, bundle string) {
	c.b.t.Helper()
	var either struct {
		Cert                 string // PEM in base64, cosign's own form
		VerificationMaterial struct{ Certificate struct{ RawBytes []byte } }
	}
	if err := json.Unmarshal([]byte(readFile(c.b.t, bundle)), &either); err != nil {
		c.b.t.Fatal(err)
	}
	leaf := certificatePEM(either.VerificationMaterial.Certificate.RawBytes)
	if either.Cert != "" {
		leaf = string(unbase64(c.b.t, either.Cert))
	}
	// openssl knows no precise purpose for code signing before 3.2; any checks all but that.
	c.b.must(openssl, "verify", "-x509_strict", "-purpose", "any", "-CAfile", c.root(), "-untrusted", chain, c.b.file("leaf.pem", leaf))
}

// TestKilledInATakeover installs one CA after another in an instance that is killed while it takes them over. Until then nobody who signs is
// refused, the next start issues with the new one, and cosign verifies all that was ever signed by what is published then.
func TestKilledInATakeover(t *testing.T) {
	cosign := client(t, "cosign", "v3.1.3")
	rounds := 3
	if long() {
		rounds = 12
	}
	s := up(t)
	c := newCeremony(t)
	b := c.b
	var blobs []string
	sign := func() {
		t.Helper()
		name := fmt.Sprintf("blob-%d", len(blobs))
		blob := b.file(name, name)
		b.must(attestry, flags([]string{"sign", "--identity-token", s.alice()}, s.signing(), []string{blob})...)
		blobs = append(blobs, blob)
	}
	for round := range rounds {
		chain := c.sign(fmt.Sprintf("signing CA %d", round), "--dir", s.dir)
		b.must(attestry, "ca", "install", "--dir", s.dir, "--chain", chain, "--now")
		for moment := time.Now().Add(rand.N(3 * time.Second)); time.Now().Before(moment); { // a random one is what this is about
			sign()
		}
		s.kill()
		s.start()
		want := oneLine(readFile(t, chain))
		eventually(t, chain+" issues after the start", func() bool { return chains(t, s.url)[0] == want })
		if got := len(chains(t, s.url)); got != round+2 {
			t.Errorf("%d chains are published, want %d", got, round+2)
		}
		sign()
		for _, blob := range blobs {
			b.must(cosign, flags([]string{"verify-blob", "--bundle", blob + ".sigstore.json", "--trusted-root", s.client("trusted_root.json")}, s.aliceAs(), []string{blob})...)
		}
	}
	measured(t, "%d kills in takeovers, %d signatures, all of them verify", rounds, len(blobs))
}
