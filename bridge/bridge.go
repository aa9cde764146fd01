// Package bridge is the promise: each event that Zulip put in our queue is in the stream
// exactly once, in queue order, whatever crashes and whoever else runs; and when Zulip
// drops the queue, the stream itself says so.
//
// Four rules carry it (docs/design.md, section 2).
//
//  1. Asking is acknowledging. The next poll's last_event_id is the only acknowledgement
//     that Zulip knows, so it leaves only when everything up to that id is stored.
//  2. The stream is the checkpoint. Every message carries the position it leaves us at.
//     To resume is to read the newest message back. So nothing is passed over without a
//     message: what cannot be stored on its own subject leaves a record.
//  3. Compare and swap on every write. Each says what it expects to follow. Another
//     bridge, a late ghost of an earlier write, a retry of what had worked: the server
//     refuses them all.
//  4. An unclear answer is settled by reading, never by assuming.
//
// What the world looks like if the power fails at each arrow of the loop:
//
//	Next(at) ──► batch ──► Append ──► acked ──► at moves ──► Next(at)
//	   │           │          │          │           │
//	   │           │          │          │           └ Zulip has not been asked yet: it still holds what we stored, and the stream
//	   │           │          │          │             says that we have it. The next start asks from there.
//	   │           │          │          └ the same: the position is in the stream, memory is only its echo.
//	   │           │          └ a part may be stored, and a late part may still land. The next start reads the newest message, asks
//	   │           │            Zulip from there, and its first write names the message that it read: if a ghost came in between, the
//	   │           │            server refuses that write, and we read again.
//	   │           └ nothing stored, nothing acknowledged: Zulip sends the same bytes again.
//	   └ Zulip has forgotten what is at or below `at`, all of which is stored.
//
// Several batches of one answer may be on their way at once (store.go): `at` moves when all
// of them are acknowledged.
//
// The loss of a queue is a walk through phases (resume.go), each begun by a write:
// gap-opened, then register, then the queue's record, then refilled messages, then
// gap-closed. A crash finds its phase in the newest message.
//
// What reads the stream, and everything that writes to it, is in tail.go. What waits for
// nobody is in encode.go (what is stored for an event), reconcile.go (what of it is there
// already) and plan.go (which messages a lost queue kept from us), with tables for tests.
// What others may know of all that is in status.go, where messages are in places.go, and
// which layout of subjects the stream has in layout.go.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/events"
	"zulip-nats/health"
	"zulip-nats/logevent"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// Config is all that a Bridge needs.
type Config struct {
	// Realm names the subjects; Site and Account say whose queue it is and are written in
	// the queue's record. Account is that of the start: the poller reads it again when
	// Zulip refuses the key, and the record then has what it found.
	Realm subjects.Realm
	// MovedFrom is the address that the organization had before, if the stream knows it
	// by that one.
	Site      string
	MovedFrom string
	Account   string

	// Poller asks Zulip.
	Poller *poller.Poller

	// Open finds the stream, makes it or verifies it: at the start, and again when it was
	// deleted. A [*stream.ConfigError], [*poller.AuthError] or [*poller.ConfigError] ends
	// Run; anything else is tried again.
	Open func(ctx context.Context) (Stream, error)

	// Acquire waits for the lease, and calls standby when it begins to wait for another
	// holder, before it returns; leader is the Writer of that one, empty if it is not
	// known. It waits for as long as that one lives, and looks again and again: each look
	// and pause is a sign of life ([health.Waits]). Nil: this instance works without one,
	// fenced by the compare-and-swap alone.
	Acquire func(ctx context.Context, standby func(leader string)) (Lease, error)
	// LeaseTrouble is set while there is something wrong with the lease, for
	// [Bridge.Status]. Nil: nobody knows.
	LeaseTrouble *health.Condition
	// Disconnected is set while there is no connection to NATS, for [Bridge.Status]: an
	// organization in which nothing happens has nothing to store, and so would not notice
	// for as long as a poll may wait. Nil: nobody knows.
	Disconnected *health.Condition

	// Following is called when a queue is followed for the first time: registered and
	// recorded, or resumed. Nil: nobody wants to know.
	Following func()

	// Writer names this instance in Bridge-Writer, different for each process.
	Writer string

	// StartFrom says where the very first start begins. The zero value: now.
	StartFrom StartFrom

	// RefillMaxAge and RefillMaxMessages bound what is read back from Zulip's history
	// after a lost queue; zero: no bound of that kind. RefillMaxMessages below zero
	// switches refilling off.
	RefillMaxAge      time.Duration
	RefillMaxMessages int

	// OversizeWait is how long an event that is larger than a message may be waits for an
	// object store that does not take it, while the stream does take writes; never longer
	// than a quarter of the queue's life. Then it is rejected, with its size and digest.
	// Zero: DefaultOversizeWait.
	OversizeWait time.Duration

	// EraseDeleted: what the stream and the object store hold of a message is erased when a
	// delete_message event says that it was deleted at Zulip.
	EraseDeleted bool

	// DeleteQueue makes a stop retire the queue for good: a gap is opened, then Zulip
	// deletes it. Only who leads does so. Otherwise the queue is left standing, since the
	// next start resumes it.
	DeleteQueue bool
	// Again is the cause with which Run's ctx ends where Run of another Bridge follows at
	// once, for the same realm: that is no stop to retire the queue for. Nil: there is none.
	Again error

	// CloudEvents adds the headers of a CloudEvent to what is stored.
	CloudEvents bool

	// Version is written in records.
	Version string

	// Log gets each change of state once. The zero value is silent.
	Log zerolog.Logger
}

