package cli

import (
	"cmp"
	"context"
	"errors"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"zulip-nats/bridge"
	"zulip-nats/fleet"
	"zulip-nats/health"
	"zulip-nats/logevent"
	"zulip-nats/poller"
	"zulip-nats/service"
	"zulip-nats/stream"
	"zulip-nats/systemd"
)

// registersPerSecond is how many queues the realms of a process register in a second at
// most, together: they may all be of one Zulip.
const registersPerSecond = 50

// From manyRealms on garbage is collected when it is manyPercent of what is in use. What
// most realms have is in use for hours, and they make next to no garbage. By Go's rule of
// 100 percent there would be as much of it again, for nothing. GOGC says otherwise.
const manyRealms, manyPercent = 100, 25

// startPatience is how long a realm may hold back the others from having come up: its Zulip
// may be away.
const startPatience = time.Minute

// process is one `run`: what the realms share, and each of them.
type process struct {
	*app
	log    zerolog.Logger
	level  *logLevel
	writer string // names this process in what is stored

	fleet     *fleet.Fleet
	registers *rate.Limiter
	end       context.CancelCauseFunc // ends all realms

	c     *Config                 // what was asked for at the start
	read  func() (*Config, error) // reads the settings again
	files func() []string         // that they stand in

	mu     sync.Mutex
	realms []*followed // in the order of the settings

	up atomic.Bool // each realm has come up

	start   context.Context // of the first attempt to connect
	working context.Context // of the realms

	connecting sync.Mutex
	conn       atomic.Pointer[stream.Conn] // nil: no realm has been let in yet
	with       Config                      // c, with the address of the embedded server if there is one
	shared     *sharing                    // nil with --no-lease
	failed     error                       // there will be no connection
	undo       []func()                    // in the reverse order

	finding sync.Mutex
	unfind  func() // ends what [process.beFound] began; nil: nothing
}

// followed is a realm as it is followed with some settings.
type followed struct {
	name  string
	r     *RealmConfig
	g     *greeting
	wrong error // why there is no greeting: its account cannot be read
	began time.Time
	// source is where its account is read from, which is done again when Zulip refuses the
	// key. The key that stands there may have changed since.
	source atomic.Pointer[poller.Source]
	// bridge is nil before there is a connection. A start may wait for a long time for the
	// first answer of a server.
	bridge atomic.Pointer[bridge.Bridge]
	// before is the bridge that has to end first, with other settings. It may hang.
	before atomic.Pointer[bridge.Bridge]
}

// newFollowed reads the account of a realm.
func (p *process) newFollowed(r *RealmConfig) *followed {
	f := &followed{name: r.Name, r: r, began: time.Now()}
	f.source.Store(&r.Account)
	load := func() (poller.Account, error) { return poller.LoadAccount(*f.source.Load()) }
	if f.g, f.wrong = newGreeting(r, load, p.log); f.wrong == nil {
		f.name = f.g.realm.String()
		f.g.poller.Registers = p.registers
	}
	return f
}

// followedBy is all that decides how a realm is followed, for comparison. The key is not
// part of it: another one is taken for the next request.
type followedBy struct {
	realm   RealmConfig
	account poller.Account
}

// asRealm is the realm for the fleet.
func (p *process) asRealm(f *followed) fleet.Realm {
	by := followedBy{realm: f.r.without()}
	if f.g != nil {
		by.account = f.g.account
		by.account.Key = ""
	}
	return fleet.Realm{Name: f.name, Settings: by, Anyway: f.r.DeleteQueue,
		Run: func(ctx context.Context) error { return p.follow(ctx, f) }}
}

