package health_test

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"zulip-nats/health"
)

// TestSet: which of several settings in a row are news, by each of the rules.
func TestSet(t *testing.T) {
	for _, test := range []struct {
		name      string
		condition *health.Condition
		pause     time.Duration // before each but the first
		reasons   string        // one letter each; a blank clears it
		news      string        // y or n for each; the blank as it is
		silent    []int         // what Set says of each that is news
	}{
		{"each once until it is cleared", &health.Condition{}, 0, "aabab ab", "ynynn yy", []int{0, 1, 0, 0}},
		{"ten at most", &health.Condition{}, 0, "abcdefghijklmno a", "yyyyyyyyyynnnnn y",
			[]int{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
		{"one at most", &health.Condition{Most: 1}, 0, "abca b", "ynnn y", []int{0, 0}},
		{"each change", &health.Condition{Changes: true}, 0, "aabbaab a", "ynynyny y", []int{0, 1, 1, 1, 0}},
		{"each change, and now and then", &health.Condition{Changes: true, Every: 10 * time.Minute}, 3 * time.Minute,
			"aaaaaaba", "ynnnynyy", []int{0, 3, 1, 0}},
		{"now and then", &health.Condition{Every: time.Minute}, 20 * time.Second, "aaaaaaa", "ynnynny", []int{0, 2, 2}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got, silent := "", []int(nil)
				for i, reason := range test.reasons {
					if i > 0 {
						time.Sleep(test.pause)
					}
					if reason == ' ' {
						got += " "
						test.condition.Clear()
						continue
					}
					n, news := test.condition.Set(string(reason), "")
					if !news {
						got += "n"
						continue
					}
					got += "y"
					silent = append(silent, n)
				}
				if got != test.news || fmt.Sprint(silent) != fmt.Sprint(test.silent) {
					t.Errorf("%s: news %s, %v were silent between; want %s and %v", test.reasons, got, silent,
						test.news, test.silent)
				}
			})
		})
	}
}

// TestState: what is remembered while it is set, and what is handed out when it ends.
func TestState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c health.Condition
		if s, set := c.State(); set || s != (health.State{}) {
			t.Errorf("a new one is set: %+v", s)
		}
		if was, set := c.Clear(); set || was != (health.State{}) {
			t.Errorf("a new one was set: %+v", was)
		}
		began := time.Now()
		c.Set("502", "Zulip answers 502")
		time.Sleep(time.Minute)
		c.Set("reset", "Zulip cannot be reached")
		c.Set("reset", "Zulip cannot be reached, the third time")
		want := health.State{Since: began, Tries: 3, Reason: "reset", Text: "Zulip cannot be reached, the third time"}
		if s, set := c.State(); !set || s != want {
			t.Errorf("it is %+v, %v; want %+v", s, set, want)
		}
		if was, set := c.Clear(); !set || was != want {
			t.Errorf("it was %+v, %v; want %+v", was, set, want)
		}
		if s, set := c.State(); set || s != (health.State{}) {
			t.Errorf("it is set still: %+v", s)
		}
	})
}

// TestReaders: any goroutine may ask while one sets and clears (for -race).
func TestReaders(t *testing.T) {
	var c health.Condition
	var all sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		all.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if s, set := c.State(); set != (s.Tries > 0) || set && s.Since.IsZero() {
					t.Errorf("half a state: %+v, %v", s, set)
				}
			}
		})
	}
	for i := range 1000 {
		c.Set(fmt.Sprint(i%7), "text")
		if i%5 == 0 {
			c.Clear()
		}
	}
	close(done)
	all.Wait()
}
