package poller

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
)

// scanAll gives b to a fresh scanner in pieces of step bytes. ok: b is one whole value.
func scanAll(b []byte, step int) (s *scanner, n int, ok bool) {
	s = &scanner{words: new(interned)}
	for n < len(b) && s.state != scanDone {
		piece := b[n:min(n+step, len(b))]
		m, err := s.scan(piece)
		n += m
		if err != nil {
			return s, n, false
		}
		if m < len(piece) && s.state != scanDone {
			panic("the scanner neither took a byte nor refused it")
		}
	}
	if s.state != scanDone && !s.endNumber() {
		return s, n, false
	}
	return s, n, len(bytes.TrimLeft(b[n:], " \t\r\n")) == 0
}

func TestScannerGrammar(t *testing.T) {
	good := []string{
		`{}`, `[]`, `{"a":1}`, `[1,2]`, `""`, `"\""`, `"\\"`, `"\/\b\f\n\r\t"`, `"\u00e9\uD83D\uDE00"`, `true`, `false`,
		`null`, ` [ ] `, "\t{\r\n}",
		`0`, `-0`, `10`, `-1.5e+10`, `0.1`, `1e5`, `1E-5`, `123456789012345678901234567890`,
		`[0,-0,1.0,{"a":[{}]}]`, `{"":""}`,
		"\"\xff\xfe\"", "\"\x00\x01\n\"", `{"a":{"b":{"c":[[],[[]]]}}}`, `[ 1 , 2 ]`, `{ "a" : 1 , "b" : 2 }`,
		`["]","}","{","[","\"]"]`,
		strings.Repeat("[", 10001) + strings.Repeat("]", 10001),
		strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000),
	}
	bad := []string{
		``, ` `, `{`, `}`, `[`, `]`, `[1`, `{"a"`, `{"a":`, `{"a":1`, `{"a" 1}`, `{a:1}`, `{'a':1}`, `{"a":1,}`, `[1,]`,
		`[,1]`, `[1 2]`, `{"a":1 "b":2}`,
		`{,}`, `{"a":1,,"b":2}`, `"`, `"\"`, `"\x"`, `"\u12"`, `"\u12g4"`, `tru`, `truE`, `nul`, `nullx`, `True`,
		`nope`, `NaN`, `Infinity`, `-`, `-a`,
		`01`, `-01`, `1.`, `1.e5`, `.5`, `1e`, `1e+`, `+1`, `0x10`, `1_000`, `[1}`, `{"a":1]`, `{]`, `[}`, `[1]]`,
		`{}{}`, `{"a":1}x`, `1 2`,
		strings.Repeat("[", 10001) + strings.Repeat("]", 10000),
	}
	for _, step := range []int{1, 2, 3, 7, 8, 9, 64, 1 << 20} {
		for _, text := range good {
			if _, n, ok := scanAll([]byte(text), step); !ok {
				t.Errorf("in steps of %d, %.60q was refused at byte %d", step, text, n)
			}
		}
		for _, text := range bad {
			if _, n, ok := scanAll([]byte(text), step); ok {
				t.Errorf("in steps of %d, %.60q was taken (%d bytes)", step, text, n)
			}
		}
	}
}

