package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"slices"
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

// One story for each line that the promise rests on and that no other test would miss:
// the mutations name them.

// dead is Zulip's answer to a poll of a queue that it does not have.
const dead = `{"result":"error","msg":"Bad event queue ID: x","code":"BAD_EVENT_QUEUE_ID","queue_id":"x"}`

// expire drops all queues, as Zulip does with those that were idle for too long.
func (w *world) expire() {
	for _, q := range w.zulip.Queues() {
		w.zulip.ExpireQueue(q.ID)
	}
}

// gaps are the records that open one.
func (w *world) gaps() []map[string]any { return told[map[string]any](w, "gap", "gap-opened") }

// requests counts those of a kind that Zulip had since a time.
func (w *world) requests(kind zulipsim.Kind, since time.Time) (n int) {
	for _, r := range w.zulip.Requests() {
		if r.Kind == kind && !r.Time.Before(since) {
			n++
		}
	}
	return n
}

// A proxy refuses one poll in Zulip's own words, or another says nothing of the queue for
// half a minute: the queue is asked again, and lives.
func TestRefusalIsAskedAgain(t *testing.T) {
	for name, f := range map[string]zulipsim.Fault{
		"once": {Times: 1, Body: dead},
		"for half a minute": {For: 30 * time.Second,
			Body: `{"result":"error","msg":"Something else","code":"BAD_REQUEST"}`},
		"for five minutes": {For: 5 * time.Minute,
			Body: `{"result":"error","msg":"Something else","code":"BAD_REQUEST"}`},
		"once, then no word": {Times: 1, Body: `{"result":"error","msg":"Something else","code":"BAD_REQUEST"}`},
	} {
		t.Run(name, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				one.start()
				time.Sleep(time.Second)
				f.On, f.Status = zulipsim.Events, http.StatusBadRequest
				w.zulip.Fault(f)
				w.say(3)
				time.Sleep(10 * time.Minute)
				if g := w.gaps(); (len(g) > 0) != (f.For > time.Minute) {
					t.Errorf("gaps opened: %v; want some only where it lasts for longer than a minute", g)
				}
				w.check()
				w.checkMessagesOnce()
			})
		})
	}
}

// New queues die before they have answered a poll, one after the other: the pauses
// between registers grow to half a minute. A queue that has answered ends the row.
func TestPauseBetweenLossesGrows(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(1)
		remove := w.zulip.Fault(zulipsim.Fault{On: zulipsim.Events, Status: http.StatusBadRequest, Body: dead})
		w.expire()
		began := time.Now()
		time.Sleep(10 * time.Minute)
		if n := w.requests(zulipsim.Register, began); n < 15 || n > 35 {
			t.Errorf("%d queues made in ten minutes, none of which answers; want some 25", n)
		}
		remove()
		time.Sleep(time.Minute)
		w.say(1)
		time.Sleep(time.Second)
		began = time.Now()
		w.expire()
		w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "wake up"})
		time.Sleep(15 * time.Second)
		if n := w.requests(zulipsim.Register, began); n != 1 {
			t.Errorf("%d queues made within 15 seconds of a loss behind a queue that had answered, want 1", n)
		}
	})
}

// A register that Zulip refuses ends the very first start, at the third time; once a
// queue was had it ends nothing.
func TestRegisterRefused(t *testing.T) {
	refused := zulipsim.Fault{On: zulipsim.Register, Status: http.StatusBadRequest,
		Body: `{"result":"error","msg":"User not authorized for this query","code":"BAD_REQUEST"}`}
	for _, test := range []struct {
		name  string
		first bool
		times int
		ends  bool
	}{{"the first two of the first start", true, 2, false}, {"all of the first start", true, 0, true},
		{"ten of a later one", false, 10, false}} {
		t.Run(test.name, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				refused.Times = test.times
				if !test.first {
					one.follows(3)
					one.stop()
					w.expire()
				}
				w.zulip.Fault(refused)
				one.start()
				time.Sleep(time.Minute)
				w.say(2)
				time.Sleep(20 * time.Minute)
				end, err := ended(one)
				if end != test.ends {
					t.Fatalf("ended %v with %v, want %v", end, err, test.ends)
				}
				if end {
					if !strings.Contains(err.Error(), "--event-types") ||
						w.requests(zulipsim.Register, time.Time{}) != 3 {
						t.Errorf("ended with %v after %d registers; want one that names --event-types after 3", err,
							w.requests(zulipsim.Register, time.Time{}))
					}
					one.err = nil
					return
				}
				w.check()
			})
		})
	}
}

// Zulip refuses the options of a start: the old queue is followed as it is, and the
// options are not tried again and again.
func TestOptionsRefusedAtAChangeOver(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.stop()
		w.say(2)
		w.options.SlimPresence = !w.options.SlimPresence
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.Register, Status: http.StatusBadRequest,
			Body: `{"result":"error","msg":"no","code":"BAD_REQUEST"}`})
		began := time.Now()
		one.start()
		time.Sleep(time.Minute)
		w.jet.Down()
		time.Sleep(time.Minute)
		w.jet.Up()
		w.say(2)
		time.Sleep(time.Minute)
		if n := w.requests(zulipsim.Register, began); n != 1 {
			t.Errorf("%d registers, want 1", n)
		}
		w.check()
		w.checkMessagesOnce()
		if q := w.zulip.Queues(); len(q) != 1 || q[0].Dead != "" {
			t.Errorf("queues at Zulip: %s; want the one, alive", w.queuesSay())
		}
	})
}

