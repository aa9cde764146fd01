package integration_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/zulipsim"
)

// reader is what a service knows that begins with an empty disk, and up to which sequence
// it has read.
func (w *world) reader() (*events.World, uint64, error) {
	ctx := w.t.Context()
	known, next, err := events.LoadWorld(ctx, w.js, w.stream, w.realm)
	if err != nil {
		return nil, 0, err
	}
	last, err := w.last()
	if err != nil || last.Sequence < next {
		return known, next, err
	}
	consumer, err := w.js.OrderedConsumer(ctx, w.stream, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: next})
	if err != nil {
		return nil, 0, err
	}
	reader := events.Reader{Consumer: consumer, JetStream: w.js, Done: next - 1}
	for e, err := range reader.All(ctx) {
		if err != nil {
			return nil, 0, err
		}
		if err := known.Apply(e); err != nil {
			return nil, 0, err
		}
		if e.Seq >= last.Sequence {
			break
		}
	}
	return known, last.Sequence, nil
}

// differs says in what such a service is mistaken; "" if in nothing.
func (w *world) differs(known *events.World) string {
	people := known.Users()
	for id, p := range w.zulip.People() {
		if got, want := people[id], (events.User{ID: id, Name: p.Name, Email: p.Email, Bot: p.Bot,
			Active: p.Active}); got != want {
			return fmt.Sprintf("user %d is known as %+v, and is %+v", id, got, want)
		}
	}
	channels := w.zulip.ChannelsOf(botEmail)
	for id, c := range channels {
		got, _ := known.Channel(id)
		if want := (events.ChannelState{ID: id, Name: c.Name, Live: !c.Archived}); got != want {
			return fmt.Sprintf("channel %d is known as %+v, and is %+v", id, got, want)
		}
	}
	if n := len(known.Channels()); n != len(channels) {
		return fmt.Sprintf("%d channels are known, and there are %d", n, len(channels))
	}
	for _, m := range w.zulip.Messages() {
		if at, seen := known.Place(m.ID); seen && m.Channel != "" {
			if c, _ := known.Channel(at.ChannelID); c.Name != m.Channel || at.Topic != m.Topic {
				return fmt.Sprintf("message %d is known in %s > %s, and is in %s > %s", m.ID, c.Name, at.Topic, m.Channel, m.Topic)
			}
		}
	}
	return ""
}

// knowsAll waits until such a service knows what there is.
func (w *world) knowsAll() *events.World {
	w.t.Helper()
	var known *events.World
	differs := ""
	for end := time.Now().Add(harness.Patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var err error
		if known, _, err = w.reader(); err != nil {
			differs = err.Error()
			continue
		}
		if differs = w.differs(known); differs == "" {
			return known
		}
	}
	w.t.Fatal(differs)
	return nil
}

// organized lets the organization change.
func (w *world) organized(rng *rand.Rand) {
	n := rng.IntN(1_000_000)
	w.zulip.Join(fmt.Sprintf("new%d@example.com", n), fmt.Sprintf("New %d", n))
	w.zulip.Person(fmt.Sprintf("person%d@example.com", n%500), "").Rename(fmt.Sprintf("Renamed %d", n))
	w.zulip.Person(fmt.Sprintf("person%d@example.com", n%7), "").SetActive(n%2 == 0)
	w.zulip.CreateChannel(fmt.Sprintf("channel %d", n)).Rename(fmt.Sprintf("channel %d, later", n))
	c := w.zulip.CreateChannel(fmt.Sprintf("short-lived %d", n))
	id := w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "to be moved"})
	topic, to := fmt.Sprintf("topic %d", n), "plans"
	w.zulip.EditMessage(id, zulipsim.Edit{Topic: &topic})
	w.zulip.EditMessage(id, zulipsim.Edit{Channel: &to, Topic: &topic})
	c.Archive()
}

// TestState: the program stores the state of an organization of 500 people in a stream
// that takes small messages, while that changes; it is killed again and again while it
// does, loses its queue and changes over to another. A service that begins with an empty
// disk knows what there is, and pieces of one state alone are left.
func TestState(t *testing.T) {
	t.Parallel()
	w := newWorld(t, natsServer(t), unlimited)
	w.zulip.Person(zulipsim.DefaultSender, "Ada")
	for i := range 500 {
		w.zulip.Person(fmt.Sprintf("person%d@example.com", i), fmt.Sprintf("Person <%d>", i))
	}
	for _, name := range []string{"general", "plans", "old"} {
		w.zulip.Channel(name)
	}
	_, err := w.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: w.stream, Subjects: []string{"zulip.acme.>"},
		MaxMsgSize: 9 << 10, AllowAtomicPublish: true})
	harness.Must(t, err)
	rng := rand.New(rand.NewPCG(1, 2))
	p := w.run("--state", "all")
	w.registered()
	w.organized(rng)
	w.knowsAll()

	for range 8 {
		p.Kill()
		w.organized(rng)
		p = w.run("--state", "users,channels", "--slim-presence=true")
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond) // whatever it does then
		w.organized(rng)
		p.Kill()
		p = w.run("--state", "users,channels", "--slim-presence=false") // another queue each time
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
	}
	w.organized(rng)
	w.knowsAll()

	for _, q := range w.zulip.Queues() {
		w.zulip.ExpireQueue(q.ID)
	}
	w.organized(rng) // which no queue tells of
	known := w.knowsAll()
	if !known.Ready("users") || !known.Ready("channels") || known.Ready("emoji") {
		t.Error("the state has other sections than were asked for")
	}
	w.settle()

	// Pieces of the newest whole state are all that is left of states.
	last, err := w.js.Stream(t.Context(), w.stream)
	harness.Must(t, err)
	harness.Eventually(t, "older states to be purged", func() bool {
		info, err := last.Info(t.Context(), jetstream.WithSubjectFilter("zulip.acme.bridge.state.*"))
		harness.Must(t, err)
		end, err := last.GetLastMsgForSubject(t.Context(), "zulip.acme.bridge.state-end")
		harness.Must(t, err)
		body, err := events.Decode(end.Subject, end.Header, end.Data)
		harness.Must(t, err)
		said, err := body.Body()
		harness.Must(t, err)
		for subject, n := range info.State.Subjects {
			section := subject[len("zulip.acme.bridge.state."):]
			if uint64(said.(*events.StateEnd).Pieces[section]) != n {
				return false
			}
		}
		return len(info.State.Subjects) == 2
	})
}
