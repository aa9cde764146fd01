package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"

	"zulip-nats/monitor"
	"zulip-nats/service"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// looked is what `status --json` says, with its exit code.
func (s *story) looked(args ...string) (r statusReport, e ended) {
	s.Helper()
	e = s.runs(append([]string{"status", "--json"}, args...)...)
	if e.stdout != "" {
		if err := json.Unmarshal([]byte(e.stdout), &r); err != nil {
			s.Fatalf("status %v: %v\n%s", args, err, e.stdout)
		}
	}
	return r, e
}

// A user's afternoon: two instances of one realm, one that follows another realm, and
// what becomes of them.
func TestStatus(t *testing.T) {
	s := begin(t)
	zulip := &zulipsim.Server{}
	site := zulip.Start(t)
	bot := zulip.Account("bridge-bot@example.com")
	file := s.zuliprc(bot.Email, bot.Key, site)
	port := natstest.FreePort(t)
	server := natstest.Start(t, func(o *natsserver.Options) { o.Port = port })
	t.Setenv("NATS_URL", server.URL)
	t.Setenv("ZULIP_NATS_TIMEOUT", "500ms") // what comes later is waited for

	s.shows(1, nil, []string{"nobody answers on zulip-nats.status at " + server.URL, "zulip-nats run"})
	s.shows(1, []string{"REALM", "acme - - not seen - - -"}, []string{"not served: acme;"}, "--realm", "acme")

	leads := s.starts("run", "--zuliprc", file, "--realm", "acme")
	leads.waits("a leader", func() bool { r, _ := s.looked(); return r.OK })
	waits := s.starts("run", "--zuliprc", file, "--realm", "acme")
	var r statusReport
	waits.waits("a standby", func() bool {
		var e ended
		r, e = s.looked()
		return r.OK && e.code == 0 && len(r.Realms[0].Instances) == 2 && r.Realms[0].Instances[1].State == "standby" &&
			r.Realms[0].Instances[0].PerSecond != nil
	})
	first, second := r.Realms[0].Instances[0], r.Realms[0].Instances[1]
	if len(r.Realms) != 1 || !r.Realms[0].Served || !first.Leads || first.State != "following" ||
		first.Instance != first.Leader || first.QueueExpires == nil || second.Leads || second.Leader != first.Instance ||
		second.PerSecond != nil || second.Instance == first.Instance || first.Version != readBuild().version {
		t.Errorf("the report is %+v", r)
	}
	title, one, two := "REALM INSTANCE ROLE STATE RATE LAST EVENT QUEUE ENDS", "acme "+first.Instance+" leads following ",
		"acme "+second.Instance+" stands by standby - - -"
	// A rate takes two answers in half a second, and the poll that renewed the queue may be
	// older than a minute on a slow machine: then the next one is waited for.
	var e ended
	waits.waits("times and a rate", func() bool {
		e = s.shows(0, []string{title, one, two}, nil)
		return strings.Contains(e.stdout, " ago ") && strings.Contains(e.stdout, "/s ") &&
			(strings.Contains(e.stdout, "  in 23 h 59 min\n") || strings.Contains(e.stdout, "  in 1 d 0 h\n"))
	})

	// A realm whose NATS is well and whose Zulip is not: it is there, and not served.
	s.starts("run", "--zuliprc", s.nobody(), "--realm", "other")
	e = s.shows(1, []string{title, one, two, "other ", "other ", "other "}, []string{"not served: other;"})
	if !strings.Contains(e.stdout, ": Zulip does not serve what is needed\n") || !strings.Contains(e.stdout, ": zulip: ") {
		t.Errorf("it is not said why:\n%s", e.stdout)
	}
	s.shows(0, []string{title, one, two}, nil, "--realm", "acme")
	s.shows(1, []string{title, "other "}, []string{"not served: other, third;"}, "--realm", "other", "--realm", "third")
	t.Setenv("ZULIP_NATS_REALM", "acme")
	s.shows(0, []string{title, one, two}, nil)

	// The one that leads ends, and the other one goes on.
	leads.stops()
	s.shows(0, []string{title, "acme " + second.Instance + " leads "}, nil)
}

