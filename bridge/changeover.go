package bridge

import (
	"context"
	"time"

	"zulip-nats/poller"
)

// changeOver goes to a new queue in good order while the old one lives (design, section 9.6): the register options changed, or the old
// queue's idle clock cannot be renewed at this organization's pace. Nothing is lost, because the new queue exists before the old one is
// read for the last time; what comes between is in both, and messages are recognized by their id.
//
// Until the record of the new queue stands, the old one counts: a crash before it leaves a queue that nobody knows, which Zulip drops.
func (b *Bridge) changeOver(ctx context.Context, p place, why string) error {
	if err := b.leading(); err != nil {
		return err
	}
	old := b.known
	b.log.Info().Str("queue", old.Queue).Str("why", why).Msg("changing over to a new queue")
	r, err := b.register(ctx, why)
	if err != nil {
		return err
	}
	from, largest := b.knownSeq+1, int64(0)
	for more := true; more && err == nil; {
		// One answer is enough: it holds all that came before the new queue was made.
		var batch *poller.Batch
		if batch, err = b.poller.Drain(ctx, b.known); err != nil {
			break
		}
		for i := range batch.Events {
			largest = max(largest, batch.Events[i].MessageID)
		}
		more = batch.More
		err = b.store(ctx, batch)
	}
	if err != nil {
		b.discard(ctx, r.QueueID)
		if refused := asRefused(err); refused != nil {
			_, err = b.isItLost(ctx, refused)
		}
		return err
	}
	r.Previous, r.Begin = old.Queue, b.record.Begin
	if largest > 0 {
		r.Held = &heldRange{From: from, UpToID: largest}
	}
	e, err := b.queueEntry(r, -1)
	if err != nil {
		return err
	}
	gctx, cancel := b.graceful(ctx)
	defer cancel()
	if err := b.append(gctx, []entry{e}, phasePoll); err != nil {
		b.discard(ctx, r.QueueID)
		return err
	}
	if r.Held != nil {
		r.Held.Until = b.knownSeq
	}
	b.followNew(r)
	b.discard(ctx, old.Queue)
	return nil
}

// retireOld deletes the queue before this one, in case a crash came between the record of a change-over and the deletion.
func (b *Bridge) retireOld(ctx context.Context) {
	if r := b.record; r.Previous != "" && (r.Why == whyOptions || r.Why == whyChangedOver) {
		b.discard(ctx, r.Previous)
	}
}

// followNew takes a queue that was just recorded for the one to follow.
func (b *Bridge) followNew(r *queueRecord) {
	b.log.Info().Str("queue", r.QueueID).Str("why", r.Why).Str("zulip", r.ZulipVersion).Int("feature_level", r.FeatureLevel).
		Stringer("idle_life", r.life()).Bool("life_said_by_server", r.LifeSaid).Msg("a queue is registered and recorded")
	if r.Begin != nil && r.Begin.Seq == 0 {
		r.Begin.Seq = b.knownSeq
	}
	b.record, b.keptAt, b.held, b.resumed = r, time.Now(), nil, true
	b.poller.Follow(poller.Queue{ID: r.QueueID, Life: r.life(), Patience: r.patience(), Renewed: r.Time})
}
