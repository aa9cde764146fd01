package bridge

import (
	"context"
	"errors"
	"slices"

	"zulip-nats/poller"
	"zulip-nats/stream"
)

// store puts a batch in the stream, in order, and returns when all of it is there.
// errMoved: the stream has to be read again, because somebody else wrote, or because it
// lost what it held. A stop gives what is under way a little time, and then ends it: what
// was not stored was not acknowledged either.
func (b *Bridge) store(ctx context.Context, batch *poller.Batch) error {
	ctx, cancel := b.graceful(ctx)
	defer cancel()
	entries, err := b.messages(ctx, batch.Events)
	if err == nil {
		err = b.append(ctx, entries, phasePoll, nil)
	}
	if err != nil {
		if slices.ContainsFunc(batch.Events, func(ev poller.Event) bool { return ev.Type == "update_message" }) {
			b.places = nil // the batch may be asked for again, and it is in front of its own edits then
		}
		return err
	}
	b.erasing.deletes(entries)
	for i := range batch.Events {
		b.largest = max(b.largest, batch.Events[i].MessageID)
	}
	return nil
}

// messages turns events into what is stored for them. An event that needs nothing new in
// the stream leaves nothing. What has to wait for NATS waits here: which messages the
// stream held, and the object store.
func (b *Bridge) messages(ctx context.Context, batch []poller.Event) ([]entry, error) {
	if err := b.loadHeld(ctx, batch); err != nil {
		return nil, err
	}
	if err := b.loadPlaces(ctx, batch); err != nil {
		return nil, err
	}
	entries := make([]entry, 0, len(batch))
	headers := make([]stream.Header, 0, 10*len(batch))
	at := b.known
	var run exclusion
	record := func() error {
		if run.count == 0 {
			return nil
		}
		e, err := b.excluded(run, at)
		entries, at, run = append(entries, e), e.after, exclusion{}
		return err
	}
	for i := range batch {
		ev := &batch[i]
		b.notePlace(ev.MessageID, ev.Recipient, ev.ChannelID)
		if b.excludes(ev) {
			run.add(ev, at)
			continue
		}
		// Behind what is left out, which a start would not find.
		b.noteEdit(ev)
		if err := record(); err != nil { // before anything behind it says that we have come further
			return nil, err
		}
		e, ok, err := b.encode(ev, at, &headers)
		if ok && !e.isRecord() && !b.stream.Fits(&e.msg) {
			e, err = b.claimCheck(ctx, e, itoa(ev.ID), phasePoll)
			if errors.Is(err, errNotCarried) {
				e, ok, err = b.rejection(ev, at, err.Error())
			}
		}
		if err != nil {
			return nil, err
		}
		if ok {
			entries = append(entries, e)
			at = e.after
		}
	}
	if err := record(); err != nil {
		return nil, err
	}
	return entries, nil
}
