package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"zulip-nats/stream/natstest"
)

// terminal is one of so many columns: what is written to tty comes out of the other side.
func terminal(t *testing.T, columns uint16) (tty, other *os.File) {
	t.Helper()
	other, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	fd := int(other.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
		t.Fatal(err)
	}
	if tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return tty, other
}

// On a terminal lines are as wide as that and in colours, unless NO_COLOR is set; the
// bytes as sent are refused there.
func TestTailOnATerminal(t *testing.T) {
	begin(t)
	t.Setenv("TERM", "xterm")
	srv := natstest.Start(t)
	js := srv.JetStream()
	realmStream(t, js, "ZULIP_acme", "zulip.acme.>")
	publish(t, js, "acme", strings.Repeat("long ", 40))
	for _, noColor := range []string{"", "1"} {
		t.Setenv("NO_COLOR", noColor)
		tty, other := terminal(t, 50)
		var stderr bytes.Buffer
		if code := Run(t.Context(), []string{"tail", "--format", "raw"}, tty, &stderr); code != 2 ||
			!strings.Contains(stderr.String(), "take over this terminal") {
			t.Errorf("raw on a terminal: exit code %d: %s", code, stderr.String())
		}
		stderr.Reset()
		if code := Run(t.Context(), []string{"tail", "--nats-url", srv.URL, "--last", "1", "--no-follow"}, tty, &stderr); code != 0 {
			t.Fatalf("exit code %d: %s", code, stderr.String())
		}
		tty.Close()
		shown, err := io.ReadAll(other)
		if !errors.Is(err, unix.EIO) { // what Linux says behind the last byte of a closed terminal
			t.Fatal(err)
		}
		out := string(shown)
		if got := strings.Contains(out, "\x1b["); got == (noColor != "") {
			t.Errorf("NO_COLOR=%s: %q", noColor, out)
		}
		if noColor != "" {
			lines := strings.Split(strings.TrimSpace(out), "\r\n")
			last := []rune(lines[len(lines)-1])
			if len(last) != 50 || last[49] != '…' {
				t.Errorf("%d columns: %q", len(last), out)
			}
		}
	}
}
