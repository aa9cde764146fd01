package bridge

import (
	"bytes"
	"cmp"
	"context"
	"math/rand/v2"
	"time"

	"zulip-nats/events"
	"zulip-nats/logevent"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// recordAge is how often the queue's record is written again, so that it never ages out
// of the stream.
const recordAge = 24 * time.Hour

// busyAnswers is how many answers in a row have to come at once before the idle clock
// counts as one that cannot be renewed: after an outage the first does too, in the
// quietest organization.
const busyAnswers = 20

const (
	// lookEvery is how often the queue's record is looked for while all goes well.
	lookEvery = time.Minute
	// checkEvery is how often at least the stream's settings are read while events are
	// acknowledged. Mostly the server tells of an edit at once (stream.Edited).
	checkEvery = 10 * time.Second
)

// follow polls the queue and stores what comes, until the stream has to be read again or
// ctx ends. A change-over registers a queue, and has until whole ends.
func (b *Bridge) follow(whole, ctx context.Context, p resumePoint) error {
	if done, err := b.resume(whole, p); done || err != nil {
		return err
	}
	keepEvery, err := b.recordAge(ctx)
	if err != nil {
		return err
	}
	b.eraseAgain()
	if err := b.takeUpState(ctx, keepEvery); err != nil {
		return err
	}
	looked, busy := time.Now(), 0
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if b.refreshedAt.IsZero() || time.Since(b.refreshedAt) > keepEvery {
			if err := b.refresh(ctx, b.refreshed()); err != nil {
				return err
			}
		}
		if time.Since(looked) > lookEvery {
			looked = time.Now()
			b.look(ctx)
			if b.refreshedAt.IsZero() {
				continue
			}
		}
		// The next poll acknowledges: from here on the world must be as we think it is.
		if err := b.recheck(ctx); err != nil {
			return err
		}
		b.sweep(ctx, b.cursor.Seq)
		if err := b.erase(ctx); err != nil {
			return err
		}
		if busy >= busyAnswers && b.poller.ClockOverdue() && b.unlike == "" {
			return b.changeOver(whole, events.WhyChangedOver)
		}
		if b.unlike == "" && b.stateDue(keepEvery) {
			return b.changeOver(whole, events.WhyState)
		}
		batch, err := b.poller.Next(ctx, b.known)
		if refused := asRefused(err); refused != nil {
			if alive, err := b.isItLost(ctx, refused); !alive {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if len(batch.Events) == 0 {
			// A poll that waited and ended empty: somebody else polls this queue. The
			// stream knows who is ahead.
			if b.once("polled besides: " + b.known.Queue) {
				logevent.QueueShared.Warn(b.log).Str("queue", b.known.Queue).
					Msg("a poll ended without events: another client polls this queue too, or it was just dropped")
			}
			if err := sleep(ctx, time.Second+rand.N(time.Second)); err != nil {
				return err
			}
			return errMoved
		}
		b.losses = 0
		if batch, err = b.store(ctx, batch, true); err != nil {
			return err
		}
		if !batch.More {
			if busy++; batch.Waited {
				busy = 0
			}
		}
		if account := b.account(); b.record.Account != account {
			// Zulip knows the account by another name: the queue was found to be its own.
			logevent.AccountRenamed.Info(b.log).Str("was", b.record.Account).Str("account", account).
				Msg("the account's e-mail address changed, and the queue is still its own")
			r := *b.record
			r.Account = account
			b.record, b.refreshedAt = &r, time.Time{}
		}
	}
}

// resume takes up the queue that the place names: it may be another organization's, or
// registered with other options; what the stream holds for it may still have to be
// written down. done: the stream has to be read again.
func (b *Bridge) resume(ctx context.Context, p resumePoint) (done bool, err error) {
	r, err := b.loadRecord(ctx, p)
	switch {
	case err != nil:
		return false, err
	case r.Held != nil && r.Held.Until == 0:
		if err := b.closeHeld(ctx, p); err != nil {
			return false, err
		}
	}
	if err := b.loadRejected(ctx, p); err != nil {
		return false, err
	}
	if options := b.poller.Options.JSON(); !bytes.Equal(r.Options, options) && b.unlike != string(options) {
		// Only a start changes over: two instances with different options would do
		// nothing else.
		if !b.resumed {
			return true, b.changeOver(ctx, events.WhyOptions)
		}
		if b.once("options of " + r.QueueID) {
			logevent.OptionsDiffer.Warn(b.log).Str("queue", r.QueueID).
				Msg("another instance registered this queue with other options than ours: following it as it is")
		}
	}
	if !b.resumed {
		b.follows()
		if b.cfg.StartFrom.set() {
			logevent.StartFromIgnored.Info(b.log).
				Msg("--start-from counts for the very first start only, and the stream has begun already")
		}
		logevent.QueueResumed.Info(b.log).Str("queue", p.at.Queue).Int64("event_id", p.at.Last).
			Msg("resuming the queue behind the last event stored")
	}
	return false, nil
}

// follows tells, once, that a queue is followed.
func (b *Bridge) follows() {
	b.resumed = true
	if tell := b.cfg.Following; tell != nil {
		b.cfg.Following = nil
		tell()
	}
}

// look sees what our own writes do not: limits that took the queue's record, rejections
// that were not logged one by one.
func (b *Bridge) look(ctx context.Context) {
	b.rejected.over(b.log)
	if m, err := newestOurs(ctx, b.stream, b.realm.Record(subjects.Queue)); err == nil && m == nil {
		b.refreshedAt = time.Time{} // it is written again
	}
}

// loadRecord reads the record of the queue that the place names, and tells the poller of the
// queue. A record that the stream's limits took is replaced by what is configured, with a
// warning.
func (b *Bridge) loadRecord(ctx context.Context, p resumePoint) (*events.Queue, error) {
	if p.phase == phaseRefill {
		b.record = nil // it says how far the refill is
	}
	known := b.record
	r, err := b.recordOf(ctx, p)
	if err != nil {
		return nil, err
	}
	if r == nil {
		if err := b.laidOut(ctx); err != nil {
			return nil, err
		}
		logevent.QueueRecordGone.Warn(b.log).Str("queue", p.at.Queue).
			Msg("the record of this queue is not in the stream any more: taking it as registered with the options " +
				"and the life that are configured")
		r = b.assume(p)
	}
	if r, err = b.belongs(ctx, r); err != nil {
		return nil, err
	}
	b.record = r
	if r != known {
		b.held = nil
		if r.Previous != r.QueueID {
			b.leave(r.Previous)
		}
		// When a poll last waited is not known: no clock but Zulip's own would tell.
		b.poller.Follow(poller.Queue{ID: r.QueueID, Life: r.Life(), Patience: r.Patience()})
	}
	return r, nil
}

// assume makes a record of a queue whose own is gone. What can be read off the newest
// message is.
func (b *Bridge) assume(p resumePoint) *events.Queue {
	account := b.account()
	unknown := events.MessageIDs{Own: events.Unknown, Public: events.Unknown}
	r := &events.Queue{Record: events.RecordQueue, QueueID: p.at.Queue, Site: b.cfg.Site, Account: account,
		Options: b.poller.Options.JSON(), Subjects: layoutName(b.realm),
		Assumed: true, LifeSeconds: cmp.Or(b.poller.Options.Life, poller.DefaultLife).Seconds(), Newest: unknown}
	if p.phase == phasePoll && p.at.Last < 0 {
		// Nothing was polled yet: what the stream holds of messages, it held before.
		r.Held = &events.Held{From: 1, Until: p.last.Seq, UpToID: events.Unknown}
	}
	if id, ok := headerInt(p.last, events.HeaderMessageID); ok && p.phase == phaseRefill {
		// A refill goes by id, so it has come as far as its newest message.
		o := b.poller.Options
		r.Held = &events.Held{From: 1, UpToID: events.Unknown}
		r.Refill = &events.Refill{Own: receives(o, false), Public: receives(o, true), Narrow: o.Narrow,
			Above: events.MessageIDs{Own: id, Public: id}, UpTo: unknown,
			Done: id, Cause: "the record that says why is not in the stream any more",
			Until: time.Now().Add(r.Life() / 4)}
	}
	return r
}

// recordOf reads the newest record of the queue that the place names; nil if the stream
// does not have it. What this process wrote or read before is not read again. A leader
// that was deposed may tell of an older one: the newest messages are read besides.
//
// A gap may be open for a queue of which the stream has lost all ([Bridge.tailLost]). Then
// its record is in that of the gap; and if it is not there either, the newest record of
// another queue says where the story of this stream began.
func (b *Bridge) recordOf(ctx context.Context, p resumePoint) (*events.Queue, error) {
	if p.at.Queue == "" {
		return nil, nil
	}
	if b.record != nil && b.record.QueueID == p.at.Queue {
		return b.record, nil
	}
	gap := p.phase == phaseRegister
	if opened := decode[events.GapOpened](p.last); gap && opened != nil {
		if r := decode[events.Queue](&stream.Stored{Data: opened.QueueRecord}); r != nil {
			return r, nil
		}
	}
	subject := b.realm.Record(subjects.Queue)
	var m *stream.Stored
	err := b.patiently(ctx, func() (err error) {
		if m, err = newestOurs(ctx, b.stream, subject); err != nil {
			return err
		}
		newer := uint64(0)
		err = b.recent(ctx, p.last, func(h *stream.Stored) error {
			if _, ours := resumePointOf(h); ours && h.Subject == subject && (m == nil || h.Seq > m.Seq) {
				newer = max(newer, h.Seq)
			}
			return nil
		})
		if err != nil || newer == 0 {
			return err
		}
		if m, err = b.stream.At(ctx, newer); err == nil && m == nil {
			return errBehind
		}
		return err
	})
	r := decode[events.Queue](m)
	if err != nil || r == nil || r.QueueID != p.at.Queue && !gap {
		return nil, err
	}
	if r.Begin != nil && r.Begin.Seq == 0 {
		r.Begin.Seq = m.Seq
	}
	if r.Held != nil && r.Held.Until == 0 && r.Refill == nil {
		r.Held.Until = m.Seq
	}
	return r, nil
}

// recordAge is how long the queue's record may stand before it is written again: a day,
// or a quarter of what the stream keeps.
func (b *Bridge) recordAge(ctx context.Context) (time.Duration, error) {
	info, err := b.info(ctx)
	if err != nil || info.MaxAge == 0 {
		return recordAge, err
	}
	return min(recordAge, info.MaxAge/4), nil
}

// refreshed is the record of the queue as it is written again: at a start, so that no poll
// leaves on a position that a deposed leader told us; once a day, so that it does not age
// out; and behind messages of others.
func (b *Bridge) refreshed() *events.Queue {
	r := *b.record
	r.Why, r.Bridge, r.Time = events.WhyKept, b.cfg.Version, time.Now().UTC()
	if r.Refill == nil && !b.isLeftover(r.Previous) { // the record that closes a gap names it
		r.Previous = ""
	}
	grow := func(n int64) int64 {
		if n == events.Unknown && b.largest == 0 {
			return n
		}
		return max(n, b.largest)
	}
	r.Newest = events.MessageIDs{Own: grow(r.Newest.Own), Public: grow(r.Newest.Public)}
	return &r
}

// refresh writes the record of the queue again, in the polling phase.
func (b *Bridge) refresh(ctx context.Context, r *events.Queue) error {
	e, err := b.queueEntry(r, b.known.Last, events.NextPoll)
	if err == nil {
		err = b.add(ctx, phasePoll, e)
	}
	if err == nil {
		b.record, b.refreshedAt = r, time.Now()
	}
	return err
}

// closeHeld writes down what the stream held before the queue's first poll. The record
// that closed the gap is the newest message. Whoever goes on from it writes its sequence
// down before anything else, and takes it for true when that write is accepted.
func (b *Bridge) closeHeld(ctx context.Context, p resumePoint) error {
	r := b.refreshed()
	held := *r.Held
	held.Until = p.last.Seq
	r.Held = &held
	if r.Refill != nil {
		r.Refill = nil
		m := p.last
		if header(m, events.HeaderRecord) != events.RecordGapClosed {
			if err := b.patiently(ctx, func() (err error) {
				m, err = newestOurs(ctx, b.stream,
					b.realm.Record(subjects.Gap))
				return err
			}); err != nil {
				return err
			}
		}
		if closed := decode[events.GapClosed](m); closed != nil && closed.QueueID == r.QueueID {
			r.Cut = withCut(r.Cut, closed.NotRefilled)
		}
	}
	return b.refresh(ctx, r)
}

// loadRejected reads which events were rejected at this position without moving it, so
// that a restart does not reject them again. They are the newest records of their kind.
func (b *Bridge) loadRejected(ctx context.Context, p resumePoint) error {
	b.rejected.at, b.rejected.seen = p.at, map[string]bool{}
	subject := b.realm.Record(subjects.Rejected)
	newest, err := b.lastOn(ctx, subject)
	if err != nil {
		return err
	}
	read := uint64(0) // up to where they were read
	for back, before := uint64(firstLookBack), newest == nil; !before; back *= lookBackGrows {
		read, before = newest.Seq, back >= newest.Seq // all of them are read
		last := uint64(0)
		err := b.patiently(ctx, func() error {
			clear(b.rejected.seen)
			return b.stream.Scan(ctx, subject, stream.Start{Seq: newest.Seq - min(newest.Seq, back)}, newest.Seq, false,
				func(m *stream.Stored) error {
					last = m.Seq
					before = !b.recallRejected(m, p) || before
					return nil
				})
		})
		if err != nil {
			return err
		}
		if last != newest.Seq {
			return errMoved // a deposed leader lacks it, or it is there no more
		}
	}
	// A deposed leader may have told of an older one.
	return b.patiently(ctx, func() error {
		first, last := uint64(0), uint64(0)
		err := b.recent(ctx, p.last, func(m *stream.Stored) error {
			if m.Subject == subject && m.Seq > read {
				if last = m.Seq; first == 0 {
					first = m.Seq
				}
			}
			return nil
		})
		if err != nil || last == 0 {
			return err
		}
		seen := uint64(0)
		err = b.stream.Scan(ctx, subject, stream.Start{Seq: first}, last, false, func(m *stream.Stored) error {
			seen = m.Seq
			b.recallRejected(m, p)
			return nil
		})
		if err == nil && seen != last {
			return errBehind
		}
		return err
	})
}

// recallRejected takes note of a record of a rejected event, if it is one of this
// position.
func (b *Bridge) recallRejected(m *stream.Stored, p resumePoint) bool {
	here, ok := resumePointOf(m)
	body := decode[events.Rejected](m)
	if !ok || body == nil || here.at != p.at {
		return false
	}
	b.rejected.seen[body.SHA256] = true
	return true
}
