package bridge

import (
	"bytes"
	"context"
	"math"
	"time"

	"zulip-nats/events"
	"zulip-nats/logevent"
	"zulip-nats/poller"
)

// pastMessage is a message of Zulip's history.
type pastMessage struct {
	id            int64
	sent, changed int64 // seconds of Zulip's clock; changed is 0 if it never was
	recipient     poller.Recipient
	channel       int64
	event         []byte // in the shape of a live event
	fault         string // why it is none that can be carried; then it has no id
}

// query is one of the two ways to ask history for what a queue would have got: the
// account's own messages, or those of all public channels. A queue that asks for all
// public channels needs both, since neither shows what the other does. A narrow restricts
// both.
type query struct {
	public bool
	narrow [][2]string
}

func (q query) ask(ctx context.Context, z *poller.Poller, h poller.HistoryQuery) (*poller.HistoryPage, error) {
	h.PublicChannels, h.Narrow = q.public, q.narrow
	return z.Messages(ctx, h)
}

// newestMessage is the id of the newest message of a query, 0 if there is none.
func newestMessage(ctx context.Context, z *poller.Poller, q query) (int64, error) {
	found, err := q.ask(ctx, z, poller.HistoryQuery{Newest: true, Before: 1,
		Each: func(*poller.Message) error { return nil }})
	if err != nil {
		return 0, err
	}
	return found.Last, nil
}

// pass is one way through history, page by page, oldest first.
type pass struct {
	query
	above, upTo int64
	overlap     int64 // messages a little below above are taken too, if they were sent since; 0: none are
	asked       int64 // up to where history was asked for
	page        []pastMessage
	done        bool
	hidden      *events.Range // ids that the organization's plan hides
}

// newPass begins a pass above a message, or goes on where the plan says that it had come.
func newPass(q query, above, upTo int64, plan *events.Refill) *pass {
	if upTo == events.Unknown {
		upTo = math.MaxInt64
	}
	h := &pass{query: q, above: above, upTo: upTo, asked: max(above, plan.Done)}
	if plan.Overlap > 0 && plan.Done < above {
		h.overlap, h.asked = plan.Overlap, max(min(above, plan.OverlapAbove), plan.Done)
	}
	return h
}

// head is the next message of the pass, nil at its end.
func (h *pass) head(ctx context.Context, z *poller.Poller) (*pastMessage, error) {
	for len(h.page) == 0 && !h.done && h.asked < h.upTo {
		from := h.asked
		found, err := h.ask(ctx, z, poller.HistoryQuery{Anchor: h.asked, After: refillPage, ExcludeAnchor: true,
			Each: func(m *poller.Message) error {
				if m.Fault != "" {
					h.page = append(h.page, pastMessage{id: h.asked, fault: m.Fault})
					return nil
				}
				h.asked = max(h.asked, m.ID)
				if m.ID <= h.upTo && (m.ID > h.above || h.overlap > 0 && m.Timestamp >= h.overlap) {
					h.page = append(h.page, pastMessage{id: m.ID, sent: m.Timestamp, changed: m.LastChange,
						recipient: m.Recipient, channel: m.ChannelID, event: bytes.Clone(m.Raw)})
				}
				return nil
			}})
		if err != nil {
			h.page = nil
			return nil, err
		}
		h.done = found.FoundNewest || found.Count == 0
		if found.HistoryLimited && h.hidden == nil {
			h.hidden = &events.Range{Above: max(from, 0), UpTo: max(from, 0, found.First-1)}
			if found.Count == 0 && h.upTo < math.MaxInt64 {
				h.hidden.UpTo = h.upTo
			}
		}
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
		if len(h.page) > 0 && h.page[0].id == next.id && h.page[0].fault == next.fault {
			h.page = h.page[1:]
		}
	}
	return next, nil
}

// startFrom gives the message ids behind which a first start begins that was asked to go
// back; unknown where history does not say it in time. The error is ctx's.
func (b *Bridge) startFrom(ctx context.Context, r *events.Queue) (above events.MessageIDs, err error) {
	if id := b.cfg.StartFrom.MessageID; id > 0 {
		return events.MessageIDs{Own: id - 1, Public: id - 1}, nil
	}
	limited, cancel := context.WithDeadline(ctx, refillUntil(r))
	defer cancel()
	find := func(public bool, newest int64) int64 {
		if newest == events.Unknown {
			newest = math.MaxInt64 / 2
		}
		id, err := lastBefore(limited, b.poller, query{public: public, narrow: b.poller.Options.Narrow},
			b.cfg.StartFrom.Time, newest)
		if err != nil && ctx.Err() == nil {
			logevent.HistorySilent.Warn(b.log).Err(err).
				Msg("Zulip's history does not say which messages were sent since the time to " +
					"start from")
		}
		if err != nil {
			return events.Unknown
		}
		return id
	}
	above.Own = find(false, r.Newest.Own)
	if receives(b.poller.Options, true) {
		above.Public = find(true, r.Newest.Public)
	}
	if ctx.Err() != nil {
		return above, context.Cause(ctx)
	}
	return above, nil
}

// lastBefore finds an id such that messages above it were sent at t or later, by halving
// the ids up to newest: Zulip finds a message by its date only from feature level 445 on.
// Ids follow time but for a few neighbours.
func lastBefore(ctx context.Context, z *poller.Poller, q query, t time.Time, newest int64) (int64, error) {
	low, high := int64(0), newest // at or below low: older; above high: t or later
	for low < high {
		middle := low + (high-low)/2
		next := poller.Message{}
		_, err := q.ask(ctx, z, poller.HistoryQuery{Anchor: middle, After: 1, ExcludeAnchor: true,
			Each: func(m *poller.Message) error {
				next = *m
				return nil
			}})
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
