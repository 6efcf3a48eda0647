package trust

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	rekornote "github.com/sigstore/rekor-tiles/v2/pkg/note"
	"github.com/sigstore/sigstore-go/pkg/root"
	"google.golang.org/protobuf/encoding/protojson"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// goldenInventory is the record of one instance through two generations, as stored in
// testdata/inventory.jsonl.
func goldenInventory(t *testing.T) *Inventory {
	t.Helper()
	path := filepath.Join("testdata", "inventory.jsonl")
	if *update {
		if _, err := os.Stat(path); os.IsNotExist(err) {
			writeGoldenInventory(t, path)
		}
	}
	inv, err := OpenInventory(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(inv.Records()) == 0 {
		t.Fatal("testdata/inventory.jsonl is missing; make one with -update")
	}
	return inv
}

func writeGoldenInventory(t *testing.T, path string) {
	t.Helper()
	at := &clock{now: epoch}
	inv, err := OpenInventory(path, at.Now)
	if err != nil {
		t.Fatal(err)
	}
	host := "https://sigstore.internal.example"
	ids, err := inv.Add(caRecord(t, host), logRecord(t, CTLog, host+"/ct/2026"), logRecord(t, Rekor1, host),
		logRecord(t, Rekor2, "https://log2026.internal.example"), tsaRecord(t, host))
	if err != nil {
		t.Fatal(err)
	}
	at.advance(90 * 24 * time.Hour)
	second := []Record{caRecord(t, host), logRecord(t, CTLog, host+"/ct/2026b"), logRecord(t, Rekor1, host),
		logRecord(t, Rekor2, "https://log2026b.internal.example"), tsaRecord(t, host)}
	for i := range second {
		second[i].Start = at.Now()
	}
	if _, err := inv.Add(second...); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if err := inv.Retire(id, at.Now().Add(time.Hour), "yearly rotation"); err != nil {
			t.Fatal(err)
		}
	}
	bad, err := inv.Add(logRecord(t, CTLog, host+"/ct/lost"))
	if err != nil {
		t.Fatal(err)
	}
	if err := inv.Revoke(bad[0], time.Time{}, "key left on a lost disk"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path + ".lock"); err != nil {
		t.Fatal(err)
	}
}

func TestDerivedFilesAreTheGoldenOnes(t *testing.T) {
	inv := goldenInventory(t)
	d, err := Derive(inv, DeriveOptions{Operator: "internal.example", OIDCIssuers: []string{"https://dex.internal.example"}})
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{
		"trusted_root.json": d.TrustedRoot, "signing_config.v0.2.json": d.SigningConfig,
		"signing_config.rekor1.v0.2.json": d.SigningConfigV1, "signing_config_rekor_v2.v0.2.json": d.SigningConfigV2,
		"client_trust_config.json": d.ClientTrustConfig,
		"fulcio.pem":               d.FulcioPEM, "rekor.pem": d.RekorPEM, "ctfe.pem": d.CTFEPEM, "tsa.pem": d.TSAPEM,
	}
	var list bytes.Buffer
	for _, target := range d.Targets {
		sum := sha256.Sum256(target.Data)
		list.WriteString(target.Name + " " + hex.EncodeToString(sum[:]) + " " + string(target.Custom) + "\n")
	}
	files["targets.txt"] = list.Bytes()
	for name, got := range files {
		path := filepath.Join("testdata", "golden", name)
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs from its golden file; if that is meant, run with -update and review:\n%s", name, got)
		}
	}
	for range 5 { // protojson's spacing differs from one binary to the next, not from call to call; the order of maps would
		again, err := Derive(inv, DeriveOptions{Operator: "internal.example", OIDCIssuers: []string{"https://dex.internal.example"}})
		if err != nil {
			t.Fatal(err)
		}
		for i := range d.Targets {
			if again.Targets[i].Name != d.Targets[i].Name || !bytes.Equal(again.Targets[i].Data, d.Targets[i].Data) {
				t.Fatalf("target %s is not deterministic", d.Targets[i].Name)
			}
		}
	}
}

