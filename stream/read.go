package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"zulip-nats/health"
)

// All reads that decide anything go to the stream's leader by STREAM.MSG.GET. A direct
// get is answered by any replica, also by one that lags behind.

// getRequest is the question of STREAM.MSG.GET (nats-server, jetstream_api.go,
// JSApiMsgGetRequest).
type getRequest struct {
	Seq       uint64     `json:"seq,omitempty"`
	LastFor   string     `json:"last_by_subj,omitempty"`
	NextFor   string     `json:"next_by_subj,omitempty"`
	StartTime *time.Time `json:"start_time,omitempty"`
}

type getReply struct {
	apiReply
	Message *struct {
		Subject string    `json:"subject"`
		Seq     uint64    `json:"seq"`
		Headers []byte    `json:"hdrs"`
		Data    []byte    `json:"data"`
		Time    time.Time `json:"time"`
	} `json:"message"`
}

// get asks the leader for one message; nil if there is none.
func (s *Stream) get(ctx context.Context, stream string, q getRequest) (*Stored, error) {
	var reply getReply
	err := s.link.read(ctx, "stream "+stream+": reading", s.api+"STREAM.MSG.GET."+stream, q, apiTimeout, &reply)
	if e, ok := errors.AsType[*Error](err); ok && (e.Code == 10037 || e.Code == 10043) {
		return nil, nil // no message found, sequence not found
	}
	if err != nil {
		return nil, err
	}
	m := reply.Message
	if m == nil {
		return nil, errorf(Wrong, "stream %s: reading: an answer without a message; what gave it is no "+
			"JetStream", stream)
	}
	return &Stored{Seq: m.Seq, Subject: m.Subject, Header: parseHeaders(m.Headers), Data: m.Data, Time: m.Time}, nil
}

// parseHeaders keeps the case of the keys. Headers that cannot be read are those of
// somebody else's message, and nobody's business.
func parseHeaders(raw []byte) map[string][]string {
	if len(raw) == 0 {
		return nil
	}
	h, err := nats.DecodeHeadersMsg(raw)
	if err != nil {
		return nil
	}
	return h
}

// Last reads the newest message under the filter from the stream's leader. A nil message
// means that there is none.
func (s *Stream) Last(ctx context.Context) (Cursor, *Stored, error) {
	cursor := Cursor{Epoch: s.Epoch()}
	m, err := s.LastOn(ctx, s.cfg.Filter)
	if err != nil || m == nil {
		return cursor, nil, err
	}
	cursor.Seq = m.Seq
	return cursor, m, nil
}

// LastOn reads the newest message on one subject (wildcards allowed) from the leader, nil
// if there is none.
func (s *Stream) LastOn(ctx context.Context, subject string) (*Stored, error) {
	return s.get(ctx, s.name, getRequest{LastFor: subject})
}

// At reads the message with that sequence from the leader, or nil where it is deleted, or
// belongs to another filter.
func (s *Stream) At(ctx context.Context, seq uint64) (*Stored, error) {
	if seq == 0 {
		return nil, nil
	}
	m, err := s.get(ctx, s.name, getRequest{Seq: seq})
	if err != nil || m == nil || !s.within(m.Subject) {
		return nil, err
	}
	return m, nil
}

// Next reads the first message on subject (wildcards allowed) at or behind a sequence
// from the leader, nil if there is none.
func (s *Stream) Next(ctx context.Context, subject string, seq uint64) (*Stored, error) {
	return s.get(ctx, s.name, getRequest{Seq: max(seq, 1), NextFor: subject})
}

// Purge deletes the messages on subject (wildcards allowed) below a sequence, for good. It
// takes only what is narrower than the filter, and never the newest message under it,
// which is where we are: the caller names a sequence that it has read or had acknowledged
// on this connection. Without a right to STREAM.PURGE it is an [*Error], Forbidden.
func (s *Stream) Purge(ctx context.Context, subject string, below uint64) error {
	what := fmt.Sprintf("stream %s: purging %s", s.name, subject)
	if below <= 1 { // to the server, 0 is all
		return nil
	}
	if subject == s.cfg.Filter || !s.within(subject) {
		return errorf(Wrong, "%s: that is not a part of %s", what, s.cfg.Filter)
	}
	return s.link.ask(ctx, what, s.api+"STREAM.PURGE."+s.name, map[string]any{"filter": subject, "seq": below},
		apiTimeout, &apiReply{})
}

// Start is where a Scan begins: at a sequence, or at the first message that is not older
// than a time.
type Start struct {
	Seq  uint64
	Time time.Time
}

// callerError carries an error of Scan's f through, to be told from our own.
type callerError struct{ error }

