package service_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/health"
	"zulip-nats/service"
	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// patience is how long something may take that has to come.
const patience = 2 * time.Minute

// The binary is a nats-server too, for those tests that need users.
func TestMain(m *testing.M) {
	natstest.Main()
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dial is a connection as the program has it, which is up.
func dial(t testing.TB, cfg stream.ConnectConfig) (*stream.Conn, *natstest.Buffer) {
	t.Helper()
	conn, log := dialLater(t, cfg)
	natstest.Eventually(t, "a connection", conn.IsConnected)
	return conn, log
}

// dialLater is one that may not be up yet.
func dialLater(t testing.TB, cfg stream.ConnectConfig) (*stream.Conn, *natstest.Buffer) {
	t.Helper()
	log := &natstest.Buffer{}
	cfg.Log = zerolog.New(log)
	conn, err := stream.Connect(t.Context(), cfg)
	must(t, err)
	t.Cleanup(conn.Close)
	return conn, log
}

// realm is a status that could be one.
func realm(name string) bridge.Status {
	return bridge.Status{Realm: name, State: bridge.Following, Since: time.Now(), Leads: true, Leader: "one",
		LastEventID: 7, Counters: bridge.Counters{Events: map[string]uint64{"message": 3}}}
}

// start is an instance with some realms.
func start(conn *stream.Conn, log *natstest.Buffer, name, version string, realms ...bridge.Status) (stop func()) {
	return service.Start(conn, service.Config{Instance: name, Version: version,
		Realms: func() []bridge.Status { return realms }, Log: zerolog.New(log)})
}

// asked are the instances that answer, when as many do as there should be.
func asked(t testing.TB, conn *stream.Conn, want ...string) (found []service.Found) {
	t.Helper()
	natstest.Eventually(t, fmt.Sprintf("answers of %v", want), func() bool {
		var err error
		if found, err = service.Ask(t.Context(), conn, 5*time.Second, want); err != nil || len(found) != len(want) {
			return false
		}
		for _, name := range want {
			is := false
			for _, f := range found {
				is = is || f.Instance == name
			}
			if !is {
				return false
			}
		}
		return true
	})
	return found
}

// gathered asks as `nats micro` does, and waits for some answers of ours.
func gathered[T any](t testing.TB, nc *nats.Conn, subject string, n int) (all []T) {
	t.Helper()
	answers, err := nc.SubscribeSync(nc.NewInbox())
	must(t, err)
	defer func() { _ = answers.Unsubscribe() }()
	must(t, nc.PublishRequest(subject, answers.Subject, nil))
	for range n {
		m, err := answers.NextMsg(patience)
		must(t, err)
		var one T
		must(t, json.Unmarshal(m.Data, &one))
		all = append(all, one)
	}
	return all
}

// The protocol of micro services: what `nats micro` asks is answered, by each instance.
func TestProtocol(t *testing.T) {
	s := natstest.Start(t)
	one, log := dial(t, stream.ConnectConfig{URL: s.URL})
	start(one, log, "one", "v1.2.3-rc.1+meta", realm("acme"), realm("other"))
	two, log2 := dial(t, stream.ConnectConfig{URL: s.URL})
	start(two, log2, "two", "(devel)", realm("acme"))
	must(t, one.Flush())
	must(t, two.Flush())
	nc := s.Conn()
	ids := map[string]string{}
	for _, subject := range []string{"$SRV.PING", "$SRV.PING.zulip-nats"} {
		for _, p := range gathered[micro.Ping](t, nc, subject, 2) {
			ids[p.Metadata["instance"]] = p.ID
			want := map[string][2]string{"one": {"1.2.3-rc.1+meta", "acme,other"},
				"two": {"0.0.0", "acme"}}[p.Metadata["instance"]] // version, realms
			if p.Name != "zulip-nats" || p.Type != micro.PingResponseType || p.Version != want[0] ||
				p.Metadata["realms"] != want[1] {
				t.Errorf("%s answers %+v", subject, p)
			}
		}
	}
	if len(ids) != 2 || ids["one"] == ids["two"] {
		t.Fatalf("instances %v", ids)
	}
	for _, i := range gathered[micro.Info](t, nc, "$SRV.INFO.zulip-nats."+ids["one"], 1) {
		if i.ID != ids["one"] || len(i.Endpoints) != 1 ||
			i.Endpoints[0].Subject != "zulip-nats.status" || i.Endpoints[0].QueueGroup != "" {
			t.Errorf("INFO: %+v", i)
		}
	}
	asked(t, one, "one", "two")
	for _, stats := range gathered[micro.Stats](t, nc, "$SRV.STATS.zulip-nats", 2) {
		if len(stats.Endpoints) != 1 || stats.Endpoints[0].NumRequests == 0 || stats.Endpoints[0].NumErrors != 0 {
			t.Errorf("STATS: %+v", stats)
		}
	}
	// The endpoint gives what /status gives.
	for _, a := range gathered[map[string]any](t, nc, "zulip-nats.status", 2) {
		if a["instance"] == "one" && (a["ok"] != true || a["version"] != "v1.2.3-rc.1+meta" ||
			len(a["realms"].([]any)) != 2) {
			t.Errorf("the status is %v", a)
		}
	}
	if strings.Contains(log.String(), "status_unseen") {
		t.Errorf("the log says\n%s", log.String())
	}
}

// An instance is there as long as it is registered, whatever NATS does meanwhile.
func TestOutages(t *testing.T) {
	port := natstest.FreePort(t)
	url := fmt.Sprintf("nats://127.0.0.1:%d", port)
	conn, log := dialLater(t, stream.ConnectConfig{URL: url})
	stop := start(conn, log, "one", "1.2.3", realm("acme")) // and no NATS yet
	s := natstest.Start(t, func(o *server.Options) { o.Port = port })
	asks, _ := dial(t, stream.ConnectConfig{URL: url})
	asked(t, asks, "one")
	for range 2 {
		s.Restart()
		asked(t, asks, "one")
	}
	stop()
	natstest.Eventually(t, "nobody", func() bool {
		found, err := service.Ask(t.Context(), asks, time.Second, nil)
		return err == nil && len(found) == 0
	})
	// The end of the connection is the end of it, and stop may come later.
	stop = start(conn, log, "one", "1.2.3", realm("acme"))
	asked(t, asks, "one")
	conn.Close()
	stop()
	natstest.Eventually(t, "nobody", func() bool {
		found, err := service.Ask(t.Context(), asks, time.Second, nil)
		return err == nil && len(found) == 0
	})
	if strings.Contains(log.String(), "status_unseen") {
		t.Errorf("the log says\n%s", log.String())
	}
}

// rights starts a server with a user `bridge` of these permissions, and one who may do all.
// The URL for the user "" names none.
func rights(t testing.TB, permissions string) (url func(user string) string) {
	p := natstest.StartProcess(t, fmt.Sprintf("authorization { timeout: 120, users = [ { user: all, password: p }\n"+
		"{ user: bridge, password: p, permissions: { %s } } ] }", permissions))
	return func(user string) string {
		if user == "" {
			return p.URL
		}
		return strings.Replace(p.URL, "://", "://"+user+":p@", 1)
	}
}

// Without the rights the connection works as before, and it is said once.
func TestNoRights(t *testing.T) {
	t.Run("to subscribe", func(t *testing.T) {
		url := rights(t, `publish: ["work"], subscribe: ["_INBOX.>"]`)
		proxy := natstest.NewProxy(t, url(""))
		conn, log := dial(t, stream.ConnectConfig{URL: proxy.URL, User: "bridge", Password: "p"})
		defer start(conn, log, "one", "1.2.3", realm("acme"))()
		natstest.Eventually(t, "the line", func() bool { return strings.Contains(log.String(), "status_unseen") })
		proxy.CutAll()
		natstest.Eventually(t, "a new connection", func() bool { return strings.Contains(log.String(), "nats_back") })
		works(t, conn, url("all"))
		once(t, log, "NATS refuses to subscribe to ", "the right to subscribe to $SRV.> and zulip-nats.status")
		asks, _ := dial(t, stream.ConnectConfig{URL: url("all")})
		if found, err := service.Ask(t.Context(), asks, patience, nil); err != nil || len(found) > 0 {
			t.Errorf("who cannot subscribe answers: %v, %v", found, err)
		}
	})
	t.Run("to answer", func(t *testing.T) {
		url := rights(t, `publish: ["work"], subscribe: ["_INBOX.>", "$SRV.>", "zulip-nats.status"]`)
		conn, log := dial(t, stream.ConnectConfig{URL: url("bridge")})
		defer start(conn, log, "one", "1.2.3", realm("acme"))()
		must(t, conn.Flush())
		nc := natstest.Connect(t, url("all"))
		ask := func() {
			for _, subject := range []string{"$SRV.PING", "$SRV.INFO.zulip-nats", "zulip-nats.status"} {
				must(t, nc.PublishRequest(subject, nc.NewInbox(), nil))
			}
			must(t, nc.Flush())
		}
		ask()
		natstest.Eventually(t, "the line", func() bool { return strings.Contains(log.String(), "status_unseen") })
		// Who waits for an answer on this connection meanwhile gets it, and is not told that
		// a right is missing: the subject of the one that is refused looks like one of ours.
		answers, err := nc.Subscribe("work", func(m *nats.Msg) {
			before := conn.LastError()
			ask()
			natstest.Eventually(t, "a refusal", func() bool { return conn.LastError() != before })
			_ = m.Respond([]byte("{}"))
		})
		must(t, err)
		must(t, nc.Flush())
		_, err = conn.Ask(t.Context(), "work", nats.NewMsg("work"), patience)
		must(t, err)
		must(t, answers.Unsubscribe())
		once(t, log, "NATS refuses to answer on _INBOX.", "give our user allow_responses")
	})
}

// works sends a request over a connection, and answers it.
func works(t testing.TB, conn *stream.Conn, url string) {
	t.Helper()
	nc := natstest.Connect(t, url)
	_, err := nc.Subscribe("work", func(m *nats.Msg) { _ = m.Respond([]byte("{}")) })
	must(t, err)
	must(t, nc.Flush())
	_, err = conn.Ask(t.Context(), "work", nats.NewMsg("work"), patience)
	must(t, err)
}

// once looks that a log has one line about it, and none of a missing permission.
func once(t testing.TB, log *natstest.Buffer, words ...string) {
	t.Helper()
	text := log.String()
	if strings.Count(text, "status_unseen") != 1 || strings.Contains(text, "permission_missing") {
		t.Errorf("the log says\n%s", text)
	}
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("the log lacks %q:\n%s", w, text)
		}
	}
}

