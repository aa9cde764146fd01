package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

const commit = "0123456789abcdef0123456789abcdef01234567"

var when = time.Date(2026, 11, 28, 12, 30, 0, 0, time.UTC)

func TestVersion(t *testing.T) {
	for _, c := range []struct {
		tags     string
		snapshot bool
		want     string // or what the error says
	}{
		{"v1.2.3", false, "1.2.3"},
		{"seen-by-ada v0.1.0-rc.1", false, "0.1.0-rc.1"},
		{"", false, "no tag of commit " + commit},
		{"1.2.3", false, "semantic version like v1.2.3"},
		{"v1.2", false, `["v1.2"]`},
		{"v1.02.3", false, "semantic version"},
		{"v1.2.3-01", false, "semantic version"},
		{"v1.2.3+linux", false, "semantic version"},
		{"v1.2.3-rc.1 v1.2.3", false, "more than one version"},
		{"", true, "0.0.0-20261128123000-0123456789ab"},
		{"v1.2.3", true, "0.0.0-20261128123000-0123456789ab"},
	} {
		name, tag, err := version(strings.Fields(c.tags), commit, when, c.snapshot)
		switch {
		case err != nil:
			if name != "" || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q: %q, %v", c.tags, name, err)
			}
		case name != c.want || (tag == "") != c.snapshot || tag != "" && tag != "v"+name:
			t.Errorf("%q: version %q of the tag %q, not %q", c.tags, name, tag, c.want)
		}
	}
}

