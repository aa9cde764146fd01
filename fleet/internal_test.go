package fleet

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// nowhere is a Store that is never asked.
type nowhere struct{ Store }

func (nowhere) RoundTrip() time.Duration { return 0 }

// held is a session that nobody renews, with the time that is left, and a lease of it.
func held(t *testing.T, left time.Duration) (*session, *Lease) {
	t.Helper()
	i, err := NewInstance(Config{Writer: "one", TTL: 9 * time.Second, Store: nowhere{}})
	if err != nil {
		t.Fatal(err)
	}
	s := newSession(i, Holder{ID: "x"}, 7, time.Now(), time.Hour)
	s.deadline = deadlineAfter(time.Now(), left)
	i.session = s
	l := newLease(s, "acme", 1)
	i.leases["acme"] = l
	return s, l
}

// Past the deadline somebody else may have what is ours: a renewal that is confirmed then
// comes too late.
func TestConfirmedLate(t *testing.T) {
	s, l := held(t, -time.Millisecond)
	s.confirm(8, deadlineAfter(time.Now(), time.Hour), time.Now())
	if l.Held() || !errors.Is(context.Cause(l.Context()), ErrLost) || s.ID() != "" {
		t.Errorf("a session past its deadline came back: held %v, cause %v", l.Held(), context.Cause(l.Context()))
	}
	s, l = held(t, time.Hour)
	until := deadlineAfter(time.Now(), 2*time.Hour)
	if !s.confirm(8, until, time.Now()) || s.revision != 8 || s.deadline != until || !l.Held() {
		t.Errorf("a renewal in time is not taken: %+v", s.deadline)
	}
	s.mu.Lock()
	s.finish(errReleased)
	s.mu.Unlock()
	if s.confirm(9, until, time.Now()) || s.revision != 8 {
		t.Error("a renewal is confirmed behind the end")
	}
}

// The same for the answer to the write that began the session.
func TestBegunLate(t *testing.T) {
	s, _ := held(t, time.Hour)
	if s := newSession(s.Instance, Holder{ID: "y"}, 1, time.Now().Add(-time.Second), 999*time.Millisecond); s != nil {
		t.Error("a session begins that is over")
	}
}

// Held goes by the clocks of this moment, and waits for no timer.
func TestHeldPastTheDeadline(t *testing.T) {
	if _, l := held(t, -time.Millisecond); l.Held() {
		t.Error("held past the deadline")
	}
	s, l := held(t, time.Hour)
	s.deadline.wall = time.Now().Add(-time.Millisecond).Round(0) // the machine has slept
	if l.Held() {
		t.Error("held past the deadline by the wall clock")
	}
}

// A renewal that makes the key live shorter moves the deadline when it leaves: its answer
// may be lost.
func TestShorterRenewal(t *testing.T) {
	s, _ := held(t, time.Hour)
	sooner := deadlineAfter(time.Now(), time.Minute)
	if _, revision := s.before(sooner); revision != 7 || s.deadline != sooner {
		t.Errorf("got %d, %+v", revision, s.deadline)
	}
	s.before(deadlineAfter(time.Now(), time.Hour))
	if s.deadline != sooner {
		t.Error("a renewal that nobody confirmed moved the deadline on")
	}
}

// What is no card and no claim counts for nothing: a mark, text of strangers, an answer
// that others had put there, another's card.
func TestParse(t *testing.T) {
	id, claimOf := `{"writer":"host-1-abc","host":"host","pid":1,"since":"2026-11-28T12:00:00Z","id":"X","asks":"acme"}`,
		`{"instance":"X","writer":"host-1-abc","host":"host","since":"2026-11-28T12:00:00Z"}`
	if c := parseCard("X", []byte(id)); c == nil || c.Writer != "host-1-abc" || c.Asks != "acme" || c.Leaving {
		t.Errorf("a card is read as %+v", c)
	}
	if c := parseClaim([]byte(claimOf)); c == nil || c.Instance != "X" || c.Host != "host" {
		t.Errorf("a claim is read as %+v", c)
	}
	for _, value := range []string{"", "hello", "{}", "null", "[]", `{"id":"X"}`, `{"instance":"X"}`, `{"writer":"w"}`,
		`{"writer":"w","id":"Y"}`, `{"type":"io.nats.micro.v1.ping_response","name":"zulip-nats","id":"X","version":"1.2.3"}`} {
		if c := parseCard("X", []byte(value)); c != nil {
			t.Errorf("%s is read as the card %+v", value, c)
		}
		if c := parseClaim([]byte(value)); c != nil {
			t.Errorf("%s is read as the claim %+v", value, c)
		}
	}
	for key, want := range map[string][2]string{"instance.X.alive": {"X", ""}, "realm.acme.claim": {"", "acme"},
		"acme.lease": {}, "instance.X": {}, "realm.a.b.claim": {}, "": {}, "instance.X.claim": {}} {
		if id, realm := parseKey(key); id != want[0] || realm != want[1] {
			t.Errorf("%s is the key of %q, %q", key, id, realm)
		}
	}
	for _, header := range []nats.Header{{"KV-Operation": {"DEL"}}, {"Nats-Marker-Reason": {"MaxAge"}}} {
		if e := newEntry(3, header, []byte(id)); e.Value != nil || e.Revision != 3 {
			t.Errorf("%v is read as %+v", header, e)
		}
	}
	if e := newEntry(3, nil, nil); e.Value == nil {
		t.Error("an empty value is taken for a key that is gone")
	}
}

