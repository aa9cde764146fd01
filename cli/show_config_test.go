package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// What `config` prints, with HOME for the home folder.
func TestConfig(t *testing.T) {
	s := begin(t)
	s.rc("a.rc", "bot@a.example.org", "https://a.example.org/hunter2")
	path := s.writes("acme.ini", "[nats]\nnats-url = nats://u:hunter2@nats.example.org\n[stream]\nmax-age = 30d\n"+a+"narrow = `[[\"topic\", \"a #b\"]]`\n"+
		"erase-deleted = true # behind\n[realm \"b\"]\nemail = b@x.org\nkey = "+someKey+"\nsite = x.org\nmax-age = 0\n[realm \"c\"]\nzuliprc = c.rc\n")
	t.Setenv("ZULIP_NATS_QUEUE_LIFE", "2d")
	t.Setenv("NATS_CREDS", "/run/bot.creds")
	e := s.runs("config", "--config", path, "--replicas", "3")
	if e.code != 0 || e.stderr != "" {
		t.Fatalf("exit code %d, %s", e.code, e.stderr)
	}
	want := `; What zulip-nats run does with these options. This can be a file for --config, once each (hidden) is written in.
; A line that begins with ; is what holds where nothing is given.

[nats]
nats-url = (hidden) ; from HOME/acme.ini:2
; nats-context = none ; from default
nats-creds = /run/bot.creds ; from variable NATS_CREDS
; nats-nkey = none ; from default
; nats-jwt = none ; from default
; nats-seed = none ; from default
; nats-user = none ; from default
; nats-password = none ; from default
; nats-token = none ; from default
; nats-ca = the system's ; from default
; nats-cert = none ; from default
; nats-key = none ; from default
; nats-tls-first = false ; from default
; nats-inbox-prefix = _INBOX ; from default
; nats-js-domain = the server's ; from default
; nats-js-api-prefix = $JS.API ; from default
; nats-port = 4222 ; from default
; state-dir = $XDG_STATE_HOME/zulip-nats, ~/.local/state/zulip-nats ; from default
; no-lease = false ; from default
; lease-ttl = 4s ; from default

[log]
; log-level = info ; from default
; log-format = auto ; from default

[http]
; http = nowhere ; from default
; pprof = false ; from default

[realm "a"]
zuliprc = HOME/a.rc ; from HOME/acme.ini:6
; email = bot@a.example.org ; from zuliprc HOME/a.rc: email
; site = https://a.example.org ; from zuliprc HOME/a.rc: site
; insecure = as the zuliprc says ; from default
; delete-queue = false ; from default
; event-types = all ; from default
; exclude-types = none ; from default
; no-direct-messages = false ; from default
narrow = ` + "`" + `[["topic", "a #b"]]` + "`" + ` ; from HOME/acme.ini:7
; all-public-streams = false ; from default
; apply-markdown = false ; from default
; client-gravatar = true ; from default
; slim-presence = false ; from default
queue-life = 2d ; from variable ZULIP_NATS_QUEUE_LIFE
; stream = the one that has the realm's subjects, else ZULIP_<realm> is created ; from default
; subjects = by-type ; from default
max-age = 30d ; from HOME/acme.ini:4
; max-bytes = no limit ; from default
replicas = 3 ; from flag --replicas
; publish-path = auto ; from default
; state = none ; from default
; oversize-wait = 10m ; from default
erase-deleted = true ; from HOME/acme.ini:8
; cloudevents = false ; from default
; moved-from = none ; from default
; start-from = now ; from default
; backfill-max-age = no bound ; from default
; backfill-max-messages = no bound ; from default

[realm "b"]
email = b@x.org ; from HOME/acme.ini:10
key = (hidden) ; from HOME/acme.ini:11
site = x.org ; from HOME/acme.ini:12
; insecure = as the zuliprc says ; from default
`
	got := strings.ReplaceAll(e.stdout, s.home, "HOME")
	if !strings.HasPrefix(got, want) {
		t.Errorf("it prints\n%s", got)
	}
	for _, line := range []string{"\nmax-age = 0 ; from HOME/acme.ini:13\n", "\n[realm \"c\"]\nzuliprc = HOME/c.rc ; from HOME/acme.ini:15\n; its account " +
		"cannot be read now: there is no zuliprc HOME/c.rc; give the path"} {
		if !strings.Contains(got, line) {
			t.Errorf("it does not print %q:\n%s", line, got)
		}
	}
	if strings.Contains(got, "hunter2") || strings.Contains(got, someKey) {
		t.Errorf("a secret is in\n%s", got)
	}

	// With a mistake in it there are complaints instead, and nothing is printed.
	s.runs("config", "--config", s.writes("acme.ini", a+"foo = 1\nmax-age = x\n")).want(t, 78, "line 3: there is no key foo", "line 4: max-age")
	s.runs("config", "--config", s.writes("acme.ini", a), "--max-age", "x").want(t, 2, `--max-age (or ZULIP_NATS_MAX_AGE): "x"`)
}

