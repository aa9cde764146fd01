package bridge_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"zulip-nats/bridge"
	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/zulipsim"
)

// decoded is a message as a reader has it; nil where it is none of the bridge.
func decoded(t *testing.T, m *stream.Stored) *events.Event {
	t.Helper()
	e, err := events.Decode(m.Subject, nats.Header(m.Header), m.Data)
	if errors.Is(err, events.ErrForeign) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	e.Seq = m.Seq
	return e
}

// follow is what a reader makes of messages of the stream, one after the other.
func follow(t *testing.T, msgs []stream.Stored) *events.World {
	t.Helper()
	world := events.NewWorld()
	for i := range msgs {
		e := decoded(t, &msgs[i])
		if e == nil {
			continue
		}
		if err := world.Apply(e); err != nil && !errors.Is(err, events.ErrStub) {
			t.Errorf("sequence %d: %v", e.Seq, err)
		}
	}
	return world
}

// newestState is the newest mark that ends a state, nil if there is none.
func (w *world) newestState() *events.StateEnd {
	all := told[events.StateEnd](w, "state-end", "")
	if len(all) == 0 {
		return nil
	}
	return &all[len(all)-1]
}

// today is what a reader knows that begins with an empty disk: from the newest state on.
func (w *world) today() *events.World {
	w.t.Helper()
	end := w.newestState()
	if end == nil {
		w.t.Fatal("there is no state")
	}
	msgs := w.jet.Messages()
	from := slices.IndexFunc(msgs, func(m stream.Stored) bool { return m.Seq >= end.BeginSeq })
	world := follow(w.t, msgs[from:])
	if !world.Ready("users") || !world.Ready("channels") {
		w.t.Errorf("the state is not whole to a reader")
	}
	return world
}

// checkToday compares what readers know with what there is: one that began today, and one
// that was there from the start.
func (w *world) checkToday() {
	w.t.Helper()
	w.checkWorld("who began today", w.today())
	w.checkWorld("who was there from the start", follow(w.t, w.jet.Messages()))
}

func (w *world) checkWorld(who string, world *events.World) {
	w.t.Helper()
	people := world.Users()
	for id, p := range w.zulip.People() {
		if got, want := people[id], (events.User{ID: id, Name: p.Name, Email: p.Email, Bot: p.Bot,
			Active: p.Active}); got != want {
			w.t.Errorf("%s knows user %d as %+v, and it is %+v", who, id, got, want)
		}
	}
	known, there := world.Channels(), w.zulip.ChannelsOf(simAccount)
	for id, c := range there {
		if got, want := known[id], (events.ChannelState{ID: id, Name: c.Name, Live: !c.Archived}); got != want {
			w.t.Errorf("%s knows channel %d as %+v, and it is %+v", who, id, got, want)
		}
	}
	if len(known) != len(there) {
		w.t.Errorf("%s knows of %d channels, and there are %d", who, len(known), len(there))
	}
	for _, m := range w.zulip.Messages() { // of those that were seen
		if at, ok := world.Place(m.ID); ok && m.Channel != "" {
			c, _ := world.Channel(at.ChannelID)
			if c.Name != m.Channel || at.Topic != m.Topic {
				w.t.Errorf("%s has message %d in %s > %s, and it is in %s > %s", who, m.ID, c.Name, at.Topic, m.Channel,
					m.Topic)
			}
		}
	}
}

