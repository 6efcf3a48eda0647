package cluster

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"
)

// TestACertificateFollowsAnother walks through the life of a secret. At each step whoever has read the secret a step before or
// after trusts what is served.
func TestACertificateFollowsAnother(t *testing.T) {
	names := []string{"admission.attestry.svc"}
	const life = 90 * 24 * time.Hour
	start := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	trusts := func(bundle, served []byte, at time.Time) bool {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(bundle)
		block, _ := pem.Decode(served)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		_, err = cert.Verify(x509.VerifyOptions{Roots: pool, DNSName: names[0], CurrentTime: at})
		return err == nil
	}
	step := func(data map[string][]byte, at time.Time, changes bool) map[string][]byte {
		t.Helper()
		next, err := due(data, names, life, at)
		if err != nil {
			t.Fatal(err)
		}
		if (next != nil) != changes {
			t.Fatalf("%v: changed %v, want %v", at, next != nil, changes)
		}
		if next == nil {
			return data
		}
		return next
	}
	first := step(map[string][]byte{}, start, true)
	step(first, start.Add(life/3), false)
	dueAt := start.Add(life * 2 / 3)
	both := step(first, dueAt, true)
	if !bytes.Equal(both[current], first[current]) || both[following] == nil {
		t.Fatal("the certificate is replaced before its successor's authority is known")
	}
	if !trusts(both[authorities], first[current], dueAt) || !trusts(both[authorities], both[following], dueAt) || !trusts(first[authorities], both[current], dueAt) {
		t.Error("the bundle does not have both authorities")
	}
	step(both, dueAt.Add(settle-time.Second), false)
	second := step(both, dueAt.Add(settle), true)
	if !bytes.Equal(second[current], both[following]) || second[following] != nil {
		t.Fatal("the successor is not served")
	}
	if !trusts(both[authorities], second[current], dueAt.Add(settle)) || !trusts(second[authorities], first[current], dueAt.Add(settle)) {
		t.Error("a replica that is a step behind is not trusted")
	}
	step(second, dueAt.Add(life/3), false)
	if third := step(second, dueAt.Add(life), true); trusts(third[authorities], first[current], dueAt.Add(life)) {
		t.Error("an authority that has ended is still in the bundle")
	}
}

func TestWhatIsUnusableIsReplaced(t *testing.T) {
	names := []string{"admission.attestry.svc"}
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	whole, err := due(map[string][]byte{}, names, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(map[string][]byte){
		"no key":              func(d map[string][]byte) { d[currentKey] = nil },
		"no authority":        func(d map[string][]byte) { d[authorities] = nil },
		"not PEM":             func(d map[string][]byte) { d[current] = []byte("x") },
		"nothing is the case": func(map[string][]byte) {},
	} {
		data := map[string][]byte{}
		for k, v := range whole {
			data[k] = v
		}
		change(data)
		next, err := due(data, names, time.Hour, now)
		if err != nil {
			t.Fatal(err)
		}
		if (next != nil) == (name == "nothing is the case") {
			t.Errorf("%s: replaced %v", name, next != nil)
		}
	}
	if next, err := due(whole, []string{"other.attestry.svc"}, time.Hour, now); err != nil || next == nil {
		t.Errorf("another service's name: replaced %v, %v", next != nil, err)
	}
	if next, err := due(whole, names, time.Hour, now.Add(2*time.Hour)); err != nil || next == nil {
		t.Errorf("expired: replaced %v, %v", next != nil, err)
	}
}
