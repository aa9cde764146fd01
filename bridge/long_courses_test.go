//go:build !race

package bridge_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"zulip-nats/zulipsim"
)

// Courses that go over hours or megabytes. Under the race detector, which makes everything
// ten times as slow, there are only the shorter ones of their kind.

// Behind two hours with a Zulip that does not answer a DELETE, one of two instances is left:
// it asks again and again for the same queue, a second each, and polls nothing meanwhile.
func TestLeftoversDoNotPileUp(t *testing.T) {
	story(t, func(w *world, one *instance) {
		two := w.instance()
		one.follows(3)
		one.stop()
		w.options.SlimPresence = !w.options.SlimPresence
		w.options.Life = 10 * time.Minute
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.Delete, Hang: true})
		one.follows(3)
		two.start()
		for range 12 * 60 {
			w.say(1)
			time.Sleep(10 * time.Second)
		}
		gaps := len(w.gaps())
		one.kill()
		worst := time.Duration(0)
		for range 20 {
			w.say(1)
			sent, id := time.Now(), w.lastIDs[len(w.lastIDs)-1]
			for !w.hasMessage(id) && time.Since(sent) < time.Hour {
				time.Sleep(time.Second)
			}
			worst = max(worst, time.Since(sent))
			time.Sleep(10 * time.Second)
		}
		began := time.Now()
		time.Sleep(10 * time.Minute)
		if n := w.requests(zulipsim.Delete, began); n > 20 || worst > time.Minute || len(w.gaps()) > gaps {
			t.Errorf("%d requests to delete in ten minutes; a message took %v to be stored; gaps %d, "+
				"then %d: %s", n, worst,
				gaps, len(w.gaps()), w.queuesSay())
		}
		two.kill()
	})
}

// A message whose transaction was open while a thousand others were stored, in ten
// seconds. Its event waits in the queue when that is lost.
func TestTransactionOpenForLong(t *testing.T) {
	for _, open := range []time.Duration{10 * time.Second, 100 * time.Second} {
		t.Run(open.String(), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.options.Life = 10 * time.Minute
				one.start()
				time.Sleep(time.Second)
				chatter := func(d time.Duration) {
					for range int(d / time.Second) {
						w.say(100)
						time.Sleep(time.Second)
					}
				}
				chatter(5 * time.Minute)
				id, commit := w.zulip.SendDelayed(zulipsim.Message{Channel: "general", Topic: "t", Content: "slow"})
				w.lastIDs = append(w.lastIDs, id)
				chatter(open)
				one.kill()
				commit()
				for _, q := range w.zulip.Queues() {
					w.zulip.ExpireQueue(q.ID)
				}
				w.say(20)
				one.start()
				time.Sleep(time.Minute)
				w.checkMessagesOnce()
			})
		})
	}
}

// Nor is there more in an hour with an event each second.
func TestABusyHourIsOneLine(t *testing.T) {
	hours(t, 1, func(w *world, log *lines) {
		log.taken(t)
		for range 3600 {
			w.zulip.Emit(map[string]any{"type": "typing", "op": "start"})
			time.Sleep(time.Second)
		}
		if n := figures(log.hour(t))["events_stored"]; n < 3500 || n > 3700 {
			t.Errorf("%d events stored, want about 3600", n)
		}
	})
}

// The stream is deleted under way and made again: what the old one held from the
// beginning on is not asked for as if the new one had always been there. The record says
// what is not known.
func TestBeginningInAStreamThatIsNoMore(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		one.follows(10)
		time.Sleep(25 * time.Hour) // the record is written again
		w.say(3)
		time.Sleep(time.Second)
		began := len(w.jet.Ever(0))
		w.jet.Delete()
		time.Sleep(3 * time.Minute)
		if ids, want := w.backfilled(), w.lastIDs[10:]; began == 0 || !slices.Equal(ids, want) {
			t.Errorf("refilled: %v; want those that are younger than the record, %v", ids, want)
		}
		closed := told[map[string]any](w, "gap", "gap-closed")
		if len(closed) != 1 || closed[0]["not_compared_message_ids"] == nil {
			t.Errorf("gap closed: %v; want one that says which ids were not compared", closed)
		}
	})
}

// An event that is larger than the bridge keeps in memory is rejected with its size.
func TestEventTooLargeForMemory(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.start()
		time.Sleep(time.Second)
		w.zulip.Emit(map[string]any{"type": "drafts", "op": "add", "text": strings.Repeat("x", 70<<20)})
		w.say(1)
		time.Sleep(10 * time.Second)
		rejected := told[map[string]any](w, "rejected", "")
		if len(rejected) != 1 || rejected[0]["size"].(float64) < 70<<20 || len(w.jet.Objects()) != 0 {
			t.Errorf("%d rejected and %d objects, want one rejected with its size", len(rejected), len(w.jet.Objects()))
		}
	})
}

// A busy organization whose bridge is restarted now and then: what is not known of the
// idle clock counts as old, so the queue is changed over before it dies.
func TestBusyAndRestarted(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.options.Life = time.Minute
		w.zulip.RoundTrip = 60 * time.Millisecond
		w.zulip.SweepEvery = 5 * time.Second
		for range 5 {
			one.start()
			for range 100 * 25 {
				w.say(1)
				time.Sleep(10 * time.Millisecond)
			}
			one.stop()
		}
		one.start()
		time.Sleep(time.Minute)
		w.check()
		if got := w.whys(); strings.Contains(got, "lost") {
			t.Errorf("queues recorded: %s; want none lost", got)
		}
	})
}
