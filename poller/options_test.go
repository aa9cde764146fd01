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
		{"12.2 says what it grants", func(s *zulipsim.Server) {
			s.Version, s.FeatureLevel, s.GrantCap = "12.2", 500,
				2*time.Hour
		}, 2 * time.Hour, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, test.setup, func(t *testing.T, w *world) {
				w.send(3)
				w.sim.DuringRegister = func(string) { w.send(2) } // Zulip counts these as known: its last_event_id is theirs
				start := time.Now()
				w.register()
				r := w.reg
				if r.Life != test.life || r.LifeSaid != test.said || r.Patience != 90*time.Second ||
					r.FeatureLevel != w.sim.FeatureLevel || r.Version != w.sim.Version {
					t.Errorf("%+v", r)
				}
				if w.Expires() != start.Add(test.life) {
					t.Errorf("expires %v", w.Expires())
				}
				if got := w.next(); len(got) != 2 || got[0].Type != "message" || got[0].MessageID != 4 {
					t.Errorf("from -1 came %d events: %+v", len(got), got)
				}
				for _, a := range w.tap.since(0) {
					h := a.req.Header
					if h.Get("Accept-Language") != "en" || h.Get("Accept-Encoding") != "gzip" ||
						h.Get("User-Agent") != "zulip-nats" {
						t.Errorf("headers %v", h)
					}
				}
			})
		})
	}
}

func TestRegisterSendsEveryOption(t *testing.T) {
	o := Options{EventTypes: []string{"message", "reaction"}, Narrow: [][2]string{{"channel", "general"}},
		AllPublicStreams: true, ApplyMarkdown: true,
		ClientGravatar: true, SlimPresence: true, Life: time.Hour}
	want := map[string]string{
		"event_types": `["message","reaction"]`, "narrow": `[["channel","general"]]`, "all_public_streams": "true",
		"apply_markdown":  "true",
		"client_gravatar": "true", "slim_presence": "true", "fetch_event_types": `["realm"]`,
		"queue_lifespan_secs": "3600",
		"idle_queue_timeout":  "3600",
		"client_capabilities": `{"archived_channels":true,"bulk_message_deletion":true,"empty_topic_name":true,"include_deactivated_groups":true,` +
			`"individual_emoji_changes":true,"linkifier_url_template":true,"notification_settings_null":true,"simplified_presence_events":true,` +
			`"stream_typing_notifications":true,"user_avatar_url_field_optional":true,"user_list_incomplete":true,"user_settings_object":true}`,
	}
	form := o.register(false, nil)
	for name, text := range want {
		if form.Get(name) != text {
			t.Errorf("%s is %s, want %s", name, form.Get(name), text)
		}
	}
	if len(form) != len(want) {
		t.Errorf("%d parameters: %v", len(form), form)
	}
	// What is not asked for is said as well, but for the two whose absence means
	// something.
	form = DefaultOptions().register(false, nil)
	for name, text := range map[string]string{"all_public_streams": "false", "apply_markdown": "false",
		"client_gravatar": "true", "slim_presence": "false",
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
	a := Options{EventTypes: []string{"b", "a", "b"}}
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
	c := Options{EventTypes: []string{"a", "b"}, ExcludeTypes: []string{"d", "c", "d"}, NoDirectMessages: true}
	if want := strings.TrimSuffix(want, "}") + `,"exclude_types":["c","d"],"no_direct_messages":true}`; string(c.JSON()) != want {
		t.Errorf("got  %s\nwant %s", c.JSON(), want)
	}
	all, none := Options{}, Options{EventTypes: []string{}}
	if string(all.JSON()) == string(none.JSON()) || !strings.Contains(string(none.JSON()), `"event_types":[]`) {
		t.Errorf("all types %s, none %s", all.JSON(), none.JSON())
	}
	for _, bad := range []Options{{Life: -time.Second}, {Life: time.Millisecond}, {Life: 8 * 24 * time.Hour},
		{Narrow: [][2]string{{"", "x"}}}} {
		if _, ok := errors.AsType[*ConfigError](bad.Validate()); !ok {
			t.Errorf("%+v is taken", bad)
		}
	}
	if err := (Options{Life: 7 * 24 * time.Hour}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestRegistrationJudged(t *testing.T) {
	id, bad, long := "q:1", "a b", strings.Repeat("x", 129)
	for _, q := range []*string{nil, &bad, &long, new(string)} {
		if r, err := DefaultOptions().registration(&registered{QueueID: q}, nil); err == nil {
			t.Errorf("queue id of %+v is taken", r)
		}
	}
	r, err := DefaultOptions().registration(&registered{QueueID: &id,
		Ignored: []string{"queue_lifespan_secs", "idle_queue_timeout"}, Patience: 4}, nil)
	if err != nil || r.Life != 10*time.Minute || r.LifeSaid || r.Patience != 4*time.Second {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestRegisterRefused: a 400 is the caller's to judge.
func TestRegisterRefused(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.bot.Guest = true
		w.Options.AllPublicStreams = true
		_, err := w.Register(t.Context())
		if _, ok := errors.AsType[*RefusedError](err); !ok ||
			!strings.Contains(err.Error(), "User not authorized for this query") {
			t.Errorf("a guest who asks for all public channels gets %v", err)
		}
		w.Options = Options{Narrow: [][2]string{{"id", "5"}}}
		_, err = w.Register(t.Context())
		if _, ok := errors.AsType[*RefusedError](err); !ok ||
			!strings.Contains(err.Error(), "Operator id not supported.") {
			t.Errorf("an unknown operator gets %v", err)
		}
		// A refusal that is Tornado's own trouble passes.
		w.Options = DefaultOptions()
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Register, Times: 3, Status: 400,
			Body: `{"result":"error","msg":"Could not allocate event queue","code":"BAD_REQUEST"}`})
		w.register()
		// What cannot be sent at all is the operator's to mend.
		w.Options.Life = 8 * 24 * time.Hour
		_, err = w.Register(t.Context())
		if _, ok := errors.AsType[*ConfigError](err); !ok {
			t.Errorf("a life of eight days gives %v", err)
		}
	})
}

func TestRegisterAsksForChannelsOnce(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.sim.Channel("general")
		w.sim.Channel("Ops")
		w.bot.Unsubscribe("Ops")
		if w.Channels() != nil {
			t.Error("the channels are known before anybody asked")
		}
		w.register()
		c := w.Channels()
		if c == nil || c.Subscribed != 1 || !c.Sees("GENERAL") || !c.Sees("ops") || c.Sees("secret") {
			t.Errorf("%+v", c)
		}
		w.register()
		for i, want := range []string{`["realm","subscription"]`, `["realm"]`} {
			if got := w.sim.Requests()[i].Params["fetch_event_types"]; got != want {
				t.Errorf("register %d asks for %s, not %s", i, got, want)
			}
		}
		if w.Channels() != c {
			t.Error("the channels are forgotten")
		}
	})
}

