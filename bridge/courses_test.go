package bridge_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/zulipsim"
)

// Courses of events that once broke the promise, each for its kind: what Zulip's history
// refuses or does not answer, a record that is stored and not acknowledged, queues that
// belong to nobody, clocks that are apart, and which messages a refill asks for.

// ended says whether an instance has ended by itself.
func ended(i *instance) (bool, error) {
	select {
	case <-i.done:
		return true, i.err
	default:
		return false, nil
	}
}

// queuesSay is the state of the queues at Zulip, for a log.
func (w *world) queuesSay() string {
	var b strings.Builder
	for _, q := range w.zulip.Queues() {
		fmt.Fprintf(&b, "[%.8s dead=%q waiting=%v pending=%d] ", q.ID, q.Dead, q.Waiting, q.Pending)
	}
	return b.String()
}

// originsText is where the messages in the stream came from, for a log.
func (w *world) originsText() string {
	l, b := w.origins()
	return fmt.Sprintf("%d live %d backfill", l, b)
}

// A channel of the narrow is renamed or deleted, and the queue is lost: history refuses
// the narrow with 400. Nothing ends by it, and the new queue is polled.
func TestHistoryRefusesTheNarrow(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.say(1)
		w.options.Narrow = [][2]string{{"channel", "general"}}
		one.follows(3)
		w.zulip.Fault(zulipsim.Fault{On: "messages", Status: 400,
			Body: `{"result":"error","msg":"Invalid narrow operator: unknown channel","code":"BAD_NARROW","desc":"unknown channel"}`})
		for _, q := range w.zulip.Queues() {
			w.zulip.ExpireQueue(q.ID)
		}
		for range 5 {
			time.Sleep(time.Minute)
			if end, err := ended(one); end {
				t.Errorf("the process ended: %v; queues %s", err, w.queuesSay())
				one.err = nil
				one.start()
			}
		}
		polled := 0
		for _, q := range w.zulip.Queues() {
			if q.Dead == "" && q.Waiting {
				polled++
			}
		}
		closed := told[closedTold](w, "gap", "gap-closed")
		if polled != 1 || len(closed) != 1 || closed[0].NotRefilled == nil ||
			!strings.Contains(closed[0].NotRefilled.Reason, "refuses") {
			t.Errorf("%d queues are polled, gap closed: %+v; want one of each, and the reason", polled, closed)
		}
	})
}

// One 400 to one request for history ends nothing.
func TestHistoryRefusesOnce(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		w.zulip.Fault(zulipsim.Fault{On: "messages", Times: 1, Status: 400,
			Body: `{"result":"error","msg":"Invalid something","code":"BAD_REQUEST"}`})
		for _, q := range w.zulip.Queues() {
			w.zulip.ExpireQueue(q.ID)
		}
		time.Sleep(time.Minute)
		if end, err := ended(one); end {
			t.Errorf("the process ended: %v; queues %s", err, w.queuesSay())
			one.err = nil
			one.done = nil
		}
	})
}

// History fails for long after the gap was opened: the refill ends at half of the idle
// life, and events go on.
func TestHistoryFailsForLong(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.options.Life = 10 * time.Minute
		one.follows(3)
		// register asks "newest" (num_before=1); pages of the refill (num_after=500) fail
		w.zulip.Fault(zulipsim.Fault{On: "messages", Match: nil, Skip: 1, Status: 500,
			Body: `{"result":"error","msg":"Internal server error"}`})
		one.kill()
		for _, q := range w.zulip.Queues() {
			w.zulip.ExpireQueue(q.ID)
		}
		w.say(5)
		one.start()
		for m := range 40 {
			time.Sleep(time.Minute)
			w.say(1)
			if m%5 == 4 {
				t.Logf("after %d min: %s; live,backfill=%v", m+1, w.queuesSay(), fmt.Sprint(w.originsText()))
			}
		}
		t.Log(w.whys())
		closed := told[closedTold](w, "gap", "gap-closed")
		if len(closed) == 0 {
			t.Errorf("after 40 minutes of failing history no gap is closed and nothing is polled: %s", w.queuesSay())
		}
	})
}

