// Package stream is the JetStream side of the bridge: one stream, and exactly the
// requests that the bridge makes of it. It knows nothing of Zulip, and it never retries:
// what an answer means is the caller's business.
//
// Every write is a compare-and-swap. [Cursor] says what the next write must follow: it
// comes from a read ([Stream.Last]) or from the acknowledgement of an own write
// ([Stream.Append]), and from nowhere else. A cursor that was read is checked by the
// server with the first message alone: the newest message under the filter must still be
// the one that was read, and on a stream of our own nothing may be on its way into it. So
// a stale read, from a leader that was deposed say, can never pass, and neither can a
// write beside another one that is not committed yet. Only then do cheaper expectations
// follow (design, section 9.2).
//
// What belongs here: the connection ([Connect]), finding, making and verifying the stream
// ([Open]), the ways to write (append.go, fast.go, atomic.go), reads from the leader
// (read.go), the object store for what is too large (object.go), and what each answer of
// NATS means to a writer ([Error], [Kind]). Package natstest starts the real servers that
// the tests need.
package stream

import "time"

// Header is one header of a message. Values must be printable ASCII without leading or
// trailing blanks; the caller sees to that.
type Header struct{ Key, Value string }

// Message is a message to be stored.
type Message struct {
	Subject string
	Headers []Header
	Data    []byte
}

// Stored is a message read back.
type Stored struct {
	Seq     uint64
	Subject string
	Header  map[string][]string // exact case
	Data    []byte
	Time    time.Time
}

// Cursor is the place that the next write must follow. The zero Cursor means: no message
// under the filter yet, never written.
type Cursor struct {
	// Seq is the sequence of the newest message under the stream's filter.
	Seq uint64
	// Acked is true if Seq comes from the acknowledgement of an own write, with nothing
	// read since.
	Acked bool
	// Epoch is that of the connection (see [Stream.Epoch]). On another connection the
	// cursor is worth nothing: the server may have been restored meanwhile, and its
	// numbers count anew.
	Epoch uint64
}
