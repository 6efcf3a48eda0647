package trust

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Target is one file of the TUF repository.
type Target struct {
	Name string
	Data []byte
	// Custom is the `custom` object of the targets metadata, nil for none. The legacy client
	// (sigstore/sigstore pkg/tuf: cosign before 2.5.1, Kyverno) finds keys by its
	// sigstore.usage and warns where sigstore.status is not Active.
	Custom json.RawMessage
}

type sigstoreCustom struct {
	Sigstore struct {
		Usage  string `json:"usage"` // Fulcio, Rekor, CTFE, TSA
		Status string `json:"status"`
		URI    string `json:"uri"`
	} `json:"sigstore"`
}

// targets lists d's JSON files and the legacy target of each key. The newest active record
// of a kind has the fixed name that old clients fall back to, older ones have their ID in it.
func targets(d *Derived, records []Record, at time.Time) []Target {
	out := []Target{
		{Name: "trusted_root.json", Data: d.TrustedRoot},
		{Name: "signing_config.v0.2.json", Data: d.SigningConfig},
	}
	if d.SigningConfigV2 != nil {
		// cosign 3.1: `signing-config create --with-default-rekor-v2`.
		out = append(out, Target{Name: "signing_config_rekor_v2.v0.2.json", Data: d.SigningConfigV2})
	}
	seen := map[string]bool{} // one root certificate may end several chains
	add := func(r Record, usage, name, ext string, data []byte) {
		if seen[string(data)] {
			return
		}
		seen[string(data)] = true
		if current := newest(records, r.Kind, at); current == nil || current.ID != r.ID {
			name += "_" + strings.TrimPrefix(r.ID, string(r.Kind)+"-")
		}
		out = append(out, Target{Name: name + ext, Data: data, Custom: legacyCustom(r, usage)})
	}
	// Newest first, so that a shared root keeps the status of the record in use.
	for _, r := range slices.Backward(records) {
		switch r.Kind {
		case CA:
			last := len(r.certs) - 1
			add(r, "Fulcio", "fulcio_v1", ".crt.pem", certsPEM(r.certs[last:]))
			if last > 0 {
				add(r, "Fulcio", "fulcio_intermediate_v1", ".crt.pem", certsPEM(r.certs[:last]))
			}
		case Rekor1:
			add(r, "Rekor", "rekor", ".pub", []byte(r.PublicKeyPEM))
		case CTLog:
			add(r, "CTFE", "ctfe", ".pub", []byte(r.PublicKeyPEM))
		}
	}
	// The legacy client wants exactly one leaf among all TSA targets.
	if r := newest(records, TSA, at); r != nil {
		last := len(r.certs) - 1
		add(*r, "TSA", "tsa_leaf", ".crt.pem", certsPEM(r.certs[:1]))
		for i, cert := range r.certs[1:last] {
			add(*r, "TSA", fmt.Sprintf("tsa_intermediate_%d", i), ".crt.pem", certsPEM([]*x509.Certificate{cert}))
		}
		add(*r, "TSA", "tsa_root", ".crt.pem", certsPEM(r.certs[last:]))
	}
	slices.SortFunc(out, func(a, b Target) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func legacyCustom(r Record, usage string) json.RawMessage {
	var custom sigstoreCustom
	custom.Sigstore.Usage, custom.Sigstore.Status, custom.Sigstore.URI = usage, "Active", r.URL
	if r.State != Active {
		custom.Sigstore.Status = "Expired"
	}
	raw, _ := json.Marshal(custom) // three strings
	return raw
}

// newest is the active record of kind that started last before at, or the one that will start first when
// none has yet; nil when there is no active one. Records are sorted by start.
func newest(records []Record, kind Kind, at time.Time) *Record {
	var later *Record
	for i := len(records) - 1; i >= 0; i-- {
		if records[i].Kind != kind || records[i].State != Active {
			continue
		}
		if at.IsZero() || !records[i].Start.After(at) {
			return &records[i]
		}
		later = &records[i]
	}
	return later
}

// newestPEM is the key or the chain, leaf first, of the newest active record of kind.
func newestPEM(records []Record, kind Kind, at time.Time) []byte {
	r := newest(records, kind, at)
	if r == nil {
		return nil
	}
	return []byte(r.PublicKeyPEM + r.ChainPEM)
}

// fulcioPEM is every CA certificate that counts, newest chain first, each once. cosign 2.x
// sorts self-signed ones from intermediates itself (SIGSTORE_ROOT_FILE).
func fulcioPEM(records []Record) []byte {
	var out []byte
	for _, r := range slices.Backward(records) {
		if r.Kind != CA {
			continue
		}
		for _, cert := range r.certs {
			if block := certsPEM([]*x509.Certificate{cert}); !bytes.Contains(out, block) {
				out = append(out, block...)
			}
		}
	}
	return out
}

func certsPEM(certs []*x509.Certificate) []byte {
	var out []byte
	for _, cert := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return out
}

// oldest is the start of the first record, since when the instance exists.
func oldest(records []Record) time.Time {
	if len(records) == 0 {
		return time.Unix(0, 0)
	}
	return records[0].Start
}
