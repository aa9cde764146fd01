package integration_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
	"zulip-nats/subjects"
	"zulip-nats/zulipsim"
)

var kills = flag.Int("kills", harness.Fewer(100, 25), "how often TestKill9 kills the bridge")

func TestMain(m *testing.M) {
	if url := os.Getenv(idleRealms); url != "" {
		if err := idleProcess(url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	harness.Main(m, harness.Fewer(12, 6))
}

// world is a Zulip, a realm's place on a nats-server, and the programs between them.
type world struct {
	t     testing.TB
	zulip *zulipsim.Server
	bot   *zulipsim.Account
	realm string
	site  string // URL of Zulip
	nats  string // URL of NATS
	rc    string // path of the zuliprc

	// stream is the stream's name, ZULIP_<realm> unless a test has made another.
	stream string
	js     jetstream.JetStream

	acking sync.Mutex
	acked  map[string]int64 // by queue: up to where the events are known to be stored

	talking sync.Mutex
	sent    []int64 // messages that people may edit or react to
	marks   int     // how many there were

	started  time.Time // when the newest program was
	observer string    // a queue of the test's own, "" without one
}

const (
	realmName = "acme"
	botEmail  = "bridge-bot@example.com"
)

// newWorld makes a world around a nats-server; the simulator may be set up before by
// configure. Whatever a program acknowledges to Zulip without having stored it, and every
// request that comes too soon after a 429, fails the test.
func newWorld(t testing.TB, natsURL string, configure ...func(*zulipsim.Server)) *world {
	t.Helper()
	w := prepareWorld(t, natsURL, configure...)
	w.zulip.Complain(t, w.isStored)
	w.open("127.0.0.1:0")
	return w
}

// prepareWorld is newWorld with Zulip not up yet, and without the watch on
// acknowledgements, which is the caller's to begin.
func prepareWorld(t testing.TB, natsURL string, configure ...func(*zulipsim.Server)) *world {
	t.Helper()
	w := &world{t: t, zulip: &zulipsim.Server{}, realm: realmName, nats: natsURL, stream: "ZULIP_" + realmName,
		acked: map[string]int64{}}
	for _, f := range configure {
		f(w.zulip)
	}
	w.bot = w.zulip.Account(botEmail)
	nc, err := nats.Connect(natsURL, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	w.js = natstest.JetStream(t, nc)
	return w
}

// open starts Zulip and writes the zuliprc.
func (w *world) open(address string) {
	w.t.Helper()
	url, stop, err := w.zulip.Listen(address)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(stop)
	w.site = url
	w.writeRC(w.bot.Key)
}

// writeRC writes the zuliprc that Zulip would serve for the bot, with that key.
func (w *world) writeRC(key string) {
	w.t.Helper()
	if w.rc == "" {
		w.rc = filepath.Join(w.t.TempDir(), "zuliprc")
	}
	harness.WriteZuliprc(w.t, w.rc, w.bot.Email, key, w.site)
}

// run starts the program as a user does. It is killed when the test ends.
func (w *world) run(more ...string) *harness.Process {
	w.t.Helper()
	return w.runAs(func(*exec.Cmd) {}, more...)
}

// runAs is run of a command that may be changed before.
func (w *world) runAs(change func(*exec.Cmd), more ...string) *harness.Process {
	w.t.Helper()
	w.started = time.Now()
	return startAs(w.t, change, append([]string{"run", "--zuliprc", w.rc, "--nats-url", w.nats, "--realm", w.realm},
		more...)...)
}

// start starts the program, and kills it when the test ends.
func start(t testing.TB, args ...string) *harness.Process {
	t.Helper()
	return startAs(t, func(*exec.Cmd) {}, args...)
}

func startAs(t testing.TB, change func(*exec.Cmd), args ...string) *harness.Process {
	t.Helper()
	p, err := harness.StartAs(harness.NewJournal(t, "the program"), change, args...)
	harness.Must(t, err)
	t.Cleanup(p.Kill)
	return p
}

// runInside runs the bridge inside the test process, with the parts that the program is
// made of, until stop is called or the test ends.
func runInside(t testing.TB, natsURL, realm string, account poller.Account,
	log zerolog.Logger) (stop func()) {
	t.Helper()
	r, err := subjects.ParseRealm(realm)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	nc, err := stream.Connect(ctx, stream.ConnectConfig{URL: natsURL, Name: t.Name(), Log: log})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	b := bridge.New(bridge.Config{
		Realm: r, Site: account.Site, Account: account.Email, Writer: "inside", Version: "test", Log: log,
		Poller: &poller.Poller{
			Client:  &poller.Client{Account: func() (poller.Account, error) { return account, nil }},
			Options: poller.DefaultOptions(), Log: log,
		},
		Open: func(ctx context.Context) (bridge.Stream, error) {
			s, err := stream.Open(ctx, nc, stream.Config{Realm: realm, Filter: r.All(), Version: "test"})
			if err != nil {
				return nil, err
			}
			return s, nil
		},
	})
	var running sync.WaitGroup
	running.Go(func() {
		if err := b.Run(ctx); err != nil && ctx.Err() == nil {
			t.Errorf("the bridge ended: %v", err)
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		nc.Close()
	})
	t.Cleanup(stop)
	return stop
}

// registered waits until a poll of the program that was started last waits, and gives the
// queue: it is made and recorded, or resumed.
func (w *world) registered() zulipsim.QueueInfo {
	w.t.Helper()
	return harness.EventuallyQueue(w.t, "a poll that waits", w.queues, func(q zulipsim.QueueInfo) bool {
		return q.Waiting && q.LastWait.After(w.started)
	})
}

// polling waits until the program that was started last has polled, for when so much
// happens that no poll ever waits.
func (w *world) polling() {
	w.t.Helper()
	harness.Eventually(w.t, "a poll", func() bool {
		for _, r := range w.zulip.Requests() {
			if r.Kind == zulipsim.Events && r.Time.After(w.started) {
				return true
			}
		}
		return false
	})
}

// queues are the queues that are not the test's own.
func (w *world) queues() []zulipsim.QueueInfo {
	var own []zulipsim.QueueInfo
	for _, q := range w.zulip.Queues() {
		if q.ID != w.observer {
			own = append(own, q)
		}
	}
	return own
}

// settle waits until nothing is pending and a poll waits: all that happened is
// acknowledged then, and has to be stored.
func (w *world) settle() {
	w.t.Helper()
	harness.EventuallyQueue(w.t, "an empty queue with a poll that waits", w.queues, func(q zulipsim.QueueInfo) bool {
		return q.Waiting && q.Pending == 0
	})
}

// talk lets n things happen at Zulip: mostly messages, and everything that people do with
// messages.
func (w *world) talk(rng *rand.Rand, n int) {
	people := []string{"ada@example.com", "grace@example.com", "Ünal@example.com"}
	channels := []string{"general", "release > notes", "日本語", "build.* ☂"}
	for range n {
		by := people[rng.IntN(len(people))]
		w.talking.Lock()
		var old int64
		if len(w.sent) > 0 {
			old = w.sent[rng.IntN(len(w.sent))]
		}
		w.talking.Unlock()
		dice := rng.IntN(100)
		if old == 0 {
			dice = 0
		}
		m := zulipsim.Message{Channel: channels[rng.IntN(len(channels))], Topic: "t", Sender: by,
			Content: fmt.Sprintf("**%d** \"quoted\" \\ \U0001f41b `%x`", rng.Uint32(), rng.Uint64())}
		switch {
		case dice < 60:
			id := w.zulip.SendMessage(m)
			w.talking.Lock()
			w.sent = append(w.sent, id)
			w.talking.Unlock()
		case dice < 65:
			m.Channel, m.To = "", []string{botEmail}
			w.zulip.SendMessage(m)
		case dice < 75:
			w.zulip.React(old, by, []string{"tada", "bug", "owl", "fire"}[rng.IntN(4)])
		case dice < 85: // merges while it is not read, which leaves gaps between ids
			w.zulip.Flag(botEmail, "add", []string{"read", "starred"}[rng.IntN(2)], old)
		case dice < 90:
			text := fmt.Sprintf("edited %d", rng.Uint32())
			w.zulip.EditMessage(old, zulipsim.Edit{Content: &text})
		case dice < 95:
			w.zulip.Typing(by, "start", m.Channel, "t")
		default:
			w.zulip.Emit(map[string]any{"type": "user_status", "user_id": rng.IntN(100), "status_text": "büsy"})
		}
	}
}

// chat is talk at a pace, so many happenings a second, until stop is called.
func (w *world) chat(chance *rand.Rand, perSecond int) (stop func()) {
	rng := rand.New(rand.NewPCG(chance.Uint64(), 1)) // the caller goes on with its own
	ctx, cancel := context.WithCancel(context.Background())
	var talking sync.WaitGroup
	talking.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.talk(rng, 1)
			case <-ctx.Done():
				return
			}
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		talking.Wait()
	})
	w.t.Cleanup(stop)
	return stop
}

// natsServer is a nats-server inside the test process.
func natsServer(t testing.TB) string { return natstest.Start(t).URL }

// unlimited switches Zulip's rate limits off, for tests that start the program again and
// again.
func unlimited(z *zulipsim.Server) {
	z.EventsRules, z.APIRules = []zulipsim.RateRule{}, []zulipsim.RateRule{}
}

// last is the newest message of the realm; nil if there is none.
func (w *world) last() (*jetstream.RawStreamMsg, error) {
	return harness.LastOf(w.js, w.stream, w.realm)
}

// writer is who stored the newest message of the realm, "" if there is none. NATS has to
// be there.
func (w *world) writer() string {
	w.t.Helper()
	if m := w.newest(); m != nil {
		return m.Header.Get(events.HeaderWriter)
	}
	return ""
}

// newest is the newest message of the realm, nil if there is none. It asks until NATS has
// answered: that nobody knows is not that there is nothing.
func (w *world) newest() (m *jetstream.RawStreamMsg) {
	w.t.Helper()
	harness.Eventually(w.t, "an answer of NATS", func() bool {
		var err error
		m, err = w.last()
		return err == nil
	})
	return m
}
