//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// memory is how large the program becomes, and how much it allocates.
//
// The peak is its resident memory at most (VmHWM of Linux), from its start until an answer
// of so many bytes is stored, compressed on the way as a Zulip behind nginx does. For each
// answer there is a new program, with an empty stream. Allocations are those of the whole
// process by the runtime's own count (MemStats.Mallocs, in the heap profile of --pprof),
// from before Zulip may answer until all is stored, and by the number of events.
func memory(t *scope) {
	const size = 500
	s := newStore(t, "R1 file")
	sizes := []struct {
		name  string
		bytes int
	}{{"10 MB", 10_000_000}, {"100 MB", 100_000_000}, {"1 GB", 1_000_000_000}}
	var turns []func() float64
	for _, c := range sizes {
		n := t.sized(c.bytes, c.bytes) / size
		turns = append(turns, func() (peak float64) {
			t.try(c.name, func(t *scope) {
				z := newZulip(t, func(z *zulipsim.Server) { z.NoGzip = false })
				p := t.follow(z, s.url, "acme")
				z.drained(max(n, 1), made(size))
				peak = p.peak()
				p.stop()
				t.must(s.js.DeleteStream(t.Context(), "ZULIP_acme"))
			})
			return peak
		})
	}
	figures := t.byTurns(turns...)
	if t.below {
		return
	}
	for i, c := range sizes {
		t.report(compared("memory", "an answer of "+c.name, "peak", "MB", figures[i], "", nil, atMost(40)))
	}
	last := len(sizes) - 1
	t.report(compared("memory", "an answer of "+sizes[last].name, "peak", "MB", figures[last],
		"an answer of "+sizes[0].name, figures[0], atMost(1.15)))
	t.try("allocations", func(t *scope) {
		n := t.sized(200_000, 1_000_000)
		z := newZulip(t)
		address := "127.0.0.1:" + strconv.Itoa(natstest.FreePort(t))
		t.follow(z, s.url, "acme", "--http", address, "--pprof")
		z.drained(max(n/10, 1000), made(size))
		figures := t.byTurns(func() float64 {
			before := mallocs(t, address)
			z.drained(n, made(size))
			return (mallocs(t, address) - before) / float64(n)
		})
		t.report(compared("memory", "500 B, R1 file", "allocations per event", "", figures[0], "", nil, atMost(2)))
	})
}

// peak is the greatest resident memory so far, in MB.
func (p *process) peak() float64 { return p.memory("VmHWM:") }

// memory is a line of the process's status, in MB.
func (p *process) memory(name string) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	p.t.must(err)
	for line := range bytes.Lines(status) {
		if value, ok := bytes.CutPrefix(line, []byte(name)); ok {
			kB, err := strconv.ParseFloat(string(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(value), []byte("kB")))), 64)
			p.t.must(err)
			return kB * 1024 / 1e6
		}
	}
	p.t.Fatalf("no %s in the status of process %d", name, p.cmd.Process.Pid)
	return 0
}

// mallocs is how many objects a program has allocated so far.
func mallocs(t *scope, address string) float64 {
	client := http.Client{Timeout: time.Minute}
	r, err := client.Get("http://" + address + "/debug/pprof/heap?debug=1")
	t.must(err)
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	t.must(err)
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte("# Mallocs = ")); ok {
			n, err := strconv.ParseFloat(string(bytes.TrimSpace(value)), 64)
			t.must(err)
			return n
		}
	}
	t.Fatalf("no Mallocs in the heap profile, status %s", r.Status)
	return 0
}
