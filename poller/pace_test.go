package poller

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
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

// TestLoneEventBehindAQuietMinute: what a poll that waited says of the limit is of its
// start, a minute ago, and no reason to wait.
func TestLoneEventBehindAQuietMinute(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.register()
		for range 90 {
			w.send(1)
			w.next()
		}
		time.AfterFunc(40*time.Second, func() { w.send(1) })
		w.next()
		w.send(1)
		start := time.Now()
		if w.next(); time.Since(start) > 0 {
			t.Errorf("it took %v", time.Since(start))
		}
	})
}

// busy lets events come by chance, perSecond of them on average, for a time, and follows.
// It returns how long they took to arrive, sorted. after is called after each batch.
func (w *world) busy(perSecond float64, length time.Duration, after func()) (delays []time.Duration) {
	ctx, cancel := context.WithTimeout(w.t.Context(), length)
	var mu sync.Mutex
	chance := rand.New(rand.NewPCG(1, 2))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for ctx.Err() == nil {
			time.Sleep(time.Duration(chance.ExpFloat64() / perSecond * 1e9))
			mu.Lock()
			w.sent = append(w.sent, time.Now())
			mu.Unlock()
			w.sim.EmitRaw(`{"type":"typing","op":"start","id":%ID%}`)
		}
	})
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
				delays = append(delays, time.Since(w.sent[w.came]))
				w.came++
			}
		}
		mu.Unlock()
		if after != nil {
			after()
		}
	}
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

// TestPace holds the pace to what design section 9.5 says of it, against Zulip's own
// bucket.
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
		{"2000 an hour besides", 4, []zulipsim.RateRule{{Count: 200, Window: time.Minute},
			{Count: 2000, Window: time.Hour}}, 2 * time.Hour,
			time.Second, 2300 * time.Millisecond, 1},
		{"260 an hour besides", 2, []zulipsim.RateRule{{Count: 200, Window: time.Minute},
			{Count: 260, Window: time.Hour}}, 3 * time.Hour,
			7 * time.Second, 17 * time.Second, 1},
		{"a shorter rule that nothing tells of", 5,
			[]zulipsim.RateRule{{Count: 30, Window: 10 * time.Second}, {Count: 100, Window: time.Minute},
				{Count: 2000, Window: time.Hour}},
			time.Hour, 1300 * time.Millisecond, 11 * time.Second, 4},
	}
	for i, test := range tests {
		if i%oneIn != 1%oneIn {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(s *zulipsim.Server) {
				s.EventsRules, s.Forget = test.rules, true
				s.RoundTrip = time.Duration(10+50*i/len(tests)) * time.Millisecond
			}, func(t *testing.T, w *world) {
				w.register()
				before := w.tap.count()
				delays := w.busy(test.perSecond, test.length, nil)
				polls := w.tap.since(before)
				n, refusals := len(delays), refusals(polls)
				median, most := delays[n/2], delays[n-1]
				t.Logf("round trip %v: %d events, %d polls, %.0f a minute, %d in the fullest; delay %v in the "+
					"median, %v at most; %d refusals", w.sim.RoundTrip,
					n, len(polls), float64(len(polls))/test.length.Minutes(), minute(polls),
					median.Round(time.Millisecond), most.Round(time.Millisecond), refusals)
				if refusals > test.refusals || median > test.median || most > test.max {
					t.Errorf("%d refusals (%d), delay %v (%v), at most %v (%v)", refusals, test.refusals, median,
						test.median, most, test.max)
				}
				if float64(n) < test.perSecond*test.length.Seconds()*0.9 {
					t.Errorf("only %d events came", n)
				}
			})
		})
	}
}

// refusals counts the 429s among requests.
func refusals(seen []asked) (n int) {
	for _, a := range seen {
		if a.status == http.StatusTooManyRequests {
			n++
		}
	}
	return n
}

