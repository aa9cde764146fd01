package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	urfave "github.com/urfave/cli/v2"
	"golang.org/x/term"

	"zulip-nats/events"
	"zulip-nats/logevent"
	"zulip-nats/poller"
	"zulip-nats/redact"
	"zulip-nats/stream"
	"zulip-nats/subjects"
	"zulip-nats/tail"
)

// tailTry is how long it is waited for NATS at the start.
const tailTry = 10 * time.Second

// tailConfig is what `tail` was told.
type tailConfig struct {
	realm, stream string
	types         []string
	channel       string
	since         since
	last          int
	noFollow      bool
	pace, format  string
	logLevel      zerolog.Level
	logFormat     LogFormat
}

// since is where `tail --since` begins: at a time, or at a sequence of the stream.
type since struct {
	time time.Time
	seq  uint64
}

func (a *app) tail() *urfave.Command {
	c := defaults()
	t := tailConfig{pace: "max", format: "pretty", logLevel: zerolog.WarnLevel, logFormat: LogAuto}
	const what, how = "What is shown", "How"
	options := []*option{
		opt(what, "since", "begin `WHEN`: 2h or 7d ago; at a date, 2026-11-28 or 2026-11-28T10:00, by this machine's "+
			"clock, or with a zone, 2026-11-28T10:00:00Z; or '#1234', a sequence of the stream", "now",
			sinceWhen(&t.since)),
		opt(what, "last", "begin with the last `N` events of those that are shown", "none",
			number(&t.last, 1, 1_000_000)),
		opt(what, "no-follow", "end where the stream ends now", "", truth(&t.noFollow), yes),
		opt(what, "type", "`TYPES` of events, with commas between: message,reaction; bridge is the bridge's own records",
			"all but typing, presence and heartbeat", eventTypes(&t.types), many),
		opt(what, "channel", "`NAME` of the one channel that is of interest, or its id: '#5', or 5 (and a channel that is called 5)",
			"all, and direct messages", text(&t.channel)),
		opt(what, "realm", "`NAME` of the organization in subjects", "the only one that there is", realmName(&t.realm)),
		opt(what, "stream", "`NAME` of the stream", "the one that has the realm's subjects", streamName(&t.stream)),
		opt(how, "format", "`FORMAT`: pretty; json, an object in each line; or raw, the bytes as Zulip sent them, "+
			"which no terminal is safe from", "pretty", oneOf(&t.format, "pretty", "json", "raw")),
		opt(how, "pace", "`PACE` of what is past: max, or original, with the time between that lay between", "max",
			oneOf(&t.pace, "max", "original")),
	}
	for _, o := range c.settings() {
		if o.Category == catNATS && o.Name != "nats-port" && o.Name != "state-dir" {
			if o.Name == "nats-url" {
				o.DefaultText = nats.DefaultURL
			}
			options = append(options, o)
		}
	}
	options = append(options, logOptions(&t.logLevel, &t.logFormat, "warn")...)
	return &urfave.Command{
		Name:      "tail",
		Usage:     "show what happens, or happened, on the bus",
		UsageText: "zulip-nats tail [--since 2h | --last N] [--type TYPES] [--channel NAME] [--no-follow] [--nats-url URL]",
		Description: "Reads the stream of an organization and needs no zuliprc. It changes nothing, nobody notices it, and " +
			"Ctrl-C ends it.\nWhat comes from messages cannot steer the terminal, but with --format raw.\nExit codes: 0 " +
			"stopped, or the end with --no-follow; 1 it could not go on; 2 usage; 78 there is no such stream, or no " +
			"right to it.",
		Flags: flags(options),
		Action: func(u *urfave.Context) error {
			if err := errors.Join(parse(options), c.check()); err != nil {
				return err
			}
			if t.last > 0 && t.since != (since{}) {
				return usageErrorf("--last and --since are two ways to say where to begin: give one")
			}
			if t.noFollow && t.last == 0 && t.since == (since{}) {
				fmt.Fprintln(a.stderr, "zulip-nats: --no-follow shows what is there already, and no more than nothing from now "+
					"on: say where to begin, with --last 20 or --since 2h")
			}
			_, terminal := terminalOf(a.stdout)
			if t.format == "raw" && terminal {
				return usageErrorf("--format raw gives the bytes as they were sent, and those could take over this " +
					"terminal: send them to a file or a program, or take --format json")
			}
			for _, name := range t.types {
				if like, known := poller.NearestType(name); !known && name != "bridge" {
					fmt.Fprintf(a.stderr, "zulip-nats: --type: no Zulip known so far has events of the type %s (is %s meant?), so "+
						"nothing of it may be in the stream, nor come\n", redact.Text(name), like)
				}
			}
			log := newLog(a.stderr, t.logFormat, t.logLevel)
			return a.look(u.Context, &c, &t, log)
		},
	}
}

