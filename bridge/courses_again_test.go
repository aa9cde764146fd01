package bridge_test

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"zulip-nats/bridge"
	"zulip-nats/events"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/zulipsim"
)

// logGaps logs what the stream says of gaps and queues.
func (w *world) logGaps() {
	for _, m := range w.jet.Messages() {
		if k := first(m, events.HeaderRecord); k == "queue" || k == "gap-opened" || k == "gap-closed" {
			w.t.Logf("%d %s %s", m.Seq, k, m.Data)
		}
	}
}

// hasMessage says whether a message is stored.
func (w *world) hasMessage(id int64) bool {
	for _, m := range w.jet.Ever(0) {
		if first(m, events.HeaderMessageID) == strconv.FormatInt(id, 10) {
			return true
		}
	}
	return false
}

// The queue was lost while the process was away; the operator restarts it with options
// that ask for less. What the lost queue was asked for is missing till then.
func TestOptionsNarrowedAndLost(t *testing.T) {
	for _, how := range []string{"public channels dropped", "messages dropped", "narrow added"} {
		t.Run(how, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.options.Life = 10 * time.Minute
				if how == "public channels dropped" {
					w.options.AllPublicStreams = true
					w.account.NoSubscriptions = true
				}
				w.zulip.SendMessage(zulipsim.Message{Channel: "random", Topic: "t", Content: "before all"})
				one.follows(5)
				one.stop()
				w.say(7)
				time.Sleep(time.Hour)
				switch how {
				case "public channels dropped":
					w.options.AllPublicStreams = false
				case "messages dropped":
					w.options.EventTypes = []string{"reaction"}
				case "narrow added":
					w.options.Narrow = [][2]string{{"channel", "random"}}
				}
				one.start()
				time.Sleep(time.Minute)
				missing := 0
				for _, id := range w.lastIDs {
					if !w.hasMessage(id) {
						missing++
					}
				}
				closed := told[closedTold](w, "gap", "gap-closed")
				if missing > 0 && (len(closed) != 1 || closed[0].NotRefilled == nil) {
					t.Errorf("%d messages of the lost queue are missing, and gap-closed says %+v", missing, closed)
					w.logGaps()
				}
				w.check()
			})
		})
	}
}

// A refill is under way with the wide options of the lost queue when the new queue, which
// has a narrow, is retired by --delete-queue. The next start plans by the narrow one.
func TestRetiredInARefill(t *testing.T) {
	story(t, func(w *world, one *instance) {
		var random []int64
		talk := func(n int) {
			for range n {
				random = append(random, w.zulip.SendMessage(zulipsim.Message{Channel: "random", Topic: "t",
					Content: "r"}))
				w.say(1)
			}
		}
		one.start()
		time.Sleep(time.Second)
		talk(5)
		time.Sleep(time.Second)
		one.stop()
		talk(7)
		w.expire()
		w.options.Narrow = [][2]string{{"channel", "general"}}
		remove := w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, Hang: true, Skip: 3}) // the newest is told: at the change-over that finds the queue dead, and twice behind the gap
		w.configure = func(c *bridge.Config) { c.DeleteQueue = true }
		one.start()
		time.Sleep(30 * time.Second)
		one.stop()
		if g := told[closedTold](w, "gap", "gap-closed"); len(w.gaps()) != 2 || len(g) != 0 {
			t.Fatalf("%d gaps are open and %d closed; want the one that is being refilled, and that of the stop", len(w.gaps()), len(g))
		}
		remove()
		w.configure = nil
		one.start()
		time.Sleep(5 * time.Minute)
		missing := 0
		for _, id := range random {
			if !w.hasMessage(id) {
				missing++
			}
		}
		closed := told[closedTold](w, "gap", "gap-closed")
		t.Log(missing, "missing;", w.queuesSay(), w.whys(), w.originsText(), len(w.gaps()))
		said := false
		for _, c := range closed {
			said = said || c.NotRefilled != nil
		}
		if missing > 0 && !said {
			t.Errorf("%d messages in #random of the lost queue are missing; %d gaps were opened, and those "+
				"closed say %+v",
				missing, len(w.gaps()), closed)
			w.logGaps()
		}
	})
}

