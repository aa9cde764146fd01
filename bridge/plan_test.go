package bridge

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
)

// flow is messages as a stream holds them: one each so many seconds from a time on, with
// ids from one on.
func flow(n int, id, sent, every int64, live bool) (msgs []heldMessage) {
	for i := range int64(n) {
		msgs = append(msgs, heldMessage{seq: uint64(id + i), id: id + i, sent: sent + i*every, live: live})
	}
	return msgs
}

// TestSettled: the lower bound is the largest id that was sent two minutes or more before
// the newest live message, whatever came late, came again or came from history.
func TestSettled(t *testing.T) {
	live := flow(1000, 1, 10_000, 1, true) // the newest, id 1000, was sent at 10,999
	late := slices.Clone(live)
	late[990].id, late[990].sent = 5000, 10_990 // a greater id, sent within the two minutes
	again := append(slices.Clone(live), heldMessage{seq: 2000, id: 3, sent: 10_002, live: true})
	for _, tt := range []struct {
		name       string
		msgs       []heldMessage
		bound      int64
		enough, ok bool
	}{
		{"nothing", nil, 0, false, false},
		{"a minute of messages", live[940:], 0, false, false},
		{"three minutes: a bound, and not enough to compare with", live[820:], 880, false, true},
		{"four minutes and 101 older ones", live[659:], 880, true, true},
		{"one fewer", live[660:], 880, false, true},
		{"a long time", live, 880, true, true},
		{"a greater id within the two minutes is none", late, 880, true, true},
		{"an old message delivered again is neither bound nor newest", again, 880, true, true},
		{"delivered again, and that is all that is old", append(slices.Clone(live[940:]), again[1000]), 3, false, true},
		{"history's messages are no events: they do not say how far the queue was",
			append(slices.Clone(live), flow(300, 2001, 20_000, 1, false)...), 880, true, true},
		{"but they are a bound", append(flow(300, 1, 5_000, 1, false),
			heldMessage{seq: 9, id: 400, sent: 5_500, live: true}), 300, true, true},
		{"of some nobody knows when they were sent",
			append(slices.Clone(live), heldMessage{seq: 3000, id: 3000, live: true}), 880, true, true},
		{"a clock that was put back an hour", append(slices.Clone(live), flow(10, 1001, 7_400, 1, true)...), 1010,
			false, true},
	} {
		bound, enough, ok := settled(tt.msgs)
		if bound != tt.bound || enough != tt.enough || ok != tt.ok {
			t.Errorf("%s: bound %d, enough %v, ok %v; want %d, %v, %v", tt.name, bound, enough, ok, tt.bound,
				tt.enough, tt.ok)
		}
	}
}

