// Package poller is the Zulip side of the bridge: it registers event queues, long-polls
// them, and reads message history. It knows nothing of NATS.
//
// Zulip keeps a queue of events for each client that registered one. A poll (GET
// /api/v1/events) names the queue and the id of the last event that the client has; the
// server forgets everything up to that id and answers with all that came after it, or
// waits. So asking is acknowledging, and there is no other acknowledgement. That is why
// the position is an argument of [Poller.Next] and not a secret of the Poller: whoever
// calls Next with a position says that everything up to it is safe.
//
// Which file has what:
//
//   - poller.go: the [Poller], which puts the others together: the long poll and the queue's
//     idle clock
//   - zuliprc.go: the account
//   - options.go, register.go: what a queue is registered with, and what Zulip answers
//   - client.go, errors.go: one HTTP request at a time, and what its failure means
//   - transport.go: the connections, which accounts share
//   - answer.go, scan.go, pump.go: an answer read as a stream, its JSON, its bytes
//   - retry.go: what is done after a failure: Retry-After of a 429, else backoff with jitter
//   - pace.go, ratelimit.go: when to poll, so that there is no 429; its headers
//   - history.go: messages read back
//   - counters.go: what was done, for metrics
//
// What an event means, where it goes, and whether a queue is lost is decided by others.
package poller

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rs/zerolog"
	xrate "golang.org/x/time/rate" // rate is what headers say

	"zulip-nats/health"
)

// Position is a place in a queue: everything up to and including the event Last has been
// stored. Last is -1 before the first event; any other value must be the id of an event
// that this queue really delivered, or Zulip refuses the poll after it has thrown events
// away (zulip/zulip, zerver/tornado/event_queue.py).
type Position struct {
	Queue string
	Last  int64
}

// Event is one event of a queue. Raw and the strings are valid until the next call of
// [Poller.Next].
type Event struct {
	// ID is the event's id in its queue, if HasID.
	ID    int64
	HasID bool
	// Type and Op are the event's own words, decoded from JSON; Op is empty where the
	// event has none. They come from outside: any text is possible.
	Type, Op string
	// MessageID is the id of the message for events of type message, else 0.
	MessageID int64
	// Recipient and ChannelID say where what the event is about is, as far as it says so
	// itself: in a channel, or among people. ChannelID is 0 where it names none.
	Recipient Recipient
	ChannelID int64
	// Raw is the event, byte for byte as Zulip sent it. If the event was larger than the
	// poller keeps in memory, Raw is its beginning and Size, SHA256 tell of the whole.
	Raw    []byte
	Size   int64
	SHA256 [32]byte // set only where Raw was cut, that is where Size > len(Raw)
	// Fault says why this is no event that can be carried as it is: no JSON, no object,
	// no usable id, no type, or an id that is not above all before it. Empty if it can.
	// An event that is no JSON never has an ID: one read out of it would be a guess, and
	// a guess must not be acknowledged.
	Fault string
}

// Recipient is where a message went, or what else an event is about.
type Recipient uint8

const (
	RecipientUnsaid  Recipient = iota // the event does not say it
	RecipientChannel                  // a channel
	RecipientDirect                   // people: direct messages
)

// Batch is a part of one answer: at most 1,000 events or 2 MiB (one event may be larger
// by itself).
type Batch struct {
	Events []Event
	// Waited is true for a poll that waited and was then answered: Zulip has renewed the
	// queue's idle clock. It is set on the last batch of the answer. With no events at
	// all it means that somebody else polls the same queue, or that it was just deleted.
	Waited bool
	// More is true if the answer has not been read to its end.
	More bool
}

// Queue is what the poller has to know about a queue besides its id.
type Queue struct {
	ID       string
	Life     time.Duration // idle time after which Zulip drops it; 0: 10 min, what a queue gets unasked
	Patience time.Duration // how long a poll may be silent; 0 means 90 s
	// Renewed is when the idle clock was last known to be set, by this machine's clock.
	// Zero means that it is not known, which counts as long ago until a poll has waited;
	// a time that is still to come is not known either.
	Renewed time.Time
}

