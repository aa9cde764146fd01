package stream_test

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// Benchmarks compare each path with a bare loop of the same protocol on the same server
// in the same run, whose messages were made, headers, replies and all, before the clock
// was started. The metric ratio is our rate over that of the bare loop, each by the
// median round.

func benchMessages(n int) []stream.Message {
	data := bytes.Repeat([]byte("x"), 500)
	msgs := make([]stream.Message, n)
	for i := range msgs {
		msgs[i] = stream.Message{Subject: "zulip.acme.message", Data: data, Headers: []stream.Header{
			{Key: "Zulip-Queue-Id", Value: "fb67bf8a-c031-47cc-84cf-ed80accacda8"},
			{Key: "Zulip-Event-Id", Value: strconv.Itoa(1000 + i)},
			{Key: "Zulip-Prev-Event-Id", Value: strconv.Itoa(999 + i)}, {Key: "Zulip-Event-Type", Value: "message"},
			{Key: "Zulip-Origin", Value: "live"}, {Key: "Bridge-Writer", Value: "host-1234-abcdef"},
			{Key: "Zulip-Message-Id", Value: strconv.Itoa(50000 + i)},
		}}
	}
	return msgs
}

// bare makes the messages of one batch as they have to be on the wire, one more for each
// than those it is given.
func bare(msgs []stream.Message, add func(i int, h nats.Header) (reply string)) []*nats.Msg {
	out := make([]*nats.Msg, len(msgs))
	for i, m := range msgs {
		h := nats.Header{}
		for _, header := range m.Headers {
			h[header.Key] = []string{header.Value}
		}
		out[i] = &nats.Msg{Subject: "bare.acme.message", Header: h, Data: m.Data}
		out[i].Reply = add(i, h)
	}
	return out
}

type bareLoop struct {
	b       *testing.B
	nc      *nats.Conn
	inbox   string
	answers chan *nats.Msg
}

func newBareLoop(b *testing.B, srv *natstest.Server) *bareLoop {
	l := &bareLoop{b: b, nc: srv.Conn(), answers: make(chan *nats.Msg, 10_000)}
	l.inbox = l.nc.NewInbox()
	if _, err := l.nc.ChanSubscribe(l.inbox+".>", l.answers); err != nil {
		b.Fatal(err)
	}
	return l
}

func (l *bareLoop) publish(m *nats.Msg) {
	if err := l.nc.PublishMsg(m); err != nil {
		l.b.Fatal(err)
	}
}

// until waits for an answer with the words.
func (l *bareLoop) until(words string) {
	timer := time.NewTimer(10 * time.Second)
	defer timer.Stop()
	for {
		select {
		case m := <-l.answers:
			if bytes.Contains(m.Data, []byte(`"error"`)) {
				l.b.Fatalf("refused: %s", m.Data)
			}
			if bytes.Contains(m.Data, []byte(words)) {
				return
			}
		case <-timer.C:
			l.b.Fatalf("no answer with %s", words)
		}
	}
}

func (l *bareLoop) fast(msgs []stream.Message, after uint64) time.Duration {
	prefix := l.inbox + "." + nuid.Next() + ".500.fail."
	ready := bare(msgs, func(i int, h nats.Header) string {
		h["Nats-Expected-Last-Sequence"] = []string{strconv.FormatUint(after+uint64(i), 10)}
		op := 1
		if i == 0 {
			op = 0
		} else if i == len(msgs)-1 {
			op = 2
		}
		return fmt.Sprintf("%s%d.%d.$FI", prefix, i+1, op)
	})
	start := time.Now()
	for i, m := range ready {
		l.publish(m)
		if i == 0 {
			l.until(`"ack"`)
		}
	}
	l.until(`"count"`)
	return time.Since(start)
}

func (l *bareLoop) atomic(msgs []stream.Message, after uint64) time.Duration {
	id, reply := nuid.Next(), l.inbox+".commit"
	ready := bare(msgs, func(i int, h nats.Header) string {
		h["Nats-Batch-Id"], h["Nats-Batch-Sequence"] = []string{id}, []string{strconv.Itoa(i + 1)}
		if i == 0 {
			h["Nats-Expected-Last-Sequence"] = []string{strconv.FormatUint(after, 10)}
		}
		if i < len(msgs)-1 {
			return ""
		}
		h["Nats-Batch-Commit"] = []string{"1"}
		return reply
	})
	start := time.Now()
	for _, m := range ready {
		l.publish(m)
	}
	l.until(`"count"`)
	return time.Since(start)
}

func (l *bareLoop) sync(msgs []stream.Message, after uint64) time.Duration {
	ready := bare(msgs, func(i int, h nats.Header) string {
		h["Nats-Expected-Last-Sequence"] = []string{strconv.FormatUint(after+uint64(i), 10)}
		return l.inbox + "." + strconv.Itoa(i)
	})
	start := time.Now()
	for _, m := range ready {
		l.publish(m)
		l.until(`"seq"`)
	}
	return time.Since(start)
}

// median is not moved by a round in which the machine did something else.
func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func BenchmarkAppend(b *testing.B) {
	for _, path := range paths {
		for _, n := range []int{1, 10, 100, 1000} {
			if n == 1 && path != stream.PathSync || n > 100 && path == stream.PathSync {
				continue
			}
			b.Run(fmt.Sprintf("%s/%d", path, n), func(b *testing.B) {
				srv := natstest.Start(b)
				s := open(b, connectTo(b, stream.ConnectConfig{URL: srv.URL}), stream.Config{Path: path})
				open(b, connectTo(b, stream.ConnectConfig{URL: srv.URL}),
					stream.Config{Name: "BARE", Realm: "acme", Filter: "bare.acme.>"})
				l := newBareLoop(b, srv)
				loop := map[stream.Path]func([]stream.Message, uint64) time.Duration{
					stream.PathFast: l.fast, stream.PathAtomic: l.atomic, stream.PathSync: l.sync,
				}[path]
				msgs := benchMessages(n)
				cursor := acked(b, s)
				var ours, theirs []time.Duration
				stored := uint64(0)
				round := func() {
					start := time.Now()
					var err error
					if cursor, err = s.Append(b.Context(), cursor, msgs); err != nil {
						b.Fatal(err)
					}
					ours = append(ours, time.Since(start))
					theirs = append(theirs, loop(msgs, stored))
					stored += uint64(n)
				}
				for range 20 {
					round()
				}
				ours, theirs = nil, nil
				for b.Loop() {
					round()
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(float64(n)/median(ours).Seconds(), "msgs/s")
				b.ReportMetric(median(theirs).Seconds()/median(ours).Seconds(), "ratio")
			})
		}
	}
}

// What one message costs in allocations, the client's library included.
func BenchmarkAppendAllocations(b *testing.B) {
	for _, path := range paths {
		b.Run(string(path), func(b *testing.B) {
			p := natstest.StartProcess(b, "")
			s := open(b, connectTo(b, stream.ConnectConfig{URL: p.URL}), stream.Config{Path: path})
			msgs := benchMessages(500)
			cursor := acked(b, s)
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if cursor, err = s.Append(b.Context(), cursor, msgs); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N*len(msgs)), "ns/msg")
		})
	}
}
