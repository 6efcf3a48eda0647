package admission

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/policy"
	"github.com/attestry/attestry/pkg/verify/oci"
)

const (
	reserve       = 500 * time.Millisecond // of the API server's timeout, for the way there and back
	leastTime     = 100 * time.Millisecond
	imagesAtOnce  = 16   // of one review
	maxWarning    = 240  // bytes; the API server cuts at 256
	maxWarnings   = 4096 // bytes of all
	maxMessage    = 4096
	maxAnnotation = 1024
)

// decision is what was found out about one use of an image.
type decision struct {
	use     use
	ref     reference
	verdict *policy.Verdict // nil where there is none
	err     error           // why there is none
	cached  bool
	listed  bool // from a carry set
	took    time.Duration
}

// finding explains a decision; passed is true for an image that all policies, soft ones too, accept.
func (d *decision) finding() (f finding, allowed, passed bool) {
	if d.err != nil {
		return explainError(d.err), false, false
	}
	passed = d.verdict.Allowed
	for _, o := range d.verdict.Policies {
		passed = passed && o.Passed
	}
	return explain(d.verdict, d.verdict.Allowed), d.verdict.Allowed, passed
}

// validate answers a review with yes or no.
func (w *Webhook) validate(ctx context.Context, r *request) (answer *response, decided string, cached bool) {
	answer = &response{UID: r.UID, Allowed: true}
	workload, uses, mode, err := w.look(r)
	if err != nil {
		f := explainError(err)
		return w.deny(answer, mode, "", []finding{f}, f.text), "denied", false
	}
	if len(uses) == 0 {
		return answer, "exempt", true
	}
	decisions := w.decideAll(ctx, r, workload, uses)
	cached = true
	var refusals []finding
	var texts []string
	var soft []string // codes of what a policy in mode warn or audit refuses
	var policies []string
	for i := range decisions {
		d := &decisions[i]
		cached = cached && (d.cached || d.listed)
		f, allowed, passed := d.finding()
		policies = append(policies, f.policies...)
		w.record(r, workload, d, mode, f, allowed, passed)
		if d.verdict != nil {
			for _, warning := range d.verdict.Warnings {
				if mode == Enforce || mode == Warn {
					answer.warn(warning)
				}
			}
		}
		switch {
		case !allowed:
			refusals = append(refusals, f)
			texts = append(texts, fmt.Sprintf("%s: image %s: %s", d.use.Where, d.use.Image, f.text))
		case !passed:
			soft = append(soft, f.codes...)
		}
	}
	slices.Sort(policies)
	names := strings.Join(slices.Compact(policies), ",")
	if len(refusals) == 0 {
		answer.audit("policies", names)
		answer.audit("decision", "allowed")
		if len(soft) > 0 {
			answer.audit("reasons", strings.Join(soft, ","))
			return answer, "warned", cached
		}
		return answer, "allowed", cached
	}
	answer = w.deny(answer, mode, names, refusals, texts...)
	return answer, answer.AuditAnnotations["decision"], cached
}

// deny writes a refusal as the mode has it.
func (w *Webhook) deny(answer *response, mode Mode, policies string, refusals []finding, texts ...string) *response {
	var codes []string
	retry := true
	for _, f := range refusals {
		codes = append(codes, f.codes...)
		retry = retry && f.retry
	}
	slices.Sort(codes)
	codes = slices.Compact(codes)
	answer.audit("policies", policies)
	answer.audit("reasons", strings.Join(codes, ","))
	switch mode {
	case Warn:
		answer.audit("decision", "warned")
		for _, text := range texts {
			answer.warn(text)
		}
	case Audit:
		answer.audit("decision", "audited")
	default:
		answer.audit("decision", "denied")
		answer.Allowed = false
		answer.Status = &status{Code: http.StatusForbidden, Reason: "Forbidden", Message: shorten(strings.Join(texts, "; "), maxMessage)}
		if retry {
			answer.Status.Code, answer.Status.Reason = http.StatusServiceUnavailable, "ServiceUnavailable"
		}
		if slices.Contains(codes, "image/deadline") && retry {
			answer.Status.Code, answer.Status.Reason = http.StatusGatewayTimeout, "Timeout"
		}
	}
	return answer
}

func (r *response) warn(text string) {
	size := 0
	for _, w := range r.Warnings {
		size += len(w)
	}
	text = shorten(strings.Join(strings.Fields(text), " "), maxWarning)
	if text != "" && size+len(text) <= maxWarnings && !slices.Contains(r.Warnings, text) {
		r.Warnings = append(r.Warnings, text)
	}
}

