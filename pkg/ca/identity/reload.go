package identity

import (
	"reflect"
	"slices"
	"strings"
	"time"
)

// inherit takes over what old has fetched from issuers that are fetched from as before, with the
// fetches under way. Else each change of the configuration would ask all issuers at once, and one
// that is down would be lost though its last good keys were there.
func (v *Verifier) inherit(old *Verifier) {
	for url, t := range v.exact {
		before := old.exact[url]
		if before == nil || !sameFetching(t.issuer, before.issuer) {
			continue
		}
		now, fetches := t.keys.(*remoteKeys)
		if had, ok := before.keys.(*remoteKeys); ok && fetches && sameSource(now.source, had.source) {
			t.keys = had
		}
	}
	old.mu.Lock()
	defer old.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	for iss, known := range old.remote {
		before, now := old.find(iss), v.find(iss)
		if before != nil && now != nil && now.issuer.Wildcard && sameFetching(now.issuer, before.issuer) {
			v.remote[iss] = &metaKeys{keys: known.keys, used: known.used}
		}
	}
}

// sameFetching reports whether keys that were fetched for b serve a. What is not known to have
// nothing to do with fetching counts.
func sameFetching(a, b Issuer) bool {
	for _, i := range []*Issuer{&a, &b} {
		i.Audience, i.Type, i.CIProvider, i.IssuerClaim, i.SubjectDomain, i.SPIFFETrustDomain = "", "", "", "", "", ""
		i.ChallengeClaim, i.SkipEmailVerification, i.SANTemplate, i.Audiences, i.ClockLeeway, i.RateLimit = "", false, "", nil, nil, nil
		i.Rules, i.RulesDefault = nil, ""
		i.Description, i.Contact, i.Environment, i.line = "", "", "", 0
	}
	return reflect.DeepEqual(a, b)
}

// sameSource compares what a source has from elsewhere than its issuer's configuration: the pod's credentials.
func sameSource(a, b *source) bool {
	return a.tokenFile == b.tokenFile && slices.Equal(a.caFiles, b.caFiles)
}

// Entry returns the configured issuer that tokens of oidcIssuer belong to, nil when there is none. It
// must not be changed.
func (v *Verifier) Entry(oidcIssuer string) *Issuer {
	if t := v.find(oidcIssuer); t != nil {
		return &t.issuer
	}
	return nil
}

// KeyStatus is how the keys of one configured issuer are, or those of all issuers of a pattern together.
type KeyStatus struct {
	Issuer  string    // URL or pattern
	Fetched time.Time // when the keys in use were fetched, the oldest of them; zero when there are none yet
	Asked   bool      // there was a fetch that has ended
	Err     error     // of the last fetch, nil when it was good
}

// KeyStatus lists the issuers whose keys are fetched, sorted by URL.
func (v *Verifier) KeyStatus() []KeyStatus {
	byURL := map[string]*KeyStatus{}
	for url, t := range v.exact {
		if remote, ok := t.keys.(*remoteKeys); ok {
			byURL[url] = &KeyStatus{Issuer: url}
			remote.addTo(byURL[url])
		}
	}
	for _, t := range v.meta {
		byURL[t.issuer.URL] = &KeyStatus{Issuer: t.issuer.URL}
	}
	v.mu.Lock()
	for iss, known := range v.remote {
		if t := v.find(iss); t != nil && byURL[t.issuer.URL] != nil {
			known.keys.addTo(byURL[t.issuer.URL])
		}
	}
	v.mu.Unlock()
	var out []KeyStatus
	for _, s := range byURL {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b KeyStatus) int { return strings.Compare(a.Issuer, b.Issuer) })
	return out
}

// addTo makes s tell of r too: the oldest keys and an error, if there is one, are what stays.
func (r *remoteKeys) addTo(s *KeyStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		s.Err = r.err
	}
	s.Asked = s.Asked || r.last != nil || r.err != nil
	if r.last != nil && (s.Fetched.IsZero() || r.fetchedAt.Before(s.Fetched)) {
		s.Fetched = r.fetchedAt
	}
}
