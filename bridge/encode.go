package bridge

import (
	"fmt"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// encode makes what is stored for an event that follows a position: the event itself, or
// a record in its place. ok is false where nothing is. It asks nobody: where its subject
// has to be looked up, loadPlaces comes before, and whether the message fits is for the
// caller to see. The headers are appended to all, which saves an allocation for each event.
func (b *Bridge) encode(ev *poller.Event, at poller.Position, all *[]stream.Header) (e entry, ok bool, err error) {
	if ev.Fault != "" {
		return b.rejection(ev, at, ev.Fault)
	}
	if ev.Size > int64(len(ev.Raw)) {
		return b.rejection(ev, at, fmt.Sprintf("%d bytes are more than this bridge keeps in memory", ev.Size))
	}
	var where subjects.Place
	if b.byPlace() {
		where = b.placeOf(ev)
	}
	subject, err := b.realm.Event(ev.Type, where)
	if err != nil {
		return b.rejection(ev, at, err.Error())
	}
	next := poller.Position{Queue: at.Queue, Last: ev.ID}
	if b.holds(ev.MessageID) {
		e, err := b.skipped(ev, next)
		return e, err == nil, err
	}
	from := len(*all)
	add := func(key, value string) { *all = append(*all, stream.Header{Key: key, Value: value}) }
	add(events.HeaderQueueID, at.Queue)
	add(events.HeaderEventID, itoa(ev.ID))
	add(events.HeaderPrevEventID, itoa(at.Last))
	add(events.HeaderEventType, headerValue(ev.Type))
	if ev.Op != "" {
		add(events.HeaderEventOp, headerValue(ev.Op))
	}
	add(events.HeaderOrigin, events.OriginLive)
	add(events.HeaderWriter, b.writer)
	if ev.MessageID > 0 {
		add(events.HeaderMessageID, itoa(ev.MessageID))
	}
	*all = appendPlace(*all, ev.Recipient, ev.ChannelID)
	if b.cfg.CloudEvents {
		var sent int64
		if ev.MessageID > 0 {
			sent = sentAt(ev.Raw)
		}
		*all = append(*all, b.cloudHeaders((*all)[from:], events.CloudTypeEvent+joined(ev.Type, ev.Op), sent)...)
	}
	headers := (*all)[from:len(*all):len(*all)]
	return entry{after: next, tally: eventTally(ev.Type),
		msg: stream.Message{Subject: subject, Headers: headers, Data: ev.Raw}}, true, nil
}

// appendPlace appends the headers that say where what an event is about is.
func appendPlace(headers []stream.Header, kind poller.Recipient, channel int64) []stream.Header {
	switch kind {
	case poller.RecipientDirect:
		return append(headers, stream.Header{Key: events.HeaderRecipientType, Value: events.RecipientDirect})
	case poller.RecipientChannel:
		headers = append(headers, stream.Header{Key: events.HeaderRecipientType, Value: events.RecipientChannel})
		if channel > 0 {
			headers = append(headers, stream.Header{Key: events.HeaderChannelID, Value: itoa(channel)})
		}
	}
	return headers
}