// TestLowLimits: a server that allows less than what Zulip ships refuses a few polls at
// first, then as good as none, and the queue lives on. It is how the pace is measured:
// each set of rules with each rate of events, for five minutes and the hour behind them,
// on a queue that lives ten minutes.
func TestLowLimits(t *testing.T) {
	const (
		quiet, slow, brisk, busy = 0.1, 1.0, 3.0, 12.0 // events a second
		first, hour              = 5 * time.Minute, longRun
	)
	type bound struct{ median, most time.Duration } // of the time that events took, in that hour
	const ms = time.Millisecond
	atOnce := bound{20 * ms, 60 * ms}
	for n, test := range []struct {
		rules        []zulipsim.RateRule
		first, later int // refused polls, in the first five minutes and in the hour behind them
		bounds       map[float64]bound
	}{
		{nil, 0, 0, map[float64]bound{quiet: atOnce, slow: atOnce, brisk: {25 * ms, 700 * ms},
			busy: {200 * ms, 500 * ms}}},
		{[]zulipsim.RateRule{{Count: 30, Window: time.Minute}}, 0, 0,
			map[float64]bound{quiet: atOnce, slow: {time.Second, 2500 * ms}, brisk: {1200 * ms, 3 * time.Second},
				busy: {1300 * ms, 6 * time.Second}}},
		{[]zulipsim.RateRule{{Count: 20, Window: 10 * time.Second}}, 0, 0,
			map[float64]bound{quiet: atOnce, slow: atOnce, brisk: {200 * ms, 800 * ms}, busy: {350 * ms, 1200 * ms}}},
		{[]zulipsim.RateRule{{Count: 600, Window: time.Hour}}, 0, 0,
			map[float64]bound{quiet: atOnce, slow: {3300 * ms, 7 * time.Second}, brisk: {3300 * ms, 7 * time.Second},
				busy: {4 * time.Second, 9 * time.Second}}},
		{[]zulipsim.RateRule{{Count: 20, Window: 10 * time.Second}, {Count: 200, Window: time.Minute}}, 2, 0,
			map[float64]bound{quiet: atOnce, slow: atOnce, brisk: {200 * ms, 800 * ms}, busy: {350 * ms, 1200 * ms}}},
		{[]zulipsim.RateRule{{Count: 20, Window: 10 * time.Second}, {Count: 600, Window: time.Hour}}, 2, 0,
			map[float64]bound{quiet: atOnce, slow: {3300 * ms, 7 * time.Second}, brisk: {3300 * ms, 7 * time.Second},
				busy: {4 * time.Second, 9 * time.Second}}},
		{[]zulipsim.RateRule{{Count: 30, Window: time.Minute}, {Count: 600, Window: time.Hour}}, 2, 0,
			map[float64]bound{quiet: atOnce, slow: {3300 * ms, 7 * time.Second}, brisk: {3300 * ms, 7 * time.Second},
				busy: {4 * time.Second, 9 * time.Second}}},
		{[]zulipsim.RateRule{{Count: 10, Window: 5 * time.Second}, {Count: 50, Window: time.Minute},
			{Count: 1000, Window: time.Hour}}, 4, 0,
			map[float64]bound{quiet: atOnce, slow: {1800 * ms, 4500 * ms}, brisk: {1800 * ms, 4500 * ms},
				busy: {2 * time.Second, 6 * time.Second}}},
		{[]zulipsim.RateRule{{Count: 20, Window: 10 * time.Second}, {Count: 30, Window: time.Minute}}, 0, 0,
			map[float64]bound{brisk: {1200 * ms, 3 * time.Second}}},
		{[]zulipsim.RateRule{{Count: 30, Window: time.Minute}, {Count: 2000, Window: time.Hour}}, 2, 0,
			map[float64]bound{brisk: {1200 * ms, 3 * time.Second}}},
		{[]zulipsim.RateRule{{Count: 5, Window: time.Minute}}, 0, 0,
			map[float64]bound{brisk: {8 * time.Second, 18 * time.Second}}},
		{[]zulipsim.RateRule{{Count: 5, Window: time.Minute}, {Count: 100, Window: time.Hour}}, 2, 0,
			map[float64]bound{brisk: {21 * time.Second, 54 * time.Second}}},
		{[]zulipsim.RateRule{{Count: 5, Window: time.Second}, {Count: 200, Window: time.Minute}}, 2, 0,
			map[float64]bound{12: {200 * ms, 500 * ms}}},
	} {
		if n%oneIn != 0 {
			continue
		}
		for perSecond, bound := range test.bounds {
			name := "as shipped"
			if test.rules != nil {
				name = ruleNames(test.rules)
			}
			t.Run(fmt.Sprintf("%s, %v a second", name, perSecond), func(t *testing.T) {
				t.Parallel()
				bubble(t, func(s *zulipsim.Server) {
					s.Version, s.FeatureLevel, s.GrantCap = "12.2", 500, 10*time.Minute
					s.EventsRules, s.Forget, s.RoundTrip = test.rules, true, 40*time.Millisecond
				}, func(t *testing.T, w *world) {
					w.register()
					left := w.reg.Life
					note := func() { left = min(left, time.Until(w.Expires())) }
					early := w.busy(perSecond, first, note)
					atFirst, before := refusals(w.tap.since(0)), w.tap.count()
					delays := w.busy(perSecond, hour, note)
					later, n := refusals(w.tap.since(before)), len(delays)
					median, most := delays[n/2], delays[n-1]
					t.Logf("| %s | %v | %d | %d | %.1f | %v | %v | %v | %v |", name, perSecond, atFirst, later,
						float64(w.tap.count()-before)/hour.Minutes(), early[len(early)-1].Round(ms), median.Round(ms),
						most.Round(ms), left.Round(time.Second))
					if atFirst > test.first || later > test.later || median > bound.median || most > bound.most {
						t.Errorf("want at most %d, %d, %+v", test.first, test.later, bound)
					}
					if early[len(early)-1] > 2*max(bound.most, 1200*ms) {
						t.Errorf("an event of the first minutes took %v", early[len(early)-1])
					}
					if left < w.reg.Life/3 {
						t.Errorf("only %v of the queue's life were left", left)
					}
					if float64(n) < perSecond*hour.Seconds()*0.8 {
						t.Errorf("only %d events came", n)
					}
				})
			})
		}
	}
}

