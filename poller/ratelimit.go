package poller

// What the headers of an answer say of the server's rate limits. What follows from it is
// in pace.go.

import (
	"net/http"
	"strconv"
	"time"
)

// rate is X-RateLimit-Limit, -Remaining and -Reset of one answer.
type rate struct {
	said             bool // all of it was there
	limit, remaining int
	reset            time.Duration // until all of it is free again; 0: unknown
}

// readRate reads X-RateLimit-Limit, -Remaining and -Reset (Tornado writes X-Ratelimit-,
// which is the same to HTTP). Reset is a time by the server's clock in whole seconds, so
// it is compared with the server's own Date where there is one.
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
