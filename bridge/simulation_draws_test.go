package bridge_test

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"zulip-nats/bridge"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/model"
	"zulip-nats/subjects"
	"zulip-nats/zulipsim"
)

// What the simulation draws: what the world is like (setUp), what happens in it (act),
// and what goes wrong with each request to the stream (faults). Each draw has a name and
// is counted, so that one that never happens is seen.

// tally counts draws over all seeds.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

var drawn = tally{n: map[string]int{}}

func (d *tally) count(what string) {
	d.mu.Lock()
	d.n[what]++
	d.mu.Unlock()
}

// everyDraw are the names of all that is drawn.
var everyDraw = strings.Split(`all public channels|narrow|event types with message|event types without message|excluded types|no direct messages|direct messages|drafts|a lease|a lease that shares JetStream's fate|a lease that everybody holds|no lease|`+
	`two instances|Zulip takes its time|busy organization|a rush|a change-over because of the pace|messages before the first start|start from a message|start from a time|at most so many refilled|refilling off|refilled at most so old|`+
	`max_age|max_msgs|max_bytes|max_msgs_per_subject|shared stream|server without the filter|edits are not told|clocks apart|clocks drift|oversize events|`+
	`an object store with a limit|CloudEvents|subjects by place|answers in pieces|by place.channel|by place.direct|by place.none|by place, looked up|moved to another channel|something sent while registering|what is deleted is erased|`+
	`edited message|deleted message|deleted together|an answer to a poll|a deletion that the stream tells|`+
	`traffic|large messages|late transaction|later than a minute|redelivery|odd event|start|kill|stop|stop while JetStream does not answer|pause|go on|the lease is asked for|`+
	`jetstream down|jetstream up|jetstream reconnects|jetstream hangs|jetstream worse|a leader is deposed|NATS's clock is put|Zulip's and NATS's clocks are put|`+
	`foreign, on a subject of ours|foreign, on zulip.acme.message|foreign, on zulip.acme.bridge.queue|foreign, on others' subjects|foreign, many|`+
	`the oldest messages age out|queues expire|zulip crashes|zulip restarts|account replaced|`+
	`options change: slim presence|options change: event types|options change: narrow|options change: all public channels|options change: no direct messages|`+
	`edited: shared|edited: our own again|edited: a limit|edited: max_msg_size|edited: retention interest|`+
	`with the state|something about people and channels|a state is asked for|options change: state|a whole state|a reader knows all in the end|`+
	`history refused once|history refused for long|history fails for long|history tells to wait an hour|`+
	`zulip: 429|zulip: 502|zulip: bad queue|zulip: half body|zulip: html 200|zulip: register 5|zulip: reset|`+
	`a bad event whose write goes wrong|others wrote as many behind it|stream restored|stream purged|newest messages removed|stream deleted|`+
	`stale at|stale info|stale last|stale last on|stale next|stale object|stale scan|`+
	`fails: unclear|fails: refused|fails: unavailable|fails: full|fails: forbidden|fails: too large|fails: gone|fails: wrong|fails: ConfigError|`+
	`put object fails|no answer|a ghost|late|stored in part|a scan breaks off`, "|")

// rareDraw is drawn about three times in 2000 seeds, and so by chance not at all in some
// runs: in which order what happens in one instant draws is not the seed's to say.
const rareDraw = "put object fails"

// report prints the counts, and complains of what was never drawn where there were enough
// seeds for everything.
func (d *tally) report(t *testing.T, seeds int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(d.n)) {
		if !strings.HasPrefix(name, "asked: ") {
			lines = append(lines, fmt.Sprintf("%7d %s", d.n[name], name))
		}
		if !slices.Contains(everyDraw, name) && !strings.HasPrefix(name, "asked: ") {
			t.Errorf("%q is drawn, and is not in the list of draws", name)
		}
	}
	fmt.Fprintf(t.Output(), "drawn in %d seeds:\n%s\n", seeds, strings.Join(lines, "\n"))
	for _, name := range everyDraw {
		op, isStale := strings.CutPrefix(name, "stale ")
		switch {
		case d.n[name] > 0 || seeds < 2000:
		case name == rareDraw && seeds < 8000:
			fmt.Fprintf(t.Output(), "%q was not drawn, which needs more seeds\n", name)
		case isStale && d.n["asked: "+op] < 1000:
			fmt.Fprintf(t.Output(), "%q was not drawn: the bridge asked for it %d times\n", name, d.n["asked: "+op])
		default:
			t.Errorf("%q was never drawn", name)
		}
	}
}

// drew takes note of a draw.
func (w *world) drew(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	w.log.Info().Msg("--- " + what)
	drawn.count(what)
}

// one says yes once in n times.
func (w *world) one(n int) bool { return w.rng.IntN(n) == 0 }