// ruleNames writes rules as administrators say them.
func ruleNames(rules []zulipsim.RateRule) string {
	var names []string
	for _, r := range rules {
		names = append(names, fmt.Sprintf("%d in %v", r.Count, r.Window))
	}
	return strings.Join(names, " and ")
}

// TestForeignRefusal: a 429 that somebody else's polls brought us, who has the same
// account, is not held against the server: the headers tell of them. Where they go on for
// ten minutes, what is learnt from them is gone within the hour.
func TestForeignRefusal(t *testing.T) {
	const lone = 1.0 / 6 // events a second
	for n, rules := range [][]zulipsim.RateRule{
		{{Count: 200, Window: time.Minute}},
		{{Count: 2000, Window: time.Hour}},
		{{Count: 200, Window: time.Minute}, {Count: 2000, Window: time.Hour}},
		{{Count: 200, Window: time.Minute}, {Count: 10_000, Window: 24 * time.Hour}},
		{{Count: 20, Window: 10 * time.Second}, {Count: 2000, Window: time.Hour}},
	} {
		if n%oneIn != 0 {
			continue
		}
		for i, length := range []time.Duration{0, 10 * time.Minute} {
			if i%oneIn != 0 {
				continue
			}
			t.Run(fmt.Sprintf("%s for %v", ruleNames(rules), length), func(t *testing.T) {
				t.Parallel()
				bubble(t, func(s *zulipsim.Server) {
					s.EventsRules, s.Forget, s.RoundTrip = rules, true, 40*time.Millisecond
					s.Tolerate = []zulipsim.Complaint{zulipsim.TooSoon} // we were not told, the other was
				}, func(t *testing.T, w *world) {
					w.register()
					w.busy(lone, 10*time.Minute, nil)
					other := &Client{Transport: w.sim.Client().Transport, Account: w.Client.Account}
					theirs, err := other.register(t.Context(), DefaultOptions(), false, nil)
					if err != nil {
						t.Fatal(err)
					}
					// hog polls as often as the server lets it until it was refused, and
					// then for length.
					hog := func() {
						defer other.closeIdle()
						var end time.Time
						for end.IsZero() || time.Now().Before(end) {
							a, err := other.events(t.Context(), Position{theirs.QueueID, -1}, true, time.Minute)
							refused, ok := errors.AsType[*transientError](err)
							switch {
							case !ok:
								a.Close()
								continue
							case end.IsZero():
								end = time.Now().Add(length)
							}
							if length > 0 {
								time.Sleep(refused.wait)
							}
						}
					}
					before := w.tap.count()
					var wg sync.WaitGroup
					if length > 0 {
						wg.Go(hog)
					} else {
						hog()
					}
					w.busy(lone, 10*time.Minute, nil)
					wg.Wait()
					n := refusals(w.tap.since(before))
					t.Logf("%d refusals, %d rules learnt", n, len(w.pace.learnt))
					if n < 1 || length == 0 && (n > 2 || len(w.pace.learnt) > 0) {
						t.Errorf("%d refusals, %d rules learnt", n, len(w.pace.learnt))
					}
					w.busy(lone, 50*time.Minute, nil)
					before = w.tap.count()
					delays := w.busy(lone, time.Hour, nil)
					n = len(delays)
					t.Logf("an hour after it: delay %v in the median, %v in 9 of 10", delays[n/2], delays[n*9/10])
					if delays[n/2] > 25*time.Millisecond || delays[n*9/10] > 25*time.Millisecond ||
						refusals(w.tap.since(before)) > 0 {
						t.Errorf("delays of %v and %v, %d refusals, %d rules learnt", delays[n/2], delays[n*9/10],
							refusals(w.tap.since(before)), len(w.pace.learnt))
					}
				})
			})
		}
	}
}

