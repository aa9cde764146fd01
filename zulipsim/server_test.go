package zulipsim

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Events that come while register is under way are counted in its last_event_id; only a
// poll from -1 sees them.
func TestRegisterTrap(t *testing.T) {
	s := &Server{}
	s.DuringRegister = func(string) { s.say("in between") }
	world(t, s, func(t *testing.T, c *client) {
		a := c.post("/register", "fetch_event_types", `["message"]`, "event_types", `["message"]`)
		want(t, "last_event_id", a.Last, 0)
		if !strings.Contains(a.raw, `"max_message_id":1,`) {
			t.Errorf("max_message_id: %s", a.raw)
		}
		want(t, "polled from last_event_id", len(c.peek(*a.QueueID, a.Last).Events), 0)

		q := c.register()
		want(t, "polled from -1", c.peek(q, -1).ids(), []int64{0})
	})
}

// What later levels do otherwise.
func TestLevels(t *testing.T) {
	for _, tt := range []struct {
		level int
		do    func(s *Server, c *client)
		path  string
		has   string
		not   string
	}{
		{372, nil, "/server_settings", `"realm_url":"http://zulip.test"`, ""},
		{200, nil, "/server_settings", `"realm_uri":"http://zulip.test"`, `"realm_url"`},
		{372, func(s *Server, c *client) { s.React(s.say("x"), "ada@example.com", "tada") }, "",
			`"user":{"user_id"`, ""},
		{484, func(s *Server, c *client) { s.React(s.say("x"), "ada@example.com", "tada") }, "", `"emoji_code":"1f389"`,
			`"user":{`},
		{392, func(s *Server, c *client) { s.DeleteMessages(s.say("x"), s.say("y")) }, "", `"message_ids":[2,1]`, ""},
		{393, func(s *Server, c *client) { s.DeleteMessages(s.say("x"), s.say("y")) }, "", `"message_ids":[1,2]`, ""},
		{333, func(s *Server, c *client) { s.SendMessage(Message{Channel: "general", Content: "x"}) }, "",
			`"subject":"general chat"`, ""},
		{334, func(s *Server, c *client) { s.SendMessage(Message{Channel: "general", Content: "x"}) }, "",
			`"subject":""`, ""},
		{438, func(s *Server, c *client) { s.Emit(map[string]any{"type": "update_display_settings"}) }, "",
			`"events":[]`, ""},
		{239, func(s *Server, c *client) { s.Restart(0) }, "", `"immediate":true`, ""},
		{372, func(s *Server, c *client) { s.Restart(0) }, "", `"type":"restart"`, `"immediate"`},
	} {
		s := &Server{FeatureLevel: tt.level}
		world(t, s, func(t *testing.T, c *client) {
			caps := `{"notification_settings_null":true,"bulk_message_deletion":true,"empty_topic_name":true,"user_settings_object":true}`
			q := c.register("client_capabilities", caps)
			var a *answer
			if tt.do != nil {
				tt.do(s, c)
				a = c.peek(q, -1)
			} else {
				a = c.get(tt.path)
			}
			if !strings.Contains(a.raw, tt.has) || tt.not != "" && strings.Contains(a.raw, tt.not) {
				t.Errorf("level %d: %s, want %s in it and not %q", tt.level, a.raw, tt.has, tt.not)
			}
		})
	}
}

