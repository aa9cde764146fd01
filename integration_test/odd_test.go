package integration_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"zulip-nats/events"
	"zulip-nats/zulipsim"
)

// oddEvents are events as no Zulip should send them; %ID% is where the queue's id goes.
// carried is the type of those that are odd and can be carried all the same, byte for
// byte; the others have to be rejected.
var oddEvents = []struct{ name, raw, carried string }{
	{"no id", `{"type":"realm","op":"update","odd":1}`, ""},
	{"no id, twice the same", `{"type":"realm","op":"update","odd":1}`, ""},
	{"id is null", `{"type":"realm","id":null}`, ""},
	{"id is text", `{"type":"realm","id":"%ID%"}`, ""},
	{"id is a fraction", `{"type":"realm","id":%ID%.5}`, ""},
	{"id beyond 2^63", `{"type":"realm","id":99999999999999999999}`, ""},
	{"id below -1", `{"type":"realm","id":-7}`, ""},
	{"no type", `{"id":%ID%,"op":"update"}`, ""},
	{"type is a number", `{"id":%ID%,"type":17}`, ""},
	{"type is null", `{"id":%ID%,"type":null}`, ""},
	{"type is empty", `{"id":%ID%,"type":""}`, ""},
	{"type with a dot", `{"id":%ID%,"type":"bridge.gap"}`, ""},
	{"type with a wildcard", `{"id":%ID%,"type":">"}`, ""},
	{"type with a blank", `{"id":%ID%,"type":"a b"}`, ""},
	{"type with a line end", `{"id":%ID%,"type":"a\r\nNats-Rollup: all"}`, ""},
	{"type that is ours", `{"id":%ID%,"type":"bridge"}`, ""},
	{"type in another script", `{"id":%ID%,"type":"mеssage"}`, ""},
	{"type of 300 characters", `{"id":%ID%,"type":"` + strings.Repeat("t", 300) + `"}`, ""},
	{"a comma too much", `{"type":"realm","id":%ID%,}`, ""},
	{"a colon too few", `{"type" "realm","id":%ID%}`, ""},
	{"single quotes", `{'type':'realm','id':%ID%}`, ""},
	{"NaN", `{"type":"realm","value":NaN,"id":%ID%}`, ""},
	{"a number with a leading zero", `{"type":"realm","value":007,"id":%ID%}`, ""},
	{"no object but a list", `[1,{"type":"realm","id":%ID%}]`, ""},
	{"no object but null", `null`, ""},
	{"no object but text", `"event %ID%"`, ""},
	{"an empty object", `{}`, ""},
	{"op is a number", `{"type":"realm","op":5,"id":%ID%}`, "realm"},
	{"op of 5000 characters", `{"type":"realm","op":"` + strings.Repeat("ö", 5000) + `","id":%ID%}`, "realm"},
	{"message without a message", `{"type":"message","id":%ID%}`, "message"},
	{"message that is a list", `{"type":"message","message":[{"id":5}],"flags":3,"id":%ID%}`, "message"},
	{"numbers beyond 2^53", `{"type":"realm","value":9007199254740993.00000000000000000001e400,"id":%ID%}`, "realm"},
	{"NUL in text", `{"type":"realm","value":"a\u0000b","id":%ID%}`, "realm"},
	{"half a surrogate pair", `{"type":"realm","value":"\ud83d","id":%ID%}`, "realm"},
	{"the largest id in the text of another member",
		`{"type":"realm","value":"\"id\":99","x":{"id":98,"type":"no"},"id":%ID%}`, "realm"},
	{"depth 10,000", `{"type":"realm","deep":` + strings.Repeat("[", 10_000) + strings.Repeat("]",
		10_000) + `,"id":%ID%}`, "realm"},
	{"depth 10,000, objects", `{"type":"realm","deep":` + strings.Repeat(`{"a":`, 10_000) + "1" +
		strings.Repeat("}", 10_000) + `,"id":%ID%}`, "realm"},
}

// either are events that may be carried as they are, or be rejected: whoever reads them
// must cope, and their neighbours must not notice.
var either = []struct{ name, raw string }{
	{"invalid UTF-8", "{\"type\":\"realm\",\"value\":\"\xff\xfe\xc0\",\"id\":%ID%}"},
	{"a raw control character in text", "{\"type\":\"realm\",\"value\":\"a\x01b\",\"id\":%ID%}"},
	{"a raw NUL", "{\"type\":\"realm\",\"value\":\"a\x00b\",\"id\":%ID%}"},
	{"the same key twice", `{"type":"realm","type":"stream","id":%ID%}`},
	{"an id twice", `{"id":%ID%,"type":"realm","id":%ID%}`},
	{"a key in other letters", `{"type":"realm","ID":3,"Type":"no","id":%ID%}`},
	{"an escaped key", `{"ty\u0070e":"realm","\u0069d":%ID%}`},
	{"an exponent in the id", `{"type":"realm","id":%ID%e0}`},
	{"a byte order mark", "\xef\xbb\xbf{\"type\":\"realm\",\"id\":%ID%}"},
	{"an open bracket", `{"type":"realm","value":[1,2,"id":%ID%}`},
	{"an open quote", `{"type":"realm","value":"open,"id":%ID%}`},
	{"a bracket too much", `{"type":"realm","value":1]},"id":%ID%}`},
}

