package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nuid"
	"github.com/rs/zerolog"

	"zulip-nats/health"
	"zulip-nats/logevent"
	"zulip-nats/stream"
)

const (
	// DefaultBucket is the KV bucket of all instances.
	DefaultBucket = "zulip_bridge"
	// DefaultTTL lets another instance take over in less than five seconds after a crash.
	DefaultTTL = 4 * time.Second

	shortestTTL = time.Second // the server counts in whole seconds
	renewals    = 3           // in the life of the key
	looks       = 10          // in the life of the key: how soon what failed is tried again
	lifeTrips   = 4           // round trips in the life of the key, at least
)

// Config says which bucket, and who. Conn and Writer are required.
type Config struct {
	// Conn is the connection to NATS, made by [stream.Connect].
	Conn *stream.Conn
	// Writer names this instance, for people and for whoever stands by.
	Writer string
	// TTL is the life of the instance's key without renewal, 1 s at least; 0 is
	// [DefaultTTL]. On a replicated bucket 15 s outlast every election. Where NATS is so far
	// away that four round trips last longer, the key lives as long as those.
	TTL time.Duration
	// Bucket is the KV bucket; empty is [DefaultBucket]. It is made if it is missing.
	Bucket string
	// Domain is the JetStream domain of the bucket, for a connection by way of a leaf
	// node.
	Domain string
	// APIPrefix begins the subjects of JetStream's API, and of the bucket's keys, where
	// the account imports them from another one.
	APIPrefix string
	// Store is what to use in place of the bucket on Conn: a model of it, in simulations.
	Store Store
	// Trouble is set while the instance's key cannot be asked for or renewed, for others to
	// ask. Nil: nobody does.
	Trouble *health.Condition
	// Log gets what the caller cannot see: trouble with renewals, a takeover from a dead
	// process.
	Log zerolog.Logger
}

// complete fills in the defaults, says what is wrong, and gives the prefix of JetStream's
// API.
func (c *Config) complete() (api string, err error) {
	c.TTL = cmp.Or(c.TTL, DefaultTTL)
	c.Bucket = cmp.Or(c.Bucket, DefaultBucket)
	c.Trouble = cmp.Or(c.Trouble, &health.Condition{})
	if c.TTL < shortestTTL {
		return "", &stream.ConfigError{Setting: "lease time",
			Reason: fmt.Sprintf("%q is shorter than a second, and NATS counts in seconds", c.TTL)}
	}
	if err := checkToken("lease bucket", c.Bucket); err != nil {
		return "", err
	}
	return stream.API(c.Domain, c.APIPrefix)
}

var token = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func checkToken(setting, value string) error {
	if !token.MatchString(value) {
		return &stream.ConfigError{Setting: setting,
			Reason: fmt.Sprintf("%q may have letters, digits, _ and - only", value)}
	}
	return nil
}

// Holder is who holds a lease, as it is written in the bucket.
type Holder struct {
	Writer string    `json:"writer"`
	Host   string    `json:"host"`
	PID    int       `json:"pid"`
	Since  time.Time `json:"since"`

	// ID tells two sessions of the same writer apart.
	ID string `json:"id"`
	// Process says which process it is, for others on the same machine.
	process
}

// UnsupportedError means that realms cannot be shared here, now and later: no right to the
// bucket, or a bucket that cannot hold what it takes. An instance may say so once and work
// without, fenced by the stream alone.
type UnsupportedError struct{ Err error }

func (e *UnsupportedError) Error() string { return "no lease is available: " + e.Err.Error() }

// Unwrap is for errors.Is and errors.As.
func (e *UnsupportedError) Unwrap() error { return e.Err }

// ErrLost is the cause with which a lease's context ends when the lease is lost.
var ErrLost = errors.New("the lease is lost")

// ErrAsked is the cause with which [Lease.Asked] ends when another instance is to have the
// realm.
var ErrAsked = errors.New("another instance is to have the realm")

var (
	// errReleased is the cause with which a lease's context ends when it is given back.
	errReleased = errors.New("the lease is released")
	errClosed   = errors.New("this instance has ended")
)

