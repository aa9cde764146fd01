package stream_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

func TestReads(t *testing.T) {
	srv := natstest.Start(t)
	js := srv.JetStream()
	s := open(t, connect(t, srv.URL), stream.Config{})
	if cursor, m, err := s.Last(t.Context()); err != nil || m != nil || cursor != (stream.Cursor{}) {
		t.Fatalf("an empty stream gives %+v, %v, %v", cursor, m, err)
	}
	if m, err := s.At(t.Context(), 1); err != nil || m != nil {
		t.Fatalf("an empty stream has %v at 1 (%v)", m, err)
	}
	if m, err := s.At(t.Context(), 0); err != nil || m != nil {
		t.Fatalf("a stream has %v at 0 (%v)", m, err)
	}
	given := nats.NewMsg("zulip.acme.reaction")
	given.Data = []byte("{\"a\":\"\x00é\"}")
	given.Header = nats.Header{"zulip-event-ID": {"5"}, "Twice": {"a", "b"}, "Empty": {""}}
	ack, err := js.PublishMsg(t.Context(), given)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, js, "zulip.acme.message")
	publish(t, js, "zulip.acme.message")

	cursor, m, err := s.Last(t.Context())
	if err != nil || cursor != (stream.Cursor{Seq: 3}) || m.Seq != 3 || m.Subject != "zulip.acme.message" ||
		string(m.Data) != "foreign" {
		t.Errorf("Last gives %+v, %+v, %v", cursor, m, err)
	}
	for name, read := range map[string]func() (*stream.Stored, error){
		"At":     func() (*stream.Stored, error) { return s.At(t.Context(), ack.Sequence) },
		"LastOn": func() (*stream.Stored, error) { return s.LastOn(t.Context(), "zulip.acme.reaction") },
	} {
		m, err := read()
		if err != nil || m == nil {
			t.Errorf("%s: %v, %v", name, m, err)
			continue
		}
		if m.Seq != 1 || m.Subject != given.Subject || string(m.Data) != string(given.Data) || m.Time.IsZero() {
			t.Errorf("%s gives %+v", name, m)
		}
		if len(m.Header) != 3 || !slices.Equal(m.Header["zulip-event-ID"], []string{"5"}) ||
			!slices.Equal(m.Header["Twice"], []string{"a", "b"}) ||
			!slices.Equal(m.Header["Empty"], []string{""}) {
			t.Errorf("%s gives the headers %q", name, m.Header)
		}
	}
	if m, err := s.LastOn(t.Context(), "zulip.acme.nothing"); err != nil || m != nil {
		t.Errorf("nothing is %v, %v", m, err)
	}
	stored, err := js.Stream(t.Context(), "ZULIP_acme")
	if err != nil {
		t.Fatal(err)
	}
	if err := stored.DeleteMsg(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if m, err := s.At(t.Context(), 2); err != nil || m != nil {
		t.Errorf("a deleted message is %v, %v", m, err)
	}
	info, err := s.Info(t.Context())
	if err != nil || info.FirstSeq != 1 || info.LastSeq != 3 || info.Messages != 2 || info.MaxAge.Hours() != 7*24 ||
		info.FirstTime.IsZero() {
		t.Errorf("Info gives %+v, %v", info, err)
	}
}

// The next message on a set of subjects, over what others wrote in between.
func TestNext(t *testing.T) {
	srv := natstest.Start(t)
	js := srv.JetStream()
	natstest.CreateStream(t, js, jetstream.StreamConfig{Name: "ZULIP_acme", Subjects: []string{"zulip.>"}})
	s := open(t, connect(t, srv.URL), stream.Config{})
	next := func(subject string, from uint64) uint64 {
		t.Helper()
		m, err := s.Next(t.Context(), subject, from)
		if err != nil {
			t.Fatal(err)
		}
		if m == nil {
			return 0
		}
		return m.Seq
	}
	if got := next(filter, 0); got != 0 {
		t.Errorf("an empty stream has %d", got)
	}
	for _, subject := range []string{"zulip.other.message", "zulip.acme.message", "zulip.other.message",
		"zulip.acme.bridge.queue",
		"zulip.other.message", "zulip.acme.message", "zulip.acme.foreign"} {
		publish(t, js, subject)
	}
	stored, err := js.Stream(t.Context(), "ZULIP_acme")
	if err != nil {
		t.Fatal(err)
	}
	if err := stored.DeleteMsg(t.Context(), 6); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		subject    string
		from, want uint64
	}{
		{filter, 0, 2}, {filter, 1, 2}, {filter, 2, 2}, {filter, 3, 4}, {filter, 5, 7}, {filter, 7, 7}, {filter, 8, 0},
		{filter, 1 << 40, 0},
		{"zulip.acme.message", 3, 0}, {"zulip.acme.bridge.>", 1, 4}, {"zulip.acme.bridge.>", 5, 0},
		{"zulip.acme.nothing", 1, 0},
		{"zulip.acme.*", 3, 7},
	} {
		if got := next(test.subject, test.from); got != test.want {
			t.Errorf("the next on %s from %d is %d, want %d", test.subject, test.from, got, test.want)
		}
	}
	m, err := s.Next(t.Context(), filter, 3)
	if err != nil || m.Subject != "zulip.acme.bridge.queue" || string(m.Data) != "foreign" || m.Time.IsZero() {
		t.Errorf("the next from 3 is %+v, %v", m, err)
	}
}

