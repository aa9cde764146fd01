package poller

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/zulipsim"
)

// world is a simulated Zulip with one poller on it, inside a synctest bubble.
type world struct {
	*Poller
	t   *testing.T
	sim *zulipsim.Server
	bot *zulipsim.Account
	tap *tap
	log *logged
	at  Position
	reg *Registration

	sent []time.Time // when busy let events happen
	came int         // how many of them are here
}

// tap notes every request on its way.
type tap struct {
	to http.RoundTripper

	mu   sync.Mutex
	seen []asked
}

type asked struct {
	at     time.Time
	req    *http.Request
	status int // 0: none
}

func (t *tap) RoundTrip(r *http.Request) (*http.Response, error) {
	now := time.Now()
	resp, err := t.to.RoundTrip(r)
	t.mu.Lock()
	defer t.mu.Unlock()
	a := asked{at: now, req: r}
	if err == nil {
		a.status = resp.StatusCode
	}
	t.seen = append(t.seen, a)
	return resp, err
}

func (t *tap) CloseIdleConnections() {
	t.to.(interface{ CloseIdleConnections() }).CloseIdleConnections()
}

// since are the requests whose answer came after the first n.
func (t *tap) since(n int) []asked {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.seen[n:])
}

func (t *tap) count() int { return len(t.since(0)) }

// logged keeps the lines of a log.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logged) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.FieldsFunc(l.buf.String(), func(r rune) bool { return r == '\n' })
}

// bubble runs a test in a synctest bubble with a world in it. setup may change the server
// before it is used.
func bubble(t *testing.T, setup func(*zulipsim.Server), test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, sim: &zulipsim.Server{}, log: &logged{}}
		if setup != nil {
			setup(w.sim)
		}
		w.bot = w.sim.Account("bridge-bot@example.com")
		w.tap = &tap{to: w.sim.Client().Transport}
		w.Poller = &Poller{
			Client: &Client{Transport: w.tap, Account: func() (Account, error) {
				return Account{Email: w.bot.Email, Key: w.bot.Key, Site: "http://zulip.test"}, nil
			}},
			Options: DefaultOptions(),
			Log:     zerolog.New(w.log),
		}
		t.Cleanup(func() {
			w.Close()
			w.sim.Close()
			for _, a := range w.tap.since(0) {
				if got := a.req.Header.Get("Accept-Language"); got != "en" {
					t.Errorf("%s asks for the language %q", a.req.URL.Path, got)
				}
			}
			for _, line := range w.log.lines() {
				if strings.Contains(line, w.bot.Key) {
					t.Errorf("the key is in the log: %s", line)
				}
			}
		})
		w.sim.Complain(t, func(_ string, id int64) bool { return id <= w.at.Last })
		test(t, w)
	})
}

// register makes a queue and follows it.
func (w *world) register() {
	w.t.Helper()
	sent := time.Now()
	r, err := w.Register(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	w.reg, w.at = r, Position{r.QueueID, -1}
	w.Follow(Queue{ID: r.QueueID, Life: r.Life, Patience: r.Patience, Renewed: sent})
}

// next takes the next batch, and with it the position.
func (w *world) next() []Event {
	w.t.Helper()
	b, err := w.Next(w.t.Context(), w.at)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range b.Events {
		if e.Fault == "" && e.ID != w.at.Last+1 {
			w.t.Fatalf("event %d behind %d", e.ID, w.at.Last)
		}
		if e.HasID {
			w.at.Last = max(w.at.Last, e.ID)
		}
	}
	return b.Events
}

// send sends n messages.
func (w *world) send(n int) {
	for range n {
		w.sim.SendMessage(zulipsim.Message{Channel: "general", Topic: "test", Content: "hello"})
	}
}

// says fails unless exactly n lines of the log contain all words.
func (w *world) says(n int, words ...string) {
	w.t.Helper()
	found := 0
	for _, line := range w.log.lines() {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
			found++
		}
	}
	if found != n {
		w.t.Errorf("%d lines say %q, not %d:\n%s", found, words, n, strings.Join(w.log.lines(), "\n"))
	}
}

// slow fails if the requests seen came faster than one a second, but for a few quick ones
// at the start.
func (w *world) slow(seen []asked) {
	w.t.Helper()
	const quick = 6
	for i := range seen {
		for j := i + quick + 1; j < len(seen); j++ {
			if span := seen[j].at.Sub(seen[i].at); span < time.Duration(j-i-quick)*time.Second {
				w.t.Fatalf("%d requests in %v", j-i+1, span)
			}
		}
	}
}

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // net/http tells of bodies that are longer than declared
	os.Exit(m.Run())
}
