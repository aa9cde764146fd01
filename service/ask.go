package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"zulip-nats/stream"
)

// Found is an instance that has answered.
type Found struct {
	Answer
	// Trouble says why the Answer has no realms, "" if it is whole.
	Trouble string
}

// Ask asks all instances on the bus, and gives those that answer within the time. It ends
// earlier if all of the instances that are known have answered; nil says that none is.
// None may be there: that is no error. The error says which right is missing, or that the
// connection is gone.
func Ask(ctx context.Context, conn *stream.Conn, within time.Duration, known []string) ([]Found, error) {
	inbox := conn.NewInbox()
	refused, stop := conn.Refused(func(action, subject string) bool {
		return action == "publish" && subject == Subject || subject == inbox
	})
	defer stop()
	answers := make(chan *nats.Msg, 1000)
	sub, err := conn.ChanSubscribe(inbox, answers)
	if err != nil {
		return nil, fmt.Errorf("the bridges cannot be asked: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // fails where the connection does
	if err := conn.PublishRequest(Subject, inbox, nil); err != nil {
		return nil, fmt.Errorf("the bridges cannot be asked: %w", err)
	}
	var all []Found
	seen := map[string]bool{} // by instance
	end := time.NewTimer(within)
	defer end.Stop()
	for {
		select {
		case m := <-answers:
			// Nobody has subscribed to it; behind a true answer somebody makes that up.
			if len(all) == 0 && len(m.Data) == 0 && m.Header.Get("Status") == "503" {
				return nil, nil
			}
			f, ours := read(m)
			if !ours || seen[f.Instance] {
				continue
			}
			seen[f.Instance] = true
			all = append(all, f)
			if known != nil && !slices.ContainsFunc(known, func(name string) bool { return !seen[name] }) {
				return all, nil
			}
		case subject := <-refused:
			if subject == inbox {
				return nil, errors.New("this NATS user may not hear answers: give it the right to subscribe to its inbox " +
					"(_INBOX.>, or that of --nats-inbox-prefix)")
			}
			return nil, fmt.Errorf("this NATS user may not ask: give it the right to publish to %s", Subject)
		case <-end.C:
			return all, nil
		case <-ctx.Done():
			return all, context.Cause(ctx)
		}
	}
}

// read reads an answer. Others may answer there too: what is none of ours is passed over.
func read(m *nats.Msg) (f Found, ours bool) {
	if json.Unmarshal(m.Data, &f.Answer) != nil || f.Instance == "" {
		return f, false
	}
	f.Trouble = m.Header.Get(micro.ErrorHeader)
	return f, f.Trouble != "" || f.Realms != nil
}
