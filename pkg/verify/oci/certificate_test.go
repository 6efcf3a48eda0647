package oci

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/attestry/attestry/pkg/verify"
)

// TestAWrongCertificateSaysNothingAboutAnImage: who cannot be asked is unreachable, and asking again at once does not help.
func TestAWrongCertificateSaysNothingAboutAnImage(t *testing.T) {
	var connections atomic.Int64
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	host := strings.TrimPrefix(srv.URL, "https://")
	r, err := NewRegistry(Options{Named: []string{host}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	_, err = r.Attachments(t.Context(), Image{Name: host + "/app", Digest: anyDigest})
	if verify.ReasonOf(err) != verify.ReasonRegistryUnreachable || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("%v, want %s", err, verify.ReasonRegistryUnreachable)
	}
	const questions = 3 // for the three places of attachments, each asked once
	if unavailable, _ := IsUnavailable(err); !unavailable || connections.Load() > questions {
		t.Errorf("unavailable: %t, after %d connections", unavailable, connections.Load())
	}
}
