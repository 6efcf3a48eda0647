package ct

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
)

// DefaultMaxMergeDelay is what static-ct logs promise (c2sp.org/static-ct-api).
const DefaultMaxMergeDelay = time.Minute

// window is when the certificates of a shard expire: from start on and before limit. The zero
// time leaves a side open.
type window struct{ start, limit time.Time }

func newWindow(start, limit time.Time) (window, error) {
	if !start.IsZero() && !limit.IsZero() && !start.Before(limit) {
		return window{}, fmt.Errorf("ct: the shard's window is empty: it starts at %s and ends before %s",
			start.UTC().Format(time.RFC3339), limit.UTC().Format(time.RFC3339))
	}
	return window{start, limit}, nil
}

func (w window) contains(notAfter time.Time) bool {
	return (w.start.IsZero() || !notAfter.Before(w.start)) && (w.limit.IsZero() || notAfter.Before(w.limit))
}

// String continues "certificates that expire …".
func (w window) String() string {
	var parts []string
	if !w.start.IsZero() {
		parts = append(parts, "at or after "+w.start.UTC().Format(time.RFC3339))
	}
	if !w.limit.IsZero() {
		parts = append(parts, "before "+w.limit.UTC().Format(time.RFC3339))
	}
	if parts == nil {
		return "at any time"
	}
	return strings.Join(parts, " and ")
}

// logJSON is the log's entry in a log list of version 3, to which both its forms are united: "url" is
// that of an RFC 6962 log, "submission_url" and "monitoring_url" are those of a static-ct log.
type logJSON struct {
	Description      string        `json:"description,omitempty"`
	LogID            []byte        `json:"log_id"`
	Key              []byte        `json:"key"` // SubjectPublicKeyInfo, DER
	URL              string        `json:"url"`
	SubmissionURL    string        `json:"submission_url,omitempty"`
	MonitoringURL    string        `json:"monitoring_url,omitempty"`
	MMD              int64         `json:"mmd"` // seconds
	TemporalInterval *intervalJSON `json:"temporal_interval,omitempty"`
}

type intervalJSON struct {
	StartInclusive string `json:"start_inclusive,omitempty"` // RFC 3339, UTC
	EndExclusive   string `json:"end_exclusive,omitempty"`
}

// describe returns the body of log.v3.json, nil when the log has no public URL.
func describe(o Options, shard window) ([]byte, error) {
	if o.MaxMergeDelay == 0 {
		o.MaxMergeDelay = DefaultMaxMergeDelay
	}
	if o.MaxMergeDelay < time.Second {
		return nil, fmt.Errorf("ct: a maximum merge delay of %s is shorter than a second", o.MaxMergeDelay)
	}
	if o.URL == "" {
		return nil, nil
	}
	base, err := url.Parse(o.URL)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" || base.RawQuery != "" || base.Fragment != "" {
		return nil, errors.Join(fmt.Errorf("ct: the log's URL %q is not http(s)://host/path", o.URL), err)
	}
	spki, err := x509.MarshalPKIXPublicKey(o.Log.PublicKey())
	if err != nil {
		return nil, fmt.Errorf("ct: log key: %w", err)
	}
	id := o.Log.LogID()
	d := logJSON{
		Description: o.Description, LogID: id[:], Key: spki, MMD: int64(o.MaxMergeDelay / time.Second),
		URL: strings.TrimSuffix(o.URL, "/") + "/", // log lists have the slash
	}
	if o.Log.Kind() == log.CT {
		d.SubmissionURL, d.MonitoringURL = d.URL, d.URL
	}
	if shard != (window{}) {
		d.TemporalInterval = &intervalJSON{}
		if !shard.start.IsZero() {
			d.TemporalInterval.StartInclusive = shard.start.UTC().Format(time.RFC3339)
		}
		if !shard.limit.IsZero() {
			d.TemporalInterval.EndExclusive = shard.limit.UTC().Format(time.RFC3339)
		}
	}
	return json.Marshal(d)
}

// describeLog serves log.v3.json, by which programs that keep lists of logs learn of this one.
func (h *Handler) describeLog(w http.ResponseWriter, r *http.Request) error {
	if h.description == nil {
		return fault.New(fault.NotFound, "no_public_url", nil, "the operator has not told this log its public URL")
	}
	return write(w, "application/json", cachePartial, h.description)
}
