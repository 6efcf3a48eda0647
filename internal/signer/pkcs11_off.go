//go:build !(pkcs11 && cgo)

package signer

// openPKCS11 says what is wrong with the URI first, so that a configuration can be checked where no token is.
func openPKCS11(uri string, _ []byte) (remoteKey, error) {
	if _, err := parsePKCS11(uri); err != nil {
		return nil, err
	}
	return nil, notBuilt("PKCS#11", "pkcs11", "CGO_ENABLED=1 ")
}
