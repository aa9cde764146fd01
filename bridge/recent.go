package bridge

import (
	"sync"
	"time"

	"zulip-nats/poller"
)

// Run is events of one type that were stored one behind the other: in a quiet
// organization fifty heartbeats, while people write mostly a single event. Of its content
// there is nothing here.
type Run struct {
	// Type is one of those in [Counters].Events, or what became of an event: refilled (a
	// message from history), rejected, skipped, excluded.
	Type        string
	Count       uint64
	First, Last time.Time // when they were stored, by our own clock, to the second
}

// runs are the newest of them, in a ring. They are flat and small, since a copy of them is
// shown for each batch, and each realm of a process has two.
type runs struct {
	ring   [12]run
	newest uint8 // its place
}

// run is a [Run], small. count is 0 where there is none yet.
type run struct {
	first, last uint32 // seconds since 1970, which serves until 2106
	count       uint32
	tally       tally
}

// add takes note of n events that were stored now, in seconds since 1970. Records that
// follow from others are none.
func (r *runs) add(t tally, now uint32, n int) {
	if t == tallyNone {
		return
	}
	if at := &r.ring[r.newest]; at.tally == t && at.count < 1<<32-1-uint32(n) {
		at.last = now
		at.count += uint32(n)
		return
	}
	r.newest = (r.newest + 1) % uint8(len(r.ring))
	r.ring[r.newest] = run{first: now, last: now, count: uint32(n), tally: t}
}

// list gives them by their names, the newest first.
func (r *runs) list() []Run {
	list := make([]Run, 0, len(r.ring))
	for i := range r.ring {
		if at := &r.ring[(int(r.newest)+len(r.ring)-i)%len(r.ring)]; at.count > 0 {
			list = append(list, Run{tallyNames()[at.tally], uint64(at.count), time.Unix(int64(at.first), 0),
				time.Unix(int64(at.last), 0)})
		}
	}
	return list
}

// tallyNames is the other way round than tallyOf, with what is no type.
var tallyNames = sync.OnceValue(func() (names [tallies]string) {
	names[tallyRejected], names[tallySkipped], names[tallyRefilled] = "rejected", "skipped", "refilled"
	names[tallyOther], names[tallyExcluded] = "other", "excluded"
	for i, name := range poller.EventTypes() {
		if n := int(tallyTypes) + i; n < tallies {
			names[n] = name
		}
	}
	return names
})
