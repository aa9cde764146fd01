//go:build linux

package main

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream/natstest"
)

// live is one event at a time, as people talk: how long until it is stored, and until a
// service has it.
//
// It is measured from when the piece of the answer is written that has its last byte, at
// Zulip, to the time that the message has in the stream, and to when a subscriber in this
// process has it. Both are on one clock. Between two events all rest for two milliseconds.
// Beside it runs the simulator, in this process. The reference is the smallest relay (see
// relay), with a Zulip of its own, on the same server.
//
// The busy realms are twenty more programs, each with a Zulip of its own in this process
// and an event every 20 ms, on the same server. They have been at it for two seconds by
// then, so that they ask as often as Zulip allows, and each answer has some events. The
// reference is the same program while these rest.
func live(t *scope) {
	s := newStore(t, "R1 file")
	n := t.sized(300, 2000)
	ours := newLiveSide(t, s, "acme")
	t.try("alone", func(t *scope) {
		theirs := newLiveRelay(t, s)
		a, b := byTurns(t, ours, theirs, n)
		reportDelays(t, "live", "500 B, R1 file", a, "smallest relay", b, atMost(1))
	})
	t.try("beside busy realms", func(t *scope) {
		const realms = 20
		var busy atomic.Bool
		var emitting sync.WaitGroup
		t.Cleanup(emitting.Wait)
		ended := make(chan struct{})
		t.Cleanup(func() { close(ended) })
		for i := range realms {
			z := newZulip(t)
			t.follow(z, s.url, "busy"+strconv.Itoa(i))
			z.waiting()
			event := emitted(500, int64(i))
			emitting.Go(func() { whileBusy(20*time.Millisecond, ended, &busy, func() { z.EmitRaw(event) }) })
		}
		turn := func(on bool) delays {
			busy.Store(on)
			if on {
				time.Sleep(2 * time.Second) // till all gather events
			} else {
				time.Sleep(500 * time.Millisecond) // till all rest
			}
			return ours.measure(n)
		}
		var a, b []delays
		t.byTurns(func() float64 { a = append(a, turn(true)); return 0 },
			func() float64 { b = append(b, turn(false)); return 0 })
		reportDelays(t, "live", fmt.Sprintf("beside %d busy realms", realms), a, "without them", b, atMost(2))
	})
}

// delays are those of one round, in milliseconds.
type delays struct {
	stored, hand []float64
	again        []float64 // until the next poll came
}

func reportDelays(t *scope, section, of string, ours []delays, reference string, theirs []delays, g *goal) {
	for _, what := range []struct {
		name string
		of   func(delays) []float64
	}{{"to stored", func(d delays) []float64 { return d.stored }},
		{"to a subscriber", func(d delays) []float64 { return d.hand }}} {
		for _, p := range []float64{50, 99} {
			each := func(rounds []delays) (all []float64) {
				for _, d := range rounds {
					all = append(all, percentile(what.of(d), p))
				}
				return all
			}
			t.report(compared(section, of, fmt.Sprintf("%s, p%v", what.name, p), "ms", each(ours), reference, each(theirs), g))
		}
	}
}

// byTurns measures two sides, a round of the one and a round of the other.
func byTurns(t *scope, ours, theirs *liveSide, n int) (a, b []delays) {
	t.byTurns(func() float64 { a = append(a, ours.measure(n)); return 0 },
		func() float64 { b = append(b, theirs.measure(n)); return 0 })
	return a, b
}

// liveSide is one who is measured: its Zulip, and where its messages come out.
type liveSide struct {
	*store
	zulip   *zulip
	stream  string
	subject string
	start   func() *process // it polls soon
	next    int64
}

// newLiveSide is the program.
func newLiveSide(t *scope, s *store, realm string) *liveSide {
	l := &liveSide{store: s, zulip: newZulip(t), stream: "ZULIP_" + realm, subject: "zulip." + realm + ".message"}
	l.start = func() *process { return t.follow(l.zulip, s.url, realm) }
	s.open(realm, "").Close()
	return l
}

// newLiveRelay is the smallest relay.
func newLiveRelay(t *scope, s *store) *liveSide {
	l := &liveSide{store: s, stream: "RELAY", subject: "relay.message"}
	natstest.CreateStream(t, s.js, jetstream.StreamConfig{Name: l.stream, Subjects: []string{l.subject}})
	l.start = func() *process {
		l.zulip = newZulip(t) // it begins with a queue of its own each time
		return t.relay(l.zulip, s.url, l.subject)
	}
	return l
}

// batch is how many events a program is given before another one is started, and warm how
// many more come first and do not count. The program asks Zulip 50 times without waiting,
// and then no faster than Zulip's own limit allows; events that come one by one in real
// life meet none of that.
const batch, warm = 40, 5

// measure lets n events happen, one after the other, with a subscriber to what comes of
// them.
func (l *liveSide) measure(n int) (d delays) {
	for n > 0 {
		p := l.start()
		l.zulip.waiting()
		l.events(min(n, warm), &delays{})
		l.events(min(n, batch), &d)
		p.end()
		n -= batch
	}
	return d
}

// drain gives out n events at once, to a program that has had some before, and says how
// many a second are stored.
func (l *liveSide) drain(n int) float64 {
	p := l.start()
	l.zulip.drained(max(1, n/10), made(500))
	took := l.zulip.drained(n, made(500))
	p.end()
	l.clear(l.stream)
	return float64(n) / took.Seconds()
}

func (l *liveSide) events(n int, d *delays) {
	t := l.zulip.t
	st, err := l.js.Stream(t.Context(), l.stream)
	t.must(err)
	from := st.CachedInfo().State.LastSeq + 1
	hand := make(chan time.Time, 1)
	sub, err := l.nc.Subscribe(l.subject, func(*nats.Msg) { hand <- time.Now() })
	t.must(err)
	defer sub.Unsubscribe()
	t.must(l.nc.Flush())
	var wrote []time.Time
	for range n {
		l.zulip.waiting()
		time.Sleep(2 * time.Millisecond)
		polls := l.zulip.polls.Load()
		l.next++
		l.zulip.EmitRaw(emitted(500, l.next))
		var at time.Time
		select {
		case at = <-hand:
		case <-t.Context().Done():
			t.Fatal("interrupted")
		case <-time.After(patience):
			t.Fatalf("no message on %s", l.subject)
		}
		t.wait("the next poll", 50*time.Microsecond, func() bool { return l.zulip.polls.Load() > polls })
		w := time.Unix(0, l.zulip.wrote.Load())
		wrote = append(wrote, w)
		d.hand = append(d.hand, milliseconds(at.Sub(w)))
		d.again = append(d.again, milliseconds(time.Unix(0, l.zulip.polled.Load()).Sub(w)))
	}
	i := 0
	l.read(st, from, n, l.subject, func(m jetstream.Msg) {
		meta, err := m.Metadata()
		t.must(err)
		d.stored = append(d.stored, milliseconds(meta.Timestamp.Sub(wrote[i])))
		i++
	})
}

// emitted is a message event for EmitRaw, which puts in its id.
func emitted(size int, message int64) string {
	number := strconv.FormatInt(message, 10)
	return strings.TrimSuffix(string(made(size)(nil, message)), number+"}") + "%ID%}"
}

// whileBusy does something at each tick at which busy is set, until ended is closed.
func whileBusy(every time.Duration, ended <-chan struct{}, busy *atomic.Bool, do func()) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
			if busy.Load() {
				do()
			}
		}
	}
}
