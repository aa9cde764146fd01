// Package asyncapi describes what the bridge puts on the bus, with the settings that it
// is given, as an AsyncAPI document (https://www.asyncapi.com/docs/reference/specification/v3.0.0):
// servers, subjects, headers and bodies, for catalogues and for programs that make code
// out of such documents.
//
// It is made of what the bridge itself writes with: the headers and records of package
// events, the subjects of package subjects, the schemas of package schema.
package asyncapi

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"zulip-nats/bridge"
	"zulip-nats/events"
	"zulip-nats/schema"
	"zulip-nats/subjects"
)

// Version is that of AsyncAPI. 3.0 is what most tools read.
const Version = "3.0.0"

// Config is the settings that make a difference.
type Config struct {
	Realm  subjects.Realm
	Stream string // the stream's name
	// Servers are addresses of NATS without user and password: nats://host:4222.
	Servers []string
	// Types are the types of events that the queue is asked for; none: all.
	Types []string
	// Excluded are the types that are not stored.
	Excluded []string
	// CloudEvents: messages have the headers of a CloudEvent besides.
	CloudEvents bool
	// Program is the version of zulip-nats.
	Program string
}

// object is a JSON object. Its members are sorted when it is written.
type object = map[string]any

func ref(parts ...string) object {
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	for i := range parts {
		parts[i] = escape.Replace(parts[i])
	}
	return object{"$ref": "#/" + strings.Join(parts, "/")}
}

// place is where messages of one type go: a channel of the document.
type place struct {
	channel    string // its name in the document
	address    string // the subject; {words} in braces are parameters
	about      string
	parameters object // what these are
}

// places are those of the events of one type: by type one, by place those where such
// events go.
func (c *Config) places(typ, about string) ([]place, error) {
	subject, err := c.Realm.By(subjects.ByType).Event(typ, subjects.Nowhere)
	if err != nil {
		return nil, err
	}
	return c.placed(place{channel: typ, address: subject, about: about}, typ), nil
}

// placed makes of the place that a type has by type those that it has in the layout.
func (c *Config) placed(p place, typ string) []place {
	if c.Realm.Layout() != subjects.ByPlace {
		return []place{p}
	}
	var all []place
	add := func(has bool, at, parameter, about string) {
		if !has {
			return
		}
		to := place{channel: p.channel + "." + at, address: p.address + "." + at, about: p.about + " " + about,
			parameters: maps.Clone(p.parameters)}
		if parameter != "" {
			to.address += ".{channel}"
			if to.parameters == nil {
				to.parameters = object{}
			}
			to.parameters["channel"] = object{"description": parameter}
		}
		all = append(all, to)
	}
	channel, direct, none := bridge.PlacesOf(typ)
	add(channel, "channel", "The id of the channel.", "Here: in one channel.")
	add(direct, subjects.Direct.String(), "", "Here: in direct messages, or perhaps there.")
	add(none, subjects.Nowhere.String(), "", "Here: in neither a channel nor direct messages, or it is not known where.")
	return all
}

// recordKinds says which records are on a subject of the bridge's own.
var recordKinds = []struct {
	kind    string // for [subjects.Realm.Record]
	about   string
	records []string
}{
	{subjects.Queue, "The queue that is followed, its options, and what came before it.", []string{events.RecordQueue}},
	{subjects.Gap, "A queue was lost, when and why; later what was read back, and what is missing.",
		[]string{events.RecordGapOpened, events.RecordGapClosed}},
	{subjects.Rejected, "An event that cannot be carried as it is.", []string{events.RecordRejected}},
	{subjects.Skipped, "A message event whose message the stream holds already.", []string{events.RecordSkipped}},
	{subjects.Erased, "What of deleted messages is erased.", []string{events.RecordErased}},
	{subjects.Excluded, "Events that were left out, as asked for.", []string{events.RecordExcluded}},
	{subjects.StateBegin, "A state of the organization begins, where --state asks for it.", []string{events.RecordStateBegin}},
	{subjects.StateEnd, "It is whole.", []string{events.RecordStateEnd}},
}

