package chaos_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// TestChaos kills, stops and pauses programs and nats-servers at random while events
// come, one by one and in bursts. Three organizations live on a single nats-server and
// three on a cluster: one with one program, one with two that share a lease, one with two
// that know nothing of each other. In the end everything heals, and each stream is
// compared with what Zulip had put in the queue.
//
// Of the cluster's servers one at a time is killed, as in a world in which what was
// acknowledged survives; two at a time are paused, which is what no quorum is. No store
// is ever deleted.
func TestChaos(t *testing.T) {
	t.Parallel()
	seed := harness.Seed(t)
	var mu sync.Mutex
	var rows []string
	began := time.Now()
	t.Run("on", func(t *testing.T) {
		for i, servers := range []int{1, 3} {
			t.Run(fmt.Sprintf("R%d", servers), func(t *testing.T) {
				t.Parallel()
				more := chaos(t, servers, rand.New(rand.NewPCG(seed, uint64(i))))
				mu.Lock()
				defer mu.Unlock()
				rows = append(rows, more...)
			})
		}
	})
	slices.Sort(rows)
	var table bytes.Buffer
	tw := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "scenario\tkill -9\tTERM\tSTOP\telections\tevents\tlost\ttwice\tout of order\tacked early\tback "+
		"after kill -9, p50/max\tafter TERM")
	for _, row := range rows {
		fmt.Fprintln(tw, row)
	}
	tw.Flush()
	t.Logf("seed %d, %v\n%s", seed, time.Since(began).Round(time.Second), &table)
}

// servers are the nats-servers of one half of the test, and what was done to them.
type servers struct {
	t        testing.TB
	all      []*natstest.Process
	worlds   []*world
	rng      *rand.Rand
	leaders  map[string]string // by stream, as last seen
	troubled []interval

	killed, stopped, paused, elections int
}

type interval struct{ from, to time.Time }

// scenario is one organization and the programs that work for it.
type scenario struct {
	*world
	name   string
	lease  bool
	rng    *rand.Rand
	slots  []*slot
	hits   []hit
	starts int

	killed, stopped, paused int
}

// slot is where a program runs, one after the other.
type slot struct {
	*harness.Journal
	p *harness.Process
}

// hit is something that was done to a program.
type hit struct {
	at   time.Time
	p    *harness.Process
	what string
}

