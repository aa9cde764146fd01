package events_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/events"
)

// fed is a message of the stream: an event of queue q with that id, or a record.
func fed(t *testing.T, subject, id, body string) *events.Event {
	t.Helper()
	h := nats.Header{"Zulip-Queue-Id": {"q"}}
	if record, is := strings.CutPrefix(subject, "bridge."); is {
		record, _, _ = strings.Cut(record, ".")
		h.Set("Bridge-Record", record)
		h.Set("Bridge-Record-Id", "w-"+id)
	} else {
		h.Set("Zulip-Event-Id", id)
		h.Set("Zulip-Event-Type", subject)
		h.Set("Zulip-Origin", "live")
	}
	e, err := events.Decode("zulip.acme."+subject, h, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// state is a whole one of queue q, up to its event 5.
var state = [][2]string{
	{"bridge.state-begin", `{"record":"state-begin","queue_id":"q","event_id":5,"sections":["users","channels"]}`},
	{"bridge.state.users", `{"record":"state","queue_id":"q","event_id":5,"section":"users","member":"realm_users","piece":1,"of":2,` +
		`"elements":[{"user_id":1,"full_name":"Ada","email":"ada@example.com","is_bot":false},` +
		`{"user_id":2,"full_name":"Helper","email":"helper@example.com","is_bot":true}]}`},
	{"bridge.state.users", `{"record":"state","queue_id":"q","event_id":5,"section":"users","member":"realm_non_active_users",` +
		`"piece":2,"of":2,"elements":[{"user_id":3,"full_name":"Gone","email":"gone@example.com","is_bot":false}]}`},
	{"bridge.state.channels", `{"record":"state","queue_id":"q","event_id":5,"section":"channels","member":"streams","piece":1,"of":1,` +
		`"elements":[{"stream_id":7,"name":"general","is_archived":false},{"stream_id":8,"name":"old","is_archived":true}]}`},
	{"bridge.state-end", `{"record":"state-end","queue_id":"q","event_id":5,"begin_seq":1,"pieces":{"users":2,"channels":1,"emoji":0}}`},
}

func apply(t *testing.T, w *events.World, messages ...[2]string) {
	t.Helper()
	for _, m := range messages {
		subject, id, _ := strings.Cut(m[0], "/")
		if err := w.Apply(fed(t, subject, id, m[1])); err != nil {
			t.Errorf("%s: %v", m[0], err)
		}
	}
}

// knows is all that a World answers, in a few words.
func knows(w *events.World) string {
	var s []string
	for id := range int64(20) {
		if u, ok := w.User(id); ok {
			s = append(s, fmt.Sprintf("%d=%s %s bot:%t active:%t", u.ID, u.Name, u.Email, u.Bot, u.Active))
		}
		if c, ok := w.Channel(id); ok {
			s = append(s, fmt.Sprintf("#%d=%s live:%t", c.ID, c.Name, c.Live))
		}
		if p, ok := w.Place(id); ok {
			s = append(s, fmt.Sprintf("m%d in %d>%s", id, p.ChannelID, p.Topic))
		}
	}
	return strings.Join(s, ", ")
}

const stateKnown = "1=Ada ada@example.com bot:false active:true, 2=Helper helper@example.com bot:true active:true, " +
	"3=Gone gone@example.com bot:false active:false, #7=general live:true, #8=old live:false"

// Each event that changes who, which channel or where, in shapes of a Zulip 10.2 and later.
func TestWorldEvents(t *testing.T) {
	for name, c := range map[string]struct {
		messages [][2]string
		want     string
	}{
		"a state": {nil, stateKnown},
		"events that are in it already": {[][2]string{
			{"realm_user/4", `{"type":"realm_user","op":"update","person":{"user_id":1,"full_name":"Ada, before"}}`},
			{"realm_user/5", `{"type":"realm_user","op":"add","person":{"user_id":3,"full_name":"Gone"}}`},
			{"stream/5", `{"type":"stream","op":"delete","streams":[{"stream_id":7}],"stream_ids":[7]}`}}, stateKnown},
		"people": {[][2]string{
			{"realm_user/6", `{"type":"realm_user","op":"update","person":{"user_id":1,"full_name":"Ada L."}}`},
			{"realm_user/7", `{"type":"realm_user","op":"update","person":{"user_id":1,"new_email":"al@example.com"}}`},
			{"realm_user/8", `{"type":"realm_user","op":"update","person":{"user_id":2,"is_active":false}}`},
			{"realm_user/9", `{"type":"realm_user","op":"update","person":{"user_id":3,"is_active":true}}`},
			{"realm_user/10", `{"type":"realm_user","op":"add","person":{"user_id":4,"full_name":"New","email":"n@example.com","is_bot":false}}`},
			{"realm_user/11", `{"type":"realm_user","op":"remove","person":{"user_id":3,"full_name":"Gone"}}`},
			{"realm_user/12", `{"type":"realm_user","op":"update","person":{"user_id":9,"full_name":"Nobody"}}`}},
			"1=Ada L. al@example.com bot:false active:true, 2=Helper helper@example.com bot:true active:false, " +
				"3=Gone gone@example.com bot:false active:false, 4=New n@example.com bot:false active:true, " +
				"#7=general live:true, #8=old live:false"},
		"channels": {[][2]string{
			{"stream/6", `{"type":"stream","op":"create","streams":[{"stream_id":9,"name":"new"},{"stream_id":10,"name":"newer"}]}`},
			{"stream/7", `{"op":"update","type":"stream","property":"name","value":"lobby","stream_id":7,"name":"general"}`},
			{"stream/8", `{"op":"update","type":"stream","property":"description","value":"x","stream_id":7,"name":"lobby"}`},
			{"stream/9", `{"op":"update","type":"stream","property":"is_archived","value":true,"stream_id":9,"name":"new"}`},
			{"stream/10", `{"op":"update","type":"stream","property":"is_archived","value":false,"stream_id":8,"name":"old"}`},
			{"stream/11", `{"type":"stream","op":"delete","streams":[{"stream_id":10}]}`},
			{"subscription/12", `{"type":"subscription","op":"add","subscriptions":[{"stream_id":11,"name":"secret"}]}`},
			{"subscription/13", `{"type":"subscription","op":"remove","subscriptions":[{"stream_id":11,"name":"secret"}]}`}},
			"1=Ada ada@example.com bot:false active:true, 2=Helper helper@example.com bot:true active:true, " +
				"3=Gone gone@example.com bot:false active:false, #7=lobby live:true, #8=old live:true, #9=new live:false, " +
				"#10=newer live:false, #11=secret live:true"},
		"places": {[][2]string{
			{"message/1", `{"type":"message","message":{"id":12,"stream_id":7,"subject":"lunch"}}`}, // no state has messages
			{"message/6", `{"type":"message","message":{"id":13,"type":"private","subject":""}}`},
			{"message/7", `{"type":"message","message":{"id":14,"stream_id":7,"subject":"lunch"}}`},
			{"message/8", `{"type":"message","message":{"id":15,"stream_id":7,"subject":"lunch"}}`},
			{"update_message/9", `{"type":"update_message","user_id":1,"message_id":14,"message_ids":[14],"stream_id":7,"orig_subject":"lunch","subject":"dinner"}`},
			{"update_message/10", `{"type":"update_message","user_id":1,"message_id":15,"message_ids":[15,16],"stream_id":7,"new_stream_id":8,"orig_subject":"lunch"}`},
			{"update_message/11", `{"type":"update_message","user_id":1,"message_id":12,"message_ids":[12],"stream_id":7,"content":"edited","orig_content":"x"}`},
			{"delete_message/12", `{"type":"delete_message","message_ids":[13,99],"message_type":"private"}`}},
			stateKnown + ", m12 in 7>lunch, m14 in 7>dinner, m15 in 8>lunch, m16 in 8>lunch"},
		"what is about something else": {[][2]string{
			{"heartbeat/6", `{"type":"heartbeat"}`}, {"bridge.queue/7", `{"record":"queue"}`}}, stateKnown},
		"a state that is cut off counts for nothing": {[][2]string{state[0],
			{"bridge.state.users/9", `{"record":"state","queue_id":"q","section":"users","member":"realm_users","piece":1,"of":2,"elements":[]}`}},
			stateKnown},
		"nor one of which a piece is missing":     {[][2]string{state[0], state[1], state[3], state[4]}, stateKnown},
		"nor one of which the first is missing":   {[][2]string{state[0], state[2], state[3], state[4]}, stateKnown},
		"nor one of which the beginning is gone":  {state[1:], stateKnown},
		"nor one of which all pieces were purged": {[][2]string{state[0], state[4]}, stateKnown},
	} {
		t.Run(name, func(t *testing.T) {
			w := events.NewWorld()
			apply(t, w, state...)
			if !w.Ready("users") || !w.Ready("channels") || w.Ready("emoji") {
				t.Error("the state is not taken for whole")
			}
			apply(t, w, c.messages...)
			if got := knows(w); got != c.want {
				t.Errorf("it knows\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// A gap ends what is known of places, and that nothing is missing.
func TestWorldGap(t *testing.T) {
	w := events.NewWorld()
	apply(t, w, state...)
	apply(t, w, [2]string{"message/6", `{"type":"message","message":{"id":12,"stream_id":7,"subject":"lunch"}}`},
		[2]string{"bridge.gap-opened/7", `{"record":"gap-opened"}`})
	if got := knows(w); got != stateKnown || w.Ready("users") || w.Ready("channels") {
		t.Errorf("behind a gap it knows %s, and says that it is ready: %t", got, w.Ready("users"))
	}
	apply(t, w, state...)
	if !w.Ready("users") {
		t.Error("the next state does not count")
	}
}

// Places are kept of so many messages, the first ones go.
func TestWorldForgets(t *testing.T) {
	w := events.NewWorld()
	w.Messages = 3
	for id := range 10 {
		apply(t, w, [2]string{fmt.Sprintf("message/%d", id),
			fmt.Sprintf(`{"type":"message","message":{"id":%d,"stream_id":7,"subject":"t"}}`, id)})
	}
	if got := knows(w); got != "m7 in 7>t, m8 in 7>t, m9 in 7>t" {
		t.Error(got)
	}
}

// What cannot be read is an error of that message, and the next is taken.
func TestWorldUnreadable(t *testing.T) {
	for _, m := range [][2]string{
		{"realm_user/6", `{"person":7}`}, {"stream/6", `{"op":"update","property":"name","value":7,"stream_id":7}`},
		{"message/6", `{}`}, {"bridge.state-begin/6", `[]`},
	} {
		w := events.NewWorld()
		apply(t, w, state...)
		subject, id, _ := strings.Cut(m[0], "/")
		if err := w.Apply(fed(t, subject, id, m[1])); err == nil {
			t.Errorf("%s is read: %s", m[0], m[1])
		}
		apply(t, w, [2]string{"message/7", `{"type":"message","message":{"id":12,"stream_id":7,"subject":"lunch"}}`})
		if got := knows(w); got != stateKnown+", m12 in 7>lunch" {
			t.Error(got)
		}
	}
	e := fed(t, "message", "6", "")
	e.Stub = &events.Stub{Object: "acme/q/6"}
	if err := events.NewWorld().Apply(e); !errors.Is(err, events.ErrStub) {
		t.Error(err)
	}
}

// follow is the service of the README: it begins with the newest state, and goes on
// with what the stream holds behind it.
func follow(ctx context.Context, js jetstream.JetStream, tell func(*events.World, *events.Event) error) error {
	world, next, err := events.LoadWorld(ctx, js, "ZULIP_acme", "acme")
	if err != nil {
		return err
	}
	consumer, err := js.OrderedConsumer(ctx, "ZULIP_acme", jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: next,
	})
	if err != nil {
		return err
	}
	reader := events.Reader{Consumer: consumer, JetStream: js, Done: next - 1}
	for event, err := range reader.All(ctx) {
		if err != nil {
			return err
		}
		if err := world.Apply(event); err != nil {
			return err
		}
		if err := tell(world, event); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// LoadWorld takes the newest whole state, whatever was purged before it and whatever was
// begun behind it; and says so where there is none.
func TestLoadWorld(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("world_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(readme), "```go\nfunc follow(")
	shown, _, _ = strings.Cut(shown, "```")
	if shown == "" || !strings.Contains(string(source), "\nfunc follow("+shown) {
		t.Error("the service of the README is not the one that is tested here")
	}

	_, js := acme(t, 1)
	ctx := limited(t)
	if _, _, err := events.LoadWorld(ctx, js, "ZULIP_acme", "acme"); !errors.Is(err, events.ErrNoState) ||
		!strings.Contains(err.Error(), "--state") {
		t.Errorf("without a state: %v", err)
	}
	store := func(m [2]string, id string) {
		e := fed(t, m[0], id, strings.ReplaceAll(m[1], `"begin_seq":1`, `"begin_seq":8`))
		put(t, js, e.Subject, e.Header, string(e.Raw))
	}
	for i, m := range state { // an older one, at 2
		store(m, fmt.Sprintf("a%d", i))
	}
	put(t, js, "zulip.acme.heartbeat", stored("heartbeat", "", "2"), `{"type":"heartbeat"}`)
	for i, m := range state { // at 8
		store(m, fmt.Sprintf("b%d", i))
	}
	s, err := js.Stream(ctx, "ZULIP_acme")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSubject("zulip.acme.bridge.state.*"), jetstream.WithPurgeSequence(8)); err != nil {
		t.Fatal(err)
	}
	for i, m := range state[:2] { // at 13, not whole
		store(m, fmt.Sprintf("c%d", i))
	}
	w, next, err := events.LoadWorld(ctx, js, "ZULIP_acme", "acme")
	if err != nil || next != 13 || knows(w) != stateKnown {
		t.Fatalf("%v, from %d on", err, next)
	}
	put(t, js, "zulip.acme.message", stored("message", "", "6"),
		`{"type":"message","message":{"id":12,"stream_id":7,"subject":"lunch"}}`)
	done := errors.New("done")
	err = follow(ctx, js, func(world *events.World, e *events.Event) error {
		if e.Type == "message" {
			if knows(world) != stateKnown+", m12 in 7>lunch" {
				t.Errorf("it knows %s", knows(world))
			}
			return done
		}
		return nil
	})
	if err != done {
		t.Error(err)
	}

	// The hole where the older pieces were is none to a reader.
	r := events.Reader{Consumer: ordered(t, js, 1)}
	for e, err := range r.All(ctx) {
		if err != nil || e.Missing > 0 {
			t.Errorf("at %d: %d missing, %v", e.Seq, e.Missing, err)
		}
		if e.Type == "message" {
			break
		}
	}
}
