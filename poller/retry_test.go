package poller

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"zulip-nats/zulipsim"
)

// TestRetryAfter: exactly as told, no sooner and no later, for each kind of request.
func TestRetryAfter(t *testing.T) {
	bubble(t, func(s *zulipsim.Server) { s.RoundTrip = 20 * time.Millisecond }, func(t *testing.T, w *world) {
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Register, Times: 1, Status: 429,
			Body: `{"result":"error","code":"RATE_LIMIT_HIT","retry-after":2.5}`})
		w.register()
		w.send(1)
		w.next()
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 2, Status: 429,
			Header: http.Header{"Retry-After": {"3.2500000001"}}, Body: "<html>"})
		w.send(1)
		w.next()
		var waits []time.Duration
		seen := w.tap.since(0)
		for i, a := range seen[:len(seen)-1] {
			if a.status == 429 {
				waits = append(waits, seen[i+1].at.Sub(a.at.Add(20*time.Millisecond)))
			}
		}
		if !slices.Equal(waits, []time.Duration{2500 * time.Millisecond, 3250000001, 3250000001}) {
			t.Errorf("waited %v", waits)
		}
		w.says(1, "429", "POST /api/v1/register", "waiting 2.5s as told")
		w.says(1, "429", "GET /api/v1/events", "waiting 3.25s as told, the queue is kept",
			`"event":"rate_limited"`, `"next_try_in":"3.25s"`)
		w.says(1, "Zulip answers again", `, 1 try"`, `"tries":1`)
		w.says(1, "Zulip answers again", `, 2 tries"`, `"tries":2`)
	})
}

func TestBackoff(t *testing.T) {
	var b backoff
	now := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	for i, most := range []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 12800, 30000, 30000, 30000} {
		longest := time.Duration(0)
		for range 2000 {
			c := b
			c.failed(now)
			wait := c.until.Sub(now)
			if wait > most*time.Millisecond {
				t.Fatalf("after failure %d a wait of %v", i+1, wait)
			}
			longest = max(longest, wait)
		}
		if longest < most*time.Millisecond/2 {
			t.Errorf("after failure %d never more than %v of %v", i+1, longest, most*time.Millisecond)
		}
		b.failed(now)
		now = now.Add(time.Minute)
	}
	// Whatever chance and success do, failures come to one a second.
	b = backoff{}
	start := now
	for range 1000 {
		now = later(now, b.until)
		b.failed(now)
		b.succeeded()
	}
	if took := now.Sub(start); took < 990*time.Second {
		t.Errorf("1000 failures in %v", took)
	}
}

func TestTold(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	body := 28.706807374954224
	for _, test := range []struct {
		header string
		body   *float64
		want   time.Duration
	}{
		{"0.16730117797851562", &body, 167301178}, {"5", nil, 5 * time.Second}, {"", &body, 28706807375},
		{"8.988380432128906e-05", nil, 89884},
		{"", nil, time.Second}, {"soon", nil, time.Second}, {"NaN", nil, time.Second}, {"-3", nil, time.Second},
		{"1e99", nil, time.Hour},
		{"Inf", nil, time.Hour}, {"Wed, 25 Nov 2026 12:00:30 GMT", nil, 30 * time.Second}, {"0", nil, 0},
	} {
		if got := retryAfter(test.header, test.body, now); got != test.want {
			t.Errorf("%q gives %v, want %v", test.header, got, test.want)
		}
	}
}
