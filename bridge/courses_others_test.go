package bridge_test

import (
	"encoding/json"
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

// Another site is configured under the same realm name, and the stream's newest message
// is a gap, as behind --delete-queue, or a refill under way. It is refused before a queue
// is made or a message of the other organization's history is stored.
func TestOtherSiteBehindAGap(t *testing.T) {
	for _, at := range []string{"register", "refill"} {
		t.Run(at, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				one.follows(3)
				one.kill()
				w.say(4)
				w.expire()
				w.cutBehind(map[string]int{"register": 2, "refill": 3}[at]) // resumed, gap opened, the queue's record
				one.start()
				time.Sleep(10 * time.Second)
				one.kill()
				w.jet.SetFaults(nil)
				queues := len(w.zulip.Queues())
				w.configure = func(c *bridge.Config) { c.Site = "https://elsewhere.example.org" }
				one.start()
				time.Sleep(time.Minute)
				_, err := ended(one)
				one.err = nil
				t.Log(err)
				if n := len(w.zulip.Queues()); n != queues {
					t.Errorf("%d queues registered at the other site", n-queues)
				}
				if _, backfill := w.origins(); backfill != 0 {
					t.Errorf("%d messages of another site's history are in the stream", backfill)
				}
			})
		})
	}
}

// A gap is open, and the next start has another bot in its zuliprc: its history is not
// that of the queue that was lost. Some record of the gap says so.
func TestOtherAccountBehindAGap(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.kill()
		w.expire()
		other := w.zulip.Account("other-bot@acme.example.com")
		dm := w.zulip.SendMessage(zulipsim.Message{To: []string{simAccount}, Content: "for the first bot alone"})
		w.cutBehind(2) // resumed, gap opened
		one.start()
		time.Sleep(10 * time.Second)
		one.kill()
		w.jet.SetFaults(nil)
		w.signIn(other)
		one.start()
		time.Sleep(time.Minute)
		closed := told[namedTold](w, "gap", "gap-closed")
		there := slices.ContainsFunc(w.jet.Messages(),
			func(m stream.Stored) bool { return first(m, events.HeaderMessageID) == fmt.Sprint(dm) })
		if len(closed) != 1 {
			t.Fatalf("gap closed: %+v", closed)
		}
		said := slices.ContainsFunc(w.jet.Messages(), func(m stream.Stored) bool {
			return strings.HasSuffix(m.Subject, ".gap") && strings.Contains(string(m.Data), "to other-bot@")
		})
		if !there && closed[0].NotRefilled == nil && !said {
			t.Errorf("message %d is not there, and no record of the gap tells of another account: %+v", dm, closed)
		}
	})
}

// The organization's plan hides what is older (history_limited), so history begins in the
// middle of the gap. Some record says that it does.
func TestHistoryLimitedByThePlan(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.stop()
		w.say(5)
		w.expire()
		page := `{"result":"success","msg":"","anchor":0,"found_anchor":false,"found_newest":true,"found_oldest":true,"history_limited":true,"messages":[` +
			fmt.Sprintf(`{"id":%d,"timestamp":946684802,"content":"c","flags":[]}]}`, w.lastIDs[7])
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, Skip: 1, Times: 1, Status: 200, Body: page})
		one.start()
		time.Sleep(time.Minute)
		closed := told[namedTold](w, "gap", "gap-closed")
		if _, backfill := w.origins(); backfill != 1 {
			t.Fatalf("%d refilled, want 1", backfill)
		}
		if len(closed) != 1 || closed[0].NotRefilled == nil {
			t.Errorf("gap closed: %+v; want one that says that history is limited", closed)
		}
	})
}

// The same where a limit cuts the refill besides: the record tells of both.
func TestHistoryLimitedByThePlanAndCut(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.configure = func(c *bridge.Config) { c.RefillMaxMessages = 1 }
		one.follows(3)
		one.stop()
		w.say(5)
		w.expire()
		page := `{"result":"success","msg":"","anchor":0,"found_anchor":false,"found_newest":true,"found_oldest":true,"history_limited":true,"messages":[` +
			fmt.Sprintf(`{"id":%d,"timestamp":946684802,"content":"c","flags":[]},{"id":%d,"timestamp":946684802,"content":"d","flags":[]}]}`,
				w.lastIDs[6], w.lastIDs[7])
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, Skip: 1, Times: 1, Status: 200, Body: page})
		one.start()
		time.Sleep(time.Minute)
		closed := told[gapSaid](w, "gap", "gap-closed")
		if len(closed) != 1 || closed[0].NotRefilled == nil {
			t.Fatalf("gap closed: %+v; want one that says what was left out", closed)
		}
		n := closed[0].NotRefilled
		if n.Above > w.lastIDs[2] || n.UpTo != w.lastIDs[7] || !strings.Contains(n.Reason, "limit of 1") ||
			!strings.Contains(n.Reason, "plan hides") {
			t.Errorf("left out: %+v; want what is above %d up to %d, with both reasons", n, w.lastIDs[2], w.lastIDs[7])
		}
	})
}

