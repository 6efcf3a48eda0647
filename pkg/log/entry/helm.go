package entry

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"go.yaml.in/yaml/v3"

	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// Bounds of a Helm provenance file.
const (
	maxProvenance     = 1 << 20 // bytes
	maxProvenanceSums = 1 << 16 // bytes of the part that names files
	maxProvenanceImgs = 256
)

// helmSpec is Rekor v1's helm 0.0.1: the signature of a Helm provenance file and the digest of the chart that it names.
type helmSpec struct {
	Chart struct {
		Hash       digest `json:"hash"`
		Provenance struct {
			Signature struct {
				Content []byte `json:"content"` // armored
			} `json:"signature"`
		} `json:"provenance"`
	} `json:"chart"`
	PublicKey struct {
		Content []byte `json:"content"` // canonical PGP
	} `json:"publicKey"`
}

// proposeHelm reads {"publicKey":{"content":…},"chart":{"provenance":{"content":<.prov file>}}},
// contents in base64. The chart itself is not sent.
func proposeHelm(v ijson.Value) (Entry, error) {
	var s helmSpec
	key, err := submittedKey("pgp", v.Get("publicKey").Get("content"), "publicKey.content")
	if err != nil {
		return Entry{}, err
	}
	file, err := decoded(v.Get("chart").Get("provenance").Get("content"), "chart.provenance.content")
	if err != nil {
		return Entry{}, err
	}
	if len(file) > maxProvenance {
		return Entry{}, tooLarge("chart.provenance.content", len(file), maxProvenance)
	}
	p, err := parseProvenance(file)
	if err != nil {
		return Entry{}, invalid("bad_provenance", err, "provenance file: %v", err)
	}
	content, err := key.(pgpKeys).verifyPackets(p.signed, p.signature)
	if err != nil {
		return Entry{}, invalid("bad_signature", err, "verifying signature: %v", err)
	}
	s.Chart.Hash, s.Chart.Provenance.Signature.Content, s.PublicKey.Content = p.chart, content, key.canonical()
	return newEntry("helm", "0.0.1", s, append(publicKeyKeys(key), s.Chart.Hash.key()), nil)
}

func (s helmSpec) keys() ([]string, error) {
	return append(storedPublicKeyKeys("pgp", s.PublicKey.Content), s.Chart.Hash.key()), nil
}

// provenance is what `helm package --sign` writes beside a chart: a clear-signed message.
type provenance struct {
	chart     digest
	signed    []byte // with CRLF
	signature []byte // OpenPGP packets
}

func parseProvenance(file []byte) (provenance, error) {
	block, _ := clearsign.Decode(file)
	if block == nil || block.ArmoredSignature == nil {
		return provenance{}, errors.New("no clear-signed PGP message")
	}
	signature, err := io.ReadAll(block.ArmoredSignature.Body)
	if err != nil {
		return provenance{}, err
	}
	parts := bytes.Split(block.Plaintext, []byte("\n...\n"))
	if len(parts) != 2 {
		return provenance{}, errors.New("the message must have two parts, parted by a line \"...\": chart metadata and digests")
	}
	chart, err := chartDigest(parts[1])
	return provenance{chart, block.Bytes, signature}, err
}

var sha256Text = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// chartDigest reads the second part of the message:
//
//	files:
//	  mychart-0.1.0.tgz: sha256:<hex>
//
// and perhaps "images", of the same form. There must be one file: of several, upstream's leaf holds
// the digest of a random one.
func chartDigest(doc []byte) (digest, error) {
	if len(doc) > maxProvenanceSums {
		return digest{}, errors.New("the part with the digests is too long")
	}
	var root, second yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(doc))
	switch err := decoder.Decode(&root); {
	case errors.Is(err, io.EOF):
		return digest{}, errors.New("no digests")
	case err != nil:
		return digest{}, err
	case !errors.Is(decoder.Decode(&second), io.EOF):
		return digest{}, errors.New("more than one YAML document")
	}
	var files map[string]string
	sections, err := yamlPairs(root.Content[0], 2)
	if err != nil {
		return digest{}, err
	}
	for name, section := range sections {
		switch name {
		case "files":
			files, err = yamlStrings(section, 1)
		case "images":
			_, err = yamlStrings(section, maxProvenanceImgs)
		default:
			err = errors.New("besides \"files\" and \"images\" nothing may stand beside the digests")
		}
		if err != nil {
			return digest{}, err
		}
	}
	for _, sum := range files {
		if !sha256Text.MatchString(sum) {
			return digest{}, errors.New("the chart's digest is not \"sha256:\" and 64 digits of lower-case hex")
		}
		return digest{"sha256", strings.TrimPrefix(sum, "sha256:")}, nil
	}
	return digest{}, errors.New("no file under \"files\"")
}

// yamlPairs returns the members of a mapping with at most limit names, all of them plain strings.
func yamlPairs(n *yaml.Node, limit int) (map[string]*yaml.Node, error) {
	if n.Kind != yaml.MappingNode || n.ShortTag() != "!!map" || n.Anchor != "" {
		return nil, errors.New("expected a YAML mapping")
	}
	if len(n.Content) > 2*limit {
		return nil, errors.New("too many digests: a provenance file names one chart")
	}
	pairs := make(map[string]*yaml.Node, limit)
	for i := 0; i < len(n.Content); i += 2 {
		name, err := yamlString(n.Content[i])
		if err != nil {
			return nil, err
		}
		if _, twice := pairs[name]; twice {
			return nil, errors.New("a name twice in a YAML mapping")
		}
		pairs[name] = n.Content[i+1]
	}
	return pairs, nil
}

func yamlStrings(n *yaml.Node, limit int) (map[string]string, error) {
	pairs, err := yamlPairs(n, limit)
	if err != nil {
		return nil, err
	}
	strs := make(map[string]string, len(pairs))
	for name, value := range pairs {
		if strs[name], err = yamlString(value); err != nil {
			return nil, err
		}
	}
	return strs, nil
}

func yamlString(n *yaml.Node) (string, error) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" || n.Anchor != "" || n.Style&yaml.TaggedStyle != 0 {
		return "", errors.New("expected a YAML string")
	}
	return n.Value, nil
}
