package bridge_test

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/events"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/subjects"
	"zulip-nats/zulipsim"
)

// erases makes the instances of a world erase what is deleted.
func (w *world) erases() {
	w.configure = func(c *bridge.Config) { c.EraseDeleted = true }
}

// send sends a message with a text.
func (w *world) send(text string) int64 {
	return w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: text})
}

func (w *world) rewrite(id int64, text string) {
	w.zulip.EditMessage(id, zulipsim.Edit{Content: &text})
}

// holding says where a text is: in messages of the stream, by subject, and in the object
// store.
func (w *world) holding(text string) (places []string) {
	for _, m := range w.jet.Messages() {
		if bytes.Contains(m.Data, []byte(text)) {
			places = append(places, fmt.Sprintf("%s #%d", m.Subject, m.Seq))
		}
	}
	for name, data := range w.jet.Objects() {
		if bytes.Contains(data, []byte(text)) {
			places = append(places, "object "+name)
		}
	}
	return places
}

// erasedTold adds up what the records say that was erased.
func (w *world) erasedTold() (messages []int64, seqs []uint64, evs map[string][]int64) {
	evs = map[string][]int64{}
	for _, r := range told[events.Erased](w, "erased", "erased") {
		messages, seqs = append(messages, r.Messages...), append(seqs, r.Seqs...)
		for _, e := range r.Events {
			evs[e.QueueID] = append(evs[e.QueueID], e.IDs...)
		}
	}
	return messages, seqs, evs
}

// checkChain: what is missing from the chain of a queue's events, the records name.
func (w *world) checkChain() {
	w.t.Helper()
	_, seqs, evs := w.erasedTold()
	for _, m := range w.jet.Messages() {
		if slices.Contains(seqs, m.Seq) {
			w.t.Errorf("message %d is named as erased, and is there", m.Seq)
		}
	}
	objects := w.jet.Objects()
	for _, m := range w.jet.Messages() {
		if name := first(m, events.HeaderObject); name != "" && objects[name] == nil {
			w.t.Errorf("message %d is the stub of %s, which is not there", m.Seq, name)
		}
	}
	last := map[string]int64{}
	for n, m := range w.jet.Ever(0) {
		if w.jet.Fates()[n] == model.Erased {
			if !slices.Contains(seqs, m.Seq) {
				w.t.Errorf("message %d, on %s, is erased, and no record names it", m.Seq, m.Subject)
			}
			continue
		}
		id, err := strconv.ParseInt(first(m, events.HeaderEventID), 10, 64)
		if err != nil {
			continue
		}
		queue := first(m, events.HeaderQueueID)
		if prev, err := strconv.ParseInt(first(m, events.HeaderPrevEventID), 10, 64); err == nil {
			if before, known := last[queue]; known && prev != before && !slices.Contains(evs[queue], prev) {
				w.t.Errorf("event %d of queue %s follows %d, which is neither there nor named as erased", id, queue, prev)
			}
		}
		last[queue] = id
	}
}

