package ct

import (
	"errors"
	"net/http"
	"strings"

	"github.com/transparency-dev/tessera/api/layout"

	"github.com/attestry/attestry/internal/fault"
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

// checkpoint serves the newest signed checkpoint.
func (h *Handler) checkpoint(w http.ResponseWriter, r *http.Request) error {
	checkpoint := h.log.Checkpoint()
	if checkpoint == nil {
		return fault.New(fault.Unavailable, "no_checkpoint", nil, "the log has not signed a checkpoint yet")
	}
	return write(w, "text/plain; charset=utf-8", cacheNever, checkpoint.Note)
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