// The old queue turns out to be dead when it is to be drained: that is a loss like any
// other.
func TestOldQueueDeadAtAChangeOver(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.options.Life = 10 * time.Minute
		one.follows(3)
		one.stop()
		w.say(4)
		w.options.SlimPresence = !w.options.SlimPresence
		time.Sleep(time.Hour)
		one.start()
		time.Sleep(time.Minute)
		w.say(2)
		time.Sleep(time.Minute)
		w.check()
		w.checkMessagesOnce()
		if g := w.gaps(); len(g) != 1 {
			t.Errorf("%d gaps, want 1", len(g))
		}
		alive := 0
		for _, q := range w.zulip.Queues() {
			if q.Dead == "" {
				alive++
			}
		}
		if alive != 1 {
			t.Errorf("queues at Zulip: %s; want one alive", w.queuesSay())
		}
	})
}

// A stop in the middle of a change-over: the record of the new queue was never sent, so
// it is deleted.
func TestStopInAChangeOver(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.stop()
		w.say(5)
		w.options.SlimPresence = !w.options.SlimPresence
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "append" {
				f.Fail = stream.Unavailable
			}
			return f
		})
		one.start()
		time.Sleep(5 * time.Second)
		one.stop()
		w.jet.SetFaults(nil)
		if q := w.zulip.Queues(); len(q) != 2 || q[0].Dead != "" || q[1].Dead != "deleted" {
			t.Errorf("queues at Zulip: %s; want two, the second deleted", w.queuesSay())
		}
		one.start()
		time.Sleep(time.Minute)
		w.check()
		w.checkMessagesOnce()
	})
}

// What a gap has cut stays cut when the queue behind it is changed over, or lost in its
// turn.
func TestCutStaysCut(t *testing.T) {
	for _, how := range []string{"changed over", "lost"} {
		t.Run(how, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.configure = func(c *bridge.Config) { c.RefillMaxMessages = 20 }
				one.follows(3)
				lose := func(n int) (ids []int64) {
					one.kill()
					w.expire()
					from := len(w.lastIDs)
					w.say(n)
					one.start()
					time.Sleep(time.Second)
					return w.lastIDs[from:]
				}
				lose(100)
				if how == "changed over" {
					one.stop()
					w.options.SlimPresence = !w.options.SlimPresence
					one.start()
					time.Sleep(time.Second)
				} else {
					lose(3)
				}
				last := lose(15)
				time.Sleep(time.Minute)
				have := map[string]bool{}
				for _, m := range w.jet.Messages() {
					have[first(m, events.HeaderMessageID)] = true
				}
				for _, id := range last {
					if !have[fmt.Sprint(id)] {
						t.Errorf("message %d of the last gap was left out, though 20 may be refilled", id)
					}
				}
			})
		})
	}
}

// All public channels are asked for later: what came before is not missing.
func TestPublicChannelsAddedLater(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.account.Update(func(a *zulipsim.Account) { a.NoSubscriptions = true })
		w.options.Life = 10 * time.Minute
		w.say(500)
		one.start()
		time.Sleep(time.Second)
		one.stop()
		w.options.AllPublicStreams = true
		one.follows(5)
		one.stop()
		w.say(7)
		time.Sleep(time.Hour)
		one.start()
		time.Sleep(time.Minute)
		if live, backfill := w.origins(); live != 5 || backfill != 7 {
			t.Errorf("%d live and %d refilled messages, want 5 and 7", live, backfill)
		}
	})
}

// After an outage the first answer comes at once, in the quietest organization: no reason
// to change over.
func TestOutageIsNoBusyOrganization(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.options.Life = 10 * time.Minute
		one.start()
		time.Sleep(time.Second)
		w.jet.Down()
		w.say(1)
		time.Sleep(8 * time.Minute)
		w.jet.Up()
		time.Sleep(5 * time.Minute)
		w.check()
		if got := w.whys(); strings.Contains(got, "changed") {
			t.Errorf("queues recorded: %s; want no change-over", got)
		}
	})
}

// An instance whose poll ends empty because another polls the queue reads the stream
// before it asks again: it never asks for what the other has acknowledged.
func TestEmptyPollIsLookedInto(t *testing.T) {
	story(t, func(w *world, one *instance) {
		two := w.instance()
		one.start()
		time.Sleep(time.Second)
		two.start()
		for range 60 {
			w.say(1)
			time.Sleep(1700 * time.Millisecond)
		}
		one.stop()
		time.Sleep(time.Minute)
		w.check()
		for _, r := range w.zulip.Requests() {
			if r.Kind == zulipsim.Events && r.Status == http.StatusBadRequest {
				t.Fatalf("Zulip refused a poll at %v: %v", r.Time, r.Params)
			}
		}
	})
}

// The record of the queue is written again once a day, or four times in what the stream
// keeps.
func TestRecordIsWrittenAgain(t *testing.T) {
	for _, test := range []struct {
		keeps, lasts time.Duration
		want         int
	}{{0, 25 * time.Hour, 1}, {2 * time.Hour, 5 * time.Hour, 10}} {
		if test.keeps == 0 && !longCourses {
			continue
		}
		t.Run(test.keeps.String(), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.jet.MaxAge = test.keeps
				one.start()
				time.Sleep(test.lasts)
				n := 0
				for _, m := range w.jet.Ever(0) {
					if first(m, events.HeaderRecord) == "queue" {
						n++
					}
				}
				if n--; n > test.want || n < test.want-test.want/5 {
					t.Errorf("written again %d times in %v, want %d", n, test.lasts, test.want)
				}
			})
		})
	}
}

// A stop hands the lease over at once, and finishes a write that is under way.
func TestStopIsInOrder(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.lease = &simLease{ttl: time.Minute}
		two := w.instance()
		one.start()
		time.Sleep(time.Second)
		two.start()
		time.Sleep(time.Second)
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "append" {
				f.Late = 1500 * time.Millisecond
			}
			return f
		})
		w.say(1)
		time.Sleep(100 * time.Millisecond)
		one.stop()
		w.jet.SetFaults(nil)
		if live, _ := w.origins(); live != 1 {
			t.Error("a stop did not finish the write that was under way")
		}
		w.say(1)
		time.Sleep(10 * time.Second)
		if live, _ := w.origins(); live != 2 {
			t.Error("ten seconds after a stop the standby does not work")
		}
	})
}

