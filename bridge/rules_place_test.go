package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/subjects"
)

// A realm's stream for the tests of finding our place below messages of others.
type shelf struct {
	*model.Client
	t     *testing.T
	s     *model.Stream
	realm subjects.Realm
	stale map[string]bool // the reads that a deposed leader answers
}

func newShelf(t *testing.T) *shelf {
	realm, err := subjects.ParseRealm("acme")
	if err != nil {
		t.Fatal(err)
	}
	s := &model.Stream{Filter: realm.All(), Single: true}
	h := &shelf{s.Client(t.Context()), t, s, realm, map[string]bool{}}
	s.Faults = func(op string) model.Fault { return model.Fault{Stale: h.stale[op]} }
	return h
}

// ours stores messages with these event ids behind the newest; record: a record comes
// first.
func (h *shelf) ours(record bool, ids ...int) (newest uint64) {
	cursor, _, err := h.Last(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	var msgs []stream.Message
	if record {
		msgs = append(msgs, stream.Message{Subject: h.realm.Record(subjects.Queue), Headers: []stream.Header{
			{Key: events.HeaderQueueID, Value: "q"}, {Key: events.HeaderPosition, Value: "0"},
			{Key: events.HeaderRecord, Value: events.RecordQueue}, {Key: events.HeaderNext, Value: events.NextPoll}}})
	}
	for _, id := range ids {
		msgs = append(msgs, stream.Message{Subject: "zulip.acme.message", Headers: []stream.Header{
			{Key: events.HeaderQueueID, Value: "q"}, {Key: events.HeaderEventID, Value: fmt.Sprint(id)},
			{Key: events.HeaderOrigin, Value: events.OriginLive}}})
	}
	if cursor, err = h.Append(h.t.Context(), cursor, msgs); err != nil {
		h.t.Fatal(err)
	}
	return cursor.Seq
}

func (h *shelf) theirs(n int) {
	for range n {
		h.s.Publish("zulip.acme.message", []byte("theirs"))
	}
}

// want says where the bridge is to be found.
func (h *shelf) want(seen *below, last int64) {
	h.t.Helper()
	p, err := locate(h.t.Context(), h, h.realm, seen)
	if err != nil || p.at != (poller.Position{Queue: "q", Last: last}) {
		h.t.Errorf("found %+v, %v; want event %d", p.at, err, last)
	}
}

// TestBelowOthers finds our newest message below many of others, by halving.
func TestBelowOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newShelf(t)
		h.ours(true, 1, 2)
		h.theirs(100)
		h.ours(true, 3, 4, 5, 6)
		for n, last := range []int64{6, 7, 8, 9} {
			h.theirs(scanned + 7*n)
			h.want(&below{}, last)
			if n%2 == 0 {
				h.ours(true, int(last)+1)
			} else {
				h.ours(true, 50, int(last)+1)
			}
		}
		// Many of ours, then a few and many of theirs.
		var ids []int
		for id := range scanned {
			ids = append(ids, 1000+id)
		}
		h.ours(true, ids...)
		h.theirs(3)
		h.want(&below{}, 1000+scanned-1)
		h.theirs(2*scanned + 1)
		h.want(&below{}, 1000+scanned-1)
	})
}

// TestBelowOthersOnOurRecords: others publish on the subjects of records too.
func TestBelowOthersOnOurRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newShelf(t)
		h.ours(true, 1, 2)
		h.theirs(scanned)
		h.ours(true, 3)
		h.s.Publish(h.realm.Record(subjects.Queue), []byte("theirs"))
		h.theirs(3 * scanned)
		h.want(&below{}, 3)
	})
}

