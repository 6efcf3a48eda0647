package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type sample struct {
	Listen  string        `mapstructure:"listen"`
	KeyFile string        `mapstructure:"key-file"`
	Grace   time.Duration `mapstructure:"grace"`
	CT      struct {
		URL string `mapstructure:"url"`
	} `mapstructure:"ct"`
}

func (s *sample) Validate() error {
	var p Problems
	if s.KeyFile == "" {
		p.Addf("key-file is required")
	}
	if s.CT.URL == "" {
		p.Addf("ct.url is required")
	}
	return p.Err()
}

func TestEveryMistakeIsReportedAtOnce(t *testing.T) {
	path := write(t, "listen: 127.0.0.1:1\nkey-fil: x\ngrace: soon\n")
	err := Load(&sample{}, path, "SAMPLE")
	for _, want := range []string{"key-fil", "grace", "key-file is required", "ct.url is required"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not mention %q", err, want)
		}
	}
}

func TestTheEnvironmentWinsOverTheFileAndTheFileOverTheDefault(t *testing.T) {
	path := write(t, "key-file: from-file\nct:\n  url: http://from-file\n")
	t.Setenv("SAMPLE_CT_URL", "http://from-env")
	got := sample{Listen: "default", Grace: time.Second}
	if err := Load(&got, path, "SAMPLE"); err != nil {
		t.Fatal(err)
	}
	if got.Listen != "default" || got.KeyFile != "from-file" || got.CT.URL != "http://from-env" || got.Grace != time.Second {
		t.Errorf("got %+v", got)
	}
}

func write(t *testing.T, text string) string {
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAPartOfAnotherProgramsFileIsReadAlone(t *testing.T) {
	path := write(t, "key-file: from-file\nlisten: 127.0.0.1:1\nother: {key: [1, 2]}\n")
	var part struct {
		KeyFile string `mapstructure:"key-file"`
	}
	if err := LoadPart(&part, path, "SAMPLE"); err != nil || part.KeyFile != "from-file" {
		t.Errorf("%q, %v", part.KeyFile, err)
	}
	t.Setenv("SAMPLE_KEY_FILE", "from-env")
	if err := LoadPart(&part, path, "SAMPLE"); err != nil || part.KeyFile != "from-env" {
		t.Errorf("%q, %v", part.KeyFile, err)
	}
	if err := LoadPart(&part, path+".missing", "SAMPLE"); err == nil {
		t.Error("a file that is missing was read")
	}
}
