package bridge_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/events"
	"zulip-nats/health"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/subjects"
	"zulip-nats/zulipsim"
)

var (
	seedCount = flag.Int("seeds", defaultSeeds, "how many seeds TestSimulation runs")
	firstSeed = flag.Uint64("from-seed", 1, "the first of them")
	oneSeed   = flag.Uint64("seed", 0, "run this seed alone, again and again until it fails, and log what happens")
	tries     = flag.Int("tries", 200, "how often at most -seed is run")
)

// TestSimulation runs two instances of the whole bridge against a simulated Zulip and a
// model of JetStream, in virtual time. A seed decides what the world is like, what goes
// wrong and when (simulation_draws_test.go); in the end what the stream holds is compared
// with what Zulip had put in the queues (simulation_check_test.go).
//
//	go test ./bridge -run TestSimulation -seeds 10000
//	go test ./bridge -run TestSimulation -seed 4711 -v
func TestSimulation(t *testing.T) {
	if *oneSeed != 0 {
		// What happens in one instant may happen in any order, so one seed is not one
		// course of events: it is tried until it fails.
		for try := 0; try < *tries && !t.Failed(); try++ {
			t.Run(strconv.Itoa(try), func(t *testing.T) {
				synctest.Test(t,
					func(t *testing.T) { simulate(t, *oneSeed) })
			})
		}
		return
	}
	percent := debug.SetGCPercent(400) // a seed makes much garbage and keeps little
	t.Cleanup(func() { debug.SetGCPercent(percent); drawn.report(t, *seedCount) })
	for i := range *seedCount {
		seed := uint64(i) + *firstSeed
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { simulate(t, seed) })
		})
	}
}

const (
	simRealm   = "acme"
	simAccount = "bridge-bot@acme.example.com"
	simSite    = "http://zulip.test"
)

// world is one run: a Zulip, a stream, and the instances of the bridge.
type world struct {
	t         *testing.T
	rng       *rand.Rand
	log       zerolog.Logger
	zulip     *zulipsim.Server
	account   *zulipsim.Account
	jet       *model.Stream
	realm     subjects.Realm
	lease     *simLease // nil: the instances run without one, or
	acquire   acquirer  // nil: likewise
	instances []*instance
	options   poller.Options
	state     []poller.Section     // what the instances started from now on ask for
	maxBatch  int                  // events that are read of an answer at a time; 0: the usual
	configure func(*bridge.Config) // what differs from the usual, for instances started from now on

	mu      sync.Mutex // guards what follows: requests of the bridge ask for it at any time
	luck    *rand.Rand // of the stream's clients
	badDay  float64    // chance that a request to the stream goes wrong
	hung    time.Time  // until then no server of NATS answers
	deposed time.Time  // until then a leader that was deposed may answer
	down    bool
	onWrite *model.Fault // goes wrong with the next write
	clocks  [2]simClock  // of NATS and of Zulip

	commits   sync.WaitGroup
	lastIDs   []int64
	direct    []int64            // of direct messages
	texts     map[int64][]string // all that a message ever said, as far as it is drawn
	deleted   map[int64]bool
	truncated bool // the stream lost something by itself
	told      allowances
	acks      sync.Mutex
	seen      int             // how much of what the stream ever stored is in stored
	stored    map[string]bool // "queue id"
	odd       int
	busy      bool // more is said than a poll can wait for
}

// acquirer gives what an instance acquires its leases by, for one run of it.
type acquirer func(i *instance) func(ctx context.Context, standby func(leader string)) (bridge.Lease, error)