// The record of the new queue is stored, its acknowledgement lost, and the lease is lost
// before it can be settled: the queue that the stream names is kept.
func TestLeaseLostWhileTheRecordIsUnclear(t *testing.T) {
	for _, how := range []string{"lost", "changed over"} {
		t.Run(how, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.lease = &simLease{ttl: 4 * time.Second}
				one.follows(3)
				if how == "changed over" {
					one.stop()
					w.options.SlimPresence = !w.options.SlimPresence
				}
				deaf := false
				w.jet.SetFaults(func(op string) (f model.Fault) {
					if op == "append" && !deaf {
						ms := w.zulip.Queues()
						if len(ms) == 2 { // the new queue exists: this is its record
							deaf = true
							f.Deaf = true // stored, no answer
							go func() {
								w.jet.Down() // the connection drops
								// nobody can renew a lease either
								w.lease.mu.Lock()
								if h := w.lease.holder; h != nil {
									h.mu.Lock()
									h.deadline = time.Now().Add(4 * time.Second)
									h.mu.Unlock()
								}
								w.lease.mu.Unlock()
								time.Sleep(4 * time.Second)
								w.lease.mu.Lock()
								h := w.lease.holder
								w.lease.holder = nil
								w.lease.mu.Unlock()
								if h != nil {
									h.cancel()
								}
								time.Sleep(4 * time.Second)
								w.jet.Up()
							}()
						}
					}
					return f
				})
				if how == "changed over" {
					one.start()
				} else {
					for _, q := range w.zulip.Queues() {
						w.zulip.ExpireQueue(q.ID)
					}
				}
				time.Sleep(3 * time.Second)
				w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 7, "status_text": "only an event"})
				w.say(2)
				time.Sleep(3 * time.Minute)
				t.Log(w.queuesSay(), w.whys())
				gaps := told[map[string]any](w, "gap", "gap-opened")
				want := 1
				if how == "changed over" {
					want = 0
				}
				if len(gaps) != want {
					t.Errorf("%d gaps, want %d: %v", len(gaps), want, gaps)
				}
				n := 0
				for _, m := range w.jet.Messages() {
					if strings.Contains(string(m.Data), "only an event") {
						n++
					}
				}
				if n == 0 {
					t.Errorf("an event that Zulip put in the recorded queue is lost")
				}
			})
		})
	}
}

// After a pruning refusal the old queue lives: it is deleted when the new one is
// recorded.
func TestGivenUpQueueIsDeleted(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		one.follows(10)
		one.stop()
		w.jet.Restore(5) // an older backup; a new process knows nothing of it
		one.start()
		time.Sleep(3 * time.Minute)
		w.say(3)
		time.Sleep(time.Minute)
		t.Log(w.queuesSay(), w.whys())
		alive := 0
		for _, q := range w.zulip.Queues() {
			if q.Dead == "" {
				alive++
			}
		}
		if alive != 1 {
			t.Errorf("%d queues live at Zulip, want 1: %s", alive, w.queuesSay())
		}
	})
}

// The zuliprc gets another bot's e-mail and key while the bridge runs (the old bot was
// deactivated): the record names the new one, and the next start goes on with its queue.
func TestAccountReplacedUnderWay(t *testing.T) {
	story(t, func(w *world, one *instance) {
		second := w.zulip.Account("second-bot@acme.example.com")
		account := poller.Account{Email: simAccount, Key: w.account.Key, Site: "http://zulip.test"}
		name := simAccount
		w.configure = func(c *bridge.Config) {
			c.Poller.Client.Account = func() (poller.Account, error) { return account, nil }
			c.Account = name
		}
		one.follows(3)
		account = poller.Account{Email: second.Email, Key: second.Key, Site: "http://zulip.test"}
		w.account.Update(func(a *zulipsim.Account) { a.Deactivated = true })
		time.Sleep(5 * time.Minute)
		w.say(3)
		time.Sleep(time.Minute)
		t.Log(w.queuesSay(), w.whys())
		for _, q := range told[map[string]any](w, "queue", "") {
			t.Log("record of ", q["queue_id"], " account ", q["account"], " why ", q["why"])
		}
		gaps := told[map[string]any](w, "gap", "gap-opened")
		t.Log("gaps before the restart: ", len(gaps))
		one.stop()
		name = second.Email // what a start reads from the zuliprc
		w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 7, "status_text": "only an event"})
		one.start()
		time.Sleep(time.Minute)
		after := told[map[string]any](w, "gap", "gap-opened")
		t.Log(w.queuesSay(), w.whys())
		if len(after) != len(gaps) {
			t.Errorf("a gap without a loss at the restart: %v", after[len(after)-1]["cause"])
		}
		n := 0
		for _, m := range w.jet.Messages() {
			if strings.Contains(string(m.Data), "only an event") {
				n++
			}
		}
		if n == 0 {
			t.Errorf("an event in a living queue is lost")
		}
	})
}

