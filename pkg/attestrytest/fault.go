package attestrytest

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/attestry/attestry/internal/signer"
)

// Fault is a way in which an instance lies or fails from Fail on, to those who ask over HTTP; gRPC stays honest. What is
// signed falsely is signed with the instance's own keys, as by an operator who went astray. Several may be on.
type Fault string

const (
	// ExpiredTUF lets the TUF repository's timestamp end an hour before the instance's clock.
	ExpiredTUF Fault = "expired TUF"
	// LaggingLog shows checkpoints and tree heads of the logs as they were when the fault began. Entries are taken and
	// answered as ever.
	LaggingLog Fault = "lagging log"
	// ForkedLog shows checkpoints of the Rekor v2 log with another root than the log's, at the same size: where the log is read, and in
	// the answers for entries, whose proofs do not lead there.
	ForkedLog Fault = "forked log"
	// WrongSCT issues certificates whose SCT does not verify.
	WrongSCT Fault = "wrong SCT"
	// Unavailable answers 503 to everything.
	Unavailable Fault = "unavailable"
)

// Fail turns a fault on.
func (s *Server) Fail(f Fault) {
	s.t.Helper()
	if err := s.faults.set(f, s.now); err != nil {
		s.t.Fatalf("attestrytest: %v", err)
	}
}

// Heal turns a fault off.
func (s *Server) Heal(f Fault) { s.faults.clear(f) }

// heads are the paths at which logs show how large they are.
var heads = []string{"/checkpoint", "/api/v2/checkpoint", "/api/v1/log", "/ct/main/checkpoint", "/ct/main/ct/v1/get-sth"}

// faults stands before an instance's handler.
type faults struct {
	dir  string
	next http.Handler

	mu  sync.RWMutex
	now func() time.Time // of ExpiredTUF
	on  map[Fault]bool
	old map[string]*httptest.ResponseRecorder // of LaggingLog, by path
}

func (f *faults) set(fault Fault, now func() time.Time) error {
	old := map[string]*httptest.ResponseRecorder{}
	switch fault {
	case LaggingLog:
		for _, path := range heads {
			old[path] = httptest.NewRecorder()
			f.next.ServeHTTP(old[path], httptest.NewRequest(http.MethodGet, path, nil))
		}
	case ExpiredTUF, ForkedLog, WrongSCT, Unavailable:
	default:
		return fmt.Errorf("there is no fault %q", fault)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	on := maps.Clone(f.on) // readers have the one before
	if on == nil {
		on = map[Fault]bool{}
	}
	on[fault] = true
	f.on, f.now = on, now
	if fault == LaggingLog {
		f.old = old
	}
	return nil
}

func (f *faults) clear(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.on = maps.Clone(f.on)
	delete(f.on, fault)
}

// ServeHTTP answers with the faults that are on. Without any, and for gRPC, it is the instance's handler.
func (f *faults) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.RLock()
	on, old, now := f.on, f.old, f.now
	f.mu.RUnlock()
	var change func([]byte) ([]byte, error)
	switch path := r.URL.Path; {
	case len(on) == 0 || strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
	case on[Unavailable]:
		w.Header().Set("Retry-After", "1")
		http.Error(w, "the test wants this", http.StatusServiceUnavailable)
		return
	case on[LaggingLog] && old[path] != nil:
		maps.Copy(w.Header(), old[path].Header())
		w.WriteHeader(old[path].Code)
		w.Write(old[path].Body.Bytes())
		return
	case on[ForkedLog] && (path == "/checkpoint" || path == "/api/v2/checkpoint"):
		change = f.fork
	case on[ForkedLog] && path == "/api/v2/log/entries":
		change = f.forkEntry
	case on[ExpiredTUF] && path == "/tuf/timestamp.json":
		change = func(body []byte) ([]byte, error) { return f.expire(body, now().Add(-time.Hour)) }
	case on[WrongSCT] && slices.Contains([]string{"/api/v1/signingCert", "/api/v2/signingCert"}, path):
		change = f.spoil
	}
	if change == nil {
		f.next.ServeHTTP(w, r)
		return
	}
	honest := httptest.NewRecorder()
	f.next.ServeHTTP(honest, r)
	body := honest.Body.Bytes()
	if honest.Code < 300 {
		var err error
		if body, err = change(body); err != nil {
			http.Error(w, "attestrytest: "+err.Error(), http.StatusInternalServerError)
			return
		}
	}
	maps.Copy(w.Header(), honest.Header())
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(honest.Code)
	w.Write(body)
}

