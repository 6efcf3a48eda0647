package rekor1

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	rekorclient "github.com/sigstore/rekor/pkg/client"
	"github.com/sigstore/rekor/pkg/generated/client/entries"
	"github.com/sigstore/rekor/pkg/generated/models"
	_ "github.com/sigstore/rekor/pkg/types/cose/v0.0.1" // registers the kind
	_ "github.com/sigstore/rekor/pkg/types/intoto/v0.0.1"
	_ "github.com/sigstore/rekor/pkg/types/intoto/v0.0.2"
	"github.com/veraison/go-cose"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log/entry"
)

// intoto001 is an intoto 0.0.1 entry of a payload.
func (c client) intoto001(t testing.TB, payload string) map[string]any {
	const payloadType = "text/plain"
	sig := c.sign(t, fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload))
	envelope := toJSON(t, map[string]any{"payloadType": payloadType, "payload": []byte(payload), "signatures": []any{map[string]any{"sig": sig}}})
	return map[string]any{"kind": "intoto", "apiVersion": "0.0.1", "spec": map[string]any{
		"content": map[string]any{"envelope": envelope}, "publicKey": c.pem,
	}}
}

// intoto002 is an intoto 0.0.2 entry of a payload.
func (c client) intoto002(t testing.TB, payload string) map[string]any {
	const payloadType = "text/plain"
	sig := c.sign(t, fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload))
	twice := func(raw []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(raw)) }
	return map[string]any{"kind": "intoto", "apiVersion": "0.0.2", "spec": map[string]any{"content": map[string]any{
		"envelope": map[string]any{"payloadType": payloadType, "payload": twice([]byte(payload)), "signatures": []any{map[string]any{"sig": twice(sig), "publicKey": c.pem}}},
		"hash":     map[string]any{"algorithm": "sha256", "value": strings.Repeat("0f", 32)},
	}}}
}

// message is a cose entry and the message in it.
func (c client) message(t testing.TB, payload string) (map[string]any, []byte) {
	t.Helper()
	by, err := cose.NewSigner(cose.AlgorithmES256, c.key)
	if err != nil {
		t.Fatal(err)
	}
	msg := cose.NewSign1Message()
	msg.Payload = []byte(payload)
	msg.Headers.Protected.SetAlgorithm(cose.AlgorithmES256)
	if err := msg.Sign(rand.Reader, nil, by); err != nil {
		t.Fatal(err)
	}
	raw, err := msg.MarshalCBOR()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{"kind": "cose", "apiVersion": "0.0.1", "spec": map[string]any{"message": raw, "publicKey": c.pem, "data": map[string]any{}}}, raw
}

func kinds(t testing.TB, names ...string) entry.Kinds {
	t.Helper()
	k, err := entry.ParseKinds(names)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func directory(t testing.TB) (*Directory, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "attestations")
	d, err := OpenDirectory(path)
	if err != nil {
		t.Fatal(err)
	}
	return d, path
}

