package poller

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const testKey = "abcdefghijklmnopqrstuvwxyz012345"

// TestZuliprcLikeConfigParser compares what we read with what Python's configparser read
// from the same files.
func TestZuliprcLikeConfigParser(t *testing.T) {
	raw, err := os.ReadFile("testdata/zuliprc/expected.json")
	if err != nil {
		t.Fatal(err)
	}
	var expected map[string]map[string]any
	if err := json.Unmarshal(raw, &expected); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob("testdata/zuliprc/*.rc")
	if len(files) != len(expected) || len(files) < 60 {
		t.Fatalf("%d files, %d expectations", len(files), len(expected))
	}
	for name, want := range expected {
		t.Run(name, func(t *testing.T) {
			z, err := readZuliprc("testdata/zuliprc/" + name + ".rc")
			if want["error"] != nil {
				config, ok := errors.AsType[*ConfigError](err)
				if !ok {
					t.Fatalf("configparser says %v, we say %v", want["error"], err)
				}
				if strings.Contains(config.Msg, testKey) || !strings.Contains(config.Msg, name+".rc") {
					t.Errorf("message %q", config.Msg)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if z.hasAPI != want["section"] {
				t.Errorf("[api] there: %v, configparser says %v", z.hasAPI, want["section"])
			}
			for _, key := range []string{"email", "key", "site", "insecure", "cert_bundle", "client_cert",
				"client_cert_key"} {
				got, err := z.get(key)
				switch w := want[key].(type) {
				case nil:
					if _, has := z.raw(key); has || got != "" || err != nil {
						t.Errorf("%s is %q (%v), configparser says there is none", key, got, err)
					}
				case string:
					if got != w || err != nil {
						t.Errorf("%s is %q (%v), configparser says %q", key, got, err, w)
					}
				default:
					if err == nil {
						t.Errorf("%s is %q, configparser says %v", key, got, w)
					}
				}
			}
		})
	}
}

// env makes a Getenv of pairs.
func env(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadAccountPrecedence(t *testing.T) {
	dir := t.TempDir()
	otherKey := strings.Repeat("B", 32)
	file := write(t, filepath.Join(dir, "my zuliprc"),
		"[api]\nemail=file@example.com\nkey="+testKey+"\nsite=file.example.com\ninsecure=true\n")
	write(t, filepath.Join(dir, ".zuliprc"),
		"[api]\nemail=home@example.com\nkey="+testKey+"\nsite=https://home.example.com/\n")
	pem := write(t, filepath.Join(dir, "some.pem"), "")
	no := false
	tests := []struct {
		name string
		src  Source
		want Account
	}{
		{"the file named", Source{File: file, Getenv: env("ZULIP_CONFIG", "/not/there")},
			Account{Email: "file@example.com", Key: testKey, Site: "https://file.example.com", Insecure: true}},
		{"with ~", Source{File: "~/my zuliprc", Getenv: env("HOME", dir)},
			Account{Email: "file@example.com", Key: testKey, Site: "https://file.example.com", Insecure: true}},
		{"ZULIP_CONFIG", Source{Getenv: env("HOME", dir, "ZULIP_CONFIG", file)},
			Account{Email: "file@example.com", Key: testKey, Site: "https://file.example.com", Insecure: true}},
		{"~/.zuliprc", Source{Getenv: env("HOME", dir)},
			Account{Email: "home@example.com", Key: testKey, Site: "https://home.example.com"}},
		{"environment before file", Source{File: file,
			Getenv: env("ZULIP_EMAIL", "env@example.com", "ZULIP_API_KEY", otherKey, "ZULIP_SITE",
				"localhost:9991", "ZULIP_CERT", pem, "ZULIP_CERT_KEY", pem, "ZULIP_CERT_BUNDLE", pem,
				"ZULIP_ALLOW_INSECURE", "False")},
			Account{Email: "env@example.com", Key: otherKey, Site: "http://localhost:9991", CertBundle: pem,
				ClientCert: pem, ClientCertKey: pem}},
		{"argument before environment",
			Source{File: file, Insecure: &no, Getenv: env("ZULIP_ALLOW_INSECURE", "true")},
			Account{Email: "file@example.com", Key: testKey, Site: "https://file.example.com"}},
		{"no file at all", Source{File: "/not/there",
			Getenv: env("ZULIP_EMAIL", "env@example.com", "ZULIP_API_KEY", otherKey, "ZULIP_SITE", "chat.example.com")},
			Account{Email: "env@example.com", Key: otherKey, Site: "https://chat.example.com"}},
		{"one value of the environment", Source{File: file, Getenv: env("ZULIP_SITE", "https://env.example.com")},
			Account{Email: "file@example.com", Key: testKey, Site: "https://env.example.com", Insecure: true}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := LoadAccount(test.src)
			if err != nil || got != test.want {
				t.Errorf("got %+v, %v\nwant %+v", got, err, test.want)
			}
		})
	}
}

func TestLoadAccountRefuses(t *testing.T) {
	dir := t.TempDir()
	good := "[api]\nemail=bot@example.com\nkey=" + testKey + "\nsite=https://chat.example.com\n"
	tests := []struct {
		name, file string
		env        []string
		says       []string
	}{
		{"no key", strings.Replace(good, "key=", "#key=", 1), nil,
			[]string{"PATH", `[api] has no "key"`, "ZULIP_API_KEY"}},
		{"no site", strings.Replace(good, "site=", "#site=", 1), nil, []string{"PATH", `has no "site"`}},
		{"no email", strings.Replace(good, "email=", "#email=", 1), nil, []string{"PATH", `has no "email"`}},
		{"no section", strings.Replace(good, "[api]\n", "", 1), nil, []string{"PATH", "[api]", "line 1"}},
		{"another section", strings.Replace(good, "[api]", "[bot]", 1), nil, []string{"PATH", "[api]"}},
		{"e-mail without @", strings.Replace(good, "bot@example.com", "hunter2", 1), nil,
			[]string{"PATH: email", "no @"}},
		{"quotes", strings.Replace(good, testKey, `"`+testKey+`"`, 1), nil, []string{"PATH: key", "quotes"}},
		{"single quotes", strings.Replace(good, "bot@example.com", "'bot@example.com'", 1), nil,
			[]string{"PATH: email", "quotes"}},
		{"quotes in the environment", good, []string{"ZULIP_SITE", `"https://chat.example.com"`},
			[]string{"variable ZULIP_SITE", "quotes"}},
		{"key with a hyphen", strings.Replace(good, testKey, testKey[:31]+"-", 1), nil,
			[]string{"PATH: key", "32 letters and digits", "other characters"}},
		{"short key", strings.Replace(good, testKey, testKey[1:], 1), nil, []string{"PATH: key", "31 characters"}},
		{"key with a blank", strings.Replace(good, testKey, testKey[:31]+" x", 1), nil,
			[]string{"PATH: key", "33 characters"}},
		{"key of the environment", good, []string{"ZULIP_API_KEY", "hunter2"},
			[]string{"variable ZULIP_API_KEY", "7 characters"}},
		{"e-mail of two lines", strings.Replace(good, "key=", "  more\nkey=", 1), nil, []string{"PATH: email"}},
		{"lone percent", strings.Replace(good, "bot@", "bot%@", 1), nil, []string{"PATH: email", "%%"}},
		{"no URL", strings.Replace(good, "https://chat", "ftp://chat", 1), nil, []string{"PATH: site", "https://"}},
		{"password in the URL", strings.Replace(good, "https://chat", "https://me:secret@chat", 1), nil,
			[]string{"PATH: site", "password"}},
		{"query in the URL", strings.Replace(good, ".com\n", ".com/?x\n", 2), nil, []string{"PATH"}},
		{"insecure maybe", good + "insecure=yes\n", nil, []string{"PATH: insecure", "true or false"}},
		{"insecure empty", good + "insecure=\n", nil, []string{"PATH: insecure", "true or false"}},
		{"insecure in the environment", good, []string{"ZULIP_ALLOW_INSECURE", "1"},
			[]string{"ZULIP_ALLOW_INSECURE", "true or false"}},
		{"no bundle", good + "cert_bundle=/not/there\n", nil,
			[]string{"PATH: cert_bundle", "/not/there", "no such file"}},
		{"a folder", good + "client_cert=/\n", nil, []string{"PATH: client_cert", "folder"}},
		{"key without certificate", good + "client_cert_key=/etc/passwd\n", nil,
			[]string{"PATH: client_cert_key", "client_cert "}},
		{"UTF-16", "\xff\xfe[\x00a\x00p\x00i\x00]\x00", nil, []string{"PATH", "UTF-16"}},
		{"Latin-1", "[api]\nemail=b\xf6t@example.com\n", nil, []string{"PATH", "UTF-8"}},
		{"not a zuliprc", strings.Repeat("x", mostZuliprc+1), nil, []string{"PATH", "larger"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := write(t, filepath.Join(dir, "zuliprc"), test.file)
			_, err := LoadAccount(Source{File: path, Getenv: env(test.env...)})
			config, ok := errors.AsType[*ConfigError](err)
			if !ok {
				t.Fatalf("error %v", err)
			}
			for _, word := range test.says {
				if word = strings.ReplaceAll(word, "PATH", path); !strings.Contains(config.Msg, word) {
					t.Errorf("%q does not say %q", config.Msg, word)
				}
			}
			if strings.Contains(config.Msg, testKey[:31]) || strings.Contains(config.Msg, "hunter2") ||
				strings.Contains(config.Msg, "secret") {
				t.Errorf("%q tells a secret", config.Msg)
			}
			if strings.Count(config.Msg, "\n") > 0 {
				t.Errorf("%q is no single line", config.Msg)
			}
		})
	}
}

func TestLoadAccountWithoutFile(t *testing.T) {
	dir := t.TempDir()
	for name, test := range map[string]struct {
		src  Source
		says string
	}{
		"named": {Source{File: filepath.Join(dir, "not-there.rc"), Getenv: env()},
			filepath.Join(dir, "not-there.rc")},
		"by ZULIP_CONFIG": {Source{Getenv: env("ZULIP_CONFIG", "/not/there/either")}, "/not/there/either"},
		"by nobody":       {Source{Getenv: env("HOME", dir)}, "--zuliprc"},
		"a bare word":     {Source{File: "zulirpc", Getenv: env()}, "there is no zuliprc zulirpc;"},
		"without a site": {Source{Getenv: env("HOME", dir, "ZULIP_EMAIL", "x@example.com", "ZULIP_API_KEY", testKey)},
			"set ZULIP_SITE too"},
		"without a key": {Source{Getenv: env("HOME", dir, "ZULIP_EMAIL", "x@example.com", "ZULIP_SITE", "x")},
			"set ZULIP_API_KEY too"},
		"without an e-mail": {Source{Getenv: env("HOME", dir, "ZULIP_API_KEY", testKey, "ZULIP_SITE", "x")},
			"set ZULIP_EMAIL too"},
		"half of it": {Source{File: filepath.Join(dir, "not-there.rc"),
			Getenv: env("ZULIP_EMAIL", "x@example.com")}, "not-there.rc"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := LoadAccount(test.src)
			if _, ok := errors.AsType[*ConfigError](err); !ok || !errors.Is(err, fs.ErrNotExist) ||
				!strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v", err)
			}
		})
	}
	_, err := LoadAccount(Source{File: dir, Getenv: env()})
	if _, ok := errors.AsType[*ConfigError](err); !ok || !strings.Contains(err.Error(), "directory") {
		t.Errorf("a folder gives %v", err)
	}
	// Whoever runs the tests as root can read every file, so the error of the open is
	// given here.
	z := &zuliprc{path: "/x/zuliprc"}
	if err := z.cannot(&fs.PathError{Op: "open", Path: "/x/zuliprc",
		Err: fs.ErrPermission}); !strings.Contains(err.Error(), "/x/zuliprc: permission") {
		t.Errorf("a file that may not be read gives %v", err)
	}
}

