package freshness_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/freshness"
)

var trustedRoot = []byte(`{"a trusted root": true}`)

// repository is a small TUF repository; the roles end a day apart, timestamp first.
func repository(t *testing.T, start time.Time, consistent bool, changes ...func(fstest.MapFS)) fs.FS {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := signature.LoadSigner(key, crypto.Hash(0))
	if err != nil {
		t.Fatal(err)
	}
	pub, err := metadata.KeyFromPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	day := 24 * time.Hour
	root := metadata.Root(start.Add(4 * day))
	root.Signed.ConsistentSnapshot = consistent
	for _, role := range []string{metadata.ROOT, metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP} {
		if err := root.Signed.AddKey(pub, role); err != nil {
			t.Fatal(err)
		}
	}
	targets := metadata.Targets(start.Add(3 * day))
	entry, err := metadata.TargetFile().FromBytes("trusted_root.json", trustedRoot, "sha256")
	if err != nil {
		t.Fatal(err)
	}
	targets.Signed.Targets["trusted_root.json"] = entry
	snapshot, timestamp := metadata.Snapshot(start.Add(2*day)), metadata.Timestamp(start.Add(day))
	files := fstest.MapFS{}
	prefix := ""
	if consistent {
		prefix = "1."
	}
	for name, m := range map[string]interface {
		Sign(signature.Signer) (*metadata.Signature, error)
		ToBytes(bool) ([]byte, error)
	}{"1.root.json": root, prefix + "targets.json": targets, prefix + "snapshot.json": snapshot, "timestamp.json": timestamp} {
		if _, err := m.Sign(signer); err != nil {
			t.Fatal(err)
		}
		data, err := m.ToBytes(false)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: data}
	}
	for _, change := range changes {
		change(files)
	}
	return files
}

func TestAgeIsThatOfTheFirstRoleToEnd(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, consistent := range []bool{true, false} {
		age, err := freshness.Read(repository(t, start, consistent), trustedRoot)
		if err != nil {
			t.Fatal(err)
		}
		if want := start.AddDate(0, 0, 1); !age.Expires.Equal(want) {
			t.Errorf("ends at %s, want %s", age.Expires, want)
		}
		if age.Past(start) != 0 || age.Past(start.AddDate(0, 0, 3)) != 48*time.Hour {
			t.Errorf("%s at the start, %s three days later", age.Past(start), age.Past(start.AddDate(0, 0, 3)))
		}
	}
}

func TestMetadataThatDoesNotNameThisTrustedRootIsAnError(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	change := func(name string, f func([]byte) []byte) func(fstest.MapFS) {
		return func(files fstest.MapFS) { files[name].Data = f(files[name].Data) }
	}
	for name, c := range map[string]struct {
		change func(fstest.MapFS)
		root   []byte
		want   string
	}{
		"another trusted root": {func(fstest.MapFS) {}, []byte("{}"), "another trusted_root.json"},
		"an age that is forged": {change("timestamp.json", func(b []byte) []byte {
			return bytes.Replace(b, []byte("2026-01-02"), []byte("2036-01-02"), 1)
		}), trustedRoot, "not enough signatures"},
		"a targets file that is forged": {change("1.targets.json", func(b []byte) []byte {
			return bytes.Replace(b, []byte("2026-01-04"), []byte("2036-01-04"), 1)
		}), trustedRoot, "not enough signatures"},
		"no timestamp":     {func(files fstest.MapFS) { delete(files, "timestamp.json") }, trustedRoot, "timestamp.json"},
		"no root":          {func(files fstest.MapFS) { delete(files, "1.root.json") }, trustedRoot, "root.json"},
		"a file too large": {change("1.targets.json", func(b []byte) []byte { return append(b, make([]byte, 5<<20)...) }), trustedRoot, "larger"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := freshness.Read(repository(t, start, true, c.change), c.root)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want something about %q", err, c.want)
			}
		})
	}
}

func TestLimitsWarnAndRefuse(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	age := freshness.Age{Expires: start}
	day := 24 * time.Hour
	for name, c := range map[string]struct {
		limits  freshness.Limits
		past    time.Duration
		unknown error
		warns   bool
		refuses bool
	}{
		"no limits":                        {past: 1000 * day},
		"just within":                      {limits: freshness.Limits{Warn: day, Max: day}, past: day},
		"past the first":                   {limits: freshness.Limits{Warn: day, Max: 3 * day}, past: 2 * day, warns: true},
		"past both":                        {limits: freshness.Limits{Warn: day, Max: 3 * day}, past: 4 * day, refuses: true},
		"an unknown age and no limits":     {unknown: fs.ErrNotExist},
		"an unknown age, to be warned of":  {limits: freshness.Limits{Warn: day}, unknown: fs.ErrNotExist, warns: true},
		"an unknown age, not to be passed": {limits: freshness.Limits{Max: day}, unknown: fs.ErrNotExist, refuses: true},
	} {
		t.Run(name, func(t *testing.T) {
			warning, err := c.limits.Judge(age, c.unknown, start.Add(c.past))
			if (warning != "") != c.warns || (err != nil) != c.refuses {
				t.Errorf("warning %q, error %v", warning, err)
			}
			if err != nil && verify.ReasonOf(err) != verify.ReasonTrustStale {
				t.Errorf("reason %s", verify.ReasonOf(err))
			}
		})
	}
}
