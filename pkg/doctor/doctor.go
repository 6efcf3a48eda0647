// Package doctor looks at what a role or an instance stands on before it is started, and while it runs: files, keys and certificates,
// the clock, the logs' fence, trust material, disks and databases. It reads only.
package doctor

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/stack"
)

// Level says how bad a finding is.
type Level string

// Levels, worst last.
const (
	OK   Level = "ok"
	Warn Level = "warn" // it works, and will not for ever
	Fail Level = "fail" // it does not work, or must not
)

// Codes of findings. They are stable.
const (
	CodeConfig      = "config"               // a configuration that a role would refuse
	CodeFile        = "file_unreadable"      // a file or directory that is named
	CodeMode        = "file_mode"            // a secret that others can read
	CodeKey         = "key_unusable"         // a key that cannot be opened
	CodePair        = "key_mismatch"         // key and certificate
	CodeCertificate = "certificate_expiry"   // of a chain
	CodeClock       = "clock_behind"         // the clock against the newest timestamp
	CodeFence       = "fence_mismatch"       // the fence against the trees
	CodeTrust       = "trusted_root_stale"   // live keys that the trusted root does not have
	CodeDisk        = "disk_space"           // of a volume
	CodeDatabase    = "database_unusable"    // reachable, and new enough
	CodeTUF         = "tuf_expiry"           // published metadata
	CodeEnvironment = "environment_variable" // leftovers of tutorials
)

// Bounds of what is warned of.
const (
	chainWarning     = 90 * 24 * time.Hour // until the first certificate ends
	timestampWarning = 3 * 24 * time.Hour  // until TUF's timestamp ends
	roleWarning      = 90 * 24 * time.Hour // until another TUF role ends
	diskWarning      = 0.10                // share of a volume that is free
	diskFailure      = 64 << 20            // bytes that are free
	clockSlack       = time.Second         // what the TSA vouches for at least
	oldestPostgres   = 130000              // server_version_num
	maxFile          = 16 << 20            // bytes of a file that is read
)

// Finding is one thing that was looked at.
type Finding struct {
	Level  Level  `json:"level"`
	Code   string `json:"code"`
	Where  string `json:"where"`  // a file, a log, a role
	Detail string `json:"detail"` // for people
}

// Report is what was found, in the order in which it was looked at.
type Report struct {
	Now      time.Time // the clock that is judged
	Findings []Finding
}

// Worst is the level of the worst finding, OK when there is none.
func (r *Report) Worst() Level {
	worst := OK
	for _, f := range r.Findings {
		if f.Level == Fail || f.Level == Warn && worst == OK {
			worst = f.Level
		}
	}
	return worst
}

func (r *Report) add(level Level, code, where, format string, args ...any) {
	r.Findings = append(r.Findings, Finding{level, code, where, fmt.Sprintf(format, args...)})
}

// read returns a file that is named, and reports when it cannot.
func (r *Report) read(path string) ([]byte, bool) {
	data, err := limit.ReadFile(path, maxFile)
	if err != nil {
		r.add(Fail, CodeFile, path, "%v", plain(err))
		return nil, false
	}
	return data, true
}

// plain is err without the path that stands beside it anyway.
func plain(err error) error {
	if e := new(fs.PathError); errors.As(err, &e) {
		return e.Err
	}
	return err
}

// secret reports a file that must be there and be read by its owner alone.
func (r *Report) secret(path string) bool {
	info, err := os.Stat(path)
	if err == nil {
		var f *os.File
		if f, err = os.Open(path); err == nil {
			err = f.Close()
		}
	}
	if err != nil {
		r.add(Fail, CodeFile, path, "%v", plain(err))
		return false
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		r.add(Warn, CodeMode, path, "mode %04o: everybody on this machine can read it", mode)
	}
	return true
}

