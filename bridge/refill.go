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
// one; asking begins at the smallest id of their newer half, and the older half is there for ids that come a little out of order. If there
// are fewer, all that the stream holds has been compared, and there is no need for an older half.
const (
	heldWanted = 2000
	heldWindow = 10 * time.Minute // the first look back in time; doubled until there are enough
	// heldLongest is where doubling ends: the stream is read from its start then, whatever is known of its age.
	heldLongest = 2 * 365 * 24 * time.Hour
	// overlapTime is how long a transaction at Zulip may take, and how far its clock may be from that of NATS. If the stream holds fewer
	// messages than wanted because its limits took the others, messages with ids a little below the bound may be missing; those that were
	// sent in this time before it are taken too. The limits may have taken one of them from the stream: better twice than not at all.
	overlapTime = 2 * time.Minute
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
// of the gap, until is the sequence of the newest message of ours, before is the record of the queue that died (nil if there is none); r.Newest
// are the upper bounds.
func (b *Bridge) planRefill(ctx context.Context, r *queueRecord, opened *gapOpened, until uint64, before *queueRecord) error {
	plan := &refillRange{UpTo: r.Newest, Cause: opened.Cause, Since: opened.LastStored,
		Until: r.Time.Add(time.Duration(r.LifeSeconds * float64(time.Second) / 2))}
	r.Refill, r.Held = plan, &heldRange{From: 1, UpToID: plan.UpTo.max()}
	info, err := b.info(ctx)
	if err != nil {
		return err
	}
	ids, err := b.newestHeld(ctx, info, until)
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		r.Held.From = ids[0].seq
	}
	unbroken := false
	if before != nil && before.Begin != nil && info.FirstSeq <= before.Begin.Seq {
		unbroken, r.Begin = true, before.Begin
	}
	switch {
	case len(ids) < heldWanted && unbroken:
		plan.Above = before.Begin.Newest // everything since the beginning is either held or missing
	case len(ids) > 0:
		if len(ids) == heldWanted {
			ids = ids[len(ids)/2:]
		} else {
			plan.Overlap = ids[0].stored.Add(-overlapTime)
		}
		low := smallest(ids) - 1
		plan.Above = newestIDs{Own: low, Public: low}
	case before != nil && (!before.Assumed || before.Newest.max() > 0):
		plan.Above, plan.Overlap = before.Newest, before.Time.Add(-overlapTime)
	case b.cfg.StartFrom.set():
		if plan.Above, err = b.startFrom(ctx, plan.UpTo); err != nil {
			return err
		}
	default:
		plan.Above, plan.Unknown = plan.UpTo, true // nothing can be refilled
	}
	if r.Begin == nil && len(ids) == 0 {
		r.Begin = &beginning{Newest: r.Newest}
	}
	return nil
}

// idAt is a message id, and where and when it is stored.
type idAt struct {
	seq    uint64
	id     int64
	stored time.Time
}

func smallest(ids []idAt) int64 {
	return slices.MinFunc(ids, func(a, b idAt) int { return int(min(1, max(-1, a.id-b.id))) }).id
}

// newestHeld reads the ids of the newest heldWanted messages in the stream, oldest first; fewer if there are no more.
func (b *Bridge) newestHeld(ctx context.Context, info stream.Info, until uint64) (ids []idAt, err error) {
	newest, err := b.lastOn(ctx, b.messageSubject)
	if err != nil || newest == nil {
		return nil, err
	}
	for window := heldWindow; ; window *= 2 {
		from := stream.Start{Time: newest.Time.Add(-window)}
		all := from.Time.Before(info.FirstTime) || window > heldLongest
		if all {
			from = stream.Start{Seq: 1}
		}
		if ids, err = b.messageIDs(ctx, from, until); err != nil {
			return nil, err
		}
		if all || len(ids) >= heldWanted {
			return ids[max(0, len(ids)-heldWanted):], nil
		}
	}
}

