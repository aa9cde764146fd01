//go:build linux

package main

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// far is the same as drain and live with NATS or Zulip so many milliseconds away, there
// and back.
//
// The way is a relay of TCP in this process that keeps each piece for half of that time,
// in each direction (see line): it delays, and it narrows nothing. The reference for a
// backlog is the same with a way that delays nothing. One event at a time is told by what
// the way adds to the median: to stored, and until the next poll is there, by when the
// program is ready for the next event. The reference is a round trip, as it is measured on
// such a way; the clocks of the system make it a little longer than what was asked for.
// One hop there is half a round trip. Each distance has a program of its own, since how it
// publishes goes by the distance that it finds at its start.
func far(t *scope) {
	s := newStore(t, "R1 file")
	distances := []time.Duration{0, time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond}
	for _, to := range []string{"NATS", "Zulip"} {
		t.try(to, func(t *scope) {
			var drains, lives []func() float64
			events, n := t.sized(60_000, 1_000_000), t.sized(batch, 5*batch)
			rounds := make([][]delays, len(distances))
			for i, d := range distances {
				realm := fmt.Sprint(strings.ToLower(to), i)
				side := newLiveSide(t, s, realm)
				url := s.url
				if to == "NATS" {
					url = "nats://" + newLine(t, strings.TrimPrefix(s.url, "nats://"), d)
				} else {
					side.zulip.at("http://" + newLine(t, strings.TrimPrefix(side.zulip.url, "http://"), d))
				}
				side.start = func() *process { return t.follow(side.zulip, url, realm) }
				drains = append(drains, func() float64 { return side.drain(events) })
				lives = append(lives, func() float64 { rounds[i] = append(rounds[i], side.measure(n)); return 0 })
			}
			rates := t.byTurns(drains...)
			for i, d := range distances[1:] {
				t.report(compared("far", fmt.Sprintf("%s %d ms away", to, d.Milliseconds()), "events/s", "", rates[i+1],
					"no delay", rates[0], atLeast(0.5)))
			}
			t.byTurns(lives...)
			for i, d := range distances[1:] {
				trip := roundTrip(t, d)
				for _, what := range []struct {
					name string
					of   func(delays) []float64
				}{{"to stored", func(d delays) []float64 { return d.stored }},
					{"until the next poll", func(d delays) []float64 { return d.again }}} {
					var added, trips []float64
					for k := range rounds[0] {
						added = append(added, median(what.of(rounds[i+1][k]))-median(what.of(rounds[0][k])))
						trips = append(trips, trip)
					}
					t.report(compared("far", fmt.Sprintf("%s %d ms away", to, d.Milliseconds()), what.name+", p50, added", "ms", added,
						"a round trip", trips, atMost(1.1)))
				}
			}
		})
	}
}

// newLine is a way to address on which everything takes half of trip, there and back
// likewise. It gives the address of its beginning, and ends with the case.
func newLine(t *scope, address string, trip time.Duration) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	t.must(err)
	var mu sync.Mutex
	var ends []net.Conn // of all connections, closed at the end
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range ends {
			c.Close()
		}
	})
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", address)
			if err != nil {
				near.Close()
				continue
			}
			mu.Lock()
			ends = append(ends, near, far)
			mu.Unlock()
			go carry(far, near, trip/2)
			go carry(near, far, trip/2)
		}
	}()
	return l.Addr().String()
}

// carry brings what comes from one connection to another, each piece so much later.
func carry(to, from net.Conn, later time.Duration) {
	type piece struct {
		due  time.Time
		data []byte
	}
	pieces := make(chan piece, 1<<14)
	go func() {
		defer to.Close()
		for p := range pieces {
			rest(time.Until(p.due))
			if _, err := to.Write(p.data); err != nil {
				from.Close()
				for range pieces {
				}
			}
		}
	}()
	defer close(pieces)
	for {
		data := make([]byte, 32<<10)
		n, err := from.Read(data)
		if n > 0 {
			pieces <- piece{time.Now().Add(later), data[:n]}
		}
		if err != nil {
			return
		}
	}
}

// rest is time.Sleep to some ten microseconds: the runtime wakes whoever rests on an idle
// processor by whole milliseconds.
func rest(d time.Duration) {
	const coarse = 2 * time.Millisecond
	if d > coarse {
		began := time.Now()
		time.Sleep(d - coarse)
		d -= time.Since(began)
	}
	if d > 0 {
		left := unix.NsecToTimespec(int64(d))
		_ = unix.Nanosleep(&left, nil) // interrupted by a signal, it ends sooner
	}
}

// roundTrip measures a round trip on such a way, in milliseconds.
func roundTrip(t *scope, d time.Duration) float64 {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	t.must(err)
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	c, err := net.Dial("tcp", newLine(t, l.Addr().String(), d))
	t.must(err)
	defer c.Close()
	var trips []float64
	for range 50 {
		began := time.Now()
		_, err := c.Write([]byte{0})
		t.must(err)
		_, err = c.Read(make([]byte, 1))
		t.must(err)
		trips = append(trips, milliseconds(time.Since(began)))
	}
	return median(trips)
}
