package stream_test

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// edit changes the configuration of the realm's stream, as an operator does.
func edit(t *testing.T, js jetstream.JetStream, change func(*jetstream.StreamConfig)) {
	t.Helper()
	s, err := js.Stream(t.Context(), "ZULIP_acme")
	if err != nil {
		t.Fatal(err)
	}
	config := s.CachedInfo().Config
	change(&config)
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
}

func TestFullStream(t *testing.T) {
	for _, test := range []struct {
		name  string
		limit func(*jetstream.StreamConfig)
	}{
		{"max_msgs", func(c *jetstream.StreamConfig) { c.MaxMsgs = 5 }},
		{"max_bytes", func(c *jetstream.StreamConfig) { c.MaxBytes = 1500 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			onEachPath(t, func(t *testing.T, s *stream.Stream, js jetstream.JetStream) {
				edit(t, js, func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardNew; test.limit(c) })
				_, err := s.Append(t.Context(), acked(t, s), messages(1, 20))
				want(t, err, stream.Full, "10077", "nats errors lookup 10077", "make room")
				got := contents(t, s)
				if len(got) > 10 || !slices.Equal(got, ids(0, len(got))) {
					t.Fatalf("a full stream holds %v", got)
				}
				_, err = s.Append(t.Context(), last(t, s), messages(len(got), 20))
				want(t, err, stream.Full)
				edit(t, js, func(c *jetstream.StreamConfig) { c.MaxMsgs, c.MaxBytes = -1, -1 })
				at := len(contents(t, s))
				if _, err := s.Append(t.Context(), last(t, s), messages(at, 20)); err != nil {
					t.Fatalf("with room again: %v", err)
				}
				if got := contents(t, s); !slices.Equal(got, ids(0, at+20)) {
					t.Fatalf("the stream holds %v", got)
				}
			})
		})
	}
}

