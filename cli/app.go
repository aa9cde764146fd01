// Package cli is the command line: it turns flags and variables into a [Config], builds the parts, and lets them run. What the program
// can do lives in the other packages; here are the words that people type and the sentences that they read.
//
// One file for each command, and for the whole: app.go (the commands, errors and exit codes), option.go (a flag and its variables),
// config.go (the settings of `run`, which are the manual), wire.go (settings into parts), log.go.
//
// Scripts rely on the commands, the flags, their variables and the exit codes. Everything is passed in and nothing is global, so a test
// runs the program as a user does: [Run] with arguments and two writers.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/rs/zerolog"
	urfave "github.com/urfave/cli/v2"

	"zulip-nats/bridge"
	"zulip-nats/poller"
	"zulip-nats/stream"
)

// Exit codes. 2 is what Go programs use for a wrong command line, 78 is EX_CONFIG of sysexits.h, so that a supervisor can be told
// not to start again what only an operator can mend.
const (
	exitOK      = 0
	exitRuntime = 1  // it ran and could not go on
	exitUsage   = 2  // the command line or a variable is wrong
	exitConfig  = 78 // a file, a key, a server or a stream is not as it must be
)

// Run runs the program with the arguments behind its name, and returns the exit code. It ends early, and cleanly, when ctx does. Results
// and help that was asked for go to stdout, everything else to stderr.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{stdout: stdout, stderr: stderr}
	err := a.urfave().RunContext(ctx, append([]string{"zulip-nats"}, args...))
	if err == nil {
		return exitOK
	}
	a.report(err)
	return exitCode(err)
}

// app is one run of the program.
type app struct {
	stdout, stderr io.Writer
	// log is set by a command that writes a log; from then on errors go there too, so that whoever reads JSON lines gets no other.
	log *zerolog.Logger
}

func (a *app) urfave() *urfave.App {
	u := &urfave.App{
		Name:           "zulip-nats",
		Usage:          "put every event of a Zulip account on NATS JetStream, once, in order, as Zulip sent it",
		Writer:         a.stdout,
		ErrWriter:      a.stderr,
		HideVersion:    true, // `version` says more
		ExitErrHandler: func(*urfave.Context, error) {},
		OnUsageError:   onUsageError,
		Commands:       []*urfave.Command{a.run(), a.demo(), a.version()},
		Action: func(c *urfave.Context) error {
			if name := c.Args().First(); name != "" {
				return usageErrorf("there is no command %q: `zulip-nats help` lists them", name)
			}
			return usageErrorf("a command is missing: try `zulip-nats demo`, or `zulip-nats help` for all of them")
		},
	}
	for _, c := range u.Commands {
		c.OnUsageError = onUsageError
		c.HideHelpCommand = true
		c.Before = func(c *urfave.Context) error {
			if c.Args().Present() {
				name := c.Command.Name
				return usageErrorf("%s takes options only, not %q: `zulip-nats %s --help` lists them", name, c.Args().First(), name)
			}
			return nil
		}
	}
	return u
}

// onUsageError turns what the flag parser says into a sentence; without it the library would print help on stdout.
func onUsageError(c *urfave.Context, err error, _ bool) error {
	name, unknown := strings.CutPrefix(err.Error(), "flag provided but not defined: -")
	if !unknown {
		name, missing := strings.CutPrefix(err.Error(), "flag needs an argument: -")
		if missing {
			return usageErrorf("the option --%s needs a value", strings.TrimPrefix(name, "-"))
		}
		return usageError{err}
	}
	name = strings.TrimPrefix(name, "-")
	help := "zulip-nats help"
	if c.Command != nil && c.Command.Name != c.App.Name {
		help = "zulip-nats " + c.Command.Name + " --help"
		if like := urfave.SuggestFlag(c.Command.Flags, name, true); like != "" {
			return usageErrorf("there is no option --%s (is %s meant?): `%s` lists them", name, like, help)
		}
	}
	return usageErrorf("there is no option --%s: `%s` lists them", name, help)
}

// report tells the error to whoever reads: a sentence, or a line for each if it is several.
func (a *app) report(err error) {
	if a.log != nil {
		a.log.Error().Msg(strings.ReplaceAll(err.Error(), "\n", "; "))
		return
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(a.stderr, "zulip-nats: %s\n", line)
	}
}

// usageError is a mistake on the command line or in a variable of ours.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usageErrorf(format string, v ...any) error { return usageError{fmt.Errorf(format, v...)} }

// configError is something outside of the command line that an operator has to mend.
type configError struct{ error }

func (e configError) Unwrap() error { return e.error }

func configErrorf(format string, v ...any) error { return configError{fmt.Errorf(format, v...)} }

// exitCode says how the program ends for an error; usage before configuration, since it comes first for whoever mends it.
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
