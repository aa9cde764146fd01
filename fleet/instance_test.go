package fleet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
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

	"zulip-nats/fleet"
	"zulip-nats/health"
	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// Who stands by says again and again that it is alive, for as long as it waits.
func TestPulse(t *testing.T) {
	t.Parallel()
	url := natstest.Start(t).URL
	acquire(t, config(t, url, "one", 0))
	var p health.Pulse
	ctx, cancel := context.WithCancel(health.WithPulse(t.Context(), &p))
	two, ended := instance(t, config(t, url, "two", time.Second)), make(chan error, 1)
	go func() {
		_, err := two.Acquire(ctx, "acme", 1, nil)
		ended <- err
	}()
	for range 3 {
		health.Waits(ctx, -time.Hour)
		natstest.Eventually(t, "a sign of life of who stands by", func() bool { return p.Late() < time.Minute })
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
	one := instance(t, config(t, srv.URL, "one", 9*time.Second))
	first := acquireOf(t, one)
	if !first.Held() || first.Context().Err() != nil || first.Asked().Err() != nil {
		t.Fatal("a lease that was just had is not held")
	}
	second := acquireLater(t, config(t, srv.URL, "two", 9*time.Second))
	holder := second.stands(t)
	if holder.Writer != "one" || holder.PID != os.Getpid() || holder.Host == "" || holder.ID != one.ID() ||
		time.Since(holder.Since) > time.Minute {
		t.Errorf("the one who stands by hears of %+v", holder)
	}

	// It is renewed, each time with a life of its own, or it would stay for ever; and the
	// claim has none, and is not written again.
	name := "instance." + one.ID() + ".alive"
	m, claim := key(t, js, name), key(t, js, "realm.acme.claim")
	for seen := m.Sequence; m.Sequence < seen+8; m = key(t, js, name) {
		if m.Header.Get("Nats-TTL") != "9s" {
			t.Fatalf("the key lives for %q", m.Header.Get("Nats-TTL"))
		}
		time.Sleep(50 * time.Millisecond)
	}
	if now := key(t, js, "realm.acme.claim"); now.Sequence != claim.Sequence || now.Header.Get("Nats-TTL") != "" {
		t.Errorf("the claim is %+v, and was %+v", now, claim)
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
	if first.Held() || first.Context().Err() == nil || errors.Is(context.Cause(first.Context()), fleet.ErrLost) {
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
	entry, err := s.Get(t.Context(), "realm.acme.claim")
	if err != nil || !bytes.Contains(entry.Value(), []byte(`"writer":"two"`)) {
		t.Errorf("any KV client reads %s (%v)", entry.Value(), err)
	}
}

// Alone, an instance costs three renewals in the life of its key, and one pull a minute.
func TestAlone(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	proxy := natstest.NewProxy(t, srv.URL)
	var mu sync.Mutex
	var said []string
	count := func(prefix string) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, subject := range said {
			if strings.HasPrefix(subject, prefix) {
				n++
			}
		}
		return n
	}
	i := instance(t, config(t, proxy.URL, "one", 6*time.Second))
	l := acquireOf(t, i)
	proxy.OnPublish(func(p natstest.Publish) natstest.Fate {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, p.Subject)
		return natstest.Pass
	})
	began := time.Now()
	natstest.Eventually(t, "four renewals", func() bool { return count("$KV.zulip_bridge.instance.") >= 4 })
	if most, n := 1+int(time.Since(began)/(2*time.Second)), count("$KV."); n > most {
		t.Errorf("%d writes in %v, want %d at most", n, time.Since(began), most)
	}
	if n := count("$JS.API."); n > 1 {
		t.Errorf("%d other requests: %v", n, said)
	}
	if !l.Held() {
		t.Error("it is lost")
	}
}

// A lease that is lost because NATS is away says so, and nobody else is blamed; and when it
// is back, it is had again.
func TestLostWithNATS(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	i := instance(t, config(t, srv.URL, "one", 4*time.Second))
	l := acquireOf(t, i)
	before := i.ID()
	srv.Stop()
	<-l.Context().Done()
	if cause := context.Cause(l.Context()); !errors.Is(cause, fleet.ErrLost) ||
		!strings.Contains(cause.Error(), "NATS was away") {
		t.Errorf("the cause is %v", cause)
	}
	w := acquireLaterOf(t, i)
	srv.Restart()
	if again := w.lease(t); !again.Held() || l.Held() || i.ID() == before || i.ID() == "" {
		t.Errorf("behind the outage: held %v, and before %v; the session is %s, and was %s", again.Held(), l.Held(),
			i.ID(), before)
	}
}

// What an instance held before it lost its session is free for itself at once, and no other
// instance is spoken of.
func TestOwnClaimFromBefore(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	proxy := natstest.NewProxy(t, srv.URL)
	i := instance(t, config(t, proxy.URL, "one", 4*time.Second))
	first := acquireOf(t, i)
	proxy.OnPublish(func(natstest.Publish) natstest.Fate { return natstest.Lose })
	<-first.Context().Done()
	w := acquireLaterOf(t, i)
	proxy.OnPublish(nil)
	if l := w.lease(t); !l.Held() || first.Held() {
		t.Error("it is not had again")
	}
	if len(w.standby) > 0 {
		t.Errorf("it stood by for %+v", <-w.standby)
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
	if cause := context.Cause(first.Context()); !errors.Is(cause, fleet.ErrLost) {
		t.Errorf("the cause is %v", cause)
	}
	if !l.Held() {
		t.Error("the second does not hold what it got")
	}
}

// The holder of many realms goes without a word. Who is left has them all at once when its
// key is gone: many claims are on their way together.
func TestTakeOverOfMany(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	proxy := natstest.NewProxy(t, srv.URL)
	all := &desks{t: t}
	const n, ttl = 500, 5 * time.Second
	names := realms(n)
	all.open(config(t, proxy.URL, "one", ttl), names...)
	all.settles(n)
	other := natstest.NewProxy(t, srv.URL)
	var mu sync.Mutex
	under, most, claims := map[string]bool{}, 0, 0 // on their way, by where the answer goes
	other.OnPublish(func(p natstest.Publish) natstest.Fate {
		mu.Lock()
		defer mu.Unlock()
		if strings.HasPrefix(p.Subject, "$KV.zulip_bridge.realm.") {
			claims++
			under[p.Reply] = true
			most = max(most, len(under))
		}
		return natstest.Pass
	})
	other.OnDeliver(func(p natstest.Publish) natstest.Fate {
		mu.Lock()
		defer mu.Unlock()
		delete(under, p.Subject)
		return natstest.Pass
	})
	proxy.OnPublish(func(natstest.Publish) natstest.Fate { return natstest.Lose })
	began := time.Now()
	two := all.open(config(t, other.URL, "two", ttl), names...)
	natstest.Eventually(t, "a first realm", func() bool { return two.held() > 0 })
	first := time.Now()
	natstest.Eventually(t, "all realms", func() bool { return two.held() == n })
	mu.Lock()
	defer mu.Unlock()
	t.Logf("the first realm after %v, all %d of them %v later; %d claims, %d at once", first.Sub(began), n,
		time.Since(first), claims, most)
	if most < 8 || most > 32 {
		t.Errorf("%d claims were on their way at once", most)
	}
	if claims > n+n/10 {
		t.Errorf("%d claims for %d realms", claims, n)
	}
}

// A renewal whose answer is lost was done all the same; so was one that timed out for
// some other reason. The holder stays the holder.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	proxy := natstest.NewProxy(t, srv.URL)
	l := acquire(t, config(t, proxy.URL, "one", 12*time.Second))
	var cuts atomic.Int64
	proxy.OnPublish(func(p natstest.Publish) natstest.Fate {
		if strings.HasPrefix(p.Subject, "$KV.") && cuts.Add(1)%2 == 1 {
			return natstest.PassAndCut
		}
		return natstest.Pass
	})
	// Two were cut off, and more time than the lease lives is over.
	for start := time.Now(); cuts.Load() < 5 || time.Since(start) < 13*time.Second; time.Sleep(20 * time.Millisecond) {
		if !l.Held() {
			t.Fatalf("lost after %d renewals: %v", cuts.Load(), context.Cause(l.Context()))
		}
	}
}

// The server restarts, which takes less than the lease's life: nothing changes hands, and
// the watch, whose consumer is gone, is made anew: what is released then is had at once.
func TestServerRestart(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	one := instance(t, config(t, srv.URL, "one", 20*time.Second))
	first := acquireOf(t, one)
	second := acquireLater(t, config(t, srv.URL, "two", 20*time.Second))
	second.stands(t)
	began := time.Now()
	srv.Restart()
	js := srv.JetStream()
	name := "instance." + one.ID() + ".alive"
	m := key(t, js, name)
	for seen := m.Sequence; m.Sequence < seen+2 || time.Since(began) < 21*time.Second; m = key(t, js, name) {
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
	if err := first.Release(t.Context()); err != nil {
		t.Error(err)
	}
	second.lease(t)
}

// Another instance that lives has the claim, by whatever way: then the lease is lost, and
// nothing else.
func TestTakenByForce(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	i := instance(t, config(t, srv.URL, "one", 15*time.Second))
	l := acquireOf(t, i)
	kept, err := i.Acquire(t.Context(), "other", 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := srv.JetStream().KeyValue(t.Context(), "zulip_bridge")
	if err != nil {
		t.Fatal(err)
	}
	for _, put := range [][2]string{
		{"instance.x.alive", `{"writer":"usurper","host":"elsewhere","id":"x"}`},
		{"realm.acme.claim", `{"writer":"usurper","host":"elsewhere","instance":"x"}`},
	} {
		if _, err := kv.PutString(t.Context(), put[0], put[1]); err != nil {
			t.Fatal(err)
		}
	}
	<-l.Context().Done()
	cause := context.Cause(l.Context())
	if !errors.Is(cause, fleet.ErrLost) || !strings.Contains(cause.Error(), "usurper on elsewhere") || l.Held() {
		t.Errorf("held %v, cause %v", l.Held(), cause)
	}
	if !kept.Held() {
		t.Errorf("another realm is lost with it: %v", context.Cause(kept.Context()))
	}
}

// Somebody deletes keys, writes what is none of ours into them, or purges the bucket: as
// long as nobody else takes the realm, it stays ours. And when the bucket is gone, it is
// made again.
func TestKeysOverwritten(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	js := srv.JetStream()
	i := instance(t, config(t, srv.URL, "one", 6*time.Second))
	l := acquireOf(t, i)
	kv, err := js.KeyValue(t.Context(), "zulip_bridge")
	if err != nil {
		t.Fatal(err)
	}
	ours := func(name string) bool {
		e, err := kv.Get(t.Context(), name)
		return err == nil && bytes.Contains(e.Value(), []byte(`"writer":"one"`))
	}
	name := "instance." + i.ID() + ".alive"
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	put := func(name, value string) error {
		_, err := kv.PutString(t.Context(), name, value)
		return err
	}
	restored := func(what string) {
		t.Helper()
		natstest.Eventually(t, "the keys to be ours again after "+what, func() bool {
			if !l.Held() {
				t.Fatalf("lost after %s: %v", what, context.Cause(l.Context()))
			}
			return ours(name) && ours("realm.acme.claim")
		})
	}
	for what, harm := range map[string]func() error{
		"garbage in the claim":  func() error { return put("realm.acme.claim", "garbage") },
		"a claim of nobody":     func() error { return put("realm.acme.claim", `{"instance":"gone","writer":"gone"}`) },
		"a claim that is gone":  func() error { return kv.Delete(t.Context(), "realm.acme.claim") },
		"garbage beside it":     func() error { return errors.Join(put("realm.x", "x"), put("a.b.c", "{}"), put("x", "x")) },
		"an instance of nobody": func() error { return put("instance.y.alive", "null") },
		"a lease of an older version": func() error {
			return put("acme.lease", `{"writer":"old","host":"h","pid":1,"since":"2026-11-28T12:00:00Z","id":"X"}`)
		},
		"garbage in our key": func() error { return put(name, "garbage") },
	} {
		must(harm())
		restored(what)
	}
	// A purge tells nobody: what was claimed is left alone for a while, also by others.
	w := acquireLater(t, config(t, srv.URL, "two", 6*time.Second))
	w.stands(t)
	s, err := js.Stream(t.Context(), "KV_zulip_bridge")
	must(err)
	must(s.Purge(t.Context()))
	restored("a purge")
	select {
	case <-w.acquired:
		t.Fatal("two have the lease")
	default:
	}
	must(js.DeleteKeyValue(t.Context(), "zulip_bridge"))
	<-l.Context().Done()
	must(l.Release(t.Context()))
	if again := w.lease(t); !again.Held() {
		t.Error("no lease in a bucket that was made again")
	}
}

// Our own key is deleted: it is written again at once, and what is ours stays, unless
// another one was faster.
func TestInstanceKeyDeleted(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	i := instance(t, config(t, srv.URL, "one", 30*time.Second))
	l := acquireOf(t, i)
	kv, err := srv.JetStream().KeyValue(t.Context(), "zulip_bridge")
	if err != nil {
		t.Fatal(err)
	}
	name, began := "instance."+i.ID()+".alive", time.Now()
	if err := kv.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	natstest.Eventually(t, "the key to be there again", func() bool {
		_, err := kv.Get(t.Context(), name)
		return err == nil
	})
	if took := time.Since(began); took > 9*time.Second || !l.Held() {
		t.Errorf("after %v, and held: %v", took, l.Held())
	}
}

// A process that was stopped for longer than its key lives must know better as soon as it
// goes on, and takes nothing from anybody.
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
// not asked how it ended. The log tells a takeover from a key that expired.
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
		i := instance(t, cfg)
		alive, cancel := context.WithTimeout(t.Context(), 600*time.Millisecond)
		if _, err := i.Acquire(alive, "acme", 1, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("the lease of a living process was taken, or: %v", err)
		}
		cancel()
		w := acquireLaterOf(t, i)
		w.stands(t)
		began := time.Now()
		if err := c.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if reaped {
			_ = c.cmd.Wait()
		}
		w.lease(t)
		t.Logf("had after %v", time.Since(began))
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
	holders := make(map[*fleet.Lease]bool)
	rounds := 0
	var contending sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for n := range 4 {
		i := instance(t, config(t, srv.URL, fmt.Sprint("writer ", n), 4*time.Second))
		contending.Go(func() {
			for {
				l, err := i.Acquire(ctx, "acme", 1, nil)
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
				enough := rounds > 40
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

// deny is a server whose users lack some rights to publish.
func deny(subjects ...string) func(*server.Options) {
	return func(o *server.Options) {
		permissions := &server.Permissions{Publish: &server.SubjectPermission{Deny: subjects}}
		o.Users = []*server.User{{Username: "b", Password: "b", Permissions: permissions},
			{Username: "admin", Password: "a"}}
		o.NoAuthUser = "b"
	}
}

func TestUnsupported(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		options func(*server.Options)
		word    string
	}{
		"no right to live":    {deny("$KV.zulip_bridge.instance.>"), "$KV.zulip_bridge.instance."},
		"no right to claim":   {deny("$KV.zulip_bridge.realm.>"), "$KV.zulip_bridge.realm.acme.claim"},
		"no right to make":    {deny("$JS.API.STREAM.CREATE.>"), "$JS.API.STREAM.CREATE.KV_zulip_bridge"},
		"no right to read":    {deny("$JS.API.STREAM.MSG.GET.>"), "$JS.API.STREAM.MSG.GET.KV_zulip_bridge"},
		"no right to watch":   {deny("$JS.API.CONSUMER.CREATE.>"), "$JS.API.CONSUMER.CREATE.KV_zulip_bridge."},
		"no right to pull":    {deny("$JS.API.CONSUMER.MSG.NEXT.>"), "$JS.API.CONSUMER.MSG.NEXT.KV_zulip_bridge."},
		"no JetStream rights": {deny("$JS.API.>", "$KV.>"), "may not publish"},
		"account without JetStream": {func(o *server.Options) {
			plain := server.NewAccount("PLAIN")
			o.Accounts = []*server.Account{plain, server.NewAccount("RICH")}
			o.Users = []*server.User{{Username: "u", Password: "p", Account: plain}}
			o.NoAuthUser = "u"
		}, "10039"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := natstest.Start(t, test.options)
			cfg := config(t, srv.URL, "one", 4*time.Second)
			i := instance(t, cfg)
			for range 2 { // each who asks is told
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				_, err := i.Acquire(ctx, "acme", 1, nil)
				if _, ok := errors.AsType[*fleet.UnsupportedError](err); !ok || !strings.Contains(err.Error(), test.word) {
					t.Errorf("got %v", err)
				}
			}
			_, err := fleet.Look(t.Context(), cfg, "acme")
			if _, ok := errors.AsType[*fleet.UnsupportedError](err); !ok || name != "no right to make" &&
				name != "no right to read" && !strings.Contains(err.Error(), test.word) {
				t.Errorf("a look finds %v", err)
			}
		})
	}
	t.Run("bucket without TTL", func(t *testing.T) {
		t.Parallel()
		srv := natstest.Start(t)
		if _, err := srv.JetStream().CreateKeyValue(t.Context(),
			jetstream.KeyValueConfig{Bucket: "zulip_bridge"}); err != nil {
			t.Fatal(err)
		}
		_, err := instance(t, config(t, srv.URL, "one", 4*time.Second)).Acquire(t.Context(), "acme", 1, nil)
		if _, ok := errors.AsType[*fleet.UnsupportedError](err); !ok ||
			!strings.Contains(err.Error(), "allow_msg_ttl") {
			t.Errorf("got %v", err)
		}
	})
	// What is allowed is enough: a bucket that an operator has made, and no other rights
	// than these.
	t.Run("enough", func(t *testing.T) {
		t.Parallel()
		srv := natstest.Start(t, func(o *server.Options) {
			o.Users = []*server.User{{Username: "admin", Password: "a"}, {Username: "b", Password: "b",
				Permissions: &server.Permissions{Publish: &server.SubjectPermission{Allow: []string{
					"$JS.API.STREAM.MSG.GET.KV_zulip_bridge", "$JS.API.CONSUMER.CREATE.KV_zulip_bridge.>",
					"$JS.API.CONSUMER.MSG.NEXT.KV_zulip_bridge.>", "$KV.zulip_bridge.instance.*.alive",
					"$KV.zulip_bridge.realm.acme.claim"}}, Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}}}}}
			o.NoAuthUser = "b"
		})
		bucket := jetstream.KeyValueConfig{Bucket: "zulip_bridge", LimitMarkerTTL: time.Minute}
		if _, err := srv.JetStream(nats.UserInfo("admin", "a")).CreateKeyValue(t.Context(), bucket); err != nil {
			t.Fatal(err)
		}
		cfg := config(t, srv.URL, "one", 10*time.Second)
		if there, err := fleet.Look(t.Context(), cfg, "acme"); err != nil || !there {
			t.Errorf("a look finds %v, %v", there, err)
		}
		l := acquire(t, cfg)
		w := acquireLater(t, config(t, srv.URL, "two", 10*time.Second))
		w.stands(t)
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
		w.lease(t)
	})
}

func TestUnusableConfig(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	for _, change := range []func(*fleet.Config){
		func(c *fleet.Config) { c.TTL = 500 * time.Millisecond },
		func(c *fleet.Config) { c.Bucket = "a.b" },
		func(c *fleet.Config) { c.Domain, c.APIPrefix = "hub", "JS.hub" },
	} {
		cfg := config(t, srv.URL, "one", 0)
		change(&cfg)
		if _, err := fleet.NewInstance(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		} else if _, ok := errors.AsType[*stream.ConfigError](err); !ok {
			t.Errorf("%v", err)
		}
	}
	i := instance(t, config(t, srv.URL, "one", 0))
	for _, realm := range []string{"", "a.b", "*"} {
		if _, err := i.Acquire(t.Context(), realm, 1, nil); err == nil {
			t.Errorf("the realm %q is taken", realm)
		} else if _, ok := errors.AsType[*stream.ConfigError](err); !ok {
			t.Errorf("%v", err)
		}
	}
	acquireOf(t, i)
	if _, err := i.Acquire(t.Context(), "acme", 1, nil); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("acquired a second time: %v", err)
	}
}

// NATS away is waited for; the context ends the waiting.
func TestNATSAway(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	cfg := config(t, srv.URL, "one", 10*time.Second)
	cfg.Trouble = &health.Condition{}
	srv.Stop()
	i := instance(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := i.Acquire(ctx, "acme", 1, nil)
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
	w := acquireLaterOf(t, i)
	srv.Restart()
	w.lease(t)
	if s, set := cfg.Trouble.State(); set {
		t.Errorf("the lease was had, and its trouble is %q", s.Text)
	}
}

// NATS is so far away that a lease of the time that was chosen would be over before its
// first renewal is answered.
func TestFarAway(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	proxy := natstest.NewProxy(t, srv.URL)
	proxy.Delay(1600 * time.Millisecond)
	i := instance(t, config(t, proxy.URL, "one", time.Second))
	l := acquireOf(t, i)
	js := srv.JetStream()
	name := "instance." + i.ID() + ".alive"
	m := key(t, js, name)
	for seen := m.Sequence; m.Sequence < seen+6; m = key(t, js, name) {
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
	cfg := config(t, srv.URL, "one", 4*time.Second)
	_, err := instance(t, cfg).Acquire(t.Context(), "acme", 1, nil)
	if _, ok := errors.AsType[*fleet.UnsupportedError](err); !ok || !strings.Contains(err.Error(), "nats-server 2.11") {
		t.Errorf("got %v", err)
	}
}

// The bucket is in another account, whose JetStream ours imports under a prefix, and so
// the keys have the prefix.
func TestImported(t *testing.T) {
	t.Parallel()
	srv := natstest.StartProcess(t, `accounts {
		STORE { jetstream: enabled, exports: [ { service: "$JS.API.>", response: stream }, { service: "$KV.zulip_bridge.>" } ] }
		CHAT { users: [ { user: bridge, password: b } ], imports: [
			{ service: { account: STORE, subject: "$JS.API.STREAM.>" }, to: "JS.store.API.STREAM.>" }
			{ service: { account: STORE, subject: "$JS.API.CONSUMER.>" }, to: "JS.store.API.CONSUMER.>" }
			{ service: { account: STORE, subject: "$KV.zulip_bridge.>" }, to: "JS.store.API.$KV.zulip_bridge.>" } ] }
	}`)
	as := func(writer string) fleet.Config {
		cfg := config(t, strings.Replace(srv.URL, "://", "://bridge:b@", 1), writer, 10*time.Second)
		cfg.APIPrefix = "JS.store.API"
		return cfg
	}
	first := acquire(t, as("one"))
	second := acquireLater(t, as("two"))
	if h := second.stands(t); h.Writer != "one" {
		t.Errorf("it waits for %q", h.Writer)
	}
	if err := first.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if l := second.lease(t); !l.Held() {
		t.Error("the second does not hold what it got")
	}
}

// What an instance leaves behind when it is closed: nothing that lasts. Another one has what
// it had at once, though it was not released.
func TestClose(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	one := instance(t, config(t, srv.URL, "one", time.Minute))
	l := acquireOf(t, one)
	w := acquireLater(t, config(t, srv.URL, "two", time.Minute))
	w.stands(t)
	ended := make(chan error, 1)
	go func() {
		_, err := one.Acquire(t.Context(), "other", 1, nil)
		if err == nil {
			_, err = one.Acquire(t.Context(), "third", 1, nil)
		}
		ended <- err
	}()
	began := time.Now()
	if err := one.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("who waits is not told that the instance has ended")
	}
	if l.Held() || l.Context().Err() == nil {
		t.Error("the lease outlives its instance")
	}
	if got := w.lease(t); !got.Held() || time.Since(began) > 30*time.Second {
		t.Errorf("had after %v", time.Since(began))
	}
	if err := l.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := one.Acquire(t.Context(), "acme", 1, nil); err == nil {
		t.Error("an instance that was closed acquires")
	}
}
