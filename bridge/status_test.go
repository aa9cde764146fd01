package bridge_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"zulip-nats/bridge"
	"zulip-nats/events"
	"zulip-nats/health"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/zulipsim"
)

// counted is all counters under one name each, those that are 0 left out.
func counted(c bridge.Counters) map[string]uint64 {
	all := map[string]uint64{"rejected": c.Rejected, "skipped": c.Skipped, "excluded": c.Excluded, "refilled": c.Refilled,
		"oversize": c.Oversize, "queues": c.Queues, "polls refused": c.Polls.Refused, "polls limited": c.Polls.Limited,
		"polls failed": c.Polls.Failed, "rate limited": c.RateLimited, "polls events": c.Polls.Events,
		"polls empty": c.Polls.Empty, "bytes": c.Bytes}
	for kind, n := range c.Events {
		all["event "+kind] = n
	}
	for cause, n := range c.Gaps {
		all["gap "+cause] = n
	}
	for e, n := range c.Errors {
		all["error "+e.Side+": "+e.Kind] = n
	}
	maps.DeleteFunc(all, func(_ string, n uint64) bool { return n == 0 })
	return all
}

// raised is what was counted since, but for what grows in the quietest world.
func raised(since, now bridge.Counters) map[string]uint64 {
	before, all := counted(since), counted(now)
	for name := range all {
		if all[name] -= before[name]; all[name] == 0 {
			delete(all, name)
		}
	}
	for _, name := range []string{"bytes", "polls events", "polls empty", "event heartbeat"} {
		delete(all, name)
	}
	return all
}

// some stands for a count that depends on how often was tried.
const some = ^uint64(0)

func sameCounts(got, want map[string]uint64) bool {
	return maps.EqualFunc(got, want, func(got, want uint64) bool { return got == want || want == some && got > 0 })
}

// watched reads the status of an instance all the time, as a page or a metric may, and
// complains of what cannot be. The end of it is returned.
func (i *instance) watched() (end func()) {
	b, t, done := i.bridge, i.w.t, atomic.Bool{}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		last := bridge.Status{}
		for !done.Load() {
			s := b.Status()
			switch {
			case s.Realm != simRealm || s.State == "" || s.Since.IsZero() || s.Since.After(time.Now()):
				t.Errorf("no status: %+v", s)
			case s.Leads != (s.Leader == i.name+"1"), s.Leads && s.State == bridge.Standby,
				s.Leads && s.State == bridge.Stopped:
				t.Errorf("it leads: %v; in the state %s, with the leader %q", s.Leads, s.State, s.Leader)
			case s.Late > 20*time.Second:
				t.Errorf("a sign of life is due for %v", s.Late)
			case last.Ready && !s.Ready, s.Ready != (s.Ready || s.Leads || s.State == bridge.Standby):
				t.Errorf("ready: %v, in the state %s; it leads: %v", s.Ready, s.State, s.Leads)
			case s.Queue != "" && s.Queue == last.Queue && s.LastEventID < last.LastEventID &&
				len(s.Counters.Gaps) == 0:
				t.Errorf("it went back from event %d to %d", last.LastEventID, s.LastEventID)
			}
			before := counted(last.Counters)
			for name, n := range counted(s.Counters) {
				if delete(before, name); n < counted(last.Counters)[name] {
					t.Errorf("the counter of %q went back to %d", name, n)
				}
			}
			if len(before) > 0 {
				t.Errorf("counters are gone: %v", before)
			}
			last = s
			time.Sleep(time.Second / 10)
		}
	}()
	return func() { done.Store(true); <-ended }
}

// holds compares what an instance that did all the work has counted with what the stream
// ever stored.
func (i *instance) holds() {
	all, bytes := map[string]uint64{}, 0
	for _, m := range i.w.jet.Ever(0) {
		bytes += len(m.Data)
		if size := first(m, events.HeaderSize); size != "" {
			all["oversize"]++
			n := 0
			_, _ = fmt.Sscan(size, &n)
			bytes += n
		}
		if name := countedAs(m); name != "" {
			all[name]++
		}
	}
	all["bytes"] = uint64(bytes)
	got := counted(i.bridge.Status().Counters)
	maps.DeleteFunc(got, func(name string, _ uint64) bool {
		return !strings.HasPrefix(name, "event ") && name != "bytes" && name != "oversize" &&
			!slices.Contains(storedKinds, name)
	})
	if !maps.Equal(got, all) {
		i.w.t.Errorf("counted are\n%v; the stream has\n%v", got, all)
	}
}

