// Package trust keeps the record of every key that a private Sigstore has ever used and
// publishes what clients need to trust them: trusted root, signing config, legacy PEM files
// and a TUF repository that carries all of these.
//
// The way through it: Inventory (inventory.go) → Derive (derive.go) → Publisher (repository.go).
package trust

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	maxInventory = 16 << 20
	maxReason    = 1000
)

// ErrConflict says that a key is already in the inventory with another kind, URL or origin,
// or revoked. Move changes the URL; the rest of a record never changes.
var ErrConflict = errors.New("conflicts with the inventory")

// Inventory is the append-only record of every key ever used, the one source that trusted
// root and signing config are derived from.
//
// It is a file of JSON lines, one event each (add, move, retire, revoke), chained: an event
// carries the SHA-256 of the line before it. Lines instead of one document, because then an
// append leaves every earlier byte as it was, which a backup, a diff and a reviewer can see;
// the chain makes a line that was edited or dropped in the middle an error at the next open.
// A tail that was cut off cannot be seen here; the Publisher refuses it, because the root
// that it published knows more. The file is replaced as a whole (temporary file, fsync,
// rename), so a kill leaves the events before or after a change.
//
// An Inventory is safe for concurrent use, and several processes may open one file: each
// change takes a lock and continues from what the file holds then.
type Inventory struct {
	path string
	now  func() time.Time

	mu      sync.Mutex // guards the rest
	raw     []byte     // the file as last read or written
	seq     int64
	head    string // hash of the last line
	records []*Record
}

type event struct {
	Seq    int64     `json:"seq"`  // from 1
	Prev   string    `json:"prev"` // hex SHA-256 of the previous line without its newline, "" in the first
	Time   time.Time `json:"time"`
	Event  string    `json:"event"`            // add, move, retire, revoke
	Record *Record   `json:"record,omitempty"` // add
	ID     string    `json:"id,omitempty"`     // the others
	URL    string    `json:"url,omitempty"`    // move
	End    time.Time `json:"end,omitzero"`     // retire; revoke: absent means that nothing of the key counts
	Reason string    `json:"reason,omitempty"`
}

// OpenInventory reads the inventory at path; a missing file is an empty inventory. A nil now
// means time.Now.
func OpenInventory(path string, now func() time.Time) (*Inventory, error) {
	if now == nil {
		now = time.Now
	}
	inv := &Inventory{path: path, now: now}
	if _, err := inv.Reload(); err != nil {
		return nil, err
	}
	return inv, nil
}

// Reload reads the file again and says whether it changed. Events that this process knows
// may not be missing from it.
func (inv *Inventory) Reload() (changed bool, err error) {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	return inv.reload()
}

func (inv *Inventory) reload() (bool, error) {
	info, err := os.Stat(inv.path)
	if err == nil && info.Size() > maxInventory {
		return false, fmt.Errorf("inventory %s: over %d bytes", inv.path, maxInventory)
	}
	raw, err := os.ReadFile(inv.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("inventory: %w", err)
	}
	if bytes.Equal(raw, inv.raw) {
		return false, nil
	}
	if !bytes.HasPrefix(raw, inv.raw) {
		return false, fmt.Errorf("inventory %s: it lost or changed events since it was read; restore the newest copy", inv.path)
	}
	next := &Inventory{}
	if err := next.parse(raw); err != nil {
		return false, fmt.Errorf("inventory %s: %w", inv.path, err)
	}
	inv.raw, inv.seq, inv.head, inv.records = next.raw, next.seq, next.head, next.records
	return true, nil
}

// parse replays the events of raw into an empty inventory.
func (inv *Inventory) parse(raw []byte) error {
	rest := raw
	for len(rest) > 0 {
		line, tail, whole := bytes.Cut(rest, []byte("\n"))
		number := inv.seq + 1
		if !whole {
			return fmt.Errorf("line %d has no end: the file was cut", number)
		}
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		if err := inv.apply(e); err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		// One event has one encoding: this refuses unknown and duplicate keys and any edit
		// that the chain of the last line would not show.
		again, err := json.Marshal(e)
		if err != nil || !bytes.Equal(again, line) {
			return fmt.Errorf("line %d is not as the inventory writes it: it was edited", number)
		}
		inv.seq, inv.head = number, lineHash(line)
		rest = tail
	}
	inv.raw = raw
	return nil
}

