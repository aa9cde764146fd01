package bridge_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"zulip-nats/bridge"
	"zulip-nats/events"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/zulipsim"
)

// cutBehind makes the stream refuse every write behind the n-th.
func (w *world) cutBehind(n int) {
	writes := 0
	w.jet.SetFaults(func(op string) (f model.Fault) {
		if op == "append" {
			if writes++; writes > n {
				f.Fail = stream.Unavailable
			}
		}
		return f
	})
}

type namedTold struct {
	NotRefilled *struct {
		Reason   string  `json:"reason"`
		Above    int64   `json:"above_message_id"`
		UpTo     int64   `json:"up_to_message_id"`
		TooLarge []int64 `json:"too_large_message_ids"`
		TooOld   int     `json:"older_than_max_age"`
	} `json:"not_refilled"`
	Changed     []int64 `json:"changed_message_ids"`
	ChangedMore int     `json:"changed_messages_not_named"`
	Old         string  `json:"old_queue_id"`
}

// A message of the gap that no store takes stands before the third chunk of a refill, and
// the process dies behind that. The record of the gap names it all the same.
func TestTooLargeBeforeACrash(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.MaxPayload, w.jet.MaxObject = 8000, 9000
		one.follows(3)
		one.kill()
		large := w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t",
			Content: strings.Repeat("x", 10000)})
		w.say(1200)
		w.expire()
		w.cutBehind(6) // resumed, gap opened, the queue's record, three chunks
		one.start()
		time.Sleep(30 * time.Second)
		one.kill()
		w.jet.SetFaults(nil)
		one.start()
		time.Sleep(time.Minute)
		w.checkMessagesOnce()
		closed := told[namedTold](w, "gap", "gap-closed")
		if len(closed) != 1 || closed[0].NotRefilled == nil ||
			!slices.Equal(closed[0].NotRefilled.TooLarge, []int64{large}) {
			t.Errorf("gap closed: %+v; want one that names message %d", closed, large)
		}
	})
}

// A message that the stream holds was edited in the gap; the process dies behind some
// chunks of the refill. The record of the gap names it all the same.
func TestChangedBeforeACrash(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.kill()
		w.say(1200)
		w.zulip.EditMessage(w.lastIDs[1], zulipsim.Edit{Content: new("edited in the gap")})
		w.expire()
		w.cutBehind(6)
		one.start()
		time.Sleep(30 * time.Second)
		one.kill()
		w.jet.SetFaults(nil)
		one.start()
		time.Sleep(time.Minute)
		w.checkMessagesOnce()
		closed := told[namedTold](w, "gap", "gap-closed")
		if len(closed) != 1 || !slices.Equal(closed[0].Changed, w.lastIDs[1:2]) {
			t.Errorf("gap closed: %+v; want one that names message %d as changed", closed, w.lastIDs[1])
		}
	})
}

// Messages older than the greatest age stand between others, and the process dies in the
// refill: they are counted once.
func TestTooOldCountedOnce(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.configure = func(c *bridge.Config) { c.RefillMaxAge = time.Hour }
		one.follows(3)
		one.kill()
		w.say(7)
		time.Sleep(2 * time.Hour)
		w.say(1200)
		w.expire()
		w.cutBehind(6)
		one.start()
		time.Sleep(30 * time.Second)
		one.kill()
		w.jet.SetFaults(nil)
		one.start()
		time.Sleep(time.Minute)
		closed := told[namedTold](w, "gap", "gap-closed")
		if len(closed) != 1 || closed[0].NotRefilled == nil || closed[0].NotRefilled.TooOld != 7 {
			t.Errorf("gap closed: %+v; want one, 7 too old", closed)
		}
	})
}

// One message of a page of history is no JSON, or has no id. It cannot be refilled, and
// no record is silent about it.
func TestHistoryWithABadMessage(t *testing.T) {
	for _, bad := range []string{`{"id":5,"content":"x\q"}`, `{"id":"five","content":"x"}`} {
		t.Run(bad, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				one.follows(3)
				one.stop()
				w.say(3)
				w.expire()
				page := `{"result":"success","msg":"","anchor":0,"found_anchor":false,"found_newest":true,"found_oldest":false,"history_limited":false,"messages":[` +
					fmt.Sprintf(`{"id":%d,"timestamp":946684802,"content":"a","flags":[]},%s,{"id":%d,"timestamp":946684802,"content":"c","flags":[]}]}`, w.lastIDs[3], bad, w.lastIDs[5])
				w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, Skip: 1, Times: 1, Status: 200, Body: page})
				one.start()
				time.Sleep(time.Minute)
				if _, backfill := w.origins(); backfill != 2 {
					t.Fatalf("%d refilled, want 2", backfill)
				}
				closed := told[namedTold](w, "gap", "gap-closed")
				if len(closed) != 1 || closed[0].NotRefilled == nil &&
					len(told[map[string]any](w, "rejected", "")) == 0 {
					t.Errorf("gap closed: %+v, %d rejected; want something that tells of the message between", closed,
						len(told[map[string]any](w, "rejected", "")))
				}
			})
		})
	}
}

