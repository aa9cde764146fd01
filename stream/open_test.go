package stream_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// rawConfig is a stream's configuration as the server gives it, without the types of any
// library.
func rawConfig(t *testing.T, srv *natstest.Server, name string) map[string]any {
	t.Helper()
	answer, err := srv.Conn().Request("$JS.API.STREAM.INFO."+name, nil, 2*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Config map[string]any `json:"config"`
	}
	if err := json.Unmarshal(answer.Data, &info); err != nil {
		t.Fatal(err)
	}
	return info.Config
}

// createRaw makes a stream of a configuration in JSON.
func createRaw(t *testing.T, srv *natstest.Server, name string, config map[string]any) {
	t.Helper()
	config = maps.Clone(config)
	config["name"] = name
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	natstest.Eventually(t, "stream "+name, func() bool {
		answer, err := srv.Conn().Request("$JS.API.STREAM.CREATE."+name, data, 2*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(answer.Data), `"err_code":10049`) {
			return false // see natstest.CreateStream
		}
		if strings.Contains(string(answer.Data), `"error"`) {
			t.Fatalf("creating %s: %s", data, answer.Data)
		}
		return true
	})
}

func TestNewStream(t *testing.T) {
	srv := natstest.Start(t)
	nc := connect(t, srv.URL)
	s := open(t, nc, stream.Config{Version: "1.2.3", QueueLife: 24 * time.Hour})
	if !s.Created() || s.Name() != "ZULIP_acme" || !s.Dedicated() || s.Domain() != "" {
		t.Fatalf("created %v, name %s, dedicated %v, domain %q", s.Created(), s.Name(), s.Dedicated(), s.Domain())
	}
	config := rawConfig(t, srv, "ZULIP_acme")
	metadata, _ := config["metadata"].(map[string]any)
	if metadata["zulip-bridge"] != "1.2.3" {
		t.Errorf("metadata is %v", metadata)
	}
	want := map[string]any{
		"subjects": []any{"zulip.acme.>"}, "retention": "limits", "storage": "file", "num_replicas": 1.0,
		"max_age":   7 * 24 * 3600e9,
		"max_bytes": -1.0, "max_msgs": -1.0, "max_msg_size": -1.0, "max_msgs_per_subject": -1.0, "max_consumers": -1.0,
		"discard":          "old",
		"duplicate_window": 120e9, "compression": "s2", "allow_direct": true, "allow_msg_ttl": true,
		"allow_rollup_hdrs": false,
		"allow_atomic":      true, "allow_batched": true, "deny_delete": false, "deny_purge": false, "sealed": false,
	}
	for key, value := range want {
		got, _ := json.Marshal(config[key])
		expected, _ := json.Marshal(value)
		if string(got) != string(expected) {
			t.Errorf("%s is %s, want %s", key, got, expected)
		}
	}

	again := open(t, nc, stream.Config{Version: "4.5.6"})
	if again.Created() {
		t.Error("made a second time")
	}
	if got := rawConfig(t, srv, "ZULIP_acme"); got["metadata"].(map[string]any)["zulip-bridge"] != "1.2.3" {
		t.Error("an existing stream was changed")
	}

	chosen := open(t, nc, stream.Config{Realm: "other", Filter: "zulip.other.>", Name: "MINE",
		QueueLife: 10 * 24 * time.Hour,
		New:       stream.NewStream{Memory: true, MaxBytes: 1 << 20}})
	config = rawConfig(t, srv, "MINE")
	if !chosen.Created() || config["storage"] != "memory" || config["max_bytes"] != float64(1<<20) ||
		config["max_age"] != 10*24*3600e9 {
		t.Errorf("the chosen settings became %v", config)
	}
}

// An operator's stream is taken as it is, whatever its name, and never written to.
func TestExistingStreamIsAdopted(t *testing.T) {
	srv := natstest.Start(t)
	createRaw(t, srv, "CHAT", map[string]any{
		"subjects": []string{"zulip.acme.>"}, "retention": "limits", "storage": "memory", "max_age": 48 * 3600e9,
		"num_replicas":  1,
		"allow_batched": true, "description": "ours", "metadata": map[string]string{"team": "chat"},
		"max_msg_size": 5000,
	})
	before := rawConfig(t, srv, "CHAT")
	s := open(t, connect(t, srv.URL), stream.Config{})
	if s.Name() != "CHAT" || s.Created() || !s.Dedicated() {
		t.Fatalf("name %s, created %v, dedicated %v", s.Name(), s.Created(), s.Dedicated())
	}
	if _, err := s.Append(t.Context(), stream.Cursor{}, messages(1, 3)); err != nil {
		t.Fatal(err)
	}
	after := rawConfig(t, srv, "CHAT")
	a, _ := json.Marshal(before)
	b, _ := json.Marshal(after)
	if string(a) != string(b) {
		t.Fatalf("the configuration was\n%s\nand is\n%s", a, b)
	}
	if !s.Fits(&stream.Message{Subject: "zulip.acme.x", Data: make([]byte, 4000)}) ||
		s.Fits(&stream.Message{Subject: "zulip.acme.x", Data: make([]byte, 5000)}) {
		t.Error("the stream's max_msg_size does not count")
	}
}

