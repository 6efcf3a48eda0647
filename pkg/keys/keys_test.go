package keys

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/tsa"
)

// tree reads all files below dir.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		files[name] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestARoleGetsWhatItsProgramOpens(t *testing.T) {
	dir := t.TempDir()
	made, err := Init(t.Context(), dir, Options{Organization: "Example"})
	if err != nil {
		t.Fatal(err)
	}
	if len(made.Missing) != 0 || len(made.Files[CA]) != 2 || len(made.Files[TLog]) != 3 || len(made.Files[TSA]) != 2 || len(made.Files[TUF]) != 2 {
		t.Errorf("made %v", made)
	}
	key, chain, err := ca.OpenPair("file:"+filepath.Join(dir, "ca/ca.pem"), nil, filepath.Join(dir, "ca/ca-chain.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.CheckChain(chain, key.Public(), time.Now()); err != nil {
		t.Error(err)
	}
	if got := chain[0].Subject.Organization; !slices.Equal(got, []string{"Example"}) {
		t.Errorf("organization %q", got)
	}
	tsaKey, err := signer.Open("file:"+filepath.Join(dir, "tsa/tsa.pem"), nil)
	if err != nil {
		t.Fatal(err)
	}
	files := tree(t, dir)
	stamps, err := tsa.ParseChain([]byte(files["public/tsa-chain.pem"]))
	if err != nil {
		t.Fatal(err)
	}
	if err := tsa.CheckChain(stamps, tsaKey.Public(), time.Now()); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"ct", "rekor1", "rekor2"} {
		key, err := signer.Open("file:"+filepath.Join(dir, "tlog", name+".pem"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := signer.PublicPEM(key.Public()); err != nil || files["public/"+name+".pub"] != string(text) {
			t.Errorf("public/%s.pub is not of its key (%v)", name, err)
		}
	}
	if files["public/ca-root.pem"] != string(encode(chain[1:])) || files["public/ca-chain.pem"] != files["ca/ca-chain.pem"] {
		t.Error("the public certificates are not the CA's")
	}
	for name := range files {
		info, err := os.Stat(filepath.Join(dir, name))
		if want := os.FileMode(0o600); err != nil || !isPublic(filepath.Base(name)) && info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
	}
	if len(files) != 2+3+2+2+6 {
		t.Errorf("%d files: %v", len(files), slices.Sorted(maps.Keys(files)))
	}
}

// TestARunThatWasKilledIsFinished ends a run before each of its files.
func TestARunThatWasKilledIsFinished(t *testing.T) {
	dir := t.TempDir()
	if _, err := Init(t.Context(), dir, Options{}); err != nil {
		t.Fatal(err)
	}
	whole := tree(t, dir)
	var order []string
	for _, role := range append(Roles(), public) {
		for _, file := range filesOf(role) {
			order = append(order, string(role)+"/"+file)
		}
	}
	if len(order) != len(whole) {
		t.Fatalf("%d files, want %d", len(whole), len(order))
	}
	for i, name := range order {
		t.Run(name, func(t *testing.T) {
			torn := t.TempDir()
			if err := os.CopyFS(torn, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			for _, path := range order[i:] {
				if err := os.Remove(filepath.Join(torn, path)); err != nil {
					t.Fatal(err)
				}
			}
			role, _, _ := strings.Cut(name, "/")
			if err := os.WriteFile(filepath.Join(torn, role, ".tmp-key-1"), []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Init(t.Context(), torn, Options{}); err != nil {
				t.Fatal(err)
			}
			after := tree(t, torn)
			if len(after) != len(whole) {
				t.Errorf("%d files, want %d: %v", len(after), len(whole), slices.Sorted(maps.Keys(after)))
			}
			for _, path := range order[:i] {
				if after[path] != whole[path] {
					t.Errorf("%s was changed", path)
				}
			}
			if role == public && after[name] != whole[name] {
				t.Errorf("%s does not follow from the keys", name)
			}
		})
	}
}

// TestWhatFollowsIsBroughtBack: chains and public halves are nobody's secret, and stand twice.
func TestWhatFollowsIsBroughtBack(t *testing.T) {
	dir := t.TempDir()
	if _, err := Init(t.Context(), dir, Options{}); err != nil {
		t.Fatal(err)
	}
	whole := tree(t, dir)
	for name := range whole {
		if !isPublic(filepath.Base(name)) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			if _, err := Init(t.Context(), dir, Options{}); err != nil || !maps.Equal(tree(t, dir), whole) {
				t.Errorf("%v: not as before", err)
			}
		})
	}
}

func TestWhatDoesNotFitIsNamed(t *testing.T) {
	good, other := t.TempDir(), t.TempDir()
	for _, dir := range []string{good, other} {
		if _, err := Init(t.Context(), dir, Options{}); err != nil {
			t.Fatal(err)
		}
	}
	mine, theirs := tree(t, good), tree(t, other)
	for _, tt := range []struct{ name, file, text, want string }{
		{"a key of another chain", "ca/ca.pem", theirs["ca/ca.pem"], "ca/ca-chain.pem: certificate chain: certificate 1 (CN=attestry issuing CA,O=attestry): the signing key is not this certificate's key"},
		{"a chain of another key", "tsa/tsa-chain.pem", theirs["tsa/tsa-chain.pem"], "tsa/tsa-chain.pem: "},
		{"a key that was cut off", "tlog/ct.pem", mine["tlog/ct.pem"][:60], "tlog/ct.pem: it is not a whole PEM file"},
		{"an empty key", "tuf/online.pem", "", "tuf/online.pem: it holds no private key"},
		{"a chain without its key", "ca/ca.pem", "-", "ca/ca.pem is missing, and "},
		{"a lost log key", "tlog/rekor2.pem", "-", "tlog/rekor2.pem is missing, and "},
		{"a lost key of the first log", "tlog/ct.pem", "-", "tlog/ct.pem is missing, and "},
		{"a lost TSA key", "tsa/tsa.pem", "-", "tsa/tsa.pem is missing, and "},
		{"a root key that was taken away", "tuf/root-1.pem", "-", "tuf/root-1.pem is missing, and "},
		{"one key for two logs", "tlog/rekor2.pem", mine["tlog/rekor1.pem"], "tlog/rekor2.pem are the same key"},
		{"an endless file", "tlog/ct.pem", strings.Repeat("\n", maxFile+1), "ct.pem: over"},
		{"a log with another key than was published", "tlog/rekor1.pem", theirs["tlog/rekor1.pem"], "public/rekor1.pub is not of the key that is there now"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(good)); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, tt.file)
			err := os.WriteFile(path, []byte(tt.text), 0o600)
			if tt.text == "-" {
				err = os.Remove(path)
			}
			if err != nil {
				t.Fatal(err)
			}
			before := tree(t, dir)
			if _, err := Init(t.Context(), dir, Options{}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v\nwant %s", err, tt.want)
			}
			if !maps.Equal(before, tree(t, dir)) {
				t.Error("something was written")
			}
		})
	}
}

