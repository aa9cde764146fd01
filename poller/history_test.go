package poller

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"zulip-nats/zulipsim"
)

func TestLiveShape(t *testing.T) {
	for raw, want := range map[string]string{
		`{"id":1,"content":"x","flags":["read"]}`:                      `{"type":"message","message":{"id":1,"content":"x"},"flags":["read"]}`,
		`{"flags":["read","historical"],"id":1}`:                       `{"type":"message","message":{"id":1},"flags":["read","historical"]}`,
		`{"id":1,"flags":[],"content":"y"}`:                            `{"type":"message","message":{"id":1,"content":"y"},"flags":[]}`,
		`{"id":1}`:                                                     `{"type":"message","message":{"id":1},"flags":[]}`,
		`{ "id" : 1 , "flags" : [ "a" ] , "n" : 1.50e1 }`:              `{"type":"message","message":{ "id" : 1 , "n" : 1.50e1 },"flags":[ "a" ]}`,
		`{"id":1,"fl\u0061gs":[1],"x":{"flags":[2],"id":3}}`:           `{"type":"message","message":{"id":1,"x":{"flags":[2],"id":3}},"flags":[1]}`,
		`{"flags":[1],"id":1,"flags":[2]}`:                             `{"type":"message","message":{"id":1},"flags":[2]}`,
		`{"id":1,"s":"\"flags\":[],}{","u":"\u00e9\ud83d","flags":[]}`: `{"type":"message","message":{"id":1,"s":"\"flags\":[],}{","u":"\u00e9\ud83d"},"flags":[]}`,
	} {
		s, _, ok := scanAll([]byte(raw), 1000)
		if !ok {
			t.Fatal(raw)
		}
		var l liveShape
		if m := l.message([]byte(raw), s); string(m.Raw) != want || m.ID != 1 || m.Fault != "" {
			t.Errorf("%s\ngives %s (%s)\nwant  %s", raw, m.Raw, m.Fault, want)
		}
	}
	for _, raw := range []string{`7`, `[]`, `{}`, `{"id":"x"}`, `{"id":-1}`} {
		s, _, _ := scanAll([]byte(raw), 1000)
		var l liveShape
		if m := l.message([]byte(raw), s); m.Fault == "" || string(m.Raw) != raw {
			t.Errorf("%s gives %s", raw, m.Raw)
		}
	}
}

// TestCapturedHistory turns what a real server gave as history into the shape of events,
// losing nothing.
func TestCapturedHistory(t *testing.T) {
	f, err := os.Open("testdata/captured/messages.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	edited, total := 0, 0
	for d := json.NewDecoder(z); d.More(); {
		var line struct{ Body string }
		if err := d.Decode(&line); err != nil {
			t.Fatal(err)
		}
		var want struct {
			Messages []map[string]any
			Anchor   json.Number
		}
		if err := json.Unmarshal([]byte(line.Body), &want); err != nil {
			t.Fatal(err)
		}
		var got []Message
		var shape liveShape
		a := answerOf(t, strings.NewReader(line.Body), Position{})
		a.list = list{key: "messages", each: func(raw []byte, s *scanner, fault string) error {
			m := shape.message(raw, s)
			m.Raw = bytes.Clone(m.Raw)
			got = append(got, m)
			return nil
		}}
		if _, _, _, err := readAll(t, a); err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want.Messages) || a.fields["anchor"] != want.Anchor.String() && want.Anchor != "" {
			t.Fatalf("%d messages, %d wanted; anchor %s, %s", len(got), len(want.Messages), a.fields["anchor"],
				want.Anchor)
		}
		for i, w := range want.Messages {
			var e struct {
				Type    string
				Message map[string]any
				Flags   any
			}
			if err := json.Unmarshal(got[i].Raw, &e); err != nil {
				t.Fatalf("%v: %s", err, got[i].Raw)
			}
			flags := w["flags"]
			delete(w, "flags")
			edit, _ := w["last_edit_timestamp"].(float64)
			moved, _ := w["last_moved_timestamp"].(float64)
			if edit = max(edit, moved); edit != 0 {
				edited++
			}
			if e.Type != "message" || !reflect.DeepEqual(e.Message, w) || !reflect.DeepEqual(e.Flags, flags) ||
				got[i].LastChange != int64(edit) ||
				float64(got[i].ID) != w["id"] {
				t.Errorf("%s\nfor %v", got[i].Raw, w)
			}
			total++
		}
	}
	if total < 50 || edited == 0 {
		t.Errorf("%d messages, %d edited", total, edited)
	}
}