// A narrow together with all public channels: what is refilled is what the queue would
// have got.
func TestNarrowAndAllPublicChannels(t *testing.T) {
	story(t, func(w *world, one *instance) {
		send := func(ch string) {
			w.zulip.SendMessage(zulipsim.Message{Channel: ch, Topic: "t",
				Content: fmt.Sprint("in ", ch, w.rng.Uint32())})
		}
		send("general")
		send("random")
		w.options.Narrow = [][2]string{{"channel", "general"}}
		w.options.AllPublicStreams = true
		one.start()
		time.Sleep(time.Second)
		for range 5 {
			send("general")
			send("random")
		}
		time.Sleep(time.Second)
		one.kill()
		for _, q := range w.zulip.Queues() {
			w.zulip.ExpireQueue(q.ID)
		}
		for range 5 {
			send("general")
			send("random")
		}
		one.start()
		time.Sleep(time.Minute)
		n := map[string]int{}
		for _, m := range w.jet.Messages() {
			for _, ch := range []string{"general", "random"} {
				if first(m, events.HeaderRecord) == "" && strings.Contains(string(m.Data), "in "+ch) {
					n[ch+" "+first(m, events.HeaderOrigin)]++
				}
			}
		}
		t.Log(n)
		if n["random backfill"] > 0 {
			t.Errorf("the queue's narrow lets nothing of #random in, and the refill brings %d (live %d)",
				n["random backfill"], n["random live"])
		}
	})
}

// History answers 429 and tells to wait for an hour: the gap is closed in time all the
// same.
func TestHistoryTellsToWait(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.options.Life = 10 * time.Minute
		one.follows(3)
		f := zulipsim.TooMany("3600")
		f.On, f.Skip, f.Times = "messages", 1, 1
		w.zulip.Fault(f)
		one.kill()
		for _, q := range w.zulip.Queues() {
			w.zulip.ExpireQueue(q.ID)
		}
		w.say(5)
		one.start()
		for range 40 {
			time.Sleep(time.Minute)
			w.say(1)
		}
		t.Log(w.queuesSay(), w.whys(), w.originsText())
		if closed := told[closedTold](w, "gap", "gap-closed"); len(closed) == 0 {
			t.Errorf("after 40 minutes the gap is open and nothing is polled")
		}
	})
}

// A bound on what is refilled, and two gaps: the second gap's own messages come back, not
// those that the first had cut.
func TestBoundOfTwoGaps(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.configure = func(c *bridge.Config) { c.RefillMaxMessages = 20 }
		one.follows(3)
		gap := func(n int) (ids []int64) {
			one.kill()
			for _, q := range w.zulip.Queues() {
				w.zulip.ExpireQueue(q.ID)
			}
			from := len(w.lastIDs)
			w.say(n)
			ids = w.lastIDs[from:]
			one.start()
			time.Sleep(time.Minute)
			w.say(3)
			time.Sleep(time.Minute)
			return ids
		}
		gap(100)
		second := gap(10)
		have := map[string]bool{}
		for _, m := range w.jet.Messages() {
			have[first(m, events.HeaderMessageID)] = true
		}
		missing := 0
		for _, id := range second {
			if !have[fmt.Sprint(id)] {
				missing++
			}
		}
		for _, c := range told[closedTold](w, "gap", "gap-closed") {
			t.Logf("closed: %d refilled, %+v", c.Refilled, c.NotRefilled)
		}
		if missing > 0 {
			t.Errorf("%d of the 10 messages of the second gap are not refilled, though 20 may be", missing)
		}
	})
}

// The clock of NATS is ahead of ours: it says nothing of when Zulip's idle clock was set.
type ahead struct {
	bridge.Stream
	by time.Duration
}

func (a *ahead) Last(ctx context.Context) (stream.Cursor, *stream.Stored, error) {
	c, m, err := a.Stream.Last(ctx)
	if m != nil {
		m.Time = m.Time.Add(a.by)
	}
	return c, m, err
}