// TestOddEvents sends each odd event with good ones before and behind it. The good ones
// are stored, in order; the odd one is carried byte for byte, or is in a bridge.rejected
// record with its bytes and the reason; and the program lives.
func TestOddEvents(t *testing.T) {
	t.Parallel()
	w := newWorld(t, natsServer(t), unlimited)
	p := w.run("--no-lease")
	w.registered()
	type odd struct {
		name, raw, carried string
		either             bool
	}
	var sent []odd
	good := func(text string) int64 {
		return w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: text})
	}
	var messages []int64
	send := func(o odd) {
		messages = append(messages, good("before "+o.name))
		w.zulip.EmitRaw(o.raw)
		sent = append(sent, o)
		messages = append(messages, good("behind "+o.name))
	}
	for _, o := range oddEvents {
		send(odd{name: o.name, raw: o.raw, carried: o.carried})
	}
	w.settle()
	for _, o := range either { // each alone: some of them hide what comes behind them in the same answer
		send(odd{name: o.name, raw: o.raw, either: true})
		w.settle()
	}
	// All of them once more, in one answer. Those without a usable id are the same as
	// before, at another place of the queue.
	w.zulip.Down()
	for _, o := range oddEvents {
		send(odd{name: o.name + ", again", raw: o.raw, carried: o.carried})
	}
	back := w.queues()[0].NextID // the id of the restart event, with which the answer begins
	send(odd{name: "an id that goes back within the answer",
		raw: fmt.Sprintf(`{"type":"realm","odd":2,"id":%d}`, back)})
	w.zulip.Up()
	w.settle()
	if !p.Alive() {
		t.Fatal("the program ended")
	}

	n := 0
	for _, e := range w.queues()[0].Events { // the bytes as they were, with the ids that the queue gave
		if e.Type == "raw" {
			sent[n].raw = string(e.Raw)
			n++
		}
	}

	all := w.read()
	at := map[int64]uint64{}
	carried := map[string]string{} // bytes to subject
	rejected := map[string]string{}
	for i := range all {
		m := &all[i]
		if id, ok := m.Int(events.HeaderMessageID); ok && m.Subject == "zulip.acme.message" {
			if at[id] != 0 {
				t.Errorf("message %d is stored twice", id)
			}
			at[id] = m.Seq
		}
		switch m.Record() {
		case "":
			carried[string(m.Data)] = m.Subject
		case "rejected":
			if m.Subject != "zulip.acme.bridge.rejected" {
				t.Errorf("a rejected event is on %s", m.Subject)
			}
			var body struct {
				Reason, SHA256 string
				Size           int
				Event          string
				Base64         string `json:"event_base64"`
			}
			if err := json.Unmarshal(m.Data, &body); err != nil {
				t.Errorf("%v: %v", m, err)
				continue
			}
			raw := body.Event
			if body.Base64 != "" {
				plain, err := base64.StdEncoding.DecodeString(body.Base64)
				if err != nil {
					t.Errorf("%v: %v", m, err)
				}
				raw = string(plain)
			}
			if body.Reason == "" || body.Size != len(raw) || body.SHA256 != hexSum(raw) {
				t.Errorf("the record of a rejected event should have its reason, its size (%d) and its digest: %.500v",
					len(raw), m)
			}
			rejected[raw] = body.Reason
		}
	}
	last := uint64(0)
	for _, id := range messages {
		if at[id] <= last {
			t.Errorf("message %d, a neighbour, is at #%d, behind #%d", id, at[id], last)
		}
		last = at[id]
	}
	var report strings.Builder
	for _, o := range sent {
		subject, isCarried := carried[o.raw]
		reason, isRejected := rejected[o.raw]
		if !isCarried && !isRejected && o.either {
			// Where the brackets do not fit, what is rejected may be more or less than
			// the one event.
			for raw, why := range rejected {
				if strings.Contains(raw, o.raw) || strings.Contains(o.raw, raw) && strings.Contains(raw, "realm") {
					reason, isRejected = why, true
				}
			}
		}
		switch {
		case !utf8.ValidString(o.raw) && isRejected:
		case o.either && (isCarried || isRejected):
		case o.carried != "" && subject == "zulip.acme."+o.carried:
		case o.carried == "" && isRejected && !isCarried:
		default:
			t.Errorf("%s: carried on %q, rejected with %q: %.200q", o.name, subject, reason, o.raw)
		}
		if !strings.HasSuffix(o.name, "again") {
			fmt.Fprintf(&report, "%-45s %s%s\n", o.name, subject, reason)
		}
	}
	t.Logf("%d events, %d of them odd:\n%s", len(messages)+len(sent), len(sent), report.String())
}

func hexSum(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}