// A bucket of Tornado's gives a token back every 0.3 s; asking while limited costs
// nothing, and waiting exactly as told is enough.
func TestEventsLimit(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		q := c.register()
		for i := range 200 {
			a := c.peek(q, -1)
			want(t, "status", a.status, 200)
			want(t, "Remaining", a.header.Get("X-RateLimit-Remaining"), strconv.Itoa(199-i))
		}
		for range 5 {
			a := c.peek(q, -1)
			want(t, "status", a.status, 429)
			want(t, "told", a.header.Get("Retry-After"), "0.300001")
			want(t, "in the body", a.Wait, 0.300001)
		}
		want(t, "register has a bucket of its own", c.post("/register", "fetch_event_types", "[]").status, 200)
		time.Sleep(250 * time.Millisecond)
		a := c.peek(q, -1)
		want(t, "0.05 s early", a.status, 429)
		time.Sleep(time.Duration(a.Wait * float64(time.Second)))
		want(t, "as told", c.peek(q, -1).status, 200)
		want(t, "and the next at once", c.peek(q, -1).status, 429)
		time.Sleep(300 * time.Millisecond)
		want(t, "one every 0.3 s", c.peek(q, -1).status, 200)
		s.Restart(0)
		want(t, "a restart empties the bucket", c.peek(q, -1).header.Get("X-RateLimit-Remaining"), "199")
	})
}

// Everything else is a sliding minute: after a burst the wait is the whole minute of the
// first request.
func TestAPILimit(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		want(t, "the first", c.get("/users/me").status, 200)
		time.Sleep(time.Second)
		for range 199 {
			c.get("/users/me")
		}
		for range 3 {
			a := c.get("/users/me")
			want(t, "status", a.status, 429)
			want(t, "told", a.header.Get("Retry-After"), "59.000001")
			want(t, "Reset", a.header.Get("X-RateLimit-Reset"), fmt.Sprint(time.Now().Add(59*time.Second).Unix()))
		}
		q := s.Account("other@example.com")
		want(t, "another account", (&client{t: t, http: c.http, base: c.base, account: q}).get("/users/me").status, 200)
		time.Sleep(59 * time.Second)
		want(t, "as told", c.get("/users/me").status, 200)
		a := c.get("/users/me")
		want(t, "the burst is only 59 s old", a.status, 429)
		want(t, "told", a.header.Get("Retry-After"), "1.000001")
	})
}

// With several rules the headers speak of the longest only: 60 remaining on the answer
// before a 429.
func TestSeveralRules(t *testing.T) {
	rules := []RateRule{{20, time.Minute}, {26, time.Hour}}
	s := &Server{EventsRules: rules, APIRules: rules}
	world(t, s, func(t *testing.T, c *client) {
		q := c.register()
		for _, ask := range []func() *answer{func() *answer { return c.peek(q, -1) },
			func() *answer { return c.get("/users/me") }} {
			var a, before *answer
			for a = ask(); a.status == 200; a = ask() {
				before = a
			}
			want(t, "Limit", before.header.Get("X-RateLimit-Limit"), "26")
			want(t, "Remaining before the 429", before.header.Get("X-RateLimit-Remaining"), "6")
			want(t, "Remaining on the 429", a.header.Get("X-RateLimit-Remaining"), "0")
		}
	})
	none := &Server{EventsRules: []RateRule{}, APIRules: []RateRule{}}
	world(t, none, func(t *testing.T, c *client) {
		q := c.register()
		for range 500 {
			if a := c.peek(q, -1); a.status != 200 || a.header.Get("X-RateLimit-Limit") != "" {
				t.Fatalf("without rules: %d %v", a.status, a.header)
			}
		}
	})
}

// A poll that waits shows the budget as of its start.
func TestRemainingOfAWaitingPoll(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		q := c.register()
		for range 100 {
			c.peek(q, -1)
		}
		a := c.poll(q, -1)
		want(t, "Remaining", a.header.Get("X-RateLimit-Remaining"), "99")
	})
}

