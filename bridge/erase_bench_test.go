//go:build unix

package bridge

import (
	"fmt"
	"math"
	"strings"
	"syscall"
	"testing"
	"time"

	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
	"zulip-nats/subjects"
)

// BenchmarkErase says what it costs to find what is about a deleted message, in a stream of
// a real server in files, in which each tenth message was edited: the first time after a
// start, where all is read, and from then on, with a thousand messages in between.
//
//	go test -run '^$' -bench Erase -benchtime 3x ./bridge
func BenchmarkErase(b *testing.B) {
	const messages = 200_000
	srv := natstest.Start(b)
	conn, err := stream.Connect(b.Context(), stream.ConnectConfig{URL: srv.URL})
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	realm, err := subjects.ParseRealm("acme")
	if err != nil {
		b.Fatal(err)
	}
	s, err := stream.Open(b.Context(), conn, stream.Config{Realm: "acme", Filter: realm.All()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	br := New(Config{Realm: realm, Poller: &poller.Poller{}, EraseDeleted: true})
	br.stream = s
	id := int64(0)
	var cursor stream.Cursor
	write := func(n int) {
		for done := 0; done < n; {
			var list []stream.Message
			for ; len(list) < 1000; done++ {
				id++
				list = append(list, event("message", id, fmt.Sprintf(`{"type":"message","message":{"id":%d,"content":"%s"}}`,
					id, strings.Repeat("a word ", 100))))
				if id%10 == 0 {
					list = append(list, event("update_message", id, fmt.Sprintf(
						`{"type":"update_message","message_id":%d,"message_ids":[%d],"content":"%s"}`, id, id,
						strings.Repeat("another word ", 100))))
				}
			}
			if cursor, err = s.Append(b.Context(), cursor, list); err != nil {
				b.Fatal(err)
			}
		}
		br.knownSeq = cursor.Seq
	}
	look := func(b *testing.B) {
		newest, err := s.At(b.Context(), br.knownSeq)
		if err != nil || newest == nil {
			b.Fatal(newest, err)
		}
		ready, err := br.indexUpTo(b.Context(), newest, time.Unix(math.MaxInt32, 0))
		if err != nil || !ready {
			b.Fatal(ready, err)
		}
		if seqs := br.erasing.index.find(map[int64]bool{id / 10 * 10: true}); len(seqs) != 2 {
			b.Fatalf("message %d is at %v, want two places", id/10*10, seqs)
		}
	}
	write(messages)
	b.Run("first", func(b *testing.B) {
		before, n := busy(b), 0
		for b.Loop() {
			br.erasing.index = nil
			look(b)
			n++
		}
		b.ReportMetric((busy(b)-before).Seconds()/float64(n), "cpu-s/op")
		b.ReportMetric(float64(len(br.erasing.index.ids)), "entries")
	})
	b.Run("then", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			write(1000)
			b.StartTimer()
			look(b)
		}
	})
	b.Run("find", func(b *testing.B) {
		for b.Loop() {
			br.erasing.index.find(map[int64]bool{77: true})
		}
	})
}

// busy is how much time processors have worked for this process, which holds the server
// too: it is the same on a machine that others keep busy.
func busy(b *testing.B) time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// event is a stored event about a message.
func event(kind string, id int64, data string) stream.Message {
	n := itoa(id)
	return stream.Message{Subject: "zulip.acme." + kind, Data: []byte(data), Headers: []stream.Header{
		{Key: "Zulip-Queue-Id", Value: "fb67bf8a-c031-47cc-84cf-ed80accacda8"}, {Key: "Zulip-Event-Id", Value: n},
		{Key: "Zulip-Prev-Event-Id", Value: n}, {Key: "Zulip-Event-Type", Value: kind}, {Key: "Zulip-Origin", Value: "live"},
		{Key: "Bridge-Writer", Value: "w"}, {Key: "Zulip-Message-Id", Value: n}}}
}
