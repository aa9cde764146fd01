package integration_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// stored is one message as the stream holds it.
type stored struct {
	seq     uint64
	subject string
	header  map[string][]string
	data    []byte
	time    time.Time
}

func (m *stored) get(key string) string {
	if v := m.header[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

func (m *stored) int(key string) (int64, bool) {
	n, err := strconv.ParseInt(m.get(key), 10, 64)
	return n, err == nil
}

// record is which record of the bridge's own this is; "" for Zulip's events and messages.
func (m *stored) record() string { return m.get("Bridge-Record") }

func (m *stored) String() string {
	body := string(m.data[:min(len(m.data), 300)])
	return fmt.Sprintf("#%d %s %v %s", m.seq, m.subject, m.header, body)
}

// read reads the whole stream.
func (w *world) read() []stored {
	w.t.Helper()
	all, err := readStream(w.js, w.stream)
	if err != nil {
		w.t.Fatalf("reading stream %s: %v", w.stream, err)
	}
	return all
}

func readStream(js jetstream.JetStream, name string) ([]stored, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := js.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	info, err := s.Info(ctx)
	if err != nil || info.State.Msgs == 0 {
		return nil, err
	}
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	messages, err := c.Messages()
	if err != nil {
		return nil, err
	}
	defer messages.Stop()
	all := make([]stored, 0, info.State.Msgs)
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return nil, fmt.Errorf("after %d of %d messages: %w", len(all), info.State.Msgs, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return nil, err
		}
		all = append(all, stored{meta.Sequence.Stream, m.Subject(), m.Headers(), m.Data(), meta.Timestamp})
		if meta.Sequence.Stream >= info.State.LastSeq {
			return all, nil
		}
	}
}

// isStored says whether an event that Zulip is about to forget is safe. Events are stored in order, which [world.check] proves in the end,
// so it is enough to know how far the stream has come in that queue.
func (w *world) isStored(queue string, id int64) bool {
	w.acking.Lock()
	defer w.acking.Unlock()
	if at, ok := w.acked[queue]; ok && id <= at {
		return true
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		m, err := w.lastStored()
		if err != nil {
			continue // the nats-server is down: it will tell when it is up again
		}
		if m == nil {
			return false
		}
		if m.Header.Get("Zulip-Queue-Id") == queue {
			at, err := strconv.ParseInt(m.Header.Get("Bridge-Position"), 10, 64)
			if err != nil {
				at, err = strconv.ParseInt(m.Header.Get("Zulip-Event-Id"), 10, 64)
			}
			if err == nil {
				w.acked[queue] = at
			}
			return err == nil && id <= at
		}
		all, err := readStream(w.js, w.stream)
		if err != nil {
			continue
		}
		for i := range all {
			if at, ok := all[i].int("Zulip-Event-Id"); ok && all[i].get("Zulip-Queue-Id") == queue && at == id {
				return true
			}
		}
		return false
	}
	return false
}

// key names an event: ids count anew in each queue.
type key struct {
	queue string
	id    int64
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

	all      []stored
	examples []string
}

func (f *findings) String() string {
	return fmt.Sprintf("%d events of %d queues: %d lost, %d twice, %d out of order, %d wrong", f.events, f.queues, f.lost, f.twice, f.disorder, f.wrong)
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

// want says what has to stand in the stream for an event. raw events are bytes that a test made up; what they are is read from them.
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
		"Zulip-Queue-Id": queue, "Zulip-Event-Id": strconv.FormatInt(id, 10), "Zulip-Event-Type": typ, "Zulip-Origin": "live",
	}}
	if op != "" {
		x.header["Zulip-Event-Op"] = op
	}
	if messageID != 0 {
		x.header["Zulip-Message-Id"] = strconv.FormatInt(messageID, 10)
	}
	return x
}

func isToken(s string) bool {
	return s != "" && len(s) <= 128 && s != "bridge" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-')
	})
}

