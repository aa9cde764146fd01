package bridge

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"time"

	"zulip-nats/poller"
	"zulip-nats/stream"
)

// writeMost is how long a write goes on taking in what follows in an answer. Then it is
// seen to be stored, and all that is due besides gets its turn.
const writeMost = 500 * time.Millisecond

// store puts a batch in the stream, in order, with rest what [poller.Poller.Soon] gives
// behind it, and returns when all of it is there: the last batch, with what it says of the
// answer. errMoved: the stream has to be read again, because somebody else wrote, or
// because it lost what it held. A stop gives what is under way a little time, and then ends
// it: what was not stored was not acknowledged either.
func (b *Bridge) store(stop context.Context, batch *poller.Batch, rest bool) (*poller.Batch, error) {
	ctx, cancel := b.graceful(stop)
	defer cancel()
	w := &intake{Bridge: b, ctx: ctx, stop: stop, rest: rest, began: time.Now(), batch: batch, waits: true}
	for w.waits {
		entries, err := w.encode(b.known, false)
		if err == nil {
			err = cmp.Or(b.appendEach(ctx, entries, phasePoll, nil, w), w.err)
		}
		if err != nil {
			b.poller.Drop()
			if w.edits {
				b.places = nil // they may be asked for again, and what is known is ahead of them then
			}
			return nil, err
		}
		b.erasing.due = b.erasing.due || w.deletes
	}
	return w.batch, nil
}

// intake is a write under way that takes in one batch of an answer after the other.
type intake struct {
	*Bridge
	ctx, stop context.Context
	rest      bool // what follows in the answer is taken in
	began     time.Time

	batch *poller.Batch // the last that was taken
	waits bool          // it is still to be encoded
	at    poller.Position
	err   error // why one could not be encoded

	// Of all of them.
	edits, deletes bool
}

// encode turns the batch into what is stored for it behind a position.
func (w *intake) encode(at poller.Position, underWay bool) ([]entry, error) {
	w.waits = false
	for i := range w.batch.Events {
		ev := &w.batch.Events[i]
		w.edits = w.edits || ev.Type == "update_message"
		w.deletes = w.deletes || ev.Type == "delete_message"
	}
	entries, err := w.messages(w.ctx, at, w.batch.Events, underWay)
	if w.at = at; len(entries) > 0 {
		w.at = entries[len(entries)-1].after
	}
	return entries, err
}

// more says whether the answer may go on, and it is not time yet to see that stored which
// came before.
func (w *intake) more() bool {
	return w.rest && !w.waits && w.err == nil && w.batch.More && w.stop.Err() == nil && w.leading() == nil &&
		!w.recheckDue() && time.Since(w.began) < writeMost && time.Until(w.apart) <= 0
}

// next gives what follows while what came before is on its way. If the power fails here,
// some of that may be stored: the newest message says how much.
func (w *intake) next() (entries []entry) {
	w.batch = w.poller.Soon(w.stop, w.at)
	if w.waits = w.asksNATS(w.batch.Events); w.waits {
		return nil
	}
	entries, w.err = w.encode(w.at, true)
	return entries
}

// asksNATS says whether something has to be asked of NATS before these events can be
// stored: that may take long, and what is under way is seen to be stored before.
func (b *Bridge) asksNATS(batch []poller.Event) bool {
	m := stream.Message{Subject: b.onMessages, Headers: []stream.Header{{Value: widestHeaders}}}
	for i := range batch {
		if raw := batch[i].Raw; len(raw) > len(m.Data) {
			m.Data = raw
		}
	}
	return b.lacksHeld(batch) || b.lacksPlaces(batch) || !b.stream.Fits(&m)
}

// widestHeaders is more than the headers of an event take.
var widestHeaders = strings.Repeat(" ", 4<<10)

// messages turns events behind a position into what is stored for them. An event that
// needs nothing new in the stream leaves nothing. What has to wait for NATS waits here:
// which messages the stream held, and the object store. While a write is under way nothing
// can be put there: errMoved, and the event comes again as the first of a batch.
func (b *Bridge) messages(ctx context.Context, at poller.Position, batch []poller.Event,
	underWay bool) ([]entry, error) {
	if err := b.loadHeld(ctx, batch); err != nil {
		return nil, err
	}
	if err := b.loadPlaces(ctx, batch); err != nil {
		return nil, err
	}
	entries := make([]entry, 0, len(batch))
	room := newHeaderRoom(len(batch))
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
		e, ok, err := b.encode(ev, at, room)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		entries = append(entries, e)
		if last := &entries[len(entries)-1]; !last.isRecord() && !b.stream.Fits(&last.msg) {
			if underWay { // it fitted a moment ago (asksNATS)
				return nil, errMoved
			}
			*last, err = b.claimCheck(ctx, *last, itoa(ev.ID), phasePoll)
			if errors.Is(err, errNotCarried) {
				*last, ok, err = b.rejection(ev, at, err.Error())
			}
			if err != nil {
				return nil, err
			}
			if !ok {
				entries = entries[:len(entries)-1]
				continue
			}
		}
		last := &entries[len(entries)-1]
		last.message, at = ev.MessageID, last.after
	}
	if err := record(); err != nil {
		return nil, err
	}
	return entries, nil
}
