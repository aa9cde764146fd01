package stream_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// These are the answers that a real JetStream gives once in a year, or never: what was
// stored is less than what was sent, an answer is that of another write. None of them may
// be taken for "all is stored".

// fastServer answers fast ingest: the first message, and the last one with what final
// says. All messages are single ones to a server that does not know it.
func (s *script) fastServer(final func(batch string, n int, m *nats.Msg)) {
	count := 0
	s.onWrite(func(_ int, m *nats.Msg) {
		f := strings.Split(m.Reply, ".") // inbox (2 tokens), batch, flow, gap mode, number, operation, $FI
		if len(f) != 8 || f[7] != "$FI" {
			s.ack(m, 4)
			return
		}
		switch count++; f[6] {
		case "0":
			count = 1
			s.respond(m.Reply, `{"type":"ack","seq":1,"msgs":500}`)
		case "2":
			final(f[2], count, m)
		}
	})
}

// unanswered is how long a test waits for an answer that does not come. The answers that
// do come have to be faster, on a busy machine too.
const unanswered = 6 * time.Second

// isFast says whether a write went by fast ingest.
func isFast(m *nats.Msg) bool { return strings.HasSuffix(m.Reply, ".$FI") }

func TestFastBatchThatIsNotWhole(t *testing.T) {
	js := startScript(t, "2.15.2")
	s := openScript(t, js, stream.Config{Path: stream.PathFast})
	after := stream.Cursor{Seq: 3, Acked: true}
	for name, test := range map[string]struct {
		final string // of batch, count
		whole bool
	}{
		"whole":                {`{"stream":"ZULIP_acme","seq":8,"batch":"%s","count":%d}`, true},
		"a part":               {`{"stream":"ZULIP_acme","seq":7,"batch":"%[1]s","count":4}`, false},
		"fewer than it says":   {`{"stream":"ZULIP_acme","seq":8,"batch":"%[1]s","count":4}`, false},
		"others among them":    {`{"stream":"ZULIP_acme","seq":9,"batch":"%s","count":%d}`, false},
		"elsewhere":            {`{"stream":"ZULIP_acme","seq":5,"batch":"%s","count":%d}`, false},
		"nothing":              {`{"stream":"ZULIP_acme","seq":3,"batch":"%[1]s","count":0}`, false},
		"a gap before the end": {`{"type":"gap","last_seq":3,"seq":4}|{"stream":"ZULIP_acme","seq":8,"batch":"%s","count":%d}`, false},
		"an error before the end": {`{"type":"err","seq":4,"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 6"}}|` +
			`{"stream":"ZULIP_acme","seq":8,"batch":"%s","count":%d}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			js.fastServer(func(batch string, n int, m *nats.Msg) {
				parts := strings.Split(test.final, "|")
				for _, part := range parts[:len(parts)-1] {
					js.respond(m.Reply, "%s", part)
				}
				if last := parts[len(parts)-1]; strings.Contains(last, "%d") {
					js.respond(m.Reply, last, batch, n)
				} else {
					js.respond(m.Reply, last, batch)
				}
			})
			at, err := s.Append(t.Context(), after, messages(1, 5))
			switch {
			case test.whole && (err != nil || at != (stream.Cursor{Seq: 8, Acked: true})):
				t.Errorf("got %+v, %v", at, err)
			case !test.whole && (kindOf(err) != stream.Unclear && kindOf(err) != stream.Refused || at != after):
				t.Errorf("got %+v, %v", at, err)
			}
			if n := len(js.seen()); n != 5 {
				t.Errorf("%d messages went", n)
			}
		})
	}
}

// A server that does not know fast ingest takes each message for a single one, and
// acknowledges the first. The batch is given up there, and the next one goes another way.
func TestServerWithoutFastIngest(t *testing.T) {
	js := startScript(t, "2.15.2")
	s := openScript(t, js, stream.Config{Path: stream.PathFast})
	js.onWrite(func(n int, m *nats.Msg) { js.ack(m, 3+uint64(n)) })
	_, err := s.Append(t.Context(), stream.Cursor{Seq: 3, Acked: true}, messages(1, 5))
	want(t, err, stream.Unclear, "does not know fast ingest")
	if n := len(js.seen()); n != 1 {
		t.Errorf("%d messages went before the first was answered", n)
	}
	js.onWrite(func(n int, m *nats.Msg) {
		if m.Reply == "" {
			return
		}
		if id := m.Header.Get("Nats-Batch-Id"); id != "" {
			js.respond(m.Reply, `{"stream":"ZULIP_acme","seq":%d,"batch":"%s","count":%d}`, 4+n, id, n)
			return
		}
		js.ack(m, 4+uint64(n))
	})
	_, _ = s.Append(t.Context(), stream.Cursor{Seq: 4, Acked: true}, messages(2, 4))
	if slices.ContainsFunc(js.seen(), isFast) {
		t.Error("it is asked again")
	}
}

// Answers to a batch that was given up come when the next one is under way.
func TestLateAnswersToAFastBatch(t *testing.T) {
	t.Parallel()
	js := startScript(t, "2.15.2")
	s := openScript(t, js, stream.Config{Path: stream.PathFast, AckTimeout: unanswered})
	js.fastServer(func(string, int, *nats.Msg) {})
	after := stream.Cursor{Seq: 3, Acked: true}
	_, err := s.Append(t.Context(), after, messages(1, 5))
	want(t, err, stream.Unclear)
	sent := js.seen()
	old := sent[len(sent)-1].Reply // where the answers to it go
	batch := strings.Split(old, ".")[2]
	js.onWrite(func(n int, m *nats.Msg) {
		if n == 1 {
			js.respond(old, `{"type":"ack","seq":5,"msgs":500}`)
			js.respond(old, `{"type":"err","seq":1,"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 8"}}`)
			js.respond(old, `{"stream":"ZULIP_acme","seq":8,"batch":"%s","count":5}`, batch)
			js.respond(m.Reply, `{"type":"ack","seq":1,"msgs":500}`)
		}
		if n == 3 {
			js.respond(m.Reply, `{"stream":"ZULIP_acme","seq":6,"batch":"%s","count":3}`,
				strings.Split(m.Reply, ".")[2])
		}
	})
	if at, err := s.Append(t.Context(), after, messages(1, 3)); err != nil || at.Seq != 6 {
		t.Errorf("got %+v, %v", at, err)
	}
}

func TestAtomicBatchThatIsNotWhole(t *testing.T) {
	js := startScript(t, "2.15.2")
	s := openScript(t, js, stream.Config{Path: stream.PathAtomic})
	after := stream.Cursor{Seq: 3, Acked: true}
	for name, test := range map[string]struct {
		final string // of batch
		whole bool
	}{
		"whole":          {`{"stream":"ZULIP_acme","seq":8,"batch":"%s","count":5}`, true},
		"a part":         {`{"stream":"ZULIP_acme","seq":8,"batch":"%s","count":4}`, false},
		"another batch":  {`{"stream":"ZULIP_acme","seq":8,"batch":"x%s","count":5}`, false},
		"a single write": {`{"stream":"ZULIP_acme","seq":8}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			js.onWrite(func(_ int, m *nats.Msg) {
				switch {
				case m.Header.Get("Nats-Batch-Commit") == "":
					if m.Reply != "" {
						js.respond(m.Reply, "")
					}
				case strings.Contains(test.final, "%s"):
					js.respond(m.Reply, test.final, m.Header.Get("Nats-Batch-Id"))
				default:
					js.respond(m.Reply, "%s", test.final)
				}
			})
			at, err := s.Append(t.Context(), after, messages(1, 5))
			switch {
			case test.whole && (err != nil || at != (stream.Cursor{Seq: 8, Acked: true})):
				t.Errorf("got %+v, %v", at, err)
			case !test.whole && (kindOf(err) != stream.Unclear || at != after):
				t.Errorf("got %+v, %v", at, err)
			}
		})
	}
}

