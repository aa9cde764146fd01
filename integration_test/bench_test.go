package integration_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
	"zulip-nats/subjects"
	"zulip-nats/zulipsim"
)

// made writes message events of about size bytes, as fast as can be, since the simulator
// that sends them runs beside what is measured.
func made(size int) func(dst []byte, id int64) []byte {
	head, middle := `{"type":"message","message":{"id":`, `,"sender_id":9,"content":"`
	tail := `","recipient_id":31,"timestamp":1764000000,"client":"website","subject":"build","topic_links":[],"is_me_message":false,` +
		`"reactions":[],"submessages":[],"sender_full_name":"Ada Lovelace","sender_email":"ada@example.com","sender_realm_str":"acme",` +
		`"display_recipient":"general","type":"stream","stream_id":6,"avatar_url":null,"content_type":"text/x-markdown"},"flags":[],"id":`
	middle += strings.Repeat("all work and no play ", size)[:max(0, size-len(head)-len(middle)-len(tail)-14)]
	return func(dst []byte, id int64) []byte {
		dst = append(dst, head...)
		dst = strconv.AppendInt(dst, 1_000_000+id, 10)
		dst = append(dst, middle...)
		dst = append(dst, tail...)
		dst = strconv.AppendInt(dst, id, 10)
		return append(dst, '}')
	}
}

// backlog is a Zulip that gives out a backlog in one answer.
func backlog(z *zulipsim.Server) {
	unlimited(z)
	z.Forget, z.NoGzip = true, true
}

// drain lets Zulip give out n events in one answer, and says how long it takes until all
// of them are stored and acknowledged.
func (w *world) drain(n, size int) time.Duration {
	w.t.Helper()
	q := w.registered()
	began := time.Now()
	w.zulip.FillAnswer(q.ID, n, made(size))
	for {
		now := w.zulip.Queues()[0]
		if now.NewestPruned >= q.NextID+int64(n)-1 {
			break
		}
		if now.Dead != "" {
			w.t.Fatalf("the queue is %s", now.Dead)
		}
		time.Sleep(time.Millisecond)
	}
	took := time.Since(began)
	m, err := w.last()
	if err != nil || m == nil || m.Header.Get(events.HeaderEventID) != strconv.FormatInt(q.NextID+int64(n)-1, 10) {
		w.t.Fatalf("the newest message is not the last event: %v, %v", m, err)
	}
	return took
}

