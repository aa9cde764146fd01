package bridge

import (
	"context"
	"time"

	"zulip-nats/events"
	"zulip-nats/logevent"
	"zulip-nats/poller"
)

// changeOver goes to a new queue in good order while the old one lives (design, section
// 9.6): the register options changed, the old queue's idle clock cannot be renewed at this
// organization's pace, or a new state is due, which comes with a queue only. Nothing is lost, because the new queue exists before the old
// one is asked for the last time; what comes between is in both, and messages are
// recognized by their id.
//
// Until the record of the new queue stands, the old one counts, and whether it stands
// decides which of the two is deleted.
func (b *Bridge) changeOver(ctx context.Context, why string) error {
	old := b.known
	logevent.QueueChangedOver.Info(b.log).Str("queue", old.Queue).Str("why", why).Msg("changing over to a new queue")
	r, err := b.registerInTime(ctx, why)
	if r == nil && err == nil {
		return nil
	}
	if refused := asRefused(err); refused != nil {
		// The old queue lives, and is better than none.
		b.unlike = string(b.poller.Options.JSON())
		logevent.OptionsRefused.Error(b.log).Str("queue", old.Queue).Str("zulip", refused.Error()).
			Msg("Zulip does not register a queue with these options: following the old queue as it is; correct the " +
				"options and restart")
		return nil
	}
	if err != nil {
		return err
	}
	from, largest := b.knownSeq+1, int64(0)
	// Asked for now, so it holds all that came before the new queue was made.
	err = b.poller.Drain(ctx, b.known, func(batch *poller.Batch) error {
		for i := range batch.Events {
			largest = max(largest, batch.Events[i].MessageID)
		}
		_, err := b.store(ctx, batch, false)
		return err
	})
	if err != nil {
		b.discard(ctx, r.QueueID) // its record was never sent
		if refused := asRefused(err); refused != nil {
			_, err = b.isItLost(ctx, refused)
		}
		return err
	}
	r.Previous, r.Cut = old.Queue, b.record.Cut
	r.NoDirectUpTo = notWantedUpTo(b.record, max(r.Newest.Max(), largest))
	r.Begin = begin(b.record, b.poller.Options, r.Newest)
	if largest > 0 {
		r.Held = &events.Held{From: from, UpToID: largest}
	}
	if err := b.commitQueue(ctx, phasePoll, r); err != nil {
		return err
	}
	if r.Held != nil {
		r.Held.Until = b.knownSeq
	}
	return nil
}

// stateRegister is how long a register may take that is made for the state.
const stateRegister = 30 * time.Second

// registerInTime is register. For the state alone nothing is held up: Zulip may serve
// polls and nothing else for hours. nil and no error: it did not come in time, and the old
// queue is followed further.
func (b *Bridge) registerInTime(ctx context.Context, why string) (*events.Queue, error) {
	if why != events.WhyState {
		return b.register(ctx, why)
	}
	limited, cancel := context.WithTimeout(ctx, stateRegister)
	defer cancel()
	r, err := b.register(limited, why)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		b.state.pause = stateAgain
		logevent.StateMissing.Warn(b.log).Stringer("next_try_in", stateAgain).
			Msgf("Zulip did not register a queue within %v, which is needed for a new state: going on with the old one",
				stateRegister)
		return nil, nil
	}
	return r, err
}

// begin is where the story begins for a queue with these options that follows another in
// good order. What was not asked for before begins with it.
func begin(before *events.Queue, options poller.Options, newest events.MessageIDs) *events.Beginning {
	was := optionsOf(before)
	switch {
	case !receives(was, false):
		return &events.Beginning{Newest: newest}
	case before.Begin == nil:
		return nil
	}
	b := *before.Begin
	if !receives(was, true) {
		b.Newest.Public = newest.Public
	}
	return &b
}
