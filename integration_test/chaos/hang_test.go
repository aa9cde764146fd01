package chaos_test

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

var hangs = flag.Int("hangs", 3, "how often TestHangs lets NATS hang for seven seconds, in all scenarios together")

// hangFor is longer than a lease of default length.
const hangFor = 7 * time.Second

// TestHangs lets NATS hang for longer than a lease lasts, at moments that chance picks,
// while events come, Zulip drops queues, the options change and programs are stopped in
// the middle of it. In one kind of hang the server does what it was asked for and does
// not say so, in the other it stands still with the requests in its socket and carries
// them out when it wakes up. No queue may be given up for it that Zulip did not drop.
func TestHangs(t *testing.T) {
	t.Parallel()
	seed := harness.Seed(t)
	var mu sync.Mutex
	var rows []string
	began := time.Now()
	t.Run("on", func(t *testing.T) {
		for i, kind := range []struct {
			name     string
			programs int
			args     []string
		}{{"one program", 1, []string{"--no-lease"}}, {"one with a lease", 1, nil}, {"two with a lease", 2, nil}} {
			t.Run(kind.name, func(t *testing.T) {
				t.Parallel()
				h := newHanging(t, fmt.Sprintf("h%d", i+1), kind.programs, kind.args,
					rand.New(rand.NewPCG(seed, uint64(i))))
				for range max(1, (*hangs+i)/3) {
					if !h.hang() {
						break
					}
				}
				row := kind.name + h.end()
				mu.Lock()
				defer mu.Unlock()
				rows = append(rows, row)
			})
		}
	})
	slices.Sort(rows)
	var table bytes.Buffer
	tw := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "scenario\theld\tstopped\tTERM in a hang\tdropped by Zulip\toptions changed\tgaps\tleft "+
		"over\tevents\tlost\tuntold\ttwice\tout of order\tacked early")
	for _, row := range rows {
		fmt.Fprintln(tw, row)
	}
	tw.Flush()
	t.Logf("seed %d, %v\n%s", seed, time.Since(began).Round(time.Second), &table)
}

// hanging is one organization, a nats-server that hangs now and then, and the programs
// between them.
type hanging struct {
	*world
	server *natstest.Process
	proxy  *natstest.Proxy
	rng    *rand.Rand
	args   []string
	slim   bool // an option of the queue that changes
	slots  []*slot
	stop   func()

	held, stopped, terms, changed int
	ended                         []interval // from when all was well to when a program that was told to end in a hang had ended
}

func newHanging(t testing.TB, realm string, programs int, args []string, rng *rand.Rand) *hanging {
	n := natstest.StartProcess(t, "")
	proxy := natstest.NewProxy(t, n.URL)
	w := newWorld(t, realm, proxy.URL, n.URL, func(z *zulipsim.Server) {
		// What was asked before a hang may arrive after it, when another program has gone
		// on.
		z.Tolerate = []zulipsim.Complaint{zulipsim.AckPruned}
		z.Seed = rng.Uint64()
		z.RoundTrip = 10 * time.Millisecond // so that a hang can begin between two requests
	})
	h := &hanging{world: w, server: n, proxy: proxy, rng: rng, args: args}
	for i := range programs {
		h.slots = append(h.slots, &slot{Journal: harness.NewJournal(t, fmt.Sprintf("%s-%d", realm, i+1))})
		h.start(h.slots[i])
	}
	t.Cleanup(func() {
		for _, s := range h.slots {
			s.p.Kill()
		}
	})
	w.polled() // from here on there is a queue
	h.stop = w.chat(rng.Uint64(), 0)
	return h
}

func (h *hanging) start(s *slot) {
	h.t.Helper()
	args := append([]string{"--publish-path", []string{"auto", "auto", "atomic", "sync"}[h.rng.IntN(4)]}, h.args...)
	if h.slim {
		args = append(args, "--slim-presence")
	}
	var err error
	s.p, err = h.run(s.Journal, args...)
	harness.Must(h.t, err)
}

