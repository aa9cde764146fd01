package bridge_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"zulip-nats/bridge"
	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/zulipsim"
)

// Stories of queues, records and streams that get lost half-way, one for each line that
// nothing else would miss.

// onWrites says what goes wrong with the first write to the stream from now on, the
// second, and so on.
func (w *world) onWrites(f func(n int) model.Fault) {
	n := 0
	w.jet.SetFaults(func(op string) (fault model.Fault) {
		if op == "append" {
			n++
			fault = f(n)
		}
		return fault
	})
}

// writesEnd lets so many writes through, and none behind them.
func (w *world) writesEnd(after int) {
	w.onWrites(func(n int) (f model.Fault) {
		if n > after {
			f.Fail = stream.Unavailable
		}
		return f
	})
}

// takeOver gives the lease to nobody, so that its holder loses it.
func (l *simLease) takeOver() {
	l.mu.Lock()
	h := l.holder
	l.holder = nil
	l.mu.Unlock()
	h.cancel()
}

// broken is Zulip's own 500 to requests of a kind.
func broken(on zulipsim.Kind) zulipsim.Fault {
	f := zulipsim.ServerError()
	f.On = on
	return f
}

// lose drops the queues, and lets n messages be sent as soon as there is a new one: they
// are in it, and in what history shows as missing.
func (w *world) lose(n int) {
	w.muteHistory()
	w.expire()
	w.sayInNewQueue(n)
}

// muteHistory lets history be asked in vain for three seconds.
func (w *world) muteHistory() {
	f := broken(zulipsim.History)
	f.For = 3 * time.Second
	w.zulip.Fault(f)
}

// sayInNewQueue sends n messages as soon as there is a queue.
func (w *world) sayInNewQueue(n int) {
	for w.living() == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	w.say(n)
}

// assumed counts the records of queues whose own was not found.
func (w *world) assumed() (n int) {
	for _, q := range told[struct{ Assumed bool }](w, "queue", "") {
		if q.Assumed {
			n++
		}
	}
	return n
}

// backfilled are the ids of the messages that were ever refilled, in the order of the
// stream.
func (w *world) backfilled() (ids []int64) {
	for _, m := range w.jet.Ever(0) {
		if first(m, events.HeaderOrigin) == "backfill" {
			id, _ := strconv.ParseInt(first(m, events.HeaderMessageID), 10, 64)
			ids = append(ids, id)
		}
	}
	return ids
}

// History does not say which message is its newest: a new queue is polled without, in a
// minute at most, and sooner where it lives for a short time only.
func TestNewQueueWaitsForHistory(t *testing.T) {
	for _, test := range []struct{ life, most time.Duration }{
		{24 * time.Hour, time.Minute},
		{4 * time.Minute, 30 * time.Second},
	} {
		t.Run(test.life.String(), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.options.Life, w.options.AllPublicStreams = test.life, true
				w.zulip.Fault(broken(zulipsim.History))
				one.start()
				time.Sleep(test.most + 2*time.Second)
				if w.requests(zulipsim.Events, time.Time{}) == 0 {
					t.Errorf("not polled after %v", test.most)
				}
			})
		})
	}
}

// A queue whose record was given up is deleted in a minute or two, though the stream has
// lost its newest messages and counts again from where it was.
func TestLeftoverBehindALostTail(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		w.lease = &simLease{ttl: 4 * time.Second}
		w.configure = func(c *bridge.Config) { c.RefillMaxMessages = -1 }
		one.follows(300)
		given := false
		w.onWrites(func(int) (f model.Fault) {
			if len(w.zulip.Queues()) == 2 && !given {
				given, f.Fail = true, stream.Unclear
				go func() {
					time.Sleep(10 * time.Millisecond)
					w.jet.Restore(200)
					w.lease.takeOver()
				}()
			}
			return f
		})
		w.expire()
		time.Sleep(4 * time.Minute)
		if n := w.living(); n != 1 {
			t.Errorf("queues at Zulip: %s; want one alive", w.queuesSay())
		}
	})
}

// refusedOnce is a way to Zulip on which the first poll of a queue is refused.
type refusedOnce struct {
	next  http.RoundTripper
	queue atomic.Value // its id
	done  atomic.Bool
}

