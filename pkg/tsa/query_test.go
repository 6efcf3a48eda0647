package tsa

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"math/big"
	"strings"
	"testing"

	"github.com/digitorus/timestamp"
	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"
)

// integer reads the content of a DER INTEGER, nil for none.
func integer(content []byte) *big.Int {
	if content == nil {
		return nil
	}
	n := new(big.Int).SetBytes(content)
	if content[0]&0x80 != 0 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(content))))
	}
	return n
}

// content is the reverse of integer for positive numbers.
func content(n *big.Int) []byte {
	b := n.Bytes()
	if len(b) == 0 || b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return b
}

func mention(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("error %v, want one with %q", err, want)
	}
}

// Parts of queries, DER.
var (
	version1   = []byte{2, 1, 1}
	sha256Alg  = []byte("\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00")
	zeros      = element(tagOctetString, make([]byte, 32))
	zerosSHA2  = element(tagSequence, sha256Alg, zeros)
	somePolicy = []byte{6, 3, 0x2a, 3, 4} // 1.2.3.4
	certReq    = []byte{1, 1, 0xff}
	extension  = element(tagContext0, element(tagSequence, []byte{6, 3, 0x2a, 3, 4, 1, 1, 0xff, 4, 1, 0}))
)

func query(parts ...[]byte) []byte { return element(tagSequence, parts...) }

func TestQueriesAreReadStrictly(t *testing.T) {
	long := bytes.Repeat([]byte{0x11}, 65)
	for _, tt := range []struct {
		name string
		in   []byte
		want failure // -1 is accepted
	}{
		{"the shortest", query(version1, zerosSHA2), -1},
		{"every field that we accept", query(version1, zerosSHA2, somePolicy, []byte{2, 1, 5}, certReq), -1},
		{"a hash algorithm without parameters", query(version1, element(tagSequence, element(tagSequence, sha256Alg[2:13]), zeros)), -1},
		{"a negative nonce", query(version1, zerosSHA2, []byte{2, 2, 0xff, 0x01}), -1},
		{"a nonce of 64 bytes", query(version1, zerosSHA2, element(2, long[:64])), -1},
		{"an encoded FALSE, which DER leaves out", query(version1, zerosSHA2, []byte{1, 1, 0}), -1},
		{"nothing", nil, badDataFormat},
		{"text", []byte("GET / HTTP/1.1"), badDataFormat},
		{"trailing bytes", append(query(version1, zerosSHA2), 0), badDataFormat},
		{"a length that is not the shortest", append([]byte{0x30, 0x81}, query(version1, zerosSHA2)[1:]...), badDataFormat},
		{"version 0", query([]byte{2, 1, 0}, zerosSHA2), badRequest},
		{"version 2", query([]byte{2, 1, 2}, zerosSHA2), badRequest},
		{"SHA-1", query(version1, element(tagSequence, element(tagSequence, oidElement(oidSHA1)), element(4, make([]byte, 20)))), badAlg},
		{"SHA-224", query(version1, element(tagSequence, element(tagSequence, oidElement("\x60\x86\x48\x01\x65\x03\x04\x02\x04")), element(4, make([]byte, 28)))), badAlg},
		{"parameters that are not NULL", query(version1, element(tagSequence, element(tagSequence, sha256Alg[2:13], []byte{2, 1, 0}), zeros)), badDataFormat},
		{"a digest of 31 bytes", query(version1, element(tagSequence, sha256Alg, element(4, make([]byte, 31)))), badDataFormat},
		{"a digest of no bytes", query(version1, element(tagSequence, sha256Alg, element(4))), badDataFormat},
		{"a nonce of 65 bytes", query(version1, zerosSHA2, element(2, long)), badRequest},
		{"a nonce with a needless zero", query(version1, zerosSHA2, []byte{2, 2, 0, 1}), badDataFormat},
		{"a nonce before the policy, which the library would skip", query(version1, zerosSHA2, []byte{2, 1, 5}, somePolicy), badDataFormat},
		{"an extension", query(version1, zerosSHA2, certReq, extension), unacceptedExtension},
		{"an empty list of extensions", query(version1, zerosSHA2, []byte{0xa0, 0}), unacceptedExtension},
		{"a malformed policy", query(version1, zerosSHA2, []byte{6, 1, 0x80}), badDataFormat},
		{"a policy of 129 bytes", query(version1, zerosSHA2, element(6, bytes.Repeat([]byte{1}, 129))), unacceptedPolicy},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseQuery(tt.in)
			switch {
			case tt.want < 0 && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want >= 0 && (err == nil || failureOf(err) != tt.want):
				t.Errorf("error %v, want %v", err, tt.want)
			}
		})
	}
}

