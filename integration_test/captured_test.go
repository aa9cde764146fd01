package integration_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rs/zerolog"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/poller"
	"zulip-nats/stream/natstest"
)

// capturedAnswer is one answer to GET /api/v1/events as a Zulip 10.2 really gave it:
// testdata/captured-answers.jsonl.gz has all of those with status 200 that were recorded,
// with the file of the recording and the queue that was polled.
type capturedAnswer struct{ File, Queue, Body string }

func captured(t *testing.T) []capturedAnswer {
	t.Helper()
	f, err := os.Open("testdata/captured-answers.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var all []capturedAnswer
	for d := json.NewDecoder(z); ; {
		var a capturedAnswer
		if err := d.Decode(&a); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, a)
	}
}

// capturedQueue is one recorded queue: its events, each once, with the bytes that Zulip
// sent, and the answers they came in.
type capturedQueue struct {
	id      string
	events  []capturedEvent
	answers []answer
}

type capturedEvent struct {
	id, message int64
	typ, op     string
	raw         string
}

// answer is one answer's body, and the largest event id in it.
type answer struct {
	body string
	last int64
}

// mostAnswers is how many polls one recorded queue may cost. A follower may ask Zulip 200
// times a minute and waits when it has used a part of that, so what is left after so many
// answers comes in one.
const mostAnswers = 30

// capturedQueues puts the recorded answers together, queue by queue. The recordings ask
// for the same events again and again, and go on to be refused; here each answer stands
// once, as it was, that has something new and nothing old.
func capturedQueues(t *testing.T) []*capturedQueue {
	t.Helper()
	byID := map[string]*capturedQueue{}
	var all []*capturedQueue
	for _, a := range captured(t) {
		q := byID[a.Queue]
		if q == nil {
			q = &capturedQueue{id: a.Queue}
			byID[a.Queue] = q
			all = append(all, q)
		}
		var body struct{ Events []json.RawMessage }
		if err := json.Unmarshal([]byte(a.Body), &body); err != nil {
			t.Fatalf("%s: %v", a.File, err)
		}
		last := int64(-1)
		if n := len(q.events); n > 0 {
			last = q.events[n-1].id
		}
		fresh := 0
		for _, raw := range body.Events {
			var ev struct {
				ID       int64
				Type, Op string
				Message  struct{ ID int64 }
			}
			if err := json.Unmarshal(raw, &ev); err != nil {
				t.Fatalf("%s: %v", a.File, err)
			}
			if ev.ID > last {
				q.events = append(q.events, capturedEvent{ev.ID, ev.Message.ID, ev.Type, ev.Op, string(raw)})
				fresh++
			}
		}
		switch {
		case fresh == 0:
		case fresh == len(body.Events):
			q.answers = append(q.answers, answer{a.Body, q.events[len(q.events)-1].id})
		default: // the events at its beginning were in an answer before
			q.answers = append(q.answers, together(q.events[len(q.events)-fresh:]))
		}
	}
	for _, q := range all {
		if len(q.answers) > mostAnswers {
			done := q.answers[mostAnswers-2].last
			rest := q.events
			for rest[0].id <= done {
				rest = rest[1:]
			}
			q.answers = append(q.answers[:mostAnswers-1], together(rest))
		}
	}
	return all
}

// together is an answer with these events.
func together(events []capturedEvent) answer {
	raw := make([]string, len(events))
	for i := range events {
		raw[i] = events[i].raw
	}
	return answer{`{"result":"success","msg":"","events":[` + strings.Join(raw, ",") + "]}\n", events[len(events)-1].id}
}

