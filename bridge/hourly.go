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
// no poll came any more. realms gives the status of each; one that was started again
// counts from 0.
func Hourly(ctx context.Context, log zerolog.Logger, realms func() []Status) {
	hours := time.NewTicker(time.Hour)
	defer hours.Stop()
	before := map[string]Work{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-hours.C:
		}
		var hour Work
		var first time.Time
		now := map[string]Work{}
		for _, s := range realms() {
			w := s.Counters.Work()
			now[s.Realm] = w
			hour.Add(w.since(before[s.Realm]))
			if e := s.Expires; !e.IsZero() && (first.IsZero() || e.Before(first)) {
				first = e
			}
		}
		line := logevent.Hourly.Info(log).EmbedObject(hour)
		if !first.IsZero() {
			line.Stringer("queue_lives_for", max(time.Until(first), 0).Round(time.Second))
		}
		line.Msg("the last hour")
		before = now
	}
}

// Add adds what another bridge did.
func (w *Work) Add(more Work) {
	w.Events += more.Events
	w.Bytes += more.Bytes
	w.Polls += more.Polls
	w.Gaps += more.Gaps
	w.Refilled += more.Refilled
	w.Erased += more.Erased
	w.Excluded += more.Excluded
}

// since is what was done since another count of the same bridge, or of one that was before
// it and had done more.
func (w Work) since(before Work) Work {
	if w.Polls < before.Polls || w.Events < before.Events {
		return w
	}
	return Work{Events: w.Events - before.Events, Bytes: w.Bytes - before.Bytes, Polls: w.Polls - before.Polls,
		Gaps: w.Gaps - before.Gaps, Refilled: w.Refilled - before.Refilled, Erased: w.Erased - before.Erased,
		Excluded: w.Excluded - before.Excluded}
}
