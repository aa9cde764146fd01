package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"zulip-nats/logevent"
	"zulip-nats/stream"
)

// deadline is a moment by both clocks: the monotonic one stands still while the machine
// sleeps, the wall clock may be set.
type deadline struct{ mono, wall time.Time }

func deadlineAfter(sent time.Time, ttl time.Duration) deadline {
	return deadline{mono: sent.Add(ttl), wall: sent.Add(ttl).Round(0)}
}

func (d deadline) passed() bool {
	now := time.Now()
	return !now.Before(d.mono) || !now.Round(0).Before(d.wall)
}

// session is the time of one key of an instance. What it holds it holds until its deadline
// at the latest.
type session struct {
	*Instance
	id     string
	since  time.Time
	ctx    context.Context // until the session is over
	cancel context.CancelFunc
	kick   chan struct{} // holds one: the key is to be renewed at once
	rounds chan watching // holds one: a watch that was made anew

	updates <-chan Update // of the loop alone
	unwatch context.CancelFunc

	// Guarded by the instance's lock.
	over     bool
	revision uint64 // of the key
	deadline deadline
	expiry   *time.Timer
	acked    uint64    // the revision of the last renewal that was acknowledged
	ackedAt  time.Time // when it was

	view      *view     // the last that was complete; nil: none yet
	next      *view     // one that is being built; nil: the last one is followed
	rewatch   bool      // the watch is to be made anew
	making    bool      // it is being made
	watchedAt time.Time // when that was last begun
	stalls    int       // how often it was found to stand still, and since then never in time
	near      bool      // what we want is held by a process of this machine
	lookedAt  time.Time // when those were last looked at

	asks    string    // the realm that we ask for
	askedAt time.Time // since when
	refused string    // the realm that was asked for in vain

	free   map[string]time.Time // by realm: since when nobody has it
	busy   map[string]int       // by realm: writes of its claim that are under way
	claims int                  // of those, how many take a realm that is free
}

// watching is what came of beginning a watch.
type watching struct {
	updates <-chan Update
	unwatch context.CancelFunc
	err     error
}

// life is how long the key lives from now on without renewal, in whole seconds, since the
// server counts in those. It is what the user chose, and four round trips at least: a
// renewal leaves at a third of it, and its answer has to be here before the end.
func (i *Instance) lifetime() time.Duration {
	d := max(i.cfg.TTL, lifeTrips*i.store.RoundTrip())
	return (d + time.Second - 1).Truncate(time.Second)
}

// settled is how long a renewal that was acknowledged takes at most to come through a watch
// that is well.
func (i *Instance) settled() time.Duration { return max(time.Second, lifeTrips*i.store.RoundTrip()) }

// try begins a session, if that can be had now. It is nil, too, if the key would be over by
// the time that its acknowledgement came.
func (i *Instance) try(me Holder) (*session, error) {
	i.mu.Lock()
	replicas, leaving := i.replicas, i.leaving
	i.mu.Unlock()
	if err := i.store.Ensure(i.life, replicas); err != nil {
		return nil, err
	}
	ctx, unwatch := context.WithCancel(i.life)
	updates, err := i.store.Watch(ctx)
	if err != nil {
		unwatch()
		return nil, err
	}
	begun := time.Now()
	was, err := i.store.Read(i.life, instanceKey(me.ID)) // it may be there: the answer to our own write was lost
	var revision uint64
	life, sent := i.lifetime(), time.Now()
	if err == nil {
		me.Since = now()
		revision, err = i.write(i.life, card{Holder: me, Leaving: leaving}, was.Revision, life)
	}
	if err != nil {
		unwatch()
		return nil, err
	}
	i.cfg.Trouble.Clear()
	s := newSession(i, me, revision, sent, life)
	if s == nil {
		unwatch()
		return nil, nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.life.Err() != nil { // Close has come meanwhile, and knows nothing of this one
		unwatch()
		s.finish(errReleased)
		i.work.Go(func() {
			last, cancel := context.WithTimeout(context.WithoutCancel(i.life), askTimeout)
			defer cancel()
			_ = s.remove(last)
		})
		return nil, errClosed
	}
	s.updates, s.unwatch = updates, unwatch
	s.next.begun, s.next.barrier = begun, revision
	s.watchedAt = begun
	i.session = s
	i.work.Go(func() { s.renew(s.pause(sent, life)) })
	return s, nil
}

func (i *Instance) write(ctx context.Context, c card, revision uint64, life time.Duration) (uint64, error) {
	value, err := json.Marshal(c)
	if err != nil {
		return 0, err
	}
	return i.store.Write(ctx, instanceKey(c.ID), value, revision, life)
}

// newSession is one whose key lives so long from when it was sent; nil if that is over, as
// after a long wait for the answer.
func newSession(i *Instance, me Holder, revision uint64, sent time.Time, life time.Duration) *session {
	d := deadlineAfter(sent, life)
	if d.passed() {
		return nil
	}
	s := &session{Instance: i, id: me.ID, since: me.Since, revision: revision, deadline: d, next: newView(),
		acked: revision, ackedAt: time.Now(), kick: make(chan struct{}, 1), rounds: make(chan watching, 1),
		free: map[string]time.Time{}, busy: map[string]int{}}
	s.ctx, s.cancel = context.WithCancel(i.life)
	i.mu.Lock()
	s.expiry = time.AfterFunc(time.Until(d.mono), s.expire)
	i.mu.Unlock()
	return s
}

// held says whether the session still runs.
func (s *session) held() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runs()
}

