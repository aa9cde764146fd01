package fleet_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/fleet"
	"zulip-nats/stream/natstest"
)

// consumerOf is the consumer that a message is from, by the subject of its acknowledgement.
func consumerOf(reply string) string {
	_, rest, _ := strings.Cut(reply, ".KV_zulip_bridge.")
	name, _, _ := strings.Cut(rest, ".")
	return name
}

// The watch goes wrong while the connection lives: it is made anew, and who stands by gets
// what is released then. The other one lives on, so nothing expires that would help.
func TestWatchIsMadeAnew(t *testing.T) {
	t.Parallel()
	// silence loses all that comes from the consumer that is there now.
	silence := func(proxy *natstest.Proxy, most int) (lost func() int) {
		var mu sync.Mutex
		consumer, n := "", 0
		proxy.OnDeliver(func(p natstest.Publish) natstest.Fate {
			mu.Lock()
			defer mu.Unlock()
			name := consumerOf(p.Reply)
			if name == "" || n == most {
				return natstest.Pass
			}
			if consumer == "" {
				consumer = name
			}
			if name != consumer {
				return natstest.Pass
			}
			n++
			return natstest.Lose
		})
		return func() int {
			mu.Lock()
			defer mu.Unlock()
			return n
		}
	}
	for name, harm := range map[string]func(t *testing.T, js jetstream.JetStream, proxy *natstest.Proxy){
		"nothing comes any more": func(t *testing.T, _ jetstream.JetStream, proxy *natstest.Proxy) {
			lost := silence(proxy, -1)
			natstest.Eventually(t, "an update that is lost", func() bool { return lost() > 0 })
		},
		"one message is lost": func(t *testing.T, _ jetstream.JetStream, proxy *natstest.Proxy) {
			lost := silence(proxy, 1)
			natstest.Eventually(t, "an update that is lost", func() bool { return lost() > 0 })
		},
		"the consumers are deleted": func(t *testing.T, js jetstream.JetStream, _ *natstest.Proxy) {
			s, err := js.Stream(t.Context(), "KV_zulip_bridge")
			if err != nil {
				t.Fatal(err)
			}
			names := s.ConsumerNames(t.Context())
			for name := range names.Name() {
				if err := s.DeleteConsumer(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			}
			if names.Err() != nil {
				t.Fatal(names.Err())
			}
		},
		"the connection drops": func(_ *testing.T, _ jetstream.JetStream, proxy *natstest.Proxy) { proxy.CutAll() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := natstest.Start(t)
			proxy := natstest.NewProxy(t, srv.URL)
			first := acquire(t, config(t, srv.URL, "one", 12*time.Second))
			second := acquireLater(t, config(t, proxy.URL, "two", 6*time.Second))
			second.stands(t)
			harm(t, srv.JetStream(), proxy)
			if !first.Held() {
				t.Errorf("lost: %v", context.Cause(first.Context()))
			}
			if err := first.Release(t.Context()); err != nil {
				t.Error(err)
			}
			if l := second.lease(t); !l.Held() {
				t.Error("the second does not hold what it got")
			}
		})
	}
}

