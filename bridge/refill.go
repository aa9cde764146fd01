package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// What a refill looks at in the stream before it asks history (design, section 9.4). Zulip's message ids follow insertion while events follow
// commit, so the newest id seen is no watermark: an older id may have been missed. The newest heldWanted messages are compared one by
// one; asking begins at the smallest id of their newer half, and the older half is there for ids that come a little out of order.
const (
	heldWanted = 2000
	heldWindow = 10 * time.Minute // the first look back in time; doubled until there are enough
)

// refillPage is how many messages one request asks for: few large pages, since the budget for history is a sliding minute.
const refillPage = 500

// heldSet is the ids of messages that the stream holds, sorted.
type heldSet struct{ ids []int64 }

func (h *heldSet) has(id int64) bool {
	_, found := slices.BinarySearch(h.ids, id)
	return found
}

// receivesMessages says whether the queue takes message events at all.
func (b *Bridge) receivesMessages() bool {
	types := b.poller.Options.EventTypes
	return types == nil || slices.Contains(types, "message")
}

// refills says whether this bridge reads messages back at all.
func (b *Bridge) refills() bool {
	return b.cfg.RefillMaxMessages >= 0 && b.receivesMessages()
}

// planRefill decides which messages the queue r has to have read back before its first poll, and what the stream holds of them. opened tells
// of the gap; r.Newest are the upper bounds; remembered is the last record that this process knows, for a stream that lost its own.
func (b *Bridge) planRefill(ctx context.Context, r *queueRecord, opened *gapOpened, remembered *queueRecord) (*refillRange, *heldRange, error) {
	plan := &refillRange{UpTo: r.Newest, Since: opened.LastStored, Until: r.Time.Add(time.Duration(r.LifeSeconds * float64(time.Second) / 2))}
	var ids []idAt
	newest, err := b.lastOn(ctx, b.messageSubject)
	if err != nil {
		return nil, nil, err
	}
	if newest != nil {
		if ids, err = b.newestHeld(ctx, newest); err != nil {
			return nil, nil, err
		}
	}
	held := &heldRange{From: 1, UpToID: plan.UpTo.max()}
	if len(ids) > 0 {
		held.From = ids[0].seq
	}
	if len(ids) >= heldWanted {
		low := smallest(ids[len(ids)/2:])
		plan.Above = newestIDs{Own: low - 1, Public: low - 1}
		return plan, held, nil
	}
	first, last, err := b.queueRecords(ctx)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case first != nil && first.Why == whyFirst:
		plan.Above = first.Newest // the stream reaches back to the first start: everything since is either held or missing
	case len(ids) > 0:
		low := smallest(ids[len(ids)/2:])
		plan.Above = newestIDs{Own: low - 1, Public: low - 1}
	case last != nil:
		plan.Above = last.Newest
	case remembered != nil:
		plan.Above = remembered.Newest
	case opened.QueueID == "" && b.cfg.StartFrom.set():
		plan.Above = b.cfg.StartFrom.above()
	default:
		plan.Above = plan.UpTo // nothing says where the stream ended: nothing can be refilled
	}
	return plan, held, nil
}

// idAt is a message id and the sequence it is stored at.
type idAt struct {
	seq uint64
	id  int64
}

func smallest(ids []idAt) int64 {
	return slices.MinFunc(ids, func(a, b idAt) int { return int(min(1, max(-1, a.id-b.id))) }).id
}

// newestHeld reads the ids of the newest heldWanted messages in the stream, oldest first; fewer if there are no more.
func (b *Bridge) newestHeld(ctx context.Context, newest *stream.Stored) (ids []idAt, err error) {
	info := stream.Info{}
	if err := b.patiently(ctx, func() (err error) { info, err = b.stream.Info(ctx); return err }); err != nil {
		return nil, err
	}
	for window := heldWindow; ; window *= 2 {
		from := stream.Start{Time: newest.Time.Add(-window)}
		all := from.Time.Before(info.FirstTime)
		if all {
			from = stream.Start{Seq: 1}
		}
		if ids, err = b.messageIDs(ctx, from, newest.Seq); err != nil {
			return nil, err
		}
		if all || len(ids) >= heldWanted {
			return ids[max(0, len(ids)-heldWanted):], nil
		}
	}
}

// messageIDs reads the message ids stored between two places.
func (b *Bridge) messageIDs(ctx context.Context, from stream.Start, until uint64) (ids []idAt, err error) {
	err = b.patiently(ctx, func() error {
		ids = ids[:0]
		return b.stream.Scan(ctx, b.messageSubject, from, until, true, func(m *stream.Stored) error {
			if id, ok := headerInt(m, HeaderMessageID); ok {
				ids = append(ids, idAt{m.Seq, id})
			}
			return nil
		})
	})
	return ids, err
}

