package tail

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/events"
	"zulip-nats/stream/natstest"
	"zulip-nats/subjects"
)

// bus is a realm's stream, and what is published there by hand.
type bus struct {
	*testing.T
	js     jetstream.JetStream
	stream jetstream.Stream
	next   int64 // event id
}

func newBus(t *testing.T, js jetstream.JetStream) *bus {
	t.Helper()
	natstest.CreateStream(t, js, jetstream.StreamConfig{Name: "ZULIP_acme", Subjects: []string{"zulip.acme.>"}})
	s, err := js.Stream(t.Context(), "ZULIP_acme")
	if err != nil {
		t.Fatal(err)
	}
	return &bus{T: t, js: js, stream: s}
}

// msg is an event as the bridge stores it.
func (b *bus) msg(typ, body string) *nats.Msg {
	b.next++
	h := nats.Header{"Zulip-Queue-Id": {"q"}, "Zulip-Event-Id": {strconv.FormatInt(b.next, 10)}, "Zulip-Event-Type": {typ},
		"Zulip-Origin": {"live"}, "Bridge-Writer": {"w"}}
	var e struct{ Message struct{ ID int64 } }
	if json.Unmarshal([]byte(body), &e); e.Message.ID != 0 {
		h.Set("Zulip-Message-Id", strconv.FormatInt(e.Message.ID, 10))
	}
	return &nats.Msg{Subject: "zulip.acme." + typ, Header: h, Data: []byte(body)}
}

func (b *bus) put(m *nats.Msg) uint64 {
	b.Helper()
	ack, err := b.js.PublishMsg(b.Context(), m)
	if err != nil {
		b.Fatal(err)
	}
	return ack.Sequence
}

func (b *bus) event(typ, body string) uint64 { b.Helper(); return b.put(b.msg(typ, body)) }

// placed is an event of a stream by place.
func (b *bus) placed(typ, place, body string) uint64 {
	b.Helper()
	m := b.msg(typ, body)
	m.Subject += "." + place
	return b.put(m)
}

func (b *bus) record(kind, record, body string) uint64 {
	b.Helper()
	b.next++
	return b.put(&nats.Msg{Subject: "zulip.acme.bridge." + kind, Data: []byte(body), Header: nats.Header{
		"Zulip-Queue-Id": {"q"}, "Bridge-Record": {record}, "Bridge-Record-Id": {strconv.FormatInt(b.next, 10)}}})
}

// The day of all messages: 2026-11-25 01:50:30 UTC, and each is a second later.
const day = 1795571430

func said(id int64, channel, topic, sender, text string) string {
	return fmt.Sprintf(`{"type":"message","message":{"id":%d,"sender_id":%d,"sender_full_name":%q,"type":"stream",`+
		`"stream_id":%d,"display_recipient":%q,"subject":%q,"content":%q,"timestamp":%d},"flags":[]}`, id, len(sender),
		sender, len(channel), channel, topic, text, day+id)
}

func direct(id int64, sender, text string, to ...string) string {
	people := []map[string]any{{"id": len(sender), "full_name": sender}}
	for _, name := range to {
		people = append(people, map[string]any{"id": len(name), "full_name": name})
	}
	list, _ := json.Marshal(people)
	return fmt.Sprintf(`{"type":"message","message":{"id":%d,"sender_id":%d,"sender_full_name":%q,"type":"private",`+
		`"display_recipient":%s,"subject":"","content":%q,"timestamp":%d}}`, id, len(sender), sender, list, text, day+id)
}

func reaction(op string, message int64) string {
	return fmt.Sprintf(`{"type":"reaction","op":%q,"user_id":5,"user":{"user_id":5,"full_name":"Grace"},"message_id":%d,`+
		`"emoji_code":"1f389","emoji_name":"tada","reaction_type":"unicode_emoji"}`, op, message)
}

// shown runs to the end of the stream, and gives what was printed.
func (b *bus) shown(o Options, width int) []string {
	b.Helper()
	var out bytes.Buffer
	o.JetStream, o.Stream, o.Realm, o.NoFollow = b.js, "ZULIP_acme", "acme", true
	if o.Show == nil {
		o.Show = &Pretty{W: &out, Width: width, Zone: time.UTC}
	} else if _, ok := o.Show.(JSON); ok {
		o.Show = JSON{W: &out}
	} else {
		o.Show = Raw{W: &out}
	}
	if o.From == 0 && o.Last == 0 && o.Since.IsZero() {
		o.From = 1
	}
	ctx, cancel := context.WithTimeout(b.Context(), 2*time.Minute)
	defer cancel()
	if err := Run(ctx, o); err != nil {
		b.Fatal(err)
	}
	if ctx.Err() != nil {
		b.Fatalf("it did not come to an end:\n%s", out.String())
	}
	b.alone()
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
}

// consumers are the names of the consumers that the stream has.
func (b *bus) consumers() (names []string) {
	b.Helper()
	list := b.stream.ConsumerNames(context.Background())
	for n := range list.Name() {
		names = append(names, n)
	}
	if err := list.Err(); err != nil {
		b.Fatal(err)
	}
	return names
}

// alone fails if a consumer was left behind. An answer of a busy server that came too late
// for who deleted it is no reason; that the server does so by itself, within a minute, is.
func (b *bus) alone() {
	b.Helper()
	for end := time.Now().Add(idleLife / 2); len(b.consumers()) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			b.Errorf("consumers were left behind: %q", b.consumers())
			return
		}
	}
}