func (s *session) runs() bool {
	if s.deadline.passed() {
		s.lose(s.late())
	}
	return !s.over
}

// expire ends the session at its deadline, unless that was moved meanwhile.
func (s *session) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.runs() {
		s.expiry.Reset(time.Until(s.deadline.mono))
	}
}

// late says why the deadline passed.
func (s *session) late() string {
	switch state, set := s.cfg.Trouble.State(); {
	case !set:
		return "it could not be renewed in time"
	case state.Text == away:
		return "NATS was away, so it could not be renewed in time"
	default:
		return "it could not be renewed in time: " + state.Text
	}
}

func (s *session) lose(why string) { s.finish(fmt.Errorf("%w: %s", ErrLost, why)) }

// finish ends the session, and all leases with it.
func (s *session) finish(cause error) {
	if s.over {
		return
	}
	s.over = true
	s.expiry.Stop()
	s.cancel()
	s.past[s.id] = true
	for realm, l := range s.leases {
		l.cancel(cause)
		delete(s.leases, realm)
	}
	if s.session == s {
		s.session = nil
	}
}

// remove deletes the key of a session that is over and whose key is not.
func (s *session) remove(ctx context.Context) error {
	s.mu.Lock()
	revision := s.revision
	s.mu.Unlock()
	_, err := s.store.Delete(ctx, instanceKey(s.id), revision)
	if kindOf(err) != stream.Refused {
		return err
	}
	// The last renewal was cut off, and done all the same.
	now, err := s.store.Read(ctx, instanceKey(s.id))
	if err != nil || parseCard(s.id, now.Value) == nil {
		return err
	}
	_, err = s.store.Delete(ctx, instanceKey(s.id), now.Revision)
	return err
}

// renewNow lets the key be renewed at once.
func (s *session) renewNow() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// renew keeps the key until the session is over.
//
// Where one write fails, no two are closer than a tenth of the key's life, whatever was
// answered. A leader that was deposed gives the old revision for as long as it is asked, so
// what a read shows is no reason to write again at once. Six more writes fit in what is
// left of the life after the first that was refused.
func (s *session) renew(wait time.Duration) {
	// unconfirmed is the end of the first of the renewals that nobody confirmed since the
	// last that was. It is the earliest of them.
	var unconfirmed deadline
	for kick := s.kick; s.rest(wait, kick); {
		life, sent := s.lifetime(), time.Now()
		until := deadlineAfter(sent, life)
		if unconfirmed.mono.IsZero() || until.mono.Before(unconfirmed.mono) {
			unconfirmed = until
		}
		me, expected := s.before(until)
		revision, err := s.write(s.ctx, me, expected, life)
		if err == nil {
			if !s.confirm(revision, until, sent) {
				return
			}
			wait, kick, unconfirmed = s.pause(sent, life), s.kick, deadline{}
			continue
		}
		if s.ctx.Err() != nil {
			return
		}
		s.unsure(err, "the lease cannot be renewed now; keeping it as long as it lasts")
		wait, kick = s.cfg.TTL/looks, nil
		if kindOf(err) != stream.Refused {
			continue
		}
		// Somebody changed the key: we ourselves by a renewal whose answer was lost, or its
		// expiry, or a stranger's hand.
		now, err := s.store.Read(s.ctx, instanceKey(s.id))
		if err != nil || now.Revision != 0 && now.Revision < expected {
			continue // a leader that was deposed
		}
		if parseCard(s.id, now.Value) != nil && now.Revision > max(expected, s.lastAcked()) {
			// One of our renewals was done and its answer lost, at the earliest the first
			// of them.
			if !s.confirm(now.Revision, unconfirmed, time.Time{}) {
				return
			}
			unconfirmed = deadline{}
			continue
		}
		s.mu.Lock()
		s.revision = now.Revision
		if now.Revision == 0 { // the bucket may have been purged, and no watch tells of that
			s.rewatch = true
		}
		s.mu.Unlock()
		s.poke()
	}
}

// lastAcked is the revision of the last renewal that was acknowledged.
func (s *session) lastAcked() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acked
}

// rest waits until the next renewal; false if there is none.
func (s *session) rest(d time.Duration, kick <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-kick:
	case <-s.ctx.Done():
	}
	return s.ctx.Err() == nil
}

// pause is how long to wait with the next renewal, when one was confirmed that lets the key
// live so long. It counts from the sending, since the answer may have taken longer than a
// third of that.
func (s *session) pause(sent time.Time, life time.Duration) time.Duration {
	return max(life/renewals-time.Since(sent), s.cfg.TTL/looks)
}

