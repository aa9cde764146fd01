package bridge

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// phase is what has to be done next. It is read off the headers of the newest message (design, section 9.1), so that whoever comes after a
// crash goes on with exactly the step that was cut off.
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

// place is where the stream says that we are.
type place struct {
	phase  phase
	at     poller.Position // the queue, and the id to poll from
	cursor stream.Cursor   // what the next write must follow: the newest message, ours or not
	last   *stream.Stored  // the newest message of ours; nil in phaseBegin
}

// seq is the sequence of the newest message of ours, 0 if there is none.
func (p place) seq() uint64 {
	if p.last == nil {
		return 0
	}
	return p.last.Seq
}

// placeOf judges one message by its headers; ok is false where it is none of ours.
func placeOf(m *stream.Stored) (p place, ok bool) {
	p = place{at: poller.Position{Queue: header(m, HeaderQueueID), Last: -1}, last: m}
	if n, has := headerInt(m, HeaderPosition); has {
		p.at.Last = n
	} else if n, has := headerInt(m, HeaderEventID); has {
		p.at.Last = n
	} else {
		return place{}, false
	}
	switch record := header(m, HeaderRecord); {
	case record == recordGapOpened:
		p.phase = phaseRegister // the only record that may stand without a queue: the past is gone
		return p, true
	case record == recordQueue && header(m, HeaderNext) == nextRefill, record == "" && header(m, HeaderOrigin) == originBackfill:
		p.phase = phaseRefill
	case record == recordQueue, record == recordGapClosed, record == recordRejected, record == recordSkipped,
		record == "" && header(m, HeaderOrigin) == originLive:
		p.phase = phasePoll
	default:
		return place{}, false
	}
	return p, p.at.Queue != ""
}

// walkPause is how long a hole met on the way back is given to fill: a leader that was deposed lacks the newest messages.
const walkPause = 10 * time.Second

// locate reads the newest message from the leader and says where we are: one read, since two could be answered by two servers, one of
// them deposed. If the newest is none of ours (somebody else published there, or the server put a marker), it walks back by sequence to
// the newest that is; the cursor stays the newest of all, because that is what the next write must follow.
func locate(ctx context.Context, s Stream, realm subjects.Realm) (place, error) {
	cursor, newest, err := s.Last(ctx)
	if err != nil || newest == nil {
		return place{phase: phaseBegin, at: poller.Position{Last: -1}, cursor: cursor}, err
	}
	if p, ok := placeOf(newest); ok {
		p.cursor = cursor
		return p, nil
	}
	info, err := s.Info(ctx)
	if err != nil {
		return place{}, err
	}
	ours := func(m *stream.Stored) (place, bool) {
		if m == nil || !strings.HasPrefix(m.Subject, strings.TrimSuffix(realm.All(), ">")) {
			return place{}, false
		}
		return placeOf(m)
	}
	found := place{phase: phaseBegin, at: poller.Position{Last: -1}}
	var holes []uint64
	for seq := newest.Seq - 1; seq >= max(1, info.FirstSeq); seq-- {
		m, err := s.At(ctx, seq)
		if err != nil {
			return place{}, err
		}
		if m == nil {
			holes = append(holes, seq)
		}
		if p, ok := ours(m); ok {
			found = p
			break
		}
	}
	if len(holes) > 0 {
		if err := sleep(ctx, walkPause); err != nil {
			return place{}, err
		}
	}
	for _, seq := range holes { // from new to old
		m, err := s.At(ctx, seq)
		if err != nil {
			return place{}, err
		}
		if p, ok := ours(m); ok {
			found = p
			break
		}
	}
	found.cursor = cursor
	return found, nil
}

// decode reads the JSON body of a record of ours. What cannot be read (an older version's, or forged) counts as not there.
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
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
