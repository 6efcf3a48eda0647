package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attestry/attestry/internal/signer"
)

// TestWitnessesOfALog runs two witnesses, both of which a Rekor v2 log needs. One of them knows the log by its own
// key, the other by the Ed25519 key that it has for witnesses.
func TestWitnessesOfALog(t *testing.T) {
	cosign := client(t, "cosign", "v3.1.3")
	var witnesses []*role
	s, _ := newSite(t, backend{"posix with witnesses", func(t *testing.T, dir string) string {
		b := newSandbox(t)
		key, err := signer.OpenOrCreate(filepath.Join(dir, "witness-key.pem"), signer.Ed25519)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "witness-key.pub"), publicPEM(t, key))
		policy := ""
		for _, w := range []struct{ name, key string }{{"w1", "rekor2"}, {"w2", "witness-key"}} {
			vkey := strings.TrimSpace(b.must(attestry, "witness", "vkey", "--name", "localhost", filepath.Join(dir, w.key+".pub")))
			v := newRole(t, attestry, dir, w.name)
			v.args = []string{"witness", "--dir", filepath.Join(dir, w.name), "--listen", v.listen, "--metrics", v.ops, "--name", "witness.example/" + w.name, "--log", vkey}
			v.start()
			witnesses = append(witnesses, v)
			its, _, _ := strings.Cut(get(t, v.url), "\n")
			policy += fmt.Sprintf("witness %s %s %s\n", w.name, its, v.url)
		}
		write(t, filepath.Join(dir, "policy"), policy+"group both all w1 w2\nquorum both\n")
		return fmt.Sprintf("fence: %s/fence\nrekor1: {key: file:%[1]s/rekor1.pem}\nrekor2: {key: file:%[1]s/rekor2.pem, witness-policy: %[1]s/policy, witness-key: file:%[1]s/witness-key.pem}\n", dir)
	}, []string{rekor1, rekor2}, 1})
	a := newAudit(t, s)
	submit := a.submitters(s.alice())
	cosigned := func(t *testing.T, checkpoint string) {
		t.Helper()
		for _, name := range []string{"w1", "w2"} {
			if strings.Count(checkpoint, "\n— witness.example/"+name+" ") != 1 {
				t.Errorf("there is no cosignature of %s:\n%s", name, checkpoint)
			}
		}
	}

	t.Run("bundles carry the cosignatures, and clients take them", func(t *testing.T) {
		b := newSandbox(t)
		v2 := s.rekors()[0]
		cosign3Blob(b, s, cosign, v2) // sigstore-python 4.5 refuses what cosign writes of the index 0
		blob, bundle := cosign3Blob(newSandbox(t), s, cosign, v2)
		cosigned(t, checkpointOf(t, bundle))
		verifyWithAll(b, s, v2, false, blob, bundle)
	})
	t.Run("Rekor v1 checkpoints stay without", func(t *testing.T) {
		_, bundle := cosign3Blob(newSandbox(t), s, cosign, s.rekors()[1])
		if checkpoint := checkpointOf(t, bundle); strings.Count(checkpoint, "\n— ") != 1 {
			t.Errorf("the checkpoint has more than one line of signatures:\n%s", checkpoint)
		}
	})
	for _, lost := range witnesses {
		t.Run("without "+lost.args[len(lost.args)-3]+" nothing is shown", func(t *testing.T) {
			before := get(t, s.url+"/api/v2/checkpoint")
			lost.kill()
			for range 2 {
				if err := submit[rekor2](); !errors.Is(err, errUnavailable) {
					t.Errorf("without a quorum the log answers %v, want 503", err)
				}
			}
			if after := get(t, s.url+"/api/v2/checkpoint"); after != before {
				t.Errorf("the checkpoint was\n%s\nand is, without a quorum,\n%s", before, after)
			}
			if err := submit[rekor1](); err != nil {
				t.Errorf("Rekor v1, which has no witnesses: %v", err)
			}
			lost.start()
			eventually(t, "the log takes entries again", func() bool { return submit[rekor2]() == nil })
			cosigned(t, get(t, s.url+"/api/v2/checkpoint"))
			a.check()
		})
	}
}

// checkpointOf returns the checkpoint in a bundle's log entry.
func checkpointOf(t *testing.T, bundlePath string) string {
	t.Helper()
	var bundle struct {
		VerificationMaterial struct {
			TlogEntries []struct {
				InclusionProof struct{ Checkpoint struct{ Envelope string } }
			}
		}
	}
	if err := json.Unmarshal([]byte(readFile(t, bundlePath)), &bundle); err != nil {
		t.Fatal(err)
	}
	if len(bundle.VerificationMaterial.TlogEntries) != 1 {
		t.Fatalf("the bundle has %d log entries", len(bundle.VerificationMaterial.TlogEntries))
	}
	return bundle.VerificationMaterial.TlogEntries[0].InclusionProof.Checkpoint.Envelope
}

// newWitnessed starts a tlog with Rekor v1 and v2 in a directory, and a witness in another without whose cosignature
// Rekor v2 shows nothing.
func newWitnessed(t *testing.T, dir string) (*tlogs, *role) {
	t.Helper()
	w := &role{t: t, exe: attestry, listen: freeAddress(t), ops: freeAddress(t), logs: filepath.Join(t.TempDir(), "witness.log")}
	w.url = "http://" + w.listen
	site := newTlogs(t, backend{"witnessed", func(t *testing.T, home string) string {
		key := strings.TrimSpace(runAttestry(t, "witness", "vkey", "--name", "localhost", filepath.Join(home, "rekor2.pub")))
		w.args = []string{"witness", "--dir", dir, "--listen", w.listen, "--metrics", w.ops, "--name", "witness.example/w1", "--log", key}
		w.start()
		t.Cleanup(w.kill)
		own, _, _ := strings.Cut(get(t, w.url+"/"), "\n")
		write(t, filepath.Join(home, "policy"), fmt.Sprintf("log %s\nwitness w1 %s %s\nquorum w1\n", key, own, w.url))
		return fmt.Sprintf("fence: %s/fence\nrekor1: {key: file:%[1]s/rekor1.pem}\nrekor2: {key: file:%[1]s/rekor2.pem, witness-policy: %[1]s/policy}\n", home)
	}, []string{rekor1, rekor2}, 1}, "")
	return site, w
}
