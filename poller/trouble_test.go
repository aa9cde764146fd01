package poller

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"zulip-nats/zulipsim"
)

// TestTroubles: what a later request heals is survived, slowly and in few words, and
// nothing is lost or acknowledged early.
func TestTroubles(t *testing.T) {
	tests := []struct {
		name  string
		fault zulipsim.Fault
		says  []string
	}{
		{"502", zulipsim.Fault{Status: 502, Body: "<html>"},
			[]string{"502 (HTML) to GET /api/v1/events", "the queue is kept"}},
		{"500", zulipsim.ServerError(), []string{"500 (JSON) to GET /api/v1/events: \\\"Internal server error\\\""}},
		{"404", zulipsim.Fault{Status: 404, Body: "<html>"}, []string{"404 (HTML)", "http://zulip.test"}},
		{"400 of a proxy", zulipsim.Fault{Status: 400, Body: "<html>"}, []string{"400 (HTML)"}},
		{"200 with HTML", zulipsim.Fault{Status: 200, Body: "<html>log in to the hotel"},
			[]string{"200 (HTML) to GET /api/v1/events"}},
		{"200 and empty", zulipsim.Fault{Empty: true}, []string{"cannot be read: it is empty"}},
		{"200 with an error", zulipsim.Fault{Status: 200, Body: `{"result":"error","msg":"odd"}`},
			[]string{`\"error\"`, `\"odd\"`}},
		{"redirect", zulipsim.Fault{Redirect: "http://elsewhere.example.com/api/v1/events?queue_id=x"},
			[]string{"redirect", `\"http://elsewhere.example.com\"`}},
		{"reset", zulipsim.Fault{Reset: true}, []string{"cannot be reached at http://zulip.test: "}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(s *zulipsim.Server) { s.RoundTrip = 10 * time.Millisecond }, func(t *testing.T, w *world) {
				w.register()
				w.send(2)
				w.next()
				f := test.fault
				f.For = 10 * time.Minute
				w.sim.Fault(f)
				before, start := w.tap.count(), time.Now()
				go func() {
					time.Sleep(5 * time.Minute)
					if s, set := w.Trouble(); !set || s.Text == "" || s.Since.Sub(start) > time.Second {
						t.Errorf("after five minutes the trouble is %+v, %v", s, set)
					}
				}()
				w.send(3)
				if got := w.next(); len(got) != 3 {
					t.Errorf("%d events", len(got))
				}
				if took := time.Since(start); took > f.For+30*time.Second {
					t.Errorf("back after %v", took)
				}
				seen := w.tap.since(before)
				w.slow(seen)
				if n := len(seen); n > 70 { // 49 on average, give or take 4
					t.Errorf("%d requests in ten minutes", n)
				}
				if what, set := w.Trouble(); set {
					t.Errorf("there is still trouble: %s", what.Text)
				}
				// The first poll that fails may block; those behind it must not.
				for i, a := range seen {
					if dont := a.req.URL.Query().Get("dont_block") == "true"; dont != (i > 0) {
						t.Errorf("poll %d: dont_block %v", i, dont)
					}
					if a.req.URL.Host != "zulip.test" {
						t.Errorf("asked %s", a.req.URL)
					}
				}
				w.says(1, test.says...)
				w.says(1, `"event":"zulip_away"`, `"since":"`, `"next_try_in":"`, `"queue_lives_for":"`)
				w.says(1, `"event":"zulip_back"`, `"after":"`, `"tries":`)
				w.says(1, "Zulip answers again after")
				if lines := w.log.lines(); len(lines) != 2 {
					t.Errorf("%d lines:\n%s", len(lines), strings.Join(lines, "\n"))
				}
			})
		})
	}
}

// TestSpoiledBodies: what is whole in an answer is kept, the rest is asked for again from
// there.
func TestSpoiledBodies(t *testing.T) {
	for name, fault := range map[string]zulipsim.Fault{
		"half a body": {HalfBody: true}, "longer than it is": {LengthOff: 500}, "shorter than it is": {LengthOff: -500},
		"gzip cut short": {GzipCut: true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, w *world) {
				w.register()
				for range 3 {
					w.send(200)
					fault.On, fault.Times = zulipsim.Events, 1
					w.sim.Fault(fault)
					before, got, batches := w.tap.count(), 0, 0
					for got < 200 {
						got += len(w.next())
						batches++
					}
					if got != 200 || batches < 2 && !strings.HasPrefix(name, "longer") {
						t.Errorf("%d events in %d batches", got, batches)
					}
					if w.tap.count()-before > 3 {
						t.Errorf("%d polls", w.tap.count()-before)
					}
				}
				w.says(0, "panic")
			})
		})
	}
}

