package log

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"testing"
)

func TestTheLineForWitnessesIsTheOneOfThePublishedVectors(t *testing.T) {
	const text = "tlog.example.test\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"
	const want = "— tlog.example.test MLdU+Y5yX4+1PecncE1OK4+TWWumGecdsNaU7vBpx/IR/s7Mh+o1uJdOeKKfCKGpVeP3AXGSyoCEujLpUHsmxDfbVAI=\n"
	line, err := ed25519Line([]byte(text), "tlog.example.test", ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil || string(line) != want {
		t.Errorf("%q, %v", line, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if line, err := ed25519Line([]byte(text), "tlog.example.test", key); err == nil {
		t.Errorf("an ECDSA key made %q", line)
	}
}
