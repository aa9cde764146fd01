package integration_test

import (
	"syscall"
	"testing"

	"zulip-nats/integration_test/harness"
)

// TestDemo stops the demo as a terminal does, where Ctrl-C goes to all processes that run on
// it: while one of its bridges was killed, and while NATS is stopped.
func TestDemo(t *testing.T) {
	t.Parallel()
	for _, mark := range []string{"kill -9", "NATS is stopped"} {
		p, err := harness.Start(harness.NewJournal(t, "demo"), "demo", "--beat", "500ms")
		harness.Must(t, err)
		t.Cleanup(p.Kill)
		p.Expect("── ", mark)
		harness.Must(t, syscall.Kill(-p.PID(), syscall.SIGINT)) // its process group
		if code := p.ExitCode(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		p.Expect("sent by Zulip", "lost 0, twice 0")
	}
}