// Two instances without a lease. One has changed over; the other reads the record again
// and again while it is not its own, and asks Zulip each time to delete the queue before.
func TestDeletedOnce(t *testing.T) {
	story(t, func(w *world, one *instance) {
		two := w.instance()
		one.follows(3)
		two.start()
		time.Sleep(5 * time.Second)
		two.stop()
		one.stop()
		w.options.SlimPresence = !w.options.SlimPresence
		one.follows(3)
		two.start()
		time.Sleep(10 * time.Second)
		began := time.Now()
		for range 60 {
			w.say(1)
			time.Sleep(10 * time.Second)
		}
		if n := w.requests(zulipsim.Delete, began); n > 2 {
			t.Errorf("%d requests to delete in %v, of queues: %s; %s", n, time.Since(began), w.queuesSay(), w.whys())
		}
	})
}

// The same where Zulip fails to delete.
func TestDeletesThatHang(t *testing.T) {
	story(t, func(w *world, one *instance) {
		two := w.instance()
		one.follows(3)
		one.stop()
		w.options.SlimPresence = !w.options.SlimPresence
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.Delete, Hang: true})
		one.follows(3)
		two.start()
		time.Sleep(10 * time.Second)
		began := time.Now()
		worst := time.Duration(0)
		for range 120 {
			w.say(1)
			sent := time.Now()
			id := w.lastIDs[len(w.lastIDs)-1]
			for !w.hasMessage(id) && time.Since(sent) < 10*time.Minute {
				time.Sleep(50 * time.Millisecond)
			}
			worst = max(worst, time.Since(sent))
			time.Sleep(10 * time.Second)
		}
		n := w.requests(zulipsim.Delete, began)
		t.Logf("%d requests to delete in %v; worst delay %v", n, time.Since(began), worst)
		if n > 100 || worst > 5*time.Second {
			t.Errorf("%d requests to delete in %v; a message took %v to be stored", n, time.Since(began), worst)
		}
		stop := time.Now()
		one.stop()
		two.stop()
		t.Logf("stop took %v", time.Since(stop))
	})
}

// The record of a change-over stood, and the stream lost it with its power, before the old
// queue could be deleted: the old one is followed on, and nobody deletes the new one.
func TestRecordOfAChangeOverLost(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		one.follows(3)
		one.stop()
		w.options.SlimPresence = !w.options.SlimPresence
		w.zulip.Fault(broken(zulipsim.Delete))
		one.start()
		time.Sleep(time.Second)
		w.zulip.ClearFaults()
		w.jet.Restore(1)
		time.Sleep(10 * time.Minute)
		t.Log(w.queuesSay())
		n := 0
		for _, q := range w.zulip.Queues() {
			if q.Dead == "" && !q.Waiting {
				n++
			}
		}
		if n > 0 {
			t.Errorf("%d queues are left over: %s; %s", n, w.queuesSay(), w.whys())
		}
	})
}

// Others publish on the realm's subjects while a refill runs, and the bridge is killed in
// its middle: the record of the gap still names the queue that was lost.
func TestOthersInARefillAndAKill(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.stop()
		lost := w.zulip.Queues()[0].ID
		w.say(600)
		w.expire()
		writes := 0
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "append" {
				writes++
				if writes == 4 { // the record again, gap opened, the queue, then the first chunk
					go w.jet.Publish("zulip.acme.foreign", []byte("x"))
					f.Late = 10 * time.Millisecond
				}
				if writes > 5 {
					f.Fail = stream.Unavailable
				}
			}
			return f
		})
		one.start()
		time.Sleep(10 * time.Second)
		one.kill()
		w.jet.SetFaults(nil)
		one.start()
		time.Sleep(time.Minute)
		closed := told[closedTold](w, "gap", "gap-closed")
		if len(closed) != 1 || closed[0].Old != lost {
			t.Errorf("gap closed: %.300v; want one that names %s", closed, lost)
		}
		t.Log(w.whys(), w.originsText(), writes)
		for _, q := range told[queueTold](w, "queue", "") {
			t.Log(q.Why, q.QueueID, q.Previous)
		}
		w.checkMessagesOnce()
	})
}

