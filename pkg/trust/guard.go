package trust

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"

	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"
)

// refuseLoss compares what is published with what would be: no entry may vanish and no window
// may shrink unless the inventory says that the key was revoked (or, for a window that was
// open, retired). That catches an inventory restored from an old backup or cut at its end.
func (p *Publisher) refuseLoss(records []Record, next *Derived) error {
	if p.repo.targets == nil {
		return nil
	}
	raw, err := p.repo.target(p.read, "trusted_root.json")
	if err != nil {
		return err
	}
	var old, now trustpb.TrustedRoot
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, &old); err != nil {
		return fmt.Errorf("published trusted root: %w", err)
	}
	if err := protojson.Unmarshal(next.TrustedRoot, &now); err != nil {
		return err
	}
	have := map[string]*commonpb.TimeRange{}
	for _, e := range entriesOf(&now) {
		have[e.key] = e.window
	}
	state := map[string]State{}
	for _, r := range records {
		state[entryKey(r.Kind, r.spki, r.chainDER())] = r.State
	}
	var problems []error
	for _, e := range entriesOf(&old) {
		w, there := have[e.key]
		switch s := state[e.key]; {
		case s == Revoked:
		case !there:
			problems = append(problems, fmt.Errorf("the published trusted root has %s and the inventory lacks it: restore the newest inventory, or revoke the key there", e.name))
		case w.GetStart().AsTime().After(e.window.GetStart().AsTime()):
			problems = append(problems, fmt.Errorf("%s would start at %s, later than published", e.name, stamp(w.GetStart().AsTime())))
		case w.GetEnd() != nil && (e.window.GetEnd() == nil && s != Retired || e.window.GetEnd() != nil && w.GetEnd().AsTime().Before(e.window.GetEnd().AsTime())):
			problems = append(problems, fmt.Errorf("%s would end at %s, earlier than published: revoke it if that is meant", e.name, stamp(w.GetEnd().AsTime())))
		}
	}
	return errors.Join(problems...)
}

// trustEntry is one entry of a trusted root, known by its list and key material.
type trustEntry struct {
	key, name string
	window    *commonpb.TimeRange
}

func entriesOf(root *trustpb.TrustedRoot) []trustEntry {
	var out []trustEntry
	for list, logs := range map[Kind][]*trustpb.TransparencyLogInstance{Rekor1: root.Tlogs, CTLog: root.Ctlogs} {
		for _, l := range logs {
			out = append(out, trustEntry{
				key:    entryKey(list, l.GetPublicKey().GetRawBytes(), nil),
				name:   fmt.Sprintf("log key %s at %s", hex.EncodeToString(l.GetLogId().GetKeyId())[:min(16, 2*len(l.GetLogId().GetKeyId()))], l.GetBaseUrl()),
				window: l.GetPublicKey().GetValidFor(),
			})
		}
	}
	for list, cas := range map[Kind][]*trustpb.CertificateAuthority{CA: root.CertificateAuthorities, TSA: root.TimestampAuthorities} {
		for _, ca := range cas {
			var chain [][]byte
			for _, cert := range ca.GetCertChain().GetCertificates() {
				chain = append(chain, cert.GetRawBytes())
			}
			out = append(out, trustEntry{
				key:    entryKey(list, nil, chain),
				name:   fmt.Sprintf("%s %q at %s", list, ca.GetSubject().GetCommonName(), ca.GetUri()),
				window: ca.GetValidFor(),
			})
		}
	}
	return out
}

// entryKey tells entries apart; both kinds of Rekor share one list.
func entryKey(kind Kind, spki []byte, chain [][]byte) string {
	if kind == Rekor2 {
		kind = Rekor1
	}
	return string(kind) + ":" + string(spki) + string(bytes.Join(chain, nil))
}

// chainDER is the DER of the record's chain.
func (r *Record) chainDER() [][]byte {
	var chain [][]byte
	for _, cert := range r.certs {
		chain = append(chain, cert.Raw)
	}
	return chain
}
