package witness

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/attestry/attestry/internal/fault"
)

const (
	maxProof = 63 // hashes (c2sp.org/tlog-witness)
	// maxRequest is the longest body: size line, proof lines of 45 bytes, blank line, checkpoint.
	maxRequest = 32 + maxProof*45 + 1 + maxNote
	// maxBehind is how far the clock may stand behind the last cosignature. Up to there that one's time
	// is given again, so that times never go back; further behind, the clock is wrong and nothing is cosigned.
	maxBehind = time.Minute
)

// submission is the body of add-checkpoint.
type submission struct {
	checkpoint
	old        uint64
	proof      [][]byte
	signatures []signature
	note       []byte
}

// parseSubmission reads "old SIZE", hashes in base64, a blank line and a signed checkpoint.
func parseSubmission(body []byte) (submission, error) {
	head, note, ok := strings.Cut(string(body), "\n\n")
	if !ok {
		return submission{}, errors.New("no blank line before the checkpoint")
	}
	lines := strings.Split(head, "\n")
	text, ok := strings.CutPrefix(lines[0], "old ")
	if !ok {
		return submission{}, errors.New(`the first line is not "old SIZE"`)
	}
	s := submission{note: []byte(note)}
	var err error
	if s.old, err = parseSize(text); err != nil {
		return submission{}, fmt.Errorf("first line: %w", err)
	}
	if len(lines)-1 > maxProof {
		return submission{}, fmt.Errorf("%d proof lines, at most %d are allowed", len(lines)-1, maxProof)
	}
	for i, line := range lines[1:] {
		hash, ok := decodeBase64(line)
		if !ok || len(hash) != 32 {
			return submission{}, fmt.Errorf("proof line %d is not a SHA-256 hash in base64", i+1)
		}
		s.proof = append(s.proof, hash)
	}
	s.checkpoint, s.signatures, err = parseNote(s.note)
	return s, err
}

// conflictError says that the old size is not the one that was cosigned last; its fault's
// answer is that size.
type conflictError struct{ held uint64 }

func (e *conflictError) Error() string { return fmt.Sprintf("the size cosigned last is %d", e.held) }

// watched is a log that the witness knows.
type watched struct {
	origin string
	keys   []Key

	mu     sync.Mutex // guards held and unsure, and orders the submissions of this log
	held   record
	unsure bool // a write failed: held may not be what is on disk
}

