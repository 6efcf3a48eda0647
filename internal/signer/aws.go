//go:build awskms

package signer

import (
	"context"

	"github.com/sigstore/sigstore/pkg/signature/kms/aws"
)

// openAWS opens awskms://[ENDPOINT]/[ID, ALIAS or ARN] with the credentials of AWS's own variables and files.
func openAWS(uri string) (remoteKey, error) {
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	provider, err := aws.LoadSignerVerifier(ctx, uri)
	if err != nil {
		return nil, err
	}
	return newKMSKey(ctx, provider)
}
