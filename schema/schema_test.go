package schema_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"zulip-nats/integration_test/recorded"
	"zulip-nats/poller"
	"zulip-nats/schema"
)

var further = flag.String("events", "", "a file with further events to check, one a line")

// The schemas are checked by a library that knows the standard; here are the events that
// they are checked with.

// sample is an event, and where it stands.
type sample struct {
	from     string
	raw      []byte
	typ, op  string
	captured bool
}

func (s *sample) kind() string { return s.typ + "/" + s.op }

func newSample(t testing.TB, from string, raw []byte, captured bool) sample {
	t.Helper()
	var e struct{ Type, Op string }
	if err := json.Unmarshal(raw, &e); err != nil {
		t.Fatalf("%s: %v: %.200s", from, err, raw)
	}
	// Two of Zulip's published examples lack what each server sends.
	for _, text := range []string{"I come not, friends, to steal", "With mirth and laughter let"} {
		if bytes.Contains(raw, []byte(text)) && !captured {
			var whole map[string]any
			if err := json.Unmarshal(raw, &whole); err != nil {
				t.Fatal(err)
			}
			whole["flags"] = []string{}
			whole["message"].(map[string]any)["subject"] = "topic"
			raw = schema.Indent(whole)
		}
	}
	return sample{from: from, raw: raw, typ: e.Type, op: e.Op, captured: captured}
}

// samples are all events that the repository has: those of a real server, live and as
// messages of its history, and the examples of what that one does not send.
func samples(t testing.TB) (all []sample) {
	t.Helper()
	for _, file := range []string{"../events/testdata/events.jsonl", "../integration_test/testdata/further-events.jsonl"} {
		for _, line := range recorded.Lines(t, file) {
			all = append(all, newSample(t, file, line, false))
		}
	}
	const events, history = "../poller/testdata/captured/events.jsonl.gz", "../poller/testdata/captured/messages.jsonl.gz"
	for _, file := range []string{events, history} {
		for _, line := range recorded.Lines(t, file) {
			var exchange struct{ File, Body string }
			var answer struct{ Events, Messages []json.RawMessage }
			if err := json.Unmarshal(line, &exchange); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(exchange.Body), &answer); err != nil {
				t.Fatal(err)
			}
			for _, raw := range answer.Events {
				all = append(all, newSample(t, exchange.File, raw, true))
			}
			for _, m := range answer.Messages { // in the shape of an event, as the bridge stores them
				var members map[string]json.RawMessage
				if err := json.Unmarshal(m, &members); err != nil {
					t.Fatal(err)
				}
				flags := members["flags"]
				delete(members, "flags")
				raw, err := json.Marshal(map[string]any{"type": "message", "message": members, "flags": flags})
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, newSample(t, exchange.File, raw, true))
			}
		}
	}
	return all
}

// compile makes the library read a schema, and the meta-schema's opinion of it.
func compile(t testing.TB, text []byte) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	id := doc.(map[string]any)["$id"].(string)
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource(id, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(id)
	if err != nil {
		t.Fatalf("%s: %v", id, err)
	}
	return s
}

func value(t testing.TB, raw []byte) any {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("%v: %.200s", err, raw)
	}
	return v
}

// compiled are all schemas, by name, and the bundle as "".
func compiled(t testing.TB) map[string]*jsonschema.Schema {
	t.Helper()
	all := map[string]*jsonschema.Schema{"": compile(t, schema.Bundle())}
	for _, s := range schema.All() {
		all[s.Name] = compile(t, s.Text)
	}
	return all
}

// TestKnown compares the schemas with the list of all types and ops that Zulip is known
// to have.
func TestKnown(t *testing.T) {
	ops := map[string][]string{}
	for _, line := range recorded.Lines(t, "../poller/event-types.tsv") {
		if part := strings.Split(string(line), "\t"); len(part) == 3 {
			ops[part[0]] = append(ops[part[0]], part[1])
		}
	}
	for _, s := range schema.All() {
		if s.Record {
			if ops[s.Name] != nil {
				t.Errorf("%s is an event and a record", s.Name)
			}
			continue
		}
		has := s.Ops
		if len(has) == 0 {
			has = []string{"-"}
		}
		if want := slices.Sorted(slices.Values(ops[s.Name])); !slices.Equal(has, want) {
			t.Errorf("the schema of %s has the ops %v, Zulip has %v", s.Name, has, want)
		}
		delete(ops, s.Name)
	}
	if len(ops) > 0 {
		t.Errorf("there is no schema of %v", slices.Sorted(maps.Keys(ops)))
	}
	if n := len(poller.EventTypes()); n != 53 {
		t.Errorf("%d types are known, counted were 53", n)
	}
}

// TestShared: what two schemas call by one name is one thing, since [schema.Definitions]
// puts them together.
func TestShared(t *testing.T) {
	is := map[string]string{}
	for _, s := range schema.All() {
		for name, def := range schema.Definitions("#/$defs/", s) {
			if is[name] != "" && is[name] != string(def) {
				t.Errorf("%s is not the same in %s as in another schema", name, s.Name)
			}
			is[name] = string(def)
		}
	}
}