func TestStreamsThatBreakThePromise(t *testing.T) {
	srv := natstest.Start(t)
	nc := connect(t, srv.URL)
	base := map[string]any{"subjects": []string{"zulip.acme.>"}, "retention": "limits", "storage": "file",
		"num_replicas": 1}
	with := func(key string, value any) map[string]any {
		c := maps.Clone(base)
		c[key] = value
		return c
	}
	without := func(key string, value any) map[string]any {
		c := with(key, value)
		delete(c, "subjects")
		return c
	}
	createRaw(t, srv, "ORIGIN", map[string]any{"subjects": []string{"origin.>"}, "retention": "limits",
		"storage": "file", "num_replicas": 1})
	for _, test := range []struct {
		setting string
		config  map[string]any
	}{
		{"no_ack", with("no_ack", true)},
		{"mirror", without("mirror", map[string]any{"name": "ORIGIN"})},
		{"sources", with("sources", []any{map[string]any{"name": "ORIGIN"}})},
		{"subject_transform", with("subject_transform", map[string]any{"src": "zulip.acme.>", "dest": "chat.>"})},
		{"persist_mode", with("persist_mode", "async")},
		{"retention", with("retention", "interest")},
		{"retention", with("retention", "workqueue")},
		{"allow_msg_counter", with("allow_msg_counter", true)},
		{"subjects", with("subjects", []string{"zulip.acme.*"})},
		{"subjects", with("subjects", []string{"zulip.acme.message", "zulip.acme.reaction"})},
		{"no_ack, retention", map[string]any{"subjects": []string{"zulip.acme.>"}, "storage": "file", "num_replicas": 1,
			"no_ack":    true,
			"retention": "interest"}},
	} {
		t.Run(test.setting, func(t *testing.T) {
			createRaw(t, srv, "BAD", test.config)
			defer srv.JetStream().DeleteStream(t.Context(), "BAD")
			_, err := tryOpen(t, nc, stream.Config{Name: "BAD"})
			c, ok := errors.AsType[*stream.ConfigError](err)
			if !ok {
				t.Fatalf("opened, or failed otherwise: %v", err)
			}
			if c.Stream != "BAD" || c.Setting != test.setting {
				t.Errorf("the error is about %q of stream %q", c.Setting, c.Stream)
			}
			if !strings.Contains(err.Error(), "stream BAD: ") || !strings.Contains(err.Error(), "use another stream") &&
				!strings.Contains(err.Error(), "nats stream edit BAD") &&
				!strings.Contains(err.Error(), "use a stream with") {
				t.Errorf("the sentence does not help: %v", err)
			}
		})
	}
	t.Run("sealed", func(t *testing.T) {
		js := srv.JetStream()
		createRaw(t, srv, "BAD", base)
		defer js.DeleteStream(t.Context(), "BAD")
		s := open(t, nc, stream.Config{Name: "BAD"})
		sealed := jetstream.StreamConfig{Name: "BAD", Subjects: []string{"zulip.acme.>"}, Sealed: true}
		if _, err := js.UpdateStream(t.Context(), sealed); err != nil {
			t.Fatal(err)
		}
		_, err := s.Append(t.Context(), stream.Cursor{}, messages(1, 1))
		want(t, err, stream.Wrong, "sealed")
		for _, check := range []func() error{
			func() error { _, err := tryOpen(t, nc, stream.Config{Name: "BAD"}); return err },
			func() error { _, err := s.Info(t.Context()); return err },
		} {
			if c, ok := errors.AsType[*stream.ConfigError](check()); !ok || c.Setting != "sealed" {
				t.Errorf("got %v", c)
			}
		}
	})
}

