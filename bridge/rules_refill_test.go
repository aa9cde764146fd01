package bridge_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"zulip-nats/events"
	"zulip-nats/stream/model"
	"zulip-nats/zulipsim"
)

// longestRun is how many refilled messages stand in the stream without a record of ours
// between them.
func (w *world) longestRun() (longest int) {
	run := 0
	for _, m := range w.jet.Messages() {
		if run++; first(m, events.HeaderOrigin) != events.OriginBackfill {
			run = 0
		}
		longest = max(longest, run)
	}
	return longest
}

// A refill comes in chunks, with the queue's record between them: at most 250 messages,
// and hardly more than 8 MiB.
func TestRefillInChunks(t *testing.T) {
	t.Run("of messages", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			one.follows(3)
			one.kill()
			w.say(700)
			w.expire()
			one.start()
			time.Sleep(time.Minute)
			if n := w.longestRun(); n != 250 {
				t.Errorf("%d messages without a record between them, want 250", n)
			}
		})
	})
	t.Run("of bytes", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			w.jet.MaxPayload = 2 << 20
			one.follows(3)
			one.kill()
			w.say(20)
			w.expire()
			var messages []string
			for _, id := range w.lastIDs[3:] {
				messages = append(messages, fmt.Sprintf(`{"id":%d,"timestamp":946684802,"content":"%s","flags":[]}`, id,
					strings.Repeat("x", 1<<20)))
			}
			page := `{"result":"success","msg":"","anchor":0,"found_anchor":false,"found_newest":true,"found_oldest":true,"messages":[` +
				strings.Join(messages, ",") + `]}`
			w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, Skip: 1, Times: 1, Status: 200, Body: page})
			one.start()
			time.Sleep(time.Minute)
			if n, all := w.longestRun(), len(w.backfilled()); n != 8 || all != 20 {
				t.Errorf("%d messages of 1 MiB without a record between them, and %d in all; want 8, and 20", n, all)
			}
		})
	})
}

// A refill is cut off behind some chunks. What goes on knows which queue was lost, and
// counts what was refilled before, also where its first reading breaks off half-way.
func TestRefillGoesOnAndCounts(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.kill()
		lost := w.zulip.Queues()[0].ID
		w.say(1200)
		w.expire()
		w.cutBehind(6) // resumed, gap opened, the queue's record, three chunks
		one.start()
		time.Sleep(30 * time.Second)
		one.kill()
		scans := 0
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "scan" {
				if scans++; scans%2 == 0 && scans <= 6 {
					f.Keep = 700
				}
			}
			return f
		})
		one.start()
		time.Sleep(time.Minute)
		w.checkMessagesOnce()
		closed := told[closedTold](w, "gap", "gap-closed")
		if len(closed) != 1 || closed[0].Refilled != 1200 || closed[0].Old != lost {
			t.Errorf("gap closed: %+v; want one of 1200 messages for the queue %s", closed, lost)
		}
	})
}

// The same where the queue lives, and only the stream had lost its end.
func TestRefillOfALivingQueueGoesOn(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		one.follows(3)
		w.say(700)
		time.Sleep(time.Minute)
		queue := w.zulip.Queues()[0].ID
		w.jet.Restore(700)
		w.cutBehind(4) // gap opened, the queue's record, two chunks
		w.say(1)       // whose write shows what the stream has lost
		time.Sleep(30 * time.Second)
		one.kill()
		w.jet.SetFaults(nil)
		one.start()
		time.Sleep(time.Minute)
		w.checkMessagesStand()
		closed := told[closedTold](w, "gap", "gap-closed")
		if len(closed) != 1 || closed[0].Old != queue || closed[0].Refilled < 650 ||
			!strings.Contains(closed[0].Cause, "lives on") {
			t.Errorf("gap closed: %+v; want one of some 700 messages for the queue %s, which lives on", closed, queue)
		}
	})
}
