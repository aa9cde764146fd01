//go:build unix

package harness

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// EventKey names an event: ids count anew in each queue.
type EventKey struct {
	Queue string
	ID    int64
}

// Stored is one message as the stream holds it.
type Stored struct {
	Seq     uint64
	Subject string
	Header  map[string][]string
	Data    []byte
	Time    time.Time
}

// Get is a header's value, "" without it.
func (m *Stored) Get(key string) string {
	if v := m.Header[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// Int is a header's value where it is a number.
func (m *Stored) Int(key string) (int64, bool) {
	n, err := strconv.ParseInt(m.Get(key), 10, 64)
	return n, err == nil
}

// Record is which record of the bridge's own this is; "" for Zulip's events and messages.
func (m *Stored) Record() string { return m.Get("Bridge-Record") }

func (m *Stored) String() string {
	return fmt.Sprintf("#%d %s %v %.300s", m.Seq, m.Subject, m.Header, m.Data)
}

// ReadStream reads a whole stream.
func ReadStream(js jetstream.JetStream, name string) ([]Stored, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	s, err := js.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	info, err := s.Info(ctx)
	if err != nil || info.State.Msgs == 0 {
		return nil, err
	}
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	messages, err := c.Messages()
	if err != nil {
		return nil, err
	}
	defer messages.Stop()
	all := make([]Stored, 0, info.State.Msgs)
	for len(all) < int(info.State.Msgs) {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return nil, fmt.Errorf("stream %s, after %d of %d messages: %w", name, len(all), info.State.Msgs, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return nil, err
		}
		all = append(all, Stored{meta.Sequence.Stream, m.Subject(), m.Headers(), m.Data(), meta.Timestamp})
	}
	return all, nil
}

// LastOf is the newest message of a realm; nil if there is none. It does not wait for a nats-server that is down.
func LastOf(js jetstream.JetStream, stream, realm string) (*jetstream.RawStreamMsg, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	m, err := s.GetLastMsgForSubject(ctx, "zulip."+realm+".>")
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	return m, err
}

// WriterOf is who stored the newest message of a realm, "" if that cannot be said now.
func WriterOf(js jetstream.JetStream, stream, realm string) string {
	if m, err := LastOf(js, stream, realm); err == nil && m != nil {
		return m.Header.Get("Bridge-Writer")
	}
	return ""
}
