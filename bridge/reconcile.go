package bridge

import (
	"bytes"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
)

// entry is a message to be stored and the position that it leaves us at.
type entry struct {
	msg   stream.Message
	after poller.Position

	tally   tally
	object  int   // bytes of its body in the object store
	left    int   // events that the record says were left out
	message int64 // the largest id of a message that came with it as an event; 0: none did
}

// reconcile compares entries in hand with the place that was read: how many of them are
// there, or that somebody moved on to where they do not belong. What is known was stored
// before them.
func reconcile(known poller.Position, knownSeq uint64, entries []entry, in phase, p resumePoint) (stored int, moved bool) {
	for i := len(entries) - 1; i >= 0 && p.last != nil; i-- {
		if sameEvent(&entries[i].msg, p.last) {
			return i + 1, false
		}
	}
	// Even at the same position: another instance's record may say what the stream holds
	// now.
	return 0, p.at != known || p.phase != in || p.last != nil && p.last.Seq > knownSeq
}

// isRecord says whether it is a record of ours, and not an event of Zulip's.
func (e *entry) isRecord() bool {
	for _, h := range e.msg.Headers {
		if h.Key == events.HeaderRecord {
			return true
		}
	}
	return false
}

// sameEvent says whether a stored message is that message: the same event of the same
// queue, or a record with the same words. What (queue, id) names never changes. A record
// of an event does not stand for another one with the same id.
func sameEvent(m *stream.Message, s *stream.Stored) bool {
	if m.Subject != s.Subject {
		return false
	}
	keyed, record := false, false
	for _, h := range m.Headers {
		switch h.Key {
		case events.HeaderQueueID, events.HeaderPosition, events.HeaderRecord, events.HeaderMessageID,
			events.HeaderEventID:
			if header(s, h.Key) != h.Value {
				return false
			}
			keyed = keyed || h.Key == events.HeaderEventID
			record = record || h.Key == events.HeaderRecord
		}
	}
	return keyed && !record || bytes.Equal(m.Data, s.Data)
}
