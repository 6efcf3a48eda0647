// Package records keeps what a CA issued and refused in SQL, append-only, and answers from it.
//
// There are two tables, issued and refused. A row is never changed or removed, which triggers enforce,
// and each has a hash:
//
//	hash = SHA-256(hash of the row before, 32 bytes ‖ the row's text)
//
// The text is the row as compact JSON without its hash, in the order of the fields of Issued and Refused; the hash before the
// first row is 32 zero bytes. So rows that were changed, removed or put between others show in Verify, as long as
// somebody remembers the number and the hash of a later row: whoever can rewrite the tables can rewrite the hashes, too.
package records

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/ca"
)

// Issued is a certificate that was issued: a row of the table of that name. Hashes and the serial number are lower-case hex.
type Issued struct {
	Seq         int64  `json:"seq"`  // from 1, without gaps
	Time        string `json:"time"` // UTC, RFC 3339 with three digits of ms, so that texts sort as times
	Serial      string `json:"serial"`
	NotAfter    string `json:"notAfter"` // as Time
	Identity    string `json:"identity"` // subject alternative name
	Issuer      string `json:"issuer"`   // OIDC issuer: the token's iss
	Subject     string `json:"subject"`  // the token's sub
	Token       string `json:"token"`    // SHA-256 of the token's signature part, as in the CA's log lines
	Rule        string `json:"rule,omitempty"`
	Key         string `json:"key"`                // SHA-256 of the certified key's SubjectPublicKeyInfo
	Certificate string `json:"certificate"`        // SHA-256 of its DER
	IssuingCert string `json:"issuingCertificate"` // SHA-256 of its DER
	CTLog       string `json:"ctLog,omitempty"`    // log ID; "" without a log
	CTLeaf      string `json:"ctLeaf,omitempty"`   // leaf hash of the precertificate, or certificate
	CTIndex     int64  `json:"ctIndex"`            // -1 where the SCT does not name it
	RequestID   string `json:"requestId"`
	Hash        string `json:"hash,omitempty"`
}

// Refused is a request that got no certificate, or the number of those that were left out: a row of the table of that name.
// Issuer and Token are as the client sent them, not verified.
type Refused struct {
	Seq       int64  `json:"seq"`
	Time      string `json:"time"`
	Reason    string `json:"reason"` // stable code
	Status    int64  `json:"status"` // HTTP; 0 in a row that counts
	Issuer    string `json:"issuer,omitempty"`
	Token     string `json:"token,omitempty"`
	RequestID string `json:"requestId,omitempty"`
	Detail    string `json:"detail"`
	LeftOut   int64  `json:"leftOut,omitempty"` // refusals for this reason that have no row of their own
	Hash      string `json:"hash,omitempty"`
}

const (
	timeForm   = "2006-01-02T15:04:05.000Z"
	maxDetail  = 512 // bytes
	schemaName = "ca"
)

func stamp(t time.Time) string { return t.UTC().Format(timeForm) }

func newIssued(i *ca.Issuance) *Issued {
	r := &Issued{
		Time: stamp(i.Time), Serial: hex.EncodeToString(i.Serial), NotAfter: stamp(i.NotAfter), Identity: clean(i.Identity), Issuer: clean(i.OIDCIssuer),
		Subject: clean(i.Subject), Token: hex.EncodeToString(i.Token[:]), Rule: clean(i.Rule), Key: hex.EncodeToString(i.KeyID[:]),
		Certificate: hex.EncodeToString(i.Certificate[:]), IssuingCert: hex.EncodeToString(i.IssuingCert[:]), CTIndex: -1, RequestID: clean(i.RequestID),
	}
	if i.CT != nil {
		r.CTLog, r.CTLeaf, r.CTIndex = hex.EncodeToString(i.CT.LogID[:]), hex.EncodeToString(i.CT.LeafHash[:]), i.CT.Index
	}
	return r
}

