package bridge_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"zulip-nats/bridge"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
)

// Courses of erasing that were found once.

// deletesMany lets Zulip tell of so many deletions in one event that it goes to the object
// store.
func (w *world) deletesMany() {
	var ids []int64
	for i := range 1500 {
		ids = append(ids, int64(900_000+i))
	}
	w.zulip.Emit(map[string]any{"type": "delete_message", "message_ids": ids, "message_type": "stream",
		"stream_id": 5, "topic": "t"})
	time.Sleep(time.Second)
	if len(w.jet.Objects()) != 1 {
		w.t.Fatal("no object")
	}
}

// loseObjects empties the object store, as its age limit or a person does.
func (w *world) loseObjects() {
	c := w.jet.Client(context.Background())
	for name := range w.jet.Objects() {
		if err := c.EraseObject(context.Background(), c.Epoch(), name); err != nil {
			w.t.Fatal(err)
		}
	}
}

// The event of a deletion is in the object store, and then is not there any more; a moment
// later the queue is lost. No refill waits for it, and no start.
func TestDeletionWhoseObjectIsLost(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.erases()
		w.jet.MaxPayload = 9000
		w.options.Life = 10 * time.Minute
		one.follows(5)
		w.deletesMany()
		w.loseObjects()
		w.expire()
		time.Sleep(20 * time.Minute)
		one.kill()
		one.start()
		time.Sleep(20 * time.Minute)
		w.send("is anybody there")
		time.Sleep(time.Minute)
		if len(w.holding("is anybody there")) == 0 {
			t.Errorf("events are not stored any more, over a start; %v", one.bridge.Status().State)
		}
	})
}

// The same, later, and a message comes by the next queue that was refilled already.
func TestDeletionWhoseObjectIsLostAndAHeldMessage(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.erases()
		w.jet.MaxPayload = 9000
		w.options.Life = 10 * time.Minute
		one.follows(5)
		w.deletesMany()
		time.Sleep(time.Hour)
		w.loseObjects()
		time.Sleep(time.Hour)
		w.zulip.DuringRegister = func(string) { w.say(1) } // by the new queue, and in history
		w.expire()
		time.Sleep(time.Hour)
		w.zulip.DuringRegister = nil
		w.send("is anybody there")
		time.Sleep(time.Hour)
		if len(w.holding("is anybody there")) == 0 {
			t.Errorf("events are not stored any more; %v, gaps %d", one.bridge.Status().State, len(w.gaps()))
		}
	})
}

// Our user may not read the object store any more: no refill waits for that.
func TestDeletionWhoseObjectIsForbidden(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.erases()
		w.jet.MaxPayload, w.jet.Single = 9000, true
		w.options.Life = 10 * time.Minute
		one.follows(5)
		w.deletesMany()
		time.Sleep(time.Hour)
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "object" {
				f.Fail = stream.Forbidden
			}
			return f
		})
		w.expire()
		time.Sleep(time.Hour)
		w.send("is anybody there")
		time.Sleep(time.Hour)
		if len(w.holding("is anybody there")) == 0 {
			t.Errorf("events are not stored any more; %v, gaps %d", one.bridge.Status().State, len(w.gaps()))
		}
	})
}

// slowScan reads as from a server that is 20 ms away: 50 bodies, or 500 headers, in one pull.
type slowScan struct{ bridge.Stream }

func (s slowScan) Scan(ctx context.Context, subject string, from stream.Start, until uint64, headersOnly bool,
	f func(*stream.Stored) error) error {
	n, most := 0, 50
	if headersOnly {
		most = 500
	}
	time.Sleep(20 * time.Millisecond)
	return s.Stream.Scan(ctx, subject, from, until, headersOnly, func(m *stream.Stored) error {
		if n++; n%most == 0 {
			time.Sleep(20 * time.Millisecond)
		}
		return f(m)
	})
}

