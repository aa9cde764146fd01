package bridge_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"zulip-nats/bridge"
	"zulip-nats/events"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/subjects"
	"zulip-nats/zulipsim"
)

// storyByPlace is a story of a stream by place.
func storyByPlace(t *testing.T, f func(w *world, one *instance)) {
	story(t, func(w *world, one *instance) {
		w.realm = w.realm.By(subjects.ByPlace)
		w.options.Life = 10 * time.Minute
		f(w, one)
	})
}

// storyInEach is a story of a stream by type, and of one by place.
func storyInEach(t *testing.T, f func(w *world, one *instance)) {
	for _, layout := range []subjects.Layout{subjects.ByType, subjects.ByPlace} {
		t.Run(layout.String(), func(t *testing.T) {
			story(t, func(w *world, one *instance) {
				w.realm = w.realm.By(layout)
				f(w, one)
			})
		})
	}
}

func (w *world) emitReaction(id int64, word string) {
	w.zulip.Emit(map[string]any{"type": "reaction", "op": "add", "message_id": id, "emoji_name": word})
}

func (w *world) in(kind, channel string) string {
	return fmt.Sprintf("%s.channel.%d", kind, w.zulip.Channel(channel).ID)
}

func (w *world) to(content string) int64 {
	return w.zulip.SendMessage(zulipsim.Message{To: []string{simAccount}, Sender: "ada@example.com", Content: content})
}

