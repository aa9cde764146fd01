// Package bridge is the promise: each event that Zulip put in our queue is in the stream exactly once, in queue order, whatever crashes
// and whoever else runs; and when Zulip drops the queue, the stream itself says so.
//
// Four rules carry it (docs/design.md, section 2).
//
//  1. Asking is acknowledging. The next poll's last_event_id is the only acknowledgement that Zulip knows, so it leaves only when everything
//     up to that id is stored.
//  2. The stream is the checkpoint. Every message carries the position it leaves us at. To resume is to read the newest message back.
//     So nothing is passed over without a message: what cannot be stored on its own subject leaves a record.
//  3. Compare and swap on every write. Each says what it expects to follow. Another bridge, a late ghost of an earlier write, a retry of
//     what had worked: the server refuses them all.
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
// The loss of a queue is a walk through phases (place.go), each begun by a write: gap-opened, then register, then the queue's record, then
// refilled messages, then gap-closed. A crash finds its phase in the newest message.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// Stream is what the bridge asks of JetStream. [*stream.Stream] is the real one, and says what each method promises; the simulation in the
// tests has a model that is held to the same contract.
type Stream interface {
	Last(ctx context.Context) (stream.Cursor, *stream.Stored, error)
	At(ctx context.Context, seq uint64) (*stream.Stored, error)
	LastOn(ctx context.Context, subject string) (*stream.Stored, error)
	Scan(ctx context.Context, subject string, from stream.Start, until uint64, headersOnly bool, f func(*stream.Stored) error) error
	Append(ctx context.Context, after stream.Cursor, msgs []stream.Message) (stream.Cursor, error)
	Fits(m *stream.Message) bool
	PutObject(ctx context.Context, name string, data []byte) error
	Info(ctx context.Context) (stream.Info, error)
	Dedicated() bool
	StepDown()
	Epoch() uint64
}

// Lease says who of several instances works (package lease). It is there for economy, one poller at a time; safety is the compare-and-swap.
type Lease interface {
	// Context ends when the lease is lost.
	Context() context.Context
	// Held says whether the lease still runs, by our own clock.
	Held() bool
	// Release hands it over at once.
	Release(ctx context.Context) error
}

// Config is all that a Bridge needs.
type Config struct {
	// Realm names the subjects; Site and Account say whose queue it is and are written in the queue's record.
	Realm   subjects.Realm
	Site    string
	Account string

	// Poller asks Zulip.
	Poller *poller.Poller

	// Open finds the stream, makes it or verifies it: at the start, and again when it was deleted. A [*stream.ConfigError] ends Run;
	// anything else is tried again.
	Open func(ctx context.Context) (Stream, error)

	// Acquire waits for the lease. Nil: this instance works without one, fenced by the compare-and-swap alone.
	Acquire func(ctx context.Context) (Lease, error)

	// Writer names this instance in Bridge-Writer, different for each process.
	Writer string

	// StartFrom says where the very first start begins. The zero value: now.
	StartFrom StartFrom

	// RefillMaxAge and RefillMaxMessages bound what is read back from Zulip's history after a lost queue; zero: no bound of that kind.
	// RefillMaxMessages below zero switches refilling off.
	RefillMaxAge      time.Duration
	RefillMaxMessages int

	// Version is written in records.
	Version string

	// Log gets each change of state once. The zero value is silent.
	Log zerolog.Logger
}

// StartFrom is where a first start begins: at a message, or at a time. The zero value means now.
type StartFrom struct {
	MessageID int64
	Time      time.Time
}

func (s StartFrom) set() bool { return s.MessageID > 0 || !s.Time.IsZero() }

// ConfigError is a state of things that this program must not run in until an operator has changed it.
type ConfigError struct{ Text string }

func (e *ConfigError) Error() string { return e.Text }

