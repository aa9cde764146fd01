package chaos_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// configured is a nats-server in a process of its own, a part of whose configuration the
// test can change.
type configured struct {
	*natstest.Process
	t         testing.TB
	more, pid string // paths
}

func startConfigured(t testing.TB, text string) *configured {
	t.Helper()
	dir := t.TempDir()
	c := &configured{t: t, more: filepath.Join(dir, "more.conf"), pid: filepath.Join(dir, "pid")}
	c.write(text)
	// A path in an include is looked for from the folder of the configuration file, even
	// if it begins with a slash: that folder is another one below the same parent.
	include := filepath.Join("..", filepath.Base(dir), "more.conf")
	c.Process = natstest.StartProcess(t, fmt.Sprintf("pid_file: %q\ninclude %q\n", c.pid, include))
	return c
}

func (c *configured) write(text string) { harness.WriteFile(c.t, c.more, text+"\n") }

// reload changes the configuration while the server runs, with SIGHUP.
func (c *configured) reload(text string) {
	c.t.Helper()
	c.write(text)
	loaded := func() int {
		text, err := os.ReadFile(c.LogFile())
		harness.Must(c.t, err)
		return strings.Count(string(text), "Reloaded server configuration")
	}
	before := loaded()
	harness.Must(c.t, syscall.Kill(c.processID(), syscall.SIGHUP))
	harness.Eventually(c.t, "the server to reload its configuration", func() bool { return loaded() > before })
}