func TestLargeMessageIsReadBack(t *testing.T) {
	srv := natstest.Start(t, func(o *server.Options) { o.MaxPayload = 8 << 20 })
	s := open(t, connect(t, srv.URL), stream.Config{})
	big := stream.Message{Subject: "zulip.acme.message", Data: make([]byte, 7<<20)}
	for i := range big.Data {
		big.Data[i] = byte(i * 7)
	}
	if _, err := s.Append(t.Context(), stream.Cursor{}, []stream.Message{big, big}); err != nil {
		t.Fatal(err)
	}
	// Server and client turn it into text and back, for which a busy machine may need longer
	// than an answer may take: then it is asked again.
	var m *stream.Stored
	natstest.Eventually(t, "the message to be read", func() bool {
		var err error
		_, m, err = s.Last(t.Context())
		return kindOf(err) != stream.Unavailable
	})
	if m == nil || string(m.Data) != string(big.Data) {
		t.Fatalf("another message is read back: %+v", m)
	}
}

func TestScan(t *testing.T) {
	srv := natstest.Start(t)
	testScan(t, open(t, connect(t, srv.URL), stream.Config{}), srv.JetStream())
}

// testScan fills an empty stream with messages on two subjects, in turns, deletes a few,
// and scans.
func testScan(t *testing.T, s *stream.Stream, js jetstream.JetStream) {
	t.Helper()
	msgs := messages(1, 1300)
	for i := range msgs {
		if i%2 == 1 {
			msgs[i].Subject = "zulip.acme.reaction"
		}
	}
	middle, err := s.Append(t.Context(), stream.Cursor{}, msgs[:600])
	if err != nil {
		t.Fatal(err)
	}
	newest, err := s.Append(t.Context(), middle, msgs[600:])
	if err != nil {
		t.Fatal(err)
	}
	at601, err := s.At(t.Context(), 601)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := js.Stream(t.Context(), s.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, seq := range []uint64{11, 700, 1299} {
		if err := stored.DeleteMsg(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		subject     string
		from        stream.Start
		until       uint64
		headersOnly bool
		want        func(seq uint64) bool
	}{
		{"zulip.acme.>", stream.Start{}, newest.Seq, false, func(uint64) bool { return true }},
		{"zulip.acme.>", stream.Start{Seq: 1}, newest.Seq, true, func(uint64) bool { return true }},
		{"zulip.acme.message", stream.Start{Seq: 1}, newest.Seq, true, func(seq uint64) bool { return seq%2 == 1 }},
		{"zulip.acme.reaction", stream.Start{Seq: 699}, 702, false, func(seq uint64) bool { return seq == 702 }},
		{"zulip.acme.*", stream.Start{Seq: 1290}, 99999, false, func(seq uint64) bool { return seq >= 1290 }},
		{"zulip.acme.message", stream.Start{Time: at601.Time}, newest.Seq, true, func(seq uint64) bool {
			m, err := s.At(t.Context(), seq)
			return err == nil && m != nil && seq%2 == 1 && !m.Time.Before(at601.Time)
		}},
		{"zulip.acme.message", stream.Start{Time: at601.Time.AddDate(1, 0, 0)}, newest.Seq, true,
			func(uint64) bool { return false }},
		{"zulip.acme.message", stream.Start{Seq: 99999}, 999999, true, func(uint64) bool { return false }},
		{"zulip.acme.message", stream.Start{Seq: 1}, 0, true, func(uint64) bool { return false }},
		{"zulip.acme.nothing", stream.Start{Seq: 1}, newest.Seq, true, func(uint64) bool { return false }},
	} {
		name := fmt.Sprintf("%s from %+v until %d", test.subject, test.from, test.until)
		var got, expected []uint64
		err := s.Scan(t.Context(), test.subject, test.from, test.until, test.headersOnly, func(m *stream.Stored) error {
			got = append(got, m.Seq)
			given := msgs[m.Seq-1]
			if m.Subject != given.Subject || eventID(m) != fmt.Sprint(m.Seq) || m.Time.IsZero() {
				return fmt.Errorf("sequence %d is %+v", m.Seq, m)
			}
			if test.headersOnly != (m.Data == nil) || m.Data != nil && string(m.Data) != string(given.Data) {
				return fmt.Errorf("sequence %d has the data %q", m.Seq, m.Data)
			}
			if m.Header["Nats-Msg-Size"] != nil {
				return fmt.Errorf("sequence %d has headers that were not given: %v", m.Seq, m.Header)
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for seq := uint64(1); seq <= newest.Seq; seq++ {
			if seq != 11 && seq != 700 && seq != 1299 && test.want(seq) {
				expected = append(expected, seq)
			}
		}
		if !slices.Equal(got, expected) {
			t.Errorf("%s gives %d messages, want %d: %v...", name, len(got), len(expected), got[:min(5, len(got))])
		}
	}
	stop := errors.New("enough")
	calls := 0
	err = s.Scan(t.Context(), filter, stream.Start{}, newest.Seq, true,
		func(*stream.Stored) error { calls++; return stop })
	if err != stop || calls != 1 {
		t.Errorf("a caller that had enough after %d calls gets %v", calls, err)
	}
	natstest.Eventually(t, "the consumers to be gone", func() bool {
		info, err := stored.Info(t.Context())
		return err == nil && (info.State.Consumers == 0 || t.Name() != "TestScan")
	})
}
