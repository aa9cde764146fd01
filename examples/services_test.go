//go:build examples && unix

package examples

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// TestServices puts the three services through all that goes wrong, at once, and compares
// what they have come to with what Zulip has.
func TestServices(t *testing.T) { layouts(t, testServices) }

func testServices(t *testing.T, options ...string) {
	w := newWorld(t, "README.md")
	w.options = options
	w.start()
	address := fmt.Sprintf("127.0.0.1:%d", natstest.FreePort(t))
	search := w.serve("search", []string{"NATS_URL=" + w.as("search")}, w.builds(), "--http", address, "--file",
		w.path("search.json"))
	greeter := w.serve("greeter", []string{"NATS_URL=" + w.as("greeter"), "ZULIPRC=" + w.path("greeter")}, *python,
		w.script("python/greeter.py", w.dir, "PATIENCE = 10 ", "PATIENCE = 3 "))
	script := w.script("node/statistics.mjs", *node)
	statistics := w.serve("statistics", []string{"NATS_URL=" + w.as("statistics")}, "node", script)
	twin := w.serve("statistics' twin", []string{"NATS_URL=" + w.as("statistics")}, "node", script) // does no harm
	all := []*service{search, greeter, statistics, twin}
	var greeted []string // who has to be
	said := func(names ...string) { greeted = append(greeted, names...) }

	said(w.talk()...)
	w.until("they all work", address)

	// The bridge is killed, and what happens meanwhile comes when it is back.
	w.bridge.Kill()
	said(w.talk()...)
	w.start()
	said(w.talk()...)

	// NATS is stopped.
	w.nats.Stop()
	said(w.talk()...)
	w.nats.Start()
	said(w.talk()...)

	// The services are killed, one and all, in the middle of what they do.
	for i := range 8 {
		said(w.talk()...)
		w.settle()
		all[i%len(all)].kill()
		if i%2 == 1 {
			for _, s := range all {
				s.kill()
			}
		}
	}

	// Events that are too large for a message.
	large := strings.Repeat("large ", 200_000)
	said(w.newcomer("hello " + large))
	w.say("ops", "ada@example.com", large)
	w.until("large ones are known", address)

	// The bot is killed when its greeting has left and before it hears so; and before it
	// leaves.
	for _, left := range []bool{true, false} {
		remove := w.zulip.Fault(zulipsim.Fault{On: zulipsim.Send, Account: "greeter-bot@example.com", Hang: true,
			Answered: left})
		asked := func() (n int) {
			for _, r := range w.zulip.Requests() {
				if r.Kind == zulipsim.Send && r.Fault {
					n++
				}
			}
			return n
		}
		before := asked()
		said(w.newcomer("hello"))
		harness.Eventually(t, "the bot to greet", func() bool { return asked() > before })
		greeter.kill()
		remove()
		w.until("the bot is back", address)
	}

	// The queue is lost. Messages of that time come from history: they are found and counted,
	// and nobody is greeted for them.
	w.settle()
	w.bridge.Kill()
	late := []string{w.newcomer("is anybody here?"), w.newcomer("large, late " + large)}
	w.say("ops", "ada@example.com", "nobody heard this")
	w.zulip.React(w.say("general", "ada@example.com", "nor that"), "grace@example.com", "ear") // no history tells
	w.zulip.ExpireAll()
	late = append(late, w.newcomer("hello?"))
	w.start()
	w.settle()
	for _, name := range late {
		w.say("welcome", name+"@example.com", "we are back")
	}
	said(w.talk()...)
	for _, s := range all {
		s.kill()
	}
	said(w.talk()...)

	w.until("all is as Zulip has it", address)
	w.compare(address, greeted)
	for _, s := range all {
		s.mu.Lock()
		t.Logf("%s ended %d times", s.name, s.ends)
		s.mu.Unlock()
	}
}

// until waits until the three have done all that the stream holds.
func (w *world) until(what, address string) {
	w.t.Helper()
	w.settle()
	newest := func() (seq uint64) {
		s, err := w.js.Stream(w.t.Context(), "ZULIP_acme")
		if err != nil {
			return 0
		}
		for _, subject := range []string{"message", "message.>", "bridge.gap"} { // that all of them, or two, listen to
			if m, err := s.GetLastMsgForSubject(w.t.Context(), "zulip.acme."+subject); err == nil {
				seq = max(seq, m.Sequence)
			}
		}
		return seq
	}
	harness.Eventually(w.t, what, func() bool {
		seq := newest() // greetings make it grow
		a, err := w.search(address, "nothing")
		c := w.counts()
		consumer, missing := w.js.Consumer(w.t.Context(), "ZULIP_acme", "greeter")
		if seq == 0 || err != nil || a.UpTo < seq || c.Done < seq || missing != nil {
			return false
		}
		info := consumer.CachedInfo()
		return info.NumPending == 0 && info.NumAckPending == 0 && newest() == seq
	})
}

