package cli

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/poller"
)

// told is a command line of `run`, as settings know it.
func told(t testing.TB, args ...string) *settings {
	t.Helper()
	c := defaults()
	s := newSettings(c.options())
	set := flag.NewFlagSet("run", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	for _, o := range s.options {
		if err := o.Apply(set); err != nil {
			t.Fatal(err)
		}
	}
	if err := set.Parse(args); err != nil {
		t.Fatal(err)
	}
	return s
}

// writes writes a file that nobody else may read, and gives its path.
func (s *story) writes(name, text string) string {
	s.Helper()
	path := filepath.Join(s.home, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.Fatal(err)
	}
	return path
}

// rc writes a zuliprc of that name for an account at a site.
func (s *story) rc(name, email, site string) string {
	s.Helper()
	return s.writes(name, "[api]\nemail="+email+"\nkey="+someKey+"\nsite="+site+"\n")
}

// a is the one realm that most files of these tests have; it begins at line 1.
const a = "[realm \"a\"]\nzuliprc = a.rc\n"

// Each thing that can be wrong with a file has its sentence, all of them are there at
// once, sorted by line, and each names the file.
func TestFileComplaints(t *testing.T) {
	s := begin(t)
	s.rc("a.rc", "bot@a.example.org", "https://a.example.org")
	for name, test := range map[string]struct {
		text string
		want []string // FILE: is in front of each
	}{
		"an unknown key": {a + "max_age = 3d\nmax-agee = 3d\nfoo = bar\n[nats]\nurl = x\nnats-ulr = x\nmax-agee = x\n", []string{
			`line 3: there is no key max_age in [realm "a"] (is max-age meant?)`,
			`line 4: there is no key max-agee in [realm "a"] (is max-age meant?)`,
			"line 5: there is no key foo in [realm \"a\"]; a key has the name of an option, and `zulip-nats run --help` lists those",
			`line 7: there is no key url in [nats] (is nats-url meant?)`,
			`line 8: there is no key nats-ulr in [nats] (is nats-url meant?)`,
			`line 9: there is no key max-agee in [nats] (is max-age meant? It stands below [stream], for all realms, or [realm "NAME"])`}},
		"a key that belongs elsewhere": {a + "log-level = debug\nrealm = b\nname = b\n[stream]\nmoved-from = https://x.org\n" +
			"queue-life = 2d\nstate-dir = x\nemail = x\n[http]\nshow = true\nnats-port = 1\ninsecure = true\n[log]\nzuliprc = x\n", []string{
			`line 3: log-level does not belong to [realm "a"]: write it below [log]`,
			`line 4: realm is no key: the realm's name is the one in the head of its section, [realm "a"]`,
			`line 5: name is no key: the realm's name is the one in the head of its section, [realm "a"]`,
			`line 7: moved-from does not belong to [stream]: write it below [realm "NAME"]`,
			`line 8: queue-life does not belong to [stream]: write it below [queue], for all realms, or [realm "NAME"]`,
			`line 9: state-dir does not belong to [stream]: write it below [nats]`,
			`line 10: email does not belong to [stream]: write it below [realm "NAME"]`,
			`line 12: show is no key of the file: it is an option of the command line only`,
			`line 13: nats-port does not belong to [http]: write it below [nats]`,
			`line 14: insecure does not belong to [http]: write it below [realm "NAME"]`,
			`line 16: zuliprc does not belong to [log]: write it below [realm "NAME"]`}},
		"an unknown section": {a + "[relam \"b\"]\nx = 1\n[Stream]\n[foo]\n[api]\nemail = x\n[DEFAULT]\n[]\n", []string{
			`line 3: there is no such section (is [realm "NAME"] meant?); there are [nats], [stream], [queue], [log], [http] and [realm "NAME"]`,
			`line 5: there is no section [Stream] (is [stream] meant?); there are [nats], [stream], [queue], [log], [http] and [realm "NAME"]`,
			`line 6: there is no section [foo]; there are [nats], [stream], [queue], [log], [http] and [realm "NAME"]`,
			"line 7: there is no section [api], which is one of a zuliprc: name that by `zuliprc = FILE` in a section [realm \"NAME\"]",
			`line 9: there is no section [DEFAULT]; there are [nats], [stream], [queue], [log], [http] and [realm "NAME"]`,
			`line 10: there is no such section; there are [nats], [stream], [queue], [log], [http] and [realm "NAME"]`}},
		"a head that is none": {a + "[realm b]\n[realm]\n[realm:b]\n[realm \"b\n[realm \"b\"] x\n[realm \"b.c\"]\n[realm \"\"]\n[nats] # [x]\n", []string{
			`line 3: a realm's name stands in quotes in the head of its section: [realm "acme"]`,
			`line 4: a realm's name stands in quotes in the head of its section: [realm "acme"]`,
			`line 5: a realm's name stands in quotes in the head of its section: [realm "acme"]`,
			`line 6: the section does not end with ]: write it like [nats] or [realm "acme"], on a line of its own`,
			`line 7: the section does not end with ]: write it like [nats] or [realm "acme"], on a line of its own`,
			`line 8: the realm's name "b.c" cannot be part of a NATS subject: use only A-Z, a-z, 0-9, '_' and '-'`,
			`line 9: the realm's name is empty: give 1 to 64 letters, digits, '_' or '-'`}},
		"two of one name": {a + "max-age = 3d\nmax-age = 4d\n[realm  \"a\"]\nmax-age = wrong\n[nats]\nnats-url = a\n[nats]\nnats-url = b\n", []string{
			`line 4: max-age stands in line 3 already: leave one of the two out`,
			`line 5: [realm "a"] stands in line 1 already: give one of the two another name, or leave it out`,
			`line 9: [nats] stands in line 7 already: put the two together`}},
		"one account twice": {a + "[realm \"b\"]\nemail = bot@a.example.org\nkey = " + someKey + "\nsite = a.example.org/api\n", []string{
			`line 3: [realm "b"] has the account of [realm "a"] (line 1): leave one of the two out, or correct its account`}},
		"values": {a + "max-age = forever\nerase-deleted = maybe\nqueue-life =\nstate = # none\nsubjects\ncloudevents\n[nats]\n" +
			"lease-ttl = 2.5s\nnats-url = http://x\nnats-port = 1x ; y\n[http]\nhttp = x\npprof = true\n[stream]\nreplicas = 3\n", []string{
			`line 3: max-age: "forever" is no duration: write it like 90s, 24h or 7d`,
			`line 4: erase-deleted: "maybe" is neither true nor false`,
			`line 5: queue-life has no value: write one behind the =, or take the line away`,
			"line 6: state has no value, since # and ; begin a comment: write one; if the mark belongs to it, between backquotes (`) it is taken as it stands",
			`line 7: subjects has no value: write subjects = and the value`,
			`line 8: cloudevents has no value: write cloudevents = true`,
			`line 10: lease-ttl: 2.5s is no whole number of seconds, which is all that NATS counts here`,
			`line 11: nats-url: the address ("http://x") has a scheme that is none of nats, tls, ws, wss: write it like nats://nats.example.org:4222`,
			"line 12: nats-port: \"1x\" is no number from 1 to 65535; what begins with # or ; behind it was taken for a comment: if it " +
				"belongs to the value, put that between backquotes (`)",
			`line 14: http: "x" is no address to listen at: write it like 127.0.0.1:8080, or :8080 for all addresses of this machine`}},
		"lines that are none": {"max-age = 3d\nfoo = x\n" + a + "nats-url: x\nfoo: x\nmore words\n= x\n\"max-age\" = 3d\n- = 3d\n    and so on\n", []string{
			`line 1: max-age stands above the first section: write the head of its section above it, such as [stream], for all realms, or [realm "NAME"]`,
			`line 2: foo stands above the first section: write the head of its section above it, such as [realm "NAME"]`,
			`line 5: write nats-url = and the value, not nats-url: and the value`,
			"line 6: this is neither a section, nor `key = value`, nor a comment, which begins with # or ;",
			"line 7: this is neither a section, nor `key = value`, nor a comment, which begins with # or ;",
			"line 8: this is neither a section, nor `key = value`, nor a comment, which begins with # or ;",
			"line 9: this is neither a section, nor `key = value`, nor a comment, which begins with # or ;",
			"line 10: this is neither a section, nor `key = value`, nor a comment, which begins with # or ;",
			"line 11: this is neither a section, nor `key = value`, nor a comment, which begins with # or ;"}},
		"quotes": {a + "stream = \"A\"\nsubjects = 'by-type'\nmax-age = \"\"\"\nstate = `users\nmax-bytes = `1G` more\n" +
			"narrow = `[]` ; as `here`\nevent-types = \"message # or so\"\n", []string{
			"line 3: stream: the value stands in quotes, which mean nothing here: take them away; if they belong to it, between backquotes (`) it is taken as it stands",
			"line 4: subjects: the value stands in quotes, which mean nothing here: take them away; if they belong to it, between backquotes (`) it is taken as it stands",
			"line 5: max-age: three quotes mean nothing here, and no value goes on in the next line; between backquotes (`) it is taken as it stands",
			"line 6: state: a backquote begins the value, and none ends it in the same line",
			"line 7: max-bytes: something stands behind the backquote that ends the value: only a comment may, with a blank before",
			"line 8: narrow: there is a backquote in the comment behind the value, so that it is not clear where the value ends: put the comment on a line of its own",
			"line 9: event-types: the value stands in quotes, which mean nothing here: take them away; if they belong to it, between backquotes (`) it is taken as it stands"}},
		"a secret with a comment behind": {a + "[nats]\nnats-user = u\nnats-password = hunter #2\nnats-token = (hidden)\n", []string{
			"line 5: nats-password: a # or ; with a blank before it begins a comment, and behind a secret it may be a part of it: put the comment on a line of its own, or the secret between backquotes (`)",
			"line 6: nats-token: `zulip-nats config` has hidden the value here: write it"}},
		"accounts": {"[realm \"a\"]\n[realm \"b\"]\nzuliprc = b.rc\nsite = x\nemail = x\n[realm \"c\"]\nemail = c@x.org\n" +
			"[realm \"d\"]\nemail = d@x.org\nkey = " + someKey + "\nkey_file = x\nsite = x.org\n" +
			"[realm \"e\"]\nemail = x.org\nkey = " + someKey + "\nsite = x.org\n" +
			"[realm \"f\"]\nemail = f@x.org\nkey = short\nsite = x.org\n" +
			"[realm \"g\"]\nemail = g@x.org\nkey = " + someKey + "\nsite = ftp://x.org\n" +
			"[realm \"h\"]\nemail = h@x.org\nkey = " + someKey + "\nsite = x.org\nclient_cert_key = x.pem\n", []string{
			`line 1: [realm "a"] has no account: write zuliprc = FILE below it, or email, key (or key_file) and site`,
			`line 4: site stands beside zuliprc (line 3), and an account stands in one place: leave one of the two out`,
			`line 6: [realm "c"] has no key and no site: an account has email, key (or key_file) and site`,
			`line 11: key and key_file are two ways to say the same: leave one of the two out`,
			`line 14: email is no e-mail address: there is no @ in it`,
			`line 19: key is no API key, which is 32 letters and digits: it is 5 characters; download it from Zulip's settings of the bot, or of your account again`,
			`line 24: site is no address of a server such as https://chat.example.com: it should begin with https://`,
			`line 29: client_cert_key is given, but no client_cert that it belongs to`}},
		"what does not go together": {a + "replicas = 3\nexclude-types = message\n[realm \"b\"]\nzuliprc = b.rc\nerase-deleted = true\n" +
			"event-types = message\n[nats]\nnats-cert = x.pem\nnats-user = u\n[http]\npprof = true\n[queue]\nexclude-types = message\n[stream]\nreplicas = 3\n", []string{
			`line 3: replicas: 3 servers are asked for, and the embedded one is alone: name a cluster with nats-url, or leave this out`,
			`line 8: exclude-types leaves out all that event-types asks for: leave one of the two out`,
			`line 8: erase-deleted needs the events that tell of deletions, delete_message: event-types has to have them, where it is given, and exclude-types must not`,
			`line 10: nats-cert is given without nats-key`,
			`line 13: pprof is given without http, which says where to serve the profiles: add http 127.0.0.1:8080, or leave it out`,
			`line 17: replicas: 3 servers are asked for, and the embedded one is alone: name a cluster with nats-url, or leave this out`}},
		"no realm": {"[nats]\nnats-url = nats://x\n", []string{`there is no organization in it: write a section [realm "NAME"] for each, with zuliprc = FILE`}},
		"nothing":  {"", []string{`there is no organization in it: write a section [realm "NAME"] for each, with zuliprc = FILE`}},
		"control characters": {a + "max-age = 3d\x00\nstream = a\x1bb\nsubjects = by-\rtype\n", []string{
			"line 3: there is a control character in this line: write it again",
			"line 4: there is a control character in this line: write it again",
			"line 5: there is a control character in this line: write it again"}},
		"UTF-16":    {"\xff\xfe[\x00n\x00]\x00", []string{"it is written in UTF-16; save it as UTF-8"}},
		"Latin-1":   {a + "stream = b\xf6\n", []string{"line 3: it is not written in UTF-8; save it again as UTF-8"}},
		"too large": {a + strings.Repeat("# much\n", mostConfig/7), []string{"it is larger than 4194304 bytes, so it is another file"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := s.writes("acme.ini", test.text)
			_, err := told(t, "--config", path).read()
			if err == nil {
				t.Fatal("it is taken")
			}
			if code := exitCode(err); code != 78 {
				t.Errorf("exit code %d", code)
			}
			got := strings.Split(strings.ReplaceAll(err.Error(), path+": ", ""), "\n")
			if !slices.Equal(got, test.want) {
				t.Errorf("it says\n%s\nand not\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
			if strings.Contains(err.Error(), someKey) || strings.Contains(err.Error(), "hunter") || strings.Contains(err.Error(), "short") {
				t.Error("a secret is shown")
			}
		})
	}
}

// What a value is, whatever it is made of. ini.v1 has rules of its own for most of these.
func TestFileValues(t *testing.T) {
	s := begin(t)
	s.rc("a.rc", "bot@a.example.org", "https://a.example.org")
	for text, want := range map[string]string{
		"plain":                 "plain",
		"  blanks around \t":    "blanks around",
		"comment # behind":      "comment",
		"comment\t; behind":     "comment",
		"first ; of # both":     "first",
		"no#comment;here":       "no#comment;here",
		"`a #b ;c`":             "a #b ;c",
		"` blanks `":            " blanks ",
		"`a` # comment":         "a",
		"`a`b `c`":              "a`b `c",
		"`\"quoted\"`":          `"quoted"`,
		"`'`":                   "'",
		`say "yes" to it`:       `say "yes" to it`,
		`it's`:                  "it's",
		`a"b'c` + "`d":          `a"b'c` + "`d",
		`C:\zulip\`:             `C:\zulip\`,
		`a \# b`:                `a \# b`,
		"100% %(nats-user)s %%": "100% %(nats-user)s %%",
		"a = b : c":             "a = b : c",
		"[x]":                   "[x]",
		"ü\u00a0\U0001f600":     "ü\u00a0\U0001f600",
	} {
		for _, end := range []string{"\n", "\r\n", ""} {
			file := "\uFEFF" + strings.ReplaceAll(a+"  [nats]\n\n \t# a comment\n; another\n\tnats-inbox-prefix="+text, "\n", cmpOr(end, "\n")) + end
			c, err := told(t, "--config", s.writes("acme.ini", file)).read()
			if err != nil {
				t.Errorf("%q: %v", text, err)
			} else if c.NATS.InboxPrefix != want {
				t.Errorf("%q is %q", text, c.NATS.InboxPrefix)
			}
		}
	}
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// The keys of each section, written out: none is forgotten, and none of the command line's
// own is there.
func TestFileKeys(t *testing.T) {
	shared := map[string]string{
		"queue": "all-public-streams apply-markdown backfill-max-age backfill-max-messages client-gravatar delete-queue event-types " +
			"exclude-types narrow no-direct-messages queue-life slim-presence",
		"stream": "cloudevents erase-deleted max-age max-bytes oversize-wait publish-path replicas start-from state stream subjects",
		"nats": "lease-ttl nats-ca nats-cert nats-context nats-creds nats-inbox-prefix nats-js-api-prefix nats-js-domain nats-jwt " +
			"nats-key nats-nkey nats-password nats-port nats-seed nats-tls-first nats-token nats-url nats-user no-lease state-dir",
		"log":  "log-format log-level",
		"http": "http pprof",
	}
	left := map[string]bool{}
	c := defaults()
	for _, o := range c.options() {
		left[o.Name] = true
	}
	realm := []string{"insecure", "moved-from", "zuliprc", "email", "key", "key_file", "site", "client_cert", "client_cert_key",
		"cert_bundle"}
	for kind, want := range shared {
		if got := strings.Join(keysOf(kind), " "); got != want {
			t.Errorf("[%s] has %s\nand not %s", kind, got, want)
		}
		for key := range strings.FieldsSeq(want) {
			delete(left, key)
			if kind == "queue" || kind == "stream" {
				realm = append(realm, key)
			}
		}
	}
	slices.Sort(realm)
	if got := keysOf("realm"); !slices.Equal(got, realm) {
		t.Errorf("[realm] has %v\nand not %v", got, realm)
	}
	for _, key := range realm {
		delete(left, key)
	}
	delete(left, "realm") // the head of its section
	delete(left, "show")  // of the command line only
	if len(left) > 0 {
		t.Errorf("these options have no place in the file: %v", left)
	}
}

// For a realm its own section comes first, then flag, variable, and what the file says for
// all; for the process flag, variable, file.
func TestFilePrecedence(t *testing.T) {
	s := begin(t)
	s.rc("a.rc", "bot@a.example.org", "https://a.example.org")
	path := s.writes("acme.ini", a+"max-age = 1d\n[realm \"b\"]\nzuliprc = b.rc\n[stream]\nmax-age = 2d\n[queue]\nqueue-life = 2h\n"+
		"delete-queue = true\n[log]\nlog-level = warn\n[nats]\nlease-ttl = 11s\nno-lease = true\n[http]\nhttp = 127.0.0.1:1\n")
	day := 24 * time.Hour
	for _, step := range []struct {
		variable, value string
		args            []string
		a, b            time.Duration // of max-age
		life, ttl       time.Duration
		level           zerolog.Level
		lease, deletes  bool
	}{
		{"", "", nil, day, 2 * day, 2 * time.Hour, 11 * time.Second, zerolog.WarnLevel, false, true},
		{"ZULIP_NATS_MAX_AGE", "3d", nil, day, 3 * day, 2 * time.Hour, 11 * time.Second, zerolog.WarnLevel, false, true},
		{"ZULIP_NATS_LEASE_TTL", "12s", nil, day, 3 * day, 2 * time.Hour, 12 * time.Second, zerolog.WarnLevel, false, true},
		{"ZULIP_NATS_QUEUE_LIFE", "3h", []string{"--max-age", "4d", "--lease-ttl", "13s", "--log-level", "error", "--no-lease=false",
			"--delete-queue=false"}, day, 4 * day, 3 * time.Hour, 13 * time.Second, zerolog.ErrorLevel, true, false},
	} {
		if step.variable != "" {
			t.Setenv(step.variable, step.value)
		}
		c, err := told(t, append(step.args, "--config", path)...).read()
		if err != nil || len(c.Realms) != 2 {
			t.Fatalf("%+v: %v", step, err)
		}
		ra, rb := c.Realms[0], c.Realms[1]
		if ra.Name != "a" || rb.Name != "b" || ra.New.MaxAge != step.a || rb.New.MaxAge != step.b || rb.Queue.Life != step.life ||
			c.LeaseTTL != step.ttl || c.LogLevel != step.level || c.NoLease == step.lease || ra.DeleteQueue != step.deletes ||
			c.HTTP != "127.0.0.1:1" {
			t.Errorf("%+v:\n%+v", step, c)
		}
	}
	// The variable may name the file, and the flag comes before it.
	t.Setenv("ZULIP_NATS_CONFIG", path)
	if c, err := told(t).read(); err != nil || len(c.Realms) != 2 {
		t.Errorf("%v", err)
	}
	if c, err := told(t, "--config", s.writes("other.ini", a)).read(); err != nil || len(c.Realms) != 1 {
		t.Errorf("%v", err)
	}
}

// Paths begin at the folder of the file, or with ~/.
func TestFilePaths(t *testing.T) {
	s := begin(t)
	folder := filepath.Join(s.home, "etc")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	path := s.writes("etc/acme.ini", "[nats]\nnats-creds = ../x/bot.creds\nnats-ca = /etc/ca.pem\nnats-cert = ~/cert.pem\nnats-key = key.pem\n"+
		"state-dir = state\n"+a+"[realm \"b\"]\nemail = b@x.org\nkey_file = keys/b\nsite = x.org\ncert_bundle = ~/b.pem\n")
	set := told(t, "--config", path)
	c, err := set.read()
	if err != nil {
		t.Fatal(err)
	}
	in := func(elem ...string) string { return filepath.Join(append([]string{s.home}, elem...)...) }
	n, b := c.NATS, c.Realms[1].Account.Inline
	if n.Creds != in("x", "bot.creds") || n.CA != "/etc/ca.pem" || n.Cert != in("cert.pem") || n.Key != in("etc", "key.pem") ||
		c.StateDir != in("etc", "state") || c.Realms[0].Account.File != in("etc", "a.rc") || b["key_file"] != in("etc", "keys", "b") ||
		b["cert_bundle"] != in("b.pem") {
		t.Errorf("%+v\n%+v", c, b)
	}
	want := []string{path, in("etc", "a.rc"), in("etc", "keys", "b")}
	slices.Sort(want)
	if got := set.files(); !slices.Equal(got, want) {
		t.Errorf("it is made of %v, and not of %v", got, want)
	}
}

// A file with a secret in it must be closed to others; one without may be open.
func TestFileMode(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // where modes mean nothing
	}
	s := begin(t)
	s.rc("a.rc", "bot@a.example.org", "https://a.example.org")
	for text, secret := range map[string]bool{
		a: false,
		a + "[nats]\nnats-url = nats://x:4222, nats://y\nnats-creds = x\n":          false,
		a + "[nats]\nnats-url = nats://u:hunter2@x\n":                               true,
		a + "[nats]\nnats-url = nats://hunter2@x\n":                                 true,
		a + "[nats]\nnats-token = hunter2\n":                                        true,
		a + "[nats]\nnats-user = u\nnats-password = hunter2\n":                      true,
		a + "[realm \"b\"]\nemail = b@x.org\nkey = " + someKey + "\nsite = x.org\n": true,
		a + "[realm \"b\"]\nemail = b@x.org\nkey_file = /run/b.key\nsite = x.org\n": false,
	} {
		path := s.writes("acme.ini", text)
		for mode, open := range map[os.FileMode]bool{0o600: false, 0o640: false, 0o644: true, 0o604: true, 0o602: true} {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			_, err := told(t, "--config", path).read()
			if (err != nil) != (open && secret) {
				t.Errorf("mode %o of\n%s\ngives %v", mode, text, err)
			}
			if err != nil && (exitCode(err) != 78 || !strings.HasPrefix(err.Error(), fmt.Sprintf("%s: mode %04o, and there are secrets in it (line ", path, mode)) ||
				!strings.HasSuffix(err.Error(), ": chmod 600 "+path) || strings.Contains(err.Error(), "hunter2")) {
				t.Error(err)
			}
		}
	}
}

// Files that cannot be read at all.
func TestNoFile(t *testing.T) {
	s := begin(t)
	none := filepath.Join(s.home, "none.ini")
	s.runs("run", "--config", none).want(t, 78, none+": there is no such file: --config (ZULIP_NATS_CONFIG) takes the path of")
	s.runs("run", "--config", s.home).want(t, 78, s.home+": it cannot be read: it is a folder")
	for what, it := range clipboard(t) {
		if e := s.runs("run", "--config", it.text).want(t, 78, "there is no such file"); strings.Contains(e.stderr, it.secret) {
			t.Errorf("%s: it says\n%s", what, e.stderr)
		}
	}
}

// same says whether a realm would be followed in the same way, as far as the settings say.
func same(a, b RealmConfig) bool { return reflect.DeepEqual(a.without(), b.without()) }

// A file that is read again gives the same realms, wherever they stand in it, and another
// one for each that changed.
func TestFileIsReadAgain(t *testing.T) {
	s := begin(t)
	rc := s.rc("a.rc", "bot@a.example.org", "https://a.example.org")
	b := "[realm \"b\"]\nemail = b@x.org\nkey = " + someKey + "\nsite = x.org\nstart-from = 2026-01-31T10:00:00+02:00\n" +
		"narrow = [[\"channel\", \"x\"]]\nstate = users\ninsecure = false\n"
	path := s.writes("acme.ini", a+b)
	set := told(t, "--config", path)
	read := func() (RealmConfig, RealmConfig) {
		t.Helper()
		c, err := set.read()
		if err != nil || len(c.Realms) != 2 {
			t.Fatal(err)
		}
		slices.SortFunc(c.Realms, func(x, y RealmConfig) int { return strings.Compare(x.Name, y.Name) })
		return c.Realms[0], c.Realms[1]
	}
	a0, b0 := read()
	if a0.Where != path+":1" || b0.Where != path+":3" {
		t.Errorf("they stand at %s and %s", a0.Where, b0.Where)
	}
	again := func(what string, sameA, sameB bool) {
		t.Helper()
		a1, b1 := read()
		if same(a0, a1) != sameA || same(b0, b1) != sameB {
			t.Errorf("%s: the same are a: %v, b: %v\n%+v\n%+v\n%+v\n%+v", what, same(a0, a1), same(b0, b1), a0, a1, b0, b1)
		}
	}
	again("nothing", true, true)
	s.writes("acme.ini", "# more lines\n\n"+b+"\n"+a+"[log]\nlog-level = debug\n")
	again("other lines", true, true)
	s.writes("acme.ini", a+"max-age = 3d\n"+b)
	again("an option", false, true)
	s.writes("acme.ini", a+b+"[stream]\nmax-age = 3d\n")
	again("a default", false, false)
	s.writes("acme.ini", a+strings.Replace(b, "b@x.org", "c@x.org", 1))
	again("an account in the file", true, false)
	s.writes("acme.ini", a+b)
	s.rc("a.rc", "other@a.example.org", "https://a.example.org")
	again("an account in a zuliprc, which the runner compares", true, true)
	if err := os.Remove(rc); err != nil {
		t.Fatal(err)
	}
	again("a zuliprc that is away for a moment", true, true)
	s.rc("a.rc", "bot@a.example.org", "https://a.example.org")
	again("all as before", true, true)

	// A file that is broken for a moment is a complaint, and is still one to watch.
	s.writes("acme.ini", "[realm \"a\"")
	if _, err := set.read(); err == nil {
		t.Error("it is taken")
	}
	if files := set.files(); !slices.Contains(files, path) {
		t.Errorf("it is made of %v", files)
	}
	s.writes("acme.ini", a+b)
	again("all as before", true, true)
}

// Several zuliprcs need no file: each is a realm, named by its site.
func TestSeveralZuliprcs(t *testing.T) {
	s := begin(t)
	one := s.rc("one, and more.rc", "bot@x.org", "https://acme.zulipchat.com")
	two := s.rc("two.rc", "bot@x.org", "https://chat.example.org")
	t.Setenv("ZULIP_NATS_ZULIPRC", "/nonexistent")
	set := told(t, "--zuliprc", one, "--zuliprc="+two, "--max-age", "3d", "--insecure")
	c, err := set.read()
	if err != nil || len(c.Realms) != 2 {
		t.Fatal(err)
	}
	for i, name := range []string{"acme", "chat"} {
		r := c.Realms[i]
		if r.Name != name || r.New.MaxAge != 72*time.Hour || !r.Account.Alone || r.Account.Insecure == nil || !*r.Account.Insecure ||
			r.Account.File != []string{one, two}[i] || r.Where != "--zuliprc "+r.Account.File {
			t.Errorf("%d: %+v", i, r)
		}
	}
	if files := set.files(); !slices.Equal(files, []string{one, two}) {
		t.Errorf("it is made of %v", files)
	}

	same := s.rc("same.rc", "bot@x.org", "https://chat.example.com")
	bad := s.rc("bad.rc", "bot", "https://bad.example.com")
	nameless := s.rc("nameless.rc", "bot@x.org", "https://z\u00fclip.example.org")
	for _, test := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"--zuliprc", two}, 78, []string{"--zuliprc " + two + ": its account is that of --zuliprc " + two + " too: leave one of the two out"}},
		{[]string{"--zuliprc", same}, 78, []string{"--zuliprc " + same + ": its site gives the realm's name chat, as that of --zuliprc " + two +
			" does: name the two yourself, in a file with sections [realm \"NAME\"], and name that with --config"}},
		{[]string{"--zuliprc", bad, "--zuliprc", "/nonexistent.rc"}, 78, []string{"zuliprc " + bad + ": email is no e-mail address: there is no @ in it",
			"there is no zuliprc /nonexistent.rc; give the path of the file and not what is in it: download it from Zulip's settings of the bot, or of your account"}},
		{[]string{"--zuliprc", nameless}, 78, []string{"--zuliprc " + nameless + ": its site gives no name for the realm that a NATS subject can hold: name it yourself, in a file with a section"}},
		{[]string{"--realm", "x", "--moved-from", "https://x.org", "--queue-life", "30d"}, 2, []string{
			"--realm (or ZULIP_NATS_REALM): it is for one organization, and several --zuliprc are given: write a file with a section",
			"--moved-from (or ZULIP_NATS_MOVED_FROM): it is for one organization", "--queue-life (or ZULIP_NATS_QUEUE_LIFE): 30d is too long"}},
		{[]string{"--replicas", "3"}, 2, []string{"--replicas (or ZULIP_NATS_REPLICAS): 3 servers are asked for"}},
	} {
		s.runs(append([]string{"run", "--zuliprc", one, "--zuliprc", two}, test.args...)...).want(t, test.code, test.want...)
	}
}

