package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	urfave "github.com/urfave/cli/v2"

	"zulip-nats/embedded"
	"zulip-nats/tail"
	"zulip-nats/zulipsim"
)

// demoConfig is what `demo` was told.
type demoConfig struct {
	length    time.Duration // zero: until the story is told, or, if it is calm, until stopped
	calm      bool          // nothing is done to anybody
	beat      time.Duration // what the story is measured in
	port      int           // zero: any that is free
	logLevel  zerolog.Level // Disabled: what the bridges log is not shown
	logFormat LogFormat

	// For tests, which look at it from outside.
	zulip    *zulipsim.Server // nil: one of its own
	dir      string           // empty: one that is removed
	patience time.Duration    // with what has to come about, or to arrive
}

func demoDefaults() demoConfig {
	return demoConfig{beat: 3 * time.Second, logLevel: zerolog.Disabled, logFormat: LogAuto,
		patience: demoPatience}
}

func (a *app) demo() *urfave.Command {
	d := demoDefaults()
	beat := opt("", "beat", "`TIME` between what is done in the story: for tests", "3s",
		duration(&d.beat, 10*time.Millisecond, time.Minute))
	beat.Hidden = true
	options := append([]*option{
		opt("", "calm", "let people talk, and do nothing to the bridge, to NATS and to Zulip", "", truth(&d.calm), yes),
		opt("", "for", "end after `TIME`", "when the story is told; with --calm, when stopped",
			duration(&d.length, time.Second, 24*time.Hour)),
		opt("", "nats-port", "`PORT` of 127.0.0.1 for the NATS server, for subscribers of your own", "one that is free",
			number(&d.port, 1, 65535)),
		beat,
	}, logOptions(&d.logLevel, &d.logFormat, "nothing is logged")...)
	return &urfave.Command{
		Name:      "demo",
		Usage:     "show it all with a Zulip that exists only here",
		UsageText: "zulip-nats demo [--calm] [--for TIME] [--nats-port PORT]",
		Description: "Starts a simulated Zulip where people talk, a NATS server, the bridge between them in a process of " +
			"its own, and a subscriber that prints what arrives. Then the bridge is killed, NATS is stopped, Zulip " +
			"crashes and forgets the queue, and two bridges run at once; each time a line says what it cost.\nNeeds " +
			"nothing and leaves nothing. At the end what the simulator sent is compared with what the stream holds and " +
			"with what the subscriber got.\nExit codes: 0 all of it is there once, 1 it is not, or it could not go on, " +
			"2 usage.",
		Flags: flags(options),
		Action: func(u *urfave.Context) error {
			if err := parse(options); err != nil {
				return err
			}
			return demo(u.Context, &d, a.stdout, a.stderr)
		},
	}
}

// demoPatience is how long is waited for what has to come about.
const demoPatience = time.Minute

// demoWidth is the columns that the demo's lines take at most: a picture of it has a place
// everywhere.
const demoWidth = 80

// show is one demo: its parts, what was seen, and how it ends.
type show struct {
	*demoConfig
	stderr io.Writer
	pretty *tail.Pretty
	zulip  *zulipsim.Server
	dir    string
	rc     string           // the zuliprc of the bridges
	nats   *embedded.Server // nil while it is stopped
	url    string           // where it is, also then
	port   int              // likewise; zero: any that is free
	bridge *child           // the one that works
	got    arrivals         // of the subscriber

	// end ends what people say and what is done to the bridge: with errEnough, or with
	// what is wrong.
	end context.CancelCauseFunc
}

// errEnough is the end of the story as it was meant.
var errEnough = errors.New("the story is told")

