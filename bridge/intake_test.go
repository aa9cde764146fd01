package bridge_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/events"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/zulipsim"
)

// An answer is read piece by piece, and each piece is on its way to the stream before it is
// known that those in front of it have arrived. The simulation does that in three of five
// worlds; these are the courses with a reason of their own.

// backlog gives the instance an answer of n messages at once, read in pieces of two, and
// calls f where these wait at Zulip.
func (w *world) backlog(one *instance, n int, f func()) {
	w.t.Helper()
	w.maxBatch = 2
	one.follows(1)
	one.gate.close()
	w.say(1) // ends the poll that waits
	time.Sleep(time.Second)
	w.say(n)
	f()
}

// sayLarge sends a message of some ten thousand bytes.
func (w *world) sayLarge() {
	w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: strings.Repeat("large ", 1600)})
}

// failing lets one kind of request fail.
func failing(op string, kind stream.Kind) func(string) model.Fault {
	return func(asked string) (f model.Fault) {
		if asked == op {
			f.Fail = kind
		}
		return f
	}
}

// polls counts the requests for events so far.
func (w *world) polls() (n int) {
	for _, r := range w.zulip.Requests() {
		if r.Kind == zulipsim.Events {
			n++
		}
	}
	return n
}

// An answer that ends where a piece ends is no sign that somebody else polls the queue.
func TestAnswerThatEndsWithAPiece(t *testing.T) {
	story(t, func(w *world, one *instance) {
		var log bytes.Buffer
		w.log = zerolog.New(&log)
		w.backlog(one, 8, func() {})
		before := w.polls()
		one.gate.open()
		time.Sleep(500 * time.Millisecond)
		if n := w.polls() - before; n != 2 { // that of the answer, and the one that waits
			t.Errorf("%d polls for one answer, want 2", n)
		}
		if live, _ := w.origins(); live != 10 {
			t.Errorf("%s, want 10", w.originsText())
		}
		one.stop()
		if strings.Contains(log.String(), "polls this queue too") {
			t.Errorf("the log speaks of another client:\n%s", log.String())
		}
	})
}

// Pieces in the middle of an answer are not stored, in part, or late, or that is not told.
// Zulip is asked again from where the stream is, if it lacks any, and once: for a while
// each piece is seen to be stored before the next one is read.
func TestPieceThatIsNotStored(t *testing.T) {
	for _, test := range []struct {
		fault model.Fault
		least int // polls: that of the answer, the one that waits, and else one that asks again
	}{
		{model.Fault{Deaf: true}, 2}, // all that had left may be there
		{model.Fault{Fail: stream.Unavailable}, 3},
		{model.Fault{Fail: stream.Refused}, 3},
		{model.Fault{Keep: 1}, 2},
		{model.Fault{Deaf: true, Late: 3 * time.Second}, 2},
	} {
		story(t, func(w *world, one *instance) {
			w.backlog(one, 40, func() {
				writes := 0
				w.jet.SetFaults(func(op string) (f model.Fault) {
					if op == "append" {
						if writes++; writes%5 == 0 {
							f = test.fault
						}
					}
					return f
				})
			})
			before := w.polls()
			one.gate.open()
			time.Sleep(40 * time.Second)
			if n := w.polls() - before; n < test.least || n > 3 {
				t.Errorf("%+v: %d polls for one answer, want %d to 3", test.fault, n, test.least)
			}
			if live, _ := w.origins(); live != 42 {
				t.Errorf("%+v: %s, want 42", test.fault, w.originsText())
			}
			w.jet.SetFaults(nil)
			w.check()
		})
	}
}

// A later piece has an event too large for a message, and the object store takes nothing
// for a while: what came before is seen to be stored, and no write stays open meanwhile.
func TestLargeEventInALaterPiece(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.MaxPayload = 9000
		w.backlog(one, 5, func() {
			w.sayLarge()
			w.say(5)
			w.jet.SetFaults(failing("put object", stream.Unavailable))
		})
		before := w.polls()
		one.gate.open()
		time.Sleep(30 * time.Second)
		s := one.bridge.Status()
		if live, _ := w.origins(); live != 6 || s.LastEventID != 5 {
			t.Errorf("%s, and up to event %d are known to be stored, while the object store is waited for",
				w.originsText(), s.LastEventID)
		}
		w.jet.SetFaults(nil)
		time.Sleep(10 * time.Second)
		if live, _ := w.origins(); live != 13 || len(w.jet.Objects()) != 1 {
			t.Errorf("%s, %d objects; want 13 and one", w.originsText(), len(w.jet.Objects()))
		}
		if n := w.polls() - before; n != 2 {
			t.Errorf("%d polls for one answer, want 2", n)
		}
		w.check()
	})
}

// The rest of an answer comes slowly: what is there is seen to be stored before more of it
// is waited for.
func TestAnswerThatComesSlowly(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.backlog(one, 30, func() {
			w.zulip.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 1, Trickle: 4000, TricklePause: 20 * time.Second})
		})
		before := w.polls()
		one.gate.open()
		time.Sleep(5 * time.Second)
		live, _ := w.origins()
		if last := one.bridge.Status().LastEventID; live < 4 || last != int64(live)-1 || w.polls() != before+1 {
			t.Errorf("%s, and up to event %d are known to be stored in the middle of the answer, after %d polls",
				w.originsText(), last, w.polls()-before)
		}
		time.Sleep(5 * time.Minute)
		w.check()
	})
}

