package fleet_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/fleet"
	"zulip-nats/fleet/model"
	"zulip-nats/stream"
)

// What a real server cannot be made to say at a chosen moment, in virtual time.

// scripted makes an instance on the bucket.
func scripted(t *testing.T, b *model.Bucket, writer string, ttl time.Duration) *fleet.Instance {
	t.Helper()
	i, err := fleet.NewInstance(fleet.Config{Writer: writer, TTL: ttl, Store: b.Client(t.Context(), writer, nil),
		Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// had is a lease of the realm acme.
func had(t *testing.T, i *fleet.Instance) *fleet.Lease {
	t.Helper()
	l, err := i.Acquire(t.Context(), "acme", 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func closing(t *testing.T, all ...*fleet.Instance) {
	t.Helper()
	for _, i := range all {
		_ = i.Close(context.Background())
	}
}

// Each renewal is refused, and each read is answered by a leader that was deposed, who
// shows what was before. The holder keeps what it has as long as it lasts, and does not ask
// more often than ten times in the life of its key.
func TestLaggingLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &model.Bucket{}
		const ttl = 6 * time.Second
		i := scripted(t, b, "one", ttl)
		start := time.Now()
		l := had(t, i)
		had := b.Requests("write")
		b.SetFaults(func(_, op, _ string) (f model.Fault) {
			if f.Stale = op == "read"; op == "write" {
				f.Fail = stream.Refused
			}
			return f
		})
		<-l.Context().Done()
		if lasted := time.Since(start); lasted != ttl {
			t.Errorf("a holder that is not told of another gave up after %v: %v", lasted, context.Cause(l.Context()))
		}
		if cause := context.Cause(l.Context()); !strings.Contains(cause.Error(), "could not be renewed in time") {
			t.Errorf("the cause is %v", cause)
		}
		if n := b.Requests("write") - had; n < 5 || n > 8 {
			t.Errorf("%d tries, want one at a third of the life and then one each tenth", n)
		}
		closing(t, i)
	})
}

// Who is refused each claim, though nobody holds the realm, asks no more often than ten
// times in the life of a key.
func TestRefusedClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &model.Bucket{}
		n := 0
		b.SetFaults(func(_, op, key string) (f model.Fault) {
			if op == "write" && strings.HasPrefix(key, "realm.") {
				n++
				f.Fail = stream.Refused
			}
			return f
		})
		i := scripted(t, b, "one", 10*time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := i.Acquire(ctx, "acme", 1, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if n < 15 || n > 21 {
			t.Errorf("%d claims in two lives of the key, want one each tenth", n)
		}
		closing(t, i)
	})
}

// A renewal was done and its answer lost; a later one finds that out. The life of the key
// counts from the first of them.
func TestLateConfirmationCountsFromTheSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 6 * time.Second
		b := &model.Bucket{}
		i := scripted(t, b, "one", ttl)
		l := had(t, i)
		lost := make(chan time.Time, 1)
		b.SetFaults(func(_, op, key string) (f model.Fault) {
			if op == "write" && strings.HasPrefix(key, "instance.") {
				select {
				case lost <- time.Now():
					f.Deaf = true
				default: // it was
				}
			}
			return f
		})
		for len(lost) == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		b.SetFaults(nil)
		limit := (<-lost).Add(ttl)
		for !l.Deadline().After(limit.Add(-time.Second)) {
			time.Sleep(10 * time.Millisecond)
		}
		if l.Deadline().After(limit) {
			t.Errorf("the deadline is %v behind the end of the key", l.Deadline().Sub(limit))
		}
		if !l.Held() {
			t.Error("it is lost")
		}
		closing(t, i)
	})
}

// An old renewal that a deposed leader shows is no confirmation of a new one.
func TestOldRenewalConfirmsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 6 * time.Second
		b := &model.Bucket{}
		i := scripted(t, b, "one", ttl)
		start := time.Now()
		l := had(t, i)
		n := 0
		b.SetFaults(func(_, op, key string) (f model.Fault) {
			if op == "write" && strings.HasPrefix(key, "instance.") {
				f.Fail = stream.Refused
			}
			if op == "read" {
				n++
				f.Stale = n%2 == 1 // the key was not there yet, and then it is as it was
			}
			return f
		})
		for l.Held() {
			time.Sleep(10 * time.Millisecond)
		}
		if lasted := time.Since(start); lasted > ttl+10*time.Millisecond {
			t.Errorf("it was held for %v, and its key for %v", lasted, ttl)
		}
		closing(t, i)
	})
}