// TestBelowOthersAgain: what was found counts as long as the newest record is the same,
// on the same connection, with one server.
func TestBelowOthersAgain(t *testing.T) {
	for _, replicated := range []bool{false, true} {
		t.Run(fmt.Sprintf("replicated %v", replicated), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newShelf(t)
				h.s.Single = !replicated
				h.ours(true, 1, 2)
				h.theirs(1)
				seen := &below{}
				h.want(seen, 2)
				if (seen.ours != nil) == replicated {
					t.Errorf("what was found is remembered: %v", seen.ours != nil)
				}
				scans := h.s.Requests("scan")
				h.theirs(1)
				h.want(seen, 2)
				if again := h.s.Requests("scan") - scans; (again == 0) == replicated {
					t.Errorf("%d scans for what was found before", again)
				}
				h.ours(true, 3)
				h.theirs(1)
				h.want(seen, 3)
				// The server lost its newest messages, and others wrote since.
				h.s.Restore(4)
				h.s.Reconnect()
				h.theirs(3)
				h.want(seen, 2)
				h.s.Restore(5)
				h.s.Reconnect()
				h.theirs(1)
				h.want(seen, 1)
			})
		})
	}
}

// TestBelowOthersOfADeposedLeader: the newest message comes from the leader, everything
// else from one that was deposed. What it lacks is found, or it is not believed.
func TestBelowOthersOfADeposedLeader(t *testing.T) {
	for _, theirs := range []int{5, scanned + 1} {
		for _, behind := range []string{"last on", "scan", "next", "last on, next"} {
			t.Run(fmt.Sprint(theirs, " of theirs, ", behind), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					h := newShelf(t)
					h.s.Single = false
					h.ours(true, 1, 2)
					h.theirs(theirs)
					time.Sleep(time.Minute)
					h.s.Depose()
					h.ours(true, 3)
					h.theirs(recentSeqs + 2000)
					h.ours(true, 4)
					h.theirs(recentSeqs + 2000)
					for _, op := range []string{"last on", "scan", "next"} {
						h.stale[op] = behind == op || behind == "last on, next" && op != "scan"
					}
					p, err := locate(t.Context(), h, h.realm, &below{})
					if err == nil && p.at.Last != 4 {
						t.Errorf("found %+v, want event 4 or an error", p.at)
					}
				})
			})
		}
	}
}

// TestHalvingOfADeposedLeader: the newest record comes from the leader, what follows it
// from one that was deposed and lacks all of it.
func TestHalvingOfADeposedLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newShelf(t)
		h.s.Single = false
		h.ours(true, 1, 2)
		h.s.Depose()
		h.ours(true, 3)
		h.theirs(scanned + 1)
		h.stale["next"] = true
		if p, err := locate(t.Context(), h, h.realm, &below{}); err == nil && p.at.Last != 3 {
			t.Errorf("found %+v, want event 3 or an error", p.at)
		}
	})
}

// TestWentBack is when a stream holds less than what is known to have been there.
func TestWentBack(t *testing.T) {
	b := New(Config{})
	b.known, b.knownSeq = poller.Position{Queue: "q", Last: 5}, 10
	for _, test := range []struct {
		name  string
		queue string
		last  int64
		seq   uint64
		back  bool
	}{
		{"as it was", "q", 5, 10, false},
		{"further", "q", 6, 11, false},
		{"a record more", "q", 5, 11, false},
		{"a record fewer", "q", 5, 9, true},
		{"fewer events, though others were stored since", "q", 4, 12, true},
		{"another queue, which begins anew", "p", -1, 12, false},
		{"the queue before", "p", 900, 9, true},
		{"nothing", "", -1, 0, true},
	} {
		p := resumePoint{at: poller.Position{Queue: test.queue, Last: test.last}}
		if test.seq > 0 {
			p.last = &stream.Stored{Seq: test.seq}
		}
		if got := b.wentBack(p); got != test.back {
			t.Errorf("%s: went back %v, want %v", test.name, got, test.back)
		}
	}
}

