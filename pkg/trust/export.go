package trust

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ClientFiles is what WriteClientFiles stores.
type ClientFiles struct {
	Derived    *Derived
	TUFRoot    []byte // newest root metadata, see Publisher.Root
	URL        string // of the instance
	TUFURL     string // of the TUF repository
	OIDCIssuer string // of the identity provider that env names; may be empty
}

// WriteClientFiles stores the files that clients are pointed at in dir, which it makes. Each
// file is replaced as a whole and only when its content changes, the env files last, so that
// whoever finds those finds everything they name. A file whose source is absent (no TSA,
// say) is left out, of the env files too, and removed when an earlier call wrote it.
func WriteClientFiles(dir string, c ClientFiles) error {
	dir, err := filepath.Abs(dir) // the env files must work from anywhere
	if err != nil {
		return fmt.Errorf("client files: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("client files: %w", err)
	}
	d := c.Derived
	present := map[string]bool{}
	var files []file
	var gone []string
	for _, f := range []file{
		{"root.json", c.TUFRoot, 0o644},
		{"trusted_root.json", d.TrustedRoot, 0o644},
		{"signing_config.v0.2.json", d.SigningConfig, 0o644},
		{"signing_config.rekor1.v0.2.json", d.SigningConfigV1, 0o644},
		{"client_trust_config.json", d.ClientTrustConfig, 0o644},
		{"fulcio.pem", d.FulcioPEM, 0o644},
		{"rekor.pem", d.RekorPEM, 0o644},
		{"ctfe.pem", d.CTFEPEM, 0o644},
		{"tsa.pem", d.TSAPEM, 0o644},
	} {
		if len(f.data) > 0 {
			present[f.name] = true
			files = append(files, f)
		} else {
			gone = append(gone, f.name)
		}
	}
	at := func(name string) string {
		if !present[name] {
			return ""
		}
		return filepath.Join(dir, name)
	}
	files = append(files,
		file{"env", envFile([][2]string{
			{"ATTESTRY_URL", c.URL},
			{"ATTESTRY_TUF_URL", c.TUFURL},
			{"ATTESTRY_OIDC_ISSUER", c.OIDCIssuer},
			{"ATTESTRY_TRUSTED_ROOT", at("trusted_root.json")},
			{"ATTESTRY_SIGNING_CONFIG", at("signing_config.v0.2.json")},
			{"ATTESTRY_SIGNING_CONFIG_V1", at("signing_config.rekor1.v0.2.json")},
			{"ATTESTRY_TUF_ROOT", at("root.json")},
			{"TUF_MIRROR", c.TUFURL},
			{"TUF_ROOT_JSON", at("root.json")},
		}), 0o644},
		// Apart from env: with any of these set, cosign 3 leaves TUF aside.
		file{"env.cosign2", envFile([][2]string{
			{"SIGSTORE_ROOT_FILE", at("fulcio.pem")},
			{"SIGSTORE_REKOR_PUBLIC_KEY", at("rekor.pem")},
			{"SIGSTORE_CT_LOG_PUBLIC_KEY_FILE", at("ctfe.pem")},
			{"SIGSTORE_TSA_CERTIFICATE_FILE", at("tsa.pem")},
		}), 0o644},
	)
	if err := (directory{path: dir}).writeChanged(files); err != nil {
		return fmt.Errorf("client files: %w", err)
	}
	for _, name := range gone { // after the env files stopped naming them
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("client files: %w", err)
		}
	}
	return nil
}

// envFile is one POSIX shell export line for each variable that has a value.
func envFile(vars [][2]string) []byte {
	var b strings.Builder
	for _, v := range vars {
		if v[1] != "" {
			fmt.Fprintf(&b, "export %s='%s'\n", v[0], strings.ReplaceAll(v[1], "'", `'\''`))
		}
	}
	return []byte(b.String())
}