// A restart in good order keeps queues and what happens meanwhile; polls end with a 502
// page; register waits for six seconds.
func TestRestart(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		q := c.register("queue_lifespan_secs", "3600")
		s.say("before")
		want(t, "before", c.poll(q, -1).ids(), []int64{0})
		after(time.Second, s.Down)
		a := c.poll(q, 0)
		want(t, "the poll that waits", a.status, 502)
		want(t, "a page", a.header.Get("Content-Type"), "text/html")
		want(t, "meanwhile", c.poll(q, 0).status, 502)
		start := time.Now()
		want(t, "register", c.post("/register").status, 500)
		want(t, "register took", time.Since(start), 6*time.Second)
		want(t, "sending goes on", c.post("/messages", "type", "channel", "to", "general", "topic", "t", "content",
			"meanwhile").status, 200)
		after(2*time.Second, s.Up)
		start = time.Now()
		want(t, "register in time", c.post("/register", "fetch_event_types", "[]").status, 200)
		want(t, "register took", time.Since(start), 2*time.Second)
		got := c.poll(q, 0)
		want(t, "afterwards", got.types(), "restart message")
		want(t, "ids go on", got.ids(), []int64{1, 2})
		s.Up()
		want(t, "Up again changes nothing", c.peek(q, 0).raw, got.raw)
	})
}

// The idle clock goes on while the server is down, and sweeps begin anew.
func TestRestartAndIdleClock(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		q := c.register("event_types", `["message"]`)
		s.Restart(20 * time.Minute)
		want(t, "alive until the first sweep", c.peek(q, -1).status, 200)
		time.Sleep(61 * time.Second)
		want(t, "dead after it", c.peek(q, -1).Code, "BAD_EVENT_QUEUE_ID")
	})
}

// A crash loses queues, up or down, and not messages.
func TestCrash(t *testing.T) {
	for _, down := range []bool{false, true} {
		s := &Server{ResetPolls: down}
		world(t, s, func(t *testing.T, c *client) {
			c.freshConnections()
			q := c.register()
			s.say("lost")
			c.poll(q, -1)
			after(time.Second, func() {
				if down {
					s.Down()
				}
				s.Crash()
			})
			a := c.poll(q, 0)
			if down && a.err == nil {
				t.Errorf("a poll was answered: %d", a.status)
			}
			if !down {
				want(t, "the poll", a.status, 502)
			} else {
				want(t, "still down", c.poll(q, 0).status, 502)
				s.say("while down")
				s.Up()
			}
			want(t, "gone", c.poll(q, 0).Code, "BAD_EVENT_QUEUE_ID")
			want(t, "why", s.Queues()[0].Dead, "crash")
			if n := len(c.get("/messages", "anchor", "newest", "num_before", "9").Messages); n == 0 {
				t.Error("messages are gone")
			}
		})
	}
}

// Faults stand in the server's place, or spoil its answer.
func TestFaults(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		c.freshConnections()
		q := c.register()
		s.say("one")
		good := c.peek(q, -1).raw
		for _, tt := range []struct {
			name  string
			fault Fault
			check func(*answer) bool
		}{
			{"502", BadGateway(), func(a *answer) bool { return a.status == 502 && strings.Contains(a.raw, "<html") }},
			{"401", Unauthorized(), func(a *answer) bool { return a.status == 401 && a.Code == "UNAUTHORIZED" }},
			{"500", ServerError(), func(a *answer) bool { return a.status == 500 && a.Msg == "Internal server error" }},
			{"429", TooMany("0.25"), func(a *answer) bool { return a.status == 429 && a.Wait == 0.25 }},
			{"html", Fault{Status: 200, Body: "<html>"},
				func(a *answer) bool { return a.header.Get("Content-Type") == "text/html" }},
			{"empty", Fault{Empty: true}, func(a *answer) bool {
				return a.status == 200 && a.raw == "" &&
					a.err == nil
			}},
			{"reset", Fault{Reset: true}, func(a *answer) bool { return a.status == 0 && a.err != nil }},
			{"half", Fault{HalfBody: true}, func(a *answer) bool {
				return a.err == io.ErrUnexpectedEOF && a.raw == good[:len(good)/2]
			}},
			{"too long", Fault{LengthOff: 3},
				func(a *answer) bool { return a.err == io.ErrUnexpectedEOF && a.raw == good }},
			{"too short", Fault{LengthOff: -3}, func(a *answer) bool { return a.raw == good[:len(good)-3] }},
			{"gzip", Fault{GzipCut: true},
				func(a *answer) bool { return a.err != nil && strings.HasPrefix(good, a.raw) }},
			{"trickle", Fault{Trickle: 1, TricklePause: time.Second}, func(a *answer) bool { return a.raw == good }},
			{"nothing", Fault{}, func(a *answer) bool { return a.raw == good }},
		} {
			tt.fault.On, tt.fault.Times = Events, 1
			s.Fault(tt.fault)
			start := time.Now()
			if a := c.peek(q, -1); !tt.check(a) {
				t.Errorf("%s: %d %v %q", tt.name, a.status, a.err, a.raw)
			}
			if tt.name == "trickle" && time.Since(start) < time.Duration(len(good)-1)*time.Second {
				t.Errorf("trickle took only %v", time.Since(start))
			}
			time.Sleep(time.Second)
			want(t, "after "+tt.name, c.peek(q, -1).raw, good)
		}
	})
}