// One organization without a file is printed as a section, too.
func TestConfigOfOne(t *testing.T) {
	s := begin(t)
	rc := s.rc(".zuliprc", "bot@a.example.org", "https://a.example.org")
	begins := func(want string, args ...string) {
		t.Helper()
		e := s.runs(append([]string{"config"}, args...)...)
		_, part, _ := strings.Cut(e.stdout, "[realm ")
		part, _, _ = strings.Cut(part, "; insecure")
		if part = strings.ReplaceAll(part, s.home, "HOME"); e.code != 0 || e.stderr != "" || part != want {
			t.Errorf("%v: exit code %d, %s\n%s", args, e.code, e.stderr, part)
		}
		if strings.Contains(e.stdout, someKey) {
			t.Errorf("the key is in\n%s", e.stdout)
		}
	}
	says := func(from string) string {
		return "zuliprc = HOME/.zuliprc ; from " + from + "\n; email = bot@a.example.org ; from zuliprc HOME/.zuliprc: email\n" +
			"; site = https://a.example.org ; from zuliprc HOME/.zuliprc: site\n"
	}
	begins("\"a\"] ; its name is from its site\n" + says("default"))
	begins("\"b\"]\n"+says("flag --zuliprc"), "--zuliprc", rc, "--realm", "b")
	t.Setenv("ZULIP_CONFIG", rc)
	begins("\"a\"] ; its name is from its site\n" + says("variable ZULIP_CONFIG"))
	t.Setenv("ZULIP_EMAIL", "other@a.example.org")
	begins("\"a\"] ; its name is from its site\nemail = other@a.example.org ; from variable ZULIP_EMAIL\n" +
		"key = (hidden) ; from zuliprc HOME/.zuliprc: key\nsite = https://a.example.org ; from zuliprc HOME/.zuliprc: site\n")
	t.Setenv("ZULIP_CONFIG", "/nonexistent/rc")
	s.runs("config").want(t, 78, "there is no zuliprc /nonexistent/rc")
	t.Setenv("ZULIP_EMAIL", "")
	t.Setenv("ZULIP_CONFIG", "")
	other := s.rc("other.rc", "bot@b.example.org", "https://b.example.org")
	begins("\"a\"] ; its name is from its site\n"+says("flag --zuliprc"), "--zuliprc", rc, "--zuliprc", other)
}

