package bridge_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/subjects"
	"zulip-nats/zulipsim"
)

var (
	seedCount = flag.Int("seeds", defaultSeeds, "how many seeds TestSimulation runs")
	oneSeed   = flag.Uint64("seed", 0, "run this seed alone, again and again until it fails, and log what happens")
	tries     = flag.Int("tries", 200, "how often at most -seed is run")
)

// TestSimulation runs two instances of the whole bridge against a simulated Zulip and a model of JetStream, in virtual time. A seed decides
// what goes wrong and when; in the end what the stream holds is compared with what Zulip had put in the queues.
//
//	go test ./bridge -run TestSimulation -seeds 10000
//	go test ./bridge -run TestSimulation -seed 4711 -v
func TestSimulation(t *testing.T) {
	if *oneSeed != 0 {
		// What happens in one instant may happen in any order, so one seed is not one course of events: it is tried until it fails.
		for try := 0; try < *tries && !t.Failed(); try++ {
			t.Run(strconv.Itoa(try), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { simulate(t, *oneSeed) }) })
		}
		return
	}
	for i := range *seedCount {
		seed := uint64(i + 1)
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { simulate(t, seed) })
		})
	}
}

const (
	simRealm   = "acme"
	simAccount = "bridge-bot@acme.example.com"
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
	lease     *simLease // nil: the instances run without one
	instances []*instance
	options   poller.Options
	configure func(*bridge.Config) // what differs from the usual, for instances started from now on

	mu        sync.Mutex
	luck      *rand.Rand // of the stream's clients, who draw at any time
	badDay    float64    // chance that a request to the stream goes wrong
	commits   sync.WaitGroup
	lastIDs   []int64
	truncated bool // the stream lost something by itself
	acks      sync.Mutex
	seen      int             // how much of what the stream ever stored is in stored
	stored    map[string]bool // "queue id"
	odd       int
}

// newWorld is a Zulip, an empty stream and no instance of the bridge yet. It must be made and closed in a synctest bubble.
func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 0)), log: zerolog.Nop(), zulip: &zulipsim.Server{Seed: seed}, options: poller.DefaultOptions(),
		stored: map[string]bool{}, luck: rand.New(rand.NewPCG(seed, 1))}
	if *oneSeed != 0 {
		w.log = zerolog.New(zerolog.ConsoleWriter{Out: t.Output(), NoColor: true, TimeFormat: "15:04:05.000"}).With().Timestamp().Logger()
		zerolog.TimeFieldFormat = time.RFC3339Nano
	}
	w.account = w.zulip.Account(simAccount)
	w.realm, _ = subjects.ParseRealm(simRealm)
	w.jet = &model.Stream{Filter: w.realm.All(), Faults: w.faults}
	w.zulip.OnAck = w.checkAck
	return w
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
	rng := w.rng
	w.options.Life = []time.Duration{10 * time.Minute, time.Hour, 24 * time.Hour}[rng.IntN(3)]
	w.options.AllPublicStreams = rng.IntN(4) == 0
	if rng.IntN(3) == 0 {
		w.zulip.FeatureLevel = 500
	}
	if rng.IntN(2) == 0 {
		w.lease = &simLease{ttl: 4 * time.Second}
	}
	if rng.IntN(2) == 0 { // what comes while a queue is registered is counted in register's last_event_id, and in the queue all the same
		w.zulip.DuringRegister = func(string) {
			w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "while registering"})
		}
	}
	for range 1 + rng.IntN(2) {
		w.instance()
	}
	for range 20 + rng.IntN(40) {
		w.act()
		w.pause()
	}
	w.heal()
	if w.check(); t.Failed() {
		w.dump()
	}
}

// pause lets time pass: mostly moments, sometimes minutes.
func (w *world) pause() {
	switch w.rng.IntN(10) {
	case 0:
		time.Sleep(time.Duration(w.rng.IntN(180)) * time.Second)
	case 1, 2, 3:
		time.Sleep(time.Duration(w.rng.IntN(5000)) * time.Millisecond)
	default:
		time.Sleep(time.Duration(w.rng.IntN(200)) * time.Millisecond)
	}
}

