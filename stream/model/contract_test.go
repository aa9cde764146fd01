package model_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/stream/natstest"
)

// client is what the bridge asks of a stream, as far as the model imitates it.
type client interface {
	Last(ctx context.Context) (stream.Cursor, *stream.Stored, error)
	At(ctx context.Context, seq uint64) (*stream.Stored, error)
	LastOn(ctx context.Context, subject string) (*stream.Stored, error)
	Next(ctx context.Context, subject string, seq uint64) (*stream.Stored, error)
	Scan(ctx context.Context, subject string, from stream.Start, until uint64, headersOnly bool,
		f func(*stream.Stored) error) error
	Append(ctx context.Context, after stream.Cursor, msgs []stream.Message) (stream.Cursor, error)
	AppendEach(ctx context.Context, after stream.Cursor, source stream.Source) (stream.Cursor, error)
	Info(ctx context.Context) (stream.Info, error)
	Fits(m *stream.Message) bool
	Purge(ctx context.Context, subject string, below uint64) error
	PutObject(ctx context.Context, name string, data []byte) error
	Object(ctx context.Context, name string) ([]byte, error)
	Erase(ctx context.Context, epoch, seq uint64) error
	EraseObject(ctx context.Context, epoch uint64, name string) error
	Epoch() uint64
	Dedicated() bool
}

// bench is a stream with a second way in, for what others do to it.
type bench struct {
	client
	foreign func(subject string)
	remove  func(n int)
	purge   func()
	destroy func()
	edit    func(model.Settings)
}

const filter = "zulip.acme.>"