// newWorld is a Zulip, an empty stream and no instance of the bridge yet. It must be made
// and closed in a synctest bubble.
func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 0)), log: zerolog.Nop(), zulip: &zulipsim.Server{Seed: seed},
		options: poller.DefaultOptions(),
		stored:  map[string]bool{}, texts: map[int64][]string{}, deleted: map[int64]bool{}, luck: rand.New(rand.NewPCG(seed, 1))}
	if *oneSeed != 0 {
		w.log = zerolog.New(zerolog.ConsoleWriter{Out: t.Output(), NoColor: true,
			TimeFormat: "15:04:05.000"}).With().Timestamp().Logger()
		zerolog.TimeFieldFormat = time.RFC3339Nano
	}
	w.account = w.zulip.Account(simAccount)
	w.realm, _ = subjects.ParseRealm(simRealm)
	w.jet = &model.Stream{Filter: w.realm.All(), Faults: w.faults, Ours: ours}
	w.zulip.OnAck = w.checkAck
	return w
}

// ours says whether a message is one of the bridge: it says where the bridge is.
func ours(m *stream.Stored) bool {
	return first(*m, events.HeaderPosition) != "" || first(*m, events.HeaderEventID) != ""
}

// instance adds a process of the bridge that does not run yet.
func (w *world) instance() *instance {
	i := &instance{w: w, name: string(rune('a' + len(w.instances)))}
	w.instances = append(w.instances, i)
	return i
}

// close kills what runs.
func (w *world) close() {
	w.commits.Wait()
	for _, i := range w.instances {
		i.kill()
	}
	w.jet.Settle()
	w.zulip.Close()
}

func simulate(t *testing.T, seed uint64) {
	w := newWorld(t, seed)
	defer w.close()
	w.setUp()
	for range 20 + w.rng.IntN(40) {
		w.act()
		w.pause()
		w.counters() // for -race: anybody may ask at any time
	}
	w.heal()
	if w.check(); t.Failed() {
		w.dump()
	}
}

// heal ends all trouble and waits until everything has been read. Only what is down comes
// back, and only what does not run is started: what a reconnect or a restart would heal
// has to heal without.
func (w *world) heal() {
	w.log.Info().Msg("--- heal")
	w.endTrouble()
	for _, i := range w.instances {
		i.gate.open()
		i.start()
	}
	time.Sleep(time.Minute)
	for _, i := range w.instances { // one may have ended by a setting that was wrong just then
		i.start()
	}
	time.Sleep(time.Minute)
	// An event that is no JSON has no id to acknowledge: it stays until another follows
	// it.
	w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 1, "status_text": "the last word"})
	w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "the last word"})
	for wait := time.Second; wait < time.Hour; wait += wait / 8 { // some four hours, if it has been told to wait for one
		done := false
		for _, q := range w.zulip.Queues() {
			if q.Dead == "" && q.Waiting && q.Pending == 0 {
				done = true
			}
		}
		if done {
			break
		}
		time.Sleep(wait)
	}
	for range 70 { // who was told to wait for an hour may hold a queue that another has been faster than
		if !w.told.hour || w.living() <= 1 {
			break
		}
		time.Sleep(time.Minute)
	}
	time.Sleep(5 * time.Second)
}

// instance is one process of the bridge: it can be started, stopped, killed and paused.
type instance struct {
	w    *world
	name string
	runs int
	end  context.CancelFunc // SIGTERM
	dead context.CancelFunc // SIGKILL
	done chan struct{}
	err  error // what Run returned, valid when done is closed
	gate gate
	term atomic.Pointer[term] // the last that it had

	bridge  *bridge.Bridge // of its last run
	bridges []*bridge.Bridge
}

func (i *instance) running() bool { return i.done != nil }

// ended looks whether it has ended by itself, which nothing but a wrong setting may bring
// about.
func (i *instance) ended() bool {
	if !i.running() {
		return false
	}
	select {
	case <-i.done:
	default:
		return false
	}
	i.done = nil
	i.dead()
	if i.err != nil {
		i.w.excuseEnd(i, "had ended by itself")
	}
	return true
}

