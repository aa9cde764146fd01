package zulipsim

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A queue's idle clock is set when it is made and when a poll begins to wait, and by no
// other poll. It dies at a sweep, so with a life of 20 s and a sweep at 72 s all three
// ways of not waiting end there, as they did on a real server.
func TestIdleClock(t *testing.T) {
	s := &Server{SweepFirst: 72 * time.Second}
	world(t, s, func(t *testing.T, c *client) {
		never := c.register("queue_lifespan_secs", "20", "event_types", `["message"]`)
		peeked := c.register("queue_lifespan_secs", "20", "event_types", `["message"]`)
		pending := c.register("queue_lifespan_secs", "20", "event_types", `["message"]`)
		waiting := c.register("queue_lifespan_secs", "20", "event_types", `["restart"]`)
		s.say("something that is never acknowledged")
		var all sync.WaitGroup
		all.Go(func() {
			last := int64(-1)
			for range 3 {
				a := c.poll(waiting, last)
				want(t, "a waiting poll", a.types(), "heartbeat")
				last = a.ids()[0]
			}
		})
		for range 8 {
			time.Sleep(8 * time.Second)
			want(t, "dont_block", c.peek(peeked, -1).status, 200)
			want(t, "answered at once", c.poll(pending, -1).status, 200)
		}
		time.Sleep(time.Until(s.started.Add(71 * time.Second)))
		want(t, "alive before the sweep", c.peek(peeked, -1).status, 200)
		time.Sleep(2 * time.Second)
		for name, q := range map[string]string{"never polled": never, "dont_block": peeked, "always pending": pending} {
			want(t, name, c.peek(q, -1).Code, "BAD_EVENT_QUEUE_ID")
		}
		all.Wait()
		want(t, "polls that wait", c.peek(waiting, 2).status, 200)
		for _, q := range s.Queues() {
			if q.ID == never && q.Dead != "expired" {
				t.Errorf("the ledger calls the queue %q", q.Dead)
			}
		}
	})
}

// The default life is ten minutes, the longest seven days, and GrantCap stands above
// both.
func TestLife(t *testing.T) {
	for _, tt := range []struct {
		server *Server
		params []string
		life   time.Duration
		told   int64
	}{
		{&Server{}, nil, 10 * time.Minute, 0},
		{&Server{}, []string{"queue_lifespan_secs", "86400"}, 24 * time.Hour, 0},
		{&Server{}, []string{"queue_lifespan_secs", "99999999"}, 7 * 24 * time.Hour, 0},
		{&Server{}, []string{"idle_queue_timeout", "86400"}, 10 * time.Minute, 0},
		{&Server{FeatureLevel: 500}, []string{"queue_lifespan_secs", "86400"}, 10 * time.Minute, 600},
		{&Server{FeatureLevel: 500}, []string{"idle_queue_timeout", "86400"}, 24 * time.Hour, 86400},
		{&Server{FeatureLevel: 500}, []string{"idle_queue_timeout", "mobile"}, 12 * time.Hour, 43200},
		{&Server{FeatureLevel: 500, GrantCap: time.Hour}, []string{"idle_queue_timeout", "86400"}, time.Hour, 3600},
		{&Server{MaxLife: time.Minute}, []string{"queue_lifespan_secs", "86400"}, time.Minute, 0},
	} {
		world(t, tt.server, func(t *testing.T, c *client) {
			a := c.post("/register", append(tt.params, "fetch_event_types", "[]")...)
			want(t, "told", a.Life, tt.told)
			want(t, "granted", tt.server.Queues()[0].Life, tt.life)
		})
	}
}

// Below level 481 the old name counts and the new one is ignored, from then on the other
// way round; the answer says which.
func TestBothNamesOfTheLife(t *testing.T) {
	for level, ignored := range map[int]string{372: "[idle_queue_timeout]", 500: "[queue_lifespan_secs]", 166: "[]"} {
		s := &Server{FeatureLevel: level}
		world(t, s, func(t *testing.T, c *client) {
			a := c.post("/register", "queue_lifespan_secs", "3600", "idle_queue_timeout", "3600",
				"fetch_event_types", "[]")
			want(t, "ignored", a.Ignored, strings.Fields(strings.Trim(ignored, "[]")))
			want(t, "granted", s.Queues()[0].Life, time.Hour)
		})
	}
}

