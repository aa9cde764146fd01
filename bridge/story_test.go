package bridge_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/zulipsim"
)

// Stories: one thing that happens to a bridge, and what the stream tells of it. Time is
// virtual.

// story runs f in a world with one instance that follows a queue.
func story(t *testing.T, f func(w *world, one *instance)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.close()
		f(w, w.instance())
	})
}

// say sends n messages.
func (w *world) say(n int) {
	for range n {
		w.lastIDs = append(w.lastIDs, w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t",
			Content: fmt.Sprintf("message %d", w.rng.Uint32())}))
	}
}

// follows starts an instance and lets it store that many messages.
func (i *instance) follows(n int) {
	i.start()
	time.Sleep(time.Second)
	i.w.say(n)
	time.Sleep(time.Second)
}

// told is what records of a kind say, oldest first.
func told[T any](w *world, subject, record string) (bodies []T) {
	for _, m := range w.jet.Messages() {
		if m.Subject == "zulip."+simRealm+".bridge."+subject &&
			(record == "" || first(m, events.HeaderRecord) == record) {
			var body T
			if err := json.Unmarshal(m.Data, &body); err != nil {
				w.t.Errorf("a record on %s is no JSON: %v", m.Subject, err)
			}
			bodies = append(bodies, body)
		}
	}
	return bodies
}

type queueTold struct {
	Why, QueueID, Previous string
	Options                map[string]any
}

func (q *queueTold) UnmarshalJSON(b []byte) error {
	var body struct {
		Why      string         `json:"why"`
		QueueID  string         `json:"queue_id"`
		Previous string         `json:"previous_queue_id"`
		Options  map[string]any `json:"options"`
	}
	err := json.Unmarshal(b, &body)
	*q = queueTold{body.Why, body.QueueID, body.Previous, body.Options}
	return err
}

type closedTold struct {
	Cause       string `json:"cause"`
	Refilled    int    `json:"messages_refilled"`
	Old         string `json:"old_queue_id"`
	NotRefilled *struct {
		Reason string `json:"reason"`
		Above  int64  `json:"above_message_id"`
		UpTo   int64  `json:"up_to_message_id"`
		TooOld int    `json:"older_than_max_age"`
	} `json:"not_refilled"`
	Changed        []int64  `json:"changed_message_ids"`
	NotRecoverable []string `json:"not_recoverable"`
}

// whys lists why queues were recorded.
func (w *world) whys() string {
	var list []string
	for _, q := range told[queueTold](w, "queue", "") {
		list = append(list, q.Why)
	}
	return strings.Join(list, ", ")
}

// An alert on a gap is cleared by its closing: both lines name the queue that was lost.
func TestGapIsLoggedAsOpenedAndClosed(t *testing.T) {
	story(t, func(w *world, one *instance) {
		var log bytes.Buffer
		w.log = zerolog.New(&log)
		one.start()
		time.Sleep(time.Second)
		var want []string
		for range 2 {
			w.say(3)
			time.Sleep(time.Second)
			lost := w.zulip.Queues()[len(w.zulip.Queues())-1].ID
			w.zulip.ExpireQueue(lost)
			time.Sleep(time.Minute)
			want = append(want, "error opened "+lost, "info closed "+lost)
		}
		one.stop()
		var got []string
		for line := range strings.Lines(log.String()) {
			var fields struct{ Level, Gap, Queue string }
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				t.Fatal(err)
			}
			if fields.Gap != "" {
				got = append(got, fields.Level+" "+fields.Gap+" "+fields.Queue)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("the log says\n%q\nwant\n%q", got, want)
		}
	})
}

// origins counts messages by where they came from.
func (w *world) origins() (live, backfill int) {
	for _, m := range w.jet.Messages() {
		switch {
		case first(m, events.HeaderRecord) != "" || first(m, events.HeaderMessageID) == "":
		case first(m, events.HeaderOrigin) == "backfill":
			backfill++
		default:
			live++
		}
	}
	return live, backfill
}

