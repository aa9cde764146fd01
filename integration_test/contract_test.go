package integration_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"zulip-nats/asyncapi"
	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/subjects"
	"zulip-nats/zulipsim"
)

// everyKind lets the program put all that it can on the bus: events, types that nobody
// knows, stubs, messages from history, and each record; and gives what the stream holds.
func everyKind(t *testing.T, args ...string) (w *world, all []harness.Stored) {
	t.Helper()
	rng := harness.Rand(t)
	var duringRegister atomic.Pointer[func()]
	w = newWorld(t, natsServer(t), func(z *zulipsim.Server) {
		z.MaxMessageLength = 2 << 20
		z.DuringRegister = func(string) {
			if once := duringRegister.Swap(nil); once != nil {
				(*once)()
			}
		}
	})
	args = append([]string{"--no-lease"}, args...)
	send := func(text string) {
		w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "größe & Co. 100 %", Content: text})
	}
	large := strings.Repeat("large ", 200_000)
	p := w.run(args...)
	old := w.registered().ID
	w.talk(rng, 60)
	send(large)
	w.zulip.EmitRaw(`{"type":"shiny_new_thing","op":"with blank, \"Ü\" and %","id":%ID%}`)
	w.zulip.EmitRaw(`{"type":"a.b","id":%ID%}`)
	w.zulip.EmitRaw(`{"type":"realm","op":"update","property":"name","value":"x","pad":"` + large + `","id":%ID%}`)
	w.settle()
	p.Stop()
	w.talk(rng, 10)
	w.zulip.ExpireQueue(old)
	send(large)
	w.talk(rng, 10)
	both := func() { send("in history and in the new queue") }
	duringRegister.Store(&both)
	p = w.run(args...)
	w.registered()
	w.talk(rng, 10)
	w.settle()
	p.Stop()
	all = w.read()

	kinds := map[string]int{}
	for i := range all {
		kind := all[i].Record()
		if kind == "" {
			kind = all[i].Get(events.HeaderOrigin)
			if all[i].Get(events.HeaderObject) != "" {
				kind += " stub"
			}
		}
		kinds[kind]++
	}
	for _, kind := range []string{"live", "live stub", "backfill", "backfill stub", "queue", "gap-opened", "gap-closed", "rejected",
		"skipped"} {
		if kinds[kind] == 0 {
			t.Errorf("nothing of the kind %q is in the stream: %v", kind, kinds)
		}
	}
	t.Logf("%d messages: %v", len(all), kinds)
	return w, all
}

// described looks each message up in the AsyncAPI document: on its subject there is one
// description, and one only, that its headers and its body fit.
func described(t *testing.T, c asyncapi.Config, all []harness.Stored) {
	t.Helper()
	text, err := asyncapi.Document(c)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	var plain struct {
		Channels map[string]struct {
			Address  string
			Messages map[string]struct {
				Ref string `json:"$ref"`
			}
		}
		Components struct {
			Messages map[string]struct{ Headers, Payload map[string]string }
			Schemas  map[string]struct{ Properties map[string]any }
		}
	}
	if err := json.Unmarshal(text, &plain); err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft7)
	if err := compiler.AddResource("urn:doc", doc); err != nil {
		t.Fatal(err)
	}
	fits := func(ref map[string]string, v any) error {
		s, err := compiler.Compile("urn:doc" + ref["$ref"])
		if err != nil {
			t.Fatal(err)
		}
		return s.Validate(v)
	}
	channels := map[string]string{} // by subject
	for name, c := range plain.Channels {
		channels[c.Address] = name
	}
	used := map[string]int{}
	for i := range all {
		m := &all[i]
		channel, ok := channels[m.Subject]
		if !ok && strings.Count(m.Subject, ".") == 2 {
			channel = "other"
		}
		head := map[string]any{}
		for name := range m.Header {
			head[name] = m.Get(name)
		}
		var fit []string
		var why []error
		for name := range plain.Channels[channel].Messages {
			message := plain.Components.Messages[name]
			err := fits(message.Headers, head)
			switch {
			case err != nil:
			case message.Payload == nil && len(m.Data) == 0:
			case message.Payload == nil:
				err = errors.New("it has a body")
			default:
				body, parsed := jsonschema.UnmarshalJSON(bytes.NewReader(m.Data))
				if err = parsed; err == nil {
					err = fits(message.Payload, body)
				}
			}
			if err == nil {
				fit = append(fit, name)
				used[name]++
			}
			why = append(why, err)
		}
		if len(fit) != 1 {
			t.Errorf("a message fits %v of the channel %q: %v: %v", fit, channel, m, why)
			continue
		}
		for name := range m.Header {
			if plain.Components.Schemas["headers."+fit[0]].Properties[name] == nil && !strings.HasPrefix(name, "Nats-") {
				t.Errorf("the header %s of %s is not described: %v", name, fit[0], m)
			}
		}
	}
	t.Logf("fitting: %v", used)
}

// configOf is what the program was told, for the document.
func configOf(t *testing.T, w *world) asyncapi.Config {
	t.Helper()
	realm, err := subjects.ParseRealm(w.realm)
	if err != nil {
		t.Fatal(err)
	}
	return asyncapi.Config{Realm: realm, Stream: w.stream, Program: "test"}
}

