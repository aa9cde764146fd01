package cli

import (
	"bytes"
	"strings"
	"sync"

	"zulip-nats/events"
	"zulip-nats/zulipsim"
)

// arrivals is what a reader got of the stream, in its order.
type arrivals struct {
	mu      sync.Mutex
	events  []arrival
	skipped map[eventName]bool // told by a record: the stream held the message already
	closed  int                // gaps whose end was told
	writers map[string]bool    // the bridges that wrote anything, records too
}

// arrival is one event, or one message that was read back from history.
type arrival struct {
	eventName
	message int64  // its id, if it is one
	writer  string // the bridge that stored it
	data    []byte
}

// eventName names an event; the id is -1 for what was read back.
type eventName struct {
	queue string
	id    int64
}

func (a *arrivals) add(e *events.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.writers == nil {
		a.writers, a.skipped = make(map[string]bool), make(map[eventName]bool)
	}
	writer := e.Header.Get(events.HeaderWriter)
	a.writers[writer] = true
	name := eventName{e.Queue, e.ID}
	switch e.Record {
	case "":
		a.events = append(a.events, arrival{name, e.MessageID, writer, bytes.Clone(e.Raw)})
	case events.RecordSkipped:
		a.skipped[name] = true
	case events.RecordGapClosed:
		a.closed++
	}
}

// count says how many events and messages arrived, how many of them were read back, and
// how many gaps came to their end.
func (a *arrivals) count() (all, readBack, closed int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.events {
		if e.id < 0 {
			readBack++
		}
	}
	return len(a.events), readBack, a.closed
}

// wrote says whether a bridge wrote anything.
func (a *arrivals) wrote(b *child) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for writer := range a.writers {
		if strings.Contains(writer, b.mark()) {
			return true
		}
	}
	return false
}

// storedBy counts what the bridge of a process stored, of all but the first so many.
func (a *arrivals) storedBy(b *child, but int) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.events[but:] {
		if strings.Contains(e.writer, b.mark()) {
			n++
		}
	}
	return n
}

// ledger is what the simulator sent: what it put in queues, and what people said.
type ledger struct {
	queues   []zulipsim.QueueInfo
	messages []zulipsim.StoredMessage
}

// ledgerOf asks for the messages first: one that comes in between is in a queue then.
func ledgerOf(z *zulipsim.Server) ledger {
	messages := z.Messages()
	return ledger{queues: z.Queues(), messages: messages}
}

// comparison is what the simulator sent beside what arrived.
type comparison struct {
	sent       int // events that it put in queues, and messages while there was none
	arrived    int // of those, how many did: the same bytes, or the message read back
	lost       int // how many did not
	twice      int // how often one arrived again
	disordered int // how often one arrived behind a later one of the same queue
	// gone is what was left in a queue that Zulip dropped and is no message that it still
	// has: nobody can have it any more. It is not in sent.
	gone int
}

// good says that all is there once, in order.
func (c comparison) good() bool { return c.lost+c.twice+c.disordered == 0 }

func (a *arrivals) compare(l ledger) (c comparison) {
	a.mu.Lock()
	defer a.mu.Unlock()
	arrived := make(map[eventName][]byte, len(a.events))
	messages := make(map[int64]bool) // that arrived
	last := make(map[string]int64)
	for _, e := range a.events {
		_, again := arrived[e.eventName]
		if e.id >= 0 && again || e.message != 0 && messages[e.message] {
			c.twice++
			continue
		}
		if e.message != 0 {
			messages[e.message] = true
		}
		if e.id < 0 {
			continue
		}
		arrived[e.eventName] = e.data
		if before, ok := last[e.queue]; ok && e.id < before {
			c.disordered++
		}
		last[e.queue] = max(last[e.queue], e.id)
	}
	deleted := make(map[int64]bool)
	for _, m := range l.messages {
		deleted[m.ID] = !m.Deleted.IsZero()
	}
	queued := make(map[int64]bool)
	for _, q := range l.queues {
		for _, e := range q.Events {
			queued[e.MessageID] = true
			name := eventName{q.ID, e.ID}
			data, there := arrived[name]
			dropped := q.Dead != "" && e.Pruned.IsZero()
			switch {
			case there && bytes.Equal(data, e.Raw),
				!there && (dropped || a.skipped[name]) && messages[e.MessageID]:
				c.arrived++
			case !there && dropped && (e.MessageID == 0 || deleted[e.MessageID]):
				c.gone++
			default:
				c.lost++
			}
		}
	}
	for _, m := range l.messages {
		switch {
		case queued[m.ID], len(l.queues) == 0, m.Committed.Before(l.queues[0].Created):
		case messages[m.ID]:
			c.arrived++
		case !deleted[m.ID]:
			c.lost++
		}
	}
	c.sent = c.arrived + c.lost
	return c
}
