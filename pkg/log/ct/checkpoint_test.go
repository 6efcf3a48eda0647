package ct_test

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/ct"
)

// cosignedLog has checkpoints with a line of a witness, and a key that may be out of reach.
type cosignedLog struct {
	*log.Log
	line string
	err  error
}

func (l *cosignedLog) Checkpoint() *log.Checkpoint {
	checkpoint := *l.Log.Checkpoint()
	checkpoint.Note = append(checkpoint.Note[:len(checkpoint.Note):len(checkpoint.Note)], l.line...)
	return &checkpoint
}

func (l *cosignedLog) TreeHead(ctx context.Context) (log.TreeHead, error) {
	if l.err != nil {
		return log.TreeHead{}, l.err
	}
	return l.Log.TreeHead(ctx)
}

func TestCheckpointOfAnIdleLogStaysYoung(t *testing.T) {
	ca := newAuthority(t, "a")
	var clock atomic.Int64
	clock.Store(1_790_000_000_000)
	now := func() time.Time { return time.UnixMilli(clock.Load()) }
	key := newKey(t)
	witness, witnessVerifier, err := note.GenerateKey(nil, "witness.example.test")
	if err != nil {
		t.Fatal(err)
	}
	l := &cosignedLog{Log: openLogOf(t, log.CT, t.TempDir(), key, now)}
	h, err := ct.New(ct.Options{Log: l, Roots: rawCerts(ca.root), IssuerDir: t.TempDir(), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.AddPreChain(t.Context(), ca.precertChain()); err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(witness)
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := strings.Cut(string(l.Log.Checkpoint().Note), "\n\n")
	cosigned, err := note.Sign(&note.Note{Text: text + "\n"}, signer)
	if err != nil {
		t.Fatal(err)
	}
	_, l.line, _ = strings.Cut(string(cosigned), "\n\n")

	vkey, err := fnote.RFC6962VerifierString("https://"+origin, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	own, err := fnote.NewRFC6962Verifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	other, err := note.NewVerifier(witnessVerifier)
	if err != nil {
		t.Fatal(err)
	}
	timeOf := func(doing string) int64 {
		t.Helper()
		recorder := serve(h, http.MethodGet, "/checkpoint", "")
		opened, err := note.Open(recorder.Body.Bytes(), note.VerifierList(own, other))
		if err != nil || len(opened.Sigs) != 2 || len(opened.UnverifiedSigs) > 0 || opened.Text != text+"\n" {
			t.Fatalf("%s: %d %q: %v", doing, recorder.Code, recorder.Body, err)
		}
		blob, err := base64.StdEncoding.DecodeString(opened.Sigs[0].Base64)
		if err != nil {
			t.Fatal(err)
		}
		return int64(binary.BigEndian.Uint64(blob[4:]))
	}
	first := timeOf("new")
	if again := timeOf("at once"); again != first {
		t.Errorf("signed at %d and, at the same time, at %d", first, again)
	}
	clock.Add(3_600_000)
	second := timeOf("an hour later")
	if second != clock.Load() {
		t.Errorf("the checkpoint is of %d, the clock stands at %d", second, clock.Load())
	}
	var head struct{ Timestamp int64 }
	if err := json.Unmarshal(serve(h, http.MethodGet, "/ct/v1/get-sth", "").Body.Bytes(), &head); err != nil || head.Timestamp != second {
		t.Errorf("get-sth is of %d, the checkpoint of %d: %v", head.Timestamp, second, err)
	}
	clock.Add(3_600_000)
	l.err = errors.New("the key is out of reach")
	if at := timeOf("without the key"); at != first {
		t.Errorf("without the key the checkpoint is of %d, want the one of the seal, %d", at, first)
	}
}