// processID is the server's.
func (c *configured) processID() int {
	c.t.Helper()
	b, err := os.ReadFile(c.pid)
	harness.Must(c.t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	harness.Must(c.t, err)
	return pid
}

// unanswered is what the log says of a write whose answer did not come: within two
// seconds, or four round trips of a slow machine.
var unanswered = []string{"no acknowledgement for ", "it may be stored, or may yet be"}

// as puts a user and a password in a URL.
func as(url, user string) string {
	return strings.Replace(url, "nats://", "nats://"+user+":secret@", 1)
}

// TestNATSDown kills the nats-server for most of the time that Zulip keeps the queue: the
// program counts down, and nothing is lost. It is half an hour's outage under a queue's
// life that is a little longer, at another scale. Zulip drops what is overdue when it
// comes to it, and does not within this test: in how many of the last ten seconds this
// machine starts a nats-server is its own affair.
func TestNATSDown(t *testing.T) {
	t.Parallel()
	n := natstest.StartProcess(t, "")
	w := newWorld(t, "acme", n.URL, n.URL, func(z *zulipsim.Server) {
		z.SweepEvery = time.Hour
		z.Heartbeat = func() time.Duration { return time.Second }
	})
	p := w.follow("--no-lease", "--queue-life", "40s")
	w.polled()
	rng := harness.Rand(t)
	w.talk(rng, 50)
	w.settle()
	stop := w.chat(rng.Uint64(), 100)
	n.Kill()
	p.Expect("connection to NATS lost; waiting for it to come back")
	p.Expect("NATS is not there; waiting for it")
	for _, most := range []time.Duration{40 * time.Second, 20 * time.Second, 10 * time.Second} {
		harness.Eventually(t, fmt.Sprintf("a line of the countdown with %v at most", most), func() bool {
			for _, line := range p.Lines("does not take events: waiting, while Zulip's queue keeps them") {
				var said struct {
					Left string `json:"queue_lives_for"`
				}
				harness.Must(t, json.Unmarshal([]byte(line), &said))
				if left, err := time.ParseDuration(said.Left); err == nil && left <= most {
					return true
				}
			}
			return false
		})
	}
	// Zulip may have heard of the last poll that waited a while after it was sent.
	if out := time.Since(w.queues()[0].LastWait); out < 25*time.Second {
		t.Errorf("there are said to be 10 s left of 40 after %v", out)
	}
	for _, line := range p.Lines("queue_lives_for") {
		t.Log(line)
	}
	// When the server is back is the machine's affair, and the countdown goes on until then.
	if lines := p.Lines("does not take events"); len(lines) > 6 {
		t.Errorf("the outage is told in %d lines", len(lines))
	}
	stop()
	n.Start()
	p.Expect("JetStream serves us again")
	w.settle()
	v := w.check(time.Time{}).clean(t).everyMessage(w)
	if v.records["gap-opened"] > 0 { // another queue, in good order, is no gap: the old one has not long to live
		t.Error("a gap was opened, and nothing is missing")
	}
	t.Log(v)
}

// TestNATSDownTooLong kills the nats-server for longer than Zulip keeps the queue. That
// is told, and then the gap is told, and filled.
func TestNATSDownTooLong(t *testing.T) {
	t.Parallel()
	n := natstest.StartProcess(t, "")
	w := newWorld(t, "acme", n.URL, n.URL, func(z *zulipsim.Server) { z.SweepEvery = 500 * time.Millisecond })
	p := w.follow("--no-lease", "--queue-life", "15s") // a slow machine may need some of it between two polls
	w.polled()
	rng := harness.Rand(t)
	w.talk(rng, 50)
	w.settle()
	n.Kill()
	w.talk(rng, 200)
	p.Expect("does not take events", "Zulip may have dropped the queue by now")
	harness.Eventually(t, "Zulip to drop the queue", func() bool { return w.queues()[0].Dead != "" })
	w.talk(rng, 200)
	n.Start()
	p.Expect("JetStream serves us again")
	p.Expect("a gap is open", "Zulip has dropped the queue")
	p.Expect("the gap is closed", "messages_refilled")
	w.settle()
	w.talk(rng, 50)
	w.settle()
	v := w.check(time.Time{}).clean(t).everyMessage(w)
	if v.queues != 2 || v.records["gap-opened"] != 1 || v.records["gap-closed"] != 1 {
		t.Errorf("%d queues were followed, %d gaps opened, %d closed", v.queues, v.records["gap-opened"],
			v.records["gap-closed"])
	}
	t.Log(v)
}

// TestNATSGhosts lets writes land that were given up long ago: the nats-server hangs with
// publishes in its socket, the connection drops, the server wakes up and stores what it
// finds, and only then the program comes back.
func TestNATSGhosts(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"sync", "atomic", "fast"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			n := natstest.StartProcess(t, "")
			proxy := natstest.NewProxy(t, n.URL)
			w := newWorld(t, "acme", proxy.URL, n.URL)
			p := w.follow("--no-lease", "--publish-path", path)
			w.polled()
			rng := harness.Rand(t)
			for round := range 4 {
				w.settle()
				before := w.own().CachedInfo().State.LastSeq
				late, back := 0, len(p.Lines("JetStream serves us again"))
				hung := make(chan struct{})
				hangAt := 2 + rng.IntN(40) // in the middle of a chunk, which is what came while the first event was stored
				var mu sync.Mutex
				left := map[string]bool{} // the events that have left; on a slow machine one does so twice, and is stored once
				proxy.OnPublish(func(m natstest.Publish) natstest.Fate {
					mu.Lock()
					defer mu.Unlock()
					if !strings.HasPrefix(m.Subject, "zulip.acme.") || len(left) >= hangAt {
						return natstest.Pass
					}
					_, event, _ := strings.Cut(string(m.Payload), "\r\n"+events.HeaderEventID+": ")
					event, _, _ = strings.Cut(event, "\r\n")
					if left[event] = true; len(left) == hangAt {
						late = len(p.Lines(unanswered...))
						n.Pause()
						close(hung)
					}
					return natstest.Pass
				})
				w.talk(rng, 300)
				select {
				case <-hung:
				case <-time.After(harness.Patience):
					t.Fatal("the server was not made to hang")
				}
				p.ExpectAgain(late, unanswered...)
				if round%2 == 0 { // otherwise the connection lasts
					p.Pause()
					proxy.LoseClients()
					n.Resume()
					harness.Eventually(t, "the server to store what it finds in its sockets", func() bool {
						_, err := w.js.AccountInfo(t.Context())
						return err == nil && w.own().CachedInfo().State.LastSeq-before >= uint64(hangAt)
					})
					p.Resume()
				} else {
					n.Resume()
				}
				p.ExpectAgain(back, "JetStream serves us again")
			}
			w.settle()
			t.Log(w.check(time.Time{}).clean(t).oneQueue(w, 0).everyMessage(w))
		})
	}
}