// excuseEnd complains of the end of a process, unless somebody has made a setting of the
// stream wrong: then it must end, and be started again by who puts it right.
func (w *world) excuseEnd(i *instance, how string) {
	if _, ok := errors.AsType[*stream.ConfigError](i.err); ok && w.told.configErrors.Load() {
		w.log.Info().Err(i.err).Str("instance", i.name).Msg("--- has ended")
		w.told.cut = append(w.told.cut, time.Now())
		return
	}
	if _, ok := errors.AsType[*poller.AuthError](i.err); ok && w.told.accounts > 0 {
		return // the account was replaced before it had been let in
	}
	w.t.Errorf("%s %s: %v", i.name, how, i.err)
}

func (i *instance) start() {
	i.ended()
	if i.running() {
		return
	}
	i.runs++
	life, dead := context.WithCancel(context.Background())
	ctx, end := context.WithCancel(life)
	i.end, i.dead, i.done = end, dead, make(chan struct{})
	w := i.w
	name := fmt.Sprintf("%s%d", i.name, i.runs)
	log := w.log.With().Str("instance", name).Logger()
	client := w.zulip.Client()
	account := w.zuliprc()
	p := &poller.Poller{Options: w.options, State: w.state, Log: log, Client: &poller.Client{
		Account:   func() (poller.Account, error) { return w.zuliprc(), nil },
		Transport: &wire{next: client.Transport, of: i, life: life},
		MaxBatch:  w.maxBatch,
	}}
	jet := &gated{Client: w.jet.Client(life), gate: &i.gate}
	cfg := bridge.Config{Realm: w.realm, Site: account.Site, Account: account.Email, Poller: p, Writer: name, Log: log,
		Version: "test",
		Open:    func(ctx context.Context) (bridge.Stream, error) { return jet, jet.Open(ctx) }}
	if w.lease != nil {
		cfg.Acquire = func(ctx context.Context, standby func(string)) (bridge.Lease, error) {
			t, err := w.lease.acquire(ctx, life, &i.gate, jet.Client, name, standby)
			if err != nil {
				return nil, err
			}
			i.term.Store(t)
			return t, nil
		}
	}
	if w.acquire != nil {
		cfg.Acquire = w.acquire(i)
	}
	if w.configure != nil {
		w.configure(&cfg)
	}
	w.used(p.Options)
	i.err = nil
	i.term.Store(nil)
	done, b := i.done, bridge.New(cfg)
	i.bridge, i.bridges = b, append(i.bridges, b)
	go func() {
		defer close(done)
		defer p.Close()
		err := b.Run(ctx)
		if life.Err() != nil {
			return
		}
		if i.err = err; err == nil && ctx.Err() == nil {
			i.err = errors.New("Run returned nil, though nobody had asked it to end")
		}
	}()
}

// zuliprc is what the file says now.
func (w *world) zuliprc() poller.Account {
	w.mu.Lock()
	defer w.mu.Unlock()
	return poller.Account{Email: w.account.Email, Key: w.account.Key, Site: simSite}
}

// kill is SIGKILL: from now on nothing that it does has any effect.
func (i *instance) kill() {
	if i.ended() || !i.running() {
		return
	}
	i.w.told.cut = append(i.w.told.cut, time.Now())
	i.dead()
	i.gate.open()
	i.end()
	<-i.done
	i.done = nil
	if i.err != nil {
		i.w.excuseEnd(i, "ended by itself")
	}
}

// stop is SIGTERM.
func (i *instance) stop() {
	if i.ended() || !i.running() || i.gate.closed() {
		return
	}
	began, answers := time.Now(), i.w.answers()
	i.end()
	<-i.done
	if took := time.Since(began); took > 6*time.Second {
		i.w.t.Errorf("%s took %v to stop", i.name, took)
	}
	if i.err != nil {
		i.w.excuseEnd(i, "stopped, and says")
	}
	if !answers || !i.w.answers() {
		i.w.told.cut = append(i.w.told.cut, time.Now())
	}
	i.dead()
	i.done = nil
}