func (r *refusedOnce) RoundTrip(q *http.Request) (*http.Response, error) {
	answer, err := r.next.RoundTrip(q)
	if err != nil || q.URL.Query().Get("queue_id") != r.queue.Load() || r.done.Swap(true) {
		return answer, err
	}
	answer.Body.Close()
	answer.StatusCode, answer.Header = http.StatusBadRequest, http.Header{"Content-Type": {"application/json"}}
	answer.Body = io.NopCloser(strings.NewReader(
		`{"result":"error","msg":"Bad event queue ID","code":"BAD_EVENT_QUEUE_ID"}`))
	return answer, nil
}

// The stream was deleted and Zulip dropped the queue, and another instance has made one
// since. Zulip refuses that one once, where it is asked for by an instance that knew the
// old stream: it is given up for a third, and does not hoard events.
func TestQueueMadeSinceIsRefusedOnce(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		way := &refusedOnce{}
		w.configure = func(c *bridge.Config) {
			way.next = c.Poller.Client.Transport
			c.Poller.Client.Transport = way
		}
		way.queue.Store("none yet")
		one.follows(10)
		w.configure = nil
		one.gate.close()
		w.jet.Delete()
		w.expire()
		other := w.instance()
		other.start()
		time.Sleep(time.Minute)
		other.kill()
		made := len(w.zulip.Queues())
		way.queue.Store(w.zulip.Queues()[made-1].ID)
		one.gate.open()
		time.Sleep(2 * time.Minute)
		w.say(2)
		time.Sleep(time.Minute)
		if q := w.zulip.Queues(); !way.done.Load() || len(q) != made+1 || q[made-1].Dead != "deleted" || w.living() != 1 {
			t.Errorf("refused: %v; queues at Zulip: %s; want a new one alive, and the one before deleted",
				way.done.Load(), w.queuesSay())
		}
	})
}

// The stream is deleted under an instance, another one makes it anew and a queue besides,
// and Zulip loses both queues. The first one, who knows what the stream had, opens a gap
// that names both; whoever closes it reads back what was in the newer one.
func TestTwoQueuesAreLostAtOnce(t *testing.T) {
	for _, goesOn := range []string{"who knew more", "who made the newer queue"} {
		t.Run(goesOn, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.truncated = true
				one.follows(10)
				one.gate.close()
				w.jet.Delete()
				w.account.Update(func(a *zulipsim.Account) { a.NoSubscriptions = true })
				w.options.AllPublicStreams = true // so the first one's queue does not get what is said now
				two := w.instance()
				two.start()
				time.Sleep(time.Minute)
				queues := w.zulip.Queues()
				two.gate.close()
				w.lastIDs = nil // those before went with the stream
				w.say(3)
				w.expire()
				if goesOn == "who knew more" {
					two.kill()
					one.gate.open()
				} else {
					w.writesEnd(1)
					one.gate.open()
					time.Sleep(5 * time.Second)
					one.kill()
					w.jet.SetFaults(nil)
					two.gate.open()
				}
				time.Sleep(3 * time.Minute)
				g := told[events.GapOpened](w, "gap", "gap-opened")
				if len(queues) != 2 || len(g) != 1 || g[0].QueueID != queues[0].ID || g[0].GivenUp != queues[1].ID {
					t.Errorf("gaps: %+v; queues: %s; want one gap that names both", g, w.queuesSay())
				}
				w.checkMessagesStand()
			})
		})
	}
}

// The stream is deleted and Zulip drops the queue. The gap has the record of that queue,
// so that another instance can close it.
func TestGapBringsTheRecord(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		one.follows(10)
		one.gate.close()
		w.jet.Delete()
		w.say(3)
		w.expire()
		w.writesEnd(1)
		one.gate.open()
		time.Sleep(time.Minute)
		one.kill()
		w.jet.SetFaults(nil)
		w.instance().start()
		time.Sleep(3 * time.Minute)
		w.checkMessagesStand()
	})
}

// Others publish where our records are: they are found below.
func TestRecordsBelowOthers(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.Single = true // nothing is read but the records' subject
		one.follows(3)
		one.stop()
		w.jet.Publish("zulip.acme.bridge.queue", []byte(`{}`))
		one.start()
		time.Sleep(time.Minute)
		if n := w.assumed(); n != 0 {
			t.Errorf("%d records of a queue whose own was not found, want none", n)
		}
	})
}