// Two instances without a lease. One has an answer in hand; the other finds that the
// stream was restored, records the queue anew, refills what the answer holds, stores its
// first event and dies. The first finds that event stored, and goes on by the new record:
// what was refilled is skipped.
func TestRecordBeforeWhatIsInHand(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		other := w.instance()
		one.follows(10)
		status := func(n int) {
			w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 7, "status_text": fmt.Sprint(n)})
		}
		writes := 0
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op != "append" {
				return f
			}
			switch writes++; {
			case writes == 1: // the first event, slowly, so that the next answer holds the others
				f.Late = time.Second
			case writes == 2: // what is in hand
				one.gate.close()
				f.Fail = stream.Unavailable
			case writes == 3: // the other has started
			case writes == 4: // and has the same in hand
				f.Fail = stream.Unavailable
				go w.jet.Restore(3)
			case writes == 10: // behind the gap, the record, the refill, the gap closed, the record
				f.Keep = 1
			case writes > 10:
				f.Fail = stream.Unavailable
			}
			return f
		})
		status(1)
		time.Sleep(200 * time.Millisecond)
		status(2)
		w.say(4)
		time.Sleep(3 * time.Second)
		other.start()
		time.Sleep(30 * time.Second)
		other.kill()
		w.jet.SetFaults(nil)
		t.Log(w.originsText(), w.whys(), writes)
		one.gate.open()
		time.Sleep(time.Minute)
		t.Log(w.originsText(), w.whys())
		times := map[string]int{}
		for _, m := range w.jet.Messages() {
			if id := first(m, events.HeaderMessageID); id != "" && first(m, events.HeaderRecord) == "" {
				if times[id]++; times[id] > 1 {
					t.Errorf("message %s is stored %d times", id, times[id])
				}
			}
		}
	})
}

// A message of the gap goes to the object store, which takes nothing for hours (no right
// to it, full). The refill ends when its time is over all the same, and events go on.
func TestRefillEndsWithoutTheObjectStore(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.options.Life = 10 * time.Minute
		w.jet.MaxPayload = 8000
		w.jet.SetFaults(failing("put object", stream.Forbidden))
		one.follows(3)
		one.stop()
		w.expire()
		w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: strings.Repeat("x", 10000)})
		w.say(3)
		one.start()
		time.Sleep(10 * time.Second)
		one.kill()
		time.Sleep(4 * time.Minute)
		one.start() // it would wait for a quarter of the life, and has a tenth
		for range 40 {
			time.Sleep(time.Minute)
			w.say(1)
		}
		closed, queue := told[gapSaid](w, "gap", "gap-closed"), w.zulip.Queues()[1]
		if len(closed) == 0 || closed[0].Closed.After(queue.Created.Add(5*time.Minute+10*time.Second)) {
			t.Errorf("gap closed: %+v; want at half of the life of a queue made at %v; %s; %s", closed, queue.Created,
				w.queuesSay(), w.originsText())
		}
	})
}

// Others publish on the realm's subjects, and somebody deletes our newest messages by
// hand, between a read below the others' and the next. That the stream lost them is
// noticed, as it is without others.
func TestRemovedBelowOthers(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.Single, w.truncated = true, true
		theirs := func() { w.jet.Publish("zulip."+simRealm+".theirs", []byte("theirs")) }
		one.start()
		time.Sleep(time.Second)
		theirs()
		w.say(1)
		time.Sleep(5 * time.Second) // a record, and a message behind it
		w.say(4)
		time.Sleep(5 * time.Second)
		theirs()
		writes := 0
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "append" {
				if writes++; writes == 2 { // refused once, and read again
					f.Fail = stream.Unavailable
					go func() {
						w.jet.Remove(4) // theirs, and three of ours
						theirs()
					}()
				}
			}
			return f
		})
		w.say(1)
		time.Sleep(5 * time.Minute)
		w.say(1)
		time.Sleep(time.Minute)
		t.Log(w.whys(), len(w.gaps()))
		there := map[string]bool{}
		for _, m := range w.jet.Messages() {
			there[first(m, events.HeaderMessageID)] = true
		}
		for _, id := range w.lastIDs {
			if !there[fmt.Sprint(id)] && len(w.gaps()) == 0 {
				t.Errorf("message %d was acknowledged, is gone, and no record tells of it", id)
			}
		}
	})
}