// TestGapIsRefilled is the commonest loss: the bridge was away for longer than its queue
// lives. What Zulip's own database says happened in the gap is compared with the stream.
func TestGapIsRefilled(t *testing.T) {
	for _, public := range []bool{false, true} {
		t.Run(fmt.Sprintf("all public channels %v", public), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.options.Life, w.options.AllPublicStreams = 10*time.Minute, public
				w.account.Update(func(a *zulipsim.Account) { a.NoSubscriptions = public })
				one.follows(30)
				one.stop()
				w.say(50)
				w.zulip.EditMessage(w.lastIDs[25], zulipsim.Edit{Content: new("edited in the gap")})
				w.zulip.SendMessage(zulipsim.Message{To: []string{simAccount}, Content: "a direct message"})
				time.Sleep(time.Hour)
				one.start()
				time.Sleep(time.Minute)
				w.say(10)
				time.Sleep(time.Second)
				w.check()
				if live, backfill := w.origins(); live != 40 || backfill != 51 {
					t.Errorf("%d live and %d refilled messages, want 40 and 51", live, backfill)
				}
				if got, want := w.whys(), "first, kept, lost, kept"; got != want {
					t.Errorf("queues recorded: %s; want %s", got, want)
				}
				closed := told[closedTold](w, "gap", "gap-closed")
				if len(closed) != 1 || closed[0].Refilled != 51 || closed[0].NotRefilled != nil ||
					len(closed[0].NotRecoverable) == 0 {
					t.Errorf("gap closed: %+v; want one, 51 messages refilled, nothing left out, and the list of "+
						"what cannot be recovered", closed)
				} else if fmt.Sprint(closed[0].Changed) != fmt.Sprint(w.lastIDs[25:26]) {
					t.Errorf("changed in the gap: %v, want %v", closed[0].Changed, w.lastIDs[25:26])
				}
				if opened := told[map[string]any](w, "gap", "gap-opened"); len(opened) != 1 ||
					opened[0]["last_message_id"] != float64(w.lastIDs[29]) {
					t.Errorf("gap opened: %v; want one, behind message %d", opened, w.lastIDs[29])
				}
			})
		})
	}
}

// TestRefillIsBounded leaves out what the limits exclude, and names it.
func TestRefillIsBounded(t *testing.T) {
	lose := func(w *world, one *instance) {
		w.options.Life = 10 * time.Minute
		one.follows(10)
		one.stop()
		w.say(20)
		time.Sleep(2 * time.Hour)
		w.say(20)
		one.start()
		time.Sleep(time.Minute)
	}
	t.Run("count", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			w.configure = func(c *bridge.Config) { c.RefillMaxMessages = 15 }
			lose(w, one)
			closed := told[closedTold](w, "gap", "gap-closed")
			if len(closed) != 1 || closed[0].Refilled != 15 || closed[0].NotRefilled == nil ||
				closed[0].NotRefilled.Above != w.lastIDs[24] || closed[0].NotRefilled.UpTo != w.lastIDs[49] {
				t.Errorf("gap closed: %+v; want 15 refilled, and those above %d up to %d named", closed, w.lastIDs[24],
					w.lastIDs[49])
			}
			if _, backfill := w.origins(); backfill != 15 {
				t.Errorf("%d refilled, want 15", backfill)
			}
		})
	})
	t.Run("age", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			w.configure = func(c *bridge.Config) { c.RefillMaxAge = time.Hour }
			lose(w, one)
			closed := told[closedTold](w, "gap", "gap-closed")
			if len(closed) != 1 || closed[0].Refilled != 20 || closed[0].NotRefilled == nil ||
				closed[0].NotRefilled.TooOld != 20 {
				t.Errorf("gap closed: %+v; want 20 refilled and 20 too old", closed)
			}
		})
	})
	t.Run("off", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			w.configure = func(c *bridge.Config) { c.RefillMaxMessages = -1 }
			lose(w, one)
			closed := told[closedTold](w, "gap", "gap-closed")
			if len(closed) != 1 || closed[0].Refilled != 0 || closed[0].NotRefilled == nil {
				t.Errorf("gap closed: %+v; want nothing refilled, and said so", closed)
			}
		})
	})
	t.Run("half of the idle time", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, Skip: 2, Times: 1, Status: 429,
				Header: map[string][]string{"Retry-After": {"400"}},
				Body:   `{"result":"error","msg":"limit","code":"RATE_LIMIT_HIT"}`})
			lose(w, one)
			time.Sleep(10 * time.Minute)
			closed := told[closedTold](w, "gap", "gap-closed")
			if len(closed) == 0 || closed[0].NotRefilled == nil ||
				!strings.Contains(closed[0].NotRefilled.Reason, "idle time") {
				t.Errorf("gap closed: %+v; want it ended by the idle time of the new queue", closed)
			}
		})
	})
}