func (r *response) audit(key, value string) {
	if value == "" {
		return
	}
	if r.AuditAnnotations == nil {
		r.AuditAnnotations = map[string]string{}
	}
	r.AuditAnnotations[key] = shorten(value, maxAnnotation)
}

// look returns what a review is about: the images to judge and the mode in which. No images is an exempt request.
func (w *Webhook) look(r *request) (*Workload, []use, Mode, error) {
	if r.Operation != "CREATE" && r.Operation != "UPDATE" || r.SubResource == "status" || r.SubResource == "scale" {
		return nil, nil, Off, nil
	}
	mode, _ := w.modeOf(r.Namespace)
	if mode != Off && r.Kind.Kind != "Pod" {
		mode = softer(mode, w.opts.Templates)
	}
	if mode == Off {
		return nil, nil, Off, nil
	}
	if _, known := policy.PodSpec(r.Kind.Group, r.Kind.Kind); !known && r.SubResource != "" {
		return nil, nil, mode, nil // a Binding, an Eviction: they run nothing
	}
	if r.Object == nil {
		return nil, nil, mode, fault.New(fault.Denied, "object_missing", nil, "%s of %s without an object", r.Operation, r.Kind)
	}
	workload, err := parseWorkload(r.Kind, r.Object)
	if err != nil {
		return nil, nil, mode, err
	}
	workload.Namespace = r.Namespace
	if workload.ending && r.Operation == "UPDATE" { // what is created does not end: the API server takes such a mark away
		return workload, nil, mode, nil
	}
	var before *Workload
	if r.Operation == "UPDATE" && r.OldObject != nil {
		if before, err = parseWorkload(r.Kind, r.OldObject); err != nil {
			before = nil // it counts for nothing then
		}
	}
	return workload, workload.changed(before), mode, nil
}

// decideAll judges images side by side, equal ones once.
func (w *Webhook) decideAll(ctx context.Context, r *request, workload *Workload, uses []use) []decision {
	decisions := make([]decision, len(uses))
	first := map[string]int{}
	var group errgroup.Group
	group.SetLimit(imagesAtOnce)
	for i, u := range uses {
		decisions[i].use = u
		if _, twice := first[u.Image]; twice {
			continue
		}
		first[u.Image] = i
		group.Go(func() error {
			w.decide(ctx, r, workload, &decisions[i])
			return nil
		})
	}
	_ = group.Wait() // no function returns an error
	for i := range decisions {
		if at := first[decisions[i].use.Image]; at != i {
			u := decisions[i].use
			decisions[i] = decisions[at]
			decisions[i].use = u
		}
	}
	return decisions
}

func (w *Webhook) decide(ctx context.Context, r *request, workload *Workload, d *decision) {
	began := w.opts.Now()
	defer func() { d.took = w.opts.Now().Sub(began) }()
	if d.ref, d.err = parseReference(d.use.Image); d.err != nil {
		return
	}
	if d.ref.Digest == "" {
		d.err = w.unpinned(d.ref)
		return
	}
	decider, err := w.opts.Decider()
	if err != nil {
		d.err = fault.New(fault.Unavailable, "policies_missing", err, "no policies are loaded yet; try again")
		return
	}
	if w.opts.Preverified != nil && w.opts.Preverified().has(d.ref.Name, d.ref.Digest, decider.Version()) {
		w.metrics.preverified()
		d.listed = true
		image := oci.Image{Reference: d.use.Image, Name: d.ref.Name, Digest: d.ref.Digest}
		d.verdict = &policy.Verdict{Image: image, Allowed: true, Policies: []policy.Outcome{
			{Policy: "pre-verified", Mode: string(Enforce), Passed: true, Message: "verified from a carry set"},
		}}
		return
	}
	q := &question{
		decider: decider, workload: workload, sources: w.opts.Sources, reference: d.ref,
		subject: policy.Subject{
			Image:     oci.Image{Reference: d.use.Image, Name: d.ref.Name, Digest: d.ref.Digest},
			Namespace: r.Namespace, Group: r.Group, Version: r.Version, Resource: r.Resource, Labels: workload.labels,
			Kind: r.Kind.Kind, APIVersion: apiVersion(r.Kind), Metadata: workload.metadata, Spec: workload.spec,
		},
	}
	v, hit, err := w.verdicts.get(ctx, q)
	if d.cached, d.err = hit, err; err == nil {
		d.verdict = &v
	}
}

