package integration_test

import (
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// living are the ids of the queues that live.
func (w *world) living() (ids []string) {
	for _, q := range w.queues() {
		if q.Dead == "" {
			ids = append(ids, q.ID)
		}
	}
	return ids
}

// named is the queue that the stream names: the one of its newest record, "" if that
// record opens a gap, or if there is none.
func (w *world) named() string {
	w.t.Helper()
	m := w.newest()
	if m == nil || m.Header.Get(events.HeaderRecord) == "gap-opened" {
		return ""
	}
	return m.Header.Get(events.HeaderQueueID)
}

// TestStopDuringRegister stops the program when Zulip has made a queue and not said so
// yet. The program waits for the answer, which names the queue, and deletes it: nobody
// else could.
func TestStopDuringRegister(t *testing.T) {
	t.Parallel()
	const answerTakes = 300 * time.Millisecond // behind the signal; a stop waits for it ten times as long
	for _, c := range []struct {
		name string
		gaps int
	}{{"first start", 0}, {"lost queue", 1}, {"changed options", 0}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var made chan string // nil: registers are answered at once
			answer := make(chan struct{})
			answers := sync.OnceFunc(func() { close(answer) })
			w := newWorld(t, natsServer(t), unlimited, func(z *zulipsim.Server) {
				z.DuringRegister = func(queue string) {
					mu.Lock()
					tell := made
					made = nil
					mu.Unlock()
					if tell != nil {
						tell <- queue
						<-answer
					}
				}
			})
			t.Cleanup(answers)
			slow := func() chan string {
				mu.Lock()
				defer mu.Unlock()
				made = make(chan string, 1)
				return made
			}
			args := []string{"--log-level", "debug"} // which tells of a queue that could not be deleted
			var told chan string
			var p *harness.Process
			if c.name == "first start" {
				told = slow()
				p = w.run(args...)
			} else {
				p = w.run(args...)
				w.registered()
				w.mark(10)
				w.settle()
				if c.name == "lost queue" {
					told = slow()
					w.zulip.ExpireAll()
				} else {
					_, err := p.Stop()
					harness.Must(t, err)
					told = slow()
					args = append(args, "--slim-presence")
					p = w.run(args...)
				}
			}
			var queue string
			select {
			case queue = <-told:
			case <-time.After(harness.Patience):
				t.Fatal("no queue is asked for")
			}
			w.mark(10)
			signaled := time.Now()
			time.AfterFunc(answerTakes, answers)
			took, err := p.Stop()
			if err != nil {
				t.Error(err)
			}
			t.Logf("the program took %v to stop, of which Zulip had %v to answer", took.Round(time.Millisecond),
				answerTakes)
			if took > stopLimit {
				t.Errorf("the program took %v to stop, want at most %v", took, stopLimit)
			}
			if !harness.Within(harness.Patience, w.registersAnswered) {
				t.Error("a register is not answered")
			}
			named := w.named()
			for _, id := range w.living() {
				switch {
				case id == named:
				case id == queue && (p.Says("could not be deleted", id, "deadline") ||
					w.registeredAt().Sub(signaled) > 2*time.Second):
					// A stop has only so much time, on any machine, and Zulip drops it in the end.
					t.Logf("queue %s was left to Zulip", id)
					w.zulip.ExpireQueue(id)
				default:
					t.Errorf("queue %s lives after the program has ended, and the stream names %q; made in the "+
						"stop was %s", id, named, queue)
				}
			}
			w.run(args...)
			w.healed()
			w.mark(10)
			w.healed()
			if c.name == "first start" {
				return // it begins with the queue that lives
			}
			t.Log(w.whole(c.gaps))
		})
	}
}

// registeredAt is when Zulip has answered the newest register.
func (w *world) registeredAt() (at time.Time) {
	for _, r := range w.zulip.Requests() {
		if r.Kind == zulipsim.Register {
			at = r.Time.Add(r.Took)
		}
	}
	return at
}

// registersAnswered says whether Zulip has no register under way.
func (w *world) registersAnswered() bool {
	for _, r := range w.zulip.Requests() {
		if r.Kind == zulipsim.Register && r.Took == 0 {
			return false
		}
	}
	return true
}