// recordHeaders are those that a record has besides what all have.
var recordHeaders = map[string][]string{
	events.RecordQueue:     {events.HeaderQueueID, events.HeaderNext},
	events.RecordGapClosed: {events.HeaderQueueID},
	events.RecordSkipped:   {events.HeaderQueueID, events.HeaderEventID, events.HeaderMessageID},
	events.RecordExcluded:  {events.HeaderQueueID, events.HeaderEventID},

	events.RecordStateBegin: {events.HeaderQueueID, events.HeaderStateEvent},
	events.RecordState: {events.HeaderQueueID, events.HeaderStateEvent, events.HeaderStateSection,
		events.HeaderStatePiece},
	events.RecordStateEnd: {events.HeaderQueueID, events.HeaderStateEvent},
}

// Document is the description, as JSON. The error says which setting cannot be described.
func Document(c Config) ([]byte, error) {
	d := document{Config: c, channels: object{}, operations: object{}, messages: object{}, schemas: object{}}
	for _, s := range schema.All() {
		if !s.Record && c.stores(s.Name) {
			if err := d.event(s); err != nil {
				return nil, err
			}
		}
	}
	for _, typ := range c.Types { // one that is newer than the schemas
		if _, known := schema.Of(typ); !known && c.stores(typ) {
			if err := d.event(schema.Schema{Name: typ, About: "A type of events that is not known here.",
				Text: []byte(`{"type":"object"}`)}); err != nil {
				return nil, err
			}
		}
	}
	if len(c.Types) == 0 {
		d.others()
	}
	d.stub()
	for _, r := range recordKinds {
		d.record(place{channel: "bridge." + r.kind, address: c.Realm.Record(r.kind), about: r.about}, r.records...)
	}
	d.record(place{channel: "bridge.state", address: strings.TrimSuffix(c.Realm.States(), "*") + "{section}",
		about:      "A piece of that state.",
		parameters: object{"section": object{"description": "The section: users, channels, ..."}}}, events.RecordState)
	doc := object{
		"asyncapi": Version,
		"id":       "urn:zulip-nats:" + c.Realm.String(),
		"info": object{
			"title":   "Zulip events of " + c.Realm.String(),
			"version": c.Program,
			"description": "Every event of a Zulip account in NATS JetStream: once, in order, the bytes as Zulip sent them. " +
				"A message whose headers have no Zulip-Queue-Id and no Bridge-Record was written by somebody else: pass over it.",
		},
		"defaultContentType": "application/json",
		"channels":           d.channels,
		"operations":         d.operations,
		"components":         object{"messages": d.messages, "schemas": d.schemas},
		"x-jetstream": object{"stream": c.Stream, "subjects": []string{c.Realm.All()},
			"object-store": "zulip_" + c.Realm.String()},
	}
	if servers := c.servers(); len(servers) > 0 {
		doc["servers"] = servers
	}
	return schema.Indent(doc), nil
}

// stores says whether events of a type are stored. Heartbeats come whatever the queue asks
// for.
func (c *Config) stores(typ string) bool {
	if slices.Contains(c.Excluded, typ) {
		return false
	}
	return len(c.Types) == 0 || typ == "heartbeat" || slices.Contains(c.Types, typ)
}

func (c *Config) servers() object {
	all := object{}
	for i, address := range c.Servers {
		u, err := url.Parse(address)
		if err != nil || u.Host == "" {
			continue // one that may not be shown
		}
		s := object{"host": u.Host, "protocol": u.Scheme, "description": "With JetStream."}
		if u.Scheme == "tls" { // the protocol is NATS all the same
			s["protocol"], s["description"] = "nats", "With JetStream, by TLS."
		}
		name := "nats"
		if len(c.Servers) > 1 {
			name = fmt.Sprintf("nats%d", i+1)
		}
		all[name] = s
	}
	return all
}