// TestRecordOfAnotherQueue: the record of another queue says nothing of ours.
func TestRecordOfAnotherQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newShelf(t)
		b := New(Config{Realm: h.realm, Writer: "us"})
		b.stream = h
		e, err := b.queueEntry(&events.Queue{QueueID: "q", Site: "here", Begin: &events.Beginning{},
			Held: &events.Held{From: 1}}, 7, events.NextPoll)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Append(t.Context(), stream.Cursor{}, []stream.Message{e.msg}); err != nil {
			t.Fatal(err)
		}
		h.ours(false, 8, 9)
		last := &stream.Stored{Seq: 3}
		r, err := b.recordOf(t.Context(), resumePoint{at: poller.Position{Queue: "q"}, last: last})
		if err != nil || r == nil || r.Site != "here" {
			t.Fatalf("the record of q: %+v, %v", r, err)
		}
		if r.Begin.Seq != 1 || r.Held.Until != 1 {
			t.Errorf("its story begins at %d and what it held ends at %d, want its own sequence 1", r.Begin.Seq,
				r.Held.Until)
		}
		if r, err := b.recordOf(t.Context(), resumePoint{at: poller.Position{Queue: "p"}, last: last}); err != nil ||
			r != nil {
			t.Errorf("the record of p: %+v, %v; want none", r, err)
		}
	})
}

// TestRecordOfADeposedLeader: the record comes from a leader that was deposed before the
// newest one was written; it has none, or an older one of the same queue.
func TestRecordOfADeposedLeader(t *testing.T) {
	for _, older := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			h := newShelf(t)
			h.s.Single = false
			b := New(Config{Realm: h.realm, Writer: "us", Poller: &poller.Poller{}})
			b.stream = h
			write := func(site string) {
				e, err := b.queueEntry(&events.Queue{QueueID: "q", Site: site}, 7, events.NextPoll)
				if err != nil {
					t.Fatal(err)
				}
				cursor, _, err := h.Last(t.Context())
				if err == nil {
					_, err = h.Append(t.Context(), cursor, []stream.Message{e.msg})
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if older {
				write("an older one")
			}
			h.s.Depose()
			h.ours(false, 1)
			h.stale["last on"] = true
			if m, err := h.LastOn(t.Context(), h.realm.Record(subjects.Queue)); err != nil || (m != nil) != older {
				t.Fatalf("the deposed leader has %+v, %v; older: %v", m, err, older)
			}
			write("here")
			p, err := locate(t.Context(), h, h.realm, &below{})
			if err != nil {
				t.Fatal(err)
			}
			// The first answer to this read comes from the deposed one too.
			at := 0
			faults := h.s.Faults
			h.s.Faults = func(op string) model.Fault {
				f := faults(op)
				if op == "at" {
					at++
					f.Stale = at == 1
				}
				return f
			}
			if r, err := b.recordOf(t.Context(), p); err != nil || r == nil || r.Site != "here" {
				t.Errorf("older %v: the record of q: %+v, %v", older, r, err)
			}
			if at < 2 {
				t.Errorf("older %v: the record was read %d times, want twice", older, at)
			}
		})
	}
}

// TestWhatIsRememberedOfARecord: a queue's record is remembered as long as the newest
// message is the one that was known with it, and ours.
func TestWhatIsRememberedOfARecord(t *testing.T) {
	at := poller.Position{Queue: "q", Last: 5}
	for _, test := range []struct {
		name   string
		seq    uint64
		writer string
		want   bool
	}{
		{"the same message", 7, "us", true},
		{"another instance's, with that sequence, in a stream that was restored", 7, "them", false},
		{"a later one of ours: what was known is what a deposed leader told", 9, "us", false},
		{"an older one", 6, "us", false},
	} {
		b := New(Config{Writer: "us", Poller: &poller.Poller{}})
		b.known, b.knownSeq, b.record = at, 7, &events.Queue{QueueID: "q"}
		last := stored("zulip.acme.message", events.HeaderWriter, test.writer)
		last.Seq = test.seq
		b.adopt(t.Context(), resumePoint{phase: phasePoll, at: at, last: last})
		if got := b.record != nil; got != test.want || b.knownSeq != test.seq {
			t.Errorf("%s: remembered %v, known up to %d; want %v, %d", test.name, got, b.knownSeq, test.want, test.seq)
		}
	}
}