// TestDeleteQueueWithStandby stops the one that works, which deletes its queue, while
// another one waits to go on and events come all the time. What the stream does not hold
// of the old queue came after the place that the gap names; the standby begins behind
// that gap with a queue of its own. The one that works has a slow connection by then, so
// that the standby has all the time it wants.
func TestDeleteQueueWithStandby(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	url := natsServer(t)
	w := newWorld(t, url, unlimited, func(z *zulipsim.Server) { z.RoundTrip = 10 * time.Millisecond })
	run := func() (*harness.Process, *natstest.Proxy) {
		proxy := natstest.NewProxy(t, url)
		w.nats = proxy.URL
		return w.run("--delete-queue", "--lease-ttl", "1m"), proxy // or a slow machine would lose the lease
	}
	works, proxy := run()
	w.registered()
	stop := w.markOn(5 * time.Millisecond)
	const rounds = 4
	gaps := 0
	var deleted []string
	for range rounds {
		waits, next := run()
		waits.Expect("stand", fmt.Sprintf("-%d-", works.PID()))
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
		old := w.named()
		proxy.Delay(100 * time.Millisecond)
		took, err := works.Stop()
		if err == nil {
			deleted = append(deleted, old)
		} else if !outOfTime(works, took) {
			t.Error(err)
		}
		follows := ""
		harness.Eventually(t, "an event stored by the standby", func() bool {
			follows = w.named()
			return waits.Wrote(w.writer()) && follows != "" && (follows != old || works.Says(notRetired))
		})
		if follows != old {
			gaps++
			if err != nil {
				w.zulip.ExpireQueue(old) // which Zulip does when it has been idle
			}
		}
		works, proxy = waits, next
	}
	stop()
	w.healed()
	f := w.whole(gaps)
	dead := map[string]string{}
	for _, q := range w.queues() {
		dead[q.ID] = q.Dead
	}
	for _, id := range deleted {
		if dead[id] != "deleted" {
			t.Errorf("queue %s should be deleted, and is %q", id, dead[id])
		}
	}
	for i := range f.all {
		if m := &f.all[i]; m.Record() == "gap-opened" && !strings.Contains(body(t, m).Cause, "retired") {
			t.Errorf("the cause of a gap should be that the queue was retired: %v", m)
		}
	}
	t.Log(f)
}

// notRetired is what the log says where a queue was to be deleted, and the stream names it
// still.
const notRetired = "was to be deleted, and it was not"

// outOfTime says whether a program that was to delete its queue says that it could not do
// so in the time that a stop has, on any machine.
func outOfTime(p *harness.Process, took time.Duration) bool {
	return took > 2*time.Second && p.Says(notRetired) || p.Says("Zulip did not delete it", "deadline")
}

// markOn is mark at a pace, until stop is called.
func (w *world) markOn(every time.Duration) (stop func()) {
	end := make(chan struct{})
	var marking sync.WaitGroup
	marking.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.mark(1)
			case <-end:
				return
			}
		}
	})
	stop = sync.OnceFunc(func() {
		close(end)
		marking.Wait()
	})
	w.t.Cleanup(stop)
	return stop
}

// TestStandbyDeletesNothing stops a standby that has --delete-queue: the queue is not its
// own.
func TestStandbyDeletesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, natsServer(t), unlimited)
	works := w.run("--lease-ttl", "1m") // or a slow machine would lose the lease
	w.registered()
	for range 3 {
		waits := w.run("--delete-queue", "--lease-ttl", "1m")
		waits.Expect("stand", fmt.Sprintf("-%d-", works.PID()))
		w.mark(10)
		waits.Signal(syscall.SIGTERM)
		if code := waits.ExitCode(); code != 0 {
			t.Errorf("exit code %d of a standby that was stopped", code)
		}
		w.mark(10)
		w.settle()
	}
	if !works.Alive() {
		t.Error("the program that works has ended")
	}
	w.healed()
	w.oneQueue(w.whole(0), 0)
}

// TestDeleteQueueAtStart stops the program while it starts, again and again: with
// --delete-queue the queue that there is from an earlier start goes, unless the program
// is so young that a signal just ends it. The stream and Zulip say the same.
func TestDeleteQueueAtStart(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	w := newWorld(t, natsServer(t), unlimited, func(z *zulipsim.Server) { z.RoundTrip = 10 * time.Millisecond })
	ends := map[string]int{}
	for round := range 20 {
		if round%2 == 0 {
			p := w.run("--lease-ttl", "1m") // or a slow machine would lose the lease
			w.registered()
			w.mark(5)
			w.settle()
			if _, err := p.Stop(); err != nil {
				t.Error(err)
			}
			w.mark(5)
		}
		p := w.run("--delete-queue", "--lease-ttl", "1m")
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
		took, err := p.Stop()
		late := err != nil && outOfTime(p, took)
		if err != nil && !late {
			t.Errorf("round %d: %v", round+1, err)
		}
		if took > stopLimit {
			t.Errorf("round %d: the program took %v to stop, want at most %v", round+1, took, stopLimit)
		}
		if !harness.Within(harness.Patience, w.registersAnswered) {
			t.Error("a register is not answered")
		}
		named, living := w.named(), w.living()
		switch {
		case named == "" && len(living) == 0:
			ends["no queue"]++
		case late && named == "" && len(living) == 1:
			ends["retired, and left to Zulip"]++
			w.zulip.ExpireQueue(living[0])
		case late && len(living) == 1 && living[0] == named:
			ends["a queue, for want of time"]++
		case len(living) == 1 && living[0] == named && p.ExitCode() != 0:
			ends["ended before it handled signals"]++
		default:
			t.Fatalf("round %d: the queues %q live, and the stream names %q", round+1, living, named)
		}
	}
	w.run()
	w.registered()
	w.mark(5)
	w.healed()
	f := w.check().clean(t)
	w.everyMessage(f)
	for _, missing := range harness.Untold(w.queues(), f.all) {
		t.Errorf("not stored, and no gap tells of it: %s", missing)
	}
	t.Logf("left after a stop: %v; %v", ends, f)
}
