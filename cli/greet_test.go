package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// visit is one start of the program beside a Zulip of its own.
type visit struct {
	*story
	zulip *zulipsim.Server
	bot   *zulipsim.Account
	args  []string
}

func visits(t *testing.T) *visit {
	s := begin(t)
	zulip := &zulipsim.Server{}
	site := zulip.Start(t)
	bot := zulip.Account("bridge-bot@example.com")
	zulip.Channel("general")
	zulip.Channel("announce")
	return &visit{s, zulip, bot, []string{"run", "--zuliprc", s.zuliprc(bot.Email, bot.Key, site), "--realm", "acme",
		"--no-lease",
		"--nats-port", freePort(t), "--state-dir", s.home}}
}

// goes runs the program until a poll waits, and gives the lines of its log.
func (a *visit) goes(more ...string) logLines {
	a.Helper()
	began := time.Now()
	p := a.starts(append(a.args, more...)...)
	p.waits("a poll that waits", func() bool {
		return slices.ContainsFunc(a.zulip.Queues(), func(q zulipsim.QueueInfo) bool {
			return q.Dead == "" && q.Waiting && q.LastWait.After(began)
		})
	})
	if code := p.stops(); code != 0 {
		a.Fatalf("exit code %d:\n%s", code, p.err.String())
	}
	return readLog(a, p.err.String())
}

// logLines are the lines of a log in JSON.
type logLines struct {
	t    testing.TB
	text string
	all  []map[string]any
}

func readLog(t testing.TB, text string) logLines {
	t.Helper()
	l := logLines{t: t, text: text}
	for line := range strings.Lines(text) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("no line of a log: %s", line)
		}
		l.all = append(l.all, fields)
	}
	return l
}

// with returns the lines of a level whose message has these words.
func (l logLines) with(level, words string) (found []map[string]any) {
	for _, line := range l.all {
		if line["level"] == level && strings.Contains(line["message"].(string), words) {
			found = append(found, line)
		}
	}
	return found
}

// one returns the only such line, which has these fields.
func (l logLines) one(level, words string, fields map[string]any) map[string]any {
	l.t.Helper()
	found := l.with(level, words)
	if len(found) != 1 {
		l.t.Fatalf("%d lines of level %s say %q:\n%s", len(found), level, words, l.text)
	}
	for name, value := range fields {
		if found[0][name] != value {
			l.t.Errorf("%s is %v, not %v, in %v", name, found[0][name], value, found[0])
		}
	}
	return found[0]
}

func (l logLines) none(level, words string) {
	l.t.Helper()
	if found := l.with(level, words); len(found) > 0 {
		l.t.Errorf("%v", found)
	}
}

// requests counts the requests of a kind.
func (a *visit) requests(kind zulipsim.Kind) (n int) {
	for _, r := range a.zulip.Requests() {
		if r.Kind == kind {
			n++
		}
	}
	return n
}

// Two lines say who we are and what we shall get; they cost one request.
func TestTwoLinesAtTheStart(t *testing.T) {
	a := visits(t)
	l := a.goes()
	who := map[string]any{"realm": "acme", "site": strings.TrimSuffix(a.zulip.RealmURL, "/"), "account": a.bot.Email,
		"kind": "bot", "role": "member"}
	what := map[string]any{"realm": "acme", "subjects": "zulip.acme.>", "stream": "ZULIP_acme", "keeps": "7 days",
		"channels": 2.0}
	l.one("info", "Zulip lets us in", who)
	l.one("info", "events go to this stream", what)
	l.none("warn", "")
	asked := map[zulipsim.Kind]int{zulipsim.Me: 1, zulipsim.Register: 1, zulipsim.History: 1, zulipsim.Streams: 0,
		zulipsim.Settings: 0, zulipsim.Other: 0}
	for kind, n := range asked {
		if got := a.requests(kind); got != n {
			t.Errorf("%d requests %s, not %d", got, kind, n)
		}
	}

	// A start that resumes makes no queue, and so does not learn of the channels.
	a.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "one"})
	l = a.goes()
	l.one("info", "Zulip lets us in", who)
	delete(what, "channels")
	if line := l.one("info", "events go to this stream", what); line["channels"] != nil {
		t.Errorf("the channels are known without asking: %v", line)
	}
	l.none("warn", "")
	asked[zulipsim.Me]++
	for kind, n := range asked {
		if got := a.requests(kind); got != n {
			t.Errorf("with the second start: %d requests %s, not %d", got, kind, n)
		}
	}
}