// others stores messages as somebody else would, in a stream that is made if it is gone.
func (w *world) others(msgs ...stream.Message) {
	w.t.Helper()
	c := w.jet.Client(w.t.Context())
	err := c.Open(w.t.Context())
	if err == nil {
		var at stream.Cursor
		if at, _, err = c.Last(w.t.Context()); err == nil {
			_, err = c.Append(w.t.Context(), at, msgs)
		}
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) wantOn(want map[string]string, words ...string) {
	w.t.Helper()
	if got := w.onSubjects(words...); !maps.Equal(got, want) {
		w.t.Errorf("stored on\n%v, want\n%v", got, want)
	}
}

// A message is moved, the bridge is started again, and Zulip delivers the message a second
// time, as it was, before anything has to be looked up. It is where the move put it.
func TestRedeliveredBehindAStart(t *testing.T) {
	storyByPlace(t, func(w *world, one *instance) {
		one.follows(1)
		id := w.lastIDs[0]
		w.zulip.EditMessage(id, zulipsim.Edit{Channel: new("random")})
		time.Sleep(time.Second)
		one.stop()
		one.start()
		time.Sleep(time.Second)
		w.told.redelivered = map[int64]int{id: 1}
		for _, m := range w.jet.Messages() {
			if first(m, events.HeaderMessageID) == fmt.Sprint(id) {
				var ev map[string]any
				if err := json.Unmarshal(m.Data, &ev); err != nil {
					t.Fatal(err)
				}
				delete(ev, "id")
				w.zulip.Emit(ev)
			}
		}
		time.Sleep(time.Second)
		w.emitReaction(id, "r1")
		time.Sleep(time.Second)
		w.wantOn(map[string]string{w.in("reaction", "random"): "r1"}, "r1")
	})
}

// "Mark as unread" has message_details: there Zulip says itself where each message is, of a
// direct one among whom, and the topic of another.
func TestFlagsSayWhereMessagesAre(t *testing.T) {
	storyByPlace(t, func(w *world, one *instance) {
		one.follows(1)
		channel, direct := w.lastIDs[0], w.to("secret")
		general := w.zulip.Channel("general").ID
		unread := func(word string, details map[string]any, ids ...int64) {
			w.zulip.Emit(map[string]any{"type": "update_message_flags", "op": "remove", "operation": "remove", "flag": "read",
				"messages": ids, "all": false, "message_details": details, "word": word})
			time.Sleep(time.Second)
		}
		inChannel := map[string]any{"type": "stream", "stream_id": general, "topic": "topic"}
		among := map[string]any{"type": "private", "user_ids": []int64{424241, 424242}}
		// From before the bridge's time: not known, and said.
		unread("u1", map[string]any{"4000000": inChannel}, 4_000_000)
		unread("u2", map[string]any{"4000001": among}, 4_000_001)
		// Both known, of two places.
		unread("u3", map[string]any{fmt.Sprint(channel): inChannel, fmt.Sprint(direct): among}, channel, direct)
		w.wantOn(map[string]string{w.in("update_message_flags", "general"): "u1", "update_message_flags.direct": "u2 u3"},
			"u1", "u2", "u3")
		for _, m := range w.jet.Messages() {
			if bytes.Contains(m.Data, []byte("424241")) && !strings.HasSuffix(m.Subject, ".direct") {
				t.Errorf("on %s, among whom direct messages are: %s", m.Subject, m.Data)
			}
		}
	})
}

// Edits are left out, and moves are edits: the place is the same before and behind a start,
// the one where the message was.
func TestMovesThatAreLeftOut(t *testing.T) {
	storyByPlace(t, func(w *world, one *instance) {
		w.options.ExcludeTypes = []string{"update_message"}
		one.follows(1)
		id := w.lastIDs[0]
		w.zulip.EditMessage(id, zulipsim.Edit{Channel: new("random")})
		time.Sleep(time.Second)
		w.emitReaction(id, "r1")
		time.Sleep(time.Second)
		one.stop()
		one.start()
		time.Sleep(time.Second)
		w.emitReaction(id, "r2")
		time.Sleep(time.Second)
		w.wantOn(map[string]string{w.in("reaction", "general"): "r1 r2"}, "r1", "r2")
	})
}

// A message from before the bridge's time is moved: Zulip says where from and where to.
func TestMoveOfAMessageThatIsNotKnown(t *testing.T) {
	storyByPlace(t, func(w *world, one *instance) {
		w.zulip.Account(simAccount)
		w.say(1)
		id := w.lastIDs[0]
		one.follows(1)
		w.zulip.EditMessage(id, zulipsim.Edit{Channel: new("random")})
		time.Sleep(time.Second)
		w.emitReaction(id, "r1")
		time.Sleep(time.Second)
		w.wantOn(map[string]string{w.in("reaction", "random"): "r1"}, "r1")
	})
}

// A move falls into a gap. What Zulip says afterwards of the message says where it is, and
// from then on it is there.
func TestEditBehindAMoveInAGap(t *testing.T) {
	storyByPlace(t, func(w *world, one *instance) {
		one.follows(1)
		id := w.lastIDs[0]
		one.stop()
		w.zulip.EditMessage(id, zulipsim.Edit{Channel: new("random")})
		w.expire()
		one.start()
		time.Sleep(time.Minute)
		w.zulip.EditMessage(id, zulipsim.Edit{Content: new("e1")})
		time.Sleep(time.Second)
		w.emitReaction(id, "r1")
		time.Sleep(time.Second)
		w.wantOn(map[string]string{w.in("update_message", "random"): "e1", w.in("reaction", "random"): "r1"}, "e1", "r1")
	})
}

// A move names what was a direct message: no server does that, and what is known to be
// direct stays so.
func TestDirectMessagesAreNotMoved(t *testing.T) {
	storyByPlace(t, func(w *world, one *instance) {
		one.follows(1)
		id := w.to("secret")
		time.Sleep(time.Second)
		w.zulip.Emit(map[string]any{"type": "update_message", "message_id": w.lastIDs[0], "message_ids": []int64{w.lastIDs[0], id},
			"stream_id": w.zulip.Channel("general").ID, "new_stream_id": w.zulip.Channel("random").ID})
		time.Sleep(time.Second)
		w.zulip.EditMessage(id, zulipsim.Edit{Content: new("secret edit")})
		time.Sleep(time.Second)
		w.wantOn(map[string]string{"message.direct": "secret", "update_message.direct": "secret"}, "secret")
	})
}

// Somebody else publishes a copy of a direct message to where people of a channel read it,
// with the headers that name the message and the channel. The stream's limits take the
// message itself. An edit of it is in no channel.
func TestCopyOfADirectMessage(t *testing.T) {
	storyByPlace(t, func(w *world, one *instance) {
		one.follows(1)
		id := w.to("first text")
		time.Sleep(time.Second)
		general := w.zulip.Channel("general").ID
		w.others(stream.Message{Subject: fmt.Sprintf("zulip.acme.message.channel.%d", general),
			Data: []byte("{}"), Headers: []stream.Header{{Key: events.HeaderMessageID, Value: fmt.Sprint(id)},
				{Key: events.HeaderChannelID, Value: fmt.Sprint(general)}}})
		one.stop()
		for n, m := range w.jet.Messages() {
			if bytes.Contains(m.Data, []byte("first text")) {
				w.jet.Age(n + 1)
				break
			}
		}
		one.start()
		time.Sleep(time.Minute)
		w.zulip.EditMessage(id, zulipsim.Edit{Content: new("secret edit")})
		time.Sleep(time.Second)
		w.wantOn(map[string]string{"update_message.direct": "secret"}, "secret")
	})
}

// A batch is refused as a whole, since the limit on a message was lowered, and asked for
// again: what came before a move is where the message was then.
func TestMoveInABatchThatIsAskedForAgain(t *testing.T) {
	storyByPlace(t, func(w *world, one *instance) {
		one.follows(1)
		id := w.lastIDs[0]
		one.gate.close()
		time.Sleep(time.Second)
		w.say(1) // ends the poll that waits
		w.emitReaction(id, "r1")
		w.zulip.EditMessage(id, zulipsim.Edit{Channel: new("random")})
		w.sayLarge()
		appends := 0
		w.jet.SetFaults(func(op string) (f model.Fault) {
			if op == "append" {
				if appends++; appends == 2 {
					w.jet.MaxPayload = 9000 // the server was reloaded
				}
			}
			return f
		})
		one.gate.open()
		time.Sleep(2 * time.Minute)
		if len(w.jet.Objects()) != 1 {
			t.Errorf("the large one is in no object")
		}
		w.wantOn(map[string]string{w.in("reaction", "general"): "r1"}, "r1")
	})
}

// Two instances of different layouts. While the one by place stands still, somebody makes
// the stream anew, the one by type begins it, and dies with its queue. Then the first goes
// on: it does not write into a stream of another layout.
func TestLayoutOfAStreamMadeAnew(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		w.options.Life = 24 * time.Hour
		w.lease = &simLease{ttl: 4 * time.Second}
		other := w.instance()
		byType := w.realm
		w.realm = byType.By(subjects.ByPlace)
		one.follows(10)
		one.gate.close()
		w.jet.Delete()
		time.Sleep(10 * time.Second) // its lease is over
		w.realm = byType
		other.start()
		time.Sleep(10 * time.Second)
		w.say(2)
		time.Sleep(time.Second)
		other.kill()
		queues := w.zulip.Queues()
		w.zulip.ExpireQueue(queues[len(queues)-1].ID)
		time.Sleep(10 * time.Second)
		before := len(w.jet.Ever(0))
		if got := w.onSubjects(`"type":"message"`); len(got) != 1 || got["message"] == "" {
			t.Fatalf("the other one stored %v", got)
		}
		one.gate.open()
		time.Sleep(3 * time.Minute)
		w.say(2)
		time.Sleep(time.Minute)
		over, err := ended(one)
		one.err = nil
		if e, ok := errors.AsType[*bridge.ConfigError](err); !over || !ok || !strings.Contains(e.Error(), "by-type") {
			t.Errorf("Run returned %v, and should refuse the stream", err)
		}
		layouts := map[string]int{}
		for _, m := range w.jet.Ever(0)[before:] {
			layouts[m.Subject]++
		}
		if len(layouts) > 0 {
			t.Errorf("written by place into a stream by type: %v", layouts)
		}
	})
}

