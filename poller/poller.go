// Package poller is the Zulip side of the bridge: it registers event queues, long-polls them, and reads message history. It
// never heard of NATS.
//
// Zulip keeps a queue of events for each client that registered one. A poll (GET /api/v1/events) names the queue and the id of the
// last event that the client has; the server forgets everything up to that id and answers with all that came after it, or waits.
// So asking is acknowledging, and there is no other acknowledgement. That is why the position is an argument of [Poller.Next] and
// not a secret of the Poller: whoever calls Next with a position says that everything up to it is safe.
//
// What belongs here: the account (zuliprc.go), one request at a time (client.go, options.go, errors.go), an answer read as a stream
// (answer.go on scan.go), when to ask (pace.go, backoff.go), history (history.go), and the [Poller], which puts them together. What
// an event means, where it goes, and whether a queue is lost is decided by others.
package poller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Position is a place in a queue: everything up to and including the event Last has been stored. Last is -1 before the first event;
// any other value must be the id of an event that this queue really delivered, or Zulip refuses the poll after it has thrown
// events away (zulip/zulip, zerver/tornado/event_queue.py).
type Position struct {
	Queue string
	Last  int64
}

// Event is one event of a queue. Raw and the strings are valid until the next call of [Poller.Next].
type Event struct {
	// ID is the event's id in its queue, if HasID.
	ID    int64
	HasID bool
	// Type and Op are the event's own words, decoded from JSON; Op is empty where the event has none. They come from outside: any
	// text is possible.
	Type, Op string
	// MessageID is the id of the message for events of type message, else 0.
	MessageID int64
	// Raw is the event, byte for byte as Zulip sent it. If the event was larger than the poller keeps in memory, Raw is its
	// beginning and Size, SHA256 tell of the whole.
	Raw    []byte
	Size   int64
	SHA256 [32]byte // set only where Raw was cut, that is where Size > len(Raw)
	// Fault says why this is no event that can be carried as it is: no JSON, no object, no usable id, no type, or an id that is not
	// above all before it. Empty if it can. An event that is no JSON never has an ID: one read out of it would be a guess, and a
	// guess must not be acknowledged.
	Fault string
}

// Batch is a part of one answer: at most 1,000 events or 8 MiB (one event may be larger by itself).
type Batch struct {
	Events []Event
	// Waited is true for a poll that waited and was then answered: Zulip has renewed the queue's idle clock. It is set on the last
	// batch of the answer. With no events at all it means that somebody else polls the same queue, or that it was just deleted.
	Waited bool
	// More is true if the answer has not been read to its end.
	More bool
}

// Queue is what the poller has to know about a queue besides its id.
type Queue struct {
	ID       string
	Life     time.Duration // idle time after which Zulip drops it; 0 means 10 min, what a queue gets that asks for nothing
	Patience time.Duration // how long a poll may be silent; 0 means 90 s
	Renewed  time.Time     // when the idle clock was last known to be set; zero: now
}

// Poller follows the event queues of one account. Client and Options must be set before the first call and are not changed after it.
// Its methods are for one goroutine, but for Expires, ClockOverdue and Trouble, which may be called from any.
type Poller struct {
	Client  *Client
	Options Options
	Log     zerolog.Logger // the zero value is silent

	events, rest line // Zulip counts polls apart from all other requests, and they fail apart
	pace         pace
	answer       *Answer // being read, or read to its end with its last batch in the caller's hands
	probed       *Batch  // what Probe found, at probedAt
	probedAt     Position
	cautious     bool      // the next poll must not block
	answered     time.Time // when an answer last ended
	accepted     bool      // the key was accepted at least once
	refused      bool      // ... and has been refused since
	warned       bool      // of an insecure account

	mu    sync.Mutex // guards what the methods for any goroutine read
	queue Queue
}

// line is one kind of requests.
type line struct {
	backoff backoff
	told    time.Time // a 429 forbids requests before
	exact   bool      // the next request leaves at told, no later

	mu     sync.Mutex // guards outage for Trouble
	outage *outage    // nil: all is well
}

// outage is a time without useful answers.
type outage struct {
	since time.Time
	tries int
	what  string
	said  map[string]bool // logged already
}

// Next returns the next events behind at, in queue order, waiting for them as long as it takes. Calling it acknowledges everything
// up to at to Zulip, sooner or later: nothing may be called with a position that is not durable.
//
// An answer can be huge, so it is decoded piece by piece: as long as each call continues where the batch before ended (at the largest
// ID in it, or at the same place if there was none), the pieces come from the same answer without asking again; with any other
// position the rest of the answer is dropped and Zulip is asked anew.
//
// Whatever a later request may heal (no connection, 5xx, 429, HTML, a body cut short, 401 after the key was once accepted) is retried
// inside, for ever, with back-off, and logged once per change. Errors returned are: a [*RefusedError] for a 400 on the poll, which may
// mean that the queue is lost; an [*AuthError] if the key was refused before it was ever accepted; a [*ConfigError]; or ctx's.
func (p *Poller) Next(ctx context.Context, at Position) (*Batch, error) {
	if b := p.probed; b != nil {
		p.probed = nil
		if at == p.probedAt && len(b.Events) > 0 {
			return b, nil
		}
	}
	return p.poll(ctx, at, false)
}