// messageIDs reads the message ids stored from a place on, up to the message at until.
func (b *Bridge) messageIDs(ctx context.Context, from stream.Start, until uint64) (ids []idAt, err error) {
	err = b.scan(ctx, from, until, func(m *stream.Stored) {
		if id, ok := headerInt(m, HeaderMessageID); ok && m.Subject == b.messageSubject {
			ids = append(ids, idAt{m.Seq, id, m.Time})
		}
	}, func() { ids = ids[:0] })
	return ids, err
}

// scan gives f the headers of everything of the realm from a place on, up to the message at until. A server that does not show that message
// lags behind or was deposed, and what it shows is not all: it is asked again, and again is called before each new beginning. Only a message
// that is still not there a while later was deleted.
func (b *Bridge) scan(ctx context.Context, from stream.Start, until uint64, f func(*stream.Stored), again func()) error {
	for missing := 0; until > 0; {
		complete := false
		err := b.patiently(ctx, func() error {
			again()
			return b.stream.Scan(ctx, b.cfg.Realm.All(), from, until, true, func(m *stream.Stored) error {
				complete = complete || m.Seq == until
				f(m)
				return nil
			})
		})
		if err != nil || complete {
			return err
		}
		var m *stream.Stored
		if err := b.patiently(ctx, func() (err error) { m, err = b.stream.At(ctx, until); return err }); err != nil {
			return err
		}
		if m == nil {
			missing++
		}
		if missing > 1 {
			return nil
		}
		if err := sleep(ctx, walkPause); err != nil {
			return err
		}
	}
	return nil
}

// refill reads back from history what the gap left out, oldest first, and closes the gap. Begun anew after a crash, it passes over what the
// stream holds by then.
func (b *Bridge) refill(ctx context.Context, p place) error {
	r, err := b.recall(ctx, p)
	if err != nil {
		return err
	}
	closed := gapClosed{Record: recordGapClosed, OldQueueID: r.Previous, QueueID: r.QueueID, NotRecoverable: notRecoverable}
	if r.Refill == nil {
		closed.NotRefilled = &notRefilled{Reason: "the record that says which messages are missing is not in the stream any more"}
	} else {
		closed.Cause, closed.Since, closed.MissingEvents = r.Refill.Cause, r.Refill.Since, r.Refill.Missing
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
	err := b.scan(ctx, stream.Start{Seq: from}, p.last.Seq, func(m *stream.Stored) {
		if m.Subject != b.messageSubject {
			return
		}
		if id, ok := headerInt(m, HeaderMessageID); ok {
			held[id] = true
		}
		if header(m, HeaderOrigin) == originBackfill && header(m, HeaderQueueID) == r.QueueID {
			closed.Refilled++
		}
	}, func() { clear(held); closed.Refilled = 0 })
	if err != nil {
		return err
	}
	var since time.Time
	if b.cfg.RefillMaxAge > 0 {
		since = time.Now().Add(-b.cfg.RefillMaxAge)
	}
	passes := []*pass{{above: plan.Above.Own, upTo: plan.UpTo.Own, overlap: plan.Overlap}}
	if b.poller.Options.AllPublicStreams {
		passes = append(passes, &pass{public: true, above: plan.Above.Public, upTo: plan.UpTo.Public, overlap: plan.Overlap})
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
			if !plan.Since.IsZero() && !m.changed.Before(plan.Since.Truncate(time.Second)) { // Zulip counts whole seconds
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
	if plan.Unknown {
		cut("neither a message nor a record in the stream says up to which message it had come; --start-from can", 0)
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
		ids, err := b.messageIDs(ctx, stream.Start{Seq: r.Held.From}, r.Held.Until)
		if err != nil {
			return false, err
		}
		held := &heldSet{}
		for _, m := range ids {
			held.ids = append(held.ids, m.id)
		}
		slices.Sort(held.ids)
		b.held = held
	}
	return b.held.has(id), nil
}