// A leader of the replicated bucket goes, and comes again: nothing changes hands, and what
// is released then is had.
func TestReplicatedBucket(t *testing.T) {
	t.Parallel()
	cluster := natstest.StartCluster(t, 3)
	one := instance(t, config(t, cluster.URL(), "one", 30*time.Second))
	first, err := one.Acquire(t.Context(), "acme", 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	second := acquireLater(t, config(t, cluster.URL(), "two", 30*time.Second))
	second.stands(t)
	js := cluster[0].JetStream()
	if s, err := js.Stream(t.Context(), "KV_zulip_bridge"); err != nil || s.CachedInfo().Config.Replicas != 3 {
		t.Fatalf("the bucket is not replicated: %v", err)
	}
	for range 2 {
		cluster.StepDown("KV_zulip_bridge")
	}
	leader := cluster.StreamLeader("KV_zulip_bridge")
	leader.Restart()
	cluster.WaitForLeader()
	name := "instance." + one.ID() + ".alive"
	js = cluster.StreamLeader("KV_zulip_bridge").JetStream()
	natstest.Eventually(t, "two renewals behind the elections", func() bool {
		if !first.Held() {
			t.Fatalf("lost: %v", context.Cause(first.Context()))
		}
		s, err := js.Stream(t.Context(), "KV_zulip_bridge")
		if err != nil {
			return false
		}
		m, err := s.GetLastMsgForSubject(t.Context(), "$KV.zulip_bridge."+name)
		return err == nil && time.Since(m.Time) < 5*time.Second
	})
	select {
	case <-second.acquired:
		t.Fatal("two have the lease")
	default:
	}
	natstest.Eventually(t, "the release", func() bool { return first.Release(t.Context()) == nil })
	second.lease(t)
}

// An instance that does not want a realm starves nobody: what it leaves is had by the other
// when it has been free for the life of a key, beyond its share.
func TestDifferentConfigurations(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	all := &desks{t: t}
	const ttl = 6 * time.Second
	all.open(config(t, srv.URL, "few", ttl), "realm-0")
	all.settles(1)
	many := all.open(config(t, srv.URL, "many", ttl), realms(9)...)
	natstest.Eventually(t, "the other eight", func() bool { return many.held() == 8 })
	if s := many.Share(); s.Share != 5 || s.Instances != 2 || s.Realms != 9 {
		t.Errorf("it holds more than its share, and says %+v", s)
	}
	// And one that wants a part of them gets as much of that as makes them even.
	some := all.open(config(t, srv.URL, "some", ttl), realms(9)[5:]...)
	natstest.Eventually(t, "four for the third", func() bool { return some.held() == 4 && many.held() == 4 })
}

// A stop: who leaves takes nothing any more, others count without it, and each realm that
// it releases is had by others at once, though the life of its key is long.
func TestLeave(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	all := &desks{t: t}
	const ttl = 5 * time.Minute
	one := all.open(config(t, srv.URL, "one", ttl), realms(6)...)
	all.settles(6)
	two := all.open(config(t, srv.URL, "two", ttl), realms(6)...)
	all.settles(3, 3)
	one.Leave()
	natstest.Eventually(t, "word of the leave", func() bool {
		s := two.Share()
		return s.Instances == 1 && s.Share == 6 && one.Share().Instances == 1
	})
	if one.held() != 3 || two.held() != 3 {
		t.Errorf("the leave alone moves something: %v", all.holds())
	}
	one.leave()
	all.settles(0, 6)
	if _, asked, lost := all.counted(); asked != 3 || lost != 0 {
		t.Errorf("%d hand-overs in all, and %d leases lost; want three from when the second joined", asked, lost)
	}
	// A leaver that is alone may still take what is free: a queue is to be retired.
	three := instance(t, config(t, srv.URL, "three", ttl))
	two.leave()
	three.Leave()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := three.Acquire(ctx, "realm-0", 1, nil); err != nil {
		t.Error(err)
	}
}

// One that hangs is not waited for by those who ask, and it harms nobody else: it loses what
// it held, and the others have it all.
func TestCutOffAmongOthers(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	proxy := natstest.NewProxy(t, srv.URL)
	all := &desks{t: t}
	const ttl = 6 * time.Second
	cut := all.open(config(t, proxy.URL, "cut", ttl), realms(9)...)
	all.settles(9)
	for n := range 2 {
		all.open(config(t, srv.URL, fmt.Sprint("other ", n), ttl), realms(9)...)
	}
	all.settles(3, 3, 3)
	_, _, lost := all.counted()
	proxy.OnPublish(func(natstest.Publish) natstest.Fate { return natstest.Lose })
	natstest.Eventually(t, "nine realms that others hold", func() bool {
		h := all.holds()
		return h[0] == 0 && h[1]+h[2] == 9
	})
	if _, _, now := all.counted(); now-lost > 3 || cut.held() != 0 {
		t.Errorf("%d leases lost, want the three of the one that was cut off", now-lost)
	}
	proxy.OnPublish(nil)
	all.settles(3, 3, 3)
}

// The claim is forged: who it names gets nothing by that, and gives back what it does not
// want.
func TestForgedClaim(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	one := instance(t, config(t, srv.URL, "one", 30*time.Second))
	acquireOf(t, one)
	kv, err := srv.JetStream().KeyValue(t.Context(), "zulip_bridge")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.PutString(t.Context(), "realm.other.claim",
		fmt.Sprintf(`{"instance":%q,"writer":"one","host":"h"}`, one.ID())); err != nil {
		t.Fatal(err)
	}
	two := instance(t, config(t, srv.URL, "two", 30*time.Second))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var l *fleet.Lease
	if l, err = two.Acquire(ctx, "other", 1, nil); err != nil {
		t.Fatal(err)
	}
	if !l.Held() || one.Share().Held != 1 {
		t.Errorf("held: %v; %+v", l.Held(), one.Share())
	}
}
