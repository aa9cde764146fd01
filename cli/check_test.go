package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/events"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// look is a Zulip, a NATS server, and the arguments of `check` for them.
type look struct {
	*visit
	nats *natstest.Server
}

func looks(t *testing.T, configure ...func(*server.Options)) *look {
	a := visits(t)
	a.args = slices.DeleteFunc(a.args, func(arg string) bool { return arg == "--no-lease" })
	a.args[0] = "check"
	srv := natstest.Start(t, configure...)
	a.args = append(a.args, "--nats-url", srv.URL)
	return &look{a, srv}
}

// left is all that a look could leave behind: streams and buckets with their newest
// message and their consumers, and living queues.
func (l *look) left() map[string]string {
	l.Helper()
	left := map[string]string{}
	js := l.nats.JetStream()
	list := js.ListStreams(l.Context())
	for info := range list.Info() {
		left[info.Config.Name] = fmt.Sprintf("last %d, %d messages, %d consumers", info.State.LastSeq, info.State.Msgs,
			info.State.Consumers)
	}
	if err := list.Err(); err != nil {
		l.Fatal(err)
	}
	for _, q := range l.zulip.Queues() {
		if q.Dead == "" {
			left["queue "+q.ID] = q.Account
		}
	}
	return left
}

// finds runs check with --json, and gives the findings and the exit code.
func (l *look) finds(more ...string) ([]finding, int) {
	l.Helper()
	e := l.runs(append(append(slices.Clone(l.args), "--json"), more...)...)
	return readFindings(l, e.stdout), e.code
}

func readFindings(t testing.TB, text string) (list []finding) {
	t.Helper()
	for line := range strings.Lines(text) {
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		var f finding
		if err := d.Decode(&f); err != nil {
			t.Fatalf("no object: %s", line)
		}
		if !slices.Contains([]string{"ok", "note", "warn", "fail"}, f.Result) || f.What == "" || f.Seen == "" ||
			(f.Remedy != "") != (f.Result == "warn" || f.Result == "fail") {
			t.Errorf("an odd finding: %s", line)
		}
		list = append(list, f)
	}
	return list
}

func with(list []finding, result string) (found []finding) {
	for _, f := range list {
		if f.Result == result {
			found = append(found, f)
		}
	}
	return found
}

// The lines that a set-up without a fault has, before its first run and after it; and
// nothing is there afterwards that was not there before.
func TestCheckOfAGoodSetUp(t *testing.T) {
	l := looks(t)
	want := []string{"zuliprc", "realm", "Zulip", "TLS", "account", "Zulip server", "queue's life", "channels", "limits",
		"Zulip's clock", "NATS", "JetStream", "stream", "largest message", "right to write", "right to read",
		"consumers", "object store", "lease"}
	looked := func(more ...string) []finding {
		t.Helper()
		before := l.left()
		list, code := l.finds("--wait", "1m")
		if code != 0 || len(with(list, "fail"))+len(with(list, "warn")) > 0 {
			t.Errorf("exit code %d, and %v %v", code, with(list, "fail"), with(list, "warn"))
		}
		var names []string
		for _, f := range with(list, "ok") {
			names = append(names, f.What)
		}
		for _, what := range append(slices.Clone(want), more...) {
			if !slices.Contains(names, what) {
				t.Errorf("no word of %q in %v", what, names)
			}
		}
		if after := l.left(); !maps.Equal(before, after) {
			t.Errorf("before: %v\nafter: %v", before, after)
		}
		return list
	}
	for _, f := range looked() {
		if (f.What == "stream" || f.What == "lease" || f.What == "object store") &&
			!strings.Contains(f.Seen, "is not there; run makes it") {
			t.Errorf("before the first run: %v", f)
		}
	}
	if n := l.requests(zulipsim.Register); n != 1 {
		t.Errorf("%d queues were made", n)
	}

	l.args[0] = "run"
	l.goes()
	l.args[0] = "check"
	waits(t, "the object store", func() bool {
		return strings.HasPrefix(l.left()["OBJ_zulip_acme"], "last") && !strings.HasPrefix(l.left()["OBJ_zulip_acme"],
			"last 0")
	})
	if !strings.HasPrefix(l.left()["ZULIP_acme"], "last") || len(l.left()) != 4 {
		t.Fatalf("the run left %v", l.left())
	}
	seen := map[string]string{}
	for _, f := range looked("max_age", "replicas", "NATS' clock") {
		if f.Result == "ok" {
			seen[f.What] = f.Seen
		}
	}
	for what, words := range map[string]string{
		"stream": "subjects zulip.acme.>; retention limits, discard old", "max_age": "7 days; the queue lives 24 h",
		"account": l.bot.Email + ", a bot, role member", "channels": "subscribed to 2",
		"Zulip server": "version 10.2, feature level 372", "queue's life": "24 h", "largest message": "1048576 bytes",
		"NATS": "signed in, nats-server 2.", "zuliprc": "mode 0600",
		"lease": "is there", "object store": "is there", "limits": "left",
	} {
		if !strings.Contains(seen[what], words) {
			t.Errorf("%s: %q is not in %q", what, words, seen[what])
		}
	}
	// An answer that takes a second makes the clock of a slow machine seem a second behind.
	if clock := seen["Zulip's clock"]; clock != "as ours" && !strings.HasSuffix(clock, "s behind ours") {
		t.Errorf("Zulip's clock is %s", clock)
	}
}