// The acknowledgement of a write that was given up comes when the next one is under way,
// which is refused.
func TestLateAnswersToAWrite(t *testing.T) {
	t.Parallel()
	js := startScript(t, "2.15.2")
	for _, path := range []stream.Path{stream.PathSync, stream.PathAtomic} {
		s := openScript(t, js, stream.Config{Path: path, AckTimeout: unanswered})
		n := 1
		if path == stream.PathAtomic {
			n = 3
		}
		js.onWrite(func(int, *nats.Msg) {})
		_, err := s.Append(t.Context(), stream.Cursor{Seq: 3, Acked: true}, messages(1, n))
		want(t, err, stream.Unclear)
		sent := js.seen()
		old := sent[len(sent)-1]
		js.onWrite(func(i int, m *nats.Msg) {
			if i != n {
				return
			}
			// What is late would do for the batch under way too, but for where it comes.
			js.respond(old.Reply, `{"stream":"ZULIP_acme","seq":%d,"batch":"%s","count":%d}`, 3+n,
				m.Header.Get("Nats-Batch-Id"), n)
			js.refuse(m)
		})
		_, err = s.Append(t.Context(), stream.Cursor{Seq: 3, Acked: true}, messages(1, n))
		want(t, err, stream.Refused)
	}
}

// What is acknowledged has to be what was asked for.
func TestAcknowledgementsThatAreNotOurs(t *testing.T) {
	js := startScript(t, "2.15.2")
	s := openScript(t, js, stream.Config{})
	for _, test := range []struct {
		answer string
		kind   stream.Kind
		word   string
	}{
		{`{"stream":"ZULIP_acme","seq":4}`, 0, ""},
		{`{"stream":"OTHER","seq":4}`, stream.Wrong, `stream "OTHER"`},
		{`{"stream":"ZULIP_acme_2","seq":4}`, stream.Wrong, `stream "ZULIP_acme_2"`},
		{`{"stream":"ZULIP_acme","domain":"leaf","seq":4}`, stream.Wrong, `domain "leaf"`},
		{`{"stream":"ZULIP_acme","seq":4,"duplicate":true}`, stream.Refused, "Nats-Msg-Id"},
		{`{"stream":"ZULIP_acme","seq":0}`, stream.Wrong, "without a sequence"},
		{`{"stream":"ZULIP_acme"}`, stream.Wrong, "without a sequence"},
		{`{}`, stream.Wrong, `stream ""`},
		{`+OK`, stream.Wrong, "no JetStream"},
	} {
		js.onWrite(func(_ int, m *nats.Msg) { js.respond(m.Reply, "%s", test.answer) })
		at, err := s.Append(t.Context(), stream.Cursor{Seq: 3, Acked: true}, messages(1, 1))
		if test.kind == 0 {
			if err != nil || at != (stream.Cursor{Seq: 4, Acked: true}) {
				t.Errorf("%s: got %+v, %v", test.answer, at, err)
			}
			continue
		}
		if kindOf(err) != test.kind || !strings.Contains(err.Error(), test.word) || at.Seq != 3 {
			t.Errorf("%s: got %+v, %v", test.answer, at, err)
		}
	}
}

