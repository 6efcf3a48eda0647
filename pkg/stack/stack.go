// Package stack runs all roles of a private Sigstore in one process, on one handler: what `attestry up`
// serves. The roles that run alone take their parts from the same packages; the logs, which are many
// pieces, from this one (logs.go).
package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/issuer"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/records"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/entry"
	"github.com/attestry/attestry/pkg/log/witness"
	"github.com/attestry/attestry/pkg/trust"
	"github.com/attestry/attestry/pkg/tsa"
)

// IssuerMode says whether the development issuer runs.
type IssuerMode string

const (
	IssuerLoopback IssuerMode = "loopback" // only where nobody else can reach it
	IssuerAny      IssuerMode = "any"      // also where others can: they may sign as anyone
	IssuerOff      IssuerMode = "off"
)

// Options of Open.
type Options struct {
	Dir      string // everything that lasts
	FenceDir string // the logs' fence; "" is Dir/fence
	URL      string // public URL; "" is the stored one's host, or localhost, with Listen's port
	Listen   string // host:port that the caller listens on
	CAConfig string // issuer file of the CA beside the development issuer, followed when it changes; "" for none
	Issuer   IssuerMode
	Hangups  <-chan os.Signal // CAConfig is read again at each; nil for none

	OneTimeTokens bool // each identity token gives one certificate, see ca.Options
	// DetachedSCTs logs final certificates and hands SCTs out beside them, see ca.Options.
	DetachedSCTs bool

	Kinds        entry.Kinds // what the Rekor v1 log takes; the zero value is the defaults
	Attestations bool        // the Rekor v1 log keeps attestations
	// Witnesses cosign the checkpoints of the Rekor v2 log; nil for nobody. Without their quorum none is shown.
	Witnesses *witness.Policy

	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil for none
	Now        func() time.Time      // nil is time.Now
}

// Stack is a private Sigstore. Close gives its directory back.
type Stack struct {
	opts      Options
	url       *url.URL
	lock      *os.File
	logs      *Logs
	material  *material
	inventory *trust.Inventory
	publisher *trust.Publisher
	issuer    *issuer.Provider // nil when it is off
	ca        *ca.CA
	records   *records.Store // of the CA
	tsa       *tsa.Authority
	handler   http.Handler

	registerOps func(*http.ServeMux)

	publishing sync.Mutex   // held while trust material and files for clients are written; guards what follows
	cas        *authorities // as they are published
	issuing    int          // place of the one that issues; those before it end
}

// RecordsURI is the database of the CA's records in an instance's directory.
func RecordsURI(dir string) string { return "sqlite:" + recordsFile(dir) }

func recordsFile(dir string) string { return filepath.Join(dir, "ca", "records.db") }

// ctShard names the first CT log in its paths.
const ctShard = "main"

// Open makes or continues the instance in opts.Dir and returns it ready to serve. It fails when another
// process has the directory, when the URL's host is not the stored one, and when a log does
// not agree with its fence.
func Open(ctx context.Context, opts Options) (s *Stack, err error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.FenceDir == "" {
		opts.FenceDir = filepath.Join(opts.Dir, "fence")
	}
	switch opts.Issuer {
	case IssuerLoopback, IssuerAny:
	case IssuerOff:
		if opts.CAConfig == "" {
			return nil, errors.New("without the development issuer nobody can sign in: name issuers with --ca-config")
		}
	default:
		return nil, fmt.Errorf("development issuer %q is not one of loopback, any, off", opts.Issuer)
	}
	s = &Stack{opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
			s = nil
		}
	}()
	if err := finished(opts.Dir); err != nil {
		return s, err
	}
	for _, dir := range []string{opts.Dir, filepath.Join(opts.Dir, "keys"), filepath.Join(opts.Dir, "trust"), filepath.Join(opts.Dir, "ca")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return s, fmt.Errorf("making the data directory: %w", err)
		}
	}
	if s.lock, err = lockDir(opts.Dir); err != nil {
		return s, err
	}
	if s.url, err = publicURL(opts); err != nil {
		return s, err
	}
	if s.material, err = openMaterial(opts.Dir, opts.Now(), opts.Witnesses != nil); err != nil {
		return s, err
	}
	s.cas, s.issuing = s.material.cas, s.material.cas.Issuing
	if s.logs, err = OpenLogs(ctx, s.logsOptions(s.material)); err != nil {
		return s, err
	}
	if err := s.openIssuer(s.material); err != nil {
		return s, err
	}
	if s.records, err = records.Open(ctx, records.Options{URI: RecordsURI(opts.Dir), Logger: opts.Logger, Registerer: opts.Registerer, Now: opts.Now}); err != nil {
		return s, err
	}
	if err := s.publish(ctx); err != nil {
		return s, err
	}
	// The URL is stored once everything that carries it is: a first run that failed before
	// may be tried again with another.
	if err := storeURL(opts.Dir, s.url.String()); err != nil {
		return s, err
	}
	s.handler, err = s.routes(ctx, s.material)
	return s, err
}