// What is released is our own: the claim that another has meanwhile stays.
func TestReleaseOfAnothersLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &model.Bucket{}
		i, client := scripted(t, b, "one", time.Minute), b.Client(t.Context(), "two", nil)
		l := had(t, i)
		now, err := client.Read(t.Context(), "realm.acme.claim")
		if err != nil {
			t.Fatal(err)
		}
		b.SetDelay(func(string) time.Duration { return time.Hour }) // it has not heard of it
		theirs := `{"instance":"x","writer":"two","host":"elsewhere"}`
		if _, err := client.Write(t.Context(), "realm.acme.claim", []byte(theirs), now.Revision, 0); err != nil {
			t.Fatal(err)
		}
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
		if now, err := client.Read(t.Context(), "realm.acme.claim"); err != nil || string(now.Value) != theirs {
			t.Errorf("the claim of the other is %s, %v", now.Value, err)
		}
		b.SetDelay(nil)
		closing(t, i)
	})
}

// A release whose answer is lost is done again, and the realm is not kept from anybody.
func TestReleaseThatIsUnclear(t *testing.T) {
	for name, fault := range map[string]model.Fault{"lost": {Lost: true}, "deaf": {Deaf: true}, "late": {Late: 5 * time.Second},
		"unavailable": {Fail: stream.Unavailable}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &model.Bucket{}
				one, two := scripted(t, b, "one", 4*time.Second), scripted(t, b, "two", 4*time.Second)
				l := had(t, one)
				b.SetFaults(func(_, op, _ string) (f model.Fault) {
					if op == "delete" {
						return fault
					}
					return f
				})
				if err := l.Release(t.Context()); err == nil || l.Held() {
					t.Errorf("a release that is unclear: %v, held %v", err, l.Held())
				}
				b.SetFaults(nil)
				start := time.Now()
				if got := had(t, two); !got.Held() || time.Since(start) > 8*time.Second {
					t.Errorf("had after %v", time.Since(start))
				}
				time.Sleep(time.Minute) // late ones come, and harm nobody
				if s := two.Share(); s.Held != 1 {
					t.Errorf("then it holds %+v", s)
				}
				closing(t, one, two)
			})
		})
	}
}

// Who asked has gone by the time of the release: then the realm is free as usual.
func TestAskerIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &model.Bucket{}
		one := scripted(t, b, "one", 4*time.Second)
		leases := map[string]*fleet.Lease{}
		for _, realm := range realms(2) {
			l, err := one.Acquire(t.Context(), realm, 1, nil)
			if err != nil {
				t.Fatal(err)
			}
			leases[realm] = l
		}
		two := scripted(t, b, "two", 4*time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		for _, realm := range realms(2) {
			go func() { _, _ = two.Acquire(ctx, realm, 1, nil) }()
		}
		var asked *fleet.Lease
		for asked == nil {
			time.Sleep(10 * time.Millisecond)
			for _, l := range leases {
				if l.Asked().Err() != nil {
					asked = l
				}
			}
		}
		if !errors.Is(context.Cause(asked.Asked()), fleet.ErrAsked) || !asked.Held() {
			t.Errorf("asked: %v, held %v", context.Cause(asked.Asked()), asked.Held())
		}
		cancel()
		closing(t, two)
		time.Sleep(time.Second)
		if err := asked.Release(t.Context()); err != nil {
			t.Error(err)
		}
		if keys := b.Keys("realm."); len(keys) != 1 {
			t.Errorf("claims behind the release: %v", keys)
		}
		closing(t, one)
	})
}

// The claim of what is handed over names who asked for it, so that nobody else comes in
// between, though others want it too.
func TestGivenToWhoAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &model.Bucket{}
		var claims []string
		b.Changed = func(key string, e fleet.Entry) {
			if strings.HasPrefix(key, "realm.") {
				claims = append(claims, string(e.Value))
			}
		}
		all := &desks{t: t}
		one := all.openOn(scripted(t, b, "one", 4*time.Second), realms(4)...)
		time.Sleep(time.Second)
		if one.held() != 4 {
			t.Fatalf("the first holds %d of 4", one.held())
		}
		claims = nil
		two := all.openOn(scripted(t, b, "two", 4*time.Second), realms(4)...)
		time.Sleep(10 * time.Second)
		if one.held() != 2 || two.held() != 2 {
			t.Errorf("the shares are %v", all.holds())
		}
		named := 0
		for _, c := range claims {
			if c == "" {
				t.Error("a realm was free for a moment")
			}
			if strings.Contains(c, two.ID()) {
				named++
			}
		}
		if named != 4 { // written by the one, and confirmed by the other, twice
			t.Errorf("%d claims name the second: %q", named, claims)
		}
		one.stop()
		two.stop()
		one.work.Wait()
		two.work.Wait()
		closing(t, one.Instance, two.Instance)
	})
}