// What is printed is read as the same settings again, in another folder.
func TestConfigAsAFile(t *testing.T) {
	s := begin(t)
	one, two := s.rc("one.rc", "bot@a.example.org", "https://a.example.org"), s.rc("two.rc", "bot@b.example.org", "https://b.example.org")
	args := []string{"--zuliprc", one, "--zuliprc", two, "--nats-url", "nats://a:4222", "--nats-url", "b", "--nats-creds", "x/bot.creds",
		"--lease-ttl", "9s", "--no-lease", "--http", ":8080", "--log-level", "warn", "--exclude-types", " typing , presence",
		"--narrow", `[["topic", "100% \"#\" ;) ` + "`x`" + `"]]`, "--start-from", "2026-01-31", "--max-age", "0", "--backfill-max-messages", "0",
		"--client-gravatar=false", "--state", "all", "--insecure=false", "--stream", "`A`"}
	before, err := told(t, args...).read()
	if err != nil {
		t.Fatal(err)
	}
	text := s.runs(append([]string{"config"}, args...)...).stdout
	if err := os.Mkdir(filepath.Join(s.home, "etc"), 0o700); err != nil {
		t.Fatal(err)
	}
	after, err := told(t, "--config", s.writes("etc/again.ini", text)).read()
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if len(before.Realms) != 2 || len(after.Realms) != 2 {
		t.Fatalf("%d realms, and then %d:\n%s", len(before.Realms), len(after.Realms), text)
	}
	for i := range before.Realms {
		if !same(before.Realms[i], after.Realms[i]) {
			t.Errorf("before %+v\nafter  %+v", before.Realms[i], after.Realms[i])
		}
	}
	creds, err := filepath.Abs("x/bot.creds")
	if err != nil {
		t.Fatal(err)
	}
	before.NATS.Creds, before.Realms, after.Realms = creds, nil, nil
	if fmt.Sprintf("%+v", before) != fmt.Sprintf("%+v", after) {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
}

// check looks at each realm in turn, and at NATS once; each line says whose it is.
func TestCheckOfSeveral(t *testing.T) {
	s := begin(t)
	zulip := &zulipsim.Server{}
	site := zulip.Start(t)
	bot, other := zulip.Account("bot@example.com"), zulip.Account("other@example.com")
	nats := natstest.Start(t).URL
	path := s.writes("acme.ini", fmt.Sprintf("[nats]\nnats-url = %s\n[realm \"one\"]\nemail = %s\nkey = %s\nsite = %s\n[realm \"other-one\"]\nemail = %s\nkey = %s\nsite = %[4]s\n"+
		"[realm \"none\"]\nzuliprc = none.rc\n", nats, bot.Email, bot.Key, site, other.Email, other.Key))
	e := s.runs("check", "--config", path, "--json", "--wait", "1m")
	if e.code != 1 {
		t.Errorf("exit code %d, %s", e.code, e.stderr)
	}
	seen := map[string][]string{}
	for _, f := range readFindings(t, e.stdout) {
		if f.Result == "fail" && f.Realm != "none" {
			t.Errorf("%+v", f)
		}
		seen[f.Realm] = append(seen[f.Realm], f.What)
	}
	store := []string{"JetStream", "stream", "right to write"}
	for realm, want := range map[string][]string{"": {"NATS"}, "one": append([]string{"zuliprc", "realm", "Zulip", "account"}, store...),
		"other-one": append([]string{"zuliprc", "realm", "Zulip", "account"}, store...), "none": append([]string{"zuliprc"}, store...)} {
		for _, what := range want {
			if n := strings.Count(strings.Join(seen[realm], "\n")+"\n", what+"\n"); n == 0 {
				t.Errorf("%q: no word of %s in %v", realm, what, seen[realm])
			}
		}
	}
	if !slices.Equal(seen[""], []string{"NATS"}) {
		t.Errorf("of no realm is %v", seen[""])
	}
	if n := len(zulip.Requests()); n == 0 {
		t.Error("Zulip was not asked")
	}
	e = s.runs("check", "--config", path, "--offline")
	for _, line := range []string{"ok    one        zuliprc           none; the account is in " + path + ":3\n",
		"ok    other-one  realm             other-one: subjects zulip.other-one.>, by-type\n", "FAIL  none       zuliprc           no account can be read\n"} {
		if !strings.Contains(e.stdout, line) {
			t.Errorf("it does not say %q:\n%s", line, e.stdout)
		}
	}
	// The complaints are findings, one each.
	e = s.runs("check", "--config", s.writes("acme.ini", "[foo]\n[bar]\n"), "--json")
	if list := readFindings(t, e.stdout); e.code != 1 || len(with(list, "fail")) != 2 || len(list) != 2 {
		t.Errorf("exit code %d, %v", e.code, list)
	}
}

// run follows an organization of a file whose account stands in it, and says the key nowhere.
func TestRunByFile(t *testing.T) {
	s := begin(t)
	zulip := &zulipsim.Server{}
	site := zulip.Start(t)
	bot := zulip.Account("bot@example.com")
	server := natstest.Start(t)
	s.writes("bot.key", bot.Key+"\n")
	for name, key := range map[string]string{"inside": "key = " + bot.Key, "outside": "key_file = bot.key"} {
		began := time.Now()
		path := s.writes("acme.ini", fmt.Sprintf("[nats]\nnats-url = %s\nno-lease = true\n[log]\nlog-level = trace\n[realm %q]\nemail = %s\n%s\nsite = %s\n",
			server.URL, name, bot.Email, key, site))
		t.Setenv("ZULIP_EMAIL", "other@example.com")
		p := s.starts("run", "--config", path)
		p.waits("a poll that waits", func() bool {
			return slices.ContainsFunc(zulip.Queues(), func(q zulipsim.QueueInfo) bool {
				return q.Dead == "" && q.Waiting && q.LastWait.After(began)
			})
		})
		if code := p.stops(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		log := p.err.String()
		for _, word := range []string{`"event":"variables_unused"`, `"account":"bot@example.com"`, `"realm":"` + name + `"`} {
			if !strings.Contains(log, word) {
				t.Errorf("the log does not say %s:\n%s", word, log)
			}
		}
		if strings.Contains(log, bot.Key) {
			t.Errorf("the key is in\n%s", log)
		}
		if _, err := server.JetStream().Stream(t.Context(), "ZULIP_"+name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzConfigFile: no file ends the process, each one that is refused has a reason, and
// whatever is printed of it has no secret in it.
func FuzzConfigFile(f *testing.F) {
	example, err := os.ReadFile("testdata/zulip-nats.ini")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	for _, text := range []string{"", "[", "[]", "[nats]\nnats-url = `", "[nats]\nnats-url", "[nats]\n- = x\n", "\xff\xfe", "\xef\xbb\xbf[log]\r\nlog-level = debug\r\n",
		"[nats]\nnats-token = hunter2hunter2\n", "[realm \"a\"]\nemail = a@b\nkey = hunter2hunter2\nsite = %(key)s\n", "[nats]\nnats-password = %(nats-user)s\nnats-user = %(nats-password)s\n",
		"[nats]\nnats-token = \"\"\"hunter2hunter2\n\"\"\"\n", "[nats]\nnats-password = hunter2hunter2 \\\nx\n", "[nats]\nnats-token = `hunter2hunter2` # x `\n[realm \"a\"]\nzuliprc=x",
		"[nats]\nnats-url = nats://u:hunter2hunter2@x\n[realm \"a\"]\nzuliprc = x\nmax-age = 1d ; x\n[stream]\nmax-age = `1d`\n[realm \"b\"]\nzuliprc = y"} {
		f.Add([]byte(text))
	}
	const secret = "hunter2hunter2"
	c := defaults()
	s := newSettings(c.options())
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := &reading{bad: map[string]bool{}, file: &configFile{path: "/nonexistent/acme.ini", shown: "acme.ini"}}
		r.file.parse(raw)
		for _, sec := range r.file.sections {
			for name, e := range sec.keys {
				if e.value == "" || e.line == 0 || unreadableIn(e.value) {
					t.Errorf("%s in line %d is %q", name, e.line, e.value)
				}
			}
			delete(sec.keys, "nats-context") // which would read one of this machine
		}
		s.readFile(r)
		err := r.wrong.join()
		said := ""
		if err != nil {
			if code := exitCode(err); code != 78 {
				t.Errorf("exit code %d: %v", code, err)
			}
			said = err.Error()
		} else if said, err = r.print(); err != nil {
			t.Errorf("%v", err)
		}
		if said == "" {
			t.Error("it says nothing")
		}
		if !secretOnly(string(raw), secret) {
			return
		}
		if strings.Contains(said, secret) {
			t.Errorf("a secret is in\n%s", said)
		}
	})
}

func unreadableIn(value string) bool { return strings.ContainsFunc(value, unreadable) }

// secretOnly says whether a word stands in lines only that give it as a secret.
func secretOnly(text, word string) bool {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, "=")
		name = strings.TrimSpace(name)
		if !strings.Contains(line, word) {
			continue
		}
		if strings.Contains(name, word) || !slices.Contains([]string{"key", "nats-token", "nats-password", "nats-user", "nats-jwt", "nats-seed"}, name) &&
			!(name == "nats-url" && strings.Contains(value, ":"+word+"@")) {
			return false
		}
	}
	return true
}