// check compares the whole stream with what Zulip had put in the queues. Call it when all is settled: then everything in the queue that is
// followed now has to be there, and everything that was acknowledged in those before it.
func (w *world) check() *findings {
	w.t.Helper()
	all := w.read()
	ledger := map[key]*wanted{}
	polled := map[string]bool{}
	now := ""
	for i := range all {
		if q := all[i].get("Zulip-Queue-Id"); q != "" {
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
			x.must = q.ID == now && q.Dead == "" || !e.Pruned.IsZero()
			ledger[key{q.ID, e.ID}] = x
			polled[q.ID] = true
		}
	}
	return compare(w.realm, all, ledger)
}

// compare is the comparison itself.
func compare(realm string, all []stored, ledger map[key]*wanted) *findings {
	f := &findings{all: all, messages: map[int64]int{}, records: map[string]int{}}
	seen := map[key]bool{}
	chain := map[string]int64{} // by queue: the id that the next event has to name as the one before it
	messages := map[int64]uint64{}
	prefix := "zulip." + realm + "."
	for i := range all {
		m := &all[i]
		if !strings.HasPrefix(m.subject, prefix) {
			continue // somebody else's
		}
		if m.get("Bridge-Writer") == "" {
			f.note(&f.wrong, "no Bridge-Writer: %v", m)
		}
		queue := m.get("Zulip-Queue-Id")
		if _, known := chain[queue]; !known && queue != "" {
			chain[queue] = -1
			f.queues++
		}
		record, origin := m.record(), m.get("Zulip-Origin")
		if record != "" {
			f.records[record]++
			if !strings.HasPrefix(m.subject, prefix+"bridge.") {
				f.note(&f.wrong, "a record on a subject for events: %v", m)
			}
		}
		if origin == "backfill" || record == "" && origin == "live" {
			if id, ok := m.int("Zulip-Message-Id"); ok {
				if before, twice := messages[id]; twice {
					f.note(&f.twice, "message %d is stored at #%d and again: %v", id, before, m)
				}
				messages[id] = m.seq
				f.messages[id]++
			}
		}
		if origin == "backfill" {
			if m.subject != prefix+"message" || m.get("Zulip-Event-Id") != "" || m.get("Bridge-Position") == "" {
				f.note(&f.wrong, "no refilled message should look like this: %v", m)
			}
			continue
		}
		id, isEvent := m.int("Zulip-Event-Id")
		if !isEvent {
			if record == "" {
				f.note(&f.wrong, "neither an event nor a record: %v", m)
			}
			continue
		}
		k := key{queue, id}
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
		for k, v := range m.header {
			if !strings.HasPrefix(k, "Nats-") && k != "Bridge-Writer" {
				got[k] = strings.Join(v, " AND ")
			}
		}
		expected := maps.Clone(x.header)
		if expected == nil {
			expected = map[string]string{}
		}
		expected["Zulip-Prev-Event-Id"] = strconv.FormatInt(before, 10)
		switch {
		case x.rejected:
			f.note(&f.wrong, "this cannot stand on a subject of its own: %v", m)
		case m.subject != x.subject:
			f.note(&f.wrong, "event %d is on %s and not on %s: %v", id, m.subject, x.subject, m)
		case string(m.data) != x.data:
			f.note(&f.wrong, "event %d has other bytes than Zulip sent: %q, sent %q", id, m.data, x.data)
		case !maps.Equal(got, expected):
			f.note(&f.wrong, "event %d has headers %v, want %v", id, got, expected)
		default:
			f.events++
		}
	}
	byQueue := func(a, b key) int { return cmp.Or(cmp.Compare(a.queue, b.queue), cmp.Compare(a.id, b.id)) }
	for _, k := range slices.SortedFunc(maps.Keys(ledger), byQueue) {
		if x := ledger[k]; x.must && !seen[k] {
			f.note(&f.lost, "event %d of queue %s is not stored: %.300s", k.id, k.queue, x.data)
		}
	}
	return f
}