// act lets one thing happen.
func (w *world) act() {
	one := w.instances[w.rng.IntN(len(w.instances))]
	what := ""
	switch dice := w.rng.IntN(100); {
	case dice < 40:
		what = "traffic"
		for range 1 + w.rng.IntN(12) {
			w.traffic()
		}
	case dice < 55:
		what = "start " + one.name
		one.start()
	case dice < 63:
		what = "kill " + one.name
		one.kill()
	case dice < 66:
		what = "stop " + one.name
		one.stop()
	case dice < 69:
		what = "pause " + one.name
		one.gate.close()
	case dice < 73:
		what = "go on"
		for _, i := range w.instances {
			i.gate.open()
		}
	case dice < 76:
		what = "jetstream down"
		w.jet.Down()
	case dice < 81:
		what = "jetstream up"
		w.jet.Up()
	case dice < 84:
		what = "jetstream worse"
		w.setBadDay([]float64{0, 0.05, 0.2, 0.5}[w.rng.IntN(4)])
	case dice < 86:
		what = "a leader is deposed"
		w.jet.Depose()
	case dice < 88:
		what = "somebody else publishes"
		w.jet.Publish(w.realm.All()[:len(w.realm.All())-1]+"foreign", []byte("hello"))
	case dice < 89:
		what = "the oldest messages age out"
		w.jet.Age(1 + w.rng.IntN(30))
	case dice < 92:
		what = w.zulipTrouble()
	case dice < 95:
		what = "queues expire"
		for _, q := range w.zulip.Queues() {
			if q.Dead == "" && w.rng.IntN(2) == 0 {
				w.zulip.ExpireQueue(q.ID)
			}
		}
	case dice < 96:
		what = "zulip crashes"
		w.zulip.Crash()
	case dice < 98:
		what = "options change"
		w.options.SlimPresence = !w.options.SlimPresence
	default:
		what = w.streamTrouble()
	}
	w.log.Info().Msg("--- " + what)
}

// traffic is one thing that people do at Zulip.
func (w *world) traffic() {
	channel := []string{"general", "random", "build > notes"}[w.rng.IntN(3)]
	m := zulipsim.Message{Channel: channel, Topic: "t", Sender: []string{"ada@example.com", "grace@example.com"}[w.rng.IntN(2)],
		Content: fmt.Sprintf("message %d", w.rng.Uint32())}
	switch w.rng.IntN(10) {
	case 0: // ids follow insertion, events follow commit
		id, commit := w.zulip.SendDelayed(m)
		w.lastIDs = append(w.lastIDs, id)
		late := time.Duration(w.rng.IntN(3000)) * time.Millisecond
		w.commits.Go(func() { time.Sleep(late); commit() })
	case 1, 2:
		if len(w.lastIDs) > 0 {
			w.zulip.React(w.lastIDs[w.rng.IntN(len(w.lastIDs))], "ada@example.com", "tada")
		}
	case 3:
		if len(w.lastIDs) > 0 {
			w.zulip.Flag(simAccount, "add", "read", w.lastIDs[w.rng.IntN(len(w.lastIDs))])
		}
	case 4:
		w.zulip.Emit(map[string]any{"type": "user_status", "user_id": w.rng.IntN(100), "status_text": "busy"})
	case 5:
		w.odd++
		w.zulip.EmitRaw([]string{
			fmt.Sprintf(`{"type":"a.b","id":%%ID%%,"n":%d}`, w.odd),
			fmt.Sprintf(`{"type":"message","id":%%ID%%,"n":%d,}`, w.odd),
			fmt.Sprintf(`{"id":%%ID%%,"n":%d}`, w.odd),
			fmt.Sprintf(`{"type":"realm","op":"update","n":%d,"id":%%ID%%}`, w.odd),
		}[w.rng.IntN(4)])
	default:
		w.lastIDs = append(w.lastIDs, w.zulip.SendMessage(m))
	}
}

// zulipTrouble lets something go wrong on the Zulip side for a while.
func (w *world) zulipTrouble() string {
	faults := map[string]zulipsim.Fault{
		"502":        {On: "any", Times: 1 + w.rng.IntN(4), Status: 502, Body: "<html>502</html>", ContentType: "text/html"},
		"429":        {On: "events", Times: 1, Status: 429, Header: http.Header{"Retry-After": {"3.5"}}, Body: `{"result":"error","msg":"limit","code":"RATE_LIMIT_HIT","retry-after":3.5}`},
		"reset":      {On: "any", Times: 1 + w.rng.IntN(3), Reset: true},
		"half body":  {On: "events", Times: 1 + w.rng.IntN(3), HalfBody: true},
		"bad queue":  {On: "events", Times: 1 + w.rng.IntN(3), Status: 400, Body: `{"result":"error","msg":"Bad event queue ID","code":"BAD_EVENT_QUEUE_ID"}`},
		"html 200":   {On: "any", Times: 1 + w.rng.IntN(3), Status: 200, Body: "<html>hello</html>", ContentType: "text/html"},
		"register 5": {On: "register", Times: 1 + w.rng.IntN(3), Status: 500, Body: `{"result":"error","msg":"Internal server error"}`},
	}
	names := slices.Sorted(maps.Keys(faults))
	if w.rng.IntN(3) == 0 {
		w.zulip.Restart(time.Duration(1+w.rng.IntN(10)) * time.Second)
		return "zulip restarts"
	}
	name := names[w.rng.IntN(len(names))]
	w.zulip.Fault(faults[name])
	return "zulip: " + name
}

