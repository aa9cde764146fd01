// Package lease says which of several instances works: the one that holds the lease of
// the realm, a key in a NATS KV bucket with a time to live. It is there for economy, so
// that one of them polls and the others stand by. It is not what keeps the stream right;
// that is the compare-and-swap of package stream, and so a lease that changes hands at
// the wrong moment harms nothing.
//
// The holder renews the key at each third of its life. It believes in itself until its
// own deadline, the life of the key counted from the moment when the last confirmed
// renewal was sent: that is before the server lets the key go. A holder that cannot renew
// in the meantime keeps the lease and asks on; a change of the bucket's leader takes
// several seconds, and giving up at the first failure would only make two changes of one.
//
// Those who stand by look at the key at each tenth of its life. A watch would need the
// right to make consumers, and saves little.
package lease

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"sync"
	"time"

	"github.com/nats-io/nuid"
	"github.com/rs/zerolog"

	"zulip-nats/health"
	"zulip-nats/logevent"
	"zulip-nats/stream"
)

const (
	// DefaultBucket is the KV bucket of all leases.
	DefaultBucket = "zulip_bridge"
	// DefaultTTL lets another instance take over in less than five seconds after a crash.
	DefaultTTL = 4 * time.Second

	shortestTTL = time.Second // the server counts in whole seconds
	renewals    = 3           // in the life of the key
	looks       = 10          // of those who stand by, in the life of the key
	lifeTrips   = 4           // round trips in the life of the key, at least
	markerTTL   = time.Minute // how long the bucket remembers that a key expired
	askTimeout  = 2 * time.Second
)

// Config says which lease, and whose. Conn, Realm and Writer are required.
type Config struct {
	// Conn is the connection to NATS, made by [stream.Connect].
	Conn *stream.Conn
	// Realm is the realm's token.
	Realm string
	// Writer names this instance, for people and for whoever stands by.
	Writer string
	// TTL is the life of the lease without renewal, 1 s at least; 0 is [DefaultTTL]. On a
	// replicated bucket 15 s outlast every election. Where NATS is so far away that four
	// round trips last longer, the lease lives as long as those.
	TTL time.Duration
	// Bucket is the KV bucket; empty is [DefaultBucket]. It is made if it is missing.
	Bucket string
	// Replicas are those of a bucket that is made; 0 is 1.
	Replicas int
	// Domain is the JetStream domain of the bucket, for a connection by way of a leaf
	// node.
	Domain string
	// APIPrefix begins the subjects of JetStream's API, and of the bucket's keys, where
	// the account imports them from another one.
	APIPrefix string
	// Standby is called when Acquire begins to wait for another holder, and again when
	// that one was followed by a third. May be nil.
	Standby func(Holder)
	// Trouble is set while the lease cannot be asked for or renewed, for others to ask.
	// Nil: nobody does.
	Trouble *health.Condition
	// Log gets what the caller cannot see: trouble with renewals, a takeover from a dead
	// process.
	Log zerolog.Logger
}

// Holder is who holds a lease, as it is written in the bucket.
type Holder struct {
	Writer string    `json:"writer"`
	Host   string    `json:"host"`
	PID    int       `json:"pid"`
	Since  time.Time `json:"since"`

	// ID tells two holdings of the same writer apart.
	ID string `json:"id"`
	// Process says which process it is, for others on the same machine.
	process
}

// UnsupportedError means that no lease is available here, now and later: no right to the
// bucket, or a bucket that cannot hold one. An instance may say so once and work without,
// fenced by the stream alone.
type UnsupportedError struct{ Err error }

func (e *UnsupportedError) Error() string { return "no lease is available: " + e.Err.Error() }

// Unwrap is for errors.Is and errors.As.
func (e *UnsupportedError) Unwrap() error { return e.Err }

// ErrLost is the cause with which a lease's context ends when the lease is lost.
var ErrLost = errors.New("the lease is lost")

// errReleased is the cause with which a lease's context ends when the lease is given
// back.
var errReleased = errors.New("the lease is released")

