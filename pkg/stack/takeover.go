package stack

import (
	"context"
	"crypto"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/attestry/attestry/pkg/ca"
)

// The list of CAs (authorities.go) may change while the instance runs. What is new in it comes into force in this order, and what
// fails is tried again at the next look, with the CA before it issuing on:
//
//	key, chain     opened and checked                     → nothing was touched
//	CT logs        accept the new root                    → harmless without the rest
//	trust material publishes the new chain                → it may issue from here on, see publishCAs
//	the CA         takes key and chain over, in one step  → whoever gets a certificate can verify it
//	trust material ends the chains before it              → see issues; a start does it too
//
// So a kill between any two leaves a CA that is published.

// issuingCA is a list of CAs with the key of the one that issues.
type issuingCA struct {
	list *authorities
	key  crypto.Signer
}

// nextCA reads the list of CAs and, where it is not the one that is published, publishes it. in is in force. The CA
// in the result may issue.
func (s *Stack) nextCA(ctx context.Context, reading func(string), in issuingCA) (issuingCA, error) {
	keysDir := filepath.Join(s.opts.Dir, "keys")
	reading(filepath.Join(keysDir, authoritiesName))
	list, err := readAuthorities(keysDir)
	if err != nil {
		return in, err
	}
	next := issuingCA{list, in.key}
	if !list.CAs[list.Issuing].equal(in.list.CAs[in.list.Issuing]) {
		if path, ok := strings.CutPrefix(ShardKey(keysDir, list.CAs[list.Issuing].Key), "file:"); ok {
			reading(path)
		}
		if next.key, err = list.open(keysDir); err != nil {
			return in, err
		}
		if err := ca.CheckChain(list.CAs[list.Issuing].certs, next.key.Public(), s.opts.Now()); err != nil {
			return in, fmt.Errorf("%s: CA %d: %w", authoritiesName, list.Issuing+1, err)
		}
	}
	s.publishing.Lock()
	published := s.cas
	s.publishing.Unlock()
	if list.equal(published) {
		return next, nil
	}
	if err := s.logs.SetRoots(list.roots()); err != nil {
		return in, err
	}
	if err := s.publishCAs(ctx, list); err != nil {
		return in, fmt.Errorf("publishing the CAs of %s: %w", authoritiesName, err)
	}
	return next, nil
}

// issues notes that list's CA has begun. The logs' next step ends those before it in trust material, and tries until it has.
func (s *Stack) issues(list *authorities) {
	s.publishing.Lock()
	began := s.issuing != list.Issuing
	s.issuing = list.Issuing
	s.publishing.Unlock()
	if began {
		s.logs.changed()
	}
}
