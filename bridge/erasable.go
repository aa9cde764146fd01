package bridge

import (
	"bytes"
	"encoding/json"
	"slices"
	"time"

	"zulip-nats/events"
	"zulip-nats/stream"
)

// erasable says where in the stream there is something of which message: the message
// itself, its edits, what was added to its poll, a rejected event of any of these. A
// stream has no index by message, and to read all of it for each message that is deleted
// would be no way; so it is read once, and from then on what has come since. Each of them
// takes twelve bytes: a million messages are 12 MB.
//
// What it says is where to look. Before anything is erased it is read, and has to be of
// that message.
type erasable struct {
	// upTo is up to where it knows the stream.
	upTo uint64
	// seen is a message of ours that was in the stream when it was last read for this,
	// and when that was stored: if it is there no more, the stream may be another one.
	seen   uint64
	seenAt time.Time

	ids  []uint32 // the low halves of ids
	seqs []uint64
}

// add takes note that there is something of a message at a sequence.
func (x *erasable) add(id int64, seq uint64) {
	x.ids, x.seqs = append(x.ids, uint32(id)), append(x.seqs, seq)
}

// find gives the sequences where there may be something of these messages, in order.
func (x *erasable) find(ids map[int64]bool) (seqs []uint64) {
	want := make(map[uint32]bool, len(ids))
	for id := range ids {
		want[uint32(id)] = true
	}
	for i, id := range x.ids {
		if want[id] {
			seqs = append(seqs, x.seqs[i])
		}
	}
	slices.Sort(seqs)
	return slices.Compact(seqs)
}

// forget drops what is before a sequence.
func (x *erasable) forget(before uint64) {
	n := 0
	for i, seq := range x.seqs {
		if seq >= before {
			x.ids[n], x.seqs[n] = x.ids[i], seq
			n++
		}
	}
	if n < cap(x.seqs)/4 { // give the room back
		x.ids, x.seqs = slices.Clone(x.ids[:n]), slices.Clone(x.seqs[:n])
		return
	}
	x.ids, x.seqs = x.ids[:n], x.seqs[:n]
}

// about says of which message a stored message has something that goes with it; ok is
// false where it has nothing, or is none of ours. read gives its bytes, which may be in the
// object store; it may give none.
//
// Reactions, flags and the like hold an id and no text. So does a move, and it is about
// other messages besides: it goes if it holds a text too, or is about that message alone.
func about(m *stream.Stored, read func() ([]byte, error)) (id int64, ok bool, err error) {
	switch {
	case !mayGo(m):
		return 0, false, nil
	case header(m, events.HeaderRecord) == events.RecordRejected:
		if id, ok = headerInt(m, events.HeaderMessageID); ok {
			return id, id > 0, nil // by place it has no bytes
		}
		if body := decode[events.Rejected](m); body != nil {
			id, ok = aboutRejected(append([]byte(body.Event), body.Base64...))
		}
		return id, ok, nil
	case header(m, events.HeaderEventType) == "message":
		id, ok = headerInt(m, events.HeaderMessageID)
		return id, ok && id > 0, nil
	}
	data, err := read()
	if err != nil {
		return 0, false, err
	}
	var body struct {
		ID       int64           `json:"message_id"`
		IDs      []int64         `json:"message_ids"`
		Content  json.RawMessage `json:"content"`
		Rendered json.RawMessage `json:"rendered_content"`
		Orig     json.RawMessage `json:"orig_content"`
		OrigHTML json.RawMessage `json:"orig_rendered_content"`
	}
	if json.Unmarshal(data, &body) != nil || body.ID <= 0 {
		return 0, false, nil
	}
	text := body.Content != nil || body.Rendered != nil || body.Orig != nil || body.OrigHTML != nil
	alone := !slices.ContainsFunc(body.IDs, func(id int64) bool { return id != body.ID })
	return body.ID, text || alone, nil
}

// mayGo says whether a stored message is of a kind that may be erased at all: an event of
// ours that has a text, or the record of one that was rejected. What a start looks for is
// not: the records of all else, and of rejected events without an id (loadRejected).
func mayGo(m *stream.Stored) bool {
	if _, ours := resumePointOf(m); !ours {
		return false
	}
	switch header(m, events.HeaderRecord) {
	case "":
		return slices.Contains(erasedTypes, header(m, events.HeaderEventType))
	case events.RecordRejected:
		_, has := headerInt(m, events.HeaderEventID)
		return has
	}
	return false
}

// erasedTypes are the types of events that have a text of a message.
var erasedTypes = []string{"message", "update_message", "submessage"}

// aboutRejected reads of which message an event is that was rejected, of which there may
// be only the beginning.
func aboutRejected(raw []byte) (id int64, ok bool) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	kind, number, inner := "", int64(0), int64(0)
	var path []string // the keys that we are in, "" in a list
	key, isKey := "", false
	for {
		token, err := d.Token()
		if err != nil {
			break // its end, or where it was cut
		}
		if delim, is := token.(json.Delim); is {
			switch delim {
			case '{', '[':
				path = append(path, key)
				key, isKey = "", delim == '{'
			default:
				path = path[:len(path)-1]
				isKey = true // behind a value, in an object a key comes
			}
			continue
		}
		if s, is := token.(string); is && isKey && len(path) > 0 {
			key, isKey = s, false
			continue
		}
		n := int64(0)
		if v, is := token.(json.Number); is {
			n, _ = v.Int64()
		}
		switch {
		case len(path) == 1 && key == "type":
			kind, _ = token.(string)
		case len(path) == 1 && key == "message_id":
			number = n
		case len(path) == 2 && path[1] == "message" && key == "id":
			inner = n
		}
		isKey = true
	}
	switch kind {
	case "message":
		return inner, inner > 0
	case "update_message", "submessage":
		return number, number > 0
	}
	return 0, false
}