func TestServerAndAccountLimits(t *testing.T) {
	t.Parallel()
	big := func(n int) []stream.Message {
		msgs := messages(1, n)
		for i := range msgs {
			msgs[i].Data = make([]byte, 50_000)
		}
		return msgs
	}
	next := func(t *testing.T, s *stream.Stream) (err error) {
		natstest.Eventually(t, "an answer in time", func() bool {
			_, err = s.Append(t.Context(), last(t, s), big(1))
			e, ok := errors.AsType[*stream.Error](err)
			return !ok || e.Kind != stream.Unclear
		})
		return err
	}
	for _, path := range paths {
		t.Run("server storage, "+string(path), func(t *testing.T) {
			srv := natstest.Start(t, func(o *server.Options) { o.JetStreamMaxStore = 300_000 })
			cfg := stream.Config{Path: path, AckTimeout: time.Minute}
			if path == stream.PathAtomic {
				// The server stops in the middle of the commit, without a word. The next
				// write learns why.
				cfg.AckTimeout = 3 * time.Second
			}
			s := open(t, connect(t, srv.URL), cfg)
			_, err := s.Append(t.Context(), acked(t, s), big(20))
			if path == stream.PathAtomic {
				want(t, err, stream.Unclear)
				err = next(t, s)
			}
			want(t, err, stream.Full, "10023", "make room")
			stored, err := srv.JetStream().Stream(t.Context(), "ZULIP_acme")
			if err != nil {
				t.Fatal(err)
			}
			if err := stored.Purge(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Append(t.Context(), last(t, s), messages(1, 3)); err != nil {
				t.Fatalf("after a purge: %v", err)
			}
		})
		t.Run("account storage, "+string(path), func(t *testing.T) {
			srv := natstest.Start(t)
			cfg := stream.Config{Path: path}
			if path == stream.PathAtomic {
				cfg.AckTimeout = 3 * time.Second // nor does it say a word here
			}
			s := open(t, connect(t, srv.URL), cfg)
			limits := map[string]server.JetStreamAccountLimits{"": {MaxMemory: -1, MaxStore: 300_000, MaxStreams: 1,
				MaxConsumers:  -1,
				MaxAckPending: -1, MemoryMaxStreamBytes: -1, StoreMaxStreamBytes: -1}}
			if err := srv.Server().GlobalAccount().UpdateJetStreamLimits(limits); err != nil {
				t.Fatal(err)
			}
			_, err := s.Append(t.Context(), acked(t, s), big(20))
			if path == stream.PathAtomic {
				want(t, err, stream.Unclear)
				err = next(t, s)
			}
			want(t, err, stream.Full, "10002", "make room")
			_, err = tryOpen(t, connect(t, srv.URL), stream.Config{Realm: "b", Filter: "zulip.b.>"})
			if c, ok := errors.AsType[*stream.ConfigError](err); !ok || !strings.Contains(err.Error(), "10027") {
				t.Errorf("a second stream where one is allowed: %v (%v)", err, c)
			}
		})
	}
}

func TestStreamDeleted(t *testing.T) {
	onEachPath(t, func(t *testing.T, s *stream.Stream, js jetstream.JetStream) {
		cursor := acked(t, s)
		if err := js.DeleteStream(t.Context(), "ZULIP_acme"); err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{1, 10} {
			_, err := s.Append(t.Context(), cursor, messages(1, n))
			want(t, err, stream.Unavailable, "nobody answers")
		}
		_, _, err := s.Last(t.Context())
		want(t, err, stream.Gone, "10059")
		_, err = s.Info(t.Context())
		want(t, err, stream.Gone, "10059")

		// Made again by somebody under another name: the acknowledgement tells. A write
		// that names what it follows is refused there; one that follows nothing gets in,
		// and no second one.
		config := jetstream.StreamConfig{Name: "OTHER", Subjects: []string{filter}, AllowAtomicPublish: true,
			AllowBatchPublish: true}
		natstest.CreateStream(t, js, config)
		for _, n := range []int{1, 10} {
			_, err := s.Append(t.Context(), cursor, messages(1, n))
			want(t, err, stream.Refused)
		}
		_, err = s.Append(t.Context(), stream.Cursor{}, messages(1, 10))
		want(t, err, stream.Wrong, `acknowledged by stream "OTHER"`)
		if n := count(t, js, "OTHER"); n != 1 {
			t.Errorf("the other stream got %d messages, want 1", n)
		}
	})
}

// Recreated under the same name: an acknowledged cursor is worth nothing there, and the
// server says so.
func TestStreamRecreated(t *testing.T) {
	onEachPath(t, func(t *testing.T, s *stream.Stream, js jetstream.JetStream) {
		cursor, err := s.Append(t.Context(), acked(t, s), messages(1, 5))
		if err != nil {
			t.Fatal(err)
		}
		before, err := s.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		stored, err := js.Stream(t.Context(), "ZULIP_acme")
		if err != nil {
			t.Fatal(err)
		}
		config := stored.CachedInfo().Config
		if err := js.DeleteStream(t.Context(), "ZULIP_acme"); err != nil {
			t.Fatal(err)
		}
		natstest.CreateStream(t, js, config)
		_, err = s.Append(t.Context(), cursor, messages(6, 5))
		want(t, err, stream.Refused)
		after, err := s.Info(t.Context())
		if err != nil || after.Created.Equal(before.Created) || after.LastSeq != 0 || before.LastSeq != 6 {
			t.Errorf("Info was %+v and is %+v (%v)", before, after, err)
		}
		if _, err := s.Append(t.Context(), last(t, s), messages(6, 5)); err != nil {
			t.Error(err)
		}
	})
}

func TestAcknowledgementsTurnedOff(t *testing.T) {
	for _, path := range paths {
		t.Run(string(path), func(t *testing.T) {
			srv := natstest.Start(t)
			s := open(t, connect(t, srv.URL), stream.Config{Path: path, AckTimeout: 200 * time.Millisecond})
			cursor := acked(t, s)
			edit(t, srv.JetStream(), func(c *jetstream.StreamConfig) { c.NoAck = true })
			_, err := s.Append(t.Context(), cursor, messages(1, 5))
			want(t, err, stream.Unclear, "no acknowledgement for ") // 200ms, or longer on a slow machine
			_, err = s.Info(t.Context())
			if c, ok := errors.AsType[*stream.ConfigError](err); !ok || c.Setting != "no_ack" {
				t.Errorf("Info says %v", err)
			}
		})
	}
}

func TestMessageIDs(t *testing.T) {
	withID := func(n int, id string) stream.Message {
		m := message(n)
		m.Headers = append(m.Headers, stream.Header{Key: "Nats-Msg-Id", Value: id})
		return m
	}
	onEachPath(t, func(t *testing.T, s *stream.Stream, js jetstream.JetStream) {
		cursor, err := s.Append(t.Context(), acked(t, s),
			[]stream.Message{withID(1, "a"), withID(2, "b"), withID(3, "c")})
		if err != nil {
			t.Fatal(err)
		}
		for _, msgs := range [][]stream.Message{
			{withID(4, "a")}, {withID(4, "a"), message(5)}, {message(4), withID(5, "b")},
			{message(4), withID(5, "c"), message(6)},
		} {
			at, before := last(t, s), len(contents(t, s))
			if err == nil && cursor.Seq == at.Seq {
				at = cursor
			}
			_, err = s.Append(t.Context(), at, msgs)
			if kind := kindOf(err); kind != stream.Refused && kind != stream.Unclear {
				t.Errorf("%v: a message id that is known was taken: %v", msgs, err)
			}
			if got := contents(t, s)[before:]; len(got) > 1 {
				t.Errorf("%v: stored are %v", msgs, got)
			}
		}
	})
}

func TestTTLThatTheStreamDoesNotTake(t *testing.T) {
	srv := natstest.Start(t)
	createRaw(t, srv, "ZULIP_acme",
		map[string]any{"subjects": []string{filter}, "retention": "limits", "storage": "file", "num_replicas": 1,
			"allow_batched": true, "allow_atomic": true})
	for _, path := range paths {
		s := open(t, connect(t, srv.URL), stream.Config{Path: path})
		ttl := message(1)
		ttl.Headers = append(ttl.Headers, stream.Header{Key: "Nats-TTL", Value: "60"})
		cursor := acked(t, s)
		_, err := s.Append(t.Context(), cursor, []stream.Message{ttl, message(2)})
		want(t, err, stream.Wrong, "10166", "allow_msg_ttl")
	}
	edit(t, srv.JetStream(), func(c *jetstream.StreamConfig) { c.AllowMsgTTL = true })
	for _, path := range paths {
		s := open(t, connect(t, srv.URL), stream.Config{Path: path})
		ttl := message(1)
		ttl.Headers = append(ttl.Headers, stream.Header{Key: "Nats-TTL", Value: "1ms"})
		cursor := acked(t, s)
		_, err := s.Append(t.Context(), cursor, []stream.Message{ttl, message(2)})
		want(t, err, stream.Wrong, "10165")
	}
}

// What the operator switches off while we run costs one write that is not done, and the
// next goes another way.
func TestPathSwitchedOff(t *testing.T) {
	srv := natstest.Start(t)
	js := srv.JetStream()
	nc := connect(t, srv.URL)
	s := open(t, nc, stream.Config{})
	// A machine that stands still while the way is measured makes it seem long, and then
	// batches are atomic. It is measured again on the next connection.
	var cursor stream.Cursor
	n := 0
	natstest.Eventually(t, "a batch that goes by fast ingest", func() bool {
		var err error
		if cursor, err = s.Append(t.Context(), last(t, s), messages(n, 3)); err != nil {
			t.Fatal(err)
		}
		n += 3 // the first goes alone
		m, err := s.At(t.Context(), cursor.Seq)
		if err != nil {
			t.Fatal(err)
		}
		if m.Header["Nats-Batch-Id"] == nil {
			return true
		}
		epoch := s.Epoch()
		if err := nc.ForceReconnect(); err != nil {
			t.Fatal(err)
		}
		natstest.Eventually(t, "another connection", func() bool { return reconnected(nc, s, epoch) })
		return false
	})
	edit(t, js, func(c *jetstream.StreamConfig) { c.AllowBatchPublish = false })
	_, err := s.Append(t.Context(), cursor, messages(n, 10))
	want(t, err, stream.Unavailable, "10205", "another path")
	edit(t, js, func(c *jetstream.StreamConfig) { c.AllowAtomicPublish = false })
	_, err = s.Append(t.Context(), cursor, messages(n, 10))
	want(t, err, stream.Unavailable, "10174", "another path")
	if _, err := s.Append(t.Context(), cursor, messages(n, 10)); err != nil {
		t.Fatal(err)
	}
	if got := contents(t, s); !slices.Equal(got, ids(0, n+10)) {
		t.Errorf("the stream holds %v", got)
	}
}

func TestServersOwnBatchLimits(t *testing.T) {
	srv := natstest.Start(t, func(o *server.Options) {
		o.JetStreamLimits.MaxBatchSize = 7
		o.JetStreamLimits.MaxBatchInflightPerStream = 1
	})
	s := open(t, connect(t, srv.URL), stream.Config{Path: stream.PathAtomic})
	cursor := acked(t, s)
	_, err := s.Append(t.Context(), cursor, messages(1, 50))
	want(t, err, stream.Unavailable, "10199", "smaller")
	if cursor, err = s.Append(t.Context(), cursor, messages(1, 50)); err != nil {
		t.Fatalf("after learning the limit: %v", err)
	}
	if got := contents(t, s); !slices.Equal(got, ids(0, 51)) {
		t.Errorf("the stream holds %v", got)
	}

	// Somebody keeps a batch open, and no more than one is allowed.
	nc := srv.Conn()
	open := nats.NewMsg("zulip.acme.message")
	open.Header = nats.Header{"Nats-Batch-Id": {"theirs"}, "Nats-Batch-Sequence": {"1"}}
	if _, err := nc.RequestMsg(open, time.Minute); err != nil {
		t.Fatal(err)
	}
	_, err = s.Append(t.Context(), cursor, messages(51, 5))
	want(t, err, stream.Unavailable, "10210")

	fast := openFast(t, srv)
	if err := nc.PublishRequest("zulip.acme.message", nc.NewInbox()+".theirs.10.fail.1.0.$FI",
		[]byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	natstest.Eventually(t, "their first message", func() bool { return count(t, srv.JetStream(), "ZULIP_acme") == 52 })
	cursor, err = fast.Append(t.Context(), last(t, fast), messages(51, 1))
	if err != nil {
		t.Fatal(err)
	}
	_, err = fast.Append(t.Context(), cursor, messages(52, 5))
	want(t, err, stream.Unavailable, "10211")
}

func openFast(t *testing.T, srv *natstest.Server) *stream.Stream {
	return open(t, connect(t, srv.URL), stream.Config{Path: stream.PathFast})
}

// A single server that has refused an atomic batch half-way compares fast ingest with a
// sequence that is too high. StepDown is the way out.
func TestStepDown(t *testing.T) {
	srv := natstest.Start(t)
	proxy := natstest.NewProxy(t, srv.URL)
	nc := connect(t, proxy.URL)
	s := open(t, nc, stream.Config{Path: stream.PathFast})
	cursor := acked(t, s)

	theirs := srv.Conn()
	for i := range 5 {
		m := nats.NewMsg("zulip.acme.message")
		m.Header = nats.Header{"Nats-Batch-Id": {"theirs"}, "Nats-Batch-Sequence": {fmt.Sprint(i + 1)}}
		if i == 4 {
			m.Header["Nats-Batch-Commit"] = []string{"1"}
			m.Header["Nats-Expected-Last-Sequence"] = []string{"1"} // allowed on the first message only: refused after four
		}
		answer, err := theirs.RequestMsg(m, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if i == 4 && !strings.Contains(string(answer.Data), "10071") &&
			!strings.Contains(string(answer.Data), "10164") {
			t.Fatalf("their batch was not refused half-way: %s", answer.Data)
		}
	}

	for range 2 {
		_, err := s.Append(t.Context(), cursor, messages(1, 10))
		want(t, err, stream.Refused)
		if again := last(t, s); again.Seq != cursor.Seq {
			t.Fatalf("the stream moved from %d to %d", cursor.Seq, again.Seq)
		}
	}
	var fast atomic.Int64
	proxy.OnPublish(func(p natstest.Publish) natstest.Fate {
		if strings.HasSuffix(p.Reply, ".$FI") {
			fast.Add(1)
		}
		return natstest.Pass
	})
	s.StepDown()
	cursor, err := s.Append(t.Context(), cursor, messages(1, 10))
	if err != nil {
		t.Fatalf("after stepping down: %v", err)
	}
	if fast.Load() != 0 {
		t.Errorf("%d messages went by fast ingest", fast.Load())
	}
	epoch := s.Epoch()
	proxy.CutAll()
	natstest.Eventually(t, "the reconnect", func() bool { return reconnected(nc, s, epoch) })
	if _, err := s.Append(t.Context(), cursor, messages(11, 10)); kindOf(err) != stream.Refused {
		t.Errorf("a cursor of the connection before was taken: %v", err)
	}
	if cursor, _, err = s.Last(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(t.Context(), cursor, messages(11, 10)); err != nil {
		t.Fatalf("after the reconnect: %v", err)
	}
	if fast.Load() != 9 { // the first goes alone
		t.Errorf("after the reconnect %d of 10 messages went by fast ingest", fast.Load())
	}
	if got := contents(t, s); !slices.Equal(got, ids(0, 21)) {
		t.Errorf("the stream holds %v", got)
	}
}

// Far away, one round trip is better than two.
func TestRoundTripChoosesThePath(t *testing.T) {
	s, proxy, _ := behind(t, stream.Config{})
	batches := func() (atomic int) {
		cursor := last(t, s)
		if _, err := s.Append(t.Context(), cursor, messages(1, 10)); err != nil {
			t.Fatal(err)
		}
		info, err := s.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		err = s.Scan(t.Context(), filter, stream.Start{Seq: cursor.Seq + 1}, info.LastSeq, true,
			func(m *stream.Stored) error {
				if m.Header["Nats-Batch-Id"] != nil {
					atomic++
				}
				return nil
			})
		if err != nil {
			t.Fatal(err)
		}
		return atomic
	}
	proxy.Delay(10 * time.Millisecond)
	if n := batches(); n != 9 {
		t.Errorf("over 20 ms, %d of 9 messages went in an atomic batch", n)
	}
}

// The connection drops in the middle of an Append, before or behind a message, on each
// path. The wait ends at once: the timeout is so long here that the test would not end
// otherwise. What a read then shows is a beginning of what was given, and the rest can
// follow.
func TestDisconnectInTheMiddle(t *testing.T) {
	for _, path := range paths {
		for _, fate := range []natstest.Fate{natstest.Cut, natstest.PassAndCut} {
			t.Run(fmt.Sprintf("%s, fate %d", path, fate), func(t *testing.T) {
				srv := natstest.Start(t)
				proxy := natstest.NewProxy(t, srv.URL)
				nc := connect(t, proxy.URL)
				s := open(t, nc, stream.Config{Path: path, AckTimeout: time.Hour})
				for _, n := range []int{1, 2, 10, 300} {
					for _, at := range slices.Compact([]int{0, min(1, n-1), n / 2, n - 1}) {
						// Cursor and position come from one read: what was cut off may be
						// stored at any time after it.
						var cursor stream.Cursor
						next := 1
						natstest.Eventually(t, "a read", func() bool {
							var newest *stream.Stored
							var err error
							if cursor, newest, err = s.Last(t.Context()); err != nil {
								return false
							}
							next = 1
							if newest != nil {
								if next, err = strconv.Atoi(eventID(newest)); err != nil {
									t.Fatal(err)
								}
								next++
							}
							if next == 1 || n%2 == 0 {
								return true
							}
							// Now with a known cursor, now with a read one.
							cursor, err = s.Append(t.Context(), cursor, messages(next, 1))
							next++
							return err == nil
						})
						epoch := s.Epoch()
						onNth(proxy, at, func() natstest.Fate { return fate })
						_, err := s.Append(t.Context(), cursor, messages(next, n))
						proxy.OnPublish(nil)
						if kindOf(err) != stream.Refused { // by a message that was cut off before
							want(t, err, stream.Unclear)
						}
						natstest.Eventually(t, "the reconnect",
							func() bool { return kindOf(err) == stream.Refused || reconnected(nc, s, epoch) })
						natstest.Eventually(t, "a read", func() bool { _, _, err := s.Last(t.Context()); return err == nil })
						got := contents(t, s)
						if !slices.Equal(got, ids(1, len(got))) || len(got) < next-1 || len(got) > next-1+n {
							t.Fatalf("cut at message %d of %d: the stream then ends with %v", at, n,
								got[max(0, len(got)-5):])
						}
					}
				}
			})
		}
	}
}

// reconnected is true when the connection has come back, which it is told not to wait
// for.
func reconnected(nc *stream.Conn, s *stream.Stream, epoch uint64) bool {
	if nc.IsConnected() {
		return s.Epoch() > epoch
	}
	_ = nc.ForceReconnect() // fails on a closed connection only
	return false
}

// While there is no connection, a write fails at once and nothing of it is stored later.
func TestWriteWithoutConnection(t *testing.T) {
	srv := natstest.Start(t)
	nc := connect(t, srv.URL)
	s := open(t, nc, stream.Config{AckTimeout: time.Hour})
	cursor := acked(t, s)
	srv.Stop()
	natstest.Eventually(t, "the connection to drop", func() bool { return !nc.IsConnected() })
	for range 3 {
		_, err := s.Append(t.Context(), cursor, messages(1, 3))
		want(t, err, stream.Unavailable, "down")
		_, _, err = s.Last(t.Context())
		want(t, err, stream.Unavailable, "down")
	}
	srv.Restart()
	natstest.Eventually(t, "a read", func() bool { _, _, err := s.Last(t.Context()); return err == nil })
	if _, err := s.Append(t.Context(), last(t, s), messages(1, 3)); err != nil {
		t.Fatal(err)
	}
	if got := contents(t, s); !slices.Equal(got, ids(0, 4)) {
		t.Errorf("the stream holds %v", got)
	}
}

func TestCancelledContext(t *testing.T) {
	onEachPath(t, func(t *testing.T, s *stream.Stream, js jetstream.JetStream) {
		edit(t, js, func(c *jetstream.StreamConfig) { c.NoAck = true })
		ctx := withTimeout(t, 50*time.Millisecond)
		_, err := s.Append(ctx, stream.Cursor{}, messages(1, 3))
		if ctx.Err() == nil || kindOf(err) != 0 || !errors.Is(err, ctx.Err()) {
			t.Errorf("got %v", err)
		}
		_, err = s.Append(ctx, stream.Cursor{}, messages(1, 3))
		if !errors.Is(err, ctx.Err()) {
			t.Errorf("with a context that was over before: %v", err)
		}
		if _, _, err := s.Last(ctx); !errors.Is(err, ctx.Err()) {
			t.Errorf("a read: %v", err)
		}
	})
}

func TestSubjectOutsideTheFilter(t *testing.T) {
	onEachPath(t, func(t *testing.T, s *stream.Stream, js jetstream.JetStream) {
		for _, subject := range []string{"zulip.other.message", "zulip.acme", "zulip.acme.",
			"zulip.acmex.message", ""} {
			m := message(2)
			m.Subject = subject
			if s.Fits(&m) {
				t.Errorf("%q fits", subject)
			}
			_, err := s.Append(t.Context(), stream.Cursor{}, []stream.Message{message(1), m})
			want(t, err, stream.Wrong, filter)
		}
		if got := contents(t, s); len(got) != 0 {
			t.Errorf("the stream holds %v", got)
		}
	})
}

// Permission violations come in an error of their own, not as an answer. The wait ends at
// once and the subject is named.
func TestPermissions(t *testing.T) {
	t.Parallel()
	deny := func(publish, subscribe []string) *natstest.Server {
		return natstest.Start(t, func(o *server.Options) {
			permissions := &server.Permissions{}
			if publish != nil {
				permissions.Publish = &server.SubjectPermission{Deny: publish}
			}
			if subscribe != nil {
				permissions.Subscribe = &server.SubjectPermission{Deny: subscribe}
			}
			o.Users = []*server.User{{Username: "admin", Password: "a"},
				{Username: "bridge", Password: "b", Permissions: permissions}}
		})
	}
	as := func(srv *natstest.Server) *stream.Conn {
		return connectTo(t, stream.ConnectConfig{URL: srv.URL, User: "bridge", Password: "b"})
	}
	admin := func(srv *natstest.Server) jetstream.JetStream { return srv.JetStream(nats.UserInfo("admin", "a")) }

	for _, path := range paths {
		t.Run("publish, "+string(path), func(t *testing.T) {
			srv := deny([]string{"zulip.acme.secret"}, nil)
			s := open(t, as(srv), stream.Config{Path: path, AckTimeout: time.Hour})
			for _, n := range []int{1, 2, 10, 200} {
				for _, at := range slices.Compact([]int{0, n / 2, n - 1}) {
					msgs := messages(1, n)
					msgs[at].Subject = "zulip.acme.secret"
					for _, isRead := range []bool{false, true} {
						cursor := acked(t, s)
						if isRead {
							cursor = last(t, s)
						}
						_, err := s.Append(t.Context(), cursor, msgs)
						want(t, err, stream.Forbidden, `publish to "zulip.acme.secret"`)
					}
				}
			}
			if m, err := s.LastOn(t.Context(), "zulip.acme.secret"); err != nil || m != nil {
				t.Errorf("stored all the same: %v, %v", m, err)
			}
		})
	}
	for _, test := range []struct {
		name               string
		publish, subscribe []string
		kind               stream.Kind
		word               string
		open               bool // Open succeeds all the same
	}{
		{"settings", []string{"$JS.API.STREAM.INFO.>"}, nil, stream.Forbidden, "$JS.API.STREAM.INFO.ZULIP_acme", false},
		{"creating", []string{"$JS.API.STREAM.CREATE.>"}, nil, stream.Forbidden,
			"$JS.API.STREAM.CREATE.ZULIP_acme", false},
		{"names", []string{"$JS.API.STREAM.NAMES"}, nil, 0, "", true},
		{"answers", nil, []string{"_INBOX.>"}, stream.Forbidden, "_INBOX.", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			srv := deny(test.publish, test.subscribe)
			_, err := tryOpen(t, as(srv), stream.Config{AckTimeout: time.Hour})
			if test.open {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			want(t, err, test.kind, test.word)
			if test.name == "creating" && !strings.Contains(err.Error(), "nats stream add ZULIP_acme") {
				t.Errorf("no way out is shown: %v", err)
			}
		})
	}
	t.Run("reading", func(t *testing.T) {
		srv := deny([]string{"$JS.API.STREAM.MSG.GET.>"}, nil)
		s := open(t, as(srv), stream.Config{AckTimeout: time.Hour})
		_, _, err := s.Last(t.Context())
		want(t, err, stream.Forbidden, "$JS.API.STREAM.MSG.GET.ZULIP_acme")
	})
	t.Run("no consumers", func(t *testing.T) {
		for _, denied := range []string{"$JS.API.CONSUMER.CREATE.>", "$JS.API.CONSUMER.MSG.NEXT.>",
			"$JS.API.CONSUMER.DELETE.>"} {
			srv := deny([]string{denied}, nil)
			s := open(t, as(srv), stream.Config{})
			testScan(t, s, admin(srv))
		}
	})
}

// Two streams in two JetStream domains capture the same subjects: both store, and the
// first acknowledgement is as likely the wrong one.
func TestTwoDomainsAnswer(t *testing.T) {
	port := natstest.FreePort(t)
	hub := natstest.Start(t, func(o *server.Options) {
		o.ServerName, o.JetStreamDomain = "hub", "hub"
		o.LeafNode = server.LeafNodeOpts{Host: "127.0.0.1", Port: port}
	})
	leaf := natstest.Start(t, func(o *server.Options) {
		o.ServerName, o.JetStreamDomain = "leaf", "leaf"
		o.LeafNode.Remotes = []*server.RemoteLeafOpts{{URLs: []*url.URL{{Scheme: "nats-leaf",
			Host: fmt.Sprintf("127.0.0.1:%d", port)}}}}
	})
	natstest.Eventually(t, "the leaf node", func() bool { return hub.Server().NumLeafNodes() == 1 })
	nc := connect(t, leaf.URL)
	for _, path := range paths {
		t.Run(string(path), func(t *testing.T) {
			ours := open(t, nc, stream.Config{Domain: "hub", Path: path})
			if ours.Domain() != "hub" {
				t.Fatalf("the domain is %q", ours.Domain())
			}
			cursor := acked(t, ours) // alone, the hub's stream works by way of the leaf node
			cursor, err := ours.Append(t.Context(), cursor, messages(1, 10))
			if err != nil {
				t.Fatal(err)
			}
			other, err := jetstream.NewWithDomain(leaf.Conn(), "leaf")
			if err != nil {
				t.Fatal(err)
			}
			config := jetstream.StreamConfig{Name: "ZULIP_acme", Subjects: []string{filter}, AllowAtomicPublish: true,
				AllowBatchPublish: true,
				FirstSeq:          cursor.Seq + 1}
			natstest.CreateStream(t, other, config)
			defer other.DeleteStream(t.Context(), "ZULIP_acme")
			defer func() {
				js, err := jetstream.NewWithDomain(leaf.Conn(), "hub")
				if err != nil || js.DeleteStream(t.Context(), "ZULIP_acme") != nil {
					t.Error("the hub's stream stays")
				}
			}()
			var wrong error
			natstest.Eventually(t, "an acknowledgement of the wrong stream", func() bool {
				if cursor, wrong = ours.Append(t.Context(), cursor, messages(11, 5)); wrong != nil &&
					kindOf(wrong) != stream.Wrong {
					cursor = last(t, ours)
				}
				return kindOf(wrong) == stream.Wrong
			})
			want(t, wrong, stream.Wrong, `domain "leaf"`, `domain "hub"`, "ZULIP_acme")
		})
	}
	t.Run("not the domain asked for", func(t *testing.T) {
		_, err := stream.Open(t.Context(), nc, stream.Config{Realm: "acme", Filter: filter, Domain: "nowhere"})
		want(t, err, stream.Unavailable)
	})
}