// allowances is what happened that the bridge cannot help, by which the checker judges
// what it finds.
type allowances struct {
	// cloud: all messages are CloudEvents too.
	cloud bool
	sim   bool // the world is drawn: nothing but what is noted here may explain what is found
	// cut is when a process was killed, or stopped while JetStream did not answer, or
	// stood still for longer than it gives a request, or ended because of a setting: a
	// queue that it had just made may be left over.
	cut          []time.Time
	truncations  []time.Time // when the stream lost something by itself
	forgotten    int         // how often nothing of ours was left in it then
	configErrors atomic.Bool // some setting of the stream was wrong
	bounds       bool        // on what is refilled
	limits       bool        // of the stream
	hour         bool        // history told to wait for one
	history      bool        // was made to refuse, to fail or to tell to wait
	accounts     int         // replaced
	foreign      bool
	clockPut     []put // that of Zulip
	paused       bool  // a process stood still
	erases       bool  // what is deleted is erased
	redelivered  map[int64]int
	interest     []span
	before       int64           // the largest id of the messages from before the first start
	used         []wanted        // what instances were started with
	start        bridgeStartFrom // where the first start begins
	startFrom    bool
	// What instances were ever told to leave out; and whether one took direct messages.
	excludedTypes          []string
	noDirect, wantedDirect bool
	since                  time.Time // when the first instance was started that wants messages
}

type bridgeStartFrom struct {
	id   int64
	sent time.Time
}

// put is when Zulip's clock was put, and by how much.
type put struct {
	at time.Time
	by time.Duration
}

// unclear says whether it may not be known of what was committed then whether it was sent
// before a message of another time: until the clock shows again what it had shown, and
// for the time of a transaction before and after that.
func (p put) unclear(committed time.Time) bool {
	const around = 4 * time.Minute
	return committed.After(p.at.Add(-around)) && committed.Before(p.at.Add(max(-p.by, 0)+around))
}

// span is a time in which the stream's retention was interest; silent: clients were not
// told.
type span struct {
	from, to time.Time
	silent   bool
}

// wanted is which messages an instance's options ask for.
type wanted struct {
	messages bool
	channel  string // "": all
	noDirect bool
}

func (w *world) used(o poller.Options) {
	use := wanted{messages: (o.EventTypes == nil || slices.Contains(o.EventTypes, "message")) &&
		!slices.Contains(o.ExcludeTypes, "message"), noDirect: o.NoDirectMessages}
	w.told.excludedTypes = append(w.told.excludedTypes, o.ExcludeTypes...)
	w.told.noDirect = w.told.noDirect || o.NoDirectMessages
	w.told.wantedDirect = w.told.wantedDirect || !o.NoDirectMessages
	for _, n := range o.Narrow {
		use.channel = n[1]
	}
	if use.messages && w.told.since.IsZero() {
		w.told.since = time.Now()
	}
	if !slices.Contains(w.told.used, use) {
		w.told.used = append(w.told.used, use)
	}
}

// simClock is a clock that is apart from everybody's, and drifts.
type simClock struct {
	offset time.Duration
	drift  float64
	since  time.Time
}

func (c simClock) now() time.Time {
	now := time.Now()
	return now.Add(c.offset + time.Duration(c.drift*float64(now.Sub(c.since))))
}

func (w *world) clock(n int) func() time.Time {
	return func() time.Time {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.clocks[n].now()
	}
}

func (w *world) otherClock() simClock {
	apart := []time.Duration{time.Second, 10 * time.Second, 2 * time.Minute, time.Hour}[w.rng.IntN(4)]
	return simClock{offset: time.Duration(w.rng.Int64N(int64(2*apart))) - apart, since: time.Now()}
}

const (
	clockNATS = iota
	clockZulip
)

const otherAccount = "other-bot@acme.example.com"

var channels = []string{"general", "random", "build > notes"}

var eventTypes = [][]string{nil, {"message", "reaction", "user_status"}, {"reaction", "user_status"}}

