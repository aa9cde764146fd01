package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"zulip-nats/events"
	"zulip-nats/health"
	"zulip-nats/logevent"
	"zulip-nats/poller"
)

// A queue at Zulip is made by one request and dropped by another, and both are for good:
// so neither goes before what it depends on is known. A queue is deleted only by who
// leads, and only if the stream was seen not to follow it. What is not clear yet is a
// leftover, and waits.

// leftover is a queue at Zulip that nobody may need. A record that names it may be
// stored, or may yet be, right behind the sequence after; once the newest message is
// another one than that, it stands there or it never will.
type leftover struct {
	queue string
	after uint64
	seen  time.Time // when a read was first answered since
	due   time.Time // not before: a DELETE has failed
}

// leftoverTime is how long a write may take to be stored that was given up, where the
// server has answered reads since: by then its replicas have agreed on it or dropped it.
const leftoverTime = time.Minute

const (
	// askNewestTime is how long a new queue waits for history to say which message is its
	// newest.
	askNewestTime = time.Minute
	// deleteTime is how long a DELETE may take, deleteAgain when one that failed is tried
	// again.
	deleteTime  = time.Second
	deleteAgain = time.Minute
	// droppedMost is how many of the queues that were deleted are remembered: a record may
	// name them for a day.
	droppedMost = 8
)

// register makes a queue and what there is to record of it. At a stop, a request under
// way is waited for, since Zulip may have made a queue that nobody would ever know of. A
// 400 is returned as it is.
func (b *Bridge) register(ctx context.Context, why string) (*events.Queue, error) {
	if err := b.leading(); err != nil {
		return nil, err
	}
	reg, err := b.poller.Register(ctx)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		b.discard(ctx, reg.QueueID)
		return nil, context.Cause(ctx)
	}
	b.report.now.Counters.Queues++
	b.state.queue, b.state.told, b.state.asked = reg.QueueID, reg.State, time.Now()
	account := b.account()
	r := &events.Queue{Record: events.RecordQueue, Why: why, QueueID: reg.QueueID, Site: b.cfg.Site, Account: account,
		Options: b.poller.Options.JSON(), Subjects: layoutName(b.realm),
		ZulipVersion: reg.Version, FeatureLevel: reg.FeatureLevel, LifeSeconds: reg.Life.Seconds(),
		LifeSaid:        reg.LifeSaid,
		PatienceSeconds: reg.Patience.Seconds(), Bridge: b.cfg.Version, Time: time.Now().UTC()}
	if r.Newest, err = b.askNewest(ctx, b.poller.Options, reg.Life); err != nil {
		b.discard(ctx, r.QueueID)
		return nil, err
	}
	return r, nil
}

// askNewest asks history for its newest message in each query of a queue with these
// options. What history does not say in time, or refuses to say, is unknown. The error is
// ctx's.
func (b *Bridge) askNewest(ctx context.Context, o poller.Options, life time.Duration) (n events.MessageIDs, err error) {
	if !receives(o, false) {
		return n, nil
	}
	limited, cancel := context.WithTimeout(ctx, min(askNewestTime, life/8))
	defer cancel()
	ask := func(public bool) int64 {
		id, err := newestMessage(limited, b.poller, query{public: public, narrow: o.Narrow})
		if err == nil {
			return id
		}
		if ctx.Err() == nil {
			logevent.HistorySilent.Warn(b.log).Err(err).
				Msg("Zulip's history does not say which message is its newest: going on without")
		}
		return events.Unknown
	}
	n.Own = ask(false)
	if receives(o, true) {
		n.Public = ask(true)
	}
	if ctx.Err() != nil {
		return n, context.Cause(ctx)
	}
	return n, nil
}

// commitQueue makes a new queue durable, before its first poll, since its id exists nowhere
// else. If its record did not get stored the queue is a leftover.
func (b *Bridge) commitQueue(ctx context.Context, in phase, r *events.Queue) error {
	next := events.NextPoll
	if r.Refill != nil {
		next = events.NextRefill
	}
	e, err := b.queueEntry(r, -1, next)
	if err != nil {
		b.discard(ctx, r.QueueID)
		return err
	}
	switch err := b.put(ctx, e, in, b.knownSeq); {
	case err == nil:
	case !b.maybe: // nobody else can know of it, whoever leads
		b.discard(ctx, r.QueueID)
		return err
	default:
		b.leftovers = append(b.leftovers, leftover{queue: r.QueueID, after: b.maybeAt})
		return err
	}
	if r.Previous != r.QueueID {
		b.leave(r.Previous)
	}
	logevent.QueueRegistered.Info(b.log).Str("queue", r.QueueID).Str("why", r.Why).Str("zulip", r.ZulipVersion).
		Int("feature_level", r.FeatureLevel).
		Stringer("idle_life", r.Life()).Bool("life_said_by_server", r.LifeSaid).
		Msg("a queue is registered and recorded")
	if r.Begin != nil && r.Begin.Seq == 0 {
		r.Begin.Seq = b.knownSeq
	}
	b.record, b.refreshedAt, b.held = r, time.Now(), nil
	b.follows()
	b.poller.Follow(poller.Queue{ID: r.QueueID, Life: r.Life(), Patience: r.Patience(), Renewed: r.Time})
	b.sweep(ctx, b.cursor.Seq)
	return nil
}

