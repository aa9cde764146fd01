package poller

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"zulip-nats/zulipsim"
)

// TestCallersTime: the time that the caller takes between two pieces of an answer is no
// silence.
func TestCallersTime(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.register()
		w.sim.FillAnswer(w.at.Queue, 50_000, func(dst []byte, id int64) []byte {
			return fmt.Appendf(dst, `{"type":"presence","x":%q,"id":%d}`, strings.Repeat("x", 100), id)
		})
		before, got := w.tap.count(), 0
		for got < 50_000 {
			got += len(w.next())
			time.Sleep(5 * time.Minute)
		}
		if n := w.tap.count() - before; n != 1 || got != 50_000 {
			t.Errorf("%d polls, %d events", n, got)
		}
	})
}

// TestPieces: only a call that continues where the batch before ended gets the next
// piece; any other asks anew.
func TestPieces(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.register()
		w.sim.FillAnswer(w.at.Queue, 3500,
			func(dst []byte, id int64) []byte { return fmt.Appendf(dst, `{"type":"presence","id":%d}`, id) })
		b, err := w.Next(t.Context(), w.at)
		if err != nil || len(b.Events) != 1000 {
			t.Fatalf("%d events, %v", len(b.Events), err)
		}
		w.at.Last = 499 // half of it was stored
		before := w.tap.count()
		if got := w.next(); got[0].ID != 500 || len(got) != 1000 || w.tap.count() != before+1 {
			t.Errorf("%d events from %d", len(got), got[0].ID)
		}
		for w.at.Last < 3499 {
			w.next()
		}
		if w.tap.count() != before+1 {
			t.Errorf("%d polls", w.tap.count()-before)
		}
		// A stop in the middle of waiting leaves nothing behind and loses nothing.
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := w.Next(ctx, w.at); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stopped with %v", err)
		}
		w.send(1)
		w.next()
	})
}

// An answer to a poll that waited ends where a piece ends: that is no poll without events.
func TestAnswerThatEndsWithAPiece(t *testing.T) {
	for _, soon := range []bool{false, true} {
		bubble(t, nil, func(t *testing.T, w *world) {
			w.Client.MaxBatch = 2
			w.register()
			time.AfterFunc(10*time.Second, func() {
				w.sim.FillAnswer(w.at.Queue, 4,
					func(dst []byte, id int64) []byte { return fmt.Appendf(dst, `{"type":"presence","id":%d}`, id) })
			})
			w.next()
			if soon {
				b := w.Soon(t.Context(), w.at)
				if len(b.Events) != 2 || !b.More {
					t.Fatalf("the rest is %+v", b)
				}
				w.at.Last = b.Events[1].ID
				if b = w.Soon(t.Context(), w.at); len(b.Events) > 0 || b.More || !b.Waited {
					t.Errorf("behind it comes %+v", b)
				}
				if b = w.Soon(t.Context(), w.at); len(b.Events) > 0 || b.More || b.Waited {
					t.Errorf("and then %+v", b)
				}
			} else {
				w.next()
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if b, err := w.Next(ctx, w.at); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the next poll ends with %+v, %v", b, err)
			}
		})
	}
}

// Soon asks nobody and waits for nothing: the rest of an answer that is not there, or one
// that was asked for elsewhere, is none.
func TestSoon(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.Client.MaxBatch = 2
		w.register()
		if b := w.Soon(t.Context(), w.at); len(b.Events) > 0 || b.More {
			t.Errorf("without an answer: %+v", b)
		}
		w.send(7)
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 1, Trickle: 1500, TricklePause: 20 * time.Second})
		w.next()
		polls, began := w.tap.count(), time.Now()
		if b := w.Soon(t.Context(), Position{w.at.Queue, w.at.Last - 1}); len(b.Events) > 0 || b.More {
			t.Errorf("from where the answer does not go on: %+v", b)
		}
		for range 20 {
			b := w.Soon(t.Context(), w.at)
			if len(b.Events) > 0 {
				w.at.Last = b.Events[len(b.Events)-1].ID
			}
			if !b.More {
				t.Errorf("at event %d nothing is to come", w.at.Last)
			}
		}
		if took := time.Since(began); took > 20*time.Second || w.tap.count() != polls || w.at.Last > 3 {
			t.Errorf("it took %v and %d polls, up to event %d", took, w.tap.count()-polls, w.at.Last)
		}
		for w.at.Last < 6 {
			w.next()
		}
		if w.tap.count() != polls {
			t.Errorf("%d polls for one answer", w.tap.count()-polls+1)
		}
	})
}