// Two streams share the realm's subjects: neither can be the one.
func TestTwoStreamsCaptureParts(t *testing.T) {
	srv := natstest.Start(t)
	plain := func(subject string) map[string]any {
		return map[string]any{"subjects": []string{subject}, "retention": "limits", "storage": "file",
			"num_replicas": 1}
	}
	createRaw(t, srv, "ONE", plain("zulip.acme.message"))
	_, err := tryOpen(t, connect(t, srv.URL), stream.Config{})
	if c, ok := errors.AsType[*stream.ConfigError](err); !ok || c.Stream != "ONE" || c.Setting != "subjects" {
		t.Errorf("with one stream for a part: %v", err)
	}
	createRaw(t, srv, "TWO", plain("zulip.*.reaction"))
	_, err = tryOpen(t, connect(t, srv.URL), stream.Config{})
	if _, ok := errors.AsType[*stream.ConfigError](err); !ok || !strings.Contains(err.Error(), "ONE") ||
		!strings.Contains(err.Error(), "TWO") {
		t.Errorf("with two streams for parts: %v", err)
	}
	_, err = tryOpen(t, connect(t, srv.URL), stream.Config{Name: "THREE"})
	if c, ok := errors.AsType[*stream.ConfigError](err); !ok || c.Setting != "subjects" ||
		!strings.Contains(err.Error(), "10065") {
		t.Errorf("making one over their subjects: %v", err)
	}
}

func TestWarnings(t *testing.T) {
	srv := natstest.Start(t)
	nc := connect(t, srv.URL)
	for _, test := range []struct {
		word   string // empty: only the usual warning
		config map[string]any
	}{
		{"", map[string]any{}},
		{"memory", map[string]any{"storage": "memory"}},
		{"less than an hour", map[string]any{"max_age": 1800e9}},
		{"shorter than", map[string]any{"max_age": 2 * 3600e9}},
		{"max_msgs_per_subject", map[string]any{"max_msgs_per_subject": 5}},
		{"allow_rollup_hdrs", map[string]any{"allow_rollup_hdrs": true}},
		{"discard", map[string]any{"discard": "new", "max_bytes": 1 << 20}},
	} {
		t.Run(test.word, func(t *testing.T) {
			config := map[string]any{"subjects": []string{"zulip.acme.>"}, "retention": "limits", "storage": "file",
				"num_replicas": 1}
			maps.Copy(config, test.config)
			createRaw(t, srv, "ODD", config)
			defer srv.JetStream().DeleteStream(t.Context(), "ODD")
			s := open(t, nc, stream.Config{QueueLife: 24 * time.Hour})
			all := slices.Concat(s.Warnings(), s.Usual())
			for _, w := range all {
				if !strings.HasPrefix(w, "stream ODD: ") {
					t.Errorf("%q names no stream", w)
				}
			}
			usual := slices.ContainsFunc(s.Usual(), func(w string) bool { return strings.Contains(w, "one replica") })
			if usual != (config["storage"] == "file") {
				t.Errorf("of durability nothing, or too much, is said: %q", all)
			}
			if test.word == "" {
				if len(all) != 1 || len(s.Usual()) != 1 {
					t.Errorf("the usual stream gets %q", all)
				}
				return
			}
			if !slices.ContainsFunc(all, func(w string) bool { return strings.Contains(w, test.word) }) {
				t.Errorf("nothing says %q: %q", test.word, all)
			}
		})
	}
}

func TestForcedPathThatTheStreamDoesNotOffer(t *testing.T) {
	srv := natstest.Start(t)
	nc := connect(t, srv.URL)
	createRaw(t, srv, "PLAIN", map[string]any{"subjects": []string{"zulip.acme.>"}, "retention": "limits",
		"storage": "file", "num_replicas": 1})
	createRaw(t, srv, "WIDE", map[string]any{"subjects": []string{"chat.>"}, "retention": "limits", "storage": "file",
		"num_replicas":  1,
		"allow_batched": true, "allow_atomic": true})
	for _, test := range []struct {
		cfg  stream.Config
		word string
	}{
		{stream.Config{Path: stream.PathFast}, "allow_batched"},
		{stream.Config{Path: stream.PathAtomic}, "allow_atomic"},
		{stream.Config{Path: stream.PathFast, Realm: "c", Filter: "chat.c.>"}, "captures nothing but chat.c.>"},
		{stream.Config{Path: "quick"}, "none of auto"},
	} {
		_, err := tryOpen(t, nc, test.cfg)
		if _, ok := errors.AsType[*stream.ConfigError](err); !ok || !strings.Contains(err.Error(), test.word) {
			t.Errorf("path %s: %v", test.cfg.Path, err)
		}
	}
	s := open(t, nc, stream.Config{}) // auto takes what there is
	if _, err := s.Append(t.Context(), stream.Cursor{}, messages(1, 5)); err != nil {
		t.Fatal(err)
	}
}

