package bridge

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// Each known type has a place of its own; all others share one.
func TestTallies(t *testing.T) {
	seen := map[tally]string{}
	for _, name := range poller.EventTypes() {
		place := eventTally(name)
		if place < tallyTypes || seen[place] != "" {
			t.Errorf("%s has the place %d, which is that of %q; make tallies larger", name, place, seen[place])
		}
		seen[place] = name
	}
	for _, name := range []string{"", "brand_new", "bridge"} {
		if place := eventTally(name); place != tallyOther {
			t.Errorf("%q has the place %d", name, place)
		}
	}
}

// What is found stored may have been counted before.
func TestFoundIsCountedOnce(t *testing.T) {
	realm, err := subjects.ParseRealm("acme")
	if err != nil {
		t.Fatal(err)
	}
	five := make([]entry, 5)
	for i := range five {
		five[i] = entry{tally: tallyOther, msg: stream.Message{Data: make([]byte, 100)}}
	}
	for _, test := range []struct {
		name string
		do   func(r *report)
		want uint64
	}{
		{"acknowledged", func(r *report) { r.stored(five, 5, true) }, 5},
		{"found", func(r *report) { r.stored(five, 5, false) }, 5},
		{"found in two parts", func(r *report) { r.stored(five[:2], 2, false); r.stored(five[2:], 5, false) }, 5},
		{"acknowledged, and found again", func(r *report) { r.stored(five, 5, true); r.stored(five, 5, false) }, 5},
		{"found again one by one, and two more", func(r *report) {
			r.stored(five, 5, true)
			r.stored(five[:1], 1, false)
			r.stored(five, 7, false)
		}, 7},
		{"of a stream that was made anew", func(r *report) {
			r.stored(five, 1000, true)
			r.stored(five, 5, true)
			r.stored(five, 10, false)
		}, 15},
	} {
		b := New(Config{Realm: realm, Poller: &poller.Poller{}})
		test.do(&b.report)
		if c := b.Status().Counters; c.Events["other"] != test.want || c.Bytes != 100*test.want {
			t.Errorf("%s: %d events of %d bytes, want %d", test.name, c.Events["other"], c.Bytes, test.want)
		}
	}
}

// What was shown stays as it is: somebody may be reading it.
func TestShownIsNotChanged(t *testing.T) {
	realm, err := subjects.ParseRealm("acme")
	if err != nil {
		t.Fatal(err)
	}
	b := New(Config{Realm: realm, Poller: &poller.Poller{}})
	b.report.failed(SideNATS, &stream.Error{Kind: stream.Full})
	before := b.report.current.Load()
	b.report.failed(SideNATS, &stream.Error{Kind: stream.Full})
	b.report.stored([]entry{{tally: tallyOther}}, 1, true)
	if n := before.Counters.Errors[Error{SideNATS, "full"}]; n != 1 || before.tallies[tallyOther] != 0 {
		t.Errorf("what was shown has now %d errors and %d events, want 1 and none", n, before.tallies[tallyOther])
	}
	c := b.Status().Counters
	if c.Errors[Error{SideNATS, "full"}] != 2 || c.Events["other"] != 1 {
		t.Errorf("what is shown is %+v", c)
	}
	clear(c.Errors) // a reader may do with it what it likes
	if c := b.Status().Counters; c.Errors[Error{SideNATS, "full"}] != 2 {
		t.Errorf("a reader changed it to %+v", c)
	}
}

// The last events are runs of one type each, the newest first, and no more than there is
// room for.
func TestRecent(t *testing.T) {
	realm, err := subjects.ParseRealm("acme")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		batches []string // of types, with blanks between
		want    string
	}{
		{"nothing", nil, ""},
		{"records of ours are no events", []string{"-", "- -"}, ""},
		{"one", []string{"message"}, "message 1 at 0"},
		{"a run within a batch", []string{"message message typing"}, "typing 1 at 0; message 2 at 0"},
		{"a run over batches", []string{"heartbeat", "heartbeat -", "heartbeat"}, "heartbeat 3 at 0 to 2"},
		{"one that is broken off", []string{"message", "typing", "message"}, "message 1 at 2; typing 1 at 1; message 1 at 0"},
		{"types that nobody knows", []string{"<script> brand_new"}, "other 2 at 0"},
		{"what became of events", []string{"!rejected !skipped !refilled !refilled"},
			"refilled 2 at 0; skipped 1 at 0; rejected 1 at 0"},
		{"more than there is room for", []string{strings.Repeat("message typing ", 500)},
			strings.Repeat("; typing 1 at 0; message 1 at 0", 6)[2:]},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := New(Config{Realm: realm, Poller: &poller.Poller{}})
				began := time.Now()
				for _, batch := range test.batches {
					var entries []entry
					for kind := range strings.FieldsSeq(batch) {
						is, named := map[string]tally{"-": tallyNone, "!rejected": tallyRejected, "!skipped": tallySkipped,
							"!refilled": tallyRefilled}[kind]
						if !named {
							is = eventTally(kind)
						}
						entries = append(entries, entry{tally: is})
					}
					b.report.stored(entries, 1, true)
					time.Sleep(time.Minute)
				}
				var got []string
				for _, r := range b.Status().Recent {
					text := fmt.Sprintf("%s %d at %v", r.Type, r.Count, r.First.Sub(began).Minutes())
					if r.Last.After(r.First) {
						text += fmt.Sprintf(" to %v", r.Last.Sub(began).Minutes())
					}
					got = append(got, text)
				}
				if strings.Join(got, "; ") != test.want {
					t.Errorf("got %q, want %q", strings.Join(got, "; "), test.want)
				}
			})
		})
	}
}

// BenchmarkCount is what a batch of a thousand events costs to be counted and shown.
func BenchmarkCount(b *testing.B) {
	entries := make([]entry, 1000)
	for i := range entries {
		entries[i] = entry{tally: eventTally("message"), msg: stream.Message{
			Headers: []stream.Header{{Key: events.HeaderOrigin, Value: events.OriginLive}}, Data: make([]byte, 400)}}
	}
	var r report
	b.ReportAllocs()
	for b.Loop() {
		for i := range entries {
			entries[i].tally = eventTally("message")
		}
		r.stored(entries, 1, true)
	}
}

// BenchmarkStatus is what one question costs.
func BenchmarkStatus(b *testing.B) {
	realm, _ := subjects.ParseRealm("acme")
	bridge := New(Config{Realm: realm, Poller: &poller.Poller{}})
	b.ReportAllocs()
	for b.Loop() {
		bridge.Status()
	}
}
