package events_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/events"
	"zulip-nats/stream/natstest"
)

// serve is the service of the README. done is the highest sequence that was done.
func serve(ctx context.Context, js jetstream.JetStream, done uint64, work func(any, uint64) error) error {
	consumer, err := js.CreateOrUpdateConsumer(ctx, "ZULIP_acme", jetstream.ConsumerConfig{
		Durable:        "digest",
		FilterSubjects: []string{"zulip.acme.message", "zulip.acme.reaction", "zulip.acme.bridge.gap"},
		MaxAckPending:  1, // in order, also what comes again after a connection broke
	})
	if err != nil {
		return err
	}
	reader := events.Reader{Consumer: consumer, JetStream: js, Done: done}
	for event, err := range reader.All(ctx) {
		if err != nil {
			return err
		}
		body, err := event.Body() // *events.Message, *events.Reaction, *events.GapOpened, ...
		if err != nil {
			return err
		}
		if err := work(body, event.Seq); err != nil { // keeps the sequence with what it did
			return err
		}
	}
	return ctx.Err()
}

// TestServiceOfTheREADME: it gets live events, stubs and refilled messages once each, and
// of the records those of gaps; also when it was stopped between its work and its ack.
func TestServiceOfTheREADME(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("service_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(readme), "```go\nfunc serve(")
	shown, _, _ = strings.Cut(shown, "```")
	if shown == "" || !strings.Contains(string(source), "\nfunc serve("+shown) {
		t.Error("the service of the README is not the one that is tested here")
	}

	srv := natstest.Start(t)
	js := srv.JetStream()
	natstest.CreateStream(t, js, jetstream.StreamConfig{Name: "ZULIP_acme", Subjects: []string{"zulip.acme.>"}})
	objects, err := js.CreateObjectStore(t.Context(), jetstream.ObjectStoreConfig{Bucket: "zulip_acme"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := objects.PutBytes(t.Context(), "acme/q/3",
		[]byte(`{"type":"message","message":{"content":"large"},"id":3}`)); err != nil {
		t.Fatal(err)
	}
	large := stored("message", "", "3")
	large.Set("Zulip-Object", "acme/q/3")
	for _, m := range []*nats.Msg{
		{Subject: "zulip.acme.bridge.queue", Header: nats.Header{"Bridge-Record": {"queue"}, "Bridge-Record-Id": {"w-1"}},
			Data: []byte(`{"record":"queue"}`)},
		{Subject: "zulip.acme.message", Header: stored("message", "", "1"),
			Data: []byte(`{"type":"message","message":{"content":"live"},"id":1}`)},
		{Subject: "zulip.acme.reaction", Header: stored("reaction", "add", "2"),
			Data: []byte(`{"type":"reaction","op":"add","emoji_name":"tada","id":2}`)},
		{Subject: "zulip.acme.message", Header: large},
		{Subject: "zulip.acme.message", Data: []byte("not the bridge's")},
		{Subject: "zulip.acme.bridge.gap", Header: nats.Header{"Bridge-Record": {"gap-opened"},
			"Bridge-Record-Id": {"w-2"}}, Data: []byte(`{"record":"gap-opened","cause":"dropped"}`)},
		{Subject: "zulip.acme.message", Header: nats.Header{"Zulip-Queue-Id": {"q"}, "Zulip-Message-Id": {"5"},
			"Zulip-Event-Type": {"message"}, "Zulip-Origin": {"backfill"}},
			Data: []byte(`{"type":"message","message":{"content":"refilled"}}`)},
	} {
		if _, err := js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}

	var got []string
	kept, stop := uint64(0), errors.New("stopped before the ack")
	run := func(until int) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		return serve(ctx, js, kept, func(body any, seq uint64) error {
			kept = seq
			switch b := body.(type) {
			case *events.Message:
				got = append(got, "message "+b.Content)
			case *events.Reaction:
				got = append(got, "reaction "+b.Name)
			case *events.GapOpened:
				got = append(got, "gap "+b.Cause)
			}
			if len(got) == until {
				return stop
			}
			return nil
		})
	}
	for _, until := range []int{2, 5} {
		if err := run(until); err != stop {
			t.Fatal(err)
		}
		// It was told to stop when the work was done, so the last message was not
		// acknowledged. A new consumer gets all of them again.
		if err := js.DeleteConsumer(t.Context(), "ZULIP_acme", "digest"); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"message live", "reaction tada", "message large", "gap dropped",
		"message refilled"}; !slices.Equal(got, want) {
		t.Errorf("it did %q, want %q", got, want)
	}
}
