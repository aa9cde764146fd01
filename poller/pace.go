package poller

// When to poll: rate limiting on our side, learnt from what the server says of its own.
// How long to wait after a 429 is in retry.go.

import (
	"math"
	"slices"
	"time"
)

// A poll ends with the first event, so a busy organization makes a poll for nearly every
// event: 51 messages a second made 47 polls a second on a real server, 14 times what it
// allows. Waiting a little before asking lets events gather, so that one answer carries
// many. pace says how long, such that a lone event waits for nothing, a busy hour meets a
// 429 hardly ever, and the delay grows to what the server's rules make necessary (design,
// section 9.5).
//
// Zulip counts polls in the memory of Tornado (zulip/zulip, zerver/lib/rate_limiter.py,
// TornadoInMemoryRateLimiterBackend): for each rule of c polls in a window w, a bucket is
// filled by t = w/c with each poll, empties by itself, and overflows at w. We keep the
// same buckets here. What the server is set to cannot be asked. These are the rules that
// it may have:
//
//   - the one that Zulip ships, until something says otherwise;
//   - the longest that it has, which is what the headers of every answer speak of;
//   - shorter ones, of which only a 429 tells.
//
// The wait that a 429 asks for ends when there is room for exactly one poll. So where one
// poll was let through since and the next is refused again, the end of the second wait
// lies t behind the end of the first, whatever c is; and c follows from t and the polls
// that we sent before. A 429 may also be somebody else's doing, who has the same account:
// the headers show that, since they count more polls then than ours. Then nothing is
// learnt, unless it happens again and again. And nothing is learnt for good.
type pace struct {
	shipped, longest rule
	learnt           []learnt

	sent  []time.Time // times of the last polls, a ring; zero: it was refused
	next  int         // where the next goes in it
	tries int         // polls in a hurry for which there need be no room

	limit, used int       // as of the last answer that spoke of the limit
	own         time.Time // when the bucket of the longest rule will be empty, as far as our own polls fill it
	others      time.Time // when others were last seen to use the account

	refusal refusal
	strange int       // refusals of late by rules that we did not know ...
	last    time.Time // ... and when the last of them was
}

// rule is a limit of count polls in a window; a count of 0 is none.
type rule struct {
	count  float64
	window time.Duration
	full   time.Time // when the bucket will be empty, if no more polls are made
	from   float64   // how many polls its window was computed from; 0: it was not
}

// learnt is a rule that refusals taught us.
type learnt struct {
	rule
	hold  time.Duration // how long it is obeyed
	until time.Time     // until then; from then on it is only remembered, for another hold
}

// refusal is the last 429.
type refusal struct {
	room   time.Time // when there was room for one poll, as told; zero: there was none, or it is explained
	polls  int       // let through since
	judged bool      // an answer has been here since
	taught rule      // what it and the one before it tell of; a count of 0: nothing
}

const (
	// What Zulip ships (zproject/default_settings.py,
	// RATE_LIMITING_RULES["api_by_user"]).
	shippedCount, shippedWindow = 200, time.Minute
	// mostFill is how full a bucket may be before a poll.
	mostFill = 0.85
	// easyFill is up to where polls are made at once, paceFill from where on they are
	// made a little slower than the bucket empties.
	easyFill, paceFill = 0.25, 0.5
	// forOne is how many polls there must be room for before one: the way may be longer
	// this time.
	forOne = 1.2
	// slower is how much, fuller how much above mostFill.
	slower, fuller = 1.25, 1.5
	// idleFill is how much of the queue's life may pass without a poll that waits, where
	// there is little room for polls, and lateFill, where there is hardly any.
	idleFill, lateFill = 0.6, 0.8
	// learnFrom is how many polls must be in a bucket before its window can be told, if
	// that is less than half of it: the server's times are whole seconds.
	learnFrom = 20
	// longAgo is how long a poll may have waited for its answer to tell of the window:
	// Reset may be of its start or of its end.
	longAgo = 2 * time.Second
	// pollsKept is how many times of polls are kept, for telling how full an unknown
	// bucket is.
	pollsKept = 256
	// mostBetween is how many polls may lie between two 429s that are of one rule: with
	// more of them, the bucket may have been empty in between.
	mostBetween = 4
	// sameToken is by how much the times after which two rules give back a token may
	// differ, if they are one and the same.
	sameToken = 0.15
	// mostLearnt is how many learnt rules are known at once.
	mostLearnt = 4
	// A learnt rule is obeyed for firstHold, and twice as long each time that it is met
	// again. If others use the account, it is sharedHold.
	firstHold, mostHold, sharedHold = 2 * time.Hour, 24 * time.Hour, 10 * time.Minute
	// ownFill is how full our own polls must have made a bucket that is full, for it to
	// be our own doing.
	ownFill = 0.7
	// othersFor is how long others are remembered.
	othersFor = time.Minute
	// After mostStrange refusals that we did not expect, none of them strangeFor behind
	// the one before, we no longer rely on understanding the rules.
	mostStrange, strangeFor = 6, 10 * time.Minute
)

