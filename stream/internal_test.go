package stream

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream/natstest"
)

func TestCovers(t *testing.T) {
	for _, test := range []struct {
		subjects, filter string
		covered          bool
		dedicated        bool
	}{
		{"zulip.acme.>", "zulip.acme.>", true, true},
		{"zulip.>", "zulip.acme.>", true, false},
		{">", "zulip.acme.>", true, false},
		{"zulip.*.>", "zulip.acme.>", true, false},
		{"*.acme.>", "zulip.acme.>", true, false},
		{"zulip.acme.*", "zulip.acme.>", false, true},
		{"zulip.acme.* zulip.acme.*.>", "zulip.acme.>", true, true},
		{"zulip.acme.* zulip.*.*.>", "zulip.acme.>", true, false},
		{"zulip.acme.*.>", "zulip.acme.>", false, true},
		{"zulip.acme", "zulip.acme.>", false, false},
		{"zulip.acme.message", "zulip.acme.>", false, true},
		{"zulip.other.>", "zulip.acme.>", false, false},
		{"zulip.acmee.>", "zulip.acme.>", false, false},
		{"zulip.acme.> extra.>", "zulip.acme.>", true, false},
		{"zulip.acme.message.>", "zulip.acme.>", false, true},
		{"", "zulip.acme.>", false, true},
	} {
		subjects := strings.Fields(test.subjects)
		if got := covered(subjects, test.filter); got != test.covered {
			t.Errorf("%q cover %q: %v", test.subjects, test.filter, got)
		}
		if got := dedicated(subjects, test.filter); got != test.dedicated {
			t.Errorf("%q are dedicated to %q: %v", test.subjects, test.filter, got)
		}
	}
}

// What each answer of JetStream means to a writer. The codes and texts are those of
// nats-server's errors.json.
func TestVerdicts(t *testing.T) {
	for _, test := range []struct {
		code, status int
		text         string
		kind         Kind
	}{
		{10071, 400, "wrong last sequence: 5", Refused},
		{10164, 400, "wrong last sequence", Refused},
		{10158, 409, "duplicate message id is in process", Refused},
		{10201, 400, "atomic publish batch contains duplicate message id", Refused},
		{10070, 400, "wrong last msg ID: x", Refused},
		{10176, 400, "atomic publish batch is incomplete", Unclear},
		{10208, 400, "batch publish ID unknown", Unclear},
		{10199, 400, "atomic publish batch is too large: 5", Unavailable},
		{10174, 400, "atomic publish is disabled", Unavailable},
		{10205, 400, "batch publish is disabled", Unavailable},
		{10210, 429, "atomic publish too many inflight", Unavailable},
		{10211, 429, "batch publish too many inflight", Unavailable},
		{10167, 429, "too many requests", Unavailable},
		{10008, 503, "JetStream system temporarily unavailable", Unavailable},
		{10118, 500, "stream is offline", Unavailable},
		{10077, 503, "maximum messages exceeded", Full},
		{10077, 503, "maximum bytes exceeded", Full},
		{10077, 503, "message too large", TooLarge},
		{10023, 503, "insufficient resources", Full},
		{10002, 400, "resource limits exceeded for account", Full},
		{10027, 400, "maximum number of streams reached", Full},
		{10047, 500, "insufficient storage resources available", Full},
		{10054, 400, "message size exceeds maximum allowed", TooLarge},
		{10097, 400, "header size exceeds maximum allowed of 64k", TooLarge},
		{10059, 404, "stream not found", Gone},
		{10060, 400, "expected stream does not match", Wrong},
		{10109, 400, "invalid operation on sealed stream", Wrong},
		{10165, 400, "invalid per-message TTL", Wrong},
		{10166, 400, "per-message TTL is disabled", Wrong},
		{10206, 400, "batch publish pattern is invalid", Wrong},
		{10207, 400, "batch publish ID is invalid", Wrong},
		{10039, 503, "JetStream not enabled for account", Wrong},
		{10076, 503, "JetStream not enabled", Wrong},
		{10052, 500, "invalid configuration", Unclear},
		{19999, 503, "something new", Unavailable},
		{19999, 429, "something new", Unavailable},
		{19999, 500, "something new", Unclear},
		{19999, 400, "something new", Wrong},
	} {
		err := newAPIError("stream ZULIP_acme: write",
			&jetstream.APIError{Code: test.status, ErrorCode: jetstream.ErrorCode(test.code), Description: test.text})
		if err.Kind != test.kind || err.Code != test.code {
			t.Errorf("%d %s: %v", test.code, test.text, err.Kind)
		}
		for _, words := range []string{"stream ZULIP_acme: write: ", test.text,
			fmt.Sprintf("nats errors lookup %d", test.code)} {
			if !strings.Contains(err.Error(), words) {
				t.Errorf("%d: the sentence %q lacks %q", test.code, err, words)
			}
		}
	}
}

