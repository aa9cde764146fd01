package fleet_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/fleet"
	"zulip-nats/fleet/model"
)

var (
	seeds    = flag.Int("seeds", 60, "how many courses the simulation runs")
	fromSeed = flag.Uint64("from-seed", 1, "the first of them")
	tries    = flag.Int("tries", 50, "how often -seed is run until it fails: what happens in one instant may happen in any order")
	oneSeed  = flag.Uint64("seed", 0, "run this one only")
)

const (
	simTTL    = 4 * time.Second
	simRealms = 5
)

// world is one course of events: some processes and one bucket, in virtual time.
type world struct {
	t      *testing.T
	rng    *rand.Rand // what happens
	luck   *rand.Rand // what goes wrong with a request; guarded by the lock
	bucket *model.Bucket
	strict bool // nobody's hand is on the bucket: never do two hold a realm

	mu     sync.Mutex
	procs  []*proc
	drawn  map[string]int
	asked  int
	faulty float64 // how likely it is that something is wrong with a request
	lag    time.Duration
}

// proc is one process.
type proc struct {
	*fleet.Instance
	w      *world
	name   string
	client *model.Client
	life   context.Context
	kill   context.CancelFunc
	stop   context.CancelFunc
	gate   gate
	work   sync.WaitGroup
	leases map[string]*fleet.Lease // guarded by the world's lock
}

// gate keeps a paused process waiting.
type gate struct {
	mu   sync.Mutex
	shut chan struct{} // nil: open
}

func (g *gate) pass() {
	for {
		g.mu.Lock()
		shut := g.shut
		g.mu.Unlock()
		if shut == nil {
			return
		}
		<-shut
	}
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if shut && g.shut == nil {
		g.shut = make(chan struct{})
	} else if !shut && g.shut != nil {
		close(g.shut)
		g.shut = nil
	}
}

func (w *world) start(name string) *proc {
	p := &proc{w: w, name: name, leases: map[string]*fleet.Lease{}}
	p.life, p.kill = context.WithCancel(context.Background())
	p.client = w.bucket.Client(p.life, name, p.gate.pass)
	i, err := fleet.NewInstance(fleet.Config{Writer: name, TTL: simTTL, Store: p.client, Log: zerolog.Nop()})
	if err != nil {
		w.t.Fatal(err)
	}
	p.Instance = i
	ctx, stop := context.WithCancel(p.life)
	p.stop = stop
	w.mu.Lock()
	w.procs = append(w.procs, p)
	w.mu.Unlock()
	for _, realm := range realms(simRealms) {
		p.work.Go(func() { p.serve(ctx, realm) })
	}
	return p
}

// serve is a bridge: it works until it is asked to hand over, or the lease is lost.
func (p *proc) serve(ctx context.Context, realm string) {
	for {
		l, err := p.Acquire(ctx, realm, 1, nil)
		p.gate.pass()
		if err != nil {
			return
		}
		p.w.mu.Lock()
		p.leases[realm] = l
		p.w.mu.Unlock()
		p.w.alone(realm)
		select {
		case <-ctx.Done():
		case <-l.Context().Done():
		case <-l.Asked().Done():
			p.w.mu.Lock()
			d := time.Duration(p.w.luck.IntN(3000)) * time.Millisecond // what is in hand
			p.w.asked++
			p.w.mu.Unlock()
			select {
			case <-time.After(d):
			case <-ctx.Done():
			case <-l.Context().Done():
			}
		}
		p.gate.pass()
		p.w.mu.Lock()
		delete(p.leases, realm)
		p.w.mu.Unlock()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		_ = l.Release(last)
		cancel()
		if ctx.Err() != nil {
			return
		}
	}
}

// holders are those who live and hold the realm by what they say themselves.
func (w *world) holders(realm string) (names []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.procs {
		if l := p.leases[realm]; l != nil && p.life.Err() == nil && l.Held() {
			names = append(names, p.name)
		}
	}
	return names
}

