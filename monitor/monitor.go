// Package monitor answers by HTTP how the bridges of this process are: to whoever decides
// whether the process is to be started again (/healthz), whether it has come up
// (/readyz), whether all is well (/status), to Prometheus (/metrics), and to people (/).
//
// They are different questions, and one answer for all of them does harm. A process that
// is started again because NATS is away comes back to a NATS that is away; and one that
// is not ready because Zulip is away takes the pod that it is a sidecar of out of
// service. So:
//
//   - /healthz asks nobody else. It is 503 only where a loop hangs, which nothing but a new
//     start ends.
//   - /readyz turns once: to 200, when each realm has led or stood by. What comes then, with
//     NATS and Zulip too, is for /status.
//   - /status is the truth of this moment, in full and as JSON: 200 if each realm does its
//     job, 503 if one does not.
//   - /metrics has the same as numbers and times. Not as ages: a time that stands still can
//     be seen to do so by whoever asks, and an age that nobody updates looks well for ever.
//   - / is a page that shows the same, and the last hour, to somebody who was called.
//
// Each answer is made of the [bridge.Status] of the moment, for which no loop is waited
// for, so a loop that hangs cannot make these hang. Only the page needs more than a
// moment: while it is served the counters are looked at every few seconds, and what they
// grew by is kept for an hour, in some kilobytes for each realm. There is no content of
// any event in any of it, and no secret: texts of errors are those of the log.
//
// There is no authentication either, hence the warning of [Serve] for an address that
// others may reach.
package monitor

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"zulip-nats/bridge"
	"zulip-nats/health"
)

// WedgedAfter is how much later than it announced a loop may give a sign of life (see
// [health.Pulse]). The longest thing that it announces in good days is a poll, 90 s; some
// short waits are not announced, a minute at most for a write into a connection that is
// full. So a loop that hangs is told within three minutes.
const WedgedAfter = 75 * time.Second

// Monitor is the handler of all the endpoints.
type Monitor struct {
	version string
	realms  func() []bridge.Status
	history history
	paths   http.Handler
}

// New makes a Monitor. realms gives the status of each realm, in an order that stays, and
// is called at each request and every few seconds, from any goroutine; version is that of
// the program. The history of the page is kept while [Serve] serves.
func New(version string, realms func() []bridge.Status) *Monitor {
	m := &Monitor{version: version, realms: realms}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		words(w, realms(), func(s *bridge.Status) (string, bool) {
			if !Alive(s) {
				return Sentence(s), false
			}
			return "its loop turns", true
		})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		words(w, realms(), func(s *bridge.Status) (string, bool) {
			if !s.Ready {
				return "it has neither led nor stood by yet; " + Sentence(s), false
			}
			if s.State == bridge.NeedsOperator {
				return "it holds nothing back; " + Sentence(s), true
			}
			return "it has come up", true
		})
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		serveStatus(w, version, realms())
	})
	mux.Handle("GET /metrics", metrics(version, realms))
	m.page(mux)
	m.paths = mux
	return m
}

// ServeHTTP answers a request.
func (m *Monitor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	m.paths.ServeHTTP(w, r)
}

// stateOf is the state in one word, as [RealmReport] has it.
func stateOf(s *bridge.Status) string {
	if wedged(s) {
		return stateWedged
	}
	return string(s.State)
}

func wedged(s *bridge.Status) bool { return s.Late > WedgedAfter }

// Alive is the rule of /healthz, and of whoever else may end this process: the loop of the
// realm turns, whatever it waits for. One that an operator has to mend is no reason to
// start the others again.
func Alive(s *bridge.Status) bool { return !wedged(s) && s.State != bridge.Stopped }

// words answers with one line for each realm, and with 503 if one of them is not well.
func words(w http.ResponseWriter, realms []bridge.Status, judge func(*bridge.Status) (string, bool)) {
	var text strings.Builder
	code := http.StatusOK
	for i := range realms {
		what, well := judge(&realms[i])
		if !well {
			code = http.StatusServiceUnavailable
		}
		fmt.Fprintf(&text, "%s: %s\n", realms[i].Realm, what)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text.String())) // whoever asked may be gone
}

// State words that a [bridge.State] does not have.
const stateWedged = "wedged"