// TestRefusedPollWhereTheStreamMovedOn: nothing is asked and no gap is opened where the
// stream is not what it was thought to be.
func TestRefusedPollWhereTheStreamMovedOn(t *testing.T) {
	record := func(kind, queue string) stream.Message {
		return stream.Message{Subject: "zulip.acme.bridge.x", Headers: []stream.Header{
			{Key: events.HeaderRecord, Value: kind}, {Key: events.HeaderQueueID, Value: queue},
			{Key: events.HeaderPosition, Value: "5"}}}
	}
	for _, test := range []struct {
		name     string
		knownSeq uint64 // of event 5 of q
		last     stream.Message
	}{
		{"it lost a record", 2, record(events.RecordRejected, "q")},
		{"a gap is open", 1, record(events.RecordGapOpened, "q")},
		{"another queue is followed", 1, record(events.RecordQueue, "p")},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newShelf(t)
			b := New(Config{Realm: h.realm, Writer: "us", Poller: &poller.Poller{}})
			b.stream, b.known, b.knownSeq = h, poller.Position{Queue: "q", Last: 5}, test.knownSeq
			if _, err := h.Append(t.Context(), stream.Cursor{}, []stream.Message{test.last}); err != nil {
				t.Fatal(err)
			}
			if alive, err := b.isItLost(t.Context(), &poller.RefusedError{}); alive || !errors.Is(err, errMoved) {
				t.Errorf("alive %v, %v; want that it is read again", alive, err)
			}
		})
	}
}

// TestForget: what was read of a stream that went back counts no more.
func TestForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newShelf(t)
		b := New(Config{Realm: h.realm, Site: "here", Writer: "us", Poller: &poller.Poller{}})
		b.stream, b.known, b.knownSeq = h, poller.Position{Queue: "q", Last: 9}, 99
		b.record, b.held = &events.Queue{QueueID: "q", Site: "there"}, &heldSet{ids: []int64{7}}
		e, err := b.queueEntry(&events.Queue{QueueID: "q", Site: "here",
			Held: &events.Held{From: 1, Until: 1, UpToID: 100}}, 4, events.NextPoll)
		if err == nil {
			_, err = h.Append(t.Context(), stream.Cursor{}, []stream.Message{e.msg})
		}
		if err != nil {
			t.Fatal(err)
		}
		p, err := b.read(t.Context())
		if err != nil || !b.wentBack(p) {
			t.Fatalf("read %+v, %v; want a stream that went back", p, err)
		}
		b.forget(p)
		if b.wentBack(p) {
			t.Error("it goes back again and again")
		}
		if r, err := b.loadRecord(t.Context(), p); err != nil || r.Site != "here" {
			t.Fatalf("the record of q: %+v, %v; want the stream's", r, err)
		}
		if err := b.loadHeld(t.Context(), []poller.Event{{MessageID: 7}}); err != nil || b.holds(7) {
			t.Errorf("message 7 is held: %v, %v", b.holds(7), err)
		}
	})
}

// TestSameQueueNeedsItsRecord: only its own record can tell how to follow a queue that
// lives on.
func TestSameQueueNeedsItsRecord(t *testing.T) {
	for _, r := range []*events.Queue{nil, {QueueID: "p"}} {
		b := New(Config{})
		b.record = r
		err := b.sameQueue(t.Context(), poller.Position{Queue: "q", Last: 5}, resumePoint{}, &events.GapOpened{})
		if err != nil || b.record != r {
			t.Errorf("with the record %+v: %+v, %v; want nothing done", r, b.record, err)
		}
	}
}

// TestBeginningBehindALostTail: where a story begins is a place in the stream, as long as
// that is there.
func TestBeginningBehindALostTail(t *testing.T) {
	r := &events.Queue{QueueID: "q", Begin: &events.Beginning{Seq: 10, Newest: events.MessageIDs{Own: 40}}}
	for _, test := range []struct {
		name  string
		queue string
		seq   uint64
		want  uint64
	}{
		{"the place is there", "q", 10, 10},
		{"the stream ends before it", "q", 9, 0},
		{"the stream ends before the queue", "p", 11, 0},
		{"the stream holds nothing", "", 0, 0},
	} {
		p := resumePoint{at: poller.Position{Queue: test.queue}}
		if test.seq > 0 {
			p.last = &stream.Stored{Seq: test.seq}
		}
		if got := behind(r, p, nil).Begin; got.Seq != test.want || got.Newest != r.Begin.Newest || r.Begin.Seq != 10 {
			t.Errorf("%s: the story begins at %+v, want sequence %d", test.name, *got, test.want)
		}
	}
	survivor := &events.Queue{QueueID: "p", Begin: &events.Beginning{Seq: 3, Newest: events.MessageIDs{Own: 20}}}
	if got := behind(r, resumePoint{at: poller.Position{Queue: "p"}, last: &stream.Stored{Seq: 11}},
		survivor).Begin; got != survivor.Begin {
		t.Errorf("a record survives: the story begins at %+v, want %+v", *got, *survivor.Begin)
	}
	for _, r := range []*events.Queue{nil, {QueueID: "q"}} {
		if got := behind(r, resumePoint{}, nil); got != r {
			t.Errorf("of %+v comes %+v", r, got)
		}
	}
}