// key opens a key and reports when it cannot.
func (r *Report) key(uri, passwordFile string) crypto.PublicKey {
	if uri == signer.Ephemeral {
		return nil
	}
	path, isFile := strings.CutPrefix(uri, "file:")
	if isFile && !r.secret(path) {
		return nil
	}
	var password []byte
	if passwordFile != "" {
		if !r.secret(passwordFile) {
			return nil
		}
		var err error
		if password, err = signer.ReadPassword(passwordFile); err != nil {
			r.add(Fail, CodeKey, passwordFile, "%v", err)
			return nil
		}
	}
	key, err := signer.Open(uri, password)
	if err != nil {
		r.add(Fail, CodeKey, shown(uri), "%v", err)
		return nil
	}
	return key.Public()
}

// shown is a key's URI without what stands behind a question mark, which may lead to a PIN.
func shown(uri string) string {
	before, _, _ := strings.Cut(strings.TrimPrefix(uri, "file:"), "?")
	return before
}

// pair compares a key with the first certificate of a chain, and looks when the chain ends.
func (r *Report) pair(name string, key crypto.PublicKey, chain []*x509.Certificate) {
	if len(chain) == 0 {
		return
	}
	if key != nil {
		if err := cryptoutils.EqualKeys(key, chain[0].PublicKey); err != nil {
			r.add(Fail, CodePair, name, "the first certificate, %q, is of another key", chain[0].Subject)
		} else {
			r.add(OK, CodePair, name, "key and certificate belong together")
		}
	}
	end := chain[0]
	for _, c := range chain {
		if c.NotAfter.Before(end.NotAfter) {
			end = c
		}
		if r.Now.Before(c.NotBefore) {
			r.add(Fail, CodeCertificate, name, "%q is valid from %s on", c.Subject, stamp(c.NotBefore))
		}
	}
	left := end.NotAfter.Sub(r.Now)
	level := OK
	switch {
	case left <= 0:
		level = Fail
	case left < chainWarning:
		level = Warn
	}
	r.add(level, CodeCertificate, name, "%q ends at %s, in %d days", end.Subject, stamp(end.NotAfter), int(left.Hours()/24))
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// chain reads a PEM file of certificates.
func (r *Report) chain(path string) []*x509.Certificate {
	data, ok := r.read(path)
	if !ok {
		return nil
	}
	certs, err := cryptoutils.UnmarshalCertificatesFromPEM(data)
	if err != nil || len(certs) == 0 {
		r.add(Fail, CodeFile, path, "it has no certificates as PEM")
		return nil
	}
	return certs
}

// clock compares the clock with the newest timestamp of a TSA.
func (r *Report) clock(path string) {
	data, err := limit.ReadFile(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return // none was given yet
	}
	if err != nil {
		r.add(Fail, CodeFile, path, "%v", plain(err))
		return
	}
	last, err := time.Parse(time.RFC3339, strings.TrimSpace(string(data)))
	switch behind := last.Sub(r.Now); {
	case err != nil:
		r.add(Fail, CodeClock, path, "it holds no RFC 3339 time: the TSA will not start")
	case behind > clockSlack:
		r.add(Fail, CodeClock, path, "the clock is %v behind the newest timestamp, %s: the TSA refuses until it is not", behind.Round(time.Second), stamp(last))
	default:
		r.add(OK, CodeClock, path, "the clock is past the newest timestamp, %s", stamp(last))
	}
}

// volume looks at the room on the volume of a directory.
func (r *Report) volume(dir string) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		r.add(Fail, CodeFile, dir, "%v", err)
		return
	}
	free := s.Bavail * uint64(s.Bsize)
	level := OK
	switch {
	case free < diskFailure:
		level = Fail
	case float64(s.Bavail) < diskWarning*float64(s.Blocks):
		level = Warn
	}
	r.add(level, CodeDisk, dir, "%d MiB are free, %d %%", free>>20, 100*s.Bavail/max(1, s.Blocks))
}