// Redirects are served as such; a client that follows them leaves.
func TestRedirect(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		q := c.register()
		s.Fault(Fault{On: Events, Redirect: "https://elsewhere.example/login", Times: 1})
		c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		a := c.peek(q, -1)
		want(t, "status", a.status, 302)
		want(t, "to", a.header.Get("Location"), "https://elsewhere.example/login")
	})
}

// Which requests a fault takes, and how often.
func TestWhichRequests(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		statuses := func(n int, f func() *answer) (list []int) {
			for range n {
				list = append(list, f().status)
			}
			return list
		}
		me := func() *answer { return c.get("/users/me") }
		s.Fault(Fault{On: Me, Status: 503, Skip: 1, Times: 2})
		want(t, "the second and third", statuses(4, me), []int{200, 503, 503, 200})
		remove := s.Fault(Fault{On: Any, Status: 503})
		want(t, "until removed", statuses(2, me), []int{503, 503})
		remove()
		want(t, "removed", me().status, 200)
		s.Fault(Fault{Status: 503, For: time.Minute})
		want(t, "for a minute", me().status, 503)
		time.Sleep(time.Minute)
		want(t, "not longer", me().status, 200)
		s.Fault(Fault{Status: 503, Account: "other@example.com"})
		s.Fault(Fault{Status: 503, Match: func(r *http.Request) bool { return r.URL.Query().Get("x") == "1" }})
		want(t, "of others", me().status, 200)
		want(t, "that match", c.get("/users/me", "x", "1").status, 503)
		s.Fault(Fault{On: Register, Status: 503})
		want(t, "not me", me().status, 200)
		want(t, "register", c.post("/register").status, 503)
		s.ClearFaults()
		want(t, "cleared", c.post("/register", "fetch_event_types", "[]").status, 200)
		want(t, "in the ledger", s.Requests()[1].Fault, true)
	})
}

// An answer that is lost on the way has had its effect; one that never came has had none.
func TestAnsweredFaults(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		q := c.register()
		s.say("one")
		s.say("two")
		c.peek(q, -1)
		s.Fault(Fault{On: Events, Reset: true, Times: 1,
			Match: func(r *http.Request) bool { return r.URL.Query().Get("dont_block") != "" }})
		c.do(t.Context(), "GET", "/events", "queue_id", q, "last_event_id", "0", "dont_block", "true")
		s.Fault(Fault{On: Events, Status: 502, Answered: true, Times: 1})
		want(t, "lost", c.peek(q, 0).status, 502)
		want(t, "acknowledged all the same", s.Queues()[0].NewestPruned, 0)
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		defer cancel()
		s.Fault(Fault{On: Events, Hang: true, Times: 1})
		start := time.Now()
		if a := c.do(ctx, "GET", "/events", "queue_id", q, "last_event_id", "0"); a.err == nil ||
			time.Since(start) != 90*time.Second {
			t.Errorf("hang: %v after %v", a.err, time.Since(start))
		}
	})
}

// fails is a testing.TB that notes what it is told.
type fails struct {
	testing.TB
	mu   sync.Mutex
	told []string
}

