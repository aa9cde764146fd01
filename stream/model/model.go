// Package model is a JetStream stream in memory, for simulations of the bridge in virtual
// time: it does what package stream promises, and it can do everything that a real stream
// does on its worst day. A write may be stored and never answered, or be stored seconds
// after it was given up, or be stored in part; a read may come from a leader that was
// deposed; a stream may be deleted, purged, restored from a backup or lose its tail; its
// limits take messages; others write to it; somebody edits its settings under way.
//
// What it does on good days is held to a real nats-server by contract_test.go, which runs
// one list of expectations on both.
package model

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"zulip-nats/stream"
)

// Stream is one stream for any number of clients. The zero value is empty, takes
// everything under Filter, and has no bad day.
type Stream struct {
	// Filter is what the bridge writes and reads: zulip.<realm>.>.
	Filter string
	// Settings are those that it has from the start; Edit changes them under way.
	Settings
	// MaxPayload is how many bytes a message may have, headers included. Zero: 1 MiB.
	MaxPayload int
	// MaxObject is how many bytes the object store ever takes for one object. Zero: all.
	MaxObject int
	// NoFilter is a server from before 2.11, which does not know the filter of an
	// expectation. In a stream of our own the stream's sequence says as much, if the
	// client has made sure of the newest message where the tail was deleted. A stream
	// that others use too cannot be opened.
	NoFilter bool
	// Single is a stream with one replica, which nobody can answer for but its one
	// server.
	Single bool
	// Silent: clients are not told of an edit, because they may not subscribe to the
	// advisory. Edited then grows with reconnects alone.
	Silent bool
	// Faults says what goes wrong with a request; nil: nothing. It is called before each
	// request, with the lock held.
	Faults func(op string) Fault
	// Ours tells the messages that say where the bridge is from those of others, for
	// TailsTaken; nil: none are.
	Ours func(*stream.Stored) bool

	mu       sync.Mutex
	clock    func() time.Time // the server's; nil: time.Now
	msgs     []entry          // in order of their sequences
	lastSeq  uint64
	gone     bool
	epoch    uint64
	edits    uint64
	age      int // how often it began anew: what was on its way to the stream before does not reach the new one
	down     bool
	stale    *snapshot // what a deposed leader still answers
	ever     []stream.Stored
	at       []time.Time // when each of ever was stored, by everybody's clock
	aged     []entry
	removed  []entry // by somebody's hand
	erased   []entry // by a client
	purged   []entry // by clients
	tails    []time.Time
	requests map[string]int
	objects  map[string][]byte
	writing  sync.WaitGroup
}

// Settings are the settings of a stream that matter to the bridge.
type Settings struct {
	// Shared: the stream takes subjects of others too.
	Shared bool
	// Interest: its retention is interest, and nobody is interested. Writes are
	// acknowledged, and the messages are gone at once.
	Interest bool
	// MaxMsgSize is the largest message that it takes. Zero: any.
	MaxMsgSize int
	// The limits. What exceeds them is discarded, oldest first. Zero: none.
	MaxAge        time.Duration
	MaxMsgs       int
	MaxBytes      int
	MaxPerSubject int
}

// entry is a message that is held.
type entry struct {
	stream.Stored
	size int
	n    int // its place in ever
}

type snapshot struct {
	msgs    []entry
	lastSeq uint64
	until   time.Time
}

// deposedFor is how long a leader without a quorum still answers: it steps down when it
// has heard of nobody for so long (nats-server, raft.go, lostQuorumInterval).
const deposedFor = 10 * time.Second

// Fault is what goes wrong with one request. The zero value: nothing.
type Fault struct {
	// Fail answers with that kind of error, and nothing happens.
	Fail stream.Kind
	// Config answers with a *stream.ConfigError, and nothing happens.
	Config bool
	// Deaf gives the client no answer: it learns after Patience that it does not know
	// (stream.Unclear).
	Deaf bool
	// Late lets a write land that much later; with Deaf it is a ghost. A read is answered
	// that much later.
	Late time.Duration
	// Keep stores only that many of the messages of a write, one or more; 0: all. A scan
	// breaks off behind that many.
	Keep int
	// Stale answers a read from what the stream was when Depose was called, if that was
	// less than ten seconds ago.
	Stale bool
}