func TestMe(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		for body, want := range map[string]Me{
			`"is_bot":true,"role":400`:                     {Bot: true, Role: "member"},
			`"is_bot":false,"role":100`:                    {Role: "owner"},
			`"is_bot":false,"role":200`:                    {Role: "administrator"},
			`"is_bot":false,"role":300`:                    {Role: "moderator"},
			`"is_bot":true,"role":400,"max_message_id":-1`: {Bot: true, Role: "member", Empty: true},
			`"is_bot":true,"role":400,"max_message_id":7`:  {Bot: true, Role: "member"},
			`"is_bot":true,"role":600`:                     {Bot: true, Role: Guest},
			`"is_bot":false,"role":250`:                    {Role: "role 250"},
			`"is_bot":false,"is_owner":true`:               {Role: "owner"}, // below level 59
			`"is_bot":false,"is_admin":true`:               {Role: "administrator"},
			`"is_bot":false,"is_guest":true`:               {Role: Guest},
			`"is_bot":true,"full_name":"no role at all"`:   {Bot: true, Role: "member"},
		} {
			remove := w.sim.Fault(zulipsim.Fault{On: zulipsim.Me, Status: 200,
				Body: `{"result":"success","msg":"",` + body + `}`})
			if me, err := w.Me(t.Context()); err != nil || *me != want {
				t.Errorf("%s: %+v, %v", body, me, err)
			}
			remove()
		}
		remove := w.sim.Fault(zulipsim.Fault{On: zulipsim.Me, Hang: true})
		began := time.Now()
		if _, err := w.Me(t.Context()); err == nil ||
			!strings.Contains(err.Error(), "did not answer GET /api/v1/users/me for 5s") ||
			time.Since(began) != 5*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		remove()
	})
}