// A message that is deleted is erased with its edits, its poll and what of it is in the
// object store; what others said, reactions and moves stay. So it is for messages that are
// deleted together, and moved between channels before.
func TestErase(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.erases()
		w.jet.Single, w.jet.MaxPayload = true, 9000
		var log bytes.Buffer
		w.log = zerolog.New(&log)
		one.start()
		time.Sleep(time.Second)
		w.say(3)
		large := strings.Repeat("a large secret ", 1000)
		a, b := w.send("the first secret"), w.send("the second secret")
		big := w.send(large)
		kept := w.send("what stays")
		w.rewrite(a, "another secret")
		w.rewrite(kept, "what stays too")
		w.rewrite(b, large+"second")
		w.zulip.LinkPreview(a, "<p>a secret with a preview</p>")
		w.zulip.Emit(map[string]any{"type": "submessage", "message_id": a, "msg_type": "widget",
			"content": "a secret answer"})
		w.zulip.Emit(map[string]any{"type": "submessage", "message_id": kept, "msg_type": "widget",
			"content": "an answer that stays"})
		w.zulip.React(a, "ada@example.com", "tada")
		random, topic := "random", "elsewhere"
		w.zulip.EditMessage(a, zulipsim.Edit{Channel: &random})
		w.zulip.EditMessage(b, zulipsim.Edit{Topic: &topic, Also: []int64{kept, big}})
		w.jet.Publish("zulip.acme.update_message", fmt.Appendf(nil, `{"message_id":%d,"content":"of others"}`, a))
		time.Sleep(time.Second)
		if got := w.holding("secret"); len(got) != 7 || len(w.jet.Objects()) != 2 {
			t.Fatalf("before it is erased, the text is in %v", got)
		}
		before := len(w.jet.Messages())
		w.zulip.DeleteMessages(a)
		w.zulip.DeleteMessages(b, big)
		time.Sleep(time.Second)
		if got := w.holding("secret"); len(got) > 0 {
			t.Errorf("the text of deleted messages is in %v", got)
		}
		if n := len(w.jet.Objects()); n != 0 {
			t.Errorf("%d objects are left", n)
		}
		for _, text := range []string{"what stays", "what stays too", "an answer that stays", "of others", "elsewhere"} {
			if len(w.holding(text)) == 0 {
				t.Errorf("%q is erased, and nobody deleted it", text)
			}
		}
		kinds := map[string]int{}
		for n, m := range w.jet.Ever(0) {
			if w.jet.Fates()[n] == model.Erased {
				kinds[strings.TrimPrefix(m.Subject, "zulip.acme.")]++
			}
		}
		// Three messages; two edits and a preview of the first one, its move, and the edit of
		// the second. The move of the second is one of others too.
		if want := map[string]int{"message": 3, "update_message": 4, "submessage": 1}; !maps.Equal(kinds, want) {
			t.Errorf("erased by type: %v, want %v", kinds, want)
		}
		ids, _, _ := w.erasedTold()
		slices.Sort(ids)
		if !slices.Equal(slices.Compact(ids), []int64{a, b, big}) {
			t.Errorf("the records name %v, want %v", ids, []int64{a, b, big})
		}
		if after := len(w.jet.Messages()); after >= before {
			t.Errorf("%d messages before, and %d after", before, after)
		}
		c := one.bridge.Status().Counters
		if c.Erased != 3 {
			t.Errorf("%d messages are counted as erased, want 3", c.Erased)
		}
		if !strings.Contains(log.String(), `"event":"messages_erased"`) || strings.Contains(log.String(), "secret") {
			t.Errorf("the log says\n%s", log.String())
		}
		w.checkChain()
		one.kill()
		requests := w.jet.Requests("scan")
		one.start()
		time.Sleep(time.Second)
		w.say(2)
		time.Sleep(time.Second)
		w.checkChain()
		w.check()
		if n := len(told[events.Erased](w, "erased", "")); n < 2 {
			t.Errorf("%d records of what was erased", n)
		}
		// To know what is about what would take four more.
		if n := w.jet.Requests("scan") - requests; n > 4 {
			t.Errorf("a start read the stream %d times, with nothing to erase", n)
		}
	})
}

// On a replicated store a deposed leader may not know an object that has just been stored:
// so what is that young is waited for, until something was stored half a minute later.
func TestEraseYoungObject(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.erases()
		w.jet.MaxPayload = 9000
		var log bytes.Buffer
		w.log = zerolog.New(&log)
		one.start()
		time.Sleep(time.Second)
		a := w.send(strings.Repeat("a large secret ", 1000))
		time.Sleep(time.Second)
		w.zulip.DeleteMessages(a)
		for range 5 {
			time.Sleep(5 * time.Second)
			w.say(1)
		}
		if got := w.holding("secret"); len(got) != 1 || w.jet.Requests("erase object") != 0 {
			t.Errorf("26 s after it was stored the text is in %v", got)
		}
		time.Sleep(2 * time.Minute)
		if got := w.holding("secret"); len(got) > 0 || len(w.jet.Objects()) > 0 {
			t.Errorf("the text is in %v", got)
		}
		if strings.Contains(log.String(), "erasing_") {
			t.Errorf("the log says\n%s", log.String())
		}
		w.checkChain()
		w.check()
	})
}