// streamTrouble lets the stream itself lose something.
func (w *world) streamTrouble() string {
	w.truncated = true
	switch w.rng.IntN(4) {
	case 0:
		w.jet.Restore(1 + w.rng.IntN(10))
		return "stream restored"
	case 1:
		w.jet.Purge()
		return "stream purged"
	case 2:
		w.jet.Remove(1 + w.rng.IntN(3))
		return "newest messages removed"
	default:
		w.jet.Delete()
		return "stream deleted"
	}
}

func (w *world) setBadDay(p float64) {
	w.mu.Lock()
	w.badDay = p
	w.mu.Unlock()
}

// faults draws what goes wrong with a request to the stream.
func (w *world) faults(op string) (f model.Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.badDay == 0 || !model.Coin(w.luck, w.badDay) {
		return f
	}
	switch w.luck.IntN(6) {
	case 0:
		f.Fail = []stream.Kind{stream.Unclear, stream.Unavailable, stream.Full, stream.Refused, stream.Forbidden}[w.luck.IntN(5)]
	case 1:
		f.Deaf = true
	case 2:
		f.Deaf, f.Late = true, time.Duration(w.luck.IntN(20000))*time.Millisecond
	case 3:
		f.Late = time.Duration(w.luck.IntN(500)) * time.Millisecond
	case 4:
		f.Keep = 1 + w.luck.IntN(3)
	case 5:
		f.Stale = true
	}
	return f
}

// heal ends all trouble and waits until everything has been read.
func (w *world) heal() {
	w.log.Info().Msg("--- heal")
	w.setBadDay(0)
	w.jet.Up()
	w.zulip.ClearFaults()
	for _, i := range w.instances {
		i.gate.open()
		i.start()
	}
	time.Sleep(2 * time.Minute)
	// An event that is no JSON has no id to acknowledge: it stays until another follows it.
	w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "the last word"})
	for range 600 {
		done := false
		for _, q := range w.zulip.Queues() {
			if q.Dead == "" && q.Waiting && q.Pending == 0 {
				done = true
			}
		}
		if done {
			break
		}
		time.Sleep(time.Second)
	}
	time.Sleep(5 * time.Second)
}

// key names one event of one queue.
type key struct {
	queue string
	id    int64
}

// checkAck is called for each event that Zulip is about to forget: it must have been stored.
func (w *world) checkAck(queue string, id int64, raw []byte) {
	w.acks.Lock() // not mu: the stream asks for that with its own lock held
	defer w.acks.Unlock()
	for _, m := range w.jet.Ever(w.seen) {
		w.seen++
		w.stored[first(m, bridge.HeaderQueueID)+" "+first(m, bridge.HeaderEventID)] = true
		w.stored[first(m, bridge.HeaderQueueID)+" "+rejectedEvent(m)] = true
	}
	if w.stored[queue+" "+strconv.FormatInt(id, 10)] || w.stored[queue+" "+string(raw)] {
		return
	}
	w.t.Errorf("event %d of queue %s was acknowledged and is not stored: %s", id, queue, raw)
}

// dump logs what the stream holds, for the replay of a seed that failed.
func (w *world) dump() {
	for _, m := range w.jet.Messages() {
		w.log.Info().Uint64("seq", m.Seq).Time("at", m.Time).Str("subject", m.Subject).Str("writer", first(m, bridge.HeaderWriter)).
			Str("queue", first(m, bridge.HeaderQueueID)).Str("event", first(m, bridge.HeaderEventID)).Str("position", first(m, bridge.HeaderPosition)).
			Str("message", first(m, bridge.HeaderMessageID)).Str("record", first(m, bridge.HeaderRecord)).Msg("held")
	}
}

// rejectedEvent is the event that a bridge.rejected record holds.
func rejectedEvent(m stream.Stored) string {
	var body struct{ Event string }
	if first(m, bridge.HeaderRecord) != "rejected" || json.Unmarshal(m.Data, &body) != nil {
		return ""
	}
	return body.Event
}

