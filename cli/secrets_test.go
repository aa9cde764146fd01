package cli

import (
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"zulip-nats/stream/natstest"
)

const (
	someKey   = "abcdefghijklmnopqrstuvwxyzABCDEF" // of nobody's zuliprc
	someToken = "hunter2"
)

// clipboard is what people paste where something else belongs, each with the part of it
// that is secret.
func clipboard(t testing.TB) map[string]struct{ text, secret string } {
	t.Helper()
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]struct{ text, secret string }{
		"a seed":     {string(seed), string(seed)},
		"an API key": {"ABCDEFGHIJKLMNOPabcdefghijklmnop", "ABCDEFGHIJKLMNOP"},
		"a token":    {"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "9f86d081"},
		"a zuliprc":  {"[api]\nemail=bot@example.com\nkey=ZYXWVUTSRQPONMLKzyxwvutsrqponmlk\nsite=https://chat.example.com\n", "ZYXWVUT"},
		"a key in PEM": {"-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEH\n-----END PRIVATE " +
			"KEY-----\n", "MIGHAgEAMBMGB"},
		"a credentials": {"-----BEGIN NATS USER JWT-----\neyJ0eXAiOiJKV1QifQ.eyJqdGkiOiJ\n------END NATS USER " +
			"JWT------\n\n" + string(seed), string(seed)},
	}
}

// says runs the program until it ends or has spoken of NATS, and returns all that it
// wrote.
func (s *story) says(args ...string) string {
	s.Helper()
	p := s.starts(args...)
	text := func() string { return p.out.String() + p.err.String() }
	ended := false
	p.waits("a word", func() bool {
		select {
		case code := <-p.code:
			p.code <- code
			ended = true
		default:
		}
		return ended || strings.Contains(text(), "NATS is not there") ||
			strings.Contains(text(), "connected to NATS") ||
			strings.Contains(text(), "NATS refuses our credentials") ||
			strings.Contains(text(), "connecting to NATS fails") || strings.Contains(text(), "with NATS fails") ||
			strings.Contains(text(), "offers no TLS")
	})
	p.stops()
	return text()
}

// checks is what `check` writes with the arguments of `run`.
func (s *story) checks(args ...string) string {
	s.Helper()
	e := s.runs(append([]string{"check"}, args[1:]...)...)
	return e.stdout + e.stderr
}