// The stream loses what it had stored before Zulip was told to forget it: polling from
// the stream's position brings it back, and no gap is opened.
func TestTailLostThatZulipHas(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		one.follows(2)
		one.stop()
		w.say(1500) // one answer, two batches
		writes := 0
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "append" {
				if writes++; writes == 3 { // the record of the queue, and the first batch
					f.Fail = stream.Unavailable
					go func() { w.jet.Down(); w.jet.Restore(50); w.jet.Up() }()
				}
			}
			return f
		})
		one.start()
		time.Sleep(time.Minute)
		w.check()
		w.checkMessagesStand()
		if g := w.gaps(); len(g) != 0 || writes < 4 {
			t.Errorf("gaps opened: %v after %d writes; want none, since Zulip had it all", g, writes)
		}
	})
}

// checkMessagesStand compares what the stream holds now with what people said.
func (w *world) checkMessagesStand() {
	w.t.Helper()
	times := map[string]int{}
	for _, m := range w.jet.Messages() {
		if id := first(m, events.HeaderMessageID); id != "" && first(m, events.HeaderRecord) == "" {
			times[id]++
		}
	}
	for _, id := range w.lastIDs {
		if n := times[fmt.Sprint(id)]; n != 1 {
			w.t.Errorf("message %d is in the stream %d times", id, n)
			return
		}
	}
}

// Both records of a gap name the events that the stream had lost from its own end.
func TestMissingEventsAreNamed(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		one.follows(10)
		w.jet.Restore(3)
		time.Sleep(3 * time.Minute)
		for _, record := range []string{"gap-opened", "gap-closed"} {
			g := told[struct {
				Missing *struct{ Above, UpTo int64 } `json:"missing_event_ids"`
			}](w, "gap", record)
			if len(g) != 1 || g[0].Missing == nil {
				t.Errorf("%s: want one, with the event ids that are missing", record)
			}
		}
	})
}

// The stream is deleted under way, and made again by whoever opens it.
func TestStreamDeleted(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		one.follows(3)
		w.jet.Delete()
		w.say(3)
		time.Sleep(3 * time.Minute)
		w.say(3)
		time.Sleep(time.Minute)
		if n := len(w.jet.Messages()); n < 4 {
			t.Errorf("%d messages in the stream that was made again; queues %s", n, w.queuesSay())
		}
	})
}

// Behind a message of others, on the realm's own subjects, our first message is a record:
// a start looks for it.
func TestRecordBehindOthers(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.start()
		time.Sleep(time.Second)
		for range 20 {
			w.jet.Publish("zulip.acme.message", []byte("theirs"))
			w.say(2)
			time.Sleep(time.Second)
		}
		theirs := false
		for _, m := range w.jet.Messages() {
			if theirs && ours(&m) && first(m, events.HeaderRecord) == "" {
				t.Fatalf("message %d is no record, and follows one of others", m.Seq)
			}
			theirs = !ours(&m)
		}
		w.check()
		w.checkMessagesOnce()
	})
}

// The limit of a message is lowered under way, and nobody tells of it: what does not fit
// any more goes to the object store.
func TestLimitOfAMessageLowered(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.Silent = true
		one.start()
		time.Sleep(time.Second)
		w.jet.Edit(func(s *model.Settings) { s.MaxMsgSize = 8192 })
		w.zulip.Emit(map[string]any{"type": "drafts", "op": "add", "text": strings.Repeat("x", 10000)})
		time.Sleep(5 * time.Second)
		if n := len(w.jet.Objects()); n != 1 {
			t.Errorf("%d objects after five seconds, want 1", n)
		}
		if n := w.jet.Requests("append"); n > 10 {
			t.Errorf("%d writes, want a few", n)
		}
		w.check()
	})
}

// The record of a new queue is given up by a lease that is lost, and lands seconds later.
// The queue waits until it is seen whether it stands; then it is followed, or deleted.
func TestRecordThatLandsLate(t *testing.T) {
	for _, lands := range []bool{true, false} {
		t.Run(fmt.Sprintf("it lands %v", lands), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.lease = &simLease{ttl: 4 * time.Second}
				one.follows(3)
				done := false
				w.jet.SetFaults(func(op string) (f model.Fault) {
					if op == "append" && len(w.zulip.Queues()) >= 2 {
						switch {
						case !done && lands:
							f.Deaf, f.Late = true, 20*time.Second
						case !done:
							f.Fail = stream.Unclear
						default: // nothing else is stored meanwhile
							f.Fail = stream.Unavailable
						}
						if !done {
							done = true
							go func() {
								time.Sleep(100 * time.Millisecond)
								w.lease.mu.Lock()
								h := w.lease.holder
								w.lease.holder = nil
								w.lease.mu.Unlock()
								h.cancel()
							}()
						}
					}
					return f
				})
				w.expire()
				time.Sleep(25 * time.Second)
				w.jet.SetFaults(nil)
				time.Sleep(5 * time.Minute)
				w.say(3)
				time.Sleep(time.Minute)
				alive := 0
				for _, q := range w.zulip.Queues() {
					if q.Dead == "" {
						alive++
					}
				}
				if g := w.gaps(); len(g) != 1 || alive != 1 {
					t.Errorf("%d gaps, queues at Zulip: %s; want one gap and one queue alive", len(g), w.queuesSay())
				}
				w.check()
				w.checkMessagesOnce()
			})
		})
	}
}

