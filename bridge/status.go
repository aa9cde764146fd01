package bridge

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"zulip-nats/events"
	"zulip-nats/health"
	"zulip-nats/poller"
	"zulip-nats/stream"
)

// State is what a bridge does, in one word.
type State string

const (
	Starting     State = "starting"      // it is not known yet who leads, or where to go on
	Standby      State = "standby"       // another instance leads
	Registering  State = "registering"   // a queue is needed: the first one, or that behind a lost one
	Refilling    State = "refilling"     // messages are read back from history
	Following    State = "following"     // events are polled and stored
	WaitingNATS  State = "waiting-nats"  // in any of these but Standby: NATS does not serve what is needed
	WaitingZulip State = "waiting-zulip" // likewise, Zulip
	Stopped      State = "stopped"       // Run has returned

	// NeedsOperator is that of a realm whose Run has returned with an error, in a process
	// that has others.
	NeedsOperator State = "needs-operator"
)

// States are all of them.
var States = []State{Starting, Standby, Registering, Refilling, Following, WaitingNATS, WaitingZulip, Stopped,
	NeedsOperator}

// Whose trouble it is, in [Status] and in [Error].
const (
	SideNATS    = "nats"
	SideZulip   = "zulip"
	SideLease   = "lease"
	SideObjects = "object store"
	SideErasing = "erasing"
	// SideOperator is that of a realm that an operator has to mend.
	SideOperator = "operator"
)

// Status is how a bridge is at one moment. What does not hold now is zero: who does not
// lead has no queue and no times.
type Status struct {
	Realm string
	State State
	Since time.Time // when State began

	// Ready says that this instance has led or stood by since the process began: what was
	// configured is accepted, and all that is missing now heals by itself.
	Ready bool
	// Late is for how long a sign of life of the loop is due, 0 if none is: see
	// [health.Pulse]. It is not the time since the last event: a loop that waits for NATS
	// or Zulip, or stands by, is on time.
	Late time.Duration

	Leads  bool   // this instance works
	Leader string // who leads, as in Bridge-Writer; empty: not known

	Queue       string        // the queue that is followed, or was until now
	LastEventID int64         // up to where it is stored; -1: nothing is
	Expires     time.Time     // when Zulip may drop it; zero: not known
	Life        time.Duration // for how long Zulip keeps it without a poll; 0: not known
	Answered    time.Time     // when a poll was last answered

	// StoredSeq is the sequence of the newest message of ours, Stored when it was stored:
	// by our own clock, or by that of NATS if it was read.
	StoredSeq uint64
	Stored    time.Time

	Gap *Gap // nil: none is open

	// Wrong is what keeps the bridge from its work now, by side. An object store that is
	// waited for keeps it from storing anything, and so NATS is in it too.
	Wrong map[string]health.State

	Counters Counters

	// Recent are the last events that were stored, as runs of one type each, the newest
	// run first: 12 at most, since the process began.
	Recent []Run
}

// Gap is a gap that is open: its queue is lost, and not all is read back yet.
type Gap struct {
	Since time.Time // when the last event before it was stored, by the clock of NATS; zero: not known
	Cause string    // as its record says
}

// Counters count since the process began, whoever led.
type Counters struct {
	// Events are the events stored, by their type, if a Zulip known so far sends it (see
	// [poller.EventTypes]); those of other types are under "other". Rejected and skipped
	// ones are not among them.
	Events map[string]uint64
	// Bytes are those of all bodies stored, in messages and in the object store.
	Bytes uint64
	// Rejected are events that could not be carried, Skipped those whose message the
	// stream held; Refilled messages read back from history; Oversize events and messages
	// in the object store.
	Rejected, Skipped, Refilled, Oversize uint64
	// Erased are messages of which the stream held something, and that was erased because
	// they were deleted at Zulip. One that is deleted again counts again.
	Erased uint64
	// Excluded are events that were left out, as asked for.
	Excluded uint64
	// Queues are those registered, Gaps those opened, by cause: dropped (by Zulip),
	// account (a queue belongs to its account), tail (the stream lost its end), past (the
	// stream lost all), retired. See [GapCauses].
	Queues uint64
	Gaps   map[string]uint64
	// LastGap is when the last of those gaps was opened, by our own clock; zero: none was.
	LastGap time.Time
	// Polls, RateLimited and the errors of Zulip's side are those of [poller.Counters].
	Polls       poller.Polls
	RateLimited uint64
	// Errors are requests that failed. The kinds of NATS and the object store are those
	// of [stream.Kind], and away (the connection is down), settings, other.
	Errors map[Error]uint64
	// Writes are those that the stream has acknowledged, by how long that took since the
	// last batch of each was given to it.
	Writes Durations
}

// DurationBounds are the upper bounds of the groups that [Durations] has, in seconds. A
// single server on the same machine takes a millisecond, one that flushes each write ten,
// and what takes longer than a minute was given up.
var DurationBounds = [...]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60}