// database opens a PostgreSQL database and asks for its version. Others are files, which whoever uses them makes.
func (r *Report) database(ctx context.Context, name, uri, schema, passwordFile string) {
	if passwordFile != "" && !r.secret(passwordFile) {
		return
	}
	if !strings.HasPrefix(uri, "postgres") {
		return
	}
	// Read-only: looking must not make a schema that the role would make with other rights.
	db, err := database.Open(ctx, uri, database.Options{Schema: schema, PasswordFile: passwordFile, ReadOnly: true, MaxConns: 1, ConnectTimeout: 5 * time.Second})
	if err != nil {
		r.add(Fail, CodeDatabase, name, "%v", err)
		return
	}
	defer db.Close()
	conn, err := db.Conn(ctx)
	var version int
	if err == nil {
		err = conn.QueryRowContext(ctx, "SELECT current_setting('server_version_num')::int").Scan(&version)
		err = errors.Join(err, conn.Close())
	}
	switch {
	case err != nil:
		r.add(Fail, CodeDatabase, name, "%v", err)
	case version < oldestPostgres:
		r.add(Warn, CodeDatabase, name, "PostgreSQL %d.%d: older than what is tested, 13", version/10000, version%10000)
	default:
		r.add(OK, CodeDatabase, name, "PostgreSQL %d.%d answers", version/10000, version%10000)
	}
}

// logs compares the trees with their fence.
func (r *Report) logs(ctx context.Context, opts stack.LogsOptions) {
	dirs := []string{opts.Dir}
	if opts.FenceURI == "" {
		dirs = append(dirs, opts.FenceDir)
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			r.add(Warn, CodeFence, dir, "it is not there: right before the first start, and never after it")
			return
		}
		r.volume(dir)
	}
	all, err := stack.CompareFence(ctx, opts)
	if err != nil {
		r.add(Fail, CodeFence, "logs", "%v", err)
		return
	}
	for _, l := range all {
		switch {
		case l.Recorded == (log.Record{}) && l.Size > 0 && l.Lost == 0:
			r.add(Fail, CodeFence, l.Label, "the fence knows nothing of its key, and its tree holds %d entries: another's volume, or an empty one", l.Size)
		case l.Size+l.Lost < l.Recorded.Size:
			r.add(Fail, CodeFence, l.Label, "the tree holds %d entries, but its key has signed %d: data was rolled back", l.Size, l.Recorded.Size)
		default:
			r.add(OK, CodeFence, l.Label, "%d entries, %d of them signed", l.Size, l.Recorded.Size)
		}
	}
}

// trusted looks for what signs now among what clients are told to trust. live is DER, certificates and public keys, by name.
func (r *Report) trusted(path string, live map[string][]byte) {
	data, ok := r.read(path)
	if !ok {
		return
	}
	var root any
	if err := json.Unmarshal(data, &root); err != nil {
		r.add(Fail, CodeTrust, path, "it is no JSON")
		return
	}
	known := map[string]bool{}
	collect(root, known)
	missing := 0
	for _, name := range sortedKeys(live) {
		if !known[string(live[name])] {
			missing++
			r.add(Fail, CodeTrust, name, "it signs, and %s does not have it: clients will refuse", path)
		}
	}
	if missing == 0 {
		r.add(OK, CodeTrust, path, "it has what signs now: %s", strings.Join(sortedKeys(live), ", "))
	}
}

// collect adds every rawBytes of a trusted root, decoded.
func collect(node any, known map[string]bool) {
	switch node := node.(type) {
	case map[string]any:
		for name, value := range node {
			if text, ok := value.(string); ok && name == "rawBytes" {
				if raw, err := base64.StdEncoding.DecodeString(text); err == nil {
					known[string(raw)] = true
				}
			}
			collect(value, known)
		}
	case []any:
		for _, value := range node {
			collect(value, known)
		}
	}
}