// Bridge follows one account's queue into one stream. Make it with [New].
type Bridge struct {
	cfg    Config
	poller *poller.Poller
	log    zerolog.Logger
	stream Stream
	lease  Lease // nil without one

	messageSubject string // zulip.<realm>.message

	// What is known to be stored, for noticing that the stream went back: the echo of the newest message of ours that was read or
	// acknowledged, and its sequence.
	known    poller.Position
	knownSeq uint64

	// The place of the next write; valid while readable is true and the connection's epoch is the one it was read at.
	cursor   stream.Cursor
	epoch    uint64
	cursorOK bool

	record   *queueRecord    // of the queue we follow
	resumed  bool            // following a queue has been announced, in this term
	keptAt   time.Time       // when its record was last written; zero: it has to be written before the next poll
	largest  int64           // the largest message id that this process stored
	held     *heldSet        // messages that the stream held before this queue, read when first needed
	rejected rejections      // what was rejected at this position without moving it
	said     map[string]bool // what once has let pass
	losses   int             // queues lost in a row, none of which answered a poll
	outage   outage
}

// New makes a Bridge. It asks nothing of anybody yet.
func New(cfg Config) *Bridge {
	subject, _ := cfg.Realm.Event("message") // no error: "message" is a token
	return &Bridge{cfg: cfg, poller: cfg.Poller, log: cfg.Log, messageSubject: subject, known: poller.Position{Last: -1}}
}

// errMoved says that the place is another one than we thought: the stream has to be read again before anything else.
var errMoved = errors.New("the stream has moved on")

// errNotLeader says that the lease is gone.
var errNotLeader = errors.New("the lease is lost")

// stopGrace is how long a write that is under way at a stop may take to be settled.
const stopGrace = 3 * time.Second

// Run works until ctx ends, and then returns nil: what was in hand is finished, the queue is left standing, since the next start resumes
// it. Any other end is an error that an operator has to look at: [*ConfigError], [*stream.ConfigError], [*poller.ConfigError],
// [*poller.AuthError]. Everything that can heal is waited for.
func (b *Bridge) Run(ctx context.Context) error {
	for {
		err := b.term(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case !errors.Is(err, errNotLeader):
			return err
		}
		b.log.Warn().Msg("the lease is lost: another instance works now")
	}
}

// term is one term of office: from getting the lease to losing it.
func (b *Bridge) term(ctx context.Context) error {
	if err := b.open(ctx); err != nil {
		return err
	}
	if b.cfg.Acquire == nil {
		return b.work(ctx)
	}
	l, err := b.cfg.Acquire(ctx)
	if err != nil {
		return err
	}
	if l == nil { // no rights, no bucket: said once by whoever knows, and run fenced by the compare-and-swap only
		return b.work(ctx)
	}
	b.lease = l
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
	defer context.AfterFunc(l.Context(), func() { cancel(errNotLeader) })()
	return b.work(wctx)
}

// open gets the stream, waiting for NATS as long as it takes.
func (b *Bridge) open(ctx context.Context) error {
	if b.stream != nil {
		return nil
	}
	for wait := newRetry(); ; {
		s, err := b.cfg.Open(ctx)
		if err == nil {
			b.stream = s
			b.outage.over(b.log)
			return nil
		}
		if _, fatal := errors.AsType[*stream.ConfigError](err); fatal || ctx.Err() != nil {
			return err
		}
		b.outage.note(b.log, err, time.Time{})
		if err := wait.pause(ctx); err != nil {
			return err
		}
	}
}

