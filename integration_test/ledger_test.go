package integration_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
)

// read reads the whole stream.
func (w *world) read() []harness.Stored {
	w.t.Helper()
	all, err := harness.ReadStream(w.js, w.stream)
	if err != nil {
		w.t.Fatalf("reading stream %s: %v", w.stream, err)
	}
	return all
}

// isStored says whether an event that Zulip is about to forget is safe. Events are stored
// in order, which [world.check] proves in the end, so it is enough to know how far the
// stream has come in that queue.
func (w *world) isStored(queue string, id int64) bool {
	w.acking.Lock()
	defer w.acking.Unlock()
	if at, ok := w.acked[queue]; ok && id <= at {
		return true
	}
	for deadline := time.Now().Add(harness.Patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		m, err := w.last()
		if err != nil {
			continue // the nats-server is down: it will tell when it is up again
		}
		if m == nil {
			return false
		}
		if m.Header.Get(events.HeaderQueueID) == queue {
			at, err := strconv.ParseInt(m.Header.Get(events.HeaderPosition), 10, 64)
			if err != nil {
				at, err = strconv.ParseInt(m.Header.Get(events.HeaderEventID), 10, 64)
			}
			if err == nil {
				w.acked[queue] = at
			}
			return err == nil && id <= at
		}
		all, err := harness.ReadStream(w.js, w.stream)
		if err != nil {
			continue
		}
		for i := range all {
			if at, ok := all[i].Int(events.HeaderEventID); ok && all[i].Get(events.HeaderQueueID) == queue && at == id {
				return true
			}
		}
		return false
	}
	return false
}

// findings is what a comparison of the stream with Zulip's ledger has come to.
type findings struct {
	events   int // stored as they should be
	queues   int // that were followed, one after the other
	lost     int
	twice    int
	disorder int
	wrong    int // other bytes, another subject, other headers, or no business in the stream
	messages map[int64]int
	records  map[string]int

	all      []harness.Stored
	examples []string
}

func (f *findings) String() string {
	return fmt.Sprintf("%d events of %d queues: %d lost, %d twice, %d out of order, %d wrong", f.events, f.queues,
		f.lost, f.twice, f.disorder, f.wrong)
}

func (f *findings) note(counter *int, format string, args ...any) {
	*counter++
	if len(f.examples) < 12 {
		f.examples = append(f.examples, fmt.Sprintf(format, args...))
	}
}

// clean fails the test if there was anything to complain about.
func (f *findings) clean(t testing.TB) *findings {
	t.Helper()
	if f.lost+f.twice+f.disorder+f.wrong > 0 {
		t.Errorf("%v; for example:\n%s", f, strings.Join(f.examples, "\n"))
	}
	return f
}

// wanted is what an event of Zulip's has to look like in the stream.
type wanted struct {
	subject  string
	header   map[string]string // without the writer, and without those of NATS
	data     string
	must     bool // it was acknowledged, or everything was
	rejected bool // it cannot stand on a subject of its own
}

// want says what has to stand in the stream for an event. raw events are bytes that a
// test made up; what they are is read from them.
func want(realm, queue, typ, op string, messageID, id int64, raw []byte) *wanted {
	if typ == "raw" {
		var ev struct {
			Type    *string             `json:"type"`
			Op      *string             `json:"op"`
			ID      *json.Number        `json:"id"`
			Message *struct{ ID int64 } `json:"message"`
		}
		if json.Unmarshal(raw, &ev) != nil || ev.Type == nil || ev.ID == nil || !isToken(*ev.Type) {
			return &wanted{rejected: true}
		}
		typ = *ev.Type
		if ev.Op != nil {
			op = *ev.Op
		}
		if typ == "message" && ev.Message != nil {
			messageID = ev.Message.ID
		}
	}
	x := &wanted{subject: "zulip." + realm + "." + typ, data: string(raw), header: map[string]string{
		events.HeaderQueueID: queue, events.HeaderEventID: strconv.FormatInt(id, 10), events.HeaderEventType: typ,
		events.HeaderOrigin: "live",
	}}
	if op != "" {
		x.header[events.HeaderEventOp] = op
	}
	if messageID != 0 {
		x.header[events.HeaderMessageID] = strconv.FormatInt(messageID, 10)
	}
	maps.Copy(x.header, harness.Place(raw))
	return x
}

func isToken(s string) bool {
	return s != "" && len(s) <= 128 && s != "bridge" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-')
	})
}