func (f *faults) key(name string) (crypto.Signer, error) {
	return signer.Open("file:"+filepath.Join(f.dir, "keys", name), nil)
}

// fork signs a checkpoint (c2sp.org/tlog-checkpoint) with another root.
func (f *faults) fork(checkpoint []byte) ([]byte, error) {
	text, lines, ok := strings.Cut(string(checkpoint), "\n\n")
	fields := strings.Split(text, "\n")
	name, encoded, isSigned := strings.Cut(strings.TrimPrefix(lines, "— "), " ")
	encoded, _, _ = strings.Cut(encoded, "\n")
	line, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || !isSigned || len(fields) < 3 || err != nil || len(line) < 4 {
		return nil, errors.New("the honest checkpoint is none")
	}
	root := sha256.Sum256([]byte(fields[2]))
	fields[2] = base64.StdEncoding.EncodeToString(root[:])
	text = strings.Join(fields, "\n") + "\n"
	key, err := f.key("rekor2.pem")
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256([]byte(text))
	sig, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%s\n— %s %s\n", text, name, base64.StdEncoding.EncodeToString(append(line[:4:4], sig...))), nil
}

// forkEntry gives the inclusion proof of a TransparencyLogEntry (sigstore_rekor.proto) a checkpoint of fork, and its root.
func (f *faults) forkEntry(answer []byte) ([]byte, error) {
	var entry rekor.TransparencyLogEntry
	if err := protojson.Unmarshal(answer, &entry); err != nil {
		return nil, err
	}
	note, err := f.fork([]byte(entry.GetInclusionProof().GetCheckpoint().GetEnvelope()))
	if err != nil {
		return nil, err
	}
	root := strings.Split(string(note), "\n")[2]
	entry.InclusionProof.Checkpoint.Envelope = string(note)
	if entry.InclusionProof.RootHash, err = base64.StdEncoding.DecodeString(root); err != nil {
		return nil, err
	}
	return protojson.Marshal(&entry)
}

// expire signs timestamp metadata with another end.
func (f *faults) expire(timestamp []byte, end time.Time) ([]byte, error) {
	meta, err := metadata.Timestamp().FromBytes(timestamp)
	if err != nil {
		return nil, err
	}
	key, err := f.key(filepath.Join("tuf", "online.pem"))
	if err != nil {
		return nil, err
	}
	s, err := signature.LoadSigner(key, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	meta.Signed.Expires = end.UTC().Truncate(time.Second)
	meta.ClearSignatures()
	if _, err := meta.Sign(s); err != nil {
		return nil, err
	}
	return meta.ToBytes(false)
}

var oidSCTs = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}

// spoil replaces the first certificate of an answer, which is JSON (v2) or PEM (v1), by one whose SCT has a bit changed.
func (f *faults) spoil(body []byte) ([]byte, error) {
	if block, rest := pem.Decode(body); block != nil {
		der, err := f.spoilCertificate(block.Bytes)
		return append(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: der}), rest...), err
	}
	var answer map[string]map[string]map[string][]string // signedCertificateEmbeddedSct.chain.certificates
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, err
	}
	for _, signed := range answer {
		certificates := signed["chain"]["certificates"]
		if len(certificates) == 0 {
			return nil, errors.New("the honest answer has no certificate")
		}
		block, _ := pem.Decode([]byte(certificates[0]))
		if block == nil {
			return nil, errors.New("the honest answer has no certificate")
		}
		der, err := f.spoilCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certificates[0] = string(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: der}))
	}
	return json.Marshal(answer)
}

func (f *faults) spoilCertificate(der []byte) ([]byte, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidSCTs) })
	if at < 0 {
		return nil, errors.New("the honest certificate has no SCT")
	}
	tbs := bytes.Clone(cert.RawTBSCertificate)
	list := cert.Extensions[at].Value
	tbs[bytes.Index(tbs, list)+len(list)-1] ^= 1 // the end of the SCT's signature
	key, err := f.key("ca.pem")
	if err != nil {
		return nil, err
	}
	hash := crypto.SHA256
	if cert.SignatureAlgorithm == x509.ECDSAWithSHA384 {
		hash = crypto.SHA384
	}
	h := hash.New()
	h.Write(tbs)
	sig, err := key.Sign(rand.Reader, h.Sum(nil), hash)
	if err != nil {
		return nil, err
	}
	var outer struct {
		TBS       asn1.RawValue
		Algorithm asn1.RawValue
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		return nil, err
	}
	outer.TBS = asn1.RawValue{FullBytes: tbs}
	outer.Signature = asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}
	return asn1.Marshal(outer)
}