// LetIn is patient with everything that may heal, and does without the answer where Zulip
// lets us in and does not tell.
func TestLetIn(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		for _, test := range []struct {
			name  string
			fault zulipsim.Fault
			known bool
			least time.Duration
		}{
			{"all is well", zulipsim.Fault{On: zulipsim.Streams}, true, 0},
			{"the request is refused", zulipsim.Fault{On: zulipsim.Me, Status: 400,
				Body: `{"result":"error","msg":"No","code":"BAD_REQUEST"}`}, false, 0},
			{"the request is not served", zulipsim.Fault{On: zulipsim.Me, Status: 403, Body: "<html>"}, false, 0},
			{"nothing is served for a minute", zulipsim.Fault{Status: 404, Body: "<html>", For: time.Minute}, true,
				time.Minute},
			{"nobody is there for a minute", zulipsim.Fault{Reset: true, For: time.Minute}, true, time.Minute},
			{"another site answers", zulipsim.Fault{Status: 200, Body: "<html>", For: time.Minute}, true, time.Minute},
			{"a limit", func() zulipsim.Fault { f := zulipsim.TooMany("7.5"); f.Times = 1; return f }(), true,
				7500 * time.Millisecond},
		} {
			remove := w.sim.Fault(test.fault)
			began := time.Now()
			me, err := w.LetIn(t.Context())
			if took := time.Since(began); err != nil || (me != nil) != test.known || took < test.least ||
				took > test.least+35*time.Second {
				t.Errorf("%s: %+v, %v, after %v", test.name, me, err, took)
			}
			remove()
		}
	})
	bubble(t, nil, func(t *testing.T, w *world) {
		w.bot.RegenerateKey()
		w.sim.Fault(zulipsim.Unauthorized())
		if _, err := w.LetIn(t.Context()); !errors.As(err, new(*AuthError)) {
			t.Errorf("with a wrong key: %v", err)
		}
	})
}

// A key that changes between the start and the first poll is read again: an instance may
// have stood by for months.
func TestKeyRotatedBeforeTheFirstPoll(t *testing.T) {
	for _, asked := range []bool{true, false} {
		bubble(t, nil, func(t *testing.T, w *world) {
			if asked {
				if _, err := w.Me(t.Context()); err != nil {
					t.Fatal(err)
				}
			} else if err := w.Client.start(); err != nil {
				t.Fatal(err)
			}
			w.bot.RegenerateKey()
			w.register()
		})
	}
	// The file is late: that is waited for where Zulip had let us in.
	bubble(t, nil, func(t *testing.T, w *world) {
		account, late := w.Client.Account, time.Now().Add(time.Hour)
		first, err := account()
		if err != nil {
			t.Fatal(err)
		}
		w.Client.Account = func() (Account, error) {
			if time.Now().Before(late) {
				return first, nil
			}
			return account()
		}
		if _, err := w.Me(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.bot.RegenerateKey()
		w.register()
		if time.Now().Before(late) {
			t.Error("it registered with a key that is no more")
		}
	})
}

// A site where nobody ever was is told of in one line, whichever request is made, with
// what to look at. Later it is known to be right.
func TestSiteWhereNobodyIs(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		const look = "look whether the site is right"
		for _, n := range []int{1, 0} {
			w.sim.Fault(zulipsim.Fault{Reset: true, For: time.Minute})
			before := len(w.log.lines())
			if _, err := w.LetIn(t.Context()); err != nil {
				t.Fatal(err)
			}
			lines := w.log.lines()[before:]
			if len(lines) != 2 || !strings.Contains(lines[0], "cannot be reached at http://zulip.test: ") ||
				strings.Count(lines[0], look) != n || !strings.Contains(lines[1], "answers again") {
				t.Errorf("it says\n%s", strings.Join(lines, "\n"))
			}
		}
	})
}

func TestNearestType(t *testing.T) {
	if n := len(EventTypes()); n != 53 {
		t.Errorf("%d types are known", n)
	}
	for _, name := range []string{"message", "heartbeat", "url_embed_data", "pointer"} {
		if like, known := NearestType(name); !known || like != name {
			t.Errorf("%s: %s, %t", name, like, known)
		}
	}
	for name, want := range map[string]string{
		"mesage": "message", "messages": "message", "Message": "message", "update-message": "update_message",
		"reactions": "reaction",
		"channel":   "stream", "streams": "stream", "user": "realm_user", "emoji": "realm_emoji",
		"subscriptions":     "subscription",
		"realm_user_groups": "user_group", "navigation_views": "navigation_view", "user_typing": "typing",
		"presense": "presence",
	} {
		if like, known := NearestType(name); known || like != want {
			t.Errorf("%s: %s, %t; want %s", name, like, known, want)
		}
	}
	for _, name := range []string{"", "Message", "a b", "message.x", "*", "é", "message\n"} {
		if ValidType(name) {
			t.Errorf("%q counts as a name of a type", name)
		}
	}
	for _, name := range EventTypes() {
		if !ValidType(name) {
			t.Errorf("%q does not count as a name of a type", name)
		}
	}
}