// TestPlan is which ids a refill asks for, and from where on they are compared.
func TestPlan(t *testing.T) {
	all := poller.Options{}.JSON()
	public := poller.Options{AllPublicStreams: true}.JSON()
	none := poller.Options{EventTypes: []string{"reaction"}}.JSON()
	story := func(seq uint64, own int64) *events.Beginning {
		return &events.Beginning{Seq: seq, Newest: events.MessageIDs{Own: own}}
	}
	long := flow(1000, 1, 10_000, 1, true)
	short := flow(60, 101, 10_000, 1, true)
	unknown := events.MessageIDs{Own: events.Unknown, Public: events.Unknown}
	for _, tt := range []struct {
		name    string
		before  events.Queue
		held    []heldMessage
		part    bool // of what the stream holds
		info    stream.Info
		above   events.MessageIDs
		from    uint64
		overlap int64
		dark    *events.Range
		unknown bool
	}{
		{name: "what the stream holds says it", before: events.Queue{Options: all, Begin: story(1, 0)},
			held: long, part: true,
			above: events.MessageIDs{Own: 880, Public: events.Unknown}, from: 1},
		{name: "nothing below what was settled before",
			before: events.Queue{Options: all, Begin: story(900, 950)}, held: long,
			above: events.MessageIDs{Own: 950, Public: events.Unknown}, from: 1},
		{name: "young: all since the beginning is here or missing",
			before: events.Queue{Options: all, Begin: story(3, 40)}, held: short,
			info: stream.Info{FirstSeq: 3}, above: events.MessageIDs{Own: 40, Public: events.Unknown}, from: 101},
		{name: "the stream's limits took the beginning", before: events.Queue{Options: all, Begin: story(3, 0)},
			held: short,
			info: stream.Info{FirstSeq: 4}, above: events.MessageIDs{Own: 100, Public: events.Unknown}, from: 101,
			overlap: 9880},
		{name: "a limit of a subject took it", before: events.Queue{Options: all, Begin: story(3, 0)}, held: short,
			info:  stream.Info{FirstSeq: 3, MaxPerSubject: 60},
			above: events.MessageIDs{Own: 100, Public: events.Unknown}, from: 101, overlap: 9880},
		{name: "and of what it took nobody knows", before: events.Queue{Options: all, Begin: story(3, 0)},
			held: flow(60, 1001, 10_000, 1, true),
			info: stream.Info{FirstSeq: 4}, above: events.MessageIDs{Own: 1000, Public: events.Unknown}, from: 1001,
			overlap: 9880, dark: &events.Range{Above: 0, UpTo: 900}},
		{name: "no message: the record says which was the newest",
			before: events.Queue{Options: all, Newest: events.MessageIDs{Own: 77}, Begin: story(3, 0)},
			info:   stream.Info{FirstSeq: 50}, above: events.MessageIDs{Own: 77, Public: events.Unknown}, from: 1,
			dark: &events.Range{Above: 0, UpTo: 77}},
		{name: "no message, and the stream where some were settled is no more",
			before: events.Queue{Options: all, Newest: unknown, Begin: story(0, 59)},
			info:   stream.Info{FirstSeq: 1}, above: events.MessageIDs{Own: 59, Public: events.Unknown}, from: 1,
			dark: &events.Range{Above: 0, UpTo: 59}},
		{name: "nothing says it", before: events.Queue{Options: all, Newest: unknown, Assumed: true},
			info: stream.Info{FirstSeq: 50}, above: events.MessageIDs{Own: events.Unknown, Public: events.Unknown},
			from: 1, unknown: true},
		{name: "the queue took no messages: none is missing", before: events.Queue{Options: none, Begin: story(3, 0)},
			info: stream.Info{FirstSeq: 3}, above: events.MessageIDs{Own: 2000, Public: events.Unknown}, from: 1},
		{name: "both queries", before: events.Queue{Options: public,
			Begin: &events.Beginning{Seq: 1, Newest: events.MessageIDs{Own: 5, Public: 990}}}, held: long,
			above: events.MessageIDs{Own: 880, Public: 990}, from: 1},
	} {
		r := &events.Queue{Options: tt.before.Options, Newest: events.MessageIDs{Own: 2000, Public: events.Unknown},
			Time: time.Unix(0, 0), LifeSeconds: 600}
		plan(r, refillInputs{upTo: r.Newest, held: tt.held, all: !tt.part, info: tt.info, before: &tt.before})
		got := *r.Refill
		if !got.Public {
			got.Above.Public = events.Unknown
		}
		dark, _ := json.Marshal(got.NotCompared)
		want, _ := json.Marshal(tt.dark)
		if got.Above != tt.above || r.Held.From != tt.from || got.Overlap != tt.overlap ||
			string(dark) != string(want) || got.Unknown != tt.unknown {
			t.Errorf("%s: above %+v from sequence %d, overlap since %d, not compared %s, unknown %v; want %+v, %d, "+
				"%d, %s, %v", tt.name,
				got.Above, r.Held.From, got.Overlap, dark, got.Unknown, tt.above, tt.from, tt.overlap, want, tt.unknown)
		}
		if !got.Until.Equal(time.Unix(300, 0)) {
			t.Errorf("%s: it has to end at %v, want half of the idle time", tt.name, got.Until)
		}
	}
}

// TestWithCut: of the ranges that earlier gaps did not refill the last eight are
// remembered; what has no bounds is none.
func TestWithCut(t *testing.T) {
	var cut []events.Range
	for i := range int64(10) {
		cut = withCut(cut, &events.NotRefilled{Reason: "a limit", AboveID: 10 * i, UpToID: 10*i + 5})
	}
	if len(cut) != 8 || cut[0] != (events.Range{Above: 20, UpTo: 25}) || cut[7] != (events.Range{Above: 90, UpTo: 95}) {
		t.Errorf("remembered: %v; want the last eight", cut)
	}
	for _, n := range []*events.NotRefilled{nil, {Reason: "a limit", AboveID: 7}, {Reason: reasonUnknown + "; more", UpToID: 9}} {
		if got := withCut(cut, n); !slices.Equal(got, cut) {
			t.Errorf("%+v is remembered: %v", n, got)
		}
	}
}
