package e2e

import "testing"

func TestUnmodifiedClientsOnEveryBackend(t *testing.T) {
	for _, b := range []backend{posix, onS3, trillianServers, trillianEmbedded} {
		t.Run(b.name, func(t *testing.T) {
			s, _ := newSite(t, b)
			cosign := client(t, "cosign", "v3.1.3")
			for _, v := range s.rekors() {
				cosign3Blob(newSandbox(t), s, cosign, v)
			}
		})
	}
}
