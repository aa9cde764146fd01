package cli

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"zulip-nats/events"
	"zulip-nats/zulipsim"
)

func TestDemo(t *testing.T) {
	s := begin(t)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	var e ended
	var lines []string
	for _, length := range []string{"3s", "9s", "27s"} { // a slow machine may need most of the first for its start
		e = s.runs("demo", "--for", length)
		if e.code != 0 {
			t.Fatalf("exit code %d\n%s\n%s", e.code, e.stdout, e.stderr)
		}
		if lines = strings.Split(strings.TrimSpace(e.stdout), "\n"); len(lines) >= 7 {
			break
		}
	}
	if len(lines) < 7 {
		t.Fatalf("only %d lines:\n%s", len(lines), e.stdout)
	}
	last := lines[len(lines)-1]
	m := regexp.MustCompile(`^sent (\d+), stored (\d+), lost 0, doubled 0, out of order 0 \(and records of the bridge: [1-9]\d*\)$`).FindStringSubmatch(last)
	if m == nil || m[1] != m[2] || m[1] == "0" {
		t.Errorf("the last line is %q", last)
	}
	if !strings.HasSuffix(e.stderr, "zulip-nats run --zuliprc zuliprc --show\n") {
		t.Errorf("the end does not say how to go on: %q", e.stderr)
	}
	for _, l := range lines {
		if n := len([]rune(l)); n > 80 && l != last {
			t.Errorf("%d characters: %q", n, l)
		}
		if strings.ContainsRune(l, '\x1b') {
			t.Errorf("colours, and no terminal: %q", l)
		}
	}
	for _, want := range []string{`(?m)^zulip\.demo\.bridge\.queue   a queue is followed \(first\): `,
		`(?m)^zulip\.demo\.message +#[^>]+ > .+  .+: `} {
		if !regexp.MustCompile(want).MatchString(e.stdout) {
			t.Errorf("no line is like %s:\n%s", want, e.stdout)
		}
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Without --for it goes on until it is stopped, and still counts.
func TestDemoStopped(t *testing.T) {
	s := begin(t)
	p := s.starts("demo")
	p.waits("a message", func() bool { return strings.Contains(p.out.String(), " > ") })
	if code := p.stops(); code != 0 || !strings.Contains(p.out.String(), "lost 0, doubled 0") {
		t.Errorf("exit code %d\n%s\n%s", code, p.out.String(), p.err.String())
	}
}

// The comparison has to be able to find what it promises to find.
func TestCompare(t *testing.T) {
	arrive := func(a *arrivals, id int64, body string) {
		a.add(&events.Event{Queue: "q", ID: id, Raw: []byte(body)})
	}
	queues := []zulipsim.QueueInfo{
		{ID: "q", Events: []zulipsim.QueuedEvent{{ID: 0, Raw: []byte("a")}, {ID: 2, Raw: []byte("b")},
			{ID: 3, Raw: []byte("c")}}},
		{ID: "r", Events: []zulipsim.QueuedEvent{{ID: 0, Raw: []byte("d")}}},
	}
	var a arrivals
	arrive(&a, 0, "a")
	arrive(&a, 3, "c")
	arrive(&a, 2, "B") // other bytes, and behind 3
	arrive(&a, 3, "c")
	a.add(&events.Event{Queue: "q", ID: -1, Record: "queue", Raw: []byte("{}")})
	want := comparison{sent: 4, stored: 2, lost: 2, doubled: 1, disordered: 1, records: 1}
	if got := a.compare(queues); got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