func TestScannerMembers(t *testing.T) {
	long := strings.Repeat("x", maxWord)
	tests := []struct {
		text    string
		id      idState
		n       int64
		typ, op string
		hasType bool
		msgID   int64
	}{
		{`{"type":"message","id":5}`, idGood, 5, "message", "", true, 0},
		{`{"id":0,"op":"add","type":"reaction"}`, idGood, 0, "reaction", "add", true, 0},
		{`{"id":1,"id":2,"type":"a","type":"b","op":"c","op":"d"}`, idGood, 2, "b", "d", true, 0},
		{`{"id":1,"id":"x","type":"a","type":7,"op":"c","op":null}`, idBad, 1, "", "", false, 0},
		{`{"id":"x","id":1,"type":7,"type":"a"}`, idGood, 1, "a", "", true, 0},
		{`{"\u0074ype":"a","i\u0064":3,"\u006f\u0070":"b"}`, idGood, 3, "a", "b", true, 0},
		{`{"type":"\u0061\n\ud83d\ude00\ud800","id":1}`, idGood, 1, "a\n😀\uFFFD", "", true, 0},
		{`{"type":"","id":1}`, idGood, 1, "", "", true, 0},
		{`{"nested":{"type":"n","id":9,"op":"n"},"list":[{"id":8}],"id":1}`, idGood, 1, "", "", false, 0},
		{`{"id":9223372036854775807}`, idGood, 9223372036854775807, "", "", false, 0},
		{`{"id":9223372036854775808}`, idBad, 0, "", "", false, 0},
		{`{"id":1.0}`, idBad, 0, "", "", false, 0},
		{`{"id":1e2}`, idBad, 0, "", "", false, 0},
		{`{"id":-1}`, idBad, 0, "", "", false, 0},
		{`{"id":null}`, idBad, 0, "", "", false, 0},
		{`{"id":[1]}`, idBad, 0, "", "", false, 0},
		{`{"id":{"id":1}}`, idBad, 0, "", "", false, 0},
		{`{"ID":1,"Type":"x"}`, idMissing, 0, "", "", false, 0},
		{`{"message":{"id":7,"type":"stream","sender":{"id":8}},"type":"message","id":1}`, idGood, 1, "message",
			"", true, 7},
		{`{"message":{"\u0069d":7},"type":"message","id":1}`, idGood, 1, "message", "", true, 7},
		{`{"message":{"id":7},"message":{"id":6},"id":1}`, idGood, 1, "", "", false, 6},
		{`{"message":{"id":7},"message":{},"id":1}`, idGood, 1, "", "", false, 0},
		{`{"message":{"id":7},"message":null,"id":1}`, idGood, 1, "", "", false, 0},
		{`{"message":{"x":{"id":7}},"id":1}`, idGood, 1, "", "", false, 0},
		{`{"message":{"a":[1],"b":{"id":3},"id":7},"id":1}`, idGood, 1, "", "", false, 7},
		{`{"message":[{"id":7}],"id":1}`, idGood, 1, "", "", false, 0},
		{`{"message":{"id":9007199254740993},"id":1}`, idGood, 1, "", "", false, 9007199254740993},
		{`{"message":{"id":1.5},"id":1}`, idGood, 1, "", "", false, 0},
		{`{"type":"` + long + `","id":1}`, idGood, 1, long, "", true, 0},
		{`{"type":"` + long + `x","id":1}`, idGood, 1, "", "", false, 0},
		{`{"` + long + `x":{"id":3},"id":1}`, idGood, 1, "", "", false, 0},
		{`{"messag":{"id":3},"messages":{"id":4},"id":1}`, idGood, 1, "", "", false, 0},
	}
	for _, test := range tests {
		for _, step := range []int{1, 2, 5, 1 << 20} {
			s, _, ok := scanAll([]byte(test.text), step)
			if !ok {
				t.Errorf("%.80s: refused", test.text)
				continue
			}
			if !s.isObject || s.idState != test.id || s.id != test.n && test.id == idGood || s.typ != test.typ ||
				s.op != test.op ||
				s.hasType != test.hasType || s.msgID != test.msgID {
				t.Errorf("in steps of %d, %.80s: object %v, id %d %d, type %.20q %v, op %q, message %d", step,
					test.text, s.isObject, s.idState, s.id,
					s.typ, s.hasType, s.op, s.msgID)
			}
		}
	}
	for _, text := range []string{`[{"id":1,"type":"a"}]`, `"id"`, `null`, `[]`} {
		if s, _, ok := scanAll([]byte(text), 100); !ok || s.isObject || s.idState != idMissing || s.hasType {
			t.Errorf("%s: %+v", text, s)
		}
	}
}

// oracle is what encoding/json makes of an event.
func oracle(t *testing.T, b []byte) (id int64, hasID bool, typ string, hasType bool, op string, msgID int64,
	object bool) {
	var m map[string]json.RawMessage
	if json.Unmarshal(b, &m) != nil || m == nil {
		return
	}
	object = true
	whole := func(raw json.RawMessage) (int64, bool) {
		v, err := strconv.ParseInt(string(raw), 10, 64)
		return v, err == nil && v >= 0 && raw[0] != '-'
	}
	text := func(raw json.RawMessage) (s string, ok bool) {
		ok = len(raw) > 0 && raw[0] == '"'
		if ok {
			if err := json.Unmarshal(raw, &s); err != nil {
				t.Fatal(err)
			}
		}
		return s, ok
	}
	id, hasID = whole(m["id"])
	typ, hasType = text(m["type"])
	op, _ = text(m["op"])
	var message map[string]json.RawMessage
	if json.Unmarshal(m["message"], &message) == nil {
		if v, ok := whole(message["id"]); ok {
			msgID = v
		}
	}
	return
}

