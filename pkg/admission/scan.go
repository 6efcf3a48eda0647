package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

const (
	scansAtOnce = 4 // images; admission has the other workers
	maxScanned  = 50_000
)

// Pods lists what runs.
type Pods interface {
	// Each calls f with the JSON of each pod, until f fails.
	Each(ctx context.Context, f func(pod json.RawMessage) error) error
}

// scan is one look at all pods.
type scan struct {
	hook *Webhook

	mu                  sync.Mutex // guards what follows
	seen                map[string]bool
	pass, fail, unknown int
}

// Scan judges the images of running pods in the namespaces that a rule names, whatever their mode but off. It changes no pod: metrics
// and log say what runs that admission would refuse today, because it was there before, because a policy or a key changed, or
// because the kubelet started it without asking.
func (w *Webhook) Scan(ctx context.Context, pods Pods) error {
	s := &scan{hook: w, seen: map[string]bool{}}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(scansAtOnce)
	err := pods.Each(ctx, func(pod json.RawMessage) error {
		workload, uses, err := s.running(pod)
		if err != nil { // a kind of pod that this version cannot read must not hide the others
			w.opts.Logger.Warn("running pod not understood", "err", err)
			return nil
		}
		for _, u := range uses {
			group.Go(func() error {
				s.judge(ctx, workload, u)
				return ctx.Err()
			})
		}
		return nil
	})
	if waited := group.Wait(); err == nil {
		err = waited
	}
	if err != nil {
		return fmt.Errorf("scanning pods: %w", err)
	}
	w.metrics.scan(s.pass, s.fail, s.unknown, w.opts.Now())
	return nil
}

// running returns what a pod runs and has not been seen in its namespace, by digest where its status has one.
func (s *scan) running(raw json.RawMessage) (*Workload, []use, error) {
	workload, err := parseWorkload(kind{Version: "v1", Kind: "Pod"}, raw)
	if err != nil {
		return nil, nil, err
	}
	if mode, ruled := s.hook.modeOf(workload.Namespace); !ruled || mode == Off || workload.ending {
		return workload, nil, nil
	}
	phase, digests, err := running(raw)
	if err != nil || phase == "Succeeded" || phase == "Failed" {
		return workload, nil, err
	}
	var uses []use
	for _, u := range workload.images {
		if ref, err := parseReference(u.Image); err == nil && ref.Digest == "" && digests[u.Where] != "" {
			u.Image = ref.pinned(digests[u.Where])
		}
		key := workload.Namespace + " " + u.Image
		s.mu.Lock()
		known := s.seen[key] || len(s.seen) == maxScanned
		if !known {
			s.seen[key] = true
		}
		s.mu.Unlock()
		if !known {
			uses = append(uses, u)
		}
	}
	return workload, uses, nil
}

// running reads a pod's phase, and the digests under which its images were pulled, by use.Where.
func running(raw json.RawMessage) (phase string, digests map[string]string, err error) {
	top, err := members(raw)
	if err != nil {
		return "", nil, err
	}
	status, err := top.object("status")
	if err != nil {
		return "", nil, err
	}
	if err := status.texts(text{"phase", &phase}); err != nil {
		return "", nil, err
	}
	digests = map[string]string{}
	for _, list := range []struct{ name, word string }{
		{"initContainerStatuses", "init container"}, {"containerStatuses", "container"}, {"ephemeralContainerStatuses", "ephemeral container"},
	} {
		all, err := status.list(list.name, maxContainers)
		if err != nil {
			return "", nil, err
		}
		for _, raw := range all {
			var name, id string
			one, err := members(raw)
			if err == nil {
				err = one.texts(text{"name", &name}, text{"imageID", &id})
			}
			if err != nil {
				return "", nil, err
			}
			// NAME@DIGEST of what was pulled; the bare digest of an imported image is that of its configuration.
			if _, digest, ok := strings.Cut(id, "@"); ok {
				digests[fmt.Sprintf("%s %q", list.word, name)] = digest
			}
		}
	}
	return phase, digests, nil
}

func (s *scan) judge(ctx context.Context, workload *Workload, u use) {
	w := s.hook
	r := &request{Kind: kind{Version: "v1", Kind: "Pod"}, Version: "v1", Resource: "pods", Namespace: workload.Namespace}
	d := &decision{use: u}
	w.decide(ctx, r, workload, d)
	f, _, passed := d.finding()
	s.mu.Lock()
	switch {
	case passed:
		s.pass++
	case d.verdict == nil && (f.retry || d.ref.Digest == ""):
		s.unknown++
	default:
		s.fail++
	}
	s.mu.Unlock()
	if passed {
		return
	}
	w.opts.Logger.Warn("running image", "namespace", workload.Namespace, "name", workload.Name, "where", u.Where,
		"image", u.Image, "digest", d.ref.Digest, "reasons", f.codes, "text", f.text)
	if d.verdict == nil {
		return
	}
	if found, _ := w.deployed.ContainsOrAdd(deployedKey(workload.Namespace, d.ref), struct{}{}); !found {
		w.metrics.deployed(workload.Namespace, d.ref.Name)
	}
}