// Others write behind a part of what was to be stored: a record comes before the rest,
// and none before what follows.
func TestOthersInTheMiddleOfAWrite(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.stop()
		w.say(6)
		w.onWrites(func(n int) (f model.Fault) {
			if n == 2 { // resumed, and these
				f.Keep = 2
				go w.jet.Publish("zulip.acme.message", []byte("theirs"))
			}
			return f
		})
		one.start()
		time.Sleep(10 * time.Second)
		w.say(1)
		time.Sleep(time.Second)
		w.say(1)
		time.Sleep(time.Second)
		msgs := w.jet.Messages()
		i := slices.IndexFunc(msgs, func(m stream.Stored) bool { return !ours(&m) })
		if i < 0 || first(msgs[i+1], events.HeaderRecord) != "queue" {
			t.Errorf("message %d is of others, and no record follows", i)
		}
		if got, want := w.whys(), "first, kept, kept"; got != want {
			t.Errorf("queues recorded: %s; want %s", got, want)
		}
		w.check()
		w.checkMessagesOnce()
	})
}

// The account gets another address, and its queue is still its own: the record says so at
// once.
func TestAccountRenamed(t *testing.T) {
	story(t, func(w *world, one *instance) {
		account := w.zuliprc()
		var now atomic.Pointer[poller.Account]
		now.Store(new(account))
		w.configure = func(c *bridge.Config) {
			c.Poller.Client.Account = func() (poller.Account, error) { return *now.Load(), nil }
		}
		one.follows(3)
		account = poller.Account{Email: strings.ToUpper(account.Email), Key: w.account.RegenerateKey(),
			Site: account.Site}
		now.Store(new(account))
		time.Sleep(5 * time.Minute)
		queues := told[struct{ Account string }](w, "queue", "")
		if got := queues[len(queues)-1].Account; got != account.Email || len(queues) != 2 {
			t.Errorf("%d records, the newest names %s; want 2, and %s", len(queues), got, account.Email)
		}
		if g := w.gaps(); len(g) != 0 {
			t.Errorf("gaps: %v; want none", g)
		}
	})
}

// The same between a stop and the next start, which finds another address in the zuliprc:
// the queue is asked, and not given up.
func TestAccountRenamedBeforeAStart(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.stop()
		queue, account := w.zulip.Queues()[0].ID, w.zuliprc()
		account.Email = strings.ToUpper(account.Email)
		w.configure = func(c *bridge.Config) {
			c.Account = account.Email
			c.Poller.Client.Account = func() (poller.Account, error) { return account, nil }
		}
		w.say(2)
		one.start()
		time.Sleep(time.Minute)
		w.check()
		queues := told[struct {
			ID      string `json:"queue_id"`
			Account string
		}](w, "queue", "")
		if q := queues[len(queues)-1]; q.ID != queue || q.Account != account.Email || len(w.gaps()) != 0 {
			t.Errorf("the newest record is of queue %s and names %s, %d gaps; want %s, %s and none", q.ID, q.Account, len(w.gaps()),
				queue, account.Email)
		}
	})
}

// The stream's limits take the record of a new queue before that is polled, and the
// process dies. What was refilled is not stored again, though the queue has it too.
func TestLimitsTakeTheRecordOfANewQueue(t *testing.T) {
	for _, test := range []struct {
		name           string
		missed, writes int
	}{
		{"behind the gap", 5, 4},  // gap opened, the queue's record, what was refilled, gap closed
		{"in the refill", 300, 3}, // a chunk of it
	} {
		t.Run(test.name, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				one.follows(3)
				w.writesEnd(test.writes)
				w.lose(test.missed)
				time.Sleep(10 * time.Second)
				one.kill()
				w.jet.SetFaults(nil)
				msgs := w.jet.Messages()
				for i, m := range slices.Backward(msgs) {
					if first(m, events.HeaderRecord) == "queue" {
						w.jet.Age(i + 1)
						break
					}
				}
				one.start()
				time.Sleep(time.Minute)
				w.say(3)
				time.Sleep(time.Minute)
				if w.assumed() == 0 {
					t.Error("the record was found")
				}
				w.checkMessagesOnce()
			})
		})
	}
}

// A refill is interrupted, and the stream's limits take what it has brought: it goes on
// where it was.
func TestRefillInterrupted(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.stop()
		w.say(1200)
		w.expire()
		w.onWrites(func(n int) (f model.Fault) {
			if n == 6 { // resumed, gap opened, the queue's record, two chunks
				f.Fail = stream.TooLarge
				go w.jet.Age(200)
			}
			return f
		})
		one.start()
		time.Sleep(time.Minute)
		w.checkMessagesOnce()
	})
}