// TestLateMessageIsRefilled: ids follow insertion and events follow commit, so the stream
// may hold messages with greater ids than that of one which only the lost queue had. It
// is refilled whether the stream holds everything from the beginning on, or its limits
// have taken that, with few messages left or with many.
func TestLateMessageIsRefilled(t *testing.T) {
	for _, test := range []struct {
		name            string
		after, ages, id int // messages with greater ids; messages that the limits take; which message is late
	}{{"all from the beginning", 150, 0, 10}, {"from later on", 150, 5, 10}, {"only greater ids", 5, 17, 10},
		{"none but the newest", 1, 13, 10}} {
		t.Run(test.name, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.options.Life = 10 * time.Minute
				one.start()
				time.Sleep(time.Second)
				w.say(test.id)
				late, commit := w.zulip.SendDelayed(zulipsim.Message{Channel: "general", Topic: "t", Content: "late"})
				w.say(test.after)
				time.Sleep(time.Second)
				one.stop()
				commit()
				w.jet.Age(test.ages)
				time.Sleep(time.Hour)
				one.start()
				time.Sleep(time.Minute)
				w.check()
				found := 0
				for _, m := range w.jet.Messages() {
					if first(m, events.HeaderMessageID) == strconv.FormatInt(late, 10) {
						found++
					}
				}
				if found != 1 {
					t.Errorf("message %d is stored %d times", late, found)
				}
			})
		})
	}
}

// TestNothingSaysWhereTheStreamEnded: where neither a message nor the queue's record is
// left, the record of the gap says that nothing was refilled.
func TestNothingSaysWhereTheStreamEnded(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.options.Life = 10 * time.Minute
		one.start()
		time.Sleep(10 * time.Minute) // heartbeats
		one.stop()
		w.say(5)
		w.jet.Age(5)
		time.Sleep(time.Hour)
		one.start()
		time.Sleep(time.Minute)
		if _, backfill := w.origins(); backfill != 0 {
			t.Errorf("%d messages refilled; nothing says which", backfill)
		}
		closed := told[closedTold](w, "gap", "gap-closed")
		if len(closed) != 1 || closed[0].NotRefilled == nil || closed[0].NotRefilled.UpTo != w.lastIDs[4] ||
			!strings.Contains(closed[0].NotRefilled.Reason, "--start-from") {
			t.Errorf("gap closed: %+v; want one that says that nothing was refilled, and why", closed)
		}
	})
}

// TestRecordIsKept: the stream's limits are so narrow that they take the queue's record,
// and it is written again.
func TestRecordIsKept(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.options.Life = 10 * time.Minute
		one.start()
		time.Sleep(time.Second)
		w.say(5)
		time.Sleep(10 * time.Second)
		w.jet.Age(100)
		time.Sleep(3 * time.Minute)
		if got, want := w.whys(), "kept"; got != want {
			t.Fatalf("queues recorded: %q; want %q", got, want)
		}
		w.jet.Age(slices.IndexFunc(w.jet.Messages(),
			func(m stream.Stored) bool { return first(m, events.HeaderRecord) == "queue" }))
		one.stop()
		w.say(3)
		time.Sleep(time.Hour)
		one.start()
		time.Sleep(time.Minute)
		if _, backfill := w.origins(); backfill != 3 {
			t.Errorf("%d messages refilled, want the 3 of the gap", backfill)
		}
	})
}