// TestContract runs one list of expectations on the model and on a real server: what the
// bridge's simulation believes of JetStream is what JetStream does.
func TestContract(t *testing.T) {
	t.Run("model", func(t *testing.T) {
		contract(t, func(t *testing.T) bench {
			m := &model.Stream{Filter: filter}
			return bench{client: m.Client(t.Context()), foreign: func(s string) { m.Publish(s, []byte("foreign")) },
				remove: m.Remove, purge: m.Purge, destroy: m.Delete,
				edit: func(to model.Settings) { m.Edit(func(s *model.Settings) { *s = to }) }}
		})
	})
	for _, path := range []stream.Path{stream.PathAuto, stream.PathAtomic, stream.PathSync} {
		t.Run("server, "+string(path), func(t *testing.T) {
			srv := natstest.Start(t)
			n := 0
			contract(t, func(t *testing.T) bench {
				n++
				name := fmt.Sprintf("S%d", n)
				js := srv.JetStream()
				config := jetstream.StreamConfig{Name: name, Subjects: []string{filter}, Storage: jetstream.FileStorage,
					AllowAtomicPublish: true, AllowBatchPublish: true}
				natstest.CreateStream(t, js, config)
				conn, err := stream.Connect(t.Context(), stream.ConnectConfig{URL: srv.URL})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(conn.Close)
				natstest.Eventually(t, "the connection", conn.IsConnected)
				s, err := stream.Open(t.Context(), conn, stream.Config{Realm: "acme", Filter: filter, Name: name, Path: path,
					AckTimeout: 30 * time.Second}) // a busy machine answers late
				if err != nil {
					t.Fatal(err)
				}
				raw, err := js.Stream(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				must := func(err error) {
					t.Helper()
					if err != nil {
						t.Fatal(err)
					}
				}
				t.Cleanup(func() { s.Close(); _ = js.DeleteStream(context.Background(), name) })
				return bench{client: s,
					foreign: func(subject string) {
						_, err := js.Publish(t.Context(), subject,
							[]byte("foreign"))
						must(err)
					},
					remove: func(n int) {
						for range n {
							info, err := raw.Info(t.Context())
							must(err)
							for seq := info.State.LastSeq; seq > 0; seq-- {
								if _, err := raw.GetMsg(t.Context(), seq); err == nil {
									must(raw.DeleteMsg(t.Context(), seq))
									break
								}
							}
						}
					},
					purge:   func() { must(raw.Purge(t.Context())) },
					destroy: func() { must(js.DeleteStream(t.Context(), name)) },
					edit: func(to model.Settings) {
						c := config
						if to.Shared {
							c.Subjects = []string{"zulip.>"}
						}
						if to.Interest {
							c.Retention = jetstream.InterestPolicy
						}
						c.MaxMsgSize, c.MaxAge, c.MaxMsgs, c.MaxMsgsPerSubject = int32(to.MaxMsgSize), to.MaxAge,
							int64(to.MaxMsgs), int64(to.MaxPerSubject)
						c.MaxBytes = int64(to.MaxBytes)
						_, err := js.UpdateStream(t.Context(), c)
						must(err)
					},
				}
			})
		})
	}
}

// some makes n messages, the first with that id.
func some(first, n int) (msgs []stream.Message) {
	for i := range n {
		msgs = append(msgs, stream.Message{Subject: []string{"zulip.acme.message", "zulip.acme.reaction"}[i%2],
			Data:    fmt.Appendf(nil, "body %d", first+i),
			Headers: []stream.Header{{Key: "Zulip-Event-Id", Value: fmt.Sprint(first + i)}}})
	}
	return msgs
}

func contract(t *testing.T, open func(t *testing.T) bench) {
	ctx := t.Context()
	stored := func(t *testing.T, b bench) (bodies []string) {
		t.Helper()
		info, err := b.Info(ctx)
		if err != nil {
			t.Fatal(err)
		}
		err = b.Scan(ctx, filter, stream.Start{Seq: 1}, info.LastSeq, false, func(m *stream.Stored) error {
			bodies = append(bodies, string(m.Data))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return bodies
	}
	want := func(t *testing.T, b bench, bodies ...string) {
		t.Helper()
		if got := stored(t, b); fmt.Sprint(got) != fmt.Sprint(bodies) {
			t.Errorf("the stream holds %q, want %q", got, bodies)
		}
	}
	kind := func(t *testing.T, err error, kinds ...stream.Kind) {
		t.Helper()
		e, ok := errors.AsType[*stream.Error](err)
		for _, k := range kinds {
			if ok && e.Kind == k {
				return
			}
		}
		t.Errorf("error %v, want one of kind %v", err, kinds)
	}
	write := func(t *testing.T, b bench, after stream.Cursor, msgs []stream.Message) stream.Cursor {
		t.Helper()
		cur, err := b.Append(ctx, after, msgs)
		if err != nil {
			t.Fatal(err)
		}
		return cur
	}

	t.Run("empty", func(t *testing.T) {
		b := open(t)
		cur, m, err := b.Last(ctx)
		if err != nil || m != nil || cur != (stream.Cursor{}) {
			t.Errorf("Last of an empty stream is %+v, %v, %v", cur, m, err)
		}
		if m, err := b.LastOn(ctx, "zulip.acme.message"); err != nil || m != nil {
			t.Errorf("LastOn of an empty stream is %v, %v", m, err)
		}
		if info, err := b.Info(ctx); err != nil || info.LastSeq != 0 || info.Messages != 0 {
			t.Errorf("Info of an empty stream is %+v, %v", info, err)
		}
	})
	t.Run("purge a part", func(t *testing.T) {
		b := open(t)
		cur := write(t, b, stream.Cursor{}, some(0, 6))
		for _, below := range []uint64{0, 1} { // not all
			if err := b.Purge(ctx, "zulip.acme.reaction", below); err != nil {
				t.Error(err)
			}
		}
		want(t, b, "body 0", "body 1", "body 2", "body 3", "body 4", "body 5")
		kind(t, b.Purge(ctx, filter, 4), stream.Wrong)
		kind(t, b.Purge(ctx, "zulip.other.message", 4), stream.Wrong)
		if err := b.Purge(ctx, "zulip.acme.reaction", 4); err != nil {
			t.Fatal(err)
		}
		want(t, b, "body 0", "body 2", "body 3", "body 4", "body 5")
		if err := b.Purge(ctx, "zulip.*.reaction", 6); err == nil {
			t.Error("what goes beyond the filter is purged")
		}
		want(t, b, "body 0", "body 2", "body 3", "body 4", "body 5")
		// What is written next follows what was there, acknowledged or read.
		write(t, b, cur, some(6, 2))
		cur, m, err := b.Last(ctx)
		if err != nil || m == nil || m.Seq != 8 {
			t.Fatalf("%v, %v", m, err)
		}
		write(t, b, cur, some(8, 1))
		want(t, b, "body 0", "body 2", "body 3", "body 4", "body 5", "body 6", "body 7", "body 8")
		if info, err := b.Info(ctx); err != nil || info.FirstSeq != 1 || info.Messages != 8 {
			t.Errorf("%+v, %v", info, err)
		}
	})
	t.Run("write and read back", func(t *testing.T) {
		b := open(t)
		cur := write(t, b, stream.Cursor{}, some(0, 1))
		if cur != (stream.Cursor{Seq: 1, Acked: true}) {
			t.Errorf("cursor %+v after one message", cur)
		}
		cur = write(t, b, cur, some(1, 5))
		if cur != (stream.Cursor{Seq: 6, Acked: true}) {
			t.Errorf("cursor %+v after six messages", cur)
		}
		want(t, b, "body 0", "body 1", "body 2", "body 3", "body 4", "body 5")
		read, m, err := b.Last(ctx)
		if err != nil || read != (stream.Cursor{Seq: 6}) || m.Seq != 6 || string(m.Data) != "body 5" ||
			m.Header["Zulip-Event-Id"][0] != "5" {
			t.Errorf("Last is %+v, %+v, %v", read, m, err)
		}
		if m, err := b.At(ctx, 3); err != nil || string(m.Data) != "body 2" {
			t.Errorf("At(3) is %+v, %v", m, err)
		}
		if m, err := b.At(ctx, 99); err != nil || m != nil {
			t.Errorf("At(99) is %+v, %v", m, err)
		}
		if m, err := b.LastOn(ctx, "zulip.acme.reaction"); err != nil || m.Seq != 5 {
			t.Errorf("LastOn is %+v, %v", m, err)
		}
		write(t, b, read, some(6, 3))
	})
	t.Run("chunks", func(t *testing.T) {
		b := open(t)
		cur, err := b.AppendEach(ctx, stream.Cursor{}, func(int, stream.Cursor) ([]stream.Message, bool) { return nil, true })
		if err != nil || cur != (stream.Cursor{}) {
			t.Errorf("nothing at all: %+v, %v", cur, err)
		}
		k, told := 0, 0
		source := func(stored int, at stream.Cursor) ([]stream.Message, bool) {
			if stored < told || stored > 2*k || stored > 0 && at != (stream.Cursor{Seq: uint64(stored), Acked: true}) {
				t.Errorf("before chunk %d the source is told of %d messages, up to %+v", k, stored, at)
			}
			told = stored
			k++
			return some(2*k-2, 2), k < 3
		}
		if cur, err = b.AppendEach(ctx, cur, source); err != nil || cur != (stream.Cursor{Seq: 6, Acked: true}) {
			t.Errorf("three chunks: %+v, %v", cur, err)
		}
		want(t, b, "body 0", "body 1", "body 2", "body 3", "body 4", "body 5")
	})
	t.Run("a message of somebody else between two chunks", func(t *testing.T) {
		b := open(t)
		cur, k := write(t, b, stream.Cursor{}, some(0, 1)), 0
		_, err := b.AppendEach(ctx, cur, func(int, stream.Cursor) ([]stream.Message, bool) {
			if k++; k == 2 {
				natstest.Eventually(t, "the first chunk", func() bool { return len(stored(t, b)) >= 2 })
				b.foreign("zulip.acme.foreign")
			}
			return some(2*k-1, 2), true
		})
		kind(t, err, stream.Refused)
		// By fast ingest the last of a chunk has not left yet.
		if got := fmt.Sprint(stored(t, b)); got != "[body 0 body 1 foreign]" && got != "[body 0 body 1 body 2 foreign]" {
			t.Errorf("the stream holds %s", got)
		}
	})
	for _, n := range []int{1, 4} {
		t.Run(fmt.Sprintf("a stale cursor is refused, %d messages", n), func(t *testing.T) {
			b := open(t)
			cur := write(t, b, stream.Cursor{}, some(0, 2))
			b.foreign("zulip.acme.foreign")
			for _, stale := range []stream.Cursor{cur, {Seq: 2}, {}, {Seq: 99}, {Seq: 99, Acked: true}} {
				_, err := b.Append(ctx, stale, some(2, n))
				kind(t, err, stream.Refused)
			}
			want(t, b, "body 0", "body 1", "foreign")
			write(t, b, stream.Cursor{Seq: 3}, some(2, n))
		})
	}
	t.Run("a read cursor of an emptied stream", func(t *testing.T) {
		b := open(t)
		cur := write(t, b, stream.Cursor{}, some(0, 3))
		b.purge()
		read, m, err := b.Last(ctx)
		if err != nil || m != nil || read != (stream.Cursor{}) {
			t.Errorf("Last after a purge is %+v, %v, %v", read, m, err)
		}
		if info, err := b.Info(ctx); err != nil || info.LastSeq != 3 {
			t.Errorf("Info after a purge is %+v, %v; the sequence goes on", info, err)
		}
		// The stream's own sequence has not moved: an acknowledged cursor still fits, and
		// so does one that was read.
		write(t, b, cur, some(3, 1))
		b.purge()
		write(t, b, stream.Cursor{}, some(4, 2))
		want(t, b, "body 4", "body 5")
	})
	t.Run("next on a subject", func(t *testing.T) {
		b := open(t)
		write(t, b, stream.Cursor{}, some(0, 6))
		for _, test := range []struct {
			subject   string
			from, seq uint64
		}{{"zulip.acme.message", 0, 1}, {"zulip.acme.message", 2, 3}, {"zulip.acme.message", 3, 3}, {filter, 4, 4},
			{"zulip.acme.message", 6, 0},
			{"zulip.acme.reaction", 7, 0}, {"zulip.acme.*", 6, 6}} {
			m, err := b.Next(ctx, test.subject, test.from)
			switch {
			case err != nil, m == nil && test.seq != 0, m != nil && m.Seq != test.seq:
				t.Errorf("Next(%s, %d) is %+v, %v; want sequence %d, 0 for none", test.subject, test.from, m,
					err, test.seq)
			}
		}
	})
	t.Run("filters of a layout by place", func(t *testing.T) {
		b := open(t)
		for _, subject := range []string{"message.channel.7", "message.direct", "bridge.queue", "presence.none", "message.channel.8",
			"bridge.state.users", "reaction.direct", "message"} {
			b.foreign("zulip.acme." + subject)
		}
		for filter, want := range map[string][]uint64{
			"zulip.acme.*.channel.*": {1, 5}, "zulip.acme.*.direct": {2, 7}, "zulip.acme.*.none": {4},
			"zulip.acme.message.>": {1, 2, 5}, "zulip.acme.*.channel.7": {1}, "zulip.acme.*": {8}, "zulip.acme.*.*.channel": nil,
		} {
			var first, last uint64
			if len(want) > 0 {
				first, last = want[0], want[len(want)-1]
			}
			if m, err := b.Next(ctx, filter, 0); err != nil || seqOf(m) != first {
				t.Errorf("the first on %s is %+v, %v; want %d", filter, m, err, first)
			}
			if m, err := b.LastOn(ctx, filter); err != nil || seqOf(m) != last {
				t.Errorf("the last on %s is %+v, %v; want %d", filter, m, err, last)
			}
			var got []uint64
			if err := b.Scan(ctx, filter, stream.Start{Seq: 1}, 8, true, func(m *stream.Stored) error {
				got = append(got, m.Seq)
				return nil
			}); err != nil || !slices.Equal(got, want) {
				t.Errorf("on %s are %v, %v; want %v", filter, got, err, want)
			}
		}
	})
	t.Run("a stream that others use too", func(t *testing.T) {
		b := open(t)
		if !b.Dedicated() {
			t.Error("a stream of our own is not taken for one")
		}
		b.edit(model.Settings{Shared: true})
		if _, err := b.Info(ctx); err != nil {
			t.Fatal(err)
		}
		if b.Dedicated() {
			t.Error("after Info, a stream that takes more is still taken for our own")
		}
		b.foreign("zulip.other.message")
		if cur, m, err := b.Last(ctx); err != nil || m != nil || cur != (stream.Cursor{}) {
			t.Errorf("Last, where only others wrote, is %+v, %v, %v", cur, m, err)
		}
		cur := write(t, b, stream.Cursor{}, some(0, 2))
		b.foreign("zulip.other.message")
		b.foreign("zulip.other.message")
		// What others write under their own subjects is in nobody's way.
		cur = write(t, b, cur, some(2, 2))
		if cur.Seq != 7 {
			t.Errorf("cursor %+v, want sequence 7", cur)
		}
		b.foreign("zulip.other.message")
		read, m, err := b.Last(ctx)
		if err != nil || m == nil || read != (stream.Cursor{Seq: 7}) {
			t.Errorf("Last is %+v, %v, %v", read, m, err)
		}
		if m, err := b.At(ctx, 8); err != nil || m != nil {
			t.Errorf("At of a message of others is %v, %v", m, err)
		}
		if info, err := b.Info(ctx); err != nil || info.LastSeq != 8 || info.Messages != 8 || info.FirstSeq != 1 {
			t.Errorf("Info counts %+v, %v; want all that is there", info, err)
		}
		want(t, b, "body 0", "body 1", "body 2", "body 3")
		// On our own subjects every write is seen.
		b.foreign("zulip.acme.message")
		for _, stale := range []stream.Cursor{cur, read, {}, {Seq: 8}, {Seq: 8, Acked: true}} {
			for _, n := range []int{1, 3} {
				_, err = b.Append(ctx, stale, some(4, n))
				kind(t, err, stream.Refused)
			}
		}
		write(t, b, stream.Cursor{Seq: 9}, some(4, 3))
	})
	t.Run("edited under way, and not yet known", func(t *testing.T) {
		b := open(t)
		cur := write(t, b, stream.Cursor{}, some(0, 2))
		b.edit(model.Settings{Shared: true})
		b.foreign("zulip.other.message")
		if !b.Dedicated() {
			t.Error("nobody asked for the settings, and they are known")
		}
		_, err := b.Append(ctx, cur, some(2, 1)) // it names the stream's sequence
		kind(t, err, stream.Refused)
		read, _, err := b.Last(ctx)
		if err != nil || read != (stream.Cursor{Seq: 2}) {
			t.Fatalf("Last is %+v, %v", read, err)
		}
		write(t, b, read, some(2, 1))
	})
	t.Run("limits", func(t *testing.T) {
		b := open(t)
		b.edit(model.Settings{MaxMsgs: 4})
		cur := write(t, b, stream.Cursor{}, some(0, 6))
		want(t, b, "body 2", "body 3", "body 4", "body 5")
		info, err := b.Info(ctx)
		if err != nil || info.FirstSeq != 3 || info.LastSeq != 6 || info.Messages != 4 || info.FirstTime.IsZero() {
			t.Errorf("Info says %+v, %v", info, err)
		}
		b.edit(model.Settings{MaxPerSubject: 1, MaxAge: time.Hour})
		if info, err = b.Info(ctx); err != nil || info.MaxAge != time.Hour || info.MaxPerSubject != 1 {
			t.Errorf("Info says %+v, %v", info, err)
		}
		want(t, b, "body 4", "body 5")
		cur = write(t, b, cur, some(6, 1))
		want(t, b, "body 5", "body 6")
		b.edit(model.Settings{MaxBytes: 2000})
		big := some(7, 3)
		for i := range big {
			big[i].Data = make([]byte, 700)
		}
		write(t, b, cur, big)
		if info, err = b.Info(ctx); err != nil || info.FirstSeq != 9 || info.LastSeq != 10 || info.Bytes > 2000 {
			t.Errorf("Info says %+v, %v; want the two newest", info, err)
		}
	})
	t.Run("all too old", func(t *testing.T) {
		b := open(t)
		write(t, b, stream.Cursor{}, some(0, 3))
		b.edit(model.Settings{MaxAge: 100 * time.Millisecond})
		for info, err := b.Info(ctx); info.Messages > 0 || err != nil; info, err = b.Info(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		info, err := b.Info(ctx)
		if err != nil || info.LastSeq != 3 || info.FirstSeq != 4 || !info.FirstTime.IsZero() {
			t.Errorf("Info says %+v, %v", info, err)
		}
		if cur, m, err := b.Last(ctx); err != nil || m != nil || cur != (stream.Cursor{}) {
			t.Errorf("Last is %+v, %v, %v", cur, m, err)
		}
		b.edit(model.Settings{})
		write(t, b, stream.Cursor{}, some(3, 2))
	})
	t.Run("a smaller max_msg_size", func(t *testing.T) {
		b := open(t)
		cur := write(t, b, stream.Cursor{}, some(0, 1))
		b.edit(model.Settings{MaxMsgSize: 1000})
		big := some(1, 1)
		big[0].Data = make([]byte, 1100)
		if !b.Fits(&big[0]) {
			t.Error("nobody asked for the settings, and they are known")
		}
		_, err := b.Append(ctx, cur, big)
		kind(t, err, stream.TooLarge)
		if _, err := b.Info(ctx); err != nil {
			t.Fatal(err)
		}
		if b.Fits(&big[0]) || !b.Fits(&some(1, 1)[0]) {
			t.Error("Fits does not know max_msg_size")
		}
		want(t, b, "body 0")
	})
	t.Run("retention edited to interest", func(t *testing.T) {
		b := open(t)
		cur := write(t, b, stream.Cursor{}, some(0, 1))
		b.edit(model.Settings{Interest: true})
		cur = write(t, b, cur, some(1, 2)) // acknowledged, and gone
		for _, seq := range []uint64{2, 3} {
			if m, err := b.At(ctx, seq); err != nil || m != nil {
				t.Errorf("At(%d) is %v, %v", seq, m, err)
			}
		}
		if cur != (stream.Cursor{Seq: 3, Acked: true}) {
			t.Errorf("cursor %+v", cur)
		}
		_, err := b.Info(ctx)
		if _, ok := errors.AsType[*stream.ConfigError](err); !ok {
			t.Errorf("Info says %v, want a ConfigError", err)
		}
	})
	t.Run("newest removed", func(t *testing.T) {
		b := open(t)
		write(t, b, stream.Cursor{}, some(0, 3))
		b.remove(2)
		read, m, err := b.Last(ctx)
		if err != nil || m == nil || read != (stream.Cursor{Seq: 1}) {
			t.Fatalf("Last after removal is %+v, %v, %v", read, m, err)
		}
		if m, err := b.At(ctx, 2); err != nil || m != nil {
			t.Errorf("At of a removed message is %v, %v", m, err)
		}
		if cur := write(t, b, read, some(3, 2)); cur.Seq != 5 {
			t.Errorf("the sequence went on to %d, want 5", cur.Seq)
		}
		want(t, b, "body 0", "body 3", "body 4")
	})
	t.Run("erase", func(t *testing.T) {
		b := open(t)
		cur := write(t, b, stream.Cursor{}, some(0, 4))
		for _, seq := range []uint64{2, 2, 1, 99} {
			if err := b.Erase(ctx, b.Epoch(), seq); err != nil {
				t.Errorf("Erase(%d): %v", seq, err)
			}
		}
		kind(t, b.Erase(ctx, b.Epoch()+1, 3), stream.Refused)
		want(t, b, "body 2", "body 3")
		if info, err := b.Info(ctx); err != nil || info.FirstSeq != 3 || info.LastSeq != 4 {
			t.Errorf("Info is %+v, %v", info, err)
		}
		if m, err := b.At(ctx, 2); err != nil || m != nil {
			t.Errorf("At of an erased message is %v, %v", m, err)
		}
		if cur = write(t, b, cur, some(4, 2)); cur.Seq != 6 {
			t.Errorf("cursor %+v behind an erased message", cur)
		}
		want(t, b, "body 2", "body 3", "body 4", "body 5")
	})
	t.Run("erase an object", func(t *testing.T) {
		b := open(t)
		if data, err := b.Object(ctx, "acme/q/1"); err != nil || data != nil {
			t.Errorf("an object that is not there has %q, %v", data, err)
		}
		for _, name := range []string{"acme/q/1", "acme/q/2"} {
			if err := b.PutObject(ctx, name, []byte(name)); err != nil {
				t.Fatal(err)
			}
		}
		kind(t, b.EraseObject(ctx, b.Epoch()+1, "acme/q/1"), stream.Refused)
		for range 2 {
			if err := b.EraseObject(ctx, b.Epoch(), "acme/q/1"); err != nil {
				t.Error(err)
			}
		}
		for name, has := range map[string]string{"acme/q/1": "", "acme/q/2": "acme/q/2"} {
			if data, err := b.Object(ctx, name); err != nil || string(data) != has {
				t.Errorf("object %s has %q, %v", name, data, err)
			}
		}
		for _, name := range []string{"acme/q/2"} { // the server of all these tests is one
			if err := b.EraseObject(ctx, b.Epoch(), name); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("scan", func(t *testing.T) {
		b := open(t)
		write(t, b, stream.Cursor{}, some(0, 6))
		var seqs []uint64
		err := b.Scan(ctx, "zulip.acme.message", stream.Start{Seq: 2}, 5, true, func(m *stream.Stored) error {
			if len(m.Data) != 0 || len(m.Header["Zulip-Event-Id"]) != 1 {
				t.Errorf("headers only gives data %q, headers %v", m.Data, m.Header)
			}
			seqs = append(seqs, m.Seq)
			return nil
		})
		if err != nil || fmt.Sprint(seqs) != "[3 5]" {
			t.Errorf("scan from 2 to 5 gives %v, %v", seqs, err)
		}
		enough := errors.New("enough")
		if err := b.Scan(ctx, filter, stream.Start{Seq: 1}, 6, false,
			func(*stream.Stored) error { return enough }); !errors.Is(err, enough) {
			t.Errorf("a scan that is ended early returns %v", err)
		}
		err = b.Scan(ctx, filter, stream.Start{Time: time.Now().Add(-time.Hour)}, 6, false,
			func(m *stream.Stored) error { seqs = append(seqs, m.Seq); return nil })
		if err != nil || len(seqs) != 2+6 {
			t.Errorf("scan by time gives %v, %v", seqs, err)
		}
	})
	t.Run("too large", func(t *testing.T) {
		b := open(t)
		big := some(0, 2)
		big[1].Data = make([]byte, 2<<20)
		if b.Fits(&big[1]) || !b.Fits(&big[0]) {
			t.Error("Fits is wrong about 2 MiB or about a few bytes")
		}
		_, err := b.Append(ctx, stream.Cursor{}, big)
		kind(t, err, stream.TooLarge)
		want(t, b)
		if err := b.PutObject(ctx, "acme/q/1", big[1].Data); err != nil {
			t.Errorf("PutObject: %v", err)
		}
	})
	t.Run("deleted", func(t *testing.T) {
		b := open(t)
		cur := write(t, b, stream.Cursor{}, some(0, 1))
		b.destroy()
		_, _, err := b.Last(ctx)
		kind(t, err, stream.Gone)
		_, err = b.Append(ctx, cur, some(1, 2))
		kind(t, err, stream.Gone, stream.Unavailable) // a server that has no such stream just does not answer
	})
}

// seqOf is the sequence of a message, 0 if there is none.
func seqOf(m *stream.Stored) uint64 {
	if m == nil {
		return 0
	}
	return m.Seq
}