// waits waits until a condition holds.
func waits(t testing.TB, what string, ready func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ready(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// What is for people has a line for each thing, and below a cross its one remedy.
func TestCheckForPeople(t *testing.T) {
	l := looks(t)
	e := l.runs(l.args...)
	if e.code != 0 || e.stderr != "" || !strings.Contains(e.stdout, "ok    Zulip ") {
		t.Errorf("exit code %d\n%s%s", e.code, e.stdout, e.stderr)
	}
	l.bot.Update(func(b *zulipsim.Account) { b.Key = someKey })
	e = l.runs(l.args...)
	lines := strings.Split(e.stdout, "\n")
	at := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, "FAIL  account ") })
	if e.code != 1 || at < 0 || !strings.Contains(lines[at+1], "-> ") || strings.Count(e.stdout, "FAIL") != 1 ||
		strings.Count(e.stdout, "-> ") != 1 || !strings.Contains(e.stderr, "check: 1 of ") {
		t.Errorf("exit code %d\n%s%s", e.code, e.stdout, e.stderr)
	}
	l.runs("check", "--jsn").want(t, 2, "is --json meant?")
	l.runs("check", "--wait", "long").want(t, 2, "--wait")
	l.runs("check", "--queue-life", "30d").want(t, 2, "--queue-life")
}

// lacking is a server with one user, who may publish all but these subjects.
func lacking(deny ...string) func(*server.Options) {
	return func(o *server.Options) {
		o.Users = []*server.User{{Username: "bridge", Password: "hunter2", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: deny}}}}
	}
}

// has makes a stream on the server.
func has(change func(*jetstream.StreamConfig)) func(*look) {
	return func(l *look) {
		config := jetstream.StreamConfig{Name: "ZULIP_acme", Subjects: []string{"zulip.acme.>"}}
		change(&config)
		natstest.CreateStream(l, l.nats.JetStream(nats.UserInfo("bridge", "hunter2")), config)
	}
}

// limited sets limits of the account, which has one stream.
func limited(limits server.JetStreamAccountLimits) func(*look) {
	return func(l *look) {
		natstest.CreateStream(l, l.nats.JetStream(), jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"other"},
			MaxBytes: 1 << 20})
		limits.MaxConsumers, limits.MemoryMaxStreamBytes, limits.StoreMaxStreamBytes = -1, -1, -1
		if err := l.nats.Server().GlobalAccount().UpdateJetStreamLimits(map[string]server.JetStreamAccountLimits{
			"": limits}); err != nil {
			l.Fatal(err)
		}
	}
}