func TestClockOfNatsAhead(t *testing.T) {
	for _, by := range []time.Duration{0, time.Minute} {
		if by > 0 && !longCourses {
			continue
		}
		t.Run(by.String(), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.options.Life = time.Minute
				w.zulip.RoundTrip = 60 * time.Millisecond
				w.zulip.SweepEvery = 5 * time.Second
				w.configure = func(c *bridge.Config) {
					open := c.Open
					c.Open = func(ctx context.Context) (bridge.Stream, error) {
						s, err := open(ctx)
						return &ahead{s, by}, err
					}
				}
				one.start()
				time.Sleep(time.Second)
				one.stop()
				one.start() // it resumes: the time of the newest message is taken for that of the idle clock
				for range 100 * 120 {
					w.say(1)
					time.Sleep(10 * time.Millisecond)
				}
				time.Sleep(time.Minute)
				if got := w.whys(); strings.Contains(got, "lost") {
					t.Errorf("NATS %v ahead: a queue was lost though it could have been changed over: %s", by, got)
				}
			})
		})
	}
}

// The clock is overdue while an answer is only half read (any answer above 64 KiB is read
// in several batches). The change-over asks the old queue once more, after the new one is
// made.
func TestChangeOverInTheMiddleOfAnAnswer(t *testing.T) {
	for _, size := range []int{10, 3000} {
		if size > 10 && !longCourses {
			continue
		}
		t.Run(fmt.Sprintf("messages of %d bytes", size), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.options.Life = time.Minute
				w.zulip.RoundTrip = 60 * time.Millisecond
				w.zulip.SweepEvery = 5 * time.Second
				one.start()
				time.Sleep(time.Second)
				n := 100 * 150
				for i := range n {
					w.lastIDs = append(w.lastIDs, w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t",
						Content: fmt.Sprintf("%d ", i) + strings.Repeat("x", size)}))
					time.Sleep(10 * time.Millisecond)
				}
				time.Sleep(time.Minute)
				w.check()
				t.Log(w.whys())
				if live, backfill := w.origins(); live != n || backfill != 0 {
					t.Errorf("%d live and %d refilled messages, want %d and 0: %d lost, no gap told: %v", live,
						backfill, n, n-live-backfill, told[map[string]any](w, "gap", ""))
				}
				for _, q := range w.zulip.Queues() {
					undelivered := 0
					for _, e := range q.Events {
						if e.Delivered.IsZero() {
							undelivered++
						}
					}
					if undelivered > 0 {
						t.Logf("queue %.8s (%s): %d events never delivered", q.ID, q.Dead, undelivered)
					}
				}
			})
		})
	}
}

// Zulip delivers an event again (a put-back in RabbitMQ, which comes behind the backlog),
// so one old message id stands among the newest in the stream. Then the queue is lost.
// The old id is neither where the refill begins, nor does it hide what has to be
// compared.
func TestRedeliveredBeforeALoss(t *testing.T) {
	for _, again := range []bool{false, true} {
		t.Run(fmt.Sprintf("redelivered %v", again), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.options.Life = 10 * time.Minute
				one.start()
				time.Sleep(time.Second)
				for range 50 {
					w.say(100)
					time.Sleep(time.Second)
				}
				if again {
					w.zulip.Redeliver(w.lastIDs[2000])
				}
				w.say(100)
				time.Sleep(time.Second)
				one.stop()
				w.say(50)
				time.Sleep(time.Hour)
				one.start()
				time.Sleep(time.Minute)
				times := map[string]int{}
				for _, m := range w.jet.Messages() {
					if id := first(m, events.HeaderMessageID); id != "" && first(m, events.HeaderRecord) == "" {
						times[id]++
					}
				}
				twice, missing := 0, 0
				for _, id := range w.lastIDs {
					switch n := times[fmt.Sprint(id)]; {
					case n == 0:
						missing++
					case n > 1:
						twice++
					}
				}
				closed := told[closedTold](w, "gap", "gap-closed")
				t.Logf("%d messages twice, %d missing; closed: %+v", twice, missing, closed)
				if c := told[map[string]any](w, "gap", "gap-closed"); len(c) != 1 || c[0]["not_compared_message_ids"] != nil {
					t.Errorf("gap closed: %v; want one in which everything was compared", c)
				}
				if twice > 1 || missing > 0 {
					t.Errorf("%d messages are in the stream twice and %d missing, of %d", twice, missing,
						len(w.lastIDs))
				}
			})
		})
	}
}

