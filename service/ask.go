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
	// Trouble says why the Answer lacks realms, "" if it is whole.
	Trouble string
}

// Ask asks all instances on the bus, and gives those that answer within the time. It ends
// earlier if all of the instances that are known have answered; nil says that none is.
// None may be there: that is no error. The error says which right is missing, or that the
// connection is gone.
func Ask(ctx context.Context, conn *stream.Conn, within time.Duration, known []string) ([]Found, error) {
	var all []Found
	seen := map[string]bool{} // by instance
	err := collect(ctx, conn, Subject, nil, within, func(m *nats.Msg) (done bool) {
		f, ours := read(m)
		if !ours || seen[f.Instance] {
			return false
		}
		seen[f.Instance] = true
		all = append(all, f)
		return known != nil && !slices.ContainsFunc(known, func(name string) bool { return !seen[name] })
	})
	return all, err
}

// AskState asks for a new state of these realms, of all if there are none, and gives the
// answers of instances that lead one of them and store its state: each of those realms has
// a new one soon. Errors as of [Ask].
func AskState(ctx context.Context, conn *stream.Conn, within time.Duration, realms []string) ([]StateAnswer, error) {
	var all []StateAnswer
	asked := map[string]bool{}
	err := collect(ctx, conn, StateSubject, encoded(StateQuestion{Realms: realms}), within, func(m *nats.Msg) (done bool) {
		var a StateAnswer
		if json.Unmarshal(m.Data, &a) != nil || a.Instance == "" || len(a.Asked) == 0 {
			return false
		}
		all = append(all, a)
		for _, realm := range a.Asked {
			asked[realm] = true
		}
		return len(realms) > 0 && !slices.ContainsFunc(realms, func(realm string) bool { return !asked[realm] })
	})
	return all, err
}

// collect asks all instances on the bus, and gives each their answers, until that says
// that it was the last, or for that long. That nobody is there is no error.
func collect(ctx context.Context, conn *stream.Conn, subject string, question []byte, within time.Duration,
	each func(*nats.Msg) (done bool)) error {
	inbox := conn.NewInbox()
	refused, stop := conn.Refused(func(action, to string) bool {
		return action == "publish" && to == subject || to == inbox
	})
	defer stop()
	answers := make(chan *nats.Msg, 1000)
	sub, err := conn.ChanSubscribe(inbox, answers)
	if err != nil {
		return fmt.Errorf("the bridges cannot be asked: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // fails where the connection does
	if err := conn.PublishRequest(subject, inbox, question); err != nil {
		return fmt.Errorf("the bridges cannot be asked: %w", err)
	}
	end := time.NewTimer(within)
	defer end.Stop()
	for first := true; ; first = false {
		select {
		case m := <-answers:
			// Nobody has subscribed to it; behind a true answer somebody makes that up.
			if first && len(m.Data) == 0 && m.Header.Get("Status") == "503" {
				return nil
			}
			if each(m) {
				return nil
			}
		case at := <-refused:
			if at == inbox {
				return errors.New("this NATS user may not hear answers: give it the right to subscribe to its inbox " +
					"(_INBOX.>, or that of --nats-inbox-prefix)")
			}
			return fmt.Errorf("this NATS user may not ask: give it the right to publish to %s", subject)
		case <-end.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
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
