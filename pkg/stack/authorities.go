package stack

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
)

// authoritiesName is the file under keys/ that lists the CA certificates of an instance once there is more than the first.
const authoritiesName = "ca.json"

const (
	maxAuthorities     = 100
	maxAuthoritiesFile = 4 << 20 // bytes
	// retirement is how long after its successor began a CA certificate still counts: longer than any certificate
	// that it has issued lives.
	retirement = 2 * time.Hour
)

// authorities is keys/ca.json: the CA certificates that an instance has or had, oldest first. It is replaced as a whole, chains
// included, so no crash leaves half of a pair.
type authorities struct {
	Issuing int         `json:"issuing"` // place of the one that issues; those after it are published only
	CAs     []authority `json:"cas"`
}

type authority struct {
	Key   string `json:"key"`   // URI; file:NAME is relative to keys/
	Chain string `json:"chain"` // PEM, issuing certificate first

	certs []*x509.Certificate
}

// NewCA is a CA certificate to install in an instance.
type NewCA struct {
	Key   string // URI of its key; a file: must lie in the keys directory of the instance
	Chain []*x509.Certificate
	Issue bool // issue with it; otherwise it is only published
}

// InstallCA stores n for the instance in dir. One that runs takes it over within seconds, else the next start does: it publishes
// the chain, beside all earlier ones, and then issues with it if n says so. Installing a published chain again with Issue makes
// it the one that issues. Chains never return: what was replaced ends in trust material. warnings are for the operator.
func InstallCA(dir string, n NewCA, now time.Time) (warnings []string, err error) {
	keysDir := filepath.Join(dir, "keys")
	release, err := durable.LockDir(keysDir)
	if err != nil {
		return nil, fmt.Errorf("the keys of the instance: %w", err)
	}
	defer release()
	list, err := readAuthorities(keysDir)
	if err != nil {
		return nil, err
	}
	stored, err := storedKey(keysDir, n.Key)
	if err != nil {
		return nil, err
	}
	key, err := signer.Open(ShardKey(keysDir, stored), nil)
	if err != nil {
		return nil, err
	}
	place := len(list.CAs)
	var others [][]*x509.Certificate
	for i, a := range list.CAs {
		if len(n.Chain) > 0 && a.certs[0].Equal(n.Chain[0]) && i > list.Issuing && n.Issue {
			place = i // published before, now it begins
			continue
		}
		others = append(others, a.certs)
	}
	warnings, err = ca.CheckNew(n.Chain, key, others, now)
	if err != nil {
		return warnings, err
	}
	if place == len(list.CAs) {
		if n.Issue {
			warnings = append(warnings, "it was not published before: clients refuse what it issues until they have fetched trust material anew")
		}
		if place == maxAuthorities {
			return warnings, fmt.Errorf("%s has %d CA certificates, the most there can be", authoritiesName, maxAuthorities)
		}
		list.CAs = append(list.CAs, authority{})
	}
	list.CAs[place] = authority{Key: stored, Chain: string(encodeChain(n.Chain))}
	if n.Issue {
		list.Issuing = place
	}
	text, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return warnings, err
	}
	return warnings, durable.WriteFile(filepath.Join(keysDir, authoritiesName), append(text, '\n'), 0o600)
}

// NextCAKey is the path of the key that the next CA certificate of the instance in dir is for, by the name that InstallCA
// takes without being told. It may be there already, when a request was made and its answer not installed.
func NextCAKey(dir string) (string, error) {
	keysDir := filepath.Join(dir, "keys")
	list, err := readAuthorities(keysDir)
	if err != nil {
		return "", err
	}
	return filepath.Join(keysDir, fmt.Sprintf("ca-%d.pem", len(list.CAs)+1)), nil
}

