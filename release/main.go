// Command release makes what is downloaded: an archive for each system, a list of what is
// in it (SBOM), and the checksums.
//
//	GOTOOLCHAIN=$(cat release/toolchain) go run ./release
//	go run ./release --snapshot --verify linux/amd64     # to try it
//
// It needs Go and git. What it makes follows from the commit alone: it builds in a clone
// of the commit in a folder of its own, all times in the archives are the commit's
// (SOURCE_DATE_EPOCH), and the Go that is used is named in the file toolchain. Whoever
// has the commit gets the same bytes, and --verify builds a second time, in another
// folder, and compares. It refuses what would make that untrue: changes that are not
// committed, a commit without a tag that is a semantic version (v1.2.3), another Go.
//
// The version is that tag without its v. It is in each binary with the commit, as
// `zulip-nats version` says, and again as the Go command notes it (`go version -m`). That
// note is read back from each binary, and has to be what was asked for: system, commit,
// -trimpath, no cgo, and no setting besides, from somebody's GOFLAGS say.
//
// main.go is the command line and the order of things, build.go one binary and its SBOM,
// archive.go the archives and what is in them. Beside them are scripts: vulncheck looks
// for known vulnerabilities, image-check builds the image and looks at it.
package main

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

// toolchain is the Go that makes releases.
//
//go:embed toolchain
var toolchain string

// platforms are what a release is made for.
var platforms = []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64", "windows/amd64"}

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// release is one commit that is made into archives.
type release struct {
	root    string // the repository
	commit  string // 40 digits
	when    time.Time
	version string // without v
	tag     string // "" for a snapshot
	sbom    bool
}

func run(args []string) error {
	flags := flag.NewFlagSet("release", flag.ContinueOnError)
	out := flags.String("out", "dist", "the folder to make")
	snapshot := flags.Bool("snapshot", false, "a commit without a tag, with any Go: to try it, not to give away")
	verify := flags.Bool("verify", false, "build twice, in two folders, and compare")
	noSBOM := flags.Bool("no-sbom", false, "leave the SBOM out, whose tool takes a minute to compile")
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "go run ./release [options] [GOOS/GOARCH ...]\n\nWithout GOOS/GOARCH: %s.\n\n",
			strings.Join(platforms, " "))
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	targets := flags.Args()
	if len(targets) == 0 {
		targets = platforms
	}
	for _, p := range targets {
		if strings.HasPrefix(p, "-") {
			return fmt.Errorf("%q stands behind %s, where no option is looked for: options come before the systems", p,
				targets[0])
		}
		if !slices.Contains(platforms, p) {
			return fmt.Errorf("%q is none of the systems that a release is made for: %s", p, strings.Join(platforms, " "))
		}
	}
	r, err := readCommit(*snapshot)
	if err != nil {
		return err
	}
	r.sbom = !*noSBOM
	if want := strings.TrimSpace(toolchain); !*snapshot && runtime.Version() != want {
		return fmt.Errorf("this is %s, and releases are made by %s, so that all get the same bytes: "+
			"GOTOOLCHAIN=%s go run ./release", runtime.Version(), want, want)
	}
	return inNewFolder(*out, func() error { return r.make(*out, targets, *verify) })
}

// inNewFolder makes a folder, those above it too, and fills it. None is written into that
// may hold something of another version, and none is left that is not whole.
func inNewFolder(out string, fill func() error) error {
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(out, 0o755); err != nil {
		return fmt.Errorf("%w: remove it, or name another folder with --out", err)
	}
	if err := fill(); err != nil {
		return errors.Join(err, os.RemoveAll(out))
	}
	return nil
}

// make makes everything in out, and if verify is set a second time elsewhere, and says
// what there is.
func (r *release) make(out string, targets []string, verify bool) error {
	tmp, err := os.MkdirTemp("", "release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	fmt.Printf("zulip-nats %s, commit %s of %s, %s\n", r.version, r.commit, r.when.Format(time.RFC3339),
		runtime.Version())
	if err := r.build(filepath.Join(tmp, "one"), out, targets); err != nil {
		return err
	}
	if verify {
		again := filepath.Join(tmp, "out")
		if err := os.Mkdir(again, 0o755); err != nil {
			return err
		}
		// A place, a zone and a language that the first one did not have.
		os.Setenv("TZ", "Pacific/Chatham")
		os.Setenv("LC_ALL", "C")
		if err := r.build(filepath.Join(tmp, "a", "second", "folder"), again, targets); err != nil {
			return err
		}
		if err := same(out, again); err != nil {
			return err
		}
	}
	sums, err := os.ReadFile(filepath.Join(out, sumsFile))
	if err != nil {
		return err
	}
	fmt.Printf("%s", sums)
	if verify {
		fmt.Println("built twice in two folders: the same bytes")
	}
	return nil
}

