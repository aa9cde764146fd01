package integration_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// faultWindow is how long a fault lasts: long enough that a loop without brakes shows.
const faultWindow = 10 * time.Second

// TestTenFaults puts the program through the ten faults that clients of Zulip have died
// of, or flooded Zulip in, or lost events by. While something is wrong it may ask once a
// second, with a few requests more at the beginning; the log names what happened; and
// when it is over everything is stored that Zulip still had. (401 in mid-stream comes
// twice: Zulip heals by itself, and an operator makes a new key.)
func TestTenFaults(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		// run starts the program, lets the fault happen and end, and gives the program.
		run func(w *world, rng *rand.Rand) *harness.Process
		// says are words that the log has to have in one line, for each line that is
		// asked for.
		says [][]string
		// queues is how many queues may be followed in the end; 0: more than one.
		queues int
	}{
		{"a queue that is dead for ever", deadForEver,
			[][]string{{"refuses", "Bad event queue ID"}, {"a gap is open", "dropped the queue"},
				{"the gap is closed"}}, 0},
		{"a queue that expires once", expiresOnce,
			[][]string{{"refuses", "Bad event queue ID"}, {"a gap is open", "dropped the queue"},
				{"the gap is closed"}}, 2},
		{"a queue that expires, and two 502 when registering", expiresThenTwo502,
			[][]string{{"a gap is open"}, {"502", "register"}, {"the gap is closed"}}, 2},
		{"502 with a page of HTML", html502, [][]string{{"502"}}, 1},
		{"429 with Retry-After 5", retryAfter, [][]string{{"429"}}, 1},
		{"401 in mid-stream, healed", keyRefusedInMidStream, [][]string{{"401"}}, 1},
		{"a new key in mid-stream", keyRotated, [][]string{{"401"}}, 1},
		{"a batch with a heartbeat in the middle", heartbeatInBatch, nil, 1},
		{"a batch with a type never seen", unknownTypeInBatch, nil, 1},
		{"Zulip not up at start", zulipDownAtStart, [][]string{{"connection refused"}}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := prepareWorld(t, natsServer(t))
			w.zulip.Complain(t, w.isStored)
			p := c.run(w, harness.Rand(t))
			w.registered()
			w.settle()
			f := w.check().clean(t)
			if !p.Alive() {
				t.Error("the program ended")
			}
			if c.queues == 1 {
				w.oneQueue(f, 0)
			}
			if c.queues > 1 && f.queues != c.queues || c.queues == 0 && f.queues < 2 {
				t.Errorf("%d queues were followed", f.queues)
			}
			if f.records["gap-opened"] != f.records["gap-closed"] || f.records["gap-opened"] != f.queues-1 {
				t.Errorf("the records do not tell the story of %d queues: %v", f.queues, f.records)
			}
			// Messages are what history gives back, so not even a lost queue costs one.
			for _, m := range w.zulip.Messages() {
				if f.messages[m.ID] != 1 {
					t.Errorf("message %d is stored %d times", m.ID, f.messages[m.ID])
				}
			}
			var said []string
			for _, words := range c.says {
				said = append(said, p.Expect(words...))
			}
			t.Logf("%v; in the log's words:\n%s", f, strings.Join(said, "\n"))
		})
	}
	t.Run("401 at register", keyRefusedAtStart)
}

// keyRefusedAtStart: the key in the zuliprc is not, or no more, the bot's. No waiting
// heals that, and a supervisor has to know.
func keyRefusedAtStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, natsServer(t))
	w.writeRC(strings.Repeat("wrongKey", 4))
	began := time.Now()
	p := w.run("--no-lease")
	if code := p.ExitCode(); code != 78 {
		t.Errorf("exit code %d, want 78", code)
	}
	w.rate(began)
	t.Log(p.Expect("Invalid API key", "401"))
	if len(w.queues()) > 0 {
		t.Error("a queue was registered")
	}
}

// rate fails the test if Zulip was asked more than once a second since then, a burst of
// eight requests at the beginning aside.
func (w *world) rate(since time.Time) {
	w.t.Helper()
	n, last := 0, time.Now()
	for _, r := range w.zulip.Requests() {
		if r.Time.After(since) && r.Time.Before(last) {
			n++
		}
	}
	seconds := last.Sub(since).Seconds()
	w.t.Logf("%d requests in %.1f s", n, seconds)
	// Five for each loss, of which the pauses grow: poll, look again, register, newest
	// message, delete.
	if float64(n) > seconds+15 {
		w.t.Errorf("%d requests in %.1f s are too many", n, seconds)
	}
}

// during runs something that is wrong for faultWindow, with a little traffic, and counts
// requests.
func (w *world) during(rng *rand.Rand) {
	began := time.Now()
	for time.Since(began) < faultWindow {
		w.talk(rng, 1)
		time.Sleep(300 * time.Millisecond)
	}
	w.rate(began)
}

// begin opens Zulip, starts the program, and lets it store a few events.
func (w *world) begin(rng *rand.Rand) *harness.Process {
	w.open("127.0.0.1:0")
	p := w.run("--no-lease")
	w.registered()
	w.talk(rng, 15)
	w.settle()
	return p
}