// doesItsJob says whether a realm is as it should be: it follows, somebody else does, or
// it is making good a loss that it knows of, while the new queue keeps what comes.
func doesItsJob(s *bridge.Status) bool {
	switch s.State {
	case bridge.Following, bridge.Standby, bridge.Refilling:
		return !wedged(s)
	}
	return false
}

func hangs(s *bridge.Status) string {
	return fmt.Sprintf("its loop hangs: a sign of life is due for %v; start the process again, which loses nothing",
		s.Late.Round(time.Second))
}

// Sentence says the state in words, beginning with a small letter and without a full
// stop.
func Sentence(s *bridge.Status) string {
	if wedged(s) {
		return hangs(s)
	}
	switch s.State {
	case bridge.Starting:
		return "it is not known yet who leads, or where to go on"
	case bridge.Standby:
		if s.Leader == "" {
			return "another instance leads, this one stands by"
		}
		return "this instance stands by, " + s.Leader + " leads"
	case bridge.Registering:
		return "a queue is being registered at Zulip"
	case bridge.Refilling:
		return "messages are being read back from Zulip's history"
	case bridge.Following:
		return "events are polled and stored"
	case bridge.WaitingNATS:
		return "NATS does not serve what is needed; Zulip's queue keeps the events meanwhile, if there is one"
	case bridge.WaitingZulip:
		return "Zulip does not serve what is needed"
	case bridge.Stopped:
		return "its loop has ended"
	case bridge.NeedsOperator:
		return "it is stopped: an operator has to mend something first"
	}
	return "nothing is known of this state"
}

// Summary says in one sentence how many realms are in which state, and names some of those
// that do not do their job: "1000 realms: 998 following, 2 waiting-zulip; not doing their
// job: acme, lab".
func Summary(realms []bridge.Status, named int) string {
	counts := map[string]int{}
	var not []string
	for i := range realms {
		counts[stateOf(&realms[i])]++
		if !doesItsJob(&realms[i]) {
			not = append(not, realms[i].Realm)
		}
	}
	var parts []string
	for _, state := range states {
		if n := counts[state]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, state))
		}
	}
	text := fmt.Sprintf("%d realms: %s", len(realms), strings.Join(parts, ", "))
	if len(not) == 0 {
		return text
	}
	more := ""
	if len(not) > named {
		more = fmt.Sprintf(" and %d more", len(not)-named)
	}
	return text + "; not doing their job: " + strings.Join(not[:min(len(not), named)], ", ") + more
}

// Report is what /status answers.
type Report struct {
	OK      bool          `json:"ok"` // each realm does its job
	Version string        `json:"version"`
	Time    time.Time     `json:"time"`
	Realms  []RealmReport `json:"realms"`
}

// RealmReport is one realm in a [Report]. What does not hold now, or is not known, is
// left out.
type RealmReport struct {
	Realm string `json:"realm"`
	OK    bool   `json:"ok"`
	// State is a [bridge.State], or wedged; Says the same as a sentence.
	State string    `json:"state"`
	Says  string    `json:"says"`
	Since time.Time `json:"since"`

	Leads  bool   `json:"leads"`
	Leader string `json:"leader,omitempty"`

	// Reasons are what is wrong now, by side. There may be some where the realm does its
	// job all the same: a lease that cannot be renewed, an object store that takes
	// nothing.
	Reasons []Reason `json:"reasons"`

	Queue        string     `json:"queue,omitempty"`
	QueueExpires *time.Time `json:"queue_expires,omitempty"` // when Zulip may drop it
	LastPoll     *time.Time `json:"last_poll,omitempty"`     // when one was last answered
	LastEventID  *int64     `json:"last_event_id,omitempty"` // of the last event stored
	LastStored   *time.Time `json:"last_stored,omitempty"`
	LastSequence uint64     `json:"last_sequence,omitempty"` // in the stream

	Gap *GapReport `json:"gap,omitempty"` // the one that is open

	Counters CountersReport `json:"counters"`
}

// Reason is one thing that is wrong.
type Reason struct {
	Side  string    `json:"side"`
	Since time.Time `json:"since"`
	Tries int       `json:"tries"`
	Says  string    `json:"says"`
}