type document struct {
	Config
	channels, operations, messages, schemas object
}

// define puts a schema, and what it refers to, among the schemas.
func (d *document) define(s schema.Schema) (title string) {
	for name, def := range schema.Definitions("#/components/schemas/", s) {
		d.schemas[name] = def
	}
	return s.Title()
}

// message puts a message among the messages. A message in a channel is one of those of
// the channel, and of one only: their headers exclude each other.
func (d *document) message(name, title, about string, head object, payload object) {
	d.schemas["headers."+name] = head
	m := object{"name": name, "title": title, "summary": about, "headers": ref("components", "schemas", "headers."+name)}
	if payload != nil {
		m["payload"], m["contentType"] = payload, "application/json"
	}
	d.messages[name] = m
}

// channel puts a channel in the document that has these messages, and the operation that
// the bridge sends them.
func (d *document) channel(p place, messages ...string) {
	of := object{}
	for _, m := range messages {
		of[m] = ref("components", "messages", m)
	}
	c := object{"address": p.address, "messages": of}
	if p.about != "" {
		c["summary"] = p.about
	}
	if p.parameters != nil {
		c["parameters"] = p.parameters
	}
	d.channels[p.channel] = c
	d.operations["send."+p.channel] = object{"action": "send", "channel": ref("channels", p.channel)}
}

// event puts one type of events in the document.
func (d *document) event(s schema.Schema) error {
	title := d.define(s)
	payload := ref("components", "schemas", title)
	d.message(title, s.Name, s.About, whole(d.rules(live, map[string]string{
		events.HeaderEventType: s.Name, events.HeaderOrigin: events.OriginLive})), payload)
	messages := []string{title, "stub"}
	if s.Name == "message" {
		d.message("backfill.message", "message from history",
			"A message that was read back after a lost queue, in the shape of an event.", whole(d.rules(backfill, map[string]string{
				events.HeaderEventType: s.Name, events.HeaderOrigin: events.OriginBackfill})), payload)
		messages = append(messages, "backfill.message")
	}
	places, err := d.places(s.Name, s.About)
	if err != nil {
		return err
	}
	for _, p := range places {
		d.channel(p, messages...)
	}
	return nil
}

// whole are headers of a message that is no stub.
func whole(head object) object {
	head["not"] = object{"required": []string{events.HeaderObject}}
	return head
}

// stub is the message that stands for an event that is too large.
func (d *document) stub() {
	d.message("stub", "stub", "An event that is larger than a message may be. It has no body: the bytes are in the object store.",
		d.rules(stub, nil), nil)
}

// others are the events of types that came with newer servers.
func (d *document) others() {
	var known []string
	for _, s := range schema.All() {
		if !s.Record {
			known = append(known, s.Name)
		}
	}
	d.schemas["event.other"] = object{"type": "object", "required": []string{"type"}, "properties": object{
		"type": object{"type": "string", "not": object{"enum": known}}}}
	head := whole(d.rules(live, map[string]string{events.HeaderOrigin: events.OriginLive}))
	d.message("event.other", "an event of another type", "An event of a type that is not known here.", head,
		ref("components", "schemas", "event.other"))
	for _, p := range d.placed(place{channel: "other", address: strings.TrimSuffix(d.Realm.All(), ">") + "{type}",
		about:      "Events of types that came with newer servers.",
		parameters: object{"type": object{"description": "The event's type."}}}, "") {
		d.channel(p, "event.other", "stub")
	}
}

// record puts the records of one subject in the document.
func (d *document) record(p place, records ...string) {
	var messages []string
	for _, name := range records {
		s, ok := schema.Of(name)
		if !ok {
			panic("there is no schema of the record " + name) // a test goes over all of them
		}
		title := d.define(s)
		d.message(title, name, s.About, d.rules(record, map[string]string{events.HeaderRecord: name}, recordHeaders[name]...),
			ref("components", "schemas", title))
		messages = append(messages, title)
	}
	d.channel(p, messages...)
}
