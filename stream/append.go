package stream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/health"
)

// The headers that make a write conditional (NATS ADR-8 and nats-server, stream.go) and
// those of atomic batches (ADR-50). Nats-Expected-Stream is not among them: the
// acknowledgement names the stream, and the header is stored, so who passes a message on
// with its headers would be refused. Nats-Expected-Last-Msg-Id is not either: one
// mismatch on a replicated stream stops it for good on nats-server 2.14.9 to 2.15.2.
const (
	headerLastSeq    = "Nats-Expected-Last-Sequence"
	headerSubjectSeq = "Nats-Expected-Last-Subject-Sequence"
	headerSubject    = "Nats-Expected-Last-Subject-Sequence-Subject"
	headerBatchID    = "Nats-Batch-Id"
	headerBatchSeq   = "Nats-Batch-Sequence"
	headerCommit     = "Nats-Batch-Commit"
)

const (
	batchMax   = 1000    // messages in an atomic batch (nats-server, jetstream.limits.batch)
	batchBytes = 8 << 20 // bytes in an atomic batch: the server stages them
	nuidLength = 22
	// farAway is the round trip from which two of them cost more than what fast ingest
	// wins.
	farAway = 5 * time.Millisecond
	// idleRoom is the room for answers to single messages, and to the chunks of two objects.
	idleRoom = 128
	// seqDigits are the digits of the largest sequence that nats-server reads in an
	// expectation (parseInt64).
	seqDigits = 19
	// recordMax is the largest record of nats-server's file store, and recordFrame what
	// it adds to subject, headers and data (filestore.go).
	recordMax   = 32 << 20
	recordFrame = 34
)

// writer is what Append works with. It lives as long as the Stream, so that a write
// allocates next to nothing of its own.
type writer struct {
	inbox   string
	sub     *nats.Subscription
	answers chan *nats.Msg
	timer   *time.Timer
	token   uint64
	// patience is what the timer was last set to.
	patience time.Duration

	msg     nats.Msg
	headers []Header // of msg, in order
	shapes  *shapes  // while a write is under way

	rtt      time.Duration
	rttEpoch uint64 // plus one
}

func (w *writer) open(ctx context.Context, s *Stream) error {
	w.inbox = s.link.nc.NewInbox()
	w.timer = time.NewTimer(time.Hour)
	if err := w.makeRoom(s.link.nc, 1); err != nil {
		return newConnError("stream "+s.name+": subscribing to acknowledgements", err, false)
	}
	// The server has to know of the subscription before a publish of ours comes by
	// another way.
	health.Waits(ctx, s.link.patience(apiTimeout))
	ctx, cancel := context.WithTimeout(ctx, s.link.patience(apiTimeout))
	defer cancel()
	if err := s.link.nc.FlushWithContext(ctx); err != nil {
		go s.link.measure()
		w.close()
		return newConnError("stream "+s.name+": subscribing to acknowledgements", err, false)
	}
	return nil
}

// makeRoom sees to it that no answer to n messages is lost, and that a realm in which
// little happens holds next to nothing: the channel grows for a batch, and shrinks with
// the next single message. There may be one answer for each message in flight, and as
// many again for an earlier batch that was given up. What still comes to the old channel
// is late, and nobody waits for it.
func (w *writer) makeRoom(nc *nats.Conn, n int) error {
	room := max(2*min(n, window*flowMax), idleRoom)
	if room <= cap(w.answers) && (n > 1 || cap(w.answers) == idleRoom) {
		return nil
	}
	answers := make(chan *nats.Msg, room)
	sub, err := nc.ChanSubscribe(w.inbox+".>", answers)
	if err != nil {
		return err
	}
	if w.sub != nil {
		w.close()
	}
	w.answers, w.sub = answers, sub
	return nil
}

func (w *writer) close() {
	_ = w.sub.Unsubscribe() // fails only where the connection, and the subscription with it, is gone
}

