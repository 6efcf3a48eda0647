// Package keys makes what the roles of an instance start from: their private keys, the certificate chains of the CA and the
// TSA, and the public halves that the other roles are given. It makes each once, in directories or in the Secrets of a
// Kubernetes namespace, and never again: what is there is verified and left alone, what a killed run left unfinished is
// finished, and anything else is an error. Runs may overlap.
//
//	ca     ca.pem (P-256), ca-chain.pem     tsa   tsa.pem (P-256), tsa-chain.pem
//	tlog   ct.pem, rekor1.pem, rekor2.pem   tuf   root-1.pem, online.pem: a TUF root of one holder
//	public ca-chain.pem, ca-root.pem, tsa-chain.pem, ct.pub, rekor1.pub, rekor2.pub
//
// Keys are PKCS#8 in clear; who can read the directory or the Secret signs. The keys of both certificate roots exist only
// while they sign: see Options.Root.
package keys

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/tsa"
)

// Role is one of the programs that have keys.
type Role string

const (
	CA   Role = "ca"
	TLog Role = "tlog"
	TSA  Role = "tsa"
	TUF  Role = "tuf"
)

// Roles are all of them, in the order in which they are made.
func Roles() []Role { return []Role{CA, TLog, TSA, TUF} }

// public names the directory or ConfigMap of the public halves.
const public = "public"

const (
	caKey, caChain, caRoot = "ca.pem", "ca-chain.pem", "ca-root.pem"
	tsaKey, tsaChain       = "tsa.pem", "tsa-chain.pem"
	tufRoot, tufOnline     = "root-1.pem", "online.pem" // as tuf-publisher names them

	maxFile = 128 << 10 // bytes
)

// Files are PEM texts by name.
type Files map[string][]byte

// Options of Init. The zero value makes everything.
type Options struct {
	// Organization stands in the subjects of the certificates, which clients find a CA by. Default "attestry".
	Organization string
	// Root returns the CA root that signs the issuing certificate, when one is made. Nil: a new root, whose key is gone when Init
	// returns; the next issuing certificate needs a new root then, which clients learn by TUF.
	Root func() (*x509.Certificate, crypto.Signer, error)
	// Skip names roles whose keys are elsewhere.
	Skip []Role
	// Public are the public files of skipped roles; ca-root.pem follows from ca-chain.pem.
	Public Files
	// Now is when certificates begin. Nil: time.Now.
	Now func() time.Time
}

// Made says what Init has done.
type Made struct {
	Files   map[Role][]string // of each role that was not skipped, what was made; empty: it was there
	Missing []string          // public files of skipped roles that nobody gave
}

// store keeps the files of the roles. Its errors name the file or object.
type store interface {
	// lock keeps other runs out of role until release, as far as the store needs that.
	lock(role Role) (release func(), err error)
	// load returns the files of role, none when there is nothing.
	load(ctx context.Context, role Role) (Files, error)
	// add stores files of role in the order of names, next to those that are there, and replaces nothing. errTaken says
	// that another run was first.
	add(ctx context.Context, role Role, names []string, files Files) error
	// name is what a file of role is called in messages.
	name(role Role, file string) string
}

var errTaken = errors.New("another run was first")

