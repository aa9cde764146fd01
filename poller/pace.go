package poller

import (
	"math"
	"net/http"
	"strconv"
	"time"
)

// A poll ends with the first event, so a busy organization makes a poll for nearly every event: 51 messages a second made 47 polls
// a second on a real server, 14 times what it allows. Waiting a little before asking lets events gather, so that one answer carries
// many. pace says how long, such that a lone event waits for nothing, a busy hour never meets a 429 but possibly the first, and the
// delay grows to what the server's rules make necessary (design, section 9.5).
//
// Zulip counts polls in the memory of Tornado (zulip/zulip, zerver/lib/rate_limiter.py, TornadoInMemoryRateLimiterBackend): for each
// rule of c polls in a window w, a bucket is filled by t = w/c with each poll, empties by itself, and overflows at w. We keep the
// same buckets here. What the server is set to cannot be asked: its headers speak of the longest rule alone, so they are a hint, and
// a 429 is the truth.
type pace struct {
	rules []rule
	sent  []time.Time // times of the last polls, a ring
	next  int         // where the next goes in it
	heard bool        // an answer has been here
	left  int         // what the last answer said to remain of its rule, -1 if nothing
	paced time.Time   // a hurried pace is given up until then
}

// rule is a limit of count polls in a window.
type rule struct {
	count  float64
	window time.Duration
	full   time.Time // when the bucket will be empty, if no more polls are made
	learnt float64   // how many polls its window was computed from; 0: it was not
}

const (
	// What Zulip ships (zproject/default_settings.py, RATE_LIMITING_RULES["api_by_user"]).
	shippedCount, shippedWindow = 200, time.Minute
	// mostFill is how full a bucket may be before a poll.
	mostFill = 0.85
	// easyFill is up to where polls are made at once, paceFill from where on they are made a little slower than the bucket empties.
	easyFill, paceFill = 0.25, 0.5
	// slower is how much.
	slower = 1.25
	// learnFrom is how many polls must be in a bucket before its window can be told: the server's times are whole seconds.
	learnFrom = 20
	// pollsKept is how many times of polls are kept, for counting those of a window.
	pollsKept = 4096
	// fewestPolls is the smallest count that is learnt from a 429.
	fewestPolls = 10
)

func (r *rule) token() time.Duration { return time.Duration(float64(r.window) / r.count) }

// fill is how full the bucket is: 0 empty, 1 full.
func (r *rule) fill(now time.Time) float64 {
	return max(0, float64(r.full.Sub(now))/float64(r.window))
}

func (p *pace) start() {
	if p.rules == nil {
		p.rules = []rule{{count: shippedCount, window: shippedWindow}}
		p.left = -1
	}
}

// delay is how long to wait before the next poll, at now, answered being when the last answer came. hurry asks for polls as fast as
// the rules bear: no poll has waited for too long (see [Poller.Expires]); life is then the time that Zulip keeps the queue.
func (p *pace) delay(now, answered time.Time, hurry bool, life time.Duration) time.Duration {
	p.start()
	if hurry && !now.Before(p.paced) {
		over := false
		for i := range p.rules {
			over = over || p.rules[i].fill(now) > mostFill
		}
		if !over {
			return 0
		}
		p.paced = now.Add(min(life/16, 30*time.Second))
	}
	wait := time.Duration(0)
	for i := range p.rules {
		r := &p.rules[i]
		u := r.fill(now)
		pause := slower * float64(r.token()) * min(1, max(0, (u-easyFill)/(paceFill-easyFill)))
		wait = max(wait, time.Duration(pause)-now.Sub(answered), time.Duration((u-mostFill)*float64(r.window)))
	}
	return wait
}

// poll notes a poll sent at now.
func (p *pace) poll(now time.Time) {
	p.start()
	if len(p.sent) < pollsKept {
		p.sent = append(p.sent, now)
	} else {
		p.sent[p.next] = now
		p.next = (p.next + 1) % pollsKept
	}
	for i := range p.rules {
		r := &p.rules[i]
		r.full = later(r.full, now).Add(r.token())
	}
}

// polls is how many polls were sent in the time d up to now.
func (p *pace) polls(now time.Time, d time.Duration) (n int) {
	for _, t := range p.sent {
		if now.Sub(t) < d {
			n++
		}
	}
	return n
}

