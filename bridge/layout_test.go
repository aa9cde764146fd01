package bridge_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/events"
	"zulip-nats/stream/model"
	"zulip-nats/subjects"
	"zulip-nats/zulipsim"
)

// onSubjects are the events that stand on each subject, as words that their bytes have.
func (w *world) onSubjects(words ...string) map[string]string {
	found := map[string][]string{}
	for _, m := range w.jet.Messages() {
		if first(m, events.HeaderRecord) != "" {
			continue
		}
		for _, word := range words {
			if bytes.Contains(m.Data, []byte(word)) {
				subject := strings.TrimPrefix(m.Subject, "zulip."+simRealm+".")
				found[subject] = append(found[subject], word)
			}
		}
	}
	all := map[string]string{}
	for subject, words := range found {
		all[subject] = strings.Join(words, " ")
	}
	return all
}

// By place: an event is where that is what it is about; what Zulip does not say is looked
// up, also behind a kill, and follows what was moved. What may be a direct message is on
// no other subject than its own, and in no record.
func TestByPlace(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.realm = w.realm.By(subjects.ByPlace)
		w.options.Life = 10 * time.Minute
		w.jet.MaxPayload, w.jet.MaxObject = 9200, 9200
		general, random := w.zulip.Channel("general").ID, w.zulip.Channel("random").ID
		in := func(kind string, channel int64) string { return fmt.Sprintf("%s.channel.%d", kind, channel) }
		send := func(word string) int64 {
			return w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: word})
		}
		direct := func(word string) int64 {
			return w.zulip.SendMessage(zulipsim.Message{To: []string{simAccount}, Sender: "ada@example.com", Content: "secret " + word})
		}
		react := func(id int64, word string) {
			w.zulip.Emit(map[string]any{"type": "reaction", "op": "add", "message_id": id, "emoji_name": word})
		}
		flag := func(word string, ids ...int64) {
			w.zulip.Emit(map[string]any{"type": "update_message_flags", "op": "add", "flag": word, "messages": ids, "all": false})
		}
		one.follows(0)
		c1, c2, d1, d2 := send("c1"), send("c2"), direct("d1"), direct("d2")
		c3 := w.zulip.SendMessage(zulipsim.Message{Channel: "random", Topic: "t", Content: "c3"})
		react(c1, "r1")
		react(d1, "r2")
		react(4_000_000, "r3") // nobody knows that one
		flag("f1", c1, c2)
		flag("f2", d1, d2)
		flag("f3", c1, d1)
		flag("f4")
		flag("f5", c1, c3)
		for word, id := range map[string]int64{"s1": c1, "s2": d1, "s3": 4_000_000} {
			w.zulip.Emit(map[string]any{"type": "submessage", "message_id": id, "content": word})
		}
		w.zulip.EditMessage(c1, zulipsim.Edit{Content: new("e1")})
		w.zulip.EditMessage(d1, zulipsim.Edit{Content: new("secret e2")})
		w.zulip.Emit(map[string]any{"type": "update_message", "message_id": 4_000_000, "rendered_content": "e3"})
		w.zulip.Emit(map[string]any{"type": "drafts", "op": "add", "drafts": []any{"secret draft"}})
		w.zulip.Emit(map[string]any{"type": "quite_new", "what": "new"})
		w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 1, "status_text": "busy"})
		w.zulip.Emit(map[string]any{"type": "stream", "op": "update", "stream_id": general, "value": "renamed"})
		w.zulip.Emit(map[string]any{"type": "message", "message": map[string]any{"id": 4_000_001, "type": "stream", "content": "c9"}})
		w.zulip.EmitRaw(`{"type":"message","id":%ID%,"secret":1,}`)     // no JSON
		w.zulip.EmitRaw(`{"type":"a.b","id":%ID%,"secret":"no token"}`) // no type that a subject takes
		large := direct(strings.Repeat("large ", 1500))                 // nothing takes that
		time.Sleep(time.Minute)
		got := w.onSubjects("c1", "c2", "d1", "d2", "r1", "r2", "r3", "c3", "f1", "f2", "f3", "f4", "f5", "s1", "s2", "s3", "e1", "e2", "e3",
			"c9", "draft\"", "new\"", "busy", "renamed")
		want := map[string]string{
			in("message", general): "c1 c2", "message.direct": "c9 d1 d2",
			in("reaction", general): "r1", "reaction.direct": "r2", "reaction.none": "r3",
			in("update_message_flags", general): "f1", "update_message_flags.direct": "f2 f3", "update_message_flags.none": "f4 f5", in("message", random): "c3",
			in("submessage", general): "s1", "submessage.direct": "s2 s3",
			in("update_message", general): "c1 e1", "update_message.direct": "d1 e2 e3",
			"drafts.direct": "draft\"", "quite_new.direct": "new\"", "user_status.none": "busy",
			in("stream", general): "renamed",
		}
		for subject, words := range got {
			got[subject] = strings.Join(slices.Sorted(slices.Values(strings.Fields(words))), " ")
		}
		if !maps.Equal(got, want) {
			t.Errorf("stored on\n%v, want\n%v", got, want)
		}

		// A move is where its messages were, and what comes behind it where they are.
		w.zulip.EditMessage(c1, zulipsim.Edit{Channel: new("random")})
		w.told.redelivered = map[int64]int{c1: 1}
		w.zulip.Redeliver(c1) // as it was
		react(c1, "r4")
		w.zulip.EditMessage(c1, zulipsim.Edit{Channel: new("general")})
		w.zulip.EditMessage(c2, zulipsim.Edit{Channel: new("random")})
		time.Sleep(time.Second)
		one.kill() // what it knew it has to read
		w.say(1)
		react(c1, "r5")
		react(c2, "r6")
		react(d1, "r7")
		one.start()
		time.Sleep(time.Minute)
		react(w.lastIDs[0], "r8")
		time.Sleep(time.Second)
		want = map[string]string{in("reaction", general): "r5 r8", in("reaction", random): "r4 r6", "reaction.direct": "r7",
			in("update_message", general): "new_stream_id new_stream_id", in("update_message", random): "new_stream_id"}
		if got := w.onSubjects("r4", "r5", "r6", "r7", "r8", "new_stream_id"); !maps.Equal(got, want) {
			t.Errorf("with moves, stored on\n%v, want\n%v", got, want)
		}

		one.stop()
		send("b1")
		direct("b2")
		w.expire()
		one.start()
		time.Sleep(time.Minute)
		if got := w.onSubjects("b1", "b2"); !maps.Equal(got, map[string]string{in("message", general): "b1", "message.direct": "b2"}) {
			t.Errorf("read back to\n%v", got)
		}
		for _, m := range w.jet.Messages() {
			if bytes.Contains(m.Data, []byte("secret")) && !strings.HasSuffix(m.Subject, ".direct") {
				t.Errorf("on %s: %.300s", m.Subject, m.Data)
			}
		}
		if n := len(told[events.Rejected](w, "rejected", "")); n != 3 {
			t.Errorf("%d events rejected, want 3: message %d is one", n, large)
		}
		w.texts = nil // said with other words than the checker knows
		w.check()
	})
}

