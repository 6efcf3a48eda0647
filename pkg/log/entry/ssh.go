package entry

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha512"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// sshKey is a public key or certificate in the form of OpenSSH's authorized_keys.
type sshKey struct {
	public  ssh.PublicKey
	comment string // not kept in bodies
}

// parseSSHKey reads the first line that holds a key; comments, options and lines without one are
// skipped. DSA keys are read, as upstream does: the log is a witness of signatures, not a judge of algorithms.
func parseSSHKey(material []byte) (sshKey, error) {
	public, comment, _, _, err := ssh.ParseAuthorizedKey(material)
	if err != nil {
		return sshKey{}, err
	}
	return sshKey{public, comment}, checkSSHKey(public)
}

func checkSSHKey(public ssh.PublicKey) error {
	if cert, ok := public.(*ssh.Certificate); ok {
		public = cert.Key
	}
	if k, ok := public.(ssh.CryptoPublicKey); ok {
		if rsaKey, ok := k.CryptoPublicKey().(*rsa.PublicKey); ok {
			return checkKey(rsaKey)
		}
	}
	return nil
}

// canonical is the line of authorized_keys without options and comment.
func (k sshKey) canonical() []byte { return ssh.MarshalAuthorizedKey(k.public) }

func (k sshKey) subjects() []string { return nil }

// submittedKeys is the comment if it is an e-mail address: only the submission holds it.
func (k sshKey) submittedKeys() []string {
	if !strings.Contains(k.comment, "@") {
		return nil
	}
	return []string{k.comment}
}

const (
	sshSignatureType = "SSH SIGNATURE" // PEM
	sshMagic         = "SSHSIG"
	sshNamespace     = "file"   // the only one that upstream takes
	sshHash          = "sha512" // what the canonical form names, whatever the signature did
)

// sshSignature is the blob of OpenSSH's PROTOCOL.sshsig.
type sshSignature struct {
	Magic         [6]byte
	Version       uint32
	PublicKey     []byte
	Namespace     string
	Reserved      []byte
	HashAlgorithm string
	Signature     []byte // ssh.Signature
}

// verifyMessage takes an armored SSHSIG of namespace "file" and returns it re-armored. Upstream
// checks the canonical form, so that only SHA-512 verifies; it does not compare the key inside with
// the one that verifies, so that one signature would make any number of leaves. Signatures of type
// ssh-rsa (SHA-1) verify, as upstream.
func (k sshKey) verifyMessage(message, signature []byte) ([]byte, error) {
	block, _ := pem.Decode(signature)
	if block == nil || block.Type != sshSignatureType {
		return nil, errors.New("no armored " + sshSignatureType)
	}
	var outer sshSignature
	if err := ssh.Unmarshal(block.Bytes, &outer); err != nil {
		return nil, err
	}
	switch {
	case string(outer.Magic[:]) != sshMagic || outer.Version != 1:
		return nil, errors.New("not version 1 of " + sshMagic)
	case outer.Namespace != sshNamespace:
		return nil, fmt.Errorf("namespace %q is not %q", outer.Namespace, sshNamespace)
	case outer.HashAlgorithm != sshHash:
		return nil, fmt.Errorf("hash algorithm %q is not %q", outer.HashAlgorithm, sshHash)
	case !bytes.Equal(outer.PublicKey, k.public.Marshal()):
		return nil, errors.New("the signature names another key")
	}
	var inner ssh.Signature
	if err := ssh.Unmarshal(outer.Signature, &inner); err != nil {
		return nil, err
	}
	sum := sha512.Sum512(message)
	signed := ssh.Marshal(struct{ Namespace, Reserved, HashAlgorithm, Hash string }{sshNamespace, "", sshHash, string(sum[:])})
	if err := k.public.Verify(append([]byte(sshMagic), signed...), &inner); err != nil {
		return nil, err
	}
	outer.Reserved, outer.Signature = nil, ssh.Marshal(inner)
	return pem.EncodeToMemory(&pem.Block{Type: sshSignatureType, Bytes: ssh.Marshal(outer)}), nil
}