func TestRefusals(t *testing.T) {
	bubble(t, func(s *zulipsim.Server) {
		s.Tolerate = []zulipsim.Complaint{zulipsim.AckNotDelivered, zulipsim.AckPruned, zulipsim.AckNotStored}
	}, func(t *testing.T, w *world) {
		w.register()
		w.send(5)
		w.next()
		kind := func(at Position) (RefusedKind, error) {
			_, err := w.Next(t.Context(), at)
			refused, ok := errors.AsType[*RefusedError](err)
			if !ok {
				t.Fatalf("from %+v: %v", at, err)
			}
			return refused.Kind, refused
		}
		if k, err := kind(Position{w.at.Queue, 999}); k != NotInQueue ||
			!strings.Contains(err.Error(), "Event 999 was not in this queue") {
			t.Error(k, err)
		}
		if k, err := kind(Position{w.at.Queue, -1}); k != Pruned {
			t.Error(k, err)
		}
		if k, err := kind(Position{"no-such-queue", -1}); k != BadQueue ||
			!strings.Contains(err.Error(), "BAD_EVENT_QUEUE_ID") {
			t.Error(k, err)
		}
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 1, Status: 400,
			Body: `{"result":"error","msg":"odd","code":"BAD_REQUEST"}`})
		if k, err := kind(w.at); k != RefusedOther {
			t.Error(k, err)
		}
		if err := w.Probe(t.Context(), w.at); err != nil {
			t.Errorf("the queue lives, and Probe says %v", err)
		}
		w.sim.ExpireQueue(w.at.Queue)
		if refused, ok := errors.AsType[*RefusedError](w.Probe(t.Context(), w.at)); !ok || refused.Kind != BadQueue {
			t.Error("the queue is gone, and Probe does not say so")
		}
		// A caller that asks again and again is slowed down as well.
		before := w.tap.count()
		for range 30 {
			kind(w.at)
		}
		w.slow(w.tap.since(before))
	})
	for text, want := range map[[2]string]RefusedKind{
		{"", "Bad event queue id: 5"}: BadQueue, {"", "Bad event queue ID: 5"}: BadQueue,
		{"BAD_EVENT_QUEUE_ID", "Ungültig"}:                                 BadQueue,
		{"BAD_REQUEST", "Bad event queue ID"}:                              RefusedOther,
		{"BAD_REQUEST", "An event newer than -1 has already been pruned!"}: Pruned,
	} {
		if got := refusedKind(text[0], text[1]); got != want {
			t.Errorf("%q is %v", text, got)
		}
	}
}

// fill puts n presence events of size bytes or so into the queue.
func (w *world) fill(n, size int) {
	for i := range n {
		w.sim.EmitRaw(fmt.Sprintf(`{"type":"presence","n":%d,"x":%q,"id":%%ID%%}`, i, strings.Repeat("x", size)))
	}
}

