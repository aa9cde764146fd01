//go:build unix

package bridge_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/systemd"
	"zulip-nats/systemd/systemdtest"
)

// TestWatchdogOfAWedgedLoop: systemd's watchdog is fed while NATS is away for an hour, and
// not while a loop hangs.
func TestWatchdogOfAWedgedLoop(t *testing.T) {
	socket := systemdtest.Listen(t)
	t.Setenv("NOTIFY_SOCKET", socket.Path)
	t.Setenv("WATCHDOG_USEC", "30000000")
	service := systemd.FromEnvironment()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.close()
		one := w.instance()
		trap := &snare{op: "poll", end: make(chan struct{})}
		w.configure = func(c *bridge.Config) {
			c.Poller.Client.Transport = &snaredWire{c.Poller.Client.Transport, trap}
		}
		one.start()
		status := func() []bridge.Status { return []bridge.Status{one.bridge.Status()} }
		defer service.Tell(t.Context(), status, zerolog.Nop())()
		var said []string
		// fed is how often the watchdog was within a time
		fed := func(lasts time.Duration) (n int) {
			for until := time.Now().Add(lasts); time.Now().Before(until); {
				time.Sleep(time.Second)
				for _, line := range socket.Read() {
					if line == "WATCHDOG=1" {
						n++
					} else {
						said = append(said, line)
					}
				}
			}
			return n
		}
		time.Sleep(time.Second / 2)
		if n := fed(time.Minute); n != 4 || !slices.Contains(said, "READY=1") ||
			!slices.Contains(said, "STATUS=acme: events are polled and stored") {
			t.Errorf("the watchdog was fed %d times, and told was %q", n, said)
		}
		w.setDown(true)
		w.say(1)
		if n := fed(time.Hour); n != 240 {
			t.Errorf("the watchdog was fed %d times in an hour without NATS, want 240", n)
		}
		w.setDown(false)
		fed(time.Minute)
		trap.set.Store(true)
		w.say(1)
		fed(3 * time.Minute)
		if n := fed(time.Hour); n != 0 || !trap.has.Load() {
			t.Errorf("the watchdog was fed %d times while the loop hung", n)
		}
		trap.set.Store(false)
		close(trap.end)
		fed(3 * time.Minute)
		if n := fed(time.Minute); n != 4 {
			t.Errorf("the watchdog was fed %d times in a minute when the loop went on, want 4", n)
		}
	})
}
