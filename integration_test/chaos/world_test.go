package chaos_test

import (
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

var kills = flag.Int("kills", harness.Fewer(64, 24),
	"how often TestChaos kills, stops or pauses a process, in all scenarios together")

func TestMain(m *testing.M) {
	signal.Ignore(syscall.SIGXFSZ) // a write beyond a limit is an error then, and not the end of a server that is this test binary
	harness.Main(m, harness.Fewer(10, 5))
}

// world is one organization: a Zulip, a realm's place on NATS, and what the test knows of
// both.
type world struct {
	t      testing.TB
	zulip  *zulipsim.Server
	realm  string
	stream string // ZULIP_<realm>
	nats   string // URL of NATS for the program
	rc     string // path of the zuliprc
	nc     *nats.Conn
	js     jetstream.JetStream // the test's own view

	mu    sync.Mutex
	acked map[harness.EventKey]time.Time // when Zulip was first told that an event may be forgotten

	talking sync.Mutex
	sent    []int64 // messages that people may edit or react to
}

const botEmail = "bridge-bot@example.com"

// newWorld makes a world. The program connects to natsURL, the test itself to view, which
// is the same unless something stands between; it may be down still. What Zulip complains
// about fails the test, but for what configure tolerates.
func newWorld(t testing.TB, realm, natsURL, view string, configure ...func(*zulipsim.Server)) *world {
	t.Helper()
	w := &world{t: t, realm: realm, stream: "ZULIP_" + realm, nats: natsURL, acked: map[harness.EventKey]time.Time{}}
	// Programs are started so often that the limits which Zulip ships with would be all
	// that the test waits for.
	w.zulip = &zulipsim.Server{EventsRules: []zulipsim.RateRule{}, APIRules: []zulipsim.RateRule{}, OnAck: w.onAck}
	for _, f := range configure {
		f(w.zulip)
	}
	bot := w.zulip.Account(botEmail)
	w.zulip.Complain(t, nil) // what is stored is compared at the end, with the times
	site := w.zulip.Start(t)
	w.rc = filepath.Join(t.TempDir(), "zuliprc")
	harness.WriteZuliprc(t, w.rc, bot.Email, bot.Key, site)
	nc, err := nats.Connect(view, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(50*time.Millisecond),
		nats.PingInterval(2*time.Second))
	harness.Must(t, err)
	t.Cleanup(nc.Close)
	w.nc = nc
	w.js = natstest.JetStream(t, nc)
	return w
}

// onAck notes when an event was acknowledged first: Zulip is about to forget it.
func (w *world) onAck(queue string, id int64, _ []byte) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, again := w.acked[harness.EventKey{Queue: queue, ID: id}]; !again {
		w.acked[harness.EventKey{Queue: queue, ID: id}] = now
	}
}

// run starts the program; what it says goes to j, which may belong to several starts.
func (w *world) run(j *harness.Journal, more ...string) (*harness.Process, error) {
	args := []string{"run", "--zuliprc", w.rc, "--nats-url", w.nats, "--realm", w.realm, "--log-format", "json"}
	return harness.Start(j, append(args, more...)...)
}

// follow starts the program for a test that runs one of it, and kills it when the test
// ends.
func (w *world) follow(more ...string) *harness.Process {
	w.t.Helper()
	p, err := w.run(harness.NewJournal(w.t, w.realm), more...)
	harness.Must(w.t, err)
	w.t.Cleanup(p.Kill)
	return p
}

// queues are what Zulip has for the program.
func (w *world) queues() []zulipsim.QueueInfo { return w.zulip.Queues() }

// polled waits until a poll waits, and returns its queue.
func (w *world) polled() zulipsim.QueueInfo {
	w.t.Helper()
	return harness.EventuallyQueue(w.t, "a poll of "+w.realm+" that waits", w.queues,
		func(q zulipsim.QueueInfo) bool { return q.Waiting })
}