// Without the option nothing is erased, and nothing is stored that was not before.
func TestEraseNotAskedFor(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.start()
		time.Sleep(time.Second)
		w.zulip.DeleteMessages(w.send("a secret"))
		time.Sleep(time.Minute)
		if len(w.holding("a secret")) != 1 || len(told[events.Erased](w, "erased", "")) != 0 ||
			w.jet.Requests("erase") != 0 {
			t.Error("something was erased")
		}
	})
}

// Switched on later, it erases what the stream tells to be deleted.
func TestEraseSwitchedOnLater(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.start()
		time.Sleep(time.Second)
		w.zulip.DeleteMessages(w.send("a secret"))
		w.say(3)
		time.Sleep(time.Second)
		one.stop()
		w.erases()
		one.start()
		time.Sleep(time.Second)
		if got := w.holding("a secret"); len(got) > 0 {
			t.Errorf("the text is in %v", got)
		}
		w.check()
	})
}

// The process dies at any request of the erasing, and the next one goes on. Whether that
// request was carried out it does not know.
func TestEraseAfterACrash(t *testing.T) {
	for _, done := range []bool{true, false} {
		for at := 1; ; at++ {
			reached := false
			t.Run(fmt.Sprintf("carried out %v, request %d", done, at), func(t *testing.T) {
				story(t, func(w *world, one *instance) {
					w.erases()
					w.jet.MaxPayload = 9000
					one.start()
					time.Sleep(time.Second)
					a, b := w.send("a secret"), w.send(strings.Repeat("a large secret ", 1000))
					w.rewrite(a, strings.Repeat("another secret ", 1000))
					time.Sleep(40 * time.Second) // the objects are old enough
					n := 0
					w.jet.SetFaults(func(op string) (f model.Fault) {
						if n++; n == at {
							reached = true
							if f.Deaf = true; !done {
								f = model.Fault{Fail: stream.Unclear}
							}
						} else if n > at {
							f.Fail = stream.Unavailable
						}
						return f
					})
					w.zulip.DeleteMessages(a)
					w.zulip.DeleteMessages(b)
					time.Sleep(time.Second)
					one.kill()
					w.jet.SetFaults(nil)
					one.start()
					time.Sleep(time.Second)
					w.say(1)
					time.Sleep(time.Minute)
					if got := w.holding("secret"); len(got) > 0 {
						t.Errorf("the text is in %v", got)
					}
					w.checkChain()
					w.check()
				})
			})
			if !reached || t.Failed() {
				if at < 30 && !t.Failed() {
					t.Errorf("erasing made %d requests: nothing is shown", at-1)
				}
				break
			}
		}
	}
}

// A leader that was deposed answers one read, and knows nothing of what came last.
func TestEraseAndADeposedLeader(t *testing.T) { deposed(t, 0, subjects.ByType) }

// The same, and then nobody answers for so long that what came last is no news any more.
func TestEraseAndADeposedLeaderThatIsGone(t *testing.T) { deposed(t, time.Minute, subjects.ByType) }

// By place, what came last is on more subjects.
func TestEraseAndADeposedLeaderByPlace(t *testing.T) { deposed(t, 0, subjects.ByPlace) }

