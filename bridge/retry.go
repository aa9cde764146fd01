package bridge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/health"
	"zulip-nats/logevent"
	"zulip-nats/poller"
	"zulip-nats/stream"
)

// retry is the pause between two tries at the stream: 50 ms doubling to 2 s, jittered,
// for ever (design, section 9.2).
type retry struct{ next time.Duration }

const (
	retryMin = 50 * time.Millisecond
	retryMax = 2 * time.Second
)

func newRetry() *retry { return &retry{next: retryMin} }

func (r *retry) pause(ctx context.Context) error {
	d := r.next/2 + rand.N(r.next/2)
	r.next = min(2*r.next, retryMax)
	return sleep(ctx, d)
}

// mustBeMended says whether no waiting heals what kept the stream from being opened: the
// stream's settings, or the account, which Zulip has to let in before a stream is made.
func mustBeMended(err error) bool {
	_, settings := errors.AsType[*stream.ConfigError](err)
	_, key := errors.AsType[*poller.AuthError](err)
	_, account := errors.AsType[*poller.ConfigError](err)
	return settings || key || account
}

// outage speaks about NATS not taking writes: once when it begins, whenever the reason
// changes, whenever half of the time is gone that was left until Zulip drops the queue,
// and once when it is over.
type outage struct {
	health.Condition
	left time.Duration // what was left when it was last said
	// deaf is since when writes have had no answer while reads had; hinted, that it was
	// said what that looks like.
	deaf   time.Time
	hinted bool
}

// deafFor is how long writes may go unanswered before it is said what that looks like.
const deafFor = 10 * time.Second

// unanswered notes a write without an answer, between reads that have one. A full disk
// shows itself by nothing else.
func (o *outage) unanswered(log zerolog.Logger) {
	switch now := time.Now(); {
	case o.deaf.IsZero():
		o.deaf = now
	case !o.hinted && now.Sub(o.deaf) >= deafFor:
		o.hinted = true
		logevent.WritesUnanswered.Error(log).
			Msg("JetStream answers reads and no writes: look at the NATS server's log, its disk (where it " +
				"was full, the server has to be restarted when there is room again) and the stream's quorum")
	}
}

// note says what is wrong, unless it was said. expires is when Zulip may drop the queue,
// zero where there is none.
func (o *outage) note(log zerolog.Logger, err error, expires time.Time) {
	left := time.Until(expires)
	reason := err.Error()
	if e, ok := errors.AsType[*stream.Error](err); ok {
		reason = fmt.Sprint(e.Kind, e.Code) // the text may hold a number that differs each time
	}
	if stream.Away(err) {
		reason = "away" // whether or not something was under way
	}
	_, news := o.Set(reason, err.Error())
	if !news && (expires.IsZero() || left > o.left/2 || o.left <= 0) {
		return
	}
	o.left = left
	e, who := logevent.JetStreamAway.Warn(log), "JetStream"
	if stream.Away(err) {
		who = "NATS is away and" // why, the connection has said
	} else {
		e = e.Err(err)
	}
	state, _ := o.State()
	e = e.Time("since", state.Since.UTC())
	switch {
	case expires.IsZero():
		e.Msg(who + " does not serve us: waiting")
	case left > 0:
		e.Stringer("queue_lives_for", left.Round(time.Second)).
			Msg(who + " does not take events: waiting, while Zulip's queue keeps them")
	default:
		e.Msg(who + " does not take events, and Zulip may have dropped the queue by now: waiting")
	}
}

// over says that all is well again, if something was said before.
func (o *outage) over(log zerolog.Logger) {
	if was, set := o.Clear(); set {
		logevent.JetStreamBack.Info(log).Stringer("after", time.Since(was.Since).Round(time.Millisecond)).
			Msg("JetStream serves us again")
		o.deaf, o.hinted = time.Time{}, false
	}
}

// refusalsEvery is how often at most the same reason is logged for which writes are
// refused because something else had been stored, or was being stored.
const refusalsEvery = 10 * time.Minute