// A renewal leaves at a third of the key's life, counted from when the last write was sent,
// however long its answer took, and never at once.
func TestPauseCountsFromTheSending(t *testing.T) {
	s, _ := held(t, time.Hour)
	for _, test := range []struct{ took, least, most time.Duration }{
		{0, 900 * time.Millisecond, 3 * time.Second}, {2 * time.Second, 900 * time.Millisecond, time.Second},
		{8 * time.Second, 900 * time.Millisecond, 900 * time.Millisecond},
	} {
		if got := s.pause(time.Now().Add(-test.took), 9*time.Second); got < test.least || got > test.most {
			t.Errorf("behind an answer that took %v it waits %v", test.took, got)
		}
	}
}

// What was claimed and is not there any more, without a word of it, is left alone for a
// while: the bucket was purged, and who holds it may not know yet. What was deleted is free.
func TestVanished(t *testing.T) {
	old, now := newView(), time.Now()
	old.take("realm.held.claim", Entry{3, []byte(`{"instance":"X","writer":"w"}`)})
	old.take("realm.deleted.claim", Entry{4, nil})
	old.take("realm.again.claim", Entry{5, []byte(`{"instance":"X","writer":"w"}`)})
	next := newView()
	next.take("realm.again.claim", Entry{9, []byte(`{"instance":"Y","writer":"w"}`)})
	next.after(old, now)
	if c := next.claims["held"]; c.claim == nil || !c.vanished || c.revision != 0 || c.vanishedAt != now {
		t.Errorf("what vanished is %+v", c)
	}
	if _, there := next.claims["deleted"]; there {
		t.Error("what was deleted is remembered")
	}
	if c := next.claims["again"]; c.Instance != "Y" || c.vanished {
		t.Errorf("what is there is %+v", c)
	}
	third := newView()
	third.after(next, now.Add(time.Hour))
	if c := third.claims["held"]; c.vanishedAt != now {
		t.Errorf("with each view it vanishes anew: %+v", c)
	}
	third.take("realm.held.claim", Entry{2, []byte(`{"instance":"X","writer":"w"}`)})
	if c := third.claims["held"]; c.vanished || c.revision != 2 {
		t.Errorf("what is written again is %+v", c)
	}
	third.take("realm.held.claim", Entry{1, nil})
	if c := third.claims["held"]; c.claim == nil {
		t.Error("an old word counts")
	}
}

// A view is complete when something has come that was written after the watch had begun.
func TestComplete(t *testing.T) {
	v := newView()
	if v.seen = 5; v.complete() {
		t.Error("complete without a word of ours")
	}
	if v.barrier = 6; v.complete() {
		t.Error("complete before it has come")
	}
	if v.seen = 6; !v.complete() {
		t.Error("it has come, and it is not complete")
	}
}

// Of many realms, each of some instances is the first for about as many: so they do not
// all begin with the same ones.
func TestRank(t *testing.T) {
	const instances, many = 4, 1000
	first := map[int]int{}
	for n := range many {
		best, most := 0, uint64(0)
		for i := range instances {
			if r := rank(fmt.Sprint("realm-", n), fmt.Sprint("KJ1kGmZoqVdCFCfbmRXN4", i)); r > most {
				best, most = i, r
			}
		}
		first[best]++
	}
	for i := range instances {
		if math.Abs(float64(first[i]-many/instances)) > many/instances/3 {
			t.Errorf("instance %d is the first for %d of %d realms", i, first[i], many)
		}
	}
}
