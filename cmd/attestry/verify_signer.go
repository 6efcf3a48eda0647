package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/verify"
)

const (
	maxIdentities      = 256
	maxIdentitiesBytes = 1 << 20
)

// signerFlags say who must have signed.
type signerFlags struct {
	identities, extensions               []string
	identityRegexp, issuer, issuerRegexp string
	identitiesFile                       string
	key, keyFrom, keyUntil               string
}

func (f *signerFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.identities, "certificate-identity", nil, "who must have signed: email, URI or name in the certificate; repeated, any of them")
	flags.StringVar(&f.identityRegexp, "certificate-identity-regexp", "", "the same as a regular expression")
	flags.StringVar(&f.issuer, "certificate-oidc-issuer", "", "OpenID issuer that must vouch for the identity")
	flags.StringVar(&f.issuerRegexp, "certificate-oidc-issuer-regexp", "", "the same as a regular expression")
	flags.StringArrayVar(&f.extensions, "certificate-extension", nil, "NAME=VALUE that the certificate must carry too, such as sourceRepositoryURI=https://…; repeated, all of them")
	flags.StringVar(&f.identitiesFile, "identities", "", "JSON file with a list of identities, any of which may have signed")
	flags.StringVar(&f.key, "key", "", "public key (PEM) that must have signed, in place of an identity")
	flags.StringVar(&f.keyFrom, "key-from", "", "RFC 3339 time before which --key had not signed; the bundle has to prove a time")
	flags.StringVar(&f.keyUntil, "key-until", "", "RFC 3339 time after which --key has not signed; the bundle has to prove a time")
}

// policy reads the flags. A policy that names nobody is an error.
func (f *signerFlags) policy() (*verify.Policy, error) {
	p := &verify.Policy{}
	single := len(f.identities) > 0 || f.identityRegexp+f.issuer+f.issuerRegexp != ""
	switch {
	case f.key == "" && f.keyFrom+f.keyUntil != "":
		return nil, errors.New("--key-from and --key-until need --key")
	case f.key != "" && (single || f.identitiesFile != "" || len(f.extensions) > 0):
		return nil, errors.New("give --key or an identity, not both")
	case f.key != "":
		return p, f.readKey(p)
	case f.identitiesFile != "" && (single || len(f.extensions) > 0):
		return nil, errors.New("give --identities or --certificate-…, not both")
	case f.identitiesFile != "":
		data, err := limit.ReadFile(f.identitiesFile, maxIdentitiesBytes)
		if err != nil {
			return nil, fmt.Errorf("--identities: %w", err)
		}
		if p.Identities, err = parseIdentities(data); err != nil {
			return nil, fmt.Errorf("--identities %s: %w", f.identitiesFile, err)
		}
		return p, nil
	case !single:
		return nil, errors.New("say who must have signed: --certificate-identity and --certificate-oidc-issuer, or --identities, or --key")
	}
	extensions, err := parseExtensions(f.extensions)
	if err != nil {
		return nil, err
	}
	subjects := f.identities
	if len(subjects) == 0 {
		subjects = []string{""}
	}
	for _, subject := range subjects {
		id, err := verify.NewIdentity(f.issuer, f.issuerRegexp, subject, f.identityRegexp)
		if err != nil {
			return nil, err
		}
		id.Extensions = extensions
		p.Identities = append(p.Identities, id)
	}
	return p, nil
}

func (f *signerFlags) readKey(p *verify.Policy) error {
	pem, err := limit.ReadFile(f.key, 1<<20)
	if err != nil {
		return fmt.Errorf("--key: %w", err)
	}
	if p.Key, err = verify.ParseKey(pem); err != nil {
		return fmt.Errorf("--key: %w", err)
	}
	for _, bound := range []struct {
		flag, text string
		into       *time.Time
	}{{"key-from", f.keyFrom, &p.KeyWindow.Start}, {"key-until", f.keyUntil, &p.KeyWindow.End}} {
		if bound.text == "" {
			continue
		}
		if *bound.into, err = time.Parse(time.RFC3339, bound.text); err != nil {
			return fmt.Errorf("--%s: %w", bound.flag, err)
		}
	}
	if w := p.KeyWindow; !w.End.IsZero() && w.End.Before(w.Start) {
		return errors.New("--key-until is before --key-from")
	}
	return nil
}

// parseIdentities reads a list of identities as policies write them:
//
//	[{"issuer": "…", "subject": "…"}, {"issuerRegExp": "…", "subjectRegExp": "…", "extensions": {"buildTrigger": "push"}}]
func parseIdentities(data []byte) ([]verify.Identity, error) {
	var list []map[string]json.RawMessage // not a struct: encoding/json would take Issuer for issuer
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	if err := verify.UniqueKeys(data, nil); err != nil {
		return nil, err
	}
	if len(list) == 0 || len(list) > maxIdentities {
		return nil, fmt.Errorf("%d identities, 1 to %d are allowed", len(list), maxIdentities)
	}
	ids := make([]verify.Identity, len(list))
	for i, members := range list {
		var err error
		if ids[i], err = parseIdentity(members); err != nil {
			return nil, fmt.Errorf("identity %d: %w", i, err)
		}
	}
	return ids, nil
}

func parseIdentity(members map[string]json.RawMessage) (id verify.Identity, err error) {
	var issuer, issuerRegexp, subject, subjectRegexp string
	var extensions map[string]string
	known := map[string]any{
		"issuer": &issuer, "issuerRegExp": &issuerRegexp, "subject": &subject, "subjectRegExp": &subjectRegexp, "extensions": &extensions,
	}
	for name, value := range members {
		into, ok := known[name]
		if !ok {
			return id, fmt.Errorf("member %q is not known", name)
		}
		if err := json.Unmarshal(value, into); err != nil {
			return id, fmt.Errorf("%s: %w", name, err)
		}
	}
	if id, err = verify.NewIdentity(issuer, issuerRegexp, subject, subjectRegexp); err != nil {
		return id, err
	}
	id.Extensions, err = extensionsOf(extensions)
	return id, err
}

func parseExtensions(pairs []string) (certificate.Extensions, error) {
	values := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		name, value, ok := strings.Cut(pair, "=")
		if _, twice := values[name]; !ok || twice {
			return certificate.Extensions{}, fmt.Errorf("--certificate-extension %q is not NAME=VALUE, or the name comes twice", pair)
		}
		values[name] = value
	}
	extensions, err := extensionsOf(values)
	if err != nil {
		return extensions, fmt.Errorf("--certificate-extension: %w", err)
	}
	return extensions, nil
}

// extensionsOf takes values by the names that Fulcio's extensions have in a verification result. An empty value is an
// error: it would demand nothing.
func extensionsOf(values map[string]string) (certificate.Extensions, error) {
	var e certificate.Extensions
	fields := reflect.ValueOf(&e).Elem()
	var names []string
	for _, field := range reflect.VisibleFields(fields.Type()) {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "issuer" { // the identity has it
			continue
		}
		names = append(names, name)
		if value, ok := values[name]; ok {
			if value == "" {
				return e, fmt.Errorf("extension %s without a value", name)
			}
			fields.FieldByIndex(field.Index).SetString(value)
		}
	}
	for name := range values {
		if !slices.Contains(names, name) {
			return e, fmt.Errorf("there is no extension %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	return e, nil
}
