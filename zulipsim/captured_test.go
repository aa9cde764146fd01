package zulipsim

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The files in testdata are HTTP exchanges with a real Zulip 10.2, one a line, with the time of each. The test below lives through each
// of them again in a bubble whose clock is set to the day of the recording: the same requests at the same times, the same causes, and
// then compares what the simulator answered, and when, with what Zulip did.
//
// What the recording shows without showing its cause (messages whose sending was not kept, polls that were only counted) is put in by
// the scenario. What is not compared is said in the tables notImitated and notCompared.

// exchange is a line of a file.
type exchange struct {
	T       float64           `json:"t"` // seconds since the scenario began
	Who     string            `json:"who"`
	Method  string            `json:"method"`
	Path    string            `json:"path"`
	Params  map[string]string `json:"params"`
	Host    string            `json:"host"`
	Sent    map[string]string `json:"request_headers"`
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
	Ms      float64           `json:"ms"`
	Note    string            `json:"note"`
	Wire    int               `json:"wire_bytes"`

	no int // line in the file
}

// end is when the answer came.
func (x *exchange) end() float64 { return x.T + x.Ms/1000 }

// effect is when a change takes effect: shortly before it is answered.
func (x *exchange) effect() float64 { return x.T + 0.9*x.Ms/1000 }

// waited says whether it is a poll that waited: only then does the answer name the queue.
func (x *exchange) waited() bool {
	return x.Method == "GET" && x.Path == "/api/v1/events" && x.Status == 200 && strings.Contains(x.Body, `],"queue_id":"`)
}

// notImitated names the exchanges whose answer is not compared, by file and line. What they caused is driven all the same.
var notImitated = map[string]map[int]string{
	"corner-cases": {
		17: "delete_topic is no endpoint of the simulator", 18: "delete_topic is no endpoint of the simulator",
		31: "PATCH /bots is no endpoint of the simulator", 43: "PATCH /bots is no endpoint of the simulator",
	},
	"errors": {
		22: "the real Tornado does not check the host of requests from 127.0.0.1; that is the laboratory, not Zulip",
		46: "POST /users is no endpoint of the simulator",
		47: "POST /bots is no endpoint of the simulator",
		50: "regenerate is no endpoint of the simulator", 55: "DELETE /bots is no endpoint of the simulator",
	},
	"arguments-and-ends": {27: "realm/deactivate is no endpoint of the simulator"},
}

// notCompared names members whose values may differ; that they are there, in their place and of their kind, is compared.
var notCompared = map[string]string{
	"events.message.recipient_id":                       "a number of Zulip's database",
	"messages.recipient_id":                             "the same",
	"message.recipient_id":                              "the same",
	"date_joined":                                       "accounts are made when the test begins",
	"bot_owner_id":                                      "the simulator has no owners of bots",
	"realm_icon":                                        "a picture",
	"server_generation":                                 "when Tornado was started",
	"events.server_generation":                          "the same",
	"events.subscriptions.color":                        "Zulip draws lots",
	"events.streams.date_created":                       "the moment of its making",
	"events.subscriptions.date_created":                 "the same",
	"events.streams.creator_id":                         "",
	"events.streams.can_administer_channel_group":       "the creator, as a group",
	"events.subscriptions.can_administer_channel_group": "the same",
	"cross_realm_bots":                                  "the simulator has one of three system bots",
	"realm_users":                                       "other people",
	"realm_non_active_users":                            "other people",
	"realm_authentication_methods":                      "",
	"realm_can_create_groups":                           "a group",
	"server_supported_permission_settings":              "9 kB about settings, left out",
}

// scenario is one file and what has to be known to live through it again.
type scenario struct {
	file  string
	epoch float64 // when it began, in UNIX seconds: the one moment that fits all its rate limit headers
	// sweep is when Tornado first looks for idle queues.
	sweep time.Duration
	// notices are messages that the simulator's Notification Bot sends by itself.
	notices []int64
	setup   func(*replay)
	// least is how many exchanges must have been compared.
	least int
}

