package cli

import (
	"strings"
	"testing"

	natsserver "github.com/nats-io/nats-server/v2/server"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

func TestStateOption(t *testing.T) {
	begin(t)
	for words, want := range map[string]string{
		"channels, users": "users channels", "all": "users channels subscriptions groups emoji linkifiers profile-fields",
		"emoji,emoji": "emoji",
	} {
		c, err := configured(t, "--state", words)
		var got []string
		for _, s := range c.Realms[0].State {
			got = append(got, s.Name)
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %v, %v", words, got, err)
		}
	}
	for words, says := range map[string]string{
		"users,streams": `"streams" is no section of the state: write some of users, channels`,
		" , ":           "names no section",
	} {
		if _, err := configured(t, "--state", words); err == nil || !strings.Contains(err.Error(), says) ||
			!strings.Contains(err.Error(), "--state (or ZULIP_NATS_STATE)") {
			t.Errorf("%s: %v", words, err)
		}
	}
	// A state that no events carry on is none to begin with.
	for types, says := range map[string]string{
		"--event-types=message,stream":                                    "users changes by events of type realm_user",
		"--event-types=realm_user,subscription":                           "subscriptions changes by events of type stream",
		"--event-types=message,realm_user,stream,subscription,user_group": "",
		"--exclude-types=typing,realm_user":                               "users changes by events of type realm_user",
		"--exclude-types=typing":                                          "",
	} {
		c, err := configured(t, "--state", "users,subscriptions", types)
		if err == nil {
			err = c.check()
		}
		if (err == nil) != (says == "") || err != nil && (!strings.Contains(err.Error(), says) || exitCode(err) != exitUsage) {
			t.Errorf("%s: %v", types, err)
		}
	}
	if len(poller.Sections()) != 7 {
		t.Error("there are other sections than the help says")
	}
}

// The command asks who leads and stores a state, which is there soon, and says what it
// did not come to.
func TestStateCommand(t *testing.T) {
	s := begin(t)
	zulip := &zulipsim.Server{}
	site := zulip.Start(t)
	bot := zulip.Account("bridge-bot@example.com")
	file := s.zuliprc(bot.Email, bot.Key, site)
	port := natstest.FreePort(t)
	server := natstest.Start(t, func(o *natsserver.Options) { o.Port = port })
	t.Setenv("NATS_URL", server.URL)
	s.runs("state", "--timeout", "1m").want(t, 1, "nobody who leads and stores a state answers on zulip-nats.state at "+
		server.URL, "--state")

	p := s.starts("run", "--zuliprc", file, "--realm", "acme", "--state", "users")
	plain := s.starts("run", "--zuliprc", file, "--realm", "plain", "--stream", "PLAIN", "--state-dir", s.home)
	js := server.JetStream()
	newest := func() (seq uint64) {
		stream, err := js.Stream(t.Context(), "ZULIP_acme")
		if err != nil {
			return 0
		}
		m, err := stream.GetLastMsgForSubject(t.Context(), "zulip.acme.bridge.state-end")
		if err != nil {
			return 0
		}
		return m.Sequence
	}
	p.waits("a state", func() bool { return newest() > 0 })
	plain.waits("a leader", func() bool { r, _ := s.looked("--realm", "plain"); return r.OK })
	if _, _, err := events.LoadWorld(t.Context(), js, "ZULIP_acme", "acme"); err != nil {
		t.Error(err)
	}
	first := newest()
	e := s.runs("state", "--realm", "acme", "--timeout", "1m")
	if e.code != 0 || e.stderr != "" || !strings.HasPrefix(e.stdout, "acme: ") ||
		!strings.HasSuffix(e.stdout, " stores a new state; zulip.acme.bridge.state-end says when it is whole\n") {
		t.Errorf("%d: it says %q%q", e.code, e.stdout, e.stderr)
	}
	// It is waited for the other one to the end, so an answer may come too late here.
	p.waits("an answer of one of two", func() bool {
		e = s.runs("state", "--realm", "acme,plain", "--timeout", "2s")
		return e.code == 1 && strings.HasPrefix(e.stdout, "acme: ") && strings.Contains(e.stderr, "not asked: plain;")
	})
	p.waits("a new state", func() bool {
		zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "ends the poll"})
		return newest() > first
	})
	s.runs("state", "--realm", "a.b").want(t, 2, "--realm (or ZULIP_NATS_REALM)")
}
