//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"zulip-nats/stream/natstest"
)

// realms is one process that follows 1, 10, 100, 1,000 organizations, each with a poll
// open: how large it is, what it asks for, and how long an event of one of them takes.
//
// All organizations are in this process, at one address: by HTTP/1, where each has a
// connection, and by HTTP/2, where polls share connections, with TLS. The streams are new,
// on one server. Idle: nothing happens in any of them but an event each second in the
// first, and Zulip's heartbeats. Busy: one event each second in every one, spread over the
// second. Each lasts 40 s, and what stands in the table is of that time: resident
// memory at its end (VmRSS), processor time by what is one core, the messages that the
// server got from its clients, the requests that the organizations got. What the server
// takes is what it says of itself (varz).
//
// The delay is that of events of the first organization, from when it is given the event
// to when a subscriber in this process has it. It is compared with that of a process with
// one realm. A realm more is what memory grew by, beyond the process with one realm, by the
// number of the others.
//
// A start is measured from exec until a poll of the first realm waits, and one of each.
func realms(t *scope) {
	for _, by := range []string{"HTTP/1", "HTTP/2"} {
		sizes := []int{1, 10, t.sized(100, 100), t.sized(300, 300), t.sized(1000, 1000)}
		if by == "HTTP/1" && !t.full {
			sizes = []int{1, max(10, t.sized(1000, 1000))}
		}
		slices.Sort(sizes)
		alone := map[string]load{}
		for _, n := range slices.Compact(sizes) {
			t.try(fmt.Sprintf("%d by %s", n, by), func(t *scope) { manyRealms(t, n, by, alone) })
		}
	}
}

// load is what a process bears.
type load struct {
	resident   float64 // MB
	core       float64 // percent of one
	delays     []float64
	nats, asks float64 // a second
	server     float64 // resident memory of the nats-server, MB
}

func manyRealms(t *scope, n int, by string, alone map[string]load) {
	port := natstest.FreePort(t)
	server := natstest.StartProcess(t, fmt.Sprintf("http: \"127.0.0.1:%d\"", port))
	nc := natstest.Connect(t, server.URL)
	f := newFarm(t, n, by == "HTTP/2")
	args := []string{"run", "--config", f.config(n), "--nats-url", server.URL}
	address := fmt.Sprintf("127.0.0.1:%d", natstest.FreePort(t))
	if t.profiles != "" {
		args = append(args, "--http", address, "--pprof")
	}
	p := t.start(nil, t.program, args...)
	f.allWait(1)
	first := time.Since(p.began)
	f.allWait(n)
	whole := time.Since(p.began)
	of := fmt.Sprintf("%d realms, %s", n, by)
	if n == 1 {
		of = "1 realm, " + by
	}
	t.report(compared("realms", of, "exec to the first poll", "s", []float64{first.Seconds()}, "", nil, nil),
		compared("realms", of, "exec to the last first poll", "s", []float64{whole.Seconds()}, "", nil, nil))

	var busy atomic.Bool
	stop := f.emit(&busy)
	defer stop()
	for _, name := range []string{"idle", "busy"} {
		busy.Store(name == "busy")
		l := f.bears(p, nc, port)
		one := func(what, unit string, x float64, g *goal) {
			t.report(compared("realms", of+", "+name, what, unit, []float64{x}, "", nil, g))
		}
		var mostMemory, mostCore, mostEach *goal
		if name == "idle" && n == 1000 {
			mostMemory, mostCore, mostEach = atMost(100), atMost(5), atMost(40)
		}
		one("resident memory", "MB", l.resident, mostMemory)
		if before, is := alone[name]; is && n > 1 {
			one("a realm more", "KiB", (l.resident-before.resident)*1e6/1024/float64(n-1), mostEach)
		}
		one("of a core", "%", l.core, mostCore)
		one("requests at NATS", "1/s", l.nats, nil)
		one("requests at Zulip", "1/s", l.asks, nil)
		one("nats-server, resident memory", "MB", l.server, nil)
		if n == 1 {
			alone[name] = l
		}
		idle := alone["idle"]
		var mostDelay *goal
		if name == "busy" && n == 300 {
			mostDelay = atMost(2)
		}
		for _, q := range []float64{50, 99} {
			delay := []float64{percentile(l.delays, q)}
			what := fmt.Sprintf("to a subscriber, p%v", q)
			if n == 1 || idle.delays == nil {
				one(what, "ms", delay[0], nil)
				continue
			}
			t.report(compared("realms", of+", "+name, what, "ms", delay, "one realm", []float64{percentile(idle.delays, q)},
				mostDelay))
		}
		if t.profiles != "" {
			p.profile(address, filepath.Join(t.profiles, fmt.Sprintf("%d-http%s-%s", n, by[5:], name)))
		}
	}
}

