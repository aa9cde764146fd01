package integration_test

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"zulip-nats/integration_test/harness"
	"zulip-nats/zulipsim"
)

// terminal opens a terminal of its own for a program: what is typed, and what the program
// has for its standard input.
func terminal(t testing.TB) (typed, tty *os.File) {
	t.Helper()
	typed, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	harness.Must(t, err)
	t.Cleanup(func() { typed.Close() })
	harness.Must(t, unix.IoctlSetPointerInt(int(typed.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(typed.Fd()), unix.TIOCGPTN)
	harness.Must(t, err)
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	harness.Must(t, err)
	t.Cleanup(func() { tty.Close() })
	return typed, tty
}

// TestHangup sends SIGHUP, which means three things: a daemon is to read its settings
// again, and goes on; whoever began it on a terminal has closed that; and where it was
// ignored before (nohup), it still is.
func TestHangup(t *testing.T) {
	// These tests may run with nohup themselves. What is caught here is not ignored there.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(caught) })
	for _, c := range []struct {
		name            string
		terminal, nohup bool
		ends            bool
	}{
		{"daemon", false, false, false},
		{"on a terminal", true, false, true},
		{"on a terminal with nohup", true, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, natsServer(t))
			p := w.runAs(func(cmd *exec.Cmd) {
				if c.terminal {
					_, cmd.Stdin = terminal(t)
				}
				if c.nohup {
					cmd.Args = append([]string{"sh", "-c", `trap "" HUP; exec "$0" "$@"`}, cmd.Args...)
					cmd.Path = "/bin/sh"
				}
			})
			w.registered()
			w.mark(1)
			w.settle()
			p.Signal(syscall.SIGHUP)
			p.Signal(syscall.SIGHUP) // a shell and the kernel each send one
			if c.ends {
				if code := p.ExitCode(); code != 0 {
					t.Errorf("exit code %d", code)
				}
				if q := w.queues(); len(q) != 1 || q[0].Dead != "" {
					t.Errorf("the queue was not left standing: %v", q)
				}
				return
			}
			hung := time.Now()
			w.mark(1)
			harness.EventuallyQueue(t, "a poll behind the signal", w.queues,
				func(q zulipsim.QueueInfo) bool { return q.Waiting && q.LastWait.After(hung) })
			if _, err := p.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
}
