package identity_test

import (
	"context"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

// twin returns the token with the other of its two valid ECDSA signatures (s → n − s).
func twin(t *testing.T, token string, key *ecdsa.PrivateKey) string {
	t.Helper()
	at := strings.LastIndexByte(token, '.')
	sig, err := base64.RawURLEncoding.DecodeString(token[at+1:])
	if err != nil || len(sig) != 64 {
		t.Fatalf("%v, %d bytes", err, len(sig))
	}
	s := new(big.Int).SetBytes(sig[32:])
	s.Sub(key.Params().N, s).FillBytes(sig[32:])
	return token[:at+1] + base64.RawURLEncoding.EncodeToString(sig)
}

func TestATokenIsTheSameInEveryForm(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	v, err := identity.New(identity.Options{Issuers: []identity.Issuer{emailIssuer(p)}, Now: c.now, Leeway: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	verify := func(token string) *identity.Principal {
		t.Helper()
		got, err := v.Verify(context.Background(), token)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	token := p.Token(c.now(), nil)
	first := verify(token)
	if want := c.now().Add(2 * time.Minute); !first.Expires.Equal(want) || first.Subject != "alice-id" {
		t.Errorf("expires %s, want %s; subject %s", first.Expires, want, first.Subject)
	}
	own := emailIssuer(p)
	own.ClockLeeway = new(time.Duration)
	*own.ClockLeeway = 3 * time.Minute
	if got, err := verifier(t, c, own).Verify(context.Background(), token); err != nil || !got.Expires.Equal(c.now().Add(4*time.Minute)) {
		t.Errorf("with a leeway of the issuer's own: %v, %v", got, err)
	}
	other := verify(twin(t, token, p.PrivateKey("es").(*ecdsa.PrivateKey)))
	if other.Fingerprint == first.Fingerprint || other.TokenID != first.TokenID {
		t.Error("a token with its signature's twin counts as another token")
	}
	if last := token[len(token)-1]; last != 'A' && last != 'Q' && last != 'g' && last != 'w' {
		t.Errorf("the last of 86 characters for 64 bytes is %c", last)
	}
	slack := token[:len(token)-1] + string(token[len(token)-1]+1) // a bit that no byte has
	if got, err := v.Verify(context.Background(), slack); err == nil && got.TokenID != first.TokenID {
		t.Error("a token with slack bits in its encoding counts as another token")
	}
	if verify(p.Token(c.now(), map[string]any{"nonce": "x"})).TokenID == first.TokenID {
		t.Error("another token has the same ID")
	}

	sign := func(kid string, alg jose.SignatureAlgorithm, changes map[string]any) [32]byte {
		payload, err := json.Marshal(p.Claims(c.now(), changes))
		if err != nil {
			t.Fatal(err)
		}
		return verify(p.Sign(kid, alg, payload)).TokenID
	}
	jti := sign("es", jose.ES256, map[string]any{"jti": "1"})
	if jti != sign("rs", jose.RS256, map[string]any{"jti": "1", "nonce": "x"}) {
		t.Error("one jti counts as two tokens")
	}
	if jti == sign("es", jose.ES256, map[string]any{"jti": "2"}) {
		t.Error("two jti count as one token")
	}
	if sign("es", jose.ES256, map[string]any{"jti": 7, "nonce": "a"}) == sign("es", jose.ES256, map[string]any{"jti": 7, "nonce": "b"}) {
		t.Error("a jti that is no text names tokens")
	}
	another := identitytest.New(t)
	v2 := verifier(t, c, emailIssuer(another))
	got, err := v2.Verify(context.Background(), another.Token(c.now(), map[string]any{"jti": "1"}))
	if err != nil || got.TokenID == jti {
		t.Errorf("the jti of another issuer names this one's token (%v)", err)
	}
}

func TestWhatIsKeptOfATokenThatIsNotVerified(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	v := verifier(t, c, emailIssuer(p))
	good := p.Token(c.now(), nil)
	verified, err := v.Verify(context.Background(), good)
	if err != nil {
		t.Fatal(err)
	}
	payload := func(text string) string {
		return "e30." + base64.RawURLEncoding.EncodeToString([]byte(text)) + ".AAAA"
	}
	for _, tt := range []struct {
		name, token, issuer string
		ok                  bool
	}{
		{"a token of ours", good, p.URL, true},
		{"one that has expired", p.Token(c.now().Add(-time.Hour), nil), p.URL, true},
		{"an issuer that is not ours", p.Token(c.now(), map[string]any{"iss": "https://secret.example"}), "", true},
		{"a forged one", payload(`{"iss":"` + p.URL + `"}`), p.URL, true},
		{"no issuer", payload(`{}`), "", true},
		{"an issuer that is no text", payload(`{"iss":["` + p.URL + `"]}`), "", true},
		{"no token", "", "", false},
		{"no payload", payload(`x`), "", false},
		{"two parts", "a.b", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			claimed, ok := v.Claimed(tt.token)
			if claimed.OIDCIssuer != tt.issuer || ok != tt.ok || ok == (claimed.Fingerprint == [32]byte{}) {
				t.Errorf("got %+v %v", claimed, ok)
			}
			if tt.token == good && claimed.Fingerprint != verified.Fingerprint {
				t.Error("the fingerprint is another than that of the verified token")
			}
		})
	}
}
