package events

import (
	"encoding/json"
	"time"
)

// Values of HeaderRecord, and of "record" in a record's body.
const (
	RecordQueue     = "queue"      // [Queue]
	RecordGapOpened = "gap-opened" // [GapOpened]
	RecordGapClosed = "gap-closed" // [GapClosed]
	RecordRejected  = "rejected"   // [Rejected]
	RecordSkipped   = "skipped"    // [Skipped]
	RecordErased    = "erased"     // [Erased]
	RecordExcluded  = "excluded"   // [Excluded]

	RecordStateBegin = "state-begin" // [StateBegin]
	RecordState      = "state"       // [StatePiece]
	RecordStateEnd   = "state-end"   // [StateEnd]
)

// Why a queue is recorded.
const (
	WhyFirst       = "first"           // the first start ever
	WhyLost        = "lost"            // the queue before was lost
	WhyOptions     = "options changed" // the register options differ from those of the queue before
	WhyChangedOver = "changed over"    // the idle clock of the queue before could not be renewed
	WhyState       = "state"           // the state is to be written anew, and comes with a new queue only
	WhyKept        = "kept"            // the same queue again, so that its record does not age out
)

// Queue is the body of a record on zulip.<realm>.bridge.queue: the queue we follow.
type Queue struct {
	Record   string `json:"record"`
	Why      string `json:"why"`
	QueueID  string `json:"queue_id"`
	Previous string `json:"previous_queue_id,omitempty"`
	Site     string `json:"site"`
	// MovedFrom is the organization's address before, if it moved.
	MovedFrom string          `json:"moved_from,omitempty"`
	Account   string          `json:"account"`
	Options   json.RawMessage `json:"options"` // as registered; canonical, so that a change is a difference of bytes
	// Subjects is how subjects of events are made in this stream: "by-place", or empty for
	// by type.
	Subjects string `json:"subjects,omitempty"`
	// Assumed: the queue's own record was not in the stream any more. This one is made of
	// our settings, and knows only the messages stored since.
	Assumed bool `json:"assumed,omitempty"`

	ZulipVersion    string  `json:"zulip_version"`
	FeatureLevel    int     `json:"zulip_feature_level"`
	LifeSeconds     float64 `json:"idle_queue_timeout_secs"`
	LifeSaid        bool    `json:"idle_queue_timeout_said_by_server"`
	PatienceSeconds float64 `json:"event_queue_longpoll_timeout_seconds"`

	// Newest are the newest message ids when the queue was made; later, if it is greater,
	// the largest that was stored. They are where a refill begins if the stream holds no
	// message. What Zulip has by the time of a start is not taken: the queue may be dead
	// by then, and the messages missed.
	Newest MessageIDs `json:"newest_message_ids"`
	// Begin is where the story begins that a refill has to compare with, if what the
	// stream holds of messages does not say it (settled). It is handed on from record to
	// record.
	Begin *Beginning `json:"begin,omitempty"`
	// Cut are message ids that a gap-closed record named as not refilled: that stands.
	Cut []Range `json:"cut_message_ids,omitempty"`
	// Refill is what has to be read back from history before the queue is polled; nil
	// where nothing has.
	Refill *Refill `json:"refill,omitempty"`
	// NoDirectUpTo: direct messages with ids up to this one are not refilled, since they
	// were not wanted when they came.
	NoDirectUpTo int64 `json:"no_direct_messages_up_to,omitempty"`
	// Held says which messages the stream held before this queue's first poll: those
	// between the two sequences.
	Held *Held `json:"held,omitempty"`

	Bridge string    `json:"bridge"` // our version
	Time   time.Time `json:"time"`
}

// Unknown stands for a message id that history did not tell.
const Unknown = -1

// MessageIDs are message ids as seen by the two queries of a refill: the account's own
// history, and all public channels. [Unknown] where history did not say.
type MessageIDs struct {
	Own    int64 `json:"own"`
	Public int64 `json:"public,omitempty"`
}

