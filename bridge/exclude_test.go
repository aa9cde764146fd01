package bridge_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/events"
	"zulip-nats/zulipsim"
)

// bySubject counts what stands in the stream, and how many events its records of excluded
// ones tell of.
func (w *world) bySubject() (counts map[string]int, excluded int) {
	counts = map[string]int{}
	for _, m := range w.jet.Messages() {
		counts[strings.TrimPrefix(m.Subject, "zulip."+simRealm+".")]++
		if first(m, events.HeaderRecord) == "excluded" {
			var body struct{ Count int }
			if err := json.Unmarshal(m.Data, &body); err != nil {
				w.t.Error(err)
			}
			excluded += body.Count
		}
	}
	return counts, excluded
}

// leaks looks for a word in all that was ever stored and logged.
func (w *world) leaks(log *bytes.Buffer, word string) {
	w.t.Helper()
	for _, m := range w.jet.Ever(0) {
		if text := fmt.Sprint(m.Subject, m.Header, string(m.Data)); strings.Contains(text, word) {
			w.t.Errorf("in the stream: %.300s", text)
		}
	}
	for name, data := range w.jet.Objects() {
		if strings.Contains(name+string(data), word) {
			w.t.Errorf("in the object store: %s", name)
		}
	}
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, word) {
			w.t.Errorf("in the log: %s", line)
		}
	}
}

// Of direct messages nothing is stored, nor logged: no text, nobody's name, no reaction;
// of channels all is. The position moves on, over kills and a lost queue.
func TestNoDirectMessages(t *testing.T) {
	story(t, func(w *world, one *instance) {
		var log bytes.Buffer
		w.log = zerolog.New(&log).Level(zerolog.TraceLevel)
		w.options.NoDirectMessages, w.options.Life = true, 10*time.Minute
		w.jet.MaxPayload = 20000
		const people = "secret.person@example.com"
		direct := func(text string) int64 {
			return w.zulip.SendMessage(zulipsim.Message{To: []string{simAccount}, Sender: people, Content: "secret " + text})
		}
		one.follows(2)
		about := func(id int64, secret string) {
			w.zulip.EditMessage(id, zulipsim.Edit{Content: new("edited " + secret)})
			w.zulip.LinkPreview(id, "<p>"+secret+"</p>")
			w.zulip.React(id, map[string]string{"secret": people, "plain": "ada@example.com"}[secret], "tada")
			w.zulip.Flag(simAccount, "add", "starred", id)
			w.zulip.Flag(simAccount, "remove", "starred", id)
			w.zulip.Emit(map[string]any{"type": "submessage", "message_id": id, "content": secret})
		}
		dm := direct("one")
		about(dm, "secret")
		w.zulip.DeleteMessages(dm)
		time.Sleep(time.Second) // Zulip merges flags that wait in the queue
		about(w.lastIDs[0], "plain")
		big := direct(strings.Repeat("large ", 1500)) // with its HTML it goes beyond what a message may be
		w.zulip.Typing("ada@example.com", "start", "", "", simAccount)
		w.zulip.Typing("ada@example.com", "start", "general", "t")
		w.zulip.Flag(simAccount, "add", "read", big, w.lastIDs[1])
		w.zulip.Emit(map[string]any{"type": "drafts", "op": "add", "drafts": []any{"secret"}})
		w.zulip.Emit(map[string]any{"type": "quite_new", "what": "secret"})
		w.zulip.Emit(map[string]any{"type": "reaction", "message_id": 4_000_000, "who": "secret"}) // nobody knows that one
		w.zulip.EmitRaw(`{"type":"message","id":%ID%,"secret":1,}`)                                // no JSON
		w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 1})
		time.Sleep(time.Second)

		one.kill() // what it knew of places it has to read
		w.say(1)
		w.zulip.React(w.lastIDs[1], "ada@example.com", "tada")
		w.zulip.React(big, people, "tada")
		one.start()
		time.Sleep(time.Minute)
		counts, _ := w.bySubject()
		for subject, want := range map[string]int{"message": 3, "update_message": 2, "reaction": 2, "submessage": 1,
			"update_message_flags": 2, "typing": 1, "user_status": 1, "bridge.rejected": 1, "drafts": 0} {
			if counts[subject] != want {
				t.Errorf("%d on %s, want %d", counts[subject], subject, want)
			}
		}

		one.stop()
		direct("in the gap")
		w.say(3)
		direct("in the gap too")
		w.expire()
		one.start()
		time.Sleep(time.Minute)
		if got, want := w.backfilled(), w.lastIDs[3:]; !slices.Equal(got, want) {
			t.Errorf("read back: %v, want %v", got, want)
		}
		closed := told[events.GapClosed](w, "gap", "gap-closed")
		if len(closed) != 1 || closed[0].Excluded != 3 || closed[0].NotRefilled != nil {
			t.Errorf("gap closed: %+v; want one, with 3 left out: those and the large one", closed)
		}
		direct("the last")
		time.Sleep(time.Second)
		w.leaks(&log, "secret")
		w.check()
	})
}