// The option is given to a stream that tells of 15,000 deletions, and to find them takes
// longer than a turn.
func TestEachTurnOfErasingComesFurther(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.Single = true
		one.follows(3)
		a := w.send("a secret")
		time.Sleep(time.Second)
		q := w.zulip.Queues()[0]
		w.zulip.FillAnswer(q.ID, 15_000, func(dst []byte, id int64) []byte {
			return fmt.Appendf(dst, `{"type":"delete_message","message_id":%d,"message_type":"stream","stream_id":5,"topic":"t","id":%d}`,
				1_000_000+id, id)
		})
		time.Sleep(time.Minute)
		w.zulip.DeleteMessages(a)
		time.Sleep(time.Minute)
		one.stop()
		w.configure = func(c *bridge.Config) {
			c.EraseDeleted = true
			open := c.Open
			c.Open = func(ctx context.Context) (bridge.Stream, error) {
				s, err := open(ctx)
				return slowScan{s}, err
			}
		}
		one.start()
		most := time.Duration(0)
		for n := range 40 {
			text := fmt.Sprintf("message no. %d.", n)
			sent := time.Now()
			w.send(text)
			for len(w.holding(text)) == 0 && time.Since(sent) < time.Hour {
				time.Sleep(500 * time.Millisecond)
			}
			most = max(most, time.Since(sent))
		}
		if got := w.holding("a secret"); len(got) > 0 {
			t.Errorf("after 40 turns the text is in %v; each held up events, for up to %v", got, most)
		}
	})
}

// What a record names is ended by a start in turns, as all else.
func TestResumedErasingHoldsUpNoEvents(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.erases()
		w.jet.Single = true
		one.follows(450)
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "erase" {
				f.Fail = stream.Unavailable
			}
			return f
		})
		w.zulip.DeleteMessages(w.lastIDs[:400]...)
		time.Sleep(2 * time.Second)
		one.kill()
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "erase" || op == "at" {
				f.Late = 300 * time.Millisecond
			}
			return f
		})
		one.start()
		time.Sleep(5 * time.Second)
		sent := time.Now()
		w.send("who waits")
		for len(w.holding("who waits")) == 0 && time.Since(sent) < time.Hour {
			time.Sleep(100 * time.Millisecond)
		}
		if waited := time.Since(sent); waited > 15*time.Second {
			t.Errorf("an event waited for %v behind a start", waited)
		}
	})
}

// The object is erased, its stub is not, and the process lives: the record names it still.
func TestStubGoesWithItsObject(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.erases()
		w.jet.Single, w.jet.MaxPayload = true, 9000
		one.follows(3)
		a := w.send("small")
		time.Sleep(time.Second)
		w.rewrite(a, strings.Repeat("a large secret ", 1000))
		time.Sleep(time.Second)
		n, failed := 0, false
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "erase" {
				if n++; n == 2 && !failed { // the message, then the stub of its edit
					failed = true
					f.Fail = stream.Unavailable
				}
			}
			return f
		})
		w.zulip.DeleteMessages(a)
		time.Sleep(10 * time.Minute)
		if !failed {
			t.Fatal("nothing failed")
		}
		w.checkChain()
	})
}

// The first message of a stream is erased: its deletion lies below the first that is left,
// and counts in a refill all the same.
func TestErasedFirstDoesNotComeBack(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.erases()
		one.start()
		time.Sleep(time.Second)
		a := w.send("a secret")
		time.Sleep(time.Second)
		w.zulip.Emit(map[string]any{"type": "delete_message", "message_id": a, "message_type": "stream"})
		time.Sleep(time.Second)
		if got := w.holding("a secret"); len(got) > 0 {
			t.Fatalf("not erased: %v", got)
		}
		w.say(3)
		time.Sleep(time.Second)
		one.kill()
		w.say(3)
		w.expire()
		one.start()
		time.Sleep(time.Minute)
		if got := w.holding("a secret"); len(got) > 0 {
			t.Errorf("the text is in %v", got)
		}
	})
}
