package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"zulip-nats/events"
	"zulip-nats/logevent"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

const (
	// refillPage is how many messages one request asks for: few large pages, since the
	// budget for history is a sliding minute.
	refillPage = 500
	// A chunk of refilled messages. Between two of them the queue's record is written
	// again, with how far the refill has come: the stream's limits may take the one
	// before.
	chunkMessages = 250
	chunkBytes    = 8 << 20
	// tooLargeMost is how many messages a gap-closed record names that no store takes,
	// changedKept how many changed ones a queue's record names while the refill runs.
	tooLargeMost = 50
	changedKept  = 50
)

// refill reads back from history what the gap left out, oldest first, and closes the gap.
// Begun anew after a crash, it goes on where it was, and passes over what the stream
// holds by then.
func (b *Bridge) refill(ctx context.Context, p resumePoint) error {
	r, err := b.loadRecord(ctx, p)
	if err != nil {
		return err
	}
	closed := events.GapClosed{Record: events.RecordGapClosed, OldQueueID: r.Previous, QueueID: r.QueueID,
		NotRecoverable: notRecoverable}
	b.report.refills(r.Refill)
	if r.Refill == nil {
		closed.NotRefilled = &events.NotRefilled{Reason: "the record that says which messages are missing is not in " +
			"the stream any more"}
	} else {
		closed.Cause, closed.Since, closed.MissingEvents, closed.NotCompared = r.Refill.Cause, r.Refill.Since,
			r.Refill.Missing, r.Refill.NotCompared
		if err := b.refillMessages(ctx, p, r, &closed); err != nil {
			return err
		}
	}
	closed.Closed = time.Now().UTC()
	var e entry
	for {
		if e, err = b.recordEntry(events.RecordGapClosed, subjects.Gap, b.known, closed); err != nil {
			return err
		}
		n := len(closed.Changed)
		if n == 0 || n <= changedMost && b.stream.Fits(&e.msg) {
			break
		}
		keep := min(n/2, changedMost)
		closed.ChangedMore += n - keep
		closed.Changed = closed.Changed[:keep]
	}
	if err := b.add(ctx, phaseRefill, e); err != nil {
		return err
	}
	name := logevent.GapClosed
	if closed.Cause == causePast {
		name = logevent.StartFromStored
	}
	event := name.Info(b.log)
	if closed.NotRefilled != nil {
		event = name.Warn(b.log).Str("not_refilled", closed.NotRefilled.Reason)
	}
	event.Int("messages_refilled", closed.Refilled).Int("changed_meanwhile", len(closed.Changed)+closed.ChangedMore).
		Str("subject", e.msg.Subject)
	if closed.Cause == causePast {
		event.Msg("what --start-from asked for is stored")
	} else {
		event.Str("gap", "closed").Str("queue", closed.OldQueueID).Msg("the gap is closed")
	}
	return nil
}

// reasonUnknown begins the reason where nothing says which messages are missing.
const reasonUnknown = "neither a message nor a record in the stream says up to which message it had come"