// drain drains the queue and returns the ids of the events in it, and in how many batches
// they came. The position moves along.
func (w *world) drain() (ids []int64, batches int) {
	w.t.Helper()
	err := w.Drain(w.t.Context(), w.at, func(b *Batch) error {
		if len(b.Events) == 0 {
			w.t.Error("called without events")
		}
		batches++
		for _, e := range b.Events {
			ids = append(ids, e.ID)
			w.at.Last = max(w.at.Last, e.ID)
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return ids, batches
}

// upTo fails unless ids are those from first to last.
func upTo(t *testing.T, ids []int64, first, last int64) {
	t.Helper()
	for i, id := range ids {
		if id != first+int64(i) {
			t.Fatalf("event %d is %d, want %d", i, id, first+int64(i))
		}
	}
	if int64(len(ids)) != last-first+1 {
		t.Fatalf("%d events, want %d to %d", len(ids), first, last)
	}
}

// TestProbe: it tells whether the queue lives, and changes nothing about what a Next
// gets, nor what it acknowledges.
func TestProbe(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.register()
		probe := func() {
			t.Helper()
			before := w.tap.count()
			if err := w.Probe(t.Context(), w.at); err != nil {
				t.Fatal(err)
			}
			seen := w.tap.since(before)
			if len(seen) != 1 || seen[0].req.URL.Query().Get("dont_block") != "true" {
				t.Errorf("%d polls", len(seen))
			}
		}
		probe() // nothing is pending: at once
		w.fill(300, 1000)
		probe()
		before := w.tap.count()
		first := w.next()
		if len(first) == 300 || first[0].ID != 0 || w.tap.count() != before+1 {
			t.Errorf("%d events from %d, %d polls", len(first), first[0].ID, w.tap.count()-before)
		}
		// In the middle of an answer: what is left of it is asked for again.
		probe()
		before = w.tap.count()
		w.next()
		for w.at.Last < 299 {
			w.next()
		}
		if w.tap.count() != before+1 {
			t.Errorf("%d polls", w.tap.count()-before)
		}
		// At another position than the one before: each call asks for what it is told.
		w.fill(1, 10)
		back := w.at
		w.next()
		if err := w.Probe(t.Context(), back); err != nil {
			t.Fatal(err)
		}
		w.fill(1, 10)
		if got := w.next(); got[0].ID != 301 {
			t.Errorf("event %d", got[0].ID)
		}
		// Nor does it matter that what Probe saw moves no position.
		for i := range 2 {
			w.sim.EmitRaw(fmt.Sprintf(`{"type":"odd","n":%d,"x":%q}`, i, strings.Repeat("x", 100<<10)))
		}
		probe()
		if got := w.next(); !strings.HasPrefix(string(got[0].Raw), `{"type":"odd","n":0,`) {
			t.Errorf("the first event is %.30s", got[0].Raw)
		}
		w.Close()
		// A page of HTML is no sign of life.
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 2, Status: 200, Body: "<html>log in to the hotel"})
		before = w.tap.count()
		if err := w.Probe(t.Context(), w.at); err != nil || w.tap.count() != before+3 {
			t.Errorf("%v after %d polls", err, w.tap.count()-before)
		}
		if err := w.Delete(t.Context(), w.at.Queue); err != nil {
			t.Error(err)
		}
		if err := w.Delete(t.Context(), w.at.Queue); err != nil {
			t.Errorf("deleted twice: %v", err)
		}
		if qs := w.sim.Queues(); len(qs) != 1 || qs[0].Dead == "" {
			t.Errorf("%+v", qs)
		}
	})
}

// TestDrain: whatever was in the queue when it was called comes, whatever answer was in
// hand.
func TestDrain(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.register()
		start := time.Now()
		if ids, n := w.drain(); n != 0 {
			t.Errorf("nothing gives %d batches, %v", n, ids)
		}
		// An answer in several batches, half read; then more events.
		w.fill(300, 1000)
		got := int64(len(w.next()))
		if got == 300 {
			t.Fatal("one batch was enough")
		}
		w.fill(300, 1000)
		before := w.tap.count()
		ids, batches := w.drain()
		upTo(t, ids, got, 599)
		if n := w.tap.count() - before; n != 1 || batches < 3 {
			t.Errorf("%d polls, %d batches", n, batches)
		}
		// The answer in hand was read up to its end; and the Next behind a Drain asks
		// anew.
		w.fill(1, 10)
		w.next()
		w.fill(1, 10)
		ids, _ = w.drain()
		upTo(t, ids, 601, 601)
		w.fill(1, 10)
		if e := w.next(); e[0].ID != 602 {
			t.Errorf("event %d", e[0].ID)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// TestDrainBroken: an answer that breaks in the middle is asked for again from what was
// taken, and the new one is as fresh.
func TestDrainBroken(t *testing.T) {
	for name, f := range map[string]zulipsim.Fault{"half a body": {HalfBody: true}, "gzip cut short": {GzipCut: true},
		"502": {Status: 502, Body: "<html>"}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, w *world) {
				w.register()
				w.fill(400, 1000)
				f.On, f.Times = zulipsim.Events, 2
				w.sim.Fault(f)
				before := w.tap.count()
				ids, _ := w.drain()
				upTo(t, ids, 0, 399)
				if n := w.tap.count() - before; n != 3 {
					t.Errorf("%d polls", n)
				}
			})
		})
	}
	bubble(t, nil, func(t *testing.T, w *world) {
		w.register()
		w.fill(400, 1000)
		// An error of the caller's ends it in the middle, and what was not taken comes
		// again.
		enough := errors.New("enough")
		if err := w.Drain(t.Context(), w.at, func(b *Batch) error { return enough }); err != enough {
			t.Errorf("ended with %v", err)
		}
		ids, _ := w.drain()
		upTo(t, ids, 0, 399)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, Hang: true, Times: 1})
		if err := w.Drain(ctx, w.at, func(*Batch) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stopped with %v", err)
		}
		w.sim.ExpireQueue(w.at.Queue)
		err := w.Drain(t.Context(), w.at, func(*Batch) error { return nil })
		if refused, ok := errors.AsType[*RefusedError](err); !ok || refused.Kind != BadQueue {
			t.Errorf("the queue is gone, and Drain says %v", err)
		}
	})
}

