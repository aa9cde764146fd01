package lease

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"zulip-nats/health"
)

// held is a lease that nobody renews, with the time that is left.
func held(left time.Duration) *Lease {
	l := &Lease{bucket: bucket{cfg: Config{Trouble: &health.Condition{}}}, revision: 7, deadline: deadlineAfter(time.Now(), left), stop: func() {}}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	l.expiry = time.AfterFunc(time.Hour, func() {})
	return l
}

// Past the deadline somebody else may have the lease: a renewal that is confirmed then
// comes too late.
func TestConfirmedLate(t *testing.T) {
	l := held(-time.Millisecond)
	l.confirm(8, deadlineAfter(time.Now(), time.Hour))
	if l.Held() || !errors.Is(context.Cause(l.ctx), ErrLost) {
		t.Errorf("a lease past its deadline came back: held %v, cause %v", l.Held(), context.Cause(l.ctx))
	}
	l = held(time.Hour)
	until := deadlineAfter(time.Now(), 2*time.Hour)
	if !l.confirm(8, until) || l.revision != 8 || l.deadline != until || !l.Held() {
		t.Errorf("a renewal in time is not taken: %+v", l.deadline)
	}
	l.cancel(errReleased)
	if l.confirm(9, until) || l.revision != 8 {
		t.Error("a renewal is confirmed after the release")
	}
}

// The same for the answer to the write that took the lease.
func TestAcquiredLate(t *testing.T) {
	if l := newLease(bucket{}, Holder{}, 1, time.Now().Add(-time.Second), 999*time.Millisecond); l != nil {
		l.stop()
		t.Error("a lease was had that is over")
	}
}

// Held goes by the clocks of this moment, and waits for no timer.
func TestHeldPastTheDeadline(t *testing.T) {
	l := held(-time.Millisecond)
	if l.Held() {
		t.Error("held past the deadline")
	}
	l = held(time.Hour)
	l.deadline.wall = time.Now().Add(-time.Millisecond).Round(0) // the machine has slept
	if l.Held() {
		t.Error("held past the deadline by the wall clock")
	}
}

// A renewal that makes the key live shorter moves the deadline when it leaves: its answer
// may be lost.
func TestShorterRenewal(t *testing.T) {
	l := held(time.Hour)
	sooner := deadlineAfter(time.Now(), time.Minute)
	if revision := l.before(sooner); revision != 7 || l.deadline != sooner {
		t.Errorf("got %d, %+v", revision, l.deadline)
	}
	l.before(deadlineAfter(time.Now(), time.Hour))
	if l.deadline != sooner {
		t.Error("a renewal that nobody confirmed moved the deadline on")
	}
}

// What is no lease may be overwritten: a mark, text of strangers, an answer that others had
// put there.
func TestParseHolder(t *testing.T) {
	good := `{"writer":"host-1-abc","host":"host","pid":1,"since":"2026-11-28T12:00:00Z","id":"X"}`
	if h := parseHolder(nil, []byte(good)); h == nil || h.Writer != "host-1-abc" {
		t.Errorf("a holder is read as %+v", h)
	}
	for _, value := range []string{"", "hello", "{}", `{"id":"X"}`,
		`{"writer":"w","since":"2026-11-28T12:00:00Z"}`, `{"since":"2026-11-28T12:00:00Z","id":"X"}`,
		`{"type":"io.nats.micro.v1.ping_response","name":"zulip-nats","id":"X","version":"1.2.3","metadata":{}}`} {
		if h := parseHolder(nil, []byte(value)); h != nil {
			t.Errorf("%s is read as %+v", value, h)
		}
	}
	if h := parseHolder(nats.Header{"KV-Operation": {"DEL"}}, []byte(good)); h != nil {
		t.Errorf("a deleted key is read as %+v", h)
	}
}

// A renewal leaves at a third of the key's life, counted from when the last write was sent,
// however long its answer took, and never at once.
func TestPauseCountsFromTheSending(t *testing.T) {
	l := held(time.Hour)
	l.cfg.TTL = 9 * time.Second
	for _, test := range []struct{ took, least, most time.Duration }{
		{0, 900 * time.Millisecond, 3 * time.Second}, {2 * time.Second, 900 * time.Millisecond, time.Second},
		{8 * time.Second, 900 * time.Millisecond, 900 * time.Millisecond},
	} {
		if got := l.pause(time.Now().Add(-test.took), 9*time.Second); got < test.least || got > test.most {
			t.Errorf("behind an answer that took %v it waits %v", test.took, got)
		}
	}
}

// Who stands by may look every few minutes only, and says so.
func TestPauseIsAPulse(t *testing.T) {
	var p health.Pulse
	ctx := health.WithPulse(t.Context(), &p)
	health.Waits(ctx, -time.Hour)
	if err := sleep(ctx, time.Millisecond); err != nil || p.Late() > time.Minute {
		t.Errorf("behind a pause: late by %v, %v", p.Late(), err)
	}
}
