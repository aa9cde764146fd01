package cli

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"

	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// fetched is what an endpoint answers; 0 if nobody does.
func fetched(t testing.TB, url string) (code int, body string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		return 0, ""
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// A run that is watched, from its start without NATS to its end.
func TestHTTP(t *testing.T) {
	s := begin(t)
	zulip := &zulipsim.Server{}
	site := zulip.Start(t)
	bot := zulip.Account("bridge-bot@example.com")
	file := s.zuliprc(bot.Email, bot.Key, site)
	port := natstest.FreePort(t)
	address := "127.0.0.1:" + freePort(t)
	url := "http://" + address
	t.Setenv("ZULIP_NATS_HTTP", address)
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // no matter of ours

	s.runs("health").want(t, 1, address+"/healthz does not answer", "--http")
	p := s.starts("run", "--zuliprc", file, "--realm", "acme", "--nats-url", fmt.Sprintf("nats://127.0.0.1:%d", port),
		"--nats-user", "bridge", "--nats-password", someToken)
	p.waits("an answer", func() bool { code, _ := fetched(t, url+"/healthz"); return code == 200 })
	p.waits("a state", func() bool {
		code, says := fetched(t, url+"/status")
		return code == 503 && strings.Contains(says, `"waiting-nats"`)
	})
	if code, says := fetched(t, url+"/readyz"); code != 503 {
		t.Errorf("without NATS /readyz says %d %s", code, says)
	}
	s.health(0, "acme: its loop turns")
	s.health(1, "acme: waiting-nats, ", "--deep")
	server := natstest.Start(t, func(o *natsserver.Options) { o.Port = port })
	p.waits("a realm that is well", func() bool { code, _ := fetched(t, url+"/status"); return code == 200 })
	if code, says := fetched(t, url+"/readyz"); code != 200 {
		t.Errorf("/readyz says %d %s", code, says)
	}
	s.health(0, "acme: following, events are polled and stored", "--deep")
	zulip.SendMessage(zulipsim.Message{Channel: "announce", Topic: "the xyzzy topic", Content: "say xyzzy"})
	p.waits("a message that is counted", func() bool {
		_, says := fetched(t, url+"/metrics")
		return strings.Contains(says, `zulip_nats_events_stored_total{realm="acme",type="message"} 1`) &&
			strings.Contains(says, `zulip_nats_leader{realm="acme"} 1`)
	})
	for _, path := range []string{"/", "/page.json", "/healthz", "/readyz", "/status", "/metrics"} {
		_, says := fetched(t, url+path)
		for _, secret := range []string{bot.Key, someToken, "xyzzy"} {
			if strings.Contains(says, secret) {
				t.Errorf("%s shows %q:\n%s", path, secret, says)
			}
		}
	}
	// A standby is as well as who leads.
	other := "127.0.0.1:" + freePort(t)
	q := s.starts("run", "--zuliprc", file, "--realm", "acme", "--nats-url", server.URL, "--http", other)
	q.waits("a standby", func() bool {
		code, says := fetched(t, "http://"+other+"/status")
		return code == 200 && strings.Contains(says, `"standby"`)
	})
	s.health(0, "acme: standby, this instance stands by, ", "--deep", "--http", other)
	if code, says := fetched(t, "http://"+other+"/readyz"); code != 200 {
		t.Errorf("/readyz of the standby says %d %s", code, says)
	}
	for _, one := range []*started{p, q} {
		if code := one.stops(); code != 0 {
			t.Errorf("exit code %d:\n%s", code, one.err.String())
		}
		if n := strings.Count(one.err.String(), "/healthz"); n != 1 || strings.Contains(one.err.String(), "password") {
			t.Errorf("it is said %d times what is served, or warned of 127.0.0.1:\n%s", n, one.err.String())
		}
	}
	if code, _ := fetched(t, url+"/healthz"); code != 0 {
		t.Error("it is served when the program has ended")
	}
}

// NATS that goes away is told though nothing happens that could be stored, and no poll
// ends.
func TestHTTPOfAnIdleRealm(t *testing.T) {
	s := begin(t)
	zulip := &zulipsim.Server{Heartbeat: func() time.Duration { return time.Hour }}
	site := zulip.Start(t)
	bot := zulip.Account("bridge-bot@example.com")
	server := natstest.Start(t)
	address := "127.0.0.1:" + freePort(t)
	p := s.starts("run", "--zuliprc", s.zuliprc(bot.Email, bot.Key, site), "--realm", "acme", "--nats-url", server.URL,
		"--no-lease", "--http", address)
	says := func(code int, state string) {
		t.Helper()
		p.waits(state, func() bool {
			got, text := fetched(t, "http://"+address+"/status")
			return got == code && strings.Contains(text, `"`+state+`"`)
		})
	}
	says(200, "following")
	server.Stop()
	says(503, "waiting-nats")
	server.Restart()
	says(200, "following")
}

// health asks, and compares the beginning of the one line that it says.
func (s *story) health(code int, says string, args ...string) {
	s.Helper()
	e := s.runs(append([]string{"health"}, args...)...)
	for end := time.Now().Add(2 * time.Minute); strings.Contains(e.stderr, "no answer for ") && time.Now().Before(end); {
		e = s.runs(append([]string{"health"}, args...)...) // a busy machine
	}
	text := e.stdout + strings.TrimPrefix(e.stderr, "zulip-nats: ")
	if e.code != code || !strings.HasPrefix(text, says) || strings.Count(text, "\n") != 1 || (e.stdout == "") != (code != 0) {
		s.Errorf("health %v: exit code %d, stdout %q, stderr %q", args, e.code, e.stdout, e.stderr)
	}
}

// Without the option nothing is served; to whoever can reach it only with a warning.
func TestHTTPIsAskedFor(t *testing.T) {
	s := begin(t)
	for address, warned := range map[string]bool{"": false, ":" + freePort(t): true} {
		t.Setenv("ZULIP_NATS_HTTP", address)
		p := s.starts("run", "--zuliprc", s.nobody(), "--nats-url", "nats://127.0.0.1:1")
		p.waits("the start", func() bool { return strings.Contains(p.err.String(), "NATS is not there") })
		p.stops()
		if strings.Contains(p.err.String(), "/healthz") != warned ||
			strings.Contains(p.err.String(), "without a password") != warned {
			t.Errorf("served at %q:\n%s", address, p.err.String())
		}
	}
}

func TestHTTPCannotBeServed(t *testing.T) {
	s := begin(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	run := func(address string) ended {
		return s.runs("run", "--zuliprc", s.nobody(), "--nats-port", freePort(t), "--http", address)
	}
	taken := l.Addr().String()
	run(taken).want(t, 1, "--http (or ZULIP_NATS_HTTP) cannot be served at "+taken, "address already in use",
		"or choose another port")
	run("192.0.2.1:8080").want(t, 1, "192.0.2.1:8080", "choose an address of this machine")
	for _, wrong := range []string{"8080", "localhost", "http://127.0.0.1:8080", "127.0.0.1:", "127.0.0.1:99999", ":-1",
		"::1:8080", "127.0.0.1:http", "off"} {
		run(wrong).want(t, 2, "--http (or ZULIP_NATS_HTTP): ", "write it like 127.0.0.1:8080")
		s.runs("health", "--http", wrong).want(t, 2, "--http (or ZULIP_NATS_HTTP): ", "write it like 127.0.0.1:8080")
	}
}

// Where to ask is where it is served, and what answers there may be something else.
func TestHealthAsks(t *testing.T) {
	s := begin(t)
	s.runs("health").want(t, 2, "--http (or ZULIP_NATS_HTTP)")
	for address, want := range map[string]string{":80": "127.0.0.1:80", "0.0.0.0:80": "127.0.0.1:80", "[::]:80": "[::1]:80",
		"10.1.2.3:80": "10.1.2.3:80", "localhost:80": "localhost:80"} {
		if got := reachable(address); got != want {
			t.Errorf("%s is asked at %s, want %s", address, got, want)
		}
	}
	answer, code := "", 200
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = fmt.Fprint(w, answer)
	}))
	defer other.Close()
	address := strings.TrimPrefix(other.URL, "http://")
	for _, answer = range []string{"", "ok\n", "<html>\n", `{"ok": true}`} {
		s.runs("health", "--http", address).want(t, 1, "something else has this port")
		s.runs("health", "--deep", "--http", address).want(t, 1, "something else has this port")
	}
	answer, code = "acme: its loop hangs\nother: its loop turns\n", 503
	s.runs("health", "--http", address).want(t, 1, "zulip-nats: acme: its loop hangs; other: its loop turns\n")
	code = 404
	s.runs("health", "--http", address).want(t, 1, "answers 404")
	answer, code = `{"realms":[{"realm":"acme","state":"waiting-nats","says":"a","reasons":[{"side":"nats","says":"b"}]},`+
		`{"realm":"other","state":"following","says":"c"}]}`, 503
	s.runs("health", "--deep", "--http", address).want(t, 1,
		"zulip-nats: acme: waiting-nats, a (nats: b); other: following, c\n")
}