// Whatever is pasted into whichever option, by its flag or by any of its variables, is
// not shown if it is a key.
func TestKeysInTheWrongPlace(t *testing.T) {
	s := begin(t)
	nats := natstest.Start(t).URL
	c := defaults()
	clip := clipboard(t)
	nobody := s.nobody()
	// Four at a time, where no variable is set and no embedded server has the folder.
	var flags sync.WaitGroup
	atOnce := make(chan struct{}, 4)
	var later []func()
	for _, o := range c.options() {
		for n, what := range slices.Sorted(maps.Keys(clip)) {
			args := []string{"run", "--log-level", "trace", "--no-lease", "--delete-queue=false", "--nats-port",
				freePort(t)}
			if o.Name != "state-dir" && o.Name != "nats-url" { // with them it is its own server's turn
				args = append(args, "--nats-url", nats)
			}
			switch o.Name {
			case "nats-cert":
				args = append(args, "--nats-key", "/nonexistent/key.pem")
			case "nats-key":
				args = append(args, "--nats-cert", "/nonexistent/cert.pem")
			}
			if o.Name != "zuliprc" {
				args = append(args, "--zuliprc", nobody)
			}
			places := append([]string{"--" + o.Name}, o.EnvVars...)
			place := places[n%len(places)] // each kind by another way
			try := func() {
				t.Run(o.Name+"/"+what+" in "+place, func(t *testing.T) {
					s := &story{T: t, home: s.home}
					if strings.HasPrefix(place, "--") {
						args = append(args, place+"="+clip[what].text)
					} else {
						t.Setenv(place, clip[what].text)
					}
					if text := s.says(args...); strings.Contains(text, clip[what].secret) || text == "" {
						t.Errorf("it says\n%s", text)
					}
					if text := s.checks(args...); strings.Contains(text, clip[what].secret) || text == "" {
						t.Errorf("check says\n%s", text)
					}
				})
			}
			if !strings.HasPrefix(place, "--") || !slices.Contains(args, "--nats-url") {
				later = append(later, try)
				continue
			}
			flags.Go(func() {
				atOnce <- struct{}{}
				defer func() { <-atOnce }()
				try()
			})
		}
	}
	flags.Wait()
	for _, try := range later {
		try()
	}
	for _, place := range []string{"ZULIP_CONFIG", "ZULIP_EMAIL", "ZULIP_API_KEY", "ZULIP_SITE", "ZULIP_CERT",
		"ZULIP_CERT_KEY", "ZULIP_CERT_BUNDLE",
		"ZULIP_ALLOW_INSECURE"} {
		for what, it := range clip {
			if place == "ZULIP_API_KEY" && what == "an API key" {
				continue // where it belongs
			}
			t.Run(place+"/"+what, func(t *testing.T) {
				s := &story{T: t, home: s.home}
				args := []string{"run", "--log-level", "trace", "--no-lease", "--nats-url", nats}
				if place != "ZULIP_CONFIG" {
					args = append(args, "--zuliprc", s.nobody())
				}
				if place == "ZULIP_CERT_KEY" {
					t.Setenv("ZULIP_CERT", s.home)
				}
				t.Setenv(place, it.text)
				if text := s.says(args...); strings.Contains(text, it.secret) || text == "" {
					t.Errorf("it says\n%s", text)
				}
				if text := s.checks(args...); strings.Contains(text, it.secret) || text == "" {
					t.Errorf("check says\n%s", text)
				}
			})
		}
	}
	for _, it := range clip {
		for _, args := range [][]string{{it.text}, {"run", it.text}, {"run", "--" + it.text}, {"help", it.text},
			{"--" + it.text}, {"--=" + it.text}, {"check", it.text}, {"check", "--" + it.text},
			{"check", "--wait=" + it.text}, {"check", "--json=" + it.text}, {"check", "--offline=" + it.text}} {
			s.runs(args...).want(t, 2).lacks(t, it.secret)
		}
	}
	s.runs("run", "--nats-user", "bridge", "--nats-password", "hunter1", "hunter2").want(t, 2,
		"quotes").lacks(t, "hunter")
}