// sinceQuotes is what may be wrong with `--since #1234` in a shell.
const sinceQuotes = "a shell takes # for the beginning of a comment, so write a sequence of the stream as '#1234'"

// sinceWhen takes a duration, a date, or a sequence with # before it.
func sinceWhen(to *since) func(string) error {
	return func(s string) error {
		if digits, ok := strings.CutPrefix(s, "#"); ok {
			n, err := strconv.ParseUint(digits, 10, 64)
			if err != nil || n == 0 {
				return fmt.Errorf("%.60q is no sequence: write it like '#1234'", s)
			}
			*to = since{seq: n}
			return nil
		}
		for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateOnly} {
			at, err := time.ParseInLocation(layout, s, time.Local)
			switch {
			case err == nil && at.After(time.Now()):
				return fmt.Errorf("%s has not come yet (it is %s)", s, time.Now().Format("2006-01-02T15:04:05Z07:00"))
			case err == nil:
				*to = since{time: at}
				return nil
			}
		}
		if s == "" {
			return errors.New("it is empty; " + sinceQuotes)
		}
		var ago time.Duration
		if err := duration(&ago, time.Second, 36500*24*time.Hour)(s); err != nil {
			return fmt.Errorf("%.60q is no point in time: write it like 2h, 7d, 2026-11-28, 2026-11-28T10:00, "+
				"2026-11-28T10:00:00Z, or '#1234' for a sequence of the stream", s)
		}
		*to = since{time: time.Now().Add(-ago)}
		return nil
	}
}

// terminalOf gives the columns of a terminal; ok is false for all else.
func terminalOf(w io.Writer) (columns int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	if err != nil || columns <= 0 {
		columns = 80
	}
	return columns, true
}

// prettyOn is what prints for people on w: as wide as the terminal, and in colours on one
// only.
func prettyOn(w io.Writer) *tail.Pretty {
	columns, terminal := terminalOf(w)
	return &tail.Pretty{W: w, Width: columns,
		Color: terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// look is the command, once its settings are known.
func (a *app) look(ctx context.Context, c *Config, t *tailConfig, log zerolog.Logger) error {
	c.NATS.URL = cmp.Or(c.NATS.URL, nats.DefaultURL)
	// That it waits for NATS would be told in vain: either it comes soon, or the error says
	// why not.
	var there atomic.Bool
	conn, err := connect(ctx, c, log.Hook(zerolog.HookFunc(func(e *zerolog.Event, level zerolog.Level, _ string) {
		if level >= zerolog.WarnLevel && !there.Load() {
			e.Discard()
		}
	})))
	if err != nil {
		return unlessStopped(ctx, err)
	}
	defer conn.Close()
	if err := reached(ctx, conn, c, tailTry); err != nil {
		return unlessStopped(ctx, err)
	}
	there.Store(true)
	// A right that is missing is told besides the request, which gets no answer. Without
	// those to look up single messages and large ones it goes on.
	reading, refuse := context.WithCancelCause(ctx)
	defer refuse(nil)
	conn.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		if text := err.Error(); errors.Is(err, nats.ErrPermissionViolation) && !strings.Contains(text, ".GET.") &&
			!strings.Contains(text, ".OBJ_") && !strings.Contains(text, ".DELETE.") {
			refuse(configErrorf("NATS does not let this user read the stream (%s): docs/permissions.md says what tail "+
				"needs", tail.Clean(text, 300)))
		}
	})
	js, err := jetStream(conn, c)
	if err != nil {
		return err
	}
	name, realm, err := findRealm(reading, js, t)
	if err == nil {
		o := tail.Options{JetStream: js, Stream: name, Realm: realm, Types: t.types, Channel: t.channel,
			Since: t.since.time, From: t.since.seq, Last: t.last, NoFollow: t.noFollow, Original: t.pace == "original"}
		switch t.format {
		case "json":
			o.Show = tail.JSON{W: a.stdout}
		case "raw":
			o.Show = tail.Raw{W: a.stdout}
		default:
			o.Show = prettyOn(a.stdout)
			o.Began = func() { fmt.Fprintln(a.stderr, t.heading(name, realm)) }
		}
		shown := false
		o.Shown = func(*events.Event) { shown = true }
		err = readable(tail.Run(reading, o), name)
		if err == nil && reading.Err() == nil && t.channel != "" && !shown {
			fmt.Fprintf(a.stderr, "zulip-nats: --channel: nothing of a channel %q was found in what was read; a name has to "+
				"be whole, but for its case, and only an id may have a # in front\n", tail.Clean(t.channel, 100))
		}
	}
	switch cause := context.Cause(reading); {
	case ctx.Err() == nil && is[configError](cause):
		return cause
	case errors.Is(err, syscall.EPIPE): // whoever reads it has seen enough, `head` say
		return nil
	}
	return unlessStopped(ctx, err)
}

