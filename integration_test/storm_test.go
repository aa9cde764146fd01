package integration_test

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"zulip-nats/integration_test/harness"
	"zulip-nats/zulipsim"
)

// TestFleetStorm: two programs share some realms, people talk in all of them, and
// the file changes all the time: realms go and come back, get other options, two changes
// within the time that a file is left alone, SIGHUP in between, a program that is killed.
// In the end each event is in its stream once and in order, from one queue.
func TestFleetStorm(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	f := newFleet(t, 6)
	a, b := f.run(), f.run()
	for _, w := range f.realms {
		w.registered()
	}
	var stops []func()
	for _, w := range f.realms {
		stops = append(stops, w.chat(rng, 20))
	}
	again := func() *harness.Process {
		p := f.run()
		p.Expect(`"event":"let_in"`) // before its first line SIGHUP may just end it
		return p
	}
	all := []int{0, 1, 2, 3, 4, 5}
	for began := time.Now(); time.Since(began) < *fleetStage*5; {
		f.only, f.more = nil, map[int]string{}
		for _, i := range all {
			if i == 0 || rng.IntN(4) > 0 { // the first is never touched
				f.only = append(f.only, i)
			}
			if i > 0 && rng.IntN(3) == 0 {
				f.more[i] = fmt.Sprintf("oversize-wait = %ds\n", 60+rng.IntN(100))
			}
		}
		f.configure()
		for _, p := range []*harness.Process{a, b} {
			for range rng.IntN(3) {
				p.Signal(syscall.SIGHUP)
			}
			if !p.Alive() {
				t.Fatal("a program ended")
			}
		}
		switch rng.IntN(20) {
		case 0:
			b.Kill()
			b = again()
		case 1:
			a.Signal(syscall.SIGTERM)
			if code := a.ExitCode(); code != 0 {
				t.Errorf("exit code %d", code)
			}
			a = again()
		}
		time.Sleep(time.Duration(rng.IntN(600)) * time.Millisecond)
	}
	f.only, f.more = nil, nil
	f.configure()
	for _, stop := range stops {
		stop()
	}
	f.whole()
	for _, p := range []*harness.Process{a, b} {
		for _, line := range slices.Concat(p.Lines("realm_halted"), p.Lines("realm_ended"), p.Lines(`"level":"error"`)) {
			t.Errorf("a program says %s", line)
		}
	}
}

// A second program comes while the first one registers queues, which takes Zulip a while. A
// hand-over finishes what is in hand: the queue that is being made is not thrown away, and
// what happens between it and another one is not lost.
func TestFleetHandOverWhileRegistering(t *testing.T) {
	t.Parallel()
	for _, again := range []bool{false, true} {
		t.Run(map[bool]string{false: "first", true: "after a loss"}[again], func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, 4)
			slow := func() {
				for _, w := range f.realms {
					w.zulip.Fault(zulipsim.Fault{On: zulipsim.Register, Delay: 5 * time.Second})
				}
			}
			want := 1
			if !again {
				slow()
			}
			a := f.run()
			if again {
				want = 2
				for _, w := range f.realms {
					w.registered()
				}
				slow()
				for _, w := range f.realms {
					w.zulip.ExpireAll()
				}
			}
			made := func() bool {
				for _, w := range f.realms {
					if len(w.queues()) < want {
						return false
					}
				}
				return true
			}
			harness.Eventually(t, "queues that are made, and of which the first program does not know", made)
			for _, w := range f.realms {
				w.started = time.Now()
			}
			b := f.run()
			for _, w := range f.realms {
				w.registered()
			}
			f.realms[0].mark(1)
			for _, w := range f.realms {
				alive := 0
				for _, q := range w.queues() {
					if q.Dead == "" {
						alive++
					}
				}
				if n := len(w.queues()); n != want {
					t.Errorf("realm %s: %d queues were made, want %d, and %d live on; a handed over %d, b %d", w.realm, n, want,
						alive, len(a.Lines("handed_over")), len(b.Lines("handed_over")))
				}
			}
		})
	}
}
