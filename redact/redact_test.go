package redact_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nkeys"

	"zulip-nats/redact"
)

func TestURL(t *testing.T) {
	for raw, want := range map[string]string{
		"nats://nats.example.org:4222":                         "nats://nats.example.org:4222",
		"nats.example.org":                                     "nats.example.org",
		"[::1]:4222":                                           "[::1]:4222",
		"nats://hunter2@nats.example.org":                      "nats://nats.example.org",
		"nats://bridge:hunter2@nats.example.org:4222":          "nats://nats.example.org:4222",
		"nats://bridge:hunt%2fer2@nats.example.org":            "nats://nats.example.org",
		"nats://bridge:hunt@er2@nats.example.org":              "nats://nats.example.org",
		"hunter2@nats.example.org":                             "nats.example.org",
		"bridge:hunter2@nats.example.org:4222":                 "nats.example.org:4222",
		"wss://hunter2@nats.example.org:443/hunter2?t=hunter2": "wss://nats.example.org:443",
		"tls://[fe80::1%25eth0]:4222":                          "tls://[fe80::1%eth0]:4222",
		"https://zülip.example.org/hunter2#hunter2":            "https://zülip.example.org",
		// What cannot be told apart is not shown.
		"nats://hunt/er2@nats.example.org":            "",
		"nats://bridge:hunter2/@x@nats.example:0":     "",
		"nats://hunt#er2@nats.example.org":            "",
		"nats://hunt?er2@nats.example.org":            "",
		"nats://bridge:hunter2":                       "",
		"nats://bridge:hunter2@bad host:4222":         "",
		"bridge:hunter2@[::1":                         "",
		"nats://%zz@hunter2":                          "",
		"hunter2-as-a-scheme://nats.example.org":      "",
		"nats://":                                     "",
		"":                                            "",
		"nats://" + strings.Repeat("SUAM", 14) + "AA": "",
	} {
		if got := redact.URL(raw); got != want {
			t.Errorf("%s: %q, not %q", raw, got, want)
		}
	}
	if got, want := redact.URLs("nats://hunter2@a, nats://b:hunter2,c:4222"),
		"nats://a, (address 2, not shown), c:4222"; got != want {
		t.Errorf("%q, not %q", got, want)
	}
}

// secrets are what people have in their clipboard.
func secrets(t *testing.T) map[string]string {
	t.Helper()
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"a seed":                    string(seed),
		"an API key":                "abcdefghijklmnopqrstuvwxyz012345",
		"a zuliprc":                 "[api]\nemail=bot@example.com\nkey=abcdefghijklmnopqrstuvwxyz012345\nsite=https://chat.example.com\n",
		"a zuliprc in one line":     "[api] email=bot@example.com key=abcdefghijklmnopqrstuvwxyz012345",
		"a PEM key":                 "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg\n-----END PRIVATE KEY-----\n",
		"a JWT":                     "eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5LW5rZXkifQ.eyJqdGkiOiJ.c2ln",
		"a token in hex":            "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
		"a token in base64":         "c2VjcmV0LXRva2VuLWZvci/OYXRzLWFu+GJyaWRnZQ==",
		"a token with many slashes": "c2Vj/mV0LX/va2Vu/WZvci/9uYXRz",
		"a password":                "hunter2",
		"an address":                "nats://hunter2@nats.example.org:4222",
		"nothing":                   "",
		"a large thing":             "/" + strings.Repeat("a/", 3000),
		"two lines":                 "/etc/one\n/etc/two",
	}
}

func TestPath(t *testing.T) {
	for what, secret := range secrets(t) {
		if got := redact.Path(secret); !strings.HasPrefix(got, "(not shown") {
			t.Errorf("%s is shown: %s", what, got)
		}
	}
	dir := t.TempDir()
	odd := filepath.Join(dir, "abcdefghijklmnopqrstuvwxyz012345")
	if got := redact.Path(odd); got == odd {
		t.Errorf("shown though it may be a key and there is no such file: %s", got)
	}
	if err := os.WriteFile(odd, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{odd, "/etc/zulip-nats/bot.creds", "zuliprc.txt", "~/zuliprc", "../nats/ca.pem",
		`C:\nats\ca.pem`,
		"/run/secrets/nats/user.nk", "our-zulip-organization-of-production-bridge-to-nats.creds",
		"/Users/Björk/My Files/zuliprc", "/var/lib/Kube2/volumes/kubernetes.io~secret/nats-creds-2/bot.creds"} {
		if got := redact.Path(name); got != name {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// Where a bare word is a name, the others are still none.
func TestLikeName(t *testing.T) {
	for what, secret := range secrets(t) {
		if what != "a password" && redact.LikeName(secret) {
			t.Errorf("%s is like a name", what)
		}
	}
	if redact.LikeName("Ab3dEf6hIj9lMn2pQr5tUv8xYz") {
		t.Error("letters and digits that a machine has drawn are like a name")
	}
	for _, name := range []string{"typo", "zuliprc", "our-zulip-bridge-of-production", "./zuliprc", "zuliprc.txt"} {
		if !redact.LikeName(name) {
			t.Errorf("%s is not like a name", name)
		}
	}
}

func TestText(t *testing.T) {
	for what, secret := range secrets(t) {
		if what == "a password" || what == "nothing" || what == "an address" || what == "two lines" ||
			what == "a large thing" ||
			what == "a token with many slashes" {
			continue // they look like nothing
		}
		if got := redact.Text("say " + secret); strings.Contains(got, secret) {
			t.Errorf("%s is shown: %s", what, got)
		}
	}
	for _, text := range []string{"yesterday", "2026-01-31T15:04:05Z", `{"channel": "x"}`, "http://nats.example.org",
		"the key"} {
		if got := redact.Text(text); got != text {
			t.Errorf("%s: %s", text, got)
		}
	}
}

func TestFileError(t *testing.T) {
	_, err := os.ReadFile("hunter2")
	if got := redact.FileError(err); got != "no such file or directory" {
		t.Error(got)
	}
	if got := redact.FileError(&fs.PathError{Op: "open", Path: "hunter2",
		Err: fs.ErrPermission}); got != "permission denied" {
		t.Error(got)
	}
}