// check compares the whole stream with what Zulip had put in the queues. Call it when all
// is settled: then everything in the queue that is followed now has to be there, and
// everything that was acknowledged in those before it.
func (w *world) check() *findings {
	w.t.Helper()
	settled := harness.Settled(w.queues())
	all := w.read()
	ledger := map[harness.EventKey]*wanted{}
	polled := map[string]bool{}
	now := ""
	for i := range all {
		if q := all[i].Get(events.HeaderQueueID); q != "" {
			now = q
		}
	}
	for _, q := range w.queues() {
		for i := range q.Events {
			e := &q.Events[i]
			if e.Delivered.IsZero() && q.ID != now {
				continue
			}
			x := want(w.realm, q.ID, e.Type, e.Op, e.MessageID, e.ID, e.Raw)
			x.must = (q.ID == now && q.Dead == "" || !e.Pruned.IsZero()) && e.ID <= settled[q.ID]
			ledger[harness.EventKey{Queue: q.ID, ID: e.ID}] = x
			polled[q.ID] = true
		}
	}
	return compare(w.realm, all, ledger)
}

// compare is the comparison itself.
func compare(realm string, all []harness.Stored, ledger map[harness.EventKey]*wanted) *findings {
	f := &findings{all: all, messages: map[int64]int{}, records: map[string]int{}}
	seen := map[harness.EventKey]bool{}
	chain := map[string]int64{} // by queue: the id that the next event has to name as the one before it
	messages := map[int64]uint64{}
	prefix := "zulip." + realm + "."
	for i := range all {
		m := &all[i]
		if !strings.HasPrefix(m.Subject, prefix) {
			continue // somebody else's
		}
		if m.Get(events.HeaderWriter) == "" {
			f.note(&f.wrong, "no Bridge-Writer: %v", m)
		}
		queue := m.Get(events.HeaderQueueID)
		if _, known := chain[queue]; !known && queue != "" {
			chain[queue] = -1
			f.queues++
		}
		record, origin := m.Record(), m.Get(events.HeaderOrigin)
		if record != "" {
			f.records[record]++
			if !strings.HasPrefix(m.Subject, prefix+"bridge.") {
				f.note(&f.wrong, "a record on a subject for events: %v", m)
			}
		}
		if origin == "backfill" || record == "" && origin == "live" {
			if id, ok := m.Int(events.HeaderMessageID); ok {
				if before, twice := messages[id]; twice {
					f.note(&f.twice, "message %d is stored at #%d and again: %v", id, before, m)
				}
				messages[id] = m.Seq
				f.messages[id]++
			}
		}
		if origin == "backfill" {
			if m.Subject != prefix+"message" || m.Get(events.HeaderEventID) != "" || m.Get(events.HeaderPosition) == "" {
				f.note(&f.wrong, "no refilled message should look like this: %v", m)
			}
			for key, value := range harness.Place(m.Data) {
				if m.Get(key) != value && m.Get(events.HeaderObject) == "" {
					f.note(&f.wrong, "a refilled message whose %s is not %s: %v", key, value, m)
				}
			}
			continue
		}
		id, isEvent := m.Int(events.HeaderEventID)
		if !isEvent {
			if record == "" {
				f.note(&f.wrong, "neither an event nor a record: %v", m)
			}
			continue
		}
		k := harness.EventKey{Queue: queue, ID: id}
		x := ledger[k]
		switch {
		case x == nil:
			f.note(&f.wrong, "Zulip knows of no such event: %v", m)
			continue
		case seen[k]:
			f.note(&f.twice, "event %d is stored again: %v", id, m)
			continue
		}
		seen[k] = true
		if id <= chain[queue] {
			f.note(&f.disorder, "event %d comes after event %d: %v", id, chain[queue], m)
		}
		before := chain[queue]
		chain[queue] = max(chain[queue], id)
		if record == "rejected" || record == "skipped" {
			if (record == "rejected") != x.rejected {
				f.note(&f.wrong, "event %d has no reason to be %s: %v", id, record, m)
			}
			f.events++
			continue
		}
		got := map[string]string{}
		for k, v := range m.Header {
			if !strings.HasPrefix(k, "Nats-") && k != events.HeaderWriter {
				got[k] = strings.Join(v, " AND ")
			}
		}
		expected := maps.Clone(x.header)
		if expected == nil {
			expected = map[string]string{}
		}
		expected[events.HeaderPrevEventID] = strconv.FormatInt(before, 10)
		switch {
		case x.rejected:
			f.note(&f.wrong, "this cannot stand on a subject of its own: %v", m)
		case m.Subject != x.subject:
			f.note(&f.wrong, "event %d is on %s and not on %s: %v", id, m.Subject, x.subject, m)
		case string(m.Data) != x.data:
			f.note(&f.wrong, "event %d has other bytes than Zulip sent: %q, sent %q", id, m.Data, x.data)
		case !maps.Equal(got, expected):
			f.note(&f.wrong, "event %d has headers %v, want %v", id, got, expected)
		default:
			f.events++
		}
	}
	byQueue := func(a, b harness.EventKey) int { return cmp.Or(cmp.Compare(a.Queue, b.Queue), cmp.Compare(a.ID, b.ID)) }
	for _, k := range slices.SortedFunc(maps.Keys(ledger), byQueue) {
		if x := ledger[k]; x.must && !seen[k] {
			f.note(&f.lost, "event %d of queue %s is not stored: %.300s", k.ID, k.Queue, x.data)
		}
	}
	return f
}
