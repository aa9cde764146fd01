package bridge_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"zulip-nats/bridge"
	"zulip-nats/fleet"
	bucket "zulip-nats/fleet/model"
)

var fleetSeeds = flag.Int("fleet-seeds", fleetSeedsByDefault, "how many seeds TestFleetSimulation runs")

const (
	fleetProcesses = 3
	fleetRealms    = 5
)

// TestFleetSimulation runs three processes that share five realms, each with the whole
// bridge: every realm has a Zulip, a model of its stream and draws of its own, as
// TestSimulation has one, and the processes share a model of the KV bucket. In the end the
// streams are compared with what each Zulip had put in its queues. In every other seed
// somebody's hand forges claims.
//
//	go test ./bridge -run TestFleetSimulation -fleet-seeds 1000
//	go test ./bridge -run TestFleetSimulation -seed 4711 -v
func TestFleetSimulation(t *testing.T) {
	first, n := *firstSeed, *fleetSeeds
	if *oneSeed != 0 {
		first, n = *oneSeed, 1
	}
	var mu sync.Mutex
	drawn := map[string]int{}
	t.Cleanup(func() { t.Logf("drawn: %v", drawn) })
	for seed := first; seed < first+uint64(n); seed++ {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			for try := 0; try == 0 || *oneSeed != 0 && try < *tries && !t.Failed(); try++ {
				synctest.Test(t, func(t *testing.T) {
					f := newFleet(t, seed)
					f.course()
					f.judge()
					mu.Lock()
					defer mu.Unlock()
					for what, n := range f.drawn {
						drawn[what] += n
					}
				})
			}
		})
	}
}

// fleetWorld is some realms and the processes that share them.
type fleetWorld struct {
	t         *testing.T
	rng       *rand.Rand // what happens
	realms    []*world
	bucket    *bucket.Bucket
	processes []*process
	forged    bool // claims are

	mu     sync.Mutex
	luck   *rand.Rand // of requests to the bucket
	faulty float64    // chance that one goes wrong
	lag    time.Duration
	drawn  map[string]int
}

// process is a process: a bridge for each realm, and what they acquire their leases by.
type process struct {
	f       *fleetWorld
	name    string
	runs    int
	bridges []*instance
	gate    gate

	shares *fleet.Instance // nil: it does not run
	client *bucket.Client
	dead   context.CancelFunc
}

func newFleet(t *testing.T, seed uint64) *fleetWorld {
	f := &fleetWorld{t: t, rng: rand.New(rand.NewPCG(seed, 2)), luck: rand.New(rand.NewPCG(seed, 3)),
		forged: seed%2 == 0, drawn: map[string]int{}}
	f.bucket = &bucket.Bucket{Faults: f.fault, Delay: f.late}
	for n := range fleetProcesses {
		f.processes = append(f.processes, &process{f: f, name: string(rune('a' + n))})
	}
	for n := range fleetRealms {
		w := newWorld(t, seed*fleetRealms+uint64(n))
		realm := fmt.Sprint("r", n)
		w.acquire = func(i *instance) func(context.Context, func(string)) (bridge.Lease, error) {
			p := f.processes[i.name[0]-'a']
			shares := p.shares
			return func(ctx context.Context, standby func(string)) (bridge.Lease, error) {
				l, err := shares.Acquire(ctx, realm, 1, func(h fleet.Holder) { standby(h.Writer) })
				p.gate.pass()
				if err != nil {
					return nil, err
				}
				return l, nil
			}
		}
		w.setUp()
		for len(w.instances) < fleetProcesses {
			w.instance()
		}
		w.instances = w.instances[:fleetProcesses]
		for n, i := range w.instances {
			f.processes[n].bridges = append(f.processes[n].bridges, i)
		}
		f.realms = append(f.realms, w)
	}
	return f
}

func (f *fleetWorld) fault(_, op, _ string) (x bucket.Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.luck.Float64() >= f.faulty {
		return x
	}
	return bucket.Draw(f.luck, op)
}

func (f *fleetWorld) late(string) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lag == 0 {
		return 0
	}
	return time.Duration(f.luck.Int64N(int64(f.lag)))
}

// ill sets how likely a request to the bucket goes wrong, and how late its watches are.
func (f *fleetWorld) ill(faulty float64, lag time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faulty, f.lag = faulty, lag
}

// start starts the process, or those of its bridges that have ended for a setting that was
// wrong.
func (p *process) start() {
	if p.shares == nil {
		p.runs++
		life, dead := context.WithCancel(context.Background())
		name := fmt.Sprintf("%s%d", p.name, p.runs)
		p.client, p.dead = p.f.bucket.Client(life, name, p.gate.pass), dead
		shares, err := fleet.NewInstance(fleet.Config{Writer: name, Store: p.client, Log: p.f.realms[0].log})
		if err != nil {
			p.f.t.Fatal(err)
		}
		p.shares = shares
	}
	for _, i := range p.bridges {
		i.start()
	}
}

// kill is SIGKILL.
func (p *process) kill() {
	if p.shares == nil {
		return
	}
	p.dead()
	p.gate.open()
	for _, i := range p.bridges {
		i.kill()
	}
	p.closes()
}

