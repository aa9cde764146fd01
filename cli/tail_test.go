package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// publish stores messages of a realm, each said by somebody in #ops.
func publish(t *testing.T, js jetstream.JetStream, realm string, texts ...string) {
	t.Helper()
	for i, text := range texts {
		content, _ := json.Marshal(text)
		m := &nats.Msg{Subject: "zulip." + realm + ".message", Header: nats.Header{"Zulip-Queue-Id": {"q"},
			"Zulip-Event-Id": {strconv.Itoa(i)}, "Zulip-Event-Type": {"message"}, "Zulip-Message-Id": {strconv.Itoa(i + 1)}},
			Data: fmt.Appendf(nil, `{"type":"message","message":{"id":%d,"type":"stream","display_recipient":"ops","subject":"x",`+
				`"sender_full_name":"Ada","content":%s}}`, i+1, content)}
		if _, err := js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
}

func realmStream(t *testing.T, js jetstream.JetStream, name string, subjects ...string) {
	t.Helper()
	natstest.CreateStream(t, js, jetstream.StreamConfig{Name: name, Subjects: subjects})
}

func TestTail(t *testing.T) {
	s := begin(t)
	srv := natstest.Start(t)
	js := srv.JetStream()
	at := []string{"tail", "--nats-url", srv.URL}
	look := func(more ...string) ended { t.Helper(); return s.runs(append(at, more...)...) }

	look().want(t, 78, "no stream there has events of Zulip", "zulip-nats run")
	realmStream(t, js, "ZULIP_acme", "zulip.acme.>")
	publish(t, js, "acme", "one", "two", "three")

	// Without a realm, where there is one. From now on, so there is nothing.
	if e := look("--no-follow"); e.code != 0 || e.stdout != "" || !strings.Contains(e.stderr, "ZULIP_acme, realm acme, times in ") {
		t.Errorf("%+v", e)
	}
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"--last", "2"}, []string{"two", "three"}},
		{[]string{"--since", "#3"}, []string{"three"}},
		{[]string{"--since", "1h"}, []string{"one", "two", "three"}},
		{[]string{"--since", "2001-02-03"}, []string{"one", "two", "three"}},
		{[]string{"--since", "2001-02-03T10:00", "--type", "message", "--channel", "OPS"}, []string{"one", "two", "three"}},
		{[]string{"--since", "2001-02-03T10:00:00Z", "--type", "reaction"}, nil},
		{[]string{"--since", "2h", "--channel", "other"}, nil},
		{[]string{"--last", "1", "--format", "json"}, []string{`"subject":"zulip.acme.message"`}},
		{[]string{"--last", "1", "--format", "raw"}, []string{`{"type":"message","message":{"id":3,`}},
		{[]string{"--last", "2", "--pace", "original"}, []string{"two", "three"}},
	} {
		e := look(append(c.args, "--no-follow")...)
		var got []string
		for line := range strings.Lines(e.stdout) {
			if !strings.HasPrefix(line, "── ") {
				got = append(got, line)
			}
		}
		if e.code != 0 || len(got) != len(c.want) {
			t.Errorf("%q: %d, %q, %s", c.args, e.code, got, e.stderr)
			continue
		}
		for i := range got {
			if !strings.Contains(got[i], c.want[i]) {
				t.Errorf("%q: line %d is %q, not %s", c.args, i+1, got[i], c.want[i])
			}
		}
		if strings.Contains(e.stdout, "\x1b") {
			t.Errorf("%q: colours, and no terminal", c.args)
		}
	}

	// A channel of which there is nothing is told.
	const nothing = `nothing of a channel "op" was found`
	if e := look("--channel", "op", "--last", "5", "--no-follow"); e.code != 0 || strings.Count(e.stderr, nothing) != 1 {
		t.Errorf("%+v", e)
	}
	if e := look("--channel", "OPS", "--last", "5", "--no-follow"); e.code != 0 || strings.Contains(e.stderr, "nothing of") {
		t.Errorf("%+v", e)
	}

	realmStream(t, js, "EVENTS", "zulip.beta.>", "zulip.gamma.message", "other.>")
	look().want(t, 2, "several organizations, acme, beta, gamma", "--realm")
	look("--realm", "acm").want(t, 78, "realm acm", "acme, beta, gamma")
	look("--realm", "acme", "--stream", "NONE").want(t, 78, "no stream NONE")
	look("--stream", "NONE").want(t, 78, "no stream NONE")
	publish(t, js, "gamma", "from gamma")
	if e := look("--realm", "gamma", "--last", "9", "--no-follow"); e.code != 0 || !strings.Contains(e.stdout, "from gamma") {
		t.Errorf("%+v", e)
	}

	for arg, words := range map[string]string{
		"--since=tomorrow": "no point in time", "--since=#0": "no sequence", "--since=" + time.Now().AddDate(0, 0, 2).
					Format(time.DateOnly): "not come yet", "--last=0": "number", "--format=xml": "pretty, json, raw",
		"--pace=slow": "original", "--realm=a.b": "NATS subject", "--type=a b": "no type",
	} {
		look(arg).want(t, 2, words)
	}
	look("--since").want(t, 2, "needs a value", "as '#1234'") // what a shell makes of --since #1234
	look("--since", "").want(t, 2, "empty", "as '#1234'")
	look("--last", "3", "--since", "2h").want(t, 2, "--last and --since")
	if e := look("--realm", "acme", "--type", "mesage", "--no-follow"); e.code != 0 ||
		!strings.Contains(e.stderr, "is message meant?") || strings.Contains(e.stderr, "Zulip takes") {
		t.Errorf("%+v", e)
	}
}