// Life is how long Zulip keeps the queue while no poll waits for it; Patience is how long
// a poll waits at most.
func (r *Queue) Life() time.Duration     { return seconds(r.LifeSeconds) }
func (r *Queue) Patience() time.Duration { return seconds(r.PatienceSeconds) }

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// Max is the greater of the two.
func (n MessageIDs) Max() int64 { return max(n.Own, n.Public) }

// Beginning is a place in the stream, and message ids of that time: messages with these
// ids or smaller ones are settled, that is stored, named as missing, or from before we
// were asked to listen. Messages with greater ids, if the stream has them, are at Seq or
// behind it.
type Beginning struct {
	Seq    uint64     `json:"seq,omitempty"` // 0: this record's own
	Newest MessageIDs `json:"newest_message_ids"`
	// Open are transactions that may have been open then, where the stream's limits had
	// taken what would say so.
	Open *Open `json:"open,omitempty"`
}

// Open are message ids above one, and up to where their story begins, whose transactions
// may have been open when the newest message was sent that the stream had, in seconds of
// Zulip's clock.
type Open struct {
	Above int64 `json:"above"`
	At    int64 `json:"newest_sent"`
}

// Refill is which messages a refill asks history for: those above one id, up to another,
// in each query.
type Refill struct {
	// Own and Public say which queries are made: those of the queue that was lost. Narrow
	// is its narrow.
	Own    bool        `json:"own"`
	Public bool        `json:"public"`
	Narrow [][2]string `json:"narrow,omitempty"`
	// NoDirect leaves direct messages out, as in the queue that was lost.
	NoDirect bool `json:"no_direct_messages,omitempty"`

	Above MessageIDs `json:"above"`
	UpTo  MessageIDs `json:"up_to"` // -1: up to the newest
	// Overlap: the stream's limits took what was just below the bound. Of the ids a
	// little below, from OverlapAbove on, messages are taken that were sent since then,
	// in seconds of Zulip's clock; 0: none are.
	Overlap      int64 `json:"overlap_since,omitempty"`
	OverlapAbove int64 `json:"overlap_above,omitempty"`
	// Unknown: nothing in the stream says where it ended, so nothing is asked for.
	Unknown bool `json:"above_unknown,omitempty"`
	// NotCompared are ids of which the stream's limits took what it held, so that nobody
	// knows whether a message among them is missing.
	NotCompared *Range `json:"not_compared_message_ids,omitempty"`
	// Cause is why there is a gap, Since when it began: the stream holds an older state
	// of messages that were changed later.
	Cause string    `json:"cause"`
	Since time.Time `json:"since,omitzero"`
	// SentSince is when the newest message that the stream has from a queue was sent, in
	// seconds of Zulip's clock: what was edited since may be here in an older state.
	SentSince int64 `json:"sent_since,omitempty"`
	// Missing are the event ids that the stream had lost from its own end, where that is
	// the cause.
	Missing *Range `json:"missing_event_ids,omitempty"`
	// Until is when refilling has to end, because nothing renews the clock of a queue
	// that is not polled yet.
	Until time.Time `json:"until"`
	// Done is how far the refill has come when the record is written again, and TooOld
	// and Refilled what it did till then.
	Done     int64 `json:"done_up_to_message_id,omitempty"`
	Refilled int   `json:"messages_refilled,omitempty"`
	TooOld   int   `json:"older_than_max_age,omitempty"`
	// Found is what it found till then besides.
	Found Found `json:"found,omitzero"`
}

// Found is what a refill came past that its last record has to tell. In a Refill the
// lists are short.
type Found struct {
	Changed     []int64 `json:"changed_message_ids,omitempty"`
	ChangedMore int     `json:"changed_messages_not_named,omitempty"`
	TooLarge    []int64 `json:"too_large_message_ids,omitempty"`
	// TooLargeMore counts further ones.
	TooLargeMore int `json:"too_large_messages_not_named,omitempty"`
	Unreadable   int `json:"unreadable_messages,omitempty"`
	// Excluded counts direct messages that are not wanted.
	Excluded int `json:"excluded_messages,omitempty"`
	// Hidden is the ids that the organization's plan hides.
	Hidden *Range `json:"hidden_message_ids,omitempty"`
}