// Lease is a lease that was had. It is lost at its deadline at the latest; then it stays
// lost.
type Lease struct {
	bucket
	me     Holder
	ctx    context.Context
	cancel context.CancelCauseFunc
	stop   context.CancelFunc // ends the renewing
	done   sync.WaitGroup

	mu       sync.Mutex
	revision uint64
	deadline deadline
	expiry   *time.Timer
}

// deadline is a moment by both clocks: the monotonic one stands still while the machine
// sleeps, the wall clock may be set.
type deadline struct{ mono, wall time.Time }

func deadlineAfter(sent time.Time, ttl time.Duration) deadline {
	return deadline{mono: sent.Add(ttl), wall: sent.Add(ttl).Round(0)}
}

func (d deadline) passed() bool {
	now := time.Now()
	return !now.Before(d.mono) || !now.Round(0).Before(d.wall)
}

var token = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// Acquire waits for the lease and returns it. It returns early with an
// [*UnsupportedError] where there is none available, and with ctx's cause. NATS away is
// waited for. The lease does not end with ctx: whoever has it releases it.
func Acquire(ctx context.Context, cfg Config) (*Lease, error) {
	api, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname() // for people only
	c := contender{
		bucket: newBucket(cfg, api),
		me:     Holder{Writer: cfg.Writer, Host: host, PID: os.Getpid(), ID: nuid.Next(), process: thisProcess()},
	}
	waitingFor := ""
	for {
		l, other, err := c.look(ctx)
		if err == nil {
			cfg.Trouble.Clear()
		}
		switch {
		case l != nil:
			return l, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case unsupported(err):
			return nil, asUnsupported(err)
		case kindOf(err) == stream.Refused:
			// Somebody was faster: at the next look we see who.
		case err != nil:
			if _, news := cfg.Trouble.Set(fmt.Sprint(kindOf(err), codeOf(err)), err.Error()); news {
				unsure(cfg.Log, err, "the lease cannot be asked for now; retrying")
			}
		case other != nil && other.Writer == cfg.Writer:
			// Our own from before, which we believe lost and the server does not yet:
			// nobody else is there to be spoken of.
		case other != nil && other.ID != waitingFor:
			waitingFor = other.ID
			if cfg.Standby != nil {
				cfg.Standby(*other)
			}
		}
		if err := sleep(ctx, cfg.TTL/looks); err != nil {
			return nil, err
		}
	}
}

// complete fills in the defaults, says what is wrong, and gives the prefix of JetStream's
// API.
func (c *Config) complete() (api string, err error) {
	c.TTL = cmp.Or(c.TTL, DefaultTTL)
	c.Bucket = cmp.Or(c.Bucket, DefaultBucket)
	c.Trouble = cmp.Or(c.Trouble, &health.Condition{})
	if err := c.check(); err != nil {
		return "", err
	}
	return stream.API(c.Domain, c.APIPrefix)
}

func (c *Config) check() error {
	bad := func(setting, value, why string) error {
		return &stream.ConfigError{Setting: setting, Reason: fmt.Sprintf("%q %s", value, why)}
	}
	switch {
	case c.TTL < shortestTTL:
		return bad("lease time", c.TTL.String(), "is shorter than a second, and NATS counts in seconds")
	case !token.MatchString(c.Bucket):
		return bad("lease bucket", c.Bucket, "may have letters, digits, _ and - only")
	case !token.MatchString(c.Realm):
		return bad("realm", c.Realm, "may have letters, digits, _ and - only")
	}
	return nil
}

// contender is somebody who wants the lease.
type contender struct {
	bucket
	me    Holder
	ready bool // the bucket is there
}