// TestPlanOfWhatIsNotKnown: what a plan does not know it does not ask for, and the next
// plan begins with what this one says.
func TestPlanOfWhatIsNotKnown(t *testing.T) {
	both := poller.Options{AllPublicStreams: true}.JSON()
	own := poller.Options{}.JSON()
	short := flow(60, 101, 10_000, 1, true)
	newest := events.MessageIDs{Own: 2000, Public: 3000}
	for _, test := range []struct {
		name   string
		before events.Queue
		in     refillInputs
		want   events.Refill // as far as it is compared
		begin  events.Beginning
	}{
		{"public channels were never known: not their whole past",
			events.Queue{Options: both, Begin: &events.Beginning{Seq: 1,
				Newest: events.MessageIDs{Own: 40, Public: events.Unknown}}},
			refillInputs{held: short, all: true},
			events.Refill{Own: true, Public: true, Above: events.MessageIDs{Own: 40, Public: events.Unknown},
				Unknown: true},
			events.Beginning{Seq: 101, Newest: newest}},
		{"not all of the stream was read: it is not known to be unbroken",
			events.Queue{Options: own, Begin: &events.Beginning{Seq: 1, Newest: events.MessageIDs{Own: 40}}},
			refillInputs{held: short}, events.Refill{Own: true, Above: events.MessageIDs{Own: 100, Public: 3000},
				Overlap: 9880, OverlapAbove: 40},
			events.Beginning{Seq: 101, Newest: events.MessageIDs{Own: 100, Public: 3000},
				Open: &events.Open{Above: 40, At: 10_059}}},
		{"public channels were not asked for: they begin now",
			events.Queue{Options: own, Begin: &events.Beginning{Seq: 1, Newest: events.MessageIDs{Own: 40, Public: 7}}},
			refillInputs{held: short, all: true, info: stream.Info{FirstSeq: 1}},
			events.Refill{Own: true, Above: events.MessageIDs{Own: 40, Public: 3000}},
			events.Beginning{Seq: 101, Newest: events.MessageIDs{Own: 40, Public: 3000}}},
		{"options that cannot be read asked for nothing",
			events.Queue{Options: []byte("{"), Begin: &events.Beginning{Seq: 1}},
			refillInputs{held: short, all: true}, events.Refill{Above: newest},
			events.Beginning{Seq: 101, Newest: newest}},
		{"the stream's limits took what was before its first message",
			events.Queue{Options: own, Begin: &events.Beginning{Seq: 1, Newest: events.MessageIDs{Own: 40}}},
			refillInputs{all: true, info: stream.Info{FirstSeq: 500}},
			events.Refill{Own: true, Above: events.MessageIDs{Own: 40, Public: 3000}},
			events.Beginning{Seq: 500, Newest: events.MessageIDs{Own: 40, Public: 3000}}},
		{"the lower of two floors counts",
			events.Queue{Options: both, Begin: &events.Beginning{Seq: 1,
				Newest: events.MessageIDs{Own: 90, Public: 30}}},
			refillInputs{held: short, all: true, info: stream.Info{FirstSeq: 4}},
			events.Refill{Own: true, Public: true, Above: events.MessageIDs{Own: 100, Public: 100}, Overlap: 9880,
				OverlapAbove: 30},
			events.Beginning{Seq: 101, Newest: events.MessageIDs{Own: 100, Public: 100},
				Open: &events.Open{Above: 30, At: 10_059}}},
		{"one that was delivered again is no bound where nothing else says so",
			events.Queue{Options: own, Newest: events.MessageIDs{Own: events.Unknown}},
			refillInputs{held: append([]heldMessage{{seq: 99, id: 5, sent: 500, live: true}}, short...), all: true},
			events.Refill{Own: true, Above: events.MessageIDs{Own: 100, Public: 3000}, Overlap: 9880, OverlapAbove: 0},
			events.Beginning{Seq: 99, Newest: events.MessageIDs{Own: 100, Public: 3000},
				Open: &events.Open{Above: 0, At: 10_059}}},
		{"a transaction was open at the gap before, and may have been committed since",
			events.Queue{Options: own, Begin: &events.Beginning{Seq: 1, Newest: events.MessageIDs{Own: 90},
				Open: &events.Open{Above: 30, At: 9940}}},
			refillInputs{held: short, all: true, info: stream.Info{FirstSeq: 1}},
			events.Refill{Own: true, Above: events.MessageIDs{Own: 90, Public: 3000},
				NotCompared: &events.Range{Above: 30, UpTo: 90}},
			events.Beginning{Seq: 101, Newest: events.MessageIDs{Own: 90, Public: 3000},
				Open: &events.Open{Above: 30, At: 9940}}},
		{"what is settled by now is below what was open, in part",
			events.Queue{Options: own, Begin: &events.Beginning{Seq: 1, Newest: events.MessageIDs{Own: 950},
				Open: &events.Open{Above: 30, At: 10_990}}},
			refillInputs{held: flow(1000, 1, 10_000, 1, true), all: true, info: stream.Info{FirstSeq: 1}},
			events.Refill{Own: true, Above: events.MessageIDs{Own: 950, Public: 3000},
				NotCompared: &events.Range{Above: 880, UpTo: 950}},
			events.Beginning{Seq: 1, Newest: events.MessageIDs{Own: 950, Public: 3000},
				Open: &events.Open{Above: 880, At: 10_990}}},
		{"all that was open is settled by now",
			events.Queue{Options: own, Begin: &events.Beginning{Seq: 1, Newest: events.MessageIDs{Own: 870},
				Open: &events.Open{Above: 30, At: 10_990}}},
			refillInputs{held: flow(1000, 1, 10_000, 1, true), all: true, info: stream.Info{FirstSeq: 1}},
			events.Refill{Own: true, Above: events.MessageIDs{Own: 880, Public: 3000}},
			events.Beginning{Seq: 1, Newest: events.MessageIDs{Own: 880, Public: 3000}}},
		{"it was committed before the newest message was sent, and its event came before that one's",
			events.Queue{Options: own, Begin: &events.Beginning{Seq: 1, Newest: events.MessageIDs{Own: 90},
				Open: &events.Open{Above: 30, At: 9939}}},
			refillInputs{held: short, all: true, info: stream.Info{FirstSeq: 1}},
			events.Refill{Own: true, Above: events.MessageIDs{Own: 90, Public: 3000}},
			events.Beginning{Seq: 101, Newest: events.MessageIDs{Own: 90, Public: 3000}}},
	} {
		r := &events.Queue{Newest: newest, LifeSeconds: 600}
		test.in.before = &test.before
		test.in.upTo = r.Newest
		plan(r, test.in)
		got := *r.Refill
		got = events.Refill{Own: got.Own, Public: got.Public, Above: got.Above, Unknown: got.Unknown,
			Overlap: got.Overlap, OverlapAbove: got.OverlapAbove, NotCompared: got.NotCompared}
		if !reflect.DeepEqual(got, test.want) || !reflect.DeepEqual(*r.Begin, test.begin) {
			have, _ := json.Marshal([]any{got, r.Begin})
			want, _ := json.Marshal([]any{test.want, test.begin})
			t.Errorf("%s:\n%s, want\n%s", test.name, have, want)
		}
	}
}