// replay lives through a file.
type replay struct {
	t     *testing.T
	sc    scenario
	lines []*exchange
	s     *Server             // the organization "acme"
	root  *Server             // another one, at the root domain
	keys  map[string]*Account // by who
	start time.Time

	mu                sync.Mutex
	queues            map[string]string // their queue id -> ours
	causes            []cause
	beat              time.Duration            // of the poll that begins next
	effects           map[int64]float64        // message -> when it happened
	linger            map[string]time.Duration // account -> how long its next register takes
	compared, skipped int
	unkept            int // requests whose exchange is not in the file, seen by what they left of a budget
}

// cause is something that happens at a time.
type cause struct {
	at float64
	do func()
}

func (r *replay) cause(at float64, do func()) { r.causes = append(r.causes, cause{at, do}) }

// load reads a file.
func load(t *testing.T, name string) []*exchange {
	t.Helper()
	f, err := os.Open("testdata/" + name + ".jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var list []*exchange
	in := bufio.NewScanner(z)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		x := &exchange{no: len(list) + 1}
		if err := json.Unmarshal(in.Bytes(), x); err != nil {
			t.Fatalf("%s: line %d: %v", name, x.no, err)
		}
		list = append(list, x)
	}
	if in.Err() != nil {
		t.Fatal(in.Err())
	}
	return list
}

// populate makes the people and channels of the recording.
func (r *replay) populate() {
	r.s = &Server{RealmURL: "http://127.0.0.1:9991", Heartbeat: r.heartbeat, DuringRegister: r.duringRegister, SweepFirst: r.sc.sweep + 2*time.Second}
	r.s.Hosts = func(host string) Host {
		switch host {
		case "127.0.0.1:9991":
			return ThisOrganization
		case "evil.example.net":
			return HostNotAllowed
		}
		return NoOrganization
	}
	r.keys = make(map[string]*Account)
	for _, p := range []struct {
		who, email, name string
		id               int64
		typ              AccountType
	}{
		{"owner", "olive@example.com", "Olive Example", 9, Human},
		{"ada", "ada@example.com", "Ada Example", 10, Human},
		{"grace", "grace@example.com", "Grace Example", 11, Human},
		{"guest", "guest@example.com", "Guest Example", 12, Human},
		{"bot", "bridge-bot@localhost", "Bridge Bot", 13, GenericBot},
		{"watchbot", "watch-bot@localhost", "Watch Bot", 14, GenericBot},
		{"hookbot", "hook-bot@localhost", "Hook Bot", 15, IncomingWebhookBot},
		{"pacebot", "pace-bot@localhost", "Pace Bot", 16, GenericBot},
		{"pacebot2", "pacetwo-bot@localhost", "Pace Two Bot", 17, GenericBot},
		{"mortal", "mortal-bot@localhost", "Mortal Bot", 24, GenericBot},
	} {
		a := r.s.Account(p.email)
		a.FullName, a.ID, a.Type = p.name, p.id, p.typ
		r.keys[p.who] = a
	}
	r.keys["owner"].Owner = true
	r.keys["ada"].HideEmail, r.keys["ada"].AvatarVersion = true, 7
	r.keys["guest"].Guest = true
	r.keys["guest"].NoSubscriptions = true
	r.keys["watchbot"].NoSubscriptions = true
	r.keys["mortal"].NoSubscriptions = true
	note := r.s.Account(notificationBot)
	note.AvatarURL = "http://localhost:9991/static/images/static_avatars/notification-bot.36f721bad3d0.png"
	for id, name := range map[int64]string{
		7: "engineering-0", 8: "café.müller ✓ > v1.0 *-0", 15: "lobby-1", 20: "lobby-2", 22: "lab-protocol", 23: "lab-register",
		24: "lab-history", 25: "lab-unsubscribed", 26: "lab-restart", 27: "lab-corners", 28: "lab-far", 32: "lab-guests",
	} {
		c := r.s.Channel(name)
		c.SetID(id)
		if id == 25 || id == 28 || id == 15 || id == 20 {
			r.keys["bot"].subs[c] = false
		}
		if id == 15 || id == 20 || id == 32 {
			r.keys["guest"].subs[c] = true
		}
	}

	r.root = &Server{RealmURL: "http://localhost:9991", RealmName: "Root Org", Heartbeat: r.heartbeat}
	r.keys["root"] = r.root.Person("root@example.com", "Root Example")
}

