// Package systemd tells systemd how the process is, as a service of Type=notify does
// (sd_notify(3)): that it has come up, that its loops turn, and that it stops.
//
//   - READY=1 once, by the rule of /readyz: each realm has led or stood by.
//   - WATCHDOG=1 at half of the time that WatchdogSec= gives, as long as each loop is
//     alive by the rule of /healthz. NATS or Zulip away for hours is no reason to kill the
//     process; a loop that hangs is.
//   - STATUS= is one sentence for each realm for `systemctl status`, whenever the state
//     changes; of more than three realms it is how many are in which state.
//   - STOPPING=1 when the end has begun.
//
// There is no RELOADING=1: while settings are read again all realms but those that change
// go on, so there is no time in which the service is away.
//
// The protocol is a datagram of lines to a socket that a variable names. It is written
// here, in a few lines, and not taken from a library: the usual one reads the variable at
// each message, so it would have to stay, and every child would inherit it.
package systemd

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/logevent"
	"zulip-nats/monitor"
)

const (
	// lookTime is how often the state is looked at for news.
	lookTime = time.Second
	// sendTime is how long a message may wait for systemd to make room for it.
	sendTime = time.Second
)

// Service is what systemd wants to hear of. The nil Service is none: this process was not
// started by systemd, or not as Type=notify.
type Service struct {
	socket   string
	watchdog time.Duration // 0: none
}

// FromEnvironment reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, and takes them out
// of the environment, so that no child speaks for this process. A watchdog that is meant
// for another process is none (sd_watchdog_enabled(3)).
func FromEnvironment() *Service {
	s := &Service{socket: os.Getenv("NOTIFY_SOCKET")}
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	pid := os.Getenv("WATCHDOG_PID")
	if err == nil && usec > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		s.watchdog = time.Duration(usec) * time.Microsecond
	}
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		_ = os.Unsetenv(name) // fails only for names that can be none
	}
	if s.socket == "" {
		return nil
	}
	return s
}

// Tell tells systemd of the realms until ctx ends or stop is called, which returns when
// the last word is said. realms is that of [monitor.New]. If systemd cannot be reached,
// that is a warning, once.
func (s *Service) Tell(ctx context.Context, realms func() []bridge.Status, log zerolog.Logger) (stop func()) {
	if s == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		t := &teller{service: s, log: log}
		t.until(ctx, realms)
	}()
	return func() { cancel(); <-ended }
}

// teller remembers what was said.
type teller struct {
	service *Service
	log     zerolog.Logger
	failed  bool
	ready   bool
	state   string // that of the last STATUS
}

func (t *teller) until(ctx context.Context, realms func() []bridge.Status) {
	look := time.NewTicker(lookTime)
	defer look.Stop()
	var feed <-chan time.Time
	if half := t.service.watchdog / 2; half > 0 {
		ticker := time.NewTicker(half)
		defer ticker.Stop()
		feed = ticker.C
	}
	for {
		t.news(realms())
		select {
		case <-ctx.Done():
			t.send("STOPPING=1", "STATUS=it was asked to stop, or cannot go on")
			return
		case <-look.C:
		case <-feed:
			if alive(realms()) {
				t.send("WATCHDOG=1")
			}
		}
	}
}

// news says what has changed.
func (t *teller) news(realms []bridge.Status) {
	var lines []string
	ready := len(realms) > 0
	for i := range realms {
		ready = ready && realms[i].Ready
	}
	if ready && !t.ready {
		lines = append(lines, "READY=1")
	}
	state, says := summary(realms)
	if state != t.state {
		lines = append(lines, "STATUS="+says)
	}
	if len(lines) > 0 && t.send(lines...) { // else again at the next look
		t.ready, t.state = ready || t.ready, state
	}
}

const (
	// mostSentences is how many realms have a sentence each in STATUS, which is a line for
	// people.
	mostSentences = 3
	// mostNamed is how many of those that do not do their job are named beyond that.
	mostNamed = 5
)

// summary says how the realms are, and what of it is news if it changes: sentences may
// have figures that change all the time.
func summary(realms []bridge.Status) (state, says string) {
	if len(realms) > mostSentences {
		says = monitor.Summary(realms, mostNamed)
		return says, says
	}
	var news, text strings.Builder
	for i := range realms {
		r := &realms[i]
		fmt.Fprintf(&news, "%s %s %v %s\n", r.Realm, r.State, monitor.Alive(r), r.Leader)
		if i > 0 {
			text.WriteString("; ")
		}
		text.WriteString(r.Realm + ": " + monitor.Sentence(r))
	}
	return news.String(), text.String()
}

func alive(realms []bridge.Status) bool {
	for i := range realms {
		if !monitor.Alive(&realms[i]) {
			return false
		}
	}
	return true
}

// send sends one message, one assignment a line, and says whether systemd has it. What
// others have written may be in a line, the name of a leader say: it must not end the
// line, since the rest would be an assignment too.
func (t *teller) send(lines ...string) bool {
	for i := range lines {
		lines[i] = strings.Map(visible, lines[i])
	}
	err := t.service.send(strings.Join(lines, "\n"))
	if err != nil && !t.failed {
		t.failed = true
		logevent.SystemdAway.Warn(t.log).Err(err).
			Msg("systemd cannot be told how this process is; it may take it for one that never comes up, or that " +
				"hangs: look whether the socket that NOTIFY_SOCKET names can be reached from here")
	}
	return err == nil
}

// visible is the character, and a blank for one that only controls a terminal or the
// protocol.
func visible(c rune) rune {
	if unicode.IsControl(c) {
		return ' '
	}
	return c
}

func (s *Service) send(message string) error {
	// A name that begins with @ is one of the abstract sockets, to Go as to systemd.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(sendTime)); err != nil {
		return err
	}
	_, err = conn.Write([]byte(message))
	return err
}