// Others publish on the realm's subjects three times a second, and the queue is lost. A
// new one is recorded all the same, and not hundreds are made at Zulip.
func TestLossAmongOthers(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.Single = true
		w.zulip.RoundTrip = 200 * time.Millisecond
		one.start()
		time.Sleep(5 * time.Second)
		w.say(3)
		time.Sleep(5 * time.Second)
		one.stop()
		w.say(3)
		w.expire()
		end := time.Now().Add(10 * time.Minute)
		one.start()
		for time.Now().Before(end) {
			w.jet.Publish("zulip."+simRealm+".theirs", []byte("theirs"))
			time.Sleep(300 * time.Millisecond)
		}
		if n, closed := len(w.zulip.Queues()), len(told[closedTold](w, "gap", "gap-closed")); n > 20 || closed != 1 {
			t.Errorf("%d queues were made at Zulip, %d gaps are open and %d closed after 10 minutes", n,
				len(w.gaps()), closed)
		}
	})
}

// Zulip refuses the poll in words that nobody knows, for good, and others publish three
// times a minute. The gap is opened all the same.
func TestRefusedForLongAmongOthers(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.Single = true
		one.start()
		time.Sleep(5 * time.Second)
		w.say(3)
		time.Sleep(5 * time.Second)
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.Events, Status: 400,
			Body: `{"result":"error","msg":"Something else","code":"BAD_REQUEST"}`})
		w.say(3)
		for range 60 {
			w.jet.Publish("zulip."+simRealm+".theirs", []byte("theirs"))
			time.Sleep(20 * time.Second)
		}
		if len(w.gaps()) == 0 {
			t.Errorf("after 20 minutes of refusals no gap is open; %d polls",
				w.requests(zulipsim.Events, time.Now().Add(-20*time.Minute)))
		}
	})
}

// The options are changed, nothing is pending, and others publish three times a second:
// the change-over succeeds, and no more than a few queues are made for it.
func TestChangeOverAmongOthers(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.Single = true
		w.zulip.RoundTrip = 200 * time.Millisecond
		one.start()
		time.Sleep(5 * time.Second)
		w.say(3)
		time.Sleep(5 * time.Second)
		one.stop()
		w.options.SlimPresence = !w.options.SlimPresence
		end := time.Now().Add(10 * time.Minute)
		one.start()
		for time.Now().Before(end) {
			w.jet.Publish("zulip."+simRealm+".theirs", []byte("theirs"))
			time.Sleep(300 * time.Millisecond)
		}
		t.Log(w.whys())
		if n := len(w.zulip.Queues()); n > 20 {
			t.Errorf("%d queues were made at Zulip in 10 minutes", n)
		}
	})
}

// A stop with --delete-queue in a start that has another bot's key: that bot cannot
// delete the queue, which lives on. So the end says that it was not deleted.
func TestRetireWithAnotherAccount(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.stop()
		other := w.zulip.Account("other-bot@acme.example.com")
		w.signIn(other)
		sign := w.configure
		w.configure = func(c *bridge.Config) { sign(c); c.DeleteQueue = true }
		w.jet.SetFaults(func(string) (f model.Fault) {
			f.Late = 200 * time.Millisecond // each answer
			return f
		})
		one.start()
		time.Sleep(100 * time.Millisecond)
		one.end()
		<-one.done
		err := one.err
		one.done, one.err = nil, nil
		if q := w.zulip.Queues(); q[0].Dead == "" && err == nil {
			t.Errorf("the queue lives, and Run returned nil; gaps %v", w.gaps())
		}
	})
}

// The first start, among others that publish three times a second.
func TestFirstStartAmongOthers(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.Single, w.jet.Shared = true, true // in a stream of our own, a gap is opened first
		w.zulip.RoundTrip = 200 * time.Millisecond
		end := time.Now().Add(10 * time.Minute)
		one.start()
		for time.Now().Before(end) {
			w.jet.Publish("zulip."+simRealm+".theirs", []byte("theirs"))
			time.Sleep(300 * time.Millisecond)
		}
		if n := len(w.zulip.Queues()); n > 20 {
			t.Errorf("%d queues were made at Zulip in 10 minutes; recorded: %q", n, w.whys())
		}
	})
}

// NATS was away for most of the queue's life, and comes back as a backup without its
// newest messages. The queue lives, and is not let die by a refill that counts half of
// its life anew.
func TestRefillOutlivesTheQueueThatLives(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		w.options.Life = 10 * time.Minute
		w.zulip.SweepEvery = 5 * time.Second
		one.follows(10)
		w.jet.Down()
		w.say(2)
		time.Sleep(7 * time.Minute)
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, Skip: 1, Times: 1, Status: 429,
			Header: map[string][]string{"Retry-After": {"280"}},
			Body:   `{"result":"error","msg":"limit","code":"RATE_LIMIT_HIT"}`})
		w.jet.Restore(3)
		w.jet.Up()
		w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 7, "status_text": "only an event"})
		time.Sleep(20 * time.Minute)
		t.Log(w.whys(), w.queuesSay())
		for _, g := range w.gaps() {
			t.Log(g["cause"])
		}
		n := 0
		for _, m := range w.jet.Messages() {
			if strings.Contains(string(m.Data), "only an event") {
				n++
			}
		}
		if n != 1 {
			t.Errorf("an event that Zulip had put in a living queue is stored %d times", n)
		}
	})
}

