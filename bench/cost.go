//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// cost is what the program takes besides memory: processors, and somebody's time at a
// start and a stop.
//
// Processor time is what the system counts for the whole process, from exec to exit: a
// program that starts, stores a backlog of 500 byte events and is stopped, beside the
// process of nats bench that publishes as many messages of the same stored size. A start
// is measured from before exec to the time of the first event in the stream, with one
// waiting at Zulip: in the queue that the program left behind, or in a queue that it makes.
// A stop is from SIGTERM to the exit, while a poll waits. The binary is that which is
// measured, built as for the image. The image is that binary and the certificates of the
// public authorities, as a registry keeps it (gzip -6), from this machine's certificates;
// release/image-check looks at a real one.
func cost(t *scope) {
	s := newStore(t, "R1 file")
	t.try("processors", func(t *scope) { processorCost(t, s) })
	for _, fresh := range []bool{false, true} {
		name := "existing queue"
		if fresh {
			name = "new queue"
		}
		t.try(name, func(t *scope) { startCost(t, s, name, fresh) })
	}
	t.try("binary", func(t *scope) {
		binary, err := os.ReadFile(t.program)
		t.must(err)
		t.report(compared("cost", "the binary", "size", "MB", []float64{float64(len(binary)) / 1e6}, "", nil, nil))
		authorities, err := os.ReadFile(certificates)
		if os.IsNotExist(err) {
			t.Log("no certificates on this machine, so the size of the image is not known")
			return
		}
		t.must(err)
		size := 0
		for _, layer := range [][]byte{binary, authorities} {
			c := exec.CommandContext(t.Context(), "gzip", "-6", "-n")
			c.Stdin = bytes.NewReader(layer)
			packed, err := c.Output()
			t.must(err)
			size += len(packed)
		}
		t.report(compared("cost", "the image, packed", "size", "MB", []float64{float64(size) / 1e6}, "", nil, atMost(10.5)))
	})
}

// certificates is where Debian, Alpine and others keep those of the public authorities.
const certificates = "/etc/ssl/certs/ca-certificates.crt"

func processorCost(t *scope, s *store) {
	n := t.sized(200_000, 1_000_000)
	event := made(500)
	realm, size := 0, 0
	ours := func() float64 {
		realm++
		name := fmt.Sprint("cpu", realm)
		z := newZulip(t)
		p := t.follow(z, s.url, name)
		z.drained(n, event)
		if size == 0 {
			size, _ = weights(s.newest("ZULIP_"+name, 1000))
		}
		p.stop()
		t.must(s.js.DeleteStream(t.Context(), "ZULIP_"+name))
		return processors(p.finish()).Seconds() / float64(n) * 1e6
	}
	ours() // which says how large the messages are
	contestants := []func() float64{ours}
	bench := s.natsBench(n, size)
	if bench != nil {
		contestants = append(contestants, func() float64 {
			_, used := bench()
			return used.Seconds() / float64(n) * 1e6
		})
	}
	figures := t.byTurns(contestants...)
	reference, theirs := "", []float64(nil)
	if bench != nil {
		reference, theirs = fmt.Sprintf("nats bench, %d B", size), figures[1]
	}
	t.report(compared("cost", "500 B, R1 file", "processor seconds per million", "s", figures[0], reference, theirs, nil))
}

func startCost(t *scope, s *store, name string, fresh bool) {
	const each = 5 // in a round
	event := emitted(500, 1)
	var starts, stops []float64
	realm := 0
	for range t.rounds * each {
		realm++
		name := fmt.Sprintf("start%v%d", fresh, realm)
		z := newZulip(t)
		if fresh {
			z.DuringRegister = func(string) { z.EmitRaw(event) }
		} else {
			p := t.follow(z, s.url, name)
			z.waiting()
			stops = append(stops, milliseconds(p.stop()))
			z.EmitRaw(event)
		}
		hand := make(chan bool, 4)
		sub, err := s.nc.Subscribe("zulip."+name+".message", func(*nats.Msg) { hand <- true })
		t.must(err)
		t.must(s.nc.Flush())
		p := t.follow(z, s.url, name)
		select {
		case <-hand:
		case <-t.Context().Done():
			t.Fatal("interrupted")
		case <-time.After(patience):
			t.Fatal("nothing was stored")
		}
		sub.Unsubscribe()
		z.waiting()
		st, err := s.js.Stream(t.Context(), "ZULIP_"+name)
		t.must(err)
		s.read(st, 1, 1, "zulip."+name+".message", func(m jetstream.Msg) {
			meta, err := m.Metadata()
			t.must(err)
			starts = append(starts, milliseconds(meta.Timestamp.Sub(p.began)))
		})
		stops = append(stops, milliseconds(p.stop()))
	}
	t.report(compared("cost", "start, "+name, "exec to the first event stored", "ms", starts, "", nil, atMost(100)),
		compared("cost", "stop, "+name, "SIGTERM to exit", "ms", stops, "", nil, nil))
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// stop is SIGTERM, and says how long the end took.
func (p *process) stop() time.Duration {
	began := time.Now()
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.finish()
	return time.Since(began)
}
