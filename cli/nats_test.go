package cli

import (
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"os/user"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// file writes a file in the home folder, and returns its path.
func (s *story) file(name, text string) string {
	s.Helper()
	path := filepath.Join(s.home, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		s.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.Fatal(err)
	}
	return path
}

// connects runs the program until it is connected to NATS and has seen that there is no stream.
func (s *story) connects(args ...string) {
	s.Helper()
	p := s.starts(append([]string{"run", "--zuliprc", s.nobody(), "--realm", "acme", "--no-lease"}, args...)...)
	p.waits("a look for the stream", func() bool {
		return strings.Contains(p.err.String(), "connected to NATS") &&
			strings.Contains(p.err.String(), "it is made when Zulip has let us in")
	})
	if code := p.stops(); code != 0 {
		s.Errorf("exit code %d:\n%s", code, p.err.String())
	}
}

// Each way to sign in, as flags, as variables of the nats command, and as files.
func TestWaysToSignIn(t *testing.T) {
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := user.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	byToken := natstest.Start(t, func(o *server.Options) { o.Authorization = someToken })
	byPassword := natstest.Start(t, func(o *server.Options) { o.Username, o.Password = "bridge", someToken })
	bySeed := natstest.Start(t, func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: public}} })
	for name, test := range map[string]struct {
		url  string
		env  map[string]string // a value that begins with file: is put in a file
		args []string
	}{
		"token":           {byToken.URL, nil, []string{"--nats-token", someToken}},
		"NATS_TOKEN":      {byToken.URL, map[string]string{"NATS_TOKEN": someToken}, nil},
		"NATS_USER alone": {byToken.URL, map[string]string{"NATS_USER": someToken}, nil},
		"NATS_TOKEN_FILE": {byToken.URL, map[string]string{"NATS_TOKEN_FILE": "file:" + someToken + "\n"}, nil},
		"ours before theirs": {byToken.URL,
			map[string]string{"ZULIP_NATS_NATS_TOKEN_FILE": "file:" + someToken, "NATS_TOKEN": "other"}, nil},
		"a flag before a file": {byToken.URL, map[string]string{"ZULIP_NATS_NATS_TOKEN_FILE": "file:other"},
			[]string{"--nats-token", someToken}},
		"password": {byPassword.URL,
			map[string]string{"NATS_USER": "bridge",
				"ZULIP_NATS_NATS_PASSWORD_FILE": "file:" + someToken + "\r\n"}, nil},
		"NATS_PASSWORD_FILE": {byPassword.URL,
			map[string]string{"NATS_USER": "bridge", "NATS_PASSWORD_FILE": "file:" + someToken}, nil},
		"seed": {bySeed.URL, map[string]string{"NATS_SEED": string(seed)}, nil},
		"seed in a file": {bySeed.URL,
			map[string]string{"ZULIP_NATS_NATS_SEED_FILE": "file:" + string(seed) + "\n"}, nil},
		"nkey": {bySeed.URL, map[string]string{"NATS_NKEY": "path:" + string(seed)}, nil},
		"all of it in a URL": {"", map[string]string{"NATS_URL_FILE": "file:" +
			strings.Replace(byPassword.URL, "://", "://bridge:"+someToken+"@", 1)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := begin(t)
			for k, v := range test.env {
				if text, ok := strings.CutPrefix(v, "file:"); ok {
					v = s.file("secret", text)
				} else if text, ok := strings.CutPrefix(v, "path:"); ok {
					v = s.file("seed", text)
				}
				t.Setenv(k, v)
			}
			args := test.args
			if test.url != "" {
				args = append(args, "--nats-url", test.url)
			}
			s.connects(args...)
		})
	}
	s := begin(t)
	for variable, text := range map[string]string{"ZULIP_NATS_NATS_PASSWORD_FILE": "",
		"NATS_TOKEN_FILE": strings.Repeat("x", 1<<17)} {
		t.Setenv(variable, s.file("bad", text))
		s.runs("run", "--zuliprc", s.nobody(), "--nats-user", "bridge").want(t, 78, variable, s.home)
		t.Setenv(variable, "/nonexistent/secret")
		s.runs("run", "--zuliprc", s.nobody(), "--nats-user", "bridge").want(t, 78, variable,
			"/nonexistent/secret cannot be read")
		t.Setenv(variable, "")
	}
	s.runs("run", "--zuliprc", s.nobody(), "--nats-url", bySeed.URL, "--nats-seed", "SUnotASeed").want(t, 78,
		"NATS seed").lacks(t, "SUnotASeed")
	s.runs("run", "--zuliprc", s.nobody(), "--nats-url", bySeed.URL, "--nats-seed", string(seed), "--nats-nkey",
		s.home).want(t, 78, "use one of them")
}

// The key of the account too: in a file that a variable names.
func TestKeyInAFile(t *testing.T) {
	s := begin(t)
	nats := natstest.Start(t).URL
	t.Setenv("ZULIP_EMAIL", "bot@chat.example.org")
	t.Setenv("ZULIP_SITE", "https://127.0.0.1:1")
	t.Setenv("ZULIP_API_KEY_FILE", s.file("key", someKey+"\n"))
	p := s.starts("run", "--realm", "acme", "--no-lease", "--nats-url", nats)
	p.waits("a request", func() bool {
		return strings.Contains(p.err.String(),
			"cannot be reached at https://127.0.0.1:1")
	})
	p.stops()
	t.Setenv("ZULIP_API_KEY_FILE", "/nonexistent/key")
	s.runs("run", "--nats-url", nats).want(t, 78, "ZULIP_API_KEY_FILE", "/nonexistent/key cannot be read")
}