// The record of a gap says since when it is, by place too.
func TestGapByPlace(t *testing.T) {
	for _, last := range []func(w *world){
		func(w *world) { w.say(1) },
		func(w *world) { w.zulip.SendMessage(zulipsim.Message{To: []string{simAccount}, Content: "direct"}) },
		func(w *world) { w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 1}) },
	} {
		story(t, func(w *world, one *instance) {
			w.realm = w.realm.By(subjects.ByPlace)
			one.follows(2)
			w.zulip.SendMessage(zulipsim.Message{To: []string{simAccount}, Content: "direct"})
			w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 1})
			time.Sleep(time.Second)
			last(w)
			time.Sleep(time.Second)
			one.stop()
			msgs := w.jet.Messages()
			newest := msgs[len(msgs)-1]
			w.expire()
			time.Sleep(time.Hour)
			one.start()
			time.Sleep(time.Minute)
			if g := told[events.GapOpened](w, "gap", "gap-opened"); len(g) != 1 || !g[0].LastStored.Equal(newest.Time) {
				t.Errorf("gaps: %+v; want one since %v, when something came to %s", g, newest.Time, newest.Subject)
			}
			w.check()
		})
	}
}

// A stream keeps its layout: a start with another one ends before anything is written or
// asked of Zulip, whatever the phase, and also where the limits took the record that says
// it.
func TestLayoutIsKept(t *testing.T) {
	for _, was := range []subjects.Layout{subjects.ByType, subjects.ByPlace} {
		for _, phase := range []string{"poll", "register", "refill", "poll, record gone"} {
			t.Run(was.String()+", "+phase, func(t *testing.T) {
				story(t, func(w *world, one *instance) {
					w.realm = w.realm.By(was)
					one.follows(3)
					one.kill()
					if !strings.HasPrefix(phase, "poll") {
						w.say(4)
						w.expire()
						w.cutBehind(map[bool]int{true: 2, false: 3}[strings.HasPrefix(phase, "register")]) // resumed, gap opened, queue
						one.start()
						time.Sleep(10 * time.Second)
						one.kill()
						w.jet.SetFaults(nil)
					}
					if strings.HasSuffix(phase, "gone") {
						w.jet.Age(2) // its record, twice
					}
					queues, stored := len(w.zulip.Queues()), len(w.jet.Ever(0))
					w.realm = w.realm.By(map[subjects.Layout]subjects.Layout{subjects.ByType: subjects.ByPlace,
						subjects.ByPlace: subjects.ByType}[was])
					one.start()
					time.Sleep(time.Minute)
					over, err := ended(one)
					one.err = nil
					e, ok := errors.AsType[*bridge.ConfigError](err)
					if !over || !ok || !strings.Contains(e.Error(), "Go on with --subjects "+was.String()) ||
						!strings.Contains(e.Error(), "--realm") {
						t.Fatalf("Run returned %v", err)
					}
					if n, m := len(w.zulip.Queues()), len(w.jet.Ever(0)); n != queues || m != stored {
						t.Errorf("%d queues were registered and %d messages stored first", n-queues, m-stored)
					}
					w.realm = w.realm.By(was)
					one.start()
					time.Sleep(time.Minute)
					w.say(1)
					time.Sleep(time.Second)
					if over, err := ended(one); over {
						t.Errorf("with its own layout it ended: %v", err)
					}
				})
			})
		}
	}
}