// TestAttestationsReadByRekorsClient reads attestations as rekor-cli does, in every way that there is.
func TestAttestationsReadByRekorsClient(t *testing.T) {
	d, _ := directory(t)
	s, c := newService(t, func(o *Options) {
		o.Attestations, o.MaxAttestation, o.Kinds = d, 1000, kinds(t, "intoto", "cose", "dsse", "hashedrekord")
	}), newClient(t)
	rekor, err := rekorclient.GetRekorClient(s.server.URL, rekorclient.WithRetryCount(0))
	if err != nil {
		t.Fatal(err)
	}
	message, raw := c.message(t, "signed")
	large := strings.Repeat("x", 1001)
	for i, tt := range []struct {
		name string
		doc  map[string]any
		want string
	}{
		{"the payload of an intoto 0.0.1", c.intoto001(t, "one"), "one"},
		{"the payload of an intoto 0.0.2", c.intoto002(t, "two"), "two"},
		{"a payload that two entries have", c.intoto002(t, "one"), "one"},
		{"a message", message, string(raw)},
		{"a payload at the limit", c.intoto001(t, large[:1000]), large[:1000]},
		{"a payload over the limit", c.intoto001(t, large), ""},
		{"an envelope, of which nothing is kept", c.attestation(t, strings.Repeat("ab", 32)), ""},
		{"a digest", c.blob(t, "x"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			created, err := rekor.Entries.CreateLogEntry(entries.NewCreateLogEntryParams().WithProposedEntry(proposed(t, tt.doc)))
			if err != nil {
				t.Fatal(err)
			}
			if anon := created.Payload[created.ETag]; anon.Attestation != nil {
				t.Error("the answer to a submission has the attestation")
			}
			byUUID, err := rekor.Entries.GetLogEntryByUUID(entries.NewGetLogEntryByUUIDParams().WithEntryUUID(created.ETag))
			if err != nil {
				t.Fatal(err)
			}
			byIndex, err := rekor.Entries.GetLogEntryByIndex(entries.NewGetLogEntryByIndexParams().WithLogIndex(int64(i)))
			if err != nil {
				t.Fatal(err)
			}
			reads := []models.LogEntry{byUUID.Payload, byIndex.Payload}
			for _, query := range []*models.SearchLogQuery{{EntryUUIDs: []string{created.ETag}}, {LogIndexes: []*int64{ptr(int64(i))}}} {
				found, err := rekor.Entries.SearchLogQuery(entries.NewSearchLogQueryParams().WithEntry(query))
				if err != nil || len(found.Payload) != 1 {
					t.Fatalf("retrieve: %v, %v", found, err)
				}
				reads = append(reads, found.Payload...)
			}
			for _, read := range reads {
				anon := read[created.ETag]
				if got := anon.Attestation; (got != nil) != (tt.want != "") || got != nil && string(got.Data) != tt.want {
					t.Errorf("attestation is %v, want %q", got, tt.want)
				}
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

// brokenStore fails to put and to get.
type brokenStore struct{ Attestations }

func (brokenStore) Put(context.Context, string, []byte) error { return errors.New("no space") }

// TestAttestationsThatCannotBeKept adds no entry whose attestation would be lost.
func TestAttestationsThatCannotBeKept(t *testing.T) {
	s, c := newService(t, func(o *Options) { o.Attestations = brokenStore{} }), newClient(t)
	if resp, body := s.post(t, "/api/v1/log/entries", toJSON(t, c.intoto001(t, "x"))); resp.StatusCode != http.StatusInternalServerError || strings.Contains(body, "no space") {
		t.Errorf("got %d %s", resp.StatusCode, body)
	}
	if size := s.log.Checkpoint().Size; size != 0 {
		t.Errorf("the tree has %d entries", size)
	}
}

// TestDamagedAttestations reads the entry without what is damaged.
func TestDamagedAttestations(t *testing.T) {
	d, path := directory(t)
	s, c := newService(t, func(o *Options) { o.Attestations = d }), newClient(t)
	if resp, body := s.post(t, "/api/v1/log/entries", toJSON(t, c.intoto001(t, "whole"))); resp.StatusCode != http.StatusCreated {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	read := func() string {
		resp, body := s.call(t, http.MethodGet, "/api/v1/log/entries?logIndex=0", "", "")
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
		return body
	}
	if body := read(); !strings.Contains(body, `"attestation":{"data":"d2hvbGU="}`) {
		t.Fatalf("no attestation in %s", body)
	}
	sum := sha256.Sum256([]byte("whole"))
	name := hex.EncodeToString(sum[:])
	if err := os.WriteFile(filepath.Join(path, name[:2], name), []byte("hole"), 0o600); err != nil {
		t.Fatal(err)
	}
	if body := read(); strings.Contains(body, "attestation") {
		t.Errorf("a damaged attestation was served: %s", body)
	}
}

func TestDirectory(t *testing.T) {
	d, path := directory(t)
	ctx := t.Context()
	data := []byte("an attestation")
	sum := sha256.Sum256(data)
	key := "sha256:" + hex.EncodeToString(sum[:])
	if _, err := d.Get(ctx, key); fault.KindOf(err) != fault.NotFound {
		t.Errorf("Get of nothing = %v", err)
	}
	for range 2 {
		if err := d.Put(ctx, key, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Put(ctx, key, []byte("another")); err == nil {
		t.Error("Put took other content than the key's")
	}
	for _, key := range []string{"", "sha256:", "sha512:" + key[7:], key[7:], strings.ToUpper(key), "sha256:" + strings.ToUpper(key[7:]), key + "00", "sha256:../" + key[10:], key[:len(key)-1] + "/"} {
		if err := d.Put(ctx, key, data); fault.ReasonOf(err) != "bad_attestation_key" {
			t.Errorf("Put with key %q = %v", key, err)
		}
		if _, err := d.Get(ctx, key); fault.ReasonOf(err) != "bad_attestation_key" {
			t.Errorf("Get with key %q = %v", key, err)
		}
	}
	// What a crash leaves goes, what was stored stays.
	left := filepath.Join(path, "tmp", "left")
	if err := os.WriteFile(left, data[:3], 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := OpenDirectory(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := again.Get(ctx, key); err != nil || !bytes.Equal(got, data) {
		t.Errorf("Get = %q, %v", got, err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that was never whole is still there: %v", err)
	}
	// A directory that takes no files.
	if err := os.RemoveAll(filepath.Join(path, "tmp")); err != nil {
		t.Fatal(err)
	}
	other := sha256.Sum256([]byte("other"))
	if err := d.Put(ctx, "sha256:"+hex.EncodeToString(other[:]), []byte("other")); err == nil {
		t.Error("Put without a directory to write to")
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if err := d.Put(canceled, key, data); !errors.Is(err, context.Canceled) {
		t.Errorf("Put with a canceled context = %v", err)
	}
	if _, err := d.Get(canceled, key); !errors.Is(err, context.Canceled) {
		t.Errorf("Get with a canceled context = %v", err)
	}
}

// TestKindsOfAServer takes what is enabled, in submissions and in retrieve's proposals alike.
func TestKindsOfAServer(t *testing.T) {
	c := newClient(t)
	message, _ := c.message(t, "signed")
	for _, tt := range []struct {
		name    string
		kinds   []string
		doc     map[string]any
		status  int
		refusal string
	}{
		{"the defaults take digests", nil, c.blob(t, "x"), http.StatusCreated, ""},
		{"the defaults take no messages", nil, message, http.StatusBadRequest, "entry kind 'cose' is not enabled for submission on this server"},
		{"a kind that was switched on", []string{"cose"}, message, http.StatusCreated, ""},
		{"a default that was switched off", []string{"cose"}, c.blob(t, "x"), http.StatusBadRequest, "entry kind 'hashedrekord' is not enabled for submission on this server"},
		{"a version that was switched off", []string{"intoto:0.0.1"}, c.intoto002(t, "x"), http.StatusBadRequest, "entry kind 'intoto' does not support inserting entries of version '0.0.2'"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newService(t, func(o *Options) { o.Kinds = kinds(t, tt.kinds...) })
			if resp, body := s.post(t, "/api/v1/log/entries", toJSON(t, tt.doc)); resp.StatusCode != tt.status || !strings.Contains(body, tt.refusal) {
				t.Errorf("submission: %d %s", resp.StatusCode, body)
			}
			want := http.StatusOK
			if tt.refusal != "" {
				want = http.StatusBadRequest
			}
			if resp, body := s.post(t, "/api/v1/log/entries/retrieve", toJSON(t, map[string]any{"entries": []any{tt.doc}})); resp.StatusCode != want || !strings.Contains(body, tt.refusal) {
				t.Errorf("retrieve: %d %s", resp.StatusCode, body)
			}
		})
	}
}