// check compares the stream with what Zulip put in the queues.
func (w *world) check() {
	stored := map[key]int{}
	place := map[key]int{}
	messages := map[int64]int{}
	skipped := map[int64]bool{}
	rejected := map[string]int{}
	var notRefilled, gaps int
	aged := w.jet.Aged()
	dropped := map[int64]bool{} // messages that the stream's limits took: it does not hold them, so a refill may bring them back
	for n, m := range slices.Concat(aged, w.jet.Messages()) {
		record := first(m, bridge.HeaderRecord)
		if e := rejectedEvent(m); e != "" {
			rejected[e]++
		}
		if id, err := strconv.ParseInt(first(m, bridge.HeaderEventID), 10, 64); err == nil {
			k := key{first(m, bridge.HeaderQueueID), id}
			stored[k]++
			place[k] = n
		}
		if id, err := strconv.ParseInt(first(m, bridge.HeaderMessageID), 10, 64); err == nil {
			switch {
			case record == "" && n < len(aged):
				dropped[id] = true
			case record == "":
				messages[id]++
			default:
				skipped[id] = true
			}
		}
		if record == "gap-closed" {
			gaps++
			if strings.Contains(string(m.Data), "not_refilled") {
				notRefilled++
			}
		}
	}
	for k, n := range stored {
		if n > 1 {
			w.t.Errorf("event %d of queue %s is stored %d times", k.id, k.queue, n)
		}
	}
	for id, n := range messages {
		if n > 1 {
			w.t.Errorf("message %d is stored %d times", id, n)
		}
	}
	for id := range skipped {
		if messages[id] == 0 && !dropped[id] && !w.truncated {
			w.t.Errorf("message %d was skipped, and the stream does not hold it", id)
		}
	}
	alive := 0
	for _, q := range w.zulip.Queues() {
		if q.Dead == "" && q.Waiting {
			alive++
		}
		last := -1
		for _, e := range q.Events {
			at, ok := place[key{q.ID, e.ID}]
			switch {
			case ok && at < last:
				w.t.Errorf("event %d of queue %s is out of order", e.ID, q.ID)
			case ok:
				last = at
			case rejected[string(e.Raw)] > 0:
				// An event that is no JSON has no id to be found by.
			case e.Pruned.IsZero() && q.Dead != "", e.Pruned.IsZero() && !q.Waiting:
				// Zulip dropped it with the queue, or nobody followed the queue.
			case w.truncated && !e.Pruned.IsZero():
				// It was stored, or checkAck has complained; the stream lost it.
			default:
				w.t.Errorf("event %d of queue %s is not stored: %s", e.ID, q.ID, e.Raw)
			}
		}
	}
	if alive != 1 {
		w.t.Errorf("%d queues are polled in the end, want 1", alive)
		requests := w.zulip.Requests()
		for _, r := range requests[max(0, len(requests)-5):] {
			w.log.Info().Time("at", r.Time).Str("path", r.Path).Int("status", r.Status).Interface("params", r.Params).Msg("one of the last requests")
		}
	}
	if w.truncated || notRefilled > 0 {
		return
	}
	// Messages are the one thing that a gap may not cost: those sent after the first queue was recorded are all there.
	began := time.Time{}
	for _, m := range w.jet.Ever(0) {
		if first(m, bridge.HeaderRecord) == "queue" {
			began = m.Time
			break
		}
	}
	for _, m := range w.zulip.Messages() {
		if m.Time.After(began) && messages[m.ID] == 0 && !dropped[m.ID] {
			w.t.Errorf("message %d, sent at %v, is not in the stream (%d gaps)", m.ID, m.Time, gaps)
		}
	}
}

func first(m stream.Stored, key string) string {
	if v := m.Header[key]; len(v) > 0 {
		return v[0]
	}
	return ""
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
}

func (i *instance) running() bool { return i.done != nil }