// TestStatus is the table of faults: what each sets while it lasts, and which counters it
// has raised when it is over. A message is sent while it lasts.
func TestStatus(t *testing.T) {
	failing := func(op string, kind stream.Kind) func(w *world, one *instance) {
		return func(w *world, one *instance) {
			w.jet.SetFaults(func(now string) (f model.Fault) {
				if now == op {
					f.Fail = kind
				}
				return f
			})
		}
	}
	zulip := func(f zulipsim.Fault) func(w *world, one *instance) {
		return func(w *world, one *instance) { w.zulip.Fault(f) }
	}
	lost := func(f zulipsim.Fault) func(w *world, one *instance) {
		return func(w *world, one *instance) {
			w.zulip.Fault(f)
			w.expire()
		}
	}
	emit := func(event map[string]any) func(w *world, one *instance) {
		return func(w *world, one *instance) { w.zulip.Emit(event) }
	}
	large := map[string]any{"type": "drafts", "op": "add", "text": strings.Repeat("x", 30000)}
	const refusal = `{"result":"error","msg":"Invalid narrow","code":"BAD_REQUEST"}`
	for _, test := range []struct {
		name   string
		fault  func(w *world, one *instance)
		lasts  time.Duration
		state  bridge.State
		wrong  string // the sides, and the beginning of why
		gap    string // the cause, where one is open
		raises map[string]uint64
	}{
		{"nothing", func(*world, *instance) {}, time.Minute, bridge.Following, "", "",
			map[string]uint64{"event message": 1}},
		{"NATS away", func(w *world, _ *instance) { w.setDown(true) }, time.Minute, bridge.WaitingNATS,
			"nats: not connected", "", map[string]uint64{"event message": 1, "error nats: unavailable": some}},
		{"a full stream", failing("append", stream.Full), time.Minute, bridge.WaitingNATS, "nats: refused by the model",
			"", map[string]uint64{"event message": 1, "error nats: full": some}},
		{"a write that is refused", func(w *world, one *instance) {
			n := 0
			w.jet.SetFaults(func(op string) (f model.Fault) {
				if n++; op == "append" && n == 1 {
					f.Fail = stream.Refused
				}
				return f
			})
		}, time.Minute, bridge.Following, "", "", map[string]uint64{"event message": 1, "error nats: refused": 1}},
		{"a stream that is deleted", func(w *world, _ *instance) { w.jet.Delete() }, time.Minute,
			bridge.Following, "", "",
			map[string]uint64{"error nats: gone": some, "gap tail": 1, "refilled": 4, "skipped": 1}},
		{"502", zulip(zulipsim.BadGateway()), time.Minute, bridge.WaitingZulip, "zulip: Zulip answers 502", "",
			map[string]uint64{"event message": 1, "polls failed": some, "error zulip: server": some}},
		{"no connection", zulip(zulipsim.Fault{Reset: true}), time.Minute, bridge.WaitingZulip,
			"zulip: Zulip cannot be reached", "",
			map[string]uint64{"event message": 1, "polls failed": some, "error zulip: connection": some}},
		{"401", zulip(zulipsim.Unauthorized()), time.Minute, bridge.WaitingZulip,
			"zulip: Zulip at http://zulip.test does not let", "",
			map[string]uint64{"event message": 1, "polls failed": some, "error zulip: key": some}},
		{"429", func(w *world, _ *instance) {
			f := zulipsim.TooMany("100")
			f.Times = 1
			w.zulip.Fault(f)
		}, time.Minute, bridge.WaitingZulip, "zulip: Zulip answers 429", "",
			map[string]uint64{"event message": 1, "polls limited": 1, "rate limited": 1}},
		{"a lost queue, and registering takes a while",
			lost(zulipsim.Fault{On: zulipsim.Register, Delay: 20 * time.Second}), 15 * time.Second,
			bridge.Registering, "", "Zulip has dropped the queue",
			map[string]uint64{"refilled": 1, "polls refused": 2, "error zulip: refused": 2, "gap dropped": 1,
				"queues": 1}},
		{"a lost queue, and history takes a while",
			lost(zulipsim.Fault{On: zulipsim.History, Skip: 1, Delay: 20 * time.Second}), 15 * time.Second,
			bridge.Refilling, "", "Zulip has dropped the queue",
			map[string]uint64{"refilled": 1, "polls refused": 2, "error zulip: refused": 2, "gap dropped": 1,
				"queues": 1}},
		{"a lost queue, and history answers 502",
			lost(zulipsim.Fault{On: zulipsim.History, Skip: 1, Status: 502, Body: "<html>"}), time.Minute,
			bridge.WaitingZulip, "zulip: Zulip answers 502", "Zulip has dropped the queue",
			map[string]uint64{"refilled": 1, "polls refused": 2, "error zulip: refused": 2,
				"error zulip: server": some, "gap dropped": 1, "queues": 1}},
		{"a lost queue, and none is registered",
			lost(zulipsim.Fault{On: zulipsim.Register, Status: 400, Body: refusal}), time.Minute,
			bridge.WaitingZulip, "zulip: Zulip refuses POST /api/v1/register", "Zulip has dropped the queue",
			map[string]uint64{"refilled": 1, "polls refused": 2, "error zulip: refused": some, "gap dropped": 1,
				"queues": 1}},
		{"another account", func(w *world, _ *instance) { w.replaceAccount() }, time.Minute, bridge.Following, "", "",
			map[string]uint64{"event message": 1, "polls refused": 2, "polls failed": 1, "error zulip: refused": 2,
				"error zulip: key": 1, "gap account": 1, "queues": 1}},
		{"the stream lost its end", func(w *world, _ *instance) { w.jet.Restore(1) }, time.Minute,
			bridge.Following, "", "",
			map[string]uint64{"refilled": 2, "skipped": 1, "gap tail": 1, "polls refused": 1,
				"error zulip: refused": 1}},
		{"an event of a type that is not known", emit(map[string]any{"type": "brand_new"}), time.Minute,
			bridge.Following, "", "", map[string]uint64{"event message": 1, "event other": 1}},
		{"a type that is no token", emit(map[string]any{"type": "a.b"}), time.Minute, bridge.Following, "", "",
			map[string]uint64{"event message": 1, "rejected": 1}},
		{"a large event", emit(large), time.Minute, bridge.Following, "", "",
			map[string]uint64{"event message": 1, "event drafts": 1, "oversize": 1}},
		{"a large event that is waited for", func(w *world, one *instance) {
			failing("put object", stream.Full)(w, one)
			w.zulip.Emit(large)
		}, 5 * time.Minute, bridge.WaitingNATS, "nats: refused by the model; object store: refused by the model", "",
			map[string]uint64{"event message": 1, "event drafts": 1, "oversize": 1, "error object store: full": some}},
		{"a large event that is given up", func(w *world, one *instance) {
			failing("put object", stream.Full)(w, one)
			w.zulip.Emit(large)
		}, 15 * time.Minute, bridge.Following, "object store: refused by the model", "",
			map[string]uint64{"event message": 1, "rejected": 1, "error object store: full": some}},
		{"a large event that no store takes", func(w *world, one *instance) {
			failing("put object", stream.TooLarge)(w, one)
			w.zulip.Emit(large)
		}, time.Minute, bridge.Following, "", "",
			map[string]uint64{"event message": 1, "rejected": 1, "error object store: too large": 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.truncated = true
				w.jet.MaxPayload = 20000
				one.follows(3)
				end := one.watched()
				defer end()
				before := one.bridge.Status()
				if s := before; s.State != bridge.Following || !s.Leads || len(s.Wrong) > 0 || s.Gap != nil ||
					s.Queue != w.zulip.Queues()[0].ID || s.LastEventID < 2 || time.Since(s.Stored) > time.Second ||
					time.Since(s.Answered) > time.Second || s.StoredSeq != uint64(len(w.jet.Messages())) ||
					s.Expires.Before(time.Now()) {
					t.Errorf("before: %+v", s)
				}
				test.fault(w, one)
				began := time.Now()
				w.say(1)
				time.Sleep(test.lasts)
				s, wrong := one.bridge.Status(), []string{}
				for side, state := range s.Wrong {
					wrong = append(wrong, side+": "+state.Text)
					if late := state.Since.Sub(began); late < 0 || late > 5*time.Second {
						t.Errorf("%s: since %v behind the beginning", side, late)
					}
				}
				slices.Sort(wrong)
				want := strings.Split(test.wrong, "; ")
				if test.wrong == "" {
					want = nil
				}
				if s.State != test.state || !slices.EqualFunc(wrong, want, strings.HasPrefix) {
					t.Errorf("it is %s, %q is wrong; want %s and %q", s.State, wrong, test.state, test.wrong)
				}
				if cause := (bridge.Gap{}); s.Gap != nil {
					if cause = *s.Gap; cause.Cause != test.gap || cause.Since.Sub(before.Stored).Abs() > time.Second {
						t.Errorf("the gap is %+v, want %q since %v", cause, test.gap, before.Stored)
					}
				} else if test.gap != "" {
					t.Errorf("no gap is open, want %q", test.gap)
				}
				w.jet.SetFaults(nil)
				w.setDown(false)
				w.zulip.ClearFaults()
				time.Sleep(3 * time.Minute)
				if s := one.bridge.Status(); s.State != bridge.Following || s.Gap != nil ||
					len(s.Wrong) > 0 && s.Wrong[bridge.SideObjects] == (health.State{}) {
					t.Errorf("behind it: %+v", s)
				}
				now := one.bridge.Status().Counters
				if got := raised(before.Counters, now); !sameCounts(got, test.raises) {
					t.Errorf("raised\n%v, want\n%v", got, test.raises)
				}
				if opened := len(now.Gaps) > 0; opened == now.LastGap.IsZero() || opened && now.LastGap.Before(began) {
					t.Errorf("gaps %v were opened since %v, the last at %v", now.Gaps, began, now.LastGap)
				}
				one.holds()
				one.stop()
				if s := one.bridge.Status(); s.State != bridge.Stopped || s.Leads || s.Queue != "" {
					t.Errorf("stopped: %+v", s)
				}
			})
		})
	}
}