// Two polls on one queue: the second ends the first with an empty list, also if it does
// not block itself.
func TestTwoPollers(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		q := c.register()
		for _, second := range []func() *answer{
			func() *answer { after(time.Second, func() { s.say("x") }); return c.poll(q, -1) },
			func() *answer { s.ExpireQueue("no such queue"); return c.peek(q, 0) },
		} {
			var first *answer
			var all sync.WaitGroup
			all.Go(func() { first = c.poll(q, s.Queues()[0].NewestPruned) })
			time.Sleep(time.Second)
			start := time.Now()
			want(t, "the newer poll", second().status, 200)
			all.Wait()
			want(t, "the older poll", first.raw, `{"result":"success","msg":"","events":[],"queue_id":"`+q+`"}`+"\n")
			if waited := time.Since(start); waited > time.Second {
				t.Errorf("the older poll ended %v after the newer began", waited)
			}
			c.peek(q, s.Queues()[0].NextID-1) // acknowledge all
		}
	})
}

// What is not acknowledged is read again byte for byte; acknowledging drops, and the two
// refusals come in Zulip's order.
func TestAcknowledging(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		q := c.register()
		for range 4 {
			s.say("x")
		}
		a := c.poll(q, -1)
		want(t, "all pending events", a.ids(), []int64{0, 1, 2, 3})
		if a.QueueID != nil {
			t.Error("queue_id in an answer that did not wait")
		}
		want(t, "the same again", c.poll(q, -1).raw, a.raw)
		want(t, "the rest", c.poll(q, 1).ids(), []int64{2, 3})
		want(t, "older", c.poll(q, 0).Msg, "An event newer than 0 has already been pruned!")
		want(t, "untouched", c.poll(q, 1).ids(), []int64{2, 3})
		want(t, "never given", c.poll(q, 9).Msg, "Event 9 was not in this queue")
		want(t, "everything is gone", c.peek(q, 2).Msg, "An event newer than 2 has already been pruned!")
		want(t, "only the newest real id is good", c.peek(q, 3).raw, `{"result":"success","msg":"","events":[]}`+"\n")
		info := s.Queues()[0]
		want(t, "newest pruned", info.NewestPruned, 3)
		for _, e := range info.Events {
			if e.Pruned.IsZero() || e.Delivered.IsZero() ||
				!strings.HasSuffix(string(e.Raw), `"id":`+string('0'+rune(e.ID))+"}") {
				t.Errorf("the ledger has %+v", e)
			}
		}
	})
}

// A client that goes away leaves its events behind.
func TestClientGoesAway(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		q := c.register()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if a := c.do(ctx, "GET", "/events", "queue_id", q, "last_event_id", "-1"); a.err == nil {
			t.Error("the poll was answered")
		}
		synctest.Wait()
		want(t, "waiting", s.Queues()[0].Waiting, false)
		s.say("x")
		want(t, "the event", c.poll(q, -1).ids(), []int64{0})
	})
}

// Heartbeats come 45 to 55 seconds after a poll began to wait, have ids, and come to
// queues of any type.
func TestHeartbeat(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		q := c.register("event_types", `["restart"]`)
		seen := make(map[time.Duration]bool)
		for i := range int64(40) {
			start := time.Now()
			a := c.poll(q, i-1)
			want(t, "heartbeat", a.raw, fmt.Sprintf(`{"result":"success","msg":"","events":[{"type":"heartbeat","id":%d}],"queue_id":"%s"}`+"\n", i, q))
			d := time.Since(start)
			if d < 45*time.Second || d > 55*time.Second {
				t.Errorf("after %v", d)
			}
			seen[d] = true
		}
		if len(seen) < 5 {
			t.Errorf("only %d different waits in 40", len(seen))
		}
	})
}

// Reading marks and stars merge until the queue is read; unreading does not. The merged
// event takes the newest id, so that ids below it vanish and it stands behind what came
// between.
func TestMerging(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		a, b := s.say("a"), s.say("b")
		q := c.register()
		me := c.account.Email
		s.Flag(me, "add", "read", a)
		s.Flag(me, "remove", "read", a)
		s.Flag(me, "add", "read", b)
		got := c.poll(q, -1)
		want(t, "ids", got.ids(), []int64{1, 2})
		want(t, "the order is turned round", got.types(), "update_message_flags/remove update_message_flags/add")
		want(t, "merged", string(got.Events[1]),
			`{"type":"update_message_flags","op":"add","operation":"add","flag":"read","messages":[1,2],"all":false,"id":2}`)
		want(t, "an id that was swallowed", c.peek(q, 0).Msg, "Event 0 was not in this queue")
		want(t, "nothing is lost", c.peek(q, -1).raw, got.raw)
		s.Flag(me, "add", "starred", a)
		star := func(all bool, ids ...int) {
			s.Emit(map[string]any{"type": "update_message_flags", "op": "add", "operation": "add", "flag": "starred",
				"messages": ids, "all": all})
		}
		star(false, 7)
		star(true)
		got = c.peek(q, 2)
		want(t, "one star event and one of all", got.ids(), []int64{4, 5})
		if !strings.Contains(string(got.Events[0]), `"messages":[1,7]`) {
			t.Errorf("merged: %s", got.Events[0])
		}
		want(t, "starring again changes nothing",
			func() int { s.Flag(me, "add", "starred", a); return s.Queues()[0].Pending }(), 2)
	})
}