func (i *instance) start() {
	if i.running() {
		select {
		case <-i.done:
		default:
			return
		}
	}
	i.runs++
	life, dead := context.WithCancel(context.Background())
	ctx, end := context.WithCancel(life)
	i.end, i.dead, i.done = end, dead, make(chan struct{})
	w := i.w
	name := fmt.Sprintf("%s%d", i.name, i.runs)
	log := w.log.With().Str("instance", name).Logger()
	client := w.zulip.Client()
	account := poller.Account{Email: simAccount, Key: w.account.Key, Site: "http://zulip.test"}
	p := &poller.Poller{Options: w.options, Log: log, Client: &poller.Client{
		Account:   func() (poller.Account, error) { return account, nil },
		Transport: &wire{next: client.Transport, gate: &i.gate, life: life},
	}}
	jet := &gated{Client: w.jet.Client(life), gate: &i.gate}
	cfg := bridge.Config{Realm: w.realm, Site: account.Site, Account: account.Email, Poller: p, Writer: name, Log: log, Version: "test",
		Open: func(ctx context.Context) (bridge.Stream, error) { return jet, jet.Open(ctx) }}
	if w.lease != nil {
		cfg.Acquire = func(ctx context.Context) (bridge.Lease, error) { return w.lease.acquire(ctx, life, &i.gate) }
	}
	if w.configure != nil {
		w.configure(&cfg)
	}
	i.err = nil
	done := i.done
	go func() {
		defer close(done)
		defer p.Close()
		if err := bridge.New(cfg).Run(ctx); life.Err() == nil {
			i.err = err
		}
	}()
}

// kill is SIGKILL: from now on nothing that it does has any effect.
func (i *instance) kill() {
	if !i.running() {
		return
	}
	i.dead()
	i.gate.open()
	i.end()
	<-i.done
	i.done = nil
	if i.err != nil {
		i.w.t.Errorf("%s had ended by itself: %v", i.name, i.err)
	}
}

// stop is SIGTERM.
func (i *instance) stop() {
	if !i.running() || i.gate.closed() {
		return
	}
	began := time.Now()
	i.end()
	<-i.done
	if took := time.Since(began); took > 5*time.Second {
		i.w.t.Errorf("%s took %v to stop", i.name, took)
	}
	if i.err != nil {
		i.w.t.Errorf("%s stopped with %v", i.name, i.err)
	}
	i.dead()
	i.done = nil
}

// gate holds up an instance that is paused, before and after each thing it does.
type gate struct {
	mu   sync.Mutex
	wait chan struct{}
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
		g.wait = nil
	}
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

// wire is an instance's connection to Zulip: it stops with the instance, and dies with it.
type wire struct {
	next http.RoundTripper
	gate *gate
	life context.Context
}

func (t *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	t.gate.pass()
	if t.life.Err() != nil {
		return nil, t.life.Err()
	}
	ctx, cancel := context.WithCancel(r.Context())
	context.AfterFunc(t.life, cancel)
	resp, err := t.next.RoundTrip(r.WithContext(ctx))
	t.gate.pass()
	return resp, err
}

// gated is an instance's connection to the stream.
type gated struct {
	*model.Client
	gate *gate
}

func (c *gated) Last(ctx context.Context) (stream.Cursor, *stream.Stored, error) {
	c.gate.pass()
	defer c.gate.pass()
	return c.Client.Last(ctx)
}

func (c *gated) Append(ctx context.Context, after stream.Cursor, msgs []stream.Message) (stream.Cursor, error) {
	c.gate.pass()
	defer c.gate.pass()
	return c.Client.Append(ctx, after, msgs)
}

// simLease is a lease that one instance at a time can hold.
type simLease struct {
	ttl    time.Duration
	mu     sync.Mutex
	holder *term
}

// term is one holder's time. It is renewed while its process lives and is not paused.
type term struct {
	lease    *simLease
	ctx      context.Context
	cancel   context.CancelFunc
	mu       sync.Mutex
	deadline time.Time
}

func (l *simLease) acquire(ctx, life context.Context, g *gate) (bridge.Lease, error) {
	for {
		g.pass()
		l.mu.Lock()
		if l.holder == nil || !l.holder.Held() {
			t := &term{lease: l, deadline: time.Now().Add(l.ttl)}
			t.ctx, t.cancel = context.WithCancel(life)
			l.holder = t
			l.mu.Unlock()
			go t.renew(g)
			return t, nil
		}
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(l.ttl / 10):
		}
	}
}

func (t *term) renew(g *gate) {
	defer t.cancel()
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-time.After(t.lease.ttl / 3):
		}
		g.pass()
		t.lease.mu.Lock()
		mine := t.lease.holder == t && t.Held()
		if mine {
			t.mu.Lock()
			t.deadline = time.Now().Add(t.lease.ttl)
			t.mu.Unlock()
		}
		t.lease.mu.Unlock()
		if !mine {
			return
		}
	}
}

func (t *term) Context() context.Context { return t.ctx }

func (t *term) Held() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Now().Before(t.deadline) && t.ctx.Err() == nil
}

func (t *term) Release(context.Context) error {
	t.lease.mu.Lock()
	if t.lease.holder == t {
		t.lease.holder = nil
	}
	t.lease.mu.Unlock()
	t.cancel()
	return nil
}