// The rights that the log names are enough, and so are those of who asks.
func TestEnoughRights(t *testing.T) {
	url := rights(t, `subscribe: ["_INBOX.>", "$SRV.>", "zulip-nats.status"], publish: ["zulip-nats.status"],
		allow_responses: true`)
	conn, log := dial(t, stream.ConnectConfig{URL: url("bridge")})
	defer start(conn, log, "one", "1.2.3", realm("acme"))()
	asked(t, conn, "one")
	if strings.Contains(log.String(), "status_unseen") || strings.Contains(log.String(), "permission_missing") {
		t.Errorf("the log says\n%s", log.String())
	}
}

func TestMayNotAsk(t *testing.T) {
	for permissions, says := range map[string]string{
		`subscribe: ["_INBOX.>"], publish: ["nothing"]`:          "the right to publish to zulip-nats.status",
		`subscribe: ["nothing"], publish: ["zulip-nats.status"]`: "the right to subscribe to its inbox",
	} {
		conn, _ := dial(t, stream.ConnectConfig{URL: rights(t, permissions)("bridge")})
		if found, err := service.Ask(t.Context(), conn, patience, nil); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("with %s: %v, %v; want %q", permissions, found, err, says)
		}
	}
}

// A status that is larger than a message may be is told without the ends of long reasons,
// then in brief, and one that is too large even so without the realms that are well.
func TestTooLarge(t *testing.T) {
	s := natstest.Start(t, func(o *server.Options) { o.MaxPayload = 8 << 10 })
	conn, log := dial(t, stream.ConnectConfig{URL: s.URL})
	wordy := realm("acme")
	wordy.Wrong = map[string]health.State{}
	for _, side := range []string{bridge.SideNATS, bridge.SideZulip, bridge.SideLease, bridge.SideObjects} {
		wordy.Wrong[side] = health.State{Since: time.Now(), Tries: 1, Text: side + strings.Repeat("é", 4000)}
	}
	stop := start(conn, log, "wordy", "1.2.3", wordy)
	f := asked(t, conn, "wordy")[0]
	if f.Trouble != "" || len(f.Realms) != 1 || len(f.Realms[0].Reasons) != 4 {
		t.Fatalf("%+v", f)
	}
	for _, r := range f.Realms[0].Reasons {
		if !strings.HasPrefix(r.Says, r.Side+"éé") || !strings.HasSuffix(r.Says, "é…") ||
			len(r.Says) > 310 || len(r.Says) < 290 {
			t.Errorf("the reason of %s: %q", r.Side, r.Says)
		}
	}
	stop()
	var many []bridge.Status
	for i := range 17 {
		one := realm(fmt.Sprint("realm-", i))
		one.Counters.Events, one.Counters.Rejected = map[string]uint64{"message": 5}, 7
		many = append(many, one)
	}
	stop = start(conn, log, "many", "1.2.3", many...)
	f = asked(t, conn, "many")[0]
	if f.Trouble != "" || !f.Brief || len(f.Realms) != len(many) {
		t.Errorf("%+v", f)
	}
	for _, r := range f.Realms {
		if !r.OK || r.State != "following" || r.Counters.Events["message"] != 5 || r.Counters.Rejected != 0 {
			t.Errorf("%+v", r)
		}
	}
	stop()
	for i := range 100 {
		many = append(many, realm(fmt.Sprint("other-", i)))
	}
	many[77].State, many[99].State = bridge.WaitingNATS, bridge.WaitingZulip
	defer start(conn, log, "more", "1.2.3", many...)()
	f = asked(t, conn, "more")[0]
	if len(f.Realms) < 3 || len(f.Realms) > 40 || !strings.Contains(f.Trouble, "of its 117 realms") ||
		!strings.Contains(f.Trouble, "max_payload is 8192") {
		t.Fatalf("%d realms, %s", len(f.Realms), f.Trouble)
	}
	if f.Realms[0].Realm != "other-60" || f.Realms[1].Realm != "other-82" || f.Realms[2].Realm != "realm-0" || f.OK {
		t.Errorf("the first are %s, %s, %s", f.Realms[0].Realm, f.Realms[1].Realm, f.Realms[2].Realm)
	}
}