// gate holds up an instance that is paused, before and after each thing it does.
type gate struct {
	mu     sync.Mutex
	wait   chan struct{}
	opened time.Time // when it was last opened
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.wait == nil {
		g.wait = make(chan struct{})
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.wait != nil {
		close(g.wait)
		g.wait, g.opened = nil, time.Now()
	}
}

// shutSince says whether it was shut at any time since then.
func (g *gate) shutSince(t time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.wait != nil || g.opened.After(t)
}

func (g *gate) closed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.wait != nil
}

func (g *gate) pass() {
	g.mu.Lock()
	wait := g.wait
	g.mu.Unlock()
	if wait != nil {
		<-wait
	}
}

// wire is an instance's connection to Zulip: it stops with the instance, and dies with
// it.
type wire struct {
	next http.RoundTripper
	of   *instance
	life context.Context
}

func (t *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	t.of.gate.pass()
	if t.life.Err() != nil {
		return nil, t.life.Err()
	}
	ctx, cancel := context.WithCancel(r.Context())
	context.AfterFunc(t.life, cancel)
	resp, err := t.next.RoundTrip(r.WithContext(ctx))
	if err == nil {
		t.of.leads(r)
	}
	t.of.gate.pass()
	return resp, err
}

// leads complains if a poll was answered long after its instance had lost the lease: the
// end of the lease ends it.
func (i *instance) leads(r *http.Request) {
	t := i.term.Load()
	if t == nil || r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/events") {
		return
	}
	t.mu.Lock()
	lost := t.deadline
	t.mu.Unlock()
	if late := time.Since(lost); late > 5*time.Second && !i.gate.shutSince(lost) {
		i.w.t.Errorf("%s polls, %v after it has lost the lease", i.name, late)
	}
}

// gated is an instance's connection to the stream.
type gated struct {
	*model.Client
	gate *gate
}

func (c *gated) pass() func() { c.gate.pass(); return c.gate.pass }

func (c *gated) Last(ctx context.Context) (stream.Cursor, *stream.Stored, error) {
	defer c.pass()()
	return c.Client.Last(ctx)
}

func (c *gated) At(ctx context.Context, seq uint64) (*stream.Stored, error) {
	defer c.pass()()
	return c.Client.At(ctx, seq)
}

func (c *gated) LastOn(ctx context.Context, subject string) (*stream.Stored, error) {
	defer c.pass()()
	return c.Client.LastOn(ctx, subject)
}

func (c *gated) Next(ctx context.Context, subject string, seq uint64) (*stream.Stored, error) {
	defer c.pass()()
	return c.Client.Next(ctx, subject, seq)
}

func (c *gated) Scan(ctx context.Context, subject string, from stream.Start, until uint64, headersOnly bool,
	f func(*stream.Stored) error) error {
	defer c.pass()()
	return c.Client.Scan(ctx, subject, from, until, headersOnly, f)
}

func (c *gated) AppendEach(ctx context.Context, after stream.Cursor, source stream.Source) (stream.Cursor, error) {
	defer c.pass()()
	return c.Client.AppendEach(ctx, after, func(stored int, at stream.Cursor) ([]stream.Message, bool) {
		c.gate.pass()
		return source(stored, at)
	})
}

func (c *gated) Info(ctx context.Context) (stream.Info, error) {
	defer c.pass()()
	return c.Client.Info(ctx)
}

func (c *gated) Object(ctx context.Context, name string) ([]byte, error) {
	defer c.pass()()
	return c.Client.Object(ctx, name)
}

func (c *gated) Erase(ctx context.Context, epoch, seq uint64) error {
	defer c.pass()()
	return c.Client.Erase(ctx, epoch, seq)
}

func (c *gated) EraseObject(ctx context.Context, epoch uint64, name string) error {
	defer c.pass()()
	return c.Client.EraseObject(ctx, epoch, name)
}

func (c *gated) Purge(ctx context.Context, subject string, below uint64) error {
	defer c.pass()()
	return c.Client.Purge(ctx, subject, below)
}

func (c *gated) PutObject(ctx context.Context, name string, data []byte) error {
	defer c.pass()()
	return c.Client.PutObject(ctx, name, data)
}