// Instance is one of those who share realms: a process, for as long as it runs. Its methods
// may be called by several goroutines.
type Instance struct {
	cfg   Config
	store Store
	me    Holder             // without the session's id
	life  context.Context    // until Close
	end   context.CancelFunc // of it
	wake  chan struct{}      // holds one: the loop is to look again
	beats atomic.Uint64      // turns of the loop
	slots chan struct{}      // as many claims may be on their way
	work  sync.WaitGroup

	mu       sync.Mutex
	running  bool // the loop is
	leaving  bool
	replicas int                  // of a bucket that is made
	wants    map[string]*want     // by realm: who waits for it
	wantedAt time.Time            // when the last one was entered
	leases   map[string]*Lease    // by realm: what the session holds
	past     map[string]bool      // ids of sessions of ours that are over
	session  *session             // nil: none now
	dead     map[string]*deadLook // by id of a session: a process of this machine that is no more
}

// want is one Acquire under way.
type want struct {
	result  chan outcome // holds one
	news    chan Holder  // holds one, the newest: who has the realm
	told    string       // the id of that one
	retryAt time.Time    // it is not claimed before
}

type outcome struct {
	lease *Lease
	err   error
}

// NewInstance makes an instance. It asks nothing yet: its session begins with the first
// [Instance.Acquire]. An error is a [*stream.ConfigError].
func NewInstance(cfg Config) (*Instance, error) {
	api, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname() // for people only
	i := &Instance{cfg: cfg, store: cfg.Store, wake: make(chan struct{}, 1), replicas: 1,
		slots: make(chan struct{}, mostClaims),
		me:    Holder{Writer: cfg.Writer, Host: host, PID: os.Getpid(), process: thisProcess()},
		wants: map[string]*want{}, leases: map[string]*Lease{}, past: map[string]bool{}, dead: map[string]*deadLook{}}
	if i.store == nil {
		i.store = newBucket(cfg, api)
	}
	i.life, i.end = context.WithCancel(context.Background())
	return i, nil
}

// Acquire waits until the realm is ours and returns the lease of it. replicas are those of
// a bucket that has to be made. standby, which may be nil, is called when it begins to wait
// for another holder, and again when that one was followed by a third. It returns early
// with an [*UnsupportedError] where realms cannot be shared, and with ctx's cause. NATS away
// is waited for. The lease does not end with ctx: whoever has it releases it. One realm is
// acquired once at a time.
//
// It gives signs of life ([health.Waits]) only while the loop turns that does its work.
func (i *Instance) Acquire(ctx context.Context, realm string, replicas int, standby func(Holder)) (*Lease, error) {
	if err := checkToken("realm", realm); err != nil {
		return nil, err
	}
	w := &want{result: make(chan outcome, 1), news: make(chan Holder, 1)}
	if err := i.want(realm, w, replicas); err != nil {
		return nil, err
	}
	beat := i.beats.Load()
	health.Waits(ctx, i.slack())
	pulse := time.NewTicker(i.cfg.TTL)
	defer pulse.Stop()
	for {
		select {
		case o := <-w.result:
			return o.lease, o.err
		case h := <-w.news:
			if standby != nil {
				standby(h)
			}
		case <-pulse.C:
			if now := i.beats.Load(); now != beat {
				beat = now
				health.Waits(ctx, i.slack())
			}
		case <-ctx.Done():
			i.mu.Lock()
			if i.wants[realm] == w {
				delete(i.wants, realm)
			}
			i.mu.Unlock()
			select {
			case o := <-w.result:
				return o.lease, o.err
			default:
				return nil, context.Cause(ctx)
			}
		}
	}
}

// slack is for how long the loop may at most not turn.
func (i *Instance) slack() time.Duration {
	return 2*i.cfg.TTL + 4*max(askTimeout, 4*i.store.RoundTrip())
}

