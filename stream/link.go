package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/health"
)

// link watches one connection for all streams on it. nats.go leaves two kinds of waiting
// people alone: who waits for an answer when the connection drops waits for its whole
// deadline, though the answer can never come; and who lacks a permission also waits,
// since the server says so in an error that belongs to no request. A link ends both kinds
// of waiting at once.
type link struct {
	nc *nats.Conn

	mu      sync.Mutex
	alive   chan struct{} // closed when the connection that it stands for drops
	isAlive bool
	epoch   uint64 // of that connection
	waiters map[*waiter]struct{}

	listening  map[*Stream]struct{} // guarded by mu
	advisories chan *nats.Msg       // what the server tells of them; one that finds no room is lost

	roundTrip atomic.Int64 // nanoseconds to the server and back, as far as it is known; 0 is not known
	measuring atomic.Bool
}

// waiter is somebody who waits for an answer and wants to hear of refused permissions
// that concern it.
type waiter struct {
	concerns func(violation) bool // called with the link's lock held
	refused  chan violation       // holds one
}

// violation is a permission that the server found missing.
type violation struct {
	action  string // "publish", "subscribe"
	subject string
	reply   bool // it is not the subject of what was published, but where the answer was to go
}

// newLink returns a link that takes errors already and has no connection yet: nats.go
// wants to know who gets the errors before it connects.
func newLink() *link {
	return &link{alive: make(chan struct{}), isAlive: true, waiters: make(map[*waiter]struct{}),
		listening: make(map[*Stream]struct{}), advisories: make(chan *nats.Msg, 256)}
}

// start begins to watch nc; that ends when nc is closed.
func (l *link) start(nc *nats.Conn) {
	l.nc = nc
	// Asked for here, since who closes the connection may be faster than a goroutine.
	changes := nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.DISCONNECTED, nats.CLOSED)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.watch(changes)
	}()
	go l.hears(ended)
	go l.measure()
}

func (l *link) watch(changes chan nats.Status) {
	defer l.nc.RemoveStatusListener(changes)
	for status := range changes {
		l.broken()
		if status == nats.CONNECTED {
			go l.measure() // another server may be farther away
		}
		if status == nats.CLOSED || l.nc.IsClosed() {
			return
		}
	}
}

// broken returns a channel that is closed when the connection drops; a connection that
// comes back has another one. Whoever takes it before sending cannot miss the drop that
// loses the answer.
//
// It goes by the state of the connection, not by the changes that are told: those come
// late, after the connection is up again.
func (l *link) broken() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	epoch := l.nc.Stats().Reconnects
	isAlive := l.nc.IsConnected()
	if l.isAlive && (!isAlive || epoch != l.epoch) {
		close(l.alive)
		l.isAlive = false
	}
	// The count is read again: what was connected may be the next connection already,
	// whose turn is then the next call.
	if !l.isAlive && isAlive && epoch == l.nc.Stats().Reconnects {
		l.alive, l.isAlive, l.epoch = make(chan struct{}), true, epoch
	}
	return l.alive
}

const (
	// patienceFactor is how many round trips a time-out is at least.
	patienceFactor = 4
	mostPatience   = time.Minute
)

// patience is how long to wait for an answer for which base is long enough where the way
// is short. A time-out shorter than the way to the server and back would never be met.
func (l *link) patience(base time.Duration) time.Duration {
	return max(base, min(patienceFactor*time.Duration(l.roundTrip.Load()), mostPatience))
}

// answered notes that an answer took so long: the way is not longer than that. It may
// well be shorter, since the server had work to do.
func (l *link) answered(took time.Duration) {
	for {
		known := l.roundTrip.Load()
		if known == 0 || known <= int64(took) || l.roundTrip.CompareAndSwap(known, int64(took)) {
			return
		}
	}
}

// measure finds the round trip anew: at the beginning of a connection, and when an answer
// did not come in time. Only here it grows. A PING is answered by whatever server we are
// connected to, so a stream without a leader does not make the way longer. A server that
// hung for a while does, with the first PING; the second one is for that.
func (l *link) measure() {
	if !l.measuring.CompareAndSwap(false, true) {
		return // under way
	}
	defer l.measuring.Store(false)
	for i := range 2 {
		if !l.nc.IsConnected() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), mostPatience)
		start := time.Now()
		err := l.nc.FlushWithContext(ctx)
		took := time.Since(start)
		cancel()
		switch {
		case err != nil:
			return
		case i == 0:
			l.roundTrip.Store(int64(took))
		default:
			l.answered(took)
		}
	}
}