// What is about one organization has no place beside a file, by whichever way it is given.
func TestOneOrAll(t *testing.T) {
	s := begin(t)
	s.rc("a.rc", "bot@a.example.org", "https://a.example.org")
	path := s.writes("acme.ini", a)
	e := s.runs("run", "--config", path, "--zuliprc", "x", "--realm", "b", "--moved-from", "https://x.org").want(t, 2)
	want := `zulip-nats: --zuliprc (or ZULIP_NATS_ZULIPRC): it is for one organization, and --config (ZULIP_NATS_CONFIG) names a file with all of them: write zuliprc = FILE into a section [realm "NAME"] of the file, or leave the file out
zulip-nats: --realm (or ZULIP_NATS_REALM): it is for one organization, and --config (ZULIP_NATS_CONFIG) names a file with all of them: the file has the name of each in the head of its section, [realm "NAME"]
zulip-nats: --moved-from (or ZULIP_NATS_MOVED_FROM): it is for one organization, and --config (ZULIP_NATS_CONFIG) names a file with all of them: write moved-from = URL into its section [realm "NAME"] of the file
`
	if e.stderr != want {
		t.Errorf("it says\n%s", e.stderr)
	}
	t.Setenv("ZULIP_NATS_REALM", "b")
	s.runs("run", "--config", path).want(t, 2, "ZULIP_NATS_REALM (or --realm): it is for one organization")
	// Where the file is at fault too, that is the exit code.
	s.runs("run", "--config", s.writes("acme.ini", a+"x = y\n"), "--max-age", "x").want(t, 78, "ZULIP_NATS_REALM (or --realm): it is",
		`--max-age (or ZULIP_NATS_MAX_AGE): "x"`, path+": line 3: there is no key x")
}

