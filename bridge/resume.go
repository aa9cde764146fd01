package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"zulip-nats/events"
	"zulip-nats/health"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// phase is what has to be done next. It is read off the headers of the newest message
// (design, section 9.1), so that whoever comes after a crash goes on with exactly the
// step that was cut off.
type phase int

const (
	phaseBegin    phase = iota // no message of ours: the first start, or the stream's past is gone
	phasePoll                  // poll the queue from the position
	phaseRegister              // a gap is open: a new queue is needed
	phaseRefill                // the new queue is recorded: read the missing messages back from history
)

func (p phase) String() string {
	return [...]string{"begin", "poll", "register", "refill"}[p]
}

// resumePoint is where the stream says that we are.
type resumePoint struct {
	phase  phase
	at     poller.Position // the queue, and the id to poll from
	cursor stream.Cursor   // what the next write must follow: the newest message, ours or not
	last   *stream.Stored  // the newest message of ours; nil in phaseBegin
	// foreign is the subject of the newest message where that is none of ours; else
	// empty.
	foreign string
}

// seq is the sequence of the newest message of ours, 0 if there is none.
func (p resumePoint) seq() uint64 {
	if p.last == nil {
		return 0
	}
	return p.last.Seq
}

// resumePointOf judges one message by its headers; ok is false where it is none of ours.
func resumePointOf(m *stream.Stored) (p resumePoint, ok bool) {
	p = resumePoint{at: poller.Position{Queue: header(m, events.HeaderQueueID), Last: -1}, last: m}
	if n, has := headerInt(m, events.HeaderPosition); has {
		p.at.Last = n
	} else if n, has := headerInt(m, events.HeaderEventID); has {
		p.at.Last = n
	} else {
		return resumePoint{}, false
	}
	switch record := header(m, events.HeaderRecord); {
	case record == events.RecordGapOpened:
		p.phase = phaseRegister // the only record that may stand without a queue: the past is gone
		return p, true
	case record == events.RecordQueue && header(m, events.HeaderNext) == events.NextRefill,
		record == "" && header(m, events.HeaderOrigin) == events.OriginBackfill:
		p.phase = phaseRefill
	case record == events.RecordQueue, record == events.RecordGapClosed, record == events.RecordRejected,
		record == events.RecordSkipped, record == events.RecordErased, record == events.RecordExcluded,
		record == events.RecordSkipped, record == events.RecordStateBegin, record == events.RecordState,
		record == events.RecordStateEnd,
		record == "" && header(m, events.HeaderOrigin) == events.OriginLive:
		p.phase = phasePoll
	default:
		return resumePoint{}, false
	}
	return p, p.at.Queue != ""
}

// A few figures of looking for the newest message of ours below messages of others.
const (
	// nearby is how many sequences are read back first for a record of ours.
	nearby = 1000
	// scanned is up to how many sequences are read one by one; beyond, halving is faster.
	scanned = 50_000
	// recentTime and recentSeqs are how far back a replicated stream is read without a
	// hole. nats-server lets a leader without a quorum answer for 10 s (raft.go,
	// lostQuorumInterval), so what it may lack is younger than recentTime. The sequences
	// are for clocks that step.
	recentTime = 30 * time.Second
	recentSeqs = 5_000
	// walkPause is how long what a deposed leader may lack is given to show.
	walkPause = 10 * time.Second
)

// errBehind says that a server answered which lacks messages that are known to be there.
var errBehind = &stream.Error{Kind: stream.Unavailable,
	Err: errors.New("the server that answers lacks the newest messages: it lags behind, or was deposed")}

// locate says where we are. The newest message under the filter comes from the leader in
// one read, since two could be answered by two servers, one of them deposed. It is what
// the next write must follow, ours or not; and if it is ours, it is the place as well.
// seen is what was found below messages of others the last time.
func locate(ctx context.Context, s Stream, realm subjects.Realm, seen *below) (resumePoint, error) {
	p := resumePoint{phase: phaseBegin, at: poller.Position{Last: -1}}
	if seen.ours != nil && seen.epoch == s.Epoch() {
		// Is it there still? Asked first, since behind the read of the newest message
		// each question costs time that others use.
		m, err := s.At(ctx, seen.ours.Seq)
		if err != nil {
			return p, err
		}
		if m == nil || !m.Time.Equal(seen.ours.Time) {
			*seen = below{}
		}
	}
	cursor, newest, err := s.Last(ctx)
	if err != nil || newest == nil {
		p.cursor = cursor
		return p, err
	}
	if here, ok := resumePointOf(newest); ok {
		p = here
	} else {
		ours, err := belowOthers(ctx, s, realm, newest, seen)
		if err != nil {
			return resumePoint{}, err
		}
		if ours != nil {
			p, _ = resumePointOf(ours)
		}
		p.foreign = newest.Subject
	}
	p.cursor = cursor
	return p, nil
}

// below is what was found below messages of others in a stream with one server, on one
// connection. Where others write all the time, the next write has to be quick behind the
// read.
type below struct {
	epoch  uint64
	record uint64         // the sequence of the newest record of ours
	ours   *stream.Stored // our newest message
}

