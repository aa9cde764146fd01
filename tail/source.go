package tail

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"zulip-nats/events"
)

// askTime is how long one answer of JetStream may take. Tests give a busy machine more.
var askTime = 5 * time.Second

const (
	// idleLife is how long the server keeps a consumer that nobody asks any more: ours,
	// if this process is killed.
	idleLife = time.Minute
	// heartbeat is how often the server tells that the consumer is still there; without two
	// of them it is made anew.
	heartbeat = 5 * time.Second
	// retryPause lies between two tries to make a consumer while NATS is away.
	retryPause = 500 * time.Millisecond
	// quietTime is how long it is waited, up to an end, for what is still to come: a purge
	// or an age limit may have taken it meanwhile, which a consumer that is made anew
	// knows. On a slow line the wait grows, up to quietMost.
	quietTime = 2 * time.Second
	quietMost = time.Minute
)

// source reads one stream, by a consumer in the server's memory that knows no
// acknowledgements, is made anew where one broke, and deleted at the end.
type source struct {
	js      jetstream.JetStream
	stream  string
	filters []string     // subjects; none is all of the stream
	realm   string       // whose messages they are
	created time.Time    // when the stream was
	anew    func() error // tells that it was deleted and made anew
	within  bool         // the message before begins a state, or is a piece: others may have been purged
}

// place is where reading begins: at a sequence, or at a time if there is one.
type place struct {
	seq  uint64
	time time.Time
}

// errAgain is a consumer that has to be made anew.
var errAgain = errors.New("the consumer is gone")

// errGoing is what the server says of a stream while it deletes it (nats-server,
// JSStreamInvalidErr). A moment later there is none, or a new one.
var errGoing = &jetstream.APIError{ErrorCode: 10096}

// isAnew says whether the stream is not the one that it was: deleted, and made anew. It
// remembers which one it is now.
func (s *source) isAnew(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	stream, err := s.js.Stream(ctx, s.stream)
	if err != nil {
		return false, err
	}
	created := stream.CachedInfo().Created
	was := s.created
	s.created = created
	return !created.Equal(was), nil
}

// read hands on what the stream holds from a place on, up to the sequence until or what is
// left of the stream before it, or for as long as ctx lives if that is 0. The end of ctx is
// no error. Of a stream that is deleted and made anew meanwhile nothing is left, and
// without an end the new one is read from its start.
func (s *source) read(ctx context.Context, from place, until uint64, each func(*events.Event) error) error {
	before := uint64(0) // the sequence of the message before
	tried := false      // the stream was there, so what fails from now on may heal
	for quiet := quietTime; ; {
		consumer, err := s.make(ctx, from)
		if err == nil && tried { // asked behind the making: the consumer is of the stream that is compared
			var anew bool
			if anew, err = s.isAnew(ctx); err != nil || anew {
				s.drop(ctx, consumer)
			}
			switch {
			case anew && until > 0:
				return nil
			case anew:
				if err := s.anew(); err != nil {
					return err
				}
				from, before = place{seq: 1}, 0
				continue
			}
		}
		switch {
		case ctx.Err() != nil && err != nil:
			return nil
		case errors.Is(err, jetstream.ErrStreamNotFound):
			return fmt.Errorf("stream %s is not there: %w", s.stream, err)
		case err != nil && !tried && !errors.Is(err, errGoing):
			return err
		case err == nil:
			begun := from
			err = s.drain(ctx, consumer, &from, &before, until, quiet, each)
			s.drop(ctx, consumer)
			if from != begun {
				quiet = quietTime
			} else {
				quiet = min(2*quiet, quietMost)
			}
			if !errors.Is(err, errAgain) {
				return err
			}
		}
		tried = true
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryPause):
		}
	}
}

func (s *source) make(ctx context.Context, from place) (jetstream.Consumer, error) {
	c := jetstream.ConsumerConfig{
		Name:              "tail-" + nuid.Next(),
		Description:       "zulip-nats tail",
		AckPolicy:         jetstream.AckNonePolicy,
		MemoryStorage:     true,
		Replicas:          1,
		InactiveThreshold: idleLife,
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       from.seq,
		FilterSubjects:    s.filters,
	}
	if len(s.filters) == 1 {
		c.FilterSubject, c.FilterSubjects = s.filters[0], nil
	}
	if !from.time.IsZero() {
		c.DeliverPolicy, c.OptStartSeq, c.OptStartTime = jetstream.DeliverByStartTimePolicy, 0, &from.time
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	return s.js.CreateConsumer(ctx, s.stream, c)
}

// drop deletes a consumer. Where that fails the server does so when nobody has asked it
// for idleLife.
func (s *source) drop(ctx context.Context, c jetstream.Consumer) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTime)
	defer cancel()
	if !s.js.Conn().IsConnected() {
		return
	}
	_ = s.js.DeleteConsumer(ctx, s.stream, c.CachedInfo().Name)
}

// drain reads a consumer to its end. from and before move along, so that the next
// consumer goes on behind them. If there is an end, no message is waited for longer than
// quiet.
func (s *source) drain(ctx context.Context, c jetstream.Consumer, from *place, before *uint64, until uint64,
	quiet time.Duration, each func(*events.Event) error) error {
	if until > 0 && c.CachedInfo().NumPending == 0 {
		return nil
	}
	messages, err := c.Messages(jetstream.PullHeartbeat(heartbeat))
	if err != nil {
		return errAgain
	}
	defer messages.Stop()
	// What was on its way when a connection broke does not come again by this consumer.
	whole, broken := context.WithCancel(ctx)
	defer broken()
	nc := s.js.Conn()
	lost := nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	defer nc.RemoveStatusListener(lost)
	go func() {
		select {
		case <-lost:
			broken()
		case <-whole.Done():
		}
	}()
	for n := uint64(1); ; n++ {
		wait, waited := whole, context.CancelFunc(func() {})
		if until > 0 {
			wait, waited = context.WithTimeout(whole, quiet)
		}
		m, err := messages.Next(jetstream.NextContext(wait))
		waited()
		if ctx.Err() != nil {
			return nil
		}
		if nc.IsClosed() {
			return nats.ErrConnectionClosed
		}
		if err != nil { // deleted, or nothing comes of it: whatever it is, a new one heals it
			return errAgain
		}
		at, err := m.Metadata()
		if err != nil {
			return err
		}
		if at.Sequence.Consumer != n { // one was lost on its way
			return errAgain
		}
		seq := at.Sequence.Stream
		if until > 0 && seq > until {
			return nil
		}
		e, err := events.Decode(m.Subject(), m.Headers(), m.Data())
		if err == nil && e.Realm == s.realm {
			e.Seq, e.Stored = seq, at.Timestamp
			if len(s.filters) == 0 && *before > 0 && !s.within && e.Record != events.RecordStateEnd {
				e.Missing = seq - *before - 1
			}
			s.within = e.Record == events.RecordStateBegin || e.Record == events.RecordState
			if err := each(e); err != nil {
				return err
			}
		}
		*before, *from = seq, place{seq: seq + 1}
		if until > 0 && (seq >= until || at.NumPending == 0) {
			return nil
		}
	}
}