// shows runs `status` until it ends so: with lines that begin so, one blank being between
// two words, and with words on stderr. Where it ends with 0 there are no other lines.
func (s *story) shows(code int, begin, words []string, args ...string) (e ended) {
	s.Helper()
	is := func() bool {
		all := strings.FieldsFunc(e.stdout, func(r rune) bool { return r == '\n' })
		if e.code != code || len(all) < len(begin) || code == 0 && len(all) > len(begin) {
			return false
		}
		for i := range begin {
			if !strings.HasPrefix(strings.Join(strings.Fields(all[i]), " ")+" ", begin[i]) {
				return false
			}
		}
		for _, w := range words {
			if !strings.Contains(e.stderr, w) {
				return false
			}
		}
		return true
	}
	for end := time.Now().Add(2 * time.Minute); ; {
		if e = s.runs(append([]string{"status"}, args...)...); is() {
			return e
		}
		if time.Now().After(end) {
			s.Fatalf("status %v never ends with %d, %q and %q; the last was %d:\n%s%s", args, code, begin, words,
				e.code, e.stdout, e.stderr)
		}
	}
}

// --watch goes on through an outage of NATS, and a stop is a good end.
func TestStatusWatches(t *testing.T) {
	s := begin(t)
	zulip := &zulipsim.Server{}
	site := zulip.Start(t)
	bot := zulip.Account("bridge-bot@example.com")
	port := natstest.FreePort(t)
	t.Setenv("NATS_URL", fmt.Sprintf("nats://127.0.0.1:%d", port))
	s.starts("run", "--zuliprc", s.zuliprc(bot.Email, bot.Key, site), "--realm", "acme")
	w := s.starts("status", "--watch", "--realm", "acme")
	j := s.starts("status", "--watch", "--json", "--timeout", "200ms")
	begun := func(p *started, words string) func() bool {
		return func() bool { return strings.Contains(p.out.String(), words) }
	}
	w.waits("no NATS", begun(w, "cannot be reached"))
	server := natstest.Start(t, func(o *natsserver.Options) { o.Port = port })
	w.waits("a rate", func() bool { return strings.Contains(w.out.String(), "/s  ") })
	before := strings.Count(w.out.String(), "cannot be reached")
	server.Stop()
	w.waits("no NATS again", func() bool { return strings.Count(w.out.String(), "cannot be reached") > before })
	server.Restart()
	before = len(w.out.String())
	w.waits("a rate again", func() bool { return strings.Contains(w.out.String()[before:], "/s  ") })
	if strings.Contains(w.out.String(), "\x1b") {
		t.Error("no terminal, and it draws")
	}
	j.waits("a document", begun(j, `"stored_per_second"`))
	for _, p := range []*started{w, j} {
		if code := p.stops(); code != 0 {
			t.Errorf("exit code %d:\n%s%s", code, p.out.String(), p.err.String())
		}
	}
	for line := range strings.Lines(j.out.String()) {
		if err := json.Unmarshal([]byte(line), new(statusReport)); err != nil {
			t.Errorf("%v: %s", err, line)
		}
	}
}

func TestStatusCannotLook(t *testing.T) {
	s := begin(t)
	t.Setenv("ZULIP_NATS_NATS_PORT", freePort(t)) // where no embedded server is
	s.runs("status", "--timeout", "200ms").want(t, 1, "NATS at nats://127.0.0.1:", "cannot be reached", "start the server")
	s.runs("status", "--nats-creds", s.home+"/none.creds").want(t, 78, "none.creds")
	s.runs("status", "--realm", "a.b").want(t, 2, "--realm (or ZULIP_NATS_REALM)")
	s.runs("status", "--timeout", "1ms").want(t, 2, "--timeout (or ZULIP_NATS_TIMEOUT)")
	s.runs("status", "--zuliprc", "x").want(t, 2, "--zuliprc")
	server := natstest.Start(t, func(o *natsserver.Options) { o.Username, o.Password = "u", someToken })
	s.runs("status", "--nats-url", server.URL, "--nats-user", "u", "--nats-password", "wrong", "--timeout", "1m").
		want(t, 78, "refuses what we sign in with", "correct the user and password").lacks(t, someToken)
	s.runs("status", "--nats-url", server.URL, "--nats-user", "u", "--nats-password", someToken, "--timeout", "1m").
		want(t, 1, "nobody answers")
}