// A stream's name is somebody else's choice, and steers no terminal.
func TestTailStreamName(t *testing.T) {
	s := begin(t)
	srv := natstest.Start(t)
	realmStream(t, srv.JetStream(), "Z\x1b[31m", "zulip.acme.>")
	e := s.runs("tail", "--nats-url", srv.URL, "--no-follow")
	if e.code != 0 || !strings.Contains(e.stderr, "Z[31m, realm acme") || strings.Contains(e.stderr, "\x1b") {
		t.Errorf("%+v", e)
	}
	if err := readable(errors.New("no"), "Z\x1b[31m"); !strings.Contains(err.Error(), "stream Z[31m cannot be read") {
		t.Errorf("%q", err)
	}
}

// A stream of all organizations: the records say which there are.
func TestTailWideStream(t *testing.T) {
	s := begin(t)
	srv := natstest.Start(t)
	js := srv.JetStream()
	realmStream(t, js, "ALL", "zulip.>")
	for _, realm := range []string{"acme", "beta"} {
		if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: "zulip." + realm + ".bridge.queue"}); err != nil {
			t.Fatal(err)
		}
		publish(t, js, realm, "in "+realm)
	}
	s.runs("tail", "--nats-url", srv.URL).want(t, 2, "acme, beta")
	e := s.runs("tail", "--nats-url", srv.URL, "--realm", "beta", "--last", "5", "--no-follow")
	if e.code != 0 || !strings.Contains(e.stdout, "in beta") || strings.Contains(e.stdout, "acme") {
		t.Errorf("%+v", e)
	}
}

// A stream that has others' messages by sources has no subjects of its own.
func TestTailSources(t *testing.T) {
	s := begin(t)
	srv := natstest.Start(t)
	js := srv.JetStream()
	var sources []*jetstream.StreamSource
	for _, realm := range []string{"acme", "beta"} {
		realmStream(t, js, "ZULIP_"+realm, "zulip."+realm+".>")
		if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: "zulip." + realm + ".bridge.queue"}); err != nil {
			t.Fatal(err)
		}
		publish(t, js, realm, "in "+realm)
		sources = append(sources, &jetstream.StreamSource{Name: "ZULIP_" + realm})
	}
	natstest.CreateStream(t, js, jetstream.StreamConfig{Name: "ALL", Sources: sources})
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if all, err := js.Stream(t.Context(), "ALL"); err == nil && all.CachedInfo().State.Msgs == 4 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the sources do not come")
		}
	}
	p := s.starts("tail", "--nats-url", srv.URL, "--realm", "beta", "--stream", "ALL", "--since", "#1")
	p.waits("a message", func() bool { return strings.Contains(p.out.String(), "in beta") })
	if code := p.stops(); code != 0 || strings.Contains(p.out.String(), "in acme") {
		t.Errorf("exit code %d: %s", code, p.out.String())
	}
	s.runs("tail", "--nats-url", srv.URL, "--realm", "bet", "--stream", "ALL").want(t, 78, "realm bet", "acme, beta")
}

