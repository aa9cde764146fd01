package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// nowhere is no stream of anybody's: a message that expects to be stored in it is
	// refused by every stream (nats-server, errors.json 10060), and so is a request to
	// JetStream's API that names it in its body and another one in its subject (10056).
	nowhere = "zulip-nats-check-stores-nothing"

	probeTimeout = 5 * time.Second
)

// Probe asks whether this user may publish on a subject, by doing so with a message that
// every stream refuses, and every request of JetStream's API that makes something: nothing
// is stored or made. Whoever subscribes to the subject without JetStream sees it, empty
// but for a name. what begins the error, which is an [*Error]: Forbidden if the user may
// not, anything else if that did not come out.
func (c *Conn) Probe(ctx context.Context, what, subject string) error {
	_, err := c.Ask(ctx, what, &nats.Msg{
		Subject: subject,
		Header:  nats.Header{"Nats-Expected-Stream": {nowhere}},
		Data:    fmt.Appendf(nil, `{"name":%[1]q,"stream_name":%[1]q}`, nowhere),
	}, probeTimeout)
	e, ok := errors.AsType[*Error](err)
	switch {
	case errors.Is(err, nats.ErrNoResponders): // it arrived, and nobody wanted it
		return nil
	case ok && e.Code != 0 && e.Kind != Unavailable: // it arrived, and JetStream refuses it
		return nil
	}
	return err
}
