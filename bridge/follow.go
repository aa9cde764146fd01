package bridge

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// recordAge is how often the queue's record is written again, so that it never ages out of the stream.
const recordAge = 24 * time.Hour

// busyAnswers is how many answers in a row have to come at once before the idle clock counts as one that cannot be renewed: after an outage
// the first does too, in the quietest organization.
const busyAnswers = 20

// lookEvery is how often the newest message and the queue's record are looked at while all goes well.
const lookEvery = time.Minute

// follow polls the queue and stores what comes, until the stream has to be read again or ctx ends.
func (b *Bridge) follow(ctx context.Context, p place) error {
	r, err := b.recall(ctx, p)
	switch {
	case err != nil:
		return err
	case r.Site != b.cfg.Site:
		return &ConfigError{fmt.Sprintf("the stream holds events of %s under the realm name %s, and the configured site is %s: "+
			"two organizations must not share a name; give this one another with --realm, or use another stream",
			r.Site, b.cfg.Realm, b.cfg.Site)}
	case r.Account != b.cfg.Account:
		return b.openGap(ctx, p, fmt.Sprintf("the account changed from %s to %s, and a queue belongs to its account", r.Account, b.cfg.Account), nil)
	case r.Held != nil && r.Held.Until == 0:
		if err := b.keep(ctx, p, true); err != nil {
			return err
		}
	}
	if !bytes.Equal(r.Options, b.poller.Options.JSON()) {
		// Only a start changes over: two instances with different options would do nothing else.
		if !b.resumed {
			return b.changeOver(ctx, p, whyOptions)
		}
		if b.once("options of " + r.QueueID) {
			b.log.Warn().Str("queue", r.QueueID).Msg("another instance registered this queue with other options than ours: following it as it is")
		}
	}
	if err := b.loadRejected(ctx, p); err != nil {
		return err
	}
	if !b.resumed {
		b.resumed = true
		b.retireOld(ctx)
		b.log.Info().Str("queue", p.at.Queue).Int64("event_id", p.at.Last).Msg("resuming the queue behind the last event stored")
	}
	keepEvery, err := b.recordAge(ctx)
	if err != nil {
		return err
	}
	looked, busy := time.Now(), 0
	for first := true; ; first = false {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if b.keptAt.IsZero() || time.Since(b.keptAt) > keepEvery {
			if err := b.keep(ctx, p, first); err != nil {
				return err
			}
		}
		if time.Since(looked) > lookEvery {
			// A purge, or a newest message that somebody deleted, does not disturb our writes: only a look shows it.
			looked = time.Now()
			if m, err := b.stream.At(ctx, b.knownSeq); err == nil && m == nil {
				return errMoved
			}
			if m, err := b.stream.LastOn(ctx, b.cfg.Realm.Record(subjects.Queue)); err == nil && m == nil {
				b.keptAt = time.Time{} // the stream's limits took the queue's record
				continue
			}
		}
		if busy >= busyAnswers && b.poller.ClockOverdue() {
			return b.changeOver(ctx, p, whyChangedOver)
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
			// A poll that waited and ended empty: somebody else polls this queue. The stream knows who is ahead.
			if b.once("polled besides: " + b.known.Queue) {
				b.log.Warn().Str("queue", b.known.Queue).Msg("a poll ended without events: another client polls this queue too, or it was just dropped")
			}
			if err := sleep(ctx, time.Second+rand.N(time.Second)); err != nil {
				return err
			}
			return errMoved
		}
		b.losses = 0
		if !batch.More {
			if busy++; batch.Waited {
				busy = 0
			}
		}
		if err := b.store(ctx, batch); err != nil {
			return err
		}
		for i := range batch.Events {
			b.largest = max(b.largest, batch.Events[i].MessageID)
		}
	}
}

// recall reads the record of the queue that the place names, and tells the poller of the queue. A record that has aged out is replaced by
// what is configured, with a warning.
func (b *Bridge) recall(ctx context.Context, p place) (*queueRecord, error) {
	if p.phase == phaseRefill && b.record != nil && b.record.Why == whyKept {
		b.record = nil // another instance found that the stream had lost messages, and recorded the same queue anew
	}
	known := b.record
	r, err := b.recordOf(ctx, p.at.Queue)
	if err != nil {
		return nil, err
	}
	if r == nil {
		b.log.Warn().Str("queue", p.at.Queue).Msg("the record of this queue is not in the stream any more: taking it as registered with the options " +
			"and the life that are configured")
		r = &queueRecord{Record: recordQueue, QueueID: p.at.Queue, Site: b.cfg.Site, Account: b.cfg.Account, Options: b.poller.Options.JSON(),
			Assumed: true, LifeSeconds: cmp.Or(b.poller.Options.Life, poller.DefaultLife).Seconds()}
	}
	b.record = r
	if r != known {
		// The newest message came in answer to a poll that began before it: the idle clock was set then at the latest, if that poll waited.
		b.poller.Follow(poller.Queue{ID: r.QueueID, Life: r.life(), Patience: r.patience(), Renewed: p.last.Time})
	}
	return r, nil
}

