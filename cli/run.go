package cli

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"
	urfave "github.com/urfave/cli/v2"

	"zulip-nats/embedded"
	"zulip-nats/poller"
	"zulip-nats/stream"
)

func (a *app) run() *urfave.Command {
	c := defaults()
	options := c.options()
	return &urfave.Command{
		Name:      "run",
		Usage:     "follow an account's events until stopped",
		UsageText: "zulip-nats run --zuliprc FILE [--nats-url URL] [options]",
		Description: "Runs in the foreground and logs on stderr. SIGTERM and Ctrl-C end it cleanly; the next start goes on with the next event.\n" +
			"Each option --foo-bar is also the variable ZULIP_NATS_FOO_BAR. Exit codes: 0 stopped, 1 it could not go on, 2 usage, 78 configuration.",
		Flags: flags(options),
		Action: func(u *urfave.Context) error {
			if err := errors.Join(parse(options), c.check()); err != nil {
				return err
			}
			log := newLog(a.stderr, c.LogFormat, c.LogLevel)
			a.log = &log
			return run(u.Context, &c, log)
		},
	}
}

// run is the command, once its settings are known. The order of the end is the reverse of the beginning: the bridge finishes what it has
// in hand while the server that stores it still runs.
func run(ctx context.Context, c *Config, log zerolog.Logger) error {
	r := &c.Realms[0]
	load := func() (poller.Account, error) { return poller.LoadAccount(r.Account) }
	account, err := load() // before anything is started or made, since this is where most first starts fail
	if err != nil {
		return err
	}
	if account.Insecure {
		log.Warn().Str("site", account.Site).Msg("the Zulip server's certificate is not checked: whoever is between us can read the key")
	}
	if c.NATS.URL == "" {
		s, err := startEmbedded(c, log)
		if err != nil {
			return err
		}
		defer s.Shutdown()
		// It knows no users and no certificates. Some of those may be set for other programs (NATS_CREDS, say), so this is no mistake.
		if n := c.NATS; n.Creds+n.NKey+n.User+n.Password+n.CA+n.Cert+n.Key != "" {
			log.Warn().Msg("credentials or certificates for NATS are given, but no NATS URL: the embedded server does not use them")
		}
		c.NATS, c.embedded = stream.ConnectConfig{URL: s.URL()}, true
	}
	p, err := wire(ctx, c, r, load, log)
	switch {
	case err != nil && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)):
		log.Info().Msg("stopped before there was a connection")
		return nil
	case err != nil:
		return err
	}
	defer p.close()
	if err := p.bridge.Run(ctx); err != nil {
		return err
	}
	if r.DeleteQueue {
		// ctx is over; this is the last thing that we do, and it must not keep a supervisor waiting.
		last, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), 4*time.Second, errors.New("no answer within 4 seconds"))
		defer cancel()
		if err := p.bridge.Retire(last); err != nil {
			return err
		}
	}
	log.Info().Msg("stopped")
	return nil
}

// startEmbedded starts the server that `run` has when nobody named one.
func startEmbedded(c *Config, log zerolog.Logger) (*embedded.Server, error) {
	dir, err := c.stateDir()
	if err != nil {
		return nil, err
	}
	s, err := embedded.Start(embedded.Options{
		Dir:  filepath.Join(dir, "nats"),
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
		return nil, hint(err, "stop that process, or choose another folder with --state-dir (and another port with --nats-port)")
	case errors.Is(err, embedded.ErrDir):
		return nil, configError{hint(err, "choose another folder with --state-dir, or a NATS server with --nats-url")}
	case err != nil:
		return nil, err
	}
	log.Info().Str("url", s.URL()).Str("folder", s.Dir()).
		Msg("no NATS URL is given: an embedded NATS server runs, for programs on this machine only")
	return s, nil
}
