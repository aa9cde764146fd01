package zulipsim

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options is what a queue was registered with.
type Options struct {
	EventTypes       []string // nil: all
	FetchEventTypes  []string // nil: all
	Narrow           [][]string
	ApplyMarkdown    bool
	ClientGravatar   bool
	SlimPresence     bool
	AllPublicStreams bool
	// IncludeSubscribers shapes the state, and no event.
	IncludeSubscribers bool
	Capabilities       map[string]bool
	Client             string // the client's name, from its User-Agent
}

// queue is one event queue: what zerver/tornado/event_queue.py calls a ClientDescriptor
// and its EventQueue.
type queue struct {
	id      string
	account *Account
	opts    Options
	life    time.Duration
	created time.Time
	// connected is the idle clock: set when the queue is made and when a poll begins to
	// wait, and by nothing else.
	connected time.Time

	// entries holds every event that became part of the queue, acknowledged ones (before
	// head) too unless the server forgets; ids rise. Answers read it without the lock: an
	// entry's id and bytes never change, and what must be rearranged is copied.
	entries []entry
	head    int
	// merging are the flag events that nobody has read yet, by kind, each with the newest
	// id that went into it.
	merging map[string]*merged
	next    int64 // id of the next event
	pruned  int64 // newest id that was pruned, -1 before the first
	wait    *waiter
	dead    string
	died    time.Time
}

// entry is one event in a queue, or a run of generated ones.
type entry struct {
	id      int64
	event   *event
	run     int                               // > 1: so many events, with ids from id on, made when they are written
	fill    func(dst []byte, id int64) []byte // for runs
	put     time.Time
	given   time.Time // when it was first in an answer
	dropped time.Time // when it was acknowledged
}

func (e *entry) last() int64 { return e.id + int64(max(e.run, 1)) - 1 }

// event is something that happened, as one queue is told of it; queues that are told the
// same share it.
type event struct {
	typ, op string
	parts   []string // the bytes, with the event id between each two; if it merges: before the list of messages, behind it, the end
	msg     *message // of a message event
	flags   []string // likewise: the receiver's
	ids     []int64  // messages of an update_message_flags event that merges
	merge   string   // kind of merging, "" for events that stand alone
	channel bool     // typing in a channel
	group   string   // user_group: "remove" or "deactivated"
}

// merged is a flag event that still grows.
type merged struct {
	id  int64
	put time.Time
	ev  *event
	ids []int64
}

// waiter is a poll that waits; it is answered once.
type waiter struct{ done chan outcome }

// outcome is how a waiting poll ends.
type outcome struct {
	events []entry
	status int // 200, 502, or 0 for a cut connection
}

// builder makes an event.
type builder struct {
	object
	ev event
}

func newEvent(typ, op string) *builder {
	b := &builder{ev: event{typ: typ, op: op}}
	b.str("type", typ)
	if op != "" {
		b.str("op", op)
	}
	return b
}

// done returns the event; its id comes last, as Zulip writes it.
func (b *builder) done() *event {
	body := string(b.b)
	if body == "" {
		body = "{"
	} else {
		body += ","
	}
	b.ev.parts = []string{body + `"id":`, "}"}
	return &b.ev
}

// merging returns the event as one that merges with others of its kind until it is read.
func (b *builder) merging(kind string, ids []int64) *event {
	b.ev.merge, b.ev.ids = kind, ids
	b.ev.parts = []string{string(b.b) + `,"messages":`, `,"all":false,"id":`, "}"}
	return &b.ev
}

// append writes the entry's bytes. A run is written whole, with commas.
func (e *entry) append(dst []byte) []byte {
	if e.fill != nil {
		return e.fill(dst, e.id)
	}
	for i, p := range e.event.parts {
		if i > 0 {
			dst = strconv.AppendInt(dst, e.id, 10)
		}
		dst = append(dst, p...)
	}
	return dst
}

func (e *entry) size() int {
	n := 0
	for _, p := range e.event.parts {
		n += len(p)
	}
	return n + (len(e.event.parts)-1)*len(strconv.FormatInt(e.id, 10))
}

func everyone(*queue) bool { return true }

func only(a *Account) func(*queue) bool { return func(q *queue) bool { return q.account == a } }

// deliver runs what puts events in queues: now, or, while Tornado is down, after it has
// started again.
func (s *Server) deliver(f func()) {
	if s.down != nil {
		s.backlog = append(s.backlog, f)
		return
	}
	f()
}

// emit puts ev in each live queue that to chooses and that accepts it.
func (s *Server) emit(ev *event, to func(*queue) bool) {
	for _, q := range s.queueList {
		if q.dead == "" && to(q) && q.accepts(ev, s.FeatureLevel) {
			s.push(q, ev)
		}
	}
}

