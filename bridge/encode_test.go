package bridge

import (
	"strings"
	"testing"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream/model"
	"zulip-nats/subjects"
)

// TestEncode: what is stored for an event, by its kind.
func TestEncode(t *testing.T) {
	realm, err := subjects.ParseRealm("acme")
	if err != nil {
		t.Fatal(err)
	}
	at := poller.Position{Queue: "q", Last: 6}
	for _, test := range []struct {
		name    string
		event   poller.Event
		subject string // with the headers, as far as they are compared; empty: nothing is stored
		last    int64  // the position that it leaves us at
	}{
		{"an event", poller.Event{ID: 9, HasID: true, Type: "presence"},
			"zulip.acme.presence Event-Id=9 Prev-Event-Id=6 Event-Type=presence Origin=live", 9},
		{"with an op", poller.Event{ID: 9, HasID: true, Type: "stream", Op: "create"},
			"zulip.acme.stream Event-Id=9 Prev-Event-Id=6 Event-Type=stream Event-Op=create Origin=live", 9},
		{"a message", poller.Event{ID: 9, HasID: true, Type: "message", MessageID: 51},
			"zulip.acme.message Event-Id=9 Prev-Event-Id=6 Event-Type=message Origin=live Message-Id=51", 9},
		{"in a channel", poller.Event{ID: 9, HasID: true, Type: "message", MessageID: 51,
			Recipient: poller.RecipientChannel, ChannelID: 7},
			"zulip.acme.message Event-Id=9 Prev-Event-Id=6 Event-Type=message Origin=live Message-Id=51 " +
				"Recipient-Type=channel Channel-Id=7", 9},
		{"in a channel that it does not name", poller.Event{ID: 9, HasID: true, Type: "typing",
			Recipient: poller.RecipientChannel},
			"zulip.acme.typing Event-Id=9 Prev-Event-Id=6 Event-Type=typing Origin=live Recipient-Type=channel", 9},
		{"among people", poller.Event{ID: 9, HasID: true, Type: "typing", Op: "start", Recipient: poller.RecipientDirect},
			"zulip.acme.typing Event-Id=9 Prev-Event-Id=6 Event-Type=typing Event-Op=start Origin=live " +
				"Recipient-Type=direct", 9},
		{"one that the stream held", poller.Event{ID: 9, HasID: true, Type: "message", MessageID: 41},
			"zulip.acme.bridge.skipped Position=9 Record=skipped Event-Id=9 Message-Id=41", 9},
		{"one between those", poller.Event{ID: 9, HasID: true, Type: "message", MessageID: 42},
			"zulip.acme.message Event-Id=9 Prev-Event-Id=6 Event-Type=message Origin=live Message-Id=42", 9},
		{"one above the bound is not looked for", poller.Event{ID: 9, HasID: true, Type: "message", MessageID: 99},
			"zulip.acme.message Event-Id=9 Prev-Event-Id=6 Event-Type=message Origin=live Message-Id=99", 9},
		{"an op that is no header's text", poller.Event{ID: 9, HasID: true, Type: "stream", Op: "a b\r\n"},
			"zulip.acme.stream Event-Id=9 Prev-Event-Id=6 Event-Type=stream Event-Op=a%20b%0D%0A Origin=live", 9},
		{"a type that is no token", poller.Event{ID: 9, HasID: true, Type: "a.b"},
			"zulip.acme.bridge.rejected Position=9 Record=rejected Event-Id=9", 9},
		{"the type of our records", poller.Event{ID: 9, HasID: true, Type: "bridge"},
			"zulip.acme.bridge.rejected Position=9 Record=rejected Event-Id=9", 9},
		{"larger than what is kept", poller.Event{ID: 9, HasID: true, Type: "x", Size: 1 << 40},
			"zulip.acme.bridge.rejected Position=9 Record=rejected Event-Id=9", 9},
		{"an id that goes back", poller.Event{ID: 4, HasID: true, Fault: "goes back"},
			"zulip.acme.bridge.rejected Position=6 Record=rejected Event-Id=4", 6},
		{"no id", poller.Event{Fault: "no id"}, "zulip.acme.bridge.rejected Position=6 Record=rejected", 6},
		{"no id, once more", poller.Event{Fault: "no id", Raw: []byte("seen")}, "", 0},
	} {
		b := New(Config{Realm: realm, Writer: "w", Poller: &poller.Poller{}})
		b.stream = (&model.Stream{Filter: realm.All()}).Client(t.Context())
		b.record = &events.Queue{Held: &events.Held{UpToID: 50}}
		b.held = &heldSet{ids: []int64{40, 41, 43, 99}}
		if test.subject == "" {
			if _, ok, err := b.encode(&test.event, at, newHeaderRoom(1)); !ok || err != nil {
				t.Fatalf("%s: not stored at first: %v", test.name, err)
			}
		}
		e, ok, err := b.encode(&test.event, at, newHeaderRoom(1))
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		got := e.msg.Subject
		for _, h := range e.msg.Headers {
			switch key := strings.TrimPrefix(strings.TrimPrefix(h.Key, "Zulip-"), "Bridge-"); {
			case key == "Queue-Id" && h.Value != "q", key == "Writer" && h.Value != "w",
				key == "Record-Id" && h.Value == "":
				t.Errorf("%s: %s is %q", test.name, h.Key, h.Value)
			case key != "Queue-Id" && key != "Writer" && key != "Record-Id":
				got += " " + key + "=" + h.Value
			}
		}
		if got != test.subject || ok != (test.subject != "") ||
			ok && e.after != (poller.Position{Queue: "q", Last: test.last}) {
			t.Errorf("%s:\n%s, which leaves us at %v; want\n%s, at %d", test.name, got, e.after,
				test.subject, test.last)
		}
	}
}
