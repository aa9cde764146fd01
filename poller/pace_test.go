package poller

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"zulip-nats/zulipsim"
)

// TestLoneEvent: after a quiet minute an event waits for nothing but the way.
func TestLoneEvent(t *testing.T) {
	const rtt = 40 * time.Millisecond
	bubble(t, func(s *zulipsim.Server) { s.RoundTrip = rtt }, func(t *testing.T, w *world) {
		w.register()
		for range 20 {
			go func() {
				time.Sleep(61 * time.Second)
				w.send(1)
			}()
			start := time.Now()
			for w.next()[0].Type != "message" { // heartbeats
			}
			// The event came 61 s after the start; it is here after half a round trip.
			if took := time.Since(start) - 61*time.Second; took > rtt {
				t.Fatalf("it took %v", took)
			}
		}
	})
}

// busy lets events come by chance, perSecond of them on average, for a time, and follows. It returns how long they took to arrive,
// sorted. after is called after each batch.
func (w *world) busy(perSecond float64, length time.Duration, after func()) (delays []time.Duration) {
	ctx, cancel := context.WithTimeout(w.t.Context(), length)
	defer cancel()
	var mu sync.Mutex
	var sent []time.Time
	chance := rand.New(rand.NewPCG(1, 2))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			time.Sleep(time.Duration(chance.ExpFloat64() / perSecond * 1e9))
			mu.Lock()
			sent = append(sent, time.Now())
			mu.Unlock()
			w.sim.EmitRaw(`{"type":"typing","op":"start","id":%ID%}`)
		}
	}()
	seen := 0
	for ctx.Err() == nil {
		b, err := w.Next(ctx, w.at)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			w.t.Fatal(err)
		}
		mu.Lock()
		for _, e := range b.Events {
			if e.ID != w.at.Last+1 {
				w.t.Fatalf("event %d behind %d", e.ID, w.at.Last)
			}
			w.at.Last = e.ID
			if e.Type == "typing" {
				delays = append(delays, time.Since(sent[seen]))
				seen++
			}
		}
		mu.Unlock()
		if after != nil {
			after()
		}
	}
	<-done
	slices.Sort(delays)
	return delays
}

// minute is the largest number of requests in any minute.
func minute(seen []asked) (most int) {
	for i, j := 0, 0; j < len(seen); j++ {
		for seen[j].at.Sub(seen[i].at) >= time.Minute {
			i++
		}
		most = max(most, j-i+1)
	}
	return most
}

// TestPace holds the pace to what design section 9.5 says of it, against Zulip's own bucket.
func TestPace(t *testing.T) {
	shipped := []zulipsim.RateRule{{Count: 200, Window: time.Minute}}
	tests := []struct {
		name        string
		perSecond   float64
		rules       []zulipsim.RateRule
		length      time.Duration
		median, max time.Duration // of the time that events took
		refusals    int           // 429s at most
	}{
		{"1 a second", 1, shipped, time.Hour, 60 * time.Millisecond, 400 * time.Millisecond, 0},
		{"10 a second", 10, shipped, 20 * time.Minute, 200 * time.Millisecond, 400 * time.Millisecond, 0},
		{"100 a second", 100, shipped, 5 * time.Minute, 200 * time.Millisecond, 400 * time.Millisecond, 0},
		{"2000 an hour besides", 4, []zulipsim.RateRule{{Count: 200, Window: time.Minute}, {Count: 2000, Window: time.Hour}}, 2 * time.Hour,
			time.Second, 2300 * time.Millisecond, 1},
		{"260 an hour besides", 2, []zulipsim.RateRule{{Count: 200, Window: time.Minute}, {Count: 260, Window: time.Hour}}, 3 * time.Hour,
			7 * time.Second, 17 * time.Second, 1},
		{"a shorter rule that nothing tells of", 5, []zulipsim.RateRule{{Count: 30, Window: 10 * time.Second}, {Count: 100, Window: time.Minute}, {Count: 2000, Window: time.Hour}},
			time.Hour, 1300 * time.Millisecond, 11 * time.Second, 1},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(s *zulipsim.Server) {
				s.EventsRules, s.Forget = test.rules, true
				s.RoundTrip = time.Duration(10+50*i/len(tests)) * time.Millisecond
			}, func(t *testing.T, w *world) {
				w.register()
				before := w.tap.count()
				delays := w.busy(test.perSecond, test.length, nil)
				polls := w.tap.since(before)
				refusals := 0
				for _, p := range polls {
					if p.status == http.StatusTooManyRequests {
						refusals++
					}
				}
				n := len(delays)
				median, most := delays[n/2], delays[n-1]
				t.Logf("round trip %v: %d events, %d polls, %.0f a minute, %d in the fullest; delay %v in the median, %v at most; %d refusals", w.sim.RoundTrip,
					n, len(polls), float64(len(polls))/test.length.Minutes(), minute(polls), median.Round(time.Millisecond), most.Round(time.Millisecond), refusals)
				if refusals > test.refusals || median > test.median || most > test.max {
					t.Errorf("%d refusals (%d), delay %v (%v), at most %v (%v)", refusals, test.refusals, median, test.median, most, test.max)
				}
				if float64(n) < test.perSecond*test.length.Seconds()*0.9 {
					t.Errorf("only %d events came", n)
				}
			})
		})
	}
}