// TestNATSNoQuorum pauses two of three servers, so that the third can store nothing for
// good, and then kills the leader: an election.
func TestNATSNoQuorum(t *testing.T) {
	t.Parallel()
	all := natstest.StartProcesses(t, 3, "")
	var urls []string
	for _, n := range all {
		urls = append(urls, n.URL)
	}
	view := strings.Join(urls, ",")
	w := newWorld(t, "acme", view, view)
	w.makeStream(3)
	s := &servers{t: t, all: all, worlds: []*world{w}, leaders: map[string]string{}}
	s.healthy()
	w.nats = s.leader(w.stream).URL // it sees the leader hang on to its place
	p := w.follow("--no-lease")
	w.polled()
	rng := harness.Rand(t)
	w.talk(rng, 50)
	w.settle()

	leader := s.leader(w.stream)
	for _, n := range all {
		if n != leader {
			n.Pause()
		}
	}
	w.talk(rng, 200)
	p.Expect(append([]string{"does not take events"}, unanswered...)...)
	for _, n := range all {
		n.Resume()
	}
	p.Expect("JetStream serves us again")
	w.settle()
	s.healthy()

	leader = s.leader(w.stream)
	away, back := len(p.Lines("does not take events")), len(p.Lines("JetStream serves us again"))
	leader.Kill()
	w.talk(rng, 200)
	p.ExpectAgain(away, "does not take events: waiting, while Zulip's queue keeps them")
	p.ExpectAgain(back, "JetStream serves us again")
	t.Log(p.Lines("does not take events")[away:])
	leader.Start()
	s.healthy()
	w.settle()
	t.Log(w.check(time.Time{}).clean(t).oneQueue(w, 0).everyMessage(w))
}

// TestNATSSlow puts the nats-server far away: first by 0.4 s there and back, then by more
// than a write may take, so that each acknowledgement comes too late, then near again.
func TestNATSSlow(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	proxy := natstest.NewProxy(t, server.URL)
	w := newWorld(t, "acme", proxy.URL, server.URL)
	p := w.follow("--no-lease")
	w.polled()
	rng := harness.Rand(t)
	proxy.Delay(200 * time.Millisecond)
	w.talk(rng, 300)
	w.settle()
	proxy.Delay(1200 * time.Millisecond)
	w.talk(rng, 100)
	p.Expect(unanswered...)
	stored := w.own().CachedInfo().State.LastSeq
	harness.Eventually(t, "something to be stored all the same",
		func() bool { return w.own().CachedInfo().State.LastSeq > stored })
	proxy.Delay(0)
	w.settle()
	t.Log(w.check(time.Time{}).clean(t).oneQueue(w, 0).everyMessage(w))
}

var slow = flag.Duration("slow", 1300*time.Millisecond, "how long each way to NATS takes in TestNATSVerySlow")

// TestNATSVerySlow makes each way to NATS so long that an answer takes more than the two
// seconds which a request has at first, from the start or from the middle on: events are
// stored all the same, only later.
func TestNATSVerySlow(t *testing.T) {
	t.Parallel()
	for _, from := range []string{"from the start", "later"} {
		t.Run(from, func(t *testing.T) {
			t.Parallel()
			server := natstest.Start(t)
			proxy := natstest.NewProxy(t, server.URL)
			w := newWorld(t, "acme", proxy.URL, server.URL)
			rng := harness.Rand(t)
			if from == "from the start" {
				proxy.Delay(*slow)
			}
			p := w.follow()
			began := time.Now()
			if from == "later" {
				w.polled()
				w.talk(rng, 5)
				w.settle()
				proxy.Delay(*slow)
			} else {
				harness.Eventually(t, "a queue to be made", func() bool { return len(w.queues()) > 0 })
			}
			w.talk(rng, 5)
			// A minute is usual, since the lease is lost on such a way now and then, and more so on
			// a slow machine.
			if !harness.Within(4*harness.Patience, func() bool {
				return slices.ContainsFunc(w.queues(), func(q zulipsim.QueueInfo) bool { return q.Dead == "" && settled(q) })
			}) {
				t.Fatalf("not stored after %v", time.Since(began))
			}
			t.Logf("stored after %v", time.Since(began).Round(time.Second))
			proxy.Delay(0)
			w.settle()
			if !p.Alive() {
				t.Error("the program has ended")
			}
			t.Log(w.check(time.Time{}).clean(t).oneQueue(w, 0).everyMessage(w))
		})
	}
}

