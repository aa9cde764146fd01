package integration_test

import (
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// TestRestartResumes stops the program and starts it again, while people go on talking:
// the next event is the one behind the last stored.
func TestRestartResumes(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	w := newWorld(t, natsServer(t))
	for i := range 3 {
		p := w.run("--no-lease")
		q := w.registered()
		w.talk(rng, 40)
		w.settle()
		if _, err := p.Stop(); err != nil {
			t.Fatal(err)
		}
		if i > 0 && !p.Says("resuming", q.ID) {
			t.Errorf("start %d says nothing of resuming queue %s", i+1, q.ID)
		}
		w.talk(rng, 40) // while nobody asks
	}
	w.run("--no-lease")
	w.registered()
	w.settle()
	w.oneQueue(w.check().clean(t), 0)
}

// oneQueue fails the test if the program did not stay on its queue (see
// [harness.OneQueue]).
func (w *world) oneQueue(f *findings, kills int) {
	w.t.Helper()
	if wrong := harness.OneQueue(w.queues(), f.all, kills); wrong != "" {
		w.t.Error(wrong)
	}
}

// TestResumeAfterHeartbeats resumes after an hour in which nobody said anything: 72
// heartbeats and more, in quick succession. Zulip refuses an id that is older than the
// newest heartbeat acknowledged, so heartbeats have to be stored like everything else.
func TestResumeAfterHeartbeats(t *testing.T) {
	t.Parallel()
	const hour = 72
	var beat atomic.Int64
	beat.Store(int64(20 * time.Millisecond))
	w := newWorld(t, natsServer(t), func(z *zulipsim.Server) {
		z.Heartbeat = func() time.Duration { return time.Duration(beat.Load()) }
	})
	p := w.run("--no-lease")
	w.registered()
	w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "night", Content: "good night"})
	harness.Eventually(t, fmt.Sprintf("%d heartbeats", hour), func() bool {
		q := w.queues()[0]
		return q.NextID > hour && q.NewestPruned >= hour
	})
	p.Kill()
	w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "day", Content: "good morning"})
	beat.Store(int64(time.Hour))
	w.run("--no-lease")
	w.settle()
	f := w.check().clean(t)
	w.oneQueue(f, 0)
	beats := 0
	for i := range f.all {
		if f.all[i].Subject == "zulip.acme.heartbeat" {
			beats++
		}
	}
	if beats < hour {
		t.Errorf("%d heartbeats are stored, want at least %d", beats, hour)
	}
}

// TestNATSRestarts kills and stops the nats-server, a process, while events come.
func TestNATSRestarts(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	n := natstest.StartProcess(t, "")
	w := newWorld(t, n.URL)
	p := w.run("--no-lease")
	w.registered()
	stop := w.chat(rng, 150)
	for i, end := range []func(){n.Kill, n.Stop, n.Kill, n.Kill, n.Stop} {
		time.Sleep(time.Duration(200+rng.IntN(600)) * time.Millisecond)
		end()
		w.talk(rng, 100) // what waits in the queue on Zulip meanwhile
		time.Sleep(time.Duration(rng.IntN(700)) * time.Millisecond)
		n.Start()
		before := w.newestPruned()
		harness.Eventually(t, fmt.Sprintf("events to be stored after restart %d", i+1),
			func() bool { return w.newestPruned() > before })
	}
	stop()
	w.settle()
	f := w.check().clean(t)
	w.oneQueue(f, 0)
	t.Logf("five restarts of nats-server: %v", f)
	p.Expect("connection to NATS lost")
	p.Expect("connected to NATS")
	if !p.Alive() {
		t.Error("the program ended")
	}
}

// newestPruned is how far the newest queue was acknowledged.
func (w *world) newestPruned() int64 {
	q := w.queues()
	return q[len(q)-1].NewestPruned
}

// TestNATSNotUpAtStart starts the program before the nats-server.
func TestNATSNotUpAtStart(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	n := natstest.StartProcess(t, "")
	n.Stop()
	w := newWorld(t, n.URL)
	p := w.run()
	line := p.Expect("NATS is not there")
	for _, r := range w.zulip.Requests() {
		if r.Kind != zulipsim.Me { // who we are is not stored
			t.Errorf("Zulip was asked before there was a place to store what it says: %s %s", r.Method, r.Path)
		}
	}
	n.Start()
	w.registered()
	w.talk(rng, 30)
	w.settle()
	w.oneQueue(w.check().clean(t), 0)
	if n := strings.Count(strings.Join(p.Lines(), "\n"), "NATS is not there"); n != 1 {
		t.Errorf("the log says %d times that NATS is not there", n)
	}
	t.Log(line)
}