func compare(t *testing.T, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		var g, w string
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		// The time of what has none of its own is that of its storing.
		if len(w) > 8 && strings.HasPrefix(w, "--:--:--") && len(g) > 8 {
			g = "--:--:--" + g[8:]
		}
		if g != w {
			t.Errorf("line %d\ngot  %q\nwant %q", i+1, g, w)
		}
	}
}

// storedDay takes the lines with a day away: what has no time of its own is of the day of
// the test.
func storedDay(lines []string) []string {
	return slices.DeleteFunc(lines, regexp.MustCompile(`^── [A-Z][a-z]+day, `).MatchString)
}

func TestPretty(t *testing.T) {
	b := newBus(t, natstest.Start(t).JetStream())
	b.record("queue", "queue", `{"record":"queue","why":"first","queue_id":"8b5c"}`)
	b.event("message", said(1, "ops", "disks", "Ada", "/var is\n\n*full*"))
	b.event("typing", `{"type":"typing","op":"start","sender":{"user_id":3},"message_type":"stream","stream_id":3,"topic":"disks"}`)
	b.event("message", direct(2, "Ada", "lunch?", "Grace", "Bridge Bot"))
	b.event("message", direct(3, "Ada", "note to self"))
	b.event("reaction", reaction("add", 1))
	b.event("reaction", reaction("remove", 2))
	b.event("reaction", reaction("add", 77)) // nobody has it
	b.event("update_message", `{"type":"update_message","user_id":3,"message_id":1,"message_ids":[1],"stream_id":3,`+
		`"stream_name":"ops","orig_content":"old","content":"/var is fine","rendering_only":false}`)
	b.event("update_message", `{"type":"update_message","user_id":null,"message_id":1,"content":"x","rendering_only":true}`)
	b.event("update_message", `{"type":"update_message","user_id":5,"message_id":1,"message_ids":[1,4],"stream_id":3,`+
		`"stream_name":"ops","orig_subject":"disks","subject":"full disks","propagate_mode":"change_all"}`)
	b.event("reaction", reaction("add", 1)) // in its new place, with its new text
	b.event("update_message", `{"type":"update_message","user_id":5,"message_id":1,"message_ids":[1],"stream_id":3,`+
		`"stream_name":"ops","orig_subject":"full disks","subject":"✔ full disks"}`)
	b.event("update_message", `{"type":"update_message","user_id":5,"message_id":1,"message_ids":[1],"stream_id":3,`+
		`"stream_name":"ops","orig_subject":"✔ full disks","subject":"full disks"}`)
	b.event("message", said(5, "design", "blue", "Zoë", "41 shades"))
	b.event("update_message", `{"type":"update_message","user_id":5,"message_id":1,"message_ids":[1],"stream_id":3,`+
		`"stream_name":"ops","orig_subject":"full disks","new_stream_id":6}`)
	b.event("delete_message", `{"type":"delete_message","message_ids":[5],"message_type":"stream","stream_id":6,"topic":"blue"}`)
	b.event("delete_message", `{"type":"delete_message","message_id":2,"message_type":"private"}`)
	b.event("subscription", `{"type":"subscription","op":"peer_add","stream_ids":[3],"user_ids":[5,99]}`)
	b.event("stream", `{"type":"stream","op":"create","streams":[{"stream_id":12,"name":"cats"}]}`)
	b.event("realm_user", `{"type":"realm_user","op":"update","person":{"user_id":5,"avatar_url":"x","role":400}}`)
	b.event("user_group", `{"type":"user_group","op":"add_members","group_id":2,"user_ids":[5]}`)
	b.event("update_message_flags", `{"type":"update_message_flags","op":"add","flag":"read","messages":[1,2]}`)
	b.event("presence", `{"type":"presence","user_id":3,"presence":{"website":{"status":"active"}}}`)
	b.event("heartbeat", `{"type":"heartbeat"}`)
	b.event("alert_words", `{"type":"alert_words","alert_words":["x"]}`)
	b.event("user_status", `{"type":"user_status","user_id":5,"status_text":"at lunch 🍜"}`)
	b.event("user_status", `{"type":"user_status","user_id":5,"status_text":""}`)
	b.event("user_status", `{"type":"user_status","user_id":5,"away":true}`)
	b.record("queue", "queue", `{"record":"queue","why":"kept","queue_id":"8b5c"}`)
	b.record("gap", "gap-opened", `{"record":"gap-opened","cause":"Zulip has dropped the queue","noticed":"2026-11-25T02:00:00Z",`+
		`"last_stored":"2026-11-25T01:51:00Z"}`)
	history := b.msg("message", said(6, "ops", "disks", "Ada", "meanwhile"))
	history.Header.Del("Zulip-Event-Id")
	history.Header.Set("Zulip-Origin", "backfill")
	b.put(history)
	b.record("gap", "gap-closed", `{"record":"gap-closed","closed":"2026-11-25T02:00:09Z","messages_refilled":1}`)
	b.put(&nats.Msg{Subject: "zulip.acme.message", Data: []byte("somebody else's")})
	b.event("message", `{"type":"message","mess`)

	want := []string{
		"--:--:-- a queue is followed (first): 8b5c",
		"01:50:31 #ops > disks  Ada: /var is *full*",
		"01:50:32 direct to Grace, Bridge Bot  Ada: lunch?",
		"01:50:33 direct to themselves  Ada: note to self",
		"--:--:-- #ops > disks  Grace put 🎉 on Ada: /var is *full*",
		"--:--:-- direct to Grace, Bridge Bot  Grace took 🎉 from Ada: lunch?",
		"--:--:-- Grace put 🎉 on message 77",
		"--:--:-- #ops > disks  Ada edited: /var is fine (was: old)",
		"--:--:-- #ops > disks  Grace moved 2 messages to topic full disks",
		"--:--:-- #ops > full disks  Grace put 🎉 on Ada: /var is fine",
		"--:--:-- #ops > full disks  Grace resolved the topic",
		"--:--:-- #ops > ✔ full disks  Grace opened the topic again",
		"01:50:35 #design > blue  Zoë: 41 shades",
		"--:--:-- #ops > full disks  Grace moved 1 message to #design > full disks",
		"--:--:-- #design > blue  a message of Zoë was deleted",
		"--:--:-- direct to Grace, Bridge Bot  a message of Ada was deleted",
		"--:--:-- Grace, user 99 subscribed to #ops",
		"--:--:-- new: #cats",
		"--:--:-- Grace changed: avatar_url, role",
		"--:--:-- Grace joined group 2",
		"--:--:-- 2 messages marked read",
		`--:--:-- alert_words {"type":"alert_words","alert_words":["x"]}`,
		"--:--:-- Grace: at lunch 🍜",
		"--:--:-- Grace has no status any more",
		`--:--:-- user_status {"type":"user_status","user_id":5,"away":true}`,
		"── 02:00:00 gap: Zulip has dropped the queue; nothing came since 01:51:00 ──────",
		"01:50:36 #ops > disks  (read back) Ada: meanwhile",
		"── 02:00:09 gap closed: 1 message read back, edits and reactions are lost ──────",
		`--:--:-- message  the body of a message on "zulip.acme.message" is not what its type "message" should be: unexpected end of JSON input`,
	}
	compare(t, storedDay(b.shown(Options{}, 0)), want)

	// What only tells that somebody is there is shown to whoever asks for it.
	compare(t, storedDay(b.shown(Options{Types: []string{"typing", "presence", "heartbeat"}, From: 1}, 0)), []string{
		"--:--:-- #3 > disks  user 3 is typing",
		"--:--:-- user 3 is active (website)",
		"--:--:-- nothing new, still here",
		"── 02:00:00 gap: Zulip has dropped the queue; nothing came since 01:51:00 ──────",
		"── 02:00:09 gap closed: 1 message read back, edits and reactions are lost ──────",
	})

	// So is that the bridge wrote its record again.
	compare(t, storedDay(b.shown(Options{Types: []string{"bridge"}, From: 1}, 0))[:2], []string{
		"--:--:-- a queue is followed (first): 8b5c",
		"--:--:-- the record of the queue was written again: 8b5c",
	})

	// Begun behind the message, a reaction is looked up.
	compare(t, storedDay(b.shown(Options{Types: []string{"reaction"}, From: 6, Channel: "OPS"}, 0))[:2], []string{
		"--:--:-- #ops > disks  Grace put 🎉 on Ada: /var is *full*",
		"--:--:-- #ops > disks  Grace put 🎉 on Ada: /var is *full*",
	})

	// Since a time: that of the storing.
	if got := storedDay(b.shown(Options{Since: time.Now().Add(-time.Hour)}, 0)); len(got) != len(want) {
		t.Errorf("since an hour ago: %d lines, not %d", len(got), len(want))
	}

	// Each line fits the width.
	for _, w := range []int{20, 40, 80, 81} {
		for _, l := range b.shown(Options{}, w) {
			if n := width(l); n > w {
				t.Errorf("%d columns of %d: %q", n, w, l)
			}
		}
	}
	narrow := storedDay(b.shown(Options{Types: []string{"message"}}, 30))
	compare(t, narrow[:2], []string{"01:50:31 #ops > disks  Ada: /…", "01:50:32 direct to G…  Ada: l…"})

	// Limits took some of it.
	for _, seq := range []uint64{2, 3} {
		if err := b.stream.DeleteMsg(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
	}
	compare(t, storedDay(b.shown(Options{}, 60))[1:3], []string{
		"── 2 messages are not in the stream any more ───────────────",
		"01:50:32 direct to Grace, Bridge…  Ada: lunch?",
	})
}

// A line of somebody else's, from side to side.
func TestAcross(t *testing.T) {
	var out bytes.Buffer
	p := &Pretty{W: &out, Width: 30, Color: true}
	for _, good := range []bool{true, false} {
		if err := p.Across(good, "NATS is\nback"); err != nil {
			t.Fatal(err)
		}
	}
	p.Color = false
	if err := p.Across(true, strings.Repeat("long ", 10)); err != nil {
		t.Fatal(err)
	}
	want := "\x1b[32m── NATS is back ──────────────\x1b[0m\n" +
		"\x1b[1;31m── NATS is back ──────────────\x1b[0m\n" +
		"── long long long long lon… ──\n"
	if out.String() != want {
		t.Errorf("got\n%q, want\n%q", out.String(), want)
	}
}

func TestLast(t *testing.T) {
	b := newBus(t, natstest.Start(t).JetStream())
	id := int64(0)
	for i := range 3000 { // more than one window
		switch {
		case i%1000 == 0:
			id++
			b.event("message", said(id, "rare", "x", "Ada", fmt.Sprint("rare ", id)))
			b.event("reaction", reaction("add", id))
		case i%10 == 0:
			id++
			b.event("message", said(id, "ops", "x", "Ada", fmt.Sprint("often ", id)))
		default:
			b.event("heartbeat", `{"type":"heartbeat"}`)
		}
	}
	texts := func(o Options) (all []string) {
		t.Helper()
		for _, l := range storedDay(b.shown(o, 0)) {
			_, l, _ = strings.Cut(l, "> x  ")
			all = append(all, l)
		}
		return all
	}
	for _, c := range []struct {
		o    Options
		want []string
	}{
		{Options{Last: 2}, []string{"Ada: often 299", "Ada: often 300"}},
		{Options{Last: 2, Channel: "Rare"}, []string{"Ada: rare 201", "Grace put 🎉 on Ada: rare 201"}},
		{Options{Last: 3, Channel: "rare", Types: []string{"message"}}, []string{"Ada: rare 1", "Ada: rare 101", "Ada: rare 201"}},
		{Options{Last: 2, Types: []string{"reaction"}}, []string{"Grace put 🎉 on Ada: rare 101", "Grace put 🎉 on Ada: rare 201"}},
		{Options{Last: 9, Channel: "rare", Types: []string{"message"}}, []string{"Ada: rare 1", "Ada: rare 101", "Ada: rare 201"}},
	} {
		if got := texts(c.o); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %q", c.o, got)
		}
	}
	if got := b.shown(Options{Last: 4, Show: JSON{}}, 0); len(got) != 4 || !strings.Contains(got[0], "heartbeat") {
		t.Errorf("JSON: %q", got)
	}
}