// TestNATSPermissions takes rights away from the program's user while it works, one after
// the other, and gives them back.
func TestNATSPermissions(t *testing.T) {
	t.Parallel()
	users := func(deny string) string {
		permissions := ""
		if deny != "" {
			permissions = fmt.Sprintf(", permissions: { publish: { deny: [%q] } }", deny)
		}
		return fmt.Sprintf("authorization { users: [ {user: admin, password: secret}, {user: bridge, password: "+
			"secret%s} ] }", permissions)
	}
	n := startConfigured(t, users(""))
	proxy := natstest.NewProxy(t, n.URL)
	w := newWorld(t, "acme", as(proxy.URL, "bridge"), as(n.URL, "admin"))
	p := w.follow("--no-lease")
	w.polled()
	rng := harness.Rand(t)
	for round, denied := range []struct{ pattern, subject string }{
		{"zulip.acme.>", "zulip.acme."}, {"$JS.API.STREAM.MSG.GET.>", "$JS.API.STREAM.MSG.GET.ZULIP_acme"},
	} {
		w.talk(rng, 50)
		w.settle()
		n.reload(users(denied.pattern))
		proxy.CutAll() // what may not be read is missed only where there is a reason to read
		w.talk(rng, 50)
		p.Expect("this NATS user may not publish to", denied.subject, "add it to the user's permissions")
		n.reload(users(""))
		p.ExpectAgain(round, "JetStream serves us again")
	}
	w.settle()
	if strings.Contains(strings.Join(p.Lines(), "\n"), "secret") {
		t.Error("the password is in the log")
	}
	t.Log(w.check(time.Time{}).clean(t).oneQueue(w, 0).everyMessage(w))
}

// TestNATSCredentials lets a user's credentials run out, and puts new ones in the same
// file: no restart is needed.
func TestNATSCredentials(t *testing.T) {
	t.Parallel()
	operator, account, system := newKey(t, nkeys.CreateOperator), newKey(t, nkeys.CreateAccount),
		newKey(t, nkeys.CreateAccount)
	operatorClaims := jwt.NewOperatorClaims(operator.public)
	operatorClaims.SystemAccount = system.public
	accountClaims := jwt.NewAccountClaims(account.public)
	accountClaims.Limits.JetStreamLimits = jwt.JetStreamLimits{DiskStorage: -1, MemoryStorage: -1, Streams: -1,
		Consumer: -1}
	sign := func(c jwt.Claims, by nkey) string {
		token, err := c.Encode(by.pair)
		harness.Must(t, err)
		return token
	}
	user := func(life time.Duration) string {
		u := newKey(t, nkeys.CreateUser)
		claims := jwt.NewUserClaims(u.public)
		if life > 0 {
			claims.Expires = time.Now().Add(life).Unix()
		}
		text, err := jwt.FormatUserConfig(sign(claims, account), u.seed)
		harness.Must(t, err)
		path := filepath.Join(t.TempDir(), "user.creds")
		harness.WriteFile(t, path, string(text))
		return path
	}
	n := startConfigured(t, fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: { %s: "+
		"%s, %s: %s }",
		sign(operatorClaims, operator), system.public, account.public, sign(accountClaims, operator), system.public,
		sign(jwt.NewAccountClaims(system.public), operator)))
	nc := natstest.Connect(t, n.URL, nats.UserCredentials(user(0)))
	w := newWorld(t, "acme", n.URL, n.URL)
	w.nc = nc
	w.js = natstest.JetStream(t, nc)

	// The program signs in again with those that last three seconds, or did.
	creds := user(0)
	proxy := natstest.NewProxy(t, n.URL)
	w.nats = proxy.URL
	p := w.follow("--no-lease", "--nats-creds", creds)
	w.polled()
	rng := harness.Rand(t)
	w.talk(rng, 50)
	w.settle()
	harness.Must(t, os.Rename(user(3*time.Second), creds))
	proxy.CutAll()
	w.talk(rng, 50)
	p.Expect("NATS refuses our credentials; waiting until they are right (files are read again at each attempt)")
	w.talk(rng, 50)
	harness.Must(t, os.Rename(user(0), creds))
	p.ExpectAgain(1, "connected to NATS")
	w.settle()
	t.Log(w.check(time.Time{}).clean(t).oneQueue(w, 0).everyMessage(w))
}

