package signer

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	vault "github.com/hashicorp/vault/api"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

var vaultKeyName = regexp.MustCompile(`^\w(([\w-.]+)?\w)?$`) // as sigstore has it

// vaultKey is a key of the transit engine of HashiCorp Vault or OpenBao. Where they are and how to trust them is said by
// the variables of Vault's own clients: VAULT_ADDR, VAULT_CACERT, VAULT_CLIENT_CERT, VAULT_NAMESPACE….
//
// sigstore's provider is not used: its requests have no deadline, it reads the token once, and it follows the key to
// its newest version, which the CA's certificate is not for.
type vaultKey struct {
	client    *vault.Client
	mount     string
	name      string
	version   int // of the key; Vault keeps old ones when it rotates
	pub       crypto.PublicKey
	tokenFile string // read at each signature, since what renews the token writes a new one; "" for VAULT_TOKEN
}

// openVault opens hashivault://NAME, or hashivault://NAME?version=N for another version than the newest.
func openVault(uri string) (remoteKey, error) {
	name, query, _ := strings.Cut(strings.TrimPrefix(uri, "hashivault://"), "?")
	if !vaultKeyName.MatchString(name) {
		return nil, errors.New("it is not hashivault://NAME or hashivault://NAME?version=N")
	}
	k := &vaultKey{name: name, mount: "transit"}
	if query != "" {
		text, ok := strings.CutPrefix(query, "version=")
		version, err := strconv.ParseInt(text, 10, 32)
		if !ok || err != nil || version < 1 {
			return nil, errors.New("it is not hashivault://NAME or hashivault://NAME?version=N")
		}
		k.version = int(version)
	}
	if mount := strings.Trim(os.Getenv("TRANSIT_SECRET_ENGINE_PATH"), "/"); mount != "" {
		k.mount = mount
	}
	if os.Getenv("VAULT_ADDR") == "" {
		return nil, errors.New("VAULT_ADDR is not set")
	}
	config := vault.DefaultConfig()
	if config.Error != nil {
		return nil, fmt.Errorf("settings of the Vault client: %w", config.Error)
	}
	// Requests end with their deadline and go nowhere but to VAULT_ADDR. A retry is the client's business, which has an answer by then.
	config.MaxRetries, config.Timeout, config.DisableRedirects = 0, signTimeout, true
	var err error
	if k.client, err = vault.NewClient(config); err != nil {
		return nil, fmt.Errorf("settings of the Vault client: %w", err)
	}
	k.tokenFile = os.Getenv("VAULT_TOKEN_FILE")
	switch token := os.Getenv("VAULT_TOKEN"); {
	case token == "" && k.tokenFile == "":
		return nil, errors.New("neither VAULT_TOKEN_FILE nor VAULT_TOKEN is set")
	case token != "" && k.tokenFile != "":
		return nil, errors.New("VAULT_TOKEN_FILE and VAULT_TOKEN are both set")
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	return k, k.fetch(ctx)
}

// fetch reads the key's public half, and its newest version unless one was named.
func (k *vaultKey) fetch(ctx context.Context) error {
	var answer struct {
		Type   string `json:"type"`
		Latest int    `json:"latest_version"`
		Keys   map[string]struct {
			PublicKey string `json:"public_key"`
		} `json:"keys"`
	}
	if err := k.call(ctx, "keys/"+k.name, nil, &answer); err != nil {
		return fmt.Errorf("reading the key: %w", err)
	}
	if k.version == 0 {
		k.version = answer.Latest
	}
	key, ok := answer.Keys[strconv.Itoa(k.version)]
	if !ok || key.PublicKey == "" {
		return fmt.Errorf("there is no version %d of the key, or it is none that signs", k.version)
	}
	if answer.Type == "ed25519" { // base64 of the 32 bytes
		raw, err := base64.StdEncoding.DecodeString(key.PublicKey)
		if err != nil || len(raw) != ed25519.PublicKeySize {
			return errors.New("the Ed25519 public key is not 32 bytes in base64")
		}
		k.pub = ed25519.PublicKey(raw)
		return nil
	}
	pub, err := cryptoutils.UnmarshalPEMToPublicKey([]byte(key.PublicKey))
	if err != nil {
		return fmt.Errorf("the public key: %w", err)
	}
	k.pub = pub
	return nil
}

func (k *vaultKey) public() crypto.PublicKey { return k.pub }

// sign implements remoteKey.
func (k *vaultKey) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	path := "sign/" + k.name
	request := map[string]any{"input": base64.StdEncoding.EncodeToString(digest), "key_version": k.version}
	if _, ok := opts.(*rsa.PSSOptions); ok {
		return nil, errors.New("RSA-PSS is not spoken with Vault")
	}
	switch hash := opts.HashFunc(); hash {
	case crypto.Hash(0):
	case crypto.SHA256, crypto.SHA384, crypto.SHA512:
		path += "/sha2-" + strconv.Itoa(8*hash.Size())
		request["prehashed"], request["signature_algorithm"], request["marshaling_algorithm"] = true, "pkcs1v15", "asn1"
	default:
		return nil, fmt.Errorf("hash %v is not spoken with Vault", hash)
	}
	var answer struct {
		Signature string `json:"signature"` // vault:v<version>:<base64>
	}
	if err := k.call(ctx, path, request, &answer); err != nil {
		return nil, err
	}
	encoded := answer.Signature[strings.LastIndexByte(answer.Signature, ':')+1:]
	signature, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, fmt.Errorf("the signature: %w", err)
	}
	return signature, nil
}

// call reads path of the transit engine, or writes body to it when there is one, and decodes the answer's data.
func (k *vaultKey) call(ctx context.Context, path string, body map[string]any, data any) error {
	if k.tokenFile != "" {
		token, err := ReadPassword(k.tokenFile)
		if err != nil {
			return fmt.Errorf("VAULT_TOKEN_FILE: %w", err)
		}
		k.client.SetToken(string(token))
	}
	var secret *vault.Secret
	var err error
	if path = k.mount + "/" + path; body == nil {
		secret, err = k.client.Logical().ReadWithContext(ctx, path)
	} else {
		secret, err = k.client.Logical().WriteWithContext(ctx, path, body)
	}
	if err != nil {
		return err
	}
	if secret == nil {
		return fmt.Errorf("there is nothing at %s", path)
	}
	text, err := json.Marshal(secret.Data)
	if err == nil {
		err = json.Unmarshal(text, data)
	}
	if err != nil {
		return fmt.Errorf("the answer of %s: %w", path, err)
	}
	return nil
}