func TestViolationTexts(t *testing.T) {
	for text, want := range map[string]violation{
		`Permissions Violation for Publish to "zulip.acme.x"`:                       {"publish", "zulip.acme.x", false},
		`permissions violation for publish to "zulip.acme.x"`:                       {"publish", "zulip.acme.x", false},
		`Permissions Violation for Publish with Reply of "_INBOX.a.b"`:              {"publish", "_INBOX.a.b", true},
		`Permissions Violation for Subscription to "_INBOX.a.>"`:                    {"subscribe", "_INBOX.a.>", false},
		`Permissions Violation for Subscription to "a.b" using queue "q" (sid "5")`: {"subscribe", "a.b", false},
		`Permissions Violation for Subscription to "a.b.c.d.e.f.g.h.i.j", too many tokens`: {"subscribe",
			"a.b.c.d.e.f.g.h.i.j", false},
	} {
		got, ok := parseViolation(fmt.Errorf("%w: %s", nats.ErrPermissionViolation, text))
		if !ok || got != want {
			t.Errorf("%s: %+v, %v", text, got, ok)
		}
	}
	for _, err := range []error{nil, errors.New("permissions violation for publish to \"x\""),
		nats.ErrPermissionViolation} {
		if v, ok := parseViolation(err); ok {
			t.Errorf("%v: %+v", err, v)
		}
	}
}

func TestAtomicLength(t *testing.T) {
	sized := func(sizes ...int) []Message {
		msgs := make([]Message, len(sizes))
		for i, n := range sizes {
			msgs[i].Data = make([]byte, n)
		}
		return msgs
	}
	for _, test := range []struct {
		msgs        []Message
		limit, want int
	}{
		{sized(1, 1, 1), 1000, 3},
		{sized(1, 1, 1), 2, 2},
		{sized(1, 1, 1), 1, 1},
		{make([]Message, 1001), 1000, 1000},
		{sized(4<<20, 4<<20, 1), 1000, 2},
		{sized(9<<20, 1), 1000, 1},
		{sized(1, 9<<20, 1), 1000, 1},
	} {
		if got := atomicLength(test.msgs, test.limit); got != test.want {
			t.Errorf("%d messages, limit %d: %d, want %d", len(test.msgs), test.limit, got, test.want)
		}
	}
}

// A kind that has no name of its own would be a number in a metric.
func TestKindsHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for k := Unclear; k <= Wrong; k++ {
		if name := k.String(); seen[name] || name == "unknown" {
			t.Errorf("kind %d is called %q", k, name)
		} else {
			seen[name] = true
		}
	}
	if Kind(0).String() != "unknown" || Kind(200).String() != "unknown" {
		t.Error("what is no kind has a name")
	}
}

// The room for answers follows what is written: enough for a batch, refused message by
// message, and next to nothing behind it.
func TestRoomForAnswers(t *testing.T) {
	srv := natstest.Start(t)
	conn, err := Connect(t.Context(), ConnectConfig{URL: srv.URL, Log: natstest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	natstest.Eventually(t, "the connection", conn.IsConnected)
	s, err := Open(t.Context(), conn, Config{Realm: "acme", Filter: "zulip.acme.>", Path: PathFast,
		AckTimeout: 30 * time.Second}) // a busy machine takes its time for 5000 messages
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	subscriptions := conn.NumSubscriptions()
	at := Cursor{}
	for _, test := range []struct{ messages, room int }{
		{1, 128}, {2, 128}, {64, 128}, {65, 130}, {1000, 2000}, {10, 2000}, {1, 128}, {5000, 8000}, {1, 128},
	} {
		msgs := make([]Message, test.messages)
		for i := range msgs {
			msgs[i].Subject = "zulip.acme.message"
		}
		if test.messages > 1 {
			// Another instance was faster: each message of the batch is refused.
			if _, err := s.Append(t.Context(), Cursor{Seq: at.Seq - 1, Acked: true}, msgs); err == nil {
				t.Fatal("a batch behind a message that is not the last is stored")
			}
		}
		if at, err = s.Append(t.Context(), at, msgs); err != nil {
			t.Fatalf("%d messages: %v", test.messages, err)
		}
		if got := cap(s.out.answers); got != test.room {
			t.Errorf("room for %d answers to %d messages, want %d", got, test.messages, test.room)
		}
	}
	if n := conn.NumSubscriptions(); n != subscriptions {
		t.Errorf("%d subscriptions, and %d at the beginning", n, subscriptions)
	}
	if errors.Is(conn.LastError(), nats.ErrSlowConsumer) {
		t.Error(conn.LastError())
	}
}

// Who answers within the limit is heard, however often the question was asked by then: a
// server with much to do, or one far behind the one that we are connected to, takes its
// time each time.
func TestSlowAnswerToARead(t *testing.T) {
	srv := natstest.Start(t)
	connect := func() *nats.Conn {
		nc, err := nats.Connect(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	if _, err := connect().Subscribe("slow", func(m *nats.Msg) {
		time.AfterFunc(apiTimeout/2, func() { _ = m.Respond([]byte("{}")) })
	}); err != nil {
		t.Fatal(err)
	}
	l := newLink()
	l.start(connect())
	natstest.Eventually(t, "the subscription", func() bool {
		_, err := l.nc.Request("slow", nil, time.Millisecond)
		return err != nats.ErrNoResponders
	})
	if err := l.read(t.Context(), "reading", "slow", nil, apiTimeout, &apiReply{}); err != nil {
		t.Errorf("each answer comes after %v, within the %v: %v", apiTimeout/2, apiTimeout, err)
	}
}