// TestScannerPlaces: where an event is, as far as it says so itself, in whatever pieces it
// comes and wherever the members stand.
func TestScannerPlaces(t *testing.T) {
	const unsaid, channel, direct = RecipientUnsaid, RecipientChannel, RecipientDirect
	for _, test := range []struct {
		text string
		kind Recipient
		id   int64
	}{
		{`{"type":"message","message":{"id":1,"type":"stream","stream_id":5},"id":1}`, channel, 5},
		{`{"type":"message","message":{"type":"channel","stream_id":5,"id":1},"id":1}`, channel, 5},
		{`{"message":{"topic_links":[],"reactions":[{"id":3}],"stream_id":5,"type":"stream"},"type":"message","id":1}`, channel, 5},
		{`{"type":"message","message":{"display_recipient":[{"id":7,"type":"stream","stream_id":9}],"type":"private"}}`, direct, 0},
		{`{"type":"message","message":{"type":"direct"},"stream_id":5,"message_type":"stream"}`, direct, 0},
		{`{"type":"message","message":{"type":"private","stream_id":5}}`, direct, 0}, // never both
		{`{"type":"message","message":{"typ\u0065":"pri\u0076ate"}}`, direct, 0},
		{`{"type":"message","message":{"type":"stream"}}`, channel, 0},
		{`{"type":"message","message":{"stream_id":5}}`, channel, 5},
		{`{"type":"message","message":{"type":"private"},"message":{"id":1}}`, unsaid, 0}, // the last counts
		{`{"type":"message","message":{"type":"huddle"}}`, unsaid, 0},
		{`{"type":"message","message":null}`, unsaid, 0},
		{`{"type":"message","message":{"type":null,"stream_id":null}}`, unsaid, 0},
		{`{"type":"message","message":{"m":{"type":"private"}}}`, unsaid, 0},
		{`{"type":"message"}`, unsaid, 0},
		{`{"type":"update_message","message_ids":[4,5],"stream_id":8,"new_stream_id":9}`, channel, 8},
		{`{"type":"update_message","message_ids":[4,5],"stream_id":8,"stream_id":"x"}`, unsaid, 0},
		{`{"type":"update_message","message_ids":[4,5]}`, unsaid, 0},
		{`{"type":"update_message","stream_id":-3}`, unsaid, 0},
		{`{"type":"update_message","stream_id":0}`, unsaid, 0},
		{`{"type":"delete_message","message_type":"private","message_ids":[4]}`, direct, 0},
		{`{"type":"delete_message","message_ids":[4],"stream_id":8,"topic":"t","message_type":"stream"}`, channel, 8},
		{`{"type":"typing","op":"start","message_type":"direct","recipients":[{"user_id":1}]}`, direct, 0},
		{`{"type":"typing","op":"start","stream_id":8,"message_type":"channel"}`, channel, 8},
		{`{"type":"typing_edit_message","recipient":{"user_ids":[8,10],"type":"direct"},"message_id":7}`, direct, 0},
		{`{"type":"typing_edit_message","recipient":{"type":"channel","channel_id":4,"topic":"t"}}`, channel, 4},
		{`{"type":"user_topic","stream_id":3,"topic_name":"t"}`, channel, 3},
		{`{"type":"stream","op":"update","stream_id":3}`, channel, 3},
		{`{"type":"reaction","message_id":3,"user":{"type":"private","stream_id":3}}`, unsaid, 0},
		{`{"type":"x","recipient":["private"],"a":{"recipient":{"type":"private"}}}`, unsaid, 0},
	} {
		for _, step := range []int{1, 2, 5, 1 << 20} {
			s, _, ok := scanAll([]byte(test.text), step)
			if !ok {
				t.Errorf("%s: refused", test.text)
				continue
			}
			if kind, id := s.place(s.typ); kind != test.kind || id != test.id {
				t.Errorf("in steps of %d, %s: recipient %d, channel %d; want %d and %d", step, test.text, kind, id,
					test.kind, test.id)
			}
		}
	}
}

