//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"zulip-nats/integration_test/recorded"
	"zulip-nats/stream"
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
	type one struct {
		size  string
		bytes int // 0: as recorded
		store string
		n     int // a million with -full; 0: with -full only
		more  []string
	}
	cases := []one{{size: "500 B", bytes: 500, store: "R1 file", n: 200_000},
		{size: "100 B", bytes: 100, store: "R1 file", n: 150_000},
		{size: "2 KB", bytes: 2000, store: "R1 file", n: 80_000}, {size: "captured mix", store: "R1 file", n: 80_000},
		{size: "500 B", bytes: 500, store: "R1 memory", n: 200_000}, {size: "500 B", bytes: 500, store: "R3 file", n: 50_000}}
	if t.full {
		for _, store := range []string{"R1 memory", "R3 file"} {
			cases = append(cases, one{size: "100 B", bytes: 100, store: store}, one{size: "2 KB", bytes: 2000, store: store},
				one{size: "captured mix", store: store})
		}
		cases = append(cases, one{"500 B", 500, "R1 file", 0, []string{"--subjects", "by-place"}},
			one{"500 B", 500, "R1 file", 0, []string{"--publish-path", "atomic"}},
			one{"500 B", 500, "R1 file", 0, []string{"--publish-path", "sync"}})
	}
	for _, c := range cases {
		name := c.size + ", " + c.store
		if len(c.more) > 0 {
			name += ", " + c.more[1]
		}
		t.try(name, func(t *scope) {
			event := captured(t)
			if c.bytes > 0 {
				event = made(c.bytes)
			}
			full := 1_000_000
			if slices.Contains(c.more, string(stream.PathSync)) {
				full = 100_000
			}
			drainCase(t, newStore(t, c.store), name, event, t.sized(c.n, full), c.more)
		})
	}
}

func drainCase(t *scope, s *store, name string, event func(dst []byte, id int64) []byte, n int, more []string) {
	const chunk = 1000
	z := newZulip(t)
	s.open("acme", "").Close() // in memory, say: the program takes it as it is
	t.follow(z, s.url, "acme", more...)
	z.drained(max(n/10, chunk), event) // the first events pay for what is made once
	ready := s.newest("ZULIP_acme", chunk)
	stored, body := weights(ready)
	var path stream.Path
	if len(more) > 0 && more[0] == "--publish-path" {
		path = stream.Path(more[1])
	}
	bare := newBareLoop(s, "bare", path, ready)
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
