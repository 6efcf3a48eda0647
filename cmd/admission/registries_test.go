package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// guarded serves the site's images under another host to who knows the password of the moment.
func (s *site) guarded(lets func(user, password string) bool) (host string) {
	s.t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || !lets(user, password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="images"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		s.images.ServeHTTP(w, r)
	}))
	s.t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

func dockerConfig(host, user, password string) string {
	return fmt.Sprintf(`{"auths":{%q:{"username":%q,"password":%q}}}`, host, user, password)
}

// at is the same image at another host.
func (s *site) at(host, reference string) string { return strings.Replace(reference, s.host, host, 1) }

// TestOwnCredentials: those of registry-config open a registry, count within seconds when they change, and what is wrong with
// the file changes nothing.
func TestOwnCredentials(t *testing.T) {
	s := newSite(t)
	_, signed := s.push("team/app")
	s.sign(signed)
	host := s.guarded(func(user, password string) bool { return user == "puller" && password == "second" })
	file := s.file("auth.json", dockerConfig(host, "puller", "first"))
	s.start(fmt.Sprintf("private-networks: [127.0.0.0/8]\nregistry-config: %s\n", file))
	if got, _ := s.ask(s.at(host, signed)); got.Response.Allowed || !strings.Contains(got.Response.Status.Message, "registry-denied") {
		t.Errorf("another password: %+v", got)
	}
	s.file("auth.json", dockerConfig(host, "puller", "second"))
	s.await("the new password counts", func() bool {
		got, _ := s.ask(s.at(host, signed))
		return got.Response.Allowed
	})
	s.file("auth.json", `{"auths":`)
	s.await("the broken file is noticed", func() bool { return strings.Contains(s.log.String(), `"msg":"registries"`) })
	_, other := s.push("team/app")
	s.sign(other)
	if got, _ := s.ask(s.at(host, other)); !got.Response.Allowed {
		t.Errorf("after a broken file: %+v", got)
	}
	if strings.Contains(s.log.String(), "second") {
		t.Errorf("a password is in the log:\n%s", s.log)
	}
}

// TestCredentialHelpers: a helper that registry-config names runs when helpers are allowed, and is not started otherwise.
func TestCredentialHelpers(t *testing.T) {
	for name, allowed := range map[string]bool{"allowed": true, "not allowed": false} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			_, signed := s.push("team/app")
			s.sign(signed)
			host := s.guarded(func(user, password string) bool { return user == "helped" && password == "secret" })
			ran := filepath.Join(s.dir, "ran")
			helper := s.file("docker-credential-site", fmt.Sprintf("#!/bin/sh\ncat >%s\necho '{\"Username\":\"helped\",\"Secret\":\"secret\"}'\n", ran))
			if err := os.Chmod(helper, 0o700); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", s.dir+":"+os.Getenv("PATH"))
			s.start(fmt.Sprintf("private-networks: [127.0.0.0/8]\nregistry-config: %s\ncredential-helpers: %v\n",
				s.file("auth.json", fmt.Sprintf(`{"credHelpers":{%q:"site"}}`, host)), allowed))
			if got, _ := s.ask(s.at(host, signed)); got.Response.Allowed != allowed {
				t.Errorf("%+v", got)
			}
			if _, err := os.Stat(ran); (err == nil) != allowed {
				t.Errorf("the helper ran: %v", err == nil)
			}
		})
	}
}

// TestTheCAOfARegistryIsReadAgain: a registry whose certificate has a new authority is reached when the file has it.
func TestTheCAOfARegistryIsReadAgain(t *testing.T) {
	s := newSite(t)
	_, signed := s.push("team/app")
	s.sign(signed)
	served, ours := loopbackCertificate(t)
	_, another := loopbackCertificate(t)
	srv := httptest.NewUnstartedServer(s.images)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{served}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	host := strings.TrimPrefix(srv.URL, "https://")
	s.start(fmt.Sprintf("private-networks: [127.0.0.0/8]\nregistry-cas: [{host: %q, file: %s}]\n", host, s.file("ca.pem", another)))
	if got, _ := s.ask(s.at(host, signed)); got.Response.Allowed || !strings.Contains(got.Response.Status.Message, "registry-unreachable") {
		t.Errorf("another authority: %+v", got)
	}
	s.file("ca.pem", "nothing")
	s.await("the broken file is noticed", func() bool { return strings.Contains(s.log.String(), `"msg":"registries"`) })
	s.file("ca.pem", ours)
	s.await("the new authority counts", func() bool {
		got, _ := s.ask(s.at(host, signed))
		return got.Response.Allowed
	})
}

// loopbackCertificate makes a certificate for 127.0.0.1 that is its own authority.
func loopbackCertificate(t *testing.T) (served tls.Certificate, ca string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
