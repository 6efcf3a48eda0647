package issuer

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

var (
	errUnknownRequest = errors.New("the sign-in request is unknown or has expired, start again")
	errNoSecret       = errors.New("client " + ClientID + " is public and has no secret")
	errUnsupported    = errors.New("not supported by the development issuer")

	_ op.Storage                        = (*storage)(nil)
	_ op.DeviceAuthorizationStorage     = (*storage)(nil)
	_ op.CanSetUserinfoFromRequest      = (*storage)(nil)
	_ op.CanGetPrivateClaimsFromRequest = (*storage)(nil)
)

// storage keeps sign-ins that are under way, in memory. It is safe for concurrent use and hands
// out copies.
type storage struct {
	client client
	key    tokenKey
	now    func() time.Time

	mu       sync.Mutex // guards what follows
	requests map[string]authRequest
	codes    map[string]string      // authorization code to request ID
	devices  map[string]deviceEntry // by device code
}

// authRequest is op.AuthRequest.
type authRequest struct {
	id       string
	expires  time.Time
	code     string
	email    string // empty until someone signed in
	authTime time.Time
	oidc.AuthRequest
}

func (r authRequest) GetID() string                      { return r.id }
func (r authRequest) GetACR() string                     { return "" }
func (r authRequest) GetAMR() []string                   { return nil }
func (r authRequest) GetAudience() []string              { return []string{r.ClientID} }
func (r authRequest) GetAuthTime() time.Time             { return r.authTime }
func (r authRequest) GetClientID() string                { return r.ClientID }
func (r authRequest) GetNonce() string                   { return r.Nonce }
func (r authRequest) GetScopes() []string                { return r.Scopes }
func (r authRequest) GetSubject() string                 { return r.email }
func (r authRequest) GetRedirectURI() string             { return r.RedirectURI }
func (r authRequest) GetState() string                   { return r.State }
func (r authRequest) Done() bool                         { return r.email != "" }
func (r authRequest) GetResponseType() oidc.ResponseType { return r.ResponseType }
func (r authRequest) GetResponseMode() oidc.ResponseMode { return r.ResponseMode }
func (r authRequest) GetCodeChallenge() *oidc.CodeChallenge {
	return &oidc.CodeChallenge{Challenge: r.CodeChallenge, Method: r.CodeChallengeMethod}
}

type deviceEntry struct {
	userCode string
	op.DeviceAuthorizationState
}

func newStorage(c client, key tokenKey, now func() time.Time) *storage {
	return &storage{
		client: c, key: key, now: now,
		requests: map[string]authRequest{},
		codes:    map[string]string{},
		devices:  map[string]deviceEntry{},
	}
}

