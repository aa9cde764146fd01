package zulipsim

import (
	"io"
	"net/http"
	"time"
)

// getEvents is GET /events, with fetch_events of zerver/tornado/event_queue.py inside.
func (c *call) getEvents() {
	s := c.s
	queueID, named := c.arg("queue_id")
	var last int64
	var dontBlock bool
	acked, r := c.value("last_event_id", &last, "an integer")
	if r == nil {
		_, r = c.value("dont_block", &dontBlock, "a boolean")
	}
	var opts Options
	var life time.Duration
	if r == nil {
		opts, life, r = c.queueOptions()
	}
	switch {
	case r != nil:
	case !named && !dontBlock:
		r = bad("Missing 'queue_id' argument")
	case named && !acked:
		r = bad("Missing 'last_event_id' argument")
	}
	if r != nil {
		c.refused(r)
		return
	}
	if !named { // a queue of its own, made by the poll
		s.lock()
		q := s.newQueue(c.account, opts, life)
		s.mu.Unlock()
		c.succeed(func(o *object) {
			o.raw("events", "[]")
			o.str("queue_id", q.id)
		})
		return
	}
	s.watchAck(c, queueID, last)

	s.lock()
	q, r := s.access(c.account, queueID)
	if r == nil {
		r = s.acknowledge(q, last)
	}
	if r != nil {
		s.mu.Unlock()
		c.refused(r)
		return
	}
	s.finish(q) // whoever waits on this queue gives way
	if !q.empty() || dontBlock {
		events := s.contents(q)
		s.mu.Unlock()
		c.sendEvents(events, "")
		return
	}
	if s.down != nil { // stopped since the request came
		s.mu.Unlock()
		c.page(http.StatusBadGateway, "text/html", page502)
		return
	}
	w := &waiter{done: make(chan outcome, 1)}
	q.wait = w
	q.connected = time.Now()
	beat := s.heartbeat(c)
	s.mu.Unlock()
	c.wait(q, w, beat)
}

// access finds a queue of the account; another account's queue is as good as none.
func (s *Server) access(a *Account, id string) (*queue, *refusal) {
	if q := s.queues[id]; q != nil && q.account == a {
		return q, nil
	}
	return nil, &refusal{"BAD_EVENT_QUEUE_ID", "Bad event queue ID: " + id, func(o *object) { o.str("queue_id", id) }}
}

// acknowledge drops everything up to last. The order of the checks is Zulip's: an id that
// is older than the newest dropped one is refused before anything happens; one that is
// not in the queue is refused after everything below it was dropped.
func (s *Server) acknowledge(q *queue, last int64) *refusal {
	if last < q.pruned {
		return bad("An event newer than %d has already been pruned!", last)
	}
	s.prune(q, last)
	if last != q.pruned {
		return bad("Event %d was not in this queue", last)
	}
	return nil
}

// heartbeat says how long this poll waits, 0 for ever.
func (s *Server) heartbeat(c *call) time.Duration {
	if c.clientName() == "API: heartbeat test" {
		return 0
	}
	if s.Heartbeat != nil {
		return s.Heartbeat()
	}
	return time.Duration(45+s.rand.IntN(11)) * time.Second
}

// wait holds a poll until something ends it: the first event, a heartbeat, another poll,
// the end of the queue, of the server, or of the client.
func (c *call) wait(q *queue, w *waiter, beat time.Duration) {
	s := c.s
	c.waited = true
	var timer <-chan time.Time
	if beat > 0 {
		t := time.NewTimer(beat)
		defer t.Stop()
		timer = t.C
	}
	var end outcome
	select {
	case end = <-w.done:
	case <-timer:
		s.lock()
		if q.wait == w {
			s.push(q, newEvent("heartbeat", "").done())
		}
		s.mu.Unlock()
		end = <-w.done
	case <-c.r.Context().Done(): // the client has gone; its events stay
		s.lock()
		if q.wait == w {
			q.wait = nil
		}
		s.mu.Unlock()
		return
	}
	switch end.status {
	case http.StatusOK:
		c.sendEvents(end.events, q.id)
	case http.StatusBadGateway:
		c.page(http.StatusBadGateway, "text/html", page502)
	default:
		reset(c.w)
	}
}

// sendEvents writes an answer full of events, from bytes that are made already. queueID
// is in answers that ended a wait only.
func (c *call) sendEvents(events []entry, queueID string) {
	const head = `{"result":"success","msg":"","events":[`
	var o object
	if queueID != "" {
		o.str("queue_id", queueID)
	}
	c.ignored(&o)
	tail := []byte("]}\n")
	if len(o.b) > 0 {
		tail = append(append([]byte("],"), o.b[1:]...), "}\n"...)
	}
	size, count := int64(len(head)+len(tail)+max(len(events)-1, 0)), 0
	for i := range events {
		e := &events[i]
		if e.fill != nil {
			size = -1
			break
		}
		size += int64(e.size())
	}
	for i := range events {
		count += max(events[i].run, 1)
	}
	c.s.mu.Lock()
	c.log.Events = count
	c.s.mu.Unlock()

	c.jsonHeaders(http.StatusOK)
	c.send(http.StatusOK, size, func(w io.Writer) {
		buf := append(make([]byte, 0, 64<<10), head...)
		flush := func(room int) bool {
			if len(buf)+room <= cap(buf) {
				return true
			}
			_, err := w.Write(buf)
			buf = buf[:0]
			return err == nil
		}
		for i := range events {
			e := &events[i]
			for n := range max(e.run, 1) {
				if i > 0 || n > 0 {
					buf = append(buf, ',')
				}
				if e.fill != nil {
					buf = e.fill(buf, e.id+int64(n))
				} else {
					buf = e.append(buf)
				}
				if !flush(4 << 10) {
					return // the client has gone
				}
			}
		}
		w.Write(append(buf, tail...))
	})
}

// deleteEvents is DELETE /events; a poll that waits ends with what is there.
func (c *call) deleteEvents() {
	s := c.s
	id, ok := c.arg("queue_id")
	if !ok {
		c.refused(missing("queue_id"))
		return
	}
	s.lock()
	defer s.mu.Unlock()
	q, r := s.access(c.account, id)
	if r != nil {
		c.refused(r)
		return
	}
	s.bury(q, "deleted")
	c.succeed(nil)
}
