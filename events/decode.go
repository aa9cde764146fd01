package events

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// ErrForeign is what somebody else published on the realm's subjects: it has none of the
// bridge's headers, and readers pass over it.
var ErrForeign = errors.New("the message was not written by the bridge: it has none of its headers")

// Event is one message of a realm's stream: what its headers say, and its bytes. The
// bytes are kept as they were sent, so nothing that Zulip will add one day is lost here;
// [Event.Body] is a view of them.
type Event struct {
	Realm string // as in subjects; empty if the subject is none of ours (a copy elsewhere)
	Type  string // "message", "reaction", ...; of records "bridge"
	Op    string // "add", "remove", ...; empty where the type has none

	Queue     string // the queue that Zulip gave it to
	ID        int64  // the event's id there; -1 for messages from history and most records
	Prev      int64  // the id before it in the queue; -1 for the first, and where ID is -1
	MessageID int64  // of "message" events; else 0
	// Recipient is RecipientChannel or RecipientDirect, and ChannelID the channel, where
	// the event itself says it; else empty, and 0.
	Recipient string
	ChannelID int64
	Origin    string // OriginLive or OriginBackfill; empty on records

	// Record says which record it is; empty for Zulip's own events.
	Record string
	// Stub says where the bytes are if the event was too large for a message; [Resolve]
	// fetches them. nil if they are in Raw.
	Stub *Stub
	// Raw is the bytes as Zulip sent them; of a record, the bridge's own JSON.
	Raw []byte

	Subject string
	Header  nats.Header

	// Seq is its sequence in the stream and Stored when it was stored. Missing is how many
	// messages the stream no longer holds between the one before and this one; pieces of an
	// older state, which the bridge purges, do not count. A [Reader] sets the three; they
	// are zero after [Decode].
	Seq     uint64
	Stored  time.Time
	Missing uint64
}

// Stub is where the bytes of an event are that was too large for a message.
type Stub struct {
	Object string // its name in the object store zulip_<realm>
	Size   int64  // bytes; -1 if the header does not say
	Digest string // "SHA-256=" and hexadecimal
}

// Decode makes an Event of a message: of its subject, which alone names the realm, its
// headers and its body, which is kept and not copied. Nothing is parsed but the headers,
// so a million messages cost little. The error is [ErrForeign], or says which header is
// not as the bridge writes it.
func Decode(subject string, h nats.Header, body []byte) (*Event, error) {
	if Key(h) == "" {
		return nil, ErrForeign
	}
	e := &Event{
		Queue: h.Get(HeaderQueueID), ID: -1, Prev: -1, Origin: h.Get(HeaderOrigin), Record: h.Get(HeaderRecord),
		Recipient: h.Get(HeaderRecipientType), Raw: body, Subject: subject, Header: h,
	}
	kind := ""
	if parts := strings.SplitN(subject, ".", 4); len(parts) >= 3 && parts[0] == "zulip" { // a fourth: the place
		e.Realm, kind = parts[1], parts[2]
	}
	for _, n := range []struct {
		name string
		to   *int64
	}{{HeaderEventID, &e.ID}, {HeaderPrevEventID, &e.Prev}, {HeaderMessageID, &e.MessageID}, {HeaderChannelID, &e.ChannelID}} {
		if s := h.Get(n.name); s != "" {
			v, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("the header %s of a message on %.200q is no number: %.60q", n.name, subject, s)
			}
			*n.to = v
		}
	}
	if e.Record != "" {
		e.Type = "bridge"
		return e, nil
	}
	var err error
	if e.Type, err = unescape(h.Get(HeaderEventType)); err != nil {
		return nil, fmt.Errorf("the header %s of a message on %.200q: %w", HeaderEventType, subject, err)
	}
	if e.Op, err = unescape(h.Get(HeaderEventOp)); err != nil {
		return nil, fmt.Errorf("the header %s of a message on %.200q: %w", HeaderEventOp, subject, err)
	}
	if e.Type == "" {
		e.Type = kind
	}
	if name := h.Get(HeaderObject); name != "" {
		e.Stub = &Stub{Object: name, Size: -1, Digest: h.Get(HeaderDigest)}
		if n, err := strconv.ParseInt(h.Get(HeaderSize), 10, 64); err == nil {
			e.Stub.Size = n
		}
	}
	return e, nil
}

// unescape takes back what the bridge did with a value from outside.
func unescape(s string) (string, error) {
	if !strings.Contains(s, "%") {
		return s, nil
	}
	return url.PathUnescape(s)
}