// setUp draws the world.
func (w *world) setUp() {
	w.told.sim, w.told.redelivered = true, map[int64]int{}
	w.zulip.Account(otherAccount) // its history begins with it
	for _, email := range population {
		w.zulip.Person(email, email)
	}
	for _, name := range channels { // history refuses a narrow that names none
		w.zulip.Channel(name)
	}
	w.options.Life = []time.Duration{10 * time.Minute, time.Hour, 24 * time.Hour}[w.rng.IntN(3)]
	if w.options.AllPublicStreams = w.one(4); w.options.AllPublicStreams {
		w.drew("all public channels")
	}
	if w.one(8) && !w.moves() {
		w.drew("narrow")
		w.options.Narrow = [][2]string{{"channel", "general"}}
	}
	switch w.rng.IntN(12) {
	case 0:
		w.drew("event types with message")
		w.options.EventTypes = eventTypes[1]
	case 1:
		w.drew("event types without message")
		w.options.EventTypes = eventTypes[2]
	}
	if w.one(10) {
		w.drew("excluded types")
		w.options.ExcludeTypes = [][]string{{"user_status"}, {"reaction", "update_message_flags"},
			{"user_status", "message"}}[w.rng.IntN(3)]
	}
	if w.one(6) {
		w.drew("no direct messages")
		w.options.NoDirectMessages = true
	}
	if w.one(3) {
		w.zulip.FeatureLevel = 500
	}
	w.zulip.NoGzip = !w.one(4)
	if w.one(3) {
		w.drew("Zulip takes its time")
		w.zulip.RoundTrip = time.Duration(20+w.rng.IntN(300)) * time.Millisecond
	}
	if w.one(150) {
		w.drew("busy organization")
		w.busy = true
		w.options.Life, w.zulip.RoundTrip, w.zulip.SweepEvery = time.Minute, 60*time.Millisecond, 5*time.Second
		w.options.EventTypes, w.options.ExcludeTypes = nil, nil
	}
	switch leases := w.rng.IntN(5); {
	case w.acquire != nil:
	case leases == 0:
		w.drew("a lease")
		w.lease = &simLease{ttl: 4 * time.Second}
	case leases == 1:
		w.drew("a lease that shares JetStream's fate")
		w.lease = &simLease{ttl: 4 * time.Second, shared: true}
	case leases == 2:
		w.drew("a lease that everybody holds")
		w.lease = &simLease{forged: true}
	default:
		w.drew("no lease")
	}
	if w.one(2) { // what comes while a queue is registered is counted in register's last_event_id, and in the queue all the same
		w.zulip.DuringRegister = func(string) {
			drawn.count("something sent while registering")
			w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "while registering"})
		}
	}
	w.setUpStream()
	w.setUpClocks()
	w.setUpPast()
	var configure []func(*bridge.Config)
	if w.one(8) {
		w.told.bounds = true
		n, age := 1+w.rng.IntN(20), time.Duration(1+w.rng.IntN(300))*time.Second
		switch w.rng.IntN(5) {
		case 0, 1:
			w.drew("at most so many refilled")
			configure = append(configure, func(c *bridge.Config) { c.RefillMaxMessages = n })
		case 2, 3:
			w.drew("refilled at most so old")
			configure = append(configure, func(c *bridge.Config) { c.RefillMaxAge = age })
		default:
			w.drew("refilling off")
			configure = append(configure, func(c *bridge.Config) { c.RefillMaxMessages = -1 })
		}
	}
	if w.told.erases = w.one(2); w.told.erases {
		w.drew("what is deleted is erased")
		configure = append(configure, func(c *bridge.Config) { c.EraseDeleted = true })
	}
	if s := w.told.start; w.told.startFrom {
		configure = append(configure, func(c *bridge.Config) {
			c.StartFrom = bridge.StartFrom{MessageID: s.id,
				Time: s.sent}
		})
	}
	if w.zulip.Seed%4 == 0 { // by the seed itself, so that all other draws stay what they were
		w.drew("CloudEvents")
		w.told.cloud = true
		configure = append(configure, func(c *bridge.Config) { c.CloudEvents = true })
	}
	w.configure = func(c *bridge.Config) {
		for _, f := range configure {
			f(c)
		}
	}
	w.instance()
	if w.one(2) {
		w.drew("two instances")
		w.instance()
	}
	if w.one(3) {
		w.drew("with the state")
		w.drawState()
	}
}

// drawState lets instances started from now on ask for the state.
func (w *world) drawState() {
	w.state = slices.DeleteFunc(poller.Sections(), func(poller.Section) bool { return w.one(8) })
}

// population is those who are there from the start: whoever is made by a message later
// comes without an event.
var population = []string{zulipsim.DefaultSender, "grace@example.com"}

// organized is one thing that happens to people and channels.
func (w *world) organized() {
	n := w.rng.IntN(50)
	switch w.rng.IntN(7) {
	case 0:
		w.zulip.Join(fmt.Sprintf("person%d@example.com", n), fmt.Sprintf("Person %d", n))
	case 1:
		w.zulip.Account(population[n%2]).Rename(fmt.Sprintf("Renamed %d", n))
	case 2:
		w.zulip.Account(population[n%2]).SetActive(n%3 > 0)
	case 3:
		w.zulip.CreateChannel(fmt.Sprintf("channel %d", n%10))
	case 4:
		w.zulip.CreateChannel(fmt.Sprintf("channel %d", n%10)).Rename(fmt.Sprintf("channel %d", n))
	case 5:
		w.zulip.CreateChannel(fmt.Sprintf("channel %d", n%10)).Archive()
	default:
		if len(w.lastIDs) > 0 {
			topic := fmt.Sprintf("topic %d", n) // and no other channel: a narrow goes by that
			w.zulip.EditMessage(w.lastIDs[w.rng.IntN(len(w.lastIDs))], zulipsim.Edit{Topic: &topic})
		}
	}
}

func (w *world) setUpStream() {
	if w.zulip.Seed%3 == 0 { // by the seed itself, so that all other draws stay what they were
		w.drew("subjects by place")
		w.realm = w.realm.By(subjects.ByPlace)
	}
	if n := w.zulip.Seed % 5; n < 3 {
		w.drew("answers in pieces")
		w.maxBatch = 1 + int(n)
	}
	if w.one(5) {
		w.limit(&w.jet.Settings)
	}
	switch w.rng.IntN(12) {
	case 0, 1:
		w.drew("shared stream")
		w.jet.Shared = true
	case 2:
		w.drew("server without the filter")
		w.jet.NoFilter = true
	}
	if w.one(3) {
		w.drew("edits are not told")
		w.jet.Silent = true
	}
	if w.one(6) {
		w.drew("oversize events")
		w.jet.MaxPayload = 8192 + w.rng.IntN(14000)
		if w.one(2) {
			w.drew("an object store with a limit")
			w.jet.MaxObject = 20000
		}
	}
}