// before takes note that a renewal is about to leave which makes the key live until then,
// and returns what it says and the revision that it follows. The way may have become
// shorter, and the life with it: then the key may end before the deadline that we have,
// whether we hear of it or not.
func (s *session) before(until deadline) (card, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if until.mono.Before(s.deadline.mono) && !s.over {
		s.deadline = until
		s.expiry.Reset(time.Until(until.mono))
	}
	c := card{Holder: s.me, Leaving: s.leaving, Asks: s.asks}
	c.ID, c.Since = s.id, s.since
	return c, s.revision
}

// confirm takes note of a renewal; false if the session is over. One that is confirmed
// behind the deadline comes too late.
func (s *session) confirm(revision uint64, d deadline, sent time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deadline.passed() || s.over {
		return !s.over // the timer, or Held, is about to tell
	}
	s.revision, s.deadline = revision, d
	s.expiry.Reset(time.Until(d.mono))
	s.acked, s.ackedAt = revision, time.Now()
	if s.next != nil && s.next.barrier == 0 && !s.next.begun.IsZero() && !sent.Before(s.next.begun) {
		s.next.barrier = revision
	}
	if _, set := s.cfg.Trouble.Clear(); set {
		logevent.LeaseRenewed.Info(s.cfg.Log).Msg("the lease can be renewed again")
	}
	s.poke()
	return true
}

// follow is the loop of a session: it takes what the watch brings, and does what follows
// from it, until the session is over. It waits for nothing else.
func (s *session) follow() {
	defer func() {
		if s.unwatch != nil {
			s.unwatch()
		}
	}()
	for {
		s.beats.Add(1)
		s.lookForDead()
		timer := time.NewTimer(s.turn())
		select {
		case <-s.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-s.wake:
		case w := <-s.rounds:
			s.watched(w)
		case u, ok := <-s.updates:
			for more := true; more; { // all that is there, since one turn is enough for it
				if !ok || u.Err != nil {
					s.watchEnded(u.Err)
					break
				}
				s.mu.Lock()
				s.came(u)
				s.mu.Unlock()
				select {
				case u, ok = <-s.updates:
				default:
					more = false
				}
			}
		}
		timer.Stop()
	}
}

// came takes an update of the watch.
func (s *session) came(u Update) {
	v := s.next
	if v == nil {
		v = s.view
	}
	v.take(u.Key, u.Entry)
	v.seen = max(v.seen, u.Revision)
	if u.Revision == s.acked && time.Since(s.ackedAt) < s.settled() {
		s.stalls = 0
	}
	if u.Key == instanceKey(s.id) && u.Revision > s.revision && parseCard(s.id, u.Value) == nil {
		s.revision = u.Revision // a stranger's hand
		s.renewNow()
	}
	if s.next == nil || !s.next.complete() {
		return
	}
	if s.view != nil {
		s.next.after(s.view, time.Now())
	}
	s.view, s.next = s.next, nil
	maps.DeleteFunc(s.dead, func(id string, _ *deadLook) bool { return s.view.cards[id] == nil })
	maps.DeleteFunc(s.past, func(id string, _ bool) bool { return s.view.cards[id] == nil })
}

// take takes note of a write of ours that was acknowledged: the watch brings it too, and
// later.
func (s *session) take(key string, e Entry) {
	for _, v := range []*view{s.view, s.next} {
		if v != nil {
			v.take(key, e)
		}
	}
}

// watchEnded is called when the watch has ended by itself.
func (s *session) watchEnded(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.updates = nil
	s.rewatch = true
	if err != nil {
		s.unwatched(err)
	}
}

// unwatched judges why there is no watch.
func (s *session) unwatched(err error) {
	s.cfg.Log.Debug().Err(err).Msg("the bucket is not watched now; watching it anew")
	if unsupported(err) {
		s.refuse(asUnsupported(err))
		s.watchedAt = time.Now().Add(s.cfg.TTL) // it is hardly otherwise at once
	}
}

// watchAnew ends the watch and begins another one, which shows the whole bucket again.
func (s *session) watchAnew(now time.Time) {
	s.rewatch, s.making, s.watchedAt = false, true, now
	s.next = newView()
	s.updates = nil
	if s.unwatch != nil {
		s.unwatch()
		s.unwatch = nil
	}
	s.work.Go(func() {
		ctx, unwatch := context.WithCancel(s.ctx)
		updates, err := s.store.Watch(ctx)
		if err != nil {
			unwatch()
		}
		s.rounds <- watching{updates, unwatch, err}
	})
}

// watched takes the watch that was begun anew. What shows that it is complete is a renewal
// that leaves now.
func (s *session) watched(w watching) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.making = false
	if w.err != nil {
		s.rewatch = true
		s.unwatched(w.err)
		return
	}
	s.updates, s.unwatch = w.updates, w.unwatch
	s.next.begun = time.Now()
	s.renewNow()
}
