package poller

// The answer to POST /register. What is asked for is in options.go.

import (
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// Registration is what Zulip answered to register. Polling starts at -1, and never at
// last_event_id, or events that came while register was being answered are acknowledged
// unseen. What last_event_id is good for is in State.
type Registration struct {
	QueueID      string // printable ASCII, at most 128 characters
	Version      string
	FeatureLevel int
	Life         time.Duration // how long Zulip keeps the queue while no poll waits
	LifeSaid     bool          // the server said so (level 481 on); else it is what such a server is known to do
	Patience     time.Duration // how long a poll may be silent
	Channels     *Channels     // nil: not asked for, or not said
	State        *State        // nil: not asked for, or not by the request that worked
}

// registered is the answer's JSON.
type registered struct {
	QueueID      *string  `json:"queue_id"`
	Version      string   `json:"zulip_version"`
	FeatureLevel int      `json:"zulip_feature_level"`
	Idle         *float64 `json:"idle_queue_timeout_secs"`
	Patience     float64  `json:"event_queue_longpoll_timeout_seconds"`
	Ignored      []string `json:"ignored_parameters_unsupported"`
	Subscribed   []named  `json:"subscriptions"`
	Left         []named  `json:"unsubscribed"`
	Others       []named  `json:"never_subscribed"`
	Last         *int64   `json:"last_event_id"`

	// members are all of the answer, where state was asked for.
	members map[string]json.RawMessage
}

// withState is an answer of which the members are kept as they are.
type withState struct{ to *registered }

func (w *withState) UnmarshalJSON(b []byte) error {
	if err := json.Unmarshal(b, w.to); err != nil {
		return err
	}
	return json.Unmarshal(b, &w.to.members)
}

type named struct{ Name string }

// registration judges the answer to a register with the options o, which asked for the
// state of these sections.
func (o Options) registration(r *registered, state []Section) (*Registration, error) {
	if r.QueueID == nil || !validQueueID(*r.QueueID) {
		return nil, &transientError{text: "Zulip answers POST /api/v1/register without a queue id that could be used (1 to " +
			"128 characters of printable ASCII)"}
	}
	out := &Registration{
		QueueID: *r.QueueID, Version: r.Version[:min(len(r.Version), 128)], FeatureLevel: r.FeatureLevel,
		Patience: patience(r.Patience),
	}
	if r.Subscribed != nil {
		out.Channels = &Channels{Subscribed: len(r.Subscribed), seen: map[string]bool{}}
		for _, list := range [][]named{r.Subscribed, r.Left, r.Others} {
			for _, c := range list {
				out.Channels.seen[strings.ToLower(c.Name)] = true
			}
		}
	}
	if len(state) > 0 {
		if r.Last == nil || *r.Last < -1 {
			return nil, &transientError{text: "Zulip answers POST /api/v1/register without a last_event_id that could be " +
				"used: nobody knows where the state is to be gone on from"}
		}
		var err error
		if out.State, err = stateOf(r.members, *r.Last, state); err != nil {
			return nil, &transientError{text: "Zulip's answer to POST /api/v1/register cannot be understood: " + err.Error()}
		}
	}
	ignored := func(name string) bool { return slices.Contains(r.Ignored, name) }
	switch {
	case r.Idle != nil && *r.Idle >= 1 && *r.Idle <= MostLife.Seconds():
		out.Life, out.LifeSaid = time.Duration(*r.Idle*float64(time.Second)), true
	case ignored("queue_lifespan_secs") && ignored("idle_queue_timeout"):
		out.Life = serverLife
	default:
		// One of the names was taken, without a word on what was granted; below level 167
		// nothing says so, but the older name was known by then.
		out.Life = o.life()
	}
	return out, nil
}

func patience(seconds float64) time.Duration {
	if !(seconds >= 1 && seconds <= 3600) {
		return defaultPatience
	}
	return time.Duration(seconds * float64(time.Second))
}

// validQueueID reports whether id can stand in a NATS header as it is, [!-~]{1,128}.
// Zulip's are UUIDs, formerly 123:45.
func validQueueID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for _, c := range []byte(id) {
		if c < '!' || c > '~' {
			return false
		}
	}
	return true
}