// Direct messages and those of public channels are refilled in the order of their ids,
// though two queries show them; one that both show is counted once.
func TestTwoQueriesOfHistory(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.options.AllPublicStreams = true
		w.account.Update(func(a *zulipsim.Account) { a.NoSubscriptions = true })
		one.follows(3)
		one.stop()
		for range 20 {
			w.say(1)
			w.lastIDs = append(w.lastIDs, w.zulip.SendMessage(zulipsim.Message{To: []string{simAccount},
				Content: "to you"}))
		}
		w.expire()
		one.start()
		time.Sleep(time.Minute)
		w.checkMessagesOnce()
		if ids := w.backfilled(); len(ids) != 40 || !slices.IsSorted(ids) {
			t.Errorf("refilled: %v; want 40, in order", ids)
		}
	})
	story(t, func(w *world, one *instance) {
		w.options.AllPublicStreams = true
		w.configure = func(c *bridge.Config) { c.RefillMaxAge = time.Hour }
		one.follows(3)
		one.stop()
		w.say(20)
		w.expire()
		time.Sleep(2 * time.Hour)
		one.start()
		time.Sleep(time.Minute)
		closed := told[closedTold](w, "gap", "gap-closed")
		if len(closed) != 1 || closed[0].NotRefilled == nil || closed[0].NotRefilled.TooOld != 20 {
			t.Errorf("gap closed: %+v; want one, with 20 too old", closed)
		}
	})
}

// Of the ids a little below what the stream's limits have left, only those come back
// whose transaction may have been open.
func TestOverlapGoesByTime(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(50)
		time.Sleep(10 * time.Minute)
		w.say(50)
		time.Sleep(time.Second)
		one.stop()
		for i, m := range w.jet.Messages() {
			if first(m, events.HeaderMessageID) == fmt.Sprint(w.lastIDs[49]) {
				w.jet.Age(i + 1)
			}
		}
		w.say(5)
		w.expire()
		one.start()
		time.Sleep(time.Minute)
		w.checkMessagesOnce()
	})
}

// Whether a message was refilled is read from a leader that was deposed and lacks the
// refill: it is waited for.
func TestHeldByADeposedLeader(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		writes, polls := 0, 0
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "append" {
				switch writes++; writes {
				case 2: // the record of the new queue
					f.Late = 10 * time.Millisecond
					go w.jet.Depose()
				case 5: // gap closed, and the record again: now the queue is polled
					polls = w.requests(zulipsim.Events, time.Time{})
				}
			}
			f.Stale = writes >= 5 && w.requests(zulipsim.Events, time.Time{}) > polls
			return f
		})
		w.lose(5)
		time.Sleep(time.Minute)
		if ids := w.backfilled(); len(ids) != 5 {
			t.Errorf("refilled: %v; want 5", ids)
		}
		w.checkMessagesOnce()
	})
}

// The stream is restored to where a gap was open, or was being refilled: that gap is
// closed first.
func TestTailLostInAGap(t *testing.T) {
	for _, test := range []struct {
		newest string
		gaps   int
	}{{"gap-opened", 1}, {"backfill", 2}} { // of the queue that the stream names then, Zulip has forgotten events
		t.Run(test.newest, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.truncated = true
				one.follows(3)
				w.expire()
				w.say(5)
				time.Sleep(10 * time.Second)
				w.say(2)
				time.Sleep(time.Second)
				msgs := w.jet.Messages()
				end := slices.IndexFunc(msgs, func(m stream.Stored) bool {
					return first(m, events.HeaderRecord) == test.newest || first(m, events.HeaderOrigin) == test.newest
				})
				w.jet.Restore(len(msgs) - end - 1)
				time.Sleep(3 * time.Minute)
				opened, closed := w.gaps(), told[closedTold](w, "gap", "gap-closed")
				if len(opened) != test.gaps || len(closed) != test.gaps {
					t.Errorf("%d gaps opened and %d closed, want %d", len(opened), len(closed), test.gaps)
				}
				w.checkMessagesStand()
			})
		})
	}
}

