//go:build linux

package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// store is where messages go: one server, or a cluster of three.
type store struct {
	t        *scope
	name     string
	memory   bool
	replicas int
	url      string
	nc       *nats.Conn
	js       jetstream.JetStream
}

// newStore starts the nats-servers for a kind of store, until the case ends.
func newStore(t *scope, name string) *store {
	s := &store{t: t, name: name, memory: strings.Contains(name, "memory"), replicas: 1}
	if strings.HasPrefix(name, "R3") {
		s.replicas = 3
		var urls []string
		for _, p := range natstest.StartProcesses(t, 3, "") {
			urls = append(urls, p.URL)
		}
		s.url = strings.Join(urls, ",")
	} else {
		s.url = natstest.StartProcess(t, "").URL
	}
	s.nc = natstest.Connect(t, s.url)
	s.js = natstest.JetStream(t, s.nc)
	return s
}

// open makes a stream as the program makes its own, to be written by a path, or by the
// best one.
func (s *store) open(realm string, path stream.Path) *stream.Stream {
	t := s.t
	nc, err := stream.Connect(t.Context(), stream.ConnectConfig{URL: s.url})
	t.must(err)
	t.Cleanup(nc.Close)
	var opened *stream.Stream
	t.wait("stream of "+realm, 100*time.Millisecond, func() bool { // a cluster may not be ready yet
		opened, err = stream.Open(t.Context(), nc, stream.Config{Realm: realm, Filter: "zulip." + realm + ".>",
			AckTimeout: time.Minute, Path: path, New: stream.NewStream{Memory: s.memory, Replicas: s.replicas}})
		return err == nil
	})
	t.Cleanup(opened.Close)
	return opened
}

// clear deletes what a stream holds but for its newest message, which says where we are.
func (s *store) clear(name string) {
	st, err := s.js.Stream(s.t.Context(), name)
	s.t.must(err)
	s.t.must(st.Purge(s.t.Context(), jetstream.WithPurgeKeep(1)))
}

// newest reads the last n messages of a stream.
func (s *store) newest(name string, n int) []stream.Message {
	st, err := s.js.Stream(s.t.Context(), name)
	s.t.must(err)
	info, err := st.Info(s.t.Context())
	s.t.must(err)
	n = min(n, int(info.State.Msgs))
	var all []stream.Message
	s.read(st, info.State.LastSeq-uint64(n)+1, n, "", func(m jetstream.Msg) {
		one := stream.Message{Subject: m.Subject(), Data: m.Data()}
		for key, values := range m.Headers() {
			one.Headers = append(one.Headers, stream.Header{Key: key, Value: values[0]})
		}
		all = append(all, one)
	})
	return all
}

// read gives n messages of a stream from a sequence on; a filter may be empty.
func (s *store) read(st jetstream.Stream, from uint64, n int, filter string, each func(jetstream.Msg)) {
	t := s.t
	config := jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from}
	if filter != "" {
		config.FilterSubjects = []string{filter}
	}
	c, err := st.OrderedConsumer(t.Context(), config)
	t.must(err)
	it, err := c.Messages()
	t.must(err)
	defer it.Stop()
	for range n {
		m, err := it.Next(jetstream.NextContext(t.Context()))
		t.must(err)
		each(m)
	}
}

// weights are the mean sizes of messages: as they are stored, headers included, and of
// their bodies alone.
func weights(messages []stream.Message) (stored, body int) {
	for _, m := range messages {
		body += len(m.Data)
		stored += len(m.Data) + len("NATS/1.0\r\n\r\n")
		for _, h := range m.Headers {
			stored += len(h.Key) + len(h.Value) + len(": \r\n")
		}
	}
	return stored / len(messages), body / len(messages)
}

// bareLoop publishes ready-made messages in one write, and does nothing else: what package
// stream can do when it is never kept waiting. The messages are those that the program had stored, so they have its
// headers.
type bareLoop struct {
	*store
	stream *stream.Stream
	at     stream.Cursor
	chunk  []stream.Message
}

func newBareLoop(s *store, realm string, path stream.Path, like []stream.Message) *bareLoop {
	l := &bareLoop{store: s, stream: s.open(realm, path)}
	for _, m := range like {
		one := stream.Message{Subject: "zulip." + realm + strings.TrimPrefix(m.Subject, "zulip.acme"), Data: m.Data}
		for _, h := range m.Headers {
			if !strings.HasPrefix(h.Key, "Nats-") { // these are the path's own, and made anew
				one.Headers = append(one.Headers, h)
			}
		}
		l.chunk = append(l.chunk, one)
	}
	return l
}

func (l *bareLoop) publish(n int) time.Duration {
	began := time.Now()
	var err error
	l.at, err = l.stream.AppendEach(l.t.Context(), l.at, func(int, stream.Cursor) ([]stream.Message, bool) {
		chunk := l.chunk[:min(n, len(l.chunk))]
		n -= len(chunk)
		return chunk, n > 0
	})
	l.t.must(err)
	return time.Since(began)
}

// natsBench is `nats bench js pub async` into a stream of its own, with 500 messages on
// their way, as that command has it by default. It gives messages a second as the command
// says, and what the process used. Without the command it is nil.
func (s *store) natsBench(n, size int) func() (perSecond float64, used time.Duration) {
	t := s.t
	nats := t.natsCommand(t)
	if nats == "" {
		return nil
	}
	return func() (float64, time.Duration) {
		config := jetstream.StreamConfig{Name: "BENCH", Subjects: []string{"bench"}, Replicas: s.replicas}
		if s.memory {
			config.Storage = jetstream.MemoryStorage
		}
		natstest.CreateStream(t, s.js, config)
		p := t.start(nil, nats, "--server", s.url, "bench", "js", "pub", "async", "bench", "--stream", "BENCH", "--batch", "500",
			"--msgs", strconv.Itoa(n), "--size", fmt.Sprint(size, "B"), "--no-progress")
		used := p.finish()
		perSecond, err := benchFigure(p.log.String())
		t.must(err)
		t.must(s.js.DeleteStream(t.Context(), "BENCH"))
		return perSecond, processors(used)
	}
}

var stats = regexp.MustCompile(`stats: ([\d,.]+) msgs/sec`)

// benchFigure finds messages a second in what nats bench printed.
func benchFigure(text string) (float64, error) {
	m := stats.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("nats bench has no figure in what it printed:\n%s", text)
	}
	return strconv.ParseFloat(strings.ReplaceAll(m[1], ",", ""), 64)
}