// lostAnswers takes objects and says that it does not.
type lostAnswers struct{ bridge.Stream }

func (s lostAnswers) PutObject(ctx context.Context, name string, data []byte) error {
	if err := s.Stream.PutObject(ctx, name, data); err != nil {
		return err
	}
	return &stream.Error{Kind: stream.Unclear, Err: errors.New("no answer")}
}

// A large direct message: the object store takes it, and its answer is lost, so it is
// rejected. When it is deleted its text is erased there too.
func TestEraseARejectedDirectMessage(t *testing.T) {
	storyInEach(t, func(w *world, one *instance) {
		w.jet.Single, w.jet.MaxPayload = true, 9000
		w.configure = func(c *bridge.Config) {
			c.EraseDeleted, c.OversizeWait = true, 10*time.Second
			open := c.Open
			c.Open = func(ctx context.Context) (bridge.Stream, error) {
				s, err := open(ctx)
				return lostAnswers{s}, err
			}
		}
		one.follows(1)
		id := w.to(strings.Repeat("secret ", 1400))
		time.Sleep(time.Minute)
		if n := len(told[events.Rejected](w, "rejected", "")); n != 1 || len(w.jet.Objects()) != 1 {
			t.Fatalf("%d rejected, %d objects", n, len(w.jet.Objects()))
		}
		w.zulip.DeleteMessages(id)
		time.Sleep(time.Minute)
		if got := w.holding("secret"); len(got) > 0 {
			t.Errorf("the text is in %v", got)
		}
	})
}