// tuf looks when the newest published metadata ends.
func (r *Report) tuf(dir string) {
	for _, role := range []string{"root", "targets", "snapshot", "timestamp"} {
		path, err := newest(dir, role)
		if err != nil {
			r.add(Fail, CodeTUF, dir, "%s: %v", role, err)
			continue
		}
		data, ok := r.read(path)
		if !ok {
			continue
		}
		var metadata struct {
			Signed struct {
				Expires time.Time `json:"expires"`
			} `json:"signed"`
		}
		if err := json.Unmarshal(data, &metadata); err != nil || metadata.Signed.Expires.IsZero() {
			r.add(Fail, CodeTUF, path, "it is no TUF metadata")
			continue
		}
		left, warning := metadata.Signed.Expires.Sub(r.Now), roleWarning
		if role == "timestamp" {
			warning = timestampWarning
		}
		level := OK
		switch {
		case left <= 0:
			level = Fail
		case left < warning:
			level = Warn
		}
		r.add(level, CodeTUF, path, "it ends at %s, in %d days", stamp(metadata.Signed.Expires), int(left.Hours()/24))
	}
}

// newest is the path of a role's newest metadata.
func newest(dir, role string) (string, error) {
	if role == "timestamp" {
		return filepath.Join(dir, "timestamp.json"), nil
	}
	found, err := filepath.Glob(filepath.Join(dir, "*."+role+".json"))
	if err != nil {
		return "", err
	}
	best, path := -1, ""
	for _, f := range found {
		var version int
		if _, err := fmt.Sscanf(filepath.Base(f), "%d.", &version); err == nil && version > best {
			best, path = version, f
		}
	}
	if path == "" {
		return "", errors.New("no metadata is published")
	}
	return path, nil
}

// targetHash is the SHA-256, hex, of a target in targets.json.
func targetHash(metadata []byte, name string) (string, error) {
	var targets struct {
		Signed struct {
			Targets map[string]struct {
				Hashes map[string]string `json:"hashes"`
			} `json:"targets"`
		} `json:"signed"`
	}
	if err := json.Unmarshal(metadata, &targets); err != nil {
		return "", errors.New("the targets metadata is no JSON")
	}
	hash := targets.Signed.Targets[name].Hashes["sha256"]
	if hash == "" {
		return "", fmt.Errorf("the targets metadata names no %s", name)
	}
	return hash, nil
}

// leftovers are variables of tutorials that clients here do not read, or that break them.
var leftovers = []struct {
	name, detail string
}{
	{"COSIGN_EXPERIMENTAL", "of cosign 1.x: later ones ignore it"},
	{"COSIGN_REKOR_URL", "cosign 3 refuses it beside a signing config, which it uses by default: unset it, or --use-signing-config=false"},
	{"COSIGN_FULCIO_URL", "cosign 3 refuses it beside a signing config, which it uses by default: unset it, or --use-signing-config=false"},
	{"FULCIO_URL", "no cosign reads it"},
	{"SIGSTORE_REKOR_API_URL", "no cosign reads it"},
	{"SIGSTORE_ROOT_FILE", "with it cosign leaves TUF aside: for cosign 2 and older, see client/env.cosign2"},
	{"SIGSTORE_REKOR_PUBLIC_KEY", "with it cosign leaves TUF aside: for cosign 2 and older, see client/env.cosign2"},
	{"SIGSTORE_CT_LOG_PUBLIC_KEY_FILE", "with it cosign leaves TUF aside: for cosign 2 and older, see client/env.cosign2"},
}

// Environment reports variables that tutorials set and that do not do what these say. lookup is os.LookupEnv's shape.
func (r *Report) Environment(lookup func(string) (string, bool)) {
	for _, v := range leftovers {
		if _, set := lookup(v.name); set {
			r.add(Warn, CodeEnvironment, v.name, "%s", v.detail)
		}
	}
}

// spki is a public key as DER, nil for none.
func spki(key crypto.PublicKey) []byte {
	if key == nil {
		return nil
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil
	}
	return der
}
