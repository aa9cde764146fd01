package poller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"zulip-nats/zulipsim"
)

// TestCallersTime: the time that the caller takes between two pieces of an answer is no silence.
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

// TestPieces: only a call that continues where the batch before ended gets the next piece; any other asks anew.
func TestPieces(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.register()
		w.sim.FillAnswer(w.at.Queue, 3500, func(dst []byte, id int64) []byte { return fmt.Appendf(dst, `{"type":"presence","id":%d}`, id) })
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
		if k, err := kind(Position{w.at.Queue, 999}); k != NotInQueue || !strings.Contains(err.Error(), "Event 999 was not in this queue") {
			t.Error(k, err)
		}
		if k, err := kind(Position{w.at.Queue, -1}); k != Pruned {
			t.Error(k, err)
		}
		if k, err := kind(Position{"no-such-queue", -1}); k != BadQueue || !strings.Contains(err.Error(), "BAD_EVENT_QUEUE_ID") {
			t.Error(k, err)
		}
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 1, Status: 400, Body: `{"result":"error","msg":"odd","code":"BAD_REQUEST"}`})
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
		{"", "Bad event queue id: 5"}: BadQueue, {"", "Bad event queue ID: 5"}: BadQueue, {"BAD_EVENT_QUEUE_ID", "Ungültig"}: BadQueue,
		{"BAD_REQUEST", "Bad event queue ID"}: RefusedOther, {"BAD_REQUEST", "An event newer than -1 has already been pruned!"}: Pruned,
	} {
		if got := refusedKind(text[0], text[1]); got != want {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func TestProbeAndDrain(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.register()
		w.send(2500)
		polls := func(f func()) int {
			before := w.tap.count()
			f()
			return w.tap.count() - before
		}
		// What Probe finds is not asked for twice.
		n := polls(func() {
			if err := w.Probe(t.Context(), w.at); err != nil {
				t.Fatal(err)
			}
			for got := 0; got < 2500; got += len(w.next()) {
			}
		})
		if n != 1 {
			t.Errorf("%d polls", n)
		}
		w.send(1200)
		start := time.Now()
		n = polls(func() {
			for {
				b, err := w.Drain(t.Context(), w.at)
				if err != nil {
					t.Fatal(err)
				}
				if len(b.Events) == 0 {
					break
				}
				w.at.Last = b.Events[len(b.Events)-1].ID
				if more := w.at.Last < 3699; b.More != more {
					t.Errorf("up to event %d, more: %v", w.at.Last, b.More)
				}
			}
		})
		if n != 2 || w.at.Last != 3699 || time.Since(start) > 5*time.Second {
			t.Errorf("%d polls up to event %d in %v", n, w.at.Last, time.Since(start))
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

// TestTakenOver: another poller on the same queue ends our waiting poll with nothing, and that is told.
func TestTakenOver(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.register()
		other := &Client{Transport: w.tap, Account: w.Client.Account}
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(10 * time.Second)
			a, err := other.Events(t.Context(), w.at, true, time.Minute)
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
