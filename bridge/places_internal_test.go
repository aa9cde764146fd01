package bridge

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"zulip-nats/poller"
	"zulip-nats/subjects"
)

// BenchmarkPlaces is what a look-up costs, of a reaction among as many messages as are
// remembered: its bytes are read, and the map. held-KiB is what they take.
func BenchmarkPlaces(b *testing.B) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	p := new(places)
	for id := range int64(3 * placesMost) {
		p.note(id, subjects.Place(id%50+1))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	ev := &poller.Event{Type: "reaction", Raw: []byte(`{"type":"reaction","op":"add","user_id":11,"user":{"user_id":11,` +
		`"email":"ada@example.com","full_name":"Ada Lovelace"},"message_id":196600,"emoji_name":"tada",` +
		`"emoji_code":"1f389","reaction_type":"unicode_emoji","id":12}`)}
	for b.Loop() {
		if !p.inChannels(messagesOf(ev)) {
			b.Fatal("not found")
		}
	}
	b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/1024, "held-KiB")
}

// TestPlaces: the newest are remembered, in a bounded number, and what is noted again
// stays where it is.
func TestPlaces(t *testing.T) {
	p := new(places)
	p.note(1, 5)
	p.note(1, 6)
	p.note(2, subjects.Direct)
	for _, test := range []struct {
		ids  []int64
		want bool
	}{{[]int64{1}, true}, {[]int64{2}, false}, {[]int64{1, 2}, false}, {[]int64{1, 3}, false}, {nil, false}} {
		if got := p.inChannels(test.ids); got != test.want {
			t.Errorf("%v: %v, want %v", test.ids, got, test.want)
		}
	}
	if p.at[1] != 5 || len(p.order) != 2 {
		t.Errorf("%v, %v", p.at, p.order)
	}
	for id := range int64(placesMost) {
		p.note(100+id, 7)
	}
	if p.inChannels([]int64{1}) || !p.inChannels([]int64{100, 100 + placesMost - 1}) || len(p.at) != placesMost ||
		len(p.order) != placesMost {
		t.Errorf("%d places in a ring of %d, of at most %d", len(p.at), len(p.order), placesMost)
	}
	p.note(1, 5)
	if p.inChannels([]int64{100}) || !p.inChannels([]int64{1, 101}) {
		t.Error("it is not the oldest that is forgotten")
	}
}

// TestPlacesOf: of each type of events, the places where some of the repository's samples
// of it go, with their messages known in a channel, as direct ones, and not known.
func TestPlacesOf(t *testing.T) {
	type where struct{ channel, direct, none bool }
	seen := map[string]where{}
	for _, file := range []string{"../events/testdata/events.jsonl", "../integration_test/testdata/further-events.jsonl"} {
		text, err := os.ReadFile(filepath.FromSlash(file))
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, `{"type":"typing_edit_message","op":"start","sender_id":11,"message_id":5,"recipient":`+
			`{"type":"direct","user_ids":[11,12]},"id":0}`...) // which they have in a channel only
		for line := range bytes.Lines(text) {
			type said struct {
				Kind    string `json:"type"`
				TopKind string `json:"message_type"`
				Channel int64  `json:"stream_id"`
				Named   int64  `json:"channel_id"`
			}
			var top struct {
				said
				Message, Recipient said
			}
			if err := json.Unmarshal(line, &top); err != nil {
				t.Fatal(err)
			}
			ev := &poller.Event{Type: top.Kind, Raw: line}
			for _, of := range []said{{Kind: top.TopKind, Channel: top.Channel}, top.Message, top.Recipient} {
				switch {
				case of.Kind == "private" || of.Kind == "direct":
					ev.Recipient = poller.RecipientDirect
				case of.Channel+of.Named > 0:
					ev.Recipient, ev.ChannelID = poller.RecipientChannel, of.Channel+of.Named
				}
			}
			for _, at := range []subjects.Place{7, subjects.Direct, subjects.Nowhere} {
				b := &Bridge{places: new(places)}
				for _, id := range messagesOf(ev) {
					if at != subjects.Nowhere {
						b.places.note(id, at)
					}
				}
				w := seen[ev.Type]
				switch at := b.placeOf(ev); {
				case at > 0:
					w.channel = true
				case at == subjects.Direct:
					w.direct = true
				default:
					w.none = true
				}
				seen[ev.Type] = w
			}
		}
	}
	for _, typ := range poller.EventTypes() {
		var w where
		if w.channel, w.direct, w.none = PlacesOf(typ); w != seen[typ] {
			t.Errorf("%s: %+v, and its samples are %+v", typ, w, seen[typ])
		}
	}
	if channel, direct, none := PlacesOf("brand_new"); !channel || !direct || none {
		t.Error("a type that is not known is not in channels and among direct messages")
	}
}
