package chaos_test

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// tolerant lets Zulip pass over polls that are older than others: of two programs on one
// queue, the one that was paused may have one left.
func tolerant(z *zulipsim.Server) { z.Tolerate = []zulipsim.Complaint{zulipsim.AckPruned} }

// TestTakeover runs two programs with a lease and takes away the one that works, in each
// way there is, again and again, while events come. The other one goes on with the same
// queue. The times are printed; what is asserted leaves room for a slow machine.
func TestTakeover(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	url := natstest.Start(t).URL
	w := newWorld(t, "acme", url, url, tolerant)
	works := w.follow()
	w.polled()
	waits := w.follow()
	waits.Expect("standing by", fmt.Sprintf("-%d-", works.PID())) // and who leads
	stop := w.chat(rng.Uint64(), 200)
	var hits []hit
	ends := []string{"kill -9", "SIGTERM", "SIGSTOP"}
	for i := range 9 {
		end := ends[i%len(ends)]
		harness.Eventually(t, "an event stored by the one that works", func() bool { return works.Wrote(w.writer()) })
		hits = append(hits, hit{time.Now(), works, end})
		switch end {
		case "kill -9":
			works.Kill()
		case "SIGTERM":
			if _, err := works.Stop(); err != nil {
				t.Error(err)
			}
		case "SIGSTOP":
			works.Pause()
		}
		harness.Eventually(t, "an event stored by the other program after "+end,
			func() bool { return waits.Wrote(w.writer()) })
		if end == "SIGSTOP" {
			before := len(works.Lines("standing by"))
			works.Resume()
			works.ExpectAgain(before, "standing by") // it is not killed for it: it stands by now
			works, waits = waits, works
			continue
		}
		works = waits
		waits = w.follow()
		waits.Expect("standing by", fmt.Sprintf("-%d-", works.PID()))
	}
	stop()
	w.settle()
	v := w.check(time.Time{}).clean(t).oneQueue(w, 3)
	took := takeovers(v.all, hits, nil)
	for _, end := range ends {
		t.Logf("until the other program has stored an event, after %s: p50/max %s", end, quantiles(took[end]))
		if len(took[end]) == 0 || slices.Max(took[end]) > 30*time.Second {
			t.Errorf("after %s it took %v until the other program stored an event", end, took[end])
		}
	}
	t.Log(v)
}

// TestPausedLeader stops the program that works with SIGSTOP in the middle of the writes
// of one chunk, until the other one has taken over and stored the rest, and lets it go on
// then: the rest of what it had in hand goes out, and none of it is stored twice.
func TestPausedLeader(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"sync", "atomic", "fast"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			server := natstest.Start(t)
			w := newWorld(t, "acme", server.URL, server.URL, tolerant)
			var both [2]*harness.Process
			var proxies [2]*natstest.Proxy
			for i := range both {
				proxies[i] = natstest.NewProxy(t, server.URL)
				w.nats = proxies[i].URL
				both[i] = w.follow("--lease-ttl", "2s", "--publish-path", path)
				w.polled()
			}
			rng := harness.Rand(t)
			for round := range 3 {
				w.settle()
				// The chunk is what has come while the program was busy with the first
				// event. Whichever of the two leads now is paused in it.
				var seen, leads atomic.Int64
				stopAt := int64(20 + rng.IntN(300))
				for i, proxy := range proxies {
					proxy.OnPublish(func(p natstest.Publish) natstest.Fate {
						if strings.HasPrefix(p.Subject, "zulip.acme.") && seen.Add(1) == stopAt {
							both[i].Pause()
							leads.Store(int64(i) + 1)
						}
						return natstest.Pass
					})
				}
				w.talk(rng, 600)
				harness.Eventually(t, "the pause", func() bool { return leads.Load() > 0 })
				paused, other := both[leads.Load()-1], both[2-leads.Load()]
				harness.Eventually(t, "the other program to take over", func() bool { return other.Wrote(w.writer()) })
				w.settle()
				before := len(paused.Lines("standing by"))
				paused.Resume()
				w.talk(rng, 20)
				paused.ExpectAgain(before, "standing by")
				for _, proxy := range proxies {
					proxy.OnPublish(nil)
				}
				t.Logf("round %d: paused at message %d, and %d left before and after", round+1, stopAt, seen.Load())
			}
			w.settle()
			v := w.check(time.Time{}).clean(t).oneQueue(w, 0)
			changes := 0
			for i := 1; i < len(v.all); i++ {
				if v.all[i].Get(events.HeaderWriter) != v.all[i-1].Get(events.HeaderWriter) {
					changes++
				}
			}
			if changes < 3 {
				t.Errorf("one program went on %d times where the other had stopped, want 3", changes)
			}
			t.Log(fmt.Sprint(v))
		})
	}
}
