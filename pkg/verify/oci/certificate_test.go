package oci

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/attestry/attestry/pkg/verify"
)

// TestAWrongCertificateSaysNothingAboutAnImage: who cannot be asked is unreachable, and trying again does not help.
func TestAWrongCertificateSaysNothingAboutAnImage(t *testing.T) {
	srv := httptest.NewTLSServer(http.NotFoundHandler())
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
	if again, _ := IsUnavailable(err); again {
		t.Error("it is to be tried again")
	}
}