// run is the command, once its settings are known. The order of the end is the reverse of
// the beginning: the realms finish what they have in hand while the server that stores it
// still runs.
func (p *process) run(ctx context.Context) error {
	if len(p.c.Realms) >= manyRealms && os.Getenv("GOGC") == "" {
		debug.SetGCPercent(manyPercent)
	}
	p.fleet = fleet.New(p.log)
	p.registers = rate.NewLimiter(registersPerSecond, 1)
	var realms []fleet.Realm
	var wrong []error
	for i := range p.c.Realms {
		f := p.newFollowed(&p.c.Realms[i])
		if f.wrong != nil {
			wrong = append(wrong, f.wrong)
		}
		p.realms = append(p.realms, f)
		realms = append(realms, p.asRealm(f))
	}
	// Before anything is started or made, since this is where most first starts fail.
	if len(wrong) == len(realms) {
		return errors.Join(wrong...)
	}
	if p.c.Show && len(realms) > 1 {
		return usageErrorf("--show (or ZULIP_NATS_SHOW) prints what is stored of one organization, and %d are followed: leave "+
			"it out, and look with `zulip-nats tail --realm NAME`", len(realms))
	}
	if len(p.realms) == 1 {
		p.app.log = &p.realms[0].g.log // from here on an error has a realm
	}
	stopServing, err := p.serve()
	if err != nil {
		return err
	}
	defer stopServing()
	stopTelling := systemd.FromEnvironment().Tell(ctx, p.statuses, p.log)
	defer stopTelling()

	p.start = ctx
	if slices.ContainsFunc(p.c.Realms, func(r RealmConfig) bool { return r.DeleteQueue }) {
		p.start = context.WithoutCancel(ctx) // a stop during the start is the bridges' to judge
	}
	work, end := context.WithCancelCause(ctx)
	defer end(nil)
	p.end, p.working = end, work
	defer func() {
		for _, f := range slices.Backward(p.undo) {
			f()
		}
	}()
	p.fleet.Set(realms)
	stopReloading := p.reloads(work)
	err = p.fleet.Run(work)
	stopReloading()
	switch {
	case p.failed != nil:
		return p.failed
	case err != nil:
		return err
	case p.conn.Load() == nil:
		logevent.Stopped.Info(p.log).EmbedObject(bridge.Work{}).Msg("stopped before there was a connection")
		return nil
	}
	var done bridge.Work
	for _, s := range p.statuses() {
		done.Add(s.Counters.Work())
	}
	logevent.Stopped.Info(p.log).EmbedObject(done).Msg("stopped")
	return nil
}

// follow follows one realm until ctx ends.
func (p *process) follow(ctx context.Context, f *followed) error {
	if f.wrong != nil {
		return f.wrong
	}
	g := f.g
	for _, n := range unknownTypes(f.r.Queue) {
		n.log(g.log)
	}
	if err := g.who(ctx); err != nil {
		return err
	}
	conn, err := p.connection()
	if err != nil {
		return nil // it is told once, for all realms
	}
	g.look = tailLine(&p.with, f.name)
	if p.c.Show {
		defer p.shows(ctx, conn, &p.with, g)()
	}
	b, done := buildBridge(conn, &p.with, f.r, g, p.writer, p.shared)
	defer done()
	f.bridge.Store(b)
	f.before.Store(nil)
	if err := b.Run(ctx); err != nil {
		return err
	}
	if f.r.DeleteQueue && g.stream == "" {
		logevent.QueueNotDeleted.Warn(g.log).Msg("no queue is deleted: there is no stream yet, so none was made")
	}
	return nil
}

// connection is the connection to NATS, one for all realms. The first realm that Zulip
// has let in makes it: a wrong key, or a typo in the site, must leave nothing behind.
func (p *process) connection() (*stream.Conn, error) {
	p.connecting.Lock()
	defer p.connecting.Unlock()
	if conn := p.conn.Load(); conn != nil || p.failed != nil {
		return conn, p.failed
	}
	if err := p.connect(); err != nil {
		if p.start.Err() == nil || !errors.Is(err, context.Cause(p.start)) {
			p.failed = err
			p.end(err)
		}
		return nil, err
	}
	return p.conn.Load(), nil
}