// limit draws one limit of the stream.
func (w *world) limit(s *model.Settings) {
	w.told.limits = true
	switch w.rng.IntN(4) {
	case 0:
		w.drew("max_age")
		s.MaxAge = time.Duration(2+w.rng.IntN(20)) * time.Minute
	case 1:
		w.drew("max_msgs")
		s.MaxMsgs = 20 + w.rng.IntN(150)
	case 2:
		w.drew("max_bytes")
		s.MaxBytes = 40000 + w.rng.IntN(100000)
	default:
		if w.realm.Layout() == subjects.ByPlace {
			return // it is refused
		}
		w.drew("max_msgs_per_subject")
		s.MaxPerSubject = 1 + w.rng.IntN(40)
	}
}

func (w *world) setUpClocks() {
	if !w.one(3) {
		return
	}
	w.drew("clocks apart")
	w.clocks = [2]simClock{w.otherClock(), w.otherClock()}
	if w.one(2) {
		w.drew("clocks drift")
		w.clocks[clockNATS].drift = (w.rng.Float64() - 0.5) / 50
		w.clocks[clockZulip].drift = (w.rng.Float64() - 0.5) / 500
	}
	w.jet.SetClock(w.clock(clockNATS))
	w.zulip.Clock = w.clock(clockZulip)
}

