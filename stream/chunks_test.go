package stream_test

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// chunks gives messages 1, 2, 3 … in chunks of these sizes, each of which is spoilt when the
// next one is asked for. Where told is not nil it sees what the source is told. open: that
// nothing follows is said by a chunk without messages, and not with the last one.
func chunks(sizes []int, open bool, told func(stored int, at stream.Cursor)) stream.Source {
	k, next := 0, 1
	var before []stream.Message
	return func(stored int, at stream.Cursor) ([]stream.Message, bool) {
		if told != nil {
			told(stored, at)
		}
		for i := range before {
			for j := range before[i].Data {
				before[i].Data[j] = '!'
			}
			for j := range before[i].Headers {
				before[i].Headers[j] = stream.Header{Key: "Spoilt", Value: "yes"}
			}
			before[i] = stream.Message{}
		}
		if k == len(sizes) {
			return nil, false
		}
		msgs := messages(next, sizes[k])
		next += sizes[k]
		k++
		before = msgs
		return msgs, open || k < len(sizes)
	}
}

func sum(sizes []int) (n int) {
	for _, size := range sizes {
		n += size
	}
	return n
}

var manySizes = [][]int{{1}, {2}, {1, 1}, {1, 1, 1}, {3, 1}, {700, 1, 2, 900},
	{1000, 1000, 1000, 1000, 1000, 700}}

// Whatever the path: all chunks stand in order, and what the source is told to be stored
// is. Three replicas acknowledge later than one.
func TestChunks(t *testing.T) {
	test := func(t *testing.T, s *stream.Stream, known bool) {
		for _, sizes := range manySizes {
			for _, open := range []bool{false, true} {
				if !open && sum(sizes) > 1000 { // they take long, and once is enough for those
					continue
				}
				before := len(contents(t, s))
				cursor := last(t, s)
				if known {
					cursor = acked(t, s)
					before++
				}
				last := 0
				at, err := s.AppendEach(t.Context(), cursor, chunks(sizes, open, func(stored int, at stream.Cursor) {
					if stored < last {
						t.Errorf("%v: %d are stored, and before there were %d", sizes, stored, last)
					}
					if last = stored; stored == 0 {
						if at != cursor {
							t.Errorf("%v: nothing is stored, and the cursor is %+v, not %+v", sizes, at, cursor)
						}
						return
					}
					if m, err := s.At(t.Context(), at.Seq); err != nil || m == nil || eventID(m) != ids(stored, 1)[0] || !at.Acked {
						t.Errorf("%v: %d are said to be stored up to %+v, where %v stands (%v)", sizes, stored, at, m, err)
					}
				}))
				if err != nil {
					t.Fatalf("%v: %v", sizes, err)
				}
				if at.Seq != uint64(before+sum(sizes)) || !at.Acked || at.Epoch != cursor.Epoch {
					t.Errorf("%v behind %d messages ended at %+v", sizes, before, at)
				}
				if got := contents(t, s)[before:]; !slices.Equal(got, ids(1, sum(sizes))) {
					t.Fatalf("%v: the stream holds %d messages in another order, or other ones", sizes, len(got))
				}
				n := 0
				err = s.Scan(t.Context(), ">", stream.Start{Seq: uint64(before) + 1}, at.Seq, false, func(m *stream.Stored) error {
					if n++; string(m.Data) != string(message(n).Data) {
						return fmt.Errorf("message %d has the bytes %q", n, m.Data)
					}
					return nil
				})
				if err != nil {
					t.Fatalf("%v: %v", sizes, err)
				}
			}
		}
	}
	for _, known := range []bool{false, true} {
		t.Run(fmt.Sprintf("acked=%v", known), func(t *testing.T) {
			onEachPath(t, func(t *testing.T, s *stream.Stream, _ jetstream.JetStream) { test(t, s, known) })
		})
	}
	t.Run("three replicas", func(t *testing.T) {
		c := natstest.StartCluster(t, 3)
		test(t, open(t, connect(t, c.URL()), stream.Config{New: stream.NewStream{Replicas: 3}}), true)
	})
	t.Run("shared", func(t *testing.T) {
		srv := natstest.Start(t)
		natstest.CreateStream(t, srv.JetStream(), jetstream.StreamConfig{Name: "ALL", Subjects: []string{"zulip.>"},
			AllowAtomicPublish: true})
		test(t, open(t, connect(t, srv.URL), stream.Config{}), true)
	})
}

