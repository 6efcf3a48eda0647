// Command images makes the container images of this repository; scripts/images runs it.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/attestry/attestry/internal/images"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(2)
		}
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

type options struct {
	out, tag, programs, platforms string
	pkcs11, load, airgap          bool
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("images", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.out, "out", "dist", "directory for the images")
	flags.StringVar(&o.tag, "tag", "", "tag of the images (default dev, with -airgap the chart's appVersion)")
	flags.StringVar(&o.programs, "programs", "", "names below cmd, with commas between (default all)")
	flags.StringVar(&o.platforms, "platforms", "linux/amd64,linux/arm64", "platforms, with commas between; the first alone with -load")
	flags.BoolVar(&o.pkcs11, "pkcs11", false, "also ca-pkcs11, tlog-pkcs11 and tsa-pkcs11 for this machine's platform; needs gcc")
	flags.BoolVar(&o.load, "load", false, "build for this machine alone, and hand the images to docker")
	flags.BoolVar(&o.airgap, "airgap", false, "also one archive with the images, the chart, docker-compose.yaml and attestry")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.load {
		o.platforms = "linux/" + runtime.GOARCH
	}
	return o, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if o.tag == "" {
		if o.tag, err = defaultTag(o.airgap); err != nil {
			return err
		}
	}
	at, err := commitTime(ctx)
	if err != nil {
		return err
	}
	b := images.Build{Source: ".", Platforms: strings.Split(o.platforms, ","), PKCS11: o.pkcs11, Time: at, Log: stderr}
	if o.programs != "" {
		b.Programs = strings.Split(o.programs, ",")
	}
	binaries, err := filepath.Abs(filepath.Join(o.out, "bin"))
	if err != nil {
		return err
	}
	made, err := b.Make(ctx, binaries)
	if err != nil {
		return err
	}
	if err := images.Write(o.out, o.tag, made); err != nil {
		return err
	}
	for _, i := range made {
		for _, p := range i.Platforms {
			fmt.Fprintf(stdout, "%s/%s:%s %s/%s: %.1f MiB compressed, program %.1f MiB\n", images.Registry, i.Name, o.tag, p.OS, p.Architecture,
				float64(p.Compressed)/(1<<20), float64(p.Program)/(1<<20))
			if o.load {
				if err := load(ctx, filepath.Join(o.out, "docker", filepath.Base(i.Name)+"-"+p.Architecture+".tar"), stdout); err != nil {
					return err
				}
			}
		}
	}
	if !o.airgap {
		return nil
	}
	carried := map[string]string{images.LayoutName: filepath.Join(o.out, images.LayoutName), images.ListName: filepath.Join(o.out, images.ListName), "sbom": filepath.Join(o.out, "sbom")}
	for _, i := range made {
		if filepath.Base(i.Name) == "attestry" {
			for _, p := range i.Platforms {
				carried["bin/attestry-"+p.Architecture] = filepath.Join(binaries, p.OS+"-"+p.Architecture, "attestry")
			}
		}
	}
	for _, extra := range []string{"charts/attestry", "docker-compose.yaml", ".env", "docs"} {
		if _, err := os.Stat(extra); err == nil {
			carried[extra] = extra
		}
	}
	archive := filepath.Join(o.out, "attestry-"+o.tag+".tar")
	if err := images.Carry(archive, carried, at); err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, archive)
	return err
}

// load hands an archive to docker.
func load(ctx context.Context, archive string, stdout io.Writer) error {
	cmd := exec.CommandContext(ctx, "docker", "load", "--quiet", "--input", archive)
	cmd.Stdout = stdout
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("docker load: %w: %s", err, said.String())
	}
	return nil
}

// defaultTag is dev, or what the chart asks for.
func defaultTag(airgap bool) (string, error) {
	if !airgap {
		return "dev", nil
	}
	chart, err := os.ReadFile("charts/attestry/Chart.yaml")
	if errors.Is(err, os.ErrNotExist) {
		return "dev", nil
	}
	if err != nil {
		return "", err
	}
	m := regexp.MustCompile(`(?m)^appVersion: "?([^"\s]+)`).FindSubmatch(chart)
	if m == nil {
		return "", errors.New("charts/attestry/Chart.yaml names no appVersion")
	}
	return string(m[1]), nil
}

// commitTime is SOURCE_DATE_EPOCH, or when the commit was made that is built.
func commitTime(ctx context.Context) (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		out, err := exec.CommandContext(ctx, "git", "log", "-1", "--format=%ct").Output()
		if err != nil {
			return time.Time{}, fmt.Errorf("time of the commit (or set SOURCE_DATE_EPOCH): %w", err)
		}
		text = strings.TrimSpace(string(out))
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(seconds, 0).UTC(), nil
}
