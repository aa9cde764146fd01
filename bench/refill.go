//go:build linux

package main

import (
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"zulip-nats/zulipsim"
)

// refill is what is read back after Zulip has dropped the queue: messages a second, from
// history, within the requests that Zulip allows as it ships (200 a minute).
//
// The queue is dropped while the program does not run, then people write, then the program
// starts. It is measured from when a subscriber in this process has the record that the
// gap is opened until it has the one that it is closed, so with the new queue and the
// questions that come with it. Beside it runs the simulator, in this process, which makes
// the pages. Peak memory is that of the program from its start. Each size is read back
// once, whatever -rounds says: what takes time is waiting for Zulip's limit.
func refill(t *scope) {
	s := newStore(t, "R1 file")
	var sizes []string
	var peaks [][]float64
	for _, n := range []int{t.sized(10_000, 10_000), t.sized(100_000, 100_000)} {
		t.try(fmt.Sprint(n, " messages"), func(t *scope) {
			took, peak, requests := refillOnce(t, s, n)
			name := fmt.Sprint(n, " messages")
			one := func(x float64) []float64 { return []float64{x} }
			t.report(compared("refill", name, "messages/s", "", one(float64(n)/took.Seconds()), "", nil, nil),
				compared("refill", name, "gap opened to closed", "s", one(took.Seconds()), "", nil, nil),
				compared("refill", name, "requests for history", "", one(float64(requests)), "", nil, nil),
				compared("refill", name, "peak", "MB", one(peak), "", nil, atMost(40)))
			sizes, peaks = append(sizes, name), append(peaks, one(peak))
		})
	}
	if len(sizes) == 2 {
		t.report(compared("refill", sizes[1], "peak", "MB", peaks[1], sizes[0], peaks[0], atMost(1.15)))
	}
}

func refillOnce(t *scope, s *store, n int) (took time.Duration, peak float64, requests int64) {
	z := newZulip(t, func(z *zulipsim.Server) { z.EventsRules, z.APIRules, z.NoGzip = nil, nil, false })
	p := t.follow(z, s.url, "acme")
	q := z.waiting()
	send := func() {
		z.SendMessage(zulipsim.Message{Channel: "general", Topic: "build", Content: "All work and no play makes Jack a dull " +
			"boy, and a message as people write them is about as long as this one."})
	}
	send()
	t.wait("the first message", time.Millisecond, func() bool { q := z.waiting(); return q.Pending == 0 && q.NewestPruned >= 0 })
	p.stop()
	z.ExpireQueue(q.ID)
	for range n {
		send()
	}
	gap := make(chan time.Time, 4)
	sub, err := s.nc.Subscribe("zulip.acme.bridge.gap", func(*nats.Msg) { gap <- time.Now() })
	t.must(err)
	defer sub.Unsubscribe()
	t.must(s.nc.Flush())
	p = t.follow(z, s.url, "acme")
	var at [2]time.Time // opened, closed
	for i := range at {
		select {
		case at[i] = <-gap:
		case <-t.Context().Done():
			t.Fatal("interrupted")
		case <-time.After(patience):
			t.Fatal("no record of the gap")
		}
	}
	peak = p.peak()
	z.waiting()
	st, err := s.js.Stream(t.Context(), "ZULIP_acme")
	t.must(err)
	if got := st.CachedInfo().State.Msgs; got < uint64(n) {
		t.Fatalf("%d messages are in the stream after %d were to be read back", got, n)
	}
	p.stop()
	t.must(s.js.DeleteStream(t.Context(), "ZULIP_acme"))
	return at[1].Sub(at[0]), peak, z.pages.Load()
}