// TestALostRoleIsNotMadeAnew: its clients were told of the keys that are gone.
func TestALostRoleIsNotMadeAnew(t *testing.T) {
	for _, role := range []Role{CA, TLog, TSA} {
		t.Run(string(role), func(t *testing.T) {
			dir := t.TempDir()
			if _, err := Init(t.Context(), dir, Options{}); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(filepath.Join(dir, string(role))); err != nil {
				t.Fatal(err)
			}
			before := tree(t, dir)
			if _, err := Init(t.Context(), dir, Options{}); err == nil || !strings.Contains(err.Error(), "bring it back") {
				t.Errorf("%v", err)
			}
			if !maps.Equal(before, tree(t, dir)) {
				t.Error("something was written")
			}
		})
	}
}

func TestRunsAtOnceMakeOneSet(t *testing.T) {
	dir := t.TempDir()
	var running sync.WaitGroup
	failures := make(chan error, 8)
	for range cap(failures) {
		running.Go(func() {
			_, err := Init(t.Context(), dir, Options{})
			failures <- err
		})
	}
	running.Wait()
	close(failures)
	for err := range failures {
		if err != nil {
			t.Error(err)
		}
	}
	made, err := Init(t.Context(), dir, Options{})
	if err != nil || len(slices.Concat(slices.Collect(maps.Values(made.Files))...)) != 0 {
		t.Errorf("afterwards: %v, %v", made, err)
	}
}

