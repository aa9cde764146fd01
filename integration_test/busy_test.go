package integration_test

import (
	"net/http"
	"testing"
	"time"

	"zulip-nats/integration_test/harness"
	"zulip-nats/zulipsim"
)

// TestBusyRestarts starts the program again and again in an organization where so much
// happens that no poll ever waits, so nothing renews the idle clock of a queue. A start
// does not know when that clock was set, and must not take the queue for young: after
// twenty answers in a row that came at once it changes over to another queue. That is
// counted in answers, since how long they take is the machine's affair; so the queues
// live longer here than the test.
func TestBusyRestarts(t *testing.T) {
	t.Parallel()
	const busyAnswers = 20 // as in bridge
	rng := harness.Rand(t)
	// No poll waits since the way is long, not since so much has to be stored.
	w := newWorld(t, natsServer(t), unlimited, func(z *zulipsim.Server) { z.RoundTrip = 400 * time.Millisecond })
	args := []string{"--lease-ttl", "1m"} // or a slow machine would lose the lease, and begin to count again
	p := w.run(args...)
	w.registered()
	stop := w.markOn(40 * time.Millisecond) // two events each
	w.polling()
	// Each start's requests are those behind the last one of the start before.
	requests, changed := 0, 0
	next := func(whole bool) {
		if _, err := p.Stop(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
		requests = len(w.zulip.Requests())
		p = w.run(args...)
		if !whole { // it ends long before it could know
			few := 1 + rng.IntN(busyAnswers/2)
			harness.Eventually(t, "some polls", func() bool { return len(w.busy(requests)) >= few })
			return
		}
		was := w.named()
		harness.Eventually(t, "the queue to be changed over", func() bool { return w.named() != was })
		busy := w.busy(requests)
		again := p.Says("does not", "waiting") // a write took too long, and the count begins again behind that
		if n := len(busy); n < busyAnswers || n > busyAnswers+1 && !again {
			t.Errorf("changed over behind %d answers in a row that came at once, want %d", n, busyAnswers)
		}
		changed++
		w.polling()
	}
	for range 3 {
		next(false)
		next(true)
	}
	stop()
	w.healed()
	f := w.whole(0)
	told := 0
	for i := range f.all {
		if m := &f.all[i]; m.Record() == "queue" && body(t, m).Why == "changed over" {
			told++
		}
	}
	if told != changed {
		t.Errorf("%d queues were changed over to, and %d are recorded", changed, told)
	}
	t.Logf("%d times changed over: %v", changed, f)
}

// busy are the answers to polls that came at once since so many requests were made, those
// behind the last poll that waited and before a queue was registered.
func (w *world) busy(since int) (answers []zulipsim.Request) {
	for _, r := range w.zulip.Requests()[since:] {
		switch {
		case r.Kind == zulipsim.Register:
			return answers
		case r.Kind == zulipsim.Events && r.Waited:
			answers = nil
		case r.Kind == zulipsim.Events && r.Status == http.StatusOK:
			answers = append(answers, r)
		}
	}
	return answers
}
