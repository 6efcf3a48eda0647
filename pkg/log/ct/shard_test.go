package ct_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/certificate-transparency-go/loglist3"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/ct"
)

func TestShardTakesWhatExpiresInItsWindow(t *testing.T) {
	ca := newAuthority(t, "a")
	start, limit := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		start, limit time.Time
		notAfter     time.Time
		refused      string // part of the error
	}{
		"no window":                     {time.Time{}, time.Time{}, start, ""},
		"at the start":                  {start, limit, start, ""},
		"a second before the start":     {start, limit, start.Add(-time.Second), "expires at 2025-12-31T23:59:59Z, this log takes those that expire at or after 2026-01-01T00:00:00Z and before 2027-01-01T00:00:00Z"},
		"a second before the limit":     {start, limit, limit.Add(-time.Second), ""},
		"at the limit":                  {start, limit, limit, "expires at 2027-01-01T00:00:00Z"},
		"long before, no start":         {time.Time{}, limit, start.AddDate(-10, 0, 0), ""},
		"at the limit, no start":        {time.Time{}, limit, limit, "those that expire before 2027-01-01T00:00:00Z:"},
		"long after, no limit":          {start, time.Time{}, limit.AddDate(10, 0, 0), ""},
		"before the start, no limit":    {start, time.Time{}, start.Add(-time.Second), "those that expire at or after 2026-01-01T00:00:00Z:"},
		"no expiry (RFC 5280, 4.1.2.5)": {start, limit, time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), "expires at 9999-12-31T23:59:59Z"},
	} {
		s := newSiteOf(t, log.CTPlain, ct.Options{NotAfterStart: tt.start, NotAfterLimit: tt.limit}, ca.root)
		template := ca.leafTemplate(poison)
		template.NotBefore, template.NotAfter = tt.notAfter.Add(-10*time.Minute), tt.notAfter
		chain := [][]byte{ca.sign(template, ca.issuer, ca.leafKey.Public(), ca.issuerKey).Raw, ca.issuer.Raw}
		status, body := s.post("/ct/v1/add-pre-chain", chainJSON(chain))
		switch {
		case tt.refused == "" && status != http.StatusOK:
			t.Errorf("%s: %d %s", name, status, body)
		case tt.refused != "" && (status != http.StatusBadRequest || !strings.Contains(body, tt.refused) || !strings.Contains(body, "reason=not_after_outside_shard")):
			t.Errorf("%s: %d %s, want 400 with %q", name, status, body, tt.refused)
		}
		_, err := s.handler.AddPreChain(t.Context(), chain)
		if (err == nil) != (tt.refused == "") || err != nil && fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s, in process: %v", name, err)
		}
	}
}

func (s *site) post(path, body string) (int, string) {
	s.t.Helper()
	response, err := http.Post(s.url+path, "application/json", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	var text bytes.Buffer
	text.ReadFrom(response.Body)
	return response.StatusCode, text.String()
}

func TestLogDescribesItselfForLogLists(t *testing.T) {
	ca := newAuthority(t, "a")
	start, limit := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2027, 1, 1, 1, 0, 0, 0, time.FixedZone("", 3600))
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			s := newSiteOf(t, kind, ct.Options{
				URL: "https://ct.example.test/ct/2026", Description: "a log", NotAfterStart: start, NotAfterLimit: limit, MaxMergeDelay: time.Hour,
			}, ca.root)
			raw := s.mustGet("/log.v3.json")
			var plain loglist3.Log
			var tiled loglist3.TiledLog
			if err := json.Unmarshal(raw, &plain); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(raw, &tiled); err != nil {
				t.Fatal(err)
			}
			id := s.log.LogID()
			if !bytes.Equal(plain.LogID, id[:]) || plain.MMD != 3600 || plain.URL != "https://ct.example.test/ct/2026/" || plain.Description != "a log" {
				t.Errorf("described as %s", raw)
			}
			if !plain.TemporalInterval.StartInclusive.Equal(start) || !plain.TemporalInterval.EndExclusive.Equal(limit) {
				t.Errorf("interval %+v in %s", plain.TemporalInterval, raw)
			}
			wantTiled := plain.URL
			if kind == log.CTPlain {
				wantTiled = ""
			}
			if tiled.SubmissionURL != wantTiled || tiled.MonitoringURL != wantTiled {
				t.Errorf("static-ct URLs %q and %q, want %q", tiled.SubmissionURL, tiled.MonitoringURL, wantTiled)
			}
			// Whoever reads the list can verify the log with the key in it.
			list := &loglist3.LogList{Operators: []*loglist3.Operator{{Logs: []*loglist3.Log{&plain}}}}
			if found := list.FindLogByKeyHash(id); found == nil || found.URL != plain.URL {
				t.Error("the log is not found by the hash of the key")
			}
		})
	}
	oneSided := newSiteOf(t, log.CTPlain, ct.Options{URL: "http://localhost:8420/ct/x/", NotAfterLimit: limit}, ca.root)
	if got, want := string(oneSided.mustGet("/log.v3.json")), `"url":"http://localhost:8420/ct/x/","mmd":60,"temporal_interval":{"end_exclusive":"2027-01-01T00:00:00Z"}}`; !strings.HasSuffix(got, want) {
		t.Errorf("described as %s, want …%s", got, want)
	}
	if status, _, body := newSite(t, ca.root).get("/log.v3.json"); status != http.StatusNotFound || !strings.Contains(string(body), "reason=no_public_url") {
		t.Errorf("without a URL: %d %s", status, body)
	}
}

func TestShardOptionsThatAreRefused(t *testing.T) {
	ca := newAuthority(t, "a")
	day := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, o := range map[string]ct.Options{
		"an empty window":           {NotAfterStart: day, NotAfterLimit: day},
		"a window backwards":        {NotAfterStart: day.Add(time.Second), NotAfterLimit: day},
		"a URL without a scheme":    {URL: "ct.example.test/ct/2026"},
		"a URL that is no web page": {URL: "file:///ct"},
		"a URL with a query":        {URL: "https://ct.example.test/?a=b"},
		"a merge delay under 1 s":   {MaxMergeDelay: time.Millisecond},
	} {
		o.Log, o.Roots, o.IssuerDir = newMemoryLog(newKey(t)), rawCerts(ca.root), t.TempDir()
		if _, err := ct.New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
