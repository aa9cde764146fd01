package zulipsim

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"
)

// Request is one request that was made, in the ledger of [Server.Requests].
type Request struct {
	Time       time.Time
	Took       time.Duration // 0 while it is under way
	Kind       Kind
	Method     string
	Path       string
	Account    string // the address in its credentials, whether they were good or not
	Params     map[string]string
	Header     http.Header // as it came, without the credentials
	UserAgent  string
	Status     int           // 0: no answer, or none yet
	Waited     bool          // a poll that waited
	Events     int           // events in the answer
	RetryAfter time.Duration // what a 429 told
	Fault      bool          // a fault answered, or spoiled the answer
}

// note begins the ledger's line of a request.
func (s *Server) note(c *call) *Request {
	email, _, _ := basic(c.r)
	h := c.r.Header.Clone()
	h.Del("Authorization")
	params := make(map[string]string, len(c.form))
	for k, v := range c.form {
		params[k] = v[0]
	}
	r := &Request{Time: time.Now(), Kind: c.kind, Method: c.r.Method, Path: c.r.URL.Path, Account: email,
		Params: params, Header: h,
		UserAgent: c.r.UserAgent()}
	if !s.Forget {
		s.requests = append(s.requests, r)
	}
	key := toldKey{lower(email), isEvents(c.kind)}
	if at, ok := s.told[key]; ok {
		if early := at.Sub(r.Time); early > 0 {
			s.protest(TooSoon, "%s %s by %s came %v before the time that Retry-After told", r.Method, r.Path,
				email, early)
		} else {
			delete(s.told, key)
		}
	}
	return r
}

func isEvents(k Kind) bool { return k == Events || k == Delete }

// tell429 remembers until when the account was told to wait.
func (s *Server) tell429(c *call, wait time.Duration) {
	s.told[toldKey{lower(c.log.Account), isEvents(c.kind)}] = time.Now().Add(wait)
}

// Requests returns every request so far, in the order in which they came. Those under way
// are in it with what is known of them.
func (s *Server) Requests() []Request {
	s.lock()
	defer s.mu.Unlock()
	list := make([]Request, len(s.requests))
	for i, r := range s.requests {
		list[i] = *r
	}
	return list
}

// Complaint is a kind of misbehaviour of a client.
type Complaint string

// What the server complains about. AckPruned does no harm by itself, and two clients on
// one queue cause it by turns; AckNotStored is how events are lost.
const (
	AckNotStored    Complaint = "an event was acknowledged that is not stored"
	AckNotDelivered Complaint = "an id was acknowledged that was never given out"
	AckPruned       Complaint = "an id was polled with that is older than the newest acknowledged one"
	TooSoon         Complaint = "a request came sooner than Retry-After told"
)

// complainer is a test that wants to know.
type complainer struct {
	t      testing.TB
	stored func(queue string, id int64) bool
}

// Complain makes t fail at every misbehaviour of a client from now until t ends, but for
// those that Tolerate names. stored is asked, before an acknowledged event is thrown
// away, whether that event is safe (nil: not asked); it may call the server's methods. A
// test whose clients run longer than itself must stop them first.
func (s *Server) Complain(t testing.TB, stored func(queue string, id int64) bool) {
	c := &complainer{t, stored}
	s.lock()
	defer s.mu.Unlock()
	s.complain = append(s.complain, c)
	t.Cleanup(func() {
		s.lock()
		defer s.mu.Unlock()
		s.complain = slices.DeleteFunc(slices.Clone(s.complain), func(o *complainer) bool { return o == c })
	})
}

// Complaints returns what there was to complain about so far, tolerated or not, with or
// without Complain (AckNotStored only with it).
func (s *Server) Complaints() []string {
	s.lock()
	defer s.mu.Unlock()
	return slices.Clone(s.complaints)
}

// protest notes a complaint and fails the tests that asked for it.
func (s *Server) protest(kind Complaint, format string, args ...any) {
	text := fmt.Sprintf("%s: %s", kind, fmt.Sprintf(format, args...))
	s.complaints = append(s.complaints, text)
	if slices.Contains(s.Tolerate, kind) {
		return
	}
	for _, c := range s.complain {
		c.t.Errorf("zulipsim: %s", text)
	}
}

// watchAck looks at a poll's acknowledgement before it takes effect.
func (s *Server) watchAck(c *call, queue string, last int64) {
	s.lock()
	q, r := s.access(c.account, queue)
	if r != nil {
		s.mu.Unlock()
		return
	}
	if last < q.pruned {
		s.protest(AckPruned, "queue %s: last_event_id=%d, but %d was acknowledged before", queue, last, q.pruned)
		s.mu.Unlock()
		return
	}
	if !q.delivered(last) {
		s.protest(AckNotDelivered, "queue %s: last_event_id=%d", queue, last)
	}
	hook, complainers := s.OnAck, s.complain
	var gone []entry
	if hook != nil || len(complainers) > 0 {
		gone = q.acknowledges(last)
	}
	s.mu.Unlock()
	for i := range gone {
		e := &gone[i]
		for n := range max(e.run, 1) {
			id := e.id + int64(n)
			if id > last {
				break
			}
			if hook != nil {
				raw := []byte(nil)
				if e.fill != nil {
					raw = e.fill(nil, id)
				} else {
					raw = e.append(nil)
				}
				hook(queue, id, raw)
			}
			for _, cp := range complainers {
				if cp.stored != nil && !cp.stored(queue, id) {
					s.lock()
					s.protest(AckNotStored, "queue %s: event %d, by last_event_id=%d", queue, id, last)
					s.mu.Unlock()
				}
			}
		}
	}
}