// TestLimitsLifted: a rule that refusals taught is obeyed for two hours, and then tried
// again.
func TestLimitsLifted(t *testing.T) {
	long := zulipsim.RateRule{Count: 2000, Window: time.Hour}
	bubble(t, func(s *zulipsim.Server) {
		s.EventsRules, s.Forget, s.RoundTrip = []zulipsim.RateRule{{Count: 10, Window: time.Minute}, long}, true,
			40*time.Millisecond
	}, func(t *testing.T, w *world) {
		w.register()
		w.busy(1, 10*time.Minute, nil)
		if len(w.pace.learnt) != 1 || w.pace.learnt[0].count != 10 || !about(w.pace.learnt[0].window, time.Minute) {
			t.Fatalf("learnt: %+v", w.pace.learnt)
		}
		w.sim.Down()
		w.sim.EventsRules = []zulipsim.RateRule{{Count: 100, Window: time.Minute}, long}
		w.sim.Up()
		if slow := w.busy(0.3, 30*time.Minute, nil); slow[len(slow)/2] < time.Second {
			t.Errorf("%v in the median: the rule is not obeyed", slow[len(slow)/2])
		}
		w.busy(0.3, 2*time.Hour, nil)
		before := w.tap.count()
		delays := w.busy(0.3, 30*time.Minute, nil)
		if median := delays[len(delays)/2]; median > 25*time.Millisecond || refusals(w.tap.since(before)) > 0 {
			t.Errorf("%v in the median, %d refusals", median, refusals(w.tap.since(before)))
		}
		// Another limit in the headers is another setting: what was learnt under the old
		// one is gone at once.
		w.pace.learn(time.Now(), rule{count: 5, window: time.Minute}, false)
		w.sim.Down()
		w.sim.EventsRules = []zulipsim.RateRule{{Count: 300, Window: time.Hour}}
		w.sim.Up()
		w.busy(0.3, time.Minute, nil)
		if n := len(w.pace.learnt); n > 0 {
			t.Errorf("%d rules are known under another limit", n)
		}
	})
}

// TestStartBehindAFullBucket: an instance before us has used up what there was, of a rule
// that nothing tells of. A few refusals, and then none.
func TestStartBehindAFullBucket(t *testing.T) {
	bubble(t, func(s *zulipsim.Server) {
		s.EventsRules = []zulipsim.RateRule{{Count: 20, Window: 10 * time.Second}, {Count: 600, Window: time.Hour}}
		s.Forget, s.RoundTrip = true, 40*time.Millisecond
		s.Tolerate = []zulipsim.Complaint{zulipsim.TooSoon} // we were not told, the other was
	}, func(t *testing.T, w *world) {
		w.register()
		before := &Client{Transport: w.sim.Client().Transport, Account: w.Client.Account}
		defer before.closeIdle()
		for limited := false; !limited; {
			a, err := before.events(t.Context(), w.at, true, time.Minute)
			if _, limited = errors.AsType[*transientError](err); !limited {
				a.Close()
			}
		}
		w.busy(3, 5*time.Minute, nil)
		if n := refusals(w.tap.since(0)); n > 4 {
			t.Errorf("%d refusals in the first five minutes", n)
		}
		seen := w.tap.count()
		delays := w.busy(3, 30*time.Minute, nil)
		n := refusals(w.tap.since(seen))
		t.Logf("%d refusals, then %d; %v in the median, %v at most", refusals(w.tap.since(0))-n, n,
			delays[len(delays)/2], delays[len(delays)-1])
		if n > 0 || delays[len(delays)-1] > 10*time.Second {
			t.Errorf("%d refusals, a delay of %v", n, delays[len(delays)-1])
		}
	})
}

