package integration_test

import (
	"fmt"
	"strings"
	"testing"

	"zulip-nats/events"
	"zulip-nats/zulipsim"
)

// TestLeftOut is the program, told to leave things out, with a real nats-server: what is
// left out is nowhere, what is not is there, over a restart.
func TestLeftOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, natsServer(t))
	options := []string{"--no-lease", "--no-direct-messages", "--exclude-types", "user_status"}
	p := w.run(options...)
	w.registered()
	direct := w.zulip.SendMessage(zulipsim.Message{To: []string{w.bot.Email}, Sender: "secret@example.com",
		Content: "a secret"})
	public := w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Sender: "ada@example.com",
		Content: "for all"})
	w.settle()
	if _, err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, id := range []int64{direct, public} {
		w.zulip.React(id, map[int64]string{direct: "secret@example.com", public: "ada@example.com"}[id], "tada")
	}
	w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 1, "status_text": "secret"})
	w.run(options...)
	w.registered()
	w.settle()
	if lines := p.Lines("secret"); len(lines) > 0 { // of both: they write to one journal
		t.Errorf("in the log: %q", lines)
	}
	var got []string
	for _, m := range w.read() {
		if text := fmt.Sprint(m.Subject, m.Header, string(m.Data)); strings.Contains(strings.ToLower(text), "secret") {
			t.Errorf("in the stream: %s", text)
		}
		if kind := strings.TrimPrefix(m.Subject, "zulip.acme."); kind != "bridge.queue" && kind != "heartbeat" &&
			kind != "restart" {
			got = append(got, kind+" "+m.Get(events.HeaderRecipientType))
		}
	}
	if want := "bridge.excluded , message channel, bridge.excluded , reaction , bridge.excluded "; strings.Join(got, ", ") != want {
		t.Errorf("stored: %s\nwant: %s", strings.Join(got, ", "), want)
	}
}
