package stream_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/events"
	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

func TestEachPathStoresExactlyWhatItWasGiven(t *testing.T) {
	onEachPath(t, func(t *testing.T, s *stream.Stream, js jetstream.JetStream) {
		given := messages(1, 2500)
		given[7].Subject = "zulip.acme.bridge.queue"
		given[8].Headers = nil
		given[9].Data = nil
		given[10].Headers = append(given[10].Headers, stream.Header{Key: "zulip-twice", Value: "a"},
			stream.Header{Key: "zulip-twice", Value: "b"})
		given[11].Data = []byte("\x00\xff\r\nNATS/1.0\r\n\r\n")
		cursor := stream.Cursor{}
		for _, n := range []int{1, 1, 2, 3, 500, 1993} {
			next, err := s.Append(t.Context(), cursor, given[cursor.Seq:cursor.Seq+uint64(n)])
			if err != nil {
				t.Fatalf("%d messages behind %d: %v", n, cursor.Seq, err)
			}
			if next.Seq != cursor.Seq+uint64(n) || !next.Acked {
				t.Fatalf("%d messages behind %d gave %+v", n, cursor.Seq, next)
			}
			cursor = next
		}
		n := 0
		err := s.Scan(t.Context(), ">", stream.Start{Seq: 1}, cursor.Seq, false, func(m *stream.Stored) error {
			g := given[n]
			n++
			if m.Seq != uint64(n) || m.Subject != g.Subject || string(m.Data) != string(g.Data) {
				return fmt.Errorf("message %d is stored as %d, %s %q, given was %s %q", n, m.Seq, m.Subject, m.Data,
					g.Subject, g.Data)
			}
			want := map[string][]string{}
			for _, h := range g.Headers {
				want[h.Key] = append(want[h.Key], h.Value)
			}
			for key, values := range m.Header {
				if !strings.HasPrefix(key, "Nats-") && !slices.Equal(values, want[key]) {
					return fmt.Errorf("message %d has the header %s %q, given was %q", n, key, values, want[key])
				}
				delete(want, key)
			}
			if len(want) > 0 {
				return fmt.Errorf("message %d lacks the headers %v", n, want)
			}
			if m.Header["Nats-Expected-Stream"] != nil {
				return fmt.Errorf("message %d went with the name of its stream, and can be passed on to no "+
					"other one", n)
			}
			if m.Header["Nats-Expected-Last-Msg-Id"] != nil {
				return fmt.Errorf("message %d went with a header that can stop a replicated stream", n)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if n != len(given) {
			t.Fatalf("%d of %d messages are stored", n, len(given))
		}
	})
}

// The headers in the stream show by which path a message came.
func TestPathsAreWhatTheyAreCalled(t *testing.T) {
	onEachPath(t, func(t *testing.T, s *stream.Stream, js jetstream.JetStream) {
		if _, err := s.Append(t.Context(), stream.Cursor{}, messages(1, 5)); err != nil {
			t.Fatal(err)
		}
		first, err := s.At(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		if got := first.Header["Nats-Expected-Last-Subject-Sequence"]; !slices.Equal(got, []string{"0"}) {
			t.Errorf("the first message expects %q under the filter, want 0", got)
		}
		if got := first.Header["Nats-Expected-Last-Subject-Sequence-Subject"]; !slices.Equal(got, []string{filter}) {
			t.Errorf("the first message compares with %q", got)
		}
		if got := first.Header["Nats-Expected-Last-Sequence"]; !slices.Equal(got, []string{"0"}) {
			t.Errorf("the first message expects %q in the stream, want 0", got)
		}
		third, err := s.At(t.Context(), 3)
		if err != nil {
			t.Fatal(err)
		}
		batch, alone := third.Header["Nats-Batch-Id"] != nil,
			slices.Equal(third.Header["Nats-Expected-Last-Sequence"], []string{"2"})
		switch t.Name()[strings.LastIndex(t.Name(), "/")+1:] {
		case "atomic":
			if !batch || third.Header["Nats-Expected-Last-Sequence"] != nil {
				t.Errorf("the third message is in no atomic batch: %v", third.Header)
			}
		default:
			if batch || !alone {
				t.Errorf("the third message has no expectation of its own: %v", third.Header)
			}
		}
	})
}

func TestStaleCursorIsRefused(t *testing.T) {
	onEachPath(t, func(t *testing.T, s *stream.Stream, js jetstream.JetStream) {
		read, known := last(t, s), acked(t, s)
		publish(t, js, "zulip.acme.message")
		for _, n := range []int{1, 2, 10} {
			for _, cursor := range []stream.Cursor{read, known, {Seq: 1}, {Seq: 99}, {Seq: 99, Acked: true}} {
				_, err := s.Append(t.Context(), cursor, messages(1, n))
				want(t, err, stream.Refused, "ZULIP_acme", "nats errors lookup")
			}
		}
		if got := contents(t, s); !slices.Equal(got, []string{"0", "foreign"}) {
			t.Fatalf("the stream holds %v", got)
		}
		if _, err := s.Append(t.Context(), last(t, s), messages(1, 10)); err != nil {
			t.Fatalf("after a read: %v", err)
		}
		if got, want := contents(t, s), append([]string{"0", "foreign"}, ids(1, 10)...); !slices.Equal(got, want) {
			t.Fatalf("the stream holds %v", got)
		}
	})
}

// behind returns a stream that is reached by way of a proxy, and the server behind it.
func behind(t *testing.T, cfg stream.Config) (*stream.Stream, *natstest.Proxy, *natstest.Server) {
	t.Helper()
	srv := natstest.Start(t)
	proxy := natstest.NewProxy(t, srv.URL)
	return open(t, connect(t, proxy.URL), cfg), proxy, srv
}

// onNth calls f before the nth publish of ours, counted from 0, and passes all others on.
func onNth(proxy *natstest.Proxy, n int, f func() natstest.Fate) {
	count := 0
	proxy.OnPublish(func(p natstest.Publish) natstest.Fate {
		if !strings.HasPrefix(p.Subject, "zulip.") {
			return natstest.Pass
		}
		count++
		if count == n+1 {
			return f()
		}
		return natstest.Pass
	})
}

// Another writer's message lands in front of the nth message of one Append: at each
// place, on each path, on a dedicated and a shared stream. Nothing of what comes behind
// it may be stored, and what was stored before it must be a beginning of what was given.
func TestForeignMessageInBetween(t *testing.T) {
	for _, shared := range []bool{false, true} {
		for _, path := range paths {
			if shared && path == stream.PathFast {
				continue // fast ingest needs a dedicated stream
			}
			for _, known := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s,shared=%v,acked=%v", path, shared, known), func(t *testing.T) {
					testForeign(t, path, shared, known)
				})
			}
		}
	}
}

func testForeign(t *testing.T, path stream.Path, shared, known bool) {
	srv := natstest.Start(t)
	js := srv.JetStream()
	if shared {
		config := jetstream.StreamConfig{Name: "ALL", Subjects: []string{"zulip.>"}, AllowAtomicPublish: true}
		natstest.CreateStream(t, js, config)
	}
	proxy := natstest.NewProxy(t, srv.URL)
	s := open(t, connect(t, proxy.URL), stream.Config{Path: path})
	if s.Dedicated() == shared {
		t.Fatalf("the stream is dedicated: %v", s.Dedicated())
	}
	next := 1
	for _, n := range []int{1, 2, 3, 10, 300} {
		for _, at := range slices.Compact([]int{0, min(1, n-1), n / 2, n - 1}) {
			proxy.OnPublish(nil)
			cursor := last(t, s)
			if known {
				cursor = acked(t, s)
			}
			before := len(contents(t, s))
			onNth(proxy, at, func() natstest.Fate {
				if path != stream.PathAtomic {
					// What was sent before is to be there first.
					natstest.Eventually(t, "the messages before", func() bool { return count(t, js, s.Name()) == before+at })
				}
				publish(t, js, "zulip.acme.message")
				return natstest.Pass
			})
			_, err := s.Append(t.Context(), cursor, messages(next, n))
			want(t, err, stream.Refused)
			got := contents(t, s)[before:]
			stored := slices.Index(got, "foreign")
			if stored < 0 || stored > at || stored != len(got)-1 || !slices.Equal(got[:stored], ids(next, stored)) {
				t.Fatalf("a foreign message in front of message %d of %d: the stream then holds %v", at, n, got)
			}
			if path != stream.PathAtomic && stored != at {
				t.Errorf("a foreign message in front of message %d of %d: %d are stored", at, n, stored)
			}
			next += n
		}
	}
}

// A message of fast ingest is lost on the way: the rest must not slide in behind the
// hole.
func TestLostMessageInABatch(t *testing.T) {
	t.Parallel()
	for _, path := range []stream.Path{stream.PathFast, stream.PathAtomic} {
		t.Run(string(path), func(t *testing.T) {
			s, proxy, _ := behind(t, stream.Config{Path: path, AckTimeout: 300 * time.Millisecond})
			for _, n := range []int{2, 10, 600} {
				for _, at := range []int{0, 1, n / 2, n - 1} {
					proxy.OnPublish(nil)
					cursor := acked(t, s)
					before := len(contents(t, s))
					onNth(proxy, at, func() natstest.Fate { return natstest.Lose })
					_, err := s.Append(t.Context(), cursor, messages(1, n))
					want(t, err, stream.Unclear)
					proxy.OnPublish(nil)
					got := contents(t, s)[before:]
					if path == stream.PathAtomic && len(got) > 0 {
						t.Errorf("message %d of %d was lost, but %d are stored", at, n, len(got))
					}
					if !slices.Equal(got, ids(1, len(got))) || len(got) > at {
						t.Errorf("message %d of %d was lost: the stream then holds %v", at, n, got)
					}
				}
			}
		})
	}
}

// On a shared stream, other realms write all the time, and that is no reason to refuse.
func TestSharedStreamIgnoresOtherRealms(t *testing.T) {
	for _, path := range []stream.Path{stream.PathAuto, stream.PathAtomic, stream.PathSync} {
		t.Run(string(path), func(t *testing.T) {
			srv := natstest.Start(t)
			js := srv.JetStream()
			config := jetstream.StreamConfig{Name: "ALL", Subjects: []string{"zulip.>"}, AllowAtomicPublish: true,
				AllowBatchPublish: true}
			natstest.CreateStream(t, js, config)
			proxy := natstest.NewProxy(t, srv.URL)
			s := open(t, connect(t, proxy.URL), stream.Config{Path: path})
			if s.Name() != "ALL" || s.Dedicated() {
				t.Fatalf("found %s, dedicated %v", s.Name(), s.Dedicated())
			}
			proxy.OnPublish(func(p natstest.Publish) natstest.Fate {
				if strings.HasPrefix(p.Subject, "zulip.acme.") {
					publish(t, js, "zulip.other.message")
				}
				return natstest.Pass
			})
			cursor := last(t, s)
			for from := 1; from < 100; from += 20 {
				var err error
				if cursor, err = s.Append(t.Context(), cursor, messages(from, 20)); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			err := s.Scan(t.Context(), filter, stream.Start{}, cursor.Seq, true, func(m *stream.Stored) error {
				got = append(got, eventID(m))
				return nil
			})
			if err != nil || !slices.Equal(got, ids(1, 100)) {
				t.Fatalf("stored are %v (%v)", got, err)
			}
			newest, m, err := s.Last(t.Context())
			if err != nil || newest.Seq != cursor.Seq || newest.Acked || eventID(m) != "100" {
				t.Fatalf("the newest is %+v, %v (%v), want sequence %d", newest, m, err, cursor.Seq)
			}
			if m, err := s.At(t.Context(), 1); err != nil || m != nil {
				t.Fatalf("another realm's message is read as ours: %v, %v", m, err)
			}
		})
	}
}

// Messages at the end of the stream were deleted, or all have aged out: its last sequence
// is above that of the message read.
func TestFirstWriteBehindAHole(t *testing.T) {
	onEachPath(t, func(t *testing.T, s *stream.Stream, js jetstream.JetStream) {
		if _, err := s.Append(t.Context(), stream.Cursor{}, messages(1, 10)); err != nil {
			t.Fatal(err)
		}
		stored, err := js.Stream(t.Context(), "ZULIP_acme")
		if err != nil {
			t.Fatal(err)
		}
		for _, seq := range []uint64{8, 9, 10} {
			if err := stored.DeleteMsg(t.Context(), seq); err != nil {
				t.Fatal(err)
			}
		}
		cursor := last(t, s)
		if cursor.Seq != 7 {
			t.Fatalf("the newest is %d", cursor.Seq)
		}
		_, err = s.Append(t.Context(), stream.Cursor{Seq: 6}, messages(8, 3))
		want(t, err, stream.Refused)
		if cursor, err = s.Append(t.Context(), cursor, messages(8, 3)); err != nil || cursor.Seq != 13 {
			t.Fatalf("behind the hole: %+v, %v", cursor, err)
		}
		if err := stored.Purge(t.Context()); err != nil {
			t.Fatal(err)
		}
		if cursor, err = s.Append(t.Context(), last(t, s), messages(11, 3)); err != nil || cursor.Seq != 16 {
			t.Fatalf("behind nothing: %+v, %v", cursor, err)
		}
		if got := contents(t, s); !slices.Equal(got, ids(11, 3)) {
			t.Errorf("the stream holds %v", got)
		}
	})
}

// The acknowledgement of the last message may come before the sender looks: hundreds of
// times, so that it does.
func TestManyBatches(t *testing.T) {
	for _, path := range []stream.Path{stream.PathFast, stream.PathAtomic} {
		srv := natstest.Start(t)
		s := open(t, connect(t, srv.URL), stream.Config{Path: path})
		cursor := acked(t, s)
		for i := range 150 {
			n := 2 + i%60
			next, err := s.Append(t.Context(), cursor, messages(int(cursor.Seq), n))
			if err != nil {
				t.Fatalf("%s: %d messages: %v", path, n, err)
			}
			if next.Seq != cursor.Seq+uint64(n) {
				t.Fatalf("%s: %d messages behind %d end at %d", path, n, cursor.Seq, next.Seq)
			}
			cursor = next
		}
		if got := contents(t, s); !slices.Equal(got, ids(0, int(cursor.Seq))) {
			t.Fatalf("%s: the stream holds %d messages in another order, or other ones", path, len(got))
		}
	}
}

// More than the window of unacknowledged messages, with large and small ones.
func TestLongBatch(t *testing.T) {
	srv := natstest.Start(t)
	s := open(t, connect(t, srv.URL), stream.Config{Path: stream.PathFast})
	msgs := messages(1, 6_000)
	for i := range 12 {
		msgs[i*500].Data = make([]byte, 300_000)
	}
	cursor, err := s.Append(t.Context(), stream.Cursor{}, msgs)
	if err != nil || cursor.Seq != 6_000 {
		t.Fatalf("%+v, %v", cursor, err)
	}
	big := make([]stream.Message, 30)
	for i := range big {
		big[i] = stream.Message{Subject: "zulip.acme.message", Data: make([]byte, 900_000)}
	}
	if _, err := s.Append(t.Context(), cursor, big); err != nil {
		t.Fatal(err)
	}
	if got := contents(t, s)[:6_000]; !slices.Equal(got, ids(1, 6_000)) {
		t.Fatal("the stream holds them in another order")
	}
}

// What is stored can be copied: by a mirror, by a source, and by somebody who passes it
// on with the headers that are portable.
func TestCopies(t *testing.T) {
	onEachPath(t, func(t *testing.T, s *stream.Stream, js jetstream.JetStream) {
		at := last(t, s)
		for i := range 3 {
			var err error
			if at, err = s.Append(t.Context(), at, messages(5*i, 5)); err != nil {
				t.Fatal(err)
			}
		}
		copies := map[string]jetstream.StreamConfig{
			"mirror": {Name: s.Name() + "_mirror", Mirror: &jetstream.StreamSource{Name: s.Name()}},
			"source": {Name: s.Name() + "_source", Sources: []*jetstream.StreamSource{{Name: s.Name()}}},
			"passed": {Name: s.Name() + "_passed", Subjects: []string{"passed.>"}},
		}
		for _, c := range copies {
			c.Storage = jetstream.MemoryStorage
			natstest.CreateStream(t, js, c)
		}
		own, err := js.Stream(t.Context(), s.Name())
		if err != nil {
			t.Fatal(err)
		}
		for seq := range at.Seq {
			m, err := own.GetMsg(t.Context(), seq+1)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := js.PublishMsg(t.Context(),
				&nats.Msg{Subject: "passed." + m.Subject, Header: events.Portable(m.Header),
					Data: m.Data}); err != nil {
				t.Fatalf("passing message %d on: %v", m.Sequence, err)
			}
		}
		for how, c := range copies {
			natstest.Eventually(t, "all messages in the "+how, func() bool {
				copied, err := js.Stream(t.Context(), c.Name)
				return err == nil && copied.CachedInfo().State.Msgs == at.Seq
			})
		}
	})
}