// PublishedCAKey is the key of the chain that was installed without Issue in dir, as InstallCA takes it; "" when
// chain is not published there.
func PublishedCAKey(dir string, chain []*x509.Certificate) (string, error) {
	keysDir := filepath.Join(dir, "keys")
	list, err := readAuthorities(keysDir)
	if err != nil {
		return "", err
	}
	for i, a := range list.CAs {
		if i > list.Issuing && len(chain) > 0 && a.certs[0].Equal(chain[0]) {
			return ShardKey(keysDir, a.Key), nil
		}
	}
	return "", nil
}

// storedKey is uri as it stands in ca.json. A file outside keys/ would be in no backup.
func storedKey(keysDir, uri string) (string, error) {
	path, ok := strings.CutPrefix(uri, "file:")
	if !ok {
		return uri, nil
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	root, err := filepath.Abs(keysDir)
	if err != nil {
		return "", err
	}
	relative, err := filepath.Rel(root, absolute)
	if err != nil || !filepath.IsLocal(relative) {
		return "", fmt.Errorf("key %s: it must lie in %s, where backups find it", path, keysDir)
	}
	return "file:" + relative, nil
}

// readAuthorities reads keys/ca.json. Without it there is the one CA that the first start made.
func readAuthorities(keysDir string) (*authorities, error) {
	path := filepath.Join(keysDir, authoritiesName)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		chain, err := os.ReadFile(filepath.Join(keysDir, "ca-chain.pem"))
		if err != nil {
			return nil, fmt.Errorf("%s has no CA yet, `attestry up` makes the first: %w", keysDir, err)
		}
		list := &authorities{CAs: []authority{{Key: "file:ca.pem", Chain: string(chain)}}}
		return list, list.parse("ca-chain.pem")
	}
	if err != nil {
		return nil, err
	}
	if info.Size() > maxAuthoritiesFile {
		return nil, fmt.Errorf("%s: over %d bytes", path, maxAuthoritiesFile)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	list := new(authorities)
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(list); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if list.Issuing < 0 || list.Issuing >= len(list.CAs) || len(list.CAs) > maxAuthorities {
		return nil, fmt.Errorf("%s: CA %d of %d cannot issue", path, list.Issuing, len(list.CAs))
	}
	return list, list.parse(authoritiesName)
}

func (l *authorities) parse(name string) error {
	for i := range l.CAs {
		var err error
		if l.CAs[i].certs, err = ca.ParseChain([]byte(l.CAs[i].Chain)); err != nil {
			return fmt.Errorf("%s: CA %d: %w", name, i+1, err)
		}
	}
	return nil
}

func (a authority) equal(b authority) bool { return a.Key == b.Key && a.Chain == b.Chain }

func (l *authorities) equal(other *authorities) bool {
	return l.Issuing == other.Issuing && slices.EqualFunc(l.CAs, other.CAs, authority.equal)
}

// open opens the key of the CA that issues. Keys of the others may be destroyed.
func (l *authorities) open(keysDir string) (crypto.Signer, error) {
	return signer.Open(ShardKey(keysDir, l.CAs[l.Issuing].Key), nil)
}

// roots are the root certificates of all chains, each once, DER.
func (l *authorities) roots() [][]byte {
	var roots [][]byte
	seen := map[string]bool{}
	for _, a := range l.CAs {
		root := a.certs[len(a.certs)-1].Raw
		if !seen[string(root)] {
			seen[string(root)] = true
			roots = append(roots, root)
		}
	}
	return roots
}

// others are the chains that do not issue, the newest first.
func (l *authorities) others() [][]*x509.Certificate {
	var chains [][]*x509.Certificate
	for i := len(l.CAs) - 1; i >= 0; i-- {
		if i != l.Issuing {
			chains = append(chains, l.CAs[i].certs)
		}
	}
	return chains
}

// IssuingCA is the key, as a URI, and the chain that the instance in dir issues with. It reads only.
func IssuingCA(dir string) (key string, chain []*x509.Certificate, err error) {
	keysDir := filepath.Join(dir, "keys")
	list, err := readAuthorities(keysDir)
	if err != nil {
		return "", nil, err
	}
	issuing := list.CAs[list.Issuing]
	return ShardKey(keysDir, issuing.Key), issuing.certs, nil
}
