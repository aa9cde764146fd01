package events_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/events"
	"zulip-nats/stream/natstest"
)

// acme starts a server with the stream of a realm, in which heartbeats with the ids 1 to
// n stand.
func acme(t *testing.T, n int) (*natstest.Server, jetstream.JetStream) {
	t.Helper()
	srv := natstest.Start(t)
	js := srv.JetStream()
	natstest.CreateStream(t, js, jetstream.StreamConfig{Name: "ZULIP_acme", Subjects: []string{"zulip.acme.>"}})
	for i := range n {
		put(t, js, "zulip.acme.heartbeat", stored("heartbeat", "", strconv.Itoa(i+1)), `{"type":"heartbeat"}`)
	}
	return srv, js
}

func put(t *testing.T, js jetstream.JetStream, subject string, h nats.Header, body string) {
	t.Helper()
	if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: subject, Header: h, Data: []byte(body)}); err != nil {
		t.Fatal(err)
	}
}

func ordered(t *testing.T, js jetstream.JetStream, from uint64) jetstream.Consumer {
	t.Helper()
	c, err := js.OrderedConsumer(t.Context(), "ZULIP_acme", jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// limited ends a test that hangs.
func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// What the stream lost before it was read is counted, what others published is passed
// over, what a turn breaks off is not done.
func TestReader(t *testing.T) {
	_, js := acme(t, 6)
	put(t, js, "zulip.acme.heartbeat", nil, "somebody else's")
	put(t, js, "zulip.acme.heartbeat", stored("heartbeat", "", "7"), `{"type":"heartbeat"}`)
	s, err := js.Stream(t.Context(), "ZULIP_acme")
	if err != nil {
		t.Fatal(err)
	}
	for _, seq := range []uint64{3, 4, 6} {
		if err := s.DeleteMsg(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
	}
	r := events.Reader{Consumer: ordered(t, js, 3), Done: 2}
	var got []string
	for e, err := range r.All(limited(t)) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%d at %d, missing %d", e.ID, e.Seq, e.Missing))
		if e.Stored.IsZero() {
			t.Errorf("%d: no time", e.ID)
		}
		if e.ID == 7 {
			break
		}
	}
	if want := []string{"5 at 5, missing 2", "7 at 8, missing 0"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if r.Done != 7 { // somebody else's, which is passed over; the last turn broke off
		t.Errorf("done is %d", r.Done)
	}
	r.Consumer = ordered(t, js, r.Done+1)
	for e, err := range r.All(limited(t)) {
		if err != nil || e.ID != 7 || e.Missing != 0 {
			t.Errorf("again: %+v, %v", e, err)
		}
		break
	}
}

// The filters that the package comment names cover all messages in both layouts, and
// nothing else.
func TestReaderLayouts(t *testing.T) {
	for _, place := range []string{"", ".channel.7", ".direct"} {
		_, js := acme(t, 1)
		for i, typ := range []string{"message", "message_later", "reaction", "message"} {
			put(t, js, "zulip.acme."+typ+place, stored(typ, "", strconv.Itoa(i+2)), "{}")
		}
		put(t, js, "zulip.acme.bridge.gap", nats.Header{"Bridge-Record": {"gap-opened"}, "Bridge-Record-Id": {"w-1"}}, "{}")
		c, err := js.OrderedConsumer(t.Context(), "ZULIP_acme", jetstream.OrderedConsumerConfig{
			FilterSubjects: []string{"zulip.acme.message", "zulip.acme.message.>", "zulip.acme.bridge.gap"}})
		if err != nil {
			t.Fatal(err)
		}
		r := events.Reader{Consumer: c}
		var got []string
		for e, err := range r.All(limited(t)) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprint(e.Type, " ", e.Seq))
			if e.Record != "" {
				break
			}
		}
		if want := []string{"message 2", "message 5", "bridge 6"}; !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", place, got, want)
		}
	}
}

// The end of its context ends the loop, without an error.
func TestReaderStops(t *testing.T) {
	_, js := acme(t, 1)
	ctx, cancel := context.WithCancel(limited(t))
	defer cancel()
	r := events.Reader{Consumer: ordered(t, js, 1)}
	n := 0
	for _, err := range r.All(ctx) {
		if err != nil {
			t.Error(err)
		}
		n++
		cancel()
	}
	if n != 1 || r.Done != 1 {
		t.Errorf("%d turns, done %d", n, r.Done)
	}
}

