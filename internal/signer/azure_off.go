//go:build !azurekms

package signer

func openAzure(string) (remoteKey, error) { return nil, notBuilt("Azure Key Vault", "azurekms", "") }