// Queues filter: by type, by narrow (which also brings public channels that the account
// is not in), by capability.
func TestFilters(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		c.account.NoSubscriptions = true
		s.Channel("Far").Private = false
		narrow := c.register("narrow", `[["channel","far"],["topic","T"]]`)
		nothing := c.register("narrow", `[["channel","no such channel"]]`)
		own := c.register()
		public := c.register("all_public_streams", "true")
		typed := c.register("event_types", `["reaction"]`, "all_public_streams", "true")
		id := s.SendMessage(Message{Channel: "far", Topic: "t", Content: "x"})
		s.SendMessage(Message{Channel: "far", Topic: "other", Content: "x"})
		s.SendMessage(Message{To: []string{c.account.Email}, Content: "x"})
		s.React(id, "grace@example.com", "tada")
		s.EditMessage(id, Edit{Content: new("y")})
		s.DeleteMessages(id)
		s.Typing("ada@example.com", "start", "far", "t")
		want(t, "narrow", c.peek(narrow, -1).types(), "message")
		want(t, "narrow to nothing", c.peek(nothing, -1).types(), "")
		want(t, "own", c.peek(own, -1).types(), "message")
		want(t, "all public channels bring births only", c.peek(public, -1).types(), "message message message")
		want(t, "by type", c.peek(typed, -1).types(), "")

		c.account.Subscribe("far")
		plain := c.register()
		able := c.register("client_capabilities", `{"notification_settings_null":true,"bulk_message_deletion":true,`+
			`"stream_typing_notifications":true,"empty_topic_name":true}`)
		ids := []int64{s.SendMessage(Message{Channel: "far", Content: "x"}),
			s.SendMessage(Message{Channel: "far", Content: "y"})}
		s.Typing("ada@example.com", "start", "far", "")
		s.DeleteMessages(ids...)
		got := c.peek(plain, -1)
		want(t, "without capabilities", got.types(), "message message delete_message delete_message")
		if !strings.Contains(got.raw, `"subject":"general chat"`) ||
			!strings.Contains(got.raw, `"topic":"general chat"`) {
			t.Errorf("the empty topic: %s", got.raw)
		}
		got = c.peek(able, -1)
		want(t, "with capabilities", got.types(), "message message typing/start delete_message")
		want(t, "in bulk, newest first", string(got.Events[3]),
			`{"type":"delete_message","message_ids":[5,4],"stream_id":4,"topic":"","message_type":"stream","id":3}`)
	})
}

// EmitRaw puts in what no Zulip would send, whatever the filter.
func TestEmitRaw(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		q := c.register("event_types", `["message"]`)
		s.EmitRaw(`{"type":"a.b>","id":%ID%,"again":%ID%}`)
		s.EmitRaw(`}{ no JSON`)
		s.Emit(map[string]any{"type": "reaction"})
		want(t, "raw", c.peek(q, -1).raw,
			`{"result":"success","msg":"","events":[{"type":"a.b>","id":0,"again":0},}{ no JSON]}`+"\n")
		want(t, "acknowledged by id", c.peek(q, 1).status, 200)
	})
}

// Ids follow insertion, events follow commit.
func TestDelayedCommit(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		q := c.register()
		early, commit := s.SendDelayed(Message{Channel: "general", Topic: "t", Content: "early"})
		late := s.say("late")
		want(t, "ids", late, early+1)
		want(t, "not there yet", len(c.get("/messages", "anchor", "newest", "num_before", "9").Messages), 1)
		commit()
		var got []int64
		for _, e := range s.Queues()[0].Events {
			got = append(got, e.MessageID)
		}
		want(t, "the order of events", got, []int64{late, early})
		want(t, "acknowledged", c.peek(q, -1).ids(), []int64{0, 1})
		want(t, "history", c.get("/messages", "anchor", "newest", "num_before", "9").Messages[0].ID, early)
	})
}

// A DELETE ends the poll that waits with what is there.
func TestDeleteQueue(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		q := c.register()
		after(time.Second, func() {
			want(t, "DELETE", c.do(t.Context(), "DELETE", "/events", "queue_id", q).status, 200)
		})
		want(t, "the poll", c.poll(q, -1).raw, `{"result":"success","msg":"","events":[],"queue_id":"`+q+`"}`+"\n")
		synctest.Wait()
		want(t, "gone", c.poll(q, -1).Code, "BAD_EVENT_QUEUE_ID")
		want(t, "dead", s.Queues()[0].Dead, "deleted")
		other := &client{t: t, http: c.http, base: c.base, account: s.Account("other-bot@example.com")}
		want(t, "another account's queue", other.poll(c.register(), -1).Code, "BAD_EVENT_QUEUE_ID")
	})
}

