package cli

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"zulip-nats/embedded"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// zuliprc writes a file as Zulip serves it, and returns its path.
func (s *story) zuliprc(email, key, site string) string {
	s.Helper()
	return s.zuliprcAt(filepath.Join(s.home, "zuliprc"), email, key, site)
}

// zuliprcAt writes one to a path, and returns that.
func (s *story) zuliprcAt(path, email, key, site string) string {
	s.Helper()
	if err := os.WriteFile(path, fmt.Appendf(nil, "[api]\nemail=%s\nkey=%s\nsite=%s\n", email, key, site),
		0o600); err != nil {
		s.Fatal(err)
	}
	return path
}

// nobody is an account of a server that is not there.
func (s *story) nobody() string {
	return s.zuliprcAt(filepath.Join(s.home, "nobody.zuliprc"), "bot@chat.example.org",
		"abcdefghijklmnopqrstuvwxyzABCDEF", "https://127.0.0.1:1")
}

func freePort(t testing.TB) string { return strconv.Itoa(natstest.FreePort(t)) }

func TestNoZuliprc(t *testing.T) {
	s := begin(t)
	s.runs("run").want(t, 78, "zuliprc")
	s.runs("run", "--zuliprc", filepath.Join(s.home, "not-there.rc")).want(t, 78, "not-there.rc")
	t.Setenv("ZULIP_CONFIG", filepath.Join(s.home, "nor-there.rc"))
	s.runs("run").want(t, 78, "nor-there.rc")

	path := filepath.Join(s.home, "zuliprc")
	if err := os.WriteFile(path, []byte("[api]\nemail=bot@chat.example.org\nsite=https://chat.example.org\n"),
		0o600); err != nil {
		t.Fatal(err)
	}
	s.runs("run", "--zuliprc", path).want(t, 78, "zuliprc", "key")
	// Nothing was started or made for any of them.
	if _, err := os.Stat(filepath.Join(s.home, ".local")); !os.IsNotExist(err) {
		t.Errorf("a state folder was made: %v", err)
	}
}

func TestSiteWithoutName(t *testing.T) {
	s := begin(t)
	path := s.zuliprc("bot@example.org", "abcdefghijklmnopqrstuvwxyzABCDEF", "https://z\u00fclip.example.org")
	s.runs("run", "--zuliprc", path, "--nats-port", freePort(t)).want(t, 78, "--realm")
}