// look takes the lease if it is free, or says who has it.
func (c *contender) look(ctx context.Context) (l *Lease, other *Holder, err error) {
	if !c.ready {
		if err := c.ensure(ctx); err != nil {
			return nil, nil, err
		}
		c.ready = true
	}
	now, err := c.read(ctx)
	if err != nil {
		c.ready = kindOf(err) != stream.Gone // the bucket may have been deleted
		return nil, nil, err
	}
	isDead := false
	// If we hold it ourselves, the answer to our own write was lost.
	if now.holder != nil && now.holder.ID != c.me.ID {
		if isDead = now.holder.isDead(); !isDead {
			return nil, now.holder, nil
		}
	}
	c.me.Since = time.Now().UTC().Round(time.Millisecond)
	life, sent := c.life(), time.Now()
	revision, err := c.write(ctx, c.me, now.revision, life)
	if err != nil {
		return nil, nil, err
	}
	if isDead {
		logevent.LeaseTakenOver.Info(c.cfg.Log).Str("holder", now.holder.Writer).Int("pid", now.holder.PID).
			Msg("took the lease over at once: the process that held it is gone")
	}
	return newLease(c.bucket, c.me, revision, sent, life), nil, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	health.Waits(ctx, d)
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// newLease starts the renewing of a key that lives so long from when it was sent; nil if
// that is over, as after a long wait for the answer.
func newLease(b bucket, me Holder, revision uint64, sent time.Time, life time.Duration) *Lease {
	d := deadlineAfter(sent, life)
	if d.passed() {
		return nil
	}
	renewing, stop := context.WithCancel(context.Background())
	l := &Lease{bucket: b, me: me, stop: stop, revision: revision, deadline: d}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	l.mu.Lock()
	l.expiry = time.AfterFunc(time.Until(d.mono), l.expire)
	l.mu.Unlock()
	l.done.Go(func() { l.renew(renewing, l.pause(sent, life)) })
	return l
}

// Context ends when the lease is lost, at the deadline at the latest, and when it is
// released. context.Cause then is [ErrLost] or says that it was released.
func (l *Lease) Context() context.Context { return l.ctx }

// Held says whether the lease still runs, by our own clocks and at this moment. A process
// that was stopped and goes on learns by this what no timer has had the time to tell it.
func (l *Lease) Held() bool {
	l.mu.Lock()
	passed := l.deadline.passed()
	l.mu.Unlock()
	if passed {
		l.lose(l.late())
	}
	return l.ctx.Err() == nil
}

// Release gives the lease back, so that another instance gets it at its next look. It
// returns when no renewal is under way any more. An error says that the lease could not
// be handed over; then it ends by itself. Releasing a lease that is lost or released does
// nothing.
func (l *Lease) Release(ctx context.Context) error {
	l.stop()
	l.done.Wait()
	held := l.Held()
	l.cancel(errReleased)
	l.mu.Lock()
	l.expiry.Stop()
	revision := l.revision
	l.mu.Unlock()
	if !held {
		return nil
	}
	err := l.delete(ctx, revision)
	if kindOf(err) != stream.Refused {
		return err
	}
	// The last renewal was cut off, and done all the same; or the lease is somebody
	// else's.
	now, err := l.read(ctx)
	if err != nil || now.holder == nil || now.holder.ID != l.me.ID {
		return err
	}
	return l.delete(ctx, now.revision)
}

// expire ends the lease at its deadline, unless that was moved meanwhile.
func (l *Lease) expire() {
	l.mu.Lock()
	passed := l.deadline.passed()
	if !passed {
		l.expiry.Reset(time.Until(l.deadline.mono))
	}
	l.mu.Unlock()
	if passed {
		l.lose(l.late())
	}
}

// late says why the deadline passed.
func (l *Lease) late() string {
	switch s, set := l.cfg.Trouble.State(); {
	case !set:
		return "it could not be renewed in time"
	case s.Text == away:
		return "NATS was away, so it could not be renewed in time"
	default:
		return "it could not be renewed in time: " + s.Text
	}
}

// away is the text of a trouble of which the connection's own log says more.
const away = "NATS is away"

// unsure logs trouble with NATS. That the connection is down is in the log already, with
// the reason.
func unsure(log zerolog.Logger, err error, text string) {
	if stream.Away(err) {
		log.Debug().Err(err).Msg(text)
		return
	}
	logevent.LeaseUnsure.Warn(log).Err(err).Msg(text)
}

func (l *Lease) lose(why string) {
	l.stop()
	l.cancel(fmt.Errorf("%w: %s", ErrLost, why))
}

// renew keeps the lease until it is stopped or lost.
//
// No two of its writes are closer than a tenth of the lease's life, whatever was
// answered. A replica that lags behind gives the old revision for as long as it lags, so
// what a read shows is no reason to write again at once. Six more writes fit in what is
// left of the life after the first that was refused, and a tenth is as long as those who
// stand by wait, so nobody is favoured if the key is gone.
func (l *Lease) renew(ctx context.Context, wait time.Duration) {
	// unconfirmed is the end of the first of the renewals that nobody confirmed since the
	// last that was. It is the earliest of them.
	var unconfirmed deadline
	for sleep(ctx, wait) == nil {
		life, sent := l.life(), time.Now()
		until := deadlineAfter(sent, life)
		if unconfirmed.mono.IsZero() || until.mono.Before(unconfirmed.mono) {
			unconfirmed = until
		}
		expected := l.before(until)
		revision, err := l.write(ctx, l.me, expected, life)
		if err == nil {
			if !l.confirm(revision, until) {
				return
			}
			wait, unconfirmed = l.pause(sent, life), deadline{}
			continue
		}
		if ctx.Err() != nil {
			return
		}
		text := err.Error()
		if stream.Away(err) {
			text = away
		}
		if _, news := l.cfg.Trouble.Set("renewal", text); news {
			unsure(l.cfg.Log, err, "the lease cannot be renewed now; keeping it as long as it lasts")
		}
		wait = l.cfg.TTL / looks
		if kindOf(err) != stream.Refused {
			continue
		}
		// Somebody changed the key: another instance, or we ourselves by a renewal whose
		// answer was lost, or its expiry.
		now, err := l.read(ctx)
		if err != nil {
			continue
		}
		if now.revision < expected {
			continue // a replica that lags behind
		}
		if now.holder != nil && now.holder.ID != l.me.ID {
			l.lose(fmt.Sprintf("%s on %s holds it", now.holder.Writer, now.holder.Host))
			return
		}
		if now.holder != nil && now.revision > expected {
			// One of our renewals was done and its answer lost, at the earliest the first
			// of them.
			if !l.confirm(now.revision, unconfirmed) {
				return
			}
			unconfirmed = deadline{}
			continue
		}
		l.mu.Lock()
		l.revision = now.revision
		l.mu.Unlock()
	}
}

// pause is how long to wait with the next renewal, when one was confirmed that lets the key
// live so long. It counts from the sending, since the answer may have taken longer than a
// third of that.
func (l *Lease) pause(sent time.Time, life time.Duration) time.Duration {
	return max(life/renewals-time.Since(sent), l.cfg.TTL/looks)
}

// before takes note that a renewal is about to leave which makes the key live until then,
// and returns the revision that it follows. The way may have become shorter, and the life
// with it: then the key may end before the deadline that we have, whether we hear of it
// or not.
func (l *Lease) before(until deadline) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if until.mono.Before(l.deadline.mono) && l.ctx.Err() == nil {
		l.deadline = until
		l.expiry.Reset(time.Until(until.mono))
	}
	return l.revision
}

// confirm takes note of a renewal; false if the lease was lost before it was confirmed.
func (l *Lease) confirm(revision uint64, d deadline) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.deadline.passed() || l.ctx.Err() != nil {
		return l.ctx.Err() == nil // the timer, or Held, is about to tell
	}
	l.revision, l.deadline = revision, d
	l.expiry.Reset(time.Until(d.mono))
	if _, set := l.cfg.Trouble.Clear(); set {
		logevent.LeaseRenewed.Info(l.cfg.Log).Msg("the lease can be renewed again")
	}
	return true
}
