// Package tsa is an RFC 3161 timestamp authority: a query comes in as DER or JSON, a signed
// TSTInfo that says "this digest existed at genTime" goes out.
//
//	query ──► ParseQuery, ParseJSONQuery ──► Authority.Issue ──► clock, policy, serial ──► assembler ──► reply
//
// Handler is the HTTP side. CreateChain makes the certificates of a new authority.
package tsa

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/digitorus/timestamp"
	"github.com/prometheus/client_golang/prometheus"
)

// DefaultPolicy is the policy that sigstore's timestamp-authority states and accepts.
const DefaultPolicy = "1.3.6.1.4.1.57264.2"

const (
	defaultAccuracy    = time.Second
	defaultSignTimeout = 5 * time.Second
	maxSigning         = 256 // signatures at a time that a remote signer is asked for
)

// Options is what an Authority consists of.
type Options struct {
	Signer crypto.Signer       // key of Chain[0]; a remote one must accept digests
	Chain  []*x509.Certificate // leaf, intermediates, self-signed root; see CheckChain

	Policy   string   // dotted OID for queries that name none; "" is DefaultPolicy
	Accepted []string // dotted OIDs that queries may name beside Policy

	// Accuracy is the largest error of genTime that the operator vouches for, at least the
	// second that genTime is cut to; 0 is one second.
	Accuracy time.Duration
	// LastIssued remembers the newest genTime across restarts; nil forgets it.
	LastIssued LastIssued
	// SignTimeout bounds one signature by a remote signer; 0 is five seconds.
	SignTimeout time.Duration

	Now        func() time.Time      // wall clock; nil is time.Now, with its monotonic reading
	Monotonic  func() time.Duration  // moves with Now whatever the wall clock is set to; nil is taken from Now
	Rand       io.Reader             // for serial numbers and signatures; nil is crypto/rand
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil: no metrics
}

// Authority issues timestamps. Its methods may be called from several goroutines.
type Authority struct {
	signer      crypto.Signer
	remote      bool // not a key in memory: signatures may hang
	signTimeout time.Duration
	signing     chan struct{} // holds a token for each signature that a remote signer works on
	chain       []*x509.Certificate
	policy      []byte            // DER element for queries that name none
	accepted    map[string][]byte // dotted OID to DER element
	clock       *clock
	assembler   *assembler
	random      io.Reader
	metrics     *metrics
}