// heading says what follows.
func (t *tailConfig) heading(stream, realm string) string {
	zone, _ := time.Now().Zone()
	text := fmt.Sprintf("%s, realm %s, times in %s", tail.Clean(stream, 100), realm, zone)
	switch {
	case t.last > 0:
		text += fmt.Sprintf(", from the last %d on", t.last)
	case t.since.seq > 0:
		text += fmt.Sprintf(", from #%d on", t.since.seq)
	case !t.since.time.IsZero():
		text += ", from " + t.since.time.Local().Format("2006-01-02 15:04:05") + " on"
	default:
		text += ", from now on"
	}
	if !t.noFollow {
		text += ". Ctrl-C ends it."
	}
	return text
}

// unlessStopped makes no error of what a stop was the reason for.
func unlessStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// jetStream is JetStream as the options say where it is.
func jetStream(conn *stream.Conn, c *Config) (jetstream.JetStream, error) {
	api, err := stream.API(c.JSDomain, c.JSAPIPrefix)
	if err != nil {
		return nil, err
	}
	return jetstream.NewWithAPIPrefix(conn.Conn, api)
}

// readable makes a sentence of what JetStream says about a stream.
func readable(err error, name string) error {
	name = tail.Clean(name, 100) // NATS takes nearly all characters
	file, output := errors.AsType[*fs.PathError](err)
	switch {
	case err == nil:
		return nil
	case output:
		return fmt.Errorf("what is shown cannot be written: %w", file.Err)
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return configErrorf("there is no stream %s (any more): `zulip-nats run` makes it, or name another one with "+
			"--stream", name)
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount),
		errors.Is(err, nats.ErrNoResponders):
		return configErrorf("there is no JetStream for us at this NATS server (%w): use the server and the account that "+
			"`zulip-nats run` uses, or say where JetStream is with --nats-js-domain or --nats-js-api-prefix", err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return fmt.Errorf("NATS does not answer about stream %s: look at the server, and whether this user has the rights "+
			"that docs/permissions.md names: %w", name, err)
	}
	return fmt.Errorf("stream %s cannot be read: %w", name, err)
}