// It follows until it is stopped, which is exit code 0, and leaves no consumer.
func TestTailFollows(t *testing.T) {
	s := begin(t)
	srv := natstest.Start(t)
	js := srv.JetStream()
	realmStream(t, js, "ZULIP_acme", "zulip.acme.>")
	p := s.starts("tail", "--nats-url", srv.URL)
	p.waits("the heading", func() bool { return strings.Contains(p.err.String(), "from now on. Ctrl-C ends it.") })
	publish(t, js, "acme", "hello \x1b[2J there")
	p.waits("a message", func() bool { return strings.Contains(p.out.String(), "#ops > x  Ada: hello [2J there\n") })
	if code := p.stops(); code != 0 {
		t.Errorf("exit code %d: %s", code, p.err.String())
	}
	// It is deleted, and not left to the server, which would do so after a minute.
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		st, err := js.Stream(t.Context(), "ZULIP_acme")
		if err != nil {
			t.Fatal(err)
		}
		n := st.CachedInfo().State.Consumers
		if n == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d consumers are left", n)
		}
	}
}

func TestTailNATSAway(t *testing.T) {
	s := begin(t)
	e := s.runs("tail", "--nats-url", "nats://127.0.0.1:"+freePort(t)).
		want(t, 1, "cannot be reached", "--nats-url", "refused")
	if strings.Contains(e.stderr, "waiting") { // and it ends
		t.Errorf("it waits: %s", e.stderr)
	}
	srv := natstest.Start(t, func(o *server.Options) { o.Username, o.Password = "u", "right-word" })
	e = s.runs("tail", "--nats-url", srv.URL, "--nats-user", "u", "--nats-password", "wrong-word").
		want(t, 78, "refuses what we sign in with", "--nats-user")
	if strings.Contains(e.stderr, "waiting") {
		t.Errorf("it waits: %s", e.stderr)
	}
	if strings.Contains(e.stderr, "wrong-word") {
		t.Errorf("the password is shown: %s", e.stderr)
	}
	none := natstest.Start(t, func(o *server.Options) { o.JetStream = false })
	s.runs("tail", "--nats-url", none.URL).want(t, 78, "no JetStream")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := s.starts("tail", "--nats-url", "nats://"+l.Addr().String())
	if code := p.stops(); code != 0 {
		t.Errorf("stopped while it connects: exit code %d: %s", code, p.err.String())
	}
}

// The rights that docs/permissions.md names are enough, and without them a sentence says
// what is missing.
func TestTailRights(t *testing.T) {
	s := begin(t)
	rights := []string{"$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.ZULIP_acme", "$JS.API.CONSUMER.CREATE.ZULIP_acme.>",
		"$JS.API.CONSUMER.MSG.NEXT.ZULIP_acme.>", "$JS.API.CONSUMER.DELETE.ZULIP_acme.>"}
	lookUp := []string{"$JS.API.STREAM.MSG.GET.ZULIP_acme"}
	users := []*server.User{{Username: "all", Password: "p"}}
	add := func(name string, allow []string) {
		users = append(users, &server.User{Username: name, Password: "p", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: allow},
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX_" + name + ".>"}}}})
	}
	add("full", append(rights, lookUp...))
	add("plain", rights)
	add("none", []string{"nothing"})
	add("named", rights[:2])
	srv := natstest.Start(t, func(o *server.Options) { o.Users = users })
	js := srv.JetStream(nats.UserInfo("all", "p"))
	realmStream(t, js, "ZULIP_acme", "zulip.acme.>")
	publish(t, js, "acme", "one", "two")
	h := nats.Header{"Zulip-Queue-Id": {"q"}, "Zulip-Event-Id": {"9"}, "Zulip-Event-Type": {"reaction"}}
	if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: "zulip.acme.reaction", Header: h,
		Data: []byte(`{"type":"reaction","op":"add","user_id":3,"message_id":1,"emoji_name":"tada"}`)}); err != nil {
		t.Fatal(err)
	}
	look := func(user string, more ...string) ended {
		return s.runs(append([]string{"tail", "--nats-url", srv.URL, "--nats-user", user, "--nats-password", "p",
			"--nats-inbox-prefix", "_INBOX_" + user, "--no-follow", "--since", "#3"}, more...)...)
	}
	if e := look("full"); e.code != 0 || !strings.Contains(e.stdout, "on Ada: one") {
		t.Errorf("with the rights of docs/permissions.md: %+v", e)
	}
	if e := look("plain"); e.code != 0 || !strings.Contains(e.stdout, "on message 1") {
		t.Errorf("without looking up: %+v", e)
	}
	look("none").want(t, 78, "does not let this user read", "STREAM.NAMES", "docs/permissions.md")
	look("named").want(t, 78, "does not let this user read", "CONSUMER.CREATE")
}