// Variables of one account say nothing about several, and that is said once.
func TestVariablesOfOneAccount(t *testing.T) {
	s := begin(t)
	s.rc("a.rc", "bot@a.example.org", "https://a.example.org")
	path := s.writes("acme.ini", a)
	for _, v := range []string{"ZULIP_EMAIL", "ZULIP_API_KEY", "ZULIP_API_KEY_FILE", "ZULIP_SITE", "ZULIP_CONFIG"} {
		t.Setenv(v, "hunter2")
	}
	set := told(t, "--config", path)
	c, err := set.read()
	if err != nil {
		t.Fatal(err)
	}
	account, err := poller.LoadAccount(c.Realms[0].Account)
	if err != nil || account.Email != "bot@a.example.org" || account.Site != "https://a.example.org" {
		t.Errorf("the account is %s at %s, %v", account.Email, account.Site, err)
	}
	var out strings.Builder
	set.warn(newLog(&out, LogJSON, zerolog.InfoLevel))
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `"event":"variables_unused"`) ||
		!strings.Contains(got, "ZULIP_CONFIG, ZULIP_EMAIL, ZULIP_API_KEY, ZULIP_API_KEY_FILE, ZULIP_SITE") || strings.Contains(got, "hunter2") {
		t.Errorf("the log says %s", got)
	}
	// With one organization they are what they were.
	set = told(t, "--zuliprc", "a.rc")
	if _, err := set.read(); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if set.warn(newLog(&out, LogJSON, zerolog.InfoLevel)); out.Len() > 0 {
		t.Errorf("the log says %s", out.String())
	}
}