// TestWhatCounts as cut: ids that a gap named, and not those of which nothing was known.
func TestWhatCountsAsCut(t *testing.T) {
	before := []events.Range{{Above: 1, UpTo: 2}}
	for _, test := range []struct {
		name string
		n    *events.NotRefilled
		want int
	}{
		{"nothing left out", nil, 1},
		{"a bound", &events.NotRefilled{Reason: "the limit of 5 messages was reached", AboveID: 7, UpToID: 9}, 2},
		{"no range", &events.NotRefilled{Reason: "older than the greatest age", TooOld: 3}, 1},
		{"not known", &events.NotRefilled{Reason: reasonUnknown + "; --start-from can", UpToID: 9}, 1},
	} {
		closed := events.GapClosed{NotRefilled: test.n}
		if got := withCut(before, closed.NotRefilled); len(got) != test.want {
			t.Errorf("%s: %v, want %d ranges", test.name, got, test.want)
		}
	}
}

// roundTrip answers requests in the place of a server.
type roundTrip func(*http.Request) *http.Response

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

// TestTailLostAndNothingMissing: the stream holds less than what was known, and Zulip does
// not take up its position. No event is missing where none was known, or where another
// instance has come as far in a stream that was made anew: the stream is believed.
func TestTailLostAndNothingMissing(t *testing.T) {
	at := poller.Position{Queue: "q", Last: 5}
	for name, known := range map[string]poller.Position{"no queue was known": {Last: -1}, "as far": at} {
		synctest.Test(t, func(t *testing.T) {
			var asked []string
			zulip := roundTrip(func(r *http.Request) *http.Response {
				asked = append(asked, r.URL.Query().Get("queue_id"))
				body := `{"result":"error","msg":"Bad event queue ID","code":"BAD_EVENT_QUEUE_ID"}`
				return &http.Response{StatusCode: 400, Request: r,
					Header: http.Header{"Content-Type": {"application/json"}},
					Body:   io.NopCloser(strings.NewReader(body))}
			})
			h := newShelf(t)
			b := New(Config{Realm: h.realm, Writer: "us",
				Poller: &poller.Poller{Client: &poller.Client{Transport: zulip,
					Account: func() (poller.Account, error) {
						return poller.Account{Email: "e@example.com", Key: strings.Repeat("k", 32),
							Site: "https://z.example.com"}, nil
					}}}})
			b.stream, b.known, b.knownSeq = h, known, 9
			if err := b.tailLost(t.Context(),
				resumePoint{phase: phasePoll, at: at, last: &stream.Stored{Seq: 3}}); err != nil {
				t.Error(name, err)
			}
			if !slices.Equal(asked, []string{"q"}) || b.known != at || b.knownSeq != 3 || len(h.s.Ever(0)) != 0 {
				t.Errorf("%s: asked for the queues %q, known is %v, stored: %v; want one question, and what the "+
					"stream says", name,
					asked, b.known, h.s.Ever(0))
			}
		})
	}
}

