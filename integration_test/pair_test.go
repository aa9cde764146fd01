package integration_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// TestTakeover runs two programs with a lease. When the one that works is killed, stopped
// or paused, the other one goes on with the same queue; when a paused one wakes up, it
// puts nothing in the stream that the other one has put there.
func TestTakeover(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	w := newWorld(t, natsServer(t), unlimited, func(z *zulipsim.Server) {
		z.Tolerate = []zulipsim.Complaint{zulipsim.AckPruned} // a poll of the paused one may still be on its way
	})
	works := w.run()
	w.registered()
	stop := w.chat(rng, 20)
	var took []string
	waits := w.run()
	waits.Expect("stand", w.writer()) // standing by, and for whom
	for _, end := range []string{"kill -9", "SIGTERM", "SIGSTOP", "kill -9", "SIGTERM"} {
		began := time.Now()
		switch end {
		case "kill -9":
			works.Kill()
		case "SIGTERM":
			works.Signal(syscall.SIGTERM)
		case "SIGSTOP":
			works.Pause()
		}
		harness.Eventually(t, "an event stored by the other program after "+end,
			func() bool { return waits.Wrote(w.writer()) })
		took = append(took, fmt.Sprintf("%s: %v", end, time.Since(began).Round(time.Millisecond)))
		switch end {
		case "SIGTERM":
			if code := works.ExitCode(); code != 0 {
				t.Errorf("exit code %d", code)
			}
		case "SIGSTOP":
			works.Resume()
			w.talk(rng, 100)
			time.Sleep(2 * time.Second) // in which it could do damage
			if !works.Alive() {
				t.Error("the paused program ended")
			}
			works.Kill()
		}
		works = waits
		waits = w.run()
		waits.Expect("stand", w.writer())
	}
	stop()
	w.settle()
	f := w.check().clean(t)
	w.oneQueue(f, 3)
	t.Logf("until the other one stored an event, after %s; %v", strings.Join(took, ", "), f)
}

// TestTwoWithoutLease lets two programs loose on one queue. At Zulip they are in each
// other's way; in the stream they do no harm.
func TestTwoWithoutLease(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	w := newWorld(t, natsServer(t), func(z *zulipsim.Server) { z.Tolerate = []zulipsim.Complaint{zulipsim.AckPruned} })
	a := w.run("--no-lease")
	w.registered()
	b := w.run("--no-lease")
	stop := w.chat(rng, 30)
	began := time.Now()
	for round := range 4 {
		time.Sleep(time.Duration(1000+rng.IntN(1000)) * time.Millisecond)
		one, other := &a, &b
		// The first times it is the one that stored something last: the other one has to.
		if round < 2 && b.Wrote(w.writer()) || round >= 2 && rng.IntN(2) == 0 {
			one, other = other, one
		}
		(*one).Kill()
		w.talk(rand.New(rand.NewPCG(rng.Uint64(), 2)), 50)
		harness.Eventually(t, "the other program to store something", func() bool {
			writer := w.writer()
			return writer != "" && !(*one).Wrote(writer)
		})
		if !(*other).Alive() {
			t.Error("the other program ended")
		}
		*one = w.run("--no-lease")
	}
	stop()
	w.settle()
	f := w.check().clean(t)
	w.oneQueue(f, 4)
	writers := map[string]int{}
	for i := range f.all {
		writers[f.all[i].Get(events.HeaderWriter)]++
	}
	if len(writers) < 3 {
		t.Errorf("only %d programs stored anything: %v", len(writers), writers)
	}
	t.Logf("two at once for %v, %d writers: %v", time.Since(began).Round(time.Millisecond), len(writers), f)
}

// TestStandbyAfterAKeyRotation: the key changes while an instance stands by, which it has
// no reason to notice. When its turn comes the file has the right one.
func TestStandbyAfterAKeyRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, natsServer(t), func(z *zulipsim.Server) { z.Tolerate = []zulipsim.Complaint{zulipsim.AckPruned} })
	works := w.run()
	w.registered()
	waits := w.run()
	waits.Expect("standing by")
	fresh := w.bot.RegenerateKey()
	harness.KeepSecret(fresh)
	w.writeRC(fresh)
	w.mark(5)
	w.settle() // the one that works has read the key again
	works.Kill()
	w.mark(5)
	harness.Eventually(t, "the standby to store something", func() bool { return waits.Wrote(w.writer()) })
	w.settle()
	w.oneQueue(w.check().clean(t), 1)
	if !waits.Alive() {
		t.Error("the standby ended")
	}
}

// TestLeaseLostWithNATS: a lease that runs out because NATS is away is lost for that
// reason, and nobody else is spoken of.
func TestLeaseLostWithNATS(t *testing.T) {
	t.Parallel()
	n := natstest.StartProcess(t, "")
	w := newWorld(t, n.URL)
	p := w.run("--lease-ttl", "2s")
	w.registered()
	n.Stop()
	p.Expect("the lease is lost: standing by until it is free again",
		"NATS was away, so it could not be renewed in time")
	n.Start()
	w.talk(harness.Rand(t), 10)
	w.settle()
	w.oneQueue(w.check().clean(t), 0)
	for _, line := range slices.Concat(p.Lines("another instance"), p.Lines("JetStream does not serve us")) {
		t.Errorf("nobody else was seen, and of JetStream nothing is known: %s", line)
	}
}