// Held is a range of stream sequences: From up to Until, both included.
type Held struct {
	From   uint64 `json:"from_seq"`
	Until  uint64 `json:"until_seq,omitempty"` // 0: up to this record, or to the gap-closed record that follows it
	UpToID int64  `json:"up_to_message_id"`    // messages with a greater id cannot be among them; -1: not known
}

// GapOpened is the body of the record that opens a gap.
type GapOpened struct {
	Record        string    `json:"record"`
	Cause         string    `json:"cause"`
	QueueID       string    `json:"queue_id,omitempty"`
	LastEventID   int64     `json:"last_event_id"`
	LastMessageID int64     `json:"last_message_id,omitempty"`
	LastStored    time.Time `json:"last_stored,omitzero"` // when the newest event before the gap was stored
	Noticed       time.Time `json:"noticed"`
	Zulip         string    `json:"zulip,omitempty"` // what Zulip answered
	// Missing are the event ids that the stream had lost from its own end, where that is
	// the cause.
	Missing *Range `json:"missing_event_ids,omitempty"`
	// GivenUp is the queue that the stream named when it had lost its own end, if that is
	// another one: Zulip refuses it too, and it is followed no more.
	GivenUp string `json:"given_up_queue_id,omitempty"`
	// QueueRecord is the record of the queue that was lost, a [Queue], where the stream
	// does not hold it any more.
	QueueRecord json.RawMessage `json:"queue_record,omitempty"`
}

// GapClosed is the body of the record that closes a gap.
type GapClosed struct {
	Record     string    `json:"record"`
	Cause      string    `json:"cause"`
	OldQueueID string    `json:"old_queue_id,omitempty"`
	QueueID    string    `json:"queue_id"`
	Since      time.Time `json:"since,omitzero"`
	Closed     time.Time `json:"closed"`

	Refilled int `json:"messages_refilled"`
	// NotRefilled says why messages were left out, and which; nil if all that history
	// shows are here.
	NotRefilled *NotRefilled `json:"not_refilled,omitempty"`
	// Excluded counts direct messages that were passed over because they are not wanted.
	Excluded int `json:"excluded_messages,omitempty"`
	// Changed are messages that the stream holds in an older state: edited or moved since
	// the gap began. Only those that the refill came past are known.
	Changed []int64 `json:"changed_message_ids,omitempty"`
	// ChangedMore counts further ones, that do not fit in here.
	ChangedMore int `json:"changed_messages_not_named,omitempty"`
	// NotCompared are ids of which the stream's limits took what it held, so that nobody
	// knows whether a message among them is missing.
	NotCompared *Range `json:"not_compared_message_ids,omitempty"`
	// MissingEvents are the event ids that the stream had lost from its own end: those
	// above From up to To.
	MissingEvents *Range `json:"missing_event_ids,omitempty"`
	// NotRecoverable is the list of what Zulip's history never shows.
	NotRecoverable []string `json:"not_recoverable"`
}

type NotRefilled struct {
	Reason   string  `json:"reason"`
	AboveID  int64   `json:"above_message_id,omitempty"`
	UpToID   int64   `json:"up_to_message_id,omitempty"`
	TooLarge []int64 `json:"too_large_message_ids,omitempty"`
	// TooLargeMore counts further ones.
	TooLargeMore int `json:"too_large_messages_not_named,omitempty"`
	// Unreadable counts messages that history shows and that are no JSON, have no id, or
	// are larger than what the bridge keeps in memory.
	Unreadable int    `json:"unreadable_messages,omitempty"`
	TooOld     int    `json:"older_than_max_age,omitempty"`
	OlderThan  string `json:"max_age,omitempty"`
}

type Range struct {
	Above int64 `json:"above"`
	UpTo  int64 `json:"up_to"`
}