// The start names the command that shows what comes, and run --show prints it.
func TestRunShows(t *testing.T) {
	a := visits(t)
	srv := natstest.Start(t)
	p := a.starts(append(a.args, "--nats-url", strings.Replace(srv.URL, "nats://", "nats://somebody:a-secret@", 1), "--show")...)
	p.waits("a queue", func() bool { return len(a.zulip.Queues()) > 0 })
	a.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "tea", Content: "one\x1b[2J"})
	p.waits("what was sent", func() bool { return strings.Contains(p.out.String(), "#general > tea  ") })
	a.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "tea", Content: "two"})
	p.waits("the second", func() bool { return a.stored(srv.JetStream()) >= 3 })
	if code := p.stops(); code != 0 {
		t.Fatalf("exit code %d: %s", code, p.err.String())
	}
	for _, word := range []string{"a queue is followed (first)", ": one[2J\n", ": two\n"} {
		if strings.Count(p.out.String(), word) != 1 {
			t.Errorf("not once: %q in\n%s", word, p.out.String())
		}
	}
	line := readLog(t, p.err.String()).one("info", "events go to this stream", nil)
	want := "zulip-nats tail --realm acme --nats-url " + srv.URL
	if line["look"] != want {
		t.Errorf("it names %v, not %s", line["look"], want)
	}
	// And that command does.
	e := a.runs(append(strings.Fields(want)[1:], "--since", "#1", "--no-follow")...)
	if e.code != 0 || !strings.Contains(e.stdout, ": two\n") {
		t.Errorf("%+v", e)
	}
}