// submit cosigns a checkpoint that continues the one cosigned last, and returns the
// signature line. Errors, with the status of c2sp.org/tlog-witness: fault.NotFound (404) for an
// unknown origin, fault.Denied (403) without a signature by a key that is known for it, fault.Invalid (400) when the old
// size exceeds the new one, fault.Duplicate (409) when the old size is not the one cosigned
// last (then a conflictError is in the chain) or the same size has another root, fault.Unprocessable (422)
// when the proof does not verify; fault.Unavailable when the record cannot be stored or the clock is behind.
func (s *Server) submit(ctx context.Context, sub submission) (line string, err error) {
	w := s.watched[sub.origin]
	if w == nil {
		return "", fault.New(fault.NotFound, "unknown_origin", nil, "this witness does not know the log %q", sub.origin)
	}
	logLines := w.verified(sub)
	if logLines == "" {
		return "", fault.New(fault.Denied, "log_signature", nil, "no signature by a key that this witness knows for %q verifies", sub.origin)
	}
	if sub.old > sub.size {
		return "", fault.New(fault.Invalid, "old_size", nil, "old size %d exceeds the checkpoint's size %d", sub.old, sub.size)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := s.settle(w); err != nil {
		return "", fault.New(fault.Unavailable, "storage", err, "the witness cannot store what it cosigns; try again")
	}
	fork := w.held.note != nil && sub.size == w.held.size && sub.root != w.held.root
	if fork {
		s.forked(w, sub)
	}
	if sub.old != w.held.size {
		return "", fault.New(fault.Duplicate, "old_size", &conflictError{w.held.size}, "the size cosigned last is %d", w.held.size)
	}
	if fork {
		return "", fault.New(fault.Duplicate, "fork", nil, "a checkpoint of size %d with another root hash was cosigned before", sub.size)
	}
	if err := continues(w.held, sub); err != nil {
		return "", fault.New(fault.Unprocessable, "consistency_proof", err, "the consistency proof from size %d to %d does not verify", sub.old, sub.size)
	}
	unix, err := s.unixAfter(w.held)
	if err != nil {
		return "", err
	}
	cosigned, err := s.cosigner.sign(sub.text, unix)
	if err != nil {
		return "", fault.New(fault.Unavailable, "signing", err, "the witness cannot sign; try again")
	}
	next := record{sub.checkpoint, []byte(string(sub.text) + "\n" + logLines + cosigned.line()), unix}
	// Nothing leaves the process before its record is durable.
	if err := s.store.save(next); err != nil {
		w.unsure = true
		return "", fault.New(fault.Unavailable, "storage", err, "the witness cannot store what it cosigns; try again")
	}
	w.held = next
	s.metrics.cosigned(w.held)
	return cosigned.line(), nil
}

// verified returns the signature lines of the log's keys that verify, each once.
func (w *watched) verified(sub submission) string {
	var lines strings.Builder
	for _, key := range w.keys {
		for _, sig := range sub.signatures {
			if key.signed(sub.text, sig) {
				lines.WriteString(sig.line())
				break
			}
		}
	}
	return lines.String()
}

// settle reads and stores the record again after a failed write, which may have taken effect; w.mu held.
func (s *Server) settle(w *watched) error {
	if !w.unsure {
		return nil
	}
	held, err := s.store.load(w.origin, s.cosigner.key)
	if err != nil {
		return err
	}
	if held.note != nil { // what was read may be in memory only
		if err := s.store.save(held); err != nil {
			return err
		}
	}
	w.held, w.unsure = held, false
	return nil
}

// continues checks that the submitted tree has the held one as its beginning (RFC 6962, section 2.1.2).
func continues(held record, sub submission) error {
	if sub.size == 0 && sub.root != [32]byte(rfc6962.DefaultHasher.EmptyRoot()) {
		return errors.New("the root of an empty tree is the hash of nothing")
	}
	if sub.old == 0 {
		if len(sub.proof) > 0 {
			return errors.New("a proof from size 0 has no hashes")
		}
		return nil
	}
	return proof.VerifyConsistency(rfc6962.DefaultHasher, sub.old, sub.size, sub.proof, held.root[:], sub.root[:])
}

// unixAfter is the time of the next cosignature, never before the last one's.
func (s *Server) unixAfter(held record) (uint64, error) {
	now := s.now().Unix()
	if last := int64(held.unix); last > now {
		if behind := time.Duration(last-now) * time.Second; behind > maxBehind {
			return 0, fault.New(fault.Unavailable, "clock_behind", nil, "the witness's clock is %v behind its last cosignature", behind)
		}
		now = last
	}
	if now <= 0 {
		return 0, fault.New(fault.Unavailable, "clock_behind", nil, "the witness's clock is not set")
	}
	return uint64(now), nil
}

// forked keeps the two checkpoints of one size. A failure to do so is logged: the answer is the same.
func (s *Server) forked(w *watched, sub submission) {
	s.metrics.forks.WithLabelValues(w.origin).Inc()
	path, err := s.store.keepEvidence(w.held, sub.checkpoint, sub.note, s.now(), s.cosigner.key)
	s.logger.Error("the log has signed two trees of one size: it forked", "origin", w.origin, "size", sub.size,
		"held", fmt.Sprintf("%x", w.held.root), "seen", fmt.Sprintf("%x", sub.root), "evidence", path, "err", err)
}
