package attachment

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// CosignFile is the file that cosign 2 writes for a blob with --bundle, and reads.
type CosignFile struct {
	// Signature is the signature, or the whole envelope of an attestation.
	Signature []byte           `json:"base64Signature"`
	Cert      []byte           `json:"cert,omitempty"` // PEM
	Entry     *oci.RekorBundle `json:"rekorBundle,omitempty"`
}

// ToCosignFile converts a bundle of any version. Timestamps are left out: cosign 2 keeps them in a file of their own.
func ToCosignFile(bundle []byte) ([]byte, error) {
	b, err := parseBundle(bundle)
	if err != nil {
		return nil, err
	}
	entries := b.GetVerificationMaterial().GetTlogEntries()
	file := CosignFile{Signature: b.GetMessageSignature().GetSignature()}
	if file.Entry, err = promisedEntry(entries); err != nil {
		return nil, err
	}
	if message := b.GetMessageSignature(); message != nil && message.GetMessageDigest().GetAlgorithm() != protocommon.HashAlgorithm_SHA2_256 {
		return nil, NotExpressible("the signature is over a %s digest, and cosign 2 verifies SHA-256 alone", message.GetMessageDigest().GetAlgorithm())
	}
	if envelope := b.GetDsseEnvelope(); envelope != nil {
		if file.Signature, err = loggedText(envelope, entries); err != nil {
			return nil, err
		}
	}
	if der := leafOf(b); der != nil {
		file.Cert = []byte(pemOf(der))
	}
	return json.Marshal(file)
}

// ReadCosignFile tells a file that cosign 2 wrote; ok is false for anything else. Envelope is that of an attestation, nil for
// a signature; annotations are those that the same attestation would have in a layer.
func ReadCosignFile(data []byte) (envelope []byte, annotations map[string]string, ok bool, err error) {
	var file struct {
		Signature string          `json:"base64Signature"`
		Cert      string          `json:"cert"`
		Entry     json.RawMessage `json:"rekorBundle"`
		MediaType string          `json:"mediaType"`
	}
	if json.Unmarshal(data, &file) != nil || file.Signature == "" || file.MediaType != "" {
		return nil, nil, false, nil
	}
	signature, err := base64.StdEncoding.DecodeString(file.Signature)
	if err != nil {
		return nil, nil, true, fmt.Errorf("base64Signature: %w", err)
	}
	if !bytes.HasPrefix(signature, []byte("{")) { // an ECDSA signature begins with 0x30, "0"
		return nil, nil, true, nil
	}
	annotations = map[string]string{oci.AnnotationSignature: ""}
	if len(file.Entry) > 0 {
		annotations[oci.AnnotationBundle] = string(file.Entry)
	}
	if cert, err := base64.StdEncoding.DecodeString(file.Cert); err == nil && bytes.Contains(cert, []byte("BEGIN CERTIFICATE")) {
		annotations[oci.AnnotationCertificate] = string(cert)
	}
	return signature, annotations, true, nil
}

// Upgrade makes a v0.3 bundle of an older one. The inclusion proofs that version 0.3 demands come from log, which is asked
// only for entries without one. Certificates beyond the first are left out, as that version demands. Nothing is verified.
//
// A timestamp over a whole envelope, which dropTimestamps says is what there is, has no place in a bundle and is left out.
func Upgrade(ctx context.Context, bundle []byte, log func(logID string) (*Log, error), dropTimestamps bool) ([]byte, error) {
	b, err := parseBundle(bundle)
	if err != nil {
		return nil, err
	}
	vm := b.GetVerificationMaterial()
	if vm == nil {
		return nil, errors.New("the bundle has no verification material")
	}
	if der := leafOf(b); der != nil {
		vm.Content = &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: der}}
	}
	for _, e := range vm.GetTlogEntries() {
		if e.GetInclusionProof() != nil {
			continue
		}
		l, err := log(hex.EncodeToString(e.GetLogId().GetKeyId()))
		if err != nil {
			return nil, err
		}
		if e.InclusionProof, err = l.Proof(ctx, e); err != nil {
			return nil, err
		}
	}
	if dropTimestamps {
		vm.TimestampVerificationData = nil
	}
	b.MediaType = BundleType
	spaced, err := protojson.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("encoding the bundle: %w", err)
	}
	var compact bytes.Buffer // protojson varies its white space on purpose
	if err := json.Compact(&compact, spaced); err != nil {
		return nil, fmt.Errorf("encoding the bundle: %w", err)
	}
	return compact.Bytes(), nil
}