func TestNormalSite(t *testing.T) {
	for site, want := range map[string]string{
		"https://chat.example.com":              "https://chat.example.com",
		"https://chat.example.com/":             "https://chat.example.com",
		"https://chat.example.com/api/":         "https://chat.example.com",
		"https://chat.example.com/zulip/api":    "https://chat.example.com/zulip",
		"chat.example.com":                      "https://chat.example.com",
		"localhost":                             "http://localhost",
		"localhost:9991":                        "http://localhost:9991",
		"127.0.0.1:9991":                        "https://127.0.0.1:9991",
		"HTTPS://Chat.Example.COM:443/":         "https://chat.example.com",
		"http://[::1]:80":                       "http://[::1]",
		"http://[::1]:9991//":                   "http://[::1]:9991",
		"httpd.example.com":                     "https://httpd.example.com",
		"  https://chat.example.com  ":          "https://chat.example.com",
		"https://chat.example.com:8443/sub%20x": "https://chat.example.com:8443/sub%20x",
	} {
		if got, what := normalSite(site); got != want || what != "" {
			t.Errorf("%q gives %q (%s), want %q", site, got, what, want)
		}
	}
	for _, site := range []string{"https://", "https:///x", "https://a b", "ftp://x", "https://x?y", "https://x#y",
		"https://u@x", "https://x\ny", "https://[::1", "://", `https://x\y`} {
		if got, what := normalSite(site); what == "" {
			t.Errorf("%q gives %q", site, got)
		}
	}
}

