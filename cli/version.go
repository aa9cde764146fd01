package cli

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/nats-io/nats.go"
	urfave "github.com/urfave/cli/v2"
)

// Set by the linker for a release: -ldflags "-X zulip-nats/cli.buildVersion=1.2.3 -X
// zulip-nats/cli.buildCommit=0123abc".
var buildVersion, buildCommit string

// build says what this binary is made of.
type build struct{ version, commit, goVersion, nats string }

// readBuild takes the linker's words first, then what the Go command has noted in the
// binary.
func readBuild() build {
	b := build{version: buildVersion, commit: buildCommit, goVersion: runtime.Version(), nats: "v" + nats.Version}
	if info, ok := debug.ReadBuildInfo(); ok {
		b.version = cmp.Or(b.version, info.Main.Version)
		changed := ""
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision" && b.commit == "":
				b.commit = s.Value
			case s.Key == "vcs.modified" && s.Value == "true" && buildCommit == "":
				changed = " (with changes)"
			}
		}
		if b.commit != "" {
			b.commit += changed
		}
	}
	b.version = cmp.Or(b.version, "(devel)")
	b.commit = cmp.Or(b.commit, "unknown")
	return b
}

func (a *app) version() *urfave.Command {
	return &urfave.Command{
		Name:  "version",
		Usage: "say what this program is made of",
		Action: func(*urfave.Context) error {
			b := readBuild()
			_, err := fmt.Fprintf(a.stdout, "zulip-nats %s\ncommit     %s\ngo         %s\nnats.go    %s\n",
				b.version, b.commit, b.goVersion, b.nats)
			return err
		},
	}
}
