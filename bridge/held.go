package bridge

import (
	"context"
	"errors"
	"slices"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
)

// heldSet is the ids of messages that the stream holds, sorted, and those that it has told
// to be deleted, where these are erased.
type heldSet struct {
	ids     []int64
	deleted map[int64]bool
}

func (h *heldSet) has(id int64) bool {
	_, found := slices.BinarySearch(h.ids, id)
	return found || h.deleted[id]
}

// mayHold says whether the stream may have held a message before this queue's first poll.
// Above the bound it cannot have.
func (b *Bridge) mayHold(id int64) bool {
	r := b.record
	return id > 0 && r != nil && r.Held != nil && (r.Held.UpToID == events.Unknown || id <= r.Held.UpToID)
}

// holds says whether the stream held a message before this queue's first poll: refilled,
// or from the queue before.
func (b *Bridge) holds(id int64) bool { return b.mayHold(id) && b.held.has(id) }

// lacksHeld says whether that has to be read first.
func (b *Bridge) lacksHeld(batch []poller.Event) bool {
	return b.held == nil && slices.ContainsFunc(batch, func(ev poller.Event) bool { return b.mayHold(ev.MessageID) })
}

// loadHeld reads which messages the stream held before this queue's first poll, if one of
// these events may be among them.
func (b *Bridge) loadHeld(ctx context.Context, batch []poller.Event) error {
	if !b.lacksHeld(batch) {
		return nil
	}
	held, r := &heldSet{}, b.record
	err := b.storedMessages(ctx, r.Held.From, &stream.Stored{Seq: r.Held.Until},
		func(_ *stream.Stored, id int64) { held.ids = append(held.ids, id) },
		func() { held.ids = held.ids[:0] })
	if err != nil && !errors.Is(err, errMoved) { // the limits may take it; what they left was read
		return err
	}
	held.deleted, err = b.toldDeleted(ctx, r.Held.From, &stream.Stored{Seq: r.Held.Until})
	if err != nil && !errors.Is(err, errMoved) {
		return err
	}
	slices.Sort(held.ids)
	b.held = held
	return nil
}
