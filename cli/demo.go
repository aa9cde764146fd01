package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	urfave "github.com/urfave/cli/v2"

	"zulip-nats/embedded"
	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/tail"
	"zulip-nats/zulipsim"
)

// demoConfig is what `demo` was told.
type demoConfig struct {
	length    time.Duration // zero: until stopped
	port      int           // zero: any that is free
	logLevel  zerolog.Level
	logFormat LogFormat
}

func (a *app) demo() *urfave.Command {
	// Only warnings: the lines of the log would stand between the lines that one wants to
	// see.
	d := demoConfig{logLevel: zerolog.WarnLevel, logFormat: LogAuto}
	options := append([]*option{
		opt("", "for", "end after `TIME`", "until stopped", duration(&d.length, time.Second, 24*time.Hour)),
		opt("", "nats-port", "`PORT` of 127.0.0.1 for the NATS server, for subscribers of your own", "one that is free",
			number(&d.port, 1, 65535)),
	}, logOptions(&d.logLevel, &d.logFormat, "warn")...)
	return &urfave.Command{
		Name:      "demo",
		Usage:     "show it all with a Zulip that exists only here",
		UsageText: "zulip-nats demo [--for 30s] [--nats-port PORT]",
		Description: "Starts a simulated Zulip where people talk, a NATS server, the bridge between them, and a " +
			"subscriber that prints what arrives.\nNeeds nothing and leaves nothing. At the end what the simulator " +
			"sent is compared with what the subscriber got.",
		Flags: flags(options),
		Action: func(u *urfave.Context) error {
			if err := parse(options); err != nil {
				return err
			}
			log := newLog(a.stderr, d.logFormat, d.logLevel)
			return demo(u.Context, &d, a.stdout, a.stderr, log)
		},
	}
}

// The demo's pace: about one happening each time.
const demoEvery = 150 * time.Millisecond