// TestCutAnswer: the whole events of an answer that was cut in the middle are kept, so
// only what is behind them comes again.
func TestCutAnswer(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.register()
		w.send(20)
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 1, HalfBody: true})
		before := w.tap.count()
		if got := w.next(); len(got) < 5 || len(got) > 15 || w.tap.count() != before+1 {
			t.Errorf("%d events after %d polls", len(got), w.tap.count()-before)
		}
		last := fmt.Sprint(w.at.Last)
		for w.at.Last < 19 {
			w.next()
		}
		if seen := w.tap.since(before); len(seen) != 2 || seen[1].req.URL.Query().Get("last_event_id") != last {
			t.Errorf("%d polls", len(seen))
		}
	})
}

// TestHang: a poll that is never answered is given up when the server's own time is over,
// and not before.
func TestHang(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.register()
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 1, Hang: true})
		start := time.Now()
		go func() {
			time.Sleep(time.Second)
			w.send(1)
		}()
		w.next()
		if took := time.Since(start); took < 90*time.Second || took > 91*time.Second {
			t.Errorf("given up after %v", took)
		}
		w.says(1, "did not answer GET /api/v1/events for 1m30s", "the queue is kept")
		// Another server, other times.
		w.Follow(Queue{ID: w.at.Queue, Life: time.Hour, Patience: 4 * time.Second})
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 1, Hang: true})
		start = time.Now()
		w.send(1)
		w.next()
		if took := time.Since(start); took < 4*time.Second || took > 5*time.Second {
			t.Errorf("given up after %v", took)
		}
	})
}

// TestTrickle: an answer may come as slowly as it likes, as long as it comes; whole
// events do not wait for the others.
func TestTrickle(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.register()
		w.Follow(Queue{ID: w.at.Queue, Life: time.Hour, Patience: 10 * time.Second})
		w.send(20)
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 1, Trickle: 50, TricklePause: 500 * time.Millisecond})
		before, start, got, last := w.tap.count(), time.Now(), 0, time.Now()
		for got < 20 {
			n := len(w.next())
			got += n
			// An event is some 500 bytes, so it takes 5 s.
			if took := time.Since(last); n != 1 || took > 7*time.Second {
				t.Errorf("%d events after %v", n, took)
			}
			last = time.Now()
		}
		if w.tap.count() != before+1 || time.Since(start) < 80*time.Second {
			t.Errorf("%d polls, %v", w.tap.count()-before, time.Since(start))
		}
		// A byte in nine seconds is no silence, one in eleven is.
		w.send(1)
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 1, Trickle: 5, TricklePause: 9 * time.Second})
		before = w.tap.count()
		if w.next(); w.tap.count() != before+1 {
			t.Errorf("%d polls", w.tap.count()-before)
		}
		w.send(1)
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 1, Trickle: 5, TricklePause: 11 * time.Second})
		before = w.tap.count()
		if w.next(); w.tap.count() != before+2 {
			t.Errorf("%d polls", w.tap.count()-before)
		}
		w.says(1, "fell silent in the middle of its answer to GET /api/v1/events")
		// Nor is silence between two batches anything else.
		w.send(3)
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, Times: 1, Trickle: 800, TricklePause: time.Hour})
		if n := len(w.next()); n != 1 {
			t.Fatalf("%d events", n)
		}
		before, start = w.tap.count(), time.Now()
		w.next()
		if took := time.Since(start); w.tap.count() != before+1 || took < 10*time.Second || took > 12*time.Second {
			t.Errorf("%d polls in %v", w.tap.count()-before, took)
		}
	})
}