func lineHash(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

// apply checks e against the records and carries it out.
func (inv *Inventory) apply(e event) error {
	if e.Seq != inv.seq+1 || e.Prev != inv.head {
		return errors.New("the chain is broken: an event before this one was edited, dropped or moved")
	}
	if e.Event == "add" {
		return inv.applyAdd(e)
	}
	if e.Record != nil {
		return fmt.Errorf("event %q carries a record", e.Event)
	}
	r := inv.find(e.ID)
	if r == nil {
		return fmt.Errorf("no record %q", e.ID)
	}
	switch e.Event {
	case "move":
		return applyMove(r, e)
	case "retire":
		return applyRetire(r, e)
	case "revoke":
		return applyRevoke(r, e)
	default:
		return fmt.Errorf("event %q is not one of add, move, retire, revoke", e.Event)
	}
}

func (inv *Inventory) applyAdd(e event) error {
	if e.Record == nil || e.ID != "" || e.URL != "" || !e.End.IsZero() {
		return errors.New("event add carries a record and nothing else")
	}
	r := *e.Record
	if err := r.parse(); err != nil {
		return err
	}
	if r.ID != e.Record.ID {
		return fmt.Errorf("record %q has the key of %q", e.Record.ID, r.ID)
	}
	if other := inv.byDigest(&r); other != nil {
		return fmt.Errorf("record %q has the key of %q: %w", r.ID, other.ID, ErrConflict)
	}
	r.State, r.Added, r.Reason = Active, e.Time, e.Reason
	if !r.End.IsZero() {
		r.State = Retired
	}
	inv.records = append(inv.records, &r)
	return nil
}

func applyMove(r *Record, e event) error {
	if e.URL == "" || !e.End.IsZero() {
		return errors.New("event move carries a url and nothing else")
	}
	moved := Record{Kind: r.Kind, URL: e.URL, Origin: r.Origin}
	if err := moved.parseURL(); err != nil {
		return err
	}
	r.URL = moved.URL
	return nil
}

func applyRetire(r *Record, e event) error {
	switch {
	case e.URL != "" || e.End.IsZero():
		return errors.New("event retire carries an end and nothing else")
	case r.State == Revoked:
		return fmt.Errorf("record %q is revoked", r.ID)
	case e.End.Before(e.Time.Truncate(time.Second)):
		return fmt.Errorf("retiring %q at %s, before now (%s), would unmake signatures that counted; use revoke for that", r.ID, stamp(e.End), stamp(e.Time))
	case !r.End.IsZero() && e.End.Before(r.End):
		return fmt.Errorf("record %q ends at %s; an earlier end needs revoke", r.ID, stamp(r.End))
	}
	r.State, r.End, r.Reason = Retired, e.End, e.Reason
	return nil
}

func applyRevoke(r *Record, e event) error {
	switch {
	case e.URL != "":
		return errors.New("event revoke carries no url")
	case e.Reason == "":
		return errors.New("revoking needs a reason")
	case !e.End.IsZero() && e.End.Before(r.Start):
		return fmt.Errorf("end %s is before the start of %q; revoke it without an end", stamp(e.End), r.ID)
	case r.State == Revoked && r.End.IsZero():
		return fmt.Errorf("record %q is revoked already", r.ID)
	case !e.End.IsZero() && !r.End.IsZero() && e.End.After(r.End):
		return fmt.Errorf("revoking %q until %s would lengthen its window, which ends at %s", r.ID, stamp(e.End), stamp(r.End))
	}
	r.State, r.End, r.Reason = Revoked, e.End, e.Reason
	return nil
}

func (inv *Inventory) find(id string) *Record {
	for _, r := range inv.records {
		if r.ID == id {
			return r
		}
	}
	return nil
}

// byDigest finds the record with r's key, whatever its kind: two lists of a trusted root are
// looked up by logID, so two records may never share one.
func (inv *Inventory) byDigest(r *Record) *Record {
	for _, other := range inv.records {
		if other.digest == r.digest || (len(r.spki) > 0 && bytes.Equal(other.spki, r.spki)) {
			return other
		}
	}
	return nil
}

// Records returns a copy of every record, in the order in which they were added.
func (inv *Inventory) Records() []Record {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	out := make([]Record, len(inv.records))
	for i, r := range inv.records {
		out[i] = *r
	}
	return out
}

// Add stores records that are new, all in one write, and returns the IDs of all of them. A
// record whose key, kind, URL and origin are there already changes nothing, so a service
// may add its keys at each start; the window stored first stands. A key that is there with
// another kind, URL or origin, or that was revoked, is ErrConflict and nothing is stored.
func (inv *Inventory) Add(records ...Record) ([]string, error) { return inv.enter(false, records) }

// Enter is Add for what a configuration says now: a key that it has at another URL than before is moved there, see Move.
func (inv *Inventory) Enter(records ...Record) ([]string, error) { return inv.enter(true, records) }

func (inv *Inventory) enter(move bool, records []Record) ([]string, error) {
	ids := make([]string, len(records))
	err := inv.change(func(add func(event) error) error {
		for i, r := range records {
			r.ID = ""
			if err := r.parse(); err != nil {
				return err
			}
			ids[i] = r.ID
			have := inv.byDigest(&r)
			if have == nil {
				if err := add(event{Event: "add", Record: &r}); err != nil {
					return err
				}
				continue
			}
			if have.Kind != r.Kind || have.URL != r.URL && !move || have.Origin != r.Origin || have.State == Revoked {
				return fmt.Errorf("adding %s key %s at %s: it is %s at %s (%s): %w",
					r.Kind, r.ID, r.URL, have.ID, have.URL, have.State, ErrConflict)
			}
			if have.URL != r.URL {
				if err := add(event{Event: "move", ID: have.ID, URL: r.URL}); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return ids, nil
}

// Move records that the service of a key answers at another URL now. A Rekor v2 log keeps
// its host name, which is its origin.
func (inv *Inventory) Move(id, url string) error {
	return inv.change(func(add func(event) error) error {
		probe := event{ID: id, URL: url}
		if r := inv.find(id); r != nil {
			moved := Record{Kind: r.Kind, URL: url, Origin: r.Origin}
			if err := moved.parseURL(); err != nil {
				return err
			}
			if moved.URL == r.URL {
				return nil
			}
			probe.URL = moved.URL
		}
		probe.Event = "move"
		return add(probe)
	})
}

// Retire closes the window of a key that signs no more, at end, which is not in the past:
// for a CA the last issuance plus the life of its certificates, for a log the moment it was
// frozen. Everything signed until then keeps verifying for ever. Retiring again at the same
// end changes nothing.
func (inv *Inventory) Retire(id string, end time.Time, reason string) error {
	end = roundUp(end)
	return inv.change(func(add func(event) error) error {
		if r := inv.find(id); r != nil && r.State == Retired && r.End.Equal(end) {
			return nil
		}
		return add(event{Event: "retire", ID: id, End: end, Reason: reason})
	})
}

// Revoke is for a compromised key: with an end its window is cut there, which may be in the
// past; with a zero end nothing that the key ever signed verifies any more.
func (inv *Inventory) Revoke(id string, end time.Time, reason string) error {
	return inv.change(func(add func(event) error) error {
		return add(event{Event: "revoke", ID: id, End: end.UTC().Truncate(time.Second), Reason: reason})
	})
}

// change runs edit on the file's newest content and stores the events it adds, all or none.
func (inv *Inventory) change(edit func(add func(event) error) error) (err error) {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	release, err := lockFile(inv.path+".lock", true)
	if err != nil {
		return fmt.Errorf("inventory: locking: %w", err)
	}
	defer func() { err = errors.Join(err, release()) }()
	if _, err := inv.reload(); err != nil {
		return err
	}
	before := Inventory{raw: inv.raw, seq: inv.seq, head: inv.head}
	raw := bytes.Clone(inv.raw)
	add := func(e event) error {
		if len(e.Reason) > maxReason {
			return fmt.Errorf("reason is over %d bytes", maxReason)
		}
		e.Seq, e.Prev, e.Time = inv.seq+1, inv.head, inv.now().UTC().Truncate(time.Second)
		if err := inv.apply(e); err != nil {
			return err
		}
		line, err := json.Marshal(e)
		if err != nil {
			return err
		}
		inv.seq, inv.head = e.Seq, lineHash(line)
		raw = append(append(raw, line...), '\n')
		return nil
	}
	err = edit(add)
	if err == nil && len(raw) > maxInventory {
		err = fmt.Errorf("inventory %s: would be over %d bytes", inv.path, maxInventory)
	}
	if err == nil && len(raw) > len(inv.raw) {
		dir := directory{path: filepath.Dir(inv.path)}
		err = dir.writeStage([]file{{filepath.Base(inv.path), raw, 0o644}})
	}
	if err != nil {
		// Undo in memory by replaying what was there; a failed write may have taken effect,
		// which the next reload then sees.
		inv.raw, inv.seq, inv.head, inv.records = nil, 0, "", nil
		return errors.Join(err, inv.parse(before.raw))
	}
	inv.raw = raw
	return nil
}