// Whoever else answers there is passed over, and who answers twice counts once.
func TestStrangers(t *testing.T) {
	s := natstest.Start(t)
	conn, log := dial(t, stream.ConnectConfig{URL: s.URL})
	defer start(conn, log, "one", "1.2.3", realm("acme"))()
	nc := s.Conn()
	_, err := nc.Subscribe(service.Subject, func(m *nats.Msg) {
		for _, text := range []string{"", "hello", "{}", `{"instance":"x"}`, `[1]`, `{"instance":"two","realms":[]}`,
			`{"instance":"two","realms":[]}`} {
			_ = m.Respond([]byte(text))
		}
	})
	must(t, err)
	must(t, nc.Flush())
	asked(t, conn, "one", "two")
}

// Whoever asks says where the answer goes, and NATS does not look whether they could
// publish there. The bridge could: into its lease, its stream, the API of JetStream.
func TestAnswersGoToInboxesOnly(t *testing.T) {
	s := natstest.Start(t)
	conn, log := dial(t, stream.ConnectConfig{URL: s.URL})
	defer start(conn, log, "one", "1.2.3", realm("acme"))()
	must(t, conn.Flush())
	nc := s.Conn()
	questions := []string{"$SRV.PING", "$SRV.INFO.zulip-nats", "$SRV.STATS", service.Subject}
	var elsewhere []*nats.Subscription
	for _, reply := range []string{"$KV.zulip_bridge.realm.acme.claim", "zulip.acme.message", "$JS.API.STREAM.PURGE.ZULIP_acme",
		"$O.zulip_acme.M.x", "inbox.of.somebody"} {
		sub, err := nc.SubscribeSync(reply)
		must(t, err)
		elsewhere = append(elsewhere, sub)
		for _, question := range questions {
			must(t, nc.PublishRequest(question, reply, nil))
		}
	}
	for _, question := range questions { // behind the others, and so are the answers
		gathered[map[string]any](t, nc, question, 1)
	}
	for _, sub := range elsewhere {
		if n, _, err := sub.Pending(); n != 0 || err != nil {
			t.Errorf("%d answers went to %s, %v", n, sub.Subject, err)
		}
	}
}

