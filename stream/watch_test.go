package stream_test

import (
	"context"
	"fmt"
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

// watched is a watch of a stream KV_x, with everything under kv.
func watched(t *testing.T, nc *stream.Conn) (<-chan stream.Watched, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	w, err := nc.Watch(ctx, "watching", "$JS.API.", "KV_x", "kv.>")
	if err != nil {
		t.Fatal(err)
	}
	return w, cancel
}

// A watch begins with the newest message on each subject, and then has all, however many
// there are; until its connection drops, its consumer goes, or one message is lost.
func TestWatch(t *testing.T) {
	for name, test := range map[string]struct {
		harm func(t *testing.T, js jetstream.JetStream, proxy *natstest.Proxy)
		word string
	}{
		"the connection drops": {func(_ *testing.T, _ jetstream.JetStream, proxy *natstest.Proxy) { proxy.CutAll() },
			"the connection to NATS is down"},
		"the consumer is deleted": {func(t *testing.T, js jetstream.JetStream, _ *natstest.Proxy) {
			if err := js.DeleteStream(t.Context(), "KV_x"); err != nil {
				t.Fatal(err)
			}
		}, "the consumer ended"},
		"a message is lost": {func(t *testing.T, js jetstream.JetStream, proxy *natstest.Proxy) {
			var once atomic.Bool
			proxy.OnDeliver(func(p natstest.Publish) natstest.Fate {
				if strings.HasPrefix(p.Subject, "kv.") && once.CompareAndSwap(false, true) {
					return natstest.Lose
				}
				return natstest.Pass
			})
			publish(t, js, "kv.a")
			publish(t, js, "kv.b")
		}, "messages were lost"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := natstest.Start(t)
			js := srv.JetStream()
			natstest.CreateStream(t, js, jetstream.StreamConfig{Name: "KV_x", Subjects: []string{"kv.>", "other"},
				MaxMsgsPerSubject: 1})
			for _, subject := range []string{"kv.a", "kv.b", "other", "kv.a"} {
				publish(t, js, subject)
			}
			proxy := natstest.NewProxy(t, srv.URL)
			w, _ := watched(t, connect(t, proxy.URL))
			next := func(subject string, seq uint64) {
				t.Helper()
				if m := <-w; m.Err != nil || m.Subject != subject || m.Seq != seq || string(m.Data) != "foreign" {
					t.Fatalf("it gives %+v, %v; want %s at %d", m.Stored, m.Err, subject, seq)
				}
			}
			next("kv.b", 2)
			next("kv.a", 4)
			const many = 1300 // more than one pull has
			for n := range many {
				if _, err := js.Publish(t.Context(), fmt.Sprint("kv.", n), []byte("foreign")); err != nil {
					t.Fatal(err)
				}
			}
			for n := range many {
				next(fmt.Sprint("kv.", n), uint64(5+n))
			}
			test.harm(t, js, proxy)
			if m := <-w; m.Err == nil || !strings.Contains(m.Err.Error(), test.word) || !strings.Contains(m.Err.Error(), "watching") {
				t.Errorf("it ends with %+v, %v; want %q", m.Stored, m.Err, test.word)
			}
			if m, open := <-w; open {
				t.Errorf("and then it gives %+v", m)
			}
		})
	}
}

// The end of a pull is none of the watch, and a word that the consumer lives is no message.
func TestWatchOfAQuietStream(t *testing.T) {
	srv := natstest.Start(t, func(o *server.Options) { o.JetStream = false })
	nc := srv.Conn()
	var pulls atomic.Int64
	say := func(m *nats.Msg, status string) {
		_ = m.RespondMsg(&nats.Msg{Header: nats.Header{"Status": {status}, "Description": {"so it is"}}})
	}
	for subject, answer := range map[string]func(m *nats.Msg){
		"$JS.API.CONSUMER.CREATE.>": func(m *nats.Msg) { _ = m.Respond([]byte(`{"config":{}}`)) },
		"$JS.API.CONSUMER.MSG.NEXT.>": func(m *nats.Msg) {
			say(m, "100")
			switch pulls.Add(1) {
			case 3:
				say(m, "409")
			default:
				say(m, "408")
			}
		},
	} {
		if _, err := nc.Subscribe(subject, answer); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	w, _ := watched(t, connect(t, srv.URL))
	if m := <-w; m.Err == nil || !strings.Contains(m.Err.Error(), "409 so it is") || pulls.Load() != 3 {
		t.Errorf("behind %d pulls it gives %+v, %v", pulls.Load(), m.Stored, m.Err)
	}
}

// What is not allowed is said, with the subject, by the beginning of the watch or by its
// end.
func TestWatchForbidden(t *testing.T) {
	for _, subject := range []string{"$JS.API.CONSUMER.CREATE.KV_x", "$JS.API.CONSUMER.MSG.NEXT.KV_x"} {
		srv := natstest.Start(t, func(o *server.Options) {
			o.Users = []*server.User{{Username: "admin", Password: "a"}, {Username: "b", Password: "b",
				Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{subject + ".>"}}}}}
			o.NoAuthUser = "b"
		})
		natstest.CreateStream(t, srv.JetStream(nats.UserInfo("admin", "a")),
			jetstream.StreamConfig{Name: "KV_x", Subjects: []string{"kv.>"}})
		w, err := connect(t, srv.URL).Watch(t.Context(), "watching", "$JS.API.", "KV_x", "kv.>")
		if err == nil {
			err = (<-w).Err
		}
		want(t, err, stream.Forbidden, subject)
	}
}

// The end of the context ends it, and leaves nothing waiting.
func TestWatchEnds(t *testing.T) {
	srv := natstest.Start(t)
	js := srv.JetStream()
	natstest.CreateStream(t, js, jetstream.StreamConfig{Name: "KV_x", Subjects: []string{"kv.>"}})
	publish(t, js, "kv.a")
	nc := connect(t, srv.URL)
	for _, read := range []int{0, 1} {
		w, cancel := watched(t, nc)
		for range read {
			<-w
		}
		cancel()
		for m := range w {
			if m.Err != nil {
				t.Errorf("read %d: it ends with %v", read, m.Err)
			}
		}
	}
	natstest.Eventually(t, "no subscription that is left", func() bool { return nc.NumSubscriptions() == 1 }) // that of answers
	deadline, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-deadline.Done()
	if w, err := nc.Watch(deadline, "watching", "$JS.API.", "KV_x", "kv.>"); err == nil || w != nil {
		t.Errorf("begun behind the end: %v", err)
	}
}
