package stack_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/pkg/stack"
)

func TestTheIssuerFileIsFollowed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "issuers.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("oidc-issuers:\n  https://one.example.com: {client-id: sigstore, type: email}\n")
	hangups, registry := make(chan os.Signal), prometheus.NewRegistry()
	s, _ := start(t, stack.Options{Dir: filepath.Join(t.TempDir(), "data"), CAConfig: file, Hangups: hangups, Registerer: registry})
	reload := func() {
		hangups <- os.Interrupt
		hangups <- os.Interrupt // taken when what the first brought about is over
	}
	issuers := func(doing, with, without string) {
		t.Helper()
		resp, err := http.Get(s.URL() + "/api/v2/configuration")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if text := string(body); !strings.Contains(text, with) || strings.Contains(text, without) || !strings.Contains(text, s.IssuerURL()) {
			t.Errorf("%s: want %s and the development issuer, not %s: %s", doing, with, without, text)
		}
		if err := s.Ready(t.Context()); err != nil {
			t.Errorf("%s: not ready: %v", doing, err)
		}
	}
	issuers("at the start", "https://one.example.com", "https://two.example.com")
	write("oidc-issuers:\n  https://two.example.com: {client-id: sigstore, type: emaill}\n")
	reload()
	issuers("a wrong file", "https://one.example.com", "https://two.example.com")
	write("oidc-issuers:\n  https://two.example.com: {client-id: sigstore, type: email}\n")
	reload()
	issuers("a good file", "https://two.example.com", "https://one.example.com")
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	generation := 0.0
	for _, family := range families {
		if family.GetName() == "ca_config_generation" {
			generation = family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	if generation < 2 { // the second signal may still be at work
		t.Errorf("ca_config_generation is %v", generation)
	}
}