func (w *world) alone(realm string) {
	if names := w.holders(realm); w.strict && len(names) > 1 {
		w.t.Errorf("%v: %s is held by %s", time.Now().UTC().Format("05.000"), realm, strings.Join(names, " and "))
	}
}

// draw counts what was drawn, for the test's log.
func (w *world) draw(what string) {
	w.drawn[what]++
	if *oneSeed != 0 {
		w.t.Logf("%v: %s", time.Now().UTC().Format("05.000"), what)
	}
}

// end takes a process away, and starts another one in its place.
func (w *world) end(n int, how string, number *int) {
	p := w.procs[n]
	p.gate.set(false)
	switch how {
	case "kill":
		p.kill()
	case "leave":
		p.Leave()
		p.stop()
		p.work.Wait()
		last, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = p.Close(last)
		cancel()
		p.kill()
	}
	p.gone()
	w.mu.Lock()
	w.procs = append(w.procs[:n], w.procs[n+1:]...)
	w.mu.Unlock()
	w.draw(how)
	if w.rng.IntN(3) > 0 {
		time.Sleep(time.Duration(w.rng.IntN(8000)) * time.Millisecond)
	}
	*number++
	w.start(fmt.Sprint("p", *number))
}

// gone waits for all that a killed process still has, none of which has an effect.
func (p *proc) gone() {
	p.kill()
	p.gate.set(false)
	_ = p.Close(p.life)
	p.work.Wait()
}

// course draws what happens.
func (w *world) course() {
	number := 0
	for range 3 {
		number++
		w.start(fmt.Sprint("p", number))
		time.Sleep(time.Duration(w.rng.IntN(3)) * time.Second)
	}
	rng := w.rng
	seconds := func(least, most int) time.Duration {
		return time.Duration(1000*least+rng.IntN(1000*(most-least))) * time.Millisecond
	}
	for end := time.Now().Add(seconds(40, 120)); time.Now().Before(end); {
		time.Sleep(time.Duration(rng.IntN(5000)) * time.Millisecond)
		n := rng.IntN(len(w.procs))
		p := w.procs[n]
		switch rng.IntN(12) {
		case 0:
			w.end(n, "kill", &number)
		case 1:
			w.end(n, "leave", &number)
		case 2:
			w.draw("pause")
			p.gate.set(true)
			time.AfterFunc(seconds(1, 12), func() { p.gate.set(false) })
		case 3:
			w.draw("cut")
			p.client.Cut(true)
			time.AfterFunc(seconds(1, 10), func() { p.client.Cut(false) })
		case 4:
			w.draw("stall")
			p.client.Stall(true)
			time.AfterFunc(seconds(1, 10), func() { p.client.Stall(false) })
		case 5:
			w.draw("lose")
			p.client.Lose()
		case 6:
			w.draw("faults")
			w.mu.Lock()
			w.faulty = rng.Float64() * 0.7
			w.mu.Unlock()
			time.AfterFunc(seconds(1, 8), func() {
				w.mu.Lock()
				w.faulty = 0
				w.mu.Unlock()
			})
		case 7:
			w.draw("lag")
			w.mu.Lock()
			w.lag = seconds(0, 3)
			w.mu.Unlock()
		case 8:
			if len(w.procs) < 5 {
				w.draw("join")
				number++
				w.start(fmt.Sprint("p", number))
			}
		case 9:
			if !w.strict {
				w.harm()
			}
		case 10:
			w.draw("marks go")
			w.bucket.Forget()
		}
	}
	for _, p := range w.procs {
		p.gate.set(false)
		p.client.Stall(false)
		p.client.Cut(false)
	}
	w.mu.Lock()
	w.faulty, w.lag = 0, 0
	w.mu.Unlock()
}

