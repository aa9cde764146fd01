// Package model is the KV bucket of package fleet in memory, for simulations in virtual
// time: keys with revisions that expire, compare-and-swap, watches. And it can do what a
// real one does on its worst day: a write is done and never answered, or done seconds after
// it was given up; a read comes from a leader that was deposed; a watch is late, stands
// still or breaks off; the connection is cut; the bucket is purged or deleted; somebody
// else writes to it.
//
// What it does on good days is held to a real nats-server by fleet/contract_test.go, which
// runs one list of expectations on both.
package model

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"zulip-nats/fleet"
	"zulip-nats/stream"
)

// Patience is how long a client waits for an answer.
const Patience = 2 * time.Second

// Bucket is one bucket for any number of clients. The zero value is empty, and has no bad
// day.
type Bucket struct {
	// Faults says what goes wrong with a request; nil: nothing. op is ensure, write, delete,
	// read or watch. It is called with the lock held; SetFaults changes it under way.
	Faults func(client, op, key string) Fault
	// Delay is how much later a change comes to a client by its watch; nil: at once. It is
	// called with the lock held; SetDelay changes it under way.
	Delay func(client string) time.Duration
	// Changed is called for each change of a key, with the lock held; nil: nobody wants to
	// know.
	Changed func(key string, e fleet.Entry)

	mu       sync.Mutex
	seq      uint64
	keys     map[string]*item
	watches  map[*watch]bool
	clients  []*Client
	gone     bool
	requests map[string]int // by operation
}

type item struct {
	now, before fleet.Entry
	expiry      *time.Timer
}

// Fault is what goes wrong with one request. The zero value: nothing.
type Fault struct {
	// Fail answers with that kind of error, and nothing happens.
	Fail stream.Kind
	// Lost never comes to the bucket; the client learns after Patience that it does not know.
	Lost bool
	// Deaf is done, and the client gets no answer.
	Deaf bool
	// Late is done that much later; from Patience on the client has given it up by then.
	Late time.Duration
	// Stale answers a read with what the key held before.
	Stale bool
}

// Draw is a fault by chance, of any kind that a request of that op may have.
func Draw(luck *rand.Rand, op string) (f Fault) {
	switch luck.IntN(6) {
	case 0:
		f.Lost = true
	case 1:
		f.Deaf = true
	case 2:
		f.Late = time.Duration(luck.IntN(6000)) * time.Millisecond
	case 3:
		f.Stale = true
	case 4:
		f.Fail = stream.Unavailable
	case 5:
		if op == "write" || op == "delete" {
			f.Fail = stream.Refused
		}
	}
	return f
}

// Client is one connection to the bucket. It is a [fleet.Store].
type Client struct {
	b    *Bucket
	name string
	dead context.Context
	gate func()

	// Guarded by the bucket's lock.
	cut     bool
	stalled bool
	woken   chan struct{} // closed when stalled ends
}

// Client makes a connection. After ctx has ended the client is dead, as if its process had
// been killed: its requests have no effect any more. gate may be nil; it is passed before
// each request and behind each answer, and keeps a process that is paused waiting.
func (b *Bucket) Client(ctx context.Context, name string, gate func()) *Client {
	if gate == nil {
		gate = func() {}
	}
	c := &Client{b: b, name: name, dead: ctx, gate: gate, woken: make(chan struct{})}
	close(c.woken)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clients = append(b.clients, c)
	context.AfterFunc(ctx, func() { c.Cut(true) })
	return c
}

func fail(k stream.Kind, text string) error { return &stream.Error{Kind: k, Err: errors.New(text)} }

// Cut cuts the connection, or lets it come back. Watches end.
func (c *Client) Cut(cut bool) {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	c.cut = cut || c.dead.Err() != nil
	for w := range c.b.watches {
		if c.cut && w.c == c {
			w.end(fail(stream.Unavailable, "the connection is down"))
		}
	}
}

// Stall lets the client's watches stand still, or go on.
func (c *Client) Stall(stalled bool) {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	if stalled == c.stalled {
		return
	}
	if c.stalled = stalled; stalled {
		c.woken = make(chan struct{})
	} else {
		close(c.woken)
	}
}

// Lose breaks the client's watches off, as where a message was lost on the way.
func (c *Client) Lose() {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	for w := range c.b.watches {
		if w.c == c {
			w.end(fail(stream.Unavailable, "messages were lost on the way from the server"))
		}
	}
}

