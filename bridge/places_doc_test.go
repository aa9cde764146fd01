package bridge

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"zulip-nats/integration_test/recorded"
	"zulip-nats/poller"
	"zulip-nats/subjects"
)

var write = flag.Bool("write", false, "write the table into docs/places.md instead of comparing it")

// placeRules is how docs/places.md says where the events of a type go; those of a type
// that is not here are in no channel.
var placeRules = map[string]string{
	"message":              "where the message is",
	"update_message":       "the channel that it names (of a move the one that is left); where it names none, that of the message; not known: `.direct`",
	"delete_message":       "the channel that it names, or among people, as it says",
	"typing":               "the channel that it names, or among people, as it says",
	"typing_edit_message":  "the channel that it names, or among people, as it says",
	"reaction":             "that of the message; not known: `.none`",
	"update_message_flags": "that of the messages, `.direct` if any is direct; not known, or several: `.none`",
	"submessage":           "that of the message; not known: `.direct`",
	"url_embed_data":       "that of the message; not known: `.direct`",
	"user_topic":           "the channel that it names",
	"stream":               "`update`: the channel that it names; others have lists: `.none`",
	"subscription":         "`update`: the channel that it names; others have lists: `.none`",
	"attachment":           "the account's own, for whomever",
	"drafts":               "the account's own, for whomever",
	"navigation_view":      "the account's own, for whomever",
	"reminders":            "the account's own, for whomever",
	"scheduled_messages":   "the account's own, for whomever",
}

// answering is a poller of an account whose Zulip gives that answer to whatever it is
// asked.
func answering(body string) *poller.Poller {
	return &poller.Poller{Client: &poller.Client{
		Transport: roundTrip(func(r *http.Request) *http.Response {
			return &http.Response{StatusCode: 200, Request: r, Header: http.Header{"Content-Type": {"application/json"}},
				Body: io.NopCloser(strings.NewReader(body))}
		}),
		Account: func() (poller.Account, error) {
			return poller.Account{Email: "e@example.com", Key: strings.Repeat("k", 32), Site: "https://z.example.com"}, nil
		}}}
}

// followed gives the events of a queue to f, as the poller reads them off Zulip's answer,
// with their places by a bridge that follows that queue and knows nothing from before.
func followed(t *testing.T, evs []json.RawMessage, f func(ev *poller.Event, at subjects.Place)) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"result": "success", "msg": "", "events": evs})
	if err != nil {
		t.Fatal(err)
	}
	realm, err := subjects.ParseRealm("acme")
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		b := New(Config{Realm: realm.By(subjects.ByPlace), Poller: answering(string(body))})
		defer b.poller.Close()
		at, seen := poller.Position{Queue: "q", Last: -1}, 0
		for seen < len(evs) {
			batch, err := b.poller.Next(t.Context(), at)
			if err != nil {
				t.Fatal(err)
			}
			for i := range batch.Events {
				ev := &batch.Events[i]
				if ev.Fault != "" {
					t.Fatalf("%s: %s", ev.Fault, ev.Raw)
				}
				b.notePlace(ev.MessageID, ev.Recipient, ev.ChannelID)
				b.noteEdit(ev)
				f(ev, b.placeOf(ev))
				at.Last = ev.ID
			}
			seen += len(batch.Events)
		}
	})
}