// Each fault has its cross, and that one remedy.
func TestCheckOfBrokenSetUps(t *testing.T) {
	none := func(*look) {}
	signed := []string{"--nats-user", "bridge", "--nats-password", "hunter2"}
	for _, test := range []struct {
		name   string
		server func(*server.Options)
		harm   func(*look)
		args   []string
		what   string // of the cross
		seen   string
		remedy string
	}{
		{"no zuliprc", nil, func(l *look) { l.args[2] = "/nonexistent/zuliprc" }, nil, "zuliprc", "no account",
			"there is no zuliprc /nonexistent/zuliprc"},
		{"wrong key", nil, func(l *look) { l.bot.Update(func(b *zulipsim.Account) { b.Key = someKey }) }, nil,
			"account", "is not let in", "download the zuliprc again"},
		{"another site", nil, func(l *look) { l.zulip.Fault(zulipsim.Fault{Redirect: "https://chat.example.com/"}) }, nil,
			"Zulip", "gives no answer", "write site=https://chat.example.com in the zuliprc"},
		{"no site", nil, func(l *look) {
			l.args[2] = l.zuliprc(l.bot.Email, l.bot.Key, "http://127.0.0.1:1")
		}, nil, "Zulip", "gives no answer", "cannot be reached at"},
		{"a narrow that Zulip refuses", nil, none, []string{"--narrow", `[["no-such-operator", "x"]]`}, "queue",
			"takes no such options", "correct --event-types, --narrow"},
		{"no NATS", nil, func(l *look) { l.nats.Stop() }, nil, "NATS", "cannot be reached",
			"start the server, or correct --nats-url"},
		{"a refused password", lacking(), none, []string{"--nats-user", "bridge", "--nats-password", "hunter3"}, "NATS",
			"refuses what we sign in with", "correct the user and password"},
		{"a file of credentials that is not there", nil, none, []string{"--nats-creds", "/nonexistent/creds"},
			"NATS settings", "cannot be used", "/nonexistent/creds cannot be read"},
		{"no JetStream", func(o *server.Options) { o.JetStream = false }, none, nil, "JetStream", "not there",
			"start it with -js"},
		{"retention workqueue", nil, has(func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy }), nil,
			"stream", "its retention would break the promise", "use a stream with retention limits"},
		{"other subjects", nil, has(func(c *jetstream.StreamConfig) { c.Subjects = []string{"zulip.acme.message"} }), nil,
			"stream", "its subjects would break the promise", "nats stream edit ZULIP_acme --subjects"},
		{"events by place, and by type is asked for", nil, func(l *look) {
			has(func(*jetstream.StreamConfig) {})(l)
			if _, err := l.nats.JetStream(nats.UserInfo("bridge", "hunter2")).PublishMsg(l.Context(), &nats.Msg{
				Subject: "zulip.acme.message.direct", Header: nats.Header{events.HeaderQueueID: {"q"}, events.HeaderEventID: {"1"},
					events.HeaderOrigin: {events.OriginLive}}}); err != nil {
				l.Fatal(err)
			}
		}, nil, "subjects", "ZULIP_acme cannot take them by-type", "Go on with --subjects by-place"},
		{"a limit for each subject by place", nil, has(func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 5 }),
			[]string{"--subjects", "by-place"}, "subjects", "ZULIP_acme cannot take them by-place", "set max_msgs_per_subject to -1"},
		{"max_age below the queue's life", nil, has(func(c *jetstream.StreamConfig) { c.MaxAge = 2 * time.Hour }), nil,
			"max_age", "2 h", "--max-age=168h0m0s"},
		{"messages too small", nil, has(func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1024 }), nil,
			"largest message", "1024 bytes (max_msg_size of the stream)", "raise max_msg_size"},
		{"no right to publish", lacking("zulip.acme.>"), none, signed, "right to write", "we have none",
			`may not publish to "zulip.acme.bridge.check"`},
		{"no right to read", lacking("$JS.API.STREAM.MSG.GET.>"), has(func(*jetstream.StreamConfig) {}), signed,
			"right to read", "we have none", `may not publish to "$JS.API.STREAM.MSG.GET.ZULIP_acme"`},
		{"no right to make the stream", lacking("$JS.API.STREAM.CREATE.ZULIP_acme"), none, signed, "stream",
			"cannot be made", "or make it yourself: nats stream add ZULIP_acme --subjects 'zulip.acme.>'"},
		{"no stream more", nil, limited(server.JetStreamAccountLimits{MaxMemory: -1, MaxStore: -1, MaxStreams: 1}), nil,
			"stream", "at most 1 streams", "raise the account's limit"},
		{"a limit of size is wanted", nil, limited(server.JetStreamAccountLimits{MaxMemory: -1, MaxStore: 1 << 30,
			MaxStreams: -1, MaxBytesRequired: true}), nil, "stream", "wants each to have a limit of size", "--max-bytes"},
		{"three replicas of one server", nil, none, []string{"--replicas", "3"}, "replicas", "the server is alone",
			"lower --replicas"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var configure []func(*server.Options)
			if test.server != nil {
				configure = append(configure, test.server)
			}
			l := looks(t, configure...)
			test.harm(l)
			list, code := l.finds(test.args...)
			crosses := with(list, "fail")
			if code != 1 || len(crosses) != 1 {
				t.Fatalf("exit code %d, crosses %v", code, crosses)
			}
			if f := crosses[0]; f.What != test.what || !strings.Contains(f.Seen, test.seen) ||
				!strings.Contains(f.Remedy, test.remedy) {
				t.Errorf("it finds %+v", f)
			}
		})
	}
}

