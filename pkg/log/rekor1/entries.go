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
	Attestation    *attestation `json:"attestation,omitempty"` // reads only
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
func (s *shard) logEntry(ctx context.Context, leaf log.Leaf, cp *log.Checkpoint) (map[string]logEntry, error) {
	hashes, err := s.log.InclusionProof(ctx, leaf.Index, cp.Size)
	if err != nil {
		return nil, err
	}
	virtual := s.first + leaf.Index
	set, err := s.log.SignSET(ctx, virtual, leaf.Data, leaf.IntegratedUnix)
	if err != nil {
		return nil, err
	}
	return map[string]logEntry{s.entryID(leaf.LeafHash): {
		Body: leaf.Data, IntegratedTime: leaf.IntegratedUnix, LogID: s.logID, LogIndex: virtual,
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

// at returns the entry at a virtual index, or fault.NotFound.
func (h *Handler) at(ctx context.Context, virtual uint64) (map[string]logEntry, error) {
	s := h.shards.Load().resolve(virtual)
	return s.at(ctx, virtual-s.first)
}

// at returns the entry at index of the shard's tree, or fault.NotFound.
func (s *shard) at(ctx context.Context, index uint64) (map[string]logEntry, error) {
	cp := s.log.Checkpoint()
	if index >= cp.Size {
		s.log.Refresh(ctx)
		cp = s.log.Checkpoint()
	}
	if index >= cp.Size {
		return nil, fault.New(fault.NotFound, "index_beyond_tree", nil, "index %d is beyond the tree", index)
	}
	leaf, err := s.log.Leaf(ctx, index)
	if err != nil {
		return nil, err
	}
	return s.logEntry(ctx, leaf, cp)
}

// leaf returns the entry with this leaf hash, or fault.NotFound.
func (s *shard) leaf(ctx context.Context, leafHash [32]byte) (map[string]logEntry, error) {
	index, err := s.log.IndexOf(ctx, leafHash)
	if err != nil {
		return nil, err
	}
	return s.at(ctx, index)
}

// named returns the entries that an ID names: one in the tree of an entry ID, or those with the UUID, of the
// active tree first and then of the newest, at most max. None is fault.NotFound.
func (h *Handler) named(ctx context.Context, id string, max int) ([]map[string]logEntry, error) {
	set := h.shards.Load()
	leafHash, tree, err := parseID(id)
	if err != nil {
		return nil, err
	}
	where := set.newestFirst()
	if tree != 0 {
		s := set.byTree(tree)
		if s == nil {
			return nil, fault.New(fault.NotFound, "tree_unknown", nil, "no log range found for tree ID %d", tree)
		}
		where = []*shard{s}
	}
	var found []map[string]logEntry
	for _, s := range where {
		answer, err := s.leaf(ctx, leafHash)
		if fault.KindOf(err) == fault.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		if found = append(found, answer); len(found) == max {
			break
		}
	}
	if len(found) == 0 {
		return nil, fault.New(fault.NotFound, "leaf_unknown", nil, "no leaf has this hash")
	}
	return found, nil
}

// parseID returns the leaf hash in a UUID (64 hex digits), and in an entry ID (80) also the tree's ID; 0 stands for none.
func parseID(id string) (leafHash [32]byte, tree int64, err error) {
	uuid := id
	if len(id) == 80 {
		uuid = id[16:]
	}
	raw, err := hex.DecodeString(uuid)
	if err != nil || len(raw) != len(leafHash) {
		return leafHash, 0, fault.New(fault.Invalid, "bad_uuid", err, "invalid entryID %s", id)
	}
	copy(leafHash[:], raw)
	if len(id) == 80 {
		if tree, err = strconv.ParseInt(id[:16], 16, 64); err != nil || tree == 0 {
			return leafHash, 0, fault.New(fault.Invalid, "bad_tree_id", err, "invalid entryID %s: %s is not a valid TreeID", id, id[:16])
		}
	}
	return leafHash, tree, nil
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
	h.attach(r.Context(), answer)
	return writeJSON(w, http.StatusOK, answer)
}

// entryByUUID serves GET /api/v1/log/entries/{entryUUID}.
func (h *Handler) entryByUUID(w http.ResponseWriter, r *http.Request) error {
	id := chi.URLParam(r, "entryUUID")
	if !isID(id) {
		return schema(codePattern, "entryUUID in path should match '%s'", idPattern)
	}
	found, err := h.named(r.Context(), id, 1)
	if err != nil {
		return err
	}
	h.attach(r.Context(), found[0])
	return writeJSON(w, http.StatusOK, found[0])
}

const idPattern = "^([0-9a-fA-F]{64}|[0-9a-fA-F]{80})$"

// retrieveEntries serves POST /api/v1/log/entries/retrieve: entries by ID, by index, or by the
// submission that would make them. A UUID or a submission that several shards hold is answered from each, as
// upstream does. What is not there is left out.
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
	collect := func(answers []map[string]logEntry, err error) error {
		if fault.KindOf(err) == fault.NotFound {
			return nil
		}
		found = append(found, answers...)
		return err
	}
	for _, id := range ids {
		if err := collect(h.named(r.Context(), id, maxRetrieve)); err != nil {
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
		if err := collect(h.named(r.Context(), hex.EncodeToString(e.LeafHash[:]), maxRetrieve)); err != nil {
			return err
		}
	}
	for _, index := range indexes {
		answer, err := h.at(r.Context(), index)
		if err := collect([]map[string]logEntry{answer}, err); err != nil {
			return err
		}
	}
	h.attach(r.Context(), found...)
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