// Durations counts how long something took. Up[i] are those up to DurationBounds[i] that
// are in no group before.
type Durations struct {
	Up    [len(DurationBounds)]uint64
	Count uint64        // all, longer ones too
	Sum   time.Duration // of all
}

func (d *Durations) add(took time.Duration) {
	d.Count++
	d.Sum += took
	if i, _ := slices.BinarySearch(DurationBounds[:], took.Seconds()); i < len(d.Up) {
		d.Up[i]++
	}
}

// Error is a kind of errors, for counting.
type Error struct{ Side, Kind string }

// Why a gap is opened, as it is counted.
const (
	gapDropped = "dropped"
	gapAccount = "account"
	gapTail    = "tail"
	gapPast    = "past"
	gapRetired = "retired"
)

// GapCauses are all that [Counters] may have for gaps.
var GapCauses = []string{gapDropped, gapAccount, gapTail, gapPast, gapRetired}

// tally is what an entry is counted as when it is stored.
type tally uint8

const (
	tallyNone tally = iota // a record that follows from others
	tallyRejected
	tallySkipped
	tallyRefilled
	tallyExcluded // of events that were left out
	tallyOther    // an event of a type that is not known
	tallyTypes    // of the first of poller.EventTypes; those of the others follow

	tallies = 64 // room for all, and some more
)

// tallyOf gives the tally of an event by its type.
var tallyOf = sync.OnceValue(func() map[string]tally {
	m := map[string]tally{}
	for t, name := range tallyNames() {
		if tally(t) >= tallyTypes && name != "" {
			m[name] = tally(t)
		}
	}
	return m
})

var recordTally = map[string]tally{events.RecordRejected: tallyRejected, events.RecordSkipped: tallySkipped,
	events.RecordExcluded: tallyExcluded}

// eventTally is tallyOf for any type.
func eventTally(name string) tally {
	if t, known := tallyOf()[name]; known {
		return t
	}
	return tallyOther
}

// report is what the loop tells of itself. Only the loop writes it, and shows a copy when
// it has; what it has shown is not changed any more. So neither waits for the other, and
// a batch costs one copy.
type report struct {
	now     shown
	counted uint64 // the sequence of the last entry that was
	current atomic.Pointer[shown]
}

type shown struct {
	Status
	tallies [tallies]uint64
	recent  runs
}

func (r *report) show() {
	copied := r.now
	r.current.Store(&copied)
}

// begin is a new term, or the end: what was known of the one before holds no more.
func (r *report) begin(s State) {
	r.now.Status = Status{Realm: r.now.Realm, Ready: r.now.Ready, LastEventID: -1, Counters: r.now.Counters}
	r.enter(s)
}

func (r *report) enter(s State) {
	r.now.Ready = r.now.Ready || s == Standby
	if r.now.State != s {
		r.now.State, r.now.Since = s, time.Now()
	}
	r.show()
}

// leads takes note of who leads. Who stood by, and leads now, does so no more.
func (r *report) leads(us bool, who string) {
	if us && r.now.State == Standby {
		r.now.State, r.now.Since = Starting, time.Now()
	}
	r.now.Leads, r.now.Leader, r.now.Ready = us, who, r.now.Ready || us
	r.show()
}

// step takes note of what has to be done next.
func (r *report) step(p resumePoint) {
	switch p.phase {
	case phaseRefill: // the queue's record says for which gap
		r.enter(Refilling)
	case phaseRegister:
		r.now.Gap = &Gap{}
		if opened := decode[events.GapOpened](p.last); opened != nil {
			r.now.Gap = &Gap{Since: opened.LastStored, Cause: opened.Cause}
		}
		r.enter(Registering)
	case phasePoll:
		r.now.Gap = nil
		r.enter(Following)
	default:
		r.enter(Registering)
	}
}

// refills takes note of what is read back; nil: its record does not say.
func (r *report) refills(plan *events.Refill) {
	switch {
	case plan == nil:
		r.now.Gap = &Gap{}
	case plan.Cause == causePast:
		r.now.Gap = nil // nothing was lost
	default:
		r.now.Gap = &Gap{Since: plan.Since, Cause: plan.Cause}
	}
	r.show()
}

// at takes note of where the newest message of ours was read.
func (r *report) at(p resumePoint) {
	r.now.Queue, r.now.LastEventID, r.now.StoredSeq = p.at.Queue, p.at.Last, p.seq()
	if r.now.Stored = (time.Time{}); p.last != nil {
		r.now.Stored = p.last.Time
	}
	r.show()
}

