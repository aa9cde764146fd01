package stream_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

func TestMain(m *testing.M) {
	natstest.Main()
	natstest.Parallel(8)
	os.Exit(m.Run())
}

const filter = "zulip.acme.>"

// connectTo is a connection as the product makes it.
func connectTo(t testing.TB, cfg stream.ConnectConfig) *stream.Conn {
	t.Helper()
	nc, err := stream.Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// connect is one that is up: the first attempt may take a busy machine too long.
func connect(t testing.TB, url string) *stream.Conn {
	t.Helper()
	nc := connectTo(t, stream.ConnectConfig{URL: url, Name: t.Name(), Log: natstest.Log(t)})
	natstest.Eventually(t, "the connection", nc.IsConnected)
	return nc
}

// open opens the realm's stream, waiting until NATS is ready for it.
func open(t testing.TB, nc *stream.Conn, cfg stream.Config) *stream.Stream {
	t.Helper()
	s, err := tryOpen(t, nc, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func tryOpen(t testing.TB, nc *stream.Conn, cfg stream.Config) (*stream.Stream, error) {
	t.Helper()
	if cfg.Realm == "" {
		cfg.Realm = "acme"
	}
	if cfg.Filter == "" {
		cfg.Filter = filter
	}
	// An answer that a busy machine gives late is no answer of another kind. A test in which
	// none is to come chooses how long it waits.
	if cfg.AckTimeout == 0 {
		cfg.AckTimeout = 30 * time.Second
	}
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		s, err := stream.Open(t.Context(), nc, cfg)
		if kindOf(err) != stream.Unavailable || time.Now().After(deadline) {
			return s, err
		}
	}
}

func kindOf(err error) stream.Kind {
	if e, ok := errors.AsType[*stream.Error](err); ok {
		return e.Kind
	}
	return 0
}

// want fails the test if err is not of that kind, or its text lacks one of the words.
func want(t testing.TB, err error, kind stream.Kind, words ...string) {
	t.Helper()
	if kindOf(err) != kind {
		t.Fatalf("got the error %v (kind %v), want kind %v", err, kindOf(err), kind)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the error %q does not say %q", err, word)
		}
	}
}

// message number n, told from all others.
func message(n int) stream.Message {
	return stream.Message{
		Subject: "zulip.acme.message",
		Headers: []stream.Header{{Key: "Zulip-Queue-Id", Value: "q:1"}, {Key: "Zulip-Event-Id", Value: fmt.Sprint(n)}},
		Data:    fmt.Appendf(nil, `{"id":%d,"text":"%s"}`, n, strings.Repeat("é", n%50)),
	}
}

func messages(from, n int) []stream.Message {
	msgs := make([]stream.Message, n)
	for i := range msgs {
		msgs[i] = message(from + i)
	}
	return msgs
}

// contents reads the whole stream in its order, as event ids; a message without one is
// "foreign".
func contents(t testing.TB, s *stream.Stream) (ids []string) {
	t.Helper()
	var err error
	natstest.Eventually(t, "the stream to be read", func() bool {
		ids = nil
		var info stream.Info
		if info, err = s.Info(t.Context()); err == nil {
			err = s.Scan(t.Context(), ">", stream.Start{}, info.LastSeq, false, func(m *stream.Stored) error {
				ids = append(ids, eventID(m))
				return nil
			})
		}
		return kindOf(err) != stream.Unavailable
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func eventID(m *stream.Stored) string {
	if v := m.Header["Zulip-Event-Id"]; len(v) == 1 {
		return v[0]
	}
	return "foreign"
}

func ids(from, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint(from + i)
	}
	return out
}

// publish stores a message of somebody else.
func publish(t testing.TB, js jetstream.JetStream, subject string) {
	t.Helper()
	if _, err := js.Publish(t.Context(), subject, []byte("foreign")); err != nil {
		t.Fatal(err)
	}
}

// count is how many messages a stream has.
func count(t testing.TB, js jetstream.JetStream, name string) int {
	t.Helper()
	s, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return int(s.CachedInfo().State.Msgs)
}

// last is the cursor of a read.
func last(t testing.TB, s *stream.Stream) (c stream.Cursor) {
	t.Helper()
	var err error
	natstest.Eventually(t, "an answer to a read", func() bool {
		c, _, err = s.Last(t.Context())
		return kindOf(err) != stream.Unavailable
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// acked stores message 0 and returns the cursor behind it, for a write after the first
// one. What is still on its way from an Append that failed may come first, and then it
// takes another read, and so it does where no leader is elected yet. So it does also where the answer comes later than the stream waits for
// one, which some tests make short; the message may stand twice then.
func acked(t testing.TB, s *stream.Stream) (c stream.Cursor) {
	t.Helper()
	var err error
	natstest.Eventually(t, "a message to be stored", func() bool {
		c, err = s.Append(t.Context(), last(t, s), messages(0, 1))
		k := kindOf(err)
		return k != stream.Refused && k != stream.Unclear && k != stream.Unavailable
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var paths = []stream.Path{stream.PathFast, stream.PathAtomic, stream.PathSync}

// onEachPath runs a test on a new stream for each path that a dedicated stream has.
func onEachPath(t *testing.T, f func(t *testing.T, s *stream.Stream, js jetstream.JetStream)) {
	for _, path := range paths {
		t.Run(string(path), func(t *testing.T) {
			srv := natstest.Start(t)
			f(t, open(t, connect(t, srv.URL), stream.Config{Path: path}), srv.JetStream())
		})
	}
}

func withTimeout(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
