package integration_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"zulip-nats/integration_test/harness"
)

// TestKill9 kills the program with SIGKILL at moments that chance picks, while people
// talk, one after the other and all at once, and starts it again: nothing lost, nothing
// twice, everything in order, and all of it in one queue.
func TestKill9(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	w := newWorld(t, natsServer(t), unlimited)
	killed(w, rng, *kills, func() time.Duration {
		switch dice := rng.IntN(10); {
		case dice < 4: // before it has read where it is, or just then
			return time.Duration(rng.IntN(80)) * time.Millisecond
		case dice < 9:
			return time.Duration(80+rng.IntN(250)) * time.Millisecond
		default:
			return time.Duration(330+rng.IntN(600)) * time.Millisecond
		}
	}, "--no-lease")
}

// TestKill9WithLease does it a few times while the program has to get its lease back
// first, which the dead one still holds.
func TestKill9WithLease(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	w := newWorld(t, natsServer(t), unlimited)
	killed(w, rng, min(4, *kills),
		func() time.Duration { return time.Duration(1500+rng.IntN(1500)) * time.Millisecond }, "--lease-ttl", "2s")
}

// killed lets the program live n times, each time for as long as life says, and then for
// good.
func killed(w *world, rng *rand.Rand, n int, life func() time.Duration, args ...string) {
	t := w.t
	p := w.run(args...)
	w.registered() // from here on there is a queue that must not get lost
	stop := w.chat(rng, 60)
	began := time.Now()
	for range n {
		time.Sleep(life())
		if rng.IntN(4) == 0 { // much at once, so that a chunk is under way
			w.talk(rng, 50+rng.IntN(400))
			time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
		}
		p.Kill()
		p = w.run(args...)
	}
	took := time.Since(began)
	stop()
	w.settle()
	f := w.check().clean(t)
	w.oneQueue(f, n)
	t.Logf("%d kills in %v: %v", n, took.Round(time.Millisecond), f)
}