// each is emit for events that differ from queue to queue: make returns the event for
// one.
func (s *Server) each(to func(*queue) bool, make func(*queue) *event) {
	for _, q := range s.queueList {
		if q.dead != "" || !to(q) {
			continue
		}
		if ev := make(q); q.accepts(ev, s.FeatureLevel) {
			s.push(q, ev)
		}
	}
}

// knowsEmptyTopic says whether the client gets an empty topic as it is.
func (q *queue) knowsEmptyTopic() bool { return q.opts.Capabilities["empty_topic_name"] }

// accepts is ClientDescriptor.accepts_event: the queue's filter of types, its narrow for
// messages, and the events that only clients with, or without, some capability get.
func (q *queue) accepts(ev *event, level int) bool {
	if q.opts.EventTypes != nil {
		if !slices.Contains(q.opts.EventTypes, ev.typ) {
			return false
		}
		if ev.typ == "muted_topics" && slices.Contains(q.opts.EventTypes, "user_topic") {
			return false
		}
	}
	switch ev.typ {
	case "message":
		return ev.msg == nil || q.narrowed(ev.msg, ev.flags)
	case "typing":
		return !ev.channel || q.opts.Capabilities["stream_typing_notifications"]
	case "update_display_settings", "update_global_notifications":
		return level < 439 && !q.opts.Capabilities["user_settings_object"]
	case "realm_emoji":
		// From level 491 on a client gets either single changes or the whole table.
		return level < 491 || (ev.op != "update") == q.opts.Capabilities["individual_emoji_changes"]
	case "user_group":
		switch ev.group {
		case "remove":
			return !q.opts.Capabilities["include_deactivated_groups"]
		case "deactivated":
			return q.opts.Capabilities["include_deactivated_groups"]
		}
	}
	return true
}

// narrowed says whether the queue's narrow lets a message through
// (zerver/lib/narrow_predicate.py).
func (q *queue) narrowed(m *message, flags []string) bool {
	for _, term := range q.opts.Narrow {
		operand := lower(term[1])
		var ok bool
		switch term[0] {
		case "channel", "stream":
			ok = m.channel != nil && lower(m.channel.Name) == operand
		case "topic":
			ok = m.channel != nil && lower(m.topic) == operand
		case "sender":
			ok = lower(m.sender.shownEmail()) == operand || lower(m.sender.Email) == operand
		case "is":
			switch operand {
			case "dm", "private":
				ok = m.channel == nil
			case "starred":
				ok = slices.Contains(flags, "starred")
			case "unread":
				ok = !slices.Contains(flags, "read")
			case "alerted", "mentioned":
				ok = slices.Contains(flags, "mentioned")
			case "resolved":
				ok = m.channel != nil && strings.HasPrefix(m.topic, "✔ ")
			}
		}
		if !ok {
			return false
		}
	}
	return true
}

// push gives ev the queue's next id and puts it in; a poll that waits ends with it.
//
// Changes of flags are merged until somebody reads the queue: they take the newest id,
// and the ids before it are never seen. The exception is marking as unread, whose events
// carry details (EventQueue.push).
func (s *Server) push(q *queue, ev *event) {
	id, now := q.next, time.Now()
	q.next++
	if ev.merge == "" {
		q.entries = append(q.entries, entry{id: id, event: ev, put: now})
	} else if m := q.merging[ev.merge]; m != nil {
		m.id, m.put = id, now
		m.ids = append(m.ids, ev.ids...)
	} else {
		if q.merging == nil {
			q.merging = make(map[string]*merged)
		}
		q.merging[ev.merge] = &merged{id: id, put: now, ev: ev, ids: slices.Clone(ev.ids)}
	}
	s.finish(q)
}

// finish answers the poll that waits, if there is one, with what is in the queue.
func (s *Server) finish(q *queue) bool {
	w := q.wait
	if w == nil {
		return false
	}
	q.wait = nil
	w.done <- outcome{events: s.contents(q), status: 200}
	return true
}

// contents returns everything that is not acknowledged. Merged events find their place by
// their id now and stop growing.
func (s *Server) contents(q *queue) []entry {
	if len(q.merging) > 0 {
		pending := slices.Clone(q.entries[q.head:])
		for _, m := range q.merging {
			ev := *m.ev
			ev.parts = []string{m.ev.parts[0] + string(encode(m.ids)) + m.ev.parts[1], m.ev.parts[2]}
			ev.ids = m.ids
			pending = append(pending, entry{id: m.id, event: &ev, put: m.put})
		}
		slices.SortFunc(pending, func(a, b entry) int { return int(a.id - b.id) })
		q.entries = append(slices.Clone(q.entries[:q.head]), pending...)
		q.merging = nil
	}
	now := time.Now()
	for i := len(q.entries) - 1; i >= q.head && q.entries[i].given.IsZero(); i-- {
		q.entries[i].given = now
	}
	return q.entries[q.head:len(q.entries):len(q.entries)]
}

