package lease_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"zulip-nats/health"
	"zulip-nats/lease"
	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

func TestMain(m *testing.M) {
	natstest.Main()
	if url := os.Getenv("LEASE_TEST_URL"); url != "" {
		holdUntilKilled(url)
	}
	natstest.Parallel(8)
	os.Exit(m.Run())
}

// holdUntilKilled is another instance, in a process of its own: it acquires the lease and
// says so, and then answers each line on its standard input with whether it still holds
// it.
func holdUntilKilled(url string) {
	nc, err := stream.Connect(context.Background(), stream.ConnectConfig{URL: url})
	if err == nil {
		ttl, _ := time.ParseDuration(os.Getenv("LEASE_TEST_TTL"))
		var l *lease.Lease
		if l, err = lease.Acquire(context.Background(),
			lease.Config{Conn: nc, Realm: "acme", Writer: "child", TTL: ttl}); err == nil {
			fmt.Println("acquired")
			for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
				fmt.Println("held", l.Held())
			}
			os.Exit(0)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// child is that process.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startChild(t *testing.T, url string, ttl time.Duration) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "LEASE_TEST_URL="+url, "LEASE_TEST_TTL="+ttl.String())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd, in, bufio.NewScanner(out)}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line := c.line(t); line != "acquired" {
		t.Fatalf("the child says %q", line)
	}
	return c
}

func (c *child) line(t *testing.T) string {
	t.Helper()
	if !c.out.Scan() {
		t.Fatalf("the child says nothing more: %v", c.out.Err())
	}
	return c.out.Text()
}

func (c *child) held(t *testing.T) string {
	t.Helper()
	if _, err := io.WriteString(c.in, "?\n"); err != nil {
		t.Fatal(err)
	}
	return c.line(t)
}

