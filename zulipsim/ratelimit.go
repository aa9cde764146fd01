package zulipsim

import (
	"math"
	"net/http"
	"strconv"
	"time"
)

// bucketKey names a bucket of Tornado's: one for each account and rule.
type bucketKey struct {
	account int64
	rule    int
}

// toldKey names whom a Retry-After was told: each of the two limiters speaks for itself
// only.
type toldKey struct {
	account string
	events  bool
}

// limits is what a request's answer says of rate limits.
type limits struct {
	apply     bool
	tornado   bool
	limit     int // of the longest rule, whichever was hit
	remaining int
	reset     time.Duration // from the answer's time on
	refused   bool
	wait      time.Duration // if refused
}

// limit charges a request of the account and says what came of it. Only the longest rule
// is spoken of in headers, and a request that is refused costs nothing.
func (s *Server) limit(a *Account, events bool) limits {
	if events {
		return s.limitTornado(a)
	}
	return s.limitDjango(a)
}

// limitTornado is the leaky bucket of /events: each request moves the time at which the
// bucket is empty by window/count, and may not move it further away than the window. A
// token therefore comes back every window/count. Rules are charged in order up to the one
// that refuses.
func (s *Server) limitTornado(a *Account) limits {
	rules := s.EventsRules
	if len(rules) == 0 {
		return limits{}
	}
	now := time.Now()
	longest := len(rules) - 1
	l := limits{apply: true, tornado: true, limit: rules[longest].Count}
	for i, r := range rules {
		key := bucketKey{a.ID, i}
		full := s.tornado[key]
		if full.Before(now) {
			full = now
		}
		full = full.Add(r.Window / time.Duration(r.Count))
		if over := full.Sub(now) - r.Window; over > 0 {
			l.refused, l.wait, l.reset = true, over, over
			return l
		}
		s.tornado[key] = full
	}
	l.reset = s.tornado[bucketKey{a.ID, longest}].Sub(now)
	free := rules[longest].Window - l.reset
	l.remaining = int(math.Floor(float64(free) * float64(l.limit) / float64(rules[longest].Window)))
	return l
}

// limitDjango is the sliding window of everything else: the count newest requests are
// remembered, and a request is refused while the oldest of them is younger than the
// window. After a burst the wait is therefore up to the whole window.
func (s *Server) limitDjango(a *Account) limits {
	rules := s.APIRules
	if len(rules) == 0 {
		return limits{}
	}
	now := time.Now()
	longest := rules[len(rules)-1]
	l := limits{apply: true, limit: longest.Count}
	log := s.django[a.ID]
	for _, r := range rules {
		if len(log) < r.Count {
			continue
		}
		if wait := log[len(log)-r.Count].Add(r.Window).Sub(now); wait > 0 {
			l.refused, l.wait, l.reset = true, wait, wait
			return l
		}
	}
	keep := 0
	for _, r := range rules {
		keep = max(keep, r.Count)
	}
	log = append(log, now)
	log = log[max(0, len(log)-keep):]
	s.django[a.ID] = log
	used := 0
	for _, t := range log {
		if now.Sub(t) < longest.Window {
			used++
		}
	}
	l.remaining, l.reset = longest.Count-used, longest.Window
	return l
}

// headers writes the rate headers, in each server's own spelling. Reset is the wait as it
// was when the request came, counted from now: for a poll that waited it lies up to 55 s
// too late.
func (l limits) headers(h http.Header, now time.Time) {
	if !l.apply {
		return
	}
	prefix := "X-RateLimit-"
	if l.tornado {
		prefix = "X-Ratelimit-"
	}
	h[prefix+"Limit"] = []string{strconv.Itoa(l.limit)}
	h[prefix+"Remaining"] = []string{strconv.Itoa(l.remaining)}
	h[prefix+"Reset"] = []string{strconv.FormatInt(now.Add(l.reset).Unix(), 10)}
	if l.refused {
		h["Retry-After"] = []string{seconds(l.wait)}
	}
}

// seconds writes a wait as Zulip does, as a decimal fraction. It is rounded up to the
// next microsecond, so that a client that turns it into nanoseconds and waits exactly so
// long is never early.
func seconds(d time.Duration) string {
	us := d/time.Microsecond + 1
	return strconv.FormatFloat(float64(us)/1e6, 'f', -1, 64)
}