// readCommit looks at the repository around the current folder.
func readCommit(snapshot bool) (release, error) {
	root, err := command("", "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return release{}, err
	}
	r := release{root: root}
	changes, err := command(root, "git", "status", "--porcelain")
	if err != nil {
		return release{}, err
	}
	if changes != "" {
		first, _, _ := strings.Cut(changes, "\n")
		return release{}, fmt.Errorf("there are changes that are not committed (%q is the first): a release is a commit, "+
			"so commit or stash them", first)
	}
	if r.commit, err = command(root, "git", "rev-parse", "HEAD"); err != nil {
		return release{}, err
	}
	when, err := command(root, "git", "show", "--no-patch", "--format=%cI", "HEAD")
	if err != nil {
		return release{}, err
	}
	if r.when, err = time.Parse(time.RFC3339, when); err != nil {
		return release{}, err
	}
	r.when = r.when.UTC()
	tags, err := command(root, "git", "tag", "--points-at", "HEAD")
	if err != nil {
		return release{}, err
	}
	r.version, r.tag, err = version(strings.Fields(tags), r.commit, r.when, snapshot)
	return r, err
}

// semver is a tag that names a version, as https://semver.org has it with a v before it.
// What stands behind a + there is left out: two versions that differ in it only count as
// the same.
var semver = regexp.MustCompile(`^v(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)` +
	`(?:-(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?$`)

// version is what the commit with these tags is called, and the tag that says so; for a
// snapshot one that is older than every release, and sorts by time, without a tag.
func version(tags []string, commit string, when time.Time, snapshot bool) (name, tag string, err error) {
	if snapshot {
		return "0.0.0-" + when.Format("20060102150405") + "-" + commit[:12], "", nil
	}
	var versions []string
	for _, t := range tags {
		if semver.MatchString(t) {
			versions = append(versions, t)
		}
	}
	switch len(versions) {
	case 0:
		return "", "", fmt.Errorf("no tag of commit %s is a semantic version like v1.2.3 (tags there: %q): tag it, or try "+
			"it with --snapshot", commit, tags)
	case 1:
		return versions[0][1:], versions[0], nil
	default:
		return "", "", fmt.Errorf("commit %s is tagged with more than one version, %q: delete all but one", commit,
			versions)
	}
}

// build makes everything in out, from a clone in dir.
func (r *release) build(dir, out string, targets []string) error {
	// Whatever the user's git does with ends of lines must not show.
	if _, err := command("", "git", "-c", "core.autocrlf=false", "clone", "--quiet", "--no-checkout", r.root,
		dir); err != nil {
		return err
	}
	if _, err := command(dir, "git", "-c", "core.autocrlf=false", "-c", "advice.detachedHead=false", "checkout",
		"--quiet", "--detach", r.commit); err != nil {
		return err
	}
	printed, err := r.print(dir)
	if err != nil {
		return err
	}
	for _, p := range targets {
		if err := r.platform(dir, out, p, printed); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return sum(out)
}

// platform makes the archive for one system, and the SBOM beside it.
func (r *release) platform(dir, out, platform string, printed []file) error {
	goos, goarch, _ := strings.Cut(platform, "/")
	binary := filepath.Join(dir, "zulip-nats")
	if goos == "windows" {
		binary += ".exe"
	}
	defer os.Remove(binary)
	info, err := r.compile(dir, binary, goos, goarch)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("zulip-nats_%s_%s_%s", r.version, goos, goarch)
	files, err := contents(dir, binary, info, printed)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	if goos == "windows" {
		err = writeZip(&archive, name, files, r.when)
		name += ".zip"
	} else {
		err = writeTarGz(&archive, name, files, r.when)
		name += ".tar.gz"
	}
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(out, name), archive.Bytes(), 0o644); err != nil {
		return err
	}
	if !r.sbom {
		return nil
	}
	list, err := r.bill(dir, binary)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, name+".cdx.json"), list, 0o644)
}

// sumsFile holds the checksums, as sha256sum writes and reads them.
const sumsFile = "SHA256SUMS"

// sum writes the checksums of all files of the folder.
func sum(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var sums bytes.Buffer
	for _, e := range entries { // in order of their names
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(data), e.Name())
	}
	return os.WriteFile(filepath.Join(dir, sumsFile), sums.Bytes(), 0o644)
}

// same is an error that names the files of two folders that are not the same bytes.
func same(a, b string) error {
	var differ []string
	names := map[string]bool{}
	for _, dir := range []string{a, b} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			names[e.Name()] = true
		}
	}
	for name := range names {
		one, err1 := os.ReadFile(filepath.Join(a, name))
		two, err2 := os.ReadFile(filepath.Join(b, name))
		if err1 != nil || err2 != nil || !bytes.Equal(one, two) {
			differ = append(differ, name)
		}
	}
	if len(differ) > 0 {
		slices.Sort(differ)
		return fmt.Errorf("built twice in two folders, and these differ: %s; build twice without --verify, with another "+
			"TMPDIR, TZ and --out, and compare what is in them (go version -m, strings, tar -tv) for a path, a time or a "+
			"name of the machine", strings.Join(differ, ", "))
	}
	return nil
}

// command runs a program in a folder and gives what it prints, without white space around
// it.
func command(dir, name string, args ...string) (string, error) {
	c := exec.Command(name, args...)
	c.Dir = dir
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(stdout.String()), nil
}