// simLease is a lease that one instance at a time can hold. Where it is shared, it lives
// on the server that the stream lives on: nobody gets or renews it while that does not
// answer.
type simLease struct {
	ttl    time.Duration
	shared bool
	// forged: whoever asks for it has it, and holds it for ever. Safety is the
	// compare-and-swap of the stream, and needs no lease that is true.
	forged bool

	mu      sync.Mutex
	holder  *term
	expires time.Time // as the server has it
}

// term is one holder's time. It is renewed while its process lives and is not paused.
type term struct {
	lease    *simLease
	jet      *model.Client
	writer   string
	ctx      context.Context
	cancel   context.CancelFunc
	asked    context.Context // until another instance is to have it
	ask      context.CancelFunc
	mu       sync.Mutex
	deadline time.Time // as the holder has it: counted from before it asked
}

// ask lets the server do something, if it answers.
func (l *simLease) ask(ctx context.Context, jet *model.Client, f func()) error {
	if l.shared {
		if err := jet.Ask(ctx); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	return nil
}

// handOver asks the holder, if there is one, to let another instance have it.
func (l *simLease) handOver() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holder != nil {
		l.holder.ask()
	}
}

func (l *simLease) acquire(ctx, life context.Context, g *gate, jet *model.Client, writer string,
	standby func(leader string)) (*term, error) {
	if l.forged {
		t := &term{lease: l, jet: jet, writer: writer, deadline: time.Now().Add(1000 * time.Hour)}
		t.ctx, t.cancel = context.WithCancel(life)
		t.asked, t.ask = context.WithCancel(life)
		l.mu.Lock()
		l.holder = t // the one that may be asked for it
		l.mu.Unlock()
		return t, nil
	}
	waiting := false
	for {
		g.pass()
		asked, t, leader := time.Now(), (*term)(nil), ""
		err := l.ask(ctx, jet, func() {
			if now := time.Now(); l.holder == nil || !now.Before(l.expires) {
				t = &term{lease: l, jet: jet, writer: writer, deadline: asked.Add(l.ttl)}
				t.ctx, t.cancel = context.WithCancel(life)
				t.asked, t.ask = context.WithCancel(life)
				l.holder, l.expires = t, now.Add(l.ttl)
			}
			leader = l.holder.writer
		})
		if err == nil && t != nil {
			go t.renew(g)
			go t.expire()
			return t, nil
		}
		if err == nil && !waiting {
			waiting = true
			standby(leader)
		}
		health.Waits(ctx, l.ttl/10)
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(l.ttl / 10):
		}
	}
}

// expire ends the term when its time is over.
func (t *term) expire() {
	for t.Held() {
		t.mu.Lock()
		left := time.Until(t.deadline)
		t.mu.Unlock()
		select {
		case <-t.ctx.Done():
		case <-time.After(left):
		}
	}
	t.cancel()
}

func (t *term) renew(g *gate) {
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-time.After(t.lease.ttl / 3):
		}
		g.pass()
		asked, mine := time.Now(), true
		err := t.lease.ask(t.ctx, t.jet, func() {
			if now := time.Now(); t.lease.holder == t && now.Before(t.lease.expires) {
				t.lease.expires = now.Add(t.lease.ttl)
			} else {
				mine = false
			}
		})
		switch {
		case !mine:
			t.cancel()
			return
		case err == nil:
			t.mu.Lock()
			t.deadline = asked.Add(t.lease.ttl)
			t.mu.Unlock()
		}
	}
}

func (t *term) Context() context.Context { return t.ctx }
func (t *term) Asked() context.Context   { return t.asked }

func (t *term) Held() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lease.forged || time.Now().Before(t.deadline) && t.ctx.Err() == nil
}

func (t *term) Release(ctx context.Context) error {
	err := t.lease.ask(ctx, t.jet, func() {
		if t.lease.holder == t {
			t.lease.holder = nil
		}
	})
	t.cancel()
	return err
}
