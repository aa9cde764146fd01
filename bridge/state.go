package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"zulip-nats/events"
	"zulip-nats/logevent"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// The state is what there is in the organization when a queue is made: people, channels
// and so on, for services that start today. Zulip tells it with the queue, and with it up
// to which event of that queue it goes; so each state belongs to one queue, and another
// one needs another queue, by a change-over.
//
// It is written in the polling phase, behind the queue's record and before the first event
// of the queue: a mark that begins it, pieces, a mark that ends it. All are records that
// leave us at the position of that record, so a crash in between is a start that finds a
// living queue at -1. What was not written is lost with the process: the answer of
// register is nowhere but in memory. So a state without its end stays one, and the next
// start changes over to a queue that brings another. A reader takes the newest end and
// looks no further, so it never sees a half one.
//
// Nothing of the promise rests on it, and nothing waits for it but the first poll of its
// queue.

// state is what is known of the state in the stream, and what is to be written.
type state struct {
	// What register told with a queue, and when it was asked; told is nil where it told
	// nothing, or it was written or given up.
	queue string
	told  *poller.State
	asked time.Time

	// The newest whole one in the stream, and when it was made by our clock.
	whole *events.StateEnd
	since time.Time
	// When one was last asked for, and how long no other one is.
	tried time.Time
	pause time.Duration
	// wanted is set by whoever asks for a new one.
	wanted atomic.Bool
}

const (
	// statePause is the least time between two queues that are made for their state, but
	// where the stream keeps less than four hours: two instances with other options could
	// do nothing else. stateAgain is that behind a state that was cut off, or that a gap
	// made worthless, stateAsked behind one if somebody asks.
	statePause = time.Hour
	stateAgain = 10 * time.Minute
	stateAsked = time.Minute
	// A piece is that large where the stream takes it; a small one is made of what a
	// stream takes that takes our other records.
	pieceBytes, leastPiece = 128 << 10, 2 << 10
	// stateChunk is how many bytes of pieces are written at once.
	stateChunk = 4 << 20
)

// AskState makes the bridge write a new state soon, if it leads: with the next poll that
// ends, which takes a minute at most, but a minute behind the one before at the soonest.
// It is false if the bridge writes none at all. It may be called from any goroutine.
func (b *Bridge) AskState() bool {
	if len(b.poller.State) > 0 {
		b.state.wanted.Store(true)
	}
	return len(b.poller.State) > 0
}

// takeUpState reads which state the stream has, and writes the one that came with this
// queue. every is how old it may become.
func (b *Bridge) takeUpState(ctx context.Context, every time.Duration) error {
	s := &b.state
	if len(b.poller.State) == 0 {
		s.told = nil
		return nil
	}
	if s.told == nil || s.queue != b.known.Queue || b.known.Last != -1 {
		s.told = nil
		return b.lookForState(ctx)
	}
	told := s.told
	s.told, s.whole = nil, nil // what is cut off here is not gone on with
	s.wait(every)
	err := b.writeState(ctx, told)
	if unfit, ok := errors.AsType[*unfitError](err); ok {
		s.pause = max(s.pause, every) // another one would be as large
		logevent.StateMissing.Error(b.log).Str("queue", b.known.Queue).Msg(unfit.Error())
		return nil
	}
	if err != nil {
		s.pause = stateAgain
	}
	return err
}

// wait notes that a state is being asked for.
func (s *state) wait(every time.Duration) {
	s.tried, s.pause = time.Now(), max(min(statePause, every), stateAgain)
}

// lookForState reads the newest mark that ends a state. One that was written before a gap
// is none any more.
func (b *Bridge) lookForState(ctx context.Context) error {
	m, err := b.lastOn(ctx, b.realm.Record(subjects.StateEnd))
	if err != nil {
		return err
	}
	end := decode[events.StateEnd](m)
	if end == nil {
		b.state.whole = nil
		return nil
	}
	gap, err := b.lastOn(ctx, b.realm.Record(subjects.Gap))
	if err != nil {
		return err
	}
	if gap != nil && gap.Seq > m.Seq {
		end, b.state.pause = nil, min(b.state.pause, stateAgain)
	}
	if was := b.state.whole; was == nil || end == nil || was.QueueID != end.QueueID {
		b.state.since = m.Time
	}
	b.state.whole = end
	return nil
}

