package zulipsim

import (
	"net/http"
	"time"
)

// Down stops the part of Zulip that serves events, in good order, as a restart for an
// upgrade does: queues, ids and unacknowledged events are kept, polls that wait end with
// nginx's 502 page, and so does every poll until Up. Sending and reading messages go on;
// what happens meanwhile is in the queues after Up. Register tries for six seconds and
// then answers
// 500. To make everything answer 502, add the fault [BadGateway].
func (s *Server) Down() {
	s.lock()
	defer s.mu.Unlock()
	s.stop()
}

func (s *Server) stop() {
	if s.down != nil {
		return
	}
	s.down = make(chan struct{})
	clear(s.tornado) // the bucket lives in Tornado's memory
	for _, q := range s.queueList {
		if w := q.wait; w != nil {
			q.wait = nil
			end := outcome{status: http.StatusBadGateway}
			if s.ResetPolls {
				end.status = 0
			}
			w.done <- end
		}
	}
}

// Up starts it again. Every queue that accepts it gets a restart event, then what
// happened while it was down. The idle clocks went on meanwhile; the next sweep comes
// SweepEvery from now. Without Down it does nothing.
func (s *Server) Up() {
	s.lock()
	defer s.mu.Unlock()
	s.start()
}

func (s *Server) start() {
	if s.down == nil {
		return
	}
	close(s.down)
	s.down = nil
	now := time.Now()
	s.nextSweep = now.Add(s.SweepEvery)
	s.generation = now.Unix()
	b := newEvent("restart", "")
	b.str("zulip_version", s.Version)
	b.str("zulip_merge_base", "")
	b.int("zulip_feature_level", int64(s.FeatureLevel))
	b.int("server_generation", s.generation)
	if s.FeatureLevel < 240 {
		b.bool("immediate", true)
	}
	s.emit(b.done(), everyone)
	backlog := s.backlog
	s.backlog = nil
	for _, f := range backlog {
		f()
	}
}

// Restart is Down, a pause, and Up; it returns when the server is up again.
func (s *Server) Restart(down time.Duration) {
	s.Down()
	time.Sleep(down)
	s.Up()
}

// Crash kills it: polls that wait are cut, and all queues are gone for ever. If it was up
// it is up again at once; if it was down, the queues that it had saved are lost and it
// stays down until Up. What happens while it is down reaches new queues only.
func (s *Server) Crash() {
	s.lock()
	defer s.mu.Unlock()
	up := s.down == nil
	s.stop()
	for _, q := range append([]*queue(nil), s.queueList...) {
		if q.dead == "" {
			s.bury(q, "crash")
		}
	}
	if up {
		s.start()
	}
}

// Upgrade changes version and feature level, as an upgrade does between Down and Up.
func (s *Server) Upgrade(version string, level int) {
	s.lock()
	defer s.mu.Unlock()
	s.Version, s.FeatureLevel = version, level
}

// ExpireQueue ends a queue as if its idle time were over; a poll that waits ends with an
// empty list. An id that is not known is passed over.
func (s *Server) ExpireQueue(id string) {
	s.lock()
	defer s.mu.Unlock()
	if q := s.queues[id]; q != nil {
		s.bury(q, "expired")
	}
}

// ExpireAll is ExpireQueue for all queues.
func (s *Server) ExpireAll() {
	s.lock()
	defer s.mu.Unlock()
	for _, q := range append([]*queue(nil), s.queueList...) {
		if q.dead == "" {
			s.bury(q, "expired")
		}
	}
}
