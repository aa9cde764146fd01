package integration_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
)

// TestForeignFlood puts very many messages of others on top of ours while the program
// does not run, and goes on when it starts: it finds its place all the same.
//
// How fast the machine is, the flood itself has shown. Others go on with a message a
// millisecond on a fast one, and leave the server nine tenths of its time on a slow one.
// What the program may take is in proportion too: a place that is looked for message by
// message takes far longer.
func TestForeignFlood(t *testing.T) {
	others := harness.Fewer(300_000, 50_000)
	for _, c := range []struct {
		name, subject string
		config        jetstream.StreamConfig
	}{
		{"a subject of the realm", "zulip.acme.foreign",
			jetstream.StreamConfig{Name: "ZULIP_acme", Subjects: []string{"zulip.acme.>"}}},
		{"the subject of messages", "zulip.acme.message",
			jetstream.StreamConfig{Name: "ZULIP_acme", Subjects: []string{"zulip.acme.>"}}},
		{"another realm", "zulip.other.message", jetstream.StreamConfig{Name: "SHARED", Subjects: []string{"zulip.>"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := natstest.StartProcess(t, "")
			w := prepareWorld(t, n.URL) // acknowledgements are not watched: that reads all there is
			w.open("127.0.0.1:0")
			c.config.AllowDirect, c.config.AllowAtomicPublish, c.config.AllowBatchPublish, c.config.AllowMsgTTL = true,
				true, true, true
			w.makeStream(c.config)
			p := w.run()
			w.registered()
			w.mark(20)
			w.settle()
			_, err := p.Stop()
			harness.Must(t, err)
			w.mark(20)

			limit := 30*time.Second + 3*flood(t, n.JetStream(), c.subject, others)
			more, end := context.WithCancel(t.Context())
			var publishing sync.WaitGroup
			js := n.JetStream()
			publishing.Go(func() {
				for more.Err() == nil {
					began := time.Now()
					_, _ = js.Publish(more, c.subject, []byte("more of others"))
					time.Sleep(max(time.Millisecond, 9*time.Since(began)))
				}
			})
			defer publishing.Wait()
			defer end()
			p = w.run()
			began := time.Now()
			polls := func() bool {
				for _, q := range w.queues() {
					if q.Waiting && q.LastWait.After(w.started) {
						return true
					}
				}
				return false
			}
			if !harness.Within(limit, polls) {
				t.Fatalf("behind %d messages of others, and while more come, no poll has waited for %v", others, limit)
			}
			t.Logf("behind %d messages of others the program polls and has nothing left after %v", others,
				time.Since(began).Round(time.Millisecond))
			w.mark(20)
			w.settle()
			if lines := p.Lines("gap"); len(lines) > 0 {
				t.Errorf("the log tells of a gap: %s", lines[0])
			}
			end()
			publishing.Wait()

			ours := map[string]int{}
			for _, subject := range []string{"zulip.acme.message", "zulip.acme.user_status", "zulip.acme.bridge.>"} {
				if subject == c.subject {
					continue // which would be long to read
				}
				for _, m := range w.on(subject) {
					if m.Record() == "gap-opened" {
						t.Errorf("a gap is told of: %v", &m)
					}
					ours[m.Get(events.HeaderEventID)]++
				}
			}
			queues := w.queues()
			if len(queues) != 1 || queues[0].Dead != "" {
				t.Fatalf("%d queues were made, want one that lives", len(queues))
			}
			for _, e := range queues[0].Events {
				if n := ours[fmt.Sprint(e.ID)]; n != 1 && "zulip.acme."+e.Type != c.subject {
					t.Errorf("event %d is stored %d times", e.ID, n)
				}
			}
			t.Logf("%d events were stored", len(queues[0].Events))
		})
	}
}

// flood publishes n messages of somebody else's, as fast as they are taken, and says how
// long that took.
func flood(t testing.TB, js jetstream.JetStream, subject string, n int) time.Duration {
	t.Helper()
	began := time.Now()
	var answers []jetstream.PubAckFuture
	for len(answers) < n {
		f, err := js.PublishAsync(subject, []byte("of others"))
		harness.Must(t, err)
		answers = append(answers, f)
		if len(answers)%4000 == 0 {
			<-js.PublishAsyncComplete()
		}
	}
	<-js.PublishAsyncComplete()
	for _, f := range answers {
		select {
		case err := <-f.Err():
			t.Fatalf("publishing on %s: %v", subject, err)
		default:
		}
	}
	took := time.Since(began)
	t.Logf("%d messages on %s in %v", n, subject, took.Round(time.Millisecond))
	return took
}

// on is all that stands on some subjects, without the bodies.
func (w *world) on(filter string) (all []harness.Stored) {
	w.t.Helper()
	c, err := w.js.OrderedConsumer(w.t.Context(), w.stream,
		jetstream.OrderedConsumerConfig{FilterSubjects: []string{filter}, HeadersOnly: true})
	harness.Must(w.t, err)
	info, err := c.Info(w.t.Context())
	harness.Must(w.t, err)
	pending := int(info.NumPending)
	if pending == 0 {
		return nil
	}
	batch, err := c.Fetch(pending, jetstream.FetchMaxWait(harness.Patience))
	harness.Must(w.t, err)
	for m := range batch.Messages() {
		all = append(all, harness.Stored{Subject: m.Subject(), Header: m.Headers(), Data: m.Data()})
	}
	if len(all) < pending {
		w.t.Fatalf("%d messages of %d on %s were read", len(all), pending, filter)
	}
	return all
}
