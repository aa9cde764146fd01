package bridge

import (
	"strings"
	"testing"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream/model"
	"zulip-nats/subjects"
)

// TestCloudValue: 3.1.3.2 of the NATS binding, with its own example.
func TestCloudValue(t *testing.T) {
	for text, want := range map[string]string{
		"Euro € 😀":                          "Euro%20%E2%82%AC%20%F0%9F%98%80",
		`a "b" 100%`:                        "a%20%22b%22%20100%25",
		"!#$&'()*+,-./09:;<=>?@AZ[]^_az{}~": "!#$&'()*+,-./09:;<=>?@AZ[]^_az{}~",
		"a\r\n\x00\x7f\u0085b":              "a" + strings.Repeat("%EF%BF%BD", 5) + "b",
		"\xff\ufdd0\uffff":                  strings.Repeat("%EF%BF%BD", 3),
		"":                                  "",
	} {
		if got := cloudValue(text); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

// TestCloudEvents: which attributes a message has, by its kind; those that say when
// aside, which TestCloudEvents of the integration tests looks at. Without the option
// there are none, and all other headers are the same.
func TestCloudEvents(t *testing.T) {
	realm, err := subjects.ParseRealm("acme")
	if err != nil {
		t.Fatal(err)
	}
	at := poller.Position{Queue: "q%1", Last: 6}
	message := poller.Event{ID: 9, HasID: true, Type: "message", MessageID: 51,
		Raw: []byte(`{"type":"message","message":{"id":51,"timestamp":1696000000}}`)}
	long := strings.Repeat("ü", 100)
	for _, test := range []struct {
		name string
		make func(b *Bridge) (entry, error)
		want string
	}{
		{"an event", func(b *Bridge) (entry, error) {
			e, _, err := b.encode(&poller.Event{ID: 7, HasID: true, Type: "stream", Op: "create"}, at, newHeaderRoom(1))
			return e, err
		}, "id=q%251/7 type=com.zulip.stream.create"},
		{"a message", func(b *Bridge) (entry, error) {
			e, _, err := b.encode(&message, at, newHeaderRoom(1))
			return e, err
		}, "id=q%251/9 type=com.zulip.message time=2023-09-29T15:06:40Z subject=message/51"},
		{"an op that does not end", func(b *Bridge) (entry, error) {
			e, _, err := b.encode(&poller.Event{ID: 7, HasID: true, Type: "x", Op: long}, at, newHeaderRoom(1))
			return e, err
		}, "id=q%251/7 type=com.zulip.x." + strings.Repeat("%C3%BC", 64)},
		{"from history", func(b *Bridge) (entry, error) {
			return b.refilled(t.Context(), at, &pastMessage{id: 50, sent: 1696000001})
		}, "id=q%251/message/50 type=com.zulip.message time=2023-09-29T15:06:41Z subject=message/50"},
		{"skipped", func(b *Bridge) (entry, error) { return b.skipped(&message, at) },
			"id=w-1 type=zulip-nats.skipped subject=message/51"},
		{"rejected", func(b *Bridge) (entry, error) {
			e, _, err := b.rejection(&poller.Event{ID: 7, HasID: true}, at, "no")
			return e, err
		}, "id=w-1 type=zulip-nats.rejected"},
	} {
		made := func(on bool) (cloud, others string) {
			b := New(Config{Realm: realm, Writer: "w", Site: "https://chat.example.org", Poller: &poller.Poller{}, CloudEvents: on})
			b.stream = (&model.Stream{Filter: realm.All()}).Client(t.Context())
			b.record, b.held = &events.Queue{}, &heldSet{}
			e, err := test.make(b)
			if err != nil {
				t.Fatalf("%s: %v", test.name, err)
			}
			for _, h := range e.msg.Headers {
				switch key, ours := strings.CutPrefix(h.Key, "ce-"); {
				case !ours:
					others += h.Key + "=" + h.Value + "\n"
				case key == "specversion" && h.Value != "1.0", key == "datacontenttype" && h.Value != "application/json",
					key == "source" && h.Value != "https://chat.example.org":
					t.Errorf("%s: %s is %q", test.name, h.Key, h.Value)
				case key == "time" && !strings.HasPrefix(h.Value, "2023-09-29T15:06:4"): // now
				case key != "specversion" && key != "datacontenttype" && key != "source":
					cloud += " " + key + "=" + h.Value
				}
			}
			return strings.TrimSpace(cloud), others
		}
		cloud, others := made(true)
		if cloud != test.want {
			t.Errorf("%s:\n%s, want\n%s", test.name, cloud, test.want)
		}
		if off, same := made(false); off != "" || same != others {
			t.Errorf("%s: without the option there is %q, and the others are\n%s, not\n%s", test.name, off, same, others)
		}
	}
}
