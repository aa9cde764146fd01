package bridge

import (
	"errors"
	"testing"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/subjects"
)

// TestSettle is the reconcile table: what the newest message says of entries whose answer
// was unclear. Known is event 5 of queue q, at sequence 1; in hand are the events 6, 7
// and 8.
func TestSettle(t *testing.T) {
	realm, err := subjects.ParseRealm("acme")
	if err != nil {
		t.Fatal(err)
	}
	message := func(queue, id, writer string) stream.Message {
		return stream.Message{Subject: "zulip.acme.message", Headers: []stream.Header{
			{Key: events.HeaderQueueID, Value: queue}, {Key: events.HeaderEventID, Value: id},
			{Key: events.HeaderOrigin, Value: events.OriginLive}, {Key: events.HeaderWriter, Value: writer}}}
	}
	record := func(kind, position string) stream.Message {
		return stream.Message{Subject: "zulip.acme.bridge.x", Headers: []stream.Header{
			{Key: events.HeaderRecord, Value: kind}, {Key: events.HeaderQueueID, Value: "q"},
			{Key: events.HeaderPosition, Value: position}, {Key: events.HeaderWriter, Value: "other"}}}
	}
	for _, test := range []struct {
		name   string
		since  []stream.Message // stored after event 5
		lost   int              // taken away from the end
		stored int
		moved  bool

		known    []stream.Message // stored after event 5 and known too, before since
		restored int              // then taken away from the end, and their numbers with them
	}{
		{"nothing was stored", nil, 0, 0, false, nil, 0},
		{"a part was", []stream.Message{message("q", "6", "us"), message("q", "7", "us")}, 0, 2, false, nil, 0},
		{"all of it was", []stream.Message{message("q", "6", "us"), message("q", "7", "us"), message("q", "8", "us")},
			0, 3, false, nil, 0},
		{"another instance stored it", []stream.Message{message("q", "6", "other")}, 0, 0, true, nil, 0},
		{"another instance stored more", []stream.Message{message("q", "9", "other")}, 0, 0, true, nil, 0},
		{"another instance follows another queue", []stream.Message{message("p", "6", "other")}, 0, 0, true, nil, 0},
		{"another instance opened a gap", []stream.Message{record(events.RecordGapOpened, "5")}, 0, 0, true, nil, 0},
		{"another instance closed a gap, and the place is the same",
			[]stream.Message{record(events.RecordGapOpened, "5"), record(events.RecordGapClosed, "5")}, 0, 0,
			true, nil, 0},
		{"the stream lost what was known", nil, 1, 0, true, nil, 0},
		{"the stream lost a record that was known", nil, 1, 0, true,
			[]stream.Message{record(events.RecordRejected, "5")}, 0},
		{"likewise, and another instance stored an event in hand",
			[]stream.Message{message("q", "6", "other")}, 0, 0, true,
			[]stream.Message{record(events.RecordRejected, "5"), record(events.RecordRejected, "5")}, 3},
		{"likewise, and the number is that of another queue's event", []stream.Message{message("p", "5", "other")}, 0,
			0, true, nil, 1},
		{"likewise, and the number is that of a gap", []stream.Message{record(events.RecordGapOpened, "5")}, 0, 0,
			true, nil, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &model.Stream{Filter: realm.All()}
			c := s.Client(t.Context())
			at, err := c.Append(t.Context(), stream.Cursor{},
				append([]stream.Message{message("q", "5", "us")}, test.known...))
			if err != nil {
				t.Fatal(err)
			}
			known := at.Seq
			if test.restored > 0 {
				s.Restore(test.restored)
				if at, _, err = c.Last(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if len(test.since) > 0 {
				if _, err := c.Append(t.Context(), at, test.since); err != nil {
					t.Fatal(err)
				}
			}
			s.Remove(test.lost)
			b := New(Config{Realm: realm, Writer: "us"})
			b.stream, b.known, b.knownSeq = c, poller.Position{Queue: "q", Last: 5}, known
			var entries []entry
			for i, id := range []string{"6", "7", "8"} {
				entries = append(entries, entry{msg: message("q", id, "us"),
					after: poller.Position{Queue: "q", Last: int64(6 + i)}})
			}
			stored, _, err := b.settle(t.Context(), entries, phasePoll)
			if stored != test.stored || errors.Is(err, errMoved) != test.moved || err != nil && !test.moved {
				t.Fatalf("%d of the entries are stored, error %v; want %d, moved on: %v", stored, err,
					test.stored, test.moved)
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