// By fast ingest all chunks are one batch: the server is never waited for in between.
func TestChunksAreOneBatch(t *testing.T) {
	for _, open := range []bool{false, true} {
		s, proxy, _ := behind(t, stream.Config{Path: stream.PathFast})
		cursor := acked(t, s)
		var starts, commits, messages atomic.Int32
		proxy.OnPublish(func(p natstest.Publish) natstest.Fate {
			for suffix, n := range map[string]*atomic.Int32{".0.$FI": &starts, ".2.$FI": &commits, ".$FI": &messages} {
				if strings.HasSuffix(p.Reply, suffix) {
					n.Add(1)
				}
			}
			return natstest.Pass
		})
		if _, err := s.AppendEach(t.Context(), cursor, chunks([]int{1, 400, 1, 30}, open, nil)); err != nil {
			t.Fatal(err)
		}
		// Who subscribes to the subjects, and not to the stream, sees what is published.
		if got := [3]int32{starts.Load(), commits.Load(), messages.Load()}; got != [3]int32{1, 1, 432} {
			t.Errorf("open=%v: batches begun, committed, and messages in them: %v, want 1, 1 and 432", open, got)
		}
	}
}

// One message behind which something might have come goes like any single one.
func TestChunkOfOneMessage(t *testing.T) {
	s, proxy, _ := behind(t, stream.Config{Path: stream.PathFast})
	cursor := acked(t, s)
	var fast, all atomic.Int32
	proxy.OnPublish(func(p natstest.Publish) natstest.Fate {
		if strings.HasPrefix(p.Subject, "zulip.") {
			all.Add(1)
		}
		if strings.HasSuffix(p.Reply, ".$FI") {
			fast.Add(1)
		}
		return natstest.Pass
	})
	if _, err := s.AppendEach(t.Context(), cursor, chunks([]int{1}, true, nil)); err != nil {
		t.Fatal(err)
	}
	if fast.Load() != 0 || all.Load() != 1 {
		t.Errorf("%d messages went, %d by fast ingest", all.Load(), fast.Load())
	}
}

// A batch whose messages are small may have thousands on their way, and of large ones that
// would be too much for the server: they begin another batch.
func TestChunksOfLargerMessages(t *testing.T) {
	s, proxy, _ := behind(t, stream.Config{Path: stream.PathFast})
	cursor := acked(t, s)
	var starts atomic.Int32
	proxy.OnPublish(func(p natstest.Publish) natstest.Fate {
		if strings.HasSuffix(p.Reply, ".0.$FI") {
			starts.Add(1)
		}
		return natstest.Pass
	})
	source, asked := chunks([]int{400, 300, 20, 20, 500}, false, nil), 0
	at, err := s.AppendEach(t.Context(), cursor, func(stored int, at stream.Cursor) ([]stream.Message, bool) {
		msgs, more := source(stored, at)
		if asked++; asked == 3 || asked == 4 {
			for i := range msgs {
				msgs[i].Data = make([]byte, 100_000)
			}
		}
		return msgs, more
	})
	if err != nil || at.Seq != cursor.Seq+1240 || at.Epoch != cursor.Epoch {
		t.Fatalf("%+v behind %+v, %v", at, cursor, err)
	}
	if n := starts.Load(); n != 2 {
		t.Errorf("%d batches were begun, want 2", n)
	}
	if got := contents(t, s); !slices.Equal(got, ids(0, 1241)) {
		t.Errorf("the stream holds %d messages in another order, or other ones", len(got))
	}
}