// NATS is away when the queue is to be retired: no gap stands, so the queue is kept.
func TestRetireWithoutNats(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.configure = func(c *bridge.Config) { c.DeleteQueue = true }
		one.follows(3)
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "append" {
				f.Fail = stream.Unavailable
			}
			return f
		})
		one.end()
		<-one.done
		if one.err == nil || !strings.Contains(one.err.Error(), `the queue "`) ||
			!strings.Contains(one.err.Error(), `was to be deleted, and it was not`) {
			t.Errorf("ended with %v; want which queue was not deleted", one.err)
		}
		one.err, one.done = nil, nil
		w.jet.SetFaults(nil)
		one.dead()
		if q := w.zulip.Queues(); len(q) != 1 || q[0].Dead != "" {
			t.Errorf("queues at Zulip: %s; want the one, alive", w.queuesSay())
		}
	})
}

// A stop that comes while the program starts: whose queue it is, and which, is found out
// first. What cannot be found out is told, and a standby does not keep anybody waiting.
func TestRetireWhileStarting(t *testing.T) {
	away := false
	follow := func(w *world, one *instance) {
		one.follows(3)
		one.stop()
		w.configure = func(c *bridge.Config) {
			c.DeleteQueue = true
			open := c.Open
			c.Open = func(ctx context.Context) (bridge.Stream, error) {
				select {
				case <-ctx.Done():
					return nil, context.Cause(ctx)
				case <-time.After(100 * time.Millisecond):
				}
				if away {
					return nil, &stream.Error{Kind: stream.Unavailable, Err: errors.New("NATS is away")}
				}
				return open(ctx)
			}
		}
	}
	// started is a start that a stop overtakes. It says how long the end took, and what
	// it was.
	started := func(one *instance) (time.Duration, error) {
		began := time.Now()
		one.start()
		one.end()
		<-one.done
		err := one.err
		one.err, one.done = nil, nil
		one.dead()
		return time.Since(began), err
	}
	dead := func(t *testing.T, w *world, want string) {
		if q := w.zulip.Queues(); len(q) != 1 || q[0].Dead != want {
			t.Errorf("queues at Zulip: %s; want one, and of it %q", w.queuesSay(), want)
		}
	}
	for _, leased := range []bool{false, true} {
		t.Run(fmt.Sprintf("alone, with a lease: %v", leased), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				if leased {
					w.lease = &simLease{ttl: 4 * time.Second}
				}
				follow(w, one)
				if _, err := started(one); err != nil {
					t.Errorf("ended with %v", err)
				}
				dead(t, w, "deleted")
				if g := w.gaps(); len(g) != 1 || g[0]["cause"] != "retired by the operator" {
					t.Errorf("gaps opened: %v; want one, retired by the operator", g)
				}
			})
		})
	}
	t.Run("without NATS", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			follow(w, one)
			away = true
			defer func() { away = false }()
			took, err := started(one)
			if err == nil || !strings.Contains(err.Error(), "it was not") || took > 4*time.Second {
				t.Errorf("ended after %v with %v; want within 4 s, and that the queue was not deleted", took, err)
			}
			dead(t, w, "")
		})
	})
	t.Run("a standby", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			w.lease = &simLease{ttl: 4 * time.Second}
			two := w.instance()
			follow(w, one)
			configure := w.configure
			w.configure = nil
			two.start()
			time.Sleep(time.Second)
			w.configure = configure
			if took, err := started(one); err != nil || took > time.Second {
				t.Errorf("ended after %v with %v; want at once, and no error", took, err)
			}
			dead(t, w, "")
		})
	})
}

// A queue that Zulip did not delete at once is deleted later, and not asked for without
// end.
func TestDeleteThatFailed(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.stop()
		w.options.SlimPresence = !w.options.SlimPresence
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.Delete, For: 3 * time.Minute, Status: http.StatusInternalServerError,
			Body: `{"result":"error","msg":"no"}`})
		began := time.Now()
		one.start()
		for range 100 {
			w.say(1)
			time.Sleep(2 * time.Second)
		}
		time.Sleep(3 * time.Minute)
		if n := w.requests(zulipsim.Delete, began); n < 2 || n > 6 {
			t.Errorf("%d requests to delete, want a few", n)
		}
		if q := w.zulip.Queues(); len(q) != 2 || q[0].Dead != "deleted" {
			t.Errorf("queues at Zulip: %s; want the first deleted", w.queuesSay())
		}
	})
}

// Retention is edited to interest while a refill runs: it stops at once.
func TestRetentionEditedInARefill(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		one.start()
		time.Sleep(time.Second)
		one.stop()
		w.expire()
		w.say(5000)
		writes := 0
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "append" {
				if writes++; writes == 5 {
					go w.jet.Edit(func(s *model.Settings) { s.Interest = true })
				}
				f.Late = 500 * time.Millisecond
			}
			return f
		})
		one.start()
		time.Sleep(time.Minute)
		if end, err := ended(one); !end || err == nil || writes > 8 {
			t.Errorf("ended %v with %v after %d writes; want an end soon after the fifth", end, err, writes)
		}
		one.err = nil
	})
}

// History does not say which message is the newest when the queue is made. What is
// refilled and comes by the queue too comes once.
func TestNewestNotKnown(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.kill()
		w.expire()
		w.say(5)
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, For: 65 * time.Second,
			Status: http.StatusInternalServerError, Body: `{"result":"error","msg":"no"}`})
		one.start()
		time.Sleep(30 * time.Second)
		w.say(10) // the new queue has them, and history too
		time.Sleep(5 * time.Minute)
		w.check()
		w.checkMessagesOnce()
	})
}

// Zulip's own newest message is not known at the first start either: zero is no message
// id that stands for it.
func TestNewestNotKnownAtTheFirstStart(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.say(300)
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, For: 65 * time.Second,
			Status: http.StatusInternalServerError, Body: `{"result":"error","msg":"no"}`})
		one.start()
		time.Sleep(2 * time.Minute)
		one.kill()
		w.expire()
		one.start()
		time.Sleep(5 * time.Minute)
		if _, backfill := w.origins(); backfill > 0 {
			t.Errorf("%d messages from before the first start refilled", backfill)
		}
	})
}

