package rekor1

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-openapi/runtime"
	rekorclient "github.com/sigstore/rekor/pkg/client"
	"github.com/sigstore/rekor/pkg/generated/client/entries"
	searchindex "github.com/sigstore/rekor/pkg/generated/client/index"
	"github.com/sigstore/rekor/pkg/generated/client/pubkey"
	"github.com/sigstore/rekor/pkg/generated/client/tlog"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/tle"
	_ "github.com/sigstore/rekor/pkg/types/dsse/v0.0.1" // registers the kind
	_ "github.com/sigstore/rekor/pkg/types/hashedrekord/v0.0.1"
	"github.com/sigstore/rekor/pkg/util"
	"github.com/sigstore/rekor/pkg/verify"
	"github.com/sigstore/sigstore-go/pkg/root"
	sgtlog "github.com/sigstore/sigstore-go/pkg/tlog"
	"github.com/sigstore/sigstore/pkg/signature"
)

// TestRekorsOwnClient drives the API with the client library of rekor-cli and cosign, and verifies
// what comes back with the code of rekor and of sigstore-go.
func TestRekorsOwnClient(t *testing.T) {
	s, c := newService(t), newClient(t)
	rekor, err := rekorclient.GetRekorClient(s.server.URL, rekorclient.WithRetryCount(0))
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := signature.LoadVerifier(s.log.PublicKey(), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}

	var firstInfo models.LogInfo
	docs := []map[string]any{c.blob(t, "one"), c.attestation(t, strings.Repeat("cd", 32)), c.blob(t, "two"), c.blob(t, "three")}
	for i, doc := range docs {
		created, err := rekor.Entries.CreateLogEntry(entries.NewCreateLogEntryParams().WithProposedEntry(proposed(t, doc)))
		if err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		anon, ok := created.Payload[created.ETag]
		if !ok || !strings.HasSuffix(string(created.Location), created.ETag) {
			t.Fatalf("entry %d: ETag %q, Location %q", i, created.ETag, created.Location)
		}
		verifyEntry(t, s, verifier, anon)
		if i == 0 {
			info, err := rekor.Tlog.GetLogInfo(nil)
			if err != nil {
				t.Fatal(err)
			}
			firstInfo = *info.Payload
		}
		_, err = rekor.Entries.CreateLogEntry(entries.NewCreateLogEntryParams().WithProposedEntry(proposed(t, doc)))
		if conflict, ok := err.(*entries.CreateLogEntryConflict); !ok || !strings.HasSuffix(string(conflict.Location), created.ETag) {
			t.Fatalf("entry %d again: %v", i, err)
		}
		byUUID, err := rekor.Entries.GetLogEntryByUUID(entries.NewGetLogEntryByUUIDParams().WithEntryUUID(created.ETag))
		if err != nil {
			t.Fatal(err)
		}
		byIndex, err := rekor.Entries.GetLogEntryByIndex(entries.NewGetLogEntryByIndexParams().WithLogIndex(int64(i)))
		if err != nil {
			t.Fatal(err)
		}
		query := &models.SearchLogQuery{}
		query.SetEntries([]models.ProposedEntry{proposed(t, doc)})
		found, err := rekor.Entries.SearchLogQuery(entries.NewSearchLogQueryParams().WithEntry(query))
		if err != nil || len(found.Payload) != 1 {
			t.Fatalf("entry %d is not found by its proposal: %v, %v", i, found, err)
		}
		for _, read := range []models.LogEntry{byUUID.Payload, byIndex.Payload, found.Payload[0]} {
			again, ok := read[created.ETag]
			if !ok || *again.IntegratedTime != *anon.IntegratedTime || *again.LogIndex != int64(i) || again.Body != anon.Body {
				t.Errorf("entry %d reads differently: %+v", i, read)
			}
			verifyEntry(t, s, verifier, again)
		}
	}

	if _, err := rekor.Entries.GetLogEntryByIndex(entries.NewGetLogEntryByIndexParams().WithLogIndex(99)); !is[*entries.GetLogEntryByIndexNotFound](err) {
		t.Errorf("an index beyond the tree: %v", err)
	}
	if _, err := rekor.Entries.GetLogEntryByUUID(entries.NewGetLogEntryByUUIDParams().WithEntryUUID(strings.Repeat("0", 64))); !is[*entries.GetLogEntryByUUIDNotFound](err) {
		t.Errorf("an unknown UUID: %v", err)
	}

	key, err := rekor.Pubkey.GetPublicKey(pubkey.NewGetPublicKeyParams())
	if err != nil || !strings.HasPrefix(key.Payload, "-----BEGIN PUBLIC KEY-----") {
		t.Errorf("public key is %q (%v)", key, err)
	}
	info, err := rekor.Tlog.GetLogInfo(nil)
	if err != nil {
		t.Fatal(err)
	}
	if *info.Payload.TreeSize != int64(len(docs)) || *info.Payload.TreeID != fmt.Sprint(treeID) {
		t.Errorf("log info is %+v", info.Payload)
	}
	var old util.SignedCheckpoint
	if err := old.UnmarshalText([]byte(*firstInfo.SignedTreeHead)); err != nil {
		t.Fatal(err)
	}
	if _, err := verify.VerifyCurrentCheckpoint(t.Context(), rekor, verifier, &old); err != nil {
		t.Errorf("the newest checkpoint does not follow the first: %v", err)
	}
	size := int64(1)
	proof, err := rekor.Tlog.GetLogProof(tlog.NewGetLogProofParams().WithFirstSize(&size).WithLastSize(int64(len(docs))))
	if err != nil || len(proof.Payload.Hashes) == 0 || *proof.Payload.RootHash != *info.Payload.RootHash {
		t.Errorf("consistency proof is %+v (%v)", proof, err)
	}

	if err := s.index.CaughtUp(t.Context(), uint64(len(docs))); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("two"))
	hits, err := rekor.Index.SearchIndex(searchindex.NewSearchIndexParams().WithQuery(&models.SearchIndex{Hash: "sha256:" + hex.EncodeToString(sum[:])}))
	if err != nil || len(hits.Payload) != 1 {
		t.Errorf("search by digest: %+v (%v)", hits, err)
	}
}