// setUpPast lets the organization have a history, long ago, and perhaps the first start
// go back in it.
func (w *world) setUpPast() {
	if !w.one(3) {
		return
	}
	w.drew("messages before the first start")
	for range 5 + w.rng.IntN(60) {
		w.traffic()
		time.Sleep(time.Duration(w.rng.IntN(60)) * time.Second)
	}
	w.commits.Wait()
	past := w.zulip.Messages()
	if len(past) == 0 {
		return
	}
	w.told.before = past[len(past)-1].ID
	time.Sleep(3 * time.Hour)
	if !w.one(3) {
		return
	}
	w.told.startFrom = true
	from := past[w.rng.IntN(len(past))]
	if w.one(2) {
		w.drew("start from a message")
		w.told.start.id = from.ID
	} else {
		w.drew("start from a time")
		w.told.start.sent = from.Time.Truncate(time.Second)
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
	if w.busy && w.one(15) {
		w.rush()
		return
	}
	switch dice := w.rng.IntN(1000); {
	case dice < traffics || dice >= processes:
		w.happen(one, dice)
	case dice < 540:
		w.drew("start")
		one.start()
	case dice < 610:
		w.drew("kill")
		one.kill()
	case dice < 640:
		w.drew("stop")
		if !w.answers() {
			w.drew("stop while JetStream does not answer")
		}
		one.stop()
	case dice < 665:
		w.drew("pause")
		w.told.paused = true
		one.gate.close()
		w.told.cut = append(w.told.cut, time.Now())
	case dice < 673 && w.lease != nil:
		w.drew("the lease is asked for")
		w.lease.handOver()
	default:
		w.drew("go on")
		for _, i := range w.instances {
			i.gate.open()
		}
	}
}

// Of a dice of a thousand, what is below traffics is traffic, and what is between that and
// processes is about processes.
const traffics, processes = 390, 705

// happen lets one thing happen that is not about processes, by a dice.
func (w *world) happen(one *instance, dice int) {
	switch {
	case dice < traffics:
		w.drew("traffic")
		for range 1 + w.rng.IntN(12) {
			w.traffic()
			if w.state != nil && w.one(4) {
				drawn.count("something about people and channels")
				w.organized()
			}
		}
		if w.state != nil && w.one(20) && one.bridge != nil {
			w.drew("a state is asked for")
			one.bridge.AskState()
		}
	case dice < 735:
		w.drew("jetstream down")
		w.setDown(true)
	case dice < 780:
		w.drew("jetstream up")
		w.setDown(false)
	case dice < 785:
		w.drew("jetstream reconnects")
		w.jet.Reconnect()
	case dice < 805:
		w.drew("jetstream hangs")
		w.hang(time.Duration(500+w.rng.IntN(12000)) * time.Millisecond)
	case dice < 830:
		w.drew("jetstream worse")
		w.setBadDay([]float64{0, 0.05, 0.2, 0.5}[w.rng.IntN(4)])
	case dice < 850:
		w.drew("a leader is deposed")
		w.depose()
	case dice < 865:
		w.foreign()
	case dice < 870:
		w.drew("a bad event whose write goes wrong")
		w.mu.Lock()
		w.onWrite = &model.Fault{Fail: []stream.Kind{stream.TooLarge, stream.Refused, stream.Unclear}[w.rng.IntN(3)]}
		w.mu.Unlock()
		w.odd++
		w.zulip.EmitRaw(fmt.Sprintf(`{"type":"message","id":%%ID%%,"n":%d,}`, w.odd))
	case dice < 880:
		w.drew("the oldest messages age out")
		w.told.limits = true
		w.jet.Age(1 + w.rng.IntN(30))
	case dice < 905:
		w.zulipTrouble()
	case dice < 920:
		w.historyTrouble()
	case dice < 945:
		w.drew("queues expire")
		for _, q := range w.zulip.Queues() {
			if q.Dead == "" && w.one(2) {
				w.zulip.ExpireQueue(q.ID)
			}
		}
	case dice < 953:
		w.drew("zulip crashes")
		w.zulip.Crash()
	case dice < 968:
		w.optionsChange()
	case dice < 974:
		w.clockStep()
	case dice < 976:
		w.replaceAccount()
	case dice < 990:
		w.edit()
	default:
		w.streamTrouble()
	}
}

// rush is so much traffic that hardly a poll waits, in answers that are read in several
// batches.
func (w *world) rush() {
	w.drew("a rush")
	if !w.one(4) { // mostly all is well besides
		w.setBadDay(0)
		w.setDown(false)
		w.instances[0].gate.open()
		w.instances[0].start()
	}
	text := strings.Repeat("all at once ", 50)
	for until := time.Now().Add(time.Duration(50+w.rng.IntN(20)) * time.Second); time.Now().Before(until); {
		w.lastIDs = append(w.lastIDs, w.zulip.SendMessage(zulipsim.Message{Channel: channels[w.rng.IntN(3)], Topic: "t",
			Content: text}))
		time.Sleep(time.Duration(8+w.rng.IntN(6)) * time.Millisecond)
	}
}

// traffic is one thing that people do at Zulip.
func (w *world) traffic() {
	m := zulipsim.Message{Channel: channels[w.rng.IntN(3)], Topic: "t",
		Sender: []string{"ada@example.com", "grace@example.com"}[w.rng.IntN(2)]}
	if w.one(10) {
		drawn.count("direct messages")
		m.Channel, m.Topic, m.To = "", "", []string{simAccount, otherAccount}
	}
	text := w.newText(len(m.To) > 0)
	m.Content = text
	sent := func(id int64) {
		w.lastIDs, w.texts[id] = append(w.lastIDs, id), append(w.texts[id], text)
		if len(m.To) > 0 {
			w.direct = append(w.direct, id)
		}
	}
	switch w.rng.IntN(30) {
	case 17:
		drawn.count("drafts")
		w.zulip.Emit(map[string]any{"type": "drafts", "op": "add", "drafts": []any{map[string]any{"id": 1, "type": "private",
			"content": "secret draft"}}})
	case 0, 1: // ids follow insertion, events follow commit
		drawn.count("late transaction")
		id, commit := w.zulip.SendDelayed(m)
		sent(id)
		late := time.Duration(w.rng.IntN(3000)) * time.Millisecond
		if w.one(8) {
			drawn.count("later than a minute")
			late = time.Duration(60+w.rng.IntN(40)) * time.Second
		}
		w.commits.Go(func() { time.Sleep(late); commit() })
	case 2, 3, 4:
		if len(w.lastIDs) > 0 {
			id := w.lastIDs[w.rng.IntN(len(w.lastIDs))]
			if w.moves() && id%3 == 0 && !slices.Contains(w.direct, id) {
				drawn.count("moved to another channel")
				w.zulip.EditMessage(id, zulipsim.Edit{Channel: &channels[id/3%3]})
			}
			w.zulip.React(id, "ada@example.com", "tada")
		}
	case 5, 6:
		if len(w.lastIDs) > 0 {
			w.zulip.Flag(w.account.Email, "add", "read", w.lastIDs[w.rng.IntN(len(w.lastIDs))])
		}
	case 7, 8:
		w.zulip.Emit(map[string]any{"type": "user_status", "user_id": w.rng.IntN(100), "status_text": "busy"})
	case 9, 10:
		drawn.count("odd event")
		w.odd++
		w.zulip.EmitRaw([]string{
			fmt.Sprintf(`{"type":"a.b","id":%%ID%%,"n":%d}`, w.odd),
			fmt.Sprintf(`{"type":"message","id":%%ID%%,"n":%d,}`, w.odd),
			fmt.Sprintf(`{"id":%%ID%%,"n":%d}`, w.odd),
			fmt.Sprintf(`{"type":"realm","op":"update","n":%d,"id":%%ID%%}`, w.odd),
		}[w.rng.IntN(4)])
	case 11:
		if !w.one(6) {
			break
		}
		// Together they make answers that are read in several batches.
		drawn.count("large messages")
		for range 2 + w.rng.IntN(10) {
			text = w.newText(len(m.To) > 0)
			m.Content = text + strings.Repeat(fmt.Sprintf("%d ", w.rng.Uint32()), 400+w.rng.IntN(400))
			sent(w.zulip.SendMessage(m))
		}
	case 12:
		if w.jet.MaxPayload > 0 {
			w.zulip.Emit(map[string]any{"type": "user_status", "user_id": w.rng.IntN(100),
				"status_text": strings.Repeat("x", w.rng.IntN(30000))})
		} else if len(w.lastIDs) > 0 && w.one(2) && w.told.redelivered != nil {
			id := w.lastIDs[w.rng.IntN(len(w.lastIDs))]
			w.told.redelivered[id]++
			drawn.count("redelivery")
			w.zulip.Redeliver(id)
		}
	case 13:
		// History shows what a message said before, and so it may grow too large for the limit.
		if id := w.someText(); id != 0 && w.jet.MaxObject == 0 {
			drawn.count("edited message")
			text = w.newText(slices.Contains(w.direct, id))
			w.texts[id] = append(w.texts[id], text)
			if w.one(4) {
				text += strings.Repeat(" and more", 900+w.rng.IntN(300))
			}
			w.zulip.EditMessage(id, zulipsim.Edit{Content: &text})
		}
	case 14:
		if id := w.someText(); id != 0 && !w.deleted[id] && w.one(2) {
			drawn.count("an answer to a poll")
			text = w.newText(slices.Contains(w.direct, id))
			w.texts[id] = append(w.texts[id], text)
			w.zulip.Emit(map[string]any{"type": "submessage", "message_id": id, "content": text})
		}
	case 15:
		if id := w.someText(); id != 0 {
			drawn.count("deleted message")
			w.delete(id)
		}
	case 16:
		if w.one(3) {
			drawn.count("deleted together")
			var ids []int64
			for range 2 + w.rng.IntN(8) {
				ids = append(ids, w.someText())
			}
			slices.Sort(ids)
			w.delete(slices.Compact(ids)...)
		}
	default:
		sent(w.zulip.SendMessage(m))
	}
}

// moves says whether messages are moved to other channels: where no queue ever has a
// narrow, which would lose sight of them.
func (w *world) moves() bool { return w.zulip.Seed%6 == 0 }

// newText is a text that nothing else has in it, and that tells whether it is direct.
func (w *world) newText(direct bool) string {
	if direct {
		return fmt.Sprintf("secret %d;", w.rng.Uint64())
	}
	return fmt.Sprintf("message %d;", w.rng.Uint64())
}

func (w *world) delete(ids ...int64) {
	w.zulip.DeleteMessages(ids...)
	for _, id := range ids {
		w.deleted[id] = true
	}
}

// someText is a message whose texts are known, 0 if there is none. It may be deleted, or
// not there yet; a newer one is as likely as all others.
func (w *world) someText() int64 {
	n := len(w.lastIDs)
	if n == 0 {
		return 0
	}
	from := 0
	if w.one(2) {
		from = max(0, n-10)
	}
	if id := w.lastIDs[from+w.rng.IntN(n-from)]; w.texts[id] != nil {
		return id
	}
	return 0
}

// zulipTrouble lets something go wrong on the Zulip side for a while.
func (w *world) zulipTrouble() {
	faults := map[string]zulipsim.Fault{
		"502": {On: "any", Times: 1 + w.rng.IntN(4), Status: 502, Body: "<html>502</html>",
			ContentType: "text/html"},
		"429": {On: "events", Times: 1, Status: 429, Header: http.Header{"Retry-After": {"3.5"}},
			Body: `{"result":"error","msg":"limit","code":"RATE_LIMIT_HIT","retry-after":3.5}`},
		"reset":     {On: "any", Times: 1 + w.rng.IntN(3), Reset: true},
		"half body": {On: "events", Times: 1 + w.rng.IntN(3), HalfBody: true},
		"bad queue": {On: "events", Times: 1 + w.rng.IntN(3), Status: 400,
			Body: `{"result":"error","msg":"Bad event queue ID","code":"BAD_EVENT_QUEUE_ID"}`},
		"html 200": {On: "any", Times: 1 + w.rng.IntN(3), Status: 200, Body: "<html>hello</html>",
			ContentType: "text/html"},
		"register 5": {On: "register", Times: 1 + w.rng.IntN(3), Status: 500,
			Body: `{"result":"error","msg":"Internal server error"}`},
	}
	names := slices.Sorted(maps.Keys(faults))
	if w.one(3) {
		w.drew("zulip restarts")
		w.zulip.Restart(time.Duration(1+w.rng.IntN(10)) * time.Second)
		return
	}
	name := names[w.rng.IntN(len(names))]
	w.drew("zulip: %s", name)
	w.zulip.Fault(faults[name])
}

// historyTrouble lets Zulip not show its history, once or for long.
func (w *world) historyTrouble() {
	w.told.history = true
	howLong := time.Duration(1+w.rng.IntN(20)) * time.Minute
	refusal := zulipsim.Fault{On: zulipsim.History, Status: 400,
		Body: `{"result":"error","msg":"Invalid narrow operator: unknown channel","code":"BAD_NARROW"}`}
	switch w.rng.IntN(4) {
	case 0:
		w.drew("history refused once")
		refusal.Times = 1
		w.zulip.Fault(refusal)
	case 1:
		w.drew("history refused for long")
		refusal.For = howLong
		w.zulip.Fault(refusal)
	case 2:
		w.drew("history fails for long")
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, For: howLong, Status: 500,
			Body: `{"result":"error","msg":"Internal server error"}`})
	default:
		w.drew("history tells to wait an hour")
		w.told.hour = true
		w.zulip.Fault(zulipsim.Fault{On: zulipsim.History, Times: 1, Status: 429,
			Header: http.Header{"Retry-After": {"3600"}},
			Body:   `{"result":"error","msg":"limit","code":"RATE_LIMIT_HIT","retry-after":3600}`})
	}
}