func TestUnusableNames(t *testing.T) {
	nc := connect(t, natstest.Start(t).URL)
	for _, cfg := range []stream.Config{
		{Name: "a.b"}, {Name: "a b"}, {Name: ">"}, {Filter: "zulip.acme"}, {Filter: "zulip.*.>"}, {Filter: ">"},
		{Filter: "zulip.acme>"},
	} {
		_, err := tryOpen(t, nc, cfg)
		if _, ok := errors.AsType[*stream.ConfigError](err); !ok {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

// An account without JetStream cannot be waited for; a server that is only slow to start
// can.
func TestJetStreamNotThere(t *testing.T) {
	t.Run("account without", func(t *testing.T) {
		srv := natstest.Start(t, func(o *server.Options) {
			plain := server.NewAccount("PLAIN")
			rich := server.NewAccount("RICH")
			o.Accounts = []*server.Account{plain, rich}
			o.Users = []*server.User{{Username: "u", Password: "p", Account: plain}}
			o.NoAuthUser = "u"
		})
		if err := srv.Server().SystemAccount(); err == nil {
			t.Fatal("no system account")
		}
		_, err := stream.Open(t.Context(), connect(t, srv.URL), stream.Config{Realm: "acme", Filter: filter})
		if _, ok := errors.AsType[*stream.ConfigError](err); !ok || !strings.Contains(err.Error(), "10039") {
			t.Fatalf("got %v (%v)", err, kindOf(err))
		}
	})
	t.Run("not connected", func(t *testing.T) {
		srv := natstest.Start(t)
		nc := connect(t, srv.URL)
		srv.Stop()
		natstest.Eventually(t, "the connection to drop", func() bool { return !nc.IsConnected() })
		_, err := stream.Open(t.Context(), nc, stream.Config{Realm: "acme", Filter: filter})
		want(t, err, stream.Unavailable, "down")
		srv.Restart()
		open(t, nc, stream.Config{})
	})
}

func TestNewStreamThatCannotBe(t *testing.T) {
	srv := natstest.Start(t, func(o *server.Options) { o.JetStreamMaxStore = 10 << 20 })
	nc := connect(t, srv.URL)
	for _, test := range []struct {
		new     stream.NewStream
		setting string
	}{
		{stream.NewStream{Replicas: 3}, "num_replicas"},
		{stream.NewStream{MaxBytes: 1 << 40}, "max_bytes"},
	} {
		_, err := tryOpen(t, nc, stream.Config{New: test.new})
		c, ok := errors.AsType[*stream.ConfigError](err)
		if !ok || c.Setting != test.setting || !strings.Contains(err.Error(), "nats errors lookup") {
			t.Errorf("%+v: %v", test.new, err)
		}
	}
}

// Whoever has a say before a stream is made is asked once, and only if there is none.
func TestBeforeCreate(t *testing.T) {
	srv := natstest.Start(t)
	nc := connect(t, srv.URL)
	asked := 0
	no := errors.New("not yet")
	say := no
	cfg := stream.Config{BeforeCreate: func(context.Context) error { asked++; return say }}
	if _, err := tryOpen(t, nc, cfg); !errors.Is(err, no) || !errors.Is(err, stream.ErrNotMade) ||
		!strings.Contains(err.Error(), "ZULIP_acme") {
		t.Errorf("got %v", err)
	}
	for name := range srv.JetStream().StreamNames(t.Context()).Name() {
		t.Errorf("%s was made", name)
	}
	say = nil
	if s := open(t, nc, cfg); !s.Created() || asked != 2 {
		t.Errorf("created %v, asked %d times", s.Created(), asked)
	}
	if s := open(t, nc, cfg); s.Created() || asked != 2 {
		t.Errorf("of a stream that is there: created %v, asked %d times", s.Created(), asked)
	}
}

// What becomes risky under way is said once; what was so at the start is not said again.
func TestWarningsUnderWay(t *testing.T) {
	js := startScript(t, "2.15.2")
	js.config(map[string]any{"num_replicas": 3})
	var said []string
	s := openScript(t, js, stream.Config{QueueLife: 24 * time.Hour,
		Warn: func(text string) { said = append(said, text) }})
	look := func(config map[string]any, words ...string) {
		t.Helper()
		js.config(config)
		said = nil
		for range 2 {
			if _, err := s.Info(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if len(said) != len(words) {
			t.Fatalf("said %q, want %q", said, words)
		}
		for i, w := range words {
			if !strings.Contains(said[i], w) {
				t.Errorf("said %q, want %q", said, words)
			}
		}
	}
	look(map[string]any{"num_replicas": 3})
	look(map[string]any{"num_replicas": 1}, "one replica")
	look(map[string]any{"num_replicas": 1, "max_age": 1800e9}, "less than an hour")
	look(map[string]any{"max_age": 0})
	look(map[string]any{"num_replicas": 3, "max_age": 1800e9}, "less than an hour")
}