func apiVersion(k kind) string {
	if k.Group == "" {
		return k.Version
	}
	return k.Group + "/" + k.Version
}

// unpinned is the refusal of a tag: between the verdict and the pull it could come to mean another image.
func (w *Webhook) unpinned(ref reference) error {
	if err := w.resolver.why(ref); err != nil {
		return fault.New(fault.KindOf(err), "tag_unresolved", err, "must be an image digest, and the tag could not be resolved: %s (%s)", fault.Public(err), fault.ReasonOf(err))
	}
	return fault.New(fault.Denied, "digest_required", nil, "must be an image digest: nothing has resolved the tag")
}

// record leaves a line and counts.
func (w *Webhook) record(r *request, workload *Workload, d *decision, mode Mode, f finding, allowed, passed bool) {
	level := slog.LevelInfo
	if d.err != nil && fault.KindOf(d.err) == fault.Internal {
		level = slog.LevelError
	}
	attrs := []any{
		"uid", r.UID, "namespace", r.Namespace, "kind", r.Kind.String(), "name", workload.Name, "where", d.use.Where, "image", d.use.Image,
		"digest", d.ref.Digest, "allowed", allowed, "mode", mode, "policies", f.policies, "reasons", f.codes,
		"took", d.took, "cache", d.cached, "preverified", d.listed, "dryRun", r.DryRun,
	}
	if d.err != nil {
		attrs = append(attrs, "err", d.err)
	}
	w.opts.Logger.Log(context.Background(), level, "image", attrs...)
	switch {
	case d.verdict != nil:
		w.metrics.judged(d.ref.Name, d.verdict, passed)
	default:
		w.metrics.unjudged(f.codes[0])
	}
	// What is no pod deploys nothing by itself.
	if !r.DryRun && r.Kind.Kind == "Pod" && d.verdict != nil && !passed && (allowed || mode == Warn || mode == Audit) {
		w.deployed.Add(deployedKey(r.Namespace, d.ref), struct{}{})
		w.metrics.deployed(r.Namespace, d.ref.Name)
	}
}

func deployedKey(namespace string, ref reference) string {
	return namespace + " " + ref.Name + "@" + ref.Digest
}

// patchOperation is one of RFC 6902.
type patchOperation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value string `json:"value"`
}

// mutate answers a review with the digests of its tags. It refuses nothing: what has no digest is for validate.
func (w *Webhook) mutate(ctx context.Context, r *request) (answer *response, decided string) {
	answer = &response{UID: r.UID, Allowed: true}
	workload, uses, _, err := w.look(r)
	if err != nil || len(uses) == 0 {
		return answer, "exempt"
	}
	digests := make([]string, len(uses))
	errs := make([]error, len(uses))
	var group errgroup.Group
	group.SetLimit(imagesAtOnce)
	refs := make([]reference, len(uses))
	for i, u := range uses {
		if refs[i], errs[i] = parseReference(u.Image); errs[i] != nil || refs[i].Digest != "" {
			continue
		}
		group.Go(func() error {
			digests[i], errs[i] = w.resolver.digest(ctx, refs[i], w.opts.Sources, workload)
			return nil
		})
	}
	_ = group.Wait() // no function returns an error
	var patch []patchOperation
	for i, u := range uses {
		switch {
		case errs[i] != nil:
			answer.warn(fmt.Sprintf("%s: image %s has no digest: %s (%s)", u.Where, u.Image, fault.Public(errs[i]), fault.ReasonOf(errs[i])))
			w.opts.Logger.Info("tag", "uid", r.UID, "namespace", r.Namespace, "image", u.Image, "err", errs[i])
		case digests[i] != "":
			patch = append(patch, patchOperation{"replace", u.Path, refs[i].pinned(digests[i])})
		}
	}
	if len(patch) == 0 {
		return answer, "allowed"
	}
	answer.Patch, err = json.Marshal(patch)
	if err != nil { // strings: cannot fail
		return &response{UID: r.UID, Allowed: true}, "allowed"
	}
	answer.PatchType = "JSONPatch"
	return answer, "allowed"
}

// timeout returns how long an answer may take: the API server says how long it waits in ?timeout=.
func (w *Webhook) timeout(r *http.Request) (time.Duration, error) {
	limit := w.opts.Timeout
	if text := r.URL.Query().Get("timeout"); text != "" {
		asked, err := time.ParseDuration(text)
		if err != nil || asked <= 0 {
			return 0, errors.New("timeout is not a duration")
		}
		limit = min(limit, asked)
	}
	return max(limit-reserve, leastTime), nil
}
