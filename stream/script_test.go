package stream_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// script answers in place of JetStream, on a nats-server that has none: for servers of
// other versions, and for answers that a real one cannot be made to give. What it answers
// is what real ones answer, word for word, but for the one thing that the test is about.
type script struct {
	url string
	nc  *nats.Conn

	mu     sync.Mutex
	info   map[string]any // STREAM.INFO
	last   uint64         // the sequence of the newest message, for STREAM.MSG.GET; 0 is none
	writes []*nats.Msg
	write  func(n int, m *nats.Msg) // called for each write, counted from 1
	get    func(m *nats.Msg) bool   // answers a STREAM.MSG.GET, or does not
}

// startScript starts it with a dedicated stream of one replica and three messages, led by
// a server of a version; those before 2.11 do not say it.
func startScript(t *testing.T, version string) *script {
	t.Helper()
	srv := natstest.Start(t, func(o *server.Options) { o.JetStream = false })
	s := &script{url: srv.URL, nc: srv.Conn(), last: 3, info: map[string]any{
		"type": "io.nats.jetstream.api.v1.stream_info_response",
		"config": map[string]any{"name": "ZULIP_acme", "subjects": []string{filter}, "retention": "limits",
			"storage": "file", "num_replicas": 1,
			"max_msgs": -1, "max_msg_size": -1, "max_msgs_per_subject": -1, "discard": "old", "allow_direct": true},
		"state": map[string]any{"messages": 3, "first_seq": 1, "last_seq": 3},
	}}
	if version != "" {
		level := map[string]string{"2.11": "1", "2.12": "2"}[version[:4]]
		s.config(map[string]any{"allow_atomic": true, "allow_batched": true,
			"metadata": map[string]string{"_nats.ver": version, "_nats.level": cmp.Or(level, "5")}})
	}
	s.on(t, "$JS.API.STREAM.INFO.ZULIP_acme", func(m *nats.Msg) {
		s.mu.Lock()
		defer s.mu.Unlock()
		data, _ := json.Marshal(s.info)
		_ = m.Respond(data)
	})
	s.on(t, "$JS.API.STREAM.MSG.GET.ZULIP_acme", func(m *nats.Msg) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.get != nil && s.get(m) {
			return
		}
		if s.last == 0 {
			_ = m.Respond([]byte(`{"error":{"code":404,"err_code":10037,"description":"no message found"}}`))
			return
		}
		_ = m.Respond(fmt.Appendf(nil,
			`{"message":{"subject":"zulip.acme.message","seq":%d,"data":"e30=","time":"2026-01-01T00:00:00Z"}}`, s.last))
	})
	s.on(t, filter, func(m *nats.Msg) {
		s.mu.Lock()
		s.writes = append(s.writes, m)
		n, f := len(s.writes), s.write
		s.mu.Unlock()
		f(n, m)
	})
	return s
}

// on answers on a subject.
func (s *script) on(t *testing.T, subject string, f func(*nats.Msg)) {
	t.Helper()
	if _, err := s.nc.Subscribe(subject, f); err != nil {
		t.Fatal(err)
	}
	if err := s.nc.Flush(); err != nil {
		t.Fatal(err)
	}
}

// config changes settings of the stream.
func (s *script) config(change map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.info["config"].(map[string]any), change)
}

// lastSeq sets what INFO tells and what MSG.GET finds.
func (s *script) lastSeq(info, get uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.info["state"].(map[string]any)["last_seq"], s.last = info, get
}

// onWrite sets what answers the writes, and forgets those that were seen.
func (s *script) onWrite(f func(n int, m *nats.Msg)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write, s.writes = f, nil
}

// seen are the writes so far, in order.
func (s *script) seen() []*nats.Msg {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.writes)
}

// respond publishes an answer.
func (s *script) respond(subject, format string, args ...any) {
	_ = s.nc.Publish(subject, fmt.Appendf(nil, format, args...))
}

// ack acknowledges a single message.
func (s *script) ack(m *nats.Msg, seq uint64) {
	s.respond(m.Reply, `{"stream":"ZULIP_acme","seq":%d}`, seq)
}

// refuse says that the expectation is not met.
func (s *script) refuse(m *nats.Msg) {
	s.respond(m.Reply, `{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 99"},"stream":"ZULIP_acme","seq":0}`)
}

// ackFrom acknowledges each write, the first one at that sequence.
func (s *script) ackFrom(seq uint64) {
	s.onWrite(func(n int, m *nats.Msg) { s.ack(m, seq+uint64(n)-1) })
}

// expectations are the headers of a write that say what it follows.
func expectations(m *nats.Msg) string {
	var all []string
	for _, key := range []string{"Nats-Expected-Last-Sequence", "Nats-Expected-Last-Subject-Sequence",
		"Nats-Expected-Last-Subject-Sequence-Subject"} {
		all = append(all, m.Header.Get(key))
	}
	return strings.Join(all, "|")
}

// want fails the test unless the writes had these expectations.
func (s *script) want(t *testing.T, expected ...string) {
	t.Helper()
	var got []string
	for _, m := range s.seen() {
		got = append(got, expectations(m))
	}
	if !slices.Equal(got, expected) {
		t.Errorf("the writes expected %q, want %q", got, expected)
	}
}

// openScript opens the stream on it.
func openScript(t *testing.T, s *script, cfg stream.Config) *stream.Stream {
	t.Helper()
	return open(t, connect(t, s.url), cfg)
}