// The first queue took no messages. Message events are added to the options later: what
// was sent before is not missing, whatever is lost next.
func TestMessagesAddedLater(t *testing.T) {
	for _, how := range []string{"in good order, then a loss", "the queue had died"} {
		t.Run(how, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.say(3000) // the organization's past
				w.options.Life = 10 * time.Minute
				w.options.EventTypes = []string{"reaction"}
				one.start()
				time.Sleep(time.Second)
				w.zulip.React(w.lastIDs[0], "ada@example.com", "tada")
				time.Sleep(time.Second)
				one.stop()
				w.options.EventTypes = []string{"message", "reaction"}
				if how == "the queue had died" {
					time.Sleep(time.Hour)
				}
				one.follows(5)
				one.stop()
				w.say(7)
				time.Sleep(time.Hour)
				one.start()
				time.Sleep(time.Minute)
				live, backfill := w.origins()
				t.Logf("%s: %d live, %d refilled", w.whys(), live, backfill)
				if backfill > 20 {
					t.Errorf("%d messages refilled, 7 were missed since messages are asked for", backfill)
				}
			})
		})
	}
}

// The stream's limits take the queue's record while its refill runs, since it is older
// than what is refilled; then the bridge is killed. Nothing comes twice, and the refill
// is finished.
func TestLimitsTakeTheRecordInARefill(t *testing.T) {
	for _, taken := range []int{1, 3, 100, 400} {
		t.Run(fmt.Sprint(taken, " oldest messages"), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.options.Life = 10 * time.Minute
				one.follows(3)
				one.kill()
				w.say(1200)
				for _, q := range w.zulip.Queues() {
					w.zulip.ExpireQueue(q.ID)
				}
				writes := 0
				w.jet.SetFaults(func(op string) (f model.Fault) {
					if op == "append" {
						if writes++; writes > 5 { // resumed, gap opened, the queue's record, two chunks
							f.Fail = stream.Unavailable
						}
					}
					return f
				})
				one.start()
				time.Sleep(10 * time.Second)
				one.kill()
				w.jet.SetFaults(nil)
				w.jet.Age(taken)
				one.start()
				time.Sleep(time.Minute)
				w.say(2)
				time.Sleep(time.Minute)
				w.checkMessagesOnce()
				if closed := told[closedTold](w, "gap", "gap-closed"); len(closed) != 1 ||
					closed[0].NotRefilled != nil {
					t.Errorf("gap closed: %+v; want one, with nothing left out", closed)
				}
			})
		})
	}
}

// checkMessagesOnce compares what readers of the stream ever had with what people said.
func (w *world) checkMessagesOnce() {
	w.t.Helper()
	times := map[string]int{}
	for _, m := range w.jet.Ever(0) {
		if id := first(m, events.HeaderMessageID); id != "" && first(m, events.HeaderRecord) == "" {
			times[id]++
		}
	}
	twice, missing := 0, 0
	for _, id := range w.lastIDs {
		switch n := times[fmt.Sprint(id)]; {
		case n == 0:
			missing++
		case n > 1:
			twice++
		}
	}
	if twice > 0 || missing > 0 {
		w.t.Errorf("of %d messages readers had %d twice and %d never", len(w.lastIDs), twice, missing)
	}
}

// max_msgs_per_subject takes messages while everything else of the stream is still there,
// so it looks unbroken. What readers have had does not come again, and what is not known
// is said.
func TestLimitOfASubject(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.options.Life = 10 * time.Minute
		w.jet.MaxPerSubject = 150
		one.start()
		time.Sleep(time.Second)
		for range 15 {
			w.say(100)
			time.Sleep(time.Second)
		}
		one.stop()
		w.say(40)
		time.Sleep(time.Hour)
		one.start()
		time.Sleep(time.Minute)
		live, backfill := 0, 0
		for _, m := range w.jet.Ever(0) {
			if first(m, events.HeaderMessageID) != "" {
				if first(m, events.HeaderOrigin) == "backfill" {
					backfill++
				} else {
					live++
				}
			}
		}
		// Up to a hundred ids below what is left could be of a transaction that was open.
		if live != 1500 || backfill < 40 || backfill > 140 {
			t.Errorf("%d live and %d refilled messages; want 1500, and 40 to 140", live, backfill)
		}
		closed := told[map[string]any](w, "gap", "gap-closed")
		if len(closed) != 1 || closed[0]["not_compared_message_ids"] == nil {
			t.Errorf("gap closed: %v; want one that says which ids were not compared", closed)
		}
	})
}