// The ids of events are a chain, also within one batch; and a position never goes back,
// whatever id Zulip sends.
func TestChainOfEvents(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.start()
		time.Sleep(time.Second)
		one.gate.close()
		w.say(20)
		w.zulip.EmitRaw(`{"type":"odd","id":2}`)
		w.say(5)
		w.zulip.EmitRaw(`{"type":"odd","id":4}`)
		one.gate.open()
		time.Sleep(time.Second)
		w.say(5)
		time.Sleep(time.Minute)
		at, chained := int64(-1), 0
		for _, m := range w.jet.Messages() {
			here := first(m, events.HeaderPosition)
			if here == "" {
				here = first(m, events.HeaderEventID)
				if prev := first(m, events.HeaderPrevEventID); prev != fmt.Sprint(at) {
					t.Errorf("event %s says that %s was before, it was %d", here, prev, at)
				}
				chained++
			}
			next, err := strconv.ParseInt(here, 10, 64)
			if err != nil || next < at {
				t.Errorf("the position goes from %d to %q", at, here)
			}
			at = next
		}
		if chained < 30 {
			t.Errorf("%d events in the chain, want 30 messages at least", chained)
		}
	})
}

// Two instances with different options do not change over for ever.
func TestInstancesWithOtherOptions(t *testing.T) {
	story(t, func(w *world, one *instance) {
		two := w.instance()
		one.start()
		time.Sleep(time.Second)
		w.options.SlimPresence = !w.options.SlimPresence
		two.start()
		time.Sleep(10 * time.Minute)
		if n := len(w.zulip.Queues()); n > 3 {
			t.Errorf("%d queues made, want 2", n)
		}
		one.stop()
		time.Sleep(time.Minute)
		w.check()
	})
}

// A message of the gap that no store takes is named, and the refill goes on.
func TestTooLargeInAGap(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.MaxPayload, w.jet.MaxObject = 8000, 9000
		one.follows(3)
		one.kill()
		w.expire()
		large := w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t",
			Content: strings.Repeat("x", 10000)})
		w.say(3)
		one.start()
		time.Sleep(time.Minute)
		closed := told[struct {
			NotRefilled *struct {
				TooLarge []int64 `json:"too_large_message_ids"`
			} `json:"not_refilled"`
		}](w, "gap", "gap-closed")
		if len(closed) != 1 || closed[0].NotRefilled == nil ||
			!slices.Equal(closed[0].NotRefilled.TooLarge, []int64{large}) {
			t.Errorf("gap closed: %+v; want one that names message %d", closed, large)
		}
		if _, backfill := w.origins(); backfill != 3 {
			t.Errorf("%d refilled, want 3", backfill)
		}
	})
}

// The zuliprc gets another account under way: the record names it.
func TestRecordNamesTheAccount(t *testing.T) {
	story(t, func(w *world, one *instance) {
		second := w.zulip.Account("second-bot@acme.example.com")
		one.start()
		time.Sleep(time.Second)
		w.account.Update(func(a *zulipsim.Account) { a.Deactivated = true })
		w.mu.Lock()
		w.account = second
		w.mu.Unlock()
		time.Sleep(5 * time.Minute)
		queues := told[map[string]any](w, "queue", "")
		if got := queues[len(queues)-1]["account"]; got != second.Email {
			t.Errorf("the newest record names %v, want %s", got, second.Email)
		}
	})
}

// The process dies, twice, before Zulip has deleted the queue that was changed over from:
// the next one deletes it.
func TestDeleteThatFailedAndKills(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.stop()
		w.options.SlimPresence = !w.options.SlimPresence
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.Delete, For: time.Minute, Status: http.StatusInternalServerError,
			Body: `{"result":"error","msg":"no"}`})
		for range 3 {
			one.start()
			time.Sleep(10 * time.Second)
			one.kill()
		}
		time.Sleep(time.Minute)
		one.start()
		time.Sleep(3 * time.Minute)
		if q := w.zulip.Queues(); len(q) != 2 || q[0].Dead != "deleted" {
			t.Errorf("queues at Zulip: %s; want the first deleted", w.queuesSay())
		}
	})
}

// scriptedLease is a lease that ends when the test says so: by its context, or by the
// holder's clock alone.
type scriptedLease struct {
	ctx   context.Context
	end   context.CancelFunc
	asked context.Context
	ask   context.CancelFunc
	over  atomic.Bool
	had   atomic.Int32 // how often it was asked for
	back  atomic.Int32 // how often it was released while it was held
}

func (l *scriptedLease) Context() context.Context { return l.ctx }
func (l *scriptedLease) Asked() context.Context   { return l.asked }
func (l *scriptedLease) Held() bool               { return !l.over.Load() && l.ctx.Err() == nil }
func (l *scriptedLease) Release(context.Context) error {
	if l.Held() {
		l.back.Add(1)
	}
	return nil
}