func deposed(t *testing.T, gone time.Duration, layout subjects.Layout) {
	for at := 1; ; at++ {
		reached := false
		var back time.Time
		t.Run(fmt.Sprint("read ", at), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.realm = w.realm.By(layout)
				w.erases()
				one.follows(3)
				w.zulip.DeleteMessages(w.send("the first secret"))
				time.Sleep(time.Second) // what the stream holds is known from here on
				w.jet.Depose()
				a, b := w.send("a secret"), w.send("the other secret")
				time.Sleep(time.Second)
				n, began := 0, time.Now()
				w.jet.SetFaults(func(op string) (f model.Fault) {
					if op != "append" && op != "erase" {
						n++
						f.Stale = n == at && time.Since(began) < time.Minute
						reached = reached || f.Stale
						if f.Stale {
							back = time.Now().Add(gone)
						} else if time.Now().Before(back) {
							f.Fail = stream.Unclear
						}
					}
					return f
				})
				w.zulip.DeleteMessages(a)
				w.zulip.DeleteMessages(b)
				time.Sleep(gone + 3*time.Minute)
				if got := w.holding("secret"); len(got) > 0 {
					t.Errorf("the text is in %v", got)
				}
				w.checkChain()
				w.check()
			})
		})
		if !reached || t.Failed() || at == 40 {
			if at < 10 && !t.Failed() {
				t.Errorf("erasing made %d reads: nothing is shown", at-1)
			}
			break
		}
	}
}

// Only the low half of an id is remembered: of two that are alike there, one goes.
func TestEraseOneOfTwoAlike(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.erases()
		one.follows(3)
		a := w.send("a secret")
		w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "what stays", ID: a + 1<<32})
		time.Sleep(time.Second)
		w.zulip.DeleteMessages(a)
		time.Sleep(time.Second)
		if got := w.holding("a secret"); len(got) > 0 {
			t.Errorf("the text is in %v", got)
		}
		if len(w.holding("what stays")) != 1 {
			t.Error("another message is erased")
		}
		w.check()
	})
}

// What the server does not carry out is told once and tried again; events are stored
// meanwhile.
func TestEraseDenied(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.erases()
		var log bytes.Buffer
		w.log = zerolog.New(&log)
		one.start()
		time.Sleep(time.Second)
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "erase" {
				f.Fail = stream.Wrong
			}
			return f
		})
		a := w.send("a secret")
		w.zulip.DeleteMessages(a)
		for range 10 {
			w.say(1)
			time.Sleep(10 * time.Second)
		}
		if n := len(w.holding("message")); n < 10 {
			t.Errorf("%d messages are stored while nothing can be erased", n)
		}
		if len(w.holding("a secret")) != 1 {
			t.Error("it is erased all the same")
		}
		s := one.bridge.Status()
		if wrong, is := s.Wrong[bridge.SideErasing]; !is || s.State != bridge.Following ||
			!strings.Contains(wrong.Text, "wrong") {
			t.Errorf("the status says %v, %+v", s.State, s.Wrong)
		}
		if n := strings.Count(log.String(), "erasing_fails"); n != 1 {
			t.Errorf("it is told %d times", n)
		}
		if n := w.jet.Requests("erase"); n < 3 || n > 20 {
			t.Errorf("tried %d times in 100 s", n)
		}
		w.jet.SetFaults(nil)
		time.Sleep(3 * time.Minute)
		if got := w.holding("a secret"); len(got) > 0 {
			t.Errorf("the text is in %v", got)
		}
		if _, is := one.bridge.Status().Wrong[bridge.SideErasing]; is || !strings.Contains(log.String(), "erasing_again") {
			t.Error("that it works again is not told")
		}
		w.checkChain()
		w.check()
	})
}

// A connection that breaks for a moment is no alarm.
func TestEraseBrokenOff(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.erases()
		var log bytes.Buffer
		w.log = zerolog.New(&log)
		one.start()
		time.Sleep(time.Second)
		a := w.send("a secret")
		time.Sleep(time.Second)
		n := 0
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "erase" {
				if n++; n == 1 {
					f.Fail = stream.Unavailable
				}
			}
			return f
		})
		w.zulip.DeleteMessages(a)
		time.Sleep(3 * time.Minute)
		if got := w.holding("a secret"); len(got) > 0 {
			t.Errorf("the text is in %v", got)
		}
		if strings.Contains(log.String(), "erasing_") {
			t.Errorf("the log says\n%s", log.String())
		}
		w.check()
	})
}

