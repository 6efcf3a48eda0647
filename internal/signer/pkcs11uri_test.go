package signer

import (
	"reflect"
	"strings"
	"testing"
)

func TestPKCS11URIs(t *testing.T) {
	slot := 7
	const module = "module-path=/usr/lib/p11.so"
	for _, tt := range []struct {
		uri  string
		want *pkcs11URI
		err  string // "" when it is accepted
	}{
		{"pkcs11:token=ca;object=issuing?" + module, &pkcs11URI{token: "ca", object: "issuing", module: "/usr/lib/p11.so"}, ""},
		{"pkcs11:token=The%20CA;id=%01%ff;type=private?" + module + "&pin-source=file:/run/pin", &pkcs11URI{token: "The CA", id: []byte{1, 255}, module: "/usr/lib/p11.so", pinFile: "/run/pin"}, ""},
		{"pkcs11:slot-id=7;object=k?pin-source=/run/pin&" + module, &pkcs11URI{slot: &slot, object: "k", module: "/usr/lib/p11.so", pinFile: "/run/pin"}, ""},
		{"pkcs11:serial=42;object=k?" + module + "&pin-source=file:///run/pin", &pkcs11URI{serial: "42", object: "k", module: "/usr/lib/p11.so", pinFile: "/run/pin"}, ""},
		{"pkcs11:token=ca;object=k", nil, "module-path is required"},
		{"pkcs11:object=k?" + module, nil, "exactly one of token"},
		{"pkcs11:token=a;slot-id=1;object=k?" + module, nil, "exactly one of token"},
		{"pkcs11:token=a?" + module, nil, "object or id is required"},
		{"pkcs11:token=a;token=b;object=k?" + module, nil, "token is there twice"},
		{"pkcs11:token=a;object=k;manufacturer=x?" + module, nil, `"manufacturer" is not one of`},
		{"pkcs11:token=a;object=k?" + module + "&module-name=x", nil, `"module-name" is not one of`},
		{"pkcs11:token=a;object=k;type=public?" + module, nil, "is not private"},
		{"pkcs11:token=a;object=%zz?" + module, nil, "object: "},
		{"pkcs11:token=a;object=?" + module, nil, "no value"},
		{"pkcs11:token=a;object?" + module, nil, "not name=value"},
		{"pkcs11:token=a%00b;object=k?" + module, nil, "no value that can be used"},
		{"pkcs11:slot-id=-1;object=k?" + module, nil, "not a number"},
		{"pkcs11:token=a;object=k?module-path=p11.so", nil, "not an absolute path"},
		{"pkcs11:token=a;object=k?" + module + "&pin-source=|cat", nil, "not an absolute path"},
		{"pkcs11:token=a;object=k?" + module + "&pin-value=1234", nil, "pin-source"},
		{"pkcs12:token=a", nil, "does not begin"},
		{"pkcs11:token=" + strings.Repeat("a", maxPKCS11URI), nil, "over 4096 bytes"},
	} {
		got, err := parsePKCS11(tt.uri)
		if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%.80s: %v, want %q", tt.uri, err, tt.err)
		}
		if tt.err == "" && !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", tt.uri, got, tt.want)
		}
	}
}

func FuzzPKCS11URI(f *testing.F) {
	f.Add("pkcs11:token=The%20CA;id=%01%ff;type=private?module-path=/m&pin-source=file:/run/pin")
	f.Add("pkcs11:slot-id=7;object=k?module-path=/m&pin-value=secretpin")
	f.Fuzz(func(t *testing.T, uri string) {
		u, err := parsePKCS11(uri)
		if err != nil {
			if strings.Contains(uri, "pin-value=secretpin") && strings.Contains(err.Error(), "secretpin") {
				t.Errorf("the PIN stands in %q", err)
			}
			return
		}
		if u.module == "" || u.object == "" && len(u.id) == 0 || u.token == "" && u.serial == "" && u.slot == nil {
			t.Errorf("%q names no key: %+v", uri, u)
		}
	})
}