// The largest size of a message falls between the moment in which a later piece is seen to
// fit and that in which it is encoded: the write under way is not kept for the object store,
// which may be waited for as long as it takes.
func TestLimitThatFallsInAWrite(t *testing.T) {
	story(t, func(w *world, one *instance) {
		var jet *narrowing
		w.configure = func(c *bridge.Config) {
			open := c.Open
			c.Open = func(ctx context.Context) (bridge.Stream, error) {
				s, err := open(ctx)
				jet = &narrowing{Stream: s}
				return jet, err
			}
		}
		w.backlog(one, 5, func() {
			w.sayLarge()
			w.say(5)
		})
		jet.from = 9000
		one.gate.open()
		time.Sleep(10 * time.Second)
		if live, _ := w.origins(); live != 13 || len(w.jet.Objects()) != 1 || jet.within > 0 {
			t.Errorf("%s, %d objects, %d put there within a write; want 13, one and none", w.originsText(),
				len(w.jet.Objects()), jet.within)
		}
		w.check()
	})
}

// narrowing is a stream that takes a large message no more when it is asked for the second
// time.
type narrowing struct {
	bridge.Stream
	from          int // bytes
	asked, within int
	writing       bool
}

func (s *narrowing) Fits(m *stream.Message) bool {
	if s.from > 0 && len(m.Data) > s.from {
		if s.asked++; s.asked > 1 {
			return false
		}
	}
	return s.Stream.Fits(m)
}

func (s *narrowing) AppendEach(ctx context.Context, after stream.Cursor, source stream.Source) (stream.Cursor, error) {
	s.writing = true
	defer func() { s.writing = false }()
	return s.Stream.AppendEach(ctx, after, source)
}

func (s *narrowing) PutObject(ctx context.Context, name string, data []byte) error {
	if s.writing {
		s.within++
	}
	return s.Stream.PutObject(ctx, name, data)
}

// The bytes of events are the poller's, who puts the next batch in their place when it is
// asked for one, whatever comes of that: here a batch that has to wait for the object
// store. So what was sent before cannot be sent again from memory.
func TestBatchBehindWhichAnotherWaits(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.MaxPayload = 9000
		one.follows(1)
		one.gate.close()
		w.say(1) // ends the poll that waits
		time.Sleep(time.Second)
		for n := range 3000 { // several of the largest windows
			text := fmt.Sprintf("message %d ", n)
			size := 4000
			if n%10 == 0 {
				size = 9600
			}
			w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: strings.Repeat(text, size/len(text))})
		}
		writes := 0
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "append" {
				if writes++; writes%3 == 0 {
					f.Fail = stream.Unavailable
				}
			}
			return f
		})
		one.gate.open()
		time.Sleep(5 * time.Minute)
		w.jet.SetFaults(nil)
		wrong := 0
		for _, m := range w.jet.Messages() {
			var body struct{ ID int64 }
			id := first(m, events.HeaderEventID)
			if first(m, events.HeaderRecord) != "" || id == "" || len(m.Data) == 0 {
				continue
			}
			if err := json.Unmarshal(m.Data, &body); err != nil || strconv.FormatInt(body.ID, 10) != id {
				if wrong++; wrong <= 3 {
					t.Errorf("at %d, as event %s of the queue, stands event %d (%v): %.40q", m.Seq, id, body.ID, err, m.Data)
				}
			}
		}
		if wrong > 0 {
			t.Errorf("%d events are stored with the bytes of others", wrong)
		}
	})
}

// A record of the queue names no smaller id than that of a message that stands before it:
// where the limits take the messages, a refill begins behind it.
func TestRecordBehindALaterPiece(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.jet.MaxPayload = 9000
		w.configure = func(c *bridge.Config) { c.OversizeWait = 10 * time.Second }
		w.backlog(one, 8, func() {
			w.sayLarge()
			w.say(1)
			w.jet.SetFaults(failing("put object", stream.Unavailable))
		})
		one.gate.open()
		time.Sleep(time.Minute)
		w.recordsNameTheNewest()
	})
}

// Nor where a write fails of which a part stands, and others publish right behind that.
func TestRecordBehindAWriteThatFailed(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.backlog(one, 40, func() {
			writes := 0
			w.jet.SetFaults(func(op string) (f model.Fault) {
				if op == "append" {
					if writes++; writes == 6 {
						f.Fail = stream.Unavailable
						time.AfterFunc(10*time.Millisecond, func() { w.jet.Publish("zulip.acme.others", nil) })
					}
				}
				return f
			})
		})
		one.gate.open()
		time.Sleep(time.Minute)
		w.recordsNameTheNewest()
	})
}

// recordsNameTheNewest complains of each record of the queue that names a smaller id than
// that of a message before it.
func (w *world) recordsNameTheNewest() {
	w.t.Helper()
	largest := int64(0)
	for _, m := range w.jet.Messages() {
		if id, err := strconv.ParseInt(first(m, events.HeaderMessageID), 10, 64); err == nil {
			largest = max(largest, id)
		}
		if first(m, events.HeaderRecord) != events.RecordQueue {
			continue
		}
		var r events.Queue
		if err := json.Unmarshal(m.Data, &r); err != nil {
			w.t.Fatal(err)
		}
		if r.Newest.Own < largest {
			w.t.Errorf("the record at %d (%s) says that the newest message is %d, and %d stands before it", m.Seq, r.Why,
				r.Newest.Own, largest)
		}
	}
}