// TestZulipNotUpAtStart starts the program before Zulip, and Zulip comes slowly: first
// nothing listens, then nginx shows its page.
func TestZulipNotUpAtStart(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	address := fmt.Sprintf("127.0.0.1:%d", natstest.FreePort(t))
	w := prepareWorld(t, natsServer(t))
	w.zulip.Complain(t, w.isStored)
	w.site = "http://" + address
	w.writeRC(w.bot.Key)
	p := w.run("--no-lease")
	line := p.Expect("connection refused")
	remove := w.zulip.Fault(zulipsim.BadGateway())
	w.open(address)
	page := p.Expect("502")
	remove()
	w.registered()
	w.talk(rng, 30)
	w.settle()
	w.oneQueue(w.check().clean(t), 0)
	t.Logf("%s\n%s", line, page)
}

// TestCleanStop ends the program with SIGTERM in the middle of much traffic, again and
// again: exit 0 in time for a supervisor, the queue is left standing, and the next start
// goes on with it. It is less than five seconds on a machine that has nothing else to do.
func TestCleanStop(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	w := newWorld(t, natsServer(t), unlimited)
	stop := w.chat(rng, 200)
	var slowest time.Duration
	const stops = 8
	for range stops {
		p := w.run("--no-lease")
		w.polling()
		w.talk(rng, rng.IntN(2000))
		time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
		took, err := p.Stop()
		slowest = max(slowest, took)
		if err != nil {
			t.Error(err)
		}
		if took > stopLimit {
			t.Errorf("the end took %v", took)
		}
		if !p.Says("stopped") {
			t.Error("the log does not say that it stopped")
		}
	}
	stop()
	// One that was left because no poll ever waited is deleted, and another one is there.
	if living := w.living(); len(living) != 1 {
		t.Fatalf("the queues %q live", living)
	}
	w.run("--no-lease")
	w.registered()
	w.settle()
	f := w.check().clean(t)
	w.oneQueue(f, 0)
	t.Logf("%d stops under traffic, the slowest took %v: %v", stops, slowest.Round(time.Millisecond), f)
}

// TestCleanStopWhileWaiting ends the program while nothing happens at all: a poll waits,
// or NATS is away.
func TestCleanStopWhileWaiting(t *testing.T) {
	t.Parallel()
	n := natstest.StartProcess(t, "")
	w := newWorld(t, n.URL)
	for _, away := range []bool{false, true} {
		p := w.run()
		w.registered()
		if away {
			n.Kill()
			w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "nobody stores this now"})
			p.Expect("connection to NATS lost")
		}
		took, err := p.Stop()
		if err != nil || took > stopLimit {
			t.Errorf("NATS away: %v: stopped after %v, %v", away, took, err)
		}
	}
	n.Start()
	w.run()
	w.registered()
	w.settle()
	w.oneQueue(w.check().clean(t), 0)
}

// TestEmbeddedServer runs the program with a nats-server inside, so that each kill -9 is
// a crash of both.
func TestEmbeddedServer(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	port := strconv.Itoa(natstest.FreePort(t))
	w := newWorld(t, "nats://127.0.0.1:"+port, unlimited)
	state := t.TempDir()
	again := func() *harness.Process {
		w.started = time.Now()
		return start(t, "run", "--zuliprc", w.rc, "--realm", w.realm, "--nats-port", port, "--state-dir", state)
	}
	p := again()
	w.registered()
	p.Expect("embedded NATS server", state)
	stop := w.chat(rng, 100)
	for range 6 {
		time.Sleep(time.Duration(200+rng.IntN(600)) * time.Millisecond)
		p.Kill()
		p = again()
		w.polling()
	}
	stop()
	w.settle()
	f := w.check().clean(t)
	w.oneQueue(f, 6)
	t.Logf("six kills of the program with the server inside: %v", f)
	if took, err := p.Stop(); err != nil || took > stopLimit {
		t.Errorf("stopped after %v, %v", took, err)
	}
}
