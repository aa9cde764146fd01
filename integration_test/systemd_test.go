//go:build unix

package integration_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/systemd/systemdtest"
)

// TestSystemd is the program as systemd starts it. NATS is away at first, so it has not
// come up; its watchdog is fed all the same.
func TestSystemd(t *testing.T) {
	t.Parallel()
	socket := systemdtest.Listen(t)
	n := natstest.Start(t)
	w := newWorld(t, n.URL)
	n.Stop()
	p := w.runAs(func(c *exec.Cmd) {
		c.Env = append(c.Env, "NOTIFY_SOCKET="+socket.Path, "WATCHDOG_USEC=2000000")
	})
	var told []string
	fed := func() (n int) {
		told = append(told, socket.Read()...)
		for _, line := range told {
			if line == "WATCHDOG=1" {
				n++
			}
		}
		return n
	}
	harness.Eventually(t, "a watchdog that is fed", func() bool { return fed() >= 2 })
	if slices.Contains(told, "READY=1") {
		t.Errorf("without NATS it has come up: %q", told)
	}
	n.Restart()
	harness.Eventually(t, "READY=1", func() bool { fed(); return slices.Contains(told, "READY=1") })
	harness.Eventually(t, "its state in words", func() bool {
		fed()
		return slices.Contains(told, "STATUS=acme: events are polled and stored")
	})
	told = nil
	harness.Eventually(t, "the watchdog to be fed on", func() bool { return fed() >= 2 })
	told = nil
	if _, err := p.Stop(); err != nil {
		t.Error(err)
	}
	fed()
	stopping := slices.Index(told, "STOPPING=1")
	if stopping < 0 || len(told) != stopping+2 || !strings.HasPrefix(told[stopping+1], "STATUS=") {
		t.Errorf("in the end %q is told", told)
	}
}