// Probe polls once without waiting and without acknowledging more than Next would have: is the queue alive at this position? nil: yes.
// The same errors as Next, and the same patience with everything that may heal. What the answer brings is not lost: a Next from the
// same position goes on with it.
func (p *Poller) Probe(ctx context.Context, at Position) error {
	p.probed = nil
	p.drop()
	b, err := p.poll(ctx, at, true)
	if err != nil {
		return err
	}
	p.probed, p.probedAt = b, at
	return nil
}

// Drain is Next without waiting: an empty batch means that nothing is pending behind at. It is for changing over to another queue
// (design, section 9.6).
func (p *Poller) Drain(ctx context.Context, at Position) (*Batch, error) {
	p.probed = nil
	return p.poll(ctx, at, true)
}

// poll is Next, or Drain. A batch without events is returned only by a poll that waited or was not to block.
func (p *Poller) poll(ctx context.Context, at Position, drain bool) (*Batch, error) {
	for {
		if a := p.answer; a == nil || a.done || a.at.Queue != at.Queue || a.last != at.Last {
			p.drop()
			// If the power fails here, Zulip may have forgotten everything up to at, and nothing more.
			if err := p.ask(ctx, at, drain); err != nil {
				return nil, err
			}
		}
		b, err := p.answer.Next(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			p.drop()
			p.cautious = true
			p.failed(&p.events, err)
			continue
		}
		p.recovered(&p.events)
		if p.answer.done {
			p.finished(drain)
		}
		if len(b.Events) > 0 || b.Waited || drain {
			return b, nil
		}
	}
}

// ask makes a poll; its answer is p.answer then.
func (p *Poller) ask(ctx context.Context, at Position, drain bool) error {
	return p.retry(ctx, &p.events, func() error {
		p.pace.poll(time.Now())
		// After a failure the server may need time to notice that the poll before is gone; and an answer at once, even an empty one, says
		// that all is well again, where a poll that waits says nothing for a minute.
		a, err := p.Client.Events(ctx, at, drain || p.cautious, p.patience(at.Queue))
		if err != nil {
			if t, ok := errors.AsType[*trouble](err); !ok || !t.limited {
				p.cautious = true
			}
			return err
		}
		a.dontBlock = drain || p.cautious
		p.answer = a
		return nil
	})
}

// finished judges an answer that was read to its end.
func (p *Poller) finished(drain bool) {
	a, now := p.answer, time.Now()
	p.answered = now
	p.cautious = false
	asOf := a.came
	if a.waited {
		asOf = a.sent
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
		// Likewise; but a server that answers these and fails those that wait must not be asked at full speed.
		p.events.backoff.slow(now)
	default:
		// Only what cannot be acknowledged, or nothing where something was due: asked again, Zulip would say the same at once.
		p.events.backoff.failed(now)
	}
}

// drop lets go of the answer in hand.
func (p *Poller) drop() {
	if p.answer != nil {
		p.answer.Close()
		p.answer = nil
	}
}

// Close drops the answer in hand, with its connection if it was not read to its end. The Poller can be used again afterwards.
func (p *Poller) Close() {
	p.probed = nil
	p.drop()
	p.Client.CloseIdle()
}