func is[E error](err error) bool {
	_, ok := err.(E)
	return ok
}

func proposed(t *testing.T, doc map[string]any) models.ProposedEntry {
	t.Helper()
	pe, err := models.UnmarshalProposedEntry(bytes.NewReader([]byte(toJSON(t, doc))), runtime.JSONConsumer())
	if err != nil {
		t.Fatal(err)
	}
	return pe
}

func verifyEntry(t *testing.T, s *service, verifier signature.Verifier, anon models.LogEntryAnon) {
	t.Helper()
	if err := verify.VerifyLogEntry(t.Context(), &anon, verifier); err != nil {
		t.Fatalf("rekor does not verify the entry: %v", err)
	}
	bundled, err := tle.GenerateTransparencyLogEntry(anon)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := sgtlog.ParseTransparencyLogEntry(bundled)
	if err != nil {
		t.Fatal(err)
	}
	if err := sgtlog.ValidateEntry(parsed); err != nil {
		t.Fatalf("sigstore-go finds the entry invalid: %v", err)
	}
	if err := sgtlog.VerifyInclusion(parsed, verifier); err != nil {
		t.Fatalf("sigstore-go does not verify inclusion: %v", err)
	}
	logID := s.log.LogID()
	logs := map[string]*root.TransparencyLog{hex.EncodeToString(logID[:]): {
		ID: logID[:], PublicKey: s.log.PublicKey(), HashFunc: crypto.SHA256, SignatureHashFunc: crypto.SHA256,
		ValidityPeriodStart: time.Now().Add(-time.Hour),
	}}
	if err := sgtlog.VerifySET(parsed, logs); err != nil {
		t.Fatalf("sigstore-go does not verify the SET: %v", err)
	}
}

// TestAnswersAreNotCompressed keeps the ETag as it is: proxies and middleware that compress weaken or drop it.
func TestAnswersAreNotCompressed(t *testing.T) {
	s, c := newService(t), newClient(t)
	req, err := http.NewRequest(http.MethodPost, s.server.URL+"/api/v1/log/entries", strings.NewReader(toJSON(t, c.blob(t, "x"))))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept-Encoding", "gzip, br")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var entries map[string]json.RawMessage
	if err := json.NewDecoder(resp.Body).Decode(&entries); err != nil || entries[resp.Header.Get("ETag")] == nil || resp.Header.Get("Content-Encoding") != "" {
		t.Errorf("%v %v (%v)", resp.Header, entries, err)
	}
}
