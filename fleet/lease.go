package fleet

import (
	"context"
	"encoding/json"
	"time"

	"zulip-nats/stream"
)

// Lease is the right to work for a realm. It is lost with the session of its instance, at
// the session's deadline at the latest, or when the claim is somebody else's; then it stays
// lost.
type Lease struct {
	s      *session
	realm  string
	ctx    context.Context
	cancel context.CancelCauseFunc
	asked  context.Context
	ask    context.CancelCauseFunc

	// Guarded by the instance's lock.
	revision uint64    // of the claim
	to       *card     // who asked for it
	askedAt  time.Time // when the holder was told
	retryAt  time.Time // the claim is not written again before
}

func newLease(s *session, realm string, revision uint64) *Lease {
	l := &Lease{s: s, realm: realm, revision: revision}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	l.asked, l.ask = context.WithCancelCause(context.Background())
	return l
}

// Context ends when the lease is lost, at the deadline at the latest, and when it is
// released. context.Cause then is [ErrLost] or says that it was released.
func (l *Lease) Context() context.Context { return l.ctx }

// Asked ends, with the cause [ErrAsked], when another instance is to have the realm: then
// what is in hand is finished, and the lease is released.
func (l *Lease) Asked() context.Context { return l.asked }

// Held says whether the lease still runs, by our own clocks and at this moment. A process
// that was stopped and goes on learns by this what no timer has had the time to tell it.
func (l *Lease) Held() bool { return l.s.held() && l.ctx.Err() == nil }

// Release gives the realm back: to the one who asked for it, if that one still lives, else
// to whoever wants it. Both learn of it at once. An error says that it could not be given
// back; then this instance does so as soon as it can. Releasing a lease that is lost or
// released does nothing.
func (l *Lease) Release(ctx context.Context) error {
	s := l.s
	held := l.Held()
	s.mu.Lock()
	if s.leases[l.realm] == l {
		delete(s.leases, l.realm)
	}
	held = held && l.ctx.Err() == nil
	l.cancel(errReleased)
	if !held {
		s.mu.Unlock()
		return nil
	}
	s.busy[l.realm]++
	to := s.heir(l)
	s.mu.Unlock()

	err := l.giveTo(ctx, to, l.revision)
	if kindOf(err) == stream.Refused {
		// The claim was written anew and the answer lost, or it is somebody else's.
		var now Entry
		if now, err = s.store.Read(ctx, claimKey(l.realm)); err == nil {
			if c := parseClaim(now.Value); c != nil && c.Instance == s.id {
				err = l.giveTo(ctx, to, now.Revision)
			}
		}
	}
	s.mu.Lock()
	s.unbusy(l.realm)
	s.mu.Unlock()
	s.poke()
	return err
}

// heir is who gets the realm: who asked for it, if that one is still there.
func (s *session) heir(l *Lease) *card {
	if l.to == nil || s.view == nil {
		return nil
	}
	if now := s.view.cards[l.to.ID]; now != nil && !now.Leaving && s.alive(now.ID) {
		return now
	}
	return nil
}

// giveTo writes the claim for another instance, or deletes it.
func (l *Lease) giveTo(ctx context.Context, to *card, revision uint64) error {
	key, e, err := claimKey(l.realm), Entry{}, error(nil)
	if to == nil {
		e.Revision, err = l.s.store.Delete(ctx, key, revision)
	} else {
		e.Value, err = json.Marshal(claim{Instance: to.ID, Writer: to.Writer, Host: to.Host, Since: now()})
		if err == nil {
			e.Revision, err = l.s.store.Write(ctx, key, e.Value, revision, 0)
		}
	}
	if err == nil {
		l.s.mu.Lock()
		l.s.take(key, e)
		l.s.mu.Unlock()
	}
	return err
}

// now is a time for people.
func now() time.Time { return time.Now().UTC().Round(time.Millisecond) }