func TestHistory(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.register()
		w.send(2500)
		live := map[int64]map[string]any{}
		for len(live) < 2500 {
			for _, e := range w.next() {
				var ev struct{ Message map[string]any }
				if err := json.Unmarshal(e.Raw, &ev); err != nil {
					t.Fatal(err)
				}
				live[e.MessageID] = ev.Message
			}
		}
		var ids []int64
		each := func(m *Message) error {
			var ev struct {
				Type    string
				Message map[string]any
				Flags   []string
			}
			if err := json.Unmarshal(m.Raw, &ev); err != nil || ev.Type != "message" || ev.Flags == nil ||
				!reflect.DeepEqual(ev.Message, live[m.ID]) {
				t.Fatalf("%v\nread back %s\nlive      %v", err, m.Raw, live[m.ID])
			}
			ids = append(ids, m.ID)
			return nil
		}
		// Page by page, the second one cut short twice.
		pages, after := 0, int64(0)
		for done := false; !done; pages++ {
			if pages == 1 {
				w.sim.Fault(zulipsim.Fault{On: zulipsim.History, Times: 2, HalfBody: true})
			}
			page, err := w.Messages(t.Context(),
				HistoryQuery{Anchor: after, After: 1000, ExcludeAnchor: true, Each: each})
			if err != nil {
				t.Fatal(err)
			}
			if page.Count == 0 || page.First != after+1 || page.Last != page.First+int64(page.Count)-1 {
				t.Errorf("page %d: %+v", pages, page)
			}
			after, done = page.Last, page.FoundNewest
		}
		if pages != 3 || len(ids) != 2500 || !slices.IsSorted(ids) || ids[0] != 1 {
			t.Errorf("%d pages, %d messages", pages, len(ids))
		}
		w.says(1, "GET /api/v1/messages cannot be read")

		ids = nil
		page, err := w.Messages(t.Context(), HistoryQuery{Newest: true, Before: 2, Each: each})
		if err != nil || !slices.Equal(ids, []int64{2499, 2500}) && !slices.Equal(ids, []int64{2498, 2499, 2500}) ||
			!page.FoundNewest {
			t.Errorf("newest: %v, %+v, %v", ids, page, err)
		}
		content := "other"
		w.sim.EditMessage(5, zulipsim.Edit{Content: &content})
		edited := int64(0)
		if _, err := w.Messages(t.Context(), HistoryQuery{Anchor: 5, Each: func(m *Message) error {
			edited = m.LastChange
			return nil
		}}); err != nil || edited == 0 {
			t.Errorf("edited at %d, %v", edited, err)
		}
		stop := errors.New("enough")
		if _, err := w.Messages(t.Context(),
			HistoryQuery{After: 10, Each: func(*Message) error { return stop }}); err != stop {
			t.Errorf("stopped with %v", err)
		}
		_, err = w.Messages(t.Context(),
			HistoryQuery{After: 10, Narrow: [][2]string{{"channel", "nowhere"}}, Each: each})
		if refused, ok := errors.AsType[*RefusedError](err); !ok || refused.Code != "BAD_NARROW" {
			t.Errorf("an unknown channel gives %v", err)
		}
		for _, q := range []HistoryQuery{{Before: 2501, After: 2500}, {After: -1},
			{Before: 1, After: 1, ExcludeAnchor: true}} {
			if _, err := w.Messages(t.Context(), q); !errors.Is(err, errQuery) {
				t.Errorf("%+v gives %v", q, err)
			}
		}
	})
}

// TestHistoryOfPublicChannels: an account that is in no channel reads back what it gets
// live with all_public_streams.
func TestHistoryOfPublicChannels(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.bot.NoSubscriptions = true
		w.Options.AllPublicStreams = true
		w.register()
		w.send(3)
		w.sim.SendMessage(zulipsim.Message{To: []string{w.bot.Email}, Content: "just you"})
		read := func(q HistoryQuery) (ids []int64) {
			q.After = 100
			q.Each = func(m *Message) error { ids = append(ids, m.ID); return nil }
			if _, err := w.Messages(t.Context(), q); err != nil {
				t.Fatal(err)
			}
			return ids
		}
		if got := fmt.Sprint(read(HistoryQuery{PublicChannels: true}), read(HistoryQuery{}),
			read(HistoryQuery{Narrow: [][2]string{{"channel", "general"}}})); got != "[1 2 3] [4] [1 2 3]" {
			t.Errorf("read %s", got)
		}
		w.next()
	})
}