// A new bot is subscribed to nothing, and then nothing comes: zulip/zulip#22171, #2406,
// zulip/python-zulip-api#498.
func TestBotWithoutChannels(t *testing.T) {
	for _, test := range []struct {
		name   string
		args   []string
		warned bool
	}{
		{"all types", nil, true},
		{"reactions", []string{"--event-types", "reaction"}, true},
		{"no types of messages", []string{"--event-types", "presence,realm_user"}, false},
		{"all public channels", []string{"--all-public-streams"}, false},
		{"a narrow", []string{"--narrow", `[["channel","General"]]`}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := visits(t)
			a.bot.Update(func(b *zulipsim.Account) { b.NoSubscriptions = true })
			l := a.goes(test.args...)
			l.one("info", "events go to this stream", map[string]any{"channels": 0.0})
			if !test.warned {
				l.none("warn", "")
				return
			}
			text := l.one("warn", "subscribed to no channel",
				map[string]any{"account": a.bot.Email})["message"].(string)
			for _, word := range []string{"subscribe it", "--all-public-streams"} {
				if !strings.Contains(text, word) {
					t.Errorf("the warning does not name the remedy %q: %s", word, text)
				}
			}
			// A start that resumes does not know the channels, and finds that nothing
			// ever came.
			a.goes(test.args...).one("warn", "never got a message; if it is subscribed to no channel",
				map[string]any{"account": a.bot.Email})
		})
	}
}

func TestGuestIsNotToldToAskForAll(t *testing.T) {
	a := visits(t)
	a.bot.Update(func(b *zulipsim.Account) { b.NoSubscriptions, b.Guest = true, true })
	l := a.goes()
	l.one("info", "Zulip lets us in", map[string]any{"role": "guest"})
	if text := l.one("warn", "subscribed to no channel", nil)["message"].(string); strings.Contains(text,
		"--all-public-streams") {
		t.Error(text)
	}
}

func TestNarrowToAChannelThatIsNot(t *testing.T) {
	a := visits(t)
	l := a.goes("--narrow", `[["channel","GENERAL"],["channel","generall"],["topic","x"]]`)
	l.one("warn", "--narrow names a channel", map[string]any{"channel": "generall"})
}

func TestPersonsKey(t *testing.T) {
	for types, says := range map[string]string{"": "online|API keys of", "message": "online",
		"realm_bot": "API keys of", "reaction": ""} {
		t.Run(types, func(t *testing.T) {
			a := visits(t)
			a.bot.Update(func(b *zulipsim.Account) { b.Type, b.Owner = zulipsim.Human, true })
			var args []string
			if types != "" {
				args = []string{"--event-types", types}
			}
			l := a.goes(args...)
			l.one("info", "Zulip lets us in", map[string]any{"kind": "person", "role": "owner"})
			if says == "" {
				l.none("warn", "person's key")
				return
			}
			text := l.one("warn", "this is a person's key", nil)["message"].(string)
			for _, word := range []string{"online", "API keys of", "bot", "--event-types"} {
				if want := !strings.Contains("online API keys of", word) ||
					strings.Contains(says, word); want != strings.Contains(text, word) {
					t.Errorf("with %q the warning has %q: %t; it is %s", types, word, !want, text)
				}
			}
		})
	}
}