// Types that are left out cost one record for a run of them, and nothing of them is
// stored; the chain of ids goes on.
func TestExcludedTypes(t *testing.T) {
	story(t, func(w *world, one *instance) {
		var log bytes.Buffer
		w.log = zerolog.New(&log).Level(zerolog.TraceLevel)
		w.options.ExcludeTypes = []string{"user_status", "typing"}
		one.follows(1)
		busy := func(n int) {
			for range n {
				w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 1, "status_text": "secret"})
			}
		}
		w.zulip.Down() // so that they come in one answer
		busy(300)
		w.say(1)
		busy(2)
		w.zulip.Typing("ada@example.com", "start", "general", "secret")
		w.zulip.Up()
		time.Sleep(time.Minute)
		counts, excluded := w.bySubject()
		if counts["bridge.excluded"] != 2 || excluded != 303 || counts["message"] != 2 || counts["user_status"] != 0 ||
			counts["typing"] != 0 {
			t.Errorf("in the stream: %v, %d left out; want 2 records of 303", counts, excluded)
		}
		if c := one.bridge.Status().Counters; c.Excluded != 303 || c.Work().Excluded != 303 {
			t.Errorf("%d counted as left out, want 303", c.Excluded)
		}
		chain(t, w)
		w.leaks(&log, "secret")
		w.check()
	})
}

// chain compares what each event says was before it with what was.
func chain(t *testing.T, w *world) {
	t.Helper()
	last := map[string]string{}
	for _, m := range w.jet.Messages() {
		queue, id := first(m, events.HeaderQueueID), first(m, events.HeaderEventID)
		if prev := first(m, events.HeaderPrevEventID); prev != "" && last[queue] != "" && prev != last[queue] {
			t.Errorf("event %s says that %s was before it, and that was %s", id, prev, last[queue])
		}
		if id != "" {
			last[queue] = id
		}
	}
}

// A run of excluded events is recorded before anything behind it is stored: a process that
// ends in between must not acknowledge what no restart knows of.
func TestExcludedBeforeWhatFollows(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.options.ExcludeTypes = []string{"user_status"}
		one.follows(1)
		w.zulip.Down()
		w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 1})
		w.say(1)
		w.zulip.Up()
		time.Sleep(time.Minute)
		var order []string
		for _, m := range w.jet.Messages() {
			if id := first(m, events.HeaderEventID); id != "" {
				order = append(order, strings.TrimPrefix(m.Subject, "zulip."+simRealm+"."))
			}
		}
		order = slices.DeleteFunc(order, func(s string) bool { return s == "heartbeat" || s == "restart" })
		if got := strings.Join(order, " "); got != "message bridge.excluded message" {
			t.Errorf("stored: %s", got)
		}
		w.check()
	})
}