// RoundTrip is the time to the server and back, as far as it is known; 0 if it is not. It
// is for what stands beside the stream and has to outlast some round trips: the lease.
func (c *Conn) RoundTrip() time.Duration { return time.Duration(c.link.roundTrip.Load()) }

func (l *link) wait(concerns func(violation) bool) *waiter {
	w := &waiter{concerns: concerns, refused: make(chan violation, 1)}
	l.mu.Lock()
	l.waiters[w] = struct{}{}
	l.mu.Unlock()
	return w
}

func (l *link) forget(w *waiter) {
	l.mu.Lock()
	delete(l.waiters, w)
	l.mu.Unlock()
}

// tell passes v to all whom it concerns, and says whether there was anybody.
func (l *link) tell(v violation) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	told := false
	for w := range l.waiters {
		if !w.concerns(v) {
			continue
		}
		told = true
		select {
		case w.refused <- v:
		default:
		}
	}
	return told
}

// The texts are those of nats-server, client.go (pubPermissionViolation and its
// neighbours).
var violationText = regexp.MustCompile(`(?i)permissions violation for (publish|subscription)( with reply of| to) "([^"]+)"`)

func parseViolation(err error) (violation, bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return violation{}, false
	}
	m := violationText.FindStringSubmatch(err.Error())
	if m == nil {
		return violation{}, false
	}
	if m[1][0] == 'p' || m[1][0] == 'P' {
		return violation{"publish", m[3], m[2] != " to"}, true
	}
	return violation{"subscribe", m[3], false}, true
}

// forbidden is the error for a missing permission.
func (l *link) forbidden(what string, v violation) *Error {
	if l.isReply(v.subject) {
		v.subject = inboxOf(l.nc) + ">" // the rest is another one each time
	}
	allow := "publish to"
	if v.action == "subscribe" {
		allow = "subscribe to"
	}
	return errorf(Forbidden, "%s: this NATS user may not %s %q; add it to the user's permissions (%s allow)", what,
		allow, v.subject,
		v.action)
}

// isReply is true for subjects on which answers come back to this connection.
func (l *link) isReply(subject string) bool {
	return strings.HasPrefix(subject, inboxOf(l.nc))
}

// unheard says whether a violation keeps answers from this connection. A message that was
// published to such a subject is an answer of ours to others, who may have the same inbox
// prefix (package service): that is no matter of anybody here who waits for one.
func (l *link) unheard(v violation) bool {
	return l.isReply(v.subject) && (v.action == "subscribe" || v.reply)
}

// Refused gives the first subject that NATS refuses of those that concern somebody who
// waits for no answer, the action being publish or subscribe; concerns must return at
// once. None of them is in the log from then on, until stop is called.
func (c *Conn) Refused(concerns func(action, subject string) bool) (first <-chan string, stop func()) {
	subjects := make(chan string, 1)
	w := c.link.wait(func(v violation) bool {
		if !concerns(v.action, v.subject) {
			return false
		}
		select {
		case subjects <- v.subject:
		default:
		}
		return true
	})
	return subjects, func() { c.link.forget(w) }
}

// request is one question to NATS and its answer, within limit, or longer where the way
// is long. It ends early when the connection drops or the server says that a permission
// is missing. Errors are *Error, or ctx's own.
func (l *link) request(ctx context.Context, what, subject string, data []byte, limit time.Duration) (*nats.Msg, error) {
	return l.requestMsg(ctx, what, &nats.Msg{Subject: subject, Data: data}, limit)
}

