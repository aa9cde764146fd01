package asyncapi_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"zulip-nats/asyncapi"
	"zulip-nats/schema"
	"zulip-nats/subjects"
)

// specification is AsyncAPI's own schema of documents.
func specification(t testing.TB) *jsonschema.Schema {
	t.Helper()
	f, err := os.Open("testdata/asyncapi-3.0.0.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(z)
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("urn:asyncapi", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("urn:asyncapi")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func realm(t testing.TB, name string) subjects.Realm {
	t.Helper()
	r, err := subjects.ParseRealm(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func document(t testing.TB, c asyncapi.Config) map[string]any {
	t.Helper()
	text, err := asyncapi.Document(c)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return doc.(map[string]any)
}

func configs(t testing.TB) map[string]asyncapi.Config {
	return map[string]asyncapi.Config{
		"plain": {Realm: realm(t, "acme"), Stream: "ZULIP_acme", Program: "1.2.3", Servers: []string{"nats://127.0.0.1:4222"}},
		"cluster": {Realm: realm(t, "127-0-0-1"), Stream: "EVERYTHING", Program: "(devel)",
			Servers: []string{"nats://a.example.com", "tls://b.example.com:4333", "wss://c.example.com"}},
		"cloud": {Realm: realm(t, "acme"), Stream: "ZULIP_acme", Program: "1.2.3", CloudEvents: true},
		"few types": {Realm: realm(t, "A_b"), Stream: "ZULIP_A_b", Program: "1",
			Types: []string{"message", "brand_new", "typing", "newer"}, Excluded: []string{"typing", "newer"}},
		"by place": {Realm: realm(t, "acme").By(subjects.ByPlace), Stream: "ZULIP_acme", Program: "1.2.3",
			Servers: []string{"nats://127.0.0.1:4222"}},
		"few types by place": {Realm: realm(t, "acme").By(subjects.ByPlace), Stream: "ZULIP_acme", Program: "1",
			CloudEvents: true, Types: []string{"message", "reaction", "brand_new"}, Excluded: []string{"heartbeat"}},
	}
}

// at gives what a pointer like "#/a/b" means in a document.
func at(doc any, pointer string) (any, bool) {
	for part := range strings.SplitSeq(strings.TrimPrefix(pointer, "#/"), "/") {
		object, ok := doc.(map[string]any)
		if !ok {
			return nil, false
		}
		if doc, ok = object[strings.NewReplacer("~1", "/", "~0", "~").Replace(part)]; !ok {
			return nil, false
		}
	}
	return doc, true
}

// walk goes over a document.
func walk(v any, f func(map[string]any)) {
	switch v := v.(type) {
	case map[string]any:
		f(v)
		for _, of := range v {
			walk(of, f)
		}
	case []any:
		for _, of := range v {
			walk(of, f)
		}
	}
}

// TestValid: a document is one by AsyncAPI's own schema, what it refers to is in it, and
// each schema in it is one.
func TestValid(t *testing.T) {
	spec := specification(t)
	for name, c := range configs(t) {
		doc := document(t, c)
		if err := spec.Validate(doc); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		schemas := jsonschema.NewCompiler()
		schemas.DefaultDraft(jsonschema.Draft7) // which AsyncAPI's schemas are made after
		if err := schemas.AddResource("urn:doc", doc); err != nil {
			t.Fatal(err)
		}
		used := map[string]bool{}
		walk(doc, func(o map[string]any) {
			if to, ok := o["$ref"].(string); ok {
				used[to] = true
				if _, ok := at(doc, to); !ok {
					t.Errorf("%s: %s is not in the document", name, to)
				}
			}
		})
		for _, part := range []string{"messages", "schemas"} {
			all, _ := at(doc, "#/components/"+part)
			for _, key := range slices.Sorted(maps.Keys(all.(map[string]any))) {
				to := "#/components/" + part + "/" + key
				if !used[to] {
					t.Errorf("%s: nothing refers to %s", name, to)
				}
				if part == "schemas" {
					if _, err := schemas.Compile("urn:doc" + to); err != nil {
						t.Errorf("%s: %s: %v", name, to, err)
					}
				}
			}
		}
	}
}

// TestNotValid: what is no document is not taken for one, so the schema does look.
func TestNotValid(t *testing.T) {
	spec := specification(t)
	for name, spoil := range map[string]func(map[string]any){
		"no info":             func(d map[string]any) { delete(d, "info") },
		"another version":     func(d map[string]any) { d["asyncapi"] = "2.6.0" },
		"an unknown member":   func(d map[string]any) { d["subjects"] = "zulip.>" },
		"a server without":    func(d map[string]any) { delete(get(d, "servers", "nats"), "protocol") },
		"an unknown action":   func(d map[string]any) { get(d, "operations", "send.message")["action"] = "publish" },
		"an address of an id": func(d map[string]any) { get(d, "channels", "message")["address"] = 7 },
		"a bad schema":        func(d map[string]any) { get(d, "components", "schemas", "event.message")["type"] = "text" },
	} {
		doc := document(t, configs(t)["plain"])
		spoil(doc)
		if spec.Validate(doc) == nil {
			t.Errorf("%s: it is valid", name)
		}
	}
}

func get(doc map[string]any, path ...string) map[string]any {
	v, ok := at(doc, "#/"+strings.Join(path, "/"))
	if !ok {
		panic(fmt.Sprint("no ", path))
	}
	return v.(map[string]any)
}

// TestSubjects: what is on the bus, and nothing else, by the table of the README.
func TestSubjects(t *testing.T) {
	for name, want := range map[string][]string{
		"few types": {"zulip.A_b.brand_new", "zulip.A_b.bridge.erased", "zulip.A_b.bridge.excluded", "zulip.A_b.bridge.gap",
			"zulip.A_b.bridge.queue", "zulip.A_b.bridge.rejected",
			"zulip.A_b.bridge.skipped", "zulip.A_b.bridge.state-begin",
			"zulip.A_b.bridge.state-end", "zulip.A_b.bridge.state.{section}", "zulip.A_b.heartbeat", "zulip.A_b.message"},
		"plain": {"zulip.acme.bridge.erased", "zulip.acme.bridge.excluded", "zulip.acme.bridge.gap", "zulip.acme.bridge.queue", "zulip.acme.bridge.rejected", "zulip.acme.bridge.skipped",
			"zulip.acme.bridge.state-begin", "zulip.acme.bridge.state-end", "zulip.acme.bridge.state.{section}",
			"zulip.acme.{type}"},
	} {
		doc := document(t, configs(t)[name])
		var has []string
		for _, c := range get(doc, "channels") {
			has = append(has, c.(map[string]any)["address"].(string))
		}
		slices.Sort(has)
		if name == "plain" {
			for _, s := range schema.All() {
				if !s.Record {
					want = append(want, "zulip.acme."+s.Name)
				}
			}
		}
		slices.Sort(want)
		if !slices.Equal(has, want) {
			t.Errorf("%s: the subjects are %v, want %v", name, has, want)
		}
		if get(doc, "x-jetstream")["stream"] != configs(t)[name].Stream {
			t.Errorf("%s: %v", name, get(doc, "x-jetstream"))
		}
	}
	servers := get(document(t, configs(t)["cluster"]), "servers")
	for name, want := range map[string]string{"nats1": "nats a.example.com", "nats2": "nats b.example.com:4333", "nats3": "wss c.example.com"} {
		s := servers[name].(map[string]any)
		if got := fmt.Sprint(s["protocol"], " ", s["host"]); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if _, err := asyncapi.Document(asyncapi.Config{Realm: realm(t, "a"), Types: []string{"a.b"}}); err == nil {
		t.Error("a type that cannot be in a subject is described")
	}
}

// TestByPlace: each type has the subjects of the places where its events go, and those of
// the records stay.
func TestByPlace(t *testing.T) {
	const records = "bridge.erased bridge.excluded bridge.gap bridge.queue bridge.rejected bridge.skipped bridge.state-begin " +
		"bridge.state-end bridge.state.{section}"
	addresses := func(name string) (all []string) {
		for of, c := range get(document(t, configs(t)[name]), "channels") {
			c := c.(map[string]any)
			address := strings.TrimPrefix(c["address"].(string), "zulip.acme.")
			all = append(all, address)
			parameters, _ := c["parameters"].(map[string]any)
			for word := range parameters {
				if !strings.Contains(address, "{"+word+"}") {
					t.Errorf("%s: %s has the parameter %s", name, address, word)
				}
			}
			if len(parameters) != strings.Count(address, "{") {
				t.Errorf("%s: the parameters of %s are %v", name, address, parameters)
			}
			if strings.HasPrefix(of, "send.") || c["summary"] == "" {
				t.Errorf("%s: %s, %v", name, of, c["summary"])
			}
		}
		slices.Sort(all)
		return all
	}
	want := strings.Fields(records + " message.channel.{channel} message.direct reaction.channel.{channel} reaction.direct " +
		"reaction.none brand_new.channel.{channel} brand_new.direct")
	slices.Sort(want)
	if has := addresses("few types by place"); !slices.Equal(has, want) {
		t.Errorf("the subjects are %v, want %v", has, want)
	}

	want = strings.Fields(records + " {type}.channel.{channel} {type}.direct")
	for places, types := range map[string]string{
		"channel.{channel}":      "user_topic",
		"channel.{channel} none": "stream subscription",
		"channel.{channel} direct": "delete_message message submessage typing typing_edit_message update_message " +
			"url_embed_data",
		"channel.{channel} direct none": "reaction update_message_flags",
		"direct":                        "attachment drafts navigation_view reminders scheduled_messages",
		"none": "alert_words channel_folder custom_profile_fields default_stream_groups default_streams device " +
			"has_webex_token has_zoom_token heartbeat hotspots invites_changed muted_topics muted_users onboarding_steps " +
			"pointer presence push_device realm realm_bot realm_domains realm_emoji realm_export realm_export_consent " +
			"realm_filters realm_linkifiers realm_playgrounds realm_user realm_user_settings_defaults restart " +
			"saved_snippets update_display_settings update_global_notifications user_group user_settings user_status " +
			"web_reload_client",
	} {
		for typ := range strings.FieldsSeq(types) {
			for at := range strings.FieldsSeq(places) {
				want = append(want, typ+"."+at)
			}
		}
	}
	slices.Sort(want)
	has := addresses("by place")
	if !slices.Equal(has, want) {
		t.Errorf("the subjects are %v, want %v", has, want)
	}
	// No record is where a type is that is not known.
	for _, record := range append(strings.Fields(records), "bridge.state.users") {
		for _, address := range has {
			pattern := regexp.MustCompile(`\\\{\w+\\\}`).ReplaceAllString(regexp.QuoteMeta(address), `[^.]+`)
			if !strings.HasPrefix(address, "bridge.") && regexp.MustCompile("^"+pattern+"$").MatchString(record) {
				t.Errorf("%s is taken for one of %s", record, address)
			}
		}
	}
}

// TestHeaders: every header that package events names is described, with a sentence.
func TestHeaders(t *testing.T) {
	described := map[string]string{}
	walk(get(document(t, configs(t)["cloud"]), "components", "schemas"), func(o map[string]any) {
		properties, _ := o["properties"].(map[string]any)
		for name, of := range properties {
			about, _ := of.(map[string]any)["description"].(string)
			described[name] = about
		}
	})
	all := constants(t, "../events/events.go", "Header")
	for constant, name := range all {
		if described[name] == "" {
			t.Errorf("the header %s (%s) is not described", name, constant)
		}
	}
	if len(all) < 23 {
		t.Errorf("package events has %d headers only", len(all))
	}
}

// TestRecords: every record that package events names is described, and every subject of
// records that package subjects has.
func TestRecords(t *testing.T) {
	doc := document(t, configs(t)["plain"])
	for constant, name := range constants(t, "../events/records.go", "Record") {
		if _, ok := at(doc, "#/components/messages/record."+name); !ok {
			t.Errorf("the record %s (%s) is not described", name, constant)
		}
	}
	for _, kind := range []string{subjects.Queue, subjects.Gap, subjects.Rejected, subjects.Skipped} {
		if c := get(doc, "channels", "bridge."+kind); c["address"] != "zulip.acme.bridge."+kind {
			t.Errorf("%s: %v", kind, c)
		}
	}
}

// constants are the texts of a file whose names begin so.
func constants(t *testing.T, file, prefix string) map[string]string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	ast.Inspect(f, func(node ast.Node) bool {
		if v, ok := node.(*ast.ValueSpec); ok && len(v.Values) == 1 && strings.HasPrefix(v.Names[0].Name, prefix) {
			text, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			all[v.Names[0].Name] = text
		}
		return true
	})
	if len(all) == 0 {
		t.Fatalf("%s has no constants %s...", file, prefix)
	}
	return all
}
