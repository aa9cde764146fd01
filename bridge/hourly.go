package bridge

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/logevent"
)

// Work is what bridges have done, in figures for a line of the log.
type Work struct {
	Events   uint64 // stored, of any type
	Bytes    uint64 // of all bodies stored, in messages and in the object store
	Polls    uint64 // that ended, however they did
	Gaps     uint64 // opened
	Refilled uint64 // messages read back from history
	Erased   uint64 // messages of which something was erased, because they were deleted
	Excluded uint64 // events left out, as asked for
}

// Work adds up what was done since the process began.
func (c *Counters) Work() Work {
	p := &c.Polls
	w := Work{Bytes: c.Bytes, Refilled: c.Refilled, Erased: c.Erased, Excluded: c.Excluded, Polls: p.Events + p.Empty + p.Refused + p.Limited + p.Failed}
	for _, n := range c.Events {
		w.Events += n
	}
	for _, n := range c.Gaps {
		w.Gaps += n
	}
	return w
}

// MarshalZerologObject adds the figures to a line.
func (w Work) MarshalZerologObject(e *zerolog.Event) {
	e.Uint64("events_stored", w.Events).Uint64("bytes_stored", w.Bytes).Uint64("polls", w.Polls).
		Uint64("gaps_opened", w.Gaps).Uint64("messages_refilled", w.Refilled)
	if w.Erased > 0 { // nothing is, unless it is asked for
		e.Uint64("messages_erased", w.Erased)
	}
	if w.Excluded > 0 {
		e.Uint64("events_excluded", w.Excluded)
	}
}

// Hourly logs one line an hour until ctx ends: what the bridges of this process did in
// that hour, and how long it would take until Zulip drops the first of their queues, if
// no poll came any more.
func Hourly(ctx context.Context, log zerolog.Logger, bridges ...*Bridge) {
	hours := time.NewTicker(time.Hour)
	defer hours.Stop()
	var before Work
	for {
		select {
		case <-ctx.Done():
			return
		case <-hours.C:
		}
		var now Work
		var first time.Time
		for _, b := range bridges {
			s := b.Status()
			w := s.Counters.Work()
			now.Events += w.Events
			now.Bytes += w.Bytes
			now.Polls += w.Polls
			now.Gaps += w.Gaps
			now.Refilled += w.Refilled
			now.Erased += w.Erased
			now.Excluded += w.Excluded
			if e := s.Expires; !e.IsZero() && (first.IsZero() || e.Before(first)) {
				first = e
			}
		}
		line := logevent.Hourly.Info(log).EmbedObject(Work{now.Events - before.Events, now.Bytes - before.Bytes,
			now.Polls - before.Polls, now.Gaps - before.Gaps, now.Refilled - before.Refilled, now.Erased - before.Erased,
			now.Excluded - before.Excluded})
		if !first.IsZero() {
			line.Stringer("queue_lives_for", max(time.Until(first), 0).Round(time.Second))
		}
		line.Msg("the last hour")
		before = now
	}
}
