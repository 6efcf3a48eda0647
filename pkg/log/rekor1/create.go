package rekor1

import (
	"fmt"
	"net/http"
	"strings"

	"golang.org/x/mod/semver"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/entry"
	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

const entriesPath = "/api/v1/log/entries"

// createEntry serves POST /api/v1/log/entries. It answers once the entry stands in a signed tree;
// a duplicate in the active shard gets 409 when the entry that is there can be read. Without an active
// shard the answer is 405 in the API's shape: the operation is gone for good, where 501 is one switched off.
func (h *Handler) createEntry(w http.ResponseWriter, r *http.Request) error {
	if h.shards.Load().frozen {
		return errFrozen
	}
	proposed, err := h.readJSON(w, r, "proposedEntry")
	if err != nil {
		return err
	}
	if err := checkProposal(proposed, "proposedEntry", ""); err != nil {
		return err
	}
	var e entry.Entry
	if busy := h.verify.Do(r.Context(), func() { e, err = entry.Propose(h.kinds, proposed) }); busy != nil {
		return busy
	}
	if err != nil {
		if kind := fault.KindOf(err); kind != fault.Internal {
			err = fault.New(kind, fault.ReasonOf(err), err, "error processing entry: %s", fault.Public(err))
		}
		return err
	}
	if err := h.keep(r.Context(), e); err != nil {
		return err
	}
	s, receipt, err := h.add(r.Context(), log.Submission{Identity: e.LeafHash, Data: e.Body, Keys: e.SubmittedKeys})
	if err != nil {
		return err
	}
	id := s.entryID(e.LeafHash)
	if receipt.Duplicate {
		return conflictError{id}
	}
	h.metrics.added()
	leaf := log.Leaf{Index: receipt.Index, Data: e.Body, LeafHash: e.LeafHash, IntegratedUnix: receipt.IntegratedUnix}
	answer, err := s.logEntry(r.Context(), leaf, receipt.Checkpoint)
	if err != nil {
		return err
	}
	// sigstore-go up to 1.4 (cosign 3) looks the entry up in the answer by the ETag, which must not be
	// quoted; sigstore-java appends Location to its base URL, so it is a path.
	w.Header().Set("ETag", id)
	w.Header().Set("Location", entriesPath+"/"+id)
	h.logger.InfoContext(r.Context(), "rekor v1 entry added", "index", s.first+receipt.Index, "treeID", s.treeID, "kind", e.Kind, "version", e.Version, "leafHash", fmt.Sprintf("%x", e.LeafHash))
	return writeJSON(w, http.StatusCreated, answer)
}

// checkProposal checks the members that all kinds share as upstream's schema does; at names the
// proposal inside an array, as in "entries.0.".
func checkProposal(v ijson.Value, name, at string) error {
	kind := v.Get("kind")
	switch {
	case v.Kind != ijson.Object:
		return parseError(name, fmt.Errorf("a proposed entry is not a JSON object"))
	case kind.Given() && kind.Kind != ijson.String:
		return parseError(name, fmt.Errorf("kind is not a string"))
	case kind.Text() == "":
		return schema(codeRequired, "kind in body is required")
	case !entry.KnownKind(kind.Text()):
		return parseError(name, fmt.Errorf("invalid kind value: %q", kind.Text()))
	}
	switch version := v.Get("apiVersion"); {
	case !version.Given():
		return schema(codeRequired, "%sapiVersion in body is required", at)
	case version.Kind != ijson.String || !isVersion(version.Text()):
		return schema(codePattern, "%sapiVersion in body should match a semantic version", at)
	}
	switch spec := v.Get("spec"); {
	case !spec.Given():
		return schema(codeRequired, "%sspec in body is required", at)
	case spec.Kind != ijson.Object:
		return schema(codeType, "%sspec in body must be of type object", at)
	}
	return nil
}

func isVersion(s string) bool {
	core := s
	if i := strings.IndexAny(s, "-+"); i >= 0 {
		core = s[:i]
	}
	return semver.IsValid("v"+s) && strings.Count(core, ".") == 2
}
