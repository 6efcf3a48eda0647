package issuer

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"strings"

	"github.com/zitadel/oidc/v3/pkg/op"
)

//go:embed pages/*.html
var pageFiles embed.FS

func parsePages() (*template.Template, error) {
	t, err := template.ParseFS(pageFiles, "pages/*.html")
	if err != nil {
		return nil, fmt.Errorf("sign-in pages: %w", err)
	}
	return t, nil
}

// page is what the templates show.
type page struct {
	Issuer    string
	People    []string
	RequestID string // sign-in page
	UserCode  string // device page
	Code      string // out-of-band page
	Message   string
}

func (p *Provider) render(w http.ResponseWriter, r *http.Request, status int, name string, content page) {
	content.Issuer = p.issuer
	content.People = []string{"alice@example.com", "bob@example.com", "carol@example.com", "dave@example.org"}
	var body bytes.Buffer
	if err := p.pages.ExecuteTemplate(&body, name, content); err != nil {
		p.logger.ErrorContext(r.Context(), "sign-in page", "page", name, "err", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	// No script, no frame around us; forms may go to us, and from us back to the client.
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	w.WriteHeader(status)
	_, _ = body.WriteTo(w) // the reader went away; nothing to undo
}

// loginPage answers GET /login?id=, where /authorize sends the browser.
func (p *Provider) loginPage(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("id")
	if _, err := p.storage.AuthRequestByID(r.Context(), id); err != nil {
		p.render(w, r, http.StatusBadRequest, "message.html", page{Message: err.Error()})
		return
	}
	p.render(w, r, http.StatusOK, "login.html", page{RequestID: id})
}

// login answers POST /login with the form values id and email: it sends the browser back to the
// client with a code, or shows the code when the client asked for that.
func (p *Provider) login(w http.ResponseWriter, r *http.Request) {
	email, err := formEmail(r)
	if err != nil {
		p.render(w, r, http.StatusBadRequest, "message.html", page{Message: err.Error()})
		return
	}
	request, err := p.storage.signIn(r.PostFormValue("id"), email)
	if err != nil {
		p.render(w, r, http.StatusBadRequest, "message.html", page{Message: err.Error()})
		return
	}
	p.logger.InfoContext(r.Context(), "signed in", "email", email, "flow", "code")
	if request.RedirectURI == outOfBand {
		code, err := op.CreateAuthRequestCode(r.Context(), request, p.storage, p.op.Crypto())
		if err != nil {
			p.logger.ErrorContext(r.Context(), "authorization code", "err", err)
			http.Error(w, "internal error", http.StatusInternalServerError)
			return
		}
		p.render(w, r, http.StatusOK, "code.html", page{Code: code})
		return
	}
	op.AuthResponse(request, p.op, w, r)
}

// devicePage answers GET /device?user_code=, the address that a device shows to its user.
func (p *Provider) devicePage(w http.ResponseWriter, r *http.Request) {
	p.render(w, r, http.StatusOK, "device.html", page{UserCode: r.URL.Query().Get("user_code")})
}

// device answers POST /device with the form values user_code and email, or deny.
func (p *Provider) device(w http.ResponseWriter, r *http.Request) {
	email, done := "", "The device was refused."
	if r.PostFormValue("deny") == "" {
		var err error
		if email, err = formEmail(r); err != nil {
			p.render(w, r, http.StatusBadRequest, "message.html", page{Message: err.Error()})
			return
		}
		done = "The device is signed in as " + email + ". You may close this page."
	}
	userCode := strings.ToUpper(strings.TrimSpace(r.PostFormValue("user_code")))
	if err := p.storage.approve(userCode, email); err != nil {
		p.render(w, r, http.StatusBadRequest, "message.html", page{Message: err.Error()})
		return
	}
	p.logger.InfoContext(r.Context(), "signed in", "email", email, "flow", "device")
	p.render(w, r, http.StatusOK, "message.html", page{Message: done})
}

// formEmail returns the person of a sign-in form: the text field's other, else a button's email.
// In this order because Enter in the text field also sends the first button.
func formEmail(r *http.Request) (string, error) {
	email := strings.TrimSpace(r.PostFormValue("other"))
	if email == "" {
		email = r.PostFormValue("email")
	}
	return email, checkEmail(email)
}