// RoundTrip is no time at all.
func (c *Client) RoundTrip() time.Duration { return 0 }

// ask is one request. do is called with the lock held, when the request comes to the
// bucket; its error is the answer.
func (c *Client) ask(ctx context.Context, op, key string, do func(Fault) error) error {
	c.gate()
	defer c.gate()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	b := c.b
	b.mu.Lock()
	if b.requests == nil {
		b.requests = map[string]int{}
	}
	b.requests[op]++
	if c.cut || c.dead.Err() != nil {
		b.mu.Unlock()
		return fail(stream.Unavailable, "the connection is down")
	}
	var f Fault
	if b.Faults != nil {
		f = b.Faults(c.name, op, key)
	}
	switch {
	case f.Fail != 0:
		b.mu.Unlock()
		return fail(f.Fail, "refused by the model: "+f.Fail.String())
	case f.Lost:
		b.mu.Unlock()
		return wait(ctx)
	case f.Late > 0:
		b.mu.Unlock()
		done := make(chan error, 1)
		time.AfterFunc(f.Late, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			done <- b.do(op, f, do)
		})
		timer := time.NewTimer(Patience)
		defer timer.Stop()
		select {
		case err := <-done:
			if f.Deaf {
				return wait(ctx)
			}
			return err
		case <-timer.C:
			return fail(stream.Unavailable, "no answer in time")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	err := b.do(op, f, do)
	b.mu.Unlock()
	if f.Deaf {
		return wait(ctx)
	}
	return err
}

func (b *Bucket) do(op string, f Fault, do func(Fault) error) error {
	if b.gone && op != "ensure" {
		return fail(stream.Unavailable, "nobody answers")
	}
	return do(f)
}

// wait is what a client sees of an answer that never comes.
func wait(ctx context.Context) error {
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	select {
	case <-timer.C:
		return fail(stream.Unavailable, "no answer in time")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Ensure is [fleet.Store.Ensure].
func (c *Client) Ensure(ctx context.Context, _ int) error {
	return c.ask(ctx, "ensure", "", func(Fault) error {
		c.b.gone = false
		return nil
	})
}

// Write is [fleet.Store.Write].
func (c *Client) Write(ctx context.Context, key string, value []byte, revision uint64, life time.Duration) (uint64,
	error) {
	return c.change(ctx, "write", key, bytes.Clone(value), revision, life)
}

// Delete is [fleet.Store.Delete]. The mark stays until [Bucket.Forget].
func (c *Client) Delete(ctx context.Context, key string, revision uint64) (uint64, error) {
	return c.change(ctx, "delete", key, nil, revision, 0)
}

func (c *Client) change(ctx context.Context, op, key string, value []byte, revision uint64, life time.Duration) (
	uint64, error) {
	var now uint64 // of a late one: written when nobody reads it any more
	err := c.ask(ctx, op, key, func(Fault) error {
		if has := c.b.keys[key]; has != nil && has.now.Revision != revision || has == nil && revision != 0 {
			return fail(stream.Refused, "wrong last sequence")
		}
		now = c.b.put(key, value, life)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return now, nil
}

// put writes a key, and tells those who watch.
func (b *Bucket) put(key string, value []byte, life time.Duration) uint64 {
	b.seq++
	if b.keys == nil {
		b.keys = map[string]*item{}
	}
	has := b.keys[key]
	if has == nil {
		has = &item{}
		b.keys[key] = has
	}
	if has.expiry != nil {
		has.expiry.Stop()
	}
	has.before, has.now, has.expiry = has.now, fleet.Entry{Revision: b.seq, Value: value}, nil
	if life > 0 {
		revision := b.seq
		has.expiry = time.AfterFunc(life, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			if now := b.keys[key]; now == has && now.now.Revision == revision {
				b.put(key, nil, 0)
			}
		})
	}
	if b.Changed != nil {
		b.Changed(key, has.now)
	}
	for w := range b.watches {
		w.add(fleet.Update{Key: key, Entry: has.now})
	}
	return b.seq
}

// Read is [fleet.Store.Read].
func (c *Client) Read(ctx context.Context, key string) (fleet.Entry, error) {
	var e fleet.Entry
	err := c.ask(ctx, "read", key, func(f Fault) error {
		if has := c.b.keys[key]; has != nil && f.Stale {
			e = has.before
		} else if has != nil {
			e = has.now
		}
		return nil
	})
	if err != nil {
		return fleet.Entry{}, err
	}
	return e, nil
}

// Watch is [fleet.Store.Watch].
func (c *Client) Watch(ctx context.Context) (<-chan fleet.Update, error) {
	w := &watch{c: c, wake: make(chan struct{}, 1), out: make(chan fleet.Update)}
	if err := c.ask(ctx, "watch", "", func(Fault) error {
		var all []fleet.Update
		for key, has := range c.b.keys {
			all = append(all, fleet.Update{Key: key, Entry: has.now})
		}
		slices.SortFunc(all, func(a, b fleet.Update) int { return cmp.Compare(a.Revision, b.Revision) })
		for _, u := range all {
			w.add(u)
		}
		if c.b.watches == nil {
			c.b.watches = map[*watch]bool{}
		}
		c.b.watches[w] = true
		return nil
	}); err != nil {
		return nil, err
	}
	go w.run(ctx)
	return w.out, nil
}

// watch is one watch. Its queue is guarded by the bucket's lock.
type watch struct {
	c     *Client
	queue []late
	ended bool
	wake  chan struct{} // holds one
	out   chan fleet.Update
}

type late struct {
	fleet.Update
	due time.Time
}

func (w *watch) add(u fleet.Update) {
	if w.ended {
		return
	}
	due := time.Now()
	if d := w.c.b.Delay; d != nil {
		due = due.Add(d(w.c.name))
	}
	if n := len(w.queue); n > 0 && due.Before(w.queue[n-1].due) {
		due = w.queue[n-1].due // order is kept
	}
	w.queue = append(w.queue, late{u, due})
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// end breaks the watch off. What is on its way comes no more.
func (w *watch) end(err error) {
	if w.ended {
		return
	}
	w.queue = nil
	w.add(fleet.Update{Err: err})
	w.ended = true
}

func (w *watch) run(ctx context.Context) {
	defer close(w.out)
	b := w.c.b
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.watches, w)
	}()
	for {
		b.mu.Lock()
		var next *late
		if len(w.queue) > 0 {
			n := w.queue[0]
			next = &n
		}
		woken := w.c.woken
		b.mu.Unlock()
		if next == nil {
			select {
			case <-w.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		timer := time.NewTimer(time.Until(next.due))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		if next.Err == nil {
			select {
			case <-woken:
			case <-ctx.Done():
				return
			}
		}
		w.c.gate()
		b.mu.Lock()
		if w.ended && next.Err == nil { // it has broken off meanwhile
			b.mu.Unlock()
			continue
		}
		w.queue = w.queue[1:]
		b.mu.Unlock()
		select {
		case w.out <- next.Update:
		case <-ctx.Done():
			return
		}
		if next.Err != nil {
			return
		}
	}
}

// SetFaults changes Faults.
func (b *Bucket) SetFaults(f func(client, op, key string) Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Faults = f
}

// SetDelay changes Delay.
func (b *Bucket) SetDelay(f func(client string) time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Delay = f
}

// Put writes a key by somebody else's hand; nil deletes it.
func (b *Bucket) Put(key string, value []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.put(key, value, 0)
}

// Purge takes all keys away, and nobody is told.
func (b *Bucket) Purge() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, has := range b.keys {
		if has.expiry != nil {
			has.expiry.Stop()
		}
	}
	b.keys = nil
}

// Forget takes the marks of deleted and expired keys away, as the bucket does after a while,
// and nobody is told.
func (b *Bucket) Forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.keys, func(_ string, has *item) bool { return has.now.Value == nil })
}

// Remove deletes the bucket; whoever ensures that it is there makes it again.
func (b *Bucket) Remove() {
	b.Purge()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone, b.seq = true, 0
	for w := range b.watches {
		w.end(fail(stream.Unavailable, "the consumer is deleted"))
	}
}

// Keys are those that hold something, whose names begin so.
func (b *Bucket) Keys(prefix string) map[string]fleet.Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := map[string]fleet.Entry{}
	for key, has := range b.keys {
		if has.now.Value != nil && strings.HasPrefix(key, prefix) {
			all[key] = has.now
		}
	}
	return all
}

// Requests is how many requests of an operation there were.
func (b *Bucket) Requests(op string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.requests[op]
}
