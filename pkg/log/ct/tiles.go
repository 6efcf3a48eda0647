package ct

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/transparency-dev/tessera/api/layout"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
)

// tilePath is what follows /tile/ (c2sp.org/static-ct-api, "Merkle Tree" and "Log Entries").
type tilePath struct {
	data  bool // tile/data: entries, not hashes
	level uint64
	index uint64
	width int // 1 to 255 of a partial tile, 0 of a full one
}

// parseTilePath reads "<L>/<N>[.p/<W>]" or "data/<N>[.p/<W>]". N comes in groups of three digits
// as x001/x234/067. Only the one canonical spelling is taken, so that caches hold a tile once.
func parseTilePath(path string) (tilePath, error) {
	level, rest, ok := strings.Cut(path, "/")
	if !ok || len(path) > 128 {
		return tilePath{}, errors.New("not a tile path")
	}
	var t tilePath
	var err error
	if t.data = level == "data"; !t.data {
		if t.level, err = layout.ParseTileLevel(level); err != nil {
			return tilePath{}, err
		}
	}
	index, width, err := layout.ParseTileIndexPartial(rest)
	if err != nil {
		return tilePath{}, err
	}
	t.index, t.width = index, int(width)
	canonical := layout.TilePath(t.level, index, width)
	if t.data {
		canonical = "tile/data/" + layout.NWithSuffix(0, index, width)
	}
	if canonical != "tile/"+path {
		return tilePath{}, errors.New("not the canonical spelling of a tile path")
	}
	return t, nil
}

// tile serves Merkle and data tiles of the signed tree.
func (h *Handler) tile(t tilePath) endpoint {
	return func(w http.ResponseWriter, r *http.Request) error {
		var content []byte
		var err error
		if t.data {
			content, err = h.log.Bundle(r.Context(), t.index, t.width)
		} else {
			content, err = h.log.Tile(r.Context(), t.level, t.index, t.width)
		}
		if err != nil {
			return err
		}
		return write(w, "application/octet-stream", cacheForever, content)
	}
}

// checkpoint serves the newest signed checkpoint. Its time must lie within the log's maximum merge delay
// also when nobody adds anything (RFC 6962, section 3), so it carries the tree head of get-sth.
func (h *Handler) checkpoint(w http.ResponseWriter, r *http.Request) error {
	if h.log.Checkpoint() == nil {
		return fault.New(fault.Unavailable, "no_checkpoint", nil, "the log has not signed a checkpoint yet")
	}
	head, err := h.head(r.Context())
	checkpoint := h.log.Checkpoint()
	note := checkpoint.Note
	switch {
	case err != nil: // the older one is right, too, and better than none
		h.logger.Warn("ct checkpoint could not be signed anew", "size", checkpoint.Size, "err", err)
	case head.Size == checkpoint.Size: // else the tree has just grown, and the checkpoint is new
		if note, err = renew(checkpoint, head); err != nil {
			return err
		}
	}
	return write(w, "text/plain; charset=utf-8", cacheNever, note)
}

// renew puts head's signature into the checkpoint of the same tree: what stands in a checkpoint's own
// signature line is key hash (4), timestamp (8), and the signature of the tree head
// (c2sp.org/static-ct-api, "Checkpoints"). Lines behind it, cosignatures, sign the text, which stays.
func renew(checkpoint *log.Checkpoint, head log.TreeHead) ([]byte, error) {
	text, signatures, ok := strings.Cut(string(checkpoint.Note), "\n\n")
	own, others, _ := strings.Cut(signatures, "\n")
	space := strings.LastIndexByte(own, ' ')
	if !ok || space < 0 || head.Root != checkpoint.Root {
		return nil, fmt.Errorf("the checkpoint of size %d is not a note about the tree head's root %x", checkpoint.Size, head.Root)
	}
	blob, err := base64.StdEncoding.DecodeString(own[space+1:])
	if err != nil || len(blob) < 4 {
		return nil, fmt.Errorf("the checkpoint of size %d has the signature line %q: %w", checkpoint.Size, own, err)
	}
	blob = binary.BigEndian.AppendUint64(blob[:4:4], head.TimestampMillis)
	blob = append(blob, head.Signature...)
	return []byte(text + "\n\n" + own[:space+1] + base64.StdEncoding.EncodeToString(blob) + "\n" + others), nil
}

// noStatic answers for the paths of static-ct in a log whose leaves do not name their index.
func (h *Handler) noStatic(http.ResponseWriter, *http.Request) error {
	return fault.New(fault.NotFound, "rfc6962_only", nil, "the SCTs of this log have no extensions, so it has no static-ct API: read it from ct/v1/get-sth on")
}

// issuer serves issuer/<lower-case hex of SHA-256>, the DER of a certificate in logged chains.
func (h *Handler) issuer(fingerprint [32]byte) endpoint {
	return func(w http.ResponseWriter, r *http.Request) error {
		der, err := h.issuers.get(fingerprint)
		if err != nil {
			return err
		}
		return write(w, "application/pkix-cert", cacheForever, der)
	}
}