// New checks the chain, the key and the clock (a self-test signature is made and read back by
// an independent parser) and returns the authority.
func New(o Options) (*Authority, error) {
	if o.Signer == nil {
		return nil, errors.New("a timestamp authority needs a signer")
	}
	if o.Accuracy == 0 {
		o.Accuracy = defaultAccuracy
	}
	if o.Accuracy < time.Second || o.Accuracy > time.Hour {
		return nil, fmt.Errorf("accuracy %v: it must be between the second that genTime is cut to and an hour", o.Accuracy)
	}
	if o.SignTimeout == 0 {
		o.SignTimeout = defaultSignTimeout
	}
	if o.Policy == "" {
		o.Policy = DefaultPolicy
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	read := reader(o.Now, o.Monotonic)
	wall, _ := read()
	if err := CheckChain(o.Chain, o.Signer.Public(), wall); err != nil {
		return nil, err
	}
	a := &Authority{
		signer:      o.Signer,
		remote:      !inMemory(o.Signer),
		signTimeout: o.SignTimeout,
		signing:     make(chan struct{}, maxSigning),
		chain:       o.Chain,
		accepted:    map[string][]byte{},
		random:      o.Rand,
	}
	for i, dotted := range append([]string{o.Policy}, o.Accepted...) {
		oid, err := ParsePolicy(dotted)
		if err != nil {
			return nil, err
		}
		encoded, err := asn1.Marshal(oid)
		if err != nil {
			return nil, fmt.Errorf("policy OID %q: %w", dotted, err)
		}
		if a.accepted[oid.String()] = encoded; i == 0 {
			a.policy = encoded
		}
	}
	first, end := window(o.Chain)
	var err error
	if a.clock, err = newClock(read, o.Accuracy, first, end, o.LastIssued, o.Logger); err != nil {
		return nil, err
	}
	if a.assembler, err = newAssembler(o.Chain, Accuracy(o.Accuracy)); err != nil {
		return nil, err
	}
	if a.metrics, err = newMetrics(o.Registerer, a, end, func() time.Time { wall, _ := read(); return wall }); err != nil {
		return nil, err
	}
	if err := a.selfTest(wall); err != nil {
		return nil, fmt.Errorf("self-test: %w", err)
	}
	return a, nil
}

// reader returns a function that reads both clocks at one moment.
func reader(now func() time.Time, monotonic func() time.Duration) func() (time.Time, time.Duration) {
	if now == nil {
		now = time.Now
	}
	start := now()
	return func() (time.Time, time.Duration) {
		t := now()
		elapsed := t.Sub(start) // by the monotonic reading, if now gives one
		if monotonic != nil {
			elapsed = monotonic()
		}
		return t.Round(0), elapsed // without the monotonic reading: later Subs compare wall clocks
	}
}

func inMemory(s crypto.Signer) bool {
	switch s.(type) {
	case *ecdsa.PrivateKey, *rsa.PrivateKey, ed25519.PrivateKey:
		return true
	}
	return false
}

// selfTest signs a digest of zeros, in a reply that is thrown away, and reads it with the
// library that cosign and sigstore-go read it with. The library checks the signature.
func (a *Authority) selfTest(at time.Time) error {
	serial, err := a.newSerial()
	if err != nil {
		return err
	}
	q := &Query{Hash: crypto.SHA256, Digest: make([]byte, crypto.SHA256.Size()), Certificates: true}
	reply, err := a.assembler.reply(a.sign(context.Background()), q, a.policy, serial, at)
	if err != nil {
		return err
	}
	_, err = timestamp.ParseResponse(reply)
	return err
}

// Chain returns the certificates, leaf first. The caller must not change them.
func (a *Authority) Chain() []*x509.Certificate { return a.chain }

// Issue returns a granted timestamp for q. Its errors are refusals: fault.Invalid when the query
// is at fault, fault.Unavailable when the clock or the signer is. The context bounds the wait
// for a remote signer.
func (a *Authority) Issue(ctx context.Context, q *Query) (*Token, error) {
	policy := a.policy
	if q.Policy != nil {
		var ok bool
		if policy, ok = a.accepted[q.Policy.String()]; !ok {
			return nil, refuse(unacceptedPolicy, nil, "policy %v is not one of this authority; send none for its default", q.Policy)
		}
	}
	if err := checkLength(q.Hash, q.Digest); err != nil {
		return nil, err
	}
	serial, err := a.newSerial()
	if err != nil {
		return nil, refuse(systemFailure, err, "no random serial number")
	}
	genTime, err := a.clock.genTime()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	reply, err := a.assembler.reply(a.sign(ctx), q, policy, serial, genTime)
	a.metrics.signed(time.Since(start), err)
	if err != nil {
		return nil, refuse(systemFailure, err, "the signer does not answer; try again")
	}
	a.metrics.issued(q)
	return &Token{Reply: reply, Serial: serial, GenTime: genTime}, nil
}

// Token is an issued timestamp.
type Token struct {
	Reply   []byte    // DER TimeStampResp, status granted
	Serial  []byte    // content of the positive DER INTEGER, at most 20 bytes
	GenTime time.Time // UTC, whole seconds
}

// newSerial returns a serial number as the content of a positive DER INTEGER. RFC 3161 wants it
// unique for this authority, also after a crash and, since replicas share the name, among
// replicas. 159 random bits need no memory for that: among 2^48 timestamps (9,000 years at
// 1,000/s) two are the same with a chance of 2^-64. 160 bits is what clients must take, and the
// top bit is the sign.
func (a *Authority) newSerial() ([]byte, error) {
	serial := make([]byte, 20)
	if _, err := io.ReadFull(a.random, serial); err != nil {
		return nil, err
	}
	serial[0] &= 0x7f
	for !minimal(serial) {
		serial = serial[1:]
	}
	return serial, nil
}

// sign returns the signature function for one reply. A remote signer that hangs costs its
// caller the timeout, and at most maxSigning goroutines until it comes back.
func (a *Authority) sign(ctx context.Context) signFunc {
	if !a.remote {
		return func(message []byte, opts crypto.SignerOpts) ([]byte, error) {
			return a.signer.Sign(a.random, message, opts)
		}
	}
	return func(message []byte, opts crypto.SignerOpts) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, a.signTimeout)
		defer cancel()
		select {
		case a.signing <- struct{}{}:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for a remote signer with %d signatures under way: %w", maxSigning, ctx.Err())
		}
		type result struct {
			signature []byte
			err       error
		}
		done := make(chan result, 1)
		go func() { // ends when the signer answers
			signature, err := a.signer.Sign(a.random, message, opts)
			<-a.signing
			done <- result{signature, err}
		}()
		select {
		case r := <-done:
			return r.signature, r.err
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the remote signer: %w", ctx.Err())
		}
	}
}

// Ready returns nil while timestamps can be issued: the clock is trusted, the chain valid, and
// a remote signer signs.
func (a *Authority) Ready(ctx context.Context) error {
	if err := a.clock.ready(); err != nil {
		return fmt.Errorf("timestamp authority: %w", err)
	}
	if !a.remote {
		return nil
	}
	// No SET OF attributes begins like this, so that the signature is good for nothing else.
	if _, err := a.assembler.sign(a.sign(ctx), []byte("self-test of a timestamp authority")); err != nil {
		return fmt.Errorf("timestamp authority: signer: %w", err)
	}
	return nil
}