// Stubs: the bytes come from the object store; where they are not those that the stub
// tells of, or gone, the event comes with an error, and the next one follows.
func TestReaderStubs(t *testing.T) {
	_, js := acme(t, 0)
	objects, err := js.CreateObjectStore(t.Context(), jetstream.ObjectStoreConfig{Bucket: "zulip_acme"})
	if err != nil {
		t.Fatal(err)
	}
	body := `{"type":"message","message":{"id":9,"content":"` + strings.Repeat("long ", 100) + `"}}`
	digest := fmt.Sprintf("SHA-256=%x", sha256.Sum256([]byte(body)))
	for i, stub := range []struct{ object, data, digest string }{
		{"whole", body, digest}, {"other", strings.ToUpper(body), digest}, {"short", body[1:], ""}, {"gone", "", ""}, {"whole", body, ""},
	} {
		if stub.data != "" {
			if _, err := objects.PutBytes(t.Context(), stub.object, []byte(stub.data)); err != nil {
				t.Fatal(err)
			}
		}
		h := stored("message", "", strconv.Itoa(i))
		h.Set("Zulip-Object", stub.object)
		h.Set("Zulip-Object-Size", strconv.Itoa(len(body)))
		h.Set("Zulip-Object-Digest", stub.digest)
		put(t, js, "zulip.acme.message", h, "")
	}
	want := []string{"", "their digests differ", "and the stub says 5", "not found", ""}
	r := events.Reader{Consumer: ordered(t, js, 1), JetStream: js}
	for e, err := range r.All(limited(t)) {
		if e == nil {
			t.Fatal(err)
		}
		switch words := want[e.ID]; {
		case words == "" && (err != nil || string(e.Raw) != body):
			t.Errorf("%d: %q, %v", e.ID, e.Raw, err)
		case words != "" && (err == nil || !strings.Contains(err.Error(), words)):
			t.Errorf("%d: %v", e.ID, err)
		case e.ID == 3 && !errors.Is(err, jetstream.ErrObjectNotFound):
			t.Errorf("%d: %v", e.ID, err)
		}
		if e.ID == 4 {
			break
		}
	}
}