func TestSigstoreGoReadsTheDerivedFiles(t *testing.T) {
	inv := goldenInventory(t)
	dir := t.TempDir()
	d, err := Derive(inv, DeriveOptions{OIDCIssuers: []string{"https://dex.internal.example"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteClientFiles(dir, ClientFiles{Derived: d, TUFRoot: []byte("{}"), URL: "https://x", TUFURL: "https://x/tuf"}); err != nil {
		t.Fatal(err)
	}
	trusted, err := root.NewTrustedRootFromPath(filepath.Join(dir, "trusted_root.json"))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(trusted.RekorLogs()); n != 4 {
		t.Errorf("%d Rekor logs, want 4", n)
	}
	if n := len(trusted.CTLogs()); n != 2 {
		t.Errorf("%d CT logs, want 2: the revoked one is out", n)
	}
	if n := len(trusted.FulcioCertificateAuthorities()); n != 2 {
		t.Errorf("%d CAs, want 2", n)
	}
	for _, r := range inv.Records() {
		if r.Kind != Rekor1 && r.Kind != Rekor2 {
			continue
		}
		id := r.LogID()
		l := trusted.RekorLogs()[hex.EncodeToString(id[:])]
		if l == nil || l.BaseURL != r.URL || !l.ValidityPeriodStart.Equal(r.Start) || !l.ValidityPeriodEnd.Equal(r.End) {
			t.Errorf("log %s reads as %+v", r.ID, l)
		}
	}
	for _, tsa := range trusted.TimestampingAuthorities() {
		a := tsa.(*root.SigstoreTimestampingAuthority)
		if a.Leaf == nil || len(a.Intermediates) != 1 || a.Root == nil {
			t.Errorf("TSA chain reads as %+v", a)
		}
	}

	at := epoch.AddDate(0, 6, 0)
	for file, want := range map[string]struct {
		url     string
		version uint32
	}{
		"signing_config.v0.2.json":        {"https://log2026b.internal.example", 2},
		"signing_config.rekor1.v0.2.json": {"https://sigstore.internal.example", 1},
	} {
		config, err := root.NewSigningConfigFromPath(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		logs, err := root.SelectServices(config.RekorLogURLs(), config.RekorLogURLsConfig(), []uint32{1, 2}, at)
		if err != nil || len(logs) != 1 || logs[0].URL != want.url || logs[0].MajorAPIVersion != want.version {
			t.Errorf("%s: log %+v, %v", file, logs, err)
		}
		tsas, err := root.SelectServices(config.TimestampAuthorityURLs(), config.TimestampAuthorityURLsConfig(), []uint32{1}, at)
		if err != nil || len(tsas) != 1 || tsas[0].URL != "https://sigstore.internal.example/api/v1/timestamp" {
			t.Errorf("%s: TSA %+v, %v", file, tsas, err)
		}
		ca, err := root.SelectService(config.FulcioCertificateAuthorityURLs(), []uint32{1}, at)
		if err != nil || ca.URL != "https://sigstore.internal.example" || ca.Operator != "sigstore.internal.example" {
			t.Errorf("%s: CA %+v, %v", file, ca, err)
		}
		if oidc, err := root.SelectService(config.OIDCProviderURLs(), []uint32{1}, at); err != nil || oidc.URL != "https://dex.internal.example" {
			t.Errorf("%s: issuer %+v, %v", file, oidc, err)
		}
	}
	v1 := 0
	v2, _ := root.NewSigningConfigFromPath(filepath.Join(dir, "signing_config.v0.2.json"))
	for _, s := range v2.RekorLogURLs() {
		if s.MajorAPIVersion == 1 {
			v1++
		} else if v1 > 0 {
			t.Error("a Rekor v2 log comes after a v1 log")
		}
	}

	var both trustpb.ClientTrustConfig
	raw, _ := os.ReadFile(filepath.Join(dir, "client_trust_config.json"))
	if err := protojson.Unmarshal(raw, &both); err != nil || both.GetMediaType() != clientTrustMediaType ||
		both.GetTrustedRoot() == nil || both.GetSigningConfig().GetMediaType() != signingConfigMediaType {
		t.Errorf("client trust config: %v", err)
	}
}

func TestTrustedRootAvoidsWhatClientsTripOver(t *testing.T) {
	d, err := Derive(goldenInventory(t), DeriveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"checkpointKeyId", "operator"} {
		if bytes.Contains(d.TrustedRoot, []byte(field)) {
			t.Errorf("trusted root has %s, which clients of media type 0.1 refuse or misread", field)
		}
	}
	var doc struct {
		Tlogs []struct{ BaseURL string }
	}
	if err := json.Unmarshal(d.TrustedRoot, &doc); err != nil {
		t.Fatal(err)
	}
	if last := doc.Tlogs[len(doc.Tlogs)-1].BaseURL; last != "https://sigstore.internal.example" {
		t.Errorf("the last log is %s; policy-controller takes its URL for Rekor v1", last)
	}
}

// The checkpoint verifier that clients build from a trusted root must find the log by the ID.
func TestRekorV2LogIDBeginsWithTheKeyHashOfTheSignedNote(t *testing.T) {
	for _, r := range []Record{logRecord(t, Rekor2, "https://log.example:8443/x"), ed25519Record(t, Rekor2, "https://log.example")} {
		if err := r.parse(); err != nil {
			t.Fatal(err)
		}
		if r.Origin != "log.example" {
			t.Errorf("origin %q", r.Origin)
		}
		_, hash, err := rekornote.KeyHash(r.Origin, r.key)
		if err != nil {
			t.Fatal(err)
		}
		// sigstore-go looks the log up by all 32 bytes, signed notes carry the first four.
		if id := r.LogID(); !bytes.Equal(id[:], hash) {
			t.Errorf("log ID is %x, rekor-tiles has %x", id, hash)
		}
	}
}

func TestEnvFilesNameOnlyWhatExists(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's here")
	full, err := Derive(newInventory(t, nil, oneOfEach(t)...), DeriveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c := ClientFiles{Derived: full, TUFRoot: []byte("{}\n"), URL: instance, TUFURL: instance + "/tuf", OIDCIssuer: instance + "/oidc"}
	if err := WriteClientFiles(dir, c); err != nil {
		t.Fatal(err)
	}
	quoted := strings.ReplaceAll(dir, "'", `'\''`)
	want := strings.ReplaceAll(`export ATTESTRY_URL='http://localhost:8420'
export ATTESTRY_TUF_URL='http://localhost:8420/tuf'
export ATTESTRY_OIDC_ISSUER='http://localhost:8420/oidc'
export ATTESTRY_TRUSTED_ROOT='DIR/trusted_root.json'
export ATTESTRY_SIGNING_CONFIG='DIR/signing_config.v0.2.json'
export ATTESTRY_SIGNING_CONFIG_V1='DIR/signing_config.rekor1.v0.2.json'
export ATTESTRY_TUF_ROOT='DIR/root.json'
export TUF_MIRROR='http://localhost:8420/tuf'
export TUF_ROOT_JSON='DIR/root.json'
`, "DIR", quoted)
	if got, _ := os.ReadFile(filepath.Join(dir, "env")); string(got) != want {
		t.Errorf("env:\n%s\nwant:\n%s", got, want)
	}
	want = strings.ReplaceAll(`export SIGSTORE_ROOT_FILE='DIR/fulcio.pem'
export SIGSTORE_REKOR_PUBLIC_KEY='DIR/rekor.pem'
export SIGSTORE_CT_LOG_PUBLIC_KEY_FILE='DIR/ctfe.pem'
export SIGSTORE_TSA_CERTIFICATE_FILE='DIR/tsa.pem'
`, "DIR", quoted)
	if got, _ := os.ReadFile(filepath.Join(dir, "env.cosign2")); string(got) != want {
		t.Errorf("env.cosign2:\n%s\nwant:\n%s", got, want)
	}

	small, err := Derive(newInventory(t, nil, caRecord(t, instance), logRecord(t, Rekor2, instance)), DeriveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.Derived = small
	if err := WriteClientFiles(dir, c); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tsa.pem", "ctfe.pem", "rekor.pem", "signing_config.rekor1.v0.2.json"} {
		if _, err := os.Stat(filepath.Join(dir, name)); !os.IsNotExist(err) {
			t.Errorf("%s outlived its source", name)
		}
		for _, env := range []string{"env", "env.cosign2"} {
			if got, _ := os.ReadFile(filepath.Join(dir, env)); strings.Contains(string(got), "/"+name) {
				t.Errorf("%s names %s, which is gone", env, name)
			}
		}
	}
}
