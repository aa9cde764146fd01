package stream_test

import (
	"context"
	"testing"
	"time"

	"zulip-nats/health"
	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// All that is asked of a server is a sign of life of the loop that asks: without one, a
// long outage would look like a loop that hangs.
func TestPulse(t *testing.T) {
	for _, path := range []stream.Path{stream.PathSync, stream.PathAtomic, stream.PathFast} {
		t.Run(string(path), func(t *testing.T) {
			server := natstest.Start(t)
			nc := connect(t, server.URL)
			var p health.Pulse
			ctx := health.WithPulse(t.Context(), &p)
			alive := func(what string, f func() error) {
				t.Helper()
				health.Waits(ctx, -time.Hour)
				if err := f(); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if p.Late() > 0 {
					t.Errorf("%s gave no sign of life", what)
				}
			}
			s := open(t, nc, stream.Config{Path: path})
			alive("Open", func() error {
				again, err := stream.Open(ctx, nc, stream.Config{Realm: "acme", Filter: filter})
				if err == nil {
					again.Close()
				}
				return err
			})
			var cursor stream.Cursor
			alive("Last", func() (err error) { cursor, _, err = s.Last(ctx); return err })
			alive("Append of one", func() (err error) { cursor, err = s.Append(ctx, cursor, messages(1, 1)); return err })
			alive("Append", func() (err error) { cursor, err = s.Append(ctx, cursor, messages(2, 100)); return err })
			alive("At", func() error { _, err := s.At(ctx, 1); return err })
			alive("LastOn", func() error { _, err := s.LastOn(ctx, filter); return err })
			alive("Next", func() error { _, err := s.Next(ctx, filter, 1); return err })
			alive("Info", func() error { _, err := s.Info(ctx); return err })
			alive("PutObject", func() error { return s.PutObject(ctx, "large", make([]byte, 1000)) })
			alive("Scan", func() error {
				return s.Scan(ctx, filter, stream.Start{Seq: 1}, cursor.Seq, false, func(m *stream.Stored) error {
					switch m.Seq { // which may be one of millions
					case 50:
						health.Waits(ctx, -time.Hour)
					case 51:
						if p.Late() > 0 {
							t.Error("the next message of a scan gave no sign of life")
						}
					}
					return nil
				})
			})
			server.Stop()
			away, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			health.Waits(ctx, -time.Hour)
			if _, _, err := s.Last(away); err == nil {
				t.Error("a server that has stopped answers")
			}
		})
	}
}
