package stack

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/trust"
)

// publish enters the instance's keys in the inventory, publishes what follows from it, and writes the
// files for clients.
func (s *Stack) publish(ctx context.Context, m *material) error {
	base := s.URL()
	inventory, err := trust.OpenInventory(filepath.Join(s.opts.Dir, "trust", "inventory.jsonl"), s.opts.Now)
	if err != nil {
		return err
	}
	records, err := m.records(base, s.url.Hostname())
	if err != nil {
		return err
	}
	if err := enter(inventory, records); err != nil {
		return err
	}
	var issuers []string
	if s.issuer != nil {
		issuers = append(issuers, s.issuer.IssuerURL())
	}
	s.publisher, err = trust.OpenPublisher(trust.PublisherOptions{
		Dir: filepath.Join(s.opts.Dir, "tuf"), KeysDir: filepath.Join(s.opts.Dir, "keys", "tuf"), CreateKeys: true,
		Derive: trust.DeriveOptions{OIDCIssuers: issuers},
		Now:    s.opts.Now, Logger: s.opts.Logger, Registerer: s.opts.Registerer,
	})
	if err != nil {
		return err
	}
	if err := s.publisher.Publish(ctx, inventory); err != nil {
		return err
	}
	return s.writeClientFiles()
}

// writeClientFiles brings the files for clients up to date with what is published.
func (s *Stack) writeClientFiles() error {
	return trust.WriteClientFiles(filepath.Join(s.opts.Dir, "client"), trust.ClientFiles{
		Derived: s.publisher.Derived(), TUFRoot: s.publisher.Root(), URL: s.URL(), TUFURL: s.URL() + "/tuf", OIDCIssuer: s.IssuerURL(),
	})
}

// Run keeps the TUF metadata fresh, and client/root.json with it, until ctx ends.
func (s *Stack) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.publisher.Run(ctx) })
	g.Go(func() error {
		tick := time.NewTicker(10 * time.Minute)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				if err := s.writeClientFiles(); err != nil {
					s.opts.Logger.Error("the files for clients could not be brought up to date", "err", err)
				}
			}
		}
	})
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// enter adds the records, or moves those that the inventory has at another URL: the port may change.
func enter(inventory *trust.Inventory, records []trust.Record) error {
	known := map[string]trust.Record{}
	for _, r := range inventory.Records() {
		known[string(r.Kind)+r.PublicKeyPEM+r.ChainPEM] = r
	}
	for i, r := range records {
		old, ok := known[string(r.Kind)+r.PublicKeyPEM+r.ChainPEM]
		if !ok || old.URL == r.URL {
			continue
		}
		if err := inventory.Move(old.ID, r.URL); err != nil {
			return err
		}
		records[i].Start = old.Start
	}
	_, err := inventory.Add(records...)
	return err
}

// records lists the keys in use. A window begins when the key was made, before its first use.
func (m *material) records(base, host string) ([]trust.Record, error) {
	records := []trust.Record{
		{Kind: trust.CA, URL: base, ChainPEM: string(encodeChain(m.caChain))},
		{Kind: trust.TSA, URL: base + "/api/v1/timestamp", ChainPEM: string(encodeChain(m.tsaChain))},
	}
	for _, l := range []struct {
		kind        trust.Kind
		url, origin string
		key         crypto.Signer
	}{
		{trust.CTLog, base + "/ct/" + ctShard, ctOrigin(host, ctShard), m.ct},
		{trust.Rekor2, base, host, m.rekor2},
		{trust.Rekor1, base, rekor1Origin(host, treeID(m.rekor1)), m.rekor1},
	} {
		text, err := signer.PublicPEM(l.key.Public())
		if err != nil {
			return nil, fmt.Errorf("entering the %s key: %w", l.kind, err)
		}
		records = append(records, trust.Record{Kind: l.kind, URL: l.url, Origin: l.origin, PublicKeyPEM: string(text), Start: m.made})
	}
	return records, nil
}