// A stop with --delete-queue behind the record that closed a gap, and before the next
// one: what that gap cut stays cut.
func TestCutStaysCutWhenRetired(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.configure = func(c *bridge.Config) { c.RefillMaxMessages, c.DeleteQueue = 5, true }
		one.follows(3)
		one.kill()
		w.say(20)
		w.expire()
		w.cutBehind(5) // resumed, gap opened, the queue's record, a chunk, gap closed
		one.start()
		time.Sleep(10 * time.Second)
		one.kill()
		w.jet.SetFaults(func(op string) (f model.Fault) {
			f.Late = 200 * time.Millisecond // each answer
			return f
		})
		cut := told[closedTold](w, "gap", "gap-closed")
		if len(cut) != 1 || cut[0].NotRefilled == nil {
			t.Fatalf("gap closed: %+v", cut)
		}
		one.start()
		time.Sleep(100 * time.Millisecond)
		one.stop()
		w.jet.SetFaults(nil)
		w.configure = nil
		one.start()
		time.Sleep(time.Minute)
		w.say(1)
		time.Sleep(time.Second)
		for _, m := range w.jet.Messages() {
			for _, id := range w.lastIDs {
				if id > cut[0].NotRefilled.Above && id <= cut[0].NotRefilled.UpTo &&
					first(m, events.HeaderMessageID) == fmt.Sprint(id) {
					t.Errorf("message %d was named as cut, and came by a later refill", id)
				}
			}
		}
	})
}

// Another organization's bridge is started by mistake with this realm's name and
// --delete-queue, and stopped at once: a stream that belongs to another site is left
// alone, as at any other start.
func TestRetireOfAnotherSite(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.stop()
		w.configure = func(c *bridge.Config) { c.Site, c.DeleteQueue = "https://elsewhere.example.org", true }
		one.start()
		one.end()
		<-one.done
		if one.err == nil || !strings.Contains(one.err.Error(), "--realm") {
			t.Errorf("ended with %v; want what names --realm", one.err)
		}
		one.done, one.err = nil, nil
		if n := len(w.gaps()); n != 0 {
			t.Errorf("%d gaps opened in the stream of another site: %v", n, w.gaps())
		}
		for _, q := range w.zulip.Queues() {
			if q.Dead != "" {
				t.Errorf("queue %s is %s", q.ID, q.Dead)
			}
		}
	})
}

// Two instances without a lease are in the same refill, with a greatest age. A message is
// just young enough for the first and just too old for the second, which stores what
// follows and dies. The first finds what it has in hand stored: but for that one message.
func TestTwoRefillsOfDifferentAge(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.configure = func(c *bridge.Config) { c.RefillMaxAge = time.Hour }
		other := w.instance()
		one.follows(3)
		one.kill()
		w.expire()
		time.Sleep(3 * time.Minute)
		w.say(1)
		old := w.lastIDs[3]
		time.Sleep(59*time.Minute + 30*time.Second)
		w.say(5)
		writes := 0
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "append" {
				if writes++; writes == 4 { // resumed, gap opened, the queue's record, a chunk
					one.gate.close()
					f.Fail = stream.Unavailable
				}
			}
			return f
		})
		one.start()
		time.Sleep(2 * time.Minute)
		n := 0
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "append" {
				if n++; n > 1 { // the other's chunk
					f.Fail = stream.Unavailable
				}
			}
			return f
		})
		other.start()
		time.Sleep(10 * time.Second)
		other.kill()
		w.jet.SetFaults(nil)
		one.gate.open()
		time.Sleep(time.Minute)
		w.say(1)
		time.Sleep(time.Second)
		there := false
		for _, m := range w.jet.Messages() {
			there = there || first(m, events.HeaderMessageID) == fmt.Sprint(old)
		}
		closed := told[namedTold](w, "gap", "gap-closed")
		if !there && (len(closed) == 0 || closed[len(closed)-1].NotRefilled == nil) {
			t.Errorf("message %d is not stored, and no record names it: %+v", old, closed)
		}
	})
}

// Zulip refuses with a code of any length (a proxy, or a server gone wrong), and the
// stream takes 8 KiB, which is said to do. The gap is told all the same.
func TestRefusalWithALongCode(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.MaxMsgSize = 8192
		one.follows(3)
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.Events, Status: 400,
			Body: fmt.Sprintf(`{"result":"error","msg":"no","code":"%s"}`, strings.Repeat("C", 10000))})
		w.expire()
		time.Sleep(10 * time.Minute)
		if n := len(w.gaps()); n == 0 {
			t.Errorf("no gap is open after 10 minutes, and Zulip was asked %d times",
				w.requests(zulipsim.Events, time.Now().Add(-time.Minute)))
		}
	})
}
