//go:build unix

package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/events"
	"zulip-nats/zulipsim"
)

// EventKey names an event: ids count anew in each queue.
type EventKey struct {
	Queue string
	ID    int64
}

// Stored is one message as the stream holds it.
type Stored struct {
	Seq     uint64
	Subject string
	Header  map[string][]string
	Data    []byte
	Time    time.Time
}

// Get is a header's value, "" without it.
func (m *Stored) Get(key string) string {
	if v := m.Header[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// Int is a header's value where it is a number.
func (m *Stored) Int(key string) (int64, bool) {
	n, err := strconv.ParseInt(m.Get(key), 10, 64)
	return n, err == nil
}

// Record is which record of the bridge's own this is; "" for Zulip's events and messages.
func (m *Stored) Record() string { return m.Get(events.HeaderRecord) }

func (m *Stored) String() string {
	return fmt.Sprintf("#%d %s %v %.300s", m.Seq, m.Subject, m.Header, m.Data)
}

// Ask asks NATS, and again where nobody answered: a request that a server got just before
// it died, or that came during an election, is answered by nobody.
func Ask[T any](ask func(context.Context) (T, error)) (answer T, err error) {
	for began := time.Now(); time.Since(began) < Patience; {
		ctx, cancel := context.WithTimeout(context.Background(), Patience/4)
		answer, err = ask(ctx)
		late := ctx.Err() != nil
		cancel()
		if !late {
			break
		}
	}
	return answer, err
}

// ReadStream reads a whole stream.
func ReadStream(js jetstream.JetStream, name string) ([]Stored, error) {
	return Ask(func(ctx context.Context) ([]Stored, error) { return readStream(ctx, js, name) })
}

func readStream(ctx context.Context, js jetstream.JetStream, name string) ([]Stored, error) {
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
	all := make([]Stored, 0, info.State.Msgs)
	for len(all) < int(info.State.Msgs) {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return nil, fmt.Errorf("stream %s, after %d of %d messages: %w", name, len(all), info.State.Msgs, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return nil, err
		}
		all = append(all, Stored{meta.Sequence.Stream, m.Subject(), m.Headers(), m.Data(), meta.Timestamp})
	}
	return all, nil
}

// LastOf is the newest message of a realm; nil if there is none. It does not wait for a
// nats-server that is down.
func LastOf(js jetstream.JetStream, stream, realm string) (*jetstream.RawStreamMsg, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	m, err := s.GetLastMsgForSubject(ctx, "zulip."+realm+".>")
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	return m, err
}

// WriterOf is who stored the newest message of a realm, "" if that cannot be said now.
func WriterOf(js jetstream.JetStream, stream, realm string) string {
	if m, err := LastOf(js, stream, realm); err == nil && m != nil {
		return m.Header.Get(events.HeaderWriter)
	}
	return ""
}

// Settled is the newest event of each queue that has to be stored when all is settled, by
// its id. Take it before the stream is read: a heartbeat may come at any time, also
// between the two, so one that is not acknowledged yet does not count.
func Settled(queues []zulipsim.QueueInfo) map[string]int64 {
	newest := map[string]int64{}
	for i := range queues {
		newest[queues[i].ID] = -1
		for j := range queues[i].Events {
			if e := &queues[i].Events[j]; e.Type != "heartbeat" || !e.Pruned.IsZero() {
				newest[queues[i].ID] = e.ID
			}
		}
	}
	return newest
}

// eventID is how each event ends.
var eventID = regexp.MustCompile(`"id":\d+}$`)

// Untold are the events that are nowhere in a stream although Zulip did not lose them:
// each event that was put in a queue which the stream names, and which lives still or was
// deleted by the program, has to be stored, as an event of this queue or, where the
// program changed over, of another one. Excused is only what a gap tells of: what came to
// a retired queue behind the place that the gap names, and what came to the old queue of
// a change-over when the new one was made, if a gap tells of that one: it was in both.
// What was in a queue when Zulip dropped it is Zulip's doing, and messages are compared
// by their ids elsewhere. Call it when all is settled.
//
// Kept out are heartbeats, which tell nothing, and changes of flags, which differ from
// queue to queue.
func Untold(queues []zulipsim.QueueInfo, all []Stored) (missing []string) {
	keys, bodies, named, messages := map[EventKey]bool{}, map[string]bool{}, map[string]bool{}, map[int64]bool{}
	retired, next, lost := map[string]int64{}, map[string]string{}, map[string]bool{}
	for i := range all {
		m := &all[i]
		queue := m.Get(events.HeaderQueueID)
		named[queue] = true
		if id, ok := m.Int(events.HeaderEventID); ok {
			keys[EventKey{queue, id}] = true
			bodies[eventID.ReplaceAllString(string(m.Data), "")] = true
		}
		if id, ok := m.Int(events.HeaderMessageID); ok {
			messages[id] = true
		}
		var record struct {
			Cause    string `json:"cause"`
			Previous string `json:"previous_queue_id"`
		}
		if m.Record() == "" || json.Unmarshal(m.Data, &record) != nil {
			continue
		}
		switch {
		case m.Record() == "queue" && record.Previous != "":
			next[record.Previous] = queue
		case m.Record() == "gap-opened":
			lost[queue] = true // or retired
			if strings.Contains(record.Cause, "retired") {
				retired[queue], _ = m.Int(events.HeaderPosition)
			}
		}
	}
	made := map[string]time.Time{}
	for _, q := range queues {
		made[q.ID] = q.Created
	}
	for _, q := range queues {
		if !named[q.ID] || q.Dead != "" && q.Dead != "deleted" {
			continue
		}
		end, over := retired[q.ID]
		for i := range q.Events {
			e := &q.Events[i]
			switch {
			case lost[next[q.ID]] && !e.Put.Before(made[next[q.ID]]):
			case e.Type == "heartbeat", e.Type == "update_message_flags", over && e.ID > end,
				keys[EventKey{q.ID, e.ID}],
				e.Type == "message" && messages[e.MessageID], bodies[eventID.ReplaceAllString(string(e.Raw), "")]:
			default:
				missing = append(missing, fmt.Sprintf("event %d of queue %s (now %q), put at %s, acknowledged: "+
					"%v: %.200s", e.ID, q.ID, q.Dead,
					e.Put.Format(time.StampMilli), !e.Pruned.IsZero(), e.Raw))
			}
		}
	}
	return missing
}

// OneQueue says what is wrong if the program did not stay on its queue: a gap was told of,
// or another queue was made. In good order, at most, another one was changed over to: a
// program that has just started does not know when a poll last waited, and while events
// come faster than they are stored, as they may on a busy machine, no poll waits. A queue
// that was deleted does not count: of two programs that start at the same time, one may
// have deleted what it made. And each of kills may have left one that the stream never
// named, if it hit between register and record.
func OneQueue(queues []zulipsim.QueueInfo, all []Stored, kills int) string {
	followed, over, gaps := map[string]bool{}, map[string]bool{}, 0
	for i := range all {
		m := &all[i]
		queue := m.Get(events.HeaderQueueID)
		if queue != "" {
			followed[queue] = true
		}
		var record struct {
			Why string `json:"why"`
		}
		switch {
		case m.Record() == events.RecordGapOpened:
			gaps++
		case m.Record() == events.RecordQueue && json.Unmarshal(m.Data, &record) == nil &&
			record.Why == events.WhyChangedOver:
			over[queue] = true
		}
	}
	live, left := 0, 0
	for _, q := range queues {
		switch {
		case q.Dead == "deleted":
		case followed[q.ID]:
			live++
		default:
			left++
		}
	}
	if live == 1 && len(followed)-len(over) == 1 && gaps == 0 && left <= kills {
		return ""
	}
	return fmt.Sprintf("%d queues were followed (to %d changed over) and %d of them not deleted, %d were not followed "+
		"(%d kills), %d gaps opened; there should be one queue and no gap", len(followed), len(over), live, left, kills,
		gaps)
}

// Stray compares the queues that live at Zulip with the queue that the stream names: that
// one has to live, with nothing pending and a poll that waits, and no other. "" if it is
// so, else what is wrong.
func Stray(js jetstream.JetStream, stream, realm string, queues []zulipsim.QueueInfo) string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return err.Error()
	}
	m, err := s.GetLastMsgForSubject(ctx, "zulip."+realm+".bridge.queue")
	if err != nil {
		return "the newest record of a queue: " + err.Error()
	}
	named := m.Header.Get(events.HeaderQueueID)
	var wrong []string
	follows, stray := false, false
	for _, q := range queues {
		switch {
		case q.ID == named:
			follows = q.Dead == "" && q.Waiting && q.Pending == 0
			wrong = append(wrong, fmt.Sprintf("the queue that the stream names, %s: dead %q, a poll waits: %v, "+
				"%d pending", q.ID, q.Dead, q.Waiting, q.Pending))
		case q.Dead == "":
			stray = true
			wrong = append(wrong, fmt.Sprintf("a queue that the stream does not name lives, %s, made at %s, "+
				"%d pending", q.ID,
				q.Created.Format(time.StampMilli), q.Pending))
		}
	}
	if follows && !stray {
		return ""
	}
	return strings.Join(wrong, "; ")
}