// StartFrom is where a first start begins: at a message, or at a time. The zero value
// means now.
type StartFrom struct {
	MessageID int64
	Time      time.Time
}

func (s StartFrom) set() bool { return s.MessageID > 0 || !s.Time.IsZero() }

// ConfigError is a state of things that this program must not run in until an operator
// has changed it.
type ConfigError struct{ Text string }

func (e *ConfigError) Error() string { return e.Text }

// Bridge follows one account's queue into one stream. Make it with [New].
type Bridge struct {
	tail
	cfg    Config
	poller *poller.Poller

	record      *events.Queue         // of the queue we follow
	resumed     bool                  // following a queue has been announced, in this term
	refreshedAt time.Time             // when its record was last written; zero: it has to be written before the next poll
	held        *heldSet              // messages that the stream held before this queue, read when first needed
	places      *places               // where messages are, if that may have to be known
	subjects    map[subjectKey]string // of events, see subjectOf
	rejected    rejections            // what was rejected at this position without moving it
	erasing     erasing               // of messages that were deleted
	losses      int                   // queues lost in a row, none of which answered a poll
	leftovers   []leftover            // queues that may have to be deleted
	dropped     []string              // the last of them that were
	abandoned   string                // what the next gap that is closed has to tell besides
	// recordsMade numbers our records, for their ids.
	recordsMade int64
	unlike      string // options that Zulip did not take at a change-over
	state       state  // of the organization, for those who start today
	deposed     bool   // the lease was lost or handed over, and not had again since
	took        bool   // the lease was had from another instance, and the stream not read since

	objects      health.Condition // the object store takes nothing: objectsAwaited, then objectsGone
	unregistered health.Condition // Zulip registers no queue

	pulse health.Pulse // of Run
}

// New makes a Bridge. It asks nothing of anybody yet.
func New(cfg Config) *Bridge {
	b := &Bridge{cfg: cfg, poller: cfg.Poller}
	b.tail = tail{
		realm: cfg.Realm, onMessages: cfg.Realm.Type("message"), writer: cfg.Writer, log: cfg.Log,
		reopen:  cfg.Open,
		fits:    b.bigEnough,
		expires: cfg.Poller.Expires,
		refreshEntry: func(in phase) (entry, error) {
			return b.queueEntry(b.refreshed(), b.known.Last, nextOf(in))
		},
		known:   poller.Position{Last: -1},
		refused: health.Condition{Changes: true, Every: refusalsEvery},
		outage:  outage{Condition: health.Condition{Changes: true}},
		said:    health.Condition{Most: 1000},
	}
	b.report.now.Realm = cfg.Realm.String()
	b.report.begin(Starting)
	return b
}