func (r *replay) heartbeat() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.beat
}

// duringRegister lets a register take as long as it took, where that matters.
func (r *replay) duringRegister(queue string) {
	r.s.mu.Lock()
	email := r.s.queues[queue].account.Email
	r.s.mu.Unlock()
	r.mu.Lock()
	d := r.linger[email]
	delete(r.linger, email)
	r.mu.Unlock()
	time.Sleep(d)
}

// at waits for a moment of the scenario.
func (r *replay) at(sec float64) {
	time.Sleep(time.Until(r.start.Add(time.Duration(sec * float64(time.Second)))))
}

// messagesSeen finds the messages that answers show but whose sending was not kept, and makes each happen just before it was first seen:
// at the end of a poll that waited for it, or before any other answer. Older ones than the scenario are there from its beginning.
func (r *replay) messagesSeen() {
	sent := make(map[int64]bool)
	type hidden struct {
		ID        int64  `json:"id"`
		SenderID  int64  `json:"sender_id"`
		Content   string `json:"content"`
		Timestamp int64  `json:"timestamp"`
		Client    string `json:"client"`
		Subject   string `json:"subject"`
		StreamID  int64  `json:"stream_id"`
		Kind      string `json:"content_type"`
		Flags     []string
		Recipient json.RawMessage `json:"display_recipient"`
	}
	seen := make(map[int64]*hidden)
	first := make(map[int64]float64)
	var orders [][]int64
	for _, x := range r.lines {
		var a struct {
			ID     int64
			Events []struct {
				Type    string
				Message json.RawMessage
			}
			Messages []json.RawMessage
		}
		if json.Unmarshal([]byte(x.Body), &a) != nil {
			continue
		}
		if x.Method == "POST" && x.Path == "/api/v1/messages" && a.ID != 0 {
			sent[a.ID] = true
			first[a.ID] = x.effect()
		}
		var order []int64
		raw := a.Messages
		for _, e := range a.Events {
			if e.Type == "message" {
				raw = append(raw, e.Message)
			}
		}
		when := x.T - 0.0005
		if x.waited() {
			when = x.end() - 0.002
		}
		for _, m := range raw {
			h := new(hidden)
			if json.Unmarshal(m, h) != nil {
				continue
			}
			if len(a.Events) > 0 {
				order = append(order, h.ID)
			}
			if sent[h.ID] {
				continue
			}
			if old := seen[h.ID]; old == nil || h.Kind == "text/x-markdown" {
				seen[h.ID] = h
			}
			if t, ok := first[h.ID]; !ok || when < t {
				first[h.ID] = when
			}
		}
		orders = append(orders, order)
	}
	for again := true; again; { // what stands first in a queue came first
		again = false
		for _, o := range orders {
			for i := len(o) - 2; i >= 0; i-- {
				if limit := first[o[i+1]] - 0.0001; first[o[i]] > limit {
					first[o[i]], again = limit, true
				}
			}
		}
	}
	r.effects = first
	for _, id := range slices.Sorted(maps.Keys(first)) {
		h := seen[id]
		if h == nil || sent[id] || slices.Contains(r.sc.notices, id) {
			continue
		}
		m := Message{ID: id, Content: h.Content, Client: h.Client, Topic: h.Subject, Sender: r.person(h.SenderID).Email}
		if h.Kind == "text/html" {
			m.HTML = h.Content
			m.Content = html.UnescapeString(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(h.Content, ""))
		}
		if h.StreamID != 0 {
			json.Unmarshal(h.Recipient, &m.Channel)
		} else {
			var people []struct{ ID int64 }
			json.Unmarshal(h.Recipient, &people)
			for _, p := range people {
				m.To = append(m.To, r.person(p.ID).Email)
			}
		}
		at := first[id]
		if float64(h.Timestamp) < math.Floor(r.sc.epoch) {
			at = -1
		}
		read := slices.Contains(h.Flags, "read") && !slices.Contains(h.Flags, "historical")
		r.cause(at, func() {
			r.s.SendMessage(m)
			if read {
				r.s.Flag(r.keys["bot"].Email, "add", "read", id)
			}
		})
	}
}