func (r *rule) token() time.Duration { return time.Duration(float64(r.window) / r.count) }

// fill is how full the bucket is: 0 empty, 1 full.
func (r *rule) fill(now time.Time) float64 {
	return max(0, float64(r.full.Sub(now))/float64(r.window))
}

// most is how full it may be before a poll: there must be room for that poll too.
func (r *rule) most() float64 { return max(0, min(mostFill, 1-forOne/r.count)) }

// rules are those in force at now.
func (p *pace) rules(now time.Time) (list []*rule) {
	if p.shipped.count == 0 {
		p.shipped = rule{count: shippedCount, window: shippedWindow}
	}
	p.learnt = slices.DeleteFunc(p.learnt, func(l learnt) bool { return now.Sub(l.until) >= l.hold })
	list = append(list, &p.shipped)
	if p.longest.count > 0 {
		list = append(list, &p.longest)
	}
	for i := range p.learnt {
		if l := &p.learnt[i]; now.Before(l.until) {
			list = append(list, &l.rule)
		}
	}
	return list
}

// delay is how long to wait before the next poll, at now, answered being when the last
// answer came. life is the queue's idle timeout, renewed when its clock was last set,
// that is when a poll was last sent that waited. Once that is a quarter of the life ago,
// polls follow the answer before at once, as far as the rules bear it (see
// [Poller.Expires]).
func (p *pace) delay(now, answered, renewed time.Time, life time.Duration) time.Duration {
	hurry := life > 0 && now.Sub(renewed) > life/4
	if life == 0 {
		life = serverLife
	}
	wait, over, pairs, full := time.Duration(0), time.Duration(0), false, false
	for _, r := range p.rules(now) {
		u, token := r.fill(now), float64(r.token())
		most := r.most()
		if u > most {
			// There must be room for one; the fill then falls back to most in time.
			more := time.Duration(max((u-1)*float64(r.window)+forOne*token,
				min((u-most)*float64(r.window), fuller*token)))
			if hurry {
				// It is waited for until there is room for two: the first gets what has
				// come meanwhile, the second may find nothing, and wait.
				more += r.token()
			}
			over = max(over, more)
			full = full || u > 1-forOne/r.count
		}
		pause := slower * token
		if float64(life)/4 < 2*pause {
			// Every other poll is one in a hurry: so pairs are what there must be room
			// for, and where there is hardly room for one, a third besides, should the
			// second not wait.
			pairs = true
			if u > most {
				pause = min(3*pause, lateFill*float64(life))
			} else {
				pause = min(2*pause, idleFill*float64(life))
			}
		}
		pause *= min(1, max(0, (u-easyFill)/(paceFill-easyFill)))
		wait = max(wait, time.Duration(pause)-now.Sub(answered))
	}
	// A queue that dies is worse than a poll refused: so there are some polls in each
	// half of its life, and before three quarters of it are over, room or not.
	latest := life / 2
	if left := renewed.Add(life / 4 * 3).Sub(now); left > 0 {
		latest = min(latest, left)
	}
	switch {
	case hurry && over > 0 && pairs && !full:
		p.tries = 0
		return 0 // where it was not the second that waited, it may be the third
	case hurry && over > 0 && p.tries > 0:
		p.tries--
		return 0
	case over > latest:
		over, p.tries = latest, 3
	case hurry && over > 0 || pairs:
		p.tries = 1 // the second of the two
	default:
		p.tries = 0
	}
	if hurry {
		return over
	}
	if !renewed.IsZero() {
		wait = min(wait, renewed.Add(time.Duration(lateFill*float64(life))).Sub(now))
	}
	return max(wait, over)
}

