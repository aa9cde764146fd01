package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
)

// steady is a program that follows an organization on a single nats-server, with some
// events stored. Between the two is a proxy.
func steady(t *testing.T, args ...string) (*world, *harness.Process, *natstest.Proxy, *rand.Rand) {
	t.Helper()
	server := natstest.Start(t)
	proxy := natstest.NewProxy(t, server.URL)
	w := newWorld(t, "acme", proxy.URL, server.URL, tolerant) // it asks Zulip for what the stream has lost, to see whether it is there
	p := w.follow(append([]string{"--no-lease"}, args...)...)
	w.polled()
	rng := harness.Rand(t)
	w.talk(rng, 60)
	w.settle()
	return w, p, proxy, rng
}

// own is the realm's stream, for an operator who is about to do something to it.
func (w *world) own() jetstream.Stream {
	w.t.Helper()
	var s jetstream.Stream
	harness.Eventually(w.t, "stream "+w.stream, func() bool {
		var err error
		s, err = w.js.Stream(w.t.Context(), w.stream)
		return err == nil
	})
	return s
}

// edit changes the stream's settings as an operator does (nats stream edit).
func (w *world) edit(change func(*jetstream.StreamConfig)) {
	w.t.Helper()
	config := w.own().CachedInfo().Config
	change(&config)
	_, err := w.js.UpdateStream(w.t.Context(), config)
	harness.Must(w.t, err)
}

// losses are what an operator, or a backup that is restored, can take out of a stream
// behind the program's back.
var losses = []struct {
	name string
	take func(*world)
}{
	{"deleted", func(w *world) {
		w.own() // made anew, if it was deleted before
		harness.Must(w.t, w.js.DeleteStream(w.t.Context(), w.stream))
	}},
	{"recreated", func(w *world) {
		config := w.own().CachedInfo().Config
		harness.Must(w.t, w.js.DeleteStream(w.t.Context(), w.stream))
		natstest.CreateStream(w.t, w.js, config)
	}},
	{"purged", func(w *world) { harness.Must(w.t, w.own().Purge(w.t.Context())) }},
	{"newest messages removed", func(w *world) {
		s := w.own()
		for seq := s.CachedInfo().State.LastSeq; seq > s.CachedInfo().State.LastSeq-15; seq-- {
			if err := s.DeleteMsg(w.t.Context(),
				seq); !errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) { // it may be gone already
				harness.Must(w.t, err)
			}
		}
	}},
}

// TestStreamLosesMessages takes messages out of the stream, and lets the program's
// connection drop, as it does when a server is restored. What was taken out is gone; what
// counts is that it is noticed and told, that everything since then is there, and that
// the messages of people are read back from Zulip's history.
func TestStreamLosesMessages(t *testing.T) {
	t.Parallel()
	for _, test := range losses {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w, p, proxy, rng := steady(t)
			since := time.Now()
			test.take(w)
			proxy.CutAll()
			w.talk(rng, 60)
			p.Expect("the stream holds less than what it had acknowledged")
			p.Expect("a gap is open", "lost its newest messages", "the queue lives on")
			p.Expect("the gap is closed")
			w.settle()
			w.talk(rng, 60)
			w.settle()
			v := w.check(since).clean(t).everyMessage(w)
			if n := len(w.queues()); n != 1 || v.queues != 1 {
				t.Errorf("%d queues were made, %d followed; Zulip's queue was not harmed", n, v.queues)
			}
			closed := v.recorded(t, "gap-closed")
			if len(closed) != 1 || closed[0].Missing == nil || closed[0].Missing.UpTo < closed[0].Missing.Above+14 {
				t.Errorf("the record that closes the gap does not name the events that are missing: %+v", closed)
			}
			if !p.Alive() {
				t.Error("the program ended")
			}
			t.Log(v)
		})
	}
}

// TestStreamLosesMessagesMeanwhile does the same while events come and the connection
// stays. Everything since then is there, in order and once, whether the program had a
// reason to look back or not.
func TestStreamLosesMessagesMeanwhile(t *testing.T) {
	t.Parallel()
	for _, test := range losses {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w, p, _, rng := steady(t)
			stop := w.chat(rng.Uint64(), 300)
			for range 3 {
				time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
				test.take(w)
			}
			since := time.Now()
			w.talk(rng, 200)
			stop()
			w.settle()
			t.Log(w.check(since).clean(t))
			if n := len(w.queues()); n != 1 || !p.Alive() {
				t.Errorf("%d queues were made; the program is alive: %v", n, p.Alive())
			}
		})
	}
}