func (r *replay) person(id int64) *Account {
	if id == 6 {
		return r.s.Account(notificationBot)
	}
	for _, a := range r.keys {
		if a.ID == id && a.server == r.s {
			return a
		}
	}
	r.t.Fatalf("no person has the id %d", id)
	return nil
}

// run lives through the file.
func (r *replay) run() {
	r.start = time.Unix(0, int64(r.sc.epoch*1e9))
	time.Sleep(time.Until(r.start) - 2*time.Second)
	r.populate()
	r.queues = make(map[string]string)
	r.linger = make(map[string]time.Duration)
	r.messagesSeen()
	if r.sc.setup != nil {
		r.sc.setup(r)
	}
	var all sync.WaitGroup
	slices.SortStableFunc(r.causes, func(a, b cause) int { return cmp.Compare(a.at, b.at) })
	all.Go(func() {
		for _, c := range r.causes {
			r.at(c.at)
			c.do()
		}
	})
	for _, x := range r.lines {
		if x.Method == "" {
			continue // a remark
		}
		all.Go(func() { r.exchange(x) })
	}
	all.Wait()
}

// exchange makes one request again and compares the answer.
func (r *replay) exchange(x *exchange) {
	when := x.T
	var message int64 // that it sent
	switch {
	case x.Path == "/api/v1/register" || strings.HasPrefix(x.Path, "/api/v1/register?"):
		when += 0.3 * x.Ms / 1000
	case x.Method == "POST" && x.Path == "/api/v1/messages" && x.Status == 200:
		fmt.Sscanf(x.Body, `{"result":"success","msg":"","id":%d`, &message)
		when = r.effects[message]
	case x.Method != "GET":
		when = x.effect()
	}
	r.at(when + float64(x.no)*1e-6) // no two at once
	req := r.request(x)
	r.mu.Lock()
	r.beat = 55 * time.Second
	if x.waited() && strings.Contains(x.Body, `"events":[{"type":"heartbeat"`) {
		r.beat = time.Duration(math.Floor(x.Ms/1000)) * time.Second
	}
	if strings.Contains(x.Body, `"last_event_id":`) && !strings.Contains(x.Body, `"last_event_id":-1`) {
		r.linger[r.keys[x.Who].Email] = time.Duration(0.6*x.Ms) * time.Millisecond
	}
	r.mu.Unlock()
	if message != 0 {
		r.s.mu.Lock()
		r.s.nextMsg = message
		r.s.mu.Unlock()
	}
	rec := httptest.NewRecorder()
	server := r.s
	if x.Who == "root" || x.Who == "" && x.Host == "localhost:9991" {
		server = r.root
	}
	server.ServeHTTP(rec, req)
	ended := time.Since(r.start).Seconds()
	r.compare(x, rec, ended)
}

// request builds the request of an exchange, with our own key and our own name of its queue.
func (r *replay) request(x *exchange) *http.Request {
	form := make(url.Values)
	for k, v := range x.Params {
		if k == "queue_id" {
			r.mu.Lock()
			v = cmp.Or(r.queues[v], v)
			r.mu.Unlock()
		}
		form.Set(k, v)
	}
	target, body := "http://127.0.0.1:9991"+strings.ReplaceAll(x.Path, "[]", "%5B%5D"), ""
	if x.Method == "GET" || x.Method == "HEAD" || x.Method == "OPTIONS" {
		if len(form) > 0 {
			target += "?" + form.Encode()
		}
	} else {
		body = form.Encode()
	}
	req := httptest.NewRequest(x.Method, target, strings.NewReader(body))
	req.Host = cmp.Or(x.Host, "127.0.0.1:9991")
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("User-Agent", "ZulipLabCapture/1.0")
	for k, v := range x.Sent {
		req.Header.Set(k, v)
	}
	if x.Headers["Content-Encoding"] == "gzip" {
		req.Header.Set("Accept-Encoding", "gzip")
	}
	if a := r.keys[x.Who]; a != nil {
		email, key := a.Email, a.Key
		switch n := x.Note; {
		case strings.HasPrefix(n, "wrong key"), strings.HasPrefix(n, "translated"), n == "next poll, old key":
			key = "FakeKey0099xxxxxxxxxxxxxxxxxxxxx"
		case strings.HasPrefix(n, "malformed key"):
			key = "short"
		case strings.HasPrefix(n, "key with a sign"):
			key = key[:31] + "!"
		case strings.HasPrefix(n, "unknown e-mail"):
			email = "nobody@example.com"
		case strings.HasPrefix(n, "e-mail in capitals"):
			email = strings.ToUpper(email)
		case strings.HasPrefix(n, "incoming webhook bot"):
			email, key = r.keys["hookbot"].Email, r.keys["hookbot"].Key
		}
		req.SetBasicAuth(email, key)
		switch n := x.Note; {
		case strings.HasPrefix(n, "no colon"):
			req.Header.Set("Authorization", "Basic bm9jb2xvbg==")
		case strings.HasPrefix(n, "another scheme"):
			req.Header.Set("Authorization", "Bearer abc")
		}
	}
	return req
}

