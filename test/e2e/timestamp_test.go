package e2e

import (
	"encoding/pem"
	"net/http"
	"strings"
	"testing"
)

// chainFiles splits PEM certificates, leaf first, into a file with the leaf, one with what is
// between (which may be empty), and one with the root.
func (s *sandbox) chainFiles(chain string) (leaf, between, root string) {
	s.t.Helper()
	var certs []string
	for rest := []byte(chain); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		certs = append(certs, string(pem.EncodeToMemory(block)))
	}
	if len(certs) < 2 {
		s.t.Fatalf("the chain has %d certificates", len(certs))
	}
	last := len(certs) - 1
	return s.file("leaf.pem", certs[0]), s.file("between.pem", strings.Join(certs[1:last], "")), s.file("root.pem", certs[last])
}

func TestTimestamps(t *testing.T) {
	s := up(t)
	chain := readFile(t, s.client("tsa.pem"))
	if served := get(t, s.url+"/api/v1/timestamp/certchain"); strings.TrimSpace(served) != strings.TrimSpace(chain) {
		t.Errorf("client/tsa.pem and /api/v1/timestamp/certchain differ")
	}
	t.Run("openssl ts", func(t *testing.T) {
		openssl := system(t, "openssl", "openssl")
		b := newSandbox(t)
		leaf, between, root := b.chainFiles(chain)
		artifact, other := b.file("artifact", "to be stamped"), b.file("other", "something else")
		for _, hash := range []string{"-sha256", "-sha384", "-sha512"} {
			for _, tt := range []struct {
				name  string
				query []string
				check []string
			}{
				{"the token carries the chain", []string{"-cert"}, []string{"-CAfile", root}},
				{"the verifier has the chain", nil, []string{"-CAfile", root, "-untrusted", b.file("untrusted.pem", readFile(t, leaf)+readFile(t, between))}},
			} {
				t.Run(tt.name+" "+hash, func(t *testing.T) {
					query := b.path("query")
					b.must(openssl, flags([]string{"ts", "-query", "-data", artifact, hash, "-out", query}, tt.query)...)
					status, reply, err := call(t.Context(), http.MethodPost, s.url+"/api/v1/timestamp", "application/timestamp-query", readFile(t, query))
					if err != nil || status != http.StatusCreated && status != http.StatusOK {
						t.Fatalf("%d %v %s", status, err, reply)
					}
					response := b.file("response", reply)
					b.must(openssl, flags([]string{"ts", "-verify", "-queryfile", query, "-in", response}, tt.check)...)
					b.must(openssl, flags([]string{"ts", "-verify", "-data", artifact, "-in", response}, tt.check)...)
					b.refused(`(?i)message imprint mismatch`, openssl, flags([]string{"ts", "-verify", "-data", other, "-in", response}, tt.check)...)
				})
			}
		}
	})
	t.Run("timestamp-cli", func(t *testing.T) {
		exe := client(t, "timestamp-cli", "v2.1.3")
		b := newSandbox(t)
		_, between, root := b.chainFiles(chain)
		issuers := b.file("issuers.pem", readFile(t, between)+readFile(t, root))
		artifact, response := b.file("artifact", "to be stamped"), b.path("response")
		for _, hash := range []string{"sha256", "sha384", "sha512"} {
			b.must(exe, "--timestamp_server", s.url, "timestamp", "--artifact", artifact, "--hash", hash, "--out", response)
			b.must(exe, "inspect", "--timestamp", response, "--format", "json")
			b.must(exe, "verify", "--timestamp", response, "--artifact", artifact, "--certificate-chain", issuers)
			b.refused(`(?i)hashed messages don't match|mismatch|verif`, exe, "verify", "--timestamp", response, "--artifact", b.file("other", "something else"), "--certificate-chain", issuers)
		}
		b.must(exe, "--timestamp_server", s.url, "timestamp", "--artifact", artifact, "--certificate=false", "--out", response)
		b.must(exe, "verify", "--timestamp", response, "--artifact", artifact, "--certificate", b.path("leaf.pem"), "--certificate-chain", issuers)
	})
}
