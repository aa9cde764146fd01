//go:build unix

package systemd

import (
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/monitor"
	"zulip-nats/systemd/systemdtest"
)

// environment sets what systemd would; what is not named is not set.
func environment(t *testing.T, all map[string]string) {
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		t.Setenv(name, "") // so that it comes back afterwards
		os.Unsetenv(name)
		if value, is := all[name]; is {
			os.Setenv(name, value)
		}
	}
}

func TestFromEnvironment(t *testing.T) {
	us := strconv.Itoa(os.Getpid())
	for _, test := range []struct {
		set      map[string]string
		none     bool
		watchdog time.Duration
	}{
		{nil, true, 0},
		{map[string]string{"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": us}, true, 0},
		{map[string]string{"NOTIFY_SOCKET": ""}, true, 0},
		{map[string]string{"NOTIFY_SOCKET": "/s"}, false, 0},
		{map[string]string{"NOTIFY_SOCKET": "@s", "WATCHDOG_USEC": "1500000"}, false, 1500 * time.Millisecond},
		{map[string]string{"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": us}, false, 30 * time.Second},
		{map[string]string{"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, false, 0},
		{map[string]string{"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "-1"}, false, 0},
		{map[string]string{"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "soon"}, false, 0},
	} {
		environment(t, test.set)
		s := FromEnvironment()
		if (s == nil) != test.none || s != nil && (s.watchdog != test.watchdog || s.socket != test.set["NOTIFY_SOCKET"]) {
			t.Errorf("%v: %+v", test.set, s)
		}
		for name := range test.set {
			if _, is := os.LookupEnv(name); is {
				t.Errorf("%v: a child would get %s", test.set, name)
			}
		}
	}
}

// Without systemd nothing is looked at.
func TestWithoutSystemd(*testing.T) {
	var none *Service
	none.Tell(context.Background(), func() []bridge.Status { panic("who asks?") }, zerolog.Nop())()
}

// realms are what a test says they are.
type realms struct {
	mu  sync.Mutex
	all []bridge.Status
}

func (r *realms) set(all ...bridge.Status) { r.mu.Lock(); defer r.mu.Unlock(); r.all = all }
func (r *realms) get() []bridge.Status     { r.mu.Lock(); defer r.mu.Unlock(); return slices.Clone(r.all) }

// TestWhatIsTold goes through the states of two realms, to the second.
func TestWhatIsTold(t *testing.T) {
	socket := systemdtest.Listen(t)
	synctest.Test(t, func(t *testing.T) {
		var r realms
		acme := bridge.Status{Realm: "acme", State: bridge.Starting}
		other := bridge.Status{Realm: "other", State: bridge.Starting}
		r.set(acme, other)
		service := &Service{socket: socket.Path, watchdog: 10 * time.Second}
		var log strings.Builder
		stop := service.Tell(t.Context(), r.get, zerolog.New(&log))
		// what is told within a time, but for the watchdog, which is counted
		told := func(lasts time.Duration, fed int, want ...string) {
			t.Helper()
			var got []string
			n := 0
			for until := time.Now().Add(lasts); time.Now().Before(until); {
				time.Sleep(time.Second)
				synctest.Wait()
				for _, line := range socket.Read() {
					if line == "WATCHDOG=1" {
						n++
					} else {
						got = append(got, line)
					}
				}
			}
			if n != fed || !slices.Equal(got, want) {
				t.Errorf("the watchdog was fed %d times, want %d; told was %q, want %q", n, fed, got, want)
			}
		}
		time.Sleep(time.Second / 2) // between the ticks
		told(10*time.Second, 2, "STATUS=acme: it is not known yet who leads, or where to go on; "+
			"other: it is not known yet who leads, or where to go on")
		acme.State, acme.Ready = bridge.Following, true
		r.set(acme, other)
		told(10*time.Second, 2, "STATUS=acme: events are polled and stored; other: it is not known yet who leads, or where to go on")
		other.State, other.Ready, other.Leader = bridge.Standby, true, "host-2"
		r.set(acme, other)
		told(10*time.Second, 2, "READY=1",
			"STATUS=acme: events are polled and stored; other: this instance stands by, host-2 leads")
		told(time.Hour, 720) // an hour in which nothing happens
		acme.State = bridge.WaitingNATS
		r.set(acme, other)
		told(time.Hour, 720, "STATUS=acme: "+monitor.Sentence(&acme)+"; other: this instance stands by, host-2 leads")
		other.Late = monitor.WedgedAfter // which is not too much
		r.set(acme, other)
		told(time.Minute, 12)
		other.Late++
		r.set(acme, other)
		told(10*time.Second, 0, "STATUS=acme: "+monitor.Sentence(&acme)+"; other: "+monitor.Sentence(&other))
		other.Late += time.Second
		r.set(acme, other)
		told(time.Minute, 0)
		other.Late = 0
		r.set(acme, other)
		told(10*time.Second, 2, "STATUS=acme: "+monitor.Sentence(&acme)+"; other: this instance stands by, host-2 leads")
		acme.State = bridge.Stopped // and systemd was not told that the process ends
		r.set(acme, other)
		told(10*time.Second, 0, "STATUS=acme: its loop has ended; other: this instance stands by, host-2 leads")
		stop()
		if got := socket.Read(); len(got) != 2 || got[0] != "STOPPING=1" {
			t.Errorf("in the end %q is told", got)
		}
		if log.Len() > 0 {
			t.Errorf("the log says %s", log.String())
		}
	})
}

// What somebody else has written, as the name of a leader is, gives systemd no order.
func TestStatusIsOneLine(t *testing.T) {
	socket := systemdtest.Listen(t)
	for _, name := range []string{"x\nWATCHDOG=trigger", "x\rMAINPID=1", "x\x00y\x1b[31m\u0085z"} {
		teller := &teller{service: &Service{socket: socket.Path}, log: zerolog.Nop()}
		teller.news([]bridge.Status{{Realm: "acme", State: bridge.Standby, Leader: name}})
		got := socket.Read()
		blank := strings.NewReplacer("\n", " ", "\r", " ", "\x00", " ", "\x1b", " ", "\u0085", " ").Replace(name)
		if want := "STATUS=acme: this instance stands by, " + blank + " leads"; !slices.Equal(got, []string{want}) {
			t.Errorf("a leader %q: told is %q, want %q", name, got, want)
		}
	}
}

// Without WatchdogSec= nothing is fed. A socket that is not there is said once, is no
// reason to end, and may be there later.
func TestWithoutWatchdog(t *testing.T) {
	socket := systemdtest.Listen(t)
	synctest.Test(t, func(t *testing.T) {
		get := func() []bridge.Status {
			return []bridge.Status{{Realm: "acme", State: bridge.Following, Ready: true, Since: time.Now(),
				Leader: time.Now().String()}} // which is news each time
		}
		var log strings.Builder
		stop := (&Service{socket: socket.Path}).Tell(t.Context(), get, zerolog.Nop())
		away := (&Service{socket: socket.Path + "-not"}).Tell(t.Context(), get, zerolog.New(&log))
		for range 60 {
			time.Sleep(time.Second)
			if got := socket.Read(); slices.Contains(got, "WATCHDOG=1") {
				t.Errorf("told is %q", got)
			}
		}
		stop()
		socket.Read()
		// What was not heard is said again.
		if err := os.Symlink(socket.Path, socket.Path+"-not"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if got := socket.Read(); len(got) == 0 || got[0] != "READY=1" {
			t.Errorf("told is %q", got)
		}
		away()
		if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, `"event":"systemd_away"`) {
			t.Errorf("the log says %s", text)
		}
	})
}

// Of more than three realms STATUS says how many are in which state, and names some of
// those that need somebody. What does not change that is no news.
func TestStatusOfMany(t *testing.T) {
	socket := systemdtest.Listen(t)
	teller := &teller{service: &Service{socket: socket.Path}, log: zerolog.Nop()}
	told := func(want string, of ...bridge.Status) {
		t.Helper()
		teller.news(of)
		var lines []string
		if want != "" {
			lines = []string{"STATUS=" + want}
		}
		if got := socket.Read(); !slices.Equal(got, lines) {
			t.Errorf("told is %q, want %q", got, lines)
		}
	}
	many := make([]bridge.Status, 1000)
	for i := range many {
		many[i] = bridge.Status{Realm: "r" + strconv.Itoa(i), State: bridge.Following}
	}
	told("1000 realms: 1000 following", many...)
	many[3].Leader = "host-2"
	told("", many...)
	many[3].State, many[7].Late = bridge.Standby, monitor.WedgedAfter+1
	told("1000 realms: 1 standby, 998 following, 1 wedged; not doing their job: r7", many...)
	many[7].Late += time.Second
	told("", many...)
	for i := range 9 {
		many[100+i].State = bridge.WaitingZulip
	}
	told("1000 realms: 1 standby, 989 following, 9 waiting-zulip, 1 wedged; not doing their job: "+
		"r7, r100, r101, r102, r103 and 5 more", many...)
	told("r0: events are polled and stored; r1: events are polled and stored; r2: events are polled and stored", many[:3]...)
}