// A start whose newest message is the record of excluded events goes on behind it.
func TestRestartBehindExcluded(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.options.ExcludeTypes = []string{"user_status"}
		one.follows(1)
		w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 1})
		time.Sleep(time.Second) // the next poll has acknowledged it
		one.kill()
		if m := w.jet.Messages(); first(m[len(m)-1], events.HeaderRecord) != "excluded" {
			t.Fatalf("the newest message is %v", m[len(m)-1])
		}
		one.start()
		time.Sleep(time.Second)
		w.say(1)
		time.Sleep(time.Second)
		if n := len(w.gaps()); n > 0 {
			t.Errorf("%d gaps", n)
		}
		if got, want := w.whys(), "first, kept"; got != want {
			t.Errorf("queues recorded: %s; want %s", got, want)
		}
		w.check()
	})
}

// What was not wanted while direct messages were left out does not come back when they
// are wanted again: neither by a refill of that queue, nor of the next.
func TestDirectMessagesWantedAgain(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.options.NoDirectMessages, w.options.Life = true, 10*time.Minute
		direct := func() int64 {
			return w.zulip.SendMessage(zulipsim.Message{To: []string{simAccount}, Content: "a direct message"})
		}
		one.follows(2)
		direct()
		time.Sleep(time.Second)
		one.stop()
		w.options.NoDirectMessages = false
		one.start()
		time.Sleep(10 * time.Second)
		if got, want := w.whys(), "first, options changed"; !strings.HasPrefix(strings.ReplaceAll(got, "kept, ", ""), want) {
			t.Errorf("queues recorded: %s; want %s", got, want)
		}
		one.stop()
		wanted := direct()
		w.expire()
		one.start()
		time.Sleep(time.Minute)
		if got := w.backfilled(); !slices.Equal(got, []int64{wanted}) {
			t.Errorf("read back: %v, want %d alone", got, wanted)
		}
		w.check()
	})
}

// Messages that are left out as a type are not read back either, though the queue that was
// lost had taken them: the record says so.
func TestExcludedMessagesAreNotReadBack(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.options.Life = 10 * time.Minute
		one.follows(2)
		one.stop()
		w.say(3)
		w.expire()
		w.options.ExcludeTypes = []string{"message"}
		one.start()
		time.Sleep(time.Minute)
		closed := told[closedTold](w, "gap", "gap-closed")
		if len(w.backfilled()) != 0 || len(closed) != 1 || closed[0].NotRefilled == nil ||
			closed[0].NotRefilled.UpTo != w.lastIDs[4] || !strings.Contains(closed[0].NotRefilled.Reason, "--exclude-types") {
			t.Errorf("%d read back, gap closed: %+v", len(w.backfilled()), closed)
		}
	})
}

// The places of more messages than are remembered: the oldest are forgotten, one by one.
func TestPlacesAreBounded(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.options.NoDirectMessages = true
		one.follows(1)
		w.say(1)
		time.Sleep(time.Second)
		q := w.zulip.Queues()[0]
		old := w.lastIDs[1]
		const most = 1 << 16
		w.zulip.FillAnswer(q.ID, most, func(dst []byte, id int64) []byte {
			return append(dst, `{"type":"message","message":{"id":`+strconv.FormatInt(1_000_000+id, 10)+
				`,"type":"stream","stream_id":5,"timestamp":1},"id":`+strconv.FormatInt(id, 10)+`}`...)
		})
		time.Sleep(time.Minute)
		react := func(id int64) {
			w.zulip.Emit(map[string]any{"type": "reaction", "op": "add", "message_id": id})
			time.Sleep(time.Minute)
		}
		first := q.NextID
		react(1_000_000 + first)
		react(1_000_000 + first + most - 1)
		react(old)
		one.kill()
		one.start()
		time.Sleep(time.Minute)
		react(1_000_000 + first + 1)
		counts, excluded := w.bySubject()
		if counts["reaction"] != 3 || excluded != 1 {
			t.Errorf("%d reactions stored and %d left out, want 3 and 1: %v", counts["reaction"], excluded,
				slices.Sorted(maps.Keys(counts)))
		}
	})
}
