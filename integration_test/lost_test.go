package integration_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/zulipsim"
)

// observe makes a queue of the test's own, registered just as the program registers, so
// that it gets the same events, and nobody polls it: its ledger says what the live event
// of each message looks like, even of those that the program's queue never heard of.
func (w *world) observe() {
	w.t.Helper()
	form := url.Values{}
	for _, r := range w.zulip.Requests() {
		if r.Kind == zulipsim.Register {
			for k, v := range r.Params {
				form.Set(k, v)
			}
		}
	}
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.site+"/api/v1/register",
		strings.NewReader(form.Encode()))
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth(w.bot.Email, w.bot.Key)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	var said struct {
		QueueID string `json:"queue_id"`
	}
	if err != nil || json.Unmarshal(body, &said) != nil || said.QueueID == "" {
		w.t.Fatalf("register: %v: %s", err, body)
	}
	w.observer = said.QueueID
}

// live is the live event of each message, by message id, as the test's own queue has it.
func (w *world) live() map[int64][]byte {
	events := map[int64][]byte{}
	for _, q := range w.zulip.Queues() {
		if q.ID != w.observer {
			continue
		}
		for _, e := range q.Events {
			if e.MessageID != 0 && e.Type == "message" {
				events[e.MessageID] = e.Raw
			}
		}
	}
	return events
}

// record is the body of one of the bridge's records, as far as tests look at it.
type record struct {
	Record         string          `json:"record"`
	Cause          string          `json:"cause"`
	Why            string          `json:"why"`
	QueueID        string          `json:"queue_id"`
	Previous       string          `json:"previous_queue_id"`
	OldQueueID     string          `json:"old_queue_id"`
	Site           string          `json:"site"`
	Account        string          `json:"account"`
	LifeSeconds    float64         `json:"idle_queue_timeout_secs"`
	LastEventID    int64           `json:"last_event_id"`
	LastMessageID  int64           `json:"last_message_id"`
	Zulip          string          `json:"zulip"`
	LastStored     time.Time       `json:"last_stored"`
	Noticed        time.Time       `json:"noticed"`
	Closed         time.Time       `json:"closed"`
	Refilled       int             `json:"messages_refilled"`
	NotRefilled    json.RawMessage `json:"not_refilled"`
	Changed        []int64         `json:"changed_message_ids"`
	NotRecoverable []string        `json:"not_recoverable"`
	MessageID      int64           `json:"message_id"`
}

// body is what a record says.
func body(t testing.TB, m *harness.Stored) (r record) {
	t.Helper()
	if err := json.Unmarshal(m.Data, &r); err != nil {
		t.Errorf("the body of a record is no JSON: %v: %v", m, err)
	}
	if r.Record != m.Record() {
		t.Errorf("a record says that it is %q in its body: %v", r.Record, m)
	}
	return r
}

// story reads the stream from its first message to its last and fails the test where the
// records and events do not make sense one after the other: a queue is followed until a
// gap is opened, then a new queue is recorded, then messages are refilled, then the gap
// is closed.
func story(t testing.TB, all []harness.Stored) (gaps int) {
	t.Helper()
	const (
		begin = iota
		following
		opened
		refilling
	)
	state, queue, refilled := begin, "", 0
	for i := range all {
		m := &all[i]
		kind, q := m.Record(), m.Get(events.HeaderQueueID)
		if kind == "" {
			kind = m.Get(events.HeaderOrigin)
		}
		wrong := func() { t.Errorf("%s does not fit here (state %d, queue %s): %v", kind, state, queue, m) }
		switch {
		case kind == "queue":
			r := body(t, m)
			if r.QueueID != q {
				t.Errorf("a record of queue %s is of queue %s by its header", r.QueueID, q)
			}
			switch {
			case state == begin && r.Why == "first" && m.Get(events.HeaderNext) == "poll":
				state, queue = following, q
			case state == following && r.Why == "kept" && q == queue && m.Get(events.HeaderNext) == "poll":
			case state == refilling && r.Why == "kept" &&
				q == queue && m.Get(events.HeaderNext) == "refill": // how far it has come
			case state == opened && r.Why == "lost" && q != queue && r.Previous == queue &&
				m.Get(events.HeaderNext) == "refill":
				state, queue, refilled = refilling, q, 0
			default:
				wrong()
			}
		case q != queue:
			wrong()
		case kind == "gap-opened" && state == following:
			state = opened
		case kind == "backfill" && state == refilling:
			refilled++
		case kind == "gap-closed" && state == refilling:
			if r := body(t, m); r.Refilled != refilled {
				t.Errorf("the record says that %d messages were refilled, and it were %d: %v", r.Refilled, refilled, m)
			}
			state = following
			gaps++
		case (kind == "live" || kind == "rejected" || kind == "skipped") && state == following:
		default:
			wrong()
		}
	}
	if state != following {
		t.Errorf("the stream ends in state %d", state)
	}
	return gaps
}

