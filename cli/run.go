package cli

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/rs/zerolog"
	urfave "github.com/urfave/cli/v2"

	"zulip-nats/embedded"
	"zulip-nats/logevent"
)

func (a *app) run() *urfave.Command {
	c := defaults()
	s := newSettings(c.options())
	return &urfave.Command{
		Name:      "run",
		Usage:     "follow an account's events until stopped",
		UsageText: "zulip-nats run --zuliprc FILE [--nats-url URL] [options]\nzulip-nats run --config FILE [options]",
		Description: "Runs in the foreground and logs on stderr. SIGTERM and Ctrl-C end it cleanly; the next start " +
			"goes on with the next event. SIGHUP makes a daemon read its settings again.\nEach option --foo-bar is also the " +
			"variable ZULIP_NATS_FOO_BAR; where that " +
			"holds a secret, ZULIP_NATS_FOO_BAR_FILE names a file with it.\nExit codes: 0 stopped, 1 it could not go " +
			"on, 2 usage, 78 configuration.",
		Flags: flags(s.options),
		Action: func(u *urfave.Context) error {
			c, err := s.read()
			if err != nil {
				return err
			}
			log, level := newLevelLog(a.stderr, c.LogFormat, c.LogLevel)
			a.log = &log
			if unknown := unknownVariables(u.App.Commands); len(unknown) > 0 {
				logevent.VariablesUnknown.Warn(log).
					Msgf("no option has these variables, and nothing comes of them: %s; "+
						"`zulip-nats run --help` lists those that there are", strings.Join(unknown, ", "))
			}
			s.warn(log)
			p := &process{app: a, c: c, log: log, level: level, writer: writerName(), read: s.read, files: s.files}
			return p.run(u.Context)
		},
	}
}

// startEmbedded starts the server that `run` has when nobody named one.
func startEmbedded(c *Config, log zerolog.Logger) (*embedded.Server, error) {
	dir, err := c.natsDir()
	if err != nil {
		return nil, err
	}
	s, err := embedded.Start(embedded.Options{
		Dir:  dir,
		Port: c.NATSPort,
		// What Zulip was told to forget is nowhere else: it must survive a power cut.
		SyncAlways: true,
		Log:        log,
	})
	switch {
	case errors.Is(err, embedded.ErrPortTaken):
		return nil, hint(err, "if that is a NATS server, use it with --nats-url nats://127.0.0.1:%d; "+
			"else choose another port with --nats-port", c.NATSPort)
	case errors.Is(err, embedded.ErrDirInUse):
		return nil, hint(err, "stop that process, or choose another folder with --state-dir (and another port with "+
			"--nats-port)")
	case errors.Is(err, fs.ErrPermission) && !errors.Is(err, embedded.ErrDir):
		return nil, hint(err, "choose another port with --nats-port: those below 1024 are root's on many systems")
	case errors.Is(err, embedded.ErrDir):
		return nil, configError{hint(err, "choose another folder with --state-dir, or a NATS server with --nats-url")}
	case err != nil:
		return nil, err
	}
	logevent.EmbeddedStarted.Info(log).Str("url", s.URL()).Str("folder", s.Dir()).
		Msg("no NATS URL is given: an embedded NATS server runs, for programs on this machine only")
	return s, nil
}