// hang is one hang, and what goes with it; it returns when all is well again, and false
// if it does not get well.
func (h *hanging) hang() bool {
	pause := func(most int) { time.Sleep(time.Duration(h.rng.IntN(most)) * time.Millisecond) }
	well := time.Now()
	pause(1000)
	begun, held := make(chan struct{}), h.rng.IntN(2) == 0
	begin := sync.OnceFunc(func() {
		defer close(begun)
		if held {
			h.held++
			h.proxy.Hold(hangFor)
		} else {
			h.stopped++
			h.server.Pause()
		}
	})
	defer h.server.Resume()
	// Most begin when one of the records that come next has left, since the promise hangs
	// on these.
	atRecord, seen := int64(h.rng.IntN(5)), atomic.Int64{}
	h.proxy.OnPublish(func(p natstest.Publish) natstest.Fate {
		if atRecord > 0 && strings.Contains(p.Subject, ".bridge.") && seen.Add(1) == atRecord {
			begin()
		}
		return natstest.Pass
	})
	switch h.rng.IntN(5) {
	case 0, 1:
		h.zulip.ExpireAll()
	case 2, 3:
		h.changed++
		h.slim = !h.slim
		for _, s := range h.slots {
			if _, err := s.p.Stop(); err != nil {
				h.t.Error(err)
			}
		}
		for _, s := range h.slots {
			h.start(s)
		}
	}
	if atRecord == 0 {
		pause(200)
	} else {
		select {
		case <-begun:
		case <-time.After(2 * time.Second):
		}
	}
	h.proxy.OnPublish(nil)
	begin()
	over := time.Now().Add(hangFor)
	if h.rng.IntN(2) == 0 {
		h.talk(h.rng, 100)
	}
	if h.rng.IntN(4) == 0 { // what is in hand is lost at Zulip, and nobody can say so
		pause(3000)
		h.zulip.ExpireAll()
	}
	if h.rng.IntN(3) == 0 {
		pause(3000)
		s := h.slots[h.rng.IntN(len(h.slots))]
		h.terms++
		if _, err := s.p.Stop(); err != nil {
			h.t.Error(err)
		}
		h.ended = append(h.ended, interval{well, time.Now()})
		h.start(s)
	}
	time.Sleep(time.Until(over))
	h.server.Resume()
	woke := time.Now()
	if !harness.Within(harness.Patience, func() bool {
		m, err := harness.LastOf(h.js, h.stream, h.realm)
		return err == nil && m != nil && m.Time.After(woke) && m.Header.Get(events.HeaderRecord) == "" && h.stray() == ""
	}) {
		h.t.Errorf("%s: %v after a hang: %s", h.realm, harness.Patience, cmp.Or(h.stray(), "no event is stored"))
		return false
	}
	return true
}

// stray is what is wrong with the queues that live. A program that is told to end while
// NATS hangs cannot always know whether the record of a queue stands: it may leave a
// queue that it has just made.
func (h *hanging) stray() string {
	queues := slices.DeleteFunc(h.queues(), func(q zulipsim.QueueInfo) bool { return !q.Waiting && h.leftOver(q) })
	for i := range queues {
		queues[i].Pending, queues[i].Waiting = 0, queues[i].Dead == "" // events come all the time: that they are stored shows that it is polled
	}
	return harness.Stray(h.js, h.stream, h.realm, queues)
}

// leftOver says whether a living queue was made in a hang in which a program ended, before
// it did.
func (h *hanging) leftOver(q zulipsim.QueueInfo) bool {
	return q.Dead == "" && slices.ContainsFunc(h.ended, func(i interval) bool {
		return q.Created.After(i.from) && q.Created.Before(i.to)
	})
}

// end lets all come to rest, compares, and returns the row of the table.
func (h *hanging) end() string {
	h.stop()
	h.settle()
	v := h.check(time.Time{}).clean(h.t).everyMessage(h.world)
	untold := harness.Untold(h.queues(), v.all)
	for i, missing := range untold {
		if i < 5 {
			h.t.Errorf("not stored, and no gap tells of it: %s", missing)
		}
	}
	queues := map[string]zulipsim.QueueInfo{}
	dropped, left := 0, 0
	for _, q := range h.queues() {
		queues[q.ID] = q
		if q.Dead == "expired" {
			dropped++
		}
		if q.Dead == "" && !q.Waiting {
			left++
		}
	}
	told := map[string]bool{}
	for i := range v.all {
		m := &v.all[i]
		if m.Record() != "gap-opened" {
			continue
		}
		q := queues[m.Get(events.HeaderQueueID)]
		if q.Dead != "expired" {
			h.t.Errorf("a gap is told of queue %s, which Zulip did not drop (it is %q): %v", q.ID, q.Dead, m)
		}
		if told[q.ID] {
			h.t.Errorf("a second gap is told of queue %s: %v", q.ID, m)
		}
		told[q.ID] = true
	}
	if v.records["gap-opened"] != v.records["gap-closed"] {
		h.t.Errorf("%d gaps were opened, and %d closed", v.records["gap-opened"], v.records["gap-closed"])
	}
	if left > h.terms {
		h.t.Errorf("%d queues are left over that nobody polls", left)
	}
	return fmt.Sprintf("\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d", h.held, h.stopped, h.terms,
		dropped, h.changed,
		v.records["gap-opened"], left, v.events, v.lost, len(untold), v.twice, v.disorder, v.early)
}
