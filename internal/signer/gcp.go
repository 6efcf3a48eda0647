//go:build gcpkms

package signer

import (
	"context"

	"github.com/sigstore/sigstore/pkg/signature/kms/gcp"
)

// openGCP opens gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K/versions/V with Google's default credentials.
func openGCP(uri string) (remoteKey, error) {
	// Its client lives as long as the context that it was made with.
	provider, err := gcp.LoadSignerVerifier(context.Background(), uri)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	return newKMSKey(ctx, provider)
}
