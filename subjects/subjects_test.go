package subjects

import (
	"math"
	"strings"
	"testing"
)

func TestParseRealm(t *testing.T) {
	for _, good := range []string{"chat", "a", "Chat-1_x", "0", "-", strings.Repeat("r", 64)} {
		r, err := ParseRealm(good)
		if err != nil || r.String() != good {
			t.Errorf("ParseRealm(%q) = %q, %v", good, r, err)
		}
	}
	for bad, says := range map[string]string{
		"":                      "is empty",
		"a.b >":                 `"a.b >"`,
		"*":                     "use only",
		"chat\n":                `"chat\n"`,
		"zürich":                `"z\u00fcrich"`,
		strings.Repeat("r", 65): "65 bytes long",
	} {
		r, err := ParseRealm(bad)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("ParseRealm(%q): error %v does not say %q", bad, err, says)
		}
		if r != (Realm{}) {
			t.Errorf("ParseRealm(%q) refused and still gave a realm: %q", bad, r)
		}
	}
}

func TestRealmFromSite(t *testing.T) {
	for site, want := range map[string]string{
		"https://acme.zulipchat.com":       "acme",
		"https://chat.example.org/":        "chat",
		"https://Chat.Example.org":         "chat",
		"chat.example.org":                 "chat",
		"chat.example.org:8443":            "chat",
		"https://chat.example.org/api/":    "chat",
		"  https://chat.example.org\t":     "chat",
		"https://example.org":              "example",
		"https://www.example.org":          "example",
		"https://www.chat.example.org":     "chat",
		"https://www":                      "www",
		"https://www.":                     "www",
		"https://chat.example.org.":        "chat",
		"https://xn--zlip-0ra.example.org": "xn--zlip-0ra",
		"localhost:9991":                   "localhost",
		"http://localhost":                 "localhost",
		"http://127.0.0.1:9991":            "127-0-0-1",
		"127.0.0.1:9991":                   "127-0-0-1",
		"http://[::1]:9991":                "0-0-0-0-0-0-0-1",
		"http://[2001:DB8::a:1]":           "2001-db8-0-0-0-0-a-1",
		"http://[fe80::1%25eth0]/":         "fe80-0-0-0-0-0-0-1",
		"http://[::ffff:10.1.2.3]":         "10-1-2-3",
	} {
		r, err := RealmFromSite(site)
		if err != nil || r.String() != want {
			t.Errorf("RealmFromSite(%q) = %q, %v; want %q", site, r, err, want)
		}
	}
	for _, site := range []string{
		"", "   ", "https://", "https:///path", "/only/a/path", "https://.example.org", "https://zülip.example.org",
		"https://a b.example.org",
		"https://" + strings.Repeat("x", 65) + ".example.org", "https://[::1", "http://chat.example.org:port",
		"https://%2e.example.org",
	} {
		r, err := RealmFromSite(site)
		if err == nil {
			t.Errorf("RealmFromSite(%q) = %q, no error", site, r)
		} else if !strings.Contains(err.Error(), "--realm") {
			t.Errorf("RealmFromSite(%q): the error does not say what to do: %v", site, err)
		}
	}
}

// A site can hold a password by mistake, and the errors of net/url repeat the address.
func TestRealmFromSiteHidesPassword(t *testing.T) {
	for _, site := range []string{"https://bot:hunter2@ä.example.org", "https://bot:hunter2@chat:port",
		"https://bot:hunter2@"} {
		_, err := RealmFromSite(site)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("RealmFromSite(%q): %v", site, err)
		}
	}
}

func TestSubjects(t *testing.T) {
	r, err := ParseRealm("chat")
	if err != nil {
		t.Fatal(err)
	}
	for what, got := range map[string][2]string{
		"String":     {r.String(), "chat"},
		"All":        {r.All(), "zulip.chat.>"},
		"queue":      {r.Record(Queue), "zulip.chat.bridge.queue"},
		"gap":        {r.Record(Gap), "zulip.chat.bridge.gap"},
		"rejected":   {r.Record(Rejected), "zulip.chat.bridge.rejected"},
		"skipped":    {r.Record(Skipped), "zulip.chat.bridge.skipped"},
		"erased":     {r.Record(Erased), "zulip.chat.bridge.erased"},
		"bad record": {r.Record("gap.>"), ""},
		"no record":  {r.Record(""), ""},
		"begin":      {r.Record(StateBegin), "zulip.chat.bridge.state-begin"},
		"end":        {r.Record(StateEnd), "zulip.chat.bridge.state-end"},
		"state":      {r.State("profile-fields"), "zulip.chat.bridge.state.profile-fields"},
		"bad state":  {r.State("users.>") + r.State(""), ""},
		"states":     {r.States(), "zulip.chat.bridge.state.*"},
	} {
		if got[0] != got[1] {
			t.Errorf("%s = %q, want %q", what, got[0], got[1])
		}
	}
	for typ, want := range map[string]string{
		"message":                      "zulip.chat.message",
		"heartbeat":                    "zulip.chat.heartbeat",
		"realm_user_settings_defaults": "zulip.chat.realm_user_settings_defaults",
		"Never-Seen_2":                 "zulip.chat.Never-Seen_2",
		"Bridge":                       "zulip.chat.Bridge", // NATS tells the cases apart
		strings.Repeat("t", 128):       "zulip.chat." + strings.Repeat("t", 128),
	} {
		if got, err := r.Event(typ, 7); err != nil || got != want {
			t.Errorf("Event(%q) = %q, %v; want %q", typ, got, err, want)
		}
	}
	for typ, says := range map[string]string{
		"":                       "is empty",
		"bridge":                 "reserved",
		"bridge.gap":             `"bridge.gap"`,
		"mess age":               "not one subject token",
		"*":                      "not one subject token",
		">":                      "not one subject token",
		"a\r\nb":                 `"a\r\nb"`,
		"a\x00":                  `"a\x00"`,
		"\xff":                   `"\xff"`,
		"réaction":               `"r\u00e9action"`,
		strings.Repeat("t", 129): "129 bytes long",
		strings.Repeat(".", 300): `"........................................"...`,
	} {
		got, err := r.Event(typ, 7)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("Event(%q): error %v does not say %q", typ, err, says)
		}
		if got != "" {
			t.Errorf("Event(%q) refused and still gave %q", typ, got)
		}
	}
}

