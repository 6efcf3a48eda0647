package rekor1

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// TestEachOperationCanBeSwitchedOff also holds the description of the API against its routes.
func TestEachOperationCanBeSwitchedOff(t *testing.T) {
	var described struct {
		Paths map[string]map[string]struct{ OperationID string }
	}
	if err := json.Unmarshal(swagger, &described); err != nil {
		t.Fatal(err)
	}
	var named []string
	for path, methods := range described.Paths {
		for method, op := range methods {
			named = append(named, op.OperationID)
			s := newService(t, func(o *Options) { o.Off = []string{op.OperationID} })
			resp, body := s.call(t, strings.ToUpper(method), strings.Replace(path, "{entryUUID}", strings.Repeat("ab", 32), 1), "application/json", "{}")
			status := resp.StatusCode
			if status != http.StatusNotImplemented || !strings.Contains(body, `"code":501`) || !strings.Contains(body, op.OperationID) {
				t.Errorf("%s %s switched off: %d %s", method, path, status, body)
			}
			if resp, _ := s.call(t, http.MethodGet, "/ping", "", ""); resp.StatusCode != http.StatusOK {
				t.Errorf("without %s the rest answers %d", op.OperationID, resp.StatusCode)
			}
		}
	}
	slices.Sort(named)
	if !slices.Equal(named, Operations()) {
		t.Errorf("swagger.json describes %q, the operations are %q", named, Operations())
	}
	s := newService(t)
	if resp, body := s.call(t, http.MethodGet, "/swagger.json", "", ""); resp.StatusCode != http.StatusOK || body != string(swagger) {
		t.Errorf("GET /swagger.json: %d", resp.StatusCode)
	}
}
