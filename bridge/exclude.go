package bridge

import (
	"slices"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// What an operator does not want in the stream (--exclude-types, --no-direct-messages) is
// left out, and a record says so with event ids alone: the next poll acknowledges it, and
// a restart has to know. Where it cannot be known whether something is about direct
// messages, it is left out too.

// Types of events that may be about direct messages. Those of ofMessages are about
// messages, and say which; those of ofTheAccount are about what the account itself wrote,
// saved or uploaded, for whomever, and do not say for whom in one place.
var (
	ofMessages = []string{"delete_message", "message", "reaction", "submessage", "typing", "typing_edit_message",
		"update_message", "update_message_flags", "url_embed_data"}
	ofTheAccount = []string{"attachment", "drafts", "navigation_view", "reminders", "scheduled_messages"}
)

// NeedMessages are the types of events that never say themselves whether they are about
// direct messages: where messages are not stored, Options.NoDirectMessages leaves all of
// them out.
var NeedMessages = []string{"reaction", "submessage", "update_message_flags"}

// directness is whether an event is about direct messages.
type directness uint8

const (
	notDirect   directness = iota
	mayBeDirect            // it is, or nobody knows
	lookItUp               // the messages that it is about say it
)

func directnessOf(ev *poller.Event) directness {
	switch {
	case slices.Contains(ofTheAccount, ev.Type), ev.Recipient == poller.RecipientDirect:
		return mayBeDirect
	case ev.Recipient == poller.RecipientChannel:
		return notDirect
	case ev.Type == "message":
		return mayBeDirect // one that does not say to whom
	case slices.Contains(ofMessages, ev.Type):
		return lookItUp
	case slices.Contains(poller.EventTypes(), ev.Type):
		return notDirect
	}
	return mayBeDirect // a type of a later Zulip
}

// leavesOut says whether anything is left out at all: then nothing is stored of which it
// is not known what it is.
func (b *Bridge) leavesOut() bool {
	o := &b.poller.Options
	return o.NoDirectMessages || len(o.ExcludeTypes) > 0
}

// excludes says whether an event is left out. Where that has to be looked up, loadPlaces
// comes before.
func (b *Bridge) excludes(ev *poller.Event) bool {
	o := &b.poller.Options
	if ev.Fault != "" { // it is rejected, without its bytes
		return false
	}
	if slices.Contains(o.ExcludeTypes, ev.Type) {
		return true
	}
	if !o.NoDirectMessages {
		return false
	}
	switch directnessOf(ev) {
	case notDirect:
		return false
	case mayBeDirect:
		return true
	}
	return !b.place().inChannels(messagesOf(ev))
}

// exclusion is a run of events that are left out, and not yet recorded.
type exclusion struct {
	above, upTo int64
	count       int
	message     int64 // the largest id of a message
}

func (x *exclusion) add(ev *poller.Event, at poller.Position) {
	if x.count == 0 {
		x.above = at.Last
	}
	x.upTo = ev.ID
	x.count++
	x.message = max(x.message, ev.MessageID)
}

// excluded makes the record of a run: ids of events and their number, and nothing of what
// was in them.
func (b *Bridge) excluded(x exclusion, at poller.Position) (entry, error) {
	e, err := b.recordEntry(events.RecordExcluded, subjects.Excluded, poller.Position{Queue: at.Queue, Last: x.upTo},
		events.Excluded{Record: events.RecordExcluded, Above: x.above, UpTo: x.upTo, Count: x.count},
		stream.Header{Key: events.HeaderEventID, Value: itoa(x.upTo)})
	e.left, e.message = x.count, x.message
	return e, err
}
