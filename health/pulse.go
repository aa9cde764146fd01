package health

import (
	"context"
	"sync"
	"time"
)

// Pulse is the sign of life of one loop, for whoever has to tell a loop that waits from
// one that hangs.
//
// A loop that waits for a server is well, for however many hours that server is away. One
// that hangs, on a lock or a write that never returns, is not, and no server can be asked
// about it. What tells them apart is that no wait of ours is without an end: a poll is
// given up, a request has a time-out, a pause has a length, and whoever stands by looks
// again and again. So each place that waits says how long it will at most ([Waits]), the
// loop says something new whenever that is over, and one that has said nothing for longer
// than it announced hangs.
//
// The context carries it down to those places, so that they need no setting for it, and
// so that another goroutine with a context of its own does not speak for the loop: see
// [WithoutPulse].
//
// A loop that goes round without ever getting anything done has a pulse. That is for
// [Condition] to tell.
//
// The zero value is that of a loop which has not begun. Any goroutine may use it.
type Pulse struct {
	mu  sync.Mutex
	due time.Time // with its monotonic part: while the machine sleeps nobody is late
}

type pulseKey struct{}

// WithPulse gives a loop's context its pulse.
func WithPulse(ctx context.Context, p *Pulse) context.Context {
	return context.WithValue(ctx, pulseKey{}, p)
}

// WithoutPulse is for a goroutine that works beside the loop: what it waits for says
// nothing about the loop.
func WithoutPulse(ctx context.Context) context.Context {
	return context.WithValue(ctx, pulseKey{}, nil)
}

// Waits says that the loop of this context is alive, and that what it does now is over in
// atMost. Without a pulse in the context it does nothing.
func Waits(ctx context.Context, atMost time.Duration) {
	p, ok := ctx.Value(pulseKey{}).(*Pulse)
	if !ok {
		return
	}
	due := time.Now().Add(atMost)
	p.mu.Lock()
	p.due = due
	p.mu.Unlock()
}

// Stop says that the loop has ended, and is not waited for any more.
func (p *Pulse) Stop() {
	p.mu.Lock()
	p.due = time.Time{}
	p.mu.Unlock()
}

// Late is for how long a sign of life is due; 0 if none is.
func (p *Pulse) Late() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.due.IsZero() {
		return 0
	}
	return max(0, time.Since(p.due))
}