// A stop while Zulip makes a queue: the answer is waited for, and the queue deleted.
func TestStopWhileRegistering(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.zulip.Fault(zulipsim.Fault{On: "register", Delay: 2 * time.Second, Times: 1})
		one.start()
		time.Sleep(time.Second)
		one.stop()
		time.Sleep(5 * time.Second)
		if q := w.zulip.Queues(); len(q) != 1 || q[0].Dead != "deleted" {
			t.Errorf("queues at Zulip: %s; want one, deleted", w.queuesSay())
		}
	})
}

// A stop behind which the same realm is run again, with other settings, is none that
// DeleteQueue means: the queue goes on.
func TestDeleteQueueOfARealmThatIsRunAgain(t *testing.T) {
	story(t, func(w *world, one *instance) {
		again := errors.New("again")
		w.configure = func(c *bridge.Config) { c.DeleteQueue, c.Again = true, again }
		one.start()
		time.Sleep(time.Second)
		w.say(5)
		one.why = again
		one.stop()
		one.start()
		time.Sleep(time.Second)
		w.say(5)
		time.Sleep(time.Second)
		w.check()
		w.checkMessagesOnce()
		if q := w.zulip.Queues(); len(q) != 1 || q[0].Dead != "" {
			t.Errorf("queues at Zulip: %s; want one, that is polled", w.queuesSay())
		}
		one.why = nil
		one.stop()
		if q := w.zulip.Queues(); len(q) != 1 || q[0].Dead != "deleted" {
			t.Errorf("queues at Zulip: %s; want it deleted by a stop", w.queuesSay())
		}
	})
}

// A stop with DeleteQueue retires the queue under the lease: a standby begins behind the
// gap.
func TestDeleteQueueWithAStandby(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.lease = &simLease{ttl: 4 * time.Second}
		w.configure = func(c *bridge.Config) { c.DeleteQueue = true }
		two := w.instance()
		one.start()
		time.Sleep(time.Second)
		two.start()
		time.Sleep(time.Second)
		w.say(5)
		time.Sleep(time.Second)
		for i := range 20 {
			time.AfterFunc(time.Duration(i)*50*time.Millisecond,
				func() { w.zulip.Emit(map[string]any{"type": "user_status", "user_id": i, "status_text": "x"}) })
		}
		one.stop()
		time.Sleep(time.Minute)
		w.say(5)
		time.Sleep(time.Second)
		w.check()
		w.checkMessagesOnce()
		if got, want := w.whys(), "first, lost, kept"; got != want {
			t.Errorf("queues recorded: %s; want %s", got, want)
		}
		// A standby that is stopped deletes nothing.
		one.start()
		time.Sleep(10 * time.Second)
		one.stop()
		time.Sleep(10 * time.Second)
		if q := w.zulip.Queues(); len(q) != 2 || q[1].Dead != "" || !q[1].Waiting {
			t.Errorf("queues at Zulip: %s; want the second one polled", w.queuesSay())
		}
	})
}

// Without a lease: the record of a new queue is stored, its answer lost, and another
// instance goes on from it. The first one must not delete the queue that both follow.
func TestQueueThatAnotherInstanceFollows(t *testing.T) {
	story(t, func(w *world, one *instance) {
		two := w.instance()
		one.follows(3)
		var deaf atomic.Bool
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "append" && !deaf.Load() && len(w.zulip.Queues()) == 2 {
				f.Deaf = true
				one.gate.close()
				deaf.Store(true)
			}
			return f
		})
		for _, q := range w.zulip.Queues() {
			w.zulip.ExpireQueue(q.ID)
		}
		for !deaf.Load() {
			time.Sleep(time.Millisecond)
		}
		two.start()
		time.Sleep(10 * time.Second)
		w.say(3)
		time.Sleep(time.Second)
		one.gate.open()
		time.Sleep(10 * time.Second)
		w.say(3)
		time.Sleep(10 * time.Second)
		w.checkMessagesOnce()
		if q := w.zulip.Queues(); len(q) != 2 || q[1].Dead != "" {
			t.Errorf("queues at Zulip: %s; want two, the second alive", w.queuesSay())
		}
	})
}