// A burst of questions is mostly passed over, and does no harm behind it.
func TestManyQuestions(t *testing.T) {
	s := natstest.Start(t)
	conn, log := dial(t, stream.ConnectConfig{URL: s.URL})
	defer start(conn, log, "one", "1.2.3", realm("acme"))()
	must(t, conn.Flush())
	nc := s.Conn()
	answers, err := nc.SubscribeSync(nc.NewInbox())
	must(t, err)
	began := time.Now()
	const questions = 100_000
	for range questions {
		must(t, nc.PublishRequest(service.Subject, answers.Subject, nil))
	}
	asked(t, conn, "one")
	n, _, err := answers.Pending()
	if most := 100 * (2 + int(time.Since(began).Seconds())); n == 0 || n > most || err != nil {
		t.Errorf("%d of %d questions were answered, %v; want %d at most", n, questions, err, most)
	}
	if text := log.String(); strings.Contains(text, "slow consumer") {
		t.Errorf("the log says\n%s", text)
	}
}

// Another account imports the service, and hears of all instances.
func TestAnotherAccount(t *testing.T) {
	p := natstest.StartProcess(t, `accounts {
		BRIDGES { users: [ { user: bridge, password: p } ],
			exports: [ { service: "zulip-nats.status", response: stream } ] }
		PEOPLE { users: [ { user: asks, password: p } ],
			imports: [ { service: { account: BRIDGES, subject: "zulip-nats.status" } } ] }
	}`)
	one, log := dial(t, stream.ConnectConfig{URL: p.URL, User: "bridge", Password: "p"})
	defer start(one, log, "one", "1.2.3", realm("acme"))()
	two, log := dial(t, stream.ConnectConfig{URL: p.URL, User: "bridge", Password: "p"})
	defer start(two, log, "two", "1.2.3", realm("acme"))()
	asks, _ := dial(t, stream.ConnectConfig{URL: p.URL, User: "asks", Password: "p"})
	asked(t, asks, "one", "two")
}

