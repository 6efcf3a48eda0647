package admission

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/attestry/attestry/internal/fault"
)

// The only version of the AdmissionReview that is spoken, Kubernetes 1.16 and later.
const (
	reviewVersion = "admission.k8s.io/v1"
	reviewKind    = "AdmissionReview"
)

// Bounds of a review.
const (
	maxReview = 7 << 20 // bytes: an object and the one before it, of 3 MiB each as etcd and the API server bound them, and what is around them
	maxUID    = 128
	maxName   = 1 << 10 // bytes of any name that is read
)

// kind names a type of objects.
type kind struct{ Group, Version, Kind string }

func (k kind) String() string {
	if k.Group == "" {
		return k.Kind
	}
	return k.Kind + "." + k.Group
}

// request is what is read of an AdmissionReview's request. Everything else in it, members of later versions too, is left alone.
type request struct {
	UID         string
	Kind        kind   // of Object
	Group       string // of the resource
	Version     string
	Resource    string // lower-case plural
	SubResource string
	Namespace   string
	Name        string // empty while generateName is
	Operation   string // CREATE, UPDATE, DELETE or CONNECT
	DryRun      bool
	Object      json.RawMessage // nil for none
	OldObject   json.RawMessage
}

// parseReview decodes an AdmissionReview. Members are compared exactly, as Kubernetes does, and one that is there twice on
// the way to what is read is refused: another parser might see the other. Errors are fault.Invalid.
func parseReview(body []byte) (*request, error) {
	r := &request{}
	err := func() error {
		review, err := members(body)
		if err != nil {
			return err
		}
		var version, kindName string
		if err := review.texts(text{"apiVersion", &version}, text{"kind", &kindName}); err != nil {
			return err
		}
		if version != reviewVersion || kindName != reviewKind {
			return fmt.Errorf("%s %q is not %s %s", kindName, version, reviewKind, reviewVersion)
		}
		request, err := review.object("request")
		if err != nil {
			return err
		}
		if err := request.texts(text{"uid", &r.UID}, text{"operation", &r.Operation}, text{"namespace", &r.Namespace},
			text{"name", &r.Name}, text{"subResource", &r.SubResource}); err != nil {
			return err
		}
		of, err := request.object("kind")
		if err != nil {
			return err
		}
		if err := of.texts(text{"group", &r.Kind.Group}, text{"version", &r.Kind.Version}, text{"kind", &r.Kind.Kind}); err != nil {
			return err
		}
		resource, err := request.object("resource")
		if err != nil {
			return err
		}
		if err := resource.texts(text{"group", &r.Group}, text{"version", &r.Version}, text{"resource", &r.Resource}); err != nil {
			return err
		}
		if dry := request["dryRun"]; given(dry) {
			if err := json.Unmarshal(dry, &r.DryRun); err != nil {
				return errors.New("dryRun is neither true nor false")
			}
		}
		for name, to := range map[string]*json.RawMessage{"object": &r.Object, "oldObject": &r.OldObject} {
			if raw := request[name]; given(raw) {
				*to = raw
			}
		}
		switch {
		case r.UID == "" || len(r.UID) > maxUID:
			return fmt.Errorf("request.uid has %d bytes, not 1 to %d", len(r.UID), maxUID)
		case r.Kind.Kind == "" || r.Resource == "":
			return errors.New("request.kind and request.resource are needed")
		}
		switch r.Operation {
		case "CREATE", "UPDATE", "DELETE", "CONNECT":
			return nil
		}
		return fmt.Errorf("request.operation %q is none of CREATE, UPDATE, DELETE, CONNECT", r.Operation)
	}()
	if err != nil {
		return nil, fault.New(fault.Invalid, "review_malformed", nil, "not an AdmissionReview: %v", err)
	}
	return r, nil
}

// response is the answer to a request, in its JSON form.
type response struct {
	UID              string            `json:"uid"`
	Allowed          bool              `json:"allowed"`
	Status           *status           `json:"status,omitempty"`
	Patch            []byte            `json:"patch,omitempty"`
	PatchType        string            `json:"patchType,omitempty"`
	AuditAnnotations map[string]string `json:"auditAnnotations,omitempty"`
	Warnings         []string          `json:"warnings,omitempty"`
}

// status is metav1.Status as far as the API server hands it on.
type status struct {
	Code    int    `json:"code"`
	Reason  string `json:"reason"` // of Kubernetes' list
	Message string `json:"message"`
}

// review wraps the answer.
func (r *response) review() ([]byte, error) {
	return json.Marshal(struct {
		APIVersion string    `json:"apiVersion"`
		Kind       string    `json:"kind"`
		Response   *response `json:"response"`
	}{reviewVersion, reviewKind, r})
}

// object holds the members of one JSON object, not decoded further.
type object map[string]json.RawMessage

// members decodes one level of an object: exact names, none twice, nothing behind it.
func members(data []byte) (object, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("invalid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if first, err := d.Token(); err != nil || first != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	all := object{}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("invalid JSON: %w", err)
		}
		name := key.(string) // what stands before a value in an object
		if _, twice := all[name]; twice {
			return nil, fmt.Errorf("member %q appears twice", name)
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, fmt.Errorf("invalid JSON: %w", err)
		}
		all[name] = raw
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("invalid JSON: %w", err)
	}
	if d.More() || len(bytes.TrimSpace(data[d.InputOffset():])) > 0 {
		return nil, errors.New("data after the JSON object")
	}
	return all, nil
}

func given(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }

// object returns a member that is an object; one that is absent or null is empty.
func (o object) object(name string) (object, error) {
	raw := o[name]
	if !given(raw) {
		return object{}, nil
	}
	inner, err := members(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return inner, nil
}

// list returns a member that is a list of at most limit values; one that is absent or null has none.
func (o object) list(name string, limit int) ([]json.RawMessage, error) {
	raw := o[name]
	if !given(raw) {
		return nil, nil
	}
	var all []json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("%s is not a list", name)
	}
	if len(all) > limit {
		return nil, fmt.Errorf("%s has %d members, at most %d are looked at", name, len(all), limit)
	}
	return all, nil
}

type text struct {
	name string
	to   *string
}

// texts decodes members that are strings; one that is absent or null is empty.
func (o object) texts(wanted ...text) error {
	for _, t := range wanted {
		raw := o[t.name]
		if !given(raw) {
			continue
		}
		if err := json.Unmarshal(raw, t.to); err != nil {
			return fmt.Errorf("%s is not a string", t.name)
		}
		if len(*t.to) > maxName {
			return fmt.Errorf("%s has %d bytes, at most %d are read", t.name, len(*t.to), maxName)
		}
	}
	return nil
}