// TestStatusOfAStandby: who stands by says who leads, and has no times.
func TestStatusOfAStandby(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.lease = &simLease{ttl: 4 * time.Second}
		two := w.instance()
		one.follows(3)
		two.start()
		defer two.watched()()
		time.Sleep(time.Second)
		s := two.bridge.Status()
		s.Since = s.Since.Round(time.Second)
		want := bridge.Status{Realm: simRealm, State: bridge.Standby, Ready: true,
			Since: time.Now().Add(-time.Second).Round(time.Second), Leader: "a1", LastEventID: -1}
		if fmt.Sprintf("%+v", s) != fmt.Sprintf("%+v", want) {
			t.Errorf("the standby is\n%+v, want\n%+v", s, want)
		}
		one.kill()
		w.say(2)
		time.Sleep(10 * time.Second)
		if s := two.bridge.Status(); s.State != bridge.Following || !s.Leads || s.Leader != "b1" || s.Queue == "" ||
			s.Counters.Events["message"] != 2 || s.Counters.Queues != 0 {
			t.Errorf("behind the takeover: %+v", s)
		}
	})
}

// TestStatusOfWhoLedOnce: what was wrong with NATS when it led is no matter of a
// standby's.
func TestStatusOfWhoLedOnce(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.lease = &simLease{ttl: 4 * time.Second, shared: true}
		two := w.instance()
		one.follows(3)
		two.start()
		w.setDown(true)
		w.say(1)
		time.Sleep(30 * time.Second)
		if s := one.bridge.Status(); s.State != bridge.WaitingNATS || s.Leads {
			t.Errorf("NATS is away, and the lease lost: %+v", s)
		}
		one.gate.close()
		w.setDown(false)
		time.Sleep(10 * time.Second)
		one.gate.open()
		time.Sleep(10 * time.Second)
		if s := one.bridge.Status(); s.State != bridge.Standby || s.Leader != "b1" || len(s.Wrong) > 0 {
			t.Errorf("another leads: %+v", s)
		}
	})
}