// Look-ups: each message once, and never by a scan.
func TestLookUps(t *testing.T) {
	b := newBus(t, natstest.Start(t).JetStream())
	for i := int64(1); i <= 2000; i++ {
		id := 10 * i
		if i%2 == 0 { // ids do not rise strictly
			id -= 15
		}
		if _, err := b.js.PublishMsgAsync(b.msg("message", said(id, "ops", "x", "Ada", fmt.Sprint("text ", id)))); err != nil {
			t.Fatal(err)
		}
		if i%5 == 0 {
			b.put(&nats.Msg{Subject: "zulip.acme.message", Data: []byte("somebody else's")})
		}
	}
	<-b.js.PublishAsyncComplete()
	end := b.event("heartbeat", "{}")
	realm, err := subjects.ParseRealm("acme")
	if err != nil {
		t.Fatal(err)
	}
	behind := func(seq uint64) *events.Event { return &events.Event{Seq: seq, Subject: "zulip.acme.reaction"} }
	x := index{js: b.js, stream: b.stream, realm: realm}
	asked := 0
	for _, c := range []struct {
		id   int64
		want string
	}{{10, "text 10"}, {5, "text 5"}, {19990, "text 19990"}, {19985, "text 19985"}, {10010, "text 10010"}, {10005, "text 10005"},
		{7, ""}, {3000000, ""}, {1, ""}} {
		for range 3 {
			if m := x.message(t.Context(), c.id, behind(end)); m.text != c.want {
				t.Errorf("%d: %+v", c.id, m)
			}
		}
		if n := x.asked - asked; n > searchSteps+1 || n == 0 {
			t.Errorf("%d: %d questions", c.id, n)
		}
		asked = x.asked
	}
	// What stands behind the event that is about it is not that message.
	x = index{js: b.js, stream: b.stream, realm: realm}
	if m := x.message(t.Context(), 30, behind(3)); m.known { // it is the third
		t.Errorf("behind: %+v", m)
	}
	// Where nothing may be asked, nothing is waited for again.
	x = index{js: b.js, stream: b.stream, realm: realm}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	x.message(gone, 1, behind(end))
	if x.message(gone, 2, behind(end)); x.asked != 1 {
		t.Errorf("asked %d times", x.asked)
	}
}