func (f *fails) Errorf(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = append(f.told, fmt.Sprintf(format, args...))
}

// The server complains of an acknowledgement of what is not stored, of ids that it never
// gave out, of ids that are pruned, and of impatience; a good client hears nothing.
func TestComplain(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		tb := &fails{TB: t}
		stored := map[int64]bool{}
		s.Complain(tb, func(queue string, id int64) bool { return stored[id] })
		expect := func(what string, n int) {
			t.Helper()
			tb.mu.Lock()
			defer tb.mu.Unlock()
			if len(tb.told) != n || n > 0 && !strings.Contains(tb.told[n-1], what) {
				t.Errorf("%d complaints, want %d, the last of %q: %q", len(tb.told), n, what, tb.told)
			}
		}
		q := c.register()
		s.say("x")
		s.say("y")
		c.peek(q, -1)
		stored[0] = true
		c.peek(q, 0)
		c.peek(q, 0)
		expect("", 0)
		c.peek(q, 1)
		expect("not stored", 1)
		c.peek(q, 0)
		expect("older than the newest", 2)
		s.say("z")
		c.peek(q, 2)
		expect("not stored", 4)
		if all := strings.Join(tb.told, "\n"); !strings.Contains(all, "never given out") {
			t.Errorf("an id that was not given out: %s", all)
		}
		s.Fault(func() Fault { f := TooMany("5"); f.Times = 1; return f }())
		c.peek(q, 2)
		time.Sleep(5*time.Second - time.Millisecond)
		c.peek(q, 2)
		expect("sooner", 5)
		time.Sleep(time.Second)
		c.peek(q, 2)
		expect("sooner", 5)
		s.Tolerate = []Complaint{AckPruned}
		c.peek(q, 0)
		expect("sooner", 5)
		want(t, "all complaints are kept", len(s.Complaints()), 6)
	})
}

// OnAck sees each event once, before it is gone, with its bytes.
func TestOnAck(t *testing.T) {
	s := &Server{}
	var acked []string
	s.OnAck = func(queue string, id int64, raw []byte) {
		acked = append(acked, fmt.Sprintf("%d %v", id, json.Valid(raw)))
		if s.Queues()[0].NewestPruned >= id {
			t.Errorf("event %d is gone already", id)
		}
	}
	world(t, s, func(t *testing.T, c *client) {
		q := c.register()
		for range 3 {
			s.say("x")
		}
		c.peek(q, -1)
		c.peek(q, 1)
		c.peek(q, 1)
		c.peek(q, 99)
		want(t, "acknowledged", acked, []string{"0 true", "1 true", "2 true"})
	})
}

// The ledger tells what was asked.
func TestLedger(t *testing.T) {
	s := &Server{RoundTrip: 60 * time.Millisecond}
	world(t, s, func(t *testing.T, c *client) {
		q := c.register()
		after(time.Second, func() { s.say("x") })
		c.poll(q, -1)
		c.get("/nonsense")
		synctest.Wait()
		r := s.Requests()
		want(t, "requests", len(r), 3)
		want(t, "register", fmt.Sprint(r[0].Kind, r[0].Status, r[0].Took, r[0].Params["fetch_event_types"]),
			"register200 60ms[]")
		want(t, "poll", fmt.Sprint(r[1].Kind, r[1].Status, r[1].Waited, r[1].Events, r[1].UserAgent, r[1].Account),
			"events200 true 1SimTest/1.0bridge-bot@example.com")
		want(t, "nonsense", fmt.Sprint(r[2].Kind, r[2].Status), "other404")
		if r[1].Header.Get("Authorization") != "" {
			t.Error("the ledger keeps credentials")
		}
	})
}

