package integration_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"zulip-nats/integration_test/harness"
	"zulip-nats/zulipsim"
)

// TestTakeover runs two programs with a lease. When the one that works is killed, stopped or paused, the other one goes on with the same
// queue; when a paused one wakes up, it puts nothing in the stream that the other one has put there.
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
		writer := w.writer()
		harness.Eventually(t, "an event stored by the other program after "+end, func() bool { return w.writer() != writer })
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
	w.oneQueue(f)
	t.Logf("until the other one stored an event, after %s; %v", strings.Join(took, ", "), f)
}

// TestTwoWithoutLease lets two programs loose on one queue. At Zulip they are in each other's way; in the stream they do no harm.
func TestTwoWithoutLease(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	w := newWorld(t, natsServer(t), func(z *zulipsim.Server) { z.Tolerate = []zulipsim.Complaint{zulipsim.AckPruned} })
	a := w.run("--no-lease")
	w.registered()
	b := w.run("--no-lease")
	stop := w.chat(rng, 30)
	began := time.Now()
	for range 4 {
		time.Sleep(time.Duration(1000+rng.IntN(1000)) * time.Millisecond)
		one, other := &a, &b
		if rng.IntN(2) == 0 {
			one, other = other, one
		}
		(*one).Kill()
		w.talk(rand.New(rand.NewPCG(rng.Uint64(), 2)), 50)
		if !(*other).Alive() {
			t.Error("the other program ended")
		}
		*one = w.run("--no-lease")
	}
	stop()
	w.settle()
	f := w.check().clean(t)
	w.oneQueue(f)
	writers := map[string]int{}
	for i := range f.all {
		writers[f.all[i].Get("Bridge-Writer")]++
	}
	if len(writers) < 3 {
		t.Errorf("only %d programs stored anything: %v", len(writers), writers)
	}
	t.Logf("two at once for %v, %d writers: %v", time.Since(began).Round(time.Millisecond), len(writers), f)
}