// stored takes note of entries that stand, and where the last of them does: by an
// acknowledgement, or found there. What is found may have been counted before, if the
// stream seemed to have gone back; its sequence is no greater then.
func (r *report) stored(entries []entry, seq uint64, acked bool) {
	at := entries[len(entries)-1].after
	now := time.Now()
	r.now.Queue, r.now.LastEventID, r.now.StoredSeq, r.now.Stored = at.Queue, at.Last, seq, now
	defer r.show()
	if !acked {
		entries = entries[len(entries)-int(min(seq-min(seq, r.counted), uint64(len(entries)))):]
		seq = max(seq, r.counted)
	}
	r.counted = seq
	second := uint32(now.Unix())
	for i := range entries {
		e := &entries[i]
		n := max(1, e.left)
		r.now.tallies[e.tally] += uint64(n)
		r.now.recent.add(e.tally, second, n)
		r.now.Counters.Bytes += uint64(len(e.msg.Data) + e.object)
		if e.object > 0 {
			r.now.Counters.Oversize++
		}
	}
}

// failed counts a request to NATS that failed.
func (r *report) failed(side string, err error) {
	kind := "other"
	if e, ok := errors.AsType[*stream.Error](err); ok {
		kind = e.Kind.String()
	}
	if _, ok := errors.AsType[*stream.ConfigError](err); ok {
		kind = "settings"
	}
	if stream.Away(err) {
		kind = "away"
	}
	r.now.Counters.Errors = oneMore(r.now.Counters.Errors, Error{side, kind})
	r.show()
}

// oneMore counts in a copy: what was shown stays as it is.
func oneMore[K comparable](counts map[K]uint64, key K) map[K]uint64 {
	counts = maps.Clone(counts)
	if counts == nil {
		counts = map[K]uint64{}
	}
	counts[key]++
	return counts
}

// reconnectTime is what a connection to NATS may take to come back before its loss counts
// as trouble, in [Status]: another server of a cluster takes over in less than a second.
const reconnectTime = 3 * time.Second

// Status says how the bridge is. Any goroutine may ask, at any time and as often as it
// likes: the loop is not waited for and does not wait.
func (b *Bridge) Status() Status {
	shown := b.report.current.Load()
	s := shown.Status
	s.Late = b.pulse.Late()
	s.Counters = b.counters(shown)
	s.Recent = shown.recent.list()
	s.Wrong = map[string]health.State{}
	wrong := func(side string, state health.State, set bool) {
		if before, is := s.Wrong[side]; set && (!is || state.Since.Before(before.Since)) {
			s.Wrong[side] = state
		}
	}
	if b.cfg.LeaseTrouble != nil {
		state, set := b.cfg.LeaseTrouble.State()
		wrong(SideLease, state, set)
	}
	if s.State == Standby || s.State == Stopped {
		return s
	}
	for side, c := range map[string]*health.Condition{SideNATS: &b.outage.Condition, SideObjects: &b.objects,
		SideErasing: &b.erasing.wrong} {
		state, set := c.State()
		wrong(side, state, set)
	}
	state, set := b.unopened.State()
	wrong(SideNATS, state, set)
	if b.cfg.Disconnected != nil {
		state, set = b.cfg.Disconnected.State()
		wrong(SideNATS, state, set && time.Since(state.Since) > reconnectTime)
	}
	state, set = b.poller.Trouble()
	wrong(SideZulip, state, set)
	state, set = b.unregistered.State()
	wrong(SideZulip, state, set)
	if s.Leads {
		s.Expires, s.Answered = b.poller.Expires(), b.poller.Answered()
		if !s.Expires.IsZero() {
			s.Life = b.poller.Life()
		}
	}
	waiting := func(as State, on health.State) {
		s.State = as
		if on.Since.After(s.Since) {
			s.Since = on.Since
		}
	}
	if on, is := s.Wrong[SideNATS]; is {
		waiting(WaitingNATS, on)
	} else if on, is := s.Wrong[SideZulip]; is {
		waiting(WaitingZulip, on)
	}
	return s
}

// counters adds to what the loop has shown what the poller counts, and gives the types
// their names.
func (b *Bridge) counters(s *shown) Counters {
	c, zulip := s.Counters, b.poller.Counters()
	c.Rejected, c.Skipped, c.Refilled = s.tallies[tallyRejected], s.tallies[tallySkipped], s.tallies[tallyRefilled]
	c.Excluded = s.tallies[tallyExcluded]
	c.Events = map[string]uint64{}
	count := func(name string, t tally) {
		if n := s.tallies[t]; n > 0 {
			c.Events[name] = n
		}
	}
	count("other", tallyOther)
	for name, t := range tallyOf() {
		count(name, t)
	}
	c.Polls, c.RateLimited = zulip.Polls, zulip.RateLimited
	c.Gaps, c.Errors = maps.Clone(c.Gaps), maps.Clone(c.Errors)
	for kind, n := range zulip.Errors {
		if c.Errors == nil {
			c.Errors = map[Error]uint64{}
		}
		c.Errors[Error{SideZulip, kind}] = n
	}
	return c
}
