package fleet

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"zulip-nats/logevent"
	"zulip-nats/stream"
)

const (
	// mostClaims is how many claims are under way at once: so many round trips in one.
	mostClaims = 32
	// deadEvery is how often the processes of this machine are looked at, at most.
	deadEvery = 250 * time.Millisecond
	// mostStalls is how often the time is doubled after which a watch counts as standing
	// still.
	mostStalls = 5
	// askFor is how long one realm is asked for before it is another one's turn, in lives
	// of a key.
	askFor = 10
)

// deadLook is what is known of a process of this machine that holds something.
type deadLook struct {
	Holder
	told bool // the log has it
}

// alive says whether a session lives, as far as is known here.
func (s *session) alive(id string) bool {
	return id == s.id || s.view.cards[id] != nil && s.dead[id] == nil && !s.past[id]
}

// tally is who holds how much.
type tally struct {
	realms  int            // that are known
	members int            // instances that live and do not leave
	holds   map[string]int // by id
}

// share is what one may hold at once.
func (t tally) share() int { return (t.realms + max(t.members, 1) - 1) / max(t.members, 1) }

// count counts. A realm that has been free for long is wanted by nobody, or somebody would
// have taken it.
func (s *session) count(now time.Time) tally {
	t := tally{holds: map[string]int{}}
	if !s.leaving {
		t.members++
	}
	for id, c := range s.view.cards {
		if id != s.id && !c.Leaving && s.alive(id) {
			t.members++
		}
	}
	for realm, c := range s.view.claims {
		switch {
		case c.claim == nil:
			continue
		case s.alive(c.Instance) && c.Instance != s.id:
			t.holds[c.Instance]++
		case c.Instance == s.id: // counted by what is held
		case now.Sub(s.free[realm]) > 2*s.cfg.TTL:
			continue
		}
		if s.wants[realm] == nil && s.leases[realm] == nil {
			t.realms++
		}
	}
	t.realms += len(s.wants) + len(s.leases)
	t.holds[s.id] = len(s.leases) + s.claims
	return t
}

// turn does what follows from what is known, and says when to look again at the latest.
func (s *session) turn() (wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.runs() {
		return 0
	}
	now := time.Now()
	wait = s.cfg.TTL / renewals
	later := func(at time.Time) {
		if at.After(now) {
			wait = min(wait, at.Sub(now))
		}
	}
	if s.near {
		later(s.lookedAt.Add(s.deadEvery()))
	}

	s.watchWatch(now, later)
	if s.view == nil {
		return wait
	}
	s.keep(now, later)
	if s.next != nil {
		return wait // what the last view shows may be over
	}
	s.noteFree(now)
	t := s.count(now)
	if s.claimFree(now, t, later) {
		s.ask(now, t, later)
	}
	s.handOver(now, t)
	return wait
}

// watchWatch has the watch made anew if it has ended or is stalled: a renewal was
// acknowledged and has not come. It does so with a pause in between.
func (s *session) watchWatch(now time.Time, later func(time.Time)) {
	if s.making {
		return
	}
	v, since := s.view, s.ackedAt
	if s.next != nil {
		v = s.next
		since = latest(since, v.begun)
	}
	if s.updates != nil && v.seen < s.acked {
		// Longer each time: a watch that is slow, and for long, is better than none.
		if due := since.Add(s.settled() << min(s.stalls, mostStalls)); now.Before(due) {
			later(due)
		} else {
			s.rewatch = true
			s.stalls++
		}
	}
	if !s.rewatch {
		return
	}
	if due := s.watchedAt.Add(min(s.cfg.TTL/looks, deadEvery)); now.Before(due) {
		later(due)
	} else {
		s.watchAnew(now)
	}
}