// What run --show prints of a stream by place, and tail without being told the layout: also
// where the record that names it is gone, and with no right to look up anything.
func TestTailByPlace(t *testing.T) {
	a := visits(t)
	all := &server.User{Username: "all", Password: "p"}
	reader := &server.User{Username: "reader", Password: "p", Permissions: &server.Permissions{
		Publish: &server.SubjectPermission{Allow: []string{"$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.ZULIP_acme",
			"$JS.API.CONSUMER.CREATE.ZULIP_acme.>", "$JS.API.CONSUMER.MSG.NEXT.ZULIP_acme.>", "$JS.API.CONSUMER.DELETE.ZULIP_acme.>"}},
		Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}}}}
	srv := natstest.Start(t, func(o *server.Options) { o.Users = []*server.User{all, reader} })
	js := srv.JetStream(nats.UserInfo("all", "p"))
	as := func(user string) []string {
		return []string{"--nats-url", srv.URL, "--nats-user", user, "--nats-password", "p"}
	}
	p := a.starts(slices.Concat(a.args, as("all"), []string{"--subjects", "by-place", "--show"})...)
	p.waits("a queue", func() bool { return len(a.zulip.Queues()) > 0 })
	one := a.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "tea", Content: "one"})
	direct := a.zulip.SendMessage(zulipsim.Message{To: []string{a.bot.Email}, Sender: "ada@example.com", Content: "between us"})
	edited := "one and a half"
	a.zulip.EditMessage(one, zulipsim.Edit{Content: &edited})
	p.waits("an edit", func() bool { return strings.Contains(p.out.String(), "edited: one and a half") })
	a.zulip.React(one, "ada@example.com", "tada")
	a.zulip.React(direct, "ada@example.com", "heart")
	p.waits("reactions", func() bool { return strings.Count(p.out.String(), " put ") == 2 })
	general := a.zulip.Channel("general")
	general.Rename("lounge")
	p.waits("a new name", func() bool { return strings.Contains(p.out.String(), "name is now") })
	if code := p.stops(); code != 0 {
		t.Fatalf("exit code %d: %s", code, p.err.String())
	}
	s, err := js.Stream(t.Context(), "ZULIP_acme")
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter("zulip.acme.>"))
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"message.direct", "reaction.direct", "update_message.channel."} {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(info.State.Subjects)), func(has string) bool {
			return strings.HasPrefix(has, "zulip.acme."+subject)
		}) {
			t.Errorf("nothing is on %s: %v", subject, info.State.Subjects)
		}
	}

	for _, state := range []string{"with the record of the queue", "without"} {
		for _, c := range []struct {
			user, args string
			want       []string // in these lines, and there are no others
		}{
			{"all", "--type message --since #1", []string{"#general > tea  ", "between us"}},
			{"all", "--type message --last 1", []string{"between us"}},
			{"all", "--type message --last 2 --format json", []string{`"zulip.acme.message.channel.`, `"zulip.acme.message.direct"`}},
			{"all", "--type message --since #1 --channel General", []string{"#general > tea  "}},
			{"all", "--type reaction,stream --since #1 --channel general", []string{"#general > tea  ", "#general: name is now"}},
			{"all", "--type message --since #1 --channel lounge", []string{"#general > tea  "}}, // its new name
			{"all", fmt.Sprint("--type message --since #1 --channel ", general.ID), []string{"#general > tea  "}},
			{"all", fmt.Sprint("--type reaction --last 1 --channel #", general.ID), []string{"#general > tea  "}},
			{"reader", fmt.Sprint("--type reaction --last 2 --channel ", general.ID), []string{fmt.Sprint("on message ", one)}},
			{"all", "--type update_message,bridge --last 1", []string{"edited: one and a half (was: one)"}},
			{"all", "--type reaction --last 2", []string{"#general > tea  ", "direct to "}}, // looked up
			{"reader", "--type reaction --last 2", []string{fmt.Sprint("on message ", one), fmt.Sprint("on message ", direct)}},
			{"reader", "--type message --last 1 --realm acme", []string{"between us"}},
		} {
			e := a.runs(slices.Concat([]string{"tail", "--no-follow"}, as(c.user), strings.Fields(c.args))...)
			var lines []string
			for line := range strings.Lines(e.stdout) {
				if !strings.HasPrefix(line, "──") { // the day
					lines = append(lines, line)
				}
			}
			if e.code != 0 || len(lines) != len(c.want) {
				t.Errorf("%s, %s, %s: %+v", state, c.user, c.args, e)
				continue
			}
			for i, want := range c.want {
				if !strings.Contains(lines[i], want) {
					t.Errorf("%s, %s, %s: %q does not have %q", state, c.user, c.args, lines[i], want)
				}
			}
		}
		if err := s.Purge(t.Context(), jetstream.WithPurgeSubject("zulip.acme.bridge.queue")); err != nil {
			t.Fatal(err)
		}
	}
}

// With a stdout that nobody reads, run --show stores all the same, and can be stopped.
func TestRunShowsNobody(t *testing.T) {
	a := visits(t)
	srv := natstest.Start(t)
	read, write := io.Pipe() // takes nothing until somebody reads
	t.Cleanup(func() { read.Close() })
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan int, 1)
	var stderr natstest.Buffer
	go func() { ended <- Run(ctx, append(a.args, "--nats-url", srv.URL, "--show"), write, &stderr) }()
	waits(t, "a queue", func() bool { return len(a.zulip.Queues()) > 0 })
	a.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "tea", Content: "one"})
	waits(t, "what was sent", func() bool { return a.stored(srv.JetStream()) >= 2 })
	stop()
	select {
	case code := <-ended:
		if code != 0 {
			t.Errorf("exit code %d: %s", code, stderr.String())
		}
	case <-time.After(2 * time.Minute):
		t.Fatalf("it does not stop:\n%s", stderr.String())
	}
}

// stored is how many messages the stream has.
func (a *visit) stored(js jetstream.JetStream) uint64 {
	a.Helper()
	s, err := js.Stream(a.Context(), "ZULIP_acme")
	if err != nil {
		return 0
	}
	return s.CachedInfo().State.Msgs
}
