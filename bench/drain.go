//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"

	"zulip-nats/integration_test/recorded"
)

// drain is a backlog, all of it in one answer: how many events a second are stored.
//
// It is measured from when Zulip may answer until the next poll acknowledges the last
// event, so all are stored by then, and the program knows. Beside it runs the simulator,
// which makes the events while it sends them, in this process, and the server. The
// references run alone with the server: a bare loop of ready-made messages (see bareLoop)
// from the first publish to the last acknowledgement, and nats bench by its own word, with
// bodies as large as our messages are stored, and with bodies as large as our bodies.
func drain(t *scope) {
	for _, c := range []struct {
		store, size string
		bytes       int
		events      int // a million with -full
		always      bool
	}{
		{"R1 file", "500 B", 500, 200_000, true}, {"R1 file", "100 B", 100, 150_000, true},
		{"R1 file", "2 KB", 2000, 80_000, true}, {"R1 file", "captured mix", 0, 80_000, true},
		{"R1 memory", "500 B", 500, 200_000, true}, {"R1 memory", "100 B", 100, 0, false},
		{"R1 memory", "2 KB", 2000, 0, false}, {"R1 memory", "captured mix", 0, 0, false},
		{"R3 file", "500 B", 500, 50_000, true}, {"R3 file", "100 B", 100, 0, false},
		{"R3 file", "2 KB", 2000, 0, false}, {"R3 file", "captured mix", 0, 0, false},
	} {
		if !c.always && !t.full {
			continue
		}
		name := c.size + ", " + c.store
		t.try(name, func(t *scope) {
			event := captured(t)
			if c.bytes > 0 {
				event = made(c.bytes)
			}
			drainCase(t, newStore(t, c.store), name, event, t.sized(c.events, 1_000_000))
		})
	}
}

func drainCase(t *scope, s *store, name string, event func(dst []byte, id int64) []byte, n int) {
	const chunk = 1000
	z := newZulip(t)
	s.open("acme").Close() // in memory, say: the program takes it as it is
	t.follow(z, s.url, "acme")
	z.drained(max(n/10, chunk), event) // the first events pay for what is made once
	ready := s.newest("ZULIP_acme", chunk)
	stored, body := weights(ready)
	bare := newBareLoop(s, "bare", ready)
	bare.publish(max(n/10, chunk))
	contestants := []func() float64{
		func() float64 {
			defer s.clear("ZULIP_acme")
			return float64(n) / z.drained(n, event).Seconds()
		},
		func() float64 {
			defer s.clear("ZULIP_bare")
			return float64(n) / bare.publish(n).Seconds()
		},
		nil, nil,
	}
	for i, size := range []int{stored, body} {
		if bench := s.natsBench(n, size); bench != nil {
			contestants[2+i] = func() float64 { rate, _ := bench(); return rate }
		}
	}
	figures := t.byTurns(contestants...)
	t.report(compared("drain", name, "events/s", "", figures[0], "bare loop", figures[1], atLeast(0.97)))
	if contestants[2] != nil {
		t.report(compared("drain", name, "events/s", "", figures[0], fmt.Sprintf("nats bench, %d B", stored), figures[2], atLeast(1)),
			compared("drain", name, "events/s", "", figures[0], fmt.Sprintf("nats bench, body %d B", body), figures[3], atLeast(0.8)))
	}
}

// captured writes the events that were recorded from a real Zulip, by turns, each with the
// id that is asked for.
func captured(t *scope) func(dst []byte, id int64) []byte {
	var all [][]byte // without the id and the brace at the end
	seen := make(map[string]bool)
	for _, line := range recorded.Lines(t, filepath.Join(t.root, "poller/testdata/captured/events.jsonl.gz")) {
		var answer struct{ Body string }
		t.must(json.Unmarshal(line, &answer))
		var body struct{ Events []json.RawMessage }
		t.must(json.Unmarshal([]byte(answer.Body), &body))
		for _, raw := range body.Events {
			var e struct {
				ID int64
			}
			t.must(json.Unmarshal(raw, &e))
			if start, ok := bytes.CutSuffix(raw, fmt.Appendf(nil, `"id":%d}`, e.ID)); ok && !seen[string(start)] {
				seen[string(start)] = true
				all = append(all, append(start, `"id":`...))
			}
		}
	}
	if len(all) == 0 {
		t.Fatal("no recorded event ends in its id")
	}
	return func(dst []byte, id int64) []byte {
		dst = append(dst, all[int(id)%len(all)]...)
		return append(strconv.AppendInt(dst, id, 10), '}')
	}
}
