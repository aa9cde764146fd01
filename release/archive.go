package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"cmp"
	"compress/flate"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// documents are what an archive holds besides the binary: files, and folders with what
// git knows in them and is of use there (see [listed]).
var documents = []string{"README.md", "CHANGELOG.md", "LICENSE", "nats.conf", "docs", "deploy"}

// printed are the files that the program prints itself, by the words that make it.
var printed = []struct {
	name  string
	words []string
}{
	{"zulip-nats.1", []string{"man"}},
	{"completion/zulip-nats.bash", []string{"completion", "bash"}},
	{"completion/_zulip-nats", []string{"completion", "zsh"}},
	{"completion/zulip-nats.fish", []string{"completion", "fish"}},
}

// print makes those files, with the program built for this machine: they are the same for
// all.
func (r *release) print(dir string) (files []file, err error) {
	tmp, err := os.MkdirTemp("", "release-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	program := filepath.Join(tmp, "zulip-nats")
	flags, err := r.linkerFlags(dir)
	if err != nil {
		return nil, err
	}
	if _, err := command(dir, "go", "build", "-ldflags="+flags, "-o", program, "."); err != nil {
		return nil, err
	}
	for _, p := range printed {
		text, err := command(dir, program, p.words...)
		if err != nil {
			return nil, err
		}
		files = append(files, file{name: p.name, data: []byte(text + "\n")})
	}
	return files, nil
}

// licensesFile holds the licences of all modules that are in the binary, as they ask for.
const licensesFile = "LICENSES-OF-MODULES"

// file is one file of an archive. Its name has slashes.
type file struct {
	name       string
	data       []byte
	executable bool
}

// contents are the files of the archive for one binary, in order of their names.
func contents(dir, binary string, info *debug.BuildInfo, printed []file) ([]file, error) {
	data, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	files := append([]file{{filepath.Base(binary), data, true}}, printed...)
	for _, d := range documents {
		list, err := command(dir, "git", "ls-files", "-z", "--", d)
		if err != nil {
			return nil, err
		}
		names := listed(list)
		if len(names) == 0 {
			return nil, fmt.Errorf("there is no %s in the repository, and it belongs into the archive", d)
		}
		for _, name := range names {
			if data, err = os.ReadFile(filepath.Join(dir, filepath.FromSlash(name))); err != nil {
				return nil, err
			}
			files = append(files, file{name: name, data: data})
		}
	}
	if data, err = licenses(dir, info); err != nil {
		return nil, err
	}
	files = append(files, file{name: licensesFile, data: data})
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(a.name, b.name) })
	return files, nil
}

// listed are the names in what `git ls-files -z` prints, which ends each with a zero byte
// and quotes none, but for those of files that look at others and need the repository for
// that: tests, and deploy/check.
func listed(list string) (names []string) {
	for name := range strings.SplitSeq(list, "\x00") {
		if name == "" || name == "deploy/check" || strings.HasSuffix(name, "_test.go") ||
			strings.HasSuffix(name, "_test.yml") {
			continue
		}
		names = append(names, name)
	}
	return names
}

// licenses are the licences and notices of Go and of the modules in a binary, as they
// stand in the folders of these.
func licenses(dir string, info *debug.BuildInfo) ([]byte, error) {
	goroot, err := command(dir, "go", "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	type module struct{ name, dir string }
	modules := []module{{"Go " + info.GoVersion, goroot}}
	args := []string{"list", "-m", "-f", "{{.Path}}\t{{.Dir}}"}
	for _, d := range info.Deps {
		args = append(args, d.Path)
	}
	lines, err := command(dir, "go", args...)
	if err != nil {
		return nil, err
	}
	for i, line := range strings.Split(lines, "\n") {
		_, at, _ := strings.Cut(strings.TrimSpace(line), "\t")
		modules = append(modules, module{info.Deps[i].Path + " " + info.Deps[i].Version, at})
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "zulip-nats itself: see LICENSE. In the binary there are, besides it:\n")
	for _, m := range modules {
		entries, err := os.ReadDir(m.dir)
		if err != nil {
			return nil, err
		}
		found := false
		for _, e := range entries {
			stem, _, _ := strings.Cut(strings.ToUpper(e.Name()), ".")
			if e.IsDir() || !slices.Contains([]string{"LICENSE", "LICENCE", "COPYING", "NOTICE", "PATENTS"}, stem) {
				continue
			}
			data, err := os.ReadFile(filepath.Join(m.dir, e.Name()))
			if err != nil {
				return nil, err
			}
			fmt.Fprintf(&text, "\n==== %s, %s\n\n%s\n", m.name, e.Name(), bytes.TrimSpace(data))
			found = found || stem != "NOTICE" && stem != "PATENTS"
		}
		if !found {
			return nil, fmt.Errorf("%s has no licence in its folder, so it cannot be given away", m.name)
		}
	}
	return text.Bytes(), nil
}

// writeTarGz packs files into the folder top, with nothing in it of this machine.
func writeTarGz(to io.Writer, top string, files []file, when time.Time) error {
	z, err := gzip.NewWriterLevel(to, gzip.BestCompression)
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	for _, f := range files {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(top, f.name), Mode: f.mode(),
			Size: int64(len(f.data)), ModTime: when, Format: tar.FormatPAX}); err != nil {
			return err
		}
		if _, err := t.Write(f.data); err != nil {
			return err
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	return z.Close()
}

// writeZip does the same for Windows.
func writeZip(to io.Writer, top string, files []file, when time.Time) error {
	z := zip.NewWriter(to)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) {
		return flate.NewWriter(w, flate.BestCompression)
	})
	for _, f := range files {
		h := &zip.FileHeader{Name: path.Join(top, f.name), Method: zip.Deflate, Modified: when.UTC()}
		h.SetMode(os.FileMode(f.mode()))
		w, err := z.CreateHeader(h)
		if err != nil {
			return err
		}
		if _, err := w.Write(f.data); err != nil {
			return err
		}
	}
	return z.Close()
}

func (f file) mode() int64 {
	if f.executable {
		return 0o755
	}
	return 0o644
}