// TestTailLost: the stream is restored from a backup that lacks its newest messages.
// Zulip has forgotten them, so a gap tells of it, what can be read back is, and the queue
// is followed on.
func TestTailLost(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		one.follows(10)
		w.jet.Restore(3)
		time.Sleep(3 * time.Minute)
		w.say(2)
		time.Sleep(time.Second)
		w.check()
		if got, want := w.whys(), "first, lost, kept"; got != want {
			t.Errorf("queues recorded: %s; want %s", got, want)
		}
		if q := w.zulip.Queues(); len(q) != 1 {
			t.Errorf("%d queues at Zulip, want the one that lives", len(q))
		}
		opened := told[map[string]any](w, "gap", "gap-opened")
		if len(opened) != 1 || opened[0]["cause"] != "the stream lost its newest messages; the queue lives on" {
			t.Errorf("gap opened: %v; want one, because the stream lost its newest messages", opened)
		}
		if live, backfill := w.origins(); live != 9 || backfill != 3 {
			t.Errorf("%d live and %d refilled messages, want 9 and 3", live, backfill)
		}
	})
}

// TestRecordOfAnotherInstance: while one instance is paused the stream is restored
// without its newest messages, and another instance records the same queue anew, refills,
// and dies before it has stored what the queue holds. The first one goes on by the new
// record: what was refilled is skipped.
func TestRecordOfAnotherInstance(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		other := w.instance()
		one.follows(10)
		one.gate.close()
		other.start()
		time.Sleep(time.Second)
		w.say(5)
		time.Sleep(time.Second)
		w.jet.Restore(3)
		writes := 0
		w.jet.Faults = func(op string) (f model.Fault) {
			if op == "append" {
				if writes++; writes > 4 { // gap opened, the queue's record, refilled messages, gap closed
					f.Fail = stream.Unavailable
				}
			}
			return f
		}
		other.gate.close() // no poll waits while people speak: their messages are refilled, and in the queue too
		w.say(4)
		other.gate.open()
		time.Sleep(2 * time.Minute)
		other.kill()
		w.jet.Faults = nil
		one.gate.open()
		time.Sleep(3 * time.Minute)
		w.check()
		if live, backfill := w.origins(); live+backfill != 19 || backfill < 7 {
			t.Errorf("%d live and %d refilled messages, want 19 in all, and at least 7 refilled", live, backfill)
		}
	})
}

// TestStartFrom begins in the past when asked to.
func TestStartFrom(t *testing.T) {
	for _, by := range []string{"message", "date"} {
		t.Run(by, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.zulip.Account(simAccount) // subscribed before the messages are sent, so that they are in its history
				w.say(40)
				time.Sleep(time.Hour)
				from := bridge.StartFrom{Time: time.Now().Add(-time.Minute)}
				w.say(25)
				if by == "message" {
					from = bridge.StartFrom{MessageID: w.lastIDs[40]}
				}
				w.configure = func(c *bridge.Config) { c.StartFrom = from }
				one.start()
				time.Sleep(time.Minute)
				w.say(5)
				time.Sleep(time.Second)
				if live, backfill := w.origins(); live != 5 || backfill != 25 {
					t.Errorf("%d live and %d refilled messages, want 5 and 25", live, backfill)
				}
				one.stop()
				one.start() // the past is asked for at the first start only
				time.Sleep(time.Minute)
				if live, backfill := w.origins(); live != 5 || backfill != 25 {
					t.Errorf("after a restart %d live and %d refilled messages, want 5 and 25", live, backfill)
				}
			})
		})
	}
}

// TestClockThatCannotBeRenewed: at 100 events a second over 60 ms no poll ever waits, so
// the queue would die of its idle clock. The bridge changes over to a new queue in good
// order while the old one lives: no event lost, no message twice, and the record says
// which.
func TestClockThatCannotBeRenewed(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.Single = true // nothing is read but the range that is said to be held
		w.options.Life = time.Minute
		w.zulip.RoundTrip = 60 * time.Millisecond
		w.zulip.SweepEvery = 5 * time.Second
		one.start()
		time.Sleep(time.Second)
		for range 100 * 150 { // two and a half lives
			w.say(1)
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		w.check()
		if got := w.whys(); strings.Count(got, "changed over") < 2 || strings.Contains(got, "lost") {
			t.Errorf("queues recorded: %s; want at least two changes over, and no loss", got)
		}
		queues := told[queueTold](w, "queue", "")
		for i, q := range queues {
			if q.Why == "changed over" && q.Previous != queues[i-1].QueueID {
				t.Errorf("the record of %s says that %s was before, it was %s", q.QueueID, q.Previous,
					queues[i-1].QueueID)
			}
		}
		for _, q := range w.zulip.Queues() {
			if !q.Waiting && q.Dead != "deleted" {
				t.Errorf("queue %s was left behind: %q", q.ID, q.Dead)
			}
		}
		if live, backfill := w.origins(); live != 100*150 || backfill != 0 {
			t.Errorf("%d live and %d refilled messages, want %d and 0", live, backfill, 100*150)
		}
	})
}

