package bridge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"zulip-nats/poller"
	"zulip-nats/subjects"
)

// isItLost decides what a refused poll means (design, section 9.3). One answer never decides it: another instance may have moved on and
// acknowledged what we ask for, and that is no gap. The queue is lost if the stream says that nobody moved on, Zulip refuses a second
// time, and a gap-opened record can be stored right behind what was read: a bridge that had moved on would have left a message there.
//
// alive: go on polling. Otherwise the stream has to be read again: it may hold the record of the gap now, or somebody else's work.
func (b *Bridge) isItLost(ctx context.Context, refused *poller.RefusedError) (alive bool, err error) {
	b.log.Warn().Str("queue", b.known.Queue).Int64("event_id", b.known.Last).Str("zulip", refused.Error()).
		Msg("Zulip refuses the poll: looking whether the queue is lost")
	p, err := b.read(ctx)
	if err != nil {
		return false, err
	}
	if b.wentBack(p) || p.phase != phasePoll || p.at != b.known {
		return false, errMoved
	}
	if err := b.leading(); err != nil {
		return false, err
	}
	for pause, since := time.Second, time.Now(); ; pause = min(2*pause, 15*time.Second) {
		err := b.poller.Probe(ctx, b.known)
		if err == nil {
			b.log.Info().Str("queue", b.known.Queue).Msg("Zulip takes the poll after all: going on")
			return true, nil
		}
		if refused = asRefused(err); refused == nil {
			return false, err
		}
		if refused.Kind != poller.RefusedOther || time.Since(since) > time.Minute {
			break
		}
		if err := sleep(ctx, pause); err != nil {
			return false, err
		}
	}
	return false, b.openGap(ctx, p, "Zulip has dropped the queue", refused)
}

// openGap writes the record that opens a gap, right behind what was read. It comes before registering: it proves that nobody else moved
// on and that the stream takes writes, so a failing bridge does not strew queues over Zulip. nil: it stands, and is what a read will find.
func (b *Bridge) openGap(ctx context.Context, p place, cause string, refused *poller.RefusedError) error {
	body := gapOpened{Record: recordGapOpened, Cause: cause, QueueID: p.at.Queue, LastEventID: p.at.Last, Noticed: time.Now().UTC()}
	if refused != nil {
		body.Zulip = refused.Error()
	}
	m, err := b.lastOn(ctx, b.cfg.Realm.Events()) // not the newest of all: that is our own record of this start
	if err != nil {
		return err
	}
	if m != nil {
		body.LastStored = m.Time.UTC()
	}
	if m, err = b.lastOn(ctx, b.messageSubject); err != nil {
		return err
	}
	if m != nil {
		body.LastMessageID, _ = headerInt(m, HeaderMessageID)
	}
	e, err := b.recordEntry(recordGapOpened, subjects.Gap, p.at, body)
	if err != nil {
		return err
	}
	if err := b.put(ctx, p, e); err != nil {
		return err
	}
	b.losses++
	b.log.Error().Str("cause", cause).Str("queue", p.at.Queue).Int64("last_event_id", p.at.Last).Int64("last_message_id", body.LastMessageID).
		Str("subject", e.msg.Subject).Msg("a gap is open")
	return nil
}

// begin handles a stream with no message of ours. The first start ever begins now, unless it was asked to go back; in a stream of our own
// whose sequence is above 0 the past is gone, which is told as a gap.
func (b *Bridge) begin(ctx context.Context, p place) error {
	info, err := b.info(ctx)
	if err != nil {
		return err
	}
	if info.LastSeq > 0 && b.stream.Dedicated() {
		return b.openGap(ctx, p, fmt.Sprintf("the stream's own past is gone: it holds no message of ours, though its last sequence is %d", info.LastSeq), nil)
	}
	r, err := b.register(ctx, whyFirst)
	if err != nil {
		return err
	}
	r.Begin = &beginning{Newest: r.Newest}
	if b.cfg.StartFrom.set() {
		above, err := b.startFrom(ctx, r.Newest)
		if err != nil {
			b.discard(ctx, r.QueueID)
			return err
		}
		r.Refill = &refillRange{Above: above, UpTo: r.Newest, Cause: "asked to start in the past", Until: r.Time.Add(r.life() / 2)}
		r.Held = &heldRange{From: 1, UpToID: r.Newest.max()}
	}
	return b.enroll(ctx, p, r, -1)
}

// replace registers the queue that follows a lost one, and records it.
func (b *Bridge) replace(ctx context.Context, p place) error {
	if err := sleep(ctx, lossPause(b.losses)); err != nil {
		return err
	}
	if err := b.leading(); err != nil {
		return err
	}
	r, err := b.register(ctx, whyLost)
	if err != nil {
		return err
	}
	r.Previous = p.at.Queue
	opened := decode[gapOpened](p.last)
	if opened == nil {
		opened = &gapOpened{}
	}
	before, err := b.recordOf(ctx, p.at.Queue)
	if err == nil {
		err = b.planRefill(ctx, r, opened, p.last.Seq, before)
	}
	if err != nil {
		b.discard(ctx, r.QueueID)
		return err
	}
	return b.enroll(ctx, p, r, -1)
}

// lossPause is the pause before a register: none for the first loss in a row, then 2 s doubling to 30 s, until a new queue has answered.
func lossPause(losses int) time.Duration {
	if losses <= 1 {
		return 0
	}
	d := min(2*time.Second<<min(losses-2, 4), 30*time.Second)
	return d*3/4 + rand.N(d/4)
}