// stateDue says whether the state in the stream is not what was asked for: none, that of
// another queue, of other sections, or older than that time.
func (b *Bridge) stateDue(every time.Duration) bool {
	s, now := &b.state, time.Now()
	if len(b.poller.State) == 0 {
		return false
	}
	if s.wanted.Load() && now.Sub(s.tried) >= stateAsked {
		s.wanted.Store(false)
		s.wait(every)
		return true
	}
	due := s.whole == nil || s.whole.QueueID != b.known.Queue || now.Sub(s.since) > every
	for _, section := range b.poller.State {
		if s.whole != nil {
			_, there := s.whole.Pieces[section.Name]
			due = due || !there
		}
	}
	if !due || now.Sub(s.tried) < s.pause {
		return false
	}
	s.wait(every)
	return true
}

// unfitError says why a state cannot be stored in this stream.
type unfitError struct{ text string }

func (e *unfitError) Error() string { return e.text }

// piece is a part of a section: elements of one member.
type piece struct {
	section, member string
	object          bool
	elements        []json.RawMessage
	n, of           int
}

// writeState writes a state that came with the queue that we are at the beginning of.
func (b *Bridge) writeState(ctx context.Context, told *poller.State) error {
	pieces, counts, err := b.cutState(ctx, told)
	if err != nil {
		return err
	}
	at := b.known
	last := stream.Header{Key: events.HeaderStateEvent, Value: itoa(told.Last)}
	begin := events.StateBegin{Record: events.RecordStateBegin, QueueID: at.Queue, EventID: told.Last,
		Sections: []string{}, Time: b.state.asked.UTC()}
	for _, s := range told.Sections {
		begin.Sections = append(begin.Sections, s.Name)
	}
	e, err := b.recordEntry(events.RecordStateBegin, subjects.StateBegin, at, begin, last)
	if err != nil {
		return err
	}
	if err := b.add(ctx, phasePoll, e); err != nil {
		return err
	}
	end := &events.StateEnd{Record: events.RecordStateEnd, QueueID: at.Queue, EventID: told.Last, BeginSeq: b.knownSeq,
		Pieces: counts, Time: b.state.asked.UTC()}
	total := 0
	for len(pieces) > 0 {
		var entries []entry
		for size := 0; len(pieces) > 0 && size < stateChunk; pieces = pieces[1:] {
			e := b.pieceEntry(&pieces[0], at, told.Last)
			entries, size, total = append(entries, e), size+len(e.msg.Data), total+len(e.msg.Data)
		}
		if err := b.add(ctx, phasePoll, entries...); err != nil {
			return err
		}
		// As before a poll: it may have taken a while.
		if err := b.recheck(ctx); err != nil {
			return err
		}
	}
	if e, err = b.recordEntry(events.RecordStateEnd, subjects.StateEnd, at, end, last); err != nil {
		return err
	}
	if err := b.add(ctx, phasePoll, e); err != nil {
		return err
	}
	b.state.whole, b.state.since = end, time.Now()
	logevent.StateWritten.Info(b.log).Str("queue", at.Queue).Int64("event_id", told.Last).Uint64("from_seq", end.BeginSeq).
		Int("bytes", total).Strs("sections", begin.Sections).Msg("the state of the organization is written")
	b.purgeStates(ctx, end.BeginSeq)
	return nil
}

