package ct

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
)

// Limits of one get-entries answer; RFC 6962, section 4.6, lets a log send fewer entries than asked for.
const (
	maxEntries      = 1000
	maxEntriesBytes = 8 << 20 // before base64; at least one entry is always sent
)

func encodeBase64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// getSTH serves RFC 6962, section 4.3.
func (h *Handler) getSTH(w http.ResponseWriter, r *http.Request) error {
	head, err := h.head(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, cacheNever, struct {
		TreeSize  uint64 `json:"tree_size"`
		Timestamp uint64 `json:"timestamp"`
		Root      []byte `json:"sha256_root_hash"`
		Signature []byte `json:"tree_head_signature"` // TLS DigitallySigned
	}{head.Size, head.TimestampMillis, head.Root[:], head.Signature})
}

// head returns the newest tree head once the tree can be read up to it.
func (h *Handler) head(ctx context.Context) (log.TreeHead, error) {
	head, err := h.log.TreeHead(ctx)
	if err == nil && head.Size > h.size() {
		err = h.log.Wait(ctx, head.Size-1)
	}
	return head, err
}

// getSTHConsistency serves RFC 6962, section 4.4.
func (h *Handler) getSTHConsistency(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	first, err := parameter(query, "first")
	if err != nil {
		return err
	}
	second, err := parameter(query, "second")
	if err != nil {
		return err
	}
	if first > second {
		return invalid("bad_range", "first %d is after second %d", first, second)
	}
	if size := h.size(); second > size {
		return invalid("beyond_tree", "second %d is beyond the tree of size %d", second, size)
	}
	proof := [][]byte{}
	if first > 0 && first < second {
		if proof, err = h.log.ConsistencyProof(r.Context(), first, second); err != nil {
			return err
		}
	}
	return writeJSON(w, cacheComplete, struct {
		Consistency [][]byte `json:"consistency"`
	}{neverNull(proof)})
}

// getProofByHash serves RFC 6962, section 4.5.
func (h *Handler) getProofByHash(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	hash, err := base64.StdEncoding.DecodeString(query.Get("hash"))
	if err != nil || len(hash) != 32 {
		return invalid("bad_parameter", "hash is not the base64 of 32 bytes")
	}
	treeSize, err := parameter(query, "tree_size")
	if err != nil {
		return err
	}
	if treeSize == 0 {
		return invalid("bad_parameter", "tree_size must be 1 or more")
	}
	if size := h.size(); treeSize > size {
		return fault.New(fault.NotFound, "beyond_tree", nil, "tree_size %d is beyond the tree of size %d", treeSize, size)
	}
	index, err := h.log.IndexOf(r.Context(), [32]byte(hash))
	if err != nil {
		return err
	}
	if index >= treeSize {
		return fault.New(fault.NotFound, "leaf_unknown", nil, "the tree of size %d has no leaf with this hash", treeSize)
	}
	proof, err := h.log.InclusionProof(r.Context(), index, treeSize)
	if err != nil {
		return err
	}
	return writeJSON(w, cacheComplete, struct {
		LeafIndex uint64   `json:"leaf_index"`
		AuditPath [][]byte `json:"audit_path"`
	}{index, neverNull(proof)})
}

// entryJSON is an element of a get-entries answer.
type entryJSON struct {
	LeafInput []byte `json:"leaf_input"` // MerkleTreeLeaf
	ExtraData []byte `json:"extra_data"`
}

// getEntries serves RFC 6962, section 4.6. start and end are inclusive; the answer may be shorter.
func (h *Handler) getEntries(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	start, err := parameter(query, "start")
	if err != nil {
		return err
	}
	end, err := parameter(query, "end")
	if err != nil {
		return err
	}
	if start > end {
		return invalid("bad_range", "start %d is after end %d", start, end)
	}
	if err := h.callers.Spend(r, 1); err != nil {
		return err
	}
	size := h.size()
	if start >= size {
		return invalid("beyond_tree", "start %d is beyond the tree of size %d", start, size)
	}
	entries, err := h.entries(r.Context(), start, min(end, size-1, start+maxEntries-1))
	if err != nil {
		return err
	}
	cache := cacheComplete
	if uint64(len(entries)) <= end-start {
		cache = cachePartial // less than was asked for: a larger tree or another limit will have more
	}
	return writeJSON(w, cache, struct {
		Entries []entryJSON `json:"entries"`
	}{entries})
}