func newRefused(r *ca.Refusal) *Refused {
	row := &Refused{
		Time: stamp(r.Time), Reason: clean(r.Reason), Status: int64(r.Status), Issuer: clean(r.OIDCIssuer), RequestID: clean(r.RequestID),
		Detail: clean(r.Detail[:min(len(r.Detail), maxDetail)]),
	}
	if r.Token != nil {
		row.Token = hex.EncodeToString(r.Token[:])
	}
	return row
}

// clean makes text that both engines take: UTF-8 without NUL.
func clean(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// row is what the two kinds have in common.
type row interface {
	fields() []any // pointers to string and int64, in the order of the table's columns
	chained() (seq *int64, hash *string)
}

func (r *Issued) fields() []any {
	return []any{
		&r.Seq, &r.Time, &r.Serial, &r.NotAfter, &r.Identity, &r.Issuer, &r.Subject, &r.Token, &r.Rule, &r.Key, &r.Certificate, &r.IssuingCert,
		&r.CTLog, &r.CTLeaf, &r.CTIndex, &r.RequestID, &r.Hash,
	}
}

func (r *Refused) fields() []any {
	return []any{&r.Seq, &r.Time, &r.Reason, &r.Status, &r.Issuer, &r.Token, &r.RequestID, &r.Detail, &r.LeftOut, &r.Hash}
}

func (r *Issued) chained() (seq *int64, hash *string)  { return &r.Seq, &r.Hash }
func (r *Refused) chained() (seq *int64, hash *string) { return &r.Seq, &r.Hash }

// Head is how far a table has come: its number of rows and the hash of the last.
type Head struct {
	Seq  int64
	Hash string // hex
}

// after returns the head once r, whose other fields are set, is chained to h.
func (h Head) after(r row) (Head, error) {
	seq, hash := r.chained()
	*seq, *hash = h.Seq+1, ""
	before, err := hex.DecodeString(h.Hash)
	if err != nil {
		return h, fmt.Errorf("the hash of row %d: %w", h.Seq, err)
	}
	var text bytes.Buffer
	text.Write(before)
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return h, err
	}
	sum := sha256.Sum256(bytes.TrimSuffix(text.Bytes(), []byte("\n")))
	*hash = hex.EncodeToString(sum[:])
	return Head{*seq, *hash}, nil
}

// Options of Open.
type Options struct {
	URI          string // sqlite:PATH, for one process, or postgres://user@host/database, which replicas share
	PasswordFile string // of PostgreSQL, see database.Options
	Logger       *slog.Logger
	Registerer   prometheus.Registerer // may be nil
	Now          func() time.Time      // default time.Now
}

// Open opens the records at o.URI for writing, and makes the tables that are missing. In PostgreSQL they are in the schema "ca"; a server
// that does not sync its commits is refused. With SQLite it also puts into the database what a process that was killed left in the journal, and
// fails when that is damaged. A second process on the file, until the first has closed it, waits for the database with each certificate.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("opening the records: %w", err)
	}
	db, err := database.Open(ctx, o.URI, database.Options{
		Schema: schemaName, PasswordFile: o.PasswordFile, ConnectTimeout: commitTime, StatementTimeout: commitTime,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the records: %w", err)
	}
	if err := create(ctx, db); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the records: %w", err), db.Close())
	}
	s := &Store{
		db: db, opts: o, metrics: m, wake: make(chan struct{}, 1), ended: make(chan struct{}), later: make(chan struct{}, 1), stop: make(chan struct{}),
		kept: make(chan struct{}), refusals: newRefusals(o.Now()),
	}
	if db.Engine() == database.SQLite {
		if s.journal, err = openJournal(db.Path()); err != nil {
			return nil, errors.Join(fmt.Errorf("opening the records: %w", err), db.Close())
		}
		s.unsure = true // of what a process left that was killed
		if !s.catchUp(false) {
			notify(s.later)
		}
	}
	go s.run() // ends with Close
	go s.keep()
	return s, nil
}

func unavailable(err error, text string) error {
	return fault.New(fault.Unavailable, "record_unavailable", err, "%s", text)
}
