package cli

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"zulip-nats/stream/natstest"
)

// story is one afternoon of a user: a home of its own, no variables of this program set,
// and the program to run.
type story struct {
	*testing.T
	home string
}

func begin(t *testing.T) *story {
	t.Helper()
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, "ZULIP_") || strings.HasPrefix(name, "NATS_") || strings.HasPrefix(name, "XDG_") {
			t.Setenv(name, "") // so that it comes back afterwards
			os.Unsetenv(name)
		}
	}
	s := &story{T: t, home: t.TempDir()}
	t.Setenv("HOME", s.home)
	return s
}

// ended is what a run of the program left.
type ended struct {
	code           int
	stdout, stderr string
}

// runs runs the program until it ends by itself.
func (s *story) runs(args ...string) ended {
	s.Helper()
	var out, err natstest.Buffer
	ctx, cancel := context.WithTimeout(s.Context(), 2*time.Minute)
	defer cancel()
	code := Run(ctx, args, &out, &err)
	if ctx.Err() != nil {
		s.Fatalf("zulip-nats %s did not end:\n%s%s", strings.Join(args, " "), out.String(), err.String())
	}
	return ended{code, out.String(), err.String()}
}

// started is a program that runs.
type started struct {
	*story
	out, err natstest.Buffer
	stop     context.CancelFunc
	code     chan int
}

// starts runs the program until it is told to stop.
func (s *story) starts(args ...string) *started {
	ctx, cancel := context.WithCancel(s.Context())
	p := &started{story: s, stop: cancel, code: make(chan int, 1)}
	go func() { p.code <- Run(ctx, args, &p.out, &p.err) }()
	s.Cleanup(func() { p.stops() })
	return p
}

// stops tells the program to stop, as a signal would, and gives the exit code; again
// gives it again.
func (p *started) stops() int {
	p.Helper()
	p.stop()
	select {
	case code := <-p.code:
		p.code <- code
		return code
	case <-time.After(2 * time.Minute):
		p.Fatalf("it does not stop:\n%s%s", p.out.String(), p.err.String())
		return -1
	}
}

// waits waits until a condition holds.
func (p *started) waits(what string, ready func() bool) {
	p.Helper()
	for end := time.Now().Add(2 * time.Minute); !ready(); time.Sleep(10 * time.Millisecond) {
		select {
		case code := <-p.code:
			p.code <- code
			if ready() { // the end may be what was waited for
				return
			}
			p.Fatalf("it ended with %d instead of: %s\n%s%s", code, what, p.out.String(), p.err.String())
		default:
		}
		if time.Now().After(end) {
			p.Fatalf("never: %s\n%s%s", what, p.out.String(), p.err.String())
		}
	}
}

// want checks the end of a run: the code, words on stderr, and nothing on stdout.
func (e ended) want(t testing.TB, code int, words ...string) ended {
	t.Helper()
	if e.code != code {
		t.Errorf("exit code %d, not %d", e.code, code)
	}
	for _, w := range words {
		if !strings.Contains(e.stderr, w) {
			t.Errorf("stderr does not say %q", w)
		}
	}
	if e.stdout != "" {
		t.Errorf("stdout: %s", e.stdout)
	}
	if t.Failed() {
		t.Logf("stderr:\n%s", e.stderr)
	}
	return e
}

// lacks checks that words are not on stderr.
func (e ended) lacks(t testing.TB, words ...string) {
	t.Helper()
	for _, w := range words {
		if strings.Contains(e.stderr, w) {
			t.Errorf("stderr says %q:\n%s", w, e.stderr)
		}
	}
}

func TestNoCommand(t *testing.T) {
	s := begin(t)
	s.runs().want(t, 2, "zulip-nats demo", "zulip-nats help")
	s.runs("follow").want(t, 2, `"follow"`, "zulip-nats help").lacks(t, "meant?")
	s.runs("rum").want(t, 2, `"rum"`, "is run meant?")
	s.runs("help", "follow").want(t, 2, `"follow"`, "zulip-nats help").lacks(t, "meant?")
	s.runs("--verbose").want(t, 2, "--verbose", "zulip-nats help")
	s.runs("run", "fast").want(t, 2, `"fast"`, "zulip-nats run --help")
	s.runs("run", "-realm=a.b").want(t, 2, `--realm (or ZULIP_NATS_REALM): the realm's name "a.b"`) // one dash does
}

func TestUnknownOption(t *testing.T) {
	s := begin(t)
	s.runs("run", "--no-such-option").want(t, 2, "--no-such-option", "zulip-nats run --help").lacks(t, "meant?")
	s.runs("run", "--x").want(t, 2, "--x", "zulip-nats run --help").lacks(t, "meant?")
	s.runs("run", "--relam", "chat").want(t, 2, "--relam", "is --realm meant?")
	s.runs("run", "--realm").want(t, 2, "--realm needs a value")
	s.runs("demo", "--fro=3s").want(t, 2, "--fro", "zulip-nats demo --help")
	s.runs("version", "--json").want(t, 2, "--json")
}