// compare holds an answer against the recorded one.
func (r *replay) compare(x *exchange, rec *httptest.ResponseRecorder, ended float64) {
	body, err := plain(rec)
	if err != nil {
		r.t.Errorf("%s:%d: %v", r.sc.file, x.no, err)
	}
	var theirs, ours struct {
		Queue string `json:"queue_id"`
	}
	if x.Path == "/api/v1/register" || strings.HasPrefix(x.Path, "/api/v1/register?") {
		json.Unmarshal([]byte(x.Body), &theirs)
		json.Unmarshal(body, &ours)
		r.mu.Lock()
		r.queues[theirs.Queue] = ours.Queue
		r.mu.Unlock()
	}
	if why := notImitated[r.sc.file][x.no]; why != "" {
		r.mu.Lock()
		r.skipped++
		r.mu.Unlock()
		return
	}
	r.mu.Lock()
	r.compared++
	for t, o := range r.queues {
		if o != "" {
			body = bytes.ReplaceAll(body, []byte(o), []byte(t))
		}
	}
	r.mu.Unlock()
	var wrong []string
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if rec.Code != x.Status {
		complain("status %d, Zulip %d", rec.Code, x.Status)
	}
	r.compareHeaders(x, rec, complain)
	if strings.HasPrefix(x.Headers["Content-Type"], "application/json") || strings.HasPrefix(x.Body, "{") {
		if strings.HasSuffix(string(body), "\n") != strings.HasSuffix(x.Body, "\n") {
			complain("newline at the end")
		}
		compareJSON("", parse(r.t, body), parse(r.t, []byte(x.Body)), complain)
	}
	if x.waited() || x.Status == 502 && x.Ms > 200 {
		if math.Abs(ended-x.end()) > 0.04 {
			complain("the poll ended at %.3f s, Zulip's at %.3f s", ended, x.end())
		}
	}
	if len(wrong) > 0 {
		r.t.Errorf("%s:%d: %s %s %v [%s]\n  %s\n  we:    %.600s\n  Zulip: %.600s", r.sc.file, x.no, x.Method, x.Path, x.Params, x.Note,
			strings.Join(wrong, "\n  "), body, x.Body)
	}
}

