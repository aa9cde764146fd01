package events_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"zulip-nats/events"
)

// examples are the events in testdata, with their types.
func examples(t testing.TB) (lines []string) {
	t.Helper()
	f, err := os.Open("testdata/events.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		lines = append(lines, s.Text())
	}
	if err := s.Err(); err != nil || len(lines) < 100 {
		t.Fatalf("%d events: %v", len(lines), err)
	}
	return lines
}

// stored is what the bridge makes of an event.
func stored(typ, op string, id string) nats.Header {
	h := nats.Header{"Zulip-Queue-Id": {"q"}, "Zulip-Event-Id": {id}, "Zulip-Prev-Event-Id": {"-1"},
		"Zulip-Event-Type": {typ}, "Zulip-Origin": {"live"}, "Bridge-Writer": {"w"}}
	if op != "" {
		h.Set("Zulip-Event-Op", op)
	}
	return h
}

// TestExamples: each type decodes, the ten into types of their own, and the bytes stay.
// That a typed body has what the event says is compared by taking its own fields out of
// the event: what is in neither is in Raw.
func TestExamples(t *testing.T) {
	want := map[string]any{"message": &events.Message{}, "update_message": &events.UpdateMessage{},
		"delete_message": &events.DeleteMessage{}, "reaction": &events.Reaction{}, "subscription": &events.Subscription{},
		"stream": &events.Stream{}, "realm_user": &events.RealmUser{}, "user_group": &events.UserGroup{},
		"typing": &events.Typing{}, "presence": &events.Presence{}}
	count := map[string]int{}
	for i, line := range examples(t) {
		var head struct{ Type, Op string }
		if err := json.Unmarshal([]byte(line), &head); err != nil {
			t.Fatalf("line %d: %v", i+1, err)
		}
		e, err := events.Decode("zulip.acme."+head.Type, stored(head.Type, head.Op, "7"), []byte(line))
		if err != nil {
			t.Fatalf("line %d: %v", i+1, err)
		}
		if e.Realm != "acme" || e.Type != head.Type || e.Op != head.Op || e.Queue != "q" || e.ID != 7 || e.Prev != -1 ||
			e.Origin != "live" || string(e.Raw) != line {
			t.Errorf("line %d: %+v", i+1, e)
		}
		body, err := e.Body()
		if err != nil {
			t.Errorf("line %d: %v", i+1, err)
		}
		if got := reflect.TypeOf(body); got != reflect.TypeOf(want[head.Type]) {
			t.Errorf("line %d, %s: its body is a %v", i+1, head.Type, got)
		}
		count[head.Type]++
		if body != nil {
			sameFields(t, fmt.Sprintf("line %d, %s", i+1, head.Type), reflect.ValueOf(body).Elem(), line)
		}
	}
	for name := range want {
		if count[name] == 0 {
			t.Errorf("there is no example of %s", name)
		}
	}
}

// sameFields compares the plain fields of a body with the members that their tags name.
func sameFields(t *testing.T, what string, body reflect.Value, line string) {
	t.Helper()
	var members map[string]any
	if err := json.Unmarshal([]byte(line), &members); err != nil {
		t.Fatal(err)
	}
	if inner, ok := members["message"].(map[string]any); ok {
		members = inner
	}
	for i := range body.NumField() {
		name := body.Type().Field(i).Tag.Get("json")
		f := body.Field(i)
		if f.Kind() == reflect.Pointer && !f.IsNil() {
			f = f.Elem()
		}
		switch f.Kind() {
		case reflect.String, reflect.Int64, reflect.Bool, reflect.Float64:
			if said, ok := members[name]; ok && said != nil && asText(said) != asText(f.Interface()) {
				t.Errorf("%s: %s is %v, not %v", what, name, f.Interface(), said)
			}
		}
	}
}

