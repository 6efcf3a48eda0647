// Package config loads a server's configuration: defaults in a struct, one YAML file over
// them, environment variables over both. A typo must not start a server, so every problem
// (unknown key, wrong type, failed validation) is reported at once.
package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/viper"
)

// Validator is implemented by a configuration struct that checks itself after loading.
type Validator interface {
	// Validate returns every problem at once, see Problems.
	Validate() error
}

// Load overlays the YAML file at path ("" for none) and PREFIX_ environment variables on dst,
// a pointer to a struct that holds the defaults. Fields are named by kebab-case mapstructure
// tags; the variable of `ct-url` under prefix CA is CA_CT_URL. Problems of the file, of the
// types and of dst's Validate come back joined in one error.
func Load(dst any, path, prefix string) error {
	return load(dst, path, prefix, (*viper.Viper).UnmarshalExact)
}

// LoadPart is Load for a program that looks at some keys of another's file: those that dst does not have are none of its business.
func LoadPart(dst any, path, prefix string) error {
	return load(dst, path, prefix, (*viper.Viper).Unmarshal)
}

func load(dst any, path, prefix string, unmarshal func(*viper.Viper, any, ...viper.DecoderConfigOption) error) error {
	v := viper.New()
	v.SetEnvPrefix(prefix)
	v.SetEnvKeyReplacer(strings.NewReplacer(".", "_", "-", "_"))
	for _, key := range keys(reflect.TypeOf(dst).Elem(), "") {
		// Unmarshal sees a variable only if its key is bound by name.
		if err := v.BindEnv(key); err != nil {
			return fmt.Errorf("binding %s: %w", key, err)
		}
	}
	if path != "" {
		v.SetConfigFile(path)
		v.SetConfigType("yaml")
		if err := v.ReadInConfig(); err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
	}
	var problems []error
	if err := unmarshal(v, dst, viper.DecodeHook(mapstructure.ComposeDecodeHookFunc(
		mapstructure.StringToTimeDurationHookFunc(),
		mapstructure.StringToSliceHookFunc(","),
		mapstructure.TextUnmarshallerHookFunc(),
	))); err != nil {
		problems = append(problems, unjoin(err)...)
	}
	if checked, ok := dst.(Validator); ok {
		if err := checked.Validate(); err != nil {
			problems = append(problems, unjoin(err)...)
		}
	}
	return errors.Join(problems...)
}

// keys lists the dotted names of t's leaf fields.
func keys(t reflect.Type, prefix string) []string {
	var names []string
	for i := range t.NumField() {
		field := t.Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("mapstructure"), ",")
		if name == "" || name == "-" {
			continue
		}
		if field.Type.Kind() == reflect.Struct {
			names = append(names, keys(field.Type, prefix+name+".")...)
			continue
		}
		names = append(names, prefix+name)
	}
	return names
}

// unjoin lists the errors inside err, so that each stands on its own line.
func unjoin(err error) []error {
	var many interface{ Unwrap() []error }
	if errors.As(err, &many) {
		return many.Unwrap()
	}
	return []error{err}
}

// Problems collects what Validate finds.
type Problems struct{ errs []error }

// Addf adds one problem.
func (p *Problems) Addf(format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf(format, args...))
}

// Err returns all problems as one error, nil when there are none.
func (p *Problems) Err() error { return errors.Join(p.errs...) }
