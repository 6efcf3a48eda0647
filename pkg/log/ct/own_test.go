package ct_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/attestry/attestry/internal/fault"
)

// Only what the process's own CA hands over goes unverified, and only under a chain that was verified before.
func TestOwnPrecertificates(t *testing.T) {
	ca := newAuthority(t, "a")
	s := newSite(t, ca.root)
	broken := func() [][]byte {
		chain := ca.precertChain()
		chain[0] = bytes.Clone(chain[0])
		chain[0][len(chain[0])-1] ^= 1
		return chain
	}
	if _, err := s.handler.AddOwnPreChain(t.Context(), broken()); fault.ReasonOf(err) != "bad_signature" {
		t.Fatalf("the first signature under a chain was not verified: %v", err)
	}
	if _, err := s.handler.AddOwnPreChain(t.Context(), ca.precertChain()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.handler.AddOwnPreChain(t.Context(), broken()); err != nil {
		t.Errorf("a signature of this process was verified again: %v", err)
	}
	if _, err := s.handler.AddPreChain(t.Context(), broken()); fault.ReasonOf(err) != "bad_signature" {
		t.Errorf("AddPreChain: %v", err)
	}
	if _, err := s.handler.AddOwnPreChain(t.Context(), newAuthority(t, "b").precertChain()); fault.ReasonOf(err) != "no_root" {
		t.Errorf("a chain to no accepted root: %v", err)
	}
	body, err := json.Marshal(map[string]any{"chain": broken()})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/ct/v1/add-pre-chain", bytes.NewReader(body)))
	if w.Code != http.StatusBadRequest {
		t.Errorf("over HTTP: %d %s", w.Code, w.Body)
	}
}