// Far away too, where one chunk goes better in an atomic batch: of two round trips for
// each chunk only those of the whole are left.
func TestChunksFarAway(t *testing.T) {
	s, proxy, _ := behind(t, stream.Config{})
	cursor := acked(t, s)
	proxy.Delay(10 * time.Millisecond)
	if _, err := s.AppendEach(t.Context(), cursor, chunks([]int{10, 10}, false, nil)); err != nil {
		t.Fatal(err)
	}
	for seq := cursor.Seq + 1; seq <= cursor.Seq+20; seq++ {
		m, err := s.At(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		if m.Header["Nats-Batch-Id"] != nil {
			t.Fatalf("message %d went in an atomic batch", seq)
		}
	}
}

// sent is how many messages have left when the second chunk is asked for: message 0, and
// of five those that are not held back.
func sent(t *testing.T) int {
	if strings.HasSuffix(t.Name(), "/"+string(stream.PathFast)) {
		return 5
	}
	return 6
}

// A message of somebody else between two chunks ends the write there, on each path. By
// fast ingest the last message of the first one has not left by then.
func TestForeignMessageBetweenChunks(t *testing.T) {
	onEachPath(t, func(t *testing.T, s *stream.Stream, js jetstream.JetStream) {
		cursor, asked := acked(t, s), 0
		source := chunks([]int{5, 5, 5}, true, nil)
		_, err := s.AppendEach(t.Context(), cursor, func(stored int, at stream.Cursor) ([]stream.Message, bool) {
			if asked++; asked == 2 {
				natstest.Eventually(t, "the first chunk", func() bool { return count(t, js, s.Name()) == sent(t) })
				publish(t, js, "zulip.acme.message")
			}
			return source(stored, at)
		})
		want(t, err, stream.Refused)
		if got := contents(t, s); !slices.Equal(got, append(ids(0, sent(t)), "foreign")) {
			t.Errorf("the stream holds %v", got)
		}
	})
}

// What does not fit is found before anything of its chunk is sent, and what was sent before
// is stored.
func TestChunkThatDoesNotFit(t *testing.T) {
	onEachPath(t, func(t *testing.T, s *stream.Stream, js jetstream.JetStream) {
		cursor, asked := acked(t, s), 0
		source := chunks([]int{5, 5, 5}, true, nil)
		_, err := s.AppendEach(t.Context(), cursor, func(stored int, at stream.Cursor) ([]stream.Message, bool) {
			msgs, more := source(stored, at)
			if asked++; asked == 2 {
				msgs[4].Data = make([]byte, 2<<20)
			}
			return msgs, more
		})
		want(t, err, stream.TooLarge)
		natstest.Eventually(t, "the first chunk", func() bool { return count(t, js, s.Name()) == sent(t) })
		if _, err := s.Append(t.Context(), last(t, s), messages(sent(t), 5)); err != nil {
			t.Fatal(err)
		}
		if got := contents(t, s); !slices.Equal(got, ids(0, sent(t)+5)) {
			t.Errorf("the stream holds %v", got)
		}
	})
}

// The connection drops while the next chunk is made.
func TestDisconnectBetweenChunks(t *testing.T) {
	for _, path := range paths {
		t.Run(string(path), func(t *testing.T) {
			s, proxy, _ := behind(t, stream.Config{Path: path})
			cursor, asked := acked(t, s), 0
			source := chunks([]int{5, 5, 5}, true, nil)
			_, err := s.AppendEach(t.Context(), cursor, func(stored int, at stream.Cursor) ([]stream.Message, bool) {
				if asked++; asked == 2 {
					proxy.CutAll()
				}
				return source(stored, at)
			})
			if kind := kindOf(err); kind != stream.Unclear && kind != stream.Unavailable {
				t.Errorf("the error is %v", err)
			}
			got := contents(t, s)
			if !slices.Equal(got, ids(0, len(got))) || len(got) > 6 {
				t.Errorf("the stream holds %v", got)
			}
		})
	}
}

// Behind a reconnect the cursor of a write is one of that connection, whatever the chunks:
// the next write needs no read.
func TestChunksBehindAReconnect(t *testing.T) {
	for _, path := range paths {
		t.Run(string(path), func(t *testing.T) {
			s, proxy, _ := behind(t, stream.Config{Path: path})
			acked(t, s)
			proxy.CutAll()
			natstest.Eventually(t, "a reconnect", func() bool { return s.Epoch() > 0 })
			for _, sizes := range [][]int{{1}, {2}, {1, 1}} {
				at := acked(t, s)
				end, err := s.AppendEach(t.Context(), at, chunks(sizes, true, nil))
				if err != nil {
					t.Fatal(err)
				}
				if end.Epoch != s.Epoch() {
					t.Errorf("%v: the write ended at %+v on connection %d", sizes, end, s.Epoch())
				}
				if _, err := s.Append(t.Context(), end, messages(9, 1)); err != nil {
					t.Errorf("%v: the next write: %v", sizes, err)
				}
			}
		})
	}
}

// The leader goes in the middle of a write: what the source is told to be stored stays, and
// what stands is the beginning of what was given, each once.
func TestElectionBetweenChunks(t *testing.T) {
	c := natstest.StartCluster(t, 3)
	nc := connect(t, c.URL())
	s := open(t, nc, stream.Config{Path: stream.PathFast, New: stream.NewStream{Replicas: 3}})
	for range 3 {
		cursor := acked(t, s)
		before := len(contents(t, s))
		source, asked, told := chunks([]int{900, 900, 900, 900, 900, 900}, true, nil), 0, 0
		_, err := s.AppendEach(t.Context(), cursor, func(stored int, at stream.Cursor) ([]stream.Message, bool) {
			if told = stored; asked == 2 {
				_, _ = nc.Ask(t.Context(), "step down", &nats.Msg{Subject: "$JS.API.STREAM.LEADER.STEPDOWN." + s.Name()}, 5*time.Second)
			}
			asked++
			return source(stored, at)
		})
		got := contents(t, s)[before:]
		t.Logf("told of %d, %d stand, %v", told, len(got), err)
		if len(got) < told || !slices.Equal(got, ids(1, len(got))) || err == nil && len(got) != 5400 {
			t.Errorf("told of %d, %d stand, %v", told, len(got), err)
		}
	}
}