// TestAsyncAPI compares what is on the bus with what `zulip-nats asyncapi` says is.
func TestAsyncAPI(t *testing.T) {
	t.Parallel()
	w, all := everyKind(t)
	described(t, configOf(t, w), all)
	for i := range all {
		for name := range all[i].Header {
			if strings.HasPrefix(strings.ToLower(name), "ce-") {
				t.Errorf("nobody asked for %s: %v", name, &all[i])
			}
		}
	}
}

// decoded is the value of a CloudEvents attribute, by 3.1.3.2 of the NATS binding: what
// is in a header is printable ASCII without blanks, quotes and percent signs of its own;
// one round of percent-decoding gives UTF-8 without control characters.
func decoded(t *testing.T, m *harness.Stored, name string) string {
	t.Helper()
	raw := m.Get(name)
	var b []byte
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case c == '%' && i+2 < len(raw):
			n, err := strconv.ParseUint(raw[i+1:i+3], 16, 8)
			if err != nil || strings.ToUpper(raw[i+1:i+3]) != raw[i+1:i+3] {
				t.Errorf("%s: %q: %v", name, raw, err)
			}
			b = append(b, byte(n))
			i += 2
		case c <= ' ' || c > '~' || c == '"' || c == '%':
			t.Errorf("%s has %q, which has to be percent-encoded: %v", name, c, m)
		default:
			b = append(b, c)
		}
	}
	if s := string(b); !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		t.Errorf("%s is %q, which no attribute may be: %v", name, s, m)
	}
	return string(b)
}

// TestCloudEvents checks what is on the bus with --cloudevents by the rules of
// CloudEvents 1.0 and of the binary mode of its NATS binding.
func TestCloudEvents(t *testing.T) {
	t.Parallel()
	w, all := everyKind(t, "--cloudevents")
	c := configOf(t, w)
	c.CloudEvents = true
	described(t, c, all)
	sent := map[int64]time.Time{}
	for _, m := range w.zulip.Messages() {
		sent[m.ID] = m.Time
	}
	ids := map[string]bool{}
	types := map[string]int{}
	for i := range all {
		m := &all[i]
		for name := range m.Header {
			if lower := strings.ToLower(name); strings.HasPrefix(lower, "ce-") &&
				(lower != name || strings.Trim(name[3:], "abcdefghijklmnopqrstuvwxyz0123456789") != "") {
				t.Errorf("%s is no attribute's name as the binding spells it", name)
			}
			if strings.EqualFold(name, "Content-Type") {
				t.Errorf("there is %s, which would be the structured mode's: %v", name, m)
			}
		}
		// REQUIRED: id, source, specversion, type.
		id, source, typ := decoded(t, m, "ce-id"), decoded(t, m, "ce-source"), decoded(t, m, "ce-type")
		if m.Get("ce-specversion") != "1.0" || id == "" || typ == "" || source != w.site {
			t.Errorf("not all that is required is there: %v", m)
		}
		if u, err := url.Parse(source); err != nil || !u.IsAbs() {
			t.Errorf("the source %q is no absolute URI: %v", source, err)
		}
		if ids[id] {
			t.Errorf("two messages have the id %q", id)
		}
		ids[id] = true
		if id != events.Key(nats.Header(m.Header)) {
			t.Errorf("the id %q is not what events.Key says: %v", id, m)
		}
		types[typ]++
		// OPTIONAL: time, datacontenttype, subject; and the extension dataref.
		at, err := time.Parse(time.RFC3339, m.Get("ce-time"))
		if err != nil || at.Location() != time.UTC {
			t.Errorf("the time %q: %v", m.Get("ce-time"), err)
		}
		if _, _, err := mime.ParseMediaType(m.Get("ce-datacontenttype")); err != nil {
			t.Errorf("the content type %q: %v", m.Get("ce-datacontenttype"), err)
		}
		if message, ok := m.Int(events.HeaderMessageID); ok {
			if m.Get("ce-subject") != fmt.Sprint("message/", message) {
				t.Errorf("the subject is not the message: %v", m)
			}
			if m.Record() == "" && !at.Equal(sent[message].Truncate(time.Second)) {
				t.Errorf("message %d was sent at %v, and its time is %v", message, sent[message], at)
			}
		} else if m.Get("ce-subject") != "" {
			t.Errorf("there is a subject: %v", m)
		}
		ref := ""
		if object := m.Get(events.HeaderObject); object != "" {
			ref = "zulip_acme/" + object
		}
		if decoded(t, m, "ce-dataref") != ref {
			t.Errorf("the data should be at %q: %v", ref, m)
		}
	}
	for _, typ := range []string{"com.zulip.message", "com.zulip.reaction.add", `com.zulip.shiny_new_thing.with blank, "Ü" and %`,
		"com.zulip.realm.update", "zulip-nats.queue", "zulip-nats.gap-opened", "zulip-nats.gap-closed", "zulip-nats.rejected",
		"zulip-nats.skipped"} {
		if types[typ] == 0 {
			t.Errorf("nothing has the type %q: %v", typ, types)
		}
	}
}