// GapReport is a gap that is open.
type GapReport struct {
	Since *time.Time `json:"since,omitempty"`
	Cause string     `json:"cause"`
}

// CountersReport are [bridge.Counters], since the process began.
type CountersReport struct {
	Events      map[string]uint64            `json:"events_stored"`
	Bytes       uint64                       `json:"bytes_stored"`
	Rejected    uint64                       `json:"events_rejected"`
	Skipped     uint64                       `json:"events_skipped"`
	Excluded    uint64                       `json:"events_excluded,omitempty"`
	Oversize    uint64                       `json:"events_oversize"`
	Refilled    uint64                       `json:"messages_refilled"`
	Erased      uint64                       `json:"messages_erased"`
	Queues      uint64                       `json:"queues_registered"`
	Gaps        map[string]uint64            `json:"gaps"`
	Polls       map[string]uint64            `json:"polls"`
	RateLimited uint64                       `json:"rate_limited"`
	Errors      map[string]map[string]uint64 `json:"errors"` // by side and kind
}

func serveStatus(w http.ResponseWriter, version string, realms []bridge.Status) {
	r := NewReport(version, realms, time.Now())
	w.Header().Set("Content-Type", "application/json")
	if !r.OK {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	_ = e.Encode(r) // whoever asked may be gone
}

// NewReport says how the realms are; version is that of the program.
func NewReport(version string, realms []bridge.Status, now time.Time) Report {
	r := Report{OK: true, Version: version, Time: now.UTC(), Realms: []RealmReport{}}
	for i := range realms {
		one := report(&realms[i], now)
		r.OK = r.OK && one.OK
		r.Realms = append(r.Realms, one)
	}
	return r
}

func report(s *bridge.Status, now time.Time) RealmReport {
	r := RealmReport{Realm: s.Realm, OK: doesItsJob(s), State: stateOf(s), Says: Sentence(s), Since: s.Since.UTC(),
		Leads: s.Leads, Leader: s.Leader, Reasons: []Reason{},
		Queue: s.Queue, QueueExpires: known(s.Expires), LastPoll: known(s.Answered), LastStored: known(s.Stored),
		LastSequence: s.StoredSeq, Counters: counters(&s.Counters)}
	if wedged(s) {
		r.Since = now.Add(-s.Late).UTC()
	}
	if s.LastEventID >= 0 {
		r.LastEventID = &s.LastEventID
	}
	if s.Gap != nil {
		r.Gap = &GapReport{Since: known(s.Gap.Since), Cause: s.Gap.Cause}
	}
	for _, side := range slices.Sorted(maps.Keys(s.Wrong)) {
		wrong := s.Wrong[side]
		r.Reasons = append(r.Reasons, reason(side, &wrong))
	}
	return r
}

func reason(side string, wrong *health.State) Reason {
	return Reason{Side: side, Since: wrong.Since.UTC(), Tries: wrong.Tries, Says: wrong.Text}
}

// known is a time if there is one.
func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func counters(c *bridge.Counters) CountersReport {
	r := CountersReport{Events: c.Events, Bytes: c.Bytes, Rejected: c.Rejected, Skipped: c.Skipped,
		Excluded: c.Excluded, Oversize: c.Oversize, Refilled: c.Refilled, Erased: c.Erased,
		Queues: c.Queues, Gaps: gaps(c), Polls: polls(c), RateLimited: c.RateLimited,
		Errors: map[string]map[string]uint64{}}
	for e, n := range c.Errors {
		if r.Errors[e.Side] == nil {
			r.Errors[e.Side] = map[string]uint64{}
		}
		r.Errors[e.Side][e.Kind] = n
	}
	return r
}

// gaps has a number for each cause, with 0 too: an alert sees the first gap only if there
// was a number before it.
func gaps(c *bridge.Counters) map[string]uint64 {
	all := map[string]uint64{}
	for _, cause := range bridge.GapCauses {
		all[cause] = c.Gaps[cause]
	}
	return all
}

func polls(c *bridge.Counters) map[string]uint64 {
	return map[string]uint64{"events": c.Polls.Events, "empty": c.Polls.Empty, "refused": c.Polls.Refused,
		"limited": c.Polls.Limited, "failed": c.Polls.Failed}
}
