package poller

import (
	"errors"
	"maps"
	"time"
)

// Counters say what a Poller did since it was made.
type Counters struct {
	Polls Polls
	// RateLimited are the 429s, of polls and of all other requests.
	RateLimited uint64
	// Errors are all others, by kind:
	//
	//   - connection: no answer, or one that cannot be read
	//   - server: a status that a later request may heal, as 502
	//   - refused: a 400 in Zulip's own words
	//   - key: the account is not let in
	//   - account: the zuliprc cannot be used
	Errors map[string]uint64
}

// Polls are the polls by how they ended.
type Polls struct {
	Events  uint64 // answered with at least one event, read to the end
	Empty   uint64 // answered without
	Refused uint64 // 400: the queue may be lost
	Limited uint64 // 429
	Failed  uint64 // no answer, one that cannot be read, or another status
}

// Counters returns a copy.
func (p *Poller) Counters() Counters {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.counters
	c.Errors = maps.Clone(c.Errors)
	return c
}

// Answered is when a poll was last answered, and its answer read as far as it was of
// interest; zero: none was yet.
func (p *Poller) Answered() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answered
}

// ended counts an answer.
func (p *Poller) ended(a *answer, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answered = now
	if a.count > 0 {
		p.counters.Polls.Events++
	} else {
		p.counters.Polls.Empty++
	}
}

// count counts a request that failed; nil, and errors that are not Zulip's, are none.
func (p *Poller) count(l *endpoint, err error) {
	kind, polls := "", &p.counters.Polls.Failed
	if t, ok := errors.AsType[*transientError](err); ok {
		switch {
		case t.limited:
			polls = &p.counters.Polls.Limited
		case t.status != 0:
			kind = "server"
		default:
			kind = "connection"
		}
	} else if _, ok := errors.AsType[*RefusedError](err); ok {
		kind, polls = "refused", &p.counters.Polls.Refused
	} else if _, ok := errors.AsType[*AuthError](err); ok {
		kind = "key"
	} else if _, ok := errors.AsType[*ConfigError](err); ok {
		kind, polls = "account", nil // no request left
	} else {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if polls != nil && l == &p.events {
		*polls++
	}
	if kind == "" {
		p.counters.RateLimited++
		return
	}
	if p.counters.Errors == nil {
		p.counters.Errors = map[string]uint64{}
	}
	p.counters.Errors[kind]++
}
