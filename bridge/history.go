package bridge

import (
	"bytes"
	"context"
	"time"

	"zulip-nats/poller"
)

// pastMessage is a message of Zulip's history.
type pastMessage struct {
	id            int64
	sent, changed time.Time
	event         []byte // in the shape of a live event
}

// query narrows a request for history to what the queue would have got: the queue's own narrow, all public channels, or the account's own
// history.
func query(z *poller.Poller, public bool, q poller.HistoryQuery) poller.HistoryQuery {
	if q.PublicChannels = public; !public {
		q.Narrow = z.Options.Narrow
	}
	return q
}

// newestMessage is the id of the newest message in a pass, 0 if there is none.
func newestMessage(ctx context.Context, z *poller.Poller, public bool) (int64, error) {
	found, err := z.Messages(ctx, query(z, public, poller.HistoryQuery{Newest: true, Before: 1, Each: func(*poller.Message) error { return nil }}))
	if err != nil {
		return 0, err
	}
	return found.Last, nil
}

// pass is one way through history, page by page: the account's own, or all public channels. A queue that asks for all public channels needs
// both, since neither shows what the other does.
type pass struct {
	public      bool
	above, upTo int64
	overlap     time.Time // messages a little below above are taken too, if they were sent since; zero: none are
	asked       int64     // up to where history was asked for; 0: not yet
	page        []pastMessage
	done        bool
}

// overlapIDs is how far below the bound a pass begins that has an overlap.
const overlapIDs = 100

// head is the next message of the pass, nil at its end.
func (h *pass) head(ctx context.Context, z *poller.Poller) (*pastMessage, error) {
	if h.asked == 0 {
		if h.asked = h.above; !h.overlap.IsZero() {
			h.asked = max(0, h.above-overlapIDs)
		}
	}
	for len(h.page) == 0 && !h.done && h.asked < h.upTo {
		found, err := z.Messages(ctx, query(z, h.public, poller.HistoryQuery{Anchor: h.asked, After: refillPage, ExcludeAnchor: true,
			Each: func(m *poller.Message) error {
				h.asked = max(h.asked, m.ID)
				sent := time.Unix(m.Timestamp, 0)
				if m.ID <= h.upTo && (m.ID > h.above || !sent.Before(h.overlap)) {
					h.page = append(h.page, pastMessage{id: m.ID, sent: sent, changed: time.Unix(m.LastEdit, 0), event: bytes.Clone(m.Raw)})
				}
				return nil
			}}))
		if err != nil {
			h.page = nil
			return nil, err
		}
		h.done = found.FoundNewest || found.Count == 0
	}
	if len(h.page) == 0 {
		return nil, nil
	}
	return &h.page[0], nil
}

// nextPast merges the passes by id; a message in both comes once. nil at the end.
func nextPast(ctx context.Context, z *poller.Poller, passes []*pass) (*pastMessage, error) {
	var next *pastMessage
	for _, h := range passes {
		m, err := h.head(ctx, z)
		if err != nil {
			return nil, err
		}
		if m != nil && (next == nil || m.id < next.id) {
			next = m
		}
	}
	if next == nil {
		return nil, nil
	}
	for _, h := range passes {
		if len(h.page) > 0 && h.page[0].id == next.id {
			h.page = h.page[1:]
		}
	}
	return next, nil
}

// startFrom gives the message ids behind which a first start begins that was asked to go back. newest are the newest ids.
func (b *Bridge) startFrom(ctx context.Context, newest newestIDs) (above newestIDs, err error) {
	if id := b.cfg.StartFrom.MessageID; id > 0 {
		return newestIDs{Own: id - 1, Public: id - 1}, nil
	}
	if above.Own, err = lastBefore(ctx, b.poller, false, b.cfg.StartFrom.Time, newest.Own); err != nil || !b.poller.Options.AllPublicStreams {
		return above, err
	}
	above.Public, err = lastBefore(ctx, b.poller, true, b.cfg.StartFrom.Time, newest.Public)
	return above, err
}

// lastBefore finds an id such that messages above it were sent at t or later, by halving the ids up to newest: Zulip finds a message by its
// date only from feature level 445 on. Ids follow time but for a few neighbours.
func lastBefore(ctx context.Context, z *poller.Poller, public bool, t time.Time, newest int64) (int64, error) {
	low, high := int64(0), newest // at or below low: older; above high: t or later
	for low < high {
		middle := low + (high-low)/2
		next := poller.Message{}
		_, err := z.Messages(ctx, query(z, public, poller.HistoryQuery{Anchor: middle, After: 1, ExcludeAnchor: true, Each: func(m *poller.Message) error {
			next = *m
			return nil
		}}))
		if err != nil {
			return 0, err
		}
		switch {
		case next.ID == 0 || next.ID > high:
			high = middle
		case time.Unix(next.Timestamp, 0).Before(t):
			low = next.ID
		default:
			high = middle
		}
	}
	return low, nil
}