// Contexts of the nats command, by name and by file; what options say comes first.
func TestContext(t *testing.T) {
	s := begin(t)
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(s.home, "config"))
	context := func(name string, settings map[string]any) string {
		text, err := json.Marshal(settings)
		if err != nil {
			t.Fatal(err)
		}
		return s.file("config/nats/context/"+name+".json", string(text))
	}
	s.file("user.creds", "")
	path := context("all", map[string]any{"description": "", "url": "nats://a:1,nats://b:2", "token": "t", "user": "u",
		"password": "p", "creds": "",
		"nkey": "", "cert": "", "key": "", "ca": "", "jetstream_domain": "hub", "jetstream_api_prefix": "",
		"inbox_prefix": "_INBOX_me", "tls_first": true})
	context("prefix", map[string]any{"creds": filepath.Join(s.home, "user.creds"), "jetstream_api_prefix": "JS.x.API",
		"jetstream_domain": "hub"})
	settings := func(args ...string) (Config, error) {
		t.Helper()
		c, err := configured(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		err = c.check()
		return c, err
	}
	all := stream.ConnectConfig{URL: "nats://a:1,nats://b:2", User: "u", Password: "p", Token: "t",
		InboxPrefix: "_INBOX_me", TLSFirst: true}
	for _, name := range []string{"all", path} {
		if c, err := settings("--nats-context", name); err != nil || !reflect.DeepEqual(c.NATS, all) ||
			c.JSDomain != "hub" || c.JSAPIPrefix != "" {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	t.Setenv("NATS_CONTEXT", "all")
	other := stream.ConnectConfig{URL: "nats://c", Creds: "/x.creds", InboxPrefix: "_INBOX_you", TLSFirst: true}
	c, err := settings("--nats-url", "nats://c", "--nats-creds", "/x.creds", "--nats-inbox-prefix", "_INBOX_you",
		"--nats-js-api-prefix", "JS.y.API")
	if err != nil || !reflect.DeepEqual(c.NATS, other) || c.JSDomain != "" || c.JSAPIPrefix != "JS.y.API" {
		t.Errorf("%+v, %v", c, err)
	}
	c, err = settings("--nats-context", "prefix")
	if err != nil || c.NATS.URL != "nats://127.0.0.1:4222" || c.NATS.Creds != filepath.Join(s.home, "user.creds") ||
		c.JSAPIPrefix != "JS.x.API" || c.JSDomain != "" {
		t.Errorf("%+v, %v", c, err)
	}
	t.Setenv("NATS_CONTEXT", "")
	if u, err := user.Current(); err != nil || home("~/user.creds") != filepath.Join(u.HomeDir, "user.creds") ||
		home("~user") != "~user" {
		t.Errorf("~ is %s, %v", home("~/"), err)
	}

	server := natstest.Start(t, func(o *server.Options) { o.Authorization = someToken })
	context("works", map[string]any{"url": server.URL, "token": someToken})
	s.connects("--nats-context", "works")

	context("proxy", map[string]any{"socks_proxy": "socks5://u:hunter2@x"})
	context("vault", map[string]any{"user": "u", "password": "op://vault/hunter2"})
	context("jwt", map[string]any{"user_jwt": "hunter2"})
	context("number", map[string]any{"token": 42})
	context("lost", map[string]any{"nkey": "/nonexistent/user.nk"})
	context("seed", map[string]any{"nkey": "hunter2"})
	s.file("config/nats/context/broken.json", "{hunter2")
	for name, says := range map[string]string{
		"proxy": "socks_proxy", "vault": "password in another store", "jwt": "--nats-jwt",
		"number": "no JSON of the form", "broken": "no JSON of the form",
		"lost": "/nonexistent/user.nk cannot be read", "seed": "not shown", "absent": "nats context ls",
		"../all":                             "nats context ls",
		filepath.Join(s.home, "absent.json"): "absent.json cannot be read",
	} {
		s.runs("run", "--zuliprc", s.nobody(), "--nats-context", name).want(t, 78, "the NATS context",
			says).lacks(t, "hunter2")
	}
}

// A server that begins with TLS, another inbox prefix, and what cannot be right.
func TestTLSFirstAndPrefixes(t *testing.T) {
	s := begin(t)
	web := httptest.NewUnstartedServer(nil)
	web.StartTLS()
	defer web.Close()
	srv := natstest.Start(t, func(o *server.Options) {
		o.TLSConfig = &tls.Config{Certificates: web.TLS.Certificates}
		o.TLS, o.TLSHandshakeFirst = true, true
		o.Users = []*server.User{{Username: "bridge", Password: someToken, Permissions: &server.Permissions{
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX_zulip.>", "$JS.EVENT.>"}}}}}
	})
	ca := s.file("ca.pem", string(pemOf(web.Certificate().Raw)))
	args := []string{"--nats-url", srv.URL, "--nats-ca", ca, "--nats-user", "bridge", "--nats-password", someToken,
		"--nats-tls-first"}
	s.connects(append(args, "--nats-inbox-prefix", "_INBOX_zulip")...)
	p := s.starts(append([]string{"run", "--zuliprc", s.nobody(), "--no-lease"}, args...)...)
	p.waits("the permission by its name",
		func() bool { return strings.Contains(p.err.String(), `may not subscribe to \"_INBOX.>\"`) })
	p.stops()
	for option, word := range map[string]string{"--nats-inbox-prefix": "_INBOX.*", "--nats-js-domain": "a.b",
		"--nats-js-api-prefix": "JS..API"} {
		s.runs(append([]string{"run", "--zuliprc", s.nobody(), option, word}, args...)...).want(t, 78, word)
	}
	s.runs(append([]string{"run", "--zuliprc", s.nobody(), "--nats-js-domain", "a", "--nats-js-api-prefix", "b"},
		args...)...).want(t, 2, "give one")
}

func pemOf(certificate []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
}
