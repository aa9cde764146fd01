// Package model is a JetStream stream in memory, for simulations of the bridge in virtual time: it does what package stream promises, and it
// can do everything that a real stream does on its worst day. A write may be stored and never answered, or be stored seconds after it was
// given up; a read may come from a leader that was deposed; a stream may be deleted, purged, restored from a backup or lose its tail.
//
// What it does on good days is held to a real nats-server by contract_test.go, which runs one list of expectations on both.
package model

import (
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

// Stream is one stream for any number of clients. The zero value is empty, takes everything under Filter, and has no bad day.
type Stream struct {
	// Filter is what the stream collects: zulip.<realm>.>.
	Filter string
	// MaxPayload is how many bytes a message may have, headers included. Zero: 1 MiB.
	MaxPayload int
	// Faults says what goes wrong with a request; nil: nothing. It is called before each request, with the lock held.
	Faults func(op string) Fault

	mu      sync.Mutex
	msgs    []stream.Stored // in order of their sequences
	lastSeq uint64
	gone    bool
	epoch   uint64
	age     int // how often it began anew: what was on its way to the stream before does not reach the new one
	down    bool
	stale   *snapshot // what a deposed leader still answers
	ever    []stream.Stored
	aged    []stream.Stored
	objects map[string][]byte
	writing sync.WaitGroup
}

type snapshot struct {
	msgs    []stream.Stored
	lastSeq uint64
}

// Fault is what goes wrong with one request. The zero value: nothing.
type Fault struct {
	// Fail answers with that kind of error, and nothing happens.
	Fail stream.Kind
	// Deaf gives the client no answer: it learns after Patience that it does not know (stream.Unclear).
	Deaf bool
	// Late lets a write land that much later; with Deaf it is a ghost.
	Late time.Duration
	// Keep stores only that many of the messages of a write, one or more; 0: all.
	Keep int
	// Stale answers a read from what the stream was when Depose was called.
	Stale bool
}

// Patience is how long a client waits for an answer.
const Patience = 2 * time.Second

// Client is one connection to the stream. It satisfies the bridge's Stream.
type Client struct {
	s    *Stream
	dead context.Context
}

// Client makes a connection. After ctx has ended the client is dead, as if its process had been killed: its requests have no effect any more.
func (s *Stream) Client(ctx context.Context) *Client { return &Client{s: s, dead: ctx} }

func fail(k stream.Kind, text string) error { return &stream.Error{Kind: k, Err: errors.New(text)} }

// enter begins a request: it says what goes wrong, or why the request cannot be made at all.
func (c *Client) enter(op string) (Fault, error) {
	if c.dead.Err() != nil {
		return Fault{}, fail(stream.Unclear, "killed")
	}
	s := c.s
	if s.down {
		return Fault{}, fail(stream.Unavailable, "not connected")
	}
	var f Fault
	if s.Faults != nil {
		f = s.Faults(op)
	}
	if f.Fail != 0 {
		return f, fail(f.Fail, "refused by the model: "+f.Fail.String())
	}
	if s.gone {
		return f, fail(stream.Gone, "the stream is deleted")
	}
	return f, nil
}

func (c *Client) read(ctx context.Context, op string, f func(msgs []stream.Stored, lastSeq uint64)) error {
	c.s.mu.Lock()
	fault, err := c.enter(op)
	if err == nil && !fault.Deaf {
		if fault.Stale && c.s.stale != nil {
			f(c.s.stale.msgs, c.s.stale.lastSeq)
		} else {
			f(c.s.msgs, c.s.lastSeq)
		}
	}
	c.s.mu.Unlock()
	if err == nil && fault.Deaf {
		return wait(ctx, Patience)
	}
	return err
}

// wait is what a client sees of an answer that never comes.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return fail(stream.Unclear, "no answer")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Last is [stream.Stream.Last].
func (c *Client) Last(ctx context.Context) (cur stream.Cursor, m *stream.Stored, err error) {
	err = c.read(ctx, "last", func(msgs []stream.Stored, _ uint64) {
		if len(msgs) > 0 {
			m = clone(msgs[len(msgs)-1])
			cur.Seq = m.Seq
		}
	})
	return cur, m, err
}

// At is [stream.Stream.At].
func (c *Client) At(ctx context.Context, seq uint64) (m *stream.Stored, err error) {
	err = c.read(ctx, "at", func(msgs []stream.Stored, _ uint64) {
		if i, ok := slices.BinarySearchFunc(msgs, seq, bySeq); ok {
			m = clone(msgs[i])
		}
	})
	return m, err
}

// LastOn is [stream.Stream.LastOn].
func (c *Client) LastOn(ctx context.Context, subject string) (m *stream.Stored, err error) {
	err = c.read(ctx, "last on", func(msgs []stream.Stored, _ uint64) {
		for i := len(msgs) - 1; i >= 0 && m == nil; i-- {
			if matches(subject, msgs[i].Subject) {
				m = clone(msgs[i])
			}
		}
	})
	return m, err
}

// Scan is [stream.Stream.Scan].
func (c *Client) Scan(ctx context.Context, subject string, from stream.Start, until uint64, headersOnly bool, f func(*stream.Stored) error) error {
	var found []*stream.Stored
	err := c.read(ctx, "scan", func(msgs []stream.Stored, _ uint64) {
		for _, m := range msgs {
			if m.Seq >= from.Seq && m.Seq <= until && !m.Time.Before(from.Time) && matches(subject, m.Subject) {
				found = append(found, clone(m))
			}
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
	return err
}

// Info is [stream.Stream.Info].
func (c *Client) Info(ctx context.Context) (info stream.Info, err error) {
	err = c.read(ctx, "info", func(msgs []stream.Stored, lastSeq uint64) {
		info.LastSeq, info.FirstSeq, info.Messages = lastSeq, lastSeq+1, uint64(len(msgs))
		if len(msgs) > 0 {
			info.FirstSeq, info.FirstTime = msgs[0].Seq, msgs[0].Time
		}
	})
	return info, err
}

// Append is [stream.Stream.Append]: with a cursor that was read the first message names it, and each message after an acknowledged one
// names the sequence of that one.
func (c *Client) Append(ctx context.Context, after stream.Cursor, msgs []stream.Message) (stream.Cursor, error) {
	s := c.s
	s.mu.Lock()
	fault, err := c.enter("append")
	if err != nil {
		s.mu.Unlock()
		return after, err
	}
	for i := range msgs {
		if !c.Fits(&msgs[i]) {
			s.mu.Unlock()
			return after, fail(stream.TooLarge, "larger than max_payload")
		}
	}
	if fault.Keep > 0 && fault.Keep < len(msgs) {
		msgs, fault.Deaf = msgs[:fault.Keep], true
	}
	copies := make([]stream.Message, len(msgs))
	for i, m := range msgs {
		copies[i] = stream.Message{Subject: m.Subject, Headers: slices.Clone(m.Headers), Data: slices.Clone(m.Data)}
	}
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
			cur, err = s.store(after, copies)
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
	cur, err := s.store(after, copies)
	s.mu.Unlock()
	if fault.Deaf {
		return after, wait(ctx, Patience)
	}
	return cur, err
}

func (s *Stream) store(after stream.Cursor, msgs []stream.Message) (stream.Cursor, error) {
	if s.gone {
		return after, fail(stream.Gone, "the stream is deleted")
	}
	for _, m := range msgs {
		last := s.lastSeq
		if !after.Acked {
			last = 0
			if len(s.msgs) > 0 {
				last = s.msgs[len(s.msgs)-1].Seq
			}
		}
		if last != after.Seq {
			return after, fail(stream.Refused, "wrong last sequence")
		}
		after = stream.Cursor{Seq: s.put(m), Acked: true}
	}
	return after, nil
}

func (s *Stream) put(m stream.Message) uint64 {
	s.lastSeq++
	h := map[string][]string{}
	for _, kv := range m.Headers {
		h[kv.Key] = append(h[kv.Key], kv.Value)
	}
	stored := stream.Stored{Seq: s.lastSeq, Subject: m.Subject, Header: h, Data: m.Data, Time: time.Now()}
	s.msgs = append(s.msgs, stored)
	s.ever = append(s.ever, stored)
	return s.lastSeq
}

// Fits is [stream.Stream.Fits].
func (c *Client) Fits(m *stream.Message) bool {
	size := len(m.Data) + len("NATS/1.0\r\n\r\n")
	for _, h := range m.Headers {
		size += len(h.Key) + len(": ") + len(h.Value) + len("\r\n")
	}
	limit := c.s.MaxPayload
	if limit == 0 {
		limit = 1 << 20
	}
	return size+128 <= limit // the expectations are headers too
}

// PutObject is [stream.Stream.PutObject].
func (c *Client) PutObject(ctx context.Context, name string, data []byte) error {
	return c.read(ctx, "put object", func([]stream.Stored, uint64) {
		if c.s.objects == nil {
			c.s.objects = map[string][]byte{}
		}
		c.s.objects[name] = slices.Clone(data)
	})
}

// Dedicated is [stream.Stream.Dedicated].
func (c *Client) Dedicated() bool { return true }

// StepDown is [stream.Stream.StepDown]; the model has one path only.
func (c *Client) StepDown() {}

// Epoch is [stream.Stream.Epoch].
func (c *Client) Epoch() uint64 {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.s.epoch
}

// Open is what an open does: it makes the stream again if it was deleted.
func (c *Client) Open(ctx context.Context) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.down || c.dead.Err() != nil {
		return fail(stream.Unavailable, "not connected")
	}
	if c.s.gone {
		c.s.gone, c.s.msgs, c.s.lastSeq = false, nil, 0
	}
	return nil
}

// Down cuts all clients off; Up lets them come back, as after a reconnect.
func (s *Stream) Down() { s.with(func() { s.down = true }) }

// Up ends Down.
func (s *Stream) Up() { s.with(func() { s.down = false; s.epoch++ }) }

// Publish stores a message of somebody else, without any expectation.
func (s *Stream) Publish(subject string, data []byte) {
	s.with(func() { s.put(stream.Message{Subject: subject, Data: data}) })
}

// Depose remembers the present for reads with Fault.Stale: the leader of now answers on, though another was elected.
func (s *Stream) Depose() {
	s.with(func() { s.stale = &snapshot{slices.Clone(s.msgs), s.lastSeq} })
}

// Restore takes the newest n messages away and their sequences with them, as a backup or a power failure does. Writes on their way die with
// the server, and clients have to connect again. (Were it not so, a sequence from before could fit what came after, by chance: no number
// protects from that.)
func (s *Stream) Restore(n int) {
	s.with(func() {
		s.age++
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
func (s *Stream) Purge() { s.with(func() { s.msgs = nil }) }

// Remove deletes the newest n messages one by one; the sequence goes on.
func (s *Stream) Remove(n int) {
	s.with(func() { s.msgs = slices.Clone(s.msgs[:max(0, len(s.msgs)-n)]) })
}

// Age drops the oldest n messages, as the stream's limits do, but never the newest of all.
func (s *Stream) Age(n int) {
	s.with(func() {
		n = max(0, min(n, len(s.msgs)-1))
		s.aged = append(s.aged, s.msgs[:n]...)
		s.msgs = slices.Clone(s.msgs[n:])
	})
}

// Aged is what Age dropped.
func (s *Stream) Aged() (msgs []stream.Stored) {
	s.with(func() { msgs = slices.Clone(s.aged) })
	return msgs
}

// Delete deletes the stream; likewise.
func (s *Stream) Delete() {
	s.with(func() { s.gone, s.msgs, s.lastSeq, s.age, s.epoch = true, nil, 0, s.age+1, s.epoch+1 })
}

// Messages is what the stream holds.
func (s *Stream) Messages() (msgs []stream.Stored) {
	s.with(func() { msgs = slices.Clone(s.msgs) })
	return msgs
}

// Ever is everything that it ever stored, what it lost again included, but for the first n.
func (s *Stream) Ever(n int) (msgs []stream.Stored) {
	s.with(func() { msgs = s.ever[n:len(s.ever):len(s.ever)] })
	return msgs
}

// Objects is what the object store holds.
func (s *Stream) Objects() (objects map[string][]byte) {
	s.with(func() { objects = maps.Clone(s.objects) })
	return objects
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

func clone(m stream.Stored) *stream.Stored {
	m.Data = slices.Clone(m.Data)
	return &m
}

func bySeq(m stream.Stored, seq uint64) int {
	switch {
	case m.Seq < seq:
		return -1
	case m.Seq > seq:
		return 1
	}
	return 0
}

// matches says whether a subject is covered by a filter that may end with the wildcard ">" or "*".
func matches(filter, subject string) bool {
	if prefix, ok := strings.CutSuffix(filter, "*"); ok {
		return strings.HasPrefix(subject, prefix) && !strings.Contains(subject[len(prefix):], ".")
	}
	if prefix, ok := strings.CutSuffix(filter, ">"); ok {
		return strings.HasPrefix(subject, prefix)
	}
	return filter == subject
}