func TestKeysThatAreElsewhere(t *testing.T) {
	elsewhere, dir := t.TempDir(), t.TempDir()
	if _, err := Init(t.Context(), elsewhere, Options{}); err != nil {
		t.Fatal(err)
	}
	theirs := tree(t, elsewhere)
	o := Options{Skip: []Role{CA, TUF}, Public: Files{caChain: []byte(theirs["public/ca-chain.pem"])}}
	made, err := Init(t.Context(), dir, o)
	if err != nil || len(made.Missing) != 0 {
		t.Fatalf("%v, %v", made, err)
	}
	if mine := tree(t, dir); mine["public/ca-root.pem"] != theirs["public/ca-root.pem"] || mine["ca/ca.pem"] != "" || mine["tuf/online.pem"] != "" {
		t.Errorf("%v", slices.Sorted(maps.Keys(mine)))
	}
	made, err = Init(t.Context(), t.TempDir(), Options{Skip: []Role{TLog}})
	if err != nil || !slices.Equal(made.Missing, []string{"ct.pub", "rekor1.pub", "rekor2.pub"}) {
		t.Errorf("%v, %v", made, err)
	}
	for _, tt := range []struct {
		name string
		o    Options
		want string
	}{
		{"of a role that is made", Options{Public: Files{caChain: []byte(theirs["public/ca-chain.pem"])}}, "which is not skipped"},
		{"of nobody", Options{Skip: []Role{CA}, Public: Files{"ca.pub": nil}}, "is not one of"},
		{"derived", Options{Skip: []Role{CA}, Public: Files{caRoot: nil}}, "is not one of"},
		{"a private key", Options{Skip: []Role{TLog}, Public: Files{"ct.pub": []byte(theirs["tlog/ct.pem"])}}, "not one PEM block of type PUBLIC KEY"},
		{"half a chain", Options{Skip: []Role{TSA}, Public: Files{tsaChain: []byte(theirs["public/tsa-chain.pem"][:900])}}, "tsa-chain.pem: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := Init(t.Context(), dir, tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %s", err, tt.want)
			}
			if left := tree(t, dir); len(left) != 0 {
				t.Errorf("%d files were written", len(left))
			}
		})
	}
}

func TestARootThatIsKept(t *testing.T) {
	key, err := signer.New(signer.P384)
	if err != nil {
		t.Fatal(err)
	}
	root, err := ca.CreateRoot(ca.NewRoot{Key: key, Organization: "Example"})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	o := Options{Organization: "Example", Root: func() (*x509.Certificate, crypto.Signer, error) { return root, key, nil }}
	if _, err := Init(t.Context(), dir, o); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, dir)["public/ca-root.pem"]; got != string(encode([]*x509.Certificate{root})) {
		t.Error("the chain ends in another root")
	}
	o.Root = func() (*x509.Certificate, crypto.Signer, error) { return nil, nil, errors.New("the root is away") }
	if _, err := Init(t.Context(), dir, o); err != nil {
		t.Errorf("a second run wanted the root: %v", err)
	}
}

// failing is a directory whose add fails once, before or after it took effect.
type failing struct {
	directory
	role  Role
	after bool
	done  *bool
}

func (f failing) add(ctx context.Context, role Role, names []string, files Files) error {
	if role != f.role || *f.done {
		return f.directory.add(ctx, role, names, files)
	}
	*f.done = true
	if f.after {
		return errors.Join(f.directory.add(ctx, role, names, files), errors.New("the disk is gone"))
	}
	return errors.New("the disk is full")
}

func TestAWriteThatFailedIsMadeGood(t *testing.T) {
	for _, role := range append(Roles(), public) {
		for _, after := range []bool{false, true} {
			dir := directory(t.TempDir())
			if _, err := initialize(t.Context(), failing{dir, role, after, new(bool)}, Options{}); err == nil {
				t.Errorf("%s: no error", role)
			}
			before := tree(t, string(dir))
			if _, err := Init(t.Context(), string(dir), Options{}); err != nil {
				t.Errorf("%s: %v", role, err)
			}
			for name, text := range tree(t, string(dir)) {
				if had, ok := before[name]; ok && !bytes.Equal([]byte(had), []byte(text)) {
					t.Errorf("%s: %s was replaced", role, name)
				}
			}
		}
	}
}