func (w *world) optionsChange() {
	switch w.rng.IntN(7) {
	case 0, 1:
		w.drew("options change: slim presence")
		w.options.SlimPresence = !w.options.SlimPresence
	case 2:
		w.drew("options change: event types")
		w.options.EventTypes = eventTypes[w.rng.IntN(len(eventTypes))]
	case 3:
		if w.moves() {
			break
		}
		w.drew("options change: narrow")
		if w.options.Narrow = [][2]string{{"channel", []string{"general", "random"}[w.rng.IntN(2)]}}; w.one(2) {
			w.options.Narrow = nil
		}
	case 4:
		w.drew("options change: state")
		if w.state = nil; w.one(2) {
			w.drawState()
		}
	case 5:
		w.drew("options change: no direct messages")
		w.options.NoDirectMessages = !w.options.NoDirectMessages
	default:
		w.drew("options change: all public channels")
		w.options.AllPublicStreams = !w.options.AllPublicStreams
	}
}

// clockStep puts a clock: that of NATS, or, which is the same to everybody, our own.
func (w *world) clockStep() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.clocks[clockNATS].since.IsZero() {
		return // they are not apart in this world
	}
	by := w.otherClock().offset
	w.clocks[clockNATS].offset += by
	if w.one(4) {
		w.clocks[clockZulip].offset += by
		w.drew("Zulip's and NATS's clocks are put")
		w.told.clockPut = append(w.told.clockPut, put{time.Now(), by})
		return
	}
	w.drew("NATS's clock is put")
}

