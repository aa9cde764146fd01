package integration_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
)

// TestSubscribersSeeEachEventOnce: who subscribes to the subjects, and not to the stream,
// sees what is published. That is each event, in order, and nothing besides, but for what
// was sent again since no acknowledgement came in time; and an event by itself goes in the
// way that takes one round trip.
func TestSubscribersSeeEachEventOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, natsServer(t))
	var mu sync.Mutex
	var seen []string
	alone := 0
	sub, err := natstest.Connect(t, w.nats).Subscribe("zulip."+w.realm+".presence", func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, m.Header.Get(events.HeaderEventID))
		if len(seen) <= 3 && !strings.HasSuffix(m.Reply, ".$FI") {
			alone++
		}
	})
	harness.Must(t, err)
	harness.Must(t, sub.SetPendingLimits(-1, -1))
	p := w.run()
	var want []string
	send := func(n int) {
		q := w.registered()
		for i := range n {
			want = append(want, fmt.Sprint(q.NextID+int64(i)))
		}
		w.zulip.FillAnswer(q.ID, n, func(dst []byte, id int64) []byte {
			return fmt.Appendf(dst, `{"type":"presence","x":%q,"id":%d}`, strings.Repeat("x", 300), id)
		})
		w.settle()
	}
	for range 3 {
		w.polling()
		send(1)
	}
	send(4321)
	harness.Eventually(t, "all events to be seen", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Contains(seen, want[len(want)-1])
	})
	mu.Lock()
	defer mu.Unlock()
	var first []string // each where it was seen first
	known := map[string]bool{}
	for _, id := range seen {
		if !known[id] {
			known[id] = true
			first = append(first, id)
		}
	}
	if !slices.Equal(first, want) || len(seen) > len(want) && !p.Says("no acknowledgement for ") {
		t.Errorf("%d messages were seen of %d events, or in another order: %.300q", len(seen), len(want), seen)
	}
	if alone != 3 {
		t.Errorf("%d of 3 events that came alone went by themselves", alone)
	}
}