// TestOptionsChanged changes over in good order when a start has other register options
// than the queue.
func TestOptionsChanged(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(5)
		one.stop()
		w.say(20) // they wait in the old queue
		w.options.ApplyMarkdown = true
		one.follows(5)
		w.check()
		queues := told[queueTold](w, "queue", "")
		if got, want := w.whys(), "first, options changed"; got != want || queues[1].Previous != queues[0].QueueID ||
			queues[1].Options["apply_markdown"] != true {
			t.Errorf("queues recorded: %+v; want %s, with the new options and the queue before", queues, want)
		}
		if live, backfill := w.origins(); live != 30 || backfill != 0 {
			t.Errorf("%d live and %d refilled messages, want 30 and 0", live, backfill)
		}
		if q := w.zulip.Queues(); len(q) != 2 || q[0].Dead != "deleted" {
			t.Errorf("queues at Zulip: %+v; want two, the first deleted", q)
		}
	})
}

// TestOtherSite and TestOtherAccount: a stream belongs to one organization, a queue to
// one account. So it is in each phase: the other organization's ids are not to be
// compared with these.
func TestOtherSite(t *testing.T) {
	for _, phase := range []string{"poll", "register", "refill"} {
		t.Run(phase, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.configure = func(c *bridge.Config) { c.DeleteQueue = phase == "register" }
				one.start()
				time.Sleep(time.Second)
				if phase == "refill" {
					w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, Hang: true, Skip: 1})
					w.say(3)
					w.expire()
					time.Sleep(10 * time.Second)
				}
				one.stop()
				w.zulip.ClearFaults()
				queues := len(w.zulip.Queues())
				w.configure = func(c *bridge.Config) { c.Site = "https://elsewhere.example.org" }
				one.start()
				time.Sleep(time.Minute)
				_, err := ended(one)
				one.err = nil
				if e, ok := errors.AsType[*bridge.ConfigError](err); !ok || !strings.Contains(e.Error(), "--realm") ||
					!strings.Contains(e.Error(), "--moved-from "+simSite) {
					t.Errorf("Run returned %v; want a ConfigError that names the site before, --moved-from "+
						"and --realm", err)
				}
				if n := len(w.zulip.Queues()); n != queues {
					t.Errorf("%d queues were registered for the other site", n-queues)
				}
			})
		})
	}
}

// TestMoved: an organization under a new address is the same one if only the scheme
// changed, or if it is said. The record has the new address, so it has to be said once.
func TestMoved(t *testing.T) {
	for _, test := range []struct{ site, from string }{
		{"https://zulip.test", ""},
		{"https://Zulip.test:443/", ""},
		{"https://chat.example.org", simSite},
		{"https://chat.example.org", "https://zulip.test"},
	} {
		t.Run(test.site+" from "+test.from, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				one.follows(3)
				for _, from := range []string{test.from, ""} {
					one.stop()
					w.configure = func(c *bridge.Config) { c.Site, c.MovedFrom = test.site, from }
					one.start()
					time.Sleep(time.Minute)
				}
				w.say(3)
				time.Sleep(time.Minute)
				w.check()
				all := told[struct {
					Site string `json:"site"`
					From string `json:"moved_from"`
				}](w, "queue", "queue")
				if last := all[len(all)-1]; len(w.zulip.Queues()) != 1 || last.Site != test.site ||
					last.From != simSite {
					t.Errorf("%d queues, the record says %+v; want one, of %s, moved from %s", len(w.zulip.Queues()),
						last, test.site, simSite)
				}
			})
		})
	}
}

