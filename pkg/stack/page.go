package stack

import (
	"bytes"
	"html/template"
	"net/http"
)

const landing = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>attestry</title><meta name="viewport" content="width=device-width">
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:48rem;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse}td{padding:.2rem 1rem .2rem 0;vertical-align:top}code{background:#8882;padding:.1rem .3rem}</style>
</head><body><h1>attestry</h1><p>A private Sigstore at <code>{{.URL}}</code>.</p>
<table>{{range .Roles}}<tr><td>{{.Name}}</td><td>{{range .Links}}<a href="{{.}}">{{.}}</a><br>{{end}}</td></tr>{{end}}</table>
</body></html>
`

type role struct {
	Name  string
	Links []string
}

// page returns the handler of "/" alone: an unknown path is 404, never a page, since TUF clients walk until a 404.
func page(url string, issuer bool) (http.Handler, error) {
	roles := []role{
		{"Certificate authority", []string{"/api/v2/trustBundle", "/api/v2/configuration"}},
		{"Rekor v2", []string{"/api/v2/checkpoint"}},
		{"Rekor v1", []string{"/api/v1/log", "/api/v1/log/publicKey"}},
		{"CT log", []string{"/ct/" + ctShard + "/ct/v1/get-sth", "/ct/" + ctShard + "/ct/v1/get-roots"}},
		{"Timestamp authority", []string{"/api/v1/timestamp/certchain"}},
		{"TUF repository", []string{"/tuf/root.json", "/tuf/timestamp.json", "/tuf/targets/trusted_root.json"}},
	}
	if issuer {
		roles = append(roles, role{"Development issuer", []string{"/oidc/.well-known/openid-configuration"}})
	}
	parsed, err := template.New("landing").Parse(landing)
	if err != nil {
		return nil, err
	}
	var body bytes.Buffer
	if err := parsed.Execute(&body, struct {
		URL   string
		Roles []role
	}{url, roles}); err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		w.Write(body.Bytes())
	}), nil
}
