package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/services"
)

// mood is how an object store treats the requests of logs.
type mood struct {
	name string
	// meet answers r itself, or passes it on with next, as often as it likes.
	meet func(w http.ResponseWriter, r *http.Request, next http.Handler)
}

func fails(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>a bad mood</Message></Error>`, code)
}

var moods = []mood{
	{"everything half a second late", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		select {
		case <-time.After(500 * time.Millisecond):
			next.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}},
	{"500 for one in three", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if rand.N(3) == 0 {
			fails(w, http.StatusInternalServerError, "InternalError")
			return
		}
		next.ServeHTTP(w, r)
	}},
	{"500 for every write, and it took effect", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != http.MethodPut {
			next.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(httptest.NewRecorder(), r)
		fails(w, http.StatusInternalServerError, "InternalError")
	}},
	{"503 for everything", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		fails(w, http.StatusServiceUnavailable, "SlowDown")
	}},
	{"no answer to one in three", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if rand.N(3) == 0 {
			next.ServeHTTP(httptest.NewRecorder(), r) // it takes effect
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	}},
	{"412 for every write with a precondition, and it took effect", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != http.MethodPut || r.Header.Get("If-None-Match")+r.Header.Get("If-Match") == "" {
			next.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(httptest.NewRecorder(), r)
		fails(w, http.StatusPreconditionFailed, "PreconditionFailed")
	}},
	{"412 for every write with a precondition, and nothing was there", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != http.MethodPut || r.Header.Get("If-None-Match")+r.Header.Get("If-Match") == "" {
			next.ServeHTTP(w, r)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		fails(w, http.StatusPreconditionFailed, "PreconditionFailed")
	}},
	{"200 for every write with a precondition, also when another object was there", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != http.MethodPut || r.Header.Get("If-None-Match")+r.Header.Get("If-Match") == "" {
			next.ServeHTTP(w, r)
			return
		}
		answer := httptest.NewRecorder()
		if next.ServeHTTP(answer, r); answer.Code == http.StatusPreconditionFailed {
			answer.Code = http.StatusOK
		}
		w.Header().Set("ETag", answer.Header().Get("ETag"))
		w.WriteHeader(answer.Code)
	}},
	{"404 for one read in three, though it is there", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && rand.N(3) == 0 {
			fails(w, http.StatusNotFound, "NoSuchKey")
			return
		}
		next.ServeHTTP(w, r)
	}},
	{"half of one object in three, then the connection ends", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != http.MethodGet || rand.N(3) > 0 {
			next.ServeHTTP(w, r)
			return
		}
		whole := httptest.NewRecorder()
		next.ServeHTTP(whole, r)
		body := whole.Body.Bytes()
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(whole.Code)
		_, _ = w.Write(body[:len(body)/2])
		panic(http.ErrAbortHandler)
	}},
}

// moody is a proxy before the object store. Requests keep the Host that they are signed for.
func moody(t *testing.T, endpoint string) (string, *atomic.Pointer[mood]) {
	t.Helper()
	target, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	var now atomic.Pointer[mood]
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if m := now.Load(); m != nil {
			m.meet(w, r, proxy)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv.URL, &now
}

// TestStoresInABadMood has two servers on S3 whose object store answers late, with errors, not at all, or untruthfully, and whose
// databases cannot be reached well. Entries are refused or wait; what is acknowledged is there, and what is shown is one
// history, during each mood and after it. (An object store that hands out a part of an object as the whole makes Tessera
// write an object with a hole, and then integrate no more until that object is removed: the log waits and forks nothing.)
func TestStoresInABadMood(t *testing.T) {
	t.Parallel() // with tests that wait, too
	pg, maria, gateway := services.StartPostgres(t), services.StartMariaDB(t), services.VersityGW(t)
	endpoint, now := moody(t, gateway.Endpoint)
	postgres, toPostgres := services.Through(t, pg.Database(t))
	mysql, toMaria := services.Through(t, "mysql://"+maria.Address())
	b := onS3
	b.yaml = func(t *testing.T, dir string) string {
		database := func(t testing.TB) string {
			return strings.Replace(maria.Database(t), maria.Address(), strings.TrimPrefix(mysql, "mysql://"), 1)
		}
		yaml := s3Logs(t, dir, fmt.Sprintf("database: %q\nfence: %[1]q\n", postgres), gateway, endpoint, database)
		return yaml[:strings.Index(yaml, "\nct:")+1]
	}
	site := newTlogs(t, b, "")
	a := newSiteAudit(t, &stack{t: t}, site, rekor1, rekor2)
	load := a.loadSite(site, 4, rekor1, rekor2)
	during := func(name string, begin, end func()) {
		before := a.l.count(rekor1) + a.l.count(rekor2)
		a.under(load, 0, func() {
			begin()
			time.Sleep(3 * time.Second) // a few integrations, once a second
			before = a.l.count(rekor1) + a.l.count(rekor2) - before
			end()
			a.grows("after "+name, rekor1, rekor2)
		})
		measured(t, "%s: %d entries in 3 s", name, before)
		a.check()
		a.resubmit()
	}
	for i, m := range moods {
		if long() || i == 1 || i == 5 {
			during(m.name, func() { now.Store(&m) }, func() { now.Store(nil) })
		}
	}
	for name, line := range map[string]*services.Line{"PostgreSQL": toPostgres, "MariaDB": toMaria} {
		if long() {
			during(name+" answers late", func() { line.Late(200 * time.Millisecond) }, func() { line.Late(0) })
			during(name+" does not answer", func() { line.Hold(true) }, func() { line.Hold(false) })
		}
		during("connections to "+name+" break before the answer", func() { line.CutAfter(40) }, line.Mend)
	}
	a.replay()
	for _, v := range site.servers {
		v.kill()
		v.start()
	}
	a.replay()
}