// The stream is made anew while an instance is paused, another goes on in it, and then
// the queue is lost. What the first one finds is no less than what it knew, whatever the
// numbers say: the queue is lost, and no event is missing.
func TestAnotherWentOnInANewStream(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		w.configure = func(c *bridge.Config) { c.RefillMaxMessages = -1 }
		two := w.instance()
		one.follows(30)
		two.start()
		time.Sleep(time.Second)
		one.gate.close()
		w.jet.Delete()
		w.say(1)
		time.Sleep(time.Minute)
		w.say(5)
		time.Sleep(time.Second)
		before := len(w.gaps())
		two.kill()
		w.expire()
		w.say(2)
		one.gate.open()
		time.Sleep(3 * time.Minute)
		g := w.gaps()
		const cause = "Zulip has dropped the queue"
		if len(g) != before+1 || g[before]["missing_event_ids"] != nil || g[before]["cause"] != cause {
			t.Errorf("gaps: %v; want one more than %d, because Zulip has dropped the queue", g, before)
		}
	})
}

// The stream loses its newest messages behind a gap, and the queue lives on: what is
// refilled now is skipped in the queue, as what was refilled in that gap had been.
func TestTailLostBehindAGap(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		one.follows(3)
		w.lose(5)
		time.Sleep(time.Minute)
		w.say(3)
		time.Sleep(time.Second)
		one.gate.close()
		w.jet.Restore(2)
		w.say(4)
		one.gate.open()
		time.Sleep(3 * time.Minute)
		if got, want := w.whys(), "first, lost, kept, lost, kept"; got != want {
			t.Errorf("queues recorded: %s; want %s", got, want)
		}
		w.checkMessagesStand()
	})
}

// The server refuses every write while the stream stands still: the settings are read
// again, and what they say ends the process.
func TestRefusedForEver(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated, w.jet.Silent = true, true
		one.follows(3)
		w.jet.Edit(func(s *model.Settings) { s.Interest = true })
		w.onWrites(func(int) model.Fault { return model.Fault{Fail: stream.Refused} })
		w.say(1)
		time.Sleep(5 * time.Second)
		end, err := ended(one)
		if _, ok := errors.AsType[*stream.ConfigError](err); !end || !ok {
			t.Errorf("ended %v with %v; want a ConfigError", end, err)
		}
		if end {
			one.err = nil
		}
	})
}

// The largest message that the stream takes is made smaller than a record of ours, and
// nobody tells of it: the first record that does not fit ends the process.
func TestStreamMadeTooNarrow(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated, w.jet.Silent = true, true
		one.follows(3)
		w.jet.Edit(func(s *model.Settings) { s.MaxMsgSize = 256 })
		w.expire()
		time.Sleep(30 * time.Second)
		end, err := ended(one)
		if !end || err == nil || !strings.Contains(err.Error(), "max_msg_size") {
			t.Errorf("ended %v with %v; want an error that names max_msg_size", end, err)
		}
		if end {
			one.err = nil
		}
	})
}

// The connection to NATS is lost and found again, and nothing was written meanwhile: the
// next write is not one that cannot succeed.
func TestReconnectsCostNoWrite(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		before := w.jet.Requests("append")
		for range 10 {
			w.jet.Reconnect()
			w.say(1)
			time.Sleep(time.Second)
		}
		if n := w.jet.Requests("append") - before; n != 10 {
			t.Errorf("%d writes for 10 messages", n)
		}
	})
}

// recordWaits starts an instance that has the lease once. Before the record of its first
// queue is written, reads begin to fail, and writes with that kind of error.
func (w *world) recordWaits(one *instance, writes stream.Kind) *scriptedLease {
	l := w.scriptedLease()
	w.zulip.Fault(zulipsim.Fault{On: zulipsim.Register, Delay: time.Second})
	one.start()
	time.Sleep(500 * time.Millisecond)
	w.jet.SetFaults(func(op string) (f model.Fault) {
		f.Fail = map[string]stream.Kind{"append": writes, "last": stream.Unavailable}[op]
		return f
	})
	return l
}

