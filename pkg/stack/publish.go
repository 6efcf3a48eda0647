package stack

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/trust"
)

// publish opens inventory and publisher, and publishes what the keys in use ask for.
func (s *Stack) publish(ctx context.Context) (err error) {
	if s.inventory, err = trust.OpenInventory(filepath.Join(s.opts.Dir, "trust", "inventory.jsonl"), s.opts.Now); err != nil {
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
	logs, err := s.logs.Infos()
	if err != nil {
		return err
	}
	return s.publishLogs(ctx, logs)
}

// publishLogs is Publish for these logs and the CAs that are published already.
func (s *Stack) publishLogs(ctx context.Context, logs []LogInfo) error {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	return s.publishKeys(ctx, s.cas, logs)
}

// publishCAs publishes list in place of the CAs before it. When it returns clients can fetch all of them.
func (s *Stack) publishCAs(ctx context.Context, list *authorities) error {
	logs, err := s.logs.Infos()
	if err != nil {
		return err
	}
	s.publishing.Lock()
	defer s.publishing.Unlock()
	if err := s.publishKeys(ctx, list, logs); err != nil {
		return err
	}
	s.cas = list
	return nil
}

// publishKeys enters the instance's keys in the inventory, ends the windows of CAs before the one that issues and of
// frozen logs, publishes what follows from it, and writes the files for clients. s.publishing is held.
func (s *Stack) publishKeys(ctx context.Context, cas *authorities, logs []LogInfo) error {
	records, err := s.material.records(s.url, cas, logs)
	if err != nil {
		return err
	}
	ids, err := s.inventory.Enter(records...)
	if err != nil {
		return err
	}
	known := map[string]trust.Record{}
	for _, r := range s.inventory.Records() {
		known[r.ID] = r
	}
	open := func(id string) bool { return known[id].State == trust.Active }
	if id := ids[cas.Issuing]; !open(id) {
		return fmt.Errorf("%s: CA %d, %s, is to issue, and trust material ends it at %s: a chain that was replaced never returns",
			authoritiesName, cas.Issuing+1, cas.CAs[cas.Issuing].certs[0].Subject, known[id].End.UTC().Format(time.RFC3339))
	}
	for _, id := range ids[:s.issuing] {
		if open(id) {
			if err := s.inventory.Retire(id, s.opts.Now().Add(retirement), "another CA certificate issues"); err != nil {
				return err
			}
		}
	}
	for i, l := range logs {
		if id := ids[len(ids)-len(logs)+i]; l.State == Frozen && open(id) {
			// From now: the freeze was before, and a window that was open is never cut in the past.
			if err := s.inventory.Retire(id, s.opts.Now(), fmt.Sprintf("the log is frozen with %d entries", l.Final.Size)); err != nil {
				return err
			}
		}
	}
	if err := s.publisher.Publish(ctx, s.inventory); err != nil {
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

// Run keeps the TUF metadata fresh, and client/root.json with it, carries out what is ordered for the
// logs, and follows the CA's issuer file and what `attestry ca install` stores, until ctx ends.
func (s *Stack) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.publisher.Run(ctx) })
	g.Go(func() error { return s.logs.Run(ctx, s.publishLogs) })
	g.Go(func() error {
		looks := time.NewTicker(ca.LookEvery)
		defer looks.Stop()
		s.ca.Watch(ctx, looks.C, s.opts.Hangups)
		return nil
	})
	g.Go(func() error {
		tick := time.NewTicker(10 * time.Minute)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				s.publishing.Lock()
				err := s.writeClientFiles()
				s.publishing.Unlock()
				if err != nil {
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

// records lists the keys in use: the CAs first, the logs last, both in their order. A window begins when the key was
// made, before its first use, or when it was ordered to.
func (m *material) records(public *url.URL, cas *authorities, logs []LogInfo) ([]trust.Record, error) {
	base := strings.TrimSuffix(public.String(), "/")
	var records []trust.Record
	for _, a := range cas.CAs {
		records = append(records, trust.Record{Kind: trust.CA, URL: base, ChainPEM: string(encodeChain(a.certs))})
	}
	records = append(records, trust.Record{Kind: trust.TSA, URL: base + "/api/v1/timestamp", ChainPEM: string(encodeChain(m.tsaChain))})
	for _, l := range logs {
		text, err := signer.PublicPEM(l.Key)
		if err != nil {
			return nil, fmt.Errorf("entering the key of log %s: %w", l.Label, err)
		}
		r := trust.Record{Origin: l.Origin, PublicKeyPEM: string(text), Start: l.Begin}
		if r.Start.IsZero() {
			r.Start = m.made
		}
		r.Kind, r.URL = l.Place(public)
		records = append(records, r)
	}
	return records, nil
}

// Place says under which kind and URL trust material names the log, on a server whose public URL is public.
func (l LogInfo) Place(public *url.URL) (trust.Kind, string) {
	base := strings.TrimSuffix(public.String(), "/")
	switch l.Kind {
	case log.Rekor1:
		return trust.Rekor1, base
	case log.CT:
		return trust.CTLog, base + "/ct/" + l.Shard
	default:
		own := *public
		if own.Host = l.Host; public.Port() != "" {
			own.Host += ":" + public.Port()
		}
		return trust.Rekor2, strings.TrimSuffix(own.String(), "/")
	}
}
