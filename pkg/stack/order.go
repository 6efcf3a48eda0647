package stack

import (
	"crypto"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/log"
)

// Order asks for the next log of a kind.
type Order struct {
	Kind  log.Kind
	Host  string // Rekor v2: a host name that no log has
	Shard string // CT: a name that no log has
	// NotAfterStart and NotAfterLimit are a CT log's window, see LogSpec.
	NotAfterStart, NotAfterLimit time.Time
	// Key names the new log's key, file:PATH. Empty makes one, ECDSA P-256, as KeysDir/<label>.pem.
	Key     string
	KeysDir string
	// Begin is when it takes over, in whole seconds; its key is published before.
	Begin time.Time
	// Drain is how long the log before it goes on at its own address: for Rekor v2 and CT, where clients
	// choose the address from a signing config or a file that may be some time old.
	Drain time.Duration
}

// OrderShard stores the order for the next log in shards.json, its key first, and returns the record. The
// server that runs the logs, now or later, carries it out. The same order again, or another
// one of the kind while one waits for its time, returns the record that is there.
func OrderShard(opts LogsOptions, o Order) (ShardRecord, error) {
	if o.Kind == log.Rekor1 && o.Drain != 0 {
		return ShardRecord{}, errors.New("a Rekor v1 log does not drain: its successor has the same address and continues its indexes")
	}
	if o.Drain < 0 || o.Drain > maxDrain {
		return ShardRecord{}, fmt.Errorf("draining for %v is not within 0 and %v", o.Drain, maxDrain)
	}
	var ordered ShardRecord
	_, err := changeShards(opts.Dir, func(file *ShardFile) error {
		members, err := opts.members(file)
		if err != nil {
			return err
		}
		count := 0
		for _, m := range members {
			if m.spec.Kind != o.Kind {
				continue
			}
			count++
			if r := m.record; r.State == Planned || r.State == Published || r.Key != "" && r.Host == o.Host && r.Shard == o.Shard && o.Kind != log.Rekor1 {
				ordered = r
				return nil
			}
		}
		if count == 0 {
			return fmt.Errorf("there is no %s log here that a shard could follow", kindName(o.Kind))
		}
		r := ShardRecord{
			Label: fmt.Sprintf("%s-%d", kindName(o.Kind), count+1), Kind: kindName(o.Kind), Key: o.Key, State: Planned,
			Begin: o.Begin.UTC().Truncate(time.Second), DrainSeconds: int64(o.Drain / time.Second),
		}
		switch o.Kind {
		case log.Rekor2:
			r.Host = o.Host
		case log.CT:
			r.Shard, r.Label = o.Shard, "ct-"+o.Shard
			r.NotAfterStart, r.NotAfterLimit = o.NotAfterStart.UTC(), o.NotAfterLimit.UTC()
		}
		if err := o.complete(opts.Dir, &r); err != nil {
			return err
		}
		if err := r.check(); err != nil {
			return fmt.Errorf("ordering a %s log: %w", r.Kind, err)
		}
		if _, err := opts.ordered(members, r); err != nil { // what a server would refuse later
			return err
		}
		file.Shards = append(file.Shards, r)
		ordered = r
		return nil
	})
	return ordered, err
}

// complete makes r's key, unless the order names one, and writes it into r relative to dir, so that the
// whole may be moved. A key that an attempt before left behind is taken.
func (o Order) complete(dir string, r *ShardRecord) error {
	if o.Key != "" {
		return nil
	}
	// Checked before, so that a mistyped name leaves no key.
	probe := *r
	probe.Key = "file:" + r.Label
	if err := probe.check(); err != nil {
		return fmt.Errorf("ordering a %s log: %w", r.Kind, err)
	}
	if err := os.MkdirAll(o.KeysDir, 0o700); err != nil {
		return fmt.Errorf("making a log key: %w", err)
	}
	path := filepath.Join(o.KeysDir, r.Label+".pem")
	if _, err := signer.OpenOrCreate(path, signer.P256); err != nil {
		return fmt.Errorf("making a log key: %w", err)
	}
	relative, err := filepath.Rel(dir, path)
	if err != nil {
		relative = path
	}
	r.Key = "file:" + relative
	return nil
}

// ListLogs lists the logs that opts and shards.json name, of each kind oldest first. They need not be open.
func ListLogs(opts LogsOptions) ([]LogInfo, error) {
	file, err := ReadShards(opts.Dir)
	if err != nil {
		return nil, err
	}
	members, err := opts.members(file)
	if err != nil {
		return nil, err
	}
	return (&Logs{opts: opts, members: members}).Infos()
}

// InstanceLogs names the logs of the instance in dir, which may run, its public URL, and where its keys are.
func InstanceLogs(dir string) (opts LogsOptions, public *url.URL, keysDir string, err error) {
	stored, err := os.ReadFile(filepath.Join(dir, "url"))
	if err != nil {
		return opts, nil, "", fmt.Errorf("%s is not the directory of an instance: %w", dir, err)
	}
	if public, err = parseURL(strings.TrimSpace(string(stored))); err != nil {
		return opts, nil, "", err
	}
	keysDir = filepath.Join(dir, "keys")
	keys := map[string]crypto.Signer{}
	for _, name := range []string{"ct", "rekor2", "rekor1"} {
		if keys[name], err = signer.Open("file:"+filepath.Join(keysDir, name+".pem"), nil); err != nil {
			return opts, nil, "", err
		}
	}
	opts = LogsOptions{
		Dir: filepath.Join(dir, "log"), Host: public.Hostname(),
		Logs: instanceLogs(keys["ct"], keys["rekor2"], keys["rekor1"], nil),
	}
	return opts, public, keysDir, nil
}

// instanceLogs are the logs that every instance begins with.
func instanceLogs(ctKey, rekor2Key, rekor1Key crypto.Signer, roots [][]byte) []LogSpec {
	return []LogSpec{
		{Kind: log.CT, Label: "ct-" + ctShard, Key: ctKey, Shard: ctShard, Roots: roots},
		{Kind: log.Rekor2, Label: "rekor2", Key: rekor2Key},
		{Kind: log.Rekor1, Label: "rekor1", Key: rekor1Key},
	}
}
