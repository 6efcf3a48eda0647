package verify_test

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	prototrust "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"

	"github.com/attestry/attestry/internal/server"
	"github.com/attestry/attestry/pkg/sign"
	"github.com/attestry/attestry/pkg/stack"
	"github.com/attestry/attestry/pkg/verify"
)

// ownForms are bundles that pkg/sign makes with an instance of our own, in either Rekor version.
func ownForms(t *testing.T) []*form {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	s, err := stack.Open(t.Context(), stack.Options{Dir: dir, Listen: ln.Addr().String(), Issuer: stack.IssuerLoopback, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- server.Run(ctx, ln, s.Handler(), time.Second, logger) }() // ends with ctx
	go func() { ended <- s.Run(ctx) }()                                            // likewise
	defer func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Errorf("stopping: %v", err)
			}
		}
		if err := s.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	}()
	client := func(name string) []byte { return read(t, filepath.Join(dir, "client", name)) }
	var all []*form
	for _, config := range []string{"signing_config.v0.2.json", "signing_config.rekor1.v0.2.json"} {
		for _, isStatement := range []bool{false, true} {
			issue := func(artifact []byte) *protobundle.Bundle {
				token, err := s.Token("alice@example.com")
				if err != nil {
					t.Fatal(err)
				}
				o := sign.Options{SigningConfig: client(config), TrustedRoot: client("trusted_root.json"), IdentityToken: token}
				var signed *sign.Signed
				if isStatement {
					signed, err = sign.Statement(ctx, o, statementFor(artifact))
				} else {
					signed, err = sign.Blob(ctx, o, artifact)
				}
				if err != nil {
					t.Fatal(err)
				}
				b := &protobundle.Bundle{}
				unmarshal(t, signed.Bundle, b)
				return b
			}
			name := "our own, " + config
			if isStatement {
				name += ", DSSE"
			}
			issue(otherArtifact) // the entry with index 0 has an empty proof
			f := &form{name: name, bundle: issue(theArtifact), other: issue(otherArtifact), root: &prototrust.TrustedRoot{}, data: theArtifact}
			unmarshal(t, client("trusted_root.json"), f.root)
			f.of = func() verify.Artifact { return verify.FromBytes(theArtifact) }
			f.policy = func() *verify.Policy { return identity(t, s.IssuerURL(), "alice@example.com") }
			all = append(all, f)
		}
	}
	return all
}