// A refill that begins below what the limits left, with large messages there: it is killed
// behind the first chunks.
func TestOverlapCutOff(t *testing.T) {
	for _, size := range []int{1, 2500} {
		if size > 1 && !longCourses {
			continue
		}
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				big := strings.Repeat(":+1:", size) // 80 bytes each in HTML
				w.options.ApplyMarkdown = true
				one.start()
				time.Sleep(time.Second)
				w.say(10)
				var late []int64
				var commits []func()
				for range 80 {
					id, commit := w.zulip.SendDelayed(zulipsim.Message{Channel: "general", Topic: "t", Content: big})
					late, commits = append(late, id), append(commits, commit)
				}
				w.say(5)
				time.Sleep(time.Second)
				one.stop()
				for _, commit := range commits {
					commit()
				}
				w.say(300)
				w.jet.Age(13)
				w.expire()
				writes := 0
				w.jet.SetFaults(func(op string) (f model.Fault) {
					if op == "append" {
						switch writes++; { // kept, gap opened, lost, a chunk; then the record and a part of the second chunk
						case writes == 5:
							f.Keep = 2
						case writes > 5:
							f.Fail = stream.Unavailable
						}
					}
					return f
				})
				one.start()
				time.Sleep(10 * time.Second)
				one.kill()
				w.jet.SetFaults(nil)
				one.start()
				time.Sleep(time.Minute)
				missing := 0
				for _, id := range late {
					if !w.hasMessage(id) {
						missing++
					}
				}
				closed := told[closedTold](w, "gap", "gap-closed")
				t.Log(w.whys(), w.originsText(), writes, len(closed))
				for _, m := range w.jet.Ever(0) {
					if i := strings.Index(string(m.Data), `"refill":`); i > 0 &&
						first(m, events.HeaderRecord) == "queue" {
						t.Logf("%d %s", m.Seq, m.Data[i:])
					}
				}
				if missing > 0 {
					t.Errorf("%d of %d late messages are missing; gap closed %.600v", missing, len(late), closed)
					w.logGaps()
				}
			})
		})
	}
}

// The same at the beginning of history: anchor 0 does say history_limited, and if the first
// page is all hidden it says found_newest as well, with no message in it.
func TestHistoryLimitedFirstPageHidden(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.options.Life = 10 * time.Minute
		one.start()
		time.Sleep(time.Second)
		one.stop()
		w.say(5)
		time.Sleep(time.Hour)
		page := `{"result":"success","msg":"","anchor":0,"found_anchor":false,"found_newest":true,` +
			`"found_oldest":true,"history_limited":true,"messages":[]}`
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, Status: 200, Body: page, Match: func(r *http.Request) bool {
			return r.URL.Query().Get("anchor") == "0"
		}})
		one.start()
		time.Sleep(time.Minute)
		closed := told[closedTold](w, "gap", "gap-closed")
		_, backfill := w.origins()
		t.Logf("%d refilled; %+v", backfill, closed[0].NotRefilled)
		if n := closed[0].NotRefilled; backfill == 0 && (n == nil || n.UpTo <= n.Above) {
			t.Errorf("none of the messages %v was refilled, and gap closed names %+v", w.lastIDs, n)
		}
	})
}

// The lease is lost while a record is unclear, and the stream is deleted and made again by
// who leads then. The queue that was left is never judged, since the stream stays shorter
// than what the standby knew.
func TestStandbyBehindANewStream(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		l := w.scriptedLease()
		one.follows(300)
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.Register, Delay: time.Second})
		w.expire()
		for w.living() == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		w.jet.SetFaults(func(op string) (f model.Fault) {
			f.Fail = map[string]stream.Kind{"append": stream.Unclear, "last": stream.Unavailable}[op]
			return f
		})
		time.Sleep(5 * time.Second)
		l.end()
		time.Sleep(time.Second)
		w.jet.SetFaults(nil)
		w.jet.Delete()
		w.configure = nil
		two := w.instance()
		two.start()
		time.Sleep(2 * time.Hour)
		left := ""
		for _, q := range w.zulip.Queues() {
			if q.Dead == "" && !q.Waiting {
				left += q.ID[:8] + " "
			}
		}
		t.Log(w.whys(), w.queuesSay(), len(w.jet.Messages()))
		if left != "" {
			t.Errorf("two hours later %sis left over: %s", left, w.queuesSay())
		}
	})
}

// Any goroutine asks for Status while a standby clears what it left (for -race).
func TestStatusBesideAStandbyThatClears(t *testing.T) {
	story(t, func(w *world, one *instance) {
		l := w.recordWaits(one, stream.Unclear)
		time.Sleep(2 * time.Second)
		l.end()
		go func() {
			for range 2000 {
				_ = one.bridge.Status()
				time.Sleep(10 * time.Millisecond)
			}
		}()
		time.Sleep(time.Second)
		w.jet.SetFaults(nil)
		w.jet.Publish("zulip.acme.foreign", []byte("x"))
		w.zulip.Fault(broken(zulipsim.Delete))
		time.Sleep(25 * time.Second)
		one.stop()
	})
}

// cutOff is a connection to the stream that breaks behind a write.
type cutOff struct {
	bridge.Stream
	next, down atomic.Bool
}