// Zulip says a version of any length, and the stream takes 4 KiB, which is said to do. A
// queue is recorded.
func TestLongVersion(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.MaxMsgSize = 8192
		w.zulip.Version = strings.Repeat("9", 10000)
		one.start()
		time.Sleep(10 * time.Minute)
		if n := len(w.zulip.Queues()); n != 1 || w.whys() == "" {
			t.Errorf("%d queues were made, recorded %q", n, w.whys())
		}
	})
}

// Two instances without a lease. One is paused between storing and polling; the other
// finds the stream restored, and closes a gap at the same position, with messages cut.
// Then the queue dies, and the first one finds it dead. It plans by the newer record:
// what was cut stays cut.
func TestNewerRecordAtTheSamePosition(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		other := w.instance()
		one.follows(10)
		writes := 0
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op != "append" {
				return f
			}
			switch writes++; {
			case writes == 1:
				one.gate.close()
			case writes > 7: // the other: started, refused, gap opened, the record, one message, gap closed, the record
				f.Fail = stream.Unavailable
			}
			return f
		})
		w.say(1)
		time.Sleep(time.Second)
		w.configure = func(c *bridge.Config) { c.RefillMaxMessages = 1 }
		other.start()
		time.Sleep(5 * time.Second)
		w.jet.Restore(2)
		w.say(5)
		time.Sleep(30 * time.Second)
		other.kill()
		w.jet.SetFaults(nil)
		closed := told[closedTold](w, "gap", "gap-closed")
		if len(closed) != 1 || closed[0].NotRefilled == nil {
			t.Fatalf("gap closed: %+v; %s", closed, w.whys())
		}
		w.expire()
		one.gate.open()
		time.Sleep(5 * time.Minute)
		t.Log(w.whys(), w.originsText(), closed[0].NotRefilled)
		if _, backfill := w.origins(); backfill != 1 {
			t.Errorf("%d refilled, want 1: those above %d up to %d were cut, and came by the next refill", backfill,
				closed[0].NotRefilled.Above, closed[0].NotRefilled.UpTo)
		}
	})
}

// A record whose write was given up lands 20 s later, though reads in between did not
// show it; nothing else is stored till then. Its queue is kept.
func TestGhostLandsBehindReads(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.lease = &simLease{ttl: 4 * time.Second}
		one.follows(3)
		done := false
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op != "append" || len(w.zulip.Queues()) < 2 {
				return f
			}
			if done {
				f.Fail = stream.Unavailable
				return f
			}
			done, f.Deaf, f.Late = true, true, 20*time.Second
			go func() {
				time.Sleep(100 * time.Millisecond)
				w.lease.mu.Lock()
				h := w.lease.holder
				w.lease.holder = nil
				w.lease.mu.Unlock()
				h.cancel()
			}()
			return f
		})
		w.expire()
		time.Sleep(25 * time.Second)
		w.jet.SetFaults(nil)
		time.Sleep(5 * time.Minute)
		if g := w.gaps(); len(g) != 1 {
			t.Errorf("%d gaps; %s", len(g), w.queuesSay())
		}
		w.check()
	})
}

// More messages of a gap are too large for every store than its record names: it says at
// least how many.
func TestManyTooLarge(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.MaxPayload, w.jet.MaxObject = 8000, 9000
		one.follows(3)
		one.kill()
		w.expire()
		for range 60 {
			w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: strings.Repeat("x", 10000)})
		}
		one.start()
		time.Sleep(time.Minute)
		for _, m := range w.jet.Messages() {
			if first(m, events.HeaderRecord) == "gap-closed" {
				var body struct {
					NotRefilled map[string]any `json:"not_refilled"`
				}
				if err := json.Unmarshal(m.Data, &body); err != nil {
					t.Fatal(err)
				}
				named, _ := body.NotRefilled["too_large_message_ids"].([]any)
				delete(body.NotRefilled, "too_large_message_ids")
				if text := fmt.Sprint(body.NotRefilled); len(named) < 60 && !strings.Contains(text, "60") &&
					!strings.Contains(text, "10") {
					t.Errorf("%d of 60 are named, and of the others: %s", len(named), text)
				}
			}
		}
	})
}