// scans is a shelf that remembers which subjects were read.
type scans struct {
	*shelf
	subjects []string
}

func (s *scans) Scan(ctx context.Context, subject string, from stream.Start, until uint64, headersOnly bool,
	f func(*stream.Stored) error) error {
	s.subjects = append(s.subjects, subject)
	return s.shelf.Scan(ctx, subject, from, until, headersOnly, f)
}

// TestRefillReadsMessagesOnly: what the stream holds of messages is read off their own
// subject, however many heartbeats and other events lie between.
func TestRefillReadsMessagesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &scans{shelf: newShelf(t)}
		b := New(Config{Realm: h.realm, Writer: "us", Poller: &poller.Poller{}})
		b.stream = h
		last := &stream.Stored{Seq: h.ours(true, 1, 2, 3)}
		record := &events.Queue{QueueID: "q", Held: &events.Held{From: 1}, Refill: &events.Refill{}}
		_, err := b.heldBy(t.Context(), resumePoint{last: last}, record, &events.GapClosed{})
		if err == nil {
			_, _, err = b.newestHeld(t.Context())
		}
		if err != nil || !slices.Equal(h.subjects, []string{"zulip.acme.message", "zulip.acme.message"}) {
			t.Errorf("read: %q, %v; want zulip.acme.message alone, twice", h.subjects, err)
		}
	})
}

