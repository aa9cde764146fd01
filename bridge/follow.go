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

// follow polls the queue and stores what comes, until the stream has to be read again or ctx ends.
func (b *Bridge) follow(ctx context.Context, p place) error {
	if err := b.recall(ctx, p); err != nil {
		return err
	}
	switch r := b.record; {
	case r.Site != b.cfg.Site:
		return &ConfigError{fmt.Sprintf("the stream holds events of %s under the realm name %s, and the configured site is %s: "+
			"two organizations must not share a name; give this one another with --realm, or use another stream",
			r.Site, b.cfg.Realm, b.cfg.Site)}
	case r.Account != b.cfg.Account:
		return b.openGap(ctx, p, fmt.Sprintf("the account changed from %s to %s, and a queue belongs to its account", r.Account, b.cfg.Account), nil)
	case !bytes.Equal(r.Options, b.poller.Options.JSON()):
		return b.changeOver(ctx, p, whyOptions)
	}
	if err := b.loadRejected(ctx, p); err != nil {
		return err
	}
	if b.keptAt.IsZero() {
		b.retireOld(ctx)
		b.log.Info().Str("queue", p.at.Queue).Int64("event_id", p.at.Last).Msg("resuming the queue behind the last event stored")
	}
	for first := true; ; first = false {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if b.keptAt.IsZero() || time.Since(b.keptAt) > b.recordAge(ctx) {
			if err := b.keep(ctx, p, first); err != nil {
				return err
			}
		}
		if b.poller.ClockOverdue() {
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
			b.log.Info().Str("queue", b.known.Queue).Msg("another client polls this queue too")
			if err := sleep(ctx, time.Second+rand.N(time.Second)); err != nil {
				return err
			}
			return errMoved
		}
		b.losses = 0
		if err := b.store(ctx, batch); err != nil {
			return err
		}
	}
}

// recall reads the record of the queue that the place names. A record that has aged out is replaced by what is configured, with a warning.
func (b *Bridge) recall(ctx context.Context, p place) error {
	if b.record != nil && b.record.QueueID == p.at.Queue && p.phase == phasePoll {
		return nil
	}
	m, err := b.lastOn(ctx, b.cfg.Realm.Record(subjects.Queue))
	if err != nil {
		return err
	}
	r := decode[queueRecord](m)
	if r == nil || r.QueueID != p.at.Queue {
		b.log.Warn().Str("queue", p.at.Queue).Msg("the record of this queue is not in the stream any more: taking it as registered with the options " +
			"and the life that are configured")
		r = &queueRecord{Record: recordQueue, QueueID: p.at.Queue, Site: b.cfg.Site, Account: b.cfg.Account, Options: b.poller.Options.JSON(),
			LifeSeconds: cmp.Or(b.poller.Options.Life, poller.DefaultLife).Seconds()}
	}
	b.record = r
	life := time.Duration(r.LifeSeconds * float64(time.Second))
	renewed := time.Time{}
	if p.last != nil {
		// The newest message came in answer to a poll that began before it: the clock was set then at the latest, if that poll waited.
		renewed = p.last.Time
	}
	b.poller.Follow(poller.Queue{ID: r.QueueID, Life: life, Patience: time.Duration(r.Patience * float64(time.Second)), Renewed: renewed})
	return nil
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
func (b *Bridge) recordAge(ctx context.Context) time.Duration {
	if info, err := b.stream.Info(ctx); err == nil && info.MaxAge > 0 {
		return min(recordAge, info.MaxAge/4)
	}
	return recordAge
}

// keep writes the record of the queue again. At the start it is the first write after the read, so that no poll leaves on a position that
// a deposed leader told us.
func (b *Bridge) keep(ctx context.Context, p place, read bool) error {
	r := *b.record
	r.Why, r.Previous, r.Bridge, r.Time = whyKept, "", b.cfg.Version, time.Now().UTC()
	r.Newest = b.newest(ctx, r.Newest)
	if r.Held != nil && r.Held.Until == 0 {
		until, err := b.heldUntil(ctx)
		if err != nil {
			return err
		}
		held := *r.Held
		held.Until = until
		r.Held = &held
	}
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

// newestTimeout is how long a start waits to learn the newest message ids: polls may work while the rest of Zulip does not.
const newestTimeout = 5 * time.Second

// newest asks for the newest message ids, and settles for the old ones where that does not work now.
func (b *Bridge) newest(ctx context.Context, old newestIDs) newestIDs {
	if !b.receivesMessages() {
		return old
	}
	ctx, cancel := context.WithTimeout(ctx, newestTimeout)
	defer cancel()
	n, err := b.askNewest(ctx)
	if err != nil {
		return old
	}
	return n
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

// loadRejected reads which events were rejected at this position without moving it, so that a restart does not reject them again.
func (b *Bridge) loadRejected(ctx context.Context, p place) error {
	b.rejected = rejections{at: p.at, seen: map[string]bool{}}
	for m := p.last; m != nil && header(m, HeaderRecord) == recordRejected; {
		here, ok := placeOf(m)
		if !ok || here.at != p.at {
			return nil
		}
		if body := decode[rejectedBody](m); body != nil {
			b.rejected.seen[body.SHA256] = true
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