// shapesKept are those that no write uses.
var shapesKept sync.Pool

// begin and end are around a write. Between two of them, which may be hours, the realm
// holds nothing of the one before: neither its headers nor its message, which is in the
// poller's window.
func (w *writer) begin() { w.shapes, _ = shapesKept.Get().(*shapes) }

func (w *writer) end() {
	w.msg = nats.Msg{}
	clear(w.headers)
	if w.shapes != nil {
		shapesKept.Put(w.shapes)
		w.shapes = nil
	}
}

// load makes w.msg of m, with the headers that a write adds.
func (w *writer) load(m *Message, added ...Header) {
	w.msg.Subject, w.msg.Reply, w.msg.Data = m.Subject, "", m.Data
	w.headers = append(append(w.headers[:0], m.Headers...), added...)
	s := w.shape()
	for i, h := range w.headers {
		s.values[i] = h.Value
	}
	if w.msg.Header = s.header; len(s.header) < len(w.headers) { // a key twice: rare, so it may cost
		w.msg.Header = make(nats.Header)
		for _, h := range w.headers {
			w.msg.Header[h.Key] = append(w.msg.Header[h.Key], h.Value)
		}
	}
}

// shape is a header map that serves all messages with the same keys: making one costs more
// than all else that is done for a message here.
type shape struct {
	keys   []string
	header nats.Header
	values []string // the backing of header's values
}

// shapes are those of the messages of a writer. Writers take turns with them.
type shapes struct{ all []*shape }

// shapesMost is how many are kept.
const shapesMost = 8

// shape finds or makes that of w.headers.
func (w *writer) shape() *shape {
	if w.shapes == nil {
		w.shapes = new(shapes)
	}
	known := w.shapes.all
	for i, s := range known {
		if slices.EqualFunc(s.keys, w.headers, func(key string, h Header) bool { return key == h.Key }) {
			known[0], known[i] = s, known[0]
			return s
		}
	}
	s := &shape{header: make(nats.Header, len(w.headers)), values: make([]string, len(w.headers))}
	for i, h := range w.headers {
		s.keys = append(s.keys, h.Key)
		s.header[h.Key] = s.values[i : i+1 : i+1]
	}
	if len(known) == shapesMost {
		known = known[:shapesMost-1]
	}
	w.shapes.all = append(known, s)
	return s
}

// Source gives the messages of an [Stream.AppendEach] chunk by chunk, and says whether
// others may follow; a chunk without messages ends it. It is told how many of its messages
// are acknowledged, and the cursor behind them. A chunk is not used any more when the next
// one is asked for.
type Source func(stored int, at Cursor) (msgs []Message, more bool)

// appendOp is one Append under way.
type appendOp struct {
	*Stream
	ctx    context.Context
	what   string // what is tried, for errors
	broken <-chan struct{}
	waiter *waiter
	lastly error // the connection's last error when it began
	sent   bool  // something may have left

	source Source
	msgs   []Message // of the chunk in hand, those that are still to be sent
	more   bool      // the source may have others
}

// answer is all that a server may say to a write: the acknowledgement, the error, and the
// three messages of fast ingest (nats-server, stream.go: JSPubAckResponse, BatchFlowAck,
// BatchFlowGap, BatchFlowErr).
type answer struct {
	Type      string              `json:"type"` // "ack", "gap", "err" in fast ingest, else empty
	Seq       uint64              `json:"seq"`  // of the stream in an acknowledgement, of the batch in the three
	LastSeq   uint64              `json:"last_seq"`
	Stream    string              `json:"stream"`
	Domain    string              `json:"domain"`
	Duplicate bool                `json:"duplicate"`
	Batch     string              `json:"batch"`
	Count     uint64              `json:"count"`
	Error     *jetstream.APIError `json:"error"`
}