// leave notes a queue that the stream's record says was before ours: given up, or changed
// over from. It may still live at Zulip, and would hoard events for as long as its idle
// life.
func (b *Bridge) leave(queue string) {
	if queue != "" && !b.isLeftover(queue) && !slices.Contains(b.dropped, queue) {
		b.leftovers = append(b.leftovers, leftover{queue: queue})
	}
}

func (b *Bridge) isLeftover(queue string) bool {
	return slices.ContainsFunc(b.leftovers, func(l leftover) bool { return l.queue == queue })
}

// sweep deletes the leftovers that the stream turned out not to follow; newest is the
// sequence of its newest message, known what it follows. Without a right to do so nothing
// is done.
func (b *Bridge) sweep(ctx context.Context, newest uint64) {
	if len(b.leftovers) == 0 || b.leading() != nil {
		return
	}
	var rest []leftover
	unneeded := ""
	for _, l := range b.leftovers {
		if l.seen.IsZero() {
			l.seen = time.Now()
		}
		switch {
		case l.queue == b.known.Queue:
			// It is followed: the record stands.
		case unneeded != "", newest <= l.after && time.Since(l.seen) < leftoverTime, time.Now().Before(l.due):
			rest = append(rest, l)
		default:
			unneeded = l.queue
		}
	}
	b.leftovers = rest
	if unneeded != "" { // one at a time: Zulip may not answer
		b.discard(ctx, unneeded)
	}
}

// tidyTime is how long NATS has at a stop to say what became of the record of a leftover.
const tidyTime = 500 * time.Millisecond

// tidy deletes, at a stop, the leftovers that the stream turned out not to follow: the
// next start knows nothing of them. What is not clear by then is left to Zulip, which
// drops it when it has been idle.
func (b *Bridge) tidy(ctx context.Context) {
	if len(b.leftovers) == 0 {
		return
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTime)
	defer cancel()
	if p, err := b.read(last); err == nil && !b.wentBack(p) {
		b.adopt(last, p)
	}
}

// clearEvery is how often a standby with leftovers looks what became of them.
const clearEvery = 10 * time.Second

// clearLeftovers deletes, while this instance waits for the lease, the leftovers that the
// stream turned out not to follow: their records were ours, and who leads now knows
// nothing of them. It works beside the caller until stop has returned, and touches
// nothing but what is known and left over.
func (b *Bridge) clearLeftovers(ctx context.Context) (stop func()) {
	if len(b.leftovers) == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(health.WithoutPulse(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for began := time.Now(); len(b.leftovers) > 0 && sleep(ctx, clearEvery) == nil; {
			p, err := locate(ctx, b.stream, b.realm, &below{})
			// A stream that holds less for that long is another one, or was restored.
			if err == nil && (!b.wentBack(p) || time.Since(began) > leftoverTime) {
				b.known, b.knownSeq = p.at, p.seq()
				b.sweep(ctx, p.cursor.Seq)
			}
		}
	}()
	return func() { cancel(); <-done }
}

// discard deletes a queue that nobody will follow, even while stopping. If Zulip does not
// answer, it is a leftover; in the end Zulip drops it by itself, when it has been idle.
func (b *Bridge) discard(ctx context.Context, queue string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteTime)
	defer cancel()
	err := b.poller.Delete(ctx, queue)
	if err == nil {
		b.dropped = append(b.dropped, queue)
		b.dropped = b.dropped[max(0, len(b.dropped)-droppedMost):]
	} else {
		b.log.Debug().Err(err).Str("queue", queue).
			Msg("a queue could not be deleted: trying again in a while; else Zulip drops it when it has been idle")
		b.leftovers = append(b.leftovers, leftover{queue: queue, due: time.Now().Add(deleteAgain)})
	}
}

// retireTime is how long retiring a queue may take at a stop.
const retireTime = 4 * time.Second

// retire ends the queue for good, under the lease: the gap is opened first, so that the
// next start does not look for a queue that we deleted ourselves.
func (b *Bridge) retire(ctx context.Context) error {
	failed := func(why error) error {
		if errors.Is(why, errNotLeader) {
			why = errors.New("the lease was lost before") // no further term is to follow
		}
		which := "the queue"
		if q := b.known.Queue; q != "" {
			which += " " + strconv.Quote(q)
		}
		return fmt.Errorf("%s was to be deleted, and it was not: %w", which, why)
	}
	p, err := b.read(ctx)
	if err != nil {
		return failed(err)
	}
	b.adopt(ctx, p)
	if p.at.Queue == "" {
		return nil
	}
	// Only what would be followed is ours to end, and what an open end of its records
	// says is written down first.
	r, err := b.loadRecord(ctx, p)
	if err == nil && p.phase == phasePoll && r.Held != nil && r.Held.Until == 0 {
		if err = b.closeHeld(ctx, p); err == nil {
			p, err = b.read(ctx)
		}
	}
	if err != nil {
		return failed(err)
	}
	if account := b.account(); r.Account != account {
		return failed(fmt.Errorf("it belongs to the account %s, and the zuliprc is that of %s", r.Account, account))
	}
	if p.phase != phaseRegister {
		if err := b.openGap(ctx, p, gapRetired, events.GapOpened{Cause: "retired by the operator"}); err != nil {
			return failed(err)
		}
	}
	if err := b.leading(); err != nil {
		return failed(err)
	}
	if err := b.poller.Delete(ctx, p.at.Queue); err != nil {
		return fmt.Errorf("the queue %q is retired in the stream, and Zulip did not delete it (it drops it when it "+
			"has been idle): %w", p.at.Queue, err)
	}
	return nil
}