// refillMessages stores the messages that the plan names and the stream does not hold,
// and says in closed what it did. What an earlier try has stored is passed over like
// everything else that the stream holds.
func (b *Bridge) refillMessages(ctx context.Context, p resumePoint, r *events.Queue, closed *events.GapClosed) error {
	plan := r.Refill
	cut := func(reason string, above int64) {
		closed.NotRefilled = &events.NotRefilled{Reason: reason, AboveID: max(above, 0), UpToID: max(upTo(plan), 0)}
	}
	low := func() int64 {
		if plan.Overlap > 0 {
			return plan.OverlapAbove
		}
		if plan.Own && plan.Public {
			return min(plan.Above.Own, plan.Above.Public)
		}
		return plan.Above.Own
	}
	switch {
	case !plan.Own && !plan.Public:
		return nil // the queue that was lost took no messages
	case b.cfg.RefillMaxMessages < 0:
		cut("refilling is switched off", max(low(), plan.Done))
		return nil
	case slices.Contains(b.poller.Options.ExcludeTypes, "message"):
		cut("messages are left out by --exclude-types", max(low(), plan.Done))
		return nil
	case plan.Unknown:
		cut(reasonUnknown+"; --start-from can", 0)
		return nil
	}
	held, err := b.heldBy(ctx, p, r, closed)
	if err != nil {
		return err
	}
	deleted, err := b.toldDeleted(ctx, 1, p.last)
	if err != nil {
		return err
	}
	var passes []*pass
	if plan.Own {
		passes = append(passes, newPass(query{narrow: plan.Narrow}, plan.Above.Own, plan.UpTo.Own, plan))
	}
	if plan.Public {
		public := query{public: true, narrow: plan.Narrow}
		passes = append(passes, newPass(public, plan.Above.Public, plan.UpTo.Public, plan))
	}
	logevent.RefillStarted.Info(b.log).Interface("above_message_id", plan.Above).
		Interface("up_to_message_id", plan.UpTo).Msg("reading messages back from history")
	since := int64(0)
	if b.cfg.RefillMaxAge > 0 {
		since = time.Now().Add(-b.cfg.RefillMaxAge).Unix()
	}
	limited, cancel := context.WithDeadline(ctx, plan.Until)
	defer cancel()
	var chunk []entry
	size, last, stored, tooOld := 0, max(low(), plan.Done), 0, plan.TooOld
	// Up to where the stream holds it: a chunk may be stored in part, and its record
	// comes first.
	found := plan.Found
	done, doneTooOld, doneFound := plan.Done, plan.TooOld, found
	flush := func() error {
		if len(chunk) == 0 {
			return nil
		}
		record := b.record
		if stored > 0 { // the queue's record ages with each chunk
			progress := *plan
			progress.Done, progress.Refilled, progress.TooOld = done, closed.Refilled, doneTooOld
			progress.Found = shortened(doneFound)
			again := b.refreshed()
			again.Refill = &progress
			e, err := b.queueEntry(again, p.at.Last, events.NextRefill)
			if err != nil {
				return err
			}
			chunk, record = append([]entry{e}, chunk...), again
			closed.Refilled--
		}
		if err := b.recheck(ctx); err != nil {
			return err
		}
		err := b.add(ctx, phaseRefill, chunk...)
		b.record = record
		closed.Refilled += len(chunk)
		stored += len(chunk)
		done, doneTooOld, doneFound = last, tooOld, found
		chunk, size = chunk[:0], 0
		return err
	}
	for closed.NotRefilled == nil {
		m, err := nextPast(limited, b.poller, passes)
		for _, h := range passes {
			found.Hidden = cmp.Or(found.Hidden, h.hidden)
		}
		switch refusal := permanent(err); {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case limited.Err() != nil:
			cut("half of the new queue's idle time was over, and nothing renews its clock before it is polled", last)
			continue
		case refusal != nil:
			cut("Zulip refuses to show its history: "+refusal.Error(), last)
			continue
		case err != nil:
			return err
		}
		if m == nil {
			break
		}
		switch {
		case m.fault != "":
			if found.Unreadable++; found.Unreadable == 1 {
				logevent.HistoryUnreadable.Warn(b.log).Str("reason", m.fault).Int64("behind_message_id", m.id).
					Msg("a message of history cannot be read, and so not refilled: the record of the gap counts it")
			}
			continue
		case deleted[m.id]:
			last = m.id
			continue
		case held[m.id]:
			if last = m.id; plan.SentSince > 0 && m.changed >= plan.SentSince {
				found.Changed = append(found.Changed, m.id)
			}
			continue
		case wasCut(r.Cut, m.id):
			last = m.id
			continue
		case m.recipient != poller.RecipientChannel && (b.poller.Options.NoDirectMessages || plan.NoDirect ||
			m.id <= r.NoDirectUpTo):
			last = m.id
			found.Excluded++
			continue
		case m.sent < since:
			last = m.id
			tooOld++
			continue
		case b.cfg.RefillMaxMessages > 0 && closed.Refilled+len(chunk) >= b.cfg.RefillMaxMessages:
			cut(fmt.Sprintf("the limit of %d messages was reached", b.cfg.RefillMaxMessages), m.id-1)
			continue
		}
		e, err := b.refilled(limited, p.at, m)
		if err != nil && limited.Err() != nil && ctx.Err() == nil {
			continue // the time is over
		}
		if errors.Is(err, errNotCarried) {
			last = m.id
			if found.TooLarge = append(found.TooLarge, m.id); len(found.TooLarge) == 1 {
				logevent.RefillTooLarge.Warn(b.log).Err(err).Int64("message_id", m.id).
					Msg("a message of the gap is too large for a message, and the object store does not take it: the " +
						"record of the gap names it")
			}
			continue
		}
		if err != nil {
			return err
		}
		if len(chunk) >= chunkMessages || size >= chunkBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		b.notePlace(m.id, m.recipient, m.channel)
		chunk = append(chunk, e)
		held[m.id] = true
		last = m.id
		size += len(m.event)
	}
	if err := flush(); err != nil {
		return err
	}
	closed.Changed, closed.ChangedMore, closed.Excluded = found.Changed, found.ChangedMore, found.Excluded
	left := func(why string) *events.NotRefilled {
		if closed.NotRefilled == nil {
			closed.NotRefilled = &events.NotRefilled{Reason: why}
		} else {
			closed.NotRefilled.Reason += "; besides: " + why
		}
		return closed.NotRefilled
	}
	if h := found.Hidden; h != nil {
		whole := closed.NotRefilled == nil
		n := left("the organization's plan hides what is older")
		if n.AboveID = min(n.AboveID, h.Above); whole {
			n.AboveID, n.UpToID = h.Above, h.UpTo
		}
	}
	if found.Unreadable > 0 {
		left("no message that can be read").Unreadable = found.Unreadable
	}
	if len(found.TooLarge) > 0 {
		named := shortened(found)
		n := left("too large for a message, and not taken by the object store")
		n.TooLarge, n.TooLargeMore = named.TooLarge, named.TooLargeMore
	}
	if tooOld > 0 {
		n := left("older than the greatest age to be refilled")
		n.TooOld, n.OlderThan = tooOld, time.Unix(since, 0).UTC().Format(time.RFC3339)
	}
	return nil
}