// The lease is lost while it is not clear what became of the record of a new queue, and
// somebody else leads for good. As soon as something else stands in its place, the queue
// is deleted, and not before.
func TestStandbyClearsWhatItLeft(t *testing.T) {
	story(t, func(w *world, one *instance) {
		l := w.recordWaits(one, stream.Unclear)
		time.Sleep(2 * time.Second)
		l.end()
		time.Sleep(time.Second)
		w.jet.SetFaults(nil)
		time.Sleep(30 * time.Second)
		if q := w.zulip.Queues(); l.had.Load() != 2 || len(q) != 1 || q[0].Dead != "" {
			t.Errorf("while the record may yet be stored, the lease was asked for %d times, and the queues at Zulip "+
				"are: %s; want 2, and one that lives",
				l.had.Load(), w.queuesSay())
		}
		w.jet.Publish("zulip.acme.foreign", []byte("x"))
		time.Sleep(11 * time.Second)
		if q := w.zulip.Queues(); q[0].Dead != "deleted" {
			t.Errorf("its place is taken, and the queues at Zulip are: %s; want it deleted", w.queuesSay())
		}
	})
}

// The lease is lost with NATS while the record of a new queue waits for it. The record
// never left, so nobody else can know of that queue: it goes at once, whoever leads.
func TestQueueWhoseRecordNeverLeft(t *testing.T) {
	story(t, func(w *world, one *instance) {
		l := w.recordWaits(one, stream.Unavailable)
		time.Sleep(5 * time.Second)
		if q := w.zulip.Queues(); len(q) != 1 || q[0].Dead != "" {
			t.Fatalf("queues at Zulip while NATS is away: %s; want one that lives", w.queuesSay())
		}
		l.end()
		time.Sleep(2 * time.Second)
		if q := w.zulip.Queues(); l.had.Load() != 2 || q[0].Dead != "deleted" {
			t.Errorf("two seconds later the lease was asked for %d times, and the queues at Zulip are: %s; want 2, "+
				"and it deleted", l.had.Load(), w.queuesSay())
		}
		w.jet.SetFaults(nil)
	})
}

// Who does not lead any more deletes no queue, whatever was left to be deleted.
func TestWhoDoesNotLeadDeletesNothing(t *testing.T) {
	t.Run("left over", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			one.follows(3)
			one.stop()
			w.options.SlimPresence = !w.options.SlimPresence
			l := w.scriptedLease()
			f := broken(zulipsim.Delete)
			f.For = 10 * time.Second
			w.zulip.Fault(f)
			one.follows(3)
			w.jet.SetFaults(func(op string) (f model.Fault) {
				f.Fail = map[string]stream.Kind{"append": stream.TooLarge, "last": stream.Unavailable}[op]
				return f
			})
			w.say(1)
			time.Sleep(2 * time.Minute) // by now it would be deleted
			l.over.Store(true)          // a machine that slept learns of it by looking
			began := time.Now()
			w.jet.SetFaults(nil)
			time.Sleep(10 * time.Second)
			if n := w.requests(zulipsim.Delete, began); n != 0 {
				t.Errorf("%d requests to delete, want none", n)
			}
		})
	})
	t.Run("to be retired", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			l := w.scriptedLease()
			withLease := w.configure
			w.configure = func(c *bridge.Config) { withLease(c); c.DeleteQueue = true }
			one.follows(3)
			w.zulip.Fault(broken(zulipsim.Register))
			w.expire()
			time.Sleep(10 * time.Second) // a gap is open
			began := time.Now()
			w.jet.SetFaults(func(string) (f model.Fault) {
				f.Late = time.Second
				return f
			})
			time.AfterFunc(500*time.Millisecond, func() { l.over.Store(true) })
			one.end()
			<-one.done
			if one.err == nil || !strings.Contains(one.err.Error(), "lease") {
				t.Errorf("ended with %v; want that the lease was lost", one.err)
			}
			one.err, one.done = nil, nil
			one.dead()
			if n := w.requests(zulipsim.Delete, began); n != 0 {
				t.Errorf("%d requests to delete, want none", n)
			}
		})
	})
}

// A queue is being made when the stop comes, and it takes no messages, so that history is
// not asked: it is deleted.
func TestStopWhileRegisteringForNoMessages(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.options.EventTypes = []string{"reaction"}
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.Register, Delay: 2 * time.Second, Times: 1})
		one.start()
		time.Sleep(time.Second)
		one.stop()
		if q := w.zulip.Queues(); len(q) != 1 || q[0].Dead != "deleted" {
			t.Errorf("queues at Zulip: %s; want one, deleted", w.queuesSay())
		}
	})
}