// connect starts the embedded server, if there is no other, and what hangs on the
// connection.
func (p *process) connect() error {
	p.with = *p.c
	c, log := &p.with, p.log
	if c.NATS.URL == "" {
		s, err := startEmbedded(c, log)
		if err != nil {
			return err
		}
		p.undo = append(p.undo, s.Shutdown)
		// It knows no users and no certificates. Some of those may be set for other
		// programs (NATS_CREDS, say), so this is no mistake.
		if n := c.NATS; n.Creds+n.NKey+n.JWT+n.Seed+n.User+n.Password+n.Token+n.CA+n.Cert+n.Key != "" {
			logevent.CredentialsUnused.Warn(log).
				Msg("credentials or certificates for NATS are given, but no NATS URL: " +
					"the embedded server does not use them")
		}
		c.NATS, c.embedded = stream.ConnectConfig{URL: s.URL()}, true
		c.JSDomain, c.JSAPIPrefix = "", ""
	}
	// What instances tell each other has a connection of its own. The server writes there
	// whenever it likes, and where it does so to a client that has gone, it may throw away
	// what that one had sent before: on the other connection that may be a write of ours.
	var conn, own *stream.Conn
	var err, ownErr error
	var both sync.WaitGroup
	both.Go(func() { conn, err = connect(p.start, c, log) })
	if !c.NoLease {
		both.Go(func() { own, ownErr = connect(p.start, c, zerolog.Nop()) })
	}
	both.Wait()
	if own != nil {
		p.undo = append(p.undo, own.Close)
	}
	if conn != nil {
		p.undo = append(p.undo, conn.Close)
	}
	if err = cmp.Or(err, ownErr); err != nil {
		return err
	}
	shared, unshare, err := newSharing(p.working, own, c, p.writer, log)
	if err != nil {
		return err
	}
	p.undo = append(p.undo, unshare)
	p.shared = shared
	p.conn.Store(conn)
	p.beFound()
	hours, end := context.WithCancel(context.Background())
	go bridge.Hourly(hours, log, p.statuses)
	p.undo = append(p.undo, func() { p.unfind() }, end)
	return nil
}

// beFound lets this instance be found by NATS, once there is a connection, with the realms
// that it has now.
func (p *process) beFound() {
	p.finding.Lock()
	defer p.finding.Unlock()
	conn := p.conn.Load()
	if conn == nil {
		return
	}
	if p.unfind != nil {
		p.unfind()
	}
	found := service.Config{Instance: p.writer, Version: readBuild().version, Realms: p.statuses, Log: p.log}
	if slices.ContainsFunc(p.followers(), func(f *followed) bool { return len(f.r.State) > 0 }) {
		found.AskState = p.askState
	}
	p.unfind = service.Start(conn, found)
}

// followers are the realms as they are followed now.
func (p *process) followers() []*followed {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.realms
}

// statuses says how the realms are, in the order of the settings.
func (p *process) statuses() []bridge.Status {
	followers := p.followers()
	list := make([]bridge.Status, 0, len(followers))
	all := true
	for _, f := range followers {
		s := bridge.Status{Realm: f.name, State: bridge.Starting, Since: f.began, LastEventID: -1}
		if b := f.bridge.Load(); b != nil {
			s = b.Status()
		} else if b := f.before.Load(); b != nil {
			s.Late = b.Status().Late
		}
		if len(followers) > 1 && time.Since(f.began) > startPatience {
			s.Ready = true
		}
		if why, is := p.fleet.Halted(f.name); is {
			// It has come up as far as it can: the others are not to wait for it.
			s.State, s.Since, s.Ready, s.Late = bridge.NeedsOperator, why.Since, true, 0
			s.Wrong = map[string]health.State{bridge.SideOperator: why}
		}
		all = all && s.Ready
		list = append(list, s)
	}
	if all {
		p.up.Store(true)
	}
	if p.up.Load() { // it stays so, whatever a reload adds
		for i := range list {
			list[i].Ready = true
		}
	}
	return list
}

// askState asks the bridge of a realm for a new state, and says whether one will come.
func (p *process) askState(realm string) bool {
	for _, f := range p.followers() {
		if f.name == realm {
			b := f.bridge.Load()
			return b != nil && b.AskState()
		}
	}
	return false
}