// Forget keeps memory flat and changes nothing else.
func TestForget(t *testing.T) {
	s := &Server{Forget: true, APIRules: []RateRule{}}
	world(t, s, func(t *testing.T, c *client) {
		q := c.register()
		for range 10 {
			s.say("x")
		}
		want(t, "events", len(c.poll(q, -1).Events), 10)
		want(t, "the rest", c.poll(q, 6).ids(), []int64{7, 8, 9})
		want(t, "remembered", len(s.Queues()[0].Events), 3)
		want(t, "refused as ever", c.poll(q, 5).Msg, "An event newer than 5 has already been pruned!")
		want(t, "refused as ever", c.peek(q, 99).Msg, "Event 99 was not in this queue")
		want(t, "requests", len(s.Requests()), 0)
	})
}

// Small things that events of some kinds do.
func TestKinds(t *testing.T) {
	all := `{"notification_settings_null":true,"simplified_presence_events":true,"individual_emoji_changes":true,"empty_topic_name":true}`
	s := &Server{FeatureLevel: 500}
	world(t, s, func(t *testing.T, c *client) {
		modern, plain := c.register("client_capabilities", all), c.register("slim_presence", "true")
		id := s.SendMessage(Message{Channel: "general", Content: "see https://example.com"})
		s.Presence("ada@example.com", "active")
		s.Emit(map[string]any{"type": "realm_emoji", "op": "add"})
		s.Emit(map[string]any{"type": "realm_emoji", "op": "update"})
		s.Flag(c.account.Email, "add", "read", id)
		a, b := c.peek(modern, -1), c.peek(plain, -1)
		s.Flag(c.account.Email, "remove", "read", id)
		s.LinkPreview(id, "<p>a picture</p>")
		s.Redeliver(id)
		s.Typing("ada@example.com", "start", "", "", c.account.Email)
		want(t, "with capabilities", a.types(), "message presence realm_emoji/add update_message_flags/add")
		want(t, "without", b.types(), "message presence realm_emoji/update update_message_flags/add")
		if !strings.Contains(a.raw, `"presences":{"10":{"active_timestamp"`) ||
			!strings.Contains(b.raw, `"user_id":10,"server_timestamp"`) {
			t.Errorf("presence: %s and %s", a.raw, b.raw)
		}
		a, b = c.peek(modern, 3), c.peek(plain, 3)
		want(t, "afterwards", a.types(), "update_message_flags/remove update_message message typing/start")
		if !strings.Contains(a.raw, `"topic":"","unmuted_stream_msg":true`) ||
			!strings.Contains(b.raw, `"topic":"general chat","unmuted_stream_msg":true`) {
			t.Errorf("the empty topic: %s and %s", a.raw, b.raw)
		}
		if !strings.Contains(a.raw, `"user_id":null`) || !strings.Contains(a.raw, `"rendering_only":true`) {
			t.Errorf("a link preview: %s", a.raw)
		}
	})
}

// Direct messages come to those in them, channel messages to subscribers, with the flags
// of each.
func TestWhoGetsWhat(t *testing.T) {
	s := &Server{}
	world(t, s, func(t *testing.T, c *client) {
		other := &client{t: t, http: c.http, base: c.base, account: s.Account("other-bot@example.com")}
		mine, theirs := c.register("apply_markdown", "true"), other.register()
		s.SendMessage(Message{To: []string{c.account.Email}, Content: "**hello**"})
		s.Channel("secret").Private = true
		other.account.Subscribe("secret")
		s.SendMessage(Message{Channel: "secret", Topic: "t", Content: "@**Other Bot** psst"})
		got := c.peek(mine, -1)
		want(t, "mine", got.types(), "message")
		if !strings.Contains(got.raw, `"content":"<p><strong>hello</strong></p>"`) ||
			!strings.Contains(got.raw, `"type":"private"`) {
			t.Errorf("a direct message: %s", got.raw)
		}
		got = other.peek(theirs, -1)
		want(t, "theirs", got.types(), "subscription/add message")
		if !strings.Contains(got.raw, `"flags":["mentioned"]`) {
			t.Errorf("a mention: %s", got.raw)
		}
		other.account.Unsubscribe("secret")
		s.SendMessage(Message{Channel: "secret", Topic: "t", Content: "gone"})
		want(t, "unsubscribed", other.peek(theirs, 1).types(), "subscription/remove")
	})
}