// replaceAccount puts another bot in the zuliprc, and the old one is deactivated.
func (w *world) replaceAccount() {
	w.drew("account replaced")
	w.told.accounts++
	old := w.account
	other := w.zulip.Account(cmp.Or(map[string]string{simAccount: otherAccount}[old.Email], simAccount))
	other.Update(func(a *zulipsim.Account) { a.Deactivated = false })
	w.mu.Lock()
	w.account = other
	w.mu.Unlock()
	old.Update(func(a *zulipsim.Account) { a.Deactivated = true })
}

// foreign lets somebody else publish.
func (w *world) foreign() {
	w.told.foreign = true
	n := 1
	if w.one(4) {
		w.drew("foreign, many")
		n = 20 + w.rng.IntN(60)
	}
	subject := "zulip.other.message"
	switch w.rng.IntN(6) {
	case 0:
		w.drew("foreign, on a subject of ours")
		subject = "zulip.acme.foreign"
	case 1:
		w.drew("foreign, on zulip.acme.message")
		subject, _ = w.realm.Event("message", subjects.Direct)
	case 2:
		w.drew("foreign, on zulip.acme.bridge.queue")
		subject = "zulip.acme.bridge.queue"
	default:
		w.drew("foreign, on others' subjects")
	}
	for range n {
		w.jet.Publish(subject, []byte("hello"))
	}
	w.tailGone()
}

// edit edits the stream's settings under way.
func (w *world) edit() {
	switch w.rng.IntN(6) {
	case 0, 1:
		w.jet.Edit(func(s *model.Settings) {
			if s.Shared = !s.Shared; s.Shared {
				w.drew("edited: shared")
				if w.jet.NoFilter {
					w.told.configErrors.Store(true)
				}
			} else {
				w.drew("edited: our own again")
			}
		})
	case 2, 3:
		w.drew("edited: a limit")
		w.jet.Edit(func(s *model.Settings) {
			s.MaxAge, s.MaxBytes, s.MaxMsgs, s.MaxPerSubject = 0, 0, 0, 0
			if w.one(2) {
				w.limit(s)
			}
		})
		w.tailGone()
	case 4:
		w.drew("edited: max_msg_size")
		w.jet.Edit(func(s *model.Settings) {
			if s.MaxMsgSize = 8192 + w.rng.IntN(4000); w.one(3) {
				s.MaxMsgSize = 0
			}
		})
	default:
		if w.one(2) || w.jet.Gone() {
			return
		}
		w.drew("edited: retention interest")
		w.told.configErrors.Store(true)
		w.truncated = true
		w.told.truncations = append(w.told.truncations, time.Now())
		w.told.interest = append(w.told.interest, span{from: time.Now(), silent: w.jet.Silent})
		w.jet.Edit(func(s *model.Settings) { s.Interest = true })
	}
}

// endInterest puts the retention right again.
func (w *world) endInterest() {
	if n := len(w.told.interest); n > 0 && w.told.interest[n-1].to.IsZero() {
		w.told.interest[n-1].to = time.Now()
		w.jet.Edit(func(s *model.Settings) { s.Interest = false })
	}
}

