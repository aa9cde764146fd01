package stream

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"zulip-nats/stream/natstest"
)

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