// The same seed lets the same people say the same things; everything of a lively day
// comes up.
func TestChatter(t *testing.T) {
	day := func(seed uint64) (said []string, kinds map[string]int) {
		s := &Server{}
		kinds = make(map[string]int)
		world(t, s, func(t *testing.T, c *client) {
			q := c.register("client_capabilities",
				`{"notification_settings_null":true,"bulk_message_deletion":true,"stream_typing_notifications":true}`)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			var talk sync.WaitGroup
			talk.Go(func() { s.Chatter(ctx, seed, time.Second) })
			talk.Wait()
			for _, e := range s.Queues()[0].Events {
				kinds[strings.Trim(e.Type+"/"+e.Op, "/")]++
				if !json.Valid(e.Raw) {
					t.Errorf("no JSON: %s", e.Raw)
				}
			}
			for _, m := range s.Messages() {
				said = append(said, m.Sender+" in "+m.Channel+" > "+m.Topic+": "+m.Content)
			}
			c.do(t.Context(), "DELETE", "/events", "queue_id", q)
		})
		return said, kinds
	}
	said, kinds := day(1)
	again, _ := day(1)
	other, _ := day(2)
	if strings.Join(said, "\n") != strings.Join(again, "\n") {
		t.Error("the same seed, another day")
	}
	if strings.Join(said, "\n") == strings.Join(other, "\n") {
		t.Error("another seed, the same day")
	}
	for _, kind := range []string{"message", "update_message", "delete_message", "reaction/add", "typing/start",
		"typing/stop", "user_status"} {
		if kinds[kind] == 0 {
			t.Errorf("no %s in ten minutes: %v", kind, kinds)
		}
	}
	for _, line := range said {
		if strings.Contains(line, "~") {
			t.Errorf("a stage direction is said aloud: %s", line)
		}
	}
}

// Start serves on a real port, with a URL that the answers name, in plain and gzip.
func TestStart(t *testing.T) {
	s := &Server{}
	base := s.Start(t)
	c := &client{t: t, http: &http.Client{}, base: base, account: s.Account("bridge-bot@example.com")}
	a := c.post("/register", "fetch_event_types", `["realm","message"]`)
	if !strings.Contains(a.raw, `"realm_url":"`+base+`"`) ||
		!strings.Contains(a.raw, `"event_queue_longpoll_timeout_seconds":90`) {
		t.Errorf("register: %s", a.raw)
	}
	req, _ := http.NewRequest("GET", base+"/api/v1/server_settings", nil)
	req.Header.Set("Accept-Encoding", "gzip")
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	want(t, "Content-Encoding", resp.Header.Get("Content-Encoding"), "gzip")
	s.Fault(Fault{On: Me, Reset: true, Times: 3})
	if a := c.get("/users/me"); a.err == nil {
		t.Errorf("reset: %d", a.status)
	}
}

// Close and the end of Listen cut a poll that waits.
func TestClose(t *testing.T) {
	s := &Server{}
	url, stop, err := s.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, http: &http.Client{}, base: url, account: s.Account("bridge-bot@example.com")}
	q := c.register()
	ended := make(chan *answer)
	go func() { ended <- c.poll(q, -1) }()
	for !s.Queues()[0].Waiting {
		time.Sleep(time.Millisecond)
	}
	stop()
	stop()
	if a := <-ended; a.err == nil {
		t.Errorf("the poll was answered: %d", a.status)
	}
	want(t, "waiting", s.Queues()[0].Waiting, false)
}

