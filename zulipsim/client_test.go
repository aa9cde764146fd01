package zulipsim

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// client is a well-behaved client of one account, for tests.
type client struct {
	t       *testing.T
	http    *http.Client
	base    string
	account *Account
}

// answer is what it got.
type answer struct {
	status int
	header http.Header
	raw    string
	err    error

	Msg      string
	Code     string
	QueueID  *string           `json:"queue_id"`
	Last     int64             `json:"last_event_id"`
	Life     int64             `json:"idle_queue_timeout_secs"`
	Ignored  []string          `json:"ignored_parameters_unsupported"`
	Wait     float64           `json:"retry-after"`
	Events   []json.RawMessage `json:"events"`
	Messages []struct {
		ID      int64
		Content string
		Subject string
		Flags   []string
	}
	FoundOldest bool  `json:"found_oldest"`
	FoundNewest bool  `json:"found_newest"`
	FoundAnchor bool  `json:"found_anchor"`
	Anchor      int64 `json:"anchor"`
}

// ids are the ids of the events.
func (a *answer) ids() []int64 {
	var ids []int64
	for _, e := range a.Events {
		var id struct{ ID int64 }
		json.Unmarshal(e, &id)
		ids = append(ids, id.ID)
	}
	return ids
}

// types are the types of the events, with their op.
func (a *answer) types() string {
	var list []string
	for _, e := range a.Events {
		var ev struct{ Type, Op string }
		json.Unmarshal(e, &ev)
		list = append(list, strings.Trim(ev.Type+"/"+ev.Op, "/"))
	}
	return strings.Join(list, " ")
}

// do makes a request; params are pairs of name and value.
func (c *client) do(ctx context.Context, method, path string, params ...string) *answer {
	c.t.Helper()
	form := make(url.Values)
	for i := 0; i+1 < len(params); i += 2 {
		form.Set(params[i], params[i+1])
	}
	target, body := c.base+"/api/v1"+path, form.Encode()
	if method == "GET" {
		target, body = target+"?"+body, ""
	}
	req, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("User-Agent", "SimTest/1.0")
	req.SetBasicAuth(c.account.Email, c.account.Key)
	a := new(answer)
	resp, err := c.http.Do(req)
	if err != nil {
		a.err = err
		return a
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	a.status, a.header, a.raw, a.err = resp.StatusCode, resp.Header, string(raw), err
	json.Unmarshal(raw, a)
	return a
}

func (c *client) get(path string, params ...string) *answer {
	c.t.Helper()
	return c.do(c.t.Context(), "GET", path, params...)
}

func (c *client) post(path string, params ...string) *answer {
	c.t.Helper()
	return c.do(c.t.Context(), "POST", path, params...)
}

// register makes a queue without state.
func (c *client) register(params ...string) string {
	c.t.Helper()
	a := c.post("/register", append([]string{"fetch_event_types", "[]"}, params...)...)
	if a.status != 200 || a.QueueID == nil {
		c.t.Fatalf("register: %d %s %v", a.status, a.raw, a.err)
	}
	return *a.QueueID
}

// poll waits for events; peek does not.
func (c *client) poll(queue string, last int64) *answer {
	c.t.Helper()
	return c.get("/events", "queue_id", queue, "last_event_id", fmt.Sprint(last))
}

func (c *client) peek(queue string, last int64) *answer {
	c.t.Helper()
	return c.get("/events", "queue_id", queue, "last_event_id", fmt.Sprint(last), "dont_block", "true")
}

// freshConnections makes every request use a new connection: on one that was used before,
// net/http asks again by itself when it is cut.
func (c *client) freshConnections() { c.http.Transport.(*http.Transport).DisableKeepAlives = true }

// world runs f in a bubble with a server and a client of a bot that is subscribed to
// everything.
func world(t *testing.T, s *Server, f func(t *testing.T, c *client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &client{t: t, http: s.Client(), base: "http://zulip.test", account: s.Account("bridge-bot@example.com")}
		defer s.Close()
		f(t, c)
	})
}

// say sends a message to a public channel.
func (s *Server) say(text string) int64 {
	return s.SendMessage(Message{Channel: "general", Topic: "t", Content: text})
}

// after runs f in the background when d has passed.
func after(d time.Duration, f func()) {
	go func() {
		time.Sleep(d)
		f()
	}()
}

// want fails the test if two values differ.
func want[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		t.Errorf("%s: %s, want %s", what, g, w)
	}
}
