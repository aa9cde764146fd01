package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/embedded"
	"zulip-nats/events"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// watchedOutput is the output of a demo. What is to be done at a line is done while the demo
// waits for that line to be written.
type watchedOutput struct {
	natstest.Buffer
	at func(line string) error
}

func (w *watchedOutput) Write(p []byte) (int, error) {
	n, _ := w.Buffer.Write(p)
	if w.at != nil {
		if err := w.at(string(p)); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// tells runs a demo until it ends.
func tells(t *testing.T, change func(*demoConfig), out, stderr *watchedOutput) error {
	t.Helper()
	d := demoDefaults()
	d.patience = 3 * time.Minute // a machine may have much else to do
	change(&d)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	err := demo(ctx, &d, out, stderr)
	if ctx.Err() != nil {
		t.Fatalf("it did not end:\n%s%s", out.String(), stderr.String())
	}
	return err
}

// counted are the numbers of the last line: sent, stored, seen, lost, twice.
var counted = regexp.MustCompile(`(?m)^sent by Zulip (\d+), stored (\d+), seen by the subscriber (\d+), lost (\d+), twice (\d+)$`)

// allThere checks that the demo counted all as it should be, and gives how many.
func allThere(t *testing.T, out string) (n int) {
	t.Helper()
	m := counted.FindStringSubmatch(out)
	if m == nil || m[1] != m[2] || m[1] != m[3] || m[4] != "0" || m[5] != "0" {
		t.Errorf("the count is %q:\n%s", m, out)
		return 0
	}
	fmt.Sscan(m[1], &n)
	return n
}

// Calm, it goes on until it is stopped, does nothing to anybody, and counts all the same.
func TestDemoCalm(t *testing.T) {
	s := begin(t)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	t.Setenv("ZULIP_NATS_HTTP", "127.0.0.1:0") // as in the image: it is for run
	t.Setenv("ZULIP_NATS_NO_LEASE", "perhaps") // likewise
	t.Setenv("NATS_URL", "nats://127.0.0.1:1")
	p := s.starts("demo", "--calm", "--beat", "300ms")
	p.waits("ten messages", func() bool { return strings.Count(p.out.String(), " > ") >= 10 })
	if code := p.stops(); code != 0 {
		t.Fatalf("exit code %d\n%s\n%s", code, p.out.String(), p.err.String())
	}
	if allThere(t, p.out.String()) == 0 {
		t.Errorf("nothing was sent")
	}
	if !strings.HasSuffix(p.err.String(), "\n  zulip-nats run --zuliprc zuliprc --show\n") {
		t.Errorf("the end does not say how to go on: %q", p.err.String())
	}
	for l := range strings.Lines(p.out.String() + p.err.String()) {
		if n := len([]rune(strings.TrimSuffix(l, "\n"))); n > 80 {
			t.Errorf("%d characters: %q", n, l)
		}
		if strings.ContainsRune(l, '\x1b') {
			t.Errorf("colours, and no terminal: %q", l)
		}
		for _, done := range []string{"killed", "stopped", "forgotten", "second bridge", "caught up"} {
			if strings.Contains(l, "── ") && strings.Contains(l, done) {
				t.Errorf("this is not calm: %q", l)
			}
		}
	}
	for _, want := range []string{`(?m)^zulip\.demo\.bridge\.queue   a queue is followed \(first\): `,
		`(?m)^zulip\.demo\.message        #[^>]+ > .+  .+: `} {
		if !regexp.MustCompile(want).MatchString(p.out.String()) {
			t.Errorf("no line is like %s:\n%s", want, p.out.String())
		}
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// --for ends it, wherever it is.
func TestDemoFor(t *testing.T) {
	begin(t)
	var out, stderr watchedOutput
	if err := tells(t, func(d *demoConfig) { d.beat, d.length = time.Minute, time.Second }, &out, &stderr); err != nil {
		t.Fatalf("%v\n%s%s", err, out.String(), stderr.String())
	}
	allThere(t, out.String())
}

// What is lost is told, and no success: here a message that the bot never gets.
func TestDemoLoss(t *testing.T) {
	begin(t)
	zulip := &zulipsim.Server{}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out := watchedOutput{at: func(line string) error {
		if strings.Contains(line, " > ") && ctx.Err() == nil {
			zulip.Account("bridge-bot@example.com").Unsubscribe("secret")
			zulip.SendMessage(zulipsim.Message{Channel: "secret", Topic: "plans", Content: "psst"})
			stop()
		}
		return nil
	}}
	d := demoDefaults()
	d.beat, d.calm, d.zulip, d.patience = 100*time.Millisecond, true, zulip, time.Second
	var stderr watchedOutput
	err := demo(ctx, &d, &out, &stderr)
	m := counted.FindStringSubmatch(out.String())
	if err == nil || !strings.HasPrefix(err.Error(), "the stream does not hold what Zulip sent") || m == nil || m[4] == "0" {
		t.Errorf("it ends with %v, and counts %q\n%s%s", err, m, out.String(), stderr.String())
	}
	if strings.Contains(stderr.String(), "Now with yours") {
		t.Errorf("it goes on as if all were well: %s", stderr.String())
	}
}

func TestDemoPortTaken(t *testing.T) {
	s := begin(t)
	other, err := embedded.Start(embedded.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Shutdown()
	port := strings.TrimPrefix(other.URL(), "nats://127.0.0.1:")
	s.runs("demo", "--nats-port", port).want(t, 1, "port "+port+" of 127.0.0.1 is taken", "choose another one with --nats-port")
}

// stored reads a stream's whole folder, when all others have left it.
func storedIn(t *testing.T, dir string) (all []*nats.Msg) {
	t.Helper()
	server, err := embedded.Start(embedded.Options{Dir: filepath.Join(dir, "nats")})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Shutdown()
	nc := natstest.Connect(t, server.URL())
	defer nc.Close()
	stream, err := natstest.JetStream(t, nc).Stream(t.Context(), "ZULIP_demo")
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); seq <= stream.CachedInfo().State.LastSeq; seq++ {
		m, err := stream.GetMsg(t.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			t.Fatalf("message %d of the stream is missing", seq)
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data})
	}
	return all
}

// The comparison has to be able to find what it promises to find.
func TestCompare(t *testing.T) {
	begun := time.Now()
	arrive := func(a *arrivals, queue string, id, message int64, body string) {
		a.add(&events.Event{Queue: queue, ID: id, MessageID: message, Raw: []byte(body), Header: nats.Header{}})
	}
	event := func(id, message int64, body string, acked bool) zulipsim.QueuedEvent {
		e := zulipsim.QueuedEvent{ID: id, MessageID: message, Raw: []byte(body)}
		if acked {
			e.Pruned = begun
		}
		return e
	}
	said := func(id int64, at time.Time, deleted bool) zulipsim.StoredMessage {
		m := zulipsim.StoredMessage{ID: id, Committed: at}
		if deleted {
			m.Deleted = at
		}
		return m
	}
	later := begun.Add(time.Second)
	dead := zulipsim.QueueInfo{ID: "q", Created: begun, Dead: "crash", Events: []zulipsim.QueuedEvent{
		event(0, 0, "a", true), event(1, 1, "b", true), event(3, 0, "reaction", false), event(4, 2, "m2", false)}}
	live := zulipsim.QueueInfo{ID: "r", Created: later, Events: []zulipsim.QueuedEvent{event(0, 4, "m4", false), event(1, 5, "m5", false)}}
	sent := ledger{queues: []zulipsim.QueueInfo{dead, live}, messages: []zulipsim.StoredMessage{
		said(9, begun.Add(-time.Second), false), said(1, begun, false), said(2, begun, false), said(3, later, false),
		said(4, later, false), said(5, later, false), said(6, later, true)}}
	all := func() *arrivals {
		a := new(arrivals)
		arrive(a, "q", 0, 0, "a")
		arrive(a, "q", 1, 1, "b")
		arrive(a, "r", -1, 2, "m2 from history")
		arrive(a, "r", -1, 3, "m3")
		arrive(a, "r", -1, 4, "m4")
		a.add(&events.Event{Queue: "r", ID: 0, Record: events.RecordSkipped})
		arrive(a, "r", 1, 5, "m5")
		a.add(&events.Event{Queue: "r", ID: -1, Record: events.RecordQueue})
		return a
	}
	drop := func(n int) func(*arrivals) {
		return func(a *arrivals) { a.events = append(a.events[:n], a.events[n+1:]...) }
	}
	for name, c := range map[string]struct {
		change func(*arrivals)
		want   comparison
	}{
		"all is there":                 {func(*arrivals) {}, comparison{sent: 6, arrived: 6, gone: 1}},
		"an event is missing":          {drop(0), comparison{sent: 6, arrived: 5, lost: 1, gone: 1}},
		"a live message is missing":    {drop(5), comparison{sent: 6, arrived: 5, lost: 1, gone: 1}},
		"one of the dropped queue":     {drop(2), comparison{sent: 6, arrived: 5, lost: 1, gone: 1}},
		"one that was in no queue":     {drop(3), comparison{sent: 6, arrived: 5, lost: 1, gone: 1}},
		"one that is said to be there": {drop(4), comparison{sent: 6, arrived: 5, lost: 1, gone: 1}},
		"not skipped, and not there":   {func(a *arrivals) { a.skipped = nil }, comparison{sent: 6, arrived: 5, lost: 1, gone: 1}},
		"other bytes":                  {func(a *arrivals) { a.events[0].data = []byte("A") }, comparison{sent: 6, arrived: 5, lost: 1, gone: 1}},
		"an event again":               {func(a *arrivals) { arrive(a, "q", 0, 0, "a") }, comparison{sent: 6, arrived: 6, twice: 1, gone: 1}},
		"a message again":              {func(a *arrivals) { arrive(a, "r", -1, 1, "b") }, comparison{sent: 6, arrived: 6, twice: 1, gone: 1}},
		"out of order": {func(a *arrivals) { a.events[0], a.events[1] = a.events[1], a.events[0] },
			comparison{sent: 6, arrived: 6, disordered: 1, gone: 1}},
	} {
		a := all()
		c.change(a)
		got := a.compare(sent)
		if got != c.want {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
		if got.good() != (name == "all is there") {
			t.Errorf("%s: good is %v", name, got.good())
		}
	}
	// What was acknowledged and is not there is lost, though its queue was dropped.
	dead.Events[2].Pruned = begun
	if got := all().compare(ledger{queues: []zulipsim.QueueInfo{dead}}); got.lost != 1 || got.gone != 0 {
		t.Errorf("acknowledged, and not there: %+v", got)
	}
}