// Patience is how long a client waits for an answer.
const Patience = 2 * time.Second

// Client is one connection to the stream. It satisfies the bridge's Stream.
type Client struct {
	s    *Stream
	dead context.Context

	// What it learnt of the settings when it opened the stream, or asked for them;
	// guarded by the stream's lock.
	known Settings
}

// Client makes a connection. After ctx has ended the client is dead, as if its process
// had been killed: its requests have no effect any more.
func (s *Stream) Client(ctx context.Context) *Client {
	c := &Client{s: s, dead: ctx}
	s.with(func() { c.known = s.Settings })
	return c
}

func fail(k stream.Kind, text string) error { return &stream.Error{Kind: k, Err: errors.New(text)} }

// enter begins a request: it says what goes wrong, or why the request cannot be made at
// all.
func (c *Client) enter(op string) (Fault, error) {
	if c.dead.Err() != nil {
		return Fault{}, fail(stream.Unclear, "killed")
	}
	s := c.s
	if s.requests == nil {
		s.requests = map[string]int{}
	}
	s.requests[op]++
	if s.down {
		return Fault{}, fail(stream.Unavailable, "not connected")
	}
	var f Fault
	if s.Faults != nil {
		f = s.Faults(op)
	}
	if f.Config {
		return f, &stream.ConfigError{Stream: "MODEL", Setting: "model", Reason: "refused by the model"}
	}
	if f.Fail != 0 {
		return f, fail(f.Fail, "refused by the model: "+f.Fail.String())
	}
	if s.gone && !strings.HasSuffix(op, "object") && op != "ask" {
		return f, fail(stream.Gone, "the stream is deleted")
	}
	s.expire()
	return f, nil
}

// view is what a server answers reads from.
type view struct {
	msgs    []entry
	lastSeq uint64
	keep    int // a scan breaks off behind that many; 0: it does not
}

