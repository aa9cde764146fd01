package events

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// resolveTime is how long an object is waited for. One whose chunks the store's age limit
// took, and not yet what is said of it, never comes, and no answer says so. The largest
// events, tens of megabytes, take a few seconds on a slow line. A variable for tests.
var resolveTime = 30 * time.Second

// Resolve fetches the bytes of an event that was too large for a message from the object
// store of its realm into Raw, and compares them with the size and the digest in its
// headers. It does nothing for all others. An object that is gone (the store's age limit
// took it) is jetstream.ErrObjectNotFound; one that does not come whole within 30 s is an
// error too.
func Resolve(ctx context.Context, js jetstream.JetStream, e *Event) error {
	if e.Stub == nil || len(e.Raw) > 0 {
		return nil
	}
	fail := func(err error) error {
		return fmt.Errorf("the bytes of a large event of stream sequence %d, object %.200q of the object store "+
			"zulip_%s: %w", e.Seq, e.Stub.Object, e.Realm, err)
	}
	data, err := object(ctx, js, "zulip_"+e.Realm, e.Stub.Object)
	if err != nil {
		return fail(err)
	}
	if e.Stub.Size >= 0 && int64(len(data)) != e.Stub.Size {
		return fail(fmt.Errorf("it has %d bytes, and the stub says %d", len(data), e.Stub.Size))
	}
	sum := sha256.Sum256(data)
	if want := e.Stub.Digest; want != "" && want != "SHA-256="+hex.EncodeToString(sum[:]) {
		return fail(errors.New("it is not the event that the stub tells of: their digests differ"))
	}
	e.Raw = data
	return nil
}

// object is an object's bytes, if they come within resolveTime and before ctx ends.
func object(ctx context.Context, js jetstream.JetStream, bucket, name string) ([]byte, error) {
	store, err := js.ObjectStore(ctx, bucket)
	if err != nil {
		return nil, err
	}
	type answer struct {
		data []byte
		err  error
	}
	come := make(chan answer, 1)
	go func() { // GetBytes looks at the deadline, and not at another end of its context
		limited, cancel := context.WithTimeout(ctx, resolveTime)
		defer cancel()
		data, err := store.GetBytes(limited, name)
		if errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("it did not come whole within %v: parts of it may be gone, or NATS does not answer: %w",
				resolveTime, err)
		}
		come <- answer{data, err}
	}()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case a := <-come:
		return a.data, a.err
	}
}

// Reader goes through the messages of a realm's stream, one after the other, for one
// service. The consumer is one of two:
//
//   - An ordered one that begins behind Done, where the service keeps Done itself, best in the transaction in which it
//     keeps what it did. Nothing is done twice then, and nothing is acknowledged.
//   - A durable one with explicit acknowledgements and MaxAckPending 1. Without the 1, a message that a broken
//     connection lost on its way comes again behind later ones, and "the highest sequence done" would hide it; so
//     others are refused.
//
// Either may have filters. Those for messages are zulip.<realm>.message and
// zulip.<realm>.message.>, which together are right in both layouts of subjects; by place
// zulip.<realm>.*.channel.7 is all that is in one channel. With
// zulip.<realm>.bridge.gap it hears of gaps. A stream by place of many channels has many
// subjects, and a past of such is read many times faster with one filter, or with none,
// than with several.
type Reader struct {
	Consumer jetstream.Consumer
	// JetStream is for the object store. nil: stubs come as they are.
	JetStream jetstream.JetStream
	// Done is the highest sequence of the stream that was done: what is not greater is
	// passed over. Set it to what the service has kept; it moves with each turn of the
	// loop.
	Done uint64
}

// All gives the messages in the order of the stream, Zulip's events and the bridge's
// records, for as long as ctx lives; what others published is passed over.
//
// A turn of the loop that ends (or continues) has done its event: Done moves, and a
// durable consumer gets its acknowledgement. A turn that breaks or returns has not.
//
// Of gaps it tells in two ways. What the bridge lost at Zulip is a record in the stream,
// an event with Record [RecordGapOpened] and later [RecordGapClosed]: a consumer with a
// filter needs zulip.<realm>.bridge.gap in it. What the stream's own limits took before it
// was read here, or was erased, is counted in [Event.Missing]; a consumer with a filter
// cannot know that, since to it all that it leaves out is missing.
//
// An error that comes with an event is about that one only (a large event whose bytes are
// gone, or do not come within 30 s): the loop may go on. One without an event is the last.
func (r *Reader) All(ctx context.Context) iter.Seq2[*Event, error] {
	return func(yield func(*Event, error) bool) {
		config := jetstream.ConsumerConfig{}
		if info := r.Consumer.CachedInfo(); info != nil {
			config = info.Config
		}
		acks := config.AckPolicy != jetstream.AckNonePolicy
		if acks && config.MaxAckPending != 1 {
			yield(nil, fmt.Errorf("the consumer %s may have %d messages under way: make it with MaxAckPending 1, so "+
				"that they come in order also after a connection broke, or take an ordered consumer", config.Name,
				config.MaxAckPending))
			return
		}
		whole := config.FilterSubject == "" && len(config.FilterSubjects) == 0
		messages, err := r.Consumer.Messages()
		if err != nil {
			yield(nil, err)
			return
		}
		defer messages.Stop()
		// An ordered consumer that is being made anew listens to nothing else.
		defer context.AfterFunc(ctx, messages.Stop)()
		before := r.Done // the sequence of the message before; 0: none is known
		within := false  // the message before begins a state, or is a piece of one
		for {
			m, err := messages.Next(jetstream.NextContext(ctx))
			switch {
			case ctx.Err() != nil:
				return
			case errors.Is(err, jetstream.ErrNoHeartbeat): // the connection is down, and comes back
				continue
			case err != nil:
				yield(nil, err)
				return
			}
			place, err := m.Metadata()
			if err != nil {
				yield(nil, err)
				return
			}
			seq := place.Sequence.Stream
			if seq > r.Done {
				e, err := Decode(m.Subject(), m.Headers(), m.Data())
				if !errors.Is(err, ErrForeign) {
					if e == nil {
						e = &Event{ID: -1, Prev: -1, Subject: m.Subject(), Header: m.Headers(), Raw: m.Data()}
					}
					e.Seq, e.Stored = seq, place.Timestamp
					// Pieces of an older state are purged once there is a newer one.
					if whole && before > 0 && !within && e.Record != RecordStateEnd {
						e.Missing = seq - before - 1
					}
					within = e.Record == RecordStateBegin || e.Record == RecordState
					if err == nil && r.JetStream != nil {
						err = Resolve(ctx, r.JetStream, e)
					}
					if ctx.Err() != nil || !yield(e, err) {
						return
					}
				}
				r.Done, before = seq, seq
			}
			if acks {
				_ = m.Ack() // lost, it comes again, and is passed over
			}
		}
	}
}
