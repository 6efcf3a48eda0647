package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/admission"
	"github.com/attestry/attestry/pkg/admission/cluster"
	"github.com/attestry/attestry/pkg/policy"
	"github.com/attestry/attestry/pkg/verify/freshness"
	"github.com/attestry/attestry/pkg/verify/oci"
)

const (
	lookEvery       = 5 * time.Second // at files, and at the serving certificate
	mirrorsEvery    = time.Minute     // at TUF repositories, whose metadata also ends by itself
	maxTrustedRoot  = 16 << 20
	preverifyingFor = 10 * time.Minute
)

// policies keeps the set in force equal to files and to the objects of the cluster. What does not compile changes nothing.
type policies struct {
	cfg       *serverConfig
	namespace string // of secretRef and configMapRef
	logger    *slog.Logger

	trusted     func(written, ends time.Time) // takes the trusted root in force; nil for nobody
	inForce     atomic.Pointer[policy.Set]
	preverified atomic.Pointer[admission.Preverified]
	problem     atomic.Pointer[string] // why the newest policies are not in force; nil when they are

	mu       sync.Mutex    // guards what follows, held while policies are compiled
	objects  []policy.File // of the cluster
	synced   bool          // objects are known
	tried    [32]byte      // what was compiled last, with or without success
	compiled time.Time
	dated    time.Time // when the trusted root's age was read last
}

// decider is admission.Options.Decider.
func (p *policies) decider() (admission.Decider, error) {
	if set := p.inForce.Load(); set != nil {
		return set, nil
	}
	if problem := p.problem.Load(); problem != nil {
		return nil, errors.New(*problem)
	}
	return nil, errors.New("the policies are not loaded yet")
}

// take has the objects of the cluster.
func (p *policies) take(documents []cluster.Document) {
	objects := make([]policy.File, len(documents))
	for i, d := range documents {
		objects[i] = policy.File{Name: d.Name, Data: d.JSON}
	}
	p.mu.Lock()
	p.objects, p.synced = objects, true
	p.mu.Unlock()
	p.look()
}

// look compiles the policies if they have changed.
func (p *policies) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cfg.Cluster && p.cfg.ClusterPolicies && !p.synced {
		return // without them others would decide
	}
	before := p.inForce.Load()
	if err := p.compile(); err != nil {
		text := err.Error()
		if before := p.problem.Swap(&text); before == nil || *before != text {
			p.logger.Error("policies refused; those before stay in force", "err", err)
		}
		return
	}
	if p.problem.Swap(nil) != nil {
		p.logger.Info("policies are good again")
	}
	if fresh := p.inForce.Load() != before; fresh || time.Since(p.dated) >= mirrorsEvery {
		p.dated = time.Now()
		p.date()
	}
}

// date says how old the trusted root in force is, by its file and by the TUF metadata that was carried with it.
func (p *policies) date() {
	if p.trusted == nil || p.cfg.TrustedRootFile == "" {
		return
	}
	info, err := os.Stat(p.cfg.TrustedRootFile)
	if err != nil {
		return // the next look says so
	}
	data, err := limit.ReadFile(p.cfg.TrustedRootFile, maxTrustedRoot)
	if err != nil {
		return
	}
	dir := p.cfg.TrustMetadata
	if dir == "" {
		dir = filepath.Dir(p.cfg.TrustedRootFile)
		if _, err := os.Stat(filepath.Join(dir, "tuf", "timestamp.json")); err == nil {
			dir = filepath.Join(dir, "tuf")
		}
	}
	age, err := freshness.Read(os.DirFS(dir), data)
	if err != nil && p.cfg.TrustMetadata != "" {
		p.logger.Warn("age of the trusted root", "err", err)
	}
	p.trusted(info.ModTime(), age.Expires)
}

func (p *policies) compile() error {
	files, err := policy.ReadFiles(p.cfg.PolicyFiles)
	if err != nil {
		return err
	}
	files = append(files, p.objects...)
	o := policy.Options{Namespace: p.namespace, CUE: p.cfg.CUE, Mirrors: map[string]fs.FS{}}
	if p.cfg.TrustedRootFile != "" {
		if o.TrustedRoot, err = limit.ReadFile(p.cfg.TrustedRootFile, maxTrustedRoot); err != nil {
			return fmt.Errorf("trusted-root-file: %w", err)
		}
	}
	for _, m := range p.cfg.TUFMirrors {
		o.Mirrors[m.URL] = os.DirFS(m.Dir)
	}
	sum := contents(files, o.TrustedRoot)
	if sum == p.tried && (len(o.Mirrors) == 0 || time.Since(p.compiled) < mirrorsEvery) {
		if problem := p.problem.Load(); problem != nil {
			return errors.New(*problem) // still
		}
		return nil
	}
	p.tried, p.compiled = sum, time.Now()
	loaded, err := policy.Compile(files, o)
	if err != nil {
		return err
	}
	set, err := policy.NewSet(loaded.Policies, policy.SetOptions{NoMatch: p.cfg.NoMatch, Version: loaded.Version})
	if err != nil {
		return err
	}
	if before := p.inForce.Load(); before != nil && before.Version() == set.Version() {
		return nil
	}
	p.inForce.Store(set)
	p.logger.Info("policies in force", "policies", len(set.Policies()), "version", set.Version())
	return nil
}

func contents(files []policy.File, trusted []byte) (sum [32]byte) {
	hash := sha256.New()
	fmt.Fprintf(hash, "%d\n%s", len(trusted), trusted)
	for _, f := range files {
		fmt.Fprintf(hash, "\n%q %d\n%s", f.Name, len(f.Data), f.Data)
	}
	return [32]byte(hash.Sum(nil))
}

// preverify asks the policies in force about the carry sets, when either has changed since done, which it updates.
func (p *policies) preverify(ctx context.Context, done *string) {
	set := p.inForce.Load()
	if set == nil || len(p.cfg.CarrySets) == 0 {
		return
	}
	of := set.Version()
	for _, c := range p.cfg.CarrySets {
		info, err := os.Stat(c.Path)
		if err != nil {
			of += fmt.Sprintf("\n%v", err)
			continue
		}
		of += fmt.Sprintf("\n%d %s", info.Size(), info.ModTime())
	}
	if of == *done {
		return
	}
	*done = of
	ctx, cancel := context.WithTimeout(ctx, preverifyingFor)
	defer cancel()
	found, err := p.carried(ctx, set)
	if err != nil { // what was pre-verified before is of other policies, or of sets that are no more
		p.preverified.Store(nil)
		p.logger.Error("carry sets", "err", err)
		return
	}
	p.preverified.Store(found)
	passed, refused := found.Images()
	p.logger.Info("carry sets", "passed", passed, "refused", len(refused))
	for image, why := range refused {
		p.logger.Warn("image of a carry set", "image", image, "text", why)
	}
}

func (p *policies) carried(ctx context.Context, set *policy.Set) (*admission.Preverified, error) {
	var all []admission.CarrySet
	for _, c := range p.cfg.CarrySets {
		info, err := os.Stat(c.Path)
		if err != nil {
			return nil, err
		}
		open := oci.OpenArchive
		if info.IsDir() {
			open = oci.OpenLayout
		}
		layout, err := open(c.Path, 0)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.Path, err)
		}
		defer layout.Close()
		all = append(all, admission.CarrySet{Layout: layout, Registry: c.Registry})
	}
	return admission.Preverify(ctx, set, all)
}