// Where a password or a token belongs, it is in no line either, whether it is right or
// wrong.
func TestPasswordsAreInNoLine(t *testing.T) {
	s := begin(t)
	const password = "s3cr3t/p@ss:word"
	users := natstest.Start(t, func(o *server.Options) { o.Username, o.Password = "bridge", password })
	tokens := natstest.Start(t, func(o *server.Options) { o.Authorization = someToken })
	web := natstest.Start(t, func(o *server.Options) {
		o.Username, o.Password = "bridge", password
		o.Websocket = server.WebsocketOpts{Host: "127.0.0.1", Port: natstest.FreePort(t), NoTLS: true}
	})
	host := func(u string) string { return strings.TrimPrefix(u, "nats://") }
	ws := strings.TrimPrefix(web.Server().WebsocketURL(), "ws://")
	both := url.UserPassword("bridge", password).String()
	nowhere := "127.0.0.1:1"
	for name, test := range map[string]struct {
		url  string
		says string
	}{
		"user and password": {"nats://" + both + "@" + host(users.URL), "connected to NATS"},
		"no scheme":         {both + "@" + host(users.URL), "connected to NATS"},
		"wrong password":    {"nats://bridge:hunter2@" + host(users.URL), "refuses our credentials"},
		"token":             {"nats://" + someToken + "@" + host(tokens.URL), "connected to NATS"},
		"wrong token":       {"nats://hunter2x@" + host(tokens.URL), "refuses our credentials"},
		"WebSocket":         {"ws://" + both + "@" + ws, "connected to NATS"},
		"WebSocket, path":   {"ws://" + both + "@" + ws + "/hunter2?t=hunter2", "NATS"},
		"WebSocket, TLS":    {"wss://hunter2@" + ws + "/", "NATS"},
		"TLS":               {"tls://bridge:hunter2@" + host(users.URL), "the server offers no TLS"},
		"nobody there":      {"nats://hunter2@" + nowhere, "NATS is not there"},
		"several": {"nats://hunter2@" + nowhere + ", nats://bridge:hunter2@" + nowhere + "," + both + "@" +
			host(users.URL), "connected to NATS"},
		"one of several wrong": {"nats://hunter2@" + nowhere + ",nats://bridge:hunter2", "address 2 of 2"},
		"no host":              {"nats://bridge:hunter2", "no address"},
		"no host behind it":    {"nats://bridge:hunter2@", "names no host"},
		"raw signs":            {"nats://bridge:hunter2/#?@" + host(users.URL), "%2F"},
		"another scheme":       {"https://bridge:hunter2@" + host(users.URL), "scheme"},
		"bad port":             {"nats://bridge:hunter2@127.0.0.1:99999", "port"},
		"bad percent":          {"nats://bridge:hunter2%zz@127.0.0.1", "%2F"},
		"blank":                {"nats://bridge:hunter2 x@127.0.0.1", "%2F"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, place := range []string{"--nats-url", "NATS_URL", "ZULIP_NATS_NATS_URL"} {
				s := &story{T: t, home: s.home}
				args := []string{"run", "--zuliprc", s.nobody(), "--log-level", "trace", "--no-lease"}
				if place == "--nats-url" {
					args = append(args, place, test.url)
				} else {
					t.Setenv(place, test.url)
				}
				text := s.says(args...)
				checked := s.checks(args...)
				t.Setenv("NATS_URL", "")
				t.Setenv("ZULIP_NATS_NATS_URL", "")
				if !strings.Contains(text, test.says) {
					t.Errorf("%s: it does not say %q:\n%s", place, test.says, text)
				}
				for _, secret := range []string{"hunter2", password, url.QueryEscape(password), "s3cr3t", someKey} {
					if strings.Contains(text+checked, secret) {
						t.Errorf("%s: a secret is in\n%s%s", place, text, checked)
					}
				}
			}
		})
	}
	for name, site := range map[string]string{"password": "https://bot:hunter2@127.0.0.1:1",
		"token": "https://hunter2@127.0.0.1:1",
		"path":  "https://127.0.0.1:1/hunter2", "query": "https://127.0.0.1:1/?key=hunter2",
		"broken": "https://bot:hunter2@127.0.0.1:x"} {
		t.Run("site with a "+name, func(t *testing.T) {
			s := &story{T: t, home: s.home}
			file := s.zuliprc("bot@chat.example.org", someKey, site)
			s.says("run", "--zuliprc", file, "--realm", "acme", "--log-level", "trace", "--no-lease", "--nats-port",
				freePort(t))
			p := s.starts("run", "--zuliprc", file, "--realm", "acme", "--log-level", "trace", "--no-lease",
				"--nats-port", freePort(t))
			text := func() string { return p.out.String() + p.err.String() }
			if name == "path" {
				p.waits("a word about Zulip", func() bool { return strings.Contains(text(), "cannot be reached") })
			}
			p.stops()
			checked := s.checks("run", "--zuliprc", file, "--realm", "acme", "--log-level", "trace", "--no-lease",
				"--nats-port", freePort(t))
			if all := text() + checked; strings.Contains(all, "hunter2") || strings.Contains(all, someKey) {
				t.Errorf("it says\n%s", all)
			}
		})
	}
}