// placeOracle is what encoding/json makes of a place.
func placeOracle(t *testing.T, b []byte, typ string) (kind Recipient, channel int64) {
	var m map[string]json.RawMessage
	if json.Unmarshal(b, &m) != nil {
		return
	}
	of := func(m map[string]json.RawMessage, kindKey, channelKey string) (kind Recipient, channel int64) {
		var word string
		var id int64
		_ = json.Unmarshal(m[kindKey], &word)
		if raw := string(m[channelKey]); json.Unmarshal(m[channelKey], &id) != nil || id <= 0 ||
			strings.Trim(raw, "0123456789") != "" {
			id = 0
		}
		switch {
		case word == "private" || word == "direct":
			return RecipientDirect, 0
		case word == "stream" || word == "channel" || id > 0:
			return RecipientChannel, id
		}
		return RecipientUnsaid, 0
	}
	var inner map[string]json.RawMessage
	if typ == "message" {
		if json.Unmarshal(m["message"], &inner) != nil {
			return
		}
		return of(inner, "type", "stream_id")
	}
	if kind, channel = of(m, "message_type", "stream_id"); kind == RecipientUnsaid &&
		json.Unmarshal(m["recipient"], &inner) == nil {
		return of(inner, "type", "channel_id")
	}
	return kind, channel
}

// FuzzScanner compares the scanner with encoding/json: the same values are values, and
// they have the same members, in whatever pieces they come.
func FuzzScanner(f *testing.F) {
	for _, text := range []string{
		`{"type":"message","message":{"id":1,"content":"x \"y\" \\ \u00e9"},"flags":[],"id":5}`,
		`{"\u0074ype":"a\ud83d\ude00","op":"\ud800","id":1,"id":2.5e+7}`,
		` [ 1 , -0.5 , null , true , {"a":{"b":[]}} ] `,
		`{"message":{"id":3},"message":7,"type":null,"op":"x","id":9223372036854775808}`, "\"\x00\xff\"", `{"a":1,}`,
		`{"a":[1}`, `1.`, `"\u12`,
		`{"type":"message","message":{"a":[],"id":1,"type":"private","b":{"type":"x"},"stream_id":4},"id":5}`,
		`{"type":"typing","message_type":"stream","stream_id":4,"recipient":{"type":"direct","channel_id":3},"id":5}`,
	} {
		f.Add([]byte(text), 3)
	}
	f.Fuzz(func(t *testing.T, b []byte, step int) {
		s, n, ok := scanAll(b, 1<<20)
		if pieces, m, ok2 := scanAll(b, 1+step&31); ok2 != ok || ok && m != n || pieces.idState != s.idState && ok ||
			ok && (pieces.id != s.id ||
				pieces.typ != s.typ || pieces.op != s.op || pieces.hasType != s.hasType || pieces.msgID != s.msgID) {
			t.Fatalf("%q: whole %v %d, in pieces %v %d\n%+v\n%+v", b, ok, n, ok2, m, s, pieces)
		}
		valid := json.Valid(b)
		if valid && !ok {
			t.Fatalf("%q is JSON, refused at byte %d", b, n)
		}
		if !valid {
			if ok && !bytes.ContainsFunc(b, func(r rune) bool { return r < ' ' }) && len(b) < 10000 {
				t.Fatalf("%q is no JSON and was taken", b)
			}
			return
		}
		id, hasID, typ, hasType, op, msgID, object := oracle(t, b)
		clean := func(s string) string { return string([]rune(s)) } // as encoding/json does with what is no UTF-8
		if s.isObject != object || (s.idState == idGood) != hasID || hasID && s.id != id || s.hasType != hasType ||
			clean(s.typ) != typ ||
			clean(s.op) != op || s.msgID != msgID {
			t.Fatalf("%q\nobject %v, id %d %v, type %q %v, op %q, message %d; encoding/json: object %v, id %d %v, "+
				"type %q %v, op %q, message %d", b,
				s.isObject, s.id, s.idState == idGood, s.typ, s.hasType, s.op, s.msgID, object, id, hasID, typ,
				hasType, op, msgID)
		}
		kind, channel := s.place(s.typ)
		if wantKind, wantChannel := placeOracle(t, b, s.typ); kind != wantKind || channel != wantChannel {
			t.Fatalf("%q\nrecipient %d, channel %d; encoding/json: %d and %d", b, kind, channel, wantKind, wantChannel)
		}
		for _, at := range []string{"message", "recipient"} { // in whatever pieces
			pieces, _, _ := scanAll(b, 1+step&31)
			if k, c := pieces.place(at); true {
				if k2, c2 := s.place(at); k != k2 || c != c2 {
					t.Fatalf("%q: in pieces another place: %d %d, %d %d", b, k, c, k2, c2)
				}
			}
		}
	})
}