// cutState cuts a state into pieces that the stream takes.
func (b *Bridge) cutState(ctx context.Context, told *poller.State) (pieces []piece, counts map[string]int, err error) {
	info, err := b.info(ctx)
	if err != nil {
		return nil, nil, err
	}
	at := poller.Position{Queue: b.known.Queue, Last: -1}
	fits := func(p piece) bool {
		p.n, p.of = 1<<20, 1<<20
		e := b.pieceEntry(&p, at, 1<<50)
		b.recordsMade--
		return b.stream.Fits(&e.msg)
	}
	most := pieceBytes
	for ; most > leastPiece; most /= 2 {
		filler := json.RawMessage(`"` + string(make([]byte, most)) + `"`)
		if fits(piece{section: "profile-fields", member: "custom_profile_fields", elements: []json.RawMessage{filler}}) {
			break
		}
	}
	counts = map[string]int{}
	for _, s := range told.Sections {
		first := len(pieces)
		for _, m := range s.Members {
			begin, size := len(pieces), 0
			pieces = append(pieces, piece{section: s.Name, member: m.Name, object: m.Object})
			for _, e := range m.Elements {
				p := &pieces[len(pieces)-1]
				if len(p.elements) > 0 && size+len(e) > most {
					pieces, size = append(pieces, piece{section: s.Name, member: m.Name, object: m.Object}), 0
					p = &pieces[len(pieces)-1]
				}
				p.elements, size = append(p.elements, e), size+len(e)+1
			}
			for _, p := range pieces[begin:] {
				if !fits(p) {
					return nil, nil, &unfitError{fmt.Sprintf("the state is not written: an element of %s, which Zulip "+
						"calls %s, has %d bytes, and the stream takes no such message; raise the max_payload of the "+
						"NATS server, or max_msg_size of the stream, or leave %s out of --state", s.Name, m.Name,
						len(p.elements[0]), s.Name)}
				}
			}
		}
		n := len(pieces) - first
		for i := range pieces[first:] {
			pieces[first+i].n, pieces[first+i].of = i+1, n
		}
		if counts[s.Name] = n; info.MaxPerSubject > 0 && int64(n) > info.MaxPerSubject {
			return nil, nil, &unfitError{fmt.Sprintf("the state is not written: %s has %d pieces, and the stream keeps %d "+
				"messages of a subject; raise its max_msgs_per_subject, or leave %s out of --state", s.Name, n,
				info.MaxPerSubject, s.Name)}
		}
	}
	return pieces, counts, nil
}

// pieceEntry makes the record of a piece. Elements stay as they are, which encoding/json
// would not leave them.
func (b *Bridge) pieceEntry(p *piece, at poller.Position, last int64) entry {
	open, end := byte('['), byte(']')
	if p.object {
		open, end = '{', '}'
	}
	head := `{"record":"` + events.RecordState + `","queue_id":` + quoted(at.Queue) + `,"event_id":` + itoa(last) +
		`,"section":"` + p.section + `","member":"` + p.member + `","piece":` + strconv.Itoa(p.n) + `,"of":` +
		strconv.Itoa(p.of) + `,"elements":`
	size := len(head) + 3
	for _, e := range p.elements {
		size += len(e) + 1
	}
	data := append(make([]byte, 0, size), head...)
	data = append(data, open)
	for i, e := range p.elements {
		if i > 0 {
			data = append(data, ',')
		}
		data = append(data, e...)
	}
	data = append(data, end, '}')
	return b.rawRecord(events.RecordState, b.realm.State(p.section), at, data,
		stream.Header{Key: events.HeaderStateSection, Value: p.section},
		stream.Header{Key: events.HeaderStatePiece, Value: strconv.Itoa(p.n) + "/" + strconv.Itoa(p.of)},
		stream.Header{Key: events.HeaderStateEvent, Value: itoa(last)})
}

// quoted is a queue's id, printable ASCII, as JSON.
func quoted(id string) string {
	text, err := json.Marshal(id)
	if err != nil {
		return `""` // not of a string
	}
	return string(text)
}

// purgeStates deletes the pieces that were written before a whole state begins, of older
// states and of those that were cut off. Its filter covers pieces and nothing else. The
// marks around them stay, and tell a reader what was between.
func (b *Bridge) purgeStates(ctx context.Context, begin uint64) {
	if b.leading() != nil || !b.cursorOK || b.cursor.Epoch != b.stream.Epoch() {
		return // behind a reconnect the numbers may be another stream's; the next state does it
	}
	err := b.stream.Purge(ctx, b.realm.States(), begin)
	if err == nil || ctx.Err() != nil {
		return
	}
	b.report.failed(SideNATS, err)
	if b.once("states not purged") {
		logevent.StateNotPurged.Warn(b.log).Err(err).
			Msg("the states before the newest one are not deleted: they stay until the stream's limits take them, or a " +
				"later purge does; give our user the right to purge this stream ($JS.API.STREAM.PURGE) if it has none")
	}
}
