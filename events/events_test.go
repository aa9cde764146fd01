package events_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats.go"

	"zulip-nats/events"
)

// TestKey: events by queue and id, refilled messages by queue and message, records by an
// id of their own.
func TestKey(t *testing.T) {
	for _, test := range []struct {
		name string
		h    nats.Header
		want string
	}{
		{"a live event", nats.Header{"Zulip-Queue-Id": {"q"}, "Zulip-Event-Id": {"7"}, "Zulip-Message-Id": {"9"},
			"Zulip-Origin": {"live"}}, "q/7"},
		{"a refilled message", nats.Header{"Zulip-Queue-Id": {"q"}, "Zulip-Message-Id": {"9"},
			"Zulip-Origin": {"backfill"}, "Bridge-Position": {"-1"}}, "q/message/9"},
		{"a record", nats.Header{"Zulip-Queue-Id": {"q"}, "Bridge-Position": {"7"}, "Bridge-Record": {"queue"},
			"Bridge-Record-Id": {"w-1"}}, "w-1"},
		{"a record of an event", nats.Header{"Zulip-Queue-Id": {"q"}, "Zulip-Event-Id": {"7"},
			"Bridge-Record": {"skipped"}, "Bridge-Record-Id": {"w-2"}}, "w-2"},
		{"somebody else's", nats.Header{"Zulip-Queue-Id": {"q"}}, ""},
		{"nothing", nil, ""},
	} {
		if got := events.Key(test.h); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestPortable(t *testing.T) {
	got := events.Portable(nats.Header{"Zulip-Queue-Id": {"q"}, "Nats-Expected-Last-Sequence": {"4"},
		"Nats-Batch-Id": {"x"}})
	if len(got) != 1 || got.Get("Zulip-Queue-Id") != "q" {
		t.Errorf("%v", got)
	}
}

// TestImportable builds a module of somebody else's that reads a stream with this
// package.
func TestImportable(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	sum, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// The versions are those of this module, so that nothing has to be looked up.
	text := "module example.org/service\n\nrequire zulip-nats v0.0.0\n\nreplace zulip-nats => " + root + "\n" +
		string(mod[len("module zulip-nats\n"):])
	for name, data := range map[string]string{"go.mod": text, "go.sum": string(sum), "main.go": `package main

import (
	"encoding/json"
	"fmt"

	"github.com/nats-io/nats.go"

	"zulip-nats/events"
)

func main() {
	h := nats.Header{events.HeaderQueueID: {"q"}, events.HeaderEventID: {"7"}}
	var closed events.GapClosed
	_ = json.Unmarshal([]byte(` + "`" + `{"messages_refilled": 3}` + "`" + `), &closed)
	fmt.Println(events.Key(h), closed.Refilled)
}
`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "run", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "q/7 3\n" {
		t.Errorf("%v: %s", err, out)
	}
}