// chaos is one half of the test. It returns the rows of the table.
func chaos(t *testing.T, replicas int, rng *rand.Rand) (rows []string) {
	s := &servers{t: t, rng: rng, leaders: map[string]string{}}
	if replicas == 1 {
		s.all = []*natstest.Process{natstest.StartProcess(t, "")}
	} else {
		s.all = natstest.StartProcesses(t, replicas, "")
	}
	t.Cleanup(s.keepLogs)
	var urls []string
	for _, p := range s.all {
		urls = append(urls, p.URL)
	}
	url := strings.Join(urls, ",")

	var all []*scenario
	var stops []func()
	for i, kind := range []struct {
		name     string
		programs int
		lease    bool
	}{{"one program", 1, false}, {"two with a lease", 2, true}, {"two without", 2, false}} {
		w := newWorld(t, fmt.Sprintf("r%d-%d", replicas, i+1), url, url, func(z *zulipsim.Server) {
			// The last request of a program that was killed or paused may be late, and
			// two without a lease do it by turns.
			z.Tolerate = []zulipsim.Complaint{zulipsim.AckPruned}
			z.Seed = rng.Uint64()
		})
		s.worlds = append(s.worlds, w)
		w.makeStream(replicas)
		c := &scenario{world: w, name: fmt.Sprintf("R%d, %s", replicas, kind.name), lease: kind.lease,
			rng: rand.New(rand.NewPCG(rng.Uint64(), 0))}
		all = append(all, c)
		for n := range kind.programs {
			c.slots = append(c.slots, &slot{Journal: harness.NewJournal(t, fmt.Sprintf("%s-%d", w.realm, n+1))})
			harness.Must(t, c.start(c.slots[n]))
		}
		t.Cleanup(func() {
			for _, slot := range c.slots {
				slot.p.Kill()
			}
		})
	}
	for _, c := range all {
		c.agreed() // from here on there is a queue that must not get lost
		stops = append(stops, c.chat(rng.Uint64(), 700))
	}
	s.healthy()

	share := *kills / 8
	serverShare := *kills / 8
	if replicas > 1 {
		serverShare = *kills / 16 // each takes an election, and that some seconds
	}
	var bridges sync.WaitGroup
	over, end := context.WithCancel(t.Context())
	defer bridges.Wait() // where the test ends early, nothing may be started any more
	defer end()
	for _, c := range all {
		bridges.Go(func() {
			for range max(1, share) {
				if over.Err() != nil {
					return
				}
				if err := c.act(); err != nil {
					t.Errorf("%s: %v", c.name, err)
					return
				}
			}
		})
	}
	for range max(1, serverShare) {
		s.act()
	}
	bridges.Wait()

	for _, stop := range stops {
		stop()
	}
	s.healthy()
	for _, c := range all {
		c.settle()
	}
	for _, c := range all {
		for _, slot := range c.slots {
			if _, err := slot.p.Stop(); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		v := c.check(time.Time{}).clean(t).oneQueue(c.world, c.killed)
		took := takeovers(v.all, c.hits, s.troubled)
		rows = append(rows, fmt.Sprintf("%s\t%d\t%d\t%d\t\t%d\t%d\t%d\t%d\t%d\t%s\t%s", c.name, c.killed, c.stopped,
			c.paused, v.events,
			v.lost, v.twice, v.disorder, v.early, quantiles(took["kill -9"]), quantiles(took["TERM"])))
	}
	return append(rows, fmt.Sprintf("R%d: its nats-servers\t%d\t%d\t%d\t%d\t\t\t\t\t\t\t", replicas, s.killed,
		s.stopped, s.paused, s.elections))
}

// agreed waits until all programs are in their places and one queue is left. Of two that
// start at the same time without a lease, each makes a queue: who is killed before it has
// deleted the one that lost leaves it behind.
func (c *scenario) agreed() {
	c.t.Helper()
	for _, slot := range c.slots {
		harness.Eventually(c.t, "a program that follows the queue or stands by", func() bool {
			return slot.Says("events go to this stream") || slot.Says("standing by")
		})
	}
	harness.Eventually(c.t, "one queue", func() bool {
		n := 0
		for _, q := range c.queues() {
			if q.Dead == "" {
				n++
			}
		}
		return n == 1
	})
	c.polled()
}

// start starts a program in a slot.
func (c *scenario) start(s *slot) (err error) {
	path := []string{"auto", "auto", "auto", "fast", "atomic", "sync"}[c.rng.IntN(6)]
	args := []string{"--publish-path", path}
	if !c.lease {
		args = append(args, "--no-lease")
	}
	c.starts++
	s.p, err = c.run(s.Journal, args...)
	return err
}

// act does one thing to a program.
func (c *scenario) act() error {
	time.Sleep(time.Duration(c.rng.IntN(1200)) * time.Millisecond)
	if c.rng.IntN(3) == 0 { // much at once, so that it is hit in the middle of a chunk
		c.talk(c.rng, 50+c.rng.IntN(400))
		time.Sleep(time.Duration(c.rng.IntN(20)) * time.Millisecond)
	}
	s := c.slots[c.rng.IntN(len(c.slots))]
	writer := ""
	if c.lease {
		writer = c.writer()
		for _, other := range c.slots {
			if other.p.Wrote(writer) && c.rng.IntN(3) > 0 {
				s = other // who works is worth more hits
			}
		}
	}
	if !s.p.Alive() {
		return fmt.Errorf("a program ended by itself, with exit code %d", s.p.ExitCode())
	}
	h := hit{at: time.Now(), p: s.p}
	dice := c.rng.IntN(10)
	switch {
	case dice < 6:
		h.what = "kill -9"
		c.hits = append(c.hits, h)
		c.killed++
		s.p.Kill()
	case dice < 8:
		h.what = "TERM"
		c.hits = append(c.hits, h)
		c.stopped++
		if _, err := s.p.Stop(); err != nil {
			return err
		}
	default:
		h.what = "STOP"
		c.hits = append(c.hits, h)
		c.paused++
		s.p.Pause()
		pause := 20 + c.rng.IntN(1500)
		if c.rng.IntN(3) == 0 {
			pause = 4200 + c.rng.IntN(2000) // past the lease
		}
		time.Sleep(time.Duration(pause) * time.Millisecond)
		s.p.Resume()
		return nil
	}
	if c.lease && s.p.Wrote(writer) && c.rng.IntN(4) > 0 {
		harness.Within(10*time.Second, func() bool { // else it is hit in the takeover
			now := c.writer()
			return now != "" && now != writer
		})
	}
	time.Sleep(time.Duration(c.rng.IntN(300)) * time.Millisecond)
	return c.start(s)
}

// takeovers says, for each way to end a program, how long it took until another one
// stored something, where it was the one that worked. Those in which something else
// happened meanwhile are left out.
func takeovers(all []harness.Stored, hits []hit, troubled []interval) map[string][]time.Duration {
	took := map[string][]time.Duration{}
	for i, h := range hits {
		next, _ := slices.BinarySearchFunc(all, h.at,
			func(m harness.Stored, at time.Time) int { return m.Time.Compare(at) })
		if next == 0 || !h.p.Wrote(all[next-1].Get(events.HeaderWriter)) {
			continue // it was not the one that worked
		}
		for next < len(all) && h.p.Wrote(all[next].Get(events.HeaderWriter)) {
			next++ // written before the signal came
		}
		if next == len(all) {
			continue
		}
		back := all[next].Time
		if i+1 < len(hits) && hits[i+1].at.Before(back) {
			continue
		}
		if slices.ContainsFunc(troubled, func(o interval) bool { return o.from.Before(back) && o.to.After(h.at) }) {
			continue
		}
		took[h.what] = append(took[h.what], back.Sub(h.at))
	}
	return took
}

// quantiles are the median, the greatest, and of how many.
func quantiles(d []time.Duration) string {
	if len(d) == 0 {
		return "-"
	}
	slices.Sort(d)
	return fmt.Sprintf("%v/%v (%d)", d[len(d)/2].Round(10*time.Millisecond),
		d[len(d)-1].Round(10*time.Millisecond), len(d))
}

// act does one thing to the nats-servers, and waits until they are well again.
func (s *servers) act() {
	time.Sleep(time.Duration(s.rng.IntN(1500)) * time.Millisecond)
	began := time.Now()
	p := s.all[s.rng.IntN(len(s.all))]
	if len(s.all) > 1 {
		for range 1 + s.rng.IntN(2) {
			s.stepDown(s.worlds[s.rng.IntN(len(s.worlds))])
			time.Sleep(time.Duration(s.rng.IntN(500)) * time.Millisecond)
		}
		if leader := s.leads(s.worlds[s.rng.IntN(len(s.worlds))].stream); leader != nil && s.rng.IntN(4) > 0 {
			p = leader
		}
	}
	pause := func(most int) { time.Sleep(time.Duration(s.rng.IntN(most)) * time.Millisecond) }
	switch dice := s.rng.IntN(10); {
	case dice < 5:
		s.killed++
		p.Kill()
		pause(1500)
		p.Start()
	case dice < 7:
		s.stopped++
		p.Stop()
		pause(1500)
		p.Start()
	case dice < 8 || len(s.all) == 1:
		s.paused++
		p.Pause()
		pause(5000)
		p.Resume()
	default: // no quorum
		s.paused += 2
		for _, other := range s.all {
			if other != p {
				other.Pause()
			}
		}
		pause(6000)
		for _, other := range s.all {
			if other != p {
				other.Resume()
			}
		}
	}
	s.healthy()
	s.troubled = append(s.troubled, interval{began, time.Now()})
}

// stepDown makes the leader of an organization's stream give way, as an operator or a
// rolling upgrade does.
func (s *servers) stepDown(w *world) {
	_, _ = w.nc.Request("$JS.API.STREAM.LEADER.STEPDOWN."+w.stream, nil, 2*time.Second) // whether there was a change shows by itself
	s.observe()
}

// info is what a stream says of its servers.
func (w *world) info() (leader string, current int, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	answer, err := w.nc.RequestWithContext(ctx, "$JS.API.STREAM.INFO."+w.stream, nil)
	if err != nil {
		return "", 0, false
	}
	var said struct {
		Error   json.RawMessage `json:"error"`
		Cluster *struct {
			Leader   string `json:"leader"`
			Replicas []struct {
				Current bool   `json:"current"`
				Offline bool   `json:"offline"`
				Lag     uint64 `json:"lag"`
			} `json:"replicas"`
		} `json:"cluster"`
	}
	if json.Unmarshal(answer.Data, &said) != nil || said.Error != nil {
		return "", 0, false
	}
	if said.Cluster == nil {
		return "", 1, true // a server that is alone
	}
	current = 1
	for _, r := range said.Cluster.Replicas {
		if r.Current && !r.Offline {
			current++
		}
	}
	return said.Cluster.Leader, current, said.Cluster.Leader != ""
}

// leads is the server that leads a stream, nil if nobody says so.
func (s *servers) leads(stream string) *natstest.Process {
	s.observe()
	for _, p := range s.all {
		if p.Name == s.leaders[stream] {
			return p
		}
	}
	return nil
}

// leader is leads for who needs one: it is waited for.
func (s *servers) leader(stream string) (p *natstest.Process) {
	s.t.Helper()
	harness.Eventually(s.t, "a leader of "+stream, func() bool {
		p = s.leads(stream)
		return p != nil
	})
	return p
}

// observe counts the elections that there were since it looked last.
func (s *servers) observe() {
	for _, w := range s.worlds {
		leader, _, ok := w.info()
		if !ok || leader == "" {
			continue
		}
		if before := s.leaders[w.stream]; before != "" && before != leader {
			s.elections++
		}
		s.leaders[w.stream] = leader
	}
}

// healthy waits until each stream has a leader and all its servers are up to date.
func (s *servers) healthy() {
	for _, w := range s.worlds {
		harness.Eventually(s.t, w.stream+" on all its servers", func() bool {
			_, current, ok := w.info()
			return ok && current == len(s.all)
		})
	}
	s.observe()
}

// keepLogs keeps the logs of the servers where logs are kept.
func (s *servers) keepLogs() {
	for _, p := range s.all {
		harness.Keep(s.t, fmt.Sprintf("%s-%s-nats-server.log", strings.ReplaceAll(s.t.Name(), "/", "_"), p.Name),
			p.LogFile())
	}
}