// What others say of themselves does not draw on the terminal, and what is known is told.
func TestStatusTable(t *testing.T) {
	now := time.Now()
	at := func(d time.Duration) *time.Time { then := now.Add(d); return &then }
	rate := 12.345
	r := statusReport{Time: now, Realms: []statusRealm{{Realm: "acme", Instances: []statusInstance{
		{Instance: "a", PerSecond: &rate, RealmReport: monitor.RealmReport{Leads: true, OK: true, State: "following",
			LastStored: at(-90 * time.Second), QueueExpires: at(90 * time.Minute)}},
		{Instance: "b\x1b[2J", RealmReport: monitor.RealmReport{State: "waiting\n-nats", Says: "NATS\x07 is away",
			Leads: true, LastStored: at(time.Second), QueueExpires: at(-time.Second),
			Reasons: []monitor.Reason{{Side: "nats", Says: "no\tanswer"}}}},
	}}}, Silent: []statusSilent{{"c", "it is too large"}}}
	var out strings.Builder
	r.table(&out)
	want := `REALM  INSTANCE  ROLE   STATE          RATE    LAST EVENT      QUEUE ENDS
acme   a         leads  following      12.3/s  1 min 30 s ago  in 1 h 30 min
acme   b[2J      leads  waiting -nats  -       0 s ago         overdue
acme b[2J: NATS is away
acme b[2J: nats: no answer
c: it is too large
`
	if out.String() != want {
		t.Errorf("the table is\n%swant\n%s", out.String(), want)
	}
}

// Anybody on the bus may answer: a name that is no realm's is passed over, and what an
// error says does not draw on the terminal.
func TestStatusOfStrangers(t *testing.T) {
	var l looker
	answer := service.Answer{Instance: "a", Report: monitor.Report{Realms: []monitor.RealmReport{
		{Realm: "x\x1b]0;owned\a\nzulip-nats: all is well"}, {Realm: "acme"}}}}
	if r := l.report([]service.Found{{Answer: answer}}); len(r.Realms) != 1 || r.Realms[0].Realm != "acme" {
		t.Errorf("realms %+v", r.Realms)
	}
	var out strings.Builder
	(&app{stderr: &out}).report(errors.New("stream \x1b[2J\u009b\u202e is\ngone"))
	if want := "zulip-nats: stream [2J is\nzulip-nats: gone\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	if got := summary([]byte("acme: \x1b[2Jits loop turns\n"), false); got != "acme: [2Jits loop turns" {
		t.Errorf("health says %q", got)
	}
}

// The rate is that of one instance between two looks, and who does not lead has none.
func TestStatusRate(t *testing.T) {
	begun := time.Now()
	look := func(instance string, leads bool, after time.Duration, stored uint64) []service.Found {
		return []service.Found{{Answer: service.Answer{Instance: instance, Report: monitor.Report{Time: begun.Add(after),
			Realms: []monitor.RealmReport{{Realm: "acme", Leads: leads, Counters: monitor.CountersReport{
				Events: map[string]uint64{"message": stored - 1}, Refilled: 1}}}}}}}
	}
	var l looker
	for i, step := range []struct {
		found []service.Found
		want  float64 // -1: none
	}{
		{look("a", true, 0, 10), -1},
		{look("a", true, 2*time.Second, 13), 1.5},
		{look("a", true, 3*time.Second, 13), 0},
		{look("a", true, 3*time.Second, 13), -1}, // no time between
		{look("b", true, 4*time.Second, 20), -1},
		{look("b", false, 5*time.Second, 20), -1},
		{look("b", true, 6*time.Second, 24), 4},
	} {
		got := -1.0
		if r := l.report(step.found); r.Realms[0].Instances[0].PerSecond != nil {
			got = *r.Realms[0].Instances[0].PerSecond
		}
		if got != step.want {
			t.Errorf("look %d: a rate of %v, want %v", i, got, step.want)
		}
	}
}