// answered notes what an answer says. at is the time that its Remaining is of: of a poll that waited it is as of its start.
func (p *pace) answered(at time.Time, h rate) {
	p.start()
	first := !p.heard
	p.heard = true
	p.left = -1
	if !h.said {
		return
	}
	p.left = h.remaining
	used := float64(h.limit - h.remaining)
	window := time.Duration(0) // as the answer makes it out to be, 0 if it cannot be told
	if used >= learnFrom && h.reset > 0 {
		window = time.Duration(float64(h.reset) / used * float64(h.limit))
	}
	r := p.rule(h.limit)
	switch {
	case r == nil && window == 0:
		return
	case r == nil:
		p.rules = append(p.rules, rule{count: float64(h.limit), window: window, learnt: used})
		r = &p.rules[len(p.rules)-1]
	case r.learnt > 0 && used > r.learnt:
		// The more polls, the less the rounding matters.
		r.window, r.learnt = window, used
	case r.learnt == 0 && h.reset > 10*time.Second && !about(window, r.window):
		// The same count in another window than is shipped.
		r.window, r.learnt = window, used
	}
	theirs := at.Add(time.Duration(used * float64(r.token())))
	if first || theirs.After(r.full) {
		r.full = theirs // somebody else uses the account as well, or we did before we were started
	}
}

// limited notes a 429, met at now. Its own Remaining and Reset say nothing of use: 0, and the wait that Retry-After tells as well.
func (p *pace) limited(now time.Time, h rate) {
	p.start()
	left := p.left
	p.left = -1
	if !h.said {
		return // nothing of Zulip's: a proxy's own limit, say
	}
	longest := p.rule(h.limit)
	if left <= 0 {
		if longest != nil {
			longest.full = later(longest.full, now.Add(longest.window))
		}
		return
	}
	// There was something left of the longest rule, so a shorter one was hit. What its window is nothing tells; the shipped one is as
	// good as any, since its count is what we sent in that window, less a little. Met again, it is made smaller again.
	var r *rule
	for i := range p.rules {
		if s := &p.rules[i]; s != longest && (longest == nil || s.window <= longest.window) && (r == nil || s.window < r.window) {
			r = s
		}
	}
	if r == nil {
		p.rules = append(p.rules, rule{count: shippedCount, window: shippedWindow})
		r = &p.rules[len(p.rules)-1]
	}
	r.count = min(r.count, max(fewestPolls, 0.9*float64(p.polls(now, r.window))))
	r.full = now.Add(r.window)
}

// rule returns the rule with that count, nil if there is none.
func (p *pace) rule(count int) *rule {
	for i := range p.rules {
		if p.rules[i].count == float64(count) {
			return &p.rules[i]
		}
	}
	return nil
}

// about reports whether a and b are the same but for rounding to seconds.
func about(a, b time.Duration) bool {
	return (a - b).Abs() <= max(2*time.Second, b/4)
}

// rate is what an answer says of the rate limit.
type rate struct {
	said             bool
	limit, remaining int
	reset            time.Duration // until all of it is free again; 0: unknown
}

// readRate reads X-RateLimit-Limit, -Remaining and -Reset (Tornado writes X-Ratelimit-, which is the same to HTTP). Reset is a time by
// the server's clock in whole seconds, so it is compared with the server's own Date where there is one.
func readRate(h http.Header, now time.Time) rate {
	limit, err1 := strconv.Atoi(h.Get("X-RateLimit-Limit"))
	remaining, err2 := strconv.Atoi(h.Get("X-RateLimit-Remaining"))
	if err1 != nil || err2 != nil || limit <= 0 || remaining < 0 || remaining > limit {
		return rate{}
	}
	r := rate{said: true, limit: limit, remaining: remaining}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	if reset, err := strconv.ParseFloat(h.Get("X-RateLimit-Reset"), 64); err == nil {
		if d := reset - float64(now.UnixNano())/1e9; d > 0 && d < 366*24*3600 {
			r.reset = time.Duration(d * 1e9)
		}
	}
	return r
}

const (
	// mostTold is the longest wait that a 429 may ask for. No rule of Zulip's is longer than a day, and few are longer than an hour.
	mostTold = time.Hour
	// untold is waited after a 429 that does not say how long.
	untold = time.Second
)

// told reads how long a 429 asks us to wait: a decimal fraction of seconds in the header Retry-After, else in the member retry-after
// of the body; a proxy's may be a date.
func told(header string, body *float64, now time.Time) time.Duration {
	seconds, err := strconv.ParseFloat(header, 64)
	if err != nil {
		if date, err := http.ParseTime(header); err == nil {
			seconds = date.Sub(now).Seconds()
		} else if body != nil {
			seconds = *body
		} else {
			return untold
		}
	}
	if math.IsNaN(seconds) || seconds < 0 {
		return untold
	}
	// Rounded up: a nanosecond too early is too early.
	return time.Duration(math.Ceil(min(seconds, mostTold.Seconds()) * 1e9))
}
