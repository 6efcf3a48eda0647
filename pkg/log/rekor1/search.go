package rekor1

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/mail"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log/entry"
	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// maxFound is how many entries a search may find. The API has no pages and no way to say that
// there are more, so a search that finds more is an error and not a part of the answer.
const maxFound = 10_000

const maxSubject = 512

// indexWait is how long a search waits for the index to reach the newest tree. Without it, cosign 2 and rekor-cli do not
// find what was acknowledged a moment ago. An index that is built anew takes longer: then what it has counts.
const indexWait = time.Second

// noSearchError says that this server has no search index.
type noSearchError struct{}

func (noSearchError) Error() string { return "Search Index API not enabled in this Rekor instance" }

// searchIndex serves POST /api/v1/index/retrieve: the IDs of entries that match one ("or") or
// all ("and") of hash, email, subject and publicKey, in all shards.
func (h *Handler) searchIndex(w http.ResponseWriter, r *http.Request) error {
	set := h.shards.Load()
	if set.active().index == nil {
		return noSearchError{}
	}
	query, err := h.readJSON(w, r, "query")
	if err != nil {
		return err
	}
	keys, all, err := searchKeys(query)
	if err != nil {
		return err
	}
	ids := []string{}
	if len(keys) == 0 {
		return writeJSON(w, http.StatusOK, ids)
	}
	if err := h.callers.Spend(r, len(keys)*len(set.list)); err != nil {
		return err
	}
	set.active().indexed(r.Context())
	for _, s := range set.list {
		indexes, err := s.index.Search(r.Context(), keys, all, maxFound)
		if err != nil {
			return err
		}
		if len(ids)+len(indexes) >= maxFound {
			return fault.New(fault.Unprocessable, "too_many_results", nil, "the search finds %d entries or more; narrow it with operator \"and\"", maxFound)
		}
		for _, index := range indexes {
			leaf, err := s.log.Leaf(r.Context(), index)
			if err != nil {
				return fmt.Errorf("reading entry %d of tree %d that the search found: %w", index, s.treeID, err)
			}
			ids = append(ids, s.entryID(leaf.LeafHash))
		}
	}
	return writeJSON(w, http.StatusOK, ids)
}

// indexed returns once a search finds what any server of the log has acknowledged, or after indexWait.
func (s *shard) indexed(ctx context.Context) {
	s.log.Refresh(ctx)
	ctx, cancel := context.WithTimeout(ctx, indexWait)
	defer cancel()
	_ = s.index.CaughtUp(ctx, s.log.Checkpoint().Size)
}

// searchKeys returns one key for each member of the query.
func searchKeys(query ijson.Value) (keys []string, all bool, err error) {
	text := map[string]string{}
	for _, name := range []string{"email", "hash", "operator", "subject"} {
		v := query.Get(name)
		if v.Given() && v.Kind != ijson.String {
			return nil, false, parseError("query", fmt.Errorf("%s is not a string", name))
		}
		text[name] = v.Text()
	}
	if email := text["email"]; email != "" {
		if addr, err := mail.ParseAddress(email); err != nil || addr.Address != email {
			return nil, false, schema(codeType, "email in body must be of type email: %q", email)
		}
		keys = append(keys, strings.ToLower(email))
	}
	if hash := text["hash"]; hash != "" {
		key, ok := hashKey(hash)
		if !ok {
			return nil, false, schema(codePattern, "hash in body should match '^(sha512:)?[0-9a-fA-F]{128}$|^(sha256:)?[0-9a-fA-F]{64}$|^(sha1:)?[0-9a-fA-F]{40}$'")
		}
		keys = append(keys, key)
	}
	switch text["operator"] {
	case "", "or":
	case "and":
		all = true
	default:
		return nil, false, schema(codeEnum, "operator in body should be one of [and or]")
	}
	if subject := text["subject"]; subject != "" {
		if utf8.RuneCountInString(subject) > maxSubject {
			return nil, false, schema(codeTooLong, "subject in body should be at most %d chars long", maxSubject)
		}
		keys = append(keys, strings.ToLower(subject))
	}
	if publicKey := query.Get("publicKey"); publicKey.Given() {
		key, err := publicKeyKey(publicKey)
		if err != nil {
			return nil, false, err
		}
		keys = append(keys, key)
	}
	return keys, all, nil
}

// hashKey returns "<algorithm>:<hex>" for a digest with or without the algorithm. Upstream's
// pattern leaves SHA-384 out, though entries are indexed by it.
func hashKey(hash string) (string, bool) {
	name, value, prefixed := strings.Cut(strings.ToLower(hash), ":")
	if !prefixed {
		value = name
	}
	algorithm, ok := map[int]string{40: "sha1", 64: "sha256", 96: "sha384", 128: "sha512"}[len(value)]
	if !ok || prefixed && name != algorithm {
		return "", false
	}
	_, err := hex.DecodeString(value)
	return algorithm + ":" + value, err == nil
}

func publicKeyKey(v ijson.Value) (string, error) {
	format := v.Get("format")
	if !format.Given() {
		return "", schema(codeRequired, "publicKey.format in body is required")
	}
	if !slices.Contains([]string{"pgp", "x509", "minisign", "ssh", "tuf"}, format.Text()) {
		return "", schema(codeEnum, "publicKey.format in body should be one of [pgp x509 minisign ssh tuf]")
	}
	material, err := base64.StdEncoding.DecodeString(v.Get("content").Text())
	if err != nil {
		return "", parseError("query", fmt.Errorf("publicKey.content is not base64"))
	}
	key, err := entry.PublicKeySearchKey(format.Text(), material)
	if err != nil {
		return "", fault.New(fault.Invalid, "bad_key", err, "public key provided could not be parsed")
	}
	return key, nil
}
