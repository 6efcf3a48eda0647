//go:build !awskms

package signer

func openAWS(string) (remoteKey, error) { return nil, notBuilt("AWS KMS", "awskms", "") }