// checkStates: each whole state in the stream is what register told with that queue, byte
// by byte, in pieces of it alone; and nothing but pieces was purged. Where the stream
// lost messages by itself, only what is whole to a reader is looked at.
func (w *world) checkStates() (whole int) {
	w.t.Helper()
	var begin *stream.Stored
	var pieces []events.StatePiece
	counts, lost := map[string]int{}, false
	all, fates := w.jet.Ever(0), w.jet.Fates()
	for i := range all {
		m := &all[i]
		if fates[i] == model.Lost || fates[i] == model.Removed {
			lost = true
			continue
		}
		switch first(*m, events.HeaderRecord) {
		case events.RecordStateBegin:
			begin, pieces, counts = m, nil, map[string]int{}
		case events.RecordState:
			var p events.StatePiece
			if err := json.Unmarshal(m.Data, &p); err != nil {
				w.t.Errorf("sequence %d: %v", m.Seq, err)
			}
			if p.QueueID != first(*m, events.HeaderQueueID) || m.Subject != "zulip.acme.bridge.state."+p.Section ||
				first(*m, events.HeaderStatePiece) != fmt.Sprintf("%d/%d", p.Piece, p.Of) {
				w.t.Errorf("sequence %d: %s and the body %.200s do not agree", m.Seq, m.Subject, m.Data)
			}
			pieces = append(pieces, p)
			counts[p.Section]++
		case events.RecordStateEnd:
			var end events.StateEnd
			if err := json.Unmarshal(m.Data, &end); err != nil {
				w.t.Fatal(err)
			}
			there := begin != nil && begin.Seq == end.BeginSeq && maps.Equal(counts, end.Pieces)
			switch {
			case there:
				whole++
				w.checkState(&end, pieces)
			case !lost:
				w.t.Errorf("the state that ends at %d begins at %d, and has pieces %v; behind %+v come %v", m.Seq,
					end.BeginSeq, end.Pieces, begin, counts)
			}
		}
	}
	for _, m := range w.jet.Purged() {
		if first(m, events.HeaderRecord) != events.RecordState {
			w.t.Errorf("sequence %d on %s was purged", m.Seq, m.Subject)
		}
	}
	return whole
}

func (w *world) checkState(end *events.StateEnd, pieces []events.StatePiece) {
	w.t.Helper()
	last, members, ok := w.zulip.Registered(end.QueueID)
	if !ok || last != end.EventID {
		w.t.Errorf("the state of queue %s goes up to event %d, and Zulip told it up to %d", end.QueueID, end.EventID, last)
	}
	counts, got, order := map[string]int{}, map[string][]string{}, map[string]string{}
	for _, p := range pieces {
		if counts[p.Section]++; p.Piece != counts[p.Section] || p.Of != end.Pieces[p.Section] || p.QueueID != end.QueueID ||
			p.EventID != end.EventID {
			w.t.Errorf("piece %d of %d of %s, queue %s, event %d, in the state of queue %s, event %d, of %v", p.Piece, p.Of,
				p.Section, p.QueueID, p.EventID, end.QueueID, end.EventID, end.Pieces)
		}
		text := string(p.Elements)
		order[p.Member] = text[:1] + text[len(text)-1:]
		if len(text) > 2 {
			got[p.Member] = append(got[p.Member], text[1:len(text)-1])
		}
	}
	maps.DeleteFunc(end.Pieces, func(_ string, n int) bool { return n == 0 })
	if !maps.Equal(counts, end.Pieces) {
		w.t.Errorf("the state of queue %s has pieces %v, and says %v", end.QueueID, counts, end.Pieces)
	}
	for member, ends := range order {
		if text := ends[:1] + strings.Join(got[member], ",") + ends[1:]; text != string(members[member]) {
			w.t.Errorf("%s of queue %s is stored as\n%s\nand Zulip told\n%s", member, end.QueueID, text, members[member])
		}
	}
}

// inhabited is an organization in which things have happened.
func (w *world) inhabited() {
	w.zulip.Person(zulipsim.DefaultSender, "Ada")
	for i := range 40 {
		w.zulip.Person(fmt.Sprintf("person%d@example.com", i), fmt.Sprintf("Person <%d> & Søn", i))
	}
	for _, name := range []string{"general", "plans", "old"} {
		w.zulip.Channel(name)
	}
	w.zulip.AddEmoji("parrot")
}