// The settings are edited under way: where they break the promise nothing more is
// acknowledged.
func TestRetentionEdited(t *testing.T) {
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprintf("not told of it %v", silent), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.truncated = true
				w.jet.Silent = silent
				one.follows(3)
				w.jet.Edit(func(s *model.Settings) { s.Interest = true })
				for range 300 {
					w.say(1)
					time.Sleep(100 * time.Millisecond)
				}
				end, err := ended(one)
				if _, ok := errors.AsType[*stream.ConfigError](err); !end || !ok {
					t.Fatalf("ended %v with %v; want a ConfigError", end, err)
				}
				one.err = nil
				pending := 0
				for _, q := range w.zulip.Queues() {
					pending += q.Pending
				}
				if most := 300; pending < most-map[bool]int{false: 2, true: 110}[silent] {
					t.Errorf("%d of %d events are left at Zulip", pending, most)
				}
			})
		})
	}
}

// Subjects widened under way, with others busy: writes go on with the filter's
// expectation.
func TestSubjectsWidened(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.Silent = true
		one.follows(3)
		w.jet.Edit(func(s *model.Settings) { s.Shared = true })
		for range 100 {
			w.jet.Publish("zulip.elsewhere.message", []byte("theirs"))
			w.say(1)
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		w.check()
		w.checkMessagesOnce()
	})
}

// A stream that takes no records of ours is refused at the start, and when it is made so.
func TestStreamTooNarrow(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.MaxMsgSize = 512
		one.start()
		time.Sleep(time.Second)
		if end, err := ended(one); !end || err == nil || !strings.Contains(err.Error(), "max_msg_size") ||
			len(w.zulip.Queues()) != 0 {
			t.Errorf("ended %v with %v, queues %s; want an error that names max_msg_size, and no queue", end, err,
				w.queuesSay())
		}
		one.err = nil
	})
}

// More messages were changed in a gap than a record can name.
func TestManyChangedInAGap(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.MaxPayload = 8 << 10
		one.follows(3000)
		one.kill()
		for _, id := range w.lastIDs {
			w.zulip.EditMessage(id, zulipsim.Edit{Content: new("edited")})
		}
		for _, q := range w.zulip.Queues() {
			w.zulip.ExpireQueue(q.ID)
		}
		one.start()
		time.Sleep(time.Minute)
		type changed struct {
			Changed []int64 `json:"changed_message_ids"`
			More    int     `json:"changed_messages_not_named"`
		}
		closed := told[changed](w, "gap", "gap-closed")
		if len(closed) != 1 || len(closed[0].Changed) < 100 || len(closed[0].Changed)+closed[0].More != 3000 {
			t.Errorf("%d gaps closed; want one that names some of the 3000 changed messages and counts the rest",
				len(closed))
		}
		w.checkMessagesOnce()
	})
}

// What was edited or moved in a gap is named, and nothing else is: a move leaves another
// mark than an edit, and of the messages of a topic that moves only the first has a
// history.
func TestMovedAndEditedInAGap(t *testing.T) {
	for _, level := range []int{300, 400} { // before 365 a move is marked as an edit is
		t.Run(fmt.Sprintf("feature level %d", level), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.zulip.FeatureLevel = level
				one.follows(10)
				one.kill()
				time.Sleep(10 * time.Second)
				ids := w.lastIDs
				w.zulip.EditMessage(ids[1], zulipsim.Edit{Content: new("edited")})
				w.zulip.EditMessage(ids[3], zulipsim.Edit{Topic: new("elsewhere"), Also: []int64{ids[4], ids[6]}})
				for _, q := range w.zulip.Queues() {
					w.zulip.ExpireQueue(q.ID)
				}
				one.start()
				time.Sleep(time.Minute)
				closed := told[struct {
					Changed []int64 `json:"changed_message_ids"`
				}](w, "gap", "gap-closed")
				if want := []int64{ids[1], ids[3], ids[4], ids[6]}; len(closed) != 1 ||
					!slices.Equal(closed[0].Changed, want) {
					t.Errorf("gaps closed: %+v; want one that names %v", closed, want)
				}
			})
		})
	}
}

