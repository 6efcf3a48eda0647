package ct_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/ct"
)

func pemOf(certs ...*x509.Certificate) string {
	var b strings.Builder
	for _, cert := range certs {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	}
	return b.String()
}

func TestRootsFiles(t *testing.T) {
	a, b := newAuthority(t, "a").root, newAuthority(t, "b").root
	both := pemOf(a, b)
	for name, tt := range map[string]struct {
		text string
		want int    // roots
		err  string // part of the error
	}{
		"two roots":                      {both, 2, ""},
		"comments between":               {"# subject: a\n" + pemOf(a) + "\n# subject: b\n" + pemOf(b) + "\n\n", 2, ""},
		"Windows line ends":              {strings.ReplaceAll(both, "\n", "\r\n"), 2, ""},
		"nothing":                        {"", 0, "no PEM block"},
		"text alone":                     {"hello\n", 0, "no PEM block"},
		"DER":                            {string(a.Raw), 0, "no PEM block"},
		"a private key beside the roots": {both + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 0, "PRIVATE KEY"},
		"cut off":                        {both[:len(both)-40], 0, "2 PEM blocks begin, 1 are whole"},
		"a block that is not base64":     {strings.Replace(both, "MII", "%II", 1), 0, "2 PEM blocks begin, 1 are whole"},
		"a block that is no certificate": {pemOf(a) + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 0, "certificate 2"},
	} {
		roots, err := ct.ParseRoots([]byte(tt.text))
		if len(roots) != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %d roots, error %v, want %d and %q", name, len(roots), err, tt.want, tt.err)
		}
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "roots.pem"), both)
	if roots, err := ct.ReadRoots(filepath.Join(dir, "roots.pem")); err != nil || len(roots) != 2 {
		t.Errorf("%d roots, %v", len(roots), err)
	}
	write(t, filepath.Join(dir, "large.pem"), both+strings.Repeat("#", 4<<20))
	for _, name := range []string{"missing.pem", "large.pem", "."} {
		if _, err := ct.ReadRoots(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRootsThatLeaveTakeNothingFromTheLog(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) { replaceRoots(t, kind) })
	}
}

func replaceRoots(t *testing.T, kind log.Kind) {
	a, b := newAuthority(t, "a"), newAuthority(t, "b")
	s := newSiteOf(t, kind, ct.Options{}, a.root)
	if _, err := s.reference().AddPreChain(t.Context(), asn1Certs(a.precertChain())); err != nil {
		t.Fatal(err)
	}
	refused := func(ca *authority) {
		t.Helper()
		if _, err := s.handler.AddPreChain(t.Context(), ca.precertChain()); fault.ReasonOf(err) != "no_root" {
			t.Errorf("error %v, want no_root", err)
		}
	}
	refused(b)
	for name, roots := range map[string][][]byte{"none": nil, "not a certificate": {b.root.Raw, {1}}, "no authority": {b.root.Raw, a.leaf()}} {
		if err := s.handler.SetRoots(roots); err == nil {
			t.Errorf("%s: no error", name)
		}
		refused(b)
	}
	if err := s.handler.SetRoots(rawCerts(b.root)); err != nil {
		t.Fatal(err)
	}
	refused(a) // its path was verified before, and must not be remembered
	if _, err := s.reference().AddPreChain(t.Context(), asn1Certs(b.precertChain())); err != nil {
		t.Error(err)
	}
	roots, err := s.reference().GetAcceptedRoots(t.Context())
	if err != nil || len(roots) != 1 || !bytes.Equal(roots[0].Data, b.root.Raw) {
		t.Errorf("get-roots has %d roots, want the present one: %v", len(roots), err)
	}
	entries, err := s.reference().GetEntries(t.Context(), 0, 1)
	if err != nil || len(entries) != 2 || !bytes.Equal(entries[0].Chain[1].Data, a.root.Raw) {
		t.Errorf("%d entries, want the first with its root: %v", len(entries), err)
	}
}

func TestRootsChangeUnderLoad(t *testing.T) {
	a, b := newAuthority(t, "a"), newAuthority(t, "b")
	s := newSiteOf(t, log.CTPlain, ct.Options{}, a.root)
	var wait sync.WaitGroup
	for range 4 {
		chains := [][][]byte{a.precertChain(), a.precertChain(), a.precertChain()}
		wait.Go(func() {
			for _, chain := range chains {
				if _, err := s.handler.AddPreChain(t.Context(), chain); err != nil {
					t.Error(err)
				}
				s.mustGet("/ct/v1/get-roots")
			}
		})
	}
	for i := range 20 {
		if err := s.handler.SetRoots(rawCerts([]*x509.Certificate{a.root, b.root}[:1+i%2]...)); err != nil {
			t.Error(err)
		}
	}
	wait.Wait()
}

// rootsHouse has a watcher on a file as Kubernetes mounts it: roots.pem → ..data/roots.pem, ..data → ..1.
type rootsHouse struct {
	t         *testing.T
	dir, path string
	logged    *bytes.Buffer
	registry  *prometheus.Registry
	site      *site
	watcher   *ct.RootsWatcher
}