// demo is the command. Its end has an order, so that the comparison is fair: people fall
// silent, what was stopped is started again, the subscriber gets what is under way, the
// bridge stops, and only then is counted.
func demo(ctx context.Context, d *demoConfig, stdout, stderr io.Writer) error {
	s := &show{demoConfig: d, stderr: stderr, zulip: d.zulip, dir: d.dir, port: d.port, pretty: prettyOn(stdout)}
	stdout = &oneByOne{w: stdout}
	s.pretty.W, s.pretty.Subjects = stdout, true
	if s.pretty.Width == 0 || s.pretty.Width > demoWidth {
		s.pretty.Width = demoWidth
	}
	if s.zulip == nil {
		s.zulip = &zulipsim.Server{RealmName: "Demo"}
	}
	site, stop, err := s.zulip.Listen("127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("the simulated Zulip does not start: %w", err)
	}
	defer stop()
	if s.dir == "" {
		if s.dir, err = os.MkdirTemp("", "zulip-nats-demo-"); err != nil {
			return err
		}
		defer os.RemoveAll(s.dir)
	}
	if err := s.writeRC(site); err != nil {
		return err
	}
	if err := s.startNATS(); err != nil {
		return err
	}
	defer s.stopNATS()
	fmt.Fprintf(stderr, "A simulated Zulip, NATS at %s, and zulip-nats between them.\nWhat people say there is on "+
		"zulip.demo.> here, once, in order. Ctrl-C ends it.\n\n", s.url)

	// The bridge and the subscriber outlive the signal: they finish what is under way.
	var work sync.WaitGroup
	defer work.Wait()
	reading, stopReading := context.WithCancel(context.WithoutCancel(ctx))
	defer stopReading()
	stopped := ctx
	ctx, s.end = context.WithCancelCause(ctx)
	if d.length > 0 {
		defer time.AfterFunc(d.length, func() { s.end(errEnough) }).Stop()
	}
	if s.bridge, err = s.startBridge(); err != nil {
		return err
	}
	defer func() { s.bridge.kill() }() // if it is not stopped by then
	work.Go(func() {
		if err := subscribe(reading, s.url, s.pretty, &s.got); reading.Err() == nil {
			s.end(err)
		}
	})
	var talk sync.WaitGroup
	talk.Go(func() {
		// What is said before the bridge has a queue, nobody hears.
		if waitFor(ctx, func() bool { return len(s.zulip.Queues()) > 0 }) {
			s.zulip.Chatter(ctx, uint64(time.Now().UnixNano()), d.beat/10)
		}
	})
	if !d.calm {
		s.end(s.tell(ctx))
	}
	<-ctx.Done()
	talk.Wait()
	switch why := context.Cause(ctx); {
	case errors.Is(why, errEnough), stopped.Err() != nil && errors.Is(why, context.Cause(stopped)):
	case errors.Is(why, syscall.EPIPE): // whoever reads what is shown has seen enough, `head` say
		return nil
	default:
		return fmt.Errorf("the demo broke off: %w", why)
	}
	if err := s.mend(); err != nil {
		return err
	}
	// Whatever arrives in this time is no loss; what does not is one.
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.patience)
	defer cancel()
	waitFor(patience, func() bool { return s.got.compare(ledgerOf(s.zulip)).lost == 0 || !s.bridge.alive() })
	if err := s.bridge.stop(); err != nil {
		return err
	}
	kept, err := readBack(s.url)
	if err != nil {
		return fmt.Errorf("the stream cannot be read again: %w", err)
	}
	sent := ledgerOf(s.zulip)
	stored, seen := kept.compare(sent), s.got.compare(sent)
	fmt.Fprintf(stdout, "\nsent by Zulip %d, stored %d, seen by the subscriber %d, lost %d, twice %d\n", stored.sent,
		stored.arrived, seen.arrived, stored.lost, stored.twice)
	if _, _, gaps := kept.count(); gaps > 0 {
		fmt.Fprintln(stdout, "Of the time without a queue Zulip has messages only, as the gap's record says.")
	}
	if !stored.good() || !seen.good() {
		return fmt.Errorf("the stream does not hold what Zulip sent, or not as it was sent: stored %+v, seen %+v", stored,
			seen)
	}
	fmt.Fprint(stderr, "\nNow with yours: make a bot (in Zulip: Settings > Bots), save its zuliprc, and\n"+
		"  zulip-nats run --zuliprc zuliprc --show\n")
	return nil
}

// writeRC writes the zuliprc of a bot, as Zulip serves it.
func (s *show) writeRC(site string) error {
	bot := s.zulip.Account("bridge-bot@example.com")
	s.zulip.Channel("ops") // which all see, so that the bot is subscribed to something
	s.rc = filepath.Join(s.dir, "zuliprc")
	return os.WriteFile(s.rc, fmt.Appendf(nil, "[api]\nemail=%s\nkey=%s\nsite=%s\n", bot.Email, bot.Key, site), 0o600)
}