// shortened is what a queue's record has of what was found.
func shortened(f events.Found) events.Found {
	if more := len(f.Changed) - changedKept; more > 0 {
		f.Changed, f.ChangedMore = f.Changed[:changedKept], f.ChangedMore+more
	}
	if more := len(f.TooLarge) - tooLargeMost; more > 0 {
		f.TooLarge, f.TooLargeMore = f.TooLarge[:tooLargeMost], f.TooLargeMore+more
	}
	return f
}

// heldBy reads which messages the stream holds of those that the refill may come past,
// and counts in closed what it has refilled already.
func (b *Bridge) heldBy(ctx context.Context, p resumePoint, r *events.Queue,
	closed *events.GapClosed) (map[int64]bool, error) {
	held := map[int64]bool{}
	from := uint64(1)
	if r.Held != nil {
		from = r.Held.From
	}
	err := b.storedMessages(ctx, from, p.last, func(m *stream.Stored, id int64) {
		if !held[id] && id > r.Refill.Done && header(m, events.HeaderOrigin) == events.OriginBackfill &&
			header(m, events.HeaderQueueID) == r.QueueID {
			closed.Refilled++
		}
		held[id] = true
	}, func() { clear(held); closed.Refilled = r.Refill.Refilled })
	return held, err
}

// wasCut says whether a message was named as not refilled in an earlier gap: that stands.
func wasCut(cut []events.Range, id int64) bool {
	return slices.ContainsFunc(cut, func(c events.Range) bool { return id > c.Above && id <= c.UpTo })
}

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

// refilled makes what is stored for a message from history: no event of a queue, so it
// has no event id but the position.
func (b *Bridge) refilled(ctx context.Context, at poller.Position, m *pastMessage) (entry, error) {
	subject, err := b.realm.Event("message", placeOfMessage(m.recipient, m.channel))
	if err != nil {
		return entry{}, err
	}
	e := entry{after: at, tally: tallyRefilled,
		msg: stream.Message{Subject: subject, Data: m.event, Headers: []stream.Header{
			{Key: events.HeaderQueueID, Value: at.Queue},
			{Key: events.HeaderPosition, Value: itoa(at.Last)},
			{Key: events.HeaderEventType, Value: "message"},
			{Key: events.HeaderOrigin, Value: events.OriginBackfill},
			{Key: events.HeaderWriter, Value: b.writer},
			{Key: events.HeaderMessageID, Value: itoa(m.id)},
		}}}
	e.msg.Headers = appendPlace(e.msg.Headers, m.recipient, m.channel)
	if b.cfg.CloudEvents {
		e.msg.Headers = append(e.msg.Headers, b.cloudHeaders(e.msg.Headers, events.CloudTypeEvent+"message", m.sent)...)
	}
	if b.stream.Fits(&e.msg) {
		return e, nil
	}
	return b.claimCheck(ctx, e, fmt.Sprintf("message-%d", m.id), phaseRefill)
}