// Zulip does not answer when a queue is to be deleted: events go on all the same.
func TestDeleteThatHangs(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.stop()
		w.options.SlimPresence = !w.options.SlimPresence
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.Delete, Hang: true})
		one.start()
		time.Sleep(time.Second)
		w.say(3)
		time.Sleep(3 * time.Second)
		if live, _ := w.origins(); live != 6 {
			t.Errorf("%d messages stored, want 6", live)
		}
	})
}

// Who leads again begins like a start: its record is written, and its options are those
// of the queue.
func TestLeadsAgain(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.lease = &simLease{ttl: 4 * time.Second}
		one.follows(3)
		w.lease.takeOver()
		time.Sleep(5 * time.Second)
		if got, want := w.whys(), "first, kept"; got != want {
			t.Errorf("queues recorded: %s; want %s", got, want)
		}
		two := w.instance()
		w.options.SlimPresence = !w.options.SlimPresence
		two.start()
		one.gate.close()
		time.Sleep(10 * time.Second)
		two.stop()
		one.gate.open()
		time.Sleep(time.Minute)
		if got, want := w.whys(), "first, kept, options changed, options changed"; got != want {
			t.Errorf("queues recorded: %s; want %s", got, want)
		}
		w.say(3)
		time.Sleep(time.Second)
		w.check()
		w.checkMessagesOnce()
	})
}

// A start that is asked to go back, and what may go wrong with it.
func TestStartInThePast(t *testing.T) {
	begin := func(w *world, from bridge.StartFrom) {
		w.zulip.Account(simAccount) // subscribed before the messages are sent, so that they are in its history
		w.say(10)
		time.Sleep(time.Hour)
		w.configure = func(c *bridge.Config) { c.StartFrom = from }
	}
	t.Run("sent while the queue is made", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			begin(w, bridge.StartFrom{MessageID: 1})
			w.muteHistory()
			one.start()
			w.sayInNewQueue(5)
			time.Sleep(time.Minute)
			if ids := w.backfilled(); len(ids) != 15 {
				t.Errorf("refilled: %v; want 15", ids)
			}
			w.checkMessagesOnce()
		})
	})
	t.Run("committed late, in a queue that is lost", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			begin(w, bridge.StartFrom{MessageID: 1})
			id, commit := w.zulip.SendDelayed(zulipsim.Message{Channel: "general", Topic: "t", Content: "slow"})
			w.lastIDs = append(w.lastIDs, id)
			w.say(1)
			one.follows(5)
			one.stop()
			commit()
			w.expire()
			one.start()
			time.Sleep(time.Minute)
			w.checkMessagesOnce()
		})
	})
	t.Run("direct messages that are wanted since", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			begin(w, bridge.StartFrom{MessageID: 1})
			w.zulip.SendMessage(zulipsim.Message{To: []string{simAccount}, Content: "to you"})
			w.options.NoDirectMessages = true
			w.writesEnd(1)
			one.start()
			time.Sleep(10 * time.Second)
			one.kill()
			w.options.NoDirectMessages = false
			w.jet.SetFaults(nil)
			one.start()
			time.Sleep(time.Minute)
			if ids := w.backfilled(); len(ids) != 10 {
				t.Errorf("refilled: %v; want 10, and none to the account", ids)
			}
		})
	})
	t.Run("history refuses to say where", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			begin(w, bridge.StartFrom{Time: time.Now()})
			w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, Skip: 1, Times: 1,
				Status: http.StatusBadRequest, Body: `{"result":"error","msg":"no","code":"BAD_REQUEST"}`})
			one.start()
			time.Sleep(time.Minute)
			closed := told[closedTold](w, "gap", "gap-closed")
			if len(closed) != 1 || closed[0].NotRefilled == nil || len(w.backfilled()) != 0 {
				t.Errorf("gap closed: %+v, refilled: %v; want one that says why nothing is", closed, w.backfilled())
			}
		})
	})
	t.Run("stopped while history is asked where", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			begin(w, bridge.StartFrom{Time: time.Now()})
			w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, Skip: 1, Hang: true})
			one.start()
			time.Sleep(5 * time.Second)
			one.stop()
			if q := w.zulip.Queues(); len(q) != 1 || q[0].Dead != "deleted" {
				t.Errorf("queues at Zulip: %s; want one, deleted", w.queuesSay())
			}
		})
	})
}

