package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// Why a queue is recorded.
const (
	whyFirst       = "first"           // the first start ever
	whyLost        = "lost"            // the queue before was lost
	whyOptions     = "options changed" // the register options differ from those of the queue before
	whyChangedOver = "changed over"    // the idle clock of the queue before could not be renewed at the organization's pace
	whyKept        = "kept"            // the same queue again: at every start and once a day, so that its record does not age out
)

// queueRecord is the body of a record on zulip.<realm>.bridge.queue: the queue we follow.
type queueRecord struct {
	Record   string          `json:"record"`
	Why      string          `json:"why"`
	QueueID  string          `json:"queue_id"`
	Previous string          `json:"previous_queue_id,omitempty"`
	Site     string          `json:"site"`
	Account  string          `json:"account"`
	Options  json.RawMessage `json:"options"` // as registered; canonical, so that a change is a difference of bytes
	// Assumed: the queue's own record was not in the stream any more. This one is made of our settings, and knows only the messages stored since.
	Assumed bool `json:"assumed,omitempty"`

	ZulipVersion string  `json:"zulip_version"`
	FeatureLevel int     `json:"zulip_feature_level"`
	LifeSeconds  float64 `json:"idle_queue_timeout_secs"`
	LifeSaid     bool    `json:"idle_queue_timeout_said_by_server"`
	Patience     float64 `json:"event_queue_longpoll_timeout_seconds"`

	// Newest are the newest message ids when the queue was made; later, if it is greater, the largest that was stored. They are where a
	// refill begins if the stream holds no message. What Zulip has by the time of a start is not taken: the queue may be dead by then,
	// and the messages missed.
	Newest newestIDs `json:"newest_message_ids"`
	// Begin is where the stream's unbroken story begins. It is handed on from record to record, so that a refill that finds few messages
	// in the stream knows whether these are all that there ever were.
	Begin *beginning `json:"begin,omitempty"`
	// Refill is what has to be read back from history before the queue is polled; nil where nothing has.
	Refill *refillRange `json:"refill,omitempty"`
	// Held says which messages the stream held before this queue's first poll: those between the two sequences.
	Held *heldRange `json:"held,omitempty"`

	Bridge string    `json:"bridge"` // our version
	Time   time.Time `json:"time"`
}

// newestIDs are message ids as seen by the two passes of a refill: the account's own history, and all public channels.
type newestIDs struct {
	Own    int64 `json:"own"`
	Public int64 `json:"public,omitempty"`
}

func (r *queueRecord) life() time.Duration     { return seconds(r.LifeSeconds) }
func (r *queueRecord) patience() time.Duration { return seconds(r.Patience) }

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func (n newestIDs) max() int64 { return max(n.Own, n.Public) }
func (n newestIDs) min() int64 { return min(n.Own, n.Public) }

// beginning is the record of a queue before which the stream holds nothing of ours, and the newest message ids at that time.
type beginning struct {
	Seq    uint64    `json:"seq,omitempty"` // 0: this record's own
	Newest newestIDs `json:"newest_message_ids"`
}

// refillRange is which messages a refill asks history for: those above one id, up to another, in each pass.
type refillRange struct {
	Above newestIDs `json:"above"`
	UpTo  newestIDs `json:"up_to"`
	// Overlap: messages a little below the bound are taken too, if they were sent since then; zero: none are.
	Overlap time.Time `json:"overlap_since,omitzero"`
	// Unknown: nothing in the stream says where it ended, so nothing is asked for.
	Unknown bool `json:"above_unknown,omitempty"`
	// Cause is why there is a gap, Since when it began: the stream holds an older state of messages that were changed later.
	Cause string    `json:"cause"`
	Since time.Time `json:"since,omitzero"`
	// Missing are the event ids that the stream had lost from its own end, where that is the cause.
	Missing *idRange `json:"missing_event_ids,omitempty"`
	// Until is when refilling has to end, because nothing renews the clock of a queue that is not polled yet.
	Until time.Time `json:"until"`
}

// heldRange is a range of stream sequences: From up to Until, both included.
type heldRange struct {
	From   uint64 `json:"from_seq"`
	Until  uint64 `json:"until_seq,omitempty"` // 0: up to this record, or to the gap-closed record that follows it
	UpToID int64  `json:"up_to_message_id"`    // messages with a greater id cannot be among them
}

// gapOpened is the body of the record that opens a gap.
type gapOpened struct {
	Record        string    `json:"record"`
	Cause         string    `json:"cause"`
	QueueID       string    `json:"queue_id,omitempty"`
	LastEventID   int64     `json:"last_event_id"`
	LastMessageID int64     `json:"last_message_id,omitempty"`
	LastStored    time.Time `json:"last_stored,omitzero"` // when the newest event before the gap was stored
	Noticed       time.Time `json:"noticed"`
	Zulip         string    `json:"zulip,omitempty"` // what Zulip answered
}

