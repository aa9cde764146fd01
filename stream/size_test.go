package stream_test

import (
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// farSequence makes sequences as long as they can be, so that no message has wider
// expectations than here.
const farSequence = 1_000_000_000_000_000_000

// On each path, the largest message that Fits is stored, one byte more is refused before
// anything is sent, and the widest way that a message may have to go uses max_payload to
// the last byte.
func TestLargestMessageByteByByte(t *testing.T) {
	const maxPayload = 4096
	for _, shared := range []bool{false, true} {
		for _, path := range []stream.Path{stream.PathAuto, stream.PathFast, stream.PathAtomic, stream.PathSync} {
			if shared && path == stream.PathFast {
				continue
			}
			name := string(path)
			subjects := []string{filter}
			if shared {
				name, subjects = name+", shared", []string{"zulip.>"}
			}
			t.Run(name, func(t *testing.T) {
				srv := natstest.Start(t, func(o *server.Options) { o.MaxPayload = maxPayload })
				createRaw(t, srv, "ZULIP_acme",
					map[string]any{"subjects": subjects, "retention": "limits", "storage": "file",
						"num_replicas": 1, "first_seq": farSequence, "allow_batched": true, "allow_atomic": true})
				proxy := natstest.NewProxy(t, srv.URL)
				s := open(t, connect(t, proxy.URL), stream.Config{Path: path})
				var sent, widest atomic.Int64
				proxy.OnPublish(func(p natstest.Publish) natstest.Fate {
					if p.Subject == "zulip.acme.message" {
						sent.Add(1)
						widest.Store(max(widest.Load(), int64(len(p.Payload))))
					}
					return natstest.Pass
				})

				msg := message(7)
				size := maxPayload
				for msg.Data = make([]byte, size); !s.Fits(&msg); size-- {
					msg.Data = make([]byte, size)
				}
				if size > maxPayload-100 {
					t.Fatalf("%d bytes fit in %d", size, maxPayload)
				}
				larger := msg
				larger.Data = make([]byte, len(msg.Data)+1)
				if s.Fits(&larger) {
					t.Fatal("a byte more fits as well")
				}
				cursor := last(t, s)
				var err error
				many := messages(100, 1000)
				many[0], many[999] = msg, msg
				for _, msgs := range [][]stream.Message{{msg}, {msg}, {msg, msg}, {msg, msg, msg}, many, {msg}} {
					if cursor, err = s.Append(t.Context(), cursor, msgs); err != nil {
						t.Fatalf("%d messages, the first of %d bytes: %v", len(msgs), len(msgs[0].Data), err)
					}
					if len(msgs) == 3 {
						cursor = last(t, s)
					}
				}
				if widest.Load() != maxPayload {
					t.Errorf("the widest message on the wire had %d bytes of %d", widest.Load(), maxPayload)
				}
				before := sent.Load()
				for _, at := range []stream.Cursor{cursor, last(t, s)} {
					for _, msgs := range [][]stream.Message{{larger}, {message(1), larger}, {larger, message(1)},
						{message(1), larger, message(2)}} {
						_, err := s.Append(t.Context(), at, msgs)
						want(t, err, stream.TooLarge, "max_payload", "4096")
					}
				}
				if sent.Load() != before {
					t.Errorf("%d messages were sent all the same", sent.Load()-before)
				}
			})
		}
	}
}

func TestStreamMaxMsgSize(t *testing.T) {
	for _, path := range paths {
		t.Run(string(path), func(t *testing.T) {
			srv := natstest.Start(t)
			config := map[string]any{"subjects": []string{filter}, "retention": "limits", "storage": "file",
				"num_replicas": 1,
				"first_seq":    farSequence, "allow_batched": true, "allow_atomic": true, "max_msg_size": 2000}
			createRaw(t, srv, "ZULIP_acme", config)
			s := open(t, connect(t, srv.URL), stream.Config{Path: path})
			msg := message(7)
			for size := 2000; !s.Fits(&msg) || size == 2000; size-- {
				msg.Data = make([]byte, size)
			}
			larger := msg
			larger.Data = make([]byte, len(msg.Data)+1)
			cursor, err := s.Append(t.Context(), last(t, s), []stream.Message{msg, msg, msg})
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Append(t.Context(), cursor, []stream.Message{msg, larger})
			want(t, err, stream.TooLarge, "max_msg_size", "2000")

			// Somebody lowers the limit while we run: the server refuses, Info learns of
			// it, and Fits knows.
			js := srv.JetStream()
			stored, err := js.Stream(t.Context(), "ZULIP_acme")
			if err != nil {
				t.Fatal(err)
			}
			changed := stored.CachedInfo().Config
			changed.MaxMsgSize = 1000
			if _, err := js.UpdateStream(t.Context(), changed); err != nil {
				t.Fatal(err)
			}
			_, err = s.Append(t.Context(), cursor, []stream.Message{msg})
			want(t, err, stream.TooLarge, "max_msg_size", "10054")
			_, err = s.Append(t.Context(), cursor, []stream.Message{message(1), msg})
			want(t, err, stream.TooLarge, "max_msg_size", "10054")
			if !s.Fits(&msg) {
				t.Fatal("the limit was known before it was read")
			}
			if _, err := s.Info(t.Context()); err != nil {
				t.Fatal(err)
			}
			if s.Fits(&msg) {
				t.Error("the lower limit is not known after it was read")
			}
		})
	}
}

func TestMaxPayloadLowered(t *testing.T) {
	srv := natstest.Start(t)
	nc := connect(t, srv.URL)
	s := open(t, nc, stream.Config{})
	msg := stream.Message{Subject: "zulip.acme.message", Data: make([]byte, 500_000)}
	cursor, err := s.Append(t.Context(), last(t, s), []stream.Message{msg, msg})
	if err != nil {
		t.Fatal(err)
	}
	epoch := s.Epoch()
	srv.Restart(func(o *server.Options) { o.MaxPayload = 100_000 })
	natstest.Eventually(t, "the reconnect", func() bool { return s.Epoch() > epoch && nc.IsConnected() })
	if s.Fits(&msg) {
		t.Error("the lower max_payload is not known after the reconnect")
	}
	_, err = s.Append(t.Context(), cursor, []stream.Message{msg})
	want(t, err, stream.TooLarge, "max_payload", "100000")
	if m, err := s.LastOn(t.Context(), "zulip.acme.message"); err != nil || len(m.Data) != 500_000 {
		t.Errorf("a message above the new limit cannot be read: %v", err)
	}
}

func TestHeadersOver64KiB(t *testing.T) {
	onEachPath(t, func(t *testing.T, s *stream.Stream, _ jetstream.JetStream) {
		msg := message(1)
		msg.Headers = append(msg.Headers, stream.Header{Key: "X", Value: string(make([]byte, 65536))})
		if s.Fits(&msg) {
			t.Error("it fits")
		}
		_, err := s.Append(t.Context(), stream.Cursor{}, []stream.Message{message(0), msg})
		want(t, err, stream.TooLarge, "65535")
	})
}
