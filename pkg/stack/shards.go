package stack

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/log"
)

// ShardState is where a log stands in its life. It only moves down this list.
type ShardState string

const (
	Planned   ShardState = "planned"   // ordered: the key exists and nobody knows of it
	Published ShardState = "published" // clients can know the key; the log begins when its time has come
	Active    ShardState = "active"    // takes entries; the newest of its kind is where submissions go by default
	Draining  ShardState = "draining"  // has a successor and still takes what is sent to its own address
	Frozen    ShardState = "frozen"    // takes no entry ever again, is read for ever
)

// ShardRecord is one log's entry in shards.json: one that was ordered there, or the state of one
// that configuration names (then Key, Host and Shard are empty).
type ShardRecord struct {
	Label string `json:"label"`           // names directory and metrics
	Kind  string `json:"kind"`            // rekor1, rekor2, ct
	Key   string `json:"key,omitempty"`   // file:PATH, relative to the directory of shards.json
	Host  string `json:"host,omitempty"`  // rekor2: origin and host name of its URL
	Shard string `json:"shard,omitempty"` // ct: its name in the paths

	// NotAfterStart and NotAfterLimit are a CT log's window, see LogSpec.
	NotAfterStart time.Time `json:"notAfterStart,omitzero"`
	NotAfterLimit time.Time `json:"notAfterLimit,omitzero"`

	State ShardState `json:"state"`
	// Begin is when it takes over from the newest log of its kind, never before it is published.
	Begin time.Time `json:"begin,omitzero"`
	// DrainSeconds is how long its predecessor goes on at its own address.
	DrainSeconds int64 `json:"drainSeconds,omitempty"`
	// FreezeAt is when a draining log is frozen.
	FreezeAt time.Time `json:"freezeAt,omitzero"`
	// Final is a frozen log's last tree.
	Final *FinalTree `json:"final,omitempty"`
}

// FinalTree is the tree of a log that was frozen. A tree of another size or root does not open.
type FinalTree struct {
	Size       uint64    `json:"size"`
	Root       string    `json:"root"`       // hex
	Checkpoint string    `json:"checkpoint"` // signed note
	Time       time.Time `json:"time"`       // when it was frozen; signatures of the key end there
	// Lost is set when the log ended because entries behind the tree were lost.
	Lost *LostEntries `json:"lost,omitempty"`
}

// LostEntries are indexes of one log, From ≤ index < To, that its key has promised and nobody has.
type LostEntries struct {
	From uint64 `json:"from"` // the size of what is left
	To   uint64 `json:"to"`
}

func finalTree(cp *log.Checkpoint, now time.Time) *FinalTree {
	return &FinalTree{Size: cp.Size, Root: hex.EncodeToString(cp.Root[:]), Checkpoint: string(cp.Note), Time: now.UTC()}
}

func (f *FinalTree) record() (*log.Record, error) {
	raw, err := hex.DecodeString(f.Root)
	if err != nil || len(raw) != 32 {
		return nil, fmt.Errorf("final root %q is not 32 bytes in hex", f.Root)
	}
	if f.Lost != nil && (f.Lost.From != f.Size || f.Lost.To <= f.Lost.From) {
		return nil, fmt.Errorf("a final tree of size %d cannot have lost %d..%d", f.Size, f.Lost.From, f.Lost.To)
	}
	return &log.Record{Size: f.Size, Root: [32]byte(raw), Promised: f.Size + f.lost()}, nil
}

// lost is how many entries were lost behind the tree.
func (f *FinalTree) lost() uint64 {
	if f == nil || f.Lost == nil {
		return 0
	}
	return f.Lost.To - f.Lost.From
}

// ShardFile is shards.json in the logs' directory: which logs there are beside those that configuration
// names, and how far each is in its life. `attestry log shard` orders in it and the server that runs
// the logs carries out; both change it under a lock and replace it as a whole.
type ShardFile struct {
	Version int           `json:"version"` // 1
	Shards  []ShardRecord `json:"shards"`
}

const (
	shardsName       = "shards.json"
	maxShardFile     = 4 << 20
	maxShards        = 1000
	maxDrain         = 30 * 24 * time.Hour
	shardFileVersion = 1
)

var labelPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,99}$`)

// ReadShards returns the shards.json of dir, an empty one when there is none.
func ReadShards(dir string) (*ShardFile, error) {
	path := filepath.Join(dir, shardsName)
	raw, err := limit.ReadFile(path, maxShardFile)
	if errors.Is(err, os.ErrNotExist) {
		return &ShardFile{Version: shardFileVersion}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading shards: %w", err)
	}
	file, err := parseShards(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return file, nil
}

func parseShards(raw []byte) (*ShardFile, error) {
	if len(raw) > maxShardFile {
		return nil, fmt.Errorf("over %d bytes", maxShardFile)
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	var file ShardFile
	if err := decoder.Decode(&file); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, errors.New("there is data behind the JSON object")
	}
	if file.Version != shardFileVersion {
		return nil, fmt.Errorf("version %d is not known here", file.Version)
	}
	if len(file.Shards) > maxShards {
		return nil, fmt.Errorf("over %d shards", maxShards)
	}
	seen := map[string]bool{}
	for _, r := range file.Shards {
		if seen[r.Label] {
			return nil, fmt.Errorf("two shards are called %q", r.Label)
		}
		seen[r.Label] = true
		if err := r.check(); err != nil {
			return nil, fmt.Errorf("shard %q: %w", r.Label, err)
		}
	}
	return &file, nil
}

func (r ShardRecord) check() error {
	kind, err := parseKind(r.Kind)
	if err != nil {
		return err
	}
	ordered := r.Key != "" // else configuration names it
	switch {
	case ordered && kind == log.Rekor2 && !isHost(r.Host):
		return fmt.Errorf("host %q is not a host name", r.Host)
	case ordered && kind == log.CT && !isCTShard(r.Shard):
		return fmt.Errorf("name %q may have lower-case letters, digits and hyphens", r.Shard)
	case kind != log.CT && !(r.NotAfterStart.IsZero() && r.NotAfterLimit.IsZero()):
		return errors.New("only a CT log has a window")
	case !r.NotAfterLimit.IsZero() && !r.NotAfterStart.Before(r.NotAfterLimit):
		return errors.New("the window ends before it begins")
	case !labelPattern.MatchString(r.Label):
		return errors.New("a label has lower-case letters, digits and hyphens")
	}
	switch r.State {
	case Planned, Published:
		if !ordered || r.Begin.IsZero() {
			return errors.New("a log that is to begin needs a key and a time")
		}
	case Active:
	case Draining:
		if r.FreezeAt.IsZero() {
			return errors.New("a draining log needs freezeAt")
		}
	case Frozen:
		if r.Final == nil {
			return errors.New("a frozen log needs its final tree")
		}
		if _, err := r.Final.record(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("state %q is not one of planned, published, active, draining, frozen", r.State)
	}
	if r.DrainSeconds < 0 || r.DrainSeconds > int64(maxDrain/time.Second) {
		return fmt.Errorf("drainSeconds %d is not within 0 and %d", r.DrainSeconds, int64(maxDrain/time.Second))
	}
	return nil
}

var hostPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)

// isHost reports whether host can be an origin: a bare lower-case host name or IPv4 address. C2SP forbids
// spaces and plus signs.
func isHost(host string) bool { return hostPattern.MatchString(host) }

func isCTShard(name string) bool {
	return name != "" && len(name) <= 90 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func parseKind(name string) (log.Kind, error) {
	for _, kind := range []log.Kind{log.Rekor1, log.Rekor2, log.CT} {
		if kindName(kind) == name {
			return kind, nil
		}
	}
	return 0, fmt.Errorf("kind of log %q is not one of rekor1, rekor2, ct", name)
}

func kindName(kind log.Kind) string {
	switch kind {
	case log.Rekor1:
		return "rekor1"
	case log.Rekor2:
		return "rekor2"
	default:
		return "ct"
	}
}

// find returns the record with this label, nil when there is none.
func (f *ShardFile) find(label string) *ShardRecord {
	for i := range f.Shards {
		if f.Shards[i].Label == label {
			return &f.Shards[i]
		}
	}
	return nil
}

// at returns the record with this label, made when there is none.
func (f *ShardFile) at(label string, kind log.Kind) *ShardRecord {
	if r := f.find(label); r != nil {
		return r
	}
	f.Shards = append(f.Shards, ShardRecord{Label: label, Kind: kindName(kind), State: Active})
	return &f.Shards[len(f.Shards)-1]
}

// changeShards lets edit change the shards.json of dir, under a lock that holds against other processes. When
// it returns nil the change is durable, and after an error it may be.
func changeShards(dir string, edit func(*ShardFile) error) (file *ShardFile, err error) {
	lock, err := os.OpenFile(filepath.Join(dir, shardsName+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking shards: %w", err)
	}
	defer lock.Close() // and with it the lock
	for {
		if err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("locking shards: %w", err)
	}
	if file, err = ReadShards(dir); err != nil {
		return nil, err
	}
	before, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := edit(file); err != nil {
		return nil, err
	}
	raw, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return nil, err
	}
	if bytes.Equal(raw, before) {
		return file, nil
	}
	if _, err := parseShards(raw); err != nil { // nothing is stored that would not be read again
		return nil, fmt.Errorf("changing shards: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(dir, shardsName), append(raw, '\n'), 0o644); err != nil {
		return nil, fmt.Errorf("storing shards: %w", err)
	}
	return file, nil
}