func TestKeyRotated(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		path := filepath.Join(t.TempDir(), "zuliprc")
		put := func(key string) {
			text := fmt.Sprintf("[api]\nemail=%s\nkey=%s\nsite=http://zulip.test\n", w.bot.Email, key)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Error(err)
			}
		}
		put(w.bot.Key)
		w.Client.Account = func() (Account, error) { return LoadAccount(Source{File: path, Getenv: env()}) }
		w.register()
		w.send(1)
		w.next()

		key := w.bot.RegenerateKey()
		w.send(1)
		before, start := w.tap.count(), time.Now()
		time.AfterFunc(4*time.Minute, func() { os.Remove(path) })
		time.AfterFunc(5*time.Minute, func() { put("half a k") })
		time.AfterFunc(6*time.Minute, func() { put(key) })
		if got := w.next(); len(got) != 1 {
			t.Errorf("%d events", len(got))
		}
		if took := time.Since(start); took < 6*time.Minute || took > 6*time.Minute+30*time.Second {
			t.Errorf("healed after %v", took)
		}
		w.slow(w.tap.since(before))
		w.says(1, "does not let bridge-bot@example.com in", "Invalid API key", "read again", `"event":"key_refused"`)
		w.says(1, "there is no zuliprc", path, `"event":"key_refused"`)
		w.says(1, "Zulip answers again", `"event":"zulip_back"`)
		if w.tap.since(0)[0].req.URL.Query().Get("queue_id") != "" {
			t.Error("not a register first")
		}
	})
}

func TestKeyWrongAtStart(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.Client.Account = func() (Account, error) {
			return Account{Email: w.bot.Email, Key: strings.Repeat("x", 32), Site: "http://zulip.test"}, nil
		}
		_, err := w.Register(t.Context())
		auth, ok := errors.AsType[*AuthError](err)
		if !ok || auth.Status != 401 || auth.Code != "UNAUTHORIZED" || auth.Msg != "Invalid API key" ||
			strings.Contains(err.Error(), "xxxx") {
			t.Errorf("register: %v", err)
		}
		_, err = w.Next(t.Context(), Position{"q", 3})
		if _, ok := errors.AsType[*AuthError](err); !ok {
			t.Errorf("poll: %v", err)
		}
		w.Client.account.Store(nil)
		w.Client.Account = func() (Account, error) { return LoadAccount(Source{File: "/not/there", Getenv: env()}) }
		_, err = w.Register(t.Context())
		if _, ok := errors.AsType[*ConfigError](err); !ok {
			t.Errorf("no file: %v", err)
		}
	})
}

// TestSiteChanged: a zuliprc that names another server when it is read again is not
// followed.
func TestSiteChanged(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		var elsewhere atomic.Bool
		w.Client.Account = func() (Account, error) {
			a := Account{Email: w.bot.Email, Key: w.bot.Key, Site: "http://zulip.test"}
			if elsewhere.Load() {
				a.Site = "http://other.test"
			}
			return a, nil
		}
		w.register()
		remove := w.sim.Fault(zulipsim.Unauthorized())
		elsewhere.Store(true)
		time.AfterFunc(time.Minute, func() { remove(); elsewhere.Store(false) })
		w.send(1)
		w.next()
		for _, a := range w.tap.since(0) {
			if a.req.URL.Host != "zulip.test" {
				t.Errorf("asked %s", a.req.URL)
			}
		}
		w.says(1, "names another site now")
	})
}

// TestNothingMoves: events that cannot be acknowledged come again with each poll; we ask
// at the pace of an error, and go on with the next event.
func TestNothingMoves(t *testing.T) {
	for name, raw := range map[string]string{"no id": `{"type":"odd"}`, "no JSON": `{"type":"odd","id":0,"x":nope}`,
		"wrong bracket": `{"type":"odd","x":[}`} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(s *zulipsim.Server) { s.RoundTrip = 10 * time.Millisecond }, func(t *testing.T, w *world) {
				w.register()
				w.sim.EmitRaw(raw)
				time.AfterFunc(10*time.Minute, func() { w.send(1) })
				before, start := w.tap.count(), time.Now()
				for w.at.Last < 1 {
					b, err := w.Next(t.Context(), w.at)
					if err != nil {
						t.Fatal(err)
					}
					if e := b.Events[0]; string(e.Raw) != raw || e.Fault == "" || e.HasID {
						t.Fatalf("%+v %s", e, e.Raw)
					}
					if len(b.Events) > 1 {
						w.at.Last = b.Events[1].ID
					}
				}
				seen := w.tap.since(before)
				w.slow(seen)
				if took := time.Since(start); took > 10*time.Minute+30*time.Second || len(seen) > 80 {
					t.Errorf("%d polls in %v", len(seen), took)
				}
				if lines := w.log.lines(); len(lines) > 0 {
					t.Errorf("log %q", lines)
				}
			})
		})
	}
}