// latest is the later of two moments.
func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// keep compares what we hold with what the view shows of it.
func (s *session) keep(now time.Time, later func(time.Time)) {
	for realm, l := range s.leases {
		c := s.view.claims[realm]
		switch {
		case c.revision == l.revision && c.claim != nil && c.Instance == s.id: // else a bucket that was made anew
			continue
		case c.claim != nil && c.Instance == s.id && !c.vanished:
			l.revision = c.revision // the answer to a write of ours was lost
			continue
		case c.claim != nil && c.Instance != s.id && s.alive(c.Instance):
			l.cancel(fmt.Errorf("%w: %s on %s holds it", ErrLost, c.Writer, c.Host))
			delete(s.leases, realm)
			continue
		}
		// Nobody has it, whoever did that to the key: it stays ours.
		if s.busy[realm] > 0 {
			continue
		}
		if later(l.retryAt); now.Before(l.retryAt) {
			continue
		}
		l.retryAt = now.Add(s.cfg.TTL / looks)
		later(l.retryAt)
		s.busy[realm]++
		s.work.Go(func() { s.rewrite(realm, c.revision) })
	}
	// And what is ours by its claim, and nobody here wants, or is to have any more.
	for realm, c := range s.view.claims {
		if c.claim == nil || c.Instance != s.id || c.vanished || s.leases[realm] != nil || s.busy[realm] > 0 ||
			s.wants[realm] != nil && !s.leaving {
			continue
		}
		s.busy[realm]++
		s.work.Go(func() { s.giveBack(realm, c.revision) })
	}
}

// noteFree notes since when realms are free.
func (s *session) noteFree(now time.Time) {
	maps.DeleteFunc(s.view.claims, func(_ string, c claimed) bool { // who had them has had the time to say so
		return c.vanished && now.Sub(c.vanishedAt) >= s.cfg.TTL
	})
	for realm, c := range s.view.claims {
		if c.claim != nil && s.alive(c.Instance) {
			delete(s.free, realm)
		} else if s.free[realm].IsZero() {
			s.free[realm] = now
		}
	}
	for realm := range s.wants {
		if _, known := s.view.claims[realm]; !known && s.free[realm].IsZero() {
			s.free[realm] = now
		}
	}
	for realm := range s.free {
		if _, known := s.view.claims[realm]; !known && s.wants[realm] == nil {
			delete(s.free, realm)
		}
	}
}

// claimFree claims what is wanted here and free, and tells who waits for whom. It is true
// if there is nothing to be claimed now.
func (s *session) claimFree(now time.Time, t tally, later func(time.Time)) (rests bool) {
	type candidate struct {
		realm       string
		revision    uint64
		given, mine bool
		rank        uint64
		waited      bool
	}
	var all []candidate
	for realm, w := range s.wants {
		c := s.view.claims[realm]
		if s.busy[realm] > 0 {
			continue
		}
		if c.vanished {
			later(c.vanishedAt.Add(s.cfg.TTL))
			continue
		}
		if c.claim != nil && c.Instance != s.id && s.alive(c.Instance) {
			s.tell(w, c)
			continue
		}
		if later(w.retryAt); now.Before(w.retryAt) {
			continue
		}
		if s.leaving && t.members > 0 {
			continue // they take it
		}
		k := candidate{realm: realm, revision: c.revision, given: c.claim != nil && c.Instance == s.id && !c.vanished,
			mine: true, rank: rank(realm, s.id), waited: now.Sub(s.free[realm]) > s.cfg.TTL}
		for id, other := range s.view.cards {
			if id != s.id && !other.Leaving && s.alive(id) && rank(realm, id) > k.rank {
				k.mine = false
				break
			}
		}
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b candidate) int {
		first := func(x, y bool) int {
			switch {
			case x == y:
				return 0
			case x:
				return -1
			}
			return 1
		}
		return cmp.Or(first(a.given, b.given), first(a.mine, b.mine), cmp.Compare(b.rank, a.rank),
			cmp.Compare(a.realm, b.realm))
	})
	rests = s.claims == 0
	room := t.share() - t.holds[s.id]
	for _, k := range all {
		if !k.given && room <= 0 && !k.waited {
			later(s.free[k.realm].Add(s.cfg.TTL + time.Millisecond))
			continue
		}
		rests = false
		room--
		s.claims++
		s.busy[k.realm]++
		var from *deadLook
		if c := s.view.claims[k.realm]; c.claim != nil {
			from = s.dead[c.Instance]
		}
		s.work.Go(func() { s.claim(k.realm, k.revision, from) })
	}
	return rests
}

