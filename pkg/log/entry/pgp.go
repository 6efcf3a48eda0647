package entry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// pgpKeys are one or more OpenPGP public keys with their user IDs and subkeys.
type pgpKeys struct {
	keys    []pgpKey
	armored []byte // canonical
}

type pgpKey struct {
	*openpgp.Entity
	ids []*openpgp.Identity // in the order of the packets
}

var pgpArmorStart = []byte("-----BEGIN PGP")

// parsePGPKeys reads binary packets or blocks of armor. Keys that the library cannot use are left
// out; there must be one that it can. Third-party certifications are kept and not verified, user
// attributes are dropped. Hashes and keys are as weak as upstream takes them (SHA-1, DSA, RSA of 1024 bits).
func parsePGPKeys(material []byte) (pgpKeys, error) {
	var k pgpKeys
	rings := [][]byte{material}
	if bytes.HasPrefix(material, pgpArmorStart) {
		var err error
		if rings, err = pgpBlocks(material); err != nil {
			return pgpKeys{}, err
		}
	}
	if err := checkPGPKeys(bytes.Join(rings, nil)); err != nil {
		return pgpKeys{}, err
	}
	err := guardPGP(func() error {
		for _, ring := range rings {
			entities, err := openpgp.ReadKeyRing(bytes.NewReader(ring))
			if err != nil {
				return err
			}
			k.keys = append(k.keys, withPGPIdentities(entities, ring)...)
		}
		if len(k.keys) == 0 {
			return errors.New("no PGP public keys could be read")
		}
		var err error
		k.armored, err = armorPGP(openpgp.PublicKeyType, func(w io.Writer) error {
			for _, key := range k.keys {
				if err := key.write(w); err != nil {
					return err
				}
			}
			return nil
		})
		return err
	})
	return k, err
}

// withPGPIdentities orders each key's user IDs as they stand in the ring: the library has them in a
// map. The packets of keys that it cannot read count as the previous key's, as for the library.
func withPGPIdentities(entities openpgp.EntityList, ring []byte) []pgpKey {
	var keys []pgpKey
	for len(ring) > 0 {
		tag, body, rest, err := nextPGPPacket(ring)
		if err != nil {
			break // checked before
		}
		switch tag {
		case pgpPublicKey:
			p, err := packet.Read(bytes.NewReader(ring))
			if primary, ok := p.(*packet.PublicKey); err == nil && ok && len(keys) < len(entities) &&
				bytes.Equal(primary.Fingerprint, entities[len(keys)].PrimaryKey.Fingerprint) {
				keys = append(keys, pgpKey{Entity: entities[len(keys)]})
			}
		case pgpUserID:
			if len(keys) == 0 {
				break
			}
			last := &keys[len(keys)-1]
			if id, ok := last.Identities[string(body)]; ok && !slices.Contains(last.ids, id) {
				last.ids = append(last.ids, id)
			}
		}
		ring = rest
	}
	return keys
}

// pgpBlocks decodes the blocks of armor in text, each of which ends with a line -----END PGP….
func pgpBlocks(text []byte) ([][]byte, error) {
	var blocks [][]byte
	var block []byte
	for line := range bytes.Lines(text) {
		block = append(append(block, bytes.TrimRight(line, "\r\n")...), '\n')
		if !bytes.HasPrefix(line, []byte("-----END PGP")) {
			continue
		}
		decoded, err := dearmorPGP(block, openpgp.PublicKeyType)
		if err != nil {
			return nil, err
		}
		blocks, block = append(blocks, decoded), nil
	}
	if len(bytes.TrimSpace(block)) > 0 || len(blocks) == 0 {
		return nil, errors.New("PGP armor without end")
	}
	return blocks, nil
}

func dearmorPGP(text []byte, blockType string) ([]byte, error) {
	block, err := armor.Decode(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("PGP armor: %w", err)
	}
	if block.Type != blockType {
		return nil, fmt.Errorf("PGP armor holds a %q, not a %q", block.Type, blockType)
	}
	data, err := io.ReadAll(block.Body)
	if err != nil {
		return nil, fmt.Errorf("PGP armor: %w", err)
	}
	return data, nil
}

func armorPGP(blockType string, write func(io.Writer) error) ([]byte, error) {
	var buf bytes.Buffer
	w, err := armor.Encode(&buf, blockType, nil)
	if err != nil {
		return nil, err
	}
	if err := write(w); err != nil {
		return nil, err
	}
	err = w.Close()
	return buf.Bytes(), err
}