// Skipped is the body of a bridge.skipped record.
type Skipped struct {
	Record    string `json:"record"`
	EventID   int64  `json:"event_id"`
	MessageID int64  `json:"message_id"`
	Reason    string `json:"reason"`
}

// Excluded is the body of a bridge.excluded record: events that the bridge was told to leave
// out, Count of those with ids above Above, up to UpTo. Of what was in them nothing is
// stored.
type Excluded struct {
	Record string `json:"record"`
	Above  int64  `json:"above_event_id"`
	UpTo   int64  `json:"up_to_event_id"`
	Count  int    `json:"count"`
}

// Rejected is the body of a bridge.rejected record.
type Rejected struct {
	Record  string `json:"record"`
	Reason  string `json:"reason"`
	Size    int64  `json:"size"`
	SHA256  string `json:"sha256"`
	Cut     bool   `json:"cut,omitempty"`          // only the beginning of the event's bytes is here
	Event   string `json:"event,omitempty"`        // the bytes, where they are text
	Base64  []byte `json:"event_base64,omitempty"` // the bytes, where they are not
	EventID *int64 `json:"event_id,omitempty"`
}

// Erased is the body of a bridge.erased record. It comes before the messages that it names
// are erased, so that what is missing from the stream is always explained, and again,
// without any, when that is done.
type Erased struct {
	Record string `json:"record"`
	// Messages are the ids, at Zulip, of messages that were deleted and of which the stream
	// holds something: that is being erased.
	Messages []int64 `json:"message_ids,omitempty"`
	// Seqs are the sequences of all that is being erased: the messages, their edits, what
	// was added to their polls, and records of rejected events of these.
	Seqs []uint64 `json:"sequences,omitempty"`
	// Events are those of them that were events of a queue: they are missing from the chain
	// of [HeaderPrevEventID].
	Events []ErasedEvents `json:"events,omitempty"`
	// DoneUpTo: of all delete_message events at this sequence or below, what they named is
	// erased.
	DoneUpTo uint64 `json:"done_up_to_sequence"`
}

// ErasedEvents are events of one queue.
type ErasedEvents struct {
	QueueID string  `json:"queue_id"`
	IDs     []int64 `json:"event_ids"`
}

// StateBegin is the body of the record that begins a state: what there is in the
// organization when a queue is made, as Zulip tells it with the queue. Pieces follow, and
// then [StateEnd]; where that is not there, the state was not written to its end.
type StateBegin struct {
	Record   string    `json:"record"`
	QueueID  string    `json:"queue_id"`
	EventID  int64     `json:"event_id"`
	Sections []string  `json:"sections"`
	Time     time.Time `json:"time"`
}

// StatePiece is the body of a record on zulip.<realm>.bridge.state.<section>: some
// elements of one member of what Zulip told, as Zulip sent them.
type StatePiece struct {
	Record  string `json:"record"`
	QueueID string `json:"queue_id"`
	// EventID as in [StateEnd].
	EventID int64  `json:"event_id"`
	Section string `json:"section"`
	Member  string `json:"member"` // realm_users, streams, ...: Zulip's name for it
	Piece   int    `json:"piece"`  // counted from 1 in each section
	Of      int    `json:"of"`
	// Elements is a list, or an object where the member is one (realm_emoji).
	Elements json.RawMessage `json:"elements"`
}

// StateEnd is the body of the record that ends a state. The newest of these says where the
// newest whole state is.
type StateEnd struct {
	Record  string `json:"record"`
	QueueID string `json:"queue_id"`
	// EventID is the last event of that queue that is in the state already, -1 if none is.
	// The stream has these events behind the state, since each event is there: who applies
	// them to the state passes over those up to this one.
	EventID int64 `json:"event_id"`
	// BeginSeq is the sequence of the record that begins it.
	BeginSeq uint64 `json:"begin_seq"`
	// Pieces says how many pieces each section has; none where Zulip does not know it.
	Pieces map[string]int `json:"pieces"`
	Time   time.Time      `json:"time"` // when Zulip was asked
}
