package stream

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"
)

// verify says which settings of a stream break the promise: whoever is acknowledged is stored, in order, and can read it back. All that
// are wrong are named at once. The sources are nats-server's stream.go and measurements (design, sections 2 and 3).
func verify(c *streamConfig, filter string) error {
	var wrong, reasons []string
	add := func(setting, reason string) {
		wrong = append(wrong, setting)
		reasons = append(reasons, reason)
	}
	edit := "; change it with: nats stream edit " + c.Name
	other := "; this cannot be changed, use another stream"
	isSet := func(raw []byte) bool { return len(raw) > 0 && !bytes.Equal(raw, []byte("null")) }

	if c.NoAck {
		add("no_ack", "no_ack is on, so no write is ever acknowledged"+edit+" --ack")
	}
	if c.Sealed {
		add("sealed", "it is sealed and takes no messages"+other)
	}
	if isSet(c.Mirror) {
		add("mirror", "it is a mirror of another stream and takes no messages of ours"+other)
	}
	if len(c.Sources) > 0 {
		add("sources", "it has sources, so positions of others flow in"+edit)
	}
	if isSet(c.SubjectTransform) {
		add("subject_transform", "it has a subject_transform, so expectations on our own subjects see nothing"+edit)
	}
	if c.PersistMode == "async" {
		add("persist_mode", "its persist_mode is async, so acknowledged messages are lost when the server dies"+other)
	}
	if c.Retention != "" && c.Retention != "limits" {
		add("retention", fmt.Sprintf("its retention is %s, so consumers delete the message that says where we are", c.Retention)+
			"; use a stream with retention limits")
	}
	if c.Counter {
		add("allow_msg_counter", "it is a counter (allow_msg_counter) and takes no other messages"+other)
	}
	if !isSet(c.Mirror) && !covered(c.Subjects, filter) {
		add("subjects", fmt.Sprintf("its subjects (%s) do not cover %s", strings.Join(c.Subjects, ", "), filter)+edit+" --subjects")
	}
	if len(wrong) == 0 {
		return nil
	}
	return &ConfigError{Stream: c.Name, Setting: strings.Join(wrong, ", "), Reason: strings.Join(reasons, "; ")}
}

// warnings says which settings are legal and risky.
func warnings(c *streamConfig, queueLife time.Duration) []string {
	var out []string
	warn := func(format string, args ...any) {
		out = append(out, "stream "+c.Name+": "+fmt.Sprintf(format, args...))
	}
	memory := c.Storage == "memory"
	switch {
	case memory && c.Replicas <= 1:
		warn("it lives in the memory of one server: a restart of it loses everything, the position included")
	case memory:
		warn("it lives in memory: when all its servers stop, everything is lost, the position included")
	case c.Replicas <= 1:
		warn("it has one replica: nats-server writes it to the disk for good only every sync_interval (2 minutes by default), so a power " +
			"failure can lose what was acknowledged in that time; use 3 replicas, or sync_interval: always")
	}
	switch {
	case c.MaxAge > 0 && c.MaxAge < shortAge:
		warn("its max_age is %v, less than an hour: after a longer stop the position is gone", c.MaxAge)
	case c.MaxAge > 0 && c.MaxAge < queueLife:
		warn("its max_age of %v is shorter than the %v that the Zulip queue may live: after a longer stop the stream has forgotten a queue "+
			"that Zulip still keeps", c.MaxAge, queueLife)
	}
	if c.MaxMsgsPer > 0 {
		warn("max_msgs_per_subject is %d: older events of a type vanish, since all of a type share one subject", c.MaxMsgsPer)
	}
	if c.AllowRollup {
		warn("allow_rollup_hdrs is on: whoever may publish can wipe it with one message")
	}
	if c.Discard == "new" {
		warn("its discard policy is new: when it is full, writes stop until there is room")
	}
	return out
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

// covered says whether the subjects match all that filter matches: one of them alone, or, for a filter that ends in >, one for the
// subjects with one more token and one for the longer ones.
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