// An instance of another layout does not stand by, as if it could take over.
func TestStandbyOfAnotherLayout(t *testing.T) {
	for _, limit := range []bool{false, true} {
		story(t, func(w *world, one *instance) {
			w.lease = &simLease{ttl: 4 * time.Second}
			one.follows(2)
			other := w.instance()
			w.realm = w.realm.By(subjects.ByPlace)
			want := "--subjects by-type"
			if limit {
				w.jet.Edit(func(s *model.Settings) { s.MaxPerSubject = 100 })
				want = "max_msgs_per_subject"
			}
			other.start()
			time.Sleep(10 * time.Second)
			over, err := ended(other)
			other.err = nil
			if e, ok := errors.AsType[*bridge.ConfigError](err); !over || !ok || !strings.Contains(e.Error(), want) {
				t.Errorf("it returned %v, want %s", err, want)
			}
			w.say(1)
			time.Sleep(time.Second)
			if over, err := ended(one); over {
				t.Errorf("the one that leads ended: %v", err)
			}
		})
	}
}

// By place, a limit for each subject would take messages from among others, which a
// refill would bring again: it is refused, at the start and when somebody sets it later.
func TestByPlaceAndALimitForASubject(t *testing.T) {
	for _, later := range []bool{false, true} {
		t.Run(fmt.Sprint("later ", later), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				var log bytes.Buffer
				w.log = zerolog.New(&log)
				w.realm = w.realm.By(subjects.ByPlace)
				limit := func() { w.jet.Edit(func(s *model.Settings) { s.MaxPerSubject = 100 }) }
				if !later {
					limit()
				}
				one.start()
				time.Sleep(time.Second)
				if later {
					w.say(3)
					time.Sleep(time.Second)
					limit()
					w.say(1)
					time.Sleep(time.Minute)
				}
				over, err := ended(one)
				one.err = nil
				if e, ok := errors.AsType[*bridge.ConfigError](err); !over || !ok || !strings.Contains(e.Error(), "max_msgs_per_subject") {
					t.Errorf("Run returned %v\n%s", err, &log)
				}
				for _, q := range w.zulip.Queues() {
					if !later {
						t.Errorf("a queue was registered: %s", q.ID)
					}
				}
			})
		})
	}
}
