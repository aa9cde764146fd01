package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"zulip-nats/events"
	"zulip-nats/logevent"
	"zulip-nats/poller"
	"zulip-nats/redact"
	"zulip-nats/subjects"
)

// isItLost decides what a refused poll means (design, section 9.3). One answer never
// decides it: another instance may have moved on and acknowledged what we ask for, and
// that is no gap. The queue is lost if the stream says that nobody moved on, Zulip
// refuses a second time, and a gap-opened record can be stored right behind what was
// read: a bridge that had moved on would have left a message there.
//
// alive: go on polling. Otherwise the stream has to be read again: it may hold the record
// of the gap now, or somebody else's work.
func (b *Bridge) isItLost(ctx context.Context, refused *poller.RefusedError) (alive bool, err error) {
	logevent.PollRefused.Warn(b.log).Str("queue", b.known.Queue).Int64("event_id", b.known.Last).
		Str("zulip", refused.Error()).Msg("Zulip refuses the poll: looking whether the queue is lost")
	p, err := b.read(ctx)
	if err != nil {
		return false, err
	}
	if p.phase != phasePoll || p.at != b.known || p.seq() != b.knownSeq {
		return false, errMoved
	}
	for pause, since := time.Second, time.Now(); ; pause = min(2*pause, 15*time.Second) {
		err := b.poller.Probe(ctx, b.known)
		if err == nil {
			logevent.PollTaken.Info(b.log).Str("queue", b.known.Queue).Msg("Zulip takes the poll after all: going on")
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
	why, cause := gapDropped, "Zulip has dropped the queue"
	if b.record != nil {
		if change := changeOfAccount(b.record.Account, b.account()); change != "" {
			why, cause = gapAccount, change
		}
	}
	return false, b.openGap(ctx, p, why, events.GapOpened{Cause: cause, Zulip: refused.Error()})
}

// changeOfAccount says that the account is another one, "" if it is not. What the one may
// read, the other may not.
func changeOfAccount(was, is string) string {
	if was == is {
		return ""
	}
	return fmt.Sprintf("the account changed from %s to %s, and a queue belongs to its account", was, is)
}

// openGap writes the record that opens a gap, right behind what was read. It comes before
// registering: it proves that nobody else moved on and that the stream takes writes, so a
// failing bridge does not strew queues over Zulip. why is what it is counted as. nil: it
// stands, and is what a read will find.
func (b *Bridge) openGap(ctx context.Context, p resumePoint, why string, body events.GapOpened) error {
	body.Record, body.QueueID, body.LastEventID, body.Noticed = events.RecordGapOpened, p.at.Queue, p.at.Last,
		time.Now().UTC()
	newest := uint64(0)
	for _, filter := range b.realm.Events() { // not the newest of all: that is our own record of this start
		m, err := b.ourLastOn(ctx, filter)
		if err != nil {
			return err
		}
		if m != nil && m.Seq > newest {
			newest, body.LastStored = m.Seq, m.Time.UTC()
		}
	}
	m, err := b.ourLastOn(ctx, b.onMessages)
	if err != nil {
		return err
	}
	if m != nil {
		body.LastMessageID, _ = headerInt(m, events.HeaderMessageID)
	}
	e, err := b.recordEntry(events.RecordGapOpened, subjects.Gap, p.at, body)
	if err != nil {
		return err
	}
	if err := b.put(ctx, e, p.phase, p.seq()); err != nil {
		return err
	}
	b.losses++
	b.report.now.Counters.Gaps, b.report.now.Counters.LastGap = oneMore(b.report.now.Counters.Gaps, why), time.Now()
	b.report.show()
	line := logevent.GapOpened.Error(b.log).Str("gap", "opened").Str("cause", body.Cause).Str("queue", p.at.Queue).
		Int64("last_event_id", p.at.Last).Int64("last_message_id", body.LastMessageID)
	if !body.LastStored.IsZero() {
		line.Time("since", body.LastStored)
	}
	line.Str("subject", e.msg.Subject).Msg("a gap is open")
	return nil
}

// causePast is the cause of a refill that begins with the very first start.
const causePast = "asked to start in the past"

// begin handles a stream with no message of ours. The first start ever begins now, unless
// it was asked to go back; in a stream of our own whose sequence is above 0 the past is
// gone, which is told as a gap.
func (b *Bridge) begin(ctx context.Context, p resumePoint) error {
	info, err := b.info(ctx)
	if err != nil {
		return err
	}
	if info.LastSeq > 0 && b.stream.Dedicated() {
		return b.openGap(ctx, p, gapPast, events.GapOpened{
			Cause: fmt.Sprintf("the stream's own past is gone: it holds no message of ours, though its "+
				"last sequence is %d", info.LastSeq)})
	}
	r, err := b.registerPatiently(ctx, events.WhyFirst)
	if err != nil {
		return err
	}
	r.Begin = &events.Beginning{Newest: r.Newest}
	if b.cfg.StartFrom.set() {
		o := b.poller.Options
		r.Refill = &events.Refill{Own: receives(o, false), Public: receives(o, true), Narrow: o.Narrow,
			NoDirect: o.NoDirectMessages, UpTo: r.Newest, Cause: causePast, Until: refillUntil(r)}
		if r.Refill.Above, err = b.startFrom(ctx, r); err != nil {
			b.discard(ctx, r.QueueID)
			return err
		}
		r.Refill.Unknown = r.Refill.Above.Own == events.Unknown || r.Refill.Above.Public == events.Unknown
		r.Held, r.Begin.Newest = &events.Held{From: 1, UpToID: upTo(r.Refill)}, r.Refill.Above
	}
	return b.commitQueue(ctx, p.phase, r)
}

// registerNext registers the queue that follows a lost one, and records it.
func (b *Bridge) registerNext(ctx context.Context, p resumePoint) error {
	if err := sleep(ctx, lossPause(b.losses)); err != nil {
		return err
	}
	before, err := b.recordOf(ctx, p)
	if err != nil {
		return err
	}
	if before, err = b.belongs(ctx, before); err != nil {
		return err
	}
	r, err := b.registerPatiently(ctx, events.WhyLost)
	if err != nil {
		return err
	}
	r.Previous = p.at.Queue
	opened := decode[events.GapOpened](p.last)
	if opened == nil {
		opened = &events.GapOpened{}
	}
	if b.abandoned != "" {
		opened.Cause, b.abandoned = opened.Cause+"; "+b.abandoned, ""
	}
	if before != nil {
		r.MovedFrom = before.MovedFrom
		if change := changeOfAccount(before.Account, r.Account); change != "" &&
			!strings.Contains(opened.Cause, change) {
			opened.Cause += "; " + change
		}
	}
	if err := b.planRefill(ctx, r, opened, before); err != nil {
		b.discard(ctx, r.QueueID)
		return err
	}
	return b.commitQueue(ctx, p.phase, r)
}

const (
	// refusedRegisters is how often the very first register may be refused. One refusal
	// may be a proxy's whim.
	refusedRegisters = 3
	// refusedPause is the longest pause behind a refused register.
	refusedPause = time.Minute
)

// registerPatiently registers until Zulip takes it. A refusal ends nothing once a queue
// was had: what Zulip refuses today it may take tomorrow. At the very first start
// somebody is there to be told.
func (b *Bridge) registerPatiently(ctx context.Context, why string) (*events.Queue, error) {
	for tries, pause := 1, time.Second; ; tries, pause = tries+1, min(2*pause, refusedPause) {
		r, err := b.register(ctx, why)
		refused := asRefused(err)
		switch {
		case refused == nil:
			b.unregistered.Clear()
			return r, err
		case why == events.WhyFirst && tries >= refusedRegisters:
			return nil, &ConfigError{fmt.Sprintf("Zulip at %s registers no queue with these options: %v; correct "+
				"--event-types, --narrow or --all-public-streams (a guest may not ask for all public "+
				"channels)", redact.URL(b.cfg.Site), refused)}
		}
		if _, news := b.unregistered.Set(refused.Error(), refused.Error()); news {
			logevent.OptionsRefused.Error(b.log).Str("zulip", refused.Error()).
				Msg("Zulip registers no queue with these options: asking again, less and less often; " +
					"if they are wrong, correct them and restart")
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, err
		}
	}
}

// lossPause is the pause before a register: none for the first loss in a row, then 2 s
// doubling to 30 s, until a new queue has answered.
func lossPause(losses int) time.Duration {
	if losses <= 1 {
		return 0
	}
	d := min(2*time.Second<<min(losses-2, 4), 30*time.Second)
	return d*3/4 + rand.N(d/4)
}

// tailLost handles a stream that holds less than what we know it held (design, section
// 9.3, step 3). If Zulip still has what the stream lost, polling from the stream's
// position brings it back. Otherwise the events between are lost, and said to be; if the
// queue lives it is followed further from where memory is.
func (b *Bridge) tailLost(ctx context.Context, p resumePoint) error {
	was := b.known
	logevent.StreamWentBack.Error(b.log).Str("stream_says", describe(p.at)).Str("stored_was", describe(was)).
		Msg("the stream holds less than what it had acknowledged (restored, recreated, purged, or its server " +
			"lost power)")
	if p.phase == phasePoll {
		switch err := b.poller.Probe(ctx, p.at); {
		case err == nil:
			logevent.StreamMadeGood.Warn(b.log).Str("at", describe(p.at)).
				Msg("Zulip still has what the stream lost: going on from there")
			b.forget(p)
			return nil
		case asRefused(err) == nil:
			return err
		}
	}
	if was.Queue == "" || p.phase == phaseRegister || p.phase == phaseRefill ||
		p.at.Queue == was.Queue && p.at.Last >= was.Last {
		// In a stream that was made anew, another instance may have come further than we
		// had.
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
	if err := b.misfit(ctx, func() error { return FitsLayout(ctx, b.stream, b.realm) }); err != nil {
		return err // it is another one's: an older backup, or made anew
	}
	survivor, err := b.survivor(ctx, p, was)
	if err != nil {
		return err
	}
	record := behind(b.record, p, survivor)
	if !alive && record != nil && survivor != nil && survivor.Newest.Max() > record.Newest.Max() {
		record = nil // the stream is another one, and its story began since, with the survivor
	}
	opened := events.GapOpened{Cause: "the stream lost its newest messages, and Zulip has dropped the queue",
		Missing: &events.Range{Above: -1, UpTo: was.Last}}
	if alive {
		opened.Cause = "the stream lost its newest messages; the queue lives on"
	}
	if p.at.Queue == was.Queue {
		opened.Missing.Above = p.at.Last
	} else if record != nil {
		if opened.QueueRecord, err = json.Marshal(record); err != nil {
			return err
		}
	}
	if q := p.at.Queue; q != "" && q != was.Queue {
		opened.GivenUp = q
		opened.Cause += fmt.Sprintf("; the stream names %s, which Zulip refuses, and which is followed no more", describe(p.at))
		if !b.isLeftover(q) && !slices.Contains(b.dropped, q) {
			b.leftovers = append(b.leftovers, leftover{queue: q, after: p.cursor.Seq}) // one refusal may be wrong
		}
	}
	if err := b.openGap(ctx, resumePoint{phase: p.phase, at: was, last: p.last}, gapTail, opened); err != nil {
		return err
	}
	b.record = record
	if !alive {
		return nil
	}
	return b.sameQueue(ctx, was, p, &opened)
}

// survivor is the record of the queue that the stream says is followed, where that is
// another one than the one that was; nil if there is none.
func (b *Bridge) survivor(ctx context.Context, p resumePoint, was poller.Position) (*events.Queue, error) {
	if p.at.Queue == was.Queue {
		return nil, nil
	}
	return b.recordOf(ctx, p)
}

// behind is the record as it counts where p is all that is left of its stream: a place
// behind p is in a stream that is no more (sequence 0), and what was settled since the
// survivor's record may be lost with it.
func behind(r *events.Queue, p resumePoint, survivor *events.Queue) *events.Queue {
	if r == nil || r.Begin == nil || p.at.Queue == r.QueueID && p.seq() >= r.Begin.Seq {
		return r
	}
	anew := *r
	anew.Begin = &events.Beginning{Newest: r.Begin.Newest}
	if survivor != nil {
		anew.Begin = survivor.Begin
	}
	return &anew
}

// sameQueue records that the queue before the gap is the queue behind it: the stream had
// lost messages, Zulip had not dropped the queue. p is the place before the gap was
// opened.
func (b *Bridge) sameQueue(ctx context.Context, was poller.Position, p resumePoint, opened *events.GapOpened) error {
	if b.record == nil || b.record.QueueID != was.Queue {
		return nil // only its record could tell how to follow it: a new queue then
	}
	r := *b.record
	r.Why, r.Previous, r.Time = events.WhyLost, was.Queue, time.Now().UTC()
	if p.last != nil {
		opened.LastStored = p.last.Time
	}
	var err error
	if r.Newest, err = b.askNewest(ctx, optionsOf(b.record), r.Life()); err != nil {
		return err
	}
	if err := b.planRefill(ctx, &r, opened, b.record); err != nil {
		return err
	}
	// Nothing has renewed its clock since it was last polled.
	if expires := b.poller.Expires(); !expires.IsZero() {
		if half := time.Now().Add(time.Until(expires) / 2); half.Before(r.Refill.Until) {
			r.Refill.Until = half
		}
	}
	e, err := b.queueEntry(&r, was.Last, events.NextRefill)
	if err != nil {
		return err
	}
	if err := b.put(ctx, e, phaseRegister, b.knownSeq); err != nil {
		return err
	}
	b.record = &r
	return nil
}

// forget forgets what was known: the stream is the truth, even if it is an older one.
func (b *Bridge) forget(p resumePoint) {
	if b.known.Queue != "" && b.known.Queue != p.at.Queue && !b.isLeftover(b.known.Queue) {
		// Nobody knows of that queue any more, unless a deposed leader has told us so.
		b.leftovers = append(b.leftovers, leftover{queue: b.known.Queue, after: p.cursor.Seq})
		if p.phase == phaseRegister {
			b.abandoned = fmt.Sprintf("the stream lost its newest messages, and with them %s, which is followed no more",
				describe(b.known))
		}
	}
	b.known, b.knownSeq, b.record = p.at, p.seq(), nil
}

// asRefused gives Zulip's refusal of a poll, nil if the error is another.
func asRefused(err error) *poller.RefusedError {
	refused, _ := errors.AsType[*poller.RefusedError](err)
	return refused
}
