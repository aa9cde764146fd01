package chaos_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
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

// verdict is what a comparison of the stream with what Zulip had put in the queue has
// come to.
type verdict struct {
	events   int // stored as they should be
	lost     int
	twice    int
	disorder int
	early    int // acknowledged to Zulip before they were stored
	wrong    int // other bytes, another subject, other headers, or no business in the stream

	queues   int // followed
	records  map[string]int
	messages map[int64]int // how often each message is there, live or refilled
	stubs    int           // bodies that are in the object store
	all      []harness.Stored
	examples []string
}

func (v *verdict) String() string {
	return fmt.Sprintf("%d events: %d lost, %d twice, %d out of order, %d acknowledged too early, %d wrong", v.events,
		v.lost, v.twice,
		v.disorder, v.early, v.wrong)
}

func (v *verdict) note(counter *int, format string, args ...any) {
	*counter++
	if len(v.examples) < 12 {
		v.examples = append(v.examples, fmt.Sprintf(format, args...))
	}
}

// clean fails the test if there is anything to complain about.
func (v *verdict) clean(t testing.TB) *verdict {
	t.Helper()
	if v.lost+v.twice+v.disorder+v.early+v.wrong > 0 {
		t.Errorf("%v; for example:\n%s", v, strings.Join(v.examples, "\n"))
	}
	return v
}

// oneQueue fails the test if the program did not stay on its queue: nothing of what
// happened was a reason for another one.
func (v *verdict) oneQueue(w *world, kills int) *verdict {
	w.t.Helper()
	if wrong := harness.OneQueue(w.queues(), v.all, kills); wrong != "" {
		w.t.Errorf("%s: %s", w.realm, wrong)
	}
	return v
}

// everyMessage fails the test unless each message that was ever sent is there once, live
// or refilled.
func (v *verdict) everyMessage(w *world) *verdict {
	w.t.Helper()
	for _, m := range w.zulip.Messages() {
		if n := v.messages[m.ID]; n != 1 {
			w.t.Errorf("message %d is stored %d times", m.ID, n)
		}
	}
	return v
}

// wanted is an event as it has to look in the stream.
type wanted struct {
	subject string
	header  map[string]string // without what differs from writer to writer
	data    string
	put     time.Time
	must    bool
}

// check compares the whole stream with what Zulip had put in the queues. Call it when all
// is settled: then every event of a queue that lives and that the stream names has to be
// there, and of a dead one every event that was acknowledged. Events that were put before
// since may be missing: a test took them out of the stream itself.
func (w *world) check(since time.Time) *verdict {
	w.t.Helper()
	settled := harness.Settled(w.queues())
	v := &verdict{all: w.read(), records: map[string]int{}, messages: map[int64]int{}}
	named := map[string]bool{}
	for i := range v.all {
		named[v.all[i].Get(events.HeaderQueueID)] = true
	}
	ledger := map[harness.EventKey]*wanted{}
	var order []harness.EventKey
	for _, q := range w.queues() {
		before := int64(-1) // the id that an event has to name as the one before it
		for i := range q.Events {
			e := &q.Events[i]
			k := harness.EventKey{Queue: q.ID, ID: e.ID}
			x := &wanted{subject: "zulip." + w.realm + "." + e.Type, data: string(e.Raw), put: e.Put,
				header: map[string]string{
					events.HeaderQueueID: q.ID, events.HeaderEventID: strconv.FormatInt(e.ID, 10),
					events.HeaderEventType:   e.Type,
					events.HeaderOrigin:      "live",
					events.HeaderPrevEventID: strconv.FormatInt(before, 10),
				}}
			before = e.ID
			if e.Op != "" {
				x.header[events.HeaderEventOp] = e.Op
			}
			if e.Type == "message" {
				x.header[events.HeaderMessageID] = strconv.FormatInt(e.MessageID, 10)
			}
			maps.Copy(x.header, harness.Place(e.Raw))
			x.must = (q.Dead == "" && named[q.ID] || !e.Pruned.IsZero()) && !e.Put.Before(since) &&
				e.ID <= settled[q.ID]
			ledger[k] = x
			order = append(order, k)
		}
	}
	w.mu.Lock()
	acked := maps.Clone(w.acked)
	w.mu.Unlock()

	prefix := "zulip." + w.realm + "."
	first := map[harness.EventKey]*harness.Stored{}
	newest := map[string]int64{} // by queue: the greatest id so far
	for i := range v.all {
		m := &v.all[i]
		queue, record := m.Get(events.HeaderQueueID), m.Get(events.HeaderRecord)
		switch {
		case !strings.HasPrefix(m.Subject, prefix):
			v.note(&v.wrong, "a subject of somebody else: %v", m)
			continue
		case m.Get(events.HeaderWriter) == "":
			v.note(&v.wrong, "no Bridge-Writer: %v", m)
		}
		if _, known := newest[queue]; !known && queue != "" {
			newest[queue] = -1
			v.queues++
		}
		if record != "" {
			v.records[record]++
		}
		if record == "" || record == "skipped" {
			if id, ok := m.Int(events.HeaderMessageID); ok && record == "" {
				v.messages[id]++
			}
		}
		id, isEvent := m.Int(events.HeaderEventID)
		if !isEvent {
			if _, ok := m.Int(events.HeaderPosition); !ok {
				v.note(&v.wrong, "neither an event nor a record nor refilled: %v", m)
			}
			continue
		}
		k := harness.EventKey{Queue: queue, ID: id}
		x := ledger[k]
		switch {
		case x == nil:
			v.note(&v.wrong, "Zulip knows of no such event: %v", m)
			continue
		case first[k] != nil:
			v.note(&v.twice, "event %d is stored at #%d by %s and again: %v", id, first[k].Seq,
				first[k].Get(events.HeaderWriter), m)
			continue
		}
		first[k] = m
		if id < newest[queue] {
			v.note(&v.disorder, "event %d comes after event %d: %v", id, newest[queue], m)
		}
		newest[queue] = max(newest[queue], id)
		if at, ok := acked[k]; ok && at.Before(m.Time) && x.must {
			v.note(&v.early, "event %d was acknowledged %v before it was stored: %v", id, m.Time.Sub(at), m)
		}
		if record == "skipped" {
			v.events++
			continue
		}
		if w.right(v, m, x) {
			v.events++
		}
	}
	for _, k := range order {
		if x := ledger[k]; x.must && first[k] == nil {
			at, ok := acked[k]
			v.note(&v.lost, "event %d of queue %s, put at %v, acknowledged: %v at %v, is not stored: %.200s",
				k.ID, k.Queue,
				x.put.Format(time.StampMicro), ok, at.Format(time.StampMicro), x.data)
		}
	}
	return v
}

