package tail

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"zulip-nats/events"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"We ship\n\n*today* at \t noon":    "We ship *today* at noon",
		"a\x1b[2Jb\x07\x7f\u009b31mc":      "a[2Jb31mc",
		"\u202eabc\u2066\u200f\ufeff":      "abc",
		"e\u0301\u0301\u0301\u0301\u0301x": "e\u0301\u0301\u0301x",
		"\xff\xfe ok":                      "�� ok",
		"1234567890123":                    "1234567890…",
		"👨\u200d🍳":                         "👨🍳",
	} {
		if got := Clean(in, 10); got != want && len(want) < 20 {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := Clean("We ship\n\n*today* at \t noon", 100); got != "We ship *today* at noon" {
		t.Errorf("%q", got)
	}
}

func TestWidth(t *testing.T) {
	for s, want := range map[string]int{"": 0, "abc": 3, "Björk": 5, "山田 明": 7, "🐢": 2, "e\u0301": 1, "✔": 1, "✅": 2,
		"Зоя": 3, "한국": 4} {
		if got := width(s); got != want {
			t.Errorf("%q: %d, want %d", s, got, want)
		}
	}
	for _, c := range []struct {
		s    string
		n    int
		want string
	}{{"abc", 3, "abc"}, {"abcd", 3, "ab…"}, {"山田明", 4, "山…"}, {"山田明", 5, "山田…"}, {"abc", 0, ""}, {"abc", 1, "…"}} {
		if got := cut(c.s, c.n); got != c.want {
			t.Errorf("%q in %d: %q, want %q", c.s, c.n, got, c.want)
		}
	}
}

// obeyed gives the first character of a line that a terminal could obey, or that hides or
// turns what stands there.
func obeyed(line string) (rune, bool) {
	for i, r := range line {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(line[i:]); n == 1 {
				return r, true // a byte that is no UTF-8: 0x9b begins a command on some terminals
			}
		}
		if r < ' ' || 0x7f <= r && r < 0xa0 || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029' {
			return r, true
		}
	}
	return 0, false
}

// printedBy is what the two ways for people print of one message.
func printedBy(t *testing.T, subject string, h nats.Header, body string, width int) (pretty, lines string) {
	t.Helper()
	e, err := events.Decode(subject, h, []byte(body))
	if err != nil {
		return "", ""
	}
	var p, j bytes.Buffer
	b, bad := e.Body()
	var x index
	x.learn(b)
	if err := (&Pretty{W: &p, Width: width, Zone: time.UTC}).print(t.Context(), &x, e, b, bad); err != nil {
		t.Fatal(err)
	}
	if err := (JSON{W: &j}).print(t.Context(), &x, e, b, bad); err != nil {
		t.Fatal(err)
	}
	return p.String(), j.String()
}