func (c *cutOff) AppendEach(ctx context.Context, after stream.Cursor, source stream.Source) (stream.Cursor, error) {
	if c.down.Load() {
		return after, &stream.Error{Kind: stream.Unavailable, Err: errors.New("not connected")}
	}
	cut := false
	at, err := c.Stream.AppendEach(ctx, after, func(stored int, at stream.Cursor) ([]stream.Message, bool) {
		msgs, more := source(stored, at)
		cut = c.next.Load() && len(msgs) == 1 && strings.Contains(string(msgs[0].Data), `"why":"options changed"`)
		return msgs, more
	})
	if cut {
		c.down.Store(true)
		return after, &stream.Error{Kind: stream.Unclear, Err: errors.New("no answer")}
	}
	return at, err
}

func (c *cutOff) Last(ctx context.Context) (stream.Cursor, *stream.Stored, error) {
	if c.down.Load() {
		return stream.Cursor{}, nil, &stream.Error{Kind: stream.Unavailable, Err: errors.New("not connected")}
	}
	return c.Stream.Last(ctx)
}

// One's record of a new queue is stored, its connection breaks before the answer, and it
// loses the lease. Two follows that queue. A minute later the server loses power and what
// was not on its disk, that record with it; one is back, sees the place of its record
// empty, and deletes the queue that two is following.
func TestStandbyDeletesNothingThatIsFollowed(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		one.follows(3)
		one.stop()
		w.options.SlimPresence = !w.options.SlimPresence
		l := w.scriptedLease()
		lease, cut := w.configure, &cutOff{}
		w.configure = func(c *bridge.Config) {
			lease(c)
			open := c.Open
			c.Open = func(ctx context.Context) (bridge.Stream, error) {
				s, err := open(ctx)
				cut.Stream = s
				return cut, err
			}
		}
		cut.next.Store(true)
		one.start()
		time.Sleep(time.Second)
		l.end()
		w.configure = nil
		two := w.instance()
		two.start()
		time.Sleep(90 * time.Second)
		t.Log(w.queuesSay(), w.whys(), l.had.Load())
		n := 0
		for i, m := range w.jet.Messages() {
			if strings.Contains(string(m.Data), `"why":"options changed"`) {
				n = len(w.jet.Messages()) - i
			}
		}
		for w.zulip.Queues()[1].Pending > 0 || !w.zulip.Queues()[1].Waiting {
			time.Sleep(time.Second)
		}
		w.jet.Restore(n)
		cut.down.Store(false)
		time.Sleep(11 * time.Second)
		if q := w.zulip.Queues()[1]; q.Dead != "" {
			t.Errorf("the queue that two follows is %q: %s", q.Dead, w.queuesSay())
		}
		time.Sleep(2 * time.Minute)
		t.Log(w.queuesSay(), w.whys())
		for _, g := range w.gaps() {
			t.Log(g["cause"])
		}
	})
}

// The stream is restored to an open gap, whose new queue this very process was following:
// what that queue holds is asked for no more, nothing names it, and nobody deletes it.
func TestTailLostToAnOpenGap(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		one.follows(3)
		w.expire()
		time.Sleep(2 * time.Minute)
		w.say(3)
		time.Sleep(time.Second)
		n := 0
		for i, m := range w.jet.Messages() {
			if first(m, events.HeaderRecord) == "gap-opened" {
				n = len(w.jet.Messages()) - i - 1
			}
		}
		w.setDown(true)
		for range 3 {
			w.zulip.React(w.lastIDs[0], "ada@example.com", "tada") // in the queue that lives
			w.zulip.React(w.lastIDs[1], "ada@example.com", "heart")
		}
		time.Sleep(10 * time.Second)
		w.jet.Restore(n)
		w.setDown(false)
		time.Sleep(3 * time.Minute)
		reactions := 0
		for _, m := range w.jet.Messages() {
			if m.Subject == "zulip.acme.reaction" {
				reactions++
			}
		}
		left := 0
		for _, q := range w.zulip.Queues() {
			if q.Dead == "" && !q.Waiting {
				left++
			}
		}
		said := ""
		for _, g := range told[closedTold](w, "gap", "gap-closed") {
			said += g.Cause + "\n"
		}
		if reactions == 0 && !strings.Contains(said, "which is followed no more") || left > 0 {
			t.Errorf("%d reactions stored of those that a living queue held, %d queues left over: %s; %s; the "+
				"gaps say %s",
				reactions, left, w.queuesSay(), w.whys(), said)
		}
	})
}