func (q *queue) empty() bool { return q.head == len(q.entries) && len(q.merging) == 0 }

// prune drops everything up to id. Merged events that nobody has read are passed over, as
// in Zulip.
func (s *Server) prune(q *queue, id int64) {
	now := time.Now()
	for q.head < len(q.entries) && q.entries[q.head].id <= id {
		e := &q.entries[q.head]
		if e.last() > id { // within a run: split it
			rest := *e
			rest.id, rest.run = id+1, int(e.last()-id)
			done := *e
			done.run = e.run - rest.run
			q.entries = slices.Concat(q.entries[:q.head], []entry{done, rest}, q.entries[q.head+1:])
			e = &q.entries[q.head]
		}
		e.dropped = now
		q.pruned = e.last()
		q.head++
	}
	if s.Forget && q.head > 0 {
		q.entries = slices.Clone(q.entries[q.head:])
		q.head = 0
	}
}

// acknowledges returns what prune(id) would drop.
func (q *queue) acknowledges(id int64) []entry {
	n := q.head
	for n < len(q.entries) && q.entries[n].id <= id {
		n++
	}
	return slices.Clone(q.entries[q.head:n])
}

// delivered says whether id was ever in an answer of this queue, or is where a fresh
// queue begins.
func (q *queue) delivered(id int64) bool {
	if id == q.pruned {
		return true
	}
	i, ok := slices.BinarySearchFunc(q.entries, id, func(e entry, id int64) int {
		switch {
		case e.last() < id:
			return -1
		case e.id > id:
			return 1
		}
		return 0
	})
	return ok && !q.entries[i].given.IsZero()
}

// sweep does the sweeps that are due: each ends the queues that no poll waits on and on
// which none has begun to wait for their life (gc_event_queues).
func (s *Server) sweep(now time.Time) {
	if s.down != nil {
		return
	}
	for !s.nextSweep.After(now) {
		live := false
		for _, q := range s.queueList {
			if q.dead != "" || q.wait != nil {
				continue
			}
			if s.nextSweep.Sub(q.connected) >= q.life {
				s.bury(q, "expired")
			} else {
				live = true
			}
		}
		s.nextSweep = s.nextSweep.Add(s.SweepEvery)
		if !live { // nothing left to die: go on from the last sweep before now
			if n := now.Sub(s.nextSweep) / s.SweepEvery; n > 0 {
				s.nextSweep = s.nextSweep.Add(n * s.SweepEvery)
			}
		}
	}
}

// bury ends a queue; a poll that waits ends with what is there.
func (s *Server) bury(q *queue, why string) {
	s.finish(q)
	q.dead, q.died = why, time.Now()
	delete(s.queues, q.id)
	if s.Forget {
		q.entries, q.head = nil, 0
		s.queueList = slices.DeleteFunc(s.queueList, func(o *queue) bool { return o == q })
	}
}

// newQueue makes a queue.
func (s *Server) newQueue(a *Account, opts Options, life time.Duration) *queue {
	now := time.Now()
	var r [16]byte
	for i := range r {
		r[i] = byte(s.rand.Uint32())
	}
	r[6], r[8] = r[6]&0x0f|0x40, r[8]&0x3f|0x80
	q := &queue{
		id:      fmt.Sprintf("%x-%x-%x-%x-%x", r[0:4], r[4:6], r[6:8], r[8:10], r[10:16]),
		account: a, opts: opts, life: life, created: now, connected: now, pruned: -1,
	}
	s.queues[q.id] = q
	s.queueList = append(s.queueList, q)
	return q
}

// Emit puts an event of any kind in every live queue that accepts its type, as if Zulip
// had sent it to everybody. The queue adds the id. Members come out with type and op
// first, the others in order of their names.
func (s *Server) Emit(ev map[string]any) {
	s.lock()
	defer s.mu.Unlock()
	e := eventFromMap(ev)
	s.deliver(func() { s.emit(e, everyone) })
}

// EmitTo is Emit for the queues of one account.
func (s *Server) EmitTo(email string, ev map[string]any) {
	s.lock()
	defer s.mu.Unlock()
	e, a := eventFromMap(ev), s.account(email)
	s.deliver(func() { s.emit(e, only(a)) })
}

// EmitRaw puts bytes as they are in every live queue, whatever its filters, as one event:
// a broken, odd or huge one, say. Each "%ID%" in it is replaced by the id that the queue
// gives it.
func (s *Server) EmitRaw(template string) {
	s.lock()
	defer s.mu.Unlock()
	e := &event{typ: "raw", parts: strings.Split(template, "%ID%")}
	s.deliver(func() {
		for _, q := range s.queueList {
			if q.dead == "" {
				s.push(q, e)
			}
		}
	})
}