// Each field of each event, hostile: nothing of it reaches the terminal, and the JSON is
// still the same.
func TestHostile(t *testing.T) {
	const evil = "\x1b]0;x\x07\x1b[2J\u009b31m\u202e\u2066\u200b\x00\x7f\r\n\u2028\U000e0001z\xf0\x9f"
	text, err := json.Marshal(evil)
	if err != nil {
		t.Fatal(err)
	}
	// As a server could send it: not escaped, where JSON allows it.
	sent := strings.NewReplacer("\\u009b", "\u009b", "\\u007f", "\x7f", "\\u2028", "\u2028", "\\ufffd", "\xf0\x9f").Replace(string(text))
	v := sent
	for typ, body := range map[string]string{
		"message": fmt.Sprintf(`{"type":"message","message":{"id":1,"type":"stream","display_recipient":%s,"subject":%s,`+
			`"sender_full_name":%s,"content":%s,"content_type":"text/html"}}`, v, v, v, v),
		"message ": fmt.Sprintf(`{"type":"message","message":{"id":1,"type":"private","display_recipient":[{"id":1,"full_name":%s}],`+
			`"sender_full_name":%s,"content":%s}}`, v, v, v),
		"reaction": fmt.Sprintf(`{"op":%s,"user":{"full_name":%s},"message_id":1,"emoji_name":%s,"emoji_code":"1b-9b-202e-d800",`+
			`"reaction_type":"unicode_emoji"}`, v, v, v),
		"reaction ": fmt.Sprintf(`{"op":"add","user":{"full_name":%s},"message_id":1,"emoji_name":%s,"reaction_type":"realm_emoji"}`, v, v),
		"update_message": fmt.Sprintf(`{"user_id":1,"message_id":1,"content":%s,"orig_content":%s,"stream_id":1,"stream_name":%s,`+
			`"orig_subject":%s,"subject":%s,"new_stream_id":2}`, v, v, v, v, v),
		"delete_message": fmt.Sprintf(`{"message_id":1,"stream_id":1,"topic":%s}`, v),
		"stream":         fmt.Sprintf(`{"op":"update","stream_id":1,"name":%s,"property":%s,"value":%s}`, v, v, v),
		"stream ":        fmt.Sprintf(`{"op":"create","streams":[{"stream_id":1,"name":%s}]}`, v),
		"subscription":   fmt.Sprintf(`{"op":"add","subscriptions":[{"stream_id":1,"name":%s}]}`, v),
		"realm_user":     fmt.Sprintf(`{"op":"add","person":{"user_id":1,"full_name":%s}}`, v),
		"realm_user ":    fmt.Sprintf(`{"op":"update","person":{"user_id":1,"full_name":%s,%s:1}}`, v, v),
		"user_group":     fmt.Sprintf(`{"op":"add","group":{"name":%s}}`, v),
		"typing":         fmt.Sprintf(`{"op":"start","sender":{"user_id":1},"stream_id":1,"topic":%s}`, v),
		"presence":       fmt.Sprintf(`{"user_id":1,"presence":{%s:{"status":%s}}}`, v, v),
		"unknown":        fmt.Sprintf(`{"x":%s}`, v), "update_message_flags": fmt.Sprintf(`{"op":"add","flag":%s,"messages":[1]}`, v),
		"user_status": fmt.Sprintf(`{"user_id":1,"status_text":%s}`, v),
		"broken":      evil, "message  ": "{" + evil,
	} {
		typ = strings.TrimSpace(typ)
		h := nats.Header{"Zulip-Queue-Id": {evil}, "Zulip-Event-Id": {"7"}, "Zulip-Event-Type": {typ}, evil: {evil}}
		for _, width := range []int{0, 80} {
			pretty, lines := printedBy(t, "zulip.acme."+typ, h, body, width)
			for _, out := range []string{pretty, lines} {
				out, _ = strings.CutSuffix(out, "\n")
				for line := range strings.SplitSeq(out, "\n") {
					if r, bad := obeyed(line); bad {
						t.Errorf("%s: %U in %q", typ, r, line)
					}
				}
			}
			if strings.Count(pretty, "\n") > 2 || strings.Count(lines, "\n") != 1 {
				t.Errorf("%s: %q, %q: a line of its own", typ, pretty, lines)
			}
			var got struct{ Event any }
			var want any
			if err := json.Unmarshal([]byte(lines), &got); err != nil {
				t.Errorf("%s: %v", typ, err)
			}
			if json.Unmarshal([]byte(body), &want) == nil && fmt.Sprint(got.Event) != fmt.Sprint(want) {
				t.Errorf("%s: JSON is another event\n%q\n%q", typ, got.Event, want)
			}
		}
	}
	for kind, body := range map[string]string{
		"queue":      fmt.Sprintf(`{"why":%s,"queue_id":%s}`, v, v),
		"gap-opened": fmt.Sprintf(`{"cause":%s}`, v),
		"gap-closed": fmt.Sprintf(`{"not_refilled":{"reason":%s}}`, v),
		"rejected":   fmt.Sprintf(`{"reason":%s}`, v),
		"skipped":    `{"message_id":1}`, "erased": `{"message_ids":[1],"sequences":[1]}`, "else": fmt.Sprintf(`{"x":%s}`, v),
	} {
		h := nats.Header{"Bridge-Record": {kind}, "Bridge-Record-Id": {"w-1"}}
		pretty, _ := printedBy(t, "zulip.acme.bridge.x", h, body, 80)
		for line := range strings.SplitSeq(strings.TrimSuffix(pretty, "\n"), "\n") {
			if r, bad := obeyed(line); bad || width(line) > 80 {
				t.Errorf("%s: %U in %q", kind, r, line)
			}
		}
	}
}

// The text of a message comes from anybody, and goes to a terminal.
func FuzzPrint(f *testing.F) {
	f.Add("message", `{"type":"message","message":{"type":"stream","display_recipient":"a\u001b[2J","subject":"\u202e","content":"\u0007\r\n\u009b31m"}}`)
	f.Add("bridge", "\x1b]0;title\x07")
	f.Add("reaction", `{"type":"reaction","emoji_code":"d800-110000-ffffffff-1b","reaction_type":"unicode_emoji"}`)
	f.Add("update_message", `{"user_id":1,"message_id":1,"content":"\u009b"}`)
	f.Add("heartbeat", strings.Repeat("x", 1000)+"\xff\xfe")
	f.Fuzz(func(t *testing.T, typ, body string) {
		h := nats.Header{"Zulip-Queue-Id": {"q"}, "Zulip-Event-Id": {"7"}, "Zulip-Event-Type": {typ}}
		pretty, lines := printedBy(t, "zulip.acme.x", h, body, 80)
		for _, out := range []string{pretty, lines} {
			out, _ = strings.CutSuffix(out, "\n")
			for line := range strings.SplitSeq(out, "\n") {
				if r, bad := obeyed(line); bad {
					t.Fatalf("%U in %q", r, line)
				}
			}
		}
		for line := range strings.SplitSeq(pretty, "\n") {
			if n := width(line); n > 80 {
				t.Fatalf("%d columns: %q", n, line)
			}
		}
	})
}
