package integration_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

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
	var duringRegister func()
	w = newWorld(t, natsServer(t), func(z *zulipsim.Server) {
		z.MaxMessageLength = 2 << 20
		z.DuringRegister = func(string) {
			if duringRegister != nil {
				duringRegister()
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
	duringRegister = func() {
		duringRegister = nil
		send("in history and in the new queue")
	}
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
}