func TestHelp(t *testing.T) {
	s := begin(t)
	for _, args := range [][]string{{"help"}, {"--help"}, {"-h"}} {
		e := s.runs(args...)
		if e.code != 0 || e.stderr != "" {
			t.Errorf("%v: exit code %d, stderr %q", args, e.code, e.stderr)
		}
		for _, word := range []string{"run", "health", "demo", "version"} {
			if !strings.Contains(e.stdout, word) {
				t.Errorf("%v: no %s in\n%s", args, word, e.stdout)
			}
		}
	}
	e := s.runs("run", "--help")
	if e.code != 0 || e.stderr != "" {
		t.Errorf("run --help: exit code %d, stderr %q", e.code, e.stderr)
	}
	for _, word := range []string{
		"--zuliprc FILE", "$ZULIP_NATS_ZULIPRC", "--nats-url URL", "$ZULIP_NATS_NATS_URL", "$NATS_URL",
		"--nats-creds FILE", "$NATS_CREDS",
		"--realm NAME", "--stream NAME", "--queue-life TIME", "$ZULIP_NATS_QUEUE_LIFE", "--delete-queue ",
		"--publish-path", "78",
	} {
		if !strings.Contains(e.stdout, word) {
			t.Errorf("run --help does not say %q:\n%s", word, e.stdout)
		}
	}
	if t.Failed() {
		return
	}
	for line := range strings.SplitSeq(e.stdout, "\n") {
		if strings.Contains(line, "--no-lease value") || strings.Contains(line, "--insecure value") {
			t.Errorf("help gives a value to a flag without one: %s", line)
		}
	}
}

// Whoever has five mistakes wants to hear of five.
func TestAllThatIsWrongAtOnce(t *testing.T) {
	s := begin(t)
	t.Setenv("ZULIP_NATS_LEASE_TTL", "2.5s")
	t.Setenv("NATS_URL", "http://nats.example.org")
	t.Setenv("ZULIP_NATS_NO_LEASE", "perhaps")
	e := s.runs("run", "--realm", "a.b >", "--queue-life", "30d", "--narrow", `{"channel": "x"}`,
		"--publish-path", "teleport",
		"--start-from", "yesterday", "--log-level=loud", "--nats-password", "hunter2", "--nats-cert", "c.pem",
		"--backfill-max-messages", "-3", "--stream", "a.b", "--moved-from", "old")
	e.want(t, 2,
		"ZULIP_NATS_LEASE_TTL (or --lease-ttl): 2.5s",
		`NATS_URL (or --nats-url): the address ("http://nats.example.org") has a scheme that is none of nats, tls, ws, wss`,
		`ZULIP_NATS_NO_LEASE (or --no-lease): "perhaps"`,
		`--realm (or ZULIP_NATS_REALM): the realm's name "a.b >"`,
		"--queue-life (or ZULIP_NATS_QUEUE_LIFE): 30d is too long: give at most 7 days",
		`--stream (or ZULIP_NATS_STREAM): "a.b" can be no name of a stream`,
		"--moved-from (or ZULIP_NATS_MOVED_FROM): it is no address of an organization: write it like https://",
		"--narrow (or ZULIP_NATS_NARROW): ",
		`--publish-path (or ZULIP_NATS_PUBLISH_PATH): "teleport" is none of auto, fast, atomic, sync`,
		"--start-from (or ZULIP_NATS_START_FROM): \"yesterday\"",
		"--log-level (or ZULIP_NATS_LOG_LEVEL): \"loud\"",
		"--nats-password (NATS_PASSWORD) is given without --nats-user",
		"--nats-cert (NATS_CERT) is given without --nats-key",
		"--backfill-max-messages (or ZULIP_NATS_BACKFILL_MAX_MESSAGES): \"-3\"",
	)
	if strings.Contains(e.stderr, "hunter2") {
		t.Errorf("the password is in\n%s", e.stderr)
	}
	for line := range strings.Lines(e.stderr) {
		if !strings.HasPrefix(line, "zulip-nats: ") {
			t.Errorf("a line does not say who speaks: %s", line)
		}
	}
}

func TestBadNATSURL(t *testing.T) {
	s := begin(t)
	for url, says := range map[string]string{
		"nats://bad host:not-a-port": "the address is no address of a server",
		"nats://bridge:hunter2@bad host:4222": "is no address of a server; signs such as / # ? % @ in a " +
			"password are written as %2F",
		"nats://bridge:hunter2/@x@nats.example:0": "is no address of a server; signs such as / # ? % @ in a " +
			"password are written as %2F",
		"nats://hunter2@nats.example.org:70000":         `("nats://nats.example.org:70000") has a port that is no number from 1 to 65535`,
		"nats://hunter2/x@nats.example.org":             "the address has something behind the host",
		"nats://good.example.org,https://bot:hunter2@b": `address 2 of 2 ("https://b") has a scheme`,
		"nats://": "the address names no host",
	} {
		e := s.runs("run", "--nats-url", url)
		e.want(t, 2, says, "--nats-url", "nats://nats.example.org:4222")
		if strings.Contains(e.stderr, "hunter2") {
			t.Errorf("the password is in\n%s", e.stderr)
		}
	}
}

func TestVersion(t *testing.T) {
	s := begin(t)
	for _, arg := range []string{"version", "--version", "-V"} {
		e := s.runs(arg)
		if e.code != 0 || e.stderr != "" {
			t.Errorf("%s: exit code %d, stderr %q", arg, e.code, e.stderr)
		}
		for _, word := range []string{"zulip-nats ", "commit ", "go1.", "nats.go    v1."} {
			if !strings.Contains(e.stdout, word) {
				t.Errorf("%s does not say %q:\n%s", arg, word, e.stdout)
			}
		}
		s.runs(arg, "--json").want(t, 2, "--json")
	}
	s.runs("-v").want(t, 2, "there is no option --v")
}
