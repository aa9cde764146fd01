// Package schema is what the bodies of messages look like, as JSON Schema (draft
// 2020-12): a file for each type of Zulip's events that is known, with a definition for
// each of its ops, and one for each record of the bridge's own.
//
// They are written from what Zulip documents and has in its sources (zulip/zulip,
// zerver/lib/event_types.py and zerver/openapi/zulip.yaml, feature levels 372 to 509) and
// from events that were captured of a server 10.2. They are open: fields that are not
// named, ops that are not named, and values that are not among the examples are good,
// since newer servers send them without notice. A field is required only where all of
// these servers send it. So a body that breaks its schema is one that code written for
// the schema would trip over.
//
// Nothing here checks anything at run time: the bridge passes on what Zulip sent.
package schema

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
)

//go:embed events/*.json records/*.json
var files embed.FS

// Draft is the dialect of all schemas, as "$schema" names it.
const Draft = "https://json-schema.org/draft/2020-12/schema"

// Schema is that of one type of events, or of one record.
type Schema struct {
	// Name is the event's type, as in Zulip-Event-Type, or the record, as in
	// Bridge-Record.
	Name   string
	Record bool
	// Ops are those of the type, sorted; none where it has none.
	Ops []string
	// About is what it is, in a sentence or two.
	About string
	// Text is the schema by itself, as JSON.
	Text []byte
}

// All returns all schemas: those of events, and behind them those of records, each by
// name. They are shared: do not change them.
var All = sync.OnceValue(func() (all []Schema) {
	for _, folder := range []string{"events", "records"} {
		entries, err := files.ReadDir(folder)
		if err != nil {
			panic(err) // it is in the program
		}
		for _, e := range entries {
			text, err := files.ReadFile(path.Join(folder, e.Name()))
			if err != nil {
				panic(err)
			}
			s := Schema{Name: strings.TrimSuffix(e.Name(), ".json"), Record: folder == "records", Text: text}
			var doc struct {
				Description string
				Properties  struct{ Op struct{ Examples []string } }
			}
			if err := json.Unmarshal(text, &doc); err != nil {
				panic(fmt.Sprintf("schema/%s/%s: %v", folder, e.Name(), err))
			}
			s.About, s.Ops = doc.Description, doc.Properties.Op.Examples
			slices.Sort(s.Ops)
			all = append(all, s)
		}
	}
	return all
})

// Of returns the schema of a type of events, or of a record. ok is false if there is none
// of that name.
func Of(name string) (s Schema, ok bool) {
	for _, s := range All() {
		if s.Name == name {
			return s, true
		}
	}
	return Schema{}, false
}

// Names are those of all schemas, in their order.
func Names() []string {
	names := make([]string, len(All()))
	for i, s := range All() {
		names[i] = s.Name
	}
	return names
}

// Title is the name that a schema has among others: "event.message" or "record.queue".
func (s *Schema) Title() string {
	if s.Record {
		return "record." + s.Name
	}
	return "event." + s.Name
}

// Definitions takes schemas apart for a document that holds more than one: each of them
// by its [Schema.Title], and besides what they refer to, which they share. References
// begin with prefix, such as "#/$defs/".
func Definitions(prefix string, of ...Schema) map[string]json.RawMessage {
	defs := map[string]json.RawMessage{}
	for _, s := range of {
		text := bytes.ReplaceAll(s.Text, []byte(`"$ref": "#/$defs/`), []byte(`"$ref": "`+prefix))
		var shared struct {
			Defs map[string]json.RawMessage `json:"$defs"`
		}
		if err := json.Unmarshal(text, &shared); err != nil {
			panic(err) // All has read it before
		}
		for name, def := range shared.Defs {
			defs[name] = def
		}
		defs[s.Title()] = without(text, "$schema", "$id", "$defs")
	}
	return defs
}

// without is a JSON object that has no members of these names; the others stay as they
// are, in their order.
func without(object []byte, names ...string) json.RawMessage {
	d := json.NewDecoder(bytes.NewReader(object))
	out := []byte("{")
	for first := true; ; {
		key, err := d.Token()
		if err != nil {
			panic(err)
		}
		name, ok := key.(string)
		if !ok { // a brace
			if d.More() {
				continue
			}
			return append(out, '}')
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			panic(err)
		}
		if slices.Contains(names, name) {
			continue
		}
		if !first {
			out = append(out, ',')
		}
		first = false
		quoted, _ := json.Marshal(name) // of a string, which cannot fail
		out = append(append(append(out, quoted...), ':'), value...)
	}
}

// Bundle is one schema for all bodies in a stream: an event of a type that is known, one
// of a type that is not, or a record.
func Bundle() []byte {
	type ref struct {
		Ref string `json:"$ref"`
	}
	var of []any
	var types []string
	for _, s := range All() {
		of = append(of, ref{"#/$defs/" + s.Title()})
		if !s.Record {
			types = append(types, s.Name)
		}
	}
	var unknown struct {
		Description string   `json:"description"`
		Type        string   `json:"type"`
		Required    []string `json:"required"`
		Properties  struct {
			Type struct {
				Type string `json:"type"`
				Not  struct {
					Enum []string `json:"enum"`
				} `json:"not"`
			} `json:"type"`
		} `json:"properties"`
	}
	unknown.Description = "An event of a type that came with a newer server."
	unknown.Type, unknown.Required = "object", []string{"type"}
	unknown.Properties.Type.Type, unknown.Properties.Type.Not.Enum = "string", types
	doc := struct {
		Schema      string                     `json:"$schema"`
		ID          string                     `json:"$id"`
		Description string                     `json:"description"`
		AnyOf       []any                      `json:"anyOf"`
		Defs        map[string]json.RawMessage `json:"$defs"`
	}{Draft, "urn:zulip-nats:schema:all", "The body of a message of the stream.", append(of, unknown),
		Definitions("#/$defs/", All()...)}
	return Indent(doc)
}

// Indent is a document for people: indented by two blanks, and with a line break at its
// end.
func Indent(doc any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(doc); err != nil {
		panic(err) // it is made of what JSON can hold
	}
	return b.Bytes()
}