// startNATS starts the server, the first time or again: then on the same port, and with what
// it had stored.
func (s *show) startNATS() error {
	o := embedded.Options{Dir: filepath.Join(s.dir, "nats"), Port: s.port,
		Log: newLog(s.stderr, s.logFormat, s.logLevel)}
	again := s.url != ""
	var err error
	patience, cancel := context.WithTimeout(context.Background(), demoPatience)
	defer cancel()
	waitFor(patience, func() bool {
		s.nats, err = embedded.Start(o)
		// Meanwhile the system may have given the port to somebody, for a while.
		return !again || !errors.Is(err, embedded.ErrPortTaken)
	})
	switch {
	case errors.Is(err, embedded.ErrPortTaken):
		return hint(err, "choose another one with --nats-port")
	case err != nil:
		return err
	}
	s.url = s.nats.URL()
	at, err := url.Parse(s.url)
	if err == nil {
		s.port, err = strconv.Atoi(at.Port())
	}
	return err
}

// stopNATS stops it, if it runs.
func (s *show) stopNATS() {
	if s.nats != nil {
		s.nats.Shutdown()
		s.nats = nil
	}
}

func (s *show) startBridge() (*child, error) {
	var stderr io.Writer
	if s.logLevel != zerolog.Disabled {
		stderr = s.stderr
	}
	return startChild([]string{"--zuliprc", s.rc, "--nats-url", s.url, "--realm", "demo", "--no-lease"}, s.logLevel,
		s.logFormat, stderr, s.end)
}

// mend starts again what a stop in the middle of the story found stopped.
func (s *show) mend() (err error) {
	if s.nats == nil {
		err = s.startNATS()
	}
	s.zulip.Up()
	if err == nil && !s.bridge.alive() {
		s.bridge, err = s.startBridge()
	}
	return err
}

// oneByOne lets several goroutines write, each a whole line at a time.
type oneByOne struct {
	mu sync.Mutex
	w  io.Writer
}

func (o *oneByOne) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.w.Write(p)
}

// waitFor waits until ready, or until ctx ends; it says whether it became ready.
func waitFor(ctx context.Context, ready func() bool) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// demoStream is the stream that the bridge makes.
const demoStream = "ZULIP_demo"

// reader is a connection of somebody who reads, for whom NATS may come and go, on a machine
// that may be busy.
func reader(url string) (jetstream.JetStream, error) {
	nc, err := nats.Connect(url, nats.Name("zulip-nats demo subscriber"), nats.MaxReconnects(-1),
		nats.ReconnectWait(100*time.Millisecond), nats.Timeout(demoPatience/2))
	if err != nil {
		return nil, err
	}
	return jetstream.New(nc, jetstream.WithDefaultTimeout(demoPatience/2))
}

// subscribe reads the stream from its beginning, as `tail` does, until ctx ends. It prints
// what happens, and puts each message in got.
func subscribe(ctx context.Context, url string, pretty *tail.Pretty, got *arrivals) error {
	js, err := reader(url)
	if err != nil {
		return err
	}
	defer js.Conn().Close()
	waitFor(ctx, func() bool { // the bridge makes it
		_, err = js.Stream(ctx, demoStream)
		return err == nil || !errors.Is(err, jetstream.ErrStreamNotFound)
	})
	if err != nil {
		return err
	}
	return tail.Run(ctx, tail.Options{JetStream: js, Stream: demoStream, Realm: "demo", From: 1, Show: pretty,
		Seen: got.add})
}

// readBack reads the whole stream once more.
func readBack(url string) (*arrivals, error) {
	ctx, cancel := context.WithTimeout(context.Background(), demoPatience)
	defer cancel()
	js, err := reader(url)
	if err != nil {
		return nil, err
	}
	defer js.Conn().Close()
	kept := &arrivals{}
	err = tail.Run(ctx, tail.Options{JetStream: js, Stream: demoStream, Realm: "demo", From: 1, NoFollow: true,
		Show: tail.Raw{W: io.Discard}, Seen: kept.add})
	if errors.Is(err, jetstream.ErrStreamNotFound) { // stopped before the bridge had made it
		err = nil
	}
	return kept, errors.Join(err, ctx.Err())
}
