package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/fleet"
	"zulip-nats/stream/natstest"
)

// runs are realms that note what is done with them.
type runs struct {
	mu    sync.Mutex
	lines []string
	now   map[string]int // how many run of a name
	t     *testing.T
}

func (r *runs) note(format string, v ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, fmt.Sprintf(format, v...))
}

// taken are the lines since the last call, sorted: what happens at one moment has no order.
func (r *runs) taken() string {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := r.lines
	r.lines = nil
	slices.Sort(lines)
	return strings.Join(lines, ", ")
}

// realm runs until it is stopped, and takes a second for that; or fails at once.
func (r *runs) realm(name, settings string, fails error) fleet.Realm {
	return fleet.Realm{Name: name, Settings: settings, Run: func(ctx context.Context) error {
		r.mu.Lock()
		if r.now == nil {
			r.now = map[string]int{}
		}
		if r.now[name]++; r.now[name] > 1 {
			r.t.Errorf("%s runs twice at a time", name)
		}
		r.mu.Unlock()
		defer func() {
			r.mu.Lock()
			r.now[name]--
			r.mu.Unlock()
		}()
		if fails != nil {
			r.note("%s fails", name)
			return fails
		}
		r.note("%s+%s", name, settings)
		<-ctx.Done()
		time.Sleep(time.Second)
		r.note("%s-%s", name, settings)
		return nil
	}}
}

// A realm that fails leaves the others alone, says so, and is tried again; what did not
// change goes on; what did is stopped and then started.
func TestSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &runs{t: t}
		var log natstest.Buffer
		f := fleet.New(zerolog.New(&log))
		wrong := errors.New("the key is refused")
		f.Set([]fleet.Realm{r.realm("a", "1", nil), r.realm("b", "1", wrong), r.realm("c", "1", nil)})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- f.Run(ctx) }()
		time.Sleep(time.Second)
		if got := r.taken(); got != "a+1, b fails, c+1" {
			t.Errorf("at the start: %s", got)
		}
		if s, is := f.Halted("b"); !is || s.Text != wrong.Error() || s.Tries != 1 || time.Since(s.Since) > time.Second {
			t.Errorf("b is halted: %v %+v", is, s)
		}
		if _, is := f.Halted("a"); is {
			t.Error("a is halted")
		}
		if !strings.Contains(log.String(), `"event":"realm_halted","realm":"b","error":"the key is refused"`) {
			t.Errorf("the log says %s", log.String())
		}

		c := f.Set([]fleet.Realm{r.realm("a", "1", nil), r.realm("b", "1", wrong), r.realm("c", "2", nil),
			r.realm("d", "1", nil), r.realm("d", "2", nil)})
		time.Sleep(3 * time.Second)
		if got := r.taken(); got != "b fails, c+2, c-1, d+1" {
			t.Errorf("after new settings: %s", got)
		}
		if want := (fleet.Changes{Added: []string{"d"}, Changed: []string{"c"}, Retried: []string{"b"}}); fmt.Sprint(c) != fmt.Sprint(want) {
			t.Errorf("it says %v, want %v", c, want)
		}
		if s, is := f.Halted("b"); !is || s.Tries != 2 {
			t.Errorf("b is halted: %v %+v", is, s)
		}

		// Away and back again before it has ended.
		f.Set([]fleet.Realm{r.realm("b", "2", nil), r.realm("c", "2", nil)})
		f.Set([]fleet.Realm{r.realm("a", "1", nil), r.realm("b", "2", nil), r.realm("c", "2", nil)})
		time.Sleep(3 * time.Second)
		if got := r.taken(); got != "a+1, a-1, b+2, d-1" {
			t.Errorf("away and back: %s", got)
		}
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the stop: %v", err)
		}
		if got := r.taken(); got != "a-1, b-2, c-2" {
			t.Errorf("at the stop: %s", got)
		}
	})
}

// When every realm is halted, nothing is left to be run for.
func TestAllHalted(t *testing.T) {
	for _, test := range []struct {
		name   string
		first  []string // that fail
		later  []string // that are set a minute later; nil: none are
		says   string
		logged int
	}{
		{"one", []string{"a"}, nil, "a is wrong", 0},
		{"two", []string{"a", "b"}, nil, "a: a is wrong\nb: b is wrong", 2},
		{"what ran is removed", []string{"a", ""}, []string{"a"}, "a is wrong", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &runs{t: t}
				var log natstest.Buffer
				f := fleet.New(zerolog.New(&log))
				set := func(names []string) {
					var realms []fleet.Realm
					for _, name := range names {
						if name == "" {
							realms = append(realms, r.realm("fine", "1", nil))
							continue
						}
						realms = append(realms, r.realm(name, "1", errors.New(name+" is wrong")))
					}
					f.Set(realms)
				}
				set(test.first)
				ended := make(chan error, 1)
				go func() { ended <- f.Run(t.Context()) }()
				if test.later != nil {
					time.Sleep(time.Minute)
					set(test.later)
				}
				if err := <-ended; err == nil || err.Error() != test.says {
					t.Errorf("Run: %v, want %s", err, test.says)
				}
				if n := strings.Count(log.String(), "realm_halted"); n != test.logged {
					t.Errorf("%d lines, want %d: %s", n, test.logged, log.String())
				}
			})
		})
	}
}