// A message of a channel that does not say of which is not where presence and settings are.
func TestMessageOfAChannelWithoutANumber(t *testing.T) {
	storyByPlace(t, func(w *world, one *instance) {
		one.follows(1)
		w.zulip.Emit(map[string]any{"type": "message", "message": map[string]any{"id": 4_000_000, "type": "stream",
			"content": "w1", "display_recipient": "general"}})
		time.Sleep(time.Second)
		w.wantOn(map[string]string{"message.direct": "w1"}, "w1")
	})
}

// farScan reads from a server that is 20 ms away and lets the bridge make no consumer: each
// message is a request (docs/permissions.md allows that).
type farScan struct{ bridge.Stream }

func (s farScan) Scan(ctx context.Context, subject string, from stream.Start, until uint64, headersOnly bool,
	f func(*stream.Stored) error) error {
	return s.Stream.Scan(ctx, subject, from, until, headersOnly, func(m *stream.Stored) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
		return f(m)
	})
}

// A start behind 20,000 messages, where they are read one by one: events wait no longer for
// one reaction than the queue lives.
func TestPlacesReadOneByOne(t *testing.T) {
	storyByPlace(t, func(w *world, one *instance) {
		w.jet.Single = true
		one.follows(20_000)
		one.stop()
		w.configure = func(c *bridge.Config) {
			open := c.Open
			c.Open = func(ctx context.Context) (bridge.Stream, error) {
				s, err := open(ctx)
				return farScan{s}, err
			}
		}
		one.start()
		time.Sleep(time.Second)
		w.emitReaction(w.lastIDs[len(w.lastIDs)-1], "r1")
		began := time.Now()
		for len(w.onSubjects("r1")) == 0 && time.Since(began) < time.Hour {
			time.Sleep(time.Second)
		}
		if took := time.Since(began); took > time.Minute {
			t.Errorf("the reaction was stored after %v", took)
		}
		time.Sleep(10 * time.Minute)
		if g := w.gaps(); len(g) > 0 {
			t.Errorf("the queue was lost meanwhile: %v", g)
		}
	})
}

// A service publishes what it makes of messages below zulip.acme.message, with the header
// that says of which. A message of a gap is read back all the same, and one that comes by
// two queues is stored.
func TestOthersBelowMessages(t *testing.T) {
	storyInEach(t, func(w *world, one *instance) {
		w.options.Life = 10 * time.Minute
		one.follows(3)
		one.stop()
		id := w.send("in the gap")
		w.others(stream.Message{Subject: "zulip.acme.message.summary",
			Data: []byte("{}"), Headers: []stream.Header{{Key: events.HeaderMessageID, Value: fmt.Sprint(id)}}})
		w.expire()
		one.start()
		time.Sleep(time.Minute)
		if got := w.holding("in the gap"); len(got) != 1 {
			t.Errorf("the message of the gap is in %v", got)
		}
	})
}

// A leader that was deposed lacks the newest move. What it lacks is not known, and so no
// reaction is where the message was.
func TestMoveThatADeposedLeaderLacks(t *testing.T) {
	storyByPlace(t, func(w *world, one *instance) {
		one.follows(3)
		id := w.lastIDs[0]
		w.jet.Depose()
		w.zulip.EditMessage(id, zulipsim.Edit{Channel: new("random")})
		time.Sleep(time.Second)
		one.kill()
		w.jet.SetFaults(func(op string) model.Fault { return model.Fault{Stale: op == "scan" || op == "last on"} })
		w.emitReaction(id, "r1")
		one.start()
		time.Sleep(time.Minute)
		got := w.onSubjects("r1")
		delete(got, "reaction.none")
		delete(got, w.in("reaction", "random"))
		if len(got) > 0 {
			t.Errorf("stored on %v", got)
		}
	})
}