// Poller follows the event queues of one account. Client and Options must be set before
// the first call and are not changed after it. Its methods are for one goroutine, but for
// Expires, ClockOverdue, Account, Trouble, Answered and Counters, which may be called from
// any.
type Poller struct {
	Client  *Client
	Options Options
	// State are the sections of which each Register asks for the state. Options.EventTypes
	// must have the types that change them.
	State []Section
	// Registers, if not nil, is waited for before each request that registers a queue, so
	// that the Pollers that share it make no more of them than it allows: a register costs
	// a Zulip more than any other request of ours.
	Registers *xrate.Limiter
	Log       zerolog.Logger // the zero value is silent

	events, rest endpoint // Zulip counts polls apart from all other requests, and they fail apart
	pace         pace
	answer       *answer   // being read, or read to its end with its last batch in the caller's hands
	dontBlock    bool      // the next poll must not block
	accepted     bool      // the key was accepted at least once
	refused      bool      // ... and has been refused since
	warned       bool      // of an insecure account
	channels     *Channels // see the method
	asked        bool      // register was asked for the channels

	mu       sync.Mutex // guards what the methods for any goroutine read
	queue    Queue
	answered time.Time // when an answer last ended; written under mu, by the Poller's own goroutine
	counters Counters
}

// Next returns the next events behind at, in queue order, waiting for them as long as it
// takes. Calling it acknowledges everything up to at to Zulip, sooner or later: nothing
// may be called with a position that is not durable.
//
// An answer can be huge, so it is decoded piece by piece: as long as each call continues
// where the batch before ended (at the largest ID in it, or at the same place if there
// was none), the pieces come from the same answer without asking again; with any other
// position the rest of the answer is dropped and Zulip is asked anew.
//
// Whatever a later request may heal (no connection, 5xx, 429, HTML, a body cut short, 401
// after the key was once accepted) is retried inside, for ever, with back-off, and logged
// once per change. Errors returned are: a [*RefusedError] for a 400 on the poll, which
// may mean that the queue is lost; an [*AuthError] if the key was refused before it was
// ever accepted; a [*ConfigError]; or ctx's.
func (p *Poller) Next(ctx context.Context, at Position) (*Batch, error) {
	for {
		if !p.inHand(at) {
			// If the power fails here, Zulip may have forgotten everything up to at, and
			// nothing more.
			if err := p.ask(ctx, at, false); err != nil {
				return nil, err
			}
		}
		b, err := p.read(ctx, 0, false)
		if err != nil {
			return nil, err
		}
		// The events of an answer may have ended with the batch before.
		if b != nil && (len(b.Events) > 0 || b.Waited && p.answer.count == 0) {
			return b, nil
		}
	}
}

// Soon is Next for the rest of the answer in hand: it asks Zulip for nothing, and waits a
// moment only. So the batch may be empty, and is where nothing is left.
func (p *Poller) Soon(ctx context.Context, at Position) *Batch {
	if !p.inHand(at) {
		return &Batch{}
	}
	b, err := p.read(ctx, moment, false)
	if err != nil || b == nil {
		return &Batch{}
	}
	return b
}

// inHand says whether an answer is that goes on behind at.
func (p *Poller) inHand(at Position) bool {
	a := p.answer
	return a != nil && !a.done && a.at.Queue == at.Queue && a.last == at.Last
}

// Probe polls once without waiting and acknowledges nothing that Next would not: is the
// queue alive at this position? nil: yes. The same errors as Next, and the same patience
// with everything that may heal. What the answer brings is not kept, and neither is an
// answer that Next had begun: a Next from the same position asks anew, and Zulip sends
// the same again.
func (p *Poller) Probe(ctx context.Context, at Position) error {
	defer p.Drop()
	for {
		if err := p.ask(ctx, at, true); err != nil {
			return err
		}
		b, err := p.read(ctx, 0, true) // a 200 may still be a page of HTML
		if err != nil {
			return err
		}
		if b != nil {
			if b.More {
				p.finished(true)
			}
			return nil
		}
	}
}