// Who leaves claims nothing that another one could have; nor does anybody claim more than
// its share at once, when a third instance has gone.
func TestLeavesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &model.Bucket{}
		all := &desks{t: t}
		const ttl = 10 * time.Second
		gone := all.openOn(scripted(t, b, "gone", ttl), realms(9)...)
		time.Sleep(time.Second)
		leaves := all.openOn(scripted(t, b, "leaves", ttl)) // wants nothing yet
		first, err := leaves.Acquire(t.Context(), "another", 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		leaves.Leave()
		ctx, cancel := context.WithCancel(t.Context())
		for _, realm := range realms(9) {
			go func() { _, _ = leaves.Acquire(ctx, realm, 1, nil) }()
		}
		b.SetDelay(func(client string) time.Duration {
			if client == "late" {
				return 500 * time.Millisecond // it hears of all later, and of what is free too
			}
			return 0
		})
		late := all.openOn(scripted(t, b, "late", ttl), realms(9)...)
		time.Sleep(5 * time.Second)
		gone.stop()
		gone.work.Wait()
		closing(t, gone.Instance)
		time.Sleep(time.Second)
		if s := leaves.Share(); s.Held != 1 {
			t.Errorf("who leaves has taken more: %+v", s)
		}
		time.Sleep(5 * time.Second)
		if late.held() != 9 {
			t.Errorf("the other one holds %d of 9", late.held())
		}
		cancel()
		_ = first.Release(t.Context())
		late.stop()
		late.work.Wait()
		closing(t, leaves.Instance, late.Instance)
	})
}

// A watch that is slow, and for long, is worse than a quick one and better than none: who
// has it gets what is free.
func TestSlowWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &model.Bucket{Delay: func(string) time.Duration { return 7 * time.Second }}
		i := scripted(t, b, "one", 4*time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		l, err := i.Acquire(ctx, "acme", 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		watches := b.Requests("watch")
		time.Sleep(10 * time.Minute)
		if more := b.Requests("watch") - watches; !l.Held() || more > 10 {
			t.Errorf("held %v, and %d watches in ten minutes", l.Held(), more)
		}
		closing(t, i)
	})
}

// The bucket is purged, and the one who held the realm has it no more: what vanished is not
// left alone for ever.
func TestVanishedIsFreeInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &model.Bucket{}
		const ttl = 4 * time.Second
		one, two := scripted(t, b, "one", ttl), scripted(t, b, "two", ttl)
		l := had(t, one)
		got := make(chan time.Time, 1)
		go func() {
			if _, err := two.Acquire(t.Context(), "acme", 1, nil); err == nil {
				got <- time.Now()
			}
		}()
		time.Sleep(time.Second)
		// It is released, of which the purge takes the word before anybody has it.
		b.SetDelay(func(string) time.Duration { return 3 * time.Second })
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
		b.Purge()
		for name := range b.Keys("") {
			t.Error("there is still", name)
		}
		b.SetDelay(nil)
		start := time.Now()
		if took := (<-got).Sub(start); took > 4*ttl {
			t.Errorf("it is had after %v", took)
		}
		closing(t, one, two)
	})
}

// The mark of a claim that was deleted goes after a while, of which no watch tells: then the
// key is as if it had never been.
func TestMarkHasGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &model.Bucket{}
		const ttl = 10 * time.Second
		i := scripted(t, b, "one", ttl)
		if err := had(t, i).Release(t.Context()); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		b.Forget()
		start := time.Now()
		if l := had(t, i); !l.Held() || time.Since(start) > ttl/5 {
			t.Errorf("held %v, after %v", l.Held(), time.Since(start))
		}
		closing(t, i)
	})
}

// The bucket is purged, and one who stands by sees that before the holder does. He leaves
// alone what he knew to be held, and the holder writes it again.
func TestPurgeFreesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &model.Bucket{}
		one, two := scripted(t, b, "one", 9*time.Second), scripted(t, b, "two", 4*time.Second)
		l := had(t, one)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _, _ = two.Acquire(ctx, "acme", 1, nil) }()
		time.Sleep(100 * time.Millisecond)
		b.Purge()
		time.Sleep(30 * time.Second)
		if s := two.Share(); !l.Held() || s.Held != 0 || s.Realms != 1 || s.Instances != 2 {
			t.Errorf("held %v (%v); the other says %+v", l.Held(), context.Cause(l.Context()), s)
		}
		cancel()
		closing(t, one, two)
	})
}

// Whose a claim is, only the watch says: who is refused a claim may not have heard yet of
// the instance that has it now, and would take it for one that has gone.
func TestClaimOfOneNotHeardOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &model.Bucket{}
		one, two := scripted(t, b, "one", 4*time.Second), scripted(t, b, "two", 4*time.Second)
		l := had(t, one)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _, _ = two.Acquire(ctx, "acme", 1, nil) }()
		time.Sleep(100 * time.Millisecond)
		n := 0
		b.SetDelay(func(client string) time.Duration {
			if client != "two" {
				return 0
			}
			if n++; n == 1 {
				return 300 * time.Millisecond // the word of the release
			}
			return 900 * time.Millisecond
		})
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
		three := scripted(t, b, "three", 4*time.Second)
		theirs := had(t, three)
		time.Sleep(5 * time.Second)
		if s := two.Share(); !theirs.Held() || s.Held != 0 {
			t.Errorf("held %v (%v); the other says %+v", theirs.Held(), context.Cause(theirs.Context()), s)
		}
		cancel()
		b.SetDelay(nil)
		closing(t, one, two, three)
	})
}