// everyMessage fails the test unless the stream holds each message that there is, once.
func (w *world) everyMessage(f *findings) {
	w.t.Helper()
	missing := 0
	for _, m := range w.zulip.Messages() {
		if n := f.messages[m.ID]; n != 1 {
			if missing++; missing < 5 {
				w.t.Errorf("message %d is stored %d times", m.ID, n)
			}
		}
	}
}

// TestLostQueue lets Zulip drop the queue while the program does not run, which is the
// commonest way to lose one, and looks at every record and every refilled message.
func TestLostQueue(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	var betweenQueueAndState func(string)
	w := newWorld(t, natsServer(t), func(z *zulipsim.Server) {
		z.DuringRegister = func(queue string) {
			if betweenQueueAndState != nil {
				betweenQueueAndState(queue)
			}
		}
	})
	p := w.run("--no-lease")
	old := w.registered().ID
	w.observe()
	early := w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "to be edited"})
	// An id that is taken now, for a message whose event comes much later: the largest id
	// in the stream says nothing of what is missing.
	late, commit := w.zulip.SendDelayed(zulipsim.Message{Channel: "general", Topic: "t", Content: "slow"})
	w.talk(rng, 80)
	w.settle()
	p.Stop()
	before := w.read()
	last := before[len(before)-1]
	lastEvent, _ := last.Int(events.HeaderEventID)

	w.talk(rng, 40) // in the old queue, and never read
	expired := time.Now()
	w.zulip.ExpireQueue(old)
	time.Sleep(1100 * time.Millisecond) // Zulip tells when a message was edited in whole seconds
	w.talk(rng, 40)                     // in no queue
	commit()
	edited := "edited in the gap"
	w.zulip.EditMessage(early, zulipsim.Edit{Content: &edited})
	var both []int64 // messages that history shows and the new queue has too
	betweenQueueAndState = func(string) {
		betweenQueueAndState = nil
		for range 5 {
			both = append(both, w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t",
				Content: "just now"}))
		}
	}
	p = w.run("--no-lease")
	fresh := w.registered().ID
	w.talk(rng, 20)
	w.settle()
	f := w.check().clean(t)
	w.everyMessage(f)
	if gaps := story(t, f.all); gaps != 1 {
		t.Errorf("the stream tells of %d gaps, want 1", gaps)
	}
	if f.messages[late] != 1 {
		t.Errorf("message %d, whose id was taken before others and that came after them, is stored %d times", late,
			f.messages[late])
	}

	live := w.live()
	var refilled []int64
	var skipped []int64
	for i := range f.all[len(before):] {
		m := &f.all[len(before)+i]
		switch kind := m.Record(); {
		case kind == "gap-opened":
			r := body(t, m)
			if m.Subject != "zulip.acme.bridge.gap" || m.Get(events.HeaderQueueID) != old ||
				m.Get(events.HeaderPosition) != fmt.Sprint(lastEvent) ||
				r.QueueID != old || r.LastEventID != lastEvent || r.LastMessageID == 0 || r.Cause == "" ||
				!strings.Contains(r.Zulip, old) ||
				r.LastStored.IsZero() || r.LastStored.After(expired) || r.Noticed.Before(expired) {
				t.Errorf("gap-opened should name the old queue, event %d, a message, the cause, Zulip's words, and "+
					"when it began: %v", lastEvent, m)
			}
		case kind == "queue" && body(t, m).Why == "lost":
			r := body(t, m)
			if m.Subject != "zulip.acme.bridge.queue" || m.Get(events.HeaderPosition) != "-1" || r.QueueID != fresh ||
				r.Previous != old ||
				r.Site != w.site || r.Account != w.bot.Email || r.LifeSeconds != 24*60*60 {
				t.Errorf("the record of the new queue is not as it should be: %v", m)
			}
		case m.Get(events.HeaderOrigin) == "backfill":
			id, _ := m.Int(events.HeaderMessageID)
			refilled = append(refilled, id)
			if m.Get(events.HeaderPosition) != "-1" || m.Get(events.HeaderEventType) != "message" ||
				m.Get(events.HeaderQueueID) != fresh {
				t.Errorf("a refilled message is not as it should be: %v", m)
			}
			var got, want map[string]any
			if err := json.Unmarshal(m.Data, &got); err != nil {
				t.Errorf("%v: %v", m, err)
			}
			if err := json.Unmarshal(live[id], &want); err != nil {
				t.Errorf("message %d has no live event: %v", id, err)
			}
			delete(want, "id")
			// History shows a message as it is now, with what people have done to it
			// since.
			gotMessage, wantMessage := got["message"].(map[string]any), want["message"].(map[string]any)
			if _, changed := gotMessage["last_edit_timestamp"]; changed {
				delete(gotMessage, "content")
				delete(wantMessage, "content")
			}
			for _, now := range []string{"reactions", "last_edit_timestamp", "edit_history"} {
				delete(gotMessage, now)
				delete(wantMessage, now)
			}
			delete(got, "flags")
			delete(want, "flags")
			if !reflect.DeepEqual(got, want) {
				t.Errorf("message %d is refilled as\n%v\nits live event was\n%v", id, got, want)
			}
		case kind == "skipped":
			skipped = append(skipped, body(t, m).MessageID)
		case kind == "gap-closed":
			r := body(t, m)
			if m.Subject != "zulip.acme.bridge.gap" || m.Get(events.HeaderPosition) != "-1" || r.OldQueueID != old ||
				r.QueueID != fresh ||
				len(r.NotRecoverable) == 0 || r.NotRefilled != nil || r.Closed.IsZero() {
				t.Errorf("gap-closed is not as it should be: %v", m)
			}
			if !slices.Contains(r.Changed, early) {
				t.Errorf("gap-closed names the messages %v as changed, and not %d", r.Changed, early)
			}
		}
	}
	if !slices.IsSorted(refilled) || !slices.Contains(refilled, late) {
		t.Errorf("refilled were %v, in this order, and %d should be among them", refilled, late)
	}
	if !slices.Equal(skipped, both) {
		t.Errorf("skipped were %v; in history and in the new queue are %v", skipped, both)
	}
	t.Logf("%v; %d messages refilled, %d skipped", f, len(refilled), len(skipped))
	t.Log(p.Expect("the gap is closed"))
}

