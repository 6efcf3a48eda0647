//go:build azurekms

package signer

import (
	"context"

	"github.com/sigstore/sigstore/pkg/signature/kms/azure"
)

// openAzure opens azurekms://VAULT.HOST/KEY[/VERSION] with the credentials of Azure's own variables.
func openAzure(uri string) (remoteKey, error) {
	// Its client lives as long as the context that it was made with.
	provider, err := azure.LoadSignerVerifier(context.Background(), uri)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	return newKMSKey(ctx, provider)
}
