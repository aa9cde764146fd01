package integration_test

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// TestOperatorsOwnStream gives the program a stream that an operator has made, with a
// name and settings of his own: it is used as it is and not changed in anything.
func TestOperatorsOwnStream(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		config jetstream.StreamConfig
		args   []string
	}{
		{"found by its subjects", jetstream.StreamConfig{Name: "CHAT", Subjects: []string{"zulip.acme.>"},
			Description: "ours", MaxMsgs: 1_000_000}, nil},
		{"with wider subjects", jetstream.StreamConfig{Name: "EVERYTHING", Subjects: []string{"zulip.>", "other.*"},
			AllowAtomicPublish: true}, nil},
		{"with wider subjects and no batches",
			jetstream.StreamConfig{Name: "PLAIN", Subjects: []string{"zulip.>"}}, nil},
		{"by its name", jetstream.StreamConfig{Name: "NAMED", Subjects: []string{"zulip.acme.>"},
			Storage: jetstream.MemoryStorage}, []string{"--stream", "NAMED"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			rng := harness.Rand(t)
			w := newWorld(t, natsServer(t))
			before := w.makeStream(c.config)
			// Somebody else's messages are none of our business, and none of ours.
			if c.config.Subjects[0] == "zulip.>" {
				if _, err := w.js.Publish(t.Context(), "zulip.somebody", []byte("hello")); err != nil {
					t.Fatal(err)
				}
			}
			p := w.run(append([]string{"--no-lease"}, c.args...)...)
			w.registered()
			w.talk(rng, 30)
			w.zulip.Down()
			w.talk(rng, 300)
			w.zulip.Up()
			w.settle()
			p.Kill()
			w.talk(rng, 10)
			w.run(append([]string{"--no-lease"}, c.args...)...)
			w.registered()
			w.settle()
			w.oneQueue(w.check().clean(t), 0)
			s, err := w.js.Stream(t.Context(), c.config.Name)
			if err != nil {
				t.Fatal(err)
			}
			if now := toJSON(t, s.CachedInfo().Config); !bytes.Equal(now, before) {
				t.Errorf("the stream's settings were\n%s\nand are now\n%s", before, now)
			}
			// That of the object store is made at the start, so that it is known whether it can be.
			if names := streamNames(t, w.js); slices.ContainsFunc(names,
				func(n string) bool { return n != c.config.Name && n != "OBJ_zulip_acme" }) {
				t.Errorf("there are the streams %q", names)
			}
		})
	}
}