// TestStatusOfALostLease: who has lost the lease leads no more, and says so.
func TestStatusOfALostLease(t *testing.T) {
	story(t, func(w *world, one *instance) {
		l, trouble := w.scriptedLease(), health.Condition{}
		scripted := w.configure
		w.configure = func(c *bridge.Config) {
			scripted(c)
			c.LeaseTrouble = &trouble
		}
		one.follows(3)
		trouble.Set("renewal", "NATS is away")
		if s := one.bridge.Status(); s.State != bridge.Following || s.Wrong[bridge.SideLease].Text != "NATS is away" {
			t.Errorf("the lease cannot be renewed: %s, %v", s.State, s.Wrong)
		}
		l.end()
		time.Sleep(time.Second)
		if s := one.bridge.Status(); s.State != bridge.Starting || !s.Ready || s.Leads || s.Leader != "" || s.Queue != "" ||
			!s.Answered.IsZero() || s.Wrong[bridge.SideLease].Text == "" || s.Counters.Events["message"] != 3 {
			t.Errorf("the lease is lost: %+v", s)
		}
	})
}

// TestStatusWithoutConnection: a connection that does not come back at once is told while
// a poll still waits, and there is nothing to store.
func TestStatusWithoutConnection(t *testing.T) {
	story(t, func(w *world, one *instance) {
		down := health.Condition{}
		w.configure = func(c *bridge.Config) { c.Disconnected = &down }
		one.follows(3)
		down.Set("lost", "EOF")
		time.Sleep(time.Second)
		if s := one.bridge.Status(); s.State != bridge.Following || len(s.Wrong) > 0 {
			t.Errorf("a reconnect: %s, %v", s.State, s.Wrong)
		}
		time.Sleep(9 * time.Second)
		if s := one.bridge.Status(); s.State != bridge.WaitingNATS || s.Wrong[bridge.SideNATS].Text != "EOF" ||
			time.Since(s.Since) != 10*time.Second {
			t.Errorf("no connection: %s since %v, %v", s.State, s.Since, s.Wrong)
		}
		down.Clear()
		if s := one.bridge.Status(); s.State != bridge.Following || len(s.Wrong) > 0 {
			t.Errorf("it is back: %s, %v", s.State, s.Wrong)
		}
	})
}