// FillAnswer puts n events in a queue that exist only while an answer is written, so that
// an answer can be larger than memory. event appends the event with that id to dst, with
// its "id" member, and must return the same bytes each time; it is called while answers
// are written, by several goroutines if there are several. A queue that does not live is
// passed over.
func (s *Server) FillAnswer(queue string, n int, event func(dst []byte, id int64) []byte) {
	s.lock()
	defer s.mu.Unlock()
	q := s.queues[queue]
	if q == nil || n < 1 {
		return
	}
	q.entries = append(q.entries, entry{id: q.next, run: n, fill: event, put: time.Now()})
	q.next += int64(n)
	s.finish(q)
}

// eventFromMap makes an event out of what a test wrote.
func eventFromMap(m map[string]any) *event {
	typ, _ := m["type"].(string)
	op, _ := m["op"].(string)
	b := &builder{ev: event{typ: typ, op: op}}
	_, b.ev.channel = m["stream_id"]
	if data, _ := m["data"].(map[string]any); typ == "user_group" {
		if _, dead := data["deactivated"]; op == "update" && dead {
			b.ev.group = "deactivated"
		} else if op == "remove" {
			b.ev.group = "remove"
		}
	}
	var ids []int64
	merge := ""
	if all, isBool := m["all"].(bool); typ == "update_message_flags" && isBool && !all {
		operation := cmp.Or(op, fmt.Sprint(m["operation"]))
		if merge = mergeKind(operation, fmt.Sprint(m["flag"])); merge != "" {
			if err := json.Unmarshal(encode(m["messages"]), &ids); err != nil {
				merge = ""
			}
		}
	}
	names := make([]string, 0, len(m))
	for k := range m {
		if k != "type" && k != "op" && k != "id" && (merge == "" || k != "messages" && k != "all") {
			names = append(names, k)
		}
	}
	slices.Sort(names)
	for _, k := range append([]string{"type", "op"}, names...) {
		if v, ok := m[k]; ok {
			b.json(k, v)
		}
	}
	if merge != "" {
		return b.merging(merge, ids)
	}
	return b.done()
}

// mergeKind is what update_message_flags events with this operation and flag merge under,
// "" if they do not (compute_full_event_type).
func mergeKind(operation, flag string) string {
	if operation == "remove" && strings.HasPrefix(flag, "read") {
		return ""
	}
	return "flags/" + operation + "/" + flag
}

// QueueInfo is what there is to know of a queue.
type QueueInfo struct {
	ID, Account  string
	Options      Options
	Life         time.Duration
	Created      time.Time
	LastWait     time.Time // when its idle clock was set: a poll began to wait, or it was made
	NextID       int64
	NewestPruned int64  // -1: nothing was acknowledged yet
	Pending      int    // events that are not acknowledged; those that still merge count as one of each kind
	Waiting      bool   // a poll waits
	Dead         string // "" while it lives, else "expired", "deleted" or "crash"
	Died         time.Time
	// Events is everything that was ever put in, in order, those that are generated
	// (FillAnswer) excepted. Flag events appear when they have stopped to merge.
	Events []QueuedEvent
}

// QueuedEvent is one event in a queue.
type QueuedEvent struct {
	ID        int64
	Type, Op  string // Type is "raw" for EmitRaw's
	MessageID int64  // of message events
	Raw       []byte // as it is, or would be, in an answer
	Put       time.Time
	Delivered time.Time // when it was first in an answer; zero: never
	Pruned    time.Time // when it was acknowledged; zero: it is still there
}

// Queues returns all queues, dead ones too, in the order in which they were made.
func (s *Server) Queues() []QueueInfo {
	s.lock()
	defer s.mu.Unlock()
	infos := make([]QueueInfo, 0, len(s.queueList))
	for _, q := range s.queueList {
		info := QueueInfo{
			ID: q.id, Account: q.account.Email, Options: q.opts, Life: q.life, Created: q.created,
			LastWait: q.connected,
			NextID:   q.next, NewestPruned: q.pruned, Pending: len(q.merging), Waiting: q.wait != nil, Dead: q.dead,
			Died: q.died,
		}
		for i := range q.entries {
			e := &q.entries[i]
			if i >= q.head {
				info.Pending += max(e.run, 1)
			}
			if e.fill != nil {
				continue
			}
			qe := QueuedEvent{
				ID: e.id, Type: e.event.typ, Op: e.event.op, Raw: e.append(nil), Put: e.put, Delivered: e.given,
				Pruned: e.dropped,
			}
			if e.event.msg != nil {
				qe.MessageID = e.event.msg.id
			}
			info.Events = append(info.Events, qe)
		}
		infos = append(infos, info)
	}
	return infos
}
