package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

const (
	// watchPull is how many messages one pull of a watch asks for, and watchFor how long
	// the server keeps it: so much does a watch of a stream cost in which nothing happens.
	watchPull = 500
	watchFor  = time.Minute
)

// Watched is what a watch gives: a message, or the reason why there are no more.
type Watched struct {
	*Stored
	Err error
}

// Watch gives the newest message on each subject of a stream under a filter, and then each
// one that is stored, in the stream's order. The channel is closed when ctx ends, or behind the error
// that ended it: the connection dropped, the consumer is gone, a message was lost on the
// way, a permission is missing. Nothing is mended here: whoever needs it watches anew, and
// so begins with a whole view. api begins the subjects of JetStream's API (see [API]), what
// the errors.
//
// It is a consumer that is pulled from, and not the one of nats.go's KeyValue: that one is
// pushed to, and what is pushed does not come through the import of another account. It is
// left to itself in the end, and the server drops it half a minute later.
func (c *Conn) Watch(ctx context.Context, what, api, name, filter string) (<-chan Watched, error) {
	l, nc, consumer := c.link, c.Conn, nuid.Next()
	broken := l.broken()
	pull := api + "CONSUMER.MSG.NEXT." + name + "." + consumer
	waiter := l.wait(func(v violation) bool { return v.subject == pull || l.unheard(v) })
	inbox := nc.NewInbox()
	// Answers to a pull that has ended may still be on their way when the next one begins.
	messages := make(chan *nats.Msg, 3*watchPull)
	sub, err := nc.ChanSubscribe(inbox, messages)
	if err != nil {
		l.forget(waiter)
		return nil, newConnError(what, err, false)
	}
	end := func() {
		_ = sub.Unsubscribe()
		l.forget(waiter)
	}
	create := map[string]any{"stream_name": name, "config": jetstream.ConsumerConfig{
		Name: consumer, DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy, FilterSubject: filter,
		AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1, InactiveThreshold: consumerLife,
	}}
	if err := l.ask(ctx, what, api+"CONSUMER.CREATE."+name+"."+consumer, create, apiTimeout, &apiReply{}); err != nil {
		end()
		return nil, err
	}
	out := make(chan Watched)
	go func() {
		defer close(out)
		defer end()
		give := func(w Watched) bool {
			select {
			case out <- w:
				return true
			case <-ctx.Done():
				return false
			}
		}
		for seen, asked := uint64(0), 0; ; {
			if asked == 0 {
				asked = watchPull
				if err := nc.PublishRequest(pull, inbox,
					fmt.Appendf(nil, `{"batch":%d,"expires":%d}`, asked, watchFor.Nanoseconds())); err != nil {
					give(Watched{Err: newConnError(what, err, false)})
					return
				}
			}
			var msg *nats.Msg
			var err error
			timer := time.NewTimer(watchFor + l.patience(apiTimeout))
			select {
			case msg = <-messages:
			case <-broken:
				err = newConnError(what, nats.ErrDisconnected, false)
			case v := <-waiter.refused:
				err = l.forbidden(what, v)
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
				err = newConnError(what, nats.ErrTimeout, false)
			}
			timer.Stop()
			if err != nil {
				give(Watched{Err: err})
				return
			}
			switch status := msg.Header.Get("Status"); {
			case status == "408" && len(msg.Data) == 0:
				asked = 0 // the pull has ended
				continue
			case status == "100" && len(msg.Data) == 0:
				continue
			case status != "" && len(msg.Data) == 0:
				give(Watched{Err: errorf(Unavailable, "%s: the consumer ended: %s %s", what, status,
					msg.Header.Get("Description"))})
				return
			}
			meta, err := msg.Metadata()
			if err != nil {
				give(Watched{Err: errorf(Wrong, "%s: a message that is of no consumer: %w", what, err)})
				return
			}
			if meta.Sequence.Consumer != seen+1 {
				give(Watched{Err: errorf(Unavailable, "%s: messages were lost on the way from the server", what)})
				return
			}
			seen++
			asked--
			if !give(Watched{Stored: &Stored{Seq: meta.Sequence.Stream, Subject: msg.Subject, Header: msg.Header,
				Data: msg.Data, Time: meta.Timestamp}}) {
				return
			}
		}
	}()
	return out, nil
}