// TestClockNotKnown: what nobody told counts as old, until a poll has waited.
func TestClockNotKnown(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		start := time.Now()
		w.register()
		if w.ClockOverdue() || w.Expires() != start.Add(w.reg.Life) {
			t.Errorf("a new queue: overdue %v, expires %v", w.ClockOverdue(), w.Expires())
		}
		for name, renewed := range map[string]time.Time{"not told": {},
			"a clock ahead of ours": time.Now().Add(time.Minute)} {
			w.Follow(Queue{ID: w.at.Queue, Life: time.Hour, Renewed: renewed})
			if !w.ClockOverdue() || !w.Expires().IsZero() {
				t.Errorf("%s: overdue %v, expires %v", name, w.ClockOverdue(), w.Expires())
			}
		}
		w.send(1)
		if w.next(); !w.ClockOverdue() || !w.Expires().IsZero() {
			t.Error("a poll that did not wait set the clock")
		}
		w.Follow(Queue{ID: "another", Life: time.Hour})
		time.AfterFunc(30*time.Second, func() { w.send(1) })
		if w.next(); !w.ClockOverdue() || !w.Expires().IsZero() {
			t.Error("a poll of another queue set the clock")
		}
		w.Follow(Queue{ID: w.at.Queue, Life: time.Hour})
		start = time.Now()
		time.AfterFunc(30*time.Second, func() { w.send(1) })
		if w.next(); w.ClockOverdue() || w.Expires() != start.Add(time.Hour) {
			t.Errorf("a poll has waited: overdue %v, expires %v", w.ClockOverdue(), w.Expires())
		}
	})
	bubble(t, nil, func(t *testing.T, w *world) {
		if w.ClockOverdue() || !w.Expires().IsZero() {
			t.Error("the clock of no queue is overdue")
		}
	})
}

// TestRegisterOutlivesItsContext: a queue that Zulip makes while we stop is told to the
// caller, who can delete it.
func TestRegisterOutlivesItsContext(t *testing.T) {
	for _, test := range []struct {
		name   string
		fault  zulipsim.Fault
		stop   time.Duration // after the call
		queue  bool
		took   time.Duration
		second bool // the first request was answered, so another may come
	}{
		{"answered in time", zulipsim.Fault{Delay: 3 * time.Second}, time.Second, true, 3 * time.Second, false},
		{"answered too late", zulipsim.Fault{Delay: 10 * time.Second}, time.Second, false,
			time.Second + registerGrace, false},
		{"never answered", zulipsim.Fault{Hang: true}, time.Second, false, time.Second + registerGrace, false},
		{"failed meanwhile", zulipsim.Fault{Delay: 2 * time.Second, Status: 502, Body: "<html>"}, time.Second, false,
			2 * time.Second, false},
		{"refused meanwhile", zulipsim.Fault{Delay: 2 * time.Second, Status: 400,
			Body: `{"result":"error","msg":"no","code":"BAD_REQUEST"}`}, time.Second, false, 2 * time.Second, false},
		{"between two tries", zulipsim.TooMany("30"), 10 * time.Second, false, 10 * time.Second, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, w *world) {
				w.sim.Fault(test.fault)
				ctx, cancel := context.WithTimeout(t.Context(), test.stop)
				defer cancel()
				start := time.Now()
				r, err := w.Register(ctx)
				if took := time.Since(start); took != test.took {
					t.Errorf("it took %v, want %v", took, test.took)
				}
				if test.queue && (err != nil || len(w.sim.Queues()) != 1 || w.sim.Queues()[0].ID != r.QueueID) ||
					!test.queue && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%+v, %v", r, err)
				}
				// Over is over: no other request, not even the first.
				if r, err := w.Register(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("once more: %+v, %v", r, err)
				}
				if n := w.tap.count(); n != 1 {
					t.Errorf("%d requests", n)
				}
			})
		})
	}
}

