//go:build !gcpkms

package signer

func openGCP(string) (remoteKey, error) { return nil, notBuilt("Google Cloud KMS", "gcpkms", "") }