// TestHistoryOfPublicChannelsNarrowed: with a narrow besides, only what is in both.
func TestHistoryOfPublicChannelsNarrowed(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.bot.NoSubscriptions = true
		for i, m := range []zulipsim.Message{
			{Channel: "general", Topic: "a"}, {Channel: "random", Topic: "a"}, {Channel: "random", Topic: "b"},
			{Channel: "general", Topic: "b"},
			{To: []string{w.bot.Email}},
		} {
			m.Content = fmt.Sprint("number ", i+1)
			w.sim.SendMessage(m)
		}
		for want, narrow := range map[string][][2]string{
			"[1 2 3 4]": nil, "[2 3]": {{"channel", "random"}}, "[1 2]": {{"topic", "a"}},
			"[2]": {{"topic", "a"}, {"channel", "random"}},
			"[]":  {{"is", "dm"}},
		} {
			ids := []int64{}
			_, err := w.Messages(t.Context(),
				HistoryQuery{After: 100, PublicChannels: true, Narrow: narrow, Each: func(m *Message) error {
					ids = append(ids, m.ID)
					return nil
				}})
			if err != nil || fmt.Sprint(ids) != want {
				t.Errorf("%v gives %v (%v), want %s", narrow, ids, err, want)
			}
		}
		last := w.tap.since(w.tap.count() - 1)[0].req.URL.Query().Get("narrow")
		if !strings.Contains(last, `{"operator":"channels","operand":"public"}`) {
			t.Errorf("asked for %s", last)
		}
	})
}

// TestHistoryEndsInTime: a reading ends with its context, whatever it waits for.
func TestHistoryEndsInTime(t *testing.T) {
	for name, f := range map[string]zulipsim.Fault{
		"told to wait an hour": zulipsim.TooMany("3600"),
		"backing off":          {Status: 500, Body: `{"result":"error","msg":"Internal server error"}`},
		"no answer":            {Hang: true},
		"an answer that drips": {Trickle: 100, TricklePause: 20 * time.Second},
		"an answer cut short":  {HalfBody: true},
		"not the right key":    zulipsim.Unauthorized(),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, w *world) {
				w.register()
				w.send(100)
				f.On = zulipsim.History
				w.sim.Fault(f)
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
				defer cancel()
				start := time.Now()
				_, err := w.Messages(ctx, HistoryQuery{After: 1000, Each: func(*Message) error { return nil }})
				if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != 5*time.Minute {
					t.Errorf("%v after %v", err, took)
				}
				// It ends at once where the time is over before it begins, and the poller
				// serves others afterwards.
				before := w.tap.count()
				if _, err := w.Messages(ctx, HistoryQuery{After: 1000}); !errors.Is(err, context.DeadlineExceeded) ||
					w.tap.count() != before {
					t.Errorf("%v, %d requests", err, w.tap.count()-before)
				}
				w.next()
			})
		})
	}
}

// FuzzLiveShape: whatever object is a message, nothing of it is lost or changed on the
// way into an event's shape.
func FuzzLiveShape(f *testing.F) {
	f.Add([]byte(`{"id":1,"content":"x","flags":["read"],"a":{"flags":[1.50e1]}}`))
	f.Add([]byte(` { "fl\u0061gs" : null , "id" : 7 , "" : "\ud83d" } `))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, _, ok := scanAll(raw, 1<<20)
		if !ok || !s.isObject || s.idState != idGood {
			return
		}
		var l liveShape
		m := l.message(raw, s)
		var want map[string]json.RawMessage
		if json.Unmarshal(raw, &want) != nil {
			return // the liberties of the scanner
		}
		var got struct {
			Type    string                     `json:"type"`
			Message map[string]json.RawMessage `json:"message"`
			Flags   json.RawMessage            `json:"flags"`
		}
		if err := json.Unmarshal(m.Raw, &got); err != nil {
			t.Fatalf("%v: %s", err, m.Raw)
		}
		flags, has := want["flags"]
		if delete(want, "flags"); !has {
			flags = []byte("[]")
		}
		if got.Type != "message" || !bytes.Equal(got.Flags, flags) || len(got.Message) != len(want) {
			t.Fatalf("%s\nbecame %s", raw, m.Raw)
		}
		for k, v := range want {
			if !bytes.Equal(got.Message[k], v) {
				t.Fatalf("%s\nbecame %s", raw, m.Raw)
			}
		}
	})
}

// A message of history that is larger than what is kept in memory is one that cannot be
// carried.
func TestHistoryTooLargeForMemory(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.Client.maxEvent = 8 << 10
		w.sim.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: strings.Repeat("x", 9500)})
		var faults []string
		_, err := w.Messages(t.Context(), HistoryQuery{Newest: true, Before: 1, Each: func(m *Message) error {
			faults = append(faults, m.Fault)
			return nil
		}})
		if err != nil || len(faults) != 1 ||
			!strings.Contains(faults[0], "bytes are more than what is kept in memory") {
			t.Errorf("%q, %v", faults, err)
		}
	})
}