// CreateAuthRequest keeps a validated request until it is signed, exchanged or too old.
func (s *storage) CreateAuthRequest(_ context.Context, r *oidc.AuthRequest, _ string) (op.AuthRequest, error) {
	if len(r.Prompt) == 1 && r.Prompt[0] == oidc.PromptNone {
		return nil, oidc.ErrLoginRequired()
	}
	if r.CodeChallenge == "" || r.CodeChallengeMethod != oidc.CodeChallengeMethodS256 {
		return nil, oidc.ErrInvalidRequest().WithDescription("PKCE is required: send code_challenge with code_challenge_method=S256")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	if len(s.requests) >= maxPending {
		oldest := ""
		for id, have := range s.requests {
			if oldest == "" || have.expires.Before(s.requests[oldest].expires) {
				oldest = id
			}
		}
		s.forget(oldest)
	}
	kept := authRequest{id: rand.Text(), expires: s.now().Add(requestLifetime), AuthRequest: *r}
	s.requests[kept.id] = kept
	return kept, nil
}

// expire drops what is too old; s.mu is held.
func (s *storage) expire() {
	now := s.now()
	for id, r := range s.requests {
		if now.After(r.expires) {
			s.forget(id)
		}
	}
	for code, d := range s.devices {
		if now.After(d.Expires) {
			delete(s.devices, code)
		}
	}
}

// forget drops a request and its code; s.mu is held.
func (s *storage) forget(id string) {
	delete(s.codes, s.requests[id].code)
	delete(s.requests, id)
}

// find returns a live request; s.mu is held.
func (s *storage) find(id string) (authRequest, error) {
	r, ok := s.requests[id]
	if !ok || s.now().After(r.expires) {
		return authRequest{}, errUnknownRequest
	}
	return r, nil
}

func (s *storage) AuthRequestByID(_ context.Context, id string) (op.AuthRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.find(id)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// AuthRequestByCode spends the code: a second exchange, or one after a wrong verifier, fails.
func (s *storage) AuthRequestByCode(_ context.Context, code string) (op.AuthRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.find(s.codes[code])
	delete(s.codes, code)
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (s *storage) SaveAuthCode(_ context.Context, id, code string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.find(id)
	if err != nil {
		return err
	}
	delete(s.codes, r.code)
	r.code = code
	s.requests[id], s.codes[code] = r, id
	return nil
}

func (s *storage) DeleteAuthRequest(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(id)
	return nil
}

// signIn marks a request as email's and returns it. It can be done once.
func (s *storage) signIn(id, email string) (authRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.find(id)
	if err != nil || r.Done() {
		return authRequest{}, errUnknownRequest
	}
	r.email, r.authTime = email, s.now()
	s.requests[id] = r
	return r, nil
}

func (s *storage) StoreDeviceAuthorization(_ context.Context, clientID, deviceCode, userCode string, expires time.Time, scopes []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	oldest := ""
	for code, have := range s.devices {
		if have.userCode == userCode {
			return op.ErrDuplicateUserCode
		}
		if oldest == "" || have.Expires.Before(s.devices[oldest].Expires) {
			oldest = code
		}
	}
	if len(s.devices) >= maxPending {
		delete(s.devices, oldest)
	}
	s.devices[deviceCode] = deviceEntry{userCode, op.DeviceAuthorizationState{
		ClientID: clientID, Scopes: scopes, Expires: expires,
	}}
	return nil
}

// GetDeviceAuthorizatonState answers the device's poll. An approved code is spent by it.
func (s *storage) GetDeviceAuthorizatonState(_ context.Context, clientID, deviceCode string) (*op.DeviceAuthorizationState, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.devices[deviceCode]
	if !ok || d.ClientID != clientID {
		return nil, errors.New("the device code is unknown, expired or used")
	}
	if d.Done || d.Denied {
		delete(s.devices, deviceCode)
	}
	return &d.DeviceAuthorizationState, nil
}

// pending tells whether the device code is good and its user has not answered yet.
func (s *storage) pending(deviceCode string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.devices[deviceCode]
	return ok && !d.Done && !d.Denied && s.now().Before(d.Expires)
}

// approve completes the device flow of userCode as email, or denies it when email is empty.
func (s *storage) approve(userCode, email string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for code, d := range s.devices {
		if d.userCode != userCode || s.now().After(d.Expires) || d.Done || d.Denied {
			continue
		}
		d.Done, d.Denied = email != "", email == ""
		d.Subject, d.AuthTime = email, s.now()
		s.devices[code] = d
		return nil
	}
	return errUnknownRequest
}

func (s *storage) GetClientByClientID(_ context.Context, clientID string) (op.Client, error) {
	if clientID != ClientID {
		return nil, oidc.ErrInvalidClient().WithDescription("the only client is " + ClientID)
	}
	return s.client, nil
}

// AuthorizeClientIDSecret always fails: golang.org/x/oauth2 then asks again without a secret.
func (s *storage) AuthorizeClientIDSecret(context.Context, string, string) error { return errNoSecret }

func (s *storage) CreateAccessToken(context.Context, op.TokenRequest) (string, time.Time, error) {
	return rand.Text(), time.Now().Add(tokenLifetime), nil
}

// SetUserinfoFromRequest puts the person into the ID token, whatever scopes were asked for.
func (s *storage) SetUserinfoFromRequest(_ context.Context, u *oidc.UserInfo, r op.IDTokenRequest, _ []string) error {
	setUserinfo(u, r.GetSubject())
	return nil
}

// GetPrivateClaimsFromRequest puts the same into the access token, see client.AccessTokenType.
func (s *storage) GetPrivateClaimsFromRequest(_ context.Context, r op.TokenRequest, _ []string) (map[string]any, error) {
	return identityClaims(r.GetSubject()), nil
}

func (s *storage) SetUserinfoFromToken(_ context.Context, u *oidc.UserInfo, _, subject, _ string) error {
	setUserinfo(u, subject)
	return nil
}

func setUserinfo(u *oidc.UserInfo, email string) {
	u.Subject = email
	u.Name = displayName(email)
	u.Email = email
	u.EmailVerified = true
}

func (s *storage) SigningKey(context.Context) (op.SigningKey, error) { return s.key, nil }
func (s *storage) KeySet(context.Context) ([]op.Key, error)          { return []op.Key{publicKey{s.key}}, nil }
func (s *storage) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{s.key.algorithm}, nil
}
func (s *storage) Health(context.Context) error { return nil }

// What follows belongs to flows that no route of ours reaches.

func (s *storage) CreateAccessAndRefreshTokens(context.Context, op.TokenRequest, string) (string, string, time.Time, error) {
	return "", "", time.Time{}, errUnsupported
}
func (s *storage) TokenRequestByRefreshToken(context.Context, string) (op.RefreshTokenRequest, error) {
	return nil, errUnsupported
}
func (s *storage) TerminateSession(context.Context, string, string) error { return errUnsupported }
func (s *storage) RevokeToken(context.Context, string, string, string) *oidc.Error {
	return oidc.ErrUnauthorizedClient().WithParent(errUnsupported)
}
func (s *storage) GetRefreshTokenInfo(context.Context, string, string) (string, string, error) {
	return "", "", op.ErrInvalidRefreshToken
}
func (s *storage) SetUserinfoFromScopes(context.Context, *oidc.UserInfo, string, string, []string) error {
	return nil
}
func (s *storage) SetIntrospectionFromToken(context.Context, *oidc.IntrospectionResponse, string, string, string) error {
	return errUnsupported
}
func (s *storage) GetPrivateClaimsFromScopes(context.Context, string, string, []string) (map[string]any, error) {
	return nil, errUnsupported
}
func (s *storage) GetKeyByIDAndClientID(context.Context, string, string) (*jose.JSONWebKey, error) {
	return nil, errUnsupported
}
func (s *storage) ValidateJWTProfileScopes(context.Context, string, []string) ([]string, error) {
	return nil, errUnsupported
}