func TestByPlace(t *testing.T) {
	r, err := ParseRealm("chat")
	if err != nil {
		t.Fatal(err)
	}
	if r.Layout() != ByType || r.By(ByPlace).By(ByType) != r {
		t.Errorf("a realm that nobody chose a layout for is %s", r.Layout())
	}
	if got := strings.Join(r.Events(), " ") + " " + r.Type("message"); got != "zulip.chat.* zulip.chat.message" {
		t.Errorf("by type the filters are %q", got)
	}
	r = r.By(ByPlace)
	if got := strings.Join(r.Events(), " ") + " " + r.Type("message") + r.Type("bridge"); got != "zulip.chat.*.channel.* "+
		"zulip.chat.*.direct zulip.chat.*.none zulip.chat.message.>" {
		t.Errorf("by place the filters are %q", got)
	}
	if r.String() != "chat" || r.All() != "zulip.chat.>" || r.Record(Gap) != "zulip.chat.bridge.gap" {
		t.Errorf("by place the realm is %s, %s, %s", r, r.All(), r.Record(Gap))
	}
	for at, want := range map[Place]string{
		Direct: "zulip.chat.message.direct", Nowhere: "zulip.chat.message.none", 1: "zulip.chat.message.channel.1",
		math.MaxInt64: "zulip.chat.message.channel.9223372036854775807", -2: "zulip.chat.message.none",
	} {
		if got, err := r.Event("message", at); err != nil || got != want {
			t.Errorf("at %d: %q, %v; want %q", int64(at), got, err, want)
		}
		if got, err := r.Event("bridge", at); err == nil {
			t.Errorf("an event of type bridge goes on %q", got)
		}
	}
	for _, l := range []Layout{ByType, ByPlace} {
		for _, at := range []Place{Direct, Nowhere, 7} {
			if subject, err := r.By(l).Event("message", at); err != nil || LayoutOf(subject) != l ||
				PlaceOf(subject) != map[Layout]Place{ByPlace: at}[l] {
				t.Errorf("%s is taken for one %s, %v", subject, LayoutOf(subject), err)
			}
		}
		if again, err := ParseLayout(l.String()); err != nil || again != l {
			t.Errorf("%s is read as %s, %v", l, again, err)
		}
	}
	if _, err := ParseLayout("by-topic"); err == nil || !strings.Contains(err.Error(), `"by-topic"`) {
		t.Errorf("by-topic: %v", err)
	}
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		filter, subject string
		want            bool
	}{
		{"zulip.chat.message", "zulip.chat.message", true},
		{"zulip.chat.message", "zulip.chat.message.direct", false},
		{"zulip.chat.message.>", "zulip.chat.message.direct", true},
		{"zulip.chat.message.>", "zulip.chat.message.channel.7", true},
		{"zulip.chat.message.>", "zulip.chat.message", false},
		{"zulip.chat.message.>", "zulip.chat.message.", false},
		{"zulip.chat.message.>", "zulip.chat.messages.direct", false},
	} {
		if got := Covers(c.filter, c.subject); got != c.want {
			t.Errorf("%s covers %s: %v", c.filter, c.subject, got)
		}
	}
}

func TestZeroRealmGivesNothing(t *testing.T) {
	var r Realm
	if s := r.String() + r.All() + r.Type("message") + strings.Join(r.Events(), "") + r.Record(Queue) + r.State("users") + r.States(); s != "" {
		t.Errorf("the zero realm gives %q", s)
	}
	if s, err := r.Event("message", Direct); err == nil || s != "" {
		t.Errorf("the zero realm gives an event the subject %q", s)
	}
}

func BenchmarkEvent(b *testing.B) {
	r, err := ParseRealm("chat")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Event("update_message_flags", Nowhere); err != nil {
			b.Fatal(err)
		}
	}
}