// TestBusyHour: 50 events a second for an hour, on a queue that lives ten minutes. No 429, little delay, and the queue is not lost,
// since in time one poll follows the other at once until one waits.
func TestBusyHour(t *testing.T) {
	bubble(t, func(s *zulipsim.Server) {
		s.GrantCap, s.Forget, s.RoundTrip = 10*time.Minute, true, 30*time.Millisecond
		s.Version, s.FeatureLevel = "12.2", 500
	}, func(t *testing.T, w *world) {
		w.register()
		if w.reg.Life != 10*time.Minute {
			t.Fatalf("life %v", w.reg.Life)
		}
		renewed, last := 0, w.Expires()
		delays := w.busy(50, time.Hour, func() {
			if at := w.Expires(); at != last {
				renewed, last = renewed+1, at
			}
			if left := time.Until(last); left < 5*time.Minute {
				t.Fatalf("only %v left", left)
			}
			if w.ClockOverdue() {
				t.Fatal("the clock is overdue")
			}
		})
		polls := w.tap.since(0)
		n := len(delays)
		t.Logf("%d events, %d polls, %.0f a minute, %d in the fullest; delay %v in the median, %v at most; renewed %d times", n, len(polls),
			float64(len(polls))/60, minute(polls), delays[n/2].Round(time.Millisecond), delays[n-1].Round(time.Millisecond), renewed)
		if renewed < 5 || delays[n/2] > 200*time.Millisecond || delays[n-1] > 450*time.Millisecond || len(polls) > 61*200+200 || n < 170_000 {
			t.Error("that is not as it should be")
		}
		for _, a := range polls {
			if a.status != http.StatusOK && a.status != 0 { // 0: the one that was waiting at the end
				t.Errorf("%s was answered %d", a.req.URL, a.status)
			}
		}
	})
}

// TestClockOverdue: where no poll ever waits, it is said in time that the queue must be changed.
func TestClockOverdue(t *testing.T) {
	bubble(t, func(s *zulipsim.Server) {
		s.Version, s.FeatureLevel, s.GrantCap = "12.2", 500, 8*time.Minute
		s.Forget, s.RoundTrip = true, 400*time.Millisecond
	}, func(t *testing.T, w *world) {
		w.register()
		start := time.Now()
		overdue := time.Duration(0)
		w.busy(40, 7*time.Minute, func() {
			if w.ClockOverdue() && overdue == 0 {
				overdue = time.Since(start)
			}
		})
		if overdue < 6*time.Minute-time.Second || overdue > 6*time.Minute+5*time.Second {
			t.Errorf("overdue after %v", overdue)
		}
		for _, a := range w.tap.since(0) {
			if a.status != http.StatusOK && a.status != 0 { // 0: the one that was waiting at the end
				t.Errorf("%s was answered %d", a.req.URL, a.status)
			}
		}
		// A queue that is known from before the start has its clock from then.
		w.Follow(Queue{ID: w.at.Queue, Life: time.Hour, Renewed: time.Now().Add(-50 * time.Minute)})
		if !w.ClockOverdue() || w.Expires() != time.Now().Add(10*time.Minute) {
			t.Errorf("overdue %v, expires %v", w.ClockOverdue(), w.Expires())
		}
	})
}

// TestRetryAfter: exactly as told, no sooner and no later, for each kind of request.
func TestRetryAfter(t *testing.T) {
	bubble(t, func(s *zulipsim.Server) { s.RoundTrip = 20 * time.Millisecond }, func(t *testing.T, w *world) {
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Register, Times: 1, Status: 429, Body: `{"result":"error","code":"RATE_LIMIT_HIT","retry-after":2.5}`})
		w.register()
		w.send(1)
		w.next()
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 2, Status: 429, Header: http.Header{"Retry-After": {"3.2500000001"}}, Body: "<html>"})
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
		w.says(1, "429", "GET /api/v1/events", "waiting 3.25s as told, the queue is kept")
		w.says(2, "Zulip answers again")
	})
}

// TestShippedLimit: whoever came before us has used up the account's polls; we are told, wait, and are never told again.
func TestShippedLimit(t *testing.T) {
	bubble(t, func(s *zulipsim.Server) {
		s.Forget, s.Tolerate = true, []zulipsim.Complaint{zulipsim.TooSoon} // we were not told, the other was
	}, func(t *testing.T, w *world) {
		w.register()
		naive := &Client{Transport: w.tap, Account: w.Client.Account}
		for limited := false; !limited; {
			a, err := naive.Events(t.Context(), w.at, true, time.Minute)
			if _, limited = errors.AsType[*trouble](err); !limited {
				for !a.done {
					if _, err := a.Next(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				a.Close()
			}
		}
		before := w.tap.count()
		w.busy(20, 10*time.Minute, nil)
		refusals := 0
		for _, a := range w.tap.since(before) {
			if a.status == 429 {
				refusals++
			}
		}
		if refusals > 1 {
			t.Errorf("%d refusals", refusals)
		}
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
		{"0.16730117797851562", &body, 167301178}, {"5", nil, 5 * time.Second}, {"", &body, 28706807375}, {"8.988380432128906e-05", nil, 89884},
		{"", nil, time.Second}, {"soon", nil, time.Second}, {"NaN", nil, time.Second}, {"-3", nil, time.Second}, {"1e99", nil, time.Hour},
		{"Inf", nil, time.Hour}, {"Wed, 25 Nov 2026 12:00:30 GMT", nil, 30 * time.Second}, {"0", nil, 0},
	} {
		if got := told(test.header, test.body, now); got != test.want {
			t.Errorf("%q gives %v, want %v", test.header, got, test.want)
		}
	}
}
