package cli

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"time"

	"github.com/rs/zerolog"
	urfave "github.com/urfave/cli/v2"

	"zulip-nats/bridge"
	"zulip-nats/embedded"
	"zulip-nats/logevent"
	"zulip-nats/poller"
	"zulip-nats/service"
	"zulip-nats/stream"
	"zulip-nats/systemd"
)

func (a *app) run() *urfave.Command {
	c := defaults()
	options := c.options()
	return &urfave.Command{
		Name:      "run",
		Usage:     "follow an account's events until stopped",
		UsageText: "zulip-nats run --zuliprc FILE [--nats-url URL] [options]",
		Description: "Runs in the foreground and logs on stderr. SIGTERM and Ctrl-C end it cleanly; the next start " +
			"goes on with the next event.\nEach option --foo-bar is also the variable ZULIP_NATS_FOO_BAR; where that " +
			"holds a secret, ZULIP_NATS_FOO_BAR_FILE names a file with it.\nExit codes: 0 stopped, 1 it could not go " +
			"on, 2 usage, 78 configuration.",
		Flags: flags(options),
		Action: func(u *urfave.Context) error {
			if err := errors.Join(parse(options), c.check()); err != nil {
				return err
			}
			log := newLog(a.stderr, c.LogFormat, c.LogLevel)
			a.log = &log
			if unknown := unknownVariables(u.App.Commands); len(unknown) > 0 {
				logevent.VariablesUnknown.Warn(log).
					Msgf("no option has these variables, and nothing comes of them: %s; "+
						"`zulip-nats run --help` lists those that there are", strings.Join(unknown, ", "))
			}
			return a.follow(u.Context, &c, log)
		},
	}
}

// follow is the command, once its settings are known. The order of the end is the reverse of
// the beginning: the bridge finishes what it has in hand while the server that stores it
// still runs.
func (a *app) follow(ctx context.Context, c *Config, log zerolog.Logger) error {
	r := &c.Realms[0]
	load := func() (poller.Account, error) { return poller.LoadAccount(r.Account) }
	// Before anything is started or made, since this is where most first starts fail.
	g, err := newGreeting(r, load, log)
	if err != nil {
		return err
	}
	a.log = &g.log // from here on an error has a realm
	watch := &watched{realm: g.realm, began: time.Now()}
	stopServing, err := watch.serve(c.HTTP, c.Pprof, log)
	if err != nil {
		return err
	}
	defer stopServing()
	stopTelling := systemd.FromEnvironment().Tell(ctx, watch.statuses, log)
	defer stopTelling()
	for _, n := range unknownTypes(r.Queue) {
		n.log(g.log)
	}
	if err := g.who(ctx); err != nil {
		return err
	}
	if c.NATS.URL == "" {
		s, err := startEmbedded(c, log)
		if err != nil {
			return err
		}
		defer s.Shutdown()
		// It knows no users and no certificates. Some of those may be set for other
		// programs (NATS_CREDS, say), so this is no mistake.
		if n := c.NATS; n.Creds+n.NKey+n.JWT+n.Seed+n.User+n.Password+n.Token+n.CA+n.Cert+n.Key != "" {
			logevent.CredentialsUnused.Warn(log).
				Msg("credentials or certificates for NATS are given, but no NATS URL: " +
					"the embedded server does not use them")
		}
		c.NATS, c.embedded = stream.ConnectConfig{URL: s.URL()}, true
		c.JSDomain, c.JSAPIPrefix = "", ""
	}
	start := ctx
	if r.DeleteQueue { // a stop during the start is the bridge's to judge
		start = context.WithoutCancel(ctx)
	}
	conn, err := connect(start, c, log)
	switch {
	case err != nil && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)):
		logevent.Stopped.Info(log).EmbedObject(bridge.Work{}).Msg("stopped before there was a connection")
		return nil
	case err != nil:
		return err
	}
	defer conn.Close()
	g.look = tailLine(c, g.realm.String())
	if c.Show {
		defer a.shows(ctx, conn, c, g)()
	}
	writer := writerName()
	found := service.Config{Instance: writer, Version: readBuild().version, Realms: watch.statuses, Log: log}
	if len(r.State) > 0 {
		found.AskState = watch.askState
	}
	defer service.Start(conn, found)()
	shared, unshare, err := newSharing(ctx, conn, c, writer, log)
	if err != nil {
		return err
	}
	defer unshare()
	b := buildBridge(conn, c, r, g, writer, shared)
	watch.bridge.Store(b)
	hours, end := context.WithCancel(ctx)
	defer end()
	go bridge.Hourly(hours, log, b)
	if err := b.Run(ctx); err != nil {
		return err
	}
	if r.DeleteQueue && g.stream == "" {
		logevent.QueueNotDeleted.Warn(g.log).Msg("no queue is deleted: there is no stream yet, so none was made")
	}
	s := b.Status()
	logevent.Stopped.Info(log).EmbedObject(s.Counters.Work()).Msg("stopped")
	return nil
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