// Scan calls f with each message on subject (wildcards allowed) from a start on, in
// stream order, up to and including sequence `until`, headers only (Data is nil) if
// headersOnly. It reads by a short-lived consumer, or message by message (next_by_subj)
// where the account may not create one, or none can be made now. An error of f ends it
// and is returned as it is. After an error of its own, f has seen a beginning.
//
// A consumer may read a replica that lags behind, so the last word is always the
// leader's.
func (s *Stream) Scan(ctx context.Context, subject string, from Start, until uint64, headersOnly bool,
	f func(*Stored) error) error {
	if until == 0 {
		return nil
	}
	next := from // where to go on
	deliver := func(m *Stored) error {
		next = Start{Seq: m.Seq + 1}
		if headersOnly {
			m.Data = nil
		}
		if err := f(m); err != nil {
			return callerError{err}
		}
		return nil
	}
	err := s.consume(ctx, subject, from, until, headersOnly, deliver)
	if _, ok := errors.AsType[*Error](err); ok {
		err = nil // not allowed, too many, no leader of the cluster: the stream's leader may serve us all the same
	}
	for err == nil && next.Seq <= until {
		q := getRequest{Seq: max(next.Seq, 1), NextFor: subject}
		if !next.Time.IsZero() {
			q.Seq, q.StartTime = 0, &next.Time
		}
		var m *Stored
		if m, err = s.get(ctx, s.name, q); err != nil || m == nil || m.Seq > until {
			break
		}
		if m.Time.Before(from.Time) {
			next = Start{Seq: m.Seq + 1} // a server from before start_time gives the oldest message
			continue
		}
		err = deliver(m)
	}
	if h, ok := errors.AsType[callerError](err); ok {
		return h.error
	}
	return err
}

const (
	pullHeaders  = 500 // messages in one pull, headers only
	pullMessages = 50
	// consumerLife is how long the server keeps a consumer that nobody pulls from: what
	// is left behind by a crash.
	consumerLife = 30 * time.Second
)

// consume is the fast part of Scan: it delivers what one consumer sees.
func (s *Stream) consume(
	ctx context.Context, subject string, from Start, until uint64, headersOnly bool, deliver func(*Stored) error,
) error {
	nc, name := s.link.nc, nuid.Next()
	what := fmt.Sprintf("stream %s: reading %s", s.name, subject)
	config := jetstream.ConsumerConfig{
		Name: name, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(from.Seq, 1),
		AckPolicy: jetstream.AckNonePolicy, ReplayPolicy: jetstream.ReplayInstantPolicy, FilterSubject: subject,
		HeadersOnly: headersOnly, MemoryStorage: true, Replicas: 1, InactiveThreshold: consumerLife,
	}
	if !from.Time.IsZero() {
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverByStartTimePolicy, 0
		config.OptStartTime = &from.Time
	}
	batch := pullMessages
	if headersOnly {
		batch = pullHeaders
	}

	broken := s.link.broken()
	pull := s.api + "CONSUMER.MSG.NEXT." + s.name + "." + name
	waiter := s.link.wait(func(v violation) bool { return v.subject == pull || s.link.unheard(v) })
	defer s.link.forget(waiter)
	inbox := nc.NewInbox()
	messages := make(chan *nats.Msg, 2*batch)
	sub, err := nc.ChanSubscribe(inbox, messages)
	if err != nil {
		return newConnError(what, err, false)
	}
	defer sub.Unsubscribe()

	var created struct {
		apiReply
		Pending uint64 `json:"num_pending"`
	}
	create := map[string]any{"stream_name": s.name, "config": config}
	if err := s.link.ask(ctx, what, s.api+"CONSUMER.CREATE."+s.name+"."+name, create, apiTimeout,
		&created); err != nil {
		return err
	}
	defer func() {
		// Without the right to delete it, or without a connection, it goes by itself.
		_ = s.link.ask(context.WithoutCancel(ctx), what, s.api+"CONSUMER.DELETE."+s.name+"."+name, nil,
			s.cfg.AckTimeout, &apiReply{})
	}()
	pending, seen, asked := created.Pending, uint64(0), 0
	for pending > 0 {
		if asked == 0 {
			asked = batch
			if err := nc.PublishRequest(pull, inbox,
				fmt.Appendf(nil, `{"batch":%d,"no_wait":true}`, batch)); err != nil {
				return newConnError(what, err, false)
			}
		}
		var msg *nats.Msg
		health.Waits(ctx, s.link.patience(apiTimeout))
		timer := time.NewTimer(s.link.patience(apiTimeout))
		select {
		case msg = <-messages:
		case <-broken:
			return newConnError(what, nats.ErrDisconnected, false)
		case v := <-waiter.refused:
			return s.link.forbidden(what, v)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			go s.link.measure()
			return newConnError(what, nats.ErrTimeout, false)
		}
		timer.Stop()
		if status := msg.Header.Get("Status"); status != "" && len(msg.Data) == 0 {
			if status == "404" || status == "408" {
				return nil // no more messages
			}
			return errorf(Unavailable, "%s: the consumer ended early: %s %s", what, status,
				msg.Header.Get("Description"))
		}
		meta, err := msg.Metadata()
		if err != nil {
			return errorf(Wrong, "%s: a message that is of no consumer: %w", what, err)
		}
		if meta.Sequence.Consumer != seen+1 {
			return errorf(Unavailable, "%s: messages were lost on the way from the server", what)
		}
		seen++
		asked--
		pending = meta.NumPending
		if meta.Sequence.Stream > until {
			return nil
		}
		m := &Stored{Seq: meta.Sequence.Stream, Subject: msg.Subject, Header: msg.Header, Data: msg.Data,
			Time: meta.Timestamp}
		delete(m.Header, "Nats-Msg-Size") // added by headers_only
		if err := deliver(m); err != nil {
			return err
		}
	}
	return nil
}