func TestPortTaken(t *testing.T) {
	s := begin(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	s.runs("run", "--zuliprc", s.nobody(), "--nats-port", port).
		want(t, 1, "port "+port+" of 127.0.0.1 is taken", "--nats-url nats://127.0.0.1:"+port, "--nats-port")
}

func TestFolderInUse(t *testing.T) {
	s := begin(t)
	dir := filepath.Join(s.home, "state")
	other, err := embedded.Start(embedded.Options{Dir: filepath.Join(dir, "nats")})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Shutdown()
	s.runs("run", "--zuliprc", s.nobody(), "--nats-port", freePort(t), "--state-dir", dir).
		want(t, 1, filepath.Join(dir, "nats"), "in use", "--state-dir")
}

func TestFolderThatIsNone(t *testing.T) {
	s := begin(t)
	file := filepath.Join(s.home, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.runs("run", "--zuliprc", s.nobody(), "--nats-port", freePort(t), "--state-dir", file).want(t, 78, file,
		"--state-dir")
}

// From the first line of the log on, stderr is JSON for whoever collects it; the error
// that ends the program too.
func TestErrorsAreLogLines(t *testing.T) {
	s := begin(t)
	e := s.runs("run", "--zuliprc", filepath.Join(s.home, "not-there.rc"))
	e.want(t, 78)
	for line := range strings.Lines(e.stderr) {
		var fields struct{ Level, Time, Message string }
		if err := json.Unmarshal([]byte(line), &fields); err != nil || fields.Time == "" || fields.Level != "error" {
			t.Errorf("no line of a log: %s (%v)", line, err)
		}
	}
	e = s.runs("run", "--log-format", "console", "--zuliprc", filepath.Join(s.home, "not-there.rc"))
	e.want(t, 78, "ERR")
}

// An afternoon with one command: no NATS anywhere, one zuliprc. It is stopped, things
// happen, it is started again.
func TestRunWithNothingButAZuliprc(t *testing.T) {
	s := begin(t)
	zulip := &zulipsim.Server{}
	site := zulip.Start(t)
	bot := zulip.Account("bridge-bot@example.com")
	t.Setenv("ZULIP_EMAIL", bot.Email) // the file's is wrong: variables come first
	file := s.zuliprc("wrong@example.com", bot.Key, site)
	state := filepath.Join(s.home, "xdg")
	t.Setenv("XDG_STATE_HOME", state)
	port := freePort(t)
	args := []string{"run", "--zuliprc", file, "--realm", "acme", "--nats-port", port, "--no-lease"}

	p := s.starts(args...)
	p.waits("a queue that is polled", func() bool { q := zulip.Queues(); return len(q) == 1 && q[0].Waiting })
	zulip.SendMessage(zulipsim.Message{Channel: "announce", Topic: "release", Content: "one"})
	p.waits("one message", func() bool { return len(stored(t, port)) == 1 })
	if code := p.stops(); code != 0 {
		t.Fatalf("exit code %d after a stop:\n%s", code, p.err.String())
	}
	folder := filepath.Join(state, "zulip-nats", "nats")
	for _, word := range []string{"nats://127.0.0.1:" + port, folder, "stopped"} {
		if !strings.Contains(p.err.String(), word) {
			t.Errorf("the log does not say %q:\n%s", word, p.err.String())
		}
	}
	var last struct {
		Event, Message string
		Events         int `json:"events_stored"`
		Bytes          int `json:"bytes_stored"`
		Polls          int
		Gaps           *int `json:"gaps_opened"`
		Refilled       *int `json:"messages_refilled"`
	}
	lines := strings.Split(strings.TrimSpace(p.err.String()), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Event != "stopped" ||
		last.Message != "stopped" || last.Events < 1 || last.Bytes < 100 || last.Polls < 1 || last.Gaps == nil ||
		*last.Gaps != 0 || last.Refilled == nil || *last.Refilled != 0 {
		t.Errorf("the last line is %s; want the sum of what was done (%v)", lines[len(lines)-1], err)
	}
	if strings.Contains(p.err.String()+p.out.String(), bot.Key) {
		t.Errorf("the key is in the log:\n%s", p.err.String())
	}
	if p.out.String() != "" {
		t.Errorf("stdout: %s", p.out.String())
	}

	zulip.SendMessage(zulipsim.Message{Channel: "announce", Topic: "release", Content: "two"})
	p = s.starts(args...)
	p.waits("both messages", func() bool { return len(stored(t, port)) == 2 })
	got := stored(t, port)
	p.stops()
	if !strings.Contains(got[0], `"one"`) || !strings.Contains(got[1], `"two"`) {
		t.Errorf("stored: %q", got)
	}
	if n := len(zulip.Queues()); n != 1 {
		t.Errorf("%d queues, not the one it began with", n)
	}

	// Done with it for good. That the last program's poll has ended, Zulip learns a little
	// later than we do.
	began := time.Now()
	p = s.starts(append(args, "--delete-queue")...)
	p.waits("the queue polled again", func() bool {
		q := zulip.Queues()[0]
		return q.Waiting && q.LastWait.After(began)
	})
	if code := p.stops(); code != 0 {
		t.Errorf("exit code %d after a stop with --delete-queue:\n%s", code, p.err.String())
	}
	if q := zulip.Queues(); len(q) != 1 || q[0].Dead != "deleted" {
		t.Errorf("after --delete-queue: %d queues, the first one %q", len(q), q[0].Dead)
	}
}

// stored reads the messages of realm acme back; none if there is no server or no stream
// yet.
func stored(t testing.TB, port string) []string {
	t.Helper()
	nc, err := nats.Connect("nats://127.0.0.1:"+port, nats.Timeout(time.Minute))
	if err != nil {
		return nil
	}
	defer nc.Close()
	js := natstest.JetStream(t, nc)
	stream, err := js.Stream(t.Context(), "ZULIP_acme")
	if err != nil {
		return nil
	}
	info, err := stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var bodies []string
	for seq := info.State.FirstSeq; seq > 0 && seq <= info.State.LastSeq; seq++ {
		m, err := stream.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		if m.Subject == "zulip.acme.message" {
			bodies = append(bodies, string(m.Data))
		}
	}
	return bodies
}

// What is set for the nats command is no reason not to work with the embedded server.
func TestCredentialsWithoutURL(t *testing.T) {
	s := begin(t)
	t.Setenv("NATS_USER", "somebody")
	t.Setenv("NATS_CREDS", filepath.Join(s.home, "not-there.creds"))
	p := s.starts("run", "--zuliprc", s.nobody(), "--nats-port", freePort(t), "--no-lease")
	p.waits("a connection to NATS", func() bool { return strings.Contains(p.err.String(), "connected to NATS") })
	p.stops()
	if !strings.Contains(p.err.String(), "no NATS URL: the embedded server does not use them") {
		t.Errorf("the log does not say that the credentials are not used:\n%s", p.err.String())
	}
}

// NATS away at the start is one line, with the reason, and nothing is said of JetStream,
// of which nothing is known.
func TestNATSAwayIsOneLine(t *testing.T) {
	s := begin(t)
	p := s.starts("run", "--zuliprc", s.nobody(), "--realm", "acme", "--nats-url", "nats://127.0.0.1:1")
	p.waits("a line about it", func() bool { return strings.Contains(p.err.String(), "NATS is not there") })
	p.stops()
	if text := p.err.String(); strings.Count(text, `"level":"warn"`) != 1 ||
		!strings.Contains(text, "connection refused\",\"time") || strings.Contains(text, "JetStream") {
		t.Errorf("it says\n%s", text)
	}
}

// And so is Zulip away, with what to look at; that it does not say who we are goes
// without saying then.
func TestZulipAwayIsOneLine(t *testing.T) {
	s := begin(t)
	p := s.starts("run", "--zuliprc", s.nobody(), "--realm", "acme", "--no-lease", "--nats-port", freePort(t))
	p.waits("a line about it", func() bool { return strings.Contains(p.err.String(), "cannot be reached") })
	p.stops()
	if text := p.err.String(); strings.Count(text, "connection refused") != 1 ||
		!strings.Contains(text, "look whether the site is right") || strings.Contains(text, "does not say") {
		t.Errorf("it says\n%s", text)
	}
}

// A key that Zulip refuses from the start is not tried for ever.
func TestKeyRefusedAtStart(t *testing.T) {
	s := begin(t)
	zulip := &zulipsim.Server{}
	site := zulip.Start(t)
	bot := zulip.Account("bridge-bot@example.com")
	file := s.zuliprc(bot.Email, strings.Repeat("x", 32), site)
	s.runs("run", "--zuliprc", file, "--realm", "acme", "--nats-port", freePort(t), "--no-lease").
		want(t, 78, bot.Email, `"level":"error","realm":"acme","event":"key_refused"`)
}
