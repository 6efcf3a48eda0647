package bench

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/digitorus/timestamp"
)

// Targets that Load knows. Verify is the other one.
const (
	TargetCA     = "ca"
	TargetRekor1 = "rekor1"
	TargetRekor2 = "rekor2"
	TargetTSA    = "tsa"
	TargetProofs = "proofs"
)

// HTTPOptions describe one run against a server.
type HTTPOptions struct {
	Target   string // one of the constants above
	Server   Server
	Size     Size
	Timeout  time.Duration       // for one request; 0 is a minute
	Tokens   []string            // identity tokens, taken in turn; target ca only
	Prepared func(time.Duration) // called when all requests are built; may be nil
}

// Load builds o.Size.Requests distinct requests, then sends them.
func Load(ctx context.Context, o HTTPOptions) (*Report, error) {
	if err := o.Size.Check(); err != nil {
		return nil, err
	}
	if o.Timeout <= 0 {
		o.Timeout = time.Minute
	}
	began := time.Now()
	var build func() ([]byte, error)
	var good func([]byte) error
	var err error
	switch o.Target {
	case TargetCA:
		build, err = o.Server.certificateRequests(o.Tokens)
	case TargetRekor1:
		build, err = o.Server.rekor1Entries()
	case TargetRekor2:
		build, err = o.Server.rekor2Entries()
	case TargetProofs:
		build, err = o.Server.proofQueries(ctx, o.Timeout)
	case TargetTSA:
		build, good = o.Server.timestampQueries(), granted
	default:
		err = fmt.Errorf("target %q is not one of %s, %s, %s, %s, %s", o.Target, TargetCA, TargetRekor1, TargetRekor2, TargetTSA, TargetProofs)
	}
	if err != nil {
		return nil, err
	}
	requests, err := prepare(ctx, o.Size.Requests, build)
	if err != nil {
		return nil, err
	}
	if o.Prepared != nil {
		o.Prepared(time.Since(began))
	}
	return o.Server.load(ctx, o.Target, o.Size.Clients, o.Timeout, requests, good)
}

// signedDigests returns a function that draws a random digest and signs it with one P-256 key.
func signedDigests() (key *ecdsa.PrivateKey, next func() (digest, signature []byte, err error), err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, err
	}
	return key, func() ([]byte, []byte, error) {
		digest := make([]byte, sha256.Size)
		if _, err := rand.Read(digest); err != nil {
			return nil, nil, err
		}
		signature, err := ecdsa.SignASN1(rand.Reader, key, digest)
		return digest, signature, err
	}, nil
}

// rekor1Entries makes hashedrekord 0.0.1 entries with a plain public key, as rekor-cli and
// cosign sign-blob --key do.
func (s Server) rekor1Entries() (func() ([]byte, error), error) {
	key, next, err := signedDigests()
	if err != nil {
		return nil, err
	}
	public, err := publicPEM(key)
	if err != nil {
		return nil, err
	}
	verifier := base64.StdEncoding.EncodeToString(public)
	return func() ([]byte, error) {
		digest, signature, err := next()
		if err != nil {
			return nil, err
		}
		return s.post("/api/v1/log/entries", "application/json", []byte(
			`{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"data":{"hash":{"algorithm":"sha256","value":"`+hex.EncodeToString(digest)+
				`"}},"signature":{"content":"`+base64.StdEncoding.EncodeToString(signature)+`","publicKey":{"content":"`+verifier+`"}}}}`)), nil
	}, nil
}

// proofQueries asks for random entries of a Rekor v1 log, each with a proof, an SET and a checkpoint.
func (s Server) proofQueries(ctx context.Context, timeout time.Duration) (func() ([]byte, error), error) {
	w := &httpWorker{ctx: ctx, server: s, timeout: timeout}
	defer w.close()
	status, _, err := w.exchange(s.get("/api/v1/log"))
	if err != nil {
		return nil, fmt.Errorf("asking for the log's size: %w", err)
	}
	var info struct{ TreeSize int64 }
	if err := json.Unmarshal(w.body.Bytes(), &info); err != nil || status != http.StatusOK || info.TreeSize < 1 {
		return nil, fmt.Errorf("asking for the log's size: %d, %d entries, %w", status, info.TreeSize, err)
	}
	return func() ([]byte, error) {
		index, err := rand.Int(rand.Reader, big.NewInt(info.TreeSize))
		if err != nil {
			return nil, err
		}
		return s.get("/api/v1/log/entries?logIndex=" + index.String()), nil
	}, nil
}