// right says whether an event is stored as it should be: subject, headers, and the body,
// which may be in the object store.
func (w *world) right(v *verdict, m *harness.Stored, x *wanted) bool {
	got := map[string]string{}
	for k, all := range m.Header {
		if !strings.HasPrefix(k, "Nats-") && k != events.HeaderWriter && !strings.HasPrefix(k, events.HeaderObject) {
			got[k] = strings.Join(all, " AND ")
		}
	}
	data := m.Data
	if object := m.Get(events.HeaderObject); object != "" {
		v.stubs++
		var err error
		if data, err = w.object(object); err != nil {
			v.note(&v.wrong, "the object of a stub: %v: %v", err, m)
			return false
		}
		sum := sha256.Sum256(data)
		if digest := "SHA-256=" + hex.EncodeToString(sum[:]); m.Get(events.HeaderDigest) != digest ||
			m.Get(events.HeaderSize) != strconv.Itoa(len(data)) || len(m.Data) != 0 {
			v.note(&v.wrong, "a stub that does not fit its object of %d bytes, %s: %v", len(data), digest, m)
			return false
		}
	}
	switch {
	case m.Subject != x.subject:
		v.note(&v.wrong, "it should be on %s: %v", x.subject, m)
	case string(data) != x.data:
		v.note(&v.wrong, "other bytes than Zulip sent: %.300q, sent %.300q", data, x.data)
	case !maps.Equal(got, x.header):
		v.note(&v.wrong, "headers %v, want %v", got, x.header)
	default:
		return true
	}
	return false
}

// object reads the body behind a stub as a consumer does.
func (w *world) object(name string) ([]byte, error) {
	return harness.Ask(func(ctx context.Context) ([]byte, error) {
		store, err := w.js.ObjectStore(ctx, "zulip_"+w.realm)
		if err != nil {
			return nil, err
		}
		return store.GetBytes(ctx, name)
	})
}

// record is the body of one of the bridge's records, as far as tests look at it.
type record struct {
	Why      string `json:"why"`
	Cause    string `json:"cause"`
	QueueID  string `json:"queue_id"`
	Refilled int    `json:"messages_refilled"`
	Missing  *struct {
		Above int64 `json:"above"`
		UpTo  int64 `json:"up_to"`
	} `json:"missing_event_ids"`
}

// recorded are the bodies of all records of a kind.
func (v *verdict) recorded(t testing.TB, kind string) (found []record) {
	t.Helper()
	for i := range v.all {
		if v.all[i].Get(events.HeaderRecord) == kind {
			var r record
			harness.Must(t, json.Unmarshal(v.all[i].Data, &r))
			found = append(found, r)
		}
	}
	return found
}
