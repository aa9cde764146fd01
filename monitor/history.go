package monitor

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"

	"zulip-nats/bridge"
)

// lookEvery is how often the counters are looked at for the history. A state that lasts
// shorter may be missed.
const lookEvery = 5 * time.Second

// states are the states from the best to the worst, as the history has them.
var states = []string{string(bridge.Standby), string(bridge.Following), string(bridge.Refilling),
	string(bridge.Starting), string(bridge.Registering), string(bridge.WaitingZulip), string(bridge.WaitingNATS),
	string(bridge.NeedsOperator), string(bridge.Stopped), stateWedged}

// history is the last hour of each realm, some 2 KiB each, however much happens. The
// bridges count since the process began and keep nothing else, so what belongs to which
// minute is seen from here: by looking at the counters now and then.
type history struct {
	mu     sync.Mutex
	realms map[string]*hour
}

// hour is what a realm did lately, in slots of a minute and in finer ones.
type hour struct {
	seen    counted // the counters at the last look
	minutes [60]slot
	looks   [time.Minute / lookEvery]slot
}

// slot is what was done in a span of time, which is numbered from 1970 on. There are 72 for
// each of perhaps a thousand realms, so it is small.
type slot struct {
	stored, bytes uint64
	span          uint32 // spans of 5 s serve until 2650
	gaps          uint16
	worst         uint8 // of states, that was seen in it
}

// counted are the counters that the history has.
type counted struct{ stored, bytes, gaps uint64 }

func counts(s *bridge.Status) counted {
	w := s.Counters.Work()
	return counted{stored: w.Events + w.Refilled, bytes: w.Bytes, gaps: w.Gaps}
}

// since is what was counted since. A bridge that is made anew counts from 0 on.
func (c counted) since(before counted) counted {
	if c.stored < before.stored || c.bytes < before.bytes || c.gaps < before.gaps {
		return c
	}
	return counted{c.stored - before.stored, c.bytes - before.bytes, c.gaps - before.gaps}
}

// slotAt is the slot of a span in a ring. Its place may have that of an earlier round,
// which is over then: nothing has to be moved or thrown away, whatever time has passed.
func slotAt(ring []slot, span int64) *slot {
	s := &ring[span%int64(len(ring))]
	if int64(s.span) != span {
		*s = slot{span: uint32(span)}
	}
	return s
}

// look asks how the realms are now, and takes note of it. What a realm had counted when it
// is first seen was done before, and belongs to no minute. It is asked with the lock held:
// an older answer that came second would look like a bridge that counts anew.
func (h *history) look(ask func() []bridge.Status, now time.Time) []bridge.Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	realms := ask()
	before := h.realms
	h.realms = make(map[string]*hour, len(realms)) // a realm that is there no more is forgotten
	for i := range realms {
		s := &realms[i]
		count := counts(s)
		of := before[s.Realm]
		if of == nil {
			of = &hour{seen: count}
		}
		h.realms[s.Realm] = of
		more := count.since(of.seen)
		of.seen = count
		worst := slices.Index(states, stateOf(s))
		for _, at := range []*slot{slotAt(of.minutes[:], spanOf(now, time.Minute)),
			slotAt(of.looks[:], spanOf(now, lookEvery))} {
			at.stored += more.stored
			at.bytes += more.bytes
			at.gaps += uint16(min(more.gaps, uint64(math.MaxUint16-at.gaps)))
			at.worst = max(at.worst, uint8(max(worst, 0)))
		}
	}
	return realms
}

func spanOf(t time.Time, length time.Duration) int64 { return t.UnixNano() / int64(length) }

// HourReport is the last hour of a realm: minutes of the clock, the oldest first, and the
// last one is not over yet.
type HourReport struct {
	Begins time.Time `json:"begins"` // when the first minute does
	Stored []uint64  `json:"stored"` // events, and messages read back
	Bytes  []uint64  `json:"bytes"`
	Gaps   []uint64  `json:"gaps"`   // opened
	States []string  `json:"states"` // the worst one; empty: nobody looked, and the others are 0
}

// MinuteReport is what was done within the last 60 s, or since the process began.
type MinuteReport struct {
	Stored uint64 `json:"stored"`
	Bytes  uint64 `json:"bytes"`
}

// of tells the history of a realm. What nobody looked at is left empty: the time before
// the process began, or in which it stood still.
func (h *history) of(realm string, now time.Time) (hr HourReport, m MinuteReport) {
	h.mu.Lock()
	defer h.mu.Unlock()
	of := h.realms[realm]
	if of == nil {
		of = &hour{}
	}
	last := spanOf(now, time.Minute)
	first := last - int64(len(of.minutes)) + 1
	hr.Begins = time.Unix(first*60, 0).UTC()
	for span := first; span <= last; span++ {
		s, state := of.minutes[span%int64(len(of.minutes))], ""
		if int64(s.span) == span {
			state = states[s.worst]
		} else {
			s = slot{}
		}
		hr.Stored, hr.Bytes = append(hr.Stored, s.stored), append(hr.Bytes, s.bytes)
		hr.Gaps, hr.States = append(hr.Gaps, uint64(s.gaps)), append(hr.States, state)
	}
	for _, s := range of.looks {
		if spanOf(now, lookEvery)-int64(s.span) < int64(len(of.looks)) {
			m.Stored += s.stored
			m.Bytes += s.bytes
		}
	}
	return hr, m
}

// keep looks at the realms until ctx ends.
func (h *history) keep(ctx context.Context, realms func() []bridge.Status) {
	ticks := time.NewTicker(lookEvery)
	defer ticks.Stop()
	for {
		h.look(realms, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
	}
}