// plain returns an answer's body, unpacked.
func plain(rec *httptest.ResponseRecorder) ([]byte, error) {
	if rec.Header().Get("Content-Encoding") != "gzip" {
		return rec.Body.Bytes(), nil
	}
	z, err := gzip.NewReader(rec.Body)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// compareHeaders compares the headers that were recorded, spelling included.
func (r *replay) compareHeaders(x *exchange, rec *httptest.ResponseRecorder, complain func(string, ...any)) {
	for k, want := range x.Headers {
		switch k {
		case "Connection", "Content-Length", "Transfer-Encoding":
			continue // of the transport; how long a body is depends on names and ids
		}
		list, ok := rec.Header()[k]
		if !ok {
			complain("no header %s, Zulip %s", k, want)
			continue
		}
		got := list[0]
		switch {
		case strings.HasSuffix(k, "-Reset"):
			g, _ := strconv.ParseInt(got, 10, 64)
			w, _ := strconv.ParseInt(want, 10, 64)
			if g < w-1 || g > w+1 {
				complain("%s: %s, Zulip %s", k, got, want)
			}
		case k == "Retry-After":
			g, _ := strconv.ParseFloat(got, 64)
			w, _ := strconv.ParseFloat(want, 64)
			if math.Abs(g-w) > 0.03 {
				complain("%s: %s, Zulip %s", k, got, want)
			}
		case strings.HasSuffix(k, "-Remaining") && got != want:
			g, _ := strconv.Atoi(got)
			w, _ := strconv.Atoi(want)
			if g < w || strings.HasPrefix(r.sc.file, "rate-limit") {
				complain("%s: %s, Zulip %s", k, got, want)
				continue
			}
			// Requests that were not kept have used the account's budget before this one.
			r.s.mu.Lock()
			for range g - w {
				r.s.limit(r.keys[x.Who], strings.HasPrefix(k, "X-Ratelimit"))
			}
			r.s.mu.Unlock()
			r.unkept += g - w
		case got != want:
			complain("%s: %s, Zulip %s", k, got, want)
		}
	}
	for k := range rec.Header() {
		if _, ok := x.Headers[k]; !ok && k != "Content-Length" {
			complain("header %s that Zulip does not send", k)
		}
	}
}

// value is JSON with the order of its members.
type value struct {
	keys []string
	obj  map[string]value
	list []value
	leaf any
	kind string
}

func parse(t *testing.T, text []byte) value {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	v, err := parseValue(d)
	if err != nil {
		t.Errorf("no JSON: %v: %.200s", err, text)
	}
	return v
}

func parseValue(d *json.Decoder) (value, error) {
	tok, err := d.Token()
	if err != nil {
		return value{}, err
	}
	switch tok {
	case json.Delim('{'):
		v := value{kind: "object", obj: make(map[string]value)}
		for d.More() {
			k, err := d.Token()
			if err != nil {
				return v, err
			}
			key := k.(string)
			if v.obj[key], err = parseValue(d); err != nil {
				return v, err
			}
			v.keys = append(v.keys, key)
		}
		_, err = d.Token()
		return v, err
	case json.Delim('['):
		v := value{kind: "list"}
		for d.More() {
			e, err := parseValue(d)
			if err != nil {
				return v, err
			}
			v.list = append(v.list, e)
		}
		_, err = d.Token()
		return v, err
	}
	return value{kind: fmt.Sprintf("%T", tok), leaf: tok}, nil
}

// compareJSON compares two values: members and their order, and what they are.
func compareJSON(path string, got, want value, complain func(string, ...any)) {
	if _, ok := notCompared[path]; ok {
		if got.kind != want.kind && got.leaf != nil && want.leaf != nil {
			complain("%s is %v, Zulip's is %v", path, got.leaf, want.leaf)
		}
		return
	}
	if got.kind != want.kind {
		complain("%s is a %s, Zulip's a %s", path, got.kind, want.kind)
		return
	}
	switch got.kind {
	case "object":
		if !slices.Equal(got.keys, want.keys) {
			complain("%s has the members %v, Zulip's %v", path, got.keys, want.keys)
		}
		for _, k := range got.keys {
			if w, ok := want.obj[k]; ok {
				compareJSON(strings.TrimPrefix(path+"."+k, "."), got.obj[k], w, complain)
			}
		}
	case "list":
		if len(got.list) != len(want.list) {
			complain("%s has %d elements, Zulip's %d", path, len(got.list), len(want.list))
			return
		}
		for i := range got.list {
			compareJSON(path, got.list[i], want.list[i], complain)
		}
	default:
		if got.leaf == want.leaf {
			return
		}
		if strings.HasSuffix(path, "timestamp") || path == "retry-after" || strings.HasSuffix(path, "last_updated") {
			g, _ := got.leaf.(json.Number).Float64()
			w, _ := want.leaf.(json.Number).Float64()
			if math.Abs(g-w) <= 1 {
				return
			}
		}
		complain("%s is %v, Zulip's %v", path, got.leaf, want.leaf)
	}
}

var scenarios = []scenario{
	{file: "protocol", epoch: 1795571633.875, least: 1, sweep: 71 * time.Second, setup: func(r *replay) {
		// A register of bot beside two writers, of which only a remark is kept.
		r.cause(10.940, func() {
			r.linger[r.keys["bot"].Email] = 6600 * time.Microsecond
			x := &exchange{Who: "bot", Method: "POST", Path: "/api/v1/register", Params: map[string]string{
				"event_types": `["message"]`, "fetch_event_types": `["message"]`}}
			rec := httptest.NewRecorder()
			r.s.ServeHTTP(rec, r.request(x))
			var a struct {
				Queue string `json:"queue_id"`
				Last  int    `json:"last_event_id"`
				Max   int    `json:"max_message_id"`
			}
			json.Unmarshal(rec.Body.Bytes(), &a)
			if a.Last != 0 || a.Max != 216 {
				r.t.Errorf("register beside two writers: last_event_id %d, max_message_id %d, Zulip 0 and 216", a.Last, a.Max)
			}
			r.queues["89477cbe-2c74-411f-aa35-a7bd328471f1"] = a.Queue
		})
		// A poll whose client went away after 0.7 s.
		r.cause(3.509, func() {
			ctx, cancel := context.WithTimeout(r.t.Context(), 700*time.Millisecond)
			defer cancel()
			x := &exchange{Who: "bot", Method: "GET", Path: "/api/v1/events", Params: map[string]string{
				"queue_id": "aa7e76a4-85ca-4ec2-b4c7-99043ee0645d", "last_event_id": "3"}}
			r.beat = 55 * time.Second
			r.s.ServeHTTP(httptest.NewRecorder(), r.request(x).WithContext(ctx))
		})
	}},
	{file: "corner-cases", epoch: 1795572166.1, least: 1, notices: []int64{278, 279}, setup: func(r *replay) {
		topic := func(name string) {
			var ids []int64
			for _, m := range r.s.Messages() {
				if m.Channel == "lab-corners" && strings.EqualFold(m.Topic, name) {
					ids = append(ids, m.ID)
				}
			}
			r.s.DeleteMessages(ids...)
		}
		r.cause(0.635, func() { topic("MIXED CASE") })
		r.cause(0.745, func() { topic("bulk") })
		watch := r.keys["watchbot"]
		r.cause(1.557, func() { watch.Update(func(a *Account) { a.DefaultChannel, a.AllPublic = "lab-far", true }) })
		r.cause(2.002, func() { watch.Update(func(a *Account) { a.DefaultChannel, a.AllPublic = "", false }) })
	}},
	{file: "errors", epoch: 1795571915.97, least: 1, setup: func(r *replay) {
		mortal := r.keys["mortal"]
		r.cause(1.31, func() { mortal.RegenerateKey() })
		r.cause(3.39, func() { mortal.Update(func(a *Account) { a.Deactivated = true }) })
	}},
	{file: "arguments-and-ends", epoch: 1795572592.91, least: 1, setup: func(r *replay) {
		r.cause(2.1, r.root.DeactivateRealm)
	}},
	{file: "rate-limit", epoch: 1795571922.1, least: 1},
	{file: "rate-limit-two-rules", epoch: 1795572215.2, least: 1},
	{file: "restart", epoch: 1795572048.0, least: 1},
	{file: "register", epoch: 1795572164.85, least: 1},
	{file: "history", epoch: 1795571837.66, least: 1, notices: []int64{251}},
	{file: "history-access", epoch: 1795573353.3, least: 1},
	{file: "merging-order", epoch: 1795573437.6, least: 1},
	{file: "idle-default", epoch: 1795572170.5, least: 1, sweep: 66 * time.Second},
}

// TestCaptured holds the simulator against a real server.
func TestCaptured(t *testing.T) {
	for _, sc := range scenarios {
		t.Run(sc.file, func(t *testing.T) {
			lines := load(t, sc.file)
			synctest.Test(t, func(t *testing.T) {
				r := &replay{t: t, sc: sc, lines: lines}
				r.run()
				t.Logf("%d exchanges compared, %d not imitated, %d were not kept", r.compared, r.skipped, r.unkept)
				if r.compared < sc.least {
					t.Errorf("only %d exchanges were compared, %d are expected", r.compared, sc.least)
				}
			})
		})
	}
}

var _ = context.Background