// TestAccountAccessor: whose queue it is can be asked for, from any goroutine.
func TestAccountAccessor(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		if email, site := w.Account(); email+site != "" {
			t.Errorf("before the first request: %s at %s", email, site)
		}
		w.register()
		if email, site := w.Account(); email != w.bot.Email || site != "http://zulip.test" {
			t.Errorf("%s at %s", email, site)
		}
		other := w.sim.Account("other-bot@example.com")
		w.Client.Account = func() (Account, error) {
			return Account{Email: other.Email, Key: other.Key, Site: "http://zulip.test"}, nil
		}
		w.bot.RegenerateKey()
		var wg sync.WaitGroup
		wg.Go(func() {
			for range 100 {
				w.Account()
				time.Sleep(time.Millisecond)
			}
		})
		if _, err := w.Next(t.Context(), w.at); asRefused(err) != BadQueue {
			t.Errorf("another's queue gives %v", err)
		}
		wg.Wait()
		if email, _ := w.Account(); email != other.Email {
			t.Errorf("the queue was asked for by %s", email)
		}
	})
}

func asRefused(err error) RefusedKind {
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return refused.Kind
	}
	return -1
}

// TestPiecesOfAnotherQueue: an answer that is half read serves no other queue, though the
// position be the same.
func TestPiecesOfAnotherQueue(t *testing.T) {
	bubble(t, func(s *zulipsim.Server) {
		s.Tolerate = []zulipsim.Complaint{zulipsim.AckNotDelivered} // not by this queue
	}, func(t *testing.T, w *world) {
		w.register()
		first := w.at
		w.register()
		w.fill(300, 1000)
		w.at.Queue = first.Queue
		w.next()
		w.at.Queue = w.reg.QueueID
		before := w.tap.count()
		w.next()
		if seen := w.tap.since(before); len(seen) != 1 || seen[0].req.URL.Query().Get("queue_id") != w.reg.QueueID {
			t.Errorf("%d polls", len(seen))
		}
	})
}

// TestCloseEndsWhatWasStarted: a Poller that is closed leaves nothing running, wherever
// it was.
func TestCloseEndsWhatWasStarted(t *testing.T) {
	running := func(what string) int {
		buf := make([]byte, 4<<20)
		return strings.Count(string(buf[:runtime.Stack(buf, true)]), what)
	}
	short := func(w *world, f func(context.Context)) {
		ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
		defer cancel()
		f(ctx)
	}
	for name, test := range map[string]func(w *world){
		"between two batches": func(w *world) { w.next() },
		"in the middle of an event": func(w *world) {
			w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 1, Trickle: 100, TricklePause: time.Minute})
			short(w, func(ctx context.Context) { w.Next(ctx, w.at) })
			if w.answer == nil || !w.answer.pump.reading {
				w.t.Error("nothing is being read")
			}
		},
		"before the answer": func(w *world) {
			w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 1, Hang: true})
			short(w, func(ctx context.Context) { w.Next(ctx, w.at) })
		},
		"after an error of the draining caller": func(w *world) {
			w.Drain(w.t.Context(), w.at, func(*Batch) error { return errors.New("enough") })
		},
		"in a register": func(w *world) {
			w.sim.Fault(zulipsim.Fault{On: zulipsim.Register, Times: 1, Hang: true})
			short(w, func(ctx context.Context) { w.Register(ctx) })
		},
		"in a page of history": func(w *world) {
			w.send(100)
			w.sim.Fault(zulipsim.Fault{On: zulipsim.History, Times: 1, Trickle: 100, TricklePause: time.Minute})
			short(w, func(ctx context.Context) {
				w.Messages(ctx, HistoryQuery{After: 100, Each: func(*Message) error { return nil }})
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, w *world) {
				w.register()
				w.fill(300, 1000)
				test(w)
				start := time.Now()
				w.Close()
				if took := time.Since(start); took > 0 {
					t.Errorf("Close took %v", took)
				}
				synctest.Wait()
				for _, what := range []string{"poller.startPump", "poller.outlive"} {
					if n := running(what); n > 0 {
						t.Errorf("%d goroutines of %s are left", n, what)
					}
				}
				// It serves again.
				w.next()
			})
		})
	}
}

// TestTakenOver: another poller on the same queue ends our waiting poll with nothing, and
// that is told.
func TestTakenOver(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.register()
		other := &Client{Transport: w.tap, Account: w.Client.Account}
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(10 * time.Second)
			a, err := other.events(t.Context(), w.at, true, time.Minute)
			if err != nil {
				t.Error(err)
				return
			}
			a.Close()
		})
		b, err := w.Next(t.Context(), w.at)
		if err != nil || len(b.Events) != 0 || !b.Waited {
			t.Errorf("%+v, %v", b, err)
		}
		wg.Wait()
	})
}