// TestLostQueueKilled loses the queue again and again and kills the program while it
// copes with that, wherever it is just then. In the end the stream tells one story that
// makes sense, and holds each message once.
func TestLostQueueKilled(t *testing.T) {
	t.Parallel()
	rng := harness.Rand(t)
	w := newWorld(t, natsServer(t), unlimited, func(z *zulipsim.Server) { z.RoundTrip = 4 * time.Millisecond })
	args := []string{"--no-lease", "--publish-path", "sync"} // one by one, so that a kill leaves a part of the refilled messages
	p := w.run(args...)
	w.registered()
	const losses = 4
	died := map[string]int{} // by what stood last in the stream
	for range losses {
		w.talk(rng, 50)
		w.settle()
		w.talk(rng, 50)
		w.zulip.ExpireAll()
		w.talk(rng, 700) // more than one page of history
		for range max(2, min(7, *kills/12)) {
			time.Sleep(time.Duration(20+rng.IntN(250)) * time.Millisecond)
			p.Kill()
			if m, err := w.last(); err == nil && m != nil {
				last := m.Header.Get(events.HeaderRecord)
				if last == "" {
					last = m.Header.Get(events.HeaderOrigin)
				}
				died[last]++
			}
			if rng.IntN(5) == 0 {
				w.zulip.ExpireAll() // whatever queue there is: also one that was just registered
			}
			p = w.run(args...)
		}
		w.registered()
		w.settle()
	}
	w.settle()
	f := w.check().clean(t)
	w.everyMessage(f)
	gaps := story(t, f.all)
	if gaps < losses {
		t.Errorf("the stream tells of %d gaps, want at least %d", gaps, losses)
	}
	t.Logf("%d gaps; last in the stream when the program was killed: %v; %v", gaps, died, f)
}