// demo is the command. Its end has an order, so that the comparison is fair: people fall
// silent, the subscriber gets what is under way, the bridge stops, and only then is
// counted.
func demo(ctx context.Context, d *demoConfig, stdout, stderr io.Writer, log zerolog.Logger) error {
	zulip := &zulipsim.Server{RealmName: "Demo"}
	site, stop, err := zulip.Listen("127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("the simulated Zulip does not start: %w", err)
	}
	defer stop()

	dir, err := os.MkdirTemp("", "zulip-nats-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	server, err := embedded.Start(embedded.Options{Dir: dir, Port: d.port, Log: log})
	if errors.Is(err, embedded.ErrPortTaken) {
		return hint(err, "choose another one with --nats-port")
	}
	if err != nil {
		return err
	}
	defer server.Shutdown()
	fmt.Fprintf(stderr, "A simulated Zulip, a NATS server at %s, and zulip-nats between them. Ctrl-C ends it.\n\n",
		server.URL())

	bot := zulip.Account("bridge-bot@example.com")
	zulip.Channel("ops") // which all see, so that the bot is subscribed to something
	account := poller.Account{Email: bot.Email, Key: bot.Key, Site: site}
	c := defaults()
	c.NATS.URL, c.embedded = server.URL(), true
	c.NoLease = true // there is one instance
	c.Realms[0].Name = "demo"
	g, err := newGreeting(&c.Realms[0], func() (poller.Account, error) { return account, nil }, log)
	if err != nil {
		return err
	}
	conn, err := connect(ctx, &c, log)
	if err != nil {
		return err
	}
	defer conn.Close()
	b := buildBridge(conn, &c, &c.Realms[0], g, writerName())

	// The bridge and the subscriber outlive the signal: they finish what is under way.
	var work sync.WaitGroup
	defer work.Wait()
	bridgeCtx, stopBridge := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBridge()
	ended := make(chan error, 2)
	work.Go(func() {
		err := b.Run(bridgeCtx)
		if err == nil {
			err = errStopped
		}
		ended <- err
	})
	var got arrivals
	readCtx, stopReading := context.WithCancel(context.WithoutCancel(ctx))
	defer stopReading()
	work.Go(func() {
		if err := subscribe(readCtx, server.URL(), stdout, &got); readCtx.Err() == nil {
			ended <- err
		}
	})

	talkCtx, silence := context.WithCancel(ctx)
	defer silence()
	if d.length > 0 {
		talkCtx, silence = context.WithTimeout(talkCtx, d.length)
		defer silence()
	}
	var talk sync.WaitGroup
	talk.Go(func() {
		// What is said before the bridge has a queue, nobody hears.
		if waitFor(talkCtx, func() bool { return len(zulip.Queues()) > 0 }) {
			zulip.Chatter(talkCtx, uint64(time.Now().UnixNano()), demoEvery)
		}
	})
	select {
	case <-talkCtx.Done():
	case err = <-ended:
	}
	silence()
	talk.Wait()
	if err != nil {
		return fmt.Errorf("the demo broke off: %w", err)
	}

	// Whatever arrives in this time is no loss; what does not is one.
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	waitFor(patience, func() bool { return got.compare(zulip.Queues()).lost == 0 })
	stopBridge()
	if err := <-ended; !errors.Is(err, errStopped) {
		return fmt.Errorf("the demo broke off: %w", err)
	}
	result := got.compare(zulip.Queues())
	fmt.Fprintf(stdout, "\nsent %d, stored %d, lost %d, doubled %d, out of order %d (and records of the bridge: %d)\n",
		result.sent, result.stored, result.lost, result.doubled, result.disordered, result.records)
	if result.lost+result.doubled+result.disordered > 0 {
		return errors.New("the stream does not hold what Zulip sent")
	}
	fmt.Fprint(stderr, "\nNow with yours: make a bot (in Zulip: Settings > Bots), download its zuliprc, and\n"+
		"  zulip-nats run --zuliprc zuliprc --show\n")
	return nil
}

// errStopped is the end that was asked for.
var errStopped = errors.New("stopped")

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

// demoWidth is the columns that the demo's lines take at most: a picture of it has a place
// everywhere.
const demoWidth = 80

// subscribe reads the stream from its beginning, as `tail` does, until ctx ends. It prints
// what happens, and puts each message in got.
func subscribe(ctx context.Context, url string, stdout io.Writer, got *arrivals) error {
	nc, err := nats.Connect(url, nats.Name("zulip-nats demo subscriber"))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	waitFor(ctx, func() bool { // the bridge makes it
		_, err = js.Stream(ctx, "ZULIP_demo")
		return err == nil || !errors.Is(err, jetstream.ErrStreamNotFound)
	})
	if err != nil {
		return err
	}
	pretty := prettyOn(stdout)
	pretty.Subjects = true
	if pretty.Width == 0 || pretty.Width > demoWidth {
		pretty.Width = demoWidth
	}
	return tail.Run(ctx, tail.Options{JetStream: js, Stream: "ZULIP_demo", Realm: "demo", From: 1, Show: pretty,
		Seen: got.add})
}

// arrivals is what the subscriber got, in the order of the stream.
type arrivals struct {
	mu      sync.Mutex
	events  []arrival
	records int
}

type arrival struct {
	queue string
	id    int64
	data  []byte
}

func (a *arrivals) add(e *events.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e.Record != "" || e.ID < 0 {
		a.records++
		return
	}
	a.events = append(a.events, arrival{e.Queue, e.ID, bytes.Clone(e.Raw)})
}

// comparison is what the simulator put in queues beside what arrived.
type comparison struct {
	sent       int // events in the queues of the account
	stored     int // of those, how many arrived with the same bytes
	lost       int // how many did not
	doubled    int // how often one arrived again
	disordered int // how often one arrived behind a later one of the same queue
	records    int
}

func (a *arrivals) compare(queues []zulipsim.QueueInfo) comparison {
	type key struct {
		queue string
		id    int64
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c := comparison{records: a.records}
	arrived := make(map[key][]byte, len(a.events))
	last := make(map[string]int64)
	for _, e := range a.events {
		k := key{e.queue, e.id}
		if _, again := arrived[k]; again {
			c.doubled++
			continue
		}
		arrived[k] = e.data
		if before, ok := last[e.queue]; ok && e.id < before {
			c.disordered++
		}
		last[e.queue] = max(last[e.queue], e.id)
	}
	for _, q := range queues {
		for _, e := range q.Events {
			c.sent++
			if data, ok := arrived[key{q.ID, e.ID}]; ok && bytes.Equal(data, e.Raw) {
				c.stored++
			} else {
				c.lost++
			}
		}
	}
	return c
}