func deadForEver(w *world, rng *rand.Rand) *harness.Process {
	p := w.begin(rng)
	remove := w.zulip.Fault(zulipsim.Fault{On: zulipsim.Events, Status: http.StatusBadRequest,
		Body: `{"result":"error","msg":"Bad event queue ID: gone","code":"BAD_EVENT_QUEUE_ID","queue_id":"gone"}` +
			"\n"})
	w.zulip.ExpireAll() // the poll that waits ends, and the next one meets the fault
	w.during(rng)
	remove()
	w.registered()
	w.talk(rng, 15)
	return p
}

func expiresOnce(w *world, rng *rand.Rand) *harness.Process {
	p := w.begin(rng)
	began := time.Now()
	w.zulip.ExpireAll()
	w.talk(rng, 10) // in no queue: this has to come from history
	w.registered()
	w.talk(rng, 15)
	w.settle()
	w.rate(began)
	return p
}

func expiresThenTwo502(w *world, rng *rand.Rand) *harness.Process {
	p := w.begin(rng)
	f := zulipsim.BadGateway()
	f.On, f.Times = zulipsim.Register, 2
	w.zulip.Fault(f)
	began := time.Now()
	w.zulip.ExpireAll()
	w.talk(rng, 10)
	w.registered()
	w.rate(began)
	w.talk(rng, 15)
	failed := 0
	for _, r := range w.zulip.Requests() {
		if r.Kind == zulipsim.Register && r.Status == http.StatusBadGateway {
			failed++
		}
	}
	if failed != 2 {
		w.t.Errorf("register failed %d times, want 2", failed)
	}
	return p
}

func html502(w *world, rng *rand.Rand) *harness.Process {
	p := w.begin(rng)
	remove := w.zulip.Fault(zulipsim.BadGateway())
	w.zulip.Down()
	w.during(rng)
	w.zulip.Up()
	remove()
	w.talk(rng, 15)
	return p
}

// retryAfter relies on the simulator to complain about a request that comes too soon.
func retryAfter(w *world, rng *rand.Rand) *harness.Process {
	p := w.begin(rng)
	f := zulipsim.TooMany("5")
	f.On = zulipsim.Events
	remove := w.zulip.Fault(f)
	w.talk(rng, 1)
	w.during(rng)
	remove()
	w.talk(rng, 15)
	limited := 0
	for _, r := range w.zulip.Requests() {
		if r.Status == http.StatusTooManyRequests {
			limited++
		}
	}
	if limited == 0 {
		w.t.Error("no request was refused with 429")
	}
	return p
}

func keyRefusedInMidStream(w *world, rng *rand.Rand) *harness.Process {
	p := w.begin(rng)
	remove := w.zulip.Fault(zulipsim.Unauthorized())
	w.talk(rng, 1) // wakes the poll
	w.during(rng)
	remove()
	w.talk(rng, 15)
	return p
}

// keyRotated is what an operator does: a new key at Zulip, and some seconds later in the
// file.
func keyRotated(w *world, rng *rand.Rand) *harness.Process {
	p := w.begin(rng)
	fresh := w.bot.RegenerateKey()
	harness.KeepSecret(fresh)
	w.during(rng)
	w.writeRC(fresh)
	w.talk(rng, 15)
	return p
}

// heartbeatInBatch lets one answer hold a message, a heartbeat and a message.
func heartbeatInBatch(w *world, rng *rand.Rand) *harness.Process {
	p := w.begin(rng)
	w.inOneAnswer(func() {
		w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "before"})
		w.zulip.EmitRaw(`{"type":"heartbeat","id":%ID%}`)
		w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "after"})
	})
	return p
}

// unknownTypeInBatch lets one answer hold events of types that the program has never
// heard of, and that are no types at all.
func unknownTypeInBatch(w *world, rng *rand.Rand) *harness.Process {
	p := w.begin(rng)
	w.inOneAnswer(func() {
		w.zulip.EmitRaw(`{"type":"shiny_new_thing","op":"sparkle","what":{"deep":[1,{"er":null}]},"id":%ID%}`)
		w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "after"})
		w.zulip.EmitRaw(`{"type":"shinier_still","id":%ID%}`)
	})
	return p
}

// inOneAnswer lets things happen while Zulip's event server is being started again, so
// that they are all in its first answer, behind restart; and counts requests.
func (w *world) inOneAnswer(happen func()) {
	began := time.Now()
	w.zulip.Down()
	happen()
	w.zulip.Up()
	w.settle()
	w.rate(began)
	for _, r := range w.zulip.Requests() {
		if r.Kind == zulipsim.Events && r.Time.After(began) && r.Events >= 4 {
			return
		}
	}
	w.t.Error("the events were not in one answer")
}

func zulipDownAtStart(w *world, rng *rand.Rand) *harness.Process {
	address := fmt.Sprintf("127.0.0.1:%d", natstest.FreePort(w.t))
	w.site = "http://" + address
	w.writeRC(w.bot.Key)
	p := w.run("--no-lease")
	p.Expect("connection refused")
	time.Sleep(faultWindow)
	if n := len(p.Lines()); n > 40 {
		w.t.Errorf("%d lines of log in %v", n, faultWindow)
	}
	w.open(address)
	w.registered()
	w.talk(rng, 15)
	return p
}