func newRootsHouse(t *testing.T, roots ...*x509.Certificate) *rootsHouse {
	h := &rootsHouse{t: t, dir: t.TempDir(), logged: new(bytes.Buffer), registry: prometheus.NewRegistry()}
	h.path = filepath.Join(h.dir, "roots.pem")
	h.mount("..1", pemOf(roots...))
	if err := os.Symlink(filepath.Join("..data", "roots.pem"), h.path); err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.NewTextHandler(h.logged, nil))
	h.site = newSiteOf(t, log.CTPlain, ct.Options{Logger: logger, Registerer: h.registry}, roots...)
	h.watcher = ct.NewRootsWatcher(h.path, logger, h.site.handler)
	return h
}

// mount makes ..data point to a new directory with the file, in one step.
func (h *rootsHouse) mount(name, text string) {
	h.t.Helper()
	if err := os.Mkdir(filepath.Join(h.dir, name), 0o755); err != nil {
		h.t.Fatal(err)
	}
	write(h.t, filepath.Join(h.dir, name, "roots.pem"), text)
	link := filepath.Join(h.dir, "..data_tmp")
	if err := os.Symlink(name, link); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Rename(link, filepath.Join(h.dir, "..data")); err != nil {
		h.t.Fatal(err)
	}
}

// accepted checks which of the certificates are roots now.
func (h *rootsHouse) accepted(doing string, want ...*x509.Certificate) {
	h.t.Helper()
	roots, err := h.site.reference().GetAcceptedRoots(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	if len(roots) != len(want) {
		h.t.Fatalf("%s: %d roots, want %d", doing, len(roots), len(want))
	}
	for i, root := range roots {
		if !bytes.Equal(root.Data, want[i].Raw) {
			h.t.Errorf("%s: root %d is another", doing, i)
		}
	}
}

// metrics checks what is collected on roots.
func (h *rootsHouse) metrics(doing string, roots, bad, refused, taken float64) {
	h.t.Helper()
	families, err := h.registry.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			switch family.GetName() {
			case "attestry_ct_accepted_roots", "attestry_ct_roots_file_bad":
				got[family.GetName()] = metric.GetGauge().GetValue()
			case "attestry_ct_roots_reloads_total":
				got[metric.GetLabel()[0].GetValue()] = metric.GetCounter().GetValue()
			}
		}
	}
	for name, want := range map[string]float64{
		"attestry_ct_accepted_roots": roots, "attestry_ct_roots_file_bad": bad, "refused": refused, "taken": taken,
	} {
		if got[name] != want {
			h.t.Errorf("%s: %s is %v, want %v", doing, name, got[name], want)
		}
	}
}

func TestWatcherFollowsTheRootsFile(t *testing.T) {
	a, b := newAuthority(t, "a").root, newAuthority(t, "b").root
	h := newRootsHouse(t, a)
	reload := func(doing string, good bool) {
		t.Helper()
		if err := h.watcher.Reload(); (err == nil) != good {
			t.Errorf("%s: %v", doing, err)
		}
	}
	reload("unchanged", true)
	h.accepted("unchanged", a)
	h.metrics("unchanged", 1, 0, 0, 1)

	h.mount("..2", pemOf(a, b))
	reload("Kubernetes swaps the directory", true)
	h.accepted("Kubernetes swaps the directory", a, b)
	h.metrics("Kubernetes swaps the directory", 2, 0, 0, 2)
	if !strings.Contains(h.logged.String(), "ct accepted roots changed") || !strings.Contains(h.logged.String(), "CN=b root") {
		t.Errorf("the log does not name the new root: %s", h.logged)
	}

	h.mount("..3", "oops")
	reload("a file without certificates", false)
	reload("the same again", false)
	h.accepted("a file without certificates", a, b)
	h.metrics("a file without certificates", 2, 1, 1, 2)
	if n := strings.Count(h.logged.String(), "roots file refused"); n != 1 {
		t.Errorf("reported %d times, want once: %s", n, h.logged)
	}
	if err := os.Remove(filepath.Join(h.dir, "..3", "roots.pem")); err != nil {
		t.Fatal(err)
	}
	reload("no file", false)
	h.accepted("no file", a, b)
	h.metrics("no file", 2, 1, 2, 2)

	h.mount("..4", pemOf(a, b))
	reload("the good file again", true)
	h.metrics("the good file again", 2, 0, 2, 2)
	if !strings.Contains(h.logged.String(), "good again") {
		t.Errorf("the end of the trouble is not in the log: %s", h.logged)
	}

	info, err := os.Stat(h.path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(h.dir, "..4", "roots.pem"), pemOf(b, a)) // as long as before
	if err := os.Chtimes(filepath.Join(h.dir, "..4", "roots.pem"), info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	reload("rewritten in place with the old length and time", true)
	h.accepted("rewritten in place with the old length and time", b, a)
}

func TestWatcherReloadsAtEachTick(t *testing.T) {
	a, b := newAuthority(t, "a").root, newAuthority(t, "b").root
	h := newRootsHouse(t, a)
	ctx, cancel := context.WithCancel(t.Context())
	ticks := make(chan time.Time)
	ended := make(chan struct{})
	go func() { // ends with ctx
		defer close(ended)
		h.watcher.Run(ctx, ticks)
	}()
	tick := func() { // the second is taken when the reload of the first is through
		ticks <- time.Time{}
		ticks <- time.Time{}
	}
	tick()
	h.accepted("first", a)
	h.mount("..2", pemOf(b))
	tick()
	h.accepted("swapped", b)
	cancel()
	<-ended

	closed := make(chan time.Time)
	close(closed)
	h.watcher.Run(t.Context(), closed) // returns
}