// Register makes a queue, retrying like Next. A 400 is a *ConfigError: Zulip refuses the options (a narrow it does not know, a guest who
// asks for all public channels).
func (p *Poller) Register(ctx context.Context) (*Registration, error) {
	if err := p.Options.Validate(); err != nil {
		return nil, err
	}
	var r *Registration
	err := p.retry(ctx, &p.rest, func() (err error) {
		r, err = p.Client.Register(ctx, p.Options)
		if refused, ok := errors.AsType[*RefusedError](err); ok {
			if refused.Msg == "Could not allocate event queue" { // Tornado's trouble, not ours (zerver/lib/events.py)
				return &trouble{text: refused.Error()}
			}
			return &ConfigError{fmt.Sprintf("Zulip at %s does not register a queue with these options: %s",
				p.Client.account.Site, quote(refused.Msg)), refused}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Follow tells the poller about the queue that Next will poll: needed after Register and after a restart.
func (p *Poller) Follow(q Queue) {
	if q.Life <= 0 {
		q.Life = serverLife
	}
	if q.Renewed.IsZero() {
		q.Renewed = time.Now()
	}
	p.mu.Lock()
	p.queue = q
	p.mu.Unlock()
}

// Delete retires a queue: one try, since a queue that is left over ends by itself. One that is gone already is no error.
func (p *Poller) Delete(ctx context.Context, queue string) error {
	err := p.Client.DeleteQueue(ctx, queue)
	if refused, ok := errors.AsType[*RefusedError](err); ok && refused.Kind == BadQueue {
		return nil
	}
	return err
}

// Expires is when Zulip may drop the queue of Follow: the sending time of the last poll that waited, plus the queue's life. Polls that
// are answered at once do not set the clock (zerver/tornado/event_queue.py, connect_handler is the only place that does).
func (p *Poller) Expires() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.queue.Renewed.Add(p.queue.Life)
}

// ClockOverdue reports whether three quarters of the queue's life have passed since the last poll that waited. At the rate of this
// organization no poll may ever wait; then it is time to change over to another queue while this one lives.
func (p *Poller) ClockOverdue() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.queue.Life > 0 && time.Since(p.queue.Renewed) >= p.queue.Life/4*3
}

// Trouble says what keeps Zulip from answering and since when; empty if nothing does.
func (p *Poller) Trouble() (what string, since time.Time) {
	for _, l := range []*line{&p.events, &p.rest} {
		l.mu.Lock()
		if o := l.outage; o != nil && (what == "" || o.since.Before(since)) {
			what, since = o.what, o.since
		}
		l.mu.Unlock()
	}
	return what, since
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

// hold waits until a request of that line may leave.
func (p *Poller) hold(ctx context.Context, l *line) error {
	now := time.Now()
	due := later(l.told, l.backoff.until)
	switch {
	case l.exact && l.told.After(now):
		due = l.told // what is told is enough
	case l == &p.events:
		p.mu.Lock()
		life, hurry := p.queue.Life, p.queue.Life > 0 && now.Sub(p.queue.Renewed) > p.queue.Life/4
		p.mu.Unlock()
		due = later(due, now.Add(p.pace.delay(now, p.answered, hurry, life)))
	}
	l.exact = false
	return sleepUntil(ctx, due)
}

// retry makes a request until it works, or fails in a way that no repetition heals.
func (p *Poller) retry(ctx context.Context, l *line, request func() error) error {
	for {
		if err := p.hold(ctx, l); err != nil {
			return err
		}
		if p.refused {
			if _, err := p.Client.Reload(); err != nil {
				p.failed(l, err)
				continue
			}
		}
		err := request()
		if a := p.Client.account; a != nil && a.Insecure && !p.warned {
			p.warned = true
			p.Log.Warn().Msgf("certificates are not checked (insecure): whoever is between us and %s can read everything, the key included", a.Site)
		}
		if err == nil {
			p.accepted, p.refused = true, false
			if l == &p.rest {
				l.backoff.succeeded()
				p.recovered(l)
			} // of a poll it is too early to tell: the answer has only begun
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if _, ok := errors.AsType[*trouble](err); ok {
			p.failed(l, err)
			continue
		}
		if _, ok := errors.AsType[*AuthError](err); ok && p.accepted {
			p.refused = true
			p.failed(l, err)
			continue
		}
		if _, ok := errors.AsType[*RefusedError](err); ok {
			p.accepted, p.refused = true, false // the account was let in
			p.recovered(l)
		}
		l.backoff.slow(time.Now())
		return err
	}
}

// failed notes that a request of that line failed and may be healed by another, and logs what is new about it.
func (p *Poller) failed(l *line, err error) {
	now := time.Now()
	what := err.Error()
	doing := "asking again, less and less often"
	if t, ok := errors.AsType[*trouble](err); ok && t.limited {
		l.told, l.exact = later(l.told, now.Add(t.wait)), true
		if l == &p.events {
			p.pace.limited(now, t.rate)
		}
		doing = fmt.Sprintf("waiting %v as told", t.wait.Round(time.Millisecond))
	} else {
		l.backoff.failed(now)
	}
	if l == &p.events {
		doing += ", the queue is kept"
	}
	if p.refused {
		doing += "; the account is read again before each try"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.outage == nil {
		l.outage = &outage{since: now, said: make(map[string]bool)}
	}
	l.outage.tries++
	l.outage.what = what
	// Servers that change between two errors are told of once each; texts that never repeat, only so often.
	if !l.outage.said[what] && len(l.outage.said) < 10 {
		l.outage.said[what] = true
		p.Log.Warn().Msg(what + "; " + doing)
	}
}

// recovered notes that requests of that line are answered.
func (p *Poller) recovered(l *line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o := l.outage; o != nil {
		p.Log.Info().Msgf("Zulip answers again after %v, %d tries", time.Since(o.since).Round(time.Millisecond), o.tries)
		l.outage = nil
	}
}
