package schema_test

import (
	"reflect"
	"strings"
	"testing"

	"zulip-nats/events"
	"zulip-nats/schema"
)

// bodies are the views that package events has of events.
var bodies = map[string]any{
	"message": events.Message{}, "update_message": events.UpdateMessage{}, "delete_message": events.DeleteMessage{},
	"reaction": events.Reaction{}, "subscription": events.Subscription{}, "stream": events.Stream{},
	"realm_user": events.RealmUser{}, "user_group": events.UserGroup{}, "typing": events.Typing{}, "presence": events.Presence{},
}

// fieldsOf are the names that a type has for JSON, at any depth.
func fieldsOf(t reflect.Type, to map[string]bool) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		fieldsOf(t.Elem(), to)
	case reflect.Struct:
		for i := range t.NumField() {
			if name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); name != "" && name != "-" {
				to[name] = true
			}
			fieldsOf(t.Field(i).Type, to)
		}
	}
}

// TestBodies: package events reads no field that the schemas do not know.
func TestBodies(t *testing.T) {
	for name, body := range bodies {
		s, ok := schema.Of(name)
		if !ok {
			t.Errorf("there is no schema of %s", name)
			continue
		}
		described, read := map[string]bool{}, map[string]bool{}
		names(value(t, s.Text), true, described)
		fieldsOf(reflect.TypeOf(body), read)
		if len(read) < 2 {
			t.Errorf("%s: package events reads %v only", name, read)
		}
		for field := range read {
			// One Go type is for the channels of both.
			if name == "stream" && field == "subscribers" {
				continue
			}
			if !described[field] {
				t.Errorf("%s: package events reads %s, which the schema does not know", name, field)
			}
		}
	}
}