// live lets the organization change.
func (w *world) live() {
	n := w.rng.IntN(1000)
	w.zulip.Join(fmt.Sprintf("new%d@example.com", n), fmt.Sprintf("New %d", n))
	w.zulip.Person(fmt.Sprintf("person%d@example.com", n%40), "").Rename(fmt.Sprintf("Renamed %d", n))
	w.zulip.Person(fmt.Sprintf("person%d@example.com", n%7), "").SetActive(n%2 == 0)
	w.zulip.CreateChannel(fmt.Sprintf("channel %d", n)).Rename(fmt.Sprintf("channel %d, later", n))
	c := w.zulip.CreateChannel(fmt.Sprintf("short-lived %d", n))
	id := w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "to be moved"})
	topic, to := fmt.Sprintf("topic %d", n), "plans"
	w.zulip.EditMessage(id, zulipsim.Edit{Topic: &topic})
	w.zulip.EditMessage(id, zulipsim.Edit{Channel: &to, Topic: &topic})
	w.lastIDs = append(w.lastIDs, id)
	c.Archive()
}

func (w *world) asks(names ...string) {
	var err error
	if w.state, err = poller.SectionsOf(names); err != nil {
		w.t.Fatal(err)
	}
}

// The state of the first queue is in the stream before its first event, and who begins
// with it knows what one knows who was there from the start.
func TestState(t *testing.T) {
	for _, level := range []int{372, 500} {
		t.Run(fmt.Sprint(level), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.zulip.FeatureLevel = level
				w.inhabited()
				w.asks("users", "channels", "subscriptions", "groups", "emoji", "linkifiers", "profile-fields")
				// What happens in the middle of the register is in the state, and comes by the queue
				// as well.
				w.zulip.DuringRegister = func(string) { w.live() }
				one.start()
				time.Sleep(time.Second)
				for range 3 {
					w.live()
				}
				time.Sleep(time.Second)
				w.check()
				if n := w.checkStates(); n != 1 {
					t.Errorf("%d states are whole", n)
				}
				for _, s := range w.state {
					if w.newestState().Pieces[s.Name] == 0 {
						t.Errorf("the state has no %s", s.Name)
					}
				}
				w.checkToday()
				kinds := ""
				for _, m := range w.jet.Messages()[:4] {
					kinds += " " + m.Subject[len("zulip.acme."):]
				}
				if kinds != " bridge.queue bridge.state-begin bridge.state.users bridge.state.users" {
					t.Errorf("the stream begins with%s", kinds)
				}
			})
		})
	}
}

// Without the option nothing of it is there, and nothing more is asked of Zulip.
func TestNoState(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.MaxAge = 6 * time.Hour // so that records are written again soon
		one.follows(3)
		time.Sleep(2 * time.Hour)
		if end := w.newestState(); end != nil || w.requests(zulipsim.Register, time.Time{}) != 1 {
			t.Errorf("%+v, %d registers", end, w.requests(zulipsim.Register, time.Time{}))
		}
		for _, m := range w.jet.Ever(0) {
			if strings.Contains(m.Subject, "bridge.state") {
				t.Errorf("a message on %s", m.Subject)
			}
		}
	})
}

// A state is cut off behind each of its messages by a kill: the next start changes over to
// a queue that brings another one. Nothing is lost, and no reader takes a half one for
// whole.
func TestStateCutOff(t *testing.T) {
	const pieces = 5 // are written at once, behind the mark that begins the state
	cuts := []struct{ write, keep int }{{1, 1}, {2, 1}, {4, 1}}
	for n := range pieces {
		cuts = append(cuts, struct{ write, keep int }{3, n + 1})
	}
	for _, cut := range cuts {
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.jet.MaxPayload = 9 << 10
				w.inhabited()
				w.asks("users", "channels")
				w.onWrites(func(n int) (f model.Fault) {
					if n == cut.write {
						one.dead()
						f.Keep, f.Deaf = cut.keep, true
					}
					return f
				})
				one.start()
				time.Sleep(time.Minute)
				one.kill()
				w.jet.Faults = w.faults
				stored := len(w.jet.Messages())
				if want := []int{0, 1, 2, 2 + cut.keep, 3 + pieces}[cut.write]; stored != want {
					t.Fatalf("%d messages are stored, want %d", stored, want)
				}
				if whole := w.newestState() != nil; whole != (cut.write == 4) {
					t.Errorf("a whole state: %v", whole)
				}
				if cut.write < 4 && follow(t, w.jet.Messages()).Ready("users") {
					t.Error("a reader takes a half state for a whole one")
				}
				w.live()
				one.start()
				time.Sleep(time.Second)
				w.live()
				time.Sleep(time.Second)
				w.check()
				w.checkStates()
				w.checkToday()
				if queues := len(w.zulip.Queues()); queues != 2-cut.write/4 {
					t.Errorf("%d queues were made", queues)
				}
			})
		})
	}
}

