package signer

import (
	"bytes"
	"crypto"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"github.com/attestry/attestry/internal/limit"
)

// openFile reads the key in a PEM file. Beside its one private key the file may hold the EC PARAMETERS that `openssl
// ecparam -genkey` writes before it.
func openFile(path string, password []byte) (crypto.Signer, error) {
	data, err := limit.ReadFile(path, maxKeyFile)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	key, err := Parse(data, password)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	return key, nil
}

// Parse returns the one private key in PEM text, in the forms that Open takes from a file.
func Parse(data, password []byte) (crypto.Signer, error) {
	if len(data) > maxKeyFile {
		return nil, fmt.Errorf("over %d bytes", maxKeyFile)
	}
	block, err := privateBlock(data)
	if err != nil {
		return nil, err
	}
	if password == nil && (strings.HasPrefix(block.Type, "ENCRYPTED ") || block.Headers["DEK-Info"] != "") {
		return nil, errors.New("it is encrypted and no password was given")
	}
	key, err := cryptoutils.UnmarshalPEMToPrivateKey(pem.EncodeToMemory(block), cryptoutils.StaticPasswordFunc(password))
	if err != nil {
		return nil, err
	}
	s, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T cannot sign", key)
	}
	return s, nil
}

// privateBlock returns the one private key block of a PEM file. A file that was cut off in the middle has none.
func privateBlock(data []byte) (*pem.Block, error) {
	var found *pem.Block
	for rest := bytes.TrimSpace(data); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		block, after := pem.Decode(rest)
		switch {
		case block == nil:
			return nil, errors.New("it is not a whole PEM file")
		case block.Type == "EC PARAMETERS":
		case found != nil:
			return nil, fmt.Errorf("a PEM block %q follows the private key", block.Type)
		default:
			found = block
		}
		rest = after
	}
	if found == nil {
		return nil, errors.New("it holds no private key")
	}
	return found, nil
}
