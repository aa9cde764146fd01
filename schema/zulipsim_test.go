package schema_test

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"zulip-nats/poller"
	"zulip-nats/zulipsim"
)

// TestSimulated checks what zulipsim sends: what people do for an hour, and once each
// thing that they do not do by themselves; as a bot sees it that declares what the bridge
// declares, with other options, and as a person sees it.
func TestSimulated(t *testing.T) {
	all := compiled(t)
	synctest.Test(t, func(t *testing.T) {
		s := &zulipsim.Server{}
		defer s.Close()
		bot, ada := s.Account("bridge-bot@example.com"), s.Person("ada@example.com", "Ada Byron")
		follow := func(as *zulipsim.Account, change func(*poller.Options)) (*poller.Poller, string) {
			p := &poller.Poller{Options: poller.DefaultOptions(), Client: &poller.Client{Transport: s.Client().Transport,
				Account: func() (poller.Account, error) {
					return poller.Account{Site: "http://zulip.example.com", Email: as.Email, Key: as.Key}, nil
				}}}
			p.Options.Life = 24 * time.Hour
			change(&p.Options)
			r, err := p.Register(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return p, r.QueueID
		}
		z, queue := follow(bot, func(*poller.Options) {})
		follow(ada, func(*poller.Options) {})
		follow(bot, func(o *poller.Options) {
			o.ApplyMarkdown, o.SlimPresence, o.AllPublicStreams, o.ClientGravatar = true, true, true, false
		})
		byAda := func(path string, form url.Values) {
			t.Helper()
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://zulip.example.com/api/v1"+path,
				strings.NewReader(form.Encode()))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.SetBasicAuth(ada.Email, ada.Key)
			answer, err := s.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			if answer.StatusCode != http.StatusOK {
				t.Fatalf("%s: %d", path, answer.StatusCode)
			}
		}

		hour, over := context.WithTimeout(t.Context(), time.Hour)
		defer over()
		s.Chatter(hour, 1, 10*time.Second)
		byAda("/users/me/subscriptions", url.Values{"subscriptions": {`[{"name":"brand new","description":"*new*"}]`}})
		byAda("/messages", url.Values{"type": {"channel"}, "to": {`"brand new"`}, "topic": {"t"}, "content": {"first"}})
		id := s.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "https://example.com"})
		direct := s.SendMessage(zulipsim.Message{Sender: ada.Email, To: []string{bot.Email}, Content: "psst"})
		topic, channel, text := "another", "ops", "https://example.org"
		s.EditMessage(id, zulipsim.Edit{Content: &text})
		s.EditMessage(id, zulipsim.Edit{Topic: &topic})
		s.EditMessage(id, zulipsim.Edit{Channel: &channel, Notice: true})
		s.LinkPreview(id, "<p>a preview</p>")
		s.React(id, ada.Email, "tada")
		s.Unreact(id, ada.Email, "tada")
		s.Flag(bot.Email, "add", "read", id, direct)
		s.Flag(bot.Email, "remove", "read", id, direct)
		s.Typing(ada.Email, "start", "general", "t")
		s.Typing(ada.Email, "stop", "", "", bot.Email)
		s.Presence(ada.Email, "active")
		for _, a := range []*zulipsim.Account{bot, ada} {
			a.Unsubscribe("design")
			a.Subscribe("design")
		}
		s.DeleteMessages(id, direct)
		s.Down()
		s.Up()

		// History, in the shape of an event.
		past := 0
		if _, err := z.Messages(t.Context(), poller.HistoryQuery{After: 1000, PublicChannels: true,
			Each: func(m *poller.Message) error {
				past++
				if err := all["message"].Validate(value(t, m.Raw)); err != nil {
					t.Errorf("history: %v: %s", err, m.Raw)
				}
				return nil
			}}); err != nil || past == 0 {
			t.Errorf("%d messages from history: %v", past, err)
		}
		// Up to a heartbeat; only now are flags no longer merged.
		for at := (poller.Position{Queue: queue, Last: -1}); ; {
			batch, err := z.Next(t.Context(), at)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(batch.Events); n > 0 {
				at.Last = batch.Events[n-1].ID
			}
			if slices.ContainsFunc(batch.Events, func(e poller.Event) bool { return e.Type == "heartbeat" }) {
				break
			}
		}
		s.DeactivateRealm()

		kinds := map[string]int{}
		events := 0
		for _, q := range s.Queues() {
			for _, e := range q.Events {
				if check := all[e.Type]; check == nil {
					t.Errorf("no schema of %q", e.Type)
				} else if err := check.Validate(value(t, e.Raw)); err != nil {
					t.Errorf("%v: %s", err, e.Raw)
				}
				kinds[e.Type+"/"+e.Op]++
				events++
			}
		}
		t.Logf("%d events of %d types and ops, and %d messages of history: %v", events, len(kinds), past, kinds)
		for _, kind := range []string{"delete_message/", "heartbeat/", "message/", "muted_topics/", "presence/", "reaction/add",
			"reaction/remove", "realm/deactivated", "restart/", "stream/create", "subscription/add", "subscription/peer_add",
			"subscription/peer_remove", "subscription/remove", "typing/start", "typing/stop", "update_message/",
			"update_message_flags/add", "update_message_flags/remove", "user_status/", "user_topic/"} {
			if kinds[kind] == 0 {
				t.Errorf("the simulator sent no %s", kind)
			}
		}
	})
}
