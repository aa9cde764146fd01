// Package events is the contract between the bridge and whoever reads the stream: the
// headers of a message, the bodies of the records, and the key that tells two messages
// apart. The bridge writes with it, and a service may read with it: [Decode] makes an
// [Event] of a message, [Event.Body] a typed view of its bytes, and a [Reader] goes
// through the stream. It depends on nothing but nats.go.
//
// A message of the realm's stream is one of three things, and its headers say which:
//
//	zulip.<realm>.<type>          an event of Zulip, its bytes as Zulip sent them. HeaderEventID is
//	                              set, HeaderOrigin is OriginLive.
//	zulip.<realm>.message         a message read back from Zulip's history after a gap, in the shape
//	                              of an event. HeaderOrigin is OriginBackfill; there is no event id.
//	zulip.<realm>.bridge.<kind>   a record of the bridge's own: HeaderRecord says which, the body is
//	                              one of the types in records.go. Those on
//	                              zulip.<realm>.bridge.state.<section> are pieces of the state.
//
// In a stream by place (--subjects by-place; the record [Queue] says so) the events of a
// type are on zulip.<realm>.<type>.channel.<id>, .direct and .none, and the records where
// they are in any other. The filters "zulip.chat.message" and "zulip.chat.message.>"
// together are right in both: in each stream one of them covers all messages, the other
// nothing.
//
// An event that is larger than a message may be is a stub: it has no body, and
// HeaderObject says where in the object store it is.
//
// What a service has done it remembers by the stream's sequence: it keeps the highest
// one. Whoever copies messages elsewhere, where there is no such sequence, tells them
// apart by [Key].
package events

import (
	"strings"

	"github.com/nats-io/nats.go"
)

// Headers of what the bridge stores.
const (
	// HeaderQueueID is the queue that Zulip gave the event to, and HeaderEventID its id
	// there. Ids rise, and may skip; HeaderPrevEventID is the one before, so that nothing
	// can be missing unseen.
	HeaderQueueID     = "Zulip-Queue-Id"
	HeaderEventID     = "Zulip-Event-Id"
	HeaderPrevEventID = "Zulip-Prev-Event-Id"

	// HeaderEventType and HeaderEventOp are the event's "type" and "op". What is no
	// printable ASCII is percent-encoded, and cut at 128 bytes.
	HeaderEventType = "Zulip-Event-Type"
	HeaderEventOp   = "Zulip-Event-Op"

	// HeaderOrigin is OriginLive or OriginBackfill.
	HeaderOrigin = "Zulip-Origin"

	// HeaderMessageID is the id of the message in a "message" event, refilled ones and
	// stubs too.
	HeaderMessageID = "Zulip-Message-Id"

	// HeaderRecipientType is RecipientChannel or RecipientDirect, where the event itself
	// says that what it is about is in a channel, or among people. HeaderChannelID is the
	// channel's id, where it names one: of messages that move, that where they were.
	HeaderRecipientType = "Zulip-Recipient-Type"
	HeaderChannelID     = "Zulip-Channel-Id"

	// HeaderObject is the name of the object that holds a stub's bytes, HeaderSize how
	// many they are, HeaderDigest their digest, "SHA-256=" and hexadecimal.
	HeaderObject = "Zulip-Object"
	HeaderSize   = "Zulip-Object-Size"
	HeaderDigest = "Zulip-Object-Digest"

	// HeaderWriter is the instance that stored it.
	HeaderWriter = "Bridge-Writer"

	// HeaderRecord says which record it is; Zulip's own events have none. HeaderRecordID
	// is different for every record.
	HeaderRecord   = "Bridge-Record"
	HeaderRecordID = "Bridge-Record-Id"

	// HeaderPosition is, on records and refilled messages, the event id that the queue is
	// polled from next. HeaderNext says, on the record of a queue, what follows: NextPoll
	// or NextRefill.
	HeaderPosition = "Bridge-Position"
	HeaderNext     = "Bridge-Next"

	// On pieces of the state: HeaderStateSection is the section, HeaderStatePiece the number
	// of the piece and of how many ("3/17"). On these and the marks around them,
	// HeaderStateEvent is the last event of the queue that is in the state.
	HeaderStateSection = "Bridge-State-Section"
	HeaderStatePiece   = "Bridge-State-Piece"
	HeaderStateEvent   = "Bridge-State-Event-Id"
)

// Headers that come besides with --cloudevents: the attributes of a CloudEvent in the
// binary mode of its NATS binding (cloudevents/spec, nats-protocol-binding.md). Values are
// percent-encoded as it says. HeaderCloudID is [Key].
const (
	HeaderCloudVersion     = "ce-specversion"
	HeaderCloudID          = "ce-id"
	HeaderCloudSource      = "ce-source"          // the organization's address
	HeaderCloudType        = "ce-type"            // CloudTypeEvent or CloudTypeRecord, and which
	HeaderCloudTime        = "ce-time"            // of a message when it was sent, else when the bridge got it
	HeaderCloudSubject     = "ce-subject"         // "message/" and its id, where it is about one
	HeaderCloudContentType = "ce-datacontenttype" // application/json
	HeaderCloudDataRef     = "ce-dataref"         // of a stub: the object store, a slash, and the object's name
)

// How the values of HeaderCloudType begin: behind it are the event's type and, behind a
// dot, its op; or the record.
const (
	CloudTypeEvent  = "com.zulip."
	CloudTypeRecord = "zulip-nats."
)

// Values of HeaderOrigin, HeaderNext and HeaderRecipientType.
const (
	OriginLive     = "live"     // it came by the queue
	OriginBackfill = "backfill" // it was read from history, after a gap or at a start that goes back
	NextPoll       = "poll"
	NextRefill     = "refill"

	RecipientChannel = "channel"
	RecipientDirect  = "direct" // a direct message, of two people or more
)

// Key is different for every message of all realms' streams of one bridge, and the same
// each time that the message is read, replayed or copied. It is empty for what the bridge
// did not write.
//
// A queue's id is a UUID (zulip/zulip, zerver/tornado/event_queue.py), so queues of two
// servers share none.
func Key(h nats.Header) string {
	switch queue := h.Get(HeaderQueueID); {
	case h.Get(HeaderRecord) != "":
		return h.Get(HeaderRecordID)
	case h.Get(HeaderEventID) != "":
		return queue + "/" + h.Get(HeaderEventID)
	case h.Get(HeaderMessageID) != "":
		return queue + "/message/" + h.Get(HeaderMessageID)
	}
	return ""
}

// Portable is the headers that go with a message to another stream: all but those of NATS
// itself. Some of those say what the message had to follow in its own stream
// (Nats-Expected-...), and NATS stores them; another stream would refuse it. Mirrors and
// sources need nothing of the kind.
func Portable(h nats.Header) nats.Header {
	own := make(nats.Header, len(h))
	for key, values := range h {
		if !strings.HasPrefix(key, "Nats-") {
			own[key] = values
		}
	}
	return own
}