// TestStatusAtTheStart: nothing is there yet, and what is waited for is said.
func TestStatusAtTheStart(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.configure = func(c *bridge.Config) {
			open := c.Open
			c.Open = func(ctx context.Context) (bridge.Stream, error) {
				s, err := open(ctx)
				if err != nil { // the log does not tell of it: the connection does
					err = fmt.Errorf("NATS is not there: %w", nats.ErrDisconnected)
				}
				return s, err
			}
		}
		w.setDown(true)
		one.start()
		defer one.watched()()
		time.Sleep(time.Minute)
		if s := one.bridge.Status(); s.State != bridge.WaitingNATS || time.Since(s.Since) < 59*time.Second ||
			s.Wrong[bridge.SideNATS].Text == "" || s.LastEventID != -1 {
			t.Errorf("NATS is not there: %+v", s)
		}
		w.setDown(false)
		w.zulip.Fault(zulipsim.BadGateway())
		time.Sleep(time.Minute)
		if s := one.bridge.Status(); s.State != bridge.WaitingZulip || len(s.Wrong) != 1 || s.Gap != nil {
			t.Errorf("Zulip is not there: %+v", s)
		}
		w.zulip.ClearFaults()
		time.Sleep(time.Minute)
		if s := one.bridge.Status(); s.State != bridge.Following || len(s.Wrong) != 0 || s.Counters.Queues != 1 {
			t.Errorf("all is there: %+v", s)
		}
	})
}

// TestStatusOfARefill: a start in the past is no gap, and a start in the middle of a gap
// knows it.
func TestStatusOfARefill(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.zulip.Account(simAccount)
		w.say(5)
		w.configure = func(c *bridge.Config) { c.StartFrom = bridge.StartFrom{MessageID: 1} }
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, Skip: 1, Delay: 20 * time.Second})
		one.start()
		time.Sleep(15 * time.Second)
		if s := one.bridge.Status(); s.State != bridge.Refilling || s.Gap != nil {
			t.Errorf("a start in the past: %s, gap %+v", s.State, s.Gap)
		}
		w.zulip.ClearFaults()
		time.Sleep(time.Minute)
		lost := one.bridge.Status().Stored
		for skip, on := range []zulipsim.Kind{zulipsim.Register, zulipsim.History} {
			w.say(3)
			time.Sleep(time.Second)
			w.zulip.Fault(zulipsim.Fault{On: on, Skip: skip, Status: 502, Body: "<html>"})
			w.expire()
			w.say(2)
			time.Sleep(10 * time.Second)
			one.kill()
			one.start()
			time.Sleep(10 * time.Second)
			s := one.bridge.Status()
			if s.State != bridge.WaitingZulip || s.Gap == nil || s.Gap.Cause != "Zulip has dropped the queue" ||
				s.Gap.Since.Before(lost) || time.Since(s.Gap.Since) > 30*time.Second || len(s.Counters.Gaps) > 0 {
				t.Errorf("%s fails, behind a restart: %+v, gap %+v", on, s, s.Gap)
			}
			w.zulip.ClearFaults()
			time.Sleep(time.Minute)
			lost = time.Now()
			if s = one.bridge.Status(); s.Gap != nil || s.Counters.Refilled != 2 {
				t.Errorf("behind it: %+v", s)
			}
		}
		one.stop()
		w.configure = func(c *bridge.Config) { c.DeleteQueue = true }
		one.start()
		time.Sleep(10 * time.Second)
		one.stop()
		if got := counted(one.bridge.Status().Counters); got["gap retired"] != 1 {
			t.Errorf("a queue was retired: %v", got)
		}
	})
}

// TestStatusOfAStreamThatIsGone: a stream whose past is gone is a gap of its own kind.
func TestStatusOfAStreamThatIsGone(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		one.follows(3)
		one.stop()
		w.jet.Purge()
		one.start()
		time.Sleep(time.Minute)
		if got := counted(one.bridge.Status().Counters); got["gap past"] != 1 || got["queues"] != 1 {
			t.Errorf("counted: %v", got)
		}
	})
}