// TestShortLife: a queue that Zulip keeps for eight seconds lives on at three events a
// second, though the server's limits are lower than shipped: busy fails when it does not.
func TestShortLife(t *testing.T) {
	for _, rules := range [][]zulipsim.RateRule{
		{{Count: 200, Window: time.Minute}}, {{Count: 30, Window: time.Minute}},
		{{Count: 20, Window: 10 * time.Second}},
		{{Count: 20, Window: 10 * time.Second}, {Count: 200, Window: time.Minute}},
		{{Count: 600, Window: time.Hour}}, {{Count: 20, Window: 10 * time.Second}, {Count: 600, Window: time.Hour}},
		{{Count: 30, Window: time.Minute}, {Count: 2000, Window: time.Hour}},
	} {
		t.Run(ruleNames(rules), func(t *testing.T) {
			bubble(t, func(s *zulipsim.Server) {
				s.Version, s.FeatureLevel, s.GrantCap = "12.2", 500, 8*time.Second
				s.SweepEvery = time.Second
				s.EventsRules, s.Forget, s.RoundTrip = rules, true, 40*time.Millisecond
			}, func(t *testing.T, w *world) {
				w.register()
				if w.reg.Life != 8*time.Second {
					t.Fatalf("it lives %v", w.reg.Life)
				}
				left := 8 * time.Second
				w.busy(3, min(15*time.Minute, longRun/2), func() { left = min(left, time.Until(w.Expires())) })
				t.Logf("%d refusals, %v left at the least", refusals(w.tap.since(0)), left)
				if n := refusals(w.tap.since(0)); n > 5 {
					t.Errorf("%d refusals", n)
				}
			})
		})
	}
}

// TestHurryWithoutRoom: where the rules as we understand them leave no room for a poll
// before the queue is dropped, some polls leave nevertheless.
func TestHurryWithoutRoom(t *testing.T) {
	now, life := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC), 10*time.Minute
	p := pace{longest: rule{count: 4,
		window: time.Hour, full: now.Add(time.Hour)}} // room for one in a quarter of an hour
	renewed := now.Add(-160 * time.Second)
	d := p.delay(now, now, renewed, life)
	if d <= 0 || now.Add(d).Sub(renewed) > life*3/4 {
		t.Fatalf("a wait of %v, %v behind the last poll that waited", d, 160*time.Second)
	}
	for now = now.Add(d); p.tries > 0; {
		p.poll(now)
		if d := p.delay(now, now, renewed, life); d > 0 {
			t.Errorf("another wait of %v", d)
		}
	}
	if d := p.delay(now, now, renewed, life); d <= 0 || d > life/2 {
		t.Errorf("then a wait of %v", d)
	}
}

// TestBusyHour: 50 events a second for an hour, on a queue that lives ten minutes. No
// 429, little delay, and the queue is not lost, since in time one poll follows the other
// at once until one waits.
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
		delays := w.busy(50, longRun, func() {
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
		n, minutes := len(delays), longRun.Minutes()
		t.Logf("%d events, %d polls, %.0f a minute, %d in the fullest; delay %v in the median, %v at most; renewed "+
			"%d times", n, len(polls),
			float64(len(polls))/minutes, minute(polls), delays[n/2].Round(time.Millisecond),
			delays[n-1].Round(time.Millisecond), renewed)
		if float64(renewed) < minutes/12 || delays[n/2] > 200*time.Millisecond || delays[n-1] > 450*time.Millisecond ||
			float64(len(polls)) > (minutes+2)*200 || float64(n) < minutes*2833 {
			t.Error("that is not as it should be")
		}
		for _, a := range polls {
			if a.status != http.StatusOK && a.status != 0 { // 0: the one that was waiting at the end
				t.Errorf("%s was answered %d", a.req.URL, a.status)
			}
		}
	})
}

// TestClockOverdue: where no poll ever waits, it is said in time that the queue must be
// changed.
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

// TestShippedLimit: whoever came before us has used up the account's polls; we are told,
// wait, and are never told again.
func TestShippedLimit(t *testing.T) {
	bubble(t, func(s *zulipsim.Server) {
		s.Forget, s.Tolerate = true, []zulipsim.Complaint{zulipsim.TooSoon} // we were not told, the other was
	}, func(t *testing.T, w *world) {
		w.register()
		naive := &Client{Transport: w.tap, Account: w.Client.Account}
		for limited := false; !limited; {
			a, err := naive.events(t.Context(), w.at, true, time.Minute)
			if _, limited = errors.AsType[*transientError](err); !limited {
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
		if n := refusals(w.tap.since(before)); n > 1 {
			t.Errorf("%d refusals", n)
		}
	})
}