// TestPlacesPage compares docs/places.md with where the events go that a real server sent:
// each queue that was recorded, and each message of its history. No event is in a place
// that PlacesOf does not name.
func TestPlacesPage(t *testing.T) {
	kind := func(at subjects.Place) int {
		switch {
		case at > 0:
			return 0
		case at == subjects.Direct:
			return 1
		}
		return 2
	}
	names := []string{"`.channel.<id>`", "`.direct`", "`.none`"}
	may := func(typ string) []bool {
		channel, direct, none := PlacesOf(typ)
		return []bool{channel, direct, none}
	}
	counts, total := map[string]*[3]int{}, 0
	for _, typ := range poller.EventTypes() {
		counts[typ] = new([3]int)
	}
	count := func(typ string, at subjects.Place) {
		total++
		if counts[typ] == nil {
			t.Errorf("%s is no known type", typ)
			return
		}
		counts[typ][kind(at)]++
	}
	allowed := func(ev *poller.Event, at subjects.Place) {
		if !may(ev.Type)[kind(at)] {
			t.Errorf("in %s, where events of type %s do not go: %s", at, ev.Type, ev.Raw)
		}
	}

	// The recordings ask for the same events again and again: each counts once.
	queues, answers := map[string][]json.RawMessage{}, map[string]bool{}
	var order []string
	newest := map[string]int64{}
	for _, line := range recorded.Lines(t, "../integration_test/testdata/captured-answers.jsonl.gz") {
		var a struct{ Queue, Body string }
		var body struct{ Events []json.RawMessage }
		if err := json.Unmarshal(line, &a); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(a.Body), &body); err != nil {
			t.Fatal(err)
		}
		answers[a.Body] = true
		if _, known := newest[a.Queue]; !known {
			newest[a.Queue] = -1
			order = append(order, a.Queue)
		}
		for _, raw := range body.Events {
			var ev struct{ ID int64 }
			if err := json.Unmarshal(raw, &ev); err != nil {
				t.Fatal(err)
			}
			if ev.ID > newest[a.Queue] {
				newest[a.Queue] = ev.ID
				queues[a.Queue] = append(queues[a.Queue], raw)
			}
		}
	}
	for _, line := range recorded.Lines(t, "../poller/testdata/captured/events.jsonl.gz") {
		var a struct{ Body string }
		if err := json.Unmarshal(line, &a); err != nil || !answers[a.Body] {
			t.Errorf("an answer that the others do not have: %v, %.200s", err, line)
		}
	}
	type about struct {
		raw string
		at  subjects.Place
		ids []int64
	}
	var all []about
	direct := map[int64]bool{}
	for _, q := range order {
		followed(t, queues[q], func(ev *poller.Event, at subjects.Place) {
			count(ev.Type, at)
			allowed(ev, at)
			direct[ev.MessageID] = direct[ev.MessageID] || ev.MessageID > 0 && ev.Recipient == poller.RecipientDirect
			all = append(all, about{string(ev.Raw), at, append(messagesOf(ev), ev.MessageID)})
		})
	}
	past := map[int64]bool{}
	for _, line := range recorded.Lines(t, "../poller/testdata/captured/messages.jsonl.gz") {
		var a struct{ Body string }
		if err := json.Unmarshal(line, &a); err != nil {
			t.Fatal(err)
		}
		synctest.Test(t, func(t *testing.T) {
			p := answering(a.Body)
			defer p.Close()
			_, err := p.Messages(t.Context(), poller.HistoryQuery{Newest: true, Before: 1000,
				Each: func(m *poller.Message) error {
					if past[m.ID] {
						return nil
					}
					past[m.ID] = true
					at := placeOfMessage(m.Recipient, m.ChannelID)
					count("message", at)
					direct[m.ID] = direct[m.ID] || m.Recipient == poller.RecipientDirect
					all = append(all, about{string(m.Raw), at, []int64{m.ID}})
					return nil
				}})
			if err != nil {
				t.Errorf("%v: %.200s", err, a.Body)
			}
		})
	}
	// What is about a direct message is in no channel, whatever was known when it came.
	for _, e := range all {
		if e.at > 0 && slices.ContainsFunc(e.ids, func(id int64) bool { return direct[id] }) {
			t.Errorf("about a direct message, and in %s: %s", e.at, e.raw)
		}
	}
	// What such a server does not send has examples, each by itself.
	for _, file := range []string{"../events/testdata/events.jsonl", "../integration_test/testdata/further-events.jsonl"} {
		for _, line := range recorded.Lines(t, file) {
			var members map[string]json.RawMessage
			if err := json.Unmarshal(line, &members); err != nil {
				t.Fatal(err)
			}
			if members["id"] == nil {
				line = append(bytes.TrimSuffix(line, []byte("}")), `,"id":0}`...)
			}
			followed(t, []json.RawMessage{line}, func(ev *poller.Event, at subjects.Place) {
				// One of Zulip's published examples lacks the channel's id, which each server
				// sends.
				if ev.Type != "message" || !bytes.Contains(ev.Raw, []byte("I come not, friends")) {
					allowed(ev, at)
				}
			})
		}
	}

	var table strings.Builder
	table.WriteString("| type | places | which one | captured: channels, direct, none |\n|---|---|---|---|\n")
	for _, typ := range poller.EventTypes() {
		var places []string
		for i, ok := range may(typ) {
			if ok {
				places = append(places, names[i])
			}
		}
		rule := placeRules[typ]
		if rule == "" && len(places) == 1 && places[0] == names[2] {
			rule = "in no channel"
		}
		if rule == "" {
			t.Errorf("there is no rule for %s", typ)
		}
		n, captured := counts[typ], "-"
		if *n != [3]int{} {
			captured = fmt.Sprintf("%d, %d, %d", n[0], n[1], n[2])
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", typ, strings.Join(places, ", "), rule, captured)
	}
	for typ := range placeRules {
		if counts[typ] == nil {
			t.Errorf("%s is no known type", typ)
		}
	}
	want := fmt.Sprintf("%d types. The last column says where %d events of a server 10.2 go: those of %d queues, each once, with %d messages of history. Each\n"+
		"queue was followed by itself, so a message from before it counts as not known.\n\n%s",
		len(counts), total, len(queues), len(past), table.String())

	const page, begin, end = "../docs/places.md", "<!-- places -->\n", "<!-- end -->"
	doc, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(doc), begin)
	has, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", page)
	}
	if *write {
		if err := os.WriteFile(page, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if strings.ReplaceAll(has, "\r", "") != want {
		t.Errorf("%s says something else than where events go, which is:\n%s", page, want)
	}
}
