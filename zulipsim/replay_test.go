package zulipsim

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"html"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

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
	return x.Method == "GET" && x.Path == "/api/v1/events" && x.Status == 200 &&
		strings.Contains(x.Body, `],"queue_id":"`)
}

// scenario is one file and what has to be known to live through it again.
type scenario struct {
	file  string
	epoch float64 // when it began, in UNIX seconds: the one moment that fits all its rate limit headers
	// sweep is when Tornado first looks for idle queues.
	sweep time.Duration
	// late says how much later than it was made a request began to be served.
	late map[int]float64
	// before says of messages whose sending was not kept when they were there, where no
	// answer tells.
	before map[int64]float64
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
	unkept            map[*Account]int // requests whose exchange is not in the file, seen by what they left of the budget
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
	r.s = &Server{RealmURL: "http://127.0.0.1:9991", Heartbeat: r.heartbeat, DuringRegister: r.duringRegister,
		SweepFirst: r.sc.sweep + 2*time.Second}
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
		7: "engineering-0", 8: "café.müller ✓ > v1.0 *-0", 15: "lobby-1", 20: "lobby-2", 22: "lab-protocol",
		23: "lab-register",
		24: "lab-history", 25: "lab-unsubscribed", 26: "lab-restart", 27: "lab-corners", 28: "lab-far",
		32: "lab-guests",
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

	r.root = &Server{RealmURL: "http://localhost:9991", RealmName: "Root Org", Heartbeat: r.heartbeat, Seed: 1}
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

// messagesSeen finds the messages that answers show but whose sending was not kept, and
// makes each happen just before it was first seen: at the end of a poll that waited for
// it, or before any other answer. Older ones than the scenario are there from its
// beginning.
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
			first[a.ID] = min(cmp.Or(first[a.ID], math.Inf(1)), x.effect())
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
			first[h.ID] = min(cmp.Or(first[h.ID], math.Inf(1)), when)
		}
		orders = append(orders, order)
		if x.Path == "/api/v1/messages/flags" { // what is flagged is there
			var ids []int64
			json.Unmarshal([]byte(x.Params["messages"]), &ids)
			for _, id := range ids {
				first[id] = min(cmp.Or(first[id], math.Inf(1)), x.effect()-0.001)
			}
		}
	}
	for id, t := range r.sc.before {
		first[id] = min(first[id], t)
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
			if at < 0 {
				r.s.mu.Lock()
				r.s.find(id).sent = time.Unix(h.Timestamp, 0)
				r.s.mu.Unlock()
			}
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
	r.unkept = make(map[*Account]int)
	r.messagesSeen()
	if r.sc.setup != nil {
		r.sc.setup(r)
	}
	var all sync.WaitGroup
	slices.SortStableFunc(r.causes, func(a, b cause) int { return cmp.Compare(a.at, b.at) })
	all.Go(func() {
		for _, c := range r.causes {
			r.at(c.at)
			all.Go(c.do)
			synctest.Wait()
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
	case r.sc.late[x.no] > 0:
		when += r.sc.late[x.no]
	case x.Status == 500:
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

// request builds the request of an exchange, with our own key and our own name of its
// queue.
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
		var email, key string
		a.Update(func(a *Account) { email, key = a.Email, a.Key }) // another request's effect may change it
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

// burst makes requests of which only the number was kept, evenly between two moments.
func (r *replay) burst(n int, from, to float64, who, path, note string) {
	x := &exchange{Who: who, Method: "GET", Path: path, Note: note}
	for i := range n {
		at := from + (to-from)*float64(i)/float64(n)
		r.cause(at, func() { r.s.ServeHTTP(httptest.NewRecorder(), r.request(x)) })
	}
}
