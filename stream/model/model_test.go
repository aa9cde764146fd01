package model_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"zulip-nats/stream"
	"zulip-nats/stream/model"
)

// What the model does on bad days, which no real server does on demand.

func TestDeposedLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stale := true
		m := &model.Stream{Filter: filter, Faults: func(string) model.Fault { return model.Fault{Stale: stale} }}
		c := m.Client(t.Context())
		m.Publish("zulip.acme.message", []byte("old"))
		m.Depose()
		m.Publish("zulip.acme.message", []byte("new"))
		see := func(what string, want uint64) {
			t.Helper()
			cur, _, err := c.Last(t.Context())
			on, _ := c.LastOn(t.Context(), "zulip.acme.message")
			next, _ := c.Next(t.Context(), filter, 2)
			at, _ := c.At(t.Context(), 2)
			info, _ := c.Info(t.Context())
			scanned := 0
			_ = c.Scan(t.Context(), filter, stream.Start{Seq: 1}, 2, true,
				func(*stream.Stored) error { scanned++; return nil })
			if err != nil || cur.Seq != want || on.Seq != want || (next != nil) != (want == 2) ||
				(at != nil) != (want == 2) || info.LastSeq != want ||
				scanned != int(want) {
				t.Errorf("%s: Last %d, LastOn %d, Next %v, At %v, Info %+v, %d scanned; want the newest to be %d", what,
					cur.Seq, on.Seq, next, at, info, scanned, want)
			}
		}
		see("deposed", 1)
		stale = false
		see("the new leader", 2)
		stale = true
		time.Sleep(10 * time.Second)
		see("ten seconds later it has stepped down", 2)
		if n := m.Requests("last"); n != 3 {
			t.Errorf("%d requests for the last message were counted, want 3", n)
		}
	})
}

func TestEachWayToFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fault model.Fault
		m := &model.Stream{Filter: filter, MaxObject: 100, Faults: func(string) model.Fault { return fault }}
		c := m.Client(t.Context())
		calls := map[string]func() error{
			"last":       func() error { _, _, err := c.Last(t.Context()); return err },
			"at":         func() error { _, err := c.At(t.Context(), 1); return err },
			"last on":    func() error { _, err := c.LastOn(t.Context(), filter); return err },
			"next":       func() error { _, err := c.Next(t.Context(), filter, 1); return err },
			"info":       func() error { _, err := c.Info(t.Context()); return err },
			"scan":       func() error { return c.Scan(t.Context(), filter, stream.Start{}, 9, true, nil) },
			"append":     func() error { _, err := c.Append(t.Context(), stream.Cursor{}, some(0, 2)); return err },
			"put object": func() error { return c.PutObject(t.Context(), "x", nil) },
			"ask":        func() error { return c.Ask(t.Context()) },
		}
		for op, call := range calls {
			for k := stream.Unclear; k <= stream.Wrong; k++ {
				fault = model.Fault{Fail: k}
				if e, ok := errors.AsType[*stream.Error](call()); !ok || e.Kind != k {
					t.Errorf("%s: %v, want the kind %v", op, e, k)
				}
			}
			fault = model.Fault{Config: true}
			if _, ok := errors.AsType[*stream.ConfigError](call()); !ok {
				t.Errorf("%s: no ConfigError", op)
			}
			began := time.Now()
			fault = model.Fault{Deaf: true}
			if e, ok := errors.AsType[*stream.Error](call()); !ok || e.Kind != stream.Unclear ||
				time.Since(began) != model.Patience {
				t.Errorf("%s, without an answer: %v after %v", op, e, time.Since(began))
			}
			m.Purge()
		}
		fault = model.Fault{}
		if e, ok := errors.AsType[*stream.Error](c.PutObject(t.Context(), "x", make([]byte, 101))); !ok ||
			e.Kind != stream.TooLarge {
			t.Errorf("an object larger than the store takes: %v", e)
		}
	})
}

func TestWriteStoredInPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &model.Stream{Filter: filter, Faults: func(string) model.Fault { return model.Fault{Keep: 2} }}
		_, err := m.Client(t.Context()).Append(t.Context(), stream.Cursor{}, some(0, 3))
		if e, ok := errors.AsType[*stream.Error](err); !ok || e.Kind != stream.Unclear || len(m.Messages()) != 2 {
			t.Errorf("error %v, %d messages are stored; want Unclear, and two", err, len(m.Messages()))
		}
	})
}

// TestLimitsByItsOwnClock: a server whose clock is put forward forgets what was too old
// by that clock.
func TestLimitsByItsOwnClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &model.Stream{Filter: filter, Settings: model.Settings{MaxAge: time.Hour},
			Ours: func(m *stream.Stored) bool { return m.Header["Zulip-Event-Id"] != nil }}
		c := m.Client(t.Context())
		if _, err := c.Append(t.Context(), stream.Cursor{}, some(0, 2)); err != nil {
			t.Fatal(err)
		}
		m.SetClock(func() time.Time { return time.Now().Add(2 * time.Hour) })
		m.Publish("zulip.acme.message", []byte("foreign"))
		if got := m.Messages(); len(got) != 1 || got[0].Seq != 3 || len(m.TailsTaken()) != 1 || len(m.Aged()) != 2 {
			t.Errorf("held %+v, %d tails taken, %d aged; want the foreign message, 1, and 2", got, len(m.TailsTaken()),
				len(m.Aged()))
		}
		if got := m.Fates(); got[0] != model.Taken || got[2] != model.Held {
			t.Errorf("fates %v", got)
		}
	})
}

func TestEditsAreTold(t *testing.T) {
	m := &model.Stream{Filter: filter, NoFilter: true}
	c := m.Client(t.Context())
	before := c.Edited()
	m.Up()
	if c.Edited() != before || c.Epoch() != 0 {
		t.Error("nothing was down, and there was a reconnect")
	}
	m.Edit(func(s *model.Settings) { s.Shared = true })
	if c.Edited() == before {
		t.Error("an edit was not told")
	}
	if _, ok := errors.AsType[*stream.ConfigError](c.Open(t.Context())); !ok {
		t.Error("a stream that others use too, on a server without the filter, can be opened")
	}
	m.Silent = true
	before = c.Edited()
	m.Edit(func(s *model.Settings) { s.Shared = false })
	if c.Edited() != before {
		t.Error("an edit was told, though the stream is silent")
	}
	m.Down()
	m.Up()
	if c.Edited() == before || c.Epoch() != 1 {
		t.Error("a reconnect was not told")
	}
}