// TestStepsWithoutAPause: eight steps may follow each other at once; behind one that took
// its time there may be eight more. One that did not do its part is always paused behind.
func TestStepsWithoutAPause(t *testing.T) {
	s := newSteps()
	for i, test := range []struct {
		done bool
		took time.Duration
		want bool
	}{
		{true, 0, false}, {true, 0, false}, {true, 0, false}, {true, 0, false}, {true, 0, false}, {true, 0, false},
		{true, 0, false}, {true, 0, false}, {true, 0, true}, {true, time.Second, true}, {true, time.Minute, false},
		{true, 0, false}, {false, 0, true}, {false, time.Minute, true}, {true, 0, false},
	} {
		if got := s.tooMany(test.done, test.took); got != test.want {
			t.Errorf("step %d: a pause: %v, want %v", i, got, test.want)
		}
	}
}

// TestRecordFarBelowOthers: others publish on the records' subject. Ours is found however
// far below theirs, and what is near is read first.
func TestRecordFarBelowOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &scans{shelf: newShelf(t)}
		subject := h.realm.Record(subjects.Queue)
		ours := h.ours(true)
		for _, test := range []struct{ theirs, scans int }{{500, 1}, {1000, 2}, {20_000, 4}} {
			for range test.theirs {
				h.s.Publish(subject, []byte("theirs"))
			}
			h.subjects = nil
			m, err := newestOurs(t.Context(), h, subject)
			if err != nil || m == nil || m.Seq != ours || len(h.subjects) != test.scans {
				t.Errorf("%d more of theirs: found %+v, %v, in %d readings; want sequence %d in %d",
					test.theirs, m, err,
					len(h.subjects), ours, test.scans)
			}
		}
	})
}

// TestPasses: where a way through history begins, and from where on messages below the
// bound are taken that may have been committed late.
func TestPasses(t *testing.T) {
	for _, test := range []struct {
		name           string
		plan           events.Refill
		asked, overlap int64
	}{
		{"at the bound", events.Refill{}, 100, 0},
		{"with an overlap", events.Refill{Overlap: 7, OverlapAbove: 60}, 60, 7},
		{"cut off in the overlap", events.Refill{Overlap: 7, OverlapAbove: 60, Done: 80}, 80, 7},
		{"cut off behind it", events.Refill{Overlap: 7, OverlapAbove: 60, Done: 120}, 120, 0},
		{"cut off at its end", events.Refill{Overlap: 7, OverlapAbove: 60, Done: 100}, 100, 0},
		{"cut off without one", events.Refill{Done: 120}, 120, 0},
	} {
		if h := newPass(query{}, 100, 200, &test.plan); h.asked != test.asked || h.overlap != test.overlap ||
			h.above != 100 {
			t.Errorf("%s: asked from %d, overlap since %d, above %d; want %d, %d, 100", test.name, h.asked,
				h.overlap, h.above,
				test.asked, test.overlap)
		}
	}
}

// TestSweep deletes one leftover at a time: Zulip may not answer, and events wait.
func TestSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var deleted []string
		zulip := roundTrip(func(r *http.Request) *http.Response {
			body, _ := io.ReadAll(r.Body)
			deleted = append(deleted, string(body))
			return &http.Response{StatusCode: 200, Request: r,
				Header: http.Header{"Content-Type": {"application/json"}},
				Body:   io.NopCloser(strings.NewReader(`{"result":"success","msg":""}`))}
		})
		b := New(Config{Writer: "us", Poller: &poller.Poller{Client: &poller.Client{Transport: zulip,
			Account: func() (poller.Account, error) {
				return poller.Account{Email: "e@example.com", Key: strings.Repeat("k", 32),
					Site: "https://z.example.com"}, nil
			}}}})
		b.leave("p")
		b.leave("q")
		b.leave("p")
		for n := 1; n <= 3; n++ {
			b.sweep(t.Context(), 5)
			if want := min(n, 2); len(deleted) != want || len(b.leftovers) != 2-want {
				t.Fatalf("after %d sweeps: %q deleted, left over: %v", n, deleted, b.leftovers)
			}
		}
		if b.leave("p"); len(b.leftovers) != 0 {
			t.Errorf("left over again: %v", b.leftovers)
		}
	})
}