// retry is when to ask again after a 429 that says: not before told. That is when there
// is room for one poll. In a hurry it is better to wait for room for two, if that is
// known and the queue lives long enough.
func (p *pace) retry(told, renewed time.Time, life time.Duration) time.Time {
	taught := p.refusal.taught
	if taught.count == 0 || told.Sub(renewed) < life/4 {
		return told
	}
	two := told.Add(taught.token())
	if two.Sub(renewed) > life/8*7 {
		return told
	}
	p.tries = 1
	return two
}

// poll records a poll sent at now.
func (p *pace) poll(now time.Time) {
	if len(p.sent) < pollsKept {
		p.sent = append(p.sent, now)
	} else {
		p.sent[p.next] = now
		p.next = (p.next + 1) % pollsKept
	}
	for _, r := range p.rules(now) {
		r.full = later(r.full, now).Add(r.token())
	}
	if r := &p.longest; r.count > 0 {
		token := r.token()
		if r.from > 0 {
			token += time.Duration(float64(time.Second) / r.from) // what it may have been rounded by
		}
		p.own = later(p.own, now).Add(token)
	}
	p.refusal.polls++
}

// answered records the rate-limit headers of an answer. at is when the server counted:
// for a long poll that waited, its start.
func (p *pace) answered(at time.Time, h rate) {
	if !h.said {
		p.refusal = refusal{}
		return
	}
	used := float64(h.limit - h.remaining)
	window := time.Duration(0) // as the answer makes it out to be, 0 if it cannot be told
	if used >= min(learnFrom, float64(h.limit)/2) && h.reset > 0 {
		window = time.Duration(float64(h.reset) / used * float64(h.limit))
	}
	switch {
	case p.limit == h.limit && h.limit-h.remaining > p.used+2:
		p.others = at // one poll of ours is in it, and one may be the rounding
	case p.limit != h.limit && p.limit > 0:
		p.learnt, p.refusal = nil, refusal{} // another server, or other settings
	}
	p.limit, p.used = h.limit, h.limit-h.remaining
	r := &p.longest
	if r.count != float64(h.limit) {
		*r = rule{}
		switch {
		case window > 0:
			*r = rule{count: float64(h.limit), window: window, from: used}
		case h.limit == shippedCount:
			*r = rule{count: shippedCount, window: shippedWindow}
		}
	}
	switch {
	case window == 0:
	case r.from > 0 && used > r.from:
		// The more polls, the less the rounding matters.
		r.window, r.from = window, used
	case r.from == 0 && h.reset > 10*time.Second && !about(window, r.window):
		// The same count in another window than is shipped.
		r.window, r.from = window, used
	}
	if r.count > 0 {
		// Others may use the account as well, or we did before we were started.
		r.full = later(r.full, at.Add(time.Duration(used*float64(r.token()))))
	}
	if p.refusal.room.IsZero() || p.refusal.judged {
		return
	}
	p.refusal.judged = true
	// The first answer behind a 429: if the longest rule was hit, as good as nothing can
	// be left of it.
	left := 1 + float64(h.limit)/10
	if r.count > 0 {
		left += max(0, float64(at.Sub(p.refusal.room))/float64(r.token()))
	}
	foreign := p.shared(at)
	if float64(h.remaining) <= left {
		// By others, or by us before we were started, unless our own polls are enough for
		// it.
		foreign = r.count > 0 && float64(p.own.Sub(at)) < ownFill*float64(r.window)
	}
	p.judge(at, foreign)
}

