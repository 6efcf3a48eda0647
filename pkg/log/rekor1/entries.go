package rekor1

import (
	"context"
	"encoding/hex"
	"net/http"
	"strconv"

	"github.com/go-chi/chi/v5"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/entry"
	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// maxRetrieve is how many entries one retrieve call may name.
const maxRetrieve = 10

// logEntry is Rekor v1's LogEntryAnon.
type logEntry struct {
	Body           []byte       `json:"body"`
	IntegratedTime int64        `json:"integratedTime"` // seconds
	LogID          string       `json:"logID"`          // hex SHA-256 of the DER public key
	LogIndex       uint64       `json:"logIndex"`       // across all shards
	Verification   verification `json:"verification"`
}

type verification struct {
	InclusionProof       inclusionProof `json:"inclusionProof"`
	SignedEntryTimestamp []byte         `json:"signedEntryTimestamp"`
}

// inclusionProof is of the tree that Checkpoint signs.
type inclusionProof struct {
	Checkpoint string   `json:"checkpoint"`
	Hashes     []string `json:"hashes"`   // leaf to root
	LogIndex   uint64   `json:"logIndex"` // in its tree
	RootHash   string   `json:"rootHash"`
	TreeSize   uint64   `json:"treeSize"`
}

// logEntry returns the leaf as {entryID: LogEntry}, proved in the tree of cp.
func (h *Handler) logEntry(ctx context.Context, leaf log.Leaf, cp *log.Checkpoint) (map[string]logEntry, error) {
	hashes, err := h.log.InclusionProof(ctx, leaf.Index, cp.Size)
	if err != nil {
		return nil, err
	}
	set, err := h.log.SignSET(ctx, leaf.Index, leaf.Data, leaf.IntegratedUnix)
	if err != nil {
		return nil, err
	}
	return map[string]logEntry{h.entryID(leaf.LeafHash): {
		Body: leaf.Data, IntegratedTime: leaf.IntegratedUnix, LogID: h.logID, LogIndex: leaf.Index,
		Verification: verification{
			InclusionProof: inclusionProof{
				Checkpoint: string(cp.Note), Hashes: hexAll(hashes), LogIndex: leaf.Index,
				RootHash: hex.EncodeToString(cp.Root[:]), TreeSize: cp.Size,
			},
			SignedEntryTimestamp: set,
		},
	}}, nil
}

func hexAll(hashes [][]byte) []string {
	out := make([]string, len(hashes))
	for i, hash := range hashes {
		out[i] = hex.EncodeToString(hash)
	}
	return out
}

// at returns the entry at index, or fault.NotFound.
func (h *Handler) at(ctx context.Context, index uint64) (map[string]logEntry, error) {
	cp := h.log.Checkpoint()
	if index >= cp.Size {
		return nil, fault.New(fault.NotFound, "index_beyond_tree", nil, "index %d is beyond the tree", index)
	}
	leaf, err := h.log.Leaf(ctx, index)
	if err != nil {
		return nil, err
	}
	return h.logEntry(ctx, leaf, cp)
}

// named returns the entry that a UUID or an entry ID names, or fault.NotFound.
func (h *Handler) named(ctx context.Context, id string) (map[string]logEntry, error) {
	leafHash, err := h.parseID(id)
	if err != nil {
		return nil, err
	}
	index, err := h.log.IndexOf(ctx, leafHash)
	if err != nil {
		return nil, err
	}
	return h.at(ctx, index)
}

// parseID returns the leaf hash in a UUID (64 hex digits) or an entry ID (80) of this tree.
func (h *Handler) parseID(id string) ([32]byte, error) {
	var leafHash [32]byte
	uuid := id
	if len(id) == 80 {
		uuid = id[16:]
	}
	raw, err := hex.DecodeString(uuid)
	if err != nil || len(raw) != len(leafHash) {
		return leafHash, fault.New(fault.Invalid, "bad_uuid", err, "invalid entryID %s", id)
	}
	copy(leafHash[:], raw)
	if len(id) == 80 {
		tree, err := strconv.ParseInt(id[:16], 16, 64)
		if err != nil || tree == 0 {
			return leafHash, fault.New(fault.Invalid, "bad_tree_id", err, "invalid entryID %s: %s is not a valid TreeID", id, id[:16])
		}
		if tree != h.treeID {
			return leafHash, fault.New(fault.NotFound, "tree_unknown", nil, "no log range found for tree ID %d", tree)
		}
	}
	return leafHash, nil
}

func isID(id string) bool {
	if len(id) != 64 && len(id) != 80 {
		return false
	}
	_, err := hex.DecodeString(id)
	return err == nil
}

// entryByIndex serves GET /api/v1/log/entries?logIndex=N.
func (h *Handler) entryByIndex(w http.ResponseWriter, r *http.Request) error {
	index, err := queryInt(r, "logIndex", 0)
	if err != nil {
		return err
	}
	answer, err := h.at(r.Context(), index)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, answer)
}