// A stream by place is shown like one by type, whatever of its records is left, also when
// it is empty at first.
func TestByPlace(t *testing.T) {
	b := newBus(t, natstest.Start(t).JetStream())
	from := func(o Options) []string {
		b.Helper()
		return storedDay(b.shown(o, 0))
	}
	queue := b.record("queue", "queue", `{"record":"queue","why":"first","queue_id":"8b5c","subjects":"by-place"}`)
	b.placed("message", "channel.3", said(1, "ops", "disks", "Ada", "/var is full"))
	b.placed("message", "direct", direct(2, "Ada", "lunch?", "Grace"))
	b.placed("presence", "none", `{"type":"presence","user_id":3,"presence":{"website":{"status":"active"}}}`)
	b.placed("message", "channel.6", said(3, "design", "blue", "Zoë", "41 shades"))
	about := b.placed("reaction", "channel.3", reaction("add", 1))
	b.placed("reaction", "direct", reaction("add", 2))
	b.placed("update_message", "channel.3", `{"type":"update_message","user_id":3,"message_id":1,"message_ids":[1],`+
		`"stream_id":3,"stream_name":"ops","orig_content":"/var is full","content":"/var is fine","rendering_only":false}`)
	b.placed("reaction", "none", reaction("remove", 2))
	b.placed("message_later", "direct", `{"type":"message_later"}`)
	const presence = "--:--:-- user 3 is active (website)"
	messages := []string{"01:50:31 #ops > disks  Ada: /var is full", "01:50:32 direct to Grace  Ada: lunch?",
		"01:50:33 #design > blue  Zoë: 41 shades"}
	reactions := []string{"--:--:-- #ops > disks  Grace put 🎉 on Ada: /var is full",
		"--:--:-- direct to Grace  Grace put 🎉 on Ada: lunch?", "--:--:-- direct to Grace  Grace took 🎉 from Ada: lunch?"}
	edit := "--:--:-- #ops > disks  Ada edited: /var is fine (was: /var is full)"
	later := `--:--:-- message_later {"type":"message_later"}`
	first := "--:--:-- a queue is followed (first): 8b5c"

	for range 2 { // with the queue's record, and where it is gone
		all := slices.Concat(messages, reactions[:2], []string{edit, reactions[2], later})
		if queue != 0 {
			all = append([]string{first}, all...)
		}
		compare(t, from(Options{}), all)
		compare(t, from(Options{Types: []string{"message"}}), messages)
		compare(t, from(Options{Types: []string{"presence", "update_message"}, Last: 2}), []string{presence, edit})
		compare(t, from(Options{Types: []string{"message"}, Last: 2}), messages[1:])
		compare(t, from(Options{Types: []string{"message", "reaction"}, Channel: "ops"}),
			[]string{messages[0], reactions[0]})
		// Begun behind the messages, they are looked up.
		compare(t, from(Options{From: about}), slices.Concat(reactions[:2], []string{edit, reactions[2], later}))
		compare(t, from(Options{Types: []string{"reaction"}, Last: 3}), reactions)
		compare(t, from(Options{Types: []string{"update_message"}, Channel: "Ops", From: about}), []string{edit})
		if got := b.shown(Options{Types: []string{"message"}, Show: JSON{}}, 0); len(got) != 3 ||
			!strings.Contains(got[1], `"zulip.acme.message.direct"`) {
			t.Errorf("JSON: %q", got)
		}
		if queue != 0 {
			if err := b.stream.DeleteMsg(t.Context(), queue); err != nil {
				t.Fatal(err)
			}
			queue = 0
		}
	}

	// One filter, once the layout is known.
	realm, err := subjects.ParseRealm("acme")
	if err != nil {
		t.Fatal(err)
	}
	filters := func(show Printer, types ...string) string {
		t.Helper()
		v := viewer{Options: Options{Types: types}}
		v.pretty, _ = show.(*Pretty)
		byPlace, err := v.byPlace(t.Context(), b.stream, realm)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(v.filters(realm, []string{"zulip.acme.>"}, byPlace), " ")
	}
	for _, c := range []struct{ got, want string }{
		{filters(JSON{}), ""},
		{filters(JSON{}, "message"), "zulip.acme.message.>"},
		{filters(JSON{}, "bridge"), "zulip.acme.bridge.>"},
		{filters(JSON{}, "message", "reaction"), "zulip.acme.>"},
		{filters(&Pretty{}, "message"), "zulip.acme.>"}, // and gaps
	} {
		if c.got != c.want {
			t.Errorf("the filters are %q, want %q", c.got, c.want)
		}
	}

	// Followed from the beginning, when nobody can know the layout.
	if err := b.stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if got, want := filters(JSON{}, "message"), "zulip.acme.message zulip.acme.message.>"; got != want {
		t.Errorf("of an empty stream the filters are %q, want %q", got, want)
	}
	var out bytes.Buffer
	comes := func() {
		b.placed("message", "direct", direct(4, "Ada", "tea?", "Grace"))
		b.placed("reaction", "direct", reaction("add", 4))
		b.placed("message", "channel.3", said(5, "ops", "disks", "Ada", "/tmp too"))
	}
	err = Run(ctx, Options{JetStream: b.js, Stream: "ZULIP_acme", Realm: "acme", Types: []string{"message"},
		Show: &Pretty{W: &out, Zone: time.UTC}, Began: comes, Shown: func(e *events.Event) {
			if e.MessageID == 5 {
				cancel()
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, storedDay(strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")),
		[]string{"01:50:34 direct to Grace  Ada: tea?", "01:50:35 #ops > disks  Ada: /tmp too"})
}

// All that a channel's subjects hold is of the channel, by its name, those that it had
// before, and its id.
func TestChannelByPlace(t *testing.T) {
	b := newBus(t, natstest.Start(t).JetStream())
	store, err := b.js.CreateObjectStore(t.Context(), jetstream.ObjectStoreConfig{Bucket: "zulip_acme"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.PutBytes(t.Context(), "acme/q/1", []byte(`{"type":"submessage","message_id":1,"content":"long"}`)); err != nil {
		t.Fatal(err)
	}
	var ops []uint64 // what is of the channel
	of := func(seq uint64) { ops = append(ops, seq) }
	stub := b.msg("submessage", "")
	stub.Subject += ".channel.3"
	stub.Header.Set("Zulip-Object", "acme/q/1")
	of(b.put(stub)) // before anything says the name
	other := b.placed("newtype", "channel.33", `{"type":"newtype"}`)
	b.placed("newtype", "none", `{"type":"newtype"}`)
	early := b.placed("newtype", "channel.6", `{"type":"newtype"}`)
	blue := b.placed("message", "channel.6", said(1, "design", "blue", "Zoë", "41 shades"))
	digits := b.placed("message", "channel.1", said(2, "3", "x", "Ada", "a name of digits"))
	from := b.placed("newtype", "channel.3", `{"type":"newtype"}`)
	of(from)
	of(b.placed("user_topic", "channel.3", `{"type":"user_topic","stream_id":3,"topic_name":"x"}`))
	of(b.placed("typing", "channel.3", `{"type":"typing","op":"start","sender":{"user_id":3},"topic":"x"}`))
	moved := b.placed("reaction", "channel.3", reaction("add", 1)) // where the message is now
	of(moved)
	of(b.placed("update_message_flags", "channel.3", `{"type":"update_message_flags","op":"add","flag":"read","messages":[1]}`))
	of(b.placed("message", "channel.3", said(4, "ops", "disks", "Ada", "/var is full")))
	of(b.placed("subscription", "none", `{"type":"subscription","op":"peer_add","stream_ids":[3],"user_ids":[5]}`))
	b.placed("reaction", "direct", reaction("add", 5))
	late := b.placed("newtype", "channel.6", `{"type":"newtype"}`)
	of(b.placed("stream", "channel.3",
		`{"type":"stream","op":"update","property":"name","value":"Cave","name":"ops","stream_id":3}`))
	of(b.placed("newtype", "channel.3", `{"type":"newtype"}`))

	seqs := func(o Options) (all []uint64) {
		t.Helper()
		o.Show = JSON{}
		for _, text := range b.shown(o, 0) {
			var l struct{ Seq uint64 }
			if text != "" && json.Unmarshal([]byte(text), &l) != nil {
				t.Fatal(text)
			}
			if text != "" {
				all = append(all, l.Seq)
			}
		}
		return all
	}
	behind := ops[1:] // the first is before from
	for _, c := range []struct {
		o    Options
		want []uint64
	}{
		{Options{Channel: "OPS"}, ops},
		{Options{Channel: "cave"}, ops},
		{Options{Channel: "#3"}, ops},
		{Options{Channel: "3"}, slices.Concat(ops[:1], []uint64{digits}, behind)},
		{Options{Channel: "ops", From: from}, behind},
		{Options{Channel: "Cave", From: from}, behind},
		{Options{Channel: "ops", Last: 9}, ops[len(ops)-9:]},
		{Options{Channel: "#3", Types: []string{"newtype", "submessage"}}, []uint64{ops[0], from, ops[len(ops)-1]}},
		{Options{Channel: "design"}, []uint64{early, blue, moved, late}},
		{Options{Channel: "#33"}, []uint64{other}},
		{Options{Channel: "03"}, nil},
		{Options{Channel: "#ops"}, nil},
	} {
		if got := seqs(c.o); !slices.Equal(got, c.want) {
			t.Errorf("%q, from %d, last %d, %v: %v, want %v", c.o.Channel, c.o.From, c.o.Last, c.o.Types, got, c.want)
		}
	}
}

// By type, an id is in headers and in events; what has none goes by its message.
func TestChannelIDByType(t *testing.T) {
	b := newBus(t, natstest.Start(t).JetStream())
	named := func(typ, body, channel string) {
		b.Helper()
		m := b.msg(typ, body)
		m.Header.Set("Zulip-Channel-Id", channel)
		b.put(m)
	}
	named("message", said(1, "ops", "disks", "Ada", "/var is full"), "3")
	b.event("message", said(2, "ops", "disks", "Ada", "no header"))
	named("message", said(3, "design", "blue", "Zoë", "41 shades"), "6")
	b.event("message", direct(4, "Ada", "lunch?", "Grace"))
	b.event("reaction", reaction("add", 1))
	b.event("reaction", reaction("add", 3))
	b.event("reaction", reaction("add", 4))
	named("user_topic", `{"type":"user_topic","topic_name":"x"}`, "3")
	named("update_message", `{"type":"update_message","user_id":5,"message_id":3,"message_ids":[3],"stream_id":6,`+
		`"stream_name":"design","orig_subject":"blue","new_stream_id":3}`, "6")
	b.event("reaction", reaction("remove", 3))
	named("stream", `{"type":"stream","op":"update","property":"name","value":"cave","name":"ops","stream_id":3}`, "3")
	named("user_topic", `{"type":"user_topic","topic_name":"y"}`, "3")
	ops := []string{"01:50:31 #ops > disks  Ada: /var is full", "01:50:32 #ops > disks  Ada: no header",
		"--:--:-- #ops > disks  Grace put 🎉 on Ada: /var is full", `--:--:-- user_topic {"type":"user_topic","topic_name":"x"}`,
		"--:--:-- #design > blue  Grace moved 1 message to #ops > blue", "--:--:-- #ops > blue  Grace took 🎉 from Zoë: 41 shades",
		`--:--:-- #ops: name is now "cave"`, `--:--:-- user_topic {"type":"user_topic","topic_name":"y"}`}
	for _, channel := range []string{"3", "#3", "ops"} {
		compare(t, storedDay(b.shown(Options{Channel: channel}, 0)), ops)
	}
	compare(t, storedDay(b.shown(Options{Channel: "Cave"}, 0)), ops[6:]) // nothing says it before
}

// A stream by place that is made anew by type goes on, with a filter.
func TestMadeAnewByType(t *testing.T) {
	t.Parallel()
	b := newBus(t, natstest.Start(t).JetStream())
	b.placed("heartbeat", "none", `{"type":"heartbeat"}`)
	b.placed("message", "channel.3", said(1, "ops", "x", "Ada", "old"))
	var out natstest.Buffer
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Options{JetStream: b.js, Stream: "ZULIP_acme", Realm: "acme", From: 1, Types: []string{"message"},
			Show: Raw{W: &out}})
	}()
	natstest.Eventually(t, "the old stream", func() bool { return strings.Contains(out.String(), "old") })
	config := b.stream.CachedInfo().Config
	if err := b.js.DeleteStream(t.Context(), config.Name); err != nil {
		t.Fatal(err)
	}
	natstest.CreateStream(t, b.js, config) // the folder of the old one may be in the way for a while
	b.event("message", said(2, "ops", "x", "Ada", "new"))
	natstest.Eventually(t, "the new stream", func() bool { return strings.Contains(out.String(), "new") })
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// What is remembered has a bound.
func TestBounded(t *testing.T) {
	var b bounded[int, int]
	for i := range 3 * remembered {
		b.put(i, i)
		b.put(i, i+1)
	}
	if len(b.entries) != remembered || len(b.order) != remembered {
		t.Errorf("%d entries, %d in order", len(b.entries), len(b.order))
	}
	if _, ok := b.get(2*remembered - 1); ok {
		t.Error("an old one is still there")
	}
	if v, ok := b.get(2 * remembered); !ok || v != 2*remembered+1 {
		t.Error("a new one is not there")
	}
}

// Programs get each event as it was sent, stubs resolved.
func TestJSONAndRaw(t *testing.T) {
	b := newBus(t, natstest.Start(t).JetStream())
	store, err := b.js.CreateObjectStore(t.Context(), jetstream.ObjectStoreConfig{Bucket: "zulip_acme"})
	if err != nil {
		t.Fatal(err)
	}
	large := said(2, "ops", "x", "Ada", strings.Repeat("long ", 100))
	if _, err := store.PutBytes(t.Context(), "acme/q/2", []byte(large)); err != nil {
		t.Fatal(err)
	}
	first := `{"type":"message", "message":{"id":1,"content":"a<b>&c 12345678901234567890"},"n":1.0}`
	b.event("message", first)
	stub := b.msg("message", "")
	stub.Header.Set("Zulip-Object", "acme/q/2")
	stub.Header.Set("Nats-Msg-Id", "x")
	b.put(stub)
	b.event("heartbeat", `no JSON "`)

	got := b.shown(Options{Show: Raw{}}, 0)
	if want := []string{first, large, `no JSON "`}; !slices.Equal(got, want) {
		t.Errorf("raw: %q", got)
	}
	type line struct {
		Subject string
		Seq     uint64
		Stored  time.Time
		Headers map[string]string
		Event   json.RawMessage
	}
	for i, text := range b.shown(Options{Show: JSON{}}, 0) {
		var l line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		want := []string{strings.ReplaceAll(first, `", "`, `","`), large, `"no JSON \""`}[i]
		if l.Seq != uint64(i+1) || l.Stored.IsZero() || l.Headers["Zulip-Event-Id"] != strconv.Itoa(i+1) ||
			l.Headers["Nats-Msg-Id"] != "" || string(l.Event) != want {
			t.Errorf("JSON: %s", text)
		}
	}
}

// It follows live, goes on where it was when NATS comes back, each event once, and leaves
// no consumer.
func TestFollow(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	b := newBus(t, srv.JetStream())
	b.event("message", said(1, "ops", "x", "Ada", "before"))
	proxy := natstest.NewProxy(t, srv.URL)
	js := natstest.JetStream(t, natstest.Connect(t, proxy.URL))
	var out natstest.Buffer
	ctx, stop := context.WithCancel(t.Context())
	began, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- Run(ctx, Options{JetStream: js, Stream: "ZULIP_acme", Realm: "acme",
			Show: &Pretty{W: &out, Zone: time.UTC}, Began: func() { close(began) }})
	}()
	<-began
	b.event("message", said(2, "ops", "x", "Ada", "live"))
	natstest.Eventually(t, "a live message", func() bool { return strings.Contains(out.String(), "live") })
	// A machine that stood still may have made it break with one and make another.
	natstest.Eventually(t, "one consumer while it follows", func() bool { return len(b.consumers()) == 1 })
	// One is lost on its way, with the connection.
	proxy.OnDeliver(func(p natstest.Publish) natstest.Fate {
		if bytes.Contains(p.Payload, []byte("lost")) {
			proxy.OnDeliver(nil)
			return natstest.Cut
		}
		return natstest.Pass
	})
	b.event("message", said(3, "ops", "x", "Ada", "lost"))
	natstest.Eventually(t, "what was lost", func() bool { return strings.Contains(out.String(), "lost") })
	// And one without.
	proxy.OnDeliver(func(p natstest.Publish) natstest.Fate {
		if bytes.Contains(p.Payload, []byte("dropped")) {
			proxy.OnDeliver(nil)
			return natstest.Lose
		}
		return natstest.Pass
	})
	b.event("message", said(5, "ops", "x", "Ada", "dropped"))
	b.event("message", said(6, "ops", "x", "Ada", "next"))
	natstest.Eventually(t, "what was dropped", func() bool { return strings.Contains(out.String(), "next") })
	// The server forgets its consumers.
	srv.Restart()
	natstest.Eventually(t, "the server to answer", func() bool { // what is sent on the old connection is lost
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := b.js.AccountInfo(ctx)
		return err == nil
	})
	b.event("message", said(4, "ops", "x", "Ada", "again"))
	natstest.Eventually(t, "what came behind a restart", func() bool { return strings.Contains(out.String(), "again") })
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("it does not stop")
	}
	if strings.Contains(out.String(), "before") || strings.Count(out.String(), "Ada:") != 5 ||
		!strings.Contains(out.String(), "dropped") {
		t.Errorf("it showed\n%s", out.String())
	}
	natstest.Eventually(t, "no consumer is left", func() bool { return len(b.consumers()) == 0 })
}

// With the original pace the time between two events passes again.
func TestPace(t *testing.T) {
	t.Parallel()
	b := newBus(t, natstest.Start(t).JetStream())
	first := b.event("message", said(1, "ops", "x", "Ada", "one"))
	time.Sleep(time.Second)
	second := b.event("message", said(2, "ops", "x", "Ada", "two"))
	stored := func(seq uint64) time.Time {
		m, err := b.stream.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		return m.Time
	}
	between := stored(second).Sub(stored(first))
	begin := time.Now()
	if got := b.shown(Options{Original: true}, 0); len(got) != 3 {
		t.Errorf("%q", got)
	}
	if took := time.Since(begin); took < between {
		t.Errorf("it took %v, and %v lay between", took, between)
	}
}

// What is purged while it is read does not come any more: the end is reached without it.
func TestPurgedMeanwhile(t *testing.T) {
	t.Parallel()
	b := newBus(t, natstest.Start(t).JetStream())
	for _, types := range [][]string{nil, {"heartbeat"}} {
		for range 1500 { // more than is fetched at once
			if _, err := b.js.PublishMsgAsync(b.msg("heartbeat", `{"type":"heartbeat"}`)); err != nil {
				t.Fatal(err)
			}
		}
		<-b.js.PublishAsyncComplete()
		seen := 0
		b.shown(Options{From: 1, Types: types, Show: JSON{}, Seen: func(*events.Event) {
			if seen++; seen == 1 {
				if err := b.stream.Purge(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}}, 0)
		if seen == 0 || seen == 1500 {
			t.Errorf("%d were seen", seen)
		}
	}
}

// A stream that is deleted and made anew is shown from its start, behind a line that says
// so; up to an end, nothing of it is.
func TestMadeAnew(t *testing.T) {
	t.Parallel()
	for _, noFollow := range []bool{false, true} {
		srv := natstest.Start(t)
		b := newBus(t, srv.JetStream())
		for i := range int64(1000) {
			b.event("message", said(i+1, "ops", "x", "Ada", "old"))
		}
		again := func(e *events.Event) {
			if e.Seq != 5 || e.ID != 5 {
				return
			}
			config := b.stream.CachedInfo().Config
			if err := b.js.DeleteStream(t.Context(), config.Name); err != nil {
				t.Error(err)
			}
			natstest.CreateStream(t, b.js, config) // the folder of the old one may be in the way for a while
			for i := range int64(3) {
				b.event("message", said(2000+i, "ops", "x", "Ada", fmt.Sprint("new ", i)))
			}
		}
		if noFollow {
			if got := b.shown(Options{From: 1, Seen: again}, 0); strings.Contains(strings.Join(got, ""), "new") {
				t.Errorf("to the end: %q", got)
			}
			continue
		}
		var out natstest.Buffer
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- Run(ctx, Options{JetStream: b.js, Stream: "ZULIP_acme", Realm: "acme", From: 1, Seen: again,
				Show: &Pretty{W: &out, Zone: time.UTC}})
		}()
		natstest.Eventually(t, "the new stream", func() bool { return strings.Contains(out.String(), "Ada: new 2\n") })
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_, behind, _ := strings.Cut(out.String(), "── the stream was deleted and made anew: from its start ")
		if strings.Count(behind, "Ada: ") != 3 || strings.Contains(behind, "not in the stream any more") {
			t.Errorf("behind the line:\n%s", behind)
		}
	}
}

// A stream that goes away ends it, with an error.
func TestGone(t *testing.T) {
	t.Parallel()
	b := newBus(t, natstest.Start(t).JetStream())
	began, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- Run(t.Context(), Options{JetStream: b.js, Stream: "ZULIP_acme", Realm: "acme", Show: Raw{&bytes.Buffer{}},
			Began: func() { close(began) }})
	}()
	<-began
	natstest.Eventually(t, "a consumer", func() bool { // a deletion that meets its making fails one of the two
		info, err := b.stream.Info(t.Context())
		return err == nil && info.State.Consumers > 0
	})
	if err := b.js.DeleteStream(t.Context(), "ZULIP_acme"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "ZULIP_acme is not there") {
			t.Error(err)
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("it does not end")
	}
}

// going deletes the stream when a consumer is first made, and says then what the server
// says to who asks in that moment.
type going struct {
	jetstream.JetStream
	once sync.Once
}

func (g *going) CreateConsumer(ctx context.Context, stream string, c jetstream.ConsumerConfig) (consumer jetstream.Consumer, err error) {
	g.once.Do(func() { err = cmp.Or(g.DeleteStream(ctx, stream), error(errGoing)) })
	if err != nil {
		return nil, err
	}
	return g.JetStream.CreateConsumer(ctx, stream, c)
}

// So does one that goes away when reading begins.
func TestGoneAtTheBeginning(t *testing.T) {
	t.Parallel()
	b := newBus(t, natstest.Start(t).JetStream())
	err := Run(t.Context(), Options{JetStream: &going{JetStream: b.js}, Stream: "ZULIP_acme", Realm: "acme", Show: Raw{&bytes.Buffer{}}})
	if err == nil || !strings.Contains(err.Error(), "ZULIP_acme is not there") {
		t.Error(err)
	}
}

// Somebody else publishes in a stream by type, on a subject that ends in "none". Its
// messages are shown all the same.
func TestOthersWithNone(t *testing.T) {
	b := newBus(t, natstest.Start(t).JetStream())
	b.put(b.msg("message", said(1, "ops", "disks", "Ada", "/var is full")))
	if _, err := b.js.Publish(t.Context(), "zulip.acme.report.none", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if got := b.shown(Options{Types: []string{"message"}, Show: JSON{}}, 0); len(got) != 1 || got[0] == "" {
		t.Errorf("shown: %q", got)
	}
}