// gapClosed is the body of the record that closes a gap.
type gapClosed struct {
	Record     string    `json:"record"`
	Cause      string    `json:"cause"`
	OldQueueID string    `json:"old_queue_id,omitempty"`
	QueueID    string    `json:"queue_id"`
	Since      time.Time `json:"since,omitzero"`
	Closed     time.Time `json:"closed"`

	Refilled int `json:"messages_refilled"`
	// NotRefilled says why messages were left out, and which; nil if all that history shows are here.
	NotRefilled *notRefilled `json:"not_refilled,omitempty"`
	// Changed are messages that the stream holds in an older state: edited or moved since the gap began. Only those that the refill came
	// past are known.
	Changed []int64 `json:"changed_message_ids,omitempty"`
	// MissingEvents are the event ids that the stream had lost from its own end: those above From up to To.
	MissingEvents *idRange `json:"missing_event_ids,omitempty"`
	// NotRecoverable is the list of what Zulip's history never shows.
	NotRecoverable []string `json:"not_recoverable"`
}

type notRefilled struct {
	Reason    string `json:"reason"`
	AboveID   int64  `json:"above_message_id,omitempty"`
	UpToID    int64  `json:"up_to_message_id,omitempty"`
	TooOld    int    `json:"older_than_max_age,omitempty"`
	OlderThan string `json:"max_age,omitempty"`
}

type idRange struct {
	Above int64 `json:"above"`
	UpTo  int64 `json:"up_to"`
}

// notRecoverable is the honest list: what happened in a gap and leaves no trace in GET /messages.
var notRecoverable = []string{
	"edits, moves and deletions of messages (those refilled are in their present state)",
	"reactions, read and starred flags, polls and other widgets",
	"typing, presence, status",
	"channels, subscriptions, users, groups and settings",
}

// skippedBody is the body of a bridge.skipped record.
type skippedBody struct {
	Record    string `json:"record"`
	EventID   int64  `json:"event_id"`
	MessageID int64  `json:"message_id"`
	Reason    string `json:"reason"`
}

// recordEntry makes a record that leaves us at a position. Records carry the queue and the position, and an event id only where they stand
// in the place of an event.
func (b *Bridge) recordEntry(record, kind string, at poller.Position, body any, more ...stream.Header) (entry, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return entry{}, fmt.Errorf("making a %s record: %w", record, err)
	}
	headers := append([]stream.Header{
		{Key: HeaderPosition, Value: itoa(at.Last)},
		{Key: HeaderRecord, Value: record},
		{Key: HeaderWriter, Value: b.cfg.Writer},
	}, more...)
	if at.Queue != "" {
		headers = append(headers, stream.Header{Key: HeaderQueueID, Value: at.Queue})
	}
	return entry{msg: stream.Message{Subject: b.cfg.Realm.Record(kind), Headers: headers, Data: data}, after: at}, nil
}

// skipped makes the record of a live message event whose message the stream holds already.
func (b *Bridge) skipped(ev *poller.Event, at poller.Position) (entry, error) {
	return b.recordEntry(recordSkipped, subjects.Skipped, at,
		skippedBody{Record: recordSkipped, EventID: ev.ID, MessageID: ev.MessageID, Reason: "the stream holds this message already"},
		stream.Header{Key: HeaderEventID, Value: itoa(ev.ID)}, stream.Header{Key: HeaderMessageID, Value: itoa(ev.MessageID)})
}

// queueEntry makes the record of a queue, which leaves us at a position in it.
func (b *Bridge) queueEntry(r *queueRecord, last int64) (entry, error) {
	next := nextPoll
	if r.Refill != nil && r.Why != whyKept {
		next = nextRefill
	}
	return b.recordEntry(recordQueue, subjects.Queue, poller.Position{Queue: r.QueueID, Last: last}, r, stream.Header{Key: HeaderNext, Value: next})
}

// put stores one record behind the place that was read, and settles unclear answers by reading. errMoved: something else stands there, and
// the record does not. Anything else that is wrong is waited out.
func (b *Bridge) put(ctx context.Context, p place, e entry) error {
	ctx, cancel := b.graceful(ctx)
	defer cancel()
	before := p.cursor.Seq
	for wait := newRetry(); ; {
		if err := b.leading(); err != nil {
			return err
		}
		if !b.cursorOK || b.epoch != b.stream.Epoch() {
			now, err := b.read(ctx)
			if err != nil {
				return err
			}
			switch {
			case now.last != nil && header(now.last, HeaderWriter) == b.cfg.Writer && sameEvent(&e.msg, now.last):
				b.moved(now.cursor, e.after, now.last.Seq)
				b.outage.over(b.log)
				return nil
			case now.cursor.Seq != before:
				return errMoved
			}
		}
		cursor, err := b.stream.Append(ctx, b.cursor, []stream.Message{e.msg})
		if err == nil {
			b.moved(cursor, e.after, cursor.Seq)
			b.outage.over(b.log)
			return nil
		}
		b.cursorOK = false
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if se, _ := errors.AsType[*stream.Error](err); se == nil || se.Kind != stream.Refused {
			if se != nil && se.Kind == stream.Unclear {
				b.outage.unanswered(b.log)
			}
			if err := b.cannotStore(ctx, err); err != nil {
				return err
			}
		}
		if err := wait.pause(ctx); err != nil {
			return err
		}
	}
}
