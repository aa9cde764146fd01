package bridge_test

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"zulip-nats/bridge"
	"zulip-nats/events"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/zulipsim"
)

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
			w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: strings.Repeat("large ", 1600)})
			w.say(1)
			w.jet.SetFaults(func(op string) (f model.Fault) {
				if op == "put object" {
					f.Fail = stream.Unavailable
				}
				return f
			})
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