// stop is SIGTERM.
func (p *process) stop() {
	if p.shares == nil || p.gate.closed() {
		return
	}
	p.shares.Leave()
	var stopping sync.WaitGroup
	for _, i := range p.bridges {
		stopping.Go(i.stop)
	}
	stopping.Wait()
	p.closes()
	p.dead()
}

func (p *process) closes() {
	last, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = p.shares.Close(last) // the key may not be ours to delete any more
	p.shares = nil
}

// pause is SIGSTOP.
func (p *process) pause() {
	p.gate.close()
	for _, i := range p.bridges {
		i.w.told.paused = true
		i.gate.close()
		i.w.told.cut = append(i.w.told.cut, time.Now())
	}
}

// goOn is SIGCONT.
func (p *process) goOn() {
	p.gate.open()
	for _, i := range p.bridges {
		i.gate.open()
	}
}

func (f *fleetWorld) draw(what string) { f.drawn[what]++ }

// course draws what happens.
func (f *fleetWorld) course() {
	for range 60 + f.rng.IntN(120) {
		if f.rng.IntN(10) < 6 {
			w := f.realms[f.rng.IntN(len(f.realms))]
			dice := w.rng.IntN(1000 - (processes - traffics))
			if dice >= traffics {
				dice += processes - traffics
			}
			w.happen(w.instances[f.rng.IntN(fleetProcesses)], dice)
		} else {
			f.act(f.processes[f.rng.IntN(fleetProcesses)])
		}
		f.realms[f.rng.IntN(len(f.realms))].pause()
	}
}

// act lets one thing happen to a process, or to what it knows of the others.
func (f *fleetWorld) act(p *process) {
	switch dice := f.rng.IntN(100); {
	case dice < 40:
		f.draw("start")
		p.start()
	case dice < 50:
		f.draw("kill")
		p.kill()
	case dice < 58:
		f.draw("stop")
		p.stop()
	case dice < 65:
		f.draw("pause")
		p.pause()
	case dice < 75:
		f.draw("go on")
		for _, p := range f.processes {
			p.goOn()
		}
	case dice < 85:
		if p.shares == nil {
			return
		}
		c := p.client
		switch f.rng.IntN(3) {
		case 0:
			f.draw("cut off")
			c.Cut(true)
			time.AfterFunc(time.Duration(f.rng.IntN(10000))*time.Millisecond, func() { c.Cut(false) })
		case 1:
			f.draw("the watch stands still")
			c.Stall(true)
			time.AfterFunc(time.Duration(f.rng.IntN(10000))*time.Millisecond, func() { c.Stall(false) })
		default:
			f.draw("the watch breaks off")
			c.Lose()
		}
	case dice < 92:
		f.draw("the bucket is worse")
		f.ill(f.rng.Float64()*0.6, time.Duration(f.rng.IntN(3000))*time.Millisecond)
	case dice < 95:
		f.draw("the bucket is well")
		f.ill(0, 0)
	case f.forged:
		f.forge()
	}
}

// forge is somebody's hand in the bucket: claims of those who hold nothing, of nobody, none
// at all, and keys of instances that vanish.
func (f *fleetWorld) forge() {
	for n := range fleetRealms {
		claim := fmt.Sprintf("realm.r%d.claim", n)
		switch p := f.processes[f.rng.IntN(fleetProcesses)]; f.rng.IntN(4) {
		case 0:
			if p.shares != nil && p.shares.ID() != "" {
				f.draw("a claim is forged")
				f.bucket.Put(claim, fmt.Appendf(nil, `{"instance":%q,"writer":"x","host":"x"}`, p.shares.ID()))
			}
		case 1:
			f.draw("a claim is deleted")
			f.bucket.Put(claim, nil)
		case 2:
			f.draw("a claim is garbage")
			f.bucket.Put(claim, []byte("garbage"))
		default:
			if p.shares != nil && p.shares.ID() != "" {
				f.draw("an instance's key is deleted")
				f.bucket.Put("instance."+p.shares.ID()+".alive", nil)
			}
		}
	}
}

// judge lets everything heal, and looks what has come of it.
func (f *fleetWorld) judge() {
	defer func() {
		for _, p := range f.processes {
			p.kill()
		}
		for _, w := range f.realms {
			w.close()
		}
		time.Sleep(time.Minute) // what the processes began may yet be under way
	}()
	f.ill(0, 0)
	for _, w := range f.realms {
		w.endTrouble()
	}
	for range 2 {
		for _, p := range f.processes {
			p.goOn()
			if p.shares != nil {
				p.client.Cut(false)
				p.client.Stall(false)
			}
			p.start()
		}
		time.Sleep(30 * time.Second)
	}
	for n, w := range f.realms {
		w.heal()
		if w.check(); f.t.Failed() {
			f.t.Logf("it was realm %d", n)
			w.dump()
			return
		}
	}
	held := map[string]int{}
	for n, w := range f.realms {
		leaders := 0
		for _, i := range w.instances {
			if s := i.bridge.Status(); s.Leads {
				leaders++
				held[i.name]++
			}
		}
		if leaders != 1 {
			f.t.Errorf("realm %d has %d leaders in the end", n, leaders)
		}
	}
	for _, n := range held {
		if share := (fleetRealms + fleetProcesses - 1) / fleetProcesses; n > share {
			f.t.Errorf("in the end the realms are shared like this: %v", maps.Clone(held))
			break
		}
	}
}
