package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"unicode/utf8"

	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// store puts a batch in the stream, in order, and returns when all of it is there. errMoved: the stream has to be read again, because
// somebody else wrote, or because it lost what it held. A stop gives what is under way a little time, and then ends it: what was not
// stored was not acknowledged either.
func (b *Bridge) store(ctx context.Context, batch *poller.Batch) error {
	ctx, cancel := b.graceful(ctx)
	defer cancel()
	entries, err := b.messages(ctx, batch.Events)
	if err == nil {
		err = b.append(ctx, entries, phasePoll)
	}
	if err != nil {
		b.rejected = rejections{} // it may hold what was not stored
	}
	return err
}

// entry is a message to be stored and the position that it leaves us at.
type entry struct {
	msg   stream.Message
	after poller.Position
}

// append stores entries behind what is known, settling every unclear answer by reading the stream (the reconcile table of the design). The
// entries belong to a phase: if the stream is found in another one, somebody moved on.
func (b *Bridge) append(ctx context.Context, entries []entry, in phase) error {
	refusals := 0
	msgs := make([]stream.Message, len(entries))
	for i := range entries {
		msgs[i] = entries[i].msg
	}
	for wait := newRetry(); len(entries) > 0; {
		if err := b.leading(); err != nil {
			return err
		}
		if !b.cursorOK || b.epoch != b.stream.Epoch() {
			before := b.cursor
			n, err := b.settle(ctx, entries, in)
			if err != nil {
				return err
			}
			entries, msgs = entries[n:], msgs[n:]
			if n > 0 || b.cursor.Seq != before.Seq {
				refusals, wait = 0, newRetry()
			}
			continue
		}
		cursor, err := b.stream.Append(ctx, b.cursor, msgs)
		if err == nil {
			b.moved(cursor, entries[len(entries)-1].after, cursor.Seq)
			b.outage.over(b.log)
			return nil
		}
		b.cursorOK = false
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch e, _ := errors.AsType[*stream.Error](err); {
		case e != nil && e.Kind == stream.TooLarge:
			// The limit was lowered since the messages were made: make them again from where we are.
			return errMoved
		case e != nil && e.Kind == stream.Refused:
			if refusals++; refusals >= 2 {
				b.stream.StepDown()
			}
		default:
			if e != nil && e.Kind == stream.Unclear {
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
	b.outage.over(b.log) // found stored
	return nil
}

// moved takes note of a write that stands, at that sequence.
func (b *Bridge) moved(cursor stream.Cursor, at poller.Position, seq uint64) {
	b.cursor = cursor
	b.known, b.knownSeq = at, seq
}

// settle reads the stream and says how many of the entries are there already, whoever put them there. errMoved: it is not where we thought.
func (b *Bridge) settle(ctx context.Context, entries []entry, in phase) (stored int, err error) {
	p, err := b.read(ctx)
	if err != nil {
		return 0, err
	}
	if b.wentBack(p) {
		return 0, errMoved
	}
	for i := len(entries) - 1; i >= 0 && p.last != nil; i-- {
		if sameEvent(&entries[i].msg, p.last) {
			b.moved(p.cursor, entries[i].after, p.last.Seq)
			return i + 1, nil
		}
	}
	if p.at != b.known || p.phase != in || p.last != nil && p.last.Seq > b.knownSeq {
		return 0, errMoved // even at the same position: another instance's record may say what the stream holds now
	}
	return 0, nil
}

// sameEvent says whether a stored message is that message: the same event of the same queue, or a record with the same words. Another
// instance may have stored it; what (queue, id) names never changes, so it does not matter.
func sameEvent(m *stream.Message, s *stream.Stored) bool {
	if m.Subject != s.Subject {
		return false
	}
	keyed := false
	for _, h := range m.Headers {
		switch h.Key {
		case HeaderQueueID, HeaderPosition, HeaderRecord, HeaderMessageID:
			if header(s, h.Key) != h.Value {
				return false
			}
		case HeaderEventID:
			if header(s, h.Key) != h.Value {
				return false
			}
			keyed = true
		}
	}
	return keyed || string(m.Data) == string(s.Data)
}

// messages turns events into what is stored for them. An event that needs nothing new in the stream leaves nothing.
func (b *Bridge) messages(ctx context.Context, events []poller.Event) ([]entry, error) {
	entries := make([]entry, 0, len(events))
	at := b.known
	prev := itoa(at.Last)
	arena := make([]stream.Header, 0, 8*len(events))
	for i := 0; i < len(events); i++ {
		ev := &events[i]
		from := len(arena)
		add := func(key, value string) { arena = append(arena, stream.Header{Key: key, Value: value}) }
		subject, fault := "", ev.Fault
		if fault == "" && ev.Size > int64(len(ev.Raw)) {
			fault = fmt.Sprintf("%d bytes are more than this bridge keeps in memory", ev.Size)
		}
		if fault == "" {
			var err error
			if subject, err = b.cfg.Realm.Event(ev.Type); err != nil {
				fault = err.Error()
			}
		}
		if fault != "" {
			e, err := b.rejection(ev, at, fault)
			if err != nil {
				return nil, err
			}
			if e != nil {
				entries = append(entries, *e)
				at = e.after
				prev = itoa(at.Last)
			}
			continue
		}
		id := itoa(ev.ID)
		next := poller.Position{Queue: at.Queue, Last: ev.ID}
		held := false
		if ev.MessageID > 0 {
			var err error
			if held, err = b.holds(ctx, ev.MessageID); err != nil {
				return nil, err
			}
		}
		if held {
			e, err := b.skipped(ev, next)
			if err != nil {
				return nil, err
			}
			entries = append(entries, e)
			at, prev = next, id
			continue
		}
		add(HeaderQueueID, at.Queue)
		add(HeaderEventID, id)
		add(HeaderPrevEventID, prev)
		add(HeaderEventType, headerValue(ev.Type))
		if ev.Op != "" {
			add(HeaderEventOp, headerValue(ev.Op))
		}
		add(HeaderOrigin, originLive)
		add(HeaderWriter, b.cfg.Writer)
		if ev.MessageID > 0 {
			add(HeaderMessageID, itoa(ev.MessageID))
		}
		e := entry{after: next, msg: stream.Message{Subject: subject, Headers: arena[from:len(arena):len(arena)], Data: ev.Raw}}
		if !b.stream.Fits(&e.msg) {
			large, err := b.claimCheck(ctx, e, id)
			if errors.Is(err, errNeverFits) {
				ev.Fault = err.Error()
				i-- // once more, as an event that cannot be carried
				continue
			}
			if err != nil {
				return nil, err
			}
			e = large
		}
		entries = append(entries, e)
		at, prev = next, id
	}
	return entries, nil
}

// rejections remembers what was rejected without moving the position: asked again, Zulip sends it again, and the record is there.
type rejections struct {
	at   poller.Position
	seen map[string]bool // by SHA-256, in hexadecimal
}

// rejectedBody is the body of a bridge.rejected record.
type rejectedBody struct {
	Record  string `json:"record"`
	Reason  string `json:"reason"`
	Size    int64  `json:"size"`
	SHA256  string `json:"sha256"`
	Cut     bool   `json:"cut,omitempty"`          // only the beginning of the event's bytes is here
	Event   string `json:"event,omitempty"`        // the bytes, where they are text
	Base64  []byte `json:"event_base64,omitempty"` // the bytes, where they are not
	EventID *int64 `json:"event_id,omitempty"`
}

// rejectedLimit is how many bytes of an event its rejected record keeps, well below what any server takes in a message.
const rejectedLimit = 256 << 10

// rejection makes the record of an event that cannot be carried as it is; nil if it stands already. An event with an id moves the
// position, unless the id goes back; one without moves nothing, so Zulip will send it again.
func (b *Bridge) rejection(ev *poller.Event, at poller.Position, reason string) (*entry, error) {
	sum := ev.SHA256
	if ev.Size <= int64(len(ev.Raw)) {
		sum = sha256.Sum256(ev.Raw)
	}
	digest := hex.EncodeToString(sum[:])
	after := at
	if ev.HasID && ev.ID > at.Last {
		after.Last = ev.ID
	}
	if after == at {
		if b.rejected.at != at {
			b.rejected = rejections{at: at, seen: map[string]bool{}}
		}
		if b.rejected.seen[digest] {
			return nil, nil
		}
		b.rejected.seen[digest] = true
	}
	body := rejectedBody{Record: recordRejected, Reason: reason, Size: max(ev.Size, int64(len(ev.Raw))), SHA256: digest}
	var headers []stream.Header
	if ev.HasID {
		body.EventID = &ev.ID
		headers = append(headers, stream.Header{Key: HeaderEventID, Value: itoa(ev.ID)})
	}
	for limit := rejectedLimit; ; limit /= 2 {
		raw := ev.Raw[:min(limit, len(ev.Raw))]
		body.Cut = int64(len(raw)) < body.Size
		body.Event, body.Base64 = "", nil
		if utf8.Valid(raw) {
			body.Event = string(raw)
		} else {
			body.Base64 = raw
		}
		e, err := b.recordEntry(recordRejected, subjects.Rejected, after, body, headers...)
		if err != nil {
			return nil, err
		}
		if limit > 0 && !b.stream.Fits(&e.msg) {
			continue
		}
		b.log.Warn().Str("reason", reason).Interface("event_id", body.EventID).Int64("bytes", body.Size).
			Msg("an event cannot be carried as it is: it goes to " + e.msg.Subject)
		return &e, nil
	}
}