// findRealm says which stream is read, and whose messages in it.
func findRealm(ctx context.Context, js jetstream.JetStream, t *tailConfig) (name, realm string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	found := map[string]string{} // realm to stream
	var realms []string
	add := func(realm, stream string) {
		if _, err := subjects.ParseRealm(realm); err == nil && found[realm] != "ZULIP_"+realm {
			if found[realm] == "" {
				realms = append(realms, realm)
			}
			found[realm] = stream
		}
	}
	names := []string{t.stream}
	if t.stream == "" {
		list := js.StreamNames(ctx, jetstream.WithStreamListSubject("zulip.>"))
		names = nil
		for n := range list.Name() {
			names = append(names, n)
		}
		if err := list.Err(); err != nil {
			return "", "", readable(err, "of the realm")
		}
	}
	for _, n := range names {
		// Of a stream with many realms, the records say which there are.
		s, err := js.Stream(ctx, n)
		if err != nil {
			return "", "", readable(err, n)
		}
		wide := len(s.CachedInfo().Config.Subjects) == 0 // it has them from other streams
		for _, subject := range s.CachedInfo().Config.Subjects {
			part := strings.Split(subject, ".")
			if len(part) > 1 && part[0] == "zulip" && part[1] != "*" && part[1] != ">" {
				add(part[1], n)
			} else if part[0] == "zulip" || part[0] == "*" || part[0] == ">" {
				wide = true
			}
		}
		if !wide {
			continue
		}
		info, err := s.Info(ctx, jetstream.WithSubjectFilter("zulip.*.bridge.queue"))
		if err != nil {
			return "", "", readable(err, n)
		}
		for subject := range info.State.Subjects {
			add(strings.Split(subject, ".")[1], n)
		}
	}
	slices.Sort(realms)
	all := strings.Join(realms, ", ")
	switch {
	case t.realm != "" && found[t.realm] != "":
		return found[t.realm], t.realm, nil
	case t.realm != "" && t.stream != "" && len(realms) == 0: // nobody can tell
		return t.stream, t.realm, nil
	case len(realms) == 0:
		return "", "", configErrorf("no stream there has events of Zulip: start `zulip-nats run` with this NATS server, or " +
			"look at another one with --nats-url; a stream that has them from elsewhere needs --stream and --realm")
	case t.realm != "":
		return "", "", configErrorf("no stream there has events of the realm %s: there are %s; give one of them with --realm",
			t.realm, all)
	case len(realms) > 1:
		return "", "", usageErrorf("there are several organizations, %s: say which with --realm", all)
	}
	return found[realms[0]], realms[0], nil
}

// shows prints what the bridge stores, for `run --show`, from the time that it has opened
// its stream. stop ends it when it has printed what is stored by then, or soon after.
func (a *app) shows(ctx context.Context, conn *stream.Conn, c *Config, g *greeting) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	var last atomic.Uint64 // the sequence that was printed last
	js, err := jetStream(conn, c)
	if err != nil {
		cancel()
		return func() {}
	}
	end := func() {} // of the printing of a stream that was deleted since
	g.opened = func(name string, from uint64) {
		end()
		one, stopOne := context.WithCancel(ctx)
		end = stopOne
		last.Store(from)
		running.Go(func() {
			err := tail.Run(one, tail.Options{JetStream: js, Stream: name, Realm: g.realm.String(), From: from + 1,
				Show: prettyOn(a.stdout), Seen: func(e *events.Event) { last.Store(e.Seq) }})
			if err != nil {
				logevent.ShowStopped.Warn(g.log).Err(err).Str("stream", name).
					Msg("what is stored is no longer printed; storing goes on")
			}
		})
	}
	return func() {
		patience, enough := context.WithTimeout(ctx, 2*time.Second)
		defer enough()
		if s, err := js.Stream(patience, g.stream); err == nil {
			waitFor(patience, func() bool { return last.Load() >= s.CachedInfo().State.LastSeq })
		}
		cancel()
		printed := make(chan struct{})
		go func() { running.Wait(); close(printed) }()
		select {
		case <-printed:
		case <-time.After(time.Second): // a write hangs, in a full pipe that nobody reads: it ends with the process
		}
	}
}

// tailLine is the command that shows what comes.
func tailLine(c *Config, realm string) string {
	line := "zulip-nats tail --realm " + realm
	switch {
	case c.Context != "":
		return line + " --nats-context " + shownContext(c.Context)
	case c.NATS.URL == nats.DefaultURL:
		return line
	}
	return line + " --nats-url " + redact.URLs(c.NATS.URL)
}