// entries reads from start up to end, both inclusive and inside the tree, within maxEntriesBytes.
func (h *Handler) entries(ctx context.Context, start, end uint64) ([]entryJSON, error) {
	var entries []entryJSON
	bytes := 0
	for start <= end {
		leaves, err := h.log.Leaves(ctx, start, int(min(end-start+1, 256)))
		if err != nil {
			return nil, err
		}
		if len(leaves) == 0 {
			return nil, fault.New(fault.Unavailable, "leaves_missing", nil, "the log could not read its leaves; try again")
		}
		for _, leaf := range leaves {
			entry, err := h.entry(leaf)
			if err != nil {
				return nil, err
			}
			bytes += len(entry.LeafInput) + len(entry.ExtraData)
			if bytes > maxEntriesBytes && len(entries) > 0 {
				return entries, nil
			}
			entries = append(entries, entry)
		}
		start += uint64(len(leaves))
	}
	return entries, nil
}

// entry rebuilds the RFC 6962 form from the leaf and the stored issuers.
func (h *Handler) entry(stored log.Leaf) (entryJSON, error) {
	leaf, err := h.parseLeaf(stored)
	if err != nil {
		return entryJSON{}, internal("reading leaf", stored.Index, err)
	}
	extra, err := leaf.extraData(h.issuers.get)
	if err != nil {
		return entryJSON{}, internal("reading the issuers of leaf", stored.Index, err)
	}
	return entryJSON{leaf.leafInput(), extra}, nil
}

// parseLeaf reads a leaf of either kind of log.
func (h *Handler) parseLeaf(stored log.Leaf) (tileLeaf, error) {
	if h.plain {
		return parsePlainLeaf(stored.Data, stored.Extra)
	}
	return parseTileLeaf(stored.Data)
}

// getEntryAndProof serves RFC 6962, section 4.8.
func (h *Handler) getEntryAndProof(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	index, err := parameter(query, "leaf_index")
	if err != nil {
		return err
	}
	treeSize, err := parameter(query, "tree_size")
	if err != nil {
		return err
	}
	if index >= treeSize {
		return invalid("bad_range", "leaf_index %d is not in a tree of size %d", index, treeSize)
	}
	if size := h.size(); treeSize > size {
		return invalid("beyond_tree", "tree_size %d is beyond the tree of size %d", treeSize, size)
	}
	stored, err := h.log.Leaf(r.Context(), index)
	if err != nil {
		return err
	}
	entry, err := h.entry(stored)
	if err != nil {
		return err
	}
	proof, err := h.log.InclusionProof(r.Context(), index, treeSize)
	if err != nil {
		return err
	}
	return writeJSON(w, cacheComplete, struct {
		entryJSON
		AuditPath [][]byte `json:"audit_path"`
	}{entry, neverNull(proof)})
}

// getRoots serves RFC 6962, section 4.7.
func (h *Handler) getRoots(w http.ResponseWriter, r *http.Request) error {
	accepted := h.verifier.Load().roots
	roots := make([][]byte, 0, len(accepted))
	for _, root := range accepted {
		roots = append(roots, root.Raw)
	}
	return writeJSON(w, cachePartial, struct {
		Certificates [][]byte `json:"certificates"`
	}{roots})
}

// size is the newest signed size; nothing beyond it is shown.
func (h *Handler) size() uint64 {
	if checkpoint := h.log.Checkpoint(); checkpoint != nil {
		return checkpoint.Size
	}
	return 0
}

// parameter reads a decimal number of the query.
func parameter(query url.Values, name string) (uint64, error) {
	n, err := strconv.ParseUint(query.Get(name), 10, 63)
	if err != nil {
		return 0, invalid("bad_parameter", "%s is missing or not a decimal number", name)
	}
	return n, nil
}

// neverNull makes an empty proof [] in JSON: clients refuse null.
func neverNull(proof [][]byte) [][]byte {
	if proof == nil {
		return [][]byte{}
	}
	return proof
}

func invalid(reason, format string, args ...any) error {
	return fault.New(fault.Invalid, reason, nil, format, args...)
}

// internal is for what our own data lacks: a cause of another kind, such as NotFound for an
// issuer file that is gone, must not be told to the reader as his mistake.
func internal(doing string, index uint64, cause error) error {
	return fault.New(fault.Internal, "damaged_log", fmt.Errorf("%s %d: %w", doing, index, cause), "internal error")
}
