// Package rekor holds the entry kinds against Rekor 1.5.4. It is a module of its own because that
// release needs sigstore 1.10.9, in which goodkey no longer refuses weak keys: pkg/ca is pinned to 1.10.8.
package rekor

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-openapi/runtime"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/types"
	_ "github.com/sigstore/rekor/pkg/types/helm/v0.0.1" // registers the kind
	_ "github.com/sigstore/rekor/pkg/types/rekord/v0.0.1"
	_ "github.com/sigstore/rekor/pkg/types/rpm/v0.0.1"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log/entry"
	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

var update = flag.Bool("update", false, "write the vectors that pkg/log/entry tests against")

const samples = "../../pkg/log/entry/testdata"

func sample(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(samples, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(samples, pattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("no samples %s (%v)", pattern, err)
	}
	for i, name := range names {
		if names[i], err = filepath.Rel(samples, name); err != nil {
			t.Fatal(err)
		}
	}
	return names
}

type object = map[string]any

func proposal(kind string, spec object) object {
	return object{"kind": kind, "apiVersion": "0.0.1", "spec": spec}
}

func rekord(format string, key, signature, artifact []byte) object {
	return proposal("rekord", object{
		"signature": object{"format": format, "content": signature, "publicKey": object{"content": key}},
		"data":      object{"content": artifact},
	})
}

func helm(key, provenance []byte) object {
	return proposal("helm", object{"publicKey": object{"content": key}, "chart": object{"provenance": object{"content": provenance}}})
}

func rpm(key, file []byte) object {
	return proposal("rpm", object{"publicKey": object{"content": key}, "package": object{"content": file}})
}

// withHash adds the digest of the artifact at spec.<member>.
func withHash(doc object, member string) object {
	at := doc["spec"].(object)[member].(object)
	sum := sha256.Sum256(at["content"].([]byte))
	at["hash"] = object{"algorithm": "sha256", "value": hex.EncodeToString(sum[:])}
	return doc
}

// submissions are what both must take, by a sentence about it.
func submissions(t testing.TB) map[string]object {
	docs := map[string]object{}
	message := sample(t, "message.txt")
	for _, signature := range glob(t, "pgp/*.message*") {
		name, _, _ := strings.Cut(filepath.Base(signature), ".")
		for _, form := range []string{".asc", ".gpg"} {
			key := sample(t, "pgp/"+name+form)
			docs[fmt.Sprintf("rekord: %s by %s", signature, name+form)] = rekord("pgp", key, sample(t, signature), message)
		}
	}
	docs["rekord: a PGP signature by two keys, with both"] = rekord("pgp", sample(t, "pgp/two.gpg"), sample(t, "pgp/rsa.and-ed.sig"), message)
	docs["rekord: a PGP signature by two keys, with the second"] = rekord("pgp", sample(t, "pgp/ed.asc"), sample(t, "pgp/rsa.and-ed.sig"), message)
	docs["rekord: two blocks of PGP keys"] = rekord("pgp", append(sample(t, "pgp/dsa.asc"), sample(t, "pgp/rsa.asc")...), sample(t, "pgp/rsa.message.sig"), message)
	docs["rekord: PGP keys with CRLF"] = rekord("pgp", bytes.ReplaceAll(sample(t, "pgp/rsa.asc"), []byte("\n"), []byte("\r\n")), sample(t, "pgp/rsa.message.sig"), message)
	docs["rekord: a PGP signature with its digest"] = withHash(rekord("pgp", sample(t, "pgp/rsa.asc"), sample(t, "pgp/rsa.message.asc"), message), "data")
	for _, name := range []string{"ed25519", "ecdsa", "rsa"} {
		docs["rekord: SSH "+name] = rekord("ssh", sample(t, "ssh/"+name+".pub"), sample(t, "ssh/"+name+".message.sig"), message)
	}
	docs["rekord: an SSH key with options, behind a comment"] = withHash(rekord("ssh", append([]byte("# mine\n\nrestrict,command=\"a b\" "), sample(t, "ssh/ecdsa.pub")...), sample(t, "ssh/ecdsa.message.sig"), message), "data")
	for _, signature := range []string{"minisign.message.minisig", "minisign.legacy.minisig", "signify.message.sig"} {
		name, _, _ := strings.Cut(signature, ".")
		docs["rekord: "+signature] = rekord("minisign", sample(t, "minisign/"+name+".pub"), sample(t, "minisign/"+signature), message)
	}
	file := sample(t, "minisign/minisign.pub")
	_, line, _ := bytes.Cut(file, []byte("\n"))
	docs["rekord: a minisign key without its comment"] = rekord("minisign", bytes.TrimSpace(line), sample(t, "minisign/minisign.message.minisig"), message)
	for name, doc := range x509Submissions(t, message) {
		docs["rekord: "+name] = doc
	}
	for _, name := range []string{"rsa", "ed"} {
		docs["helm: "+name] = helm(sample(t, "pgp/"+name+".asc"), sample(t, "helm/"+name+".prov"))
		docs["rpm: "+name] = rpm(sample(t, "pgp/"+name+".asc"), sample(t, "rpm/"+name+".rpm"))
	}
	docs["helm: text around the message"] = helm(sample(t, "pgp/rsa.asc"), append(append([]byte("before\n"), sample(t, "helm/rsa.prov")...), "behind"...))
	docs["rpm: header and payload signed"] = withHash(rpm(sample(t, "pgp/two.gpg"), sample(t, "rpm/rsa.v3.rpm")), "package")
	docs["rpm: no epoch, payload not compressed"] = rpm(sample(t, "pgp/rsa.gpg"), sample(t, "rpm/rsa.no-epoch.rpm"))
	return docs
}

// TestSignedOnTheSpot holds both against each other where a signature would be in the way.
func TestSignedOnTheSpot(t *testing.T) {
	s := newPGPSigner(t)
	taken := 0
	for _, sums := range chartSums {
		doc := helm(s.public, s.chart(t, strings.ReplaceAll(sums, "SUM", "sha256:"+strings.Repeat("0a", 32))))
		checkFuzzed(t, doc)
		raw, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ours(t, raw); err == nil {
			taken++
		}
	}
	if taken < 5 {
		t.Errorf("took only %d charts", taken)
	}
	for n, general := range generalHeaders() {
		doc := rpm(s.public, s.packageOf(t, general))
		checkFuzzed(t, doc)
		raw, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ours(t, raw); (err == nil) != (n >= 3) {
			t.Errorf("a header of %d tags: %v", n+1, err)
		}
	}
}

// upstreams returns the body that Rekor makes, and its search keys.
func upstreams(raw []byte) (body []byte, keys []string, err error) {
	pe, err := models.UnmarshalProposedEntry(bytes.NewReader(raw), runtime.JSONConsumer())
	if err != nil {
		return nil, nil, err
	}
	e, err := types.CreateVersionedEntry(pe)
	if err != nil {
		return nil, nil, err
	}
	// Rekor looks for the keys once the body is made, which may have dropped what holds some of them.
	if before, err := e.IndexKeys(); err == nil {
		keys = before
	}
	if body, err = types.CanonicalizeEntry(context.Background(), e); err != nil {
		return nil, nil, err
	}
	after, err := e.IndexKeys()
	return body, append(keys, after...), err
}

func ours(t testing.TB, raw []byte) (entry.Entry, error) {
	t.Helper()
	v, err := ijson.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	kinds, err := entry.ParseKinds([]string{"rekord", "helm", "rpm"})
	if err != nil {
		t.Fatal(err)
	}
	return entry.Propose(kinds, v)
}

// compare tells whether Rekor makes the same body of a submission that we took. Of a key with
// several user IDs it makes any of several bodies, at random, whose keys are then others'.
func compare(raw []byte, e entry.Entry) (keys []string, err error) {
	for range 400 {
		body, found, bodyErr := upstreams(raw)
		if err = bodyErr; err != nil {
			continue
		}
		if bytes.Equal(body, e.Body) {
			return found, nil
		}
		err = fmt.Errorf("bodies differ\nours   %.3000s\ntheirs %.3000s", e.Body, body)
	}
	return nil, err
}

// vector is a submission that Rekor 1.5.4 takes.
type vector struct {
	Proposal object   `json:"proposal"`
	Body     []byte   `json:"body"`
	Keys     []string `json:"keys"` // sorted
}

func TestRekorMakesTheSameBodies(t *testing.T) {
	vectors := map[string]vector{}
	for name, doc := range submissions(t) {
		t.Run(name, func(t *testing.T) {
			raw, err := json.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			e, err := ours(t, raw)
			if err != nil {
				t.Fatal(err)
			}
			keys, err := compare(raw, e)
			if err != nil {
				t.Fatal(err)
			}
			if stored, err := entry.Keys(e.Body); err != nil || !slices.Equal(stored, e.Keys) {
				t.Errorf("keys of the stored body are %q (%v), want %q", stored, err, e.Keys)
			}
			several := strings.Contains(name, "/ed.") || strings.Contains(name, "/revoked.") || strings.Contains(name, "two") || strings.Contains(name, "payload signed") || strings.Contains(name, "second") || strings.HasSuffix(name, ": ed")
			var found []string
			for _, k := range keys {
				k = strings.ToLower(k)
				digest := len(k) == 64 && !strings.ContainsAny(k, ":@")
				if several && digest {
					continue // of one of the orders of user IDs, each time another
				}
				if found = append(found, k); !slices.Contains(e.Keys, k) && !slices.Contains(e.SubmittedKeys, k) {
					t.Errorf("upstream finds it by %q, we do not: %q, %q", k, e.Keys, e.SubmittedKeys)
				}
			}
			slices.Sort(found)
			if !strings.HasSuffix(name, ".gpg") {
				vectors[name] = vector{doc, e.Body, slices.Compact(found)}
			}
		})
	}
	if *update && !t.Failed() {
		out, err := json.MarshalIndent(vectors, "", "")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(samples, "upstream.json"), append(out, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPublishedSamples are files that come with Rekor's own tests.
func TestPublishedSamples(t *testing.T) {
	upstream := filepath.Join(module(t, "github.com/sigstore/rekor"), "pkg")
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(upstream, name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	hello := func(format, key, signature string) object {
		return rekord(format, read("pki/"+format+"/testdata/"+key), read("pki/"+format+"/testdata/"+signature), read("pki/"+format+"/testdata/hello_world.txt"))
	}
	docs := map[string]object{
		"rekord":           rekord("pgp", read("types/rekord/tests/test_public_key.key"), read("types/rekord/tests/test_file.sig"), read("types/rekord/tests/test_file.txt")),
		"helm":             helm(read("types/helm/tests/test_helm_armor.pub"), read("types/helm/tests/test-0.1.0.tgz.prov")),
		"rpm":              rpm(read("types/rpm/tests/test_rpm_public_key.key"), read("types/rpm/tests/test.rpm")),
		"PGP":              hello("pgp", "valid_armored_public.pgp", "hello_world.txt.asc.sig"),
		"PGP binary":       hello("pgp", "valid_binary_public.pgp", "hello_world.txt.sig"),
		"SSH":              hello("ssh", "id_rsa.pub", "hello_world.txt.sig"),
		"minisign":         hello("minisign", "minisign.pub", "hello_world.txt.minisig"),
		"minisign, hashed": hello("minisign", "minisign_hashed.pub", "hello_world_hashed.txt.minisig"),
		"signify":          hello("minisign", "signify.pub", "hello_world.txt.signify"),
		"x509":             hello("x509", "ec.pub", "hello_world.txt.sig"),
	}
	for name, doc := range docs {
		raw, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		e, err := ours(t, raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := compare(raw, e); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Keys with many certifications and attributes.
	for _, name := range []string{"valid_armored_complex_public.pgp", "valid_binary_complex_public.pgp"} {
		if _, err := entry.PublicKeySearchKey("pgp", read("pki/pgp/testdata/"+name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"armored_private.pgp", "binary_private.pgp", "bogus_armored.pgp", "bogus_binary.pgp"} {
		if _, err := entry.PublicKeySearchKey("pgp", read("pki/pgp/testdata/"+name)); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// TestWhereOursIsStricter are submissions of which Rekor makes a body and we do not, on purpose.
func TestWhereOursIsStricter(t *testing.T) {
	message := sample(t, "message.txt")
	minisig := sample(t, "minisign/minisign.message.minisig")
	otherID := slices.Clone(minisig)
	_, line, _ := bytes.Cut(otherID, []byte("\n"))
	line[4] ^= 'A' ^ 'B' // in the key ID's base64
	for name, doc := range map[string]object{
		"a PGP signature behind text":        rekord("pgp", sample(t, "pgp/rsa.asc"), append([]byte("see:\n"), sample(t, "pgp/rsa.message.asc")...), message),
		"a PGP signature before text":        rekord("pgp", sample(t, "pgp/rsa.asc"), append(sample(t, "pgp/rsa.message.asc"), "see above"...), message),
		"a minisign signature of another ID": rekord("minisign", sample(t, "minisign/minisign.pub"), otherID, message),
		"a chart of two files":               helm(sample(t, "pgp/rsa.asc"), sample(t, "helm/rsa.two-files.prov")),
	} {
		raw, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := upstreams(raw); err != nil {
			t.Errorf("%s: Rekor does not take it either: %v", name, err)
		}
		if _, err := ours(t, raw); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// seeds adds every submission's parts to a fuzzer.
func seeds(f *testing.F, kind string, add func(spec object)) {
	docs := submissions(f)
	for _, name := range slices.Sorted(maps.Keys(docs)) {
		if docs[name]["kind"] == kind {
			add(docs[name]["spec"].(object))
		}
	}
}

// checkFuzzed wants that Rekor makes the same body of what we take.
func checkFuzzed(t *testing.T, doc object) {
	raw, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ours(t, raw)
	if err != nil {
		if k := fault.KindOf(err); k != fault.Invalid && k != fault.TooLarge {
			t.Fatalf("unclassified: %v", err)
		}
		return
	}
	if _, err := compare(raw, e); err != nil {
		t.Fatalf("we take %.3000s\n%v", raw, err)
	}
	stored, err := entry.Keys(e.Body)
	if err != nil || !slices.Equal(stored, e.Keys) {
		t.Fatal(errors.Join(fmt.Errorf("keys of %s are %q, want %q", e.Body, stored, e.Keys), err))
	}
}

func FuzzRekord(f *testing.F) {
	formats := []string{"pgp", "minisign", "ssh", "x509"}
	seeds(f, "rekord", func(spec object) {
		signature, data := spec["signature"].(object), spec["data"].(object)
		f.Add(uint8(slices.Index(formats, signature["format"].(string))), signature["publicKey"].(object)["content"].([]byte), signature["content"].([]byte), data["content"].([]byte))
	})
	f.Fuzz(func(t *testing.T, format uint8, key, signature, artifact []byte) {
		checkFuzzed(t, rekord(formats[int(format)%len(formats)], key, signature, artifact))
	})
}

func FuzzHelm(f *testing.F) {
	seeds(f, "helm", func(spec object) {
		f.Add(spec["publicKey"].(object)["content"].([]byte), spec["chart"].(object)["provenance"].(object)["content"].([]byte))
	})
	f.Fuzz(func(t *testing.T, key, provenance []byte) { checkFuzzed(t, helm(key, provenance)) })
}

func FuzzRPM(f *testing.F) {
	seeds(f, "rpm", func(spec object) {
		f.Add(spec["publicKey"].(object)["content"].([]byte), spec["package"].(object)["content"].([]byte))
	})
	f.Fuzz(func(t *testing.T, key, file []byte) { checkFuzzed(t, rpm(key, file)) })
}
