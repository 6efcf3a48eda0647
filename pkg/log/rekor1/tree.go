package rekor1

import (
	"encoding/hex"
	"net/http"
	"strconv"

	"github.com/attestry/attestry/internal/fault"
)

// treeInfo describes one tree; the names are of InactiveShardLogInfo.
type treeInfo struct {
	RootHash       string `json:"rootHash"`
	SignedTreeHead string `json:"signedTreeHead"` // a checkpoint
	TreeID         string `json:"treeID"`         // decimal
	TreeSize       uint64 `json:"treeSize"`
}

// info describes the tree of the newest checkpoint, for a frozen one the same at each call.
func (s *shard) info() treeInfo {
	cp := s.log.Checkpoint()
	return treeInfo{hex.EncodeToString(cp.Root[:]), string(cp.Note), s.tree, cp.Size}
}

// logInfo serves GET /api/v1/log: the active shard, or the newest when all are frozen, and the inactive ones
// oldest first.
//
// rekor-cli keeps what it was shown, and takes a smaller tree for a rollback: so every server shows the newest.
func (h *Handler) logInfo(w http.ResponseWriter, r *http.Request) error {
	set := h.shards.Load()
	set.active().log.Refresh(r.Context())
	inactive := []treeInfo{}
	for _, s := range set.list[:len(set.list)-1] {
		inactive = append(inactive, s.info())
	}
	return writeJSON(w, http.StatusOK, struct {
		InactiveShards []treeInfo `json:"inactiveShards"`
		treeInfo
	}{inactive, set.active().info()})
}

// logProof serves GET /api/v1/log/proof: the consistency proof from firstSize to lastSize. Its
// rootHash is, as upstream's, that of the shard's newest tree; clients verify against checkpoints they hold.
func (h *Handler) logProof(w http.ResponseWriter, r *http.Request) error {
	first := uint64(1)
	var err error
	if r.URL.Query().Has("firstSize") {
		if first, err = queryInt(r, "firstSize", 1); err != nil {
			return err
		}
	}
	last, err := queryInt(r, "lastSize", 1)
	if err != nil {
		return err
	}
	tree, err := queryTree(r)
	if err != nil {
		return err
	}
	s := h.shards.Load().named(tree)
	if s == nil {
		return fault.New(fault.Invalid, "tree_unknown", nil, "no log range found for tree ID %s", tree)
	}
	cp := s.log.Checkpoint()
	if last > cp.Size {
		s.log.Refresh(r.Context())
		cp = s.log.Checkpoint()
	}
	switch {
	case first > last:
		return fault.New(fault.Invalid, "sizes_reversed", nil, "firstSize(%d) must be less than lastSize(%d)", first, last)
	case last > cp.Size:
		return fault.New(fault.Invalid, "size_beyond_tree", nil, "the tree size requested(%d) was greater than what is currently observable(%d)", last, cp.Size)
	}
	hashes, err := s.log.ConsistencyProof(r.Context(), first, last)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct {
		Hashes   []string `json:"hashes"`
		RootHash string   `json:"rootHash"`
	}{hexAll(hashes), hex.EncodeToString(cp.Root[:])})
}

// logPublicKey serves GET /api/v1/log/publicKey[?treeID=N].
func (h *Handler) logPublicKey(w http.ResponseWriter, r *http.Request) error {
	tree, err := queryTree(r)
	if err != nil {
		return err
	}
	s := h.shards.Load().named(tree)
	if s == nil {
		return fault.New(fault.Invalid, "tree_unknown", nil, "%s is not a valid tree ID and doesn't have an associated public key", tree)
	}
	write(w, "application/x-pem-file", http.StatusOK, s.publicKey)
	return nil
}

// queryInt returns a required integer of the query.
func queryInt(r *http.Request, name string, minimum uint64) (uint64, error) {
	values := r.URL.Query()[name]
	if len(values) == 0 || values[len(values)-1] == "" {
		return 0, schema(codeRequired, "%s in query is required", name)
	}
	n, err := strconv.ParseInt(values[len(values)-1], 10, 64)
	if err != nil {
		return 0, schema(codeType, "%s in query must be of type int64: %q", name, values[len(values)-1])
	}
	if n < int64(minimum) {
		return 0, schema(codeMinimum, "%s in query should be greater than or equal to %d", name, minimum)
	}
	return uint64(n), nil
}

// queryTree returns the treeID of the query, "" when there is none.
func queryTree(r *http.Request) (string, error) {
	tree := r.URL.Query().Get("treeID")
	for _, c := range tree {
		if c < '0' || c > '9' {
			return "", schema(codePattern, "treeID in query should match '^[0-9]+$'")
		}
	}
	return tree, nil
}