// TestEmptyAnswers: a server that answers polls at once with nothing is asked slowly,
// too.
func TestEmptyAnswers(t *testing.T) {
	for name, body := range map[string]string{
		"as if not to block": `{"result":"success","msg":"","events":[]}`,
		"as if waited":       `{"result":"success","msg":"","events":[],"queue_id":"q"}`,
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, w *world) {
				w.register()
				w.sim.Fault(zulipsim.Fault{On: zulipsim.Events, For: 5 * time.Minute, Status: 200, Body: body})
				w.send(1)
				before := w.tap.count()
				for w.at.Last < 0 {
					w.next()
				}
				seen := w.tap.since(before)
				w.slow(seen)
				if len(seen) > 60 {
					t.Errorf("%d polls", len(seen))
				}
			})
		})
	}
}

// TestRestart: a restart in good order keeps queue and ids, and is told in two lines.
func TestRestart(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.register()
		w.send(3)
		w.next()
		go func() {
			time.Sleep(20 * time.Second)
			w.sim.Down()
			w.send(2)
			time.Sleep(5 * time.Second)
			w.sim.Up()
		}()
		var types []string
		for w.at.Last < 5 {
			for _, e := range w.next() {
				types = append(types, e.Type)
			}
		}
		if !slices.Equal(types, []string{"restart", "message", "message"}) {
			t.Errorf("%v", types)
		}
		w.says(1, "502 (HTML) to GET /api/v1/events")
		w.says(1, "Zulip answers again")
	})
}

// TestFlapping: a server that fails every other time is not asked at full speed.
func TestFlapping(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		w.register()
		w.sim.Fault(zulipsim.Fault{On: zulipsim.Events,
			Match: func(r *http.Request) bool { return r.URL.Query().Get("dont_block") == "" },
			For:   10 * time.Minute, Status: 502, Body: "<html>"})
		time.AfterFunc(10*time.Minute, func() { w.send(1) })
		before := w.tap.count()
		w.next()
		seen := w.tap.since(before)
		w.slow(seen)
		if len(seen) > 130 {
			t.Errorf("%d polls", len(seen))
		}
	})
}

// What Zulip says of an account it does not let in is no reason to download a zuliprc
// that is right.
func TestRemedyFitsTheRefusal(t *testing.T) {
	for _, test := range []struct {
		name   string
		happen func(w *world)
		says   string
	}{
		{"another key", func(w *world) { w.sim.Fault(zulipsim.Unauthorized()) }, "download the zuliprc again"},
		{"the organization is deactivated", func(w *world) { w.sim.DeactivateRealm() }, "has to reactivate it"},
		{"the organization is deactivated, says an old server", func(w *world) {
			w.sim.Fault(zulipsim.Fault{Status: 403, Body: `{"result":"error","msg":"Gone","code":"REALM_DEACTIVATED"}`})
		}, "has to reactivate it"},
		{"the account is deactivated",
			func(w *world) { w.bot.Update(func(a *zulipsim.Account) { a.Deactivated = true }) },
			"has to reactivate the account"},
		{"another organization", func(w *world) {
			w.sim.Hosts = func(string) zulipsim.Host { return zulipsim.NoOrganization }
		}, "look whether the site is right"},
		{"a bot of the wrong type", func(w *world) { w.bot.Update(func(a *zulipsim.Account) { a.Type = zulipsim.IncomingWebhookBot }) }, "of the type generic"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, w *world) {
				test.happen(w)
				_, err := w.Me(t.Context())
				if _, ok := errors.AsType[*AuthError](err); !ok || !strings.Contains(err.Error(), test.says) ||
					strings.Contains(err.Error(), "download") != strings.Contains(test.says, "download") {
					t.Errorf("%v", err)
				}
			})
		})
	}
}