// recordOf reads the newest record of a queue; nil if the stream does not have it. What this process wrote or read before is not read again.
// One that is not there is looked for again a while later, since a leader that was deposed lacks the newest messages.
func (b *Bridge) recordOf(ctx context.Context, queue string) (*queueRecord, error) {
	if queue == "" {
		return nil, nil
	}
	if b.record != nil && b.record.QueueID == queue {
		return b.record, nil
	}
	for again := false; ; again = true {
		m, err := b.lastOn(ctx, b.cfg.Realm.Record(subjects.Queue))
		if err != nil {
			return nil, err
		}
		if r := decode[queueRecord](m); r != nil && r.QueueID == queue {
			if r.Begin != nil && r.Begin.Seq == 0 {
				r.Begin.Seq = m.Seq
			}
			if r.Held != nil && r.Held.Until == 0 && r.Refill == nil {
				r.Held.Until = m.Seq
			}
			return r, nil
		}
		if again {
			return nil, nil
		}
		if err := sleep(ctx, walkPause); err != nil {
			return nil, err
		}
	}
}

// lastOn is Stream.LastOn with patience.
func (b *Bridge) lastOn(ctx context.Context, subject string) (m *stream.Stored, err error) {
	err = b.patiently(ctx, func() (err error) { m, err = b.stream.LastOn(ctx, subject); return err })
	return m, err
}

// patiently calls f until it succeeds, waiting for NATS as long as it takes.
func (b *Bridge) patiently(ctx context.Context, f func() error) error {
	for wait := newRetry(); ; {
		err := f()
		if err == nil {
			b.outage.over(b.log)
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := b.cannotStore(ctx, err); err != nil {
			return err
		}
		if err := wait.pause(ctx); err != nil {
			return err
		}
	}
}

// recordAge is how long the queue's record may stand before it is written again: a day, or a quarter of what the stream keeps.
func (b *Bridge) recordAge(ctx context.Context) (time.Duration, error) {
	info, err := b.info(ctx)
	if err != nil || info.MaxAge == 0 {
		return recordAge, err
	}
	return min(recordAge, info.MaxAge/4), nil
}

// info is Stream.Info with patience.
func (b *Bridge) info(ctx context.Context) (info stream.Info, err error) {
	err = b.patiently(ctx, func() (err error) { info, err = b.stream.Info(ctx); return err })
	return info, err
}

// keep writes the record of the queue again. At the start it is the first write after the read, so that no poll leaves on a position that
// a deposed leader told us.
func (b *Bridge) keep(ctx context.Context, p place, read bool) error {
	r := *b.record
	r.Why, r.Previous, r.Bridge, r.Time = whyKept, "", b.cfg.Version, time.Now().UTC()
	if r.Held != nil && r.Held.Until == 0 {
		// The record that closed the gap is the newest message. Whoever goes on from it writes its sequence down before anything else, and
		// takes it for true when that write is accepted.
		held := *r.Held
		held.Until = p.last.Seq
		r.Held = &held
	}
	r.Newest = newestIDs{Own: max(r.Newest.Own, b.largest), Public: max(r.Newest.Public, b.largest)}
	e, err := b.queueEntry(&r, b.known.Last)
	if err != nil {
		return err
	}
	if read {
		err = b.put(ctx, p, e)
	} else {
		gctx, cancel := b.graceful(ctx)
		defer cancel()
		err = b.append(gctx, []entry{e}, phasePoll)
	}
	if err == nil {
		b.record, b.keptAt = &r, time.Now()
	}
	return err
}

// askNewest asks history for its newest message in each pass.
func (b *Bridge) askNewest(ctx context.Context) (n newestIDs, err error) {
	if n.Own, err = newestMessage(ctx, b.poller, false); err != nil {
		return n, err
	}
	if b.poller.Options.AllPublicStreams {
		n.Public, err = newestMessage(ctx, b.poller, true)
	}
	return n, err
}

// loadRejected reads which events were rejected at this position without moving it, so that a restart does not reject them again. Such
// records stand behind the event of the position, with those of starts between them.
func (b *Bridge) loadRejected(ctx context.Context, p place) error {
	b.rejected = rejections{at: p.at, seen: map[string]bool{}}
	for m := p.last; m != nil; {
		if here, ok := placeOf(m); !ok || here.at != p.at {
			return nil
		}
		switch header(m, HeaderRecord) {
		case recordRejected:
			if body := decode[rejectedBody](m); body != nil {
				b.rejected.seen[body.SHA256] = true
			}
		case recordQueue:
		default:
			return nil
		}
		seq := m.Seq - 1
		if seq == 0 {
			return nil
		}
		if err := b.patiently(ctx, func() (err error) { m, err = b.stream.At(ctx, seq); return err }); err != nil {
			return err
		}
	}
	return nil
}
