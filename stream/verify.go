package stream

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// verify says which settings of a stream break the promise: whoever is acknowledged is
// stored, in order, and can read it back. All that are wrong are named at once. The
// sources are nats-server's stream.go and measurements (design, sections 2 and 3).
func verify(c *jetstream.StreamConfig, filter string) error {
	var wrong, reasons []string
	add := func(setting, reason string) {
		wrong = append(wrong, setting)
		reasons = append(reasons, reason)
	}
	edit := "; change it with: nats stream edit " + c.Name
	other := "; this cannot be changed, use another stream"

	if c.NoAck {
		add("no_ack", "no_ack is on, so no write is ever acknowledged"+edit+" --ack")
	}
	if c.Sealed {
		add("sealed", "it is sealed and takes no messages"+other)
	}
	if c.Mirror != nil {
		add("mirror", "it is a mirror of another stream and takes no messages of ours"+other)
	}
	if len(c.Sources) > 0 {
		add("sources", "it has sources, so positions of others flow in"+edit)
	}
	if c.SubjectTransform != nil {
		add("subject_transform", "it has a subject_transform, so expectations on our own subjects see nothing"+edit)
	}
	if c.PersistMode == jetstream.AsyncPersistMode {
		add("persist_mode", "its persist_mode is async, so acknowledged messages are lost when the server dies"+other)
	}
	if c.Retention != jetstream.LimitsPolicy {
		add("retention", fmt.Sprintf("its retention is %s, so consumers delete the message that says where we are; "+
			"use a stream with retention limits", strings.ToLower(c.Retention.String())))
	}
	if c.AllowMsgCounter {
		add("allow_msg_counter", "it is a counter (allow_msg_counter) and takes no other messages"+other)
	}
	if c.Mirror == nil && !covered(c.Subjects, filter) {
		add("subjects", fmt.Sprintf("its subjects (%s) do not cover %s", strings.Join(c.Subjects, ", "),
			filter)+edit+" --subjects")
	}
	if len(wrong) == 0 {
		return nil
	}
	return &ConfigError{Stream: c.Name, Setting: strings.Join(wrong, ", "), Reason: strings.Join(reasons, "; ")}
}

// warnings says which settings are legal and risky; usual, what is risky and most streams
// have.
func warnings(c *jetstream.StreamConfig, queueLife time.Duration) (out, usual []string) {
	name := "stream " + c.Name + ": "
	warn := func(format string, args ...any) { out = append(out, name+fmt.Sprintf(format, args...)) }
	memory := c.Storage == jetstream.MemoryStorage
	switch {
	case memory && c.Replicas <= 1:
		warn("it lives in the memory of one server: a restart of it loses everything, the position included")
	case memory:
		warn("it lives in memory: when all its servers stop, everything is lost, the position included")
	case c.Replicas <= 1:
		usual = append(usual, name+"it has one replica: nats-server writes it to the disk for good only every "+
			"sync_interval (2 minutes by default), so a power failure can lose what was acknowledged in that time; "+
			"use 3 replicas, or sync_interval: always, which cannot be seen from here")
	}
	if text := ageWarning(c.Name, c.MaxAge, queueLife); text != "" {
		out = append(out, text)
	}
	if c.MaxMsgsPerSubject > 0 {
		warn("max_msgs_per_subject is %d: older events vanish, by type all but so many of each type",
			c.MaxMsgsPerSubject)
	}
	if c.AllowRollup {
		warn("allow_rollup_hdrs is on: whoever may publish can wipe it with one message")
	}
	if c.Discard == jetstream.DiscardNew {
		warn("its discard policy is new: when it is full, writes stop until there is room")
	}
	return out, usual
}

// ageWarning is the warning about a stream that forgets too soon; empty for one that does
// not.
func ageWarning(name string, maxAge, queueLife time.Duration) string {
	switch {
	case maxAge > 0 && maxAge < shortAge:
		return fmt.Sprintf("stream %s: its max_age is %v, less than an hour: after a longer stop the position is gone",
			name, maxAge)
	case maxAge > 0 && maxAge < queueLife:
		return fmt.Sprintf("stream %s: its max_age of %v is shorter than the %v that the Zulip queue may live: after "+
			"a longer stop the stream has forgotten a queue that Zulip still keeps", name, maxAge, queueLife)
	}
	return ""
}

// AgeWarning is the one of Warnings that says that a stream with that max_age forgets too
// soon; empty if it does not.
func (s *Stream) AgeWarning(maxAge time.Duration) string {
	return ageWarning(s.name, maxAge, s.cfg.QueueLife)
}

// covers says whether every subject that b matches is matched by a.
func covers(a, b string) bool {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i, t := range as {
		if t == ">" {
			return len(bs) > i
		}
		if i >= len(bs) || bs[i] == ">" || (bs[i] == "*" && t != "*") || (t != "*" && t != bs[i]) {
			return false
		}
	}
	return len(as) == len(bs)
}

// covered says whether the subjects match all that filter matches: one of them alone, or,
// for a filter that ends in >, one for the subjects with one more token and one for the
// longer ones.
func covered(subjects []string, filter string) bool {
	by := func(filter string) bool {
		return slices.ContainsFunc(subjects, func(subject string) bool { return covers(subject, filter) })
	}
	stem, open := strings.CutSuffix(filter, ">")
	return by(filter) || open && by(stem+"*") && by(stem+"*.>")
}

// dedicated says whether the subjects match nothing beyond filter.
func dedicated(subjects []string, filter string) bool {
	return !slices.ContainsFunc(subjects, func(subject string) bool { return !covers(filter, subject) })
}
