package asyncapi

import (
	"slices"

	"zulip-nats/events"
)

// kind is what a message of the stream can be. Its headers say which.
type kind int

const (
	live     kind = iota // an event that came by the queue
	backfill             // a message that was read back from history
	stub                 // one of the two, whose bytes are in the object store
	record               // a record of the bridge's own
)

// header is one of the headers that the bridge writes. All values are text.
type header struct {
	name    string
	about   string
	pattern string   // what the value looks like; empty: no rule but that of headers
	words   []string // the values that there are; nil: any
	on      []kind   // the kinds that always have it
	maybe   []kind   // those that may
}

const (
	number   = `^[0-9]+$`
	position = `^(-1|[0-9]+)$` // -1 stands before the first event
	visible  = `^[!-~]+$`
)

// headers is all of them, in the order of package events.
var headers = []header{
	{name: events.HeaderQueueID, pattern: visible, on: []kind{live, backfill, stub}, maybe: []kind{record},
		about: "The queue of Zulip that the event came by, or that was followed when a message was read back or a record " +
			"written. With Zulip-Event-Id it is the name of an event."},
	{name: events.HeaderEventID, pattern: number, on: []kind{live}, maybe: []kind{stub, record},
		about: "The event's id in its queue. A message from history has none; of records only those that stand in the place " +
			"of an event have that of the event."},
	{name: events.HeaderPrevEventID, pattern: position, on: []kind{live}, maybe: []kind{stub},
		about: "The id before it in the queue. Ids may skip, and this shows that nothing is missing. -1: it is the first."},
	{name: events.HeaderEventType, pattern: visible, on: []kind{live, backfill, stub},
		about: "The event's type, percent-encoded outside of printable ASCII and at %, at most 128 characters."},
	{name: events.HeaderEventOp, pattern: visible, maybe: []kind{live, stub},
		about: "The event's op, likewise, where it has one."},
	{name: events.HeaderOrigin, words: []string{events.OriginLive, events.OriginBackfill}, on: []kind{live, backfill, stub},
		about: "live: it came by the queue. backfill: the message was read back from history, perhaps hours after it was sent."},
	{name: events.HeaderMessageID, pattern: number, on: []kind{backfill}, maybe: []kind{live, stub, record},
		about: "The id of the message in a message event, and in the record of one that was skipped."},
	{name: events.HeaderRecipientType, words: []string{events.RecipientChannel, events.RecipientDirect}, maybe: []kind{live, backfill, stub},
		about: "Where the event is, if it says so itself: in a channel, or in direct messages."},
	{name: events.HeaderChannelID, pattern: number, maybe: []kind{live, backfill, stub},
		about: "The id of the channel that it is in, likewise."},
	{name: events.HeaderObject, pattern: visible, on: []kind{stub},
		about: "The event is larger than a message may be: the body is empty, and the bytes are the object of this name in the " +
			"object store zulip_<realm>."},
	{name: events.HeaderSize, pattern: number, on: []kind{stub}, about: "How many bytes the object has."},
	{name: events.HeaderDigest, pattern: `^SHA-256=[0-9a-f]{64}$`, on: []kind{stub}, about: "Their digest."},
	{name: events.HeaderWriter, pattern: visible, on: []kind{live, backfill, stub, record}, about: "The instance that stored it."},
	{name: events.HeaderRecord, on: []kind{record}, about: "Which record it is. Zulip's own events have none.",
		words: []string{events.RecordQueue, events.RecordGapOpened, events.RecordGapClosed, events.RecordRejected,
			events.RecordSkipped, events.RecordErased, events.RecordExcluded, events.RecordStateBegin, events.RecordState,
			events.RecordStateEnd}},
	{name: events.HeaderRecordID, pattern: visible, on: []kind{record}, about: "Different for every record."},
	{name: events.HeaderPosition, pattern: position, on: []kind{backfill, record}, maybe: []kind{stub},
		about: "The bridge's own: the event id that the queue is polled from next."},
	{name: events.HeaderNext, words: []string{events.NextPoll, events.NextRefill}, maybe: []kind{record},
		about: "The bridge's own, on the record of a queue: what follows."},
	{name: events.HeaderStateSection, pattern: visible, maybe: []kind{record}, about: "On a piece of the state: its section."},
	{name: events.HeaderStatePiece, pattern: `^[0-9]+/[0-9]+$`, maybe: []kind{record},
		about: "On a piece of the state: its number, and of how many in its section."},
	{name: events.HeaderStateEvent, pattern: position, maybe: []kind{record},
		about: "On a piece of the state and the marks around it: the last event of the queue that is in it; -1: none is."},
}

// encoded is what the CloudEvents binding leaves of a value.
const encoded = `^[!#-~]+$`

// cloudHeaders are those that --cloudevents adds.
var cloudHeaders = []header{
	{name: events.HeaderCloudVersion, words: []string{"1.0"}, on: []kind{live, backfill, stub, record},
		about: "CloudEvents: the version of the specification."},
	{name: events.HeaderCloudID, pattern: encoded, on: []kind{live, backfill, stub, record},
		about: "CloudEvents: different for every message, and the same each time that it is read."},
	{name: events.HeaderCloudSource, pattern: encoded, on: []kind{live, backfill, stub, record},
		about: "CloudEvents: the address of the organization."},
	{name: events.HeaderCloudType, pattern: encoded, on: []kind{live, backfill, stub, record},
		about: "CloudEvents: " + events.CloudTypeEvent + "<type>.<op>, or " + events.CloudTypeRecord + "<record>."},
	{name: events.HeaderCloudTime, pattern: `^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?Z$`,
		on: []kind{live, backfill, stub, record}, about: "CloudEvents: when a message was sent; of all else, when the bridge got it."},
	{name: events.HeaderCloudSubject, pattern: `^message/[0-9]+$`, on: []kind{backfill}, maybe: []kind{live, stub, record},
		about: "CloudEvents: the message that it is about."},
	{name: events.HeaderCloudContentType, words: []string{"application/json"}, on: []kind{live, backfill, stub, record},
		about: "CloudEvents: of the body."},
	{name: events.HeaderCloudDataRef, pattern: encoded, on: []kind{stub},
		about: "CloudEvents: where the body is, a relative reference: the object store and the name of the object."},
}

// rules are the headers of one kind of message as a JSON Schema. fixed are headers that
// have this one value there, must are further ones that it always has. Other headers are
// good: NATS has its own.
func (c *Config) rules(of kind, fixed map[string]string, must ...string) object {
	properties := object{}
	var required []string
	all := headers
	if c.CloudEvents {
		all = slices.Concat(headers, cloudHeaders)
	}
	for _, h := range all {
		word, isFixed := fixed[h.name]
		always := slices.Contains(h.on, of) || isFixed || slices.Contains(must, h.name)
		if !always && !slices.Contains(h.maybe, of) {
			continue
		}
		if always {
			required = append(required, h.name)
		}
		p := object{"type": "string", "description": h.about}
		switch {
		case isFixed:
			p["const"] = word
		case h.words != nil:
			p["enum"] = h.words
		case h.pattern != "":
			p["pattern"] = h.pattern
		}
		properties[h.name] = p
	}
	return object{"type": "object", "required": required, "properties": properties}
}
