package poller

import (
	"errors"
	"strings"
	"testing"
	"time"

	"zulip-nats/zulipsim"
)

func TestRegister(t *testing.T) {
	for _, test := range []struct {
		name  string
		setup func(*zulipsim.Server)
		life  time.Duration
		said  bool
	}{
		{"10.2 takes the old name and says nothing", nil, 24 * time.Hour, false},
		{"12.2 says what it grants", func(s *zulipsim.Server) { s.Version, s.FeatureLevel, s.GrantCap = "12.2", 500, 2*time.Hour }, 2 * time.Hour, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, test.setup, func(t *testing.T, w *world) {
				w.send(3)
				w.sim.DuringRegister = func(string) { w.send(2) } // Zulip counts these as known: its last_event_id is theirs
				w.register()
				r := w.reg
				if r.Life != test.life || r.LifeSaid != test.said || r.Patience != 90*time.Second || r.LastEventID != 1 || r.MaxMessageID != 5 ||
					r.FeatureLevel != w.sim.FeatureLevel || r.Version != w.sim.Version || r.RealmURL != "http://zulip.test" || r.RealmName != "Acme" ||
					len(r.Ignored) != 1 {
					t.Errorf("%+v", r)
				}
				if w.Expires() != r.Sent.Add(test.life) {
					t.Errorf("expires %v", w.Expires())
				}
				if got := w.next(); len(got) != 2 || got[0].Type != "message" || got[0].MessageID != 4 {
					t.Errorf("from -1 came %d events: %+v", len(got), got)
				}
				for _, a := range w.tap.since(0) {
					h := a.req.Header
					if h.Get("Accept-Language") != "en" || h.Get("Accept-Encoding") != "gzip" || h.Get("User-Agent") != "zulip-nats" {
						t.Errorf("headers %v", h)
					}
				}
			})
		})
	}
}

func TestRegisterSendsEveryOption(t *testing.T) {
	o := Options{EventTypes: []string{"message", "reaction"}, Narrow: [][2]string{{"channel", "general"}}, AllPublicStreams: true, ApplyMarkdown: true,
		ClientGravatar: true, SlimPresence: true, Capabilities: map[string]bool{"archived_channels": false}, Life: time.Hour}
	want := map[string]string{
		"event_types": `["message","reaction"]`, "narrow": `[["channel","general"]]`, "all_public_streams": "true", "apply_markdown": "true",
		"client_gravatar": "true", "slim_presence": "true", "fetch_event_types": `["message","realm"]`, "queue_lifespan_secs": "3600",
		"idle_queue_timeout": "3600",
		"client_capabilities": `{"archived_channels":false,"bulk_message_deletion":true,"empty_topic_name":true,"include_deactivated_groups":true,` +
			`"individual_emoji_changes":true,"linkifier_url_template":true,"notification_settings_null":true,"simplified_presence_events":true,` +
			`"stream_typing_notifications":true,"user_avatar_url_field_optional":true,"user_list_incomplete":true,"user_settings_object":true}`,
	}
	form := o.register()
	for name, text := range want {
		if form.Get(name) != text {
			t.Errorf("%s is %s, want %s", name, form.Get(name), text)
		}
	}
	if len(form) != len(want) {
		t.Errorf("%d parameters: %v", len(form), form)
	}
	// What is not asked for is said as well, but for the two whose absence means something.
	form = DefaultOptions().register()
	for name, text := range map[string]string{"all_public_streams": "false", "apply_markdown": "false", "client_gravatar": "true", "slim_presence": "false",
		"queue_lifespan_secs": "86400", "idle_queue_timeout": "86400"} {
		if form.Get(name) != text {
			t.Errorf("by default %s is %q, want %s", name, form.Get(name), text)
		}
	}
	if form.Has("event_types") || form.Has("narrow") {
		t.Errorf("event types or narrow are sent: %v", form)
	}
	messages := o.messages().Encode()
	if messages != "allow_empty_topic_name=true&apply_markdown=true&client_gravatar=true" {
		t.Errorf("history is asked with %s", messages)
	}
}

func TestOptionsJSON(t *testing.T) {
	a := Options{EventTypes: []string{"b", "a", "b"}, Capabilities: map[string]bool{"empty_topic_name": true}}
	b := Options{EventTypes: []string{"a", "b"}, Life: 24 * time.Hour}
	if string(a.JSON()) != string(b.JSON()) {
		t.Errorf("equal options differ:\n%s\n%s", a.JSON(), b.JSON())
	}
	want := `{"event_types":["a","b"],"narrow":[],"all_public_streams":false,"apply_markdown":false,"client_gravatar":false,"slim_presence":false,` +
		`"client_capabilities":{"archived_channels":true,"bulk_message_deletion":true,"empty_topic_name":true,"include_deactivated_groups":true,` +
		`"individual_emoji_changes":true,"linkifier_url_template":true,"notification_settings_null":true,"simplified_presence_events":true,` +
		`"stream_typing_notifications":true,"user_avatar_url_field_optional":true,"user_list_incomplete":true,"user_settings_object":true},` +
		`"idle_queue_timeout":86400}`
	if string(a.JSON()) != want {
		t.Errorf("got  %s\nwant %s", a.JSON(), want)
	}
	all, none := Options{}, Options{EventTypes: []string{}}
	if string(all.JSON()) == string(none.JSON()) || !strings.Contains(string(none.JSON()), `"event_types":[]`) {
		t.Errorf("all types %s, none %s", all.JSON(), none.JSON())
	}
	for _, bad := range []Options{{Life: -time.Second}, {Life: time.Millisecond}, {Life: 8 * 24 * time.Hour}, {Narrow: [][2]string{{"", "x"}}}} {
		if _, ok := errors.AsType[*ConfigError](bad.Validate()); !ok {
			t.Errorf("%+v is taken", bad)
		}
	}
	if err := (Options{Life: 7 * 24 * time.Hour}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestRegistrationJudged(t *testing.T) {
	now := time.Now()
	id, bad, long := "q:1", "a b", strings.Repeat("x", 129)
	for _, q := range []*string{nil, &bad, &long, new(string)} {
		if r, err := DefaultOptions().registration(&registered{QueueID: q}, now); err == nil {
			t.Errorf("queue id of %+v is taken", r)
		}
	}
	r, err := DefaultOptions().registration(&registered{QueueID: &id, Ignored: []string{"queue_lifespan_secs", "idle_queue_timeout"}, Patience: 4, RealmURI: "http://x"}, now)
	if err != nil || r.Life != 10*time.Minute || r.LifeSaid || r.Patience != 4*time.Second || r.MaxMessageID != -1 || r.RealmURL != "http://x" {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestRegisterRefused(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.bot.Guest = true
		w.Options.AllPublicStreams = true
		_, err := w.Register(t.Context())
		if _, ok := errors.AsType[*ConfigError](err); !ok || !strings.Contains(err.Error(), "User not authorized for this query") {
			t.Errorf("a guest who asks for all public channels gets %v", err)
		}
		w.Options = Options{Narrow: [][2]string{{"id", "5"}}}
		_, err = w.Register(t.Context())
		if _, ok := errors.AsType[*ConfigError](err); !ok || !strings.Contains(err.Error(), "Operator id not supported.") {
			t.Errorf("an unknown operator gets %v", err)
		}
		// A refusal that is Tornado's own trouble passes.
		w.Options = DefaultOptions()
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Register, Times: 3, Status: 400,
			Body: `{"result":"error","msg":"Could not allocate event queue","code":"BAD_REQUEST"}`})
		w.register()
	})
}