// streamTrouble lets the stream itself lose something.
func (w *world) streamTrouble() {
	w.truncated = true
	w.told.truncations = append(w.told.truncations, time.Now())
	switch w.rng.IntN(4) {
	case 0:
		w.drew("stream restored")
		before := len(w.jet.Messages())
		w.jet.Restore(1 + w.rng.IntN(10))
		if n := before - len(w.jet.Messages()); w.one(2) { // the sequence is soon what it was
			w.drew("others wrote as many behind it")
			w.told.foreign = true
			for range n {
				w.jet.Publish("zulip.acme.foreign", []byte("hello"))
			}
		}
	case 1:
		w.drew("stream purged")
		w.jet.Purge()
	case 2:
		w.drew("newest messages removed")
		w.jet.Remove(1 + w.rng.IntN(3))
	default:
		w.drew("stream deleted")
		w.endInterest() // the next one is made as it should be
		w.jet.Delete()
	}
	w.tailGone()
}

// tailGone notes if nothing of ours is in the stream any more.
func (w *world) tailGone() {
	if !slices.ContainsFunc(w.jet.Messages(), func(m stream.Stored) bool { return ours(&m) }) {
		w.told.forgotten++
	}
}

func (w *world) setBadDay(p float64) {
	w.mu.Lock()
	w.badDay = p
	w.mu.Unlock()
}

func (w *world) setDown(down bool) {
	w.mu.Lock()
	w.down = down
	w.mu.Unlock()
	if down {
		w.jet.Down()
	} else {
		w.jet.Up()
	}
}

func (w *world) hang(d time.Duration) {
	w.mu.Lock()
	w.hung = time.Now().Add(d)
	w.mu.Unlock()
}

func (w *world) depose() {
	w.mu.Lock()
	w.deposed = time.Now().Add(10 * time.Second)
	w.mu.Unlock()
	w.jet.Depose()
}

// answers says whether all requests to the stream are answered now.
func (w *world) answers() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.down && w.badDay == 0 && !time.Now().Before(w.hung)
}

// endTrouble puts right what is wrong, and nothing else.
func (w *world) endTrouble() {
	w.setBadDay(0)
	w.mu.Lock()
	w.hung, w.deposed, w.onWrite = time.Time{}, time.Time{}, nil
	down := w.down
	w.mu.Unlock()
	if down {
		w.setDown(false)
	}
	w.endInterest()
	if w.jet.NoFilter {
		w.jet.Edit(func(s *model.Settings) { s.Shared = false })
	}
	w.zulip.ClearFaults()
}

// faults draws what goes wrong with a request to the stream.
func (w *world) faults(op string) (f model.Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.told.sim && op != "append" && op != "ask" {
		drawn.count("asked: " + op)
	}
	if w.onWrite != nil && op == "append" {
		f, w.onWrite = *w.onWrite, nil
		return f
	}
	if hung := time.Until(w.hung); hung > 0 {
		// The server has the request, and goes on when it wakes up; or it had done it,
		// and its answer was held.
		f.Deaf = hung >= model.Patience
		if op != "append" || !f.Deaf || model.Coin(w.luck, 0.5) {
			f.Late = hung
		}
		return f
	}
	read := op != "append" && op != "put object" && op != "purge" && op != "ask" && !strings.HasPrefix(op, "erase")
	if read && time.Now().Before(w.deposed) && model.Coin(w.luck, 0.5) {
		drawn.count("stale " + op)
		f.Stale = true
		return f
	}
	if w.badDay == 0 || !model.Coin(w.luck, w.badDay) {
		return f
	}
	switch w.luck.IntN(6) {
	case 0:
		w.fail(op, &f)
	case 1:
		drawn.count("no answer")
		f.Deaf = true
	case 2:
		drawn.count("a ghost")
		f.Deaf, f.Late = true, time.Duration(w.luck.IntN(20000))*time.Millisecond
	case 3:
		drawn.count("late")
		f.Late = time.Duration(w.luck.IntN(500)) * time.Millisecond
	case 4:
		switch op {
		case "append":
			drawn.count("stored in part")
		case "scan":
			drawn.count("a scan breaks off")
		}
		f.Keep = 1 + w.luck.IntN(3)
	case 5:
		f.Stale = true
	}
	return f
}

// fail draws one of the errors that a call may return.
func (w *world) fail(op string, f *model.Fault) {
	if op == "put object" {
		drawn.count(rareDraw)
	}
	kinds := []stream.Kind{stream.Unclear, stream.Unavailable, stream.Full, stream.Refused, stream.Forbidden,
		stream.Wrong, stream.TooLarge, stream.Gone}
	if f.Fail = kinds[w.luck.IntN(len(kinds))]; f.Fail == stream.Wrong && model.Coin(w.luck, 0.1) && op != "ask" {
		f.Fail, f.Config = 0, true
		w.told.configErrors.Store(true)
		drawn.count("fails: ConfigError")
		return
	}
	drawn.count("fails: " + f.Fail.String())
}
