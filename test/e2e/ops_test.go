package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	rekorpb "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/tsa"
)

var sample = regexp.MustCompile(`(?m)^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{.*\})? (\S+)$`)

// scrape returns the sum of each metric's series.
func scrape(t *testing.T, ops string) map[string]float64 {
	t.Helper()
	sums := map[string]float64{}
	for _, m := range sample.FindAllStringSubmatch(get(t, "http://"+ops+"/metrics"), -1) {
		value, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			t.Fatalf("%s: %v", m[0], err)
		}
		sums[m[1]] += value
	}
	return sums
}

// TestUpstreamsMetricsAreThereAndMove: dashboards made for Fulcio, Rekor, Trillian's CT front end and the timestamp authority find their names.
func TestUpstreamsMetricsAreThereAndMove(t *testing.T) {
	ops := freeAddress(t)
	s := up(t, "--metrics", ops, "--log-level", "debug")
	b := newSandbox(t)
	b.source(s.client("env"))
	before := scrape(t, ops)

	sign := func(config, command string, args ...string) {
		t.Helper()
		name := b.file(command+"-"+config, config+command)
		b.set("ATTESTRY_SIGNING_CONFIG", s.client(config))
		b.must(attestry, append(append([]string{command, "--identity-token", s.alice()}, args...), name)...)
	}
	predicate := b.file("predicate.json", `{"builder":"here"}`)
	for _, v := range s.rekors() {
		sign(v.config, "sign")
		sign(v.config, "attest", "--type", "https://example.com/built", "--predicate", predicate)
	}
	status, body, err := call(t.Context(), http.MethodPost, s.url+"/api/v1/index/retrieve", "application/json", `{"email":"alice@example.com"}`)
	if err != nil || status != http.StatusOK {
		t.Fatalf("search: %d %s %v", status, body, err)
	}
	get(t, s.url+"/ct/main/ct/v1/get-sth")
	for _, refused := range []string{"/api/v2/signingCert", "/api/v1/timestamp", "/api/v1/log/entries", "/api/v2/log/entries"} {
		if status, body, err := call(t.Context(), http.MethodPost, s.url+refused, "application/json", "{}"); err != nil || status < 400 || status >= 500 {
			t.Errorf("%s: %d %s %v", refused, status, body, err)
		}
	}
	conn, err := grpc.NewClient(s.listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := rekorpb.NewRekorClient(conn).CreateEntry(t.Context(), &rekorpb.CreateEntryRequest{}); err == nil {
		t.Error("an empty entry was taken")
	}

	moving := strings.Fields(`
		fulcio_new_certs fulcio_api_latency_count http_requests_total ca_requests_refused_total
		rekor_new_entries rekor_qps_by_api rekor_latency_by_api_count rekor_api_latency_count rekor_api_latency_summary_count rekor_entry_count
		rekor_index_storage_latency_summary_count
		rekor_v2_new_hashedrekord_entries rekor_v2_http_requests_total rekor_v2_http_api_latency_count
		rekor_v2_http_api_request_size_count rekor_v2_grpc_api_request_size_count
		grpc_server_started_total grpc_server_handled_total grpc_server_handling_seconds_count
		http_reqs http_rsps http_latency_count last_sct_timestamp last_sth_timestamp last_sth_treesize
		timestamp_authority_http_requests_total timestamp_authority_api_latency_count timestamp_authority_api_latency_summary_count
		timestamp_authority_latency_by_api_count timestamp_authority_issued_total timestamp_authority_rejections_total
		attestry_log_tree_size attestry_ct_requests_total attestry_index_cursor process_cpu_seconds_total`)
	eventually(t, "all of upstream's metrics have moved", func() bool { // the index follows
		now := scrape(t, ops)
		return !strings.Contains(strings.Join(still(before, now, moving), " "), "rekor_index")
	})
	now := scrape(t, ops)
	if names := still(before, now, moving); len(names) > 0 {
		t.Errorf("these are not there or did not move: %v", names)
	}
	if got := now["rekor_entry_count"] - before["rekor_entry_count"]; got != 4 {
		t.Errorf("rekor_entry_count grew by %v, want 4", got)
	}
	for name, want := range map[string]float64{
		"attestry_build_info": 1, "fulcio_build_info": 1, "rekor_build_info": 1, "rekor_v2_build_info": 1, "timestamp_authority_build_info": 1,
		"known_logs": 1, "max_merge_delay": 60, "rekor_v2_inclusion_proof_failure_total": 0,
		"rekor_v2_new_dsse_entries": 0, // attestry sends the hash of an envelope
	} {
		if got, ok := now[name]; !ok || got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if days := now["timestamp_authority_certificate_valid_days_remaining"]; days < 300 {
		t.Errorf("the TSA's chain is good for %v days", days)
	}
	eventually(t, "the log has a line for the request", func() bool {
		return regexp.MustCompile(`level=DEBUG msg=request method=GET path=/ct/main/ct/v1/get-sth status=200 .* request_id=[0-9a-f]{16}`).MatchString(readFile(t, s.logFile))
	})
}

// still returns the names that are missing or have not grown.
func still(before, now map[string]float64, names []string) (list []string) {
	for _, name := range names {
		if value, ok := now[name]; !ok || value <= before[name] {
			list = append(list, name)
		}
	}
	return list
}

// tsaProgram is the program tsa, beside the others.
func tsaProgram() string { return filepath.Join(filepath.Dir(attestry), "tsa") }

// unready waits until the role is not ready because of what, a regular expression, while the process is well.
func unready(t *testing.T, ops, what string) {
	t.Helper()
	last := ""
	defer func() {
		if t.Failed() {
			t.Logf("the last answer of %s/readyz: %s", ops, last)
		}
	}()
	eventually(t, "not ready: "+what, func() bool {
		status, body, err := call(t.Context(), http.MethodGet, "http://"+ops+"/readyz", "", "")
		last = fmt.Sprint(status, " ", body, err)
		return err == nil && status == http.StatusServiceUnavailable && regexp.MustCompile(what).MatchString(body)
	})
	if status, _, err := call(t.Context(), http.MethodGet, "http://"+ops+"/healthz", "", ""); err != nil || status != http.StatusOK {
		t.Errorf("the process is not well: %d %v", status, err)
	}
}

func readyAgain(t *testing.T, ops string) {
	t.Helper()
	eventually(t, "ready again", func() bool {
		status, _, err := call(t.Context(), http.MethodGet, "http://"+ops+"/readyz", "", "")
		return err == nil && status == http.StatusOK
	})
}

// TestReadinessNamesWhatIsAway takes from each role what it stands on, and gives it back.
func TestReadinessNamesWhatIsAway(t *testing.T) {
	t.Run("tsa with a key in a key service", func(t *testing.T) {
		bao := services.OpenBao(t)
		bao.Must(t, "POST", "transit/keys/tsa", map[string]any{"type": "ecdsa-p256"})
		t.Setenv("VAULT_ADDR", bao.Address)
		t.Setenv("VAULT_TOKEN", bao.Token)
		leaf, err := signer.Open("hashivault://tsa", nil)
		if err != nil {
			t.Fatal(err)
		}
		root, err := signer.Create(filepath.Join(t.TempDir(), "root.pem"), signer.P256)
		if err != nil {
			t.Fatal(err)
		}
		chain, err := tsa.CreateChain(leaf.Public(), root, tsa.ChainOptions{Organization: "Example", NotBefore: time.Now().Add(-time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		write(t, dir+"/chain.pem", string(tsa.EncodeChain(chain)))
		stamping := startRole(t, tsaProgram(), dir, "tsa", fmt.Sprintf("key: hashivault://tsa\nchain-file: %s/chain.pem\n", dir))
		bao.Seal(t)
		unready(t, stamping.ops, "signer")
		bao.Unseal(t)
		readyAgain(t, stamping.ops)
	})
	t.Run("ca and tlog", func(t *testing.T) {
		t.Parallel()
		h := newHierarchy(t)
		database := services.StartPostgres(t)
		log := newTlogs(t, backend{"rows and fence in PostgreSQL", func(t *testing.T, dir string) string {
			uri := database.Database(t)
			return fmt.Sprintf("database: %q\nfence: %q\nct: {key: file:%s/ct.pem, roots-file: %[3]s/roots.pem}\n", uri, uri, dir)
		}, []string{ctLog}, 1}, h.root)
		issuing := h.start(t, "ca", logged(log)+fmt.Sprintf("database: %q\n", database.Database(t)))
		logs := log.servers[0]

		logs.kill()
		unready(t, issuing.ops, "CT log")
		logs.start()
		readyAgain(t, issuing.ops)

		database.Kill()
		unready(t, logs.ops, "log ct-main: (database|fence)")
		unready(t, issuing.ops, "records")
		if err := database.Start(); err != nil {
			t.Fatal(err)
		}
		readyAgain(t, logs.ops)
		readyAgain(t, issuing.ops)
	})
	t.Run("tsa and tuf-publisher", func(t *testing.T) {
		t.Parallel()
		s := up(t)
		dir := t.TempDir()
		for _, sub := range []string{"memory", "repository"} {
			if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		stamping := startRole(t, tsaProgram(), dir, "tsa", fmt.Sprintf("key: file:%s/keys/tsa.pem\nchain-file: %[1]s/keys/tsa-chain.pem\nlast-issued-file: %s/memory/last\n", s.dir, dir))
		publishing := startRole(t, tufPublisher, dir, "tuf-publisher", fmt.Sprintf("dir: %s/repository\nkeys-dir: %[1]s/keys\ncreate-keys: true\ninventory: %[1]s/inventory.jsonl\n"+
			"records:\n  - {kind: tsa, url: http://localhost, chain-file: %s/keys/tsa-chain.pem}\n", dir, s.dir))

		move(t, filepath.Join(dir, "memory"), filepath.Join(dir, "away"))
		query := `{"artifactHash":"` + base64.StdEncoding.EncodeToString(make([]byte, 32)) + `","hashAlgorithm":"sha256","certificates":true}`
		eventually(t, "no timestamp without memory", func() bool {
			status, _, err := call(t.Context(), http.MethodPost, stamping.url+"/api/v1/timestamp", "application/json", query)
			return err == nil && status == http.StatusServiceUnavailable
		})
		unready(t, stamping.ops, "last issued second")
		move(t, filepath.Join(dir, "away"), filepath.Join(dir, "memory"))
		readyAgain(t, stamping.ops)

		timestamp := filepath.Join(dir, "repository", "timestamp.json")
		move(t, timestamp, timestamp+".away")
		unready(t, publishing.ops, "TUF repository: .*timestamp.json")
		move(t, timestamp+".away", timestamp)
		readyAgain(t, publishing.ops)
	})
	t.Run("up", func(t *testing.T) {
		t.Parallel()
		fence := filepath.Join(t.TempDir(), "fence")
		s := up(t, "--fence", fence)
		move(t, fence, fence+"-away")
		unready(t, s.listen, "fence")
		move(t, fence+"-away", fence)
		readyAgain(t, s.listen)
	})
}

func move(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// secrets are texts that nothing may show, by what they are.
type secrets map[string]string

// piece is how many characters of a secret in a row are too many. Tokens of one issuer begin alike, so their first part does not count.
const piece = 12

func (s secrets) token(name, token string) {
	for i, part := range strings.Split(token, ".") {
		if i > 0 {
			s[fmt.Sprintf("part %d of the token %s", i+1, name)] = part
		}
	}
}

// key adds a private key: the text between the PEM lines, its DER in other alphabets follows from that.
func (s secrets) key(t *testing.T, path string) {
	t.Helper()
	block, _ := pem.Decode([]byte(readFile(t, path)))
	if block == nil {
		t.Fatalf("%s is no PEM", path)
	}
	// The public half stands at the end of the DER: what is before it is secret.
	secret := block.Bytes[:min(len(block.Bytes), 66)]
	if len(block.Bytes) > 66 { // PKCS #8 of a P-256 key: 36 bytes of framing, then the scalar
		secret = block.Bytes[36:66]
	}
	s["key "+path+" in hex"] = fmt.Sprintf("%x", secret)
	s["key "+path+" in base64"] = base64.StdEncoding.EncodeToString(secret)
}

// find reports pieces of secrets in text.
func (s secrets) find(t *testing.T, where, text string) {
	t.Helper()
	written := map[string]bool{}
	for i := range max(0, len(text)-piece+1) {
		written[text[i:i+piece]] = true
	}
	for name, secret := range s {
		size := min(piece, len(secret))
		for i := range len(secret) - size + 1 {
			part := secret[i : i+size]
			if size == piece && written[part] || size < piece && strings.Contains(text, part) {
				at := strings.Index(text, part)
				t.Errorf("%s shows a piece of %s, behind %q", where, name, text[max(0, at-150):at])
				break
			}
		}
	}
}

// TestNoSecretIsShown has the roles work at debug, refuse, lose their database and fail to start, and looks for tokens, passwords and keys in
// what they write, answer, count and were started with.
func TestNoSecretIsShown(t *testing.T) {
	h := newHierarchy(t)
	database := services.StartPostgres(t)
	hidden := secrets{"the database's password": database.Password()}
	hidden["the database's password in a URL"] = strings.ReplaceAll(database.Password(), "/", "%2F")

	// Keys with a password.
	const password = "correct-horse-battery-staple"
	hidden["the keys' password"], hidden["a wrong password"] = password, "wrong-pony-battery-staple"
	write(t, h.dir+"/password", password)
	write(t, h.dir+"/wrong", hidden["a wrong password"])
	hidden.key(t, h.dir+"/ca.pem")
	encrypt(t, h.dir+"/ca.pem", password)

	log := newTlogs(t, backend{"debug", func(t *testing.T, dir string) string {
		uri := database.Database(t)
		return fmt.Sprintf("log-level: debug\ndatabase: %q\nfence: %q\nrekor1: {key: file:%s/rekor1.pem}\nrekor2: {key: file:%[3]s/rekor2.pem}\n"+
			"ct: {key: file:%[3]s/ct.pem, roots-file: %[3]s/roots.pem}\n", uri, uri, dir)
	}, []string{rekor1, rekor2, ctLog}, 1}, h.root)
	for _, name := range []string{"rekor1", "rekor2", "ct"} {
		hidden.key(t, filepath.Join(log.dir, name+".pem"))
	}
	config := fmt.Sprintf("log-level: debug\nkey-password-file: %s/password\ndatabase: %q\n%s", h.dir, database.Database(t), logged(log))
	issuing := h.start(t, "ca", config)
	s := up(t)
	hidden.key(t, filepath.Join(s.dir, "keys", "tsa.pem"))
	dir := t.TempDir()
	stamping := startRole(t, tsaProgram(), dir, "tsa", fmt.Sprintf("log-level: debug\nkey: file:%s/keys/tsa.pem\nchain-file: %[1]s/keys/tsa-chain.pem\n", s.dir))
	publishing := startRole(t, tufPublisher, dir, "tuf-publisher", fmt.Sprintf("log-level: debug\ndir: %s/tuf\nkeys-dir: %[1]s/keys\ncreate-keys: true\ninventory: %[1]s/inventory.jsonl\n"+
		"records:\n  - {kind: tsa, url: http://localhost, chain-file: %s/keys/tsa-chain.pem}\n", dir, s.dir))
	for _, name := range []string{"root-1", "root-2", "root-3", "online"} {
		hidden.key(t, filepath.Join(dir, "keys", name+".pem"))
	}
	roles := []*role{log.servers[0], issuing, stamping, publishing}

	good := h.token(t)
	tokens := map[string]string{
		"good": good, "expired": rs256(t, h.idp, map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}),
		"for others": rs256(t, h.idp, map[string]any{"aud": "others"}), "of a stranger": rs256(t, h.idp, map[string]any{"iss": "https://stranger.example"}),
		"altered": good[:len(good)-8] + "AAAAAAAA", "cut": good[:len(good)/2],
	}
	replies, certificates := new(lines), 0
	send := func(method, url, contentType, body string, header ...string) {
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Add(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return // a server that has lost its database may not answer
		}
		defer resp.Body.Close()
		if strings.HasSuffix(url, "/signingCert") && resp.StatusCode < 300 {
			certificates++ // which has the identity in it, and so the same letters as its token
			return
		}
		if err := resp.Write(replies); err != nil {
			t.Error(err)
		}
	}
	round := func() {
		for name, token := range tokens {
			hidden.token(name, token)
			for _, r := range roles {
				for _, path := range []string{"/api/v2/signingCert", "/api/v1/signingCert", "/api/v1/log/entries", "/api/v2/log/entries", "/ct/main/ct/v1/add-pre-chain", "/api/v1/timestamp", "/tuf/root.json"} {
					for _, body := range []string{token, `{"` + token + `":1}`, `{"credentials":{"oidcIdentityToken":"` + token + `"}}`, `{"credentials":{"oidcIdentityToken":` + token + `}}`,
						`{"certificateSigningRequest":"` + base64.StdEncoding.EncodeToString([]byte(token)) + `"}`} {
						send(http.MethodPost, r.url+path, "application/json", body, "Authorization", "Bearer "+token, "X-Request-Id", token)
					}
				}
				send(http.MethodPost, r.url+"/nothing/"+token, "text/plain", token, "Cookie", "session="+token)
				send(http.MethodGet, r.url+"/healthz/"+token+"?token="+token, "text/plain", "", "Authorization", token)
			}
		}
	}
	a := newAloneAudit(t, h, log)
	if err := a.l.certificate(t.Context(), &stack{url: issuing.url}, good); err != nil {
		t.Fatal(err)
	}
	entry, _, err := a.l.body1()
	if err != nil {
		t.Fatal(err)
	}
	send(http.MethodPost, log.servers[0].url+"/api/v1/log/entries", "application/json", entry)
	csr := base64.StdEncoding.EncodeToString([]byte(signingRequestOf(t)))
	for name, token := range tokens {
		send(http.MethodPost, issuing.url+"/api/v2/signingCert", "application/json", `{"credentials":{"oidcIdentityToken":"`+token+`"},"certificateSigningRequest":"`+csr+`"}`)
		send(http.MethodPost, issuing.url+"/api/v1/signingCert", "application/json", `{"certificateSigningRequest":"`+csr+`"}`, "Authorization", "Bearer "+token)
		hidden.token(name, token)
	}
	round()
	database.Kill()
	unready(t, issuing.ops, "records")
	round()
	for _, r := range roles {
		for _, path := range []string{"/metrics", "/readyz", "/healthz"} {
			send(http.MethodGet, "http://"+r.ops+path, "", "")
		}
	}
	send(http.MethodPost, "http://"+issuing.ops+"/ca/explain", "application/json", `{"token":"`+tokens["expired"]+`x"}`)

	// Starts that fail: a wrong password for the key, a database that is away, a password in a wrong key of the file.
	broken := newRole(t, ca, h.dir, "broken")
	broken.config = filepath.Join(h.dir, "broken.yaml")
	for name, text := range map[string]string{
		"key":              strings.Replace(config, "/password\n", "/wrong\n", 1),
		"database":         config,
		"database-passwor": config + fmt.Sprintf("database-passwor: %s\n", database.Password()),
	} {
		write(t, broken.config, fmt.Sprintf("listen: %s\nops-listen: %s\nkey: file:%s/ca.pem\nchain-file: %[3]s/chain.pem\nissuer-file: %s\n%s", broken.listen, broken.ops, h.dir, h.issuerFile, text))
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		out, err := exec.CommandContext(ctx, broken.exe, "-config", broken.config).CombinedOutput()
		cancel()
		if err == nil || !strings.Contains(string(out), name) {
			t.Errorf("with a bad %s: %v\n%s", name, err, out)
		}
		hidden.find(t, "a start with a bad "+name, string(out))
	}

	everything := replies.String()
	if certificates < 2 {
		t.Errorf("%d certificates were given for requests of PKCS #10", certificates)
	}
	if !strings.Contains(everything, "HTTP/1.1 401") && !strings.Contains(everything, "HTTP/1.1 400") {
		t.Error("nothing was refused")
	}
	hidden.find(t, "an answer", everything)
	for _, r := range roles {
		name := filepath.Base(r.exe)
		text := readFile(t, r.logs)
		if !strings.Contains(text, `"level":"DEBUG","msg":"request"`) {
			t.Errorf("%s wrote no lines at debug", name)
		}
		hidden.find(t, "the log of "+name, text)
		for line := range strings.Lines(text) {
			var fields map[string]any
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				t.Errorf("%s: a line that is no JSON: %s", name, line)
			}
			if fields["msg"] == "request" && fields["request_id"] == nil {
				t.Errorf("%s: a line without request_id: %s", name, line)
			}
		}
		for _, file := range []string{"cmdline", "environ"} {
			hidden.find(t, file+" of "+name, readFile(t, fmt.Sprintf("/proc/%d/%s", r.cmd.Process.Pid, file)))
		}
	}
}

// signingRequestOf is a certificate request, PEM, of a new key.
func signingRequestOf(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// encrypt puts the key in path under a password.
func encrypt(t *testing.T, path, password string) {
	t.Helper()
	key, err := signer.Open("file:"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := cryptoutils.MarshalPrivateKeyToEncryptedDER(key, cryptoutils.StaticPasswordFunc([]byte(password)))
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, string(pem.EncodeToMemory(&pem.Block{Type: string(cryptoutils.EncryptedSigstorePrivateKeyPEMType), Bytes: der})))
}