// A realm that has a name is followed whatever its zuliprc is like: it is its own trouble,
// and may pass.
func TestRealmsWithoutAccount(t *testing.T) {
	s := begin(t)
	s.writes("bad.rc", "[api]\nemail=\n")
	c, err := told(t, "--config", s.writes("acme.ini", a+"[realm \"b\"]\nzuliprc = bad.rc\n[realm \"c\"]\nemail = c@x.org\nkey_file = none\n"+
		"site = x.org\n[realm \"d\"]\nemail = d@x.org\nkey_file = bad.rc\nsite = x.org\ncert_bundle = none.pem\n")).read()
	if err != nil || len(c.Realms) != 4 {
		t.Fatal(err)
	}
	for _, r := range c.Realms {
		if _, err := poller.LoadAccount(r.Account); !is[*poller.ConfigError](err) {
			t.Errorf("%s: %v", r.Name, err)
		}
	}
}

// Whatever is pasted into whichever key is not shown if it is a secret.
func TestKeysInTheWrongPlaceOfTheFile(t *testing.T) {
	s := begin(t)
	clip := clipboard(t)
	kinds := map[string]string{}
	for _, kind := range sectionKinds {
		kinds[kind] = "[" + kind + "]\n"
	}
	kinds["realm"] = "[realm \"a\"]\n"
	for kind, head := range kinds {
		for _, key := range keysOf(kind) {
			for what, it := range clip {
				for _, text := range []string{head + key + " = " + it.text, head + key + " = `" + it.text + "`", head + it.text + " = x",
					head + it.text, head + key + " = x ;" + it.text, it.text + "\n" + head, "[" + it.text + "]", "[realm \"" + it.text + "\"]"} {
					set := told(t, "--config", s.writes("acme.ini", text))
					said := ""
					if _, err := set.read(); err != nil {
						said = err.Error()
					} else if said, err = set.last.print(); err != nil {
						said = err.Error()
					}
					if strings.Contains(said, it.secret) || said == "" {
						t.Errorf("%s in %s of [%s]: it says\n%s", what, key, kind, said)
					}
				}
			}
		}
	}
}

// The file that the README shows.
func TestFileOfTheReadme(t *testing.T) {
	s := begin(t)
	text, err := os.ReadFile("testdata/zulip-nats.ini")
	if err != nil {
		t.Fatal(err)
	}
	if readme, err := os.ReadFile("../README.md"); err != nil || !strings.Contains(string(readme), string(text)) {
		t.Errorf("the README shows another file (%v)", err)
	}
	c, err := told(t, "--config", s.writes("zulip-nats.ini", string(text))).read()
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, r := range c.Realms {
		said = append(said, fmt.Sprintln(r.Name, r.New.MaxAge, r.New.Replicas, r.EraseDeleted, r.Queue.ExcludeTypes, r.Queue.Narrow))
	}
	want := []string{"acme 720h0m0s 3 false [presence typing] []\n", "school 8760h0m0s 3 true [presence typing] []\n",
		"club 720h0m0s 3 false [presence typing] [[channel announce]]\n"}
	if !slices.Equal(said, want) {
		t.Errorf("%q", said)
	}
	if c.NATS.URL != "nats://nats-1.example.org:4222,nats://nats-2.example.org:4222" || c.NATS.Creds != filepath.Join(s.home, "bridge.creds") {
		t.Errorf("%+v", c.NATS)
	}
}