type found struct {
	UpTo    uint64   `json:"up_to_sequence"`
	Missing []string `json:"missing"`
	Found   []struct {
		ID      int64  `json:"id"`
		Channel string `json:"channel"`
		Topic   string `json:"topic"`
		Text    string `json:"text"`
	}
}

// search asks the search index.
func (w *world) search(address, words string) (a found, err error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", "http://"+address+"/search?q="+url.QueryEscape(words), nil)
	harness.Must(w.t, err)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return a, err
	}
	defer answer.Body.Close()
	return a, json.NewDecoder(answer.Body).Decode(&a)
}

type counts struct {
	Done      uint64
	Messages  map[string]map[string]int
	Reactions map[string]int
	Missing   []struct{ What []string }
}

// counts are the statistics, as whoever likes to can read them.
func (w *world) counts() (c counts) {
	bucket, err := w.js.KeyValue(w.t.Context(), "statistics")
	if err != nil {
		return c
	}
	if kept, err := bucket.Get(w.t.Context(), "acme"); err == nil {
		harness.Must(w.t, json.Unmarshal(kept.Value(), &c))
	}
	return c
}

// compare compares what the three have come to with Zulip's own truth. greeted are those
// who have to have been.
func (w *world) compare(address string, greeted []string) {
	w.t.Helper()
	messages := map[string]map[string]int{}
	for _, m := range w.zulip.Messages() {
		day, place := m.Time.UTC().Format(time.DateOnly), "#"+m.Channel
		if m.Channel == "" {
			place = "direct"
		}
		if messages[day] == nil {
			messages[day] = map[string]int{}
		}
		// A message that was moved was written where it was: only the first of each talk is.
		if !m.Moved.IsZero() {
			place = "#ops"
		}
		messages[day][place]++

		words := m.Content
		if len(words) > 100 {
			words, _, _ = strings.Cut(words, " ") // the word that it alone has
		}
		a, err := w.search(address, words)
		harness.Must(w.t, err)
		had := 0
		for _, f := range a.Found {
			if f.ID != m.ID {
				continue
			}
			had++
			if f.Channel != m.Channel || m.Channel != "" && f.Topic != m.Topic || f.Text != m.Content {
				w.t.Errorf("message %d is found in #%s > %s with %.60q, and Zulip has it in #%s > %s with %.60q", m.ID,
					f.Channel, f.Topic, f.Text, m.Channel, m.Topic, m.Content)
			}
		}
		if want := 1; m.Deleted.IsZero() && had != want || !m.Deleted.IsZero() && had != 0 {
			w.t.Errorf("message %d, deleted %v, is found %d times: %.60q", m.ID, m.Deleted, had, m.Content)
		}
		if len(a.Missing) != 1 || !strings.HasPrefix(a.Missing[0], "edits and deletions from ") {
			w.t.Fatalf("the search says that it misses %q", a.Missing)
		}
	}
	// What was edited is found by its new words only.
	if a, err := w.search(address, "it is down"); err != nil || len(a.Found) != 0 {
		w.t.Errorf("old words are found: %+v, %v", a, err)
	}

	c := w.counts()
	for day := range messages {
		if !maps.Equal(c.Messages[day], messages[day]) {
			w.t.Errorf("on %s there were %v messages, and the statistics have %v", day, messages[day], c.Messages[day])
		}
	}
	if !maps.Equal(c.Reactions, w.reactions) {
		w.t.Errorf("reactions %v, and the statistics have %v", w.reactions, c.Reactions)
	}
	if len(c.Missing) != 1 || !strings.Contains(fmt.Sprint(c.Missing[0].What), "reactions") {
		w.t.Errorf("the statistics say that they miss %+v", c.Missing)
	}

	got := w.greetings()
	for _, name := range greeted {
		if got[name] != 1 {
			w.t.Errorf("%s was greeted %d times", name, got[name])
		}
	}
	if len(got) != len(greeted) {
		w.t.Errorf("%d people were greeted, %v, and %d had to be, %v", len(got), sorted(slices.Collect(maps.Keys(got))),
			len(greeted), sorted(greeted))
	}
	w.t.Logf("%d messages, %d newcomers, %d greeted", len(w.zulip.Messages()), w.newcomers, len(got))
}