// FuzzZuliprc: no file makes us panic, and no error tells what stands in a file.
func FuzzZuliprc(f *testing.F) {
	files, _ := filepath.Glob("testdata/zuliprc/*.rc")
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		z := &zuliprc{path: "/x/zuliprc"}
		err := z.parse(raw)
		for _, key := range []string{"email", "key", "site", "insecure"} {
			if err == nil {
				_, err = z.get(key)
			}
		}
		if err == nil {
			return
		}
		if _, ok := errors.AsType[*ConfigError](err); !ok {
			t.Errorf("%T: %v", err, err)
		}
		for _, line := range strings.Fields(string(raw)) {
			if len(line) > 14 && strings.Contains(err.Error(), line) {
				t.Errorf("the error %q tells %q", err, line)
			}
		}
	})
}

// An account that stands in a file of ours: no variable and no zuliprc says anything about
// who we are, and what is given there comes before what is said about certificates.
func TestInlineAccount(t *testing.T) {
	dir := t.TempDir()
	otherKey := strings.Repeat("B", 32)
	pem := write(t, filepath.Join(dir, "some.pem"), "")
	keyFile := write(t, filepath.Join(dir, "key"), testKey+"\n")
	variables := env("HOME", dir, "ZULIP_CONFIG", "/not/there", "ZULIP_EMAIL", "env@example.com", "ZULIP_API_KEY", otherKey,
		"ZULIP_API_KEY_FILE", "/not/there", "ZULIP_SITE", "https://env.example.com")
	src := Source{Getenv: variables, Inline: map[string]string{"email": "bot@example.com", "key": testKey,
		"site": "Chat.example.com"}}
	want := Account{Email: "bot@example.com", Key: testKey, Site: "https://chat.example.com"}
	if got, err := LoadAccount(src); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	if files := src.Files(); len(files) > 0 || src.Path() != "" {
		t.Errorf("it is read from %q and %q", files, src.Path())
	}

	// The file of the key is read each time.
	src = Source{Getenv: variables, Inline: map[string]string{"email": "bot@example.com", "key_file": keyFile,
		"site": "https://chat.example.com"}}
	if got, err := LoadAccount(src); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	write(t, keyFile, otherKey)
	want.Key = otherKey
	if got, err := LoadAccount(src); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	if files := src.Files(); len(files) != 1 || files[0] != keyFile {
		t.Errorf("it is read from %q", files)
	}

	// % and quotes are characters, and certificates come from the variables too.
	src = Source{Inline: map[string]string{"email": "100%@example.com", "key": testKey, "site": "chat.example.com",
		"cert_bundle": pem},
		Getenv: env("ZULIP_CERT", pem, "ZULIP_CERT_BUNDLE", "/not/there", "ZULIP_ALLOW_INSECURE", "true")}
	want = Account{Email: "100%@example.com", Key: testKey, Site: "https://chat.example.com", CertBundle: pem,
		ClientCert: pem, Insecure: true}
	got, from, err := src.Load()
	if err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	if from["client_cert"] != "the variable ZULIP_CERT" {
		t.Errorf("client_cert is from %q", from["client_cert"])
	}
}

