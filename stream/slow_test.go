package stream_test

import (
	"slices"
	"testing"
	"time"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// NATS is so far away that the time-out of a write would never be met: the round trip is
// measured, and it follows.
func TestFarAway(t *testing.T) {
	t.Parallel()
	for _, path := range paths {
		t.Run(string(path), func(t *testing.T) {
			t.Parallel()
			srv := natstest.Start(t)
			near := open(t, connect(t, srv.URL), stream.Config{})
			proxy := natstest.NewProxy(t, srv.URL)
			// An answer may take four round trips: five seconds are left to a machine that
			// stands still for a while.
			proxy.Delay(800 * time.Millisecond)
			nc := connect(t, proxy.URL)
			s := open(t, nc, stream.Config{Path: path, AckTimeout: 100 * time.Millisecond})
			natstest.Eventually(t, "the round trip to be known",
				func() bool { return nc.RoundTrip() > 1500*time.Millisecond })
			at := last(t, s)
			for i := range 2 {
				var err error
				if at, err = s.Append(t.Context(), at, messages(3*i, 3)); err != nil {
					t.Fatal(err)
				}
			}
			if got := contents(t, near); !slices.Equal(got, ids(0, 6)) {
				t.Errorf("the stream holds %v", got)
			}
		})
	}
}

// No answer comes within the 2 s that connecting takes elsewhere, nor within the 5 s of a
// request.
func TestVeryFarAway(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	near := open(t, connect(t, srv.URL), stream.Config{})
	if _, err := near.Append(t.Context(), stream.Cursor{}, messages(0, 1)); err != nil {
		t.Fatal(err)
	}
	proxy := natstest.NewProxy(t, srv.URL)
	proxy.Delay(2600 * time.Millisecond)
	nc := connect(t, proxy.URL)
	natstest.Eventually(t, "the connection, and its round trip",
		func() bool { return nc.IsConnected() && nc.RoundTrip() > 0 })
	s := open(t, nc, stream.Config{})
	if _, m, err := s.Last(t.Context()); err != nil || m == nil || m.Seq != 1 {
		t.Errorf("the last message: %+v, %v", m, err)
	}
}

// What is measured is forgotten as soon as it is no longer true, and hanging for a while
// is not the same as being far away.
func TestNearAgain(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	proxy := natstest.NewProxy(t, srv.URL)
	nc := connect(t, proxy.URL)
	s := open(t, nc, stream.Config{AckTimeout: 200 * time.Millisecond})
	near := func() bool { return nc.RoundTrip() > 0 && nc.RoundTrip() < time.Second }
	natstest.Eventually(t, "the round trip to be known", near)
	proxy.Delay(600 * time.Millisecond)
	natstest.Eventually(t, "a longer round trip", func() bool {
		c, _, err := s.Last(t.Context())
		if err == nil {
			_, err = s.Append(t.Context(), c, messages(0, 1)) // the first of them is not answered in time
		}
		return err == nil && nc.RoundTrip() > time.Second
	})
	proxy.Delay(0)
	natstest.Eventually(t, "a shorter round trip", func() bool {
		_, err := s.Info(t.Context())
		return err == nil && near()
	})
}