// shared reports whether others use the account, too.
func (p *pace) shared(now time.Time) bool {
	return !p.others.IsZero() && now.Sub(p.others) < othersFor
}

// judge makes of a 429, at the first answer behind it, what can be made of it: there is a
// rule that we know nothing of, or not enough.
func (p *pace) judge(now time.Time, foreign bool) {
	if now.Sub(p.last) > strangeFor {
		p.strange = 0
	}
	p.strange++
	p.last = now
	taught := p.refusal.taught
	taught.full = taught.full.Add(time.Duration(float64(p.refusal.polls) * float64(taught.window) / max(1,
		taught.count)))
	switch {
	case p.strange >= mostStrange:
		// Whatever the rules are, we did not understand them. What was let through in a
		// minute, less a little, can be kept.
		polls := 0
		for _, t := range p.sent {
			if now.Sub(t) < shippedWindow {
				polls++
			}
		}
		taught = rule{count: max(1, 0.9*float64(polls)), window: shippedWindow, full: now.Add(shippedWindow)}
		p.strange = 0
	case foreign:
		p.refusal = refusal{}
		return
	case taught.count == 0:
		return // the next refusal tells, if it comes soon
	}
	p.learn(now, taught, foreign)
	p.refusal = refusal{}
}

// learn takes up a rule, or one known already anew.
func (p *pace) learn(now time.Time, r rule, foreign bool) {
	l := learnt{rule: r, hold: firstHold}
	for i, known := range p.learnt {
		if d := (known.token() - r.token()).Abs(); float64(d) <= sameToken*float64(r.token()) {
			l.hold = min(2*known.hold, mostHold)
			if now.Before(known.until) { // it was hit though it was obeyed: more is not free
				l.count = min(known.count, r.count)
				l.window = time.Duration(l.count * float64(max(known.token(), r.token())))
			}
			p.learnt = slices.Delete(p.learnt, i, i+1)
			break
		}
	}
	if foreign {
		l.hold = sharedHold
	}
	if full := now.Add(l.window); l.full.After(full) {
		l.full = full
	}
	l.until = now.Add(l.hold)
	p.learnt = append(p.learnt, l)
	if len(p.learnt) > mostLearnt {
		p.learnt = slices.Delete(p.learnt, 0, 1)
	}
}

// limited records a 429, met at now, that asks for a wait. Its own Remaining and Reset
// say nothing of use: 0, and the wait once more. Which rule was hit the next answer
// tells.
func (p *pace) limited(now time.Time, wait time.Duration, h rate) {
	n := len(p.sent)
	if !h.said || n == 0 {
		return // nothing of Zulip's: a proxy's own limit, say
	}
	newest := &p.sent[(p.next+n-1)%n]
	sent := *newest
	*newest = time.Time{} // it was not counted
	f := &p.refusal
	f.polls--
	room := now.Add(wait)
	if !f.room.IsZero() && f.judged && f.polls >= 1 && f.polls <= mostBetween {
		if token := room.Sub(f.room) / time.Duration(f.polls); token > 0 {
			count := max(1, math.Floor(p.level(sent, token)+1-float64(wait)/float64(token)+0.1))
			window := time.Duration(count * float64(token))
			f.taught = rule{count: count, window: window, full: room.Add(window - token)}
		}
	}
	f.room, f.polls, f.judged = room, 0, false
}

// level is how many polls are in a bucket that gives a token back each time that token
// has passed, at now, going by those kept.
func (p *pace) level(now time.Time, token time.Duration) (level float64) {
	var last time.Time
	pass := func(t time.Time) {
		level = max(0, level-float64(t.Sub(last))/float64(token))
		last = t
	}
	for i := range p.sent {
		if t := p.sent[(p.next+i)%len(p.sent)]; !t.IsZero() {
			pass(t)
			level++
		}
	}
	pass(now)
	return level
}

// about reports whether a and b are the same but for rounding to seconds.
func about(a, b time.Duration) bool {
	return (a - b).Abs() <= max(2*time.Second, b/4)
}