// tell says to who waits for a realm who has it, once.
func (s *session) tell(w *want, c claimed) {
	if w.told == c.Instance {
		return
	}
	w.told = c.Instance
	s.near = true // as far as we know: it is looked at soon
	h := s.view.cards[c.Instance].Holder
	h.Since = c.Since
	select {
	case <-w.news: // an old one
	default:
	}
	w.news <- h
}

// writeClaim writes our name into a realm's claim, and takes note of it.
func (s *session) writeClaim(realm string, expected uint64) (uint64, error) {
	value, err := json.Marshal(claim{Instance: s.id, Writer: s.me.Writer, Host: s.me.Host, Since: now()})
	if err != nil {
		return 0, err
	}
	key := claimKey(realm)
	revision, err := s.store.Write(s.ctx, key, value, expected, 0)
	now := Entry{Revision: revision, Value: value}
	known := err == nil
	if kindOf(err) == stream.Refused {
		// The mark of its deletion may have gone meanwhile, of which no watch tells. Whose
		// it is, the watch alone may say: there his own key comes first.
		var e error
		now, e = s.store.Read(s.ctx, key)
		known = e == nil && now.Value == nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known && now.Revision == 0 {
		for _, v := range []*view{s.view, s.next} {
			if v != nil && v.claims[realm].revision == expected {
				delete(v.claims, realm)
			}
		}
	} else if known {
		s.take(key, now)
	}
	return revision, err
}

// claim takes a realm that is free, when it is its turn.
func (s *session) claim(realm string, expected uint64, from *deadLook) {
	var revision uint64
	err := context.Cause(s.ctx)
	select {
	case s.slots <- struct{}{}:
		revision, err = s.writeClaim(realm, expected)
		<-s.slots
	case <-s.ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.claims--
	s.unbusy(realm)
	defer s.poke()
	w := s.wants[realm]
	switch {
	case !s.runs() || w == nil:
		return // then the claim is of a session that is over, or is given back
	case err == nil:
		if from != nil && !from.told {
			from.told = true
			logevent.LeaseTakenOver.Info(s.cfg.Log).Str("holder", from.Writer).Int("pid", from.PID).
				Msg("took the lease over at once: the process that held it is gone")
		}
		l := newLease(s, realm, revision)
		s.leases[realm] = l
		delete(s.wants, realm)
		w.result <- outcome{lease: l}
	case unsupported(err):
		delete(s.wants, realm)
		w.result <- outcome{err: asUnsupported(err)}
	default:
		w.retryAt = time.Now().Add(s.cfg.TTL / looks)
		if kindOf(err) != stream.Refused { // else somebody was faster
			s.unsure(err, "the lease cannot be asked for now; retrying")
		}
	}
}

// rewrite writes the claim of what we hold anew.
func (s *session) rewrite(realm string, expected uint64) {
	revision, err := s.writeClaim(realm, expected)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unbusy(realm)
	if l := s.leases[realm]; err == nil && l != nil {
		l.revision = revision
	}
	s.poke()
}

// giveBack deletes a claim of ours that nobody here wants.
func (s *session) giveBack(realm string, expected uint64) {
	key := claimKey(realm)
	revision, err := s.store.Delete(s.ctx, key, expected)
	if err != nil {
		pause(s.ctx, s.cfg.TTL/looks)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.take(key, Entry{Revision: revision})
	}
	s.unbusy(realm)
	s.poke()
}

func (s *session) unbusy(realm string) {
	if s.busy[realm]--; s.busy[realm] <= 0 {
		delete(s.busy, realm)
	}
}

// ask asks for one realm of somebody who holds two more than we do, or more.
func (s *session) ask(now time.Time, t tally, later func(time.Time)) {
	from := func(realm string) (holder string, ok bool) {
		c := s.view.claims[realm]
		if s.wants[realm] == nil || s.leaving || c.claim == nil || c.vanished || c.Instance == s.id || !s.alive(c.Instance) {
			return "", false
		}
		return c.Instance, !s.view.cards[c.Instance].Leaving && t.holds[c.Instance]-t.holds[s.id] >= 2
	}
	if s.asks != "" {
		if _, ok := from(s.asks); ok {
			due := s.askedAt.Add(askFor * s.cfg.TTL)
			if later(due); now.Before(due) {
				return
			}
			s.refused = s.asks
		}
	}
	best, most := "", 0
	for _, realm := range slices.Sorted(maps.Keys(s.wants)) {
		holder, ok := from(realm)
		if !ok || realm == s.refused && most > 0 {
			continue
		}
		n := t.holds[holder]
		if best == "" || best == s.refused || n > most || n == most && rank(realm, s.id) > rank(best, s.id) {
			best, most = realm, n
		}
	}
	if best != s.asks && most < s.most(t) {
		// Others hold more, of what is not wanted here, or not yet: realms are started one
		// after the other. Who is asked in their place would ask them in turn.
		if due := s.wantedAt.Add(s.cfg.TTL / looks); now.Before(due) {
			later(due)
			best = ""
		}
	}
	if best == s.asks && best == "" {
		return
	}
	if best != s.asks {
		s.renewNow()
	}
	s.asks, s.askedAt = best, now
}

// most is how much one of the others holds at most, who could be asked.
func (s *session) most(t tally) (n int) {
	for id, c := range s.view.cards {
		if id != s.id && !c.Leaving && s.alive(id) {
			n = max(n, t.holds[id])
		}
	}
	return n
}

// handOver lets one who asks have what he asks for, if he holds two less than we do, or
// fewer. One at a time.
func (s *session) handOver(now time.Time, t tally) {
	if s.leaving {
		return // all goes anyway
	}
	for _, l := range s.leases {
		if l.to != nil && now.Sub(l.askedAt) < askFor*s.cfg.TTL { // else it may take for ever
			return
		}
	}
	var to *card
	for id, c := range s.view.cards {
		if id == s.id || c.Leaving || !s.alive(id) || s.leases[c.Asks] == nil || len(s.leases)-t.holds[id] < 2 {
			continue
		}
		if to == nil || cmp.Or(t.holds[id]-t.holds[to.ID], cmp.Compare(id, to.ID)) < 0 {
			to = c
		}
	}
	if to != nil {
		l := s.leases[to.Asks]
		l.to, l.askedAt = to, now
		l.ask(ErrAsked)
	}
}

// deadEvery is how often the processes of this machine are looked at.
func (s *session) deadEvery() time.Duration { return min(s.cfg.TTL/looks, deadEvery) }

// lookForDead looks whether a process of this machine that holds what we want is no more.
func (s *session) lookForDead() {
	s.mu.Lock()
	var holders []*deadLook
	if now := time.Now(); s.view != nil && now.Sub(s.lookedAt) >= s.deadEvery() {
		s.lookedAt = now
		seen := map[string]bool{}
		for realm := range s.wants {
			c := s.view.claims[realm]
			if c.claim == nil || c.Instance == s.id || seen[c.Instance] || !s.alive(c.Instance) {
				continue
			}
			seen[c.Instance] = true
			if h := s.view.cards[c.Instance].Holder; h.near() {
				holders = append(holders, &deadLook{Holder: h})
			}
		}
		s.near = len(holders) > 0
	}
	s.mu.Unlock()
	for _, d := range holders {
		if d.isDead() {
			s.mu.Lock()
			s.dead[d.ID] = d
			s.mu.Unlock()
		}
	}
}