// What is wrong with such an account names the line where it stands.
func TestInlineAccountRefuses(t *testing.T) {
	dir := t.TempDir()
	where := map[string]string{"": `acme.ini: line 3: [realm "acme"]`, "email": "acme.ini: line 4",
		"key": "acme.ini: line 5", "key_file": "acme.ini: line 5", "site": "acme.ini: line 6", "cert_bundle": "acme.ini: line 7"}
	secret := "hunter2"
	for name, test := range map[string]struct {
		change map[string]string
		want   string
	}{
		"no site": {map[string]string{"site": ""}, `acme.ini: line 3: [realm "acme"] has no "site": write it there, or name a zuliprc`},
		"no key":  {map[string]string{"key": ""}, `acme.ini: line 3: [realm "acme"] has no "key": write it there, or name a zuliprc`},
		"bad e-mail": {map[string]string{"email": secret},
			"acme.ini: line 4: email is no e-mail address: there is no @ in it"},
		"bad key": {map[string]string{"key": secret}, "acme.ini: line 5: key is no API key, which is 32 letters and digits: it is 7 " +
			"characters; download it from Zulip's settings of the bot, or of your account again"},
		"no file of the key": {map[string]string{"key": "", "key_file": "/not/there.key"},
			"acme.ini: line 5: key_file: the file /not/there.key cannot be read: no such file or directory"},
		"bad file of the key": {map[string]string{"key": "", "key_file": write(t, filepath.Join(dir, "bad.key"), secret)},
			"acme.ini: line 5: key_file names a file, and what is in it is no API key, which is 32 letters and digits: it is 7 " +
				"characters; download it from Zulip's settings of the bot, or of your account again"},
		"bad site": {map[string]string{"site": "https://bot:" + secret + "@chat.example.com"}, "acme.ini: line 6: site is no " +
			"address of a server such as https://chat.example.com: a user or password does not belong in it"},
		"no bundle": {map[string]string{"cert_bundle": "/not/there"}, "acme.ini: line 7: cert_bundle names the file /not/there, " +
			"which cannot be read: no such file or directory"},
	} {
		src := Source{Getenv: env("ZULIP_SITE", "https://env.example.com", "ZULIP_API_KEY", testKey), Where: where,
			Inline: map[string]string{"email": "bot@example.com", "key": testKey, "site": "https://chat.example.com"}}
		for key, value := range test.change {
			src.Inline[key] = value
		}
		_, err := LoadAccount(src)
		if _, ok := errors.AsType[*ConfigError](err); !ok || err.Error() != test.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A zuliprc that is one of several: the variables that say who we are do not count, those
// about certificates do.
func TestLoadAccountAlone(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "zuliprc"), "[api]\nemail=file@example.com\nkey="+testKey+"\nsite=file.example.com\n")
	src := Source{File: file, Alone: true, Getenv: env("ZULIP_EMAIL", "env@example.com", "ZULIP_API_KEY", "x",
		"ZULIP_API_KEY_FILE", "/not/there", "ZULIP_SITE", "x", "ZULIP_ALLOW_INSECURE", "true")}
	want := Account{Email: "file@example.com", Key: testKey, Site: "https://file.example.com", Insecure: true}
	if got, err := LoadAccount(src); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	if files := src.Files(); len(files) != 1 || files[0] != file {
		t.Errorf("it is read from %q", files)
	}
	for text, says := range map[string]string{"": "there is no section [api]", "[api]\nemail=file@example.com\nkey=" + testKey: `has no "site"`} {
		write(t, file, text)
		if _, err := LoadAccount(src); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "ZULIP_") {
			t.Errorf("%q: %v", text, err)
		}
	}
	src.File = filepath.Join(dir, "none.rc")
	if _, err := LoadAccount(src); !errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "ZULIP_") {
		t.Errorf("%v", err)
	}
	// Where the variables count, the file that one names is one of those that matter.
	src = Source{File: file, Getenv: env("ZULIP_API_KEY_FILE", "/run/key")}
	if files := src.Files(); len(files) != 2 || files[0] != file || files[1] != "/run/key" {
		t.Errorf("it is read from %q", files)
	}
}
