package cli

import (
	"strings"
	"testing"
)

func TestLine(t *testing.T) {
	for _, c := range []struct{ subject, record, body, want string }{
		{"zulip.demo.message", "", `{"id":1,"type":"message","message":{"id":7,"display_recipient":"announce","subject":"release","sender_full_name":"Zoë",` +
			`"content":"We ship\n\n*today* at   noon"},"flags":[]}`, "zulip.demo.message          #announce > release  Zoë: We ship *today* at noon"},
		{"zulip.demo.message", "", `{"type":"message","message":{"display_recipient":[{"id":1}],"subject":"","sender_full_name":"Ada","content":"hi"}}`,
			"zulip.demo.message          direct  Ada: hi"},
		{"zulip.demo.reaction", "", `{"type":"reaction","op":"add","message_id":1234,"emoji_code":"1f389","emoji_name":"tada","reaction_type":"unicode_emoji"}`,
			"zulip.demo.reaction         +🎉 on 1234"},
		{"zulip.demo.reaction", "", `{"type":"reaction","op":"remove","message_id":1,"emoji_code":"1f468-200d-1f373","emoji_name":"cook","reaction_type":"unicode_emoji"}`,
			"zulip.demo.reaction         -👨🍳 on 1"},
		{"zulip.demo.reaction", "", `{"type":"reaction","op":"add","message_id":1,"emoji_code":"42","emoji_name":"acme","reaction_type":"realm_emoji"}`,
			"zulip.demo.reaction         +:acme: on 1"},
		{"zulip.demo.update_message", "", `{"type":"update_message","message_id":5,"message_ids":[5],"content":"better"}`, "zulip.demo.update_message   5 edited: better"},
		{"zulip.demo.update_message", "", `{"type":"update_message","message_id":5,"message_ids":[5,6],"orig_subject":"a","subject":"b"}`,
			"zulip.demo.update_message   2 messages moved from a to b"},
		{"zulip.demo.delete_message", "", `{"type":"delete_message","message_ids":[9]}`, "zulip.demo.delete_message   9 deleted"},
		{"zulip.demo.update_message_flags", "", `{"type":"update_message_flags","op":"add","flag":"read","messages":[1,2]}`,
			"zulip.demo.update_message_flags +read on 2 messages"},
		{"zulip.demo.typing", "", `{"type":"typing","op":"start","sender":{"email":"zoe@example.com"},"topic":"release"}`,
			"zulip.demo.typing           in release  start: zoe@example.com"},
		{"zulip.demo.heartbeat", "", `{"type":"heartbeat","id":3}`, "zulip.demo.heartbeat        nothing new, still here"},
		{"zulip.demo.presence", "", `{"type":"presence","user_id":3}`, `zulip.demo.presence         {"type":"presence","user_id":3}`},
		{"zulip.demo.bridge.queue", "queue", `{"queue_id":"q"}`, `zulip.demo.bridge.queue     [queue] {"queue_id":"q"}`},
		{"zulip.demo.message", "", `{"type":"message"`, `zulip.demo.message          {"type":"message"`},
	} {
		if got := line(c.subject, c.record, []byte(c.body)); got != c.want {
			t.Errorf("got  %q\nwant %q", got, c.want)
		}
	}
}

// The text of a message comes from anybody, and goes to a terminal.
func FuzzLine(f *testing.F) {
	f.Add("", `{"type":"message","message":{"display_recipient":"a\u001b[2J","subject":"\u202e","content":"\u0007\r\n\u009b31m"}}`)
	f.Add("gap-opened", "\x1b]0;title\x07")
	f.Add("", `{"type":"reaction","emoji_code":"d800-110000-ffffffff-1b","reaction_type":"unicode_emoji"}`)
	f.Add("", strings.Repeat("x", 1000)+"\xff\xfe")
	f.Fuzz(func(t *testing.T, record, body string) {
		got := line("zulip.demo.message", record, []byte(body))
		for _, r := range got {
			if r < ' ' || 0x7f <= r && r < 0xa0 || 0x200b <= r && r <= 0x200f || 0x202a <= r && r <= 0x202e || r == '\u2028' || r == '\u2029' {
				t.Fatalf("%q has %U", got, r)
			}
		}
		if n := len([]rune(got)); n > 27+1+linePlace+1+2+lineText+1 {
			t.Fatalf("%d characters: %q", n, got)
		}
	})
}