// An event without an id is rejected once, restarts included, also in a stream that
// others use too.
func TestNoIDInASharedStream(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.Shared = true
		one.start()
		time.Sleep(time.Second)
		w.zulip.EmitRaw(`{"type":"mystery","n":1}`)
		time.Sleep(time.Second)
		for range 4 {
			w.jet.Publish("zulip.elsewhere.message", []byte("theirs"))
			one.kill()
			one.start()
			time.Sleep(10 * time.Second)
		}
		if n := len(told[map[string]any](w, "rejected", "")); n != 1 {
			t.Errorf("rejected %d times, want once", n)
		}
	})
}

// Two events that cannot be carried have one id; the first is stored and its answer lost.
func TestTwoBadEventsWithOneID(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.start()
		time.Sleep(time.Second)
		one.stop()
		w.zulip.EmitRaw(`{"type":"a.b","id":7,"n":1}`)
		w.zulip.EmitRaw(`{"type":"a.b","id":7,"n":2}`)
		writes := 0
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "append" {
				if writes++; writes == 2 { // the queue's record, and now these
					f.Keep = 1
				}
			}
			return f
		})
		one.start()
		time.Sleep(time.Minute)
		seen := map[string]bool{}
		for _, r := range told[map[string]any](w, "rejected", "") {
			seen[fmt.Sprint(r["event"])] = true
		}
		if len(seen) != 2 {
			t.Errorf("rejected: %v; want both", seen)
		}
	})
}

// Five thousand events that cannot be carried are a few lines of log.
func TestManyRejectedAreFewLines(t *testing.T) {
	story(t, func(w *world, one *instance) {
		var log bytes.Buffer
		w.log = zerolog.New(&log)
		one.start()
		time.Sleep(time.Second)
		one.gate.close()
		for i := range 5000 {
			w.zulip.EmitRaw(fmt.Sprintf(`{"type":"a.b","id":%%ID%%,"n":%d}`, i))
		}
		one.gate.open()
		time.Sleep(5 * time.Minute)
		one.stop()
		if n := len(told[map[string]any](w, "rejected", "")); n != 5000 {
			t.Errorf("%d rejected, want 5000", n)
		}
		lines := strings.Count(log.String(), "could not be carried") + strings.Count(log.String(), "cannot be carried")
		if lines < 2 || lines > 5 || !strings.Contains(log.String(), "4999") {
			t.Errorf("%d lines of log, want a few, and the count: %s", lines, log.String())
		}
	})
}

// A start whose record the limits took does not wait, on a single server.
func TestStartWithoutARecord(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.Single = true
		one.follows(5)
		one.kill()
		w.jet.Age(4)
		before := len(w.zulip.Requests())
		one.start()
		time.Sleep(time.Second)
		if n := len(w.zulip.Requests()) - before; n == 0 {
			t.Error("not polled within a second")
		}
	})
}

// Every loop that asks the stream has a floor for its pause: whatever a server answers,
// requests stay few.
func TestRequestsAreFew(t *testing.T) {
	ops := []string{"last", "at", "last on", "next", "scan", "info", "append", "put object"}
	for _, op := range ops {
		for _, kind := range []stream.Kind{stream.Unavailable, stream.Refused, stream.Unclear, stream.Wrong,
			stream.TooLarge, stream.Forbidden, stream.Full} {
			t.Run(op+" "+kind.String(), func(t *testing.T) {
				story(t, func(w *world, one *instance) {
					w.options.Life = 10 * time.Minute
					w.jet.MaxPayload = 20000
					one.follows(5)
					w.jet.Publish("zulip.acme.foreign", []byte("theirs"))
					w.jet.SetFaults(func(asked string) (f model.Fault) {
						if asked == op {
							f.Fail = kind
						}
						return f
					})
					w.say(5)
					w.zulip.Emit(map[string]any{"type": "drafts", "op": "add", "text": strings.Repeat("x", 30000)})
					for _, q := range w.zulip.Queues() {
						w.zulip.ExpireQueue(q.ID)
					}
					counted := func() (n int) {
						for _, op := range ops {
							n += w.jet.Requests(op)
						}
						return n
					}
					time.Sleep(10 * time.Second)
					before, asked := counted(), len(w.zulip.Requests())
					time.Sleep(100 * time.Second)
					if n := counted() - before; n > 1500 {
						t.Errorf("%d requests in 100 seconds", n)
					}
					if n := len(w.zulip.Requests()) - asked; n > 110 {
						t.Errorf("%d requests to Zulip in 100 seconds", n)
					}
					w.jet.SetFaults(nil)
					one.kill()
				})
			})
		}
	}
}
