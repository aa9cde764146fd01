package integration_test

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

var (
	fleetRealms = flag.Int("realms", harness.Fewer(24, 12), "how many realms TestFleet has")
	fleetStage  = flag.Duration("stage", 5*time.Second, "how long TestFleet lets people talk between two strokes of fate")
)

// fleetWorld is many organizations on one nats-server, and programs that share them.
type fleetWorld struct {
	t      testing.TB
	nats   string
	config string // path of the file that the programs share
	realms []*world

	// What the file has: the keys of the bots, and of which realms; further lines of some;
	// the level of the log; a section about all queues.
	keys  []string
	only  []int // nil: all
	more  map[int]string
	log   string
	queue string

	mu      sync.Mutex
	writers map[string]string    // by realm, who stored last
	since   map[string]time.Time // by realm, when that one stored first
}

// newFleet makes organizations with a bot each, a file that has all of them, and an eye on
// who stores what.
func newFleet(t testing.TB, n int) *fleetWorld {
	server := natstest.StartProcess(t, "")
	f := &fleetWorld{t: t, nats: server.URL, config: filepath.Join(t.TempDir(), "zulip-nats.ini"),
		writers: map[string]string{}, since: map[string]time.Time{}}
	for i := range n {
		w := prepareWorld(t, server.URL, unlimited, func(z *zulipsim.Server) {
			z.Seed = uint64(i)
			z.Tolerate = []zulipsim.Complaint{zulipsim.AckPruned} // a poll of a paused one may still be on its way
		})
		w.realm, w.stream = fmt.Sprintf("r%d", i), fmt.Sprintf("ZULIP_r%d", i)
		w.zulip.Complain(t, w.isStored)
		w.open("127.0.0.1:0")
		f.realms, f.keys = append(f.realms, w), append(f.keys, w.bot.Key)
	}
	f.configure()
	nc, err := nats.Connect(server.URL)
	harness.Must(t, err)
	t.Cleanup(nc.Close)
	_, err = nc.Subscribe("zulip.>", func(m *nats.Msg) {
		realm, writer := strings.Split(m.Subject, ".")[1], m.Header.Get(events.HeaderWriter)
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.writers[realm] != writer {
			f.writers[realm], f.since[realm] = writer, time.Now()
		}
	})
	harness.Must(t, err)
	harness.Must(t, nc.Flush())
	return f
}

// configure writes the file.
func (f *fleetWorld) configure() {
	f.t.Helper()
	text := fmt.Sprintf("[nats]\nnats-url = %s\n[log]\nlog-level = %s\n%s", f.nats, cmp.Or(f.log, "info"), f.queue)
	for i, w := range f.realms {
		if f.only != nil && !slices.Contains(f.only, i) {
			continue
		}
		text += fmt.Sprintf("\n[realm %q]\nemail = %s\nkey = %s\nsite = %s\n", w.realm, botEmail, f.keys[i], w.site) +
			f.more[i]
	}
	harness.WriteFile(f.t, f.config+".new", text)
	harness.Must(f.t, os.Rename(f.config+".new", f.config)) // a SIGHUP may come at any moment, and half a file is one, too
}

// run starts a program on the file.
func (f *fleetWorld) run() *harness.Process {
	f.t.Helper()
	return start(f.t, "run", "--config", f.config)
}

// of are the realms whose newest message a program has stored.
func (f *fleetWorld) of(p *harness.Process) (names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for realm, writer := range f.writers {
		if p.Wrote(writer) {
			names = append(names, realm)
		}
	}
	return names
}

// even waits until each of the programs has stored the newest messages of its share of the
// realms.
func (f *fleetWorld) even(programs ...*harness.Process) {
	f.t.Helper()
	least, most := len(f.realms)/len(programs), (len(f.realms)+len(programs)-1)/len(programs)
	harness.Eventually(f.t, fmt.Sprintf("%d to %d realms each", least, most), func() bool {
		for _, p := range programs {
			if n := len(f.of(p)); n < least || n > most {
				return false
			}
		}
		return true
	})
}

// taken waits until others have stored something of these realms, and says how long that
// took from a moment on, sorted.
func (f *fleetWorld) taken(what string, realms []string, from *harness.Process, since time.Time) []time.Duration {
	f.t.Helper()
	took := map[string]time.Duration{}
	harness.Eventually(f.t, "events of all realms stored by others after "+what, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, realm := range realms {
			if !from.Wrote(f.writers[realm]) {
				took[realm] = max(f.since[realm].Sub(since), 0)
			}
		}
		return len(took) == len(realms)
	})
	return slices.Sorted(maps.Values(took))
}

