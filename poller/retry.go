package poller

// What is done when a request to Zulip fails: how long to wait, and whether to ask again.
//
//   - A 429: as long as its Retry-After says, and no longer (retryAfter; [Poller.turn]), but
//     for a queue near the end of its idle timeout that needs room for two polls (pace.retry).
//     What a 429 tells of the server's rate limits, for the polls behind it, is in pace.go.
//   - Any other failure that a retry may heal (no connection, 5xx, HTML, a body cut short, a
//     401 after the key was once accepted): exponential backoff with full jitter (backoff).
//     A 401 before that is final if the account, read again, is the same or cannot be read.
//   - All else goes to the caller ([Poller.retry]).
//
// It is for ever: only the context ends it. Each change is logged once.

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"zulip-nats/health"
	"zulip-nats/logevent"
)

// endpoint is polls, or all other requests: what is known of their failures.
type endpoint struct {
	backoff backoff
	retryAt time.Time // no request before: now + Retry-After of the last 429
	exact   bool      // the next request leaves at retryAt, without backoff

	// trouble is set while there are no useful answers. Its reason is its text: servers
	// that change between two errors are told of once each, texts that never repeat only
	// so often.
	trouble health.Condition
	asking  atomic.Bool // a request is being made, again and again if need be
}

// turn waits until a request to that endpoint may leave: for Retry-After, the backoff, or
// the pace.
func (p *Poller) turn(ctx context.Context, l *endpoint) error {
	now := time.Now()
	due := later(l.retryAt, l.backoff.until)
	exact := l.exact && l.retryAt.After(now)
	if exact {
		due = l.retryAt // waiting exactly as told is enough
	}
	if l == &p.events {
		p.mu.Lock()
		life, renewed := p.queue.Life, p.queue.Renewed
		p.mu.Unlock()
		if exact {
			due = p.pace.retry(due, renewed, life)
		} else {
			due = later(due, now.Add(p.pace.delay(now, p.answered, renewed, life)))
		}
	}
	l.exact = false
	return sleepUntil(ctx, due)
}