// In a stream that others use too, what they wrote is no past of ours.
func TestFirstStartInASharedStream(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.Shared = true
		w.jet.Publish("zulip.elsewhere.message", []byte("theirs"))
		one.follows(3)
		if g, got := w.gaps(), w.whys(); len(g) != 0 || got != "first" {
			t.Errorf("gaps: %v, queues recorded: %s; want none, and first", g, got)
		}
	})
}

// The past of the stream is gone, and then the stream: no queue was followed that could
// be asked.
func TestStreamDeletedBeforeAQueue(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		w.jet.Publish("zulip.acme.message", []byte("theirs"))
		w.jet.Purge()
		f := broken(zulipsim.Register)
		f.For = 10 * time.Second
		w.zulip.Fault(f)
		one.start()
		time.Sleep(time.Second)
		if g := w.gaps(); len(g) != 1 {
			t.Errorf("gaps: %v; want one", g)
		}
		w.jet.Delete()
		time.Sleep(3 * time.Minute)
		if g, got := w.gaps(), w.whys(); len(g) != 0 || got != "first" {
			t.Errorf("gaps: %v, queues recorded: %s; want none, and first", g, got)
		}
	})
}

// A gap says since when, and which events are missing.
func TestGapSaysWhat(t *testing.T) {
	type opened struct {
		LastStored time.Time `json:"last_stored"`
		Missing    struct {
			Above int64 `json:"above"`
			UpTo  int64 `json:"up_to"`
		} `json:"missing_event_ids"`
	}
	t.Run("since when", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			one.follows(3)
			one.stop()
			msgs := w.jet.Messages()
			last := msgs[len(msgs)-1].Time
			w.expire()
			time.Sleep(time.Hour)
			one.start()
			time.Sleep(time.Minute)
			if g := told[opened](w, "gap", "gap-opened"); len(g) != 1 || !g[0].LastStored.Equal(last) {
				t.Errorf("gaps: %+v; want one since %v", g, last)
			}
		})
	})
	t.Run("which messages are left out", func(t *testing.T) {
		for _, test := range []struct {
			name  string
			taken int // of what the stream held
			above int64
		}{{"from the beginning", 0, 10}, {"from a little below what is left, without a record", 13, 0}} {
			story(t, func(w *world, one *instance) {
				w.options.AllPublicStreams = true
				w.configure = func(c *bridge.Config) { c.RefillMaxMessages = -1 }
				w.account.Update(func(a *zulipsim.Account) { a.NoSubscriptions = true })
				w.say(10)
				// The newest of its own.
				w.zulip.SendMessage(zulipsim.Message{To: []string{simAccount}, Content: "to you"})
				one.follows(20)
				one.stop()
				w.jet.Age(test.taken)
				w.say(5)
				w.expire()
				one.start()
				time.Sleep(time.Minute)
				closed := told[closedTold](w, "gap", "gap-closed")
				upTo := w.lastIDs[34]
				if len(closed) != 1 || closed[0].NotRefilled == nil ||
					closed[0].NotRefilled.Above != test.above || closed[0].NotRefilled.UpTo != upTo {
					t.Errorf("%s: gap closed: %+v; want one, and those above %d up to %d left out", test.name, closed,
						test.above, upTo)
				}
			})
		}
	})
	t.Run("which events", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			w.truncated = true
			one.follows(10)
			msgs := w.jet.Messages()
			above, _ := strconv.ParseInt(first(msgs[len(msgs)-4], events.HeaderEventID), 10, 64)
			upTo, _ := strconv.ParseInt(first(msgs[len(msgs)-1], events.HeaderEventID), 10, 64)
			w.jet.Restore(3)
			time.Sleep(3 * time.Minute)
			g := told[opened](w, "gap", "gap-opened")
			if len(g) != 1 || g[0].Missing.Above != above || g[0].Missing.UpTo != upTo || upTo != above+3 {
				t.Errorf("gaps: %+v; want one, and missing those above %d up to %d", g, above, upTo)
			}
		})
	})
}

// A refill that went on behind a crash says which queue was lost.
func TestRefillCutOffNamesTheQueueBefore(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.cutOff(one, 0, 0)
		closed := told[struct {
			Old string `json:"old_queue_id"`
		}](w, "gap", "gap-closed")
		if want := w.zulip.Queues()[0].ID; len(closed) != 1 || closed[0].Old != want {
			t.Errorf("gap closed: %+v; want one, behind queue %s", closed, want)
		}
	})
}