// While nobody listened a message was deleted, and others before: history does not bring
// those back, and neither does a queue that had them too.
func TestErasedDoesNotComeBack(t *testing.T) {
	t.Run("refill", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			w.erases()
			one.follows(3)
			a := w.send("a secret")
			time.Sleep(time.Second)
			w.zulip.DeleteMessages(a)
			time.Sleep(time.Second)
			one.kill()
			b := w.send("a secret of the gap")
			w.say(3)
			w.expire()
			one.start()
			time.Sleep(time.Minute)
			if n := len(w.holding("a secret of the gap")); n != 1 {
				t.Fatalf("the message of the gap is stored %d times", n)
			}
			w.zulip.DeleteMessages(b) // what was refilled goes as well
			time.Sleep(time.Second)
			if got := w.holding("a secret"); len(got) > 0 {
				t.Errorf("the text is in %v", got)
			}
			w.checkChain()
			w.check()
		})
	})
	t.Run("history shows it", func(t *testing.T) {
		// The account lost its access to the message, which Zulip tells as a deletion, and
		// has it again.
		story(t, func(w *world, one *instance) {
			w.erases()
			one.follows(3)
			a := w.send("a secret")
			time.Sleep(time.Second)
			w.zulip.Emit(map[string]any{"type": "delete_message", "message_id": a, "message_type": "stream"})
			time.Sleep(time.Second)
			one.kill()
			w.say(3)
			w.expire()
			one.start()
			time.Sleep(time.Minute)
			if got := w.holding("a secret"); len(got) > 0 {
				t.Errorf("the text is in %v", got)
			}
			w.checkChain()
		})
	})
	t.Run("both queues of a change-over have it", func(t *testing.T) {
		story(t, func(w *world, one *instance) {
			w.erases()
			one.follows(3)
			one.kill()
			w.options.EventTypes = nil
			w.options.SlimPresence = !w.options.SlimPresence
			var during int64
			w.zulip.DuringRegister = func(string) { // both queues get it
				during = w.send("a secret")
				w.zulip.DeleteMessages(during)
			}
			one.start()
			time.Sleep(time.Minute)
			if during == 0 {
				t.Fatal("nothing was sent during the change-over")
			}
			if got := w.holding("a secret"); len(got) > 0 {
				t.Errorf("the text is in %v", got)
			}
			n := 0
			for _, m := range w.jet.Ever(0) {
				if bytes.Contains(m.Data, []byte("a secret")) {
					n++
				}
			}
			if n != 1 {
				t.Errorf("the message was stored %d times", n)
			}
			w.checkChain()
			w.check()
		})
	})
}

// A rejected event is a copy, too: the beginning of it is in a record. One that a start
// looks for stays.
func TestEraseRejected(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.erases()
		w.jet.MaxPayload, w.jet.MaxObject = 9000, 100
		one.start()
		time.Sleep(time.Second)
		a := w.send("the secret begins " + strings.Repeat("a large secret ", 1000))
		time.Sleep(time.Second)
		w.zulip.EmitRaw(fmt.Sprintf(`{"type":"message","message":{"id":%d,"content":"of no id"}}`, a))
		time.Sleep(time.Second)
		if got := w.holding("the secret begins"); len(got) != 1 || !strings.Contains(got[0], "rejected") {
			t.Fatalf("the event is in %v", got)
		}
		w.zulip.DeleteMessages(a)
		time.Sleep(time.Minute)
		if got := w.holding("secret"); len(got) > 0 {
			t.Errorf("the text is in %v", got)
		}
		if len(w.holding("of no id")) != 1 {
			t.Error("the record of an event without an id is gone")
		}
		w.checkChain()
	})
}

