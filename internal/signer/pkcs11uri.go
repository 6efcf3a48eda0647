package signer

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
)

const maxPKCS11URI = 4 << 10 // bytes

// pkcs11URI says where a PKCS#11 key is (RFC 7512): a module, one token of it, one private key there.
type pkcs11URI struct {
	module  string // path of the module's shared library
	pinFile string // "" for the password that Open got

	token, serial string // label or serial number of the token, or
	slot          *int   // the slot that it is in

	object string // CKA_LABEL of the key
	id     []byte // CKA_ID of the key
}

// parsePKCS11 reads a URI such as
//
//	pkcs11:token=ca;object=issuing?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/run/secrets/pin
//
// RFC 7512, section 2.3, lets a program ignore or refuse what it does not know. Whatever is left out here could
// have told two keys apart, so everything that is not understood is an error.
func parsePKCS11(uri string) (*pkcs11URI, error) {
	if len(uri) > maxPKCS11URI {
		return nil, fmt.Errorf("PKCS#11 URI: over %d bytes", maxPKCS11URI)
	}
	if strings.Contains(uri, "pin-value") { // wherever it stands, and before anything is quoted
		return nil, errors.New("PKCS#11 URI: pin-value puts the PIN into configuration and logs; write it into a file and name that with pin-source")
	}
	rest, ok := strings.CutPrefix(uri, "pkcs11:")
	if !ok {
		return nil, errors.New("PKCS#11 URI: it does not begin with `pkcs11:`, its scheme")
	}
	path, query, _ := strings.Cut(rest, "?")
	u := &pkcs11URI{}
	if err := attributes(path, ";", u.pathAttribute); err != nil {
		return nil, err
	}
	if err := attributes(query, "&", u.queryAttribute); err != nil {
		return nil, err
	}
	tokens := 0
	for _, given := range []bool{u.token != "", u.serial != "", u.slot != nil} {
		if given {
			tokens++
		}
	}
	switch {
	case u.module == "":
		return nil, errors.New("PKCS#11 URI: module-path is required, the path of the module's library")
	case tokens != 1:
		return nil, errors.New("PKCS#11 URI: exactly one of token, serial and slot-id is required")
	case u.object == "" && len(u.id) == 0:
		return nil, errors.New("PKCS#11 URI: object or id is required, the label or the ID of the key")
	}
	return u, nil
}

// attributes calls set for each name=value of text. Values come decoded.
func attributes(text, separator string, set func(name, value string) error) error {
	if text == "" {
		return nil
	}
	seen := map[string]bool{}
	for pair := range strings.SplitSeq(text, separator) {
		name, encoded, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return fmt.Errorf("PKCS#11 URI: %q is not name=value", pair)
		}
		if seen[name] {
			return fmt.Errorf("PKCS#11 URI: %s is there twice", name)
		}
		seen[name] = true
		value, err := url.PathUnescape(encoded)
		if err != nil {
			return fmt.Errorf("PKCS#11 URI: %s: %w", name, err)
		}
		if value == "" || strings.ContainsRune(value, 0) && name != "id" {
			return fmt.Errorf("PKCS#11 URI: %s has no value that can be used", name)
		}
		if err := set(name, value); err != nil {
			return fmt.Errorf("PKCS#11 URI: %w", err)
		}
	}
	return nil
}

func (u *pkcs11URI) pathAttribute(name, value string) error {
	switch name {
	case "token":
		u.token = value
	case "serial":
		u.serial = value
	case "slot-id":
		slot, err := strconv.ParseInt(value, 10, strconv.IntSize)
		if err != nil || slot < 0 {
			return fmt.Errorf("slot-id %q is not a number", value)
		}
		number := int(slot)
		u.slot = &number
	case "object":
		u.object = value
	case "id":
		u.id = []byte(value)
	case "type":
		if value != "private" {
			return fmt.Errorf("type %q is not private", value)
		}
	default:
		return fmt.Errorf("attribute %q is not one of token, serial, slot-id, object, id, type", name)
	}
	return nil
}

func (u *pkcs11URI) queryAttribute(name, value string) error {
	path := value
	if name == "pin-source" {
		path = strings.TrimPrefix(strings.TrimPrefix(value, "file:"), "//")
	}
	switch {
	case name != "module-path" && name != "pin-source":
		return fmt.Errorf("attribute %q is not one of module-path, pin-source", name)
	case !filepath.IsAbs(path):
		return fmt.Errorf("%s %q is not an absolute path", name, value)
	case name == "module-path":
		u.module = path
	default:
		u.pinFile = path
	}
	return nil
}