// Append stores msgs in order behind after, and nothing else: if any other message came
// in between, the write is refused. It returns the cursor for the next write. After an
// error nothing is known of msgs beyond what a read will show: the caller must read
// before it writes again. Errors are [*Error] (or ctx's), whose Kind says which kind of
// trouble it is.
//
// Behind a cursor that was read, the first message goes alone, under the expectation that
// the newest message under the filter is the one that was read. From its acknowledgement
// on, the rest goes by the path that the stream and the configuration offer. If the
// connection drops, the wait for an acknowledgement ends at once, with Unclear. What does
// not fit (see [Stream.Fits]) is found before anything is sent. msgs are not kept.
func (s *Stream) Append(ctx context.Context, after Cursor, msgs []Message) (Cursor, error) {
	return s.AppendEach(ctx, after, func(int, Cursor) ([]Message, bool) { return msgs, false })
}

// AppendEach is Append for messages that come in chunks: the next chunk is asked for while
// the server still stores those before. It is one write all the same: it ends with the
// acknowledgement of all, and after an error nothing is known beyond what the source was
// told. What does not fit is found before anything of its chunk is sent.
//
// The source is called by this goroutine and must not write to the stream. It should not
// take seconds: a server gives a batch up in which nothing comes for ten.
func (s *Stream) AppendEach(ctx context.Context, after Cursor, source Source) (Cursor, error) {
	if ctx.Err() != nil {
		return after, context.Cause(ctx)
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	f := &appendOp{Stream: s, ctx: ctx, what: s.label, source: source, more: true}
	if some, err := f.load(0, after); !some {
		return after, err
	}
	f.broken = s.link.broken()
	f.waiter = s.link.wait(func(v violation) bool { return s.within(v.subject) || s.link.unheard(v) })
	defer s.link.forget(f.waiter)
	select {
	case <-f.broken:
		return after, newConnError(s.label, nats.ErrDisconnected, false)
	default:
	}
	if after.Epoch != s.Epoch() {
		return after, errorf(Refused, "%s: the connection to NATS is another one than the stream was read on: it has "+
			"to be read again", s.label)
	}
	room := len(f.msgs)
	if f.more {
		room = window * flowMax
	}
	if err := s.out.makeRoom(s.link.nc, room); err != nil {
		return after, newConnError(s.label, err, false)
	}
	f.lastly = s.link.nc.LastError()
	s.out.begin()
	defer s.out.end()
	at, err := f.append(after)
	if err != nil {
		return after, f.permitted(err)
	}
	return at, nil
}

// load takes the next chunk when the one in hand is sent. False: there is none, or the
// error says why it cannot be sent.
func (f *appendOp) load(stored int, at Cursor) (bool, error) {
	if len(f.msgs) > 0 {
		return true, nil
	}
	if !f.more {
		return false, nil
	}
	if f.msgs, f.more = f.source(stored, at); len(f.msgs) == 0 {
		f.more = false
		return false, nil
	}
	limits := f.limits()
	for i := range f.msgs {
		if err := f.sendable(&f.msgs[i], limits); err != nil {
			return false, err
		}
	}
	return true, nil
}

// permitted returns err, or the missing permission that is behind it. A message that the
// server does not let in makes a hole in a batch, and the answer about the hole may
// overtake the news about the permission.
func (f *appendOp) permitted(err error) error {
	if e, ok := errors.AsType[*Error](err); !ok || e.Kind != Unclear {
		return err
	}
	last := f.link.nc.LastError()
	v, ok := parseViolation(last)
	if !ok || errors.Is(f.lastly, nats.ErrPermissionViolation) && f.lastly == last || !f.waiter.concerns(v) {
		return err
	}
	select {
	case <-f.waiter.refused: // so that nobody else has to report it
	case <-time.After(time.Second):
	}
	return f.link.forbidden(f.what, v)
}

// append stores what the source gives behind at.
func (f *appendOp) append(at Cursor) (Cursor, error) {
	for stored, epoch := 0, at.Epoch; ; {
		// Each step ends with an acknowledgement of all it sent, so a crash leaves a
		// prefix of the messages in the stream, and the last message of that prefix says
		// so.
		if some, err := f.load(stored, at); !some {
			return at, err
		}
		var err error
		n, set := 1, f.current()
		switch path := f.path(len(f.msgs), set); {
		case !at.Acked:
			// If the power fails here, nothing was sent. One line on, the message is
			// stored behind the one that was read, or not at all.
			at, err = f.first(at, &f.take(1)[0])
		case path == PathFast:
			at, n, err = f.fast(stored, at)
		case path == PathAtomic && atomicLength(f.msgs, set.batchMax) > 1:
			n = atomicLength(f.msgs, set.batchMax)
			at, err = f.atomic(at, f.take(n), set)
		default:
			at, err = f.single(at, at.Seq, &f.take(1)[0])
		}
		if err != nil {
			return at, err
		}
		at.Epoch = epoch
		stored += n
	}
}

// take gives the next n messages of the chunk in hand.
func (f *appendOp) take(n int) []Message {
	msgs := f.msgs[:n]
	f.msgs = f.msgs[n:]
	return msgs
}

// path chooses the way for n messages, and for what may follow them.
func (f *appendOp) path(n int, set settings) Path {
	if n == 1 && !f.more || f.cfg.Path == PathSync || f.steppedDown() {
		return PathSync
	}
	switch {
	case f.cfg.Path == PathAtomic && set.atomic:
		return PathAtomic
	case f.cfg.Path == PathFast && set.fast:
		return PathFast
	case set.fast && set.atomic:
		if !f.more && f.roundTrip() > farAway {
			return PathAtomic
		}
		return PathFast
	case set.fast:
		return PathFast
	case set.atomic:
		return PathAtomic
	}
	return PathSync
}

// roundTrip measures the way to the server and back once for each connection: the best of
// three, since a busy machine makes one slow.
func (f *appendOp) roundTrip() time.Duration {
	w := &f.out
	epoch := f.Epoch() + 1
	if w.rttEpoch == epoch {
		return w.rtt
	}
	health.Waits(f.ctx, f.link.patience(f.cfg.AckTimeout))
	ctx, cancel := context.WithTimeout(f.ctx, f.link.patience(f.cfg.AckTimeout))
	defer cancel()
	best := time.Duration(math.MaxInt64)
	for range 3 {
		start := time.Now()
		if f.link.nc.FlushWithContext(ctx) != nil {
			return 0 // the write itself will say why
		}
		best = min(best, time.Since(start))
		if best > 100*farAway {
			break // no busy machine does that, and it costs time
		}
	}
	w.rtt, w.rttEpoch = best, epoch
	return best
}

// first stores the first message behind a cursor that was read: only if the newest
// message under the filter is the one that was read, and, on a dedicated stream, only if
// nothing is on its way into the stream either.
//
// The expectation on the filter alone does not see messages in flight: on a replicated
// stream the leader compares a filter with wildcards with what it has applied, not with
// what it has proposed (nats-server, jetstream_batching.go, where the map of proposed
// messages is asked for the filter as if it were a subject). So a message that was
// written without a filter, by another instance or by us before an answer got lost, could
// be committed just before ours. The expectation on the stream's sequence does count
// proposals. On a shared stream it says nothing, but there every write of ours names the
// filter, and two of those in flight refuse each other.
//
// The stream's last sequence is that of the message read, unless messages at its end were
// deleted or have aged out. Only then is it asked for: the answer cannot let anything in,
// for the expectation on the filter stands beside it. On a server that does not obey the
// filter there is no such guard, see [appendOp.behindHole].
func (f *appendOp) first(read Cursor, m *Message) (Cursor, error) {
	at, err := f.single(read, read.Seq, m)
	set := f.current()
	if e, ok := errors.AsType[*Error](err); !ok || e.Kind != Refused || !set.dedicated {
		return at, err
	}
	info, infoErr := f.readInfo(f.ctx, f.name)
	if infoErr != nil || info.State.LastSeq <= read.Seq {
		return at, err
	}
	if !set.obeysFilter && !f.behindHole(read, info) {
		if info.Config.Replicas != 1 {
			err = errorf(Refused, "%w; if this lasts, the newest messages of the stream were deleted or have aged "+
				"out, and nothing more can be written until its servers are nats-server %s or newer, or it has one "+
				"replica instead of %d",
				err, Oldest,
				info.Config.Replicas)
		}
		return at, err
	}
	return f.single(read, info.State.LastSeq, m)
}

// behindHole says whether the sequences between the message read and the last one that
// INFO tells are certainly empty, for servers on which nothing but that sequence guards
// the write.
//
// INFO came after the read, so what another instance wrote in between would be in its
// sequence, and the write behind it would be let in. A second read, after INFO, that
// still finds the old message says that there was none: but only if both answers come
// from the same server. With several replicas one of the two may come from a leader that
// was deposed, and no order of the questions helps (design, section 2). With one replica
// there is one server that could answer. A write after the second read moves the stream's
// sequence, and ours is refused.
func (f *appendOp) behindHole(read Cursor, info *streamInfo) bool {
	if info.Config.Replicas != 1 {
		return false
	}
	again, _, err := f.Last(f.ctx)
	return err == nil && again.Seq == read.Seq
}

// expect gives the headers that say what the next message must follow; last is the
// stream's last sequence as we know it.
//
// An old server does not obey the filter (see [obeysFilter]): it would refuse what is
// right, or let in what is wrong. There the stream is dedicated, or check had refused it,
// and the stream's sequence carries the promise alone: every message in the stream is
// under the filter, so a sequence that is still the last one is that of the filter's
// newest message. Such servers compare it when they apply a write, on all replicas alike,
// so nothing on its way is overlooked (nats-server 2.9 to 2.11, processJetStreamMsg).
func (f *appendOp) expect(at Cursor, last uint64, set settings) (headers []Header) {
	if set.dedicated {
		headers = append(headers, Header{headerLastSeq, strconv.FormatUint(last, 10)})
	}
	if !set.dedicated || !at.Acked && set.obeysFilter {
		headers = append(headers, Header{headerSubjectSeq, strconv.FormatUint(at.Seq, 10)},
			Header{headerSubject, f.cfg.Filter})
	}
	return headers
}

// single stores one message.
func (f *appendOp) single(at Cursor, last uint64, m *Message) (Cursor, error) {
	w := &f.out
	w.load(m, f.expect(at, last, f.current())...)
	w.token++
	reply := w.inbox + "." + strconv.FormatUint(w.token, 36)
	w.msg.Reply = reply
	f.startTimer()
	if err := f.publish(); err != nil {
		return at, err
	}
	for {
		msg, err := f.next()
		if err != nil {
			return at, err
		}
		if msg.Subject != reply {
			continue // a late answer to a write that was given up
		}
		a, err := f.parse(msg)
		if err != nil {
			return at, err
		}
		return f.acknowledged(&a)
	}
}

// acknowledged makes the next cursor of an acknowledgement.
func (f *appendOp) acknowledged(a *answer) (Cursor, error) {
	switch {
	case a.Error != nil:
		return Cursor{}, f.refused(a.Error)
	case a.Stream != f.name || a.Domain != f.domain:
		return Cursor{}, errorf(Wrong,
			"%s: acknowledged by stream %q in JetStream domain %q instead of %q in domain %q: two streams "+
				"capture the same subjects; remove %s from one of them", f.what, a.Stream, a.Domain, f.name, f.domain,
			f.cfg.Filter)
	case a.Duplicate:
		return Cursor{}, errorf(Refused,
			"%s: the stream holds a message with this Nats-Msg-Id already, at sequence %d; "+
				"the stream has to be read again", f.what, a.Seq)
	case a.Seq == 0:
		return Cursor{}, errorf(Wrong,
			"%s: acknowledged without a sequence; what answers there is no JetStream", f.what)
	}
	return Cursor{Seq: a.Seq, Acked: true}, nil
}

// refused makes an error of a server's refusal, and notes what it says about the stream's
// settings.
func (f *appendOp) refused(e *jetstream.APIError) *Error {
	switch e.ErrorCode {
	case 10174:
		f.change(func(s *settings) { s.atomic = false })
	case 10205:
		f.change(func(s *settings) { s.fast = false })
	case 10199:
		// "atomic publish batch is too large: 500": the number is the server's limit.
		i := strings.LastIndexByte(e.Description, ' ')
		limit, err := strconv.Atoi(e.Description[i+1:])
		f.change(func(s *settings) {
			if err != nil || limit < 1 || limit >= s.batchMax {
				limit = max(s.batchMax/2, 1)
			}
			s.batchMax = limit
		})
	}
	return newAPIError(f.what, e)
}

// publish sends the message that is loaded.
func (f *appendOp) publish() error {
	err := f.link.nc.PublishMsg(&f.out.msg)
	if err != nil {
		return newConnError(f.what, err, f.sent)
	}
	f.sent = true
	return nil
}

func (f *appendOp) startTimer() {
	f.out.patience = f.link.patience(f.cfg.AckTimeout)
	health.Waits(f.ctx, f.out.patience)
	f.out.timer.Reset(f.out.patience)
}

// next waits for any answer. It ends early when the connection drops, when the server
// says that a permission is missing, and when the timer runs out.
func (f *appendOp) next() (*nats.Msg, error) {
	select {
	case msg := <-f.out.answers:
		return msg, nil
	default:
	}
	select {
	case msg := <-f.out.answers:
		return msg, nil
	case <-f.broken:
		return nil, f.interrupted()
	case v := <-f.waiter.refused:
		return nil, f.link.forbidden(f.what, v)
	case <-f.ctx.Done():
		return nil, context.Cause(f.ctx)
	case <-f.out.timer.C:
		go f.link.measure() // the way may be longer than the wait
		return nil, errorf(Unclear, "%s: no acknowledgement for %v; it may be stored, or may yet be", f.what,
			f.out.patience)
	}
}

func (f *appendOp) interrupted() *Error {
	return errorf(Unclear, "%s: the connection to NATS dropped before the acknowledgement; it may be stored: %w",
		f.what, nats.ErrDisconnected)
}

// trouble is next without waiting for answers: what would end a wait ends a long loop of
// sending.
func (f *appendOp) trouble() error {
	select {
	case <-f.broken:
		return f.interrupted()
	case v := <-f.waiter.refused:
		return f.link.forbidden(f.what, v)
	case <-f.ctx.Done():
		return context.Cause(f.ctx)
	default:
		return nil
	}
}

// parse reads an answer. That nobody listens to the subject is told by a status without a
// body.
func (f *appendOp) parse(msg *nats.Msg) (answer, error) {
	var a answer
	if len(msg.Data) == 0 {
		if msg.Header.Get("Status") == "503" {
			return a, newConnError(f.what, nats.ErrNoResponders, false)
		}
		return a, nil
	}
	// The acknowledgement of a single message is the common one, and always written
	// alike.
	if rest, ok := bytes.CutPrefix(msg.Data, f.ackStart); ok {
		if digits, ok := bytes.CutSuffix(rest, []byte("}")); ok {
			if seq, err := strconv.ParseUint(string(digits), 10, 64); err == nil {
				return answer{Stream: f.name, Domain: f.domain, Seq: seq}, nil
			}
		}
	}
	if err := json.Unmarshal(msg.Data, &a); err != nil {
		return a, errorf(Wrong, "%s: the acknowledgement is not understood, what gave it is no JetStream: %w",
			f.what, err)
	}
	return a, nil
}

// atomicLength says how many of msgs go in one batch.
func atomicLength(msgs []Message, limit int) int {
	size := 0
	for i := range msgs {
		size += len(msgs[i].Data)
		if i == limit || (i > 0 && size > batchBytes) {
			return i
		}
	}
	return len(msgs)
}

// limits are the sizes that a message must keep to.
type limits struct {
	maxPayload int64 // of the server that we are connected to
	maxMsgSize int64 // of the stream, -1 is none
	file       bool
	added      int // bytes of the headers that a write adds, at most
}

// limits are what the connection and the stream say now.
func (s *Stream) limits() limits {
	set := s.current()
	return limits{maxPayload: s.link.nc.MaxPayload(), maxMsgSize: set.maxMsgSize, file: set.file, added: s.added(set)}
}

// added is the size of the widest set of headers that a write may add to a message. The
// first message after a read carries two expectations on a dedicated stream. A message in
// an atomic batch has the batch's headers, and the first of them an expectation besides,
// the last the commit.
func (s *Stream) added(set settings) int {
	last := headerSize(headerLastSeq, seqDigits)
	filter := headerSize(headerSubjectSeq, seqDigits) + headerSize(headerSubject, len(s.cfg.Filter))
	read, acked := filter, filter
	if set.dedicated {
		read, acked = last+filter, last
	}
	widest := read
	if set.atomic && s.cfg.Path != PathSync {
		batch := headerSize(headerBatchID, nuidLength)
		first := batch + headerSize(headerBatchSeq, len("1")) + acked
		final := batch + headerSize(headerBatchSeq, len("1000")) + headerSize(headerCommit, len("1"))
		widest = max(widest, first, final)
	}
	return widest
}

func headerSize(key string, value int) int { return len(key) + len(": ") + value + len("\r\n") }

// Fits says whether the server and the stream would take a message of that size, headers
// included (max_payload, max_msg_size).
//
// The answer is the same for all paths and all sequences: it counts the widest headers
// that any path open to this stream may add, so a message that fits once fits again when
// it has to go another way. Append refuses exactly what does not fit, before it sends
// anything.
func (s *Stream) Fits(m *Message) bool { return s.sendable(m, s.limits()) == nil }

// sendable says why a message cannot be sent.
func (s *Stream) sendable(m *Message, l limits) error {
	headers := len("NATS/1.0\r\n") + len("\r\n") + l.added
	for i := range m.Headers {
		headers += headerSize(m.Headers[i].Key, len(m.Headers[i].Value))
	}
	size := int64(headers + len(m.Data))
	tooLarge := func(limit string, max int64) error {
		return errorf(TooLarge, "%s: a message on %s has %d bytes with its headers, more than the %d of %s", s.label,
			m.Subject, size,
			max, limit)
	}
	switch {
	case headers > math.MaxUint16:
		return errorf(TooLarge, "%s: the headers of a message on %s have %d bytes, more than the 65535 that "+
			"NATS stores", s.label,
			m.Subject, headers)
	case size > l.maxPayload:
		return tooLarge("the server's max_payload", l.maxPayload)
	case l.maxMsgSize >= 0 && size > l.maxMsgSize:
		return tooLarge("the stream's max_msg_size", l.maxMsgSize)
	case l.file && size+int64(len(m.Subject))+recordFrame > recordMax:
		return tooLarge("nats-server's file store (33554432, subject and frame included)",
			recordMax-recordFrame-int64(len(m.Subject)))
	case !s.within(m.Subject):
		return errorf(Wrong, "%s: %q is no subject under %s", s.label, m.Subject, s.cfg.Filter)
	}
	return nil
}

// within says whether a subject is under the filter.
func (s *Stream) within(subject string) bool {
	return len(subject) > len(s.stem) && strings.HasPrefix(subject, s.stem)
}