// Each new queue brings a state: behind a lost one, and behind a change-over.
func TestStateOfEachQueue(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.inhabited()
		w.asks("users", "channels")
		one.follows(3)
		first := w.newestState()
		w.expire()
		w.live() // nobody learns of it but by the state
		time.Sleep(2 * time.Minute)
		w.live()
		time.Sleep(time.Minute)
		lost := w.newestState()
		if lost.QueueID == first.QueueID {
			t.Fatal("no state behind the lost queue")
		}
		w.checkToday()
		// Other options.
		one.stop()
		w.options.SlimPresence = true
		w.live()
		one.start()
		time.Sleep(time.Second)
		if changed := w.newestState(); changed.QueueID == lost.QueueID {
			t.Error("no state behind the change-over")
		}
		if n := w.checkStates(); n != 3 {
			t.Errorf("%d states are whole, want 3", n)
		}
		w.checkToday()
		w.check()
		// Of those before the newest only the marks are left.
		begun, pieces := told[events.StateBegin](w, "state-begin", ""), told[events.StatePiece](w, "state.users", "")
		for _, p := range pieces {
			if p.QueueID != w.newestState().QueueID {
				t.Errorf("a piece of queue %s is left", p.QueueID)
			}
		}
		if len(begun) != 3 || len(pieces) == 0 {
			t.Errorf("%d states were begun, %d pieces are left", len(begun), len(pieces))
		}
	})
}

// A state is written anew when it is a quarter as old as what the stream keeps, when
// somebody asks, and when other sections are asked for, each time with a new queue and
// nothing lost.
func TestStateAnew(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.MaxAge = 6 * time.Hour
		w.inhabited()
		one.follows(3)
		if w.newestState() != nil {
			t.Fatal("a state that nobody asked for")
		}
		seen := map[string]bool{}
		anew := func(what string, after time.Duration) {
			t.Helper()
			for left := after; left > 0; left -= time.Hour {
				time.Sleep(min(left, time.Hour))
				w.live()
			}
			time.Sleep(time.Minute)
			end := w.newestState()
			if end == nil || seen[end.QueueID] {
				t.Fatalf("%s: no new state", what)
			}
			if seen[end.QueueID] = true; len(seen) != w.checkStates() {
				t.Errorf("%s: %d states, and there should be %d", what, w.checkStates(), len(seen))
			}
			w.checkToday()
		}
		one.stop()
		w.asks("users", "channels")
		one.start()
		anew("asked for since this start", time.Second)
		anew("a quarter of max_age later", 90*time.Minute+time.Second)
		one.bridge.AskState()
		anew("asked for by somebody", time.Second)
		one.bridge.AskState() // too soon
		one.bridge.AskState()
		anew("asked for again", time.Minute)
		one.stop()
		w.asks("users", "channels", "emoji")
		one.start()
		anew("with another section", time.Second)
		one.stop()
		one.start()
		time.Sleep(time.Minute)
		if seen[w.newestState().QueueID] = true; len(seen) != 5 {
			t.Errorf("%d states, and a start that asks for the same brings none", len(seen))
		}
		w.check()
	})
}