// want enters somebody who waits, and starts the loop.
func (i *Instance) want(realm string, w *want, replicas int) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.life.Err() != nil:
		return errClosed
	case i.wants[realm] != nil, i.leases[realm] != nil:
		return fmt.Errorf("realm %s is acquired twice in one process: give each realm to one bridge", realm)
	}
	i.wants[realm], i.wantedAt = w, time.Now()
	i.replicas = max(i.replicas, replicas)
	if !i.running {
		i.running = true
		i.work.Go(i.run)
	}
	i.poke()
	return nil
}

// poke lets the loop look again.
func (i *Instance) poke() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// refuse ends all who wait.
func (i *Instance) refuse(err error) {
	for realm, w := range i.wants {
		w.result <- outcome{err: err}
		delete(i.wants, realm)
	}
}

// Leave says that the stop has begun: others count without this instance from now on, and
// it claims nothing any more that somebody else could have.
func (i *Instance) Leave() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.leaving = true
	if s := i.session; s != nil {
		s.renewNow()
	}
	i.poke()
}

// Close ends the instance: all leases are over, all who wait get an error, and its key
// goes, so that what it still held is free at once. An error says that the key could not be
// deleted; then it expires.
func (i *Instance) Close(ctx context.Context) error {
	i.mu.Lock()
	s := i.session
	i.end()
	i.refuse(errClosed)
	held := false
	if s != nil {
		held = !s.over && !s.deadline.passed()
		s.finish(errReleased)
	}
	i.mu.Unlock()
	i.work.Wait()
	if !held {
		return nil
	}
	return s.remove(ctx)
}

// Share is how the realms are shared, as this instance sees it.
type Share struct {
	Instance  string // the id of the session; empty: none now
	Realms    int    // known to anybody
	Held      int    // by this instance
	Share     int    // the most that an instance holds once all is even
	Instances int    // that live and are not about to leave
}

// Share says how the realms are shared now.
func (i *Instance) Share() Share {
	i.mu.Lock()
	defer i.mu.Unlock()
	s := i.session
	if s == nil || s.view == nil {
		return Share{Instance: i.id(), Held: len(i.leases)}
	}
	c := s.count(time.Now())
	return Share{Instance: s.id, Realms: c.realms, Held: len(i.leases), Share: c.share(), Instances: c.members}
}

// ID is that of the session, another one after each that was lost; empty if there is none.
func (i *Instance) ID() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.id()
}

func (i *Instance) id() string {
	if i.session == nil {
		return ""
	}
	return i.session.id
}

// run is the loop: one session after the other, until Close, or until it turns out that
// none can be had.
func (i *Instance) run() {
	for i.life.Err() == nil {
		s, err := i.begin()
		if err != nil {
			i.mu.Lock()
			i.running = false
			i.refuse(err)
			i.mu.Unlock()
			return
		}
		s.follow()
	}
}

// begin waits for a session. An error is an [*UnsupportedError], or the end of the
// instance.
func (i *Instance) begin() (*session, error) {
	me := i.me
	me.ID = nuid.Next()
	for {
		i.beats.Add(1)
		s, err := i.try(me)
		switch {
		case s != nil:
			return s, nil
		case i.life.Err() != nil:
			return nil, errClosed
		case unsupported(err):
			return nil, asUnsupported(err)
		case err != nil && kindOf(err) != stream.Refused:
			i.unsure(err, "the lease cannot be asked for now; retrying")
		}
		pause(i.life, i.cfg.TTL/looks)
	}
}

// unsure remembers trouble with NATS, and logs it. That the connection is down is in the
// log already, with the reason.
func (i *Instance) unsure(err error, text string) {
	why := err.Error()
	if stream.Away(err) {
		why = away
	}
	if _, news := i.cfg.Trouble.Set(fmt.Sprint(kindOf(err), codeOf(err)), why); !news {
		return
	}
	if stream.Away(err) {
		i.cfg.Log.Debug().Err(err).Msg(text)
		return
	}
	logevent.LeaseUnsure.Warn(i.cfg.Log).Err(err).Msg(text)
}

// away is the text of a trouble of which the connection's own log says more.
const away = "NATS is away"

// pause waits, and gives false if ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
