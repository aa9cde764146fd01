package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
	urfave "github.com/urfave/cli/v2"

	"zulip-nats/redact"
	"zulip-nats/service"
	"zulip-nats/subjects"
	"zulip-nats/tail"
)

// state is the command that asks the bridges on the bus for a new state.
func (a *app) state() *urfave.Command {
	c := defaults()
	var realms []string
	timeout := 2 * time.Second
	const category = "State"
	options := []*option{
		opt(category, "realm", "`NAMES` of which a new state is wanted, with commas between", "all", realmNames(&realms), many),
		opt(category, "timeout", "`TIME` for the connection, and again for the answers", "2s",
			duration(&timeout, 100*time.Millisecond, time.Minute)),
	}
	options = append(options, c.busOptions()...)
	return &urfave.Command{
		Name:      "state",
		Usage:     "ask the bridges on the bus to store the state of the organization anew",
		UsageText: "zulip-nats state [--nats-url URL] [--realm NAMES] [--timeout TIME] [options]",
		Description: "Bridges that run with --state store what there is in the organization, people and channels say, " +
			"with each new queue and once a day. This asks them, over NATS, for a new one now: it is whole when its last " +
			"record is on zulip.<realm>.bridge.state-end, within two minutes where Zulip answers, and comes with a new " +
			"queue. More often than once a minute there is none.\nExit codes: 0 each realm is asked; 1 one is not, or nobody " +
			"answers; 2 usage; 78 configuration.",
		Flags: flags(options),
		Action: func(u *urfave.Context) error {
			if err := errors.Join(parse(options), c.check()); err != nil {
				return err
			}
			return a.askState(u.Context, &c, timeout, realms)
		},
	}
}

func (a *app) askState(ctx context.Context, c *Config, timeout time.Duration, realms []string) error {
	c.NATS.URL = cmp.Or(c.NATS.URL, fmt.Sprintf("nats://127.0.0.1:%d", c.NATSPort)) // that of the embedded server
	conn, err := connect(ctx, c, zerolog.Nop())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := reached(ctx, conn, c, timeout); err != nil {
		return err
	}
	answers, err := service.AskState(ctx, conn, timeout, realms)
	switch {
	case ctx.Err() != nil:
		return errors.New("state: it was stopped before the end")
	case err != nil:
		return fmt.Errorf("state: %w", err)
	}
	missing := slices.Clone(realms)
	for _, answer := range answers {
		for _, name := range answer.Asked {
			realm, err := subjects.ParseRealm(name)
			if err != nil {
				continue // anybody may answer
			}
			missing = slices.DeleteFunc(missing, func(m string) bool { return m == name })
			if _, err := fmt.Fprintf(a.stdout, "%s: %s stores a new state; %s says when it is whole\n", name,
				tail.Clean(answer.Instance, 100), realm.Record(subjects.StateEnd)); err != nil {
				return err
			}
		}
	}
	switch {
	case len(answers) == 0:
		return fmt.Errorf("state: nobody who leads and stores a state answers on %s at %s: look whether `zulip-nats run` "+
			"runs there with --state, and whether `zulip-nats status` shows it", service.StateSubject,
			redact.URLs(c.NATS.URL))
	case len(missing) > 0:
		return fmt.Errorf("state: not asked: %s; no instance that answers leads there and runs with --state",
			strings.Join(missing, ", "))
	}
	return nil
}
