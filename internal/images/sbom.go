package images

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"
)

// The part of SPDX 2.3 (spdx.github.io/spdx-spec/v2.3) that an SBOM of a Go binary needs: packages, and which contains which. The
// library for it would be one more dependency for five structs.
type (
	spdxDocument struct {
		Version       string             `json:"spdxVersion"`
		License       string             `json:"dataLicense"`
		ID            string             `json:"SPDXID"`
		Name          string             `json:"name"`
		Namespace     string             `json:"documentNamespace"`
		Creation      spdxCreation       `json:"creationInfo"`
		Packages      []spdxPackage      `json:"packages"`
		Relationships []spdxRelationship `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		Name      string         `json:"name"`
		ID        string         `json:"SPDXID"`
		Version   string         `json:"versionInfo,omitempty"`
		Download  string         `json:"downloadLocation"`
		Analyzed  bool           `json:"filesAnalyzed"`
		License   string         `json:"licenseDeclared"`
		Comment   string         `json:"comment,omitempty"`
		Checksums []spdxChecksum `json:"checksums,omitempty"`
		Refs      []spdxRef      `json:"externalRefs,omitempty"`
	}
	spdxChecksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	spdxRef struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxRelationship struct {
		Element string `json:"spdxElementId"`
		Type    string `json:"relationshipType"`
		Related string `json:"relatedSpdxElement"`
	}
)

// sbom lists what is in a binary, by its own build information: Go itself and every module that is linked, with the hash that
// go.sum has; and the files of the machine beside it.
func sbom(program, platform string, info *buildinfo.BuildInfo, files []extra, at time.Time) ([]byte, error) {
	none := "NOASSERTION"
	main := spdxPackage{Name: program, ID: "SPDXRef-program", Version: info.Main.Version, Download: none, License: "Apache-2.0",
		Refs: []spdxRef{purl(info.Main.Path, info.Main.Version)}}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" || s.Key == "vcs.modified" {
			main.Comment += s.Key + " " + s.Value + " "
		}
	}
	main.Comment = strings.TrimSpace(main.Comment)
	toolchain := spdxPackage{Name: "stdlib", ID: "SPDXRef-go", Version: info.GoVersion, Download: none, License: "BSD-3-Clause",
		Refs: []spdxRef{purl("stdlib", strings.TrimPrefix(info.GoVersion, "go"))}}
	d := spdxDocument{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: program + " for " + platform,
		Creation: spdxCreation{at.UTC().Format(time.RFC3339), []string{"Tool: scripts-images"}}, Packages: []spdxPackage{main, toolchain},
		Relationships: []spdxRelationship{
			{"SPDXRef-DOCUMENT", "DESCRIBES", main.ID}, {main.ID, "CONTAINS", toolchain.ID},
		},
	}
	add := func(p spdxPackage) {
		d.Packages = append(d.Packages, p)
		d.Relationships = append(d.Relationships, spdxRelationship{main.ID, "CONTAINS", p.ID})
	}
	for i, m := range info.Deps {
		for m.Replace != nil {
			m = m.Replace
		}
		add(module(i, m))
	}
	for i, f := range files {
		data, err := os.ReadFile(f.from)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(data)
		add(spdxPackage{Name: filepath.Base(f.at), ID: fmt.Sprintf("SPDXRef-file-%d", i), Download: none, License: none,
			Comment: f.at, Checksums: []spdxChecksum{{"SHA256", hex.EncodeToString(sum[:])}}})
	}
	// A namespace names one document, so it is made of what is in it.
	text, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	d.Namespace = fmt.Sprintf("urn:attestry:sbom:%s:%x", program, sha256.Sum256(text))
	return json.MarshalIndent(d, "", " ")
}

func module(i int, m *debug.Module) spdxPackage {
	return spdxPackage{Name: m.Path, ID: fmt.Sprintf("SPDXRef-module-%d", i), Version: m.Version, Download: "NOASSERTION", License: "NOASSERTION",
		Comment: m.Sum, Refs: []spdxRef{purl(m.Path, m.Version)}}
}

// purl is a package URL of type golang.
func purl(path, version string) spdxRef {
	return spdxRef{"PACKAGE-MANAGER", "purl", "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")}
}