func TestOtherAccount(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.stop()
		other := w.zulip.Account("other-bot@acme.example.com")
		w.signIn(other)
		one.start()
		time.Sleep(time.Minute)
		opened := told[map[string]any](w, "gap", "gap-opened")
		if len(opened) != 1 || !strings.Contains(fmt.Sprint(opened[0]["cause"]),
			"account changed from "+simAccount+" to "+other.Email) {
			t.Errorf("gap opened: %v; want one that names the account before", opened)
		}
		if got, want := w.whys(), "first, kept, lost, kept"; got != want {
			t.Errorf("queues recorded: %s; want %s", got, want)
		}
		queues := told[map[string]any](w, "queue", "")
		if got := queues[len(queues)-1]["account"]; got != other.Email {
			t.Errorf("the newest record names the account %v, want %s", got, other.Email)
		}
	})
}

// signIn puts another account into the zuliprc, for instances started from now on.
func (w *world) signIn(a *zulipsim.Account) {
	account := poller.Account{Email: a.Email, Key: a.Key, Site: "http://zulip.test"}
	w.configure = func(c *bridge.Config) {
		c.Poller.Client.Account = func() (poller.Account, error) { return account, nil }
		c.Account = account.Email
	}
}

// TestRetire opens the gap before it deletes the queue, so that the next start does not
// look for it.
func TestRetire(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(3)
		one.stop()
		w.configure = func(c *bridge.Config) { c.DeleteQueue = true }
		one.start()
		time.Sleep(time.Second)
		one.stop()
		w.configure = nil
		if q := w.zulip.Queues(); len(q) != 1 || q[0].Dead != "deleted" {
			t.Errorf("queues at Zulip: %+v; want one, deleted", q)
		}
		w.say(4) // nobody listens
		one.start()
		time.Sleep(time.Minute)
		w.check()
		opened := told[map[string]any](w, "gap", "gap-opened")
		if len(opened) != 1 || opened[0]["cause"] != "retired by the operator" {
			t.Errorf("gap opened: %v; want one, retired by the operator", opened)
		}
		if live, backfill := w.origins(); live != 3 || backfill != 4 {
			t.Errorf("%d live and %d refilled messages, want 3 and 4", live, backfill)
		}
	})
}

// TestOversizeGoesToTheObjectStore: an event that is larger than a message may be is read
// back through its stub.
func TestOversizeGoesToTheObjectStore(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.MaxPayload = 20000
		one.start()
		time.Sleep(time.Second)
		for _, n := range []int{10, 19000, 19400, 19500, 19600, 30000, 300000} {
			w.zulip.Emit(map[string]any{"type": "drafts", "op": "add", "text": strings.Repeat("x", n)})
		}
		time.Sleep(time.Second)
		w.check()
		stubs := 0
		for _, m := range w.jet.Messages() {
			name := first(m, events.HeaderObject)
			if name == "" {
				continue
			}
			stubs++
			body := w.jet.Objects()[name]
			if len(m.Data) != 0 || strconv.Itoa(len(body)) != first(m, events.HeaderSize) ||
				digest(body) != first(m, events.HeaderDigest) {
				t.Errorf("the stub of %s says %s bytes, %s; the object has %d, %s", name, first(m, events.HeaderSize),
					first(m, events.HeaderDigest), len(body), digest(body))
			}
			var ev struct{ ID int64 }
			if err := json.Unmarshal(body, &ev); err != nil ||
				strconv.FormatInt(ev.ID, 10) != first(m, events.HeaderEventID) {
				t.Errorf("the object %s is event %d (%v), its stub stands for event %s", name, ev.ID, err,
					first(m, events.HeaderEventID))
			}
		}
		if stubs < 2 || stubs > 5 {
			t.Errorf("%d stubs, want those of 30,000 and 300,000 bytes and perhaps those near the limit", stubs)
		}
	})
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "SHA-256=" + hex.EncodeToString(sum[:])
}

// TestOversizeForEver: what the object store can never take is rejected, with size and
// digest, and the rest goes on.
func TestOversizeForEver(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.MaxPayload = 20000
		w.jet.Faults = func(op string) (f model.Fault) {
			if op == "put object" {
				f.Fail = stream.TooLarge
			}
			return f
		}
		one.start()
		time.Sleep(time.Second)
		w.zulip.Emit(map[string]any{"type": "drafts", "op": "add", "text": strings.Repeat("x", 30000)})
		w.say(1)
		time.Sleep(time.Second)
		w.check()
		rejected := told[map[string]any](w, "rejected", "")
		if len(rejected) != 1 || rejected[0]["size"].(float64) < 30000 || rejected[0]["cut"] != true ||
			len(rejected[0]["sha256"].(string)) != 64 {
			t.Errorf("rejected: %.300v; want one, cut, with size and digest", rejected)
		}
	})
}