// TestNATSKeyRotated puts another seed in the file of an nkey, once the server knows it
// and no longer the old one.
func TestNATSKeyRotated(t *testing.T) {
	t.Parallel()
	first, second := newKey(t, nkeys.CreateUser), newKey(t, nkeys.CreateUser)
	users := func(k nkey) string {
		return fmt.Sprintf("authorization { users: [ {user: admin, password: secret}, {nkey: %s} ] }", k.public)
	}
	n := startConfigured(t, users(first))
	w := newWorld(t, "acme", n.URL, as(n.URL, "admin"))
	file := filepath.Join(t.TempDir(), "seed")
	harness.WriteFile(t, file, string(first.seed))
	p := w.follow("--no-lease", "--nats-nkey", file)
	w.polled()
	rng := harness.Rand(t)
	w.talk(rng, 50)
	w.settle()
	n.reload(users(second))
	w.talk(rng, 50)
	p.Expect("NATS refuses our credentials; waiting until they are right (files are read again at each attempt)")
	harness.WriteFile(t, file, string(second.seed))
	p.ExpectAgain(1, "connected to NATS")
	w.settle()
	t.Log(w.check(time.Time{}).clean(t).oneQueue(w, 0).everyMessage(w))
}

// nkey is a pair of keys of NATS.
type nkey struct {
	pair   nkeys.KeyPair
	public string
	seed   []byte
}

func newKey(t testing.TB, create func() (nkeys.KeyPair, error)) (k nkey) {
	t.Helper()
	var err error
	k.pair, err = create()
	harness.Must(t, err)
	k.public, err = k.pair.PublicKey()
	harness.Must(t, err)
	k.seed, err = k.pair.Seed()
	harness.Must(t, err)
	return k
}

// TestNATSMaxPayload restarts the server with a lower max_payload while an event is in
// hand that fitted before: it goes to the object store, and a stub in its place.
func TestNATSMaxPayload(t *testing.T) {
	t.Parallel()
	n := startConfigured(t, "")
	w := newWorld(t, "acme", n.URL, n.URL)
	p := w.follow("--no-lease")
	w.polled()
	rng := harness.Rand(t)
	w.talk(rng, 20)
	w.sized(50_000)
	w.settle()
	n.Kill()
	w.talk(rng, 20)
	w.sized(50_000)
	w.talk(rng, 20)
	p.Expect("does not take events: waiting")
	n.write("max_payload: 16KB")
	n.Start()
	p.Expect("an event is larger than a message may be: it is in the object store")
	w.settle()
	v := w.check(time.Time{}).clean(t).oneQueue(w, 0).everyMessage(w)
	if v.stubs != 1 {
		t.Errorf("%d stubs, want 1: the event that fitted before is a message, and the one after it is not", v.stubs)
	}
	t.Log(v)
}

// TestNATSWithoutJetStream starts the program with an account that has no JetStream. That
// is nothing to wait for: it says so and ends.
func TestNATSWithoutJetStream(t *testing.T) {
	t.Parallel()
	accounts := func(jetStream string) string {
		return fmt.Sprintf(`accounts {
	A { %s, users: [ {user: bridge, password: secret} ] }
	B { jetstream: enabled, users: [ {user: other, password: secret} ] }
}`, jetStream)
	}
	n := startConfigured(t, accounts("jetstream: disabled"))
	w := newWorld(t, "acme", as(n.URL, "bridge"), as(n.URL, "bridge"))
	p := w.follow("--no-lease")
	p.Expect("JetStream not enabled for account", "enable JetStream for this account, or use another account")
	harness.Eventually(t, "the program to end", func() bool { return !p.Alive() })
	if code := p.ExitCode(); code != 78 {
		t.Errorf("exit code %d, want 78 (a configuration that no waiting heals)", code)
	}
	if len(w.queues()) > 0 {
		t.Error("a queue was made at Zulip that nobody will follow")
	}
	n.reload(accounts("jetstream: enabled"))
	w.follow("--no-lease")
	w.polled()
	w.talk(harness.Rand(t), 50)
	w.settle()
	t.Log(w.check(time.Time{}).clean(t).oneQueue(w, 0).everyMessage(w))
}