// Run works until ctx ends, and then returns nil: what was in hand is finished, the queue
// is left standing, since the next start resumes it (or is retired, see [Config]). Any
// other end is an error that an operator has to look at: [*ConfigError],
// [*stream.ConfigError], [*poller.ConfigError], [*poller.AuthError], or a queue that was
// to be deleted and could not be. Everything that can heal is waited for.
func (b *Bridge) Run(ctx context.Context) error {
	defer b.report.begin(Stopped)
	ctx = health.WithPulse(ctx, &b.pulse)
	health.Waits(ctx, 0)
	defer b.pulse.Stop()
	defer b.poller.Close()
	for {
		err := b.term(ctx)
		switch {
		case errors.Is(err, errStopped):
			return nil
		case errors.Is(err, errAsked):
			b.poller.Close()
			logevent.HandedOver.Info(b.log).Msg("handed over: another instance is to lead, so that each has its share")
			b.deposed = true
			continue
		case !errors.Is(err, errNotLeader):
			return err
		}
		b.poller.Close() // an answer may have been in hand
		logevent.LeaseLost.Warn(b.log).Str("reason", strings.TrimPrefix(err.Error(), errNotLeader.Error()+": ")).
			Msg("the lease is lost: standing by until it is free again")
		b.deposed = true
	}
}

// errStopped says that ctx ended and nothing is left to be done.
var errStopped = errors.New("stopped")

// term works from acquiring the lease until it is lost or handed over, or until the stop. Where
// the queue is to be deleted, a stop gives the start a little time to find out which
// queue, and who leads.
func (b *Bridge) term(ctx context.Context) error {
	b.report.begin(Starting)
	start, giveUp := ctx, context.CancelFunc(func() {})
	if b.cfg.DeleteQueue {
		start, giveUp = b.graceful(ctx)
	}
	defer giveUp()
	if err := b.open(start); err != nil {
		return b.unled(ctx, err)
	}
	if b.cfg.Acquire == nil {
		return b.office(ctx, ctx)
	}
	// An instance that could not take over must not stand by as if it could.
	if err := b.misfit(start, func() error { return FitsLayout(start, b.stream, b.realm) }); err != nil {
		return b.unled(ctx, err)
	}
	var standby atomic.Bool
	stopClearing := b.clearLeftovers(start)
	l, err := b.cfg.Acquire(start, func(leader string) {
		standby.Store(true)
		b.report.leads(false, leader)
		b.report.enter(Standby)
		context.AfterFunc(ctx, giveUp) // whoever leads may do so for years
	})
	stopClearing()
	switch {
	case err == nil:
	case ctx.Err() != nil && standby.Load():
		if b.retires(ctx) {
			logevent.QueueNotDeleted.Warn(b.log).
				Msg("no queue is deleted: this instance does not lead, and a queue belongs to the one " +
					"that does")
		}
		return errStopped
	default:
		return b.unled(ctx, err)
	}
	if l == nil { // no rights, no bucket: said once by whoever knows, and run fenced by the compare-and-swap only
		return b.office(ctx, ctx)
	}
	if standby.Load() || b.deposed {
		logevent.Leading.Info(b.log).Msg("this instance leads now")
		b.took = true
	}
	b.lease, b.deposed = l, false
	defer func() {
		b.lease = nil
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := l.Release(rctx); err != nil {
			b.log.Debug().Err(err).Msg("the lease could not be released: it runs out by itself")
		}
	}()
	wctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.Context(), func() { cancel(notLeader(l)) })()
	return b.office(ctx, wctx)
}

// unled judges an end before it was known who leads. Without a stream there was never a
// queue.
func (b *Bridge) unled(ctx context.Context, err error) error {
	switch {
	case ctx.Err() == nil:
		return err
	case b.retires(ctx) && !errors.Is(err, stream.ErrNotMade):
		return fmt.Errorf("the queue was to be deleted, and it was not: NATS does not say which one it is, or "+
			"whether this instance leads (%w)", err)
	}
	return errStopped
}

// retires says whether a stop is to delete the queue.
func (b *Bridge) retires(ctx context.Context) bool {
	return b.cfg.DeleteQueue && (b.cfg.Again == nil || !errors.Is(context.Cause(ctx), b.cfg.Again))
}