// TestOversizeWait: an object store that takes nothing costs the large events, each told,
// and not the queue. Where NATS is away they wait like all others.
func TestOversizeWait(t *testing.T) {
	large := func(w *world) {
		w.zulip.Emit(map[string]any{"type": "drafts", "op": "add", "text": strings.Repeat("x", 30000)})
		w.say(1)
	}
	stored := func(w *world) (rejected, stubs, messages int) {
		for _, m := range w.jet.Messages() {
			if first(m, events.HeaderObject) != "" {
				stubs++
			}
		}
		live, _ := w.origins()
		return len(told[map[string]any](w, "rejected", "")), stubs, live
	}
	want := func(t *testing.T, w *world, when string, rejected, stubs, messages int) {
		if r, s, m := stored(w); r != rejected || s != stubs || m != messages {
			t.Errorf("%s: %d rejected, %d stubs, %d messages; want %d, %d, %d", when, r, s, m, rejected,
				stubs, messages)
		}
	}
	t.Run("the object store", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			w.jet.MaxPayload = 20000
			w.jet.SetFaults(func(op string) (f model.Fault) {
				if op == "put object" {
					f.Fail = stream.Full
				}
				return f
			})
			one.start()
			time.Sleep(time.Second)
			large(w)
			time.Sleep(9 * time.Minute)
			want(t, w, "before the wait is over", 0, 0, 0)
			time.Sleep(2 * time.Minute)
			want(t, w, "when it is", 1, 0, 1)
			large(w)
			time.Sleep(10 * time.Second)
			want(t, w, "the next does not wait", 2, 0, 2)
			w.jet.SetFaults(nil)
			large(w)
			time.Sleep(10 * time.Second)
			want(t, w, "the store is back", 2, 1, 3)
			w.check()
		})
	})
	t.Run("NATS", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			w.jet.MaxPayload = 20000
			one.start()
			time.Sleep(time.Second)
			w.setDown(true)
			large(w)
			time.Sleep(time.Hour)
			w.setDown(false)
			time.Sleep(10 * time.Second)
			want(t, w, "NATS is back", 0, 1, 1)
			w.check()
		})
	})
	t.Run("writes", func(t *testing.T) { // reads are answered all the time
		story(t, func(w *world, one *instance) {
			w.jet.MaxPayload = 20000
			one.start()
			time.Sleep(time.Second)
			w.jet.SetFaults(func(op string) (f model.Fault) {
				if op == "put object" || op == "append" {
					f.Fail = stream.Full
				}
				return f
			})
			large(w)
			time.Sleep(time.Hour)
			w.jet.SetFaults(nil)
			time.Sleep(10 * time.Second)
			want(t, w, "there is room again", 0, 1, 1)
			w.check()
		})
	})
}

// TestNoIDIsRejectedOnce: an event without an id cannot be acknowledged, so Zulip sends
// it again and again. It is rejected once, restarts included, and asked for at the pace
// of an error until something follows it.
func TestNoIDIsRejectedOnce(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(1)
		w.zulip.EmitRaw(`{"type":"mystery","n":1}`)
		w.zulip.EmitRaw(`{"type":"mystery","n":2}`)
		time.Sleep(time.Second)
		before := len(w.zulip.Requests())
		time.Sleep(time.Minute)
		if n := len(w.zulip.Requests()) - before; n > 65 {
			t.Errorf("%d requests in a minute with an event that cannot be acknowledged", n)
		}
		for range 3 {
			one.kill()
			one.start()
			time.Sleep(10 * time.Second)
		}
		w.say(1)
		time.Sleep(40 * time.Second)
		if rejected := told[map[string]any](w, "rejected", ""); len(rejected) != 2 ||
			rejected[0]["event"] != `{"type":"mystery","n":1}` {
			t.Errorf("rejected: %v; want the two, once each", rejected)
		}
		if live, _ := w.origins(); live != 2 {
			t.Errorf("%d messages stored, want 2", live)
		}
	})
}
