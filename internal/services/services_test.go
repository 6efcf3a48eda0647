package services

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func port(s *PostgresServer) string { return fmt.Sprint(s.Port) }

// die ends this process as nothing can prevent.
func die() { syscall.Kill(os.Getpid(), syscall.SIGKILL); select {} }

// runDying runs t's test in another process, which prints two words and dies.
func runDying(t *testing.T) (string, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "ATTESTRY_TEST_DIE=1")
	out, err := cmd.Output()
	words := strings.Fields(string(out))
	if len(words) != 2 || err == nil {
		t.Fatalf("the process printed %q and ended with %v", out, err)
	}
	return words[0], words[1]
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	end := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-poll.C:
		case <-end:
			t.Fatalf("not so after 20 s: %s", what)
		}
	}
}
