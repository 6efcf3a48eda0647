package verify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// verifyEntries verifies every entry of a log that the trusted root knows, binds it to the bundle and
// counts distinct logs. An entry of an unknown log is skipped, an entry of a known log that is wrong in any
// way ends verification: it was forged or damaged.
func (a *attempt) verifyEntries() error {
	logs := make(map[string]bool)
	timed := make(map[string]bool)
	unknown := false
	for _, e := range a.bundle.entries {
		log, ok := a.root.tlogs[string(e.GetLogId().GetKeyId())]
		if !ok {
			unknown = true
			continue
		}
		verified := VerifiedEntry{
			LogID: hex.EncodeToString([]byte(log.id)), LogIndex: e.GetLogIndex(), BaseURL: log.baseURL,
			Kind: e.kind.kind, Version: e.kind.version,
		}
		if set := e.set(); set != nil && !e.kind.v2() {
			if err := verifySET(e, set, log); err != nil {
				return err
			}
		}
		leaf := e.GetCanonicalizedBody()
		if e.kind.v2() {
			rebuilt, err := a.rebuildV2(e.kind.kind)
			if err != nil {
				return fail(ReasonEntryMismatch, err, "the bundle cannot be logged as %s/%s", e.kind.kind, e.kind.version)
			}
			if !bytes.Equal(leaf, rebuilt) {
				return mismatchV2(e.kind, leaf, rebuilt)
			}
		} else if err := a.bindV1(e); err != nil {
			return err
		}
		if e.GetInclusionProof() != nil {
			size, err := verifyInclusion(e, leaf, log)
			if err != nil {
				return err
			}
			verified.CheckpointSize = size
		}
		// A v2 entry's integratedTime is signed by nobody; a bundle that has one is still held to it.
		if t := e.GetIntegratedTime(); t != 0 {
			at := time.Unix(t, 0)
			if err := a.validAt(at); err != nil {
				return err
			}
			if e.set() != nil && !e.kind.v2() && !timed[log.id] {
				timed[log.id] = true
				a.times = append(a.times, VerifiedTimestamp{Type: "Tlog", URI: log.baseURL, Timestamp: at})
			}
		}
		logs[log.id] = true
		a.entries = append(a.entries, verified)
	}
	if len(logs) < a.require.LogEntries {
		if unknown {
			return fail(ReasonLogUnknown, nil, "no entry of the bundle is in a log of the trusted root")
		}
		return fail(ReasonEntryMissing, nil, "%d of %d required log entries are proven", len(logs), a.require.LogEntries)
	}
	return nil
}

// validAt requires that the signing certificate is valid at t.
func (a *attempt) validAt(t time.Time) error {
	leaf := a.bundle.leaf
	if leaf == nil {
		return nil // a key's window is judged over all times together
	}
	if t.Before(leaf.NotBefore) || t.After(leaf.NotAfter) {
		return fail(ReasonCertExpired, nil, "the certificate is valid from %s to %s, the signature is of %s",
			leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339), t.UTC().Format(time.RFC3339))
	}
	return nil
}

// verifySET checks Rekor v1's promise: an ECDSA signature over the RFC 8785 form of {body, integratedTime,
// logID, logIndex}. Upstream clients skip an entry whose SET is wrong; here it ends verification.
func verifySET(e *entry, set []byte, log *logKey) error {
	key, ok := log.key.(*ecdsa.PublicKey)
	if !ok {
		return fail(ReasonSETInvalid, nil, "signed entry timestamps need an ECDSA log key, not %T", log.key)
	}
	body := e.GetCanonicalizedBody()
	payload := make([]byte, 0, base64.StdEncoding.EncodedLen(len(body))+192)
	payload = append(payload, `{"body":"`...)
	payload = base64.StdEncoding.AppendEncode(payload, body)
	payload = append(payload, `","integratedTime":`...)
	payload = strconv.AppendInt(payload, e.GetIntegratedTime(), 10)
	payload = append(payload, `,"logID":"`...)
	payload = hex.AppendEncode(payload, []byte(log.id))
	payload = append(payload, `","logIndex":`...)
	payload = strconv.AppendInt(payload, e.GetLogIndex(), 10)
	payload = append(payload, '}')
	sum := sha256.Sum256(payload)
	if !ecdsa.VerifyASN1(key, sum[:], set) {
		return fail(ReasonSETInvalid, nil, "the signed entry timestamp does not verify")
	}
	at := time.Unix(e.GetIntegratedTime(), 0)
	if !log.window.contains(at) {
		return fail(ReasonLogExpired, nil, "integrated at %s, outside the validity of the log key", at.UTC().Format(time.RFC3339))
	}
	return nil
}

// verifyInclusion checks the checkpoint's signature and that leaf is in the tree it commits to.
// Proof, bundle and checkpoint must agree on size and root.
func verifyInclusion(e *entry, leaf []byte, log *logKey) (int64, error) {
	p := e.GetInclusionProof()
	cp, err := openCheckpoint(p.GetCheckpoint().GetEnvelope(), log, e.kind.v2())
	if err != nil {
		return 0, fmt.Errorf("checkpoint: %w", err)
	}
	if cp.size != uint64(p.GetTreeSize()) || !bytes.Equal(cp.root, p.GetRootHash()) { //nolint:gosec // not negative, see read
		return 0, fail(ReasonCheckpointMismatch, nil, "the checkpoint is for another tree than the inclusion proof")
	}
	index := p.GetLogIndex()
	if e.kind.v2() && index != e.GetLogIndex() {
		return 0, fail(ReasonInclusionIndex, nil, "the inclusion proof is for index %d, the entry says %d", index, e.GetLogIndex())
	}
	hasher := rfc6962.DefaultHasher
	if err := proof.VerifyInclusion(hasher, uint64(index), cp.size, hasher.HashLeaf(leaf), p.GetHashes(), cp.root); err != nil {
		return 0, fail(ReasonInclusionInvalid, err, "the entry is not in the log")
	}
	return p.GetTreeSize(), nil
}
