package cli

import (
	"context"
	"fmt"
	"time"
)

// tell is the story: people talk, something is done, a line says what, and when all that
// Zulip sent by then has arrived another one says what it cost. It ends early when ctx
// does.
func (s *show) tell(ctx context.Context) error {
	// A queue is what all of it is about.
	if !waitFor(ctx, func() bool { all, _, _ := s.got.count(); return all > 0 }) {
		return context.Cause(ctx)
	}
	for _, done := range []func(context.Context) error{s.killBridge, s.stopServer, s.crashZulip, s.fight} {
		if !s.pause(ctx) {
			return context.Cause(ctx)
		}
		if err := done(ctx); err != nil {
			return err
		}
	}
	s.pause(ctx)
	return errEnough
}

// pause lasts a beat; it is false if ctx ends before.
func (s *show) pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(s.beat):
		return true
	}
}

// away lets people talk for a beat, and on until there is something that waits. It gives
// what was sent by then, and how much of it did not arrive; false if ctx ends before.
func (s *show) away(ctx context.Context) (sent ledger, waits int, ok bool) {
	if !s.pause(ctx) {
		return sent, 0, false
	}
	s.comes(ctx, func() bool {
		sent = ledgerOf(s.zulip)
		waits = s.got.compare(sent).lost
		return waits > 0
	})
	return sent, waits, ctx.Err() == nil
}

func (s *show) killBridge(ctx context.Context) error {
	began := time.Now()
	s.bridge.kill()
	if err := s.says(false, "the bridge is killed: kill -9 %d", s.bridge.pid()); err != nil {
		return err
	}
	sent, waited, ok := s.away(ctx)
	if !ok {
		return nil
	}
	var err error
	if s.bridge, err = s.startBridge(); err != nil {
		return err
	}
	return s.arrives(ctx, sent, func() string { return caughtUp(began, waited) })
}

func (s *show) stopServer(ctx context.Context) error {
	began := time.Now()
	s.stopNATS()
	if err := s.says(false, "NATS is stopped"); err != nil {
		return err
	}
	sent, waited, ok := s.away(ctx)
	if !ok {
		return nil
	}
	if err := s.startNATS(); err != nil {
		return err
	}
	return s.arrives(ctx, sent, func() string { return caughtUp(began, waited) })
}

// caughtUp is what it costs to be away while Zulip keeps the queue.
func caughtUp(began time.Time, waited int) string {
	return fmt.Sprintf("caught up after %s: %s waited at Zulip;", seconds(began), plural(waited, "event", "events"))
}

func (s *show) crashZulip(ctx context.Context) error {
	began := time.Now()
	_, readBefore, closed := s.got.count()
	queues := s.zulip.Queues()
	s.zulip.Down()
	s.zulip.Crash()
	if err := s.says(false, "Zulip crashes, and has forgotten the queue %.8s", queues[len(queues)-1].ID); err != nil {
		return err
	}
	sent, _, ok := s.away(ctx)
	if !ok {
		return nil
	}
	s.zulip.Up()
	// What was said meanwhile is in no queue, so it is lost until it is read back.
	if !s.comes(ctx, func() bool { _, _, now := s.got.count(); return now > closed }) {
		return nil
	}
	return s.arrives(ctx, sent, func() string {
		_, readBack, _ := s.got.count()
		return fmt.Sprintf("caught up after %s: %s read back; messages", seconds(began),
			plural(readBack-readBefore, "message", "messages"))
	})
}

func (s *show) fight(ctx context.Context) error {
	before, _, _ := s.got.count()
	began := time.Now()
	first := s.bridge
	second, err := s.startBridge()
	if err != nil {
		return err
	}
	s.bridge = second
	defer first.kill() // if it is not stopped by then
	err = s.says(false, "a second bridge runs by mistake: %d and %d on one queue", first.pid(), second.pid())
	if err != nil {
		return err
	}
	s.comes(ctx, func() bool { return s.got.wrote(second) })
	if !s.pause(ctx) {
		return nil
	}
	// One that is always a little slower stores nothing while the other lives.
	if err := first.stop(); err != nil {
		return err
	}
	s.comes(ctx, func() bool { return s.got.storedBy(second, before) > 0 })
	return s.arrives(ctx, ledgerOf(s.zulip), func() string {
		return fmt.Sprintf("after %s one is left: they stored %s and %d;", seconds(began),
			plural(s.got.storedBy(first, before), "event", "events"), s.got.storedBy(second, before))
	})
}

// seconds is how long ago it was.
func seconds(began time.Time) string { return fmt.Sprintf("%.1f s", time.Since(began).Seconds()) }

// comes waits for what has to come about, and not for ever; it says whether it did.
func (s *show) comes(ctx context.Context, ready func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	return waitFor(ctx, ready)
}

// arrives waits until the subscriber has what Zulip sent, and says what it cost. What did
// not come is lost; what is counted is what is there.
func (s *show) arrives(ctx context.Context, sent ledger, cost func() string) error {
	s.comes(ctx, func() bool { return s.got.compare(sent).lost == 0 })
	if ctx.Err() != nil {
		return nil // the count at the end will tell
	}
	c := s.got.compare(sent)
	return s.says(c.good(), "%s lost %d, twice %d", cost(), c.lost, c.twice)
}

// says prints a line between those of the events.
func (s *show) says(good bool, format string, v ...any) error {
	return s.pretty.Across(good, fmt.Sprintf(format, v...))
}

func plural(n int, one, several string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, several)
}