// office works until wctx ends, and does what a stop asks for while the lease is still
// ours.
func (b *Bridge) office(ctx, wctx context.Context) error {
	b.report.leads(true, b.writer)
	err := b.work(wctx)
	if ctx.Err() == nil || wctx.Err() == nil {
		return err
	}
	b.tidy(ctx)
	if b.retires(ctx) {
		last, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), retireTime,
			errors.New("the stop would take too long"))
		defer cancel()
		if err := b.retire(last); err != nil {
			return err
		}
	}
	return errStopped
}

// quickSteps is how many steps may follow each other without a pause.
const quickSteps = 8

// steps counts those that followed each other quickly.
type steps struct {
	quick int
	wait  *retry
}

func newSteps() *steps { return &steps{wait: newRetry()} }

// tooMany says whether a pause is due behind a step: one that did not do its part, or one
// of too many that took no time.
func (s *steps) tooMany(done bool, took time.Duration) bool {
	if s.quick++; took > retryMax {
		s.quick, s.wait = 0, newRetry()
		return !done
	}
	if done && s.quick <= quickSteps {
		s.wait = newRetry()
		return false
	}
	return true
}

// work reads where we are and does what comes next, again and again. Each step begins
// with a write that names the message read here, so a stale read does no harm: the server
// refuses the write, and we read again. A step that returns nil has done its part.
func (b *Bridge) work(ctx context.Context) error {
	b.refreshedAt, b.resumed = time.Time{}, false
	b.places = nil
	b.said.Clear()
	for s := newSteps(); ; {
		p, err := b.read(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		if b.wentBack(p) {
			err = b.tailLost(ctx, p)
		} else {
			b.adopt(ctx, p)
			err = b.step(ctx, p)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil && !errors.Is(err, errMoved) {
			return err
		}
		if s.tooMany(err == nil, time.Since(began)) {
			if err := s.wait.pause(ctx); err != nil {
				return err
			}
		}
	}
}

func (b *Bridge) step(ctx context.Context, p resumePoint) error {
	b.report.step(p)
	switch p.phase {
	case phaseRegister:
		return b.registerNext(ctx, p)
	case phaseRefill:
		return b.untilAsked(ctx, func(ctx context.Context) error { return b.refill(ctx, p) })
	case phasePoll:
		return b.untilAsked(ctx, func(short context.Context) error { return b.follow(ctx, short, p) })
	default:
		return b.begin(ctx, p)
	}
}

// untilAsked does something until another instance is to have the lease: then its context
// ends. A queue that is being registered has no such end, since nobody would know of it.
func (b *Bridge) untilAsked(ctx context.Context, do func(context.Context) error) error {
	if b.lease == nil {
		return do(ctx)
	}
	short, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer context.AfterFunc(b.lease.Asked(), func() { end(errAsked) })()
	err := do(short)
	if ctx.Err() == nil && errors.Is(context.Cause(short), errAsked) {
		return errAsked
	}
	return err
}

// adopt takes what was read for what is known.
func (b *Bridge) adopt(ctx context.Context, p resumePoint) {
	if p.last != nil && (p.seq() != b.knownSeq || header(p.last, events.HeaderWriter) != b.writer) {
		// There may be another. In a stream that was restored another instance's message may
		// even have the sequence that we knew; and what we knew may be what a deposed leader
		// told.
		b.record = nil
		b.forgetPlaces(p.seq())
		if writer := header(p.last, events.HeaderWriter); writer != b.writer && p.last.Seq > b.knownSeq &&
			b.known.Queue != "" && !b.took && b.once("overtaken by "+writer) {
			logevent.Overtaken.Warn(b.log).Str("writer", writer).Int64("event_id", p.at.Last).
				Msg("another instance has stored events meanwhile: going on from where it is")
		}
	}
	b.known, b.knownSeq, b.took = p.at, p.seq(), false
	b.report.at(p)
	b.sweep(ctx, p.cursor.Seq)
}

// account is whose queue it is, or will be.
func (b *Bridge) account() string {
	if email, _ := b.poller.Account(); email != "" {
		return email
	}
	return b.cfg.Account
}

// describe names a queue for a log line; queue ids come from outside and are quoted by
// the logger.
func describe(at poller.Position) string {
	if at.Queue == "" {
		return "no queue"
	}
	return fmt.Sprintf("queue %q at event %d", at.Queue, at.Last)
}