// queueRecords reads the oldest and the newest queue record in the stream; nil where there is none.
func (b *Bridge) queueRecords(ctx context.Context) (first, last *queueRecord, err error) {
	m, err := b.lastOn(ctx, b.cfg.Realm.Record(subjects.Queue))
	if err != nil || m == nil {
		return nil, nil, err
	}
	last = decode[queueRecord](m)
	err = b.patiently(ctx, func() error {
		err := b.stream.Scan(ctx, b.cfg.Realm.Record(subjects.Queue), stream.Start{Seq: 1}, m.Seq, false, func(m *stream.Stored) error {
			first = decode[queueRecord](m)
			return errEnough
		})
		if errors.Is(err, errEnough) {
			return nil
		}
		return err
	})
	return first, last, err
}

// errEnough ends a Scan early.
var errEnough = errors.New("enough")

// refill reads back from history what the gap left out, oldest first, and closes the gap. Begun again after a crash, it goes on behind the
// last message refilled.
func (b *Bridge) refill(ctx context.Context, p place) error {
	if err := b.recall(ctx, p); err != nil {
		return err
	}
	r := b.record
	opened, err := b.gapBefore(ctx)
	if err != nil {
		return err
	}
	closed := gapClosed{Record: recordGapClosed, Cause: opened.Cause, OldQueueID: r.Previous, QueueID: r.QueueID, Since: opened.LastStored,
		NotRecoverable: notRecoverable}
	if r.Previous == r.QueueID {
		closed.MissingEvents = &idRange{UpTo: p.at.Last}
	}
	if r.Refill != nil {
		if err := b.refillMessages(ctx, p, r, &closed); err != nil {
			return err
		}
	}
	closed.Closed = time.Now().UTC()
	e, err := b.recordEntry(recordGapClosed, subjects.Gap, p.at, closed)
	if err != nil {
		return err
	}
	gctx, cancel := b.graceful(ctx)
	defer cancel()
	if err := b.append(gctx, []entry{e}, phaseRefill); err != nil {
		return err
	}
	event := b.log.Info()
	if closed.NotRefilled != nil {
		event = b.log.Warn().Str("not_refilled", closed.NotRefilled.Reason)
	}
	event.Int("messages_refilled", closed.Refilled).Int("changed_meanwhile", len(closed.Changed)).Str("subject", e.msg.Subject).
		Msg("the gap is closed")
	return nil
}

// gapBefore is the body of the newest gap-opened record; a zero one where there is none, as at a first start that was asked to go back.
func (b *Bridge) gapBefore(ctx context.Context) (*gapOpened, error) {
	m, err := b.lastOn(ctx, b.cfg.Realm.Record(subjects.Gap))
	if err != nil {
		return nil, err
	}
	if m != nil && header(m, HeaderRecord) == recordGapOpened {
		if opened := decode[gapOpened](m); opened != nil {
			return opened, nil
		}
	}
	return &gapOpened{Cause: "asked to start in the past"}, nil
}

