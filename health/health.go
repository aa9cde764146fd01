// Package health has one type for whatever may be wrong for a while and is then well
// again: NATS away, Zulip that answers 502, a lease that cannot be renewed.
//
// Two people want to know of it. Whoever reads the log wants one line when it begins, one
// when it becomes something else and one when it ends, and not one for each of ten
// thousand tries. Whoever asks how things are (a page, a metric, an alert) wants to know
// at any time whether it is so now, since when and why. [Condition] serves both from one
// memory, so that they cannot disagree:
//
//	var away health.Condition
//
//	if err := try(); err != nil {
//		if _, news := away.Set(codeOf(err), err.Error()); news {
//			log.Warn().Err(err).Msg("NATS is away; retrying")
//		}
//	} else if was, set := away.Clear(); set {
//		log.Info().Stringer("after", time.Since(was.Since)).Msg("NATS is back")
//	}
//
// A Condition writes no line itself: what is said, how loud and with which figures is for
// its owner, who knows what it means.
//
// [Pulse] is the other half: whether the loop that would set or clear a Condition still
// turns at all.
//
// The reason tells two troubles apart, and the text is for people. They differ where a
// text has figures that change each time ("after 3.1 s"): such a text as the reason would
// be news for ever.
package health

import (
	"cmp"
	"sync"
	"time"
)

// DefaultMost is how many reasons are news, if nothing else is said.
const DefaultMost = 10

// Condition is something that is wrong or is not. The zero value is not set, and ready:
// each reason is news once until Clear, and [DefaultMost] of them. One goroutine sets and
// clears it, any may ask. The fields are not changed after the first use.
type Condition struct {
	// Most is how many reasons are news until Clear; 0 is DefaultMost. Where texts never
	// repeat, each being news would be a line for each try.
	Most int
	// Changes makes a reason news whenever it is not the one before, whether it was news
	// earlier or not. Most does not count then.
	Changes bool
	// Every makes what is still so news again that long after the last news. 0: never.
	Every time.Duration

	mu     sync.Mutex
	state  State
	known  map[string]bool // the reasons that were news
	told   time.Time       // when something last was
	silent int             // how often it was set since without being news
}

// State is what a Condition remembers while it is set.
type State struct {
	Since  time.Time // when it was set first
	Tries  int       // how often it was set
	Reason string    // of the last time; may be empty
	Text   string    // of the last time, for people; may be empty
}

// Set says that it is so, and why. news: this is to be told, and silent is how often it
// was set since the last news without being news. Otherwise silent counts this one too.
func (c *Condition) Set(reason, text string) (silent int, news bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	news = c.news(reason, now)
	if c.state.Tries == 0 {
		c.state.Since = now
	}
	c.state.Tries++
	c.state.Reason, c.state.Text = reason, text
	if !news {
		c.silent++
		return c.silent, false
	}
	if !c.Changes {
		if c.known == nil {
			c.known = make(map[string]bool)
		}
		c.known[reason] = true
	}
	silent, c.silent, c.told = c.silent, 0, now
	return silent, true
}

func (c *Condition) news(reason string, now time.Time) bool {
	switch {
	case c.state.Tries == 0, c.Every > 0 && now.Sub(c.told) >= c.Every:
		return true
	case c.Changes:
		return reason != c.state.Reason
	}
	return !c.known[reason] && len(c.known) < cmp.Or(c.Most, DefaultMost)
}

// Clear says that it is so no more, and forgets what was news. set says whether it was,
// and was how: for how long is time.Since(was.Since).
func (c *Condition) Clear() (was State, set bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was = c.state
	if was.Tries == 0 {
		return was, false
	}
	c.state, c.silent = State{}, 0
	clear(c.known)
	return was, true
}

// State says whether it is so now, and how. Any goroutine may ask.
func (c *Condition) State() (s State, set bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state, c.state.Tries > 0
}
