package integration_test

import (
	"bytes"
	"strconv"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// TestChangeOfLayout is how the README says that the layout of subjects is changed: a
// stream keeps its own, a second instance with another name fills another one, and then
// the first ends for good.
func TestChangeOfLayout(t *testing.T) {
	t.Parallel()
	w := prepareWorld(t, natsServer(t))
	w.open("127.0.0.1:0")
	channel := w.zulip.Channel("general").ID
	says := func(text string) {
		w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: text})
	}
	// where is the subject on which a stream has that text.
	where := func(stream, text string) string {
		t.Helper()
		all, err := harness.ReadStream(w.js, stream)
		harness.Must(t, err)
		for _, m := range all {
			if bytes.Contains(m.Data, []byte(text)) {
				return m.Subject
			}
		}
		return ""
	}
	comes := func(stream, text, subject string) {
		t.Helper()
		harness.Eventually(t, text+" in "+stream, func() bool { return where(stream, text) != "" })
		if got := where(stream, text); got != subject {
			t.Errorf("%s in %s: on %s, want %s", text, stream, got, subject)
		}
	}
	byType, byPlace := "zulip.acme.message", "zulip.acme-places.message.channel."+strconv.FormatInt(channel, 10)

	first := w.run()
	w.registered()
	says("one")
	comes("ZULIP_acme", "one", byType)
	_, err := first.Stop()
	harness.Must(t, err)
	refused := w.run("--subjects", "by-place")
	if code := refused.ExitCode(); code != 78 {
		t.Errorf("exit code %d in a stream with another layout, want 78", code)
	}
	refused.Expect("--delete-queue", "a stream keeps its layout")
	first = w.run()
	w.registered()

	w.realm = "acme-places"
	w.run("--subjects", "by-place")
	w.registered()
	says("two")
	comes("ZULIP_acme", "two", byType)
	comes("ZULIP_acme-places", "two", byPlace)
	_, err = first.Stop()
	harness.Must(t, err)
	w.realm = realmName
	first = w.run("--delete-queue")
	w.registered()
	_, err = first.Stop()
	harness.Must(t, err)
	harness.Eventually(t, "one queue", func() bool { return len(w.living()) == 1 })
	says("three")
	comes("ZULIP_acme-places", "three", byPlace)
	if subject := where("ZULIP_acme", "three"); subject != "" {
		t.Errorf("the first one's stream has it on %s", subject)
	}
}

// TestFewOfASubject: a stream that keeps few messages of a subject is refused by place,
// also when that is edited while the program runs.
func TestFewOfASubject(t *testing.T) {
	t.Parallel()
	w := newWorld(t, natsServer(t))
	settings := jetstream.StreamConfig{Name: w.stream, Subjects: []string{"zulip.acme.>"}, MaxMsgsPerSubject: 5}
	natstest.CreateStream(t, w.js, settings)
	refused := w.run("--subjects", "by-place")
	if code := refused.ExitCode(); code != 78 {
		t.Errorf("exit code %d, want 78", code)
	}
	refused.Expect("max_msgs_per_subject")
	settings.MaxMsgsPerSubject = -1
	_, err := w.js.UpdateStream(t.Context(), settings)
	harness.Must(t, err)
	p := w.run("--subjects", "by-place")
	w.registered()
	settings.MaxMsgsPerSubject = 5
	_, err = w.js.UpdateStream(t.Context(), settings)
	harness.Must(t, err)
	w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "a word"})
	if code := p.ExitCode(); code != 78 {
		t.Errorf("exit code %d behind an edit, want 78", code)
	}
}