// refillMessages stores the messages that the plan names and the stream does not hold, and says in closed what it did. What an earlier try
// has stored is passed over like everything else that the stream holds.
func (b *Bridge) refillMessages(ctx context.Context, p place, r *queueRecord, closed *gapClosed) error {
	plan := r.Refill
	if !b.refills() {
		closed.NotRefilled = &notRefilled{Reason: "refilling is switched off, or the queue takes no messages", AboveID: plan.Above.min(), UpToID: plan.UpTo.max()}
		return nil
	}
	from := uint64(1)
	if r.Held != nil {
		from = r.Held.From
	}
	held := map[int64]bool{}
	err := b.patiently(ctx, func() error {
		clear(held)
		closed.Refilled = 0
		return b.stream.Scan(ctx, b.messageSubject, stream.Start{Seq: from}, p.cursor.Seq, true, func(m *stream.Stored) error {
			if id, ok := headerInt(m, HeaderMessageID); ok {
				held[id] = true
			}
			if header(m, HeaderOrigin) == originBackfill && header(m, HeaderQueueID) == r.QueueID {
				closed.Refilled++
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	var since time.Time
	if b.cfg.RefillMaxAge > 0 {
		since = time.Now().Add(-b.cfg.RefillMaxAge)
	}
	if r.Why == whyFirst && b.cfg.StartFrom.Time.After(since) {
		since = b.cfg.StartFrom.Time
	}
	passes := []*pass{{above: plan.Above.Own, upTo: plan.UpTo.Own}}
	if b.poller.Options.AllPublicStreams {
		passes = append(passes, &pass{public: true, above: plan.Above.Public, upTo: plan.UpTo.Public})
	}
	b.log.Info().Interface("above_message_id", plan.Above).Interface("up_to_message_id", plan.UpTo).
		Msg("reading messages back from history")
	var chunk []entry
	size := 0
	flush := func() error {
		gctx, cancel := b.graceful(ctx)
		defer cancel()
		err := b.append(gctx, chunk, phaseRefill)
		closed.Refilled += len(chunk)
		chunk, size = chunk[:0], 0
		return err
	}
	cut := func(reason string, above int64) {
		closed.NotRefilled = &notRefilled{Reason: reason, AboveID: above, UpToID: plan.UpTo.max()}
	}
	tooOld, last := 0, plan.Above.min()
	for {
		if time.Now().After(plan.Until) {
			cut("half of the new queue's idle time was over, and nothing renews its clock before it is polled", last)
			break
		}
		m, err := nextPast(ctx, b.poller, passes)
		if refusal := permanent(err); refusal != nil {
			cut("Zulip refuses to show its history: "+refusal.Error(), last)
			break
		}
		if err != nil {
			return err
		}
		if m == nil {
			break
		}
		last = m.id
		switch {
		case held[m.id]:
			if !plan.Since.IsZero() && m.changed.After(plan.Since) {
				closed.Changed = append(closed.Changed, m.id)
			}
			continue
		case m.sent.Before(since):
			tooOld++
			continue
		}
		if b.cfg.RefillMaxMessages > 0 && closed.Refilled+len(chunk) >= b.cfg.RefillMaxMessages {
			cut(fmt.Sprintf("the limit of %d messages was reached", b.cfg.RefillMaxMessages), m.id-1)
			break
		}
		e, err := b.refilled(ctx, p.at, m)
		if err != nil {
			return err
		}
		chunk = append(chunk, e)
		held[m.id] = true
		if size += len(m.event); len(chunk) >= chunkMessages || size >= chunkBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		if closed.NotRefilled != nil {
			break
		}
	}
	if err := flush(); err != nil {
		return err
	}
	if tooOld > 0 {
		if closed.NotRefilled == nil {
			closed.NotRefilled = &notRefilled{Reason: "older than the greatest age to be refilled"}
		}
		closed.NotRefilled.TooOld, closed.NotRefilled.OlderThan = tooOld, since.UTC().Format(time.RFC3339)
	}
	return nil
}

// A chunk of refilled messages, as large as those of live events.
const (
	chunkMessages = 1000
	chunkBytes    = 8 << 20
)

// permanent picks out the errors that asking again will not heal.
func permanent(err error) error {
	if e, ok := errors.AsType[*poller.ConfigError](err); ok {
		return e
	}
	if e, ok := errors.AsType[*poller.RefusedError](err); ok {
		return e
	}
	return nil
}

// refilled makes what is stored for a message from history: no event of a queue, so it has no event id but the position.
func (b *Bridge) refilled(ctx context.Context, at poller.Position, m *pastMessage) (entry, error) {
	e := entry{after: at, msg: stream.Message{Subject: b.messageSubject, Data: m.event, Headers: []stream.Header{
		{Key: HeaderQueueID, Value: at.Queue},
		{Key: HeaderPosition, Value: itoa(at.Last)},
		{Key: HeaderEventType, Value: "message"},
		{Key: HeaderOrigin, Value: originBackfill},
		{Key: HeaderWriter, Value: b.cfg.Writer},
		{Key: HeaderMessageID, Value: itoa(m.id)},
	}}}
	if b.stream.Fits(&e.msg) {
		return e, nil
	}
	return b.claimCheck(ctx, e, fmt.Sprintf("message-%d", m.id))
}

// holds says whether the stream held a message before this queue's first poll: refilled, or from the queue before. Above the bound it
// cannot be, and nothing is looked up.
func (b *Bridge) holds(ctx context.Context, id int64) (bool, error) {
	r := b.record
	if r == nil || r.Held == nil || id > r.Held.UpToID {
		return false, nil
	}
	if b.held == nil {
		until := r.Held.Until
		if until == 0 {
			var err error
			if until, err = b.heldUntil(ctx); err != nil {
				return false, err
			}
		}
		ids, err := b.messageIDs(ctx, stream.Start{Seq: r.Held.From}, until)
		if err != nil {
			return false, err
		}
		b.held = &heldSet{}
		for _, m := range ids {
			b.held.ids = append(b.held.ids, m.id)
		}
		slices.Sort(b.held.ids)
	}
	return b.held.has(id), nil
}

// heldUntil is the sequence at which this queue's first poll began: that of the record that closed the gap before it, or of its own.
func (b *Bridge) heldUntil(ctx context.Context) (uint64, error) {
	var until uint64
	for _, kind := range []string{subjects.Gap, subjects.Queue} {
		m, err := b.lastOn(ctx, b.cfg.Realm.Record(kind))
		if err != nil {
			return 0, err
		}
		if m != nil && header(m, HeaderQueueID) == b.record.QueueID {
			until = max(until, m.Seq)
		}
	}
	return until, nil
}