// TestStreamLosesWhatZulipHas takes the newest messages out of the stream while the
// program is in the middle of an answer, and its connection drops: nothing of the answer
// was acknowledged yet, so Zulip gives it again, and nothing is lost at all.
func TestStreamLosesWhatZulipHas(t *testing.T) {
	t.Parallel()
	w, p, proxy, _ := steady(t)
	stored := w.own().CachedInfo().State.LastSeq

	// The events are so large that a write never has more than some 170 on their way of which
	// it does not know that they are stored. When the first 400 are, all but a hundred of
	// them are removed. While that is done the program stands still: it must not find the
	// half of them gone, and go on from there.
	const large, wait, keep = 60_000, 400, 100
	published, removed := 0, false
	proxy.OnPublish(func(m natstest.Publish) natstest.Fate {
		if !strings.HasPrefix(m.Subject, "zulip.acme.") {
			return natstest.Pass
		}
		if published++; published <= wait || removed {
			return natstest.Pass
		}
		removed = true
		harness.Eventually(t, "what was passed on to be stored", func() bool {
			return w.own().CachedInfo().State.LastSeq >= stored+wait
		})
		p.Pause()
		defer p.Resume()
		ctx, cancel := context.WithTimeout(context.Background(), harness.Patience)
		defer cancel()
		for seq := stored + wait; seq > stored+keep; seq-- {
			if err := w.own().DeleteMsg(ctx, seq); err != nil {
				t.Errorf("message %d: %v", seq, err)
				break
			}
		}
		return natstest.Cut
	})
	w.zulip.Down() // so that all of it is in the queue before anybody can ask
	text := strings.Repeat("x", large)
	for range wait + 200 {
		w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 7, "status_text": text})
	}
	w.zulip.Up()
	p.Expect("Zulip still has what the stream lost: going on from there")
	w.settle()
	t.Log(w.check(time.Time{}).clean(t).oneQueue(w, 0).everyMessage(w))
}

// TestSubjectsOfAnotherStream takes the realm's subjects from the stream, and gives them
// to another one: writes are refused, the settings are read again, and the program ends,
// since only an operator can mend that. Nothing is lost.
func TestSubjectsOfAnotherStream(t *testing.T) {
	t.Parallel()
	w, p, _, rng := steady(t)
	w.edit(func(c *jetstream.StreamConfig) { c.Subjects = []string{"elsewhere.>"} })
	natstest.CreateStream(w.t, w.js, jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"zulip.acme.>"}})
	w.talk(rng, 60)
	p.Expect("its subjects (elsewhere.>) do not cover zulip.acme.>", "nats stream edit")
	if code := p.ExitCode(); code != 78 {
		t.Errorf("exit code %d, want 78", code)
	}
	harness.Must(t, w.js.DeleteStream(t.Context(), "OTHER"))
	w.edit(func(c *jetstream.StreamConfig) { c.Subjects = []string{"zulip.acme.>"} })
	w.follow("--no-lease")
	w.settle()
	t.Log(w.check(time.Time{}).clean(t).oneQueue(w, 0).everyMessage(w))
}

// TestStreamRefuses makes the stream refuse what the program writes, each time in another
// way, and then makes an end of that. The program says what is wrong and what can be
// done, keeps what it has in hand, and goes on by itself.
func TestStreamRefuses(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		spoil   func(*world)
		words   []string
		mend    func(*world)
		forgets bool // the mending is a new stream
	}{
		{"full", func(w *world) {
			w.edit(func(c *jetstream.StreamConfig) {
				c.Discard, c.MaxMsgs = jetstream.DiscardNew, int64(w.own().CachedInfo().State.Msgs)+5
			})
		}, []string{"stream is full", "discard policy is new", "make room or raise the limit",
			"while Zulip's queue keeps them"},
			func(w *world) { w.edit(func(c *jetstream.StreamConfig) { c.MaxMsgs = -1 }) }, false},
		{"full, and room is made", func(w *world) {
			w.edit(func(c *jetstream.StreamConfig) {
				c.Discard, c.MaxBytes = jetstream.DiscardNew, int64(w.own().CachedInfo().State.Bytes)+500
			})
		}, []string{"stream is full", "make room or raise the limit"},
			func(w *world) { // by degrees: the limit is a little above what there is, then what is oldest goes
				w.edit(func(c *jetstream.StreamConfig) { c.MaxBytes += 100_000 })
			}, false},
		{"sealed", func(w *world) { w.edit(func(c *jetstream.StreamConfig) { c.Sealed = true }) },
			[]string{"sealed", "use another stream"},
			func(w *world) { harness.Must(w.t, w.js.DeleteStream(w.t.Context(), w.stream)) }, true},
		{"other subjects", func(w *world) {
			w.edit(func(c *jetstream.StreamConfig) { c.Subjects = []string{"elsewhere.>"} })
		}, []string{"nobody answers"},
			func(w *world) { w.edit(func(c *jetstream.StreamConfig) { c.Subjects = []string{"zulip.acme.>"} }) }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w, p, _, rng := steady(t)
			since := time.Time{}
			if test.forgets {
				since = time.Now()
			}
			test.spoil(w)
			w.talk(rng, 60)
			p.Expect(test.words...)
			w.talk(rng, 60)
			time.Sleep(time.Second) // in which it could do damage
			test.mend(w)
			p.Expect("JetStream serves us again")
			w.settle()
			v := w.check(since).clean(t).everyMessage(w)
			if !test.forgets {
				v.oneQueue(w, 0)
			}
			if !p.Alive() {
				t.Error("the program ended")
			}
			t.Log(v)
		})
	}
}

// TestStreamTakesLess lowers the stream's max_msg_size under a program that runs: what
// fits no longer goes to the object store, with a stub in its place.
func TestStreamTakesLess(t *testing.T) {
	t.Parallel()
	w, p, _, rng := steady(t)
	w.sized(20_000)
	w.settle()
	w.edit(func(c *jetstream.StreamConfig) { c.MaxMsgSize = 8000 })
	w.talk(rng, 10)
	w.sized(20_000)
	w.talk(rng, 10)
	p.Expect("an event is larger than a message may be", "object store")
	w.settle()
	v := w.check(time.Time{}).clean(t).oneQueue(w, 0)
	if v.stubs != 1 {
		t.Errorf("%d stubs, want 1", v.stubs)
	}
	t.Log(fmt.Sprint(v))
}