// A start is spread, and the first does not wait for the last. What the realms return at
// the stop is what Run does.
func TestManyRealms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 300
		f := fleet.New(zerolog.Nop())
		var mu sync.Mutex
		var begun []time.Duration
		began := time.Now()
		var realms []fleet.Realm
		for i := range many {
			realms = append(realms, fleet.Realm{Name: fmt.Sprint("r", i), Run: func(ctx context.Context) error {
				mu.Lock()
				begun = append(begun, time.Since(began))
				mu.Unlock()
				<-ctx.Done()
				if i == 7 {
					return errors.New("the queue was to be deleted, and was not")
				}
				return nil
			}})
		}
		f.Set(realms)
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		if err := f.Run(ctx); err == nil || err.Error() != "r7: the queue was to be deleted, and was not" {
			t.Errorf("Run: %v", err)
		}
		if len(begun) != many || begun[0] > 0 {
			t.Fatalf("%d begun, the first after %v", len(begun), begun[0])
		}
		for i := fleet.StartsPerSecond; i < many; i++ {
			if took := begun[i] - begun[i-fleet.StartsPerSecond]; took < time.Second-time.Millisecond {
				t.Fatalf("%d starts within %v", fleet.StartsPerSecond+1, took)
			}
		}
		if last, most := begun[many-1], many/fleet.StartsPerSecond*time.Second; last > most {
			t.Errorf("the last began after %v, want %v at most", last, most)
		}
	})
}

// One that has something to do at a stop has its turn even then.
func TestStoppedBeforeItBeganAndRunAnyway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &runs{t: t}
		f := fleet.New(zerolog.Nop())
		ctx, stop := context.WithCancel(t.Context())
		stop()
		anyway := r.realm("a", "1", nil)
		anyway.Anyway = true
		f.Set([]fleet.Realm{anyway, r.realm("b", "1", nil)})
		if err := f.Run(ctx); err != nil {
			t.Error(err)
		}
		if got := r.taken(); got != "a+1, a-1" {
			t.Errorf("it did: %s", got)
		}
	})
}

// A realm that is stopped before it has begun never begins.
func TestStoppedBeforeItBegan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &runs{t: t}
		f := fleet.New(zerolog.Nop())
		ctx, stop := context.WithCancel(t.Context())
		f.Set([]fleet.Realm{r.realm("a", "1", nil), r.realm("b", "1", nil), r.realm("c", "1", nil)})
		ended := make(chan error, 1)
		go func() { ended <- f.Run(ctx) }()
		synctest.Wait() // one has begun, and the others wait for their turn
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if got := r.taken(); strings.Count(got, "+") != 1 || strings.Count(got, "-") != 1 {
			t.Errorf("it did: %s", got)
		}
	})
}

// One edit of the file takes the realm away that runs, and mends the one that is halted.
// The mended one has to come up: that the other has gone while it had not yet begun is no
// end of everything.
func TestMendedWhileTheOtherGoes(t *testing.T) {
	ended := 0
	const rounds = 300
	for range rounds {
		synctest.Test(t, func(t *testing.T) {
			f := fleet.New(zerolog.Nop())
			waits := func(ctx context.Context) error { <-ctx.Done(); return nil }
			fails := func(context.Context) error { return errors.New("the key is refused") }
			f.Set([]fleet.Realm{{Name: "good", Run: waits}, {Name: "mended", Settings: 1, Run: fails}})
			ctx, stop := context.WithCancel(t.Context())
			over := make(chan error, 1)
			go func() { over <- f.Run(ctx) }()
			for {
				if _, is := f.Halted("mended"); is {
					break
				}
				synctest.Wait()
				time.Sleep(time.Second)
			}
			f.Set([]fleet.Realm{{Name: "mended", Settings: 2, Run: waits}})
			time.Sleep(time.Second)
			select {
			case err := <-over:
				if err != nil {
					ended++
				}
			default:
				stop()
				<-over
			}
			stop()
		})
	}
	if ended > 0 {
		t.Errorf("Run ended %d times of %d, with a realm that was about to be tried again", ended, rounds)
	}
}