// register makes a queue and what there is to record of it.
func (b *Bridge) register(ctx context.Context, why string) (*queueRecord, error) {
	reg, err := b.poller.Register(ctx)
	if err != nil {
		return nil, err
	}
	r := &queueRecord{Record: recordQueue, Why: why, QueueID: reg.QueueID, Site: b.cfg.Site, Account: b.cfg.Account, Options: b.poller.Options.JSON(),
		ZulipVersion: reg.Version, FeatureLevel: reg.FeatureLevel, LifeSeconds: reg.Life.Seconds(), LifeSaid: reg.LifeSaid,
		Patience: reg.Patience.Seconds(), Bridge: b.cfg.Version, Time: time.Now().UTC()}
	if b.receivesMessages() {
		if r.Newest, err = b.askNewest(ctx); err != nil {
			b.discard(ctx, r.QueueID)
			return nil, err
		}
	}
	return r, nil
}

// enroll makes a new queue durable, before its first poll, since its id exists nowhere else. If its record does not get stored the queue
// is deleted again: nobody would ever poll it.
func (b *Bridge) enroll(ctx context.Context, p place, r *queueRecord, last int64) error {
	e, err := b.queueEntry(r, last)
	if err != nil {
		return err
	}
	if err := b.put(ctx, p, e); err != nil {
		b.discard(ctx, r.QueueID)
		return err
	}
	b.followNew(r)
	return nil
}

// discard deletes a queue that nobody will follow, even while stopping. One try: Zulip drops it by itself when it has been idle.
func (b *Bridge) discard(ctx context.Context, queue string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := b.poller.Delete(ctx, queue); err != nil {
		b.log.Debug().Err(err).Str("queue", queue).Msg("a queue could not be deleted: Zulip drops it by itself when it has been idle")
	}
}

// tailLost handles a stream that holds less than what we know it held (design, section 9.3, step 3). If Zulip still has what the stream
// lost, polling from the stream's position brings it back. Otherwise the events between are lost, and said to be; if the queue lives it is
// followed further from where memory is.
func (b *Bridge) tailLost(ctx context.Context, p place) error {
	was := b.known
	b.log.Error().Str("stream_says", describe(p.at)).Str("stored_was", describe(was)).
		Msg("the stream holds less than what it had acknowledged (restored, recreated, purged, or its server lost power)")
	if b.record != nil {
		r := *b.record
		r.Begin = nil // it was a place in a stream that is no more
		b.record = &r
	}
	if p.phase == phasePoll {
		switch err := b.poller.Probe(ctx, p.at); {
		case err == nil:
			b.log.Warn().Str("at", describe(p.at)).Msg("Zulip still has what the stream lost: going on from there")
			b.forget(p)
			return nil
		case asRefused(err) == nil:
			return err
		}
	}
	if was.Queue == "" || p.phase == phaseRegister || p.phase == phaseRefill {
		b.forget(p)
		return nil
	}
	alive := false
	switch err := b.poller.Probe(ctx, was); {
	case err == nil:
		alive = true
	case asRefused(err) == nil:
		return err
	}
	cause := "the stream lost its newest messages, and Zulip has dropped the queue"
	if alive {
		cause = "the stream lost its newest messages; the queue lives on"
	}
	if err := b.openGap(ctx, place{phase: p.phase, at: was, cursor: p.cursor, last: p.last}, cause, nil); err != nil {
		return err
	}
	if !alive {
		return nil
	}
	return b.sameQueue(ctx, was, p)
}

// sameQueue records that the queue before the gap is the queue behind it: the stream had lost messages, Zulip had not dropped the queue.
// p is the place before the gap was opened.
func (b *Bridge) sameQueue(ctx context.Context, was poller.Position, p place) error {
	if b.record == nil || b.record.QueueID != was.Queue {
		return nil // only its record could tell how to follow it: a new queue then
	}
	r := *b.record
	r.Why, r.Previous, r.Time = whyLost, was.Queue, time.Now().UTC()
	opened := &gapOpened{Cause: "the stream lost its newest messages; the queue lives on"}
	missing := &idRange{Above: -1, UpTo: was.Last}
	if p.last != nil {
		opened.LastStored = p.last.Time
	}
	if p.at.Queue == was.Queue {
		missing.Above = p.at.Last
	}
	var err error
	if r.Newest, err = b.askNewest(ctx); err != nil {
		return err
	}
	if err := b.planRefill(ctx, &r, opened, b.knownSeq, b.record); err != nil {
		return err
	}
	r.Refill.Missing = missing
	e, err := b.queueEntry(&r, was.Last)
	if err != nil {
		return err
	}
	if err := b.put(ctx, place{cursor: b.cursor}, e); err != nil {
		return err
	}
	b.record, b.held = &r, nil
	return nil
}

// forget forgets what was known: the stream is the truth, even if it is an older one.
func (b *Bridge) forget(p place) {
	b.known, b.knownSeq = p.at, p.seq()
	b.record, b.held, b.rejected = nil, nil, rejections{}
}

// asRefused gives Zulip's refusal of a poll, nil if the error is another.
func asRefused(err error) *poller.RefusedError {
	refused, _ := errors.AsType[*poller.RefusedError](err)
	return refused
}

// Retire ends the queue for good: the gap is opened first, so that the next start does not look for a queue that we deleted ourselves.
func (b *Bridge) Retire(ctx context.Context) error {
	if err := b.open(ctx); err != nil {
		return err
	}
	p, err := b.read(ctx)
	if err != nil {
		return err
	}
	b.adopt(p)
	if p.at.Queue == "" {
		return nil
	}
	if p.phase != phaseRegister {
		switch err := b.openGap(ctx, p, "retired by the operator", nil); {
		case errors.Is(err, errMoved):
			return &ConfigError{"another instance works on this queue: stop it before the queue is retired"}
		case err != nil:
			return err
		}
	}
	return b.poller.Delete(ctx, p.at.Queue)
}