// initialize is Init on any store.
func initialize(ctx context.Context, s store, o Options) (Made, error) {
	if o.Organization == "" {
		o.Organization = "attestry"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	made := Made{Files: map[Role][]string{}}
	known := Files{}
	if err := o.given(known); err != nil {
		return made, err
	}
	// What was published first: a key that others were told of is never made anew.
	published, err := s.load(ctx, public)
	if err != nil {
		return made, err
	}
	for _, role := range Roles() {
		if slices.Contains(o.Skip, role) {
			continue
		}
		files, names, err := o.ensure(ctx, s, role, published)
		if err != nil {
			return made, err
		}
		made.Files[role] = names
		if err := derive(role, files, known); err != nil {
			return made, err
		}
	}
	for _, role := range Roles() {
		for _, name := range publicFiles(role) {
			if known[name] == nil {
				made.Missing = append(made.Missing, name)
			}
		}
	}
	return made, ensurePublic(ctx, s, known)
}

// ensure returns the files of role, made and stored as far as they were missing.
func (o Options) ensure(ctx context.Context, s store, role Role, published Files) (Files, []string, error) {
	release, err := s.lock(role)
	if err != nil {
		return nil, nil, err
	}
	defer release()
	for {
		have, err := s.load(ctx, role)
		if err != nil {
			return nil, nil, err
		}
		all, names, err := o.complete(s, role, have, published)
		if err != nil || len(names) == 0 {
			return all, nil, err
		}
		err = s.add(ctx, role, names, all)
		if errors.Is(err, errTaken) {
			continue
		}
		return all, names, err
	}
}

// complete returns have with what role lacks, and the names of that in the order in which it must be stored: a key before
// what speaks of it. What is there must be whole and belong together, and what is published must not lack its key.
func (o Options) complete(s store, role Role, have, published Files) (Files, []string, error) {
	b := batch{all: maps.Clone(have), published: published, store: s, role: role}
	if b.all == nil {
		b.all = Files{}
	}
	var err error
	switch role {
	case CA:
		err = b.certified(caKey, caChain, func(text []byte, key crypto.PublicKey) error {
			chain, err := ca.ParseChain(text)
			if err != nil {
				return err
			}
			return ca.CheckChain(chain, key, chain[0].NotBefore) // whether it has ended is for the CA to say
		}, o.issuing)
	case TSA:
		err = b.certified(tsaKey, tsaChain, func(text []byte, key crypto.PublicKey) error {
			chain, err := tsa.ParseChain(text)
			if err != nil {
				return err
			}
			return tsa.CheckChain(chain, key, chain[0].NotBefore)
		}, o.timestamping)
	case TLog:
		err = b.distinct("ct.pem", "rekor1.pem", "rekor2.pem")
	case TUF:
		err = b.distinct(tufRoot, tufOnline)
	}
	return b.all, b.made, err
}

// batch is the files of a role while they are completed.
type batch struct {
	all, published Files
	made           []string
	store          store
	role           Role
}

func (b *batch) name(file string) string { return b.store.name(b.role, file) }

// key returns the key name, made when it is missing. half is what is published of it.
func (b *batch) key(name, half string) (crypto.Signer, error) {
	text, ok := b.all[name]
	if !ok {
		if b.published[half] != nil {
			return nil, fmt.Errorf("%s is missing, and %s speaks of it: a new key would not be that one; bring it back, or skip a role whose keys are elsewhere", b.name(name), b.store.name(public, half))
		}
		key, err := signer.New(signer.P256)
		if err != nil {
			return nil, err
		}
		if b.all[name], err = signer.PrivatePEM(key); err != nil {
			return nil, err
		}
		b.made = append(b.made, name)
		return key, nil
	}
	key, err := signer.Parse(text, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", b.name(name), err)
	}
	return key, nil
}

// certified completes a key and its chain.
func (b *batch) certified(keyName, chainName string, check func([]byte, crypto.PublicKey) error, create func(crypto.Signer) ([]*x509.Certificate, error)) error {
	_, hasKey := b.all[keyName]
	text, hasChain := b.all[chainName]
	if hasChain && !hasKey {
		return fmt.Errorf("%s is missing, and %s is there: a new key would not be the one of its chain; bring the key back", b.name(keyName), b.name(chainName))
	}
	key, err := b.key(keyName, chainName)
	if err != nil {
		return err
	}
	if !hasChain {
		if text = b.published[chainName]; text == nil {
			chain, err := create(key)
			if err != nil {
				return fmt.Errorf("%s: %w", b.name(chainName), err)
			}
			text = encode(chain)
		}
		b.all[chainName] = text
		b.made = append(b.made, chainName)
	}
	if err := check(text, key.Public()); err != nil {
		return fmt.Errorf("%s: %w", b.name(chainName), err)
	}
	return nil
}

// distinct completes P-256 keys, of which no two may be the same: a log is known by its key, and so is a signer of TUF metadata.
// They are stored in order, so a run that was killed lacks the last ones; one that is missing before others was taken away.
func (b *batch) distinct(names ...string) error {
	seen := map[string]string{}
	for i, name := range names {
		if later := slices.IndexFunc(names[i+1:], func(n string) bool { return b.all[n] != nil }); b.all[name] == nil && later >= 0 {
			return fmt.Errorf("%s is missing, and %s, which was made after it, is there: a new key would not be that one; bring it back, or skip a role whose keys are elsewhere", b.name(name), b.name(names[i+1+later]))
		}
		key, err := b.key(name, strings.TrimSuffix(name, ".pem")+".pub")
		if err != nil {
			return err
		}
		pub, ok := key.Public().(*ecdsa.PublicKey)
		if !ok || pub.Curve != elliptic.P256() {
			return fmt.Errorf("%s: the key must be ECDSA P-256, which every client reads", b.name(name))
		}
		der, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			return err
		}
		if other := seen[string(der)]; other != "" {
			return fmt.Errorf("%s and %s are the same key", b.name(other), b.name(name))
		}
		seen[string(der)] = name
	}
	return nil
}

