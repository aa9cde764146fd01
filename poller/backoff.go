package poller

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	backoffFirst = 100 * time.Millisecond
	backoffMost  = 30 * time.Second
	// failuresAtOnce is how many failures may follow each other faster than one a second.
	failuresAtOnce = 4
)

// backoff says when to ask again after a failure: a random part ("full jitter") of a time that begins at 100 ms and doubles to 30 s.
// Jitter may be short many times in a row, and success may alternate with failure, so there is a second bound that no success
// lifts: over time not more than one failure a second.
type backoff struct {
	tries int       // failures since something last succeeded
	until time.Time // no request before this
	debt  time.Time // moves on by a second with each failure
}

// failed notes a failure at now.
func (b *backoff) failed(now time.Time) {
	b.tries++
	b.slow(now)
	most := backoffMost
	if b.tries <= 8 {
		most = backoffFirst << (b.tries - 1)
	}
	b.until = later(b.until, now.Add(rand.N(most)))
}

// slow notes that a request came to nothing, without a reason to wait longer each time.
func (b *backoff) slow(now time.Time) {
	b.debt = later(b.debt, now).Add(time.Second)
	b.until = later(b.until, b.debt.Add(-failuresAtOnce*time.Second))
}

// succeeded notes that something worked.
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
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
