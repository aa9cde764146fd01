// Package cli is the command line: it turns flags and variables into a [Config], builds
// the parts, and lets them run. What the program can do lives in the other packages; here
// are the words that people type and the sentences that they read.
//
// One file for each command, and for the whole: app.go (the commands, errors and exit
// codes), option.go (a flag and its variables), config.go (the settings of `run`, which
// are the manual), settings.go (where they come from), file.go (the file of --config),
// context.go (a context of the nats command into settings), wire.go (settings into parts),
// realms.go (what the realms of a `run` share, and each of them), reload.go and watch.go
// (settings that change while it runs), greet.go (what the log says at the start), serve.go
// (--http), log.go. completion.go and man.go print what the options are, for shells and for
// man. The demo has four: what it is (demo.go), what is done in it (demo_story.go), the
// bridge in a process of its own (demo_bridge.go), and what was sent beside what arrived
// (demo_count.go).
//
// Scripts rely on the commands, the flags, their variables and the exit codes. Everything
// is passed in and nothing is global, so a test runs the program as a user does: [Run]
// with arguments and two writers.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/rs/zerolog"
	urfave "github.com/urfave/cli/v2"

	"zulip-nats/bridge"
	"zulip-nats/logevent"
	"zulip-nats/poller"
	"zulip-nats/redact"
	"zulip-nats/stream"
	"zulip-nats/tail"
)

// Exit codes. 2 is what Go programs use for a wrong command line, 78 is EX_CONFIG of
// sysexits.h, so that a supervisor can be told not to start again what only an operator
// can mend.
const (
	exitOK      = 0
	exitRuntime = 1  // it ran and could not go on
	exitUsage   = 2  // the command line or a variable is wrong
	exitConfig  = 78 // a file, a key, a server or a stream is not as it must be
)

// Run runs the program with the arguments behind its name, and returns the exit code. It
// ends early, and cleanly, when ctx does. Results and help that was asked for go to
// stdout, everything else to stderr.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{stdout: stdout, stderr: stderr}
	if len(args) > 0 && (args[0] == "--version" || args[0] == "-V") {
		args = slices.Concat([]string{"version"}, args[1:])
	}
	err := cmp.Or(a.urfave().RunContext(ctx, append([]string{"zulip-nats"}, args...)), a.wrong)
	if err == nil {
		return exitOK
	}
	a.report(err)
	return exitCode(err)
}

// app is one run of the program.
type app struct {
	stdout, stderr io.Writer
	// log is set by a command that writes a log; from then on errors go there too, so
	// that whoever reads JSON lines gets no other.
	log *zerolog.Logger
	// wrong is what help was asked for that there is not.
	wrong error
}

func (a *app) urfave() *urfave.App {
	u := &urfave.App{
		Name:           "zulip-nats",
		Usage:          "put every event of a Zulip account on NATS JetStream, once, in order, as Zulip sent it",
		Writer:         a.stdout,
		ErrWriter:      a.stderr,
		HideVersion:    true, // the library's own says less than `version`
		ExitErrHandler: func(*urfave.Context, error) {},
		OnUsageError:   onUsageError,
		HideHelp:       true, // likewise
		Flags: []urfave.Flag{helpFlag(),
			&urfave.BoolFlag{Name: "version", Aliases: []string{"V"}, Usage: "the same as the command version",
				DisableDefaultText: true}},
		CommandNotFound: func(c *urfave.Context, name string) { a.wrong = noCommand(c.App, name) },
		Commands: []*urfave.Command{a.run(), a.tail(), a.check(), a.showConfig(), a.status(), a.state(), a.health(), a.demo(), a.demoBridge(),
			a.schema(), a.asyncapi(), a.version(), a.completion(), a.man(), a.help()},
		Action: func(c *urfave.Context) error {
			if name := c.Args().First(); name != "" {
				return noCommand(c.App, name)
			}
			return usageErrorf("a command is missing: try `zulip-nats demo`, or `zulip-nats help` for all of them")
		},
	}
	for _, c := range u.Commands {
		c.OnUsageError = onUsageError
		c.HideHelp, c.HideHelpCommand = true, true
		c.Flags = append(c.Flags, helpFlag())
		if c.Name == "help" || c.Name == "completion" || c.Name == "schema" { // which take a word
			continue
		}
		c.Before = func(c *urfave.Context) error {
			if c.Args().Present() {
				name := c.Command.Name
				return usageErrorf("%s takes options only, not %s: `zulip-nats %s --help` lists them", name,
					leftover(c.Command.Flags, c.Args().First()), name)
			}
			return nil
		}
	}
	return u
}