// scriptedLease lets the instances started from now on have that lease once.
func (w *world) scriptedLease() *scriptedLease {
	l := &scriptedLease{}
	l.ctx, l.end = context.WithCancel(context.Background())
	l.asked, l.ask = context.WithCancel(context.Background())
	w.configure = func(c *bridge.Config) {
		c.Acquire = func(ctx context.Context, _ func(string)) (bridge.Lease, error) {
			if l.had.Add(1) == 1 {
				return l, nil
			}
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
	}
	return l
}

// goroutines counts those of the caller's bubble that are in a function of that name.
func goroutines(function string) (n int) {
	all := make([]byte, 4<<20)
	stacks := strings.Split(string(all[:runtime.Stack(all, true)]), "\n\n")
	_, bubble, _ := strings.Cut(stacks[0], "synctest bubble ") // the caller's own comes first
	bubble, _, _ = strings.Cut(bubble, "]")
	for _, stack := range stacks {
		head, _, _ := strings.Cut(stack, "\n")
		if strings.Contains(head, "synctest bubble "+bubble+"]") && strings.Contains(stack, "\n"+function) {
			n++
		}
	}
	return n
}

// A lease that is over ends all work: the poll in hand, the write in hand, a register,
// the deletion of a queue.
func TestLeaseIsOver(t *testing.T) {
	t.Run("in a poll", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			l := w.scriptedLease()
			one.start()
			time.Sleep(time.Second)
			l.end()
			time.Sleep(time.Second)
			if q := w.zulip.Queues(); l.had.Load() != 2 || q[0].Waiting {
				t.Errorf("a second later the lease was asked for %d times, want 2, and the queue is polled: %v",
					l.had.Load(), q[0].Waiting)
			}
		})
	})
	t.Run("in the middle of an answer", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			l := w.scriptedLease()
			one.start()
			time.Sleep(time.Second)
			w.zulip.Fault(zulipsim.Fault{On: zulipsim.Events, Trickle: 1, TricklePause: time.Second})
			before := goroutines("zulip-nats/poller.")
			w.say(5)
			time.Sleep(10 * time.Second)
			within := goroutines("zulip-nats/poller.")
			l.end()
			time.Sleep(time.Second)
			if after := goroutines("zulip-nats/poller."); within <= 1 || after != 0 {
				t.Errorf("goroutines that ask Zulip: %d in a poll, %d in an answer, %d when the lease is over; want "+
					"none at last", before, within, after)
			}
			w.zulip.ClearFaults()
		})
	})
	t.Run("in a write", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			l := w.scriptedLease()
			one.start()
			time.Sleep(time.Second)
			w.jet.SetFaults(func(op string) (f model.Fault) {
				f.Deaf = op == "append"
				return f
			})
			w.say(1)
			time.Sleep(100 * time.Millisecond)
			l.end()
			time.Sleep(time.Second)
			if l.had.Load() != 2 {
				t.Error("a second later the lease is not asked for again")
			}
		})
	})
	t.Run("by the clock", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			l := w.scriptedLease()
			one.start()
			time.Sleep(time.Second)
			l.over.Store(true) // a machine that slept learns of it by looking
			w.say(3)
			time.Sleep(time.Second)
			if live, _ := w.origins(); live != 0 || l.had.Load() != 2 {
				t.Errorf("%d messages stored, and the lease was asked for %d times; want none, and 2", live,
					l.had.Load())
			}
		})
	})
	t.Run("before the first register", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			l := w.scriptedLease()
			l.over.Store(true)
			one.start()
			time.Sleep(time.Second)
			if n := len(w.zulip.Queues()); n != 0 {
				t.Errorf("%d queues made", n)
			}
		})
	})
	t.Run("before the queue is to be retired", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			l := w.scriptedLease()
			withLease := w.configure
			w.configure = func(c *bridge.Config) { withLease(c); c.DeleteQueue = true }
			one.start()
			time.Sleep(time.Second)
			l.over.Store(true)
			one.end()
			<-one.done
			if one.err == nil || !strings.Contains(one.err.Error(), "lease") {
				t.Errorf("ended with %v; want that the lease was lost before", one.err)
			}
			one.err, one.done = nil, nil
			one.dead()
			if g, q := w.gaps(), w.zulip.Queues(); len(g) != 0 || q[0].Dead != "" {
				t.Errorf("%d gaps, queues at Zulip: %s; want none, and the queue alive", len(g), w.queuesSay())
			}
		})
	})
}

// Another instance is to have the lease. What is in hand is finished, the lease is released
// while it is held, and it is wanted again; and no lease was lost.
func TestHandedOver(t *testing.T) {
	handed := func(t *testing.T, w *world, l *scriptedLease, log func() string) {
		t.Helper()
		if l.had.Load() != 2 || l.back.Load() != 1 {
			t.Errorf("the lease was asked for %d times and released %d times while it was held; want 2 and 1",
				l.had.Load(), l.back.Load())
		}
		if text := log(); strings.Count(text, `"event":"handed_over"`) != 1 || strings.Contains(text, "lease_lost") ||
			strings.Contains(text, `"level":"error"`) {
			t.Errorf("the log has %s", text)
		}
		if q := w.zulip.Queues(); len(q) != 1 || q[0].Dead != "" || q[0].Waiting {
			t.Errorf("queues at Zulip: %s; want the one, which nobody polls", w.queuesSay())
		}
	}
	for _, test := range []struct {
		name   string
		fault  model.Fault   // of the write that is under way; none: a poll is
		after  time.Duration // it is not released before
		within time.Duration // but by then
		live   int           // messages that are stored
	}{
		{"in a poll", model.Fault{}, 0, 100 * time.Millisecond, 0},
		{"in a write", model.Fault{Late: 1500 * time.Millisecond}, 1300 * time.Millisecond, 1500 * time.Millisecond, 1},
		{"in a write that has no end", model.Fault{Deaf: true, Late: time.Hour}, 2500 * time.Millisecond, 6 * time.Second, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				log := w.logged()
				withLog := w.configure
				l := w.scriptedLease()
				withLease := w.configure
				w.configure = func(c *bridge.Config) { withLease(c); withLog(c) }
				one.start()
				time.Sleep(time.Second)
				if test.fault != (model.Fault{}) {
					w.jet.SetFaults(func(op string) (f model.Fault) {
						if op == "append" {
							f = test.fault
						}
						return f
					})
					w.say(1)
					time.Sleep(100 * time.Millisecond)
				}
				l.ask()
				time.Sleep(test.after)
				if test.after > 0 && l.back.Load() > 0 {
					t.Errorf("%v later it is released, and the write is under way", test.after)
				}
				time.Sleep(test.within - test.after)
				if live, _ := w.origins(); live != test.live {
					t.Errorf("%d messages stored, want %d", live, test.live)
				}
				handed(t, w, l, log)
				w.jet.SetFaults(nil)
			})
		})
	}
	t.Run("to another", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			w.lease = &simLease{ttl: time.Minute}
			two := w.instance()
			one.follows(3)
			two.start()
			time.Sleep(time.Second)
			w.lease.handOver()
			time.Sleep(time.Second)
			// Who has handed it over may be the first to ask for this one.
			if a, b := one.bridge.Status().State, two.bridge.Status().State; a != bridge.Following && b != bridge.Following {
				t.Errorf("a second later nobody follows: %s and %s", a, b)
			}
			w.say(3)
			time.Sleep(10 * time.Second)
			if live, refilled := w.origins(); live != 6 || refilled != 0 || len(w.gaps()) != 0 {
				t.Errorf("%d live and %d refilled messages, and %d gaps; want six live ones", live, refilled, len(w.gaps()))
			}
			if q := w.zulip.Queues(); len(q) != 1 {
				t.Errorf("queues at Zulip: %s; want the one", w.queuesSay())
			}
		})
	})
	t.Run("while a queue is to be retired", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			l := w.scriptedLease()
			withLease := w.configure
			w.configure = func(c *bridge.Config) { withLease(c); c.DeleteQueue = true }
			one.follows(1)
			one.end()
			l.ask()
			<-one.done
			if one.err != nil {
				t.Errorf("the stop says %v", one.err)
			}
			one.err, one.done = nil, nil
			one.dead()
			if q := w.zulip.Queues(); q[0].Dead != "deleted" {
				t.Errorf("queues at Zulip: %s; want it deleted", w.queuesSay())
			}
		})
	})
}