// An object whose chunks are gone, and not what is said of it, is an error of its event,
// after a while; the end of the context ends the wait.
func TestReaderChunksGone(t *testing.T) {
	_, js := acme(t, 0)
	objects, err := js.CreateObjectStore(t.Context(), jetstream.ObjectStoreConfig{Bucket: "zulip_acme"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := objects.PutBytes(t.Context(), "hollow", make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	chunks, err := js.Stream(t.Context(), "OBJ_zulip_acme")
	if err != nil {
		t.Fatal(err)
	}
	if err := chunks.Purge(t.Context(), jetstream.WithPurgeSubject("$O.zulip_acme.C.>")); err != nil {
		t.Fatal(err)
	}
	h := stored("message", "", "1")
	h.Set("Zulip-Object", "hollow")
	put(t, js, "zulip.acme.message", h, "")
	put(t, js, "zulip.acme.heartbeat", stored("heartbeat", "", "2"), `{"type":"heartbeat"}`)
	events.SetResolveTime(t, time.Second)
	var got []string
	r := events.Reader{Consumer: ordered(t, js, 1), JetStream: js}
	for e, err := range r.All(limited(t)) {
		if e == nil {
			t.Fatal(err)
		}
		if got = append(got, fmt.Sprint(e.ID, " ", err)); e.ID == 2 {
			break
		}
	}
	if len(got) != 2 || !strings.Contains(got[0], "did not come whole within 1s") || got[1] != "2 <nil>" {
		t.Errorf("%q", got)
	}

	events.SetResolveTime(t, time.Hour)
	e, err := events.Decode("zulip.acme.message", h, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	time.AfterFunc(time.Second, stop)
	if err := events.Resolve(ctx, js, e); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
}

// A durable consumer loses a message on its way: it comes again, and nothing before it
// has been done is passed over. One that could deliver out of order then is refused.
func TestReaderDurable(t *testing.T) {
	srv, js := acme(t, 6)
	many, err := js.CreateConsumer(t.Context(), "ZULIP_acme", jetstream.ConsumerConfig{Durable: "many"})
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range (&events.Reader{Consumer: many}).All(limited(t)) {
		if e != nil || err == nil || !strings.Contains(err.Error(), "MaxAckPending 1") {
			t.Errorf("%v, %v", e, err)
		}
	}

	proxy := natstest.NewProxy(t, srv.URL)
	lost := false
	proxy.OnDeliver(func(p natstest.Publish) natstest.Fate {
		if p.Subject == "zulip.acme.heartbeat" && strings.Contains(string(p.Payload), "Zulip-Event-Id: 3\r") && !lost {
			lost = true
			return natstest.Lose
		}
		return natstest.Pass
	})
	far := natstest.JetStream(t, natstest.Connect(t, proxy.URL))
	one, err := far.CreateConsumer(t.Context(), "ZULIP_acme", jetstream.ConsumerConfig{Durable: "one", MaxAckPending: 1,
		AckWait: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	r := events.Reader{Consumer: one}
	var got []int64
	for e, err := range r.All(limited(t)) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, e.ID); e.ID == 6 {
			break
		}
	}
	if !lost || !slices.Equal(got, []int64{1, 2, 3, 4, 5, 6}) {
		t.Errorf("lost one on the way: %v; got %v", lost, got)
	}
}

// A service that keeps the highest sequence with its work, and begins behind it.
func ExampleReader() {
	js, stop := exampleStream()
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	kept := uint64(1) // from the service's own database
	consumer, err := js.OrderedConsumer(ctx, "ZULIP_acme", jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{"zulip.acme.message", "zulip.acme.bridge.gap"},
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy, OptStartSeq: kept + 1,
	})
	if err != nil {
		panic(err)
	}
	reader := events.Reader{Consumer: consumer, JetStream: js, Done: kept}
	for event, err := range reader.All(ctx) {
		if err != nil {
			panic(err)
		}
		body, err := event.Body()
		if err != nil {
			panic(err)
		}
		switch b := body.(type) {
		case *events.Message:
			if event.Origin == events.OriginBackfill {
				fmt.Println("read back from history:", b.Content) // hours old, perhaps: no answer
			} else {
				fmt.Println(b.Sender+":", b.Content)
			}
		case *events.GapOpened:
			fmt.Println("what happened since", b.LastStored.Format(time.DateOnly), "but messages is lost")
		}
		if event.Seq == 5 {
			break // the example ends here; a service goes on
		}
	}
	// Output:
	// Grace: one more?
	// what happened since 2026-11-28 but messages is lost
	// read back from history: yes please
}

// exampleStream is a server with a stream of five messages.
func exampleStream() (js jetstream.JetStream, stop func()) {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	dir, err := os.MkdirTemp("", "zulip-nats-example-")
	must(err)
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: dir, NoLog: true,
		NoSigs: true})
	must(err)
	srv.Start()
	if !srv.ReadyForConnections(time.Minute) {
		panic("the server does not start")
	}
	nc, err := nats.Connect(srv.ClientURL(), nats.Timeout(time.Minute))
	must(err)
	js, err = jetstream.New(nc, jetstream.WithDefaultTimeout(time.Minute))
	must(err)
	ctx := context.Background()
	_, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: "ZULIP_acme", Subjects: []string{"zulip.acme.>"}})
	must(err)
	message := func(sender, text string) string {
		return fmt.Sprintf(`{"type":"message","message":{"id":7,"sender_full_name":%q,"content":%q}}`, sender, text)
	}
	for _, m := range []*nats.Msg{
		{Subject: "zulip.acme.message", Header: stored("message", "", "1"), Data: []byte(message("Ada", "tea?"))},
		{Subject: "zulip.acme.message", Header: stored("message", "", "2"), Data: []byte(message("Grace", "one more?"))},
		{Subject: "zulip.acme.heartbeat", Header: stored("heartbeat", "", "3"), Data: []byte(`{"type":"heartbeat"}`)},
		{Subject: "zulip.acme.bridge.gap", Header: nats.Header{"Bridge-Record": {"gap-opened"}, "Bridge-Record-Id": {"w-1"}},
			Data: []byte(`{"record":"gap-opened","cause":"dropped","last_stored":"2026-11-28T23:00:00Z"}`)},
		{Subject: "zulip.acme.message", Header: nats.Header{"Zulip-Queue-Id": {"r"}, "Zulip-Message-Id": {"8"},
			"Zulip-Event-Type": {"message"}, "Zulip-Origin": {"backfill"}}, Data: []byte(message("Ada", "yes please"))},
	} {
		_, err := js.PublishMsg(ctx, m)
		must(err)
	}
	return js, func() {
		nc.Close()
		srv.Shutdown()
		srv.WaitForShutdown()
		must(os.RemoveAll(dir))
	}
}