// The stream lost its newest messages and the queue lives on: what they said of people and
// channels is lost, so there is a new state, though the queue had one.
func TestStateBehindALostTail(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		w.inhabited()
		w.asks("users", "channels")
		one.follows(10)
		w.zulip.Person("person1@example.com", "").Rename("Nobody will know")
		w.zulip.Channel("plans").Rename("nor this")
		time.Sleep(time.Second)
		w.jet.Restore(2)
		time.Sleep(5 * time.Minute)
		if w.living() != 1 || w.whys() != "first, lost, kept" {
			t.Fatalf("%d queues live, recorded are %s", w.living(), w.whys())
		}
		if follow(t, w.jet.Messages()).Ready("users") {
			t.Error("what is in front of the gap is taken for whole")
		}
		time.Sleep(10 * time.Minute)
		w.checkStates()
		w.checkToday()
		w.check()
	})
}

// NATS takes no writes in the middle of a state, or stores them without an answer: it goes
// on when that is over, with the same queue.
func TestStateAndNATSAway(t *testing.T) {
	for name, fault := range map[string]model.Fault{
		"away": {Fail: stream.Unavailable}, "no answer": {Deaf: true}, "stored in part": {Keep: 2},
		"refused": {Fail: stream.Refused}, "late": {Late: 5 * time.Second},
	} {
		for write := 2; write <= 4; write++ {
			t.Run(fmt.Sprint(name, " at write ", write), func(t *testing.T) {
				story(t, func(w *world, one *instance) {
					w.jet.MaxPayload = 9 << 10
					w.inhabited()
					w.asks("users", "channels")
					w.onWrites(func(n int) (f model.Fault) {
						if n == write {
							f = fault
						}
						return f
					})
					one.start()
					time.Sleep(time.Minute)
					w.live()
					time.Sleep(time.Minute)
					w.check()
					if n := w.checkStates(); n != 1 || len(w.zulip.Queues()) != 1 {
						t.Errorf("%d states, %d queues", n, len(w.zulip.Queues()))
					}
					w.checkToday()
				})
			})
		}
	}
}

// A queue is made for its state and given up, since one poll of the old one was refused
// that lives all the same: its state is not taken for that of the queue that is followed.
func TestStateOfAQueueThatWasGivenUp(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.inhabited()
		one.start()
		time.Sleep(time.Second)
		one.stop() // nothing has happened: the queue is at its beginning
		w.asks("users", "channels")
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 1, Status: http.StatusBadRequest, Body: dead})
		one.start()
		time.Sleep(30 * time.Second)
		if w.newestState() != nil || w.living() != 1 || w.whys() != "first, kept" {
			t.Errorf("%+v, %d queues live, recorded are %s", w.newestState(), w.living(), w.whys())
		}
		w.live()
		time.Sleep(time.Hour)
		w.checkStates()
		w.checkToday()
		w.check()
	})
}

// Behind a reconnect the numbers may be those of another stream: nothing is purged by
// them.
func TestNoPurgeBehindAReconnect(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.inhabited()
		w.asks("users", "channels")
		one.follows(1)
		one.stop()
		w.options.SlimPresence = true
		w.onWrites(func(n int) (f model.Fault) {
			if n == 4 { // the end of the state: behind the queue's record, its beginning, the pieces
				w.commits.Go(func() { w.jet.Reconnect() })
				f.Late = time.Second
			}
			return f
		})
		one.start()
		time.Sleep(time.Minute)
		if n := w.checkStates(); n != 2 || len(w.jet.Purged()) != 0 {
			t.Errorf("%d states, %d messages purged", n, len(w.jet.Purged()))
		}
		w.checkToday()
		w.check()
	})
}

// Zulip serves polls, and no register: events go on, and the state comes later.
func TestStateHoldsUpNothing(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.inhabited()
		one.follows(3)
		one.stop()
		w.asks("users", "channels")
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.Register, Status: http.StatusBadGateway, For: time.Hour})
		one.start()
		time.Sleep(time.Minute)
		w.say(3)
		time.Sleep(time.Second)
		w.checkMessagesOnce()
		if w.newestState() != nil {
			t.Error("a state, and Zulip told none")
		}
		time.Sleep(90 * time.Minute)
		w.checkStates()
		w.checkToday()
		w.check()
	})
}