// A poll is refused because another instance has moved on and acknowledged what it asks
// for: that is no loss.
func TestRefusedBecauseAnotherMovedOn(t *testing.T) {
	story(t, func(w *world, one *instance) {
		two := w.instance()
		one.follows(1)
		remove := w.zulip.Fault(zulipsim.Fault{On: zulipsim.Events, Status: http.StatusInternalServerError,
			Body: `{"result":"error","msg":"no"}`})
		w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 7, "status_text": "x"}) // ends the poll that waits
		w.say(3)
		time.Sleep(time.Minute)
		one.gate.close()
		remove()
		two.start()
		time.Sleep(10 * time.Second)
		w.say(3)
		time.Sleep(10 * time.Second)
		two.kill()
		one.gate.open()
		time.Sleep(5 * time.Minute)
		w.say(3)
		time.Sleep(time.Minute)
		if g := w.gaps(); len(g) != 0 {
			t.Errorf("gaps: %v; want none", g)
		}
		w.check()
		w.checkMessagesOnce()
	})
}

// A stream of our own that holds no message, and did: its past is gone, which a gap
// tells.
func TestPastIsGone(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		one.follows(3)
		one.stop()
		w.jet.Purge()
		one.start()
		time.Sleep(time.Minute)
		if g := w.gaps(); len(g) != 1 || !strings.Contains(fmt.Sprint(g[0]["cause"]), "past is gone") {
			t.Errorf("gaps: %v; want one, because the past is gone", g)
		}
	})
}

// A stop between the making of a queue and its record: the queue is deleted.
func TestStopBeforeTheRecord(t *testing.T) {
	for _, at := range []string{"history", "the stream"} {
		t.Run(at, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				one.follows(3)
				w.jet.SetFaults(func(op string) (f model.Fault) {
					if at == "the stream" && op == "scan" && len(w.zulip.Queues()) == 2 {
						f.Fail = stream.Unavailable
					}
					return f
				})
				if at == "history" {
					w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, Hang: true})
				}
				w.expire()
				time.Sleep(10 * time.Second)
				one.stop()
				w.jet.SetFaults(nil)
				if q := w.zulip.Queues(); len(q) != 2 || q[1].Dead != "deleted" {
					t.Errorf("queues at Zulip: %s; want two, the second deleted", w.queuesSay())
				}
			})
		})
	}
}

// A stop behind a record whose write had no answer: one read has shown that something else
// stands in its place, and that stays true, whatever a server that was deposed says later.
func TestStopBehindAnUnclearRecord(t *testing.T) {
	for _, stale := range []bool{false, true} {
		t.Run(fmt.Sprintf("a stale read: %v", stale), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.zulip.Fault(zulipsim.Fault{On: zulipsim.Register, Delay: time.Second})
				one.start()
				time.Sleep(500 * time.Millisecond)
				w.jet.Depose()
				reads, writes := 0, 0
				w.jet.SetFaults(func(op string) (f model.Fault) {
					if op == "append" {
						f.Fail = stream.Unavailable
						if writes++; writes == 1 {
							f.Fail = stream.Unclear
							go w.jet.Publish("zulip.acme.foreign", []byte("x"))
						}
					}
					if op == "last" {
						if reads++; reads == 1 {
							f.Late = 10 * time.Millisecond
						}
						f.Stale = stale && reads > 1
					}
					return f
				})
				time.Sleep(time.Second) // the record has no answer, and the stream is read
				one.stop()
				w.jet.SetFaults(nil)
				if q := w.zulip.Queues(); len(q) != 1 || q[0].Dead != "deleted" {
					t.Errorf("queues at Zulip: %s; want one, deleted", w.queuesSay())
				}
			})
		})
	}
}

// A stop while JetStream does not say what became of a record: it has half a second more
// for that.
func TestStopBehindARecordThatIsUnclearYet(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.Register, Delay: time.Second})
		one.start()
		time.Sleep(500 * time.Millisecond)
		w.jet.SetFaults(func(op string) (f model.Fault) {
			switch op {
			case "append":
				f.Fail = stream.Unclear
				go w.jet.Publish("zulip.acme.foreign", []byte("x"))
			case "last":
				f.Fail = stream.Unavailable
			}
			return f
		})
		time.Sleep(time.Second)
		time.AfterFunc(3100*time.Millisecond, func() { w.jet.SetFaults(nil) })
		one.stop()
		if q := w.zulip.Queues(); len(q) != 1 || q[0].Dead != "deleted" {
			t.Errorf("queues at Zulip: %s; want one, deleted", w.queuesSay())
		}
	})
}