// Nothing of the lines is needed to run.
func TestZulipDoesNotSayWhoWeAre(t *testing.T) {
	for name, fault := range map[string]zulipsim.Fault{
		"refused": {On: zulipsim.Me, Status: http.StatusBadRequest,
			Body: `{"result":"error","msg":"No","code":"BAD_REQUEST"}`},
		"not there":   {On: zulipsim.Me, Status: http.StatusNotFound, Body: "<html>"},
		"bad gateway": {On: zulipsim.Me, Status: http.StatusBadGateway, Body: "<html>"},
		"no answer":   {On: zulipsim.Me, Reset: true},
		"limited": {On: zulipsim.Me, Times: 1, Status: http.StatusTooManyRequests,
			Header: http.Header{"Retry-After": {"0.3"}},
			Body:   `{"result":"error","msg":"API usage exceeded rate limit","code":"RATE_LIMIT_HIT","retry-after":0.3}`},
		"no channels": {On: zulipsim.Register, Times: 1, Status: http.StatusInternalServerError,
			Body: `{"result":"error","msg":"Internal server error"}`},
	} {
		t.Run(name, func(t *testing.T) {
			a := visits(t)
			a.goes() // the stream is there
			a.zulip.ExpireAll()
			a.zulip.Fault(fault)
			l := a.goes()
			if fault.On == zulipsim.Me {
				l.one("info", "does not say", map[string]any{"site": strings.TrimSuffix(a.zulip.RealmURL, "/"),
					"account": a.bot.Email})
				return
			}
			// The queue is asked for again, without the channels.
			l.one("info", "Zulip lets us in", nil)
			var asked []string
			for _, r := range a.zulip.Requests() {
				if r.Kind == zulipsim.Register {
					asked = append(asked, r.Params["fetch_event_types"])
				}
			}
			want := `["realm","subscription"] ["realm","subscription"] ["realm"]`
			if got := strings.Join(asked, " "); got != want {
				t.Errorf("register asked for %s, not %s", got, want)
			}
		})
	}
}

// Zulip takes any name of a type, and then nothing comes: zulip/zulip#15137.
func TestEventTypesThatNeverCome(t *testing.T) {
	a := visits(t)
	l := a.goes("--event-types", `["mesage", "reaction"]`, "--event-types", "shiny_new_thing,typing")
	l.one("warn", "no Zulip known so far has events of the type mesage (is message meant?)",
		map[string]any{"type": "mesage", "nearest": "message"})
	l.one("warn", "events of the type shiny_new_thing", nil)
	if n := len(l.with("warn", "events of the type")); n != 2 {
		t.Errorf("%d types are warned of:\n%s", n, l.text)
	}
}

// streams are the streams of a server, none if there is no server.
func streams(t testing.TB, port string) (names []string) {
	t.Helper()
	nc, err := nats.Connect("nats://127.0.0.1:"+port, nats.Timeout(time.Minute))
	if err != nil {
		return nil
	}
	defer nc.Close()
	js := natstest.JetStream(t, nc)
	list := js.StreamNames(t.Context())
	for name := range list.Name() {
		names = append(names, name)
	}
	return names
}