// Two instances of different layouts begin an empty stream in one instant: one of them
// ends, and no queue is left over.
func TestTwoLayoutsBegin(t *testing.T) {
	for _, late := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond} {
		story(t, func(w *world, one *instance) {
			w.zulip.RoundTrip = 5 * time.Millisecond
			other := w.instance()
			one.start()
			w.realm = w.realm.By(subjects.ByPlace)
			time.Sleep(late)
			other.start()
			time.Sleep(time.Minute)
			w.say(3)
			time.Sleep(time.Minute)
			over1, err1 := ended(one)
			over2, err2 := ended(other)
			one.err, other.err = nil, nil
			if over1 == over2 {
				t.Errorf("%v: ended: %v (%v), %v (%v)", late, over1, err1, over2, err2)
			}
			living := 0
			for _, q := range w.zulip.Queues() {
				if q.Dead == "" {
					living++
				}
			}
			if living != 1 {
				t.Errorf("%v: %d queues live", late, living)
			}
			seen := map[bool]int{}
			for _, m := range w.jet.Messages() {
				if first(m, events.HeaderRecord) == "" {
					seen[strings.Count(m.Subject, ".") > 2]++
				}
			}
			if len(seen) != 1 {
				t.Errorf("%v: both layouts: %v", late, seen)
			}
		})
	}
}

// An event without a type that names a channel: nobody knows what it is, and its record has
// none of it.
func TestRejectedWithoutAType(t *testing.T) {
	storyByPlace(t, func(w *world, one *instance) {
		one.follows(1)
		w.zulip.EmitRaw(`{"id":%ID%,"stream_id":7,"message":{"type":"private","content":"secret"}}`)
		w.zulip.EmitRaw(`{"type":"` + strings.Repeat("m", 1000) + `","id":%ID%,"stream_id":7,"message":{"type":"private","content":"secret"}}`)
		time.Sleep(time.Second)
		if n := len(told[events.Rejected](w, "rejected", "")); n != 2 {
			t.Errorf("%d rejected", n)
		}
		if got := w.holding("secret"); len(got) > 0 {
			t.Errorf("in %v", got)
		}
	})
}

// A move of 100,000 messages, and what comes after it.
func TestLargeMove(t *testing.T) {
	storyByPlace(t, func(w *world, one *instance) {
		one.follows(3)
		ids := make([]int64, 100_000)
		for i := range ids {
			ids[i] = int64(i) + 1
		}
		w.zulip.Emit(map[string]any{"type": "update_message", "message_id": 1, "message_ids": ids,
			"stream_id": w.zulip.Channel("general").ID, "new_stream_id": w.zulip.Channel("random").ID})
		w.zulip.Emit(map[string]any{"type": "update_message_flags", "op": "add", "flag": "f1", "messages": ids, "all": false})
		time.Sleep(time.Second)
		w.emitReaction(w.lastIDs[1], "r1")
		time.Sleep(time.Second)
		w.wantOn(map[string]string{w.in("reaction", "random"): "r1", "update_message_flags.none": "f1"}, "r1", "f1")
	})
}

// A queue's record of a version that writes the layout down in full.
func TestLayoutInFull(t *testing.T) {
	story(t, func(w *world, one *instance) {
		one.follows(1)
		one.stop()
		var newest *stream.Stored
		for _, m := range w.jet.Messages() {
			if first(m, events.HeaderRecord) == "queue" {
				newest = &m
			}
		}
		at := w.jet.Messages()
		last := at[len(at)-1]
		var headers []stream.Header
		for key, values := range newest.Header {
			if key == events.HeaderPosition || key == events.HeaderEventID {
				continue
			}
			headers = append(headers, stream.Header{Key: key, Value: values[0]})
		}
		headers = append(headers, stream.Header{Key: events.HeaderPosition, Value: first(last, events.HeaderEventID)})
		data := bytes.Replace(newest.Data, []byte(`"options":`), []byte(`"subjects":"by-type","options":`), 1)
		w.others(stream.Message{Subject: newest.Subject, Data: data, Headers: headers})
		one.start()
		time.Sleep(time.Minute)
		if over, err := ended(one); over {
			one.err = nil
			t.Errorf("ended: %v", err)
		}
	})
}

