package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// sbomTool writes the list of what is in a binary, in the form of CycloneDX, from what
// the Go command has noted in it.
const sbomTool = "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0" // Apache-2.0

// instructions is the oldest processor of each kind that a binary runs on: the variable
// of the Go command, and its default, whatever this user's is.
var instructions = map[string][2]string{"amd64": {"GOAMD64", "v1"}, "arm64": {"GOARM64", "v8.0"}}

// tags leave out of urfave/cli what writes manuals in Markdown, which nothing here calls:
// 100 KB of the image, packed. The Dockerfile has the same.
const tags = "urfave_cli_no_docs"

// linkerFlags put the version and the commit into a binary.
func (r *release) linkerFlags(dir string) (string, error) {
	module, err := command(dir, "go", "list", "-m")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("-s -w -X %[1]s/cli.buildVersion=%[2]s -X %[1]s/cli.buildCommit=%[3]s", module, r.version,
		r.commit), nil
}

// compile builds the binary for one system and checks it.
func (r *release) compile(dir, binary, goos, goarch string) (*debug.BuildInfo, error) {
	level := instructions[goarch]
	flags, err := r.linkerFlags(dir)
	if err != nil {
		return nil, err
	}
	c := exec.Command("go", "build", "-trimpath", "-buildvcs=true", "-mod=readonly", "-tags="+tags, "-gcflags=",
		"-ldflags="+flags,
		"-o", binary, ".")
	c.Dir = dir
	c.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, level[0]+"="+level[1], "CGO_ENABLED=0", "GOWORK=off",
		"GOEXPERIMENT=", "GOFIPS140=off")
	if text, err := c.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w\n%s", err, bytes.TrimSpace(text))
	}
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	if err := r.checkInfo(info, goos, goarch); err != nil {
		return nil, err
	}
	if goos == runtime.GOOS && goarch == runtime.GOARCH {
		says, err := command(dir, binary, "version")
		if err != nil {
			return nil, err
		}
		if want := "zulip-nats " + r.version + "\ncommit     " + r.commit + "\n"; !strings.HasPrefix(says, want) {
			return nil, fmt.Errorf("`zulip-nats version` says\n%s\nand not\n%s", says, want)
		}
	}
	return info, nil
}

// checkInfo compares what the Go command has noted in a binary with what it must be.
func (r *release) checkInfo(info *debug.BuildInfo, goos, goarch string) error {
	level := instructions[goarch]
	want := map[string]string{"-buildmode": "exe", "-compiler": "gc", "-trimpath": "true", "-tags": tags, "CGO_ENABLED": "0",
		"GOOS": goos, "GOARCH": goarch, level[0]: level[1], "vcs": "git", "vcs.revision": r.commit,
		"vcs.time": r.when.Format(time.RFC3339), "vcs.modified": "false"}
	is := map[string]string{}
	for _, s := range info.Settings {
		is[s.Key] = s.Value
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if is[key] != want[key] {
			return fmt.Errorf("the binary was built with %s=%s, and not %s (`go version -m` shows it)", key, is[key],
				want[key])
		}
		delete(is, key)
	}
	for _, key := range slices.Sorted(maps.Keys(is)) {
		return fmt.Errorf("the binary was built with %s=%s, which a release is not: look into `go env` for it", key, is[key])
	}
	if info.GoVersion != runtime.Version() {
		return fmt.Errorf("the binary was built by %s, and not by %s: set GOTOOLCHAIN for all of it", info.GoVersion,
			runtime.Version())
	}
	if r.tag != "" && info.Main.Version != r.tag {
		return fmt.Errorf("the Go command has noted the version %s, and not %s", info.Main.Version, r.tag)
	}
	return nil
}

// bill is the SBOM of a binary: every module and the standard library, with versions. It
// has no time and no random number, which the tool can leave out, and not the checksums
// of the tool itself, which differ with the machine that compiled it.
func (r *release) bill(dir, binary string) ([]byte, error) {
	list := filepath.Join(dir, "sbom.json")
	defer os.Remove(list)
	if _, err := command(dir, "go", "run", sbomTool, "bin", "-json", "-std", "-noserial", "-notimestamp", "-version",
		r.version, "-output", list, binary); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(list)
	if err != nil {
		return nil, err
	}
	return withoutToolSums(data)
}

// withoutToolSums leaves the checksums of the tool out of an SBOM.
func withoutToolSums(data []byte) ([]byte, error) {
	var bom map[string]any
	if err := json.Unmarshal(data, &bom); err != nil {
		return nil, err
	}
	metadata, _ := bom["metadata"].(map[string]any)
	tools, _ := metadata["tools"].([]any)
	components, _ := bom["components"].([]any)
	if len(tools) == 0 || len(components) == 0 {
		return nil, fmt.Errorf("the SBOM has no tools or no components: look at what %s writes", sbomTool)
	}
	for _, t := range tools {
		delete(t.(map[string]any), "hashes")
	}
	text, err := json.MarshalIndent(bom, "", "  ")
	return append(text, '\n'), err
}