// A typo in the site leaves no stream behind, and a stop while Zulip is waited for is a
// clean one, whatever it was to delete.
func TestNoStreamBeforeZulipLetsUsIn(t *testing.T) {
	for name, fault := range map[string]zulipsim.Fault{
		"nobody there": {Reset: true},
		"another site": {Status: http.StatusOK, Body: "<html>welcome</html>"},
		"not found":    {Status: http.StatusNotFound, Body: "<html>"},
	} {
		t.Run(name, func(t *testing.T) {
			a := visits(t)
			port := a.args[slices.Index(a.args, "--nats-port")+1]
			remove := a.zulip.Fault(fault)
			p := a.starts(append(a.args, "--delete-queue")...)
			p.waits("a second try", func() bool { return a.requests(zulipsim.Me) > 1 })
			if got := streams(t, port); len(got) > 0 {
				t.Errorf("there are the streams %q", got)
			}
			if code := p.stops(); code != 0 {
				t.Errorf("exit code %d:\n%s", code, p.err.String())
			}
			l := readLog(t, p.err.String())
			l.one("info", "it is made when Zulip has let us in", nil)
			l.one("warn", "no queue is deleted: there is no stream yet", nil)
			l.none("info", "Zulip lets us in")

			p = a.starts(a.args...)
			p.waits("another try", func() bool { return a.requests(zulipsim.Me) > 3 })
			remove()
			p.waits("a stream", func() bool { return strings.Contains(p.err.String(), "events go to this stream") })
			if got := streams(t, port); !slices.Contains(got, "ZULIP_acme") {
				t.Errorf("there are the streams %q", got)
			}
			p.stops()
			readLog(t, p.err.String()).one("info", "Zulip lets us in", map[string]any{"kind": "bot"})
		})
	}
}

// A key that is refused ends the start before anything is made: with a NATS server of
// one's own, and with the embedded one.
func TestNoStreamWithAWrongKey(t *testing.T) {
	a := visits(t)
	a.bot.RegenerateKey()
	server := natstest.Start(t)
	a.runs(append(a.args, "--nats-url", server.URL)...).want(t, 78, a.bot.Email)
	a.runs(a.args...).want(t, 78, a.bot.Email)
	list := server.JetStream().StreamNames(t.Context())
	for name := range list.Name() {
		t.Errorf("there is the stream %s", name)
	}
	if _, err := os.Stat(filepath.Join(a.home, "nats")); !os.IsNotExist(err) {
		t.Errorf("a folder was made: %v", err)
	}
}

// The key was right at the first look, and is refused when the stream is to be made.
func TestKeyRefusedWhileZulipIsWaitedFor(t *testing.T) {
	a := visits(t)
	a.zulip.Fault(zulipsim.Unauthorized())
	a.zulip.Fault(zulipsim.Fault{On: zulipsim.Me, Times: 2, Status: http.StatusBadGateway, Body: "<html>"})
	server := natstest.Start(t)
	a.runs(append(a.args, "--nats-url", server.URL)...).want(t, 78, a.bot.Email, "the stream is not made (ZULIP_acme)")
	list := server.JetStream().StreamNames(t.Context())
	for name := range list.Name() {
		t.Errorf("there is the stream %s", name)
	}
}

// The limits are those of a stream that is made. One that is there stays as it is, which
// is said once.
func TestLimitsOfANewStream(t *testing.T) {
	a := visits(t)
	server := natstest.Start(t)
	a.args = append(a.args, "--nats-url", server.URL)
	settings := func() string {
		s, err := server.JetStream().Stream(t.Context(), "ZULIP_acme")
		if err != nil {
			t.Fatal(err)
		}
		c := s.CachedInfo().Config
		return fmt.Sprintf("%v %d %d", c.MaxAge, c.MaxBytes, c.Replicas)
	}
	limits := []string{"--max-age", "30d", "--max-bytes", "1G", "--replicas", "1"}
	l := a.goes(limits...)
	l.one("info", "events go to this stream", map[string]any{"keeps": "30 days"})
	l.none("warn", "stays as it is")
	const want = "720h0m0s 1073741824 1"
	if got := settings(); got != want {
		t.Fatalf("the stream is made with %s, not %s", got, want)
	}
	a.goes().none("warn", "stays as it is")
	a.goes(limits...).none("warn", "stays as it is")
	l = a.goes("--max-age", "0", "--max-bytes", "2G", "--replicas", "3")
	for _, words := range []string{"max_age is 720h0m0s, not no limit;", "max_bytes is 1073741824, not 2147483648;",
		"num_replicas is 1, not 3; change it yourself with: nats stream edit ZULIP_acme"} {
		l.one("warn", "stream ZULIP_acme is there already and stays as it is: its "+words, nil)
	}
	if got := settings(); got != want {
		t.Errorf("the stream was changed to %s", got)
	}
}