// rekor2Entries makes hashedRekordRequestV002 entries with a plain public key.
func (s Server) rekor2Entries() (func() ([]byte, error), error) {
	key, next, err := signedDigests()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	verifier := base64.StdEncoding.EncodeToString(der)
	return func() ([]byte, error) {
		digest, signature, err := next()
		if err != nil {
			return nil, err
		}
		return s.post("/api/v2/log/entries", "application/json", []byte(
			`{"hashedRekordRequestV002":{"digest":"`+base64.StdEncoding.EncodeToString(digest)+`","signature":{"content":"`+
				base64.StdEncoding.EncodeToString(signature)+`","verifier":{"keyDetails":"PKIX_ECDSA_P256_SHA_256","publicKey":{"rawBytes":"`+verifier+`"}}}}}`)), nil
	}, nil
}

// certificateRequests makes POST /api/v2/signingCert bodies, each with a new P-256 key, as
// sigstore-go does.
func (s Server) certificateRequests(tokens []string) (func() ([]byte, error), error) {
	if len(tokens) == 0 {
		return nil, errors.New("target ca needs an identity token")
	}
	challenges := make([][]byte, len(tokens))
	for i, token := range tokens {
		challenge, err := challengeOf(token, time.Now())
		if err != nil {
			return nil, fmt.Errorf("identity token %d: %w", i+1, err)
		}
		digest := sha256.Sum256([]byte(challenge))
		challenges[i] = digest[:]
	}
	var turn atomic.Int64
	return func() ([]byte, error) {
		k := int(turn.Add(1)-1) % len(tokens)
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		public, err := publicPEM(key)
		if err != nil {
			return nil, err
		}
		proof, err := key.Sign(rand.Reader, challenges[k], crypto.SHA256)
		if err != nil {
			return nil, err
		}
		return s.post("/api/v2/signingCert", "application/json", []byte(
			`{"credentials":{"oidcIdentityToken":"`+tokens[k]+`"},"publicKeyRequest":{"publicKey":{"algorithm":"ECDSA","content":"`+
				strings.ReplaceAll(string(public), "\n", `\n`)+`"},"proofOfPossession":"`+base64.StdEncoding.EncodeToString(proof)+`"}}`)), nil
	}, nil
}

// challengeOf returns what a client of Fulcio signs to prove its key: `email` if the token has
// one, else `sub`. The token's signature is the server's business.
func challengeOf(token string, now time.Time) (string, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 || strings.ContainsAny(token, "\"\\ \r\n") {
		return "", errors.New("it is not a compact JWS")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", fmt.Errorf("its payload: %w", err)
	}
	var claims struct {
		Subject string  `json:"sub"`
		Email   string  `json:"email"`
		Expiry  float64 `json:"exp"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return "", fmt.Errorf("its payload: %w", err)
	}
	if end := time.Unix(int64(claims.Expiry), 0); !now.Before(end) {
		return "", fmt.Errorf("it expired at %s", end.UTC().Format(time.RFC3339))
	}
	switch {
	case claims.Email != "":
		return claims.Email, nil
	case claims.Subject != "":
		return claims.Subject, nil
	}
	return "", errors.New("it has neither email nor sub")
}

const pathTimestamp = "/api/v1/timestamp"

// timestampQueries makes DER queries with a nonce and without certificates. The server's URL may be the
// base or the whole path that a signing config carries.
func (s Server) timestampQueries() func() ([]byte, error) {
	s.path = strings.TrimSuffix(s.path, pathTimestamp)
	return func() ([]byte, error) {
		random := make([]byte, sha256.Size+8)
		if _, err := rand.Read(random); err != nil {
			return nil, err
		}
		query, err := (&timestamp.Request{
			HashAlgorithm: crypto.SHA256,
			HashedMessage: random[:sha256.Size],
			Nonce:         new(big.Int).SetBytes(random[sha256.Size:]),
		}).Marshal()
		if err != nil {
			return nil, err
		}
		return s.post(pathTimestamp, "application/timestamp-query", query), nil
	}
}

// granted tells whether a TimeStampResp begins with PKIStatusInfo { granted }: a refusal may
// come with HTTP 200.
func granted(reply []byte) error {
	if len(reply) > 9 && bytes.Contains(reply[:9], []byte{0x30, 3, 2, 1, 0}) {
		return nil
	}
	return fmt.Errorf("the timestamp was not granted: %x", reply[:min(len(reply), 64)])
}

func publicPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}