// An answer of any size is made while it is written: 300 MB pass without staying. Each
// half of the events is acknowledged by itself.
func TestFillAnswer(t *testing.T) {
	const n = 500_000
	text := strings.Repeat("x", 560)
	event := func(dst []byte, id int64) []byte {
		dst = append(dst, `{"type":"message","message":{"id":`...)
		dst = strconv.AppendInt(dst, 1000+id, 10)
		dst = append(append(append(dst, `,"content":"`...), text...), `"},"flags":[],"id":`...)
		return append(strconv.AppendInt(dst, id, 10), '}')
	}
	s := &Server{NoGzip: true}
	base := s.Start(t)
	c := &client{t: t, http: &http.Client{}, base: base, account: s.Account("bridge-bot@example.com")}
	q := c.register()
	s.say("before")
	s.FillAnswer(q, n, event)
	s.say("behind")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	size, peak := drain(t, c, q, -1, &after)
	if size < 280<<20 {
		t.Errorf("only %d bytes came", size)
	}
	if grown := int64(peak) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("the process grew by %d MB", grown>>20)
	}
	want(t, "acknowledged in the middle", c.peek(q, n-1).ids(), []int64{n, n + 1})
	want(t, "next id", s.Queues()[0].NextID, n+2)

	s.FillAnswer(q, 1000, event)
	a, b := c.peek(q, n+1), c.peek(q, n+1)
	want(t, "the same bytes again", sha256.Sum256([]byte(a.raw)), sha256.Sum256([]byte(b.raw)))
	want(t, "valid JSON", json.Valid([]byte(a.raw)), true)
}

// drain reads an answer without keeping it and returns its size and the largest heap seen
// meanwhile.
func drain(t testing.TB, c *client, q string, last int64, m *runtime.MemStats) (size int64, peak uint64) {
	req, _ := http.NewRequest("GET", fmt.Sprintf("%s/api/v1/events?queue_id=%s&last_event_id=%d", c.base, q, last), nil)
	req.SetBasicAuth(c.account.Email, c.account.Key)
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewReaderSize(resp.Body, 1<<20)
	for i := 0; ; i++ {
		k, err := in.Discard(1 << 20)
		size += int64(k)
		if err == io.EOF {
			return size, peak
		}
		if err != nil {
			t.Fatal(err)
		}
		if m != nil && i%50 == 0 {
			runtime.ReadMemStats(m)
			peak = max(peak, m.HeapAlloc)
		}
	}
}

// Draining a queue over real HTTP: events a second, generated ones and kept ones.
func BenchmarkDrain(b *testing.B) {
	for _, generated := range []bool{true, false} {
		b.Run(map[bool]string{true: "generated", false: "kept"}[generated], func(b *testing.B) {
			s := &Server{NoGzip: true, Forget: true, EventsRules: []RateRule{}}
			base := s.Start(b)
			c := &client{http: &http.Client{}, base: base, account: s.Account("bridge-bot@example.com")}
			s.lock()
			q := s.newQueue(c.account, Options{}, time.Hour)
			s.mu.Unlock()
			const n = 100_000
			text := strings.Repeat("x", 500)
			last := int64(-1)
			for b.Loop() {
				b.StopTimer()
				if generated {
					s.FillAnswer(q.id, n, func(dst []byte, id int64) []byte {
						return append(strconv.AppendInt(append(append(append(dst, `{"type":"message","text":"`...),
							text...), `","id":`...), id, 10), '}')
					})
				} else {
					for range n {
						s.Emit(map[string]any{"type": "message", "text": text})
					}
				}
				b.StartTimer()
				size, _ := drain(b, c, q.id, last, nil)
				b.SetBytes(size)
				last += n
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// TestClockOfItsOwn: a server whose clock is wrong dates messages and answers by it, and
// keeps queues for as long as always.
func TestClockOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ahead := time.Hour
		s := &Server{Clock: func() time.Time { return time.Now().Add(ahead) }}
		defer s.Close()
		began := time.Now()
		_, commit := s.SendDelayed(Message{Channel: "general", Topic: "t", Content: "late"})
		time.Sleep(time.Minute)
		commit()
		m := s.Messages()[0]
		if !m.Time.Equal(began.Add(ahead)) || !m.Committed.Equal(began.Add(time.Minute)) {
			t.Errorf("sent at %v and there at %v; want %v, and %v", m.Time, m.Committed, began.Add(ahead),
				began.Add(time.Minute))
		}
		resp, err := s.Client().Get("http://zulip.test/api/v1/server_settings")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if date, want := resp.Header.Get("Date"), time.Now().Add(ahead).UTC().Format(http.TimeFormat); date != want {
			t.Errorf("Date is %q, want %q", date, want)
		}
	})
}
