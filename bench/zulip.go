//go:build linux

package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"zulip-nats/zulipsim"
)

// zulip is a simulated Zulip with one bot, which notes when its answers leave.
type zulip struct {
	*zulipsim.Server
	t   *scope
	url string
	bot *zulipsim.Account
	rc  string // path of the bot's zuliprc

	wrote  atomic.Int64 // when the newest piece of an answer was about to be written, by Unix, in ns
	polled atomic.Int64 // when the newest poll came
	polls  atomic.Int64 // how many came
	pages  atomic.Int64 // how many requests for history came
}

// newZulip starts a Zulip without rate limits that keeps nothing of what is over and does
// not compress, until the case ends.
func newZulip(t *scope, configure ...func(*zulipsim.Server)) *zulip {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	t.must(err)
	z := &zulip{t: t, url: "http://" + l.Addr().String()}
	z.Server = &zulipsim.Server{RealmURL: z.url, Forget: true, NoGzip: true, EventsRules: []zulipsim.RateRule{},
		APIRules: []zulipsim.RateRule{}}
	for _, f := range configure {
		f(z.Server)
	}
	z.bot = z.Account("bridge-bot@example.com")
	srv := &http.Server{Handler: z}
	go srv.Serve(stamped{l, z})
	t.Cleanup(func() { srv.Close() })
	z.at(z.url)
	return z
}

// at writes the zuliprc anew, for a Zulip that is reached by another address.
func (z *zulip) at(url string) {
	z.rc = filepath.Join(z.t.TempDir(), "zuliprc")
	z.t.must(os.WriteFile(z.rc, fmt.Appendf(nil, "[api]\nemail=%s\nkey=%s\nsite=%s\n", z.bot.Email, z.bot.Key, url), 0o600))
}

func (z *zulip) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method + " " + r.URL.Path {
	case "GET /api/v1/events":
		z.polled.Store(time.Now().UnixNano())
		z.polls.Add(1)
	case "GET /api/v1/messages":
		z.pages.Add(1)
	}
	z.Server.ServeHTTP(w, r)
}

// stamped is a listener whose connections tell when they are written to.
type stamped struct {
	net.Listener
	z *zulip
}

func (l stamped) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return stampedConn{c, l.z}, err
}

type stampedConn struct {
	net.Conn
	z *zulip
}

func (c stampedConn) Write(p []byte) (int, error) {
	c.z.wrote.Store(time.Now().UnixNano())
	return c.Conn.Write(p)
}

// waiting waits until a poll waits, and gives its queue.
func (z *zulip) waiting() (found zulipsim.QueueInfo) {
	z.t.wait("a poll that waits", 200*time.Microsecond, func() bool {
		for _, q := range z.Queues() {
			if q.Dead == "" && q.Waiting {
				found = q
				return true
			}
		}
		return false
	})
	return found
}

// drained gives out n events in one answer, and says how long it takes from then on until
// the next poll acknowledges the last of them, by when all are stored.
func (z *zulip) drained(n int, event func(dst []byte, id int64) []byte) time.Duration {
	q := z.waiting()
	last := q.NextID + int64(n) - 1
	began := time.Now()
	z.FillAnswer(q.ID, n, event)
	z.t.wait(fmt.Sprintf("event %d to be acknowledged", last), time.Millisecond, func() bool {
		for _, now := range z.Queues() {
			if now.ID == q.ID && now.Dead != "" {
				z.t.Fatalf("the queue is %s", now.Dead)
			}
			if now.ID == q.ID && now.NewestPruned >= last {
				return true
			}
		}
		return false
	})
	return time.Since(began)
}

// made writes message events of about size bytes, as fast as can be, since the simulator
// that sends them runs beside what is measured.
func made(size int) func(dst []byte, id int64) []byte {
	head, middle := `{"type":"message","message":{"id":`, `,"sender_id":9,"content":"`
	tail := `","recipient_id":31,"timestamp":1764000000,"client":"website","subject":"build","topic_links":[],"is_me_message":false,` +
		`"reactions":[],"submessages":[],"sender_full_name":"Ada Lovelace","sender_email":"ada@example.com","sender_realm_str":"acme",` +
		`"display_recipient":"general","type":"stream","stream_id":6,"avatar_url":null,"content_type":"text/x-markdown"},"flags":[],"id":`
	if size < 400 { // a bare one
		tail = `","type":"stream","stream_id":6},"id":`
	}
	middle += strings.Repeat("all work and no play ", size/21+1)[:max(0, size-len(head)-len(middle)-len(tail)-14)]
	return func(dst []byte, id int64) []byte {
		dst = append(dst, head...)
		dst = strconv.AppendInt(dst, 1_000_000+id, 10)
		dst = append(dst, middle...)
		dst = append(dst, tail...)
		dst = strconv.AppendInt(dst, id, 10)
		return append(dst, '}')
	}
}
