package stream_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// Somebody edits the stream, and the server tells: at once, not at the next look.
func TestEdited(t *testing.T) {
	grows := func(t *testing.T, s *stream.Stream, f func()) {
		t.Helper()
		before := s.Edited()
		f()
		natstest.Eventually(t, "the edit to be told", func() bool { return s.Edited() > before })
	}
	t.Run("retention", func(t *testing.T) {
		srv := natstest.Start(t)
		s := open(t, connect(t, srv.URL), stream.Config{})
		grows(t, s, func() {
			edit(t, srv.JetStream(), func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy })
		})
		_, err := s.Info(t.Context())
		if c, ok := errors.AsType[*stream.ConfigError](err); !ok || c.Setting != "retention" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("subjects", func(t *testing.T) {
		for _, path := range []stream.Path{stream.PathAuto, stream.PathAtomic, stream.PathSync} {
			srv := natstest.Start(t)
			js := srv.JetStream()
			s := open(t, connect(t, srv.URL), stream.Config{Path: path})
			at := acked(t, s)
			if !s.Dedicated() {
				t.Fatal("a stream of our own is not dedicated")
			}
			grows(t, s, func() {
				edit(t, js, func(c *jetstream.StreamConfig) { c.Subjects = []string{"zulip.>"} })
			})
			if _, err := s.Info(t.Context()); err != nil || s.Dedicated() {
				t.Fatalf("a stream of others too is dedicated, or: %v", err)
			}
			publish(t, js, "zulip.other.message")
			if _, err := s.Append(t.Context(), at, messages(1, 5)); err != nil {
				t.Fatalf("behind a message of another realm: %v", err)
			}
			if got := contents(t, s); !slices.Equal(got, []string{"0", "foreign", "1", "2", "3", "4", "5"}) {
				t.Errorf("the stream holds %v", got)
			}
		}
	})
	t.Run("deleted", func(t *testing.T) {
		srv := natstest.Start(t)
		s := open(t, connect(t, srv.URL), stream.Config{})
		grows(t, s, func() {
			if err := srv.JetStream().DeleteStream(t.Context(), "ZULIP_acme"); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("other streams", func(t *testing.T) {
		srv := natstest.Start(t)
		nc := connect(t, srv.URL)
		s, other := open(t, nc, stream.Config{}), open(t, nc, stream.Config{Realm: "b", Filter: "zulip.b.>"})
		before := other.Edited()
		grows(t, s, func() {
			edit(t, srv.JetStream(), func(c *jetstream.StreamConfig) { c.MaxMsgs = 1000 })
		})
		// The advisory went to all who listen on this connection, in order.
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		if other.Edited() != before {
			t.Error("an edit of another stream is taken for one of ours")
		}
	})
	t.Run("closed", func(t *testing.T) {
		srv := natstest.Start(t)
		nc := connect(t, srv.URL)
		s := open(t, nc, stream.Config{})
		before := nc.NumSubscriptions()
		s.Close()
		if n := nc.NumSubscriptions(); n != before-2 {
			t.Errorf("Close ended %d of 2 subscriptions", before-n)
		}
	})
}

// A user who may not hear of edits is not warned, once or with each reconnect: all else
// works.
func TestEditedWithoutPermission(t *testing.T) {
	srv := natstest.Start(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "bridge", Password: "b", Permissions: &server.Permissions{
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
		}}}
	})
	var log logbook
	nc := connectTo(t, stream.ConnectConfig{URL: srv.URL, User: "bridge", Password: "b", Log: log.logger()})
	s := open(t, nc, stream.Config{})
	acked(t, s)
	srv.Restart()
	natstest.Eventually(t, "the connection", func() bool { return nc.IsConnected() && s.Edited() > 0 })
	natstest.Eventually(t, "a write", func() bool {
		at, _, err := s.Last(t.Context())
		if err == nil {
			_, err = s.Append(t.Context(), at, messages(1, 5))
		}
		return err == nil
	})
	natstest.Eventually(t, "the refusal", func() bool { return log.count("may not hear of changes") > 0 })
	for _, words := range []string{"lacks a permission", "reports a problem"} {
		if n := log.count(words); n > 0 {
			t.Errorf("%q is logged %d times:\n%s", words, n, log.String())
		}
	}
	if !errors.Is(nc.LastError(), nats.ErrPermissionViolation) {
		t.Errorf("the last error is %v, so the test tests nothing", nc.LastError())
	}
}