// In a cluster other code refuses what is tried; nothing is left there either, and a
// stream that is there stays as it is.
func TestCheckOfACluster(t *testing.T) {
	l := looks(t)
	cluster := natstest.StartCluster(t, 3)
	l.nats = cluster[0]
	l.args[slices.Index(l.args, "--nats-url")+1] = cluster.URL()
	l.args = append(l.args, "--replicas", "3")
	for range 2 {
		before := l.left()
		list, code := l.finds("--wait", "1m")
		if code != 0 || len(with(list, "warn")) > 0 {
			t.Errorf("exit code %d, %v", code, list)
		}
		if after := l.left(); !maps.Equal(before, after) {
			t.Errorf("before: %v\nafter: %v", before, after)
		}
		js := l.nats.JetStream()
		for name, subject := range map[string]string{"ZULIP_acme": "zulip.acme.>", "OBJ_zulip_acme": "$O.zulip_acme.>",
			"KV_zulip_bridge": "$KV.zulip_bridge.>"} {
			natstest.CreateStream(t, js, jetstream.StreamConfig{Name: name, Subjects: []string{subject}, Replicas: 3,
				AllowMsgTTL: true, AllowDirect: true})
		}
	}
}

// What `run` warns of and lives with is no cross.
func TestCheckWarns(t *testing.T) {
	for _, test := range []struct {
		name   string
		server func(*server.Options)
		harm   func(*look)
		args   []string
		what   string
		remedy string
	}{
		{"no channels", nil, func(l *look) { l.bot.Update(func(b *zulipsim.Account) { b.NoSubscriptions = true }) }, nil,
			"channels", "subscribe it to the channels"},
		{"a person", nil, func(l *look) { l.bot.Update(func(b *zulipsim.Account) { b.Type = zulipsim.Human }) }, nil,
			"account", "Use the key of a bot"},
		{"a zuliprc for everybody", nil, func(l *look) {
			if err := os.Chmod(l.args[2], 0o644); err != nil {
				l.Fatal(err)
			}
		}, nil, "zuliprc", "chmod 600"},
		{"a short queue", nil, func(l *look) { l.zulip.GrantCap = time.Hour; l.zulip.FeatureLevel = 500 }, nil,
			"queue's life", "24 h were asked for"},
		{"no such type", nil, nil, []string{"--event-types", "message,reacton"}, "event types", "is reaction meant?"},
		{"no right to an object store", lacking("$JS.API.STREAM.CREATE.OBJ_zulip_acme"), nil, nil, "object store",
			"$JS.API.STREAM.CREATE.OBJ_zulip_acme"},
		{"no right to a lease", lacking("$KV.zulip_bridge.>"), nil, nil, "lease", "$KV.zulip_bridge.instance."},
		{"no right to follow the bucket", lacking("$JS.API.CONSUMER.CREATE.KV_zulip_bridge.>"), nil, nil, "lease",
			"$JS.API.CONSUMER.CREATE.KV_zulip_bridge"},
		{"no right to make a bucket", lacking("$JS.API.STREAM.CREATE.KV_zulip_bridge"), nil, nil, "lease",
			"$JS.API.STREAM.CREATE.KV_zulip_bridge"},
		{"no right to consumers", lacking("$JS.API.CONSUMER.CREATE.ZULIP_acme.>"), nil, nil, "consumers",
			"message by message"},
		{"discard new", nil, has(func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardNew }), nil, "stream",
			"its discard policy is new"},
		{"other limits than asked for", nil, has(func(*jetstream.StreamConfig) {}), []string{"--max-age", "30d"}, "stream",
			"change it yourself"},
		{"a clock that is wrong", nil, func(l *look) {
			l.zulip.Clock = func() time.Time { return time.Now().Add(-time.Hour) }
		}, nil, "Zulip's clock", "NTP"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var l *look
			args := test.args
			if test.server != nil {
				l = looks(t, test.server)
				args = append(args, "--nats-user", "bridge", "--nats-password", "hunter2")
			} else {
				l = looks(t)
			}
			if test.harm != nil {
				test.harm(l)
			}
			list, code := l.finds(append(args, "--wait", "1m")...)
			warned := with(list, "warn")
			if code != 0 || len(with(list, "fail")) > 0 || len(warned) != 1 {
				t.Fatalf("exit code %d, crosses %v, warnings %v", code, with(list, "fail"), warned)
			}
			if f := warned[0]; f.What != test.what || !strings.Contains(f.Remedy, test.remedy) {
				t.Errorf("it warns %+v", f)
			}
		})
	}
}