// Who leads and stores a state is asked for a new one, of the realms that are named; who
// does neither has no such endpoint, or says nothing.
func TestAskState(t *testing.T) {
	s := natstest.Start(t)
	asks, _ := dial(t, stream.ConnectConfig{URL: s.URL})
	if answers, err := service.AskState(t.Context(), asks, patience, nil); err != nil || len(answers) != 0 {
		t.Errorf("nobody is there: %v, %v", answers, err)
	}
	plain, log := dial(t, stream.ConnectConfig{URL: s.URL})
	defer start(plain, log, "plain", "1.2.3", realm("acme"))()
	must(t, plain.Flush())
	if answers, err := service.AskState(t.Context(), asks, patience, nil); err != nil || len(answers) != 0 {
		t.Errorf("nobody stores a state: %v, %v", answers, err)
	}

	wanted := make(chan string, 100)
	one := func(name string, leads bool, realms ...string) {
		t.Helper()
		var all []bridge.Status
		for _, r := range realms {
			status := realm(r)
			status.Leads = leads
			all = append(all, status)
		}
		conn, log := dial(t, stream.ConnectConfig{URL: s.URL})
		t.Cleanup(service.Start(conn, service.Config{Instance: name, Version: "1.2.3",
			Realms:   func() []bridge.Status { return all },
			AskState: func(realm string) bool { wanted <- name + " " + realm; return realm != "none" },
			Log:      zerolog.New(log)}))
		must(t, conn.Flush())
	}
	one("leads", true, "acme", "other", "none")
	one("stands by", false, "acme", "other")
	for _, realms := range [][]string{{"acme"}, {"acme", "other"}} {
		answers, err := service.AskState(t.Context(), asks, patience, realms)
		if err != nil || fmt.Sprint(answers) != fmt.Sprint([]service.StateAnswer{{Instance: "leads", Asked: realms}}) {
			t.Errorf("%v: %v, %v", realms, answers, err)
		}
		for _, r := range realms {
			if w := <-wanted; w != "leads "+r {
				t.Errorf("asked is %s", w)
			}
		}
	}
	nc := s.Conn()
	// All of them, and what is no question.
	for _, a := range gathered[service.StateAnswer](t, nc, service.StateSubject, 2) {
		if want := map[string]int{"leads": 2, "stands by": 0}[a.Instance]; len(a.Asked) != want {
			t.Errorf("%+v", a)
		}
	}
	for range 3 {
		<-wanted
	}
	reply, err := nc.SubscribeSync(nc.NewInbox())
	must(t, err)
	must(t, nc.PublishRequest(service.StateSubject, reply.Subject, []byte("{")))
	must(t, nc.PublishRequest(service.StateSubject, "zulip.acme.message", nil)) // no inbox
	m, err := reply.NextMsg(patience)
	if must(t, err); !strings.Contains(string(m.Data), `"asked":[]`) || len(wanted) != 0 {
		t.Errorf("%s, %d are asked", m.Data, len(wanted))
	}
	for _, i := range gathered[micro.Info](t, nc, "$SRV.INFO.zulip-nats", 3) {
		if want := map[string]int{"plain": 1, "leads": 2, "stands by": 2}[i.Metadata["instance"]]; len(i.Endpoints) != want {
			t.Errorf("%+v", i)
		}
	}
	for _, i := range gathered[micro.Stats](t, nc, "$SRV.STATS.zulip-nats", 3) {
		if n := len(i.Endpoints); i.Metadata["instance"] == "plain" && n != 1 || n == 2 && i.Endpoints[1].NumRequests == 0 {
			t.Errorf("%+v", i)
		}
	}
}