// TestNATSTwoDomains lets a stream of another JetStream domain capture the same subjects:
// both store what is written, and either may acknowledge it. The acknowledgement of the
// wrong one counts for nothing. It is the first one, mostly: the program is connected to
// the server of that domain.
func TestNATSTwoDomains(t *testing.T) {
	t.Parallel()
	port := natstest.FreePort(t)
	hub := natstest.Start(t, func(o *server.Options) {
		o.ServerName, o.JetStreamDomain = "hub", "hub"
		o.LeafNode = server.LeafNodeOpts{Host: "127.0.0.1", Port: port}
	})
	leaf := natstest.Start(t, func(o *server.Options) {
		o.ServerName, o.JetStreamDomain = "leaf", "leaf"
		o.LeafNode.Remotes = []*server.RemoteLeafOpts{{URLs: []*url.URL{{Scheme: "nats-leaf",
			Host: fmt.Sprintf("127.0.0.1:%d", port)}}}}
	})
	harness.Eventually(t, "the leaf node", func() bool { return hub.Server().NumLeafNodes() == 1 })
	w := newWorld(t, "acme", hub.URL, leaf.URL)
	p := w.follow("--no-lease", "--publish-path", "sync", "--nats-js-domain", "leaf")
	w.polled()
	rng := harness.Rand(t)
	w.talk(rng, 50)
	w.settle()

	theirs, err := jetstream.NewWithDomain(w.nc, "hub")
	harness.Must(t, err)
	// It begins where ours is, so that it takes what ours takes.
	create := func() {
		natstest.CreateStream(t, theirs, jetstream.StreamConfig{Name: w.stream, Subjects: []string{"zulip.acme.>"},
			FirstSeq: w.own().CachedInfo().State.LastSeq + 1})
	}
	create()
	for tries := 1; ; tries++ {
		w.talk(rng, 50)
		if harness.Within(2*time.Second,
			func() bool { return len(p.Lines("acknowledged by stream", `domain`, "hub")) > 0 }) {
			break
		}
		if tries == 20 {
			t.Fatal("the other domain never was the first to acknowledge")
		}
		harness.Must(t, theirs.DeleteStream(t.Context(), w.stream))
		w.settle()
		create()
	}
	p.Expect("acknowledged by stream", "two streams capture the same subjects", "remove zulip.acme.> from one of them")
	harness.Must(t, theirs.DeleteStream(t.Context(), w.stream))
	p.Expect("JetStream serves us again")
	w.settle()
	t.Log(w.check(time.Time{}).clean(t).oneQueue(w, 0).everyMessage(w))
}

// TestNATSStorageFull lets the server run out of the storage that it may use, until the
// operator makes room.
func TestNATSStorageFull(t *testing.T) {
	t.Parallel()
	n := natstest.Start(t, func(o *server.Options) { o.JetStreamMaxStore = 1 << 20 })
	js := n.JetStream()
	// Somebody else's stream takes most of it.
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"other"}})
	harness.Must(t, err)
	for range 9 {
		_, err := js.Publish(t.Context(), "other", make([]byte, 100_000))
		harness.Must(t, err)
	}
	w := newWorld(t, "acme", n.URL, n.URL)
	p := w.follow("--no-lease")
	w.polled()
	rng := harness.Rand(t)
	for range 20 {
		w.sized(20_000)
		w.talk(rng, 5)
	}
	p.Expect("the server's JetStream storage is full", "make room or raise the limit")
	harness.Must(t, js.DeleteStream(t.Context(), "OTHER"))
	p.Expect("JetStream serves us again")
	w.settle()
	t.Log(w.check(time.Time{}).clean(t).oneQueue(w, 0).everyMessage(w))
}