// entryByUUID serves GET /api/v1/log/entries/{entryUUID}.
func (h *Handler) entryByUUID(w http.ResponseWriter, r *http.Request) error {
	id := chi.URLParam(r, "entryUUID")
	if !isID(id) {
		return schema(codePattern, "entryUUID in path should match '%s'", idPattern)
	}
	answer, err := h.named(r.Context(), id)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, answer)
}

const idPattern = "^([0-9a-fA-F]{64}|[0-9a-fA-F]{80})$"

// retrieveEntries serves POST /api/v1/log/entries/retrieve: entries by ID, by index, or by the
// submission that would make them. What is not there is left out.
func (h *Handler) retrieveEntries(w http.ResponseWriter, r *http.Request) error {
	query, err := h.readJSON(w, r, "entry")
	if err != nil {
		return err
	}
	proposals, ids, indexes, err := parseRetrieve(query)
	if err != nil {
		return err
	}
	if len(proposals)+len(ids)+len(indexes) > maxRetrieve {
		return fault.New(fault.Unprocessable, "too_many_queries", nil, "more than max allowed %d entries in request", maxRetrieve)
	}
	if err := h.callers.Spend(r, len(proposals)); err != nil {
		return err
	}
	found := []map[string]logEntry{}
	collect := func(answer map[string]logEntry, err error) error {
		if err == nil {
			found = append(found, answer)
		} else if fault.KindOf(err) != fault.NotFound {
			return err
		}
		return nil
	}
	for _, id := range ids {
		if err := collect(h.named(r.Context(), id)); err != nil {
			return err
		}
	}
	for _, p := range proposals {
		var e entry.Entry
		var err error
		if busy := h.verify.Do(r.Context(), func() { e, err = entry.Propose(h.kinds, p) }); busy != nil {
			return busy
		}
		if err != nil {
			return err
		}
		if err := collect(h.named(r.Context(), hex.EncodeToString(e.LeafHash[:]))); err != nil {
			return err
		}
	}
	for _, index := range indexes {
		if err := collect(h.at(r.Context(), index)); err != nil {
			return err
		}
	}
	return writeJSON(w, http.StatusOK, found)
}

func parseRetrieve(query ijson.Value) (proposals []ijson.Value, ids []string, indexes []uint64, err error) {
	lists := map[string][]ijson.Value{}
	for _, name := range []string{"entries", "entryUUIDs", "logIndexes"} {
		if lists[name], err = retrieveList(query, name); err != nil {
			return nil, nil, nil, err
		}
	}
	for i, p := range lists["entries"] {
		if err := checkProposal(p, "entry", "entries."+strconv.Itoa(i)+"."); err != nil {
			return nil, nil, nil, err
		}
	}
	for i, v := range lists["entryUUIDs"] {
		if v.Kind != ijson.String || !isID(v.Text()) {
			return nil, nil, nil, schema(codePattern, "entryUUIDs.%d in body should match '%s'", i, idPattern)
		}
		ids = append(ids, v.Text())
	}
	for i, v := range lists["logIndexes"] {
		n, err := strconv.ParseInt(v.Text(), 10, 64)
		if v.Kind != ijson.Number || err != nil {
			return nil, nil, nil, schema(codeType, "logIndexes.%d in body must be of type int64", i)
		}
		if n < 0 {
			return nil, nil, nil, schema(codeMinimum, "logIndexes.%d in body should be greater than or equal to 0", i)
		}
		indexes = append(indexes, uint64(n))
	}
	return lists["entries"], ids, indexes, nil
}

func retrieveList(query ijson.Value, name string) ([]ijson.Value, error) {
	list := query.Get(name)
	switch items := list.Items(); {
	case !list.Given():
		return nil, nil
	case list.Kind != ijson.Array:
		return nil, schema(codeType, "%s in body must be of type array", name)
	case len(items) == 0:
		return nil, schema(codeMinItems, "%s in body should have at least 1 items", name)
	case len(items) > maxRetrieve:
		return nil, schema(codeMaxItems, "%s in body should have at most %d items", name, maxRetrieve)
	default:
		return items, nil
	}
}
