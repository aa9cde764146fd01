package poller

import (
	"context"
	"reflect"
	"testing"
	"time"

	"zulip-nats/zulipsim"
)

// TestCounters: which fault raises which counter. Behind each an answer with one event
// comes.
func TestCounters(t *testing.T) {
	one := func(kind string) map[string]uint64 { return map[string]uint64{kind: 1} }
	for _, test := range []struct {
		name  string
		fault zulipsim.Fault
		want  Counters
	}{
		{"none", zulipsim.Fault{}, Counters{Polls: Polls{Events: 1}}},
		{"502", zulipsim.BadGateway(), Counters{Polls: Polls{Events: 1, Failed: 1}, Errors: one("server")}},
		{"a redirect", zulipsim.Fault{Redirect: "http://elsewhere.example.com"},
			Counters{Polls: Polls{Events: 1, Failed: 1}, Errors: one("server")}},
		{"a connection that is reset", zulipsim.Fault{Reset: true, Times: 2}, // net/http asks again once by itself
			Counters{Polls: Polls{Events: 1, Failed: 1}, Errors: one("connection")}},
		{"no answer", zulipsim.Fault{Hang: true},
			Counters{Polls: Polls{Events: 1, Failed: 1}, Errors: one("connection")}},
		{"a page of HTML", zulipsim.Fault{Status: 200, Body: "<html>"},
			Counters{Polls: Polls{Events: 1, Failed: 1}, Errors: one("connection")}},
		{"429", zulipsim.TooMany("5"), Counters{Polls: Polls{Events: 1, Limited: 1}, RateLimited: 1}},
		{"429 elsewhere", zulipsim.Fault{On: zulipsim.History, Status: 429},
			Counters{Polls: Polls{Events: 1}, RateLimited: 1}},
		{"401", zulipsim.Unauthorized(), Counters{Polls: Polls{Events: 1, Failed: 1}, Errors: one("key")}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, w *world) {
				w.register()
				if c := w.Counters(); !reflect.DeepEqual(c, Counters{}) || !w.Answered().IsZero() {
					t.Errorf("before the first poll: %+v, answered %v", c, w.Answered())
				}
				if f := test.fault; f.Status > 0 || f.Redirect != "" || f.Reset || f.Hang {
					f.Times = max(f.Times, 1)
					w.sim.Fault(f)
				}
				if test.fault.On == zulipsim.History {
					if _, err := w.Messages(t.Context(), HistoryQuery{Newest: true, Before: 1,
						Each: func(*Message) error { return nil }}); err != nil {
						t.Fatal(err)
					}
				}
				w.send(1)
				w.next()
				if got := w.Counters(); !reflect.DeepEqual(got, test.want) {
					t.Errorf("counted %+v, want %+v", got, test.want)
				}
				if at := w.Answered(); !at.Equal(time.Now()) {
					t.Errorf("answered %v ago", time.Since(at))
				}
				w.sim.ExpireQueue(w.at.Queue)
				if _, err := w.Next(t.Context(), w.at); err == nil {
					t.Fatal("a queue that is gone is answered")
				}
				if c := w.Counters(); c.Polls.Refused != 1 || c.Errors["refused"] != 1 {
					t.Errorf("behind a refusal: %+v", c)
				}
			})
		})
	}
}

// TestTroubleOfAnotherRequest: what was asked for in vain, and is asked for no more, is
// no trouble.
func TestTroubleOfAnotherRequest(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.register()
		w.sim.Fault(zulipsim.Fault{On: zulipsim.History, Status: 502, Body: "<html>"})
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, Status: 502, Body: "<html>", For: time.Minute})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := w.Messages(ctx, HistoryQuery{Newest: true, Before: 1,
			Each: func(*Message) error { return nil }}); err == nil {
			t.Fatal("history is read")
		}
		if s, set := w.Trouble(); set {
			t.Errorf("nothing is asked for, and the trouble is %q", s.Text)
		}
		w.send(1)
		go func() {
			time.Sleep(30 * time.Second)
			if s, set := w.Trouble(); !set || time.Since(s.Since) != 30*time.Second {
				t.Errorf("polls fail, and the trouble is %+v, %v", s, set)
			}
		}()
		w.next()
	})
}