// issuing makes the CA's chain for key, and the root when nobody gave one.
func (o Options) issuing(key crypto.Signer) ([]*x509.Certificate, error) {
	now := o.Now().Truncate(time.Second)
	if o.Root == nil {
		root, err := signer.New(signer.P384)
		if err != nil {
			return nil, err
		}
		return ca.CreateHierarchy(ca.Hierarchy{RootKey: root, IssuingKey: key, Organization: o.Organization, NotBefore: now})
	}
	root, rootKey, err := o.Root()
	if err != nil {
		return nil, err
	}
	request, err := ca.CreateCSR(key, pkix.Name{Organization: []string{o.Organization}, CommonName: o.Organization + " issuing CA"})
	if err != nil {
		return nil, err
	}
	parsed, err := ca.ParseCSR(request)
	if err != nil {
		return nil, err
	}
	return ca.SignCSR(parsed, root, rootKey, 0, now)
}

// timestamping makes the TSA's chain for key. Both of its certificates end together, so its root is needed once.
func (o Options) timestamping(key crypto.Signer) ([]*x509.Certificate, error) {
	root, err := signer.New(signer.P256)
	if err != nil {
		return nil, err
	}
	return tsa.CreateChain(key.Public(), root, tsa.ChainOptions{Organization: o.Organization, NotBefore: o.Now().Truncate(time.Second)})
}

// publicFiles names what the other roles are told of role.
func publicFiles(role Role) []string {
	switch role {
	case CA:
		return []string{caChain, caRoot}
	case TSA:
		return []string{tsaChain}
	case TLog:
		return []string{"ct.pub", "rekor1.pub", "rekor2.pub"}
	}
	return nil // the TUF root is published by tuf-publisher
}

// derive adds the public files of a role to known.
func derive(role Role, files, known Files) error {
	switch role {
	case CA:
		chain, err := ca.ParseChain(files[caChain])
		if err != nil {
			return err
		}
		known[caChain], known[caRoot] = files[caChain], encode(chain[len(chain)-1:])
	case TSA:
		known[tsaChain] = files[tsaChain]
	case TLog:
		for _, name := range []string{"ct", "rekor1", "rekor2"} {
			key, err := signer.Parse(files[name+".pem"], nil)
			if err != nil {
				return err
			}
			if known[name+".pub"], err = signer.PublicPEM(key.Public()); err != nil {
				return err
			}
		}
	}
	return nil
}

// given adds to known the public files of skipped roles that somebody gave.
func (o Options) given(known Files) error {
	for _, name := range slices.Sorted(maps.Keys(o.Public)) {
		text := o.Public[name]
		owner := slices.IndexFunc(Roles(), func(r Role) bool { return name != caRoot && slices.Contains(publicFiles(r), name) })
		if owner < 0 {
			return fmt.Errorf("public file %q is not one of ca-chain.pem, tsa-chain.pem, ct.pub, rekor1.pub, rekor2.pub", name)
		}
		role := Roles()[owner]
		if !slices.Contains(o.Skip, role) {
			return fmt.Errorf("public file %s belongs to %s, which is not skipped", name, role)
		}
		if err := checkPublic(role, text); err != nil {
			return fmt.Errorf("public file %s: %w", name, err)
		}
		known[name] = text
		if name == caChain {
			if err := derive(CA, Files{caChain: text}, known); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkPublic(role Role, text []byte) error {
	if len(text) > maxFile {
		return fmt.Errorf("over %d bytes", maxFile)
	}
	switch role {
	case CA:
		chain, err := ca.ParseChain(text)
		if err != nil {
			return err
		}
		return ca.CheckChain(chain, chain[0].PublicKey, chain[0].NotBefore)
	case TSA:
		chain, err := tsa.ParseChain(text)
		if err != nil {
			return err
		}
		return tsa.CheckChain(chain, chain[0].PublicKey, chain[0].NotBefore)
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) != 0 {
		return errors.New("it is not one PEM block of type PUBLIC KEY")
	}
	_, err := x509.ParsePKIXPublicKey(block.Bytes)
	return err
}

// ensurePublic stores the public files. One that is there and says something else is an error: a key was swapped, and who
// trusts the old one must be told before it is.
func ensurePublic(ctx context.Context, s store, known Files) error {
	release, err := s.lock(public)
	if err != nil {
		return err
	}
	defer release()
	for {
		have, err := s.load(ctx, public)
		if err != nil {
			return err
		}
		var names []string
		for _, name := range slices.Sorted(maps.Keys(known)) {
			text, ok := have[name]
			switch {
			case !ok:
				names = append(names, name)
			case !bytes.Equal(text, known[name]):
				return fmt.Errorf("%s is not of the key that is there now: a key was replaced. Clients must learn the new one first, as a record of tuf-publisher; then remove this and run again", s.name(public, name))
			}
		}
		if len(names) == 0 {
			return nil
		}
		if err := s.add(ctx, public, names, known); !errors.Is(err, errTaken) {
			return err
		}
	}
}

func encode(chain []*x509.Certificate) []byte {
	var text []byte
	for _, cert := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return text
}