func connect(t *testing.T, url string) *stream.Conn {
	t.Helper()
	nc, err := stream.Connect(t.Context(), stream.ConnectConfig{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// config is for a writer with a connection of its own.
func config(t *testing.T, url, writer string, ttl time.Duration) lease.Config {
	t.Helper()
	return lease.Config{Conn: connect(t, url), Realm: "acme", Writer: writer, TTL: ttl, Log: natstest.Log(t)}
}

func acquire(t *testing.T, cfg lease.Config) *lease.Lease {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l, err := lease.Acquire(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Release(context.Background()) })
	return l
}

// waiting is an Acquire under way.
type waiting struct {
	standby  chan lease.Holder
	acquired chan *lease.Lease
}

func acquireLater(t *testing.T, cfg lease.Config) waiting {
	t.Helper()
	w := waiting{make(chan lease.Holder, 10), make(chan *lease.Lease, 1)}
	cfg.Standby = func(h lease.Holder) { w.standby <- h }
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	var running sync.WaitGroup
	running.Go(func() {
		l, err := lease.Acquire(ctx, cfg)
		if err != nil && ctx.Err() == nil {
			t.Error(err)
		}
		w.acquired <- l
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return w
}

// stands waits until it stands by, and says for whom.
func (w waiting) stands(t *testing.T) lease.Holder {
	t.Helper()
	select {
	case h := <-w.standby:
		return h
	case l := <-w.acquired:
		t.Fatalf("it has a lease, or none (%v), and should stand by", l != nil)
		return lease.Holder{}
	}
}

func (w waiting) lease(t *testing.T) *lease.Lease {
	t.Helper()
	l := <-w.acquired
	if l == nil {
		t.Fatal("no lease")
	}
	t.Cleanup(func() { _ = l.Release(context.Background()) })
	return l
}

func key(t *testing.T, js jetstream.JetStream) (*jetstream.RawStreamMsg, jetstream.Stream) {
	t.Helper()
	s, err := js.Stream(t.Context(), "KV_zulip_bridge")
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.GetLastMsgForSubject(t.Context(), "$KV.zulip_bridge.acme.lease")
	if err != nil {
		t.Fatal(err)
	}
	return m, s
}

// Who stands by says again and again that it is alive, for as long as it waits.
func TestPulse(t *testing.T) {
	t.Parallel()
	url := natstest.Start(t).URL
	acquire(t, config(t, url, "one", 0))
	var p health.Pulse
	ctx, cancel := context.WithCancel(health.WithPulse(t.Context(), &p))
	two, ended := config(t, url, "two", 0), make(chan error, 1)
	go func() {
		_, err := lease.Acquire(ctx, two)
		ended <- err
	}()
	for range 3 {
		health.Waits(ctx, -time.Hour)
		for end := time.Now().Add(2 * time.Minute); p.Late() > time.Minute; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("who stands by gives no sign of life")
			}
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestHandOver(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	js := srv.JetStream()
	first := acquire(t, config(t, srv.URL, "one", 9*time.Second))
	if !first.Held() || first.Context().Err() != nil {
		t.Fatal("a lease that was just had is not held")
	}
	second := acquireLater(t, config(t, srv.URL, "two", 9*time.Second))
	holder := second.stands(t)
	if holder.Writer != "one" || holder.PID != os.Getpid() || holder.Host == "" ||
		time.Since(holder.Since) > time.Minute {
		t.Errorf("the one who stands by hears of %+v", holder)
	}

	// It is renewed, each time with a life of its own, or it would stay for ever.
	m, _ := key(t, js)
	for seen := m.Sequence; m.Sequence < seen+4; m, _ = key(t, js) {
		if m.Header.Get("Nats-TTL") != "9s" {
			t.Fatalf("the key lives for %q", m.Header.Get("Nats-TTL"))
		}
		time.Sleep(50 * time.Millisecond)
	}
	if !first.Held() {
		t.Error("the lease is lost after more than its life, though it was renewed")
	}
	select {
	case <-second.acquired:
		t.Fatal("two have the lease")
	default:
	}

	if err := first.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if first.Held() || first.Context().Err() == nil || errors.Is(context.Cause(first.Context()), lease.ErrLost) {
		t.Errorf("after the release: held %v, cause %v", first.Held(), context.Cause(first.Context()))
	}
	after := second.lease(t)
	if !after.Held() {
		t.Error("the second does not hold what it got")
	}
	if n := len(second.standby); n != 0 {
		t.Errorf("the second was told %d times more to stand by", n)
	}
	if err := first.Release(t.Context()); err != nil || !after.Held() { // a second time does nothing
		t.Error("a release took the lease from another")
	}

	s, err := js.KeyValue(t.Context(), "zulip_bridge")
	if err != nil {
		t.Fatal(err)
	}
	entry, err := s.Get(t.Context(), "acme.lease")
	if err != nil || !bytes.Contains(entry.Value(), []byte(`"writer":"two"`)) {
		t.Errorf("any KV client reads %s (%v)", entry.Value(), err)
	}
}

// A lease that is lost because NATS is away says so, and nobody else is blamed.
func TestLostWithNATS(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	l := acquire(t, config(t, srv.URL, "one", 9*time.Second))
	srv.Stop()
	<-l.Context().Done()
	if cause := context.Cause(l.Context()); !errors.Is(cause, lease.ErrLost) ||
		!strings.Contains(cause.Error(), "NATS was away") {
		t.Errorf("the cause is %v", cause)
	}
}

// The key of a lease that was lost may outlive it. Then it is waited for, and not taken
// for another instance.
func TestOwnLeaseFromBefore(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	proxy := natstest.NewProxy(t, srv.URL)
	first := acquire(t, config(t, proxy.URL, "one", 9*time.Second))
	again := acquireLater(t, config(t, srv.URL, "one", 9*time.Second))
	proxy.OnPublish(func(natstest.Publish) natstest.Fate { return natstest.Lose })
	if l := again.lease(t); !l.Held() || first.Held() {
		t.Error("it is not had again")
	}
	if len(again.standby) > 0 {
		t.Errorf("it stood by for %+v", <-again.standby)
	}
}

// The holder is cut off. It stops believing in itself before anybody else has the lease.
func TestCutOff(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	proxy := natstest.NewProxy(t, srv.URL)
	first := acquire(t, config(t, proxy.URL, "one", 9*time.Second))
	second := acquireLater(t, config(t, srv.URL, "two", 9*time.Second))
	second.stands(t)
	proxy.OnPublish(func(natstest.Publish) natstest.Fate { return natstest.Lose })
	l := second.lease(t)
	if first.Held() {
		t.Error("both hold the lease")
	}
	<-first.Context().Done()
	if cause := context.Cause(first.Context()); !errors.Is(cause, lease.ErrLost) {
		t.Errorf("the cause is %v", cause)
	}
	if !l.Held() {
		t.Error("the second does not hold what it got")
	}
}

// A renewal whose answer is lost was done all the same; so was one that timed out for
// some other reason. The holder stays the holder.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	proxy := natstest.NewProxy(t, srv.URL)
	l := acquire(t, config(t, proxy.URL, "one", 15*time.Second))
	var cuts atomic.Int64
	proxy.OnPublish(func(p natstest.Publish) natstest.Fate {
		if strings.HasPrefix(p.Subject, "$KV.") && cuts.Add(1)%2 == 1 {
			return natstest.PassAndCut
		}
		return natstest.Pass
	})
	// Two were cut off, and more time than the lease lives is over.
	for start := time.Now(); cuts.Load() < 5 || time.Since(start) < 16*time.Second; time.Sleep(20 * time.Millisecond) {
		if !l.Held() {
			t.Fatalf("lost after %d renewals: %v", cuts.Load(), context.Cause(l.Context()))
		}
	}
}

// The server restarts, which takes less than the lease's life: nothing changes hands.
func TestServerRestart(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	first := acquire(t, config(t, srv.URL, "one", 20*time.Second))
	second := acquireLater(t, config(t, srv.URL, "two", 20*time.Second))
	second.stands(t)
	began := time.Now()
	srv.Restart()
	js := srv.JetStream()
	m, _ := key(t, js)
	for seen := m.Sequence; m.Sequence < seen+2 || time.Since(began) < 21*time.Second; m, _ = key(t, js) {
		if !first.Held() {
			t.Fatalf("lost: %v", context.Cause(first.Context()))
		}
		time.Sleep(50 * time.Millisecond)
	}
	select {
	case <-second.acquired:
		t.Fatal("two have the lease")
	default:
	}
}

func TestTakenByForce(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	l := acquire(t, config(t, srv.URL, "one", 15*time.Second))
	kv, err := srv.JetStream().KeyValue(t.Context(), "zulip_bridge")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "acme.lease",
		[]byte(`{"writer":"usurper","host":"elsewhere","id":"x"}`)); err != nil {
		t.Fatal(err)
	}
	<-l.Context().Done()
	cause := context.Cause(l.Context())
	if !errors.Is(cause, lease.ErrLost) || !strings.Contains(cause.Error(), "usurper on elsewhere") || l.Held() {
		t.Errorf("held %v, cause %v", l.Held(), cause)
	}
}

// Somebody deletes the key, or the whole bucket, under the holder: as long as nobody else
// takes it, it stays ours.
func TestKeyDeleted(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	js := srv.JetStream()
	l := acquire(t, config(t, srv.URL, "one", 9*time.Second))
	kv, err := js.KeyValue(t.Context(), "zulip_bridge")
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Delete(t.Context(), "acme.lease"); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := kv.Get(t.Context(), "acme.lease"); err == nil {
			break
		}
		if !l.Held() {
			t.Fatalf("lost: %v", context.Cause(l.Context()))
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := js.DeleteKeyValue(t.Context(), "zulip_bridge"); err != nil {
		t.Fatal(err)
	}
	<-l.Context().Done()
	if again := acquire(t, config(t, srv.URL, "two", 9*time.Second)); !again.Held() {
		t.Error("no lease in a bucket that was made again")
	}
}

// A process that was stopped for longer than the lease lives must know better as soon as
// it goes on.
func TestPausedHolder(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	c := startChild(t, srv.URL, 9*time.Second)
	if got := c.held(t); got != "held true" {
		t.Fatalf("the child says %q", got)
	}
	natstest.Suspend(c.cmd.Process)
	l := acquire(t, config(t, srv.URL, "two", 10*time.Second))
	// The question waits in the pipe, so it is the first thing that the child sees.
	if _, err := io.WriteString(c.in, "?\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if got := c.line(t); got != "held false" {
		t.Errorf("after the pause the child says %q", got)
	}
	if !l.Held() {
		t.Error("the second lost it to the first")
	}
}

// A process of this machine that was killed is seen to be dead, also while its parent has
// not asked how it ended. Its output may end a little before it does, so more than one
// look may be needed; the log tells a takeover from a key that expired.
func TestDeadHolderOnTheSameMachine(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self/ns/pid"); err != nil {
		t.Log("this system does not tell processes apart; the key has to expire here")
		return
	}
	const ttl = time.Minute
	for _, reaped := range []bool{false, true} {
		srv := natstest.Start(t)
		c := startChild(t, srv.URL, ttl)
		cfg := config(t, srv.URL, "two", ttl)
		var seenDead atomic.Bool
		cfg.Log = cfg.Log.Hook(zerolog.HookFunc(func(_ *zerolog.Event, _ zerolog.Level, text string) {
			if strings.HasPrefix(text, "took the lease over at once") {
				seenDead.Store(true)
			}
		}))
		alive, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if _, err := lease.Acquire(alive, cfg); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("the lease of a living process was taken, or: %v", err)
		}
		cancel()
		if err := c.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if reaped {
			_ = c.cmd.Wait()
		} else {
			for c.out.Scan() { // its end is the end of its output
			}
		}
		acquire(t, cfg)
		if !seenDead.Load() {
			t.Errorf("reaped %v: the lease was had only when the key had expired", reaped)
		}
	}
}

// Many want it; never do two believe to have it.
func TestOneAtATime(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	var mu sync.Mutex
	holders := make(map[*lease.Lease]bool)
	rounds := 0
	var contending sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for i := range 4 {
		cfg := config(t, srv.URL, fmt.Sprint("writer ", i), 4*time.Second)
		contending.Go(func() {
			for {
				l, err := lease.Acquire(ctx, cfg)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for other := range holders {
					// The other is asked first: what we still hold after that, we held at
					// that moment.
					if other.Held() && l.Held() {
						t.Error("two hold the lease")
					}
				}
				holders[l] = true
				rounds++
				enough := rounds > 12
				mu.Unlock()
				time.Sleep(5 * time.Millisecond)
				mu.Lock()
				delete(holders, l)
				mu.Unlock()
				if err := l.Release(ctx); err != nil {
					t.Error(err)
				}
				if enough {
					return
				}
			}
		})
	}
	contending.Wait()
}

func TestUnsupported(t *testing.T) {
	t.Parallel()
	deny := func(subjects ...string) func(*server.Options) {
		return func(o *server.Options) {
			permissions := &server.Permissions{Publish: &server.SubjectPermission{Deny: subjects}}
			o.Users = []*server.User{{Username: "b", Password: "b", Permissions: permissions}}
			o.NoAuthUser = "b"
		}
	}
	for name, test := range map[string]struct {
		options func(*server.Options)
		word    string
	}{
		"no right to write": {deny("$KV.>"), "$KV.zulip_bridge.acme.lease"},
		"no right to make":  {deny("$JS.API.STREAM.CREATE.>"), "$JS.API.STREAM.CREATE.KV_zulip_bridge"},
		"no right to read": {deny("$JS.API.DIRECT.GET.>", "$JS.API.STREAM.MSG.GET.>"),
			"$JS.API.STREAM.MSG.GET.KV_zulip_bridge"},
		"no JetStream rights": {deny("$JS.API.>", "$KV.>"), "may not publish"},
		"account without JetStream": {func(o *server.Options) {
			plain := server.NewAccount("PLAIN")
			o.Accounts = []*server.Account{plain, server.NewAccount("RICH")}
			o.Users = []*server.User{{Username: "u", Password: "p", Account: plain}}
			o.NoAuthUser = "u"
		}, "10039"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := natstest.Start(t, test.options)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			_, err := lease.Acquire(ctx, config(t, srv.URL, "one", 4*time.Second))
			if _, ok := errors.AsType[*lease.UnsupportedError](err); !ok || !strings.Contains(err.Error(), test.word) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("bucket without TTL", func(t *testing.T) {
		srv := natstest.Start(t)
		if _, err := srv.JetStream().CreateKeyValue(t.Context(),
			jetstream.KeyValueConfig{Bucket: "zulip_bridge"}); err != nil {
			t.Fatal(err)
		}
		_, err := lease.Acquire(t.Context(), config(t, srv.URL, "one", 4*time.Second))
		if _, ok := errors.AsType[*lease.UnsupportedError](err); !ok ||
			!strings.Contains(err.Error(), "allow_msg_ttl") {
			t.Errorf("got %v", err)
		}
	})
	// What is allowed is enough: no direct gets, but reads from the leader, and the other
	// way round; and a bucket made by an operator.
	for name, denied := range map[string][]string{
		"leader reads":   {"$JS.API.DIRECT.GET.>", "$JS.API.STREAM.INFO.>"},
		"direct reads":   {"$JS.API.STREAM.MSG.GET.>", "$JS.API.STREAM.CREATE.>", "$JS.API.INFO", "$JS.API.CONSUMER.>"},
		"operator's own": {"$JS.API.STREAM.CREATE.>", "$JS.API.STREAM.INFO.>"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := natstest.Start(t, deny(denied...), func(o *server.Options) {
				o.Users = append(o.Users, &server.User{Username: "admin", Password: "a"})
			})
			bucket := jetstream.KeyValueConfig{Bucket: "zulip_bridge", LimitMarkerTTL: time.Minute}
			if _, err := srv.JetStream(nats.UserInfo("admin", "a")).CreateKeyValue(t.Context(), bucket); err != nil {
				t.Fatal(err)
			}
			l := acquire(t, config(t, srv.URL, "one", 10*time.Second))
			w := acquireLater(t, config(t, srv.URL, "two", 10*time.Second))
			w.stands(t)
			if err := l.Release(t.Context()); err != nil {
				t.Error(err)
			}
			w.lease(t)
		})
	}
}

func TestUnusableConfig(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	for _, change := range []func(*lease.Config){
		func(c *lease.Config) { c.TTL = 500 * time.Millisecond },
		func(c *lease.Config) { c.Bucket = "a.b" },
		func(c *lease.Config) { c.Realm = "a.b" },
		func(c *lease.Config) { c.Realm = "" },
	} {
		cfg := config(t, srv.URL, "one", 0)
		change(&cfg)
		if _, err := lease.Acquire(t.Context(), cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		} else if _, ok := errors.AsType[*stream.ConfigError](err); !ok {
			t.Errorf("%v", err)
		}
	}
}

// NATS away is waited for; the context ends the waiting.
func TestNATSAway(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	cfg := config(t, srv.URL, "one", 10*time.Second)
	cfg.Trouble = &health.Condition{}
	srv.Stop()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := lease.Acquire(ctx, cfg)
		ended <- err
	}()
	natstest.Eventually(t, "word that the lease cannot be asked for", func() bool {
		_, set := cfg.Trouble.State()
		return set
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	w := acquireLater(t, cfg)
	srv.Restart()
	w.lease(t)
	if s, set := cfg.Trouble.State(); set {
		t.Errorf("the lease was had, and its trouble is %q", s.Text)
	}
}

// script answers in place of JetStream on a server that has none: for what a real one
// cannot be made to say.
type script struct {
	url string

	mu     sync.Mutex
	writes []*nats.Msg // of the key, in order
}

// startScript starts it. What write and read return is sent; nil is no answer. Until the
// lease is had, each write has to be acknowledged: an answer that comes too late is none,
// and then there is another write.
func startScript(t *testing.T, write, read func(*nats.Msg) *nats.Msg) *script {
	t.Helper()
	srv := natstest.Start(t, func(o *server.Options) { o.JetStream = false })
	s := &script{url: srv.URL}
	nc := srv.Conn()
	answer := func(m, with *nats.Msg) {
		if with != nil {
			if err := m.RespondMsg(with); err != nil && !nc.IsClosed() {
				t.Error(err)
			}
		}
	}
	subscribe := func(subject string, f func(*nats.Msg) *nats.Msg) {
		if _, err := nc.Subscribe(subject, func(m *nats.Msg) { answer(m, f(m)) }); err != nil {
			t.Fatal(err)
		}
	}
	subscribe("$JS.API.STREAM.INFO.KV_zulip_bridge", func(*nats.Msg) *nats.Msg {
		return &nats.Msg{Data: []byte(`{"config":{"allow_msg_ttl":true}}`)}
	})
	subscribe("$JS.API.DIRECT.GET.KV_zulip_bridge.>", read)
	subscribe("$KV.zulip_bridge.acme.lease", func(m *nats.Msg) *nats.Msg {
		s.mu.Lock()
		s.writes = append(s.writes, m)
		s.mu.Unlock()
		return write(m)
	})
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *script) written() []*nats.Msg {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*nats.Msg(nil), s.writes...)
}

func ack(seq int) *nats.Msg {
	return &nats.Msg{Data: fmt.Appendf(nil, `{"stream":"KV_zulip_bridge","seq":%d}`, seq)}
}

// refusal is the server's word for an expectation that is not met.
func refusal() *nats.Msg {
	return &nats.Msg{Data: []byte(`{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 9"}}`)}
}

// absent is a direct get's word for a key that is not there.
func absent() *nats.Msg { return &nats.Msg{Header: nats.Header{"Status": {"404"}}} }

// stored is a direct get's answer.
func stored(seq int, data []byte) *nats.Msg {
	return &nats.Msg{Header: nats.Header{"Nats-Sequence": {fmt.Sprint(seq)}}, Data: data}
}

// Each renewal is refused, and each read is answered by a replica that lags behind and
// shows what the holder knows. The pauses between the renewals are counted, not their
// speed: a slow machine makes fewer.
func TestLaggingReplica(t *testing.T) {
	t.Parallel()
	var had atomic.Bool
	var own atomic.Pointer[nats.Msg]
	s := startScript(t, func(m *nats.Msg) *nats.Msg {
		if !had.Load() {
			own.Store(m)
			return ack(7)
		}
		return refusal()
	}, func(*nats.Msg) *nats.Msg {
		if m := own.Load(); m != nil {
			return stored(7, m.Data)
		}
		return absent()
	})
	const ttl = 6 * time.Second
	start := time.Now()
	l := acquire(t, config(t, s.url, "one", ttl))
	had.Store(true)
	<-l.Context().Done()
	lasted := time.Since(start)
	if lasted < ttl-100*time.Millisecond {
		t.Errorf("a holder that is not told of another gave up after %v: %v", lasted, context.Cause(l.Context()))
	}
	if most, writes := 2+int(lasted/(ttl/10)), len(s.written()); writes < 3 || writes > most {
		t.Errorf("%d writes in %v, want 3 to %d", writes, lasted, most)
	}
}

// Who stands by and is refused each time, since a replica says that nobody holds the key,
// asks no faster than anybody else.
func TestRefusedStandby(t *testing.T) {
	t.Parallel()
	s := startScript(t, func(*nats.Msg) *nats.Msg { return refusal() },
		func(*nats.Msg) *nats.Msg { return absent() })
	const ttl = time.Second
	cfg := config(t, s.url, "one", ttl)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	start := time.Now()
	go func() {
		_, err := lease.Acquire(ctx, cfg)
		ended <- err
	}()
	natstest.Eventually(t, "ten writes", func() bool { return len(s.written()) >= 10 })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if most, writes := 2+int(time.Since(start)/(ttl/10)), len(s.written()); writes > most {
		t.Errorf("%d writes, want %d at most", writes, most)
	}
}

// NATS is so far away that a lease of the time that was chosen would be over before its
// first renewal is answered.
func TestFarAway(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	proxy := natstest.NewProxy(t, srv.URL)
	proxy.Delay(1600 * time.Millisecond)
	l := acquire(t, config(t, proxy.URL, "one", time.Second))
	js := srv.JetStream()
	m, _ := key(t, js)
	for seen := m.Sequence; m.Sequence < seen+3; m, _ = key(t, js) {
		// The key lives for four round trips, which last 3.2 s each. That leaves the holder
		// five seconds with each renewal, for a machine that stands still again and again.
		if life, err := time.ParseDuration(m.Header.Get("Nats-TTL")); err != nil ||
			life < 12*time.Second && m.Sequence > seen {
			t.Fatalf("the key lives for %q", m.Header.Get("Nats-TTL"))
		}
		if !l.Held() {
			t.Fatalf("lost: %v", context.Cause(l.Context()))
		}
		time.Sleep(50 * time.Millisecond)
	}
	second := acquireLater(t, config(t, srv.URL, "two", time.Second))
	second.stands(t)
	if err := l.Release(t.Context()); err != nil {
		t.Error(err)
	}
	second.lease(t)
}

// nats-server before 2.11 makes the bucket and passes over the life of keys, so a lease
// would never end.
func TestOldServer(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t, func(o *server.Options) { o.JetStream = false })
	nc := srv.Conn()
	for subject, answer := range map[string]string{
		"$JS.API.STREAM.INFO.KV_zulip_bridge":   `{"error":{"code":404,"err_code":10059,"description":"stream not found"}}`,
		"$JS.API.STREAM.CREATE.KV_zulip_bridge": `{"config":{"name":"KV_zulip_bridge","max_msgs_per_subject":1}}`,
	} {
		if _, err := nc.Subscribe(subject, func(m *nats.Msg) { _ = m.Respond([]byte(answer)) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	_, err := lease.Acquire(t.Context(), config(t, srv.URL, "one", 4*time.Second))
	if _, ok := errors.AsType[*lease.UnsupportedError](err); !ok || !strings.Contains(err.Error(), "nats-server 2.11") {
		t.Errorf("got %v", err)
	}
}

// heldBy is the value of a key that somebody else holds.
var heldBy = []byte(`{"writer":"two","host":"elsewhere","id":"x"}`)

// A replica that lags behind shows who had the lease before. That is no reason to give it
// up.
func TestLaggingReplicaShowsThePreviousHolder(t *testing.T) {
	t.Parallel()
	var had atomic.Bool
	s := startScript(t, func(*nats.Msg) *nats.Msg {
		if !had.Load() {
			return ack(7)
		}
		return refusal()
	}, func(*nats.Msg) *nats.Msg {
		if had.Load() {
			return stored(3, heldBy)
		}
		return absent()
	})
	l := acquire(t, config(t, s.url, "one", 6*time.Second))
	had.Store(true)
	<-l.Context().Done()
	if cause := context.Cause(l.Context()); !strings.Contains(cause.Error(), "could not be renewed in time") {
		t.Errorf("the cause is %v", cause)
	}
	for i, m := range s.written()[1:] {
		if got := m.Header.Get("Nats-Expected-Last-Subject-Sequence"); got != "7" {
			t.Errorf("renewal %d expects %s", i, got)
		}
	}
}

// A renewal was done and its answer lost; the next one finds that out. The life of the
// key counts from the first of the two.
func TestLateConfirmationCountsFromTheSending(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second
	var had atomic.Bool
	var own atomic.Pointer[nats.Msg]
	var second atomic.Pointer[time.Time]
	s := startScript(t, func(m *nats.Msg) *nats.Msg {
		switch {
		case !had.Load():
			own.Store(m)
			return ack(7)
		case second.Load() == nil:
			now := time.Now()
			second.Store(&now)
			return &nats.Msg{Data: []byte(`{"error":{"code":503,"err_code":10008,"description":"JetStream system temporarily unavailable"}}`)}
		}
		return refusal()
	}, func(*nats.Msg) *nats.Msg {
		switch {
		case own.Load() == nil:
			return absent()
		case second.Load() == nil:
			return stored(7, own.Load().Data)
		}
		return stored(8, own.Load().Data)
	})
	l := acquire(t, config(t, s.url, "one", ttl))
	had.Store(true)
	<-l.Context().Done()
	if limit := second.Load().Add(ttl); l.Deadline().After(limit) {
		t.Errorf("the deadline is %v behind the end of the key", l.Deadline().Sub(limit))
	}
}

// What is released is our own: the lease that another took meanwhile stays.
func TestReleaseOfAnothersLease(t *testing.T) {
	t.Parallel()
	var taken atomic.Bool
	s := startScript(t, func(m *nats.Msg) *nats.Msg {
		if m.Header.Get("KV-Operation") == "" {
			return ack(7)
		}
		if m.Header.Get("Nats-Expected-Last-Subject-Sequence") == "9" {
			return ack(10) // it is gone
		}
		return refusal()
	}, func(*nats.Msg) *nats.Msg {
		if taken.Load() {
			return stored(9, heldBy)
		}
		return absent()
	})
	l := acquire(t, config(t, s.url, "one", time.Minute))
	taken.Store(true)
	if err := l.Release(t.Context()); err != nil {
		t.Error(err)
	}
	deletes := 0
	for _, m := range s.written() {
		if m.Header.Get("KV-Operation") == "DEL" {
			deletes++
			if got := m.Header.Get("Nats-Expected-Last-Subject-Sequence"); got != "7" {
				t.Errorf("a mark of deletion expects %s, which is another's", got)
			}
		}
	}
	if deletes != 1 {
		t.Errorf("%d marks of deletion", deletes)
	}
}
