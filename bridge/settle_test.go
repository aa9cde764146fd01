package bridge

import (
	"errors"
	"testing"

	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/subjects"
)

// TestSettle is the reconcile table: what the newest message says of entries whose answer was unclear. Known is event 5 of queue q, at
// sequence 1; in hand are the events 6, 7 and 8.
func TestSettle(t *testing.T) {
	realm, err := subjects.ParseRealm("acme")
	if err != nil {
		t.Fatal(err)
	}
	message := func(queue, id, writer string) stream.Message {
		return stream.Message{Subject: "zulip.acme.message", Headers: []stream.Header{
			{Key: HeaderQueueID, Value: queue}, {Key: HeaderEventID, Value: id}, {Key: HeaderOrigin, Value: originLive}, {Key: HeaderWriter, Value: writer}}}
	}
	record := func(kind, position string) stream.Message {
		return stream.Message{Subject: "zulip.acme.bridge.x", Headers: []stream.Header{
			{Key: HeaderRecord, Value: kind}, {Key: HeaderQueueID, Value: "q"}, {Key: HeaderPosition, Value: position}, {Key: HeaderWriter, Value: "other"}}}
	}
	for _, test := range []struct {
		name   string
		since  []stream.Message // stored after event 5
		lost   int              // taken away from the end
		stored int
		moved  bool
	}{
		{"nothing was stored", nil, 0, 0, false},
		{"a part was", []stream.Message{message("q", "6", "us"), message("q", "7", "us")}, 0, 2, false},
		{"all of it was", []stream.Message{message("q", "6", "us"), message("q", "7", "us"), message("q", "8", "us")}, 0, 3, false},
		{"another instance stored it", []stream.Message{message("q", "6", "other")}, 0, 1, false},
		{"another instance stored more", []stream.Message{message("q", "9", "other")}, 0, 0, true},
		{"another instance follows another queue", []stream.Message{message("p", "6", "other")}, 0, 0, true},
		{"another instance opened a gap", []stream.Message{record(recordGapOpened, "5")}, 0, 0, true},
		{"another instance closed a gap, and the place is the same", []stream.Message{record(recordGapOpened, "5"), record(recordGapClosed, "5")}, 0, 0, true},
		{"the stream lost what was known", nil, 1, 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &model.Stream{Filter: realm.All()}
			c := s.Client(t.Context())
			at, err := c.Append(t.Context(), stream.Cursor{}, []stream.Message{message("q", "5", "us")})
			if err != nil {
				t.Fatal(err)
			}
			if len(test.since) > 0 {
				if _, err := c.Append(t.Context(), at, test.since); err != nil {
					t.Fatal(err)
				}
			}
			s.Remove(test.lost)
			b := New(Config{Realm: realm, Writer: "us"})
			b.stream, b.known, b.knownSeq = c, poller.Position{Queue: "q", Last: 5}, at.Seq
			var entries []entry
			for i, id := range []string{"6", "7", "8"} {
				entries = append(entries, entry{message("q", id, "us"), poller.Position{Queue: "q", Last: int64(6 + i)}})
			}
			stored, err := b.settle(t.Context(), entries, phasePoll)
			if stored != test.stored || errors.Is(err, errMoved) != test.moved || err != nil && !test.moved {
				t.Fatalf("%d of the entries are stored, error %v; want %d, moved on: %v", stored, err, test.stored, test.moved)
			}
			if want := int64(5 + stored); b.known.Last != want && !test.moved {
				t.Errorf("known is event %d, want %d", b.known.Last, want)
			}
			if want := uint64(1 + len(test.since)); b.cursor != (stream.Cursor{Seq: want}) && !test.moved {
				t.Errorf("the next write follows %+v, want sequence %d, as read", b.cursor, want)
			}
		})
	}
}