// settle waits until nothing is pending and a poll waits: all that happened is
// acknowledged then, and has to be stored.
func (w *world) settle() {
	w.t.Helper()
	harness.EventuallyQueue(w.t, "an empty queue of "+w.realm+" with a poll that waits", w.queues, settled)
}

func settled(q zulipsim.QueueInfo) bool { return q.Waiting && q.Pending == 0 }

// talk lets n things happen at Zulip: messages, and what people do with them.
func (w *world) talk(rng *rand.Rand, n int) {
	people := []string{"ada@example.com", "grace@example.com", "Ünal@example.com"}
	channels := []string{"general", "release > notes", "日本語"}
	for range n {
		by := people[rng.IntN(len(people))]
		w.talking.Lock()
		var old int64
		if len(w.sent) > 0 {
			old = w.sent[rng.IntN(len(w.sent))]
		}
		w.talking.Unlock()
		switch dice := rng.IntN(100); {
		case dice < 25 || old == 0:
			id := w.zulip.SendMessage(zulipsim.Message{Channel: channels[rng.IntN(len(channels))],
				Topic: "t", Sender: by,
				Content: fmt.Sprintf("**%d** \"quoted\" \\ \U0001f41b `%x`", rng.Uint32(), rng.Uint64())})
			w.talking.Lock()
			w.sent = append(w.sent, id)
			w.talking.Unlock()
		case dice < 35:
			w.zulip.React(old, by, []string{"tada", "bug", "owl", "fire"}[rng.IntN(4)])
		case dice < 40:
			text := fmt.Sprintf("edited %d", rng.Uint32())
			w.zulip.EditMessage(old, zulipsim.Edit{Content: &text})
		default:
			w.zulip.Emit(map[string]any{"type": "user_status", "user_id": rng.IntN(100),
				"status_text": strings.Repeat("büsy ", rng.IntN(40))})
		}
	}
}

// sized makes one event of that many bytes and a little more.
func (w *world) sized(size int) {
	w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 7, "status_text": strings.Repeat("x", size)})
}

// random makes one event of that many bytes and a little more that hardly compress.
func (w *world) random(rng *rand.Rand, size int) {
	b := make([]byte, size/2)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 7, "status_text": hex.EncodeToString(b)})
}

// chat is talk without end, one by one and in bursts, until stop is called. size is how
// many happenings a burst has at most.
func (w *world) chat(seed uint64, burst int) (stop func()) {
	rng := rand.New(rand.NewPCG(seed, 1))
	ctx, cancel := context.WithCancel(context.Background())
	var talking sync.WaitGroup
	talking.Go(func() {
		for ctx.Err() == nil {
			switch dice := rng.IntN(300); {
			case dice < 3 && burst > 0:
				w.talk(rng, 1+rng.IntN(burst))
			case dice == 3:
				w.sized(60_000 + rng.IntN(60_000))
			case dice == 4 && burst > 0: // more than a message may have
				w.sized(1_100_000)
			default:
				w.talk(rng, 1)
			}
			select {
			case <-time.After(time.Duration(rng.ExpFloat64() * float64(30*time.Millisecond))):
			case <-ctx.Done():
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

// makeStream makes the realm's stream as an operator does, or changes it.
func (w *world) makeStream(replicas int) {
	w.t.Helper()
	harness.Eventually(w.t, "stream "+w.stream+" to be made", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := w.js.CreateStream(ctx, jetstream.StreamConfig{
			Name: w.stream, Subjects: []string{"zulip." + w.realm + ".>"}, Replicas: replicas,
			Compression: jetstream.S2Compression,
			AllowDirect: true, AllowMsgTTL: true, AllowAtomicPublish: true, AllowBatchPublish: true,
		})
		return err == nil
	})
}

// writer is who stored the newest message of the realm, "" if that cannot be said now.
func (w *world) writer() string { return harness.WriterOf(w.js, w.stream, w.realm) }