// belowOthers finds the newest message of ours below a newest message that is not:
// somebody else publishes on the realm's subjects, or the server put a marker. nil: there
// is none.
//
// What others wrote is not read one by one, because of one rule of [Bridge.append]: our
// first write behind a message of others is a record. Every other write of ours directly
// follows a message of ours, or the server refuses it. So behind the newest record there
// is an unbroken run of our messages and then others' alone, and the end of the run is
// found by halving. What the stream's limits took was at its beginning, and changes
// nothing: if no record is left, all that is left is such a run and what follows it. And
// while the newest record is the same, so is what was found before.
func belowOthers(ctx context.Context, s Stream, realm subjects.Realm, newest *stream.Stored,
	seen *below) (found *stream.Stored, err error) {
	epoch := s.Epoch()
	if found, err = newestOurs(ctx, s, realm.Records()); err != nil {
		return nil, err
	}
	low := uint64(0)
	if found != nil {
		low = found.Seq
	}
	if seen.ours != nil && seen.epoch == epoch && seen.record == low {
		return seen.ours, nil
	}
	info, err := s.Info(ctx)
	if err != nil {
		return nil, err
	}
	record := low
	defer func() {
		if err == nil && info.Replicas <= 1 {
			*seen = below{epoch, record, found}
		}
	}()
	see := func(m *stream.Stored) error {
		if _, ok := resumePointOf(m); ok && (found == nil || m.Seq > found.Seq) {
			found = m
		}
		return nil
	}
	low = max(low, info.FirstSeq, 1)
	if newest.Seq-min(newest.Seq, low) <= scanned {
		err = unbroken(ctx, s, realm, stream.Start{Seq: low}, newest.Seq, see)
		return found, err
	}
	for high := newest.Seq; low < high; {
		middle := low + (high-low)/2
		m, err := s.Next(ctx, realm.All(), middle)
		switch {
		case err != nil:
			return nil, err
		case m == nil:
			return nil, errBehind
		}
		if _, ok := resumePointOf(m); ok && m.Seq < high {
			low = m.Seq + 1
			_ = see(m)
		} else {
			high = middle
		}
	}
	// The newest record was one read. On a replicated stream a deposed leader may have
	// answered it.
	err = recent(ctx, s, realm, info, newest, see)
	return found, err
}

// newestOurs reads the newest message of ours on a subject, nil if there is none. Others
// may publish there too; then the subject is read back until one is found. It is near:
// our first write behind a message of others is a record.
func newestOurs(ctx context.Context, s Stream, subject string) (found *stream.Stored, err error) {
	m, err := s.LastOn(ctx, subject)
	if err != nil || m == nil {
		return nil, err
	}
	if _, ok := resumePointOf(m); ok {
		return m, nil
	}
	for back := uint64(nearby); ; back *= lookBackGrows {
		from := m.Seq - min(m.Seq-1, back)
		err = s.Scan(ctx, subject, stream.Start{Seq: from}, m.Seq, false, func(m *stream.Stored) error {
			if _, ok := resumePointOf(m); ok {
				found = m
			}
			return nil
		})
		if err != nil || found != nil || from == 1 {
			return found, err
		}
	}
}

// recent gives f the headers of the last messages up to one that was seen there, without
// a hole. On a single server nothing is to be feared, and nothing is read.
func recent(ctx context.Context, s Stream, realm subjects.Realm, info stream.Info, until *stream.Stored,
	f func(*stream.Stored) error) error {
	if info.Replicas <= 1 {
		return nil
	}
	var oldest, newest time.Time
	err := unbroken(ctx, s, realm, stream.Start{Seq: until.Seq - min(until.Seq, recentSeqs)}, until.Seq,
		func(m *stream.Stored) error {
			if newest = m.Time; oldest.IsZero() || newest.Before(oldest) {
				oldest = newest
			}
			return f(m)
		})
	since := newest.Add(-recentTime)
	if err != nil || oldest.Before(since) || until.Seq <= recentSeqs {
		return err
	}
	return unbroken(ctx, s, realm, stream.Start{Time: since}, until.Seq, f)
}

// unbroken gives f the headers of all messages of the realm from a start up to the one at
// until, or fails with [errBehind]: whoever shows that one has all before it.
func unbroken(ctx context.Context, s Stream, realm subjects.Realm, from stream.Start, until uint64,
	f func(*stream.Stored) error) error {
	complete := false
	err := s.Scan(ctx, realm.All(), from, until, true, func(m *stream.Stored) error {
		complete = complete || m.Seq == until
		return f(m)
	})
	if err == nil && !complete {
		return errBehind
	}
	return err
}

// decode reads the JSON body of a record of ours. What cannot be read (an older
// version's, or forged) counts as not there.
func decode[T any](m *stream.Stored) *T {
	if m == nil {
		return nil
	}
	body := new(T)
	if json.Unmarshal(m.Data, body) != nil {
		return nil
	}
	return body
}

func sleep(ctx context.Context, d time.Duration) error {
	health.Waits(ctx, d)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