// A server that fails over the state alone still gives a queue.
func TestServerFailsOverTheState(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.inhabited()
		w.asks("users")
		asked := 0
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.Register, Status: http.StatusInternalServerError,
			Match: func(*http.Request) bool { asked++; return asked%3 != 0 }}) // the third goes without the state
		one.start()
		time.Sleep(time.Minute)
		w.say(3)
		time.Sleep(3 * time.Hour)
		w.check()
		for _, r := range w.zulip.Requests() {
			if r.Kind == zulipsim.Register && (r.Status == http.StatusOK) == strings.Contains(r.Params["fetch_event_types"], "realm_user") {
				t.Errorf("a register that asks for %s is answered %d", r.Params["fetch_event_types"], r.Status)
			}
		}
		if n := w.requests(zulipsim.Register, time.Time{}); n < 6 || n > 12 || w.newestState() != nil {
			t.Errorf("%d registers in three hours; %+v", n, w.newestState())
		}
	})
}

// An element that the stream does not take, and limits that would keep a part only: there
// is no state, the log says why, and all else goes on.
func TestStateThatDoesNotFit(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(w *world)
		says string
	}{
		"a large element": {func(w *world) {
			w.zulip.Person("long@example.com", strings.Repeat("x", 20<<10))
			w.jet.MaxPayload = 9 << 10
		}, "an element of users, which Zulip calls realm_users"},
		"few messages of a subject": {func(w *world) { w.jet.MaxPerSubject = 2 }, "max_msgs_per_subject"},
	} {
		t.Run(name, func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				log := w.logged()
				w.inhabited()
				c.set(w)
				w.asks("users")
				one.start()
				time.Sleep(time.Minute)
				w.say(2)
				time.Sleep(3 * time.Hour) // nor is it tried again and again
				if w.newestState() != nil || !strings.Contains(log(), c.says) {
					t.Errorf("%+v, and the log says\n%s", w.newestState(), log())
				}
				if n := w.requests(zulipsim.Register, time.Time{}); n != 1 {
					t.Errorf("%d registers", n)
				}
			})
		})
	}
}

// Whoever may not purge keeps older states, and is told so once.
func TestStatesNotPurged(t *testing.T) {
	story(t, func(w *world, one *instance) {
		log := w.logged()
		logs := w.configure
		w.configure = func(c *bridge.Config) {
			logs(c)
			open := c.Open
			c.Open = func(ctx context.Context) (bridge.Stream, error) {
				s, err := open(ctx)
				return noPurge{s}, err
			}
		}
		w.inhabited()
		w.asks("users", "channels")
		one.follows(1)
		for range 2 {
			time.Sleep(2 * time.Minute)
			one.bridge.AskState()
		}
		time.Sleep(2 * time.Minute)
		if n := w.checkStates(); n != 3 || len(w.jet.Purged()) != 0 ||
			strings.Count(log(), "state_not_purged") != 1 {
			t.Errorf("%d states, %d messages purged\n%s", n, len(w.jet.Purged()), log())
		}
		w.checkToday()
		w.check()
	})
}

// noPurge is a stream that we have no right to purge.
type noPurge struct{ bridge.Stream }

func (noPurge) Purge(context.Context, string, uint64) error {
	return &stream.Error{Kind: stream.Forbidden, Err: errors.New("no right to STREAM.PURGE")}
}

// states is what the simulation looks at: each state in the stream, and what a reader
// knows in the end, if it has read a whole one and nothing came between.
func (c *whole) states() {
	if c.checkStates() > 0 {
		drawn.count("a whole state")
	}
	limits := c.told.limits || len(c.told.interest) > 0 || c.told.foreign
	for n := range c.all {
		m := &c.all[n]
		limits = limits || m.fate == model.Removed // by somebody's hand, which nobody has to notice
		if m.record == "queue" {
			limits = limits || string(said[struct {
				Options struct {
					EventTypes json.RawMessage `json:"event_types"`
				} `json:"options"`
			}](c.world, m).Options.EventTypes) != "null"
		}
	}
	if world := follow(c.t, c.jet.Messages()); world.Ready("users") && world.Ready("channels") && !limits {
		drawn.count("a reader knows all in the end")
		c.checkWorld("in the end, a reader", world)
	}
}