// A service below zulip.acme.message knows a message before the bridge has it, of which the
// event comes behind a gap: it is stored, and not counted as held.
func TestOthersBelowMessagesAndALiveEvent(t *testing.T) {
	storyInEach(t, func(w *world, one *instance) {
		w.options.Life = 10 * time.Minute
		one.follows(3)
		one.stop()
		w.options.ApplyMarkdown = true // a change-over
		id := w.send("in both")
		w.others(stream.Message{Subject: "zulip.acme.message.summary",
			Data: []byte("{}"), Headers: []stream.Header{{Key: events.HeaderMessageID, Value: fmt.Sprint(id)}}})
		one.start()
		time.Sleep(time.Minute)
		if got := w.holding("in both"); len(got) != 1 {
			t.Errorf("the message is in %v", got)
		}
	})
}

// Somebody else's newest message below zulip.acme.message: the record of a gap says up to
// which message of ours the stream had come.
func TestGapBehindOthersBelowMessages(t *testing.T) {
	storyInEach(t, func(w *world, one *instance) {
		w.options.Life = 10 * time.Minute
		one.follows(3)
		one.stop()
		time.Sleep(time.Minute)
		w.jet.Publish("zulip.acme.message.summary", []byte("{}"))
		w.jet.Publish("zulip.acme.report.direct", []byte("{}"))
		before := w.jet.Messages()
		w.expire()
		time.Sleep(time.Hour)
		one.start()
		time.Sleep(time.Minute)
		g := told[events.GapOpened](w, "gap", "gap-opened")
		if len(g) != 1 || g[0].LastMessageID != w.lastIDs[2] || g[0].LastStored.After(before[len(before)-3].Time) {
			t.Errorf("%+v, want message %d, stored %v", g, w.lastIDs[2], before[len(before)-3].Time)
		}
	})
}

// countedScan counts the messages that are read.
type countedScan struct {
	bridge.Stream
	n *atomic.Int64
}

func (s countedScan) Scan(ctx context.Context, subject string, from stream.Start, until uint64, headersOnly bool,
	f func(*stream.Stored) error) error {
	return s.Stream.Scan(ctx, subject, from, until, headersOnly, func(m *stream.Stored) error {
		s.n.Add(1)
		return f(m)
	})
}

// Two instances without a lease, and reactions all the time: the stream's past is read once
// by each, and not again for each event that the other one stored.
func TestPlacesAreReadOnce(t *testing.T) {
	storyByPlace(t, func(w *world, one *instance) {
		var n atomic.Int64
		w.configure = func(c *bridge.Config) {
			open := c.Open
			c.Open = func(ctx context.Context) (bridge.Stream, error) {
				s, err := open(ctx)
				return countedScan{s, &n}, err
			}
		}
		w.jet.Single = true
		other := w.instance()
		one.follows(2000)
		other.start()
		time.Sleep(10 * time.Second)
		for range 300 {
			w.emitReaction(w.lastIDs[0], "r1")
			time.Sleep(time.Second)
		}
		if n.Load() < 2000 || n.Load() > 5000 {
			t.Errorf("for 300 reactions %d messages were read, of a past of 2000", n.Load())
		}
		w.wantOn(map[string]string{w.in("reaction", "general"): strings.TrimSpace(strings.Repeat("r1 ", 300))}, "r1")
	})
}

// The stream of an organization by place is replaced by an older backup, of the time when
// it was by type. The bridge by place that runs does not go on in it.
func TestLayoutOfAnOlderBackup(t *testing.T) {
	story(t, func(w *world, one *instance) {
		w.truncated = true
		w.options.Life = 24 * time.Hour
		one.follows(3) // by type
		one.stop()
		backup := w.jet.Messages()
		w.expire()
		w.jet.Delete()
		w.realm = w.realm.By(subjects.ByPlace)
		one.follows(10)
		w.jet.SetFaults(func(string) model.Fault { return model.Fault{Fail: stream.Unavailable} })
		w.jet.Delete()
		w.jet.SetFaults(nil)
		var msgs []stream.Message
		for _, m := range backup {
			again := stream.Message{Subject: m.Subject, Data: m.Data}
			for key, values := range m.Header {
				again.Headers = append(again.Headers, stream.Header{Key: key, Value: values[0]})
			}
			msgs = append(msgs, again)
		}
		w.others(msgs...)
		time.Sleep(3 * time.Minute)
		w.say(2)
		time.Sleep(time.Minute)
		over, err := ended(one)
		one.err = nil
		if e, ok := errors.AsType[*bridge.ConfigError](err); !over || !ok || !strings.Contains(e.Error(), "by-type") {
			t.Errorf("Run returned %v, and should refuse the stream; it holds %v", err, w.onSubjects(`"type":"message"`))
		}
	})
}