// bears measures what a process bears for 40 s.
func (f *farm) bears(p *process, nc *nats.Conn, port int) load {
	t := f.t
	used, began, asked := p.used(), time.Now(), f.requests.Load()
	messages, _ := serverSays(t, port)
	l := load{delays: f.delays(nc, t.sized(40, 300))}
	took := time.Since(began).Seconds()
	l.resident, l.core = p.resident(), (p.used()-used).Seconds()/took*100
	l.asks = float64(f.requests.Load()-asked) / took
	l.nats, l.server = serverSays(t, port)
	l.nats = (l.nats - messages) / took
	return l
}

// emit lets an event happen each second in every organization but the first, spread over
// the second, while busy is set, until stop is called.
func (f *farm) emit(busy *atomic.Bool) (stop func()) {
	ended := make(chan struct{})
	var emitting sync.WaitGroup
	for i, o := range f.all[1:] {
		emitting.Go(func() {
			event := emitted(500, int64(i))
			select {
			case <-ended:
				return
			case <-time.After(time.Duration(i) * time.Second / time.Duration(len(f.all))):
			}
			whileBusy(time.Second, ended, busy, func() { o.EmitRaw(event) })
		})
	}
	return func() { close(ended); emitting.Wait() }
}

// delays lets n events happen in the first organization, one each second, and says how
// long each takes to a subscriber.
func (f *farm) delays(nc *nats.Conn, n int) (delays []float64) {
	t := f.t
	hand := make(chan time.Time, 1)
	sub, err := nc.Subscribe("zulip.r0.message", func(*nats.Msg) { hand <- time.Now() })
	t.must(err)
	defer sub.Unsubscribe()
	t.must(nc.Flush())
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for i := range n {
		<-tick.C
		f.allWait(1)
		began := time.Now()
		f.all[0].EmitRaw(emitted(500, int64(i)))
		select {
		case at := <-hand:
			delays = append(delays, milliseconds(at.Sub(began)))
		case <-t.Context().Done():
			t.Fatal("interrupted")
		case <-time.After(patience):
			t.Fatal("no message on zulip.r0.message")
		}
	}
	return delays
}

// serverSays is how many messages a server has had from its clients, and its resident
// memory in MB.
func serverSays(t *scope, port int) (messages, memory float64) {
	r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/varz", port))
	t.must(err)
	defer r.Body.Close()
	var v struct {
		InMsgs float64 `json:"in_msgs"`
		Mem    float64 `json:"mem"`
	}
	t.must(json.NewDecoder(r.Body).Decode(&v))
	return v.InMsgs, v.Mem / 1e6
}

// resident is the resident memory now, in MB.
func (p *process) resident() float64 { return p.memory("VmRSS:") }

// used is how long processors have worked for a process so far.
func (p *process) used() time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	p.t.must(err)
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err := strconv.ParseInt(fields[11], 10, 64) // utime and stime, the 14th and 15th (proc(5))
	p.t.must(err)
	system, err := strconv.ParseInt(fields[12], 10, 64)
	p.t.must(err)
	return time.Duration(user+system) * (time.Second / 100) // of USER_HZ, which is 100 everywhere
}

// profile writes profiles of a process to files whose names begin with path.
func (p *process) profile(address, path string) {
	for name, ask := range map[string]string{"heap": "heap?gc=1", "memory.txt": "heap?debug=1", "goroutines": "goroutine",
		"cpu": "profile?seconds=10"} {
		r, err := http.Get("http://" + address + "/debug/pprof/" + ask)
		p.t.must(err)
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		p.t.must(err)
		p.t.must(os.WriteFile(path+"-"+name, body, 0o644))
	}
}
