package integration_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/integration_test/harness"
	"zulip-nats/zulipsim"
)

// TestConsumer is a service as the README shows one: it follows messages and reactions,
// is stopped in the middle, goes on where it was, and another one that comes late replays
// everything from the start.
func TestConsumer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, natsServer(t))
	w.run()
	w.registered()
	var said []string
	say := func(text string) {
		id := w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: text})
		w.zulip.React(id, "ada@example.com", "tada")
		w.zulip.Typing("ada@example.com", "start", "general", "t")
		said = append(said, "message "+text, "reaction tada")
	}
	for _, text := range []string{"one", "two", "three"} {
		say(text)
	}
	first := consume(w, "triage", len(said)-1)
	say("four")
	rest := consume(w, "triage", len(said)-len(first))
	if got, want := strings.Join(append(first, rest...), ", "), strings.Join(said, ", "); got != want {
		t.Errorf("the service got %s, want %s", got, want)
	}
	if got, want := strings.Join(consume(w, "latecomer", len(said)), ", "), strings.Join(said, ", "); got != want {
		t.Errorf("the replay is %s, want %s", got, want)
	}
}

// consume is the service. It stops after n events.
func consume(w *world, name string, n int) (got []string) {
	ctx, cancel := context.WithTimeout(w.t.Context(), harness.Patience)
	defer cancel()
	consumer, err := w.js.CreateOrUpdateConsumer(ctx, w.stream, jetstream.ConsumerConfig{
		Durable:        name,
		FilterSubjects: []string{"zulip.acme.message", "zulip.acme.reaction"},
	})
	harness.Must(w.t, err)
	for len(got) < n {
		m, err := consumer.Next(jetstream.FetchContext(ctx))
		harness.Must(w.t, err)
		var event struct {
			Type    string
			Message struct{ Content string }
			Emoji   string `json:"emoji_name"`
		}
		harness.Must(w.t, json.Unmarshal(m.Data(), &event))
		got = append(got, event.Type+" "+event.Message.Content+event.Emoji)
		harness.Must(w.t, m.Ack())
	}
	return got
}