// TestFleet lets three programs share many realms while people talk in all of them: a
// program is added, killed, paused, stopped. In the end each event is in its stream once
// and in order, each organization has had one queue, and the realms are shared evenly.
//
//	go test ./integration_test -run TestFleet -v -realms 300 -stage 2m -timeout 60m
func TestFleet(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	f := newFleet(t, *fleetRealms)
	a, b := f.run(), f.run()
	for _, w := range f.realms {
		w.registered()
	}
	var stops []func()
	for _, w := range f.realms {
		stops = append(stops, w.chat(rng, 2))
	}
	talk := func() {
		time.Sleep(*fleetStage)
		for _, p := range []*harness.Process{a, b} {
			if !p.Alive() {
				t.Error("a program ended")
			}
		}
	}
	f.even(a, b)
	talk()

	began := time.Now()
	c := f.run()
	f.even(a, b, c)
	t.Logf("a third one came: even after %v", time.Since(began).Round(time.Millisecond))
	talk()

	report := func(what string, took []time.Duration) {
		t.Logf("%s: %d realms; until another one stored an event p50 %v, max %v", what, len(took),
			took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	}
	held := f.of(c)
	began = time.Now()
	c.Kill()
	report("kill -9", f.taken("kill -9", held, c, began))
	f.even(a, b)
	talk()

	held = f.of(b)
	began = time.Now()
	b.Pause()
	report("paused", f.taken("the pause", held, b, began))
	b.Resume()
	f.even(a, b)
	talk()

	c = f.run()
	f.even(a, b, c)
	held = f.of(a)
	began = time.Now()
	a.Signal(syscall.SIGTERM)
	report("SIGTERM", f.taken("SIGTERM", held, a, began))
	if code := a.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	a = f.run()
	f.even(a, b, c)
	talk()

	for _, stop := range stops {
		stop()
	}
	f.whole()
}

// whole fails the test unless each event of each realm is stored once and in order, and
// each organization has stayed on its queue, but for change-overs: on a machine that is too
// slow for the pace of the talk they are right. Call it when nobody talks any more.
func (f *fleetWorld) whole() {
	f.t.Helper()
	all := 0
	for _, w := range f.realms {
		w.settle()
		found := w.check().clean(f.t)
		all += found.events
		w.oneQueue(found, 0)
	}
	f.t.Logf("%d realms, %d events: each once, in order, and no queue lost", len(f.realms), all)
}

// TestFleetOfTroubles: one realm whose key is refused, one whose Zulip is not there, one
// whose stream would break the promise. A fourth one goes on as if nothing was.
func TestFleetOfTroubles(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 4)
	good, refused, absent, broken := f.realms[0], f.realms[1], f.realms[2], f.realms[3]
	right := f.keys[1]
	f.keys[1] = strings.Repeat("x", 32)
	absent.site = "http://127.0.0.1:1"
	natstest.CreateStream(t, broken.js, jetstream.StreamConfig{Name: broken.stream,
		Subjects: []string{"zulip." + broken.realm + ".>"}, Retention: jetstream.WorkQueuePolicy})
	f.configure()
	p := f.run()
	good.registered()
	p.Expect("realm_halted", refused.realm)
	p.Expect("realm_halted", broken.realm)
	p.Expect("zulip_away", absent.realm)
	stop := good.chat(rand.New(rand.NewPCG(1, 1)), 20)
	time.Sleep(*fleetStage)
	stop()
	good.settle()
	good.check().clean(t)
	f.keys[1] = right
	f.configure()
	refused.registered()
	refused.mark(3)
	refused.settle()
	refused.check().clean(t)
	if !p.Alive() {
		t.Error("the program ended")
	}
}

// TestReload changes the file of a program that runs: realms are added, changed and
// removed, a key is exchanged, and the level of the log. Only who is removed has stopped,
// as delete-queue sees it. A realm of which nothing changed
// does not notice, be it in the middle of a burst or in a poll that waits.
func TestReload(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 6)
	idle, burst, changed, removed, rotated, added := f.realms[0], f.realms[1], f.realms[2], f.realms[3], f.realms[4],
		f.realms[5]
	f.only, f.queue = []int{0, 1, 2, 3, 4}, "[queue]\ndelete-queue = true\n"
	f.configure()
	p := f.run()
	for _, w := range f.realms[:5] {
		w.registered()
	}
	for range 200 {
		burst.talk(rand.New(rand.NewPCG(7, 7)), 100)
	}
	f.only, f.more = []int{0, 1, 2, 4, 5}, map[int]string{2: "backfill-max-messages = 5\n"}
	f.keys[4] = rotated.bot.RegenerateKey()
	harness.KeepSecret(f.keys[4])
	f.log = "debug"
	f.configure()
	p.Signal(syscall.SIGHUP) // together with the change of the file, which it is told of too
	p.Expect("reloaded", `"added":["`+added.realm+`"]`, `"removed":["`+removed.realm+`"]`,
		`"changed":["`+changed.realm+`"]`, `"unchanged":3`)
	p.Expect(`"level":"debug"`)
	for range 100 {
		burst.talk(rand.New(rand.NewPCG(8, 8)), 10)
	}
	added.registered()
	for _, w := range []*world{changed, rotated, added, burst} {
		w.mark(3)
		w.settle()
		w.check().clean(t)
	}
	f.undisturbed(idle)
	for _, w := range []*world{burst, changed, rotated} {
		if n := len(w.queues()); n != 1 {
			t.Errorf("realm %s has had %d queues", w.realm, n)
		}
	}
	harness.Eventually(t, "the end of the removed realm's queue, by delete-queue", func() bool {
		q := removed.queues()
		return len(q) == 1 && q[0].Dead == "deleted"
	})

	// A file that is not in order changes nothing.
	harness.WriteFile(t, f.config, "[nats]\nnats-url = "+f.nats+"\n[realms]\nfoo\n")
	p.Signal(syscall.SIGHUP)
	p.Expect("reload_failed", "line 3", "line 4")
	rotated.mark(3)
	rotated.settle()
	f.undisturbed(idle)
	if !p.Alive() {
		t.Error("the program ended")
	}
}

// undisturbed says that a realm without events has one queue, and a poll that waits: no
// other one but what a heartbeat ended.
func (f *fleetWorld) undisturbed(w *world) {
	f.t.Helper()
	harness.Eventually(f.t, "one poll that waits, of realm "+w.realm+", and none that was cut", func() bool {
		queues, polls := w.queues(), 0 // read in this order: what comes between is one poll too many, never one too few
		for _, r := range w.zulip.Requests() {
			if r.Kind == zulipsim.Events {
				polls++
			}
		}
		return len(queues) == 1 && queues[0].Waiting && polls == 1+len(queues[0].Events)
	})
}