func TestJSONQueriesAreReadStrictly(t *testing.T) {
	hash := base64.StdEncoding.EncodeToString(make([]byte, 32))
	start := `{"artifactHash":"` + hash + `","hashAlgorithm":"sha256"`
	for _, tt := range []struct {
		name, in string
		want     failure // -1 is accepted
		nonce    string
	}{
		{"what sigstore-js sends", start + `}`, -1, ""},
		{"the algorithm in capitals", strings.Replace(start, "sha256", "SHA256", 1) + `}`, -1, ""},
		{"every field", start + `,"certificates":true,"nonce":1123343434,"tsaPolicyOID":"1.2.3.4"}`, -1, "42f4dc4a"},
		{"nonce zero", start + `,"nonce":0}`, -1, "00"},
		{"a negative nonce", start + `,"nonce":-1}`, -1, "ff"},
		{"a nonce beyond 64 bits", start + `,"nonce":36893488147419103232}`, -1, "020000000000000000"},
		{"a nonce over 64 bytes", start + `,"nonce":1` + strings.Repeat("0", 160) + `}`, badRequest, ""},
		{"a nonce with a fraction", start + `,"nonce":1.5}`, badDataFormat, ""},
		{"a nonce with an exponent", start + `,"nonce":1e9}`, badDataFormat, ""},
		{"a nonce in quotes", start + `,"nonce":"5"}`, badDataFormat, ""},
		{"SHA-1", strings.Replace(start, "sha256", "sha1", 1) + `}`, badAlg, ""},
		{"MD5", strings.Replace(start, "sha256", "md5", 1) + `}`, badAlg, ""},
		{"no algorithm", `{"artifactHash":"` + hash + `"}`, badAlg, ""},
		{"a digest of another length", strings.Replace(start, "sha256", "sha512", 1) + `}`, badDataFormat, ""},
		{"a digest in hex", strings.Replace(start, hash, "zz", 1) + `}`, badDataFormat, ""},
		{"a policy that is not an OID", start + `,"tsaPolicyOID":"x"}`, badDataFormat, ""},
		{"trailing data", start + `}{}`, badDataFormat, ""},
		{"nothing", ``, badDataFormat, ""},
		{"over 1024 bytes", start + `,"nonce":` + strings.Repeat("1", 1000) + `}`, badDataFormat, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q, err := ParseJSONQuery([]byte(tt.in))
			switch {
			case tt.want < 0 && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want >= 0 && (err == nil || failureOf(err) != tt.want):
				t.Errorf("error %v, want %v", err, tt.want)
			case err == nil && hex.EncodeToString(q.Nonce) != tt.nonce:
				t.Errorf("nonce %x, want %s", q.Nonce, tt.nonce)
			}
		})
	}
}

// FuzzQuery holds ParseQuery against the library: what we accept, it reads the same way.
func FuzzQuery(f *testing.F) {
	f.Add(query(version1, zerosSHA2, somePolicy, []byte{2, 1, 5}, certReq))
	f.Add(query(version1, zerosSHA2, certReq, extension))
	f.Add(query(version1, zerosSHA2, []byte{2, 2, 0xff, 0x01}))
	f.Fuzz(func(t *testing.T, in []byte) {
		q, err := ParseQuery(in)
		if err != nil {
			if failures[failureOf(err)].name == "" || failureOf(err) == systemFailure {
				t.Fatalf("%x: error %v is not one of the query's", in, err)
			}
			return
		}
		theirs, err := timestamp.ParseRequest(in)
		if err != nil {
			t.Fatalf("%x: accepted, but the library says %v", in, err)
		}
		nonce := integer(q.Nonce)
		if theirs.HashAlgorithm != q.Hash || !bytes.Equal(theirs.HashedMessage, q.Digest) || theirs.Certificates != q.Certificates ||
			!theirs.TSAPolicyOID.Equal(q.Policy) || (nonce == nil) != (theirs.Nonce == nil) || nonce != nil && nonce.Cmp(theirs.Nonce) != 0 {
			t.Fatalf("%x: read as %+v, by the library as %+v", in, q, theirs)
		}
	})
}

func FuzzJSONQuery(f *testing.F) {
	f.Add([]byte(`{"artifactHash":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","hashAlgorithm":"sha256","certificates":true,"nonce":-5,"tsaPolicyOID":"1.2.3"}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		q, err := ParseJSONQuery(in)
		if err != nil {
			return
		}
		if len(q.Digest) != q.Hash.Size() || len(q.Nonce) > maxNonce || q.Nonce != nil && !minimal(q.Nonce) {
			t.Fatalf("%q read as %+v", in, q)
		}
	})
}

func FuzzChain(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		chain, err := ParseChain(in)
		if err != nil {
			return
		}
		if back, err := ParseChain(EncodeChain(chain)); err != nil || len(back) != len(chain) {
			t.Fatalf("%d certificates came back as %d: %v", len(chain), len(back), err)
		}
	})
}

func TestRejectionsAreDER(t *testing.T) {
	for info, want := range map[failure]string{ // X.690 section 11.2.2: no trailing zero bits
		badAlg:              "03020780",
		badRequest:          "03020520",
		badDataFormat:       "03020204",
		timeNotAvailable:    "0303010002",
		unacceptedPolicy:    "0303000001",
		unacceptedExtension: "030407000080",
		systemFailure:       "03050600000040",
	} {
		in := cryptobyte.String(rejection(info, "größe"))
		var resp, status, text, bits cryptobyte.String
		var number int
		if !in.ReadASN1(&resp, der.SEQUENCE) || !in.Empty() || !resp.ReadASN1(&status, der.SEQUENCE) || !resp.Empty() ||
			!status.ReadASN1Integer(&number) || !status.ReadASN1(&text, der.SEQUENCE) || !status.ReadASN1Element(&bits, der.BIT_STRING) || !status.Empty() {
			t.Fatalf("%v: not a rejection", info)
		}
		if number != 2 || string(text) != "\x0c\x07größe" || hex.EncodeToString(bits) != want {
			t.Errorf("%v: status %d, statusString %x, failInfo %x, want %s", info, number, text, bits, want)
		}
		if _, err := timestamp.ParseResponse(rejection(info, "größe")); err == nil || !strings.Contains(err.Error(), "größe") {
			t.Errorf("%v: the library says %v", info, err)
		}
	}
}