// work reads where we are and does what comes next, again and again. Each step begins with a write that names the message read here, so a
// stale read does no harm: the server refuses the write, and we read again. A step that returns nil has done its part.
func (b *Bridge) work(ctx context.Context) error {
	b.keptAt, b.resumed, b.said = time.Time{}, false, map[string]bool{}
	for wait := newRetry(); ; {
		p, err := b.read(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		if b.wentBack(p) {
			err = b.tailLost(ctx, p)
		} else {
			b.adopt(p)
			err = b.step(ctx, p)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil && !errors.Is(err, errMoved) {
			return err
		}
		if err == nil || time.Since(began) > retryMax {
			wait = newRetry()
		}
		if err != nil {
			if err := wait.pause(ctx); err != nil {
				return err
			}
		}
	}
}

func (b *Bridge) step(ctx context.Context, p place) error {
	switch p.phase {
	case phaseRegister:
		return b.replace(ctx, p)
	case phaseRefill:
		return b.refill(ctx, p)
	case phasePoll:
		return b.follow(ctx, p)
	default:
		return b.begin(ctx, p)
	}
}

// read is [locate] with patience: it waits for NATS as long as it takes, and opens the stream anew if it was deleted.
func (b *Bridge) read(ctx context.Context) (place, error) {
	b.cursorOK = false
	for wait := newRetry(); ; {
		epoch := b.stream.Epoch()
		p, err := locate(ctx, b.stream, b.cfg.Realm)
		if err == nil && epoch == b.stream.Epoch() {
			b.cursor, b.epoch, b.cursorOK = p.cursor, epoch, true
			return p, nil
		}
		if ctx.Err() != nil {
			return place{}, context.Cause(ctx)
		}
		if err != nil {
			b.outage.deaf = time.Time{}
			if err := b.cannotStore(ctx, err); err != nil {
				return place{}, err
			}
		}
		if err := wait.pause(ctx); err != nil {
			return place{}, err
		}
	}
}

// cannotStore notes an error of the stream that has to be waited out: said once, with the time that is left until Zulip drops the queue. A
// stream that is gone is opened anew.
func (b *Bridge) cannotStore(ctx context.Context, err error) error {
	b.outage.note(b.log, err, b.poller.Expires())
	if e, ok := errors.AsType[*stream.Error](err); ok && e.Kind == stream.Gone {
		b.stream = nil
		return b.open(ctx)
	}
	return nil
}

// adopt takes what was read for what is known.
func (b *Bridge) adopt(p place) {
	if p.at.Queue != b.known.Queue {
		b.held, b.rejected = nil, rejections{}
	}
	if p.last != nil && p.last.Seq > b.knownSeq && header(p.last, HeaderWriter) != b.cfg.Writer {
		b.record, b.held = nil, nil // there may be another record
		if writer := header(p.last, HeaderWriter); b.known.Queue != "" && b.once("overtaken by "+writer) {
			b.log.Warn().Str("writer", writer).Int64("event_id", p.at.Last).
				Msg("another instance has stored events meanwhile: going on from where it is")
		}
	}
	b.known, b.knownSeq = p.at, p.seq()
}

// once says whether this has not been said yet in this term.
func (b *Bridge) once(what string) bool {
	if b.said[what] {
		return false
	}
	b.said[what] = true
	return true
}

// wentBack says whether the stream holds less than what we know it held: it was restored from a backup, recreated or purged, or its server
// lost power; or a leader that was deposed answered, which the next write will show.
func (b *Bridge) wentBack(p place) bool {
	return p.seq() < b.knownSeq || p.at.Queue == b.known.Queue && p.at.Last < b.known.Last
}

// leading returns errNotLeader if there is a lease and it is over, which a process that was stopped for a while learns only by looking.
func (b *Bridge) leading() error {
	if b.lease != nil && !b.lease.Held() {
		return errNotLeader
	}
	return nil
}

// graceful gives a context that outlives ctx by stopGrace, so that a write under way at a stop is settled. A lost lease has no grace.
func (b *Bridge) graceful(ctx context.Context) (context.Context, context.CancelFunc) {
	g, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if cause := context.Cause(ctx); errors.Is(cause, errNotLeader) {
			cancel(cause)
			return
		}
		timer := time.AfterFunc(stopGrace, func() { cancel(context.Cause(ctx)) })
		context.AfterFunc(g, func() { timer.Stop() })
	})
	return g, func() { stop(); cancel(nil) }
}

// describe names a queue for a log line; queue ids come from outside and are quoted by the logger.
func describe(at poller.Position) string {
	if at.Queue == "" {
		return "no queue"
	}
	return fmt.Sprintf("queue %q at event %d", at.Queue, at.Last)
}
