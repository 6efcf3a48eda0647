package identity

import (
	"reflect"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

// TestFieldsThatDoNotConcernFetching holds every field of an issuer against the list of those
// that may change without its keys being fetched anew: a field that is new is not among them.
func TestFieldsThatDoNotConcernFetching(t *testing.T) {
	unconcerned := map[string]bool{}
	for _, name := range []string{
		"Audience", "Audiences", "Type", "CIProvider", "IssuerClaim", "SubjectDomain", "SPIFFETrustDomain", "ChallengeClaim", "SkipEmailVerification",
		"SANTemplate", "ClockLeeway", "Rules", "RulesDefault", "RateLimit", "Description", "Contact", "Environment",
	} {
		unconcerned[name] = true
	}
	values := map[reflect.Type]any{
		reflect.TypeFor[string](): "x", reflect.TypeFor[bool](): true, reflect.TypeFor[Type](): Email, reflect.TypeFor[[]string](): []string{"x"},
		reflect.TypeFor[*RateLimit](): &RateLimit{1, 1}, reflect.TypeFor[oidc.KeySet](): &oidc.StaticKeySet{}, reflect.TypeFor[*time.Duration](): new(time.Duration),
	}
	of := reflect.TypeFor[Issuer]()
	for k := range of.NumField() {
		f := of.Field(k)
		if !f.IsExported() {
			continue
		}
		value := reflect.Zero(f.Type)
		if known, ok := values[f.Type]; ok {
			value = reflect.ValueOf(known)
		} else if f.Type.Kind() == reflect.Slice {
			value = reflect.MakeSlice(f.Type, 1, 1)
		}
		var changed Issuer
		reflect.ValueOf(&changed).Elem().Field(k).Set(value)
		if reflect.ValueOf(changed).Field(k).IsZero() {
			t.Errorf("%s: this test has no value of type %s", f.Name, f.Type)
		}
		if got := sameFetching(Issuer{}, changed); got != unconcerned[f.Name] {
			t.Errorf("another %s leaves the keys in place: %t, want %t", f.Name, got, unconcerned[f.Name])
		}
	}
}