// read is one question, answered by the leader or by one that was deposed.
func (c *Client) read(ctx context.Context, op string, f func(v view)) error {
	s := c.s
	s.mu.Lock()
	fault, err := c.enter(op)
	if err == nil && !fault.Deaf && fault.Late > 0 && fault.Late < Patience {
		s.mu.Unlock()
		if err := sleep(ctx, fault.Late); err != nil {
			return err
		}
		s.mu.Lock()
		if c.dead.Err() != nil {
			err = fail(stream.Unclear, "killed")
		}
	}
	if err == nil && !fault.Deaf && fault.Late < Patience {
		if fault.Stale && s.stale != nil && time.Now().Before(s.stale.until) {
			f(view{s.stale.msgs, s.stale.lastSeq, fault.Keep})
		} else {
			f(view{s.msgs, s.lastSeq, fault.Keep})
		}
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	if err == nil {
		return wait(ctx, Patience)
	}
	return err
}

// wait is what a client sees of an answer that never comes.
func wait(ctx context.Context, d time.Duration) error {
	if err := sleep(ctx, d); err != nil {
		return err
	}
	return fail(stream.Unclear, "no answer")
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// newest is the newest message on a subject.
func newest(msgs []entry, subject string) *stream.Stored {
	for i := len(msgs) - 1; i >= 0; i-- {
		if matches(subject, msgs[i].Subject) {
			return clone(&msgs[i])
		}
	}
	return nil
}

// Last is [stream.Stream.Last].
func (c *Client) Last(ctx context.Context) (cur stream.Cursor, m *stream.Stored, err error) {
	err = c.read(ctx, "last", func(v view) {
		cur.Epoch = c.s.epoch
		if m = newest(v.msgs, c.s.Filter); m != nil {
			cur.Seq = m.Seq
		}
	})
	return cur, m, err
}

// At is [stream.Stream.At].
func (c *Client) At(ctx context.Context, seq uint64) (m *stream.Stored, err error) {
	err = c.read(ctx, "at", func(v view) {
		if i, ok := slices.BinarySearchFunc(v.msgs, seq, bySeq); ok && matches(c.s.Filter, v.msgs[i].Subject) {
			m = clone(&v.msgs[i])
		}
	})
	return m, err
}

// LastOn is [stream.Stream.LastOn].
func (c *Client) LastOn(ctx context.Context, subject string) (m *stream.Stored, err error) {
	err = c.read(ctx, "last on", func(v view) { m = newest(v.msgs, subject) })
	return m, err
}

// Next is [stream.Stream.Next].
func (c *Client) Next(ctx context.Context, subject string, seq uint64) (m *stream.Stored, err error) {
	err = c.read(ctx, "next", func(v view) {
		i, _ := slices.BinarySearchFunc(v.msgs, seq, bySeq)
		for ; i < len(v.msgs) && m == nil; i++ {
			if matches(subject, v.msgs[i].Subject) {
				m = clone(&v.msgs[i])
			}
		}
	})
	return m, err
}

// Scan is [stream.Stream.Scan]. A start by time is the first message that is not older;
// what follows it in the stream comes, whatever the clock was put to meanwhile.
func (c *Client) Scan(ctx context.Context, subject string, from stream.Start, until uint64, headersOnly bool,
	f func(*stream.Stored) error) error {
	var found []*stream.Stored
	var broken error
	err := c.read(ctx, "scan", func(v view) {
		begun := from.Time.IsZero()
		for i := range v.msgs {
			m := &v.msgs[i]
			begun = begun || !m.Time.Before(from.Time)
			if begun && m.Seq >= from.Seq && m.Seq <= until && matches(subject, m.Subject) {
				found = append(found, clone(m))
			}
		}
		if v.keep > 0 && v.keep < len(found) {
			found, broken = found[:v.keep], fail(stream.Unavailable, "the reading broke off")
		}
	})
	for _, m := range found {
		if headersOnly {
			m.Data = nil
		}
		if err == nil {
			err = f(m)
		}
	}
	return cmp.Or(err, broken)
}

// Purge is [stream.Stream.Purge].
func (c *Client) Purge(ctx context.Context, subject string, below uint64) error {
	if below <= 1 {
		return nil
	}
	if subject == c.s.Filter || !matches(c.s.Filter, subject) {
		return fail(stream.Wrong, "not a part of the filter: "+subject)
	}
	return c.read(ctx, "purge", func(view) {
		s := c.s
		s.msgs = slices.DeleteFunc(slices.Clone(s.msgs), func(e entry) bool {
			gone := e.Seq < below && matches(subject, e.Subject)
			if gone {
				s.purged = append(s.purged, e)
			}
			return gone
		})
	})
}

// Purged is what clients purged.
func (s *Stream) Purged() (msgs []stream.Stored) {
	s.with(func() {
		for _, e := range s.purged {
			msgs = append(msgs, e.Stored)
		}
	})
	return msgs
}

// Info is [stream.Stream.Info]: it verifies the settings, and takes note of them.
func (c *Client) Info(ctx context.Context) (info stream.Info, err error) {
	var bad error
	err = c.read(ctx, "info", func(v view) {
		s := c.s
		if bad = s.verify(); bad != nil {
			return
		}
		c.known = s.Settings
		info = stream.Info{LastSeq: v.lastSeq, FirstSeq: v.lastSeq + 1, Messages: uint64(len(v.msgs)), MaxAge: s.MaxAge,
			MaxPerSubject: int64(s.MaxPerSubject), Replicas: 3}
		if s.Single {
			info.Replicas = 1
		}
		for i := range v.msgs {
			info.Bytes += uint64(v.msgs[i].size)
		}
		if len(v.msgs) > 0 {
			info.FirstSeq, info.FirstTime = v.msgs[0].Seq, v.msgs[0].Time
		}
	})
	if err == nil {
		err = bad
	}
	return info, err
}

// verify says whether the settings carry the promise, as package stream does.
func (s *Stream) verify() error {
	switch {
	case s.Interest:
		return &stream.ConfigError{Stream: "MODEL", Setting: "retention",
			Reason: "retention is interest: messages that nobody waits for are gone at once"}
	case s.NoFilter && s.Shared:
		return &stream.ConfigError{Stream: "MODEL", Setting: "subjects",
			Reason: "the server is too old for a stream that others use too"}
	}
	return nil
}

// Ask is a request that reads nothing of the stream: it shares the fate of all the
// others. It is for what lives on the same server, a lease say.
func (c *Client) Ask(ctx context.Context) error { return c.read(ctx, "ask", func(view) {}) }

// Append is [stream.Stream.Append]. In a stream of our own the first message behind a
// cursor that was read names the newest message under the filter, and each behind an
// acknowledged one the stream's own sequence; in one that others use too all name the
// newest under the filter. Which of the two it is goes by what the client knows of the
// settings.
func (c *Client) Append(ctx context.Context, after stream.Cursor, msgs []stream.Message) (stream.Cursor, error) {
	s := c.s
	if len(msgs) == 0 {
		return after, nil
	}
	if ctx.Err() != nil {
		return after, context.Cause(ctx)
	}
	s.mu.Lock()
	fault, err := c.enter("append")
	if err != nil {
		s.mu.Unlock()
		return after, err
	}
	for i := range msgs {
		if !c.fits(&msgs[i]) {
			s.mu.Unlock()
			return after, fail(stream.TooLarge, "larger than max_payload, or than the max_msg_size that we know of")
		}
		if !matches(s.Filter, msgs[i].Subject) {
			s.mu.Unlock()
			return after, fail(stream.Wrong, "not under the filter: "+msgs[i].Subject)
		}
	}
	if after.Epoch != s.epoch {
		s.mu.Unlock()
		return after, fail(stream.Refused, "the connection is another one than the stream was read on")
	}
	if fault.Keep > 0 && fault.Keep < len(msgs) {
		msgs, fault.Deaf = msgs[:fault.Keep], true
	}
	copies := make([]stream.Message, len(msgs))
	for i, m := range msgs {
		copies[i] = stream.Message{Subject: m.Subject, Headers: slices.Clone(m.Headers), Data: slices.Clone(m.Data)}
	}
	shared := c.known.Shared
	if fault.Late > 0 {
		age := s.age
		s.mu.Unlock()
		done := make(chan struct{})
		var cur stream.Cursor
		s.writing.Go(func() {
			time.Sleep(fault.Late)
			s.mu.Lock()
			defer s.mu.Unlock()
			defer close(done)
			if s.age != age {
				err = fail(stream.Unclear, "the stream is another one")
				return
			}
			cur, err = s.store(shared, after, copies)
		})
		if !fault.Deaf && fault.Late < Patience {
			select {
			case <-done:
				return cur, err
			case <-ctx.Done():
				return after, context.Cause(ctx)
			}
		}
		return after, wait(ctx, Patience)
	}
	cur, err := s.store(shared, after, copies)
	s.mu.Unlock()
	if fault.Deaf {
		return after, wait(ctx, Patience)
	}
	return cur, err
}

// AppendEach is [stream.Stream.AppendEach]. The source is a chunk ahead of what is known:
// it has given another one by the time that a chunk is seen to have failed. And the last
// message of each chunk goes with the next one, as by fast ingest.
func (c *Client) AppendEach(ctx context.Context, after stream.Cursor, source stream.Source) (stream.Cursor, error) {
	var held []stream.Message
	stored, sent, at := 0, 0, after
	for next, more := after, true; more; {
		var msgs []stream.Message
		if msgs, more = source(stored, at); len(msgs) == 0 {
			more = false
		}
		msgs = append(held, msgs...)
		held = nil
		if n := len(msgs) - 1; more && n >= 0 {
			m := msgs[n]
			held = []stream.Message{{Subject: m.Subject, Headers: slices.Clone(m.Headers), Data: slices.Clone(m.Data)}}
			msgs = msgs[:n]
		}
		stored, at = sent, next
		cur, err := c.Append(ctx, next, msgs)
		if err != nil {
			if more {
				source(stored, at)
			}
			return after, err
		}
		if next, sent = cur, sent+len(msgs); !more {
			return next, nil
		}
	}
	return after, nil
}

// store stores messages one after the other, each if what it names is what is there.
func (s *Stream) store(shared bool, after stream.Cursor, msgs []stream.Message) (stream.Cursor, error) {
	if s.gone {
		return after, fail(stream.Gone, "the stream is deleted")
	}
	for _, m := range msgs {
		s.expire()
		stands := s.lastSeq
		if shared || !after.Acked {
			stands = 0
			if m := newest(s.msgs, s.Filter); m != nil {
				stands = m.Seq
			}
		}
		if stands != after.Seq {
			return after, fail(stream.Refused, "wrong last sequence")
		}
		if s.MaxMsgSize > 0 && messageSize(&m) > s.MaxMsgSize {
			return after, fail(stream.TooLarge, "the stream's max_msg_size is lower")
		}
		after = stream.Cursor{Seq: s.put(m), Acked: true, Epoch: after.Epoch}
	}
	return after, nil
}

func (s *Stream) now() time.Time {
	if s.clock == nil {
		return time.Now()
	}
	return s.clock()
}

func (s *Stream) put(m stream.Message) uint64 {
	s.lastSeq++
	h := map[string][]string{}
	for _, kv := range m.Headers {
		h[kv.Key] = append(h[kv.Key], kv.Value)
	}
	e := entry{Stored: stream.Stored{Seq: s.lastSeq, Subject: m.Subject, Header: h, Data: m.Data, Time: s.now()}, n: len(s.ever)}
	e.size = size(&e.Stored)
	s.ever, s.at = append(s.ever, e.Stored), append(s.at, time.Now())
	if s.Interest {
		return s.lastSeq
	}
	s.msgs = append(s.msgs, e)
	if s.MaxPerSubject > 0 {
		n := 0
		for i := len(s.msgs) - 1; i >= 0; i-- {
			if s.msgs[i].Subject != m.Subject {
				continue
			}
			if n++; n > s.MaxPerSubject {
				s.take(i, i+1)
			}
		}
	}
	s.discard()
	return s.lastSeq
}

// discard enforces the limits on the number of messages and their bytes.
func (s *Stream) discard() {
	if s.MaxMsgs > 0 && len(s.msgs) > s.MaxMsgs {
		s.take(0, len(s.msgs)-s.MaxMsgs)
	}
	if s.MaxBytes > 0 {
		total, n := 0, len(s.msgs)
		for ; n > 0; n-- {
			if total += s.msgs[n-1].size; total > s.MaxBytes {
				break
			}
		}
		s.take(0, min(n, len(s.msgs)-1))
	}
}

// expire enforces the limit on age, by the server's clock.
func (s *Stream) expire() {
	if s.MaxAge == 0 {
		return
	}
	n, oldest := 0, s.now().Add(-s.MaxAge)
	for n < len(s.msgs) && s.msgs[n].Time.Before(oldest) {
		n++
	}
	s.take(0, n)
}

// take removes messages as the limits do.
func (s *Stream) take(from, to int) {
	if from >= to {
		return
	}
	ours := -1 // the newest message that says where the bridge is
	for i := len(s.msgs) - 1; i >= 0 && s.Ours != nil; i-- {
		if s.Ours(&s.msgs[i].Stored) {
			ours = i
			break
		}
	}
	if ours >= from && ours < to {
		s.tails = append(s.tails, time.Now())
	}
	s.aged = append(s.aged, s.msgs[from:to]...)
	s.msgs = slices.Concat(s.msgs[:from], s.msgs[to:])
}

func size(m *stream.Stored) int {
	n := len(m.Subject) + len(m.Data) + 34
	for k, vs := range m.Header {
		for _, v := range vs {
			n += len(k) + len(v) + 4
		}
	}
	return n
}

func messageSize(m *stream.Message) int {
	n := len(m.Data) + len("NATS/1.0\r\n\r\n")
	for _, h := range m.Headers {
		n += len(h.Key) + len(": ") + len(h.Value) + len("\r\n")
	}
	return n
}

// added is what the expectations of a write may need: they are headers too.
const added = 128

// Fits is [stream.Stream.Fits].
func (c *Client) Fits(m *stream.Message) bool {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.fits(m)
}

func (c *Client) fits(m *stream.Message) bool {
	limit := c.s.MaxPayload
	if limit == 0 {
		limit = 1 << 20
	}
	if most := c.known.MaxMsgSize; most > 0 {
		limit = min(limit, most)
	}
	return messageSize(m)+added <= limit
}

// PutObject is [stream.Stream.PutObject].
func (c *Client) PutObject(ctx context.Context, name string, data []byte) error {
	tooLarge := false
	err := c.read(ctx, "put object", func(view) {
		if tooLarge = c.s.MaxObject > 0 && len(data) > c.s.MaxObject; tooLarge {
			return
		}
		if c.s.objects == nil {
			c.s.objects = map[string][]byte{}
		}
		c.s.objects[name] = slices.Clone(data)
	})
	if tooLarge {
		return fail(stream.TooLarge, "more than the store may ever hold")
	}
	return err
}

// Object is [stream.Stream.Object].
func (c *Client) Object(ctx context.Context, name string) (data []byte, err error) {
	err = c.read(ctx, "object", func(view) { data = slices.Clone(c.s.objects[name]) })
	return data, err
}

// Erase is [stream.Stream.Erase].
func (c *Client) Erase(ctx context.Context, epoch, seq uint64) error {
	return c.erase(ctx, "erase", epoch, func() {
		if i, ok := slices.BinarySearchFunc(c.s.msgs, seq, bySeq); ok {
			c.s.erased = append(c.s.erased, c.s.msgs[i])
			c.s.msgs = slices.Concat(c.s.msgs[:i], c.s.msgs[i+1:])
		}
	})
}

// EraseObject is [stream.Stream.EraseObject].
func (c *Client) EraseObject(ctx context.Context, epoch uint64, name string) error {
	return c.erase(ctx, "erase object", epoch, func() { delete(c.s.objects, name) })
}

// erase does something now, or later: then the client may have given up by the time.
func (c *Client) erase(ctx context.Context, op string, epoch uint64, f func()) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	fault, err := c.enter(op)
	switch {
	case err != nil:
		return err
	case epoch != s.epoch:
		return fail(stream.Refused, "the connection is another one than it was read on")
	}
	answered := !fault.Deaf && fault.Late < Patience
	if fault.Late == 0 {
		f()
	} else {
		age := s.age
		s.writing.Go(func() {
			time.Sleep(fault.Late)
			s.with(func() {
				if s.age == age { // else it has died on its way
					f()
				}
			})
		})
	}
	s.mu.Unlock()
	defer s.mu.Lock()
	if answered {
		return sleep(ctx, fault.Late)
	}
	return wait(ctx, Patience)
}

// Dedicated is [stream.Stream.Dedicated].
func (c *Client) Dedicated() bool {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return !c.known.Shared
}

// StepDown is [stream.Stream.StepDown]; the model has one path only.
func (c *Client) StepDown() {}

// Epoch is [stream.Stream.Epoch].
func (c *Client) Epoch() uint64 {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.s.epoch
}

// Edited is [stream.Stream.Edited].
func (c *Client) Edited() uint64 {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.s.epoch + c.s.edits
}

// Open is what an open does: it makes the stream again if it was deleted, and verifies
// it.
func (c *Client) Open(context.Context) error {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down || c.dead.Err() != nil {
		return fail(stream.Unavailable, "not connected")
	}
	if s.gone {
		s.gone, s.msgs, s.lastSeq = false, nil, 0
		s.Settings = Settings{} // one that we make is our own, and keeps long enough
	}
	if err := s.verify(); err != nil {
		return err
	}
	c.known = s.Settings
	return nil
}

// Down cuts all clients off; Up lets them come back, as after a reconnect.
func (s *Stream) Down() { s.with(func() { s.down = true }) }

// Gone says whether the stream was deleted, and not made again yet.
func (s *Stream) Gone() (gone bool) {
	s.with(func() { gone = s.gone })
	return gone
}

// Up ends Down. Where there was none, it does nothing: nobody reconnects.
func (s *Stream) Up() {
	s.with(func() {
		if s.down {
			s.down = false
			s.epoch++
		}
	})
}

// Reconnect lets all clients lose their connection and find it again.
func (s *Stream) Reconnect() { s.with(func() { s.epoch++ }) }

// Edit changes the settings under way, as an operator does. The server tells of it,
// unless Silent.
func (s *Stream) Edit(change func(*Settings)) {
	s.with(func() {
		change(&s.Settings)
		if !s.Silent {
			s.edits++
		}
		if s.MaxPerSubject > 0 {
			seen := map[string]int{}
			for i := len(s.msgs) - 1; i >= 0; i-- {
				subject := s.msgs[i].Subject
				if seen[subject]++; seen[subject] > s.MaxPerSubject {
					s.take(i, i+1)
				}
			}
		}
		s.expire()
		s.discard()
	})
}

// SetClock gives the server a clock of its own.
func (s *Stream) SetClock(now func() time.Time) { s.with(func() { s.clock = now }) }

// SetFaults sets Faults while clients are at work.
func (s *Stream) SetFaults(f func(op string) Fault) { s.with(func() { s.Faults = f }) }

// Publish stores a message of somebody else, without any expectation. What the stream
// does not capture is nobody's.
func (s *Stream) Publish(subject string, data []byte) {
	s.with(func() {
		if !s.gone && (s.Shared || matches(s.Filter, subject)) {
			s.expire()
			s.put(stream.Message{Subject: subject, Data: data})
		}
	})
}

// Depose remembers the present for reads with Fault.Stale: the leader of now answers on
// for a while, though another was elected.
func (s *Stream) Depose() {
	s.with(func() { s.stale = &snapshot{slices.Clone(s.msgs), s.lastSeq, time.Now().Add(deposedFor)} })
}

// Restore takes the newest n messages away and their sequences with them, as a backup or
// a power failure does. Writes on their way die with the server, and clients have to
// connect again; no deposed leader is left to answer. (Were it not so, a sequence from
// before could fit what came after, by chance: no number protects from that.)
func (s *Stream) Restore(n int) {
	s.with(func() {
		s.age++
		s.stale = nil
		s.epoch++
		n = min(n, len(s.msgs))
		s.msgs = s.msgs[: len(s.msgs)-n : len(s.msgs)-n]
		s.lastSeq = 0
		if len(s.msgs) > 0 {
			s.lastSeq = s.msgs[len(s.msgs)-1].Seq
		}
	})
}

// Purge removes all messages; the sequence goes on.
func (s *Stream) Purge() { s.with(func() { s.removed, s.msgs = append(s.removed, s.msgs...), nil }) }

// Remove deletes the newest n messages under the filter one by one; the sequence goes on.
func (s *Stream) Remove(n int) {
	s.with(func() {
		for i := len(s.msgs) - 1; i >= 0 && n > 0; i-- {
			if matches(s.Filter, s.msgs[i].Subject) {
				s.removed = append(s.removed, s.msgs[i])
				s.msgs = slices.Concat(s.msgs[:i], s.msgs[i+1:])
				n--
			}
		}
	})
}

// Age drops the oldest n messages, as the stream's limits do, but never the newest of
// all.
func (s *Stream) Age(n int) {
	s.with(func() { s.take(0, max(0, min(n, len(s.msgs)-1))) })
}

// Aged is what the limits, and Age, took.
func (s *Stream) Aged() (msgs []stream.Stored) {
	s.with(func() { msgs = stored(s.aged) })
	return msgs
}

// TailsTaken says when the limits took the newest message of ours, by everybody's clock: a
// stream that lost its tail by itself.
func (s *Stream) TailsTaken() (at []time.Time) {
	s.with(func() { at = slices.Clone(s.tails) })
	return at
}

// Delete deletes the stream, with what is on its way to it, as in Restore.
func (s *Stream) Delete() {
	s.with(func() {
		s.removed = append(s.removed, s.msgs...)
		s.gone, s.msgs, s.lastSeq, s.age, s.epoch, s.stale = true, nil, 0, s.age+1, s.epoch+1, nil
	})
}

// Messages is what the stream holds.
func (s *Stream) Messages() (msgs []stream.Stored) {
	s.with(func() { msgs = stored(s.msgs) })
	return msgs
}

func stored(list []entry) []stream.Stored {
	msgs := make([]stream.Stored, len(list))
	for i := range list {
		msgs[i] = list[i].Stored
	}
	return msgs
}

// Ever is everything that it ever stored, what it lost again included, but for the first
// n.
func (s *Stream) Ever(n int) (msgs []stream.Stored) {
	s.with(func() { msgs = s.ever[n:len(s.ever):len(s.ever)] })
	return msgs
}

// Fate is what became of a message.
type Fate uint8

const (
	Lost    Fate = iota // the stream's newest messages went, or it was never kept
	Held                // it is there
	Taken               // by the limits
	Removed             // by somebody's hand: deleted, purged, or gone with the whole stream
	Erased              // by a client
)

// Fates says what became of each message of Ever.
func (s *Stream) Fates() (fates []Fate) {
	s.with(func() {
		fates = make([]Fate, len(s.ever))
		for _, e := range s.removed {
			fates[e.n] = Removed
		}
		for _, e := range s.erased {
			fates[e.n] = Erased
		}
		for _, e := range slices.Concat(s.aged, s.purged) {
			fates[e.n] = Taken
		}
		for _, e := range s.msgs {
			fates[e.n] = Held
		}
	})
	return fates
}

// When says when each message of Ever was stored, by everybody's clock and not by the
// server's.
func (s *Stream) When() (at []time.Time) {
	s.with(func() { at = s.at[:len(s.at):len(s.at)] })
	return at
}

// Objects is what the object store holds.
func (s *Stream) Objects() (objects map[string][]byte) {
	s.with(func() { objects = maps.Clone(s.objects) })
	return objects
}

// Requests counts the requests of a kind that clients have made: last, at, last on, next,
// scan, info, append, purge, put object, object, erase, erase object, ask.
func (s *Stream) Requests(op string) (n int) {
	s.with(func() { n = s.requests[op] })
	return n
}

// Settle waits for the writes that are still to land.
func (s *Stream) Settle() { s.writing.Wait() }

func (s *Stream) with(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// Coin is a helper for Faults: true with that chance.
func Coin(r *rand.Rand, chance float64) bool { return r.Float64() < chance }

func clone(e *entry) *stream.Stored {
	m := e.Stored
	m.Data = slices.Clone(m.Data)
	return &m
}

func bySeq(m entry, seq uint64) int {
	switch {
	case m.Seq < seq:
		return -1
	case m.Seq > seq:
		return 1
	}
	return 0
}

// matches says whether a subject is covered by a filter, which may have the wildcards "*"
// for a token and ">" for what is left.
func matches(filter, subject string) bool {
	for {
		want, filters, more := strings.Cut(filter, ".")
		token, tokens, further := strings.Cut(subject, ".")
		switch {
		case want == ">":
			return true
		case want != "*" && want != token, more != further:
			return false
		case !more:
			return true
		}
		filter, subject = filters, tokens
	}
}