// Where the limit for a subject may have taken messages, fewer than that limit do not say
// that it took none: what it took is not read back.
func TestEraseAndALimitForTheSubject(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.erases()
		w.jet.MaxPerSubject = 10
		one.start()
		time.Sleep(time.Second)
		w.say(10)
		time.Sleep(10 * time.Minute)
		w.say(10) // the first ten are gone
		time.Sleep(time.Second)
		w.zulip.DeleteMessages(w.lastIDs[15], w.lastIDs[16], w.lastIDs[17])
		time.Sleep(time.Second)
		one.kill()
		w.say(1)
		w.expire()
		one.start()
		time.Sleep(time.Minute)
		if g := told[closedTold](w, "gap", "gap-closed"); len(g) != 1 || g[0].Refilled != 1 {
			t.Errorf("the gap says %+v, want the one message of its own refilled", g)
		}
	})
}

// Messages that are deleted by the hundred are erased, each record with what fits.
func TestEraseMany(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.erases()
		w.jet.MaxPayload = 8192
		one.start()
		time.Sleep(time.Second)
		w.say(1200)
		time.Sleep(time.Minute)
		w.zulip.DeleteMessages(w.lastIDs[:1100]...)
		time.Sleep(5 * time.Minute)
		n := 0
		for _, m := range w.jet.Messages() {
			if m.Subject == "zulip.acme.message" {
				n++
			}
		}
		ids, seqs, _ := w.erasedTold()
		if n != 100 || len(ids) != 1100 || len(seqs) != 1100 {
			t.Errorf("%d messages are left, want 100; the records name %d ids, %d sequences", n, len(ids), len(seqs))
		}
		w.checkChain()
		w.check()
	})
}

// A server that is slow holds up events for a few seconds at a time, and no longer.
func TestEraseSlowly(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.erases()
		one.start()
		time.Sleep(time.Second)
		w.say(200)
		time.Sleep(time.Minute)
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "erase" || op == "at" {
				f.Late = time.Second
			}
			return f
		})
		w.zulip.DeleteMessages(w.lastIDs[:100]...)
		most := time.Duration(0)
		for range 300 {
			sent := time.Now()
			text := fmt.Sprintf("sent at %v", sent)
			w.send(text)
			for len(w.holding(text)) == 0 {
				time.Sleep(100 * time.Millisecond)
			}
			most = max(most, time.Since(sent))
		}
		if most > 20*time.Second {
			t.Errorf("an event waited for %v", most)
		}
		w.jet.SetFaults(nil)
		time.Sleep(3 * time.Minute)
		_, seqs, _ := w.erasedTold()
		slices.Sort(seqs)
		if n := len(slices.Compact(seqs)); n != 100 {
			t.Errorf("%d are erased, want 100", n)
		}
		w.checkChain()
		w.check()
	})
}

// Another process has stored something, or the stream was deleted and is another one:
// what is known of it is read anew.
func TestEraseInAnotherStream(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.erases()
		w.jet.Single = true // else the newest messages are read in any case
		one.follows(30)
		for range 200 { // the next stream is shorter
			w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 1, "status_text": "busy"})
		}
		time.Sleep(time.Second)
		w.zulip.DeleteMessages(w.lastIDs[3])
		time.Sleep(time.Second)
		w.jet.Delete()
		time.Sleep(time.Minute)
		w.say(5)
		a := w.send("a secret")
		w.say(5)
		time.Sleep(time.Second)
		w.zulip.DeleteMessages(a)
		time.Sleep(time.Minute)
		if got := w.holding("a secret"); len(got) > 0 {
			t.Errorf("the text is in %v", got)
		}
		if n := len(w.holding("message ")); n < 10 {
			t.Errorf("%d of the other messages are left", n)
		}
	})
}