// makeStream makes the stream that the world then is about, and gives its settings as the
// server has them.
func (w *world) makeStream(c jetstream.StreamConfig) []byte {
	w.t.Helper()
	s, err := w.js.CreateStream(w.t.Context(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	w.stream = c.Name
	return toJSON(w.t, s.CachedInfo().Config)
}

func toJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func streamNames(t testing.TB, js jetstream.JetStream) (names []string) {
	t.Helper()
	list := js.StreamNames(context.Background())
	for name := range list.Name() {
		names = append(names, name)
	}
	if err := list.Err(); err != nil {
		t.Fatal(err)
	}
	return names
}

// TestStreamThatBreaksThePromise ends the program at the start, with exit code 78 and a
// sentence, before Zulip has been asked for a queue.
func TestStreamThatBreaksThePromise(t *testing.T) {
	t.Parallel()
	subjects := []string{"zulip.acme.>"}
	for _, c := range []struct {
		name   string
		config jetstream.StreamConfig
		says   string
	}{
		{"no_ack", jetstream.StreamConfig{Subjects: subjects, NoAck: true}, "no_ack"},
		{"mirror", jetstream.StreamConfig{Mirror: &jetstream.StreamSource{Name: "ORIGIN"}}, "mirror"},
		{"sources", jetstream.StreamConfig{Subjects: subjects,
			Sources: []*jetstream.StreamSource{{Name: "ORIGIN"}}}, "sources"},
		{"work queue", jetstream.StreamConfig{Subjects: subjects, Retention: jetstream.WorkQueuePolicy}, "workqueue"},
		{"interest", jetstream.StreamConfig{Subjects: subjects, Retention: jetstream.InterestPolicy}, "interest"},
		{"subject transform", jetstream.StreamConfig{Subjects: subjects,
			SubjectTransform: &jetstream.SubjectTransformConfig{Source: "zulip.acme.>", Destination: "moved.>"}},
			"subject_transform"},
		{"other subjects", jetstream.StreamConfig{Subjects: []string{"zulip.acme.message"}}, "subjects"},
		{"sealed", jetstream.StreamConfig{Subjects: subjects}, "sealed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, natsServer(t))
			if _, err := w.js.CreateStream(t.Context(),
				jetstream.StreamConfig{Name: "ORIGIN", Subjects: []string{"origin"}}); err != nil {
				t.Fatal(err)
			}
			c.config.Name = "BROKEN"
			w.makeStream(c.config)
			if c.name == "sealed" {
				c.config.Sealed = true
				if _, err := w.js.UpdateStream(t.Context(), c.config); err != nil {
					t.Fatal(err)
				}
			}
			p := w.run("--stream", "BROKEN")
			if code := p.ExitCode(); code != 78 {
				t.Errorf("exit code %d, want 78", code)
			}
			t.Log(p.Expect("BROKEN", c.says))
			if n := len(w.queues()); n > 0 {
				t.Errorf("%d queues were registered", n)
			}
		})
	}
}

// TestAccountWithoutJetStream ends with 78, too: no waiting heals it.
func TestAccountWithoutJetStream(t *testing.T) {
	t.Parallel()
	const password = "thePasswordOfPoor"
	harness.KeepSecret(password)
	n := natstest.StartProcess(t, `accounts {
		RICH { jetstream: enabled, users: [{ user: rich, password: wealth }] }
		POOR { users: [{ user: poor, password: `+password+` }] }
	}`)
	w := newWorld(t, strings.Replace(n.URL, "://", "://rich:wealth@", 1))
	w.nats = n.URL
	p := w.run("--nats-user", "poor", "--nats-password", password)
	if code := p.ExitCode(); code != 78 {
		t.Errorf("exit code %d, want 78", code)
	}
	t.Log(p.Expect("JetStream", "account"))
	w.nats = strings.Replace(n.URL, "://", "://poor:"+password+"@", 1)
	if code := w.run().ExitCode(); code != 78 {
		t.Errorf("with the password in the URL: exit code %d, want 78", code)
	}
}

// TestUnusableZuliprc ends the program with 78 and a sentence that names the file.
func TestUnusableZuliprc(t *testing.T) {
	t.Parallel()
	key := strings.Repeat("unusableKey00000", 2)
	harness.KeepSecret(key)
	url := natsServer(t)
	for _, c := range []struct{ name, text, says string }{
		{"missing", "", "zuliprc"},
		{"empty", "\n", "key"},
		{"no key", "[api]\nemail=bot@example.com\nsite=http://127.0.0.1:1\n", "key"},
		{"no email", "[api]\nkey=" + key + "\nsite=http://127.0.0.1:1\n", "email"},
		{"no site", "[api]\nemail=bot@example.com\nkey=" + key + "\n", "site"},
		{"no section", "email=bot@example.com\nkey=" + key + "\nsite=http://127.0.0.1:1\n", "api"},
		{"no ini file", `{"email":"bot@example.com","key":"` + key + `"}`, "zuliprc"},
		{"a certificate that is not there",
			"[api]\nemail=bot@example.com\nkey=" + key + "\nsite=https://127.0.0.1:1\ncert_bundle=/nonexistent.pem\n",
			"cert_bundle"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "zuliprc")
			if c.text != "" {
				harness.WriteFile(t, path, c.text)
			}
			p := start(t, "run", "--zuliprc", path, "--nats-url", url)
			if code := p.ExitCode(); code != 78 {
				t.Errorf("exit code %d, want 78", code)
			}
			t.Log(p.Expect(c.says))
		})
	}
}

// TestUsage ends the program with 2 for whatever is wrong on the command line.
func TestUsage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		says string
	}{
		{nil, "command"},
		{[]string{"walk"}, "walk"},
		{[]string{"run", "--no-such-option"}, "no-such-option"},
		{[]string{"run", "--zuliprc"}, "zuliprc"},
		{[]string{"run", "--nats-url", "http://x"}, "nats-url"},
		{[]string{"run", "--realm", "a.b"}, "realm"},
		{[]string{"run", "--publish-path", "pigeon"}, "publish-path"},
		{[]string{"run", "leftover"}, "leftover"},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			t.Parallel()
			p := start(t, c.args...)
			if code := p.ExitCode(); code != 2 {
				t.Errorf("exit code %d, want 2", code)
			}
			t.Log(p.Expect(c.says))
		})
	}
}

// TestAnotherOrganization refuses to put two organizations under one name.
func TestAnotherOrganization(t *testing.T) {
	t.Parallel()
	url := natsServer(t)
	w := newWorld(t, url)
	p := w.run("--no-lease")
	w.registered()
	w.settle()
	p.Stop()
	other := newWorld(t, url, func(z *zulipsim.Server) { z.RealmName = "Other" })
	p = other.run("--no-lease")
	if code := p.ExitCode(); code != 78 {
		t.Errorf("exit code %d, want 78", code)
	}
	t.Log(p.Expect("site", w.site))
	if n := len(other.queues()); n > 0 {
		t.Errorf("%d queues were registered", n)
	}
}
