package chaos_test

import (
	"testing"
	"time"

	"zulip-nats/integration_test/harness"

	"golang.org/x/sys/unix"
)

// TestNATSDiskFull makes every write of the nats-server behind the first 200 kB of a file
// fail, by the limit that Linux has for it. To the server that is a disk that takes no
// more; it stays in trouble until it is started again, and so do we.
func TestNATSDiskFull(t *testing.T) {
	t.Parallel()
	n := startConfigured(t, "")
	w := newWorld(t, "acme", n.URL, n.URL)
	p := w.follow("--no-lease")
	w.polled()
	rng := harness.Rand(t)
	w.talk(rng, 50)
	w.settle()
	var before unix.Rlimit
	harness.Must(t, unix.Prlimit(n.processID(), unix.RLIMIT_FSIZE, nil, &before))
	harness.Must(t, unix.Prlimit(n.processID(), unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 200_000, Max: before.Max}, nil))
	for range 10 {
		w.random(rng, 60_000) // what compresses well takes no room
		w.talk(rng, 10)
	}
	p.Expect("does not take events", "while Zulip's queue keeps them")
	p.Expect("JetStream answers reads and no writes", "look at the NATS server's log, its disk", "restarted")
	w.talk(rng, 50)
	p.Expect("JetStream answers reads and no writes", "its disk")
	n.Kill() // the limit goes with the process
	n.Start()
	p.Expect("JetStream serves us again")
	w.settle()
	t.Log(w.check(time.Time{}).clean(t).oneQueue(w, 0).everyMessage(w))
}