func (s *Stack) logsOptions(m *material) LogsOptions {
	o := LogsOptions{
		Dir: filepath.Join(s.opts.Dir, "log"), FenceDir: s.opts.FenceDir, Host: s.url.Hostname(), URL: s.URL(),
		Logs:   instanceLogs(m.ct, m.rekor2, m.rekor1, m.cas.roots()),
		Limits: upLimits(), Rekor1Kinds: s.opts.Kinds, Rekor1Attestations: s.opts.Attestations,
		Logger: s.opts.Logger, Registerer: s.opts.Registerer, Now: s.opts.Now,
	}
	for i := range o.Logs {
		if o.Logs[i].Kind == log.Rekor2 {
			o.Logs[i].Witnesses, o.Logs[i].WitnessKey = s.opts.Witnesses, m.witness
		}
	}
	return o
}

// upLimits leaves more memory to the other roles than a server of logs alone needs to.
func upLimits() Limits {
	l := DefaultLimits()
	l.BodiesInFlight = 128 << 20
	return l
}

// Adopt adopts a log of the stopped instance in dir, see AdoptLog.
func Adopt(ctx context.Context, opts Options, a Adoption) (log.Record, error) {
	if err := finished(opts.Dir); err != nil {
		return log.Record{}, err
	}
	stored, err := os.ReadFile(filepath.Join(opts.Dir, "url"))
	if err != nil {
		return log.Record{}, fmt.Errorf("%s is not the directory of an instance: %w", opts.Dir, err)
	}
	if opts.FenceDir == "" {
		opts.FenceDir = filepath.Join(opts.Dir, "fence")
	}
	s := &Stack{opts: opts}
	if s.url, err = parseURL(strings.TrimSpace(string(stored))); err != nil {
		return log.Record{}, err
	}
	if s.lock, err = lockDir(opts.Dir); err != nil {
		return log.Record{}, err
	}
	defer s.lock.Close()
	material, err := openMaterial(opts.Dir, time.Now(), false)
	if err != nil {
		return log.Record{}, err
	}
	return AdoptLog(ctx, s.logsOptions(material), a)
}

// URL is the public URL without a closing slash.
func (s *Stack) URL() string { return strings.TrimSuffix(s.url.String(), "/") }

// Dir is where everything lasts.
func (s *Stack) Dir() string { return s.opts.Dir }

// IssuerURL is the development issuer's, "" when it is off.
func (s *Stack) IssuerURL() string {
	if s.issuer == nil {
		return ""
	}
	return s.issuer.IssuerURL()
}

// Token returns an identity token of the development issuer.
func (s *Stack) Token(email string) (string, error) {
	if s.issuer == nil {
		return "", errors.New("the development issuer is off")
	}
	return s.issuer.Token(issuer.TokenRequest{Email: email})
}

// FenceNote says where the fence is and what it does not guard against there.
func (s *Stack) FenceNote() string {
	inside, err := filepath.Rel(s.opts.Dir, s.opts.FenceDir)
	if err == nil && !strings.HasPrefix(inside, "..") {
		return s.opts.FenceDir + " (inside the data: no guard against a rollback of the whole directory; --fence moves it)"
	}
	return s.opts.FenceDir
}

// Handler serves every role.
func (s *Stack) Handler() http.Handler { return s.handler }

// RegisterOps adds what operators may ask to mux, which must belong to a listener that clients cannot reach.
func (s *Stack) RegisterOps(mux *http.ServeMux) { s.registerOps(mux) }

// Ready returns nil when every role answers.
func (s *Stack) Ready(ctx context.Context) error {
	return errors.Join(s.logs.Ready(ctx), s.publisher.Ready(ctx), s.ca.Ready(ctx), s.tsa.Ready(ctx))
}

// Close stops the roles, those that others need last.
func (s *Stack) Close() error {
	var errs []error
	if s.publisher != nil {
		errs = append(errs, s.publisher.Close())
	}
	if s.records != nil {
		errs = append(errs, s.records.Close())
	}
	if s.logs != nil {
		errs = append(errs, s.logs.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// lockDir keeps a second process from the directory as long as the file is open.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is in use by another process: stop it, or name another directory with --dir", dir)
		}
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return f, nil
}

// publicURL returns the URL that trust files carry. Its host stands in the origins of the logs and
// can never change; its port may.
func publicURL(opts Options) (*url.URL, error) {
	raw, err := os.ReadFile(filepath.Join(opts.Dir, "url"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("reading the stored URL: %w", err)
	}
	var stored *url.URL
	if err == nil {
		if stored, err = parseURL(strings.TrimSpace(string(raw))); err != nil {
			return nil, fmt.Errorf("stored URL: %w", err)
		}
	}
	if opts.URL == "" {
		if stored != nil && stored.Hostname() != "localhost" {
			return stored, nil // chosen with --url once
		}
		_, port, err := net.SplitHostPort(opts.Listen)
		if err != nil {
			return nil, fmt.Errorf("listen address: %w", err)
		}
		return parseURL("http://localhost:" + port)
	}
	wanted, err := parseURL(opts.URL)
	if err != nil {
		return nil, err
	}
	if stored != nil && stored.Hostname() != wanted.Hostname() {
		return nil, fmt.Errorf("this instance was made for %s and its logs carry that host name; %s needs a directory of its own", stored, wanted)
	}
	return wanted, nil
}

func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimSuffix(raw, "/"))
	if err != nil {
		return nil, fmt.Errorf("URL: %w", err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("URL %q: want http[s]://host[:port] and nothing behind it", raw)
	}
	return u, nil
}

func storeURL(dir, text string) error {
	path := filepath.Join(dir, "url")
	text += "\n"
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, []byte(text)) {
		return nil
	}
	if err := durable.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("storing the URL: %w", err)
	}
	return nil
}
