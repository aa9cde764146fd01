package schema_test

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"zulip-nats/events"
	"zulip-nats/schema"
)

// records are the bodies of the bridge's records, as package events has them.
var records = map[string]any{
	events.RecordQueue:     new(events.Queue),
	events.RecordGapOpened: new(events.GapOpened),
	events.RecordGapClosed: new(events.GapClosed),
	events.RecordRejected:  new(events.Rejected),
	events.RecordSkipped:   new(events.Skipped),
	events.RecordErased:    new(events.Erased),
	events.RecordExcluded:  new(events.Excluded),

	events.RecordStateBegin: new(events.StateBegin),
	events.RecordState:      new(events.StatePiece),
	events.RecordStateEnd:   new(events.StateEnd),
}

// fill gives each field of v a value that is not zero, or the least that it may have.
func fill(v reflect.Value, full bool) {
	switch v.Interface().(type) {
	case time.Time:
		if full {
			v.Set(reflect.ValueOf(time.Date(2026, 11, 29, 1, 2, 3, 456789, time.UTC)))
		}
		return
	case json.RawMessage:
		v.SetBytes([]byte("{}"))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if full || !strings.Contains(v.Type().Field(i).Tag.Get("json"), ",omit") {
				fill(v.Field(i), full)
			}
		}
	case reflect.Pointer:
		if full {
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), full)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 0, 1))
		if full {
			v.Set(reflect.Append(v, reflect.New(v.Type().Elem()).Elem()))
			fill(v.Index(0), full)
		}
	case reflect.Map: // of names that are no fields
		v.Set(reflect.MakeMap(v.Type()))
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), full)
		}
	case reflect.String:
		if full {
			v.SetString("text")
		}
	case reflect.Bool:
		v.SetBool(full)
	default:
		if full {
			v.Set(reflect.ValueOf(1).Convert(v.Type()))
		}
	}
}

// filled is the body of a record with all that it may have, or with the least.
func filled(t *testing.T, record string, full bool) []byte {
	t.Helper()
	v := reflect.New(reflect.TypeOf(records[record]).Elem())
	fill(v.Elem(), full)
	v.Elem().FieldByName("Record").SetString(record)
	raw, err := json.Marshal(v.Interface())
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// names are those of all fields of a value, at any depth; of a schema, those that it
// describes.
func names(v any, ofSchema bool, to map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for key, of := range v {
			if !ofSchema {
				to[key] = true
			} else if properties, ok := of.(map[string]any); ok && key == "properties" {
				for name := range properties {
					to[name] = true
				}
			}
			names(of, ofSchema, to)
		}
	case []any:
		for _, of := range v {
			names(of, ofSchema, to)
		}
	}
}

// fields counts those of a value, at any depth.
func fields(v any) (n int) {
	if object, ok := v.(map[string]any); ok {
		for _, of := range object {
			n += 1 + fields(of)
		}
	}
	return n
}

// TestRecords compares the schemas of records with the types that the bridge writes: a
// record with all fields and one with as few as may be are good, each wrong value in a
// field is noticed, and no field is described that is never written.
func TestRecords(t *testing.T) {
	n := 0
	for _, s := range schema.All() {
		if !s.Record {
			continue
		}
		n++
		if records[s.Name] == nil {
			t.Errorf("there is no record %s", s.Name)
			continue
		}
		check := compile(t, s.Text)
		for _, full := range []bool{true, false} {
			raw := filled(t, s.Name, full)
			v := value(t, raw)
			if err := check.Validate(v); err != nil {
				t.Errorf("%v: %s", err, raw)
			}
			b := &breaker{t: t, check: func() bool { return check.Validate(v) == nil }, places: map[string]bool{}}
			b.all(v, s.Name, nil)
			if has := fields(v); !full && b.missing != has {
				t.Errorf("%s: %d fields are missed, and the least has %d: %s", s.Name, b.missing, has, raw)
			}
		}
		described, written := map[string]bool{}, map[string]bool{}
		names(value(t, s.Text), true, described)
		names(value(t, filled(t, s.Name, true)), false, written)
		if !maps.Equal(described, written) {
			t.Errorf("%s: described are %v, written are %v", s.Name, slices.Sorted(maps.Keys(described)),
				slices.Sorted(maps.Keys(written)))
		}
	}
	if n != len(records) {
		t.Errorf("%d records have a schema, and %d are written", n, len(records))
	}
}