// harm is what somebody else's hand does to the bucket.
func (w *world) harm() {
	rng := w.rng
	realm := fmt.Sprintf("realm.realm-%d.claim", rng.IntN(simRealms))
	switch rng.IntN(6) {
	case 0:
		w.draw("purge")
		w.bucket.Purge()
	case 1:
		w.draw("remove")
		w.bucket.Remove()
	case 2:
		w.draw("garbage in a claim")
		w.bucket.Put(realm, []byte("garbage"))
	case 3:
		w.draw("claim of nobody")
		w.bucket.Put(realm, []byte(`{"instance":"nobody","writer":"nobody","host":"nowhere"}`))
	case 4:
		w.draw("claim deleted")
		w.bucket.Put(realm, nil)
	case 5:
		for key := range w.bucket.Keys("instance.") {
			w.draw("instance overwritten")
			w.bucket.Put(key, [][]byte{nil, []byte("garbage"), []byte("{}")}[rng.IntN(3)])
			break
		}
	}
}

// fault is what goes wrong with one request, with the bucket's lock held.
func (w *world) fault(_, op, _ string) (f model.Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.faulty == 0 || w.luck.Float64() > w.faulty {
		return f
	}
	return model.Draw(w.luck, op)
}

func simulate(t *testing.T, seed uint64, drawn map[string]int) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 7)), luck: rand.New(rand.NewPCG(seed, 8)), bucket: &model.Bucket{}, strict: seed%2 == 0, drawn: drawn}
		w.bucket.Faults = w.fault
		if *oneSeed != 0 {
			w.bucket.Changed = func(key string, e fleet.Entry) {
				w.t.Logf("%v: %d %s = %s", time.Now().UTC().Format("05.000"), e.Revision, key, e.Value)
			}
		}
		w.bucket.Delay = func(string) time.Duration {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.lag == 0 {
				return 0
			}
			return time.Duration(w.luck.Int64N(int64(w.lag)))
		}
		watching, unwatch := context.WithCancel(context.Background())
		go func() {
			for watching.Err() == nil {
				for _, realm := range realms(simRealms) {
					w.alone(realm)
				}
				time.Sleep(200 * time.Millisecond)
			}
		}()
		w.course()
		time.Sleep(40 * time.Second)
		before := fmt.Sprint(w.bucket.Keys("realm."))
		time.Sleep(15 * time.Second)
		unwatch()
		if after := fmt.Sprint(w.bucket.Keys("realm.")); after != before {
			t.Error("forty seconds after the last fault realms change hands still")
		}
		shares := map[string]int{}
		for _, p := range w.procs {
			shares[p.name] = 0
		}
		for _, realm := range realms(simRealms) {
			names := w.holders(realm)
			if len(names) != 1 {
				t.Errorf("%s is held by %d in the end: %v", realm, len(names), names)
				continue
			}
			shares[names[0]]++
		}
		least, most := simRealms, 0
		for _, n := range shares {
			least, most = min(least, n), max(most, n)
		}
		if most-least > 1 {
			t.Errorf("the shares in the end: %v", shares)
		}
		drawn["hand-over"] += w.asked
		for _, p := range w.procs {
			p.gone()
		}
		time.Sleep(time.Minute)
	})
}

// TestSimulation draws courses of events, in virtual time. In the end each realm is held by
// one, and the shares are even; and unless somebody's hand was on the bucket, at no moment
// did two hold one.
func TestSimulation(t *testing.T) {
	drawn := map[string]int{}
	first, n := *fromSeed, *seeds
	if *oneSeed != 0 {
		first, n = *oneSeed, 1
	}
	for seed := first; seed < first+uint64(n); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			for try := 0; try < 1 || *oneSeed != 0 && try < *tries && !t.Failed(); try++ {
				simulate(t, seed, drawn)
			}
		})
		if t.Failed() {
			t.Fatalf("the same again: go test ./fleet -run TestSimulation -seed %d -v", seed)
		}
	}
	t.Logf("drawn: %v", drawn)
}