// TestEvents checks every event there is.
func TestEvents(t *testing.T) {
	all := compiled(t)
	list := samples(t)
	if *further != "" {
		for _, line := range recorded.Lines(t, *further) {
			list = append(list, newSample(t, *further, line, false))
		}
	}
	kinds := map[string]int{}
	for _, e := range list {
		s := all[e.typ]
		if s == nil {
			t.Errorf("%s: no schema of %q", e.from, e.typ)
			continue
		}
		v := value(t, e.raw)
		if err := s.Validate(v); err != nil {
			t.Errorf("%s: %v: %.500s", e.from, err, e.raw)
		}
		if err := all[""].Validate(v); err != nil {
			t.Errorf("%s: all: %.500s", e.from, e.raw)
		}
		kinds[e.kind()]++
	}
	for _, s := range schema.All() {
		ops := s.Ops
		if len(ops) == 0 {
			ops = []string{""}
		}
		for _, op := range ops {
			if !s.Record && kinds[s.Name+"/"+op] == 0 {
				t.Errorf("no event of %s/%s was checked", s.Name, op)
			}
		}
	}
	t.Logf("%d events of %d types and ops", len(list), len(kinds))
}

// odd are values of all kinds.
var odd = []any{map[string]any{}, []any{map[string]any{}}, "text", json.Number("1.5"), true, nil}

// breaker puts each odd value in each place of a body, in turn, and looks whether the
// schema notices. Places that differ only in their index, or in a number as a name, and
// hold the same kind of value, are one.
type breaker struct {
	t       *testing.T
	check   func() bool // whether the body is good
	places  map[string]bool
	missing int // fields that are noticed when they are missing
}

func (b *breaker) all(v any, at string, put func(any)) {
	if place := fmt.Sprintf("%s %T", at, v); put != nil && !b.places[place] {
		b.places[place] = true
		noticed := 0
		for _, o := range odd {
			if put(o); !b.check() {
				noticed++
			}
		}
		put(v)
		if noticed < 3 {
			b.t.Errorf("%s: %d of 6 wrong values were noticed: %.200v", at, noticed, v)
		}
	}
	switch v := v.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			name, of := key, v[key]
			if strings.Trim(key, "0123456789") == "" {
				name = "*"
			}
			if delete(v, key); !b.check() {
				b.missing++
			}
			v[key] = of
			b.all(of, at+"/"+name, func(o any) { v[key] = o })
		}
	case []any:
		for i := range v {
			b.all(v[i], at+"/*", func(o any) { v[i] = o })
		}
	}
}

// TestBrokenField puts something of another kind in the place of each field of the
// events, at any depth, and sees that the schema notices. So no field that was ever seen
// is unknown to it. Of the six kinds of values at least three are refused everywhere: a
// setting may be true, a number, text or null. And what is required is missed.
func TestBrokenField(t *testing.T) {
	all := compiled(t)
	places := map[string]bool{}
	missing := map[string]int{}
	for _, e := range samples(t) {
		s := all[e.typ]
		if s == nil || len(e.raw) > 20_000 { // which TestEvents tells of; thousands of ids
			continue
		}
		shape := fmt.Sprintf("%s %s", e.kind(), shapeOf(value(t, e.raw)))
		if places[shape] {
			continue // another event like one before
		}
		places[shape] = true
		v := value(t, e.raw)
		b := &breaker{t: t, check: func() bool { return s.Validate(v) == nil }, places: places}
		b.all(v, e.kind(), nil)
		missing[e.kind()] += b.missing
	}
	for kind, n := range missing {
		least := 1 // the type
		if !strings.HasSuffix(kind, "/") {
			least++ // the op
		}
		if kind != "heartbeat/" && kind != "invites_changed/" && n <= least {
			t.Errorf("%s: nothing but its type and op is required", kind)
		}
	}
	t.Logf("%d places were broken, of %d types and ops", len(places), len(missing))
}

// shapeOf tells values apart by the fields that they have, and not by what is in them.
func shapeOf(v any) string {
	switch v := v.(type) {
	case map[string]any:
		var b strings.Builder
		for _, key := range slices.Sorted(maps.Keys(v)) {
			fmt.Fprintf(&b, "%s:%s,", key, shapeOf(v[key]))
		}
		return "{" + b.String() + "}"
	case []any:
		if len(v) == 0 {
			return "[]"
		}
		return "[" + shapeOf(v[0]) + "]"
	}
	return fmt.Sprintf("%T", v)
}

// TestBundle: an event of a type that nobody knows is good, a record is, and what is
// neither is not.
func TestBundle(t *testing.T) {
	all := compile(t, schema.Bundle())
	for raw, good := range map[string]bool{
		`{"type":"shiny_new_thing","op":"sparkle","id":3}`:                         true,
		`{"type":"reaction","op":"sparkle","id":3}`:                                true,
		`{"type":"reaction","op":"add","id":3}`:                                    false,
		`{"record":"skipped","event_id":1,"message_id":2,"reason":"it is here"}`:   true,
		`{"record":"skipped","event_id":1,"message_id":"2","reason":"it is here"}`: false,
		`{"id":3}`: false, `{"type":7}`: false, `[]`: false,
	} {
		if err := all.Validate(value(t, []byte(raw))); (err == nil) != good {
			t.Errorf("%s: %v", raw, err)
		}
	}
}