// write writes what the library's Serialize does, with the user IDs in the order of the submission.
// Upstream writes them in random order, so that it may make several leaves of one submission with
// several user IDs; this is one of those.
func (k pgpKey) write(w io.Writer) error {
	if err := k.PrimaryKey.Serialize(w); err != nil {
		return err
	}
	if err := writePGPSignatures(w, k.Revocations, k.Signatures); err != nil {
		return err
	}
	for _, id := range k.ids {
		if err := id.UserId.Serialize(w); err != nil {
			return err
		}
		if err := writePGPSignatures(w, id.Signatures); err != nil {
			return err
		}
	}
	for _, sub := range k.Subkeys {
		if err := sub.PublicKey.Serialize(w); err != nil {
			return err
		}
		if err := writePGPSignatures(w, sub.Revocations, []*packet.Signature{sub.Sig}); err != nil {
			return err
		}
	}
	return nil
}

func writePGPSignatures(w io.Writer, lists ...[]*packet.Signature) error {
	for _, sig := range slices.Concat(lists...) {
		if err := sig.Serialize(w); err != nil {
			return err
		}
	}
	return nil
}

func (k pgpKeys) canonical() []byte { return k.armored }

// subjects are the e-mail addresses of the user IDs. Their owners need not know of the key.
func (k pgpKeys) subjects() []string {
	var names []string
	for _, key := range k.keys {
		for _, id := range key.ids {
			if strings.Contains(id.UserId.Email, "@") {
				names = append(names, id.UserId.Email)
			}
		}
	}
	return names
}

// verifyMessage takes a detached signature. Armor is kept verbatim, as upstream does, so that the
// same signature in other armor is another leaf; but no text is taken before or behind it.
func (k pgpKeys) verifyMessage(message, signature []byte) ([]byte, error) {
	if !bytes.HasPrefix(signature, pgpArmorStart) {
		return k.verifyPackets(message, signature)
	}
	const end = "-----END PGP SIGNATURE-----"
	if i := bytes.Index(signature, []byte(end)); i < 0 || len(bytes.TrimSpace(signature[i+len(end):])) > 0 {
		return nil, errors.New("PGP armor without end, or text behind it")
	}
	packets, err := dearmorPGP(signature, openpgp.SignatureType)
	if err != nil {
		return nil, err
	}
	return signature, k.verify(message, packets)
}

// verifyPackets takes a binary signature and returns it armored.
func (k pgpKeys) verifyPackets(message, packets []byte) ([]byte, error) {
	if _, err := armor.Decode(bytes.NewReader(packets)); err == nil {
		return nil, errors.New("armor inside of a binary PGP signature") // upstream would take it for the signature
	}
	if err := k.verify(message, packets); err != nil {
		return nil, err
	}
	return armorPGP(openpgp.SignatureType, func(w io.Writer) error {
		_, err := w.Write(packets)
		return err
	})
}

// verify checks signature packets, of which the first one by a known key counts. Keys must have
// been valid when the first signature says that it was made, not today: logs are replayed.
func (k pgpKeys) verify(message, packets []byte) error {
	if err := checkPGPSignatures(packets); err != nil {
		return err
	}
	return guardPGP(func() error {
		p, err := packet.Read(bytes.NewReader(packets))
		if err != nil {
			return err
		}
		first, ok := p.(*packet.Signature)
		if !ok {
			return errors.New("no PGP signature")
		}
		at := &packet.Config{Time: func() time.Time { return first.CreationTime }}
		_, err = openpgp.CheckDetachedSignature(k.ring(), bytes.NewReader(message), bytes.NewReader(packets), at)
		return err
	})
}

// ring are the keys to verify with. A key's primary user ID says what it may be used for and until
// when; where several have equal claims to that place, the library takes one at random. Each entity
// is left with one of those that the library may take.
func (k pgpKeys) ring() openpgp.EntityList {
	ring := make(openpgp.EntityList, len(k.keys))
	for i, key := range k.keys {
		single := *key.Entity
		single.Identities = map[string]*openpgp.Identity{}
		var primary *openpgp.Identity
		for _, id := range key.ids {
			if pgpPreferred(primary, id) {
				primary = id
			}
		}
		if primary != nil {
			single.Identities[primary.Name] = primary
		}
		ring[i] = &single
	}
	return ring
}

// pgpPreferred tells whether the library prefers id as primary to the one found so far: not
// revoked, marked as primary, younger, in this order.
func pgpPreferred(found, id *openpgp.Identity) bool {
	marked := func(id *openpgp.Identity) bool {
		return id.SelfSignature.IsPrimaryId != nil && *id.SelfSignature.IsPrimaryId
	}
	switch {
	case found == nil || len(found.Revocations) > len(id.Revocations):
		return true
	case len(found.Revocations) < len(id.Revocations):
		return false
	case found.SelfSignature == nil || id.SelfSignature == nil: // revocations are all that there is
		return found.SelfSignature == nil
	case marked(found) != marked(id):
		return marked(id)
	}
	return id.SelfSignature.CreationTime.After(found.SelfSignature.CreationTime)
}

// guardPGP calls the OpenPGP library. Its parsers index what they did not measure in places (such as
// an empty subpacket "exportable" in 1.4.1); a panic there is the submission's fault and ends here.
func guardPGP(call func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("unreadable OpenPGP data: %v", r)
		}
	}()
	return call()
}