// serve is the little of Zulip that plays a recorded queue back: it gives out the answers
// one after the other, each when the events of those before it are acknowledged. When all
// are, done is closed and a poll waits for ever.
func (q *capturedQueue) serve(t *testing.T, done chan<- struct{}) *httptest.Server {
	var finished sync.Once
	empty := `{"result":"success","msg":"","messages":[],"found_anchor":false,"found_newest":true,"found_oldest":true,` +
		`"history_limited":false,"anchor":10000000000000000}`
	mux := http.NewServeMux()
	say := func(w http.ResponseWriter, body string) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, body)
	}
	mux.HandleFunc("POST /api/v1/register", func(w http.ResponseWriter, _ *http.Request) {
		say(w, `{"result":"success","msg":"","queue_id":"`+q.id+`","zulip_version":"10.2","zulip_feature_level":372,`+
			`"zulip_merge_base":"","max_message_id":-1,"event_queue_longpoll_timeout_seconds":90,"last_event_id":-1}`+"\n")
	})
	mux.HandleFunc("GET /api/v1/messages", func(w http.ResponseWriter, _ *http.Request) { say(w, empty) })
	mux.HandleFunc("GET /api/v1/events", func(w http.ResponseWriter, r *http.Request) {
		last, err := strconv.ParseInt(r.FormValue("last_event_id"), 10, 64)
		if err != nil || r.FormValue("queue_id") != q.id {
			t.Errorf("queue %s: an odd poll: %s", q.id, r.URL.RawQuery)
		}
		for _, a := range q.answers {
			if a.last > last {
				say(w, a.body)
				return
			}
		}
		finished.Do(func() { close(done) })
		if r.FormValue("dont_block") == "true" {
			say(w, `{"result":"success","msg":"","events":[]}`+"\n")
			return
		}
		<-r.Context().Done()
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// TestCapturedAnswers plays back every answer that a real Zulip server was recorded with:
// each event has to be in the stream byte for byte, on its subject, with its headers, in
// order.
func TestCapturedAnswers(t *testing.T) {
	t.Parallel()
	url := natsServer(t)
	js := natstest.JetStream(t, natstest.Connect(t, url))
	apiKey := strings.Repeat("capturedKey00000", 2)
	harness.KeepSecret(apiKey)
	queues := capturedQueues(t)
	kinds := map[string]bool{}
	events := 0
	var work sync.WaitGroup
	atOnce := make(chan struct{}, 8)
	for i, q := range queues {
		for _, ev := range q.events {
			kinds[ev.typ+"/"+ev.op] = true
		}
		events += len(q.events)
		if len(q.events) == 0 {
			continue
		}
		work.Go(func() {
			atOnce <- struct{}{}
			defer func() { <-atOnce }()
			realm := fmt.Sprintf("captured-%d", i)
			done := make(chan struct{})
			zulip := q.serve(t, done)
			log := harness.NewJournal(t, "the bridge")
			stop := runInside(t, url, realm, poller.Account{Email: botEmail, Key: apiKey, Site: zulip.URL},
				zerolog.New(log))
			select {
			case <-done:
			case <-t.Context().Done():
			}
			stop()
			all, err := harness.ReadStream(js, "ZULIP_"+realm)
			if err != nil {
				t.Errorf("queue %s: %v", q.id, err)
				return
			}
			ledger := map[harness.EventKey]*wanted{}
			for _, ev := range q.events {
				x := want(realm, q.id, ev.typ, ev.op, ev.message, ev.id, []byte(ev.raw))
				x.must = true
				ledger[harness.EventKey{Queue: q.id, ID: ev.id}] = x
			}
			f := compare(realm, all, ledger).clean(t)
			if f.events != len(q.events) {
				t.Errorf("queue %s: %d events are stored, recorded were %d", q.id, f.events, len(q.events))
			}
		})
	}
	work.Wait()
	t.Logf("%d events of %d recorded queues, of %d pairs of type and op", events, len(queues), len(kinds))
	// What the recordings hold, counted by another program.
	if events != 850 || len(kinds) != 72 {
		t.Errorf("%d events of %d pairs of type and op were played back, recorded were 850 of 72", events, len(kinds))
	}
}

// TestEveryType sends one event of each type and op that Zulip is known to have and that
// no recording holds, and then types that nobody knows, through the program.
func TestEveryType(t *testing.T) {
	t.Parallel()
	w := newWorld(t, natsServer(t))
	w.run("--no-lease")
	w.registered()
	known := map[string]bool{}
	for _, q := range capturedQueues(t) {
		for _, ev := range q.events {
			op := ev.op
			if op == "" {
				op = "-"
			}
			known[ev.typ+"\t"+op] = true
		}
	}
	if own := lines(t, "testdata/further-events.jsonl"); len(own) > 0 {
		w.zulip.Down() // so that they come in one answer
		for _, line := range own {
			var ev struct{ Type, Op string }
			if err := json.Unmarshal([]byte(line), &ev); err != nil || strings.Count(line, `"id":0`) != 1 {
				t.Fatalf("testdata/further-events.jsonl: %s: %v", line, err)
			}
			if ev.Op == "" {
				ev.Op = "-"
			}
			known[ev.Type+"\t"+ev.Op] = true
			w.zulip.EmitRaw(strings.Replace(line, `"id":0`, `"id":%ID%`, 1))
		}
		w.zulip.Up()
	}
	var types []string
	for _, line := range lines(t, "../poller/event-types.tsv") {
		if pair := strings.Split(line, "\t"); len(pair) == 3 {
			types = append(types, pair[0]+"\t"+pair[1])
		}
	}
	for _, pair := range types {
		if !known[pair] {
			t.Errorf("no event of %q in testdata", pair)
		}
	}
	if len(types) != 97 {
		t.Errorf("poller/event-types.tsv has %d lines, want 97", len(types))
	}
	unknown := []string{
		`{"type":"shiny_new_thing","op":"sparkle","what":{"deep":[1,{"er":null}],"ratio":0.10000000000000001},"id":%ID%}`,
		`{"id":%ID%,"type":"x"}`,
		`{"type":"UPPER-case_0","op":"","id":%ID%}`,
		`{ "type" : "spaced" , "op":"\u0061dd" , "id" : %ID% , "n": 123456789012345678901234567890 }`,
		`{"type":"odd_op","op":"with blank, Ü and \n","id":%ID%}`,
	}
	for _, raw := range unknown[:4] {
		w.zulip.EmitRaw(raw)
	}
	w.settle()
	f := w.check().clean(t)
	if want := len(lines(t, "testdata/further-events.jsonl")) + 4 + 1; f.events != want { // and the restart event
		t.Errorf("%d events are stored, want %d", f.events, want)
	}
	w.zulip.EmitRaw(unknown[4])
	w.settle()
	last := w.read()
	m := last[len(last)-1]
	if got, want := m.Get(events.HeaderEventOp), "with%20blank,%20%C3%9C%20and%20%0A"; got != want ||
		m.Subject != "zulip.acme.odd_op" {
		t.Errorf("the op is in the header as %q on %s, want %q", got, m.Subject, want)
	}
}

func lines(t testing.TB, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		all = append(all, s.Text())
	}
	return all
}