func (l *link) requestMsg(ctx context.Context, what string, msg *nats.Msg, limit time.Duration) (*nats.Msg, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	broken := l.broken()
	select {
	case <-broken:
		return nil, newConnError(what, nats.ErrDisconnected, false)
	default:
	}
	w := l.wait(func(v violation) bool { return v.subject == msg.Subject || l.unheard(v) })
	defer l.forget(w)
	asking, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	health.Waits(ctx, l.patience(limit))
	asking, cancel := context.WithTimeoutCause(asking, l.patience(limit), context.DeadlineExceeded)
	defer cancel()
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-broken:
			stop(nats.ErrDisconnected)
		case v := <-w.refused:
			stop(l.forbidden(what, v))
		case <-asking.Done():
		}
	})
	start := time.Now()
	answer, err := l.nc.RequestMsgWithContext(asking, msg)
	cause := context.Cause(asking)
	cancel()
	watching.Wait()
	if err == nil {
		l.answered(time.Since(start))
		return answer, nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if cause != nil {
		err = cause
	}
	if errors.Is(err, nats.ErrNoResponders) {
		if why := l.nobody(msg.Subject); why != "" {
			return nil, errorf(Unavailable, "%s: %s: %w", what, why, err)
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		go l.measure()
	}
	return nil, newConnError(what, err, false)
}

// nobody says why nobody answers on a subject of JetStream's API, where that can be
// known: the servers have no JetStream (they say so in the INFO that begins a connection;
// one without it may pass requests on to others), or none under the domain or prefix that
// we were told.
func (l *link) nobody(subject string) string {
	if !strings.HasPrefix(subject, defaultAPI) {
		if api, _, ok := strings.Cut(subject, ".STREAM."); ok {
			return fmt.Sprintf("nobody answers under %q: look whether the JetStream domain or the API prefix is "+
				"right, whether the leaf node is connected, and whether the account imports it", api)
		}
		return ""
	}
	if has, _ := l.nc.ConnectedServerJetStream(); !has && l.nc.IsConnected() {
		return "the NATS server runs without JetStream: start it with -js, or with jetstream {} in its configuration"
	}
	return ""
}

// apiReply is what all JSON answers of JetStream's API have in common.
type apiReply struct {
	Error *jetstream.APIError `json:"error"`
}

func (r *apiReply) failure() *jetstream.APIError { return r.Error }

// ask is a request to JetStream's API; its JSON answer goes to out, which embeds
// apiReply. An error in the answer becomes an *Error.
func (l *link) ask(
	ctx context.Context, what, subject string, question any, limit time.Duration,
	out interface{ failure() *jetstream.APIError },
) error {
	var data []byte
	if question != nil {
		var err error
		if data, err = json.Marshal(question); err != nil {
			return errorf(Wrong, "%s: %w", what, err)
		}
	}
	answer, err := l.request(ctx, what, subject, data, limit)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer.Data, out); err != nil {
		return errorf(Wrong, "%s: the answer on %s is not understood, what gave it is no JetStream, or a newer one "+
			"than this program knows: %w", what, subject, err)
	}
	if e := out.failure(); e != nil {
		return newAPIError(what, e)
	}
	return nil
}

// readAgain is how long the answer to a question that changes nothing is waited for at
// first before it is asked again. While a stream elects its leader nobody answers what
// came in between (measured on nats-server 2.15.2), and to wait for that until the limit
// would keep all waiting for seconds behind an election.
const readAgain = 200 * time.Millisecond

// readTries is how often it is asked before a try that waits to the limit, for servers
// that are slow.
const readTries = 3

var errAgain = errors.New("it is asked again")

// read is ask for a question that changes nothing.
func (l *link) read(
	ctx context.Context, what, subject string, question any, limit time.Duration,
	out interface{ failure() *jetstream.APIError },
) error {
	wait := max(readAgain, 2*time.Duration(l.roundTrip.Load()))
	for range readTries {
		again, cancel := context.WithTimeoutCause(ctx, wait, errAgain)
		err := l.ask(again, what, subject, question, limit, out)
		cancel()
		if !errors.Is(err, errAgain) {
			return err
		}
		wait *= 2
	}
	return l.ask(ctx, what, subject, question, limit, out)
}

// Ask sends one message and waits for its answer, within limit, or four round trips if
// that is longer. The wait ends early when the connection drops or the server says that a
// permission is missing; what says who asks, in the errors. An answer of JetStream that
// is an error comes back as an [*Error] too. It is for what stands beside the stream: the
// lease.
func (c *Conn) Ask(ctx context.Context, what string, msg *nats.Msg, limit time.Duration) (*nats.Msg, error) {
	answer, err := c.link.requestMsg(ctx, what, msg, limit)
	if err != nil {
		return nil, err
	}
	var reply apiReply
	if json.Unmarshal(answer.Data, &reply) == nil && reply.Error != nil {
		return nil, newAPIError(what, reply.Error)
	}
	return answer, nil
}