// retry makes a request until it works, or fails in a way that no repetition heals.
func (p *Poller) retry(ctx context.Context, l *endpoint, request func() error) error {
	l.asking.Store(true)
	defer l.asking.Store(false)
	for {
		if err := p.turn(ctx, l); err != nil {
			return err
		}
		if p.refused {
			if _, err := p.Client.reload(); err != nil {
				p.failed(l, err)
				continue
			}
		}
		err := request()
		if a := p.Client.account.Load(); a != nil && a.Insecure && !p.warned {
			p.warned = true
			logevent.CertificatesIgnored.Warn(p.Log).
				Msgf("certificates are not checked (insecure): whoever is between us and %s can read "+
					"everything, the key included", a.shown())
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
		if _, ok := errors.AsType[*transientError](err); ok {
			p.failed(l, err)
			continue
		}
		if _, ok := errors.AsType[*AuthError](err); ok {
			if p.accepted {
				p.refused = true
				p.failed(l, err)
				continue
			}
			// What is known may be old: a start can wait for NATS for days, a standby for
			// its turn.
			if changed, err := p.Client.reload(); changed && err == nil {
				continue
			}
		}
		if _, ok := errors.AsType[*RefusedError](err); ok {
			p.accepted, p.refused = true, false // the account was let in
			p.recovered(l)
		}
		p.count(l, err)
		l.backoff.slow(time.Now())
		return err
	}
}

// failed records a failure that a retry may heal, and logs it if it is new.
func (p *Poller) failed(l *endpoint, err error) {
	p.count(l, err)
	now := time.Now()
	what, line := err.Error(), logevent.ZulipAway.Warn
	doing := "asking again, less and less often"
	var next time.Time
	t, transient := errors.AsType[*transientError](err)
	if transient && t.limited {
		l.retryAt, l.exact = later(l.retryAt, now.Add(t.wait)), true
		if l == &p.events {
			p.pace.limited(now, t.wait, t.rate)
		}
		line, next = logevent.RateLimited.Warn, l.retryAt
		doing = fmt.Sprintf("waiting %v as told", t.wait.Round(time.Millisecond))
	} else {
		l.backoff.failed(now)
		next = later(l.retryAt, l.backoff.until)
	}
	if l == &p.events {
		doing += ", the queue is kept"
	}
	if !transient { // the key, or the zuliprc in which a new one is looked for
		line = logevent.KeyRefused.Warn
	}
	if p.refused {
		doing += "; the account is read again before each try"
	}
	if _, news := l.trouble.Set(what, what); news {
		state, _ := l.trouble.State()
		e := line(p.Log).Time("since", state.Since.UTC()).
			Stringer("next_try_in", max(next.Sub(now), 0).Round(time.Millisecond))
		if expires := p.Expires(); l == &p.events && !expires.IsZero() {
			e.Stringer("queue_lives_for", max(expires.Sub(now), 0).Round(time.Second))
		}
		e.Msg(what + "; " + doing)
	}
}

// recovered records that the endpoint answers, and logs the end of an outage.
func (p *Poller) recovered(l *endpoint) {
	if was, set := l.trouble.Clear(); set {
		after, tries := time.Since(was.Since).Round(time.Millisecond), "1 try"
		if was.Tries != 1 {
			tries = fmt.Sprintf("%d tries", was.Tries)
		}
		logevent.ZulipBack.Info(p.Log).Stringer("after", after).Int("tries", was.Tries).
			Msgf("Zulip answers again after %v, %s", after, tries)
	}
}

const (
	// mostRetryAfter is the longest wait that a 429 may ask for. No rule of Zulip's is
	// longer than a day, and few are longer than an hour.
	mostRetryAfter = time.Hour
	// defaultRetryAfter is the wait after a 429 that does not say how long.
	defaultRetryAfter = time.Second
)

// retryAfter is how long to wait after a 429: a decimal fraction of seconds in the header
// Retry-After, else in the member retry-after of the body; a proxy's may be a date.
func retryAfter(header string, body *float64, now time.Time) time.Duration {
	seconds, err := strconv.ParseFloat(header, 64)
	if err != nil {
		if date, err := http.ParseTime(header); err == nil {
			seconds = date.Sub(now).Seconds()
		} else if body != nil {
			seconds = *body
		} else {
			return defaultRetryAfter
		}
	}
	if math.IsNaN(seconds) || seconds < 0 {
		return defaultRetryAfter
	}
	// Rounded up: a nanosecond too early is too early.
	return time.Duration(math.Ceil(min(seconds, mostRetryAfter.Seconds()) * 1e9))
}

const (
	backoffFirst = 100 * time.Millisecond
	backoffMost  = 30 * time.Second
	// failuresAtOnce is how many failures may follow each other faster than one a second.
	failuresAtOnce = 4
)

// backoff says when to ask again after a failure: a random part ("full jitter") of a time
// that begins at 100 ms and doubles to 30 s. Jitter may be short many times in a row, and
// success may alternate with failure, so there is a second bound that no success lifts:
// over time not more than one failure a second.
type backoff struct {
	tries int       // failures since something last succeeded
	until time.Time // no request before this
	debt  time.Time // moves on by a second with each failure
}

// failed records a failure at now.
func (b *backoff) failed(now time.Time) {
	b.tries++
	b.slow(now)
	most := backoffMost
	if b.tries <= 8 {
		most = backoffFirst << (b.tries - 1)
	}
	b.until = later(b.until, now.Add(rand.N(most)))
}

// slow records a request that came to nothing, and leaves the exponent as it is.
func (b *backoff) slow(now time.Time) {
	b.debt = later(b.debt, now).Add(time.Second)
	b.until = later(b.until, b.debt.Add(-failuresAtOnce*time.Second))
}

// succeeded resets the exponent.
func (b *backoff) succeeded() { b.tries = 0 }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// sleepUntil waits for t, or for the end of ctx, whose error it returns then.
func sleepUntil(ctx context.Context, t time.Time) error {
	d := time.Until(t)
	if d <= 0 {
		return ctx.Err()
	}
	health.Waits(ctx, d)
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
