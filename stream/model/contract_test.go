package model_test

import (
	"context"
	"errors"
	"fmt"
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
	Scan(ctx context.Context, subject string, from stream.Start, until uint64, headersOnly bool, f func(*stream.Stored) error) error
	Append(ctx context.Context, after stream.Cursor, msgs []stream.Message) (stream.Cursor, error)
	Info(ctx context.Context) (stream.Info, error)
	Fits(m *stream.Message) bool
	PutObject(ctx context.Context, name string, data []byte) error
}

// bench is a stream with a second way in, for what others do to it.
type bench struct {
	client
	foreign func(subject string)
	remove  func(n int)
	purge   func()
	destroy func()
}

const filter = "zulip.acme.>"

// TestContract runs one list of expectations on the model and on a real server: what the bridge's simulation believes of JetStream is what
// JetStream does.
func TestContract(t *testing.T) {
	t.Run("model", func(t *testing.T) {
		contract(t, func(t *testing.T) bench {
			m := &model.Stream{Filter: filter}
			return bench{client: m.Client(t.Context()), foreign: func(s string) { m.Publish(s, []byte("foreign")) },
				remove: m.Remove, purge: m.Purge, destroy: m.Delete}
		})
	})
	for _, path := range []stream.Path{stream.PathFast, stream.PathAtomic, stream.PathSync} {
		t.Run("server, "+string(path), func(t *testing.T) {
			srv := natstest.Start(t)
			n := 0
			contract(t, func(t *testing.T) bench {
				n++
				name := fmt.Sprintf("S%d", n)
				js := srv.JetStream()
				natstest.CreateStream(t, js, jetstream.StreamConfig{Name: name, Subjects: []string{filter}, Storage: jetstream.FileStorage,
					AllowAtomicPublish: true, AllowBatchPublish: true})
				s, err := stream.Open(t.Context(), srv.Conn(), stream.Config{Realm: "acme", Filter: filter, Name: name, Path: path})
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
					foreign: func(subject string) { _, err := js.Publish(t.Context(), subject, []byte("foreign")); must(err) },
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
				}
			})
		})
	}
}

// some makes n messages, the first with that id.
func some(first, n int) (msgs []stream.Message) {
	for i := range n {
		msgs = append(msgs, stream.Message{Subject: []string{"zulip.acme.message", "zulip.acme.reaction"}[i%2], Data: fmt.Appendf(nil, "body %d", first+i),
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
		if err != nil || read != (stream.Cursor{Seq: 6}) || m.Seq != 6 || string(m.Data) != "body 5" || m.Header["Zulip-Event-Id"][0] != "5" {
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
		// The stream's own sequence has not moved: an acknowledged cursor still fits, and so does one that was read.
		write(t, b, cur, some(3, 1))
		b.purge()
		write(t, b, stream.Cursor{}, some(4, 2))
		want(t, b, "body 4", "body 5")
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
		if err := b.Scan(ctx, filter, stream.Start{Seq: 1}, 6, false, func(*stream.Stored) error { return enough }); !errors.Is(err, enough) {
			t.Errorf("a scan that is ended early returns %v", err)
		}
		err = b.Scan(ctx, filter, stream.Start{Time: time.Now().Add(-time.Hour)}, 6, false, func(m *stream.Stored) error { seqs = append(seqs, m.Seq); return nil })
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