// Drain asks the queue once more, without waiting, and gives each every batch of the
// answer, in order. Whatever was in the queue behind at when Drain was called has been
// given to each when it returns nil. An answer that Next had begun does not serve for
// that, since it was asked for earlier; it is dropped. It is for changing over to another
// queue (design, section 9.6).
//
// An answer that breaks in the middle is asked for again, from the largest event id that
// each was given: so each must not return nil before what it was given is durable. Events
// without an id may come again then. each is not called without events, its error ends
// the draining and is returned as it is, and it must not poll. A batch is valid until
// each returns. Other errors are those of Next.
func (p *Poller) Drain(ctx context.Context, at Position, each func(*Batch) error) error {
	defer p.Drop()
	for {
		if err := p.ask(ctx, at, true); err != nil {
			return err
		}
		for p.answer != nil {
			b, err := p.read(ctx, 0, true)
			switch {
			case err != nil:
				return err
			case b == nil:
				continue // ask again
			case len(b.Events) > 0:
				at.Last = p.answer.last
				if err := each(b); err != nil {
					return err
				}
			}
			if !b.More {
				return nil
			}
		}
	}
}

// read takes the next batch of the answer in hand (see [answer.next]). No batch and no
// error: the answer broke, and is gone.
func (p *Poller) read(ctx context.Context, most time.Duration, drain bool) (*Batch, error) {
	b, err := p.answer.next(ctx, most)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		p.Drop()
		p.dontBlock = true
		p.failed(&p.events, err)
		return nil, nil
	}
	p.recovered(&p.events)
	if p.answer.done {
		p.finished(drain)
	}
	return b, nil
}

// ask makes a poll; its answer is in hand then, in place of the one before. drain: one
// that does not wait.
func (p *Poller) ask(ctx context.Context, at Position, drain bool) error {
	p.Drop()
	return p.retry(ctx, &p.events, func() error {
		p.pace.poll(time.Now())
		// After a failure the server may need time to notice that the poll before is
		// gone; and an answer at once, even an empty one, says that all is well again,
		// where a poll that waits says nothing for a minute.
		a, err := p.Client.events(ctx, at, drain || p.dontBlock, p.patience(at.Queue))
		if err != nil {
			if t, ok := errors.AsType[*transientError](err); !ok || !t.limited {
				p.dontBlock = true
			}
			return err
		}
		a.dontBlock = drain || p.dontBlock
		p.answer = a
		return nil
	})
}

// finished judges an answer that was read to its end, or as far as it was of interest.
func (p *Poller) finished(drain bool) {
	a, now := p.answer, time.Now()
	p.ended(a, now)
	p.dontBlock = false
	asOf := a.came
	if a.waited {
		asOf = a.sent
		if a.came.Sub(a.sent) > longAgo {
			a.rate.reset = 0
		}
		p.mu.Lock()
		if p.queue.ID == a.at.Queue {
			p.queue.Renewed = later(p.queue.Renewed, a.sent)
		}
		p.mu.Unlock()
	}
	p.pace.answered(asOf, a.rate)
	switch {
	case a.last > a.at.Last:
		p.events.backoff.succeeded()
	case drain && a.count == 0:
		// Nothing was there to move to.
	case a.dontBlock && a.count == 0:
		// Likewise; but a server that answers these and fails those that wait must not be
		// asked at full speed.
		p.events.backoff.slow(now)
	default:
		// Only what cannot be acknowledged, or nothing where something was due: asked
		// again, Zulip would say the same at once.
		p.events.backoff.failed(now)
	}
}

// Drop lets go of the answer in hand, so that the next call of Next asks anew: for who was
// given events and did not store all of them. An event without an id may be among these,
// and then the position does not say it.
func (p *Poller) Drop() {
	if p.answer != nil {
		p.answer.Close()
		p.answer = nil
	}
}

// Close drops the answer in hand, with its connection if it was not read to its end (with
// HTTP/2: its stream). The Poller can be used again afterwards.
func (p *Poller) Close() {
	p.Drop()
	p.Client.closeIdle()
}

// registerGrace is how long a register that is under way is waited for after its context
// has ended.
const registerGrace = 3 * time.Second

// stateTries is how many tries of a register ask for the state before every other one goes
// without.
const stateTries = 2