func asText(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

func TestMessages(t *testing.T) {
	body := func(raw string) *events.Message {
		t.Helper()
		e, err := events.Decode("zulip.acme.message", stored("message", "", "1"), []byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		b, err := e.Body()
		if err != nil {
			t.Fatal(err)
		}
		return b.(*events.Message)
	}
	m := body(`{"type":"message","message":{"id":5,"sender_id":10,"sender_full_name":"Ada","type":"stream","stream_id":3,` +
		`"display_recipient":"ops","subject":"disks","content":"full","timestamp":1795571430},"flags":["mentioned"]}`)
	if m.Direct() || m.To.Channel != "ops" || m.Topic != "disks" || m.Flags[0] != "mentioned" ||
		m.Sent().UTC().Format("2006-01-02T15:04:05") != "2026-11-25T01:50:30" {
		t.Errorf("%+v, sent %v", m, m.Sent().UTC())
	}
	m = body(`{"type":"message","message":{"id":6,"type":"private","display_recipient":[{"id":10,"email":"a@x","full_name":"Ada"},` +
		`{"id":11,"email":"g@x","full_name":"Grace"}],"subject":""}}`)
	if !m.Direct() || len(m.To.People) != 2 || m.To.People[1] != (events.Person{ID: 11, Email: "g@x", Name: "Grace"}) {
		t.Errorf("%+v", m)
	}
}

func TestEnvelope(t *testing.T) {
	h := stored("message", "", "8")
	h.Set("Zulip-Message-Id", "31")
	h.Set("Zulip-Recipient-Type", "channel")
	h.Set("Zulip-Channel-Id", "6")
	h.Set("Zulip-Object", "acme/q/8")
	h.Set("Zulip-Object-Size", "2000000")
	h.Set("Zulip-Object-Digest", "SHA-256=00")
	e, err := events.Decode("zulip.acme.message", h, nil)
	if err != nil || e.MessageID != 31 || e.Recipient != events.RecipientChannel || e.ChannelID != 6 || e.Stub == nil || *e.Stub != (events.Stub{Object: "acme/q/8", Size: 2000000,
		Digest: "SHA-256=00"}) {
		t.Errorf("a stub: %+v, %v", e, err)
	}
	if _, err := e.Body(); !errors.Is(err, events.ErrStub) {
		t.Errorf("the body of a stub: %v", err)
	}

	e, err = events.Decode("zulip.acme.message", nats.Header{"Zulip-Queue-Id": {"q"}, "Bridge-Position": {"4"},
		"Zulip-Event-Type": {"message"}, "Zulip-Origin": {"backfill"}, "Zulip-Message-Id": {"9"}}, []byte("{}"))
	if err != nil || e.ID != -1 || e.MessageID != 9 || e.Origin != events.OriginBackfill {
		t.Errorf("from history: %+v, %v", e, err)
	}
	if _, err := e.Body(); err == nil {
		t.Error("a message event without a message has a body")
	}

	e, err = events.Decode("zulip.acme.bridge.gap", nats.Header{"Zulip-Queue-Id": {"q"}, "Bridge-Record": {"gap-opened"},
		"Bridge-Record-Id": {"w-1"}}, []byte(`{"record":"gap-opened","cause":"dropped","queue_id":"q"}`))
	if err != nil || e.Type != "bridge" || e.Record != "gap-opened" {
		t.Errorf("a record: %+v, %v", e, err)
	}
	if b, err := e.Body(); err != nil || b.(*events.GapOpened).Cause != "dropped" {
		t.Errorf("the body of a record: %v, %v", b, err)
	}

	for _, place := range []string{"direct", "none", "channel.7"} {
		h := stored("message", "", "1")
		e, err := events.Decode("zulip.acme.message."+place, h, nil)
		if err != nil || e.Realm != "acme" || e.Type != "message" || e.Subject != "zulip.acme.message."+place {
			t.Errorf("by place: %+v, %v", e, err)
		}
		h.Del("Zulip-Event-Type") // the subject says it too
		if e, err = events.Decode("zulip.acme.message."+place, h, nil); err != nil || e.Type != "message" {
			t.Errorf("by place, without its type: %+v, %v", e, err)
		}
	}
	e, err = events.Decode("elsewhere.message", stored("message", "caf%C3%A9%25", "1"), nil)
	if err != nil || e.Realm != "" || e.Op != "café%" {
		t.Errorf("a copy with an op that is encoded: %+v, %v", e, err)
	}
	if _, err := events.Decode("zulip.acme.message", nats.Header{"Other": {"x"}}, nil); !errors.Is(err, events.ErrForeign) {
		t.Errorf("somebody else's: %v", err)
	}
	if _, err := events.Decode("zulip.acme.message", stored("message", "", "seven"), nil); err == nil ||
		!strings.Contains(err.Error(), "Zulip-Event-Id") {
		t.Errorf("an id that is none: %v", err)
	}
}

func ExampleDecode() {
	header := nats.Header{
		"Zulip-Queue-Id": {"8b5c"}, "Zulip-Event-Id": {"42"}, "Zulip-Event-Type": {"message"}, "Zulip-Origin": {"live"},
	}
	data := []byte(`{"id":42,"type":"message","message":{"id":7,"type":"stream","display_recipient":"ops",` +
		`"subject":"disks","sender_full_name":"Ada","content":"/var is full","new_in_zulip_12":true},"flags":[]}`)

	event, err := events.Decode("zulip.acme.message", header, data)
	if err != nil {
		panic(err)
	}
	fmt.Println(event.Realm, event.Type, event.ID, event.Origin)

	body, err := event.Body()
	if err != nil {
		panic(err)
	}
	switch b := body.(type) {
	case *events.Message:
		fmt.Printf("#%s > %s, %s: %s\n", b.To.Channel, b.Topic, b.Sender, b.Content)
	case *events.Reaction:
		fmt.Println(b.Op, b.Name, "on", b.MessageID)
	}
	fmt.Println(len(event.Raw) == len(data)) // what is in no field is still here
	// Output:
	// acme message 42 live
	// #ops > disks, Ada: /var is full
	// true
}
