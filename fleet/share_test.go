package fleet_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"zulip-nats/stream/natstest"
)

// settles waits until the shares are these, whoever has which.
func (d *desks) settles(want ...int) {
	d.t.Helper()
	var has []int
	defer func() {
		if d.t.Failed() {
			d.t.Logf("held: %v, want %v", has, want)
		}
	}()
	natstest.Eventually(d.t, fmt.Sprintf("shares of %v", want), func() bool {
		has = d.holds()
		sorted, wanted := slices.Sorted(slices.Values(has)), slices.Sorted(slices.Values(want))
		return slices.Equal(sorted, wanted)
	})
}

// counts waits until everybody knows of so many instances.
func (d *desks) counts(instances int) {
	d.t.Helper()
	natstest.Eventually(d.t, fmt.Sprintf("word of %d instances", instances), func() bool {
		for _, k := range d.all {
			if k.Share().Instances != instances {
				return false
			}
		}
		return true
	})
}

// TestShares: instances join and leave, and the realms are evened out each time, with as
// many hand-overs as it takes and none besides.
func TestShares(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		realms         int
		two, three     []int // shares
		asked2, asked3 int   // hand-overs until then
	}{
		{1, []int{0, 1}, []int{0, 0, 1}, 0, 0},
		{5, []int{2, 3}, []int{1, 2, 2}, 2, 3},
		{30, []int{15, 15}, []int{10, 10, 10}, 15, 25},
	} {
		t.Run(fmt.Sprint(test.realms), func(t *testing.T) {
			t.Parallel()
			srv := natstest.Start(t)
			all := &desks{t: t, work: 5 * time.Millisecond}
			names := realms(test.realms)
			const ttl = 20 * time.Second // or a busy machine would lose the leases
			one := all.open(config(t, srv.URL, "one", ttl), names...)
			all.settles(test.realms)
			two := all.open(config(t, srv.URL, "two", ttl), names...)
			all.settles(test.two...)
			all.counts(2)
			if _, asked, lost := all.counted(); asked != test.asked2 || lost != 0 {
				t.Errorf("%d hand-overs and %d leases lost when a second one joined, want %d and none", asked, lost, test.asked2)
			}
			three := all.open(config(t, srv.URL, "three", ttl), names...)
			all.settles(test.three...)
			all.counts(3)
			_, asked, lost := all.counted()
			if asked != test.asked3 || lost != 0 {
				t.Errorf("%d hand-overs and %d leases lost when a third one joined, want %d and none", asked, lost, test.asked3)
			}
			if s := one.Share(); s.Instances != 3 || s.Realms != test.realms || s.Share != (test.realms+2)/3 ||
				s.Held != one.held() || s.Instance != one.ID() || s.Instance == "" {
				t.Errorf("the first says %+v", s)
			}
			// It rests: nothing happens while everybody renews its key twice.
			before := two.ID()
			m := key(t, srv.JetStream(), "instance."+before+".alive")
			for seen := m.Sequence; m.Sequence < seen+4; m = key(t, srv.JetStream(), "instance."+before+".alive") {
				time.Sleep(50 * time.Millisecond)
			}
			if got, again, _ := all.counted(); again != asked || got != test.realms+asked {
				t.Errorf("%d leases and %d hand-overs in the end, and no rest", got, again)
			}
			began := time.Now()
			one.leave()
			want := append([]int{0}, test.two...)
			all.settles(want...)
			if took := time.Since(began); took > ttl/2 {
				t.Errorf("what was released is had after %v, as if it had expired", took)
			}
			three.leave()
			all.settles(0, 0, test.realms)
			if _, again, lost := all.counted(); lost != 0 || again-asked > 1 {
				t.Errorf("%d hand-overs more when two left, and %d leases lost", again-asked, lost)
			}
		})
	}
}

// Realms are started one after the other, so an instance that joins may want those first
// of which another one holds no more than its share. It asks for none of them while others
// hold more, or that one would ask them in turn.
func TestShareOfWhoHoldsMost(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	all := &desks{t: t}
	names := realms(5)
	const ttl = time.Minute // a tenth of it is waited for what else is wanted
	one := all.open(config(t, srv.URL, "one", ttl), names...)
	all.settles(5)
	two := all.open(config(t, srv.URL, "two", ttl), names...)
	all.settles(2, 3)
	fewer := one
	if two.held() == 2 {
		fewer = two
	}
	var first, then []string
	for _, name := range names {
		fewer.mu.Lock()
		if fewer.leases[name] != nil {
			first = append(first, name)
		} else {
			then = append(then, name)
		}
		fewer.mu.Unlock()
	}
	three := all.open(config(t, srv.URL, "three", ttl), first...)
	all.counts(3)
	three.wants(then...)
	all.settles(1, 2, 2)
	if _, asked, lost := all.counted(); asked != 3 || lost != 0 {
		t.Errorf("%d hand-overs and %d leases lost, want 3 and none", asked, lost)
	}
}

// What nobody else has to give is asked of who has it, be it no more than a share.
func TestShareOfWhatIsWanted(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	all := &desks{t: t}
	const ttl = 4 * time.Second
	all.open(config(t, srv.URL, "one", ttl), "a", "b", "c", "d", "e")
	all.open(config(t, srv.URL, "two", ttl), "x", "y")
	all.settles(5, 2)
	all.open(config(t, srv.URL, "three", ttl), "x", "y")
	all.settles(5, 1, 1)
}