// helpFlag is like that of the library, which is one for all: two programs in one process,
// as tests have them, would write to it at the same time.
func helpFlag() urfave.Flag {
	return &urfave.BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "show help", DisableDefaultText: true}
}

// help is the library's, but for what it says when it is asked something odd.
func (a *app) help() *urfave.Command {
	return &urfave.Command{
		Name:    "help",
		Aliases: []string{"h"},
		Usage:   "list the commands, or say all about one of them",
		Action: func(c *urfave.Context) error {
			if c.Args().Present() {
				return urfave.ShowCommandHelp(c, c.Args().First())
			}
			return urfave.ShowAppHelp(c)
		},
	}
}

// noCommand is the error for a word where a command belongs.
func noCommand(u *urfave.App, name string) error {
	var names []string
	for _, c := range u.VisibleCommands() {
		names = append(names, c.Name)
	}
	if like := near(name, names); like != "" {
		return usageErrorf("there is no command %q (is %s meant?): `zulip-nats help` lists them", name, like)
	}
	return usageErrorf("there is no command %q: `zulip-nats help` lists them", redact.Text(name))
}

// leftover names an argument that belongs to no option. Behind a password with a blank in
// it, and no quotes around, it is the rest of that.
func leftover(flags []urfave.Flag, word string) string {
	for _, f := range flags {
		if o, ok := f.(*option); ok && o.secret && len(o.given.all) > 0 {
			return "a word by itself (not shown, since it may belong to the value of --" + o.Name +
				": put that in quotes)"
		}
	}
	return fmt.Sprintf("%q", redact.Text(word))
}

// onUsageError turns what the flag parser says into a sentence; without it the library
// would print help on stdout.
func onUsageError(c *urfave.Context, err error, _ bool) error {
	name, unknown := strings.CutPrefix(err.Error(), "flag provided but not defined: -")
	if !unknown {
		name, missing := strings.CutPrefix(err.Error(), "flag needs an argument: -")
		if missing {
			name = strings.TrimPrefix(name, "-")
			if name == "since" {
				return usageErrorf("the option --since needs a value; %s", sinceQuotes)
			}
			return usageErrorf("the option --%s needs a value", name)
		}
		if strings.HasPrefix(err.Error(), "bad flag syntax: ") { // and what was given
			return usageErrorf("an argument begins with - and is no option: write options as --name or --name=value")
		}
		return usageError{err}
	}
	name = strings.TrimPrefix(name, "-")
	help := "zulip-nats help"
	if c.Command != nil && c.Command.Name != c.App.Name {
		help = "zulip-nats " + c.Command.Name + " --help"
		var names []string
		for _, f := range c.Command.Flags {
			names = append(names, f.Names()[0])
		}
		if like := near(name, names); like != "" {
			return usageErrorf("there is no option --%s (is --%s meant?): `%s` lists them", name, like, help)
		}
	}
	return usageErrorf("there is no option --%s: `%s` lists them", redact.Text(name), help)
}

// report tells the error to whoever reads: a sentence, or a line for each if it is
// several.
func (a *app) report(err error) {
	if a.log != nil {
		line := logevent.Failed.Error
		if is[*poller.AuthError](err) {
			line = logevent.KeyRefused.Error
		}
		line(*a.log).Msg(strings.ReplaceAll(err.Error(), "\n", "; "))
		return
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(a.stderr, "zulip-nats: %s\n", tail.Clean(line, mostLine))
	}
}

// mostLine is how long an error may be on a terminal, in characters.
const mostLine = 10_000

// usageError is a mistake on the command line or in a variable of ours.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usageErrorf(format string, v ...any) error { return usageError{fmt.Errorf(format, v...)} }

// configError is something outside of the command line that an operator has to mend.
type configError struct{ error }

func (e configError) Unwrap() error { return e.error }

func configErrorf(format string, v ...any) error { return configError{fmt.Errorf(format, v...)} }

// exitCode says how the program ends for an error; usage before configuration, since it
// comes first for whoever mends it.
func exitCode(err error) int {
	switch {
	case err == nil:
		return exitOK
	case is[usageError](err):
		return exitUsage
	case is[configError](err), is[*bridge.ConfigError](err), is[*stream.ConfigError](err), is[*poller.ConfigError](err),
		is[*poller.AuthError](err):
		return exitConfig
	}
	return exitRuntime
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// hint adds what to do to what is wrong.
func hint(err error, format string, v ...any) error {
	return fmt.Errorf("%w: %s", err, fmt.Sprintf(format, v...))
}
