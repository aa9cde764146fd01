package bridge

import (
	"fmt"
	"strconv"
	"strings"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// encode makes what is stored for an event that follows a position: the event itself, or
// a record in its place. ok is false where nothing is. It asks nobody: where its subject
// has to be looked up, loadPlaces comes before, and whether the message fits is for the
// caller to see.
func (b *Bridge) encode(ev *poller.Event, at poller.Position, r *headerRoom) (e entry, ok bool, err error) {
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
	subject, err := b.subjectOf(ev.Type, where)
	if err != nil {
		return b.rejection(ev, at, err.Error())
	}
	next := poller.Position{Queue: at.Queue, Last: ev.ID}
	if b.holds(ev.MessageID) {
		e, err := b.skipped(ev, next)
		return e, err == nil, err
	}
	from := len(r.headers)
	add := func(key, value string) { r.headers = append(r.headers, stream.Header{Key: key, Value: value}) }
	add(events.HeaderQueueID, at.Queue)
	add(events.HeaderEventID, r.itoa(ev.ID))
	add(events.HeaderPrevEventID, r.itoa(at.Last))
	add(events.HeaderEventType, headerValue(ev.Type))
	if ev.Op != "" {
		add(events.HeaderEventOp, headerValue(ev.Op))
	}
	add(events.HeaderOrigin, events.OriginLive)
	add(events.HeaderWriter, b.writer)
	if ev.MessageID > 0 {
		add(events.HeaderMessageID, r.itoa(ev.MessageID))
	}
	r.headers = appendPlace(r.headers, ev.Recipient, ev.ChannelID)
	if b.cfg.CloudEvents {
		var sent int64
		if ev.MessageID > 0 {
			sent = sentAt(ev.Raw)
		}
		r.headers = append(r.headers, b.cloudHeaders(r.headers[from:], events.CloudTypeEvent+joined(ev.Type, ev.Op), sent)...)
	}
	headers := r.headers[from:len(r.headers):len(r.headers)]
	return entry{after: next, tally: eventTally(ev.Type),
		msg: stream.Message{Subject: subject, Headers: headers, Data: ev.Raw}}, true, nil
}

// headerRoom is where the headers of a batch's events are, and the digits in them, so that
// an event costs no allocation of its own.
type headerRoom struct {
	headers []stream.Header
	digits  strings.Builder
	last    [2]number // an event's id is the next one's previous id
}

type number struct {
	n    int64
	text string
}

// newHeaderRoom makes room for so many events. More is no fault.
func newHeaderRoom(events int) *headerRoom {
	r := &headerRoom{headers: make([]stream.Header, 0, 10*events)}
	r.digits.Grow(20 * events)
	return r
}

// itoa is n in digits.
func (r *headerRoom) itoa(n int64) string {
	for _, known := range r.last {
		if known.text != "" && known.n == n {
			return known.text
		}
	}
	var digits [20]byte
	from := r.digits.Len()
	r.digits.Write(strconv.AppendInt(digits[:0], n, 10))
	text := r.digits.String()[from:]
	r.last[0], r.last[1] = r.last[1], number{n, text}
	return text
}

// subjectsMost is how many subjects are remembered.
const subjectsMost = 1000

// subjectKey is what the subject of an event is made of.
type subjectKey struct {
	typ   string
	where subjects.Place
}

// subjectOf is [subjects.Realm.Event], made once for each kind of events.
func (b *Bridge) subjectOf(typ string, where subjects.Place) (subject string, err error) {
	key := subjectKey{typ, where}
	if subject, ok := b.subjects[key]; ok {
		return subject, nil
	}
	if subject, err = b.realm.Event(typ, where); err != nil {
		return "", err
	}
	if len(b.subjects) >= subjectsMost {
		clear(b.subjects)
	}
	if b.subjects == nil {
		b.subjects = map[subjectKey]string{}
	}
	b.subjects[key] = subject
	return subject, nil
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