// BenchmarkBacklog drains a backlog through poller, bridge and stream into a real
// nats-server, all in this process, and compares that with a bare loop that publishes
// ready-made messages of the same size, with the same headers, on the same path of the
// same server, and does nothing else. Both are run by turns. of-bare is the ratio; the
// goal is 0.8.
func BenchmarkBacklog(b *testing.B) {
	for _, c := range []struct {
		path   stream.Path
		layout subjects.Layout
		events int
	}{{stream.PathFast, subjects.ByType, 200_000}, {stream.PathFast, subjects.ByPlace, 200_000},
		{stream.PathAtomic, subjects.ByType, 100_000}, {stream.PathSync, subjects.ByType, 5_000}} {
		b.Run(fmt.Sprintf("%s, %s", c.path, c.layout), func(b *testing.B) {
			const size, rounds = 500, 3
			url := natsServer(b)
			w := newQuietWorld(b, url, backlog)
			w.insideQuietly(c.path, c.layout)
			w.drain(c.events/10, size) // the first events pay for what is made once
			bare := newBareLoop(b, url, c.path, size)
			bare.publish(b, c.events/10)
			for b.Loop() {
				var ratios []float64
				var through, alone time.Duration
				for range rounds {
					runtime.GC()
					before := bare.publish(b, c.events)
					runtime.GC()
					product := w.drain(c.events, size)
					runtime.GC()
					after := bare.publish(b, c.events)
					ratios = append(ratios, float64(before+after)/2/float64(product))
					through, alone = through+product, alone+(before+after)/2
				}
				slices.Sort(ratios)
				b.ReportMetric(ratios[rounds/2], "of-bare")
				b.ReportMetric(float64(rounds*c.events)/through.Seconds(), "events/s")
				b.ReportMetric(float64(rounds*c.events)/alone.Seconds(), "bare-events/s")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}

// newQuietWorld is newWorld without the look into the stream at each acknowledgement,
// which would be measured too.
func newQuietWorld(t testing.TB, natsURL string, configure ...func(*zulipsim.Server)) *world {
	w := prepareWorld(t, natsURL, configure...)
	w.open("127.0.0.1:0")
	return w
}

// insideQuietly is inside without a log.
func (w *world) insideQuietly(path stream.Path, layout subjects.Layout) {
	account := poller.Account{Email: w.bot.Email, Key: w.bot.Key, Site: w.site}
	runInside(w.t, w.nats, w.realm, account, path, layout, zerolog.Nop())
}

// bareLoop publishes ready-made messages behind each other.
type bareLoop struct {
	stream *stream.Stream
	at     stream.Cursor
	chunk  []stream.Message
}

func newBareLoop(b *testing.B, url string, path stream.Path, size int) *bareLoop {
	b.Helper()
	nc, err := stream.Connect(b.Context(), stream.ConnectConfig{URL: url})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	s, err := stream.Open(b.Context(), nc,
		stream.Config{Realm: "bare", Filter: "zulip.bare.>", Path: path, AckTimeout: harness.Patience})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.Close)
	l := &bareLoop{stream: s, chunk: make([]stream.Message, 1000)}
	event := made(size)
	for i := range l.chunk {
		id := strconv.Itoa(100_000 + i)
		l.chunk[i] = stream.Message{Subject: "zulip.bare.message", Data: event(nil, int64(100_000+i)),
			Headers: []stream.Header{
				{Key: events.HeaderQueueID, Value: "6f65fa70-af8c-4fcb-9044-4d962fc86a08"},
				{Key: events.HeaderEventID, Value: id},
				{Key: events.HeaderPrevEventID, Value: id},
				{Key: events.HeaderEventType, Value: "message"},
				{Key: events.HeaderOrigin, Value: "live"},
				{Key: events.HeaderWriter, Value: "inside"},
				{Key: events.HeaderMessageID, Value: "1100000"},
				{Key: events.HeaderRecipientType, Value: "channel"}, {Key: events.HeaderChannelID, Value: "6"},
			}}
	}
	if l.at, _, err = s.Last(b.Context()); err != nil {
		b.Fatal(err)
	}
	return l
}

func (l *bareLoop) publish(b *testing.B, n int) time.Duration {
	b.Helper()
	began := time.Now()
	for n > 0 {
		var err error
		if l.at, err = l.stream.Append(context.Background(), l.at, l.chunk[:min(n, len(l.chunk))]); err != nil {
			b.Fatal(err)
		}
		n -= len(l.chunk)
	}
	return time.Since(began)
}

// BenchmarkMemory drains an answer of 100 MB and one of 1 GB through the program into a
// nats-server in a process of its own. peak-MiB is the program's greatest resident memory
// (VmHWM of Linux); the goal is at most 40, and the same for both.
func BenchmarkMemory(b *testing.B) {
	for _, c := range []struct {
		name  string
		bytes int
	}{{"100MB", 100_000_000}, {"1GB", 1_000_000_000}} {
		b.Run(c.name, func(b *testing.B) {
			const size = 500
			for b.Loop() {
				w := newQuietWorld(b, natstest.StartProcess(b, "").URL, unlimited,
					func(z *zulipsim.Server) { z.Forget = true })
				p := w.run("--no-lease")
				w.registered()
				idle := peak(b, p.PID())
				took := w.drain(c.bytes/size, size)
				b.ReportMetric(peak(b, p.PID()), "peak-MiB")
				b.ReportMetric(idle, "idle-MiB")
				b.ReportMetric(float64(c.bytes)/1e6/took.Seconds(), "MB/s")
				b.ReportMetric(0, "ns/op")
				if _, err := p.Stop(); err != nil {
					b.Error(err)
				}
			}
		})
	}
}

// peak is the greatest resident memory of a process so far, in MiB.
func peak(b *testing.B, pid int) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatalf("this benchmark needs the /proc of Linux: %v", err)
	}
	for line := range bytes.Lines(status) {
		if value, ok := bytes.CutPrefix(line, []byte("VmHWM:")); ok {
			kB, err := strconv.Atoi(string(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(value), []byte("kB")))))
			if err != nil {
				b.Fatal(err)
			}
			return float64(kB) / 1024
		}
	}
	b.Fatalf("no VmHWM in %s", status)
	return 0
}
