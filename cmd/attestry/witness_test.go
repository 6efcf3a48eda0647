package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"attestry": main}) }

// scriptLog is the log of the scripts: 200 leaves, and a key of zeros.
type scriptLog struct {
	key  ed25519.PrivateKey
	tree *testonly.Tree
}

const scriptOrigin = "log.example.test"

func newScriptLog(seed string) scriptLog {
	l := scriptLog{ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), testonly.New(rfc6962.DefaultHasher)}
	for i := range 200 {
		l.tree.AppendData(fmt.Appendf(nil, "%s %d", seed, i))
	}
	return l
}

func (l scriptLog) vkey() string {
	return fmt.Sprintf("%s+%08x+%s", scriptOrigin, l.hash(), base64.StdEncoding.EncodeToString(append([]byte{1}, l.key.Public().(ed25519.PublicKey)...)))
}

func (l scriptLog) hash() uint32 {
	sum := sha256.Sum256(append([]byte(scriptOrigin+"\n\x01"), l.key.Public().(ed25519.PublicKey)...))
	return binary.BigEndian.Uint32(sum[:])
}

// submission is the body of add-checkpoint.
func (l scriptLog) submission(from, to uint64) ([]byte, error) {
	body := fmt.Appendf(nil, "old %d\n", from)
	if 0 < from && from < to {
		hashes, err := l.tree.ConsistencyProof(from, to)
		if err != nil {
			return nil, err
		}
		for _, hash := range hashes {
			body = append(base64.StdEncoding.AppendEncode(body, hash), '\n')
		}
	}
	text := fmt.Sprintf("%s\n%d\n%s\n", scriptOrigin, to, base64.StdEncoding.EncodeToString(l.tree.HashAt(to)))
	sig := append(binary.BigEndian.AppendUint32(nil, l.hash()), ed25519.Sign(l.key, []byte(text))...)
	return fmt.Appendf(body, "\n%s\n— %s %s\n", text, scriptOrigin, base64.StdEncoding.EncodeToString(sig)), nil
}

func TestScript(t *testing.T) {
	logs := map[string]scriptLog{"log": newScriptLog("leaf"), "fork": newScriptLog("other")}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			for _, name := range []string{"LISTEN", "OPS", "OTHER"} {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					return err
				}
				env.Setenv(name, ln.Addr().String())
				env.Defer(func() { ln.Close() })
				if err := ln.Close(); err != nil {
					return err
				}
			}
			env.Setenv("VKEY", logs["log"].vkey())
			golden, err := filepath.Abs("../../pkg/trust/testdata/golden/trusted_root.json")
			env.Setenv("GOLDEN", golden)
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await": await,
			// status N PROGRAM ARGS… runs it and requires that exit status.
			"status": func(ts *testscript.TestScript, _ bool, args []string) {
				var exit *exec.ExitError
				if err := ts.Exec(args[1], args[2:]...); !errors.As(err, &exit) || strconv.Itoa(exit.ExitCode()) != args[0] {
					ts.Fatalf("%v, want exit status %s", err, args[0])
				}
			},
			// submit URL log|fork FROM TO STATUS OUT asks for a cosignature and stores the answer.
			"submit": func(ts *testscript.TestScript, _ bool, args []string) {
				from, err := strconv.ParseUint(args[2], 10, 64)
				ts.Check(err)
				to, err := strconv.ParseUint(args[3], 10, 64)
				ts.Check(err)
				body, err := logs[args[1]].submission(from, to)
				ts.Check(err)
				resp, err := http.Post(args[0], "text/plain", bytes.NewReader(body))
				ts.Check(err)
				defer resp.Body.Close()
				answer, err := io.ReadAll(resp.Body)
				ts.Check(err)
				if strconv.Itoa(resp.StatusCode) != args[4] {
					ts.Fatalf("%s: %s: %s", args[0], resp.Status, answer)
				}
				ts.Check(os.WriteFile(ts.MkAbs(args[5]), answer, 0o600))
			},
			"crashes": func(ts *testscript.TestScript, _ bool, args []string) { crashes(ts, logs) },
			// fetch URL OUT
			"fetch": func(ts *testscript.TestScript, _ bool, args []string) {
				resp, err := http.Get(args[0])
				ts.Check(err)
				defer resp.Body.Close()
				answer, err := io.ReadAll(resp.Body)
				ts.Check(err)
				ts.Check(os.WriteFile(ts.MkAbs(args[1]), answer, 0o600))
			},
		},
	})
}

// crashes kills a witness 20 times while it is asked for one cosignature after the other. Each start holds the last one that was
// answered, or the one after it that was on its way, and nothing of another tree.
func crashes(ts *testscript.TestScript, logs map[string]scriptLog) {
	url, random := "http://"+ts.Getenv("LISTEN"), rand.New(rand.NewPCG(1, 2))
	post := func(log string, from, to uint64) (int, string) {
		body, err := logs[log].submission(from, to)
		ts.Check(err)
		resp, err := http.Post(url+"/add-checkpoint", "text/plain", bytes.NewReader(body))
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err != nil {
			return 0, err.Error()
		}
		return resp.StatusCode, string(answer)
	}
	var answered uint64
	for round := range 20 {
		witness := exec.Command("attestry", "witness", "--dir", "crashes", "--listen", ts.Getenv("LISTEN"), "--name", "witness.example.test/w1", "--log", ts.Getenv("VKEY"))
		witness.Dir = ts.MkAbs(".")
		ts.Check(witness.Start())
		await(ts, false, []string{url + "/readyz"})
		held := answered
		if answered > 0 {
			status, size := post("log", 0, 199)
			var err error
			held, err = strconv.ParseUint(strings.TrimSpace(size), 10, 64)
			if status != http.StatusConflict || err != nil || held != answered && held != answered+1 {
				witness.Process.Kill()
				ts.Fatalf("round %d: %d was answered, the witness says %d %q", round, answered, status, size)
			}
			if status, text := post("fork", held, held); status != http.StatusConflict || !strings.Contains(text, "another root") {
				witness.Process.Kill()
				ts.Fatalf("round %d: a fork of size %d: %d %q", round, held, status, text)
			}
		}
		killed := make(chan struct{})
		for left := 1 + random.IntN(8); ; left-- {
			if left == 0 {
				go func() { // ends at once
					witness.Process.Kill()
					close(killed)
				}()
			}
			if status, _ := post("log", held, held+1); status == http.StatusOK {
				held++
				answered = held
			} else if left > 0 {
				ts.Fatalf("round %d: status %d before the kill", round, status)
			}
			if left == 0 {
				break
			}
		}
		<-killed
		witness.Wait()
	}
	if answered < 20 {
		ts.Fatalf("%d cosignatures in 20 rounds", answered)
	}
}

// await URL waits until URL answers 200.
func await(ts *testscript.TestScript, _ bool, args []string) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		resp, err := http.Get(args[0])
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
			err = fmt.Errorf("status %s", resp.Status)
		}
		if time.Now().After(deadline) {
			ts.Fatalf("waiting for %s: %v", args[0], err)
		}
		<-time.After(10 * time.Millisecond)
	}
}
