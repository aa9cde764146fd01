package poller

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	xrate "golang.org/x/time/rate"

	"zulip-nats/health"
	"zulip-nats/zulipsim"
)

// TestRegistersShared: pollers that share a limit register no faster than it allows, the
// tries behind a failure included. Who waits has a pulse, and can be told to stop.
func TestRegistersShared(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		limit := xrate.NewLimiter(xrate.Every(8*time.Second), 1)
		w.Registers = limit
		another := func() *Poller {
			return &Poller{Client: &Client{Transport: w.tap, Account: w.Client.Account}, Options: DefaultOptions(),
				Registers: limit}
		}
		began := time.Now()
		w.register() // at once
		stopped, stop := context.WithCancel(t.Context())
		gone := make(chan error)
		go func() { _, err := another().Register(stopped); gone <- err }()
		synctest.Wait() // it has the place of 8 s
		var pulse health.Pulse
		second := make(chan error)
		go func() {
			_, err := another().Register(health.WithPulse(t.Context(), &pulse))
			second <- err
		}()
		time.Sleep(5 * time.Second)
		stop()
		if err := <-gone; err != context.Canceled {
			t.Errorf("one that is stopped while it waits gives %v", err)
		}
		time.Sleep(10 * time.Second)
		if late := pulse.Late(); late != 0 {
			t.Errorf("one that waits seems to hang for %v", late)
		}
		if err := <-second; err != nil || time.Since(began).Round(time.Millisecond) != 16*time.Second {
			t.Errorf("the second: %v after %v, want 16 s", err, time.Since(began))
		}
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Register, Times: 1, Status: 502})
		if _, err := another().Register(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(began).Round(time.Millisecond); took != 32*time.Second {
			t.Errorf("the third, which fails once, is there after %v, want 32 s", took)
		}
	})
}