// Register makes a queue, retrying like Next. A *RefusedError means that Zulip does not
// take the options (a narrow it does not know, a guest who asks for all public channels,
// say); a *ConfigError that they cannot be sent at all.
//
// Zulip may have made the queue before its answer is here, and nobody else ever learns
// that queue's id. So when ctx ends while a request is under way, its answer is waited
// for, for up to 3 s. If it comes, Register returns the queue and no error, though ctx is
// over: the caller deletes it then. No new request begins after ctx has ended.
func (p *Poller) Register(ctx context.Context) (*Registration, error) {
	if err := p.Options.Validate(); err != nil {
		return nil, err
	}
	var r *Registration
	tries := 0
	err := p.retry(ctx, &p.rest, func() (err error) {
		if err := p.mayRegister(ctx); err != nil {
			return err
		}
		longer, cancel := outlive(ctx, registerGrace)
		defer cancel()
		// The state may be what the server fails over, or more than we read, and a queue
		// without it is better than none. So in the end every other try goes without.
		state := p.State
		if tries++; tries > stateTries && tries%2 == 1 {
			state = nil
		}
		// The channels are for people to know, so they are asked for once: whatever goes
		// wrong with them, a second try goes without.
		channels := !p.asked
		p.asked = true
		r, err = p.Client.register(longer, p.Options, channels, state)
		if refused, ok := errors.AsType[*RefusedError](err); ok && refused.Msg == "Could not allocate event queue" {
			return &transientError{text: refused.Error()} // Tornado's trouble, not ours (zerver/lib/events.py)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if r.Channels != nil {
		p.channels = r.Channels
	}
	return r, nil
}

// mayRegister waits for Registers.
func (p *Poller) mayRegister(ctx context.Context) error {
	if p.Registers == nil {
		return nil
	}
	now := time.Now()
	place := p.Registers.ReserveN(now, 1)
	err := sleepUntil(ctx, now.Add(place.DelayFrom(now)))
	if err != nil {
		place.Cancel() // for who comes later
	}
	return err
}

// outlive returns a context that ends grace later than ctx.
func outlive(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-longer.Done():
		}
	})
	return longer, func() { stop(); cancel() }
}

// Follow tells the poller about the queue that Next will poll: needed after Register and
// after a restart.
func (p *Poller) Follow(q Queue) {
	if q.Life <= 0 {
		q.Life = serverLife
	}
	if q.Renewed.After(time.Now()) {
		q.Renewed = time.Time{} // another clock's, and nothing can be told from it
	}
	p.mu.Lock()
	p.queue = q
	p.mu.Unlock()
}

// Delete retires a queue: one try, since a queue that is left over ends by itself. One
// that is gone already is no error.
func (p *Poller) Delete(ctx context.Context, queue string) error {
	err := p.Client.deleteQueue(ctx, queue)
	if refused, ok := errors.AsType[*RefusedError](err); ok && refused.Kind == BadQueue {
		return nil
	}
	p.count(&p.rest, err)
	return err
}

// Expires is when Zulip may drop the queue of Follow: the sending time of the last poll
// that waited, plus the queue's life. Polls that are answered at once do not set the
// clock (zerver/tornado/event_queue.py, connect_handler is the only place that does). The
// zero time: not known yet.
func (p *Poller) Expires() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.queue.Renewed.IsZero() {
		return time.Time{}
	}
	return p.queue.Renewed.Add(p.queue.Life)
}

// Life is for how long Zulip keeps the queue of Follow while no poll waits.
func (p *Poller) Life() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.queue.Life
}

// ClockOverdue reports whether three quarters of the queue's life have passed since the
// last poll that waited. At the rate of this organization no poll may ever wait; then it
// is time to change over to another queue while this one lives. While it is not known
// when a poll last waited, they count as passed.
func (p *Poller) ClockOverdue() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.queue.Life > 0 && time.Since(p.queue.Renewed) >= p.queue.Life/4*3
}

// Account returns whose key requests are made with, and at which site. It may change
// under way, since the account is read again when Zulip refuses the key; right after a
// call it is the account that the call was made with. Empty before the first.
func (p *Poller) Account() (email, site string) {
	if a := p.Client.account.Load(); a != nil {
		return a.Email, a.Site
	}
	return "", ""
}

// Trouble says what keeps Zulip from giving what it is being asked for, and since when;
// set is false if nothing does, or nothing is being asked for.
func (p *Poller) Trouble() (trouble health.State, set bool) {
	for _, l := range []*endpoint{&p.events, &p.rest} {
		if s, is := l.trouble.State(); is && l.asking.Load() && (!set || s.Since.Before(trouble.Since)) {
			trouble, set = s, true
		}
	}
	return trouble, set
}

// patience is how long a poll of that queue may be silent.
func (p *Poller) patience(queue string) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.queue.ID == queue && p.queue.Patience > 0 {
		return p.queue.Patience
	}
	return defaultPatience
}