// What is not as it must be in a binary is refused, and also what nobody asked for.
func TestCheckInfo(t *testing.T) {
	r := release{commit: commit, when: when, version: "1.2.3", tag: "v1.2.3"}
	good := func() *debug.BuildInfo {
		info := &debug.BuildInfo{GoVersion: runtime.Version(), Main: debug.Module{Version: "v1.2.3"}}
		for _, s := range []string{"-buildmode=exe", "-compiler=gc", "-trimpath=true", "-tags=urfave_cli_no_docs",
			"CGO_ENABLED=0", "GOARCH=arm64",
			"GOOS=darwin", "GOARM64=v8.0", "vcs=git", "vcs.revision=" + commit, "vcs.time=2026-11-28T12:30:00Z",
			"vcs.modified=false"} {
			key, value, _ := strings.Cut(s, "=")
			info.Settings = append(info.Settings, debug.BuildSetting{Key: key, Value: value})
		}
		return info
	}
	if err := r.checkInfo(good(), "darwin", "arm64"); err != nil {
		t.Fatal(err)
	}
	for i, s := range good().Settings {
		info := good()
		info.Settings[i].Value = "other"
		if err := r.checkInfo(info, "darwin", "arm64"); err == nil || !strings.Contains(err.Error(), s.Key+"=other") {
			t.Errorf("another %s: %v", s.Key, err)
		}
	}
	for what, change := range map[string]func(*debug.BuildInfo){
		"-race=true": func(i *debug.BuildInfo) {
			i.Settings = append(i.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
		},
		"go1.0":  func(i *debug.BuildInfo) { i.GoVersion = "go1.0" },
		"v1.2.4": func(i *debug.BuildInfo) { i.Main.Version = "v1.2.4" },
	} {
		info := good()
		change(info)
		if err := r.checkInfo(info, "darwin", "arm64"); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// image-check lays the binary of a release where the Dockerfile builds its own, so the two
// have to be built alike.
func TestDockerfileBuildsAlike(t *testing.T) {
	dockerfile, err := os.ReadFile(filepath.Join("..", "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	build := strings.Join(strings.Fields(strings.ReplaceAll(string(dockerfile), "\\\n", " ")), " ")
	for _, words := range []string{"RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags " + tags + " ",
		` -ldflags "-s -w -X zulip-nats/cli.buildVersion=${VERSION} -X zulip-nats/cli.buildCommit=${COMMIT}" `} {
		if !strings.Contains(build, words) {
			t.Errorf("the Dockerfile does not say %s", words)
		}
	}
}

// An archive has what belongs in it, and of this machine and this moment nothing.
func TestArchives(t *testing.T) {
	files := []file{{"docs/log.md", []byte("words"), false}, {"zulip-nats", []byte("program"), true}}
	want := "top/docs/log.md 644 2026-11-28T12:30:00Z words\ntop/zulip-nats 755 2026-11-28T12:30:00Z program\n"
	line := func(w io.Writer, name string, mode os.FileMode, at time.Time, r io.Reader) {
		data, err := io.ReadAll(r)
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(w, "%s %o %s %s\n", name, mode.Perm(), at.UTC().Format(time.RFC3339), data)
	}

	var packed, got bytes.Buffer
	if err := writeTarGz(&packed, "top", files, when); err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if !z.ModTime.IsZero() || z.Name != "" {
		t.Errorf("gzip names the time %v and the file %q", z.ModTime, z.Name)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" {
			t.Errorf("%s belongs to %d:%d (%s, %s)", h.Name, h.Uid, h.Gid, h.Uname, h.Gname)
		}
		line(&got, h.Name, h.FileInfo().Mode(), h.ModTime, r)
	}
	if got.String() != want {
		t.Errorf("the tar holds\n%s", got.String())
	}

	packed.Reset()
	got.Reset()
	if err := writeZip(&packed, "top", files, when); err != nil {
		t.Fatal(err)
	}
	r, err := zip.NewReader(bytes.NewReader(packed.Bytes()), int64(packed.Len()))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.File {
		data, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		line(&got, f.Name, f.Mode(), f.Modified, data)
	}
	if got.String() != want {
		t.Errorf("the zip holds\n%s", got.String())
	}
}

// An archive holds files of any name, and none that can do nothing there.
func TestListed(t *testing.T) {
	got := listed("deploy/README.md\x00deploy/check\x00deploy/deploy_test.go\x00deploy/prometheus/alerts.yml\x00" +
		"deploy/prometheus/alerts_test.yml\x00docs/größe \"1\"\n.md\x00docs/checks\x00")
	want := []string{"deploy/README.md", "deploy/prometheus/alerts.yml", "docs/größe \"1\"\n.md", "docs/checks"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, and not %q", got, want)
	}
	if got := listed(""); got != nil {
		t.Errorf("nothing is %q", got)
	}
	var packed bytes.Buffer
	if err := writeTarGz(&packed, "top", []file{{name: want[2]}}, when); err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := tar.NewReader(z).Next(); err != nil || h.Name != "top/"+want[2] {
		t.Errorf("the tar holds %+v, %v", h, err)
	}
}

// What is not whole is not left for a release, and what was there is not touched.
func TestInNewFolder(t *testing.T) {
	out := filepath.Join(t.TempDir(), "a", "dist")
	half := func() error { return os.WriteFile(filepath.Join(out, "half.zip"), nil, 0o600) }
	broken := errors.New("the disk is full")
	err := inNewFolder(out, func() error { return errors.Join(half(), broken) })
	if _, is := os.Stat(out); !errors.Is(err, broken) || !errors.Is(is, os.ErrNotExist) {
		t.Errorf("%v; the folder: %v", err, is)
	}
	if err := inNewFolder(out, half); err != nil {
		t.Fatal(err)
	}
	err = inNewFolder(out, func() error { return broken })
	if _, is := os.Stat(filepath.Join(out, "half.zip")); err == nil || !strings.Contains(err.Error(), "--out") || is != nil {
		t.Errorf("%v; what was there: %v", err, is)
	}
}

func TestOptionsComeBefore(t *testing.T) {
	for _, c := range [][2]string{{"linux/amd64 --no-sbom", `"--no-sbom" stands behind linux/amd64`},
		{"linux/amd64 -verify", "options come before the systems"}, {"plan9/386", "none of the systems"}} {
		if err := run(strings.Fields(c[0])); err == nil || !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%s: %v", c[0], err)
		}
	}
}

// The checksums can be checked by sha256sum, and the comparison of two folders finds what
// differs and what is missing.
func TestSums(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	write := func(dir, name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{a, b} {
		write(dir, "b.zip", "")
		write(dir, "a.tar.gz", "abc")
		if err := sum(dir); err != nil {
			t.Fatal(err)
		}
	}
	// Both sums are examples of FIPS 180-4.
	const want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a.tar.gz\n" +
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  b.zip\n"
	if got, err := os.ReadFile(filepath.Join(a, "SHA256SUMS")); err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
	if err := same(a, b); err != nil {
		t.Error(err)
	}
	write(b, "b.zip", "x")
	write(a, "only-here", "")
	if err := same(a, b); err == nil || !strings.Contains(err.Error(), "these differ: b.zip, only-here;") {
		t.Errorf("two folders that differ: %v", err)
	}
}

func TestWithoutToolSums(t *testing.T) {
	const tool = `{"components":[{"name":"nats.go","hashes":[1]}],"metadata":{"tools":[{"name":"gomod","hashes":[2]}]}}`
	got, err := withoutToolSums([]byte(tool))
	if err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(strings.Fields(string(got)), ""); text !=
		`{"components":[{"hashes":[1],"name":"nats.go"}],"metadata":{"tools":[{"name":"gomod"}]}}` {
		t.Error(text)
	}
	for _, other := range []string{`{}`, `{"components":[],"metadata":{"tools":[{}]}}`, `{"components":[{}]}`, `[`} {
		if _, err := withoutToolSums([]byte(other)); err == nil {
			t.Errorf("%s is taken for an SBOM", other)
		}
	}
}