// The first write behind a read is refused, and INFO tells of a higher sequence. In a
// stream of our own it may be that of deleted messages; in one that others use too it is
// theirs, and says nothing.
func TestSecondTryOnlyInAStreamOfOurOwn(t *testing.T) {
	for _, test := range []struct {
		subjects []string
		info     uint64
		want     []string
	}{
		{[]string{filter}, 9, []string{"3|3|" + filter, "9|3|" + filter}},
		{[]string{filter}, 3, []string{"3|3|" + filter}},
		{[]string{"zulip.>"}, 9, []string{"|3|" + filter}},
	} {
		js := startScript(t, "2.15.2")
		js.config(map[string]any{"subjects": test.subjects})
		s := openScript(t, js, stream.Config{})
		js.onWrite(func(_ int, m *nats.Msg) { js.refuse(m) })
		read := last(t, s)
		js.lastSeq(test.info, 3)
		_, err := s.Append(t.Context(), read, messages(1, 3))
		want(t, err, stream.Refused)
		js.want(t, test.want...)
	}
}

// Messages of the consumer are lost on the way, or it has none. It is not the last word:
// the leader is asked for what is missing.
func TestScanWithHoles(t *testing.T) {
	scan := func(t *testing.T, s *stream.Stream, n uint64) {
		t.Helper()
		var got []uint64
		err := s.Scan(t.Context(), filter, stream.Start{Seq: 1}, n, false, func(m *stream.Stored) error {
			got = append(got, m.Seq)
			return nil
		})
		whole := len(got) == int(n)
		for i, seq := range got {
			whole = whole && seq == uint64(i+1)
		}
		if err != nil || !whole {
			t.Errorf("got %v, %v", got, err)
		}
	}
	s, proxy, _ := behind(t, stream.Config{})
	if _, err := s.Append(t.Context(), stream.Cursor{}, messages(1, 60)); err != nil {
		t.Fatal(err)
	}
	for _, lost := range [][]int{{1}, {2}, {30, 31}, {49}} {
		t.Run(fmt.Sprint("lost ", lost), func(t *testing.T) {
			count, done := 0, 0
			proxy.OnDeliver(func(m natstest.Publish) natstest.Fate {
				if !strings.HasPrefix(m.Reply, "$JS.ACK.") {
					return natstest.Pass
				}
				if count++; slices.Contains(lost, count) {
					done++
					return natstest.Lose
				}
				return natstest.Pass
			})
			scan(t, s, 60)
			proxy.OnDeliver(nil)
			if done != len(lost) {
				t.Errorf("%d messages were lost", done)
			}
		})
	}
	t.Run("an empty replica", func(t *testing.T) {
		js := startScript(t, "2.15.2")
		js.nextOn(6)
		js.on(t, "$JS.API.CONSUMER.CREATE.ZULIP_acme.*",
			func(m *nats.Msg) { _ = m.Respond([]byte(`{"num_pending":0}`)) })
		js.on(t, "$JS.API.CONSUMER.DELETE.ZULIP_acme.*",
			func(m *nats.Msg) { _ = m.Respond([]byte(`{"success":true}`)) })
		scan(t, openScript(t, js, stream.Config{}), 6)
	})
}