func TestNewStreamForEver(t *testing.T) {
	a := visits(t)
	a.goes("--max-age", "0").one("info", "events go to this stream", map[string]any{"keeps": "no limit of age"})
}

// More replicas than servers: the option is named.
func TestMoreReplicasThanServers(t *testing.T) {
	a := visits(t)
	a.args = append(a.args, "--replicas", "3")
	a.runs(append(a.args, "--nats-url", natstest.Start(t).URL)...).want(t, 78, "ZULIP_acme", "--replicas")
	a.runs(a.args...).want(t, 2, "--replicas (or ZULIP_NATS_REPLICAS): 3 servers", "--nats-url")
}

func TestStartBesideServices(t *testing.T) {
	a := visits(t)
	services(t, "nats", "zulip", "zulip-nats", "zulip-nats-nats")
	l := a.goes()
	l.one("info", "events go to this stream", nil)
	l.none("warn", "")
}

// A misspelt variable is nobody's: one warning names them all, and no value.
func TestVariablesOfNoOption(t *testing.T) {
	a := visits(t)
	for name, value := range map[string]string{
		"ZULIP_NATS_RELAM": "hunter2", "ZULIP_NATS_URL": "nats://hunter2@127.0.0.1", "ZULIP_NATS_API_KEY": "hunter2",
		"ZULIP_NATS_REALM_FILE": "/hunter2", "ZULIP_NATS_PORT": "4222",
		"ZULIP_NATS_SHINY_NEW_THING": "hunter2", "ZULIP_NATS_EMPTY": "",
		// those that there are
		"ZULIP_NATS_QUEUE_LIFE": "1h", "ZULIP_NATS_NATS_USER_FILE": "/hunter2", "NATS_RELAM": "x", "ZULIP_RELAM": "x"} {
		t.Setenv(name, value)
	}
	a.args = append(a.args, "--nats-user", "u")
	l := a.goes()
	l.one("warn", "no option has these variables, and nothing comes of them: "+
		"ZULIP_NATS_API_KEY (is ZULIP_API_KEY meant?), ZULIP_NATS_PORT (is ZULIP_NATS_NATS_PORT meant?), "+
		"ZULIP_NATS_REALM_FILE, ZULIP_NATS_RELAM (is ZULIP_NATS_REALM meant?), ZULIP_NATS_SHINY_NEW_THING, "+
		"ZULIP_NATS_URL (is ZULIP_NATS_NATS_URL meant?); `zulip-nats run --help`", nil)
	if strings.Contains(l.text, "hunter2") {
		t.Errorf("a value is in the log:\n%s", l.text)
	}
}

// What one replica risks is said when the stream is made, and not at each start.
func TestOneReplicaIsSaidOnce(t *testing.T) {
	a := visits(t)
	a.args = append(a.args, "--nats-url", natstest.Start(t).URL, "--log-level", "debug")
	a.goes().one("warn", "stream ZULIP_acme: it has one replica", nil)
	l := a.goes()
	l.none("warn", "one replica")
	l.one("debug", "one replica", nil)
}

// An object store that cannot be made is said at the start, and not when a large event
// comes.
func TestObjectStoreThatCannotBeMade(t *testing.T) {
	a := visits(t)
	srv := natstest.Start(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.CREATE.OBJ_zulip_acme"}},
		}}}
	})
	p := a.starts(append(a.args, "--nats-url", srv.URL, "--nats-user", "u", "--nats-password", "p")...)
	p.waits("the warning", func() bool { return strings.Contains(p.err.String(), "takes nothing now") })
	if code := p.stops(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, p.err.String())
	}
	readLog(t, p.err.String()).one("warn", "--oversize-wait", map[string]any{"object_store": "zulip_acme"})
}