// Log is a Rekor v1 log that is asked for proofs.
type Log struct {
	URL    string
	Client *http.Client
}

const (
	maxLogAnswer = 4 << 20
	logTimeout   = 30 * time.Second
)

// Proof returns the present inclusion proof of an entry (GET /api/v1/log/entries?logIndex=N), whose body has to be the one that
// the log has there. The proof is not verified.
func (l *Log) Proof(ctx context.Context, e *protorekor.TransparencyLogEntry) (*protorekor.InclusionProof, error) {
	ctx, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	index := strconv.FormatInt(e.GetLogIndex(), 10)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(l.URL, "/")+"/api/v1/log/entries?logIndex="+index, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := l.Client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking the log for a proof: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("asking the log %s for entry %s: status %d", l.URL, index, resp.StatusCode)
	}
	raw, err := limit.ReadAll(resp.Body, maxLogAnswer)
	if err != nil {
		return nil, fmt.Errorf("asking the log for a proof: %w", err)
	}
	var answer map[string]struct {
		Body         []byte `json:"body"`
		Verification struct {
			InclusionProof *struct {
				Checkpoint string   `json:"checkpoint"`
				Hashes     []string `json:"hashes"` // hex
				LogIndex   int64    `json:"logIndex"`
				RootHash   string   `json:"rootHash"` // hex
				TreeSize   int64    `json:"treeSize"`
			} `json:"inclusionProof"`
		} `json:"verification"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return nil, fmt.Errorf("the log's answer: %w", err)
	}
	for _, entry := range answer {
		proof := entry.Verification.InclusionProof
		if proof == nil || len(answer) != 1 {
			break
		}
		if !bytes.Equal(entry.Body, e.GetCanonicalizedBody()) {
			return nil, fmt.Errorf("the log %s has another entry at index %s", l.URL, index)
		}
		out := &protorekor.InclusionProof{
			LogIndex: proof.LogIndex, TreeSize: proof.TreeSize, Checkpoint: &protorekor.Checkpoint{Envelope: proof.Checkpoint},
		}
		if out.RootHash, err = hex.DecodeString(proof.RootHash); err != nil {
			return nil, fmt.Errorf("the log's answer: root hash: %w", err)
		}
		for _, h := range proof.Hashes {
			hash, err := hex.DecodeString(h)
			if err != nil {
				return nil, fmt.Errorf("the log's answer: proof: %w", err)
			}
			out.Hashes = append(out.Hashes, hash)
		}
		return out, nil
	}
	return nil, errors.New("the log's answer is not one entry with a proof")
}

// LogOf returns where the trusted root says that a log is.
func LogOf(trustedRoot []byte, client *http.Client) func(logID string) (*Log, error) {
	return func(logID string) (*Log, error) {
		var trusted struct {
			Tlogs []struct {
				BaseURL string `json:"baseUrl"`
				LogID   struct {
					KeyID []byte `json:"keyId"`
				} `json:"logId"`
			} `json:"tlogs"`
		}
		if err := json.Unmarshal(trustedRoot, &trusted); err != nil {
			return nil, fmt.Errorf("trusted root: %w", err)
		}
		for _, t := range trusted.Tlogs {
			if hex.EncodeToString(t.LogID.KeyID) == logID && t.BaseURL != "" {
				return &Log{URL: t.BaseURL, Client: client}, nil
			}
		}
		return nil, NotExpressible("a v0.3 bundle needs a proof of inclusion, which the legacy form does not hold, and the trusted root does not say where the log %s is; name it with --rekor-url", logID)
	}
}