// nextOn answers next_by_subj for messages 1 to n on the realm's subjects.
func (s *script) nextOn(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.get = func(m *nats.Msg) bool {
		var q struct {
			Seq  uint64 `json:"seq"`
			Next string `json:"next_by_subj"`
		}
		if json.Unmarshal(m.Data, &q) != nil || q.Next == "" || q.Seq > n {
			return false
		}
		_ = m.Respond(fmt.Appendf(nil,
			`{"message":{"subject":"zulip.acme.message","seq":%d,"time":"2026-01-01T00:00:00Z"}}`, q.Seq))
		return true
	}
}

// The refusal of a batch that was given up comes late, and the next batch is stored all
// the same.
func TestLateRefusalOfABatch(t *testing.T) {
	t.Parallel()
	js := startScript(t, "2.15.2")
	s := openScript(t, js, stream.Config{Path: stream.PathAtomic, AckTimeout: unanswered})
	js.onWrite(func(int, *nats.Msg) {})
	after := stream.Cursor{Seq: 3, Acked: true}
	_, err := s.Append(t.Context(), after, messages(1, 3))
	want(t, err, stream.Unclear)
	sent := js.seen()
	js.onWrite(func(n int, m *nats.Msg) {
		if n == 3 {
			js.refuse(sent[2])
			js.respond(m.Reply, `{"stream":"ZULIP_acme","seq":6,"batch":"%s","count":3}`, m.Header.Get("Nats-Batch-Id"))
		}
	})
	if at, err := s.Append(t.Context(), after, messages(1, 3)); err != nil || at.Seq != 6 {
		t.Errorf("got %+v, %v", at, err)
	}
}

// A question that changes nothing is asked again where nobody answers, as while a leader is
// elected: long before it is given up.
func TestReadsAreAskedAgain(t *testing.T) {
	js := startScript(t, "2.15.2")
	s := openScript(t, js, stream.Config{})
	asked := 0
	js.mu.Lock()
	js.get = func(*nats.Msg) (silent bool) {
		asked++
		return asked < 3
	}
	js.mu.Unlock()
	began := time.Now()
	if at, _, err := s.Last(t.Context()); err != nil || at.Seq != 3 {
		t.Errorf("read %+v, %v", at, err)
	}
	js.mu.Lock()
	defer js.mu.Unlock()
	if took := time.Since(began); asked != 3 || took < 600*time.Millisecond {
		t.Errorf("asked %d times in %v", asked, took)
	}
}