// The same bytes without an id, at another position, are another event; at the same
// position they are rejected once, be they thousands.
func TestRejectedAtAPosition(t *testing.T) {
	t.Run("another", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			one.start()
			time.Sleep(time.Second)
			w.zulip.EmitRaw(`{"type":"mystery","n":1}`)
			time.Sleep(time.Second)
			w.say(1)
			time.Sleep(time.Minute)
			one.stop()
			w.zulip.EmitRaw(`{"type":"mystery","n":1}`)
			one.start()
			time.Sleep(time.Minute)
			if n := len(told[map[string]any](w, "rejected", "")); n != 2 {
				t.Errorf("%d rejected, want 2", n)
			}
		})
	})
	t.Run("thousands", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			one.start()
			time.Sleep(time.Second)
			one.stop()
			for n := range 5000 {
				w.zulip.EmitRaw(fmt.Sprintf(`{"type":"mystery","n":%d}`, n))
			}
			for range 2 {
				one.start()
				time.Sleep(10 * time.Second)
				one.stop()
			}
			if n := len(told[map[string]any](w, "rejected", "")); n != 5000 {
				t.Errorf("%d rejected, want 5000", n)
			}
		})
	})
}

// A refill is cut off by a crash after some chunks, and the stream's limits may take the
// oldest messages meanwhile. The next start goes on where it was, in each query; nothing
// is refilled twice.
func TestRefillCutOff(t *testing.T) {
	for _, public := range []bool{false, true} {
		for _, taken := range []int{0, 450} {
			for _, earlier := range []int{0, 100} {
				t.Run(fmt.Sprintf("public %v, %d taken, %d taken before", public, taken, earlier), func(t *testing.T) {
					story(t, func(w *world, one *instance) {
						w.options.AllPublicStreams = public
						w.account.Update(func(a *zulipsim.Account) { a.NoSubscriptions = public })
						backfill := w.cutOff(one, earlier, taken)
						if backfill < 1200 || earlier == 0 && backfill != 1200 {
							t.Errorf("%d refilled, of 1200 in the gap", backfill)
						}
					})
				})
			}
		}
	}
}

// cutOff loses a queue with 1,200 messages, behind 150 of which the stream's limits took
// some earlier; kills the process behind three chunks of the refill, lets the limits take
// some more, and starts it again. It counts what was ever refilled, none of it twice.
func (w *world) cutOff(one *instance, earlier, taken int) (backfill int) {
	one.follows(150)
	one.kill()
	w.jet.Age(earlier)
	w.say(1200)
	w.expire()
	writes := 0
	w.jet.SetFaults(func(op string) (f model.Fault) {
		if op == "append" {
			if writes++; writes > 6 { // resumed, gap opened, the queue's record, three chunks
				f.Fail = stream.Unavailable
			}
		}
		return f
	})
	one.start()
	time.Sleep(30 * time.Second)
	one.kill()
	w.jet.SetFaults(nil)
	w.jet.Age(taken)
	one.start()
	time.Sleep(time.Minute)
	seen := map[string]bool{}
	for _, m := range w.jet.Ever(0) {
		if id := first(m, events.HeaderMessageID); first(m, events.HeaderOrigin) == "backfill" {
			if backfill++; seen[id] {
				w.t.Errorf("message %s is refilled twice", id)
			}
			seen[id] = true
		}
	}
	return backfill
}

// A chunk of a refill is stored in part, with the record before it that says how far the
// refill is; then the process dies.
func TestRefillStoredInPart(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.kill()
		w.say(1200)
		w.expire()
		writes := 0
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "append" {
				if writes++; writes == 6 { // resumed, gap opened, the queue's record, two chunks
					f.Keep = 100
				} else if writes > 6 {
					f.Fail = stream.Unavailable
				}
			}
			return f
		})
		one.start()
		time.Sleep(30 * time.Second)
		one.kill()
		w.jet.SetFaults(nil)
		one.start()
		time.Sleep(time.Minute)
		w.checkMessagesOnce()
	})
}

// The bound on a refill counts what was refilled before a crash, once.
func TestBoundOfARefillCutOff(t *testing.T) {
	for _, taken := range []int{0, 450} {
		t.Run(fmt.Sprint(taken, " taken"), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.configure = func(c *bridge.Config) { c.RefillMaxMessages = 900 }
				if n := w.cutOff(one, 0, taken); n != 900 {
					t.Errorf("%d refilled, want 900", n)
				}
				if closed := told[closedTold](w, "gap", "gap-closed"); len(closed) != 1 || closed[0].Refilled != 900 ||
					closed[0].NotRefilled == nil {
					t.Errorf("gap closed: %+v; want one, 900 refilled and the rest named", closed)
				}
			})
		})
	}
}

// What was rejected without an id is read at a start. A leader that was deposed just
// before lacks the newest of it: what it shows is not all that there is.
func TestRejectedBehindADeposedLeader(t *testing.T) {
	for stale := range 4 {
		t.Run(fmt.Sprintf("scan %d", stale+1), func(t *testing.T) { rejectedBehindADeposedLeader(t, stale+1) })
	}
}

func rejectedBehindADeposedLeader(t *testing.T, stale int) {
	story(t, func(w *world, one *instance) {
		one.start()
		time.Sleep(time.Second)
		w.jet.Depose()
		w.zulip.EmitRaw(`{"type":"message","id":%ID%,}`)
		time.Sleep(time.Second)
		one.kill()
		scans := 0
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "scan" {
				scans++
				f.Stale = scans == stale
			}
			return f
		})
		one.start()
		time.Sleep(time.Minute)
		if n := len(told[map[string]any](w, "rejected", "rejected")); n != 1 || scans < 2 {
			t.Errorf("rejected %d times, %d scans; want once", n, scans)
		}
	})
}