// Whoever looks waits for what is not there yet, for as long as was said.
func TestCheckWaits(t *testing.T) {
	l := looks(t)
	l.nats.Stop()
	away := l.zulip.Fault(zulipsim.BadGateway())
	p := l.starts(append(l.args, "--wait", "10m")...)
	p.waits("a second try", func() bool { return l.requests(zulipsim.Me) > 1 })
	away()
	p.waits("the wait for NATS", func() bool { return strings.Contains(p.out.String(), "Zulip's clock") })
	l.nats.Restart()
	select {
	case code := <-p.code:
		p.code <- code
		if code != 0 || strings.Contains(p.out.String(), "FAIL") {
			t.Errorf("exit code %d:\n%s", code, p.out.String())
		}
	case <-time.After(2 * time.Minute):
		t.Fatalf("it does not end:\n%s", p.out.String())
	}
}

// A stop while Zulip makes the queue leaves none.
func TestCheckStoppedLeavesNoQueue(t *testing.T) {
	l := looks(t)
	making := make(chan struct{})
	l.zulip.DuringRegister = func(string) { close(making) }
	l.zulip.Fault(zulipsim.Fault{On: zulipsim.Register, Delay: 300 * time.Millisecond})
	p := l.starts(l.args...)
	<-making
	if code := p.stops(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if left := l.left(); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
}

// With --offline nobody is asked: neither server gets a connection.
func TestCheckOffline(t *testing.T) {
	var calls atomic.Int64
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			calls.Add(1)
			c.Close()
		}
	}()
	l := looks(t)
	connections := func() uint64 {
		v, err := l.nats.Server().Varz(nil)
		if err != nil {
			t.Fatal(err)
		}
		return v.TotalConnections
	}
	before := connections()
	offline := func(code int, crosses []string, more ...string) {
		t.Helper()
		list, got := l.finds(append([]string{"--offline"}, more...)...)
		var names []string
		for _, f := range with(list, "fail") {
			names = append(names, f.What)
		}
		if got != code || !slices.Equal(names, crosses) {
			t.Errorf("exit code %d, crosses %v", got, names)
		}
		for _, f := range list {
			if !slices.Contains([]string{"zuliprc", "realm", "NATS", "NATS settings", "event types", "settings"}, f.What) {
				t.Errorf("it looked at %v", f)
			}
		}
	}
	offline(0, nil)
	site := "http://" + listener.Addr().String()
	l.args[2] = l.zuliprc(l.bot.Email, l.bot.Key, site)
	offline(0, nil)
	offline(0, nil, "--nats-url", "nats://"+listener.Addr().String())
	rc := l.args[2]
	l.args[2] = "/nonexistent/zuliprc"
	offline(1, []string{"zuliprc"})
	l.args[2] = rc
	offline(1, []string{"NATS settings"}, "--nats-creds", "/nonexistent/creds")
	if n := len(l.zulip.Requests()); n > 0 {
		t.Errorf("Zulip got %d requests", n)
	}
	if after := connections(); after != before {
		t.Errorf("NATS got %d connections", after-before)
	}
	if n := calls.Load(); n > 0 {
		t.Errorf("%d connections", n)
	}
	l.args = slices.DeleteFunc(l.args, func(arg string) bool { return arg == "--nats-url" || arg == l.nats.URL })
	offline(0, nil)
	if left, err := os.ReadDir(l.home); err != nil || len(left) != 1 {
		t.Errorf("%v is in the folder: %v", left, err)
	}
}

// An embedded server is not started for a look, and one that runs is pointed at.
func TestCheckWithoutURL(t *testing.T) {
	l := looks(t)
	l.args = slices.DeleteFunc(l.args, func(arg string) bool { return arg == "--nats-url" || arg == l.nats.URL })
	list, code := l.finds()
	if at := slices.IndexFunc(list, func(f finding) bool { return f.What == "NATS" }); code != 0 || at < 0 ||
		list[at].Result != "ok" || !strings.Contains(list[at].Seen, "embedded") {
		t.Errorf("exit code %d, %v", code, list)
	}
	if left, err := os.ReadDir(l.home); err != nil || len(left) != 1 {
		t.Errorf("%v is in the folder: %v", left, err)
	}
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(l.nats.URL, "nats://"))
	list, code = l.finds("--nats-port", port)
	if warned := with(list, "warn"); code != 0 || len(warned) != 1 ||
		!strings.Contains(warned[0].Remedy, "--nats-url nats://127.0.0.1:"+port) {
		t.Errorf("exit code %d, %v", code, list)
	}
}
