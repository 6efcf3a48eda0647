package ca_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	ct "github.com/google/certificate-transparency-go"
	cttls "github.com/google/certificate-transparency-go/tls"

	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity"
)

// serveLog puts a fakeLog behind RFC 6962's HTTP.
func serveLog(t *testing.T, log *fakeLog) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/shard/ct/v1/add-pre-chain" {
			http.NotFound(rw, r)
			return
		}
		var req ct.AddChainRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
		raw, err := log.AddPreChain(r.Context(), req.Chain)
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		var sct ct.SignedCertificateTimestamp
		if _, err := cttls.Unmarshal(raw, &sct); err != nil {
			t.Error(err)
		}
		signature, err := cttls.Marshal(sct.Signature)
		if err != nil {
			t.Error(err)
		}
		json.NewEncoder(rw).Encode(map[string]any{
			"sct_version": sct.SCTVersion, "id": sct.LogID.KeyID[:], "timestamp": sct.Timestamp, "extensions": []byte(sct.Extensions), "signature": signature,
		})
	}
}

func TestCTClient(t *testing.T) {
	var handler atomic.Value // http.HandlerFunc
	var calls atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		handler.Load().(http.HandlerFunc)(w, r)
	}))
	t.Cleanup(s.Close)
	w := newWorld(t, func(w *world, o *ca.Options, _ *identity.Issuer) {
		client, err := ca.NewCTClient(s.URL+"/shard/", w.log.LogKey())
		if err != nil {
			t.Fatal(err)
		}
		o.CT = client
	})
	good := serveLog(t, w.log)
	issue := func() reply {
		calls.Store(0)
		return w.post("/api/v2/signingCert", w.token(), v2Body(t, newClientKey(t, "P-256"), "alice-id"))
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "Bad Request\nno", code) }
	}

	handler.Store(good)
	if r := issue(); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	} else {
		checkClient(t, w, embedded(t, r.body))
	}
	first := true
	handler.Store(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if first {
			first = false
			rw.WriteHeader(http.StatusTooManyRequests)
			return
		}
		good(rw, r)
	}))
	if r := issue(); r.status != 200 || calls.Load() != 2 {
		t.Errorf("after one 429: %d after %d calls", r.status, calls.Load())
	}
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		calls   int32
	}{
		{"a refusal is final", status(400), 1},
		{"a redirect is not followed", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, 1},
		{"an answer that is no JSON", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) }, 1},
		{"an id of the wrong size", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{"id":"AAAA"}`)) }, 1},
		{"a failure is tried twice", status(502), 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			handler.Store(tt.handler)
			if r := issue(); r.status != 503 || !strings.Contains(r.body, "ct_unavailable") || calls.Load() != tt.calls {
				t.Errorf("%d after %d calls: %s", r.status, calls.Load(), r.body)
			}
		})
	}
	t.Run("after five failures in a row the log is left alone and the CA is not ready", func(t *testing.T) {
		handler.Store(good)
		if r := issue(); r.status != 503 || calls.Load() != 0 {
			t.Errorf("%d after %d calls", r.status, calls.Load())
		}
		if err := w.ca.Ready(context.Background()); err == nil {
			t.Error("ready")
		}
	})
	for _, bad := range []string{"", "localhost:6962", "ftp://x"} {
		if _, err := ca.NewCTClient(bad, w.log.LogKey()); err == nil {
			t.Errorf("URL %q was accepted", bad)
		}
	}
}
